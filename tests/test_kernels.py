"""The CUDA kernels against the reference, emulated and on a GPU: the same table of odd cases for both.

``pytest tests/test_kernels.py`` runs a table in which every two values of different factors meet; ``--slow`` runs the
full product. On a machine with a GPU the cases marked gpu run there, the others in the emulator.
"""

import itertools
import re
from functools import cache

import numpy as np
import pytest
from specs import SHAPES, STRUCTURES, table

from hashedmm import (
    KERNELS,
    HashSpec,
    emulator,
    hashed_matmul,
    hashed_matmul_grad_w,
    hashed_matmul_grad_x,
    materialise,
    matmul,
    reference,
)
from hashedmm.hashing import HASHES
from hashedmm.kernels import (
    BUILT,
    CUDA,
    LAYOUT,
    MAX_SIDE,
    STEP,
    STRUCTURE,
    WHOLE,
    blocks_per_panel,
    check_values,
    layout,
    structure,
)

needs_emulator = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())
PLACES = [pytest.param("emulator", marks=needs_emulator), pytest.param("gpu", marks=pytest.mark.gpu)]
DTYPES = {"float32": np.float32, "float16": np.float16}
COLUMNS = (1, 2, 7, 17, 33, 65)
# test_tensor.py and test_few_columns.py have the others
ANY = [name for name, kernel in CUDA.items() if kernel.supports(HashSpec.tiles((64, 64), 1 / 4), "float32")]
PRODUCTS = [name for name in ANY if CUDA[name].operations == ("matmul",)]
GRADIENTS = [name for name in ANY if CUDA[name].operations == ("grad_w",)]


# ---- the table


def pairwise(factors, seed=0):
    """Cases in which every two values of different factors meet: greedy, the same in every run."""
    rng = np.random.default_rng(seed)
    sizes = [len(values) for values in factors.values()]
    pairs = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(sizes)), 2)
        for i in range(sizes[a])
        for j in range(sizes[b])
    }

    def met(case):
        return {(a, case[a], b, case[b]) for a, b in itertools.combinations(range(len(sizes)), 2)}

    while pairs:
        a, i, b, j = min(pairs)
        best, most = None, set()
        for _ in range(20):
            case = [int(rng.integers(n)) for n in sizes]
            case[a], case[b] = i, j
            covered = met(case) & pairs
            if len(covered) > len(most):
                best, most = case, covered
        pairs -= most
        yield tuple(values[k] for values, k in zip(factors.values(), best, strict=True))


FACTORS = {
    "kernel": tuple(ANY),
    "structure": tuple(STRUCTURES),
    "shape": tuple(SHAPES),
    "n": COLUMNS,
    "hash": HASHES,
    "dtype": tuple(DTYPES),
    "order of x": ("C", "F"),
    "order of gy": ("C", "F"),
    "seed": (5, 42),
}
TABLE = list(pairwise(FACTORS))


@cache
def make_spec(structure, shape, hash, seed):
    for compression in (1 / 8, 0.3, 1.0):
        try:
            return STRUCTURES[structure](shape, compression, seed=seed, hash=hash)
        except ValueError:  # panels or blocks too large for so few buckets
            continue
    return HashSpec.elementwise(shape, 1.0, seed=seed, hash=hash)


class Place:
    """Where arrays live: NumPy's, for which CUDA kernels are emulated, or a GPU's."""

    def __init__(self, name):
        self.name = name

    def array(self, a, order="C"):
        a = np.asarray(a, order=order)
        if self.name == "emulator":
            return a
        import cupy

        return cupy.asarray(a, order=order)

    @staticmethod
    def back(a):
        return a if isinstance(a, np.ndarray) else a.get()


@pytest.fixture
def nan_outputs(monkeypatch):
    """Memory for results holds NaN before a kernel runs: what it does not write is seen."""
    empty = matmul.empty

    def filled(like, shape, dtype):
        out = empty(like, shape, dtype)
        out.fill(np.nan)
        return out

    monkeypatch.setattr(matmul, "empty", filled)


def rounding(dtype, terms):
    """Tolerance relative to the sum of the terms' sizes: errors of float32 additions, which grow as a random walk."""
    return 2e-7 * (2 + np.sqrt(terms)), {"float16": 2.0**-11, "float32": 0.0}[dtype]


def agree(result, exact, sizes, dtype, terms, what):
    """Every element to rounding: ``sizes`` are the sums of the terms' absolute values."""
    result = np.asarray(result, np.float64)
    assert result.shape == exact.shape, what
    assert np.isfinite(result).all(), f"{what}: {np.count_nonzero(~np.isfinite(result))} elements are not finite"
    sums, stored = rounding(dtype, terms)
    allowed = sums * sizes + stored * np.abs(exact) + 1e-7
    worst = np.unravel_index(np.argmax(np.abs(result - exact) / allowed), exact.shape)
    assert abs(result[worst] - exact[worst]) <= allowed[worst], (
        f"{what}: at {tuple(map(int, worst))} expected {exact[worst]}, got {result[worst]}"
    )


def run_case(place, kernel, spec, n, dtype, order_x="C", order_gy="C", seed=0, parameters=None):
    """Run one kernel on unequal random numbers and compare with the reference in float64."""
    rng = np.random.default_rng(seed)
    w, x, gy = (
        rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in (spec.n_buckets, (spec.cols, n), (spec.rows, n))
    )
    w64, x64, gy64 = (a.astype(np.float64) for a in (w, x, gy))
    dense = reference.materialise(w64, spec)
    at_w, at_x, at_gy = place.array(w), place.array(x, order_x), place.array(gy, order_gy)
    what = f"{kernel}, {spec}, n = {n}, {dtype}, x {order_x}, gy {order_gy}"
    operation = CUDA[kernel].operations[0]
    if operation == "matmul":
        y = hashed_matmul(at_w, at_x, spec, kernel=kernel)
        agree(place.back(y), dense @ x64, np.abs(dense) @ np.abs(x64), dtype, spec.cols, what)
        assert y.dtype == x.dtype and type(y) is type(at_x)
    elif operation == "grad_x":
        gx = hashed_matmul_grad_x(at_w, at_gy, spec, kernel=kernel)
        agree(place.back(gx), dense.T @ gy64, np.abs(dense.T) @ np.abs(gy64), dtype, spec.rows, what)
        assert gx.dtype == gy.dtype
    elif operation == "grad_w":
        gw = hashed_matmul_grad_w(at_x, at_gy, spec, kernel=kernel)
        bucket = spec.indices()[0].ravel()
        sizes = np.bincount(bucket, (np.abs(gy64) @ np.abs(x64).T).ravel(), spec.n_buckets)
        terms = n * np.bincount(bucket).max()
        agree(place.back(gw), reference.matmul_grad_w(x64, gy64, spec), sizes, "float32", terms, what)
        assert gw.dtype == np.float32
    else:
        out = matmul.empty(at_w, spec.shape, w.dtype)
        matmul.plan_materialise(at_w, out, spec, parameters).run()
        np.testing.assert_array_equal(place.back(out), dense, err_msg=what)


@pytest.mark.parametrize("kernel", ANY)
@pytest.mark.parametrize("place", PLACES)
def test_kernels_agree_with_the_reference(place, kernel, nan_outputs):
    cases = [case for case in TABLE if case[0] == kernel]
    assert len(cases) >= len(SHAPES)
    for _, name, shape, n, hash, dtype, order_x, order_gy, seed in cases:
        spec = make_spec(name, shape, hash, seed)
        run_case(Place(place), kernel, spec, n, dtype, order_x, order_gy, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("kernel", ANY)
@pytest.mark.parametrize("place", PLACES)
def test_kernels_agree_with_the_reference_in_every_combination(place, kernel, name, nan_outputs):
    columns, seeds = itertools.cycle(COLUMNS), itertools.cycle((5, 42))
    for shape, hash, dtype in itertools.product(SHAPES, HASHES, DTYPES):
        spec = make_spec(name, shape, hash, next(seeds))
        n = next(columns)
        for order_x, order_gy in itertools.product("CF", "CF"):
            run_case(Place(place), kernel, spec, n, dtype, order_x, order_gy, seed=n)


def test_the_table_pairs_every_two_values():
    names = list(FACTORS)
    for a, b in itertools.combinations(range(len(names)), 2):
        wanted = set(itertools.product(FACTORS[names[a]], FACTORS[names[b]]))
        assert {(case[a], case[b]) for case in TABLE} == wanted, (names[a], names[b])
    assert len(TABLE) < 160


def test_agree_sees_what_is_wrong():
    exact = np.ones((3, 2))
    agree(exact + 1e-7, exact, exact, "float32", 9, "rounding")
    for wrong in (exact + 1e-4, np.full((3, 2), np.nan), np.zeros((3, 2))):
        with pytest.raises(AssertionError):
            agree(wrong, exact, exact, "float32", 9, "wrong")


OTHER_TILES = [
    ("naive", {"THREADS": 96}),
    ("shared", {"TILE": 8}),
    ("grad_x", {"TILE": 16}),
    ("register_tile", {"TILE_ROWS": 24, "TILE_COLS": 16, "DEPTH": 5, "THREAD_ROWS": 3, "THREAD_COLS": 2}),
    ("panel", {"TILE_ROWS": 16, "TILE_COLS": 8, "DEPTH": 8, "THREAD_ROWS": 2, "THREAD_COLS": 1, "PARTS": 4}),
    ("grad_w", {"TILE_ROWS": 32, "TILE_COLS": 16, "DEPTH": 4, "THREAD_ROWS": 2, "THREAD_COLS": 4}),
    ("materialise", {"THREADS": 64, "RUN": 3}),
    ("materialise", {"THREADS": 32, "RUN": 40}),
    ("few_rows", {"TILE_ROWS": 6, "TILE_COLS": 4, "WARPS": 3, "EACH": 2}),
]


@pytest.mark.parametrize("kernel, parameters", OTHER_TILES, ids=[name for name, _ in OTHER_TILES])
@pytest.mark.parametrize("place", PLACES)
def test_tile_sizes_do_not_change_the_result(place, kernel, parameters, monkeypatch, nan_outputs):
    """Half of a choice is enough: the other sizes stay."""
    plans = {"matmul": "plan_matmul", "grad_x": "plan_grad_x", "grad_w": "plan_grad_w"}
    operation = CUDA[kernel].operations[0]
    if operation in plans:
        plan = getattr(matmul, plans[operation])
        monkeypatch.setattr(matmul, plans[operation], lambda *a, **k: plan(*a, parameters, **k))
    spec = make_spec("strips", (129, 785), "fmix32", 5)
    run_case(Place(place), kernel, spec, 33, "float32", parameters=parameters)


@pytest.mark.parametrize("place", PLACES)
def test_not_finite_weights_reach_their_outputs_and_no_others(place, nan_outputs):
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal(SPEC.n_buckets).astype(np.float32), rng.standard_normal((30, 5)).astype(np.float32)
    w[100] = np.nan
    used = (SPEC.indices()[0] == 100).any(axis=1)
    at = Place(place)
    for kernel in PRODUCTS:
        y = at.back(hashed_matmul(at.array(w), at.array(x), SPEC, kernel=kernel))
        assert np.isnan(y[used]).all() and np.isfinite(y[~used]).all(), kernel


@pytest.mark.parametrize("place", PLACES)
def test_a_panel_slice_over_48_kib_is_asked_for(place, nan_outputs):
    spec = HashSpec.elementwise((200, 300), 1 / 2, seed=3)
    assert 100_000 < CUDA["panel"].slice_bytes(spec, "float32") < 150_000
    for n in (1, 5, 17):
        run_case(Place(place), "panel", spec, n, "float32")
    bytes_left = 227 * 1024 - CUDA["panel"].static(CUDA["panel"].values(8))  # its largest tiles
    largest = HashSpec((1, bytes_left // 4), 1.0)
    assert CUDA["panel"].supports(largest)
    if place == "emulator":
        run_case(Place(place), "panel", largest, 8, "float32")
    assert not CUDA["panel"].supports(HashSpec((1, bytes_left // 4 + 1), 1.0))


@pytest.mark.parametrize("name", STRUCTURES)
@needs_emulator
def test_gradients_are_central_differences(name):
    """Of the loss sum(gy * (W x)), which is linear in w and in x: its differences, in float64, by the reference."""
    spec = STRUCTURES[name]((17, 13), 0.6, seed=4)
    rng = np.random.default_rng(1)
    w, x, gy = rng.standard_normal(spec.n_buckets), rng.standard_normal((13, 3)), rng.standard_normal((17, 3))

    def by_differences(of, at):
        out = np.empty_like(at)
        for index in np.ndindex(at.shape):
            step = np.zeros_like(at)
            step[index] = 1e-3
            out[index] = (of(at + step) - of(at - step)) / 2e-3
        return out

    by_w = by_differences(lambda w: (gy * reference.matmul(w, x, spec)).sum(), w)
    by_x = by_differences(lambda x: (gy * reference.matmul(w, x, spec)).sum(), x)
    np.testing.assert_allclose(reference.matmul_grad_w(x, gy, spec), by_w, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(reference.matmul_grad_x(w, gy, spec), by_x, rtol=1e-9, atol=1e-9)
    w32, x32, gy32 = (a.astype(np.float32) for a in (w, x, gy))
    np.testing.assert_allclose(hashed_matmul_grad_x(w32, gy32, spec, kernel="grad_x"), by_x, rtol=1e-5, atol=1e-5)
    for kernel in GRADIENTS:
        np.testing.assert_allclose(
            hashed_matmul_grad_w(x32, gy32, spec, kernel=kernel), by_w, rtol=1e-5, atol=1e-5, err_msg=kernel
        )


# ---- grad_w_fixed: the same bits in any order, and no garbage


def gradient(place, x, gy, spec):
    return Place.back(hashed_matmul_grad_w(place.array(x), place.array(gy), spec, kernel="grad_w_fixed"))


def gradient_operands(spec, n, dtype=np.float32, scale=1.0):
    rng = np.random.default_rng(7)
    return ((scale * rng.standard_normal((rows, n))).astype(dtype) for rows in (spec.cols, spec.rows))


@needs_emulator
def test_grad_w_fixed_does_not_depend_on_the_order_of_threads():
    spec = make_spec("elementwise", (127, 65), "fmix32", 5)
    x, gy = gradient_operands(spec, 7)
    small = {"TILE_ROWS": 32, "TILE_COLS": 32, "DEPTH": 8, "THREAD_ROWS": 2, "THREAD_COLS": 2}
    for kernel, same in (("grad_w_fixed", True), ("grad_w", False)):
        out = matmul.zeros(x, spec.n_buckets, np.float32)
        fixed = matmul.fixed_arrays(x, gy, spec) if same else None
        launch = matmul.plan_grad_w(x, gy, out, spec, kernel, small, fixed=fixed)
        assert emulator.check(*launch[:4], seeds=4).ok == same, (
            "the sums of floats depend on it, those of integers do not"
        )


@pytest.mark.gpu
def test_grad_w_fixed_gives_the_same_bits_on_a_gpu():
    spec = HashSpec.elementwise((500, 700), 1 / 64, seed=5)
    x, gy = gradient_operands(spec, 100)
    first = gradient(Place("gpu"), x, gy, spec)
    for _ in range(20):
        np.testing.assert_array_equal(gradient(Place("gpu"), x, gy, spec), first)
    # The emulator rounds a product and a sum apart where a GPU fuses them.
    np.testing.assert_allclose(gradient(Place("emulator"), x, gy, spec), first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e12, 1e16])
@pytest.mark.parametrize("place", PLACES)
def test_grad_w_fixed_is_accurate_at_any_scale(place, scale):
    spec = make_spec("panels", (33, 17), "fmix32", 5)
    x, gy = gradient_operands(spec, 9, scale=scale)
    gy = (gy / np.float32(scale)).astype(np.float32)
    exact = reference.matmul_grad_w(x.astype(np.float64), gy.astype(np.float64), spec)
    error = np.abs(gradient(Place(place), x, gy, spec) - exact).max() / np.abs(exact).max()
    assert error < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", PLACES)
def test_grad_w_fixed_answers_not_finite_with_nan(place, bad):
    spec = make_spec("strips", (33, 17), "fmix32", 5)
    for which in (0, 1):
        operands = list(gradient_operands(spec, 9))
        operands[which][3, 4] = bad
        assert np.isnan(gradient(Place(place), *operands, spec)).all()
    x, gy = gradient_operands(spec, 9)
    assert np.isnan(
        gradient(Place(place), x * np.float32(1e20), gy * np.float32(1e20), spec)
    ).all()  # products overflow
    assert not gradient(Place(place), np.zeros_like(x), gy, spec).any()


def test_the_fixed_point_scale_cannot_overflow():
    spec = HashSpec.elementwise((64, 64), 1e-9)  # one bucket, used by all weights
    assert spec.n_buckets == 1 and blocks_per_panel(spec) == 4096
    x = gy = np.full((64, 8), 3.0, np.float32)
    scale = matmul.fixed_arrays(x, gy, spec)[0][0]
    assert 2**60 < scale * 4096 * 8 * 9 <= 2**62
    assert np.log2(scale) % 1 == 0


# ---- every kernel is free of races, and writes nothing else


@pytest.mark.parametrize("kernel", ANY)
@needs_emulator
def test_the_emulator_finds_no_fault(kernel):
    spec = make_spec("blocks in panels", (40, 30), "fmix32", 5)
    rng = np.random.default_rng(3)
    w, x, gy = (rng.standard_normal(s).astype(np.float32) for s in (spec.n_buckets, (spec.cols, 5), (spec.rows, 5)))
    if kernel in PRODUCTS:
        launch = matmul.plan_matmul(w, x, np.empty((40, 5), np.float32), spec, kernel)
    elif kernel == "grad_x":
        launch = matmul.plan_grad_x(w, gy, np.empty((30, 5), np.float32), spec)
    elif kernel == "materialise":
        launch = matmul.plan_materialise(w, np.empty(spec.shape, np.float32), spec)
    else:
        fixed = matmul.fixed_arrays(x, gy, spec) if kernel == "grad_w_fixed" else None
        launch = matmul.plan_grad_w(x, gy, np.zeros(spec.n_buckets, np.float32), spec, kernel, fixed=fixed)
    report = emulator.check(*launch[:4], shared_mem=launch.shared_mem, order_dependent=kernel == "grad_w", rtol=1e-5)
    assert report.ok, str(report)


# ---- the layout


def test_the_layout_leads_to_the_buckets():
    """hash.cuh's way from (i, j) to a bucket, in Python from the struct's fields alone."""
    for name, spec in table(compressions=(1.0, 0.3), hashes=("fmix32",)):
        at = layout(spec)
        assert at.dtype == LAYOUT and at.shape == () and LAYOUT.itemsize == 136
        i, j = np.indices(spec.shape)
        h = spec.hash_blocks(i // at["block_rows"], j // at["block_cols"]).astype(np.uint64)
        r = 0 * i if at["panel_rows"] == WHOLE else i // at["panel_rows"]
        c = 0 * j if at["panel_cols"] == WHOLE else j // at["panel_cols"]
        lower, narrower = (r == at["full_rows"]).astype(int), (c == at["full_cols"]).astype(int)
        base = r * at["row_buckets"] + c * at["buckets"][lower, 0]
        t = (h * at["candidates"][lower, narrower] >> np.uint64(32)).astype(np.int64)
        inside = j % at["block_cols"] * at["block_rows"] + i % at["block_rows"]
        np.testing.assert_array_equal(base + t * at["stride"] + inside, spec.indices()[0], err_msg=f"{name} {spec}")


def test_the_layout_of_sides_past_31_bits():
    spec = HashSpec((2**31 - 1, 1), 1.0, block=(2**31, 1))
    assert int(layout(spec)["block_rows"]) == WHOLE and int(layout(spec)["candidates"][1, 1]) == 1
    assert structure(HashSpec((4, 4), 1.0, panel=(2**40, 2))) == dict(
        zip(STRUCTURE, (0, 1, 1, 1, WHOLE, 2), strict=True)
    )


def test_the_header_lists_the_same_fields():
    text = (CUDA["naive"].path.parent / "hash.cuh").read_text(encoding="utf-8")
    struct = re.sub(r"//.*", "", text[text.index("struct Layout {") + 15 : text.index("};")])
    c_types = {"i8": "long long", "u8": "unsigned long long", "u4": "unsigned", "i4": "int"}
    fields = []
    for declaration in struct.split(";")[:-1]:
        c_type, names = re.fullmatch(r"\s*((?:unsigned |long |int )+|unsigned )(.+)", declaration).groups()
        fields += [(re.match(r"\w+", name.strip())[0], c_type.strip(), "[2][2]" in name) for name in names.split(",")]
    assert fields == [(n, c_types[LAYOUT[n].base.str[1:]], LAYOUT[n].shape == (2, 2)) for n in LAYOUT.names]


# ---- launches and choices


def test_grids_stay_within_what_cuda_allows():
    spec = HashSpec((MAX_SIDE, MAX_SIDE), 2**-40, panel=(2**20, 2**20))
    refused = set()
    for kernel in CUDA.values():
        values = kernel.values(1)
        try:
            shape = kernel.shape(spec, 1, values, "float32")
        except ValueError as e:
            assert "a grid has at most 2147483647" in str(e)
            refused.add(kernel.name)
        else:
            assert len(shape.grid) == 1 and 2**21 < shape.grid[0] < 2**31
    assert refused == {"materialise", "grad_w", "grad_w_fixed", "tensor_grad_w"}  # they visit every weight once


@pytest.mark.parametrize(
    "kernel, values, error, message",
    [
        ("shared", {"TILES": 16}, ValueError, "no parameter 'TILES'; it has TILE"),
        ("shared", {"TILE": 64}, ValueError, "4096 threads a block, and a GPU has at most 1024"),
        ("shared", {"TILE": 0}, ValueError, "from 1 to 1024, got 0"),
        ("shared", {"TILE": 16.0}, TypeError, "must be an integer, got 16.0"),
        ("shared", {"TILE": True}, TypeError, "must be an integer, got True"),
        ("shared", {}, ValueError, "needs a value for TILE"),
        ("register_tile", {"THREAD_ROWS": 5}, ValueError, "THREAD_ROWS .* must divide TILE_ROWS = 64, got 5"),
        ("register_tile", {"THREAD_ROWS": 16, "THREAD_COLS": 16}, ValueError, "at most 64, got 256"),
        ("register_tile", {"DEPTH": 256}, ValueError, "bytes of static shared memory"),
        ("panel", {"PARTS": 3, "DEPTH": 15}, ValueError, "power of two up to 32"),
        ("panel", {"PARTS": 32}, ValueError, "must divide DEPTH"),
        ("few_rows", {"TILE_COLS": 12}, ValueError, "a power of two up to 32 and TILE_ROWS at most 64, got 12 and 16"),
    ],
)
def test_bad_parameters(kernel, values, error, message):
    complete = {**CUDA[kernel].parameters, **values} if values else values
    with pytest.raises(error, match=message):
        check_values(CUDA[kernel], complete)


W, X, GY = (np.ones(s, np.float32) for s in (288, (30, 5), (40, 5)))
SPEC = HashSpec.strips((40, 30), 1 / 4, height=16, panel=(32, 16), seed=42)
WIDE = HashSpec.elementwise((1000, 1000), 1 / 4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: hashed_matmul(W, X, SPEC, kernel="grad_x"), ValueError, "computes grad_x, not matmul. These do: ref"),
        (lambda: hashed_matmul_grad_x(W, GY, SPEC, kernel="naive"), ValueError, "These do: .*cpu_sketch, grad_x"),
        (lambda: hashed_matmul(W, X, SPEC, kernel="materialise"), ValueError, "kernel must be"),
        (
            lambda: hashed_matmul(W.astype(np.float64), X.astype(np.float64), SPEC, kernel="naive"),
            TypeError,
            "'naive' computes float16 and float32, got arrays of float64.*astype",
        ),
        (
            lambda: hashed_matmul(
                np.ones(WIDE.n_buckets, np.float32), np.ones((1000, 1), np.float32), WIDE, kernel="panel"
            ),
            ValueError,
            r"1000000 bytes for panel None.*These do: .*register_tile.*\. Or make a spec whose panels own at most",
        ),
    ],
)
def test_bad_choices(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_registry_is_complete():
    assert {path.stem for path in CUDA["naive"].path.parent.glob("*.cu")} == set(BUILT)
    assert CUDA.keys() | STEP.keys() <= BUILT.keys()
    for name, kernel in CUDA.items():
        assert kernel.name == name and kernel.file == f"kernels/{name}.cu" and kernel.least_arch in ("sm_75", "sm_80")
        assert 'extern "C" __global__ void' in kernel.source and f" {name}(" in kernel.source
        kernel.values(1)
        assert (name in KERNELS) == (name != "materialise")


@needs_emulator
def test_no_columns_and_odd_views():
    for name in PRODUCTS:
        assert hashed_matmul(W, X[:, :0], SPEC, kernel=name).shape == (40, 0)
    assert hashed_matmul_grad_x(W, GY[:, :0], SPEC, kernel="grad_x").shape == (30, 0)
    for name in GRADIENTS:
        gw = hashed_matmul_grad_w(X[:, :0], GY[:, :0], SPEC, kernel=name)
        assert gw.dtype == np.float32 and not gw.any()
    rng = np.random.default_rng(0)
    w, x = (
        rng.standard_normal(2 * 288).astype(np.float32)[::2],
        rng.standard_normal((60, 10)).astype(np.float32)[::2, ::-2],
    )
    np.testing.assert_array_equal(
        hashed_matmul(w, x, SPEC, kernel="shared"), hashed_matmul(w.copy(), x.copy(), SPEC, kernel="shared")
    )


@needs_emulator
def test_x_is_not_copied():
    """A transposed X goes to the kernel as it is; only its strides are exchanged."""
    for x in (X, np.asfortranarray(X), np.ones((1, 5), np.float32), np.ones((5, 1), np.float32)):
        same, down, across = matmul._matrix(x)
        assert same is x or np.shares_memory(same, x)
        assert down * (x.shape[0] - 1) + across * (x.shape[1] - 1) == x.size - 1


@pytest.mark.gpu
def test_on_a_gpu():
    """What "auto" takes, what comes back, and arrays that do not go together."""
    import cupy

    rng = np.random.default_rng(0)
    for spec in (SPEC, WIDE):
        w, x, gy = (rng.standard_normal(s).astype(np.float32) for s in (spec.n_buckets, (spec.cols, 3), (spec.rows, 3)))
        on_gpu = [cupy.asarray(a) for a in (w, x, gy)]
        y = hashed_matmul(on_gpu[0], on_gpu[1], spec)
        assert isinstance(y, cupy.ndarray) and y.flags.c_contiguous
        np.testing.assert_allclose(y.get(), hashed_matmul(w, x, spec), rtol=1e-4, atol=1e-3)
        gx, gw = hashed_matmul_grad_x(on_gpu[0], on_gpu[2], spec), hashed_matmul_grad_w(on_gpu[1], on_gpu[2], spec)
        np.testing.assert_allclose(gx.get(), hashed_matmul_grad_x(w, gy, spec), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(gw.get(), hashed_matmul_grad_w(x, gy, spec), rtol=1e-4, atol=1e-3)
        np.testing.assert_array_equal(materialise(on_gpu[0], spec).get(), materialise(w, spec))
    with pytest.raises(TypeError, match="cupy.asarray"):
        hashed_matmul(w, on_gpu[1], WIDE)
    with pytest.raises(TypeError, match="float16 or float32 on a GPU"):
        hashed_matmul(on_gpu[0].astype(np.float64), on_gpu[1], WIDE)
    with pytest.raises(ValueError, match="computes on the CPU"):
        hashed_matmul(*on_gpu[:2], WIDE, kernel="cpu_decompress")
