"""Declared training runs, and the loop that trains them into a record that can be stopped and continued at any moment.

A `Run` says everything that its result depends on; an `Experiment` is a named tuple of runs. `run_experiment` trains
what its record does not hold yet: on a CPU one network after the other, on a GPU in groups of equal layer sizes
(hashedmm.batched). Imports records, safefile, datasets, variants, hashing, build, nn, batched and baselines.
"""

from __future__ import annotations

import collections
import functools
import glob
import hashlib
import itertools
import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hashedmm import baselines, batched, records, safefile
from hashedmm.build import gpu_available
from hashedmm.datasets import Dataset, load_mnist
from hashedmm.hashing import HASHES
from hashedmm.nn import MLP, Adam, History, train
from hashedmm.variants import VARIANTS, load_variant

DATASETS: dict[str, Callable[[], Dataset]] = {
    "mnist": load_mnist, **{name: functools.partial(load_variant, name) for name in VARIANTS}
}  # fmt: skip
DISTILLED = "distilled:"  # before the name of the method that the student is
METHODS = (
    *baselines.METHODS,
    *(f"{DISTILLED}{m}" for m in baselines.METHODS if m == "small_dense" or m.startswith("hashed:")),
)
# Hinton, Vinyals and Dean 2015 find that a high weight of the soft targets is best. Declared, not searched.
TEMPERATURE, SOFT_WEIGHT = 4.0, 0.9


def student(method: str) -> str:
    """The method without "distilled:"."""
    return method.removeprefix(DISTILLED)


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
    if student(check_method(method)) == "small_dense":
        return 0.1 if compression >= 1 / 16 else 0.0
    return 0.25


def default_options(method: str, compression: float, epochs: int = 30) -> dict[str, Any]:
    """What `hashedmm train` and all declared runs pass on beside the compression: see `baselines.default_options`."""
    return baselines.default_options(student(check_method(method)), compression, epochs)


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
        One of `hashedmm.baselines.METHODS`; or "distilled:" and one, which a dense network of ``layers`` teaches.
    compression : float
        Stored bytes / bytes of the dense weights. 1 for "dense".
    dataset : str, a key of `DATASETS`
    layers : sizes of the network that is stood for, from the inputs to the classes
    seeds : of the hash, the initial values, the order of the samples and the dropout masks
    epochs, batch, lr, decay : as `hashedmm.nn.train` and `Adam` take them
    dropout : rate on hidden activations; None: what `default_dropout` says
    options : pairs (name, value), e.g. (("height", 16),), as `hashedmm.baselines.network` takes them; None:
        `default_options`
    hash : the hash function of hashed methods
    teacher : of "distilled:" methods, pairs (name, value): dropout and lr of the teacher, temperature, and weight of
        the soft targets (`hashedmm.batched.Teaching`). The rest of the teacher's training is as the student's, and its
        seed is the student's. None: `default_dropout` and lr 0.001 of dense networks.
    validation : training samples held out, drawn by the seed. Not 0: they are what is evaluated, and the test set is
        not looked at.
    chosen_by : the record whose search chose dropout and lr (`chosen`), or None. It says so, and changes nothing.
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
    hash: str = "fmix32"
    teacher: tuple[tuple[str, float], ...] | None = None
    validation: int = 0
    chosen_by: str | None = None

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {self.dataset!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different integers, at least one, got {self.seeds!r}")
        base = student(self.method)
        if base == "dense" and self.compression != 1:
            raise ValueError(f"compression must be 1 for dense, which stores every weight, got {self.compression!r}")
        if not baselines.available(base, self.compression):
            raise ValueError(
                f"compression {self.compression!r}: {base} has no form there (fixed_point has 2 to 16 bits, 32 * "
                "compression; quantised 1 to 16; hashed8 goes up to 1/4; all others from above 0 to 1)"
            )
        if self.hash not in HASHES or (self.hash != "fmix32" and "hashed" not in base):
            raise ValueError(f"hash must be one of {', '.join(HASHES)}, of a hashed method, got {self.hash!r}")
        if self.dropout is None:
            object.__setattr__(self, "dropout", default_dropout(self.method, self.compression))
        if self.options is None:
            options = default_options(self.method, self.compression, self.epochs)
            object.__setattr__(self, "options", tuple(options.items()))
        distilled = self.method.startswith(DISTILLED)
        if distilled and self.teacher is None:
            object.__setattr__(self, "teacher", teacher_settings(default_dropout("dense", 1.0), 1e-3))
        names = {name for name, _ in self.teacher or ()}
        if names != ({"dropout", "lr", "temperature", "weight"} if distilled else set()):
            raise ValueError(
                f"teacher must give dropout, lr, temperature and weight for a distilled method, and nothing for any "
                f"other, got {self.teacher!r} for {self.method}"
            )

    @property
    def label(self) -> str:
        """Method, compression, hash if not fmix32, and options, in a few words."""
        options = [f"{name}={value}".replace(" ", "") for name, value in self.options or ()]
        compression = [] if self.method == "dense" else [compression_text(self.compression)]
        return " ".join([self.method, *compression, *([self.hash] if self.hash != "fmix32" else []), *options])

    @property
    def full_label(self) -> str:
        """The label after data set and layers, and before what a search varies."""
        searched = f" dropout={self.dropout:g} lr={self.lr:g}" if self.validation else ""
        return f"{self.dataset} {'-'.join(map(str, self.layers))} {self.label}{searched}"

    def declared(self) -> dict[str, Any]:
        """The fields as JSON has them, without the seeds: two runs are the same if these are equal."""
        fields = json.loads(json.dumps(asdict(self)))
        del fields["seeds"]
        return fields

    def declares(self, row: Mapping[str, Any]) -> bool:
        """Whether a record's row is of this run, perhaps with fewer seeds. Rows written before a field existed have its
        default value."""
        defaults = {f.name: f.default for f in fields(self) if f.name not in ("method", "seeds")}
        same = all(row.get(name, defaults.get(name)) == value for name, value in self.declared().items())
        return same and set(row["seeds"]) <= set(self.seeds)

    @property
    def is_mlp(self) -> bool:
        """Whether `build` gives it: dense, small dense and hashed networks, trained by their labels alone."""
        return self.method in ("dense", "small_dense") or self.method.startswith("hashed:")

    def build(self, seed: int, xp: ModuleType = np) -> MLP:
        """The untrained network, on NumPy or CuPy arrays. ValueError for a method that is no `MLP`: see `network`."""
        if not self.is_mlp:
            raise ValueError(f"{self.method} is no MLP; Run.network makes it for hashedmm.batched")
        options: dict[str, Any] = dict(self.options or ())
        dropout = self.dropout or 0.0
        if self.method == "small_dense":
            sizes = baselines.small_sizes(self.layers, self.compression)
            return MLP(sizes, structure="dense", dropout=dropout, seed=seed, xp=xp, **options)
        structure = self.method.removeprefix("hashed:")
        return MLP(
            self.layers, structure=structure, compression=self.compression, dropout=dropout, seed=seed, xp=xp,
            **({} if structure == "dense" else {"hash": self.hash}), **options,
        )  # fmt: skip

    def network(self, seed: int) -> batched.Network:
        """The untrained network for `hashedmm.batched`, without its teacher."""
        return baselines.network(
            self.layers, student(self.method), self.compression, seed=seed, dropout=self.dropout or 0.0, lr=self.lr,
            decay=self.decay, hash=self.hash, options=dict(self.options or ()),
        )  # fmt: skip

    def teacher_run(self, seed: int) -> Run | None:
        """The run that trains this run's teacher with one seed."""
        if self.teacher is None:
            return None
        settings = dict(self.teacher)
        return Run(
            "dense", dataset=self.dataset, layers=self.layers, seeds=(seed,), epochs=self.epochs, batch=self.batch,
            dropout=settings["dropout"], lr=settings["lr"], decay=self.decay, validation=self.validation,
        )  # fmt: skip


def teacher_settings(dropout: float, lr: float) -> tuple[tuple[str, float], ...]:
    """A `Run.teacher` with the declared temperature and weight."""
    return ("dropout", dropout), ("lr", lr), ("temperature", TEMPERATURE), ("weight", SOFT_WEIGHT)


@dataclass(frozen=True)
class Experiment:
    """Runs that are compared with each other, under a name that the command line takes.

    ``declare`` is the runs, or a function that gives them: it is called when they are first asked for.
    """

    name: str
    description: str
    declare: tuple[Run, ...] | Callable[[], tuple[Run, ...]] = field(repr=False)

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """The runs. ValueError if two of them have one label: nobody could ask for either."""
        runs = self.declare() if callable(self.declare) else self.declare
        if len({run.full_label for run in runs}) < len(runs):
            raise ValueError(f"two runs of the experiment {self.name!r} have the same label")
        return runs

    @functools.cached_property
    def _labels(self) -> dict[Run, str]:
        count = collections.Counter(run.label for run in self.runs)
        return {run: run.label if count[run.label] == 1 else run.full_label for run in self.runs}

    def label(self, run: Run) -> str:
        """The shortest name of a run that no other of the experiment has."""
        return self._labels[run]

    def find(self, label: str) -> Run:
        """The run with this label, short or full; a ValueError says which come near."""
        for run, short in self._labels.items():
            if label in (short, run.full_label):
                return run
        near = [short for run, short in self._labels.items() if all(word in run.full_label for word in label.split())]
        some = "; ".join(repr(name) for name in near[:8]) or "none has all of these words"
        raise ValueError(f"the experiment {self.name!r} has no run {label!r}; near: {some}")


# --------------------------------------------------------------------------------------------------------------------
# Dropout and learning rate: chosen by validation alone, with the same small search for every method

SHALLOW, DEEP = (784, 1000, 10), (784, 1000, 1000, 1000, 10)
SEARCH = "search"  # the experiment, and the record in data/results that it becomes
SEARCH_EPOCHS, HELD_OUT = 15, 10_000
SEARCHED = tuple((dropout, lr) for dropout in (0.0, 0.1, 0.25, 0.5) for lr in (1e-3, 3e-4))


def chosen(
    method: str, compression: float, layers: Sequence[int], record: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the search chose for a method: ``dropout``, ``lr`` and ``chosen_by``, as `Run` takes them.

    Of the runs of the same method and as many layers, at the searched compression that is nearest on a logarithmic
    scale, the one of least validation error; of equal ones that of less dropout, then that of the larger lr. A method
    that was not searched, or all if there is no record, gets `default_dropout`, 0.001 and None.

    Parameters
    ----------
    record : a record of the experiment "search"; None: data/results/search.json, if it is there.
    """
    rows = _searched() if record is None else tuple(record["rows"])
    mine = [r for r in rows if r["method"] == method and len(r["layers"]) == len(layers)]
    if not mine:
        return {"dropout": default_dropout(method, compression), "lr": 1e-3, "chosen_by": None}
    nearest = min((r["compression"] for r in mine), key=lambda c: (abs(math.log(c / compression)), c))
    candidates = [r for r in mine if r["compression"] == nearest]
    best = min(candidates, key=lambda r: (statistics.mean(r["validation_errors"]), r["dropout"], -r["lr"]))
    return {"dropout": best["dropout"], "lr": best["lr"], "chosen_by": SEARCH}


@functools.cache
def _searched() -> tuple[dict[str, Any], ...]:
    try:
        return tuple(records.read(SEARCH)["rows"])
    except FileNotFoundError:
        return ()


def _declared(method: str, compression: float, layers: tuple[int, ...] = SHALLOW, **settings: Any) -> Run:
    """A run with the settings that the search chose, and for distillation a teacher with those of dense networks."""
    if method.startswith(DISTILLED):
        of_teacher = chosen("dense", 1.0, layers)
        settings["teacher"] = teacher_settings(of_teacher["dropout"], of_teacher["lr"])
    return Run(method, compression, layers=layers, **chosen(method, compression, layers), **settings)


# --------------------------------------------------------------------------------------------------------------------
# The experiments

EIGHTH, SIXTY_FOURTH = 1 / 8, 1 / 64
COMPRESSIONS = (1 / 2, 1 / 4, EIGHTH, 1 / 16, 1 / 32, SIXTY_FOURTH)
COMPARED = (
    "small_dense", *(f"hashed:{s}" for s in baselines.HASHED), "hashed8:strips", *baselines.RIVALS,
    *(f"{DISTILLED}{m}" for m in ("small_dense", "hashed:elementwise", "hashed:strips")),
)  # fmt: skip
THREE, FIVE = (0, 1, 2), (0, 1, 2, 3, 4)
# Epochs by the number of training samples: 7,200 steps for the small sets, 3,600 for the 1,200 rectangles.
EPOCHS = {"rect": 300, "convex": 90}  # all others: 60
TWO_CLASSES = ("rect", "convex")


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


def _search() -> tuple[Run, ...]:
    """Every method of `COMPARED` at 1/8 and 1/64, or the compression that it has next to that, and dense."""
    cases: list[tuple[str, float]] = [("dense", 1.0)]
    for method in COMPARED:
        has = [c for c in COMPRESSIONS if baselines.available(student(method), c)]
        cases += [(method, c) for c in (EIGHTH, min(has))]
    return tuple(
        Run(method, c, layers=layers, epochs=SEARCH_EPOCHS, validation=HELD_OUT, dropout=dropout, lr=lr)
        for layers in (SHALLOW, DEEP) for method, c in cases for dropout, lr in SEARCHED
    )  # fmt: skip


def _mnist_grid() -> tuple[Run, ...]:
    runs = []
    for layers in (SHALLOW, DEEP):
        runs.append(_declared("dense", 1.0, layers, seeds=FIVE))
        for method, c in itertools.product(COMPARED, COMPRESSIONS):
            if baselines.available(student(method), c):
                runs.append(_declared(method, c, layers, seeds=FIVE if c in (EIGHTH, SIXTY_FOURTH) else THREE))
    return tuple(runs)


def _variants() -> tuple[Run, ...]:
    """The table of Chen et al. 2015, section 6, with strips beside. Its rows for MNIST are those of mnist_grid."""
    methods = (
        "random_edges", "low_rank_fixed", "small_dense", "hashed:elementwise", "hashed:strips",
        *(f"{DISTILLED}{m}" for m in ("small_dense", "hashed:elementwise", "hashed:strips")),
    )  # fmt: skip
    runs = []
    for dataset in VARIANTS:
        for layers in (SHALLOW, DEEP):
            sizes = (*layers[:-1], 2 if dataset in TWO_CLASSES else layers[-1])
            runs += [
                _declared(m, c, sizes, dataset=dataset, seeds=THREE, epochs=EPOCHS.get(dataset, 60))
                for c in (EIGHTH, SIXTY_FOURTH) for m in methods
            ]  # fmt: skip
    return tuple(runs)


def _expansion() -> tuple[Run, ...]:
    """As many buckets for 1,000 hidden units as for 2,000, 4,000 and 8,000 (Chen et al. 2015, section 6); the biases of
    the hidden layer are more."""
    return tuple(
        _declared(method, c / factor, (784, 1000 * factor, 10), seeds=THREE)
        for c in (EIGHTH, SIXTY_FOURTH) for method in ("hashed:elementwise", "hashed:strips") for factor in (1, 2, 4, 8)
    )  # fmt: skip


def _strips_shape() -> tuple[Run, ...]:
    """Height, stride and panel of strips, each varied alone around what the default is, and the panels of the GPU
    benchmark; elementwise beside."""
    runs = []
    for c in (EIGHTH, SIXTY_FOURTH):
        settings = chosen("hashed:strips", c, SHALLOW)
        runs.append(_declared("hashed:elementwise", c, seeds=THREE))
        strides = {EIGHTH: (128, 64, 32), SIXTY_FOURTH: (128, 64, 32, 16, 8)}[c]
        shapes: list[dict[str, Any]] = [{"stride": stride} for stride in strides]
        shapes += [{"height": h, "stride": min(h, strides[0] if c == EIGHTH else 16)} for h in (8, 16, 32, 64, 256)]
        of_panels = [(128, 256), (128, 512), (256, 1024), (1000, 1024)]
        shapes += [{"panel": panel, "stride": strides[0] if c == EIGHTH else 16} for panel in of_panels]
        wide = (256, 512) if c == EIGHTH else (256, 416)
        shapes.append({"height": 256, "panel": wide, "stride": 256 if c == EIGHTH else 24})
        runs += [Run("hashed:strips", c, seeds=THREE, options=tuple(o.items()), **settings) for o in shapes]
    return tuple(runs)


def _bad_hash() -> tuple[Run, ...]:
    """Three hash functions, five seeds each: "multiply_shift" is a linear function of the position, and some of its
    seeds make lattices."""
    return tuple(
        _declared(method, c, seeds=FIVE, hash=hash)
        for c in (EIGHTH, SIXTY_FOURTH) for method in ("hashed:elementwise", "hashed:strips") for hash in HASHES
    )  # fmt: skip


EXPERIMENTS: dict[str, Experiment] = {
    e.name: e
    for e in (
        Experiment(
            "demo",
            "all of MNIST in a few minutes: dense, small dense nets of equal storage, HashedNets at 1/8 and 1/64",
            lambda: _compared((1 / 8, 1 / 64), epochs=10),
        ),
        Experiment(
            "mnist_cpu",
            "the same methods as hashedmm train trains them, 30 epochs, and what lies between 1/8 and 1/64",
            lambda: _compared((1 / 8, 1 / 64), (1 / 16, 1 / 32), epochs=30),
        ),
        Experiment(
            "strips_accuracy",
            "what height, panel and stride of strips cost in accuracy, two seeds each",
            lambda: _strips_compared(seeds=(0, 1)),
        ),
        Experiment(SEARCH, "dropout and learning rate for every method, by validation", _search),
        Experiment("mnist_grid", "MNIST: every structure and every rival, 1/2 to 1/64, both depths", _mnist_grid),
        Experiment(
            "variants", "the HashedNets paper's table: seven harder data sets, 1/8 and 1/64, both depths", _variants
        ),
        Experiment("expansion", "as many stored values for 1 to 8 times as many hidden units", _expansion),
        Experiment("strips_shape", "height, stride and panel of strips against error", _strips_shape),
        Experiment("bad_hash", "what a bad hash costs", _bad_hash),
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


MOST_TOGETHER = 32  # networks trained side by side on a GPU: more gain nothing, and less is lost when one stops
MEMORY_SHARE = 0.5  # of the GPU's free memory that a group may take
Job = tuple[Run, int]  # a run and one of its seeds


def run_experiment(
    name: str, *, output: str | os.PathLike[str], progress: bool = True, fresh: bool = False, device: str = "cpu",
    tf32: bool = False, part: tuple[int, int] = (1, 1), minutes: float | None = None, together: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train the runs of an experiment that the record ``output`` does not hold yet.

    The record is written after every training, and the state of the training under way after every epoch, to a file
    beside it. So whatever ends this function, Ctrl-C or a power cut, the next call with the same ``output`` goes on,
    and what comes out is the same. Networks that are no `MLP`, and all networks on a GPU, are trained by
    `hashedmm.batched`, which keeps no state within a training: there what is under way is lost, on a GPU a group of at
    most 32 networks. Teachers are kept in files beside the record until it is complete.

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
    tf32 : bool
        On a GPU: products by tensor cores, operands rounded to 11 bits. Rows say so.
    part : (k, n)
        Train only share k of n of the groups, for several processes with an ``output`` each: `merge` joins the records.
    minutes : float or None
        Begin nothing more after so many minutes; the next call goes on.
    together : bool or None
        Train in groups. None: on a GPU, where it pays.

    Returns
    -------
    The record, kind "training", one row a run that has been trained. Fields beyond those of every training row: those
    of `Run`; ``sizes``, of the matrices in order; ``stored_values``, ``virtual_weights``; ``multiply_adds`` and
    ``additions`` of a sample's forward pass (`baselines.operations`); ``trained_by`` "nn.train" or "batched"; ``tf32``;
    ``seconds_per_epoch``, the median; and lists with one entry a seed: ``test_errors``, ``validation_errors`` if the
    run holds samples out, ``teacher_errors`` if it has a teacher, ``history`` (`History.to_dict`, or loss and
    train_error), ``specs`` (one a layer, null where nothing is hashed) and ``seconds_shared``, how many networks were
    trained together: the seconds of a group are divided by it. The standard deviation is that of a sample, null for one
    seed. For runs that hold samples out ``test_error_mean`` is null.

    Raises
    ------
    ValueError
        If the experiment is unknown, or ``output`` cannot be written, is no record, holds other runs, or was made by
        another machine or version (its rows and new ones would not belong together).
    KeyboardInterrupt
        After Ctrl-C, with everything saved.
    """
    experiment, xp = find_experiment(name), device_module(device)
    k, shares = part
    if not 1 <= k <= shares:
        raise ValueError(f"part must be (k, n) with k from 1 to n, got {part!r}")
    if tf32 and xp is np:
        raise ValueError("tf32 is a GPU's arithmetic; leave it out on a CPU")
    path = _writable(output)
    if fresh:
        for state in path.parent.glob(f"{glob.escape(path.stem)}.*.state"):
            state.unlink()
    rows = {} if fresh or not path.exists() else _rows(experiment, path, tf32)
    together = xp is not np if together is None else together
    groups = [[(run, seed)] for run in experiment.runs for seed in run.seeds]
    if together:
        groups = _groups(experiment.runs, int(MEMORY_SHARE * _free_bytes(xp)))
    groups = _share(groups, k, shares)
    todo = [[job for job in group if job[1] in _missing(job[0], rows.get(job[0]))] for group in groups]
    todo = [group for group in todo if group]
    if not todo and rows:
        return records.read(path)

    command = f"hashedmm experiment {name}" + (" --device gpu" if xp is not np else "") + (" --tf32" if tf32 else "")
    info = records.device_info() if xp is np else records.gpu_info()
    record = records.new_record("training", list(rows.values()), command, info)
    if rows:
        _check_origin(records.read(path), record, path)
    jobs = [job for group in todo for job in group]
    trainer = _Trainer(experiment, path, xp, tf32, progress, together, jobs)
    began = time.monotonic()
    for number, group in enumerate(todo):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            if progress:
                print(
                    f"stopped after {minutes:g} minutes: {len(todo) - number} of {len(todo)} trainings or groups are "
                    "left; the same command goes on",
                    file=sys.stderr,
                )
            return record
        for run, seed, outcome in trainer.train(group):
            rows[run] = _row(run, rows.get(run), seed, outcome, tf32)
        done = [rows[r] for r in experiment.runs if r in rows]
        record = records.new_record("training", done, command, info)
        records.write(path, record)
        trainer.forget_state(group)
    trainer.forget_teachers()
    return record


def _groups(runs: Sequence[Run], free_bytes: int) -> list[list[Job]]:
    """All trainings, those that can be trained side by side together."""
    kinds: dict[tuple[Any, ...], list[Job]] = {}
    for run in runs:
        kind = baselines.kind(run.layers, student(run.method), run.compression)
        key = run.dataset, run.epochs, run.batch, run.validation, kind
        kinds.setdefault(key, []).extend((run, seed) for seed in run.seeds)
    groups = []
    for jobs in kinds.values():
        run, seed = jobs[0]
        free = free_bytes - 4 * 60000 * run.layers[-1] * MOST_TOGETHER  # teachers' probabilities, at most
        most = batched.most_at_once(run.network(seed), run.batch, free_bytes=free, most=MOST_TOGETHER)
        count = -(-len(jobs) // most)
        size = -(-len(jobs) // count)
        groups += [jobs[start : start + size] for start in range(0, len(jobs), size)]
    return groups


def cost(run: Run) -> float:
    """Estimated seconds of one training in a group on an H100, without tf32: multiply-adds, memory traffic and launches
    at about the rates that one reaches. To divide work by, and to tell a reader about how long it takes."""
    samples = {"mnist": 60000, "rect": 1200, "convex": 8000}.get(run.dataset, 12000) - run.validation
    *shapes, _ = baselines.kind(run.layers, student(run.method), run.compression)
    weights = sum(shape[0] * shape[1] for shape in shapes)
    gathered = any(shape[4] for shape in shapes)
    flops = 2 * samples * weights * 2.7
    traffic = samples / run.batch * weights * (44 if gathered else 40)
    launches = samples / run.batch * 4e-6 * (6 + 6 * len(shapes)) / 8
    return run.epochs * (flops / 35e12 + traffic / 2e12 + launches)


def _share(groups: list[list[Job]], k: int, shares: int) -> list[list[Job]]:
    """Share k of n: the dearest groups are dealt out first, each to the share that has least. What one teacher is
    needed for stays together, so that it is trained once."""
    bundles: dict[Any, list[int]] = {}
    for number, group in enumerate(groups):
        taught = next((run for run, _ in group if run.teacher is not None), None)
        bundles.setdefault(number if taught is None else (taught.dataset, taught.layers), []).append(number)
    costs = {key: sum(cost(run) for n in numbers for run, _ in groups[n]) for key, numbers in bundles.items()}
    loads, mine = [0.0] * shares, []
    for key in sorted(bundles, key=lambda key: -costs[key]):
        least = loads.index(min(loads))
        loads[least] += costs[key]
        mine += bundles[key] if least == k - 1 else []
    return [groups[number] for number in sorted(mine)]


def merge(name: str, parts: Sequence[str | os.PathLike[str]], *, output: str | os.PathLike[str]) -> dict[str, Any]:
    """Join the records of the parts of an experiment, and write it. A run that several parts have seeds of gets them
    all.

    Raises
    ------
    ValueError
        If a file is no record of the experiment, or they come from different devices, versions or commands.
    """
    experiment, path = find_experiment(name), _writable(output)
    rows: dict[Run, dict[str, Any]] = {}
    if not parts:
        raise ValueError("name the records to be merged, at least one")
    found = [records.read(part) for part in parts]
    for part, record in zip(parts, found, strict=True):
        _check_origin(found[0], record, Path(part))
        if record["command"] != found[0]["command"]:
            raise ValueError(f"{part} was made by `{record['command']}`, the first by `{found[0]['command']}`")
        for run, row in _rows(experiment, Path(part)).items():
            rows[run] = _joined(run, rows[run], row) if run in rows else row
    done = [rows[run] for run in experiment.runs if run in rows]
    record = records.new_record("training", done, found[0]["command"], found[0]["device"])
    record |= {key: found[0][key] for key in ("software", "commit", "date")}
    records.write(path, record)
    return record


class _Trainer:
    """Trains jobs, alone or together, and keeps what they share: data sets and teachers."""

    def __init__(
        self, experiment: Experiment, path: Path, xp: ModuleType, tf32: bool, progress: bool, together: bool,
        jobs: Sequence[Job],
    ) -> None:  # fmt: skip
        self.experiment, self.path, self.xp, self.tf32, self.progress = experiment, path, xp, tf32, progress
        self.together, self.jobs = together, jobs  # jobs: all that are to be trained
        self._data: dict[str, Dataset] = {}
        self._samples: dict[str, batched.Samples] = {}
        self._teachers: dict[tuple[Run, int], tuple[np.ndarray, float]] = {}

    def data(self, run: Run) -> Dataset:
        if run.dataset not in self._data:
            self._data = {run.dataset: DATASETS[run.dataset]()}  # one at a time
        return self._data[run.dataset]

    def samples(self, run: Run) -> batched.Samples:
        if run.dataset not in self._samples:
            self._samples = {run.dataset: batched.Samples.of(self.data(run), self.xp)}
        return self._samples[run.dataset]

    def train(self, group: list[Job]) -> list[tuple[Run, int, dict[str, Any]]]:
        """(run, seed, what came out) of each."""
        run, seed = group[0]
        if not self.together and run.is_mlp and not run.validation:
            return [(run, seed, self._alone(run, seed))]
        outcomes = self._together(group)
        return [(run, seed, outcome) for (run, seed), outcome in zip(group, outcomes, strict=True)]

    # ---- one network, with a state that it can go on from

    def _state(self, run: Run, seed: int) -> Path:
        label = re.sub("[^a-z0-9_=.]+", "-", self.experiment.label(run))
        return self.path.with_name(f"{self.path.stem}.{label}-seed{seed}.state")

    def forget_state(self, group: list[Job]) -> None:
        for run, seed in group:
            self._state(run, seed).unlink(missing_ok=True)

    def _alone(self, run: Run, seed: int) -> dict[str, Any]:
        model = run.build(seed, self.xp)
        self._say(run, seed, f"{'-'.join(map(str, model.sizes))}, {model.stored_values:,} stored values")
        history = _train(run, seed, model, self.data(run), self._state(run, seed), self.progress)
        specs = [None if linear.spec is None else json.loads(linear.spec.to_json()) for linear in model.linears]
        return _facts(run, run.network(seed)) | {
            "trained_by": "nn.train", "test_errors": history.final_test_error,
            "history": _rounded(history.to_dict()), "specs": specs, "seconds": history.total_seconds,
            "seconds_shared": 1,
        }  # fmt: skip

    def _say(self, run: Run, seed: int, what: str) -> None:
        if self.progress:
            runs = self.experiment.runs
            which = f", seed {seed}" if len(run.seeds) > 1 else ""
            print(
                f"{runs.index(run) + 1}/{len(runs)}  {self.experiment.label(run)}{which}: {what}, dropout "
                f"{run.dropout:g}",
                file=sys.stderr,
                flush=True,
            )

    # ---- a group

    def _together(self, group: list[Job]) -> list[dict[str, Any]]:
        lessons = [self._teacher(run, seed) for run, seed in group]
        networks = [run.network(seed) for run, seed in group]
        for (run, _), network, lesson in zip(group, networks, lessons, strict=True):
            if lesson is not None:
                settings = dict(run.teacher or ())
                network.teaching = batched.Teaching(lesson[0], settings["temperature"], settings["weight"])
        run, seed = group[0]
        if len(group) == 1:
            self._say(run, seed, f"{baselines.storage(networks[0]).bytes:,} bytes")
        elif self.progress:
            labels = list(dict.fromkeys(r.label for r, _ in group))
            some = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
            sizes = "-".join(map(str, run.layers))
            print(f"{len(group)} networks, {run.dataset} {sizes}: {some}", file=sys.stderr, flush=True)
        results, seconds = batched.train(
            networks, self.samples(run), epochs=run.epochs, batch=run.batch, validation=run.validation,
            evaluate=not run.validation, tf32=self.tf32,
        )  # fmt: skip
        self._free()
        if self.progress and len(group) > 1:
            print(f"    {seconds:.1f} seconds, {seconds / len(group):.2f} a network", file=sys.stderr, flush=True)
        outcomes = []
        for (run, _), network, result, lesson in zip(group, networks, results, lessons, strict=True):
            hashes = [layer.chosen if hasattr(layer.chosen, "to_json") else None for layer in network.layers]
            outcome = _facts(run, network) | {
                "trained_by": "batched", "test_errors": result.test_error,
                "history": _rounded({"loss": result.loss, "train_error": result.train_error}),
                "specs": [None if h is None else json.loads(h.to_json()) for h in hashes],
                "seconds": seconds / len(group), "seconds_shared": len(group),
            }  # fmt: skip
            if run.validation:
                outcome["validation_errors"] = result.validation_error
            if lesson is not None:
                outcome["teacher_errors"] = lesson[1]
            outcomes.append(outcome)
        return outcomes

    # ---- teachers

    def _teacher_file(self, teacher: Run) -> Path:
        what = json.dumps([teacher.declared(), teacher.seeds, self.tf32], sort_keys=True)
        return self.path.with_name(f"{self.path.stem}.teacher-{hashlib.sha256(what.encode()).hexdigest()[:16]}.state")

    def forget_teachers(self) -> None:
        for file in self.path.parent.glob(f"{glob.escape(self.path.stem)}.teacher-*.state"):
            file.unlink()

    def _teacher(self, run: Run, seed: int) -> tuple[np.ndarray, float] | None:
        """The logits of a run's teacher on all training samples, and its error; trained with all others of its kind
        that are still needed, unless it is there."""
        teacher = run.teacher_run(seed)
        if teacher is None:
            return None
        key = teacher, seed
        if key not in self._teachers and not self._read_teacher(teacher, seed):
            needed = {t: s for r, s in self.jobs if (t := r.teacher_run(s)) is not None and _alike(t, teacher)}
            missing = [(t, s) for t, s in needed.items() if not self._read_teacher(t, s)]
            for start in range(0, len(missing), MOST_TOGETHER):
                self._train_teachers(missing[start : start + MOST_TOGETHER])
        return self._teachers[key]

    def _read_teacher(self, teacher: Run, seed: int) -> bool:
        if (teacher, seed) not in self._teachers:
            file = self._teacher_file(teacher)
            if not file.exists():
                return False
            document, arrays = safefile.read(file, "teacher")
            self._teachers[teacher, seed] = arrays["logits"], document["error"]
        return True

    def _train_teachers(self, teachers: list[Job]) -> None:
        first = teachers[0][0]
        if self.progress:
            print(f"{len(teachers)} teachers, {first.full_label}", file=sys.stderr, flush=True)
        samples = self.samples(first)
        group = batched.LockStep(
            [run.network(seed) for run, seed in teachers], samples, epochs=first.epochs, batch=first.batch,
            validation=first.validation, tf32=self.tf32,
        )  # fmt: skip
        group.train()
        logits = group.logits(samples.x_train)
        for (run, seed), result, of_run in zip(teachers, group.results(not first.validation), logits, strict=True):
            error = result.validation_error if first.validation else result.test_error
            if error is None:
                raise RuntimeError("a teacher's error was not evaluated")
            safefile.write(self._teacher_file(run), "teacher", {"error": error}, {"logits": of_run})
            self._teachers[run, seed] = of_run, error
        del group
        self._free()

    def _free(self) -> None:
        """Give the memory of a group that is over back to the GPU: the next has arrays of other sizes."""
        if self.xp is not np:
            self.xp.get_default_memory_pool().free_all_blocks()


def _alike(a: Run, b: Run) -> bool:
    """Whether two dense runs can be trained side by side."""
    same = ("dataset", "layers", "epochs", "batch", "validation")
    return all(getattr(a, name) == getattr(b, name) for name in same)


def _facts(run: Run, network: batched.Network) -> dict[str, Any]:
    """What a row says of the network itself."""
    values, stored_bytes = baselines.storage(network)
    counted = baselines.operations(network)
    acting = run.layers if run.method != "small_dense" else [network.layers[0].d_in, *(a.d_out for a in network.layers)]
    return {
        "sizes": [network.layers[0].d_in, *(layer.d_out for layer in network.layers)],
        "stored_values": values,
        "stored_bytes": stored_bytes,
        "virtual_weights": sum(a * b for a, b in itertools.pairwise(acting)),
        "multiply_adds": counted.multiply_adds,
        "additions": counted.additions,
    }


@dataclass(frozen=True)
class Rerun:
    """A row of a record, trained again.

    Attributes
    ----------
    recorded, again : test errors (of a search: validation errors) of the seeds, percent
    allowed : how far the means may lie apart: 2 sqrt(s1^2 / n1 + s2^2 / n2) + 0.05, s the standard deviations of the
        seeds. A record of one seed has none: then that of the other counts for both, and 0.1 if that has none either.
    """

    recorded: tuple[float, ...]
    again: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Of the means."""
        return statistics.mean(self.again) - statistics.mean(self.recorded)

    @property
    def allowed(self) -> float:
        known = [statistics.stdev(e) if len(e) > 1 else None for e in (self.recorded, self.again)]
        spare = next((s for s in known if s is not None), 0.1)
        variance = sum(
            (spare if s is None else s) ** 2 / len(e) for s, e in zip(known, (self.recorded, self.again), strict=True)
        )
        return 2 * math.sqrt(variance) + 0.05

    @property
    def agrees(self) -> bool:
        """Whether the row lands within its error bar."""
        return abs(self.difference) <= self.allowed


def rerun(
    name: str, label: str, *, record: Mapping[str, Any] | None = None, seeds: Sequence[int] | None = None,
    device: str = "cpu", tf32: bool = False, progress: bool = False, folder: str | os.PathLike[str],
) -> Rerun:  # fmt: skip
    """Train one row of an experiment again, and compare it with the record.

    Parameters
    ----------
    name, label : of the experiment and of the run, as `Experiment.label` or `Run.full_label` says
    record : None: data/results/NAME.json
    seeds : None: those of the row
    device, tf32, progress : as `run_experiment` takes them
    folder : where states and teachers are kept meanwhile

    Raises
    ------
    ValueError
        If there is no such run, or the record does not hold it.
    FileNotFoundError
        If there is no record.
    """
    run = find_experiment(name).find(label)
    record = records.read(name) if record is None else record
    rows = [row for row in record["rows"] if run.declares(row)]
    if not rows:
        raise ValueError(f"the record of {name!r} does not hold {label!r}, so that there is nothing to compare with")
    (row,) = rows
    some = tuple(row["seeds"]) if seeds is None else tuple(seeds)
    values = {f.name: getattr(run, f.name) for f in fields(run)} | {"seeds": some}
    again = Experiment(name, "one row", (Run(**values),))
    xp = device_module(device)
    jobs: list[Job] = [(again.runs[0], seed) for seed in some]
    together = xp is not np or row.get("trained_by", "nn.train") != "nn.train"  # as the record was
    trainer = _Trainer(again, Path(folder) / "rerun.json", xp, tf32, progress, together, jobs)
    groups = [[job] for job in jobs] if xp is np else _groups(again.runs, int(MEMORY_SHARE * _free_bytes(xp)))
    what = "validation_errors" if run.validation else "test_errors"
    errors = [outcome[what] for group in groups for _, _, outcome in trainer.train(group)]
    for group in groups:
        trainer.forget_state(group)
    trainer.forget_teachers()
    return Rerun(tuple(row[what]), tuple(errors))


def _free_bytes(xp: ModuleType) -> int:
    """Of the GPU; half a GiB on a CPU, where a group gains little."""
    return 2**29 if xp is np else int(xp.cuda.runtime.memGetInfo()[0])


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


def _rows(experiment: Experiment, path: Path, tf32: bool | None = None) -> dict[Run, dict[str, Any]]:
    """The rows that a record holds, by the run that they belong to."""
    record = records.read(path)
    again = "give another output, or begin anew with --fresh"
    if record["kind"] != "training":
        raise ValueError(f"{path} is a record of kind {record['kind']!r}, expected 'training'; {again}")
    found: dict[Run, dict[str, Any]] = {}
    for row in record["rows"]:
        same = [run for run in experiment.runs if run.declares(row)]
        if not same:
            what = f"{row['method']}, compression {row['compression']:.4g}, {row['epochs']} epochs"
            raise ValueError(
                f"{path} holds a run that the experiment {experiment.name!r} does not have ({what}): it belongs to "
                f"another experiment or version; {again}"
            )
        if tf32 is not None and row.get("tf32", False) != tf32:
            raise ValueError(f"{path} holds rows {'without' if tf32 else 'with'} tf32; {again}, or train as before")
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


_EACH = ("seeds", "test_errors", "validation_errors", "teacher_errors", "history", "specs", "seconds_shared")


def _row(
    run: Run, before: Mapping[str, Any] | None, seed: int, outcome: Mapping[str, Any], tf32: bool = False
) -> dict[str, Any]:
    """The row of a run after one more seed."""
    row = run.declared() | {k: v for k, v in outcome.items() if k not in (*_EACH, "seconds")} | {"tf32": tf32}
    row |= {name: [outcome[name]] for name in _EACH if outcome.get(name) is not None}
    row = _averaged(row | {"seeds": [seed], "seconds": round(outcome["seconds"], 3)})
    return row if before is None else _joined(run, before, row)


def _joined(run: Run, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """One row of two of the same run, with the seeds of both in the declared order. ValueError if they share one."""
    seeds = [*a["seeds"], *b["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{run.full_label}: both rows have one of the seeds {seeds}")
    order = sorted(range(len(seeds)), key=lambda i: run.seeds.index(seeds[i]))
    lists = {name: [[*a[name], *b[name]][i] for i in order] for name in _EACH if name in a}
    return _averaged({**a, **lists, "seconds": round(a["seconds"] + b["seconds"], 3)})


def _averaged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what follows from its lists."""
    tested = row.get("test_errors")
    row["test_error_mean"] = round(statistics.mean(tested), 6) if tested else None
    row["test_error_std"] = round(statistics.stdev(tested), 6) if tested and len(tested) > 1 else None
    timed = list(itertools.chain.from_iterable(h.get("seconds", ()) for h in row["history"]))
    each = statistics.median(timed) if timed else row["seconds"] / len(row["seeds"]) / row["epochs"]
    row["seconds_per_epoch"] = round(each, 4)
    return row


def _rounded(value: Any) -> Any:
    """Floats to six decimals: a record is read by people, too."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value
