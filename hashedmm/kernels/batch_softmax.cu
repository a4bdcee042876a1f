// batch_softmax: the last layer's bias, the loss, the wrong answers, and the gradient, of many networks.
//
// The loss is the mean over the samples of -log softmax(z)[label]. A network may also learn from a teacher (Hinton,
// Vinyals and Dean 2015): of its loss a share `weight` is then T^2 times the cross-entropy of softmax(z / T) with the
// teacher's probabilities at the same temperature T.
// Who computes what: a block one network, a thread every THREADS-th sample. In the end the threads' losses and counts
// are added up in shared memory, and a thread adds up the gradient of one bias: all in a fixed order.
//
// Launch: THREADS in a 1-D block, a power of two; a 1-D grid, a block a network. Static shared memory: two numbers a
// thread.
//     order_rt        (networks, samples of an epoch): which label each has; step clock[NOW] has the n from that times
//                     batch on
//     label_t         (all samples)
//     bias_rc         (networks, classes)
//     g_rnc           (networks, n, classes): the logits, without the bias; the gradient when the kernel is done
//     gbias_rc        (networks, classes), written in full
//     soft_rtc        (networks, all samples, classes): a teacher's probabilities; not read where weight is 0
//     weight_r, temperature_r   (networks)
//     loss_rt, wrong_rt  (networks, steps): the mean loss and the number of samples whose largest logit, the first of
//                     equals, is not their label's: element clock[NOW] is written
#include "step.cuh"

#ifndef THREADS
#define THREADS 128
#endif

extern "C" __global__ void __launch_bounds__(THREADS) batch_softmax(
    const int* __restrict__ clock, const int* __restrict__ order_rt, const long long* __restrict__ label_t,
    const float* __restrict__ bias_rc, float* g_rnc, float* __restrict__ gbias_rc, const float* __restrict__ soft_rtc,
    const float* __restrict__ weight_r, const float* __restrict__ temperature_r, float* __restrict__ loss_rt,
    int* __restrict__ wrong_rt, const int samples, const int all_samples, const int classes, const int batch,
    const int n, const int steps) {
    __shared__ float losses[THREADS];
    __shared__ int wrongs[THREADS];

    const int r = blockIdx.x, now = clock[NOW];
    const float* bias = bias_rc + (long long)r * classes;
    const float soft = weight_r[r], hard = 1.0f - soft, heat = temperature_r[r];
    float loss = 0.0f;
    int wrong = 0;
    for (int s = threadIdx.x; s < n; s += THREADS) {
        float* z = g_rnc + ((long long)r * n + s) * classes;
        const int chosen = order_rt[(long long)r * samples + (long long)now * batch + s];
        const int label = (int)label_t[chosen];
        float most = z[0] + bias[0];
        int best = 0;
        for (int c = 0; c < classes; ++c) {
            const float v = z[c] + bias[c];
            if (v > most) most = v, best = c;
        }
        float total = 0.0f, total_soft = 0.0f;
        for (int c = 0; c < classes; ++c) {
            const float v = z[c] + bias[c] - most;
            z[c] = v;  // shifted: exp cannot overflow
            total += expf(v);
            if (soft > 0.0f) total_soft += expf(v / heat);
        }
        wrong += best != label;
        loss += hard * (logf(total) - z[label]);
        const float* q = soft_rtc + ((long long)r * all_samples + chosen) * classes;
        for (int c = 0; c < classes; ++c) {
            const float v = z[c];
            float g = hard * (expf(v) / total - (c == label ? 1.0f : 0.0f));
            if (soft > 0.0f) {
                g += soft * heat * (expf(v / heat) / total_soft - q[c]);
                loss += soft * heat * heat * q[c] * (logf(total_soft) - v / heat);
            }
            z[c] = g / n;
        }
    }
    losses[threadIdx.x] = loss;
    wrongs[threadIdx.x] = wrong;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();  // the sums of the round before; at first also the whole gradient
        if (threadIdx.x < half) {
            losses[threadIdx.x] += losses[threadIdx.x + half];
            wrongs[threadIdx.x] += wrongs[threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        loss_rt[(long long)r * steps + now] = losses[0] / n;
        wrong_rt[(long long)r * steps + now] = wrongs[0];
    }
    for (int c = threadIdx.x; c < classes; c += THREADS) {
        float sum = 0.0f;
        for (int s = 0; s < n; ++s) sum += g_rnc[((long long)r * n + s) * classes + c];
        gbias_rc[(long long)r * classes + c] = sum;
    }
}
