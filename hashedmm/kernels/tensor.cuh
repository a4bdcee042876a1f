// Tensor cores on compressed weights: what tensor and tensor_grad_x share. W is never stored anywhere, not even a tile
// of it: ldmatrix takes the address of each row of 16 bytes, and here a row is a piece of a codeword (the weights of
// one strip and one input), so the loads that feed the tensor cores gather straight from the panel's buckets.
//
// Words: a slab is 16 neighbouring outputs inside one strip. For one input it has two pieces of 8 weights, 16 bytes
// each. A step is 16 of the shared side of the product, one ldmatrix deep. A stage is one turn of the pipeline, DEPTH
// of it: a tile of the dense operand (warpgroup.cuh says how it lies), and the table of the slabs that it meets: where
// their pieces lie in shared memory, and their signs.
//
// Shared memory, all of it dynamic: STAGES tiles, STAGES tables, then `buffers` slices. A slice holds one panel's
// buckets COPIES times, interleaved so that copy c lies on bank groups c, c + COPIES ... of the eight groups of 16
// bytes. Lane k reads copy k % COPIES: with 8 copies no two of the eight rows that ldmatrix fetches at a time can meet
// in a bank. While one panel is multiplied the next one's slice is on its way.
// A turn: gather A, start to multiply, and while the tensor cores work fill the stage that is free. Four warps, a
// warpgroup, multiply together. Signs cost one operation: they flip the sign bits of two weights in a register at a
// time.
#pragma once

#include "weight.cuh"

#include "warpgroup.cuh"

#ifndef TILE_ROWS
#define TILE_ROWS 128
#define TILE_COLS 256
#define GROUP_ROWS 64
#define GROUP_COLS 256
#define STAGES 3
#define COPIES 8
#endif
#define DEPTH 64
#define STEPS (DEPTH / 16)
#define SLABS (TILE_ROWS / 16)
#define GROUPS_ACROSS (TILE_COLS / GROUP_COLS)
#define THREADS (128 * (TILE_ROWS / GROUP_ROWS) * GROUPS_ACROSS)
#define WARPS (THREADS / 32)
#define UNITS (GROUP_ROWS / 64)                           // of a warpgroup's 64 rows
#define PART_COLS (GROUP_COLS > 128 ? 128 : GROUP_COLS)   // of one product
#define PARTS (GROUP_COLS / PART_COLS)
#define TILE (DEPTH * (TILE_COLS < 64 ? 64 : TILE_COLS))  // halves of a tile of the dense operand
#define BLOCKS (PARTS * UNITS * THREADS > 256 ? 1 : 2)    // a multiprocessor, if registers are to suffice

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

// tile (line, e) = from[line * step + e], and 0 from line `lines` and e = `length` on; both are at least 1.
template <int LINES, int LENGTH, int BYTES>
__device__ __forceinline__ void copy_edge(__half* tile, const __half* from, long long step, int lines, int length) {
    constexpr int COUNT = BYTES / 2;
#pragma unroll 1
    for (int e = threadIdx.x; e < LINES * (LENGTH / COUNT); e += THREADS) {
        const int line = e / (LENGTH / COUNT), at = e % (LENGTH / COUNT) * COUNT;
        const int left = line < lines ? min(max(length - at, 0), COUNT) : 0;
        const __half* source = left ? from + line * step + at : from;
        __half* to = tile + swizzled(line, at, LINES);
        if (BYTES == 2) {
            *to = left ? *source : __float2half_rn(0.0f);
        } else {
            cp_async < BYTES == 2 ? 4 : BYTES > (to, source, 2 * left);
        }
    }
}

// The same by the widest copies that the address and the distance of lines allow.
template <int LINES, int LENGTH>
__device__ __forceinline__ void load_tile(__half* tile, const __half* from, long long step, int lines, int length) {
    constexpr int ACROSS = LENGTH / 8, DOWN = THREADS / ACROSS;
    const unsigned odd = (unsigned)(size_t)from | (unsigned)(2 * step);
    if (LINES % DOWN == 0 && odd % 16 == 0 && lines >= LINES && length >= LENGTH) {  // nothing to check
        const int line = threadIdx.x / ACROSS, at = threadIdx.x % ACROSS * 8;
        __half* to = tile + swizzled(line, at, LINES);
        from += line * step + at;
#pragma unroll
        for (int k = 0; k < LINES / DOWN; ++k, from += DOWN * step) {  // 8 lines on the swizzle is the same
            cp_async<16>(DOWN % 8 ? tile + swizzled(line + k * DOWN, at, LINES) : to + k * DOWN * 64, from);
        }
    } else if (odd % 16 == 0) {
        copy_edge<LINES, LENGTH, 16>(tile, from, step, lines, length);
    } else if (odd % 4 == 0) {
        copy_edge<LINES, LENGTH, 4>(tile, from, step, lines, length);
    } else {
        copy_edge<LINES, LENGTH, 2>(tile, from, step, lines, length);
    }
}

// ---- the pipeline

struct __align__(16) Table {
    unsigned short slot[SLABS][16][STEPS];  // [slab or group of 16 rows][column or row a of A]: its first piece
    unsigned signs[2 * SLABS];              // see Product::tabulate
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
    __half* const stage_tiles;
    Table* const tables;

    __device__ __forceinline__ int length() const { return GRAD_X ? layout.rows : layout.cols; }
    __device__ __forceinline__ int side() const { return min(GRAD_X ? PANEL_ROWS : PANEL_COLS, length()); }
    __device__ __forceinline__ int tiles() const {
        const int rest = length() % side();
        return length() / side() * ceil_div(side(), DEPTH) + (rest ? ceil_div(rest, DEPTH) : 0);
    }

    // Start to fill a stage with the walk's next tile, and go on.
    __device__ __forceinline__ void fill(int stage, Walk& walk) const {
        if (walk.at == walk.end) {  // a new panel
            walk.end += min(length() - walk.end, side());
            walk.buffer = walk.buffer + 1 == slices.buffers ? 0 : walk.buffer + 1;
            walk.panel = GRAD_X ? panel_of(layout, walk.at, m0) : panel_of(layout, m0, walk.at);
            copy_slice(layout, slices, walk.panel, walk.buffer, w_k);
        }
        __half* tile = stage_tiles + stage * TILE;
        if (ACROSS) {
            load_tile<TILE_COLS, DEPTH>(tile, dense + s0 * step + walk.at, step, n - s0, walk.end - walk.at);
        } else {
            load_tile<DEPTH, TILE_COLS>(tile, dense + walk.at * step + s0, step, walk.end - walk.at, n - s0);
        }
        tabulate(tables[stage], walk);
        walk.at += min(walk.end - walk.at, DEPTH);
    }

    // A warp hashes 32 slabs at a time: bit q of a byte of their sign bits is step q / 2, and half q % 2 of the 16 a.
    // The bytes of a word: in tensor columns a of two slabs, then the columns right of them (the halves of a register);
    // in grad_x four rows a.
    __device__ __forceinline__ void tabulate(Table& table, const Walk& walk) const {
        const int lane = threadIdx.x % 32, byte = lane / 8, down = lane % 8 / 2;
        const int first = walk.buffer * slices.pieces;
#pragma unroll
        for (int e = 0; e < (2 * SLABS + WARPS - 1) / WARPS; ++e) {
            const int word = threadIdx.x / 32 + e * WARPS;
            if (2 * SLABS % WARPS && word >= 2 * SLABS) break;
            const int b = GRAD_X ? word / 2 : word % (SLABS / 2) * 2 + byte % 2;
            const int a = lane % 2 * 8 + (GRAD_X ? word % 2 * 4 + byte : word / (SLABS / 2) * 2 + byte / 2);
            const int i = GRAD_X ? walk.at + 16 * down : m0 + 16 * b;
            const int j = GRAD_X ? m0 + 16 * b + a : walk.at + 16 * down + a;
            const Slot slot = slot_in_panel(layout, walk.panel, i, j);
            const bool inside = GRAD_X ? i < walk.end : j < walk.end;
            const int place = STRIDE % 16 ? slot.offset / 8 : slot.offset / 16;  // a first piece
            table.slot[b][a][down] = (unsigned short)((first + (inside ? place : slices.zero)) * COPIES);
            const unsigned signs = __ballot_sync(~0u, slot.sign < 0.0f);
            if (lane == 0) table.signs[word] = signs;
        }
    }

    // A's fragments of a stage: for every step and unit, W (or W transposed) straight from the slices.
    __device__ __forceinline__ void gather(unsigned (&a)[STEPS][UNITS][4], const Table& table) const {
        const int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
        const int first = threadIdx.x / 128 / GROUPS_ACROSS * (4 * UNITS) + threadIdx.x / 32 % 4;
        const Piece* pieces = slices.at + (GRAD_X ? high : low) * slices.second * COPIES + lane % COPIES;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
            const int b = first + 4 * u;
            const uint2 slots = *reinterpret_cast<const uint2*>(table.slot[b][lane % 8 + 8 * (GRAD_X ? low : high)]);
            unsigned signs;
            if (GRAD_X) {
                signs = (table.signs[2 * b + lane / 16] >> lane / 4 % 4 * 8 & 0xffu) * 0x10001u;
            } else {
                signs = table.signs[lane % 4 * (SLABS / 2) + b / 2] >> b % 2 * 8;
            }
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                const unsigned both = k < 2 ? slots.x : slots.y;
                const Piece* row = pieces + (k % 2 ? both >> 16 : both & 0xffffu);
                if (GRAD_X) {
                    ldmatrix_x4(a[k][u], row);
                } else {
                    ldmatrix_x4_trans(a[k][u], row);
                }
            }
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    a[k][u][r] ^= signs << (15 - 2 * k - (GRAD_X ? r % 2 : r / 2)) & 0x80008000u;
                }
            }
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

    // sum += A times a tile. On Hopper it is only begun, and `end` waits for it.
    static __device__ __forceinline__ void begin(
        float (&sum)[PARTS][UNITS][PART_COLS / 8][4], const unsigned (&a)[STEPS][UNITS][4], const __half* tile) {
        const int col = threadIdx.x / 128 % GROUPS_ACROSS * GROUP_COLS;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                const int n = col + p * PART_COLS;
                const __half* at = ACROSS ? tile + n * 64 + 16 * k : tile + (n / 64 * DEPTH + 16 * k) * 64 + n % 64;
                const unsigned long long b = wgmma_tile(at, ACROSS ? 1 : DEPTH * 8, 64);
#pragma unroll
                for (int u = 0; u < UNITS; ++u) wgmma<!ACROSS>(sum[p][u], a[k][u], b);
            }
        }
        wgmma_commit();
#else
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
            warpgroup_product<!ACROSS>(sum[p], a, tile, 0, col + p * PART_COLS, DEPTH);
        }
#endif
    }

    static __device__ __forceinline__ void end(unsigned (&a)[STEPS][UNITS][4]) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
        warpgroup_wait<0>();
#pragma unroll
        for (int k = 0; k < STEPS; ++k) {  // until here A's registers must not be written
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                asm volatile("" : "+r"(a[k][u][0]), "+r"(a[k][u][1]), "+r"(a[k][u][2]), "+r"(a[k][u][3])::"memory");
            }
        }
#endif
    }

    // The whole tile of the output: rows m0 .. m_end, columns s0 .. n.
    __device__ __forceinline__ void run(__half* __restrict__ out_mn, int m_end) const {
        write_zeros(slices);
        float sum[PARTS][UNITS][PART_COLS / 8][4] = {};
        const int count = tiles();
        Walk walk = {0, 0, slices.buffers - 1, {}};
#pragma unroll 1
        for (int s = 0; s < STAGES - 1; ++s) {
            if (s < count) fill(s, walk);
            cp_async_commit();
        }

        const int last_side = (length() - 1) % side() + 1, cut_step = (last_side - 1) % DEPTH / 16;
        const int left = GRAD_X && length() % 16 ? length() % 16 : 16;  // outputs in the last slab
        int stage = 0, next = STAGES - 1;
#pragma unroll 1
        for (int tile = 0; tile < count; ++tile) {
            cp_async_wait<STAGES - 2>();
            tile_written();
            __syncthreads();  // the stage is complete, and nobody reads the one before any more
            unsigned a[STEPS][UNITS][4];
            gather(a, tables[stage]);
            if (left < 16 && tile + 1 == count) {
#pragma unroll
                for (int k = 0; k < STEPS; ++k) {
#pragma unroll
                    for (int u = 0; u < UNITS; ++u) cut(a[k][u], k == cut_step ? left : 16);
                }
            }
            begin(sum, a, stage_tiles + stage * TILE);
            if (tile + STAGES - 1 < count) fill(next, walk);
            cp_async_commit();
            end(a);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        store(out_mn, m_end, sum);
    }

    __device__ __forceinline__ void store(
        __half* __restrict__ out_mn, int m_end, const float (&sum)[PARTS][UNITS][PART_COLS / 8][4]) const {
        const int lane = threadIdx.x % 32, group = threadIdx.x / 128;
        const int row = m0 + group / GROUPS_ACROSS * GROUP_ROWS + threadIdx.x / 32 % 4 * 16 + lane / 4;
        const int col = s0 + group % GROUPS_ACROSS * GROUP_COLS + 2 * (lane % 4);
        const bool even = n % 2 == 0 && (size_t)out_mn % 4 == 0;
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int i = row + 64 * u + 8 * half;
                if (i >= m_end) continue;
                __half* out = out_mn + (long long)i * n;
#pragma unroll
                for (int c = 0; c < GROUP_COLS / 8; ++c) {
                    const int s = col + 8 * c;
                    const float(&v)[4] = sum[c / (PART_COLS / 8)][u][c % (PART_COLS / 8)];
                    if (even && s < n) {
                        *reinterpret_cast<__half2*>(out + s) = __floats2half2_rn(v[2 * half], v[2 * half + 1]);
                    } else {
                        if (s < n) out[s] = __float2half_rn(v[2 * half]);
                        if (s + 1 < n) out[s + 1] = __float2half_rn(v[2 * half + 1]);
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
    __half* stage_tiles = (__half*)shared;
    Table* tables = (Table*)(stage_tiles + STAGES * TILE);
    const Slices slices = slices_of(layout, tables + STAGES, walked, length);
    if (m0 >= m_end) return;  // the last panel is smaller than the others
    if (across == 1) {
        Product<GRAD_X, false>{layout, w_k, dense, down, m0, s0, n, slices, stage_tiles, tables}.run(out_mn, m_end);
    } else {
        Product<GRAD_X, true>{layout, w_k, dense, across, m0, s0, n, slices, stage_tiles, tables}.run(out_mn, m_end);
    }
}
