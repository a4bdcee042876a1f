"""The rivals: what each stores, in bytes, counted here by hand; and that each is what it says."""

import math

import numpy as np
import pytest

from hashedmm import baselines, experiments, records
from hashedmm.baselines import available, budget, default_options, kind, network, operations, storage
from hashedmm.hashing import HashSpec, derive_seed
from hashedmm.nn import MLP

SHALLOW, DEEP = (784, 1000, 10), (784, 1000, 1000, 1000, 10)
COMPRESSIONS = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
METHODS = [m for m in baselines.METHODS if not m.startswith("hashed8:") or m == "hashed8:strips"]


def made(layers, method, compression, seed=0):
    return network(layers, method, compression, seed=seed, options=default_options(method, compression))


@pytest.fixture(scope="module")
def cases():
    """Every method at every compression and both depths."""
    return [
        (layers, method, c)
        for layers in (SHALLOW, DEEP) for method in METHODS for c in COMPRESSIONS if available(method, c)
    ]  # fmt: skip


def stored_bytes(layers, method, compression):
    """What a method stores, from its definition, without the package's own counting. And one unit of granularity:
    how much the least change of its size would change."""
    pairs = list(zip(layers, layers[1:], strict=False))
    biases = 4 * sum(layers[1:])
    weights = [a * b for a, b in pairs]
    if method == "small_dense":
        target = sum(4 * max(1, round(w * compression)) for w in weights) + biases

        def small(h):
            hidden = len(layers) - 2
            return 4 * ((layers[0] + 1) * h + (hidden - 1) * (h + 1) * h + (h + 1) * layers[-1])

        h = min(range(1, 1001), key=lambda h: abs(small(h) - target))
        return small(h), (small(h + 1) - small(h)) / 2
    if method.startswith("hashed"):
        structure = method.partition(":")[2]
        per, scale = (1, 4) if method.startswith("hashed8") else (4, 0)
        options = {k: v for k, v in default_options(method, compression).items() if k != "begin"}
        total = biases
        for a, b in pairs:
            which, more = (structure, options) if b >= 64 else ("elementwise", {})
            total += per * getattr(HashSpec, which)((b, a), compression * 4 / per, **more).n_buckets + scale
        return total, 4 * len(pairs) + 4 * 128 * len(pairs)
    if method == "random_edges":
        return biases + sum(4 * round(w * compression) for w in weights), 0
    if method in ("magnitude", "obd"):
        total = biases
        for w in weights:
            place = math.ceil(math.log2(w))
            limit = 4 * round(w * compression)
            bitmap = math.ceil(w / 8)
            most = max(k for k in ((limit - bitmap) // 4, limit * 8 // (32 + place)))
            total += min(4 * most + bitmap, 4 * most + math.ceil(most * place / 8))
        return total, 0
    if method == "low_rank":

        def factors(k):
            return sum(min(k * (a + b), a * b) for a, b in pairs)

        limit = sum(round(w * compression) for w in weights)
        k = max(k for k in range(1, 1001) if factors(k) <= limit)
        return biases + 4 * factors(k), 0
    if method == "low_rank_fixed":
        ranks = [max(k for k in range(1, 1001) if 4 * b * k + 4 <= 4 * round(a * b * compression)) for a, b in pairs]
        return biases + sum(4 * b * k + 4 for (_, b), k in zip(pairs, ranks, strict=True)), 0
    bits = 32 * compression
    extra = {"fixed_point": 1, "quantised": 4}[method]
    return biases + sum(math.ceil(bits * w / 8) + extra for w in weights), 8 * len(pairs)


def test_every_method_stores_what_the_elementwise_net_stores(cases):
    for layers, method, c in cases:
        of_elementwise = 4 * MLP(layers, structure="elementwise", compression=c).stored_values
        assert budget(layers, c) == of_elementwise
        expected, unit = stored_bytes(layers, method, c)
        found = storage(made(layers, method, c)).bytes
        assert found == expected, (layers, method, c)
        assert 0.9 * of_elementwise < found <= of_elementwise + unit, (layers, method, c)


def test_formats_that_do_not_exist_are_refused():
    assert [c for c in COMPRESSIONS if available("fixed_point", c)] == [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    assert [c for c in COMPRESSIONS if available("quantised", c)] == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert [c for c in COMPRESSIONS if available("hashed8:strips", c)] == [1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64]
    assert available("dense", 1.0) and not available("dense", 1 / 2) and not available("random_edges", 0.0)
    with pytest.raises(ValueError, match="fixed_point has no form at compression 0.03125"):
        network(SHALLOW, "fixed_point", 1 / 32, seed=0)
    with pytest.raises(ValueError, match="method must be one of dense, .* got 'sparse'"):
        network(SHALLOW, "sparse", 1 / 2, seed=0)
    with pytest.raises(TypeError, match="magnitude takes first, last; got height=3"):
        network((30, 20, 10), "magnitude", 1 / 2, seed=0, options={"height": 3})
    with pytest.raises(TypeError, match="random_edges takes no options; got begin=3"):
        network((30, 20, 10), "random_edges", 1 / 2, seed=0, options={"begin": 3})
    with pytest.raises(ValueError, match="hash must be one of fmix32"):
        network((30, 20, 10), "hashed:runs", 1 / 2, seed=0, hash="md5")
    with pytest.raises(ValueError, match="factors of rank 1 need"):
        network((30, 20, 10), "low_rank", 1 / 64, seed=0)
    with pytest.raises(ValueError, match="hold no weight and its place"):
        network((3, 2, 10), "magnitude", 1 / 64, seed=0)


@pytest.mark.parametrize("layers", [(784, 100, 10), (784, 100, 90, 80, 2)])
def test_the_kind_is_known_before_the_network(layers):
    for method in METHODS:
        for c in (1.0, 1 / 4, 1 / 8):
            if available(method, c):
                assert kind(layers, method, c) == made(layers, method, c).kind


def test_indices_take_the_cheaper_form():
    assert baselines.index_bytes(1000, 500) == 125  # a bit a weight
    assert baselines.index_bytes(1000, 10) == 13  # ten numbers of ten bits
    for size, limit in ((784_000, 49_000), (10_000, 624), (1000, 2000)):
        kept = baselines.most_kept(size, limit)
        assert 4 * kept + baselines.index_bytes(size, kept) <= limit
        assert 4 * (kept + 1) + baselines.index_bytes(size, kept + 1) > limit


def test_random_edges_are_exactly_as_many_and_random():
    one, other = (made((200, 150, 10), "random_edges", 1 / 8, seed) for seed in (1, 2))
    for layer, again in zip(one.layers, made((200, 150, 10), "random_edges", 1 / 8, 1).layers, strict=True):
        assert np.array_equal(layer.chosen, again.chosen) and np.array_equal(layer.values, again.values)
        assert layer.chosen.sum() == round(layer.d_in * layer.d_out / 8) - 1 == layer.values.size
    assert 0.05 < (one.layers[0].chosen & other.layers[0].chosen).sum() / one.layers[0].chosen.sum() < 0.2
    rows = one.layers[0].chosen.sum(axis=1)
    assert rows.std() == pytest.approx(math.sqrt(25 * 7 / 8), rel=0.25)  # as drawn without regard to rows
    assert one.layers[0].values.std() == pytest.approx(math.sqrt(2 / 25), rel=0.05)


@pytest.mark.parametrize("method", ["low_rank", "low_rank_fixed"])
def test_products_of_factors_begin_with_the_variance_of_a_dense_layer(method):
    layers = made((400, 300, 200), method, 1 / 4).layers
    v, u = layers[0].values, layers[1].values
    assert v.shape == (layers[0].d_out, 400) and u.shape == (300, layers[0].d_out)
    assert v.std() == pytest.approx(math.sqrt(1 / 400), rel=0.05)
    assert (u @ v).std() == pytest.approx(math.sqrt(2 / 400), rel=0.1)
    assert layers[0].trained is (method == "low_rank") and not layers[0].bias and layers[1].bias


@pytest.mark.parametrize(("bits", "unit"), [(16, 2.0**-16), (8, 2.0**-8), (4, 2.0**-4), (2, 2.0**-4)])
def test_fixed_point_formats(bits, unit):
    """sigma = sqrt(2 / 784) = 0.0505."""
    assert baselines.grid_unit(784, bits) == unit
    layer = made((784, 100, 10), "fixed_point", bits / 32).layers[0]
    assert layer.grid == (bits, unit)
    steps = layer.values / np.float32(unit)
    assert np.array_equal(steps, np.round(steps))
    assert -(2 ** (bits - 1)) <= steps.min() and steps.max() <= 2 ** (bits - 1) - 1
    assert layer.values.std() == pytest.approx(math.sqrt(2 / 784), rel=0.05 if bits > 4 else 0.5)


def test_a_hashed_network_is_the_mlp():
    options = {"height": 16, "stride": 8}
    model = MLP((90, 80, 10), structure="strips", compression=1 / 4, seed=3, hash="xxh32", **options)
    made_here = network((90, 80, 10), "hashed:strips", 1 / 4, seed=3, hash="xxh32", options=options)
    for layer, linear in zip(made_here.layers, model.linears, strict=True):
        assert layer.chosen == linear.spec and np.array_equal(layer.values, linear.weight.value)
    assert made_here.layers[0].chosen.seed == derive_seed(3, 0)
    eight = network((90, 80, 10), "hashed8:strips", 1 / 16, seed=3, options={"height": 16, "begin": 4})
    assert eight.layers[0].chosen == HashSpec.strips((80, 90), 1 / 4, height=16, seed=derive_seed(3, 0))
    assert eight.quantise_from == 4 and all(layer.bits == 8 for layer in eight.layers)


def test_operations_are_counted_as_the_method_computes():
    dense = operations(made(SHALLOW, "dense", 1.0))
    assert dense == (794_000, 0) == operations(made(SHALLOW, "hashed:elementwise", 1 / 8))
    assert operations(made(SHALLOW, "quantised", 1 / 8)) == dense
    small = made(SHALLOW, "small_dense", 1 / 8)
    width = small.layers[0].d_out
    assert operations(small) == (794 * width, 0)
    pruned = made(SHALLOW, "magnitude", 1 / 8)
    assert operations(pruned) == (sum(layer.kept for layer in pruned.layers), 0)
    assert operations(made(SHALLOW, "random_edges", 1 / 8)).multiply_adds == 99_248
    # 8 strips add up 784 inputs each; an output multiplies 98 sums, or 79 in the last panel, of 104 rows
    spec = made(SHALLOW, "hashed:strips", 1 / 8).layers[0].chosen
    assert spec.block == (128, 1) and [g.rows for g in spec.regions] == [896, 104]
    candidates = [round(rows * 784 / 8) // 128 for rows in (128, 104)]
    found = operations(made(SHALLOW, "hashed:strips", 1 / 8))
    assert found == (896 * candidates[0] + 104 * candidates[1] + 10_000, 8 * 784)
    # codebooks of 8 inputs: each of 98 groups multiplies its T codewords once, and every output adds one up
    spec = made(SHALLOW, "hashed:codebook", 1 / 8).layers[0].chosen
    assert operations(made(SHALLOW, "hashed:codebook", 1 / 8)) == (
        98 * 8 * spec.regions[0].candidates + 10_000, 98 * 1000
    )  # fmt: skip
    rank = baselines.equal_rank(SHALLOW, 1 / 8)
    assert operations(made(SHALLOW, "low_rank", 1 / 8)) == (1784 * rank + 10_000, 0)


def test_a_shipped_row_lands_in_its_error_bar(tmp_path):
    """The cheapest row of the paper's table, with one of its seeds."""
    name, label = "variants", "rect 784-1000-2 small_dense 1/64"
    try:
        record = records.read(name)
    except FileNotFoundError:
        pytest.skip(f"there is no data/results/{name}.json yet")
    again = experiments.rerun(name, label, record=record, seeds=(0,), folder=tmp_path)
    assert again.agrees, (again, again.allowed)
