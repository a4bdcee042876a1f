// 8 sketch, the weights' gradient, float32: G_I = z_I gy_I^T, the gradient of every window of a strip's codebook.
//
// Who computes what: a block makes TILE_M bins by TILE_N outputs of one strip, as tile_product says; the depth is the
// number of columns. Where every bucket belongs to one window of one strip (no overlap, panels one strip high), window k
// of G_I *is* the gradient of its buckets and is written there. Else G is kept whole, and sketch_fold adds up.
// What to see: no atomics. A sum has one order, and the result the same bits every time.
//
// Launch: THREADS in a 1-D block; a 1-D grid: strips, tiles of outputs, tiles of bins (fastest). Dynamic shared memory:
// STAGES pairs of operand tiles, or the result's tile if larger.
//     layout  where each weight is stored
//     z_ikn   (strips, all_bins, n)
//     gy_mn   (rows, pitch), C order; columns first .. first + n - 1 are meant
//     g       (strips, all_bins, height) float32; or, if direct, the gradient (buckets) float32, added to
//     n       columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
#include "product.cuh"
#include "sketch.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) sketch_outer(
    const Layout layout, const float* __restrict__ z_ikn, const int all_bins, const float* __restrict__ gy_mn,
    const long long pitch, const long long first, float* __restrict__ g, const int n, const int direct) {
    extern __shared__ __align__(16) unsigned char memory[];

    const int height = min(BLOCK_ROWS, layout.rows);
    const int tiles_down = (all_bins - 1) / TILE_M + 1, tiles = (height - 1) / TILE_N + 1;
    const int k0 = blockIdx.x % tiles_down * TILE_M, m0 = blockIdx.x / tiles_down % tiles * TILE_N;
    const int strip = blockIdx.x / tiles_down / tiles, i0 = strip * height;
    const int rows = min(layout.rows - i0, height), bins = bins_of(layout, strip);
    const float* z_kn = z_ikn + (long long)strip * all_bins * n;

    tile_product<false, false>(
        memory, z_ikn, n,
        [&](int k, int s) { return k0 + k < bins && s < n ? z_kn + (long long)(k0 + k) * n + s : nullptr; },
        [&](int m, int s) { return m0 + m < rows && s < n ? gy_mn + (i0 + m0 + m) * pitch + first + s : nullptr; },
        [&](int k, int m, Piece piece) {
            if (k0 + k < bins && m0 + m < height) {
                const long long first = direct ? first_bucket(layout, strip) + window(layout, strip, k0 + k) : ((long long)strip * all_bins + k0 + k) * height;
                Piece* to = reinterpret_cast<Piece*>(&g[first + m0 + m]);
                if (direct) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) piece.v[e] += to->v[e];
                }
                *to = piece;
            }
        });
}
