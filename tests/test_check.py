"""`hashedmm.check` and the exercises: stubs say "not yet", right answers pass, wrong-but-lucky ones are refused.

tests/answers has further right answers and the wrong ones, each wrong one with what the check has to say about it.
"""

import ast
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import hashedmm
from hashedmm import HashSpec, check, emulator, exercises
from hashedmm.check import NOT_RUN, NOT_YET, RIGHT, WRONG, Result
from hashedmm.exercises import EXERCISES, FunctionTest, KernelTest, cells, nb10
from hashedmm.kernels import FOLDER

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = ROOT / "tests" / "answers"


def load(path, name):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def merged(folder, name):
    found = {}
    for path in sorted((ANSWERS / folder).glob("*.py")):
        found |= load(path, name)
    return found


CORRECT_ANSWERS, WRONG_ANSWERS = merged("correct", "CORRECT"), merged("wrong", "WRONG")
KERNELS = {name for name, e in EXERCISES.items() if isinstance(e.test, KernelTest)}
NEED_COMPILER = KERNELS | {n for n, e in EXERCISES.items() if isinstance(e.test, FunctionTest) and e.test.kernels}
needs_compiler = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())


def cases(names):
    """Parameters: those that run kernels are skipped where nothing can."""
    rows = [(values,) if isinstance(values, str) else values for values in names]
    return [pytest.param(*row, marks=[needs_compiler] if row[0] in NEED_COMPILER else []) for row in rows]


def answer_of(source, name):
    """What a cell hands to check."""
    space = {"np": np}
    exec(compile(source, f"<{name}>", "exec"), space)
    return space[EXERCISES[name].answer]


def edited(name, edits):
    """The solution with texts replaced, each of which it must have."""
    source = EXERCISES[name].solution
    for old, new in edits.items():
        assert old in source, f"the solution of {name} has no {old!r}"
        source = source.replace(old, new)
    return source


# Every exercise.


@pytest.mark.parametrize("name", EXERCISES)
def test_a_stub_is_not_yet(name):
    result = check(name, answer_of(EXERCISES[name].stub, name))
    assert result.status == NOT_YET and not result and len(str(result)) < 300


@pytest.mark.parametrize("name", cases(EXERCISES))
def test_the_solution_is_right(name):
    result = check(name, answer_of(EXERCISES[name].solution, name))
    assert result.status == RIGHT and result, result


@pytest.mark.parametrize(("name", "how"), cases([(n, how) for n, found in CORRECT_ANSWERS.items() for how in found]))
def test_another_right_answer_is_right(name, how):
    source = CORRECT_ANSWERS[name][how]
    assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(EXERCISES[name].solution))
    result = check(name, answer_of(source, name))
    assert result, result


@pytest.mark.parametrize(("name", "why"), cases([(n, why) for n, found in WRONG_ANSWERS.items() for why in found]))
def test_a_wrong_answer_is_refused_and_explained(name, why):
    edits, said = WRONG_ANSWERS[name][why]
    result = check(name, answer_of(edited(name, edits), name))
    assert result.status == WRONG and not result, result
    text = " ".join(str(result).split())
    assert len(said) >= 2 and said in text and len(text) < 1200, result


def test_every_exercise_has_wrong_answers():
    assert WRONG_ANSWERS.keys() == EXERCISES.keys()
    assert all(len(found) >= 2 for found in WRONG_ANSWERS.values())
    fixes = {n for n, e in EXERCISES.items() if e.kind == "fix"}
    assert KERNELS - fixes <= CORRECT_ANSWERS.keys() <= EXERCISES.keys()


# What a learner sees.


def headings(notebook):
    (path,) = (ROOT / "notebooks").glob(f"{notebook}_*.ipynb")
    text = json.loads(path.read_text(encoding="utf-8"))
    lines = [line for c in text["cells"] if c["cell_type"] == "markdown" for line in "".join(c["source"]).splitlines()]
    return [line for line in lines if re.match(r"#{1,4} ", line)]


@pytest.mark.parametrize("name", EXERCISES)
def test_declared_in_full(name):
    e = EXERCISES[name]
    assert e.after in headings(e.notebook), "a heading of the notebook"
    assert 1 <= len(e.hints) <= 3 and e.lines >= 1 and e.title and e.spec.strip()
    (markdown, text), (code, stub), (folded, more) = cells(name)
    assert (markdown, code, folded) == ("markdown", "code", "markdown")
    assert text.startswith("### ") and name in text.splitlines()[0] and "about" in text.lower()
    assert stub.startswith("import hashedmm\n") and stub.endswith(f'\nhashedmm.check("{name}", {e.answer})')
    assert more.count("<details>") == more.count("</details>") == len(e.hints) + 1
    assert e.solution.strip() in more and e.solution.strip() not in stub
    changed = set(e.solution.splitlines()) - set(e.stub.splitlines())
    assert abs(len(changed) - e.lines) <= max(2, e.lines // 2), f"about {len(changed)} lines are new"


def test_the_cell_of_a_notebook_runs():
    for name in ("01.1", "04.4", "07.1"):
        (_, _), (_, code), _ = cells(name)
        exec(compile(code, name, "exec"), {"np": np})


def test_exercises_follow_their_notebook():
    for notebook in sorted({e.notebook for e in EXERCISES.values()}):
        mine = [e for e in EXERCISES.values() if e.notebook == notebook]
        assert [e.id for e in mine] == [f"{notebook}.{k}" for k in range(1, len(mine) + 1)]
        order = headings(notebook)
        places = [order.index(e.after) for e in mine]
        assert places == sorted(places), f"the exercises of notebook {notebook} are numbered in its order"


def test_stubs_do_not_hide_names_of_their_notebook():
    for e in EXERCISES.values():
        (path,) = (ROOT / "notebooks").glob(f"{e.notebook}_*.ipynb")
        cells_ = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(c["source"]) for c in cells_ if c["cell_type"] == "code")
        source = source.replace(f"{e.stub.strip()}\n", "")
        assigned = rf"^(?:def |class )?{e.answer}\b(?:\(|\s*=[^=])"
        allowed = source.count(f'hashedmm.check("{e.id}"')
        assert len(re.findall(assigned, source, re.MULTILINE)) <= allowed, f"{e.id}: {e.answer} is the notebook's own"


# The machinery.


def test_result():
    result = Result("05.2 samples", WRONG, ("y[0, 0]: got `1 < 2`", "x" * 20))
    assert not result and str(result) == repr(result) == "05.2 samples: wrong\n  y[0, 0]: got `1 < 2`\n  " + "x" * 20
    html = result._repr_html_()
    assert "<code>1 &lt; 2</code>" in html and "<b>wrong</b>" in html
    assert max(map(len, str(Result("a", WRONG, ("word " * 60,))).splitlines())) <= 88


def test_check_is_public():
    assert hashedmm.check is check and callable(check) and "check" in hashedmm.__all__


def test_unknown_exercise():
    with pytest.raises(ValueError, match=r"exercise must be one of 05\.1, 05\.2.*got '05\.9'"):
        check("05.9", None)
    with pytest.raises(ValueError, match="got 5"):
        check(5, None)
    with pytest.raises(ValueError, match="one of"):
        cells("99.1")


@pytest.mark.parametrize("nothing", [None, ...])
def test_nothing_is_not_yet(nothing):
    assert {check(name, nothing).status for name in EXERCISES} == {NOT_YET}


def test_half_a_stub_is_not_yet():
    def raises(w, x, bucket, sign):
        raise NotImplementedError

    def dots(w, x, bucket, sign):
        y = ... + w
        return y

    def returns_nothing(w, x, bucket, sign):
        _ = w[bucket]

    for answer in (raises, dots, returns_nothing):
        assert check("03.2", answer).status == NOT_YET
    assert check("04.4", {"blocks": 14, "idle threads": None, "places past the last element": ...}).status == NOT_YET


def test_the_wrong_kind_of_answer():
    assert "Pass the function itself" in str(check("03.2", np.zeros(3)))
    assert "must be a dict with the keys 'blocks'" in str(check("04.4", 14))
    assert "must be a dict" in str(check("04.4", {"blocks": 14}))
    assert "must be numbers" in str(check("03.2", lambda w, x, bucket, sign: "y"))
    result = str(check("01.2", lambda rows, cols, compression: 3))
    assert "return a tuple (dense, with a table, with a seed)" in result
    if emulator.available() or hashedmm.gpu_available():
        assert "Pass the kernel's source" in str(check("04.1", lambda: 0))


def test_an_exception_names_the_line_of_the_answer(tmp_path):
    file = tmp_path / "cell.py"
    file.write_text("def f(w, x, bucket, sign):\n    y = w[bucket]\n    return y @ w[10**6]\n")
    space = {}
    exec(compile(file.read_text(), str(file), "exec"), space)
    text = " ".join(str(check("03.2", space["f"])).split())
    assert "6 x 8, n = 3: line 3 of your code `return y @ w[10**6]` raises IndexError: index 1000000" in text
    text = str(check("03.2", lambda w: w))
    assert "TypeError" in text and "argument" in text


def test_likely_causes():
    from hashedmm.check import _cause as cause

    def _cause(*args):
        return cause(*args).text

    want = np.arange(1.0, 13).reshape(3, 4) ** 2
    bound = 1e-9
    assert "transposed" in _cause(want.T.reshape(3, 4), want, bound)
    assert "wrong way round" in _cause(-want, want, bound)
    signs = np.where(np.arange(12).reshape(3, 4) % 3, 1, -1)
    assert "some signs" in _cause(want * signs, want, bound)
    assert "one place later" in _cause(np.concatenate([[7], want.ravel()[:-1]]).reshape(3, 4), want, bound)
    assert "one place earlier" in _cause(np.concatenate([want.ravel()[1:], [7]]).reshape(3, 4), want, bound)
    assert "2.5 times" in _cause(2.5 * want, want, bound)
    late = want.copy()
    late.ravel()[9:] = 0
    assert "edge" in _cause(late, want, bound)
    late.ravel()[9:] = np.nan
    assert "last elements were not written" in _cause(late, want, bound)
    assert "nothing was written" in _cause(np.full((3, 4), np.nan), want, bound)
    rows = np.concatenate([want[:1], want[1:] + 1])
    assert "first row" in _cause(rows, want, bound)
    assert _cause(np.random.default_rng(0).standard_normal((3, 4)), want, bound) == ""


def test_kernels_without_gpu_and_compiler(monkeypatch):
    module = importlib.import_module("hashedmm.check")
    monkeypatch.setattr(module, "gpu_available", lambda: False)
    monkeypatch.setattr(module.emulator, "available", lambda: False)
    monkeypatch.setattr(module.emulator, "why_not", lambda: "there is no compiler")
    for name in sorted(NEED_COMPILER):
        assert check(name, answer_of(EXERCISES[name].stub, name)).status == NOT_YET
        result = check(name, answer_of(EXERCISES[name].solution, name))
        assert result.status == NOT_RUN and not result and "there is no compiler" in str(result)


@needs_compiler
def test_unfinished_kernels_are_not_yet():
    leaky = EXERCISES["04.1"]
    guard = leaky.stub.replace("// TODO", "const int i = threadIdx.x; // TODO")
    assert check("04.1", answer_of(guard, "04.1")).status == NOT_YET  # compiles, writes nothing
    dots = leaky.stub.replace("// TODO", "const int i = ...; // TODO")
    assert check("04.1", answer_of(dots, "04.1")).status == NOT_YET  # does not compile yet
    done = answer_of(leaky.solution, "04.1")
    assert check("04.1", done.replace("if (i < n) y", "if (false) y")).status == WRONG  # nothing left to do in it


@needs_compiler
def test_a_right_kernel_is_told_what_it_asks_for():
    text = " ".join(str(check("06.3", answer_of(EXERCISES["06.3"].solution, "06.3"))).split())
    assert "No race" in text and "sectors a request for `x_dn`" in text


@needs_compiler
def test_a_kernel_may_print():
    source = answer_of(EXERCISES["04.1"].solution, "04.1")
    noisy = source.replace("if (i < n)", 'if (i == 0) printf("hello");\n    if (i < n)')
    assert check("04.1", noisy)


class NumPyAsGPU:
    """A kernel of the emulator, called as on a GPU, where arrays have no walls: ``astray`` writes past an output."""

    astray = False

    def __init__(self, code, name):
        self.code, self.name = code, name
        self.kernel = emulator.RawKernel(code, name, (f"-I{FOLDER}",))

    def compile(self):
        self.kernel.compile()

    def __call__(self, grid, block, args, shared_mem=0):
        self.kernel(grid, block, args, shared_mem=shared_mem)
        if self.astray:
            args[1].base[-1] = 1


@pytest.fixture
def numpy_as_gpu(monkeypatch):
    """`hashedmm.check` believes that there is a GPU: NumPy stands in CuPy's place."""
    module = importlib.import_module("hashedmm.check")
    cuda = types.SimpleNamespace(Device=lambda: types.SimpleNamespace(synchronize=lambda: None))
    cupy = types.SimpleNamespace(full=np.full, asarray=np.asarray, asnumpy=np.array, ndarray=np.ndarray, cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(module, "gpu_available", lambda: True)
    monkeypatch.setattr(module, "RawKernel", NumPyAsGPU)


def solved(name):
    return answer_of(EXERCISES[name].solution, name)


@needs_compiler
def test_a_gpu_comes_after_the_emulator(numpy_as_gpu):
    for name in ("04.1", "10.2", "12.1"):
        assert "It is right on this GPU, too" in str(check(name, solved(name)))
    assert "outside x" in str(check("04.1", solved("04.1").replace("if (i < n) ", "")))  # and not "on this GPU"


@needs_compiler
def test_a_gpu_without_a_compiler(numpy_as_gpu, monkeypatch):
    monkeypatch.setattr(emulator, "available", lambda: False)
    monkeypatch.setattr(emulator, "why_not", lambda: "there is no compiler")
    for name in ("04.1", "10.2", "12.1"):
        result = check(name, solved(name))
        assert result and "were not looked at: there is no compiler" in " ".join(str(result).split())
    stub, leaky = EXERCISES["04.1"].stub, solved("04.1")
    for unfinished in ("if (false) y[0] = 0; // TODO", "const int i = ...; // TODO"):
        assert check("04.1", answer_of(stub.replace("// TODO", unfinished), "04.1")).status == NOT_YET
    assert "has to be called `leaky`" in str(check("04.1", leaky.replace("void leaky", "void x")))
    assert "line 4 of the kernel" in str(check("04.1", leaky.replace("< n", "< m")))
    assert "on this GPU: y[0]: got" in str(check("04.1", leaky.replace(": slope", ": -slope")))
    monkeypatch.setattr(NumPyAsGPU, "astray", True)
    assert "the kernel writes outside `y`" in str(check("04.1", leaky))


@pytest.mark.gpu
@pytest.mark.parametrize("padded", [True, False])
def test_on_a_gpu(padded, monkeypatch):
    """Without the emulator, arrays lie between guards."""
    module = importlib.import_module("hashedmm.check")
    if padded:
        monkeypatch.setattr(module.emulator, "available", lambda: False)
    for name in sorted(NEED_COMPILER):
        result = check(name, answer_of(EXERCISES[name].solution, name))
        assert result.status == RIGHT, result
    if padded:
        unguarded = answer_of(EXERCISES["04.1"].solution, "04.1").replace("if (i < n) ", "if (i < n + 9) ")
        result = check("04.1", unguarded)
        assert result.status == WRONG and "writes outside `y`" in str(result)
        assert check("04.1", answer_of(edited("04.1", {"y[i] =": "y[0] ="}), "04.1")).status == WRONG


# The oracles of exercises that compute on their own, against the package.


def test_slices_are_the_spec_s():
    for shape, panel, c in (((40, 60), (16, 32), 1 / 4), ((64, 96), (16, 32), 1 / 4), ((5, 7), (2, 3), 1 / 4)):
        spec = HashSpec(shape, c, panel=panel)
        across = -(-shape[1] // panel[1])
        found = [nb10.slice_of(p // across, p % across, *shape, *panel, c) for p in range(spec.n_panels)]
        assert found == spec.panel_slices()
    assert nb10.slice_of(8191, 1023, 2**20, 2**20, 128, 1024, 1 / 64)[0] == 17_179_867_136  # notebook 10, section 2


def test_places_are_the_spec_s():
    for case in EXERCISES["03.1"].test.cases():
        i, j, height, buckets, seed = case.args
        spec = HashSpec((48, 64), buckets / (48 * 64), block=(height, 1), seed=seed)
        assert spec.n_buckets == buckets
        bucket, sign = spec.indices()
        assert EXERCISES["03.1"].test.oracle(*case.args) == (bucket[i, j], sign[i, j])


def test_work_is_the_sketch_s():
    from hashedmm import sketch

    for case in EXERCISES["11.2"].test.cases():
        rows, cols, c, height, width, stride = case.args
        spec = HashSpec((rows, cols), c, block=(height, 1), panel=(height, width), stride=stride)
        bins = sketch.geometry(spec).all_bins
        assert EXERCISES["11.2"].test.oracle(*case.args) == (rows // height * cols, rows * bins)


def test_exercise_files_are_found():
    assert len(EXERCISES) >= 40 and exercises.find("01.1") is EXERCISES["01.1"]
