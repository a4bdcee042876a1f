"""Exercises of notebook 16: where a kernel stands under the roofline. Imports base, hashing, sketch."""

from __future__ import annotations

from hashedmm import sketch
from hashedmm.exercises.base import Case, Exercise, FunctionTest, relative
from hashedmm.hashing import HashSpec

# ---- 16.1


def _intensity(rows: int, cols: int, n: int, compression: float, itemsize: int) -> tuple[float, float]:
    operations, ends = 2 * rows * cols * n, n * (rows + cols)
    return tuple(operations / (itemsize * (rows * cols * stored + ends)) for stored in (compression, 1))  # type: ignore[return-value]


INTENSITY = Exercise(
    id="16.1",
    title="operations a byte",
    after="## 3. The roofline",
    kind="function",
    spec="""
Where do the columns of points stand? Write `intensity(rows, cols, n, compression, itemsize)`: the tuple (hashed,
dense) of operations a byte. A multiply-add is two operations; both products are counted with all of theirs. Bytes
are those that must move at least: what is stored of the matrix (rows times cols times compression numbers, or all),
`x` and `y`, each once.
""",
    sizes="4096 x 4096 with 1 and 512 columns, float16; 1000 x 784 with 100 and 300 x 700 with 3, float32",
    lines=4,
    answer="intensity",
    stub="""
def intensity(rows, cols, n, compression, itemsize): ...
""",
    solution="""
def intensity(rows, cols, n, compression, itemsize):
    operations = 2 * rows * cols * n
    hashed = itemsize * (rows * cols * compression + n * (rows + cols))
    dense = itemsize * (rows * cols + n * (rows + cols))
    return operations / hashed, operations / dense
""",
    hints=(
        "`at_least` in section 3 has the bytes. The operations are the same for both.",
        "`x` has cols x n numbers, `y` has rows x n.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"{r} x {c}, n = {n}, {'float16' if b == 2 else 'float32'}", (r, c, n, k, b))
            for r, c, n, k, b in (
                (4096, 4096, 1, 1 / 64, 2),
                (4096, 4096, 512, 1 / 64, 2),
                (1000, 784, 100, 1 / 8, 4),
                (300, 700, 3, 1 / 8, 4),
            )
        ],
        oracle=_intensity,
        names=("hashed", "dense"),
        bound=relative(1e-9),
        mistakes=(
            (
                "a multiply-add is two operations",
                lambda *a: tuple(v / 2 for v in _intensity(*a)),
            ),
            (
                "`x` and `y` have `n` columns each",
                lambda r, c, n, k, b: tuple(2 * r * c * n / (b * (r * c * stored + r + c)) for stored in (k, 1)),
            ),
            ("a number is `itemsize` bytes", lambda r, c, n, k, b: _intensity(r, c, n, k, 1)),
            (
                "a compressed product has as many operations as the dense one, when it is counted by the product",
                lambda r, c, n, k, b: (_intensity(r, c, n, k, b)[0] * k, _intensity(r, c, n, k, b)[1]),
            ),
        ),
    ),
)

# ---- 16.2


def _share(rows: int, height: int, bins: int, cols: int) -> float:
    strips = -(-rows // height)
    return (strips * cols + 2 * rows * bins) / (2 * rows * cols)


def _share_cases() -> list[Case]:
    cases = []
    for name, spec in (
        (
            "8192 x 8192, strips of 256, stride 24",
            HashSpec.strips((8192, 8192), 1 / 64, height=256, panel=(256, 1024), stride=24),
        ),
        ("4096 x 4096, strips of 16", HashSpec.strips((4096, 4096), 1 / 64, height=16, panel=(128, 1024))),
        ("1000 x 784, strips of 128", HashSpec.strips((1000, 784), 1 / 8, height=128, panel=(128, 1024))),
    ):
        cases.append(Case(name, (spec.rows, spec.block[0], sketch.geometry(spec).all_bins, spec.cols)))
    return cases


SHARE = Exercise(
    id="16.2",
    title="between the open marker and the filled one",
    after="## 3. The roofline",
    kind="function",
    spec="""
The matrix has `rows` outputs and `cols` inputs, in strips of `height` rows. Each strip keeps `bins` sums
([notebook 11](11_strips_and_sketches.ipynb)). The sketch does, for each sample, an *addition* for each strip and input,
and a *multiply-add* (two operations) for each output and bin. Write `share(rows, height, bins, cols)`: what it does as
a share of the dense product's operations. It is the factor between the heights of its two markers. The last strip may
be lower than `height`: it counts as a strip.
""",
    sizes="strips of 16, 128 and 256; 1000 rows among them, no multiple of 128",
    lines=3,
    answer="share",
    stub="""
def share(rows, height, bins, cols): ...
""",
    solution="""
def share(rows, height, bins, cols):
    strips = -(-rows // height)
    own = strips * cols + 2 * rows * bins
    return own / (2 * rows * cols)
""",
    hints=("`own_operations` in section 3 counts them, for `n` samples. `n` cancels.",),
    test=FunctionTest(
        cases=_share_cases,
        oracle=_share,
        names=("share",),
        bound=relative(1e-9),
        mistakes=(
            (
                "the last, lower strip needs its own additions: round up",
                lambda r, h, b, c: (r // h * c + 2 * r * b) / (2 * r * c),
            ),
            (
                "the last, lower strip is a whole strip: round up",
                lambda r, h, b, c: (r / h * c + 2 * r * b) / (2 * r * c),
            ),
            (
                "this is the dense product as a share of the sketch",
                lambda r, h, b, c: 1 / _share(r, h, b, c),
            ),
            (
                "an addition is one operation, not two",
                lambda r, h, b, c: (2 * -(-r // h) * c + 2 * r * b) / (2 * r * c),
            ),
            ("a multiply-add is two operations", lambda r, h, b, c: (-(-r // h) * c + r * b) / (2 * r * c)),
        ),
    ),
)

EXERCISES = (INTENSITY, SHARE)
