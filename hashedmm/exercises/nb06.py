"""Exercises of notebook 06: sectors by hand, and kernels that have to be right and coalesced. Imports base, nb05."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hashedmm.exercises import nb05
from hashedmm.exercises.base import Demand, Exercise, KernelTest, Launch, ValueTest, nan, normal

# ---- 06.1


def _sectors(index: np.ndarray, size: int = 4) -> int:
    first, last = index * size // 32, (index * size + size - 1) // 32
    return len(set(first.tolist()) | set(last.tolist()))


def _sector_truth() -> dict[str, int]:
    t = np.arange(32)
    return {
        "x[31 - t]": _sectors(31 - t),
        "x[2 * t + 1]": _sectors(2 * t + 1),
        "x[t / 2]": _sectors(t // 2),
        "x[12 * t]": _sectors(12 * t),
        "x[5 * t % 32]": _sectors(5 * t % 32),
        "x[3 + t]": _sectors(3 + t),
    }


SECTORS = Exercise(
    id="06.1",
    title="sectors by hand",
    after="## 2. Eight ways to copy",
    kind="value",
    spec="""
`x` is an array of floats that begins at a multiple of 32 bytes, and `t` is the lane, 0 to 31. How many sectors does
each request touch? (`/` and `%` are C's, on integers.)
""",
    sizes="",
    lines=6,
    answer="prediction",
    stub="""
prediction = {
    "x[31 - t]": None,
    "x[2 * t + 1]": None,
    "x[t / 2]": None,
    "x[12 * t]": None,
    "x[5 * t % 32]": None,
    "x[3 + t]": None,
}
""",
    solution="""
prediction = {
    "x[31 - t]": 4,  # the same 128 bytes, backwards
    "x[2 * t + 1]": 8,  # floats 1 to 63: 64 floats, eight sectors
    "x[t / 2]": 2,  # floats 0 to 15
    "x[12 * t]": 32,  # 48 bytes apart: a sector each
    "x[5 * t % 32]": 4,  # floats 0 to 31 in another order
    "x[3 + t]": 5,  # floats 3 to 34
}
""",
    hints=(
        "A sector is 8 floats: number `x[k]` lies in sector `k // 8`. Count different ones; the order of "
        "lanes does not matter.",
        "Write it as a set: `len({(2 * t + 1) // 8 for t in range(32)})`.",
    ),
    test=ValueTest(
        _sector_truth,
        {
            "x[31 - t]": ((32, "The order of the lanes does not matter: which floats are asked for?"),),
            "x[2 * t + 1]": ((4, "Every second float: 32 of them span 64."),),
            "x[5 * t % 32]": ((32, "The order of the lanes does not matter: which floats are asked for?"),),
            "x[3 + t]": ((4, "Floats 3 to 34 begin inside a sector and end inside another."),),
            "x[t / 2]": ((4, "Two lanes share a float: only floats 0 to 15 are asked for."),),
            "x[12 * t]": (
                (48, "No request of 32 floats touches more than 32 sectors."),
                (16, "12 floats are 48 bytes: can two lanes share a sector?"),
            ),
        },
    ),
)

# ---- 06.2


def _crop_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(1)
    for rows, cols, top, left, h, w in ((9, 11, 2, 3, 5, 7), (1, 40, 0, 8, 1, 32), (70, 64, 5, 16, 64, 40)):
        x = normal(rng, rows, cols)
        numbers = (np.int32(cols), np.int32(top), np.int32(left), np.int32(h), np.int32(w))
        fix = "let neighbouring threads take neighbouring columns"
        demands = (Demand("sectors", 6, fix, 0), Demand("sectors", 6, fix, 1, "store")) if w > 32 else ()
        yield Launch(
            f"{h} x {w} out of {rows} x {cols}", (-(-h * w // 64),), (64,), (x, nan(h, w), *numbers),
            {1: x[top : top + h, left : left + w]}, demands=demands,
            mistakes=(
                ("the rows of `x` have `cols` numbers, not `w`", {1: np.resize(x.ravel()[top * w + left :], (h, w))}),
                ("`top` counts rows and `left` counts columns", {1: x[left : left + h, top : top + w]}),
            ) if h < w < 32 else (),
        )  # fmt: skip


CROP = Exercise(
    id="06.2",
    title="crop an image",
    after="## 3. Along or across? It is the lanes that count",
    kind="kernel",
    spec="""
Copy a window out of an image: `y[i][j] = x[top + i][left + j]` for `h` rows and `w` columns. Both are in C order;
rows of `x` have `cols` numbers, rows of `y` have `w`. The grid is one-dimensional, a thread an element. Which thread
takes which element is yours to choose: loads *and* stores may touch at most 6 sectors a request.
""",
    sizes="5 x 7 out of 9 x 11, 1 x 32 out of 1 x 40, 64 x 40 out of 70 x 64; blocks of 64 threads",
    lines=4,
    answer="CROP",
    stub='''
CROP = r"""
extern "C" __global__ void crop(
    const float* x, float* y, const int cols, const int top, const int left,
    const int h, const int w) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    // TODO: guard; row i and column j of this thread; copy
}
"""
''',
    solution='''
CROP = r"""
extern "C" __global__ void crop(
    const float* x, float* y, const int cols, const int top, const int left,
    const int h, const int w) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= h * w) return;
    const int i = t / w, j = t % w;
    y[i * w + j] = x[(top + i) * cols + left + j];
}
"""
''',
    hints=(
        "Of two neighbouring threads, the second should take the next column of the same row.",
        "Element number `t` of `y` is in row `t / w`, column `t % w`. (Row `t % h` and column `t / h` would be right, "
        "too, and slow.)",
    ),
    test=KernelTest("crop", _crop_launches),
)

# ---- 06.3


def _coalesced_launches() -> Iterator[Launch]:
    fix = "let the next thread take the next column, same row"
    yield from nb05.product_launches()
    spec_launch = _wide()
    yield replace(
        spec_launch,
        demands=(Demand("sectors", 4, fix, 1), Demand("sectors", 1, fix, 0), Demand("sectors", 4, fix, 2, "store")),
    )


def _wide() -> Launch:
    """A product with 64 columns: a warp is 32 of them."""
    from hashedmm import reference
    from hashedmm.hashing import HashSpec

    rng = np.random.default_rng(3)
    spec = HashSpec.elementwise((24, 20), 1 / 4, seed=7)
    w, x = normal(rng, spec.n_buckets), normal(rng, 20, 64)
    W = reference.materialise(w.astype(np.float64), spec)
    numbers = (np.int32(24), np.int32(20), np.int32(64), np.uint32(spec.n_buckets), np.uint32(7))
    bound = 22 * 2.0**-24 * (abs(W) @ abs(x))
    return Launch("24 x 20, n = 64", (24,), (64,), (w, x, nan(24, 64), *numbers), {2: W @ x}, {2: bound})


_NAIVE = '''
COALESCED = r"""{hash}
extern "C" __global__ void coalesced(
    const float* w_k, const float* x_dn, float* y_mn,
    const int rows, const int cols, const int n, const unsigned T, const unsigned seed) {{
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= (long long)rows * n) return;
    const int i = {i};
    const int s = {s};

    float sum = 0.0f;
    for (int j = 0; j < cols; ++j) {{
        const unsigned h = hash_ij(i, j, seed);
        const unsigned bucket = (unsigned)(((unsigned long long)h * T) >> 32);
        const float sign = h & 1 ? -1.0f : 1.0f;
        sum += sign * w_k[bucket] * x_dn[(long long)j * n + s];
    }}
    y_mn[(long long)i * n + s] = sum;
}}
"""
'''

COALESCED = Exercise(
    id="06.3",
    title="right, and slow",
    after="## 4. The hashed product: two lines",
    kind="fix",
    spec="""
Your kernel of notebook 05. It is right, and in the example of section 4 it asks for 31 sectors of `w_k` a request and
32 of `y_mn`. Change it so that a warp asks for 1 sector of `w_k` and at most 4 of `x_dn` and of `y_mn`, where
n is 64. Do not scroll back to the two lines: work them out from what each lane has to load.
""",
    sizes="as in 05.2, and 24 x 20 with n = 64",
    lines=2,
    answer="COALESCED",
    stub=_NAIVE.format(hash=nb05.HASH, i="t % rows", s="t / rows"),
    solution=_NAIVE.format(hash=nb05.HASH, i="t / n", s="t % n"),
    hints=(
        "Which of `i` and `s` should be the same for all 32 lanes? `w_k[bucket]` depends on one of them only.",
        "Number the outputs row by row, as `y_mn` is stored: output `t` is row `t / n`, sample `t % n`.",
    ),
    test=KernelTest("coalesced", _coalesced_launches),
)

# ---- 06.4


def _planes_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(2)
    for n in (1, 11, 64, 333):
        rgb = normal(rng, n, 3)
        fix = "let neighbouring threads load neighbouring numbers of rgb; the store is then three short runs"
        demands = (Demand("sectors", 4, fix, 0), Demand("sectors", 8, fix, 1, "store")) if n > 300 else ()
        yield Launch(
            f"{n} pixels" if n > 1 else "1 pixel",
            (-(-3 * n // 96),),
            (96,),
            (rgb, nan(3, n), np.int32(n)),
            {1: rgb.T},
            demands=demands,
        )


PLANES = Exercise(
    id="06.4",
    title="from pixels to planes",
    after="## 6. No order of threads suits every order of memory",
    kind="kernel",
    spec="""
`rgb` is (n, 3): three numbers a pixel, side by side. `planes` is (3, n): all reds, then all greens, then all blues.
Write `planes[c][p] = rgb[p][c]` with one thread for each of the `3 * n` numbers. One of the two sides cannot be
perfect. Take the order in which the *load* is: at most 4 sectors a request. (How many does the store need then?)
""",
    sizes="1, 11, 64 and 333 pixels; blocks of 96 threads",
    lines=3,
    answer="PLANES",
    stub='''
PLANES = r"""
extern "C" __global__ void planes(const float* rgb, float* planes, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    // TODO: guard; pixel p and colour c of this thread; copy
}
"""
''',
    solution='''
PLANES = r"""
extern "C" __global__ void planes(const float* rgb, float* planes, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= 3 * n) return;
    const int p = t / 3, c = t % 3;
    planes[c * n + p] = rgb[t];
}
"""
''',
    hints=(
        "Let thread `t` load number `t` of `rgb`. Which pixel, which colour is that?",
        "The store of a warp goes to three planes, 10 or 11 neighbours each: three runs of 2 or 3 sectors.",
    ),
    test=KernelTest("planes", _planes_launches),
)

EXERCISES = (SECTORS, CROP, COALESCED, PLANES)
