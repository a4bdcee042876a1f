"""``check("05.2", answer)``: says whether the answer to an exercise is right, and if not what is wrong first and why.

A stub gives "not yet" and never an exception, so that an untouched notebook runs to its end. Functions run on unequal
data of odd shapes. Kernels run in the emulator, behind its walls, are watched for races and counted, and then run on
the GPU if there is one. The exercises are in `hashedmm.exercises`. Imports exercises, build and emulator.
"""

from __future__ import annotations

import ast
import copy
import html
import io
import linecache
import re
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hashedmm import emulator
from hashedmm.build import RawKernel, gpu_available
from hashedmm.emulator import source
from hashedmm.exercises import Case, Exercise, FunctionTest, KernelTest, Launch, ValueTest, find
from hashedmm.exercises.base import Demand
from hashedmm.kernels import FOLDER

RIGHT, NOT_YET, WRONG, NOT_RUN = "right", "not yet", "wrong", "not run"
_COLORS = {RIGHT: "#009E73", NOT_YET: "#56B4E9", WRONG: "#D55E00", NOT_RUN: "#999999"}  # Okabe-Ito
_WIDTH = 88
_PAD = 64  # elements around an output where nothing else watches its edges


@dataclass(frozen=True, repr=False)
class Result:
    """What `check` found. True if and only if the answer is right.

    Attributes
    ----------
    exercise : str
        Its id and title.
    status : "right", "not yet" (a stub), "wrong" or "not run" (a kernel, where nothing can run it)
    details : tuple of str
        What to know about it, a short paragraph each.
    """

    exercise: str
    status: str
    details: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.status == RIGHT

    def __str__(self) -> str:
        head = f"{self.exercise}: {self.status}"
        return "\n".join([head, *(textwrap.fill(d, _WIDTH, initial_indent="  ", subsequent_indent="  ",
                                                break_long_words=False) for d in self.details)])  # fmt: skip

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            "<br>" + re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(d, quote=False)) for d in self.details
        )
        style = f"border-left: 5px solid {_COLORS[self.status]}; padding: 0.2em 0.8em; line-height: 1.5"
        return f'<div style="{style}">{html.escape(self.exercise)}: <b>{self.status}</b>{body}</div>'


class _Stop(Exception):
    """The answer is not right; says why."""

    def __init__(self, status: str, *details: str) -> None:
        super().__init__(status, *details)
        self.status, self.details = status, details


def check(exercise: str, answer: Any) -> Result:
    """Check the answer to an exercise of a notebook.

    Parameters
    ----------
    exercise : str
        Its id, such as "05.2".
    answer : function, str with CUDA C, or dict of predictions
        What the exercise asks for. Whatever it is, and whatever it raises, the result says what is wrong with it.

    Returns
    -------
    Result
        True if the answer is right. A notebook shows it in colour; ``print`` shows it as text.

    Raises
    ------
    ValueError
        If there is no such exercise.
    """
    e = find(exercise)
    name = f"{e.id} {e.title}"
    try:
        if answer is None or answer is Ellipsis:
            raise _Stop(NOT_YET, f"Give `{e.answer}` a value, and run the cell again.")
        if isinstance(e.test, FunctionTest):
            details = _check_function(e, e.test, answer)
        elif isinstance(e.test, KernelTest):
            details = _check_kernel(e, e.test, answer)
        else:
            details = _check_value(e, e.test, answer)
    except _Stop as stop:
        return Result(name, stop.status, stop.details)
    return Result(name, RIGHT, tuple(details))


def _not_yet(e: Exercise, why: str = "") -> _Stop:
    change = "Change the code above" if e.kind == "fix" else "Fill in the code above"
    return _Stop(NOT_YET, f"{why or 'This is the cell as it was.'} {change}, and run the cell again.")


# --------------------------------------------------------------------------------------------------------------------
# Functions


def _check_function(e: Exercise, test: FunctionTest, answer: Any) -> list[str]:
    if not callable(answer):
        raise _Stop(WRONG, f"Pass the function itself, `{e.answer}`, not a result: got {_short(answer)}.")
    if _is_stub(e, answer):
        raise _not_yet(e)
    if test.kernels and not (gpu_available() or emulator.available()):
        raise _Stop(NOT_RUN, emulator.why_not())
    labels = []
    for case in test.cases():
        labels.append(case.label)
        _run_case(e, test, answer, case)
    return [f"{len(labels)} cases agree: {_listed(labels)}."]


def _run_case(e: Exercise, test: FunctionTest, answer: Callable[..., Any], case: Case) -> None:
    given = copy.deepcopy(case.args)
    try:
        with np.errstate(all="ignore"):
            got = answer(*given)
    except Exception as error:
        if isinstance(error, NotImplementedError) or (_holds_ellipsis(answer) and not isinstance(error, SyntaxError)):
            raise _not_yet(e, "There is still something to fill in.") from None
        raise _Stop(WRONG, f"{case.label}: {_error_text(error, answer)}") from None
    if got is None or got is Ellipsis:
        raise _not_yet(e, f"`{e.answer}` returns {'nothing' if got is None else '...'}.")
    for name, before, after in zip(_parameters(answer, len(given)), case.args, given, strict=True):
        if isinstance(before, np.ndarray) and not np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
            raise _Stop(
                WRONG,
                f"{case.label}: the call has changed its argument `{name}` in place. Work on a copy: `a = a ^ b` and "
                "`np.sort(a)` make a new array, `a ^= b` and `a.sort()` overwrite the caller's.",
            )
    if test.then is not None:
        try:
            got = test.then(got, *case.args)
        except Exception as error:
            raise _Stop(WRONG, f"{case.label}: {type(error).__name__}: {_first_lines(str(error))}") from None
    expected = test.oracle(*case.args)
    known = [(message, wrong(*case.args)) for message, wrong in test.mistakes]
    if isinstance(expected, tuple):
        if not isinstance(got, (tuple, list)) or len(got) != len(expected):
            parts = ", ".join(test.names) or f"{len(expected)} values"
            raise _Stop(WRONG, f"{case.label}: return a tuple ({parts}), got {_short(got)}.")
        for k, (part, want) in enumerate(zip(got, expected, strict=True)):
            name = test.names[k] if test.names else f"result[{k}]"
            _compare(test, case, name, part, want, [(m, w[k]) for m, w in known])
    else:
        _compare(test, case, test.names[0] if test.names else "result", got, expected, known)


def _compare(
    test: FunctionTest, case: Case, name: str, got: Any, expected: Any, known: Sequence[tuple[str, Any]]
) -> None:
    """Stop at the first difference between one part of a result and what it should be."""
    if isinstance(expected, str):
        if got != expected:
            raise _Stop(WRONG, f"{case.label}: {name}: got {_short(got)}, expected {expected!r}.")
        return
    try:
        array = np.asarray(got)
        if array.dtype.kind not in "biuf":
            raise TypeError
    except Exception:
        raise _Stop(WRONG, f"{case.label}: {name} must be numbers, got {_short(got)}.") from None
    want = np.asarray(expected)
    if array.shape != want.shape:
        why = ""
        if array.shape == want.shape[::-1]:
            why = " It is transposed."
        elif array.size == want.size:
            why = " The number of elements is right: the shape is not."
        raise _Stop(WRONG, f"{case.label}: {name} has the wrong shape: got {array.shape}, expected {want.shape}.{why}")
    bound = None if test.bound is None else test.bound(expected, *case.args)
    difference = _difference(array, want, bound)
    if difference is not None:
        cause = _cause(array, want, bound, known)
        raise _Stop(WRONG, f"{case.label}: {name}{difference}", *cause.said())
    if test.dtype and array.dtype != want.dtype:
        raise _Stop(
            WRONG, f"{case.label}: the numbers are right, but {name} is {array.dtype}; return {want.dtype}, as asked."
        )


def _is_stub(e: Exercise, answer: Any) -> bool:
    """Whether a function is the stub's: the same bytecode and constants."""
    code = getattr(answer, "__code__", None)
    found = [c for c in compile(e.stub, "<stub>", "exec").co_consts if isinstance(c, types.CodeType)]
    return code is not None and any(c.co_name == e.answer and _same_code(code, c) for c in found)


def _same_code(a: types.CodeType, b: types.CodeType) -> bool:
    if a.co_code != b.co_code or a.co_names != b.co_names or len(a.co_consts) != len(b.co_consts):
        return False
    return all(
        _same_code(x, y) if isinstance(x, types.CodeType) and isinstance(y, types.CodeType) else repr(x) == repr(y)
        for x, y in zip(a.co_consts, b.co_consts, strict=True)
    )


def _holds_ellipsis(answer: Any) -> bool:
    """Whether a function's code has a ``...`` somewhere."""
    codes = [getattr(answer, "__code__", None)]
    while codes:
        code = codes.pop()
        if code is not None:
            if Ellipsis in code.co_consts:
                return True
            codes += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return False


def _parameters(answer: Any, count: int) -> list[str]:
    code = getattr(answer, "__code__", None)
    names = list(code.co_varnames[: code.co_argcount]) if code is not None else []
    return names if len(names) == count else [f"argument {k}" for k in range(count)]


def _error_text(error: BaseException, answer: Any) -> str:
    """An exception in one sentence, with the line of the learner's code that it came from."""
    code = getattr(answer, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if code is not None and f.filename == code.co_filename]
    where = ""
    if mine:
        line = mine[-1].lineno or 0
        text = (mine[-1].line or linecache.getline(mine[-1].filename, line)).strip()
        where = f"line {line} of your code{f' `{text}`' if text else ''} raises "
    return f"{where}{type(error).__name__}: {_first_lines(str(error))}"


# --------------------------------------------------------------------------------------------------------------------
# Differences, and what they say


def _difference(got: np.ndarray, want: np.ndarray, bound: Any) -> str | None:
    """The first element that is wrong, as text; None if none is. NaN is wrong where none is expected."""
    bad = _bad(got, want, bound)
    if not bad.any():
        return None
    place = tuple(int(k) for k in np.argwhere(bad)[0]) if bad.ndim else ()
    where = f"[{', '.join(map(str, place))}]" if place else ""
    many = f" ({int(bad.sum())} of {bad.size} are wrong)" if bad.size > 1 else ""
    shown = [_number(a[place]) for a in (got, want)]
    if shown[0] == shown[1]:
        shown = [repr(a[place].item()) for a in (got, want)]
    return f"{where}: got {shown[0]}, expected {shown[1]}{many}."


def _bad(got: np.ndarray, want: np.ndarray, bound: Any) -> np.ndarray:
    if bound is None:
        same = got == want
        if want.dtype.kind == "f":
            same = same | (np.isnan(got.astype(np.float64)) & np.isnan(want))
        return np.asarray(~same)
    with np.errstate(all="ignore"):
        off = np.abs(got.astype(np.float64) - want.astype(np.float64))
        return np.asarray(~((off <= bound) | ((got == want) & np.isinf(want))))


class _Cause(NamedTuple):
    """A likely cause, "" if none is seen, and whether it explains all of the result."""

    text: str
    certain: bool = False

    def said(self) -> list[str]:
        return [f"Likely: {self.text}."] if self.text else []


def _cause(got: np.ndarray, want: np.ndarray, bound: Any, known: Sequence[tuple[str, Any]] = ()) -> _Cause:
    """What a wrong result looks like."""

    def fits(other: Any) -> bool:
        other = np.asarray(other)
        if other.shape != got.shape:
            return False
        blank = np.isnan(other.astype(np.float64))
        return not (_bad(got, other, bound) & ~(blank & np.isnan(got.astype(np.float64)))).any()

    for message, wrong in known:
        if fits(wrong):
            return _Cause(message, True)
    got64, want64 = got.astype(np.float64), want.astype(np.float64)
    missing = np.isnan(got64) & ~np.isnan(want64)
    if missing.all():
        return _Cause("nothing was written, all of it is still NaN")
    if missing.any():
        first = int(np.argmax(missing.ravel()))
        tail = missing.ravel()[first:].all() and first > 0
        if tail:
            return _Cause("the last elements were not written: look at the guard, and at the index")
        return _Cause(f"{int(missing.sum())} elements are NaN: not written, or made from something that was not")
    if not np.any(want64):
        return _Cause("")
    if got.dtype == np.float32 and want.dtype == np.float64 and np.allclose(got64, want64, rtol=1e-5, atol=1e-6):
        return _Cause("this was computed, or rounded, in float32; float64 is asked for", True)
    if want.dtype != bool and fits(-want):
        return _Cause("the sign is the wrong way round", True)
    if _bad(got, want, bound).mean() > 0.1 and not _bad(np.abs(got64), np.abs(want64), bound).any():
        return _Cause("the sizes are right and some signs are wrong", True)
    if want.ndim == 2 and min(want.shape) > 1 and fits(want.T.reshape(want.shape)):
        return _Cause(
            "the elements are there in the order of the transposed matrix: rows and columns are swapped", True
        )
    flat, right = got64.ravel(), want64.ravel()
    tolerance = 0.0 if bound is None else float(np.max(bound))
    if flat.size > 2:
        for shift, side in ((1, "later"), (-1, "earlier")):
            a, b = (flat[1:], right[:-1]) if shift > 0 else (flat[:-1], right[1:])
            if np.all(np.abs(a - b) <= tolerance):
                return _Cause(f"everything stands one place {side} than it should: an index is off by one", True)
    with np.errstate(all="ignore"):
        ratio = (flat / right)[right != 0]
    if ratio.size > 2 and np.allclose(ratio, ratio[0], rtol=1e-5) and not np.isclose(ratio[0], 1):
        return _Cause(f"everything is {ratio[0]:.4g} times what it should be", True)
    bad = _bad(got, want, bound)
    if want.ndim and bad.size > 8:
        first = int(np.argmax(bad.ravel()))
        if first > bad.size // 2 and bad.ravel()[first:].all():
            return _Cause("only the last elements are wrong: look at the edge")
        if want.ndim == 2 and want.shape[0] > 1 and not bad[0].any():
            return _Cause("the first row is right and others are not: look at strides, at rows and columns")
    return _Cause("")


def _number(value: Any) -> str:
    v = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    if isinstance(v, float):
        return f"{v:.7g}"
    return str(v)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} of type {type(value).__name__}"


def _first_lines(text: str, most: int = 260) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 4].rsplit(" ", 1)[0] + " ..."


def _listed(labels: Sequence[str], most: int = 4) -> str:
    shown = list(labels[:most])
    return "; ".join(shown) + (f" and {len(labels) - most} more" if len(labels) > most else "")


# --------------------------------------------------------------------------------------------------------------------
# Predictions


def _check_value(e: Exercise, test: ValueTest, answer: Any) -> list[str]:
    truth = test.truth()
    if not isinstance(answer, Mapping) or set(answer) != set(truth):
        keys = ", ".join(repr(k) for k in truth)
        raise _Stop(WRONG, f"`{e.answer}` must be a dict with the keys {keys}, got {_short(answer)}.")
    open_ones = [k for k, v in answer.items() if v is None or v is Ellipsis or v == ""]
    if open_ones:
        raise _Stop(NOT_YET, f"Still to predict: {', '.join(map(str, open_ones))}.")
    wrong = []
    for question, want in truth.items():
        got = answer[question]
        if isinstance(want, str):
            if not isinstance(got, str) or got.strip().lower() != want.lower():
                wrong.append(f"{question}: {got!r} is not it.{_said(test, question, got)}")
            continue
        if isinstance(got, (str, bytes)) or np.ndim(got) or isinstance(got, bool):
            wrong.append(f"{question}: give a number, got {_short(got)}.")
        elif not abs(float(got) - want) <= test.rtol * abs(want):
            side = "small" if float(got) < want else "large"
            wrong.append(f"{question}: {_number(got)} is too {side}.{_said(test, question, got)}")
    if wrong:
        raise _Stop(WRONG, *wrong)
    return ["; ".join(f"{k}: {_number(answer[k])}" for k in truth) + "."]


def _said(test: ValueTest, question: str, got: Any) -> str:
    for value, message in test.mistakes.get(question, ()):
        if got == value or (isinstance(value, str) and str(got).strip().lower() == value.lower()):
            return f" {message}"
    return ""


# --------------------------------------------------------------------------------------------------------------------
# Kernels


def _bare(code: str) -> str:
    """CUDA C without comments and blanks."""
    return "".join(source.blank(code).split())


def _unfinished(code: str) -> bool:
    return "TODO" in code or "..." in source.blank(code)


def _check_kernel(e: Exercise, test: KernelTest, answer: Any) -> list[str]:
    if not isinstance(answer, str):
        raise _Stop(WRONG, f"Pass the kernel's source, the string `{e.answer}`, got {_short(answer)}.")
    if _bare(answer) == _bare(stub_kernel(e)):
        raise _not_yet(e)
    if not (emulator.available() or gpu_available()):
        raise _Stop(NOT_RUN, emulator.why_not())
    launches = list(test.launches())
    if not emulator.available():
        _on_gpu(e, test, answer, launches, padded=True)
        return [
            f"{len(launches)} sizes agree on this GPU: {_listed([launch.label for launch in launches])}.",
            "Races, reads past the end and memory requests were not looked at: " + emulator.why_not() + ".",
        ]
    try:
        kernel = emulator.RawKernel(answer, test.name, (f"-I{FOLDER}",))
        kernel.compile()
    except emulator.CompileError as error:
        if _unfinished(answer):
            raise _not_yet(e, "There is still something to fill in.") from None
        raise _Stop(WRONG, _compile_text(str(error))) from None
    except ValueError:
        raise _misnamed(test, answer) from None
    for launch in launches:
        _run_launch(e, test, kernel, answer, launch)
    for launch in launches:
        report = emulator.check(kernel, launch.grid, launch.block, _copies(launch.args), shared_mem=launch.shared_mem,
                                order_dependent=test.order_dependent)  # fmt: skip
        if not report.ok:
            raise _Stop(
                WRONG, f"{launch.label}: the numbers came out right, but by luck.", *_problems(kernel, report.problems)
            )
    counted = _count(kernel, launches)
    details = [f"{len(launches)} sizes agree: {_listed([launch.label for launch in launches])}."]
    details.append("No race, no read or write outside an array, in any order of threads that was tried.")
    details += counted
    if gpu_available():
        _on_gpu(e, test, answer, launches, padded=False)
        details.append("It is right on this GPU, too.")
    return details


def _misnamed(test: KernelTest, code: str) -> _Stop:
    there = ", ".join(source.kernels(code)) or "none"
    return _Stop(WRONG, f"The `__global__` function has to be called `{test.name}`; the code has: {there}.")


def stub_kernel(e: Exercise) -> str:
    """The CUDA source in an exercise's stub, which is one assignment."""
    (assignment,) = ast.parse(e.stub).body
    if not isinstance(assignment, ast.Assign):
        raise TypeError(f"the stub of exercise {e.id} must be one assignment to {e.answer}")
    return ast.literal_eval(assignment.value)


def _copies(args: tuple) -> tuple:
    return tuple(a.copy(order="K") if isinstance(a, np.ndarray) else a for a in args)


def _run_launch(e: Exercise, test: KernelTest, kernel: emulator.RawKernel, code: str, launch: Launch) -> None:
    """One launch in the emulator; stops if anything is wrong."""
    args = _copies(launch.args)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            kernel(launch.grid, launch.block, args, shared_mem=launch.shared_mem)
    except emulator.KernelError as error:
        message = f"{launch.label}: {_error_of_kernel(str(error))}"
        raise _Stop(WRONG, message, *([] if error.line else _watched(kernel, launch))) from None
    except (TypeError, ValueError) as error:
        raise _Stop(WRONG, f"{launch.label}: {_first_lines(str(error))}") from None
    outcome = _compare_launch(kernel, launch, args)
    if outcome:
        if _untouched(launch, args) and _unfinished(code):
            raise _not_yet(e, "The kernel writes nothing so far.")
        message, cause = outcome
        seen = [] if cause.certain else _watched(kernel, launch)
        raise _Stop(WRONG, f"{launch.label}: {message}", *(seen or cause.said()))


def _untouched(launch: Launch, args: Sequence[Any]) -> bool:
    """Whether all outputs are as they were."""
    return all(np.array_equal(args[k], launch.args[k], equal_nan=args[k].dtype.kind == "f") for k in launch.expected)


def _watched(kernel: emulator.RawKernel, launch: Launch) -> list[str]:
    """What a run with every access watched says about a wrong result."""
    try:
        with redirect_stdout(io.StringIO()):
            report = emulator.check(kernel, launch.grid, launch.block, _copies(launch.args), seeds=1,
                                    shared_mem=launch.shared_mem, order_dependent=True)  # fmt: skip
    except (emulator.KernelError, emulator.CompileError, MemoryError):
        return []
    return _problems(
        kernel, [p for p in report.problems if p.kind in ("race", "uninitialised", "outside", "misaligned")]
    )


_NEEDED = {
    "race": "a barrier, `__syncthreads()`, between the two",
    "uninitialised": "every thread writes its element of shared memory, a zero if it has nothing better",
    "outside": "a guard, with the array's own sizes",
    "order": "a result that does not depend on who comes first",
}


def _problems(kernel: emulator.RawKernel, problems: Sequence[emulator.Problem], most: int = 2) -> list[str]:
    """The first problems, each with what it needs."""
    out = []
    for p in problems[:most]:
        needed = _NEEDED.get(p.kind, "")
        if p.kind == "race" and (place := re.search(r" (?:writes|updates) (\w+)\[", p.message)):
            if place[1] in {a.name for a in kernel.arguments}:
                needed = f"one thread for each place of `{place[1]}`, or an atomic; look at the index"
        out.append(f"{p.kind}: {_first_lines(p.message)}." + (f" Needed: {needed}." if needed else ""))
    left = len(problems) - most
    return out + ([f"And {left} more problem{'s' if left > 1 else ''}."] if left > 0 else [])


def _error_of_kernel(message: str) -> str:
    """A KernelError without what the learner knows, the kernel's name, and with what it needs."""
    text = _first_lines(re.sub(r"^kernel '\w+', ", "", message))
    return text + (f". Needed: {_NEEDED['outside']}." if " outside " in text else "")


def _compile_text(message: str) -> str:
    """The first error of a compiler's message, with its line."""
    lines = message.splitlines()
    if len(lines) == 1:
        return _first_lines(message)
    error = next((k for k, line in enumerate(lines) if "error:" in line), 1)
    number = re.match(r"[^:]+:(\d+):", lines[error])
    text = lines[error].partition("error: ")[2] or lines[error]
    code = lines[error + 1].partition("|")[2].strip() if error + 1 < len(lines) and "|" in lines[error + 1] else ""
    where = f"line {number[1]} of the kernel{f' `{code}`' if code else ''}" if number else "the kernel"
    return f"{where} does not compile: {_first_lines(text)}"


def _compare_launch(kernel: Any, launch: Launch, args: Sequence[Any]) -> tuple[str, _Cause] | None:
    """What is wrong first, and why; None if all outputs are right and nothing else has changed."""
    for position, before in enumerate(launch.args):
        if not isinstance(before, np.ndarray) or before.dtype.kind == "V":
            continue
        name, got = _argument(kernel, position), args[position]
        if position not in launch.expected:
            if not np.array_equal(before, got, equal_nan=before.dtype.kind == "f"):
                return f"the kernel has changed its input `{name}`", _Cause("", True)
            continue
        want, bound = launch.expected[position], launch.bound.get(position)
        difference = _difference(got, want, bound)
        if difference:
            known = [(message, wrong[position]) for message, wrong in launch.mistakes if position in wrong]
            return f"{name}{difference}", _cause(got, want, bound, known)
    return None


def _argument(kernel: Any, position: int) -> str:
    """A parameter's name in the learner's source."""
    found = source.kernels(kernel.code).get(kernel.name, ("", ""))[0]
    names = source.parameter_names(found, len(source._split(found)))
    return names[position] if position < len(names) else f"argument {position}"


def _count(kernel: emulator.RawKernel, launches: Sequence[Launch]) -> list[str]:
    """Stop if a launch asks more of memory than its demands allow; else say what it asks, in a line."""
    said = ""
    for launch in launches:
        if launch is not launches[-1] and not launch.demands:
            continue
        trace = emulator.trace(kernel, launch.grid, launch.block, _copies(launch.args), shared_mem=launch.shared_mem)
        for demand in launch.demands:
            if (failed := _exceeds(kernel, trace, demand)) is not None:
                raise _Stop(WRONG, f"{launch.label}: the numbers are right, but {failed}: {demand.fix}.")
        said = _costliest(trace)
    return [said] if said else []


def _exceeds(kernel: emulator.RawKernel, trace: emulator.Trace, demand: Demand) -> str | None:
    space = "shared" if demand.position is None else "global"
    array = None if demand.position is None else kernel.arguments[demand.position].name
    rows = trace.select(space=space, op=demand.op, array=array)
    if demand.measure == "bytes":
        moved = sum(row.bytes for row in rows)
        if moved <= demand.most:
            return None
        return f"`{array}` is asked for {moved // 4:,} numbers, where {int(demand.most) // 4:,} would do"
    what = "sectors" if demand.measure == "sectors" else "wavefronts"
    for row in rows:
        each = (row.sectors if what == "sectors" else row.wavefronts) / row.requests
        if each > demand.most:
            to = f"{row.op} of `{row.array}`"
            return (
                f"line {row.line} `{row.text}` needs {each:.3g} {what} a request ({to}), where {demand.most:g} would do"
            )
    return None


def _costliest(trace: emulator.Trace) -> str:
    """The line that asks most, in a sentence."""
    far = [row for row in trace.rows if row.space == "global" and row.ideal_sectors and not row.file]
    near = [row for row in trace.rows if row.space == "shared" and row.bank_conflicts and not row.file]
    parts = []
    if far:
        row = max(far, key=lambda row: row.sectors)
        each = f"{row.sectors_per_request:.3g} sector{'' if row.sectors == row.requests else 's'}"
        parts.append(f"Most is asked by line {row.line}: {each} a request for `{row.array}`")
        if row.sectors > 1.5 * row.ideal_sectors:
            parts[-1] += f", {row.sectors / row.ideal_sectors:.2g} times what its bytes would fill"
    if near:
        row = max(near, key=lambda row: row.bank_conflicts)
        parts.append(f"line {row.line} has bank conflicts, {row.wavefronts / row.requests:.3g} wavefronts a request")
    return "; ".join(parts) + "." if parts else ""


# ---- on a GPU


def _on_gpu(e: Exercise, test: KernelTest, code: str, launches: Sequence[Launch], padded: bool) -> None:
    """Every launch on the GPU; with ``padded``, arrays lie between guards that show a write past the end."""
    import cupy

    try:
        kernel = RawKernel(code, test.name)
        kernel.compile()
    except emulator.CompileError as error:
        if _unfinished(code):
            raise _not_yet(e, "There is still something to fill in.") from None
        raise _Stop(WRONG, _compile_text(str(error))) from None
    except ValueError:
        raise _misnamed(test, code) from None
    for launch in launches:
        guarded = list(_guarded(cupy, launch.args, _PAD if padded else 0))
        try:
            kernel(launch.grid, launch.block, tuple(inner for inner, _ in guarded), shared_mem=launch.shared_mem)
            cupy.cuda.Device().synchronize()
        except (TypeError, ValueError) as error:
            raise _Stop(WRONG, f"{launch.label}: {_first_lines(str(error))}") from None
        args = [cupy.asnumpy(inner) if isinstance(inner, cupy.ndarray) else inner for inner, _ in guarded]
        outcome = _compare_launch(kernel, launch, args)
        for position, (inner, whole) in enumerate(guarded):
            if whole is not None and padded:
                around = cupy.asnumpy(whole)
                guard = _guard(position)
                if (around[:_PAD] != guard).any() or (around[_PAD + inner.size :] != guard).any():
                    message = f"the kernel writes outside `{_argument(kernel, position)}`: guard the access"
                    outcome = message, _Cause("", True)
        if outcome:
            if _untouched(launch, args) and _unfinished(code):
                raise _not_yet(e, "The kernel writes nothing so far.")
            message, cause = outcome
            raise _Stop(WRONG, f"{launch.label}, on this GPU: {message}", *cause.said())


def _guard(position: int) -> int:
    """What lies around an argument: another number for each, so that a copy of one guard to another is seen."""
    return 77 + position


def _guarded(cupy: Any, args: Sequence[Any], pad: int) -> Iterator[tuple[Any, Any]]:
    """(what to pass, the larger array that it lies in or None) for each argument."""
    for position, a in enumerate(args):
        if not isinstance(a, np.ndarray) or a.dtype.kind == "V":  # a struct goes by value
            yield a, None
            continue
        whole = cupy.full(a.size + 2 * pad, _guard(position), a.dtype)
        order = "C" if a.flags.c_contiguous else "F"
        inner = whole[pad : pad + a.size].reshape(a.shape, order=order)
        inner[...] = cupy.asarray(a)
        yield inner, whole
