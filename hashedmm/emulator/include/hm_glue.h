// What the lines behind every source use: templates deduce the kernel's parameters, describe them, and call it.
// Read before the source, whose macros could change anything after it.
#pragma once

struct HmParameter {
    int kind;   // 0 value, 1 pointer, 2 pointer to pointer
    int type;   // 'f' float, 'i' signed, 'u' unsigned, 'b' bool, 's' struct, 'v' void
    int size;   // of the value or of what the pointer points at, bytes
    int scalar; // of one component: float4 has size 16 and scalar 4
    int constant;
};

template <class T, class U> struct HmSame { static constexpr bool value = false; };
template <class T> struct HmSame<T, T> { static constexpr bool value = true; };

template <class T> struct HmType {
    static constexpr int type = __is_enum(T) ? 'i' : 's', scalar = sizeof(T);
};
#define HM_TYPE(T, CODE) template <> struct HmType<T> { static constexpr int type = CODE, scalar = sizeof(T); };
HM_TYPE(bool, 'b')
HM_TYPE(char, 'i') HM_TYPE(signed char, 'i') HM_TYPE(short, 'i') HM_TYPE(int, 'i') HM_TYPE(long, 'i') HM_TYPE(long long, 'i')
HM_TYPE(unsigned char, 'u') HM_TYPE(unsigned short, 'u') HM_TYPE(unsigned, 'u') HM_TYPE(unsigned long, 'u')
HM_TYPE(unsigned long long, 'u') HM_TYPE(float, 'f') HM_TYPE(double, 'f')
#define HM_TYPES(T, CODE, NAME)                                                                                        \
    template <> struct HmType<NAME##2> { static constexpr int type = CODE, scalar = sizeof(T); };                      \
    template <> struct HmType<NAME##3> { static constexpr int type = CODE, scalar = sizeof(T); };                      \
    template <> struct HmType<NAME##4> { static constexpr int type = CODE, scalar = sizeof(T); };
HM_TYPES(signed char, 'i', char) HM_TYPES(unsigned char, 'u', uchar) HM_TYPES(short, 'i', short)
HM_TYPES(unsigned short, 'u', ushort) HM_TYPES(int, 'i', int) HM_TYPES(unsigned, 'u', uint) HM_TYPES(float, 'f', float)
HM_TYPES(double, 'f', double) HM_TYPES(long long, 'i', longlong) HM_TYPES(unsigned long long, 'u', ulonglong)

template <class T> struct HmDescribe {
    static constexpr HmParameter value = {0, HmType<T>::type, sizeof(T), HmType<T>::scalar, 0};
};
template <class T> struct HmDescribe<const T> : HmDescribe<T> {};
template <class T> struct HmDescribe<T *> {
    static constexpr HmParameter value = {1, HmType<T>::type, sizeof(T), HmType<T>::scalar, 0};
};
template <class T> struct HmDescribe<const T *> {
    static constexpr HmParameter value = {1, HmType<T>::type, sizeof(T), HmType<T>::scalar, 1};
};
template <class T> struct HmDescribe<T **> { static constexpr HmParameter value = {2, 'v', 8, 8, 0}; };
template <class T> struct HmDescribe<T *const *> { static constexpr HmParameter value = {2, 'v', 8, 8, 0}; };
template <> struct HmDescribe<void *> { static constexpr HmParameter value = {1, 'v', 1, 1, 0}; };
template <> struct HmDescribe<const void *> { static constexpr HmParameter value = {1, 'v', 1, 1, 1}; };
template <class T> struct HmDescribe<volatile T *> : HmDescribe<T *> {};
template <class T> struct HmDescribe<const volatile T *> : HmDescribe<const T *> {};

template <unsigned... I> struct HmIndices {};
template <unsigned N, unsigned... I> struct HmCount : HmCount<N - 1, N - 1, I...> {};
template <unsigned... I> struct HmCount<0, I...> { typedef HmIndices<I...> type; };

// The loads of the arguments are not the kernel's.
#define HM_UNWATCHED __attribute__((no_sanitize("thread")))

template <class R, class... A> struct HmKernel {
    static_assert(HmSame<R, void>::value, "a kernel returns void");
    static int describe(HmParameter *out, int room) {
        const HmParameter all[] = {HmDescribe<A>::value..., HmParameter()};
        for (int i = 0; i < (int)sizeof...(A) && i < room; i++) out[i] = all[i];
        return sizeof...(A);
    }
    template <unsigned... I> static inline __attribute__((always_inline)) HM_UNWATCHED void call(void (*kernel)(A...), void **args, HmIndices<I...>) {
        (void)args;
        kernel(*(A *)args[I]...);
    }
    static inline __attribute__((always_inline)) HM_UNWATCHED void call(void (*kernel)(A...), void **args) { call(kernel, args, typename HmCount<sizeof...(A)>::type()); }
};
template <class R, class... A> HmKernel<R, A...> hm_kernel_type(R (*)(A...));

#ifdef __clang__
#define HM_EXPORT extern "C" __attribute__((visibility("default"), used))
#else
#define HM_EXPORT extern "C" __attribute__((visibility("default"), externally_visible, used))
#endif
