// The hash of a block from two halves, so that what depends on its row or on its column alone is computed once.
//
// fmix32 begins with h ^= h >> 16. That step is linear over XOR, and h is the XOR of a row's key and a multiple of the
// column: each half can take the step alone. What is left a block is 8 instructions: hash_halves.
#pragma once

#include "hash.cuh"

__device__ __forceinline__ unsigned fold(unsigned h) { return h ^ (h >> 16); }

__device__ __forceinline__ unsigned row_half(const Layout& layout, unsigned block_row) {
    return HASH == 0 ? fold(fmix32(layout.seed ^ fmix32(block_row + layout.first_block_row + 0x9E3779B9u))) : block_row;
}

__device__ __forceinline__ unsigned column_half(const Layout& layout, unsigned block_col) {
    return HASH == 0 ? fold((block_col + layout.first_block_col) * 0x9E3779B1u) : block_col;
}

// hash_block(layout, I, J) from row_half(I) and column_half(J). Its last step, which leaves the high 16 bits as they are,
// is left out if WHOLE_HASH is false and the hash is fmix32; the lowest bit is then that of `sign_bit`.
template <bool WHOLE_HASH = true>
__device__ __forceinline__ unsigned hash_halves(const Layout& layout, unsigned row, unsigned column) {
    if (HASH != 0) return hash_block(layout, row, column);
    unsigned h = (row ^ column) * 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return WHOLE_HASH ? fold(h) : h;
}

// The lowest bit of the hash, as bit 31: of h ^ h >> 16, if that was left out. (1 << 31) + (1 << 15) times h adds bit 16
// of h to bit 0 there. Bits 0 to 30 mean nothing.
template <bool WHOLE_HASH = true>
__device__ __forceinline__ unsigned sign_bit(const Layout& layout, unsigned h) {
    return WHOLE_HASH || HASH != 0 ? h << 31 : h * 0x80008000u;
}
