// Tiles in shared memory: how all threads of a block fill one, and how a thread multiplies with two.
#pragma once

#include "weight.cuh"

// tile[a][b] = matrix[first_a + a][first_b + b], and 0 outside of size_a x size_b. The matrix may be stored in either
// order: element (a, b) is matrix[a * step_a + b * step_b]. Neighbouring threads read neighbouring addresses in both.
// Rows of the tile are PITCH long: a few floats more than TILE_B, so that writing down a column does not always hit the
// same bank of shared memory.
template <int TILE_A, int TILE_B, int PITCH>
__device__ __forceinline__ void load_tile(
    float (&tile)[TILE_A][PITCH], const WEIGHT* matrix, long long step_a, long long step_b,
    int first_a, int first_b, int size_a, int size_b, int thread, int threads) {
    for (int e = thread; e < TILE_A * TILE_B; e += threads) {
        const int a = step_b == 1 ? e / TILE_B : e % TILE_A;
        const int b = step_b == 1 ? e % TILE_B : e / TILE_A;
        const bool inside = first_a + a < size_a && first_b + b < size_b;
        tile[a][b] = inside ? to_float(matrix[(first_a + a) * step_a + (first_b + b) * step_b]) : 0.0f;
    }
}

// Neighbouring numbers from shared memory into registers. If COUNT is a multiple of four, four are one 16-byte read, and
// the address must be a multiple of 16 bytes.
template <int COUNT>
__device__ __forceinline__ void read(float (&to)[COUNT], const float* from) {
#pragma unroll
    for (int k = 0; k < COUNT; ++k) {
        if (COUNT % 4) {
            to[k] = from[k];
        } else if (k % 4 == 0) {
            const float4 four = *reinterpret_cast<const float4*>(from + k);
            to[k] = four.x, to[k + 1] = four.y, to[k + 2] = four.z, to[k + 3] = four.w;
        }
    }
}

// sum[r][c] += a[r] * b[c]: ROWS + COLS numbers are read, ROWS * COLS multiply-adds done.
template <int ROWS, int COLS>
__device__ __forceinline__ void add_outer(float (&sum)[ROWS][COLS], const float* a, const float* b) {
    float a_row[ROWS], b_col[COLS];
    read(a_row, a);
    read(b_col, b);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int c = 0; c < COLS; ++c) sum[r][c] += a_row[r] * b_col[c];
    }
}
