"""Exercises of notebook 02: a hash in NumPy, a candidate from its high word, a bad low bit. Imports hashing."""

from __future__ import annotations

import numpy as np

from hashedmm.exercises.base import Case, Exercise, FunctionTest
from hashedmm.hashing import fmix32, hash_fmix32, row_key

_WORDS = np.array([0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x9E3779B9], np.uint32)


def _words(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)


# ---- 02.1


def _wide(h: np.ndarray) -> np.ndarray:
    """fmix32 in 64 bits, where nothing is cut off."""
    h = h.astype(np.uint64)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ (h >> np.uint64(shift))) * np.uint64(factor)
    return h


FMIX32 = Exercise(
    id="02.1",
    title="fmix32 in NumPy",
    after="## 2. fmix32, step by step",
    kind="function",
    spec="""
Write `my_fmix32(h)` for an array of `uint32`, of any shape. It returns the five steps of section 2 as a new array
of `uint32`, and leaves `h` as it is. All bits count.
""",
    sizes="(7,), (5, 3) and (1000,) words, `0`, `2**31` and `2**32 - 1` among them",
    lines=4,
    answer="my_fmix32",
    stub="""
def my_fmix32(h):
    h = h ^ (h >> np.uint32(16))
    ...
""",
    solution="""
def my_fmix32(h):
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))
""",
    hints=(
        "The steps are in the dict `STEPS`: two multiplications, and *exclusive or* with a copy shifted by "
        "16, 13 and 16.",
        "A product of two `uint32` wraps by itself: that is the `& 0xFFFFFFFF` of the Python version. Write "
        "constants as "
        "`np.uint32(...)`, so that nothing becomes 64 bits wide.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case("special words", (_WORDS.copy(),)),
            Case("(5, 3) random words", (_words(1, 5, 3),)),
            Case("(1000,) random words", (_words(2, 1000),)),
        ],
        oracle=fmix32,
        names=("h",),
        dtype=True,
        mistakes=(
            ("the last step, h ^= h >> 16, is missing", lambda h: _first_steps(h, 4)),
            ("the second multiplication and what follows is missing", lambda h: _first_steps(h, 3)),
            ("the middle shift is by 13, not 16", lambda h: _first_steps(h, 5, middle=16)),
            ("the products were kept in 64 bits; a product of two uint32 is cut to 32", _wide),
        ),
    ),
)


def _first_steps(h: np.ndarray, count: int, middle: int = 13) -> np.ndarray:
    steps = (
        lambda h: h ^ (h >> np.uint32(16)),
        lambda h: h * np.uint32(0x85EBCA6B),
        lambda h: h ^ (h >> np.uint32(middle)),
        lambda h: h * np.uint32(0xC2B2AE35),
        lambda h: h ^ (h >> np.uint32(16)),
    )
    for step in steps[:count]:
        h = step(h)
    return h


# ---- 02.2


def _broken(i: np.ndarray, j: np.ndarray, seed: int) -> np.ndarray:
    return row_key(i, seed) ^ (j.astype(np.uint32) * np.uint32(0x9E3779B1))


def _places(rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    i, j = np.arange(rows, dtype=np.uint32)[:, None], np.arange(cols, dtype=np.uint32)[None, :]
    return i, j


LOW_BIT = Exercise(
    id="02.2",
    title="a hash whose sign makes stripes",
    after="## 3. Broken: a bad low bit",
    kind="fix",
    spec="""
A colleague's hash spreads the loads well, but the signs of every row alternate: `+ - + - ...`. Mend it, so that it
is the kit's own default, bit for bit: `hash_fmix32(i, j, seed)`. Do it without calling `hash_fmix32`. `i` has the
shape (rows, 1), `j` the shape (1, cols), so that the words have the shape (rows, cols).
""",
    sizes="5 x 7, 48 x 33 and 1 x 300 blocks, three seeds",
    lines=1,
    answer="my_hash",
    stub="""
from hashedmm.hashing import row_key


def my_hash(i, j, seed):
    \"\"\"Words of the blocks (i, j), all arrays of uint32.\"\"\"
    return row_key(i, seed) ^ (j * np.uint32(0x9E3779B1))
""",
    solution="""
from hashedmm.hashing import fmix32, row_key


def my_hash(i, j, seed):
    \"\"\"Words of the blocks (i, j), all arrays of uint32.\"\"\"
    return fmix32(row_key(i, seed) ^ (j * np.uint32(0x9E3779B1)))
""",
    hints=(
        "Bit 0 of `j * odd` is bit 0 of `j`. What has to happen to the word before its lowest bit may be used?",
        "Compare with the source of `hash_fmix32` in section 1: there is one more call.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{r} x {c} blocks, seed {s}", (*_places(r, c), s))
            for r, c, s in ((5, 7, 42), (48, 33, 0), (1, 300, 9))
        ],
        oracle=hash_fmix32,
        names=("h",),
        mistakes=(
            ("this is still the hash with the low bit of j for a sign", _broken),
            ("rows and columns are swapped", lambda i, j, s: hash_fmix32(j, i, s)),
            (
                "the row key alone was mixed once more: the low bit of j still goes straight into the sign",
                lambda i, j, s: fmix32(row_key(i, s)) ^ (j * np.uint32(0x9E3779B1)),
            ),
            (
                "the column alone was mixed: mix the word that row and column make together",
                lambda i, j, s: row_key(i, s) ^ fmix32(j * np.uint32(0x9E3779B1)),
            ),
        ),
    ),
)

# ---- 02.3


def _candidate(h: np.ndarray, T: int) -> np.ndarray:
    return (h.astype(np.uint64) * np.uint64(T) >> np.uint64(32)).astype(np.int64)


CANDIDATE = Exercise(
    id="02.3",
    title="a candidate from the high word",
    after="## 6. From a word to a candidate: multiply, do not divide",
    kind="function",
    spec="""
Write `my_candidate(h, T)`: for an array `h` of `uint32` and a Python integer `T`, the candidates $\\lfloor h\\,T /
2^{32} \\rfloor$, exactly, as an array of integers of the same shape. `T` may be as large as $2^{31}$.
""",
    sizes="T = 1, 2, 10, 98,000 and 2^31",
    lines=1,
    answer="my_candidate",
    stub="""
def my_candidate(h, T): ...
""",
    solution="""
def my_candidate(h, T):
    return h.astype(np.uint64) * np.uint64(T) >> np.uint64(32)
""",
    hints=(
        "How many bits has the product of a 32-bit word and `T`? What does NumPy do with a product of `uint32`?",
        "Make `h` 64 bits wide *before* you multiply. The shift by 32 then takes the high word.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"T = {t:,}", (np.concatenate([_WORDS, _words(t % 97, 500)]).reshape(39, 13), t))
            for t in (1, 2, 10, 98_000, 2**31)
        ],
        oracle=_candidate,
        names=("t",),
        mistakes=(
            ("this is the remainder, h % T: it reads the low bits", lambda h, t: h % np.uint64(t)),
            (
                "the product was cut to 32 bits: its high word is lost",
                lambda h, t: (h * np.uint32(t)) >> np.uint32(31) if t == 1 else h * np.uint32(t % 2**32),
            ),
            ("the product was cut to 32 bits before the shift", lambda h, t: np.zeros(h.shape, np.int64)),
            (
                "this was rounded in float32, which has 24 bits",
                lambda h, t: (h.astype(np.float32) * np.float32(t) / np.float32(2**32)).astype(np.int64),
            ),
        ),
    ),
)

# ---- 02.4

REMAINDER = Exercise(
    id="02.4",
    title="the bias of a remainder",
    after="## 6. From a word to a candidate: multiply, do not divide",
    kind="function",
    spec="""
All $2^\\text{bits}$ words are equally likely. `t = h % T` gives some candidates one word more than others. Write
`remainder_bias(bits, T)`. It returns a tuple of three whole numbers: how many words the *most* favoured candidate
gets, how many the *least* favoured one gets, and their difference. `bits` goes up to 32, so do not list the words.
""",
    sizes="8 bits and T = 96, up to 32 bits and T = 3 x 10^9",
    lines=2,
    answer="remainder_bias",
    stub="""
def remainder_bias(bits, T): ...
""",
    solution="""
def remainder_bias(bits, T):
    most, least = -(-(2**bits) // T), 2**bits // T
    return most, least, most - least
""",
    hints=(
        "With 8 bits and `T = 96` the picture of section 6 shows 3, 2 and so a difference of 1. And with `T = 64`?",
        "One is the quotient rounded down, the other rounded up: `-(-a // b)` rounds up.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{b} bits, T = {t:,}", (b, t))
            for b, t in ((8, 96), (8, 64), (3, 5), (16, 98), (32, 98_000), (32, 3_000_000_000))
        ],
        oracle=lambda b, t: (-(-(2**b) // t), 2**b // t, int(2**b % t > 0)),
        names=("most", "least", "most - least"),
        mistakes=(
            (
                "where T divides the number of words, no candidate gets one more",
                lambda b, t: (2**b // t + 1, 2**b // t, 1),
            ),
        ),
    ),
)

EXERCISES = (FMIX32, LOW_BIT, CANDIDATE, REMAINDER)
