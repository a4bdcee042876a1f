// materialise: W as a dense matrix, for a library's product to use. It spends again the memory that hashing saves.
//
// Who computes what: a thread makes VECTOR neighbouring columns (16 bytes of a row) of a run of rows: up to RUN rows of
// one row of blocks, or as many whole blocks as RUN rows hold. A block's column is a run of neighbouring buckets, so it
// hashes once a column of a block and then counts upwards.
// What to see: the bandwidth of writing is the limit, if nothing else comes before it. Each row leaves as one 16-byte
// store, and neighbouring threads store neighbouring 16 bytes. Strips (blocks one column wide) whose codewords begin at
// 16-byte boundaries arrive as quickly: one 16-byte read is VECTOR rows of a column, and VECTOR such reads are a square
// that is turned on its side in registers. If rows of W do not begin at 16-byte boundaries (cols no multiple of VECTOR),
// elements are stored one by one.
//
// Launch: any 1-D block; a 1-D grid of ceil(ceil(cols / VECTOR) / threads) blocks for each run of rows.
//     layout  where each weight is stored
//     w_k     (buckets)
//     w_md    (rows, cols), C order, written in full
#include "weight.cuh"

#ifndef RUN
#define RUN 16
#endif
#define VECTOR (16 / (int)sizeof(WEIGHT))

// 16 bytes: VECTOR weights of a column, one below the other, or of a row.
struct __align__(16) Piece {
    unsigned word[4];
};

// Word q of row r of the square whose columns are given: a float, or two halves, each from the column it belongs to.
__device__ __forceinline__ unsigned across(const Piece (&column)[VECTOR], int r, int q) {
    if (sizeof(WEIGHT) == 4) return column[q].word[r];
    const unsigned left = column[2 * q % VECTOR].word[r / 2], right = column[(2 * q + 1) % VECTOR].word[r / 2];
    return __byte_perm(left, right, r % 2 ? 0x7632 : 0x5410);
}

extern "C" __global__ void materialise(
    const Layout layout, const WEIGHT* __restrict__ w_k, WEIGHT* __restrict__ w_md) {
    const int groups = (layout.cols - 1) / VECTOR + 1;
    const unsigned blocks_across = (groups - 1) / blockDim.x + 1;
    const int group = blockIdx.x % blocks_across * blockDim.x + threadIdx.x;
    const unsigned run = blockIdx.x / blocks_across;

    const int height = min(BLOCK_ROWS, layout.rows);          // of one row of blocks
    const int runs = (height - 1) / RUN + 1;                  // in it; 1 if blocks are low
    const int blocks_down = height < RUN ? RUN / height : 1;  // in a run; 1 if blocks are tall
    const long long top = (long long)(run / runs) * height * blocks_down;
    const int first = min(top + run % runs * RUN, (long long)layout.rows);
    const int end = min(min((long long)first + RUN, top + (long long)height * blocks_down), (long long)layout.rows);
    if (group >= groups) return;
    const int j0 = group * VECTOR;

    const bool rows_aligned = layout.cols % VECTOR == 0 && (size_t)w_md % 16 == 0;
    const bool codewords_aligned = BLOCK_COLS == 1 && BLOCK_ROWS % VECTOR == 0 && STRIDE % VECTOR == 0 &&
                                   RUN % VECTOR == 0 && (size_t)w_k % 16 == 0;

    if (codewords_aligned && rows_aligned) {  // the whole matrix or none of it
        const Piece* codeword[VECTOR];
        unsigned flip[VECTOR];  // the bits that change the sign of a word's one or two weights
        for (int i = first; i < end; i += VECTOR) {
            if (i == first || i % BLOCK_ROWS == 0) {  // a block begins
#pragma unroll
                for (int c = 0; c < VECTOR; ++c) {
                    const Place place = locate(layout, i, j0 + c);
                    codeword[c] = reinterpret_cast<const Piece*>(w_k + place.bucket);
                    flip[c] = place.sign > 0 ? 0 : sizeof(WEIGHT) == 4 ? 0x80000000u : 0x80008000u;
                }
            }
            Piece column[VECTOR];
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) column[c] = *codeword[c]++;
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
#pragma unroll
                for (int q = 0; q < 4; ++q) column[c].word[q] ^= flip[c];
            }
#pragma unroll
            for (int r = 0; r < VECTOR; ++r) {
                Piece row;
#pragma unroll
                for (int q = 0; q < 4; ++q) row.word[q] = across(column, r, q);
                if (i + r < end) *reinterpret_cast<Piece*>(w_md + (long long)(i + r) * layout.cols + j0) = row;
            }
        }
        return;
    }

    const int columns = min(VECTOR, layout.cols - j0);
    long long bucket[VECTOR];
    float sign[VECTOR];
    for (int i = first; i < end; ++i) {
        if (i == first || i % BLOCK_ROWS == 0) {  // a block begins
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                const Place place = locate(layout, i, min(j0 + c, layout.cols - 1));  // beyond the edge: anything valid
                bucket[c] = place.bucket;
                sign[c] = place.sign;
            }
        }
        __align__(16) WEIGHT row[VECTOR];
#pragma unroll
        for (int c = 0; c < VECTOR; ++c) put(&row[c], sign[c] * to_float(w_k[bucket[c]++]));
        WEIGHT* to = &w_md[(long long)i * layout.cols + j0];
        if (rows_aligned) {
            *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(row);
        } else {
#pragma unroll
            for (int c = 0; c < VECTOR; ++c) {
                if (c < columns) to[c] = row[c];
            }
        }
    }
}
