"""The benchmark: verifies before it times, times in turns, and writes complete records. No test asserts a speed."""

import contextlib
import itertools
import json
import sys
import time
import types

import numpy as np
import pytest

from hashedmm import HashSpec, bench, emulator, explain, matmul, records


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


# On a GPU. NumPy stands in for CuPy here: its arrays go to the emulator, and events are the host's clock.


@pytest.fixture
def numpy_for_cupy(monkeypatch):
    class Event:
        def record(self):
            self.at = time.perf_counter()

        def synchronize(self):
            pass

    class Pool:
        malloc = None

        def total_bytes(self):
            return 2**20

    def gemv(transpose, alpha, a, x, beta, y):
        np.matmul(a, x, out=y)
        return y

    cupy, cublas = types.ModuleType("cupy"), types.ModuleType("cupy.cublas")
    cupy.__dict__.update({name: getattr(np, name) for name in dir(np) if not name.startswith("__")})
    cupy.__path__, cupy.cublas, cublas.gemv = [], cublas, gemv
    cupy.cuda = types.SimpleNamespace(
        Event=Event,
        Device=lambda: types.SimpleNamespace(synchronize=lambda: None),
        MemoryPool=Pool,
        using_allocator=lambda malloc: contextlib.nullcontext(),
        get_elapsed_time=lambda start, stop: 1e3 * (stop.at - start.at),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cublas", cublas)
    monkeypatch.setattr(bench, "gpu_info", lambda: {"kind": "gpu", "name": "none", "l2_bytes": 1024,
                                                    "compute_capability": "7.5"})  # fmt: skip
    return cupy


KERNELS_HERE = {"matmul": ["naive", "panel"], "grad_x": ["grad_x"], "grad_w": ["grad_w", "grad_w_fixed"]}


@pytest.fixture
def few_kernels(monkeypatch):
    monkeypatch.setattr(bench, "_kernels", lambda operation, spec, dtype: KERNELS_HERE[operation])


emulated = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())


@emulated
@pytest.mark.parametrize("n, dtype", [(1, "float32"), (32, "float16")])
def test_rows_of_a_layer(numpy_for_cupy, few_kernels, monkeypatch, n, dtype):
    monkeypatch.setattr(bench, "SLOWEST", 1e9)
    spec = HashSpec.strips((40, 24), 1 / 4, height=8, panel=(16, 24), seed=1)
    layer, dense, lines = bench._Layer(spec, dtype), bench._Dense(), []
    rows = bench._materialise_rows(layer, "strips", 0.0, lines.append)
    rows += bench._layer_rows(layer, "strips", n, dense, 0.0, lines.append)
    record = records.new_record("timing", rows, "hashedmm bench --gpu", {"kind": "gpu", "name": "none"})
    found = {(r["operation"], r["kernel"]): r for r in record["rows"]}
    wanted = [("materialise", "materialise"), ("matmul", "panel"), ("grad_x", "grad_x"), ("grad_w", "grad_w")]
    wanted += [("grad_w", "grad_w_fixed")]  # naive is not sensible
    assert set(found) == set(wanted)
    assert len(lines) == len(rows) and max(map(len, lines)) <= 145
    for (operation, _), row in found.items():
        assert row["layer"] == "strips" and row["size"] == "40x24" and row["dtype"] == dtype
        assert row["error"] <= bench.tolerance(dtype, 1000) and row["ms_p20"] <= row["ms"] <= row["ms_p80"]
        assert ("fixed_order" in row) == (operation in ("grad_w", "step"))
        name = "fill" if operation == "materialise" else f"cublas_{dtype}"
        assert next(iter(row["baselines"])) == name and row["dense"][name]["ms"] == row["baselines"][name]
        assert ("materialise_cublas" in row["baselines"]) == (operation == "matmul")
    assert found["grad_w", "grad_w_fixed"]["fixed_order"] and not found["grad_w", "grad_w"]["fixed_order"]
    dense_row = found["matmul", "panel"]["dense"][f"cublas_{dtype}"]
    moved = np.dtype(dtype).itemsize * (40 * 24 + n * 64)
    assert dense_row["bytes_per_second"] == pytest.approx(1e3 * moved / dense_row["ms"])
    ladder = bench._layer_rows(layer, "strips", n, dense, 0.0, lines.append, ladder=True)
    assert [r["kernel"] for r in ladder] == [k for kernels in KERNELS_HERE.values() for k in kernels]


@emulated
def test_a_wrong_kernel_on_a_gpu_is_not_timed(numpy_for_cupy, few_kernels, monkeypatch):
    spec = HashSpec.strips((40, 24), 1 / 4, height=8, panel=(16, 24), seed=1)
    layer, dense = bench._Layer(spec, "float32"), bench._Dense()
    right = bench.hashed_matmul_grad_x
    monkeypatch.setattr(bench, "hashed_matmul_grad_x", lambda *a, **k: right(*a, **k) + np.float32(0.001))
    with pytest.raises(ArithmeticError, match=r"grad_x of strips \(40, 24\), grad_x, n 3, float32 is wrong"):
        bench._layer_rows(layer, "strips", 3, dense, 0.0, lambda line: None)
    monkeypatch.setattr(bench, "materialise", lambda w, spec: np.abs(matmul.materialise(w, spec)))
    with pytest.raises(ArithmeticError, match="materialise of strips"):
        bench._Layer(spec, "float32")


def test_which_kernels_are_timed():
    assert not bench.sensible("naive", 1) and bench.sensible("strip", 128) and not bench.sensible("strip", 1024)
    assert bench.sensible("sketch", 4096) and bench.sensible("tensor", 1)
    assert bench.fast_enough({"sketch": 0.1, "panel": 4.0, "shared": 4.1}, 0.2) == ["sketch", "panel"]


@pytest.mark.parametrize("operation", bench.PRODUCTS)
@pytest.mark.parametrize("n", [1, 16])
def test_every_form_of_a_dense_product_is_that_product(numpy_for_cupy, operation, n):
    spec = HashSpec.strips((40, 24), 1 / 4, height=8, panel=(16, 24), seed=1)
    layer = bench._Layer(spec, "float32")
    layer.inputs(n)
    left, right = layer.operands(operation, 1)
    expected = left["C"] @ right["C"]
    forms = bench._forms(left, right)
    padded = {name for name in forms if "+" in name}
    assert {"CC.C", "CF.F", "FF.C"} <= set(forms) and bool(padded) == (n == 1)
    if operation != "grad_w":
        forms |= bench._gemv(left, right)
    for name, call in forms.items():
        result = call().T if name.endswith(".F") else call()
        result = result.reshape(len(result), -1)[:, : expected.shape[1]]
        assert np.allclose(result, expected, atol=1e-5), name
    assert bench._Dense()._fastest(layer, operation, "cublas_float32") in forms


@pytest.mark.parametrize("structure", ["elementwise", "panels", "strips", "runs", "tiles", "codebook"])
def test_weights_of_rows_are_those_of_the_spec(structure, seed):
    options = {"panels": {"panel": (32, 48)}, "strips": {"height": 16, "panel": (32, 48)}, "tiles": {"tile": 8}}
    spec = getattr(HashSpec, structure)((129, 85), 1 / 4, seed=seed, **options.get(structure, {}))
    bucket, sign = spec.indices()
    rows = [0, 7, 31, 32, 127, 128]
    some_buckets, some_signs = bench.weights_of_rows(spec, rows)
    assert np.array_equal(some_buckets, bucket[rows]) and np.array_equal(some_signs, sign[rows])


@pytest.mark.parametrize("size", [bench.GPU_FULL, bench.GPU_QUICK])
def test_every_layer_can_be_made_and_checked(size):
    for part in size["parts"]:
        for label, compression in itertools.product(part.columns, bench.COMPRESSIONS):
            spec = bench.LAYER[label](part.shape, compression)
            assert spec.n_buckets < bench.EXACT and spec.structure == label.partition("-")[0]
    made = bench.builds(size)
    assert len(made) == len(set(made)) and {b.table for b in made} == {"LAYER", "LADDER"}


def test_memory_rows(numpy_for_cupy):
    lines = []
    rows = bench._gpu_memory_rows((512,), lines.append)
    records.check(records.new_record("memory", rows, "hashedmm bench --gpu"))
    assert [r["operation"] for r in rows] == ["matmul", "step"] * 2 and len({r["spec"]["seed"] for r in rows}) == 4
    for row in rows:
        assert row["peak_bytes"] == 2**20 and row["dense_bytes"] == 2 * 512 * 512
        assert row["result_bytes"] >= 2 * 512 * 1024 and row["lists_bytes"] >= 0
    assert len(lines) == 4


def test_a_training_row_says_it_in_three_lines():
    history = {"seconds": [0.1, 0.2], "test_error": [1.8, 1.6]}
    row = bench.training_row(
        "hashed:strips", 1 / 8, None, (784, 1000, 10), history, 1e-6, {"dense_cupy": [2.0]}, 5.0, ""
    )
    records.check(records.new_record("timing", [row], "hashedmm bench --gpu"))
    assert row["ms"] == pytest.approx(0.125) and row["seconds_to_target"] == pytest.approx(0.3)
    lines = bench.training_line(row).splitlines()
    assert lines[1].strip() == "dense_cupy 2.000" and lines[2].endswith("98.3 % after 0.30 s")
    assert "was not reached" in bench.training_line(row | {"seconds_to_target": None})


def test_run_gpu_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="only must name some of gpu_roofs"):
        bench.run_gpu(tmp_path, only=["layer"])
    monkeypatch.setattr(bench, "gpu_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA GPU"):
        bench.run_gpu(tmp_path)


def test_run_gpu_writes_what_is_asked_for(tmp_path, monkeypatch, numpy_for_cupy):
    monkeypatch.setattr(bench, "gpu_available", lambda: True)
    row = {"roof": "copy", "ms": 1.0}
    for name, (kind, _) in bench.GPU_RECORDS.items():
        monkeypatch.setitem(bench.GPU_RECORDS, name, (kind, lambda size, quick, say: [row]))
    (written,) = bench.run_gpu(tmp_path / "new", quick=True, say=lambda line: None, only=["gpu_roofs"])
    record = records.read(written)
    assert record["rows"] == [row] and record["command"] == "hashedmm bench --gpu --quick"
    assert record["device"]["name"] == "none"


@pytest.mark.gpu
def test_run_gpu_on_a_gpu(tmp_path, monkeypatch):
    few = bench.Part((512, 384), "float16", {"strips": (1, 32), "panels": (1,)})
    small = {"side": 256, "columns": (3,), "ladder_budget": 0.0, "budget": 0.0, "memory": (1024,), "epochs": 1}
    monkeypatch.setattr(bench, "GPU_QUICK", small | {"parts": (few, few._replace(dtype="float32"))})
    monkeypatch.setattr(bench, "_build_all", lambda size, say: None)
    written = bench.run_gpu(tmp_path, quick=True, say=lambda line: None, only=["gpu_layer", "gpu_ladder", "gpu_memory"])
    found = {path.stem: records.read(path)["rows"] for path in written}
    assert set(found) == {"gpu_layer", "gpu_ladder", "gpu_memory"} and all(found.values())
    assert {r["kernel"] for r in found["gpu_layer"]} >= {"sketch", "materialise"}
    assert {name for r in found["gpu_layer"] for name in r["baselines"]} >= {"cublas_float16", "cublas_float32", "fill"}
    for row in found["gpu_memory"]:
        assert row["stored_bytes"] + row["result_bytes"] <= row["peak_bytes"]


def test_the_record_of_memory_has_no_room_for_w():
    if (record := records.load_all("memory").get("gpu_memory")) is None:
        pytest.skip("there is no such record")
    for row in record["rows"]:
        spec, n = HashSpec.from_json(json.dumps(row["spec"])), row["shape"][2]
        sums = explain.workspace_bytes("sketch", "grad_x", spec, n, row["dtype"])  # z or u; a step has one or both
        known = row["result_bytes"] + row["stored_bytes"] + row["lists_bytes"]
        known += sums * (2 if row["operation"] == "step" else 1)
        assert row["peak_bytes"] <= known + 2**22 < row["peak_bytes"] + row["dense_bytes"]


@pytest.mark.gpu
def test_tf32_is_switched_on_and_off_again():
    import cupy

    if not bench._has_tf32():
        pytest.skip("this GPU has no TF32")
    a, b = (cupy.random.standard_normal((512, 512), dtype=cupy.float32) for _ in range(2))
    expected = a.astype(cupy.float64) @ b.astype(cupy.float64)
    exact, rounded, again = a @ b, bench._with_tf32(lambda: a @ b), a @ b
    assert bench._gpu_error(exact, expected) < 1e-5 < bench._gpu_error(rounded, expected) < 2e-3
    assert bool((exact == again).all())


@pytest.mark.gpu
def test_kernels_are_built_before_they_are_measured():
    bench.build_kernels(bench.Build("LAYER", "strips", (512, 384), 1 / 8, "float16", (1, 32)))
