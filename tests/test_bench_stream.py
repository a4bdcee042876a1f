"""The benchmark of streams: it verifies before it times, and its records are complete. No test asserts a speed here."""

import json

import numpy as np
import pytest

from hashedmm import HashSpec, bench_stream, hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x, records
from hashedmm.stream import Streamed, plan_stream


def spec_and_numbers(rng, n=5):
    spec = HashSpec.strips((140, 110), 1 / 4, height=16, panel=(32, 40), seed=3)
    sizes = spec.n_buckets, (spec.cols, n), (spec.rows, n)
    return spec, *(rng.standard_normal(size, np.float32) for size in sizes)


def test_a_small_run_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_stream, "gpu_available", lambda: False)
    monkeypatch.setattr(bench_stream, "ROUNDS", 2)
    lines = []
    (path,) = bench_stream.run(tmp_path, rows=1024, n=8, budget=4e6, say=lines.append)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpu_stream.json"]  # the buckets' files are gone
    record = records.read(path)
    assert record["kind"] == "scaling" and record["command"].endswith("--stream --rows 1024 --columns 8 --budget 4e+06")
    rows = {(r["operation"], r["structure"]): r for r in record["rows"]}
    assert set(rows) == {(o, "strips") for o in ("matmul", "grad_x", "grad_w", "step")} | {("matmul", "dense")}
    assert len(lines) == 5
    spec = HashSpec.from_json(json.dumps(rows["matmul", "strips"]["spec"]))
    for (operation, structure), row in rows.items():
        assert row["shape"] == [1024, 1024, 8] and row["error"] < 1e-5 and row["ms_p20"] <= row["ms"] <= row["ms_p80"]
        assert row["of_bound"] == pytest.approx(max(row["copies_ms"], row["products_ms"]) / row["ms"])
        assert row["bound"] == ("copies" if row["copies_ms"] >= row["products_ms"] else "products")
        if structure == "dense":
            assert row["scaled_ms"] == row["ms"] and row["up_bytes"] == 4 * 1024**2
            continue
        assert row["peak_bytes"] <= 1.1 * row["predicted_bytes"] + 2e5 and row["predicted_bytes"] <= 4e6
        moved = {"matmul": (4, 0), "grad_x": (4, 0), "grad_w": (0, 4), "step": (12, 8)}[operation]
        assert (row["up_bytes"], row["down_bytes"]) == tuple(b * spec.n_buckets for b in moved)


@pytest.mark.parametrize("operation", ["matmul", "grad_x", "grad_w", "backward"])
def test_a_wrong_stream_is_not_timed(operation, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_stream, "gpu_available", lambda: False)
    monkeypatch.setattr(bench_stream, "ROUNDS", 1)
    right = getattr(Streamed, operation)

    def wrong(self, *arguments, **options):
        out = right(self, *arguments, **options)
        out[...] *= 1.01
        return out

    monkeypatch.setattr(Streamed, operation, wrong)
    with pytest.raises(ArithmeticError, match="is wrong, so it is not timed"):
        bench_stream.run(tmp_path, rows=1024, n=2, budget=4e6, say=lambda line: None)
    assert not list(tmp_path.iterdir())


def test_bad_sizes(tmp_path):
    for wrong, message in (
        ({"rows": 1000}, "rows must be a multiple of 256 from 1024"),
        ({"n": 0}, "n must be at least"),
    ):
        with pytest.raises(ValueError, match=message):
            bench_stream.run(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_the_checks_find_what_is_wrong(rng):
    spec, w, x, gy = spec_and_numbers(rng)
    at = [0, 17, 139]
    dense = bench_stream.dense_rows(w, spec, at, np.float32)
    y = hashed_matmul(w, x, spec)
    assert bench_stream.check(dense, x, y, at) < 1e-6
    y[17] = -y[17]
    assert bench_stream.check(dense, x, y, at) > 0.1
    at = [0, 41, 109]
    dense = bench_stream.dense_columns(w, spec, at, np.float32)
    gx = hashed_matmul_grad_x(w, gy, spec)
    assert bench_stream.check(dense.T, gy, gx, at) < 1e-6
    gx[109, 0] = np.nan
    assert bench_stream.check(dense.T, gy, gx, at) == float("inf")
    panels, gw = bench_stream._panels(spec), hashed_matmul_grad_w(x, gy, spec)
    assert len(panels) == 2 + bench_stream.PANELS and panels[:2] == [(0, 0), (4, 2)]
    assert bench_stream.check_panels(x, gy, gw, spec, panels) < 1e-6
    assert bench_stream.check_panels(x, gy, gw / 8, spec, panels, 1 / 8) < 1e-6
    gw[-1] += 1  # of the last panel
    assert bench_stream.check_panels(x, gy, gw, spec, panels) > 1e-4


def test_weights_of_columns_are_those_of_the_spec(rng):
    for spec in (spec_and_numbers(rng)[0], HashSpec((90, 70), 1 / 4, (3, 2), (9, 8), 2, seed=3)):
        bucket, sign = spec.indices()
        cols = [0, 7, 39, spec.cols - 1]
        found = bench_stream.weights_of_columns(spec, cols)
        assert np.array_equal(found[0], bucket[:, cols]) and np.array_equal(found[1], sign[:, cols])


def test_host_memory_is_measured():
    with bench_stream.HostPeak(0.001) as host:
        a = np.ones(2**25)
    if host.resident is None:
        pytest.skip("there is no /proc here")
    assert 0.8 * a.nbytes < host.resident < 1.5 * a.nbytes and host.bytes is not None


def test_the_record_of_streams_keeps_what_is_promised():
    if (record := records.load_all("scaling").get("gpu_stream")) is None:
        pytest.skip("there is no such record")
    rows = {(r["operation"], r["structure"]): r for r in record["rows"]}
    for operation in ("matmul", "grad_x", "grad_w", "step"):
        row = rows[operation, "strips"]
        assert row["of_bound"] >= 0.8, operation
        assert row["peak_bytes"] <= row["budget"]
        assert row["predicted_bytes"] == pytest.approx(row["peak_bytes"], rel=0.1)
        if "peak_host_bytes" in row:
            assert row["predicted_host_bytes"] == pytest.approx(row["peak_host_bytes"], rel=0.1)
    large = rows["matmul", "strips"]
    assert large["dense_bytes"] > record["device"]["memory_bytes"] > large["budget"]
    assert rows["matmul", "dense"]["scaled_to"] == large["shape"][:2]


@pytest.mark.gpu
def test_a_small_run_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_stream, "ROUNDS", 2)
    (path,) = bench_stream.run(tmp_path, rows=8192, n=256, budget=5e8, say=lambda line: None)
    rows = records.read(path)["rows"]
    assert path.name == "gpu_stream.json" and len(rows) == 5
    for row in rows[:4]:
        assert row["peak_bytes"] <= 5e8 and row["predicted_bytes"] == pytest.approx(row["peak_bytes"], rel=0.1)
        spec = HashSpec.from_json(json.dumps(row["spec"]))
        operation = "backward" if row["operation"] == "step" else row["operation"]
        plan = plan_stream(spec, 256, operation=operation, budget=5e8, slots=int(operation == "backward"))
        assert plan.device_bytes == pytest.approx(row["predicted_bytes"], rel=0.1)
