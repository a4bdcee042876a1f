"""Exercises of notebook 11: overlapping windows, the work that is left, the two halves as kernels. Imports base."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hashedmm.exercises.base import UNIT, Case, Exercise, FunctionTest, KernelTest, Launch, nan, normal, relative

# ---- 11.1


def _windows(w: np.ndarray, height: int, stride: int) -> np.ndarray:
    T = (len(w) - height) // stride + 1
    return w[stride * np.arange(T) + np.arange(height)[:, None]]


def _window_product(
    w: np.ndarray, t: np.ndarray, sign: np.ndarray, x: np.ndarray, height: int, stride: int
) -> np.ndarray:
    C = _windows(w, height, stride)
    z = np.zeros((C.shape[1], x.shape[1]))
    np.add.at(z, t, sign[:, None] * x)
    return C @ z


def _lost_updates(
    w: np.ndarray, t: np.ndarray, sign: np.ndarray, x: np.ndarray, height: int, stride: int
) -> np.ndarray:
    C = _windows(w, height, stride)
    z = np.zeros((C.shape[1], x.shape[1]))
    z[t] += sign[:, None] * x
    return C @ z


def _window_cases() -> Iterator[Case]:
    rng = np.random.default_rng(1)
    for buckets, height, stride, cols, n in (
        (96, 16, 16, 48, 2),
        (96, 16, 4, 48, 3),
        (50, 8, 3, 20, 1),
        (9, 9, 2, 5, 2),
    ):
        T = (buckets - height) // stride + 1
        w, x = rng.standard_normal(buckets), rng.standard_normal((cols, n))
        t, sign = rng.integers(0, T, cols), rng.choice([-1, 1], cols)
        yield Case(f"{buckets} buckets, height {height}, stride {stride}", (w, t, sign, x, height, stride))


WINDOWS = Exercise(
    id="11.1",
    title="a strip with overlapping windows",
    after="## 2. Sum first, in NumPy",
    kind="function",
    spec="""
Write `my_windows(w, t, sign, x, height, stride)`: $y = C\\,(S\\,x)$ for one strip in one panel, summed first, of shape
(height, n). `w` is the panel's slice, and `x` is (inputs, n). Candidate `k` is a window of `height` buckets that begins
at `k * stride`. Input `j` takes candidate `t[j]` with sign `sign[j]`.
""",
    sizes="9 to 96 buckets; windows side by side and overlapping",
    lines=3,
    answer="my_windows",
    stub="""
def my_windows(w, t, sign, x, height, stride):
    T = ...
    z = np.zeros((T, x.shape[1]))
    ...
    C = ...
    return C @ z
""",
    solution="""
def my_windows(w, t, sign, x, height, stride):
    T = (len(w) - height) // stride + 1
    z = np.zeros((T, x.shape[1]))
    np.add.at(z, t, sign[:, None] * x)
    C = w[stride * np.arange(T) + np.arange(height)[:, None]]
    return C @ z
""",
    hints=(
        "`T` is the number of windows that fit: the last one ends with the slice, or before.",
        "The sums are those of exercise 03.4. For the codebook, index `w` with a table of shape (height, T): "
        "row `i`, column `k` holds `k * stride + i`.",
    ),
    test=FunctionTest(
        cases=_window_cases,
        oracle=_window_product,
        names=("y",),
        bound=relative(1e-12),
        mistakes=(
            (
                "the signs are missing",
                lambda w, t, s, x, h, d: _window_product(w, t, np.ones_like(s), x, h, d),
            ),
            ("`z[t] += ...` keeps one input of each bin: add with `np.add.at`", _lost_updates),
            (
                "a window begins at k * stride, not at k * height",
                lambda w, t, s, x, h, d: np.array(
                    [sum(s[j] * w[(t[j] * h + i) % len(w)] * x[j] for j in range(len(t))) for i in range(h)]
                ),
            ),
        ),
    ),
)

# ---- 11.2


def _work(rows: int, cols: int, compression: float, height: int, width: int, stride: int) -> tuple[int, int]:
    slice_ = round(height * width * compression) // stride * stride
    T = (slice_ - height) // stride + 1
    return rows // height * cols, rows * T * (cols // width)


WORK = Exercise(
    id="11.2",
    title="additions and multiply-adds",
    after="### Count before you compute",
    kind="function",
    spec="""
Strips of `height`, panels as high as a strip and `width` inputs wide, a `stride`. Rows are a multiple of `height`,
columns of `width`. A panel owns `round(height * width * compression)` buckets, cut to a multiple of the stride.
Write `work(rows, cols, compression, height, width, stride)`: the tuple (additions, multiply-adds) of one product
with one sample, summed first.
""",
    sizes="8192 x 8192 and smaller, strides 16 to 256",
    lines=3,
    answer="work",
    stub="""
def work(rows, cols, compression, height, width, stride):
    buckets = round(height * width * compression) // stride * stride  # of a panel
    T = (buckets - height) // ... + 1
    return ..., rows * T * ...
""",
    solution="""
def work(rows, cols, compression, height, width, stride):
    buckets = round(height * width * compression) // stride * stride  # of a panel
    T = (buckets - height) // stride + 1
    bins = T * (cols // width)  # of a strip: one sum for each candidate of each panel
    return rows // height * cols, rows * bins
""",
    hints=(
        "An addition for each strip and input. A multiply-add for each output and bin.",
        "A strip crosses `cols // width` panels, and has `T` bins in each.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{r} x {c}, height {h}, stride {s}", (r, c, k, h, w, s))
            for r, c, k, h, w, s in (
                (8192, 8192, 1 / 64, 256, 1024, 256),
                (8192, 8192, 1 / 64, 256, 1024, 24),
                (1024, 2048, 1 / 8, 128, 512, 32),
                (64, 96, 1 / 4, 16, 32, 16),
            )
        ],
        oracle=_work,
        names=("additions", "multiply-adds"),
        mistakes=(
            (
                "a strip has bins in every panel that it crosses",
                lambda r, c, k, h, w, s: (_work(r, c, k, h, w, s)[0], _work(r, c, k, h, w, s)[1] // (c // w)),
            ),
            (
                "every output of a strip shares the sums: an addition a strip and input, not a row and input",
                lambda r, c, k, h, w, s: (r * c, _work(r, c, k, h, w, s)[1]),
            ),
            (
                "these are the additions of one strip, and there are `rows // height` strips",
                lambda r, c, k, h, w, s: (c, _work(r, c, k, h, w, s)[1]),
            ),
            (
                "windows overlap: there are more of them than buckets / height",
                lambda r, c, k, h, w, s: (
                    _work(r, c, k, h, w, s)[0],
                    r * (round(h * w * k) // s * s // h) * (c // w),
                ),
            ),
        ),
    ),
)

# ---- 11.3


def _list_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(3)
    for T, cols, n in ((1, 1, 1), (7, 5, 3), (16, 100, 33), (5, 40, 2)):
        t = rng.integers(0, T, cols)
        if T == 16:
            t[t == 9] = 8  # a bin without an input
        sign, x = rng.choice([-1, 1], cols).astype(np.int32), normal(rng, cols, n)
        inputs = np.argsort(t, kind="stable").astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(t, minlength=T))]).astype(np.int32)
        z, size, unsigned = (np.zeros((T, n)) for _ in range(3))
        np.add.at(z, t, sign[:, None] * x.astype(np.float64))
        np.add.at(unsigned, t, x.astype(np.float64))
        np.add.at(size, t, abs(x).astype(np.float64))
        by_place = np.zeros((T, n))
        np.add.at(by_place, t[inputs], sign[:, None] * x[inputs].astype(np.float64))
        yield Launch(
            f"T = {T}, {cols} inputs, n = {n}", (-(-T * n // 64),), (64,),
            (starts, inputs, sign, x, nan(T, n), np.int32(T), np.int32(n)),
            {4: z}, {4: (cols + 2) * UNIT * size + 1e-30},
            mistakes=(
                ("the signs are missing", {4: unsigned}),
                ("`sign_d` has a sign for each input: index it by the input, not by its place in the "
                "list", {4: by_place}),
            ),
        )  # fmt: skip


LISTS = Exercise(
    id="11.3",
    title="sums by lists",
    after="### Lists: which rows to add",
    kind="kernel",
    spec="""
$z = S\\,x$ for one strip, without a race: a thread has one output `z_tn[k][s]`, bin `k` of sample `s`. The inputs
of bin `k` are listed: `inputs[starts[k]]` to `inputs[starts[k + 1] - 1]`. Input `j` enters with `sign_d[j]`, +1 or
-1. A bin without inputs has the sum 0.
""",
    sizes="1 to 16 bins, 1 to 100 inputs, 1 to 33 samples; blocks of 64 threads, T x n threads rounded up",
    lines=7,
    answer="LISTS",
    stub='''
LISTS = r"""
extern "C" __global__ void lists(
    const int* starts, const int* inputs, const int* sign_d, const float* x_dn,
    float* z_tn, const int T, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    // TODO: guard; bin k and sample s; sum over the list; write
}
"""
''',
    solution='''
LISTS = r"""
extern "C" __global__ void lists(
    const int* starts, const int* inputs, const int* sign_d, const float* x_dn,
    float* z_tn, const int T, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= T * n) return;
    const int k = t / n, s = t % n;
    float sum = 0.0f;
    for (int p = starts[k]; p < starts[k + 1]; ++p) {
        const int j = inputs[p];
        sum += sign_d[j] * x_dn[j * n + s];
    }
    z_tn[t] = sum;
}
"""
''',
    hints=(
        "Neighbouring threads should take neighbouring samples of one bin: then all walk the same list, and "
        "read rows of `x`.",
        "The loop goes over places `p` of the list; the input is `inputs[p]`. Sign and row of `x` are those "
        "of the input.",
    ),
    test=KernelTest("lists", _list_launches),
)

# ---- 11.4


def _multiply_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(4)
    for buckets, height, stride, n in ((16, 16, 16, 1), (96, 16, 4, 5), (50, 7, 3, 33), (40, 5, 5, 2)):
        w = normal(rng, buckets)
        C = _windows(w.astype(np.float64), height, stride)
        z = normal(rng, C.shape[1], n)
        beside = _windows(np.resize(w.astype(np.float64), (C.shape[1] + 1) * height), height, height)[:, : C.shape[1]]
        yield Launch(
            f"{buckets} buckets, height {height}, stride {stride}, n = {n}", (-(-height * n // 64),), (64,),
            (w, z, nan(height, n), np.int32(height), np.int32(stride), np.int32(C.shape[1]), np.int32(n)),
            {2: C @ z}, {2: (C.shape[1] + 2) * UNIT * (abs(C) @ abs(z))},
            mistakes=(("a window begins at k * stride, not at k * height", {2: beside @ z}),),
        )  # fmt: skip


MULTIPLY = Exercise(
    id="11.4",
    title="multiply after",
    after="### The product: `ldmatrix` gathers windows",
    kind="kernel",
    spec="""
The other half: $y = C z$, where $C$ is in no memory. `w_k` is the slice, window `k` begins at `k * stride`, so
$C_{ik}$ is `w_k[k * stride + i]`. `z_tn` is (T, n), `y_mn` is (height, n). A thread has one output.
""",
    sizes="16 to 96 buckets, heights 5 to 16, strides 3 to 16, 1 to 33 samples; blocks of 64 threads",
    lines=6,
    answer="MULTIPLY",
    stub='''
MULTIPLY = r"""
extern "C" __global__ void multiply(
    const float* w_k, const float* z_tn, float* y_mn,
    const int height, const int stride, const int T, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    // TODO: guard; row i and sample s; sum over the windows; write
}
"""
''',
    solution='''
MULTIPLY = r"""
extern "C" __global__ void multiply(
    const float* w_k, const float* z_tn, float* y_mn,
    const int height, const int stride, const int T, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= height * n) return;
    const int i = t / n, s = t % n;
    float sum = 0.0f;
    for (int k = 0; k < T; ++k) sum += w_k[k * stride + i] * z_tn[k * n + s];
    y_mn[t] = sum;
}
"""
''',
    hints=(
        "It is a dense product of (height, T) by (T, n) whose first matrix is read from `w_k` by `k * stride + i`.",
    ),
    test=KernelTest("multiply", _multiply_launches),
)

EXERCISES = (WINDOWS, WORK, LISTS, MULTIPLY)
