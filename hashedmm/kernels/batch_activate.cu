// batch_activate: what follows a hidden layer's product in many networks: bias, ReLU, dropout.
//
// Who computes what: a thread one activation. The dropout mask is that of hashedmm.nn.Dropout, bit for bit: 16 bits of
// a hash of the element's number, feature by feature, keyed by the network's seed and the step (see step_activate).
//
// Launch: THREADS in a 1-D block; a 1-D grid, a thread an activation.
//     bias_rf       (networks, features)
//     y_rnf         (networks, n, features): read, and written in place
//     seed_r        of each network's dropout layer
//     threshold_r   rate * 2^16; 0: nothing is dropped
//     train         0: no dropout at all
//     size          networks * n * features, below 2^31
#include "hash.cuh"
#include "step.cuh"

extern "C" __global__ void batch_activate(
    const int* __restrict__ clock, const float* __restrict__ bias_rf, float* __restrict__ y_rnf,
    const unsigned* __restrict__ seed_r, const unsigned* __restrict__ threshold_r, const int train, const int features,
    const int n, const int size) {
    const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= size) return;
    const unsigned f = at % features, row = at / features, r = row / n, s = row % n;
    float y = y_rnf[at] + bias_rf[r * features + f];
    y = y <= 0.0f ? 0.0f : y;  // a NaN stays one: the loss has to show it
    const unsigned threshold = train ? threshold_r[r] : 0;
    if (threshold) {
        const unsigned step = clock[BEFORE] + clock[NOW], e = f * n + s;
        const unsigned key = fmix32(seed_r[r] + 0x9E3779B9u * (step + 1));  // derive_seed(seed, step)
        const unsigned word = fmix32(e / 2 * 0x9E3779B1u ^ key);
        const unsigned half = e % 2 ? word >> 16 : word & 0xffffu;  // two elements share a word
        y *= half >= threshold ? 65536.0f / (65536 - threshold) : 0.0f;
    }
    y_rnf[at] = y;
}
