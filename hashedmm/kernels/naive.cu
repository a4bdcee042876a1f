// 1 naive: y = W x, one thread an output, and neighbouring threads in neighbouring rows.
//
// Who computes what: thread t of the whole grid computes y[i][s] with i = t % rows, s = t / rows.
// What to see: a warp's 32 threads read one and the same x[j][s] (one request, one sector), gather 32 unrelated
// buckets, and store to 32 rows of y, which lie n elements apart: 32 sectors for 32 numbers. Every weight is hashed n
// times.
//
// Launch: any 1-D block; a 1-D grid of ceil(rows * n / threads) blocks. No shared memory.
//     layout  where each weight is stored
//     w_k     (buckets)
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn    (rows, n), C order, written in full
#include "weight.cuh"

extern "C" __global__ void naive(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n) {
    const long long output = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= (long long)layout.rows * n) return;

    const int i = output % layout.rows;  // the next thread: the next row
    const int s = output / layout.rows;

    float sum = 0.0f;
    for (int j = 0; j < layout.cols; ++j) {
        sum += weight(layout, w_k, i, j) * to_float(x_dn[j * x_down + s * x_across]);
    }
    put(&y_mn[(long long)i * n + s], sum);
}
