"""Exercises of notebook 14: what pruning stores, what a gap is worth, the frontier. Imports base and baselines."""

from __future__ import annotations

import math

import numpy as np

from hashedmm.baselines import most_kept
from hashedmm.exercises.base import Case, Exercise, FunctionTest, relative

# ---- 14.1


def _listed(size: int, budget: int) -> int:
    """The most weights with a list of places."""
    return min(size, 8 * budget // (32 + max(1, math.ceil(math.log2(size)))))


def _mapped(size: int, budget: int) -> int:
    """The most weights with a bit for each of all."""
    return min(size, (budget - -(-size // 8)) // 4)


KEPT = Exercise(
    id="14.1",
    title="how many weights a pruned layer may keep",
    after="## 1. The question, and a fair rule",
    kind="function",
    spec="""
A pruned layer stores the float32 values of the weights that are left, *and which they are*. There are two ways to say
that: a map of one bit for each of the `size` weights, in whole bytes; or for each kept weight its place, a number of
$\\lceil \\log_2 \\mathrm{size} \\rceil$ bits (at least 1), packed, the whole list again in whole bytes.

Write `kept(size, budget)`: the most weights whose values and places fit into `budget` bytes by the better of the two
ways, and never more than `size`.
""",
    sizes="the first layer of section 1 at 1/8 and 1/64, and five others",
    lines=4,
    answer="kept",
    stub="""
def kept(size, budget):
    mapped = ...
    listed = ...
    return min(size, max(mapped, listed))
""",
    solution="""
def kept(size, budget):
    mapped = (budget - -(-size // 8)) // 4
    bits = max(1, (size - 1).bit_length())
    listed = 8 * budget // (32 + bits)
    return min(size, max(mapped, listed))
""",
    hints=(
        "With a map: what is left of the budget after `size` bits, rounded up to bytes, is spent on values of 4 bytes. "
        "Rounding up without floats: `-(-size // 8)`.",
        "With a list each weight costs 32 bits and the bits of its place. `(size - 1).bit_length()` is the logarithm, "
        "rounded up.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{size:,} weights, {budget:,} bytes", (size, budget))
            for size, budget in (
                (784_000, 392_000), (784_000, 49_000), (10_000, 5_000), (785, 500), (1024, 42), (1025, 4200), (7, 100),
            )
        ],
        oracle=most_kept,
        names=("kept",),
        mistakes=(
            ("the places have to be stored, too", lambda size, budget: min(size, budget // 4)),
            ("a map is not the better way everywhere", _mapped),
            ("a list is not the better way everywhere", _listed),
            (
                "packed places need no whole bytes each",
                lambda size, budget: min(
                    size,
                    max(_mapped(size, budget), budget // (4 + -(-max(1, math.ceil(math.log2(size))) // 8))),
                ),
            ),
            (
                "a map of `size` bits takes whole bytes: round up",
                lambda size, budget: min(size, max((budget - size // 8) // 4, _listed(size, budget))),
            ),
            ("there are no more weights than `size`", lambda size, budget: max(
                (budget - -(-size // 8)) // 4, 8 * budget // (32 + max(1, math.ceil(math.log2(size)))),
            )),
        ),
    ),
)  # fmt: skip

# ---- 14.2


def _gap(a: np.ndarray, b: np.ndarray, ddof: int = 1, root: bool = True, share: bool = True) -> tuple[float, float]:
    spread = a.var(ddof=ddof) / (len(a) if share else 1) + b.var(ddof=ddof) / (len(b) if share else 1)
    return float(b.mean() - a.mean()), float(np.sqrt(spread) if root else spread)


def _errors(seed: int, n: int, mean: float, std: float) -> np.ndarray:
    return np.round(mean + std * np.random.default_rng(seed).standard_normal(n), 2)


GAP = Exercise(
    id="14.2",
    title="is the difference real?",
    after="## 4. MNIST: error against storage",
    kind="function",
    spec="""
`a` and `b` are arrays of the test errors of two methods, one number a seed. Write `gap(a, b)`: a tuple of

1. the mean of `b` minus the mean of `a`;
2. its standard error $\\sqrt{s_a^2 / n_a + s_b^2 / n_b}$, where $s$ is the standard deviation *of a sample*: the
   squares are divided by $n - 1$.

A gap of less than about two standard errors is what chance alone gives now and then.
""",
    sizes="5 against 5 seeds, 3 against 5, 2 against 9",
    lines=4,
    answer="gap",
    stub="""
def gap(a, b): ...
""",
    solution="""
def gap(a, b):
    difference = b.mean() - a.mean()
    variance = a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)
    return difference, np.sqrt(variance)
""",
    hints=(
        "`x.var(ddof=1)` divides by n - 1; without `ddof` NumPy divides by n.",
        "Variances of means add: each is the variance of one seed over the number of seeds. The root comes last.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case("5 against 5 seeds", (_errors(1, 5, 2.5, 0.2), _errors(2, 5, 2.75, 0.14))),
            Case("3 against 5 seeds", (_errors(3, 3, 1.6, 0.05), _errors(4, 5, 1.5, 0.1))),
            Case("2 against 9 seeds", (_errors(5, 2, 35.0, 18.0), _errors(6, 9, 23.0, 0.2))),
        ],
        oracle=_gap,
        names=("difference", "standard error"),
        bound=relative(1e-9),
        mistakes=(
            ("divide the squares by n - 1, `ddof=1`", lambda a, b: _gap(a, b, ddof=0)),
            ("divide each variance by its number of seeds", lambda a, b: _gap(a, b, share=False)),
            ("take the root of the sum", lambda a, b: _gap(a, b, root=False)),
            (
                "add the squares of the deviations",
                lambda a, b: (_gap(a, b)[0], float(np.sqrt(a.std(ddof=1) / len(a) + b.std(ddof=1) / len(b)))),
            ),
            ("the difference is b minus a", lambda a, b: (-_gap(a, b)[0], _gap(a, b)[1])),
            (
                "add variances, not standard deviations",
                lambda a, b: (_gap(a, b)[0], float(a.std(ddof=1) / len(a) ** 0.5 + b.std(ddof=1) / len(b) ** 0.5)),
            ),
        ),
    ),
)

# ---- 14.3


def _frontier(speed: np.ndarray, error: np.ndarray, strict: bool = False) -> np.ndarray:
    """Whether no other point is at least as fast and at least as accurate, and better in one."""
    faster, better = speed[:, None] > speed, error[:, None] < error  # (other, point)
    if strict:
        return np.asarray(~(faster & better).any(axis=0))
    as_good = (speed[:, None] >= speed) & (error[:, None] <= error)
    return np.asarray(~(as_good & (faster | better)).any(axis=0))


def _points(seed: int, n: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on a grid of ``steps``, so that some tie."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, steps, n) / 4, rng.integers(1, steps, n) / 8


FRONTIER = Exercise(
    id="14.3",
    title="the frontier",
    after="## 9. The frontier: accuracy against speed",
    kind="function",
    spec="""
`speed` and `error` are arrays: structure `k` is `speed[k]` times as fast as dense and has the error `error[k]`. It is
*dominated* if some other one is at least as fast and errs at most as much, and is strictly better in one of the two. Of
two equal structures neither dominates the other.

Write `on_frontier(speed, error)`: an array of bool, True where a structure is **not** dominated.
""",
    sizes="1, 2, 3, 5, 7 and 40 points, with ties",
    lines=5,
    answer="on_frontier",
    stub="""
def on_frontier(speed, error): ...
""",
    solution="""
def on_frontier(speed, error):
    as_fast, as_good = speed[:, None] >= speed, error[:, None] <= error
    faster, better = speed[:, None] > speed, error[:, None] < error
    dominates = as_fast & as_good & (faster | better)
    return ~dominates.any(axis=0)
""",
    hints=(
        "`speed[:, None] >= speed` is a square of bool: row k, column j says whether k is at least as fast as j.",
        "`dominates.any(axis=0)` asks of each column whether any row dominates it.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case("one point", (np.array([2.0]), np.array([1.5]))),
            Case("two equal points", (np.array([2.0, 2.0]), np.array([1.5, 1.5]))),
            Case("as fast, and worse", (np.array([2.0, 2.0, 1.0]), np.array([1.5, 1.75, 1.5]))),
            Case("5 points", _points(1, 5, 30)),
            Case("7 points, ties", _points(2, 7, 5)),
            Case("40 points, ties", _points(3, 40, 24)),
        ],
        oracle=_frontier,
        names=("on the frontier",),
        dtype=True,
        mistakes=(
            (
                "a structure that is as fast and errs more is dominated: one of the two need not be strict",
                lambda speed, error: _frontier(speed, error, strict=True),
            ),
            (
                "of two equal structures neither dominates the other",
                lambda speed, error: ((speed[:, None] >= speed) & (error[:, None] <= error)).sum(axis=0) == 1,
            ),
            ("this is the opposite: True where a structure is dominated", lambda s, e: ~_frontier(s, e)),
            ("a smaller error is better", lambda speed, error: _frontier(speed, -error)),
            ("a larger speed is better", lambda speed, error: _frontier(-speed, error)),
        ),
    ),
)

EXERCISES = (KEPT, GAP, FRONTIER)
