"""The automatic choice: the tables it rests on, how good it is, the user's own table, and what explains it."""

import json
import time
import tracemalloc
import warnings
from functools import partial

import numpy as np
import pytest
from specs import STRUCTURES
from test_kernels import needs_emulator

from hashedmm import HashSpec, bench, cli, explain, graph, hashed_matmul, matmul, records, tuning
from hashedmm.kernels import CUDA
from hashedmm.matmul import Candidate, choose

RECORDS = (
    "gpu_ladder",
    "gpu_layer",
    "gpu_tuning",
)  # what hashedmm/tuning.json is made from: `hashedmm tune --ship` and these names
STRIPS = HashSpec.strips((4096, 4096), 1 / 64, height=16)
SMALL = HashSpec.strips((70, 130), 1 / 4, height=16, panel=(32, 64), seed=3)
GPU = "A GPU of this test"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """A cache of its own, empty, for each test, and nothing chosen before."""
    monkeypatch.setattr(tuning, "cache_dir", lambda: tmp_path / "cache")
    matmul.forget_choices()
    yield tmp_path / "cache"
    matmul.forget_choices()


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Choices for "emulator" are made as for a GPU of that name."""
    monkeypatch.setattr(tuning, "gpu_name", lambda device: GPU)


def of(choice):
    return {c.kernel: c for c in choice.candidates}


# ---- the table that ships


def test_the_shipped_table_is_made_from_the_records():
    tables = {}
    for name in RECORDS:
        table = tuning.table_of(records.read(name))
        tables[table.gpu] = tables[table.gpu].joined(table) if table.gpu in tables else table
    assert [t.to_document() for t in tuning.shipped()] == [t.to_document() for t in tables.values()]


@pytest.mark.parametrize("name", RECORDS)
def test_no_choice_is_over_ten_per_cent_slower_than_the_best_kernel(name):
    """On every problem of the record: by the table, and by what "auto" takes."""
    record = records.read(name)
    table = next(t for t in tuning.shipped() if t.gpu == record["device"]["name"])
    assert tuning.too_slow(record["rows"], table) == []
    problems = {(p.spec, p.n, p.dtype): p for p in tuning.table_of(record).problems}
    assert len(problems) >= {"gpu_ladder": 36, "gpu_layer": 60, "gpu_tuning": 6}[name]
    for (spec, n, dtype), p in problems.items():
        for operation, ms in p.ms.items():
            kernel = choose(operation, spec, n, dtype, "emulator").kernel
            if name == "gpu_ladder" and kernel not in ms:
                continue  # the ladder was recorded before strip, tensor and sketch were there
            assert ms[kernel] <= tuning.ALLOWED * min(ms.values()), (operation, spec, n, dtype, kernel)


@pytest.mark.parametrize("name", RECORDS)
def test_predictions_of_what_was_left_out(name):
    """A harder question: what if a problem had not been measured? Most choices are the best there is all the same."""
    record = records.read(name)
    table = next(t for t in tuning.shipped() if t.gpu == record["device"]["name"])
    found = tuning.losses(record["rows"], table, leave_out=True)
    ratios = np.array([loss.ratio for loss in found])
    print(f"\n{name}: {tuning.quality(record)}")
    assert np.mean(ratios <= tuning.ALLOWED) >= 0.8 and np.exp(np.log(ratios).mean()) <= 1.08


def test_losses_are_what_a_wrong_table_costs():
    rows = records.read(RECORDS[0])["rows"]
    table = tuning.shipped()[0]
    assert all(loss.ratio == 1 for loss in tuning.losses(rows, table))
    wrong = [p._replace(ms={o: {k: 1 / t for k, t in by.items()} for o, by in p.ms.items()}) for p in table.problems]
    found = tuning.losses(rows, tuning.Table(table.gpu, table.date, wrong))
    assert found[0].ratio > 5 and found[0].ratio == max(loss.ratio for loss in found)
    assert tuning.too_slow(rows, tuning.Table(table.gpu, table.date, wrong))


def test_times_that_were_measured_are_kept_and_others_scale():
    table = tuning.Table(GPU, "2026-01-01", [tuning.Problem(STRIPS, 64, "float16", {"matmul": {"naive": 2.0}})])
    measured = table.estimate("matmul", "naive", STRIPS, 64, "float16")
    assert measured == tuning.Estimate(2.0, 0.0)
    twice = table.estimate("matmul", "naive", STRIPS, 128, "float16")
    assert twice.away == 1 and 3.8 < twice.ms < 4.1  # naive hashes every weight for every column
    assert table.estimate("matmul", "naive", STRIPS, 64, "float32").away == tuning.OTHER_DTYPE
    assert table.estimate("matmul", "shared", STRIPS, 64, "float16") is None
    assert table.estimate("matmul", "naive", STRIPS, 64, "float16", without=[0]) is None


def test_a_kernel_that_was_not_timed_where_it_could_be_is_not_expected_there():
    few, many = ({"matmul": {"naive": 2.0, "shared": 3.0}}, {"matmul": {"shared": 9.0}})
    problems = [tuning.Problem(STRIPS, n, "float16", few if n < 512 else many) for n in (1, 64, 512, 1024, 2048, 4096)]
    table = tuning.Table(GPU, "2026-01-01", problems)
    for n, timed in ((1, True), (2, True), (512, False), (1500, False)):
        assert (table.estimate("matmul", "naive", STRIPS, n, "float16") is not None) == timed
        assert table.estimate("matmul", "shared", STRIPS, n, "float16") is not None
    assert table.knows("matmul", "naive") and not table.knows("matmul", "tensor")


def test_work_is_defined_for_every_kernel_and_grows_with_n():
    for make in STRUCTURES.values():
        spec = make((129, 785), 0.3)
        for name, row in matmul.KERNELS.items():
            if matmul._is_cuda(name) and row.supports(spec):
                for operation in row.operations:
                    few, many = (tuning.work(name, operation, spec, n, "float32") for n in (1, 4096))
                    assert 0 < few < many < np.inf


# ---- choosing


def test_a_choice_says_why():
    choice = choose("matmul", STRIPS, 64, "float16", "emulator")
    candidates = of(choice)
    assert set(candidates) == {
        name for name, row in matmul.KERNELS.items() if matmul._is_cuda(name) and "matmul" in row.operations
    }
    assert choice.kernel == choice.candidates[0].kernel and choice.candidates[0].ms is not None
    times = [c.ms for c in choice.candidates if c.ms is not None]
    assert times == sorted(times) and all((c.ms is None) == bool(c.reason) for c in choice.candidates)
    assert choice.why.startswith("Expected to be the fastest, ") and tuning.shipped()[0].gpu in choice.why
    assert choice.why.endswith(".") and choice.why.count(". ") == 0
    assert "this very problem" in choose("matmul", tuning.shipped()[0].problems[0].spec, 1, "float32", "emulator").why


def test_kernels_that_cannot_are_out_with_the_reason():
    wide = HashSpec.elementwise((1000, 1000), 1 / 4)
    reasons = {c.kernel: c.reason for c in choose("matmul", wide, 8, "float32", "emulator").candidates}
    assert "1,000,000 bytes here" in reasons["panel"] and reasons["tensor"] == "computes float16 alone"
    assert reasons["sketch"].startswith("computes strips (blocks one input wide")
    assert of(choose("matmul", wide, 8, "float16", "emulator"))["tensor"].reason.endswith("not block (1, 1), stride 1")


def test_an_older_gpu(monkeypatch):
    monkeypatch.setattr(matmul, "architecture", lambda where: 75)
    candidates = of(choose("matmul", STRIPS, 1024, "float16", "emulator"))
    for kernel in ("sketch", "tensor"):
        assert candidates[kernel] == Candidate(kernel, None, "needs sm_80 or newer, and this is sm_75")
    w, x = np.ones(SMALL.n_buckets, np.float32), np.ones((130, 1), np.float32)
    with pytest.raises(
        ValueError, match="'sketch' needs sm_80 or newer, and this is sm_75. These do: reference, .*naive"
    ):
        hashed_matmul(w, x, SMALL, kernel="sketch")


def test_a_choice_is_quick_hashes_nothing_and_allocates_no_w(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("hashed")

    for name in ("hash_blocks", "indices", "_iter_blocks"):
        monkeypatch.setattr(HashSpec, name, refuse)
    tuning.shipped()
    tracemalloc.start()
    start = time.perf_counter()
    for operation in tuning.OPERATIONS:
        choose(operation, HashSpec.strips((2**17, 2**17), 1 / 64), 1024, "float16", "emulator")
    took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 1 and peak < 2**20
    start = time.perf_counter()
    for _ in range(1000):
        choose("matmul", STRIPS, 64, "float16", "emulator")
    assert time.perf_counter() - start < 0.1


def test_nothing_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "tuning.json")
    tuning.write(tuning.SHIPPED, [tuning.Table(GPU, "2026-01-01", [])])
    choice = choose("matmul", STRIPS, 1024, "float16", "emulator")
    assert choice.why == f"It does the least work; no kernel that can compute this was measured on {GPU} (2026-01-01)."
    assert {c.reason for c in choice.candidates} == {"never measured"} and choice.kernel in ("sketch", "tensor")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("multiply", STRIPS, 1), ValueError, "operation must be one of matmul, grad_x, grad_w, got 'multiply'"),
        (("matmul", (3, 4), 1), TypeError, "spec must be a HashSpec"),
        (("matmul", STRIPS, 0), ValueError, "n must be at least 1, got 0"),
        (("matmul", STRIPS, 1.0), TypeError, "n must be an integer, got 1.0"),
        (
            ("matmul", STRIPS, 1, "float64"),
            ValueError,
            "dtype must be float16 or float32 for CUDA kernels, got float64",
        ),
    ],
)
def test_bad_questions(arguments, error, message):
    with pytest.raises(error, match=message):
        choose(*arguments)


def test_training_steps_take_the_same_choice():
    x = np.zeros((130, 8), np.float32)
    for operation, a in (("matmul", x), ("grad_w", x), ("grad_x", np.zeros((70, 8), np.float32))):
        assert graph._kernel(operation, SMALL, a) == choose(operation, SMALL, 8, "float32", "emulator").kernel
    assert graph._kernel("matmul", SMALL, x, "sketch") == "sketch"
    with pytest.raises(ValueError, match="must name a CUDA kernel"):
        graph._kernel("matmul", SMALL, x, "cpu_sketch")


# ---- the user's own table


def own_table(spec=STRIPS, n=64, dtype="float16", fastest="coalesced", operation="matmul"):
    """A table in which every kernel takes 5 ms but one."""
    kernels = matmul.cuda_kernels(operation, spec, dtype, "emulator")[0]
    ms = {k: 1.0 if k == fastest else 5.0 for k in kernels}
    return tuning.Table(GPU, "2026-02-03", [tuning.Problem(spec, n, dtype, {operation: ms})])


def test_own_measurements_come_first(own_folder, on_a_gpu):
    before = choose("matmul", STRIPS, 64, "float16", "emulator")
    assert before.kernel != "coalesced" and tuning.own(GPU) is None
    path = tuning.keep(own_table())
    assert path == tuning.cache_file(GPU) and path.parent == own_folder
    matmul.forget_choices()
    choice = choose("matmul", STRIPS, 64, "float16", "emulator")
    assert choice.kernel == "coalesced" and of(choice)["coalesced"].ms == 1.0
    assert choice.why == (
        "Expected to be the fastest, 5.0 x as fast as few_rows, by times of this very problem, measured on this GPU "
        "(2026-02-03)."
    )
    assert choose("matmul", STRIPS, 100, "float16", "emulator").kernel == "coalesced"  # near enough
    for other in (
        ("matmul", STRIPS, 1024, "float16"),
        ("matmul", STRIPS, 64, "float32"),
        ("grad_x", STRIPS, 64, "float16"),
    ):
        assert tuning.shipped()[0].gpu in choose(*other, "emulator").why  # far from it


def test_later_measurements_replace_earlier_ones_of_the_same_problem(on_a_gpu):
    tuning.keep(own_table())
    tuning.keep(own_table(n=1))
    tuning.keep(own_table(fastest="naive"))
    table = tuning.own(GPU)
    best = {(p.n, min(p.ms["matmul"], key=p.ms["matmul"].get)) for p in table.problems}
    assert best == {(64, "naive"), (1, "coalesced")}


def test_a_kernel_that_was_not_measured_leaves_the_choice_to_the_shipped_table(on_a_gpu):
    table = own_table()
    del table.problems[0].ms["matmul"]["shared"]
    tuning.keep(table)
    assert tuning.shipped()[0].gpu in choose("matmul", STRIPS, 64, "float16", "emulator").why


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"schema": 2, "tables": []}', '{"schema": 1, "tables": []}', '{"schema": 1, "tables": [{}]}',
        '{"schema": 1, "tables": [{"gpu": "A GPU of this test", "date": "", "problems": [{"spec": {}}]}]}', "\xff\xfe",
    ],
)  # fmt: skip
def test_a_damaged_file_is_warned_of_and_ignored(text, on_a_gpu):
    path = tuning.cache_file(GPU)
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    with pytest.warns(RuntimeWarning, match=r"table of this GPU is ignored: .*tuning-A-GPU.*Delete the file"):
        choice = choose("matmul", STRIPS, 64, "float16", "emulator")
    assert tuning.shipped()[0].gpu in choice.why
    tuning.keep(own_table())  # replaces it
    matmul.forget_choices()
    assert choose("matmul", STRIPS, 64, "float16", "emulator").kernel == "coalesced"


@pytest.mark.parametrize("change", [{"ms": {"matmul": {"naive": -1.0}}}, {"n": 0}, {"n": True}, {"dtype": "int8"}])
def test_what_a_table_holds_is_checked(tmp_path, change):
    path = tmp_path / "table.json"
    tuning.write(path, [own_table()])
    assert [t.to_document() for t in tuning.read(path)] == [own_table().to_document()]
    document = json.loads(path.read_text())
    document["tables"][0]["problems"][0] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="table.json is no tuning table"):
        tuning.read(path)


def test_a_file_a_gpu_and_version(tmp_path, monkeypatch):
    files = {tuning.cache_file(name) for name in ("NVIDIA A", "NVIDIA/A", "../../x", "")}
    monkeypatch.setattr("hashedmm.__version__", "99.0")
    files.add(tuning.cache_file("NVIDIA A"))
    assert len(files) == 5 and {f.parent for f in files} == {tmp_path / "cache"}


# ---- measuring


@needs_emulator
def test_kernels_are_verified_then_timed(monkeypatch):
    said = []
    spec = HashSpec.strips((48, 40), 1 / 4, height=16, panel=(16, 40))
    rows = explain.measured(spec, 3, "float16", partial(bench.measure, budget=0, least=1), said.append)
    record = records.new_record("timing", rows, "hashedmm tune", {"kind": "gpu", "name": GPU})
    (problem,) = tuning.table_of(record).problems
    assert problem[:3] == (spec, 3, "float16") and set(problem.ms) == set(tuning.OPERATIONS)
    for operation, ms in problem.ms.items():
        assert set(ms) == set(matmul.cuda_kernels(operation, spec, "float16", "emulator")[0])
    assert "sketch" in problem.ms["grad_w"] and len(said) == sum(map(len, problem.ms.values()))
    wrong = explain.hashed_matmul

    def call(w, x, spec, *, kernel="auto"):
        return wrong(w, x, spec, kernel=kernel) * (1.01 if kernel == "shared" else 1)

    monkeypatch.setattr(explain, "hashed_matmul", call)
    with pytest.raises(ArithmeticError, match="shared, matmul, n = 3, float16 is wrong, so nothing is timed.*0.0098"):
        explain.measured(spec, 3, "float16", partial(bench.measure, budget=0, least=1), said.append)


def cuda_rows(spec, dtype):
    return [(o, k) for o in tuning.OPERATIONS for k in matmul.cuda_kernels(o, spec, dtype, 0)[0]]


@pytest.mark.gpu
def test_tuning_on_a_gpu(own_folder):
    said = []
    path = explain.tune(SMALL, [5], ["float32"], budget=0.02, say=said.append)
    assert path.parent == own_folder and said
    choice = choose("grad_w", SMALL, 5, "float32")
    assert "this very problem, measured on this GPU" in choice.why
    times = tuning.own(tuning.gpu_name(0)).problems[0].ms["grad_w"]
    assert choice.kernel == min(times, key=times.get)
    record = own_folder / "record.json"
    for columns in ([5], [5, 6]):
        explain.tune(SMALL, columns, ["float32"], budget=0.02, output=record, say=said.append)
    rows = records.read(record)["rows"]
    assert {row["shape"][2] for row in rows} == {5, 6} and len(rows) == 2 * len(cuda_rows(SMALL, "float32"))


# ---- what a person reads


def printed(capsys, *argv):
    code = cli.main(list(argv))
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize(
    "argv",
    [
        ("8192", "8192", "1"),
        ("8192", "8192", "1024", "--operation", "grad_w", "--dtype", "float32"),
        ("1000", "784", "50", "--structure", "elementwise", "--compression", "1/8", "--operation", "grad_x"),
        ("8192", "8192", "9", "--height", "128", "--panel", "128,512", "--stride", "32"),
    ],
)
def test_doctor_explains(capsys, argv):
    code, out, err = printed(capsys, "doctor", "--explain", *argv)
    assert code == 0 and err == "" and max(map(len, out.splitlines())) <= 100
    assert f"{argv[0]} x {argv[1]}, n = {argv[2]}" in out.splitlines()[0]
    operation = argv[argv.index("--operation") + 1] if "--operation" in argv else "matmul"
    for name, row in matmul.KERNELS.items():
        if matmul._is_cuda(name):
            assert (f"\n  {name} " in out) == (operation in row.operations)
    for what in ("auto takes", "why", "buckets", "derived lists", "workspace", "W "):
        assert f"\n  {what}" in out


def test_explaining_on_another_gpu(capsys, on_a_gpu):
    tuning.keep(own_table())
    code, out, _ = printed(
        capsys, "doctor", "--explain", "4096", "4096", "64", "--height", "16", "--panel", "128,1024", "--stride", "16"
    )
    assert code == 0 and out.index(f"on              {GPU}") < out.index(f"on              {tuning.shipped()[0].gpu}")


def test_bad_arguments(capsys):
    for argv, message in (
        (("tune", "10", "10"), "tune needs D_OUT D_IN N, such as 8192 8192 1 64 1024, got 2 of these sizes"),
        (("tune", "10", "10", "1", "--height", "4", "--structure", "runs"), "--height belongs to strips"),
        (("doctor", "--explain", "10", "10", "1"), "need 10 buckets"),
    ):
        code, _, err = printed(capsys, *argv)
        assert code == cli.EXIT_BAD_INPUT and message in err
    for argv in (("doctor", "--explain", "1", "1"), ("doctor", "--explain", "0", "1", "1"), ("tune", "x")):
        with pytest.raises(SystemExit) as stop:
            cli.main(list(argv))
        assert stop.value.code == cli.EXIT_BAD_INPUT


def test_tuning_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(explain, "gpu_available", lambda: False)
    code, _, err = printed(capsys, "tune", "256", "256", "1")
    assert code == cli.EXIT_BAD_INPUT and "no CUDA GPU" in err


def test_the_shipped_table_can_be_made_anew(capsys, monkeypatch, tmp_path):
    path = tmp_path / "tuning.json"
    monkeypatch.setattr(tuning, "SHIPPED", path)
    code, out, _ = printed(capsys, "tune", "--ship", *RECORDS)
    assert code == 0 and f"{len(tuning.shipped()[0].problems)} problems" in out
    assert f"{RECORDS[0]}: " in out and " choices, the worst takes 1.00 x the best kernel's time; predicted " in out
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert path.read_bytes() == tuning.SHIPPED.read_bytes()
    kernels = {k for table in tuning.read(path) for p in table.problems for by in p.ms.values() for k in by}
    assert kernels <= CUDA.keys() | {"sketch"}
