"""What an exercise is: its text, its stub, its solution, and what `hashedmm.check` compares an answer with.

Imports NumPy alone. The exercises themselves are in the files ``nb01.py`` ... of this folder, one a notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = ("function", "kernel", "value", "fix")
UNIT = 2.0**-24  # a float32 operation is off by a factor of at most 1 +- UNIT


# --------------------------------------------------------------------------------------------------------------------
# Functions


@dataclass(frozen=True)
class Case:
    """One call of a learner's function: what to pass, and how to name it in a message."""

    label: str
    args: tuple


@dataclass(frozen=True)
class FunctionTest:
    """How the answer to a NumPy exercise is checked.

    Attributes
    ----------
    cases : () -> iterable of Case
        Unequal data and odd shapes; made anew for each check.
    oracle : (*args) -> value
        The right result: a number, an array, or a tuple of them.
    names : tuple of str
        Of the parts of a tuple.
    bound : (expected, *args) -> largest error, or None
        None: equal. It gets and returns the part if the result is a tuple.
    dtype : bool
        Whether the result's dtype has to be the oracle's.
    mistakes : tuple of (message, (*args) -> value)
        Results of known mistakes, so that a wrong result can be explained.
    then : (result, *args) -> value, or None
        What is done with the result before it is compared: launch a kernel with it, for example.
    kernels : bool
        Whether ``then`` runs a kernel in the emulator.
    """

    cases: Callable[[], Iterable[Case]]
    oracle: Callable[..., Any]
    names: tuple[str, ...] = ()
    bound: Callable[..., Any] | None = None
    dtype: bool = False
    mistakes: tuple[tuple[str, Callable[..., Any]], ...] = ()
    then: Callable[..., Any] | None = None
    kernels: bool = False


def relative(rtol: float) -> Callable[..., Any]:
    """A bound: ``rtol`` times the largest element of what is expected."""
    return lambda expected, *args: rtol * np.abs(np.asarray(expected, np.float64)).max(initial=0.0)


# --------------------------------------------------------------------------------------------------------------------
# Kernels


@dataclass(frozen=True)
class Demand:
    """The most that a kernel may ask of memory, beside being right.

    Attributes
    ----------
    measure : "sectors" (a request, global memory), "wavefronts" (a request, shared memory) or "bytes" (in all)
    most : float
    fix : str
        What to do about it, for the message.
    position : int or None
        The argument that is meant; None is all shared memory.
    op : "load" or "store"
    """

    measure: str
    most: float
    fix: str
    position: int | None = None
    op: str = "load"


@dataclass(frozen=True)
class Launch:
    """One launch of a learner's kernel, and what it has to leave behind.

    Attributes
    ----------
    label : str
        The sizes, for messages.
    grid, block : tuples of int
    args : tuple
        NumPy arrays and scalars. Outputs are filled with NaN, or with what the kernel adds to.
    expected : {position: array}
        What outputs hold afterwards; every other array must be unchanged.
    bound : {position: largest error}
        An array or a number; equal where there is none.
    shared_mem : int
        Bytes of dynamic shared memory.
    mistakes : tuple of (message, {position: array})
        Results of known mistakes.
    demands : tuple of Demand
    """

    label: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple
    expected: Mapping[int, np.ndarray]
    bound: Mapping[int, Any] = field(default_factory=dict)
    shared_mem: int = 0
    mistakes: tuple[tuple[str, Mapping[int, np.ndarray]], ...] = ()
    demands: tuple[Demand, ...] = ()


@dataclass(frozen=True)
class KernelTest:
    """How the answer to a CUDA exercise is checked: `Launch` by `Launch`, then by what the emulator watches.

    Attributes
    ----------
    name : str
        The ``__global__`` function's.
    launches : () -> iterable of Launch
    order_dependent : bool
        True if float atomics are asked for, whose sums depend on the order of threads.
    """

    name: str
    launches: Callable[[], Iterable[Launch]]
    order_dependent: bool = False


def nan(*shape: int) -> np.ndarray:
    """A float32 array full of NaN: what a kernel does not write stays visible."""
    return np.full(shape, np.nan, np.float32)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Unequal random numbers, float32."""
    return rng.standard_normal(shape, dtype=np.float32)


# --------------------------------------------------------------------------------------------------------------------
# Predictions


@dataclass(frozen=True)
class ValueTest:
    """How a prediction is checked.

    Attributes
    ----------
    truth : () -> {question: value}
        Computed, not remembered. Values are numbers or words.
    mistakes : {question: ((value, message), ...)}
        What a wrong value of a question says about the way to it.
    rtol : float
        For numbers.
    """

    truth: Callable[[], Mapping[str, Any]]
    mistakes: Mapping[str, tuple[tuple[Any, str], ...]] = field(default_factory=dict)
    rtol: float = 0.0


# --------------------------------------------------------------------------------------------------------------------
# The exercise


@dataclass(frozen=True)
class Exercise:
    """One exercise, all of it in one place.

    Attributes
    ----------
    id : str
        The notebook's number and the exercise's in it, "05.2".
    title : str
    after : str
        The heading of the notebook's section from which on it can be solved, such as "## 2. The kernel".
    kind : "function", "kernel", "value" (a prediction) or "fix" (find the bug)
    spec : str
        Markdown: what to write.
    sizes : str
        Markdown, one line: the shapes that are tried.
    lines : int
        About how many lines the solution adds or changes.
    answer : str
        The name that stub and solution define, and that is handed to ``check``.
    stub, solution : str
        Python source of the cell, without the call of ``check``.
    hints : tuple of one to three str
        Markdown, from a nudge to nearly all.
    test : FunctionTest, KernelTest or ValueTest
    """

    id: str
    title: str
    after: str
    kind: str
    spec: str
    sizes: str
    lines: int
    answer: str
    stub: str
    solution: str
    hints: tuple[str, ...]
    test: FunctionTest | KernelTest | ValueTest

    @property
    def notebook(self) -> str:
        """The notebook's number, two digits."""
        return self.id.partition(".")[0]
