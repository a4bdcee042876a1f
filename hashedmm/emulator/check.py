"""``check``: races, uninitialised shared memory, accesses outside arrays, divergent barriers, order dependence.

Imports NumPy and this folder's modules.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hashedmm.emulator import native, toolchain
from hashedmm.emulator.rawkernel import KernelError, RawKernel, Run, describe_offset
from hashedmm.emulator.trace import _check_kernel, array_of

KINDS = ("race", "uninitialised", "outside", "misaligned", "barrier", "warp", "assert", "fault", "order")
_NATIVE_KINDS = {
    native.RACE: "race", native.UNINITIALISED: "uninitialised", native.OUTSIDE: "outside",
    native.MISALIGNED: "misaligned",
}  # fmt: skip
_VERBS = ("reads {}", "writes {}", "updates {} atomically")  # by the number of the op
_MOST_BLOCKS = 2**22  # more are not shuffled
_RTOL = {2: 2e-3, 4: 1e-5, 8: 1e-12}


@dataclass(frozen=True)
class Problem:
    """One mistake in a kernel.

    Attributes
    ----------
    kind : str
        "race", "uninitialised" (a read of shared memory that nobody wrote), "outside" (an array's bounds),
        "misaligned", "barrier" (not all threads reach it), "warp" (a collective without all of its lanes), "assert",
        "fault", or "order" (the result depends on the order of threads).
    line, text : int, str
        Where; for a race the write. 0 and "" if it is not known.
    other_line, other_text : int, str
        The other side of a race or of a divergent barrier; 0 and "" if there is none.
    message : str
        A sentence with variables, threads and both lines.
    count : int
        How often it was seen.
    """

    kind: str
    line: int
    text: str
    other_line: int
    other_text: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" + (f" ({self.count} times)" if self.count > 1 else "")


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    kernel: str
    problems: list[Problem]
    seeds: int

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems

    @property
    def kinds(self) -> set[str]:
        """The kinds of the problems."""
        return {p.kind for p in self.problems}

    def __iter__(self) -> Iterator[Problem]:
        return iter(self.problems)

    def __str__(self) -> str:
        if self.ok:
            return (
                f"{self.kernel}: no problem found (races, uninitialised shared memory, bounds, barriers; "
                f"{self.seeds} orders "
                "of threads and blocks agree)"
            )
        count = len(self.problems)
        return "\n".join([f"{self.kernel}: {count} problem{'s' if count > 1 else ''}", *map(str, self.problems)])

    def _repr_markdown_(self) -> str:
        if self.ok:
            return f"**{self}**"
        out = ["| kind | line | what | times |", "|---|---|---|---|"]
        for p in self.problems:
            lines = f"{p.line}, {p.other_line}" if p.other_line and p.other_line != p.line else f"{p.line or ''}"
            out.append(f"| {p.kind} | {lines} | {p.message.replace('|', chr(92) + '|')} | {p.count} |")
        return "\n".join(out)


def check(
    kernel: RawKernel,
    grid: tuple,
    block: tuple,
    args: Sequence[Any],
    *,
    shared_mem: int = 0,
    seeds: int = 3,
    order_dependent: bool = False,
    rtol: float | None = None,
) -> Report:
    """Run a kernel on copies of its arguments; find what is wrong on a GPU even if the result happens to be right.

    Once with every access watched: two threads that touch the same place with no barrier between, one of them writing
    (in shared memory, or in global memory across all blocks; ``__syncwarp`` orders the lanes of a warp, atomics do not
    race with atomics, other warp collectives order nothing); reads of shared memory that no thread of the block wrote;
    accesses outside an array; divergent barriers. Then ``seeds`` times at full speed in different orders of threads and
    blocks: results must agree bit for bit.

    Parameters
    ----------
    kernel : RawKernel
        The emulator's.
    grid, block, args, shared_mem
        As in the kernel's call. The arrays are left alone.
    seeds : int
        Orders to try, at least 1: the natural one, its reverse, then random ones.
    order_dependent : bool
        True for a kernel whose sums depend on the order (float atomics): results then agree to ``rtol``.
    rtol : float or None
        Largest difference relative to the largest element; None is 2e-3, 1e-5, 1e-12 for float16, float32, float64.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        For arguments that the kernel's call refuses.
    RuntimeError
        If the emulator is not available.

    Notes
    -----
    Blocks that wait for each other through flags in global memory are reported as races, ordered or not. An access that
    strays from one shared variable into the next is seen only where the next has not been written, and none is seen
    inside a thread's local variables. A kernel is checked on these arguments, not proven.
    """
    if not toolchain.available():
        raise RuntimeError(toolchain.why_not())
    _check_kernel(kernel)
    seeds = operator.index(seeds)
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    with native.LOCK:
        watched = Run(kernel, grid, block, args, shared_mem, mode=native.CHECK)
        with watched:
            try:
                problems = _watch(watched)
                if not {p.kind for p in problems} & {"outside", "barrier", "warp", "assert", "fault"}:
                    problems += _orders(
                        watched, (grid, block, args, shared_mem), seeds, order_dependent, rtol, problems
                    )
            finally:
                watched.library.handle.hm_end_check()
                watched.library.handle.hm_forget()
    return Report(kernel.name, sorted(problems, key=lambda p: (KINDS.index(p.kind), p.line, p.other_line)), seeds)


def _watch(run: Run) -> list[Problem]:
    """The run with every access watched."""
    failed = None
    try:
        run.go()
    except KernelError as e:
        failed = e
    merged: dict[tuple, Problem] = {}
    for row in run.library.table("hm_problems", native.PROBLEM):
        found = _describe(run, row)
        key = (found.kind, frozenset((found.line, found.other_line)), found.message.partition("[")[0])
        if key in merged:
            first = merged[key]
            found = Problem(
                first.kind, first.line, first.text, first.other_line, first.other_text, first.message,
                first.count + found.count,
            )  # fmt: skip
        merged[key] = found
    problems = list(merged.values())
    # A wild access is seen before it faults.
    if failed and not (failed.kind == "fault" and any(p.kind == "outside" and p.line == failed.line for p in problems)):
        problems.append(_from_error(run, failed))
    return problems


def _from_error(run: Run, error: KernelError) -> Problem:
    other = run.launch.other_line if error.kind in ("barrier", "warp") else 0
    return Problem(error.kind, error.line, run.text(error.line), other, run.text(other), str(error))


def _describe(run: Run, row: np.void) -> Problem:
    kind = _NATIVE_KINDS[int(row["kind"])]
    main = f"{run.kernel.name}.cu"

    def side(prefix: str) -> tuple[str, int, str, str, tuple, tuple]:
        file, line = run.library.line_of(int(row[f"{prefix}pc"]))
        verb = _VERBS[row[f"{prefix}op"]]
        thread = run.coordinates(int(row[f"{prefix}thread"]))
        block = run.block_coordinates(int(row[f"{prefix}block"]))
        return (
            run.where(line, file),
            line if file == main else 0,
            run.text(line) if file == main else "",
            verb,
            thread,
            block,
        )

    where, line, text, verb, thread, block = side("")
    who = f"block {_tuple(block)} thread {_tuple(thread)}"
    if kind == "outside":
        return Problem(
            kind,
            line,
            text,
            0,
            "",
            f"{where} {verb.format(_outside(run, int(row['address'])))} ({who})",
            int(row["count"]),
        )
    size, region, offset = int(row["size"]), int(row["region"]), int(row["offset"])
    name, inside = array_of(run, region, offset)
    if region >= 0:
        size = run.memory.buffers[region].array.dtype.itemsize
    place = f"{name}[{inside // size}]"
    if kind == "uninitialised":
        message = f"{where} {verb.format(place)}, which no thread of the block has written ({who})"
        return Problem(kind, line, text, 0, "", message, int(row["count"]))
    if kind == "misaligned":
        wide = int(row["size"])
        message = f"{where} {verb.format(f'{wide} bytes at byte {inside} of {name}')}, not a multiple of {wide} ({who})"
        return Problem(kind, line, text, 0, "", message, int(row["count"]))
    one, two = side(""), side("other_")
    order = (_VERBS[1], _VERBS[2], _VERBS[0])  # the write first; two of a kind by line
    one, two = sorted((one, two), key=lambda s: (order.index(s[3]), s[1]))
    across = one[5] != two[5]

    def actor(s: tuple) -> str:
        return f"block {_tuple(s[5])} thread {_tuple(s[4])}" if across else f"thread {_tuple(s[4])}"

    reason = "and no barrier orders blocks" if across else "no barrier between"
    message = (
        f"{one[0]} {one[3].format(place)} ({actor(one)}) while {two[0]} {two[3].format('it')} ({actor(two)}), {reason}"
    )
    return Problem(kind, one[1], one[2], two[1], two[2], message, int(row["count"]))


def _tuple(t: Sequence[int]) -> str:
    return ",".join(map(str, t))


def _outside(run: Run, address: int) -> str:
    if found := run.memory.nearest(address):
        return f"outside {describe_offset(*found)}"
    library = run.library
    if library.dynamic_address <= address < library.dynamic_address + 320 * 1024:
        return f"byte {address - library.dynamic_address} of dynamic shared memory, and shared_mem is {run.shared_mem}"
    past = address - library.static_address
    if library.static_bytes and -(2**16) < past < library.static_bytes + 2**16:
        end = past - library.static_bytes
        return "shared memory " + (f"{end} bytes past the end" if end >= 0 else f"{-past} bytes before the start")
    if address < 2**16:
        return f"address {address:#x}: a null pointer"
    return f"address {address:#x}, which is in no argument"


# --------------------------------------------------------------------------------------------------------------------
# Orders of threads and blocks


def _orders(
    watched: Run, call: tuple, seeds: int, order_dependent: bool, rtol: float | None, known: list[Problem]
) -> list[Problem]:
    kernel = watched.kernel
    grid, block, args, shared_mem = call
    first: list[np.ndarray] = []
    for seed in range(seeds):
        order, blocks = _shuffled(watched, seed)
        run = Run(kernel, grid, block, args, shared_mem, order=order, blocks=blocks)
        outputs = [(a, value) for a, value in run.checked if isinstance(value, np.ndarray) and not a.constant]
        with run:
            try:
                run.go()
            except KernelError as e:
                return [_from_error(run, e)]
            results = [run.memory.read(value) for _, value in outputs]
        if not seed:
            first = results
            continue
        problems = []
        for (a, value), want, got in zip(outputs, first, results, strict=True):
            bad = _differs(want, got, order_dependent, rtol)
            if bad.size and not any(p.kind == "race" and f" {a.name}[" in p.message for p in known):
                problems.append(_order_problem(watched, a.name, value, want, got, bad))
        if problems:
            return problems
    return []


def _shuffled(run: Run, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    threads = int(np.prod(run.block))
    blocks = int(np.prod(run.grid, dtype=object))
    if not seed:
        return None, None
    if seed == 1:
        return np.arange(threads)[::-1], np.arange(blocks)[::-1] if blocks <= _MOST_BLOCKS else None
    rng = np.random.default_rng(seed)
    return rng.permutation(threads), rng.permutation(blocks) if blocks <= _MOST_BLOCKS else None


def _differs(want: np.ndarray, got: np.ndarray, order_dependent: bool, rtol: float | None) -> np.ndarray:
    """Linear places, in memory order, of the elements that disagree."""
    want, got = want.ravel("K"), got.ravel("K")
    if order_dependent and want.dtype.kind == "f":
        scale = np.nanmax(np.abs(want), initial=0.0, where=np.isfinite(want)).astype(np.float64)
        most = (_RTOL[want.dtype.itemsize] if rtol is None else rtol) * scale
        with np.errstate(invalid="ignore"):
            apart = np.abs(want.astype(np.float64) - got.astype(np.float64))
        same = (apart <= most) | (want == got) | (np.isnan(want) & np.isnan(got))
        return np.flatnonzero(~same)
    size = want.dtype.itemsize
    raw = want.view(np.uint8).reshape(-1, size) != got.view(np.uint8).reshape(-1, size)
    return np.flatnonzero(raw.any(axis=1))


def _order_problem(
    watched: Run, name: str, value: np.ndarray, want: np.ndarray, got: np.ndarray, bad: np.ndarray
) -> Problem:
    place = int(bad[0])
    address = watched.memory.pointer(value) + place * value.dtype.itemsize
    line, file = 0, ""
    for region, b in enumerate(watched.memory.buffers):
        if b.base <= address < b.base + b.size:
            if pc := watched.library.handle.hm_last_writer(region, address - b.base):
                file, line = watched.library.line_of(pc)
    text = watched.text(line) if file == f"{watched.kernel.name}.cu" else ""
    message = (
        f"{watched.where(line, file)} leaves {name}[{place}] = {want.ravel('K')[place]} in one order of threads and "
        "blocks and "
        f"{got.ravel('K')[place]} in another"
    )
    if value.dtype.kind == "f" and not _differs(want, got, True, 1e-2).size:
        message += "; if the order of a sum is all that differs (float atomics), say order_dependent=True"
    return Problem("order", line if text else 0, text, 0, "", message, int(bad.size))
