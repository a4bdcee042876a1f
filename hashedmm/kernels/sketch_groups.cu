// Sketch for tensor cores, prepared once: the inputs of every 16 bins, from the hash. Derived: cached, never saved.
//
// z = S x is a product with a matrix of ones, minus ones and many zeros. 16 bins at a time, only the inputs that fall in
// them matter: about one in T / 16. Their list is what sketch_sum_mma multiplies with. An entry is 16 bits: bits 0..10 the
// input, counted from the panel's left edge; bits 11..14 the bin, of the 16; bit 15 set if the sign is minus. Slot k of a
// list holds an input j with j % 8 = k % 8: the rows of x that ldmatrix reads together then lie in different banks. The
// inputs of one remainder stand in rising order; a slot for which there is none left holds one of eight rows of zeros
// that follow the panel's inputs. A list has a multiple of 16 slots.
//
// Who computes what: a block makes the lists of one strip and one panel. All threads hash the inputs into shared memory;
// then eight threads, one a remainder, count for each group of 16 bins; one thread adds up; and eight a group write.
//
// Launch: THREADS in a 1-D block; a 1-D grid of strips * panels across, panels fastest. Dynamic shared memory: 4 bytes an
// input of the widest panel.
//     layout    where each weight is stored
//     starts    (strips, panels across, groups + 1): where each group's list begins, in 16 slots
//     entries   (strips, panels across, capacity), written as far as the lists go; null: only measure
//     groups    of 16 bins, most a panel
//     capacity  slots that a strip and panel have room for
#include "sketch.cuh"

#ifndef THREADS
#define THREADS 128
#endif

extern "C" __global__ void __launch_bounds__(THREADS) sketch_groups(
    const Layout layout, unsigned short* __restrict__ starts, unsigned short* __restrict__ entries,
    const int groups, const int capacity) {
    extern __shared__ __align__(16) unsigned code[];  // (bin << 1 | minus) of each input

    const int across = panels_across(layout), strip = blockIdx.x / across, c = blockIdx.x % across;
    const int left = c * panel_width(layout), width = min(panel_width(layout), layout.cols - left);
    const int zeros = (panel_width(layout) + 7) / 8 * 8;  // the first row of zeros
    const unsigned bins = bins_in_panel(layout, strip, c);
    unsigned short* start = starts + (long long)blockIdx.x * (groups + 1);
    unsigned short* list = entries + (long long)blockIdx.x * capacity;

    for (int k = threadIdx.x; k < width; k += THREADS) {
        const unsigned h = hash_block(layout, strip, left + k);
        code[k] = (unsigned)((unsigned long long)h * bins >> 32) << 1 | (h & 1);
    }
    for (int group = threadIdx.x; group <= groups; group += THREADS) start[group] = 0;
    __syncthreads();  // all inputs are hashed

    // Threads 8 i .. 8 i + 7 of a warp take group i, and the remainder that is their place among the eight.
    const int rest = threadIdx.x % 8;
    for (int first = 0; first < groups; first += THREADS / 8) {
        const unsigned group = first + threadIdx.x / 8;
        int count = 0;
        for (int k = rest; k < width; k += 8) count += code[k] >> 5 == group;
        for (int step = 4; step > 0; step /= 2) count = max(count, __shfl_xor_sync(~0u, count, step));
        if (rest == 0 && group < groups) start[group + 1] = (count + 1) / 2;  // 8 slots an input, in whole 16
    }
    __syncthreads();  // all lists are measured
    if (threadIdx.x == 0) {
        for (int group = 0; group < groups; ++group) start[group + 1] += start[group];
    }
    __syncthreads();  // all places are known
    if (!entries) return;

    for (unsigned group = threadIdx.x / 8; group < groups; group += THREADS / 8) {
        int at = 16 * start[group] + rest;
        for (int k = rest; k < width; k += 8) {
            if (code[k] >> 5 != group) continue;
            list[at] = k | (code[k] >> 1 & 15) << 11 | (code[k] & 1) << 15;
            at += 8;
        }
        for (; at < 16 * start[group + 1]; at += 8) list[at] = zeros + rest;
    }
}
