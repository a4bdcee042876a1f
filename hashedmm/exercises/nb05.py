"""Exercises of notebook 05: virtual weights in a kernel, a product, two bugs, counts. Imports hashing, reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from hashedmm import reference
from hashedmm.exercises.base import UNIT, Exercise, KernelTest, Launch, ValueTest, nan, normal
from hashedmm.hashing import HashSpec, hash_fmix32

HASH = """
__device__ unsigned fmix32(unsigned h) {
    h ^= h >> 16;
    h *= 0x85EBCA6Bu;
    h ^= h >> 13;
    h *= 0xC2B2AE35u;
    return h ^ (h >> 16);
}

__device__ unsigned hash_ij(unsigned i, unsigned j, unsigned seed) {
    const unsigned row_key = fmix32(seed ^ fmix32(i + 0x9E3779B9u));
    return fmix32(row_key ^ (j * 0x9E3779B1u));
}
"""

SIZES = ((7, 17, 3), (33, 7, 5), (5, 130, 6), (1, 1, 1), (64, 16, 2))


def wrong_matrices(w: np.ndarray, spec: HashSpec) -> dict[str, np.ndarray]:
    """What W becomes by the mistakes of section 3, by the sentence that names each."""
    i, j = np.arange(spec.rows)[:, None], np.arange(spec.cols)[None, :]
    w = w.astype(np.float64)
    h, swapped = (hash_fmix32(a, b, spec.seed).astype(np.uint64) for a, b in ((i, j), (j, i)))

    def matrix(h: np.ndarray, bucket: np.ndarray, signs: bool = True) -> np.ndarray:
        return np.where(h & np.uint64(1) if signs else False, -1.0, 1.0) * w[bucket.astype(np.int64)]

    T, half = np.uint64(spec.n_buckets), np.uint64(32)
    in_float = h.astype(np.float32) * np.float32(2.0**-32) * np.float32(spec.n_buckets)
    return {
        "the sign is missing: -1 where the lowest bit of h is 1": matrix(h, h * T >> half, signs=False),
        "the bucket is `h % T`; the spec says the high word, `h * T >> 32`": matrix(h, h % T),
        "i and j are swapped in the hash": matrix(swapped, swapped * T >> half),
        "the bucket is `h % T`, and the sign is missing": matrix(h, h % T, signs=False),
        "the sign is the wrong way round": -matrix(h, h * T >> half),
        "only bucket 0 is used: the product h * T was cut to 32 bits": matrix(h, 0 * h),
        "the bucket was computed in float: its 24 bits do not hold the 32 of h": matrix(
            h, np.minimum(in_float.astype(np.int64), spec.n_buckets - 1)
        ),
    }


def product_launches(
    argument: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    block: int = 64,
    misread: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (),
) -> Iterator[Launch]:
    """Launches of ``(w, x, y, rows, cols, n, T, seed)`` for y = W x, elementwise; ``argument`` makes x's array.

    ``misread`` has (message, x -> what x is taken for) of known mistakes.
    """
    rng = np.random.default_rng(5)
    for rows, cols, n in SIZES:
        spec = HashSpec.elementwise((rows, cols), 1 / 4, seed=rows + 1)
        w, x = normal(rng, spec.n_buckets), normal(rng, cols, n)
        W = reference.materialise(w.astype(np.float64), spec)
        bound = (cols + 2) * UNIT * (abs(W) @ abs(x))
        numbers = (np.int32(rows), np.int32(cols), np.int32(n), np.uint32(spec.n_buckets), np.uint32(spec.seed))
        wrong = tuple((message, {2: V @ x}) for message, V in wrong_matrices(w, spec).items())
        wrong += tuple((message, {2: W @ taken_for(x)}) for message, taken_for in misread)
        yield Launch(
            f"{rows} x {cols}, n = {n}", (-(-rows * n // block),), (block,), (w, argument(x), nan(rows, n), *numbers),
            {2: W @ x}, {2: bound}, mistakes=wrong,
        )  # fmt: skip


# ---- 05.1


def _diagonal_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(6)
    # The last seed: one of the 130 buckets comes out wrong where it is computed in float32.
    for rows, cols, seed in ((5, 9, 5), (33, 7, 33), (64, 64, 64), (1, 1, 1), (130, 131, 65)):
        spec = HashSpec.elementwise((rows, cols), 1 / 4, seed=seed)
        w = normal(rng, spec.n_buckets)
        n = min(rows, cols)
        W = reference.materialise(w, spec)
        wrong = tuple((message, {1: np.diag(V)}) for message, V in wrong_matrices(w, spec).items())
        yield Launch(
            f"{rows} x {cols}",
            (-(-n // 64),),
            (64,),
            (w, nan(n), np.int32(n), np.uint32(spec.n_buckets), np.uint32(spec.seed)),
            {1: np.diag(W)},
            mistakes=wrong,
        )


DIAGONAL = Exercise(
    id="05.1",
    title="the diagonal of a virtual matrix",
    after="## 2. The kernel",
    kind="kernel",
    spec="""
`W` is elementwise with `T` buckets. Write its diagonal: `d[i] = W[i][i]` for `i` from 0 to `n - 1`, bucket and sign
included. The hash is there; the rest of the kernel is yours. No rounding is involved, so every number has to be
equal.
""",
    sizes="1 x 1, 5 x 9, 33 x 7, 64 x 64 and 130 x 131; blocks of 64 threads",
    lines=5,
    answer="DIAGONAL",
    stub=f'''
DIAGONAL = r"""{HASH}
extern "C" __global__ void diagonal(
    const float* w_k, float* d, const int n, const unsigned T, const unsigned seed) {{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    // TODO: guard; hash, bucket and sign of (i, i); write d[i]
}}
"""
''',
    solution=f'''
DIAGONAL = r"""{HASH}
extern "C" __global__ void diagonal(
    const float* w_k, float* d, const int n, const unsigned T, const unsigned seed) {{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const unsigned h = hash_ij(i, i, seed);
    const unsigned bucket = (unsigned)(((unsigned long long)h * T) >> 32);
    d[i] = h & 1 ? -w_k[bucket] : w_k[bucket];
}}
"""
''',
    hints=(
        "The four lines that you need are in the kernel of section 2, inside its loop and above it.",
        "The product `h * T` has 64 bits: convert `h` to `unsigned long long` *before* you multiply.",
    ),
    test=KernelTest("diagonal", _diagonal_launches),
)

# ---- 05.2

SAMPLES = Exercise(
    id="05.2",
    title="samples in rows",
    after="## 3. A check that means something",
    kind="kernel",
    spec="""
Data sets have a *row* for each sample: `x_nd` is (n, cols) in C order. Write the product $y = W x$ for it:
`y_mn[i][s]` is the sum over `j` of $W_{ij}$ times `x_nd[s][j]`. `y_mn` is (rows, n), as before. A thread has one
output; which one is your choice. `weight` gives $W_{ij}$.
""",
    sizes="1 x 1, 7 x 17, 33 x 7, 5 x 130 and 64 x 16, with 1 to 6 samples; blocks of 64 threads, rows x n "
    "threads rounded up",
    lines=8,
    answer="SAMPLES",
    stub=f'''
SAMPLES = r"""{HASH}
__device__ float weight(const float* w_k, int i, int j, unsigned T, unsigned seed) {{
    const unsigned h = hash_ij(i, j, seed);
    const unsigned bucket = (unsigned)(((unsigned long long)h * T) >> 32);
    return h & 1 ? -w_k[bucket] : w_k[bucket];
}}

extern "C" __global__ void samples(
    const float* w_k, const float* x_nd, float* y_mn,
    const int rows, const int cols, const int n, const unsigned T, const unsigned seed) {{
    // TODO: number of the thread, guard, output i and sample s, sum over j, write
}}
"""
''',
    solution=f'''
SAMPLES = r"""{HASH}
__device__ float weight(const float* w_k, int i, int j, unsigned T, unsigned seed) {{
    const unsigned h = hash_ij(i, j, seed);
    const unsigned bucket = (unsigned)(((unsigned long long)h * T) >> 32);
    return h & 1 ? -w_k[bucket] : w_k[bucket];
}}

extern "C" __global__ void samples(
    const float* w_k, const float* x_nd, float* y_mn,
    const int rows, const int cols, const int n, const unsigned T, const unsigned seed) {{
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= (long long)rows * n) return;
    const int i = t % rows, s = t / rows;
    float sum = 0.0f;
    for (int j = 0; j < cols; ++j) {{
        sum += weight(w_k, i, j, T, seed) * x_nd[(long long)s * cols + j];
    }}
    y_mn[(long long)i * n + s] = sum;
}}
"""
''',
    hints=(
        "Only one index differs from the kernel of section 2: where element `j` of sample `s` is.",
        "`x_nd` has rows of `cols` numbers, `y_mn` has rows of `n`.",
        "`t` counts outputs, so it stops at `rows * n`. With `i = t % rows` the sample is `s = t / rows`.",
    ),
    test=KernelTest(
        "samples",
        lambda: product_launches(
            lambda x: np.ascontiguousarray(x.T),
            misread=(
                (
                    "`x_nd` is read as if it were (cols, n): here the elements of a sample lie side by side",
                    lambda x: np.ascontiguousarray(x.T).reshape(x.shape),
                ),
            ),
        ),
    ),
)

# ---- 05.3

_TWO_BUGS = '''
MENDED = r"""{hash}
extern "C" __global__ void mended(
    const float* w_k, const float* x_dn, float* y_mn,
    const int rows, const int cols, const int n, const unsigned T, const unsigned seed) {{
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t {guard} (long long)rows * n) return;
    const int i = t % rows;
    const int s = t / rows;

    float sum = 0.0f;
    for (int j = 0; j < cols; ++j) {{
        const unsigned h = hash_ij(i, j, seed);
        const unsigned bucket = {bucket};
        const float sign = h & 1 ? -1.0f : 1.0f;
        sum += sign * w_k[bucket] * x_dn[(long long)j * n + s];
    }}
    y_mn[(long long)i * n + s] = sum;
}}
"""
'''

MENDED = Exercise(
    id="05.3",
    title="two bugs in a product",
    after="### Checks that pass wrong kernels",
    kind="fix",
    spec="""
The product of section 2, with two mistakes. One changes every number. The other shows only at the edge, and the
numbers are right. Find both.
""",
    sizes="as in 05.2",
    lines=2,
    answer="MENDED",
    stub=_TWO_BUGS.format(hash=HASH, guard=">", bucket="(unsigned)((unsigned long long)(h * T) >> 32)"),
    solution=_TWO_BUGS.format(hash=HASH, guard=">=", bucket="(unsigned)(((unsigned long long)h * T) >> 32)"),
    hints=(
        "In C, a product of two `unsigned` has 32 bits. What is left of it after a shift by 32?",
        "Which thread is the first without an output? What does it do here?",
    ),
    test=KernelTest("mended", product_launches),
)

# ---- 05.4

COUNTS = Exercise(
    id="05.4",
    title="count before you run",
    after="## 6. Count the work",
    kind="value",
    spec="""
The kernel of section 2, for 48 outputs, 20 inputs and 3 samples. How many numbers do all threads together load from
`w_k`, load from `x_dn`, and store to `y_mn`? And how many *different* weights are hashed?
""",
    sizes="",
    lines=4,
    answer="prediction",
    stub="""
prediction = {
    "loads of w_k": None,
    "loads of x_dn": None,
    "stores to y_mn": None,
    "different weights": None,
}
""",
    solution="""
prediction = {
    "loads of w_k": 48 * 20 * 3,
    "loads of x_dn": 48 * 20 * 3,
    "stores to y_mn": 48 * 3,
    "different weights": 48 * 20,
}
""",
    hints=(
        "A thread has one output. It runs 20 turns, and each turn loads one number of each. How many threads "
        "are there?",
    ),
    test=ValueTest(
        lambda: {
            "loads of w_k": 48 * 20 * 3,
            "loads of x_dn": 48 * 20 * 3,
            "stores to y_mn": 48 * 3,
            "different weights": 48 * 20,
        },
        {
            "loads of w_k": ((960, "That is what would do. Every sample loads its weights again."),),
            "loads of x_dn": ((60, "That is what x holds. Every output reads all of its sample's inputs."),),
            "different weights": ((2880, "Each weight is hashed again for each sample: how many different ones?"),),
        },
    ),
)

EXERCISES = (DIAGONAL, SAMPLES, MENDED, COUNTS)
