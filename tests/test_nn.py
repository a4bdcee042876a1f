"""Networks: gradients against central differences, optimisers against formulas, training, interrupting, resuming."""

import dataclasses
import json
import math
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from hashedmm import nn, reference
from hashedmm.hashing import HashSpec, bucket_loads, derive_seed, fmix32
from hashedmm.nn import (
    MLP,
    SGD,
    Adam,
    Dropout,
    HashedLinear,
    History,
    Linear,
    Parameter,
    ReLU,
    equal_storage_width,
    softmax_cross_entropy,
    train,
)

# Small enough that every structure has more than one candidate a block, odd enough to have ragged edges.
SPECS = {
    "elementwise": HashSpec.elementwise((13, 17), 1 / 4, seed=1),
    "panels": HashSpec.panels((13, 17), 1 / 4, panel=(5, 7), seed=2),
    "strips": HashSpec.strips((13, 17), 1 / 2, height=4, panel=(8, 9), seed=3),
    "strips_stride": HashSpec.strips((13, 17), 1 / 2, height=4, panel=(8, 9), stride=2, seed=3),
    "runs": HashSpec.runs((13, 17), 1 / 4, length=5, seed=4),
    "tiles": HashSpec.tiles((13, 17), 1 / 3, tile=4, seed=5),
    "codebook": HashSpec.codebook((13, 17), 1 / 4, length=3, seed=6),
}
OPTIONS = {
    "dense": {},
    "elementwise": {},
    "panels": {"panel": (32, 64)},
    "strips": {"height": 16, "panel": (32, 64), "stride": 8},
    "runs": {"length": 4},
    "tiles": {"tile": 8},
    "codebook": {"length": 4},
}


def numeric_gradient(f, a, h=1e-6):
    """Central differences of the scalar function f() with respect to the float64 array a, changed in place."""
    gradient = np.empty_like(a)
    for i in np.ndindex(a.shape):
        kept = a[i]
        a[i] = kept + h
        above = f()
        a[i] = kept - h
        below = f()
        a[i] = kept
        gradient[i] = (above - below) / (2 * h)
    return gradient


def to_float64(layer):
    """Let a layer compute in float64, so that central differences are exact enough to catch any wrong factor."""
    for parameter in layer.parameters().values():
        parameter.value = parameter.value.astype(np.float64)
        parameter.grad = np.zeros_like(parameter.value)


def check_layer(layer, rng, d_in, n=5):
    x = rng.standard_normal((n, d_in))
    to_float64(layer)
    if "bias" in layer.parameters():
        layer.bias.value[...] = rng.standard_normal(layer.bias.value.shape)
    y = layer.forward(x, train=True, step=3)
    weights = rng.standard_normal(y.shape)  # the loss is a random weighting of the outputs

    def loss():
        return float((layer.forward(x, train=True, step=3) * weights).sum())

    grad_x = layer.backward(weights)
    np.testing.assert_allclose(grad_x, numeric_gradient(loss, x), rtol=1e-6, atol=1e-7)
    assert np.abs(grad_x).max() > 0.1
    for parameter in layer.parameters().values():
        expected = numeric_gradient(loss, parameter.value)
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-6, atol=1e-7)
        assert np.abs(expected).max() > 0.1


# ---- layers


@pytest.mark.parametrize("name", SPECS)
def test_hashed_linear_gradients(name, rng):
    check_layer(HashedLinear(SPECS[name], seed=0), rng, 17)


def test_linear_gradients(rng):
    check_layer(Linear(17, 13, seed=0), rng, 17)


def test_relu_gradients(rng):
    check_layer(ReLU(), rng, 17)


def test_dropout_gradients(rng):
    check_layer(Dropout(0.3, seed=7), rng, 17)


@pytest.mark.parametrize("structure", ["dense", "strips"])
def test_mlp_gradients(structure, rng):
    options = {"height": 4, "panel": (4, 8), "small_layers": None} if structure == "strips" else {}
    model = MLP([6, 8, 7, 4], structure=structure, compression=1 / 2, dropout=0.2, seed=3, **options)
    for linear in model.linears:
        to_float64(linear)
    x, labels = rng.standard_normal((9, 6)), rng.integers(0, 4, 9)

    def loss():
        return float(softmax_cross_entropy(model.forward(x, train=True, step=11), labels)[0])

    model.backward(softmax_cross_entropy(model.forward(x, train=True, step=11), labels)[1])
    for name, parameter in model.parameters().items():
        expected = numeric_gradient(loss, parameter.value)
        np.testing.assert_allclose(parameter.grad, expected, rtol=1e-5, atol=1e-8, err_msg=name)
        assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("name", SPECS)
def test_hashed_linear_is_the_materialised_layer(name, rng):
    layer = HashedLinear(SPECS[name], seed=1)
    layer.bias.value[...] = rng.standard_normal(13)
    x = rng.standard_normal((6, 17)).astype(np.float32)
    w = reference.materialise(layer.weight.value.astype(np.float64), SPECS[name])
    np.testing.assert_allclose(layer.forward(x), x @ w.T + layer.bias.value, rtol=1e-5, atol=1e-5)
    assert layer.weight.uses == 13 * 17 / SPECS[name].n_buckets and layer.bias.uses == 1


@pytest.mark.parametrize("layer", [Linear(3, 2, seed=0), HashedLinear(HashSpec.elementwise((2, 3), 1), seed=0)])
def test_first_layer_skips_the_gradient_of_its_input(layer):
    x = np.ones((4, 3), np.float32)
    layer.forward(x, train=True)
    assert layer.backward(np.ones((4, 2), np.float32), need_grad_x=False) is None
    assert np.abs(layer.weight.grad).max() > 0


@pytest.mark.parametrize(
    "layer",
    [Linear(3, 3, seed=0), HashedLinear(HashSpec.elementwise((3, 3), 1), seed=0), ReLU(), Dropout(0.5)],
    ids=lambda layer: type(layer).__name__,
)
def test_backward_needs_a_training_forward(layer):
    x = np.ones((4, 3), np.float32)
    layer.forward(x, train=True)
    layer.forward(x)
    with pytest.raises(RuntimeError, match="needs forward"):
        layer.backward(x)


def test_initial_variance_is_that_of_the_virtual_fan_in():
    layer = HashedLinear(HashSpec.strips((1000, 784), 1 / 8), seed=[3, 2, 0])
    assert layer.weight.value.dtype == np.float32
    assert layer.weight.value.std() == pytest.approx(math.sqrt(2 / 784), rel=0.02)
    assert not layer.bias.value.any()
    # What the rule is for: the outputs vary as a dense layer's do, sum of d_in terms of variance 2 / d_in.
    x = np.random.default_rng(0).standard_normal((200, 784), dtype=np.float32)
    assert layer.forward(x).std() == pytest.approx(math.sqrt(2), rel=0.05)
    assert Linear(784, 1000, seed=1).forward(x).std() == pytest.approx(math.sqrt(2), rel=0.05)


def test_layers_reject_wrong_arguments():
    with pytest.raises(TypeError, match="spec must be a HashSpec"):
        HashedLinear((3, 4), seed=0)
    with pytest.raises(ValueError, match="d_in must be at least 1, got 0"):
        Linear(0, 3, seed=0)
    with pytest.raises(TypeError, match="d_out must be an integer"):
        Linear(3, 2.5, seed=0)


# ---- dropout


def test_dropout_mask_is_the_documented_hash():
    n, features, step, seed = 3, 5, 9, 123
    scale, threshold = 2**16 / (2**16 - 13107), 13107  # 0.2 * 65536, rounded
    expected = np.empty((n, features))
    for f in range(features):
        for s in range(n):
            i = f * n + s  # feature by feature
            word = fmix32(derive_seed(seed, step) ^ (i // 2 * 0x9E3779B1 & 0xFFFFFFFF))
            half = word >> 16 if i % 2 else word & 0xFFFF
            expected[s, f] = scale if half >= threshold else 0
    mask = Dropout(0.2, seed=seed).mask((n, features), step)
    assert mask.dtype == np.float32 and set(np.unique(mask)) == {0, np.float32(scale)}
    np.testing.assert_allclose(mask, expected, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_drops_the_rate_and_keeps_the_mean(rate):
    masks = np.array([Dropout(rate, seed=4).mask((50, 200), step) for step in range(20)])
    deviation = 5 * math.sqrt(rate * (1 - rate) / masks.size)  # five standard deviations of a fair draw
    assert (masks == 0).mean() == pytest.approx(rate, abs=deviation)
    assert masks.mean() == pytest.approx(1, abs=deviation / (1 - rate))
    per_unit = (masks == 0).mean(axis=(0, 1))  # no unit is dropped much more often than another
    assert np.abs(per_unit - rate).max() < 6 * math.sqrt(rate * (1 - rate) / 1000)


def test_dropout_masks_differ_between_steps_and_seeds_only():
    layer = Dropout(0.5, seed=4)
    first = layer.mask((50, 40), 7).copy()
    layer.mask((60, 40), 8)  # another size in between changes nothing
    assert np.array_equal(layer.mask((50, 40), 7), first)
    for other in (layer.mask((50, 40), 8), Dropout(0.5, seed=5).mask((50, 40), 7)):
        assert 0.4 < (other == first).mean() < 0.6


def test_dropout_outside_of_training_changes_nothing(rng):
    x = rng.standard_normal((4, 6)).astype(np.float32)
    assert np.array_equal(Dropout(0.5).forward(x), x)
    assert np.array_equal(Dropout(0.0).forward(x, train=True), x)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, math.nan, 1 - 1e-9])
def test_dropout_rejects_a_rate(rate):
    with pytest.raises(ValueError, match="dropout must"):
        Dropout(rate)


# ---- the loss


def test_softmax_cross_entropy_values_and_gradient(rng):
    logits, labels = rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    loss, grad = softmax_cross_entropy(logits, labels)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[np.arange(6), labels]).mean(), rel=1e-12)
    expected = numeric_gradient(lambda: float(softmax_cross_entropy(logits, labels)[0]), logits)
    np.testing.assert_allclose(grad, expected, atol=1e-9)


def test_softmax_cross_entropy_survives_huge_logits():
    logits = np.array([[1e30, 0, -1e30], [5e4, 5e4, 0]], np.float32)
    loss, grad = softmax_cross_entropy(logits, np.array([0, 1]))
    assert loss == pytest.approx(math.log(2) / 2) and np.isfinite(grad).all()


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        (np.array([0, 1, 3]), ValueError, "labels must be from 0 to 2, got 0 to 3"),
        (np.array([-1, 1, 2]), ValueError, "labels must be from 0 to 2, got -1 to 2"),
        (np.array([0.0, 1, 2]), TypeError, "labels must be integers"),
        (np.array([0, 1]), ValueError, r"labels \(n,\)"),
    ],
)
def test_softmax_cross_entropy_rejects_labels(labels, error, match):
    with pytest.raises(error, match=match):
        softmax_cross_entropy(np.zeros((3, 3), np.float32), labels)


# ---- networks


def test_mlp_layers_seeds_and_names():
    model = MLP([784, 300, 200, 10], compression=1 / 8, dropout=0.25, seed=42)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["HashedLinear", "ReLU", "Dropout", "HashedLinear", "ReLU", "Dropout", "HashedLinear"]
    assert [linear.spec.structure for linear in model.linears] == ["strips", "strips", "elementwise"]
    assert [linear.spec.seed for linear in model.linears] == [derive_seed(42, i) for i in range(3)]
    assert len({layer.seed for layer in model.layers if isinstance(layer, Dropout)}) == 2
    assert list(model.parameters()) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert model.virtual_weights == 784 * 300 + 300 * 200 + 200 * 10
    assert model.stored_values == sum(linear.spec.n_buckets for linear in model.linears) + 510
    assert model.stored_bytes == 4 * model.stored_values
    assert "strips" in model.summary() and f"{model.stored_values:,}" in model.summary() and "MLP" in repr(model)


def test_mlp_small_layers_take_their_own_structure():
    def structures(**options):
        model = MLP([784, 64, 63, 10], compression=1 / 2, **options)
        return ["dense" if linear.spec is None else linear.spec.structure for linear in model.linears]

    assert structures(structure="runs") == ["runs", "elementwise", "elementwise"]
    assert structures(structure="runs", length=4, small_layers=None) == ["runs"] * 3
    assert structures(structure="runs", small_layers="dense") == ["runs", "dense", "dense"]
    assert structures(structure="dense") == ["dense"] * 3


@pytest.mark.parametrize("structure", OPTIONS)
def test_mlp_config_round_trip(structure, rng):
    model = MLP([48, 80, 10], structure=structure, compression=1 / 4, dropout=0.1, seed=5, **OPTIONS[structure])
    config = json.loads(json.dumps(model.config()))
    again = MLP.from_config(config)
    x = rng.standard_normal((7, 48)).astype(np.float32)
    assert again.config() == model.config()
    assert np.array_equal(model.forward(x), again.forward(x))
    shapes = {name: p.value.shape for name, p in model.parameters().items()}
    assert nn.parameter_shapes(config) == shapes
    other = MLP([48, 80, 10], structure=structure, compression=1 / 4, dropout=0.1, seed=6, **OPTIONS[structure])
    assert not np.array_equal(model.forward(x), other.forward(x))


def test_mlp_options_reach_the_spec():
    model = MLP([200, 128, 100], compression=1 / 4, height=16, panel=(32, 50), stride=8, hash="xxh32", seed=1)
    expected = HashSpec.strips((128, 200), 1 / 4, 16, (32, 50), 8, seed=derive_seed(1, 0), hash="xxh32")
    assert model.linears[0].spec == expected


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"layers": [784]}, ValueError, "at least the inputs and the outputs"),
        ({"layers": 784}, TypeError, "layers must be a list of sizes"),
        ({"layers": "784"}, TypeError, "layers must be a list of sizes"),
        ({"layers": [784, 0, 10]}, ValueError, r"layers\[1\] must be at least 1, got 0"),
        ({"layers": [784, 10.0]}, TypeError, r"layers\[1\] must be an integer"),
        ({"structure": "stripes"}, ValueError, "structure must be one of dense, .*, got 'stripes'"),
        ({"small_layers": "tall"}, ValueError, "small_layers must be one of"),
        ({"compression": 0}, ValueError, "compression"),
        ({"compression": "1/8"}, TypeError, "compression"),
        ({"dropout": 1}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": "half"}, TypeError, "dropout must be a number, got 'half'"),
        ({"dropout": True}, TypeError, "dropout must be a number"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"seed": 2**32}, ValueError, "seed must be from 0"),
        ({"hash": "md5"}, ValueError, "hash must be one of"),
        ({"tile": 4}, TypeError, "structure 'strips' takes height, panel, stride; got tile=4"),
        ({"structure": "dense", "height": 4}, TypeError, "structure 'dense' takes no options"),
        ({"height": 0}, ValueError, "height must be at least 1"),
    ],
)
def test_mlp_rejects(arguments, error, match):
    with pytest.raises(error, match=match):
        MLP(**({"layers": [784, 100, 10]} | arguments))


def test_mlp_rejects_wrong_activations(rng):
    model = MLP([20, 70, 4])
    for x in (np.zeros((3, 21), np.float32), np.zeros(20, np.float32)):
        with pytest.raises(ValueError, match=r"x must have the shape \(n, 20\), got"):
            model.forward(x)
    with pytest.raises(TypeError, match=r"x must be float32 .*, got float64; use x.astype"):
        model.forward(np.zeros((3, 20)))
    with pytest.raises(ValueError, match="batch must be at least 1"):
        model.predict(np.zeros((3, 20), np.float32), batch=0)
    with pytest.raises(ValueError, match="the same length"):
        model.error(np.zeros((3, 20), np.float32), np.zeros(2, np.int64))


def test_mlp_predict_and_error(rng):
    model = MLP([20, 70, 4], structure="dense")
    x = rng.standard_normal((23, 20)).astype(np.float32)
    expected = model.forward(x).argmax(axis=1)
    assert np.array_equal(model.predict(x, batch=5), expected) and model.predict(x).dtype == np.int64
    y = expected.copy()
    y[:3] = (y[:3] + 1) % 4
    assert model.error(x, y) == pytest.approx(100 * 3 / 23)


def test_mlp_state_is_a_copy_and_loads_only_what_fits(rng):
    model = MLP([20, 70, 4], seed=1)
    state = model.state()
    before = {name: a.copy() for name, a in state.items()}
    model.parameters()["0.bias"].value += 1
    assert all(np.array_equal(state[name], before[name]) for name in state)
    model.load_state(state)
    assert not model.parameters()["0.bias"].value.any()
    for change, match in (
        ({"0.bias": None}, "lacks 0.bias"),
        ({"9.bias": np.zeros(3, np.float32)}, "has the unknown 9.bias"),
        ({"0.bias": np.zeros(69, np.float32)}, r"0.bias must be float32 \(70,\), got float32 \(69,\)"),
        ({"0.bias": np.zeros(70)}, "0.bias must be float32 .*, got float64"),
        ({"0.bias": np.full(70, np.nan, np.float32)}, "0.bias must be finite"),
    ):
        wrong = {name: a for name, a in (state | change).items() if a is not None}
        with pytest.raises(ValueError, match=match):
            model.load_state(wrong)
    assert all(np.array_equal(a, before[name]) for name, a in model.state().items())


@pytest.mark.parametrize("change", ["extra", "layers", "specs", "shape", "seed"])
def test_from_config_rejects(change):
    config = MLP([20, 70, 4]).config()
    if change == "extra":
        config["more"] = 1
    elif change == "layers":
        config["layers"] = [20, "70", 4]
    elif change == "specs":
        config["specs"] = config["specs"][:1]
    elif change == "shape":
        config["specs"][0]["shape"] = [70, 21]
    elif change == "seed":
        config["seed"] = 2**32
    with pytest.raises((ValueError, TypeError), match="config|layers|spec|seed"):
        MLP.from_config(config)


@pytest.mark.parametrize("layers", [[784, 1000, 10], [784, 1000, 1000, 1000, 10], [7, 5, 3]])
def test_equal_storage_width_is_the_nearest(layers):
    def stored(width):
        sizes = [layers[0], *[width] * (len(layers) - 2), layers[-1]]
        return sum((a + 1) * b for a, b in zip(sizes, sizes[1:], strict=False))

    assert stored(2) == MLP([layers[0], *[2] * (len(layers) - 2), layers[-1]], structure="dense").stored_values
    widths = range(1, 12_000)
    for target in (1, 40, 1000, 13_416, 100_180, stored(7), stored(7) + 1, stored(12) - 1):
        nearest = min(widths, key=lambda w: (abs(stored(w) - target), w))
        assert equal_storage_width(layers, target) == nearest


def test_equal_storage_width_rejects():
    with pytest.raises(ValueError, match="hidden layer"):
        equal_storage_width([784, 10], 1000)
    with pytest.raises(ValueError, match="stored must be at least 1"):
        equal_storage_width([784, 5, 10], 0)


# ---- optimisers


def selection(spec):
    """S with vec(W) = S w: one row a virtual weight, with its sign in the column of its bucket."""
    bucket, sign = spec.indices()
    s = np.zeros((bucket.size, spec.n_buckets))
    s[np.arange(bucket.size), bucket.ravel()] = sign.ravel()
    return s


def step_of_the_matrix(spec, rng, **options):
    """How one SGD step on w moves W, and the dense gradient G, as long vectors, for random x and gy."""
    layer = HashedLinear(spec, seed=0)
    x, gy = (rng.standard_normal((8, d)).astype(np.float32) for d in (spec.cols, spec.rows))
    before = reference.materialise(layer.weight.value.astype(np.float64), spec)
    layer.forward(x, train=True)
    layer.backward(gy)
    SGD(0.5, momentum=0, **options).step(layer.parameters())
    after = reference.materialise(layer.weight.value.astype(np.float64), spec)
    return (after - before).ravel(), (gy.T.astype(np.float64) @ x).ravel()


def test_sgd_scaled_by_uses_is_the_projected_dense_step(rng):
    spec = HashSpec.tiles((32, 48), 1 / 6, tile=16)  # one candidate: all buckets are used by exactly six weights
    s = selection(spec)
    assert np.array_equal(s.T @ s, 6 * np.eye(spec.n_buckets))
    moved, gradient = step_of_the_matrix(spec, rng)
    projection = s @ np.linalg.solve(s.T @ s, s.T)
    np.testing.assert_allclose(moved, -0.5 * projection @ gradient, atol=2e-5)
    assert np.abs(moved).max() > 1
    plain, gradient = step_of_the_matrix(spec, np.random.default_rng(42), scale_by_uses=False)
    np.testing.assert_allclose(plain, 6 * moved, atol=2e-4)  # the learning rate, multiplied by uses


def test_sgd_on_any_hash_divides_by_the_mean_use(rng):
    spec = HashSpec.elementwise((20, 30), 1 / 5, seed=3)
    s = selection(spec)
    assert np.array_equal(np.diag(s.T @ s), bucket_loads(spec))
    uses = HashedLinear(spec, seed=0).weight.uses
    assert uses == bucket_loads(spec).mean() == 5
    moved, gradient = step_of_the_matrix(spec, rng)
    np.testing.assert_allclose(moved, -0.5 / 5 * s @ s.T @ gradient, atol=2e-5)


def test_sgd_momentum_follows_its_formula(rng):
    value = rng.standard_normal(70000).astype(np.float32)  # more than one piece
    parameters = {"w": Parameter(value.copy(), uses=4.0)}
    expected, v = value.astype(np.float64), 0
    optimizer = SGD(0.1, momentum=0.8)
    for factor in (1.0, 0.5, 0.25):
        grad = rng.standard_normal(70000).astype(np.float32)
        parameters["w"].grad = grad
        optimizer.step(parameters, factor)
        v = 0.8 * v + grad / 4.0
        expected -= 0.1 * factor * v
    np.testing.assert_allclose(parameters["w"].value, expected, rtol=1e-5, atol=1e-6)


def test_adam_follows_its_formula(rng):
    value = rng.standard_normal((300, 400)).astype(np.float32)
    parameters = {"w": Parameter(value.copy(), uses=4.0)}
    expected, m, v = value.astype(np.float64), 0, 0
    optimizer = Adam(1e-2, betas=(0.8, 0.95), eps=1e-6)
    for t, factor in enumerate((1.0, 0.5, 0.25, 0.125), 1):
        grad = rng.standard_normal((300, 400)).astype(np.float32)
        parameters["w"].grad = grad
        optimizer.step(parameters, factor)
        m, v = 0.8 * m + 0.2 * grad, 0.95 * v + 0.05 * grad.astype(np.float64) ** 2
        expected -= 1e-2 * factor * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
    np.testing.assert_allclose(parameters["w"].value, expected, rtol=1e-5, atol=1e-6)


def test_adam_does_not_see_the_scale_of_gradients(rng):
    gradients = rng.standard_normal((5, 1000)).astype(np.float32)

    def values(optimizer, scale):
        parameters = {"w": Parameter(np.zeros(1000, np.float32))}
        for gradient in gradients:
            parameters["w"].grad = gradient * np.float32(scale)
            optimizer.step(parameters)
        return parameters["w"].value

    np.testing.assert_allclose(values(Adam(), 64), values(Adam(), 1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(values(SGD(0.1), 64), 64 * values(SGD(0.1), 1), rtol=1e-5)


@pytest.mark.parametrize("make", [Adam, lambda: SGD(0.1)])
def test_optimizer_pieces_and_state(make, rng, monkeypatch):
    gradients = rng.standard_normal((6, 1000)).astype(np.float32)

    def run(steps, optimizer, value):
        parameters = {"w": Parameter(value)}
        for gradient in gradients[steps]:
            parameters["w"].grad = gradient
            optimizer.step(parameters)
        return optimizer, value

    _, whole = run(slice(6), make(), np.ones(1000, np.float32))
    first, value = run(slice(3), make(), np.ones(1000, np.float32))
    second = make()
    second.load_state(first.state())
    run(slice(3, 6), second, value)
    assert np.array_equal(value, whole) and second.steps == 6
    monkeypatch.setattr(nn.Optimizer, "PIECE", 37)
    assert np.array_equal(run(slice(6), make(), np.ones(1000, np.float32))[1], whole)
    second.reset()
    assert np.array_equal(run(slice(6), second, np.ones(1000, np.float32))[1], whole)


def test_optimizer_changes_values_in_place():
    value = np.ones(10, np.float32)
    Adam().step({"w": Parameter(value, np.ones(10, np.float32))})
    assert (value < 1).all()


def test_optimizer_rejects():
    parameters = {"w": Parameter(np.zeros(3, np.float32))}
    with pytest.raises(RuntimeError, match="w has no gradient"):
        Adam().step(parameters)
    used = Adam()
    used.step({"w": Parameter(np.zeros(4, np.float32), np.zeros(4, np.float32))})
    parameters["w"].grad = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="mean/w .* another model"):
        used.step(parameters)
    with pytest.raises(ValueError, match="the state of SGD holds momentum; got mean/w, square/w"):
        SGD(0.1).load_state(used.state())
    with pytest.raises(ValueError, match="steps"):
        Adam().load_state({})


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: SGD(0), ValueError, "lr must be above 0, got 0"),
        (lambda: SGD(-1), ValueError, "lr must be at least 0"),
        (lambda: SGD("fast"), TypeError, "lr must be a number"),
        (lambda: SGD(0.1, momentum=1), ValueError, r"momentum must be in \[0, 1\)"),
        (lambda: SGD(0.1, scale_by_uses=2), TypeError, "scale_by_uses must be True or False"),
        (lambda: Adam(math.inf), ValueError, "lr must be"),
        (lambda: Adam(math.nan), ValueError, "lr must be"),
        (lambda: Adam(betas=0.9), TypeError, "betas must be a pair"),
        (lambda: Adam(betas=(0.9, 1)), ValueError, r"betas\[1\] must be in \[0, 1\)"),
        (lambda: Adam(eps=0), ValueError, "eps must be above 0"),
    ],
)
def test_optimizer_rejects_settings(make, error, match):
    with pytest.raises(error, match=match):
        make()


# ---- training


def blobs(n_train=330, n_test=100, features=20, classes=4, seed=0):
    """A small problem: noisy points around random centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, features))

    def part(n):
        y = rng.integers(0, classes, n)
        return (centres[y] + 0.7 * rng.standard_normal((n, features))).astype(np.float32), y

    (x_train, y_train), (x_test, y_test) = part(n_train), part(n_test)
    return SimpleNamespace(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def small_model(**options):
    return MLP([20, 64, 4], **({"compression": 1 / 2, "height": 8, "dropout": 0.2, "seed": 3} | options))


def without_seconds(history):
    return history.to_dict() | {"seconds": len(history.seconds), "total_seconds": 0, "seconds_per_epoch": 0}


@pytest.mark.parametrize("structure", OPTIONS)
def test_training_learns_with_every_structure(structure):
    model = MLP([20, 80, 4], structure=structure, compression=1 / 2, **OPTIONS[structure])
    data = blobs()
    before = model.error(data.x_test, data.y_test)
    history = train(model, data, epochs=12, batch=32, optimizer=Adam(5e-3), progress=False)
    assert history.test_error[-1] == model.error(data.x_test, data.y_test) == history.final_test_error
    assert history.test_error[-1] < min(15, before / 2)  # chance: 75 %
    assert history.loss[-1] < history.loss[0] / 2 and history.train_error[-1] < 15


@pytest.mark.parametrize("optimizer", [SGD(0.5), SGD(0.5, scale_by_uses=False)], ids=["scaled by uses", "not scaled"])
def test_one_sgd_rate_serves_strong_compression_if_scaled(optimizer):
    """At 64 weights a bucket a rate that suits a dense net is 64 times too large, unless it is divided by that."""
    model = MLP([20, 512, 4], structure="elementwise", compression=1 / 64, seed=1)
    if optimizer.scale_by_uses:
        assert train(model, blobs(), epochs=10, batch=32, optimizer=optimizer, progress=False).test_error[-1] < 15
    else:
        try:
            history = train(model, blobs(), epochs=10, batch=32, optimizer=optimizer, progress=False)
        except FloatingPointError:
            return
        assert history.loss[-1] > 100


def test_training_learns_digits(small_mnist):
    model = MLP([784, 200, 10], compression=1 / 8, seed=1)
    history = train(model, small_mnist, epochs=6, batch=20, progress=False)
    assert history.final_test_error < 20  # chance: 90 %
    assert model.stored_values < model.virtual_weights / 5


def test_history_of_a_plain_run():
    history = train(small_model(), blobs(), epochs=3, batch=50, progress=False)
    assert history.epoch == [1, 2, 3] and history.final_epoch == 3
    assert [len(v) for v in (history.loss, history.train_error, history.test_error, history.seconds)] == [3] * 4
    assert history.validation_error == [] and history.best_epoch is None and not history.interrupted
    assert history.seconds_per_epoch == sorted(history.seconds)[1]
    assert 0 < sum(history.seconds) <= history.total_seconds
    assert json.loads(json.dumps(history.to_dict()))["final_test_error"] == history.test_error[-1]
    assert History().seconds_per_epoch is None and History().final_test_error is None


def test_training_repeats_bit_for_bit():
    def run(**options):
        model = small_model()
        return without_seconds(train(model, blobs(), epochs=2, batch=50, progress=False, **options)), model.state()

    (history, state), (again, state_again), (other, state_other) = run(seed=5), run(seed=5), run(seed=6)
    assert history == again and all(np.array_equal(state[k], state_again[k]) for k in state)
    assert history != other and not all(np.array_equal(state[k], state_other[k]) for k in state)


def test_training_resets_the_optimiser():
    optimizer = Adam(1e-2)
    runs = []
    for _ in range(2):
        model = small_model()
        train(model, blobs(), epochs=1, batch=50, optimizer=optimizer, progress=False)
        runs.append(model.state())
    assert all(np.array_equal(runs[0][k], runs[1][k]) for k in runs[0])


def test_an_epoch_sees_every_sample_once_in_a_new_order(monkeypatch):
    data = blobs(n_train=107)
    seen, sizes = [], []
    forward = MLP.forward

    def spy(model, x, train=False, step=0):
        if train:
            sizes.append(len(x))
            seen.extend(x[:, 0].tolist())
        return forward(model, x, train, step)

    monkeypatch.setattr(MLP, "forward", spy)
    train(small_model(), data, epochs=2, batch=25, evaluate=False, progress=False)
    assert sizes == [25, 25, 25, 25, 7] * 2
    assert sorted(seen[:107]) == sorted(seen[107:]) == sorted(data.x_train[:, 0].tolist())
    assert seen[:107] != seen[107:]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [1] * 8),
        ("cosine", [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]),
    ],
)
def test_decay(decay, expected):
    class Spy(Adam):
        factors: list = []

        def step(self, parameters, lr_factor=1.0):
            self.factors.append(lr_factor)
            super().step(parameters, lr_factor)

    spy = Spy()
    spy.factors = []
    train(small_model(), blobs(n_train=200), epochs=2, batch=50, optimizer=spy, decay=decay, progress=False)
    assert spy.factors == pytest.approx(expected)


def test_the_loss_is_the_mean_over_samples():
    """With a last batch of one sample: each sample counts the same, not each batch."""
    data = blobs(n_train=51)
    model = small_model(dropout=0)
    expected, _ = softmax_cross_entropy(model.forward(data.x_train), data.y_train)
    history = train(model, data, epochs=1, batch=50, optimizer=Adam(1e-12), progress=False)
    assert history.loss[0] == pytest.approx(float(expected), rel=1e-5)


def test_validation_restores_the_best_epoch(monkeypatch):
    states = []
    finish = nn._Run.finish_epoch

    def spy(run, *args, **kwargs):
        finish(run, *args, **kwargs)
        states.append(run.model.state())

    monkeypatch.setattr(nn._Run, "finish_epoch", spy)
    model = small_model()
    options = {"epochs": 6, "batch": 50, "optimizer": Adam(0.03), "validation": 60, "progress": False}
    history = train(model, blobs(), **options)
    assert history.best_epoch == 1 + int(np.argmin(history.validation_error))
    assert history.best_epoch < 6, "choose settings for which the last epoch is not the best"
    assert history.final_epoch == history.best_epoch
    assert history.final_test_error == history.test_error[history.best_epoch - 1]
    assert all(np.array_equal(a, states[history.best_epoch - 1][name]) for name, a in model.state().items())
    history = train(last := small_model(), blobs(), restore_best=False, **options)
    assert history.final_epoch == 6 and history.final_test_error == history.test_error[-1]
    assert all(np.array_equal(a, states[-1][name]) for name, a in last.state().items())


def test_validation_samples_are_held_out(monkeypatch):
    data = blobs(n_train=100)
    trained, evaluated = set(), set()
    forward = MLP.forward

    def spy(model, x, train=False, step=0):
        (trained if train else evaluated).update(x[:, 0].tolist())
        return forward(model, x, train, step)

    monkeypatch.setattr(MLP, "forward", spy)
    train(small_model(), data, epochs=2, batch=10, validation=30, evaluate=False, progress=False)
    assert len(trained) == 70 and len(evaluated) == 30 and not trained & evaluated
    assert trained | evaluated == set(data.x_train[:, 0].tolist())


def test_patience_stops_early():
    options = {"epochs": 50, "batch": 50, "optimizer": Adam(0.03), "validation": 60, "progress": False}
    history = train(small_model(), blobs(), patience=3, **options)
    assert len(history.epoch) == history.best_epoch + 3 < 50
    assert not history.interrupted and history.final_epoch == history.best_epoch


def test_progress_bar(capsys):
    train(small_model(), blobs(), epochs=2, batch=50)
    assert "2/2" in (shown := capsys.readouterr().err) and "test error=" in shown and "loss=" in shown
    train(small_model(), blobs(), epochs=2, batch=50, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("structure", ["dense", "strips"])
def test_a_diverging_run_says_so(structure):
    model = MLP([20, 64, 4], structure=structure)
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) in epoch 1, step \d+: .* learning rate"):
        train(model, blobs(), epochs=3, batch=20, optimizer=SGD(1e30), progress=False)


# ---- interrupting and resuming


def interrupt_at(monkeypatch, steps, times=1):
    """Press Ctrl-C in the middle of training steps of the given numbers."""
    forward = MLP.forward

    def press(model, x, train=False, step=0):
        if train and step in steps:
            steps.remove(step)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return forward(model, x, train, step)

    monkeypatch.setattr(MLP, "forward", press)


RUN = {"epochs": 4, "batch": 50, "optimizer": Adam(0.02), "seed": 5, "progress": False}  # 7 steps an epoch


@pytest.mark.parametrize("validation", [0, 20], ids=["plain", "validation"])
@pytest.mark.parametrize("structure", ["dense", "strips"])
@pytest.mark.parametrize(
    "steps", [[0], [9], [6], [24], [3, 4, 13, 21]], ids=["first", "middle", "end of epoch", "late", "again and again"]
)
def test_interrupt_and_resume_bit_for_bit(structure, validation, steps, monkeypatch, tmp_path):
    options = RUN | {"validation": validation}
    make = {"dense": lambda: MLP([20, 64, 4], structure="dense", dropout=0.2), "strips": small_model}[structure]
    expected = make()
    expected_history = without_seconds(train(expected, blobs(), **options))

    steps = list(steps)
    interrupt_at(monkeypatch, steps)
    state = tmp_path / "run.safetensors"
    history = train(make(), blobs(), save_state=state, **options)
    parts = 1
    while history.interrupted:
        assert history.final_epoch is None and history.final_test_error is None and state.is_file()
        assert parts < 10
        model = make()
        model.parameters()["0.weight"].value[...] = 0  # all that counts is in the file
        history = train(model, blobs(), save_state=state, resume=state, **options)
        parts += 1
    assert parts > 1 and not steps
    assert without_seconds(history) == expected_history
    assert all(np.array_equal(a, expected.state()[name]) for name, a in model.state().items())
    assert [p.name for p in tmp_path.iterdir()] == [state.name]


def test_interrupt_in_the_last_step_finishes_the_run(monkeypatch):
    interrupt_at(monkeypatch, [27])
    history = train(small_model(), blobs(), **RUN)
    assert not history.interrupted and history.epoch == [1, 2, 3, 4]


def test_interrupt_without_a_file_returns_the_history(monkeypatch):
    interrupt_at(monkeypatch, [9])
    history = train(small_model(), blobs(), **RUN)
    assert history.interrupted and history.epoch == [1] and history.final_epoch is None


def test_a_second_interrupt_stops_at_once_and_the_handler_comes_back(monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    interrupt_at(monkeypatch, [3], times=2)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), blobs(), **RUN)
    assert signal.getsignal(signal.SIGINT) is handler
    train(small_model(), blobs(), **RUN)
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_in_another_thread_leaves_signals_alone():
    handler, seen, result = signal.getsignal(signal.SIGINT), [], []

    class Spy(Adam):
        def step(self, *args):
            seen.append(signal.getsignal(signal.SIGINT))
            super().step(*args)

    thread = threading.Thread(
        target=lambda: result.append(train(small_model(), blobs(), **(RUN | {"epochs": 1, "optimizer": Spy()})))
    )
    thread.start()
    thread.join()
    assert result[0].epoch == [1] and set(seen) == {handler}


def test_an_ignored_interrupt_stays_ignored(monkeypatch):
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt_at(monkeypatch, [3])
        assert train(small_model(), blobs(), **RUN).epoch == [1, 2, 3, 4]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)


def test_states_are_written_as_often_as_asked(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(nn._Run, "save", lambda run, path: written.append(run.epoch))
    train(small_model(), blobs(), save_state=tmp_path / "s", checkpoint_every=3, **(RUN | {"epochs": 5}))
    assert written == [3, 5]


def test_resuming_a_finished_run_gives_its_result(tmp_path):
    state = tmp_path / "run.safetensors"
    options = RUN | {"validation": 30, "patience": 2, "epochs": 30}
    first = train(done := small_model(), blobs(), save_state=state, **options)
    assert len(first.epoch) < 30
    again = train(model := small_model(seed=3), blobs(), resume=state, **options)
    assert without_seconds(again) == without_seconds(first) and again.seconds == first.seconds
    assert all(np.array_equal(a, done.state()[name]) for name, a in model.state().items())


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.safetensors"
    train(small_model(), blobs(), save_state=path, **(RUN | {"epochs": 1}))
    return path


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epochs": 2}, "epochs was 1, now it is 2"),
        ({"batch": 40}, "batch was 50, now it is 40"),
        ({"seed": 6}, "seed was 5, now it is 6"),
        ({"optimizer": Adam(0.01)}, "optimizer.lr was 0.02, now it is 0.01"),
        ({"optimizer": SGD(0.02)}, "optimizer.name was 'Adam', now it is 'SGD'"),
        ({"decay": "cosine"}, "decay was 'linear', now it is 'cosine'"),
        ({"validation": 10}, "validation was 0, now it is 10"),
        ({"evaluate": False}, "evaluate was True, now it is False"),
        ({"model": {"seed": 4}}, "model.seed was 3, now it is 4"),
        ({"model": {"compression": 1 / 4}}, r"model.specs\[0\].compression was 0.5, now it is 0.25"),
        ({"model": {"dropout": 0.1}}, "model.dropout was 0.2, now it is 0.1"),
        ({"data": {"n_train": 331}}, r"data.x_train.shape\[0\] was 330, now it is 331"),
        ({"data": {"seed": 1}}, "data.x_train.sha256 was"),
    ],
)
def test_resume_refuses_another_run(change, match, saved_run):
    change = dict(change)
    model, data = small_model(**change.pop("model", {})), blobs(**change.pop("data", {}))
    before = model.state()
    with pytest.raises(ValueError, match=match) as caught:
        train(model, data, resume=saved_run, **(RUN | {"epochs": 1} | change))
    assert "resume=" in str(caught.value)
    assert all(np.array_equal(a, before[name]) for name, a in model.state().items())


def test_resume_refuses_other_labels(saved_run):
    data = blobs()
    data.y_test = np.roll(data.y_test, 1)
    with pytest.raises(ValueError, match="data.y_test.sha256 was"):
        train(small_model(), data, resume=saved_run, **(RUN | {"epochs": 1}))


def test_resume_refuses_what_is_no_state(tmp_path):
    with pytest.raises(FileNotFoundError):
        train(small_model(), blobs(), resume=tmp_path / "none", **RUN)
    (tmp_path / "junk").write_bytes(b"not a state at all")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        train(small_model(), blobs(), resume=tmp_path / "junk", **RUN)


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (lambda d, a: d.pop("step"), "must hold exactly"),
        (lambda d, a: d.update(epoch=2), "epoch must be from 0 to 1, got 2"),
        (lambda d, a: d.update(step=7), "step must be from 0 to 6, got 7"),
        (lambda d, a: d.update(step=2), r"losses and wrong, \(2,\) each"),
        (lambda d, a: d["history"].update(more=1), "the history is not one"),
        (lambda d, a: a.pop("model/0.bias"), "lacks 0.bias"),
        (lambda d, a: a.update({"best/0.bias": a["model/0.bias"]}), "the best epoch's state lacks"),
        (lambda d, a: a.pop("optimizer/steps"), "steps"),
        (lambda d, a: a.pop("losses"), "losses and wrong"),
    ],
)
def test_resume_refuses_a_state_that_does_not_add_up(tamper, match, saved_run, tmp_path):
    document, arrays = nn.safefile.read(saved_run, "training state")
    tamper(document, arrays)
    nn.safefile.write(tmp_path / "s", "training state", document, arrays)
    with pytest.raises(ValueError, match=match):
        train(small_model(), blobs(), resume=tmp_path / "s", **(RUN | {"epochs": 1}))


# ---- wrong arguments, before any work


def changed(**changes):
    data = blobs()
    for name, change in changes.items():
        setattr(data, name, change(getattr(data, name)))
    return data


def with_value(value):
    def change(a):
        a = a.copy()
        a[3, ...] = value
        return a

    return change


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": "MLP"}, TypeError, "model must be an MLP, got str"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer"),
        ({"batch": 0}, ValueError, "batch must be at least 1"),
        ({"batch": 331}, ValueError, "batch must be at most 330, .*, got 331"),
        ({"batch": 301, "validation": 30}, ValueError, "batch must be at most 300"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be an SGD or Adam object"),
        ({"decay": "step"}, ValueError, "decay must be one of constant, linear, cosine, got 'step'"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"validation": 330}, ValueError, "validation must leave training samples: it must be below 330, got 330"),
        ({"validation": -1}, ValueError, "validation must be at least 0"),
        ({"patience": 2}, ValueError, "need validation="),
        ({"restore_best": True}, ValueError, "need validation="),
        ({"patience": 0, "validation": 9}, ValueError, "patience must be at least 1"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"save_state": "no/such/folder/s"}, ValueError, "save_state=no/such/folder/s: the folder .* does not exist"),
        ({"save_state": "."}, ValueError, "save_state must name a file, got the folder"),
        ({"data": None}, TypeError, "data must have the array x_train, got NoneType"),
        ({"data": changed(x_test=lambda x: None)}, TypeError, "data must have the array x_test"),
        ({"data": changed(x_train=lambda x: x[:, :19])}, ValueError, r"x_train must have the shape \(n, 20\).*got"),
        ({"data": changed(x_train=lambda x: x[:0])}, ValueError, "n at least 1"),
        ({"data": changed(x_train=lambda x: x.astype(np.uint8))}, TypeError, "x_train must be floating, got uint8"),
        ({"data": changed(x_train=with_value(np.nan))}, ValueError, "x_train must be finite"),
        ({"data": changed(x_test=with_value(np.inf))}, ValueError, "x_test must be finite"),
        ({"data": changed(y_train=lambda y: y[:-1])}, ValueError, r"y_train must have the shape \(330,\)"),
        ({"data": changed(y_train=lambda y: y * 1.0)}, TypeError, "y_train must be integer labels, got float64"),
        ({"data": changed(y_train=lambda y: y + 1)}, ValueError, "y_train must hold labels from 0 to 3.* got 1 to 4"),
        ({"data": changed(y_test=lambda y: y - 1)}, ValueError, "y_test must hold labels from 0 to 3.* got -1 to 2"),
    ],
)
def test_train_rejects_before_any_work(arguments, error, match):
    model = small_model()
    before = model.state()
    with pytest.raises(error, match=match):
        train(**({"model": model, "data": blobs(), "epochs": 1, "batch": 50, "progress": False} | arguments))
    assert all(np.array_equal(a, before[name]) for name, a in model.state().items())


def test_train_takes_other_dtypes_and_needs_no_test_set_if_not_asked(tmp_path):
    data = changed(x_train=lambda x: x.astype(np.float64), y_train=lambda y: y.astype(np.uint8))
    del data.x_test
    history = train(model := small_model(), data, epochs=1, batch=50, evaluate=False, progress=False)
    train(same := small_model(), blobs(), epochs=1, batch=50, progress=False)
    assert history.test_error == [] and history.final_test_error is None
    assert all(np.array_equal(a, same.state()[name]) for name, a in model.state().items())


def test_history_lists_are_documented():
    names = {f.name for f in dataclasses.fields(History)}
    assert all(name in History.__doc__ for name in names)


# ---- on a GPU


@pytest.mark.gpu
def test_cupy_trains_as_numpy_does():
    import cupy

    data = blobs()
    options = {"structure": "dense", "dropout": 0.2, "seed": 3}
    here, there = MLP([20, 64, 4], **options), MLP([20, 64, 4], xp=cupy, **options)
    history = train(here, data, epochs=2, batch=50, progress=False)
    on_gpu = train(there, data, epochs=2, batch=50, progress=False)
    assert all(type(p.value) is cupy.ndarray for p in there.parameters().values())
    assert on_gpu.loss == pytest.approx(history.loss, rel=1e-3)
    for name, a in here.state().items():
        np.testing.assert_allclose(there.state()[name], a, rtol=1e-2, atol=1e-3)
    assert np.array_equal(Dropout(0.3, seed=1).mask((7, 9), 5, cupy).get(), Dropout(0.3, seed=1).mask((7, 9), 5))
