"""Streams: the same products from buckets that stay in host memory or in a file, under a budget of bytes."""

import gc
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import specs

from hashedmm import (
    KERNELS,
    SGD,
    Adam,
    HashSpec,
    emulator,
    hashed_matmul,
    hashed_matmul_grad_w,
    hashed_matmul_grad_x,
    reference,
    sketch,
    stream,
)
from hashedmm.kernels import CUDA
from hashedmm.stream import Streamed, part_of, plan_stream

FUNCTIONS = {"matmul": hashed_matmul, "grad_x": hashed_matmul_grad_x, "grad_w": hashed_matmul_grad_w}
SPECS = {  # all with a last row and a last column of panels that are cut off
    "strips": HashSpec.strips((140, 110), 1 / 4, height=16, panel=(32, 40), seed=3),
    "overlapping": HashSpec.strips((140, 110), 1 / 4, height=16, panel=(64, 40), stride=8, seed=3),
    "panels": HashSpec.panels((50, 75), 1 / 4, (16, 16), seed=3, hash="xxh32"),
    "tiles": HashSpec((60, 70), 1 / 4, (3, 2), (9, 8), 2, seed=3),
}
AMPLE = 1e9
emulated = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())


def numbers(rng, spec, n, dtype):
    """Buckets, x and gy."""
    sizes = spec.n_buckets, (spec.cols, n), (spec.rows, n)
    return [rng.standard_normal(size).astype(dtype) for size in sizes]


def arguments(operation, x, gy):
    return {"matmul": (x,), "grad_x": (gy,), "grad_w": (x, gy)}[operation]


def in_memory(operation, w, x, gy, spec, kernel="auto"):
    buckets = () if operation == "grad_w" else (w,)
    return FUNCTIONS[operation](*buckets, *arguments(operation, x, gy), spec, kernel=kernel)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- parts


@settings(max_examples=60)
@given(spec=specs(), data=st.data())
def test_parts_are_the_buckets_of_windows(spec, data):
    ranges = []
    for count in spec.panel_grid:
        start = data.draw(st.integers(0, count - 1))
        ranges.append((start, data.draw(st.integers(start + 1, count))))
    window = spec.window(*ranges)
    part, w = part_of(window), np.arange(float(spec.n_buckets))
    assert part.size == window.n_buckets and len(part.pieces) <= 2
    own = np.full(part.size + 3, np.nan)
    stream.gather(own, w, part)
    np.testing.assert_array_equal(own[: part.size], np.concatenate([w[a:b] for a, b in window.pieces]))
    back = np.full(spec.n_buckets, -1.0)
    stream.scatter(back, own, part)
    inside = np.concatenate([np.arange(a, b) for a, b in window.pieces])
    np.testing.assert_array_equal(back[inside], w[inside])
    assert (np.delete(back, inside) == -1).all()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("operation", ["matmul", "grad_x", "grad_w", "backward"])
@pytest.mark.parametrize("windows", [1, 2, 5, 1000])
def test_windows_cover_the_matrix(name, operation, windows):
    spec = SPECS[name]
    found = plan_stream(spec, 3, operation=operation, dtype="float32", windows=windows, device="cpu").windows
    by_rows = operation in ("matmul", "grad_w")
    sizes = [w.rows if by_rows else w.cols for w in found]
    assert sum(sizes) == spec.shape[0 if by_rows else 1]
    assert all(w.cols == spec.cols if by_rows else w.rows == spec.rows for w in found)
    assert sum(w.n_buckets for w in found) == spec.n_buckets
    side = spec.panel[0 if by_rows else 1]
    assert min(sizes) >= side  # no kernel sees a matrix smaller than a panel
    assert max(sizes) - min(sizes) < 2 * side and len(found) <= windows


# ---- products


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("n, windows, depth", [(1, 3, 1), (7, 1000, 2), (33, 4, 3)])
def test_products_are_those_in_memory(name, n, windows, depth, rng):
    spec = SPECS[name]
    w, x, gy = numbers(rng, spec, n, np.float64)
    streamed = Streamed(w, spec, budget=AMPLE, windows=windows, depth=depth)
    expected = {
        "matmul": reference.matmul(w, x, spec),
        "grad_x": reference.matmul_grad_x(w, gy, spec),
        "grad_w": reference.matmul_grad_w(x, gy, spec),
    }
    for operation, right in expected.items():
        found = getattr(streamed, operation)(*arguments(operation, x, gy))
        np.testing.assert_allclose(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("source", ["array", "memmap", "path", "read-only"])
def test_buckets_from_anywhere(dtype, source, rng, tmp_path):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 5, dtype)
    path = tmp_path / "w.npy"
    np.save(path, w)
    made = {
        "array": w,
        "memmap": np.lib.format.open_memmap(path, mode="r+"),
        "path": path,
        "read-only": np.lib.format.open_memmap(path, mode="r"),
    }[source]
    close = {"rtol": 1e-2, "atol": 1e-2} if dtype == "float16" else {"rtol": 1e-4, "atol": 1e-4}
    with Streamed(made, spec, budget=AMPLE, windows=3) as streamed:
        for operation in FUNCTIONS:
            found = getattr(streamed, operation)(*arguments(operation, x, gy))
            expected = in_memory(operation, w, x, gy, spec)
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, **close)
    assert same_bits(np.load(path), w)


def test_a_gradient_goes_where_it_is_told(rng, tmp_path):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 5, np.float32)
    out = np.lib.format.open_memmap(tmp_path / "gw.npy", "w+", np.float32, (spec.n_buckets,))
    out[...] = np.nan
    streamed = Streamed(w, spec, budget=AMPLE, windows=3)
    assert streamed.grad_w(x, gy, out) is out
    assert same_bits(Streamed(None, spec, budget=AMPLE, windows=3).grad_w(x, gy), np.asarray(out))
    out.flush()
    np.testing.assert_allclose(np.load(tmp_path / "gw.npy"), hashed_matmul_grad_w(x, gy, spec), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["F", "strided"])
def test_any_order_of_the_arguments(order, rng):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 5, np.float32)
    other = [np.asfortranarray(a) if order == "F" else np.repeat(a, 2, axis=1)[:, ::2] for a in (x, gy)]
    streamed = Streamed(w, spec, budget=AMPLE, windows=3)
    for operation in FUNCTIONS:
        expected = getattr(streamed, operation)(*arguments(operation, x, gy))
        assert same_bits(getattr(streamed, operation)(*arguments(operation, *other)), expected)


def test_no_columns(rng):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 0, np.float32)
    streamed = Streamed(w, spec, budget=AMPLE)
    assert streamed.matmul(x).shape == (140, 0) and streamed.grad_x(gy).shape == (110, 0)
    assert same_bits(streamed.grad_w(x, gy), np.zeros(spec.n_buckets, np.float32))


# ---- bits


DETERMINISTIC = [
    (kernel.name, operation)
    for kernel in KERNELS.values()
    for operation in kernel.operations
    if kernel.deterministic and operation in FUNCTIONS
]


def test_which_kernels_are_deterministic():
    """What adds floats by atomics is not, nor what splits sums by the number of blocks, nor what leaves it to BLAS."""
    never = {name for name, kernel in KERNELS.items() if kernel.deterministic is None}
    assert never == {
        "reference", "cpu_decompress", "cpu_sketch", "grad_w", "tensor_grad_w", "panel_few", "strip",
    }  # fmt: skip
    assert {k.deterministic for k in KERNELS.values()} == {None, 1, sketch.FEW + 1}
    for name in never & CUDA.keys():
        text = CUDA[name].source
        assert "atomicAdd" in text or "split.cuh" in text
    for name in CUDA.keys() - never - {"grad_w_fixed"}:
        assert "atomicAdd" not in CUDA[name].source and "split.cuh" not in CUDA[name].source


@emulated
@pytest.mark.parametrize("kernel, operation", DETERMINISTIC)
@pytest.mark.parametrize("dtype, n", [("float16", 9), ("float32", 10)])
def test_the_bits_of_the_product_in_memory(kernel, operation, dtype, n, rng):
    row = KERNELS[kernel]
    if dtype not in row.dtypes:
        pytest.skip(f"{kernel} computes {row.dtypes} alone")
    for name, spec in SPECS.items():
        if row.supports(spec, dtype) and (name == "strips" or "tensor" not in kernel):  # those are slow in the emulator
            w, x, gy = numbers(rng, spec, n, dtype)
            streamed = Streamed(w, spec, budget=AMPLE, windows=3, kernel={operation: kernel})
            found = getattr(streamed, operation)(*arguments(operation, x, gy))
            assert np.isfinite(found).all() and found.any()
            assert same_bits(found, in_memory(operation, w, x, gy, spec, kernel)), name


@emulated
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_window_takes_the_chunks_of_the_whole(dtype, rng, monkeypatch):
    """A sketch adds gradients chunk by chunk of columns. A window alone would take all columns at once."""
    spec = HashSpec.strips((128, 64), 1 / 4, height=16, panel=(16, 32), seed=3)
    column = 8 * sketch.geometry(spec).all_bins * np.dtype(dtype).itemsize
    monkeypatch.setattr(sketch, "WORKSPACE", 256 * column)
    window = spec.window((0, 2))
    assert sketch.chunk_columns(spec, 320, dtype) == sketch.chunk_columns(window, 320, dtype) == 256
    assert sketch.WORKSPACE // (column // 4) > 320
    w, x, gy = numbers(rng, spec, 320, dtype)
    streamed = Streamed(w, spec, budget=AMPLE, windows=4, kernel="sketch")
    whole = hashed_matmul_grad_w(x, gy, spec, kernel="sketch")
    assert same_bits(streamed.grad_w(x, gy), whole)
    parts = [hashed_matmul_grad_w(x[:, k], gy[:, k], spec, kernel="sketch") for k in np.split(np.arange(320), [256])]
    assert same_bits(parts[0] + parts[1], whole)


@emulated
def test_numbers_that_are_not_finite(rng):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 3, np.float32)
    kernel = {"grad_w": "grad_w_fixed"}
    for a in (x, gy):
        before, a[-1, 1] = a[-1, 1], np.inf
        assert np.isnan(Streamed(w, spec, budget=AMPLE, windows=4, kernel=kernel).grad_w(x, gy)).all()
        a[-1, 1] = before
    x[0, 0] = gy[-1, 0] = 3e38  # finite, and their product is not: in the last window alone
    assert np.isnan(hashed_matmul_grad_w(x, gy, spec, kernel="grad_w_fixed")).all()
    assert np.isnan(Streamed(w, spec, budget=AMPLE, windows=4, kernel=kernel).grad_w(x, gy)).all()


# ---- training


def step_in_memory(w, state, x, gy, spec, optimizer, kernel="auto"):
    """Gradient of x, and the update of w and of the optimiser's state in place."""
    half = w.astype(x.dtype)
    gx = in_memory("grad_x", half, x, gy, spec, kernel if isinstance(kernel, str) else kernel["grad_x"])
    gw = in_memory("grad_w", half, x, gy, spec, kernel if isinstance(kernel, str) else kernel["grad_w"])
    optimizer.steps += 1
    uses = spec.rows * spec.cols / spec.n_buckets
    optimizer._update(w, gw, *state, w.copy(), uses, 1.0)
    return gx


KERNELS_OF_A_STEP = [
    ("float64", "auto", "strips"),
    ("float32", "auto", "tiles"),
    ("float16", "auto", "strips"),
    pytest.param("float16", "sketch", "strips", marks=emulated),
    pytest.param(
        "float32", {"matmul": "shared", "grad_x": "grad_x", "grad_w": "grad_w_fixed"}, "panels", marks=emulated
    ),
]


@pytest.mark.parametrize("make", [lambda: SGD(0.05), lambda: Adam(0.01)], ids=["SGD", "Adam"])
@pytest.mark.parametrize("dtype, kernel, name", KERNELS_OF_A_STEP)
def test_training_steps(dtype, kernel, name, make, rng, tmp_path):
    spec, n = SPECS[name], 11
    w, x, _ = numbers(rng, spec, n, np.float64)
    w = w.astype("float64" if dtype == "float64" else "float32")
    x, target = x.astype(dtype), rng.standard_normal((spec.rows, n)).astype(dtype)
    path = tmp_path / "w.npy"
    np.save(path, w)
    streamed, optimizer, same = Streamed(path, spec, budget=AMPLE, windows=3, kernel=kernel), make(), make()
    state = [np.zeros_like(w) for _ in same.slots]
    for _ in range(3):
        y, gx = streamed.step(x, lambda y: (y - target) / n, optimizer)
        forward = kernel if isinstance(kernel, str) else kernel["matmul"]
        right = in_memory("matmul", w.astype(dtype), x, None, spec, forward)
        gy = (right - target) / n
        right_gx = step_in_memory(w, state, x, gy, spec, same, kernel)
        if kernel == "auto":
            close = {"float16": 2e-2, "float32": 2e-4, "float64": 1e-10}[dtype]
            for a, b in ((y, right), (gx, right_gx), (streamed.w, w)):
                np.testing.assert_allclose(a, b, rtol=close, atol=close)
        else:
            assert same_bits(y, right) and same_bits(gx, right_gx) and same_bits(np.asarray(streamed.w), w)
            assert all(same_bits(a, b) for a, b in zip(streamed.state, state, strict=True))
    assert optimizer.steps == 3 and len(streamed.state) == len(same.slots)
    streamed.w.flush()
    np.testing.assert_array_equal(np.load(path), streamed.w)


def test_a_state_that_goes_on(rng):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 4, np.float32)
    once, twice, optimizer = Streamed(w.copy(), spec, budget=AMPLE), Streamed(w.copy(), spec, budget=AMPLE), SGD(0.1)
    for _ in range(2):
        once.backward(x, gy, optimizer)
    twice.backward(x, gy, optimizer)
    after = Streamed(twice.w, spec, budget=AMPLE, state=twice.state)
    after.backward(x, gy, optimizer)
    assert same_bits(after.w, once.w) and same_bits(after.state[0], once.state[0])
    with pytest.raises(ValueError, match="state has 1 arrays, and Adam remembers 2"):
        after.backward(x, gy, Adam())


# ---- budgets


def peak_of(call):
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE = HashSpec.strips((1024, 900), 1 / 4, height=32, panel=(64, 128), seed=3)
MEASURED = [
    ("float32", 64, "cpu_sketch"),
    ("float16", 64, "cpu_sketch"),
    ("float32", 64, "cpu_decompress"),
    ("float64", 33, "auto"),
    pytest.param("float16", 48, "sketch", marks=emulated),
]


@pytest.mark.parametrize("dtype, n, kernel", MEASURED)
@pytest.mark.parametrize("operation", ["matmul", "grad_x", "grad_w", "backward"])
def test_the_bytes_that_a_plan_predicts_are_taken(dtype, n, kernel, operation, rng):
    w, x, gy = numbers(rng, LARGE, n, dtype)
    stored = "float64" if dtype == "float64" else "float32"
    if operation == "backward":
        w = w.astype(stored)
    device = "emulator" if kernel == "sketch" else "cpu"
    streamed = Streamed(w, LARGE, budget=AMPLE, windows=6, kernel=kernel)
    more = {"grad_w": (np.empty(LARGE.n_buckets, stored),), "backward": (SGD(0.1),)}.get(operation, ())
    taken = {"matmul": (x,), "grad_x": (gy,)}.get(operation, (x, gy))
    call = getattr(streamed, operation)
    if kernel == "sketch" and operation == "grad_w":
        pytest.skip("the way back has it, too, and the emulator takes its time")
    call(*taken, *more)  # what is compiled, and the optimiser's state
    streamed.close()
    predicted = streamed.plan(operation, n, dtype, device=device).device_bytes
    measured = peak_of(lambda: call(*taken, *more)) + sum(a.nbytes for a in taken)
    assert abs(predicted - measured) <= 0.05 * measured + 1e5  # small objects


@pytest.mark.parametrize("operation", ["matmul", "grad_x", "grad_w", "backward"])
@pytest.mark.parametrize("kernel", ["auto", pytest.param("sketch", marks=emulated)])
def test_a_budget_is_kept_or_refused(operation, kernel, rng, monkeypatch):
    spec, n, dtype = SPECS["strips"], 9, np.float32
    w, x, gy = numbers(rng, spec, n, dtype)
    before = w.copy()
    taken = {"matmul": (x,), "grad_x": (gy,)}.get(operation, (x, gy))
    more = (SGD(0.1),) if operation == "backward" else ()
    call = {"budget": 1000, "kernel": kernel}
    with pytest.raises(ValueError, match=f"for {operation} of .* take fewer columns") as caught:
        getattr(Streamed(w, spec, **call), operation)(*taken, *more)
    least = int(str(caught.value).split("at least ")[1].split(" bytes")[0].replace(",", ""))
    call["budget"] = least - 1
    with pytest.raises(ValueError, match="budget must be at least"):
        getattr(Streamed(w, spec, **call), operation)(*taken, *more)
    assert same_bits(w, before) and (not more or more[0].steps == 0)
    tight = Streamed(w, spec, budget=least, kernel=kernel)
    found = getattr(tight, operation)(*taken, *more)
    (plan,) = tight._plans.values()
    assert plan.device_bytes <= least
    assert len(plan.windows) == spec.panel_grid[operation in ("grad_x", "backward")] - 1  # the cut one joins another
    if operation != "backward":
        np.testing.assert_allclose(found, in_memory(operation, w, x, gy, spec), rtol=1e-4, atol=1e-4)


def test_more_budget_means_fewer_windows():
    spec = HashSpec.strips((4096, 4096), 1 / 8, height=64, panel=(64, 512))
    sizes = []
    for budget in (3e6, 6e6, 1e8):
        plan = plan_stream(spec, 16, budget=budget, dtype="float32", device="cpu")
        assert plan.device_bytes <= budget
        sizes.append(len(plan.windows))
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] >= 2
    assert plan_stream(spec, 16, dtype="float32", device="cpu").windows == plan.windows


def test_the_plan_of_a_matrix_that_is_larger_than_the_card():
    """137 GB of weights as float16, 17 GB of buckets: in 8 GB, by windows that keep the GPU busy."""
    spec = HashSpec.strips((262144, 262144), 1 / 8, height=256, panel=(256, 512))
    for operation in ("matmul", "grad_x", "grad_w"):
        plan = plan_stream(spec, 1024, operation=operation, budget=8e9, kernel="sketch", device="emulator")
        assert plan.device_bytes <= 8e9 and len(plan.windows) >= 16
        assert plan.host["buckets"] == 2 * spec.n_buckets > 17e9
        assert min(w.rows * w.cols for w in plan.windows) > 2**30
    assert plan.host["gradient"] == 4 * spec.n_buckets


@emulated
@pytest.mark.parametrize("shape", [(300, 210), (1800, 2100)])
def test_the_lists_are_about_as_long_as_expected(shape):
    spec = HashSpec.strips(shape, 1 / 4, height=16, panel=(16, 210 // 5), seed=3)
    expected = stream.list_bytes(spec, "float16", stream.expected_capacity(spec))
    made = sum(a.nbytes for a in sketch.lists(spec, "float16", "emulator"))
    assert expected == made if shape == (300, 210) else expected == pytest.approx(made, rel=0.15)


@emulated
def test_lists_are_kept_and_let_go(rng, monkeypatch):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 9, np.float16)
    made = []
    derive = sketch._derive
    monkeypatch.setattr(sketch, "_derive", lambda *a: made.append(a[1]) or derive(*a))
    streamed = Streamed(w, spec, budget=AMPLE, windows=3, kernel="sketch")
    streamed.matmul(x)
    assert len(made) == 2 * 3  # measured, then written
    streamed.matmul(x)
    streamed.grad_w(x, gy)  # of the same windows
    streamed.grad_x(gy)  # needs none
    assert len(made) == 2 * 3
    windows = next(iter(streamed._plans.values())).windows
    assert all(stream.derived(window, "emulator") for window in windows)
    streamed.close()
    gc.collect()
    assert not any(stream.derived(window, "emulator") for window in windows)


@emulated
def test_lists_that_are_longer_than_expected(rng, monkeypatch):
    spec = HashSpec.strips((160, 110), 1 / 4, height=16, panel=(32, 40), seed=3)
    w, x, _ = numbers(rng, spec, 9, np.float16)
    right = stream.expected_capacity(spec)
    budget = plan_stream(spec, 9, kernel="sketch", windows=2, device="emulator").device_bytes - 1
    monkeypatch.setattr(stream, "expected_capacity", lambda spec: right // 4)
    optimistic = plan_stream(spec, 9, kernel="sketch", budget=budget, device="emulator")
    streamed = Streamed(w, spec, budget=budget, kernel="sketch")
    assert same_bits(streamed.matmul(x), hashed_matmul(w, x, spec, kernel="sketch"))
    (plan,) = streamed._plans.values()
    assert plan.device_bytes <= budget and (len(optimistic.windows), len(plan.windows)) == (2, 3)


# ---- what goes wrong


def test_bad_arguments(rng, tmp_path):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 3, np.float32)
    one = HashSpec.elementwise((30, 30), 1 / 4)
    for wrong, error, message in (
        (lambda: Streamed(np.ones(one.n_buckets, np.float32), one, budget=1e9), ValueError, "more than one panel"),
        (lambda: Streamed(w, spec.window((0, 2)), budget=1e9), TypeError, "stream its `whole`"),
        (lambda: Streamed(w, "spec", budget=1e9), TypeError, "spec must be a HashSpec"),
        (lambda: Streamed(w[1:], spec, budget=1e9), ValueError, "w must have shape"),
        (lambda: Streamed(w.astype(int), spec, budget=1e9), TypeError, "w must have dtype float16 or float32 or"),
        (lambda: Streamed(list(w), spec, budget=1e9), TypeError, "w must be a NumPy array or the path"),
        (lambda: Streamed(np.repeat(w, 2)[::2], spec, budget=1e9), ValueError, "w must lie in one run"),
        (lambda: Streamed(tmp_path / "w.bin", spec, budget=1e9), ValueError, r"w must name a \.npy file"),
        (lambda: Streamed(tmp_path / "w.npy", spec, budget=1e9), FileNotFoundError, "w.npy"),
        (lambda: Streamed(w, spec, budget="8 GB"), TypeError, "budget must be a number of bytes"),
        (lambda: Streamed(w, spec, budget=None), TypeError, "budget must be a number of bytes"),
        (lambda: Streamed(w, spec, budget=-1), ValueError, "budget must be a number of bytes above 0"),
        (lambda: Streamed(w, spec, budget=1e9, depth=0), ValueError, "depth must be at least 1"),
        (lambda: Streamed(w, spec, budget=1e9, windows=1.5), TypeError, "windows must be an integer"),
        (lambda: Streamed(w, spec, budget=1e9, kernel="fast"), ValueError, 'kernel must be "auto" or one of'),
        (lambda: Streamed(w, spec, budget=1e9, kernel={"step": "sketch"}), TypeError, "kernel must be a name, or"),
        (lambda: Streamed(w, spec, budget=1e9, state=[w[1:]]), ValueError, r"state\[0\] must have shape"),
        (lambda: Streamed(None, spec, budget=1e9).matmul(x), ValueError, "w is None, which is enough for grad_w alone"),
        (lambda: Streamed(None, spec, budget=1e9).backward(x, gy, SGD(0.1)), ValueError, "w is None"),
        (lambda: plan_stream(spec, 0), ValueError, "n must be at least 1"),
        (lambda: plan_stream(spec, 3, operation="step"), ValueError, "operation must be one of"),
        (lambda: plan_stream(spec, 3, kernel="fast"), ValueError, 'kernel must be "auto" or one of'),
        (lambda: plan_stream(spec, 3, kernel="grad_x", device="emulator"), ValueError, "computes grad_x, not matmul"),
        (lambda: plan_stream(SPECS["panels"], 3, kernel="sketch", device="emulator"), ValueError, "not this spec"),
        (lambda: plan_stream(spec, 3, kernel="naive", device="cpu"), ValueError, "does not run on 'cpu'"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            wrong()
    before = w.copy()
    streamed, optimizer = Streamed(w, spec, budget=1e9), SGD(0.1)
    frozen = before.copy()
    frozen.flags.writeable = False
    mixed = {"grad_x": "grad_x"}
    for wrong, error, message in (
        (lambda: streamed.matmul(x.T), ValueError, "x must have shape"),
        (lambda: streamed.matmul(x.astype(np.float64)), TypeError, "x must have w's dtype"),
        (lambda: streamed.grad_x(x), ValueError, "gy must have shape"),
        (lambda: streamed.grad_w(x, gy[:, 1:]), ValueError, "as many columns"),
        (lambda: streamed.grad_w(x, gy.astype(np.float16)), TypeError, "share one dtype"),
        (lambda: streamed.grad_w(x, gy, np.empty(3, np.float32)), ValueError, "out must have shape"),
        (lambda: streamed.grad_w(x, gy, np.empty(spec.n_buckets)), TypeError, "out must have dtype float32"),
        (lambda: streamed.grad_w(x, gy, frozen), ValueError, "out must be writable"),
        (lambda: streamed.backward(x, gy, "SGD"), TypeError, "optimizer must be"),
        (lambda: Streamed(frozen, spec, budget=1e9).backward(x, gy, optimizer), ValueError, "w must be writable"),
        (lambda: Streamed(w.astype(np.float16), spec, budget=1e9).backward(
            x.astype(np.float16), gy.astype(np.float16), optimizer), TypeError, "w must be float32 to be trained"),
        (lambda: Streamed(w, spec, budget=1e9, kernel="naive").grad_x(gy), ValueError, "computes matmul, not grad_x"),
        (lambda: Streamed(w, spec, budget=1e9, kernel=mixed).backward(x, gy, optimizer), ValueError, "must all be"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            wrong()
    assert same_bits(w, before) and optimizer.steps == 0 and streamed.state is None


def test_pinned_memory_without_a_gpu(monkeypatch):
    monkeypatch.setattr(stream.build, "gpu_available", lambda: False)
    with pytest.raises(ValueError, match="there is none here; take np.empty"):
        stream.pinned_empty(10)
    assert not stream.is_pinned(np.empty(10))


@pytest.mark.parametrize("where", ["work", "read", "write"])
def test_an_error_on_the_way_ends_the_stream(where, rng, monkeypatch):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 3, np.float32)
    calls = []

    def failing(function):
        def call(*a, **k):
            calls.append(1)
            if len(calls) == 3:
                raise OSError("the disk has gone")
            return function(*a, **k)

        return call

    name = {"work": "hashed_matmul_grad_w", "read": "gather", "write": "scatter"}[where]
    monkeypatch.setattr(stream, name, failing(getattr(stream, name)))
    streamed, before = Streamed(w, spec, budget=AMPLE, windows=6), threading.active_count()
    with pytest.raises(OSError, match="the disk has gone"):
        streamed.matmul(x) if where == "read" else streamed.grad_w(x, gy)
    assert threading.active_count() == before


def test_products_and_copies_can_be_left_out(rng):
    spec = SPECS["strips"]
    w, x, gy = numbers(rng, spec, 3, np.float32)
    streamed = Streamed(w, spec, budget=AMPLE, windows=3)
    right, out = streamed.grad_w(x, gy), np.full(spec.n_buckets, 7, np.float32)
    streamed.copies = False
    streamed.grad_w(x, gy, out)
    assert (out == 7).all()
    streamed.copies, streamed.products = True, False
    y = streamed.matmul(x)
    assert y.shape == (140, 3)
    streamed.products = True
    assert same_bits(streamed.grad_w(x, gy, out), right)


# ---- on a GPU


GPU_SPECS = {
    "1/8": (HashSpec.strips((2560, 2100), 1 / 8, height=256, panel=(256, 512), seed=1), 256),
    "1/64, one launch": (HashSpec.strips((8192, 1990), 1 / 64, height=256, panel=(256, 416), stride=24, seed=1), 512),
    "odd": (HashSpec.strips((1300, 1111), 1 / 8, height=128, panel=(128, 200), seed=1), 77),
}


def host_copy(w, source, tmp_path):
    """The same buckets in pinned memory, an ordinary array, or a file."""
    if source == "pinned":
        out = stream.pinned_empty(w.shape, w.dtype)
        assert stream.is_pinned(out) and stream.is_pinned(out[5:]) and not stream.is_pinned(w)
    elif source == "memmap":
        out = np.lib.format.open_memmap(tmp_path / "w.npy", "w+", w.dtype, w.shape)
    else:
        out = np.empty_like(w)
    out[...] = w
    return out


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["pinned", "array", "memmap"])
@pytest.mark.parametrize("name", GPU_SPECS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_bits_in_memory_of_a_gpu(dtype, name, source, rng, tmp_path):
    import cupy

    spec, n = GPU_SPECS[name]
    w, x, gy = numbers(rng, spec, n, dtype)
    w /= np.sqrt(spec.cols).astype(dtype)
    there = [cupy.asarray(a) for a in (w, x, gy)]
    host = host_copy(w, source, tmp_path)
    out = host_copy(np.zeros(spec.n_buckets, np.float32), "pinned" if source == "pinned" else "array", tmp_path)
    with Streamed(host, spec, budget=4e9, windows=5, kernel="sketch") as streamed:
        for operation in FUNCTIONS:
            right = cupy.asnumpy(in_memory(operation, *there, spec, "sketch"))
            for _ in range(2):  # the second time with what is there
                more = (out,) if operation == "grad_w" else ()
                found = getattr(streamed, operation)(*arguments(operation, *there[1:]), *more)
                found = found if operation == "grad_w" else cupy.asnumpy(found)
                assert same_bits(found, right), operation
        stream_of_its_own = cupy.cuda.Stream(non_blocking=True)
        with stream_of_its_own:
            y = streamed.matmul(there[1])
        stream_of_its_own.synchronize()
        assert same_bits(cupy.asnumpy(y), cupy.asnumpy(in_memory("matmul", *there, spec, "sketch")))


@pytest.mark.gpu
@pytest.mark.parametrize("kernel, operation", [k for k in DETERMINISTIC if k[0] != "sketch"])
def test_the_bits_of_every_deterministic_kernel_on_a_gpu(kernel, operation, rng):
    import cupy

    for dtype in KERNELS[kernel].dtypes:
        spec = HashSpec.strips((300, 210), 1 / 4, height=16, panel=(32, 48), seed=3)
        w, x, gy = (cupy.asarray(a) for a in numbers(rng, spec, 33, dtype))
        streamed = Streamed(cupy.asnumpy(w), spec, budget=4e9, windows=4, kernel={operation: kernel})
        found = getattr(streamed, operation)(*arguments(operation, x, gy))
        assert same_bits(cupy.asnumpy(found), cupy.asnumpy(in_memory(operation, w, x, gy, spec, kernel)))


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["pinned", "memmap"])
@pytest.mark.parametrize("make", [lambda: SGD(0.05), lambda: Adam(0.01)], ids=["SGD", "Adam"])
def test_training_steps_on_a_gpu(make, source, rng, tmp_path):
    import cupy

    spec, n = GPU_SPECS["odd"]
    w, x, target = numbers(rng, spec, n, np.float32)
    w /= np.sqrt(spec.cols)
    x, target = (cupy.asarray(a.astype(np.float16)) for a in (x, target))
    streamed = Streamed(host_copy(w, source, tmp_path), spec, budget=4e9, windows=4, kernel="sketch")
    optimizer, same, w = make(), make(), cupy.asarray(w)
    state = [cupy.zeros_like(w) for _ in same.slots]
    for _ in range(3):
        y, gx = streamed.step(x, lambda y: (y - target) / 64, optimizer)
        right = hashed_matmul(w.astype(np.float16), x, spec, kernel="sketch")
        right_gx = step_in_memory(w, state, x, (right - target) / 64, spec, same, "sketch")
        assert same_bits(cupy.asnumpy(y), cupy.asnumpy(right))
        assert same_bits(cupy.asnumpy(gx), cupy.asnumpy(right_gx))
        assert same_bits(np.asarray(streamed.w), cupy.asnumpy(w))
        assert all(same_bits(a, cupy.asnumpy(b)) for a, b in zip(streamed.state, state, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("operation", ["matmul", "grad_x", "grad_w", "backward"])
def test_the_bytes_on_a_gpu(operation, rng):
    import cupy

    spec, n = HashSpec.strips((8192, 8192), 1 / 8, height=256, panel=(256, 512), seed=1), 512
    x, gy = (cupy.ones((8192, n), np.float16) for _ in range(2))
    dtype = np.float32 if operation == "backward" else np.float16
    w = stream.pinned_empty(spec.n_buckets, dtype)
    w[...] = 0.01
    taken = {"matmul": (x,), "grad_x": (gy,)}.get(operation, (x, gy))
    more = (SGD(0.1),) if operation == "backward" else ()
    streamed = Streamed(w, spec, budget=2e9, windows=8, kernel="sketch")
    predicted = streamed.plan(operation, n, np.float16).device_bytes
    for _ in range(2):
        getattr(streamed, operation)(*taken, *more)
        assert streamed.peak_bytes == pytest.approx(predicted, rel=0.1)
    with pytest.raises(ValueError, match="budget must be at least"):
        getattr(Streamed(w, spec, budget=1e7, kernel="sketch"), operation)(*taken, *more)
    tight = Streamed(w, spec, budget=predicted, kernel="sketch")  # its pool would refuse more
    getattr(tight, operation)(*taken, *more)
    assert tight.peak_bytes <= predicted
