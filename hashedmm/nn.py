"""Small networks of dense and hashed layers, two optimisers and the training loop, written to be read.

Everything works on NumPy or CuPy arrays: the array decides the place, and CuPy is touched only if an array is its own.
Parameters and activations are float32. Activations are (n, features) arrays, one row a sample; in memory they lie
feature by feature, as views of the (features, n) arrays that the products give. Nothing draws random numbers from a
hidden state: every draw depends on a seed and a counter alone, so that a run repeats bit for bit and can be continued.
Imports hashing, launch, matmul, graph and safefile.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from hashedmm import graph, safefile
from hashedmm.hashing import COLUMN_STEP, MASK32, HashSpec, _integer, derive_seed, fmix32
from hashedmm.launch import Derived, derived, device
from hashedmm.matmul import hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x

Array = Any  # a NumPy or a CuPy array

STRUCTURES = ("dense", "elementwise", "panels", "strips", "runs", "tiles", "codebook")
SMALL_LAYER = 64  # layers of fewer outputs take the structure small_layers
# What follows the seed in numpy.random.default_rng([seed, purpose, number]): streams that never meet.
SHUFFLE, INIT, SPLIT = 1, 2, 3
DROPOUT_SEED = 0x0D120907  # keeps the masks' keys apart from the layers' hash seeds


def array_module(a: Array) -> ModuleType:
    """The module whose array ``a`` is: ``cupy`` for a CuPy array, the only case that imports it, else ``numpy``."""
    if type(a).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy
    return np


def to_numpy(a: Array) -> np.ndarray:
    """``a`` as a NumPy array: itself, or copied from the GPU."""
    xp = array_module(a)
    return a if xp is np else xp.asnumpy(a)


def _number(name: str, value: Any, low: float, high: float = math.inf, *, open_high: bool = False) -> float:
    """A finite real number in [low, high], or in [low, high) if ``open_high``."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a number, got the bool {value!r}")
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}") from None
    if not (low <= value <= high and math.isfinite(value)) or (open_high and value == high):
        limits = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return value


def _choice(name: str, value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _check_activations(x: Array, features: int, dtype: Any) -> None:
    if getattr(x, "ndim", None) != 2 or x.shape[1] != features:
        raise ValueError(f"x must have the shape (n, {features}), got {getattr(x, 'shape', type(x).__name__)}")
    if x.dtype != dtype:
        raise TypeError(f"x must be {dtype} as the parameters are, got {x.dtype}; use x.astype({str(dtype)!r})")


# --------------------------------------------------------------------------------------------------------------------
# Layers


@dataclass(eq=False)
class Parameter:
    """Stored numbers that training changes.

    Attributes
    ----------
    value : array, float32
    grad : array of the same shape, or None before the first backward pass
    uses : float
        How many virtual weights share one stored value on average: virtual / stored weights, 1 in dense layers.
    """

    value: Array
    grad: Array | None = None
    uses: float = 1.0


class Layer:
    """What a layer offers: `forward`, `backward` and its parameters by name."""

    def parameters(self) -> dict[str, Parameter]:
        """Name -> parameter; none unless a layer says otherwise."""
        return {}

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        """(n, d_in) -> (n, d_out). ``train`` keeps what `backward` needs; ``step`` counts training steps."""
        raise NotImplementedError

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        """The gradient of the loss with respect to the layer's input, given ``gy``, that with respect to its output.

        Sets the gradients of the parameters. It needs ``forward(x, train=True)`` before. The first layer of a network
        has no use for the gradient of its input: ``need_grad_x=False`` saves the work and gives None.
        """
        raise NotImplementedError


def _kept(layer: Layer, kept: Array | None) -> Array:
    if kept is None:
        raise RuntimeError(f"{type(layer).__name__}.backward() needs forward(x, train=True) before it")
    return kept


def _initial(shape: tuple[int, ...], fan_in: int, seed: int | Sequence[int], xp: ModuleType) -> Array:
    """Normal values of variance 2 / fan_in (He et al. 2015), drawn on the host, so that every device gets the same."""
    rng = np.random.default_rng(seed)
    return xp.asarray(rng.standard_normal(shape, dtype=np.float32) * np.float32(math.sqrt(2.0 / fan_in)))


class Linear(Layer):
    """A dense layer, y = x W^T + b.

    Parameters
    ----------
    d_in, d_out : int
    seed : int, or sequence of int
        Seeds the initial weights (`numpy.random.default_rng`): normal, variance 2 / d_in. Biases begin at 0.
    xp : module, numpy or cupy
    """

    spec = None

    def __init__(self, d_in: int, d_out: int, *, seed: int | Sequence[int], xp: ModuleType = np) -> None:
        self.d_in, self.d_out = _integer("d_in", d_in, 1), _integer("d_out", d_out, 1)
        value = _initial((self.d_out, self.d_in), self.d_in, seed, xp)
        self.weight = Parameter(value, xp.zeros_like(value))
        self.bias = Parameter(xp.zeros(self.d_out, xp.float32))
        self._x: Array | None = None

    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight, "bias": self.bias}

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        self._x = x if train else None
        y = self.weight.value @ x.T
        y += self.bias.value[:, None]
        return y.T

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        x, xp = _kept(self, self._x), array_module(gy)
        xp.matmul(gy.T, x, out=self.weight.grad)
        self.bias.grad = gy.sum(axis=0)
        return (self.weight.value.T @ gy.T).T if need_grad_x else None


class HashedLinear(Layer):
    """A layer whose weight matrix is hashed: y = x W^T + b with W[i, j] = sign * w[bucket], of which only w is stored.

    The bias is dense: it has d_out values only.

    Initial values. In a dense layer He's rule draws every weight with variance 2 / fan-in, so that activations keep
    their size from layer to layer. Here the fan-in is the *virtual* one, d_in: every output still sums d_in terms,
    however few values are stored. A weight of W is a bucket or its negative, so it has the bucket's variance; and the
    signs of two weights of one output that share a bucket are independent, so that on average over the hash their cross
    terms cancel and the variance of the sum is what d_in independent weights give. Hence std = sqrt(2 / d_in).

    Gradients. The gradient of a bucket is the signed sum of the gradients of all weights that use it: see `SGD`.

    Parameters
    ----------
    spec : HashSpec of shape (d_out, d_in)
    seed : int, or sequence of int
        Seeds the initial values of the buckets, not the hash: that seed is the spec's.
    kernel : str
        Which kernel computes the forward product, see `hashed_matmul`; none changes what is computed. The gradients
        choose theirs.
    xp : module, numpy or cupy

    Attributes
    ----------
    at : of a part of a layer: where the outputs of each process begin, and the last one's end; see hashedmm.parallel
    """

    at: tuple[int, ...] | None = None

    def __init__(self, spec: HashSpec, *, seed: int | Sequence[int], kernel: str = "auto", xp: ModuleType = np) -> None:
        if not isinstance(spec, HashSpec):
            raise TypeError(f"spec must be a HashSpec, e.g. HashSpec.strips((1000, 784), 1/8), got {spec!r}")
        self.spec, self.kernel = spec, kernel
        self.d_out, self.d_in = spec.shape
        uses = spec.rows * spec.cols / spec.n_buckets
        self.weight = Parameter(_initial((spec.n_buckets,), self.d_in, seed, xp), uses=uses)
        self.bias = Parameter(xp.zeros(self.d_out, xp.float32))
        self._x_dn: Array | None = None
        self._derived: Derived | None = None

    def parameters(self) -> dict[str, Parameter]:
        return {"weight": self.weight, "bias": self.bias}

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        x_dn = array_module(x).ascontiguousarray(x.T)  # copied once for both products that read it, if at all
        self._x_dn = x_dn if train else None
        y = hashed_matmul(self.weight.value, x_dn, self.spec, kernel=self.kernel)
        self._hold()
        y += self.bias.value[:, None]
        return y.T

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        self.weight.grad = hashed_matmul_grad_w(_kept(self, self._x_dn), gy.T, self.spec)
        self._hold()
        self.bias.grad = gy.sum(axis=0)
        return hashed_matmul_grad_x(self.weight.value, gy.T, self.spec).T if need_grad_x else None

    def _hold(self) -> None:
        """Keep what the kernels have derived from the spec for as long as the layer lives."""
        self._derived = derived(self.spec, device(self.weight.value)) or self._derived

    @property
    def derived_bytes(self) -> int:
        """Memory of what CUDA kernels derive from the hash and keep beside the layer: the lists of the sketch schedule,
        where that is used. 0 before its first use; never saved."""
        self._hold()
        return self._derived.nbytes if self._derived else 0


class ReLU(Layer):
    """y = max(x, 0)."""

    def __init__(self) -> None:
        self._y: Array | None = None

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        y = array_module(x).maximum(x, 0)
        self._y = y if train else None
        return y

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        return gy * (_kept(self, self._y) > 0) if need_grad_x else None


class Dropout(Layer):
    """In training, each activation is set to 0 with probability ``rate`` and the others grow by 1 / (1 - rate).

    The expected activation stays what it is, so that nothing changes outside of training (Srivastava et al. 2014). The
    mask of a step is a function of (seed, step) alone: 16-bit halves of fmix32 over a counter, keyed as the hashes of
    the weights are, are compared with a threshold. So the rate is rounded to a multiple of 2^-16, an interrupted run
    continues with the masks it would have had, and NumPy and CuPy drop the same activations.

    Parameters
    ----------
    rate : float in [0, 1)
    seed : int, 0 to 2^32 - 1
        Layers of one network take different ones.
    """

    def __init__(self, rate: float, *, seed: int = 0) -> None:
        self.rate = _dropout_rate(rate)
        self.seed = _integer("seed", seed, 0, MASK32)
        self._threshold = round(self.rate * 2**16)
        self._scale = 2**16 / (2**16 - self._threshold)
        self._counters: Array | None = None
        self._mask: Array | None = None

    def mask(self, shape: tuple[int, int], step: int, xp: ModuleType = np) -> Array:
        """What a step multiplies activations of ``shape`` (n, features) with: 0 or 1 / (1 - rate), float32."""
        n, features = shape
        words = (n * features + 1) // 2
        if self._counters is None or len(self._counters) < words or array_module(self._counters) is not xp:
            self._counters = xp.arange(words, dtype=xp.uint32) * xp.uint32(COLUMN_STEP)
        halves = fmix32(self._counters[:words] ^ xp.uint32(derive_seed(self.seed, step))).view(xp.uint16)
        keep = halves[: n * features].reshape(features, n) >= xp.uint16(self._threshold)
        return xp.multiply(keep, xp.float32(self._scale), dtype=xp.float32).T

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        self._mask = self.mask(x.shape, step, array_module(x)) if train else None
        return x if self._mask is None else x * self._mask

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        return gy * _kept(self, self._mask) if need_grad_x else None


def _dropout_rate(rate: Any) -> float:
    rate = _number("dropout", rate, 0, 1, open_high=True)
    if round(rate * 2**16) == 2**16:
        raise ValueError(f"dropout must leave something: it is rounded to a multiple of 2^-16, got {rate!r}")
    return rate


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The mean of -log softmax(logits)[label] over the samples, and its gradient.

    Parameters
    ----------
    logits : (n, classes) float array
    labels : (n,) integer array, 0 <= label < classes

    Returns
    -------
    loss : float32 scalar of the array's module (on a GPU it stays there: nothing waits for it)
    grad : (n, classes), the gradient of the loss with respect to the logits: (softmax - one-hot) / n
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (n, classes) and labels (n,), got {logits.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(
            f"labels must be from 0 to {logits.shape[1] - 1}, got {int(labels.min())} to {int(labels.max())}"
        )
    return _softmax_cross_entropy(logits, labels)


def _softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """`softmax_cross_entropy` without its checks, which would make a GPU wait."""
    xp = array_module(logits)
    n = len(labels)
    picked = (xp.arange(n), labels)
    shifted = logits - logits.max(axis=1, keepdims=True)  # softmax is the same, and exp cannot overflow
    grad = xp.exp(shifted)
    total = grad.sum(axis=1, keepdims=True)
    loss = xp.log(total).mean() - shifted[picked].mean()
    grad /= total
    grad[picked] -= 1
    grad /= n
    return loss, grad


# --------------------------------------------------------------------------------------------------------------------
# Networks


class OneProcess:
    """The processes that train a network together: here, one. `hashedmm.parallel.Ranks` is several.

    Attributes
    ----------
    rank : int
        Number of this process, from 0. Process 0 shows progress and writes files.
    size : int
        How many there are.
    """

    rank, size = 0, 1

    def agree(self, name: str, value: Any) -> None:
        """ValueError on every process unless all have the same ``value``, a JSON document; ``name`` says what it is."""

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process."""
        return flag

    def same(self, value: Any) -> Any:
        """The ``value``, a JSON document, of process 0, on every process."""
        return value


class MLP:
    """A multilayer perceptron: linear layers, hashed or dense, with ReLU and dropout between them.

    Layer i hashes with the seed ``derive_seed(seed, i)``, so that no two layers share a pattern.

    Parameters
    ----------
    layers : sequence of int
        Sizes from the input to the classes, e.g. [784, 1000, 10].
    structure : str
        "dense", or the named constructor of `HashSpec` that every layer uses.
    compression : float in (0, 1]
        Stored / virtual weights; dense layers ignore it.
    dropout : float in [0, 1)
        Rate on hidden activations. The input is not dropped.
    seed : int, 0 to 2^32 - 1
        Everything random in the network follows from it: hashes, initial values, dropout masks.
    hash : str
        The hash function, see `HashSpec`.
    xp : module, numpy or cupy
        Where the parameters live.
    small_layers : str or None
        The structure of layers of fewer than 64 outputs; None: the same as the others. A 10-row output layer at
        compression 1/64 stores so few values that tall blocks would tie most of it together.
    kernel : str
        Which kernel computes the forward products, see `hashed_matmul`. It changes the speed and nothing else, and is
        not saved.
    **options
        Passed on to the structure's constructor: ``height=``, ``panel=``, ``stride=``, ``length=``, ``tile=``.

    Attributes
    ----------
    layers : list of Layer, in the order of computation
    linears : list of Linear and HashedLinear, those among them that have parameters
    ranks : the processes that compute it together, see hashedmm.parallel; one here
    """

    ranks: OneProcess = OneProcess()
    steppers: ClassVar[tuple[type[_Eager], type[_Captured]]]  # what does its training steps: `train` chooses

    def __init__(
        self, layers: Sequence[int], *, structure: str = "strips", compression: float = 1 / 8, dropout: float = 0.0,
        seed: int = 0, hash: str = "fmix32", xp: ModuleType = np, small_layers: str | None = "elementwise",
        kernel: str = "auto", **options: Any,
    ) -> None:  # fmt: skip
        sizes = _check_sizes(layers)
        seed = _integer("seed", seed, 0, MASK32)
        _choice("structure", structure, STRUCTURES)
        small = structure if small_layers is None or structure == "dense" else small_layers
        _choice("small_layers", small, STRUCTURES)
        allowed: list[str] = []
        if structure != "dense":
            given = ("shape", "compression", "seed", "hash")
            allowed = [p for p in inspect.signature(getattr(HashSpec, structure)).parameters if p not in given]
        for name in options:
            if name not in allowed:
                takes = ", ".join(allowed) or "no options"
                raise TypeError(f"structure {structure!r} takes {takes}; got {name}={options[name]!r}")

        def spec(i: int) -> HashSpec | None:
            kind = small if sizes[i + 1] < SMALL_LAYER else structure
            if kind == "dense":
                return None
            more = options if kind == structure else {}
            shape = (sizes[i + 1], sizes[i])
            return getattr(HashSpec, kind)(shape, compression, seed=derive_seed(seed, i), hash=hash, **more)

        self._build(sizes, [spec(i) for i in range(len(sizes) - 1)], dropout, seed, xp, kernel)

    def _build(
        self, sizes: list[int], specs: list[HashSpec | None], dropout: float, seed: int, xp: ModuleType, kernel: str
    ) -> None:
        self.sizes, self.dropout, self.seed, self.xp = sizes, _dropout_rate(dropout), seed, xp
        self.layers: list[Layer] = []
        self.linears: list[Linear | HashedLinear] = []
        for i, spec in enumerate(specs):
            if i:
                self.layers.append(ReLU())
                if self.dropout:
                    self.layers.append(Dropout(self.dropout, seed=derive_seed(seed ^ DROPOUT_SEED, i)))
            linear: Linear | HashedLinear
            if spec is None:
                linear = Linear(sizes[i], sizes[i + 1], seed=[seed, INIT, i], xp=xp)
            else:
                linear = HashedLinear(spec, seed=[seed, INIT, i], kernel=kernel, xp=xp)
            self.layers.append(linear)
            self.linears.append(linear)

    # ---- computing

    def forward(self, x: Array, train: bool = False, step: int = 0) -> Array:
        """Logits, (n, classes), of samples (n, features) in float32.

        ``train`` applies dropout, with the masks of training step ``step``, and keeps what `backward` needs.
        """
        _check_activations(x, self.sizes[0], self.linears[0].weight.value.dtype)
        for layer in self.layers:
            x = layer.forward(x, train=train, step=step)
        return x

    def backward(self, gy: Array) -> None:
        """Set every parameter's gradient, given the gradient of the loss with respect to the logits."""
        for i in range(len(self.layers) - 1, -1, -1):
            gy = self.layers[i].backward(gy, need_grad_x=i > 0)

    def predict(self, x: Array, batch: int = 1000) -> Array:
        """The class of largest logit of every sample: (n,) int64. Computed ``batch`` samples at a time."""
        batch = _integer("batch", batch, 1)
        x = self._here(x)
        _check_activations(x, self.sizes[0], self.linears[0].weight.value.dtype)
        out = self.xp.empty(len(x), self.xp.int64)
        for start in range(0, len(x), batch):
            out[start : start + batch] = self.forward(x[start : start + batch]).argmax(axis=1)
        return out

    def error(self, x: Array, y: Array, batch: int = 1000) -> float:
        """Misclassified samples in percent."""
        if not len(x) or len(x) != len(y):
            raise ValueError(f"x and y must have the same length, at least 1, got {len(x)} and {len(y)}")
        return 100.0 * float((self.predict(x, batch) != self._here(y)).mean())

    def _here(self, a: Array) -> Array:
        return a if array_module(a) is self.xp else self.xp.asarray(to_numpy(a))

    def hashed_chain(self) -> list[tuple[HashedLinear, Dropout | None]] | None:
        """Each hashed layer with the dropout that follows it; None if there is anything else but ReLU between them."""
        return _hashed_layers(self)

    # ---- parameters

    def parameters(self) -> dict[str, Parameter]:
        """ "0.weight", "0.bias", "1.weight", ... -> parameter, from the input to the output."""
        return {
            f"{i}.{name}": parameter
            for i, linear in enumerate(self.linears)
            for name, parameter in linear.parameters().items()
        }

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the parameters' values, on the host, by name."""
        return {name: np.array(to_numpy(p.value)) for name, p in self.parameters().items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Take the values of `state`. Nothing changes unless every name, shape and dtype is right."""
        parameters = self.parameters()
        check_arrays(state, self.shapes(), "the model's state")
        for name, p in parameters.items():
            p.value[...] = self.xp.asarray(state[name])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what `state` gives."""
        return {name: p.value.shape for name, p in self.parameters().items()}

    def gathered(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of the parameters' shapes, by names "parameter" or "slot/parameter" (others are left alone), as one
        process has them: unchanged, unless several processes hold a share each. All of them have to call it."""
        return dict(arrays)

    def shared_out(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The way back of `gathered`: this process's share."""
        return dict(arrays)

    @property
    def stored_values(self) -> int:
        """Numbers that are stored: buckets or dense weights, and biases."""
        return sum(p.value.size for p in self.parameters().values())

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored numbers. A hash needs no stored indices, so these are all."""
        return sum(p.value.nbytes for p in self.parameters().values())

    @property
    def derived_bytes(self) -> int:
        """Memory of what is derived from the hashes and kept beside the layers, see `HashedLinear`; never saved."""
        return sum(linear.derived_bytes for linear in self.linears if isinstance(linear, HashedLinear))

    @property
    def virtual_weights(self) -> int:
        """Entries of the weight matrices that the network acts with, stored or not; biases are not counted."""
        return sum(linear.d_in * linear.d_out for linear in self.linears)

    # ---- saying what it is

    def summary(self) -> str:
        """A small table: what each layer is, its virtual and its stored weights."""
        rows: list[tuple[str, ...]] = [("layer", "outputs x inputs", "structure", "virtual", "stored", "biases")]
        for i, linear in enumerate(self.linears):
            structure = "dense" if linear.spec is None else linear.spec.structure
            counts = (linear.d_in * linear.d_out, linear.weight.value.size, linear.bias.value.size)
            rows.append((str(i), f"{linear.d_out} x {linear.d_in}", structure, *(f"{c:,}" for c in counts)))
        widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
        lines = [
            "  ".join(t.ljust(w) if c < 3 else t.rjust(w) for c, (t, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        lines.append(f"{self.stored_values:,} stored values, {self.stored_bytes:,} bytes; dropout {self.dropout:g}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        kinds = ["dense" if linear.spec is None else linear.spec.structure for linear in self.linears]
        return f"<MLP {self.sizes}, {', '.join(kinds)}, {self.stored_values:,} stored values>"

    def config(self) -> dict[str, Any]:
        """What the network is, without its values, for JSON. `from_config` builds it again."""
        specs = [None if linear.spec is None else json.loads(linear.spec.to_json()) for linear in self.linears]
        return {"layers": self.sizes, "dropout": self.dropout, "seed": self.seed, "specs": specs}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, xp: ModuleType = np, kernel: str = "auto") -> MLP:
        """The network of a `config`, with initial values. ValueError or TypeError if the config is not one."""
        model = cls.__new__(cls)
        model._build(*_check_config(config), xp, kernel)
        return model


def _check_sizes(layers: Any) -> list[int]:
    if isinstance(layers, str) or not hasattr(layers, "__len__") or not hasattr(layers, "__iter__"):
        raise TypeError(f"layers must be a list of sizes, e.g. [784, 1000, 10], got {layers!r}")
    if len(layers) < 2:
        raise ValueError(f"layers must list at least the inputs and the outputs, e.g. [784, 10], got {list(layers)}")
    return [_integer(f"layers[{i}]", size, 1) for i, size in enumerate(layers)]


def _check_config(config: Any) -> tuple[list[int], list[HashSpec | None], float, int]:
    keys = {"layers", "dropout", "seed", "specs"}
    if not isinstance(config, Mapping) or set(config) != keys:
        got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"a model's config must have exactly the keys {sorted(keys)}, got {got}")
    sizes, dropout = _check_sizes(config["layers"]), _dropout_rate(config["dropout"])
    seed = _integer("seed", config["seed"], 0, MASK32)
    if not isinstance(config["specs"], list) or len(config["specs"]) != len(sizes) - 1:
        raise ValueError(f"a model's config must list {len(sizes) - 1} specs, one a layer, got {config['specs']!r}")
    specs = [None if s is None else HashSpec.from_json(json.dumps(s)) for s in config["specs"]]
    for i, spec in enumerate(specs):
        if spec is not None and spec.shape != (sizes[i + 1], sizes[i]):
            raise ValueError(f"the spec of layer {i} must have the shape {(sizes[i + 1], sizes[i])}, got {spec.shape}")
    return sizes, specs, dropout, seed


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters of the network with this config, without building it."""
    sizes, specs, _, _ = _check_config(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for i, spec in enumerate(specs):
        shapes[f"{i}.weight"] = (sizes[i + 1], sizes[i]) if spec is None else (spec.n_buckets,)
        shapes[f"{i}.bias"] = (sizes[i + 1],)
    return shapes


def check_arrays(arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """ValueError unless ``arrays`` are exactly the names of ``shapes``, with these shapes, in float32, all finite."""
    missing, extra = sorted(set(shapes) - set(arrays)), sorted(set(arrays) - set(shapes))
    if missing or extra:
        text = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has the unknown {', '.join(extra)}"] * bool(extra)
        raise ValueError(f"{what} {' and '.join(text)}; expected exactly {', '.join(shapes)}")
    for name, shape in shapes.items():
        a = arrays[name]
        if tuple(a.shape) != tuple(shape) or a.dtype != np.float32:
            raise ValueError(f"{what}: {name} must be float32 {tuple(shape)}, got {a.dtype} {tuple(a.shape)}")
        if not bool(array_module(a).isfinite(a).all()):
            raise ValueError(f"{what}: {name} must be finite, got NaN or infinities")


def equal_storage_width(layers: Sequence[int], stored: int) -> int:
    """The width of the small dense network that stores as much as a compressed one: the honest competitor.

    Parameters
    ----------
    layers : sequence of int
        Sizes of the compressed network. The small one has the same inputs, outputs and number of hidden layers, and all
        its hidden layers have one width.
    stored : int
        Stored values, weights and biases, to come near to (`MLP.stored_values`).

    Returns
    -------
    int
        The width, at least 1, whose stored values are nearest to ``stored``; the smaller of two equally near.
    """
    sizes = _check_sizes(layers)
    stored = _integer("stored", stored, 1)
    between = len(sizes) - 3  # hidden layers that follow a hidden layer
    if between < 0:
        raise ValueError(f"layers must have a hidden layer whose width can change, got {sizes}")

    def values(width: int) -> int:
        return (sizes[0] + 1) * width + between * (width + 1) * width + (width + 1) * sizes[-1]

    low, high = 1, 2
    while values(high) < stored:
        low, high = high, 2 * high
    while high - low > 1:  # values(low) <= stored < values(high), or low is 1
        middle = (low + high) // 2
        low, high = (middle, high) if values(middle) <= stored else (low, middle)
    return min(low, high, key=lambda width: (abs(values(width) - stored), width))


# --------------------------------------------------------------------------------------------------------------------
# Optimisers


class Optimizer:
    """What optimisers share: buffers by parameter name, scratch memory, saving and loading.

    A step changes the values in place and allocates nothing. On the CPU it goes through a parameter in pieces that fit
    into the cache, because several passes over a large array are bound by memory.
    """

    slots: ClassVar[tuple[str, ...]] = ()  # the buffers kept for each parameter
    PIECE: ClassVar[int] = 65536  # values

    def __init__(self) -> None:
        self.steps = 0
        self._buffers: dict[str, Array] = {}
        self._scratch: Array | None = None

    def settings(self) -> dict[str, Any]:
        """Name and settings, for JSON: what must be equal for a run to be continued."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget all steps, as if new."""
        self.steps = 0
        self._buffers = {}

    def step(self, parameters: Mapping[str, Parameter], lr_factor: float = 1.0) -> None:
        """Change every parameter's value by its gradient; ``lr_factor`` multiplies the learning rate of this step."""
        for name, p in parameters.items():
            if p.grad is None:
                raise RuntimeError(f"parameter {name} has no gradient; call backward() before step()")
        all_buffers = self.buffers(parameters)
        self.steps += 1
        for number, p in enumerate(parameters.values()):
            buffers = [of_slot[number].reshape(-1) for of_slot in all_buffers]
            value, grad = p.value.reshape(-1), p.grad.reshape(-1)  # type: ignore[union-attr]
            piece = min(value.size, self.PIECE) if array_module(value) is np else value.size
            scratch = self._scratch_for(value, piece)
            for start in range(0, value.size, piece):
                part = slice(start, min(start + piece, value.size))
                pieces = [b[part] for b in buffers]
                self._update(value[part], grad[part], *pieces, scratch[: part.stop - start], p.uses, lr_factor)

    def _update(self, value: Array, grad: Array, *args: Any) -> None:
        """One step of one piece. The arguments: value, grad, the buffers of ``slots``, scratch, uses, lr_factor."""
        raise NotImplementedError

    def rates(self, step: int, lr_factor: float = 1.0) -> tuple[float, ...]:
        """The numbers in a step's formula that depend on which step it is alone: 1, 2, ..."""
        raise NotImplementedError

    def buffers(self, parameters: Mapping[str, Parameter]) -> list[list[Array]]:
        """The buffers of each slot, in the parameters' order; zeros where there were none."""
        for name, p in parameters.items():
            for slot in self.slots:
                self._prepare(f"{slot}/{name}", p.value)
        return [[self._buffers[f"{slot}/{name}"] for name in parameters] for slot in self.slots]

    def _prepare(self, key: str, value: Array) -> None:
        buffer = self._buffers.get(key)
        if buffer is None:
            self._buffers[key] = array_module(value).zeros_like(value)
        elif buffer.shape != value.shape or buffer.dtype != value.dtype:
            raise ValueError(
                f"the optimiser's {key} is {buffer.dtype} {buffer.shape}, the parameter {value.dtype} {value.shape}: "
                "it belongs to another model; use a new optimiser or call reset()"
            )
        elif array_module(buffer) is not array_module(value):
            self._buffers[key] = array_module(value).asarray(buffer)

    def _scratch_for(self, value: Array, size: int) -> Array:
        s = self._scratch
        if s is None or s.size < size or s.dtype != value.dtype or array_module(s) is not array_module(value):
            s = self._scratch = array_module(value).empty(size, value.dtype)
        return s

    def state(self) -> dict[str, np.ndarray]:
        """All it remembers, copied to the host: "steps" (1,) int64, and "slot/parameter" -> buffer."""
        buffers = {key: np.array(to_numpy(b)) for key, b in self._buffers.items()}
        return {"steps": np.array([self.steps], np.int64), **buffers}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Continue from what `state` gave. ValueError if it comes from another kind of optimiser."""
        steps = state.get("steps")
        if steps is None or steps.shape != (1,) or steps.dtype != np.int64 or steps[0] < 0:
            raise ValueError("an optimiser's state must hold steps, (1,) int64, at least 0")
        buffers = {key: b for key, b in state.items() if key != "steps"}
        foreign = sorted(key for key in buffers if key.partition("/")[0] not in self.slots)
        if foreign:
            keeps = ", ".join(self.slots)
            raise ValueError(f"the state of {type(self).__name__} holds {keeps}; got {', '.join(foreign)}")
        self.steps = int(steps[0])
        self._buffers = {key: array_module(b).array(b) for key, b in buffers.items()}


class SGD(Optimizer):
    """Gradient descent with momentum: v <- momentum v + grad; value <- value - lr v.

    On hashed layers the learning rate means something else than on dense ones. Write the virtual matrix as a long
    vector: W = S w, where each row of S (one a virtual weight) has a single +1 or -1, in the column of the weight's
    bucket. If G is the gradient with respect to W, the chain rule gives S^T G for w: a bucket's gradient is the signed
    sum over all weights that use it. A step w <- w - lr S^T G therefore moves the matrix by -lr S S^T G.

    S^T S is diagonal: entry b counts the weights that use bucket b, on average ``uses`` = virtual / stored. Where all
    counts are equal, S^T S = uses * I, and P = S S^T / uses is the orthogonal projection on the matrices that the hash
    can represent. The matrix then moves by -(lr * uses) P G: the step of the dense layer, projected, but with the
    learning rate multiplied by ``uses``. At compression 1/64 a rate that suits a dense layer is 64 times too large.

    ``scale_by_uses=True`` divides by ``uses``: the matrix moves by -lr P G, and one learning rate serves dense layers,
    biases and hashed layers of any compression. (Buckets are not used equally often: the count of a random hash varies
    around ``uses``, about as Poisson's. Dividing by the mean keeps the gradient's direction, so that this is still
    steepest descent in w.)

    Parameters
    ----------
    lr : float > 0
    momentum : float in [0, 1)
    scale_by_uses : bool
    """

    slots = ("momentum",)

    def __init__(self, lr: float, momentum: float = 0.9, scale_by_uses: bool = True) -> None:
        super().__init__()
        self.lr = _positive("lr", lr)
        self.momentum = _number("momentum", momentum, 0, 1, open_high=True)
        if not isinstance(scale_by_uses, (bool, np.bool_)):
            raise TypeError(f"scale_by_uses must be True or False, got {scale_by_uses!r}")
        self.scale_by_uses = bool(scale_by_uses)

    def settings(self) -> dict[str, Any]:
        return {"name": "SGD", "lr": self.lr, "momentum": self.momentum, "scale_by_uses": self.scale_by_uses}

    def rates(self, step: int, lr_factor: float = 1.0) -> tuple[float, ...]:
        """The learning rate."""
        return (self.lr * lr_factor,)

    def gradient_factor(self, uses: float) -> float:
        """What the gradient of a parameter is multiplied by."""
        return 1.0 / uses if self.scale_by_uses else 1.0

    def _update(self, value: Array, grad: Array, *args: Any) -> None:
        v, scratch, uses, lr_factor = args
        xp = array_module(value)
        (rate,) = self.rates(self.steps, lr_factor)
        v *= self.momentum
        xp.multiply(grad, self.gradient_factor(uses), out=scratch)
        v += scratch
        xp.multiply(v, rate, out=scratch)
        value -= scratch


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015): value <- value - lr m^ / (sqrt(v^) + eps), m^ and v^ the corrected moving means of the
    gradient and of its square.

    It needs no ``uses`` (see `SGD`): multiply all gradients of a parameter by c > 0, and m^ grows by c, v^ by c^2, so
    that the ratio m^ / sqrt(v^) stays what it was, as long as eps is small beside sqrt(v^). However many virtual
    weights a bucket's gradient sums over, Adam divides by the size that comes out: each bucket moves by about lr a
    step, as each weight of a dense layer does.

    Parameters
    ----------
    lr : float > 0
    betas : (float, float) in [0, 1)
        Decay of the means of the gradient and of its square, a step.
    eps : float > 0
    """

    slots = ("mean", "square")

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__()
        self.lr = _positive("lr", lr)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas must be a pair of numbers, e.g. (0.9, 0.999), got {betas!r}")
        first, second = (_number(f"betas[{i}]", b, 0, 1, open_high=True) for i, b in enumerate(betas))
        self.betas = (first, second)
        self.eps = _positive("eps", eps)

    def settings(self) -> dict[str, Any]:
        return {"name": "Adam", "lr": self.lr, "betas": list(self.betas), "eps": self.eps}

    def rates(self, step: int, lr_factor: float = 1.0) -> tuple[float, ...]:
        """eps and the learning rate, both with the corrections for means that have begun at 0."""
        b1, b2 = self.betas
        root = math.sqrt(1 - b2**step)
        return self.eps * root, self.lr * lr_factor * root / (1 - b1**step)

    def _update(self, value: Array, grad: Array, *args: Any) -> None:
        m, v, scratch, _, lr_factor = args
        xp = array_module(value)
        b1, b2 = self.betas
        eps, rate = self.rates(self.steps, lr_factor)
        xp.subtract(grad, m, out=scratch)
        scratch *= 1 - b1
        m += scratch  # m = b1 m + (1 - b1) grad
        xp.multiply(grad, grad, out=scratch)
        scratch -= v
        scratch *= 1 - b2
        v += scratch  # v = b2 v + (1 - b2) grad^2
        xp.sqrt(v, out=scratch)
        scratch += eps
        xp.divide(m, scratch, out=scratch)
        scratch *= rate
        value -= scratch


def _positive(name: str, value: Any) -> float:
    value = _number(name, value, 0)
    if not value:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value


# --------------------------------------------------------------------------------------------------------------------
# Training

DECAYS: dict[str, Callable[[float], float]] = {  # progress in [0, 1) -> factor of the learning rate
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
CHECK_EVERY = 100  # steps between looks at the loss: a GPU has to wait for each look


@dataclass
class History:
    """What happened in a training run. Lists have one entry an epoch, or none where a quantity was not asked for.

    Attributes
    ----------
    epoch : 1, 2, ...
    loss : mean cross-entropy of the training samples, each as its batch was seen (dropout on, weights of that moment)
    train_error : percent of the training samples, seen in the same way
    validation_error, test_error : percent, after the epoch
    seconds : time of the epoch's training steps; evaluation is not counted
    best_epoch : the epoch of least validation error, the first of equals; None without validation
    final_epoch : the epoch whose weights the model was left with; None for an interrupted run
    interrupted : whether Ctrl-C ended it early
    total_seconds : everything, evaluation and saving counted, summed over all parts of a resumed run
    """

    epoch: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    train_error: list[float] = field(default_factory=list)
    validation_error: list[float] = field(default_factory=list)
    test_error: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    final_epoch: int | None = None
    interrupted: bool = False
    total_seconds: float = 0.0

    @property
    def final_test_error(self) -> float | None:
        """Test error, in percent, of the weights the model was left with: never of the epoch that did best on the test
        set, which would be choosing by it. None if it was not evaluated or the run was interrupted."""
        if self.final_epoch is None or not self.test_error:
            return None
        return self.test_error[self.final_epoch - 1]

    @property
    def seconds_per_epoch(self) -> float | None:
        """Median of ``seconds``; None before the first epoch is over."""
        return statistics.median(self.seconds) if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """The attributes and the two properties, for JSON."""
        more = {"final_test_error": self.final_test_error, "seconds_per_epoch": self.seconds_per_epoch}
        return asdict(self) | more


def train(
    model: MLP, data: Any, *, epochs: int = 30, batch: int = 100, optimizer: Optimizer | None = None,
    decay: str = "linear", seed: int = 0, validation: int = 0, patience: int | None = None,
    restore_best: bool | None = None, evaluate: bool = True, progress: bool = True,
    save_state: str | os.PathLike | None = None, resume: str | os.PathLike | None = None, checkpoint_every: int = 1,
) -> History:  # fmt: skip
    """Train a classifier with softmax cross-entropy; the model is changed in place.

    One seed, one result: two runs on one machine, with as many threads, give the same bits, and so does a run that was
    interrupted at any step and resumed. (On a GPU only if the gradients' kernels add in a fixed order, see
    `hashed_matmul_grad_w`.) Ctrl-C ends the current step, writes the state if ``save_state`` is given, and returns; a
    second Ctrl-C raises KeyboardInterrupt at once.

    On a GPU the steps of a network of hashed layers, with SGD or Adam, are captured as a CUDA graph (hashedmm.graph):
    the host waits for the GPU after an epoch and not before. Ctrl-C then ends the steps that have been launched. Where
    several processes share a step, it is several graphs, and what they send goes between.

    A network of `hashedmm.parallel` is trained by all of its processes: each makes the same call, with the whole data.
    Process 0 shows progress and writes files, which are those of one process: a run goes on with any number of them.
    Every process reads ``resume``. Ctrl-C at any of them ends the current step of all.

    Parameters
    ----------
    model : MLP
    data : Dataset, or any object with
        x_train (n, features) and x_test, floating and finite, and y_train (n,) and y_test, integers from 0 to the
        model's outputs - 1. The test set is needed only if ``evaluate``.
    epochs : int
    batch : int
        Samples a step; the last batch of an epoch has what is left.
    optimizer : Optimizer
        ``Adam(1e-3)`` if None. It is reset first.
    decay : "linear", "cosine" or "constant"
        How the learning rate falls to 0 over all steps.
    seed : int, 0 to 2^32 - 1
        Shuffling and the validation split. (Initial values and dropout follow the model's seed.)
    validation : int
        Training samples held out, drawn by ``seed``. 0: none.
    patience : int or None
        Stop after so many epochs in a row without a better validation error.
    restore_best : bool or None
        Leave the model with the weights of the best epoch by validation error. None: if there is validation.
    evaluate : bool
        Record the test error after each epoch.
    progress : bool
        Show a progress bar.
    save_state : path or None
        Write the full state of the run there every ``checkpoint_every`` epochs, at its end, and on Ctrl-C.
    resume : path or None
        Continue the run whose state this file holds. All settings and the data must be those of that run.
    checkpoint_every : int

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        For wrong arguments or data, before any work; if ``resume`` differs: the message lists the differences.
    FloatingPointError
        If the loss becomes NaN or infinite.
    """
    if not isinstance(model, MLP):
        raise TypeError(f"model must be an MLP, got {type(model).__name__}")
    epochs, batch = _integer("epochs", epochs, 1), _integer("batch", batch, 1)
    checkpoint_every = _integer("checkpoint_every", checkpoint_every, 1)
    seed = _integer("seed", seed, 0, MASK32)
    _choice("decay", decay, tuple(DECAYS))
    optimizer = Adam() if optimizer is None else optimizer
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an SGD or Adam object, got {optimizer!r}; e.g. Adam(1e-3)")
    validation = _integer("validation", validation, 0)
    restore_best = validation > 0 if restore_best is None else restore_best
    if not validation and (patience is not None or restore_best):
        raise ValueError("patience and restore_best need validation=: the number of training samples to hold out")
    patience = None if patience is None else _integer("patience", patience, 1)
    arrays = _check_data(model, data, evaluate)
    n_all = len(arrays["x_train"])
    if validation >= n_all:
        raise ValueError(f"validation must leave training samples: it must be below {n_all}, got {validation}")
    n = n_all - validation
    if batch > n:
        raise ValueError(f"batch must be at most {n}, the number of training samples, got {batch}")
    ranks = model.ranks
    if save_state is not None and ranks.rank == 0:
        safefile.check_writable(save_state, "save_state")

    optimizer.reset()
    run = _Run(model, optimizer, steps=-(-n // batch))
    if save_state is not None or resume is not None or ranks.size > 1:
        run.settings = _jsonable({
            "model": model.config(), "optimizer": optimizer.settings(), "epochs": epochs, "batch": batch,
            "decay": decay, "seed": seed, "validation": validation, "patience": patience,
            "restore_best": bool(restore_best), "evaluate": bool(evaluate),
            "data": {name: _fingerprint(a) for name, a in arrays.items()},
        })  # fmt: skip
    files = {"saves": save_state is not None, "resumes": resume is not None, "checkpoint_every": checkpoint_every}
    ranks.agree("training", run.settings | files)
    if resume is not None:
        run.load(resume)
        ranks.agree("resume", run.place())
    history, steps, xp = run.history, run.steps, model.xp

    started = time.perf_counter() - history.total_seconds
    x, y = xp.asarray(arrays["x_train"]), xp.asarray(arrays["y_train"])
    split = np.random.default_rng([seed, SPLIT]).permutation(n_all) if validation else np.arange(n_all)
    used, held_out = np.sort(split[validation:]), xp.asarray(np.sort(split[:validation]))
    x_validation, y_validation = x[held_out], y[held_out]
    x_test, y_test = (xp.asarray(arrays[k]) if evaluate else None for k in ("x_test", "y_test"))
    losses, wrong = xp.zeros(steps), xp.zeros(steps, xp.int64)  # of this epoch's batches; they stay on the device
    stepper = model.steppers[1 if _can_capture(model, optimizer) else 0](
        model, optimizer, x, y, n, batch, losses, wrong, lambda step: DECAYS[decay](step / (epochs * steps))
    )

    def over() -> bool:
        best = history.best_epoch
        return run.epoch == epochs or (patience is not None and best is not None and run.epoch - best >= patience)

    stop = False
    with (
        _Interrupt() as interrupt,
        tqdm(total=epochs, initial=run.epoch, disable=not progress or ranks.rank > 0, unit="epoch") as bar,
        np.errstate(over="ignore", invalid="ignore"),  # the loss is checked instead, with a better message
    ):
        while not over() and not stop:
            order = used[np.random.default_rng([seed, SHUFFLE, run.epoch]).permutation(n)]
            losses[: run.step], wrong[: run.step] = xp.asarray(run.losses), xp.asarray(run.wrong)
            epoch_started = time.perf_counter() - run.epoch_seconds
            stepper.begin(order, run.epoch * steps, run.step)
            i = run.step
            while i < steps and not stop:
                i += stepper.run(i)
                stop = ranks.any(interrupt.requested)
                if stop or i % stepper.check_every == 0 or i == steps:
                    stepper.collect(i)
                    _check_losses(losses[:i], run.epoch + 1)  # waits for a GPU
            seconds = time.perf_counter() - epoch_started
            stepper.end(i - run.step)
            stop = ranks.any(interrupt.requested)
            if i < steps:
                run.pause(i, losses, wrong, seconds)
            else:
                counts = np.full(steps, batch)
                counts[-1] = n - (steps - 1) * batch
                loss = float(to_numpy(losses) @ counts) / n
                errors = {"validation_error": model.error(x_validation, y_validation)} if validation else {}
                if evaluate:
                    errors["test_error"] = model.error(x_test, y_test)
                errors = ranks.same(errors)  # they decide when to stop
                run.finish_epoch(loss, 100.0 * int(wrong.sum()) / n, seconds, errors, keep_best=bool(restore_best))
                bar.update()
                shown = {name.replace("_", " "): f"{error:.2f} %" for name, error in errors.items()}
                bar.set_postfix({"loss": f"{loss:.4f}"} | shown)
            history.total_seconds = time.perf_counter() - started
            if save_state is not None and (stop or over() or run.epoch % checkpoint_every == 0):
                run.save(save_state)

    history.interrupted = not over()
    if not history.interrupted:
        history.final_epoch = history.best_epoch if restore_best else run.epoch
        if restore_best:
            model.load_state(run.best)
    return history


class _Eager:
    """Training steps, one operation after the other, on any device."""

    check_every = CHECK_EVERY  # steps between looks at the loss: a GPU has to wait for each look

    def __init__(
        self, model: MLP, optimizer: Optimizer, x: Array, y: Array, n: int, batch: int, losses: Array, wrong: Array,
        lr_factor: Callable[[int], float],
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.lr_factor = model, optimizer, lr_factor
        self.x, self.y, self.n, self.batch, self.losses, self.wrong = x, y, n, batch, losses, wrong
        self.parameters = model.parameters()

    def begin(self, order: np.ndarray, before: int, step: int) -> None:
        """Begin an epoch that sees the samples in this order, or go on with it at ``step``; ``before`` steps of the run
        are over when an epoch begins."""
        self.order, self.before = self.model.xp.asarray(order), before

    def run(self, i: int) -> int:
        """Do step ``i`` of the epoch, or some from there on; returns how many."""
        step = self.before + i  # of the whole run
        chosen = self.order[i * self.batch : (i + 1) * self.batch]
        labels = self.y[chosen]
        logits = self.model.forward(self.x[chosen], train=True, step=step)
        self.losses[i], grad = _softmax_cross_entropy(logits, labels)
        self.wrong[i] = (logits.argmax(axis=1) != labels).sum()
        self.model.backward(grad)
        self.optimizer.step(self.parameters, self.lr_factor(step))
        return 1

    def collect(self, i: int) -> None:
        """Make sure that the losses and counts of the epoch's steps before ``i`` are those of whole batches. All
        processes call it."""

    def end(self, done: int) -> None:
        """The epoch is over, or interrupted, after ``done`` steps since `begin`: model and optimiser are up to date."""


class _Captured(_Eager):
    """The same steps by `hashedmm.graph`: launches that a GPU repeats by itself, for what `_can_capture` says."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        model, optimizer = self.model, self.optimizer
        layers = []
        for linear, dropout in model.hashed_chain() or ():
            drawn = (dropout.seed, dropout._threshold) if dropout else (0, 0)
            values = linear.weight.value, linear.bias.value
            layers.append(graph.HashedLayer(linear.spec, *values, linear.kernel, drawn, linear.at))
        if isinstance(optimizer, SGD):
            factors = tuple(optimizer.gradient_factor(p.uses) for p in self.parameters.values())
            update = graph.Update("step_sgd", (optimizer.momentum,), factors)
        elif isinstance(optimizer, Adam):
            update = graph.Update("step_adam", tuple(1 - beta for beta in optimizer.betas))
        else:
            raise TypeError(f"optimizer must be SGD or Adam to be captured, got {type(optimizer).__name__}")
        self.steps = graph.Steps(
            layers, update, optimizer.buffers(self.parameters), self.x, self.y, self.n, self.batch, self.losses,
            self.wrong, **self.together(),
        )  # fmt: skip
        self.check_every = self.steps.steps

    def together(self) -> dict[str, Any]:
        """What `graph.Steps` has to know of the other processes."""
        return {}

    def begin(self, order: np.ndarray, before: int, step: int) -> None:
        rates = np.zeros((self.steps.steps, len(self.optimizer.rates(1))))
        for i in range(step, len(rates)):
            rates[i] = self.optimizer.rates(self.optimizer.steps + 1 + i - step, self.lr_factor(before + i))
        self.steps.load()
        self.steps.begin(order, rates, step=step, before=before)

    def run(self, i: int) -> int:
        return self.steps.run(i)

    def end(self, done: int) -> None:
        self.steps.store()
        self.optimizer.steps += done


MLP.steppers = _Eager, _Captured


def _hashed_layers(model: MLP) -> list[tuple[HashedLinear, Dropout | None]] | None:
    """Each hashed layer with the dropout that follows it; None if the model is anything but hashed layers with ReLU and
    perhaps dropout between them."""
    found: list[tuple[HashedLinear, Dropout | None]] = []
    kinds = [type(layer) for layer in model.layers]
    i = 0
    while i < len(kinds):
        last, dropped = i == len(kinds) - 1, kinds[i + 1 : i + 3] == [ReLU, Dropout]
        if kinds[i] is not HashedLinear or not (last or kinds[i + 1] is ReLU):
            return None
        found.append((model.layers[i], model.layers[i + 2] if dropped else None))  # type: ignore[arg-type]
        i += 1 if last else 3 if dropped else 2
    return found if found and kinds[-1] is HashedLinear else None


def _can_capture(model: MLP, optimizer: Optimizer) -> bool:
    """Whether a step can be made of this package's kernels alone: on a GPU, where dense layers need cuBLAS, which CuPy
    refuses inside a capture."""
    return model.xp is not np and type(optimizer) in (SGD, Adam) and model.hashed_chain() is not None


class _Run:
    """The state of a training run: all that the next step depends on, and what has been recorded."""

    KIND = "training state"

    def __init__(self, model: MLP, optimizer: Optimizer, steps: int) -> None:
        self.model, self.optimizer = model, optimizer
        self.steps = steps  # of an epoch
        self.settings: dict[str, Any] = {}
        self.history = History()
        self.best: dict[str, np.ndarray] = {}  # the parameters of the best epoch
        self.read_sha256 = ""  # of the file that it was loaded from
        self._begin_epoch(0)

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.epoch_seconds = epoch, 0, 0.0  # the next step's
        self.losses, self.wrong = np.zeros(0), np.zeros(0, np.int64)  # of the epoch's steps so far

    def pause(self, step: int, losses: Array, wrong: Array, seconds: float) -> None:
        """Note that the epoch is to go on at ``step``."""
        self.step, self.epoch_seconds = step, seconds
        self.losses, self.wrong = to_numpy(losses[:step]), to_numpy(wrong[:step])

    def finish_epoch(
        self, loss: float, train_error: float, seconds: float, errors: Mapping[str, float], *, keep_best: bool
    ) -> None:
        """Record an epoch."""
        history = self.history
        self._begin_epoch(self.epoch + 1)
        record = {"epoch": self.epoch, "loss": loss, "train_error": train_error, "seconds": seconds, **errors}
        for name, value in record.items():
            getattr(history, name).append(value)
        if "validation_error" in errors:
            best = history.best_epoch
            if best is None or errors["validation_error"] < history.validation_error[best - 1]:
                history.best_epoch = self.epoch
                self.best = self.model.state() if keep_best else {}

    def save(self, path: str | os.PathLike) -> None:
        document = {
            "settings": self.settings, "epoch": self.epoch, "step": self.step, "epoch_seconds": self.epoch_seconds,
            "history": asdict(self.history),
        }  # fmt: skip
        arrays = {"losses": self.losses, "wrong": self.wrong}
        model, optimizer = self.model.state(), self.model.gathered(self.optimizer.state())
        for group, state in (("model", model), ("optimizer", optimizer), ("best", self.best)):
            arrays |= {f"{group}/{name}": a for name, a in state.items()}
        if self.model.ranks.rank == 0:
            safefile.write(path, self.KIND, document, arrays)

    def place(self) -> dict[str, Any]:
        """Where a run that was loaded goes on, and from what: what all processes must have read alike."""
        return {"epoch": self.epoch, "step": self.step, "file": self.read_sha256}

    def load(self, path: str | os.PathLike) -> None:
        """Take the state of a file over, if it belongs to a run with the same settings; else ValueError."""
        document, arrays = safefile.read(path, self.KIND)
        self.read_sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        keys = {"settings", "epoch", "step", "epoch_seconds", "history"}
        if not isinstance(document, dict) or set(document) != keys:
            raise ValueError(f"{path}: a training state must hold exactly {', '.join(sorted(keys))}")
        differences = list(_differences(document["settings"], self.settings))
        if differences:
            raise ValueError(
                f"resume={path}: that run had other settings: {'; '.join(differences)}. Use its settings, or leave "
                "resume out to begin anew"
            )
        groups: dict[str, dict[str, np.ndarray]] = {"model": {}, "optimizer": {}, "best": {}, "": {}}
        for name, a in arrays.items():
            group, slash, rest = name.partition("/")
            groups.setdefault(group if slash else "", {})[rest if slash else name] = a
        shapes = self.model.shapes()
        check_arrays(groups["model"], shapes, f"{path}: the model's state")
        if groups["best"]:
            check_arrays(groups["best"], shapes, f"{path}: the best epoch's state")
        epoch, step = document["epoch"], document["step"]
        epoch = _integer(f"{path}: epoch", epoch, 0, self.settings["epochs"])
        step = _integer(f"{path}: step", step, 0, self.steps - 1)
        if groups[""].keys() != {"losses", "wrong"} or any(a.shape != (step,) for a in groups[""].values()):
            raise ValueError(f"{path}: a training state must hold losses and wrong, ({step},) each")
        try:
            history = History(**document["history"])
        except TypeError as e:
            raise ValueError(f"{path}: the history is not one: {e}") from None
        self.optimizer.load_state(self.model.shared_out(groups["optimizer"]))
        self.model.load_state(groups["model"])
        history.interrupted, history.final_epoch = False, None
        self.epoch, self.step, self.epoch_seconds = epoch, step, document["epoch_seconds"]
        self.history, self.best = history, groups["best"]
        self.losses, self.wrong = groups[""]["losses"], groups[""]["wrong"]


class _Interrupt:
    """Turns the first Ctrl-C into a request that a loop reads, and the second into KeyboardInterrupt.

    Python runs signal handlers in the main thread only, so that elsewhere this does nothing; nor does it where
    Ctrl-C is ignored. The handler that was there before is always put back.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if previous not in (None, signal.SIG_IGN):
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


def _check_losses(losses: Array, epoch: int) -> None:
    host = to_numpy(losses)
    if not np.isfinite(host).all():
        step = int(np.argmin(np.isfinite(host)))
        raise FloatingPointError(
            f"the loss became {host[step]} in epoch {epoch}, step {step + 1}: training diverged. Try a learning rate a "
            "tenth as large (and, for SGD on hashed layers, scale_by_uses=True), and check that the inputs are scaled "
            "to about [0, 1]"
        )


def _check_data(model: MLP, data: Any, evaluate: bool) -> dict[str, np.ndarray]:
    """The arrays of a data set on the host, float32 and int64, after every check that can be made before training."""
    features, classes = model.sizes[0], model.sizes[-1]
    arrays = {}
    for part in ("train", "test") if evaluate else ("train",):
        for name in (f"x_{part}", f"y_{part}"):
            a = getattr(data, name, None)
            if not hasattr(a, "dtype") or not hasattr(a, "ndim"):
                raise TypeError(f"data must have the array {name}, got {type(data).__name__} with {name}={a!r}")
            arrays[name] = to_numpy(a)
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.ndim != 2 or x.shape[1] != features or not len(x):
            raise ValueError(f"x_{part} must have the shape (n, {features}), n at least 1, got {x.shape}")
        if x.dtype.kind != "f":
            raise TypeError(f"x_{part} must be floating, got {x.dtype}; scale it first, e.g. x.astype('float32') / 255")
        if y.shape != (len(x),):
            raise ValueError(f"y_{part} must have the shape ({len(x)},), one label a sample, got {y.shape}")
        if y.dtype.kind not in "iu":
            raise TypeError(f"y_{part} must be integer labels, got {y.dtype}")
        if y.min() < 0 or y.max() >= classes:
            raise ValueError(
                f"y_{part} must hold labels from 0 to {classes - 1}, as the model has {classes} outputs, got "
                f"{y.min()} to {y.max()}"
            )
        arrays[f"x_{part}"] = x = np.ascontiguousarray(x, np.float32)
        arrays[f"y_{part}"] = y.astype(np.int64)
        if not np.isfinite(x).all():
            raise ValueError(f"x_{part} must be finite in float32, got NaN or infinities; clean the data first")
    return arrays


def _fingerprint(a: np.ndarray) -> dict[str, Any]:
    return {"shape": list(a.shape), "sha256": hashlib.sha256(np.ascontiguousarray(a).data).hexdigest()}


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value))


def unequal(theirs: Any, ours: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON documents differ: (path, what is there in the one, and in the other)."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted(theirs.keys() | ours.keys()):
            yield from unequal(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            yield from unequal(a, b, f"{name}[{i}]")
    elif theirs != ours:
        yield name, theirs, ours


def _differences(theirs: Any, ours: Any) -> Iterator[str]:
    """Where two JSON documents differ, one phrase each."""
    for name, a, b in unequal(theirs, ours):
        yield f"{name} was {a!r}, now it is {b!r}"
