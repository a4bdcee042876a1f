"""Networks of equal layer sizes, trained side by side: "seeds batched".

One small network leaves most of a GPU idle. Here R networks take their steps together: matrices are stacked, (R, d_out,
d_in), a product is one batched product of cuBLAS, everything else one launch of a kernel (kernels/batch_*.cu) for all
of them. The networks may differ in everything but their layer sizes: seeds, hashes, compressions, pruning, number
formats, dropout, learning rates, teachers. Each sees its own samples in its own order, and comes out as
`hashedmm.nn.train` would have trained it alone, to rounding.

A layer is a map from stored values to an effective weight matrix: the values themselves; or a gather, W[e] = +-value,
whose codes come from a hash or a mask; and perhaps a rounding before it. The way back is the adjoint; a rounding is
passed straight through (Bengio et al. 2013). A product of factors is two layers with nothing between them.

NumPy arrays are computed with formulas; CuPy arrays with the kernels, which NumPy arrays reach, too, in the emulator.
Imports hashing, datasets, kernels, build, matmul and nn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np

from hashedmm import build
from hashedmm.datasets import Dataset
from hashedmm.hashing import COLUMN_STEP, HashSpec, _integer, derive_seed, fmix32
from hashedmm.kernels import STEP
from hashedmm.matmul import materialise
from hashedmm.nn import DECAYS, DROPOUT_SEED, SHUFFLE, SPLIT, Adam, Dropout, array_module, to_numpy

Array = Any  # a NumPy or a CuPy array
Run = Callable[[], None]  # one piece of a step, its arrays bound

NOW, NEXT, BEFORE = 0, 1, 2  # of the clock, as in kernels/step.cuh
CHUNK = 4096  # values a block of batch_adam and batch_quantise works on
ALIGNED = 64  # parameters begin at multiples of so many values: what cuBLAS's fast kernels want
EVALUATED = 500  # samples a network at a time, outside of training
ROUNDING_SEED = 0x0F1CED01  # keeps stochastic rounding apart from hashes and dropout
FISHER_SHARE = 0.1  # of an epoch's steps: over these, its last, obd adds up squared gradients


# --------------------------------------------------------------------------------------------------------------------
# What is trained


@dataclass(eq=False)
class Layer:
    """One matrix of a network, as it is stored, and its bias.

    Attributes
    ----------
    d_in, d_out : int
    values : float32 array, initial: (d_out, d_in) of a dense matrix, else (stored,)
    chosen : which value each weight has
        None: its own. A HashSpec: W[e] = sign * values[bucket]. A bool array (d_out, d_in): True where there is a
        weight, the values in row-major order; the others are zero for good.
    bias : bool
        With a bias, that begins at 0, and, unless it is the last layer, ReLU and dropout after it. Without: the layer
        is the first factor of a product, and the next follows directly.
    trained : bool
        False: a fixed factor.
    bits : int
        Not 0: the forward pass sees the values rounded to so many bits, see kernels/batch_quantise.cu.
    grid : (bits, unit) or None
        Fixed point: values are multiples of ``unit``, a power of two, from -2^(bits - 1) to 2^(bits - 1) - 1 of them,
        and every update is rounded to one of the two nearest at random.
    kept : int or None
        With `Pruning`: weights that are left in the end, of a dense matrix.
    """

    d_in: int
    d_out: int
    values: np.ndarray
    chosen: HashSpec | np.ndarray | None = None
    bias: bool = True
    trained: bool = True
    bits: int = 0
    grid: tuple[int, float] | None = None
    kept: int | None = None

    def __post_init__(self) -> None:
        shape = (self.d_out, self.d_in)
        if isinstance(self.chosen, HashSpec):
            expected: tuple[int, ...] = (self.chosen.n_buckets,)
            given = self.chosen.shape
        elif self.chosen is not None:
            expected, given = (int(np.count_nonzero(self.chosen)),), self.chosen.shape
        else:
            expected = given = shape
        if given != shape or self.values.shape != expected or self.values.dtype != np.float32:
            raise ValueError(
                f"a layer of {self.d_out} x {self.d_in} must choose among float32 values of the shape {expected}, got "
                f"{self.values.dtype} {self.values.shape}, and a choice for {given}"
            )
        if self.kept is not None and (self.chosen is not None or not 1 <= self.kept <= self.values.size):
            raise ValueError(f"kept must be from 1 to {self.values.size}, of a dense matrix, got {self.kept}")
        if not self.trained and (self.chosen is not None or self.bias):
            raise ValueError("a layer that is not trained must be a dense factor without a bias")

    @property
    def gathered(self) -> bool:
        """Whether weights are looked up, so that codes are needed."""
        return self.chosen is not None or self.kept is not None


@dataclass(frozen=True)
class Pruning:
    """Weights are removed in steps, one after each epoch from ``first`` to ``last``, until each layer has ``kept``.

    After epoch e, kept + (all - kept) (1 - p)^3 weights are left, p = (e - first + 1) / (last - first + 1): the cubic
    schedule of Zhu and Gupta 2017, section 3. Those of least saliency go, and never come back.

    Attributes
    ----------
    saliency : "magnitude": |w|. "obd": h w^2 / 2 (LeCun, Denker and Solla 1990), h the mean square of the gradient of
        one sample's loss, the diagonal of the empirical Fisher information, over the last tenth of the epoch's steps.
        That is exact for each sample: in a linear layer its gradient is g_i x_j, so that its square is g_i^2 x_j^2.
    first, last : epochs, from 1
    """

    saliency: Literal["magnitude", "obd"]
    first: int
    last: int

    def left(self, epoch: int, size: int, kept: int) -> int:
        """Weights of a layer of ``size`` that are left after ``epoch``."""
        p = min(1.0, max(0.0, (epoch - self.first + 1) / (self.last - self.first + 1)))
        return kept + round((size - kept) * (1 - p) ** 3)


@dataclass(eq=False)
class Teaching:
    """Soft targets (Hinton, Vinyals and Dean 2015): the loss is (1 - weight) times the cross-entropy of the labels plus
    weight T^2 times that of the teacher's probabilities, both softmaxes at temperature T."""

    logits: np.ndarray  # (training samples, classes) float32, the teacher's
    temperature: float
    weight: float


@dataclass(eq=False)
class Network:
    """What one of the networks is, and how it learns.

    Attributes
    ----------
    layers : from the inputs to the classes
    seed : of the samples' order and of dropout masks
    dropout : rate after each hidden layer
    lr, decay : as `Adam` and `hashedmm.nn.train` take them
    quantise_from : the first epoch, from 0, in which ``bits`` of the layers are in force
    pruning, teaching : or None
    """

    layers: list[Layer]
    seed: int
    dropout: float = 0.0
    lr: float = 1e-3
    decay: str = "linear"
    quantise_from: int = 0
    pruning: Pruning | None = None
    teaching: Teaching | None = None

    def __post_init__(self) -> None:
        for a, b in zip(self.layers, self.layers[1:], strict=False):
            if a.d_out != b.d_in:
                raise ValueError(f"a layer has {a.d_out} outputs and the next {b.d_in} inputs; they must be as many")
        if not self.layers or not self.layers[-1].bias:
            raise ValueError("the last layer must have a bias")
        if (self.pruning is None) != all(layer.kept is None for layer in self.layers):
            raise ValueError("pruning needs layers with kept, and kept needs pruning")
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}")

    @property
    def kind(self) -> tuple[Any, ...]:
        """Networks of equal kind can be trained side by side."""
        shapes = tuple((layer.d_in, layer.d_out, layer.bias, layer.trained, layer.gathered) for layer in self.layers)
        return *shapes, any(layer.bits for layer in self.layers)

    def nbytes(self, batch: int) -> int:
        """About how much memory training it takes, the data set and a teacher's probabilities not counted."""
        total = 0
        for layer in self.layers:
            matrix = layer.d_in * layer.d_out
            total += 4 * matrix * (1 + 2 * layer.gathered) + 5 * 4 * layer.values.size
            total += 4 * matrix * (self.pruning is not None and self.pruning.saliency == "obd")
            total += 2 * 4 * (max(batch, EVALUATED) + batch) * (layer.d_in + layer.d_out)
        return total


@dataclass
class Trained:
    """What came out for one network.

    Attributes
    ----------
    loss, train_error : one entry an epoch: mean loss, and misclassified training samples in percent, as batches were
        seen (dropout on, weights of that moment)
    test_error, validation_error : percent, with the final weights; None if not asked for
    kept : weights of each layer that are not zero for good
    """

    loss: list[float] = field(default_factory=list)
    train_error: list[float] = field(default_factory=list)
    test_error: float | None = None
    validation_error: float | None = None
    kept: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Samples:
    """A data set where it is computed: x float32, y int64."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array

    @classmethod
    def of(cls, data: Dataset, xp: ModuleType = np) -> Samples:
        """Checked, and copied to the GPU if ``xp`` is cupy."""
        for name in ("x_train", "x_test"):
            if not np.isfinite(getattr(data, name)).all():
                raise ValueError(f"{name} must be finite, got NaN or infinities; clean the data first")
        arrays = (data.x_train, data.y_train, data.x_test, data.y_test)
        return cls(*(xp.asarray(np.ascontiguousarray(a)) for a in arrays))


# --------------------------------------------------------------------------------------------------------------------
# The pieces of a step. Each method gives a function without arguments: all arrays are bound once, and what differs from
# step to step is read where the clock says.


class _Formulas:
    """Each piece on NumPy arrays, written to be read: what the kernels have to compute."""

    def __init__(self, clock: Array) -> None:
        self.clock = clock

    def gather(self, order: Array, x: Array, out: Array, batch: int) -> Run:
        n = out.shape[1]

        def run() -> None:
            self.clock[NOW] = self.clock[NEXT]
            start = self.clock[NOW] * batch
            out[...] = x[order[:, start : start + n]]

        return run

    def product(self, a: Array, b: Array, out: Array, *, ta: bool = False, tb: bool = False, add: bool = False) -> Run:
        """out = a b, or added to it, of stacks of matrices; ``ta``, ``tb``: of the transposed matrices."""
        left, right = (m.swapaxes(1, 2) if t else m for m, t in ((a, ta), (b, tb)))

        def run() -> None:
            if add:
                out[...] += left @ right
            else:
                np.matmul(left, right, out=out)

        return run

    def weights(self, codes: Array, upright: Array, values: Array, out: Array) -> Run:
        def run() -> None:
            np.multiply(np.sign(codes), values[np.maximum(np.abs(codes) - 1, 0)], out=out, dtype=np.float32)

        return run

    def scatter(self, codes: Array, upright: Array, gw: Array, grads: Array) -> Run:
        def run() -> None:
            used = codes != 0
            signed = (np.sign(codes) * gw)[used]
            grads[...] += np.bincount(np.abs(codes[used]) - 1, signed, len(grads)).astype(np.float32)

        return run

    def activate(self, bias: Array, y: Array, seeds: Array, thresholds: Array, train: bool) -> Run:
        networks, n, features = y.shape
        dropouts = [
            Dropout(int(t) / 2**16, seed=int(s)) if t and train else None
            for s, t in zip(seeds, thresholds, strict=True)
        ]

        def run() -> None:
            y[...] += bias[:, None, :]
            np.maximum(y, 0, out=y)
            step = int(self.clock[BEFORE] + self.clock[NOW])
            for r, dropout in enumerate(dropouts):
                if dropout is not None:
                    y[r] *= dropout.mask((n, features), step)

        return run

    def activate_grad(self, a: Array, g: Array, gbias: Array, thresholds: Array) -> Run:
        scale = (65536 / (65536 - thresholds.astype(np.float64))).astype(np.float32)[:, None, None]

        def run() -> None:
            g[...] = np.where(a > 0, g * scale, np.float32(0))
            g.sum(axis=1, out=gbias)

        return run

    def softmax(
        self, order: Array, labels: Array, bias: Array, g: Array, gbias: Array, soft: _Soft, losses: Array,
        wrong: Array, batch: int,
    ) -> Run:  # fmt: skip
        networks, n, classes = g.shape
        weight, heat = soft.weights[:, None, None], soft.temperatures[:, None, None]

        def run() -> None:
            now = self.clock[NOW]
            chosen = order[:, now * batch : now * batch + n]
            y = labels[chosen]
            z = g + bias[:, None, :]
            wrong[:, now] = (z.argmax(axis=2) != y).sum(axis=1)
            z -= z.max(axis=2, keepdims=True)
            onehot = np.arange(classes) == y[:, :, None]
            p = np.exp(z)
            total = p.sum(axis=2, keepdims=True)
            loss = (1 - weight[:, :, 0]) * (np.log(total[:, :, 0]) - z[onehot].reshape(networks, n))
            gradient = (1 - weight) * (p / total - onehot)
            if weight.any():
                q = np.stack([soft.probabilities[r, chosen[r]] if weight[r, 0, 0] else p[r] for r in range(networks)])
                p_soft = np.exp(z / heat)
                total = p_soft.sum(axis=2, keepdims=True)
                gradient += weight * heat * (p_soft / total - q)
                loss += (weight * heat**2 * q * (np.log(total) - z / heat)).sum(axis=2)
            losses[:, now] = loss.mean(axis=1)
            np.divide(gradient, n, out=g, casting="unsafe")
            g.sum(axis=1, out=gbias)

        return run

    def adam(self, s: _Values, rates: Array, first: float, second: float) -> Run:
        def run() -> None:
            now, step = int(self.clock[NOW]), int(self.clock[BEFORE] + self.clock[NOW])
            for k in range(len(s.starts)):
                part = slice(int(s.starts[k]), int(s.starts[k] + s.sizes[k]))
                eps, rate = rates[now, s.networks[k]]
                value, grad, mean, square = (a[part] for a in (s.values, s.grads, s.means, s.squares))
                mean += (grad - mean) * np.float32(first)
                square += (grad * grad - square) * np.float32(second)
                value -= mean / (np.sqrt(square) + eps) * rate
                if s.units[k]:
                    seed = derive_seed(int(s.seeds[k]), step)
                    value[...] = stochastic_rounding(value, float(s.units[k]), int(s.levels[k]), seed)
                grad[...] = 0
            self.clock[NEXT] = self.clock[NOW] + 1

        return run

    def quantise(self, s: _Values) -> list[Run]:
        def run() -> None:
            step = self.clock[BEFORE] + self.clock[NOW]
            for k in s.weight_segments:
                part = slice(int(s.starts[k]), int(s.starts[k] + s.sizes[k]))
                bits = int(s.bits[k]) if step >= s.begins[k] else 0
                s.rounded[part] = quantised(s.values[part], bits) if bits else s.values[part]

        return [run]


def stochastic_rounding(values: Array, unit: float, levels: int, seed: int) -> Array:
    """Multiples of ``unit``, from -levels to levels - 1 of them: each value goes up with the probability that keeps the
    mean (Gupta et al. 2015, section 3.1). Element e draws from a hash of e, keyed by the seed, as `Dropout` does."""
    xp = array_module(values)
    counters = xp.arange(values.size, dtype=xp.uint32) * xp.uint32(COLUMN_STEP)
    uniform = (fmix32(counters ^ xp.uint32(seed)) >> xp.uint32(8)) * xp.float32(2.0**-24)
    steps = values.ravel() / xp.float32(unit)
    below = xp.floor(steps)
    level = below + (uniform < steps - below)
    return (xp.clip(level, -levels, levels - 1) * xp.float32(unit)).reshape(values.shape).astype(xp.float32)


def quantised(values: Array, bits: int) -> Array:
    """Values as `bits` bits and one scale hold them: see kernels/batch_quantise.cu for the levels and their source."""
    xp = array_module(values)
    mean = xp.abs(values).sum(dtype=xp.float32) / xp.float32(values.size)
    if bits == 1:
        return xp.where(values < 0, -mean, mean).astype(xp.float32)
    most = 2 ** (bits - 1) - 1
    scale = xp.float32(2) * mean / xp.sqrt(xp.float32(most))
    safe = xp.where(scale > 0, scale, xp.float32(1))
    return (xp.clip(xp.rint(values / safe), -most, most) * scale).astype(xp.float32)


class _Kernels:
    """The same pieces by the kernels of this package: on CuPy arrays, or on NumPy arrays in the emulator."""

    def __init__(self, clock: Array, device: build.Device) -> None:
        self.clock, self.device = clock, device

    def _launch(self, name: str, blocks: int, args: tuple[Any, ...]) -> Run:
        values = STEP[name].values(1)
        kernel, grid, block = build.kernel(name, values, self.device), (blocks,), STEP[name].block(values)
        unchecked = getattr(kernel, "_kernel", kernel)  # CuPy's own: the arguments stay what the first launch checked
        call = [kernel]

        def run() -> None:
            call[0](grid, block, args)
            call[0] = unchecked

        return run

    def gather(self, order: Array, x: Array, out: Array, batch: int) -> Run:
        networks, n, features = out.shape
        sizes = (order.shape[1], features, batch, n)
        return self._launch("batch_gather", networks * n, (self.clock, order, x, out, *map(np.int32, sizes)))

    def product(self, a: Array, b: Array, out: Array, *, ta: bool = False, tb: bool = False, add: bool = False) -> Run:
        if self.device == "emulator":
            return _Formulas(self.clock).product(a, b, out, ta=ta, tb=tb, add=add)
        return _strided_batched(a, b, out, ta, tb, add)

    def _tiles(self, codes: Array) -> int:
        tile = STEP["batch_weights"].parameters["TILE"]
        networks, rows, cols = codes.shape
        return networks * -(-rows // tile) * -(-cols // tile)

    def weights(self, codes: Array, upright: Array, values: Array, out: Array) -> Run:
        sides = map(np.int32, codes.shape[1:])
        return self._launch("batch_weights", self._tiles(codes), (codes, upright, values, out, *sides))

    def scatter(self, codes: Array, upright: Array, gw: Array, grads: Array) -> Run:
        sides = map(np.int32, codes.shape[1:])
        return self._launch("batch_scatter", self._tiles(codes), (codes, upright, gw, grads, *sides))

    def activate(self, bias: Array, y: Array, seeds: Array, thresholds: Array, train: bool) -> Run:
        _, n, features = y.shape
        sizes = map(np.int32, (train, features, n, y.size))
        blocks = -(-y.size // STEP["batch_activate"].parameters["THREADS"])
        return self._launch("batch_activate", blocks, (self.clock, bias, y, seeds, thresholds, *sizes))

    def activate_grad(self, a: Array, g: Array, gbias: Array, thresholds: Array) -> Run:
        networks, n, features = a.shape
        blocks = networks * -(-features // STEP["batch_activate_grad"].parameters["ACROSS"])
        args = (a, g, gbias, thresholds, np.int32(features), np.int32(n))
        return self._launch("batch_activate_grad", blocks, args)

    def softmax(
        self, order: Array, labels: Array, bias: Array, g: Array, gbias: Array, soft: _Soft, losses: Array,
        wrong: Array, batch: int,
    ) -> Run:  # fmt: skip
        networks, n, classes = g.shape
        sizes = (order.shape[1], soft.probabilities.shape[1], classes, batch, n, losses.shape[1])
        args = (self.clock, order, labels, bias, g, gbias, soft.probabilities, soft.weights, soft.temperatures, losses,
                wrong, *map(np.int32, sizes))  # fmt: skip
        return self._launch("batch_softmax", networks, args)

    def adam(self, s: _Values, rates: Array, first: float, second: float) -> Run:
        args = (self.clock, rates, s.chunks, s.starts, s.units, s.levels, s.seeds, s.values, s.grads, s.means,
                s.squares, np.int32(rates.shape[1]), np.float32(first), np.float32(second))  # fmt: skip
        return self._launch("batch_adam", len(s.chunks), args)

    def quantise(self, s: _Values) -> list[Run]:
        totals = array_module(s.values).zeros(len(s.weight_chunks), np.float32)
        args = (self.clock, s.weight_chunks, s.starts, s.sizes, s.first_chunks, s.chunk_counts, s.bits, s.begins,
                totals, s.values, s.rounded)  # fmt: skip
        return [
            self._launch("batch_total", len(totals), (s.weight_chunks, s.starts, s.values, totals)),
            self._launch("batch_quantise", len(totals), args),
        ]


def _strided_batched(a: Array, b: Array, out: Array, ta: bool, tb: bool, add: bool) -> Run:
    """A product of stacks in C order by cuBLAS, whose order is F: out^T = op(b)^T op(a)^T. cupy.matmul would copy a
    stack that is transposed."""
    from cupy.cuda import cublas, device

    handle = device.get_cublas_handle()
    networks, m, n = out.shape
    k = a.shape[1] if ta else a.shape[2]
    factors = np.array([1.0, 1.0 if add else 0.0], np.float32)
    one, beta = factors.ctypes.data, factors[1:].ctypes.data
    args = (
        handle, int(tb), int(ta), n, m, k, one, b.data.ptr, b.shape[2], b.shape[1] * b.shape[2], a.data.ptr, a.shape[2],
        a.shape[1] * a.shape[2], beta, out.data.ptr, n, m * n, networks,
    )  # fmt: skip
    held = (a, b, out, factors)  # the addresses above stay theirs

    def run() -> None:
        cublas.sgemmStridedBatched(*args)

    run.held = held  # type: ignore[attr-defined]
    return run


class _MathMode:
    """cuBLAS multiplies float32 by tensor cores, rounded to 11 bits (TF32), or in full, while this context lasts."""

    def __init__(self, xp: ModuleType, tf32: bool) -> None:
        self.on_gpu, self.mode = xp is not np, 3 if tf32 else 0  # CUBLAS_TF32_TENSOR_OP_MATH, CUBLAS_DEFAULT_MATH

    def _set(self, mode: int) -> None:
        if self.on_gpu:
            from cupy.cuda import cublas, device

            cublas.setMathMode(device.get_cublas_handle(), mode)

    def __enter__(self) -> None:
        self._set(self.mode)

    def __exit__(self, *_: object) -> None:
        self._set(0)


# --------------------------------------------------------------------------------------------------------------------
# Memory


@dataclass(eq=False)
class _Soft:
    """Teachers' probabilities: (networks, samples, classes), or (1, 1, 1) if there is no teacher."""

    probabilities: Array
    weights: Array
    temperatures: Array


class _Values:
    """All values that training changes, in one array, and the tables of its segments: one a parameter and network."""

    def __init__(self, networks: Sequence[Network], steps: int, xp: ModuleType) -> None:
        host, starts, sizes, owners, units, levels, seeds, bits, begins = ([] for _ in range(9))  # type: ignore[var-annotated]
        self.weights: list[list[int]] = []  # of layer l and network r: the segment; none for fixed layers
        self.biases: list[int] = []  # where the biases of all networks of layer l begin; -1: it has none
        self.weight_segments: list[int] = []
        at = 0

        def add(r: int, values: np.ndarray, seed: int, layer: Layer | None) -> int:
            nonlocal at
            at = -(-at // ALIGNED) * ALIGNED if layer is not None and r == 0 else at
            host.append((at, values))
            starts.append(at)
            sizes.append(values.size)
            owners.append(r)
            grid = layer.grid if layer is not None else None
            units.append(grid[1] if grid else 0.0)
            levels.append(2 ** (grid[0] - 1) if grid else 0)
            seeds.append(seed)
            bits.append(layer.bits if layer is not None else 0)
            begins.append(networks[r].quantise_from * steps)
            at += values.size
            return len(starts) - 1

        for number, first in enumerate(networks[0].layers):
            segments = []
            for r, network in enumerate(networks):
                layer = network.layers[number]
                if layer.trained:
                    seed = derive_seed(network.seed ^ ROUNDING_SEED, number)
                    segments.append(add(r, layer.values.ravel(), seed, layer))
            self.weights.append(segments)
            self.weight_segments += segments
            if first.bias:
                at = -(-at // ALIGNED) * ALIGNED
                self.biases.append(at)
                for r in range(len(networks)):
                    add(r, np.zeros(first.d_out, np.float32), 0, None)
            else:
                self.biases.append(-1)
        if at >= 2**31:
            raise ValueError(f"the networks store {at} values together, more than 32-bit codes reach; train fewer")

        flat = np.zeros(-(-at // ALIGNED) * ALIGNED, np.float32)
        for start, values in host:
            flat[start : start + values.size] = values
        self.values = xp.asarray(flat)
        self.grads, self.means, self.squares = (xp.zeros_like(self.values) for _ in range(3))
        self.rounded = xp.zeros_like(self.values) if any(bits) else self.values
        # What the formulas read is on the host if xp is NumPy, and what the kernels read is where they are.
        self.starts, self.sizes = xp.asarray(starts, np.int64), xp.asarray(sizes, np.int32)
        self.networks, self.units = np.array(owners), xp.asarray(units, np.float32)
        self.levels, self.seeds = xp.asarray(levels, np.int32), xp.asarray(seeds, np.uint32)
        self.bits, self.begins = xp.asarray(bits, np.int32), xp.asarray(begins, np.int32)
        self.host_starts, self.host_sizes = starts, sizes

        chunks, self.first_chunks, self.chunk_counts = self._chunks(range(len(starts)), xp)
        self.chunks = chunks
        self.weight_chunks, self.first_chunks, self.chunk_counts = self._chunks(self.weight_segments, xp)

    def _chunks(self, segments: Sequence[int], xp: ModuleType) -> tuple[Array, Array, Array]:
        """The table of batch.cuh, and each segment's first chunk in it and number of chunks."""
        first, count = np.zeros((2, len(self.host_starts)), np.int32)
        rows: list[tuple[int, int, int, int]] = []
        for segment in segments:
            size = self.host_sizes[segment]
            first[segment], count[segment] = len(rows), -(-size // CHUNK)
            rows += [(int(self.networks[segment]), min(CHUNK, size - at), segment, at) for at in range(0, size, CHUNK)]
        return xp.asarray(rows, np.int32), xp.asarray(first), xp.asarray(count)

    def part(self, flat: Array, segment: int) -> Array:
        start = self.host_starts[segment]
        return flat[start : start + self.host_sizes[segment]]

    def stacked(self, flat: Array, number: int, shape: tuple[int, ...]) -> Array:
        """The dense matrices of a layer, of all networks, as they lie in an array of all values."""
        start = self.host_starts[self.weights[number][0]]
        return flat[start : start + math.prod(shape)].reshape(shape)

    def bias(self, flat: Array, number: int, networks: int, d_out: int) -> Array:
        start = self.biases[number]
        return flat[start : start + networks * d_out].reshape(networks, d_out)


def _codes(layer: Layer, start: int, xp: ModuleType) -> Array:
    """(d_out, d_in) int32: 0, or plus or minus (where the weight's value lies + 1)."""
    if isinstance(layer.chosen, HashSpec):
        if layer.chosen.n_buckets >= 2**24:
            raise ValueError(f"a layer may have up to 2^24 buckets here, got {layer.chosen.n_buckets}")
        # The bucket as a float32 below 2^24 is exact, and the product's own kernels know the hash.
        signed = materialise(xp.arange(1, layer.chosen.n_buckets + 1, dtype=xp.float32), layer.chosen)
        return signed.astype(xp.int32) + xp.sign(signed).astype(xp.int32) * xp.int32(start)
    codes = np.zeros((layer.d_out, layer.d_in), np.int32)
    chosen = np.ones(codes.shape, bool) if layer.chosen is None else layer.chosen
    codes[chosen] = start + 1 + np.arange(np.count_nonzero(chosen), dtype=np.int32)
    return xp.asarray(codes)


def _upright(layer: Layer) -> bool:
    """Whether values of a column of the matrix are neighbours in memory."""
    return isinstance(layer.chosen, HashSpec) and layer.chosen.block[0] > 1


# --------------------------------------------------------------------------------------------------------------------
# Training


class LockStep:
    """Networks that take their steps together.

    Parameters
    ----------
    networks : at least one, all of one `Network.kind`
    samples : Samples, on NumPy or CuPy arrays: they decide the place
    epochs, batch : int
        As `hashedmm.nn.train` takes them.
    validation : int
        Training samples that each network holds out, drawn by its seed as in `hashedmm.nn.train`.
    tf32 : bool
        On a GPU: products by tensor cores, operands rounded to 11 bits, sums in float32. Everything else is float32.
    emulated : bool
        NumPy arrays alone: compute with the CUDA kernels, in the emulator.
    """

    def __init__(
        self, networks: Sequence[Network], samples: Samples, *, epochs: int, batch: int, validation: int = 0,
        tf32: bool = False, emulated: bool = False,
    ) -> None:  # fmt: skip
        self.epochs, self.batch = _integer("epochs", epochs, 1), _integer("batch", batch, 1)
        if not networks or len({network.kind for network in networks}) != 1:
            raise ValueError("networks must be at least one, and all of one kind: equal layer sizes and ways to store")
        self.samples, self.tf32, self.networks = samples, tf32, list(networks)
        self.R = len(networks)
        xp = self.xp = array_module(samples.x_train)
        if tf32 and xp is np:
            raise ValueError("tf32 is a GPU's arithmetic; leave it out for NumPy arrays")
        if emulated and xp is not np:
            raise ValueError("emulated is for NumPy arrays; a GPU runs the kernels itself")
        n_all, features = samples.x_train.shape
        self.validation = _integer("validation", validation, 0, n_all - 1)
        self.n = n_all - self.validation
        if features != networks[0].layers[0].d_in:
            raise ValueError(f"the networks take {networks[0].layers[0].d_in} features, the samples have {features}")
        classes = int(samples.y_train.max()) + 1
        if classes > networks[0].layers[-1].d_out:
            raise ValueError(f"the networks have {networks[0].layers[-1].d_out} outputs, the labels need {classes}")
        if batch > self.n:
            raise ValueError(f"batch must be at most {self.n}, the number of training samples, got {batch}")
        self.steps = -(-self.n // batch)
        self.device: build.Device | None = "emulator" if emulated else None if xp is np else build.current_device()
        self._split()
        self._allocate()

    def _split(self) -> None:
        """Which samples the networks of each seed train with, and which they hold out, as `hashedmm.nn.train` draws."""
        n_all, held = len(self.samples.x_train), self.validation
        splits = {}
        for seed in {network.seed for network in self.networks}:
            split = np.random.default_rng([seed, SPLIT]).permutation(n_all) if held else np.arange(n_all)
            splits[seed] = np.sort(split[held:]), np.sort(split[:held])
        self._used = splits

    def _allocate(self) -> None:
        xp, networks = self.xp, self.networks
        self.clock = xp.zeros(3, np.int32)
        self.ops: Any = _Formulas(self.clock) if self.device is None else _Kernels(self.clock, self.device)
        self.shapes = [(layer.d_in, layer.d_out, layer.bias, layer.trained) for layer in networks[0].layers]
        self.s = _Values(networks, self.steps, xp)
        self.w: list[Array] = []  # the matrices that act
        self.gw: list[Array | None] = []
        self.codes: list[Array | None] = []
        self.upright: list[Array] = []
        for number, (d_in, d_out, _, trained) in enumerate(self.shapes):
            layers = [network.layers[number] for network in networks]
            shape = (self.R, d_out, d_in)
            self.upright.append(xp.asarray([_upright(layer) for layer in layers], np.int32))
            self.codes.append(None)
            if not trained:
                self.w.append(xp.asarray(np.stack([layer.values for layer in layers])))
                self.gw.append(None)
            elif not layers[0].gathered:
                self.w.append(self.s.stacked(self.s.rounded, number, shape))
                self.gw.append(self.s.stacked(self.s.grads, number, shape))
            else:
                codes = self.codes[-1] = xp.empty(shape, np.int32)
                for r, layer in enumerate(layers):
                    codes[r] = _codes(layer, self.s.host_starts[self.s.weights[number][r]], xp)
                self.w.append(xp.zeros(shape, np.float32))
                self.gw.append(xp.empty(shape, np.float32))
        self._dropout()
        self._teachers()
        self.order = xp.zeros((self.R, self.n), np.int32)
        self.rates = xp.zeros((self.steps, self.R, 2), np.float32)
        self.losses = xp.zeros((self.R, self.steps), np.float32)
        self.wrong = xp.zeros((self.R, self.steps), np.int32)
        self.loss_of_epoch = xp.zeros((self.epochs, self.R), np.float64)
        self.wrong_of_epoch = xp.zeros((self.epochs, self.R), np.int64)
        self._obd = [r for r, n in enumerate(networks) if n.pruning is not None and n.pruning.saliency == "obd"]
        self._fisher: list[Array] = []
        self._workspaces: dict[int, list[Array]] = {}  # samples of a step -> activations, from the samples on
        self._signals: dict[int, list[Array]] = {}  # the same -> gradients of products, from the last layer's on
        self._plans = {n: self._plan(n) for n in {self.batch, self.n - (self.steps - 1) * self.batch}}

    def _dropout(self) -> None:
        thresholds = [Dropout(network.dropout)._threshold for network in self.networks]
        self.thresholds = self.xp.asarray(thresholds, np.uint32)
        self.dropout_seeds = [  # hidden layer i of the network, as MLP numbers them
            self.xp.asarray([derive_seed(network.seed ^ DROPOUT_SEED, i) for network in self.networks], np.uint32)
            for i in range(1, 1 + sum(bias for _, _, bias, _ in self.shapes))
        ]

    def _teachers(self) -> None:
        xp = self.xp
        taught = [network.teaching for network in self.networks]
        weights = [t.weight if t else 0.0 for t in taught]
        temperatures = [t.temperature if t else 1.0 for t in taught]
        n_all, classes = len(self.samples.x_train), self.shapes[-1][1]
        probabilities = xp.zeros((self.R, n_all, classes) if any(weights) else (1, 1, 1), np.float32)
        for r, t in enumerate(taught):
            if t is not None:
                if t.logits.shape != (n_all, classes):
                    raise ValueError(f"a teacher's logits must be {(n_all, classes)}, got {t.logits.shape}")
                z = xp.asarray(t.logits, np.float32) / np.float32(t.temperature)
                e = xp.exp(z - z.max(axis=1, keepdims=True))
                probabilities[r] = e / e.sum(axis=1, keepdims=True)
        as_floats = (xp.asarray(a, np.float32) for a in (weights, temperatures))
        self.soft = _Soft(probabilities, *as_floats)
        self.no_soft = _Soft(xp.zeros((1, 1, 1), np.float32), xp.zeros(self.R, np.float32), xp.ones(self.R, np.float32))

    # ---- the plan of a step

    def _weights(self) -> list[Run]:
        """What makes the acting matrices from the stored values."""
        runs = self.ops.quantise(self.s) if self.s.rounded is not self.s.values else []
        for number, codes in enumerate(self.codes):
            if codes is not None:
                runs.append(self.ops.weights(codes, self.upright[number], self.s.rounded, self.w[number]))
        return runs

    def _forward(self, activations: list[Array], train: bool) -> list[Run]:
        """From activations[0] to the last, the logits without their bias."""
        runs, hidden = [], 0
        for number, (_, d_out, bias, _) in enumerate(self.shapes):
            a, y = activations[number : number + 2]
            runs.append(self.ops.product(a, self.w[number], y, tb=True))
            if bias and number < len(self.shapes) - 1:
                b = self.s.bias(self.s.values, number, self.R, d_out)
                runs.append(self.ops.activate(b, y, self.dropout_seeds[hidden], self.thresholds, train))
                hidden += 1
        return runs

    def _activations(self, n: int) -> list[Array]:
        if n not in self._workspaces:
            sizes = [self.shapes[0][0], *(d_out for _, d_out, _, _ in self.shapes)]
            if self.R * n * max(sizes) >= 2**31:
                raise ValueError(f"{self.R} networks with batches of {n} are too much for 32-bit indices; train fewer")
            self._workspaces[n] = [self.xp.zeros((self.R, n, size), np.float32) for size in sizes]
        return self._workspaces[n]

    def _plan(self, n: int) -> list[Run]:
        """A training step of n samples a network."""
        ops, s, x, y = self.ops, self.s, self.samples.x_train, self.samples.y_train
        a = self._activations(n)
        last = len(self.shapes) - 1
        runs = [ops.gather(self.order, x, a[0], self.batch), *self._weights(), *self._forward(a, True)]
        bias = self._bias_pair(last)
        runs.append(ops.softmax(self.order, y, bias[0], a[-1], bias[1], self.soft, self.losses, self.wrong, self.batch))
        g = a[-1]
        signals = self._signals[n] = [g]
        for number in range(last, -1, -1):
            d_in, _, _, trained = self.shapes[number]
            if trained:
                runs.append(ops.product(g, a[number], self.gw[number], ta=True))
                if self.codes[number] is not None:
                    runs.append(ops.scatter(self.codes[number], self.upright[number], self.gw[number], s.grads))
            if not any(shape[3] for shape in self.shapes[:number]):
                break  # nothing that is trained lies below
            gx = self.xp.empty((self.R, n, d_in), np.float32)
            runs.append(ops.product(g, self.w[number], gx))
            if self.shapes[number - 1][2]:
                runs.append(ops.activate_grad(a[number], gx, self._bias_pair(number - 1)[1], self.thresholds))
            g = gx
            signals.append(g)
        first, second = (1 - beta for beta in Adam().betas)
        runs.append(ops.adam(s, self.rates, first, second))
        return runs

    def _bias_pair(self, number: int) -> tuple[Array, Array]:
        d_out = self.shapes[number][1]
        return tuple(self.s.bias(flat, number, self.R, d_out) for flat in (self.s.values, self.s.grads))  # type: ignore[return-value]

    # ---- running

    def train(self, on_epoch: Callable[[int], None] | None = None) -> None:
        """All epochs. On a GPU nothing waits for it, and launches run ahead of it. ``on_epoch`` is called with the
        number of epochs that have been launched."""
        with _MathMode(self.xp, self.tf32), np.errstate(over="ignore", invalid="ignore"):
            for epoch in range(self.epochs):
                self._begin(epoch)
                fisher = self._fisher_steps(epoch)
                for step in range(self.steps):
                    n = min(self.batch, self.n - step * self.batch)
                    plan = self._plans[n]
                    for run in plan[:-1]:
                        run()
                    if step in fisher:
                        self._add_fisher(n)
                    plan[-1]()  # Adam
                self._end(epoch)
                if on_epoch is not None:
                    on_epoch(epoch + 1)

    def _begin(self, epoch: int) -> None:
        orders = {
            seed: used[np.random.default_rng([seed, SHUFFLE, epoch]).permutation(self.n)]
            for seed, (used, _) in self._used.items()
        }
        order = np.stack([orders[network.seed] for network in self.networks]).astype(np.int32)
        total = self.epochs * self.steps
        rates = np.empty((self.steps, self.R, 2), np.float32)
        made: dict[tuple[float, str], np.ndarray] = {}
        for r, network in enumerate(self.networks):
            how = network.lr, network.decay
            if how not in made:
                adam, steps = Adam(network.lr), range(epoch * self.steps, (epoch + 1) * self.steps)
                made[how] = np.array([adam.rates(t + 1, DECAYS[network.decay](t / total)) for t in steps], np.float32)
            rates[:, r] = made[how]
        self.order[...] = self.xp.asarray(order)
        self.rates[...] = self.xp.asarray(rates)
        self.clock[...] = self.xp.asarray(np.array([0, 0, epoch * self.steps], np.int32))

    def _end(self, epoch: int) -> None:
        counts = np.full(self.steps, self.batch / self.n)
        counts[-1] = (self.n - (self.steps - 1) * self.batch) / self.n
        self.loss_of_epoch[epoch] = (self.losses * self.xp.asarray(counts)).sum(axis=1)
        self.wrong_of_epoch[epoch] = self.wrong.sum(axis=1)
        for r, network in enumerate(self.networks):
            pruning = network.pruning
            if pruning is not None and pruning.first <= epoch + 1 <= pruning.last:
                self._prune(r, epoch + 1)
        for h in self._fisher:
            h.fill(0)

    # ---- pruning

    def _fisher_steps(self, epoch: int) -> range:
        """Steps of this epoch whose squared gradients obd needs."""
        pruned = (self.networks[r].pruning for r in self._obd)
        if not any(p is not None and p.first <= epoch + 1 <= p.last for p in pruned):
            return range(0)
        return range(self.steps - math.ceil(FISHER_SHARE * self.steps), self.steps)

    def _add_fisher(self, n: int) -> None:
        """Add each sample's squared gradient, up to a factor that a layer's weights share, which no ranking sees."""
        a, signals = self._activations(n), self._signals[n]
        if not self._fisher:
            self._fisher = [self.xp.zeros((len(self._obd), *w.shape[1:]), np.float32) for w in self.w]
        for number in range(len(self.shapes)):
            g, x = signals[len(self.shapes) - 1 - number][self._obd], a[number][self._obd]
            self._fisher[number] += self.xp.matmul((g * g * np.float32(n) ** 2).swapaxes(1, 2), x * x)

    def _prune(self, r: int, epoch: int) -> None:
        xp, pruning = self.xp, self.networks[r].pruning
        for number, layer in enumerate(self.networks[r].layers):
            codes = self.codes[number]
            if pruning is None or layer.kept is None or codes is None:
                continue
            of_network = codes[r].ravel()  # a view
            segment = self.s.weights[number][r]
            value = self.s.part(self.s.values, segment)
            saliency = xp.abs(value)
            if pruning.saliency == "obd":
                saliency = self._fisher[number][self._obd.index(r)].ravel() * value * value
            saliency = xp.where(of_network != 0, saliency, xp.float32(-1))
            left = pruning.left(epoch, value.size, layer.kept)
            keep = xp.zeros(value.size, bool)
            keep[xp.argpartition(saliency, value.size - left)[value.size - left :]] = True
            of_network *= keep
            for flat in (self.s.values, self.s.means, self.s.squares):
                self.s.part(flat, segment)[...] *= keep

    # ---- what came out

    def results(self, evaluate: bool = True) -> list[Trained]:
        """Errors of all networks, after `train`. FloatingPointError if a loss is not finite."""
        losses, wrong = to_numpy(self.loss_of_epoch), to_numpy(self.wrong_of_epoch)
        if not np.isfinite(losses).all():
            epoch, r = (int(i) for i in np.argwhere(~np.isfinite(losses))[0])
            raise FloatingPointError(
                f"the loss of network {r} (seed {self.networks[r].seed}, lr {self.networks[r].lr:g}) became "
                f"{losses[epoch, r]} in epoch {epoch + 1}: training diverged. Try a learning rate a tenth as large"
            )
        out = [
            Trained(losses[:, r].tolist(), (100.0 * wrong[:, r] / self.n).tolist(), kept=self._kept(r))
            for r in range(self.R)
        ]
        if self.validation:
            held = np.stack([self._used[network.seed][1] for network in self.networks])
            for r, error in enumerate(self.errors(self.samples.x_train, self.samples.y_train, held)):
                out[r].validation_error = error
        if evaluate:
            for r, error in enumerate(self.errors(self.samples.x_test, self.samples.y_test)):
                out[r].test_error = error
        return out

    def _kept(self, r: int) -> list[int]:
        return [
            self.w[number][r].size if codes is None else int((codes[r] != 0).sum())
            for number, codes in enumerate(self.codes)
        ]

    def errors(self, x: Array, y: Array, chosen: np.ndarray | None = None) -> list[float]:
        """Percent of samples that each network misclassifies: of all, or of those that row r of ``chosen`` lists."""
        rows = np.broadcast_to(np.arange(len(x)), (self.R, len(x))) if chosen is None else chosen
        count = rows.shape[1]
        per_chunk = min(EVALUATED, count)
        wrong = self.xp.zeros((self.R, -(-count // per_chunk)), np.int32)
        losses = self.xp.zeros(wrong.shape, np.float32)
        bias, unused = self._bias_pair(len(self.shapes) - 1)
        unused = self.xp.empty_like(unused)

        def classify(order: Array, logits: Array) -> list[Run]:
            return [self.ops.softmax(order, y, bias, logits, unused, self.no_soft, losses, wrong, per_chunk)]

        self._infer(x, rows, per_chunk, classify, lambda start, logits: None)
        return (100.0 * to_numpy(wrong).sum(axis=1) / count).tolist()

    def logits(self, x: Array) -> np.ndarray:
        """(R, len(x), classes) float32, on the host."""
        out = np.empty((self.R, len(x), self.shapes[-1][1]), np.float32)
        bias, _ = self._bias_pair(len(self.shapes) - 1)

        def keep(start: int, logits: Array) -> None:
            out[:, start : start + logits.shape[1]] = to_numpy(logits + bias[:, None, :])

        rows = np.broadcast_to(np.arange(len(x)), (self.R, len(x)))
        self._infer(x, rows, min(EVALUATED, len(x)), lambda order, logits: [], keep)
        return out

    def _infer(
        self, x: Array, rows: np.ndarray, per_chunk: int, more: Callable[[Array, Array], list[Run]],
        take: Callable[[int, Array], None],
    ) -> None:  # fmt: skip
        """Forward passes without dropout, ``per_chunk`` samples a network at a time; ``more`` plans what follows one,
        and ``take`` gets (the chunk's first sample, logits without bias)."""
        count = rows.shape[1]
        order = self.xp.asarray(np.ascontiguousarray(rows), np.int32)
        plans: dict[int, list[Run]] = {}
        with _MathMode(self.xp, self.tf32):
            self._at(0)
            for run in self._weights():
                run()
            for number, start in enumerate(range(0, count, per_chunk)):
                n = min(per_chunk, count - start)
                a = self._activations(n)
                if n not in plans:
                    plans[n] = [self.ops.gather(order, x, a[0], per_chunk), *self._forward(a, False)]
                    plans[n] += more(order, a[-1])
                self._at(number)
                for run in plans[n]:
                    run()
                take(start, a[-1])

    def _at(self, step: int) -> None:
        """Set the clock to a step after the last of training: number ``step`` of what is evaluated."""
        self.clock[...] = self.xp.asarray(np.array([step, step, self.epochs * self.steps], np.int32))

    def matrices(self, r: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """The weight matrix that acts, and the bias, of each layer of network r: copies on the host."""
        self._at(0)
        for run in self._weights():
            run()
        out = []
        for number, (_, _, bias, _) in enumerate(self.shapes):
            b = to_numpy(self._bias_pair(number)[0][r]).copy() if bias else None
            out.append((to_numpy(self.w[number][r]).copy(), b))
        return out

    def stored(self, r: int) -> list[np.ndarray]:
        """The trained values of each layer's weights of network r, without biases: copies on the host."""
        return [
            to_numpy(self.s.part(self.s.values, segments[r])).copy() if segments else np.zeros(0, np.float32)
            for segments in self.s.weights
        ]


def train(
    networks: Sequence[Network], samples: Samples, *, epochs: int, batch: int, validation: int = 0,
    evaluate: bool = True, tf32: bool = False,
) -> tuple[list[Trained], float]:  # fmt: skip
    """Train networks of one kind side by side, and evaluate them once, in the end.

    Returns
    -------
    What came out for each, and the seconds that it took, set-up and evaluation included.
    """
    began = time.perf_counter()
    group = LockStep(networks, samples, epochs=epochs, batch=batch, validation=validation, tf32=tf32)
    group.train()
    results = group.results(evaluate)
    return results, time.perf_counter() - began


def most_at_once(network: Network, batch: int, *, free_bytes: int, most: int) -> int:
    """How many networks like this one fit into memory together, at least 1 and at most ``most``."""
    values = sum(layer.values.size + layer.d_out + 2 * ALIGNED for layer in network.layers)
    widest = max(max(layer.d_in, layer.d_out) for layer in network.layers)
    indices = (2**31 - 1) // max(values, widest * max(batch, EVALUATED))
    return max(1, min(most, free_bytes // network.nbytes(batch), indices))
