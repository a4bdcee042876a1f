// 3 shared: y = W x by tiles. A tile of W is rebuilt from the hash into shared memory, a tile of X is copied beside it.
//
// Who computes what: a block of TILE x TILE threads computes a TILE x TILE tile of y, a thread one output of it. In
// steps of TILE inputs, each thread hashes one weight and copies one element of X; then all threads use all of both
// tiles.
// What to see: a weight is hashed once a block, that is n / TILE times and not n; an element of X is read rows / TILE
// times and not rows. Two barriers a step: the tiles must be complete before anyone reads them, and read by everyone
// before they are overwritten.
//
// Launch: block (TILE, TILE); a 1-D grid, one block a tile of y, tiles row by row. Static shared memory: 2 TILE^2
// floats.
//     layout  where each weight is stored
//     w_k     (buckets)
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn    (rows, n), C order, written in full
#include "weight.cuh"

#ifndef TILE
#define TILE 32
#endif

extern "C" __global__ void __launch_bounds__(TILE * TILE) shared(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n) {
    __shared__ float w_tile[TILE][TILE];  // [row of y][input]
    __shared__ float x_tile[TILE][TILE];  // [input][column of y]

    const int tiles_across = (n - 1) / TILE + 1;
    const int i = blockIdx.x / tiles_across * TILE + threadIdx.y;  // this thread's output is y[i][s]
    const int s = blockIdx.x % tiles_across * TILE + threadIdx.x;

    float sum = 0.0f;
    for (int j0 = 0; j0 < layout.cols; j0 += TILE) {
        const int j_w = j0 + threadIdx.x, j_x = j0 + threadIdx.y;  // what this thread brings: W[i][j_w], x[j_x][s]
        const bool w_inside = i < layout.rows && j_w < layout.cols;
        const bool x_inside = j_x < layout.cols && s < n;
        w_tile[threadIdx.y][threadIdx.x] = w_inside ? weight(layout, w_k, i, j_w) : 0.0f;
        x_tile[threadIdx.y][threadIdx.x] = x_inside ? to_float(x_dn[j_x * x_down + s * x_across]) : 0.0f;
        __syncthreads();  // both tiles are complete

#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            sum += w_tile[threadIdx.y][k] * x_tile[k][threadIdx.x];
        }
        __syncthreads();  // nobody reads them any more
    }
    if (i < layout.rows && s < n) put(&y_mn[(long long)i * n + s], sum);
}
