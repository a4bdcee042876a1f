// 8 sketch, back, both halves in one kernel: gx = sum over I of S_I^T (C_I^T gy_I), float16 with float32 sums. u_I = C_I^T gy_I
// never leaves the chip.
//
// Who computes what: a block makes gx for the inputs of one panel and 64 columns, then for the next such tile, and so on:
// each time it walks all strips. Two warpgroups *project*, each every other strip: they multiply as in
// sketch_project_mma.cu, and leave u in shared memory. The other eight warps *spread* four strips at a time, as in
// sketch_spread.cu, while the next four are projected: half of the inputs while two are. They also copy what is projected
// next: gy, and slices of w.
// What to see: all warps meet once for two strips. The sums of a whole tile of gx stay in registers, so those that spread
// take some from those that project. The products of a block's next tile begin while the last strips of this one are
// spread.
//
// Launch: 512 threads in a 1-D block; a 1-D grid of any size up to the number of tiles (tiles of columns are fastest).
// Dynamic shared memory: four tiles of gy, [64 * UNITS][64] halves; u of two times four strips, [64 bins][64]; four slices
// of slice_size; a window of zeros.
//     layout      where each weight is stored; height and stride of the strips are multiples of 8; at most 64 bins a panel
//     w_k         (buckets), from a 16-byte boundary on
//     gy_mn       (rows, pitch), C order; columns first .. first + n - 1 are meant
//     gx_dn       (cols, pitch), C order: the same columns are written
//     n           columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
//     slice_size  room for the largest panel's slice, a multiple of 8
#include "sketch.cuh"
#include "warpgroup.cuh"

#ifndef UNITS
#define UNITS 4     // of 64 outputs, at least a strip's
#define INPUTS 416  // at least those of the widest panel
#endif
#define GROUPS 2               // warpgroups that project
#define PROJECTORS 128         // threads of one
#define THREADS (4 * PROJECTORS)
#define TEAMS 32               // of eight lanes, among those that spread
#define EACH (INPUTS / TEAMS)  // inputs a team
#define STRIPS 4               // spread together
#define STEPS (STRIPS / GROUPS)
#define BINS 64
#define DEPTH (64 * UNITS)
#define PROJECT_REGISTERS 96
#define SPREAD_REGISTERS 160

extern "C" __global__ void __launch_bounds__(THREADS, 1) sketch_back_mma(
    const Layout layout, const __half* __restrict__ w_k, const __half* __restrict__ gy_mn, const long long pitch,
    const long long first, __half* __restrict__ gx_dn, const int n, const int slice_size) {
    extern __shared__ __align__(1024) __half memory[];
    const int strips = strip_count(layout), steps = (strips + STRIPS - 1) / STRIPS * STEPS;  // of a tile
    const int columns = (n - 1) / 64 + 1, tiles = columns * panels_across(layout);
    const int own = (tiles - 1 - (int)blockIdx.x) / (int)gridDim.x + 1, all = own * steps;
    __half* gy_tiles = memory;                              // [two stages][warpgroup][output][64], swizzled
    __half* u_tiles = gy_tiles + 2 * GROUPS * DEPTH * 64;   // [two buffers][strip][bin][64], in fragment order; an odd bin's halves change places
    __half* slices = u_tiles + 2 * STRIPS * BINS * 64;      // [stage][warpgroup]
    __half* zeros = slices + 2 * GROUPS * slice_size;
    for (int k = threadIdx.x; k < in_slice(layout, DEPTH) + 8; k += THREADS) zeros[k] = __float2half_rn(0.0f);
    __syncthreads();

    if (threadIdx.x < GROUPS * PROJECTORS) {
        release_registers<PROJECT_REGISTERS>();
        const int height = min(BLOCK_ROWS, layout.rows), group = threadIdx.x / PROJECTORS, thread = threadIdx.x % PROJECTORS;
        const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, bin0 = thread / 32 * 16;
        for (int step = 0; step < all; ++step) {
            block_barrier<THREADS>();  // this step's strips are there, and the u of the step before is complete
            const int tile = blockIdx.x + step / steps * gridDim.x, strip = step % steps * GROUPS + group;
            const int stage = step % 2 * GROUPS + group;
            if (strip < strips) {
                const int bin = bin0 + lane % 16;
                const bool is_bin = bin < bins_in_panel(layout, strip, tile / columns);
                const __half* slice = slices + stage * slice_size;
                const __half* window = is_bin ? slice + in_slice(layout, bin * STRIDE) : zeros;
                float sum[1][8][4] = {};
                unsigned a[2][4][1][4];
#pragma unroll
                for (int u = 0; u < UNITS; ++u) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        // Beyond the height gy is 0, but the slice may end.
                        const int m = 64 * u + 16 * k + lane / 16 * 8;
                        const bool exists = BLOCK_ROWS % DEPTH == 0 || m < height;
                        ldmatrix_x4(a[u % 2][k][0], exists ? window + in_slice(layout, m) : zeros);
                    }
                    warpgroup_begin<true>(sum, a[u % 2], gy_tiles + stage * DEPTH * 64, 64 * u, 0, DEPTH);
                    warpgroup_wait<1>();  // the unit before is done with its registers
                }
                warpgroup_wait<0>();
                __half* tile_u = u_tiles + (step * GROUPS + group) % (2 * STRIPS) * BINS * 64;
#pragma unroll
                for (int e = 0; e < 2; ++e) {
#pragma unroll
                    for (int j = 0; j < 8; j += 4) {
                        put_fragments(&tile_u[(bin0 + g + 8 * e) * 64 + (8 * j + 8 * t ^ g % 2 * 32)], sum[0], j, e);
                    }
                }
            }
        }
        for (int i = 0; i < STEPS; ++i) block_barrier<THREADS>();  // while the last strips are spread
        return;
    }

    // spread
    take_registers<SPREAD_REGISTERS>();
    const int team = (threadIdx.x - GROUPS * PROJECTORS) / 8, lane = threadIdx.x % 8, width = panel_width(layout);
    auto load = [&](int step) {  // a row of gy a team
        const int tile = blockIdx.x + step / steps * gridDim.x, s = tile % columns * 64 + lane * 8;
        if (step < all) {
#pragma unroll
            for (int i = 0; i < GROUPS; ++i) {
                const int strip = step % steps * GROUPS + i, i0 = strip * BLOCK_ROWS, stage = step % 2 * GROUPS + i;
                if (strip >= strips) break;
                const int rows = s < n ? min(layout.rows - i0, BLOCK_ROWS) : 0;
                const __half* from = gy_mn + (long long)(i0 + team) * pitch + first + s;
                __half* to = gy_tiles + (stage * DEPTH + team) * 64 + ((lane ^ team) % 8) * 8;
#pragma unroll
                for (int m = 0; m < DEPTH; m += TEAMS) {
                    const bool exists = team + m < rows;
                    cp_async<16>(to + m * 64, exists ? from : gy_mn, exists ? 16 : 0);
                    from += TEAMS * pitch;
                }
                const Panel panel = panel_of(layout, i0, tile / columns * width);
                __half* slice = slices + stage * slice_size;
                for (int k = (8 * team + lane) * 8; k < panel.buckets; k += TEAMS * 64) {
                    cp_async<16>(&slice[in_slice(layout, k)], &w_k[panel.base + k]);
                }
            }
        }
        cp_async_commit();
    };
    auto loaded = [&]() { cp_async_wait<0>(), tile_written(); };
    load(0), loaded();
    int step = 0;
    for (; step < STEPS; ++step) {
        block_barrier<THREADS>();
        load(step + 1), loaded();
    }
    int round = 0;  // of four strips, from the block's first on
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int c = tile / columns, left = c * width, right = min(width, layout.cols - left) + left, j0 = left + team;
        float sum[EACH][8] = {};
        unsigned code[EACH];  // where the bin's row begins, | minus: lane i of a team has it for strip i of eight
        for (int top = 0; top < strips; top += STRIPS, ++round) {
            const int count = min(STRIPS, strips - top), mine = min(top + lane, strips - 1);
            const unsigned here = bins_in_panel(layout, mine, c);
            const __half* from = u_tiles + round % 2 * STRIPS * BINS * 64;
#pragma unroll
            for (int part = 0; part < STEPS; ++part) {
                block_barrier<THREADS>();  // the u of these strips is complete, and the strips of this step are there
                load(++step);
#pragma unroll
                for (int q = part; q < EACH; q += STEPS) {
                    if (top % 8 == 0) {
                        const unsigned h = hash_block(layout, mine, min(j0 + q * TEAMS, right - 1));
                        const unsigned bin = (unsigned)((unsigned long long)h * here >> 32);
                        code[q] = (bin * 64 ^ bin % 2 * 32) | (h & 1);
                    }
                    if (count == STRIPS) {
                        const __half* row[STRIPS];
                        unsigned minus[STRIPS];
#pragma unroll
                        for (int i = 0; i < STRIPS; ++i) {
                            minus[i] = __shfl_sync(~0u, code[q], top % 8 + i, 8);
                            row[i] = from + i * BINS * 64 + ((minus[i] & ~1u) ^ lane * 8);
                        }
                        add_rows(sum[q], row, minus);
                    } else {
                        for (int i = 0; i < count; ++i) {
                            const unsigned minus[1] = {__shfl_sync(~0u, code[q], top % 8 + i, 8)};
                            const __half* row[1] = {from + i * BINS * 64 + ((minus[0] & ~1u) ^ lane * 8)};
                            add_rows(sum[q], row, minus);
                        }
                    }
                }
                loaded();
            }
        }
        const int s = tile % columns * 64 + lane / 4 * 32 + lane % 4 * 2;  // out of fragment order
#pragma unroll
        for (int q = 0; q < EACH; ++q) {
            const int j = j0 + q * TEAMS;
            __half* gx = &gx_dn[j * pitch + first + s];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (j < right && s + 8 * k < n) {
                    *reinterpret_cast<__half2*>(gx + 8 * k) = __floats2half2_rn(sum[q][2 * k], sum[q][2 * k + 1]);
                }
            }
        }
    }
}
