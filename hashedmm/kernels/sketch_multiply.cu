// 8 sketch, second half, float32: y_I = C_I z_I. The codebook of every strip times the strip's sketch of x.
//
// Who computes what: a block makes TILE_M outputs of one strip for TILE_N columns, as tile_product says. Column k of C_I
// is the window of bin k, BLOCK_ROWS neighbouring buckets: it is read from w as it lies there.
// What to see: an ordinary matrix product, but a small one: a strip's depth is its number of bins and not cols. Windows
// overlap if the stride is less than the height: the copies read the same buckets again, from the caches.
//
// Launch: THREADS in a 1-D block; a 1-D grid: strips, tiles of columns, tiles of a strip's rows (fastest). Dynamic shared
// memory: 4 bytes a bin of a strip, in whole 16 bytes; then STAGES pairs of operand tiles, or the result's tile if larger.
//     layout  where each weight is stored
//     w_k     (buckets); w, height and stride of the strips are multiples of 16 bytes
//     z_ikn   (strips, all_bins, n)
//     y_mn    (rows, pitch), C order: columns first .. first + n - 1 are written
//     n       columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
#include "product.cuh"
#include "sketch.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) sketch_multiply(
    const Layout layout, const float* __restrict__ w_k, const float* __restrict__ z_ikn, const int all_bins,
    float* __restrict__ y_mn, const long long pitch, const long long first, const int n) {
    extern __shared__ __align__(16) unsigned char memory[];

    const int height = min(BLOCK_ROWS, layout.rows), tiles_down = (height - 1) / TILE_M + 1, tiles = (n - 1) / TILE_N + 1;
    const int m0 = blockIdx.x % tiles_down * TILE_M, s0 = blockIdx.x / tiles_down % tiles * TILE_N;
    const int strip = blockIdx.x / tiles_down / tiles, i0 = strip * height;
    const int rows = min(layout.rows - i0, height), depth = bins_of(layout, strip);
    unsigned* start = reinterpret_cast<unsigned*>(memory);  // of each bin's window
    for (int k = threadIdx.x; k < depth; k += THREADS) start[k] = window(layout, strip, k);
    __syncthreads();  // all windows are known
    const float* w = w_k + first_bucket(layout, strip) + m0;
    const float* z_kn = z_ikn + (long long)strip * all_bins * n;

    tile_product<true, true>(
        memory + (all_bins + 3) / 4 * 16, w_k, depth,
        [&](int m, int k) { return m0 + m < height && k < depth ? w + start[k] + m : nullptr; },
        [&](int s, int k) { return s0 + s < n && k < depth ? z_kn + (long long)k * n + s0 + s : nullptr; },
        [&](int m, int s, const Piece& piece) {
            if (m0 + m < rows && s0 + s < n) {
                *reinterpret_cast<Piece*>(&y_mn[(i0 + m0 + m) * pitch + first + s0 + s]) = piece;
            }
        });
}
