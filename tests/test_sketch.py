"""The sketch schedule on a GPU and in the emulator: products, what is derived from the hash, workspace, refusals."""

import itertools
import re

import numpy as np
import pytest
from test_kernels import PLACES, Place, needs_emulator

from hashedmm import (
    MLP,
    HashedLinear,
    HashSpec,
    emulator,
    explain,
    hashed_matmul,
    hashed_matmul_grad_w,
    hashed_matmul_grad_x,
    launch,
    load_model,
    matmul,
    reference,
    save_model,
    sketch,
)
from hashedmm.bench import LAYER
from hashedmm.build import shared_limit
from hashedmm.hashing import HASHES
from hashedmm.kernels import SKETCH

SPECS = {
    "strips of 16": lambda **k: HashSpec.strips((70, 130), 1 / 4, height=16, panel=(32, 64), **k),
    "cut at the right and at the bottom": lambda **k: HashSpec((70, 130), 1 / 4, (16, 1), (32, 64), **k),
    "a last panel of one input": lambda **k: HashSpec((33, 65), 1 / 2, (16, 1), (32, 64), **k),
    "overlapping windows": lambda **k: HashSpec((70, 130), 1 / 2, (16, 1), (32, 64), 8, **k),
    "one strip": lambda **k: HashSpec((64, 100), 1 / 4, (64, 1), (64, 48), **k),
    "one strip in a panel, one cut": lambda **k: HashSpec((300, 70), 1 / 4, (64, 1), (64, 64), 16, **k),
    "one panel": lambda **k: HashSpec((300, 70), 1 / 4, (64, 1), None, 8, **k),
    "tall, few bins": lambda **k: HashSpec((257, 200), 1 / 16, (128, 1), (128, 96), 32, **k),
    "many bins": lambda **k: HashSpec((48, 300), 1 / 2, (16, 1), (16, 300), **k),
    "wide, low": lambda **k: HashSpec((17, 785), 1 / 4, (16, 1), (16, 208), **k),
    "one input": lambda **k: HashSpec((32, 1), 1.0, (16, 1), **k),
}
COLUMNS = (1, 3, 9, 65)
TOLERANCE = {"float16": 1e-3, "float32": 1e-6}  # relative, in the Frobenius norm
OPERATIONS = ("matmul", "grad_x", "grad_w")


def operands(spec, n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (spec.n_buckets, (spec.cols, n), (spec.rows, n))
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def planned(place, spec, n, dtype, order_x="C", order_gy="C"):
    """{operation: (plan, output, what it is to hold)}; outputs hold NaN, but for the one that is added to: ones."""
    w, x, gy = operands(spec, n, dtype)
    w64, x64, gy64 = (a.astype(np.float64) for a in (w, x, gy))
    at_w, at_x, at_gy = place.array(w), place.array(x, order_x), place.array(gy, order_gy)
    y, gx = (place.array(np.full((rows, n), np.nan, dtype)) for rows in spec.shape)
    gw = place.array(np.ones(spec.n_buckets, np.float32))
    return {
        "matmul": (matmul.plan_matmul(at_w, at_x, y, spec, "sketch"), y, reference.matmul(w64, x64, spec)),
        "grad_x": (matmul.plan_grad_x(at_w, at_gy, gx, spec, "sketch"), gx, reference.matmul_grad_x(w64, gy64, spec)),
        "grad_w": (matmul.plan_grad_w(at_x, at_gy, gw, spec, "sketch"), gw, reference.matmul_grad_w(x64, gy64, spec)),
    }


def check(result, expected, dtype, what):
    result = np.asarray(result, np.float64)
    assert result.shape == expected.shape and np.isfinite(result).all(), what
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert error <= TOLERANCE[dtype], f"{what}: a relative error of {error:.2g}"


def check_plans(place, spec, n, dtype, *orders):
    for operation, (plan, out, expected) in planned(place, spec, n, dtype, *orders).items():
        plan.run()
        result = place.back(out).astype(np.float64) - (operation == "grad_w")
        check(result, expected, dtype, f"{operation} of {spec}, n = {n}, {dtype}, {orders}")


@pytest.fixture
def nan_memory(monkeypatch):
    """The workspace holds NaN before a kernel runs: what is read and was never written is seen."""

    def filled(like, shape, dtype):
        out = launch.empty(like, shape, dtype)
        out.fill(np.nan)
        return out

    monkeypatch.setattr(sketch, "empty", filled)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("place", PLACES)
def test_products_agree_with_the_reference(place, name, dtype, nan_memory):
    for i, n in enumerate(COLUMNS):
        spec = SPECS[name](seed=3 + i, hash=HASHES[i % 3])
        check_plans(Place(place), spec, n, dtype, "CF"[i % 2], "CF"[i // 2 % 2])


@pytest.mark.parametrize("place", PLACES)
def test_columns_go_in_chunks(place, monkeypatch, nan_memory):
    monkeypatch.setattr(sketch, "WORKSPACE", 1)
    for dtype, name in itertools.product(TOLERANCE, ("cut at the right and at the bottom", "one strip")):
        spec = SPECS[name](seed=5)
        plans = planned(Place(place), spec, 300, dtype)
        assert len(list(plans["matmul"][0].launches())) >= 4
        check_plans(Place(place), spec, 300, dtype)


@pytest.mark.parametrize("place", PLACES)
def test_the_public_products_take_it_by_name(place):
    at = Place(place)
    for dtype in TOLERANCE:
        spec = SPECS["strips of 16"](seed=7)
        w, x, gy = operands(spec, 10, dtype)
        w64, x64, gy64 = (a.astype(np.float64) for a in (w, x, gy))
        w, x, gy = (at.array(a) for a in (w, x, gy))
        y = hashed_matmul(w, x, spec, kernel="sketch")
        gx = hashed_matmul_grad_x(w, gy, spec, kernel="sketch")
        gw = hashed_matmul_grad_w(x, gy, spec, kernel="sketch")
        assert (y.dtype, gx.dtype, gw.dtype) == (dtype, dtype, np.float32) and type(y) is type(gw) is type(x)
        check(at.back(y), reference.matmul(w64, x64, spec), dtype, "y")
        check(at.back(gx), reference.matmul_grad_x(w64, gy64, spec), dtype, "gx")
        check(at.back(gw), reference.matmul_grad_w(x64, gy64, spec), dtype, "gw")
        assert hashed_matmul(w, x[:, :0], spec, kernel="sketch").shape == (70, 0)
        assert not at.back(hashed_matmul_grad_w(x[:, :0], gy[:, :0], spec, kernel="sketch")).any()


@pytest.mark.parametrize("place", PLACES)
def test_views_are_read_right(place):
    """Arrays that no kernel can take as they are: every second element, and an address between 16-byte boundaries."""
    at = Place(place)
    for dtype, n in itertools.product(TOLERANCE, (8, 16)):
        spec = SPECS["overlapping windows"](seed=2)
        w, x, gy = operands(spec, n, dtype)
        expected = hashed_matmul(w, x, spec, kernel="reference"), hashed_matmul_grad_x(w, gy, spec, kernel="reference")
        wide, longer = np.zeros((130, 2 * n + 1), dtype), np.zeros(spec.n_buckets + 1, dtype)
        wide[:, 1::2], longer[1:] = x, w
        for a, b in ((longer, x), (w, wide), (longer, wide)):
            a, b = at.array(a), at.array(b)
            a, b = a[1:] if len(a) > len(w) else a, b[:, 1::2] if b.shape[1] > n else b
            check(at.back(hashed_matmul(a, b, spec, kernel="sketch")), expected[0].astype(np.float64), dtype, "y")
        got = hashed_matmul_grad_x(at.array(longer)[1:], at.array(gy, "F"), spec, kernel="sketch")
        check(at.back(got), expected[1].astype(np.float64), dtype, "gx")


@pytest.mark.parametrize("place", PLACES)
def test_a_plan_can_be_run_again(place):
    """It reads what its arrays hold then, and copies what no kernel can take anew each time."""
    at = Place(place)
    spec = SPECS["one strip in a panel, one cut"](seed=2)
    for n in (3, 8):
        w, x, _ = (at.array(a) for a in operands(spec, n, "float32"))
        y = at.array(np.zeros((spec.rows, n), np.float32))
        plan = matmul.plan_matmul(w, x, y, spec, "sketch")
        plan.run()
        first = at.back(y).copy()
        x *= 2
        plan.run()
        np.testing.assert_allclose(at.back(y), 2 * first, rtol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_gradients_are_the_same_bits_each_time(place):
    at = Place(place)
    for dtype, name in itertools.product(TOLERANCE, ("overlapping windows", "one strip in a panel, one cut")):
        spec = SPECS[name](seed=9)
        _, x, gy = (at.array(a) for a in operands(spec, 65, dtype))
        first = at.back(hashed_matmul_grad_w(x, gy, spec, kernel="sketch"))
        for _ in range(2 if place == "emulator" else 20):
            np.testing.assert_array_equal(at.back(hashed_matmul_grad_w(x, gy, spec, kernel="sketch")), first)


@pytest.mark.parametrize("place", PLACES)
def test_a_forward_plan_saves_the_gradient_the_sums(place, monkeypatch):
    """The same bits from fewer launches; not if the columns were more than one chunk, or took one launch."""
    at, spec = Place(place), SPECS["overlapping windows"](seed=3)
    for dtype in TOLERANCE:
        w, x, gy = (at.array(a) for a in operands(spec, 65, dtype))
        forward = matmul.plan_matmul(w, x, at.array(np.zeros((spec.rows, 65), dtype)), spec, "sketch")
        expected = at.back(hashed_matmul_grad_w(x, gy, spec, kernel="sketch"))
        gw = at.array(np.zeros(spec.n_buckets, np.float32))
        alone, after = (matmul.plan_grad_w(x, gy, gw, spec, "sketch", forward=f) for f in (None, forward))
        assert len(list(after.launches())) == len(list(alone.launches())) - 1
        forward.run()
        after.run()
        np.testing.assert_array_equal(at.back(gw), expected)
        assert matmul.plan_matmul(w, x[:, :3].copy(), gw, spec, "sketch").kept is None
    monkeypatch.setattr(sketch, "WORKSPACE", 1)
    w, x, gy = (at.array(a) for a in operands(spec, 300, "float32"))
    assert matmul.plan_matmul(w, x, at.array(np.zeros((spec.rows, 300), np.float32)), spec, "sketch").kept is None


@needs_emulator
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["cut at the right and at the bottom", "overlapping windows"])
def test_launches_are_free_of_races_and_of_any_order(name, dtype):
    """Also of reads of shared memory that nobody wrote, and of accesses out of bounds."""
    for operation, (plan, _, _) in planned(Place("emulator"), SPECS[name](seed=1), 9, dtype).items():
        for step in plan.steps:
            if isinstance(step, launch.Launch):
                report = emulator.check(*step[:4], shared_mem=step.shared_mem)
                assert report.ok, f"{operation}: {report}"
            step.run()


def test_every_kernel_of_the_schedule_is_met():
    """By the cases above and below, and those that make lists."""
    met = {"sketch_lists", "sketch_groups", "sketch_fused_mma", "sketch_back_mma"}
    for dtype, name in itertools.product(TOLERANCE, ("overlapping windows", "one strip")):
        plans = [*planned(Place("emulator"), SPECS[name](), 9, dtype).values()]
        for plan, _, _ in (*plans, planned(Place("emulator"), SPECS[name](), 8, dtype)["matmul"]):
            met |= {one.kernel.name for one in plan.launches()}
    assert met == set(SKETCH)


# ---- both halves in one launch


FUSED_SPECS = {name: make for name, make in SPECS.items() if sketch.geometry(make()).bins <= 64} | {
    "an odd number of strips": lambda **k: HashSpec((520, 300), 1 / 16, (176, 1), (176, 80), 24, **k),
    "windows that overlap": lambda **k: HashSpec((70, 130), 1 / 4, (16, 1), (32, 64), 8, **k),
}


@pytest.mark.parametrize("name", FUSED_SPECS)
@pytest.mark.parametrize("place", PLACES)
def test_both_halves_in_one_launch(place, name, nan_memory):
    """The same y, and the same z to the bit as that of two launches; without z, no memory beside the result."""
    at, spec = Place(place), FUSED_SPECS[name](seed=4)
    g = sketch.geometry(spec)
    for n in (8, 67, 136):
        w, x, _ = operands(spec, n, "float16")
        at_w, at_x = at.array(w), at.array(x)
        plans, outs = {}, {}
        for kernel, keep in (("sketch_fused_mma", True), ("sketch_fused_mma", False), ("sketch_sum_mma", True)):
            out = outs[kernel, keep] = at.array(np.full((spec.rows, n), np.nan, np.float16))
            plans[kernel, keep] = plan = sketch.plan_matmul(at_w, at_x, out, spec, {kernel: {}}, keep=keep)
            plan.run()
        z, alone, two = plans.values()
        assert [one.kernel.name for one in alone.launches()] == ["sketch_fused_mma"]
        assert alone.kept is None and len(list(two.launches())) == 2
        expected = reference.matmul(w.astype(np.float64), x.astype(np.float64), spec)
        for what, out in outs.items():
            check(at.back(out), expected, "float16", f"{what} of {spec}, n = {n}")
        for strip in range(g.strips):
            own = [r for r in spec.regions if r.row <= strip * g.height < r.row + r.rows]
            meant = strip, slice(sum(r.candidates * r.grid_cols for r in own))
            np.testing.assert_array_equal(at.back(z.kept)[meant], at.back(two.kept)[meant])


@pytest.mark.parametrize("name", FUSED_SPECS)
@pytest.mark.parametrize("place", PLACES)
def test_both_halves_of_the_way_back_in_one_launch(place, name, nan_memory, monkeypatch):
    """The same gx to the bit as that of two launches, whether a block makes one tile or several."""
    at, spec = Place(place), FUSED_SPECS[name](seed=4)
    for n, processors in ((8, 132), (67, 2), (136, 3)):
        monkeypatch.setattr(sketch, "multiprocessors", lambda where, processors=processors: processors)
        w, _, gy = operands(spec, n, "float16")
        at_w, at_gy = at.array(w), at.array(gy)
        outs = {}
        for kernel in ("sketch_back_mma", "sketch_spread"):
            out = at.array(np.full((spec.cols, n), np.nan, np.float16))
            plan = sketch.plan_grad_x(at_w, at_gy, out, spec, {kernel: {}})
            plan.run()
            outs[kernel] = at.back(out), [one.kernel.name for one in plan.launches()]
        assert outs["sketch_back_mma"][1] == ["sketch_back_mma"]
        assert outs["sketch_spread"][1] == ["sketch_project_mma", "sketch_spread"]
        expected = reference.matmul_grad_x(w.astype(np.float64), gy.astype(np.float64), spec)
        check(outs["sketch_back_mma"][0], expected, "float16", f"gx of {spec}, n = {n}")
        np.testing.assert_array_equal(outs["sketch_back_mma"][0], outs["sketch_spread"][0])


@needs_emulator
@pytest.mark.parametrize("name", ["windows that overlap", "an odd number of strips"])
def test_the_one_launch_is_free_of_races(name, monkeypatch):
    spec = FUSED_SPECS[name](seed=1)
    monkeypatch.setattr(sketch, "multiprocessors", lambda where: 3)
    w, x, gy = operands(spec, 72, "float16")
    y, gx = (np.full((side, 72), np.nan, np.float16) for side in spec.shape)
    for plan in (
        sketch.plan_matmul(w, x, y, spec, {"sketch_fused_mma": {}}, keep=True),
        sketch.plan_grad_x(w, gy, gx, spec, {"sketch_back_mma": {}}),
    ):
        (one,) = plan.launches()
        report = emulator.check(*one[:4], shared_mem=one.shared_mem)
        assert report.ok, str(report)


@pytest.mark.parametrize("stride", [64, 240])
def test_what_is_sent_to_one_launch_fits(monkeypatch, stride):
    """The largest panels that `takes_fused` lets pass, with windows of any stride."""
    monkeypatch.setattr(sketch.build, "has_wgmma", lambda where: True)
    spec = HashSpec.strips((512, 448), 4096 / (256 * 448), height=256, panel=(256, 448), stride=stride)
    g = sketch.geometry(spec)
    assert (g.width, g.height) == (448, 256) and 4096 - stride < g.buckets <= 4096
    assert sketch.takes_fused("matmul", spec, 64 * 132, "float16", "emulator")
    capacity = sketch.lists(spec, "float16", "emulator")[1].shape[2]
    assert sketch._fused_tile(spec, shared_limit("emulator"), capacity) is not None


def test_where_one_launch_is_taken(monkeypatch):
    """The recommended strips at 1/64, from so many columns on that there are blocks for an H100."""
    monkeypatch.setattr(sketch.build, "has_wgmma", lambda where: True)
    taken = {
        (shape, c, n)
        for shape in ((8192, 8192), (4096, 4096), (1000, 784)) for c in (1 / 8, 1 / 64)
        for n in (1, 32, 448, 449, 1024, 4096)
        if sketch.takes_fused("matmul", LAYER["strips"](shape, c), n, "float16", "emulator")
    }  # fmt: skip
    large, half = (8192, 8192), (4096, 4096)
    least = {large: 449, half: 1024, (1000, 784): 4096}
    assert taken == {(shape, 1 / 64, n) for shape, first in least.items() for n in (449, 1024, 4096) if n >= first}
    spec = LAYER["strips"](large, 1 / 64)
    for operation, dtype in (("matmul", "float32"), ("grad_x", "float32"), ("grad_w", "float16")):
        assert not sketch.takes_fused(operation, spec, 1024, dtype, "emulator")
    back = {
        (c, n) for c in (1 / 8, 1 / 64) for n in (1, 511, 512, 4096)
        if sketch.takes_fused("grad_x", LAYER["strips"](large, c), n, "float16", "emulator")
    }  # fmt: skip
    assert back == {(1 / 64, 512), (1 / 64, 4096)}
    monkeypatch.setattr(sketch.build, "has_wgmma", lambda where: False)
    assert not sketch.takes_fused("matmul", spec, 1024, "float16", "emulator")


def test_what_does_not_fit_one_launch():
    w, x, gy = operands(spec := SPECS["overlapping windows"](), 9, "float16")
    with pytest.raises(ValueError, match="at most 64 candidates a panel.* 127 candidates"):
        sketch.plan_matmul(w, x, gy, spec, {"sketch_fused_mma": {}})
    with pytest.raises(ValueError, match="most 64 candidates whose.* 127 candidates"):
        sketch.plan_grad_x(w, gy, x, spec, {"sketch_back_mma": {}})
    for wrong, message in (
        ({"INPUTS": 480}, "up to 448, got 512, [14] and 480"),
        ({"THREADS": 256}, "takes 512 THREADS"),
    ):
        with pytest.raises(ValueError, match=message):
            sketch.plan_grad_x(
                w, gy, x, FUSED_SPECS["windows that overlap"](), {"sketch_back_mma": wrong | {"UNITS": 4}}
            )


# ---- few columns: one launch


FEW_SPECS = {
    "no side a multiple of anything": lambda **k: HashSpec((33, 785), 1 / 2, (17, 1), (17, 100), **k),
    "windows that begin anywhere": lambda **k: HashSpec((70, 130), 1 / 2, (16, 1), (32, 48), 5, **k),
    "cut strips, windows that begin anywhere": lambda **k: HashSpec((100, 99), 1 / 2, (20, 1), (40, 33), 3, **k),
    "a strip higher than the matrix": lambda **k: HashSpec((7, 50), 1.0, (16, 1), **k),
    "one high strip": lambda **k: HashSpec((5000, 40), 1 / 8, (5000, 1), None, 100, **k),
    "overlapping windows": SPECS["overlapping windows"],
    "cut at the right and at the bottom": SPECS["cut at the right and at the bottom"],
}


@pytest.fixture
def shapes(monkeypatch):
    """Launches of sketch_few take the shapes in this list, one after the other and again, and any if there are none."""
    chosen = []
    best = sketch._few

    def few(*args):
        values, shape = best(*args)
        if chosen:
            shape = chosen.pop(0)
            chosen.append(shape)
        return values, shape

    monkeypatch.setattr(sketch, "_few", few)
    return chosen


def few_shapes(spec, n, dtype, where):
    """The first and the last that there are; one panel at a time, 32 lanes a bin."""
    values = SKETCH["sketch_few"].values(n)
    first, *_, last = 2 * sketch.few_shapes(spec, dtype, values, shared_limit(where))
    return [first, last, last._replace(many=1, shift=5)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FEW_SPECS)
@pytest.mark.parametrize("place", PLACES)
def test_few_columns_take_one_launch(place, name, dtype, nan_memory, shapes):
    at, where = Place(place), "emulator" if place == "emulator" else 0
    for i, (n, order) in enumerate(((1, "C"), (2, "F"), (3, "C"), (3, "F"), (8, "C"), (8, "F"))):
        spec = FEW_SPECS[name](seed=3 + i, hash=HASHES[i % 3])
        w, x, _ = operands(spec, n, dtype)
        expected = reference.matmul(w.astype(np.float64), x.astype(np.float64), spec)
        shapes[:] = few_shapes(spec, n, dtype, where)
        for shape in tuple(shapes):
            y = at.array(np.full((spec.rows, n), np.nan, dtype))
            plan = sketch.plan_few(at.array(w), at.array(x, order), y, spec)
            (one,) = plan.steps
            assert isinstance(one, launch.Launch) and one.kernel.name == "sketch_few" and one.grid == (shape.blocks,)
            plan.run()
            first = at.back(y).copy()
            check(first, expected, dtype, f"{spec}, n = {n}, {dtype}, {order}, {shape}")
            y.fill(np.nan)
            plan.run()
            np.testing.assert_array_equal(at.back(y), first)


@needs_emulator
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["no side a multiple of anything", "cut at the right and at the bottom"])
def test_the_launch_for_few_columns_is_free_of_races(name, dtype, shapes):
    for n, order in ((1, "C"), (3, "F"), (8, "C")):
        spec = FEW_SPECS[name](seed=1)
        w, x, gy = operands(spec, n, dtype)
        shapes[:] = few_shapes(spec, n, dtype, "emulator")[1:]
        for _ in tuple(shapes):
            (one,) = sketch.plan_few(w, np.asarray(x, order=order), np.full_like(gy, np.nan), spec).launches()
            report = emulator.check(*one[:4], shared_mem=one.shared_mem)
            assert report.ok, f"{spec}, n = {n}, {order}: {report}"


def test_parameters_decide_whether_few_columns_take_one_launch():
    spec = SPECS["strips of 16"]()
    w, x, gy = operands(spec, 8, "float32")

    def names(parameters):
        return [one.kernel.name for one in sketch.plan_matmul(w, x, gy, spec, parameters).launches()]

    assert names(None) == names({"sketch_few": {"WARPS": 4}, "sketch_sum": {}}) == ["sketch_few"]
    assert names({"sketch_sum": {"WARPS": 4}}) == ["sketch_sum", "sketch_multiply"]
    refused = (({"TILE_COLS": 4}, "at least n = 8"), ({"TILE_COLS": 16}, "1, 2, 4 or 8"), ({"WARPS": 32}, "at most 16"))
    for wrong, message in refused:
        with pytest.raises(ValueError, match=message):
            names({"sketch_few": wrong})


@pytest.mark.parametrize(
    "spec, message",
    [
        (HashSpec.elementwise((40, 30), 1 / 2), r"strips \(blocks one input wide"),
        (HashSpec((32, 20000), 1 / 64, (16, 1)), "panels of at most 16383 inputs.*has 20000"),
        (HashSpec((64, 16000), 1 / 2, (16, 1)), "panels that fit in [0-9]+ bytes"),
    ],
)
def test_a_spec_that_is_not_one_launch(spec, message):
    assert re.match(message, sketch.why_few_not(spec, "float32", shared_limit("emulator")))
    assert not sketch.takes_few("matmul", spec, 1, "float32", shared_limit("emulator"))


# ---- what is derived from the hash


def selected(spec, dtype, where):
    """(strip, panel column, bin, input, sign) of everything in the lists, sorted."""
    starts, entries = (a if where == "emulator" else a.get() for a in sketch.lists(spec, dtype, where))
    g = sketch.geometry(spec)
    found = []
    for strip, c in np.ndindex(g.strips, g.across):
        start, width = starts[strip, c].astype(int), min(g.width, spec.cols - c * g.width)
        for k in range(len(start) - 1):
            if dtype == "float32":  # sketch.cuh: a list a bin
                codes = entries[strip, c, sketch.GROUP * start[k] : sketch.GROUP * start[k + 1]].astype(int)
                inputs, bins, most = codes & 0x3FFF, np.full(len(codes), k), g.width
                last = codes & 0x4000 != 0
                assert len(last) == 0 or (last[-1] and not last[:-1].any())
                assert (inputs <= most).all()
            else:  # sketch_groups.cu: a list for 16 bins
                codes = entries[strip, c, 16 * start[k] : 16 * start[k + 1]].astype(int)
                inputs, bins = codes & 0x7FF, 16 * k + (codes >> 11 & 15)
                assert (inputs % 8 == np.arange(len(codes)) % 8).all()
                assert ((inputs < width) | (inputs >= -(-g.width // 8) * 8)).all()
            real = inputs < width
            signs = np.where(codes & 0x8000, -1, 1)
            found += [
                (int(strip), int(c), int(b), c * g.width + int(j), int(s))
                for b, j, s in zip(bins[real], inputs[real], signs[real], strict=True)
            ]
    return sorted(found)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("place", PLACES)
def test_lists_name_every_input_once_in_its_bin(place, dtype):
    for (name, make), hash in itertools.product(SPECS.items(), HASHES):
        spec = make(seed=11, hash=hash)
        g = sketch.geometry(spec)
        bucket, sign = spec.indices()
        expected = []
        for strip, j in np.ndindex(g.strips, spec.cols):
            row, c = strip * g.height, j // g.width
            panel_row = row // (spec.panel or spec.shape)[0]
            start = spec.panel_slices()[panel_row * g.across + c][0]
            bin = (int(bucket[row, j]) - start) // spec.unit
            expected.append((int(strip), c, bin, j, int(sign[row, j])))
        where = "emulator" if place == "emulator" else 0
        assert selected(spec, dtype, where) == sorted(expected), name


@needs_emulator
def test_a_layer_keeps_what_was_derived_for_it():
    spec = SPECS["strips of 16"](seed=100)
    layer = HashedLinear(spec, seed=0, kernel="sketch")
    assert layer.derived_bytes == 0
    layer.forward(np.ones((3, 130), np.float32))
    lists = sketch.lists(spec, "float32", "emulator")
    assert layer.derived_bytes == sum(a.nbytes for a in lists) > 0

    def use_others():
        for seed in range(launch.RECENT):
            sketch.lists(HashSpec((16, 8), 1.0, (16, 1), seed=seed), "float32", "emulator")
        assert (spec, "emulator") not in launch._recent

    use_others()
    assert sketch.lists(spec, "float32", "emulator") is lists, "the layer holds them"
    use_others()
    del layer
    assert launch.derived(spec, "emulator") is None, "nobody does"


@needs_emulator
def test_what_is_derived_is_never_saved(tmp_path):
    options = {"height": 16, "panel": (32, 64), "small_layers": None, "compression": 1 / 2}
    models = [MLP([40, 32, 16], kernel=kernel, **options) for kernel in ("sketch", "auto")]
    x = np.random.default_rng(0).standard_normal((5, 40), np.float32)
    logits = [model.forward(x) for model in models]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    assert models[0].derived_bytes == sum(linear.derived_bytes for linear in models[0].linears) > 0
    assert models[1].derived_bytes in (0, models[0].derived_bytes)  # its specs are the same: what is there is shared
    assert models[0].stored_bytes == models[1].stored_bytes
    paths = [tmp_path / name for name in ("sketch.safetensors", "auto.safetensors")]
    for path, model in zip(paths, models, strict=True):
        save_model(path, model)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert set(models[0].state()) == {f"{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}
    assert load_model(paths[0]).linears[0]._derived is None


# ---- memory, and what it cannot do


@needs_emulator
def test_memory_is_as_it_is_said(monkeypatch):
    """`hashedmm doctor --explain` works out what a call allocates; here are the arrays."""
    for name, dtype, n, workspace in itertools.product(SPECS, TOLERANCE, (8, 9, 300), (sketch.WORKSPACE, 1)):
        monkeypatch.setattr(sketch, "WORKSPACE", workspace)
        spec = SPECS[name](seed=2)
        lists = []
        for operation in OPERATIONS:
            made = sketch.lists(spec, "float32" if (operation, n) == ("matmul", 8) else dtype, "emulator")
            assert explain.derived_bytes("sketch", operation, spec, n, dtype) == sum(a.nbytes for a in made)
            lists += made
        assert sketch.lists_bytes(spec, dtype, "emulator") >= sum({id(a): a.nbytes for a in lists}.values())
        w, x, gy = operands(spec, n, dtype)
        y, gx, gw = np.zeros_like(gy), np.zeros_like(x), np.zeros(spec.n_buckets, np.float32)
        for operation, plan, given in (
            ("matmul", matmul.plan_matmul(w, x, y, spec, "sketch"), (w, x, y)),
            ("grad_x", matmul.plan_grad_x(w, gy, gx, spec, "sketch"), (w, gy, gx)),
            ("grad_w", matmul.plan_grad_w(x, gy, gw, spec, "sketch"), (x, gy, gw)),
        ):
            arrays = {id(a): a for one in plan.launches() for a in one.args if isinstance(a, np.ndarray) and a.ndim}
            own = [a for a in arrays.values() if not any(a is b for b in (*given, *lists))]
            made = sum(a.nbytes for a in own if not any(np.shares_memory(a, b) for b in given))
            assert made == explain.workspace_bytes("sketch", operation, spec, n, dtype), (name, operation, n, dtype)


@pytest.mark.parametrize(
    "spec, dtype, message",
    [
        (HashSpec.elementwise((40, 30), 1 / 2), "float32", r"strips \(blocks one input wide.*block is \(1, 1\)"),
        (HashSpec.tiles((40, 30), 1 / 2), "float32", r"strips \(blocks one input wide.*block is \(16, 16\)"),
        (HashSpec((40, 30), 1 / 2, (20, 1)), "float16", "strips whose.*multiples of 8.*20 and 20"),
        (HashSpec((40, 30), 1 / 2, (16, 1), None, 2), "float32", "strips whose.*multiples of 4.*16 and 2"),
        (HashSpec((32, 4000), 1 / 2, (16, 1)), "float16", "panels of at most [0-9]+ inputs.*has 4000"),
    ],
)
def test_a_spec_it_cannot_compute(spec, dtype, message):
    w, x, gy = operands(spec, 2, dtype)
    for call in (
        lambda: hashed_matmul(w, x, spec, kernel="sketch"),
        lambda: hashed_matmul_grad_x(w, gy, spec, kernel="sketch"),
        lambda: hashed_matmul_grad_w(x, gy, spec, kernel="sketch"),
    ):
        with pytest.raises(
            ValueError, match=f"kernel 'sketch' computes {message}.*These do: reference, cpu_decompress"
        ):
            call()
    assert sketch.why_not(spec, dtype, shared_limit("emulator")) is not None
    assert not matmul.KERNELS["sketch"].supports(spec, dtype)


def test_dtypes_it_cannot_compute():
    spec = SPECS["strips of 16"]()
    w, x, _ = operands(spec, 2, "float64")
    with pytest.raises(TypeError, match="'sketch' computes float16 and float32, got arrays of float64"):
        hashed_matmul(w, x, spec, kernel="sketch")
    assert not matmul.KERNELS["sketch"].supports(spec, "float64")
