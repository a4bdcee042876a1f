"""Exercises of notebook 07: barriers, a reduction, padding, tiles with edges. Imports base."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hashedmm.exercises.base import UNIT, Demand, Exercise, KernelTest, Launch, nan, normal

# ---- 07.1


def _reverse_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(1)
    for n in (1, 31, 64, 100, 256):
        x = normal(rng, n)
        yield Launch(f"n = {n}", (1,), (256,), (x, nan(n), np.int32(n)), {1: x[::-1].copy()})


_REVERSE = '''
REVERSED = r"""
extern "C" __global__ void reversed(const float* x, float* y, const int n) {{
    __shared__ float kept[256];
    const int t = threadIdx.x;
    if (t < n) kept[t] = x[t];
{barrier}    if (t < n) y[t] = kept[n - 1 - t];
}}
"""
'''

REVERSED = Exercise(
    id="07.1",
    title="a missing word",
    after="## 4. Two barriers, two races",
    kind="fix",
    spec="""
One block of 256 threads reverses up to 256 numbers through shared memory. On some cards, on some days, it is right.
Add what is missing.
""",
    sizes="n = 1, 31, 64, 100 and 256",
    lines=1,
    answer="REVERSED",
    stub=_REVERSE.format(barrier=""),
    solution=_REVERSE.format(barrier="    __syncthreads();  // kept is complete\n"),
    hints=("Thread 0 reads what thread `n - 1` has written. What says that it was written before?",),
    test=KernelTest("reversed", _reverse_launches),
)

# ---- 07.2


def _sum_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(2)
    for n in (1, 127, 128, 129, 1000):
        x, blocks = normal(rng, n), -(-n // 128)
        sums = np.add.reduceat(x.astype(np.float64), np.arange(0, n, 128))
        first = x[::128].astype(np.float64)
        yield Launch(
            f"n = {n}",
            (blocks,),
            (128,),
            (x, nan(blocks), np.int32(n)),
            {1: sums},
            {1: 130 * UNIT * np.add.reduceat(abs(x.astype(np.float64)), np.arange(0, n, 128))},
            mistakes=(("only the block's first number came out: nothing was added", {1: first}),),
        )


BLOCK_SUMS = Exercise(
    id="07.2",
    title="the sum of a block",
    after="## 4. Two barriers, two races",
    kind="kernel",
    spec="""
Each block of 128 threads adds up its 128 numbers: `sums[b]` is the sum of `x[128 * b]` to `x[128 * b + 127]`, as
far as they exist. Let the threads halve the work: 64 threads add the upper half of `part` onto the lower, then 32,
then 16, and at the end `part[0]` is the sum. That takes seven steps in place of 127.
""",
    sizes="n = 1, 127, 128, 129 and 1000",
    lines=7,
    answer="SUMS",
    stub='''
SUMS = r"""
extern "C" __global__ void block_sums(const float* x, float* sums, const int n) {
    __shared__ float part[128];
    const int t = threadIdx.x, i = blockIdx.x * 128 + t;
    // TODO: bring x[i], or 0 past the end
    for (int half = 64; half > 0; half /= 2) {
        // TODO: add part[t + half] to part[t], with the barriers that this needs
    }
    // TODO: one thread writes the sum
}
"""
''',
    solution='''
SUMS = r"""
extern "C" __global__ void block_sums(const float* x, float* sums, const int n) {
    __shared__ float part[128];
    const int t = threadIdx.x, i = blockIdx.x * 128 + t;
    part[t] = i < n ? x[i] : 0.0f;
    __syncthreads();
    for (int half = 64; half > 0; half /= 2) {
        if (t < half) part[t] += part[t + half];
        __syncthreads();
    }
    if (t == 0) sums[blockIdx.x] = part[0];
}
"""
''',
    hints=(
        "A thread past the end brings a zero: it still has to arrive at every barrier, so it may not return.",
        "Only threads with `t < half` add. All threads reach the barrier: it stands *after* the `if`, not in it.",
        "One barrier before the loop, when `part` is complete, and one in each turn, when the half is added.",
    ),
    test=KernelTest("block_sums", _sum_launches),
)

# ---- 07.3


def _tile_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(4)
    for rows, cols, n in ((1, 1, 1), (17, 5, 3), (16, 32, 16), (33, 40, 35)):
        a, x = normal(rng, rows, cols), normal(rng, cols, n)
        exact = a.astype(np.float64) @ x
        bound = (cols + 2) * UNIT * (abs(a).astype(np.float64) @ abs(x))
        fix = "fetch each tile once for the whole block, into shared memory"
        demands: tuple[Demand, ...] = ()
        if rows == 33:
            demands = (
                Demand("bytes", 4 * rows * cols * -(-n // 16), fix, 0),
                Demand("bytes", 4 * cols * n * -(-rows // 16), fix, 1),
            )
        yield Launch(
            f"{rows} x {cols}, n = {n}", (-(-n // 16), -(-rows // 16)), (16, 16),
            (a, x, nan(rows, n), np.int32(rows), np.int32(cols), np.int32(n)), {2: exact}, {2: bound}, demands=demands,
        )  # fmt: skip


TILES = Exercise(
    id="07.3",
    title="a product by tiles",
    after="## 5. Four more ways to fail",
    kind="kernel",
    spec="""
The dense product `y = a x`: `a` is (rows, cols), `x` is (cols, n), `y` is (rows, n), all in C order. A block of 16
x 16 threads computes a 16 x 16 tile of `y`. Fetch tiles of `a` and `x` into shared memory, so that every number of
`a` is read only once for each column of tiles, and every number of `x` once for each row of tiles. The sizes
need not be multiples of 16.
""",
    sizes="1 x 1, 17 x 5, 16 x 32 and 33 x 40, with 1 to 35 columns",
    lines=10,
    answer="TILES",
    stub='''
TILES = r"""
extern "C" __global__ void tiles(
    const float* a, const float* x, float* y, const int rows, const int cols, const int n) {
    __shared__ float a_tile[16][16], x_tile[16][16];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int i = blockIdx.y * 16 + ty, s = blockIdx.x * 16 + tx;  // this thread's output

    float sum = 0.0f;
    for (int j0 = 0; j0 < cols; j0 += 16) {
        // TODO: bring one number of each tile, a zero where there is none; then use both tiles
    }
    // TODO: write, if this output exists
}
"""
''',
    solution='''
TILES = r"""
extern "C" __global__ void tiles(
    const float* a, const float* x, float* y, const int rows, const int cols, const int n) {
    __shared__ float a_tile[16][16], x_tile[16][16];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int i = blockIdx.y * 16 + ty, s = blockIdx.x * 16 + tx;  // this thread's output

    float sum = 0.0f;
    for (int j0 = 0; j0 < cols; j0 += 16) {
        a_tile[ty][tx] = i < rows && j0 + tx < cols ? a[i * cols + j0 + tx] : 0.0f;
        x_tile[ty][tx] = j0 + ty < cols && s < n ? x[(j0 + ty) * n + s] : 0.0f;
        __syncthreads();
        for (int k = 0; k < 16; ++k) sum += a_tile[ty][k] * x_tile[k][tx];
        __syncthreads();
    }
    if (i < rows && s < n) y[i * n + s] = sum;
}
"""
''',
    hints=(
        "The kernel of section 3 with `weight(...)` replaced by a load of `a`, and 16 for 32.",
        "Each load has its own guard: `a` needs `i < rows` and the input inside of cols, `x` needs the input "
        "inside of cols and "
        "`s < n`. The input differs: `j0 + tx` for `a`, `j0 + ty` for `x`.",
        "Two barriers a step: after the tiles are written, and after they are used.",
    ),
    test=KernelTest("tiles", _tile_launches),
)

# ---- 07.4


def _transpose_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(3)
    fix = "make the rows of the tile one word longer, 33, so that a column lies in 32 different banks"
    for rows, cols in ((1, 1), (33, 5), (40, 70), (64, 64)):
        a = normal(rng, rows, cols)
        demands: tuple[Demand, ...] = ()
        if rows == 64:
            demands = (
                Demand("wavefronts", 1, fix),
                Demand("wavefronts", 1, fix, op="store"),
                Demand("sectors", 4, "read and write along rows", 0),
                Demand("sectors", 4, "read and write along rows", 1, "store"),
            )
        yield Launch(
            f"{rows} x {cols}", (-(-cols // 32), -(-rows // 32)), (32, 8),
            (a, nan(cols, rows), np.int32(rows), np.int32(cols)), {1: a.T.copy()}, demands=demands,
        )  # fmt: skip


_TRANSPOSE = '''
TRANSPOSED = r"""
extern "C" __global__ void transposed(
    const float* a, float* b, const int rows, const int cols) {{
    __shared__ float tile[32][{width}];
    const int tx = threadIdx.x, column = blockIdx.x * 32, row = blockIdx.y * 32;
    for (int ty = threadIdx.y; ty < 32; ty += 8) {{
        const bool inside = row + ty < rows && column + tx < cols;
        if (inside) tile[ty][tx] = a[(row + ty) * cols + column + tx];
    }}
    __syncthreads();
    for (int ty = threadIdx.y; ty < 32; ty += 8) {{
        const bool inside = column + ty < cols && row + tx < rows;
        if (inside) b[(column + ty) * rows + row + tx] = tile[tx][ty];
    }}
}}
"""
'''

TRANSPOSED = Exercise(
    id="07.4",
    title="a queue at one bank",
    after="## 6. Banks",
    kind="fix",
    spec="""
A transposition by tiles: right at every size, and its reads and writes of global memory are along rows. But one
line needs 32 wavefronts a request. Make it 1, and keep everything else.
""",
    sizes="1 x 1, 33 x 5, 40 x 70 and 64 x 64; blocks of 32 x 8 threads",
    lines=1,
    answer="TRANSPOSED",
    stub=_TRANSPOSE.format(width=32),
    solution=_TRANSPOSE.format(width=33),
    hints=(
        "Lane `tx` reads `tile[tx][ty]`: word 32 tx + ty. In which bank is it?",
        "A column is free of conflicts if the rows of the tile have an odd number of words.",
    ),
    test=KernelTest("transposed", _transpose_launches),
)

EXERCISES = (REVERSED, BLOCK_SUMS, TILES, TRANSPOSED)
