"""``trace``: what a kernel asks of the memory system, counted per source line.

Imports NumPy, `hashedmm.records` (for recorded traces) and this folder's modules.
"""

from __future__ import annotations

import html
import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from hashedmm import records
from hashedmm.emulator import native, toolchain
from hashedmm.emulator.rawkernel import RawKernel, Run

OPS = ("load", "store", "atomic")


@dataclass(frozen=True)
class Row:
    """What one source line asks of one array: sums over all requests of the traced blocks.

    A *request* is one instruction of one warp: up to 32 lanes access memory together.

    Attributes
    ----------
    line, text : int, str
        The source's line.
    space : "global" or "shared"
    op : "load", "store" or "atomic"
    array : str
        The argument's name, or the shared variable's.
    requests : int
    lanes : float
        Mean number of lanes that took part, 1 to 32: fewer than 32 where a warp has diverged or is not full.
    bytes : int
        Asked for by lanes, repeats counted.
    sectors, ideal_sectors : int
        Global: pieces of 32 bytes that are moved, and the fewest that would hold the distinct bytes.
    wavefronts, bank_conflicts : int
        Shared: passes over the 32 banks, and those of them that conflicts have added.
    file : str
        Of an included file; "" for the kernel's own source.
    """

    line: int
    text: str
    space: str
    op: str
    array: str
    requests: int
    lanes: float
    bytes: int
    sectors: int
    ideal_sectors: int
    wavefronts: int
    bank_conflicts: int
    file: str = ""

    @property
    def sectors_per_request(self) -> float:
        """Mean number of sectors of a request: 4 for 32 neighbouring floats, 32 for the worst case."""
        return self.sectors / self.requests if self.requests else 0.0


_COLUMNS = (
    "line",
    "op",
    "array",
    "requests",
    "lanes",
    "bytes",
    "sectors",
    "per request",
    "ideal",
    "wavefronts",
    "conflicts",
)


@dataclass
class Trace:
    """The memory accesses of one launch, per source line.

    The numbers are a model: they follow from addresses alone. Global memory moves in sectors of 32 bytes; shared memory
    has 32 banks of 4 bytes, lanes that ask for one word share it, 8-byte accesses go by half warps and 16-byte ones by
    quarter warps (by twice as many lanes where they ask in equal pairs), atomics on one word take turns. There are **no
    caches and no time** in it: a sector counts each time that a request asks for it, as Nsight Compute's counters of L1
    requests do, which an H100 was seen to agree with (data/results/counters.json). A GPU's compiler may also load less
    than the source says (a value kept in a register), or more at a time; here each access of the source is one.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    rows: list[Row]
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False)
    source: str = field(default="", repr=False)

    @property
    def limits(self) -> str:
        """What these numbers leave out, in one sentence for a caption."""
        return "A model of sectors and banks from addresses: no caches, no timing."

    def select(
        self, line: int | None = None, space: str | None = None, op: str | None = None, array: str | None = None
    ):
        """The rows that have these values; None stands for any."""
        wanted = [(n, v) for n, v in (("line", line), ("space", space), ("op", op), ("array", array)) if v is not None]
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in wanted)]

    def total(self, space: str, op: str | None = None) -> dict[str, int]:
        """Sums over the rows of one space ("global" or "shared") and, if given, one op."""
        _one_of("space", space, ("global", "shared"))
        if op is not None:
            _one_of("op", op, OPS)
        names = ("requests", "bytes", "sectors", "ideal_sectors", "wavefronts", "bank_conflicts")
        return {name: sum(getattr(row, name) for row in self.select(space=space, op=op)) for name in names}

    def requests(self, line: int, op: str | None = None, first: int = 1, file: str = "") -> list[dict[str, Any]]:
        """The first requests of a line, for a drawing.

        Parameters
        ----------
        line : int
            In the kernel's source.
        op : "load", "store", "atomic" or None for all
        first : int
            How many of each array and op, at most 8.
        file : str
            An included file's name; "" is the kernel's own source.

        Returns
        -------
        list of dict
            ``{"file", "line", "op", "space", "array", "block", "warp", "size", "addresses"}``; block is linear, size is
            the bytes that each lane accesses, and addresses has for each of 32 lanes its byte offset inside the array,
            or None.
        """
        out: list[dict[str, Any]] = []
        counts: dict[tuple[str, str], int] = {}
        for sample in self.samples:
            if (sample["file"], sample["line"]) != (file, line) or op not in (None, sample["op"]):
                continue
            key = (sample["op"], sample["array"])
            counts[key] = counts.get(key, 0) + 1
            if counts[key] <= first:
                out.append(dict(sample))
        return out

    # ---- showing

    def _cells(self) -> Iterable[tuple[str, ...]]:
        for r in self.rows:
            is_global = r.space == "global"
            yield (
                f"{r.file}:{r.line}" if r.file else str(r.line),
                r.op,
                r.array,
                f"{r.requests}",
                f"{r.lanes:.3g}",
                f"{r.bytes}",
                f"{r.sectors}" if is_global else "",
                f"{r.sectors_per_request:.3g}" if is_global else "",
                f"{r.ideal_sectors}" if is_global else "",
                "" if is_global else f"{r.wavefronts}",
                "" if is_global else f"{r.bank_conflicts}",
            )

    def table(self) -> str:
        """Plain text, at most 100 columns wide: a line of source, then a line for each of its arrays."""
        rows = list(self._cells())
        widths = [max(len(c), *(len(row[i]) for row in rows)) if rows else len(c) for i, c in enumerate(_COLUMNS)]
        left = {0, 1, 2}

        def join(cells: Sequence[str]) -> str:
            parts = [
                c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            ]
            return " ".join(parts).rstrip()[:100]

        out = [f"{self.kernel}, grid {self.grid}, block {self.block}", join(_COLUMNS)]
        shown = None
        for row, cells in zip(self.rows, rows, strict=True):
            if (row.file, row.line) != shown and row.text:
                out.append(f"  {row.text}"[:100])
            shown = (row.file, row.line)
            out.append(join(cells))
        out.append(self.limits)
        return "\n".join(out)

    __str__ = table

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{c}</th>" for c in (*_COLUMNS, "source"))
        body = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
            + f"<td><code>{html.escape(row.text)}</code></td></tr>"
            for row, cells in zip(self.rows, self._cells(), strict=True)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{self.limits}</p>"

    def _repr_markdown_(self) -> str:
        out = ["| " + " | ".join((*_COLUMNS, "source")) + " |", "|" + "---|" * (len(_COLUMNS) + 1)]
        for row, cells in zip(self.rows, self._cells(), strict=True):
            text = row.text.replace("|", "\\|").replace("`", "'")
            out.append("| " + " | ".join((*cells, f"`{text}`")) + " |")
        return "\n".join([*out, "", self.limits])

    # ---- files

    def to_json(self) -> str:
        """Everything, as JSON text that `from_json` reads."""
        return json.dumps(self._as_dict())

    def _as_dict(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel, "grid": list(self.grid), "block": list(self.block), "source": self.source,
            "rows": [asdict(row) for row in self.rows],
            # One string a request: a list would take a line a lane in an indented record.
            "samples": [
                {**s, "addresses": " ".join("-" if a is None else str(a) for a in s["addresses"])} for s in self.samples
            ],
        }  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """Read what `to_json` wrote; ValueError if it is something else."""
        try:
            return cls._from_dict(json.loads(text))
        except (KeyError, TypeError, AttributeError, ValueError) as e:
            raise ValueError(f"a Trace must be JSON text as to_json() writes it: {e!r}") from None

    @classmethod
    def _from_dict(cls, d: Mapping[str, Any]) -> Trace:
        names = {f.name for f in fields(Row)}
        rows = [Row(**{k: v for k, v in row.items() if k in names}) for row in d["rows"]]
        x, y, z = d["grid"]
        u, v, w = d["block"]
        samples = [
            {**s, "addresses": [None if a == "-" else int(a) for a in s["addresses"].split()]} for s in d["samples"]
        ]
        return cls(d["kernel"], (x, y, z), (u, v, w), rows, samples, d["source"])


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def trace(
    kernel: RawKernel,
    grid: tuple,
    block: tuple,
    args: Sequence[Any],
    *,
    shared_mem: int = 0,
    blocks: Sequence[int] | None = None,
    recorded: str | None = None,
) -> Trace:
    """Run a kernel on copies of its arguments and count what its lines ask of memory. `Trace` says what the model is.

    Parameters
    ----------
    kernel : RawKernel
        The emulator's.
    grid, block, args, shared_mem
        As in the kernel's call. The arrays are left alone.
    blocks : sequence of int, or None
        Linear numbers of the blocks to run; None runs all. One block often says all there is to say.
    recorded : str or None
        Where the emulator is not available: the name of a trace in data/results/traces.json to return. Where it is, and
        the environment variable HASHEDMM_RECORD_TRACES names a file, the trace is added to that file under this name.

    Raises
    ------
    TypeError, ValueError, KernelError
        As the kernel's call does.
    RuntimeError
        If the emulator is not available and nothing is recorded.
    """
    if not toolchain.available():
        return _recorded(recorded)
    _check_kernel(kernel)
    with native.LOCK:
        run = Run(kernel, grid, block, args, shared_mem, mode=native.TRACE, blocks=_block_list(grid, blocks))
        with run:
            run.go()
            sites = run.library.table("hm_sites", native.SITE)
            samples = run.library.table("hm_samples", native.SAMPLE)
            run.library.handle.hm_forget()
            found = _collect(run, sites, samples)
    if recorded and (path := os.environ.get(RECORD)):
        others = _read(path) if os.path.exists(path) else {}
        record_traces(path, {**others, recorded: found}, "make notebooks")
    return found


def _check_kernel(kernel: Any) -> None:
    if not isinstance(kernel, RawKernel):
        raise TypeError(
            f"kernel must be a hashedmm.emulator.RawKernel, got {type(kernel).__module__}.{type(kernel).__name__}: "
            "make one "
            "from the same source"
        )


def _block_list(grid: Any, blocks: Sequence[int] | None) -> np.ndarray | None:
    if blocks is None:
        return None
    count = int(np.prod([operator.index(g) for g in grid], dtype=object))
    chosen = [operator.index(b) for b in blocks]
    for b in chosen:
        if not 0 <= b < count:
            raise ValueError(f"blocks must be linear block numbers from 0 to {count - 1}, got {b}")
    return np.array(chosen, np.uint64)


def array_of(run: Run, region: int, offset: int) -> tuple[str, int]:
    """(name, offset inside it) of a place in a region: an argument, or a shared variable."""
    if region >= 0:
        return run.memory.buffers[region].name, offset
    if region == native.DYNAMIC_SHARED:
        return (run.kernel.dynamic_names or ["dynamic shared memory"])[0], offset
    library = run.library
    name, inside, _ = library.lines.shared_variable(library.static_address - library.base + offset)
    return (name, inside) if name else ("shared memory", offset)


def _collect(run: Run, sites: np.ndarray, samples: np.ndarray) -> Trace:
    kernel = run.kernel
    main = f"{kernel.name}.cu"
    first_offset: dict[int, int] = {}
    for s in samples:
        lane = (int(s["mask"]) & -int(s["mask"])).bit_length() - 1
        first_offset.setdefault(int(s["site"]), int(s["offset"][lane]))
    keys: list[tuple] = []
    sums: dict[tuple, dict[str, int]] = {}
    starts: list[int] = []  # of each site's variable
    for i, site in enumerate(sites):
        file, line = run.library.line_of(int(site["pc"]))
        region, offset = int(site["region"]), first_offset.get(i, 0)
        name, inside = array_of(run, region, offset)
        key = ("" if file == main else file, line, "global" if region >= 0 else "shared", OPS[site["op"]], name)
        keys.append(key)
        starts.append(offset - inside)
        total = sums.setdefault(key, dict.fromkeys(SUMMED, 0))
        for column in SUMMED:
            total[column] += int(site[column])
    rows = []
    for (file, line, space, op, name), t in sorted(sums.items(), key=lambda item: item[0]):
        if not t["requests"]:
            continue
        conflicts = t["wavefronts"] - t["ideal_wavefronts"]
        rows.append(
            Row(line, run.text(line, file), space, op, name, t["requests"], t["lanes"] / t["requests"],
                t["bytes"], t["sectors"], t["ideal_sectors"], t["wavefronts"], conflicts, file)
        )  # fmt: skip
    drawn = []
    for s in samples:
        i = int(s["site"])
        file, line, space, op, name = keys[i]
        mask = int(s["mask"])
        addresses = [int(a) - starts[i] if mask >> lane & 1 else None for lane, a in enumerate(s["offset"])]
        drawn.append(
            {"file": file, "line": line, "op": op, "space": space, "array": name,
             "block": int(s["block"]), "warp": int(s["warp"]), "size": int(sites[i]["size"]), "addresses": addresses}
        )  # fmt: skip
    return Trace(kernel.name, run.grid, run.block, rows, drawn, kernel.code)


SUMMED = ("requests", "lanes", "bytes", "sectors", "ideal_sectors", "wavefronts", "ideal_wavefronts")


# --------------------------------------------------------------------------------------------------------------------
# Traces in data/results, for machines without a compiler

RECORD = "HASHEDMM_RECORD_TRACES"


def record_traces(path: str | os.PathLike, traces: Mapping[str, Trace], command: str = "record_traces") -> None:
    """Write traces into one "counters" record; `trace` looks for its ``recorded`` name in data/results/traces.json."""
    for name, value in traces.items():
        if not isinstance(value, Trace):
            raise TypeError(f"traces must be a mapping from names to Trace, got {value!r} for {name!r}")
    rows = [{"name": name, "trace": _lighter(value)._as_dict()} for name, value in traces.items()]
    records.write(path, records.new_record("counters", rows, command))


def _lighter(trace: Trace) -> Trace:
    """The trace with one sample request of every line, op and array: what drawings take."""
    first = {(s.get("file", ""), s["line"], s["op"], s["array"]): s for s in reversed(trace.samples)}
    return replace(trace, samples=list(reversed(first.values())))


def _read(path: str | os.PathLike) -> dict[str, Trace]:
    return {row["name"]: Trace._from_dict(row["trace"]) for row in records.read(path)["rows"]}


def _recorded(name: str | None) -> Trace:
    try:
        if name is None:
            raise FileNotFoundError
        traces = _read("traces")
    except FileNotFoundError:
        raise RuntimeError(toolchain.why_not()) from None
    if name not in traces:
        have = ", ".join(traces) or "none"
        raise RuntimeError(f"{toolchain.why_not()}. data/results/traces.json has no trace {name!r}; it has: {have}")
    return traces[name]
