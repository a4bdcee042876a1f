// batch_adam: a step of Adam (Kingma and Ba 2015) on all parameters of many networks, which lie in one array.
//
// The arithmetic is that of hashedmm.nn.Adam; what depends on the step alone was worked out for the whole epoch. Values
// of a fixed-point network are then rounded to a grid, up or down at random, so that the mean is kept (Gupta et al.
// 2015). The gradient is set to zero, where the next step's batch_scatter adds.
// Who computes what: a block a chunk (batch.cuh), a thread every blockDim-th value of it.
//
// Launch: THREADS in a 1-D block; a 1-D grid, a block a chunk.
//     clock      ends the step
//     rate_tr2   (steps of an epoch, networks, 2): eps and the learning rate, each with the correction of the means
//     chunk_c4   (chunks, 4)
//     start_s    (segments): where each begins
//     unit_s     (segments): the grid's step, a power of two; 0: values are not rounded
//     levels_s   (segments): the grid goes from -levels to levels - 1 steps
//     seed_s     (segments): of the rounding
//     value_k, grad_k, mean_k, square_k   all values
//     first, second  1 - beta of each mean
#include "batch.cuh"
#include "hash.cuh"
#include "step.cuh"

__device__ __forceinline__ float rounded(float value, float unit, int levels, unsigned element, unsigned key) {
    const float uniform = (fmix32(element * 0x9E3779B1u ^ key) >> 8) * (1.0f / 16777216.0f);  // in [0, 1)
    const float steps = value / unit, below = floorf(steps);
    const float level = below + (uniform < steps - below ? 1.0f : 0.0f);
    return fminf(fmaxf(level, -(float)levels), levels - 1.0f) * unit;
}

extern "C" __global__ void batch_adam(
    int* clock, const float* __restrict__ rate_tr2, const int* __restrict__ chunk_c4,
    const long long* __restrict__ start_s, const float* __restrict__ unit_s, const int* __restrict__ levels_s,
    const unsigned* __restrict__ seed_s, float* __restrict__ value_k, float* __restrict__ grad_k,
    float* __restrict__ mean_k, float* __restrict__ square_k, const int networks, const float first,
    const float second) {
    const Chunk chunk = chunk_at(chunk_c4, blockIdx.x);
    const int now = clock[NOW];
    const float* rates = rate_tr2 + 2 * ((long long)now * networks + chunk.network);
    const float eps = rates[0], rate = rates[1], unit = unit_s[chunk.segment];
    const unsigned step = clock[BEFORE] + now;
    const unsigned key = fmix32(seed_s[chunk.segment] + 0x9E3779B9u * (step + 1));  // derive_seed(seed, step)
    const int levels = levels_s[chunk.segment];
    const long long start = start_s[chunk.segment] + chunk.first;
    for (int i = threadIdx.x; i < chunk.size; i += blockDim.x) {
        const long long k = start + i;
        const float grad = grad_k[k];
        const float mean = mean_k[k] + (grad - mean_k[k]) * first;
        const float square = square_k[k] + (grad * grad - square_k[k]) * second;
        const float value = value_k[k] - mean / (sqrtf(square) + eps) * rate;
        mean_k[k] = mean;
        square_k[k] = square;
        value_k[k] = unit > 0.0f ? rounded(value, unit, levels, chunk.first + i, key) : value;
        grad_k[k] = 0.0f;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) end_step(clock);
}
