// grad_w: the gradient with respect to the buckets. A bucket is used by many weights, so its gradient is the signed sum
// of theirs: grad_w[bucket(i, j)] += sign(i, j) * G[i][j], with the dense gradient G = gy x^T (Chen et al. 2015).
//
// Who computes what: a block computes a TILE_ROWS x TILE_COLS tile of G, a thread THREAD_ROWS x THREAD_COLS of it in
// registers (outer.cuh); then each element is added to its bucket by an atomic. G is never stored.
// What to see: the product is a scatter, the transpose of naive's gather. Atomics of floats arrive in any order, and
// rounding depends on it: two runs may differ in the last bits. grad_w_fixed does not.
//
// Launch: THREADS = (TILE_ROWS / THREAD_ROWS) * (TILE_COLS / THREAD_COLS) in a 1-D block; a 1-D grid, one block a tile
// of G, tiles row by row. Static shared memory.
//     layout  where each weight is stored
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     gy_mn   (rows, n): element (i, s) at i * gy_down + s * gy_across
//     gw_k    (buckets), float32, zeros when the kernel begins
#include "outer.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) grad_w(
    const Layout layout,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    const WEIGHT* __restrict__ gy_mn, const long long gy_down, const long long gy_across,
    float* __restrict__ gw_k, const int n) {
    __shared__ __align__(16) float gy_tile[DEPTH][TILE_ROWS + 4];  // [sample][output]
    __shared__ __align__(16) float x_tile[DEPTH][TILE_COLS + 4];   // [sample][input]

    const int tiles_across = (layout.cols - 1) / TILE_COLS + 1;
    const int i0 = blockIdx.x / tiles_across * TILE_ROWS;  // the tile's first weight is W[i0][j0]
    const int j0 = blockIdx.x % tiles_across * TILE_COLS;
    const int row = threadIdx.x / THREADS_ACROSS * THREAD_ROWS;
    const int col = threadIdx.x % THREADS_ACROSS * THREAD_COLS;

    float g[THREAD_ROWS][THREAD_COLS] = {};
    outer_tile(
        g, layout, x_dn, x_down, x_across, gy_mn, gy_down, gy_across, n, i0, j0, row, col, gy_tile, x_tile);

    for (int r = 0; r < THREAD_ROWS; ++r) {
        for (int c = 0; c < THREAD_COLS; ++c) {
            const int i = i0 + row + r, j = j0 + col + c;
            if (i >= layout.rows || j >= layout.cols) continue;
            const Place place = locate(layout, i, j);
            atomicAdd(&gw_k[place.bucket], place.sign * g[r][c]);
        }
    }
}
