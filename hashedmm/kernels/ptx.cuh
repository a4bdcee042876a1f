// The PTX instructions that tensor-core kernels need, as device functions: ldmatrix, mma.sync, cp.async.
//
// On a GPU each is one line of inline PTX (PTX ISA, "Warp-level matrix instructions" and "Data movement"; ldmatrix needs
// sm_75, the rest sm_80). In the emulator each is a few lines of host code that does the same to the same registers.
// Every lane of a warp has to call ldmatrix and mma_sync together. Addresses in shared memory are ordinary pointers.
//
//   ldmatrix_x1 / _x2 / _x4 (r, row)      lane l gives the address of row l % 8 of matrix l / 8: 8 halves, 16 bytes, anywhere
//                                         in shared memory. r[m] gets elements (l / 4, 2 * (l % 4)) and its right neighbour
//   ldmatrix_x1_trans / ...               the same of the transposed matrices
//   mma_sync_m16n8k16 (d, a, b, c)        d = a b + c, float16 inputs, float32 sums; a 16 x 16, b 16 x 8, c and d 16 x 8
//   mma_sync_m16n8k8 (d, a, b, c)         a 16 x 8, b 8 x 8
//   cp_async<N> (shared, global, bytes)   start to copy N = 4, 8 or 16 bytes; only `bytes` are read, zeros follow
//   cp_async_commit ()                    close a group of copies
//   cp_async_wait<N> ()                   wait until at most N groups are under way: the data are there for this thread, and
//                                         for the others after a barrier
//
//   block_barrier<THREADS> ()             __syncthreads for warps that come from different places of the code, which may not call
//                                         that: a barrier without .aligned asks that THREADS threads arrive, here all of the
//                                         block's, and not where
//   thread_anew ()                        threadIdx.x, read at this place: what a loop's end derives from it is then not kept
//                                         in registers from before the loop on
//
// Which lane holds what, with g = lane / 4 and t = lane % 4: a[0] is (g, 2t..2t+1), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..),
// a[3] (g + 8, 2t + 8..); b[0] is (2t..2t+1, g), b[1] (2t + 8.., g); d[0..1] are (g, 2t..2t+1), d[2..3] (g + 8, 2t..2t+1).
#pragma once

#ifndef HASHEDMM_EMULATOR

#define PTX_FUNCTION static __device__ __forceinline__

PTX_FUNCTION unsigned ptx_shared(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

#define PTX_LDMATRIX(SUFFIX, TRANS)                                                                                    \
    PTX_FUNCTION void ldmatrix_x1##SUFFIX(unsigned (&r)[1], const void* row) {                                         \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" TRANS ".shared.b16 {%0}, [%1];"                                   \
                     : "=r"(r[0]) : "r"(ptx_shared(row)) : "memory");                                                  \
    }                                                                                                                  \
    PTX_FUNCTION void ldmatrix_x2##SUFFIX(unsigned (&r)[2], const void* row) {                                         \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" TRANS ".shared.b16 {%0, %1}, [%2];"                               \
                     : "=r"(r[0]), "=r"(r[1]) : "r"(ptx_shared(row)) : "memory");                                      \
    }                                                                                                                  \
    PTX_FUNCTION void ldmatrix_x4##SUFFIX(unsigned (&r)[4], const void* row) {                                         \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" TRANS ".shared.b16 {%0, %1, %2, %3}, [%4];"                       \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(ptx_shared(row)) : "memory");              \
    }
PTX_LDMATRIX(, "")
PTX_LDMATRIX(_trans, ".trans")
#undef PTX_LDMATRIX

PTX_FUNCTION void mma_sync_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
                   "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

PTX_FUNCTION void mma_sync_m16n8k8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1], const float (&c)[4]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

template <int N> PTX_FUNCTION void cp_async(void* shared, const void* global, int bytes = N) {
    static_assert(N == 4 || N == 8 || N == 16, "cp.async copies 4, 8 or 16 bytes");
    if (N == 16) {  // past L1: only this size can
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared(shared)), "l"(global), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(ptx_shared(shared)), "l"(global), "n"(N), "r"(bytes) : "memory");
    }
}
PTX_FUNCTION void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
PTX_FUNCTION int thread_anew() {
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}
template <int THREADS> PTX_FUNCTION void block_barrier() {
    asm volatile("barrier.sync 1, %0;" ::"n"(THREADS) : "memory");
}
template <int N> PTX_FUNCTION void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#undef PTX_FUNCTION

#else  // the emulator

struct PtxLdmatrix {
    const void* row;
    unsigned* r;
};

template <int COUNT, bool TRANS> HM_UNTRACED void ptx_ldmatrix_all(void** lanes, unsigned) {
    for (int lane = 0; lane < 32; lane++) {
        if (!lanes[lane]) continue;
        for (int m = 0; m < COUNT; m++) {
            unsigned value = 0;
            for (int e = 0; e < 2; e++) {
                int row = lane / 4, col = 2 * (lane % 4) + e;
                const PtxLdmatrix* from = (const PtxLdmatrix*)lanes[8 * m + (TRANS ? col : row)];
                unsigned short half = from ? ((const unsigned short*)from->row)[TRANS ? row : col] : 0xffff;
                value |= (unsigned)half << 16 * e;
            }
            ((PtxLdmatrix*)lanes[lane])->r[m] = value;
        }
    }
}
template <int COUNT, bool TRANS> HM_ACCESSOR void ptx_ldmatrix(int line, unsigned (&r)[COUNT], const void* row) {
    if (hm_lane < 8 * COUNT) {
        if ((size_t)row % 16) hm_assert_fail("the row of an ldmatrix starts at a multiple of 16 bytes", line);
#ifdef HM_TRACED
        hm_access(row, 16, HM_READ, HM_PC);
#endif
    }
    PtxLdmatrix mine = {row, r};
    hm_collective(line, HM_ALL, "ldmatrix", &mine, ptx_ldmatrix_all<COUNT, TRANS>);
}
#define ldmatrix_x1(...) ptx_ldmatrix<1, false>(__LINE__, __VA_ARGS__)
#define ldmatrix_x2(...) ptx_ldmatrix<2, false>(__LINE__, __VA_ARGS__)
#define ldmatrix_x4(...) ptx_ldmatrix<4, false>(__LINE__, __VA_ARGS__)
#define ldmatrix_x1_trans(...) ptx_ldmatrix<1, true>(__LINE__, __VA_ARGS__)
#define ldmatrix_x2_trans(...) ptx_ldmatrix<2, true>(__LINE__, __VA_ARGS__)
#define ldmatrix_x4_trans(...) ptx_ldmatrix<4, true>(__LINE__, __VA_ARGS__)

struct PtxMma {
    float* d;
    const unsigned *a, *b;
    const float* c;
};

// K is 16 or 8. Products of halves are exact; sums are rounded once. A GPU's order and rounding of the sums differ a little.
template <int K> HM_UNTRACED void ptx_mma_all(void** lanes, unsigned) {
    float a[16][K] = {}, b[K][8] = {};
    for (int lane = 0; lane < 32; lane++) {
        const PtxMma* l = (const PtxMma*)lanes[lane];
        if (!l) continue;
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < K / 4; i++)
            for (int e = 0; e < 2; e++)
                a[g + i % 2 * 8][2 * t + i / 2 * 8 + e] = hm_half_to_float((unsigned short)(l->a[i] >> 16 * e));
        for (int i = 0; i < K / 8; i++)
            for (int e = 0; e < 2; e++) b[2 * t + i * 8 + e][g] = hm_half_to_float((unsigned short)(l->b[i] >> 16 * e));
    }
    for (int lane = 0; lane < 32; lane++) {
        PtxMma* l = (PtxMma*)lanes[lane];
        if (!l) continue;
        for (int i = 0; i < 4; i++) {
            int row = lane / 4 + i / 2 * 8, col = 2 * (lane % 4) + i % 2;
            double sum = l->c[i];
            for (int k = 0; k < K; k++) sum += (double)(a[row][k] * b[k][col]);
            l->d[i] = (float)sum;
        }
    }
}
HM_UNTRACED void ptx_mma16(int line, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], const float (&c)[4]) {
    PtxMma mine = {d, a, b, c};
    hm_collective(line, HM_ALL, "mma_sync_m16n8k16", &mine, ptx_mma_all<16>);
}
HM_UNTRACED void ptx_mma8(int line, float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1], const float (&c)[4]) {
    PtxMma mine = {d, a, b, c};
    hm_collective(line, HM_ALL, "mma_sync_m16n8k8", &mine, ptx_mma_all<8>);
}
#define mma_sync_m16n8k16(...) ptx_mma16(__LINE__, __VA_ARGS__)
#define mma_sync_m16n8k8(...) ptx_mma8(__LINE__, __VA_ARGS__)

// The data arrive at cp_async_wait and not before, so that a forgotten one shows.
template <int N> HM_ACCESSOR void cp_async(void* shared, const void* global, int bytes = N) {
    static_assert(N == 4 || N == 8 || N == 16, "cp.async copies 4, 8 or 16 bytes");
    if ((size_t)shared % N || (size_t)global % N) hm_assert_fail("both addresses of a cp_async<N> are multiples of N bytes", 0);
    hm_cp_async(shared, global, N, (unsigned)bytes, HM_PC);
}
HM_UNTRACED void cp_async_commit() { hm_cp_async_commit(); }
template <int N> HM_UNTRACED void cp_async_wait() { hm_cp_async_wait(N); }
template <int THREADS> HM_UNTRACED void block_barrier() { __syncthreads(); }
#define thread_anew() ((int)threadIdx.x)

#endif
