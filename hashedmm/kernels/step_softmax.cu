// step_softmax: the last layer's bias, the loss, the wrong answers, and the gradient, in one launch of one block.
//
// The loss is the mean of -log softmax(logits)[label]; its gradient with respect to the logits (softmax - one-hot) / n.
// Who computes what: SAMPLES columns at a time. PARTS threads share a column, each taking every PARTS-th class, and put
// together what they found in shared memory: the largest logit, then the sum of the exponentials. In the end a warp
// adds up a row of the gradient: that of one bias. All sums have a fixed order.
//
// Launch: 1 block of SAMPLES * PARTS threads, at least 32. Static shared memory: three numbers a thread.
//     order_t   (samples of an epoch): which label each has; step clock[NOW] has the n from that times batch on
//     label_t   (all samples)
//     bias_c    (classes)
//     logit_cn  (classes, n) in rows of pitch, without the bias
//     g_cn      (classes, n) in rows of pitch
//     gbias_c   (classes), written in full
//     loss_t, wrong_t  (steps of an epoch): the mean loss and the number of samples whose largest logit, the first of
//               equals, is not their label's: element clock[NOW] is written
#include "step.cuh"

#ifndef SAMPLES
#define SAMPLES 64
#define PARTS 16
#endif
#define THREADS (SAMPLES * PARTS)

extern "C" __global__ void __launch_bounds__(THREADS) step_softmax(
    const int* __restrict__ clock, const int* __restrict__ order_t, const long long* __restrict__ label_t,
    const float* __restrict__ bias_c, const float* __restrict__ logit_cn, float* g_cn, float* __restrict__ gbias_c,
    double* __restrict__ loss_t, long long* __restrict__ wrong_t, const int classes, const int batch, const int n,
    const int pitch) {
    __shared__ float largest[PARTS][SAMPLES], total[PARTS][SAMPLES];
    __shared__ int where[PARTS][SAMPLES];

    const int column = threadIdx.x % SAMPLES, part = threadIdx.x / SAMPLES;
    const int* chosen = order_t + (long long)clock[NOW] * batch;
    float loss = 0.0f;  // of this thread's columns, if it is their first part
    int wrong = 0;
    for (int s0 = 0; s0 < n; s0 += SAMPLES) {
        const int s = s0 + column;
        const bool inside = s < n;
        float most = -__int_as_float(0x7f800000);  // minus infinity
        int best = classes;
        for (int c = part; inside && c < classes; c += PARTS) {
            const float v = logit_cn[(long long)c * pitch + s] + bias_c[c];
            if (v > most || best == classes) most = v, best = c;
        }
        largest[part][column] = most;
        where[part][column] = best;
        __syncthreads();  // every part has its largest logit
        for (int p = 0; p < PARTS; ++p) {
            const float v = largest[p][column];
            if (v > most || (v == most && where[p][column] < best)) most = v, best = where[p][column];
        }

        float sum = 0.0f;
        for (int c = part; inside && c < classes; c += PARTS) {
            const float v = expf(logit_cn[(long long)c * pitch + s] + bias_c[c] - most);
            g_cn[(long long)c * pitch + s] = v;
            sum += v;
        }
        total[part][column] = sum;
        __syncthreads();  // every part has its sum
        sum = 0.0f;
        for (int p = 0; p < PARTS; ++p) sum += total[p][column];

        const int label = inside ? (int)label_t[chosen[s]] : 0;
        for (int c = part; inside && c < classes; c += PARTS) {
            const long long e = (long long)c * pitch + s;
            g_cn[e] = (g_cn[e] / sum - (c == label ? 1.0f : 0.0f)) / n;
        }
        if (inside && part == 0) {
            loss += logf(sum) - (logit_cn[(long long)label * pitch + s] + bias_c[label] - most);
            wrong += best != label;
        }
        __syncthreads();  // nobody reads the three arrays any more; the gradient is complete
    }

    if (part == 0) largest[0][column] = loss, where[0][column] = wrong;
    __syncthreads();  // losses and counts lie in shared memory
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        float losses = 0.0f, count = 0.0f;
        for (int k = lane; k < SAMPLES; k += 32) losses += largest[0][k], count += where[0][k];
        losses = warp_sum(losses), count = warp_sum(count);
        if (lane == 0) loss_t[clock[NOW]] = losses / n, wrong_t[clock[NOW]] = (long long)count;
    }
    for (int c = threadIdx.x / 32; c < classes; c += THREADS / 32) {
        float sum = 0.0f;
        for (int s = lane; s < n; s += 32) sum += g_cn[(long long)c * pitch + s];
        sum = warp_sum(sum);
        if (lane == 0) gbias_c[c] = sum;
    }
}
