// step_activate_grad: the gradient goes back through dropout, ReLU and the bias of a hidden layer.
//
// The idea: an activation is above 0 just if ReLU let it pass and dropout kept it. So the activations themselves are
// the mask, and nothing is hashed again.
// Who computes what: a warp one row, its lanes every 32nd sample of it. Its sum is the gradient of that row's bias,
// added up in an order that does not change from run to run.
//
// Launch: THREADS in a 1-D block, whole warps; a 1-D grid, a warp a row.
//     a_mn     (rows, n) in rows of pitch: what step_activate left
//     g_mn     (rows, n) in rows of pitch: the gradient with respect to a; to the product when the kernel is done
//     gbias_m  (rows), written in full
//     scale    1 / (1 - rate)
#include "step.cuh"

extern "C" __global__ void step_activate_grad(
    const float* __restrict__ a_mn, float* __restrict__ g_mn, float* __restrict__ gbias_m,
    const float scale, const int rows, const int n, const int pitch) {
    const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;  // a whole warp
    const long long first = (long long)row * pitch;
    float sum = 0.0f;
    for (int s = lane; s < n; s += 32) {
        const float g = a_mn[first + s] > 0.0f ? g_mn[first + s] * scale : 0.0f;
        g_mn[first + s] = g;
        sum += g;
    }
    sum = warp_sum(sum);
    if (lane == 0) gbias_m[row] = sum;
}
