// 8 sketch, first half, float32: z = S x. For every strip, the inputs are added up, with their signs, in the bins that the
// hash chose. No weight is read and nothing is multiplied.
//
// Who computes what: a block owns one panel's inputs and SAMPLES columns of x, 128 bytes a row, and copies that tile into
// shared memory. Eight lanes read one row of the tile in one go, 16 bytes each: a *team*, four in a warp. A team walks
// the list of a strip's bins (sketch.cuh): it adds the rows of GROUP entries, and when a list ends writes the bin and
// begins the next. The strips of a block go round its teams; if there are more teams than strips, several share one
// strip and each takes a part of its bins.
// What to see: the gather is from shared memory, and a team's 128 bytes lie on all 32 banks, whichever row it reads: no
// conflicts, ever.
//
// Launch: 32 * WARPS threads in a 1-D block; a 1-D grid: groups of strips, panels, tiles of columns (fastest). Dynamic
// shared memory: (inputs of the widest panel + 1) * 128 bytes.
//     layout    where each weight is stored
//     starts, entries, bins, capacity   the lists, as sketch_lists wrote them
//     x_dn      (cols, pitch), C order; columns first .. first + n - 1 are meant
//     z_ikn     (strips, all_bins, n): written for the bins that a strip has
//     n         columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
//     group     strips a block, a power of two
#include "ptx.cuh"
#include "sketch.cuh"

#ifndef WARPS
#define WARPS 8
#endif
#define TEAMS (4 * WARPS)

extern "C" __global__ void __launch_bounds__(32 * WARPS) sketch_sum(
    const Layout layout, const unsigned short* __restrict__ starts, const unsigned short* __restrict__ entries,
    const int bins, const int capacity, const WEIGHT* __restrict__ x_dn, const long long pitch, const long long first,
    WEIGHT* __restrict__ z_ikn, const int all_bins, const int n, const int group) {
    extern __shared__ __align__(16) unsigned char memory[];
    WEIGHT* tile = reinterpret_cast<WEIGHT*>(memory);  // [input][SAMPLES], and a row of zeros

    const int strips = strip_count(layout), across = panels_across(layout), tiles = (n - 1) / SAMPLES + 1;
    const int s0 = blockIdx.x % tiles * SAMPLES, c = blockIdx.x / tiles % across;
    const int first_strip = blockIdx.x / tiles / across * group;
    const int left = c * panel_width(layout), width = min(panel_width(layout), layout.cols - left);

    for (int e = threadIdx.x; e < (width + 1) * 8; e += 32 * WARPS) {
        const int k = e / 8, s = s0 + e % 8 * VECTOR;
        const bool inside = k < width && s < n;
        cp_async<16>(&tile[e * VECTOR], inside ? &x_dn[(left + k) * pitch + first + s] : x_dn, inside ? 16 : 0);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the tile is complete

    const int team = threadIdx.x / 8, s = threadIdx.x % 8 * VECTOR;
    const int parts = max(1, TEAMS / group);  // teams that share a strip
    for (int i = team / parts; i < group && first_strip + i < strips; i += TEAMS / parts) {
        const int strip = first_strip + i, here = bins_in_panel(layout, strip, c), part = team % parts;
        int bin = (long long)here * part / parts;
        const int end = (long long)here * (part + 1) / parts;
        if (bin == end) continue;
        const long long place = (long long)strip * across + c;
        const unsigned short* start = starts + place * (bins + 1);
        const uint2* list = reinterpret_cast<const uint2*>(entries + place * capacity) + start[bin];
        WEIGHT* to = z_ikn + ((long long)strip * all_bins + bins_before(layout, strip, c) + bin) * n + s0 + s;

        float sum[VECTOR] = {};
        uint2 next = *list;
        while (bin < end) {
            const uint2 now = next;
            next = *++list;  // at the very end one group too many is read: capacity has room for it
            const unsigned entry[GROUP] = {now.x, now.x >> 16, now.y, now.y >> 16};
            const WEIGHT* row[GROUP];
            unsigned minus[GROUP];
#pragma unroll
            for (int e = 0; e < GROUP; ++e) row[e] = tile + (entry[e] & ENTRY_INPUT) * SAMPLES + s, minus[e] = entry[e] >> 15;
            add_rows(sum, row, minus);
            if (now.y & ENTRY_LAST << 16) {
                if (s0 + s < n) put(reinterpret_cast<Vector*>(to), sum);
#pragma unroll
                for (int q = 0; q < VECTOR; ++q) sum[q] = 0.0f;
                to += n;
                ++bin;
            }
        }
    }
}
