// What the kernels of a training step share: the clock, and sums over a warp. hashedmm/graph.py launches them.
//
// A captured step is the same launches with the same arguments again and again. So everything that differs from step to
// step is read from memory, at a place that the clock says. It lies on the device and the kernels move it on:
// step_gather begins a step, and step_adam or step_sgd, the last of its launches, ends it. No kernel writes an element
// that another of its blocks reads.
//
// Samples lie in the columns of C-ordered arrays. Rows are `pitch` long, a little more than the n columns in use: the
// kernels of products want them to be a multiple of 16 bytes. The columns beyond are zero and stay so.
#pragma once

#define NOW 0     // clock[NOW]: the step of this epoch that is being computed, from 0
#define NEXT 1    // the one to begin after it
#define BEFORE 2  // steps of the run before this epoch

__device__ __forceinline__ void begin_step(int* clock) { clock[NOW] = clock[NEXT]; }
__device__ __forceinline__ void end_step(int* clock) { clock[NEXT] = clock[NOW] + 1; }

// The sum over a warp, in a fixed order: every lane gets it.
__device__ __forceinline__ float warp_sum(float v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    return v;
}
