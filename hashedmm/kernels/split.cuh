// Products with few columns: sums that several blocks share, and the slice of buckets that a block works from.
//
// With few columns there are few outputs, too few blocks to keep a GPU busy: so the inputs are split. Every block leaves
// its part of the sums in memory; the last one to arrive adds the parts up, always in the same order, so that the result
// has the same bits each time. Nobody waits for anybody: the others are done by then.
#pragma once

#include "weight.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SLICE_LOADS 2  // 16-byte loads that a thread has under way; there four cost registers that have to be spilled
#else
#define SLICE_LOADS 4
#endif

// The buckets of a panel into shared memory, 16 bytes at a time if they begin at a 16-byte boundary.
__device__ __forceinline__ void load_slice(WEIGHT* slice, const WEIGHT* from, int buckets, int thread, int threads) {
    const int pieces = (size_t)from % 16 == 0 ? buckets / (16 / (int)sizeof(WEIGHT)) : 0;
#pragma unroll SLICE_LOADS
    for (int k = thread; k < pieces; k += threads) {
        reinterpret_cast<int4*>(slice)[k] = reinterpret_cast<const int4*>(from)[k];
    }
#pragma unroll 4
    for (int k = pieces * (16 / (int)sizeof(WEIGHT)) + thread; k < buckets; k += threads) slice[k] = from[k];
}

// tile[k * STEP_K + c * STEP_C] = x[j0 + k][s0 + c], 0 outside of inputs j < j_end and columns s < n. Neighbouring threads
// read neighbouring addresses, in both orders of x.
template <int INPUTS, int COLUMNS, int STEP_K, int STEP_C>
__device__ __forceinline__ void load_inputs(
    float* tile, const WEIGHT* x_dn, long long x_down, long long x_across, int j0, int j_end, int s0, int n,
    int thread, int threads) {
#pragma unroll COLUMNS > 1 ? 4 : 1
    for (int e = thread; e < INPUTS * COLUMNS; e += threads) {
        const int k = x_across == 1 ? e / COLUMNS : e % INPUTS, c = x_across == 1 ? e % COLUMNS : e / INPUTS;
        const bool inside = k < j_end - j0 && c < n - s0;
        tile[k * STEP_K + c * STEP_C] = inside ? to_float(x_dn[(j0 + k) * x_down + (s0 + c) * x_across]) : 0.0f;
    }
}

// Which inputs a block takes: begin .. end - 1, of one of `splits` equal parts in whole multiples of `depth`.
struct Split {
    int part, splits, begin, end;
};

__device__ __forceinline__ Split split_inputs(int cols, int part, int splits, int depth) {
    const int whole = ((cols - 1) / splits + depth) / depth * depth;
    const int begin = part * whole;
    return {part, splits, begin, min(cols - begin, whole) + begin};
}

// Where parts of sums meet: part_pmn (splits, rows, n), and how many blocks have arrived at each tile, 0 before and after.
// Both null if nothing is split. They are read and written by atomics: those see what other multiprocessors wrote.
struct Meeting {
    float* part_pmn;
    unsigned* arrived_t;
    WEIGHT* y_mn;
    int rows, n;
};

__device__ __forceinline__ void leave_sum(const Meeting& at, const Split& split, int i, int s, float sum) {
    if (split.splits == 1) {
        put(&at.y_mn[(long long)i * at.n + s], sum);
    } else {
        atomicExch(&at.part_pmn[((long long)split.part * at.rows + i) * at.n + s], sum);
    }
}

// Once all threads of a block have left their sums: adds the parts up if this block is the last, which all of its threads
// learn from `last`, in shared memory. Outputs i0 .. i_end - 1, columns s0 .. s_end - 1 of tile `tile`.
__device__ __forceinline__ void add_parts(
    const Meeting& at, const Split& split, int tile, int i0, int i_end, int s0, int s_end, int thread, int threads,
    int& last) {
    if (split.splits == 1) return;
    __threadfence();  // the sums are in memory before anyone sees that this block has arrived
    __syncthreads();
    if (thread == 0) last = atomicInc(&at.arrived_t[tile], split.splits - 1) == split.splits - 1;  // and 0 again
    __syncthreads();
    if (!last) return;
    __threadfence();
    const int across = s_end - s0;
    for (int e = thread; e < (i_end - i0) * across; e += threads) {
        const long long output = (long long)(i0 + e / across) * at.n + s0 + e % across;
        float sum = 0.0f;
#pragma unroll 8
        for (int p = 0; p < split.splits; ++p) {
            sum += atomicExch(&at.part_pmn[p * ((long long)at.rows * at.n) + output], 0.0f);
        }
        put(&at.y_mn[output], sum);
    }
}
