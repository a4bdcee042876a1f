// 2 coalesced: y = W x, one thread an output as in naive, but neighbouring threads in neighbouring columns.
//
// Who computes what: thread t of the whole grid computes y[i][s] with i = t / n, s = t % n. Those two lines are all
// that differs from naive.
// What to see: a warp reads 32 neighbours x[j][s .. s + 31] (C order: 4 sectors for 32 floats) and stores 32 neighbours
// of y. Its threads want one and the same weight, so the gather from w is one address. Every weight is still hashed n
// times. With x in F order the loads are strided again: no order of threads suits every order of memory.
//
// Launch: any 1-D block; a 1-D grid of ceil(rows * n / threads) blocks. No shared memory.
//     layout  where each weight is stored
//     w_k     (buckets)
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across
//     y_mn    (rows, n), C order, written in full
#include "weight.cuh"

extern "C" __global__ void coalesced(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n) {
    const long long output = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (output >= (long long)layout.rows * n) return;

    const int i = output / n;
    const int s = output % n;  // the next thread: the next column

    float sum = 0.0f;
    for (int j = 0; j < layout.cols; ++j) {
        sum += weight(layout, w_k, i, j) * to_float(x_dn[j * x_down + s * x_across]);
    }
    put(&y_mn[(long long)i * n + s], sum);
}
