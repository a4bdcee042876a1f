"""Captured training steps: their launches, emulated, against the network's own steps; on a GPU, replayed."""

import itertools
import signal

import numpy as np
import pytest
from test_nn import blobs, small_model, without_seconds

from hashedmm import emulator, experiments, graph, matmul, nn
from hashedmm.build import kernel
from hashedmm.kernels import BUILT, CUDA, STEP
from hashedmm.matmul import KERNELS
from hashedmm.nn import MLP, SGD, Adam, Dropout, HashedLinear, Linear, ReLU, train

SAMPLES, BATCH, STEPS = 40, 7, 6  # the last batch has five samples
FACTOR = 0.9  # of the learning rate, a step


@pytest.fixture(autouse=True)
def needs_emulator(request):
    if not request.node.get_closest_marker("gpu") and not emulator.available():
        pytest.skip(emulator.why_not())


def net(sizes=(20, 33, 10), xp=np, structure="strips", **options):
    if structure == "strips":
        options |= {"height": 4, "small_layers": None}
    return MLP(sizes, structure=structure, xp=xp, **({"compression": 1 / 4, "dropout": 0.25, "seed": 3} | options))


def samples(xp=np, features=20, classes=10):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((SAMPLES, features)).astype(np.float32), rng.integers(0, classes, SAMPLES)
    return xp.asarray(x), xp.asarray(y)


class Side:
    """Training steps of one kind, eager or captured, on a network of their own."""

    def __init__(self, kind, make_optimizer, xp=np, **options):
        self.model, self.optimizer = net(xp=xp, **options), make_optimizer()
        self.losses, self.wrong = xp.zeros(STEPS), xp.zeros(STEPS, xp.int64)
        x, y = samples(xp, self.model.sizes[0], self.model.sizes[-1])
        self.stepper = kind(
            self.model, self.optimizer, x, y, SAMPLES, BATCH, self.losses, self.wrong, lambda step: FACTOR**step
        )

    def epoch(self, number, first=0, last=STEPS):
        order = np.random.default_rng(number).permutation(SAMPLES)
        self.stepper.begin(order, number * STEPS, first)
        i = first
        while i < last:
            i += self.stepper.run(i)
        self.stepper.end(i - first)
        return nn.to_numpy(self.losses), nn.to_numpy(self.wrong), self.model.state(), self.optimizer.state()


def close(a, b, tolerance=2e-6):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


OPTIMIZERS = {
    "Adam": lambda: Adam(1e-2),
    "Adam, other settings": lambda: Adam(1e-2, (0.8, 0.95), 1e-4),
    "SGD": lambda: SGD(0.1),
    "SGD, not scaled": lambda: SGD(0.01, 0.5, scale_by_uses=False),
}
NETS = {
    "strips": {},
    "elementwise": {"structure": "elementwise"},
    "no dropout": {"dropout": 0},
    "three layers": {"sizes": (20, 33, 17, 10), "structure": "panels", "panel": (8, 16), "small_layers": None},
    "one layer": {"sizes": (20, 10)},
    "many classes": {"sizes": (9, 33, 70), "dropout": 0.5},
    "one class": {"sizes": (5, 7, 1), "compression": 1.0},
}


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [*itertools.product(OPTIMIZERS, ["strips"]), *itertools.product(["Adam"], list(NETS)[1:]), ("SGD", "three layers")],
)
def test_steps_are_those_of_the_network(optimizer, options):
    """Two epochs, the first of them interrupted: losses, counts, parameters and the optimiser's memory."""
    eager, captured = (Side(kind, OPTIMIZERS[optimizer], **NETS[options]) for kind in (nn._Eager, nn._Captured))
    for part in ((0, 0, 4), (0, 4, STEPS), (1, 0, STEPS)):
        (losses, wrong, values, memory), got = eager.epoch(*part), captured.epoch(*part)
        close(got[0], losses)
        assert np.array_equal(got[1], wrong)
        for mine, theirs in ((got[2], values), (got[3], memory)):
            assert mine.keys() == theirs.keys()
            for name in theirs:
                close(mine[name], theirs[name])
    assert memory["steps"] == 2 * STEPS


@pytest.mark.parametrize("options", NETS)
def test_gradients_are_those_of_the_network(options):
    eager, captured = (Side(kind, Adam, **NETS[options]) for kind in (nn._Eager, nn._Captured))
    order = np.random.default_rng(5).permutation(SAMPLES)
    for side in (eager, captured):
        side.stepper.begin(order, 3 * STEPS, 2)
    eager.stepper.run(2)
    steps = captured.stepper.steps
    steps._gradients.fill(0)
    for what, plan in steps.launches.items():
        if what != "update":
            plan.run()
    for number, (name, parameter) in enumerate(eager.model.parameters().items()):
        got = steps._part(steps._gradients, number)
        np.testing.assert_allclose(got, parameter.grad, rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.abs(got).max() > 0 or parameter.grad.max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (50, 128), (3, 5)])
@pytest.mark.parametrize("rate", [0.25, 0.9, 2**-16, 1e-9])
def test_dropout_masks_are_the_same_bits(shape, rate):
    n, features = shape
    dropout = Dropout(rate, seed=0xDEADBEEF)
    values = STEP["step_activate"].values(1)
    for step in (0, 1, 1234, 2**31 - 2):
        y = np.ones((features, n), np.float32)
        clock = np.array([step % 5, 0, step - step % 5], np.int32)
        kernel("step_activate", values, "emulator")(
            (-(-y.size // 256),), (256,),
            (clock, np.zeros(features, np.float32), y, np.uint32(dropout.seed), np.uint32(dropout._threshold),
             np.float32(dropout._scale), np.int32(n), np.int32(n), np.int32(y.size), np.uint32(0), np.int32(n)),
        )  # fmt: skip
        assert np.array_equal(y.T, dropout.mask(shape, step))


@pytest.mark.parametrize("shape", [(7, 33), (50, 128), (3, 5)])
def test_dropout_masks_of_a_part_are_those_of_the_whole(shape):
    """Of some samples, or of some features, in rows that are longer than they need be."""
    n, features = shape
    dropout, values = Dropout(0.25, seed=5), STEP["step_activate"].values(1)
    for rows, samples in ((slice(1, features - 1), slice(0, n)), (slice(0, features), slice(1, n - 1))):
        expected = dropout.mask(shape, 9)[samples, rows].T
        height, mine = expected.shape
        pitch = mine + 3
        y = np.ones((height, pitch), np.float32)
        kernel("step_activate", values, "emulator")(
            (-(-height * mine // 256),), (256,),
            (np.array([4, 0, 5], np.int32), np.zeros(height, np.float32), y, np.uint32(dropout.seed),
             np.uint32(dropout._threshold), np.float32(dropout._scale), np.int32(mine), np.int32(pitch),
             np.int32(height * mine), np.uint32(rows.start * n + samples.start), np.int32(n)),
        )  # fmt: skip
        assert np.array_equal(y[:, :mine], expected) and (y[:, mine:] == 1).all()


def softmax(logits_cn, labels, bias=None):
    """(losses, wrong, gradient, bias gradient) by the kernel."""
    classes, n = logits_cn.shape
    g, gbias = np.full((classes, n), np.nan, np.float32), np.full(classes, np.nan, np.float32)
    losses, wrong = np.zeros(2), np.zeros(2, np.int64)
    bias = np.zeros(classes, np.float32) if bias is None else bias
    row = STEP["step_softmax"]
    kernel("step_softmax", row.parameters, "emulator")(
        (1,), row.block(row.parameters),
        (np.array([1, 0, 0], np.int32), np.arange(2 * n, dtype=np.int32), np.concatenate([labels, labels]), bias,
         logits_cn, g, gbias, losses, wrong, np.int32(classes), np.int32(n), np.int32(n), np.int32(n)),
    )  # fmt: skip
    assert losses[0] == wrong[0] == 0  # another step's
    return losses[1], wrong[1], g, gbias


@pytest.mark.parametrize(("classes", "n"), [(10, 50), (1, 3), (2, 1), (17, 64), (33, 65), (1100, 130)])
def test_softmax(classes, n):
    rng = np.random.default_rng(1)
    logits, bias = (5 * rng.standard_normal(s).astype(np.float32) for s in ((classes, n), classes))
    labels = rng.integers(0, classes, n)
    loss, wrong, g, gbias = softmax(logits, labels, bias)
    shown = (logits + bias[:, None]).T
    expected, grad = nn.softmax_cross_entropy(shown, labels)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert wrong == (shown.argmax(axis=1) != labels).sum()
    np.testing.assert_allclose(g, grad.T, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gbias, grad.sum(axis=0), rtol=1e-4, atol=1e-6)


def test_softmax_of_equals_and_of_what_is_not_finite():
    logits = np.array([[1, 2, 1e30], [3, 2, -1e30], [3, 2, 0]], np.float32)
    loss, wrong, _, _ = softmax(logits, np.array([2, 0, 0]))
    assert wrong == 1 and np.isfinite(loss)  # the first of equals is the answer
    for bad in (np.nan, np.inf):
        logits[1, 1] = bad
        assert np.isnan(softmax(logits, np.array([2, 0, 0]))[0])


def test_no_launch_of_a_step_has_races_or_reads_what_nobody_wrote():
    for make in (Adam, lambda: SGD(0.1)):
        captured = Side(nn._Captured, make)
        captured.stepper.begin(np.arange(SAMPLES), 0, 0)
        for what, plan in captured.stepper.steps.launches.items():
            for launch in getattr(plan, "launches", lambda plan=plan: [plan])():
                report = emulator.check(
                    *launch[:4], shared_mem=launch.shared_mem, order_dependent="grad_w" in what, seeds=2
                )
                assert report.ok, f"{what}: {report}"
            plan.run()


def test_nothing_is_allocated_or_planned_in_a_step(monkeypatch):
    captured = Side(nn._Captured, Adam)
    captured.stepper.begin(np.arange(SAMPLES), 0, 0)

    def refuse(*args, **kwargs):
        raise AssertionError("inside a step")

    for name in ("_plan", "empty", "zeros", "_contiguous", "_matrix"):
        monkeypatch.setattr(matmul, name, refuse)
    monkeypatch.setattr(graph.Steps, "_zeros", refuse)
    for i in range(STEPS):
        assert captured.stepper.run(i) == 1


def test_the_networks_arrays_stay_where_they_are():
    captured = Side(nn._Captured, Adam)
    arrays = {name: p.value for name, p in captured.model.parameters().items()}
    before = captured.model.state()
    captured.stepper.begin(np.arange(SAMPLES), 0, 0)
    captured.stepper.run(0)
    assert all(np.array_equal(a, before[name]) for name, a in arrays.items())
    captured.stepper.end(1)
    assert all(p.value is arrays[name] for name, p in captured.model.parameters().items())
    assert not any(np.array_equal(a, before[name]) for name, a in arrays.items())


# ---- graphs


def repeated(monkeypatch, sends=False):
    """What repeats a step on a GPU, with a list in place of the GPU."""
    done = []

    class Plan:
        def run(self):
            done.append(1)

    class Replay:
        def __init__(self, plans, count):
            self.count = len(plans) * count

        def launch(self):
            done.append(self.count)

    monkeypatch.setattr(graph._Repeated, "_capture", lambda self, plans, count: Replay(plans, count))
    plans = {"a": Plan()}
    if sends:
        plans |= {"b": Plan(), "sent": graph.Exchange(lambda: done.append("sent")), "c": Plan()}
    return graph._Repeated(plans, 0), done


def test_graphs_of_many_steps_and_of_one(monkeypatch):
    steps, done = repeated(monkeypatch)
    left = 40
    while left:
        left -= steps.run(left)
    assert done == [1, 16, 16, 1, 1, 1, 1, 1, 1, 1]
    left = 33
    while left:
        left -= steps.run(left)
    assert done[10:] == [16, 16, 1]


def test_a_step_is_cut_where_processes_send(monkeypatch):
    """Launches before and after are graphs of their own; a step at a time, and the first without a graph."""
    steps, done = repeated(monkeypatch, sends=True)
    assert [steps.run(40) for _ in range(3)] == [1, 1, 1]
    assert done == [1, 1, "sent", 1, 2, "sent", 1, 2, "sent", 1]


def test_the_last_batch_is_never_part_of_another_graph(monkeypatch):
    captured = Side(nn._Captured, Adam).stepper.steps
    asked = []
    for name in ("_whole", "_last"):
        monkeypatch.setattr(
            getattr(captured, name), "run", lambda most, name=name: asked.append((name, most)) or min(most, 3)
        )
    i = 0
    while i < STEPS:
        i += captured.run(i)
    assert asked == [("_whole", 5), ("_whole", 2), ("_last", 1)]


def test_too_many_activations():
    layers = [graph.HashedLayer(linear.spec, None, None) for linear in net().linears]
    with pytest.raises(ValueError, match="batch must be at most 65075256 for layers as wide as these"):
        graph.Steps(layers, graph.Update("step_adam", (0.1, 0.001)), (), np.zeros((1, 20)), None, 1, 2**26, None, None)


def test_cpu_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel must name a CUDA kernel .*got 'cpu_sketch'"):
        Side(nn._Captured, Adam, kernel="cpu_sketch")


@pytest.mark.parametrize("name", ["naive", "panel", "few_rows"])
def test_the_kernel_that_is_named_computes_the_forward_products(name):
    launches = Side(nn._Captured, Adam, kernel=name).stepper.steps.launches
    assert list(launches) == [
        "gather", f"0 matmul: {name}", "0 activate", f"1 matmul: {name}", "softmax", "1 grad_w: grad_w",
        "1 grad_x: grad_x", "0 activate_grad", "0 grad_w: grad_w", "update",
    ]  # fmt: skip


def test_what_can_be_captured():
    gpu = type("cupy", (), {})
    dropped, plain = net(), net(dropout=0)
    assert [d is not None for _, d in nn._hashed_layers(dropped)] == [True, False]
    assert [d for _, d in nn._hashed_layers(plain)] == [None, None]
    assert not nn._can_capture(dropped, Adam())  # NumPy
    dropped.xp = plain.xp = gpu
    assert nn._can_capture(dropped, Adam()) and nn._can_capture(plain, SGD(0.1))
    assert not nn._can_capture(dropped, type("Mine", (Adam,), {})())
    hashed = [HashedLinear(linear.spec, seed=0) for linear in plain.linears]
    for layers in (
        [hashed[0], Linear(33, 10, seed=0)], [*hashed], [hashed[0], Dropout(0.5), hashed[1]], [hashed[0], ReLU()], [],
        [ReLU(), *hashed], [hashed[0], ReLU(), Dropout(0.5), ReLU(), hashed[1]],
    ):  # fmt: skip
        plain.layers = layers
        assert not nn._can_capture(plain, Adam())


def test_kernels_of_a_step_are_built_and_are_no_products():
    assert STEP.keys() <= BUILT.keys() and not STEP.keys() & (CUDA.keys() | KERNELS.keys())
    with pytest.raises(ValueError, match="has no parameter 'WEIGHT'"):
        kernel("step_adam", {"THREADS": 256, "WEIGHT": "float"}, "emulator")


# ---- the training loop


@pytest.fixture
def captured(monkeypatch):
    """`train` takes captured steps for networks on NumPy arrays too."""
    monkeypatch.setattr(nn, "_can_capture", lambda model, optimizer: nn._hashed_layers(model) is not None)


RUN = {"epochs": 3, "batch": 50, "optimizer": Adam(5e-3), "progress": False}


@pytest.mark.parametrize("more", [{}, {"validation": 60, "patience": 1, "decay": "cosine", "optimizer": SGD(0.3)}])
def test_training_is_the_same(monkeypatch, more):
    one, other = small_model(), small_model()
    expected = train(one, blobs(), **(RUN | more))
    monkeypatch.setattr(nn, "_can_capture", lambda model, optimizer: True)
    history = train(other, blobs(), **(RUN | more))
    assert history.loss == pytest.approx(expected.loss, rel=1e-4)
    for name in ("epoch", "train_error", "validation_error", "test_error"):
        assert getattr(history, name) == pytest.approx(getattr(expected, name), abs=0.7)  # a sample or two
    assert history.best_epoch == expected.best_epoch and history.final_epoch == expected.final_epoch
    for name, a in one.state().items():
        np.testing.assert_allclose(other.state()[name], a, rtol=1e-3, atol=1e-4)


def interrupt_at(monkeypatch, at):
    """Ctrl-C during the step ``at`` of the whole training."""
    steps, real = itertools.count(), graph.Steps.run

    def run(self, step):
        if next(steps) == at:
            signal.raise_signal(signal.SIGINT)
        return real(self, step)

    monkeypatch.setattr(graph.Steps, "run", run)


@pytest.mark.parametrize("at", [0, 3, 6, 9])
def test_interrupted_and_resumed(captured, tmp_path, at):
    """After any step, the last of an epoch too: the same bits as a run without a break."""
    whole = small_model()
    expected = train(whole, blobs(), **RUN)
    broken = small_model()
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, at)
        part = train(broken, blobs(), save_state=tmp_path / "state", **RUN)
    assert part.interrupted and len(part.epoch) == (at + 1) // 7
    fresh = small_model()
    history = train(fresh, blobs(), resume=tmp_path / "state", **RUN)
    assert without_seconds(history) == without_seconds(expected)
    for name, a in whole.state().items():
        assert np.array_equal(fresh.state()[name], a)


def test_a_loss_that_diverges(captured):
    model = small_model(dropout=0)
    with pytest.raises(FloatingPointError, match=r"the loss became .* in epoch 1, step \d: training diverged"):
        train(model, blobs(), **(RUN | {"optimizer": SGD(1e30, 0)}))
    assert all(np.isfinite(a).all() for a in model.state().values())  # those of the last whole epoch


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("options", NETS)
def test_captured_steps_are_the_eager_ones_on_a_gpu(optimizer, options):
    import cupy

    eager, captured = (
        Side(kind, OPTIMIZERS[optimizer], xp=cupy, **NETS[options]) for kind in (nn._Eager, nn._Captured)
    )
    for part in ((0, 0, 4), (0, 4, STEPS), (1, 0, STEPS), (2, 0, STEPS)):
        (losses, _, values, _), got = eager.epoch(*part), captured.epoch(*part)
        close(got[0], losses, 1e-3)
        for name, a in values.items():
            np.testing.assert_allclose(got[2][name], a, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
def test_training_on_a_gpu_is_captured(monkeypatch):
    import cupy

    launched = []
    real = graph.Steps.run
    monkeypatch.setattr(graph.Steps, "run", lambda self, step: launched.append(real(self, step)) or launched[-1])
    here, there = small_model(), small_model(xp=cupy)
    data = blobs(n_train=1007)
    expected = train(here, data, **RUN)
    history = train(there, data, **RUN)
    assert sum(launched) == 3 * 21 and launched.count(graph.UNROLL) == 3
    assert history.loss == pytest.approx(expected.loss, rel=1e-2)
    for name, a in here.state().items():
        np.testing.assert_allclose(there.state()[name], a, rtol=5e-2, atol=5e-3)


@pytest.mark.gpu
def test_experiments_on_a_gpu(small_mnist, tmp_path, monkeypatch):
    data = small_mnist.subset(500, 200)
    monkeypatch.setattr(experiments, "DATASETS", {"mnist": lambda: data})
    runs = (experiments.Run("hashed:strips", 1 / 8, layers=(784, 64, 10), epochs=2),)
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"tiny": experiments.Experiment("tiny", "for tests", runs)})
    record = experiments.run_experiment("tiny", output=tmp_path / "tiny.json", progress=False, device="gpu")
    assert record["device"]["kind"] == "gpu" and record["command"] == "hashedmm experiment tiny --device gpu"
