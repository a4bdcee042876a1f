"""Building and calling kernels: options, the cache, and errors in Python for everything that CuPy would let pass."""

import numpy as np
import pytest

from hashedmm import build, emulator
from hashedmm.build import CompileError, RawKernel, check_arguments, check_launch, explain, kernel, options, signature
from hashedmm.hashing import HashSpec
from hashedmm.kernels import CUDA, structure

needs_emulator = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())
PLACES = [pytest.param("emulator", marks=needs_emulator), pytest.param("gpu", marks=pytest.mark.gpu)]
TWICE = r"""
#define REAL float
/* a comment, with a comma and a kernel: __global__ void other(int* p) */
extern "C" __global__ void __launch_bounds__(256) twice(
    const REAL* __restrict__ x, REAL* y,  // from, to
    const int n, float factor, unsigned long long big, struct Some thing) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
"""
SIMPLE = r"""
extern "C" __global__ void simple(const float* x, WEIGHT* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = factor * x[i];
}
"""


def test_signature():
    assert [tuple(p) for p in signature(TWICE, "twice")] == [
        ("x", "const float*", True, np.float32),
        ("y", "float*", True, np.float32),
        ("n", "int", False, np.int32),
        ("factor", "float", False, np.float32),
        ("big", "unsigned long long", False, np.uint64),
        ("thing", "Some", False, None),
    ]
    assert [p.dtype for p in signature(SIMPLE, "simple", ("-DWEIGHT=__half",))][:2] == [np.float32, np.float16]
    assert signature(SIMPLE, "simple")[1].dtype is None  # WEIGHT is not known: not checked
    assert signature(TWICE, "other") is None


@pytest.mark.parametrize("name", CUDA)
def test_the_signatures_of_the_package_are_understood(name):
    for c_type, dtype in (("float", np.float32), ("__half", np.float16)):
        parameters = signature(CUDA[name].source, name, (f"-DWEIGHT={c_type}",))
        assert parameters[0][:3] == ("layout", "Layout", False)
        assert all(p.dtype is not None for p in parameters[1:])
        assert dtype in [p.dtype for p in parameters if p.pointer]


class Flags:
    def __init__(self, contiguous):
        self.c_contiguous, self.f_contiguous = contiguous, False


def cupy_array(dtype=np.float32, contiguous=True):
    """What the checks look at in an array of CuPy's, without CuPy."""
    made = type("ndarray", (), {"__module__": "cupy"})()
    made.dtype, made.shape, made.strides, made.flags = np.dtype(dtype), (4, 2), (8, 4), Flags(contiguous)
    return made


GOOD = [cupy_array(), cupy_array(), np.int32(8), np.float32(2), np.uint64(1), np.zeros((), "i4,f4")]


@pytest.mark.parametrize(
    "position, value, error, message",
    [
        (
            0,
            cupy_array(np.float64),
            TypeError,
            r"argument 0 \(x\) is const float\*: expected an array of float32, got f",
        ),
        (0, np.ones(8, np.float32), TypeError, "got a NumPy array.*cupy.asarray"),
        (0, [1.0], TypeError, "a pointer, got .*list"),
        (1, cupy_array(contiguous=False), ValueError, r"argument 1 \(y\).*contiguous.*cupy.ascontiguousarray"),
        (2, 8, TypeError, r"argument 2 \(n\) is int, got the Python int 8, .* as a long long.*write np.int32\(8\)"),
        (2, np.int64(8), TypeError, r"got int64: write np.int32\(8\)"),
        (2, cupy_array(np.int32), TypeError, "got .*ndarray: write np.int32"),
        (3, 2.0, TypeError, r"got the Python float 2.0, .* as a double.*write np.float32\(2.0\)"),
        (3, True, TypeError, "got the Python bool True"),
        (3, np.float64(2), TypeError, "got float64"),
        (4, np.int64(1), TypeError, "got int64: write np.uint64"),
    ],
)
def test_bad_arguments_on_a_gpu(position, value, error, message):
    parameters = signature(TWICE, "twice")
    check_arguments("twice", parameters, GOOD)
    args = [value if k == position else good for k, good in enumerate(GOOD)]
    with pytest.raises(error, match=message):
        check_arguments("twice", parameters, args)


def test_bad_numbers_of_arguments_on_a_gpu():
    with pytest.raises(TypeError, match=r"takes 6 arguments \(const float\* x, float\* y, int n.*got 5"):
        check_arguments("twice", signature(TWICE, "twice"), GOOD[:5])
    with pytest.raises(TypeError, match="args must be a tuple"):
        check_arguments("twice", signature(TWICE, "twice"), GOOD[0])
    check_arguments("made by a macro", None, GOOD)
    with pytest.raises(TypeError, match="Python float"):
        check_arguments("made by a macro", None, [*GOOD, 1.0])


LAUNCHES = [
    ((1,), (2048,), ValueError, "2048 threads, and a block has at most 1024"),
    ((1,), (64, 64), ValueError, "4096 threads"),
    ((0,), (32,), ValueError, "grid.x must be from 1 to 2147483647, got 0"),
    ((1, 70000), (32,), ValueError, "grid.y must be from 1 to 65535, got 70000"),
    ((1,), (1, 1, 65), ValueError, "block.z must be from 1 to 64"),
    (1, (32,), TypeError, "grid must be a tuple of one to three ints, got 1"),
    ((1,), (), TypeError, "block must be a tuple of one to three ints"),
    ((1.5,), (32,), TypeError, "grid.x must be an int, got 1.5"),
]


@pytest.mark.parametrize("grid, block, error, message", LAUNCHES)
def test_bad_launches_on_a_gpu(grid, block, error, message):
    with pytest.raises(error, match=message):
        check_launch("twice", grid, block)


@pytest.mark.parametrize("grid, block, error, message", LAUNCHES)
@needs_emulator
def test_the_emulator_refuses_the_same_launches_in_the_same_words(grid, block, error, message):
    x = np.ones(8, np.float32)
    simple = emulator.RawKernel(SIMPLE, "simple", ("-DWEIGHT=float",))
    with pytest.raises(error, match=message):
        simple(grid, block, (x, x.copy(), np.float32(2), np.int32(8)))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({2: 2.0}, TypeError, r"argument 2 \(factor\) is float, got the Python float 2.0.*np.float32\(2.0\)"),
        ({3: 8}, TypeError, r"argument 3 \(n\) is int, got the Python int 8.*np.int32\(8\)"),
        ({0: "float64"}, TypeError, r"argument 0 \(x\) is const float\*: expected an array of float32, got float64"),
        ({1: "view"}, ValueError, r"argument 1 \(y\).*contiguous"),
    ],
)
@pytest.mark.parametrize("place", PLACES)
def test_bad_launches_of_raw_kernels(place, change, error, message):
    """The same words in the emulator and on a GPU."""
    if place == "gpu":
        import cupy as xp

        simple = RawKernel(SIMPLE, "simple", ("-DWEIGHT=float",))
    else:
        xp, simple = np, emulator.RawKernel(SIMPLE, "simple", ("-DWEIGHT=float",))
    args = [xp.arange(8, dtype=xp.float32), xp.zeros(8, xp.float32), np.float32(2), np.int32(8)]
    simple((1,), (32,), tuple(args))
    assert float(args[1].sum()) == 56
    for position, value in change.items():
        args[position] = {"float64": xp.zeros(8), "view": xp.zeros(16, xp.float32)[::2]}.get(value, value)
    with pytest.raises(error, match=message):
        simple((1,), (32,), tuple(args))
    with pytest.raises(TypeError, match="takes 4 arguments"):
        simple((1,), (32,), tuple(args[:3]))


SHARED = 'extern "C" __global__ void much(float* y) { extern __shared__ float s[]; s[threadIdx.x] = 1; y[0] = s[0]; }'


@pytest.mark.parametrize("place", PLACES)
def test_shared_memory_has_to_be_asked_for(place):
    if place == "gpu":
        import cupy as xp

        much = RawKernel(SHARED, "much")
    else:
        xp, much = np, emulator.RawKernel(SHARED, "much")
    y = xp.zeros(1, xp.float32)
    with pytest.raises(ValueError, match="max_dynamic_shared_size_bytes = 60000"):
        much((1,), (1,), (y,), shared_mem=60000)
    much.max_dynamic_shared_size_bytes = 60000
    much((1,), (1,), (y,), shared_mem=60000)
    assert float(y[0]) == 1
    with pytest.raises(ValueError, match="max_dynamic_shared_size_bytes must be from 0 to"):
        much.max_dynamic_shared_size_bytes = 10**6


@pytest.mark.parametrize("place", PLACES)
def test_compile_errors_show_the_line(place):
    make = RawKernel if place == "gpu" else emulator.RawKernel
    with pytest.raises(CompileError, match=r"simple\.cu:4: error: (?s:.)*y\[i\] = factr \* x\[i\];"):
        make(SIMPLE.replace("= factor", "= factr"), "simple", ("-DWEIGHT=float",)).compile()


@pytest.mark.parametrize("make", [build.CheckedRawKernel, emulator.RawKernel])
def test_a_name_that_is_not_in_the_code(make):
    with pytest.raises(ValueError, match="name must be .*, got 'simpel'; the code has: simple"):
        make(SIMPLE, "simpel")


def test_a_log_of_nvrtc_is_explained():
    log = (
        'twice.cu(8): error: identifier "factr" is undefined\n      if (i < n) y[i] = factr * x[i];\n'
        "hash.cuh(10): error: expected a type\n"
        '1 error detected in the compilation of "twice.cu".\n'
    )
    text = explain(log, TWICE.replace("factor *", "factr *"), "twice")
    assert 'twice.cu:8: error: identifier "factr" is undefined' in text
    assert "     8 |     if (i < n) y[i] = factr * x[i];" in text
    assert "hash.cuh:10: error: expected a type" in text
    assert explain("nvrtc: error: failed to open libnvrtc-builtins", TWICE, "twice").endswith("builtins")


# ---- the package's kernels

COMPLETE = {"TILE": 16, "WEIGHT": "float"}


def test_options_are_ordered_and_complete():
    spec = HashSpec.strips((40, 30), 1 / 4, height=16, panel=(32, 16))
    assert options("shared", COMPLETE) == ("-DTILE=16", "-DWEIGHT=float")
    assert options("shared", {**structure(spec), **COMPLETE}) == (
        "-DBLOCK_COLS=1", "-DBLOCK_ROWS=16", "-DHASH=0", "-DPANEL_COLS=16", "-DPANEL_ROWS=32", "-DSTRIDE=16",
        "-DTILE=16", "-DWEIGHT=float",
    )  # fmt: skip
    assert options("naive", {"THREADS": 128, "WEIGHT": "__half"}) == ("-DWEIGHT=__half",)


@pytest.mark.parametrize(
    "name, parameters, error, message",
    [
        ("shard", COMPLETE, ValueError, "kernel must be one of naive, coalesced, shared.*got 'shard'"),
        ("shared", {**COMPLETE, "TILES": 1}, ValueError, "no parameter 'TILES'"),
        ("shared", {**COMPLETE, "TILE": 100}, ValueError, "10000 threads"),
        ("shared", {**COMPLETE, "TILE": "16"}, TypeError, "TILE .* must be an integer, got '16'"),
        ("shared", {"TILE": 16}, ValueError, "WEIGHT must be float or __half, got None"),
        ("shared", {**COMPLETE, "WEIGHT": "double"}, ValueError, "WEIGHT must be float or __half, got 'double'"),
        ("shared", {**COMPLETE, "HASH": 0}, ValueError, "give all of HASH, BLOCK_ROWS.* or none, got HASH"),
    ],
)
def test_bad_options(name, parameters, error, message):
    """Before anything is compiled: no compiler is needed."""
    with pytest.raises(error, match=message):
        options(name, parameters)
    with pytest.raises(error, match=message):
        kernel(name, parameters, "emulator")


@needs_emulator
def test_a_kernel_is_built_once():
    first = kernel("shared", COMPLETE, "emulator")
    assert kernel("shared", dict(reversed(COMPLETE.items())), "emulator") is first
    assert kernel("shared", {**COMPLETE, "TILE": 8}, "emulator") is not first
    assert first.name == "shared"


@pytest.mark.gpu
def test_a_kernel_is_built_once_on_a_gpu():
    first = kernel("shared", COMPLETE)
    assert kernel("shared", COMPLETE, 0) is first and first.attributes["num_regs"] > 0
    assert build.shared_limit() >= 64 * 1024


@needs_emulator
def test_raw_kernel_without_a_gpu_is_emulated(monkeypatch):
    monkeypatch.setattr(build, "gpu_available", lambda: False)
    code = '#include "weight.cuh"\nextern "C" __global__ void one(float* y) { put(y, to_float(*y) + 1); }'
    y = np.zeros(1, np.float32)
    RawKernel(code, "one")((1,), (1,), (y,))  # the kernels' folder is on the include path
    assert y[0] == 1
    with pytest.raises(TypeError, match="tuple of strings"):
        RawKernel(code, "one", "-DWEIGHT=float")
