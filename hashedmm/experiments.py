"""Declared training runs, and the loop that trains them into a record that can be stopped and continued at any moment.

A `Run` says everything that its result depends on; an `Experiment` is a named tuple of runs. `run_experiment` trains
what its record does not hold yet. Imports records, safefile, datasets, build and nn.
"""

from __future__ import annotations

import glob
import itertools
import json
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hashedmm import records, safefile
from hashedmm.build import gpu_available
from hashedmm.datasets import Dataset, load_mnist
from hashedmm.nn import MLP, STRUCTURES, Adam, History, equal_storage_width, train

DATASETS: dict[str, Callable[[], Dataset]] = {"mnist": load_mnist}
METHODS = ("dense", "small_dense", *(f"hashed:{s}" for s in STRUCTURES if s != "dense"))


def default_dropout(method: str, compression: float) -> float:
    """The dropout rate on hidden activations that `hashedmm train` and all declared runs use.

    One rule: 0.25; but for small dense networks 0.1, and below compression 1/16 none.

    It was chosen without the test set: 10,000 training samples held out, one seed, 30 epochs, batch 100, Adam 1e-3
    decaying to 0. Validation error in percent at each rate, "-" where it was not tried::

        method       compression      0    0.1   0.25    0.5
        dense                  1      -   1.51   1.45   1.43
        small_dense          1/8   2.18   1.87   1.88   2.20
        small_dense         1/16   2.67   2.39   2.53      -
        small_dense         1/32   3.48   3.52   3.95      -
        small_dense         1/64   4.96   5.06   5.54      -
        elementwise          1/8      -   1.73   1.75      -
        elementwise         1/64      -   2.67   2.61      -
        strips               1/8   2.09   1.83   1.79   1.79
        strips              1/16      -   2.02   1.91      -
        strips              1/32      -   2.34   2.26      -
        strips              1/64   3.33   3.00   2.84   3.17

    One seed tells rates apart by about 0.1 and no better. The shorter demo keeps the rule.
    """
    check_method(method)
    if method == "small_dense":
        return 0.1 if compression >= 1 / 16 else 0.0
    return 0.25


def default_options(method: str, compression: float) -> dict[str, Any]:
    """What `hashedmm train` and all declared runs pass to a structure's constructor beside the compression.

    Nothing, but for strips at less than 1/8. A panel of 128 x 784 weights owns few buckets there, so that few strips of
    height 128 fit side by side: T = 12 candidates at 1/64, and a strip of outputs sees only 12 different sums of its
    inputs. Candidates that overlap make more of the same buckets: ``stride`` is 128 * 8 * compression, rounded down to
    a power of two, which keeps T near the 98 that strips have at 1/8. At 1/64 this took the validation error (as in
    `default_dropout`, dropout 0.1) from 4.93 to 3.00 %.
    """
    check_method(method)
    if method != "hashed:strips" or compression >= 1 / 8:
        return {}
    return {"stride": max(1, 2 ** math.floor(math.log2(1024 * compression)))}


def check_method(method: Any) -> str:
    """``method`` if it is one of `METHODS`, else a ValueError."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return method


def compression_text(compression: float) -> str:
    """1/8 for 0.125; four digits for what is no simple fraction."""
    fraction = Fraction(compression).limit_denominator(4096)
    return str(fraction) if float(fraction) == compression else f"{compression:.4g}"


# --------------------------------------------------------------------------------------------------------------------
# What is declared


@dataclass(frozen=True)
class Run:
    """One network, trained with each of ``seeds``: all that its test error depends on.

    Attributes
    ----------
    method : str
        "dense"; "hashed:STRUCTURE"; or "small_dense", the dense network of the same depth whose stored values (weights
        and biases) come nearest to those of the elementwise HashedNet of ``layers`` at ``compression``.
    compression : float
        Stored / virtual weights. 1 for "dense".
    dataset : str, a key of `DATASETS`
    layers : sizes of the network that is stood for, from the inputs to the classes
    seeds : of the hash, the initial values, the order of the samples and the dropout masks
    epochs, batch, lr, decay : as `hashedmm.nn.train` and `Adam` take them
    dropout : rate on hidden activations; None: what `default_dropout` says
    options : pairs (name, value) for the structure's constructor, e.g. (("height", 16),); None: `default_options`
    """

    method: str
    compression: float = 1.0
    dataset: str = "mnist"
    layers: tuple[int, ...] = (784, 1000, 10)
    seeds: tuple[int, ...] = (0,)
    epochs: int = 30
    batch: int = 100
    dropout: float | None = None
    lr: float = 1e-3
    decay: str = "linear"
    options: tuple[tuple[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {self.dataset!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different integers, at least one, got {self.seeds!r}")
        if self.method == "dense" and self.compression != 1:
            raise ValueError(f"compression must be 1 for dense, which stores every weight, got {self.compression!r}")
        if self.dropout is None:
            object.__setattr__(self, "dropout", default_dropout(self.method, self.compression))
        if self.options is None:
            object.__setattr__(self, "options", tuple(default_options(self.method, self.compression).items()))

    @property
    def label(self) -> str:
        """Method, compression and options, in a few words."""
        options = [f"{name}={value}" for name, value in self.options or ()]
        compression = [] if self.method == "dense" else [compression_text(self.compression)]
        return " ".join([self.method, *compression, *options])

    def declared(self) -> dict[str, Any]:
        """The fields as JSON has them, without the seeds: two runs are the same if these are equal."""
        fields = json.loads(json.dumps(asdict(self)))
        del fields["seeds"]
        return fields

    def build(self, seed: int, xp: ModuleType = np) -> MLP:
        """The untrained network, on NumPy or CuPy arrays."""
        options: dict[str, Any] = dict(self.options or ())
        dropout = self.dropout or 0.0
        if self.method == "small_dense":
            hashed = MLP(self.layers, structure="elementwise", compression=self.compression)
            width = equal_storage_width(self.layers, hashed.stored_values)
            sizes = [self.layers[0], *[width] * (len(self.layers) - 2), self.layers[-1]]
            return MLP(sizes, structure="dense", dropout=dropout, seed=seed, xp=xp, **options)
        structure = self.method.removeprefix("hashed:")
        return MLP(
            self.layers, structure=structure, compression=self.compression, dropout=dropout, seed=seed, xp=xp, **options
        )


@dataclass(frozen=True)
class Experiment:
    """Runs that are compared with each other, under a name that the command line takes."""

    name: str
    description: str
    runs: tuple[Run, ...]


def _compared(compressions: tuple[float, ...], extra: tuple[float, ...] = (), **settings: Any) -> tuple[Run, ...]:
    """The dense network, then small dense, elementwise and strips at each compression; no elementwise at ``extra``."""
    runs = [Run("dense", **settings)]
    for compression in sorted((*compressions, *extra), reverse=True):
        methods = ("small_dense", "hashed:elementwise", "hashed:strips")
        runs += [Run(m, compression, **settings) for m in methods if compression in compressions or m != methods[1]]
    return tuple(runs)


def _strips_compared(**settings: Any) -> tuple[Run, ...]:
    """Elementwise, and strips of several heights, panels and strides, all at 1/64 and with the same dropout."""
    wide = {"height": 256, "panel": (256, 416)}
    options: list[dict[str, Any]] = [{}, {"stride": 16}, *({**wide, "stride": stride} for stride in (32, 24, 16))]
    return (
        Run("hashed:elementwise", 1 / 64, dropout=0.1, **settings),
        *(Run("hashed:strips", 1 / 64, dropout=0.1, options=tuple(o.items()), **settings) for o in options),
    )


EXPERIMENTS: dict[str, Experiment] = {
    e.name: e
    for e in (
        Experiment(
            "demo",
            "all of MNIST in a few minutes: dense, small dense nets of equal storage, HashedNets at 1/8 and 1/64",
            _compared((1 / 8, 1 / 64), epochs=10),
        ),
        Experiment(
            "mnist_cpu",
            "the same methods as hashedmm train trains them, 30 epochs, and what lies between 1/8 and 1/64",
            _compared((1 / 8, 1 / 64), (1 / 16, 1 / 32), epochs=30),
        ),
        Experiment(
            "strips_accuracy",
            "what height, panel and stride of strips cost in accuracy, two seeds each",
            _strips_compared(seeds=(0, 1)),
        ),
    )
}


def find_experiment(name: str) -> Experiment:
    """The experiment of this name; a ValueError lists all names."""
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


# --------------------------------------------------------------------------------------------------------------------
# Running

DEVICES = ("auto", "cpu", "gpu")


def device_module(device: str) -> ModuleType:
    """Where to train: numpy for "cpu", cupy for "gpu"; for "auto" cupy if there is a GPU that it can use, else numpy.

    Raises
    ------
    ValueError
        For another name, or for "gpu" where there is none.
    """
    if device not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cpu" or (device == "auto" and not gpu_available()):
        return np
    if not gpu_available():
        raise ValueError(
            "device gpu: there is no GPU that CuPy can use here; `hashedmm doctor` says what is missing. The CPU "
            "trains the same networks: take cpu or auto"
        )
    import cupy

    return cupy


def run_experiment(
    name: str, *, output: str | os.PathLike[str], progress: bool = True, fresh: bool = False, device: str = "cpu"
) -> dict[str, Any]:
    """Train the runs of an experiment that the record ``output`` does not hold yet.

    The record is written after every training, and the state of the training under way after every epoch, to a file
    beside it. So whatever ends this function, Ctrl-C or a power cut, the next call with the same ``output`` goes on,
    and what comes out is the same.

    Parameters
    ----------
    name : str, a key of `EXPERIMENTS`
    output : path of the record, ending in .json; folders are made
    progress : bool
        Say on stderr what is trained, with a bar that counts epochs.
    fresh : bool
        Begin anew, whatever is there.
    device : "cpu", "gpu" or "auto"
        Where to train, see `device_module`. A record holds what one device measured.

    Returns
    -------
    The record, kind "training", one row a run. Fields beyond those of every training row: those of `Run`; ``sizes``, of
    the network trained; ``stored_values``, ``virtual_weights``; ``seconds_per_epoch``, the median; and lists with one
    entry a seed: ``test_errors``, ``history`` (`History.to_dict`) and ``specs`` (one a layer, null for dense layers).
    ``test_error_std`` is that of a sample, null for one seed.

    Raises
    ------
    ValueError
        If the experiment is unknown, or ``output`` cannot be written, is no record, holds other runs, or was made by
        another machine or version (its rows and new ones would not belong together).
    KeyboardInterrupt
        After Ctrl-C, with everything saved.
    """
    experiment, xp = find_experiment(name), device_module(device)
    path = _writable(output)
    if fresh:
        for state in path.parent.glob(f"{glob.escape(path.stem)}.*.state"):
            state.unlink()
    rows = {} if fresh or not path.exists() else _rows(experiment, path)
    todo = [run for run in experiment.runs if _missing(run, rows.get(run))]
    if not todo:
        return records.read(path)

    command = f"hashedmm experiment {name}" + (" --device gpu" if xp is not np else "")
    info = records.device_info() if xp is np else records.gpu_info()
    record = records.new_record("training", list(rows.values()), command, info)
    if rows:
        _check_origin(records.read(path), record, path)
    data = {dataset: DATASETS[dataset]() for dataset in sorted({run.dataset for run in todo})}
    for number, run in enumerate(experiment.runs, start=1):
        for seed in _missing(run, rows.get(run)):
            model = run.build(seed, xp)
            state = path.with_name(f"{path.stem}.{re.sub('[^a-z0-9_=.]+', '-', run.label)}-seed{seed}.state")
            if progress:
                sizes = "-".join(map(str, model.sizes))
                which = f", seed {seed}" if len(run.seeds) > 1 else ""
                print(
                    f"{number}/{len(experiment.runs)}  {run.label}{which}: {sizes}, {model.stored_values:,} stored "
                    f"values, dropout {run.dropout:g}",
                    file=sys.stderr,
                    flush=True,
                )
            history = _train(run, seed, model, data[run.dataset], state, progress)
            rows[run] = _row(run, rows.get(run), seed, model, history)
            done = [rows[r] for r in experiment.runs if r in rows]
            record = records.new_record("training", done, command, info)
            records.write(path, record)
            state.unlink(missing_ok=True)
    return record


def _writable(output: str | os.PathLike[str]) -> Path:
    path = Path(output)
    if path.suffix != ".json":
        raise ValueError(f"output must name a file that ends in .json, got {str(path)!r}; e.g. out/demo.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"output={path}: its folder cannot be made ({e}); choose another") from None
    safefile.check_writable(path, "output")
    return path


def _rows(experiment: Experiment, path: Path) -> dict[Run, dict[str, Any]]:
    """The rows that a record holds, by the run that they belong to."""
    record = records.read(path)
    again = "give another output, or begin anew with --fresh"
    if record["kind"] != "training":
        raise ValueError(f"{path} is a record of kind {record['kind']!r}, expected 'training'; {again}")
    found: dict[Run, dict[str, Any]] = {}
    for row in record["rows"]:
        same = [r for r in experiment.runs if r.declared().items() <= row.items() and set(row["seeds"]) <= set(r.seeds)]
        if not same:
            what = f"{row['method']}, compression {row['compression']:.4g}, {row['epochs']} epochs"
            raise ValueError(
                f"{path} holds a run that the experiment {experiment.name!r} does not have ({what}): it belongs to "
                f"another experiment or version; {again}"
            )
        found[same[0]] = row
    return found


def _missing(run: Run, row: Mapping[str, Any] | None) -> list[int]:
    """The seeds that are still to be trained."""
    return [seed for seed in run.seeds if row is None or seed not in row["seeds"]]


def _check_origin(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """ValueError if two records come from different machines or programs: a record has one origin."""
    differ = [key for key in ("device", "software", "commit") if old[key] != new[key]]
    if differ:
        what = "; ".join(f"{key} was {old[key]}, now it is {new[key]}" for key in differ)
        raise ValueError(
            f"{path} is unfinished and comes from another machine or version, so that it cannot be continued here "
            f"({what}). Begin anew with --fresh, or give another output"
        )


def _train(run: Run, seed: int, model: MLP, data: Dataset, state: Path, progress: bool) -> History:
    """Train, continuing from the state file if there is one; KeyboardInterrupt after Ctrl-C, with the state saved."""
    resume = state if state.exists() else None
    try:
        history = train(
            model, data, epochs=run.epochs, batch=run.batch, optimizer=Adam(run.lr), decay=run.decay, seed=seed,
            progress=progress, save_state=state, resume=resume,
        )  # fmt: skip
    except ValueError as e:
        if resume is None:
            raise
        raise ValueError(f"{e}. (That file is an unfinished training; --fresh begins the experiment anew)") from None
    if history.interrupted:
        raise KeyboardInterrupt
    return history


def _row(run: Run, before: Mapping[str, Any] | None, seed: int, model: MLP, history: History) -> dict[str, Any]:
    """The row of a run after one more seed."""

    def with_new(name: str, value: Any) -> list:
        return [*(before[name] if before else ()), value]

    errors = with_new("test_errors", history.final_test_error)
    histories = with_new("history", _rounded(history.to_dict()))
    specs = [None if linear.spec is None else json.loads(linear.spec.to_json()) for linear in model.linears]
    epoch_seconds = itertools.chain.from_iterable(h["seconds"] for h in histories)
    return run.declared() | {
        "sizes": model.sizes,
        "stored_values": model.stored_values,
        "stored_bytes": model.stored_bytes,
        "virtual_weights": model.virtual_weights,
        "seeds": with_new("seeds", seed),
        "test_error_mean": round(statistics.mean(errors), 6),
        "test_error_std": round(statistics.stdev(errors), 6) if len(errors) > 1 else None,
        "test_errors": errors,
        "seconds": round(sum(h["total_seconds"] for h in histories), 3),
        "seconds_per_epoch": round(statistics.median(epoch_seconds), 4),
        "history": histories,
        "specs": with_new("specs", specs),
    }


def _rounded(value: Any) -> Any:
    """Floats to six decimals: a record is read by people, too."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
