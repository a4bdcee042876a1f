"""What kernels ask memory for: the emulator's counts beside the hardware's, for the same launches.

``run`` writes data/results/counters.json. The emulator counts everywhere; where there is a GPU and Nsight Compute
(``ncu``), the hardware's counters of the same launches are read as well. The launches are those of matmul kernels, and
of three kernels that load 4, 8 or 16 bytes a lane from shared memory in patterns that tell the rules of its banks.
Imports build, emulator, matmul, records.
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
from hashedmm.build import RawKernel, gpu_available
from hashedmm.hashing import HashSpec
from hashedmm.launch import Launch
from hashedmm.matmul import plan_matmul
from hashedmm.records import new_record, write

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


def hardware() -> list[Row]:
    """The hardware's counts, by Nsight Compute; RuntimeError with its output where it fails."""
    program = shutil.which("ncu")
    if program is None:
        raise RuntimeError("Nsight Compute (ncu) is not on the PATH; it comes with the CUDA toolkit")
    command = [
        program, "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base",
        "--kernel-name", f"regex:^({'|'.join((*KERNELS, *LOADS))})$", "--metrics", ",".join(METRICS.values()),
        sys.executable, "-c", "from hashedmm.counters import launch_all; launch_all()",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith('"')]
    found = [row for row in csv.DictReader(lines) if row["Kernel Name"]]  # the second line holds units
    if run.returncode or [row["Kernel Name"].partition("(")[0] for row in found] != [kernel for kernel, _ in cases()]:
        raise RuntimeError(f"Nsight Compute did not report the {len(cases())} launches:\n{run.stdout}{run.stderr}")
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
        from hashedmm.bench import gpu_info

        rows, device = rows + hardware(), gpu_info()
    for row in rows:
        counts = "  ".join(f"{name.replace('_', ' ')} {row[name]}" for name in METRICS if row[name])
        say(f"{row['source']:8} {row['kernel']:13} {row['case']:15} {counts}")
    path = folder / "counters.json"
    write(path, new_record("counters", rows, "hashedmm bench --counters", device))
    return [path]
