// batch_quantise: weights rounded to a few equally spaced levels, as a network that stores them in `bits` bits has them.
//
// A segment (one layer's weights in one network) has one scale: 2 mean|w| / sqrt(q) with q = 2^(bits - 1) - 1 the
// largest level (the initial step of Esser et al. 2020); with one bit the weights are +- mean|w| (Rastegari et al.
// 2016). Levels go from -q to q.
// Who computes what: a block a chunk (batch.cuh). First it adds up the totals of all chunks of its segment.
//
// Launch: THREADS in a 1-D block, a power of two; a 1-D grid, a block a chunk. Static shared memory: a float a thread.
//     chunk_c4    (chunks, 4) of one segment after the other
//     start_s     (segments): where each begins; size_s its values; chunk_s its first chunk; chunks_s their number
//     bits_s      (segments): 0: the values are copied
//     begin_s     (segments): the first step of the run at which they are rounded
//     total_c     (chunks): what batch_total left
//     value_k     all values; rounded_k  the same places, those of the chunks are written
#include "batch.cuh"
#include "step.cuh"

#ifndef THREADS
#define THREADS 256
#endif

extern "C" __global__ void __launch_bounds__(THREADS) batch_quantise(
    const int* __restrict__ clock, const int* __restrict__ chunk_c4, const long long* __restrict__ start_s,
    const int* __restrict__ size_s, const int* __restrict__ chunk_s, const int* __restrict__ chunks_s,
    const int* __restrict__ bits_s, const int* __restrict__ begin_s, const float* __restrict__ total_c,
    const float* __restrict__ value_k, float* __restrict__ rounded_k) {
    __shared__ float sums[THREADS];

    const Chunk chunk = chunk_at(chunk_c4, blockIdx.x);
    const int segment = chunk.segment;
    const long long start = start_s[segment] + chunk.first;
    const int bits = clock[BEFORE] + clock[NOW] >= begin_s[segment] ? bits_s[segment] : 0;
    if (bits == 0) {  // all threads of the block
        for (int i = threadIdx.x; i < chunk.size; i += THREADS) rounded_k[start + i] = value_k[start + i];
        return;
    }
    float sum = 0.0f;
    for (int c = threadIdx.x; c < chunks_s[segment]; c += THREADS) sum += total_c[chunk_s[segment] + c];
    sums[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();  // the sums of the round before
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();  // the total is in sums[0]
    const float mean = sums[0] / size_s[segment];
    const float most = bits > 1 ? (float)((1 << (bits - 1)) - 1) : 1.0f;
    const float scale = bits > 1 ? 2.0f * mean / sqrtf(most) : mean;
    for (int i = threadIdx.x; i < chunk.size; i += THREADS) {
        const float v = value_k[start + i];
        const float level = scale > 0.0f ? fminf(fmaxf(rintf(v / scale), -most), most) : 0.0f;
        rounded_k[start + i] = scale * (bits > 1 ? level : v < 0.0f ? -1.0f : 1.0f);
    }
}
