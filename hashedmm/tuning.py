"""What is known of the kernels' speed: measured times, and what they say of problems that were never measured.

The knowledge is a table: a problem (spec, n, dtype), and for each operation the milliseconds that every kernel took.
One made from the records of data/results ships with the package; `hashedmm tune` adds one for a machine's own GPU, kept
in the user's cache. A problem that is in the table gets the times measured. For any other a kernel's time is

    its work there  x  how much longer than its work it took at the nearest problems measured

where the work (`work`) is the least time that an imagined GPU of round numbers would need, and near means a few
doublings of sizes apart. Nothing here hashes, and nothing makes W. Imports hashing, kernels, records, safefile,
emulator, build and sketch; hashedmm.matmul chooses by it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hashedmm import build, records, safefile, sketch
from hashedmm.emulator.toolchain import cache_dir
from hashedmm.hashing import HashSpec
from hashedmm.kernels import CUDA, EMULATED_SHARED

SCHEMA = 1
SHIPPED = Path(__file__).resolve().parent / "tuning.json"
OPERATIONS = ("matmul", "grad_x", "grad_w")
NEIGHBOURS = 4  # measured problems that a prediction rests on
OTHER_DTYPE = 4.0  # doublings that another dtype counts for
NEAR = 1.0  # doublings up to which a user's own measurements replace the shipped ones
ALLOWED = 1.10  # how much longer than the best kernel the chosen one may take

# --------------------------------------------------------------------------------------------------------------------
# The work of a kernel

# The imagined GPU, per millisecond: about an H100. Only ratios of work count, so that no number here is a claim.
LAUNCH = 4e-3  # a kernel's launch, in ms
HASHES = 1e9
MULTIPLY_ADDS = 25e9
ADDS = 10e9  # of a sketch's sums
TENSOR = {"float16": 300e9, "float32": 25e9}  # multiply-adds
BYTES = 2.5e9


def work(kernel: str, operation: str, spec: HashSpec, n: int, dtype: str) -> float:
    """Milliseconds that a kernel's hashes, additions, multiplications, bytes and launches would take at best."""
    size, weights = np.dtype(dtype).itemsize, spec.rows * spec.cols
    moved = float(size * n * (spec.rows + spec.cols) + (4 if operation == "grad_w" else size) * spec.n_buckets)
    if kernel == "sketch":
        g = sketch.geometry(spec)
        moved += 2 * size * n * g.strips * g.all_bins + 2 * g.strips * spec.cols * -(-n // 64)
        sums = g.strips * spec.cols * n / ADDS
        return 2 * LAUNCH + sums + spec.rows * g.all_bins * n / TENSOR[dtype] + moved / BYTES
    shared_by = min(spec.block[0], spec.rows) if kernel == "strip" or kernel.startswith("tensor") else 1
    hashes = weights / shared_by * _passes(kernel, operation, n) / HASHES
    multiply_adds = weights * n / (TENSOR[dtype] if kernel.startswith("tensor") else MULTIPLY_ADDS)
    return LAUNCH + hashes + multiply_adds + moved / BYTES


def _passes(kernel: str, operation: str, n: int) -> int:
    """How often a kernel hashes every weight: once for so many columns as it takes at a time."""
    if operation == "grad_w":
        return 1
    values = CUDA[kernel].values(n) if kernel in CUDA else {}
    return -(-n // values.get("TILE_COLS", values.get("TILE", 1)))


# --------------------------------------------------------------------------------------------------------------------
# Tables


class Problem(NamedTuple):
    """What was measured at once: ``ms`` is {operation: {kernel: milliseconds}}."""

    spec: HashSpec
    n: int
    dtype: str
    ms: Mapping[str, Mapping[str, float]]


def _supports(kernel: str, p: Problem) -> bool:
    """Whether a kernel could have been measured there."""
    if kernel == "sketch":
        return sketch.why_not(p.spec, p.dtype, EMULATED_SHARED) is None
    return kernel in CUDA and CUDA[kernel].supports(p.spec, p.dtype, EMULATED_SHARED)


class Estimate(NamedTuple):
    """What a kernel is expected to take, and how far off the nearest measurement is, in doublings of sizes."""

    ms: float
    away: float


def _features(spec: HashSpec, n: int) -> list[float]:
    """Where a problem lies: logarithms, so that 1 is a doubling."""
    panel = spec.panel or spec.shape
    sizes = (
        spec.rows, spec.cols, n, min(spec.block[0], spec.rows), min(spec.block[1], spec.cols),
        min(spec.unit, spec.rows * spec.cols), min(panel[0], spec.rows), min(panel[1], spec.cols),
    )  # fmt: skip
    return [math.log2(size) for size in sizes] + [math.log2(spec.compression)]


class Table:
    """Measured problems of one GPU.

    Parameters
    ----------
    gpu : the GPU's name
    date : of the measurements, YYYY-MM-DD
    problems : of Problem
    """

    def __init__(self, gpu: str, date: str, problems: Iterable[Problem]) -> None:
        self.gpu, self.date, self.problems = gpu, date, tuple(problems)
        self._at = np.array([_features(p.spec, p.n) for p in self.problems])
        self._dtype = np.array([p.dtype for p in self.problems])
        self._numbers: dict[tuple[str, str], np.ndarray] = {}

    def estimate(
        self, operation: str, kernel: str, spec: HashSpec, n: int, dtype: str, *, without: Sequence[int] = ()
    ) -> Estimate | None:
        """The time of a kernel; None if it was never measured, or not near. ``without`` these problems, by number.

        A benchmark does not time a kernel where it is hopeless. So of the nearest problems, those alone count where the
        kernel was timed; and if it was timed at none of them though it could, there is nothing to expect of it.
        """
        able = self._able(operation, kernel)
        able = able[~np.isin(able, without)]
        if not len(able):
            return None
        apart = np.linalg.norm(self._at[able] - np.array(_features(spec, n)), axis=1)
        apart = np.hypot(apart, OTHER_DTYPE * (self._dtype[able] != dtype))
        nearest = np.argsort(apart, kind="stable")[:NEIGHBOURS]
        if apart[nearest[0]] == 0:
            ms = self.problems[able[nearest[0]]].ms[operation].get(kernel)
            return None if ms is None else Estimate(ms, 0.0)
        longer, weights, away = 0.0, 0.0, math.inf
        for k in nearest:
            p, weight = self.problems[able[k]], float(apart[k]) ** -2
            if (ms := p.ms[operation].get(kernel)) is not None:
                longer += weight * math.log(ms / work(kernel, operation, p.spec, p.n, p.dtype))
                weights += weight
                away = min(away, float(apart[k]))
        return Estimate(work(kernel, operation, spec, n, dtype) * math.exp(longer / weights), away) if weights else None

    def knows(self, operation: str, kernel: str) -> bool:
        """Whether a kernel was measured at all."""
        return any(kernel in p.ms.get(operation, {}) for p in self.problems)

    def _able(self, operation: str, kernel: str) -> np.ndarray:
        """The numbers of the problems that a kernel can compute, if it was measured at all."""
        key = operation, kernel
        if key not in self._numbers:
            known = self.knows(operation, kernel)
            able = [i for i, p in enumerate(self.problems) if known and operation in p.ms and _supports(kernel, p)]
            self._numbers[key] = np.array(able, int)
        return self._numbers[key]

    def joined(self, newer: Table) -> Table:
        """This table, with the problems of a newer one in place of its own where they are the same."""
        kept = {(p.spec, p.n, p.dtype): p for p in self.problems} | {(p.spec, p.n, p.dtype): p for p in newer.problems}
        return Table(newer.gpu, newer.date, kept.values())

    def to_document(self) -> dict[str, Any]:
        """For JSON."""
        problems = [
            {"spec": json.loads(p.spec.to_json()), "n": p.n, "dtype": p.dtype, "ms": p.ms} for p in self.problems
        ]
        return {"gpu": self.gpu, "date": self.date, "problems": problems}


def table_of(record: Mapping[str, Any]) -> Table:
    """The table of a timing record (hashedmm.records) of CUDA kernels."""
    found: dict[tuple[HashSpec, int, str], dict[str, dict[str, float]]] = {}
    for row in record["rows"]:
        if row["operation"] in OPERATIONS and row["spec"] is not None and _is_cuda(row["kernel"]):
            spec = HashSpec.from_json(json.dumps(row["spec"]))
            ms = found.setdefault((spec, row["shape"][2], row["dtype"]), {}).setdefault(row["operation"], {})
            ms[row["kernel"]] = float(f"{row['ms']:.4g}")
    return Table(record["device"]["name"], record["date"], (Problem(*key, ms) for key, ms in found.items()))


def _is_cuda(kernel: str) -> bool:
    return kernel in CUDA or kernel == "sketch"


def write(path: Path | str, tables: Sequence[Table]) -> None:
    """Write tables to a file, all or nothing; a problem a line."""
    parts = []
    for table in tables:
        document = table.to_document()
        lines = ",\n".join("  " + json.dumps(p, allow_nan=False) for p in document.pop("problems"))
        parts.append(json.dumps(document)[:-1] + ', "problems": [\n' + lines + "\n ]}")
    text = f'{{"schema": {SCHEMA}, "tables": [\n ' + ",\n ".join(parts) + "\n]}\n"
    safefile.write_bytes(path, text.encode())


def read(path: Path | str) -> list[Table]:
    """The tables of a file. OSError if it cannot be read; ValueError, with the path, if it holds anything else."""
    data = Path(path).read_bytes()
    try:
        document = json.loads(data)
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r}, and this program reads {SCHEMA}")
        return [_table(table) for table in document["tables"]]
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise ValueError(f"{path} is no tuning table ({type(e).__name__}: {e})") from None


def _table(document: Mapping[str, Any]) -> Table:
    problems = []
    for p in document["problems"]:
        ms = {str(o): {str(k): float(t) for k, t in by.items()} for o, by in p["ms"].items()}
        if any(not 0 < t < math.inf for by in ms.values() for t in by.values()):
            raise ValueError("a time that is no positive number")
        if p["dtype"] not in TENSOR or isinstance(p["n"], bool) or not isinstance(p["n"], int) or p["n"] < 1:
            raise ValueError(f"dtype {p['dtype']!r}, n {p['n']!r}")
        problems.append(Problem(HashSpec.from_json(json.dumps(p["spec"])), p["n"], p["dtype"], ms))
    return Table(str(document["gpu"]), str(document["date"]), problems)


# --------------------------------------------------------------------------------------------------------------------
# Which table counts


@lru_cache(maxsize=1)
def shipped() -> tuple[Table, ...]:
    """The tables that come with the package; the first counts for a GPU that is in none of them."""
    return tuple(read(SHIPPED))


def cache_file(gpu: str) -> Path:
    """The file of a GPU and of this version of the package, as another version's kernels may be faster: in
    $HASHEDMM_CACHE, else in hashedmm of $XDG_CACHE_HOME or ~/.cache, beside what the emulator has built."""
    from hashedmm import __version__  # when called: the package is complete by then

    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-") or "GPU"
    digest = hashlib.sha256(gpu.encode()).hexdigest()[:6]  # names that differ in other characters alone
    return cache_dir() / f"tuning-{name}-{digest}-{__version__}.json"


@lru_cache(maxsize=8)
def own(gpu: str) -> Table | None:
    """The user's table of a GPU, if there is one. A file that cannot be used is warned of, and ignored."""
    path = cache_file(gpu)
    try:
        table = next((t for t in read(path) if t.gpu == gpu), None)
        if table is None:
            raise ValueError(f"{path} holds no table of {gpu}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        warnings.warn(
            f"the tuning table of this GPU is ignored: {e}. Delete the file, and run `hashedmm tune` again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return table


def keep(table: Table) -> Path:
    """Add a table to the user's, and forget what was chosen by the old one in this process. Returns the file."""
    path = cache_file(table.gpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a file that is of no use is replaced
        before = own(table.gpu)
    write(path, [before.joined(table) if before else table])
    forget()
    return path


def forget() -> None:
    """Read the tables again when they are needed next."""
    own.cache_clear()
    shipped.cache_clear()
    expected.cache_clear()


@lru_cache(maxsize=16)
def gpu_name(device: build.Device) -> str | None:
    """The name of a GPU; None for the emulator."""
    if device == "emulator":
        return None
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(device)["name"].decode())


class Expectation(NamedTuple):
    """Estimates by kernel (None: there is none), and the table that they come from: ``mine`` if it is the user's."""

    estimates: Mapping[str, Estimate | None]
    table: Table
    mine: bool


@lru_cache(maxsize=4096)
def expected(
    operation: str, kernels: tuple[str, ...], spec: HashSpec, n: int, dtype: str, gpu: str | None
) -> Expectation:
    """What kernels will take on a GPU: by the user's own measurements if all were measured near this problem, else by
    the shipped table of that GPU, else by the first one shipped."""
    mine = own(gpu) if gpu else None
    if mine:
        estimates = {k: mine.estimate(operation, k, spec, n, dtype) for k in kernels}
        if all(e is not None and e.away <= NEAR for e in estimates.values()):
            return Expectation(estimates, mine, True)
    table = next((t for t in shipped() if t.gpu == gpu), shipped()[0])
    return Expectation({k: table.estimate(operation, k, spec, n, dtype) for k in kernels}, table, False)


def fastest(estimates: Mapping[str, Estimate | None]) -> str | None:
    """The kernel that is expected to take least; None if there is no estimate."""
    measured = {kernel: e.ms for kernel, e in estimates.items() if e is not None}
    return min(measured, key=measured.__getitem__) if measured else None


# --------------------------------------------------------------------------------------------------------------------
# How good the choices are


class Loss(NamedTuple):
    """One choice beside what was measured: ``ratio`` is the chosen kernel's time over the best one's."""

    operation: str
    problem: Problem
    chosen: str
    best: str
    ratio: float


def losses(rows: Iterable[Mapping[str, Any]], table: Table, *, leave_out: bool = False) -> list[Loss]:
    """What ``table``'s choices cost, over the problems of a record's rows, the worst first.

    A choice is among the kernels measured there. With ``leave_out`` each problem is chosen for as if the table did not
    have it (any seed or hash): how good predictions are; the other check asks only whether the table is right.
    """
    measured = table_of({"rows": rows, "device": {"name": table.gpu}, "date": table.date})
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, p in enumerate(table.problems if leave_out else ()):
        places.setdefault(_key(p), []).append(i)
    out = []
    for p in measured.problems:
        without = places.get(_key(p), ())
        for operation, ms in p.ms.items():
            estimates = {k: table.estimate(operation, k, p.spec, p.n, p.dtype, without=without) for k in ms}
            if (chosen := fastest(estimates)) is not None:
                best = min(ms, key=ms.__getitem__)
                out.append(Loss(operation, p, chosen, best, ms[chosen] / ms[best]))
    return sorted(out, key=lambda loss: -loss.ratio)


def _key(p: Problem) -> tuple[Any, ...]:
    return (tuple(_features(p.spec, p.n)), p.dtype)


def too_slow(rows: Iterable[Mapping[str, Any]], table: Table) -> list[Loss]:
    """The problems of a record's rows for which the choice takes over 10 % longer than the best kernel."""
    return [loss for loss in losses(rows, table) if loss.ratio > ALLOWED]


def quality(record: Mapping[str, Any], tables: Sequence[Table] | None = None) -> str:
    """One line on what the choices cost over a record's problems, as they are and as predictions (`losses`)."""
    tables = tables or shipped()
    table = next((t for t in tables if t.gpu == record["device"]["name"]), tables[0])
    known, left_out = (losses(record["rows"], table, leave_out=leave_out) for leave_out in (False, True))
    if not known or not left_out:
        return "no problem to choose a kernel for"
    within = sum(loss.ratio <= ALLOWED for loss in left_out) / len(left_out)
    mean = math.exp(sum(math.log(loss.ratio) for loss in left_out) / len(left_out))
    return (
        f"{len(known)} choices, the worst takes {known[0].ratio:.2f} x the best kernel's time; predicted as if not "
        f"measured: {100 * within:.0f} % within {ALLOWED:.2f} x, mean {mean:.2f} x, worst {left_out[0].ratio:.2f} x"
    )


def ship(names: Sequence[str], path: Path | str | None = None) -> list[Table]:
    """Write the table that the package ships from records, by name or path, one a GPU; later ones add to earlier."""
    tables: dict[str, Table] = {}
    for name in names:
        table = table_of(records.read(name))
        tables[table.gpu] = tables[table.gpu].joined(table) if table.gpu in tables else table
    write(path or SHIPPED, list(tables.values()))
    forget()
    return list(tables.values())
