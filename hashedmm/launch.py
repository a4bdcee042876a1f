"""Launches that are planned once and run as often as one likes, and the few things that NumPy and CuPy do alike.

Also what is derived from a spec once and kept on a device beside its buckets. Imports hashing and build.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np

from hashedmm import build
from hashedmm.hashing import HashSpec


def on_gpu(a: Any) -> bool:
    """Whether ``a`` is CuPy's."""
    return type(a).__module__.partition(".")[0] == "cupy"


def library(a: Any) -> Any:
    """The module that arrays like ``a`` come from."""
    if not on_gpu(a):
        return np
    import cupy

    return cupy


def device(a: Any) -> build.Device:
    """Where a kernel runs that is given ``a``."""
    return int(a.device.id) if on_gpu(a) else "emulator"


def beside(a: Any) -> contextlib.AbstractContextManager:
    """A context in which arrays are made, and kernels launched, where ``a`` is."""
    return a.device if on_gpu(a) else contextlib.nullcontext()


def empty(like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Memory where ``like`` is, with whatever it held before: a kernel writes all of its output."""
    with beside(like):
        return library(like).empty(shape, dtype)


def zeros(like: Any, shape: Any, dtype: Any) -> Any:
    """Zeros where ``like`` is."""
    with beside(like):
        return library(like).zeros(shape, dtype)


class Launch(NamedTuple):
    """A kernel and all that its launch takes: ``launch.kernel(*launch[1:4], shared_mem=launch.shared_mem)``.

    The first four fields are also what ``hashedmm.emulator.trace`` and ``check`` take, in their order.
    """

    kernel: Any
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]
    shared_mem: int

    def run(self) -> None:
        """Launch it, on the GPU that the arrays are on."""
        with beside(next((a for a in self.args if on_gpu(a)), None)):
            self.kernel(self.grid, self.block, self.args, shared_mem=self.shared_mem)

    def launches(self) -> Iterator[Launch]:
        """Itself: what a `Plan` of one launch is."""
        yield self


class Copy(NamedTuple):
    """``to[...] = source``: between the caller's array and one that a kernel can take."""

    to: Any
    source: Any

    def run(self) -> None:
        """Copy now, where the arrays are."""
        with beside(self.to):
            self.to[...] = self.source


class Plan(NamedTuple):
    """Launches and copies that follow each other. Their arrays are fixed: run it again after changing their values.

    ``kept`` is what it leaves behind for a later plan, if that may take it over: `hashedmm.sketch.plan_matmul` its z.
    """

    steps: tuple[Launch | Copy, ...]
    kept: Any = None

    def run(self) -> None:
        """All of them, in order, on the current stream."""
        for step in self.steps:
            step.run()

    def launches(self) -> Iterator[Launch]:
        """The kernels among them."""
        yield from (step for step in self.steps if isinstance(step, Launch))


# ---- what is derived from a spec

RECENT = 64  # specs whose derived arrays are kept though nobody holds them


class Derived:
    """Everything that was derived from one spec on one device. It is kept while somebody holds this object.

    A copy of it, or a file, has nothing: what is derived can be derived again.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Derived, ()

    @property
    def nbytes(self) -> int:
        """Memory of all of its arrays."""
        return sum(a.nbytes for arrays in self.made.values() for a in arrays)


_held: WeakValueDictionary[tuple[HashSpec, build.Device], Derived] = WeakValueDictionary()
_recent: dict[tuple[HashSpec, build.Device], Derived] = {}  # the least recent first


def derived(spec: HashSpec, where: build.Device) -> Derived | None:
    """What has been derived from a spec on a device, if it is still there."""
    return _held.get((spec, where))


def release(spec: HashSpec, where: build.Device) -> None:
    """Keep what was derived from a spec no longer than somebody holds it."""
    _recent.pop((spec, where), None)


def kept(function: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """For a function (spec, ..., where) -> arrays: call it once, and keep what it gives with all that is `derived`."""

    @functools.wraps(function)
    def get(*args: Any) -> tuple[Any, ...]:
        key = args[0], args[-1]
        of_spec = _held.get(key)
        if of_spec is None:
            of_spec = _held[key] = Derived()
        _recent.pop(key, None)
        _recent[key] = of_spec
        if len(_recent) > RECENT:
            del _recent[next(iter(_recent))]
        what = function.__qualname__, *args[1:-1]
        if what not in of_spec.made:
            of_spec.made[what] = function(*args)
        return of_spec.made[what]

    return get
