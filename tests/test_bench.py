"""The benchmark: verifies before it times, times in turns, and writes complete records. No test asserts a speed."""

import numpy as np
import pytest

from hashedmm import HashSpec, bench, emulator, matmul, records


def test_functions_take_turns():
    calls = []
    times = bench.measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, budget=0, least=3)
    rounds = [calls[i : i + 2] for i in range(0, len(calls), 2)]  # one untimed call each, then what is timed
    assert len(rounds) == 4 and all(sorted(r) == ["a", "b"] for r in rounds)
    assert [len(t) for t in times.values()] == [3, 3] and min(map(min, times.values())) >= 0


def test_relative_error():
    a = np.array([3.0, 4.0])
    assert bench.relative_error(a, a) == 0
    assert bench.relative_error(a * 1.01, a) == pytest.approx(0.01)
    assert bench.relative_error(np.array([np.nan, 4.0]), a) == float("inf")
    assert bench.relative_error(a[:1], a) == float("inf")
    assert bench.relative_error(a, 0 * a) == 5


@pytest.mark.parametrize("operation", ["matmul", "grad_x", "grad_w"])
def test_a_wrong_kernel_is_not_timed(operation, monkeypatch):
    spec = HashSpec.strips((64, 48), 1 / 8, height=16)
    row = bench._product(operation, spec, 3, 0.0)
    assert row["error"] < 1e-6 and row["shape"] == [64, 48, 3]
    run = matmul.cpu.run
    monkeypatch.setattr(matmul.cpu, "run", lambda *a: run(*a) + np.float32(0.01))
    with pytest.raises(ArithmeticError, match="is not timed"):
        bench._product(operation, spec, 3, 0.0)


def test_run_cpu_writes_sound_records(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "QUICK", {"side": 256, "budget": 0.0, "steps": 2, "rounds": 1, "emulated": 64})
    monkeypatch.setattr(bench, "MEMORY_SHAPE", (1024, 1024, 2))
    lines = []
    written = bench.run_cpu(tmp_path, quick=True, say=lines.append)
    found = {path.name: records.read(path) for path in written}
    emulated = {"emulator.json"} if emulator.available() else set()
    assert set(found) == {"cpu_products.json", "cpu_steps.json", "cpu_memory.json"} | emulated
    assert len(found["cpu_products.json"]["rows"]) == (4 + 5) * 3 * (2 + 1)  # strips as they are trained at 1/64, too
    assert {row["structure"] for row in found["cpu_steps.json"]["rows"]} == {"strips", "elementwise", "small_dense"}
    for row in found["cpu_products.json"]["rows"] + found["cpu_steps.json"]["rows"]:
        assert row["ms_p20"] <= row["ms"] <= row["ms_p80"] and row["error"] <= bench.TOLERANCE
    for row in found["cpu_memory.json"]["rows"]:
        assert row["result_bytes"] <= row["peak_bytes"]
    assert len(lines) == sum(len(record["rows"]) for record in found.values())
    assert max(map(len, lines)) <= 120
