"""Why "auto" takes the kernel it takes, in words; and measuring the kernels on the machine's own GPU.

``explain`` is what `hashedmm doctor --explain` prints, ``tune`` what `hashedmm tune` does. Imports build, cpu, kernels,
sketch, tuning, matmul, records and bench.
"""

from __future__ import annotations

import json
import statistics
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hashedmm import bench, cpu, records, sketch, tuning
from hashedmm.build import Device, current_device, gpu_available, shared_limit
from hashedmm.hashing import HashSpec, Region
from hashedmm.kernels import CUDA, SplitKernel
from hashedmm.matmul import (
    Choice,
    choose,
    cuda_kernels,
    forget_choices,
    hashed_matmul,
    hashed_matmul_grad_w,
    hashed_matmul_grad_x,
)

WIDTH = 100  # columns of text
SAMPLED = 64  # strips that stand for all
REFERENCE = 2**22  # weights up to which a product is compared with the reference
CHECKED = 64  # columns of a product that are compared with the CPU's before it is timed
Row = dict[str, Any]
Times = Callable[[dict[str, Callable[[], Any]]], dict[str, list[float]]]


def explain(operation: str, spec: HashSpec, n: int, dtype: str) -> str:
    """What "auto" does with a product: which kernel, here and on an H100, why, how long each kernel takes, and memory.

    Nothing is computed: the times are those of the tuning tables.
    """
    lines = [f"{operation}: {spec.rows} x {spec.cols}, n = {n}, {dtype}", "", *_said("structure", _structure(spec))]
    here = current_device()
    name = tuning.gpu_name(here)
    if name is None:
        lines += _said("here", f"no GPU, so on the CPU: cpu_{cpu.choose_schedule(spec, n)}")
    else:
        lines += _place(name, operation, spec, n, dtype, here)
    known = tuning.shipped()[0].gpu
    if name != known:
        lines += _place(known, operation, spec, n, dtype, "emulator")
    choice = choose(operation, spec, n, dtype, here)
    return "\n".join(lines + _memory(choice, operation, spec, n, dtype))


def _structure(spec: HashSpec) -> str:
    parts = [spec.structure, f"blocks {spec.block[0]} x {spec.block[1]}"]
    if spec.stride:
        parts.append(f"stride {spec.stride}")
    if spec.panel:
        parts.append(f"panels {spec.panel[0]} x {spec.panel[1]}")
    part = 1 / spec.compression
    compression = f"1/{part:.0f}" if abs(part - round(part)) < 1e-9 else f"{spec.compression:.4g}"
    return ", ".join([*parts, f"compression {compression}"])


def _said(name: str, text: str, more: int = 0) -> list[str]:
    """ "name  text"; the text hangs, its second line and those below by ``more``."""
    wrapped = textwrap.wrap(
        text, WIDTH - 18, subsequent_indent=" " * more, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False, drop_whitespace=True,
    )  # fmt: skip
    return [f"  {name if not i else '':<16}{line}" for i, line in enumerate(wrapped)]


def _place(name: str, operation: str, spec: HashSpec, n: int, dtype: str, where: Device) -> list[str]:
    """The choice on one GPU."""
    choice = choose(operation, spec, n, dtype, where)
    lines = [*_said("on", name), *_said("auto takes", choice.kernel), *_said("why", choice.why), ""]
    for kernel, ms, reason in choice.candidates:
        chosen = "   chosen" if kernel == choice.kernel else ""
        lines += _said(kernel, f"{_number(ms):>10} ms{chosen}" if ms is not None else f"{'-':>10}      {reason}", 16)
    return [*lines, ""]


def _number(value: float) -> str:
    """Three digits that count, no exponents."""
    digits = next((digits for digits, below in ((4, 0.1), (3, 1), (2, 10), (1, 100)) if value < below), 0)
    return f"{value:.{digits}f}"


def _memory(choice: Choice, operation: str, spec: HashSpec, n: int, dtype: str) -> list[str]:
    size = np.dtype(dtype).itemsize
    rows = [
        ("buckets", size * spec.n_buckets, f"stored: {spec.n_buckets:,} of {dtype}"),
        ("derived lists", derived_bytes(choice.kernel, operation, spec, n, dtype), "about; never saved"),
        ("workspace", workspace_bytes(choice.kernel, operation, spec, n, dtype), "during a call"),
        ("W", size * spec.rows * spec.cols, "what W would take; it is never made"),
    ]
    return [
        line
        for name, count, text in rows
        for line in _said(name, f"{_number(count / 1e6) if count else '0':>10} MB   {text}")
    ]


def derived_bytes(kernel: str, operation: str, spec: HashSpec, n: int, dtype: str) -> int:
    """What a product keeps beside the buckets: `hashedmm.sketch.lists`, by a sample of ``SAMPLED`` strips. In float16
    products with few columns keep other lists than the others do: a layer that is used for both keeps both."""
    if kernel != "sketch":
        return 0
    g = sketch.geometry(spec)
    if dtype == "float32" or sketch.takes_few(operation, spec, n, dtype, shared_limit("emulator")):
        return 2 * g.strips * g.across * (g.bins + 1 + sketch.GROUP * (g.width // sketch.GROUP + g.bins + 2))
    longest = 1
    for strip in np.unique(np.linspace(0, g.strips - 1, min(g.strips, SAMPLED)).astype(int)):
        h = spec.hash_blocks(strip, np.arange(spec.cols)).astype(np.uint64)
        for left in range(0, spec.cols, g.width):
            region = next(r for r in spec.regions if _inside(r, int(strip) * g.height, left))
            of_panel = h[left : left + g.width]
            group = (of_panel * np.uint64(region.candidates) >> np.uint64(32)).astype(int) // 16
            counts = np.bincount(8 * group + np.arange(len(group)) % 8, minlength=8 * g.groups).reshape(-1, 8)
            longest = max(longest, int((-(-counts.max(axis=1) // 2)).sum()))
    return 2 * g.strips * g.across * (g.groups + 1 + 16 * longest)


def _inside(region: Region, i: int, j: int) -> bool:
    return region.row <= i < region.row + region.rows and region.col <= j < region.col + region.cols


def workspace_bytes(kernel: str, operation: str, spec: HashSpec, n: int, dtype: str) -> int:
    """What a kernel allocates for a call beside its result, for arrays in C order."""
    if kernel == "sketch":
        return _sketch_workspace(operation, spec, n, dtype)
    if kernel == "grad_w_fixed":
        return 8 * spec.n_buckets + 12
    if isinstance(row := CUDA[kernel], SplitKernel):
        values = row.fitted(row.values(n), spec, dtype, shared_limit("emulator"))
        shape = row.shape(spec, n, values, dtype)
        return 0 if shape.splits == 1 else 4 * (shape.splits * spec.rows * n + shape.grid[0] // shape.splits)
    return 0


def _sketch_workspace(operation: str, spec: HashSpec, n: int, dtype: str) -> int:
    """z or u, if that leaves the chip; for float32 the gradients of windows that overlap; and padded copies where n
    needs them. For few columns the parts of sums."""
    if sketch.takes_few(operation, spec, n, dtype, limit := shared_limit("emulator")):
        return sketch.few_workspace(spec, n, dtype, limit, sketch.MULTIPROCESSORS)
    g, size, padded = sketch.geometry(spec), np.dtype(dtype).itemsize, -(-n // sketch.ALIGN) * sketch.ALIGN
    copies = (padded != n) * padded * (spec.rows + spec.cols) * size
    if gpu_available() and sketch.takes_fused(operation, spec, n, dtype, current_device()):
        return copies
    total = sketch.workspace_bytes(spec, n, dtype)
    direct = spec.unit == g.height and (spec.panel or spec.shape)[0] <= g.height
    if operation == "grad_w" and dtype == "float32" and not direct:
        total += 4 * g.strips * g.all_bins * g.height
    return total + copies


# --------------------------------------------------------------------------------------------------------------------
# Measuring


def tune(
    spec: HashSpec, columns: Sequence[int], dtypes: Sequence[str], *, budget: float = 0.1,
    output: Path | str | None = None, say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Measure every kernel that computes ``spec`` on the current GPU, and keep the times for `choose`.

    Parameters
    ----------
    spec : HashSpec
    columns : n, one or more
    dtypes : "float16", "float32"
    budget : seconds for each operation, n and dtype
    output : a record (hashedmm.records) to add the times to, new or not, in place of the user's cache
    say : takes a line of text for each time

    Returns
    -------
    The file that holds the times: ``output``, or what `hashedmm.tuning.cache_file` names.

    Raises
    ------
    ValueError
        If there is no GPU, or ``output`` is a file and no record of this GPU.
    ArithmeticError
        If a kernel's result is wrong: nothing is kept then.
    """
    if not gpu_available():
        raise ValueError("there is no CUDA GPU with CuPy here to measure; `hashedmm doctor` says what is missing")
    device = records.gpu_info()
    before = _record_before(output, device["name"])
    timer = partial(bench.measure_gpu, budget=budget)
    rows = [row for dtype in dtypes for n in columns for row in measured(spec, n, dtype, timer, say)]
    record = records.new_record("timing", rows, "hashedmm tune", device)
    if output is None:
        path = tuning.keep(tuning.table_of(record))
        forget_choices()
        return path
    again = {_same(row) for row in rows}
    record["rows"] = [*(row for row in before if _same(row) not in again), *rows]
    records.write(output, record)
    return Path(output)


def _record_before(output: Path | str | None, gpu: str) -> list[Row]:
    """The rows of the record that is to be added to."""
    if output is None or not Path(output).exists():
        return []
    record = records.read(output)
    if record["kind"] != "timing" or record["device"].get("name") != gpu:
        raise ValueError(f"{output} is no timing record of {gpu}: name another file")
    return record["rows"]


def _same(row: Row) -> tuple[Any, ...]:
    """What a row measures."""
    return row["operation"], row["kernel"], json.dumps(row["spec"]), tuple(row["shape"]), row["dtype"]


def measured(spec: HashSpec, n: int, dtype: str, timer: Times, say: Callable[[str], None]) -> list[Row]:
    """Verify, then time, every kernel for one problem, on the current GPU or else in the emulator: timing rows.

    The results are compared with the reference's or, for large matrices, the CPU path's in float64: neither has code in
    common with the kernels.
    """
    where = current_device()
    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(spec.cols)  # as weights have it, so that float16 neither overflows nor underflows
    host = (
        (rng.standard_normal(spec.n_buckets) * scale).astype(dtype),
        rng.standard_normal((spec.cols, n)).astype(dtype),
        rng.standard_normal((spec.rows, n)).astype(dtype),
    )
    w64, x64, gy64 = (a.astype(np.float64) for a in host)
    some = np.unique(np.linspace(0, n - 1, min(n, CHECKED)).astype(int))  # columns
    exact = "reference" if spec.rows * spec.cols <= REFERENCE else "auto"
    expected = {
        "matmul": hashed_matmul(w64, x64[:, some], spec, kernel=exact),
        "grad_x": hashed_matmul_grad_x(w64, gy64[:, some], spec, kernel=exact),
        "grad_w": hashed_matmul_grad_w(x64, gy64, spec, kernel=exact),
    }
    if where == "emulator":
        w, x, gy = host
    else:
        import cupy

        w, x, gy = (cupy.asarray(a) for a in host)
    products: dict[str, Callable[[str], Any]] = {
        "matmul": lambda kernel: hashed_matmul(w, x, spec, kernel=kernel),
        "grad_x": lambda kernel: hashed_matmul_grad_x(w, gy, spec, kernel=kernel),
        "grad_w": lambda kernel: hashed_matmul_grad_w(x, gy, spec, kernel=kernel),
    }
    rows = []
    for operation, product in products.items():
        kernels = cuda_kernels(operation, spec, dtype, where)[0]
        errors = {}
        for kernel in kernels:
            result = product(kernel)
            result = (result if where == "emulator" else result.get()).astype(np.float64)
            error = bench.relative_error(result if operation == "grad_w" else result[:, some], expected[operation])
            if not error <= bench.GPU_TOLERANCE[dtype]:
                raise ArithmeticError(
                    f"{kernel}, {operation}, n = {n}, {dtype} is wrong, so nothing is timed: its relative error "
                    f"against float64 is {error:.3g}"
                )
            errors[kernel] = error
        times = timer({kernel: partial(product, kernel) for kernel in kernels})
        for kernel in sorted(kernels, key=lambda k: statistics.median(times[k])):
            low, ms, high = (float(t) for t in np.percentile(times[kernel], [20, 50, 80]))
            rows.append({
                "operation": operation, "kernel": kernel, "structure": spec.structure,
                "spec": json.loads(spec.to_json()), "compression": spec.compression, "shape": [*spec.shape, n],
                "dtype": dtype, "ms": ms, "ms_p20": low, "ms_p80": high, "error": errors[kernel], "baselines": {},
            })  # fmt: skip
            say(f"{operation:7} n {n:<5} {dtype:8} {kernel:14} {_number(ms):>10} ms")
    return rows
