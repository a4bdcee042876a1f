// step_adam: a step of Adam (Kingma and Ba 2015) on all parameters of a network, which lie in one array.
//
// Who computes what: a thread one value: it reads the gradient, moves the two means, and moves the value. Then it sets
// the gradient to zero, where the next step's grad_w adds.
// The arithmetic is that of hashedmm.nn.Adam. What depends on the step alone was worked out for the whole epoch.
//
// Launch: THREADS in a 1-D block; a 1-D grid, a thread a value.
//     clock     ends the step
//     rate_t2   (steps of an epoch, 2), C order: eps and the learning rate, each with the correction of the means
//     value_k, grad_k, mean_k, square_k  (size)
//     first, second  1 - beta of each mean
#include "step.cuh"

extern "C" __global__ void step_adam(
    int* clock, const float* __restrict__ rate_t2, float* __restrict__ value_k, float* __restrict__ grad_k,
    float* __restrict__ mean_k, float* __restrict__ square_k, const float first, const float second,
    const long long size) {
    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const int now = clock[NOW];
    if (k == 0) end_step(clock);
    if (k >= size) return;
    const float eps = rate_t2[2 * now], rate = rate_t2[2 * now + 1], grad = grad_k[k];
    const float mean = mean_k[k] + (grad - mean_k[k]) * first;
    const float square = square_k[k] + (grad * grad - square_k[k]) * second;
    mean_k[k] = mean;
    square_k[k] = square;
    value_k[k] -= mean / (sqrtf(square) + eps) * rate;
    grad_k[k] = 0.0f;
}
