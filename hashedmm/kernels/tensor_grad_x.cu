// tensor_grad_x: the gradient with respect to x, W^T gy, by tensor cores: tensor with the transposition left out.
//
// Who computes what: a block owns TILE_ROWS inputs inside one column of panels, and TILE_COLS columns of gy; a
// warpgroup GROUP_ROWS x GROUP_COLS of that, in registers. The block walks the panels from top to bottom, 64 outputs at
// a time.
// What to see: a piece of a codeword is 8 outputs of one input: a row of W^T. So ldmatrix without .trans gives W^T from
// the same slice and the same table as tensor. Only the signs differ: a register's two weights now share one.
//
// Specs, launch, parameters: as tensor, with inputs for rows: the grid holds, for each column of panels, for each
// TILE_ROWS of it, the tiles of columns of gy.
//     layout  where each weight is stored
//     w_k     (buckets)
//     gy_mn   (rows, n): element (i, s) at i * gy_down + s * gy_across; one of the two is 1
//     gx_dn   (cols, n), C order, written in full
#include "tensor.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) tensor_grad_x(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ gy_mn, const long long gy_down, const long long gy_across,
    WEIGHT* __restrict__ gx_dn, const int n) {
    extern __shared__ __align__(1024) unsigned char shared[];
    tensor_product<true>(layout, shared, w_k, gy_mn, gy_down, gy_across, gx_dn, n);
}
