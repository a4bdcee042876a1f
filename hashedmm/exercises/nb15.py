"""Exercises of notebook 15: windows for a budget, the double-buffered loop, bytes sent, the weights of an average.

Imports base, hashing and scale.
"""

from __future__ import annotations

import numpy as np

from hashedmm.exercises.base import Case, Exercise, FunctionTest, ValueTest, relative
from hashedmm.hashing import HashSpec
from hashedmm.scale import sent_bytes, timeline

# ---- 15.1


def _windows(rows: int, row_bytes: int, fixed: int, budget: int, buffers: int = 2, first: int = 1) -> int:
    for count in range(first, rows + 1):
        if fixed + min(buffers, count) * -(-rows // count) * row_bytes <= budget:
            return count
    return 0


def _windows_of_average_size(rows: int, row_bytes: int, fixed: int, budget: int) -> int:
    for count in range(1, rows + 1):
        if fixed + min(2, count) * rows / count * row_bytes <= budget:
            return count
    return 0


WINDOWS = Exercise(
    id="15.1",
    title="the fewest windows that fit",
    after="## 3. Two buffers",
    kind="function",
    spec="""
A matrix has `rows` rows of panels. The buckets of each take `row_bytes` bytes. They are streamed in windows of whole
rows of panels, as equal as they can be: of `count` windows the largest has `rows / count` rows, rounded up. Two windows
are on the card at once, each in a buffer that has room for the largest; if there is only one window, one buffer is
enough. Everything else takes `fixed` bytes there.

Write `my_windows(rows, row_bytes, fixed, budget)`: the smallest number of windows with which all of it fits in `budget`
bytes, or 0 if none does.
""",
    sizes="1 to 1,024 rows of panels, seven budgets, one of them too small",
    lines=4,
    answer="my_windows",
    stub="""
def my_windows(rows, row_bytes, fixed, budget): ...
""",
    solution="""
def my_windows(rows, row_bytes, fixed, budget):
    for count in range(1, rows + 1):
        largest = -(-rows // count) * row_bytes
        if fixed + min(2, count) * largest <= budget:
            return count
    return 0
""",
    hints=(
        "Try one window, then two, and so on up to one a row of panels. `-(-rows // count)` rounds up.",
        "One window needs one buffer, all others need two: `min(2, count)`.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{rows} rows of {size:,} bytes, {fixed:,} fixed, budget {budget:,}", (rows, size, fixed, budget))
            for rows, size, fixed, budget in (
                (32, 1_000, 500, 8_500),
                (10, 1_000, 1_500, 6_400),
                (10, 1_000, 0, 5_000),
                (7, 300, 100, 2_200),
                (1024, 16_777_216, 10**9, 8 * 10**9),
                (5, 100, 50, 249),
                (1, 100, 50, 150),
            )
        ],
        oracle=_windows,
        names=("windows",),
        mistakes=(
            ("two windows are on the card at once", lambda r, s, f, b: _windows(r, s, f, b, buffers=1)),
            ("the buffers have room for the largest window, not for one of average size", _windows_of_average_size),
            ("all windows fit at once only if there is one", lambda r, s, f, b: _windows(r, s, f, b, first=2)),
            ("the fixed bytes are on the card, too", lambda r, s, f, b: _windows(r, s, 0, b)),
        ),
    ),
)

# ---- 15.2

Orders = list[tuple[str, int]]
SPEEDS = ((2.0, 3.0), (3.0, 2.0))  # seconds of a copy and of a product, two machines


def run_orders(orders: Orders, windows: int, buffers: int, copy: float, product: float) -> tuple[np.ndarray, float]:
    """What a machine does with orders: which window every product found in its buffer, and when the last was done.

    ``("copy", k)`` starts to copy window k into buffer k % buffers and does not wait; copies are done one at a time.
    ``("product", k)`` waits for the copy of window k, and computes with what is then in that buffer.
    """
    now = copying = 0.0
    arrives: dict[int, float] = {}
    inside: dict[int, int] = {}
    found = np.full(windows, -1)
    for order in orders:
        if not isinstance(order, tuple) or len(order) != 2 or order[0] not in ("copy", "product"):
            raise ValueError(f'an order is ("copy", k) or ("product", k), got {order!r}')
        what, k = order
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 0 <= k < windows:
            raise ValueError(f"there are windows 0 to {windows - 1}, got {order!r}")
        if what == "copy":
            copying = arrives[k] = max(now, copying) + copy
            inside[k % buffers] = k
        else:
            if k not in arrives:
                raise ValueError(f"the product of window {k} is ordered before its copy")
            now = max(now, arrives[k]) + product
            found[k] = inside[k % buffers]
    return found, now


def _ran(orders: Orders, windows: int, buffers: int) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(orders, list):
        raise ValueError(f"return a list of orders, got {type(orders).__name__}")
    results = [run_orders(orders, windows, buffers, *speed) for speed in SPEEDS]
    return results[0][0], np.array([seconds for _, seconds in results])


def _best(windows: int, buffers: int, depth: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    ends = [timeline(c, p, 0, windows, depth or buffers)[-1].stop for c, p in SPEEDS]
    return np.arange(windows), np.array(ends)


def _too_early(windows: int, buffers: int) -> tuple[np.ndarray, np.ndarray]:
    """A copy that is ordered before the product whose buffer it takes."""
    orders = [("copy", k) for k in range(min(buffers, windows))]
    for k in range(windows):
        orders += [("copy", k + buffers)] * (k + buffers < windows) + [("product", k)]
    return _ran(orders, windows, buffers)


LOOP = Exercise(
    id="15.2",
    title="the double-buffered loop",
    after="## 3. Two buffers",
    kind="function",
    spec="""
A machine takes two orders. `("copy", k)` starts to copy window `k` into buffer `k % buffers`, and the next order
follows at once. `("product", k)` waits until the copy of window `k` is complete, computes with what is in its buffer,
and is over when the product is. Copies are done one at a time, beside products.

Write `my_orders(windows, buffers)`: the list of orders that computes windows 0, 1, 2, ... each once, as early as
possible, and never overwrites a buffer whose product is still to come.
""",
    sizes="1, 2, 5 and 9 windows, 1 to 3 buffers; copies that take longer than products, and the other way round",
    lines=6,
    answer="my_orders",
    stub="""
def my_orders(windows, buffers):
    orders = [("copy", 0)]
    for k in range(windows):
        orders.append(("product", k))
        ...
    return orders
""",
    solution="""
def my_orders(windows, buffers):
    orders = [("copy", k) for k in range(min(buffers, windows))]
    for k in range(windows):
        orders.append(("product", k))
        if k + buffers < windows:
            orders.append(("copy", k + buffers))
    return orders
""",
    hints=(
        "At first all buffers are empty: fill each of them, but no more than there are windows.",
        "When product `k` is over, its buffer is free. Which window comes into it next?",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{w} windows, {b} buffer{'s' if b > 1 else ''}", (w, b))
            for w, b in ((1, 2), (5, 2), (9, 2), (2, 3), (9, 3), (5, 1))
        ],
        oracle=lambda windows, buffers: _best(windows, buffers),
        names=("the window that each product found", "seconds"),
        bound=lambda expected, *a: 1e-9,
        mistakes=(
            ("a copy was ordered into a buffer before the product that reads it", _too_early),
            ("one after the other: while one window is computed, the next must be on its way",
             lambda w, b: _best(w, b, 1)),
        ),
        then=_ran,
    ),
)  # fmt: skip

# ---- 15.3

_SIDE, _PANEL, _COMPRESSION, _BATCH, _RANKS = 4096, (256, 512), 1 / 64, 512, 4


def _truth() -> dict[str, int]:
    spec = HashSpec.strips((_SIDE, _SIDE), _COMPRESSION, height=256, panel=_PANEL, stride=16)
    buckets = spec.n_buckets
    return {
        "a rank's share of y": 4 * _SIDE // _RANKS * _BATCH,
        "panels split": sent_bytes([spec], _BATCH, "panels", "matmul", _RANKS),
        "samples split": 2 * 4 * buckets * (_RANKS - 1) // _RANKS,
        "samples split, dense layer": 2 * 4 * _SIDE**2 * (_RANKS - 1) // _RANKS,
    }


SENT = Exercise(
    id="15.3",
    title="bytes that travel",
    after="## 5. Several ranks: what travels",
    kind="value",
    spec="""
A layer of 4096 x 4096 at compression 1/64, 512 samples in all, 4 ranks, everything float32. How many bytes of $y$ does
a rank compute, if panels are split? How many does it send for $y = W x$, so that every other rank has all of $y$? And
if the samples are split instead: how many does it send for the sum of the gradients of the buckets, and how many if
the layer were dense? (An all-reduce sends $2 (P - 1) / P$ of the array. Forget biases.)
""",
    sizes="",
    lines=4,
    answer="prediction",
    stub="""
prediction = {
    "a rank's share of y": None,
    "panels split": None,
    "samples split": None,
    "samples split, dense layer": None,
}
""",
    solution="""
prediction = {
    "a rank's share of y": 4 * (4096 // 4) * 512,
    "panels split": 3 * 4 * (4096 // 4) * 512,
    "samples split": 2 * 3 / 4 * 4 * 4096**2 / 64,
    "samples split, dense layer": 2 * 3 / 4 * 4 * 4096**2,
}
""",
    hints=(
        "Of 4096 rows a rank computes a quarter, for all 512 samples. It sends them to three others.",
        "The gradient has as many numbers as there are buckets: 4096 x 4096 / 64.",
    ),
    test=ValueTest(
        _truth,
        {
            "a rank's share of y": (
                (4 * _SIDE * _BATCH, "Rows are split: a rank has a quarter of them."),
                (_SIDE // _RANKS * _BATCH, "That is numbers; a float32 has 4 bytes."),
            ),
            "panels split": (
                (4 * _SIDE // _RANKS * _BATCH, "To each of the *three* others."),
                (4 * 4 * _SIDE // _RANKS * _BATCH, "A rank sends nothing to itself."),
            ),
            "samples split": (
                (4 * _SIDE**2 // 64, "A ring sends 2 (P - 1) / P of the array, 1.5 of it here."),
                (2 * 3 * _SIDE**2, "That is the dense layer's: the buckets are 1/64 of it."),
            ),
            "samples split, dense layer": ((4 * _SIDE**2, "2 (P - 1) / P of the array is one and a half of it."),),
        },
    ),
)

# ---- 15.4


def _mean_gradient(gradients: list[np.ndarray], samples: list[int]) -> np.ndarray:
    total = np.zeros_like(gradients[0], dtype=np.float64)
    for g, n in zip(gradients, samples, strict=True):
        if n:
            total += g.astype(np.float64) * n / sum(samples)
    return total


def _shares(samples: tuple[int, ...]) -> tuple[list[np.ndarray], list[int]]:
    rng = np.random.default_rng(sum(samples))
    empty = np.full(6, np.nan)  # the mean over no samples
    return [rng.standard_normal(6) if n else empty for n in samples], list(samples)


AVERAGE = Exercise(
    id="15.4",
    title="an average that is wrong at the end of an epoch",
    after="## 5. Several ranks: what travels",
    kind="fix",
    spec="""
Samples are split over ranks. Each computes the gradient of the *mean* loss of its own samples, and the sum over ranks
is divided by their number. In all batches but an epoch's last that is right. Mend it: `gradients` holds an array for
each rank, `samples` how many it had. The mean over no samples is NaN, as NumPy says.
""",
    sizes="2, 3 and 4 ranks: equal shares, unequal ones, and a rank without samples",
    lines=2,
    answer="all_reduced",
    stub="""
def all_reduced(gradients, samples):
    return sum(gradients) / len(gradients)
""",
    solution="""
def all_reduced(gradients, samples):
    shares = [n / sum(samples) for n in samples]
    return sum(share * g for share, g in zip(shares, gradients) if share)
""",
    hints=(
        "The mean over the whole batch is the sum over all samples, divided by all of them. What part of it does a "
        "rank with `n` of them have?",
        "Weight each gradient by its share of the samples, and leave out who had none: 0 times NaN is NaN.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"samples {', '.join(map(str, samples))}", _shares(samples))
            for samples in ((4, 4), (3, 4), (2, 2, 1), (1, 0), (5, 0, 5, 6))
        ],
        oracle=_mean_gradient,
        names=("gradient",),
        bound=relative(1e-6),
        mistakes=(
            (
                "each rank counts by its share of the samples, not as much as any other",
                lambda g, n: sum(a for a, k in zip(g, n, strict=True) if k) / sum(k > 0 for k in n),
            ),
            ("that is the sum over samples; the loss is their mean", lambda g, n: _mean_gradient(g, n) * sum(n)),
        ),
    ),
)

EXERCISES = (WINDOWS, LOOP, SENT, AVERAGE)
