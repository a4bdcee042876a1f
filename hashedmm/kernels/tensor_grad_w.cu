// tensor_grad_w: the gradient with respect to the buckets by tensor cores: the dense gradient G = gy x^T is made tile
// by tile in registers, and summed over the uses of each bucket in shared memory.
//
// Who computes what: a block owns TILE_ROWS outputs and SPAN tiles of TILE_COLS inputs inside one panel. For each of
// the tiles in turn it multiplies gy and x^T, DEPTH samples at a time, by a pipeline of STAGES stages; then every
// element is added, with its sign, to its bucket's sum. At the end the block adds its sums to gw.
// What to see: no other panel uses a panel's buckets, so all the random additions happen in shared memory, in a slice
// of a few kilobytes. Only the slice goes out, by atomics since a panel may have several blocks; they may come in any
// order.
//
// Specs: as tensor. Launch: THREADS = 32 * (TILE_ROWS / WARP_ROWS) * (TILE_COLS / WARP_COLS) in a 1-D block. A 1-D
// grid: for each row of panels, for each TILE_ROWS of it, for each panel, for each SPAN tiles of it. Dynamic shared
// memory: the stages, the sums of the largest panel, and a table of TILE_ROWS / 16 x TILE_COLS words.
// TILE_ROWS at most 128; WARP_ROWS 16, 32, 64 or 128; WARP_COLS a multiple of 16, DEPTH of 32; STAGES at least 3.
//     layout  where each weight is stored
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across; one of the two is 1
//     gy_mn   (rows, n): element (i, s) at i * gy_down + s * gy_across; one of the two is 1
//     gw_k    (buckets), float32, zeros when the kernel begins
#include "ptx.cuh"
#include "weight.cuh"

#ifndef SPAN
#define TILE_ROWS 128
#define TILE_COLS 128
#define DEPTH 32
#define STAGES 4
#define WARP_ROWS 64
#define WARP_COLS 32
#define SPAN 4
#endif
#define WARPS_ACROSS (TILE_COLS / WARP_COLS)
#define WARPS (TILE_ROWS / WARP_ROWS * WARPS_ACROSS)
#define THREADS (32 * WARPS)
#define WARP_GROUPS (WARP_ROWS / 16)  // mma tiles down a warp's part of the output
#define WARP_PAIRS (WARP_COLS / 16)   // pairs of mma tiles across it

__device__ __forceinline__ int ceil_div(int a, int b) { return (a - 1) / b + 1; }

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

template <int SIDE>
struct __align__(16) Lines {
    __half at[DEPTH * (SIDE + 8) > SIDE * (DEPTH + 8) ? DEPTH * (SIDE + 8) : SIDE * (DEPTH + 8)];
};

// A tile of SIDE rows of a dense operand, and DEPTH of its samples. ACROSS: stored sample by sample.
template <int SIDE, bool ACROSS>
__device__ __forceinline__ void load_samples(
    Lines<SIDE>& tile, const __half* matrix, long long step, int first, int end, int sample, int n) {
    if (ACROSS) {
        load_lines<DEPTH, SIDE>(tile.at, matrix, step, sample, n, first, end);
    } else {
        load_lines<SIDE, DEPTH>(tile.at, matrix, step, first, end, sample, n);
    }
}

// Four 8 x 8 matrices from a tile: this lane's address is that of `row` and samples `k` .. k + 7, or of sample `k` and
// rows `row` .. row + 7 if ACROSS.
template <int SIDE, bool ACROSS>
__device__ __forceinline__ void fragment(unsigned (&r)[4], const Lines<SIDE>& tile, int row, int k) {
    if (ACROSS) {
        ldmatrix_x4_trans(r, tile.at + k * (SIDE + 8) + row);
    } else {
        ldmatrix_x4(r, tile.at + row * (DEPTH + 8) + k);
    }
}

struct __align__(16) Pair {
    Lines<TILE_ROWS> gy;
    Lines<TILE_COLS> x;
};

// sum = gy x^T for outputs i0 .. i_end and inputs j0 .. j_end.
template <bool GY_ACROSS, bool X_ACROSS>
__device__ __forceinline__ void outer_product(
    float (&sum)[WARP_GROUPS][2 * WARP_PAIRS][4], Pair* stages, const __half* x_dn, long long x_step,
    const __half* gy_mn, long long gy_step, int n, int i0, int i_end, int j0, int j_end) {
    const int lane = threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
    const int row = threadIdx.x / 32 / WARPS_ACROSS * WARP_ROWS;
    const int col = threadIdx.x / 32 % WARPS_ACROSS * WARP_COLS;
    const int count = ceil_div(n, DEPTH);
    __syncthreads();  // nobody reads the stages any more
    for (int tile = 1 - STAGES, stage = 0; tile < count; ++tile) {
        if (tile >= 0) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // the stage to be read is complete; nobody reads the one to be filled
        }
        if (tile + STAGES - 1 < count) {
            const int sample = (tile + STAGES - 1) * DEPTH;
            load_samples<TILE_ROWS, GY_ACROSS>(stages[stage].gy, gy_mn, gy_step, i0, i_end, sample, n);
            load_samples<TILE_COLS, X_ACROSS>(stages[stage].x, x_dn, x_step, j0, j_end, sample, n);
        }
        cp_async_commit();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (tile < 0) continue;
        const Pair& now = stages[stage];  // filled STAGES - 1 turns ago
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned a[WARP_GROUPS][4], b[2 * WARP_PAIRS][2];
#pragma unroll
            for (int g = 0; g < WARP_GROUPS; ++g) {  // rows first: the lower 8, the upper 8, then 8 samples on
                const int down = GY_ACROSS ? 8 * low : 8 * low + lane % 8, at = GY_ACROSS ? lane % 8 : 0;
                fragment<TILE_ROWS, GY_ACROSS>(a[g], now.gy, row + 16 * g + down, k + 8 * high + at);
            }
#pragma unroll
            for (int p = 0; p < WARP_PAIRS; ++p) {  // samples first
                unsigned r[4];
                const int down = X_ACROSS ? 8 * high : 8 * high + lane % 8, at = X_ACROSS ? lane % 8 : 0;
                fragment<TILE_COLS, X_ACROSS>(r, now.x, col + 16 * p + down, k + 8 * low + at);
                b[2 * p][0] = r[0], b[2 * p][1] = r[1], b[2 * p + 1][0] = r[2], b[2 * p + 1][1] = r[3];
            }
#pragma unroll
            for (int g = 0; g < WARP_GROUPS; ++g) {
#pragma unroll
                for (int c = 0; c < 2 * WARP_PAIRS; ++c) mma_sync_m16n8k16(sum[g][c], a[g], b[c], sum[g][c]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) tensor_grad_w(
    const Layout layout,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    const WEIGHT* __restrict__ gy_mn, const long long gy_down, const long long gy_across,
    float* __restrict__ gw_k, const int n) {
    extern __shared__ __align__(128) unsigned char shared[];
    Pair* stages = (Pair*)shared;
    unsigned(*table)[TILE_COLS] = (unsigned(*)[TILE_COLS])(stages + STAGES);  // [slab][input]: offset * 2 + sign
    float* bucket_sum = (float*)(table + TILE_ROWS / 16);

    const int height = min(PANEL_ROWS, layout.rows), width = min(PANEL_COLS, layout.cols);
    const int spans = ceil_div(width, SPAN * TILE_COLS), panels = ceil_div(layout.cols, width);
    const int tiles_down = ceil_div(height, TILE_ROWS);
    const int tile = blockIdx.x / (spans * panels), across = blockIdx.x % (spans * panels);
    const int panel_row = tile / tiles_down * height, panel_col = across / spans * width;
    const int i0 = panel_row + tile % tiles_down * TILE_ROWS;
    const int i_end = min(layout.rows - panel_row, height) + panel_row;
    const int first = panel_col + across % spans * (SPAN * TILE_COLS);
    const int j_end = min(layout.cols - panel_col, width) + panel_col;
    if (i0 >= i_end || first >= j_end) return;  // the last panel is smaller than the others

    const Panel panel = panel_of(layout, i0, first);
    for (int k = threadIdx.x; k < panel.buckets; k += THREADS) bucket_sum[k] = 0.0f;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int row = warp / WARPS_ACROSS * WARP_ROWS + lane / 4;  // this thread's first element of the tile
    const int col = warp % WARPS_ACROSS * WARP_COLS + 2 * (lane % 4);

    for (int k = 0, j0 = first; k < SPAN && j0 < j_end; ++k, j0 += TILE_COLS) {
        for (int e = threadIdx.x; e < TILE_ROWS / 16 * TILE_COLS; e += THREADS) {
            const Slot slot = slot_in_panel(layout, panel, i0 + e / TILE_COLS * 16, j0 + e % TILE_COLS);
            table[e / TILE_COLS][e % TILE_COLS] = 2 * slot.offset + (slot.sign < 0.0f);
        }
        float sum[WARP_GROUPS][2 * WARP_PAIRS][4] = {};
        if (gy_across == 1 && x_across == 1) {
            outer_product<false, false>(sum, stages, x_dn, x_down, gy_mn, gy_down, n, i0, i_end, j0, j_end);
        } else if (gy_across == 1) {
            outer_product<false, true>(sum, stages, x_dn, x_across, gy_mn, gy_down, n, i0, i_end, j0, j_end);
        } else if (x_across == 1) {
            outer_product<true, false>(sum, stages, x_dn, x_down, gy_mn, gy_across, n, i0, i_end, j0, j_end);
        } else {
            outer_product<true, true>(sum, stages, x_dn, x_across, gy_mn, gy_across, n, i0, i_end, j0, j_end);
        }
#pragma unroll
        for (int g = 0; g < WARP_GROUPS; ++g) {
#pragma unroll
            for (int c = 0; c < 2 * WARP_PAIRS; ++c) {
#pragma unroll
                for (int r = 0; r < 4; ++r) {
                    const int i = row + 16 * g + r / 2 * 8, j = col + 8 * c + r % 2;
                    if (i0 + i >= i_end || j0 + j >= j_end) continue;
                    const unsigned entry = table[i / 16][j];
                    atomicAdd(&bucket_sum[entry / 2 + i % 16], entry % 2 ? -sum[g][c][r] : sum[g][c][r]);
                }
            }
        }
        __syncthreads();  // nobody reads the table any more; all sums are complete
    }
    for (int k = threadIdx.x; k < panel.buckets; k += THREADS) atomicAdd(&gw_k[panel.base + k], bucket_sum[k]);
}
