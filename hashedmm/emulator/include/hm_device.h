// What a CUDA source sees in the emulator: qualifiers, built-in variables, vector types and intrinsics as host C++.
//
// It is put in front of every source. It includes no system header, so that a build takes a fraction of a second and a kernel may
// have any name. What needs the scheduler (barriers, warp collectives, printf) is in runtime.cpp.
#pragma once

#define HASHEDMM_EMULATOR 1
#define __CUDA_ARCH__ 900

#define HM_HIDDEN __attribute__((visibility("hidden")))
#define HM_INLINE static inline __attribute__((always_inline, unused))
// What is only written is kept, too, in a traced build. There an accessor is a real call, and HM_PC is the place in the user's source that calls it.
#ifdef HM_TRACED
#define __shared__ static __attribute__((used, section("hm_shared")))
#define HM_ACCESSOR static __attribute__((noinline, unused, no_sanitize("thread")))
#define HM_UNTRACED static __attribute__((noinline, unused, no_sanitize("thread")))
#else
#define __shared__ static __attribute__((section("hm_shared")))
#define HM_ACCESSOR static inline __attribute__((unused))
#define HM_UNTRACED static inline __attribute__((unused))
#endif
#define HM_PC __builtin_return_address(0)

// ---- qualifiers

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

// ---- vector types

#define HM_VECTOR(T, NAME, ALIGN2, ALIGN4)                                                                             \
    struct NAME##1 { T x; };                                                                                           \
    struct __attribute__((aligned(ALIGN2))) NAME##2 { T x, y; };                                                       \
    struct NAME##3 { T x, y, z; };                                                                                     \
    struct __attribute__((aligned(ALIGN4))) NAME##4 { T x, y, z, w; };                                                 \
    HM_INLINE NAME##1 make_##NAME##1(T x) { return NAME##1{x}; }                                                       \
    HM_INLINE NAME##2 make_##NAME##2(T x, T y) { return NAME##2{x, y}; }                                               \
    HM_INLINE NAME##3 make_##NAME##3(T x, T y, T z) { return NAME##3{x, y, z}; }                                       \
    HM_INLINE NAME##4 make_##NAME##4(T x, T y, T z, T w) { return NAME##4{x, y, z, w}; }
HM_VECTOR(signed char, char, 2, 4)
HM_VECTOR(unsigned char, uchar, 2, 4)
HM_VECTOR(short, short, 4, 8)
HM_VECTOR(unsigned short, ushort, 4, 8)
HM_VECTOR(int, int, 8, 16)
HM_VECTOR(unsigned int, uint, 8, 16)
HM_VECTOR(long, long, 16, 16)
HM_VECTOR(unsigned long, ulong, 16, 16)
HM_VECTOR(long long, longlong, 16, 16)
HM_VECTOR(unsigned long long, ulonglong, 16, 16)
HM_VECTOR(float, float, 8, 16)
HM_VECTOR(double, double, 16, 16)
#undef HM_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// ---- what the runtime provides

// Constants to a thread: the scheduler rewrites them whenever it resumes another one.
extern const uint3 threadIdx __asm__("hm_threadIdx") HM_HIDDEN;
extern const uint3 blockIdx __asm__("hm_blockIdx") HM_HIDDEN;
extern const uint3 blockDim __asm__("hm_blockDim") HM_HIDDEN;
extern const uint3 gridDim __asm__("hm_gridDim") HM_HIDDEN;
extern const unsigned hm_lane __asm__("hm_lane") HM_HIDDEN;
static constexpr int warpSize = 32;

enum { HM_READ, HM_WRITE, HM_ATOMIC };
enum { HM_SYNCWARP, HM_SHFL, HM_BALLOT, HM_MATCH_ANY, HM_MATCH_ALL, HM_ADD, HM_MIN, HM_MAX, HM_UMIN, HM_UMAX, HM_AND, HM_OR, HM_XOR, HM_OTHER };

extern "C" {
HM_HIDDEN int hm_syncthreads(int line, int predicate, int reduction);
HM_HIDDEN unsigned long long hm_exchange(int line, int op, unsigned mask, unsigned long long value, int lane);
HM_HIDDEN void hm_collective(int line, unsigned mask, const char *what, void *data, void (*complete)(void **, unsigned));
HM_HIDDEN unsigned hm_activemask(void);
HM_HIDDEN int hm_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
HM_HIDDEN void hm_assert_fail(const char *condition, int line) __attribute__((noreturn));
HM_HIDDEN void hm_access(const void *address, unsigned size, int op, void *pc);
HM_HIDDEN void hm_cp_async(void *shared, const void *global, unsigned bytes, unsigned source_bytes, void *pc);
HM_HIDDEN void hm_cp_async_commit(void);
HM_HIDDEN void hm_cp_async_wait(int pending);
HM_HIDDEN long long hm_clock(void);
}

// ---- barriers, votes, shuffles

#define __syncthreads() ((void)hm_syncthreads(__LINE__, 1, 0))
#define __syncthreads_count(p) hm_syncthreads(__LINE__, !!(p), 1)
#define __syncthreads_and(p) hm_syncthreads(__LINE__, !!(p), 2)
#define __syncthreads_or(p) hm_syncthreads(__LINE__, !!(p), 3)

#define HM_ALL 0xffffffffu
HM_INLINE void hm_syncwarp(int line, unsigned mask = HM_ALL) { hm_exchange(line, HM_SYNCWARP, mask, 0, 0); }
#define __syncwarp(...) hm_syncwarp(__LINE__, ##__VA_ARGS__)
#define __activemask() hm_activemask()
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)
#define __threadfence_system() ((void)0)
#define __nanosleep(ns) ((void)(ns))

HM_INLINE unsigned hm_ballot(int line, unsigned mask, int p) { return (unsigned)hm_exchange(line, HM_BALLOT, mask, !!p, 0); }
HM_INLINE int hm_all(int line, unsigned mask, int p) { return !hm_ballot(line, mask, !p); }
#define __ballot_sync(mask, p) hm_ballot(__LINE__, mask, p)
#define __any_sync(mask, p) (hm_ballot(__LINE__, mask, p) != 0)
#define __all_sync(mask, p) hm_all(__LINE__, mask, p)

template <class T> HM_INLINE unsigned long long hm_bits(T v) {
    static_assert(sizeof(T) <= 8, "a warp collective exchanges values of at most 8 bytes");
    unsigned long long b = 0;
    __builtin_memcpy(&b, &v, sizeof v);
    return b;
}
template <class T> HM_INLINE T hm_value(unsigned long long b) {
    T v;
    __builtin_memcpy(&v, &b, sizeof v);
    return v;
}
template <class T> HM_INLINE T hm_shfl(int line, unsigned mask, T v, int lane) {
    return hm_value<T>(hm_exchange(line, HM_SHFL, mask, hm_bits(v), lane));
}
template <class T> HM_INLINE T hm_shfl_idx(int line, unsigned mask, T v, int lane, int width = 32) {
    return hm_shfl(line, mask, v, (hm_lane & ~(width - 1)) | (lane & (width - 1)));
}
template <class T> HM_INLINE T hm_shfl_up(int line, unsigned mask, T v, unsigned delta, int width = 32) {
    return hm_shfl(line, mask, v, (hm_lane & (width - 1)) < delta ? hm_lane : hm_lane - delta);
}
template <class T> HM_INLINE T hm_shfl_down(int line, unsigned mask, T v, unsigned delta, int width = 32) {
    return hm_shfl(line, mask, v, (hm_lane & (width - 1)) + delta >= (unsigned)width ? hm_lane : hm_lane + delta);
}
template <class T> HM_INLINE T hm_shfl_xor(int line, unsigned mask, T v, int bits, int width = 32) {
    unsigned lane = hm_lane ^ bits;
    return hm_shfl(line, mask, v, lane > (hm_lane | (width - 1)) ? hm_lane : lane);
}
#define __shfl_sync(...) hm_shfl_idx(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) hm_shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) hm_shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) hm_shfl_xor(__LINE__, __VA_ARGS__)

template <class T> HM_INLINE unsigned hm_match_any(int line, unsigned mask, T v) { return (unsigned)hm_exchange(line, HM_MATCH_ANY, mask, hm_bits(v), 0); }
template <class T> HM_INLINE unsigned hm_match_all(int line, unsigned mask, T v, int *same) {
    unsigned result = (unsigned)hm_exchange(line, HM_MATCH_ALL, mask, hm_bits(v), 0);
    *same = result != 0;
    return result;
}
#define __match_any_sync(mask, v) hm_match_any(__LINE__, mask, v)
#define __match_all_sync(mask, v, same) hm_match_all(__LINE__, mask, v, same)

HM_INLINE int hm_reduce(int line, int op, int, unsigned mask, int v) { return (int)hm_exchange(line, op, mask, (unsigned)v, 0); }
HM_INLINE unsigned hm_reduce(int line, int, int op, unsigned mask, unsigned v) { return (unsigned)hm_exchange(line, op, mask, v, 0); }
#define __reduce_add_sync(mask, v) hm_reduce(__LINE__, HM_ADD, HM_ADD, mask, v)
#define __reduce_min_sync(mask, v) hm_reduce(__LINE__, HM_MIN, HM_UMIN, mask, v)
#define __reduce_max_sync(mask, v) hm_reduce(__LINE__, HM_MAX, HM_UMAX, mask, v)
#define __reduce_and_sync(mask, v) hm_reduce(__LINE__, HM_AND, HM_AND, mask, (unsigned)(v))
#define __reduce_or_sync(mask, v) hm_reduce(__LINE__, HM_OR, HM_OR, mask, (unsigned)(v))
#define __reduce_xor_sync(mask, v) hm_reduce(__LINE__, HM_XOR, HM_XOR, mask, (unsigned)(v))

// ---- atomics: one operating-system thread runs all fibers, so a read and a write are atomic

template <class T> struct hm_same { typedef T type; };
#ifdef HM_TRACED
#define HM_ATOMIC_EVENT(p) hm_access((const void *)(p), sizeof *(p), HM_ATOMIC, HM_PC)
#else
#define HM_ATOMIC_EVENT(p) ((void)0)
#endif
#define HM_RMW(NAME, TYPES, EXPR)                                                                                      \
    template <class T> HM_ACCESSOR T NAME(T *p, typename hm_same<T>::type v) {                                         \
        static_assert(TYPES, #NAME " has no version for this type");                                                   \
        HM_ATOMIC_EVENT(p);                                                                                            \
        T old = *p;                                                                                                    \
        *p = EXPR;                                                                                                     \
        return old;                                                                                                    \
    }                                                                                                                  \
    template <class T> HM_ACCESSOR T NAME##_block(T *p, typename hm_same<T>::type v) {                                 \
        HM_ATOMIC_EVENT(p);                                                                                            \
        T old = *p;                                                                                                    \
        *p = EXPR;                                                                                                     \
        return old;                                                                                                    \
    }
template <class T> struct hm_atomic { static constexpr bool add = false, bits = false, exch = false; };
template <> struct hm_atomic<int> { static constexpr bool add = true, bits = true, exch = true; };
template <> struct hm_atomic<unsigned> { static constexpr bool add = true, bits = true, exch = true; };
template <> struct hm_atomic<unsigned long long> { static constexpr bool add = true, bits = true, exch = true; };
template <> struct hm_atomic<long long> { static constexpr bool add = false, bits = true, exch = false; };
template <> struct hm_atomic<float> { static constexpr bool add = true, bits = false, exch = true; };
template <> struct hm_atomic<double> { static constexpr bool add = true, bits = false, exch = false; };
template <> struct hm_atomic<unsigned short> { static constexpr bool add = false, bits = false, exch = true; };
HM_RMW(atomicAdd, hm_atomic<T>::add, (T)(old + v))
HM_RMW(atomicSub, hm_atomic<T>::bits && sizeof(T) == 4, (T)(old - v))
HM_RMW(atomicMax, hm_atomic<T>::bits, (old > v ? old : v))
HM_RMW(atomicMin, hm_atomic<T>::bits, (old < v ? old : v))
HM_RMW(atomicExch, hm_atomic<T>::exch, v)
HM_RMW(atomicAnd, hm_atomic<T>::bits, (T)(old & v))
HM_RMW(atomicOr, hm_atomic<T>::bits, (T)(old | v))
HM_RMW(atomicXor, hm_atomic<T>::bits, (T)(old ^ v))
HM_RMW(atomicInc, (hm_atomic<T>::add && sizeof(T) == 4), (old >= v ? 0 : old + 1))
HM_RMW(atomicDec, (hm_atomic<T>::add && sizeof(T) == 4), (old == 0 || old > v ? v : old - 1))
template <class T> HM_ACCESSOR T atomicCAS(T *p, typename hm_same<T>::type expected, typename hm_same<T>::type v) {
    static_assert(hm_atomic<T>::bits || sizeof(T) == 2, "atomicCAS has no version for this type");
    HM_ATOMIC_EVENT(p);
    T old = *p;
    if (old == expected) *p = v;
    return old;
}

// ---- memory

#define __ldg(p) (*(p))
#define __ldcs(p) (*(p))
#define __ldcg(p) (*(p))
#define __ldca(p) (*(p))
#define __stcs(p, v) ((void)(*(p) = (v)))
#define __stcg(p, v) ((void)(*(p) = (v)))
#define memcpy __builtin_memcpy
#define memset __builtin_memset
typedef __SIZE_TYPE__ size_t;

// ---- integers and bits

HM_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
HM_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
HM_INLINE int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
HM_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
HM_INLINE int __ffs(int x) { return __builtin_ffs(x); }
HM_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
HM_INLINE unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
HM_INLINE unsigned long long __brevll(unsigned long long x) { return (unsigned long long)__brev((unsigned)x) << 32 | __brev((unsigned)(x >> 32)); }
HM_INLINE int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
HM_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
HM_INLINE long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
HM_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }
HM_INLINE int __mul24(int a, int b) { return (int)((unsigned)(a << 8 >> 8) * (unsigned)(b << 8 >> 8)); }
HM_INLINE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
HM_INLINE unsigned __sad(int a, int b, unsigned c) { return c + (a > b ? (unsigned)a - b : (unsigned)b - a); }
HM_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned byte = (unsigned)(bytes >> 8 * (s >> 4 * i & 7)) & 0xff;
        if (s >> 4 * i & 8) byte = byte & 0x80 ? 0xff : 0;
        r |= byte << 8 * i;
    }
    return r;
}
HM_INLINE unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) { return (unsigned)(((unsigned long long)hi << 32 | lo) << (n & 31) >> 32); }
HM_INLINE unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) { return (unsigned)(((unsigned long long)hi << 32 | lo) >> (n & 31)); }
HM_INLINE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (signed char)(a >> 8 * i) * (signed char)(b >> 8 * i);
    return c;
}

HM_INLINE int __float_as_int(float x) { return hm_value<int>(hm_bits(x)); }
HM_INLINE unsigned __float_as_uint(float x) { return hm_value<unsigned>(hm_bits(x)); }
HM_INLINE float __int_as_float(int x) { return hm_value<float>(hm_bits(x)); }
HM_INLINE float __uint_as_float(unsigned x) { return hm_value<float>(hm_bits(x)); }
HM_INLINE long long __double_as_longlong(double x) { return hm_value<long long>(hm_bits(x)); }
HM_INLINE double __longlong_as_double(long long x) { return hm_value<double>(hm_bits(x)); }
HM_INLINE float __int2float_rn(int x) { return (float)x; }
HM_INLINE float __uint2float_rn(unsigned x) { return (float)x; }
HM_INLINE float __ll2float_rn(long long x) { return (float)x; }
HM_INLINE float __ull2float_rn(unsigned long long x) { return (float)x; }
HM_INLINE float __double2float_rn(double x) { return (float)x; }
HM_INLINE double __int2double_rn(int x) { return x; }
HM_INLINE double __uint2double_rn(unsigned x) { return x; }
HM_INLINE int hm_to_int(double x) { return x != x ? 0 : x >= 2147483647.0 ? 2147483647 : x <= -2147483648.0 ? -2147483647 - 1 : (int)x; }
HM_INLINE int __float2int_rn(float x) { return hm_to_int(__builtin_rint(x)); }
HM_INLINE int __float2int_rz(float x) { return hm_to_int(__builtin_trunc(x)); }
HM_INLINE int __float2int_rd(float x) { return hm_to_int(__builtin_floor(x)); }
HM_INLINE int __float2int_ru(float x) { return hm_to_int(__builtin_ceil(x)); }
HM_INLINE int __double2int_rn(double x) { return hm_to_int(__builtin_rint(x)); }
HM_INLINE int __double2int_rz(double x) { return hm_to_int(__builtin_trunc(x)); }
HM_INLINE unsigned hm_to_uint(double x) { return !(x > 0) ? 0 : x >= 4294967295.0 ? 0xffffffffu : (unsigned)x; }
HM_INLINE unsigned __float2uint_rn(float x) { return hm_to_uint(__builtin_rint(x)); }
HM_INLINE unsigned __float2uint_rz(float x) { return hm_to_uint(__builtin_trunc(x)); }

// ---- minimum and maximum: CUDA's overloads, mixed signs become unsigned

#define HM_MINMAX(R, A, B)                                                                                             \
    HM_INLINE R min(A a, B b) { return (R)a < (R)b ? (R)a : (R)b; }                                                    \
    HM_INLINE R max(A a, B b) { return (R)a > (R)b ? (R)a : (R)b; }
#define HM_MINMAX_INTEGER(S) HM_MINMAX(S, S, S) HM_MINMAX(unsigned S, unsigned S, unsigned S) HM_MINMAX(unsigned S, S, unsigned S) HM_MINMAX(unsigned S, unsigned S, S)
HM_MINMAX_INTEGER(int)
HM_MINMAX_INTEGER(long)
HM_MINMAX_INTEGER(long long)
#define HM_MINMAX_REAL(R, A, B)                                                                                        \
    HM_INLINE R min(A a, B b) { return __builtin_fmin(a, b); }                                                         \
    HM_INLINE R max(A a, B b) { return __builtin_fmax(a, b); }
HM_INLINE float min(float a, float b) { return __builtin_fminf(a, b); }
HM_INLINE float max(float a, float b) { return __builtin_fmaxf(a, b); }
HM_MINMAX_REAL(double, double, double)
HM_MINMAX_REAL(double, float, double)
HM_MINMAX_REAL(double, double, float)
HM_INLINE int abs(int x) { return x < 0 ? -x : x; }
HM_INLINE long long abs(long long x) { return x < 0 ? -x : x; }
HM_INLINE long abs(long x) { return x < 0 ? -x : x; }
HM_INLINE long long llabs(long long x) { return x < 0 ? -x : x; }
HM_INLINE float abs(float x) { return __builtin_fabsf(x); }
HM_INLINE double abs(double x) { return __builtin_fabs(x); }

// ---- floating point

#define HM_MATH1(NAME)                                                                                                 \
    HM_INLINE float NAME##f(float x) { return __builtin_##NAME##f(x); }                                                \
    HM_INLINE float NAME(float x) { return __builtin_##NAME##f(x); }                                                   \
    HM_INLINE double NAME(double x) { return __builtin_##NAME(x); }                                                    \
    HM_INLINE double NAME(int x) { return __builtin_##NAME(x); }
#define HM_MATH2(NAME)                                                                                                 \
    HM_INLINE float NAME##f(float x, float y) { return __builtin_##NAME##f(x, y); }                                    \
    HM_INLINE float NAME(float x, float y) { return __builtin_##NAME##f(x, y); }                                       \
    HM_INLINE double NAME(double x, double y) { return __builtin_##NAME(x, y); }                                       \
    HM_INLINE double NAME(float x, double y) { return __builtin_##NAME(x, y); }                                        \
    HM_INLINE double NAME(double x, float y) { return __builtin_##NAME(x, y); }                                        \
    HM_INLINE double NAME(float x, int y) { return __builtin_##NAME(x, y); }                                           \
    HM_INLINE double NAME(double x, int y) { return __builtin_##NAME(x, y); }
HM_MATH1(sqrt) HM_MATH1(cbrt) HM_MATH1(exp) HM_MATH1(exp2) HM_MATH1(exp10) HM_MATH1(expm1) HM_MATH1(log) HM_MATH1(log2)
HM_MATH1(log10) HM_MATH1(log1p) HM_MATH1(sin) HM_MATH1(cos) HM_MATH1(tan) HM_MATH1(asin) HM_MATH1(acos) HM_MATH1(atan)
HM_MATH1(sinh) HM_MATH1(cosh) HM_MATH1(tanh) HM_MATH1(asinh) HM_MATH1(acosh) HM_MATH1(atanh) HM_MATH1(erf) HM_MATH1(erfc)
HM_MATH1(tgamma) HM_MATH1(lgamma) HM_MATH1(floor) HM_MATH1(ceil) HM_MATH1(trunc) HM_MATH1(round) HM_MATH1(rint)
HM_MATH1(nearbyint) HM_MATH1(fabs)
HM_MATH2(pow) HM_MATH2(fmin) HM_MATH2(fmax) HM_MATH2(fmod) HM_MATH2(atan2) HM_MATH2(hypot) HM_MATH2(copysign) HM_MATH2(fdim)
HM_MATH2(remainder)
HM_INLINE float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
HM_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
HM_INLINE double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
HM_INLINE float ldexpf(float x, int e) { return __builtin_ldexpf(x, e); }
HM_INLINE double ldexp(double x, int e) { return __builtin_ldexp(x, e); }
HM_INLINE float rsqrtf(float x) { return (float)(1.0 / __builtin_sqrt(x)); }
HM_INLINE float rsqrt(float x) { return rsqrtf(x); }
HM_INLINE double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
HM_INLINE void sincosf(float x, float *s, float *c) { *s = __builtin_sinf(x), *c = __builtin_cosf(x); }
HM_INLINE bool isnan(float x) { return x != x; }
HM_INLINE bool isnan(double x) { return x != x; }
HM_INLINE bool isinf(float x) { return __builtin_isinf(x); }
HM_INLINE bool isinf(double x) { return __builtin_isinf(x); }
HM_INLINE bool isfinite(float x) { return __builtin_isfinite(x); }
HM_INLINE bool isfinite(double x) { return __builtin_isfinite(x); }
HM_INLINE bool signbit(float x) { return __builtin_signbit(x); }

HM_INLINE float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
HM_INLINE double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
HM_INLINE float __fadd_rn(float a, float b) { return a + b; }
HM_INLINE float __fsub_rn(float a, float b) { return a - b; }
HM_INLINE float __fmul_rn(float a, float b) { return a * b; }
HM_INLINE float __fdiv_rn(float a, float b) { return a / b; }
HM_INLINE float __frcp_rn(float x) { return 1.0f / x; }
HM_INLINE float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
HM_INLINE float __frsqrt_rn(float x) { return rsqrtf(x); }
HM_INLINE double __dadd_rn(double a, double b) { return a + b; }
HM_INLINE double __dmul_rn(double a, double b) { return a * b; }
HM_INLINE float __fdividef(float a, float b) { return a / b; }
HM_INLINE float __expf(float x) { return __builtin_expf(x); }
HM_INLINE float __exp10f(float x) { return __builtin_exp10f(x); }
HM_INLINE float __logf(float x) { return __builtin_logf(x); }
HM_INLINE float __log2f(float x) { return __builtin_log2f(x); }
HM_INLINE float __log10f(float x) { return __builtin_log10f(x); }
HM_INLINE float __powf(float x, float y) { return __builtin_powf(x, y); }
HM_INLINE float __sinf(float x) { return __builtin_sinf(x); }
HM_INLINE float __cosf(float x) { return __builtin_cosf(x); }
HM_INLINE float __tanf(float x) { return __builtin_tanf(x); }
HM_INLINE float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }

#ifndef INFINITY
#define INFINITY __builtin_inff()
#endif
#ifndef NAN
#define NAN __builtin_nanf("")
#endif

// ---- the rest

#define printf hm_printf
#define assert(condition) ((condition) ? (void)0 : hm_assert_fail(#condition, __LINE__))
#define __trap() hm_assert_fail("__trap()", __LINE__)
HM_INLINE long long clock64() { return hm_clock(); }
HM_INLINE int clock() { return (int)hm_clock(); }

#include "hm_glue.h"
#include "hm_fp16.h"
