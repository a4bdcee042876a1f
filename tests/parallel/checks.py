"""Checks that every rank makes together: `mpiexec -n N python checks.py FOLDER [cupy]`; started by test_parallel.py.

The first failure ends all ranks with a traceback; the last line says how many checks passed. With 2 ranks a training is
interrupted, and its state left in the folder; 3 ranks go on from it. Imports hashedmm and mpi4py.
"""

import contextlib
import importlib
import itertools
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from mpi4py import MPI

from hashedmm import cpu, emulator, graph, nn, parallel
from hashedmm.checkpoint import load_model, save_model
from hashedmm.hashing import HashSpec
from hashedmm.nn import MLP, SGD, Adam, Dropout, HashedLinear, train
from hashedmm.parallel import DataParallel, PanelLinear, PanelParallel, PartDropout, Ranks, bounds, world

FOLDER = Path(sys.argv[1])
xp = importlib.import_module(sys.argv[2] if len(sys.argv) > 2 else "numpy")
STATE = FOLDER / "interrupted.state"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# (16, 32): 6 rows of panels for 96 outputs, the last of 70 outputs a ragged one; 70 and 12 are no multiples of ranks.
STRIPS = {"structure": "strips", "compression": 1 / 2, "height": 8, "panel": (16, 32)}
NETS = {
    "two split": ((20, 96, 70, 4), {**STRIPS, "dropout": 0.25}),
    "whole below": ((20, 12, 96, 4), {**STRIPS, "dropout": 0.25}),
    "split at the end": ((20, 96, 80), {**STRIPS, "compression": 1 / 4, "stride": 4}),
    "panels": ((20, 96, 4), {"structure": "panels", "compression": 1 / 4, "panel": (16, 16)}),
    "elementwise": ((20, 96, 4), {"structure": "elementwise", "compression": 1 / 4}),
    "dense": ((20, 33, 4), {"structure": "dense", "dropout": 0.5}),
}
EPOCHS, BATCH = 2, 47  # 330 samples: the last batch of an epoch has one, so that other ranks get none
RUN = {"epochs": EPOCHS, "batch": BATCH, "progress": False, "seed": 5}


def net(name="two split", **changes):
    sizes, options = NETS[name]
    return MLP(sizes, **{"seed": 3, "xp": xp, **options, **changes})


def blobs():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((4, 20))
    y = rng.integers(0, 4, 430)
    x = (centres[y] + 0.7 * rng.standard_normal((430, 20))).astype(np.float32)
    return SimpleNamespace(x_train=x[:330], y_train=y[:330], x_test=x[330:], y_test=y[330:])


DATA = blobs()


def close(a, b):
    np.testing.assert_allclose(nn.to_numpy(a), nn.to_numpy(b), **CLOSE)


@contextlib.contextmanager
def raises(kind, *parts):
    try:
        yield
    except kind as e:
        missing = [part for part in parts if part not in str(e)]
        assert not missing, f"{missing} is not in: {e}"
    else:
        raise AssertionError(f"no {kind.__name__}")


def of_rank(rank, size, dtype="float32"):
    """The array that a rank sends: every rank can make every other's."""
    return (100 * np.random.default_rng([rank, size]).standard_normal(size)).astype(dtype)


# What ranks send each other


def check_sums_are_in_the_order_of_ranks(ranks):
    for n, dtype in itertools.product((0, 1, 2, 7, 1000), ("float32", "int64")):
        total = of_rank(0, n, dtype)
        for rank in range(1, ranks.size):
            total = total + of_rank(rank, n, dtype)
        mine = xp.asarray(of_rank(ranks.rank, n, dtype))
        assert ranks.allreduce(mine) is mine
        assert np.array_equal(nn.to_numpy(mine), total)
        at = [0, *[n // 3] * (ranks.size - 1), n]  # rank 0 a third, others nothing, the last one the rest
        share = ranks.reduce_scatter(xp.asarray(of_rank(ranks.rank, n, dtype)), at)
        assert np.array_equal(nn.to_numpy(share), total[at[ranks.rank] : at[ranks.rank + 1]])
        room = xp.empty((ranks.size, share.size), dtype)
        share = ranks.reduce_scatter(xp.asarray(of_rank(ranks.rank, n, dtype)), at, room)
        assert share.base is room and np.array_equal(nn.to_numpy(room[0]), total[at[ranks.rank] : at[ranks.rank + 1]])


def check_parts_are_gathered(ranks):
    for at in (bounds(10, ranks.size), [0, *[3] * (ranks.size - 1), 10], [0] * ranks.size + [4], bounds(0, ranks.size)):
        whole = of_rank(9, at[-1])
        part = xp.asarray(whole[at[ranks.rank] : at[ranks.rank + 1]])
        out = ranks.allgather(part, xp.full(at[-1], xp.nan, xp.float32), at)
        assert np.array_equal(nn.to_numpy(out), whole)
        out = xp.full(at[-1], xp.nan, xp.float32)
        mine = out[at[ranks.rank] : at[ranks.rank + 1]]
        mine[...] = part
        assert np.array_equal(nn.to_numpy(ranks.allgather(mine, out, at)), whole)  # in place
    sent = xp.asarray(of_rank(ranks.rank, 6).reshape(2, 3))
    assert np.array_equal(nn.to_numpy(ranks.bcast(sent, 1)), of_rank(1, 6).reshape(2, 3))


def check_sent_bytes(ranks):
    ranks.sent_bytes, others = 0, ranks.size - 1
    ranks.allreduce(xp.ones(12, xp.float32))
    assert ranks.sent_bytes == 2 * 48 * others // ranks.size
    ranks.sent_bytes = 0
    ranks.reduce_scatter(xp.ones(12, xp.float32), [0] * ranks.size + [12])
    assert ranks.sent_bytes == (0 if ranks.rank == others else 48)
    ranks.sent_bytes = 0
    at, mine = [0] * ranks.size + [12], 12 if ranks.rank == others else 0
    ranks.allgather(xp.ones(mine, xp.float32), xp.ones(12, xp.float32), at)
    assert ranks.sent_bytes == (48 * others if ranks.rank == others else 0)
    ranks.sent_bytes = 0
    ranks.bcast(xp.ones(3, xp.float32))
    assert ranks.sent_bytes == (0 if ranks.rank else 12 * others)
    ranks.exchange("small things do not count")
    assert ranks.sent_bytes == (0 if ranks.rank else 12 * others)


def check_wrong_arrays_are_refused(ranks):
    with raises(TypeError, "float16"):
        ranks.allreduce(xp.zeros(3, xp.float16))
    with raises(TypeError, "list"):
        ranks.bcast([1.0])
    with raises(ValueError, "C order"):
        ranks.allreduce(xp.zeros((3, 4), xp.float32).T)
    with raises(ValueError, "bounds from 0 to 4"):
        ranks.reduce_scatter(xp.zeros(4, xp.float32), [0] * ranks.size + [3])
    with raises(ValueError, "room must have the shape (", "(float32), got float32 (1, 1)"):
        ranks.reduce_scatter(xp.zeros(4, xp.float32), [0] * ranks.size + [4], xp.zeros((1, 1), xp.float32))
    with raises(ValueError, "must have 0 elements"):
        ranks.allgather(xp.zeros(5, xp.float32), xp.zeros(0, xp.float32), [0] * (ranks.size + 1))


def check_small_things(ranks):
    rank, size = ranks.rank, ranks.size
    assert ranks.exchange({"rank": rank, "text": "ä" * rank}) == [{"rank": r, "text": "ä" * r} for r in range(size)]
    assert [ranks.any(rank == at) for at in range(-1, size)] == [False] + [True] * size
    assert ranks.same(["of", rank]) == ["of", 0]
    ranks.barrier()
    ranks.agree("thing", {"a": [1, 2.5, None]})
    with raises(ValueError, "the same thing", f"a[1] is {size} on rank {size - 1} and 1 on rank 0"):
        ranks.agree("thing", {"a": [1, rank + 1]})
    with raises(ValueError, "timeout must be above 0"):
        Ranks(MPI.COMM_WORLD, 0)


# Layers


def check_dropout_of_a_part(ranks):
    for n, features, rate in ((7, 13, 0.5), (32, 8, 0.25), (1, 5, 0.9)):
        whole = nn.to_numpy(Dropout(rate, seed=11).mask((n, features), 4, xp))
        rows, samples = bounds(features, ranks.size), bounds(n, ranks.size)
        part = PartDropout(Dropout(rate, seed=11), rows[ranks.rank])
        mine = slice(*rows[ranks.rank :][:2])
        found = part.mask((n, mine.stop - mine.start), 4, xp)
        assert np.array_equal(nn.to_numpy(found), whole[:, mine])
        part, mine = PartDropout(Dropout(rate, seed=11)), slice(*samples[ranks.rank :][:2])
        part.place(mine.start, n)
        found = part.mask((mine.stop - mine.start, features), 4, xp)
        assert np.array_equal(nn.to_numpy(found), whole[mine])


def check_gradients_of_panels_are_the_same_bits(ranks):
    for spec, sketched in (
        (HashSpec.strips((1000, 300), 1 / 8, seed=2), True),
        (HashSpec.strips((410, 600), 1 / 16, height=64, panel=(64, 256), stride=24, seed=2), True),  # the last ragged
        (HashSpec.strips((70, 45), 1 / 4, height=8, panel=(16, 16), stride=3, seed=2), False),
        (HashSpec.panels((96, 70), 1 / 4, panel=(20, 32), seed=2), False),
    ):
        assert (cpu.choose_schedule(spec, 50) == "sketch") == sketched
        rng = np.random.default_rng(1)
        x, gy = (xp.asarray(rng.standard_normal((n, 50), np.float32)).T for n in (spec.cols, spec.rows))
        whole = HashedLinear(spec, seed=1, xp=xp)
        y, gx = whole.forward(x, train=True), whole.backward(gy)
        shares = parallel._panel_shares(spec, ranks.size)
        mine = PanelLinear(whole, shares[ranks.rank])
        first, ((start, stop),) = mine.spec.first_row, mine.spec.pieces
        rows = slice(first, first + mine.d_out)
        close(mine.forward(x, train=True), y[:, rows])
        sent = ranks.sent_bytes
        my_gx = mine.backward(gy[:, rows])
        assert ranks.sent_bytes == sent  # no communication
        if xp is np and sketched:
            assert np.array_equal(mine.weight.grad, whole.weight.grad[start:stop])
        close(mine.weight.grad, whole.weight.grad[start:stop])
        close(mine.bias.grad, whole.bias.grad[rows])
        close(ranks.allreduce(xp.ascontiguousarray(my_gx.T)).T, gx)


# Training


def alike(ranks, parallel_net, one, history, of_one):
    assert history.epoch == of_one.epoch and history.best_epoch == of_one.best_epoch
    close(history.loss, of_one.loss)
    for name in ("train_error", "validation_error", "test_error"):
        np.testing.assert_allclose(getattr(history, name), getattr(of_one, name), atol=1.0)  # a sample or two
    state, expected = parallel_net.state(), one.state()
    assert state.keys() == expected.keys()
    for name, a in expected.items():  # kernels of a GPU may differ in how they round, and do from run to run
        assert np.linalg.norm(state[name] - a) <= (1e-4 if xp is np else 1e-2) * np.linalg.norm(a), name
    assert all(other == ranks.exchange(history.loss)[0] for other in ranks.exchange(history.loss))


def check_training_is_that_of_one_process(ranks):
    for name, kind in itertools.product(NETS, (PanelParallel, DataParallel)):
        if kind is PanelParallel and name in ("elementwise", "dense"):
            continue
        one, several = net(name), kind(net(name), ranks)
        assert several.config() == one.config() and several.shapes() == one.shapes()
        counts = ("stored_values", "stored_bytes", "virtual_weights")
        assert [getattr(several, c) for c in counts] == [getattr(one, c) for c in counts]
        assert f"over {ranks.size} ranks" in several.summary() and f"over {ranks.size} ranks" in repr(several)
        for a, b in zip(several.state().values(), one.state().values(), strict=True):
            assert np.array_equal(a, b)  # initial values
        settings = {**RUN, "validation": 30} if name == "two split" else RUN
        kinds = (lambda: SGD(0.02), Adam)
        make = kinds[name == "panels"]
        of_one = train(one, DATA, optimizer=make(), **settings)
        alike(ranks, several, one, train(several, DATA, optimizer=make(), **settings), of_one)
        predicted, expected = several.forward(xp.asarray(DATA.x_test)), one.forward(xp.asarray(DATA.x_test))
        np.testing.assert_allclose(nn.to_numpy(predicted), nn.to_numpy(expected), rtol=1e-2, atol=1e-2)
        assert type(several.whole()) is MLP
        for a, b in zip(several.whole().state().values(), several.state().values(), strict=True):
            assert np.array_equal(a, b)


class Side:
    """Training steps of one kind on a network, and what they leave."""

    def __init__(self, model, captured, optimizer, samples, batch):
        self.model, self.optimizer, self.steps = model, optimizer, -(-samples // batch)
        x, y = xp.asarray(DATA.x_train[:samples]), xp.asarray(DATA.y_train[:samples])
        self.losses, self.wrong = xp.zeros(self.steps), xp.zeros(self.steps, xp.int64)
        self.samples = samples
        self.stepper = model.steppers[captured](
            model, optimizer, x, y, samples, batch, self.losses, self.wrong, lambda step: 0.9**step
        )

    def epoch(self, number, first=0, last=None):
        last = self.steps if last is None else last
        self.stepper.begin(np.random.default_rng(number).permutation(self.samples), number * self.steps, first)
        i = first
        while i < last:
            i += self.stepper.run(i)
        self.stepper.collect(i)
        self.stepper.end(i - first)

    def gradients(self):
        """Of one step, whole: what the momentum of an optimiser is that has none before it."""
        self.epoch(0, last=1)
        state = self.model.gathered(self.optimizer.state())
        return {key.partition("/")[2]: a for key, a in state.items() if "/" in key}


def captured_ways():
    """Networks, and ways to split them, whose steps are made of launches: on the CPU the emulator makes them."""
    if xp is np and not emulator.available():
        return []
    ways = itertools.product(
        ("two split", "whole below", "split at the end", "elementwise"), (PanelParallel, DataParallel)
    )
    return [way for way in ways if way != ("elementwise", PanelParallel)]


@contextlib.contextmanager
def graphs_on_the_cpu():
    """Steps as a GPU does them, part after part; in the emulator a graph is the launches that it was made of."""

    class Graph:
        def __init__(self, plans, count):
            assert not any(isinstance(plan, graph.Exchange) for plan in plans)
            self.plans = count * list(plans)

        def launch(self):
            for plan in self.plans:
                plan.run()

    real = graph._Repeated.__init__, graph._Repeated._capture
    if xp is np:

        def begin(self, plans, device):
            real[0](self, plans, device)
            self._on_gpu = True

        graph._Repeated.__init__ = begin
        graph._Repeated._capture = lambda self, plans, count: Graph(plans, count)
    try:
        yield
    finally:
        graph._Repeated.__init__, graph._Repeated._capture = real


def check_captured_steps_are_the_eager_ones(ranks):
    """Epochs of 3 steps, the last of one sample, so that some ranks have none; one is interrupted. Where every rank
    has all values, they are the same bits."""
    for number, (name, kind) in enumerate(captured_ways()):
        options = NETS[name][1]
        make = (lambda: SGD(0.05), Adam)[number % 2]
        with graphs_on_the_cpu():
            sides = [Side(kind(net(name, **options), ranks), captured, make(), 15, 7) for captured in (0, 1)]
        for part in ((0, 0, 1), (0, 1, 3), (1, 0, 3)):
            with graphs_on_the_cpu():
                for side in sides:
                    side.epoch(*part)
        eager, captured = sides
        assert isinstance(captured.stepper, nn._Captured) and not isinstance(eager.stepper, nn._Captured)
        whole = captured.stepper.steps._whole  # its first step was without a graph
        assert len(whole._graphs) == sum(isinstance(part, list) for part in whole._parts)
        np.testing.assert_allclose(
            nn.to_numpy(captured.losses), nn.to_numpy(eager.losses), rtol=1e-5 if xp is np else 1e-3
        )
        assert np.array_equal(nn.to_numpy(captured.wrong), nn.to_numpy(eager.wrong))
        assert captured.optimizer.steps == eager.optimizer.steps == 6
        most = 1e-5 if xp is np else 1e-2
        for found, expected in (
            (captured.model.state(), eager.model.state()),
            (captured.model.gathered(captured.optimizer.state()), eager.model.gathered(eager.optimizer.state())),
        ):
            assert found.keys() == expected.keys()
            for key, a in expected.items():
                assert np.linalg.norm(found[key] - a) <= most * np.linalg.norm(a), (name, kind, key)
        if kind is DataParallel:
            ranks.agree("values", {key: a.tobytes().hex() for key, a in captured.model.state().items()})


def check_captured_steps_are_cut_where_ranks_send(ranks):
    """And nowhere else: a part between two exchanges is one graph."""
    if ("two split", PanelParallel) not in captured_ways():
        return
    steps = {kind: Side(kind(net(), ranks), 1, Adam(), 22, 7).stepper.steps for kind in (PanelParallel, DataParallel)}
    parts = {kind: [type(part) for part in each._whole._parts] for kind, each in steps.items()}
    assert parts[DataParallel] == [list, graph.Exchange, list]
    names = [name for name, plan in steps[PanelParallel].launches.items() if isinstance(plan, graph.Exchange)]
    split = ranks.size <= 5  # 70 outputs have 5 rows of panels
    assert names == (
        ["0 allgather", "1 allgather", "1 reduce_scatter", "2 bcast"]
        if split
        else ["0 allgather", "1 bcast", "2 bcast"]
    )
    assert parts[PanelParallel][-2:] == [graph.Exchange, list]
    mine = ranks.share(1)
    assert ("softmax" in steps[DataParallel]._last.plans) == (mine[1] > mine[0])
    assert list(steps[DataParallel]._last.plans)[0] == "gather"


def check_captured_training(ranks):
    """Through `train`, interrupted and resumed: on the CPU with the launches that a GPU captures."""
    n, batch = (61, 15) if xp is np else (330, 23)  # the last batch has one sample
    settings = {**RUN, "validation": 30, "batch": batch}
    data = SimpleNamespace(**{**vars(DATA), "x_train": DATA.x_train[:n], "y_train": DATA.y_train[:n]})
    for name, kind in [way for way in captured_ways() if way[0] == "two split"]:
        one = net(name)
        of_one = train(one, data, **settings)
        path = FOLDER / f"captured{ranks.size}.state"
        with captured_on_the_cpu():
            several = kind(net(name), ranks)
            alike(ranks, several, one, train(several, data, **settings), of_one)
            part = kind(net(name), ranks)
            with interrupted_at(1, here=ranks.rank == ranks.size - 1):
                assert train(part, data, **settings, save_state=path).interrupted
            part = kind(net(name), ranks)
            history = train(part, data, **settings, resume=path)
        alike(ranks, part, one, history, of_one)


@contextlib.contextmanager
def captured_on_the_cpu():
    real = nn._can_capture
    if xp is np:
        nn._can_capture = lambda model, optimizer: model.hashed_chain() is not None
    try:
        yield
    finally:
        nn._can_capture = real


def check_gradients_of_the_first_step(ranks):
    """Before rounding has been amplified by an optimiser; of captured steps too."""
    for name, kind in captured_ways():
        expected, found = (
            Side(model, captured, SGD(1.0, 0.0, scale_by_uses=False), 7, 7).gradients()
            for model, captured in ((net(name), 0), (kind(net(name), ranks), 1))
        )
        assert found.keys() == expected.keys()
        for key, a in expected.items():
            most = (2e-6 if xp is np else 1e-4) * np.linalg.norm(a)
            assert np.linalg.norm(found[key] - a) <= most, (name, kind, key)
    for name, kind in itertools.product(("two split", "whole below"), (PanelParallel, DataParallel)):
        x, y = xp.asarray(DATA.x_train[:BATCH]), xp.asarray(DATA.y_train[:BATCH])
        gradients = []
        for model in (net(name), kind(net(name), ranks)):
            losses, wrong = xp.zeros(1), xp.zeros(1, xp.int64)
            stepper = model.steppers[0](model, SGD(0.1), x, y, BATCH, BATCH, losses, wrong, lambda step: 1.0)
            stepper.begin(np.arange(BATCH), 0, 0)
            stepper.run(0)
            own = {name: nn.to_numpy(p.grad) for name, p in model.parameters().items()}
            gradients.append((model.gathered(own), float(losses[0]), int(wrong[0])))
        (expected, loss, wrong), (found, its_loss, its_wrong) = gradients
        assert found.keys() == expected.keys() and abs(loss - its_loss) < 1e-5 * loss and wrong == its_wrong
        for key, a in expected.items():
            most = (2e-6 if xp is np else 1e-4) * np.linalg.norm(a)
            assert np.linalg.norm(found[key] - a) <= most, (name, kind, key)


def check_one_rank_is_one_process(ranks):
    alone = Ranks(MPI.COMM_SELF)  # it sends nothing, and needs no use_gpu()
    for kind in (PanelParallel, DataParallel):
        one, several = net(), kind(net(), alone)
        of_one, history = train(one, DATA, **RUN), train(several, DATA, **RUN)
        if xp is np:  # on a GPU one process captures its steps as a graph, of other kernels
            assert history.loss == of_one.loss and history.test_error == of_one.test_error
            assert all(np.array_equal(a, one.state()[name]) for name, a in several.state().items())
        close(history.loss, of_one.loss)
        assert alone.sent_bytes == 0


def check_bytes_of_a_step(ranks):
    """Data: the stored values, the loss and the count of errors, twice (size - 1) / size. Panels: activations alone."""
    n, others = 44 * 6, ranks.size - 1
    sizes = (20, 96, 96, 4)
    for kind in (PanelParallel, DataParallel):
        model = kind(MLP(sizes, **STRIPS, seed=3, xp=xp), ranks)
        losses, wrong = xp.zeros(1), xp.zeros(1, xp.int64)
        x, y = xp.asarray(np.resize(DATA.x_train, (n, 20))), xp.asarray(np.resize(DATA.y_train, n))
        stepper = model.steppers[0](model, SGD(0.1), x, y, n, n, losses, wrong, lambda step: 1.0)
        stepper.begin(np.arange(n), 0, 0)
        ranks.sent_bytes = 0
        stepper.run(0)
        total = sum(ranks.exchange(ranks.sent_bytes))
        if kind is DataParallel:
            assert total == 2 * 4 * others * (model.stored_values + 2)
        else:  # two gathers of 96 rows, one gradient of 96 rows; the small layer's gradients from rank 0
            last = 4 * others * (model.shapes()["2.weight"][0] + 4)
            assert total == 3 * 96 * n * 4 * others + last


def check_what_cannot_be_split(ranks):
    with raises(ValueError, f"over {ranks.size} ranks", "at most 1 rows of panels", "--parallel data"):
        PanelParallel(net("elementwise"), ranks)
    with raises(ValueError, f"batch must be at least {ranks.size}"):
        train(DataParallel(net(), ranks), DATA, **{**RUN, "batch": 1})
    with raises(TypeError, "of one process"):
        DataParallel(DataParallel(net(), ranks), ranks)
    with raises(TypeError, "world()"):
        DataParallel(net(), MPI.COMM_WORLD)


def check_ranks_that_disagree(ranks):
    last = ranks.rank == ranks.size - 1
    with raises(ValueError, "same network", f"model.seed is 7 on rank {ranks.size - 1} and 3 on rank 0"):
        PanelParallel(net(seed=7 if last else 3), ranks)
    with raises(ValueError, "same network", "model.specs[0].compression"):
        DataParallel(net(compression=1 / 4 if last else 1 / 2), ranks)
    odd = net()
    odd.linears[0].weight.value[5] += float(last)
    with raises(ValueError, "same network", "values is"):
        DataParallel(odd, ranks)
    model = PanelParallel(net(), ranks)
    with raises(ValueError, "same training", f"epochs is {3 if ranks.size else 0} on rank {ranks.size - 1}"):
        train(model, DATA, **{**RUN, "epochs": 3 if last else 2})
    other = blobs()
    other.x_train[3, 3] += float(last)
    with raises(ValueError, "same training", "data.x_train.sha256"):
        train(model, other, **RUN)
    with raises(ValueError, "same training", "saves is"):
        train(model, DATA, **RUN, save_state=FOLDER / "x.state" if last else None)


# Files


@contextlib.contextmanager
def interrupted_at(step, here):
    """Ctrl-C in a step of training, counted from 0, on this rank if ``here``; in a captured one too."""
    places = [(nn, "_softmax_cross_entropy"), (graph.Steps, "run")]  # either is called once a step
    steps = itertools.count()

    def counted(real):
        def function(*args):
            if next(steps) == step and here:
                signal.raise_signal(signal.SIGINT)
            return real(*args)

        return function

    found = [getattr(*place) for place in places]
    for place, real in zip(places, found, strict=True):
        setattr(*place, counted(real))
    try:
        yield
    finally:
        for place, real in zip(places, found, strict=True):
            setattr(*place, real)


def check_interrupt_and_resume(ranks):
    settings = {**RUN, "validation": 30}
    for kind in (PanelParallel, DataParallel):
        whole = kind(net(), ranks)
        expected = train(whole, DATA, **settings)
        path = FOLDER / f"own{ranks.size}.state"
        part = kind(net(), ranks)
        with interrupted_at(9, here=ranks.rank == ranks.size - 1):
            stopped = train(part, DATA, **settings, save_state=path)
        assert stopped.interrupted and len(stopped.epoch) == 1
        part = kind(net(), ranks)
        history = train(part, DATA, **settings, resume=path)
        alike(ranks, part, whole, history, expected)
        if xp is np:
            mine, all_of_it = part.state(), whole.state()
            assert history.loss == expected.loss and history.validation_error == expected.validation_error
            assert all(np.array_equal(a, all_of_it[name]) for name, a in mine.items())
    if ranks.size == 2:
        with interrupted_at(9, here=ranks.rank == 0):
            train(PanelParallel(net(), ranks), DATA, **settings, save_state=STATE)
    elif STATE.exists():  # on another number of ranks, and in the other way
        for kind in (PanelParallel, DataParallel):
            model = kind(net(), ranks)
            one = net()
            of_one = train(one, DATA, **settings)
            alike(ranks, model, one, train(model, DATA, **settings, resume=STATE), of_one)
    with raises(ValueError, "other settings", "seed"):
        train(PanelParallel(net(), ranks), DATA, **{**settings, "seed": 6}, resume=path)


def check_saved_models(ranks):
    model = PanelParallel(net(), ranks)
    path = FOLDER / f"net{ranks.size}.safetensors"
    save_model(path, model, note="by all")
    ranks.barrier()
    loaded = load_model(path)
    assert loaded.config() == net().config()
    for name, a in loaded.state().items():
        assert np.array_equal(a, net().state()[name])
    assert [file.name for file in FOLDER.iterdir() if file.name.startswith(".")] == []
    with raises(ValueError, "lacks"):
        model.load_state({})


def main():
    chosen = [check for name, check in globals().items() if name.startswith("check_")]
    with world(timeout=60 if xp is np else 250) as ranks:  # kernels are compiled
        if xp is not np:
            ranks.use_gpu()
        for check in chosen:
            check(ranks)
            ranks.agree("check", check.__name__)
        if ranks.rank == 0:
            print(f"{len(chosen)} checks passed on {ranks.size} ranks")


if __name__ == "__main__":
    main()
