"""Exercises of notebook 12: grad_x by a gather, grad_w by atomics and in fixed point. Imports kernels, reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hashedmm import kernels, reference
from hashedmm.exercises.base import UNIT, Exercise, KernelTest, Launch, ValueTest, nan, normal
from hashedmm.hashing import HashSpec


def _specs() -> list[HashSpec]:
    return [
        HashSpec.elementwise((1, 1), 1.0, seed=1),
        HashSpec.elementwise((20, 20), 1 / 8, seed=4),  # first a square: W for W^T is no access outside of it
        HashSpec.elementwise((7, 19), 1 / 4, seed=2),
        HashSpec.strips((37, 20), 1 / 4, height=8, panel=(16, 20), seed=3),
    ]


def _label(spec: HashSpec, n: int) -> str:
    return f"{spec.structure} {spec.rows} x {spec.cols}, n = {n}"


# ---- 12.1


def _grad_x_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(1)
    for spec, n in zip(_specs(), (1, 20, 3, 5), strict=True):
        w, gy = normal(rng, spec.n_buckets), normal(rng, spec.rows, n)
        W = reference.materialise(w.astype(np.float64), spec)
        wrong = [("the signs are missing", {3: w[spec.indices()[0]].astype(np.float64).T @ gy})]
        if spec.rows == spec.cols:
            wrong.append(("this is W gy, not W^T gy: a thread walks *down* column j", {3: W @ gy}))
        yield Launch(
            _label(spec, n), (-(-spec.cols * n // 64),), (64,),
            (kernels.layout(spec), w, gy, nan(spec.cols, n), np.int32(n)),
            {3: W.T @ gy}, {3: (spec.rows + 2) * UNIT * (abs(W).T @ abs(gy))},
            mistakes=tuple(wrong),
        )  # fmt: skip


GRAD_X = Exercise(
    id="12.1",
    title="grad_x, for any structure",
    after="## 3. `grad_x`: the same gather, down the columns",
    kind="kernel",
    spec="""
`gx_dn[j][s]` is the sum over `i` of $W_{ij}$ times `gy_mn[i][s]`. A thread has one output. `locate(layout, i, j)`,
from `hash.cuh`, gives a `Place` with the fields `bucket` and `sign`, for any structure; rows and columns are
`layout.rows` and `layout.cols`.
""",
    sizes="elementwise 1 x 1, 20 x 20 and 7 x 19, strips 37 x 20; blocks of 64 threads, cols x n threads rounded up",
    lines=7,
    answer="GRAD_X",
    stub='''
GRAD_X = r"""
#include "hash.cuh"

extern "C" __global__ void grad_x(
    const Layout layout, const float* w_k, const float* gy_mn, float* gx_dn, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    // TODO: guard; input j and sample s; sum down column j; write
}
"""
''',
    solution='''
GRAD_X = r"""
#include "hash.cuh"

extern "C" __global__ void grad_x(
    const Layout layout, const float* w_k, const float* gy_mn, float* gx_dn, const int n) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= layout.cols * n) return;
    const int j = t / n, s = t % n;
    float sum = 0.0f;
    for (int i = 0; i < layout.rows; ++i) {
        const Place place = locate(layout, i, j);
        sum += place.sign * w_k[place.bucket] * gy_mn[i * n + s];
    }
    gx_dn[t] = sum;
}
"""
''',
    hints=(
        "The output belongs to input `j`, so there are `layout.cols * n` of them, and the loop runs over rows.",
        "`const Place place = locate(layout, i, j);` then `place.sign * w_k[place.bucket]` is $W_{ij}$.",
    ),
    test=KernelTest("grad_x", _grad_x_launches),
)

# ---- 12.2


def _grad_w_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(2)
    for spec, n in zip(_specs(), (1, 2, 3, 5), strict=True):
        x, gy = normal(rng, spec.cols, n), normal(rng, spec.rows, n)
        exact = reference.matmul_grad_w(x.astype(np.float64), gy.astype(np.float64), spec)
        bucket, _ = spec.indices()
        size = np.bincount(bucket.ravel(), (abs(gy).astype(np.float64) @ abs(x).T).ravel(), spec.n_buckets)
        unsigned = np.bincount(bucket.ravel(), (gy.astype(np.float64) @ x.T).ravel(), spec.n_buckets)
        load = np.bincount(bucket.ravel(), minlength=spec.n_buckets).max()
        yield Launch(
            _label(spec, n), (-(-spec.rows * spec.cols // 64),), (64,),
            (kernels.layout(spec), x, gy, np.zeros(spec.n_buckets, np.float32), np.int32(n)),
            {3: exact}, {3: (n + load + 2) * UNIT * size}, mistakes=(("the signs are missing", {3: unsigned}),),
        )  # fmt: skip


_SCATTER = '''
SCATTER = r"""
#include "hash.cuh"

extern "C" __global__ void scatter(
    const Layout layout, const float* x_dn, const float* gy_mn, float* gw_k, const int n) {{
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= layout.rows * layout.cols) return;
    const int i = t / layout.cols, j = t % layout.cols;  // this thread has weight (i, j)

    float g = 0.0f;
    for (int s = 0; s < n; ++s) g += gy_mn[i * n + s] * x_dn[j * n + s];

    const Place place = locate(layout, i, j);
    {line}
}}
"""
'''

SCATTER = Exercise(
    id="12.2",
    title="lost updates",
    after="## 6. Third try: `atomicAdd`",
    kind="fix",
    spec="""
The kernel of section 4. In the emulator its numbers are right. On a GPU updates are lost. Mend it; `gw_k` is full
of zeros before the launch.
""",
    sizes="as in 12.1; blocks of 64 threads, a thread a weight",
    lines=1,
    answer="SCATTER",
    stub=_SCATTER.format(line="gw_k[place.bucket] += place.sign * g;"),
    solution=_SCATTER.format(line="atomicAdd(&gw_k[place.bucket], place.sign * g);"),
    hints=(
        "Two threads that load before either stores lose an update. Load, add and store have to be one step: "
        "section 6.",
    ),
    test=KernelTest("scatter", _grad_w_launches, order_dependent=True),
)

# ---- 12.3

_SCALE = 2.0**30


def _fixed_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(3)
    for spec in _specs():
        # From far below 1 / scale to far above 2^31 / scale.
        x = normal(rng, spec.cols) * (10.0 ** rng.uniform(-6, 3, spec.cols)).astype(np.float32)
        gy = normal(rng, spec.rows)
        bucket, sign = spec.indices()
        g = (sign * (gy[:, None] * x[None, :])).astype(np.float32)  # one product, rounded once

        def sums(terms: np.ndarray, bucket: np.ndarray = bucket, buckets: int = spec.n_buckets) -> np.ndarray:
            out = np.zeros(buckets, np.int64)
            np.add.at(out, bucket, terms)
            return out.view(np.uint64)

        scaled = _SCALE * g.astype(np.float64)
        lost = np.where(abs(scaled) < 2**31, np.rint(scaled), -(2**31))  # what a CPU makes of too large a number
        yield Launch(
            f"{spec.structure} {spec.rows} x {spec.cols}", (-(-spec.rows * spec.cols // 64),), (64,),
            (kernels.layout(spec), x, gy, np.zeros(spec.n_buckets, np.uint64), np.float64(_SCALE)),
            {3: sums(np.rint(scaled).astype(np.int64))},
            mistakes=(
                ("the signs are missing", {3: sums(np.rint(sign * scaled).astype(np.int64))}),
                ("the numbers were cut, not rounded: use `rint`", {3: sums(np.trunc(scaled).astype(np.int64))}),
                ("a contribution was not multiplied by the scale", {3: sums(np.rint(g).astype(np.int64))}),
                ("the conversion went through 32 "
                "bits", {3: sums(np.clip(np.rint(scaled), -(2**31), 2**31 - 1).astype(np.int64))}),
                ("the conversion went through 32 bits", {3: sums(lost.astype(np.int64))}),
            ),
        )  # fmt: skip


_FIXED = '''
FIXED_POINT = r"""
#include "hash.cuh"

extern "C" __global__ void fixed_point(
    const Layout layout, const float* x_d, const float* gy_m, unsigned long long* sum_k,
    const double scale) {{
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= layout.rows * layout.cols) return;
    const int i = t / layout.cols, j = t % layout.cols;

    const float g = gy_m[i] * x_d[j];  // one sample
    const Place place = locate(layout, i, j);
    {line}
}}
"""
'''

FIXED = Exercise(
    id="12.3",
    title="the same bits in any order",
    after="## 7. Fourth try: integers commute",
    kind="kernel",
    spec="""
Make `grad_w` for one sample in fixed point: each thread multiplies its contribution, sign included, by `scale`,
rounds it to the nearest whole number (`rint`), and adds it to its bucket's 64-bit sum. The sums are zeros before
the launch. Every bit counts, in every order of threads. Convert to `long long` before `unsigned long long`: what
a negative number becomes that goes straight to an unsigned type is undefined, and a GPU may make something else of it
than the emulator.
""",
    sizes="as in 12.1, one sample, scale $2^{30}$; a thread a weight",
    lines=2,
    answer="FIXED_POINT",
    stub=_FIXED.format(line="// TODO: to a whole number; add it to sum_k[place.bucket]"),
    solution=_FIXED.format(
        line="const long long whole = (long long)rint(scale * (place.sign * g));\n"
        "    atomicAdd(&sum_k[place.bucket], (unsigned long long)whole);"
    ),
    hints=(
        "A negative `long long` keeps its bits as an `unsigned long long`, and the sum is right in two's complement: "
        "section 7. `atomicAdd` has no signed 64-bit version.",
        "`rint(scale * (place.sign * g))` is a double: `scale` is one.",
    ),
    test=KernelTest("fixed_point", _fixed_launches),
)

# ---- 12.4

_SAME, _DIFFER = "same bits", "may differ"
_REPEATS = {
    "float atomicAdd on a GPU": _DIFFER,
    "64-bit integer atomicAdd on a GPU": _SAME,
    "a thread a bucket, which searches all weights in order": _SAME,
    "gw_k[bucket] += g on a GPU": _DIFFER,
    "np.add.at on a CPU, float32": _SAME,
}

REPEATS = Exercise(
    id="12.4",
    title="who gives the same bits twice",
    after="## 7. Fourth try: integers commute",
    kind="value",
    spec="""
`grad_w` is computed twice from the same numbers, by the same program on the same machine. Are the two results
equal, bit for bit? Answer `"same bits"` or `"may differ"`.
""",
    sizes="",
    lines=5,
    answer="prediction",
    stub="\nprediction = {\n" + "".join(f'    "{k}": None,\n' for k in _REPEATS) + "}\n",
    solution="\nprediction = {\n" + "".join(f'    "{k}": "{v}",\n' for k, v in _REPEATS.items()) + "}\n",
    hints=(
        "Ask of each: does the order of the additions depend on who comes first? And if it does: does the "
        "order matter to the sum?",
    ),
    test=ValueTest(
        lambda: _REPEATS,
        {
            "float atomicAdd on a GPU": (
                (_SAME, "No update is lost, but the turns come in another order, and float sums round."),
            ),
            "64-bit integer atomicAdd on a GPU": ((_DIFFER, "The order differs. Does it matter to whole numbers?"),),
            "a thread a bucket, which searches all weights in order": (
                (_DIFFER, "One thread adds, in a fixed order."),
            ),
            "gw_k[bucket] += g on a GPU": ((_SAME, "Updates are lost, other ones in each run."),),
            "np.add.at on a CPU, float32": ((_DIFFER, "It rounds, but always in the same order."),),
        },
    ),
)

EXERCISES = (GRAD_X, SCATTER, FIXED, REPEATS)
