// A tile of the dense gradient G = gy x^T, kept in registers: what grad_w and grad_w_fixed have in common.
#pragma once

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

// g[r][c] = the sum over samples s of gy[i + r][s] * x[j + c][s], in a fixed order. All threads of a block call this
// together, with two tiles in shared memory. (i0, j0) is the block's first weight, (row, col) this thread's inside.
__device__ __forceinline__ void outer_tile(
    float (&g)[THREAD_ROWS][THREAD_COLS], const Layout& layout,
    const WEIGHT* x_dn, long long x_down, long long x_across,
    const WEIGHT* gy_mn, long long gy_down, long long gy_across, int n, int i0, int j0, int row, int col,
    float (&gy_tile)[DEPTH][TILE_ROWS + 4], float (&x_tile)[DEPTH][TILE_COLS + 4]) {
    for (int s0 = 0; s0 < n; s0 += DEPTH) {
        load_tile<DEPTH, TILE_ROWS>(
            gy_tile, gy_mn, gy_across, gy_down, s0, i0, n, layout.rows, threadIdx.x, THREADS);
        load_tile<DEPTH, TILE_COLS>(
            x_tile, x_dn, x_across, x_down, s0, j0, n, layout.cols, threadIdx.x, THREADS);
        __syncthreads();  // both tiles are complete

#pragma unroll
        for (int k = 0; k < DEPTH; ++k) add_outer(g, &gy_tile[k][row], &x_tile[k][col]);
        __syncthreads();  // nobody reads them any more
    }
}
