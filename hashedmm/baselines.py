"""The other ways to compress a network, each in its standard minimal form, and what each stores, in bytes.

`network` makes any of them, hashed ones too, ready for `hashedmm.batched`. All get the same number of bytes: those of
the elementwise HashedNet of the same layers and compression (`budget`). What has to be stored to know which weights
there are (indices, seeds, scales) is paid from the same budget. Biases are float32 in every method.

=================  =====================================================================================================
method             what is stored
=================  =====================================================================================================
dense              every weight
small_dense        every weight of a network with fewer hidden units (`hashedmm.nn.equal_storage_width`)
hashed:STRUCTURE   the buckets of `HashSpec.STRUCTURE`
hashed8:STRUCTURE  four times as many buckets, in 8 bits each, and a scale a layer
random_edges       the weights left by a mask fixed at random before training, and its seed a layer (Ciresan et al.
                   2011; a baseline of Chen et al. 2015, section 6)
magnitude          the weights left by pruning the smallest during training (Han et al. 2015; the schedule is Zhu and
                   Gupta's, 2017), and which they are
obd                the same by the saliency of optimal brain damage (LeCun, Denker and Solla 1990)
low_rank           two factors U V of every matrix, both learned (Sainath et al. 2013)
low_rank_fixed     U alone: V is random, of variance 1 / inputs, and stays so (Denil et al. 2013, as in Chen et al.
                   2015, section 6); a seed a layer
fixed_point        every weight in 32 * compression bits, on a grid, rounded stochastically at every update (Gupta et
                   al. 2015); a byte a layer says where the point is
quantised          every weight in 32 * compression bits: trained, then retrained with rounding in the forward pass and
                   gradients passed straight through (Courbariaux et al. 2015; scales as in Esser et al. 2020); a scale
                   a layer
=================  =====================================================================================================

Imports hashing, nn and batched.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hashedmm.batched import ROUNDING_SEED, Layer, Network, Pruning, stochastic_rounding
from hashedmm.hashing import HASHES, HashSpec, derive_seed
from hashedmm.nn import INIT, MLP, STRUCTURES, _check_sizes, equal_storage_width

HASHED = tuple(s for s in STRUCTURES if s != "dense")
RIVALS = ("random_edges", "magnitude", "obd", "low_rank", "low_rank_fixed", "fixed_point", "quantised")
METHODS = (
    "dense", "small_dense", *(f"hashed:{s}" for s in HASHED), *(f"hashed8:{s}" for s in HASHED), *RIVALS,
)  # fmt: skip
# What follows the seed in numpy.random.default_rng([seed, purpose, layer]), beside those of hashedmm.nn.
MASK, FACTOR = 4, 5


# --------------------------------------------------------------------------------------------------------------------
# What may be stored


def layer_budget(d_in: int, d_out: int, compression: float) -> int:
    """Bytes for the weights of one layer: those of the elementwise hashed layer's buckets."""
    return 4 * max(1, round(d_in * d_out * compression))


def budget(layers: Sequence[int], compression: float) -> int:
    """Bytes for a network: those of the elementwise HashedNet of these layers, biases counted."""
    sizes = _check_sizes(layers)
    pairs = list(zip(sizes, sizes[1:], strict=False))
    return sum(layer_budget(d_in, d_out, compression) + 4 * d_out for d_in, d_out in pairs)


def index_bytes(size: int, kept: int) -> int:
    """What it takes to say which ``kept`` of ``size`` weights there are: a bit a weight, or ceil(log2 size) bits for
    each that is kept, whichever is less."""
    return min(-(-size // 8), -(-kept * max(1, math.ceil(math.log2(size))) // 8))


def most_kept(size: int, budget: int) -> int:
    """The most of ``size`` weights whose float32 values and indices fit into ``budget`` bytes."""
    by_bitmap = (budget - -(-size // 8)) // 4
    by_list = 8 * budget // (32 + max(1, math.ceil(math.log2(size))))
    kept = min(size, max(by_bitmap, by_list))
    if kept < 1:
        raise ValueError(f"{budget} bytes hold no weight and its place among {size}; take a larger compression")
    return kept


def bits_of(method: str, compression: float) -> int | None:
    """The bits of a weight in a method that stores all of them in fewer bits, None if it has no such format.

    fixed_point: 2 to 16 bits, two being the least that has a sign and a step. quantised: 1 to 16.
    """
    bits = 32 * compression
    least = 2 if method == "fixed_point" else 1
    return int(bits) if bits == int(bits) and least <= bits <= 16 else None


def available(method: str, compression: float) -> bool:
    """Whether a method has a form at a compression."""
    if method == "dense":
        return compression == 1
    if method in ("fixed_point", "quantised"):
        return bits_of(method, compression) is not None
    if method.startswith("hashed8:"):
        return 4 * compression <= 1
    return 0 < compression <= 1


def default_options(method: str, compression: float, epochs: int = 30) -> dict[str, Any]:
    """What the declared runs pass on beside the compression.

    Strips at less than 1/8: a panel of 128 x 784 weights owns few buckets there, so that few strips of height 128 fit
    side by side: T = 12 candidates at 1/64, and a strip of outputs sees only 12 different sums of its inputs.
    Candidates that overlap make more of the same buckets: ``stride`` is 128 * 8 * compression, rounded down to a power
    of two, which keeps T near the 98 that strips have at 1/8. At 1/64 this took the validation error (dropout 0.1) from
    4.93 to 3.00 %. (hashed8: the same rule for four times the buckets.)

    magnitude and obd prune after each epoch from a sixth of all to two thirds. quantised and hashed8 round from a third
    of all epochs on.
    """
    kind, _, structure = method.rpartition(":")
    if method in ("magnitude", "obd"):
        first = max(1, epochs // 6)
        return {"first": first, "last": max(first, 2 * epochs // 3)}
    options: dict[str, Any] = {}
    stored = 4 * compression if kind == "hashed8" else compression
    if structure == "strips" and stored < 1 / 8:
        options["stride"] = max(1, 2 ** math.floor(math.log2(1024 * stored)))
    if method == "quantised" or kind == "hashed8":
        options["begin"] = epochs // 3
    return options


# --------------------------------------------------------------------------------------------------------------------
# The networks


def network(
    layers: Sequence[int], method: str, compression: float, *, seed: int, dropout: float = 0.0, lr: float = 1e-3,
    decay: str = "linear", hash: str = "fmix32", options: Mapping[str, Any] | None = None,
) -> Network:  # fmt: skip
    """An untrained network.

    Parameters
    ----------
    layers : sizes of the network that is stood for
    method : one of `METHODS`
    compression : float
        Stored bytes / bytes of the dense weights.
    seed : of the hash or mask, initial values, order of samples, dropout and stochastic rounding
    dropout, lr, decay : as `Network` has them
    hash : the hash function of hashed methods
    options : of a structure's constructor; ``first`` and ``last`` of magnitude and obd, ``begin`` of quantised and
        hashed8, see `default_options`. None: none, and of those that are needed the defaults for 30 epochs.

    Raises
    ------
    TypeError, ValueError
        If the method is unknown, does not exist at this compression, or does not take an option.
    """
    sizes = _check_sizes(layers)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not available(method, compression):
        raise ValueError(f"{method} has no form at compression {compression!r}; see hashedmm.baselines.available")
    if hash not in HASHES:
        raise ValueError(f"hash must be one of {', '.join(HASHES)}, got {hash!r}")
    kind, _, structure = method.rpartition(":")
    own: list[str] = ["begin"] if method == "quantised" or kind == "hashed8" else []
    own = ["first", "last"] if method in ("magnitude", "obd") else own
    given = dict(options or {})
    settings = {k: given.pop(k, v) for k, v in default_options(method, compression).items() if k in own}
    takes = list(own)
    if kind:
        parameters = inspect.signature(getattr(HashSpec, structure)).parameters
        takes += [p for p in parameters if p not in ("shape", "compression", "seed", "hash")]
    for name in given:
        if name not in takes:
            raise TypeError(f"{method} takes {', '.join(takes) or 'no options'}; got {name}={given[name]!r}")
    learning: dict[str, Any] = {"dropout": dropout, "lr": lr, "decay": decay}

    if method in ("dense", "small_dense") or kind:
        stored = 4 * compression if kind == "hashed8" else compression
        how = {"structure": structure, "compression": stored, "hash": hash, **given} if kind else {"structure": "dense"}
        model = MLP(small_sizes(sizes, compression) if method == "small_dense" else sizes, seed=seed, **how)
        made = of_mlp(model, **learning)
        if kind == "hashed8":
            for layer in made.layers:
                layer.bits = 8
            made.quantise_from = settings["begin"]
        return made

    dense = MLP(sizes, structure="dense", seed=seed)
    pairs = [(linear.d_in, linear.d_out, np.array(linear.weight.value)) for linear in dense.linears]
    if method == "random_edges":
        made_layers = [_random_edges(*p, compression, [seed, MASK, i]) for i, p in enumerate(pairs)]
        return Network(made_layers, seed, **learning)
    if method in ("magnitude", "obd"):
        pruned = [
            Layer(d_in, d_out, w, kept=most_kept(w.size, layer_budget(d_in, d_out, compression)))
            for d_in, d_out, w in pairs
        ]
        return Network(pruned, seed, pruning=Pruning(method, **settings), **learning)  # type: ignore[arg-type]
    if method == "low_rank":
        rank = equal_rank(sizes, compression)
        factors: list[Layer] = []
        for i, (d_in, d_out, w) in enumerate(pairs):
            dense_too = rank * (d_in + d_out) >= d_in * d_out
            factors += [Layer(d_in, d_out, w)] if dense_too else _factors(d_in, d_out, rank, seed, i, trained=True)
        return Network(factors, seed, **learning)
    if method == "low_rank_fixed":
        factors = []
        for i, (d_in, d_out, _) in enumerate(pairs):
            rank = fixed_rank(d_in, d_out, compression)
            factors += _factors(d_in, d_out, rank, seed, i, trained=False)
        return Network(factors, seed, **learning)
    bits = bits_of(method, compression) or 0  # available() has said that there are some
    if method == "quantised":
        rounded = [Layer(d_in, d_out, w, bits=bits) for d_in, d_out, w in pairs]
        return Network(rounded, seed, quantise_from=settings["begin"], **learning)
    grids = []
    for i, (d_in, d_out, w) in enumerate(pairs):
        unit = grid_unit(d_in, bits)
        values = stochastic_rounding(w, unit, 2 ** (bits - 1), derive_seed(seed ^ ROUNDING_SEED, i))
        grids.append(Layer(d_in, d_out, values, grid=(bits, unit)))
    return Network(grids, seed, **learning)


def kind(layers: Sequence[int], method: str, compression: float) -> tuple[Any, ...]:
    """The `Network.kind` of `network`, without making one: what can be trained side by side."""
    sizes = small_sizes(layers, compression) if method == "small_dense" else _check_sizes(layers)
    pairs = list(zip(sizes, sizes[1:], strict=False))
    gathered = ":" in method or method in ("random_edges", "magnitude", "obd")
    shapes: list[tuple[Any, ...]] = []
    rank = equal_rank(sizes, compression) if method == "low_rank" else 0
    for d_in, d_out in pairs:
        if method == "low_rank_fixed":
            rank = fixed_rank(d_in, d_out, compression)
        if method == "low_rank_fixed" or (rank and rank * (d_in + d_out) < d_in * d_out):
            shapes += [(d_in, rank, False, method == "low_rank", False), (rank, d_out, True, True, False)]
        else:
            shapes.append((d_in, d_out, True, True, gathered))
    return *shapes, method == "quantised" or method.startswith("hashed8:")


def of_mlp(model: MLP, *, dropout: float | None = None, lr: float = 1e-3, decay: str = "linear") -> Network:
    """The network of an `MLP`, with its values; dropout is the model's unless given."""
    layers = [Layer(a.d_in, a.d_out, np.array(a.weight.value), a.spec) for a in model.linears]
    return Network(layers, model.seed, model.dropout if dropout is None else dropout, lr, decay)


def small_sizes(layers: Sequence[int], compression: float) -> list[int]:
    """Sizes of the small dense network whose stored values come nearest to the budget."""
    width = equal_storage_width(layers, budget(layers, compression) // 4)
    return [layers[0], *[width] * (len(layers) - 2), layers[-1]]


def equal_rank(layers: Sequence[int], compression: float) -> int:
    """The largest rank, the same for all matrices, whose factors fit into the budget. A matrix that is smaller than
    its factors would be, such as that of ten outputs at most compressions, is stored as it is."""
    pairs = list(zip(layers, layers[1:], strict=False))
    most = sum(layer_budget(d_in, d_out, compression) for d_in, d_out in pairs) // 4

    def values(rank: int) -> int:
        return sum(min(rank * (d_in + d_out), d_in * d_out) for d_in, d_out in pairs)

    if values(1) > most:
        raise ValueError(f"factors of rank 1 need {values(1)} values, and compression {compression:g} allows {most}")
    low, high = 1, max(layers)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if values(middle) <= most else (low, middle - 1)
    return low


def fixed_rank(d_in: int, d_out: int, compression: float) -> int:
    """The rank whose learned factor, d_out * rank values, and seed fit into the layer's budget; at least 1."""
    return max(1, (layer_budget(d_in, d_out, compression) - 4) // (4 * d_out))


def _factors(d_in: int, d_out: int, rank: int, seed: int, number: int, *, trained: bool) -> list[Layer]:
    """V (rank, d_in) of variance 1 / d_in, then U (d_out, rank) of variance 2 / rank: the product has He's variance."""
    rng = np.random.default_rng([seed, FACTOR, number])
    v = rng.standard_normal((rank, d_in), np.float32) * np.float32(math.sqrt(1 / d_in))
    u = rng.standard_normal((d_out, rank), np.float32) * np.float32(math.sqrt(2 / rank))
    return [Layer(d_in, rank, v, bias=False, trained=trained), Layer(rank, d_out, u)]


def _random_edges(d_in: int, d_out: int, _: np.ndarray, compression: float, stream: list[int]) -> Layer:
    """Exactly as many weights as the budget holds beside the seed, at random places, of He's variance for the number of
    inputs that an output is left with on average."""
    size = d_in * d_out
    kept = max(1, layer_budget(d_in, d_out, compression) // 4 - 1)
    rng = np.random.default_rng(stream)
    mask = np.zeros(size, bool)
    mask[rng.permutation(size)[:kept]] = True
    inputs = kept / d_out
    values = np.random.default_rng([stream[0], INIT, stream[2]]).standard_normal(kept, np.float32)
    return Layer(d_in, d_out, values * np.float32(math.sqrt(2 / max(1.0, inputs))), mask.reshape(d_out, d_in))


def grid_unit(d_in: int, bits: int) -> float:
    """The step of a fixed-point layer: the power of two nearest to sigma * min(1, 2^(4 - bits)), sigma = sqrt(2 / d_in)
    the standard deviation of initial weights. So the range is 8 sigma to either side, and 2 sigma with 2 bits."""
    return 2.0 ** round(math.log2(math.sqrt(2 / d_in) * min(1.0, 2.0 ** (4 - bits))))


# --------------------------------------------------------------------------------------------------------------------
# What a network costs


class Storage(NamedTuple):
    """Numbers that are stored, weights and biases; and bytes, with all that is needed to know what they are."""

    values: int
    bytes: int


def storage(network: Network) -> Storage:
    """What a trained network has to store. A hashed network's one seed is not counted, as `MLP.stored_bytes` does not;
    nor are the sizes of layers, in any method."""
    values = total = 0
    for layer in network.layers:
        size = layer.values.size if layer.kept is None else layer.kept
        if not layer.trained:
            total += 4  # a seed
            continue
        values += size + layer.bias * layer.d_out
        total += 4 * layer.d_out * layer.bias
        if layer.bits:
            total += -(-layer.bits * size // 8) + 4  # a scale
        elif layer.grid is not None:
            total += -(-layer.grid[0] * size // 8) + 1  # an exponent
        else:
            total += 4 * size
        if isinstance(layer.chosen, np.ndarray):
            total += 4  # a seed
        if layer.kept is not None:
            total += index_bytes(layer.values.size, layer.kept)
    return Storage(values, total)


class Operations(NamedTuple):
    """Arithmetic of the forward pass of one sample, biases and activations not counted."""

    multiply_adds: int
    additions: int


def operations(network: Network) -> Operations:
    """As the method would compute: a multiply-add for each weight that is kept, two factors one after the other. Strips
    sum first and multiply after (inputs * outputs / height additions, outputs * candidates * panels across
    multiply-adds); a codebook multiplies each codeword once and adds (Jegou et al. 2011); each where that is less than
    a multiply-add a weight, as for the other hashed layers."""
    multiply_adds = additions = 0
    for layer in network.layers:
        direct = layer.d_in * layer.d_out
        costs = [(layer.kept or direct, 0)]
        spec = layer.chosen
        if isinstance(spec, np.ndarray):
            costs = [(layer.values.size, 0)]
        elif spec is not None and spec.block[0] > 1 and spec.block[1] == 1:
            costs.append((
                sum(g.rows * g.candidates * g.grid_cols for g in spec.regions),
                sum(-(-g.rows // spec.block[0]) * g.cols for g in spec.regions),
            ))  # fmt: skip
        elif spec is not None and spec.structure == "codebook":
            costs.append((
                sum(g.grid_cols * g.candidates * g.panel_cols for g in spec.regions),
                sum(g.grid_cols * g.rows for g in spec.regions),
            ))  # fmt: skip
        best = min(costs, key=sum)
        multiply_adds, additions = multiply_adds + best[0], additions + best[1]
    return Operations(multiply_adds, additions)
