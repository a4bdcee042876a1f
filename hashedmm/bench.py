"""Speed and memory, measured against baselines that run in turn.

Every result is verified against a float64 reference first and timed second, so no wrong kernel is ever fast.
``run_cpu`` writes three records: products, training steps, and the peak memory of a product whose W would not fit.
``run_gpu`` writes the CUDA kernels' times against the fastest dense product of cuBLAS, for layers as one would use them
and for the kernel ladder; training; memory; and what the GPU can do at most. Imports build, datasets, emulator,
experiments, hashing, matmul, nn, records, reference and sketch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from hashedmm import cpu, emulator, reference, sketch
from hashedmm.build import current_device, gpu_available, shared_limit
from hashedmm.datasets import Dataset, load_mnist
from hashedmm.experiments import Run, default_options
from hashedmm.hashing import HashSpec
from hashedmm.matmul import (
    KERNELS,
    architecture,
    choose,
    fixed_arrays,
    hashed_matmul,
    hashed_matmul_grad_w,
    hashed_matmul_grad_x,
    materialise,
    plan_grad_w,
    plan_grad_x,
    plan_matmul,
)
from hashedmm.nn import MLP, Adam, softmax_cross_entropy, to_numpy, train
from hashedmm.records import gpu_info, new_record, write

TOLERANCE = 1e-5  # relative error of a float32 product that is accepted: above the rounding of 4096 terms
COMPRESSIONS = (1 / 8, 1 / 64)
Row = dict[str, Any]
LAYERS = (784, 1000, 10)
BATCH = 50
MEMORY_SHAPE = (16384, 16384, 64)
# Side of the square matrix, seconds a product is timed for, training steps in a round, rounds, side in the emulator.
FULL: dict[str, Any] = {"side": 4096, "budget": 1.0, "steps": 200, "rounds": 5, "emulated": 512}
QUICK: dict[str, Any] = {"side": 1024, "budget": 0.1, "steps": 40, "rounds": 3, "emulated": 128}


def measure(functions: dict[str, Callable[[], Any]], *, budget: float, least: int = 7) -> dict[str, list[float]]:
    """Milliseconds of every call, functions taking turns, so that what slows the machine down slows all of them.

    Each is called once untimed; then rounds follow until ``budget`` seconds are spent, but at least ``least`` of them.
    Every round has an order of its own, so that no function always finds the caches as one other leaves them.
    """
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + budget
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name in _shuffled(functions, order):
            start = time.perf_counter()
            functions[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def _shuffled(functions: dict[str, Callable[[], Any]], order: np.random.Generator) -> list[str]:
    names = list(functions)
    return [names[i] for i in order.permutation(len(names))]


def _percentiles(times: Sequence[float]) -> dict[str, float]:
    p20, p80 = np.percentile(times, [20, 80])
    return {"ms": statistics.median(times), "ms_p20": float(p20), "ms_p80": float(p80)}


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """|result - expected| / |expected| in the Frobenius norm; not finite values give infinity."""
    if result.shape != expected.shape or not np.isfinite(result).all():
        return float("inf")
    return float(np.linalg.norm(result - expected) / (np.linalg.norm(expected) or 1.0))


def _verified(what: str, result: np.ndarray, expected: np.ndarray) -> float:
    error = relative_error(result, expected)
    if not error <= TOLERANCE:
        raise ArithmeticError(
            f"{what} is wrong, so it is not timed: its relative error against float64 is {error:.3g}, over {TOLERANCE}"
        )
    return error


def _product(operation: str, spec: HashSpec, n: int, budget: float) -> Row:
    """The timing row of one product against NumPy's on the dense matrix."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(spec.n_buckets, np.float32)
    x = rng.standard_normal((spec.cols, n), np.float32)
    gy = rng.standard_normal((spec.rows, n), np.float32)
    w64, x64, gy64 = (a.astype(np.float64) for a in (w, x, gy))
    dense = materialise(w, spec)
    if operation == "matmul":
        expected = reference.matmul(w64, x64, spec)
        functions = {
            "hashed": lambda: hashed_matmul(w, x, spec),
            "numpy_float32": lambda: dense @ x,
        }
    elif operation == "grad_x":
        expected = reference.matmul_grad_x(w64, gy64, spec)
        functions = {"hashed": lambda: hashed_matmul_grad_x(w, gy, spec), "numpy_float32": lambda: dense.T @ gy}
    else:
        expected = reference.matmul_grad_w(x64, gy64, spec)
        functions = {"hashed": lambda: hashed_matmul_grad_w(x, gy, spec), "numpy_float32": lambda: gy @ x.T}
    error = _verified(f"{operation} of {spec.structure} {spec.shape}", functions["hashed"](), expected)
    times = measure(functions, budget=budget)
    if operation == "matmul":  # by itself: it fills memory with a new W each time, and the next call would pay for that
        times |= measure({"materialise_numpy": lambda: materialise(w, spec) @ x}, budget=budget / 4)
    return _row(operation, f"cpu_{cpu.choose_schedule(spec, n)}", spec, n, error, times)


def _products(shape: tuple[int, int], columns: Sequence[int], budget: float, say: Callable[[str], None]) -> list[Row]:
    rows = []
    for compression in COMPRESSIONS:
        trained = default_options("hashed:strips", compression)
        specs = (
            HashSpec.strips(shape, compression, seed=1),
            *([HashSpec.strips(shape, compression, seed=1, **trained)] if trained else []),
            HashSpec.strips(shape, compression, height=16, seed=1),
            HashSpec.panels(shape, compression, seed=1),
            HashSpec.elementwise(shape, compression, seed=1),
        )
        for spec, n, operation in itertools.product(specs, columns, ("matmul", "grad_x", "grad_w")):
            rows.append(_product(operation, spec, n, budget))
            say(_line(rows[-1]))
    return rows


def _row(operation: str, kernel: str, spec: HashSpec, n: int, error: float, times: dict[str, list[float]]) -> Row:
    return {
        "operation": operation,
        "kernel": kernel,
        "structure": spec.structure,
        "spec": json.loads(spec.to_json()),
        "compression": spec.compression,
        "shape": [spec.rows, spec.cols, n],
        "dtype": "float32",
        **_percentiles(times["hashed"]),
        "error": error,
        "baselines": {name: statistics.median(t) for name, t in times.items() if name != "hashed"},
    }


def _line(row: Row) -> str:
    d_out, d_in, n = row["shape"]
    name, baseline = next(iter(row["baselines"].items()))
    structure = row["structure"]
    if structure == "strips":
        stride = row["spec"]["stride"]
        structure += f" {row['spec']['block'][0]}" + (f"/{stride}" if stride else "")
    return (
        f"{row['operation']:7} {d_out:5} x {d_in:5}, n {n:4}  1/{round(1 / row['compression']):<3} {structure:13} "
        f"{row['ms']:9.3f} ms  {name} {baseline:9.3f} ms  {baseline / row['ms']:6.2f} x as fast"
    )


def _net(method: str, compression: float, xp: ModuleType = np) -> MLP:
    """The network that `hashedmm train` would train: speed is measured on what the errors are measured on."""
    return Run(method, 1.0 if method == "dense" else compression, layers=LAYERS).build(seed=1, xp=xp)


def _step(net: MLP, optimizer: Adam, x: np.ndarray, labels: np.ndarray, step: int) -> None:
    _, gradient = softmax_cross_entropy(net.forward(x, train=True, step=step), labels)
    net.backward(gradient)
    optimizer.step(net.parameters())


def _check_step(net: MLP, x: Any, labels: Any) -> float:
    """Relative error of the first layer's gradient against the float64 reference, given the same gradient above it."""
    _, gradient = softmax_cross_entropy(net.forward(x, train=True, step=0), labels)
    net.backward(gradient)
    first = net.linears[0]
    gy = gradient
    for layer in reversed(net.layers[1:]):
        gy = layer.backward(gy)
    x64, gy64 = to_numpy(x).astype(np.float64), to_numpy(gy).astype(np.float64)
    expected = gy64.T @ x64 if first.spec is None else reference.matmul_grad_w(x64.T, gy64.T, first.spec)
    return _verified("a training step", to_numpy(first.weight.grad), expected)


def _steps(compression: float, steps: int, rounds: int, say: Callable[[str], None]) -> list[Row]:
    """Timing rows of training steps, batch 50, against the dense net's: an epoch of MNIST is 1200 of them."""
    rng = np.random.default_rng(0)
    x = (rng.random((steps, BATCH, LAYERS[0]), np.float32) < 0.2).astype(np.float32)
    labels = rng.integers(0, LAYERS[-1], (steps, BATCH))
    methods = ("dense", "hashed:strips", "hashed:elementwise", "small_dense")
    nets = {method.removeprefix("hashed:"): _net(method, compression) for method in methods}
    errors = {method: _check_step(net, x[0], labels[0]) for method, net in nets.items()}

    def runner(net: MLP) -> Callable[[], None]:
        optimizer = Adam(1e-3)

        def run() -> None:
            for i in range(steps):
                _step(net, optimizer, x[i], labels[i], i)

        return run

    times = measure({method: runner(net) for method, net in nets.items()}, budget=0, least=rounds)
    per_step = {method: [t / steps for t in ts] for method, ts in times.items()}
    dense = statistics.median(per_step["dense"])
    rows = []
    for method in ("strips", "elementwise", "small_dense"):
        net, spec = nets[method], nets[method].linears[0].spec
        row: Row = {
            "operation": "step",
            "kernel": "numpy" if spec is None else f"cpu_{cpu.choose_schedule(spec, BATCH)}",
            "structure": method,
            "spec": None if spec is None else json.loads(spec.to_json()),
            "compression": compression,
            "layers": list(net.sizes),
            "shape": [net.sizes[1], net.sizes[0], BATCH],
            "dtype": "float32",
            **_percentiles(per_step[method]),
            "error": errors[method],
            "baselines": {"dense_numpy": dense},
        }
        rows.append(row)
        say(
            f"step    {method:11} 1/{round(1 / compression):<3} {row['ms']:7.3f} ms  dense {dense:7.3f} ms  "
            f"{row['ms'] / dense:5.2f} of the dense net's; an epoch of 1200 steps {1.2 * row['ms']:6.2f} s"
        )
    return rows


# Runs in a process of its own. The peak of resident memory is reset where the system can (Linux); NumPy reports its
# allocations to tracemalloc everywhere. Everything is compiled before on a small spec.
_MEMORY_PROBE = """
import json, re, sys, tracemalloc
import numpy as np
from hashedmm import HashSpec, hashed_matmul
structure, compression, rows, cols, n = sys.argv[1], float(sys.argv[2]), *map(int, sys.argv[3:6])

def resident(field):
    with open("/proc/self/status") as f:
        return 1024 * int(re.search(field + r":\\s+(\\d+) kB", f.read()).group(1))

warm = getattr(HashSpec, structure)((256, 256), 1 / 8)
hashed_matmul(np.ones(warm.n_buckets, np.float32), np.ones((256, n), np.float32), warm)
spec = getattr(HashSpec, structure)((rows, cols), compression, seed=1)
w = np.random.default_rng(0).standard_normal(spec.n_buckets, np.float32)
x = np.ones((cols, n), np.float32)
try:
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    before = resident("VmRSS")
    y = hashed_matmul(w, x, spec)
    peak_resident = max(0, resident("VmHWM") - before)
except OSError:
    peak_resident = None
tracemalloc.start()
y = hashed_matmul(w, x, spec)
peak = tracemalloc.get_traced_memory()[1]
assert np.isfinite(y).all()
print(json.dumps({"spec": json.loads(spec.to_json()), "peak_bytes": peak, "peak_resident_bytes": peak_resident,
                  "result_bytes": y.nbytes, "stored_bytes": w.nbytes}))
"""


def _memory(say: Callable[[str], None]) -> list[Row]:
    """What a product allocates at its peak, its result included, beside the bytes that W would take."""
    rows = []
    d_out, d_in, n = MEMORY_SHAPE
    for structure in ("strips", "elementwise"):
        arguments = [structure, str(1 / 64), str(d_out), str(d_in), str(n)]
        run = subprocess.run([sys.executable, "-c", _MEMORY_PROBE, *arguments], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"measuring memory failed:\n{run.stderr}")
        row: Row = {"operation": "matmul", "structure": structure, "compression": 1 / 64, "shape": [d_out, d_in, n]}
        row |= json.loads(run.stdout) | {"dense_bytes": 4 * d_out * d_in}
        rows.append(row)
        say(
            f"memory  {structure:11} {d_out} x {d_in}, n {n}: {row['peak_bytes'] / 2**20:.0f} MiB at the peak, of "
            f"which y {row['result_bytes'] / 2**20:.0f}; W would take {row['dense_bytes'] / 2**20:.0f} MiB"
        )
    return rows


_TILED = """
extern "C" __global__ void tiled(const float* a, const float* b, float* c, int n) {
    __shared__ float a_tile[32][32], b_tile[32][32];
    const int row = blockIdx.y * 32 + threadIdx.y, col = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    for (int k0 = 0; k0 < n; k0 += 32) {
        a_tile[threadIdx.y][threadIdx.x] = a[row * n + k0 + threadIdx.x];
        b_tile[threadIdx.y][threadIdx.x] = b[(k0 + threadIdx.y) * n + col];
        __syncthreads();
        for (int k = 0; k < 32; ++k) sum += a_tile[threadIdx.y][k] * b_tile[k][threadIdx.x];
        __syncthreads();
    }
    c[row * n + col] = sum;
}
"""


def _emulator(side: int, budget: float, say: Callable[[str], None]) -> list[Row]:
    """The timing row of a textbook tiled product in the emulator, 32 x 32 tiles: how long a learner waits."""
    a, b = (np.random.default_rng(i).standard_normal((side, side), np.float32) for i in range(2))
    c = np.full((side, side), np.nan, np.float32)
    kernel = emulator.RawKernel(_TILED, "tiled")

    def launch() -> np.ndarray:
        kernel((side // 32, side // 32), (32, 32), (a, b, c, np.int32(side)))
        return c

    error = _verified("the emulated product", launch(), a.astype(np.float64) @ b.astype(np.float64))
    times = measure({"emulated": launch, "numpy_float32": lambda: a @ b}, budget=budget)
    row: Row = {
        "operation": "matmul",
        "kernel": "tiled, emulated",
        "structure": "dense",
        "spec": None,
        "compression": 1.0,
        "shape": [side, side, side],
        "dtype": "float32",
        **_percentiles(times["emulated"]),
        "error": error,
        "baselines": {"numpy_float32": statistics.median(times["numpy_float32"])},
    }
    say(f"emulator  {side}^3 product, 32 x 32 tiles: {row['ms'] / 1e3:.2f} s")
    return [row]


def run_cpu(folder: Path | str, *, quick: bool = False, say: Callable[[str], None] = print) -> list[Path]:
    """Measure the CPU paths and write cpu_products.json, cpu_steps.json and cpu_memory.json into ``folder``, and
    emulator.json where there is an emulator.

    Parameters
    ----------
    folder : where the records go; made if missing
    quick : smaller matrices and fewer rounds: half a minute instead of a few minutes
    say : takes a line of text for each result

    Returns
    -------
    The paths written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = "hashedmm bench --cpu" + (" --quick" if quick else "")
    size = QUICK if quick else FULL
    side, budget = size["side"], size["budget"]
    written = []

    def keep(name: str, kind: str, rows: list[Row]) -> None:
        write(folder / name, new_record(kind, rows, command))
        written.append(folder / name)

    products = _products((side, side), (1, 64), budget, say) + _products((1000, 784), (50,), budget, say)
    keep("cpu_products.json", "timing", products)
    steps = [row for c in COMPRESSIONS for row in _steps(c, size["steps"], size["rounds"], say)]
    keep("cpu_steps.json", "timing", steps)
    keep("cpu_memory.json", "memory", _memory(say))
    if emulator.available():
        keep("emulator.json", "timing", _emulator(size["emulated"], budget, say))
    return written


# --------------------------------------------------------------------------------------------------------------------
# On a GPU

Shape = tuple[int, int]

# Structures of the kernel ladder, and of the layers below: what each constructor takes beside shape and compression.
LADDER: dict[str, Callable[[Shape, float], HashSpec]] = {
    "elementwise": lambda shape, c: HashSpec.elementwise(shape, c, seed=1),
    "panels": lambda shape, c: HashSpec.panels(shape, c, seed=1),
    "strips": lambda shape, c: HashSpec.strips(shape, c, height=16, seed=1),
}
LAYER: dict[str, Callable[[Shape, float], HashSpec]] = {
    "strips": lambda shape, c: (  # what is recommended for speed
        HashSpec.strips(shape, c, height=256, panel=(256, 416), stride=24, seed=1)
        if c < 1 / 16
        else HashSpec.strips(shape, c, height=256, panel=(256, 512), seed=1)
    ),
    "strips-128": lambda shape, c: HashSpec.strips(shape, c, seed=1),
    "strips-16": lambda shape, c: HashSpec.strips(shape, c, height=16, seed=1),
    "panels": LADDER["panels"],
    "elementwise": LADDER["elementwise"],
}
COLUMNS = (1, 8, 32, 128, 1024, 4096)
FEW_COLUMNS = (1, 32, 1024)


class Part(NamedTuple):
    """Rows of gpu_layer.json: one shape and dtype, and the numbers of columns of each structure."""

    shape: Shape
    dtype: str
    columns: dict[str, tuple[int, ...]]


GPU_FULL: dict[str, Any] = {
    "side": 4096, "columns": (1, 32, 512), "ladder_budget": 0.15, "budget": 0.06, "memory": (8192, 16384), "epochs": 30,
    "parts": (
        Part((8192, 8192), "float16", {
            "strips": COLUMNS, "strips-128": (1, 32, 1024, 4096), "strips-16": FEW_COLUMNS, "panels": (1, 32),
            "elementwise": (1, 32),
        }),
        Part((8192, 8192), "float32", {"strips": FEW_COLUMNS, "panels": (1, 32)}),
        Part((4096, 4096), "float16", {"strips": COLUMNS, "strips-16": (1, 1024), "panels": (1,)}),
        Part((4096, 4096), "float32", {"strips": (1, 1024), "panels": (1,)}),
        Part((1000, 784), "float16", {"strips": COLUMNS, "strips-16": FEW_COLUMNS, "panels": (1, 1024)}),
        Part((1000, 784), "float32", {"strips": FEW_COLUMNS, "panels": (1, 32), "elementwise": (1, 32)}),
    ),
}  # fmt: skip
GPU_QUICK: dict[str, Any] = {
    "side": 1024, "columns": (1, 64), "ladder_budget": 0.05, "budget": 0.05, "memory": (4096,), "epochs": 5,
    "parts": (
        Part((4096, 4096), "float16", {"strips": FEW_COLUMNS, "strips-16": (1, 1024), "panels": (1,)}),
        Part((4096, 4096), "float32", {"strips": (1, 1024), "panels": (1,)}),
    ),
}  # fmt: skip

GPU_TOLERANCE = {"float32": 1e-5, "float16": 2e-3}  # float16 rounds the result, and what is summed first, to 11 bits
EXACT = 2**24  # integers up to here are float32 numbers
SETS = 3  # of inputs: calls take them in turn
SLOWEST = 20.0  # a kernel is timed if a first call takes at most so many times as long as the dense product
PRODUCTS = ("matmul", "grad_x", "grad_w")
STEP_FROM = 32  # columns from which on a step, forward and both gradients, is timed
FIXED_ORDER = ("sketch", "grad_w_fixed")  # kernels that sum a gradient of the buckets in one order
# The families whose three kernels make a step.
STEPS = {
    "sketch": dict.fromkeys(PRODUCTS, "sketch"),
    "tensor": {"matmul": "tensor", "grad_x": "tensor_grad_x", "grad_w": "tensor_grad_w"},
}
# Most columns for which a kernel is tried in gpu_layer.json. naive and coalesced are in the ladder alone: shared is
# faster there at every size. few_rows is for output layers.
MOST_COLUMNS = {"naive": 0, "coalesced": 0, "few_rows": 0, "shared": 128, "panel_few": 128, "strip": 128}


def measure_gpu(functions: dict[str, Callable[[], Any]], *, budget: float, least: int = 7) -> dict[str, list[float]]:
    """Milliseconds of every call on the GPU, functions taking turns, each round in an order of its own.

    Each is called three times untimed. Before a timed call a buffer of over four times the L2 cache is overwritten, so
    that nothing is found there; and it is overwritten as often as it takes to keep the GPU busy for twice as long as
    the slowest of these calls takes the host, so that the host gets ahead and what it does is not measured. Times are
    those between two CUDA events.
    """
    import cupy

    flush = cupy.empty(max(4 * gpu_info()["l2_bytes"], 2**28), cupy.uint8)
    order = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    host = 0.0  # milliseconds of the slowest call, until it returns
    for function in functions.values():
        for _ in range(3):
            cupy.cuda.Device().synchronize()
            begun = time.perf_counter()
            function()
            last = 1e3 * (time.perf_counter() - begun)
        host = max(host, last)
    fill = statistics.median(_gpu_ms(lambda: flush.fill(0)) for _ in range(5))
    fills = 1 + math.ceil(2 * host / fill)
    end = time.perf_counter() + budget
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name in _shuffled(functions, order):
            for _ in range(fills):
                flush.fill(0)
            times[name].append(_gpu_ms(functions[name]))
    return times


def _gpu_ms(function: Callable[[], Any]) -> float:
    """Milliseconds between two CUDA events around one call."""
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    function()
    stop.record()
    stop.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, stop))


# ---- what is compared with what


def sensible(kernel: str, n: int) -> bool:
    """Whether a kernel is tried at all for ``n`` columns in gpu_layer.json, see ``MOST_COLUMNS``."""
    return n <= MOST_COLUMNS.get(kernel, n)


def fast_enough(first: dict[str, float], dense: float) -> list[str]:
    """The kernels that are timed: those whose first call took at most ``SLOWEST`` times the dense product's."""
    return [name for name, ms in first.items() if ms <= SLOWEST * dense]


def tolerance(dtype: str, terms: int) -> float:
    """The relative error that is accepted of sums of so many terms: rounding grows with their square root."""
    return GPU_TOLERANCE[dtype] * (max(1.0, math.sqrt(terms / 2**15)) if dtype == "float32" else 1.0)


def weights_of_rows(spec: HashSpec, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Bucket and sign, (len(rows), cols), of the weights of some rows: what ``spec.indices()`` says of them."""
    at, (bh, bw) = np.asarray(rows), spec.block
    bucket = np.empty((len(at), spec.cols), np.int64)
    sign = np.empty((len(at), spec.cols), np.int8)
    for g in spec.regions:
        mine = np.flatnonzero((at >= g.row) & (at < g.row + g.rows))
        i, j = at[mine][:, None], np.arange(g.col, g.col + g.cols)[None, :]
        h = spec.hash_blocks(i // bh, j // bw)
        t = ((h.astype(np.uint64) * np.uint64(g.candidates)) >> np.uint64(32)).astype(np.int64)
        base = g.base + (i - g.row) // g.panel_rows * g.base_step + (j - g.col) // g.panel_cols * g.panel_buckets
        place = np.ix_(mine, j[0])
        bucket[place] = base + t * spec.unit + j % bw * bh + i % bh
        sign[place] = 1 - 2 * (h & 1).astype(np.int8)
    return bucket, sign


class _Layer:
    """A hashed layer on the GPU and the dense one that it stands for; W is verified when it is made.

    Bucket and sign of every weight come from materialising the buckets' own numbers, and are compared with the hash in
    NumPy: all of them for matrices of up to 2^20 weights, 64 rows of larger ones, the first and the last among them.
    """

    def __init__(self, spec: HashSpec, dtype: str) -> None:
        import cupy

        if spec.n_buckets >= EXACT:
            raise ValueError(f"the benchmark checks layers of less than {EXACT} buckets, got {spec.n_buckets}")
        self.spec, self.dtype = spec, dtype
        self.random = cupy.random.default_rng(0)
        # As weights have it, so that float16 neither overflows nor underflows.
        self.w = (self._normal(spec.n_buckets) / np.float32(np.sqrt(spec.cols))).astype(dtype)
        numbers = materialise(cupy.arange(1, spec.n_buckets + 1, dtype=cupy.float32), spec)
        self.bucket, self.sign = cupy.abs(numbers).astype(cupy.int32) - 1, cupy.sign(numbers).astype(cupy.int8)
        del numbers
        rows = np.arange(spec.rows)
        if spec.rows * spec.cols > 2**20:
            rows = np.unique([0, spec.rows - 1, *np.random.default_rng(0).integers(0, spec.rows, 62)])
        bucket, sign = weights_of_rows(spec, rows.tolist())
        at = cupy.asarray(rows)
        self.dense = materialise(self.w, spec)
        if not (
            np.array_equal(to_numpy(self.bucket[at]), bucket)
            and np.array_equal(to_numpy(self.sign[at]), sign)
            and cupy.array_equal(self.dense, self.sign.astype(dtype) * self.w[self.bucket])
        ):
            raise ArithmeticError(f"materialise of {spec.structure} {spec.shape} is wrong, so nothing is timed")
        self.transposed = cupy.asfortranarray(self.dense)  # the same matrix, stored column by column

    def _normal(self, size: Any) -> Any:
        return self.random.standard_normal(size, dtype=np.float32)

    def inputs(self, n: int) -> None:
        """New x and gy of ``n`` columns, and what the products of the first of them are in float64."""
        import cupy

        spec = self.spec
        self.n = n
        self.x, self.gy = (
            [self._normal((size, n)).astype(self.dtype) for _ in range(SETS)] for size in (spec.cols, spec.rows)
        )
        dense, x, gy = (a.astype(cupy.float64) for a in (self.dense, self.x[0], self.gy[0]))
        self.expected = {"matmul": dense @ x, "grad_x": dense.T @ gy}
        g = (gy @ x.T) * self.sign
        self.expected["grad_w"] = cupy.bincount(self.bucket.ravel(), weights=g.ravel(), minlength=spec.n_buckets)

    def call(self, operation: str, kernel: str, i: int) -> Any:
        """A product by a kernel, of the i-th inputs."""
        if operation == "matmul":
            return hashed_matmul(self.w, self.x[i], self.spec, kernel=kernel)
        if operation == "grad_x":
            return hashed_matmul_grad_x(self.w, self.gy[i], self.spec, kernel=kernel)
        if operation == "grad_w":
            return hashed_matmul_grad_w(self.x[i], self.gy[i], self.spec, kernel=kernel)
        return materialise(self.w, self.spec)

    def step(self, kernels: dict[str, str], i: int) -> Any:
        """A training step's products: forward, then both gradients. A sketch of x serves forward and gradient."""
        x, gy = self.x[i], self.gy[i]
        if kernels["matmul"] != "sketch" or kernels["grad_w"] != "sketch":
            return [self.call(operation, kernel, i) for operation, kernel in kernels.items()]
        import cupy

        y, gw = cupy.empty((self.spec.rows, self.n), self.dtype), cupy.zeros(self.spec.n_buckets, np.float32)
        forward = plan_matmul(self.w, x, y, self.spec, "sketch", keep=True)
        forward.run()
        plan_grad_w(x, gy, gw, self.spec, "sketch", forward=forward).run()
        return y, self.call("grad_x", kernels["grad_x"], i), gw

    def terms(self, operation: str) -> int:
        """How many products an element of the result sums."""
        spec = self.spec
        weights = spec.rows * spec.cols
        return {"matmul": spec.cols, "grad_x": spec.rows, "grad_w": self.n * weights // spec.n_buckets}[operation]

    def verified(self, operation: str, kernel: str) -> float:
        """The relative error of a kernel's result, ArithmeticError if it is too large."""
        result = self.call(operation, kernel, 0)
        error, most = _gpu_error(result, self.expected[operation]), tolerance(self.dtype, self.terms(operation))
        if not error <= most:
            raise ArithmeticError(
                f"{kernel} of {self.spec.structure} {self.spec.shape}, {operation}, n {self.n}, {self.dtype} is wrong, "
                f"so it is not timed: its relative error against float64 is {error:.3g}, over {most:.3g}"
            )
        fixed = operation == "grad_w" and kernel in FIXED_ORDER
        if fixed and not bool((result == self.call("grad_w", kernel, 0)).all()):
            raise ArithmeticError(f"{kernel} of {self.spec.structure} {self.spec.shape}: two calls give different bits")
        return error

    def operands(self, operation: str, i: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The two matrices whose dense product an operation is, each in every order that cuBLAS may like: C row by row,
        F column by column, + with columns of zeros up to a multiple of 8."""
        import cupy

        def orders(a: Any) -> dict[str, Any]:
            out = {"C": cupy.ascontiguousarray(a), "F": cupy.asfortranarray(a)}
            if a.shape[1] % 8:
                padded = cupy.pad(a, ((0, 0), (0, -a.shape[1] % 8)))
                out |= {"C+": padded, "F+": cupy.asfortranarray(padded)}
            return out

        def flipped(found: dict[str, Any]) -> dict[str, Any]:
            return {name: a.T for name, a in found.items()}

        weights = {"C": self.dense, "F": self.transposed}
        if operation == "matmul":
            return weights, orders(self.x[i])
        if operation == "grad_x":
            return flipped(weights), orders(self.gy[i])
        return orders(self.gy[i]), flipped(orders(self.x[i]))


def _gpu_error(result: Any, expected: Any) -> float:
    """`relative_error` on the GPU."""
    import cupy

    if result.shape != expected.shape or not bool(cupy.isfinite(result).all()):
        return float("inf")
    scale = float(cupy.linalg.norm(expected)) or 1.0
    return float(cupy.linalg.norm(result.astype(cupy.float64) - expected)) / scale


# ---- the dense products


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    """cuBLAS multiplies float32 matrices by tensor cores inside, rounded to 11 bits. CuPy has no public switch but the
    environment variable CUPY_TF32, which it reads once; this is what the variable sets."""
    import cupy
    from cupy._core import _routines_linalg as linalg

    before = linalg.get_compute_type(cupy.float32)
    linalg.set_compute_type(cupy.float32, linalg.COMPUTE_TYPE_TF32)
    try:
        yield
    finally:
        linalg.set_compute_type(cupy.float32, before)


def _has_tf32() -> bool:
    from importlib import import_module

    if float(gpu_info()["compute_capability"]) < 8:
        return False
    try:
        linalg = import_module("cupy._core._routines_linalg")
    except ImportError:
        return False
    return hasattr(linalg, "set_compute_type") and hasattr(linalg, "COMPUTE_TYPE_TF32")


def _forms(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The same dense product in every order of both operands and of the result: "CF.C" is left C, right F, result C."""
    import cupy

    out: dict[str, Callable[[], Any]] = {}
    for (p, a), (q, b) in itertools.product(left.items(), right.items()):
        if a.shape[1] == b.shape[0]:
            out[f"{p}{q}.C"] = partial(cupy.matmul, a, b)
            out[f"{p}{q}.F"] = partial(cupy.matmul, b.T, a.T)
    return out


def _gemv(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """cuBLAS's product of a float32 matrix and one vector."""
    import cupy
    import cupy.cublas

    x = right["C"]
    if x.shape[1] != 1 or x.dtype != cupy.float32:
        return {}
    y = cupy.empty(left["C"].shape[0], x.dtype)

    def product(a: Any) -> Any:
        cupy.cublas.gemv("N", 1.0, a, x.ravel(), 0.0, y)
        return y

    return {f"gemv {p}": partial(product, a) for p, a in left.items()}


class _Dense:
    """The fastest dense product of each kind: the form is found once a shape, n, dtype and operation."""

    def __init__(self) -> None:
        self.best: dict[tuple[Any, ...], str] = {}
        self.tf32 = _has_tf32()

    def names(self, dtype: str) -> list[str]:
        return [f"cublas_{dtype}", *(["cublas_tf32"] if dtype == "float32" and self.tf32 else [])]

    def calls(self, layer: _Layer, operation: str) -> dict[str, tuple[str, list[Callable[[], Any]]]]:
        """{baseline: (its form, a call for every set of inputs)}"""
        found = {}
        for name in self.names(layer.dtype):
            key = (layer.spec.shape, layer.n, layer.dtype, operation, name)
            if key not in self.best:
                self.best[key] = self._fastest(layer, operation, name)
            form = self.best[key]
            found[name] = (form, [self._all(layer, operation, name, i)[form] for i in range(SETS)])
        return found

    def _all(self, layer: _Layer, operation: str, name: str, i: int) -> dict[str, Callable[[], Any]]:
        left, right = layer.operands(operation, i)
        if name == "cublas_tf32":
            return {form: partial(_with_tf32, call) for form, call in _forms(left, right).items()}
        return _forms(left, right) | ({} if operation == "grad_w" else _gemv(left, right))

    def _fastest(self, layer: _Layer, operation: str, name: str) -> str:
        import cupy

        calls = self._all(layer, operation, name, 0)
        times = measure_gpu(calls, budget=0.0, least=5)
        form = min(calls, key=lambda f: statistics.median(times[f]))
        left, right = (operand["C"].astype(cupy.float64) for operand in layer.operands(operation, 0))
        expected, result = left @ right, calls[form]()
        if form.endswith(".F"):
            result = result.T
        result = result.reshape(result.shape[0], -1)[:, : expected.shape[1]]
        error, most = _gpu_error(result, expected), tolerance(layer.dtype, max(*layer.spec.shape, layer.n))
        if not error <= (GPU_TOLERANCE["float16"] if name == "cublas_tf32" else most):
            raise ArithmeticError(f"{name} {form}, {operation}, is wrong: its relative error is {error:.3g}")
        return form


def _with_tf32(call: Callable[[], Any]) -> Any:
    with _tf32():
        return call()


def _in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """A function that makes the next of ``calls`` each time."""
    following = itertools.cycle(calls)
    return lambda: next(following)()


def _together(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    def run() -> None:
        for call in calls:
            call()

    return run


# ---- rows


def dense_bytes(shape: Shape, n: int, dtype: str) -> int:
    """What a dense product has to move at least: W, x and y once."""
    return np.dtype(dtype).itemsize * (shape[0] * shape[1] + n * (shape[0] + shape[1]))


def layer_row(
    label: str, operation: str, kernel: str, spec: HashSpec, n: int, dtype: str, error: float, times: Sequence[float],
    dense: Mapping[str, Sequence[float]], forms: Mapping[str, str],
) -> Row:  # fmt: skip
    """A row of gpu_layer.json or gpu_ladder.json.

    Beside what every timing row has: ``layer``, the name in ``LAYER``; ``size``, the shape of W; ``fixed_order``, for
    what holds a gradient of the buckets whether its bits repeat; and ``dense``, more about each baseline that is one
    dense product: its form (which operands are stored row by row, C, or column by column, F; + says padded columns),
    percentiles, and bytes a second (W, x and y read or written once).
    """
    row = _row(operation, kernel, spec, n, error, {"hashed": list(times), **{k: list(t) for k, t in dense.items()}})
    row |= {"dtype": dtype, "layer": label, "size": f"{spec.rows}x{spec.cols}"}
    if operation in ("grad_w", "step"):
        row["fixed_order"] = kernel in FIXED_ORDER
    row["dense"] = {}
    for name, form in forms.items():
        found = _percentiles(dense[name])
        products = 3 if operation == "step" else 1
        moved = products * dense_bytes(spec.shape, n, dtype)
        row["dense"][name] = {**found, "form": form, "bytes_per_second": 1e3 * moved / found["ms"]}
    return row


def _kernels(operation: str, spec: HashSpec, dtype: str) -> list[str]:
    """The CUDA kernels that can compute a product on this GPU."""
    limit, arch = shared_limit(), architecture(current_device())
    return [
        kernel.name
        for kernel in KERNELS.values()
        if kernel.least_arch is not None
        and int(kernel.least_arch.removeprefix("sm_")) <= arch
        and operation in kernel.operations
        and dtype in kernel.dtypes
        and kernel.supports(spec, dtype, limit)
    ]


def _layer_rows(
    layer: _Layer, label: str, n: int, dense: _Dense, budget: float, say: Callable[[str], None], *, ladder: bool = False
) -> list[Row]:
    """Rows of one structure, dtype and number of columns.

    For each operation: every kernel that can compute it, is `sensible` and `fast_enough` (in the ladder: every kernel),
    each verified first; in turn with the dense products and, for matmul, with materialising W and multiplying. Then,
    from ``STEP_FROM`` columns on, a step: all three products in one timed call.
    """
    layer.inputs(n)
    spec, dtype, rows = layer.spec, layer.dtype, []
    errors: dict[str, dict[str, float]] = {}
    kept: dict[str, list[str]] = {}
    calls: dict[str, dict[str, tuple[str, list[Callable[[], Any]]]]] = {}

    def timed(operation: str, functions: dict[str, Callable[[], Any]], baselines: dict[str, Callable[[], Any]]) -> Any:
        times = measure_gpu(functions | baselines, budget=budget)
        return {k: times[k] for k in functions}, {k: times[k] for k in baselines}

    def add(operation: str, kernel: str, error: float, found: Any, forms: dict[str, str]) -> None:
        times, baselines = found
        rows.append(layer_row(label, operation, kernel, spec, n, dtype, error, times[kernel], baselines, forms))
        say(f"{kernel:13} {dtype:7} " + _line(rows[-1]))

    for operation in PRODUCTS:
        calls[operation] = dense.calls(layer, operation)
        names = [k for k in _kernels(operation, spec, dtype) if ladder or sensible(k, n)]
        errors[operation] = {k: layer.verified(operation, k) for k in names}
        if not ladder:
            first = {k: _gpu_ms(partial(layer.call, operation, k, 0)) for k in names}
            names = fast_enough(first, _gpu_ms(calls[operation][f"cublas_{dtype}"][1][0]))
        kept[operation] = names
        functions = {k: _in_turn([partial(layer.call, operation, k, i) for i in range(SETS)]) for k in names}
        baselines = {name: _in_turn(each) for name, (_, each) in calls[operation].items()}
        if operation == "matmul":
            baselines["materialise_cublas"] = _in_turn([partial(_materialised, layer, i) for i in range(SETS)])
        found = timed(operation, functions, baselines)
        forms = {name: form for name, (form, _) in calls[operation].items()}
        for k in names:
            add(operation, k, errors[operation][k], found, forms)

    if n >= STEP_FROM and not ladder:
        able = {s: parts for s, parts in STEPS.items() if all(k in kept[o] for o, k in parts.items())}
        if "sketch" in able and not (layer.step(able["sketch"], 0)[2] == layer.call("grad_w", "sketch", 0)).all():
            raise ArithmeticError(f"the sketch's step of {spec.structure} {spec.shape} has other gradients")
        functions = {s: _in_turn([partial(layer.step, parts, i) for i in range(SETS)]) for s, parts in able.items()}
        baselines = {
            name: _in_turn([_together([calls[o][name][1][i] for o in PRODUCTS]) for i in range(SETS)])
            for name in dense.names(dtype)
        }
        found = timed("step", functions, baselines)
        forms = {name: " ".join(calls[o][name][0] for o in PRODUCTS) for name in baselines}
        for s, parts in able.items():
            add("step", s, max(errors[o][k] for o, k in parts.items()), found, forms)
    return rows


def _materialised(layer: _Layer, i: int) -> Any:
    return materialise(layer.w, layer.spec) @ layer.x[i]


def _materialise_rows(layer: _Layer, label: str, budget: float, say: Callable[[str], None]) -> list[Row]:
    """The row of materialising W, which `_Layer` has verified bit by bit, against the faster of two ways to fill it."""
    import cupy

    target = cupy.empty_like(layer.dense)
    fills = {"memset": lambda: target.fill(0), "kernel": lambda: cupy.copyto(target, 1)}
    times = measure_gpu({"materialise": lambda: materialise(layer.w, layer.spec), **fills}, budget=budget)
    form = min(fills, key=lambda name: statistics.median(times[name]))
    took, fill = times["materialise"], {"fill": times[form]}
    row = layer_row(label, "materialise", "materialise", layer.spec, 1, layer.dtype, 0.0, took, fill, {})
    row["dense"] = {"fill": {**_percentiles(times[form]), "form": form}}
    say(f"{'materialise':13} {layer.dtype:7} " + _line(row))
    return [row]


# ---- kernels are compiled by several processes first


class Build(NamedTuple):
    """What is going to be measured, so that its kernels can be compiled: a name in a table, and numbers of columns."""

    table: str
    label: str
    shape: Shape
    compression: float
    dtype: str
    columns: tuple[int, ...]


def builds(size: dict[str, Any]) -> list[Build]:
    """All that ``run_gpu`` measures, the largest parts first."""
    side = size["side"]
    found = [
        Build("LAYER", label, part.shape, compression, part.dtype, columns)
        for part in size["parts"]
        for label, columns in part.columns.items()
        for compression in COMPRESSIONS
    ]
    found += [
        Build("LADDER", label, (side, side), compression, dtype, size["columns"])
        for label, compression, dtype in itertools.product(LADDER, COMPRESSIONS, GPU_TOLERANCE)
    ]
    return sorted(found, key=lambda b: (b.label in ("panels", "elementwise"), -len(b.columns)))


def build_kernels(build: Build) -> None:
    """Compile what a part of the benchmark launches, for CuPy to keep on disk. What fails is left to fail later."""
    import cupy

    spec = {"LAYER": LAYER, "LADDER": LADDER}[build.table][build.label](build.shape, build.compression)
    dtype = build.dtype
    w, gw = cupy.zeros(spec.n_buckets, dtype), cupy.zeros(spec.n_buckets, cupy.float32)
    for n in build.columns:
        x, gy = (cupy.zeros((size, n), dtype) for size in (spec.cols, spec.rows))
        for operation in PRODUCTS:
            for kernel in _kernels(operation, spec, dtype):
                if build.table == "LAYER" and not sensible(kernel, n):
                    continue
                with contextlib.suppress(Exception):
                    if operation == "matmul":
                        plan_matmul(w, x, gy, spec, kernel)
                    elif operation == "grad_x":
                        plan_grad_x(w, gy, x, spec, kernel)
                    else:
                        fixed = fixed_arrays(x, gy, spec) if kernel == "grad_w_fixed" else None
                        plan_grad_w(x, gy, gw, spec, kernel, fixed=fixed)


def _build_all(size: dict[str, Any], say: Callable[[str], None]) -> None:
    """Compile everything by several processes, as cores and the GPU's memory allow: by one it takes minutes."""
    workers = min(12, (os.cpu_count() or 1) - 1, gpu_info()["memory_bytes"] // 2**31)
    if workers < 2:
        return
    begun = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        wait([pool.submit(build_kernels, build) for build in builds(size)])
    say(f"kernels compiled by {workers} processes in {time.perf_counter() - begun:.0f} s")


# ---- memory


def _gpu_memory_rows(sides: Sequence[int], say: Callable[[str], None]) -> list[Row]:
    """What a product and a whole step take from the GPU at their peak: buckets, lists, workspace and results, not the
    inputs; measured by a memory pool of their own, so that what it cannot use again counts too."""
    import cupy

    rows: list[Row] = []
    n, dtype = 1024, "float16"
    for side, compression, operation in itertools.product(sides, COMPRESSIONS, ("matmul", "step")):
        made = LAYER["strips"]((side, side), compression)
        spec = replace(made, seed=made.seed + 1 + len(rows))  # nothing has been derived for this one
        x, gy = (cupy.full((side, n), 0.5, dtype) for _ in range(2))
        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            w = cupy.full(spec.n_buckets, 0.01, dtype)
            results = [hashed_matmul(w, x, spec)]
            if operation == "step":
                results += [hashed_matmul_grad_x(w, gy, spec), hashed_matmul_grad_w(x, gy, spec)]
            cupy.cuda.Device().synchronize()
            peak = pool.total_bytes()
        if not all(bool(cupy.isfinite(a).all()) for a in results):
            raise ArithmeticError(f"{operation} of {spec.structure} {spec.shape} is not finite, so it is not measured")
        used = [choose(o, spec, n, dtype).kernel for o in (PRODUCTS if operation == "step" else ("matmul",))]
        row: Row = {
            "operation": operation,
            "kernel": " + ".join(used),
            "structure": spec.structure,
            "layer": "strips",
            "spec": json.loads(spec.to_json()),
            "compression": compression,
            "shape": [side, side, n],
            "dtype": dtype,
            "stored_bytes": w.nbytes,
            "lists_bytes": sketch.lists_bytes(spec, dtype, current_device()) if "sketch" in used else 0,
            "result_bytes": sum(a.nbytes for a in results),
            "peak_bytes": peak,
            "dense_bytes": w.itemsize * side * side,
        }
        rows.append(row)
        del w, results, x, gy
        say(
            f"memory  {operation:6} {side} x {side}, n {n}  1/{round(1 / compression):<3} {peak / 2**20:7.1f} MiB, "
            f"results {row['result_bytes'] / 2**20:.1f}; W would take {row['dense_bytes'] / 2**20:.0f} MiB"
        )
    return rows


# ---- training

TARGET = 98.3  # percent of the test samples

# Runs in a process of its own, that finds no compiled kernel.
_COLD_TRAINING = """
import json, sys, time
import cupy
from hashedmm.datasets import load_mnist
from hashedmm.experiments import Run
from hashedmm.nn import train
method, compression, epochs, batch = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
data = load_mnist()
cupy.zeros(1).get()
begun = time.perf_counter()
history = train(Run(method, compression).build(1, cupy), data, epochs=epochs, batch=batch, seed=1, progress=False)
print(json.dumps({"wall": time.perf_counter() - begun, "history": history.to_dict()}))
"""


def reached(target: float, accuracy: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Seconds of training until the test accuracy first reaches ``target``, both lists an epoch an entry; or None."""
    for epoch, found in enumerate(accuracy, start=1):
        if found >= target:
            return sum(seconds[:epoch])
    return None


def training_row(
    method: str, compression: float, spec: HashSpec | None, sizes: Sequence[int], history: dict[str, Any], error: float,
    baselines: Mapping[str, Sequence[float]], wall: float | None, note: str,
) -> Row:  # fmt: skip
    """A row of gpu_steps.json: times a step, and the training they add up to.

    Beside what every timing row has: ``seconds``, of every epoch's steps; ``test_accuracy``, after every epoch, in
    percent; ``seconds_to_target``, of training steps until that is ``target_accuracy`` (null: never); ``wall_seconds``
    of a call of train in a process that finds no compiled kernel, evaluation counted; ``baseline_seconds``, an epoch.
    """
    steps = -(-60000 // BATCH)
    per_step = [1e3 * s / steps for s in history["seconds"]]
    accuracy = [round(100 - e, 4) for e in history["test_error"]]
    return {
        "operation": "step",
        "kernel": "graph",
        "structure": method.removeprefix("hashed:"),
        "spec": None if spec is None else json.loads(spec.to_json()),
        "compression": compression,
        "layers": list(sizes),
        "shape": [sizes[1], sizes[0], BATCH],
        "dtype": "float32",
        **_percentiles(per_step),
        "error": error,
        "baselines": {name: 1e3 * statistics.median(s) / steps for name, s in baselines.items()},
        "baseline_seconds": {name: list(s) for name, s in baselines.items()},
        "epochs": len(history["seconds"]),
        "seconds": list(history["seconds"]),
        "test_accuracy": accuracy,
        "target_accuracy": TARGET,
        "seconds_to_target": reached(TARGET, accuracy, history["seconds"]),
        "wall_seconds": wall,
        "note": note,
    }


def _gpu_step_rows(epochs: int, quick: bool, say: Callable[[str], None]) -> list[Row]:
    """Training rows: the strips' net from a cold start and the elementwise one, beside dense nets and, where PyTorch is
    installed, nets that gather W from as many buckets (the strips'; what is gathered matters little)."""
    import cupy

    data = load_mnist()
    dense_net = _net("dense", 1.0, cupy)
    dense_seconds = train(dense_net, data, epochs=2, batch=BATCH, evaluate=False, progress=False).seconds
    torch = _torch()
    note = f"PyTorch {torch.__version__}" if torch else "PyTorch is not installed here: its baselines are left out"
    dense = {"dense_torch_graph": _torch_seconds(torch, None, data, captured=True, epochs=3)} if torch else {}
    dense["dense_cupy"] = dense_seconds
    rows: list[Row] = []
    gathering: dict[float, dict[str, list[float]]] = {}
    for method, compression in itertools.product(("hashed:strips", "hashed:elementwise"), COMPRESSIONS):
        if quick and method != "hashed:strips":
            continue
        net, wall = _net(method, compression, cupy), None
        labels = cupy.asarray(data.y_train[:BATCH].astype(np.int64))
        error = _check_step(net, cupy.asarray(data.x_train[:BATCH]), labels)
        if method == "hashed:strips":
            with tempfile.TemporaryDirectory() as cache:
                arguments = [method, str(compression), str(epochs), str(BATCH)]
                run = subprocess.run(
                    [sys.executable, "-c", _COLD_TRAINING, *arguments], capture_output=True, text=True,
                    env={**os.environ, "CUPY_CACHE_DIR": cache},
                )  # fmt: skip
            if run.returncode:
                raise RuntimeError(f"training from a cold start failed:\n{run.stderr}")
            found = json.loads(run.stdout)
            history, wall = found["history"], found["wall"]
        else:
            history = train(net, data, epochs=min(epochs, 5), batch=BATCH, seed=1, progress=False).to_dict()
        specs = [linear.spec for linear in net.linears if linear.spec is not None]
        if torch and compression not in gathering:
            gathering[compression] = {
                "gather_torch_graph": _torch_seconds(torch, specs, data, captured=True, epochs=3),
                "gather_torch": _torch_seconds(torch, specs, data, captured=False, epochs=1),
            }
        baselines = dense | gathering.get(compression, {})
        row = training_row(method, compression, specs[0], net.sizes, history, error, baselines, wall, note)
        rows.append(row)
        say(training_line(row))
    return rows


def training_line(row: Row) -> str:
    """A row of gpu_steps.json in three lines."""
    others = ", ".join(f"{name} {statistics.median(s):.3f}" for name, s in row["baseline_seconds"].items())
    seconds, reached_it = row["seconds"], row["seconds_to_target"]
    return (
        f"epoch   {row['structure']:11} 1/{round(1 / row['compression']):<3} {statistics.median(seconds):.3f} s\n"
        f"        {others}\n"
        f"        {row['test_accuracy'][-1]:.2f} % after {row['epochs']} epochs, {sum(seconds):.2f} s of steps; "
        f"{row['target_accuracy']} % " + ("was not reached" if reached_it is None else f"after {reached_it:.2f} s")
    )


def _torch() -> Any:
    """PyTorch if it is here and sees the GPU, else None: a baseline and no dependency."""
    try:
        torch = import_module("torch")
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def _torch_seconds(
    torch: Any, specs: Sequence[HashSpec] | None, data: Dataset, *, captured: bool, epochs: int
) -> list[float]:
    """Seconds an epoch of the same network in PyTorch, in float32: dense, or gathering W from the buckets of ``specs``
    in every step; a step is captured as a CUDA graph or not. Adam is fused."""
    x = torch.as_tensor(data.x_train, device="cuda")
    y = torch.as_tensor(data.y_train.astype(np.int64), device="cuda")
    weights, places = [], []
    for i, (d_in, d_out) in enumerate(itertools.pairwise(LAYERS)):
        size = specs[i].n_buckets if specs else d_in * d_out
        weights += [torch.randn(size, device="cuda") * (2 / d_in) ** 0.5, torch.zeros(d_out, device="cuda")]
        if specs:
            bucket, sign = specs[i].indices()
            places.append((
                torch.as_tensor(bucket.ravel().astype(np.int64), device="cuda"),
                torch.as_tensor(sign.astype(np.float32), device="cuda"),
            ))  # fmt: skip
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=torch.tensor(1e-3, device="cuda"), capturable=True, fused=True)
    picked = torch.arange(BATCH, device="cuda")
    functional = torch.nn.functional

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        a = x[picked]
        for i, (d_in, d_out) in enumerate(itertools.pairwise(LAYERS)):
            w = weights[2 * i]
            w = w.gather(0, places[i][0]).view(d_out, d_in) * places[i][1] if specs else w.view(d_out, d_in)
            a = torch.addmm(weights[2 * i + 1], a, w.t())
            if i < len(LAYERS) - 2:
                a = functional.dropout(torch.relu(a), 0.25)
        functional.cross_entropy(a, y[picked]).backward()
        optimizer.step()

    run: Callable[[], Any] = step
    if captured:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay
    for _ in range(20):
        run()
    seconds = []
    for _ in range(epochs):
        order = torch.randperm(len(y), device="cuda")
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for first in range(0, len(y) - BATCH + 1, BATCH):
            picked.copy_(order[first : first + BATCH])
            run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return seconds


# ---- roofs


def _roofs(say: Callable[[str], None]) -> list[Row]:
    """What this GPU can do at most: bytes a second of a copy, and multiply-adds a second of cuBLAS."""
    import cupy

    rows: list[Row] = []
    size = 2**30
    a, b = cupy.ones(size // 4, cupy.float32), cupy.empty(size // 4, cupy.float32)
    ms = statistics.median(measure_gpu({"copy": lambda: cupy.copyto(b, a)}, budget=0.2)["copy"])
    rows.append({"roof": "copy", "bytes": 2 * size, "ms": ms, "per_second": 2e3 * size / ms, "unit": "bytes"})
    side = 8192
    for name in ("float32", *(["tf32"] if _has_tf32() else []), "float16"):
        dtype = "float32" if name == "tf32" else name
        p, q = (cupy.random.standard_normal((side, side), dtype=cupy.float32).astype(dtype) for _ in range(2))
        product = partial(cupy.matmul, p, q)
        if name == "tf32":
            product = partial(_with_tf32, product)
        ms = statistics.median(measure_gpu({"product": product}, budget=0.3)["product"])
        flops = 2 * side**3
        rows.append({"roof": f"cublas_{name}", "side": side, "ms": ms, "per_second": 1e3 * flops / ms, "unit": "FLOP"})
    for row in rows:
        say(f"roof    {row['roof']:15} {row['per_second'] / 1e12:8.2f} T{row['unit']}/s")
    return rows


# ---- all of it


def _measured_layers(size: dict[str, Any], say: Callable[[str], None]) -> list[Row]:
    """The rows of gpu_layer.json."""
    rows, dense = [], _Dense()
    for part in size["parts"]:
        for (label, columns), compression in itertools.product(part.columns.items(), COMPRESSIONS):
            layer = _Layer(LAYER[label](part.shape, compression), part.dtype)
            rows += _materialise_rows(layer, label, size["budget"], say)
            for n in columns:
                rows += _layer_rows(layer, label, n, dense, size["budget"], say)
    return rows


def _measured_ladder(size: dict[str, Any], say: Callable[[str], None]) -> list[Row]:
    """The rows of gpu_ladder.json."""
    rows, dense, shape = [], _Dense(), (size["side"], size["side"])
    for label, compression, dtype in itertools.product(LADDER, COMPRESSIONS, GPU_TOLERANCE):
        layer = _Layer(LADDER[label](shape, compression), dtype)
        for n in size["columns"]:
            rows += _layer_rows(layer, label, n, dense, size["ladder_budget"], say, ladder=True)
        rows += _materialise_rows(layer, label, size["ladder_budget"], say)
    return rows


GPU_RECORDS: dict[str, tuple[str, Callable[[dict[str, Any], bool, Callable[[str], None]], list[Row]]]] = {
    "gpu_roofs": ("roof", lambda size, quick, say: _roofs(say)),
    "gpu_layer": ("timing", lambda size, quick, say: _measured_layers(size, say)),
    "gpu_memory": ("memory", lambda size, quick, say: _gpu_memory_rows(size["memory"], say)),
    "gpu_ladder": ("timing", lambda size, quick, say: _measured_ladder(size, say)),
    "gpu_steps": ("timing", lambda size, quick, say: _gpu_step_rows(size["epochs"], quick, say)),
}


def run_gpu(
    folder: Path | str, *, quick: bool = False, say: Callable[[str], None] = print, only: Sequence[str] = ()
) -> list[Path]:
    """Measure the CUDA kernels on the current GPU and write gpu_roofs, gpu_layer, gpu_memory, gpu_ladder and
    gpu_steps.json into ``folder``, each as soon as it is complete.

    Arguments and result as in `run_cpu`; ``only`` names some of ``GPU_RECORDS``. ValueError where there is no GPU.
    """
    if unknown := set(only) - set(GPU_RECORDS):
        raise ValueError(f"only must name some of {', '.join(GPU_RECORDS)}, got {', '.join(sorted(unknown))}")
    if not gpu_available():
        raise ValueError("there is no CUDA GPU with CuPy here; `hashedmm doctor` says what is missing")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = "hashedmm bench --gpu" + (" --quick" if quick else "")
    size = GPU_QUICK if quick else GPU_FULL
    written = []
    if not only or {"gpu_layer", "gpu_ladder"} & set(only):
        _build_all(size, say)
    for name, (kind, measured) in GPU_RECORDS.items():
        if only and name not in only:
            continue
        begun = time.perf_counter()
        write(folder / f"{name}.json", new_record(kind, measured(size, quick, say), command, gpu_info()))
        written.append(folder / f"{name}.json")
        say(f"{name} took {time.perf_counter() - begun:.0f} s")
    return written
