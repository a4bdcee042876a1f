"""Right answers written in another way than the solutions: {exercise: {how: source of the cell}}."""

CORRECT = {
    "01.1": {"by a logarithm": "def used_share(N, K):\n    return -np.expm1(N * np.log1p(-1 / K)) if K > 1 else 1.0"},
    "01.2": {
        "in Python integers": """
def layer_bytes(rows, cols, compression):
    virtual, K = rows * cols, max(1, round(rows * cols * compression))
    bits = (K - 1).bit_length() + 1
    return 4 * virtual, 4 * K - (-virtual * bits // 8), 4 * (K + 1)
"""
    },
    "02.1": {
        "in 64 bits, masked": """
def my_fmix32(h):
    h = h.astype(np.uint64)
    h ^= h >> np.uint64(16)
    h = h * np.uint64(0x85EBCA6B) & np.uint64(0xFFFFFFFF)
    h ^= h >> np.uint64(13)
    h = h * np.uint64(0xC2B2AE35) & np.uint64(0xFFFFFFFF)
    return (h ^ (h >> np.uint64(16))).astype(np.uint32)
"""
    },
    "02.2": {
        "step by step": """
from hashedmm.hashing import fmix32


def my_hash(i, j, seed):
    key = fmix32(np.uint32(seed) ^ fmix32(i + np.uint32(0x9E3779B9)))
    return fmix32(j * np.uint32(0x9E3779B1) ^ key)
"""
    },
    "02.3": {
        "in Python integers": """
def my_candidate(h, T):
    return np.array([int(v) * T // 2**32 for v in h.ravel()]).reshape(h.shape)
"""
    },
    "02.4": {
        "by the remainder": """
def remainder_bias(bits, T):
    least, left = divmod(2**bits, T)
    return least + (left > 0), least, int(left > 0)
"""
    },
    "03.1": {
        "with divmod": """
from hashedmm.hashing import fmix32


def my_place(i, j, height, buckets, seed):
    block_row, inside = divmod(i, height)
    h = fmix32(fmix32(seed ^ fmix32(block_row + 0x9E3779B9)) ^ (j * 0x9E3779B1))
    return h * (buckets // height) // 2**32 * height + inside, 1 - 2 * (h & 1)
"""
    },
    "03.2": {
        "by einsum": """
def my_product(w, x, bucket, sign):
    return np.einsum("ij,jk->ik", sign * w[bucket], x)
"""
    },
    "03.3": {
        "by bincount": """
def my_grad_w(x, gy, bucket, sign, buckets):
    return np.bincount(bucket.ravel(), (sign * (gy @ x.T)).ravel(), minlength=buckets)
"""
    },
    "03.4": {
        "by a loop": """
def my_strip(C, t, sign, x):
    z = np.zeros((C.shape[1], x.shape[1]))
    for j in range(len(t)):
        z[t[j]] += sign[j] * x[j]
    return [z, C @ z]
"""
    },
    "04.1": {
        "by fmaxf": '''
LEAKY = r"""
extern "C" __global__ void leaky(const float* in, float* out, const float slope, const int count) {
    const int at = threadIdx.x + blockIdx.x * blockDim.x;
    if (at >= count) return;
    const float v = in[at];
    out[at] = fmaxf(v, 0.0f) + slope * fminf(v, 0.0f);
}
"""
'''
    },
    "04.2": {
        "with a flat index": '''
SCALE = r"""
extern "C" __global__ void scale(
    const float* x, const float* c, float* y, const int rows, const int cols) {
    const int column = threadIdx.x + blockDim.x * blockIdx.x;
    if (column >= cols) return;
    const int row = threadIdx.y + blockDim.y * blockIdx.y;
    if (row >= rows) return;
    const long long at = (long long)row * cols + column;
    y[at] = c[column] * x[at];
}
"""
'''
    },
    "04.3": {
        "by flags": """
def launch_args(x, out):
    c_order = x.strides[1] == x.itemsize
    down = np.int64(x.shape[1] if c_order else 1)
    across = np.int64(1 if c_order else x.shape[0])
    return (x, down, across, out, *np.array(x.shape, np.int32))
"""
    },
    "05.1": {
        "by __umulhi": '''
DIAGONAL = r"""
__device__ unsigned mix(unsigned h) {
    h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
    h = (h ^ (h >> 13)) * 0xC2B2AE35u;
    return h ^ (h >> 16);
}

extern "C" __global__ void diagonal(
    const float* w, float* d, const int n, const unsigned T, const unsigned seed) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        const unsigned h = mix(mix(seed ^ mix(i + 0x9E3779B9u)) ^ (i * 0x9E3779B1u));
        const float value = w[__umulhi(h, T)];
        d[i] = (h & 1u) ? -value : value;
    }
}
"""
'''
    },
    "05.2": {
        "row by row, by the package's hash": '''
SAMPLES = r"""
#include "hash.cuh"

extern "C" __global__ void samples(
    const float* w_k, const float* x_nd, float* y_mn,
    const int rows, const int cols, const int n, const unsigned T, const unsigned seed) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    const int i = t / n, s = t % n;
    if (i >= rows) return;
    const unsigned key = fmix32(seed ^ fmix32(i + 0x9E3779B9u));
    float sum = 0.0f;
    for (int j = cols - 1; j >= 0; --j) {
        const unsigned h = fmix32(key ^ (j * 0x9E3779B1u));
        const float v = w_k[__umulhi(h, T)] * x_nd[s * cols + j];
        sum = h & 1 ? sum - v : sum + v;
    }
    y_mn[t] = sum;
}
"""
'''
    },
    "06.2": {
        "a row in a division": '''
CROP = r"""
extern "C" __global__ void crop(
    const float* x, float* y, const int cols, const int top, const int left, const int h, const int w) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    const int i = t / w;
    if (i < h) y[t] = x[(top + i) * cols + left + (t - i * w)];
}
"""
'''
    },
    "06.4": {
        "by modulo": '''
PLANES = r"""
extern "C" __global__ void planes(const float* rgb, float* out, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t < 3 * n) out[t % 3 * n + t / 3] = rgb[t];
}
"""
'''
    },
    "07.1": {
        "no shared memory": '''
REVERSED = r"""
extern "C" __global__ void reversed(const float* x, float* y, const int n) {
    if (threadIdx.x < n) y[n - 1 - threadIdx.x] = x[threadIdx.x];
}
"""
'''
    },
    "07.2": {
        "from neighbours up": '''
SUMS = r"""
extern "C" __global__ void block_sums(const float* x, float* sums, const int n) {
    __shared__ float part[128];
    const int t = threadIdx.x, i = blockIdx.x * 128 + t;
    part[t] = 0.0f;
    if (i < n) part[t] = x[i];
    for (int step = 1; step < 128; step *= 2) {
        __syncthreads();
        if (t % (2 * step) == 0) part[t] += part[t + step];
    }
    if (t == 0) sums[blockIdx.x] = part[0];
}
"""
''',
        "by shuffles": '''
SUMS = r"""
extern "C" __global__ void block_sums(const float* x, float* sums, const int n) {
    __shared__ float of_warp[4];
    const int i = blockIdx.x * 128 + threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    for (int half = 16; half > 0; half /= 2) v += __shfl_down_sync(0xffffffffu, v, half);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) sums[blockIdx.x] = of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
}
"""
''',
    },
    "07.3": {
        "dynamic names, transposed tile": '''
TILES = r"""
extern "C" __global__ void tiles(
    const float* a, const float* x, float* y, const int rows, const int cols, const int n) {
    __shared__ float at[16][17], xt[16][17];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int i = blockIdx.y * 16 + ty, s = blockIdx.x * 16 + tx;
    float sum = 0.0f;
    for (int j0 = 0; j0 < cols; j0 += 16) {
        if (j0) __syncthreads();
        at[tx][ty] = 0.0f;
        xt[ty][tx] = 0.0f;
        if (i < rows && j0 + tx < cols) at[tx][ty] = a[i * cols + j0 + tx];
        if (s < n && j0 + ty < cols) xt[ty][tx] = x[(j0 + ty) * n + s];
        __syncthreads();
        for (int k = 0; k < min(16, cols - j0); ++k) sum += at[k][ty] * xt[k][tx];
    }
    if (i < rows && s < n) y[i * n + s] = sum;
}
"""
'''
    },
    "07.4": {
        "swizzled, no padding": '''
TRANSPOSED = r"""
extern "C" __global__ void transposed(const float* a, float* b, const int rows, const int cols) {
    __shared__ float tile[32][32];
    const int tx = threadIdx.x, column = blockIdx.x * 32, row = blockIdx.y * 32;
    for (int ty = threadIdx.y; ty < 32; ty += 8) {
        if (row + ty < rows && column + tx < cols) tile[ty][tx ^ ty] = a[(row + ty) * cols + column + tx];
    }
    __syncthreads();
    for (int ty = threadIdx.y; ty < 32; ty += 8) {
        if (column + ty < cols && row + tx < rows) b[(column + ty) * rows + row + tx] = tile[tx][ty ^ tx];
    }
}
"""
'''
    },
    "08.3": {
        "with percentiles": """
def summary(times):
    return tuple(np.percentile(np.sort(times[1:]), (50, 20, 80)))
"""
    },
    "08.4": {
        "by a loop": """
def agrees(got, expected, bound):
    for g, e, b in zip(got.ravel(), expected.ravel(), bound.ravel()):
        if not abs(g - e) <= b:
            return False
    return True
"""
    },
    "09.1": {
        "by counting": """
def first_use(M, P, D):
    if not D > P:
        return float("inf")
    k = 1
    while M + k * P >= k * D:
        k += 1
    return k
"""
    },
    "10.2": {
        "four at a time": '''
PANELS = r"""
#include "hash.cuh"

extern "C" __global__ void panels(
    const Layout layout, const float* w_k, const float* x_dn, float* y_mn, const int n) {
    extern __shared__ float slice[];
    const int top = blockIdx.x * PANEL_ROWS, s = blockIdx.y, i = top + threadIdx.x;

    float sum = 0.0f;
    for (int left = 0; left < layout.cols; left += PANEL_COLS) {
        const Panel panel = panel_of(layout, top, left);
        __syncthreads();
        int k = threadIdx.x;
        while (k < panel.buckets) {
            slice[k] = w_k[panel.base + k];
            k += blockDim.x;
        }
        __syncthreads();
        const int right = min(left + PANEL_COLS, layout.cols);
        for (int j = left; j < right && i < layout.rows; ++j) {
            const Slot slot = slot_in_panel(layout, panel, i, j);
            sum += slot.sign * slice[slot.offset] * x_dn[j * n + s];
        }
    }
    if (i < layout.rows) y_mn[i * n + s] = sum;
}
"""
'''
    },
    "10.3": {
        "upwards": """
def widest_panel(height, compression, itemsize, budget):
    width = 1
    while itemsize * round(height * (width + 1) * compression) <= budget:
        width += 1
    return width
"""
    },
    "11.1": {
        "by loops": """
def my_windows(w, t, sign, x, height, stride):
    y = 0
    for k in range((len(w) - height) // stride + 1):
        z = (sign[t == k, None] * x[t == k]).sum(axis=0)
        y = y + w[k * stride : k * stride + height, None] * z
    return y
"""
    },
    "11.3": {
        "sums with the sample outside": '''
LISTS = r"""
extern "C" __global__ void lists(
    const int* starts, const int* inputs, const int* sign_d, const float* x_dn, float* z_tn,
    const int T, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    const int s = t / T, k = t % T;
    if (s >= n) return;
    double sum = 0;
    for (int p = starts[k + 1] - 1; p >= starts[k]; --p) {
        const float v = x_dn[inputs[p] * n + s];
        sum += sign_d[inputs[p]] > 0 ? v : -v;
    }
    z_tn[k * n + s] = sum;
}
"""
'''
    },
    "11.4": {
        "by pointers": '''
MULTIPLY = r"""
extern "C" __global__ void multiply(
    const float* w_k, const float* z_tn, float* y_mn,
    const int height, const int stride, const int T, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t < height * n) {
        const float* w = w_k + t / n;
        float sum = 0.0f;
        for (int k = 0; k < T; ++k, w += stride) sum = fmaf(*w, z_tn[k * n + t % n], sum);
        y_mn[t] = sum;
    }
}
"""
'''
    },
    "12.1": {
        "down each column, sample first": '''
GRAD_X = r"""
#include "hash.cuh"

extern "C" __global__ void grad_x(
    const Layout layout, const float* w_k, const float* gy_mn, float* gx_dn, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    const int s = t / layout.cols, j = t % layout.cols;
    if (s >= n) return;
    float sum = 0.0f;
    for (int i = layout.rows - 1; i >= 0; --i) {
        const Panel panel = panel_of(layout, i, j);
        const Slot slot = slot_in_panel(layout, panel, i, j);
        sum += slot.sign * w_k[panel.base + slot.offset] * gy_mn[i * n + s];
    }
    gx_dn[j * n + s] = sum;
}
"""
'''
    },
    "12.2": {
        "subtracted where the sign is negative": '''
SCATTER = r"""
#include "hash.cuh"

extern "C" __global__ void scatter(
    const Layout layout, const float* x_dn, const float* gy_mn, float* gw_k, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    const int j = t / layout.rows, i = t % layout.rows;
    if (j >= layout.cols) return;
    const Place place = locate(layout, i, j);
    for (int s = 0; s < n; ++s) {
        const float g = gy_mn[i * n + s] * x_dn[j * n + s];
        atomicAdd(gw_k + place.bucket, place.sign < 0 ? -g : g);
    }
}
"""
'''
    },
    "12.3": {
        "by llrint": '''
FIXED_POINT = r"""
#include "hash.cuh"

extern "C" __global__ void fixed_point(
    const Layout layout, const float* x_d, const float* gy_m, unsigned long long* sum_k, const double scale) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    const int i = t / layout.cols, j = t - i * layout.cols;
    if (i >= layout.rows) return;
    const Place place = locate(layout, i, j);
    const double exact = (double)(gy_m[i] * x_d[j]) * scale;
    long long whole = (long long)rint(exact);
    if (place.sign < 0) whole = -whole;
    atomicAdd(sum_k + place.bucket, (unsigned long long)whole);
}
"""
'''
    },
    "13.1": {
        "by trying": """
def my_width(d_in, d_out, stored):
    widths = np.arange(1, 3000)
    return int(widths[np.argmin(np.abs((d_in + 1) * widths + (widths + 1) * d_out - stored))])
"""
    },
    "13.2": {
        "by a view": """
from hashedmm import derive_seed
from hashedmm.hashing import fmix32


def my_mask(n, features, rate, seed, step):
    k = np.arange((n * features + 1) // 2, dtype="<u4") * np.uint32(0x9E3779B1)
    halves = fmix32(k ^ np.uint32(derive_seed(seed, step))).astype("<u4").view("<u2")[: n * features]
    cut = round(rate * 2**16)
    kept = np.where(halves < cut, 0, 2**16 / (2**16 - cut)).astype(np.float32)
    return kept.reshape((n, features), order="F")
"""
    },
    "14.1": {
        "by trying": """
import math


def kept(size, budget):
    def stored(n):
        bits = max(1, math.ceil(math.log2(size)))
        return 4 * n + min(math.ceil(size / 8), math.ceil(n * bits / 8))

    low, high = 0, size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if stored(middle) <= budget else (low, middle - 1)
    return low
"""
    },
    "14.2": {
        "from sums of squares": """
def gap(a, b):
    def of(x):
        return sum((x - sum(x) / len(x)) ** 2) / (len(x) - 1) / len(x)

    return sum(b) / len(b) - sum(a) / len(a), (of(a) + of(b)) ** 0.5
"""
    },
    "14.3": {
        "from the fastest down": """
def on_frontier(speed, error):
    found = np.zeros(len(speed), bool)
    best = np.inf
    for s in sorted(set(speed), reverse=True):
        same = speed == s
        least = error[same].min()
        if least < best:
            found |= same & (error == least)
            best = least
    return found
"""
    },
    "15.1": {
        "by the largest window": """
def my_windows(rows, row_bytes, fixed, budget):
    if fixed + rows * row_bytes <= budget:
        return 1
    most = (budget - fixed) // (2 * row_bytes)
    return -(-rows // most) if most > 0 and rows > 1 else 0
"""
    },
    "15.2": {
        "when a buffer is free": """
def my_orders(windows, buffers):
    orders, copied = [], 0
    for k in range(windows):
        while copied < windows and copied - k < buffers:
            orders.append(("copy", copied))
            copied += 1
        orders.append(("product", k))
    return orders
"""
    },
    "15.4": {
        "by the sum over samples": """
def all_reduced(gradients, samples):
    total = np.zeros(len(gradients[0]))
    for g, n in zip(gradients, samples):
        total += np.where(n > 0, n * g, 0)
    return total / sum(samples)
"""
    },
}
