// 8 sketch, second half, on tensor cores: y_I = C_I z_I, float16 with float32 sums.
//
// Who computes what: a block makes 64 * UNITS * GROUPS outputs of one strip for TILE_N columns, 64 * UNITS a warpgroup. It
// walks the bins, TILE_K of one panel a stage: rows of z arrive by cp.async, STAGES stages under way. The codebook is not
// copied window by window: the panel's slice of w is in shared memory once, as it lies in w, and column k of C_I is
// wherever its window begins: ldmatrix gathers.
// What to see: windows that overlap cost nothing extra. z arrives in fragment order, and so the sums leave in order: what a
// lane has of four tiles is eight neighbours of a row of y, one 16-byte store.
//
// Launch: THREADS in a 1-D block; a 1-D grid: strips, tiles of columns, tiles of a strip's rows (fastest). Dynamic shared
// memory: STAGES tiles of z, `buffers` slices of slice_size halves, a window of zeros.
//     layout      where each weight is stored
//     w_k         (buckets), from a 16-byte boundary on; height and stride of the strips are multiples of 8
//     z_ikn       (strips, all_bins, n_z), n_z = n in whole 32, in fragment order
//     y_mn        (rows, pitch), C order: columns first .. first + n - 1 are written
//     n           columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
//     buffers     slices that are kept: one more than panels can begin in STAGES - 1 stages
//     slice_size  room for the largest panel's slice, a multiple of 8
#include "sketch.cuh"
#include "warpgroup.cuh"

#ifndef UNITS
#define UNITS 2
#define GROUPS 2
#define TILE_N 128
#define TILE_K 64
#define STAGES 3
#endif
#define THREADS (128 * GROUPS)
#define TILE_M (64 * UNITS * GROUPS)
#define TILE (TILE_K * ((TILE_N + 63) / 64 * 64))  // halves of a tile of z
#define PIECES (TILE_N / 8)                        // 16-byte pieces of a row
#define EACH ((TILE_K * PIECES + THREADS - 1) / THREADS)  // that a thread copies of a tile

extern "C" __global__ void __launch_bounds__(THREADS) sketch_multiply_mma(
    const Layout layout, const __half* __restrict__ w_k, const __half* __restrict__ z_ikn, const int all_bins,
    __half* __restrict__ y_mn, const long long pitch, const long long first, const int n, const int buffers,
    const int slice_size) {
    extern __shared__ __align__(1024) __half memory[];
    __half* slices = memory + STAGES * TILE;
    const int zeros = buffers * slice_size;  // where the window of zeros begins

    const int height = min(BLOCK_ROWS, layout.rows), tiles_down = (height - 1) / TILE_M + 1, tiles = (n - 1) / TILE_N + 1;
    const int m0 = blockIdx.x % tiles_down * TILE_M, s0 = blockIdx.x / tiles_down % tiles * TILE_N;
    const int strip = blockIdx.x / tiles_down / tiles, i0 = strip * height, rows = min(layout.rows - i0, height);
    const int across = panels_across(layout), n_z = (n + 31) / 32 * 32, width = panel_width(layout);
    for (int k = threadIdx.x; k < in_slice(layout, TILE_M) + 8; k += THREADS) slices[zeros + k] = __float2half_rn(0.0f);

    // The stages that are on their way: the panel, how many bins are left of it, its slice, this thread's place in z.
    const int bins = bins_in_panel(layout, strip, 0), bins_last = bins_in_panel(layout, strip, across - 1);
    const int piece = threadIdx.x % PIECES * 8, k_first = threadIdx.x / PIECES;
    const bool inside = s0 + piece < n_z;
    const __half* from = z_ikn + ((long long)strip * all_bins + k_first) * n_z + s0 + piece;
    int ahead = 0, ahead_left = across == 1 ? bins_last : bins, ahead_slice = 0;
    bool begins = true;
    auto load = [&](int stage) {
        if (ahead < across) {
            if (begins) {
                const Panel panel = panel_of(layout, i0, ahead * width);
                for (int k = threadIdx.x * 8; k < panel.buckets; k += THREADS * 8) {
                    cp_async<16>(&slices[ahead_slice + in_slice(layout, k)], &w_k[panel.base + k]);
                }
            }
#pragma unroll
            for (int e = 0; e < EACH; ++e) {
                const int k = k_first + e * (THREADS / PIECES);
                if (EACH * THREADS == TILE_K * PIECES || k < TILE_K) {
                    const bool exists = inside && k < ahead_left;
                    cp_async<16>(
                        &memory[stage * TILE + swizzled(k, piece, TILE_K)],
                        exists ? from + (long long)e * (THREADS / PIECES) * n_z : z_ikn, exists ? 16 : 0);
                }
            }
            begins = ahead_left <= TILE_K;
            from += (long long)min(TILE_K, ahead_left) * n_z;
            ahead_left -= TILE_K;
            if (begins) {
                ++ahead;
                ahead_left = ahead == across - 1 ? bins_last : bins;
                ahead_slice = ahead_slice + slice_size == zeros ? 0 : ahead_slice + slice_size;
            }
        }
        cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) load(i);

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp_m = warp / 4 * (64 * UNITS) + warp % 4 * 16;  // and 64 further for each unit
    const int k_lane = lane % 8 + lane / 16 * 8, m_lane = warp_m + lane / 8 % 2 * 8;  // ldmatrix with .trans: a row is a bin
    float sum[UNITS][TILE_N / 8][4] = {};
    int stage = 0, next = STAGES - 1, slice = 0;
    for (int c = 0; c < across; ++c) {
        const int here = c == across - 1 ? bins_last : bins;
        for (int bin0 = 0; bin0 < here; bin0 += TILE_K) {
            cp_async_wait<STAGES - 2>();
            tile_written();
            __syncthreads();  // the stage is complete, and nobody reads the one before any more
            load(next);
            unsigned a[TILE_K / 16][UNITS][4];
#pragma unroll
            for (int k = 0; k < TILE_K / 16; ++k) {
                const int bin = bin0 + 16 * k + k_lane;
                const __half* window = slices + (bin < here ? slice + in_slice(layout, m0 + bin * STRIDE) : zeros);
#pragma unroll
                for (int u = 0; u < UNITS; ++u) {
                    const int m = m_lane + 64 * u;
                    const bool exists = BLOCK_ROWS % TILE_M == 0 || m0 + m < height;
                    ldmatrix_x4_trans(a[k][u], exists ? window + in_slice(layout, m) : slices + zeros);
                }
            }
            warpgroup_product<true>(sum, a, memory + stage * TILE, 0, 0, TILE_K);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        slice = slice + slice_size == zeros ? 0 : slice + slice_size;
    }

#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int m = m0 + warp_m + 64 * u + g + 8 * e;
            __half* to = &y_mn[(i0 + m) * pitch + first + s0 + 8 * t];
#pragma unroll
            for (int j = 0; j < TILE_N / 8; j += 4) {
                if (m < rows && s0 + 8 * j + 8 * t < n) put_fragments(to + 8 * j, sum[u], j, e);
            }
        }
    }
}
