"""The kernels for few columns, "panel_few" and "strip": sums that several blocks share, and strips of every height.

`test_kernels.py` has "panel_few" in its table too; "strip" computes strips alone and has its table here.
"""

import itertools
import math

import numpy as np
import pytest
from specs import SHAPES, STRUCTURES
from test_kernels import PLACES, Place, make_spec, nan_outputs, needs_emulator, run_case  # noqa: F401

from hashedmm import HashSpec, emulator, hashed_matmul, matmul, reference
from hashedmm.hashing import HASHES
from hashedmm.kernels import CUDA, FILL

FEW = ("panel_few", "strip")
STRIPS = [name for name in STRUCTURES if name.startswith("strips")]
COLUMNS = (1, 2, 3, 4, 7, 8, 9, 65)
WIDE = HashSpec.strips((129, 1000), 1 / 4, height=16, panel=(64, 300), seed=5)  # inputs are split among blocks


@pytest.mark.parametrize("name", STRIPS)
@pytest.mark.parametrize("place", PLACES)
def test_strips_agree_with_the_reference(place, name, nan_outputs):  # noqa: F811
    columns, orders = itertools.cycle(COLUMNS), itertools.cycle("CF")
    for shape, hash, dtype in itertools.product(SHAPES, HASHES, ("float32", "float16")):
        spec = make_spec(name, shape, hash, 5)
        if CUDA["strip"].supports(spec, dtype):
            run_case(Place(place), "strip", spec, next(columns), dtype, next(orders))


@pytest.mark.parametrize(
    "height, stride", [(2, None), (2, 1), (4, 2), (8, None), (12, 4), (17, None), (24, 8), (80, 16)]
)
@pytest.mark.parametrize("place", PLACES)
def test_strips_of_every_height(place, height, stride, nan_outputs):  # noqa: F811
    """Pieces of 16 bytes, short last pieces, reads that are scalar: in every mixture with the end of the matrix."""
    for rows, dtype, n in ((3 * height + 5, "float32", 1), (2 * height, "float16", 8), (785, "float16", 1)):
        spec = HashSpec((rows, 70), 1 / 2, (height, 1), (2 * height, 33), stride, seed=42)
        run_case(Place(place), "strip", spec, n, dtype)


@pytest.mark.parametrize("kernel", FEW)
@pytest.mark.parametrize("place", PLACES)
def test_blocks_share_sums(place, kernel, nan_outputs):  # noqa: F811
    at, rng = Place(place), np.random.default_rng(0)
    for n, dtype in ((1, np.float32), (3, np.float16), (8, np.float32), (13, np.float32)):
        run_case(at, kernel, WIDE, n, np.dtype(dtype).name, "F")
        w, x = (
            at.array(rng.standard_normal(WIDE.n_buckets).astype(dtype)),
            at.array(rng.random((1000, n)).astype(dtype)),
        )
        y = matmul.empty(x, (129, n), dtype)
        launch = matmul.plan_matmul(w, x, y, WIDE, kernel)
        assert launch.args[-2].shape[1:] == (129, n) and launch.args[-2].shape[0] >= 4
        assert launch.grid[0] == launch.args[-2].shape[0] * launch.args[-1].size <= FILL
        launch.run()
        first = at.back(y).copy()
        for _ in range(3):  # the counts of arrivals are 0 again, and the sums have one order
            y.fill(np.nan)
            launch.run()
            np.testing.assert_array_equal(at.back(y), first)
        assert not at.back(launch.args[-1]).any()


def test_how_inputs_are_split():
    """Whole tiles of inputs, no block without any, and no more blocks than there is use for."""
    for kernel, shape, n in itertools.product(
        FEW, ((1, 1), (129, 1000), (8192, 8192), (10, 2**31 - 1026)), (1, 3, 8, 999)
    ):
        row, spec = CUDA[kernel], HashSpec(shape, 2**-8, (2, 1), (128, 1024))
        values = row.values(n)
        launch, depth = row.shape(spec, n, values, "float32"), row.depth(values)
        tiles = row.tiles(spec, n, values, 4)
        assert launch.grid == (tiles * launch.splits,) and launch.grid[0] <= max(FILL, tiles)
        inputs = math.ceil(math.ceil(shape[1] / launch.splits) / depth) * depth  # what split.cuh makes of it
        assert (launch.splits - 1) * inputs < shape[1] <= launch.splits * inputs
    assert CUDA["strip"].shape(HashSpec.strips((8192, 8192), 1 / 64), 1, CUDA["strip"].values(1), "float16").splits == 8


@pytest.mark.parametrize("kernel", FEW)
@pytest.mark.parametrize("n", [1, 5])
@needs_emulator
def test_the_emulator_finds_no_fault(kernel, n):
    rng = np.random.default_rng(3)
    odd = HashSpec((40, 300), 1 / 2, (5, 1), (20, 130), 3, seed=1)
    for spec, dtype in ((WIDE, np.float32), (odd, np.float16)):
        w, x = (rng.standard_normal(s).astype(dtype) for s in (spec.n_buckets, (spec.cols, n)))
        launch = matmul.plan_matmul(w, x, np.empty((spec.rows, n), dtype), spec, kernel)
        report = emulator.check(*launch[:4], shared_mem=launch.shared_mem)
        assert report.ok, str(report)


@pytest.mark.parametrize(
    "kernel, parameters",
    [
        ("strip", {"PIECES": 8, "PARTS": 4, "STEPS": 1, "TILE_COLS": 3}),
        ("strip", {"PIECES": 32, "PARTS": 32, "STEPS": 2, "TILE_COLS": 1}),
        ("panel_few", {"TILE_ROWS": 24, "TILE_COLS": 3, "DEPTH": 50, "THREAD_ROWS": 6}),
        ("panel_few", {"TILE_ROWS": 64, "TILE_COLS": 1, "DEPTH": 256, "THREAD_ROWS": 16}),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_tile_sizes_do_not_change_the_result(place, kernel, parameters, monkeypatch, nan_outputs):  # noqa: F811
    plan = matmul.plan_matmul
    monkeypatch.setattr(matmul, "plan_matmul", lambda *a: plan(*a, parameters))
    for spec, n, dtype in itertools.product(
        (WIDE, make_spec("strips", (129, 785), "xxh32", 5)), (1, 7), ("float32", "float16")
    ):
        run_case(Place(place), kernel, spec, n, dtype)


@pytest.mark.parametrize("candidates", [1, 2, 3, 64, 2**16, 2**16 + 1, 99999])
@needs_emulator
def test_panel_few_scales_the_hash_to_any_number_of_candidates(candidates):
    """Powers of two up to 2^16 take the short hash."""
    spec = HashSpec((4, 2**16), candidates / 2**18, seed=3)
    assert spec.regions[0].candidates == candidates
    run_case(Place("emulator"), "panel_few", spec, 1, "float16")


@needs_emulator
def test_strip_says_what_it_computes():
    w, x = np.ones(HashSpec.tiles((64, 64), 1 / 4).n_buckets, np.float32), np.ones((64, 1), np.float32)
    with pytest.raises(ValueError, match="'strip' computes blocks one input wide .* These do: .*panel_few"):
        hashed_matmul(w, x, HashSpec.tiles((64, 64), 1 / 4), kernel="strip")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("place", PLACES)
def test_buckets_may_begin_anywhere(place, dtype):
    """Reads of 16 bytes are for buckets that begin at 16-byte boundaries, and a view of w may not."""
    at, rng = Place(place), np.random.default_rng(0)
    for spec in (HashSpec.strips((128, 64), 1 / 4, height=16, panel=(32, 64), seed=1), WIDE):
        w, x = rng.standard_normal(spec.n_buckets).astype(dtype), rng.standard_normal((spec.cols, 1)).astype(dtype)
        dense = reference.materialise(w.astype(np.float64), spec)
        for skipped in (0, 1, 3, 8):
            view = at.array(np.concatenate([np.zeros(skipped, dtype), w]))[skipped:]
            out = matmul.empty(view, spec.shape, dtype)
            matmul.plan_materialise(view, out, spec).run()
            np.testing.assert_array_equal(at.back(out), dense)
            for kernel in FEW:
                y = at.back(hashed_matmul(view, at.array(x), spec, kernel=kernel))
                np.testing.assert_allclose(y, dense @ x, rtol=2e-3, atol=1e-2 if dtype == np.float16 else 1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("height", [4, 8, 16, 24])
@pytest.mark.parametrize("run", [8, 16, 32])
def test_materialise_of_low_strips_begins_anew_in_every_strip(height, run, dtype):
    """A thread makes RUN rows: several strips, if they are low, each with codewords of its own."""
    spec = HashSpec.strips((100, 72), 1 / 4, height=height, panel=(48, 40), seed=4)
    w = np.random.default_rng(1).standard_normal(spec.n_buckets).astype(dtype)
    out = np.full(spec.shape, np.nan, dtype)
    matmul.plan_materialise(w, out, spec, {"RUN": run, "THREADS": 32}).run()
    np.testing.assert_array_equal(out, reference.materialise(w.astype(np.float64), spec).astype(dtype))
