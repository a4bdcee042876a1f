"""Exercises of notebook 09: break-even, and which way is faster. Imports base."""

from __future__ import annotations

import math

from hashedmm.exercises.base import Case, Exercise, FunctionTest, ValueTest

# ---- 09.1


def _break_even(M: float, P: float, D: float) -> float:
    return math.floor(M / (D - P)) + 1 if D > P else math.inf


BREAK_EVEN = Exercise(
    id="09.1",
    title="from which use on it pays",
    after="## 1. Two old answers, in NumPy",
    kind="function",
    spec="""
Write `first_use(M, P, D)`. Materialising takes `M` ms, a product with the stored matrix `P` ms, a direct product `D`
ms. Return the *smallest whole number of products* from which on materialising once is strictly faster in all, or
`np.inf` if it never is.
""",
    sizes="six triples of times, equal ones and `D < P` among them",
    lines=3,
    answer="first_use",
    stub="""
def first_use(M, P, D): ...
""",
    solution="""
def first_use(M, P, D):
    if D <= P:
        return np.inf
    return np.floor(M / (D - P)) + 1
""",
    hints=(
        "After `k` products the totals are `M + k * P` and `k * D`. For which `k` is the first smaller?",
        "`k` must be *larger* than $M / (D - P)$: the next whole number after it, also where the quotient is "
        "whole. And if `D` is not larger than `P`, no `k` will do.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"M = {m:g}, P = {p:g}, D = {d:g}", (m, p, d))
            for m, p, d in (
                (25.1, 0.77, 13.16),
                (1.0, 1.0, 1.5),
                (0.5, 1.0, 4.0),
                (0.74, 0.77, 0.11),
                (3.0, 2.0, 2.0),
                (6.0, 1.0, 3.0),
            )
        ],
        oracle=_break_even,
        names=("first use",),
        mistakes=(
            (
                "at a whole quotient both ways take equally long: materialising is faster from the next use on",
                lambda m, p, d: math.ceil(m / (d - p)) if d > p else math.inf,
            ),
            (
                "if a direct product is not slower than one with the stored matrix, it never pays",
                lambda m, p, d: math.floor(m / (d - p)) + 1 if d != p else math.inf,
            ),
            ("uses are whole numbers", lambda m, p, d: m / (d - p) if d > p else math.inf),
        ),
    ),
)

# ---- 09.2


def _faster(M: float, P: float, D: float, k: int) -> str:
    return "direct" if k * D < M + k * P else "materialise"


WAYS = Exercise(
    id="09.2",
    title="direct or materialise",
    after="## 1. Two old answers, in NumPy",
    kind="value",
    spec="""
Times in ms, all made up. Which way is faster in all, `"direct"` or `"materialise"`? Decide without a calculator:
which of the three cases of the table is it?
""",
    sizes="",
    lines=4,
    answer="prediction",
    stub="""
prediction = {
    "M = 8, P = 1, D = 12, one product": None,
    "M = 8, P = 1, D = 5, one product": None,
    "M = 8, P = 1, D = 5, ten products": None,
    "M = 8, P = 1, D = 0.5, a million products": None,
}
""",
    solution="""
prediction = {
    "M = 8, P = 1, D = 12, one product": "materialise",  # D > M + P
    "M = 8, P = 1, D = 5, one product": "direct",  # 5 < 9
    "M = 8, P = 1, D = 5, ten products": "materialise",  # 18 < 50
    "M = 8, P = 1, D = 0.5, a million products": "direct",  # D < P
}
""",
    hints=("One product costs `D`, or `M + P`. Each further one costs `D`, or `P`.",),
    test=ValueTest(
        lambda: {
            f"M = 8, P = 1, D = {d:g}, {text}": _faster(8, 1, d, k)
            for d, k, text in (
                (12, 1, "one product"),
                (5, 1, "one product"),
                (5, 10, "ten products"),
                (0.5, 10**6, "a million products"),
            )
        },
        {
            "M = 8, P = 1, D = 0.5, a million products": (
                ("materialise", "A product with the stored matrix alone takes longer than the direct one."),
            ),
            "M = 8, P = 1, D = 12, one product": (("direct", "Making the matrix and one product take 9 ms."),),
            "M = 8, P = 1, D = 5, one product": (("materialise", "Making the matrix alone takes 8 ms."),),
            "M = 8, P = 1, D = 5, ten products": (("direct", "After the first, a product takes 1 ms, not 5."),),
        },
    ),
)

EXERCISES = (BREAK_EVEN, WAYS)
