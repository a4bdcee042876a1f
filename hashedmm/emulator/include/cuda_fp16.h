// The emulator's half precision. Its types are always there under reserved names; this adds CUDA's short ones.
#pragma once
typedef __half half;
typedef __half2 half2;
typedef __half __nv_half;
typedef __half2 __nv_half2;
