"""Records as tables: plain text for a terminal, Markdown for the README, where the tables stand between two markers.

    <!-- table: NAME KEY=VALUE ... -->    the rows of data/results/NAME.json that have these values,
    <!-- end -->                           written here and never by hand

Imports records and experiments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hashedmm.experiments import compression_text

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]  # the heading, and the text of a row
_BLOCK = re.compile(r"(<!-- table: (\S+)((?: \w+=\S+)*) -->)\n(.*?)(<!-- end -->)", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:table\b.*?|end) -->")


# --------------------------------------------------------------------------------------------------------------------
# What the columns are


def _bytes(n: float) -> str:
    units = ["bytes", "KiB", "MiB", "GiB"]
    while n >= 1024 and len(units) > 1:
        n /= 1024
        del units[0]
    return f"{n:.0f} {units[0]}" if n >= 100 or units[0] == "bytes" else f"{n:.1f} {units[0]}"


def _milliseconds(ms: float) -> str:
    return f"{ms:.3g}" if ms < 100 else f"{ms:.0f}"


def _baseline(row: Row) -> tuple[str, float]:
    """The first baseline of a timing row: (name, ms)."""
    return next(iter(row["baselines"].items()))


def _error(row: Row) -> str:
    if row["test_error_std"] is None:
        return f"{row['test_error_mean']:.2f}"
    return f"{row['test_error_mean']:.2f} ± {row['test_error_std']:.2f}"


def _structure(row: Row) -> str:
    spec = row["spec"]
    height = [f"height {spec['block'][0]}"] if spec and spec["block"][0] > 1 and spec["block"][1] == 1 else []
    stride = [f"stride {spec['stride']}"] if height and spec["stride"] else []
    return ", ".join([str(row["structure"]).replace("_", " "), *height, *stride])


def _method(row: Row) -> str:
    options = [f"{name} {value}" for name, value in row["options"]]
    return ", ".join([row["method"].removeprefix("hashed:").replace("_", " "), *options])


def _training_columns(rows: Sequence[Row]) -> list[Column]:
    columns: list[Column] = [
        ("method", _method),
        ("compression", lambda r: compression_text(r["compression"])),
        ("network", lambda r: "-".join(map(str, r["sizes"]))),
        ("stored values", lambda r: f"{r['stored_values']:,}"),
        ("bytes", lambda r: f"{r['stored_bytes']:,}"),
        ("test error, %", _error),
        ("seconds an epoch", lambda r: f"{r['seconds_per_epoch']:.2f}"),
    ]
    if any(len(r["seeds"]) > 1 for r in rows):
        columns.append(("seeds", lambda r: str(len(r["seeds"]))))
    return columns


def _timing_columns(rows: Sequence[Row]) -> list[Column]:
    on_gpu = not any(r["kernel"].startswith(("cpu_", "numpy")) for r in rows)
    kernel: list[Column] = [("kernel", lambda r: r["kernel"])] if on_gpu else []
    return [
        ("operation", lambda r: r["operation"]),
        ("outputs x inputs", lambda r: f"{r['shape'][0]} x {r['shape'][1]}"),
        ("n", lambda r: str(r["shape"][2])),
        ("structure", _structure),
        ("compression", lambda r: compression_text(r["compression"])),
        *kernel,
        ("ms", lambda r: _milliseconds(r["ms"])),
        (f"{_baseline(rows[0])[0].replace('_', ' ')}, ms", lambda r: _milliseconds(_baseline(r)[1])),
        ("times as fast", lambda r: f"{_baseline(r)[1] / r['ms']:.2f}"),
    ]


def _memory_columns(rows: Sequence[Row]) -> list[Column]:
    return [
        ("operation", lambda r: r["operation"]),
        ("outputs x inputs", lambda r: f"{r['shape'][0]} x {r['shape'][1]}"),
        ("n", lambda r: str(r["shape"][2])),
        ("structure", _structure),
        ("compression", lambda r: compression_text(r["compression"])),
        ("stored weights", lambda r: _bytes(r["stored_bytes"])),
        ("peak memory of the product", lambda r: _bytes(r["peak_bytes"])),
        ("result", lambda r: _bytes(r["result_bytes"])),
        ("dense W", lambda r: _bytes(r["dense_bytes"])),
    ]


_COLUMNS: dict[str, Callable[[Sequence[Row]], list[Column]]] = {
    "training": _training_columns,
    "timing": _timing_columns,
    "memory": _memory_columns,
}
_LEFT = {
    "method",
    "network",
    "operation",
    "structure",
    "outputs x inputs",
    "kernel",
}  # text; the other columns are numbers


def has_table(record: Mapping[str, Any]) -> bool:
    """Whether there are tables of records of this kind."""
    return record["kind"] in _COLUMNS


def _cells(record: Mapping[str, Any]) -> list[list[str]]:
    """Headings, then the rows."""
    kind, rows = record["kind"], record["rows"]
    if not has_table(record):
        raise ValueError(f"there are tables of records of kind {', '.join(_COLUMNS)}, not of {kind!r}")
    columns = _COLUMNS[kind](rows) if rows else []
    return [[heading for heading, _ in columns], *([text(row) for _, text in columns] for row in rows)]


# --------------------------------------------------------------------------------------------------------------------
# Tables


def text_table(record: Mapping[str, Any]) -> str:
    """A record's rows, aligned for a terminal; at most 100 columns wide for trainings."""
    cells = _cells(record)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = [heading in _LEFT for heading in cells[0]]
    lines = []
    for row in cells:
        aligned = [c.ljust(w) if on_left else c.rjust(w) for c, w, on_left in zip(row, widths, left, strict=True)]
        lines.append("  ".join(aligned).rstrip())
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def origin(record: Mapping[str, Any]) -> str:
    """Whose numbers these are: machine, versions, date and command, in one sentence."""
    device, software = record["device"], record["software"]
    cores = f", {device['cores']} cores" if "cores" in device else ""
    versions = ", ".join(
        f"{name} {software[name]}"
        for name in ("python", "numpy", "numba", "cupy-cuda13x", "cupy-cuda12x")
        if name in software
    )
    return f"{device['name']}{cores}; {versions}; {record['date']}; `{record['command']}`."


def markdown_table(record: Mapping[str, Any]) -> str:
    """A record's rows as a Markdown table, then a line that says where they come from."""
    cells = _cells(record)
    rule = ["---" if heading in _LEFT else "---:" for heading in cells[0]]
    lines = ["| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])]
    if record["kind"] == "training" and record["rows"]:
        rows = record["rows"]
        epochs = "/".join(sorted({str(r["epochs"]) for r in rows}, key=int))
        batch = "/".join(sorted({str(r["batch"]) for r in rows}, key=int))
        seeds = "one seed each. " if all(len(r["seeds"]) == 1 for r in rows) else ""
        lines += ["", f"{epochs} epochs, batch {batch}, {seeds}{origin(record)}"]
    else:
        lines += ["", origin(record)]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------
# Tables inside a document


def render(text: str, available: Mapping[str, Mapping[str, Any]]) -> str:
    """``text`` with every table between markers made anew from the record of its name.

    Raises
    ------
    ValueError
        If a marker has no partner, or names a record that is not ``available`` or has no such rows.
    """
    expected = [part for block in _BLOCK.finditer(text) for part in (block[1], block[5])]
    if expected != _MARKER.findall(text):
        raise ValueError(
            "every table must stand between a line <!-- table: NAME --> and a line <!-- end -->, and no marker alone"
        )

    def block(match: re.Match[str]) -> str:
        start, name, wanted, _, end = match.groups()
        if name not in available:
            there = ", ".join(available) or "none"
            raise ValueError(f"the table {name!r} has no record; records there are: {there}")
        values = dict(pair.split("=", 1) for pair in wanted.split())
        rows = [row for row in available[name]["rows"] if all(str(row.get(k)) == v for k, v in values.items())]
        if not rows:
            raise ValueError(f"the table {start} has no rows: nothing in the record {name!r} is so")
        return f"{start}\n\n{markdown_table({**available[name], 'rows': rows})}\n\n{end}"

    return _BLOCK.sub(block, text)
