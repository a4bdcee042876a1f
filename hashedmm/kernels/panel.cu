// 5 panel: y = W x where the buckets of one panel at a time live in shared memory: the predictable split put to use.
//
// Who computes what: a block owns TILE_ROWS rows inside one row of panels, and TILE_COLS columns of X. It walks the
// panels from left to right: copies the panel's slice of w into shared memory, and gathers all weights of the panel
// from there, tile by tile as register_tile does. Its sums stay in registers from the first panel to the last, so no
// two blocks ever add to one output and no atomics are needed.
// What to see: global memory is read in order, the random access happens where it is cheap. With few columns (n = 1) a
// tile has few outputs: then PARTS neighbouring threads share them, each taking every PARTS-th input of a tile, and add
// their sums up by shuffles at the end.
//
// Launch: THREADS = PARTS * (TILE_ROWS / THREAD_ROWS) * (TILE_COLS / THREAD_COLS) in a 1-D block, whole warps; PARTS a
// power of two up to 32. A 1-D grid: for each row of panels, for each TILE_ROWS of it, the tiles of columns.
// Dynamic shared memory: the buckets of the largest panel; static: the two tiles.
//     layout  where each weight is stored
//     w_k     (buckets)
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn    (rows, n), C order, written in full
#include "tile.cuh"

#ifndef TILE_ROWS
#define TILE_ROWS 64
#define TILE_COLS 64
#define DEPTH 16
#define THREAD_ROWS 4
#define THREAD_COLS 4
#define PARTS 1
#endif
#define THREADS_ACROSS (TILE_COLS / THREAD_COLS)
#define THREADS (PARTS * (TILE_ROWS / THREAD_ROWS) * THREADS_ACROSS)
#define RESIDENT (768 / THREADS)  // blocks that must fit on a multiprocessor at once: up to 80 registers a thread

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) panel(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n) {
    extern __shared__ __align__(16) WEIGHT slice[];               // the buckets of one panel
    __shared__ __align__(16) float w_tile[DEPTH][TILE_ROWS + 4];  // [input][row of y]
    __shared__ __align__(16) float x_tile[DEPTH][TILE_COLS + 4];  // [input][column of y]

    const int height = min(PANEL_ROWS, layout.rows), width = min(PANEL_COLS, layout.cols);
    const int tiles_across = (n - 1) / TILE_COLS + 1;
    const int tiles_down = (height - 1) / TILE_ROWS + 1;  // of one row of panels
    const int tile = blockIdx.x / tiles_across;
    const int panel_row = tile / tiles_down * height;  // where the row of panels begins
    const int i0 = panel_row + tile % tiles_down * TILE_ROWS;
    const int s0 = blockIdx.x % tiles_across * TILE_COLS;
    const int i_end = min(layout.rows - panel_row, height) + panel_row;
    const int part = threadIdx.x % PARTS, place = threadIdx.x / PARTS;
    const int row = place / THREADS_ACROSS * THREAD_ROWS;  // this thread's first output, inside the tile
    const int col = place % THREADS_ACROSS * THREAD_COLS;

    float sum[THREAD_ROWS][THREAD_COLS] = {};
    for (int left = 0, j_end; left < layout.cols; left = j_end) {
        j_end = min(layout.cols - left, width) + left;
        const Panel panel = panel_of(layout, panel_row, left);
        for (int k = threadIdx.x; k < panel.buckets; k += THREADS) slice[k] = w_k[panel.base + k];
        __syncthreads();  // the slice is complete

        for (int j0 = left; j0 < j_end; j0 += DEPTH) {
            for (int e = threadIdx.x; e < TILE_ROWS * DEPTH; e += THREADS) {
                const int i = i0 + e % TILE_ROWS, j = j0 + e / TILE_ROWS;
                const bool inside = i < i_end && j < j_end;
                const Slot slot = slot_in_panel(layout, panel, i, j);
                w_tile[e / TILE_ROWS][e % TILE_ROWS] = inside ? slot.sign * to_float(slice[slot.offset]) : 0.0f;
            }
            load_tile<DEPTH, TILE_COLS>(
                x_tile, x_dn, x_down, x_across, j0, s0, j_end, n, threadIdx.x, THREADS);
            __syncthreads();  // both tiles are complete

#pragma unroll
            for (int k = 0; k < DEPTH; k += PARTS) add_outer(sum, &w_tile[k + part][row], &x_tile[k + part][col]);
            __syncthreads();  // nobody reads tiles or slice any more
        }
    }

    for (int r = 0; r < THREAD_ROWS; ++r) {
        for (int c = 0; c < THREAD_COLS; ++c) {
            for (int step = PARTS / 2; step > 0; step /= 2) sum[r][c] += __shfl_xor_sync(~0u, sum[r][c], step);
            const int i = i0 + row + r, s = s0 + col + c;
            if (part == 0 && i < i_end && s < n) put(&y_mn[(long long)i * n + s], sum[r][c]);
        }
    }
}
