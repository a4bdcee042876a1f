"""The benchmark of streams: a matrix that is larger than the card, from buckets in host memory or in a file.

Every result is verified first, on sampled rows, columns or panels against a float64 reference made from the buckets,
and timed second, against what bounds it: the copy alone, of the same windows, and the products alone, from windows that
are on the card already. Beside it a dense matrix is streamed, at a size that fits the host, and scaled. Imports bench,
build, hashing, launch, nn, records and stream.
"""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hashedmm.bench import LAYER, Row, relative_error, tolerance, weights_of_rows
from hashedmm.build import gpu_available
from hashedmm.hashing import HashSpec
from hashedmm.launch import library
from hashedmm.nn import SGD, to_numpy
from hashedmm.records import device_info, gpu_info, new_record, write
from hashedmm.stream import Part, Piece, Streamed, Vector, pinned_empty, pipeline

COMPRESSION = 1 / 8
# Side of the square matrix, columns, budget, side of the one whose training step is timed, side of the dense matrix.
GPU = {"rows": 262144, "n": 1024, "budget": 8e9, "step_rows": 65536, "dense_rows": 65536}
CPU = {"rows": 16384, "n": 64, "budget": 128e6, "step_rows": 8192, "dense_rows": 8192}
LEAST_ROWS = 1024
SAMPLES = 32  # rows or columns of W that are compared
PANELS = 16  # panels whose gradients are compared
ROUNDS = 5  # calls that are timed
LEARNING_RATE, MOMENTUM = 5e-7, 0.9  # so small that many steps leave the numbers as they were, about
Say = Callable[[str], None]


def run(
    folder: Path | str, *, rows: int | None = None, n: int | None = None, budget: float | None = None,
    quick: bool = False, say: Say = print,
) -> list[Path]:  # fmt: skip
    """Measure streams and write gpu_stream.json, or on a machine without a GPU cpu_stream.json, into ``folder``.

    Parameters
    ----------
    folder : where the record goes; made if missing. On a CPU the buckets' file lies in it meanwhile.
    rows : side of the square matrix, at least 1024, a multiple of 256
    n : columns of x
    budget : bytes where the products run
    quick : a sixteenth of the weights, unless ``rows`` says otherwise
    say : takes a line of text for each result

    Returns
    -------
    The paths written.

    Raises
    ------
    ValueError
        If an argument is out of range, or a product does not fit in the budget.
    ArithmeticError
        If a result is wrong: nothing is written then.
    """
    gpu = gpu_available()
    size: dict[str, Any] = dict(GPU if gpu else CPU)
    if quick:
        size |= {"rows": size["rows"] // 4, "step_rows": size["step_rows"] // 4, "dense_rows": size["dense_rows"] // 4}
    asked = {name: v for name, v in (("rows", rows), ("n", n), ("budget", budget)) if v is not None}
    size |= asked
    if size["rows"] < LEAST_ROWS or size["rows"] % 256:
        raise ValueError(f"rows must be a multiple of 256 from {LEAST_ROWS} on, got {size['rows']}")
    if size["n"] < 1:
        raise ValueError(f"n must be at least 1, got {size['n']}")
    size["step_rows"] = min(size["step_rows"], size["rows"])
    size["dense_rows"] = min(size["dense_rows"], size["rows"])
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = "hashedmm bench --stream" + (" --quick" if quick else "")
    options = {"rows": "--rows {}", "n": "--columns {}", "budget": "--budget {:g}"}
    command = " ".join([command, *(options[name].format(value) for name, value in asked.items())])
    place: Any = _Card() if gpu else _File(folder)
    with place:
        found = _measured(place, size, say)
    path = folder / ("gpu_stream.json" if gpu else "cpu_stream.json")
    write(path, new_record("scaling", found, command, gpu_info() if gpu else device_info()))
    return [path]


# ---- where it runs


class _Card:
    """A GPU, and pinned host memory."""

    name, dtype = "pinned host memory", "float16"

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self.random = cupy.random.default_rng(0)
        cupy.zeros(1).get()  # the context exists

    def __enter__(self) -> _Card:
        return self

    def __exit__(self, *_: object) -> None:
        self.xp.get_default_memory_pool().free_all_blocks()

    def vector(self, count: int, dtype: Any) -> np.ndarray:
        """A long vector, not initialised."""
        return pinned_empty(count, dtype)

    def normal(self, size: Any) -> Any:
        """Normal numbers, float32, where the products run."""
        return self.random.standard_normal(size, dtype=np.float32)

    def matrix(self, rows: int, n: int) -> Any:
        """The same in the dtype of the products, by parts: no large copy in float32."""
        out = self.xp.empty((rows, n), self.dtype)
        for i in range(0, rows, 16384):
            out[i : i + 16384] = self.normal(out[i : i + 16384].shape)
        return out

    def wait(self) -> None:
        """Until everything is done."""
        self.xp.cuda.Device().synchronize()

    def peak(self, streamed: Streamed, call: Callable[[], Any], beside: int) -> int | None:
        """Bytes where the products run at the peak of a call, by the stream's own memory pool."""
        call()
        return streamed.peak_bytes

    @staticmethod
    def put(host: np.ndarray, part: slice, values: Any) -> None:
        """Write numbers into a long vector."""
        values.get(out=host[part])


class _File:
    """A CPU, and vectors in memory-mapped files."""

    name, dtype = "a memory-mapped file", "float32"

    def __init__(self, folder: Path) -> None:
        self.xp = np
        self.random = np.random.default_rng(0)
        self.folder = tempfile.TemporaryDirectory(prefix=".stream-", dir=folder)
        self.count = 0

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def vector(self, count: int, dtype: Any) -> np.ndarray:
        self.count += 1
        path = Path(self.folder.name) / f"{self.count}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(count,))

    def normal(self, size: Any) -> np.ndarray:
        return self.random.standard_normal(size, np.float32)

    def matrix(self, rows: int, n: int) -> np.ndarray:
        return self.normal((rows, n))

    def wait(self) -> None:
        pass

    def peak(self, streamed: Streamed, call: Callable[[], Any], beside: int) -> int | None:
        """Bytes that NumPy has at the peak of a call, and the arguments', ``beside``."""
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1] + beside
        finally:
            tracemalloc.stop()

    @staticmethod
    def put(host: np.ndarray, part: slice, values: np.ndarray) -> None:
        host[part] = values


def _fill(place: Any, host: np.ndarray, scale: float) -> None:
    """Normal numbers times ``scale`` into a long vector, 2^25 at a time."""
    for start in range(0, host.size, 2**25):
        part = slice(start, min(start + 2**25, host.size))
        place.put(host, part, (place.normal(part.stop - start) * np.float32(scale)).astype(host.dtype))


class HostPeak:
    """The most host memory that was in use while this context was open, beyond what was before.

    Sampled from the system's memory that is available and, beside that, from this process's resident memory: pinned
    memory is not counted by all systems in the second. ``bytes`` and ``resident`` are None where /proc is missing.
    """

    def __init__(self, every: float = 0.02) -> None:
        self.bytes: int | None = None
        self.resident: int | None = None
        self._every, self._stop = every, threading.Event()

    def _look(self) -> tuple[int, int] | None:
        try:
            available = _field("/proc/meminfo", "MemAvailable")
            return -available, _field("/proc/self/status", "VmRSS")
        except (OSError, LookupError):
            return None

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            self._note()

    def _note(self) -> None:
        if (now := self._look()) is not None and self._before is not None:
            self.bytes = max(self.bytes or 0, now[0] - self._before[0])
            self.resident = max(self.resident or 0, now[1] - self._before[1])

    def __enter__(self) -> HostPeak:
        self._before = self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._note()
        self._stop.set()
        self._thread.join()


def _field(path: str, name: str) -> int:
    """Bytes that a line "name: 12 kB" says."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise LookupError(name)


# ---- verifying


def dense_rows(w: np.ndarray, spec: HashSpec, rows: Sequence[int], dtype: Any) -> np.ndarray:
    """Some rows of W, (len(rows), cols) float64, of buckets that are rounded to the dtype of the products."""
    bucket, sign = weights_of_rows(spec, rows)
    return sign * np.asarray(w[bucket], dtype).astype(np.float64)


def weights_of_columns(spec: HashSpec, cols: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Bucket and sign, (rows, len(cols)), of the weights of some columns: what ``spec.indices()`` says of them."""
    at, (bh, bw) = np.asarray(cols), spec.block
    bucket = np.empty((spec.rows, len(at)), np.int64)
    sign = np.empty((spec.rows, len(at)), np.int8)
    for g in spec.regions:
        mine = np.flatnonzero((at >= g.col) & (at < g.col + g.cols))
        i, j = np.arange(g.row, g.row + g.rows)[:, None], at[mine][None, :]
        h = spec.hash_blocks(i // bh, j // bw)
        t = ((h.astype(np.uint64) * np.uint64(g.candidates)) >> np.uint64(32)).astype(np.int64)
        base = g.base + (i - g.row) // g.panel_rows * g.base_step + (j - g.col) // g.panel_cols * g.panel_buckets
        place = np.ix_(i[:, 0], mine)
        bucket[place] = base + t * spec.unit + j % bw * bh + i % bh
        sign[place] = 1 - 2 * (h & 1).astype(np.int8)
    return bucket, sign


def dense_columns(w: np.ndarray, spec: HashSpec, cols: Sequence[int], dtype: Any) -> np.ndarray:
    """Some columns of W, (rows, len(cols)) float64, as `dense_rows`."""
    bucket, sign = weights_of_columns(spec, cols)
    return sign * np.asarray(w[bucket], dtype).astype(np.float64)


def check(dense: np.ndarray, a: Any, found: Any, rows: Sequence[int]) -> float:
    """The relative error of some rows of a product against float64: dense @ a."""
    some = found[library(found).asarray(rows)]
    return relative_error(to_numpy(some).astype(np.float64), _times(dense, a))


Panels = Sequence[tuple[int, int]]


def check_panels(x: Any, gy: Any, gw: np.ndarray, spec: HashSpec, panels: Panels, factor: float = 1.0) -> float:
    """The relative error of the gradients of some panels' buckets, times ``factor``, against float64."""
    found, expected = [], []
    for r, c in panels:
        window = spec.window((r, r + 1), (c, c + 1))
        (start, stop), (bucket, sign) = window.pieces[0], window.indices()
        rows = gy[window.first_row : window.first_row + window.rows]
        cols = x[window.first_col : window.first_col + window.cols]
        dense = to_numpy(rows).astype(np.float64) @ to_numpy(cols).astype(np.float64).T * sign
        found.append(np.asarray(gw[start:stop], np.float64))
        expected.append(factor * np.bincount(bucket.ravel(), dense.ravel(), window.n_buckets))
    return relative_error(np.concatenate(found), np.concatenate(expected))


def _times(dense: np.ndarray, a: Any) -> np.ndarray:
    """dense @ a in float64, where ``a`` is, a part of ``a`` at a time."""
    xp = library(a)
    dense, total = xp.asarray(dense), xp.zeros((dense.shape[0], a.shape[1]))
    for k in range(0, dense.shape[1], 2**14):
        total += dense[:, k : k + 2**14] @ a[k : k + 2**14].astype(np.float64)
    return to_numpy(total)


def _sampled(count: int, samples: int) -> list[int]:
    """The first, the last, and others."""
    return np.unique([0, count - 1, *np.random.default_rng(1).integers(0, count, samples)]).tolist()


def _panels(spec: HashSpec) -> list[tuple[int, int]]:
    """The first, the last, and others."""
    down, across = spec.panel_grid
    others = np.random.default_rng(2).integers(0, 2**31, (PANELS, 2)).tolist()
    return [(0, 0), (down - 1, across - 1), *((r % down, c % across) for r, c in others)]


def _accept(what: str, error: float, most: float) -> float:
    if not error <= most:
        raise ArithmeticError(
            f"{what} is wrong, so it is not timed: its relative error against float64 is {error:.3g}, over {most:.3g}"
        )
    return error


# ---- timing


def _times_of(place: Any, call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds of a call, from the host's start to the last copy's end: median, 20th and 80th percentile."""
    times = []
    for _ in range(ROUNDS):
        place.wait()
        begun = time.perf_counter()
        call()
        place.wait()
        times.append(1e3 * (time.perf_counter() - begun))
    p20, p80 = np.percentile(times, [20, 80])
    return {"ms": statistics.median(times), "ms_p20": float(p20), "ms_p80": float(p80)}


@contextlib.contextmanager
def _only(streamed: Streamed, part: str) -> Iterator[None]:
    """Only the "copies", or only the "products", of a stream are done."""
    streamed.copies, streamed.products = part == "copies", part == "products"
    try:
        yield
    finally:
        streamed.copies = streamed.products = True


def _timed(place: Any, streamed: Streamed, call: Callable[[], Any]) -> dict[str, Any]:
    """Times of a stream, of its copies alone and of its products alone, one after the other."""
    whole = _times_of(place, call)
    alone = {}
    for part in ("copies", "products"):
        times = []
        with _only(streamed, part):
            for _ in range(1 + ROUNDS // 2):
                before = streamed.seconds
                call()
                times.append(1e3 * (streamed.seconds - before))
        alone[part] = statistics.median(times)
    slower = max(alone, key=lambda part: alone[part])
    return {
        **whole,
        "copies_ms": alone["copies"],
        "products_ms": alone["products"],
        "bound": slower,
        "of_bound": alone[slower] / whole["ms"],
    }


def _row(
    place: Any, operation: str, streamed: Streamed, n: int, error: float, times: dict[str, Any], up: int, down: int,
    peak: int | None, host: HostPeak | None,
) -> Row:  # fmt: skip
    """A row of gpu_stream.json.

    Beside what every timing row has: ``bound``, which of copies and products takes longer alone, and ``of_bound``, that
    time over the stream's; bytes that are copied ``up`` and ``down``, and how many a second; bytes at the peak beside
    what was predicted, where the products run and in host memory.
    """
    asked = "backward" if operation == "step" else operation
    plan = next(plan for plan in reversed(streamed._plans.values()) if plan.operation == asked)
    row: Row = {
        "operation": operation,
        "source": place.name,
        "kernel": " + ".join(dict.fromkeys(plan.kernels.values())),
        "structure": streamed.spec.structure,
        "spec": json.loads(streamed.spec.to_json()),
        "compression": streamed.spec.compression,
        "shape": [streamed.spec.rows, streamed.spec.cols, n],
        "dtype": place.dtype,
        "budget": streamed.budget,
        "windows": len(plan.windows),
        **times,
        "error": error,
        "up_bytes": up,
        "down_bytes": down,
        "bytes_per_second": 1e3 * max(up, down) / times["ms"],
        "predicted_bytes": plan.device_bytes,
        "peak_bytes": peak,
        "dense_bytes": np.dtype(place.dtype).itemsize * streamed.spec.rows * streamed.spec.cols,
    }
    if host is not None and isinstance(place, _Card):
        row |= {
            "predicted_host_bytes": plan.host_bytes,
            "peak_host_bytes": host.bytes,
            "peak_resident_bytes": host.resident,
        }
    return row


def line(row: Row) -> str:
    """A row in words."""
    d_out, d_in, n = row["shape"]
    text = f"{row['operation']:9} {d_out} x {d_in}, n {n}: {row['ms']:9.2f} ms"
    if "of_bound" in row:
        text += (
            f", {100 * row['of_bound']:.0f} % of its {row['bound']} alone (copies {row['copies_ms']:.2f}, products "
            f"{row['products_ms']:.2f}); {row['bytes_per_second'] / 1e9:.1f} GB/s, {row['windows']} windows"
        )
        if row["peak_bytes"] is not None:
            text += f"; {row['peak_bytes'] / 1e9:.3f} GB at the peak, predicted {row['predicted_bytes'] / 1e9:.3f}"
        if row.get("peak_host_bytes") is not None:
            found, predicted = row["peak_host_bytes"], row["predicted_host_bytes"]
            text += f"; {found / 1e9:.2f} GB in the host, predicted {predicted / 1e9:.2f}"
    if row.get("scaled_ms"):
        text += f"; scaled to {row['scaled_to'][0]} x {row['scaled_to'][1]} by bytes: {row['scaled_ms']:.0f} ms"
    return text


# ---- what is measured


def _measured(place: Any, size: dict[str, Any], say: Say) -> list[Row]:
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        say(line(row))

    n, budget = size["n"], size["budget"]
    spec = LAYER["strips"]((size["rows"], size["rows"]), COMPRESSION)
    x, gy = place.matrix(spec.cols, n), place.matrix(spec.rows, n)
    for row in _forward_and_back(place, spec, x, gy, budget):
        add(row)
    add(_gradient(place, spec, x, gy, budget))
    del x, gy
    add(_step(place, LAYER["strips"]((size["step_rows"], size["step_rows"]), COMPRESSION), n, budget))
    add(_dense(place, size["dense_rows"], n, spec.shape))
    return rows


def _forward_and_back(place: Any, spec: HashSpec, x: Any, gy: Any, budget: float) -> Iterator[Row]:
    """The rows of y = W x and of W^T gy."""
    n = x.shape[1]
    with HostPeak() as host:
        w = place.vector(spec.n_buckets, place.dtype)
        _fill(place, w, 1 / math.sqrt(spec.cols))
        streamed = Streamed(w, spec, budget=budget)
        y = streamed.matmul(x)
    at = _sampled(spec.rows, SAMPLES)
    error = check(dense_rows(w, spec, at, place.dtype), x, y, at)
    _accept(f"matmul of {spec.shape}", error, tolerance(place.dtype, spec.cols))
    del y
    peak = place.peak(streamed, lambda: streamed.matmul(x), x.nbytes)
    times = _timed(place, streamed, lambda: streamed.matmul(x))
    yield _row(place, "matmul", streamed, n, error, times, w.nbytes, 0, peak, host)

    streamed.close()  # lists of rows, which grad_x does not need
    gx = streamed.grad_x(gy)
    at = _sampled(spec.cols, SAMPLES)
    error = check(dense_columns(w, spec, at, place.dtype).T, gy, gx, at)
    _accept(f"grad_x of {spec.shape}", error, tolerance(place.dtype, spec.rows))
    del gx
    peak = place.peak(streamed, lambda: streamed.grad_x(gy), gy.nbytes)
    times = _timed(place, streamed, lambda: streamed.grad_x(gy))
    yield _row(place, "grad_x", streamed, n, error, times, w.nbytes, 0, peak, None)
    streamed.close()


def _gradient(place: Any, spec: HashSpec, x: Any, gy: Any, budget: float) -> Row:
    """The row of the buckets' gradient. The buckets are not needed for it: there is room for one of the two."""
    with HostPeak() as host:
        gw = place.vector(spec.n_buckets, np.float32)
        streamed = Streamed(None, spec, budget=budget)
        streamed.grad_w(x, gy, gw)
    error = check_panels(x, gy, gw, spec, _panels(spec))
    terms = x.shape[1] * spec.rows * spec.cols // spec.n_buckets
    _accept(f"grad_w of {spec.shape}", error, tolerance(place.dtype, terms))
    peak = place.peak(streamed, lambda: streamed.grad_w(x, gy, gw), x.nbytes + gy.nbytes)
    times = _timed(place, streamed, lambda: streamed.grad_w(x, gy, gw))
    row = _row(place, "grad_w", streamed, x.shape[1], error, times, 0, gw.nbytes, peak, host)
    streamed.close()
    return row


def _step(place: Any, spec: HashSpec, n: int, budget: float) -> Row:
    """The row of a whole training step: y = W x, a loss, both gradients and an update with momentum.

    The first step is verified: y, gx, and of some panels the momentum, which is the gradient then, and the update.
    """
    x, target, kept = place.matrix(spec.cols, n), place.matrix(spec.rows, n), {}

    def loss_gradient(y: Any) -> Any:  # of the squared distance, halved
        kept["gy"] = y - target
        return kept["gy"]

    with HostPeak() as host:
        w, momentum = (place.vector(spec.n_buckets, np.float32) for _ in range(2))
        _fill(place, w, 1 / math.sqrt(spec.cols))
        momentum[...] = 0
        down, across, panels = _sampled(spec.rows, SAMPLES), _sampled(spec.cols, SAMPLES), _panels(spec)
        some_rows = dense_rows(w, spec, down, place.dtype)
        some_columns = dense_columns(w, spec, across, place.dtype)
        places = [slice(*spec.window((r, r + 1), (c, c + 1)).pieces[0]) for r, c in panels]
        before = [w[part].copy() for part in places]
        streamed, optimizer = Streamed(w, spec, budget=budget, state=[momentum]), SGD(LEARNING_RATE, MOMENTUM)
        y, gx = streamed.step(x, loss_gradient, optimizer)
    uses = spec.rows * spec.cols / spec.n_buckets
    errors = {
        "matmul": (check(some_rows, x, y, down), spec.cols),
        "grad_x": (check(some_columns.T, kept["gy"], gx, across), spec.rows),
        "grad_w": (
            check_panels(x, kept["gy"], momentum, spec, panels, optimizer.gradient_factor(uses)),
            n * spec.rows * spec.cols // spec.n_buckets,
        ),
    }
    for what, (error, terms) in errors.items():
        _accept(f"a step of {spec.shape}, {what}", error, tolerance(place.dtype, terms))
    after = np.concatenate([w[part] for part in places])
    expected = np.concatenate(
        [b - np.float32(LEARNING_RATE) * momentum[p] for b, p in zip(before, places, strict=True)]
    )
    _accept(f"a step of {spec.shape}, the update", relative_error(after, expected), 1e-6)
    del y, gx, some_rows, some_columns

    def step() -> None:
        streamed.step(x, loss_gradient, optimizer)

    peak = place.peak(streamed, step, x.nbytes)
    times = _timed(place, streamed, step)
    up, down_bytes = 2 * w.nbytes + momentum.nbytes, w.nbytes + momentum.nbytes
    error = max(error for error, _ in errors.values())
    row = _row(place, "step", streamed, n, error, times, up, down_bytes, peak, host)
    streamed.close()
    return row


def _dense(place: Any, side: int, n: int, scaled_to: tuple[int, int]) -> Row:
    """The row of y = W x with W dense, streamed by blocks of rows, and what its bytes say of a larger one."""
    x = place.matrix(side, n)
    w = place.vector(side * side, place.dtype)
    _fill(place, w, 1 / math.sqrt(side))
    y = place.xp.empty((side, n), place.dtype)
    edges = [side * k // 32 for k in range(33)]
    blocks = [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
    parts = []
    for rows in blocks:
        size = (rows.stop - rows.start) * side
        parts.append(Part((Piece(rows.start * side, size, size, 1, 0),), size))

    def work(k: int, buffers: list[Any]) -> None:
        y[blocks[k]] = buffers[0].reshape(-1, side) @ x

    def stream(copies: bool = True, products: bool = True) -> float:
        return pipeline(parts, [Vector(w, True, False)], work, x, copies=copies, products=products)

    stream()
    at = _sampled(side, SAMPLES)
    error = check(w.reshape(side, side)[at].astype(np.float64), x, y, at)
    _accept(f"the dense product of {side} x {side}", error, tolerance(place.dtype, side))
    times: dict[str, Any] = {**_times_of(place, stream)}
    rounds = range(1 + ROUNDS // 2)
    copies = 1e3 * statistics.median(stream(products=False) for _ in rounds)
    products = 1e3 * statistics.median(stream(copies=False) for _ in rounds)
    times |= {"copies_ms": copies, "products_ms": products, "bound": "copies" if copies > products else "products"}
    times["of_bound"] = max(copies, products) / times["ms"]
    full = scaled_to[0] * scaled_to[1] * w.itemsize
    return {
        "operation": "matmul",
        "source": place.name,
        "kernel": f"cublas_{place.dtype}" if isinstance(place, _Card) else "numpy",
        "structure": "dense",
        "spec": None,
        "compression": 1.0,
        "shape": [side, side, n],
        "dtype": place.dtype,
        "windows": len(parts),
        **times,
        "error": error,
        "up_bytes": w.nbytes,
        "down_bytes": 0,
        "bytes_per_second": 1e3 * w.nbytes / times["ms"],
        "peak_bytes": None,
        "dense_bytes": w.nbytes,
        "scaled_to": list(scaled_to),
        "scaled_ms": times["ms"] * full / w.nbytes,
        "note": f"measured at {side} x {side}; scaled_ms is that, times the bytes of {scaled_to[0]} x {scaled_to[1]}",
    }
