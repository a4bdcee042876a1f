// few_rows: y = W x for a matrix of few rows, such as the last layer of a classifier: the inputs are what there is to
// share out.
//
// Who computes what: a block owns TILE_ROWS outputs of TILE_COLS columns. A warp holds TILE_COLS columns of several
// inputs side by side, so that all warps together read a band of inputs at once; a thread keeps the TILE_ROWS sums of
// its column over the inputs that are its own. In chunks of EACH bands the block hashes all weights into shared memory,
// each once, while the inputs are on their way to registers. In the end the sums are added up: in a warp by shuffles,
// then across the warps.
// What to see: shared would make one block walk all inputs of such a matrix 32 at a time. Here a band is 128 inputs, a
// chunk four bands between two barriers. The order of the sums is fixed.
//
// Launch: 32 * WARPS threads in a 1-D block; a 1-D grid, one block a tile of y, tiles row by row. TILE_COLS is a power
// of two up to 32. Static shared memory: the weights of a chunk, and later the sums.
//     layout  where each weight is stored
//     w_k     (buckets)
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn    (rows, n), C order, written in full
#include "tile.cuh"

#ifndef TILE_ROWS
#define TILE_ROWS 16
#define TILE_COLS 8
#define WARPS 32
#define EACH 4
#endif
#define THREADS (32 * WARPS)
#define BAND (THREADS / TILE_COLS)  // inputs side by side
#define CHUNK (EACH * BAND)    // inputs whose weights are in shared memory at once

extern "C" __global__ void __launch_bounds__(THREADS) few_rows(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n) {
    __shared__ union {
        __align__(16) float w[CHUNK][TILE_ROWS + 4];  // [input][row of y]
        float sum[WARPS][TILE_ROWS][TILE_COLS];
    } tile;

    const int tiles_across = (n - 1) / TILE_COLS + 1;
    const int i0 = blockIdx.x / tiles_across * TILE_ROWS, s0 = blockIdx.x % tiles_across * TILE_COLS;
    const int s = s0 + threadIdx.x % TILE_COLS;  // this thread's column of y
    const int place = threadIdx.x / TILE_COLS;   // its input in every band

    float sum[TILE_ROWS] = {};
    for (int j0 = 0; j0 < layout.cols; j0 += CHUNK) {
        float x[EACH];
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            const int j = j0 + k * BAND + place;
            x[k] = j < layout.cols && s < n ? to_float(x_dn[j * x_down + s * x_across]) : 0.0f;
        }
#pragma unroll 2
        for (int e = threadIdx.x; e < CHUNK * TILE_ROWS; e += THREADS) {
            const int i = i0 + e % TILE_ROWS, j = j0 + e / TILE_ROWS;
            const bool inside = i < layout.rows && j < layout.cols;
            tile.w[e / TILE_ROWS][e % TILE_ROWS] = inside ? weight(layout, w_k, i, j) : 0.0f;
        }
        __syncthreads();  // the weights are complete

#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            float w[TILE_ROWS];
            read(w, tile.w[k * BAND + place]);
#pragma unroll
            for (int r = 0; r < TILE_ROWS; ++r) sum[r] += w[r] * x[k];
        }
        __syncthreads();  // nobody reads them any more
    }

    for (int r = 0; r < TILE_ROWS; ++r) {
        for (int step = 16; step >= TILE_COLS; step /= 2) sum[r] += __shfl_xor_sync(~0u, sum[r], step);
        if (threadIdx.x % 32 < TILE_COLS) tile.sum[threadIdx.x / 32][r][threadIdx.x % TILE_COLS] = sum[r];
    }
    __syncthreads();  // the sums of all warps are there
    for (int e = threadIdx.x; e < TILE_ROWS * TILE_COLS; e += THREADS) {
        const int i = i0 + e / TILE_COLS, column = s0 + e % TILE_COLS;
        float total = 0.0f;
        for (int warp = 0; warp < WARPS; ++warp) total += tile.sum[warp][e / TILE_COLS][e % TILE_COLS];
        if (i < layout.rows && column < n) put(&y_mn[(long long)i * n + column], total);
    }
}
