// 8 sketch, back, first half, on tensor cores: u_I = C_I^T gy_I, float16 with float32 sums.
//
// Who computes what: a block keeps one strip's gy for TILE_N columns in shared memory and walks its part of the panels,
// with the next slice of w on its way. Each of GROUPS warpgroups has TILE_N / GROUPS of the columns. 64 * UNITS bins at a
// time: the window of a bin is a row of C_I^T, and ldmatrix gathers eight of them from the slice, wherever they begin.
// What to see: gy is read once and every slice once; in the inner loop nothing comes from global memory. u is left in
// fragment order, in 16-byte stores.
//
// Launch: THREADS in a 1-D block; a 1-D grid: strips, tiles of columns, parts of the panels (fastest). Dynamic shared
// memory: a tile of gy, [height in whole 64][TILE_N in whole 64] halves; two slices of slice_size, a window of zeros.
//     layout      where each weight is stored
//     w_k         (buckets), from a 16-byte boundary on; height and stride of the strips are multiples of 8
//     gy_mn       (rows, pitch), C order; columns first .. first + n - 1 are meant
//     u_ikn       (strips, all_bins, n_z), n_z = n in whole 32, in fragment order: written for the bins that a strip has
//     n           columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
//     parts       blocks that share the panels
//     slice_size  room for the largest panel's slice, a multiple of 8
#include "sketch.cuh"
#include "warpgroup.cuh"

#ifndef UNITS
#define UNITS 2
#define GROUPS 2
#define TILE_N 256
#endif
#define THREADS (128 * GROUPS)
#define GROUP_N (TILE_N / GROUPS)
#define TILE_M (64 * UNITS)
#define TILE_K 64

extern "C" __global__ void __launch_bounds__(THREADS) sketch_project_mma(
    const Layout layout, const __half* __restrict__ w_k, const __half* __restrict__ gy_mn, const long long pitch,
    const long long first, __half* __restrict__ u_ikn, const int all_bins, const int n, const int parts,
    const int slice_size) {
    extern __shared__ __align__(1024) __half memory[];
    const int height = min(BLOCK_ROWS, layout.rows), depth = (height + TILE_K - 1) / TILE_K * TILE_K;
    __half* slices = memory + depth * ((TILE_N + 63) / 64 * 64);
    const int zeros = 2 * slice_size;  // where the window of zeros begins

    const int across = panels_across(layout), tiles = (n - 1) / TILE_N + 1, n_z = (n + 31) / 32 * 32;
    const int part = blockIdx.x % parts, s0 = blockIdx.x / parts % tiles * TILE_N;
    const int strip = blockIdx.x / parts / tiles, i0 = strip * height, rows = min(layout.rows - i0, height);
    const int c_first = (long long)across * part / parts, c_last = (long long)across * (part + 1) / parts;

    auto load_slice = [&](int c) {
        if (c < c_last) {
            const Panel panel = panel_of(layout, i0, c * panel_width(layout));
            __half* slice = slices + c % 2 * slice_size;
            for (int k = threadIdx.x * 8; k < panel.buckets; k += THREADS * 8) {
                cp_async<16>(&slice[in_slice(layout, k)], &w_k[panel.base + k]);
            }
        }
        cp_async_commit();
    };
    for (int k = threadIdx.x; k < in_slice(layout, depth) + 8; k += THREADS) slices[zeros + k] = __float2half_rn(0.0f);
    for (int e = threadIdx.x; e < depth * (TILE_N / 8); e += THREADS) {
        const int m = e / (TILE_N / 8), s = e % (TILE_N / 8) * 8;
        const bool inside = m < rows && s0 + s < n;
        cp_async<16>(
            &memory[swizzled(m, s, depth)], inside ? &gy_mn[(i0 + m) * pitch + first + s0 + s] : gy_mn, inside ? 16 : 0);
    }
    load_slice(c_first);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int group_n = warp / 4 * GROUP_N, warp_m = warp % 4 * 16;  // and 64 further for each unit
    for (int c = c_first; c < c_last; ++c) {
        __syncthreads();  // nobody reads the slice that the next one replaces
        load_slice(c + 1);
        cp_async_wait<1>();
        tile_written();
        __syncthreads();  // this panel's slice is complete, and so is gy

        const int bins = bins_in_panel(layout, strip, c), slice = c % 2 * slice_size;
        __half* u_kn = u_ikn + ((long long)strip * all_bins + bins_before(layout, strip, c)) * n_z + s0 + group_n + 8 * t;
        for (int bin0 = 0; bin0 < bins; bin0 += TILE_M) {
            const __half* window[UNITS];  // this lane's row of each matrix of 16 bins
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
                const int bin = bin0 + warp_m + 64 * u + lane % 16;
                window[u] = slices + (bin < bins ? slice + in_slice(layout, bin * STRIDE) : zeros);
            }
            float sum[UNITS][GROUP_N / 8][4] = {};
            for (int k0 = 0; k0 < depth; k0 += TILE_K) {
                unsigned a[TILE_K / 16][UNITS][4];
#pragma unroll
                for (int k = 0; k < TILE_K / 16; ++k) {
                    // Beyond the height gy is 0, but the slice may end.
                    const int m = k0 + 16 * k + lane / 16 * 8;
                    const bool exists = BLOCK_ROWS % TILE_K == 0 || m < height;
#pragma unroll
                    for (int u = 0; u < UNITS; ++u) {
                        ldmatrix_x4(a[k][u], exists ? window[u] + in_slice(layout, m) : slices + zeros);
                    }
                }
                warpgroup_product<true>(sum, a, memory, k0, group_n, depth);
            }
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int bin = bin0 + warp_m + 64 * u + g + 8 * e;
#pragma unroll
                    for (int j = 0; j < GROUP_N / 8; j += 4) {
                        if (bin < bins && s0 + group_n + 8 * j < n_z) {
                            put_fragments(&u_kn[(long long)bin * n_z + 8 * j], sum[u], j, e);
                        }
                    }
                }
            }
        }
    }
}
