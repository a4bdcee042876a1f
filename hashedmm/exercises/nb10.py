"""Exercises of notebook 10: where a slice begins, bring it to shared memory, what fits. Imports kernels, reference."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from hashedmm import kernels, reference
from hashedmm.exercises.base import UNIT, Case, Demand, Exercise, FunctionTest, KernelTest, Launch, nan, normal
from hashedmm.hashing import HashSpec

# ---- 10.1


def slice_of(r: int, c: int, rows: int, cols: int, height: int, width: int, compression: float) -> tuple[int, int]:
    """First bucket of panel (r, c) and one past its last, elementwise in panels."""
    across = -(-cols // width)
    widths = [width] * (across - 1) + [cols - (across - 1) * width]

    def owned(h: int, w: int) -> int:
        return max(1, round(h * w * compression))

    h = min(height, rows - r * height)
    base = r * ((across - 1) * owned(height, width) + owned(height, widths[-1]))
    base += c * owned(h, width)
    return base, base + owned(h, widths[c])


def _slice_by_remainder(r: int, c: int, rows: int, cols: int, h: int, w: int, k: float) -> tuple[int, int]:
    """A last panel that is as wide as the remainder: 0 columns where there is none."""

    def owned(h: int, w: int) -> int:
        return max(1, round(h * w * k))

    across, high = -(-cols // w), min(h, rows - r * h)
    base = r * ((across - 1) * owned(h, w) + owned(h, cols % w)) + c * owned(high, w)
    return base, base + owned(high, min(w, cols - c * w))


def _slice_without_edges(r: int, c: int, rows: int, cols: int, h: int, w: int, k: float) -> tuple[int, int]:
    own = max(1, round(h * w * k))
    base = (r * -(-cols // w) + c) * own
    return base, base + own


SLICE = Exercise(
    id="10.1",
    title="where a slice begins",
    after="## 2. Where a slice begins",
    kind="function",
    spec="""
Write `my_slice(r, c, rows, cols, height, width, compression)`: the first bucket of panel $(r, c)$, and one past its
last, as a tuple of Python integers. Panels are `height` x `width`, the last ones are what is left. A panel owns as
many buckets as its *true* area times compression, rounded by Python's `round`, and at least 1. Panels follow row by
row.

No loop over panels: it is tried with eight million of them.
""",
    sizes="40 x 60 in panels of 16 x 32, 64 x 96 in 16 x 32, 5 x 7 in 2 x 3, and a million by a million",
    lines=6,
    answer="my_slice",
    stub="""
def my_slice(r, c, rows, cols, height, width, compression):
    across = -(-cols // width)  # panels in a row of panels

    def buckets(h, w):
        return max(1, round(h * w * compression))

    row_of_panels = (across - 1) * buckets(height, width) + ...
    base = r * row_of_panels + ...
    return base, base + ...
""",
    solution="""
def my_slice(r, c, rows, cols, height, width, compression):
    across = -(-cols // width)  # panels in a row of panels

    def buckets(h, w):
        return max(1, round(h * w * compression))

    last = cols - (across - 1) * width  # inputs of the last panel in a row
    row_of_panels = (across - 1) * buckets(height, width) + buckets(height, last)
    h = min(height, rows - r * height)  # of this panel
    w = min(width, cols - c * width)
    base = r * row_of_panels + c * buckets(h, width)
    return base, base + buckets(h, w)
""",
    hints=(
        "All rows of panels above are of full height. All panels to the left are of full width, and as high "
        "as this one.",
        "A full row of panels owns `(across - 1) * buckets(height, width)` and what its last, narrower panel has.",
        "`slice_by_hand` of section 2 is this function for one matrix: 240 is a row of panels, 128 or 64 one panel.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"panel ({r}, {c}) of {rows} x {cols}", (r, c, rows, cols, h, w, k))
            for rows, cols, h, w, k, where in (
                (64, 96, 16, 32, 1 / 4, ((0, 0), (3, 2))),
                (40, 60, 16, 32, 1 / 4, ((0, 1), (1, 0), (2, 0), (2, 1))),
                (5, 7, 2, 3, 1 / 4, ((0, 2), (1, 1), (2, 2))),
                (2**20, 2**20, 128, 1024, 1 / 64, ((8191, 1023),)),
            )
            for r, c in where
        ],
        oracle=slice_of,
        names=("start", "stop"),
        mistakes=(
            ("the panels at the edges are smaller, and own fewer buckets", _slice_without_edges),
            ("where panels fill a row exactly, the last one is whole, not 0 wide", _slice_by_remainder),
            (
                "the panels are numbered column by column here",
                lambda r, c, rows, cols, h, w, k: tuple(
                    c * -(-rows // h) * round(h * w * k) + r * round(h * w * k) + d for d in (0, round(h * w * k))
                ),
            ),
        ),
    ),
)

# ---- 10.2


def _panel_launches() -> Iterator[Launch]:
    rng = np.random.default_rng(3)
    for shape, panel, n in (((16, 40), (16, 40), 1), ((40, 60), (16, 32), 2), ((33, 150), (32, 64), 1)):
        spec = HashSpec(shape, 1 / 4, panel=panel, seed=5)
        w, x = normal(rng, spec.n_buckets), normal(rng, spec.cols, n)
        W = reference.materialise(w.astype(np.float64), spec)
        bound = (spec.cols + 2) * UNIT * (abs(W) @ abs(x))
        largest = max(stop - start for start, stop in spec.panel_slices())
        bucket, sign = spec.indices()
        across = math.ceil(spec.cols / panel[1])
        owner = np.add.outer(np.arange(spec.rows) // panel[0] * across, np.arange(spec.cols) // panel[1])
        begins = np.array([start for start, _ in spec.panel_slices()])[owner]
        first = (sign * w[bucket - begins]) @ x.astype(np.float64)  # from the slice of panel 0
        yield Launch(
            f"{shape[0]} x {shape[1]} in panels of {panel[0]} x {panel[1]}, n = {n}",
            (math.ceil(spec.rows / panel[0]), n), (panel[0],),
            (kernels.layout(spec), w, x, nan(spec.rows, n), np.int32(n)), {3: W @ x}, {3: bound},
            shared_mem=4 * largest,
            mistakes=(("every panel has a slice of its own, from `panel.base` on", {3: first}),),
            demands=(Demand("sectors", 4.5, "neighbouring threads should copy neighbouring buckets", 1),),
        )  # fmt: skip


_PANEL = '''
PANELS = r"""
#include "hash.cuh"

extern "C" __global__ void panels(
    const Layout layout, const float* w_k, const float* x_dn, float* y_mn, const int n) {{
    extern __shared__ float slice[];  // room for the buckets of the largest panel
    const int top = blockIdx.x * PANEL_ROWS, s = blockIdx.y, i = top + threadIdx.x;

    float sum = 0.0f;
    for (int left = 0; left < layout.cols; left += PANEL_COLS) {{
        const Panel panel = panel_of(layout, top, left);
{load}
        const int right = min(left + PANEL_COLS, layout.cols);
        for (int j = left; j < right && i < layout.rows; ++j) {{
            const Slot slot = slot_in_panel(layout, panel, i, j);
            sum += slot.sign * slice[slot.offset] * x_dn[j * n + s];
        }}
{after}    }}
    if (i < layout.rows) y_mn[i * n + s] = sum;
}}
"""
'''

PANELS = Exercise(
    id="10.2",
    title="bring the slice",
    after="## 5. A kernel whose buckets live in shared memory",
    kind="kernel",
    spec="""
The kernel of section 5 without the part that it is about. All threads of the block together copy the panel's slice,
`w_k[panel.base]` and the `panel.buckets - 1` after it, into `slice`, neighbouring threads neighbouring buckets.
Then they may gather. Add the copy, and the barriers that it needs.
""",
    sizes="16 x 40 in one panel, 40 x 60 in panels of 16 x 32, 33 x 150 in panels of 32 x 64; a thread an "
    "output of the panel",
    lines=5,
    answer="PANELS",
    stub=_PANEL.format(
        load="        // TODO: copy the slice", after="        // TODO: is anything needed before the next panel?\n"
    ),
    solution=_PANEL.format(
        load="        for (int k = threadIdx.x; k < panel.buckets; k += blockDim.x) {\n"
        "            slice[k] = w_k[panel.base + k];\n"
        "        }\n"
        "        __syncthreads();  // the slice is complete\n",
        after="        __syncthreads();  // nobody reads the slice any more\n",
    ),
    hints=(
        "A panel owns more buckets than the block has threads. So each thread copies bucket `threadIdx.x`, "
        "then the one `blockDim.x` further, and so on.",
        "One barrier after the copy, and one after the gathering: a fast warp must not overwrite what a slow "
        "one still reads.",
    ),
    test=KernelTest("panels", _panel_launches),
)

# ---- 10.3


def _widest(height: int, compression: float, itemsize: int, budget: int) -> int:
    width = 0
    while itemsize * max(1, round(height * (width + 1) * compression)) <= budget:
        width += 1
    return width


WIDEST = Exercise(
    id="10.3",
    title="the widest panel that fits",
    after="## 7. How large a panel fits?",
    kind="function",
    spec="""
Write `widest_panel(height, compression, itemsize, budget)`: how wide a panel of `height` rows may be, if its slice
shall fit in `budget` bytes of shared memory. It owns `height * width` times `compression` buckets, rounded by
Python's `round`, and a bucket has `itemsize` bytes. Return the largest `width` that fits, exactly. (At least one
column does in all cases that are tried.)
""",
    sizes="heights 1 to 256, compression 1/3 to 1/64, 40 bytes to 227 KiB",
    lines=4,
    answer="widest_panel",
    stub="""
def widest_panel(height, compression, itemsize, budget): ...
""",
    solution="""
def widest_panel(height, compression, itemsize, budget):
    most = budget // itemsize  # buckets
    width = int((most + 0.5) / (height * compression)) + 1  # a little too wide, or just right
    while round(height * width * compression) > most:
        width -= 1
    return width
""",
    hints=(
        "First the buckets: `budget // itemsize`. About how wide is a panel that owns so many?",
        "Rounding lets up to half a bucket more pass: start one wider than `(buckets + 0.5) / (height * "
        "compression)`, and go down while it does not fit.",
    ),
    test=FunctionTest(
        cases=lambda: [
            Case(f"height {h}, 1/{round(1 / k)}, {b} bytes, {m} bytes of memory", (h, k, b, m))
            for h, k, b, m in (
                (128, 1 / 8, 4, 48 * 1024),
                (128, 1 / 64, 2, 99 * 1024),
                (1, 1 / 3, 4, 40),
                (1, 1 / 64, 4, 40),
                (3, 1 / 7, 4, 100),
                (256, 1 / 8, 4, 227 * 1024),
                (2, 1 / 5, 2, 61),
            )
        ],
        oracle=_widest,
        names=("width",),
        mistakes=(
            (
                "the number of buckets is rounded to the nearest: a slightly wider panel still fits",
                lambda h, k, b, m: int(m // b / (h * k)),
            ),
            (
                "rounding lets half a bucket more pass, and here that is more than one column",
                lambda h, k, b, m: int(m // b / (h * k)) + 1,
            ),
            ("this is the number of buckets that fit", lambda h, k, b, m: m // b),
        ),
    ),
)

EXERCISES = (SLICE, PANELS, WIDEST)
