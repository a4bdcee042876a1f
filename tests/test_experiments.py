"""Declared runs: what they build, and records that can be stopped at any moment and continued."""

import itertools
import json
import signal

import numpy as np
import pytest

from hashedmm import baselines, batched, cli, experiments, nn, plots, records
from hashedmm.experiments import EXPERIMENTS, Experiment, Run, default_dropout, default_options, run_experiment
from hashedmm.hashing import HashSpec

TINY = {"layers": (784, 64, 10), "epochs": 2, "batch": 100}
RUNS = (
    Run("dense", **TINY),
    Run("small_dense", 1 / 8, **TINY),
    Run("hashed:strips", 1 / 8, options=(("height", 16),), **TINY),
)


@pytest.fixture(scope="module")
def whole(small_mnist, tmp_path_factory):
    """The record of the experiment "tiny", three short runs on a few samples, run without a break; and its file."""
    data = small_mnist.subset(500, 200)
    output = tmp_path_factory.mktemp("whole") / "new" / "tiny.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "DATASETS", {"mnist": lambda: data})
        patch.setattr(experiments, "EXPERIMENTS", {"tiny": Experiment("tiny", "for tests", RUNS)})
        yield run_experiment("tiny", output=output, progress=False), output


@pytest.fixture
def tiny(whole, monkeypatch):
    """The experiment "tiny" exists, and can be changed."""
    monkeypatch.setattr(experiments, "EXPERIMENTS", dict(experiments.EXPERIMENTS))


@pytest.fixture
def trainings(monkeypatch):
    """Counts calls of `train`; the entry "stop_at" makes that call raise, as a Ctrl-C between two runs would."""
    counter = {"calls": 0, "stop_at": None}
    real = experiments.train

    def counted(*args, **kwargs):
        counter["calls"] += 1
        if counter["calls"] == counter["stop_at"]:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(experiments, "train", counted)
    return counter


def without_times(record):
    """The rows, without what differs from run to run."""
    rows = json.loads(json.dumps(record["rows"]))
    for row in rows:
        for name in ("seconds", "seconds_per_epoch"):
            assert row.pop(name) > 0
        for history in row["history"]:
            for name in ("seconds", "seconds_per_epoch", "total_seconds"):
                assert (history.pop(name, None) is None) == (row["trained_by"] == "batched")
    return rows


# What is declared


def test_every_declared_run_makes_what_it_says():
    """One network of each method, compression and depth that is declared; and an MLP, where there is one, is it."""
    seen = set()
    for run in itertools.chain.from_iterable(e.runs for e in EXPERIMENTS.values()):
        what = run.method, run.compression, run.layers, run.options, run.hash
        if what in seen or len(run.layers) > 3 or max(run.layers) > 1000:
            continue
        seen.add(what)
        network = run.network(0)
        assert network.dropout == run.dropout and network.lr == run.lr and network.layers[0].d_in == 784
        assert network.layers[-1].d_out == run.layers[-1]
        assert network.kind == baselines.kind(run.layers, experiments.student(run.method), run.compression)
        stored = baselines.storage(network)
        assert stored.bytes == pytest.approx(baselines.budget(run.layers, run.compression), rel=0.1)
        if run.is_mlp:
            model = run.build(0)
            assert stored == (model.stored_values, model.stored_bytes)
            assert [layer.chosen for layer in network.layers] == [linear.spec for linear in model.linears]
            if run.method.startswith("hashed:"):
                structures = [run.method.removeprefix("hashed:"), "elementwise"]
                assert [linear.spec.structure for linear in model.linears] == structures
                assert {linear.spec.hash for linear in model.linears} == {run.hash}
        else:
            with pytest.raises(ValueError, match="is no MLP"):
                run.build(0)
    assert len(seen) > 100


def test_experiments_declare_what_they_promise():
    grid = EXPERIMENTS["mnist_grid"].runs
    for layers in (experiments.SHALLOW, experiments.DEEP):
        mine = [r for r in grid if r.layers == layers]
        assert {r.method for r in mine} == {"dense", *experiments.COMPARED}
        for run in mine:
            assert len(run.seeds) == (5 if run.compression in (1, 1 / 8, 1 / 64) else 3)
        assert {r.compression for r in mine if r.method == "hashed:strips"} == {2.0**-k for k in range(1, 7)}
    variants = EXPERIMENTS["variants"].runs
    assert len({r.dataset for r in variants}) == 7 and {r.compression for r in variants} == {1 / 8, 1 / 64}
    for dataset in {r.dataset for r in variants}:
        mine = [r for r in variants if r.dataset == dataset]
        assert len(mine) == 2 * 2 * 8 and {r.layers[-1] for r in mine} == {2 if dataset in ("rect", "convex") else 10}
    counts = {r.method: 0 for r in EXPERIMENTS["search"].runs}
    for run in EXPERIMENTS["search"].runs:
        counts[run.method] += 1
        assert run.validation == 10_000 and (run.dropout, run.lr) in experiments.SEARCHED
    assert counts.pop("dense") == 2 * 8 and set(counts.values()) == {2 * 2 * 8}  # the same budget for each
    stored = {}
    for run in EXPERIMENTS["expansion"].runs:
        if run.method == "hashed:elementwise":
            base = run.compression * run.layers[1] / 1000
            size = sum(max(1, round(a * b * run.compression)) for a, b in itertools.pairwise(run.layers))
            stored.setdefault(base, set()).add(size)
    assert all(max(s) - min(s) <= 1 for s in stored.values()) and len(stored) == 2


def test_every_row_has_a_name():
    for experiment in EXPERIMENTS.values():
        labels = [experiment.label(run) for run in experiment.runs]
        assert len(set(labels)) == len(labels)
        for run in experiment.runs[:: max(1, len(labels) // 10)]:
            assert experiment.find(experiment.label(run)) is experiment.find(run.full_label) is run
    assert EXPERIMENTS["variants"].find("rect 784-1000-2 small_dense 1/64").dataset == "rect"
    with pytest.raises(ValueError, match=r"no run 'rect small_dense'; near: .*'rect 784-1000-2 small_dense 1/8'"):
        EXPERIMENTS["variants"].find("rect small_dense")
    with pytest.raises(ValueError, match="two runs of the experiment 'twice' have the same label"):
        _ = Experiment("twice", "", (RUNS[0], Run("dense", lr=0.1, **TINY))).runs


def test_rows_of_older_records_are_still_read():
    for name in ("mnist_cpu", "strips_accuracy"):
        for row in records.read(name)["rows"]:
            assert "hash" not in row
            assert sum(run.declares(row) for run in EXPERIMENTS[name].runs) == 1


@pytest.mark.parametrize("compression", [1 / 8, 1 / 64])
def test_small_dense_nets_store_as_much_as_hashed_ones(compression):
    small, hashed = (Run(m, compression).build(0).stored_values for m in ("small_dense", "hashed:elementwise"))
    assert abs(small - hashed) <= 795 / 2  # what one hidden unit more or less would change


def test_the_demo_treats_all_methods_alike():
    runs = EXPERIMENTS["demo"].runs
    assert len(runs) == 7
    assert len({(r.dataset, r.layers, r.seeds, r.epochs, r.batch, r.lr, r.decay) for r in runs}) == 1
    assert all(r.dropout == default_dropout(r.method, r.compression) for r in runs)
    declared = {(r.method, r.compression) for r in runs}
    assert declared == {("dense", 1.0)} | {
        (m, c) for m in ("small_dense", "hashed:elementwise", "hashed:strips") for c in (1 / 8, 1 / 64)
    }
    assert {r.epochs for r in EXPERIMENTS["mnist_cpu"].runs} == {30}
    assert declared < {(r.method, r.compression) for r in EXPERIMENTS["mnist_cpu"].runs}


def test_dropout_falls_with_what_is_stored():
    for method in experiments.METHODS:
        rates = [default_dropout(method, c) for c in (1.0, 1 / 2, 1 / 8, 1 / 64, 1 / 1000)]
        assert rates == sorted(rates, reverse=True) and 0 <= rates[-1] <= rates[0] < 1
    with pytest.raises(ValueError, match="method must be one of dense, small_dense, .*got 'sparse'"):
        default_dropout("sparse", 1 / 8)


@pytest.mark.parametrize("compression", [1 / 8, 1 / 16, 1 / 32, 1 / 64])
def test_strips_keep_about_a_hundred_candidates(compression):
    spec = HashSpec.strips((1000, 784), compression, **default_options("hashed:strips", compression))
    assert 85 <= spec.regions[0].candidates <= 100


def test_default_options_concern_strips_alone():
    assert default_options("hashed:strips", 1 / 8) == {} == default_options("hashed:tiles", 1 / 64)
    assert default_options("hashed:strips", 1e-9) == {"stride": 1}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": "hashed"}, "method must be one of dense"),
        ({"dataset": "letters"}, "dataset must be one of mnist, .*, got 'letters'"),
        ({"seeds": ()}, "seeds must be different integers, at least one"),
        ({"seeds": (1, 1)}, "seeds must be different integers, at least one"),
        ({"compression": 0.5}, "compression must be 1 for dense"),
        ({"method": "fixed_point", "compression": 1 / 64}, "fixed_point has no form there"),
        ({"hash": "xxh32"}, "hash must be one of fmix32, .*, of a hashed method, got 'xxh32'"),
        ({"method": "hashed:runs", "compression": 0.5, "hash": "md5"}, "of a hashed method, got 'md5'"),
        ({"teacher": experiments.teacher_settings(0.1, 1e-3)}, "for a distilled method, and nothing for any other"),
        ({"method": "distilled:hashed:runs", "compression": 0.5, "teacher": (("dropout", 0.1),)}, "teacher must give"),
        ({"method": "distilled:magnitude", "compression": 0.5}, "method must be one of"),
    ],
)
def test_wrong_runs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Run(**{"method": "dense"} | change)


@pytest.mark.parametrize("value, text", [(1 / 8, "1/8"), (1.0, "1"), (0.3, "3/10"), (0.123456789, "0.1235")])
def test_compression_text(value, text):
    assert experiments.compression_text(value) == text


# Running


def test_a_record_says_what_was_trained(tiny, whole):
    record, output = whole
    assert record == records.read(output)
    assert record["kind"] == "training" and record["command"] == "hashedmm experiment tiny"
    assert [row["method"] for row in record["rows"]] == [run.method for run in RUNS]
    data = experiments.DATASETS["mnist"]()
    for run, row in zip(RUNS, record["rows"], strict=True):
        model = run.build(0)
        history = nn.train(model, data, epochs=2, batch=100, progress=False)
        assert row["test_error_mean"] == pytest.approx(model.error(data.x_test, data.y_test))
        assert row["test_errors"] == [history.final_test_error] and row["test_error_std"] is None
        assert row["stored_bytes"] == 4 * row["stored_values"] == 4 * model.stored_values
        assert row["sizes"] == model.sizes and row["layers"] == [784, 64, 10]
        assert len(row["history"]) == 1 and len(row["history"][0]["loss"]) == 2
        specs = [None if s is None else HashSpec.from_json(json.dumps(s)) for s in row["specs"][0]]
        assert specs == [linear.spec for linear in model.linears]
    assert [p.name for p in output.parent.iterdir()] == ["tiny.json"]


def test_nothing_done_is_lost_between_runs(tiny, whole, trainings, tmp_path, capsys):
    trainings["stop_at"] = 3
    output = tmp_path / "tiny.json"
    with pytest.raises(KeyboardInterrupt):
        run_experiment("tiny", output=output, progress=False)
    assert [row["method"] for row in records.read(output)["rows"]] == ["dense", "small_dense"]
    trainings.update(calls=0, stop_at=None)
    assert capsys.readouterr() == ("", "")
    record = run_experiment("tiny", output=output)
    shown = capsys.readouterr()
    assert not shown.out and "3/3  hashed:strips 1/8 height=16" in shown.err and "2/3" not in shown.err
    assert trainings["calls"] == 1
    assert without_times(record) == without_times(whole[0])
    changed = output.stat().st_mtime_ns
    assert run_experiment("tiny", output=output, progress=False) == record
    assert trainings["calls"] == 1 and output.stat().st_mtime_ns == changed
    assert len(run_experiment("tiny", output=output, progress=False, fresh=True)["rows"]) == 3
    assert trainings["calls"] == 4


def test_nothing_done_is_lost_within_a_run(tiny, whole, tmp_path, monkeypatch):
    real, steps = nn._softmax_cross_entropy, itertools.count()

    def interrupted(*args):
        if next(steps) == 17:  # of five steps an epoch and two epochs a run: in the second run's second epoch
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    output = tmp_path / "tiny.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nn, "_softmax_cross_entropy", interrupted)
        run_experiment("tiny", output=output, progress=False)
    assert len(records.read(output)["rows"]) == 1
    (state,) = tmp_path.glob("tiny.*.state")
    counted = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(nn, "_softmax_cross_entropy", lambda *args: (next(counted), real(*args))[1])
        record = run_experiment("tiny", output=output, progress=False)
    assert next(counted) == 2 + 10  # what was left of the second run, and the third
    assert without_times(record) == without_times(whole[0])
    assert not state.exists()


def test_a_fresh_start_forgets_the_state(tiny, tmp_path):
    output, state = tmp_path / "tiny.json", tmp_path / "tiny.dense-seed0.state"
    state.write_bytes(b"not a state")
    with pytest.raises(ValueError, match="dense-seed0.state.*--fresh"):
        run_experiment("tiny", output=output, progress=False)
    assert len(run_experiment("tiny", output=output, progress=False, fresh=True)["rows"]) == 3


def test_seeds_make_a_mean_and_a_deviation(tiny, trainings, tmp_path, monkeypatch):
    run = Run("hashed:elementwise", 1 / 8, seeds=(3, 1, 2), **TINY)
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"tiny": Experiment("tiny", "", (run,))})
    output = tmp_path / "tiny.json"
    trainings["stop_at"] = 3
    with pytest.raises(KeyboardInterrupt):
        run_experiment("tiny", output=output, progress=False)
    assert records.read(output)["rows"][0]["seeds"] == [3, 1]
    (row,) = run_experiment("tiny", output=output, progress=False)["rows"]
    assert row["seeds"] == [3, 1, 2] and len(set(row["test_errors"])) > 1
    assert row["test_error_mean"] == pytest.approx(np.mean(row["test_errors"]))
    assert row["test_error_std"] == pytest.approx(np.std(row["test_errors"], ddof=1))
    assert len({spec["seed"] for (spec, _) in row["specs"]}) == 3


def test_a_record_has_one_origin(tiny, trainings, tmp_path):
    output = tmp_path / "tiny.json"
    trainings["stop_at"] = 2
    with pytest.raises(KeyboardInterrupt):
        run_experiment("tiny", output=output, progress=False)
    record = records.read(output)
    record["device"]["name"] = "another processor"
    records.write(output, record)
    with pytest.raises(ValueError, match="device was .*another processor.*--fresh"):
        run_experiment("tiny", output=output, progress=False)
    assert trainings["calls"] == 2 and records.read(output) == record


def test_records_of_something_else_are_refused(tiny, tmp_path):
    output = tmp_path / "tiny.json"
    records.write(output, records.new_record("memory", [], "hashedmm bench --cpu"))
    with pytest.raises(ValueError, match="a record of kind 'memory', expected 'training'.*--fresh"):
        run_experiment("tiny", output=output)
    output.write_text("{")
    with pytest.raises(ValueError, match="is no record"):
        run_experiment("tiny", output=output)


def test_rows_of_another_experiment_are_refused(tiny, whole, monkeypatch):
    _, output = whole
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"tiny": Experiment("tiny", "", RUNS[:2])})
    with pytest.raises(
        ValueError, match=r"holds a run .* does not have \(hashed:strips, compression 0.125, 2 epochs\)"
    ):
        run_experiment("tiny", output=output, progress=False)


def test_wrong_outputs_and_names_are_refused_before_any_work(tiny, trainings, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.json").mkdir()
    for output, message in (
        ("tiny.txt", "must name a file that ends in .json, got 'tiny.txt'"),
        (tmp_path / "file" / "tiny.json", "its folder cannot be made"),
        (tmp_path / "folder.json", "must name a file, got the folder"),
    ):
        with pytest.raises(ValueError, match=message):
            run_experiment("tiny", output=output)
    with pytest.raises(ValueError, match="there is no experiment 'demos'; there are tiny"):
        run_experiment("demos", output=tmp_path / "demo.json")
    assert trainings["calls"] == 0


# Methods that are no MLP, groups, teachers

MIXED = (
    Run("magnitude", 1 / 4, **TINY),
    Run("hashed:elementwise", 1 / 8, seeds=(0, 1), **TINY),
    Run("distilled:hashed:elementwise", 1 / 8, seeds=(0, 1), **TINY),
    Run("low_rank_fixed", 1 / 8, seeds=(1,), **TINY),
    Run("random_edges", 1 / 8, validation=100, **TINY),
)


@pytest.fixture
def mixed(tiny, monkeypatch):
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"mixed": Experiment("mixed", "for tests", MIXED)})


@pytest.fixture
def groups(monkeypatch):
    """Counts the groups that are trained; "stop_at" is a Ctrl-C in one of them."""
    counter = {"sizes": [], "stop_at": None}
    real = batched.train

    def counted(networks, *args, **kwargs):
        counter["sizes"].append(len(networks))
        if len(counter["sizes"]) == counter["stop_at"]:
            raise KeyboardInterrupt
        return real(networks, *args, **kwargs)

    monkeypatch.setattr(batched, "train", counted)
    return counter


def test_groups_give_what_single_trainings_give(mixed, groups, tmp_path):
    alone = run_experiment("mixed", output=tmp_path / "alone.json", progress=False)
    assert set(groups["sizes"]) == {1}
    groups["sizes"].clear()
    together = run_experiment("mixed", output=tmp_path / "together.json", progress=False, together=True)
    assert sorted(groups["sizes"]) == [1, 1, 5]  # low rank; what holds samples out; all else looks weights up
    for a, b in zip(alone["rows"], together["rows"], strict=True):
        assert a["seeds"] == b["seeds"] and a["stored_bytes"] == b["stored_bytes"] and b["trained_by"] == "batched"
        what = "validation_errors" if a["validation"] else "test_errors"
        np.testing.assert_allclose(a[what], b[what], atol=0.51)  # a sample of 200, that rounding may tip over
        for one, other in zip(a["history"], b["history"], strict=True):
            np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-4)
    rows = {row["method"]: row for row in together["rows"]}
    assert rows["random_edges"]["test_error_mean"] is None and len(rows["random_edges"]["validation_errors"]) == 1
    taught = rows["distilled:hashed:elementwise"]
    assert len(set(taught["teacher_errors"])) == 2 and dict(taught["teacher"])["temperature"] == 4.0
    assert taught["test_errors"] != rows["hashed:elementwise"]["test_errors"]
    assert taught["seconds_shared"] == [5, 5] and rows["magnitude"]["multiply_adds"] < 50816 / 4
    assert rows["low_rank_fixed"]["sizes"] == [784, 97, 64, 7, 10] and rows["low_rank_fixed"]["specs"] == [[None] * 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.json", "together.json"]  # no teachers are left


def test_nothing_done_is_lost_between_groups(mixed, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "MOST_TOGETHER", 2)
    whole = run_experiment("mixed", output=tmp_path / "whole.json", progress=False, together=True)
    count = len(groups["sizes"])
    groups.update(sizes=[], stop_at=4)
    output = tmp_path / "parts.json"
    with pytest.raises(KeyboardInterrupt):
        run_experiment("mixed", output=output, progress=False, together=True)
    assert 0 < len(records.read(output)["rows"]) < len(MIXED) and list(tmp_path.glob("parts.teacher-*.state"))
    groups.update(sizes=[], stop_at=None)
    lessons = []
    monkeypatch.setattr(experiments._Trainer, "_train_teachers", lambda self, teachers: lessons.append(teachers))
    record = run_experiment("mixed", output=output, progress=False, together=True)
    assert len(groups["sizes"]) == count - 3 and not lessons  # teachers were kept
    assert without_times(record) == without_times(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["parts.json", "whole.json"]


def test_shares_are_disjoint_and_merge_into_the_whole(mixed, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "MOST_TOGETHER", 2)
    whole = run_experiment("mixed", output=tmp_path / "whole.json", progress=False, together=True)
    files = [tmp_path / f"{k}.json" for k in (1, 2, 3)]
    groups["sizes"].clear()
    for k, file in enumerate(files, start=1):
        run_experiment("mixed", output=file, progress=False, together=True, part=(k, 3))
    assert sum(groups["sizes"]) == sum(len(run.seeds) for run in MIXED)
    merged = experiments.merge("mixed", files, output=tmp_path / "merged.json")
    assert merged == records.read(tmp_path / "merged.json")
    assert without_times(merged) == without_times(whole)
    with pytest.raises(ValueError, match="both rows have one of the seeds"):
        experiments.merge("mixed", [*files, files[0]], output=tmp_path / "twice.json")
    changed = records.read(files[2]) | {"commit": "another"}
    records.write(files[2], changed)
    with pytest.raises(ValueError, match="commit was"):
        experiments.merge("mixed", files, output=tmp_path / "merged.json")
    for part in ((0, 2), (3, 2)):
        with pytest.raises(ValueError, match="k from 1 to n"):
            run_experiment("mixed", output=tmp_path / "no.json", part=part)


def test_time_is_kept(mixed, groups, tmp_path, monkeypatch, capsys):
    ticks = itertools.count(step=50)
    monkeypatch.setattr(experiments.time, "monotonic", lambda: next(ticks))
    record = run_experiment("mixed", output=tmp_path / "some.json", together=True, minutes=2)
    assert len(groups["sizes"]) == 2 and len(record["rows"]) < len(MIXED)
    assert "stopped after 2 minutes: 1 of 3" in capsys.readouterr().err


def test_arithmetic_is_not_mixed(mixed, tmp_path):
    output = tmp_path / "mixed.json"
    record = run_experiment("mixed", output=output, progress=False, together=True)
    for row in record["rows"]:
        row["tf32"] = True
    records.write(output, record)
    with pytest.raises(ValueError, match="holds rows with tf32"):
        run_experiment("mixed", output=output, progress=False, together=True)
    with pytest.raises(ValueError, match="tf32 is a GPU's arithmetic"):
        run_experiment("mixed", output=output, progress=False, tf32=True)


# What validation chooses


def searched(method, compression, dropout, lr, error, layers=experiments.SHALLOW):
    return {"method": method, "compression": compression, "dropout": dropout, "lr": lr, "layers": list(layers),
            "validation_errors": [error]}  # fmt: skip


def test_the_search_chooses_by_validation_alone():
    rows = [
        searched("magnitude", 1 / 8, 0.0, 1e-3, 2.0), searched("magnitude", 1 / 8, 0.5, 1e-3, 1.8),
        searched("magnitude", 1 / 8, 0.25, 3e-4, 1.8), searched("magnitude", 1 / 8, 0.25, 1e-3, 1.8),
        searched("magnitude", 1 / 64, 0.1, 3e-4, 3.0), searched("magnitude", 1 / 64, 0.0, 1e-3, 3.1),
        searched("magnitude", 1 / 8, 0.1, 1e-3, 1.0, experiments.DEEP),
    ]  # fmt: skip

    def found(*args):
        return tuple(experiments.chosen(*args, record={"rows": rows}).values())

    assert found("magnitude", 1 / 8, experiments.SHALLOW) == (0.25, 1e-3, "search")  # ties: less dropout, larger lr
    assert found("magnitude", 1 / 2, (784, 500, 2)) == (0.25, 1e-3, "search")
    assert found("magnitude", 1 / 16, experiments.SHALLOW) == (0.25, 1e-3, "search")
    assert found("magnitude", 1 / 32, experiments.SHALLOW) == (0.1, 3e-4, "search")
    assert found("magnitude", 1 / 64, experiments.DEEP) == (0.1, 1e-3, "search")
    assert found("small_dense", 1 / 64, experiments.SHALLOW) == (0.0, 1e-3, None)


def test_declared_runs_take_what_the_search_chose(monkeypatch):
    rows = (searched("hashed:strips", 1 / 8, 0.5, 3e-4, 1.0), searched("dense", 1.0, 0.1, 3e-4, 1.0))
    monkeypatch.setattr(experiments, "_searched", lambda: rows)
    runs = {r.full_label: r for r in experiments._mnist_grid()}
    strips = runs["mnist 784-1000-10 hashed:strips 1/8"]
    assert (strips.dropout, strips.lr, strips.chosen_by) == (0.5, 3e-4, "search")
    assert strips.declared()["chosen_by"] == "search"
    taught = dict(runs["mnist 784-1000-10 distilled:hashed:tiles 1/8"].teacher) if (
        "mnist 784-1000-10 distilled:hashed:tiles 1/8" in runs
    ) else dict(runs["mnist 784-1000-10 distilled:hashed:strips 1/8"].teacher)  # fmt: skip
    assert taught["dropout"] == 0.1 and taught["lr"] == 3e-4
    plain = runs["mnist 784-1000-10 hashed:tiles 1/8"]
    assert (plain.dropout, plain.lr, plain.chosen_by) == (0.25, 1e-3, None)


# A row again


def test_the_error_bar():
    row = experiments.Rerun((1.0, 1.2, 1.4), (1.3, 1.5))
    assert row.difference == pytest.approx(0.2)
    assert row.allowed == pytest.approx(2 * np.sqrt(0.04 / 3 + 0.02 / 2) + 0.05)
    assert row.agrees and not experiments.Rerun((1.0, 1.2, 1.4), (1.9, 1.9)).agrees
    assert experiments.Rerun((1.0,), (1.1,)).allowed == pytest.approx(2 * np.sqrt(0.02) + 0.05)


def test_a_row_trained_again_lands_in_its_error_bar(tiny, tmp_path, monkeypatch):
    settings = {"layers": (784, 64, 10), "epochs": 8, "batch": 10, "seeds": (0, 1)}
    runs = (
        Run("distilled:small_dense", 1 / 2, **settings),
        Run("random_edges", 1 / 4, **settings | {"seeds": (0,)}, validation=100),
        Run("hashed:elementwise", 1 / 4, **settings),
    )
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"again": Experiment("again", "", runs)})
    record = run_experiment("again", output=tmp_path / "again.json", progress=False, together=True)
    for run, row in zip(runs, record["rows"], strict=True):
        again = experiments.rerun("again", run.label, record=record, folder=tmp_path)
        what = "validation_errors" if run.validation else "test_errors"
        assert again.agrees and again.recorded == tuple(row[what]) and len(again.again) == len(run.seeds)
        assert again.recorded[0] < 40  # it has learnt something
    spread = record["rows"][2]["test_errors"]
    record["rows"][2]["test_errors"] = [e + 3 * abs(spread[0] - spread[1]) + 1 for e in spread]
    assert not experiments.rerun("again", "hashed:elementwise 1/4", record=record, folder=tmp_path).agrees
    with pytest.raises(ValueError, match="does not hold"):
        experiments.rerun("again", "hashed:elementwise 1/4", record=record | {"rows": []}, folder=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["again.json"]


def test_the_command_trains_shares_merges_and_compares(mixed, tmp_path, capsys):
    def command(*words):
        return cli.main(["experiment", "mixed", *map(str, words), "--quiet"])

    files = [tmp_path / f"{k}.json" for k in (1, 2)]
    for k, file in enumerate(files, start=1):
        assert command("--part", f"{k}/2", "--output", file, "--minutes", 5) == 0
    whole = tmp_path / "whole.json"
    assert command("--merge", *files, "--output", whole) == 0
    out = capsys.readouterr().out
    assert len(records.read(whole)["rows"]) == len(MIXED) and f"record  {whole}" in out
    assert "validation error" in out and not whole.with_suffix(".png").exists()  # errors that cannot be compared
    assert command("--row", "low_rank_fixed 1/8", "--output", whole) == 0
    assert "within the error bar of" in capsys.readouterr().out
    record = records.read(whole)
    for row in record["rows"]:
        row["test_errors"] = [0.0 for _ in row["seeds"]]
    records.write(whole, record)
    assert command("--row", "low_rank_fixed 1/8", "--output", whole) == 1
    assert "outside the error bar of" in capsys.readouterr().out
    assert command("--row", "low_rank_fixed", "--output", whole) == 2
    assert "near: 'low_rank_fixed 1/8'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("--part", "3/2")
    assert "expected a share such as 1/4, got '3/2'" in capsys.readouterr().err


# The figure


def test_the_figure_names_every_point_and_no_label_covers_another():
    def row(method, stored, error, std=None):
        return {"method": method, "stored_values": stored, "test_error_mean": error, "test_error_std": std}

    rows = [row("dense", 795_010, 1.5)]
    for stored, worse in ((100_000, 0.0), (13_000, 1.0)):
        rows += [
            row("small_dense", stored + 200, 1.9 + worse, 0.1),
            row("hashed:elementwise", stored, 1.61 + worse),
            row("hashed:strips", stored + 400, 1.60 + worse),
            row("hashed:tiles", stored + 300, 1.62 + worse),
        ]
    figure = plots.error_against_storage(rows, "a title")
    assert plots.png(figure).startswith(b"\x89PNG")
    figure.draw_without_rendering()  # the labels have a place, in the figure's own pixels
    (ax,) = figure.axes
    labels = [text for text in ax.texts if text.get_text()]
    assert ax.get_title(loc="left") == "a title"
    assert sorted(float(text.get_text().split()[-1]) for text in labels) == sorted(
        round(r["test_error_mean"], 2) for r in rows
    )
    assert {"dense 1.50", "small dense 2.90", "strips 2.60"} < {text.get_text() for text in labels}
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    whole = figure.bbox
    assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in boxes)
