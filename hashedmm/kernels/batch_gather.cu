// batch_gather: the samples of a training step of many networks, each in its own order.
//
// Who computes what: a block copies one sample for one network, its threads neighbouring features.
//
// Launch: THREADS in a 1-D block; a 1-D grid of networks * n blocks, network by network.
//     clock      begins the step
//     order_rt   (networks, samples of an epoch): which row of x each is; step clock[NOW] has the n from that times
//                batch on
//     x_tf       (all samples, features), C order
//     x_rnf      (networks, n, features), C order
#include "step.cuh"

extern "C" __global__ void batch_gather(
    int* clock, const int* __restrict__ order_rt, const float* __restrict__ x_tf, float* __restrict__ x_rnf,
    const int samples, const int features, const int batch, const int n) {
    const int r = blockIdx.x / n, s = blockIdx.x % n;
    const int chosen = order_rt[(long long)r * samples + (long long)clock[NEXT] * batch + s];
    const float* from = x_tf + (long long)chosen * features;
    float* to = x_rnf + (long long)blockIdx.x * features;
    for (int f = threadIdx.x; f < features; f += blockDim.x) to[f] = from[f];
    if (blockIdx.x == 0 && threadIdx.x == 0) begin_step(clock);
}
