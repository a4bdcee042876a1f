"""Declared runs: what they build, and records that can be stopped at any moment and continued."""

import itertools
import json
import signal

import numpy as np
import pytest

from hashedmm import experiments, nn, plots, records
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
                del history[name]
    return rows


# What is declared


def test_every_declared_run_builds_what_it_says():
    for run in itertools.chain.from_iterable(e.runs for e in EXPERIMENTS.values()):
        model = run.build(0)
        assert model.sizes[0] == 784 and model.sizes[-1] == 10 and model.dropout == run.dropout
        structure = run.method.removeprefix("hashed:")
        if run.method.endswith("dense"):
            assert all(linear.spec is None for linear in model.linears)
        else:
            assert [linear.spec.structure for linear in model.linears] == [structure, "elementwise"]
            assert model.sizes == list(run.layers)
            assert model.stored_values - 1010 == pytest.approx(run.compression * 794_000, rel=0.03)


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
        ({"dataset": "letters"}, "dataset must be one of mnist, got 'letters'"),
        ({"seeds": ()}, "seeds must be different integers, at least one"),
        ({"seeds": (1, 1)}, "seeds must be different integers, at least one"),
        ({"compression": 0.5}, "compression must be 1 for dense"),
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
