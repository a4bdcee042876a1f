// batch_total: the sum of the magnitudes of each chunk of weights: what batch_quantise derives its scales from.
//
// Who computes what: a block a chunk (batch.cuh); its threads' sums meet in shared memory, in a fixed order.
//
// Launch: THREADS in a 1-D block, a power of two; a 1-D grid, a block a chunk. Static shared memory: a float a thread.
//     chunk_c4  (chunks, 4)
//     start_s   (segments): where each begins
//     value_k   all values
//     total_c   (chunks), written in full
#include "batch.cuh"

#ifndef THREADS
#define THREADS 256
#endif

extern "C" __global__ void __launch_bounds__(THREADS) batch_total(
    const int* __restrict__ chunk_c4, const long long* __restrict__ start_s, const float* __restrict__ value_k,
    float* __restrict__ total_c) {
    __shared__ float sums[THREADS];

    const Chunk chunk = chunk_at(chunk_c4, blockIdx.x);
    const float* value = value_k + start_s[chunk.segment] + chunk.first;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < chunk.size; i += THREADS) sum += fabsf(value[i]);
    sums[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();  // the sums of the round before
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) total_c[blockIdx.x] = sums[0];
}
