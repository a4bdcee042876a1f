// step_gather: the samples of a training step, as the columns of X.
//
// Who computes what: a block copies a TILE x TILE tile. Samples lie in rows and X wants them in columns, so the tile is
// turned over in shared memory: neighbouring threads read neighbouring features, and write neighbouring samples.
//
// Launch: block (TILE, DOWN); a 1-D grid, one block a tile of X, tiles row by row. Static shared memory: the tile.
//     clock     begins the step
//     order_t   (samples of an epoch): which row of x each is; step clock[NOW] has the n from that times batch on
//     x_tf      (all samples, features), C order
//     x_fn      (features, n) in rows of pitch
#include "step.cuh"

#ifndef TILE
#define TILE 32
#define DOWN 8
#endif

extern "C" __global__ void __launch_bounds__(TILE * DOWN) step_gather(
    int* clock, const int* __restrict__ order_t, const float* __restrict__ x_tf, float* __restrict__ x_fn,
    const int features, const int batch, const int n, const int pitch) {
    __shared__ float tile[TILE][TILE + 1];  // [sample][feature]

    const int tiles_across = (n - 1) / TILE + 1;
    const int f0 = blockIdx.x / tiles_across * TILE, s0 = blockIdx.x % tiles_across * TILE;
    const int* chosen = order_t + (long long)clock[NEXT] * batch;
    for (int k = threadIdx.y; k < TILE; k += DOWN) {
        const int s = s0 + k, f = f0 + threadIdx.x;
        if (s < n && f < features) tile[k][threadIdx.x] = x_tf[(long long)chosen[s] * features + f];
    }
    __syncthreads();  // the tile is complete
    for (int k = threadIdx.y; k < TILE; k += DOWN) {
        const int f = f0 + k, s = s0 + threadIdx.x;
        if (s < n && f < features) x_fn[(long long)f * pitch + s] = tile[threadIdx.x][k];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0 && threadIdx.y == 0) begin_step(clock);
}
