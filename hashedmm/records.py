"""Records of what was measured: the JSON files of data/results, written whole or not at all, and checked when read.

Every figure that the README or a notebook shows comes from such a file. Imports safefile.

A record is ``{"schema": 1, "kind", "device", "software", "commit", "date", "command", "rows"}``. Rows of kind "timing"
say operation, kernel, structure, spec, compression, shape [d_out, d_in, n], dtype, ms, ms_p20, ms_p80, error and
baselines; of kind "training" dataset, layers, method, compression, stored_bytes, seeds, test_error_mean,
test_error_std, epochs and seconds. The other kinds are "memory", "counters", "roof" and "scaling".
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from hashedmm import safefile

KINDS = ("timing", "training", "counters", "roof", "memory", "scaling")
_KEYS = {"schema", "kind", "device", "software", "commit", "date", "command", "rows"}
_ROW_KEYS = {
    "timing": {
        "operation", "kernel", "structure", "spec", "compression", "shape", "dtype", "ms", "ms_p20", "ms_p80", "error",
        "baselines",
    },
    "training": {
        "dataset", "layers", "method", "compression", "stored_bytes", "seeds", "test_error_mean", "test_error_std",
        "epochs", "seconds",
    },
}  # fmt: skip


def results_dir() -> Path:
    """The checkout's data/results. An installed package has none: FileNotFoundError then."""
    folder = Path(__file__).resolve().parent.parent / "data" / "results"
    if not folder.is_dir():
        raise FileNotFoundError(
            "the records are in data/results of a checkout, and this installed package has none; clone the repository, "
            "or name the record's file"
        )
    return folder


def device_info() -> dict[str, Any]:
    """The processor that computes: name, cores this process may use, memory in bytes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info: dict[str, Any] = {"kind": "cpu", "name": _processor_name(), "cores": cores}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        info["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return info


def gpu_info() -> dict[str, Any]:
    """The current GPU: name, multiprocessors, memory, L2 cache and driver."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return {
        "kind": "gpu",
        "name": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "cuda_driver": cupy.cuda.runtime.driverGetVersion(),
    }


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def software_info() -> dict[str, str]:
    """Versions of what computes."""
    from hashedmm import __version__  # when called: the package is complete by then

    names = ("numpy", "numba", "cupy-cuda12x", "cupy-cuda13x")
    versions = {"hashedmm": __version__, "python": platform.python_version(), "system": platform.system()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return versions


def commit() -> str | None:
    """The checkout's commit ("-dirty" if the package's files differ from it), or None outside a git checkout."""
    here = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        run = ["git", "-C", str(here), *arguments]
        return subprocess.run(run, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not (here / ".git").exists():
            return None
        changed = git("status", "--porcelain", "--", "hashedmm", "pyproject.toml")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def new_record(kind: str, rows: list[dict[str, Any]], command: str, device: dict[str, Any] | None = None) -> dict:
    """A record of ``rows`` measured now, on this machine, by ``command`` (what a reader types to repeat it)."""
    record = {
        "schema": 1,
        "kind": kind,
        "device": device or device_info(),
        "software": software_info(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": command,
        "rows": rows,
    }
    check(record)
    return record


def check(record: Any, name: str = "the record") -> None:
    """ValueError if ``record`` is not of schema 1, or a row lacks a field of its kind, or a number is not finite."""
    if not isinstance(record, dict) or set(record) != _KEYS:
        got = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{name} must have exactly the keys {sorted(_KEYS)}, got {got}")
    if record["schema"] != 1:
        raise ValueError(f"{name}: this program reads schema 1, got {record['schema']!r}")
    if record["kind"] not in KINDS:
        raise ValueError(f"{name}: kind must be one of {', '.join(KINDS)}, got {record['kind']!r}")
    if not isinstance(record["rows"], list):
        raise ValueError(f"{name}: rows must be a list, got {type(record['rows']).__name__}")
    for number, row in enumerate(record["rows"]):
        missing = _ROW_KEYS.get(record["kind"], set()) - set(row)
        if missing:
            raise ValueError(f"{name}: row {number} lacks {sorted(missing)}")
    for value in _numbers(record["rows"]):
        if not math.isfinite(value):
            raise ValueError(f"{name}: a number in its rows is not finite ({value})")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _numbers(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _numbers(v)


def write(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write a record, checked, atomically: another program sees the old file or the new one, never a part."""
    path = Path(path)
    check(record, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    safefile.write_bytes(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A record from a file; a bare name ("cpu_products") means data/results/NAME.json.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no record of schema 1.
    """
    path = Path(path)
    if path.suffix != ".json":
        path = results_dir() / f"{path}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} is no record: {e}") from None
    check(record, str(path))
    return record


def load_all(kind: str | None = None) -> dict[str, dict[str, Any]]:
    """All records of data/results by name, those of one kind if asked."""
    found = {path.stem: read(path) for path in sorted(results_dir().glob("*.json"))}
    return {name: record for name, record in found.items() if kind in (None, record["kind"])}
