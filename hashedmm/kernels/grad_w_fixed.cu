// grad_w_fixed: the gradient with respect to the buckets as in grad_w, bit-identical from run to run.
//
// The idea: floating-point sums depend on their order, integer sums do not. Each signed contribution is rounded to a
// 64-bit fixed-point number, an integer multiple of 1 / scale, and integers are added by atomics in whatever order. The
// scale is a power of two, chosen by the caller such that no sum can overflow: a bucket is used at most once by a block
// of its panel, and a contribution is at most n max|x| max|gy|, so
//     scale = the largest power of two with  scale * (blocks a panel) * n * max|x| * max|gy|  <= 2^62.
// For 8192 x 8192 single weights in one panel and n = 4096 that still resolves about 2^-24 of one typical contribution,
// and the sum of many more finely; with panels it is 2^-30 or better.
//
// What it costs: 8 bytes a bucket for the sums, 64-bit atomics, a pass over x and gy to find their largest elements,
// and one over the sums to convert them: gw = sums / scale.
//
// Who computes what, launch: as grad_w.
//     layout  where each weight is stored
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     gy_mn   (rows, n): element (i, s) at i * gy_down + s * gy_across
//     scale   (1), float64
//     sum_k   (buckets), int64 in two's complement, zeros when the kernel begins
//     failed  (1), zero when the kernel begins; 1 if an element of G was not finite: then no sum means anything
#include "outer.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) grad_w_fixed(
    const Layout layout,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    const WEIGHT* __restrict__ gy_mn, const long long gy_down, const long long gy_across,
    const double* __restrict__ scale, unsigned long long* __restrict__ sum_k, int* __restrict__ failed, const int n) {
    __shared__ __align__(16) float gy_tile[DEPTH][TILE_ROWS + 4];  // [sample][output]
    __shared__ __align__(16) float x_tile[DEPTH][TILE_COLS + 4];   // [sample][input]

    const int tiles_across = (layout.cols - 1) / TILE_COLS + 1;
    const int i0 = blockIdx.x / tiles_across * TILE_ROWS;  // the tile's first weight is W[i0][j0]
    const int j0 = blockIdx.x % tiles_across * TILE_COLS;
    const int row = threadIdx.x / THREADS_ACROSS * THREAD_ROWS;
    const int col = threadIdx.x % THREADS_ACROSS * THREAD_COLS;

    float g[THREAD_ROWS][THREAD_COLS] = {};
    outer_tile(
        g, layout, x_dn, x_down, x_across, gy_mn, gy_down, gy_across, n, i0, j0, row, col, gy_tile, x_tile);

    for (int r = 0; r < THREAD_ROWS; ++r) {
        for (int c = 0; c < THREAD_COLS; ++c) {
            const int i = i0 + row + r, j = j0 + col + c;
            if (i >= layout.rows || j >= layout.cols) continue;
            if (!isfinite(g[r][c])) {
                atomicExch(failed, 1);
                continue;
            }
            const Place place = locate(layout, i, j);
            const long long fixed = (long long)rint(*scale * (place.sign * g[r][c]));  // the one rounding
            atomicAdd(&sum_k[place.bucket], (unsigned long long)fixed);  // two's complement wraps
        }
    }
}
