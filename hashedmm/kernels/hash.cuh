// Which bucket and which sign a virtual weight has: the hash functions, and the way from (i, j) to a bucket.
//
// The host works the layout out in exact integers (hashedmm.kernels.layout) and hands it to every kernel as a struct.
// On a GPU the structure is also compiled in (-DHASH=0 -DBLOCK_ROWS=16 ...): a division by a constant is a
// multiplication, and the hashes that are not asked for vanish. In the emulator the macros are undefined and the same
// numbers are read from the struct, so that one build serves every spec. The arithmetic is that of hashedmm/hashing.py.
#pragma once

struct Layout {
    long long row_buckets;       // buckets of all panels in one row of panels of full height
    long long buckets[2][2];     // of one panel: [in the last, lower row of panels?][in the last, narrower column?]
    unsigned long long a1, a2;   // parameters of the multiply-shift hash
    unsigned long long b;
    unsigned candidates[2][2];   // offsets that a block of the panel may choose among; indexed like buckets
    unsigned seed;
    int rows, cols;              // of the matrix: outputs, inputs
    int block_rows, block_cols;  // weights that share one hash
    int stride;                  // distance between candidate offsets
    int panel_rows, panel_cols;  // WHOLE if panels do not split the rows (the columns)
    int full_rows, full_cols;    // panels of full height (width); one more panel holds what is left
    int hash;                    // 0 fmix32, 1 xxh32, 2 multiply_shift
    int first_block_row, first_block_col;  // added before a block is hashed: 0, but in a window of a larger matrix
};

#define WHOLE 0x7fffffff

#ifndef HASH  // the emulator: every function below has a parameter `layout`
#define HASH layout.hash
#define BLOCK_ROWS layout.block_rows
#define BLOCK_COLS layout.block_cols
#define STRIDE layout.stride
#define PANEL_ROWS layout.panel_rows
#define PANEL_COLS layout.panel_cols
#endif

// The finaliser of MurmurHash3 (Appleby 2011): every input bit flips every output bit.
__device__ __forceinline__ unsigned fmix32(unsigned h) {
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ (h >> 16);
}

__device__ __forceinline__ unsigned rotate_left(unsigned h, int bits) { return (h << bits) | (h >> (32 - bits)); }

// XXH32 (Collet) of eight bytes: the two words, low byte first.
__device__ __forceinline__ unsigned xxh32(unsigned seed, unsigned first, unsigned second) {
    unsigned h = seed + 374761393u + 8u;
    h = rotate_left(h + first * 3266489917u, 17) * 668265263u;
    h = rotate_left(h + second * 3266489917u, 17) * 668265263u;
    h = (h ^ (h >> 15)) * 2246822519u;
    h = (h ^ (h >> 13)) * 3266489917u;
    return h ^ (h >> 16);
}

// A linear function of (I, J): its high word (Dietzfelbinger 1996). One seed makes lattice patterns: it is here to
// teach.
__device__ __forceinline__ unsigned multiply_shift(const Layout& layout, unsigned block_row, unsigned block_col) {
    return (unsigned)((layout.a1 * block_row + layout.a2 * block_col + layout.b) >> 32);
}

// The one hash value of block (I, J). What depends on I alone is computed once by a thread that stays in its row.
__device__ __forceinline__ unsigned hash_block(const Layout& layout, unsigned block_row, unsigned block_col) {
    block_row += layout.first_block_row;
    block_col += layout.first_block_col;
    if (HASH == 0) {
        const unsigned row_key = fmix32(layout.seed ^ fmix32(block_row + 0x9E3779B9u));
        return fmix32(row_key ^ (block_col * 0x9E3779B1u));
    }
    return HASH == 1 ? xxh32(layout.seed, block_row, block_col) : multiply_shift(layout, block_row, block_col);
}

// The panel of weight (i, j). Its buckets are w[base] .. w[base + buckets - 1], and no other panel uses them.
struct Panel {
    long long base, buckets;
    unsigned candidates;
};

__device__ __forceinline__ Panel panel_of(const Layout& layout, int i, int j) {
    const int r = PANEL_ROWS == WHOLE ? 0 : i / PANEL_ROWS;
    const int c = PANEL_COLS == WHOLE ? 0 : j / PANEL_COLS;
    const bool lower = r == layout.full_rows, narrower = c == layout.full_cols;
    const long long width = lower ? layout.buckets[1][0] : layout.buckets[0][0];
    const long long last = lower ? layout.buckets[1][1] : layout.buckets[0][1];
    const unsigned t = lower ? layout.candidates[1][0] : layout.candidates[0][0];
    const unsigned t_last = lower ? layout.candidates[1][1] : layout.candidates[0][1];
    return {r * layout.row_buckets + c * width, narrower ? last : width, narrower ? t_last : t};
}

// Where weight (i, j) is stored: counted from the first bucket of its panel, and with which sign.
struct Slot {
    unsigned offset;
    float sign;
};

__device__ __forceinline__ Slot slot_in_panel(const Layout& layout, const Panel& panel, int i, int j) {
    const unsigned h = hash_block(layout, i / BLOCK_ROWS, j / BLOCK_COLS);
    const unsigned t = (unsigned)(((unsigned long long)h * panel.candidates) >> 32);  // h scaled to 0 .. candidates - 1
    const unsigned inside = j % BLOCK_COLS * BLOCK_ROWS + i % BLOCK_ROWS;             // column by column
    return {t * STRIDE + inside, h & 1 ? -1.0f : 1.0f};
}

// The bucket, a 64-bit index into all of w, and the sign: W[i, j] = sign * w[bucket].
struct Place {
    long long bucket;
    float sign;
};

__device__ __forceinline__ Place locate(const Layout& layout, int i, int j) {
    const Panel panel = panel_of(layout, i, j);
    const Slot slot = slot_in_panel(layout, panel, i, j);
    return {panel.base + slot.offset, slot.sign};
}
