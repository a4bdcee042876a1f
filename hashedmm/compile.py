"""Compile every kernel for any NVIDIA GPU, on a machine that has none: registers, shared memory and spills of each.

Imports hashing, kernels, nvrtc, build and records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from hashedmm import records
from hashedmm.build import options
from hashedmm.hashing import HashSpec
from hashedmm.kernels import BUILT, C_TYPES, STEP, CudaKernel, structure
from hashedmm.nvrtc import compiler

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
_LAYER = (1024, 2048)  # of the specs below: no size is a special case
# One spec for each way in which a structure changes the code: what divides, what is hashed, what is constant.
SPECS: dict[str, HashSpec] = {
    "elementwise": HashSpec.elementwise(_LAYER, 1 / 8),
    "elementwise, xxh32": HashSpec.elementwise(_LAYER, 1 / 8, hash="xxh32"),
    "elementwise, multiply_shift": HashSpec.elementwise(_LAYER, 1 / 8, hash="multiply_shift"),
    "panels": HashSpec.panels(_LAYER, 1 / 8),
    "strips": HashSpec.strips(_LAYER, 1 / 8),
    "strips of 80, stride 20": HashSpec.strips((400, 2048), 1 / 8, height=80, stride=20),
    "runs": HashSpec.runs(_LAYER, 1 / 8),
    "tiles": HashSpec.tiles(_LAYER, 1 / 8),
    "codebook": HashSpec.codebook(_LAYER, 1 / 8),
}


class Variant(NamedTuple):
    """One build of a kernel: what it is called, and its -D options."""

    name: str
    options: tuple[str, ...]


def variants(kernel: CudaKernel) -> Iterator[Variant]:
    """The builds of a kernel that are worth looking at: every structure in float32, two of them in float16, and the
    narrow tiles for few columns on one structure. Kernels of a training step have one."""
    if kernel.name in STEP:
        yield Variant("float32", options(kernel.name, kernel.parameters))
        return

    def variant(name: str, dtype: str, spec: HashSpec, values: Mapping[str, int]) -> Variant:
        return Variant(name, options(kernel.name, {**values, **structure(spec), "WEIGHT": C_TYPES[dtype]}))

    for dtype in kernel.dtypes:
        for label, spec in SPECS.items():
            if dtype == "float16" and label not in ("elementwise", "strips"):
                continue
            if not kernel.rule(spec):
                continue
            yield variant(f"{dtype}, {label}", dtype, spec, kernel.parameters)
        for most in kernel.narrow:
            yield variant(f"{dtype}, strips, n <= {most}", dtype, SPECS["strips"], kernel.values(most))


# --------------------------------------------------------------------------------------------------------------------
# The table

Row = dict[str, Any]


def usage(log: str) -> dict[str, int]:
    """What ptxas says of the one kernel in a log: registers, static shared bytes, stack and spill bytes."""

    def number(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, log))

    return {
        "registers": number(r"Used (\d+) registers"),
        "shared_bytes": number(r"(\d+) bytes smem"),
        "stack_bytes": number(r"(\d+) bytes stack frame"),
        "spill_bytes": number(r"(\d+) bytes spill (?:stores|loads)"),
    }


def compile_all(architectures: Iterable[int] = ARCHITECTURES, kernels: Iterable[str] = tuple(BUILT)) -> Iterator[Row]:
    """Compile every variant of ``kernels`` for every architecture; a row each, as it is done.

    Raises
    ------
    FileNotFoundError
        If the wheels are missing.
    CompileError
        If a kernel does not compile.
    ValueError
        If an architecture is unknown to this NVRTC.
    """
    nvrtc = compiler()
    for architecture in architectures:
        for name in kernels:
            if architecture < int(str(BUILT[name].least_arch).removeprefix("sm_")):
                continue
            for variant in variants(BUILT[name]):
                _, log = nvrtc.cubin(BUILT[name].source, name, architecture, variant.options)
                yield {"kernel": name, "variant": variant.name, "arch": f"sm_{architecture}", **usage(log)}


def new_spills(rows: Iterable[Row], recorded: Mapping[str, Any] | None) -> list[str]:
    """Sentences about rows that spill more than the record's row of the same kernel, variant and architecture does."""
    known = {_key(row): row["spill_bytes"] for row in recorded["rows"]} if recorded else {}
    return [
        f"{row['kernel']} ({row['variant']}) for {row['arch']} spills {row['spill_bytes']} bytes, "
        f"{known.get(_key(row), 0)} before"
        for row in rows
        if row["spill_bytes"] > known.get(_key(row), 0)
    ]


def recorded() -> dict[str, Any] | None:
    """The record data/results/compile.json, or None where there is none."""
    try:
        return records.read("compile")
    except FileNotFoundError:
        return None


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["kernel"], row["variant"], row["arch"]


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    heading = ("kernel", "variant", "arch", "registers", "shared", "stack", "spill")
    keys = ("kernel", "variant", "arch", "registers", "shared_bytes", "stack_bytes", "spill_bytes")
    cells = [heading, *(tuple(str(row[key]) for key in keys) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        text = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        return "  ".join([*text, *numbers])

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *map(line, cells[1:])])
