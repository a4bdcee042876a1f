"""Exercises of notebook 13: the width of an honest rival, a dropout mask from a counter. Imports base, hashing, nn."""

from __future__ import annotations

import numpy as np

from hashedmm.exercises.base import Case, Exercise, FunctionTest
from hashedmm.hashing import derive_seed, fmix32
from hashedmm.nn import Dropout, equal_storage_width

# ---- 13.1


def _values(d_in: int, width: int, d_out: int) -> int:
    return (d_in + 1) * width + (width + 1) * d_out


WIDTH = Exercise(
    id="13.1",
    title="the rival of equal storage",
    after="## 2. Build two networks of equal storage",
    kind="function",
    spec="""
A dense network with one hidden layer, sizes `d_in`, `width`, `d_out`, stores two matrices and two biases. Write
`my_width(d_in, d_out, stored)`: the width, at least 1, whose number of stored values is *nearest* to `stored`. Of
two that are equally near, the smaller.
""",
    sizes="the net of section 2 (126), and six others",
    lines=4,
    answer="my_width",
    stub="""
def my_width(d_in, d_out, stored): ...
""",
    solution="""
def my_width(d_in, d_out, stored):
    def values(width):
        return (d_in + 1) * width + (width + 1) * d_out

    below = max(1, (stored - d_out) // (d_in + 1 + d_out))
    return min(below, below + 1, key=lambda width: abs(values(width) - stored))
""",
    hints=(
        "Each hidden unit has `d_in` weights, a bias, and `d_out` weights that leave it. The outputs' biases "
        "come on top, once.",
        "Divide, rounding down, and compare with the next width. `min(a, b, key=...)` returns the first of "
        "two equal ones.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{a}-?-{b}, {s:,} values", (a, b, s))
            for a, b, s in (
                (784, 10, 100_180),
                (784, 10, 13_400),
                (3, 2, 23),
                (3, 2, 17),
                (3, 2, 1),
                (5, 1, 26),
                (32, 1, 769),
            )
        ],
        oracle=lambda a, b, s: equal_storage_width([a, 1000, b], s),
        names=("width",),
        mistakes=(
            ("the biases are stored, too", lambda a, b, s: max(1, round(s / (a + b)))),
            (
                "of two equally near widths take the smaller",
                lambda a, b, s: min(range(1, 3000), key=lambda k: (abs(_values(a, k, b) - s), -k)),
            ),
            (
                "the nearest number counts, not the largest that fits",
                lambda a, b, s: max(1, (s - b) // (a + 1 + b)),
            ),
        ),
    ),
)

# ---- 13.2


def _mask(n: int, features: int, rate: float, seed: int, step: int) -> np.ndarray:
    return Dropout(rate, seed=seed).mask((n, features), step)


def _mask_of(n: int, features: int, rate: float, key: int, order: str = "F", high_first: bool = False) -> np.ndarray:
    """The mask with some of its rules broken."""
    words = fmix32(np.arange((n * features + 1) // 2, dtype=np.uint32) * np.uint32(0x9E3779B1) ^ np.uint32(key))
    halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis=1)
    halves = halves[:, ::-1].ravel() if high_first else halves.ravel()
    keep = halves[: n * features].reshape((n, features), order=order) >= round(rate * 2**16)  # type: ignore[call-overload]
    return keep.astype(np.float32) * np.float32(2**16 / (2**16 - round(rate * 2**16)))


MASK = Exercise(
    id="13.2",
    title="a dropout mask that needs no memory",
    after="## 2. Build two networks of equal storage",
    kind="function",
    spec="""
The package draws dropout masks as it draws weights: by a hash, from a seed and the number of the step. Write
`my_mask(n, features, rate, seed, step)`, float32 of shape (n, features):

1. the key is `derive_seed(seed, step)`;
2. word `k` is `fmix32(k * 0x9E3779B1 ^ key)`, for `k` = 0, 1, 2, ... in `uint32`. It gives two numbers of 16 bits:
   number `2k` is its low half, number `2k + 1` its high half;
3. sample `i`, feature `f` has number `f * n + i`;
4. it is dropped (0) if its number is below `round(rate * 2**16)`; else it is $2^{16} / (2^{16} -
   \\mathrm{round}(\\mathrm{rate} \\cdot 2^{16}))$.

`fmix32` takes an array of `uint32`, too.
""",
    sizes="1 x 1, 4 x 3, 5 x 7 and 100 x 33; rates 0, 0.1, 0.25 and 0.5",
    lines=5,
    answer="my_mask",
    stub="""
from hashedmm import derive_seed
from hashedmm.hashing import fmix32


def my_mask(n, features, rate, seed, step):
    key = np.uint32(derive_seed(seed, step))
    k = np.arange((n * features + 1) // 2, dtype=np.uint32)
    words = fmix32(k * np.uint32(0x9E3779B1) ^ key)
    low, high = words & np.uint32(0xFFFF), ...
    return np.stack([low, high], axis=1).ravel() >= ...
""",
    solution="""
from hashedmm import derive_seed
from hashedmm.hashing import fmix32


def my_mask(n, features, rate, seed, step):
    key = np.uint32(derive_seed(seed, step))
    k = np.arange((n * features + 1) // 2, dtype=np.uint32)
    words = fmix32(k * np.uint32(0x9E3779B1) ^ key)
    low, high = words & np.uint32(0xFFFF), words >> np.uint32(16)
    halves = np.stack([low, high], axis=1).ravel()
    threshold = round(rate * 2**16)
    keep = halves[: n * features].reshape(features, n).T >= threshold
    return (keep * (2**16 / (2**16 - threshold))).astype(np.float32)
""",
    hints=(
        "`np.stack([low, high], axis=1).ravel()` puts low and high halves in turn: numbers 0, 1, 2, 3, ...",
        "Number `f * n + i` means that the samples of one feature lie side by side: reshape to (features, "
        "n), then transpose.",
        "The last word may have a half too many: take the first `n * features`.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{n} x {f}, rate {r:g}", (n, f, r, s, t))
            for n, f, r, s, t in (
                (1, 1, 0.5, 3, 0),
                (4, 3, 0.5, 7, 1),
                (5, 7, 0.25, 42, 5),
                (100, 33, 0.1, 1, 1000),
                (3, 3, 0.0, 1, 2),
            )
        ],
        oracle=_mask,
        names=("mask",),
        bound=lambda expected, *a: 1e-6,
        dtype=True,
        mistakes=(
            (
                "sample i, feature f has number f * n + i: this is i * features + f",
                lambda n, f, r, s, t: _mask_of(n, f, r, derive_seed(s, t), order="C"),
            ),
            (
                "the low half comes first",
                lambda n, f, r, s, t: _mask_of(n, f, r, derive_seed(s, t), high_first=True),
            ),
            ("every step has a key of its own: derive_seed(seed, step)", lambda n, f, r, s, t: _mask_of(n, f, r, s)),
            (
                "what is kept grows, so that the mean stays: 1 / (1 - rate)",
                lambda n, f, r, s, t: (_mask(n, f, r, s, t) > 0).astype(np.float32),
            ),
            (
                "the rate that counts is the rounded one, of 16 bits",
                lambda n, f, r, s, t: ((_mask(n, f, r, s, t) > 0) / (1 - r)).astype(np.float32),
            ),
        ),
    ),
)

EXERCISES = (WIDTH, MASK)
