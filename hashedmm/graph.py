"""A training step as launches of this package's kernels alone, which a GPU repeats without asking the host.

Every array of a step is allocated and every product planned before the first one. What differs from step to step, the
samples, the dropout mask, the learning rate, is read on the device at a place that a clock says (kernels/step.cuh), and
losses are left there. So a step can be captured as a CUDA graph and replayed: the host says "again" and is done. On
NumPy arrays the same launches run in the emulator, one after the other.

Where several processes share a step (hashedmm.parallel), what they send each other cuts it into several graphs. The
host says "again" to each, and sends between them; all of it goes to one stream, and nothing waits. Imports hashing,
kernels, build, launch and matmul.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from hashedmm import build, matmul
from hashedmm.hashing import HashSpec
from hashedmm.kernels import STEP
from hashedmm.launch import Copy, Launch, beside, device, library
from hashedmm.matmul import plan_grad_w, plan_grad_x, plan_matmul

Array = Any  # a NumPy or a CuPy array

UNROLL = 16  # steps in one graph: the pause between two graphs is paid once for so many
ALIGNED = 64  # parameters begin at multiples of so many values, as kernels that load vectors want them
COLUMNS = 8  # rows of activations are a multiple of so many values long, for the same reason
# Smaller tiles of the kernel grad_w for matrices of up to 16 rows, whose tiles of 64 rows would be mostly empty.
FEW_ROWS = {"TILE_ROWS": 16, "TILE_COLS": 32, "DEPTH": 64, "THREAD_ROWS": 2, "THREAD_COLS": 2}


class HashedLayer(NamedTuple):
    """A hashed layer, and what follows it: ReLU and dropout, or the softmax if it is the last.

    Attributes
    ----------
    spec : HashSpec of shape (d_out, d_in), or the `hashedmm.hashing.Window` of the rows that this process computes
    weight : (n_buckets,) float32
    bias : (d_out,) float32
    kernel : which kernel computes the forward product, as `hashed_matmul` takes it
    dropout : (seed, threshold) of `hashedmm.nn.Dropout`: an activation is dropped with probability threshold / 2^16
    at : of a window: where the rows of each process begin, and the last one's end; None: all rows are computed here
    """

    spec: HashSpec
    weight: Array
    bias: Array
    kernel: str = "auto"
    dropout: tuple[int, int] = (0, 0)
    at: tuple[int, ...] | None = None

    @property
    def outputs(self) -> int:
        """Of the whole layer."""
        return self.at[-1] if self.at else self.spec.rows


class Scale(NamedTuple):
    """Arrays that are multiplied by a number, in place."""

    arrays: tuple[Array, ...]
    factor: np.float32

    def run(self) -> None:
        """Launch it: nothing is allocated."""
        for a in self.arrays:
            with beside(a):
                a *= self.factor


class Add(NamedTuple):
    """An array to which another is added, in place."""

    to: Array
    what: Array

    def run(self) -> None:
        """Launch it: nothing is allocated."""
        to = self.to
        with beside(to):
            to += self.what


class Exchange(NamedTuple):
    """What processes send each other between two launches: a call of the host's, and never part of a graph."""

    call: Callable[[], Any]

    def run(self) -> None:
        """All processes call it, in one order."""
        self.call()


class Update(NamedTuple):
    """What an optimiser does in a step.

    Attributes
    ----------
    kernel : "step_adam" or "step_sgd"
    constants : its float arguments: (1 - beta of the mean, 1 - beta of the square), or (momentum,)
    factors : step_sgd: what the gradient of each parameter is multiplied by, in the order weight, bias, weight, ...
    """

    kernel: str
    constants: tuple[float, ...]
    factors: tuple[float, ...] = ()


class Steps:
    """The training steps of a network of hashed layers, on the samples of one data set.

    The network's values and the optimiser's buffers are copied into arrays of this object: `load` does that before the
    first step, `store` copies them back. Between the two the network's own arrays are as they were.

    Parameters
    ----------
    layers : sequence of HashedLayer, from the input to the output
    update : Update
    buffers : sequence of sequences of arrays
        The optimiser's buffers (Adam: mean, square; SGD: momentum), each a list with one array a parameter, in the
        order weight, bias, weight, ...
    x : (samples, features) float32, C order
    labels : (samples,) int64
    n : int
        Samples of an epoch.
    batch : int
        Samples of a step; the last of an epoch has what is left.
    losses : (steps,) float64
        The mean loss of each step of an epoch is left here ...
    wrong : (steps,) int64
        ... and the number of misclassified samples here. If samples are shared, both are of this process's share.
    ranks : hashedmm.parallel.Ranks, or None
        The processes that share a step: the rows of layers that have ``at``, or the samples, if there is ``share``.
        Gradients are then those of the whole batch on every process.
    share : function, or None
        n -> (first, last): which samples of a batch of n are this process's; there may be none.

    Raises
    ------
    ValueError
        If a kernel that is named cannot compute a layer, or an array of activations would be too large for one.
    """

    def __init__(
        self, layers: Sequence[HashedLayer], update: Update, buffers: Sequence[Sequence[Array]], x: Array,
        labels: Array, n: int, batch: int, losses: Array, wrong: Array, ranks: Any = None,
        share: Callable[[int], tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        self._layers, self._update, self._batch = tuple(layers), update, batch
        self._x, self._labels, self._losses, self._wrong = x, labels, losses, wrong
        self._xp, self._device = library(x), device(x)
        self._ranks, self._share = ranks, share
        self.steps = -(-n // batch)
        widest = max(max(layer.outputs, layer.spec.cols) for layer in layers)
        most = (2**31 - 1) // widest // COLUMNS * COLUMNS
        if batch > most:
            raise ValueError(f"batch must be at most {most} for layers as wide as these (32-bit indices), got {batch}")
        with self._on_device():
            self._parameters = [a for layer in layers for a in (layer.weight, layer.bias)]
            self._starts = np.cumsum([0, *(-(-a.size // ALIGNED) * ALIGNED for a in self._parameters)])
            self._model_buffers = buffers
            self._values, self._gradients, *self._buffers = (self._flat() for _ in range(2 + len(buffers)))
            self._clock = self._xp.zeros(3, np.int32)  # NOW, NEXT, BEFORE of step.cuh
            self._order = self._xp.zeros(n, np.int32)
            self._rates = self._xp.zeros((self.steps, 2 if update.kernel == "step_adam" else 1), np.float32)
            if update.kernel == "step_sgd":
                self._ends = self._xp.asarray(self._starts[1:].astype(np.int64))
                self._factors = self._xp.asarray(np.array(update.factors, np.float32))
            last = n - (self.steps - 1) * batch
            self._whole = _Repeated(self._plan(batch), self._device)
            self._last = self._whole if last == batch else _Repeated(self._plan(last), self._device)

    def _on_device(self) -> contextlib.AbstractContextManager:
        return build.on_device(self._device)

    # ---- the memory of all parameters

    def _flat(self) -> Array:
        return self._xp.zeros(int(self._starts[-1]), np.float32)

    def _part(self, flat: Array, parameter: int) -> Array:
        start = int(self._starts[parameter])
        return flat[start : start + self._parameters[parameter].size]

    def _pairs(self) -> list[tuple[Array, Array]]:
        """(array of the network or of the optimiser, its place here)."""
        own = [self._values, *self._buffers]
        return [
            (a, self._part(flat, k))
            for flat, arrays in zip(own, (self._parameters, *self._model_buffers), strict=True)
            for k, a in enumerate(arrays)
        ]

    def load(self) -> None:
        """Take over the values of the network and of the optimiser."""
        with self._on_device():
            self._gradients.fill(0)
            for a, place in self._pairs():
                place[...] = a

    def store(self) -> None:
        """Hand the values back, in place."""
        with self._on_device():
            for a, place in self._pairs():
                a[...] = place

    # ---- the launches of a step

    def _plan(self, n: int) -> dict[str, Any]:
        """A step of ``n`` samples: what is launched one after the other, by names that say what it is."""
        first, last = self._share(n) if self._share else (0, n)
        mine = last - first
        features, tile = self._layers[0].spec.cols, STEP["step_gather"].parameters["TILE"]
        pitch = -(-max(mine, 1) // COLUMNS) * COLUMNS
        columns = np.int32(mine), np.int32(pitch)
        order = self._order[first:]  # step t has the samples from t * batch on, of which this process's begin at first
        a = self._zeros(features, pitch)
        plans: dict[str, Any] = {
            "gather": self._step_launch(  # it begins the step, even if there is nothing to gather
                "step_gather", max(1, -(-features // tile) * -(-mine // tile)),
                (self._clock, order, self._x, a, np.int32(features), np.int32(self._batch), *columns),
            )
        }  # fmt: skip
        if mine:
            inputs, forwards, logits = self._plan_forward(plans, a, n, first, columns)
            g = self._plan_softmax(plans, logits, order, columns)
            if mine < n:
                plans["share"] = Scale((g, self._gradient(-1)), np.float32(mine / n))
            self._plan_backward(plans, inputs, forwards, g, columns)
        if self._share and self._ranks:
            plans["allreduce"] = Exchange(partial(self._ranks.allreduce, self._gradients))
        plans["update"] = self._step_launch(self._update.kernel, self._values.size, self._update_arguments())
        return plans

    def _plan_forward(
        self, plans: dict[str, Any], a: Array, n: int, first: int, columns: tuple[np.int32, np.int32]
    ) -> tuple[list[Array], list[Any], Array]:
        """The inputs of each layer, the plans of their products, and the logits, whose bias softmax adds, or has been
        added if processes have some of it each."""
        mine, pitch = map(int, columns)
        inputs, forwards = [], []
        for i, layer in enumerate(self._layers):
            weight, bias = self._part(self._values, 2 * i), self._part(self._values, 2 * i + 1)
            whole = self._zeros(layer.outputs, pitch)
            y, rows = self._own(layer, whole), layer.spec.rows
            kernel = _kernel("matmul", layer.spec, a, layer.kernel)
            plans[f"{i} matmul: {kernel}"] = forward = plan_matmul(weight, a, y, layer.spec, kernel, keep=True)
            if i < len(self._layers) - 1:
                seed, threshold = layer.dropout
                number = (layer.at[self._ranks.rank] if layer.at else 0) * n + first  # in the whole layer and batch
                plans[f"{i} activate"] = self._step_launch(
                    "step_activate", rows * mine,
                    (self._clock, bias, y, np.uint32(seed), np.uint32(threshold), _scale(layer), *columns,
                     np.int32(rows * mine), np.uint32(number), np.int32(n)),
                )  # fmt: skip
            elif layer.at:
                plans[f"{i} bias"] = Add(y[:, :mine], bias[:, None])
            if layer.at:
                plans[f"{i} allgather"] = Exchange(partial(self._ranks.allgather, y, whole, _times(layer.at, pitch)))
            inputs.append(a)
            forwards.append(forward)
            a = whole
        return inputs, forwards, a

    def _plan_softmax(
        self, plans: dict[str, Any], logits: Array, order: Array, columns: tuple[np.int32, np.int32]
    ) -> Array:
        """The gradient with respect to this process's rows of the logits."""
        layer, bias, gbias = self._layers[-1], self._part(self._values, len(self._parameters) - 1), self._gradient(-1)
        if layer.at:  # all rows of the logits are here, with their biases, and some of the biases
            bias, gbias = (self._xp.zeros(layer.outputs, np.float32) for _ in range(2))
        g = self._zeros(layer.outputs, int(columns[1]))
        plans["softmax"] = self._step_launch(
            "step_softmax", 1,
            (self._clock, order, self._labels, bias, logits, g, gbias, self._losses, self._wrong,
             np.int32(layer.outputs), np.int32(self._batch), *columns),
        )  # fmt: skip
        if layer.at:
            plans["bias gradient"] = Copy(self._gradient(-1), self._own(layer, gbias))
        return self._own(layer, g)

    def _plan_backward(
        self, plans: dict[str, Any], inputs: list[Array], forwards: list[Any], g: Array,
        columns: tuple[np.int32, np.int32],
    ) -> None:  # fmt: skip
        """From ``g``, the gradient with respect to this process's rows of the logits."""
        pitch = int(columns[1])
        for i in range(len(self._layers) - 1, -1, -1):
            layer, a = self._layers[i], inputs[i]
            kernel = _kernel("grad_w", layer.spec, a)
            tiles = FEW_ROWS if kernel == "grad_w" and layer.spec.rows <= FEW_ROWS["TILE_ROWS"] else None
            plans[f"{i} grad_w: {kernel}"] = plan_grad_w(
                a, g, self._gradient(2 * i), layer.spec, kernel, tiles, forward=forwards[i]
            )
            if i:
                below, gx = self._layers[i - 1], self._zeros(layer.spec.cols, pitch)
                kernel = _kernel("grad_x", layer.spec, g)
                plans[f"{i} grad_x: {kernel}"] = plan_grad_x(self._part(self._values, 2 * i), g, gx, layer.spec, kernel)
                g = self._plan_sum(plans, i, gx) if layer.at else self._own(below, gx)
                plans[f"{i - 1} activate_grad"] = self._step_launch(
                    "step_activate_grad", 32 * below.spec.rows,
                    (self._own(below, a), g, self._gradient(2 * i - 1), _scale(below), np.int32(below.spec.rows),
                     *columns),
                )  # fmt: skip
        if any(layer.at for layer in self._layers):  # those that are whole on every process stay alike
            for i, layer in enumerate(self._layers):
                if not layer.at:
                    start, bias = int(self._starts[2 * i]), self._gradient(2 * i + 1)
                    both = self._gradients[start : int(self._starts[2 * i + 1]) + bias.size]
                    plans[f"{i} bcast"] = Exchange(partial(self._ranks.bcast, both))

    def _plan_sum(self, plans: dict[str, Any], i: int, gx: Array) -> Array:
        """The sum over the processes, which each have some rows of layer ``i``, of what they have of the gradient with
        respect to its input: of the rows that this process has of the layer below."""
        below, pitch = self._layers[i - 1], gx.shape[1]
        if not below.at:
            plans[f"{i} allreduce"] = Exchange(partial(self._ranks.allreduce, gx))
            return gx
        room = self._xp.zeros((self._ranks.size, below.spec.rows * pitch), np.float32)
        plans[f"{i} reduce_scatter"] = Exchange(
            partial(self._ranks.reduce_scatter, gx, _times(below.at, pitch), room=room)
        )
        return room[0].reshape(below.spec.rows, pitch)

    def _own(self, layer: HashedLayer, a: Array) -> Array:
        """This process's rows of what a whole layer gives."""
        if not layer.at:
            return a
        first = layer.at[self._ranks.rank]
        return a[first : first + layer.spec.rows]

    def _gradient(self, parameter: int) -> Array:
        return self._part(self._gradients, parameter % len(self._parameters))

    def _update_arguments(self) -> tuple[Any, ...]:
        more = (self._ends, self._factors) if self._update.kernel == "step_sgd" else ()
        constants = (np.float32(c) for c in self._update.constants)
        arrays = (self._clock, self._rates, self._values, self._gradients, *self._buffers)
        return (*arrays, *more, *constants, np.int64(self._values.size))

    def _step_launch(self, name: str, work: int, args: tuple[Any, ...]) -> Launch:
        """A launch of one of the kernels in ``STEP``; ``work`` is in threads, if it chooses how many a block has, or in
        blocks."""
        values = STEP[name].values(1)
        block = STEP[name].block(values)
        blocks = -(-work // values["THREADS"]) if "THREADS" in values else work
        return Launch(build.kernel(name, values, self._device), (blocks,), block, args, 0)

    def _zeros(self, rows: int, pitch: int) -> Array:
        """Activations: the columns that no sample has are zero, and every launch leaves them so."""
        return self._xp.zeros((rows, pitch), np.float32)

    # ---- running

    def begin(self, order: np.ndarray, rates: np.ndarray, *, step: int, before: int) -> None:
        """Get ready for an epoch, or for the rest of one.

        Parameters
        ----------
        order : (n,) integers: the rows of x in the order in which the epoch sees them
        rates : (steps, 2) for step_adam: eps and learning rate of each step, both corrected; (steps, 1) for step_sgd
        step : the first to run
        before : steps of the run before this epoch
        """
        with self._on_device():
            self._order[...] = self._xp.asarray(order, np.int32)
            self._rates[...] = self._xp.asarray(rates, np.float32)
            self._clock[...] = self._xp.asarray(np.array([step, step, before], np.int32))

    def run(self, step: int) -> int:
        """Launch ``step`` of the epoch, and perhaps some that follow; returns how many. Nothing waits for them."""
        with self._on_device():
            if step == self.steps - 1:
                return self._last.run(1)
            return self._whole.run(self.steps - 1 - step + (self._last is self._whole))

    @property
    def launches(self) -> Mapping[str, Any]:
        """The launches of one step of ``batch`` samples, in order: a name that says what it is -> what has ``run``."""
        return self._whole.plans


class _Repeated:
    """The launches of a step, done one by one or captured: as graphs of one step and of ``UNROLL`` steps, or, where
    processes send in between, as a graph of each part of a step."""

    def __init__(self, plans: dict[str, Any], device: build.Device) -> None:
        self.plans = plans
        self._on_gpu = device != "emulator"
        self._warm = False
        self._graphs: dict[tuple[int, int], Any] = {}  # (part, steps) -> graph
        self._parts: list[Exchange | list[Any]] = []  # lists of launches
        for plan in plans.values():
            if isinstance(plan, Exchange):
                self._parts.append(plan)
            elif self._parts and isinstance(self._parts[-1], list):
                self._parts[-1].append(plan)
            else:
                self._parts.append([plan])

    def run(self, most: int) -> int:
        """Launch up to ``most`` steps; returns how many."""
        if not self._on_gpu or not self._warm:  # once without a graph: what happens at a first launch is over then
            for plan in self.plans.values():
                plan.run()
            self._warm = True
            return 1
        count = UNROLL if most >= UNROLL and len(self._parts) == 1 else 1
        for number, part in enumerate(self._parts):
            if isinstance(part, Exchange):
                part.run()
                continue
            if (number, count) not in self._graphs:
                self._graphs[number, count] = self._capture(part, count)
            self._graphs[number, count].launch()  # on the current stream, behind all that the host has launched so far
        return count

    def _capture(self, plans: Sequence[Any], count: int) -> Any:
        """A graph of launches, ``count`` times. Its nodes are launches alone: all arrays are there, and stay."""
        import cupy

        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            try:
                for _ in range(count):
                    for plan in plans:
                        plan.run()
            finally:
                graph = stream.end_capture()
        return graph


def _kernel(operation: str, spec: HashSpec, a: Array, asked: str = "auto") -> str:
    """The CUDA kernel that ``asked`` stands for, given an argument of n columns; "auto" also for the emulator."""
    name = matmul._check_kernel(asked, operation, spec, a)
    name = matmul._auto(operation, spec, a) if name == "auto" else name
    if not matmul._is_cuda(name):
        raise ValueError(f"kernel must name a CUDA kernel for a step on a GPU or in the emulator, got {name!r}")
    return name


def _scale(layer: HashedLayer) -> np.float32:
    return np.float32(2**16 / (2**16 - layer.dropout[1]))


def _times(at: Sequence[int], n: int) -> list[int]:
    """Bounds of elements, where those of rows of ``n`` are given."""
    return [row * n for row in at]
