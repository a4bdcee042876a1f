"""The benchmark of several ranks: its record, its formulas, and a small run by mpiexec."""

import json

import numpy as np
import pytest
from test_parallel import mpi, needs_mpi

from hashedmm import bench, bench_parallel, emulator, nn, records
from hashedmm.bench_parallel import OPTIONS, allreduce_bytes, dense_sent_bytes, line, network, speedup
from hashedmm.hashing import derive_seed
from hashedmm.parallel import MODES, bounds

pytest.importorskip("mpi4py", reason="mpi4py is missing: pip install -e '.[parallel,mpich]'")


def test_the_layers_are_those_of_the_benchmark_of_layers():
    assert set(OPTIONS) == set(bench.COMPRESSIONS)
    for compression in OPTIONS:
        model = network(1024, compression, np)
        assert model.sizes == [1024, 1024, 1024, 1024, 10]
        for i, linear in enumerate(model.linears[:-1]):
            theirs = json.loads(bench.LAYER["strips"]((1024, 1024), compression).to_json())
            assert json.loads(linear.spec.to_json()) == theirs | {"seed": derive_seed(1, i)}
        assert model.linears[-1].spec.structure == "elementwise"
        assert nn._hashed_layers(model) is not None  # one GPU can capture its steps


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("values", [1, 7, 10, 1000])
def test_bytes_of_an_allreduce(values, ranks):
    """By what each rank sends in Ranks.allreduce."""
    at = bounds(values, ranks)
    sent = [4 * (values - own + (ranks - 1) * own) for own in np.diff(at)]
    assert allreduce_bytes(values, ranks) == max(sent)


def test_bytes_if_the_layers_were_dense():
    model = network(1024, 1 / 64, np)
    values = 3 * (1024**2 + 1024) + 1024 * 10 + 10 + 2
    assert dense_sent_bytes(model, "data", 2, 1) == 4 * values
    assert dense_sent_bytes(model, "panels", 3, 1000) == 1000 + 4 * 2 * (10240 - 160)


def test_speedup_counts_samples():
    row = {"batch": 64, "ms": 4.0, "baselines": {"one_rank": 6.0, "one_rank_graph": 3.0}}
    assert speedup(row, 32) == pytest.approx((64 / 4) / (32 / 3))


def test_a_line_names_what_it_is_compared_with():
    row = {
        "mode": "data", "scaling": "weak", "compression": 1 / 64, "batch": 64, "ranks": 2, "ms": 4.0, "eager_ms": 7.25,
        "baselines": {"one_rank": 6.0, "one_rank_graph": 3.0}, "captured": True, "speedup": 1.5, "sent_bytes": 2e6,
        "dense_sent_bytes": 3e6, "error": 1e-7,
    }  # fmt: skip
    assert "4.000 ms  (eager 7.250, one_rank 6.000, one_rank_graph 3.000)   1.50 x" in line(row)
    assert "(one_rank 6.000)" in line(row | {"captured": False, "baselines": {"one_rank": 6.0}})


@pytest.mark.parametrize("captured", [False, True])
def test_gradients_are_those_of_a_step(captured):
    if captured and not emulator.available():
        pytest.skip(emulator.why_not())
    model, batch = network(256, 1 / 8, np), 5
    found = bench_parallel.gradients(model, batch, captured)
    same = network(256, 1 / 8, np)
    training = bench_parallel._Training(same, batch, 1, captured=False)
    training.stepper.begin(training.order, 0, 0)
    training.stepper.run(0)
    expected = {name: p.grad for name, p in same.parameters().items()}
    assert found.keys() == expected.keys() and bench_parallel.relative_error(found, expected) < 1e-5


def test_one_rank_is_refused(tmp_path):
    class Alone:
        size = 1

    with pytest.raises(ValueError, match="at least two ranks: mpiexec -n 2"):
        bench_parallel.run(tmp_path, Alone())


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    program = (
        "from hashedmm import bench_parallel, cli\n"
        "bench_parallel.gpu_available = lambda: False\n"
        "bench_parallel.CPU_QUICK = {'width': 768, 'batch': 7, 'steps': 1, 'rounds': 2}\n"
        "raise SystemExit(cli.main(['bench', '--parallel', '--quick', '--output', 'results']))\n"
    )
    (folder / "program.py").write_text(program)
    code, out, err = mpi(2, folder / "program.py", cwd=folder)
    assert code == 0, err
    assert [file.name for file in (folder / "results").iterdir()] == ["cpu_parallel.json"]
    assert "record  results/cpu_parallel.json" in out
    return records.read(folder / "results" / "cpu_parallel.json"), out


@needs_mpi
def test_record(record):
    record, out = record
    assert record["kind"] == "scaling" and record["command"] == "mpiexec -n 2 hashedmm bench --parallel --quick"
    assert {"mpi4py", "mpi"} <= record["software"].keys()
    kinds = [(row["compression"], row["mode"], row["scaling"], row["batch"]) for row in record["rows"]]
    assert kinds == [
        (c, mode, scaling, batch)
        for c in bench.COMPRESSIONS
        for mode in MODES
        for scaling, batch in (("strong", 7), ("weak", 14))
    ]
    for row in record["rows"]:
        assert row["ms_p20"] <= row["ms"] <= row["ms_p80"] and row["ranks"] == 2
        assert not row["captured"] and row["eager_ms"] == row["ms"] and list(row["baselines"]) == ["one_rank"]
        assert row["speedup"] == pytest.approx(speedup(row, 7))
        assert 0 <= row["error"] < 1e-5
        assert row["grad_w_same_bits"] is (True if row["mode"] == "panels" else None)
        assert line(row) in out.splitlines()


@needs_mpi
def test_bytes_of_the_record(record):
    """Panels: 3 gathers and 2 gradients of activations, half of the rows each. Data: all stored values, once each."""
    rows, _ = record[0]["rows"], record[1]
    for row in rows:
        model = network(768, row["compression"], np)
        at = [256 * part for part in bounds(3, 2)]  # 3 rows of panels: one rank has 1, the other 2
        if row["mode"] == "panels":
            mine = np.diff(at)
            gathers, gradients = 3 * mine * row["batch"], 2 * (768 - mine) * row["batch"]
            expected = 4 * (gathers + gradients)
            expected[0] += 4 * (model.linears[-1].weight.value.size + 10)
        else:
            expected = [4 * (model.stored_values + 2)] * 2
        assert row["sent_bytes_by_rank"] == list(expected) and row["sent_bytes"] == max(expected)
        assert row["dense_sent_bytes"] > row["sent_bytes"]


@needs_mpi
def test_a_wrong_gradient_is_not_timed(tmp_path):
    program = (
        "from hashedmm import bench_parallel, nn, parallel\n"
        "from hashedmm.parallel import Gather, world\n"
        "right = Gather.backward\n"
        "Gather.backward = lambda self, gy, **k: right(self, gy * 1.01, **k)\n"
        "bench_parallel.gpu_available = lambda: False\n"
        "bench_parallel.CPU_QUICK = {'width': 768, 'batch': 7, 'steps': 1, 'rounds': 2}\n"
        "with world() as ranks:\n"
        "    bench_parallel.run('results', ranks, quick=True)\n"
    )
    (tmp_path / "program.py").write_text(program)
    code, _, err = mpi(2, tmp_path / "program.py", cwd=tmp_path)
    assert code != 0 and "is wrong, so it is not timed" in err
    assert not (tmp_path / "results").exists()


@pytest.mark.gpu
@needs_mpi
def test_benchmark_on_two_gpus(tmp_path):
    import cupy

    if (count := cupy.cuda.runtime.getDeviceCount()) < 2:
        pytest.skip(f"needs two GPUs, and there is {count}")
    code, out, err = mpi(2, "-m", "hashedmm", "bench", "--parallel", "--quick", "--output", tmp_path, seconds=580)
    assert code == 0, err
    rows = records.read(tmp_path / "gpu_parallel.json")["rows"]
    assert len(rows) == 8 and all(row["error"] < bench_parallel.TOLERANCE for row in rows)
    assert all(row["captured"] and list(row["baselines"]) == ["one_rank", "one_rank_graph"] for row in rows)
