// What the kernels of the sketch schedule agree on: y_I = C_I z_I with z_I = S_I x, for a strip I of BLOCK_ROWS outputs.
//
// A strip's rows of W are a codebook times a selection. In each panel the strip has T candidates: the windows of
// BLOCK_ROWS buckets that begin STRIDE apart. The selection S_I adds every input, with its sign, into the *bin* of the
// candidate that the hash chose: a sketch of x. The bins of all panels, one after the other, are the rows of z_I; the
// window of bin k is column k of C_I.
//
// The lists. S_I is stored panel by panel as the list of inputs in each bin, derived from the hash by sketch_lists.cu.
// An entry is 16 bits: bits 0..13 the input, counted from the panel's left edge; bit 15 is set if its sign is minus. A
// bin's list is filled up to a multiple of GROUP entries, at least one GROUP, with the input WIDTH, which stands for a
// zero; bit 14 is set in the last entry of a bin. So one pass over a panel's entries meets the bins in order.
//     starts   (strips, panels across, most bins a panel + 1) 16-bit: where each bin's list begins, in groups
//     entries  (strips, panels across, capacity) 16-bit; capacity, a multiple of GROUP, holds the longest possible lists
#pragma once

#include "weight.cuh"

#define GROUP 4
#define ENTRY_INPUT 0x3fffu
#define ENTRY_LAST 0x4000u
#define ENTRY_MINUS 0x8000u

__device__ __forceinline__ int strip_count(const Layout& layout) { return (layout.rows - 1) / BLOCK_ROWS + 1; }
__device__ __forceinline__ int panel_width(const Layout& layout) { return min(PANEL_COLS, layout.cols); }
__device__ __forceinline__ int panels_across(const Layout& layout) { return (layout.cols - 1) / panel_width(layout) + 1; }

// Whether a strip lies in the last, lower row of panels: the first index into what Layout says of a panel.
__device__ __forceinline__ int is_lower(const Layout& layout, int strip) {
    return (PANEL_ROWS == WHOLE ? 0 : strip * BLOCK_ROWS / PANEL_ROWS) == layout.full_rows;
}

// Bins of a strip: in panel column c, in all panel columns before c, and in all. (An array that is indexed by a variable
// would be copied to local memory.)
__device__ __forceinline__ int bins_in_panel(const Layout& layout, int strip, int c) {
    const bool lower = is_lower(layout, strip);
    const unsigned full = lower ? layout.candidates[1][0] : layout.candidates[0][0];
    const unsigned last = lower ? layout.candidates[1][1] : layout.candidates[0][1];
    return c == layout.full_cols ? last : full;
}
__device__ __forceinline__ int bins_before(const Layout& layout, int strip, int c) {
    return c * (is_lower(layout, strip) ? layout.candidates[1][0] : layout.candidates[0][0]);
}
__device__ __forceinline__ int bins_of(const Layout& layout, int strip) {
    const int c = panels_across(layout) - 1;
    return bins_before(layout, strip, c) + bins_in_panel(layout, strip, c);
}

// The first bucket of a strip's row of panels, and where the window of bin k begins, counted from there.
__device__ __forceinline__ long long first_bucket(const Layout& layout, int strip) {
    return (PANEL_ROWS == WHOLE ? 0 : strip * BLOCK_ROWS / PANEL_ROWS) * layout.row_buckets;
}
__device__ __forceinline__ unsigned window(const Layout& layout, int strip, int k) {
    const bool lower = is_lower(layout, strip);
    const int full = lower ? layout.candidates[1][0] : layout.candidates[0][0];
    const unsigned buckets = lower ? layout.buckets[1][0] : layout.buckets[0][0];
    const int c = layout.full_cols && k < layout.full_cols * full ? k / full : layout.full_cols;
    return c * buckets + (unsigned)(k - c * full) * STRIDE;
}

// Rows of SAMPLES numbers, 128 bytes, are read by teams of eight lanes, 16 bytes a lane.
#define VECTOR (16 / (int)sizeof(WEIGHT))  // columns a lane
#define SAMPLES (8 * VECTOR)

struct alignas(16) Vector {
    WEIGHT v[VECTOR];
};

__device__ __forceinline__ void put(Vector* to, const float (&sum)[VECTOR]) {
    Vector out;
#pragma unroll
    for (int q = 0; q < VECTOR; ++q) put(&out.v[q], sum[q]);
    *to = out;
}

// sum += this lane's part of COUNT rows, each with its sign: minus if the lowest bit of `minus` is set. float16: the
// COUNT rows are added in float16, two numbers an instruction, and their sum in float32.
template <int COUNT>
__device__ __forceinline__ void add_rows(float (&sum)[4], const float* const (&row)[COUNT], const unsigned (&minus)[COUNT]) {
#pragma unroll
    for (int e = 0; e < COUNT; ++e) {
        const float4 x = *reinterpret_cast<const float4*>(row[e]);
        const float sign = minus[e] & 1 ? -1.0f : 1.0f;
        sum[0] += sign * x.x, sum[1] += sign * x.y, sum[2] += sign * x.z, sum[3] += sign * x.w;
    }
}
template <int COUNT>
__device__ __forceinline__ void add_rows(float (&sum)[8], const __half* const (&row)[COUNT], const unsigned (&minus)[COUNT]) {
    __half2 rows[4];
#pragma unroll
    for (int e = 0; e < COUNT; ++e) {
        const uint4 x = *reinterpret_cast<const uint4*>(row[e]);
        const unsigned one = (minus[e] & 1) * 0x80008000u ^ 0x3c003c00u;  // +1 or -1, twice
        const __half2 sign = *reinterpret_cast<const __half2*>(&one);
        const unsigned pair[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            const __half2 v = *reinterpret_cast<const __half2*>(&pair[q]);
            rows[q] = e == 0 ? __hmul2(v, sign) : __hfma2(v, sign, rows[q]);
        }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const float2 pair = __half22float2(rows[q]);
        sum[2 * q] += pair.x, sum[2 * q + 1] += pair.y;
    }
}

// Fragment order. An mma leaves columns 2 t and 2 t + 1 of a tile of 8 in lane t of four. Of four tiles side by side a lane
// has eight numbers, which are not neighbours; z and u keep them side by side all the same, as one 16-byte piece: column
// 8 j + 2 t + e of every 32 is stored at 8 t + 2 j + e. The same move again restores the order.
__device__ __forceinline__ void put_fragments(__half* to, const float (*sum)[4], int first, int e) {
    uint4 piece;
    unsigned* pair = reinterpret_cast<unsigned*>(&piece);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const __half2 two = __floats2half2_rn(sum[first + j][2 * e], sum[first + j][2 * e + 1]);
        pair[j] = *reinterpret_cast<const unsigned*>(&two);
    }
    *reinterpret_cast<uint4*>(to) = piece;
}

// Slices: buckets of a panel in shared memory, for ldmatrix to gather windows from. Eight windows are read together, STRIDE
// apart. Where that is a multiple of 128 bytes all would lie in one bank: there every 128 bytes are followed by a gap of
// 16. (Conflicts are also absent if STRIDE is an odd multiple of 16 bytes, and few otherwise.)
__device__ __forceinline__ int in_slice(const Layout& layout, int bucket) {
    return STRIDE % 64 == 0 ? bucket / 64 * 72 + bucket % 64 : bucket;
}

// For two entries of the lists that sketch_groups.cu writes: +1 or -1 where the bin is `bin`, else +0 or -0, as two halves.
// Bits 11..14, read as halves, are sixteen different numbers (powers of four): one instruction compares two.
__device__ __forceinline__ unsigned select(unsigned entries, unsigned bin) {
    const unsigned bits = entries & 0x78007800u;
    const __half2 one = __heq2(*reinterpret_cast<const __half2*>(&bits), *reinterpret_cast<const __half2*>(&bin));
    return *reinterpret_cast<const unsigned*>(&one) | (entries & 0x80008000u);
}
