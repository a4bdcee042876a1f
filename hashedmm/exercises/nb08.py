"""Exercises of notebook 08: floors, rates, a summary of times, a check that NaN passes. Imports base."""

from __future__ import annotations

import numpy as np

from hashedmm.exercises.base import Case, Exercise, FunctionTest, relative

# ---- 08.1


def _floor(operations: float, moved: float, ops_a_s: float, bytes_a_s: float) -> tuple[float, str]:
    by_bytes, by_operations = 1e3 * moved / bytes_a_s, 1e3 * operations / ops_a_s
    return max(by_bytes, by_operations), "bytes" if by_bytes >= by_operations else "operations"


FLOOR = Exercise(
    id="08.1",
    title="the floor",
    after="## 1. Two numbers before any clock",
    kind="function",
    spec="""
Write `floor_ms(operations, moved, ops_a_s, bytes_a_s)`: the least time in *milliseconds* that a program needs which
does so many operations and moves so many bytes, on a machine with these rates a second. Return a tuple: the time,
and what sets it, `"bytes"` or `"operations"`. (`"bytes"` if both are equal.)
""",
    sizes="products of 4096 x 4096 with 1 to 1024 columns, two machines",
    lines=3,
    answer="floor_ms",
    stub="""
def floor_ms(operations, moved, ops_a_s, bytes_a_s): ...
""",
    solution="""
def floor_ms(operations, moved, ops_a_s, bytes_a_s):
    by_bytes, by_operations = 1e3 * moved / bytes_a_s, 1e3 * operations / ops_a_s
    return max(by_bytes, by_operations), "bytes" if by_bytes >= by_operations else "operations"
""",
    hints=(
        "Two times. The bytes and the operations go on at once, so the longer one is the floor, not the sum.",
        "`moved / bytes_a_s` is in seconds.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{name}, n = {n}", (2.0 * 4096**2 * n, 4.0 * 4096**2 + 8.0 * 4096 * n, ops, rate))
            for name, ops, rate in (("a core", 70e9, 13e9), ("a GPU", 52e12, 3.03e12))
            for n in (1, 16, 1024)
        ],
        oracle=_floor,
        names=("time", "limit"),
        bound=lambda expected, *a: 0 if isinstance(expected, str) else 1e-9 * expected,
        mistakes=(
            (
                "this is in seconds; milliseconds are asked for",
                lambda *a: (_floor(*a)[0] / 1e3, _floor(*a)[1]),
            ),
            (
                "this is the sum of both times; they go on at once",
                lambda o, m, ops, rate: (1e3 * (m / rate + o / ops), _floor(o, m, ops, rate)[1]),
            ),
            (
                "this is the smaller of the two times: a program cannot be done before both are",
                lambda o, m, ops, rate: (1e3 * min(m / rate, o / ops), _floor(o, m, ops, rate)[1]),
            ),
        ),
    ),
)

# ---- 08.2


def _rate(rows: int, cols: int, n: int, compression: float, itemsize: int, ms: float) -> float:
    return itemsize * (round(rows * cols * compression) + (rows + cols) * n) / (ms * 1e6)


RATE = Exercise(
    id="08.2",
    title="bytes a second",
    after="### The ladder under an H100's roof",
    kind="function",
    spec="""
A hashed product took `ms` milliseconds. Write `gb_a_second(rows, cols, n, compression, itemsize, ms)`: the rate in
GB/s (a GB is $10^9$ bytes) at which it must at least have moved its *compulsory* bytes: buckets, `x` and `y`, each
once. There are rows times cols times compression buckets, rounded to a whole number.
""",
    sizes="five layers, float16 and float32, a tiny one and one of compression 1 among them",
    lines=3,
    answer="gb_a_second",
    stub="""
def gb_a_second(rows, cols, n, compression, itemsize, ms): ...
""",
    solution="""
def gb_a_second(rows, cols, n, compression, itemsize, ms):
    numbers = round(rows * cols * compression) + cols * n + rows * n
    return itemsize * numbers / (ms / 1e3) / 1e9
""",
    hints=(
        "`x` has cols x n numbers and `y` has rows x n. $W$ is never stored, so it is not moved.",
        "Bytes a millisecond, divided by $10^6$, are GB a second.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{r} x {c}, n = {n}, {'float16' if b == 2 else 'float32'}", (r, c, n, k, b, ms))
            for r, c, n, k, b, ms in (
                (4096, 4096, 1, 1 / 64, 4, 0.071),
                (1000, 784, 100, 1 / 8, 4, 0.2),
                (8192, 4096, 512, 1 / 64, 2, 0.9),
                (300, 500, 7, 1.0, 4, 1.5),
                (5, 7, 1, 1 / 8, 4, 0.001),
            )
        ],
        oracle=_rate,
        names=("rate",),
        bound=relative(1e-9),
        mistakes=(
            (
                "the dense matrix is not moved: only the buckets are",
                lambda r, c, n, k, b, ms: b * (r * c + (r + c) * n) / (ms * 1e6),
            ),
            ("`x` and `y` are moved, too", lambda r, c, n, k, b, ms: b * round(r * c * k) / (ms * 1e6)),
            ("`x` is moved, too", lambda r, c, n, k, b, ms: b * (round(r * c * k) + r * n) / (ms * 1e6)),
            ("`y` is moved, too", lambda r, c, n, k, b, ms: b * (round(r * c * k) + c * n) / (ms * 1e6)),
            (
                "the number of buckets is a whole number: round it",
                lambda r, c, n, k, b, ms: b * (r * c * k + (r + c) * n) / (ms * 1e6),
            ),
            ("this is in bytes a millisecond; GB a second are asked for", lambda *a: _rate(*a) * 1e6),
            ("this is in bytes a second; GB a second are asked for", lambda *a: _rate(*a) * 1e9),
            ("a number is `itemsize` bytes", lambda r, c, n, k, b, ms: _rate(r, c, n, k, 4, ms)),
            ("1 GB is 10^9 bytes here, not 2^30", lambda *a: _rate(*a) * 1e9 / 2**30),
        ),
    ),
)

# ---- 08.3


def _summary(times: np.ndarray) -> tuple[float, float, float]:
    kept = times[1:]
    return float(np.median(kept)), float(np.percentile(kept, 20)), float(np.percentile(kept, 80))


def _time_cases() -> list[Case]:
    rng = np.random.default_rng(3)
    cases = []
    for n in (4, 7, 30, 101):
        times = 1 + 0.1 * rng.standard_exponential(n)
        times[0] = 40.0  # it compiled
        times[n // 2] = 12.0  # something else ran
        cases.append(Case(f"{n} calls", (times,)))
    times = 1 + 0.1 * rng.standard_exponential(9)
    times[0] = 0.2  # a first call may be short, too
    return [*cases, Case("9 calls, the first one short", (times,))]


SUMMARY = Exercise(
    id="08.3",
    title="from times to three numbers",
    after="## 3. Lie 2: one number",
    kind="function",
    spec="""
`times` has the milliseconds of calls, in the order in which they were made. Write `summary(times)`: the tuple
(median, 20th percentile, 80th percentile). The very first call does not count. Leave `times` as it is.
""",
    sizes="4 to 101 calls, with a slow first call and a slow one in between",
    lines=2,
    answer="summary",
    stub="""
def summary(times): ...
""",
    solution="""
def summary(times):
    kept = times[1:]
    return np.median(kept), np.percentile(kept, 20), np.percentile(kept, 80)
""",
    hints=(
        "The *first call*, not the largest time: drop it before anything is sorted.",
        "`np.median` and `np.percentile` sort a copy. `times.sort()` would sort the caller's array.",
    ),
    test=FunctionTest(
        cases=_time_cases,
        oracle=_summary,
        names=("median", "20th percentile", "80th percentile"),
        bound=relative(1e-12),
        mistakes=(
            ("the first call counts here", lambda t: _summary(np.concatenate([t[:1], t]))),
            (
                "this is the mean: one slow call moves it",
                lambda t: (float(t[1:].mean()), *_summary(t)[1:]),
            ),
            ("this is the minimum: it hides the spread", lambda t: (float(t[1:].min()), *_summary(t)[1:])),
            ("the largest time was left out, not the first", lambda t: _summary(np.sort(t)[::-1])),
            ("the order is median, 20th, 80th percentile", lambda t: tuple(_summary(t)[k] for k in (1, 0, 2))),
        ),
    ),
)

# ---- 08.4


def _agreements() -> list[Case]:
    rng = np.random.default_rng(4)
    y = rng.standard_normal((4, 3))
    y[0, 2] = 0  # a check that takes NaN for 0 has to fail, too
    bound = np.full((4, 3), 1e-6)

    def with_one(value: float, at: tuple[int, int] = (2, 1)) -> np.ndarray:
        out = y.copy()
        out[at] = value
        return out

    return [
        Case("equal", (y.copy(), y, bound)),
        Case("equal, and a bound of 0", (y.copy(), y, 0 * bound)),
        Case("within the bound", (y + 5e-7, y, bound)),
        Case("one too large", (with_one(y[2, 1] + 2e-6), y, bound)),
        Case("one too small", (with_one(y[2, 1] - 2e-6), y, bound)),
        Case("one NaN", (with_one(np.nan, (0, 2)), y, bound)),
        Case("one infinite", (with_one(np.inf), y, bound)),
        Case("all NaN", (np.full((4, 3), np.nan), y, bound)),
    ]


AGREES = Exercise(
    id="08.4",
    title="a check that waves NaN through",
    after="## 4. Lie 3: fast and wrong",
    kind="fix",
    spec="""
`agrees(got, expected, bound)` shall be true if every element of `got` is at most `bound` (an array, too) away from
what is expected, and false otherwise. It calls a kernel right that has written nothing: all NaN. Mend it.
""",
    sizes="4 x 3, equal to the last bit, and with elements too large, too small, NaN and infinite",
    lines=1,
    answer="agrees",
    stub="""
def agrees(got, expected, bound):
    too_far = np.abs(got - expected) > bound
    return not too_far.any()
""",
    solution="""
def agrees(got, expected, bound):
    near = np.abs(got - expected) <= bound
    return bool(near.all())
""",
    hints=(
        "What is `np.nan > 1`? And `np.nan <= 1`?",
        "Every comparison with NaN is false. So ask for what must be *true* of all, not for what must be false of any.",
    ),
    test=FunctionTest(
        cases=_agreements,
        oracle=lambda got, expected, bound: bool((np.abs(got - expected) <= bound).all()),
        names=("agrees",),
    ),
)

EXERCISES = (FLOOR, RATE, SUMMARY, AGREES)
