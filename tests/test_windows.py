"""Windows: some panels of a matrix as a matrix of their own, with the same weights, in every product and kernel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import specs, table

from hashedmm import KERNELS, HashSpec, hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x, materialise
from hashedmm.hashing import HASHES, Window
from hashedmm.matmul import plan_materialise
from hashedmm.reference import materialise as reference


def windows_of(spec):
    """Windows at the corners, in the middle and as wide or as high as the matrix."""
    down, across = spec.panel_grid
    for rows in {(0, 1), (0, down), (down - 1, down), (down // 2, min(down, down // 2 + 2))}:
        for cols in {(0, 1), (0, across), (across - 1, across), (across // 2, min(across, across // 2 + 2))}:
            yield spec.window(rows, cols)


def buckets_of(window, w):
    return np.concatenate([w[start:stop] for start, stop in window.pieces])


def part_of(window, dense):
    row, col = window.first_row, window.first_col
    return dense[row : row + window.rows, col : col + window.cols]


@pytest.mark.parametrize("hash", HASHES)
def test_a_window_has_the_weights_of_the_whole(hash, rng):
    seen = 0
    for _, spec in table(compressions=(0.3,), hashes=(hash,)):
        w = rng.standard_normal(spec.n_buckets)
        dense = reference(w, spec)
        for window in windows_of(spec):
            own = buckets_of(window, w)
            assert own.size == window.n_buckets
            np.testing.assert_array_equal(reference(own, window), part_of(window, dense))
            np.testing.assert_array_equal(materialise(own, window), part_of(window, dense))  # of cpu.py
            seen += 1
    assert seen > 200


@given(spec=specs(), data=st.data())
def test_any_window_of_any_spec(spec, data):
    ranges = []
    for count in spec.panel_grid:
        start = data.draw(st.integers(0, count - 1))
        ranges.append((start, data.draw(st.integers(start + 1, count))))
    window = spec.window(*ranges)
    w = np.arange(1.0, spec.n_buckets + 1)
    np.testing.assert_array_equal(reference(buckets_of(window, w), window), part_of(window, reference(w, spec)))


def test_windows_cover_every_bucket_once():
    for _, spec in table(compressions=(0.3,), hashes=("fmix32",)):
        down, across = spec.panel_grid
        for windows in (
            [spec.window((r, r + 1)) for r in range(down)],
            [spec.window(None, (c, c + 1)) for c in range(across)],
        ):
            pieces = sorted(piece for window in windows for piece in window.pieces)
            assert pieces[0][0] == 0 and pieces[-1][1] == spec.n_buckets
            assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
            assert sum(window.n_buckets for window in windows) == spec.n_buckets


CASES = {
    "elementwise": (HashSpec.panels((96, 100), 1 / 4, (32, 40), seed=3), 3),
    "strips": (HashSpec.strips((100, 96), 1 / 4, height=16, panel=(32, 40), seed=3), 19),
    "xxh32": (HashSpec.strips((100, 96), 1 / 4, height=16, panel=(32, 40), seed=3, hash="xxh32"), 3),
    "multiply_shift": (HashSpec.strips((100, 96), 1 / 4, height=16, panel=(32, 40), hash="multiply_shift"), 3),
}


@pytest.mark.parametrize(
    ("kernel", "case"),
    [(k, c) for k, row in KERNELS.items() for c, (spec, _) in CASES.items() if row.supports(spec, row.dtypes[0])],
)
def test_every_kernel_computes_windows(kernel, case, rng):
    spec, n = CASES[case]
    window, row = spec.window((1, 3), (1, 2)), KERNELS[kernel]
    dtype = row.dtypes[0]
    w = rng.standard_normal(spec.n_buckets).astype(dtype)
    own = buckets_of(window, w)
    part = part_of(window, reference(w.astype(np.float64), spec))
    x = rng.standard_normal((window.cols, n)).astype(dtype)
    gy = rng.standard_normal((window.rows, n)).astype(dtype)
    close = {"rtol": 2e-2, "atol": 6e-2} if dtype == "float16" else {"rtol": 1e-4, "atol": 1e-4}
    if "matmul" in row.operations:
        np.testing.assert_allclose(hashed_matmul(own, x, window, kernel=kernel), part @ x, **close)
    if "grad_x" in row.operations:
        np.testing.assert_allclose(hashed_matmul_grad_x(own, gy, window, kernel=kernel), part.T @ gy, **close)
    if "grad_w" in row.operations:
        bucket, sign = window.indices()
        dense = gy.astype(np.float64) @ x.astype(np.float64).T
        expected = np.bincount(bucket.ravel(), (dense * sign).ravel(), window.n_buckets)
        np.testing.assert_allclose(hashed_matmul_grad_w(x, gy, window, kernel=kernel), expected, **close)
    if "materialise" in row.operations:
        dense = np.full(window.shape, np.nan, dtype)
        plan_materialise(own, dense, window).run()
        np.testing.assert_array_equal(dense, part)


def test_bad_windows():
    spec = HashSpec.strips((100, 96), 1 / 4, height=16, panel=(32, 40))
    with pytest.raises(ValueError, match="stop of rows must be from 2 to 4, got 5"):
        spec.window((1, 5))
    with pytest.raises(ValueError, match="start of cols must be from 0 to 2, got 3"):
        spec.window(cols=(3, 4))
    with pytest.raises(TypeError, match="pair"):
        spec.window(2)
    with pytest.raises(TypeError, match="window of a window"):
        spec.window((0, 1)).window((0, 1))
    with pytest.raises(TypeError, match="not saved"):
        spec.window((0, 1)).to_json()
    with pytest.raises(TypeError, match="whole must be"):
        Window((4, 4), 0.5)
    assert spec.window() != spec and spec.window() == spec.window()
    assert HashSpec.elementwise((5, 5), 0.5).window().pieces == ((0, 12),)
