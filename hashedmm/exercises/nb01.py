"""Exercises of notebook 01: what a compressed layer stores, how many buckets are used. Imports base."""

from __future__ import annotations

import math
from collections.abc import Callable

from hashedmm.exercises.base import Case, Exercise, FunctionTest, relative

# ---- 01.1

USED = Exercise(
    id="01.1",
    title="how many buckets are used",
    after="## 5. The linear view: vec(W) = S w",
    kind="function",
    spec="""
`N` virtual weights each draw one of `K` buckets, all equally likely and independently. Write `used_share(N, K)`:
the *expected* share of buckets that at least one weight uses. Section 5 has counted it for one pattern:
`0.4326 / 0.5`, which is 0.8652.

Give the exact formula, not its limit for large `K`: it is tried with few buckets, too.
""",
    sizes="K from 1 to a million",
    lines=1,
    answer="used_share",
    stub="""
def used_share(N, K): ...
""",
    solution="""
def used_share(N, K):
    return 1 - (1 - 1 / K) ** N
""",
    hints=(
        "Look at one bucket. With which probability does *one* weight miss it? With which do all `N` miss it?",
        "One weight misses it with probability $1 - 1/K$. The draws are independent, so all miss it with "
        "$(1 - 1/K)^N$.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"N = {n:,}, K = {k:,}", (n, k))
            for n, k in ((235_200, 117_600), (96, 12), (5, 1), (3, 7), (1, 4), (8_000_000, 1_000_000))
        ],
        oracle=lambda n, k: 1 - (1 - 1 / k) ** n,
        names=("share",),
        bound=relative(1e-9),
        mistakes=(
            ("this is the share that is *not* used", lambda n, k: (1 - 1 / k) ** n),
            ("this is the limit for large K", lambda n, k: 1 - math.exp(-n / k)),
            ("this is the mean load, capped: draws repeat", lambda n, k: min(1.0, n / k)),
        ),
    ),
)

# ---- 01.2


def _with_table(rows: int, cols: int, compression: float, bits: Callable[[int], int]) -> tuple[int, int, int]:
    """What `_stored_bytes` gives, the table made with another number of bits an entry."""
    dense, _, seed = _stored_bytes(rows, cols, compression)
    buckets = (seed - 4) // 4
    return dense, 4 * buckets + -(-rows * cols * bits(buckets) // 8), seed


def _stored_bytes(rows: int, cols: int, compression: float) -> tuple[int, int, int]:
    virtual = rows * cols
    buckets = max(1, round(virtual * compression))
    bits = math.ceil(math.log2(buckets)) + 1
    return 4 * virtual, 4 * buckets + -(-virtual * bits // 8), 4 * buckets + 4


BYTES = Exercise(
    id="01.2",
    title="bytes of a layer",
    after="## 10. Why a hash, and not a table of random indices?",
    kind="function",
    spec="""
Write `layer_bytes(rows, cols, compression)`. It returns three whole numbers of bytes, as a tuple:

1. the dense layer in float32;
2. the hashed layer with a stored, packed table: `K` buckets in float32, and for each virtual weight $\\lceil
   \\log_2 K \\rceil$ bits for the bucket and 1 for the sign. The table as a whole is rounded up to bytes;
3. the hashed layer with a 4-byte seed in place of the table.

`K` is rows times cols times compression, rounded to the nearest whole number (Python's `round`), and at least 1.
""",
    sizes="1000 x 784 at 1/8, 8192 x 8192 at 1/64, 3 x 5 at 1/4 and others",
    lines=5,
    answer="layer_bytes",
    stub="""
def layer_bytes(rows, cols, compression):
    \"\"\"Bytes of (dense, buckets and packed table, buckets and seed).\"\"\"
    ...
""",
    solution="""
def layer_bytes(rows, cols, compression):
    \"\"\"Bytes of (dense, buckets and packed table, buckets and seed).\"\"\"
    virtual = rows * cols
    K = max(1, round(virtual * compression))
    bits = int(np.ceil(np.log2(K))) + 1
    table = (virtual * bits + 7) // 8
    return 4 * virtual, 4 * K + table, 4 * K + 4
""",
    hints=(
        "The table of section 10 has all three, for two layers. Your function should give its numbers: 3,136,000, "
        "2,156,000 and 392,004 for 1000 x 784 at 1/8.",
        "Whole bytes from bits, rounded up: `(bits + 7) // 8`. Count the bits of the *whole* table first.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{r} x {c} at 1/{round(1 / k)}", (r, c, k))
            for r, c, k in (
                (1000, 784, 1 / 8),
                (8192, 8192, 1 / 64),
                (3, 5, 1 / 4),
                (7, 9, 1 / 5),
                (1, 3, 1 / 64),
                (10, 1000, 1 / 8),
            )
        ],
        oracle=_stored_bytes,
        names=("dense", "with a table", "with a seed"),
        mistakes=(
            ("the sign needs a bit, too", lambda r, c, k: _with_table(r, c, k, lambda K: math.ceil(math.log2(K)))),
            (
                "the table as a whole is rounded up to bytes, not each entry",
                lambda r, c, k: _with_table(r, c, k, lambda K: 8 * -(-(math.ceil(math.log2(K)) + 1) // 8)),
            ),
            (
                "the numbers of the buckets run from 0 to K - 1: where K is a power of two, log2 K bits hold them",
                lambda r, c, k: _with_table(r, c, k, lambda K: K.bit_length() + 1),
            ),
            (
                "the seed is 4 bytes, and stored",
                lambda r, c, k: (*_stored_bytes(r, c, k)[:2], _stored_bytes(r, c, k)[2] - 4),
            ),
        ),
    ),
)

EXERCISES = (USED, BYTES)
