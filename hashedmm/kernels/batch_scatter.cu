// batch_scatter: the gradient of the stored values of one layer of many networks, from that of the weight matrices.
//
// The adjoint of batch_weights: each entry's gradient, with the weight's sign, is added where its value lies. Many
// entries may share a value, so the sums are atomic: their order, and with it the last bits, differ from run to run.
// Who computes what: as in batch_weights. In turned tiles a warp adds to a run of neighbouring values.
//
// Launch: block (TILE, DOWN); a 1-D grid, one block a tile, tiles row by row, networks one after the other.
// Static shared memory: two tiles.
//     code_rmd    (networks, rows, cols)
//     upright_r   (networks): whether the values of a column are neighbours
//     gw_rmd      (networks, rows, cols)
//     grad_k      of all stored values: added to
#ifndef TILE
#define TILE 32
#define DOWN 8
#endif

__device__ __forceinline__ void add(float* grad_k, const int code, const float g) {
    if (code > 0) atomicAdd(grad_k + (code - 1), g);
    if (code < 0) atomicAdd(grad_k + (-code - 1), -g);
}

extern "C" __global__ void __launch_bounds__(TILE * DOWN) batch_scatter(
    const int* __restrict__ code_rmd, const int* __restrict__ upright_r, const float* __restrict__ gw_rmd,
    float* grad_k, const int rows, const int cols) {
    __shared__ int code[TILE][TILE + 1];
    __shared__ float gradient[TILE][TILE + 1];

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
        const float g = inside ? gw_rmd[e] : 0.0f;
        if (turned) code[k][threadIdx.x] = c, gradient[k][threadIdx.x] = g;
        else add(grad_k, c, g);
    }
    if (!turned) return;
    __syncthreads();  // the tile is complete
    for (int k = threadIdx.y; k < TILE; k += DOWN) add(grad_k, code[threadIdx.x][k], gradient[threadIdx.x][k]);
}
