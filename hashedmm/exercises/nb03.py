"""Exercises of notebook 03: where a weight lives, the product by loops, a gradient, sum first. Imports hashing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hashedmm.exercises.base import Case, Exercise, FunctionTest, relative
from hashedmm.hashing import HashSpec, hash_fmix32

# ---- 03.1


def _strip_cases() -> Iterator[Case]:
    for rows, cols, height, c, seed in ((40, 30, 16, 1 / 4, 42), (33, 7, 8, 1 / 2, 3), (6, 50, 3, 1 / 5, 0)):
        spec = HashSpec((rows, cols), c, block=(height, 1), seed=seed)
        for i, j in ((0, 0), (0, cols - 1), (rows - 1, cols - 1), (height, 1), (height + 2, 5), (height - 1, 3)):
            yield Case(f"({i}, {j}) of {rows} x {cols}, height {height}", (i, j, height, spec.n_buckets, seed))


def _place(block_row: int, j: int, place: int, height: int, T: int, seed: int) -> tuple[int, int]:
    """(bucket, sign) of the weight at ``place`` in its window, which one of T is chosen by the hash of the block."""
    h = int(hash_fmix32(block_row, j, seed)[0])
    return (h * T >> 32) * height + place, -1 if h & 1 else 1


def _strip_place(i: int, j: int, height: int, buckets: int, seed: int) -> tuple[int, int]:
    return _place(i // height, j, i % height, height, buckets // height, seed)


def _place_of_row(i: int, j: int, height: int, buckets: int, seed: int) -> tuple[int, int]:
    return _place(i, j, i % height, height, buckets // height, seed)


PLACE = Exercise(
    id="03.1",
    title="bucket and sign in a strip",
    after="## 1. The spec fixes the matrix",
    kind="function",
    spec="""
A matrix of strips: blocks of `height` x 1 weights, no stride, one panel with `buckets` buckets. Write the
function `my_place` of the stub: the bucket and the sign (+1 or -1) of weight $(i, j)$, as a tuple of Python
integers, with the five steps of section 1. `fmix32` takes and returns Python integers.
""",
    sizes="40 x 30 in strips of 16, 33 x 7 in strips of 8, 6 x 50 in strips of 3",
    lines=4,
    answer="my_place",
    stub="""
from hashedmm.hashing import fmix32


def my_place(i, j, height, buckets, seed):
    block_row = ...
    row_key = fmix32(seed ^ fmix32(block_row + 0x9E3779B9))
    h = fmix32(row_key ^ (j * 0x9E3779B1))
    T = ...
    t = h * T >> 32
    return t * height + ..., ...
""",
    solution="""
from hashedmm.hashing import fmix32


def my_place(i, j, height, buckets, seed):
    block_row = i // height
    row_key = fmix32(seed ^ fmix32(block_row + 0x9E3779B9))
    h = fmix32(row_key ^ (j * 0x9E3779B1))
    T = (buckets - height) // height + 1
    t = h * T >> 32
    sign = -1 if h & 1 else 1
    return t * height + i % height, sign
""",
    hints=(
        "`weight_by_hand` does it for any spec. Here the panel begins at bucket 0, and unit and block are "
        "both `height`.",
        "All rows of one block share its hash, so the block's row goes into the hash, not `i`. What is left of `i`, "
        "`i % height`, is the place inside the window.",
        "`T = (buckets - height) // height + 1`, `t = h * T >> 32`.",
    ),
    test=FunctionTest(
        cases=_strip_cases,
        oracle=_strip_place,
        names=("bucket", "sign"),
        mistakes=(
            ("`i` was hashed: all rows of a block share the hash of the block's row", _place_of_row),
            (
                "the place inside the window, `i % height`, is missing",
                lambda i, j, h, b, s: (_strip_place(i, j, h, b, s)[0] - i % h, _strip_place(i, j, h, b, s)[1]),
            ),
            (
                "this T lets windows begin at every bucket; without a stride they lie end to end, `height` apart",
                lambda i, j, h, b, s: _place(i // h, j, i % h, h, b - h + 1, s),
            ),
            (
                "this has one candidate too few: the last window counts, too",
                lambda i, j, h, b, s: _place(i // h, j, i % h, h, b // h - 1, s),
            ),
            (
                "the row of the block, `i // height`, was added; the place inside the window is what is left of `i`",
                lambda i, j, h, b, s: _place(i // h, j, i // h, h, b // h, s),
            ),
            (
                "`i % height` was hashed; the row of the block is `i // height`",
                lambda i, j, h, b, s: _place(i % h, j, i % h, h, b // h, s),
            ),
            (
                "the sign is the wrong way round: an odd hash is -1",
                lambda i, j, h, b, s: (_strip_place(i, j, h, b, s)[0], -_strip_place(i, j, h, b, s)[1]),
            ),
        ),
    ),
)

# ---- 03.2


def _products(rng_seed: int = 0) -> Iterator[Case]:
    rng = np.random.default_rng(rng_seed)
    for rows, cols, n, fortran in ((6, 8, 3, False), (1, 5, 2, False), (7, 4, 1, False), (9, 13, 4, True)):
        spec = HashSpec.elementwise((rows, cols), 1 / 4, seed=rows)
        bucket, sign = spec.indices()
        w, x = rng.standard_normal(spec.n_buckets), rng.standard_normal((cols, n))
        x = np.asfortranarray(x) if fortran else x
        yield Case(f"{rows} x {cols}, n = {n}{', x in F order' if fortran else ''}", (w, x, bucket, sign))


def _product(w: np.ndarray, x: np.ndarray, bucket: np.ndarray, sign: np.ndarray) -> np.ndarray:
    return (sign * w[bucket]) @ x


PRODUCT = Exercise(
    id="03.2",
    title="the product, one output at a time",
    after="## 2. The reference: three lines",
    kind="function",
    spec="""
Write `my_product(w, x, bucket, sign)`: $y = W x$ of shape (rows, n), float64. `bucket` and `sign` are the tables of
`spec.indices()`, of shape (rows, cols); `x` is (cols, n). Make no matrix $W$: go through the rows, and use only one
row of $W$ at a time.
""",
    sizes="6 x 8, 1 x 5, 7 x 4 and 9 x 13, with 1 to 4 samples",
    lines=1,
    answer="my_product",
    stub="""
def my_product(w, x, bucket, sign):
    rows, cols = bucket.shape
    y = np.full((rows, x.shape[1]), np.nan)
    for i in range(rows):
        y[i] = ...
    return y
""",
    solution="""
def my_product(w, x, bucket, sign):
    rows, cols = bucket.shape
    y = np.full((rows, x.shape[1]), np.nan)
    for i in range(rows):
        y[i] = (sign[i] * w[bucket[i]]) @ x
    return y
""",
    hints=(
        "Row `i` of $W$ has `cols` entries: each a bucket's value times its sign. Index `w` with a whole row "
        "of `bucket`.",
        "A row of shape (cols,) times `x` of shape (cols, n) is `row @ x`, of shape (n,).",
    ),
    test=FunctionTest(
        cases=_products,
        oracle=_product,
        names=("y",),
        bound=relative(1e-12),
        dtype=True,
        mistakes=(("the signs are missing", lambda w, x, b, s: w[b] @ x),),
    ),
)

# ---- 03.3


def _gradients() -> Iterator[Case]:
    rng = np.random.default_rng(4)
    for rows, cols, n, c, seed in ((6, 8, 3, 1 / 4, 6), (5, 5, 2, 1 / 2, 5), (1, 3, 4, 1.0, 1), (12, 7, 1, 1.0, 10)):
        spec = HashSpec.elementwise((rows, cols), c, seed=seed)
        bucket, sign = spec.indices()
        x, gy = rng.standard_normal((cols, n)), rng.standard_normal((rows, n))
        yield Case(f"{rows} x {cols}, n = {n}, {spec.n_buckets} buckets", (x, gy, bucket, sign, spec.n_buckets))


def _grad_w(x: np.ndarray, gy: np.ndarray, bucket: np.ndarray, sign: np.ndarray, buckets: int) -> np.ndarray:
    out = np.zeros(buckets)
    np.add.at(out, bucket, sign * (gy @ x.T))
    return out


def _grad_w_lost(x: np.ndarray, gy: np.ndarray, bucket: np.ndarray, sign: np.ndarray, buckets: int) -> np.ndarray:
    out = np.zeros(buckets)
    out[bucket] += sign * (gy @ x.T)
    return out


GRAD_W = Exercise(
    id="03.3",
    title="the gradient of the buckets",
    after="## 3. The sparse view, and the gradients",
    kind="function",
    spec="""
Write `my_grad_w(x, gy, bucket, sign, buckets)`: the gradient with respect to `w`, an array of `buckets` float64.
Each bucket gets the signed sum of the dense gradient $G = g\\,x^\\top$ over all its uses. A bucket without a use
gets 0. `x` is (cols, n), `gy` is (rows, n), `bucket` and `sign` are (rows, cols).
""",
    sizes="6 x 8, 5 x 5, 1 x 3 and 12 x 7",
    lines=2,
    answer="my_grad_w",
    stub="""
def my_grad_w(x, gy, bucket, sign, buckets):
    grad_w = np.zeros(buckets)
    ...
    return grad_w
""",
    solution="""
def my_grad_w(x, gy, bucket, sign, buckets):
    grad_w = np.zeros(buckets)
    G = gy @ x.T
    np.add.at(grad_w, bucket, sign * G)
    return grad_w
""",
    hints=(
        "First the dense gradient, (rows, cols). Then every entry goes to its bucket, with its sign.",
        "`grad_w[bucket] += ...` loses all but one of the entries that share a bucket. `np.add.at` does not; nor does "
        "`np.bincount` with weights, as in the reference.",
    ),
    test=FunctionTest(
        cases=_gradients,
        oracle=_grad_w,
        names=("grad_w",),
        bound=relative(1e-12),
        mistakes=(
            ("updates are lost: `grad_w[bucket] += ...` keeps one of the weights that share a bucket", _grad_w_lost),
            ("the signs are missing", lambda x, g, b, s, k: _grad_w(x, g, b, np.ones_like(s), k)),
            (
                "this is the mean over the uses; the chain rule says their sum",
                lambda x, g, b, s, k: _grad_w(x, g, b, s, k) / np.maximum(np.bincount(b.ravel(), minlength=k), 1),
            ),
        ),
    ),
)

# ---- 03.4


def _selections() -> Iterator[Case]:
    rng = np.random.default_rng(3)
    for height, T, cols, n in ((4, 3, 11, 2), (8, 5, 30, 1), (3, 7, 5, 4)):
        C, x = rng.standard_normal((height, T)), rng.standard_normal((cols, n))
        t, sign = rng.integers(0, T, cols), rng.choice([-1, 1], cols)
        yield Case(f"height {height}, T = {T}, {cols} inputs, n = {n}", (C, t, sign, x))


def _sum_first(C: np.ndarray, t: np.ndarray, sign: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = np.zeros((C.shape[1], x.shape[1]))
    np.add.at(z, t, sign[:, None] * x)
    return z, C @ z


def _lost(C: np.ndarray, t: np.ndarray, sign: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = np.zeros((C.shape[1], x.shape[1]))
    z[t] += sign[:, None] * x
    return z, C @ z


def _unsigned_sum(C: np.ndarray, t: np.ndarray, sign: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _sum_first(C, t, np.ones_like(sign), x)


SUM_FIRST = Exercise(
    id="03.4",
    title="sum first, multiply after",
    after="## 6. Strips: sum first, multiply after",
    kind="function",
    spec="""
One strip. `C` is its codebook, of shape (height, T). Input `j` takes codeword `t[j]` with sign `sign[j]`. Write
`my_strip(C, t, sign, x)`, which returns the tuple `(z, y)`:

- `z`, of shape (T, n): for each codeword the signed sum of the inputs that take it. No multiplication but by a
  sign;
- `y = C z`, of shape (height, n).

`x` has shape (inputs, n). A codeword that no input takes has the sum 0.
""",
    sizes="height 3 to 8, T = 3 to 7, 5 to 30 inputs",
    lines=1,
    answer="my_strip",
    stub="""
def my_strip(C, t, sign, x):
    z = np.zeros((C.shape[1], x.shape[1]))
    ...
    return z, C @ z
""",
    solution="""
def my_strip(C, t, sign, x):
    z = np.zeros((C.shape[1], x.shape[1]))
    np.add.at(z, t, sign[:, None] * x)
    return z, C @ z
""",
    hints=(
        "Several inputs take the same codeword. What does `z[t] += ...` do when a number occurs twice in `t`?",
        "`np.add.at(z, t, values)` adds each row of `values` to row `t` of `z`, repeats included.",
    ),
    test=FunctionTest(
        cases=_selections,
        oracle=_sum_first,
        names=("z", "y"),
        bound=relative(1e-12),
        mistakes=(
            ("inputs with the same codeword overwrite each other: `z[t] += ...` adds only the last of them", _lost),
            ("the signs are missing", _unsigned_sum),
        ),
    ),
)

EXERCISES = (PLACE, PRODUCT, GRAD_W, SUM_FIRST)
