// 8 sketch, back: gx = S^T u. Every input takes, from each strip, the bin that the hash chose, with its sign.
//
// Who computes what: a block owns INPUTS inputs of one panel and a tile of columns, 128 bytes a row. It walks the strips,
// STRIPS at a time: copies their bins of this panel into shared memory, the next ones while these are read; and every team
// of eight lanes adds, for each of its inputs, one row a strip. The sums stay in registers from the first strip to the
// last.
// What to see: z = S x adds many rows into one bin and needs lists; S^T u looks one row up for each input and strip, so
// that the hash itself says where. Each lane of a team hashes another strip, and the team passes the results around. A
// team's 128 bytes lie on all 32 banks, whichever row it reads: no conflicts, ever.
//
// Launch: 32 * WARPS threads in a 1-D block; a 1-D grid: tiles of a panel's inputs, panels, tiles of columns (fastest).
// Dynamic shared memory: 2 * STRIPS * bins * 128 bytes.
//     layout    where each weight is stored
//     bins      most bins of a panel
//     u_ikn     (strips, all_bins, n_u): float16: n_u = n in whole 32, in fragment order; float32: n_u = n
//     gx_dn     (cols, pitch), C order: columns first .. first + n - 1 are written
//     n         columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
#include "ptx.cuh"
#include "sketch.cuh"

#ifndef WARPS
#define WARPS 8
#define INPUTS 224
#define STRIPS 4
#endif
#define TEAMS (4 * WARPS)
#define EACH (INPUTS / TEAMS)  // inputs a team

// A lane's sums into a row of gx, from the tile's first column on; n columns are left. float16: out of fragment order.
__device__ __forceinline__ void put_row(WEIGHT* to, const float (&sum)[VECTOR], int lane, int n) {
    if (VECTOR == 4) {
        if (4 * lane < n) put(reinterpret_cast<Vector*>(to + 4 * lane), sum);
        return;
    }
#pragma unroll
    for (int j = 0; j < VECTOR / 2; ++j) {
        const int s = lane / 4 * 32 + 8 * j + 2 * (lane % 4);
        if (s < n) put(to + s, sum[2 * j]), put(to + s + 1, sum[2 * j + 1]);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) sketch_spread(
    const Layout layout, const int bins, const WEIGHT* __restrict__ u_ikn, const int all_bins,
    WEIGHT* __restrict__ gx_dn, const long long pitch, const long long first, const int n) {
    extern __shared__ __align__(128) unsigned char memory[];
    WEIGHT* tile = reinterpret_cast<WEIGHT*>(memory);  // [two buffers][strip][bin][SAMPLES]

    const int strips = strip_count(layout), across = panels_across(layout), tiles = (n - 1) / SAMPLES + 1;
    const int s0 = blockIdx.x % tiles * SAMPLES, c = blockIdx.x / tiles % across;
    const int left = c * panel_width(layout), right = min(panel_width(layout), layout.cols - left) + left;
    const int team = threadIdx.x / 8, lane = threadIdx.x % 8;
    const int j0 = left + blockIdx.x / tiles / across * INPUTS + team;  // the team's inputs: j0, j0 + TEAMS, ...
    const int n_u = VECTOR == 8 ? (n + 31) / 32 * 32 : n;

    auto load = [&](int buffer, int top) {
        for (int i = 0; i < min(STRIPS, strips - top); ++i) {
            const int here = bins_in_panel(layout, top + i, c);
            const WEIGHT* from = u_ikn + ((long long)(top + i) * all_bins + bins_before(layout, top + i, c)) * n_u + s0;
            WEIGHT* to = tile + (buffer * STRIPS + i) * bins * SAMPLES;
            for (int e = threadIdx.x; e < here * 8; e += 32 * WARPS) {
                const bool inside = s0 + e % 8 * VECTOR < n_u;
                cp_async<16>(&to[e * VECTOR], inside ? &from[(long long)(e / 8) * n_u + e % 8 * VECTOR] : u_ikn, inside ? 16 : 0);
            }
        }
        cp_async_commit();
    };

    float sum[EACH][VECTOR] = {};
    unsigned code[EACH];  // bin << 1 | minus
    load(0, 0);
    int buffer = 0;
    for (int top = 0; top < strips; top += STRIPS) {
        load(buffer ^ 1, top + STRIPS);
        // Every eight strips: lane i of a team hashes strip top + i for each of the team's inputs.
        const int count = min(STRIPS, strips - top);
        if (top % 8 == 0) {
            const int mine = min(top + lane, strips - 1);
            const unsigned here = bins_in_panel(layout, mine, c);
#pragma unroll
            for (int q = 0; q < EACH; ++q) {
                const unsigned h = hash_block(layout, mine, min(j0 + q * TEAMS, right - 1));
                code[q] = (unsigned)((unsigned long long)h * here >> 32) << 1 | (h & 1);
            }
        }
        cp_async_wait<1>();
        __syncthreads();  // these strips' bins are complete

#pragma unroll
        for (int q = 0; q < EACH; ++q) {
#pragma unroll
            for (int i = 0; i < STRIPS; i += 4) {
                const WEIGHT* from = tile + ((buffer * STRIPS + i) * bins) * SAMPLES + lane * VECTOR;
                if (i + 4 <= count) {
                    const WEIGHT* row[4];
                    unsigned minus[4];
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        minus[e] = __shfl_sync(~0u, code[q], top % 8 + i + e, 8);
                        row[e] = from + (e * bins + (minus[e] >> 1)) * SAMPLES;
                    }
                    add_rows(sum[q], row, minus);
                } else {
                    for (int e = 0; e < count - i; ++e) {
                        const unsigned minus[1] = {__shfl_sync(~0u, code[q], top % 8 + i + e, 8)};
                        const WEIGHT* row[1] = {from + (e * bins + (minus[0] >> 1)) * SAMPLES};
                        add_rows(sum[q], row, minus);
                    }
                }
            }
        }
        __syncthreads();  // nobody reads them any more
        buffer ^= 1;
    }

#pragma unroll
    for (int q = 0; q < EACH; ++q) {
        const int j = j0 + q * TEAMS;
        if (j < right) put_row(&gx_dn[j * pitch + first + s0], sum[q], lane, n - s0);
    }
}
