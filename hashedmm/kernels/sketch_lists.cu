// Sketch, prepared once: the lists of inputs in every bin, from the hash. They are derived: cached, never saved.
//
// Who computes what: a block makes the lists of one strip and one panel. All threads hash the panel's inputs into shared
// memory; then each thread takes every THREADS-th bin, scans all inputs for those that fall in it, and counts them;
// the first warp turns counts into places; the threads scan once more and write. Inputs stand in rising order in every
// list, so that the sums over a list have one order, always.
// What to see: there are faster ways to sort. This one is short, needs no atomics, and runs once a layer.
//
// Launch: THREADS in a 1-D block, a multiple of 32; a 1-D grid of strips * panels across, panels fastest. Dynamic shared
// memory: 4 bytes an input of the widest panel.
//     layout    where each weight is stored
//     starts    (strips, panels across, bins + 1), written for the bins that a panel has, and one place more
//     entries   (strips, panels across, capacity), written as far as the lists go
//     bins      most bins of a panel
//     capacity  entries that a strip and panel have room for
#include "sketch.cuh"

#ifndef THREADS
#define THREADS 128
#endif

extern "C" __global__ void __launch_bounds__(THREADS) sketch_lists(
    const Layout layout, unsigned short* __restrict__ starts, unsigned short* __restrict__ entries,
    const int bins, const int capacity) {
    extern __shared__ __align__(16) unsigned code[];  // (bin << 1 | minus) of each input

    const int across = panels_across(layout), strip = blockIdx.x / across, c = blockIdx.x % across;
    const int left = c * panel_width(layout), width = min(panel_width(layout), layout.cols - left);
    const int here = bins_in_panel(layout, strip, c);
    unsigned short* start = starts + (long long)blockIdx.x * (bins + 1);
    unsigned short* list = entries + (long long)blockIdx.x * capacity;

    for (int k = threadIdx.x; k < width; k += THREADS) {
        const unsigned h = hash_block(layout, strip, left + k);
        code[k] = (unsigned)((unsigned long long)h * here >> 32) << 1 | (h & 1);
    }
    __syncthreads();  // all inputs are hashed

    for (int bin = threadIdx.x; bin < here; bin += THREADS) {
        int count = 0;
        for (int k = 0; k < width; ++k) count += code[k] >> 1 == bin;
        start[bin + 1] = max(1, (count + GROUP - 1) / GROUP);
    }
    __syncthreads();  // all bins are counted

    if (threadIdx.x < 32) {  // running sums, 32 bins at a time
        int before = 0;
        for (int first = 0; first < here; first += 32) {
            const int bin = first + threadIdx.x;
            int sum = bin < here ? start[bin + 1] : 0;
            for (int step = 1; step < 32; step *= 2) {
                const int other = __shfl_up_sync(~0u, sum, step);
                if (threadIdx.x >= step) sum += other;
            }
            if (bin < here) start[bin + 1] = before + sum;
            before += __shfl_sync(~0u, sum, 31);
        }
        if (threadIdx.x == 0) start[0] = 0;
    }
    __syncthreads();  // all places are known

    for (int bin = threadIdx.x; bin < here; bin += THREADS) {
        int at = start[bin] * GROUP;
        const int end = start[bin + 1] * GROUP;
        for (int k = 0; k < width; ++k) {
            if (code[k] >> 1 == bin) list[at++] = k | (code[k] & 1 ? ENTRY_MINUS : 0);
        }
        while (at < end) list[at++] = width;
        list[end - 1] |= ENTRY_LAST;
    }
}
