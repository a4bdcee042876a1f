// 6 strip: y = W x for strips (blocks one input wide): one hash, a vector load, for a whole run of outputs.
//
// Who computes what: a strip is cut into pieces of VECTOR neighbouring outputs (16 bytes of its codeword). A thread owns
// one piece of TILE_COLS columns of y. A block owns PIECES neighbouring pieces inside one row of panels, and a part of the
// inputs; PARTS threads share a piece, each taking other inputs. The block walks its inputs in tiles of DEPTH: it hashes
// each (strip, input) of the tile once and leaves offset and sign in shared memory. All threads of the strip use them:
// for each input one flips the sign of x, reads its piece of the codeword at once, and does VECTOR multiply-adds a column.
// What to see: hashing is divided by the strip's height, and one 16-byte read serves VECTOR weights, where panel_few hashes
// and reads for each. The codewords are read from the panel's slice in shared memory: their places are random, and two
// that lie in the same banks cost two turns there, but 128 bytes each, a line of cache, if they came from L1. And the
// slice begins at a 16-byte boundary wherever it begins in w. Reads are scalar only where strips are not a multiple of
// VECTOR high, or candidates not a multiple of VECTOR apart.
//
// Launch: THREADS = PARTS * PIECES in a 1-D block, whole warps; PARTS a power of two up to 32. A 1-D grid: for each row of
// panels, for each PIECES of it, for each tile of columns, the parts of the inputs.
// Dynamic shared memory: the buckets of the largest panel.
//     layout     where each weight is stored; blocks are one column wide
//     w_k        (buckets)
//     x_dn       (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn       (rows, n), C order, written in full
//     part_pmn   (parts, rows, n), any values     null if there is one part
//     arrived_t  (blocks / parts), zeros          null if there is one part
#include "halves.cuh"
#include "split.cuh"
#include "tile.cuh"

#ifndef PIECES
#define PIECES 16
#define PARTS 16
#define STEPS 4
#define TILE_COLS 1
#endif
#define VECTOR (16 / (int)sizeof(WEIGHT))
#define THREADS (PARTS * PIECES)
#define DEPTH (4 * PARTS * STEPS)  // inputs of a tile: a thread takes four neighbours STEPS times
#define SLOTS ((STEPS > 1 ? 4 * STEPS : 8) * PARTS)  // at least DEPTH, and room for the sums in the end
#define RESIDENT ((TILE_COLS > 1 ? 512 : 1024) / THREADS)       // blocks on a multiprocessor at once

// A piece of a codeword as floats. `at` is its first bucket; a scalar read stops after `rows` of them.
__device__ __forceinline__ void read_piece(float (&w)[VECTOR], const WEIGHT* at, bool aligned, int rows) {
    if (aligned) {
        const int4 piece = *reinterpret_cast<const int4*>(at);
        const WEIGHT* bucket = reinterpret_cast<const WEIGHT*>(&piece);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) w[v] = to_float(bucket[v]);
    } else {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) w[v] = v < rows ? to_float(at[v]) : 0.0f;
    }
}

// sum[v][c] += W[i + v][j] x[j][c]: `slot` is that of input j, x[c][q] its numbers.
__device__ __forceinline__ void add_input(
    float (&sum)[VECTOR][TILE_COLS], const WEIGHT* slice, unsigned slot, const float (&x)[TILE_COLS][4], int q,
    bool aligned, int rows) {
    float w[VECTOR];
    read_piece(w, slice + (slot & 0x7fffffffu), aligned, rows);
#pragma unroll
    for (int c = 0; c < TILE_COLS; ++c) {
        const float signed_x = __uint_as_float(__float_as_uint(x[c][q]) ^ (slot & 0x80000000u));
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) sum[v][c] += w[v] * signed_x;
    }
}

// Outputs of a row of panels that come before a piece. The last piece of a strip may be a short one.
__device__ __forceinline__ int rows_before(int piece, int pieces_a_strip, int strip_rows) {
    return piece / pieces_a_strip * strip_rows + piece % pieces_a_strip * VECTOR;
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT > 0 ? RESIDENT : 1) strip(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n, float* __restrict__ part_pmn, unsigned* __restrict__ arrived_t) {
    extern __shared__ __align__(16) WEIGHT slice[];             // the buckets of one panel
    __shared__ __align__(16) unsigned slot[PIECES][SLOTS + 4];  // [strip][input]: offset in the slice; bit 31: the sign
    __shared__ __align__(16) float x_tile[TILE_COLS][DEPTH + 4];
    __shared__ unsigned key[PIECES];  // the strips' halves of the hash
    __shared__ int last;

    const int height = min(PANEL_ROWS, layout.rows), width = min(PANEL_COLS, layout.cols);
    const int strip_rows = min(BLOCK_ROWS, layout.rows);
    const int pieces_a_strip = (strip_rows - 1) / VECTOR + 1;
    const int pieces = ((height - 1) / strip_rows + 1) * pieces_a_strip;  // in one row of panels
    const int tiles_across = (n - 1) / TILE_COLS + 1;
    const int tiles_down = (pieces - 1) / PIECES + 1;
    const int tiles = ((layout.rows - 1) / height + 1) * tiles_down * tiles_across;
    const int splits = gridDim.x / tiles;
    const int tile = blockIdx.x / splits;
    const int panel_row = tile / tiles_across / tiles_down * height;  // where the row of panels begins
    const int p0 = tile / tiles_across % tiles_down * PIECES;         // the tile's first piece
    const int s0 = tile % tiles_across * TILE_COLS;
    const Split split = split_inputs(layout.cols, blockIdx.x % splits, splits, DEPTH);
    const Meeting meeting = {part_pmn, arrived_t, y_mn, layout.rows, n};
    const bool aligned = BLOCK_ROWS % VECTOR == 0 && STRIDE % VECTOR == 0;

    const int first_strip = p0 / pieces_a_strip;  // in this row of panels
    const int strips = min(p0 + PIECES - 1, pieces - 1) / pieces_a_strip - first_strip + 1;
    const int piece = min(p0 + (int)threadIdx.x % PIECES, pieces - 1);
    const int part = threadIdx.x / PIECES;
    const int my_strip = piece / pieces_a_strip - first_strip;
    const int inside = piece % pieces_a_strip * VECTOR;  // this thread's first output, inside the strip
    const int rows = min(VECTOR, strip_rows - inside);   // its outputs, if the matrix does not end before
    const int end = min(layout.rows - panel_row, height);
    const int i0 = min(rows_before(p0, pieces_a_strip, strip_rows), end) + panel_row;
    const int i_end = min(rows_before(p0 + PIECES, pieces_a_strip, strip_rows), end) + panel_row;

    if (threadIdx.x < strips) key[threadIdx.x] = row_half(layout, panel_row / BLOCK_ROWS + first_strip + threadIdx.x);

    float sum[VECTOR][TILE_COLS] = {};
    for (int left = split.begin, j_end; left < split.end; left = j_end) {
        const int panel_col = left - left % width;  // where the panel begins
        j_end = min(split.end - panel_col, width) + panel_col;
        const Panel panel = panel_of(layout, panel_row, left);
        load_slice(slice, w_k + panel.base, (int)panel.buckets, threadIdx.x, THREADS);
        __syncthreads();  // the keys are complete

        for (int j0 = left; j0 < j_end; j0 += DEPTH) {
            for (int k = threadIdx.x; k < DEPTH; k += THREADS) {
                const unsigned column = column_half(layout, j0 + k);
                for (int m = 0; m < strips; ++m) {
                    const unsigned h = hash_halves(layout, key[m], column);
                    slot[m][k] = __umulhi(h, panel.candidates) * STRIDE | h << 31;
                }
            }
            load_inputs<DEPTH, TILE_COLS, 1, DEPTH + 4>(
                x_tile[0], x_dn, x_down, x_across, j0, j_end, s0, n, threadIdx.x, THREADS);
            __syncthreads();  // slice, slots and x are complete

            const int inputs = min(DEPTH, j_end - j0);
            for (int k = 4 * part; k < inputs; k += 4 * PARTS) {
                const uint4 four = *reinterpret_cast<const uint4*>(&slot[my_strip][k]);
                const unsigned at[4] = {four.x, four.y, four.z, four.w};
                float x[TILE_COLS][4];
#pragma unroll
                for (int c = 0; c < TILE_COLS; ++c) read(x[c], &x_tile[c][k]);
                if (k + 4 <= inputs) {  // without a condition in between, four reads are under way at once
#pragma unroll
                    for (int q = 0; q < 4; ++q) add_input(sum, slice + inside, at[q], x, q, aligned, rows);
                } else {
#pragma unroll
                    for (int q = 0; q < 3; ++q) {
                        if (k + q < inputs) add_input(sum, slice + inside, at[q], x, q, aligned, rows);
                    }
                }
            }
            __syncthreads();  // nobody reads slice, slots or x any more
        }
    }

    // The sums of the PARTS threads of a piece, one column at a time.
    float* total = reinterpret_cast<float*>(slot);  // [part][output]
#pragma unroll
    for (int c = 0; c < TILE_COLS; ++c) {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) total[threadIdx.x * VECTOR + v] = sum[v][c];
        __syncthreads();  // all sums are there
        for (int e = threadIdx.x; e < PIECES * VECTOR; e += THREADS) {
            float all = 0.0f;
            for (int p = 0; p < PARTS; ++p) all += total[p * PIECES * VECTOR + e];
            const int owner = p0 + e / VECTOR, v = e % VECTOR;
            const int i = rows_before(owner, pieces_a_strip, strip_rows) + v;
            if (owner < pieces && owner % pieces_a_strip * VECTOR + v < strip_rows && i < end && s0 + c < n) {
                leave_sum(meeting, split, panel_row + i, s0 + c, all);
            }
        }
        __syncthreads();
    }
    add_parts(meeting, split, tile, i0, i_end, s0, min(n - s0, TILE_COLS) + s0, threadIdx.x, THREADS, last);
}
