// 8 sketch, both halves in one kernel: y_I = C_I S_I x, float16 with float32 sums. z_I = S_I x never leaves the chip, unless
// a training step asks for it.
//
// Who computes what: a block makes the outputs of GROUPS strips for 64 columns and walks the panels. Half of its warps
// *sum*: a warp has 16 bins of one strip, as in sketch_sum_mma.cu, and leaves their rows of z in shared memory.
// The others, a warpgroup a strip, *multiply*, as in sketch_multiply_mma.cu, the z of the panel before, and copy what
// comes next: STAGES tiles of x, and STAGES + 1 slices of w and lists for each strip, are in shared memory at a time.
// What to see: one barrier a panel, and between two barriers sums and products overlap; on Hopper the tensor cores run by
// themselves meanwhile. x comes once from memory for GROUPS strips. The two kinds of warps need different numbers of
// registers: on Hopper those that sum give some to those that multiply.
//
// Launch: 256 * GROUPS threads in a 1-D block; a 1-D grid: sets of GROUPS strips (fastest), tiles of columns. Dynamic
// shared memory: 2 * GROUPS tiles of z, [TILE_K][64] halves; STAGES tiles of x, [inputs of the widest panel, in whole
// eights, + 8][64]; a window of zeros; STAGES + 1 times GROUPS slices and lists.
//     layout      where each weight is stored; height and stride of the strips are multiples of 8; at most TILE_K bins a panel
//     starts, entries, groups, capacity   the lists, as sketch_groups wrote them
//     w_k         (buckets), from a 16-byte boundary on
//     x_dn        (cols, pitch), C order; columns first .. first + n - 1 are meant
//     y_mn        (rows, pitch), C order: the same columns are written
//     n           columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
//     z_ikn       (strips, all_bins, n_z), n_z = n in whole 32, in fragment order: written for the bins that a strip has;
//                 or null
//     slice_size  room for the largest panel's slice, a multiple of 8
#include "sketch.cuh"
#include "warpgroup.cuh"

#ifndef UNITS
#define UNITS 4  // of 64 rows a strip
#define GROUPS 2
#define TILE_K 64
#define STAGES 3
#endif
#define MULTIPLIERS (128 * GROUPS)  // threads; as many sum
#ifndef SUM_REGISTERS
#define SUM_REGISTERS 80  // a thread; of 65536
#endif
#define PRODUCT_REGISTERS (256 / GROUPS * 2 - SUM_REGISTERS)
#define STEPS (TILE_K / 16)         // groups of bins, and steps of the tensor cores
#define SHARERS (STEPS > 2 ? 1 : 2) // warps that share a group

extern "C" __global__ void __launch_bounds__(2 * MULTIPLIERS, 1) sketch_fused_mma(
    const Layout layout, const unsigned short* __restrict__ starts, const unsigned short* __restrict__ entries,
    const int groups, const int capacity, const __half* __restrict__ w_k, const __half* __restrict__ x_dn,
    const long long pitch, const long long first, __half* __restrict__ y_mn, const int n, __half* __restrict__ z_ikn,
    const int all_bins, const int slice_size) {
    extern __shared__ __align__(1024) __half memory[];
    const int strips = strip_count(layout), across = panels_across(layout), wide = panel_width(layout);
    const int sets = (strips - 1) / GROUPS + 1, s0 = blockIdx.x / sets * 64, strip0 = blockIdx.x % sets * GROUPS;
    const int x_rows = (wide + 7) / 8 * 8 + 8, list_size = capacity, part_size = slice_size + list_size;
    __half* z_tiles = memory;                                   // [buffer][strip][bin][64], swizzled
    __half* x_tiles = z_tiles + 2 * GROUPS * TILE_K * 64;       // [stage][input][64], swizzled; and eight rows of zeros
    __half* zeros = x_tiles + STAGES * x_rows * 64;
    __half* parts = zeros + in_slice(layout, 64 * UNITS) + 8;   // [stage][strip]: slice and lists
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int height = min(BLOCK_ROWS, layout.rows);

    if (threadIdx.x >= MULTIPLIERS) {  // sum
        release_registers<SUM_REGISTERS>();
        // A warp has 16 bins of a strip and all columns, or half of them if that keeps all warps at work.
        const int task = (threadIdx.x - MULTIPLIERS) / 32 / SHARERS, of = task / STEPS, group = task % STEPS;
        const int j0 = SHARERS == 1 ? 0 : threadIdx.x / 32 % SHARERS * (8 / SHARERS);
        const bool works = of < GROUPS && strip0 + of < strips;
        const unsigned bin0 = g * 0x08000800u, bin1 = bin0 + 0x40004000u;
        const int piece = (lane / 16 ^ lane % 8 ^ j0) * 16;  // bytes: a lane's rows have their pieces at piece ^ 32 p
        const unsigned char* bytes = reinterpret_cast<const unsigned char*>(memory);
        const unsigned short* start = starts + (works ? (long long)(strip0 + of) * across * (groups + 1) + min(group, groups - 1) : 0);
        unsigned range = start[0] | start[1] << 16;  // of steps
        block_barrier<2 * MULTIPLIERS>();  // the first panel is there
        for (int c = 0; c < across; ++c) {
            start += groups + 1;
            const unsigned range_next = works && c + 1 < across ? start[0] | start[1] << 16 : 0;
            const int bins = works ? bins_in_panel(layout, strip0 + of, c) : 0;
            int step = range & 0xffff, end = range >> 16;
            float sum[8 / SHARERS][4] = {};
            if (16 * group < bins && step < end) {
                const int tile = (int)(reinterpret_cast<unsigned char*>(x_tiles) - bytes) + c % STAGES * x_rows * 128 + piece;
                const unsigned char* list =
                    reinterpret_cast<const unsigned char*>(parts + (c % (STAGES + 1) * GROUPS + of) * part_size + slice_size);
                const unsigned char *slots = list + lane % 16 * 2, *pairs = list + t * 4;
                step *= 32, end *= 32;
                int slot = *reinterpret_cast<const unsigned short*>(slots + step);
                unsigned low = *reinterpret_cast<const unsigned*>(pairs + step);
                unsigned high = *reinterpret_cast<const unsigned*>(pairs + step + 16);
#pragma unroll 1
                for (step += 32; step <= end; step += 32) {
                    const int row = tile + (slot & 0x7ff) * 128;
                    unsigned b[4 / SHARERS][4];
#pragma unroll
                    for (int p = 0; p < 4 / SHARERS; ++p) ldmatrix_x4_trans(b[p], bytes + (row ^ 32 * p));
                    const unsigned a[4] = {select(low, bin0), select(low, bin1), select(high, bin0), select(high, bin1)};
                    if (step < end) {
                        slot = *reinterpret_cast<const unsigned short*>(slots + step);
                        low = *reinterpret_cast<const unsigned*>(pairs + step);
                        high = *reinterpret_cast<const unsigned*>(pairs + step + 16);
                    }
#pragma unroll
                    for (int p = 0; p < 4 / SHARERS; ++p) {
                        const unsigned b0[2] = {b[p][0], b[p][1]}, b1[2] = {b[p][2], b[p][3]};
                        mma_sync_m16n8k16(sum[2 * p], a, b0, sum[2 * p]);
                        mma_sync_m16n8k16(sum[2 * p + 1], a, b1, sum[2 * p + 1]);
                    }
                }
            }
            const int thread = thread_anew() - MULTIPLIERS, own = thread / 32 / SHARERS, of_own = own / STEPS;
            if (of_own < GROUPS) {
                const int strip = strip0 + of_own, n_z = (n + 31) / 32 * 32, bins_own = strip < strips ? bins_in_panel(layout, strip, c) : 0;
                __half* z = z_tiles + (c % 2 * GROUPS + of_own) * TILE_K * 64;
                const long long before = (long long)strip * all_bins + bins_before(layout, strip, c);
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const int bin = own % STEPS * 16 + thread % 32 / 4 + 8 * e;
#pragma unroll
                    for (int j = 0; j < 8 / SHARERS; j += 4) {
                        const int s = thread / 32 % SHARERS * (64 / SHARERS) + 8 * j + thread % 4 * 8;
                        put_fragments(&z[swizzled(bin, s, TILE_K)], sum, j, e);
                        if (z_ikn && bin < bins_own && s0 + s < n_z) put_fragments(&z_ikn[(before + bin) * n_z + s0 + s], sum, j, e);
                    }
                }
            }
            range = range_next;
            tile_written();
            block_barrier<2 * MULTIPLIERS>();  // this panel's z is complete, and the next panel is there
        }
        block_barrier<2 * MULTIPLIERS>();
        return;
    }

    // multiply
    take_registers<PRODUCT_REGISTERS>();
    const int k_first = threadIdx.x / 8, column = threadIdx.x % 8 * 8;
    const bool inside = s0 + column < n;
    const __half* from = x_dn + (long long)k_first * pitch + first + (inside ? s0 + column : 0);
    const int to = k_first * 64 + ((column / 8 ^ k_first) % 8) * 8;
    auto load = [&](int c) {
        if (c < across) {
            const int left = c * wide, width = min(wide, layout.cols - left);
            const __half* x = from + (long long)left * pitch;
            __half* tile = x_tiles + c % STAGES * x_rows * 64 + to;
            for (int k = k_first; k < x_rows; k += MULTIPLIERS / 8) {
                const bool exists = inside && k < width;
                cp_async<16>(tile, exists ? x : x_dn, exists ? 16 : 0);
                tile += MULTIPLIERS * 8;
                x += MULTIPLIERS / 8 * pitch;
            }
#pragma unroll
            for (int i = 0; i < GROUPS; ++i) {
                if (strip0 + i >= strips) continue;
                __half* part = parts + (c % (STAGES + 1) * GROUPS + i) * part_size;
                const Panel panel = panel_of(layout, (strip0 + i) * BLOCK_ROWS, left);
                for (int k = threadIdx.x * 8; k < panel.buckets; k += MULTIPLIERS * 8) {
                    cp_async<16>(&part[in_slice(layout, k)], &w_k[panel.base + k]);
                }
                const unsigned short* list = entries + ((long long)(strip0 + i) * across + c) * capacity;
                for (int k = threadIdx.x * 8; k < capacity; k += MULTIPLIERS * 8) cp_async<16>(&part[slice_size + k], &list[k]);
            }
        }
        cp_async_commit();
    };
    for (int k = threadIdx.x; k < in_slice(layout, 64 * UNITS) + 8; k += MULTIPLIERS) zeros[k] = __float2half_rn(0.0f);
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) load(i);
    cp_async_wait<STAGES - 2>();
    block_barrier<2 * MULTIPLIERS>();  // the first panel is there

    const int of = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, strip = strip0 + of, i0 = strip * height;
    const int k_lane = lane % 8 + lane / 16 * 8, m_lane = warp * 16 + lane / 8 % 2 * 8;  // ldmatrix with .trans: a row is a bin
    float sum[UNITS][8][4] = {};
    for (int c = -1; c < across; ++c) {
        if (c < 0) load(c + STAGES);
        if (c >= 0) {
            const int bins = strip < strips ? bins_in_panel(layout, strip, c) : 0;
            const __half* slice = parts + (c % (STAGES + 1) * GROUPS + of) * part_size;
            const __half* z = z_tiles + (c % 2 * GROUPS + of) * TILE_K * 64;
            unsigned a[1][UNITS][4];
#pragma unroll
            for (int k = 0; k < STEPS; ++k) {
                const int bin = 16 * k + k_lane;
                const __half* window = bin < bins ? slice + in_slice(layout, bin * STRIDE) : zeros;
                warpgroup_wait<0>();  // the step before is done with its registers
#pragma unroll
                for (int u = 0; u < UNITS; ++u) {
                    const int m = m_lane + 64 * u;
                    const bool exists = BLOCK_ROWS % (64 * UNITS) == 0 || m < height;
                    ldmatrix_x4_trans(a[0][u], exists ? window + in_slice(layout, m) : zeros);
                }
                warpgroup_begin<true>(sum, a, z, 16 * k, 0, TILE_K);
                if (k == 0) load(c + STAGES);
            }
            warpgroup_wait<0>();
        }
        cp_async_wait<STAGES - 2>();
        block_barrier<2 * MULTIPLIERS>();  // the next panel's z is complete, and the one after it is there
    }

    const int rows = strip < strips ? min(layout.rows - i0, height) : 0;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int m = warp * 16 + 64 * u + g + 8 * e;
            __half* y = &y_mn[(i0 + m) * pitch + first + s0 + 8 * t];
#pragma unroll
            for (int j = 0; j < 8; j += 4) {
                if (m < rows && s0 + 8 * j + 8 * t < n) put_fragments(y + 8 * j, sum[u], j, e);
            }
        }
    }
}
