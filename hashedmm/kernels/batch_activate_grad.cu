// batch_activate_grad: the gradient of many networks goes back through dropout, ReLU and the bias of a hidden layer.
//
// An activation is above 0 just if ReLU let it pass and dropout kept it, so that the activations are the mask.
// Who computes what: a block ACROSS features of one network; thread (x, y) takes every DOWN-th sample of a feature, and
// the DOWN partial sums of the bias gradient meet in shared memory, in an order that does not change.
//
// Launch: block (ACROSS, DOWN); a 1-D grid, ceil(features / ACROSS) blocks a network. Static shared memory: a float a
// thread.
//     a_rnf         (networks, n, features): what batch_activate left
//     g_rnf         (networks, n, features): the gradient with respect to a; to the product when the kernel is done
//     gbias_rf      (networks, features), written in full
//     threshold_r   of dropout: rate * 2^16
#include "step.cuh"

#ifndef ACROSS
#define ACROSS 32
#define DOWN 8
#endif

extern "C" __global__ void __launch_bounds__(ACROSS * DOWN) batch_activate_grad(
    const float* __restrict__ a_rnf, float* __restrict__ g_rnf, float* __restrict__ gbias_rf,
    const unsigned* __restrict__ threshold_r, const int features, const int n) {
    __shared__ float sums[DOWN][ACROSS];

    const int groups = (features - 1) / ACROSS + 1;
    const int r = blockIdx.x / groups, f = blockIdx.x % groups * ACROSS + threadIdx.x;
    const float scale = 65536.0f / (65536 - threshold_r[r]);
    float sum = 0.0f;
    if (f < features) {
        for (int s = threadIdx.y; s < n; s += DOWN) {
            const long long at = ((long long)r * n + s) * features + f;
            const float g = a_rnf[at] > 0.0f ? g_rnf[at] * scale : 0.0f;
            g_rnf[at] = g;
            sum += g;
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // every thread has its sum
    if (threadIdx.y == 0 && f < features) {
        for (int k = 1; k < DOWN; ++k) sum += sums[k][threadIdx.x];
        gbias_rf[(long long)r * features + f] = sum;
    }
}
