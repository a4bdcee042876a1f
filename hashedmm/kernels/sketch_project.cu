// 8 sketch, back, first half, float32: u_I = C_I^T gy_I. What the gradient of a strip's outputs says to each of its bins.
//
// Who computes what: a block makes TILE_M bins of one strip for TILE_N columns, as tile_product says.
// What to see: the same windows as in sketch_multiply, and now a window is a row: u[k] is its product with gy_I.
//
// Launch: THREADS in a 1-D block; a 1-D grid: strips, tiles of columns, tiles of bins (fastest). Dynamic shared
// memory: 4 bytes times TILE_M; then as sketch_multiply.
//     layout  where each weight is stored
//     w_k     (buckets); w, height and stride of the strips are multiples of 16 bytes
//     gy_mn   (rows, pitch), C order; columns first .. first + n - 1 are meant
//     u_ikn   (strips, all_bins, n): written for the bins that a strip has
//     n       columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
#include "product.cuh"
#include "sketch.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) sketch_project(
    const Layout layout, const float* __restrict__ w_k, const float* __restrict__ gy_mn,
    const long long pitch, const long long first, float* __restrict__ u_ikn, const int all_bins, const int n) {
    extern __shared__ __align__(16) unsigned char memory[];

    const int height = min(BLOCK_ROWS, layout.rows), tiles_down = (all_bins - 1) / TILE_M + 1, tiles = (n - 1) / TILE_N + 1;
    const int k0 = blockIdx.x % tiles_down * TILE_M, s0 = blockIdx.x / tiles_down % tiles * TILE_N;
    const int strip = blockIdx.x / tiles_down / tiles, i0 = strip * height;
    const int rows = min(layout.rows - i0, height), bins = bins_of(layout, strip);
    unsigned* start = reinterpret_cast<unsigned*>(memory);  // of each bin's window
    for (int k = threadIdx.x; k < min(TILE_M, bins - k0); k += THREADS) start[k] = window(layout, strip, k0 + k);
    __syncthreads();  // all windows are known
    const float* w = w_k + first_bucket(layout, strip);
    float* u_kn = u_ikn + (long long)strip * all_bins * n;

    tile_product<false, true>(
        memory + 4 * TILE_M, w_k, height,
        [&](int k, int m) { return k0 + k < bins && m < height ? w + start[k] + m : nullptr; },
        [&](int s, int m) { return s0 + s < n && m < rows ? gy_mn + (i0 + m) * pitch + first + s0 + s : nullptr; },
        [&](int k, int s, const Piece& piece) {
            if (k0 + k < bins && s0 + s < n) {
                *reinterpret_cast<Piece*>(&u_kn[(long long)(k0 + k) * n + s0 + s]) = piece;
            }
        });
}
