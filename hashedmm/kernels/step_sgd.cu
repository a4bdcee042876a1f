// step_sgd: a step of gradient descent with momentum on all parameters of a network, which lie in one array.
//
// Who computes what: a thread one value; first it looks up whose value it is, because the gradient of a hashed weight
// may be divided by how often its bucket is used. In the end it sets the gradient to zero, where the next step's grad_w
// adds.
// The arithmetic is that of hashedmm.nn.SGD.
//
// Launch: THREADS in a 1-D block; a 1-D grid, a thread a value.
//     clock     ends the step
//     rate_t    (steps of an epoch): the learning rate
//     value_k, grad_k, mean_k  (size); mean_k is the momentum
//     end_p     (parameters): where each ends; the last one's is size
//     factor_p  (parameters): what its gradient is multiplied by
//     momentum  how much of it is kept
#include "step.cuh"

extern "C" __global__ void step_sgd(
    int* clock, const float* __restrict__ rate_t, float* __restrict__ value_k, float* __restrict__ grad_k,
    float* __restrict__ mean_k, const long long* __restrict__ end_p, const float* __restrict__ factor_p,
    const float momentum, const long long size) {
    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    const int now = clock[NOW];
    if (k == 0) end_step(clock);
    if (k >= size) return;
    int p = 0;
    while (k >= end_p[p]) ++p;
    const float mean = mean_k[k] * momentum + grad_k[k] * factor_p[p];
    mean_k[k] = mean;
    value_k[k] -= mean * rate_t[now];
    grad_k[k] = 0.0f;
}
