// 8 sketch, the weights' gradient, float32, where windows overlap or strips share a panel: every bucket adds up what the windows
// that hold it say.
//
// Who computes what: a thread a bucket. It goes through the strips of its panel and the windows that cover it, in order.
// What to see: a bucket looks for its windows instead of windows scattering to buckets: no atomics, one order.
//
// Launch: any 1-D block; a 1-D grid that covers the buckets.
//     layout    where each weight is stored
//     g_ikm     (strips, all_bins, height) float32, as sketch_outer writes it
//     gw_k      (buckets) float32, added to
//     buckets   of all panels
#include "sketch.cuh"

extern "C" __global__ void sketch_fold(
    const Layout layout, const float* __restrict__ g_ikm, const int all_bins, float* __restrict__ gw_k,
    const long long buckets) {
    const long long bucket = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (bucket >= buckets) return;

    const int height = min(BLOCK_ROWS, layout.rows);
    const long long full_rows = layout.full_rows * layout.row_buckets;
    const int lower = bucket >= full_rows;
    const int row = lower ? layout.full_rows : (int)(bucket / max(1LL, layout.row_buckets));
    const long long in_row = bucket - row * layout.row_buckets;
    const int c = in_row < layout.full_cols * layout.buckets[lower][0] ? (int)(in_row / layout.buckets[lower][0]) : layout.full_cols;
    const long long offset = in_row - c * layout.buckets[lower][0];  // inside the panel
    const int candidates = layout.candidates[lower][c == layout.full_cols], before = c * layout.candidates[lower][0];

    const int first = PANEL_ROWS == WHOLE ? 0 : row * (PANEL_ROWS / BLOCK_ROWS);
    const int last = PANEL_ROWS == WHOLE ? strip_count(layout) : min(first + PANEL_ROWS / BLOCK_ROWS, strip_count(layout));
    const long long t_first = offset < height ? 0 : (offset - height) / STRIDE + 1;
    const long long t_last = min(offset / STRIDE, candidates - 1LL);
    float sum = 0.0f;
    for (int strip = first; strip < last; ++strip) {
        for (long long t = t_first; t <= t_last; ++t) {
            sum += g_ikm[((long long)strip * all_bins + before + t) * height + offset - t * STRIDE];
        }
    }
    gw_k[bucket] += sum;
}
