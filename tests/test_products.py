"""The products: the CPU schedules against the reference, gradients against central differences, checks of arguments."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import SHAPES, STRUCTURES, layout, specs, table, weight

from hashedmm import (
    KERNELS,
    HashSpec,
    cpu,
    gpu_available,
    hashed_matmul,
    hashed_matmul_grad_w,
    hashed_matmul_grad_x,
    materialise,
    reference,
)

SPEC = HashSpec.strips((40, 30), 1 / 4, height=16, panel=(32, 16), seed=42)
TOLERANCE = {np.float16: 2e-3, np.float32: 2e-6, np.float64: 1e-14}  # relative, in the Frobenius norm


def operands(spec, n, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(spec.n_buckets).astype(dtype)
    x = rng.standard_normal((spec.cols, n)).astype(dtype)
    gy = rng.standard_normal((spec.rows, n)).astype(dtype)
    return w, x, gy


def check(result, expected, tolerance):
    assert result.shape == expected.shape
    assert np.isfinite(result).all()
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(result - expected) <= tolerance * scale if scale else not result.any()


def check_all(spec, n, kernel, dtype=np.float64):
    w, x, gy = operands(spec, n, dtype=dtype)
    w64, x64, gy64 = (a.astype(np.float64) for a in (w, x, gy))
    tolerance = TOLERANCE[dtype]
    y = hashed_matmul(w, x, spec, kernel=kernel)
    gx = hashed_matmul_grad_x(w, gy, spec, kernel=kernel)
    gw = hashed_matmul_grad_w(x, gy, spec, kernel=kernel)
    assert (y.dtype, gx.dtype) == (dtype, dtype)
    assert gw.dtype == (np.float64 if dtype == np.float64 else np.float32)
    check(y, reference.matmul(w64, x64, spec), tolerance)
    check(gx, reference.matmul_grad_x(w64, gy64, spec), tolerance)
    check(gw, reference.matmul_grad_w(x64, gy64, spec), max(tolerance, 1e-14) if dtype == np.float64 else 2e-6)


# ---- the reference


def test_materialise_is_the_definition():
    for name, make in STRUCTURES.items():
        spec = make((33, 17), 0.5, seed=9)
        w = operands(spec, 1)[0]
        panels = layout(spec)
        dense = reference.materialise(w, spec)
        for i in range(spec.rows):
            for j in range(spec.cols):
                bucket, sign = weight(spec, panels, i, j)
                assert dense[i, j] == sign * w[bucket], name


@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_of_the_reference_are_central_differences(name):
    """loss = sum of sin(W x): its gradients with respect to w and x by the reference and by differences."""
    spec = STRUCTURES[name]((17, 13), 0.6, seed=4)
    w, x, _ = operands(spec, 3, seed=1)

    def loss(w, x):
        return np.sin(reference.matmul(w, x, spec)).sum()

    gy = np.cos(reference.matmul(w, x, spec))
    step = 1e-6
    by_w, by_x = np.empty_like(w), np.empty_like(x)
    for b in range(w.size):
        e = np.zeros_like(w)
        e[b] = step
        by_w[b] = (loss(w + e, x) - loss(w - e, x)) / (2 * step)
    for index in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[index] = step
        by_x[index] = (loss(w, x + e) - loss(w, x - e)) / (2 * step)
    np.testing.assert_allclose(reference.matmul_grad_w(x, gy, spec), by_w, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(reference.matmul_grad_x(w, gy, spec), by_x, rtol=1e-6, atol=1e-7)


# ---- the CPU schedules


@pytest.mark.parametrize("schedule", cpu.SCHEDULES)
@pytest.mark.parametrize("n", [1, 7])
def test_schedules_agree_with_the_reference_on_the_table(schedule, n):
    count = 0
    for _, spec in table():
        if cpu.supports(schedule, spec):
            check_all(spec, n, f"cpu_{schedule}")
            count += 1
    assert count > 50


@settings(max_examples=80, deadline=None)
@given(specs(), st.integers(1, 20), st.sampled_from(cpu.SCHEDULES))
def test_schedules_agree_with_the_reference_at_random(spec, n, schedule):
    check_all(spec, n, f"cpu_{schedule}" if cpu.supports(schedule, spec) else "auto")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", STRUCTURES)
def test_dtypes(name, dtype):
    for shape in SHAPES[3:8]:
        for kernel in ("auto", "reference"):
            try:
                spec = STRUCTURES[name](shape, 0.5, seed=2)
            except ValueError:
                continue
            check_all(spec, 5, kernel, dtype)


def test_large_enough_to_work_in_pieces(monkeypatch):
    """The same numbers, bit for bit, when the buffers force many pieces."""
    made = {name: make((129, 785), 1 / 4, seed=8) for name, make in STRUCTURES.items()}
    for name, spec in made.items():
        w, x, gy = operands(spec, 40)
        for schedule in cpu.SCHEDULES:
            if not cpu.supports(schedule, spec):
                continue
            kernel = f"cpu_{schedule}"
            with monkeypatch.context() as patch:
                patch.setattr(cpu, "BUFFER", 1000)
                patch.setattr(cpu, "SUMS", 3000)
                check(hashed_matmul(w, x, spec, kernel=kernel), reference.matmul(w, x, spec), 1e-14)
                check(hashed_matmul_grad_x(w, gy, spec, kernel=kernel), reference.matmul_grad_x(w, gy, spec), 1e-14)
                check(hashed_matmul_grad_w(x, gy, spec, kernel=kernel), reference.matmul_grad_w(x, gy, spec), 1e-14)
        assert np.array_equal(materialise(w, spec), reference.materialise(w, spec)), name


def test_strided_and_fortran_arrays_are_read_right():
    w, x, gy = operands(SPEC, 6)
    wide = np.zeros((60, 12))
    wide[::2, ::2] = x
    for variant in (np.asfortranarray(x), wide[::2, ::2], x[:, ::-1][:, ::-1]):
        assert np.array_equal(hashed_matmul(w, variant, SPEC), hashed_matmul(w, x, SPEC))
        assert np.array_equal(
            hashed_matmul_grad_w(variant, np.asfortranarray(gy), SPEC), hashed_matmul_grad_w(x, gy, SPEC)
        )
    doubled = np.repeat(w, 2)[::2]
    assert np.array_equal(hashed_matmul(doubled, x, SPEC), hashed_matmul(w, x, SPEC))


def test_arguments_are_not_changed_and_may_be_read_only():
    w, x, gy = operands(SPEC, 3)
    for a in (w, x, gy):
        a.flags.writeable = False
    before = [a.copy() for a in (w, x, gy)]
    hashed_matmul(w, x, SPEC)
    hashed_matmul_grad_x(w, gy, SPEC)
    hashed_matmul_grad_w(x, gy, SPEC)
    materialise(w, SPEC)
    assert all(np.array_equal(a, b) for a, b in zip((w, x, gy), before, strict=True))


def test_no_columns():
    w, x, gy = operands(SPEC, 0, dtype=np.float32)
    assert hashed_matmul(w, x, SPEC).shape == (40, 0)
    assert hashed_matmul_grad_x(w, gy, SPEC).shape == (30, 0)
    gw = hashed_matmul_grad_w(x, gy, SPEC)
    assert gw.shape == (288,) and not gw.any() and gw.dtype == np.float32


def test_float16_sums_in_float32():
    spec = HashSpec.elementwise((1, 4096), 1.0)
    w, x = np.ones(spec.n_buckets, np.float16), np.ones((4096, 1), np.float16)
    x *= spec.indices()[1].T  # every term is +1: summed in float16 the result would stop at 2048
    assert hashed_matmul(w, x, spec)[0, 0] == 4096


def test_not_finite_numbers_come_through():
    """A NaN in a bucket reaches the outputs that use it, and no others."""
    w, x, _ = operands(SPEC, 2)
    w[100] = np.nan
    used = (SPEC.indices()[0] == 100).any(axis=1)
    for name, kernel in KERNELS.items():
        if "matmul" in kernel.operations and "float64" in kernel.dtypes:
            y = hashed_matmul(w, x, SPEC, kernel=name)
            assert np.isnan(y[used]).all() and np.isfinite(y[~used]).all()


def test_the_automatic_choice_knows_when_sums_win():
    assert cpu.choose_schedule(HashSpec.strips((4096, 4096), 1 / 64), 64) == "sketch"
    assert cpu.choose_schedule(HashSpec.strips((1000, 784), 1 / 8), 50) == "sketch"
    assert cpu.choose_schedule(HashSpec.elementwise((1000, 784), 1 / 8), 50) == "decompress"
    assert cpu.choose_schedule(HashSpec.strips((1000, 784), 1 / 2, height=4), 256) == "decompress"


def test_a_product_does_not_allocate_w():
    """NumPy's allocations are traced: their peak stays far below W's 64 MiB. (16384 x 16384 is for the benchmark.)"""
    code = """
import tracemalloc, numpy as np
from hashedmm import HashSpec, hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x
def run(make, side):
    spec = make((side, side), 1 / 64)
    w, x = np.ones(spec.n_buckets, np.float32), np.ones((side, 8), np.float32)
    hashed_matmul(w, x, spec), hashed_matmul_grad_x(w, x, spec), hashed_matmul_grad_w(x, x, spec)
for make in (HashSpec.strips, HashSpec.elementwise):
    run(make, 512)  # compiles
    tracemalloc.start()
    run(make, 4096)
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    peaks = [int(line) for line in out.split()]
    assert len(peaks) == 2 and max(peaks) < 16 * 2**20, peaks


# ---- checks


W, X, GY = operands(SPEC, 5, dtype=np.float32)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: hashed_matmul(W[:-1], X, SPEC), ValueError, r"w must have shape .*\(288,\).*got \(287,\)"),
        (lambda: hashed_matmul(W[:, None], X, SPEC), ValueError, "w must have shape"),
        (lambda: hashed_matmul(W, X[:-1], SPEC), ValueError, r"shape \(d_in, n\) = \(30, n\).*got \(29, 5\)"),
        (lambda: hashed_matmul(W, X.T, SPEC), ValueError, r"pass x\.T"),
        (lambda: hashed_matmul(W, X[:, 0], SPEC), ValueError, r"x\[:, None\]"),
        (lambda: hashed_matmul(W, X[None], SPEC), ValueError, "x must have shape"),
        (lambda: hashed_matmul(W.astype(np.float64), X, SPEC), TypeError, "share one dtype, got float64 and float32"),
        (lambda: hashed_matmul(W, X.astype(int), SPEC), TypeError, "x must have dtype float16, float32 or float64"),
        (lambda: hashed_matmul(W, X.astype(complex), SPEC), TypeError, "got complex128"),
        (lambda: hashed_matmul(W, X.astype(">f4"), SPEC), TypeError, "got >f4"),
        (lambda: hashed_matmul(W.astype(object), X, SPEC), TypeError, "got object"),
        (lambda: hashed_matmul(W, X.tolist(), SPEC), TypeError, "x must be a NumPy array, got list"),
        (lambda: hashed_matmul(list(W), X, SPEC), TypeError, "w must be a NumPy array, got list"),
        (lambda: hashed_matmul(W, X, SPEC.to_json()), TypeError, "spec must be a HashSpec, got str"),
        (lambda: hashed_matmul(W, X, None), TypeError, "spec must be a HashSpec"),
        (lambda: hashed_matmul(W, X, SPEC, kernel="fast"), ValueError, 'kernel must be "auto" or one of reference'),
        (lambda: hashed_matmul(W, X, SPEC, kernel=None), ValueError, "kernel must be"),
        (lambda: hashed_matmul(W, X, SPEC, kernel=[]), ValueError, "kernel must be"),
        (lambda: hashed_matmul_grad_x(W, X, SPEC), ValueError, r"gy must have shape \(d_out, n\) = \(40, n\)"),
        (lambda: hashed_matmul_grad_x(W, GY.T, SPEC), ValueError, r"pass gy\.T"),
        (lambda: hashed_matmul_grad_w(X, GY[:, 1:], SPEC), ValueError, r"columns.*x \(30, 5\) and gy \(40, 4\)"),
        (lambda: hashed_matmul_grad_w(X, GY.astype(np.float16), SPEC), TypeError, "x and gy must share one dtype"),
        (lambda: hashed_matmul_grad_w(GY, X, SPEC), ValueError, "x must have shape"),
        (lambda: materialise(W[1:], SPEC), ValueError, "w must have shape"),
        (lambda: materialise(W, (40, 30)), TypeError, "spec must be a HashSpec"),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_kernel_that_cannot_compute_a_spec_names_those_that_can():
    spec = HashSpec.elementwise((40, 30), 1 / 4)
    w, x, _ = operands(spec, 2)
    with pytest.raises(ValueError, match="cpu_sketch.*These do: reference, cpu_decompress"):
        hashed_matmul(w, x, spec, kernel="cpu_sketch")


def test_a_gpu_array_is_refused_with_the_way_out():
    array = type("ndarray", (), {"__module__": "cupy"})()
    with pytest.raises(TypeError, match="cupy.asnumpy"):
        hashed_matmul(W, array, SPEC)


def test_the_table_of_kernels_is_complete():
    for name, kernel in KERNELS.items():
        assert kernel.name == name
        assert set(kernel.operations) <= {"matmul", "grad_x", "grad_w"}
        assert kernel.supports(SPEC, kernel.dtypes[0])


def test_gpu_available_never_raises():
    assert gpu_available() in (True, False)
