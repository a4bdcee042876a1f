// materialise: W as a dense matrix, for a library's product to use. It spends again the memory that hashing saves.
//
// Who computes what: a thread makes VECTOR neighbouring columns (16 bytes of a row) of up to RUN rows of one row of
// blocks. A block's column is a run of neighbouring buckets, so it hashes once a column and then counts upwards.
// What to see: nothing is computed twice, nothing is shared. Each row leaves as one 16-byte store, neighbouring threads
// store neighbouring 16 bytes, and the bandwidth of writing is the limit. If rows do not begin at 16-byte boundaries
// (cols no multiple of VECTOR) elements are stored one by one.
//
// Launch: any 1-D block; a 1-D grid that covers ceil(cols / VECTOR) * (rows of blocks) * ceil(their height / RUN)
// threads.
//     layout  where each weight is stored
//     w_k     (buckets)
//     w_md    (rows, cols), C order, written in full
#include "weight.cuh"

#ifndef RUN
#define RUN 16
#endif
#define VECTOR (16 / (int)sizeof(WEIGHT))

extern "C" __global__ void materialise(
    const Layout layout, const WEIGHT* __restrict__ w_k, WEIGHT* __restrict__ w_md) {
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const int groups = (layout.cols - 1) / VECTOR + 1;
    const int j0 = thread % groups * VECTOR;
    const long long runs = (min(BLOCK_ROWS, layout.rows) - 1) / RUN + 1;  // in one row of blocks
    const long long top = thread / groups / runs * BLOCK_ROWS;            // the row of blocks begins here
    const long long first = top + thread / groups % runs * RUN;
    const long long end = min(min(first + RUN, top + BLOCK_ROWS), (long long)layout.rows);
    if (first >= end) return;

    const int columns = min(VECTOR, layout.cols - j0);
    long long bucket[VECTOR];
    float sign[VECTOR];
    for (int c = 0; c < VECTOR; ++c) {
        const Place place = locate(layout, first, min(j0 + c, layout.cols - 1));  // beyond the edge: anything valid
        bucket[c] = place.bucket;
        sign[c] = place.sign;
    }

    for (long long i = first; i < end; ++i) {
        __align__(16) WEIGHT row[VECTOR];
        for (int c = 0; c < VECTOR; ++c) put(&row[c], sign[c] * to_float(w_k[bucket[c]++]));
        WEIGHT* to = &w_md[i * layout.cols + j0];
        if (layout.cols % VECTOR == 0) {
            *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(row);
        } else {
            for (int c = 0; c < columns; ++c) to[c] = row[c];
        }
    }
}
