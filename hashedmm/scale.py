"""How long a layer takes that is larger than memory, or spread over P GPUs, and how many bytes: a model of scale.

`stream_rates` and `parallel_rates` take a few rates from records (`hashedmm bench --stream`, `--parallel`): bytes a
second between host and GPU and between GPUs, seconds of the products a virtual weight and column. `predict` says from
them what any layer takes on any number of GPUs, and what bounds it. Bytes are counted, by `hashedmm.stream.plan_stream`
and by what `hashedmm.parallel` sends. Imports build, hashing, sketch, nn, parallel, stream and bench_parallel.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from hashedmm import build, sketch
from hashedmm.bench_parallel import allreduce_bytes
from hashedmm.hashing import HashSpec
from hashedmm.nn import Optimizer
from hashedmm.parallel import bounds
from hashedmm.stream import StreamPlan, list_bytes, plan_stream

MODES = ("stream", "panels", "data")
OPERATIONS = ("matmul", "grad_x", "grad_w", "step")
KERNELS = {"matmul": "sketch", "grad_x": "sketch", "grad_w": "sketch"}
FLOAT = 4  # bytes of a float32: what is trained, and what travels between GPUs


# --------------------------------------------------------------------------------------------------------------------
# Rates


class Rates(NamedTuple):
    """What a machine was measured to do. What was not measured is None.

    Attributes
    ----------
    device : its name
    up, down : bytes a second from host to GPU and back, each alone
    both : bytes a second each way, if both go at once
    products : {"matmul", "grad_x", "grad_w", "backward": seconds a virtual weight and column} of a stream's products;
        "backward" is both gradients and the update of a training step
    size : bytes of one number of x in the stream, 2 for float16
    step : seconds of a training step a virtual weight and sample, if buckets and activations stay on one GPU
    feature : seconds of such a step an activation: an input or an output of a layer, a sample
    fixed : seconds of such a step that no size changes
    link : bytes a second that a GPU sends to others; infinite if the record shows no time for it
    compressions : stored / virtual of the layers that were measured, for ``products`` and for ``step``
    """

    device: str
    up: float | None = None
    down: float | None = None
    both: float | None = None
    products: Mapping[str, float] | None = None
    size: int = 2
    step: float | None = None
    feature: float = 0.0
    fixed: float = 0.0
    link: float | None = None
    compressions: tuple[float | None, float | None] = (None, None)


def stream_rates(record: Mapping[str, Any]) -> Rates:
    """The rates in a record of streams: gpu_stream, or cpu_stream.

    Copies and products were timed each without the other. The way back of a training step copies both ways at once:
    what its copies take beyond those of y = W x gives ``both``, never more than the slower direction alone.

    Raises
    ------
    ValueError
        If the record lacks a row, or its times contradict each other.
    """
    rows = {r["operation"]: r for r in record["rows"] if r.get("structure") != "dense"}
    if missing := set(OPERATIONS) - rows.keys():
        raise ValueError(f"the record must have rows of a stream for {', '.join(OPERATIONS)}, got none of {missing}")

    def work(operation: str) -> float:
        rows_, cols, n = rows[operation]["shape"]
        return float(rows_) * cols * n

    there = [rows["matmul"], rows["grad_x"]]
    up = sum(r["up_bytes"] for r in there) / sum(r["copies_ms"] for r in there) * 1e3
    down = rows["grad_w"]["down_bytes"] / rows["grad_w"]["copies_ms"] * 1e3
    products = {o: rows[o]["products_ms"] / 1e3 / work(o) for o in ("matmul", "grad_x", "grad_w")}
    step = rows["step"]
    ways = step["down_bytes"]  # up and down alike: buckets and what the optimiser remembers
    back = step["copies_ms"] / 1e3 - (step["up_bytes"] - ways) / up
    back = max(back, ways / min(up, down))
    products["backward"] = step["products_ms"] / 1e3 / work("step") - products["matmul"]
    if products["backward"] <= 0:
        raise ValueError("the record's training step has products that are faster than those of y = W x alone")
    size = int(np.dtype(rows["matmul"]["dtype"]).itemsize)
    compressions = rows["matmul"]["compression"], None
    return Rates(record["device"]["name"], up, down, ways / back, products, size, compressions=compressions)


def parallel_rates(record: Mapping[str, Any], compression: float) -> Rates:
    """The rates in a record of several ranks: gpu_parallel, or cpu_parallel; of its nearest compression.

    From steps with one batch: of one rank, and of all ranks with the samples split and with the panels split ("strong"
    scaling). They are fixed + step * weights * samples + feature * activations + bytes sent / link, counted on a rank;
    fixed and step are of a compression, the other two of all. These numbers, none below 0, have the least squares of
    relative errors. Steps with a batch for each rank ("weak" scaling) are not used: they are there to be predicted. If
    steps are captured as CUDA graphs, so are those of the one rank.

    Raises
    ------
    ValueError
        If the record lacks these rows, or shows no work.
    """
    if not any("mode" in r for r in record["rows"]):
        raise ValueError("the record must be of several ranks (hashedmm bench --parallel), got no row with a mode")
    strong = [r for r in record["rows"] if r["scaling"] == "strong"]
    known = sorted({r["compression"] for r in strong})
    lines, seconds = [], []

    def line(row: Mapping[str, Any], mode: str, ranks: int, sent: float, ms: float) -> None:
        own = [0.0] * (2 * len(known))
        at = 2 * known.index(row["compression"])
        weights, activations = _work(network_of(row), row["batch"], mode, ranks)
        own[at : at + 2] = 1.0, weights
        lines.append([*own, activations, sent])
        seconds.append(ms / 1e3)

    for c in known:
        rows = {r["mode"]: r for r in strong if r["compression"] == c}
        if missing := {"panels", "data"} - rows.keys():
            raise ValueError(f"the record must have strong rows of panels and of data, got none of {missing} at {c:g}")
        for mode, row in rows.items():
            line(row, mode, row["ranks"], row["sent_bytes"], row["ms"])
        alone = "one_rank_graph" if row.get("captured") else "one_rank"
        line(row, "data", 1, 0.0, row["baselines"][alone])
    if not known:
        raise ValueError("the record must have rows of strong scaling, got none")
    *found, feature, byte = least_squares(lines, seconds)
    nearest = min(known, key=lambda c: abs(math.log(c / compression)))
    at = 2 * known.index(nearest)
    if not found[at + 1]:
        raise ValueError(
            "the record's steps take no longer for more weights and samples: it says nothing of other sizes"
        )
    link = 1 / byte if byte else math.inf
    name, pair = record["device"]["name"], (None, nearest)
    return Rates(name, step=found[at + 1], feature=feature, fixed=found[at], link=link, compressions=pair)


def least_squares(coefficients: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The numbers from 0 up whose linear forms come nearest to ``values`` > 0, in relative errors.

    All subsets of numbers are tried that are not 0: the best is among them (Lawson and Hanson, Solving Least Squares
    Problems, 1974, chapter 23, has the conditions). For a handful of numbers.
    """
    a, b = np.asarray(coefficients, np.float64), np.asarray(values, np.float64)
    a = a / b[:, None]
    scale = np.abs(a).max(axis=0)
    scale[scale == 0] = 1.0
    a, ones = a / scale, np.ones(len(b))
    best, found = math.inf, np.zeros(a.shape[1])
    for count in range(1, a.shape[1] + 1):
        for some in combinations(range(a.shape[1]), count):
            x = np.zeros(a.shape[1])
            x[list(some)] = np.linalg.lstsq(a[:, some], ones, rcond=None)[0]
            error = float(np.square(a @ x - ones).sum())
            if (x >= 0).all() and error < best - 1e-12:
                best, found = error, x
    return (found / scale).tolist()


def together(stream: Rates | None, parallel: Rates | None) -> Rates:
    """The rates of two records. They should be of one kind of machine; if they are not, both are named."""
    if stream is None or parallel is None:
        if (one := stream or parallel) is None:
            raise ValueError("rates of at least one record are needed, got none")
        return one
    names = dict.fromkeys((stream.device, parallel.device))
    return stream._replace(
        device=" and ".join(names), step=parallel.step, feature=parallel.feature, fixed=parallel.fixed,
        link=parallel.link, compressions=(stream.compressions[0], parallel.compressions[1]),
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------
# The pipe


class Event(NamedTuple):
    """One step of a stream: what ("up", "product" or "down"), of which window, from when to when, in seconds."""

    what: str
    window: int
    start: float
    stop: float


def timeline(up: float, product: float, down: float, windows: int, depth: int = 2) -> list[Event]:
    """When each window is copied up, computed and copied down, if there is room for ``depth`` of them at once.

    Copies up, products and copies down are done side by side, each kind one at a time. A window comes up when the one
    ``depth`` before it has left its buffer. With ``c`` seconds of copies and ``p`` of products in all, depth 2 and
    copies one way, the end is max(c, p) + min(c, p) / windows: the slower of the two decides.

    Parameters
    ----------
    up, product, down : seconds of one window; 0 for what is not done
    windows, depth : at least 1

    Raises
    ------
    ValueError
        If one of them is too small.
    """
    if windows < 1 or depth < 1:
        raise ValueError(f"windows and depth must be at least 1, got {windows} and {depth}")
    if min(up, product, down) < 0:
        raise ValueError(f"seconds must be at least 0, got {up}, {product} and {down}")
    events: list[Event] = []
    end = {"up": 0.0, "product": 0.0, "down": 0.0}
    left: list[float] = []  # when each window left its buffer
    for k in range(windows):
        ready = left[k - depth] if k >= depth else 0.0
        for what, seconds in (("up", up), ("product", product), ("down", down)):
            start = max(end[what], ready)
            ready = end[what] = start + seconds
            if seconds:
                events.append(Event(what, k, start, ready))
        left.append(ready)
    return events


def _end(up: float, product: float, down: float, windows: int, depth: int) -> float:
    """When the last of equal windows is done; the three are seconds of all windows."""
    events = timeline(up / windows, product / windows, down / windows, windows, depth)
    return max((e.stop for e in events), default=0.0)


# --------------------------------------------------------------------------------------------------------------------
# The model


class Scale(NamedTuple):
    """What a product or a training step takes, by the model.

    Attributes
    ----------
    mode, operation, ranks, n : what was asked for
    seconds : of it all
    parts : seconds of "copies", "products", "activations", "exchange" (between GPUs) and "fixed", each as if it were
        alone
    bound : the longest of these
    stored_bytes : of all buckets (and biases), once
    gpu_bytes : on the fullest GPU; a "stream" has its plan's bytes, other modes what must be there, without workspace
    host_bytes : in one host's memory
    sent_bytes : that the GPU that sends most sends to others
    dense_bytes, dense_sent_bytes : of the dense layers in ``stored_bytes`` and ``sent_bytes``' place
    fits : whether ``gpu_bytes`` is within the budget; True if there is none
    windows : of the stream, of the operation with the most; 0 in other modes
    """

    mode: str
    operation: str
    ranks: int
    n: int
    seconds: float
    parts: Mapping[str, float]
    bound: str
    stored_bytes: int
    gpu_bytes: int
    host_bytes: int
    sent_bytes: int
    dense_bytes: int
    dense_sent_bytes: int
    fits: bool
    windows: int


def predict(
    layers: HashSpec | Sequence[HashSpec], n: int, rates: Rates, *, mode: str, operation: str = "step", ranks: int = 1,
    hosts: int = 1, budget: float | None = None, slots: int = 1,
) -> Scale:  # fmt: skip
    """Seconds and bytes of a product or a training step of one layer, or of a network's layers one after the other.

    Three modes. **stream**: buckets stay in host memory, each GPU has some rows of panels and computes them window by
    window; its time is the end of `timeline`. **panels**: as many rows of panels on each GPU as on any other, and the
    buckets stay there; activations travel. **data**: all buckets on every GPU, each has its share of the samples; the
    gradients of the buckets travel. In the two (if panels are split, a GPU has all activations):

        seconds = fixed + step * virtual weights a GPU * samples a GPU + feature * activations a GPU + bytes sent / link

    Assumptions: products take time in proportion to weights and to columns, at the compression that was measured (fewer
    columns than measured use a GPU worse); each GPU has a host link of its own, and each sends at ``link`` however many
    there are; computing and sending between GPUs do not overlap, as in hashedmm.parallel; a product of layers that stay
    on the GPU takes a third of a step. A stream on several GPUs is put together from measured parts: the package has
    none. Records of streams are of float16 and those of ranks of float32: compare a mode with itself.

    Parameters
    ----------
    layers : HashSpec, or a sequence of them
        In the mode "stream" all of more than one panel, and strips that the sketch kernels compute.
    n : columns, or samples of the whole batch
    rates : of the mode, see `Rates`
    mode : "stream", "panels" or "data"
    operation : "matmul", "grad_x", "grad_w" or "step"
    ranks : GPUs
    hosts : machines that they are in, alike
    budget : bytes of each GPU; None: as many as it takes. A stream is cut into windows that fit, if there are such.
    slots : numbers that the optimiser remembers of each bucket: 1 for SGD, 2 for Adam

    Returns
    -------
    Scale

    Raises
    ------
    ValueError, TypeError
        If an argument is none of these, no layer can be split over so many ranks, or a rate is missing.
    """
    specs = [layers] if isinstance(layers, HashSpec) else list(layers)
    if not specs or not all(isinstance(s, HashSpec) for s in specs):
        raise TypeError(f"layers must be a HashSpec or some of them, got {layers!r}")
    for name, value, allowed in (("mode", mode, MODES), ("operation", operation, OPERATIONS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, count in (("n", n), ("ranks", ranks), ("hosts", hosts)):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{name} must be an integer from 1 on, got {count!r}")
    if hosts > ranks:
        raise ValueError(f"hosts must be at most ranks, {ranks}, got {hosts}")
    most = max(s.panel_grid[0] for s in specs)
    if mode != "data" and ranks > most:
        raise ValueError(f"ranks must be at most {most}, the rows of panels, got {ranks}: take lower panels, or data")
    if mode == "data" and ranks > n:
        raise ValueError(f"ranks must be at most n, {n}, a sample for each, got {ranks}")
    needed = ["up", "down", "both", "products"] if mode == "stream" else ["step"]
    needed += ["link"] if ranks > 1 else []
    if missing := [name for name in needed if getattr(rates, name) is None]:
        raise ValueError(f"rates must say {', '.join(missing)} for the mode {mode!r}: no record of that was given")
    sent = sent_bytes(specs, n, mode, operation, ranks)
    exchange = sent / rates.link if ranks > 1 and rates.link else 0.0
    found = _streamed if mode == "stream" else _resident
    parts, seconds, stored, gpu, host, windows = found(specs, n, rates, mode, operation, ranks, hosts, budget, slots)
    parts["exchange"] = exchange
    size = FLOAT if mode != "stream" or operation == "step" else rates.size
    dense = size * sum(s.rows * s.cols for s in specs)
    if mode != "stream":
        dense += size * sum(s.rows for s in specs)  # biases
    dense_sent = sent_bytes(specs, n, mode, operation, ranks, dense=True)
    return Scale(
        mode, operation, ranks, int(n), seconds + exchange, parts, max(parts, key=lambda part: parts[part]), stored,
        gpu, host, sent, dense, dense_sent, budget is None or gpu <= budget, windows,
    )  # fmt: skip


def _shares(spec: HashSpec, ranks: int) -> np.ndarray:
    """Rows of W that each rank computes: whole rows of panels; all, where there are fewer of these than ranks."""
    if spec.panel_grid[0] < ranks:
        return np.full(ranks, spec.rows)
    height = (spec.panel or spec.shape)[0]
    at = [min(spec.rows, height * edge) for edge in bounds(spec.panel_grid[0], ranks)]
    return np.diff(at)


def sent_bytes(
    layers: Sequence[HashSpec], n: int, mode: str, operation: str = "step", ranks: int = 1, *, dense: bool = False
) -> int:
    """Bytes that the rank that sends most sends to others in a product or a step, as `hashedmm.parallel` sends them.

    (A step that is a CUDA graph sends some hundred bytes more: its arrays are padded.)

    Panels: each rank's rows of y go to all others; the gradient of x is summed by the ranks that own its rows (a stream
    sums the first layer's, too); a layer that is whole on every rank takes its gradient from rank 0. Data: an
    all-reduce of the gradients of all buckets and biases, and in a step two numbers. float32. ``dense``: as if each
    weight were stored, the layers being split alike.
    """
    if ranks == 1:
        return 0
    values = [(s.rows * s.cols if dense else s.n_buckets) + s.rows for s in layers]
    if mode == "data":
        if operation not in ("grad_w", "step"):
            return 0
        return allreduce_bytes(sum(values) + (2 if operation == "step" else 0), ranks)
    sent = np.zeros(ranks)
    split = [s.panel_grid[0] >= ranks for s in layers]
    for i, spec in enumerate(layers):
        if not split[i]:
            if operation in ("grad_w", "step"):
                sent[0] += (ranks - 1) * values[i]
            continue
        if operation in ("matmul", "step"):
            sent += (ranks - 1) * _shares(spec, ranks) * n
        first = i == 0 and mode == "panels" and operation == "step"  # no gradient of the data
        if operation in ("grad_x", "step") and not first:
            if i and not split[i - 1]:
                sent += allreduce_bytes(spec.cols * n, ranks) / FLOAT
                continue
            mine = _shares(layers[i - 1], ranks) if i else np.diff(bounds(spec.cols, ranks))
            sent += (spec.cols - mine) * n
    return FLOAT * int(sent.max())


def _rows_of(specs: Sequence[HashSpec], mode: str, ranks: int) -> list[int]:
    """Rows of each layer that the rank with the most of them computes."""
    return [s.rows if mode == "data" else int(_shares(s, ranks).max()) for s in specs]


def _work(specs: Sequence[HashSpec], n: int, mode: str, ranks: int) -> tuple[float, float]:
    """Virtual weights times samples, and inputs and outputs of layers times samples, of one rank."""
    samples = -(-n // ranks) if mode == "data" else n
    weights = sum(r * s.cols for r, s in zip(_rows_of(specs, mode, ranks), specs, strict=True))
    return float(weights) * samples, float(sum(s.rows + s.cols for s in specs)) * samples


Found = tuple[dict[str, float], float, int, int, int, int]  # parts, seconds, stored, GPU, host, windows


def _resident(
    specs: Sequence[HashSpec], n: int, rates: Rates, mode: str, operation: str, ranks: int, hosts: int,
    budget: float | None, slots: int,
) -> Found:  # fmt: skip
    """Layers whose buckets stay on the GPUs."""
    stored = FLOAT * sum(s.n_buckets + s.rows for s in specs)
    samples, rows = -(-n // ranks) if mode == "data" else n, _rows_of(specs, mode, ranks)
    weights, activations = _work(specs, n, mode, ranks)
    part = 1.0 if operation == "step" else 1 / 3
    parts = {
        "products": part * (rates.step or 0.0) * weights,
        "activations": part * rates.feature * activations,
        "fixed": part * rates.fixed,
    }
    limit = build.shared_limit("emulator")
    values, lists = 0, 0
    for r, s in zip(rows, specs, strict=True):
        mine = _part_of(s, r)
        values += mine.n_buckets + r
        lists += list_bytes(mine, "float32", 0) if sketch.why_not(mine, "float32", limit) is None else 0
    if operation == "step":
        copies = 2 + slots + (mode == "data" and ranks > 1)  # values, gradients, state; and what is sent, in one array
        features = sum(s.cols + s.rows for s in specs)
    else:
        copies, features = 2 if operation == "grad_w" else 1, max(s.cols + s.rows for s in specs)
    gpu = FLOAT * (copies * values + features * samples) + lists
    return parts, sum(parts.values()), stored, gpu, 0, 0


def _streamed(
    specs: Sequence[HashSpec], n: int, rates: Rates, mode: str, operation: str, ranks: int, hosts: int,
    budget: float | None, slots: int,
) -> Found:  # fmt: skip
    """Layers whose buckets stay in host memory."""
    up, down, both = rates.up or math.inf, rates.down or math.inf, rates.both or math.inf
    products = rates.products or {}
    parts = {"copies": 0.0, "products": 0.0}
    seconds, stored, gpu, host, windows = 0.0, 0, 0, 0, 0
    for spec in specs:
        rows = int(_shares(spec, ranks).max())
        mine, work = _part_of(spec, rows), float(rows) * spec.cols * n
        names = ("matmul", "backward") if operation == "step" else (operation,)
        size = FLOAT if operation == "step" else rates.size
        stored += spec.n_buckets * size
        host_here = 0
        for name in names:
            other = rows * n * rates.size if name == "backward" else 0  # y, beside its gradient
            plan, taken = gpu_plan(mine, n, name, budget, f"float{8 * rates.size}", size, slots, other)
            compute = products[name] * work
            if name == "backward":
                there = back = mine.n_buckets * size * (1 + slots) / both
            elif name == "grad_w":
                there, back = 0.0, mine.n_buckets * FLOAT / down
            else:
                there, back = mine.n_buckets * size / up, 0.0
            seconds += _end(there, compute, back, len(plan.windows), plan.depth)
            parts["copies"] += max(there, back)
            parts["products"] += compute
            gpu, windows = max(gpu, taken), max(windows, len(plan.windows))
            host_here = max(host_here, plan.host_bytes)
        whole = round(host_here * spec.n_buckets / mine.n_buckets)
        host += min(host_here * -(-ranks // hosts), whole)
    return parts, seconds, stored, gpu, host, windows


@lru_cache(maxsize=512)
def _part_of(spec: HashSpec, rows: int) -> HashSpec:
    """A matrix like the first ``rows`` rows: as many panels and buckets as a window of them has."""
    if rows == spec.rows:
        return spec
    return HashSpec((rows, spec.cols), spec.compression, spec.block, spec.panel, spec.stride, spec.seed, spec.hash)


@lru_cache(maxsize=2048)
def gpu_plan(
    spec: HashSpec, n: int, operation: str, budget: float | None, dtype: str, size: int, slots: int, other: int = 0
) -> tuple[StreamPlan, int]:
    """The plan of a stream on a GPU, on any machine, and its bytes there: `plan_stream`, for the emulated GPU.

    A GPU updates a whole window at once, the emulator by pieces of ``Optimizer.PIECE``: that room is added. If nothing
    fits, the plan with the smallest windows; the usual plan, if what no window changes is over the budget alone.
    """
    stored = {2: "float16", 4: "float32", 8: "float64"}[size]
    names = {"backward": ("grad_x", "grad_w")}.get(operation, (operation,))
    kernel = {name: KERNELS[name] for name in names}
    axis = 0 if operation in ("matmul", "grad_w") else 1
    slots = slots if operation == "backward" else 0

    def plan(budget: float | None, count: int | None) -> tuple[StreamPlan, int]:
        found = plan_stream(
            spec, n, operation=operation, budget=budget, dtype=dtype, stored=stored, kernel=kernel, windows=count,
            slots=slots, device="emulator", other=other,
        )  # fmt: skip
        buckets = max(window.n_buckets for window in found.windows)
        scratch = (buckets - min(buckets, Optimizer.PIECE)) * size if operation == "backward" else 0
        return found, found.device_bytes + scratch

    if budget is not None:
        usual, taken = plan(None, None)
        if (
            sum(usual.bytes.get(name, 0) for name in ("arguments", "results", "other", "padded copies", "lists"))
            > budget
        ):
            return usual, taken
    count = None
    while True:
        try:
            found, taken = plan(budget, count)
        except ValueError as e:
            if not str(e).startswith("budget"):
                raise
            return plan(None, spec.panel_grid[axis])
        if budget is None or taken <= budget or len(found.windows) < (count or 0):
            return found, taken
        count = max(len(found.windows) + 1, len(found.windows) * 9 // 8)


def dense_seconds(shape: tuple[int, int], rates: Rates) -> float:
    """Seconds to copy a dense matrix of x's dtype to the GPU: at least what y = W x with it takes."""
    if rates.up is None:
        raise ValueError("rates must say up: no record of streams was given")
    return rates.size * shape[0] * shape[1] / rates.up


def spec_of(row: Mapping[str, Any]) -> HashSpec:
    """The HashSpec of a record's row."""
    return HashSpec.from_json(json.dumps(row["spec"]))


def network_of(row: Mapping[str, Any]) -> list[HashSpec]:
    """The layers of the network of a row of several ranks: wide ones like its spec, and an elementwise one."""
    wide, (*_, width, classes) = spec_of(row), row["layers"]
    last = HashSpec.elementwise((classes, width), row["compression"])
    return [replace(wide, seed=wide.seed + i) for i in range(len(row["layers"]) - 2)] + [last]
