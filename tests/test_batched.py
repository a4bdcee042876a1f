"""Networks side by side: as if each were trained alone, by formulas, by kernels in the emulator, and on a GPU."""

import itertools
import time

import numpy as np
import pytest

from hashedmm import baselines, batched, emulator, nn
from hashedmm.batched import Layer, LockStep, Network, Pruning, Samples, Teaching
from hashedmm.build import kernel
from hashedmm.datasets import Dataset
from hashedmm.hashing import HashSpec, derive_seed
from hashedmm.kernels import STEP
from hashedmm.nn import MLP, Adam

needs_emulator = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not() or "")
FEATURES, CLASSES = 20, 5
LAYERS = (FEATURES, 70, 66, CLASSES)  # layers under 64 outputs would be elementwise whatever the structure
EPOCHS, BATCH = 3, 16


@pytest.fixture(scope="module")
def toy():
    """A few samples of five classes that can be told apart, with a last batch that is not full."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((CLASSES, FEATURES))

    def part(n):
        y = rng.integers(0, CLASSES, n)
        return (centres[y] + 0.7 * rng.standard_normal((n, FEATURES))).astype(np.float32), y

    return Dataset("toy", *part(75), *part(41))


@pytest.fixture(scope="module")
def samples(toy):
    return Samples.of(toy)


def made(method, seed=0, compression=1 / 8, **settings):
    """An untrained network; pruning and rounding begin in the second of three epochs."""
    options = {"hashed:strips": {"height": 16, "stride": 8}, "hashed8:strips": {"height": 16, "begin": 1}}.get(method)
    if options is None:
        options = {k: {"first": 2, "last": 3, "begin": 1}[k] for k in baselines.default_options(method, compression)}
    compression = 1.0 if method == "dense" else compression
    return baselines.network(LAYERS, method, compression, seed=seed, options=options, **settings)


def trained(networks, samples, **settings):
    group = LockStep(networks, samples, **{"epochs": EPOCHS, "batch": BATCH} | settings)
    group.train()
    return group


def values(group, r):
    """All stored values and biases of network r."""
    return np.concatenate([a.ravel() for a in (*group.stored(r), *(b for _, b in group.matrices(r) if b is not None))])


MLPS = {
    "dense": {"structure": "dense"},
    "elementwise": {"structure": "elementwise", "compression": 1 / 4},
    "strips": {"structure": "strips", "height": 16, "compression": 1 / 4},
    "tiles": {"structure": "tiles", "tile": 8, "compression": 1 / 8},
    "codebook": {"structure": "codebook", "length": 4, "compression": 1 / 2},
    "xxh32": {"structure": "panels", "panel": (32, 16), "hash": "xxh32", "compression": 1 / 8},
}
METHODS = ("dense", "small_dense", "hashed:elementwise", "hashed:strips", "hashed8:strips", *baselines.RIVALS)


# The same as nn.train


@pytest.mark.parametrize("kinds", [("dense",), tuple(k for k in MLPS if k != "dense")], ids=["dense", "hashed"])
def test_each_network_is_trained_as_alone(kinds, toy, samples):
    settings = [(3, 0.25, 1e-3, "linear"), (5, 0.0, 3e-3, "cosine"), (8, 0.5, 1e-3, "constant")]
    cases = [(kind, *s) for kind, s in zip(itertools.cycle(kinds), settings * 2, strict=False)]
    models = [MLP(LAYERS, dropout=dropout, seed=seed, **MLPS[kind]) for kind, seed, dropout, _, _ in cases]
    networks = [
        baselines.of_mlp(m, lr=lr, decay=decay) for m, (*_, lr, decay) in zip(models, cases, strict=True)
    ]  # fmt: skip
    group = trained(networks, samples)
    for r, (model, result, (_, seed, _, lr, decay)) in enumerate(zip(models, group.results(), cases, strict=True)):
        before = model.state()
        history = nn.train(
            model, toy, epochs=EPOCHS, batch=BATCH, optimizer=Adam(lr), decay=decay, seed=seed, progress=False
        )
        assert max(np.abs(a - before[k]).max() for k, a in model.state().items()) > 1e-3  # it was a training
        for stored, (_, bias), linear in zip(group.stored(r), group.matrices(r), model.linears, strict=True):
            np.testing.assert_allclose(stored, linear.weight.value.ravel(), atol=2e-5)
            np.testing.assert_allclose(bias, linear.bias.value, atol=2e-5)
        np.testing.assert_allclose(result.loss, history.loss, rtol=1e-5)
        np.testing.assert_allclose(result.train_error, history.train_error)
        assert result.test_error == pytest.approx(history.final_test_error)
        assert result.validation_error is None


def test_validation_is_split_as_alone(toy, samples):
    model = MLP(LAYERS, structure="elementwise", seed=4)
    group = trained([baselines.of_mlp(model), made("hashed:elementwise", 9)], samples, validation=20)
    history = nn.train(
        model, toy, epochs=EPOCHS, batch=BATCH, seed=4, validation=20, restore_best=False, progress=False
    )
    first, second = group.results(evaluate=False)
    assert first.validation_error == pytest.approx(history.validation_error[-1]) and first.test_error is None
    np.testing.assert_allclose(values(group, 0)[:10], model.linears[0].weight.value[:10], atol=2e-5)
    assert not np.array_equal(group._used[4][1], group._used[9][1])


@pytest.mark.parametrize("method", METHODS)
def test_side_by_side_is_one_by_one(method, samples):
    """Another seed, dropout and learning rate beside it change nothing."""
    networks = [made(method, 1, dropout=0.2), made(method, 2, lr=3e-3), made(method, 3, decay="cosine")]
    group = trained(networks, samples)
    together = group.results()
    for r, network in enumerate(networks):
        alone = trained([network], samples)
        np.testing.assert_allclose(values(group, r), values(alone, 0), atol=2e-5)
        (result,) = alone.results()
        assert together[r].test_error == result.test_error and together[r].kept == result.kept


def test_all_that_looks_up_weights_goes_together(samples):
    """Hashes, masks and pruning, at different compressions, in one group."""
    networks = [
        made("hashed:elementwise", 1), made("hashed:strips", 2, 1 / 2), made("random_edges", 3), made("obd", 4),
        made("magnitude", 5, 1 / 4), made("hashed:codebook", 6, 1 / 2), made("obd", 7, 1 / 2),
    ]  # fmt: skip
    group = trained(networks, samples)
    for r in (1, 3, 6):
        np.testing.assert_allclose(values(group, r), values(trained([networks[r]], samples), 0), atol=2e-5)


def test_networks_of_different_kinds_are_refused(samples):
    for other in (made("hashed:elementwise"), made("small_dense"), made("quantised"), made("low_rank")):
        with pytest.raises(ValueError, match="all of one kind"):
            LockStep([made("dense"), other], samples, epochs=1, batch=4)
    for settings, message in (
        ({"batch": 100}, "batch must be at most 75"),
        ({"tf32": True}, "tf32 is a GPU's arithmetic"),
        ({"validation": 75}, "validation must be from 0 to 74"),
    ):
        with pytest.raises(ValueError, match=message):
            LockStep([made("dense")], samples, **{"epochs": 1, "batch": 4} | settings)
    with pytest.raises(ValueError, match="5 outputs, the labels need 6"):
        more = Samples(samples.x_train, samples.y_train + 1, samples.x_test, samples.y_test)
        LockStep([made("dense")], more, epochs=1, batch=4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"values": np.zeros((3, 2), np.float32)}, r"must choose among float32 values of the shape \(2, 3\)"),
        ({"values": np.zeros((2, 3))}, "got float64"),
        ({"chosen": HashSpec.elementwise((3, 2), 1.0)}, r"a choice for \(3, 2\)"),
        ({"kept": 7}, "kept must be from 1 to 6"),
        ({"trained": False}, "a dense factor without a bias"),
    ],
)
def test_wrong_layers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Layer(**{"d_in": 3, "d_out": 2, "values": np.zeros((2, 3), np.float32)} | change)


def test_a_loss_that_is_not_finite_is_reported(samples):
    group = LockStep([made("dense", lr=1e-3), made("dense", 6, lr=1e30)], samples, epochs=2, batch=BATCH)
    group.train()
    with pytest.raises(FloatingPointError, match=r"network 1 \(seed 6, lr 1e\+30\)"):
        group.results()


def test_groups_fit_into_memory():
    network = made("hashed:elementwise")
    one = network.nbytes(BATCH)
    assert batched.most_at_once(network, BATCH, free_bytes=10 * one, most=32) == 10
    assert batched.most_at_once(network, BATCH, free_bytes=0, most=32) == 1
    assert batched.most_at_once(network, BATCH, free_bytes=2**60, most=32) == 32


# Gradients


def matrix(layer, stored):
    """The weight matrix of a layer in float64, from its stored values, by the definition of each map."""
    stored = np.asarray(stored, np.float64)
    if layer.chosen is None:
        return stored.reshape(layer.d_out, layer.d_in)
    if isinstance(layer.chosen, HashSpec):
        bucket, sign = layer.chosen.indices()
        return sign * stored[bucket]
    w = np.zeros((layer.d_out, layer.d_in))
    w[layer.chosen] = stored
    return w


def exact_logits(network, stored, x):
    """The logits in float64; biases are 0, as they begin."""
    a = x.astype(np.float64)
    for number, (layer, of_layer) in enumerate(zip(network.layers, stored, strict=True)):
        a = a @ matrix(layer, of_layer).T
        if layer.bias and number < len(network.layers) - 1:
            a = np.maximum(a, 0)
    return a


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def gradients(network, samples, n):
    """The gradient of all stored values at the first step, on the first n samples in order."""
    group = LockStep([network], samples, epochs=1, batch=n)
    group._begin(0)
    group.order[0, :n] = np.arange(n)
    for run in group._plans[n][:-1]:  # without Adam
        run()
    return group


@pytest.mark.parametrize(
    "method", ["dense", "hashed:strips", "hashed:elementwise", "random_edges", "low_rank", "low_rank_fixed"]
)
@pytest.mark.parametrize("taught", [False, True], ids=["labels", "distilled"])
def test_gradients_against_finite_differences(method, taught, samples):
    n, rng = 8, np.random.default_rng(3)
    x, y = samples.x_train[:n], samples.y_train[:n]
    few = Samples(x, y, x, y)
    network = made(method, 2)
    teacher = rng.standard_normal((n, CLASSES)).astype(np.float32)
    if taught:
        network.teaching = Teaching(teacher, temperature=3.0, weight=0.7)

    def loss(stored):
        z = exact_logits(network, stored, x)
        hard = -log_softmax(z)[np.arange(n), y].mean()
        if not taught:
            return hard
        q = np.exp(log_softmax(teacher.astype(np.float64) / 3))
        return 0.3 * hard + 0.7 * 9 * -(q * log_softmax(z / 3)).sum(axis=1).mean()

    group = gradients(network, few, n)
    stored = [layer.values.astype(np.float64).ravel() for layer in network.layers]
    assert float(group.losses[0, 0]) == pytest.approx(loss(stored), rel=1e-5)
    for number, layer in enumerate(network.layers):
        if not layer.trained:
            continue
        grad = group.s.part(group.s.grads, group.s.weights[number][0])
        assert np.count_nonzero(grad) > grad.size / 10
        for k in [*rng.choice(np.flatnonzero(grad), 6, replace=False), rng.integers(grad.size)]:
            found = []
            for step in (1e-6, -1e-6):
                stored[number][k] += step
                found.append(loss(stored))
                stored[number][k] -= step
            assert grad[k] == pytest.approx((found[0] - found[1]) / 2e-6, rel=1e-3, abs=1e-6)


def test_a_fixed_factor_stays(samples):
    network = made("low_rank_fixed", 2)
    before = network.layers[0].values.copy()
    group = trained([network], samples)
    w, bias = group.matrices(0)[0]
    assert bias is None and np.array_equal(w, before)
    assert not np.array_equal(group.matrices(0)[1][0], network.layers[1].values)


# Pruning


@pytest.mark.parametrize("method", ["magnitude", "obd"])
def test_pruning_reaches_its_target_and_what_is_gone_stays_gone(method, samples):
    pruning = Pruning(method, first=1, last=3)
    layers = made(method).layers
    network = Network(layers, 0, pruning=pruning)
    group = LockStep([network], samples, epochs=4, batch=BATCH)
    left, masks = [], []
    group.train(lambda epoch: (left.append(group._kept(0)), masks.append(group.codes[0][0] != 0)))
    sizes = [layer.values.size for layer in layers]
    kept = [layer.kept for layer in layers]
    assert left[0] == [k + round((s - k) * (2 / 3) ** 3) for s, k in zip(sizes, kept, strict=True)]
    assert left[1] == [k + round((s - k) * (1 / 3) ** 3) for s, k in zip(sizes, kept, strict=True)]
    assert left[2] == left[3] == kept == group.results()[0].kept
    assert all((earlier >= later).all() for earlier, later in itertools.pairwise(masks))
    for (w, _), k in zip(group.matrices(0), kept, strict=True):
        assert np.count_nonzero(w) == k


def test_magnitude_removes_the_smallest(samples):
    group = LockStep([made("magnitude")], samples, epochs=1, batch=BATCH)
    before = np.abs(group.s.part(group.s.values, 0).copy())
    group._prune(0, 3)
    kept = (group.codes[0][0] != 0).ravel()
    assert kept.sum() == group.networks[0].layers[0].kept and before[kept].min() >= before[~kept].max()


def test_obd_adds_up_the_squared_gradient_of_each_sample(samples):
    """Against the gradients of one sample at a time."""
    n = 6
    few = Samples(samples.x_train[:n], samples.y_train[:n], samples.x_test, samples.y_test)
    group = gradients(made("obd", 5), few, n)
    group._add_fisher(n)
    singles = []
    for i in range(n):
        one = Samples(few.x_train[i : i + 1], few.y_train[i : i + 1], few.x_test, few.y_test)
        singles.append([gw[0].astype(np.float64) for gw in gradients(made("obd", 5), one, 1).gw])
    for number, h in enumerate(group._fisher):
        np.testing.assert_allclose(h[0], sum(single[number] ** 2 for single in singles), rtol=1e-3, atol=1e-8)
    saliency = (group._fisher[0][0] * group.w[0][0] ** 2).ravel()
    group._prune(0, 3)
    kept = (group.codes[0][0] != 0).ravel()
    assert saliency[kept].min() >= saliency[~kept].max()


# Rounding


def test_stochastic_rounding_is_unbiased_and_on_the_grid():
    values = np.array([0.30, -0.30, 0.03, 0.0, 0.25, 9.0, -9.0], np.float32)
    drawn = np.array([batched.stochastic_rounding(values, 0.25, 8, derive_seed(1, i)) for i in range(4000)])
    assert np.array_equal(drawn / 0.25, np.round(drawn / 0.25)) and drawn.min() == -2.0 and drawn.max() == 1.75
    assert (drawn[:, 4] == 0.25).all() and (drawn[:, 3] == 0).all()
    assert len(np.unique(drawn[:, 0])) == len(np.unique(drawn[:, 1])) == 2
    error = drawn[:, :3].mean(axis=0) - values[:3]
    assert np.abs(error).max() < 4 * 0.25 / 2 / np.sqrt(4000)
    many = np.full(20000, 0.1, np.float32)
    assert batched.stochastic_rounding(many, 1.0, 8, 5).mean() == pytest.approx(0.1, abs=0.01)  # and element by element


def test_fixed_point_weights_never_leave_the_grid(samples):
    network = made("fixed_point", 1, 1 / 8)
    bits, unit = network.layers[0].grid
    assert bits == 4
    group = trained([network], samples)
    stored = group.stored(0)[0] / unit
    assert np.array_equal(stored, np.round(stored)) and -8 <= stored.min() and stored.max() <= 7
    assert not np.array_equal(stored, network.layers[0].values.ravel() / unit)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_quantised_levels(bits, rng):
    w = rng.standard_normal(5000).astype(np.float32)
    levels = batched.quantised(w, bits)
    assert len(np.unique(levels)) <= 2**bits
    mean = np.abs(w).mean()
    if bits == 1:
        np.testing.assert_allclose(levels, np.where(w < 0, -mean, mean), rtol=1e-5)
        return
    most = 2 ** (bits - 1) - 1
    scale = 2 * mean / np.sqrt(most)
    inside = np.abs(w) < most * scale
    assert np.abs(levels - w)[inside].max() <= scale / 2 * 1.001
    np.testing.assert_allclose(np.abs(levels[~inside]), most * scale, rtol=1e-5)
    assert not batched.quantised(np.zeros(3, np.float32), bits).any()


@pytest.mark.parametrize("method", ["quantised", "hashed8:strips"])
def test_rounding_begins_when_it_is_told(method, samples):
    """From the second epoch on, the forward pass sees few levels; what is stored stays float32 meanwhile."""
    network = made(method, 1)
    bits = network.layers[0].bits
    group = LockStep([network], samples, epochs=3, batch=BATCH)
    segment, seen = group.s.weights[0][0], []
    group.train(lambda epoch: seen.append(len(np.unique(group.s.part(group.s.rounded, segment)))))
    size = network.layers[0].values.size
    assert seen[0] == size and seen[1] <= 2**bits >= seen[2]
    group.matrices(0)
    stored = group.stored(0)[0]
    assert len(np.unique(stored)) == size
    expected = batched.quantised(stored, bits)
    np.testing.assert_allclose(group.s.part(group.s.rounded, segment), expected, rtol=1e-6)
    found = group.matrices(0)[0][0]
    np.testing.assert_allclose(found, matrix(network.layers[0], expected), rtol=1e-5)


# The kernels


@needs_emulator
@pytest.mark.parametrize("method", METHODS)
def test_kernels_compute_what_the_formulas_say(method, samples):
    """In the emulator: every kernel, in whole trainings."""
    networks = [made(method, 1, dropout=0.25), made(method, 2, lr=2e-3)]
    if method == "hashed:strips":
        logits = np.random.default_rng(0).standard_normal((75, CLASSES)).astype(np.float32)
        networks[0].teaching = Teaching(logits, 4.0, 0.9)
        networks.append(made("random_edges", 3))
    agree(trained(networks, samples, epochs=2), trained(networks, samples, epochs=2, emulated=True))


def agree(formulas, kernels):
    """Two groups have come to the same, but for the few values that a rounding may tip over."""
    for r in range(formulas.R):
        a, b = values(formulas, r), values(kernels, r)
        scale = max(layer.grid[1] if layer.grid else 0.0 for layer in formulas.networks[r].layers)
        close = np.abs(a - b) < 1e-4
        assert close.all() if not scale else close.mean() > 0.99
    for one, other in zip(formulas.results(), kernels.results(), strict=True):
        np.testing.assert_allclose(one.loss, other.loss, rtol=2e-2 if scale else 1e-4)
        assert one.test_error == pytest.approx(other.test_error, abs=8) and one.kept == other.kept


@needs_emulator
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 31), (3, 70, 20), (1, 64, 97)])
def test_lookups_and_their_adjoint(shape, rng):
    """Codes of all signs, absent weights among them, for networks that stand upright and those that do not."""
    networks, rows, cols = shape
    codes = rng.integers(-50, 51, shape).astype(np.int32)
    upright = (np.arange(networks) % 2 == 0).astype(np.int32)
    stored, gw = rng.standard_normal(60).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    clock = np.zeros(3, np.int32)
    found = []
    for ops in (batched._Formulas(clock), batched._Kernels(clock, "emulator")):
        w, grads = np.full(shape, np.nan, np.float32), np.ones(60, np.float32)
        ops.weights(codes, upright, stored, w)()
        ops.scatter(codes, upright, gw, grads)()
        found.append((w, grads))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)
    # the adjoint: <W(v), G> = <v, W*(G)>
    assert (found[0][0].astype(np.float64) * gw).sum() == pytest.approx(
        (stored.astype(np.float64) * (found[0][1] - 1)).sum(), rel=1e-4, abs=1e-4
    )


@needs_emulator
def test_large_segments_are_cut_into_chunks(samples, monkeypatch):
    monkeypatch.setattr(batched, "CHUNK", 100)
    networks = [made("quantised", 1), made("quantised", 2)]
    agree(trained(networks, samples, epochs=2), trained(networks, samples, epochs=2, emulated=True))


@needs_emulator
def test_kernels_have_no_races():
    values = STEP["batch_scatter"].values(1)
    codes = np.arange(1, 41 * 33 + 1, dtype=np.int32).reshape(1, 41, 33) % 90 + 1
    args = (codes, np.ones(1, np.int32), np.ones((1, 41, 33), np.float32), np.zeros(90, np.float32), np.int32(41),
            np.int32(33))  # fmt: skip
    report = emulator.check(
        kernel("batch_scatter", values, "emulator"), (4,), STEP["batch_scatter"].block(values), args,
        order_dependent=True,
    )  # fmt: skip
    assert not report.problems
    n, features = 13, 40
    a, g = np.ones((1, n, features), np.float32), np.ones((1, n, features), np.float32)
    values = STEP["batch_activate_grad"].values(1)
    args = (a, g, np.zeros((1, features), np.float32), np.zeros(1, np.uint32), np.int32(features), np.int32(n))
    report = emulator.check(
        kernel("batch_activate_grad", values, "emulator"), (2,), STEP["batch_activate_grad"].block(values), args
    )
    assert not report.problems


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_computes_what_the_formulas_say(method, toy, samples):
    import cupy

    networks = [made(method, 1, dropout=0.25), made(method, 2, lr=2e-3)]
    if method == "hashed:strips":
        logits = np.random.default_rng(0).standard_normal((75, CLASSES)).astype(np.float32)
        networks[0].teaching = Teaching(logits, 4.0, 0.9)
        networks.append(made("random_edges", 3))
    agree(trained(networks, samples, epochs=2), trained(networks, Samples.of(toy, cupy), epochs=2))


@pytest.mark.gpu
def test_tf32_comes_near(toy):
    import cupy

    networks = [made("dense", 1)]
    exact, rounded = (trained(networks, Samples.of(toy, cupy), tf32=tf32) for tf32 in (False, True))
    difference = np.abs(values(exact, 0) - values(rounded, 0))
    assert 0 < difference.max() < 0.02


@pytest.mark.gpu
@pytest.mark.perf
@pytest.mark.parametrize("layers, most", [((784, 1000, 10), 1.0), ((784, 1000, 1000, 1000, 10), 2.5)])
def test_sixteen_networks_take_little_time_each(layers, most, mnist, capsys):
    """Seconds of a network of 30 epochs, from one epoch of MNIST after another one has compiled everything."""
    import cupy

    there = Samples.of(mnist, cupy)
    slow = []
    for method, compression in (
        ("dense", 1.0), ("small_dense", 1 / 8), ("low_rank", 1 / 8), ("quantised", 1 / 8), ("random_edges", 1 / 8),
        ("hashed:elementwise", 1 / 64), ("hashed:strips", 1 / 8),
    ):  # fmt: skip
        options = baselines.default_options(method, compression, epochs=1)
        networks = [
            baselines.network(layers, method, compression, seed=seed, dropout=0.25, options=options)
            for seed in range(16)
        ]  # fmt: skip
        for tf32 in (False, True):
            group = LockStep(networks, there, epochs=1, batch=100, tf32=tf32)
            group.train()
            cupy.cuda.Device().synchronize()
            began = time.perf_counter()
            group.train()
            cupy.cuda.Device().synchronize()
            seconds = time.perf_counter() - began
            each = 30 * seconds / len(networks)
            slow += [(method, each)] if each > most else []
            with capsys.disabled():
                print(f"\n{len(layers) - 2} hidden, {method}, tf32 {tf32}: {each:.3f} s a network", end="")
            del group
            cupy.get_default_memory_pool().free_all_blocks()
    assert not slow
