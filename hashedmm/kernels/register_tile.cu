// 4 register_tile: y = W x by tiles as in shared, and each thread keeps THREAD_ROWS x THREAD_COLS outputs in registers.
//
// Who computes what: a block computes TILE_ROWS x TILE_COLS outputs in steps of DEPTH inputs. For each input a thread
// reads THREAD_ROWS weights and THREAD_COLS elements of X from shared memory and does THREAD_ROWS * THREAD_COLS
// multiply-adds with them: 16 for 8 numbers read, where shared does 1 for 2.
// What to see: reads from shared memory no longer set the pace. The tile of W is stored input by input, so that a
// thread's four weights are one 16-byte read. Neighbouring threads hash neighbouring rows of one input: for strips
// their buckets are neighbours too, and each thread stays in one row, so it computes the row's part of the hash once.
//
// Launch: THREADS = (TILE_ROWS / THREAD_ROWS) * (TILE_COLS / THREAD_COLS) in a 1-D block; a 1-D grid, one block a
// tile of y, tiles row by row. Static shared memory.
//     layout  where each weight is stored
//     w_k     (buckets)
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn    (rows, n), C order, written in full
#include "tile.cuh"

#ifndef TILE_ROWS
#define TILE_ROWS 64
#define TILE_COLS 64
#define DEPTH 16
#define THREAD_ROWS 4
#define THREAD_COLS 4
#endif
#define THREADS_ACROSS (TILE_COLS / THREAD_COLS)
#define THREADS (TILE_ROWS / THREAD_ROWS * THREADS_ACROSS)
#define RESIDENT (768 / THREADS)  // blocks that must fit on a multiprocessor at once: up to 80 registers a thread

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) register_tile(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n) {
    __shared__ __align__(16) float w_tile[DEPTH][TILE_ROWS + 4];  // [input][row of y]
    __shared__ __align__(16) float x_tile[DEPTH][TILE_COLS + 4];  // [input][column of y]

    const int tiles_across = (n - 1) / TILE_COLS + 1;
    const int i0 = blockIdx.x / tiles_across * TILE_ROWS;  // the tile's first output is y[i0][s0]
    const int s0 = blockIdx.x % tiles_across * TILE_COLS;
    const int row = threadIdx.x / THREADS_ACROSS * THREAD_ROWS;  // this thread's first output, inside the tile
    const int col = threadIdx.x % THREADS_ACROSS * THREAD_COLS;

    float sum[THREAD_ROWS][THREAD_COLS] = {};
    for (int j0 = 0; j0 < layout.cols; j0 += DEPTH) {
        for (int e = threadIdx.x; e < TILE_ROWS * DEPTH; e += THREADS) {
            const int i = i0 + e % TILE_ROWS, j = j0 + e / TILE_ROWS;
            const bool inside = i < layout.rows && j < layout.cols;
            w_tile[e / TILE_ROWS][e % TILE_ROWS] = inside ? weight(layout, w_k, i, j) : 0.0f;
        }
        load_tile<DEPTH, TILE_COLS>(
            x_tile, x_dn, x_down, x_across, j0, s0, layout.cols, n, threadIdx.x, THREADS);
        __syncthreads();  // both tiles are complete

#pragma unroll
        for (int k = 0; k < DEPTH; ++k) add_outer(sum, &w_tile[k][row], &x_tile[k][col]);
        __syncthreads();  // nobody reads them any more
    }

    for (int r = 0; r < THREAD_ROWS; ++r) {
        for (int c = 0; c < THREAD_COLS; ++c) {
            const int i = i0 + row + r, s = s0 + col + c;
            if (i < layout.rows && s < n) put(&y_mn[(long long)i * n + s], sum[r][c]);
        }
    }
}
