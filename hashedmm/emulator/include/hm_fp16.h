// Half precision in integer arithmetic: conversions round to nearest even, with subnormals, infinities and NaN.
#pragma once

struct __half_raw { unsigned short x; };

HM_INLINE float hm_half_to_float(unsigned short h) {
    unsigned sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ffu;
    if (exponent == 31) return hm_value<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent) return hm_value<float>(sign | (exponent + 112) << 23 | fraction << 13);
    float tiny = (float)fraction * (1.0f / 16777216.0f); // subnormal: exact
    return sign ? -tiny : tiny;
}
HM_INLINE unsigned short hm_float_to_half(float f) {
    unsigned u = hm_value<unsigned>(hm_bits(f)), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return 0x7fff;             // NaN: CUDA's canonical one
    if (a >= 0x477ff000u) return sign | 0x7c00u;    // rounds to at least 65536
    if (a < 0x38800000u) {                          // below 2^-14: a multiple of 2^-24
        if (a < 0x33000000u) return sign;           // below 2^-25
        unsigned shift = 126 - (a >> 23), mantissa = (a & 0x7fffffu) | 0x800000u;
        unsigned result = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
        return sign | (result + (rest > middle || (rest == middle && (result & 1))));
    }
    return sign | ((a - 0x38000000u + 0xfffu + (a >> 13 & 1)) >> 13);
}
// To float by rounding to odd, which a second rounding cannot tell from the exact value.
HM_INLINE unsigned short hm_double_to_half(double d) {
    float f = (float)d;
    if ((double)f != d && d == d && f - f == 0) {
        unsigned u = hm_value<unsigned>(hm_bits(f));
        if (__builtin_fabs((double)f) > __builtin_fabs(d)) u--;
        f = hm_value<float>(hm_bits(u | 1));
    }
    return hm_float_to_half(f);
}

struct __half {
    unsigned short hm;
    __half() = default;
    __half(float f) : hm(hm_float_to_half(f)) {}
    __half(double d) : hm(hm_double_to_half(d)) {}
    __half(int v) : hm(hm_double_to_half(v)) {}
    __half(unsigned v) : hm(hm_double_to_half(v)) {}
    __half(long long v) : hm(hm_float_to_half((float)v)) {}
    __half(unsigned long long v) : hm(hm_float_to_half((float)v)) {}
    __half(__half_raw r) : hm(r.x) {}
    operator float() const { return hm_half_to_float(hm); }
    operator __half_raw() const { return __half_raw{hm}; }
};
struct __attribute__((aligned(4))) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
};

HM_INLINE __half hm_make_half(unsigned short bits) { return __half(__half_raw{bits}); }
HM_INLINE float __half2float(__half h) { return hm_half_to_float(h.hm); }
HM_INLINE __half __float2half(float f) { return __half(f); }
HM_INLINE __half __float2half_rn(float f) { return __half(f); }
HM_INLINE __half __double2half(double d) { return __half(d); }
HM_INLINE __half __int2half_rn(int v) { return __half(v); }
HM_INLINE __half __uint2half_rn(unsigned v) { return __half(v); }
HM_INLINE int __half2int_rn(__half h) { return __float2int_rn(h); }
HM_INLINE int __half2int_rz(__half h) { return __float2int_rz(h); }
HM_INLINE unsigned short __half_as_ushort(__half h) { return h.hm; }
HM_INLINE short __half_as_short(__half h) { return (short)h.hm; }
HM_INLINE __half __ushort_as_half(unsigned short u) { return hm_make_half(u); }
HM_INLINE __half __short_as_half(short s) { return hm_make_half((unsigned short)s); }

// A float holds sums, differences, products and quotients of halves well enough that rounding twice is rounding once.
HM_INLINE __half __hadd(__half a, __half b) { return __half((float)a + (float)b); }
HM_INLINE __half __hsub(__half a, __half b) { return __half((float)a - (float)b); }
HM_INLINE __half __hmul(__half a, __half b) { return __half((float)a * (float)b); }
HM_INLINE __half __hdiv(__half a, __half b) { return __half((float)a / (float)b); }
HM_INLINE __half __hadd_rn(__half a, __half b) { return __hadd(a, b); }
HM_INLINE __half __hsub_rn(__half a, __half b) { return __hsub(a, b); }
HM_INLINE __half __hmul_rn(__half a, __half b) { return __hmul(a, b); }
// The product is exact in a double; the sum is rounded to odd, so that rounding it again to a half is right.
HM_INLINE __half __hfma(__half a, __half b, __half c) {
    double p = (double)(float)a * (float)b, q = (float)c, s = p + q;
    if (s - s == 0) {
        double t = s - p, error = (p - (s - t)) + (q - t);
        unsigned long long u = hm_bits(s);
        if (error != 0 && !(u & 1)) s = hm_value<double>((error > 0) == (s > 0) ? u + 1 : u - 1);
    }
    return __half(s);
}
HM_INLINE __half __hneg(__half a) { return hm_make_half(a.hm ^ 0x8000); }
HM_INLINE __half __habs(__half a) { return hm_make_half(a.hm & 0x7fff); }
// Of a number and a NaN, the number.
HM_INLINE __half __hmax(__half a, __half b) { return (float)a > (float)b || (float)b != (float)b ? a : b; }
HM_INLINE __half __hmin(__half a, __half b) { return (float)a < (float)b || (float)b != (float)b ? a : b; }
HM_INLINE bool __heq(__half a, __half b) { return (float)a == (float)b; }
HM_INLINE bool __hne(__half a, __half b) { return (float)a != (float)b; }
HM_INLINE bool __hlt(__half a, __half b) { return (float)a < (float)b; }
HM_INLINE bool __hle(__half a, __half b) { return (float)a <= (float)b; }
HM_INLINE bool __hgt(__half a, __half b) { return (float)a > (float)b; }
HM_INLINE bool __hge(__half a, __half b) { return (float)a >= (float)b; }
HM_INLINE bool __hisnan(__half a) { return (a.hm & 0x7fff) > 0x7c00; }
HM_INLINE int __hisinf(__half a) { return (a.hm & 0x7fff) != 0x7c00 ? 0 : a.hm >> 15 ? -1 : 1; }
HM_INLINE __half hsqrt(__half a) { return __half(__builtin_sqrtf(a)); }
HM_INLINE __half hexp(__half a) { return __half(__builtin_expf(a)); }
HM_INLINE __half hrcp(__half a) { return __half(1.0f / (float)a); }

HM_INLINE __half operator+(__half a, __half b) { return __hadd(a, b); }
HM_INLINE __half operator-(__half a, __half b) { return __hsub(a, b); }
HM_INLINE __half operator*(__half a, __half b) { return __hmul(a, b); }
HM_INLINE __half operator/(__half a, __half b) { return __hdiv(a, b); }
HM_INLINE __half operator-(__half a) { return __hneg(a); }
HM_INLINE __half &operator+=(__half &a, __half b) { return a = a + b; }
HM_INLINE __half &operator-=(__half &a, __half b) { return a = a - b; }
HM_INLINE __half &operator*=(__half &a, __half b) { return a = a * b; }
HM_INLINE __half &operator/=(__half &a, __half b) { return a = a / b; }
HM_INLINE bool operator==(__half a, __half b) { return __heq(a, b); }
HM_INLINE bool operator!=(__half a, __half b) { return __hne(a, b); }
HM_INLINE bool operator<(__half a, __half b) { return __hlt(a, b); }
HM_INLINE bool operator<=(__half a, __half b) { return __hle(a, b); }
HM_INLINE bool operator>(__half a, __half b) { return __hgt(a, b); }
HM_INLINE bool operator>=(__half a, __half b) { return __hge(a, b); }

HM_INLINE __half2 make_half2(__half x, __half y) { return __half2(x, y); }
HM_INLINE __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
HM_INLINE __half2 __half2half2(__half x) { return __half2(x, x); }
HM_INLINE __half2 __float2half2_rn(float f) { return __half2(__half(f), __half(f)); }
HM_INLINE __half2 __floats2half2_rn(float x, float y) { return __half2(__half(x), __half(y)); }
HM_INLINE __half2 __float22half2_rn(float2 v) { return __half2(__half(v.x), __half(v.y)); }
HM_INLINE float2 __half22float2(__half2 v) { return float2{(float)v.x, (float)v.y}; }
HM_INLINE float __low2float(__half2 v) { return v.x; }
HM_INLINE float __high2float(__half2 v) { return v.y; }
HM_INLINE __half __low2half(__half2 v) { return v.x; }
HM_INLINE __half __high2half(__half2 v) { return v.y; }
HM_INLINE __half2 __low2half2(__half2 v) { return __half2(v.x, v.x); }
HM_INLINE __half2 __high2half2(__half2 v) { return __half2(v.y, v.y); }
HM_INLINE __half2 __lowhigh2highlow(__half2 v) { return __half2(v.y, v.x); }
#define HM_HALF2(NAME, ONE)                                                                                            \
    HM_INLINE __half2 NAME(__half2 a, __half2 b) { return __half2(ONE(a.x, b.x), ONE(a.y, b.y)); }
HM_HALF2(__hadd2, __hadd) HM_HALF2(__hsub2, __hsub) HM_HALF2(__hmul2, __hmul) HM_HALF2(__h2div, __hdiv)
HM_HALF2(__hadd2_rn, __hadd) HM_HALF2(__hsub2_rn, __hsub) HM_HALF2(__hmul2_rn, __hmul)
HM_HALF2(__hmax2, __hmax) HM_HALF2(__hmin2, __hmin)
HM_HALF2(operator+, __hadd) HM_HALF2(operator-, __hsub) HM_HALF2(operator*, __hmul) HM_HALF2(operator/, __hdiv)
#undef HM_HALF2
HM_INLINE __half2 &operator+=(__half2 &a, __half2 b) { return a = a + b; }
HM_INLINE __half2 &operator-=(__half2 &a, __half2 b) { return a = a - b; }
HM_INLINE __half2 &operator*=(__half2 &a, __half2 b) { return a = a * b; }
HM_INLINE __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return __half2(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)); }
HM_INLINE __half2 __heq2(__half2 a, __half2 b) { return __half2(__half(a.x == b.x ? 1.0f : 0.0f), __half(a.y == b.y ? 1.0f : 0.0f)); }
HM_INLINE __half2 __hneg2(__half2 a) { return __half2(__hneg(a.x), __hneg(a.y)); }
HM_INLINE __half2 __habs2(__half2 a) { return __half2(__habs(a.x), __habs(a.y)); }

template <> struct hm_atomic<__half> { static constexpr bool add = true, bits = false, exch = false; };
template <> struct hm_atomic<__half2> { static constexpr bool add = true, bits = false, exch = false; };
HM_TYPE(__half, 'f')
template <> struct HmType<__half2> { static constexpr int type = 'f', scalar = 2; };
