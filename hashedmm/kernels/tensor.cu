// 7 tensor: y = W x by tensor cores, for strips, where ldmatrix is the gather.
//
// Who computes what: a block owns TILE_ROWS rows inside one row of panels, and TILE_COLS columns of X; a warpgroup of
// four warps GROUP_ROWS x GROUP_COLS of that, in registers from the first panel to the last. The block walks the panels
// from left to right, 64 inputs at a time. A pipeline of STAGES stages (tensor.cuh) copies what comes next while this
// is multiplied: the tile of X, the panel's slice of w, and a small table: for each 16 outputs and each input, where
// its 16 weights lie in the slice, worked out by the hash once a block, and the signs. Each lane of ldmatrix then reads
// its address from the table. On Hopper the products are wgmma, elsewhere mma.sync (warpgroup.cuh).
// What to see: a dense product reads a tile of W from global memory, stores it in shared memory, and loads it from
// there. Here the first two steps are gone, and the third is a look-up that costs no more, since 8 copies of the slice
// leave no bank conflicts. What remains is what a dense product does: its speed is the tensor cores'.
//
// Specs: blocks (h, 1) with h a multiple of 16, at strides of a multiple of 8 buckets. float16 only.
// Launch: THREADS = 128 * (TILE_ROWS / GROUP_ROWS) * (TILE_COLS / GROUP_COLS) in a 1-D block. A 1-D grid: for each row
// of panels, for each TILE_ROWS of it, the tiles of columns. Dynamic shared memory: the stages and slices of
// tensor.cuh.
// TILE_ROWS and GROUP_ROWS 64 or 128; TILE_COLS and GROUP_COLS 32, 64, 128 or 256; STAGES at least 2; COPIES of the
// slice 1, 2, 4 or 8.
//     layout  where each weight is stored
//     w_k     (buckets)
//     x_dn    (cols, n): element (j, s) at j * x_down + s * x_across; one of the two is 1
//     y_mn    (rows, n), C order, written in full
#include "tensor.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) tensor(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    WEIGHT* __restrict__ y_mn, const int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    tensor_product<false>(layout, shared, w_k, x_dn, x_down, x_across, y_mn, n);
}
