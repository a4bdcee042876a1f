// 8 sketch, the weights' gradient, on tensor cores: G_I = z_I gy_I^T, and every bucket adds up what its windows say.
// float16 with float32 sums.
//
// Who computes what: a block owns a panel. For every strip of the panel, TILE_M = 64 * UNITS bins and TILE_N outputs at a
// time, it sums over the columns; TILE_K columns of z and gy a stage arrive by cp.async. Each of GROUPS warpgroups has
// TILE_N / GROUPS of the outputs. The tile of G is then left in shared memory, and each thread adds, for its buckets, the
// windows that hold them: a panel's buckets belong to nobody else, so there are no atomics, and one order.
// What to see: z is in fragment order and gy is not: a lane finds what it has to hand the tensor core of 32 columns of a row
// of z side by side, in one 16-byte read.
//
// Launch: THREADS in a 1-D block; a 1-D grid of panels, row by row. Dynamic shared memory: STAGES pairs of tiles, or the
// tile of G, [TILE_M][TILE_N + 8] floats, if that is more.
//     layout  where each weight is stored
//     z_ikn   (strips, all_bins, n_z), n_z = n in whole 32, in fragment order
//     gy_mn   (rows, pitch), C order; columns first .. first + n - 1 are meant
//     gw_k    (buckets) float32: added to
//     n       columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
#include "sketch.cuh"
#include "warpgroup.cuh"

#ifndef UNITS
#define UNITS 2
#define GROUPS 2
#define TILE_N 256
#define STAGES 3
#endif
#define TILE_M (64 * UNITS)
#define TILE_K 64
#define THREADS (128 * GROUPS)
#define GROUP_N (TILE_N / GROUPS)
#define PITCH (TILE_N + 8)
#define Z_EACH (TILE_M * 8 / THREADS)  // 16-byte pieces of a tile of z that a thread copies
#define GY_EACH ((TILE_N * 8 + THREADS - 1) / THREADS)

extern "C" __global__ void __launch_bounds__(THREADS) sketch_outer_mma(
    const Layout layout, const __half* __restrict__ z_ikn, const int all_bins, const __half* __restrict__ gy_mn,
    const long long pitch, const long long first, float* __restrict__ gw_k, const int n) {
    extern __shared__ __align__(1024) __half memory[];
    __half* gy_tile = memory;                              // [stage][output][TILE_K], swizzled
    __half* z_tile = memory + STAGES * TILE_N * TILE_K;    // [stage][bin][TILE_K], halves of odd rows swapped
    float* g_tile = reinterpret_cast<float*>(memory);      // [TILE_M][PITCH], in the end

    const int across = panels_across(layout), c = blockIdx.x % across, n_z = (n + 31) / 32 * 32;
    const int height = min(BLOCK_ROWS, layout.rows);
    const int in_panel = PANEL_ROWS == WHOLE ? strip_count(layout) : PANEL_ROWS / BLOCK_ROWS;  // strips
    const int strip_first = blockIdx.x / across * in_panel;
    const int strip_last = min(strip_first + in_panel, strip_count(layout));
    const int bins = bins_in_panel(layout, strip_first, c), tiles_m = (bins - 1) / TILE_M + 1;
    const int tiles_n = (height - 1) / TILE_N + 1;
    const Panel panel = panel_of(layout, strip_first * height, c * panel_width(layout));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int group_n = warp / 4 * GROUP_N, warp_m = warp % 4 * 16;  // and 64 further for each unit
    const int row = threadIdx.x / 8, piece = threadIdx.x % 8 * 8;    // this thread's first piece of a tile

    for (int task = 0; task < (strip_last - strip_first) * tiles_m * tiles_n; ++task) {
        const int bin0 = task % tiles_m * TILE_M, m0 = task / tiles_m % tiles_n * TILE_N;
        const int strip = strip_first + task / tiles_m / tiles_n, i0 = strip * height;
        const int bins_left = bins - bin0 - row, rows_left = min(layout.rows - i0, height) - m0 - row;
        const __half* z = z_ikn + ((long long)strip * all_bins + bins_before(layout, strip, c) + bin0 + row) * n_z + piece;
        const __half* gy = gy_mn + (i0 + m0 + row) * pitch + first + piece;

        auto load = [&](int stage, int s0) {
            if (s0 < n_z) {
#pragma unroll
                for (int e = 0; e < Z_EACH; ++e) {
                    const int r = row + e * (THREADS / 8);
                    const bool inside = e * (THREADS / 8) < bins_left && s0 + piece < n_z;
                    cp_async<16>(
                        &z_tile[(stage * TILE_M + r) * TILE_K + (piece ^ r % 2 * 32)],
                        inside ? z + (long long)e * (THREADS / 8) * n_z + s0 : z_ikn, inside ? 16 : 0);
                }
#pragma unroll
                for (int e = 0; e < GY_EACH; ++e) {
                    const int r = row + e * (THREADS / 8);
                    const bool inside = e * (THREADS / 8) < rows_left && s0 + piece < n;
                    if (TILE_N * 8 % THREADS == 0 || r < TILE_N) {
                        cp_async<16>(
                            &gy_tile[stage * TILE_N * TILE_K + swizzled(r, piece, TILE_N)],
                            inside ? gy + e * (THREADS / 8) * pitch + s0 : gy_mn, inside ? 16 : 0);
                    }
                }
            }
            cp_async_commit();
        };
        float sum[UNITS][GROUP_N / 8][4] = {};
#pragma unroll
        for (int i = 0; i < STAGES - 1; ++i) load(i, i * TILE_K);
        int stage = 0, next = STAGES - 1;
        for (int s0 = 0; s0 < n_z; s0 += TILE_K) {
            cp_async_wait<STAGES - 2>();
            tile_written();
            __syncthreads();  // the stage is complete, and nobody reads the one before any more
            load(next, s0 + (STAGES - 1) * TILE_K);
            // 16 bytes of row m hold columns 2 t, 2 t + 1 of four times eight columns: two steps' worth.
            unsigned a[TILE_K / 16][UNITS][4];
#pragma unroll
            for (int u = 0; u < UNITS; ++u) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int m = warp_m + 64 * u + g + 8 * e;
                        const uint4 four = *reinterpret_cast<const uint4*>(
                            &z_tile[(stage * TILE_M + m) * TILE_K + ((32 * half + 8 * t) ^ m % 2 * 32)]);
                        a[2 * half][u][e] = four.x, a[2 * half][u][2 + e] = four.y;
                        a[2 * half + 1][u][e] = four.z, a[2 * half + 1][u][2 + e] = four.w;
                    }
                }
            }
            warpgroup_product<false>(sum, a, gy_tile + stage * TILE_N * TILE_K, 0, group_n, TILE_N);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        cp_async_wait<0>();
        __syncthreads();  // the tiles are done with: their memory takes G
#pragma unroll
        for (int u = 0; u < UNITS; ++u) {
#pragma unroll
            for (int j = 0; j < GROUP_N / 8; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float* to = &g_tile[(warp_m + 64 * u + g + 8 * e) * PITCH + group_n + 8 * j + 2 * t];
                    *reinterpret_cast<float2*>(to) = make_float2(sum[u][j][2 * e], sum[u][j][2 * e + 1]);
                }
            }
        }
        __syncthreads();  // G is complete

        // Bucket b lies in the window of bin k at output b - k STRIDE. The tile has bins bin0 .. and outputs m0 ..
        const int bin_end = min(bin0 + TILE_M, bins), m_end = min(m0 + TILE_N, height);
        const int b_end = (bin_end - 1) * STRIDE + m_end;
        for (int b0 = bin0 * STRIDE + m0 + threadIdx.x; b0 < b_end; b0 += 8 * THREADS) {
            float all[8];  // eight reads of gw are on their way while windows are added
#pragma unroll
            for (int q = 0; q < 8; ++q) all[q] = b0 + q * THREADS < b_end ? gw_k[panel.base + b0 + q * THREADS] : 0.0f;
#pragma unroll
            for (int q = 0; q < 8; ++q) {
                const int b = b0 + q * THREADS;
                const int k_first = max(bin0, b < m_end ? 0 : (b - m_end) / STRIDE + 1);
                const int k_last = min(bin_end - 1, (b - m0) / STRIDE);
                for (int k = k_first; k <= k_last; ++k) all[q] += g_tile[(k - bin0) * PITCH + b - k * STRIDE - m0];
            }
#pragma unroll
            for (int q = 0; q < 8; ++q) {
                if (b0 + q * THREADS < b_end) gw_k[panel.base + b0 + q * THREADS] = all[q];
            }
        }
        __syncthreads();  // nobody reads G any more
    }
}
