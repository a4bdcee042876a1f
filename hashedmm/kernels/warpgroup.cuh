// Products of a block on tensor cores, float16 with float32 sums: A comes from registers, B from shared memory.
//
// Four warps work together, a *warpgroup*: 64 rows of A a unit, 16 a warp, in the fragments that mma.sync takes (ptx.cuh).
// On Hopper, compiled for sm_90a, a product is a wgmma: one instruction for 64 x N x 16, which reads B by itself and runs
// while the warps go on (PTX ISA, "Asynchronous warpgroup level matrix instructions"). Its peak is higher than that of
// mma.sync, which every other GPU from sm_80 on gets here, and the emulator: the same sums from the same memory.
//
// A tile of B has rows of 64 halves, 128 bytes, whose eight 16-byte pieces are swapped around by the row's number: piece p
// of row r is at p ^ r % 8. So eight rows read together are in eight different banks. It begins at a multiple of 1024 bytes.
//     BY_K      rows are k, [k][64 columns of n]; more columns are further tiles, `rows` rows each
//     not BY_K  rows are n, [n][64 of k]
#pragma once

#include "ptx.cuh"

// Where element (row, column) of a tile is, counted in halves; column < 64, or further tiles of `rows` rows.
__device__ __forceinline__ int swizzled(int row, int column, int rows) {
    return (column / 64 * rows + row) * 64 + ((column / 8 ^ row) % 8) * 8 + column % 8;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// What the tensor core is told of a tile: its address, how far apart its parts are (in 16 bytes), and the swizzle.
__device__ __forceinline__ unsigned long long wgmma_tile(const __half* b, unsigned leading, unsigned stride) {
    const unsigned long long address = __cvta_generic_to_shared(b);
    return (address & 0x3ffff) >> 4 | (unsigned long long)leading << 16 | (unsigned long long)stride << 32 | 1ull << 62;
}

#define WGMMA_4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WGMMA_16(d, i) WGMMA_4(d, i), WGMMA_4(d, i + 1), WGMMA_4(d, i + 2), WGMMA_4(d, i + 3)
#define WGMMA_A(a) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])

template <bool BY_K>
__device__ __forceinline__ void wgmma(float (&d)[4][4], const unsigned (&a)[4], unsigned long long b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
        "{%16,%17,%18,%19}, %20, p, 1, 1, %21;}"
        : WGMMA_16(d, 0) : WGMMA_A(a), "l"(b), "n"((int)BY_K));
}
template <bool BY_K>
__device__ __forceinline__ void wgmma(float (&d)[8][4], const unsigned (&a)[4], unsigned long long b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
        "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, %37;}"
        : WGMMA_16(d, 0), WGMMA_16(d, 4) : WGMMA_A(a), "l"(b), "n"((int)BY_K));
}
template <bool BY_K>
__device__ __forceinline__ void wgmma(float (&d)[16][4], const unsigned (&a)[4], unsigned long long b) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,"
        "%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,"
        "%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, {%64,%65,%66,%67}, %68, p, 1, 1, "
        "%69;}"
        : WGMMA_16(d, 0), WGMMA_16(d, 4), WGMMA_16(d, 8), WGMMA_16(d, 12) : WGMMA_A(a), "l"(b), "n"((int)BY_K));
}

// What cp.async has written becomes visible to wgmma: after cp_async_wait, before the barrier.
__device__ __forceinline__ void tile_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// All products that were begun are done, but for the last N.
template <int N>
__device__ __forceinline__ void warpgroup_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

// A warpgroup that needs fewer registers than the kernel was compiled for gives them back; then another can take more.
template <int N>
__device__ __forceinline__ void release_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N>
__device__ __forceinline__ void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

#else

__device__ __forceinline__ void tile_written() {}
template <int N> __device__ __forceinline__ void warpgroup_wait() {}
template <int N> __device__ __forceinline__ void release_registers() {}
template <int N> __device__ __forceinline__ void take_registers() {}

#endif

// d[u] += a[k][u] b for K16 steps of 16 of k and M64 units of 64 rows; b is the tile's first row or column of k, and n
// its first column (BY_K: a multiple of N) or row. All four warps together. Until warpgroup_wait, d, a and the tile are
// in use: nobody touches them.
template <bool BY_K, int K16, int M64, int N8>
__device__ __forceinline__ void warpgroup_begin(
    float (&d)[M64][N8][4], const unsigned (&a)[K16][M64][4], const __half* tile, int k0, int n, int rows) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K16; ++k) {
        // BY_K: from 8 rows of k to the next 1024 bytes, from 64 columns to the next a tile. Else: from 8 rows of n 1024.
        const __half* at = BY_K ? tile + (n / 64 * rows + k0 + 16 * k) * 64 + n % 64 : tile + n * 64 + k0 + 16 * k;
        const unsigned long long b = wgmma_tile(at, BY_K ? rows * 8 : 1, 64);
#pragma unroll
        for (int u = 0; u < M64; ++u) wgmma<BY_K>(d[u], a[k][u], b);
    }
    wgmma_commit();
#else
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < K16; ++k) {
#pragma unroll
        for (int j = 0; j < N8; j += 2) {
            unsigned b[4];
            if (BY_K) {
                ldmatrix_x4_trans(b, &tile[swizzled(k0 + 16 * k + lane % 16, n + 8 * j + lane / 16 * 8, rows)]);
            } else {
                ldmatrix_x4(b, &tile[swizzled(n + 8 * j + lane % 8 + lane / 16 * 8, k0 + 16 * k + lane / 8 % 2 * 8, rows)]);
            }
            const unsigned b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
            for (int u = 0; u < M64; ++u) {
                mma_sync_m16n8k16(d[u][j], a[k][u], b0, d[u][j]);
                mma_sync_m16n8k16(d[u][j + 1], a[k][u], b1, d[u][j + 1]);
            }
        }
    }
#endif
}

// The same, begun and done.
template <bool BY_K, int K16, int M64, int N8>
__device__ __forceinline__ void warpgroup_product(
    float (&d)[M64][N8][4], const unsigned (&a)[K16][M64][4], const __half* tile, int k0, int n, int rows) {
    warpgroup_begin<BY_K>(d, a, tile, k0, n, rows);
    warpgroup_wait<0>();
}
