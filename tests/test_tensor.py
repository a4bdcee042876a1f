"""The kernels that multiply by tensor cores: float16, strips; the same cases emulated and on a GPU."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from test_kernels import PLACES, Place, agree, nan_outputs, needs_emulator, run_case  # noqa: F401

from hashedmm import HashSpec, build, emulator, hashed_matmul, hashed_matmul_grad_x, matmul, reference
from hashedmm.hashing import HASHES
from hashedmm.kernels import CUDA, EMULATED_SHARED, TensorKernel, check_values

NAMES = [name for name, kernel in CUDA.items() if isinstance(kernel, TensorKernel)]
COLUMNS = (1, 3, 8, 9, 65, 100, 136, 261)
SHAPES = [(1, 40), (7, 40), (17, 33), (33, 17), (129, 785), (300, 70), (785, 129)]


def specs(hash, seed):
    """For every shape: strips in panels, a stride that is no multiple of 16, tall strips, one panel."""
    for shape in SHAPES:
        for make in (
            lambda shape, c, **k: HashSpec(shape, c, (16, 1), (64, 200), None, **k),
            lambda shape, c, **k: HashSpec(shape, c, (32, 1), (96, 24), 8, **k),  # panels narrower than the pipeline
            lambda shape, c, **k: HashSpec(shape, c, (48, 1), (144, 70), 16, **k),
            lambda shape, c, **k: HashSpec(shape, c, (16, 1), None, None, **k),
        ):
            for compression in (1 / 8, 0.3, 1.0):
                try:
                    yield make(shape, compression, hash=hash, seed=seed)
                    break
                except ValueError:  # panels or blocks too large for so few buckets
                    continue


def plan(name, w, x, gy, spec, parameters=None):
    """The launch of a kernel, and its output, not yet written."""
    if name == "tensor":
        out = np.full((spec.rows, x.shape[1]), np.nan, np.float16)
        return matmul.plan_matmul(w, x, out, spec, name, parameters), out
    if name == "tensor_grad_x":
        out = np.full((spec.cols, gy.shape[1]), np.nan, np.float16)
        return matmul.plan_grad_x(w, gy, out, spec, name, parameters), out
    out = np.zeros(spec.n_buckets, np.float32)
    return matmul.plan_grad_w(x, gy, out, spec, name, parameters), out


def operands(spec, n, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (spec.n_buckets, (spec.cols, n), (spec.rows, n))
    return [rng.standard_normal(shape).astype(np.float16) for shape in shapes]


def compare(name, out, w, x, gy, spec):
    w64, x64, gy64 = (a.astype(np.float64) for a in (w, x, gy))
    dense = reference.materialise(w64, spec)
    if name == "tensor":
        agree(out, dense @ x64, np.abs(dense) @ np.abs(x64), "float16", spec.cols, name)
    elif name == "tensor_grad_x":
        agree(out, dense.T @ gy64, np.abs(dense.T) @ np.abs(gy64), "float16", spec.rows, name)
    else:
        bucket = spec.indices()[0].ravel()
        sizes = np.bincount(bucket, (np.abs(gy64) @ np.abs(x64).T).ravel(), spec.n_buckets)
        terms = x.shape[1] * np.bincount(bucket).max()
        agree(out, reference.matmul_grad_w(x64, gy64, spec), sizes, "float32", terms, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_agrees_with_the_reference(place, name, nan_outputs):  # noqa: F811
    hashes, columns = itertools.cycle(HASHES), itertools.cycle(COLUMNS)
    orders = itertools.cycle(itertools.product("CF", "CF"))
    cases = 0
    for spec in specs("fmix32", 5):
        spec = replace(spec, hash=next(hashes), seed=cases)
        assert CUDA[name].supports(spec, "float16")
        run_case(Place(place), name, spec, next(columns), "float16", *next(orders), cases)
        cases += 1
    assert cases >= 4 * (len(SHAPES) - 2)


OTHER = [
    {"STAGES": 3},
    {"TILE_COLS": 256, "GROUP_COLS": 128, "STAGES": 2},
    {"COPIES": 1},
    {"TILE_COLS": 256, "GROUP_COLS": 256, "COPIES": 4, "STAGES": 5},
    {"TILE_COLS": 128, "GROUP_ROWS": 128, "GROUP_COLS": 128},
    {"TILE_ROWS": 64, "TILE_COLS": 128, "GROUP_COLS": 64},
    {"TILE_COLS": 32, "GROUP_COLS": 32},
    {"STAGES": 5, "DEPTH": 64},
    {"TILE_ROWS": 64, "TILE_COLS": 96, "WARP_ROWS": 16, "WARP_COLS": 48},
    {"TILE_ROWS": 32, "TILE_COLS": 256, "WARP_ROWS": 32, "WARP_COLS": 128},
    {"SPAN": 2},
]


@pytest.mark.parametrize("parameters", OTHER, ids=str)
@pytest.mark.parametrize("name", NAMES)
@needs_emulator
def test_tile_sizes_do_not_change_the_result(name, parameters):
    if not parameters.keys() <= CUDA[name].parameters.keys():
        pytest.skip("it has no such parameter")
    for spec in list(specs("fmix32", 5))[16:19]:
        arrays = operands(spec, 72)
        launch, out = plan(name, *arrays, spec, parameters)
        launch.run()
        compare(name, out, *arrays, spec)


@pytest.mark.parametrize("name", NAMES)
@needs_emulator
def test_free_of_races_also_where_nothing_is_aligned(name):
    def moved(a):
        """The same numbers, at an address that is no multiple of 4."""
        out = np.empty(a.size + 3, a.dtype)
        first = next(k for k in range(3) if out[k:].ctypes.data % 4 == 2)
        out[first : first + a.size] = a.ravel()
        return out[first : first + a.size].reshape(a.shape)

    for spec, n in zip(list(specs("fmix32", 5))[16:19], (9, 72, 72), strict=True):
        arrays = operands(spec, n)
        for w, x, gy in (arrays, [moved(a) for a in arrays]):
            launch, out = plan(name, w, x, gy, spec)
            # Sums of floats come in any order, so that their last bits differ.
            report = emulator.check(
                *launch[:4], shared_mem=launch.shared_mem, order_dependent=name == "tensor_grad_w", rtol=1e-4
            )
            assert report.ok, str(report)
            launch, out = plan(name, w, x, gy, spec)
            launch.run()
            compare(name, out, w, x, gy, spec)


@pytest.mark.parametrize("place", PLACES)
def test_not_finite_weights_reach_their_outputs_and_no_others(place, nan_outputs):  # noqa: F811
    """Although tiles end in inputs and outputs that the matrix does not have."""
    at = Place(place)
    for spec in specs("fmix32", 42):
        w, x, gy = operands(spec, 9)
        for bucket in (0, spec.n_buckets - 1):
            bad = w.copy()
            bad[bucket] = np.inf
            used = spec.indices()[0] == bucket
            y = at.back(hashed_matmul(at.array(bad), at.array(x), spec, kernel="tensor"))
            gx = at.back(hashed_matmul_grad_x(at.array(bad), at.array(gy), spec, kernel="tensor_grad_x"))
            for out, hit in ((y, used.any(axis=1)), (gx, used.any(axis=0))):
                assert not np.isfinite(out[hit]).any() and np.isfinite(out[~hit]).all()


def test_the_choice_of_copies_and_spans():
    kernel = CUDA["tensor"]
    for compression, copies in ((1 / 64, 8), (1 / 8, 1)):
        spec = HashSpec.strips((8192, 8192), compression, height=16)
        values = kernel.fitted(kernel.values(1024), spec, "float16", EMULATED_SHARED)
        assert values["COPIES"] == copies
        assert kernel.shape(spec, 1024, values, "float16").shared_mem <= EMULATED_SHARED
    small = kernel.fitted(kernel.values(1024), HashSpec.strips((784, 1000), 1 / 64, height=16), "float16", 99 * 1024)
    assert (small["COPIES"], small["STAGES"]) == (1, 2)  # an sm_86
    assert not kernel.supports(spec, "float16", 64 * 1024)  # an sm_75 has no more
    large, small = HashSpec.strips((8192, 8192), 1 / 64, height=16), HashSpec.strips((784, 1000), 1 / 8, height=16)
    grad_w = CUDA["tensor_grad_w"]
    assert [grad_w.fitted(grad_w.values(100), s, "float16", EMULATED_SHARED)["SPAN"] for s in (large, small)] == [4, 1]
    with pytest.raises(ValueError, match="would need .* bytes of shared memory, and a block has 232448"):
        kernel.fitted(kernel.values(1024, {"STAGES": 16}), large, "float16", EMULATED_SHARED)


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("tensor", {"GROUP_ROWS": 48}, "GROUP_ROWS of kernel 'tensor' must be 64 or 128, got 48"),
        ("tensor", {"GROUP_COLS": 96}, "GROUP_COLS .* must be 32, 64, 128 or 256, got 96"),
        ("tensor", {"TILE_ROWS": 256}, "TILE_ROWS .* must be a multiple of GROUP_ROWS = 64 up to 128, got 256"),
        ("tensor", {"TILE_COLS": 128}, "TILE_COLS .* must be a multiple of GROUP_COLS = 256, got 128"),
        ("tensor", {"TILE_COLS": 512}, "TILE_COLS .* must be 32, 64, 128 or 256, got 512"),
        ("tensor", {"STAGES": 1}, "STAGES .* must be from 2 to 16, got 1"),
        ("tensor", {"COPIES": 3}, "COPIES .* must be 1, 2, 4 or 8, got 3"),
        ("tensor", {"GROUP_ROWS": 128}, "sums that a warpgroup .* at most 16384, got 32768"),
        ("tensor", {"GROUP_COLS": 32}, "2048 threads a block"),
        ("tensor_grad_w", {"WARP_ROWS": 48}, "WARP_ROWS of kernel 'tensor_grad_w' must be 16, 32, 64 or 128, got 48"),
        ("tensor_grad_w", {"WARP_COLS": 40}, "WARP_COLS .* must be a multiple of 16, got 40"),
        ("tensor_grad_w", {"TILE_COLS": 48}, "TILE_COLS .* must be a multiple of WARP_COLS = 32, got 48"),
        ("tensor_grad_w", {"DEPTH": 16}, "DEPTH .* must be a multiple of 32, got 16"),
        ("tensor_grad_w", {"STAGES": 2}, "STAGES .* must be from 3 to 16, got 2"),
        ("tensor_grad_w", {"WARP_COLS": 128}, "sums that a warp .* at most 4096, got 8192"),
    ],
)
def test_bad_parameters(name, values, message):
    with pytest.raises(ValueError, match=message):
        check_values(CUDA[name], {**CUDA[name].parameters, **values})


def test_tensor_reaches_wgmma_by_way_of_a_header():
    assert build._includes(CUDA["tensor"].source, "warpgroup.cuh")
    assert not build._includes(CUDA["strip"].source, "warpgroup.cuh")


def test_specs_that_it_does_not_compute():
    for spec in (
        HashSpec.elementwise((40, 30), 1.0),
        HashSpec.tiles((64, 64), 1.0),
        HashSpec((48, 30), 1.0, (24, 1)),
        HashSpec((48, 30), 1.0, (16, 1), None, 4),
    ):
        w, x = np.ones(spec.n_buckets, np.float16), np.ones((spec.cols, 2), np.float16)
        assert not CUDA["tensor"].supports(spec, "float16")
        with pytest.raises(ValueError, match=r"'tensor' computes strips, .*; not block .*These do: .*naive"):
            hashed_matmul(w, x, spec, kernel="tensor")
    spec = HashSpec.strips((40, 30), 1.0, height=16)
    with pytest.raises(TypeError, match="'tensor' computes float16, got arrays of float32"):
        hashed_matmul(np.ones(spec.n_buckets, np.float32), np.ones((30, 2), np.float32), spec, kernel="tensor")
    spec = HashSpec((2048, 2048), 1 / 8, (16, 1))
    with pytest.raises(ValueError, match="'tensor' keeps the buckets of a panel in shared memory: 1048.* bytes"):
        hashed_matmul(np.ones(spec.n_buckets, np.float16), np.ones((2048, 2), np.float16), spec, kernel="tensor")
