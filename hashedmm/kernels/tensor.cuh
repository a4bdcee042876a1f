// Tensor cores on compressed weights: what tensor, tensor_grad_x and tensor_grad_w share. W is never stored anywhere,
// not even a tile of it: ldmatrix takes the address of each row of 16 bytes, and here a row is a piece of a codeword
// (the weights of one strip and one input), so the loads that feed mma.sync gather straight from the panel's buckets.
//
// Words: a slab is 16 neighbouring outputs inside one strip. For one input it has two pieces of 8 weights, 16 bytes
// each. A step is one mma deep, 16. A stage is one turn of the pipeline: a tile of the dense operand, DEPTH deep, and
// the table of the slabs that it meets: where their pieces lie in shared memory, and their signs.
//
// Shared memory, all of it dynamic: STAGES stages, then `buffers` slices. A slice holds one panel's buckets COPIES
// times, interleaved so that copy c lies on bank groups c, c + COPIES ... of the eight groups of 16 bytes. Lane k reads
// copy k % COPIES: with 8 copies no two of the eight rows that ldmatrix fetches at a time can meet in a bank. While one
// panel is multiplied the next one's slice is on its way.
// Signs cost one operation: they flip the sign bits of two weights in a register at a time.
#pragma once

#include "ptx.cuh"
#include "weight.cuh"

#ifndef TILE_ROWS
#define TILE_ROWS 128
#define TILE_COLS 256
#define DEPTH 32
#define STAGES 4
#define WARP_ROWS 64
#define WARP_COLS 64
#endif
#ifndef COPIES
#define COPIES 8
#endif
#define WARPS_ACROSS (TILE_COLS / WARP_COLS)
#define WARPS (TILE_ROWS / WARP_ROWS * WARPS_ACROSS)
#define THREADS (32 * WARPS)
#define STEPS (DEPTH / 16)
#define WARP_GROUPS (WARP_ROWS / 16)  // mma tiles down a warp's part of the output
#define WARP_PAIRS (WARP_COLS / 16)   // pairs of mma tiles across it

struct __align__(16) Piece {
    __half weight[8];
};

// BLOCK_COLS is 1 and BLOCK_ROWS a multiple of 16, so every slab has one hash an input. STRIDE is a multiple of 8, so
// pieces never straddle 16 bytes. If it is a multiple of 16, the first pieces of all slabs come before the second ones:
// next to each other they would only meet every other bank group.
struct Slices {
    Piece* at;      // in shared memory
    int second;     // how far a slab's second piece lies from its first, in pieces
    int zero;       // a slab of zeros
    int pieces;     // in one slice, zeros counted
    int buffers;    // slices that are kept
};

__device__ __forceinline__ int ceil_div(int a, int b) { return (a - 1) / b + 1; }

// `size` is the panels' side along which the kernel walks, `length` the matrix's.
__device__ __forceinline__ Slices slices_of(const Layout& layout, void* shared, int size, int length) {
    const long long inner = max(layout.buckets[0][0], layout.buckets[0][1]);
    const long long lower = max(layout.buckets[1][0], layout.buckets[1][1]);
    const int most = (int)(max(inner, lower) / 8);
    const int second = STRIDE % 16 ? 1 : most / 2 + 1;
    const int ahead = ceil_div(STAGES - 1, ceil_div(size, DEPTH));  // panels that begin while one is multiplied
    return {(Piece*)shared, second, STRIDE % 16 ? most : second - 1, most + 2, min(1 + ahead, ceil_div(length, size))};
}

// Where a piece of a panel lies in its slice.
__device__ __forceinline__ int place_of(const Layout& layout, const Slices& slices, int piece) {
    return STRIDE % 16 ? piece : piece % 2 * slices.second + piece / 2;
}

// Inputs past the end of a panel get weights of zero: those of a real slab might be infinite, and 0 * inf is not 0.
__device__ __forceinline__ void write_zeros(const Slices& slices) {
#pragma unroll 1
    for (int e = threadIdx.x; e < 2 * slices.buffers * COPIES; e += THREADS) {
        const int piece = e / COPIES / 2 * slices.pieces + slices.zero + e / COPIES % 2 * slices.second;
        for (int k = 0; k < 8; ++k) slices.at[piece * COPIES + e % COPIES].weight[k] = __float2half_rn(0.0f);
    }
}

// A panel's buckets on their way into one of the buffers.
__device__ __forceinline__ void copy_slice(
    const Layout& layout, const Slices& slices, const Panel& panel, int buffer, const __half* w_k) {
    const __half* from = w_k + panel.base;
    Piece* to = slices.at + buffer * slices.pieces * COPIES;
#pragma unroll 1
    for (int e = threadIdx.x; e < (int)panel.buckets / 8 * COPIES; e += THREADS) {
        const int piece = e / COPIES;
        Piece* place = to + place_of(layout, slices, piece) * COPIES + e % COPIES;
        if ((size_t)w_k % 16 == 0) {  // all panels begin at a multiple of 8 buckets
            cp_async<16>(place, from + piece * 8);
        } else {
#pragma unroll 1
            for (int k = 0; k < 8; ++k) place->weight[k] = from[piece * 8 + k];
        }
    }
}

// ---- the dense operand

// tile[line][e] = matrix[(first_line + line) * step + first + e], and 0 past the ends. Lines are PITCH apart: 16 bytes
// more than a multiple of 32, so that ldmatrix finds neighbouring lines on different banks.
template <int LINES, int LENGTH, int BYTES>
__device__ __forceinline__ void copy_lines(
    __half* tile, const __half* matrix, long long step, int first_line, int end_line, int first, int end) {
    constexpr int COUNT = BYTES / 2, PITCH = LENGTH + 8;
#pragma unroll 1
    for (int e = threadIdx.x; e < LINES * (LENGTH / COUNT); e += THREADS) {
        const int line = e / (LENGTH / COUNT), at = e % (LENGTH / COUNT) * COUNT;
        const int left = first_line + line < end_line ? min(max(end - first - at, 0), COUNT) : 0;
        const __half* from = left ? matrix + (first_line + line) * step + first + at : matrix;
        if (BYTES == 2) {
            tile[line * PITCH + at] = left ? *from : __float2half_rn(0.0f);
        } else {
            cp_async < BYTES == 2 ? 4 : BYTES > (tile + line * PITCH + at, from, 2 * left);
        }
    }
}

// The same by the widest copies that the matrix's address and row length allow.
template <int LINES, int LENGTH>
__device__ __forceinline__ void load_lines(
    __half* tile, const __half* matrix, long long step, int first_line, int end_line, int first, int end) {
    constexpr int ACROSS = LENGTH / 8, DOWN = THREADS / ACROSS;  // threads, if a line is a whole part of them
    const size_t odd = (size_t)(matrix + first) | (size_t)(2 * step);
    if (THREADS % ACROSS == 0 && LINES % DOWN == 0 && odd % 16 == 0 && end_line - first_line >= LINES &&
        end - first >= LENGTH) {  // nothing to check: two or three instructions for 16 bytes
        const int line = threadIdx.x / ACROSS, at = threadIdx.x % ACROSS * 8;
        const __half* from = matrix + (first_line + line) * step + first + at;
#pragma unroll
        for (int k = 0; k < LINES / DOWN; ++k, from += DOWN * step) {
            cp_async<16>(tile + (line + k * DOWN) * (LENGTH + 8) + at, from);
        }
    } else if (odd % 16 == 0) {
        copy_lines<LINES, LENGTH, 16>(tile, matrix, step, first_line, end_line, first, end);
    } else if (odd % 4 == 0) {
        copy_lines<LINES, LENGTH, 4>(tile, matrix, step, first_line, end_line, first, end);
    } else {
        copy_lines<LINES, LENGTH, 2>(tile, matrix, step, first_line, end_line, first, end);
    }
}

// ---- the pipeline

#define LINES_DOWN (DEPTH * (TILE_COLS + 8))    // of a tile stored [depth][sample]
#define LINES_ACROSS (TILE_COLS * (DEPTH + 8))  // of a tile stored [sample][depth]

struct __align__(16) Stage {
    __half tile[LINES_DOWN > LINES_ACROSS ? LINES_DOWN : LINES_ACROSS];
    unsigned short slot[STEPS][16][8];  // [step][row or column a of the mma's A][slab or group b]: its first piece
    unsigned signs[STEPS][8];           // [step][pair of columns of A, or row]: bits 2 b and 2 b + 1, see flip_signs
};

// Where the kernel stands on its way along the shared side of the product (inputs; in grad_x, outputs).
struct Walk {
    int at, end;  // the next tile begins at `at`; its panel ends at `end`
    int buffer;   // where its panel's slice goes
    Panel panel;
};

// GRAD_X: A is W transposed, and the walk goes down the outputs. ACROSS: the dense operand is stored sample by sample.
template <bool GRAD_X, bool ACROSS>
struct Product {
    const Layout& layout;
    const __half *w_k, *dense;
    const long long step;  // from one line of `dense` to the next
    const int m0, s0, n;   // the tile's first row and column in the output; all columns
    const Slices slices;
    Stage* const stages;

    __device__ __forceinline__ int length() const { return GRAD_X ? layout.rows : layout.cols; }
    __device__ __forceinline__ int side() const { return min(GRAD_X ? PANEL_ROWS : PANEL_COLS, length()); }
    __device__ __forceinline__ int tiles() const {
        const int rest = length() % side();
        return length() / side() * ceil_div(side(), DEPTH) + (rest ? ceil_div(rest, DEPTH) : 0);
    }

    // Start to fill a stage with the walk's next tile, and go on.
    __device__ __forceinline__ void fill(Stage& stage, Walk& walk) const {
        if (walk.at == walk.end) {  // a new panel
            walk.end += min(length() - walk.end, side());
            walk.buffer = walk.buffer + 1 == slices.buffers ? 0 : walk.buffer + 1;
            walk.panel = GRAD_X ? panel_of(layout, walk.at, m0) : panel_of(layout, m0, walk.at);
            copy_slice(layout, slices, walk.panel, walk.buffer, w_k);
        }
        if (ACROSS) {
            load_lines<TILE_COLS, DEPTH>(stage.tile, dense, step, s0, n, walk.at, walk.end);
        } else {
            load_lines<DEPTH, TILE_COLS>(stage.tile, dense, step, walk.at, walk.end, s0, n);
        }
        // A warp hashes 4 of the 16 a and all 8 b of a step at a time: its 32 sign bits are one word.
        const int lane = threadIdx.x % 32, b = lane % 16 / 2;
#pragma unroll
        for (int word = threadIdx.x / 32; word < 4 * STEPS; word += WARPS) {
            const int quarter = word % 4, a = 2 * quarter + lane / 16 + 8 * (lane % 2);
            const int down = walk.at + word / 4 * 16;  // along the walk
            const int i = GRAD_X ? down : m0 + 16 * b, j = GRAD_X ? m0 + 16 * b + a : down + a;
            const Slot slot = slot_in_panel(layout, walk.panel, i, j);
            const bool inside = GRAD_X ? i < walk.end : j < walk.end;
            const int piece = inside ? place_of(layout, slices, slot.offset / 8) : slices.zero;
            stage.slot[word / 4][a][b] = (unsigned short)((walk.buffer * slices.pieces + piece) * COPIES);
            const unsigned signs = __ballot_sync(~0u, slot.sign < 0.0f);
            if (GRAD_X) {  // of rows 2 quarter and 2 quarter + 1: both halves of a register are of one row
                if (lane < 2) stage.signs[word / 4][2 * quarter + lane] = (signs >> 16 * lane & 0xffffu) * 0x10001u;
            } else if (lane == 0) {  // low half: columns 2 quarter (+ 8), high half: the columns right of them
                stage.signs[word / 4][quarter] = signs;
            }
        }
        walk.at += min(walk.end - walk.at, DEPTH);
    }

    // The table's entries that this lane needs for one step, in registers early: addresses depend on them.
    struct __align__(2 * WARP_GROUPS) Slots {
        unsigned short of[WARP_GROUPS];
    };
    struct Entries {
        Slots slot;
        unsigned signs;
    };

    __device__ __forceinline__ Entries look_up(const Stage& stage, int step) const {
        const int lane = threadIdx.x % 32, group = threadIdx.x / 32 / WARPS_ACROSS * WARP_GROUPS;
        const int a = lane % 8 + 8 * (GRAD_X ? lane / 8 % 2 : lane / 16);
        Entries out;
        out.slot = *reinterpret_cast<const Slots*>(&stage.slot[step][a][group]);
        out.signs = stage.signs[step][GRAD_X ? lane / 4 : lane % 4] >> 2 * group;
        return out;
    }

    struct Fragments {
        unsigned a[WARP_GROUPS][4];     // W, or W transposed, without signs
        unsigned b[2 * WARP_PAIRS][2];  // the dense operand
        unsigned signs;
    };

    __device__ __forceinline__ void load(Fragments& f, const Entries& entries, const Stage& stage, int step) const {
        const int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
        const Piece* pieces = slices.at + (GRAD_X ? high : low) * slices.second * COPIES + lane % COPIES;
#pragma unroll
        for (int g = 0; g < WARP_GROUPS; ++g) {
            if (GRAD_X) {
                ldmatrix_x4(f.a[g], pieces + entries.slot.of[g]);
            } else {
                ldmatrix_x4_trans(f.a[g], pieces + entries.slot.of[g]);
            }
        }
        f.signs = entries.signs;
        const int col = threadIdx.x / 32 % WARPS_ACROSS * WARP_COLS;
#pragma unroll
        for (int p = 0; p < WARP_PAIRS; ++p) {
            unsigned r[4];
            if (ACROSS) {
                const int line = col + 16 * p + 8 * high + lane % 8;
                ldmatrix_x4(r, stage.tile + line * (DEPTH + 8) + 16 * step + 8 * low);
            } else {
                const int line = 16 * step + 8 * low + lane % 8;
                ldmatrix_x4_trans(r, stage.tile + line * (TILE_COLS + 8) + col + 16 * p + 8 * high);
            }
            f.b[2 * p][0] = r[0], f.b[2 * p][1] = r[1], f.b[2 * p + 1][0] = r[2], f.b[2 * p + 1][1] = r[3];
        }
    }

    // Bits b and b + 16 of the word of signs go to where the two weights of a register have theirs.
    static __device__ __forceinline__ void flip_signs(unsigned (&a)[4], unsigned signs, int group) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int bit = 2 * group + (GRAD_X ? r % 2 : r / 2);
            a[r] ^= signs << (15 - bit) & 0x80008000u;
        }
    }

    // Weights of the outputs from `left` on, which the matrix does not have, become zero. (grad_x sums over outputs.)
    static __device__ __forceinline__ void cut(unsigned (&a)[4], int left) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int k = threadIdx.x % 4 * 2 + r / 2 * 8;
            a[r] &= k + 1 < left ? ~0u : k < left ? 0xffffu : 0u;
        }
    }

    // The whole tile of the output: rows m0 .. m_end, columns s0 .. n.
    __device__ __forceinline__ void run(__half* __restrict__ out_mn, int m_end) const {
        write_zeros(slices);
        float sum[WARP_GROUPS][2 * WARP_PAIRS][4] = {};
        const int count = tiles();
        Walk walk = {0, 0, slices.buffers - 1, {}};
        for (int s = 0; s < STAGES - 1; ++s) {
            if (s < count) fill(stages[s], walk);
            cp_async_commit();
        }
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // the first stage is complete, and the tables of all that were begun

        const int last_side = (length() - 1) % side() + 1, cut_step = (last_side - 1) % DEPTH / 16;
        const int left = GRAD_X && length() % 16 ? length() % 16 : 16;  // outputs in the last slab
        Fragments f[2];
        load(f[0], look_up(stages[0], 0), stages[0], 0);
        Entries entries = look_up(stages[0], 1);
        for (int tile = 0, stage = 0; tile < count; ++tile) {
            const int next = stage + 1 == STAGES ? 0 : stage + 1;
            const bool more = tile + 1 < count;
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                // Fragments are loaded one step ahead, and entries of the table two.
                if (step + 1 < STEPS) {
                    load(f[(step + 1) % 2], entries, stages[stage], step + 1);
                } else {
                    cp_async_wait<STAGES - 2>();
                    __syncthreads();  // the next stage is complete; nobody reads this one any more
                    if (more) load(f[(step + 1) % 2], entries, stages[next], 0);
                }
                if (step + 2 < STEPS) {
                    entries = look_up(stages[stage], step + 2);
                } else if (more) {  // written at least one barrier ago, since STAGES >= 3
                    entries = look_up(stages[next], step + 2 - STEPS);
                }
                if (step == 0) {
                    if (tile + STAGES - 1 < count) fill(stages[stage == 0 ? STAGES - 1 : stage - 1], walk);
                    cp_async_commit();
                }
                Fragments& now = f[step % 2];
#pragma unroll
                for (int g = 0; g < WARP_GROUPS; ++g) {
                    flip_signs(now.a[g], now.signs, g);
                    if (left < 16 && !more && step == cut_step) cut(now.a[g], left);
#pragma unroll
                    for (int c = 0; c < 2 * WARP_PAIRS; ++c) {
                        mma_sync_m16n8k16(sum[g][c], now.a[g], now.b[c], sum[g][c]);
                    }
                }
            }
            stage = next;
        }
        store(out_mn, m_end, sum);
    }

    __device__ __forceinline__ void store(
        __half* __restrict__ out_mn, int m_end, const float (&sum)[WARP_GROUPS][2 * WARP_PAIRS][4]) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = m0 + warp / WARPS_ACROSS * WARP_ROWS + lane / 4;
        const int col = s0 + warp % WARPS_ACROSS * WARP_COLS + 2 * (lane % 4);
        const bool even = n % 2 == 0 && (size_t)out_mn % 4 == 0;
#pragma unroll
        for (int g = 0; g < WARP_GROUPS; ++g) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int i = row + 16 * g + 8 * half;
                if (i >= m_end) continue;
                __half* out = out_mn + (long long)i * n;
#pragma unroll
                for (int c = 0; c < 2 * WARP_PAIRS; ++c) {
                    const int s = col + 8 * c;
                    const float v = sum[g][c][2 * half], right = sum[g][c][2 * half + 1];
                    if (even && s < n) {
                        *reinterpret_cast<__half2*>(out + s) = __floats2half2_rn(v, right);
                    } else {
                        if (s < n) out[s] = __float2half_rn(v);
                        if (s + 1 < n) out[s + 1] = __float2half_rn(right);
                    }
                }
            }
        }
    }
};

// The block's tile of W x (of W^T gy): `block` counts the tiles of the output, those of one row of panels (one column)
// together, samples first. The dense operand's element (k, s) is dense[k * down + s * across].
template <bool GRAD_X>
__device__ __forceinline__ void tensor_product(
    const Layout& layout, void* shared, const __half* w_k, const __half* dense, long long down, long long across,
    __half* __restrict__ out_mn, int n) {
    const int size = GRAD_X ? layout.cols : layout.rows;
    const int side = min(GRAD_X ? PANEL_COLS : PANEL_ROWS, size);  // of a panel, along the rows of the output
    const int length = GRAD_X ? layout.rows : layout.cols, walked = min(GRAD_X ? PANEL_ROWS : PANEL_COLS, length);
    const int tiles_across = ceil_div(n, TILE_COLS), tiles_down = ceil_div(side, TILE_ROWS);
    const int tile = blockIdx.x / tiles_across;
    const int panel = tile / tiles_down * side;
    const int m0 = panel + tile % tiles_down * TILE_ROWS, m_end = min(size - panel, side) + panel;
    const int s0 = blockIdx.x % tiles_across * TILE_COLS;
    Stage* stages = (Stage*)shared;
    const Slices slices = slices_of(layout, stages + STAGES, walked, length);
    if (m0 >= m_end) return;  // the last panel is smaller than the others
    if (across == 1) {
        Product<GRAD_X, false>{layout, w_k, dense, down, m0, s0, n, slices, stages}.run(out_mn, m_end);
    } else {
        Product<GRAD_X, true>{layout, w_k, dense, across, m0, s0, n, slices, stages}.run(out_mn, m_end);
    }
}
