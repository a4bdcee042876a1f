"""Speed and memory, measured against baselines that run in turn.

Every result is verified against a float64 reference first and timed second, so no wrong kernel is ever fast.
``run_cpu`` writes three records: products, training steps, and the peak memory of a product whose W would not fit;
``run_gpu`` writes the CUDA kernels' times against cuBLAS, and what the GPU can do at most. Imports build, kernels,
matmul, nn, experiments, records.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hashedmm import cpu, emulator, reference
from hashedmm.build import gpu_available, shared_limit
from hashedmm.experiments import Run, default_options
from hashedmm.hashing import HashSpec
from hashedmm.kernels import CUDA
from hashedmm.matmul import hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x, materialise
from hashedmm.nn import MLP, Adam, softmax_cross_entropy
from hashedmm.records import new_record, write

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


def _net(method: str, compression: float) -> MLP:
    """The network that `hashedmm train` would train: speed is measured on what the errors are measured on."""
    return Run(method, 1.0 if method == "dense" else compression, layers=LAYERS).build(seed=1)


def _step(net: MLP, optimizer: Adam, x: np.ndarray, labels: np.ndarray, step: int) -> None:
    _, gradient = softmax_cross_entropy(net.forward(x, train=True, step=step), labels)
    net.backward(gradient)
    optimizer.step(net.parameters())


def _check_step(net: MLP, x: np.ndarray, labels: np.ndarray) -> float:
    """Relative error of the first layer's gradient against the float64 reference, given the same gradient above it."""
    _, gradient = softmax_cross_entropy(net.forward(x, train=True, step=0), labels)
    net.backward(gradient)
    first = net.linears[0]
    gy = gradient
    for layer in reversed(net.layers[1:]):
        gy = layer.backward(gy)
    x64, gy64 = x.astype(np.float64), np.asarray(gy, np.float64)
    expected = gy64.T @ x64 if first.spec is None else reference.matmul_grad_w(x64.T, gy64.T, first.spec)
    return _verified("a training step", np.asarray(first.weight.grad), expected)


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

# Structures of the kernel ladder: what each constructor takes beside shape and compression.
LADDER: dict[str, Callable[[tuple[int, int], float], HashSpec]] = {
    "elementwise": lambda shape, c: HashSpec.elementwise(shape, c, seed=1),
    "panels": lambda shape, c: HashSpec.panels(shape, c, seed=1),
    "strips": lambda shape, c: HashSpec.strips(shape, c, height=16, seed=1),
}
GPU_FULL: dict[str, Any] = {"side": 4096, "columns": (1, 32, 512), "budget": 0.25}
GPU_QUICK: dict[str, Any] = {"side": 1024, "columns": (1, 64), "budget": 0.05}
GPU_TOLERANCE = {"float32": 1e-5, "float16": 2e-3}  # float16 rounds the result to 11 bits


def gpu_info() -> dict[str, Any]:
    """The current GPU: name, multiprocessors, memory, L2 cache and driver."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return {
        "kind": "gpu",
        "name": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
    }


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

    def on_gpu(function: Callable[[], Any]) -> float:
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        function()
        stop.record()
        stop.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, stop))

    host = 0.0  # milliseconds of the slowest call, until it returns
    for function in functions.values():
        for _ in range(3):
            cupy.cuda.Device().synchronize()
            begun = time.perf_counter()
            function()
            last = 1e3 * (time.perf_counter() - begun)
        host = max(host, last)
    fill = statistics.median(on_gpu(lambda: flush.fill(0)) for _ in range(5))
    fills = 1 + math.ceil(2 * host / fill)
    end = time.perf_counter() + budget
    while len(next(iter(times.values()))) < least or time.perf_counter() < end:
        for name in _shuffled(functions, order):
            for _ in range(fills):
                flush.fill(0)
            times[name].append(on_gpu(functions[name]))
    return times


def _gpu_rows(spec: HashSpec, n: int, dtype: str, budget: float, say: Callable[[str], None]) -> list[Row]:
    """Timing rows of every CUDA kernel that computes ``spec``, all operations, against cuBLAS on the dense matrix."""
    import cupy

    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(spec.cols)  # as weights have it, so that float16 neither overflows nor underflows
    w = cupy.asarray(rng.standard_normal(spec.n_buckets) * scale, dtype)
    x = cupy.asarray(rng.standard_normal((spec.cols, n)), dtype)
    gy = cupy.asarray(rng.standard_normal((spec.rows, n)), dtype)
    dense = materialise(w, spec)
    bucket, sign = (cupy.asarray(a) for a in spec.indices())
    if not cupy.array_equal(dense, sign.astype(dtype) * w[bucket]):
        raise ArithmeticError(f"materialise of {spec.structure} {spec.shape} is wrong, so nothing is timed")
    dense64, x64, gy64 = (a.astype(cupy.float64) for a in (dense, x, gy))
    g64 = (gy64 @ x64.T) * sign
    expected = {
        "matmul": dense64 @ x64,
        "grad_x": dense64.T @ gy64,
        "grad_w": cupy.bincount(bucket.ravel(), weights=g64.ravel(), minlength=spec.n_buckets),
        "materialise": dense64,
    }
    del g64, bucket, sign, dense64
    dense_calls: dict[str, Callable[[], Any]] = {
        "matmul": lambda: dense @ x,
        "grad_x": lambda: dense.T @ gy,
        "grad_w": lambda: gy @ x.T,
        "materialise": lambda: cupy.copyto(dense, 0),
    }
    public: dict[str, Callable[..., Any]] = {
        "matmul": lambda kernel: hashed_matmul(w, x, spec, kernel=kernel),
        "grad_x": lambda kernel: hashed_matmul_grad_x(w, gy, spec, kernel=kernel),
        "grad_w": lambda kernel: hashed_matmul_grad_w(x, gy, spec, kernel=kernel),
        "materialise": lambda kernel: materialise(w, spec),
    }
    rows = []
    for operation in expected:
        if operation == "materialise" and n != 1:
            continue  # it has no columns: once is enough
        kernels = [k for k in CUDA.values() if operation in k.operations and k.supports(spec, dtype, shared_limit())]
        functions: dict[str, Callable[[], Any]] = {k.name: partial(public[operation], k.name) for k in kernels}
        errors = {}
        for name, function in functions.items():
            error = relative_error(cupy.asnumpy(function()).astype(np.float64), cupy.asnumpy(expected[operation]))
            if not error <= GPU_TOLERANCE[dtype]:
                raise ArithmeticError(
                    f"{name} of {spec.structure} {spec.shape}, n {n}, {dtype} is wrong, so it is not timed: its "
                    f"relative error against float64 is {error:.3g}"
                )
            errors[name] = error
        baseline = "fill" if operation == "materialise" else f"cublas_{dtype}"
        functions[baseline] = dense_calls[operation]
        if operation == "matmul":
            functions["materialise_cublas"] = lambda: materialise(w, spec) @ x
        times = measure_gpu(functions, budget=budget)
        for kernel in kernels:
            others = {name: times[name] for name in (baseline, "materialise_cublas") if name in times}
            rows.append(
                _row(operation, kernel.name, spec, n, errors[kernel.name], {"hashed": times[kernel.name], **others})
                | {"dtype": dtype}
            )
            say(f"{kernel.name:13} {dtype:7} " + _line(rows[-1]))
    return rows


def _roofs(say: Callable[[str], None]) -> list[Row]:
    """What this GPU can do at most: bytes a second of a copy, and multiply-adds a second of cuBLAS."""
    import cupy

    rows: list[Row] = []
    size = 2**30
    a, b = cupy.ones(size // 4, cupy.float32), cupy.empty(size // 4, cupy.float32)
    ms = statistics.median(measure_gpu({"copy": lambda: cupy.copyto(b, a)}, budget=0.2)["copy"])
    rows.append({"roof": "copy", "bytes": 2 * size, "ms": ms, "per_second": 2e3 * size / ms, "unit": "bytes"})
    side = 8192
    for dtype in ("float32", "float16"):
        p, q = (cupy.random.standard_normal((side, side), dtype=cupy.float32).astype(dtype) for _ in range(2))
        ms = statistics.median(measure_gpu({"product": partial(cupy.matmul, p, q)}, budget=0.5)["product"])
        flops = 2 * side**3
        rows.append({"roof": f"cublas_{dtype}", "side": side, "ms": ms, "per_second": 1e3 * flops / ms, "unit": "FLOP"})
    for row in rows:
        say(f"roof    {row['roof']:15} {row['per_second'] / 1e12:8.2f} T{row['unit']}/s")
    return rows


def run_gpu(folder: Path | str, *, quick: bool = False, say: Callable[[str], None] = print) -> list[Path]:
    """Measure the CUDA kernels on the current GPU and write gpu_ladder.json and gpu_roofs.json into ``folder``.

    Arguments and result as in `run_cpu`; ValueError where there is no GPU.
    """
    if not gpu_available():
        raise ValueError("there is no CUDA GPU with CuPy here; `hashedmm doctor` says what is missing")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = "hashedmm bench --gpu" + (" --quick" if quick else "")
    size = GPU_QUICK if quick else GPU_FULL
    rows = []
    for name, compression, dtype in itertools.product(LADDER, COMPRESSIONS, GPU_TOLERANCE):
        spec = LADDER[name]((size["side"], size["side"]), compression)
        for n in size["columns"]:
            rows += _gpu_rows(spec, n, dtype, size["budget"], say)
    written = []
    for name, kind, found in (("gpu_ladder", "timing", rows), ("gpu_roofs", "roof", _roofs(say))):
        write(folder / f"{name}.json", new_record(kind, found, command, gpu_info()))
        written.append(folder / f"{name}.json")
    return written
