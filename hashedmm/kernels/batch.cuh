// What kernels over the stored values of many networks share: the table of chunks.
//
// All values lie in one array. A segment of it is one parameter of one network; segments are cut into chunks, and a
// block takes a chunk, so that layers and networks of any sizes share one launch.
#pragma once

struct Chunk {
    int network;
    int size;     // values
    int segment;
    int first;    // where it begins in its segment
};

// Chunk number c of a table (chunks, 4), C order.
__device__ __forceinline__ Chunk chunk_at(const int* __restrict__ chunk_c4, const int c) {
    const int* row = chunk_c4 + 4 * (long long)c;
    const Chunk chunk = {row[0], row[1], row[2], row[3]};
    return chunk;
}
