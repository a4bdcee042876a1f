// 8 sketch, first half, on tensor cores: z = S x, float16 with float32 sums. For every strip, the inputs are added up,
// with their signs, in the bins that the hash chose.
//
// Who computes what: a block owns one panel's inputs and 64 columns of x and copies that tile into shared memory. A warp
// takes a strip, or a part of its groups of 16 bins, and walks their lists (sketch_groups.cu), 16 inputs a step: the
// 16 x 16 matrix of ones, minus ones and zeros is made in registers from the entries, and multiplied with the 16 rows of
// x, which ldmatrix gathers from wherever they are. After a group's last step its 16 rows of z are written.
// What to see: S is never stored, and no multiplication by 0 of a whole S is done: of T bins, 16 at a time meet only their
// own inputs. Rows are 128 bytes, so that every row begins in the same bank; their 16-byte pieces are swapped around by
// the row's number, and the list takes care that the eight rows of a matrix have eight different remainders: no conflicts.
// z is left in *fragment order*: of every 32 columns, a lane's numbers of four tiles lie side by side (sketch.cuh).
//
// Launch: 32 * WARPS threads in a 1-D block; a 1-D grid: sets of strips, panels, tiles of columns (fastest). Dynamic
// shared memory: (inputs of the widest panel, in whole eights, + 8) * 128 bytes.
//     layout    where each weight is stored
//     starts, entries, groups, capacity   the lists, as sketch_groups wrote them
//     x_dn      (cols, pitch), C order; columns first .. first + n - 1 are meant
//     z_ikn     (strips, all_bins, n_z), n_z = n in whole 32, in fragment order: written for the bins that a strip has
//     n         columns; n, first and pitch are multiples of 8, so that rows begin at multiples of 16 bytes
//     set       strips a block
//     parts     warps that share a strip's groups
#include "ptx.cuh"
#include "sketch.cuh"

#ifndef WARPS
#define WARPS 8
#define RESIDENT 3  // blocks that must fit on a multiprocessor at once
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT) sketch_sum_mma(
    const Layout layout, const unsigned short* __restrict__ starts, const unsigned short* __restrict__ entries,
    const int groups, const int capacity, const __half* __restrict__ x_dn, const long long pitch, const long long first,
    __half* __restrict__ z_ikn, const int all_bins, const int n, const int set, const int parts) {
    extern __shared__ __align__(128) unsigned char memory[];
    __half* tile = reinterpret_cast<__half*>(memory);  // [input][64], pieces of 8 swapped around; and eight rows of zeros

    const int strips = strip_count(layout), across = panels_across(layout), tiles = (n - 1) / 64 + 1;
    const int s0 = blockIdx.x % tiles * 64, c = blockIdx.x / tiles % across;
    const int first_strip = blockIdx.x / tiles / across * set, last_strip = min(first_strip + set, strips);
    const int left = c * panel_width(layout), width = min(panel_width(layout), layout.cols - left);
    const int rows = (panel_width(layout) + 7) / 8 * 8 + 8, n_z = (n + 31) / 32 * 32;

    for (int e = threadIdx.x; e < rows * 8; e += 32 * WARPS) {
        const int k = e / 8, piece = e % 8, s = s0 + piece * 8;
        const bool inside = k < width && s < n;
        cp_async<16>(
            &tile[k * 64 + (piece ^ k % 8) * 8], inside ? &x_dn[(left + k) * pitch + first + s] : x_dn, inside ? 16 : 0);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();  // the tile is complete

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const unsigned bin0 = g * 0x08000800u, bin1 = bin0 + 0x40004000u;
    const unsigned char* piece[4];  // where this lane's rows have their pieces 2 p + lane / 16
#pragma unroll
    for (int p = 0; p < 4; ++p) piece[p] = memory + ((2 * p + lane / 16) ^ lane % 8) * 16;
    const int word = lane % 16 / 2, shift = lane % 2 * 16;  // of 16 entries: where this lane's row is named

    for (int task = first_strip * parts + warp; task < last_strip * parts; task += WARPS) {
        const int strip = task / parts, bins = bins_in_panel(layout, strip, c), here = (bins + 15) / 16;
        int group = here * (task % parts) / parts;
        const int group_end = here * (task % parts + 1) / parts;
        const long long place = (long long)strip * across + c;
        const unsigned short* start = starts + place * (groups + 1);
        int step = start[group], end = start[group + 1];
        const int last = start[group_end];

        // 32 lanes hold 64 entries, four steps, and fetch the next 64 meanwhile.
        const unsigned* list = reinterpret_cast<const unsigned*>(entries + place * capacity) + 8 * step + lane;
        unsigned now = 0, next = lane < 8 * (last - step) ? *list : 0;
        int at = 0;  // which 8 of the 32 words are next
        __half* z = z_ikn + ((long long)strip * all_bins + bins_before(layout, strip, c)) * n_z + s0 + 8 * t;
        for (; group < group_end; ++group) {
            const int after = group + 1 < group_end ? start[group + 2] : end;
            float sum[8][4] = {};
            for (; step < end; ++step) {
                if (at == 0) {
                    now = next;
                    list += 32;
                    next = lane < 8 * (last - step - 4) ? *list : 0;
                }
                const unsigned row = (__shfl_sync(~0u, now, at + word) >> shift & 0x7ffu) * 128;
                const unsigned low = __shfl_sync(~0u, now, at + t), high = __shfl_sync(~0u, now, at + 4 + t);
                at = (at + 8) & 31;
                const unsigned a[4] = {select(low, bin0), select(low, bin1), select(high, bin0), select(high, bin1)};
#pragma unroll
                for (int p = 0; p < 4; ++p) {
                    unsigned b[4];
                    ldmatrix_x4_trans(b, piece[p] + row);
                    const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
                    mma_sync_m16n8k16(sum[2 * p], a, b0, sum[2 * p]);
                    mma_sync_m16n8k16(sum[2 * p + 1], a, b1, sum[2 * p + 1]);
                }
            }
            end = after;
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int bin = 16 * group + g + 8 * e;
                if (bin < bins && s0 < n_z) put_fragments(&z[(long long)bin * n_z], sum, 0, e);
                if (bin < bins && s0 + 32 < n_z) put_fragments(&z[(long long)bin * n_z + 32], sum, 4, e);
            }
        }
    }
}
