// 5b panel_few: y = W x for few columns. Nothing is used twice, so what counts is the instructions a weight takes.
//
// Who computes what: a block owns TILE_ROWS rows inside one row of panels, TILE_COLS columns of X and a part of the
// inputs, and copies the slices of the panels it meets into shared memory, as panel does. A warp owns THREAD_ROWS of the
// rows. Its lanes take neighbouring inputs: a lane keeps its input's half of the hash and x in registers, and the rows'
// halves too, and gathers THREAD_ROWS weights straight from the slice into its sums. There is no tile of W. In the end the
// sums of the lanes are added up by shuffles, and those of the blocks that share an output by the last one of them.
// What to see: a weight costs about a dozen instructions, and one gather from shared memory. Its 32 addresses are random:
// on average the fullest of the 32 banks is asked for 3.5 of them, one after the other. That is the limit at n = 1.
//
// Launch: THREADS = 32 * TILE_ROWS / THREAD_ROWS in a 1-D block. A 1-D grid: for each row of panels, for each TILE_ROWS
// of it, for each tile of columns, the parts of the inputs. Dynamic shared memory: the buckets of the largest panel.
//     layout     where each weight is stored
//     w_k        (buckets)
//     x_dn       (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn       (rows, n), C order, written in full
//     part_pmn   (parts, rows, n), any values     null if there is one part
//     arrived_t  (blocks / parts), zeros          null if there is one part
#include "halves.cuh"
#include "split.cuh"
#include "tile.cuh"

#ifndef TILE_ROWS
#define TILE_ROWS 128
#define TILE_COLS 1
#define DEPTH 256
#define THREAD_ROWS 8
#endif
#define THREADS (32 * (TILE_ROWS / THREAD_ROWS))
// Lanes that read the columns of neighbouring inputs, one or four at a time, use all banks if this is odd, or 4 * odd.
#define PITCH (TILE_COLS % 4 ? TILE_COLS | 1 : (TILE_COLS / 4 | 1) * 4)
// Blocks on a multiprocessor at once. Sums of several columns, and places inside blocks, take registers.
#define RESIDENT ((THREAD_ROWS * TILE_COLS > 16 || BLOCK_ROWS > 1 ? 512 : 1024) / THREADS)

// sum[r][c] += W[row + r][j] x[j][c] for a lane's inputs j of a tile. Scaled to a power of two of candidates, up to 65536,
// a hash is its high bits: then it need not be WHOLE_HASH.
template <bool WHOLE_HASH>
__device__ __forceinline__ void add_tile(
    float (&sum)[THREAD_ROWS][TILE_COLS], const Layout& layout, const Panel& panel, const WEIGHT* slice,
    const unsigned (&key)[THREAD_ROWS], int row, const float (&x_tile)[DEPTH][PITCH], int j0, int inputs, int lane) {
    const int shift = __clz(panel.candidates) + 1;  // h >> shift is h scaled to 0 .. candidates - 1
    for (int k = lane; k < inputs; k += 32) {
        const unsigned column = column_half(layout, (j0 + k) / BLOCK_COLS);
        const unsigned inside_column = (j0 + k) % BLOCK_COLS * BLOCK_ROWS;
        float x[TILE_COLS];
        read(x, x_tile[k]);
#pragma unroll
        for (int r = 0; r < THREAD_ROWS; ++r) {
            const unsigned h = hash_halves<WHOLE_HASH>(layout, key[r], column);
            const unsigned t = WHOLE_HASH ? __umulhi(h, panel.candidates) : h >> shift;
            const unsigned w = __float_as_uint(to_float(slice[t * STRIDE + inside_column + (row + r) % BLOCK_ROWS]));
            const float signed_w = __uint_as_float(w ^ (sign_bit<WHOLE_HASH>(layout, h) & 0x80000000u));
#pragma unroll
            for (int c = 0; c < TILE_COLS; ++c) sum[r][c] += signed_w * x[c];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT > 0 ? RESIDENT : 1) panel_few(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n, float* __restrict__ part_pmn, unsigned* __restrict__ arrived_t) {
    extern __shared__ __align__(16) WEIGHT slice[];  // the buckets of one panel
    __shared__ __align__(16) float x_tile[DEPTH][PITCH];  // [input][column of y]
    __shared__ int last;

    const int height = min(PANEL_ROWS, layout.rows), width = min(PANEL_COLS, layout.cols);
    const int tiles_across = (n - 1) / TILE_COLS + 1;
    const int tiles_down = (height - 1) / TILE_ROWS + 1;  // of one row of panels
    const int tiles = ((layout.rows - 1) / height + 1) * tiles_down * tiles_across;
    const int splits = gridDim.x / tiles;
    const int tile = blockIdx.x / splits;
    const int panel_row = tile / tiles_across / tiles_down * height;  // where the row of panels begins
    const int i0 = panel_row + tile / tiles_across % tiles_down * TILE_ROWS;
    const int i_end = min(min(layout.rows - panel_row, height) + panel_row - i0, TILE_ROWS) + i0;
    const int s0 = tile % tiles_across * TILE_COLS;
    const Split split = split_inputs(layout.cols, blockIdx.x % splits, splits, DEPTH);
    const Meeting meeting = {part_pmn, arrived_t, y_mn, layout.rows, n};

    const int lane = threadIdx.x % 32;
    const int row = i0 + threadIdx.x / 32 * THREAD_ROWS;  // this warp's first output
    unsigned key[THREAD_ROWS];
    float sum[THREAD_ROWS][TILE_COLS] = {};
#pragma unroll
    for (int r = 0; r < THREAD_ROWS; ++r) key[r] = row_half(layout, (row + r) / BLOCK_ROWS);

    for (int left = split.begin, j_end; left < split.end; left = j_end) {
        const int panel_col = left - left % width;  // where the panel begins
        j_end = min(split.end - panel_col, width) + panel_col;
        const Panel panel = panel_of(layout, panel_row, left);
        load_slice(slice, w_k + panel.base, (int)panel.buckets, threadIdx.x, THREADS);

        for (int j0 = left; j0 < j_end; j0 += DEPTH) {
            load_inputs<DEPTH, TILE_COLS, PITCH, 1>(
                x_tile[0], x_dn, x_down, x_across, j0, j_end, s0, n, threadIdx.x, THREADS);
            __syncthreads();  // slice and tile are complete

            const int inputs = min(DEPTH, j_end - j0);
            const unsigned t = panel.candidates;
            if (1 < t && t <= 65536 && (t & (t - 1)) == 0) {
                add_tile<false>(sum, layout, panel, slice, key, row, x_tile, j0, inputs, lane);
            } else {
                add_tile<true>(sum, layout, panel, slice, key, row, x_tile, j0, inputs, lane);
            }
            __syncthreads();  // nobody reads slice or tile any more
        }
    }

#pragma unroll
    for (int r = 0; r < THREAD_ROWS; ++r) {
#pragma unroll
        for (int c = 0; c < TILE_COLS; ++c) {
            for (int step = 16; step > 0; step /= 2) sum[r][c] += __shfl_xor_sync(~0u, sum[r][c], step);
            if (lane == (r * TILE_COLS + c) % 32 && row + r < i_end && s0 + c < n) {
                leave_sum(meeting, split, row + r, s0 + c, sum[r][c]);
            }
        }
    }
    add_parts(meeting, split, tile, i0, i_end, s0, min(n - s0, TILE_COLS) + s0, threadIdx.x, THREADS, last);
}
