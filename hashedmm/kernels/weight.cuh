// The numbers that kernels read and write: WEIGHT is float or __half. Sums are always float.
#pragma once

#include <cuda_fp16.h>

#include "hash.cuh"

#ifndef WEIGHT
#define WEIGHT float
#endif

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ void put(float* to, float v) { *to = v; }
__device__ __forceinline__ void put(__half* to, float v) { *to = __float2half_rn(v); }

// The virtual weight W[i, j], made from its bucket.
__device__ __forceinline__ float weight(const Layout& layout, const WEIGHT* w_k, int i, int j) {
    const Place place = locate(layout, i, j);
    return place.sign * to_float(w_k[place.bucket]);
}
