"""A training step on several ranks against the same step on one: time, bytes sent, error.

`mpiexec -n 2 hashedmm bench --parallel` writes gpu_parallel.json where every rank has a GPU, else cpu_parallel.json: a
network of wide hashed layers, panels split and samples split, strong scaling (one batch, shared) and weak (a batch for
each rank). On GPUs both one rank and several are timed twice: by steps of one operation after the other, and captured
as CUDA graphs, as `train` does them. Gradients are compared with those of one rank before anything is timed. Imports
bench, build, hashing, nn, parallel and records.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hashedmm import bench, nn
from hashedmm.bench import COMPRESSIONS, Row, _percentiles
from hashedmm.build import gpu_available
from hashedmm.hashing import HashSpec
from hashedmm.matmul import hashed_matmul_grad_w
from hashedmm.nn import MLP, SGD, Adam, Optimizer
from hashedmm.parallel import MODES, PARALLEL, PanelParallel, Ranks, _panel_shares
from hashedmm.records import device_info, gpu_info, new_record, write

DEPTH = 3  # wide layers
CLASSES = 10
TIMEOUT = 900.0  # seconds: the others wait while rank 0 measures alone
# What bench.LAYER["strips"] recommends for speed; a test compares.
OPTIONS: dict[float, dict[str, Any]] = {
    1 / 64: {"height": 256, "panel": (256, 416), "stride": 24},
    1 / 8: {"height": 256, "panel": (256, 512)},
}
# Width of the layers, samples of a batch, steps timed in one go, rounds of these.
GPU_FULL = {"width": 8192, "batch": 1024, "steps": 20, "rounds": 15}
GPU_QUICK = {"width": 4096, "batch": 256, "steps": 20, "rounds": 5}
CPU_FULL = {"width": 4096, "batch": 128, "steps": 2, "rounds": 7}
CPU_QUICK = {"width": 1024, "batch": 24, "steps": 1, "rounds": 3}
WARM_UP = 2  # rounds
BITS_COLUMNS = 512  # of the comparison of bits, at most: the sketch works on more in chunks, whose size is the layer's
# Relative error of a gradient that is accepted. Rounding moves a few activations across 0, where ReLU has its edge.
TOLERANCE = 1e-3


def network(width: int, compression: float, xp: ModuleType) -> MLP:
    """The network that is measured: ``DEPTH`` square layers of strips, and an elementwise one for ``CLASSES``."""
    return MLP([width] * (DEPTH + 1) + [CLASSES], compression=compression, seed=1, xp=xp, **OPTIONS[compression])


class _Training:
    """A network and a batch that it sees again and again, ``steps`` times an epoch; captured, or an operation after the
    other."""

    def __init__(self, model: MLP, batch: int, steps: int, captured: bool, optimizer: Optimizer | None = None) -> None:
        xp, width, n = model.xp, model.sizes[0], batch * steps
        rng = np.random.default_rng(0)
        x = xp.asarray(rng.standard_normal((batch, width), np.float32))
        y = xp.asarray(rng.integers(0, CLASSES, batch))
        self.model, self.steps, self.epoch = model, steps, 0
        self.order = np.tile(np.arange(batch), steps)
        losses, wrong = xp.zeros(steps), xp.zeros(steps, xp.int64)
        self.optimizer = optimizer or Adam(1e-3)
        self.stepper = model.steppers[int(captured)](
            model, self.optimizer, x, y, n, batch, losses, wrong, lambda step: 1.0
        )

    def ms(self, ranks: Ranks | None) -> float:
        """Milliseconds a step of an epoch, from the moment at which all ranks are ready until this one is done."""
        on_gpu = self.model.xp is not np
        self.stepper.begin(self.order, self.epoch * self.steps, 0)
        if on_gpu:
            import cupy

            events = cupy.cuda.Event(), cupy.cuda.Event()
            cupy.cuda.Device().synchronize()
        if ranks is not None:
            ranks.barrier()
        begun = time.perf_counter()
        if on_gpu:
            events[0].record()
        i = 0
        while i < self.steps:
            i += self.stepper.run(i)
        if on_gpu:
            events[1].record()
            events[1].synchronize()
            spent = cupy.cuda.get_elapsed_time(*events)
        else:
            spent = 1e3 * (time.perf_counter() - begun)
        self.stepper.end(i)
        self.epoch += 1
        return float(spent) / self.steps


def gradients(model: MLP, batch: int, captured: bool) -> dict[str, np.ndarray]:
    """Of one step, whole, on the host: the momentum, after it, of an optimiser that keeps none from before. All ranks
    of the network call it."""
    training = _Training(model, batch, 1, captured, SGD(1e-3, 0.0, scale_by_uses=False))
    training.stepper.begin(training.order, 0, 0)
    training.stepper.run(0)
    training.stepper.end(1)
    state = model.gathered(training.optimizer.state())
    return {key.partition("/")[2]: a for key, a in state.items() if key.startswith("momentum/")}


def _ways(model: MLP) -> dict[str, bool]:
    """What follows a name in ``baselines`` -> whether steps are captured; the last is what `train` does."""
    return {"": False, "_graph": True} if nn._can_capture(model, Adam()) else {"": False}


def _alone(make: Callable[[], MLP], ways: dict[str, bool], batch: int, size: dict[str, int]) -> dict[str, list[float]]:
    """Milliseconds a step of one rank, in all ways."""
    times = {}
    for name, captured in ways.items():
        training = _Training(make(), batch, size["steps"], captured)
        times[f"one_rank{name}"] = [training.ms(None) for _ in range(WARM_UP + size["rounds"])][WARM_UP:]
    return times


def relative_error(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest relative error of a parameter's gradient, in the Frobenius norm."""
    return max(bench.relative_error(found[name], a) for name, a in expected.items())


def same_bits(spec: HashSpec, n: int, ranks: Ranks, xp: ModuleType) -> bool:
    """Whether every panel's gradient of the buckets, computed by the rank that owns it, has the bits that one rank's
    has: given the same x and gy of ``n`` columns, by the sketch schedule."""
    rng = np.random.default_rng(2)
    x, gy = (xp.asarray(rng.standard_normal((rows, n), np.float32)) for rows in (spec.cols, spec.rows))
    kernel = "cpu_sketch" if xp is np else "sketch"
    shares = _panel_shares(spec, ranks.size)
    assert shares is not None  # PanelParallel says what is wrong
    windows = [spec.window(share) for share in shares]
    mine = windows[ranks.rank]
    rows = slice(mine.first_row, mine.first_row + mine.rows)
    part = hashed_matmul_grad_w(x, xp.ascontiguousarray(gy[rows]), mine, kernel=kernel)
    at = [0, *(window.pieces[0][1] for window in windows)]
    whole = ranks.allgather(part, xp.empty(at[-1], part.dtype), at)
    equal = ranks.rank > 0 or bool((whole == hashed_matmul_grad_w(x, gy, spec, kernel=kernel)).all())
    return not ranks.any(not equal)


def dense_sent_bytes(model: MLP, mode: str, ranks: int, sent: int) -> int:
    """What the rank that sends most would send in a step, ``sent`` here, if the layers were dense: all gradients, if
    samples are split; the same activations, and the last layer's gradient from rank 0, if rows are."""
    if mode == "panels":
        stored = model.shapes()[f"{DEPTH}.weight"][0]
        return sent + 4 * (ranks - 1) * (model.sizes[-2] * CLASSES - stored)
    return allreduce_bytes(sum(a * b + b for a, b in itertools.pairwise(model.sizes)) + 2, ranks)


def allreduce_bytes(values: int, ranks: int) -> int:
    """What the rank that sends most sends in `Ranks.allreduce` of float32 values: all but its share, then its share,
    the largest, to every other."""
    return 4 * (values + (ranks - 2) * -(-values // ranks))


def _rows(
    compression: float, ranks: Ranks, xp: ModuleType, size: dict[str, int], say: Callable[[str], None]
) -> list[Row]:
    """The rows of one compression. All ranks compute, and rank 0 has the numbers."""

    def make() -> MLP:
        return network(size["width"], compression, xp)

    PanelParallel(make(), ranks)  # ValueError if there are too many ranks
    ways = _ways(make())
    batches = {"strong": size["batch"], "weak": size["batch"] * ranks.size}
    expected: dict[str, dict[str, np.ndarray]] = {}
    alone: dict[str, list[float]] = {}
    if ranks.rank == 0:
        alone = _alone(make, ways, size["batch"], size)
        expected = {name: gradients(make(), batch, captured=False) for name, batch in batches.items()}
    ranks.barrier()
    spec = make().linears[0].spec
    assert spec is not None
    columns = min(size["batch"], BITS_COLUMNS)
    identical = same_bits(spec, columns, ranks, xp)
    rows = []
    baselines = {name: float(np.median(times)) for name, times in alone.items()}
    for mode, (scaling, batch) in itertools.product(MODES, batches.items()):
        timed: dict[str, list[float]] = {}
        for name, captured in ways.items():
            found = gradients(PARALLEL[mode](make(), ranks), batch, captured)
            error = ranks.same(relative_error(found, expected[scaling]) if ranks.rank == 0 else None)
            if not error <= TOLERANCE:
                how = ", captured" if captured else ""
                raise ArithmeticError(
                    f"a step of {mode}, {scaling}{how}, on {ranks.size} ranks is wrong, so it is not timed: its "
                    f"gradients differ from those of one rank by {error:.3g}, over {TOLERANCE}"
                )
            training = _Training(PARALLEL[mode](make(), ranks), batch, size["steps"], captured)
            times, sent = [], 0
            for _ in range(WARM_UP + size["rounds"]):
                before = ranks.sent_bytes
                times.append(max(ranks.exchange(training.ms(ranks))))  # a step is over when the last rank is done
                sent = ranks.sent_bytes - before
            timed[name] = times[WARM_UP:]
        by_rank = [count // size["steps"] for count in ranks.exchange(sent)]
        if ranks.rank > 0:
            continue
        row: Row = {
            "operation": "step",
            "mode": mode,
            "scaling": scaling,
            "ranks": ranks.size,
            "batch": batch,
            "layers": training.model.sizes,
            "structure": spec.structure,
            "spec": json.loads(spec.to_json()),
            "compression": compression,
            "dtype": "float32",
            "captured": captured,
            **_percentiles(timed[name]),
            **{f"eager_{key}": ms for key, ms in _percentiles(timed[""]).items()},
            "baselines": baselines,
            "speedup": 0.0,
            "sent_bytes": max(by_rank),
            "sent_bytes_by_rank": by_rank,
            "dense_sent_bytes": dense_sent_bytes(training.model, mode, ranks.size, max(by_rank)),
            "error": error,
            "grad_w_same_bits": identical if mode == "panels" else None,
            "grad_w_columns": columns if mode == "panels" else None,
        }
        row["speedup"] = speedup(row, size["batch"])
        rows.append(row)
        say(line(row))
    return rows


def speedup(row: Row, batch: int) -> float:
    """Samples a second, over those of one rank at its best, with a batch of ``batch``."""
    return row["batch"] / row["ms"] * min(row["baselines"].values()) / batch


def line(row: Row) -> str:
    """A row in a line."""
    eager = [f"eager {row['eager_ms']:.3f}"] if row["captured"] else []
    others = ", ".join([*eager, *(f"{name} {ms:.3f}" for name, ms in row["baselines"].items())])
    return (
        f"step    {row['mode']:6} {row['scaling']:6} 1/{round(1 / row['compression']):<3} batch {row['batch']:5} on "
        f"{row['ranks']} ranks  {row['ms']:9.3f} ms  ({others})  {row['speedup']:5.2f} x the samples; sent "
        f"{row['sent_bytes'] / 1e6:.2f} MB, dense {row['dense_sent_bytes'] / 1e6:.2f} MB; error {row['error']:.1e}"
    )


def run(folder: Path | str, ranks: Ranks, *, quick: bool = False, say: Callable[[str], None] = print) -> list[Path]:
    """Measure, and write gpu_parallel.json or cpu_parallel.json into ``folder``. All ranks call it.

    Parameters
    ----------
    folder : where the record goes; made if missing
    ranks : Ranks
        At least two, and no more than the layers have rows of panels.
    quick : smaller and fewer
    say : takes a line of text for each result, on rank 0

    Returns
    -------
    The paths written: of rank 0 one, of the others none.

    Raises
    ------
    ValueError
        For one rank or too many, or if two would share a GPU.
    ArithmeticError
        If a gradient is not that of one rank.
    """
    if ranks.size < 2:
        raise ValueError("the benchmark needs at least two ranks: mpiexec -n 2 hashedmm bench --parallel")
    xp: ModuleType = np
    if gpu_available():
        ranks.use_gpu()
        import cupy

        xp = cupy
    on_gpu = xp is not np
    size = (GPU_QUICK if quick else GPU_FULL) if on_gpu else (CPU_QUICK if quick else CPU_FULL)
    rows = [row for compression in COMPRESSIONS for row in _rows(compression, ranks, xp, size, say)]
    if ranks.rank > 0:
        return []
    command = f"mpiexec -n {ranks.size} hashedmm bench --parallel" + (" --quick" if quick else "")
    record = new_record("scaling", rows, command, gpu_info() | {"count": ranks.size} if on_gpu else device_info())
    record["software"] |= _engines(on_gpu)
    path = Path(folder) / f"{'gpu' if on_gpu else 'cpu'}_parallel.json"
    write(path, record)
    return [path]


def _engines(on_gpu: bool) -> dict[str, str]:
    """Versions of what sends."""
    from mpi4py import MPI

    versions = {
        "mpi4py": metadata.version("mpi4py"),
        "mpi": " ".join(MPI.Get_library_version().splitlines()[0].rstrip("\0").split()),
    }
    if on_gpu:
        from cupy.cuda import nccl

        versions["nccl"] = str(nccl.get_version())
    return versions
