"""What kernels ask memory for, by the emulator and by the hardware, for the same launches; and what bounds kernels.

``run`` writes data/results/counters.json. The emulator counts everywhere; where there is a GPU and Nsight Compute
(``ncu``), the hardware's counters of the same launches are read as well. The launches are those of matmul kernels, and
of three kernels that load 4, 8 or 16 bytes a lane from shared memory in patterns that tell the rules of its banks.
``run_bounds`` writes data/results/gpu_bounds.json: how busy each part of a GPU is in the launches of a large layer, and
why warps wait.
Imports bench, build, emulator, matmul, records.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hashedmm import emulator
from hashedmm.bench import LAYER
from hashedmm.build import RawKernel, current_device, gpu_available
from hashedmm.hashing import HashSpec
from hashedmm.launch import Launch
from hashedmm.matmul import choose, plan_grad_w, plan_grad_x, plan_matmul
from hashedmm.records import gpu_info, new_record, write

SHAPE, COLUMNS = (128, 256), 64
KERNELS = ("naive", "coalesced", "shared", "register_tile", "panel")
SPECS = {
    "elementwise": HashSpec.elementwise(SHAPE, 1 / 8, seed=1),
    "panels": HashSpec.panels(SHAPE, 1 / 8, panel=(64, 128), seed=1),
    "strips": HashSpec.strips(SHAPE, 1 / 8, height=16, panel=(64, 128), seed=1),
}
METRICS = {  # what we call it -> Nsight Compute's metric
    "global_load_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "global_load_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "global_store_requests": "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "global_store_sectors": "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "shared_load_requests": "smsp__inst_executed_op_shared_ld.sum",
    "shared_load_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_ld.sum",
    "shared_load_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "shared_store_requests": "smsp__inst_executed_op_shared_st.sum",
    "shared_store_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared_op_st.sum",
    "shared_store_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
}
Row = dict[str, Any]

BANKS = r"""
#define LOAD(NAME, TYPE, SUM) \
extern "C" __global__ void NAME(const int* place, float* sum) { \
    __shared__ __align__(16) float memory[4096]; \
    for (int i = threadIdx.x; i < 4096; i += 32) memory[i] = i; \
    __syncthreads(); \
    const TYPE v = reinterpret_cast<const TYPE*>(memory)[place[threadIdx.x]]; \
    sum[threadIdx.x] = SUM; \
}
LOAD(load_4, float, v)
LOAD(load_8, float2, v.x + v.y)
LOAD(load_16, float4, (v.x + v.y) + (v.z + v.w))
"""
_LANE = np.arange(32)
PATTERNS = {  # which element, of 4, 8 or 16 bytes, each lane loads
    "neighbours": _LANE,
    "backwards": _LANE[::-1],
    "one address": 0 * _LANE,
    "two halves": _LANE // 16,
    "four quarters": _LANE // 8,
    "equal pairs": _LANE // 2,
    "alternating 2": _LANE % 2,
    "alternating 4": _LANE % 4,
    "alternating 8": _LANE % 8,
    "alternating 16": _LANE % 16,
    "two of one bank": 16 * (_LANE % 2),
    "every second": 2 * _LANE,
    "every fourth": 4 * _LANE,
    "every eighth": 8 * _LANE,
    "random 32": np.random.default_rng(0).integers(0, 32, 32),
    "random 128": np.random.default_rng(1).integers(0, 128, 32),
    "shuffled": np.random.default_rng(2).permutation(32),
}
LOADS = ("load_4", "load_8", "load_16")


def cases() -> list[tuple[str, str]]:
    """(kernel, case) of every launch, in the order of `launches`: the case is a structure or a pattern."""
    return [(k, s) for s in SPECS for k in KERNELS] + [(k, p) for k in LOADS for p in PATTERNS]


def launches(array: Callable[[np.ndarray], Any]) -> Iterator[Launch]:
    """The launches of `cases`; ``array`` puts a NumPy array in its place."""
    for spec in SPECS.values():
        rng = np.random.default_rng(0)
        w, x = (array(rng.standard_normal(shape, np.float32)) for shape in (spec.n_buckets, (spec.cols, COLUMNS)))
        y = array(np.full((spec.rows, COLUMNS), np.nan, np.float32))
        for kernel in KERNELS:
            yield from plan_matmul(w, x, y, spec, kernel).launches()
    for name in LOADS:
        load = RawKernel(BANKS, name) if array is not _stay else emulator.RawKernel(BANKS, name)
        for place in PATTERNS.values():
            args = (array(place.astype(np.int32)), array(np.zeros(32, np.float32)))
            yield Launch(load, (1,), (32,), args, 0)


def _stay(a: np.ndarray) -> np.ndarray:
    return a


def launch_all() -> None:
    """Launch every case once on the current GPU: what Nsight Compute watches."""
    import cupy

    for launch in launches(cupy.asarray):
        launch.run()
    cupy.cuda.Device().synchronize()


def _row(kernel: str, case: str, source: str, counts: dict[str, int]) -> Row:
    spec = SPECS.get(case)
    what: Row = {"kernel": kernel, "case": case, "source": source, "dtype": "float32"}
    if spec is not None:
        what |= {"spec": json.loads(spec.to_json()), "shape": [spec.rows, spec.cols, COLUMNS]}
    return what | counts


def emulated() -> list[Row]:
    """The emulator's counts."""
    rows = []
    for (kernel, case), launch in zip(cases(), launches(_stay), strict=True):
        trace = emulator.trace(*launch[:4], shared_mem=launch.shared_mem)
        counts = {}
        for name in METRICS:
            space, op, what = name.split("_")
            column = "bank_conflicts" if what == "conflicts" else what
            counts[name] = trace.total(space, op)[column]
        rows.append(_row(kernel, case, "emulator", counts))
    return rows


def _profiled(function: str, kernels: list[str], metrics: list[str]) -> list[dict[str, str]]:
    """What Nsight Compute says of the launches that a function of this module does: of these kernels, in this order."""
    program = shutil.which("ncu")
    if program is None:
        raise RuntimeError("Nsight Compute (ncu) is not on the PATH; it comes with the CUDA toolkit")
    command = [
        program, "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base",
        "--kernel-name", f"regex:^({'|'.join(dict.fromkeys(kernels))})$", "--metrics", ",".join(metrics),
        sys.executable, "-c", f"from hashedmm.counters import {function}; {function}()",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith('"')]
    found = [row for row in csv.DictReader(lines) if row["Kernel Name"]]  # the second line holds units
    if run.returncode or [row["Kernel Name"].partition("(")[0] for row in found] != kernels:
        raise RuntimeError(f"Nsight Compute did not report the {len(kernels)} launches:\n{run.stdout}{run.stderr}")
    return found


def hardware() -> list[Row]:
    """The hardware's counts, by Nsight Compute; RuntimeError with its output where it fails."""
    found = _profiled("launch_all", [kernel for kernel, _ in cases()], list(METRICS.values()))
    return [
        _row(kernel, case, "ncu", {name: int(float(row[metric].replace(",", ""))) for name, metric in METRICS.items()})
        for (kernel, case), row in zip(cases(), found, strict=True)
    ]


def run(folder: Path | str, *, say: Callable[[str], None] = print) -> list[Path]:
    """Count and write counters.json into ``folder``: the emulator's rows, then the hardware's where there is a GPU."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows, device = emulated(), None
    if gpu_available():
        rows, device = rows + hardware(), gpu_info()
    for row in rows:
        counts = "  ".join(f"{name.replace('_', ' ')} {row[name]}" for name in METRICS if row[name])
        say(f"{row['source']:8} {row['kernel']:13} {row['case']:15} {counts}")
    path = folder / "counters.json"
    write(path, new_record("counters", rows, "hashedmm bench --counters", device))
    return [path]


# --------------------------------------------------------------------------------------------------------------------
# What bounds a kernel

BOUNDS = {  # in percent of what the part of the GPU can do while the kernel runs, but for the first
    "us": "gpu__time_duration.sum",
    "dram": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "shared": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "tensor": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "issue": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
    "warps": "sm__warps_active.avg.pct_of_peak_sustained_active",
}
STALLS = (
    "barrier", "branch_resolving", "drain", "lg_throttle", "long_scoreboard", "math_pipe_throttle", "mio_throttle",
    "no_instruction", "not_selected", "short_scoreboard", "wait",
)  # fmt: skip
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
BOUND_CASES = (  # of the layer "strips" and of "panels" in hashedmm.bench: operation, compression, n, dtype
    *(("strips", o, 1 / 64, 1024, "float16") for o in ("matmul", "grad_x", "grad_w")),
    ("strips", "matmul", 1 / 8, 1024, "float16"),
    *(("strips", "matmul", 1 / 64, n, "float16") for n in (32, 8, 1)),
    ("strips", "matmul", 1 / 8, 1, "float16"),
    ("strips", "matmul", 1 / 64, 1, "float32"),
    ("panels", "matmul", 1 / 64, 1, "float32"),
)


def bound_launches(shape: tuple[int, int] = (8192, 8192)) -> Iterator[tuple[tuple, HashSpec, Launch]]:
    """(case, spec, launch) of every kernel that `hashed_matmul` and the gradients launch for ``BOUND_CASES``."""
    import cupy

    for case in BOUND_CASES:
        layer, operation, compression, n, dtype = case
        spec, rng = LAYER[layer](shape, compression), cupy.random.default_rng(0)

        def random(*size: int) -> Any:
            return (rng.random(size, np.float32) - 0.5).astype(dtype)  # noqa: B023

        w, x, gy = random(spec.n_buckets), random(spec.cols, n), random(spec.rows, n)
        kernel = choose(operation, spec, n, dtype, current_device()).kernel
        plan: Any
        if operation == "matmul":
            plan = plan_matmul(w, x, cupy.empty_like(gy), spec, kernel)
        elif operation == "grad_x":
            plan = plan_grad_x(w, gy, cupy.empty_like(x), spec, kernel)
        else:
            plan = plan_grad_w(x, gy, cupy.zeros(spec.n_buckets, np.float32), spec, kernel)
        for launch in plan.launches():
            yield case, spec, launch


def launch_bounds() -> None:
    """Launch them: what Nsight Compute watches. (It flushes the caches before each.)"""
    import cupy

    for _, _, launch in bound_launches():
        launch.run()
    cupy.cuda.Device().synchronize()


def bounds() -> list[Row]:
    """A row for each launch: microseconds, percentages, and the three commonest reasons why a warp waits, in cycles an
    instruction."""
    launched = list(bound_launches())
    metrics = [*BOUNDS.values(), *(_STALL.format(name) for name in STALLS)]
    found = _profiled("launch_bounds", [launch.kernel.name for _, _, launch in launched], metrics)
    rows = []
    for ((layer, operation, compression, n, dtype), spec, launch), values in zip(launched, found, strict=True):
        of = {metric: float(values[metric].replace(",", "")) for metric in metrics}
        stalls = sorted(((of[_STALL.format(name)], name) for name in STALLS), reverse=True)[:3]
        row: Row = {
            "layer": layer, "operation": operation, "kernel": launch.kernel.name, "compression": compression,
            "shape": [*spec.shape, n], "dtype": dtype, "spec": json.loads(spec.to_json()),
            "blocks": launch.grid[0], "threads": launch.block[0], "shared_bytes": launch.shared_mem,
        }  # fmt: skip
        row |= {name: round(of[metric], 2) for name, metric in BOUNDS.items()}
        row["us"] = round(of[BOUNDS["us"]] / 1e3, 2)
        rows.append(row | {"stalls": {name: round(cycles, 2) for cycles, name in stalls}})
    return rows


def run_bounds(folder: Path | str, *, say: Callable[[str], None] = print) -> list[Path]:
    """Profile and write gpu_bounds.json into ``folder``; ValueError where there is no GPU, RuntimeError without ncu."""
    if not gpu_available():
        raise ValueError("bounds: there is no GPU that CuPy can use here; `hashedmm doctor` says what is missing")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = bounds()
    for row in rows:
        percent = "  ".join(f"{name} {row[name]:.0f} %" for name in BOUNDS if name != "us")
        stalls = ", ".join(f"{name} {cycles:.1f}" for name, cycles in row["stalls"].items())
        what = f"{row['operation']:8} n {row['shape'][2]:<5} {row['kernel']:20}"
        say(f"{what} {row['us']:8.1f} us  {percent}  waits: {stalls}")
    path = folder / "gpu_bounds.json"
    write(path, new_record("counters", rows, "hashedmm bench --bounds", gpu_info()))
    return [path]
