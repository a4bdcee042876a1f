"""The command line: what it prints and where, its exit codes, and every way to get its arguments wrong."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import hashedmm
from hashedmm import cli, datasets, experiments, nn, records, report
from hashedmm.checkpoint import load_model, read_info
from hashedmm.experiments import Experiment, Run

SHORT = ["train", "--limit", "300", "--epochs", "2", "--layers", "784,80,10"]


@pytest.fixture
def hashedmm_cli(capsys, monkeypatch, tmp_path, mnist):
    """Runs a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    monkeypatch.setattr(cli, "load_mnist", lambda path=None: datasets.load_mnist(path) if path else mnist)
    monkeypatch.setattr(experiments, "gpu_available", lambda: False)

    def run(*argv):
        try:
            code = cli.main([str(a) for a in argv])
        except SystemExit as e:  # argparse
            code = e.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def demo(monkeypatch, small_mnist):
    """The experiment "demo" becomes a few seconds' work."""
    data = small_mnist.subset(300, 200)
    tiny = {"layers": (784, 80, 10), "epochs": 1}
    runs = tuple(
        Run(method, 1 / 8 if method != "dense" else 1.0, **tiny)
        for method in ("dense", "small_dense", "hashed:elementwise", "hashed:strips")
    )
    monkeypatch.setattr(experiments, "DATASETS", {"mnist": lambda: data})
    monkeypatch.setitem(experiments.EXPERIMENTS, "demo", Experiment("demo", "a short one", runs))


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C comes in the given step of training, counted from 0."""
    real = nn._softmax_cross_entropy

    def at(step):
        steps = itertools.count()

        def interrupted(*args):
            if next(steps) == step:
                signal.raise_signal(signal.SIGINT)
            return real(*args)

        monkeypatch.setattr(nn, "_softmax_cross_entropy", interrupted)

    return at


# As a whole


def test_version_and_module():
    out = subprocess.run([sys.executable, "-m", "hashedmm", "--version"], capture_output=True, text=True, check=True)
    assert out.stdout == f"hashedmm {hashedmm.__version__}\n"


@pytest.mark.parametrize(
    "command", [(), ("doctor",), ("train",), ("experiment",), ("bench",), ("compile",), ("report",)]
)
def test_help_fits_a_terminal(hashedmm_cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = hashedmm_cli(*command, "--help")
    assert code == 0 and out.startswith("usage: hashedmm") and not err
    assert max(map(len, out.splitlines())) <= 80


def test_output_may_be_cut_short():
    reader = subprocess.Popen(
        [sys.executable, "-m", "hashedmm", "experiment", "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    reader.stdout.close()
    assert (reader.wait(60), reader.stderr.read()) == (1, b"")
    reader.stderr.close()


def test_errors_show_where_they_come_from_if_asked(hashedmm_cli, monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ValueError, match="there is no experiment"):
        hashedmm_cli("experiment", "nothing")


WRONG = [
    ((), "the following arguments are required: COMMAND"),
    (("fly",), "argument COMMAND: invalid choice: 'fly'"),
    (("train", "--compression", "2"), "--compression: expected a number in (0, 1], such as 1/8 or 0.125, got '2'"),
    (("train", "--compression", "1/0"), "--compression: expected a number in (0, 1]"),
    (("train", "--compression", "nan"), "--compression: expected a number in (0, 1]"),
    (("train", "--structure", "spirals"), "--structure: invalid choice: 'spirals'"),
    (("train", "--layers", "784"), "--layers: expected sizes of at least 1, such as 784,1000,10, got '784'"),
    (("train", "--layers", "784,0,10"), "--layers: expected sizes of at least 1"),
    (("train", "--layers", "100,50,10"), "--layers must begin with 784 and end with 10 for mnist, got 100,50,10"),
    (("train", "--epochs", "0"), "--epochs: expected an integer of at least 1, got '0'"),
    (("train", "--batch", "1.5"), "--batch: expected an integer of at least 1, got '1.5'"),
    (("train", "--batch", "400", "--limit", "300"), "batch must be at most 300, the number of training samples"),
    (("train", "--lr", "0"), "--lr: expected a number above 0, got '0'"),
    (("train", "--lr", "inf"), "--lr: expected a number above 0, got 'inf'"),
    (("train", "--dropout", "1"), "--dropout: expected a rate in [0, 1), got '1'"),
    (("train", "--seed", "4294967296"), "--seed: expected an integer from 0 to 4294967295"),
    (("train", "--validation", "60000"), "validation must leave training samples"),
    (("train", "--limit", "60001"), "--limit must be at most the 60000 samples there are, got 60001"),
    (("train", "--device", "gpu"), "device gpu: there is no GPU that CuPy can use here; `hashedmm doctor` says"),
    (("train", "--device", "tpu"), "--device: invalid choice: 'tpu'"),
    (("experiment", "demo", "--device", "gpu"), "device gpu: there is no GPU that CuPy can use here"),
    (("train", "--hash", "md5"), "--hash: invalid choice: 'md5'"),
    (("train", "--panel", "128"), "--panel: expected height and width, such as 128,1024, got '128'"),
    (("train", "--height", "16", "--structure", "tiles"), "--height belongs to strips, and --structure is tiles"),
    (("train", "--length", "8"), "--length belongs to runs and codebook, and --structure is strips"),
    (("train", "--tile", "8"), "--tile belongs to tiles, and --structure is strips"),
    (("train", "--structure", "dense", "--compression", "1/8"), "--compression: a dense network stores every weight"),
    (("train", "--compression", "1/100000"), "What would fit"),
    (("train", "--data", "nowhere"), "'nowhere', which is not a folder"),
    (("train", "--save", "no/net"), "--save=no/net: the folder"),
    (("train", "--save", "."), "--save must name a file, got the folder ."),
    (("train", "--state", "no/state"), "--state=no/state: the folder"),
    (("train", "--state", "a", "--save", "./a"), "--save must name another file than the state"),
    (("train", "--resume", "nothing"), "--resume must name the state of an interrupted run; there is no file nothing"),
    (("train", "--timeout", "9"), "--timeout belongs to --parallel"),
    (("train", "--parallel", "rows"), "--parallel: invalid choice: 'rows'"),
    (("train", "--parallel", "data", "--timeout", "0"), "--timeout: expected a number above 0, got '0'"),
    (("train", "--lay", "784,10"), "unrecognized arguments: --lay 784,10"),
    (("experiment",), "name an experiment: demo"),
    (("experiment", "nothing"), "there is no experiment 'nothing'; there are demo"),
    (("experiment", "demo", "--output", "demo.txt"), "output must name a file that ends in .json, got 'demo.txt'"),
    (("bench", "--cpu", "--gpu"), "argument --gpu: not allowed with argument --cpu"),
    (("bench", "--parallel", "--gpu"), "argument --gpu: not allowed with argument --parallel"),
    (("bench", "--parallel", "--only", "gpu_layer"), "--only names records of bench --gpu"),
    (("bench", "--cpu", "--only", "gpu_layer"), "--only names records of bench --gpu"),
    (("bench", "--cpu", "--rows", "4096"), "--rows is for bench --stream"),
    (("bench", "--stream", "--gpu"), "--stream is a benchmark of its own"),
    (("bench", "--stream", "--budget", "8 GB"), "--budget: expected a number of bytes such as 8e9, got '8 GB'"),
    (("bench", "--gpu", "--only", "layer"), "only must name some of gpu_roofs, gpu_layer"),
    (("report", "--check", "nothing.md"), "nothing.md: No such file or directory"),
    (("report", "--check", "--write"), "not allowed with argument"),
]


@pytest.mark.parametrize("argv, message", WRONG, ids=[" ".join(argv) or "nothing" for argv, _ in WRONG])
def test_wrong_arguments_end_with_one_line(hashedmm_cli, tmp_path, monkeypatch, argv, message):
    monkeypatch.setattr(nn.MLP, "backward", lambda *_: pytest.fail("it trains"))
    code, _, err = hashedmm_cli(*argv)
    assert code == 2
    assert err.startswith("hashedmm: error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


# doctor


def test_doctor_says_that_the_cpu_path_works(hashedmm_cli):
    code, out, err = hashedmm_cli("doctor")
    assert code == 0 and not err
    for name in (
        "Python", "NumPy", "numba", "matplotlib", "JupyterLab", "NVIDIA GPU", "CuPy", "MNIST", "CPU path", "emulator",
        "on the CPU", "CUDA kernels",
    ):  # fmt: skip
        assert re.search(rf"^  {name} +\S", out, re.MULTILINE), name
    assert "60,000 + 10,000 samples, checksums verified" in out and "products agree with the reference" in out
    places = str(datasets._mnist_folder(None))  # a long path is not broken
    assert all(len(line) <= 80 or places in line for line in out.splitlines())


def test_doctor_finds_a_broken_cpu_path(hashedmm_cli, monkeypatch):
    monkeypatch.setattr(cli, "hashed_matmul", lambda w, x, spec, kernel="auto": np.zeros(3) + (kernel == "auto"))
    code, out, _ = hashedmm_cli("doctor")
    assert code == 1 and "a product of strips differs from the reference" in " ".join(out.split())

    def fail(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cli, "hashed_matmul", fail)
    code, out, _ = hashedmm_cli("doctor")
    assert code == 1 and "fails (RuntimeError: no compiler)" in " ".join(out.split()) and "Traceback" not in out


def test_doctor_without_data_and_packages(hashedmm_cli, monkeypatch, tmp_path):
    def no_data(path=None):
        raise FileNotFoundError("MNIST: a file is missing; copy it")

    monkeypatch.setattr(cli, "load_mnist", no_data)
    monkeypatch.setattr(cli, "_version", lambda package: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, _ = hashedmm_cli("doctor")
    assert code == 0 and "a file is missing; copy it" in out
    assert "pip install -e '.[plot]'" in out and "none found" in out


def test_doctor_names_the_gpu(hashedmm_cli, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA Example 9000, 555.42'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert "NVIDIA Example 9000 with driver 555.42" in hashedmm_cli("doctor")[1]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert "none found" in hashedmm_cli("doctor")[1]


# train


def test_train_prints_one_line_of_json(hashedmm_cli, tmp_path, mnist):
    code, out, err = hashedmm_cli(*SHORT, "--json", "--compression", "0.125", "--save", "net")
    assert code == 0 and out.count("\n") == 1 and "epoch" in err
    result = json.loads(out)
    model = load_model(tmp_path / "net")
    assert result["test_error"] == model.error(mnist.x_test, mnist.y_test)
    assert result["stored_buckets"] == sum(linear.spec.n_buckets for linear in model.linears)
    assert result["seconds_per_epoch"] > 0 and len(result["history"]["loss"]) == 2
    assert result["structure"] == "strips" and result["compression"] == 1 / 8 and result["layers"] == [784, 80, 10]
    assert result["dropout"] == model.dropout == experiments.default_dropout("hashed:strips", 1 / 8)
    assert read_info(tmp_path / "net")["test_error"] == result["test_error"]
    assert [p.name for p in tmp_path.iterdir()] == ["net"]  # no state is left


def test_train_tells_a_person(hashedmm_cli, mnist):
    code, out, err = hashedmm_cli(*SHORT, "--validation", "100", "--quiet", "--save", "net")
    assert code == 0 and not err
    error = load_model("net").error(mnist.x_test, mnist.y_test)
    assert f"test error  {error:.2f} % of 10,000 samples" in out
    assert re.search(r"weights     of epoch [12], the best on the samples held out", out)
    assert re.search(r"stored      [\d,]+ values, [\d,]+ bytes, 1\d\.\d % of the dense net's", out)
    assert re.search(r"time        2 epochs of [\d.]+ s, [\d.]+ s in all", out) and "load_model('net')" in out


@pytest.mark.parametrize(
    "argv, block, stride",
    [
        (("--structure", "dense"), None, None),
        (("--structure", "elementwise"), (1, 1), None),
        (("--structure", "panels", "--panel", "16x98"), (1, 1), None),
        (("--structure", "strips", "--height", "8", "--stride", "4"), (8, 1), 4),
        (("--structure", "strips", "--height", "8", "--compression", "1/16"), (8, 1), None),
        (("--structure", "strips", "--compression", "1/16", "--layers", "784-128-10"), (128, 1), 64),
        (("--structure", "runs", "--length", "4"), (1, 4), 1),
        (("--structure", "tiles", "--tile", "4"), (4, 4), 1),
        (("--structure", "codebook", "--length", "4"), (1, 4), None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) and isinstance(value[0], str) else "",
)
def test_train_builds_what_it_is_told(hashedmm_cli, monkeypatch, argv, block, stride):
    models = []

    def no_training(model, data, **kwargs):
        models.append(model)
        raise ValueError("that will do")

    monkeypatch.setattr(cli, "train", no_training)
    assert hashedmm_cli(*SHORT, "--hash", "xxh32", "--seed", "7", *argv)[2] == "hashedmm: error: that will do\n"
    spec = models[0].linears[0].spec
    assert (spec and (spec.block, spec.stride)) == (block and (block, stride))
    assert models[0].seed == 7 and (spec is None or spec.hash == "xxh32")


def test_train_goes_on_after_an_interrupt(hashedmm_cli, interrupt, tmp_path):
    whole = json.loads(hashedmm_cli(*SHORT, "--json", "--dropout", "0.25")[1])
    interrupt(4)
    code, out, err = hashedmm_cli(*SHORT, "--json", "--dropout=0.25")
    interrupt(-1)
    assert code == 130 and not out and "1 of 2 epochs are done" in err
    (state,) = (tmp_path / "out").iterdir()
    command = err.splitlines()[-1].split()
    assert command == ["hashedmm", *SHORT, "--json", "--dropout=0.25", "--resume", str(state.relative_to(tmp_path))]

    code, _, err = hashedmm_cli(*command[1:], "--lr", "0.5")
    assert code == 2 and "lr was 0.001, now it is 0.5" in err and state.exists()
    result = json.loads(hashedmm_cli(*command[1:])[1])
    assert not state.exists()
    for key in ("test_error", "dropout", "stored_buckets"):
        assert result[key] == whole[key]
    assert result["history"]["loss"] == whole["history"]["loss"]


def test_train_says_when_it_replaces_a_state(hashedmm_cli, interrupt):
    interrupt(1)
    err = hashedmm_cli(*SHORT, "--quiet")[2]
    interrupt(-1)
    code, _, again = hashedmm_cli(*SHORT, "--quiet")
    assert code == 0 and "this one begins anew" in again and again.splitlines()[-1] == err.splitlines()[-1]


def test_train_keeps_a_state_that_was_asked_for(hashedmm_cli, interrupt, tmp_path):
    interrupt(1)
    code, _, err = hashedmm_cli(*SHORT, "--state", "my state", "--quiet")
    interrupt(-1)
    assert code == 130 and err.splitlines()[-1].endswith("--quiet --resume 'my state'")
    code, _, err = hashedmm_cli(*SHORT, "--state", "my state")
    assert code == 2 and "my state exists. To go on from it, take --resume" in err
    assert hashedmm_cli(*SHORT, "--resume", "my state", "--quiet")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["my state"]


def test_train_reads_data_from_a_folder(hashedmm_cli, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    code, _, err = hashedmm_cli(*SHORT, "--data", ".")
    assert code == 2 and "holds neither" in err


def test_train_reports_divergence(hashedmm_cli):
    code, out, err = hashedmm_cli(*SHORT, "--lr", "1e30", "--json", "--quiet")
    assert code == 2 and not out and "training diverged" in err


# experiment


def test_experiment_prints_a_table_and_draws_a_figure(hashedmm_cli, demo, tmp_path):
    code, out, err = hashedmm_cli("experiment", "demo")
    assert code == 0 and "4/4  hashed:strips 1/8" in err
    record = records.read(tmp_path / "out" / "demo.json")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    for row, line in zip(record["rows"], lines[3:], strict=False):
        for text in (f"{row['stored_values']:,}", f"{row['stored_bytes']:,}", f"{row['test_error_mean']:.2f}"):
            assert text in line.split()
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "make lab" in lines[-1]

    code, again, err = hashedmm_cli("experiment", "demo")
    assert code == 0 and again == out and "is complete already" in err


def test_experiment_can_be_interrupted(hashedmm_cli, demo, interrupt, tmp_path):
    interrupt(4)
    code, out, err = hashedmm_cli("experiment", "demo", "--output", "my.json", "--fresh", "--quiet")
    interrupt(-1)
    assert code == 130 and not out
    assert err.splitlines()[-1].strip() == "hashedmm experiment demo --output my.json --quiet"
    assert len(records.read(tmp_path / "my.json")["rows"]) == 1
    assert hashedmm_cli(*err.splitlines()[-1].split()[1:])[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.json", "my.png"]


def test_experiment_without_matplotlib(hashedmm_cli, demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "hashedmm.plots", None)
    monkeypatch.delattr(hashedmm, "plots", raising=False)
    code, out, _ = hashedmm_cli("experiment", "demo", "--quiet")
    assert code == 0 and "figure  none: it needs matplotlib" in out


def test_experiment_lists_all_runs(hashedmm_cli):
    code, out, _ = hashedmm_cli("experiment", "--list")
    assert code == 0 and max(map(len, out.splitlines())) <= 120
    for experiment in experiments.EXPERIMENTS.values():
        assert f"{experiment.name}: {experiment.description}" in out
        assert f"    {len(experiment.runs)} runs, " in out
    assert len(out.splitlines()) == 2 * len(experiments.EXPERIMENTS)
    code, out, _ = hashedmm_cli("experiment", "mnist_cpu", "--list")
    assert code == 0 and len(out.splitlines()) == 2 + len(experiments.EXPERIMENTS["mnist_cpu"].runs)
    assert "    hashed:strips 1/64 stride=16  " in out


# bench, report


def test_bench_is_handed_on(hashedmm_cli, monkeypatch, tmp_path):
    from hashedmm import bench

    asked = []
    monkeypatch.setattr(
        bench, "run_cpu", lambda folder, quick: asked.append((str(folder), quick)) or [folder / "a.json"]
    )
    monkeypatch.setattr(
        bench, "run_gpu", lambda folder, quick, only: asked.append((str(folder), quick, only)) or [folder / "b.json"]
    )
    assert hashedmm_cli("bench", "--cpu", "--quick")[:2] == (0, f"record  {os.path.join('out', 'a.json')}\n")
    assert hashedmm_cli("bench", "--cpu", "--output", "x")[0] == 0
    assert hashedmm_cli("bench", "--gpu", "--only", "gpu_layer", "--only", "gpu_roofs")[0] == 0
    assert asked == [("out", True), ("x", False), ("out", False, ["gpu_layer", "gpu_roofs"])]
    asked.clear()
    for there in (False, True):  # whatever the machine has
        monkeypatch.setattr(cli, "gpu_available", lambda there=there: there)
        assert hashedmm_cli("bench", "--quick")[0] == 0
    assert asked == [("out", True), ("out", True, [])]
    (tmp_path / "file").write_text("")
    assert hashedmm_cli("bench", "--cpu", "--output", "file")[0] == 2


def test_bench_of_streams_is_handed_on(hashedmm_cli, monkeypatch):
    from hashedmm import bench_stream

    asked = []
    monkeypatch.setattr(bench_stream, "run", lambda folder, **k: asked.append(k) or [folder / "s.json"])
    sizes = ("--rows", "4096", "--columns", "8", "--budget", "1e7")
    assert hashedmm_cli("bench", "--stream", *sizes)[:2] == (0, f"record  {os.path.join('out', 's.json')}\n")
    assert hashedmm_cli("bench", "--stream", "--quick")[0] == 0
    assert asked == [
        {"rows": 4096, "n": 8, "budget": 1e7, "quick": False},
        {"rows": None, "n": None, "budget": None, "quick": True},
    ]


def test_tables_of_timings_and_memory():
    spec = json.loads(hashedmm.HashSpec.strips((64, 64), 1 / 4, height=16, stride=8).to_json())
    row = {"operation": "matmul", "structure": "strips", "spec": spec, "compression": 1 / 4, "shape": [64, 64, 5]}
    times = {"kernel": "cpu_sketch", "dtype": "float32", "ms": 0.5, "ms_p20": 0.4, "ms_p80": 0.6, "error": 0.0}
    small = {
        **row,
        **times,
        "structure": "small_dense",
        "spec": None,
        "ms": 123.4,
        "baselines": {"numpy_float32": 61.7},
    }
    timing = records.new_record("timing", [{**row, **times, "baselines": {"numpy_float32": 2.0}}, small], "bench")
    heading, _, first, second = (re.split("  +", line) for line in report.text_table(timing).splitlines())
    assert heading == "operation|outputs x inputs|n|structure|compression|ms|numpy float32, ms|times as fast".split("|")
    assert first == "matmul|64 x 64|5|strips, height 16, stride 8|1/4|0.5|2|4.00".split("|")
    assert second == "matmul|64 x 64|5|small dense|1/4|123|61.7|0.50".split("|")
    on_gpu = records.new_record("timing", [{**row, **times, "kernel": "naive", "baselines": {"cublas": 1.0}}], "bench")
    assert re.split("  +", report.text_table(on_gpu).splitlines()[-1])[4:7] == ["1/4", "naive", "0.5"]
    sizes = {"stored_bytes": 999, "peak_bytes": 1536, "result_bytes": 200 * 2**20, "dense_bytes": 2**40}
    memory = records.new_record("memory", [row | sizes], "bench")
    last = re.split("  +", report.text_table(memory).splitlines()[-1])
    assert last[-5:] == ["1/4", "999 bytes", "1.5 KiB", "200 MiB", "1024 GiB"]
    with pytest.raises(ValueError, match="not of 'roof'"):
        report.text_table(records.new_record("roof", [], "bench"))


@pytest.fixture
def results(monkeypatch, tmp_path, hashedmm_cli, demo):
    """data/results holds one record, tiny."""
    folder = tmp_path / "results"
    assert hashedmm_cli("experiment", "demo", "--quiet", "--output", folder / "tiny.json")[0] == 0
    monkeypatch.setattr(records, "results_dir", lambda: folder)
    return folder


def test_report_writes_tables_and_notices_changes(hashedmm_cli, results, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table: tiny -->\nold\n<!-- end -->\nafter\n")
    readme.chmod(0o600)
    code, _, err = hashedmm_cli("report", "--check")
    assert code == 1 and "differ from the records; `hashedmm report --write README.md` mends it" in err
    assert hashedmm_cli("report", "--write")[0] == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- table: tiny -->\n\n| method") and text.endswith("\n\n<!-- end -->\nafter\n")
    assert "| elementwise | 1/8 | 784-80-10 |" in text and "`hashedmm experiment demo`" in text
    assert readme.stat().st_mode & 0o777 == 0o600
    assert hashedmm_cli("report", "--check")[0] == 0
    assert hashedmm_cli("report", "--write", "README.md")[1] == "README.md: its tables agree with the records.\n"

    readme.write_text("<!-- table: tiny method=hashed:strips batch=100 -->\n<!-- end -->\n")
    assert hashedmm_cli("report", "--write")[0] == 0
    assert "| strips |" in readme.read_text() and "elementwise" not in readme.read_text()

    record = records.read(results / "tiny.json")
    record["rows"][3]["test_error_mean"] += 1
    records.write(results / "tiny.json", record)
    assert hashedmm_cli("report", "--check")[0] == 1
    assert "tiny\n" in hashedmm_cli("report")[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "results"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- table: nothing -->\n<!-- end -->", "the table 'nothing' has no record; records there are: tiny"),
        ("<!-- table: tiny method=sparse -->\n<!-- end -->", "has no rows: nothing in the record 'tiny' is so"),
        ("<!-- table: tiny -->\n", "no marker alone"),
        ("<!-- end -->\n", "no marker alone"),
        ("<!-- table: tiny -->\n<!-- table: tiny -->\n<!-- end -->\n", "no marker alone"),
        ("<!-- table tiny -->\n<!-- end -->\n", "no marker alone"),
    ],
)
def test_report_refuses_broken_markers(hashedmm_cli, results, tmp_path, text, message):
    (tmp_path / "README.md").write_text(text)
    code, _, err = hashedmm_cli("report", "--write")
    assert code == 2 and message in err and (tmp_path / "README.md").read_text() == text
