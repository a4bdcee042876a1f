// A tile of a product in float32, sum over k of a[m][k] b[n][k], made by a block. What the codebook half of the sketch
// kernels has in common (float16: warpgroup.cuh).
//
// An operand's tile lies in shared memory as its matrix lies in global memory: BY_K says that it is stored row by row of
// k, [TILE_K][TILE], else [TILE][TILE_K]. Rows are 16 bytes longer than they need be: then reading a column meets
// no bank conflicts. STAGES tiles are under way at once, copied by cp.async while others are multiplied.
#pragma once

#include "ptx.cuh"
#include "weight.cuh"

#ifndef TILE_M
#define TILE_M 128
#define TILE_N 128
#define TILE_K 16
#define WARPS_M 2
#define WARPS_N 4
#define STAGES 3
#endif
#define THREADS (32 * WARPS_M * WARPS_N)
#define WARP_M (TILE_M / WARPS_M)  // outputs a warp: WARP_M x WARP_N
#define WARP_N (TILE_N / WARPS_N)
#define CHUNK 4  // numbers in 16 bytes

template <int TILE, bool BY_K>
struct Operand {
    static constexpr int ROWS = BY_K ? TILE_K : TILE, LENGTH = BY_K ? TILE : TILE_K, PITCH = LENGTH + CHUNK;
    float v[ROWS][PITCH];

    // from(row, column) is the address of CHUNK numbers in global memory, or null where there are none: zeros then.
    template <class From>
    __device__ __forceinline__ void load(const float* any, const From& from) {
#pragma unroll
        for (int e = threadIdx.x; e < ROWS * LENGTH / CHUNK; e += THREADS) {
            const int row = e / (LENGTH / CHUNK), col = e % (LENGTH / CHUNK) * CHUNK;
            const float* address = from(row, col);
            cp_async<16>(&v[row][col], address ? address : any, address ? 16 : 0);
        }
    }
    __device__ __forceinline__ float at(int i, int k) const { return BY_K ? v[k][i] : v[i][k]; }
};

// This thread's sums: every eighth row and every fourth column of its warp's part.
struct Sums {
    float v[WARP_M / 8][WARP_N / 4];

    template <class A, class B>
    __device__ __forceinline__ void add(const A& a, const B& b) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int m0 = warp % WARPS_M * WARP_M + lane / 4, n0 = warp / WARPS_M * WARP_N + lane % 4;
#pragma unroll 4
        for (int k = 0; k < TILE_K; ++k) {
            float left[WARP_M / 8], right[WARP_N / 4];
#pragma unroll
            for (int i = 0; i < WARP_M / 8; ++i) left[i] = a.at(m0 + 8 * i, k);
#pragma unroll
            for (int j = 0; j < WARP_N / 4; ++j) right[j] = b.at(n0 + 4 * j, k);
#pragma unroll
            for (int i = 0; i < WARP_M / 8; ++i)
#pragma unroll
                for (int j = 0; j < WARP_N / 4; ++j) v[i][j] += left[i] * right[j];
        }
    }
    // see(m, n, value) for every output of this thread, counted inside the block's tile
    template <class See>
    __device__ __forceinline__ void each(const See& see) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int m0 = warp % WARPS_M * WARP_M + lane / 4, n0 = warp / WARPS_M * WARP_N + lane % 4;
#pragma unroll
        for (int i = 0; i < WARP_M / 8; ++i)
#pragma unroll
            for (int j = 0; j < WARP_N / 4; ++j) see(m0 + 8 * i, n0 + 4 * j, v[i][j]);
    }
};

struct alignas(16) Piece {
    float v[4];
};

// The whole product of a block: sums over k = 0 .. depth - 1, then store(m, n, piece) for four neighbours of a row at a
// time. left(m, k) and right(n, k) are the addresses of CHUNK numbers in global memory, or null.
template <bool A_BY_K, bool B_BY_K, class Left, class Right, class Store>
__device__ __forceinline__ void tile_product(
    unsigned char* memory, const float* any, int depth, const Left& left, const Right& right, const Store& store) {
    typedef Operand<TILE_M, A_BY_K> A;
    typedef Operand<TILE_N, B_BY_K> B;
    A* a = reinterpret_cast<A*>(memory);
    B* b = reinterpret_cast<B*>(memory + STAGES * sizeof(A));

    auto load = [&](int stage, int k0) {
        if (k0 < depth) {
            a[stage].load(any, [&](int row, int col) { return A_BY_K ? left(col, k0 + row) : left(row, k0 + col); });
            b[stage].load(any, [&](int row, int col) { return B_BY_K ? right(col, k0 + row) : right(row, k0 + col); });
        }
        cp_async_commit();
    };
    Sums sums = {};
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) load(i, i * TILE_K);
    int stage = 0, next = STAGES - 1;
    for (int k0 = 0; k0 < depth; k0 += TILE_K) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // tile `stage` is complete, and nobody reads tile `next` any more
        load(next, k0 + (STAGES - 1) * TILE_K);
        sums.add(a[stage], b[stage]);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    cp_async_wait<0>();
    __syncthreads();  // the tiles are done with: their memory takes the result

    constexpr int PITCH_OUT = TILE_N + 4;
    float* out = reinterpret_cast<float*>(memory);
    sums.each([&](int m, int n, float value) { out[m * PITCH_OUT + n] = value; });
    __syncthreads();  // the result is complete
#pragma unroll 4
    for (int e = threadIdx.x; e < TILE_M * TILE_N / 4; e += THREADS) {
        const int m = e / (TILE_N / 4), n = e % (TILE_N / 4) * 4;
        store(m, n, *reinterpret_cast<const Piece*>(&out[m * PITCH_OUT + n]));
    }
}
