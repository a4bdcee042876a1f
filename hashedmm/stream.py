"""Products with buckets that stay in host memory, or in a file: window by window, copied while others are computed.

A `Window` of whole panels is the unit: it has its own buckets, so that it comes, is used, and makes room for another.
`Streamed` holds the buckets and computes y = W x, both gradients and a training step under a budget of bytes;
`plan_stream` says before which windows there will be and what they take. y and the gradient of the buckets go by rows
of panels, whose buckets are one run; the gradient of x goes by columns of panels, so that each of its elements is
summed inside one product, as it is in memory. The buckets on their way are double-buffered: on a GPU they are copied by
streams of their own, in both directions at once; on a CPU a thread reads and writes them. Imports hashing, kernels,
build, launch, cpu, sketch, matmul and nn.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from hashedmm import build, cpu, matmul, sketch
from hashedmm.hashing import HashSpec, Window
from hashedmm.kernels import CUDA, SplitKernel
from hashedmm.launch import Derived, beside, derived, device, library, on_gpu, release
from hashedmm.matmul import hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x
from hashedmm.nn import Optimizer

WINDOWS = 32  # that a matrix is cut into: filling and draining the pipe then costs about a thirtieth
LEAST_WINDOW = 2**23  # bytes of a window, if that leaves two: a copy should be long beside its start
ROUNDING = 2**14  # bytes that a pool of memory may take beyond what a product asks for
STAGES = 2  # staging buffers for memory that is not pinned
MAX_PITCH = 2**31 - 1  # bytes between two runs of one strided copy
PINNED = 1  # cudaMemoryTypeHost

_PRODUCTS = {
    "matmul": ("matmul",),
    "grad_x": ("grad_x",),
    "grad_w": ("grad_w",),
    "backward": ("grad_x", "grad_w"),
}
_BY_ROWS = ("matmul", "grad_w")
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "matmul": hashed_matmul,
    "grad_x": hashed_matmul_grad_x,
    "grad_w": hashed_matmul_grad_w,
}

Where = build.Device | str  # a GPU's number, "emulator", or "cpu"


# --------------------------------------------------------------------------------------------------------------------
# Parts of a long vector


class Piece(NamedTuple):
    """Equal runs of a vector: run r goes from ``start + r * pitch`` on, ``width`` elements, to ``at + r * width``."""

    start: int
    pitch: int
    width: int
    runs: int
    at: int


class Part(NamedTuple):
    """What one step of a pipeline needs of every vector: pieces, ``size`` elements in all."""

    pieces: tuple[Piece, ...]
    size: int


def part_of(window: Window) -> Part:
    """Where the buckets of a window lie in the vector of the whole matrix: two pieces at most."""
    out: list[Piece] = []
    at = 0
    for start, stop in window.pieces:
        width, last = stop - start, out[-1] if out else None
        if last and width == last.width and (last.runs == 1 or start == last.start + last.runs * last.pitch):
            pitch = start - last.start if last.runs == 1 else last.pitch
            out[-1] = last._replace(pitch=pitch, runs=last.runs + 1)
        else:
            out.append(Piece(start, width, width, 1, at))
        at += width
    return Part(tuple(out), at)


def _runs(a: np.ndarray, piece: Piece) -> np.ndarray:
    """The runs of a piece in the long vector, (runs, width): a view."""
    size = a.itemsize
    return as_strided(a[piece.start :], (piece.runs, piece.width), (piece.pitch * size, size))


def _packed(buffer: np.ndarray, piece: Piece) -> np.ndarray:
    """The same, where they have been packed."""
    return buffer[piece.at : piece.at + piece.runs * piece.width].reshape(piece.runs, piece.width)


def gather(to: np.ndarray, a: np.ndarray, part: Part) -> None:
    """Copy a part of the long vector ``a`` to the beginning of ``to``."""
    for piece in part.pieces:
        np.copyto(_packed(to, piece), _runs(a, piece))


def scatter(a: np.ndarray, source: np.ndarray, part: Part) -> None:
    """The way back of `gather`: from the beginning of ``source`` into the long vector ``a``."""
    for piece in part.pieces:
        np.copyto(_runs(a, piece), _packed(source, piece))


# --------------------------------------------------------------------------------------------------------------------
# The pipeline


class Vector(NamedTuple):
    """A long vector in host memory, and whether its parts go up before a step and come down after it."""

    host: np.ndarray
    up: bool
    down: bool


Work = Callable[[int, list[Any]], None]  # (which part, the buffers with its parts of all vectors)


def pipeline(
    parts: Sequence[Part], vectors: Sequence[Vector], work: Work, like: Any, *,
    depth: int = 2, copies: bool = True, products: bool = True,
) -> float:  # fmt: skip
    """Bring the parts one after the other to where ``like`` is, call ``work`` on each, and bring back what it changed.

    While one part is worked on, the next is on its way, and the one before on its way back. On a GPU ``work`` launches
    kernels on the current stream. When this returns, everything is done.

    Parameters
    ----------
    parts : in the order in which they are worked on
    vectors : what they are parts of. Memory that is not pinned goes to a GPU by way of ``STAGES`` pinned buffers each
        way, which a thread fills or empties.
    work : called with a part's number and one buffer a vector, as long as the part. A buffer of a vector that does not
        go up holds anything.
    like : an array that lies where the work is done
    depth : parts that there is room for
    copies, products : leave one of the two out, to time the other. Without copies every buffer has the largest part.

    Returns
    -------
    Seconds, from the first copy's start to the last one's end; without copies those of ``work``.
    """
    run = _pipeline_on_gpu if on_gpu(like) else _pipeline_on_cpu
    return run(parts, vectors, work, depth, copies, products)


def _pipeline_on_cpu(
    parts: Sequence[Part], vectors: Sequence[Vector], work: Work, depth: int, copies: bool, products: bool
) -> float:
    largest = max(parts, key=lambda part: part.size)
    buffers = [[np.empty(largest.size, v.host.dtype) for v in vectors] for _ in range(min(depth, len(parts)))]
    for slot in buffers if not copies else ():
        for vector, buffer in zip(vectors, slot, strict=True):
            if vector.up:
                gather(buffer, vector.host, largest)
    begun = time.perf_counter()

    def fill(k: int) -> None:
        for vector, buffer in zip(vectors, buffers[k % depth], strict=True):
            if vector.up:
                gather(buffer, vector.host, parts[k])

    def drain(k: int) -> None:
        for vector, buffer in zip(vectors, buffers[k % depth], strict=True):
            if vector.down:
                scatter(vector.host, buffer, parts[k])

    thread = ThreadPoolExecutor(1, "hashedmm-stream")  # one: a buffer is filled again after it was drained
    try:
        filled = deque(thread.submit(fill, k) for k in range(len(buffers))) if copies else deque()
        drained: deque[Future] = deque()
        for k, part in enumerate(parts):
            if copies:
                filled.popleft().result()
            if products:
                work(k, [buffer[: part.size] for buffer in buffers[k % depth]])
            if copies:
                drained.append(thread.submit(drain, k))
                if k + depth < len(parts):
                    filled.append(thread.submit(fill, k + depth))
            while drained and drained[0].done():
                drained.popleft().result()
        while drained:
            drained.popleft().result()
        return time.perf_counter() - begun
    finally:
        thread.shutdown(cancel_futures=True)


class _Staging:
    """Pinned buffers between a GPU and host memory that is not pinned, one way, for one vector."""

    def __init__(self, vector: Vector, room: int) -> None:
        self.host = vector.host
        self.buffers = [pinned_empty(room, vector.host.dtype) for _ in range(STAGES)]


def _pipeline_on_gpu(
    parts: Sequence[Part], vectors: Sequence[Vector], work: Work, depth: int, copies: bool, products: bool
) -> float:
    import cupy

    compute = cupy.cuda.get_current_stream()
    up, down = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    event = partial(cupy.cuda.Event, disable_timing=True)
    largest, depth = max(parts, key=lambda part: part.size), min(depth, len(parts))
    room = largest.size
    buffers = [[cupy.empty(room, v.host.dtype) for v in vectors] for _ in range(depth)]
    free, ready, done = ([event() for _ in range(depth)] for _ in range(3))
    for slot in free:  # what had this memory before may still be computing
        slot.record(compute)
    sent, come = ([event() for _ in range(STAGES)] for _ in range(2))
    pinned = [is_pinned(v.host) for v in vectors]
    going_up = [i for i, v in enumerate(vectors) if v.up]
    coming_down = [i for i, v in enumerate(vectors) if v.down]
    above = {i: _Staging(vectors[i], room) for i in going_up if copies and not pinned[i]}
    below = {i: _Staging(vectors[i], room) for i in coming_down if copies and not pinned[i]}

    def fill(k: int) -> None:
        if k >= STAGES:
            sent[k % STAGES].synchronize()  # part k - STAGES has left the staging buffer
        for staging in above.values():
            gather(staging.buffers[k % STAGES], staging.host, parts[k])

    def drain(k: int) -> None:
        come[k % STAGES].synchronize()
        for staging in below.values():
            scatter(staging.host, staging.buffers[k % STAGES], parts[k])

    for i in going_up if not copies else ():
        there = np.empty(room, vectors[i].host.dtype)
        gather(there, vectors[i].host, largest)
        for slot_buffers in buffers:
            slot_buffers[i].set(there)
    compute.synchronize()
    begun = time.perf_counter()

    reader, writer = ThreadPoolExecutor(1, "hashedmm-up"), ThreadPoolExecutor(1, "hashedmm-down")
    try:
        filled = deque(reader.submit(fill, k) for k in range(min(STAGES, len(parts)))) if above else deque()
        drained: deque[Future] = deque()
        for k, part in enumerate(parts):
            slot, stage = k % depth, k % STAGES
            whole = Part((Piece(0, part.size, part.size, 1, 0),), part.size)  # in a staging buffer
            if copies and going_up:
                if above:
                    filled.popleft().result()
                up.wait_event(free[slot])
                for i in going_up:
                    if i in above:
                        _copy(above[i].buffers[stage], buffers[slot][i], whole, up, to_gpu=True)
                    else:
                        _copy(vectors[i].host, buffers[slot][i], part, up, to_gpu=True)
                ready[slot].record(up)
                compute.wait_event(ready[slot])
                if above:
                    sent[stage].record(up)
                    if k + STAGES < len(parts):
                        filled.append(reader.submit(fill, k + STAGES))
            else:
                compute.wait_event(free[slot])
            if products:
                work(k, [buffer[: part.size] for buffer in buffers[slot]])
            if copies and coming_down:
                done[slot].record(compute)
                down.wait_event(done[slot])
                if below and k >= STAGES:
                    drained.popleft().result()  # the staging buffer is empty
                for i in coming_down:
                    if i in below:
                        _copy(below[i].buffers[stage], buffers[slot][i], whole, down, to_gpu=False)
                    else:
                        _copy(vectors[i].host, buffers[slot][i], part, down, to_gpu=False)
                free[slot].record(down)
                if below:
                    come[stage].record(down)
                    drained.append(writer.submit(drain, k))
            else:
                free[slot].record(compute)
        while drained:
            drained.popleft().result()
    finally:
        for thread in (reader, writer):
            thread.shutdown(cancel_futures=True)
        up.synchronize()
        down.synchronize()
        compute.synchronize()  # it may read buffers that came up last; then they are free
    return time.perf_counter() - begun


def _copy(host: np.ndarray, there: Any, part: Part, stream: Any, *, to_gpu: bool) -> None:
    """Start to copy a part between a long pinned vector and the beginning of a vector on the GPU."""
    from cupy.cuda import runtime

    size = host.itemsize
    kind = runtime.memcpyHostToDevice if to_gpu else runtime.memcpyDeviceToHost
    for piece in part.pieces:
        a, b = host.ctypes.data + piece.start * size, there.data.ptr + piece.at * size
        width, pitch = piece.width * size, piece.pitch * size
        if piece.runs > 1 and width < pitch <= MAX_PITCH:
            to = (b, width, a, pitch) if to_gpu else (a, pitch, b, width)
            runtime.memcpy2DAsync(*to, width, piece.runs, kind, stream.ptr)
            continue
        together = 1 if pitch == width else piece.runs  # copies
        length = piece.runs // together * width
        for r in range(together):
            x, y = a + r * pitch, b + r * width
            runtime.memcpyAsync(*((y, x) if to_gpu else (x, y)), length, kind, stream.ptr)


def pinned_empty(shape: int | tuple[int, ...], dtype: Any = np.float16) -> np.ndarray:
    """A NumPy array, not initialised, in pinned memory, which a GPU copies from and to by itself, at full speed.

    It is taken from the system at once, which takes about a second for a few gigabytes, and goes back with the array.

    Raises
    ------
    ValueError
        If there is no GPU here: np.empty is as good then.
    """
    if not build.gpu_available():
        raise ValueError("pinned memory is for copies to a GPU, and there is none here; take np.empty")
    import cupy

    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    count = math.prod(shape)
    if count == 0:
        return np.empty(shape, dtype)
    memory = cupy.cuda.PinnedMemory(count * dtype.itemsize, cupy.cuda.runtime.hostAllocPortable)
    return np.frombuffer(cupy.cuda.PinnedMemoryPointer(memory, 0), dtype, count).reshape(shape)


def is_pinned(a: np.ndarray) -> bool:
    """Whether an array lies in pinned memory from its first byte to its last."""
    if a.size == 0 or not build.gpu_available():
        return False
    from cupy.cuda import runtime

    first, last = a.ctypes.data, a.ctypes.data + a.nbytes - 1
    return all(runtime.pointerGetAttributes(at).type == PINNED for at in (first, last))


# --------------------------------------------------------------------------------------------------------------------
# What a stream takes


class StreamPlan(NamedTuple):
    """How an operation will be streamed.

    Attributes
    ----------
    operation : "matmul", "grad_x", "grad_w" or "backward"
    kernels : product -> its kernel; the same one for every window
    windows : in the order in which they are computed
    bytes : what lies where the products run at the peak, by what it is for. The lists of a sketch in float16 are as
        long as the hash has them: an estimate, until they have been made.
    host : bytes in host memory by what they are for, if the products run on a GPU: buckets, the optimiser's state,
        gradients, staging buffers
    fused : whether y = W x of a sketch is one launch a window, as it would be for the whole matrix
    depth : windows on the card at once
    """

    operation: str
    kernels: Mapping[str, str]
    windows: tuple[Window, ...]
    bytes: Mapping[str, int]
    host: Mapping[str, int]
    fused: bool
    depth: int

    @property
    def device_bytes(self) -> int:
        """The sum of ``bytes``: what is held against the budget."""
        return sum(self.bytes.values())

    @property
    def host_bytes(self) -> int:
        """The sum of ``host``."""
        return sum(self.host.values())


def plan_stream(
    spec: HashSpec, n: int, *, operation: str = "matmul", budget: float | None = None, dtype: Any = "float16",
    stored: Any = None, kernel: str | Mapping[str, str] = "auto", depth: int = 2, windows: int | None = None,
    slots: int = 0, pinned: bool = True, device: Where | None = None, other: int = 0,
) -> StreamPlan:  # fmt: skip
    """Which windows an operation would be cut into, and what they take. Nothing is hashed but a sample, and nothing
    large allocated.

    Parameters
    ----------
    spec : HashSpec of more than one panel
    n : columns of x and gy, at least 1
    operation : "matmul" (y = W x), "grad_x", "grad_w", or "backward" (both gradients and the update of a training step)
    budget : bytes where the products run, for everything; None: as many as it takes
    dtype : of x and gy
    stored : dtype of the buckets in host memory; None: ``dtype``, for "backward" float32
    kernel, depth, windows : as `Streamed` takes them
    slots : numbers that the optimiser remembers of each bucket: 1 for SGD, 2 for Adam
    pinned : whether the vectors in host memory are pinned
    device : where the products run: number of a GPU, "emulator", or "cpu"; None: the current GPU, else the CPU
    other : bytes of the budget that are not to be had

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these, the kernel cannot compute this, or the budget is too small: the message says
        which would do.
    """
    matmul._check_spec(spec)
    _check_panels(spec)
    if operation not in _PRODUCTS:
        raise ValueError(f"operation must be one of {', '.join(_PRODUCTS)}, got {operation!r}")
    n = _count("n", n, 1)
    names = {product: asked for product, asked in _kernel_names(kernel).items() if product in _PRODUCTS[operation]}
    if device is None:
        emulated = all(asked != "auto" and matmul._is_cuda(asked) for asked in names.values())
        device = build.current_device() if build.gpu_available() or emulated else "cpu"
    kernels = {}
    for product, asked in names.items():
        if asked == "auto" and device != "cpu":
            asked = matmul.choose(product, spec, n, dtype, device).kernel  # type: ignore[arg-type]
        _check_kernel(asked, product, spec, np.dtype(dtype).name, device)
        kernels[product] = asked
    stored = ("float32" if operation == "backward" else dtype) if stored is None else stored
    problem = _Problem(
        operation, spec, n, np.dtype(dtype), np.dtype(stored), tuple(kernels.items()), _depth(operation, depth),
        device, slots, pinned, other,
    )  # fmt: skip
    return _plan(problem, _budget(budget), windows)


@dataclass(frozen=True)
class _Problem:
    """All that the bytes of a stream depend on but the windows; see `plan_stream`."""

    operation: str
    spec: HashSpec
    n: int
    dtype: np.dtype
    stored: np.dtype
    kernels: tuple[tuple[str, str], ...]
    depth: int
    where: Where
    slots: int
    pinned: bool
    other: int
    in_order: bool = True  # x and gy are in C order
    has_buckets: bool = True

    @property
    def sums(self) -> np.dtype:
        """What is accumulated in."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)

    @property
    def padded(self) -> int:
        """Columns of the arrays that kernels get: a sketch would pad its own for each window."""
        on_card = self.where != "cpu" and any(kernel == "sketch" for _, kernel in self.kernels)
        few = self.operation == "matmul" and self.few
        return -(-self.n // sketch.ALIGN) * sketch.ALIGN if on_card and not few else self.n

    @property
    def limit(self) -> int:
        """Shared memory of a block."""
        return build.shared_limit("emulator" if self.where == "cpu" else self.where)  # type: ignore[arg-type]

    @property
    def few(self) -> bool:
        """Whether y = W x of a sketch is one launch for few columns."""
        sketched = dict(self.kernels).get("matmul") == "sketch" and self.where != "cpu"
        return sketched and sketch.takes_few("matmul", self.spec, self.n, self.dtype.name, self.limit)

    def fused(self, operation: str) -> bool:
        """Whether a sketch's y = W x or W^T gy would be one launch for the whole matrix; y if its lists let it."""
        if dict(self.kernels).get(operation) != "sketch" or self.where == "cpu" or self.few:
            return False
        return sketch.takes_fused(operation, self.spec, self.n, self.dtype.name, self.where)  # type: ignore[arg-type]

    @property
    def list_kind(self) -> str | None:
        """The dtype whose lists a sketch reads for this; None if it reads none."""
        if self.where == "cpu" or not any(k == "sketch" and o != "grad_x" for o, k in self.kernels):
            return None
        return "float32" if self.few else self.dtype.name

    def per_bucket(self) -> int:
        """Bytes a bucket that are copied: of all vectors together."""
        if self.operation == "grad_w":
            return self.sums.itemsize
        return self.stored.itemsize * (1 + self.slots if self.operation == "backward" else 1)

    def bytes(self, windows: Sequence[Window], capacity: int) -> dict[str, int]:
        """What lies where the products run, at the peak; ``capacity``, of 16 places, is that of the float16 lists."""
        (rows, cols), n, size = self.spec.shape, self.n, self.dtype.itemsize
        taken = {"matmul": cols, "grad_x": rows}.get(self.operation, cols + rows)
        given = {"matmul": rows, "grad_w": 0}.get(self.operation, cols)
        out = {"arguments": taken * n * size, "results": given * n * size, "other": self.other}
        if self.padded != n:
            out["padded copies"] = (taken + given) * self.padded * size
        elif not self.in_order:
            out["copies in order"] = taken * n * size
        buckets = max(window.n_buckets for window in windows)
        out["windows"] = min(self.depth, len(windows)) * buckets * self.per_bucket()
        if self.operation != "grad_w" and self.stored != self.dtype:
            out["converted buckets"] = buckets * size
        if self.operation == "backward":
            scratch = buckets if isinstance(self.where, int) else min(buckets, Optimizer.PIECE)
            out["gradient and scratch"] = buckets * self.sums.itemsize + scratch * self.stored.itemsize
        if self.list_kind:
            out["lists"] = sum(list_bytes(window, self.list_kind, capacity) for window in windows)
        out["workspace"] = max(self.workspace(o, k, window) for o, k in self.kernels for window in _extremes(windows))
        if isinstance(self.where, int):
            out["workspace"] += ROUNDING
        return out

    def workspace(self, operation: str, kernel: str, window: Window) -> int:
        """What a product takes beside its arguments and its result."""
        if self.where == "cpu":
            return _cpu_workspace(operation, kernel, window, self.n, self.dtype)
        name = self.dtype.name
        if kernel == "grad_w_fixed":
            return 3 * 8 * window.n_buckets  # fixed-point sums, quotients, and those that are finite
        if kernel != "sketch":
            row = CUDA[kernel]
            if not isinstance(row, SplitKernel):
                return 0
            values = row.fitted(row.values(self.n), window, name, self.limit)
            shape = row.shape(window, self.n, values, name)
            return 0 if shape.splits == 1 else 4 * (shape.splits * window.rows * self.n + shape.grid[0])
        if operation == "matmul" and self.few:
            processors = sketch.multiprocessors(self.where)  # type: ignore[arg-type]
            return sketch.few_workspace(window, self.n, name, self.limit, processors)
        if operation != "grad_w" and self.fused(operation):
            return 0
        total, g = sketch.workspace_bytes(window, self.padded, name), sketch.geometry(window)
        direct = window.unit == g.height and (window.panel or window.shape)[0] <= g.height
        if operation == "grad_w" and name == "float32" and not direct:
            total += 4 * g.strips * g.all_bins * g.height
        return total

    def host(self, windows: Sequence[Window]) -> dict[str, int]:
        """What lies in host memory if the products run on a GPU."""
        buckets = self.spec.n_buckets
        out = {"buckets": buckets * self.stored.itemsize * self.has_buckets}
        if self.operation == "backward":
            out["state"] = self.slots * buckets * self.stored.itemsize
        if self.operation == "grad_w":
            out["gradient"] = buckets * self.sums.itemsize
        if not self.pinned:
            ways = 2 if self.operation == "backward" else 1
            out["staging"] = ways * STAGES * max(w.n_buckets for w in windows) * self.per_bucket()
        return out

    def windows(self, count: int) -> tuple[Window, ...]:
        """About so many windows of whole rows (for the gradient of x, columns) of panels.

        The last row, or column, may be cut off by the matrix's edge: it stays together with the one before, so that
        every window has the sizes of a whole panel, from which kernels are chosen.
        """
        axis = 0 if self.operation in _BY_ROWS else 1
        panels = self.spec.panel_grid[axis]
        side = (self.spec.panel or self.spec.shape)[axis]
        cut = int(panels > 1 and self.spec.shape[axis] % side > 0)
        count = max(1, min(count, panels - cut))
        edges = [(panels - cut) * k // count for k in range(count)] + [panels]
        ranges = zip(edges, edges[1:], strict=False)
        return tuple(self.spec.window(r, None) if axis == 0 else self.spec.window(None, r) for r in ranges)


def _extremes(windows: Sequence[Window]) -> Sequence[Window]:
    """Those among which are the largest of all."""
    return sorted(windows, key=lambda w: w.rows * w.cols)[-1:] + [windows[-1]]


def _plan(problem: _Problem, budget: int | None, least: int | None = None, capacity: int = 0) -> StreamPlan:
    """The fewest windows, from ``least`` on, with which the operation fits; ValueError if none does."""
    if problem.list_kind == "float16":
        capacity = max(capacity, expected_capacity(problem.spec))
    total = problem.spec.n_buckets * problem.per_bucket()
    count = least or max(2, min(WINDOWS, total // LEAST_WINDOW))
    while True:
        windows = problem.windows(count)
        found = problem.bytes(windows, capacity)
        if budget is None or sum(found.values()) <= budget:
            fused = problem.fused("matmul")
            return StreamPlan(
                problem.operation, dict(problem.kernels), windows, found, problem.host(windows), fused, problem.depth
            )
        if len(windows) < count:
            side = "row" if problem.operation in _BY_ROWS else "column"
            parts = ", ".join(f"{name} {size:,}" for name, size in found.items() if size)
            raise ValueError(
                f"budget must be at least {sum(found.values()):,} bytes for {problem.operation} of "
                f"{problem.spec.shape} with n = {problem.n} in {problem.dtype}, window by window of one {side} of "
                f"panels ({parts}), got {budget:,}; take fewer columns at a time, or smaller panels"
            )
        count = max(count + 1, count * 5 // 4)


def list_bytes(window: HashSpec, kind: str, capacity: int) -> int:
    """Bytes of the lists of a sketch; ``capacity``, in 16 places, of those of float16."""
    g = sketch.geometry(window)
    if kind == "float32":
        return 2 * g.strips * g.across * (g.bins + 1 + sketch.GROUP * (g.width // sketch.GROUP + g.bins + 2))
    return 2 * g.strips * g.across * (g.groups + 1 + 16 * capacity)


@lru_cache(maxsize=64)
def expected_capacity(spec: HashSpec) -> int:
    """About how long, in 16 places, the longest list of a float16 sketch is: exact for small matrices, else from a
    thousand strips of panels, as the largest of as many normal numbers as there are (sketch_groups.cu makes them)."""
    g = sketch.geometry(spec)
    random = np.random.default_rng(0)
    few = g.strips * g.across <= 1024
    strips = np.arange(g.strips) if few else np.unique(random.integers(0, g.strips, 64))
    across = np.arange(g.across) if few else np.unique(random.integers(0, g.across, 16))
    lengths: list[np.ndarray] = []
    for region in spec.regions:
        rows = strips[(strips * g.height >= region.row) & (strips * g.height < region.row + region.rows)]
        for c in across:
            if not region.col <= c * g.width < region.col + region.cols or not rows.size:
                continue
            k = np.arange(region.panel_cols)
            h = spec.hash_blocks(rows[:, None], c * g.width + k[None, :]).astype(np.uint64)
            group = ((h * np.uint64(region.candidates)) >> np.uint64(32)).astype(np.int64) // 16
            place = (np.arange(len(rows))[:, None] * g.groups + group) * 8 + k % 8
            counts = np.bincount(place.ravel(), minlength=len(rows) * g.groups * 8).reshape(len(rows), g.groups, 8)
            lengths.append(((counts.max(2) + 1) // 2).sum(1))
    found = np.concatenate(lengths)
    if few:
        return int(found.max())
    largest = found.mean() + found.std() * math.sqrt(2 * math.log(g.strips * g.across))
    return max(int(found.max()), math.ceil(largest))


@lru_cache(maxsize=256)
def _cpu_workspace(operation: str, kernel: str, window: Window, n: int, dtype: np.dtype) -> int:
    """About what hashedmm.cpu or the reference allocates: converted arguments, its result, sums or rebuilt weights."""
    acc = 8 if dtype == np.float64 else 4
    (rows, cols), buckets = window.shape, window.n_buckets
    taken = {"matmul": buckets + cols * n, "grad_x": buckets + rows * n, "grad_w": (cols + rows) * n}[operation]
    given = {"matmul": rows * n, "grad_x": cols * n, "grad_w": buckets}[operation]
    if kernel == "reference":
        return 8 * (taken + given) + 24 * rows * cols
    total = acc * given + (acc * taken if dtype == np.float16 else 0)
    if dtype == np.float16:
        total += 2 * given if operation != "grad_w" else 0
    schedule = cpu.choose_schedule(window, n) if kernel == "auto" else kernel.removeprefix("cpu_")
    if schedule == "decompress":
        tiles = [(i1 - i0, j1 - j0) for _, i0, i1, j0, j1 in cpu._tiles(window)]
        across = {"matmul": 0, "grad_x": 1}.get(operation)
        extra = max(t[across] for t in tiles) * n if across is not None else 0
        return total + acc * (max(i * j for i, j in tiles) + extra)
    if n == 1 and operation == "matmul":
        return total
    largest = 0
    for g, _, strips, r0, r1, k in cpu._strips(window, n):
        across, bh = g.grid_cols * g.candidates, window.block[0]
        wide, down = k.stop - k.start, r1 - r0
        z = down * strips * across * wide
        if operation == "grad_w":
            other = 2 * down * across * bh
        else:
            other = down * (strips * bh * wide if operation == "matmul" else 0)
            if window.unit != bh or g.panel_buckets != g.candidates * bh:
                other += down * across * bh  # codebooks, copied where windows overlap
        if wide < n:
            other += (g.cols if operation != "grad_x" else g.rows) * wide
        largest = max(largest, z + other)
    return total + acc * largest


# --------------------------------------------------------------------------------------------------------------------
# Checks


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _budget(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"budget must be a number of bytes such as 8e9, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"budget must be a number of bytes above 0, such as 8e9, got {value!r}")
    return int(value)


def _check_panels(spec: HashSpec) -> None:
    if isinstance(spec, Window):
        raise TypeError("spec must be of a whole matrix, got a Window; stream its `whole`")
    if spec.n_panels == 1:
        raise ValueError(
            f"spec must have more than one panel to be streamed by, got one of {spec.shape}: all weights share all "
            "buckets; take HashSpec.strips or HashSpec.panels"
        )


def _kernel_names(kernel: Any) -> dict[str, str]:
    """The kernel that is asked for, for each product."""
    products = ("matmul", "grad_x", "grad_w")
    if isinstance(kernel, str):
        return dict.fromkeys(products, kernel)
    if not isinstance(kernel, Mapping) or set(kernel) - set(products):
        raise TypeError(
            f"kernel must be a name, or a mapping of some of {', '.join(products)} to names, got {kernel!r}"
        )
    return {product: kernel.get(product, "auto") for product in products}


def _check_kernel(name: Any, product: str, spec: HashSpec, dtype: str, where: Where) -> None:
    """ValueError unless a kernel computes this where it is to run; "auto" is a CPU's."""
    if name == "auto":
        return
    if not isinstance(name, str) or name not in matmul.KERNELS:
        raise ValueError(f'kernel must be "auto" or one of {", ".join(matmul.KERNELS)}, got {name!r}')
    row, cuda = matmul.KERNELS[name], matmul._is_cuda(name)
    if product not in row.operations:
        raise ValueError(f"kernel {name!r} computes {', '.join(row.operations)}, not {product}")
    if cuda == (where == "cpu"):
        raise ValueError(f"kernel {name!r} does not run on {where!r}; name another kernel, or another device")
    if not (row.supports(spec, dtype, build.shared_limit(where)) if cuda else row.supports(spec)):  # type: ignore[arg-type]
        raise ValueError(f"kernel {name!r} computes {row.specs}, not this spec in {dtype}")


def _depth(operation: str, depth: int) -> int:
    """One more for what goes both ways: else a window could only go up when the one before last has come down."""
    return depth + (operation == "backward")


def _host_vector(name: str, a: Any, buckets: int, dtypes: Sequence[Any]) -> np.ndarray:
    """A checked vector in host memory: an array, or the file that a path names, mapped into memory."""
    if isinstance(a, (str, os.PathLike)):
        path = Path(a)
        if path.suffix != ".npy":
            raise ValueError(f"{name} must name a .npy file, as np.lib.format.open_memmap makes it, got {path}")
        mode = "r+" if os.access(path, os.W_OK) else "r"
        a = np.lib.format.open_memmap(path, mode=mode)  # type: ignore[arg-type]
    if on_gpu(a):
        raise TypeError(f"{name} must stay in host memory, got a CuPy array; pass cupy.asnumpy({name})")
    if not isinstance(a, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or the path of a .npy file, got {type(a).__name__}")
    if a.dtype not in [np.dtype(d) for d in dtypes]:
        expected = " or ".join(np.dtype(d).name for d in dtypes)
        raise TypeError(
            f"{name} must have dtype {expected}, got {a.dtype}; try {name}.astype(np.{expected.split()[0]})"
        )
    if a.shape != (buckets,):
        raise ValueError(f"{name} must have shape (n_buckets,) = ({buckets},) for this spec, got {a.shape}")
    if not a.flags.c_contiguous:
        raise ValueError(f"{name} must lie in one run, got strides {a.strides}; pass np.ascontiguousarray({name})")
    return a


# --------------------------------------------------------------------------------------------------------------------
# The products


class Streamed:
    """Buckets in host memory or in a file, and the products of their virtual matrix.

    Parameters
    ----------
    w : (n_buckets,) float16, float32 or (on a CPU) float64; or None, for `grad_w` alone
        A NumPy array (from `pinned_empty`, if the products are to run on a GPU: other memory has to be copied once
        more), a memory-mapped array, or the path of a .npy file. It is used where it is.
    spec : HashSpec of more than one panel
    budget : float
        Bytes where the products run, for everything that a product has there: arguments, results, lists, workspace, the
        windows under way. On a GPU a product fails rather than take more.
    kernel : str, or mapping {"matmul": name, "grad_x": name, "grad_w": name}
        As `hashed_matmul` takes it; what is not named is "auto". It is chosen once, for the whole matrix. NumPy
        arrays and the name of a CUDA kernel: the emulator.
    depth : int
        Windows that there is room for at once; one more in a training step's way back, which copies both ways.
    windows : int or None
        At least so many, if there are as many rows of panels. None: about ``WINDOWS``, fewer for small matrices.
    state : sequence of (n_buckets,) arrays of w's dtype, or None
        What the optimiser remembers, as it was left by an earlier `Streamed`. None: zeros, made at the first step.

    Attributes
    ----------
    peak_bytes : what the last product had on the GPU at its peak, by its own memory pool; None before and on a CPU
    seconds : that all of its pipelines have taken
    state : arrays in host memory, one for each of the optimiser's ``slots``; None before the first step

    Notes
    -----
    The products are those of hashedmm.matmul, to rounding; the same bits, where ``KERNELS[name].deterministic`` says so
    and x has as many columns. x, gy and the results lie where the products run: they are CuPy's or NumPy's. w may be
    float32 and x float16: buckets are then rounded when they have arrived. The lists of a sketch are made before the
    first product of a kind and kept; `close` lets them go.

    Raises
    ------
    TypeError, ValueError
        As `hashed_matmul`; also if the spec has one panel, or a product does not fit in the budget.
    """

    def __init__(
        self, w: Any, spec: HashSpec, *, budget: float, kernel: str | Mapping[str, str] = "auto", depth: int = 2,
        windows: int | None = None, state: Sequence[Any] | None = None,
    ) -> None:  # fmt: skip
        matmul._check_spec(spec)
        _check_panels(spec)
        if (checked := _budget(budget)) is None:
            raise TypeError("budget must be a number of bytes such as 8e9, got None")
        self.spec, self.budget = spec, checked
        self.kernels = _kernel_names(kernel)
        for name in self.kernels.values():
            if not isinstance(name, str) or name not in ("auto", *matmul.KERNELS):
                raise ValueError(f'kernel must be "auto" or one of {", ".join(matmul.KERNELS)}, got {name!r}')
        self.depth = _count("depth", depth, 1)
        self.least_windows = None if windows is None else _count("windows", windows, 1)
        dtypes = np.float16, np.float32, np.float64
        self.w: Any = w if w is None else _host_vector("w", w, spec.n_buckets, dtypes)
        self.state: tuple[np.ndarray, ...] | None = None
        if state is not None:
            dtype = self._check_buckets().dtype
            self.state = tuple(
                _host_vector(f"state[{i}]", a, spec.n_buckets, [dtype]) for i, a in enumerate(state)
            )  # fmt: skip
        self.copies = self.products = True  # what is done at all: the benchmark times each alone
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self._plans: dict[_Problem, StreamPlan] = {}
        self._held: dict[_Problem, list[Derived]] = {}
        self._pool: Any = None
        self._last: StreamPlan | None = None

    # ---- what a caller asks for

    def matmul(self, x: Any) -> Any:
        """y = W x: (d_in, n) -> (d_out, n) of x's dtype, in C order, where x is."""
        n = matmul._check_columns("x", x, self.spec.cols, "d_in", self.spec)
        problem = self._problem("matmul", x, x)
        y = self._empty(x, (self.spec.rows, n))
        if n:
            with self._room(problem, x.nbytes + y.nbytes, x) as plan:
                x, to = self._taken(x, problem), self._target(y, problem)
                product, half = self._product("matmul", plan, problem), self._converted(plan, problem, x)

                def work(k: int, buffers: list[Any]) -> None:
                    window = plan.windows[k]
                    product(half(buffers[0]), x, to[window.first_row : window.first_row + window.rows], window)

                self._stream(plan, [Vector(self.w, True, False)], work, x)
                self._given(to, y)
        return y

    def grad_x(self, gy: Any) -> Any:
        """W^T gy: (d_out, n) -> (d_in, n) of gy's dtype, in C order, where gy is."""
        n = matmul._check_columns("gy", gy, self.spec.rows, "d_out", self.spec)
        problem = self._problem("grad_x", gy, gy)
        gx = self._empty(gy, (self.spec.cols, n))
        if n:
            with self._room(problem, gy.nbytes + gx.nbytes, gy) as plan:
                gy, to = self._taken(gy, problem), self._target(gx, problem)
                product, half = self._product("grad_x", plan, problem), self._converted(plan, problem, gy)

                def work(k: int, buffers: list[Any]) -> None:
                    window = plan.windows[k]
                    product(half(buffers[0]), gy, to[window.first_col : window.first_col + window.cols], window)

                self._stream(plan, [Vector(self.w, True, False)], work, gy)
                self._given(to, gx)
        return gx

    def grad_w(self, x: Any, gy: Any, out: np.ndarray | None = None) -> np.ndarray:
        """The gradient with respect to the buckets, in host memory.

        Parameters
        ----------
        x : (d_in, n)
        gy : (d_out, n) of x's dtype
        out : (n_buckets,) float32 (float64 for float64), also a memory map; None: a new array

        Returns
        -------
        ``out``
        """
        n = self._check_pair(x, gy)
        dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
        if out is not None:
            out = _host_vector("out", out, self.spec.n_buckets, (dtype,))
            _check_writable("out", out)
        problem = self._problem("grad_w", x, gy, out=out)
        if n == 0:
            out = np.empty(self.spec.n_buckets, dtype) if out is None else out
            out[...] = 0
            return out
        with self._room(problem, x.nbytes + gy.nbytes, x) as plan:
            gw = np.empty(self.spec.n_buckets, dtype) if out is None else out
            x, gy = self._taken(x, problem), self._taken(gy, problem)
            product = self._gradient(plan, problem, x, gy)

            def work(k: int, buffers: list[Any]) -> None:
                window = plan.windows[k]
                product(gy[window.first_row : window.first_row + window.rows], x, buffers[0], window)

            self._stream(plan, [Vector(gw, False, True)], work, x)
            if product.failed is not None and int(product.failed[0]):
                gw[...] = np.nan
        return gw

    def backward(self, x: Any, gy: Any, optimizer: Optimizer, lr_factor: float = 1.0, *, other: int = 0) -> Any:
        """The way back of a training step: the gradients of x and of the buckets, and the buckets' update, in one pass.

        Parameters
        ----------
        x : (d_in, n), what `matmul` was given
        gy : (d_out, n) of x's dtype: the gradient of the loss with respect to y
        optimizer : hashedmm.nn.SGD or Adam. Its settings and its count of steps are used; what it remembers of every
            bucket lies in ``state``.
        lr_factor : multiplies the learning rate of this step
        other : bytes of the budget that something else has meanwhile

        Returns
        -------
        gx : (d_in, n), by the buckets before the update

        Raises
        ------
        TypeError, ValueError
            Before anything is changed. (If a copy fails on the way, some windows have been updated and some have not.)
        """
        n = self._check_pair(x, gy)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be hashedmm.nn.SGD or Adam, got {type(optimizer).__name__}")
        self._check_buckets()
        if self.w.dtype == np.float16:
            raise TypeError("w must be float32 to be trained, got float16: small steps would be rounded away")
        _check_writable("w", self.w)
        for i, a in enumerate(self.state or ()):
            _check_writable(f"state[{i}]", a)
        if self.state is not None and len(self.state) != len(optimizer.slots):
            raise ValueError(
                f"state has {len(self.state)} arrays, and {type(optimizer).__name__} remembers {len(optimizer.slots)}: "
                "it belongs to another optimiser; set state = None"
            )
        problem = self._problem("backward", x, gy, slots=len(optimizer.slots), other=other)
        gx = self._empty(x, (self.spec.cols, n))
        if not n:
            gy = library(gy).zeros((self.spec.rows, 1), gy.dtype)
            x = library(x).zeros((self.spec.cols, 1), x.dtype)
            self.backward(x, gy, optimizer, lr_factor, other=other)
            return gx
        with self._room(problem, x.nbytes + gy.nbytes + gx.nbytes + other, x) as plan:
            state = self._state(len(optimizer.slots), x)
            x, gy, to = self._taken(x, problem), self._taken(gy, problem), self._target(gx, problem)
            back, half = self._product("grad_x", plan, problem), self._converted(plan, problem, x)
            grad = self._gradient(plan, problem, x, gy)
            xp, most = library(x), max(window.n_buckets for window in plan.windows)
            gradient = xp.empty(most, problem.sums)
            piece = most if on_gpu(x) else min(most, optimizer.PIECE)
            scratch = xp.empty(piece, self.w.dtype)
            uses = self.spec.rows * self.spec.cols / self.spec.n_buckets
            if self.products:
                optimizer.steps += 1

            def work(k: int, buffers: list[Any]) -> None:
                window = plan.windows[k]
                left, right = window.first_col, window.first_col + window.cols
                back(half(buffers[0]), gy, to[left:right], window)
                g = gradient[: window.n_buckets]
                grad(gy, x[left:right], g, window)
                for start in range(0, window.n_buckets, piece):
                    part = slice(start, min(start + piece, window.n_buckets))
                    value, *remembered = (buffer[part] for buffer in buffers)
                    optimizer._update(value, g[part], *remembered, scratch[: value.size], uses, lr_factor)

            self._stream(plan, [Vector(a, True, True) for a in (self.w, *state)], work, x)
            self._given(to, gx)
        return gx

    def step(
        self, x: Any, loss_gradient: Callable[[Any], Any], optimizer: Optimizer, lr_factor: float = 1.0
    ) -> tuple[Any, Any]:
        """A training step: y = W x, the loss, and `backward`.

        Parameters
        ----------
        x : (d_in, n)
        loss_gradient : y -> the gradient of the loss with respect to it, (d_out, n) of y's dtype
        optimizer, lr_factor : as `backward` takes them

        Returns
        -------
        y : (d_out, n)
        gx : (d_in, n), the gradient with respect to x
        """
        y = self.matmul(x)
        gy = loss_gradient(y)
        return y, self.backward(x, gy, optimizer, lr_factor, other=0 if gy is y else y.nbytes)

    def plan(
        self, operation: str, n: int, dtype: Any = None, *, device: Where | None = None, slots: int = 1, other: int = 0
    ) -> StreamPlan:
        """How an operation would be streamed, as `plan_stream` says it for these buckets."""
        self._check_buckets()
        pinned = is_pinned(self.w)
        return plan_stream(
            self.spec, n, operation=operation, budget=self.budget, dtype=self.w.dtype if dtype is None else dtype,
            stored=self.w.dtype, kernel=self.kernels, depth=self.depth, windows=self.least_windows,
            slots=slots if operation == "backward" else 0, pinned=pinned, device=device, other=other,
        )  # fmt: skip

    def close(self) -> None:
        """Let the lists and the memory on the GPU go. Host memory stays as it is."""
        self._held.clear()
        self._plans.clear()
        self._last = None
        self._free()

    def __enter__(self) -> Streamed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- checks

    def _check_buckets(self) -> np.ndarray:
        if self.w is None:
            raise ValueError("w is None, which is enough for grad_w alone; make a Streamed with the buckets")
        return self.w

    def _check_pair(self, x: Any, gy: Any) -> int:
        n = matmul._check_columns("x", x, self.spec.cols, "d_in", self.spec)
        if n != matmul._check_columns("gy", gy, self.spec.rows, "d_out", self.spec):
            raise ValueError(f"x and gy must have as many columns (samples), got x {x.shape} and gy {gy.shape}")
        matmul._check_alike("x", x, "gy", gy)
        return n

    def _problem(
        self, operation: str, x: Any, gy: Any, *, out: np.ndarray | None = None, slots: int = 0, other: int = 0
    ) -> _Problem:
        """What is asked for, with its kernels: checked."""
        if operation != "grad_w":
            self._check_buckets()
        dtype, stored = x.dtype, x.dtype if self.w is None else self.w.dtype
        if operation != "grad_w" and dtype != stored and not (dtype == np.float16 and stored == np.float32):
            name = "gy" if operation == "grad_x" else "x"
            raise TypeError(
                f"{name} must have w's dtype, or float16 where that is float32, got {dtype} and {stored}; try "
                f"{name}.astype(np.{stored})"
            )
        kernels = tuple(
            (product, matmul._check_kernel(self.kernels[product], product, self.spec, x))
            for product in _PRODUCTS[operation]
        )
        emulated = [name != "auto" and matmul._is_cuda(name) for _, name in kernels]
        if not on_gpu(x) and any(emulated) != all(emulated):
            raise ValueError(f"kernels of one pass must all be emulated or none of them, got {dict(kernels)}")
        where: Where = device(x) if on_gpu(x) or all(emulated) else "cpu"
        vectors = [self.w, *(self.state or ())] if operation != "grad_w" else [] if out is None else [out]
        pinned = bool(vectors) and on_gpu(x) and all(is_pinned(a) for a in vectors)
        in_order = all(a.flags.c_contiguous for a in (x, gy))
        return _Problem(
            operation, self.spec, max(1, x.shape[1]), dtype, stored, kernels, _depth(operation, self.depth), where,
            slots, pinned, other, in_order, self.w is not None,
        )  # fmt: skip

    # ---- memory

    def _empty(self, like: Any, shape: tuple[int, int]) -> Any:
        with beside(like):
            return library(like).empty(shape, like.dtype)

    @contextlib.contextmanager
    def _room(self, problem: _Problem, outside: int, like: Any) -> Iterator[StreamPlan]:
        """The plan of a product, its lists made; what is allocated inside is held against the budget.

        ``outside`` are the bytes of arguments and results, which come from the caller's own memory pool.
        """
        if problem.where == "cpu" or problem.where == "emulator":
            yield self._prepared(problem)
            return
        import cupy

        with beside(like):
            if self._pool is None:
                self._pool = cupy.cuda.MemoryPool()
            plan = self._plans.get(problem)
            if plan is None or plan is not self._last:
                self._free()  # of other sizes
            self._pool.set_limit(size=max(1, self.budget - outside))
            with cupy.cuda.using_allocator(self._pool.malloc):
                self._last = plan = self._prepared(problem)
                yield plan
            self.peak_bytes = outside + int(self._pool.total_bytes())

    def _prepared(self, problem: _Problem) -> StreamPlan:
        """The plan, and its lists: those of other plans are let go if there is no room for all."""
        if (plan := self._plans.get(problem)) is None:
            plan = _plan(problem, self.budget, self.least_windows)
        kind = problem.list_kind
        if kind is None:
            self._plans[problem] = plan
            return plan
        where: build.Device = problem.where  # type: ignore[assignment]
        if problem not in self._held:
            others = {id(d): d.nbytes for held in self._held.values() for d in held}
            if plan.device_bytes + sum(others.values()) > self.budget:
                self._held.clear()
                self._free()
            held, plan = self._lists(problem, plan, kind, where)
            self._held[problem], self._plans[problem] = held, plan
        return plan

    def _lists(
        self, problem: _Problem, plan: StreamPlan, kind: str, where: build.Device
    ) -> tuple[list[Derived], StreamPlan]:
        """The lists of every window; if they are longer than expected, perhaps of smaller windows."""
        while True:
            held, capacity, made = [], 0, 0
            for window in plan.windows:
                capacity = max(capacity, sketch.lists(window, kind, where)[1].shape[2] // 16)
                found = derived(window, where)
                assert found is not None
                release(window, where)
                held.append(found)
                made += sum(a.nbytes for a in found.made["lists", kind])
            found_bytes = {**plan.bytes, "lists": made}
            if sum(found_bytes.values()) <= self.budget:
                break
            held = []
            self._free()
            plan = _plan(problem, self.budget, len(plan.windows), capacity)
        fused = plan.fused and all(
            sketch._fused_tile(w, problem.limit, sketch.lists(w, kind, where)[1].shape[2]) for w in plan.windows
        )
        for window in plan.windows:
            release(window, where)
        return held, plan._replace(bytes=found_bytes, fused=fused)

    def _free(self) -> None:
        """What the memory pool has and nobody uses: its limit counts that, too."""
        if self._pool is not None:
            self._pool.free_all_blocks()

    def _state(self, slots: int, like: Any) -> tuple[np.ndarray, ...]:
        """What the optimiser remembers: zeros at first, pinned if the buckets are."""
        if self.state is None:
            count, dtype = self.spec.n_buckets, self.w.dtype
            if on_gpu(like) and is_pinned(self.w):
                self.state = tuple(pinned_empty(count, dtype) for _ in range(slots))
                for a in self.state:
                    a[...] = 0
            else:
                self.state = tuple(np.zeros(count, dtype) for _ in range(slots))
        return self.state

    def _taken(self, a: Any, problem: _Problem) -> Any:
        """An argument in C order, with as many columns as kernels want: copied once, not for every window."""
        xp = library(a)
        if problem.padded == a.shape[1]:
            return xp.ascontiguousarray(a)
        own = xp.zeros((a.shape[0], problem.padded), a.dtype)
        own[:, : a.shape[1]] = a
        return own

    def _target(self, a: Any, problem: _Problem) -> Any:
        """Where kernels write a result."""
        return a if problem.padded == a.shape[1] else library(a).empty((a.shape[0], problem.padded), a.dtype)

    def _given(self, to: Any, a: Any) -> None:
        if to is not a:
            a[...] = to[:, : a.shape[1]]

    def _converted(self, plan: StreamPlan, problem: _Problem, like: Any) -> Callable[[Any], Any]:
        """A window's buckets in the dtype of the products."""
        if problem.stored == problem.dtype:
            return lambda w: w
        own = library(like).empty(max(window.n_buckets for window in plan.windows), problem.dtype)

        def convert(w: Any) -> Any:
            half = own[: w.size]
            half[...] = w
            return half

        return convert

    # ---- running

    def _stream(self, plan: StreamPlan, vectors: list[Vector], work: Work, like: Any) -> None:
        parts = [part_of(window) for window in plan.windows]
        if on_gpu(like):  # one block for what products allocate, whichever window is the largest
            library(like).empty(plan.bytes["workspace"], np.uint8)
        try:
            self.seconds += pipeline(
                parts, vectors, work, like, depth=plan.depth, copies=self.copies, products=self.products
            )
        finally:
            where = device(like)
            for window in plan.windows:
                release(window, where)

    def _product(self, operation: str, plan: StreamPlan, problem: _Problem) -> Callable[..., None]:
        """(buckets, x or gy, result, window) -> None: y = W x or W^T gy of a window."""
        kernel = plan.kernels[operation]
        if problem.where == "cpu":

            def compute(w: Any, a: Any, to: Any, window: Window) -> None:
                to[...] = _FUNCTIONS[operation](w, a, window, kernel=kernel)

            return compute
        parameters: Mapping[str, Any] | None = None
        if kernel == "sketch" and not problem.few:  # one launch or two: as the whole matrix would take
            one, two = {
                "matmul": ("sketch_fused_mma", "sketch_sum_mma"), "grad_x": ("sketch_back_mma", "sketch_project_mma")
            }[operation]  # fmt: skip
            parameters = {one if (plan.fused if operation == "matmul" else problem.fused(operation)) else two: {}}
        make = matmul.plan_matmul if operation == "matmul" else matmul.plan_grad_x

        def launch(w: Any, a: Any, to: Any, window: Window) -> None:
            make(w, a, to, window, kernel, parameters).run()

        return launch

    def _gradient(self, plan: StreamPlan, problem: _Problem, x: Any, gy: Any) -> _Gradient:
        return _Gradient(plan.kernels["grad_w"], problem.where, x, gy, plan.windows)


class _Gradient:
    """(gy, x, result, window) -> None: the gradient of a window's buckets, and what all windows share for that."""

    def __init__(self, kernel: str, where: Where, x: Any, gy: Any, windows: Sequence[Window]) -> None:
        self.kernel, self.where = kernel, where
        self.scale: Any = None
        self.failed: Any = None
        if kernel == "grad_w_fixed":  # one scale: that of the whole matrix, whose largest panel every window has
            with np.errstate(over="ignore", invalid="ignore"):
                smallest = min(windows, key=lambda w: w.n_buckets)
                self.scale, _, self.failed = matmul.fixed_arrays(x, gy, smallest)

    def __call__(self, gy: Any, x: Any, to: Any, window: Window) -> None:
        if self.where == "cpu":
            to[...] = hashed_matmul_grad_w(x, gy, window, kernel=self.kernel)
        elif self.kernel == "grad_w_fixed":
            xp = library(x)
            sums = xp.zeros(window.n_buckets, np.uint64)
            fixed = self.scale, sums, self.failed
            matmul.plan_grad_w(x, gy, None, window, self.kernel, fixed=fixed).run()
            with np.errstate(over="ignore", invalid="ignore"):
                to[...] = xp.where(self.failed == 0, sums.view(np.int64) / self.scale, np.nan)
        else:
            to[...] = 0
            matmul.plan_grad_w(x, gy, to, window, self.kernel).run()


def _check_writable(name: str, a: np.ndarray) -> None:
    if not a.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array; open its file with mode 'r+'")
