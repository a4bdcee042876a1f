"""Exercises of notebook 04: a first kernel, two dimensions, arguments, grids. Imports base, and build to launch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hashedmm.build import RawKernel, gpu_available
from hashedmm.exercises.base import Case, Exercise, FunctionTest, KernelTest, Launch, ValueTest, nan, normal

# ---- 04.1


def _leaky_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(1)
    for n in (1, 63, 64, 65, 1000):
        x, slope = normal(rng, n), np.float32(0.25)
        y = np.where(x > 0, x, slope * x)
        blocks, i = -(-n // 64), np.arange(n)
        yield Launch(
            f"n = {n}",
            (blocks,),
            (64,),
            (x, nan(n), slope, np.int32(n)),
            {1: y},
            {1: 1e-6},
            mistakes=(
                ("every block did the work of block 0: `blockIdx.x` is missing", {1: np.where(i < 64, y, np.nan)}),
            ),
        )


LEAKY = Exercise(
    id="04.1",
    title="a leaky ReLU",
    after="## 2. saxpy as a kernel",
    kind="kernel",
    spec="""
Complete the kernel: `y[i] = x[i]` where `x[i]` is positive, else `slope * x[i]`, for `i` from 0 to `n - 1`. It is
launched with blocks of 64 threads, and a grid that is rounded up. Once it is right, the check also says how much
memory it asks for, in *sectors*, pieces of 32 bytes: [notebook 06](06_memory_access.ipynb) explains them.
""",
    sizes="n = 1, 63, 64, 65 and 1000",
    lines=2,
    answer="LEAKY",
    stub='''
LEAKY = r"""
extern "C" __global__ void leaky(const float* x, float* y, const float slope, const int n) {
    // TODO: which element has this thread? Guard, then write y
}
"""
''',
    solution='''
LEAKY = r"""
extern "C" __global__ void leaky(const float* x, float* y, const float slope, const int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] > 0.0f ? x[i] : slope * x[i];
}
"""
''',
    hints=(
        "The first line is the index formula of section 1, the second is `saxpy`'s with another right-hand side.",
        "In C, `condition ? a : b` is what `np.where(condition, a, b)` is for one element.",
    ),
    test=KernelTest("leaky", _leaky_launches),
)

# ---- 04.2


def _scale_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(2)
    for rows, cols in ((1, 1), (4, 16), (7, 33), (17, 5), (9, 9)):
        x, c = normal(rng, rows, cols), normal(rng, cols)
        by_rows = x * np.resize(c, rows)[:, None]
        turned, last_index = nan(rows, cols), nan(rows, cols)
        reached = np.s_[: 16 * -(-cols // 16), : 4 * -(-rows // 4)]  # where i < columns of threads, j < rows of them
        turned[reached] = (x * c)[reached]
        last_index[0] = x[0] * c
        yield Launch(
            f"{rows} x {cols}",
            (-(-cols // 16), -(-rows // 4)),
            (16, 4),
            (x, c, nan(rows, cols), np.int32(rows), np.int32(cols)),
            {2: x * c},
            {2: 1e-6},
            mistakes=(
                ("this is `c[i]`, one factor a row; it is one a column", {2: by_rows}),
                ("`i` and `j` are swapped: x is the column, so `j` comes from `blockIdx.x`", {2: turned}),
                ("C has no `y[i, j]`: it reads that as `y[j]`. Write `y[i * cols + j]`", {2: last_index}),
            ),
        )


SCALE = Exercise(
    id="04.2",
    title="scale the columns",
    after="## 4. Two dimensions",
    kind="kernel",
    spec="""
Complete the kernel: element $(i, j)$ of `y` is that of `x` times `c[j]`, in NumPy `y = x * c`. `x` and `y` are
matrices in C order. It is launched with blocks of `(16, 4)`, 16 columns and 4 rows, and a grid that is rounded up in
both directions.
""",
    sizes="1 x 1, 4 x 16, 7 x 33, 17 x 5 and 9 x 9",
    lines=3,
    answer="SCALE",
    stub='''
SCALE = r"""
extern "C" __global__ void scale(
    const float* x, const float* c, float* y, const int rows, const int cols) {
    // TODO: column j, row i, guard, write
}
"""
''',
    solution='''
SCALE = r"""
extern "C" __global__ void scale(
    const float* x, const float* c, float* y, const int rows, const int cols) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    const int i = blockIdx.y * blockDim.y + threadIdx.y;
    if (i < rows && j < cols) y[i * cols + j] = x[i * cols + j] * c[j];
}
"""
''',
    hints=(
        "x is the column: `j` comes from `blockIdx.x`, `i` from `blockIdx.y`.",
        "Half a guard is not enough: section 4 shows what a thread with `j >= cols` writes. And an element of a matrix "
        "is `x[i * cols + j]`; `x[i, j]` is Python.",
    ),
    test=KernelTest("scale", _scale_launches),
)

# ---- 04.3

_ROW_SUMS = r"""
extern "C" __global__ void row_sums_strided(
    const float* x, const long long down, const long long across,
    float* out, const int rows, const int cols) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows) return;
    float sum = 0.0f;
    for (int j = 0; j < cols; ++j) sum += x[i * down + j * across];
    out[i] = sum;
}
"""


def _launch_args(args: Any, x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Launch with a learner's arguments, and give back what is in the output."""
    if not isinstance(args, tuple) or len(args) != 6:
        raise TypeError("return a tuple of the kernel's six arguments: x, down, across, out, rows, cols")
    if args[0] is None or not isinstance(args[0], np.ndarray) or not isinstance(args[3], np.ndarray):
        raise TypeError("the arguments 0 and 3 are arrays: x and out")
    array, result = args[0], args[3]
    if args[0].shape != x.shape or args[0].strides != x.strides:
        raise TypeError(f"argument 0 is not `x` as it came, but has the shape {args[0].shape} and the strides "
                        f"{args[0].strides}, not {x.shape} and {x.strides}: pass `x`, not a copy")  # fmt: skip
    if result.dtype != np.float32 or result.shape != out.shape:
        raise TypeError("argument 3 is the array `out` that the function got, or one like it")
    if gpu_available():
        import cupy

        array, result = cupy.asarray(array, order="K"), cupy.asarray(result)
    RawKernel(_ROW_SUMS, "row_sums_strided")((-(-len(out) // 32),), (32,), (array, *args[1:3], result, *args[4:]))
    return result.get() if hasattr(result, "get") else result


def _strided_cases() -> Iterator[Case]:
    rng = np.random.default_rng(3)
    x = normal(rng, 5, 7)
    for label, a in (("x", x), ("x.T", x.T), ("x in F order", np.asfortranarray(x)), ("40 x 3", normal(rng, 40, 3))):
        yield Case(label, (a, nan(len(a))))


STRIDES = Exercise(
    id="04.3",
    title="arguments that a kernel understands",
    after="## 5. Mistakes, made on purpose",
    kind="fix",
    spec="""
`launch_args(x, out)` makes the arguments for `row_sums_strided` of section 3: `x`, its two strides *in elements*,
`out`, rows and columns. It has two mistakes. It is right for some matrices only, and it passes Python numbers. Mend
both, without copying `x`. The kernel's parameters:

    const float* x, const long long down, const long long across,
    float* out, const int rows, const int cols
""",
    sizes="a 5 x 7 matrix, its transpose, the same in F order, and 40 x 3",
    lines=3,
    answer="launch_args",
    stub="""
def launch_args(x, out):
    rows, cols = x.shape
    return x, cols, 1, out, rows, cols
""",
    solution="""
def launch_args(x, out):
    rows, cols = x.shape
    down, across = (np.int64(stride // x.itemsize) for stride in x.strides)
    return x, down, across, out, np.int32(rows), np.int32(cols)
""",
    hints=(
        "`x.strides` counts bytes. The kernel counts floats: divide by `x.itemsize`.",
        "`long long` is `np.int64`, `int` is `np.int32`.",
    ),
    test=FunctionTest(
        cases=_strided_cases,
        oracle=lambda x, out: x.astype(np.float64).sum(axis=1),
        names=("out",),
        bound=lambda expected, x, out: 1e-5,
        then=_launch_args,
        mistakes=(
            (
                "the kernel read `x` as if it were in C order: take the strides from the array",
                lambda x, out: x.ravel("K").reshape(x.shape).astype(np.float64).sum(axis=1),
            ),
        ),
        kernels=True,
    ),
)

# ---- 04.4

GRID = Exercise(
    id="04.4",
    title="grid, idle threads, first overrun",
    after="## 5. Mistakes, made on purpose",
    kind="value",
    spec="""
2500 elements, blocks of 192 threads, one thread an element. How many blocks does the grid need? How many threads
have no element? And if the guard is forgotten: how many places past the last element does the last thread write?
""",
    sizes="",
    lines=3,
    answer="prediction",
    stub="""
prediction = {
    "blocks": None,
    "idle threads": None,
    "places past the last element": None,
}
""",
    solution="""
prediction = {
    "blocks": -(-2500 // 192),
    "idle threads": 14 * 192 - 2500,
    "places past the last element": 14 * 192 - 1 - 2499,
}
""",
    hints=(
        "The grid is rounded up. The last thread of all has index blocks times 192, minus 1; the last "
        "element has 2499.",
    ),
    test=ValueTest(
        lambda: {
            "blocks": -(-2500 // 192),
            "idle threads": -2500 % 192,
            "places past the last element": -(-2500 // 192) * 192 - 1 - 2499,
        },
        {
            "blocks": ((13, "13 blocks have 2496 threads: four elements are left over."),),
            "places past the last element": ((187, "Element 2499 is the last; 2500 is *one* past it."),),
        },
    ),
)

EXERCISES = (LEAKY, SCALE, STRIDES, GRID)
