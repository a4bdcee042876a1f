// batch_weights: the weight matrices of one layer of many networks, from the values that are stored.
//
// Every entry has a code: 0 for a weight that is zero for good, else plus or minus (where its value lies + 1), the sign
// being the weight's. So hashing, pruning and any other way of choosing are one kernel.
// Who computes what: a block a TILE x TILE tile of one matrix. Codes and weights are read and written along the rows.
// Where blocks of the hash stand upright (strips, tiles), neighbours in a column have neighbouring values: the tile is
// turned over in shared memory, so that a warp fetches a run of values and not a scattered one for each lane.
//
// Launch: block (TILE, DOWN); a 1-D grid, one block a tile, tiles row by row, networks one after the other.
// Static shared memory: two tiles.
//     code_rmd    (networks, rows, cols)
//     upright_r   (networks): whether the values of a column are neighbours
//     value_k     all stored values
//     w_rmd       (networks, rows, cols), written in full
#ifndef TILE
#define TILE 32
#define DOWN 8
#endif

__device__ __forceinline__ float fetch(const float* __restrict__ value_k, const int code) {
    if (code == 0) return 0.0f;
    return code > 0 ? value_k[code - 1] : -value_k[-code - 1];
}

extern "C" __global__ void __launch_bounds__(TILE * DOWN) batch_weights(
    const int* __restrict__ code_rmd, const int* __restrict__ upright_r, const float* __restrict__ value_k,
    float* __restrict__ w_rmd, const int rows, const int cols) {
    __shared__ int code[TILE][TILE + 1];
    __shared__ float weight[TILE][TILE + 1];

    const int across = (cols - 1) / TILE + 1, tiles = across * ((rows - 1) / TILE + 1);
    const int r = blockIdx.x / tiles, t = blockIdx.x % tiles;
    const int i0 = t / across * TILE, j = t % across * TILE + threadIdx.x;
    const long long matrix = (long long)r * rows * cols;
    const bool turned = upright_r[r] != 0;  // the same for all threads of the block
    for (int k = threadIdx.y; k < TILE; k += DOWN) {
        const int i = i0 + k;
        const bool inside = i < rows && j < cols;
        const long long e = matrix + (long long)i * cols + j;
        const int c = inside ? code_rmd[e] : 0;
        if (turned) code[k][threadIdx.x] = c;
        else if (inside) w_rmd[e] = fetch(value_k, c);
    }
    if (!turned) return;
    __syncthreads();  // all codes of the tile are there
    for (int k = threadIdx.y; k < TILE; k += DOWN) weight[threadIdx.x][k] = fetch(value_k, code[threadIdx.x][k]);
    __syncthreads();  // all weights of the tile are there
    for (int k = threadIdx.y; k < TILE; k += DOWN) {
        const int i = i0 + k;
        if (i < rows && j < cols) w_rmd[matrix + (long long)i * cols + j] = weight[k][threadIdx.x];
    }
}
