// grad_x: the gradient with respect to x, W^T gy, by tiles as in shared.
//
// Who computes what: a block of TILE x TILE threads computes a TILE x TILE tile of grad_x, a thread one element of it.
// In steps of TILE outputs it rebuilds a tile of W and copies a tile of gy.
// What to see: the transposition costs nothing. W is never stored, so there is no order of memory to suit: the tile of
// W is rebuilt row by row as in shared, and read down its columns, at one address a warp.
//
// Launch: block (TILE, TILE); a 1-D grid, one block a tile of grad_x, tiles row by row. Static shared memory: 2 TILE^2
// floats.
//     layout  where each weight is stored
//     w_k     (buckets)
//     gy_mn   (rows, n): element (i, s) at i * gy_down + s * gy_across
//     gx_dn   (cols, n), C order, written in full
#include "weight.cuh"

#ifndef TILE
#define TILE 32
#endif

extern "C" __global__ void __launch_bounds__(TILE * TILE) grad_x(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ gy_mn, const long long gy_down, const long long gy_across,
    WEIGHT* __restrict__ gx_dn, const int n) {
    __shared__ float w_tile[TILE][TILE];   // [output][input]
    __shared__ float gy_tile[TILE][TILE];  // [output][column of gy]

    const int tiles_across = (n - 1) / TILE + 1;
    const int j0 = blockIdx.x / tiles_across * TILE;
    const int s = blockIdx.x % tiles_across * TILE + threadIdx.x;
    const int j = j0 + threadIdx.y;    // this thread computes grad_x[j][s]
    const int j_w = j0 + threadIdx.x;  // and brings weights of this input

    float sum = 0.0f;
    for (int i0 = 0; i0 < layout.rows; i0 += TILE) {
        const int i = i0 + threadIdx.y;
        const bool w_inside = i < layout.rows && j_w < layout.cols;
        const bool gy_inside = i < layout.rows && s < n;
        w_tile[threadIdx.y][threadIdx.x] = w_inside ? weight(layout, w_k, i, j_w) : 0.0f;
        gy_tile[threadIdx.y][threadIdx.x] = gy_inside ? to_float(gy_mn[i * gy_down + s * gy_across]) : 0.0f;
        __syncthreads();  // both tiles are complete

#pragma unroll
        for (int k = 0; k < TILE; ++k) {
            sum += w_tile[k][threadIdx.y] * gy_tile[k][threadIdx.x];
        }
        __syncthreads();  // nobody reads them any more
    }
    if (j < layout.cols && s < n) put(&gx_dn[(long long)j * n + s], sum);
}
