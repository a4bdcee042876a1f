// step_activate: what follows a hidden layer's product, in one pass over y: bias, ReLU, dropout.
//
// Who computes what: a thread one activation. It is kept if 16 bits of a hash reach the threshold; the hash is that of
// the element's number, keyed by the step: the mask is that of hashedmm.nn.Dropout, bit for bit, and is never stored.
// Where several processes share a layer or a batch, elements are numbered in the whole of it: all draw one mask.
//
// Launch: THREADS in a 1-D block; a 1-D grid, a thread an activation.
//     bias_m     (rows)
//     y_mn       (rows, n) in rows of pitch: read, and written in place
//     seed       of the dropout layer
//     threshold  rate * 2^16; 0: nothing is dropped
//     scale      1 / (1 - rate)
//     size       rows * n
//     first      the number of the first element: 0, but in a part of the rows or of the samples
//     samples    of the whole batch: n, but in a part of them
#include "hash.cuh"
#include "step.cuh"

extern "C" __global__ void step_activate(
    const int* __restrict__ clock, const float* __restrict__ bias_m, float* __restrict__ y_mn,
    const unsigned seed, const unsigned threshold, const float scale, const int n, const int pitch,
    const int size, const unsigned first, const int samples) {
    const unsigned e = blockIdx.x * blockDim.x + threadIdx.x;
    if (e >= size) return;
    const unsigned row = e / n, column = e % n, at = row * pitch + column;
    float y = y_mn[at] + bias_m[row];
    y = y <= 0.0f ? 0.0f : y;  // a NaN stays one: the loss has to show it
    if (threshold) {
        const unsigned step = clock[BEFORE] + clock[NOW];
        const unsigned key = fmix32(seed + 0x9E3779B9u * (step + 1));  // derive_seed(seed, step)
        const unsigned number = first + row * samples + column;
        const unsigned word = fmix32(number / 2 * 0x9E3779B1u ^ key);
        const unsigned half = number % 2 ? word >> 16 : word & 0xffffu;  // two elements share a word
        y *= half >= threshold ? scale : 0.0f;
    }
    y_mn[at] = y;
}
