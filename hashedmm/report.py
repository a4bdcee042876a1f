"""Records as tables: plain text for a terminal, Markdown for the README, where the tables stand between two markers.

    <!-- table: NAME KEY=VALUE ... -->    the rows of data/results/NAME.json that have these values,
    <!-- end -->                           written here and never by hand

NAME/VIEW shows some rows of a long record, in columns of their own (``VIEWS``). A figure of ``FIGURES`` that a document
shows holds the digest of the record that it was drawn from, so that an old one is noticed. Imports experiments.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hashedmm.experiments import chosen, compression_text, student

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
    if row["test_error_mean"] is None:  # of a search, which does not look at the test set
        return f"{statistics.mean(row['validation_errors']):.2f} (validation)"
    if row["test_error_std"] is None:
        return f"{row['test_error_mean']:.2f}"
    return f"{row['test_error_mean']:.2f}\u00a0±\u00a0{row['test_error_std']:.2f}"  # spaces where no line breaks


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
    against: list[Column] = []
    if all(r["baselines"] for r in rows):
        against = [
            (f"{_baseline(rows[0])[0].replace('_', ' ')}, ms", lambda r: _milliseconds(_baseline(r)[1])),
            ("times as fast", lambda r: f"{_baseline(r)[1] / r['ms']:.2f}"),
        ]
    return [
        ("operation", lambda r: r["operation"]),
        ("outputs x inputs", lambda r: f"{r['shape'][0]} x {r['shape'][1]}"),
        ("n", lambda r: str(r["shape"][2])),
        ("structure", _structure),
        ("compression", lambda r: compression_text(r["compression"])),
        *kernel,
        ("ms", lambda r: _milliseconds(r["ms"])),
        *against,
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


def _scaling_columns(rows: Sequence[Row]) -> list[Column]:
    return _ranks_columns(rows) if "ranks" in rows[0] else _stream_columns(rows)


def _ranks_columns(rows: Sequence[Row]) -> list[Column]:
    """Of a training step on several ranks."""
    return [
        ("what is split", lambda r: "the panels" if r["mode"] == "panels" else "the batch"),
        ("compression", lambda r: compression_text(r["compression"])),
        ("ranks", lambda r: str(r["ranks"])),
        ("batch", lambda r: str(r["batch"])),
        ("ms a step", lambda r: _milliseconds(r["ms"])),
        ("one rank's fastest, ms", lambda r: _milliseconds(min(r["baselines"].values()))),
        ("times the samples a second", lambda r: f"{r['speedup']:.2f}"),
        ("MB sent a step", lambda r: f"{r['sent_bytes'] / 1e6:.1f}"),
        ("a dense net's", lambda r: f"{r['dense_sent_bytes'] / 1e6:.1f}"),
    ]


def _stream_columns(rows: Sequence[Row]) -> list[Column]:
    """Of products whose buckets, or whose dense W, are not on the card. A dense row is scaled: that is said there."""

    def milliseconds(r: Row) -> str:
        scaled = f" (x {r['scaled_ms'] / r['ms']:.0f} = {r['scaled_ms']:.0f})" if "scaled_ms" in r else ""
        return f"{_milliseconds(r['ms'])}{scaled}"

    return [
        ("operation", lambda r: r["operation"]),
        ("outputs x inputs", lambda r: f"{r['shape'][0]} x {r['shape'][1]}"),
        ("n", lambda r: str(r["shape"][2])),
        ("structure", lambda r: r["structure"]),
        ("compression", lambda r: compression_text(r["compression"])),
        ("dense W, GB", lambda r: f"{r['dense_bytes'] / 1e9:.3g}"),
        ("peak here, GB", lambda r: "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e9:.3g}"),
        ("copies alone, ms", lambda r: _milliseconds(r["copies_ms"])),
        ("products alone, ms", lambda r: _milliseconds(r["products_ms"])),
        ("ms", milliseconds),
        ("of the slower, %", lambda r: f"{100 * r['of_bound']:.0f}"),
    ]


_COLUMNS: dict[str, Callable[[Sequence[Row]], list[Column]]] = {
    "training": _training_columns,
    "timing": _timing_columns,
    "memory": _memory_columns,
    "scaling": _scaling_columns,
}
# Headings of text; the other columns are numbers.
_LEFT = {"method", "network", "operation", "structure", "outputs x inputs", "kernel", "against", "what is split"}


# --------------------------------------------------------------------------------------------------------------------
# Views: some rows of a record, in columns of their own

# What the summary of gpu_layer shows of every size and compression: operation, layer, kernel, dtype, columns.
SUMMARY: tuple[tuple[str, str, str, str, tuple[int, ...]], ...] = (
    ("matmul", "strips", "auto", "float32", (1,)),
    ("matmul", "strips", "auto", "float16", (1, 8, 32, 128, 1024, 4096)),
    ("grad_x", "strips", "auto", "float16", (1024,)),
    ("grad_w", "strips", "auto", "float16", (1024,)),
    ("grad_w", "strips", "fixed order", "float16", (1024,)),
    ("step", "strips", "auto", "float16", (1024,)),
    ("matmul", "strips-16", "tensor", "float16", (1024,)),
    ("matmul", "panels", "auto", "float32", (1,)),
    ("materialise", "strips", "materialise", "float16", (1,)),
)
AGAINST = {"fill": "a fill of as many bytes"}


def summary(rows: Sequence[Row]) -> list[Row]:
    """The rows of ``SUMMARY``, size by size and compression by compression. "auto" is the fastest kernel, which is what
    kernel="auto" takes (a test holds the tuning table against the record). "fixed order" is the fastest whose gradient
    has the same bits each time; it has no row of its own where "auto" is that kernel already."""
    groups = list(dict.fromkeys((row["size"], row["compression"]) for row in rows))
    out: list[Row] = []
    for size, compression in sorted(groups, key=lambda g: ([h for h, _ in groups].index(g[0]), g[1])):
        mine = [row for row in rows if (row["size"], row["compression"]) == (size, compression)]
        for operation, layer, kernel, dtype, columns in SUMMARY:
            fits = [r for r in mine if (r["operation"], r["layer"], r["dtype"]) == (operation, layer, dtype)]
            for n in columns:
                at = sorted((r for r in fits if r["shape"][2] == n), key=lambda r: r["ms"])
                if kernel == "fixed order":
                    at = [] if at and at[0]["fixed_order"] else [r for r in at if r["fixed_order"]]
                elif kernel != "auto":
                    at = [r for r in at if r["kernel"] == kernel]
                out += at[:1]
    return out


def _against(row: Row) -> str:
    name = _baseline(row)[0]
    return AGAINST.get(name, name.replace("_", " ").replace("cublas", "cuBLAS"))


def _operation(row: Row) -> str:
    return row["operation"] + (", fixed order" if row["operation"] == "grad_w" and row["fixed_order"] else "")


def _summary_columns(rows: Sequence[Row]) -> list[Column]:
    return [
        ("outputs x inputs", lambda r: f"{r['shape'][0]} x {r['shape'][1]}"),
        ("operation", _operation),
        ("n", lambda r: str(r["shape"][2])),
        ("structure", _structure),
        ("compression", lambda r: compression_text(r["compression"])),
        ("kernel", lambda r: r["kernel"]),
        ("ms", lambda r: _milliseconds(r["ms"])),
        ("against", _against),
        ("its ms", lambda r: _milliseconds(_baseline(r)[1])),
        ("times as fast", lambda r: f"{_baseline(r)[1] / r['ms']:.2f}"),
    ]


def _epochs_columns(rows: Sequence[Row]) -> list[Column]:
    names = list(dict.fromkeys(name for r in rows for name in r["baseline_seconds"]))
    target = f"{rows[0]['target_accuracy']:g}"

    def seconds(name: str) -> Column:
        def text(row: Row) -> str:
            found = row["baseline_seconds"].get(name)
            return f"{statistics.median(found):.3g}" if found else "-"

        return (f"{name.replace('_', ' ').replace('torch', 'PyTorch').replace('cupy', 'CuPy')}, s", text)

    return [
        ("structure", _structure),
        ("compression", lambda r: compression_text(r["compression"])),
        ("seconds an epoch", lambda r: f"{statistics.median(r['seconds']):.3f}"),
        *map(seconds, names),
        ("epochs", lambda r: str(r["epochs"])),
        ("test accuracy, %", lambda r: f"{r['test_accuracy'][-1]:.2f}"),
        (f"seconds to {target} %", lambda r: "-" if (s := r["seconds_to_target"]) is None else f"{s:.2f}"),
    ]


# The study: a row of a table holds the cells of several rows of the record, {"cells": {heading: row}}.


def _name(method: str) -> str:
    """strips, 8 bits; distilled strips; small dense."""
    base = student(method)
    name = base.partition(":")[2] + ", 8 bits" * base.startswith("hashed8:") if ":" in base else base
    return ("distilled " if base != method else "") + name.replace("_", " ")


def _hidden(row: Row) -> int:
    """The number of hidden layers."""
    return len(row["layers"]) - 2


def _pivot(rows: Sequence[Row], keys: Callable[[Row], dict[str, Any]], heading: Callable[[Row], Any]) -> list[Row]:
    """One row for each different ``keys``, in the order in which they first occur, its cells by ``heading``."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = keys(row)
        found.setdefault(tuple(key.values()), {**key, "cells": {}})["cells"][heading(row)] = row
    return list(found.values())


def by_compression(rows: Sequence[Row]) -> list[Row]:
    """One row for each depth and method, a cell for each compression."""
    return _pivot(rows, lambda r: {"hidden": _hidden(r), "method": r["method"]}, lambda r: r["compression"])


def by_dataset(rows: Sequence[Row]) -> list[Row]:
    """One row for each depth, compression and method, a cell for each data set. MNIST, whose rows come from another
    record, is left out where no other data set has the method and compression."""
    own = {(r["method"], r["compression"]) for r in rows if r["dataset"] != "mnist"}
    order = sorted(
        (r for r in rows if (r["method"], r["compression"]) in own), key=lambda r: (_hidden(r), -r["compression"])
    )
    return _pivot(
        order,
        lambda r: {"hidden": _hidden(r), "compression": r["compression"], "method": r["method"]},
        lambda r: r["dataset"],
    )


def by_settings(rows: Sequence[Row]) -> list[Row]:
    """Of a search: one row for each method and compression, a cell for each depth: the runs with their settings."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in rows:
        line = found.setdefault((r["method"], r["compression"]), {**r, "cells": {}})
        line["cells"].setdefault(_hidden(r), []).append(r)
    return list(found.values())


def _cell(heading: Any, text: Callable[[Any], str]) -> Callable[[Row], str]:
    """The text of one cell of a pivoted row, "-" where it has none."""
    return lambda row: text(row["cells"][heading]) if heading in row["cells"] else "-"


def _headings(rows: Sequence[Row]) -> list[Any]:
    return list(dict.fromkeys(heading for row in rows for heading in row["cells"]))


def _compression_columns(rows: Sequence[Row]) -> list[Column]:
    return [
        ("hidden layers", lambda r: str(r["hidden"])),
        ("method", lambda r: _name(r["method"])),
        *((compression_text(c), _cell(c, _error)) for c in sorted(_headings(rows), reverse=True)),
    ]


def _dataset_columns(rows: Sequence[Row]) -> list[Column]:
    names = sorted(_headings(rows), key=lambda name: name != "mnist")
    return [
        ("hidden layers", lambda r: str(r["hidden"])),
        ("compression", lambda r: compression_text(r["compression"])),
        ("method", lambda r: _name(r["method"])),
        *((name.replace("_", " "), _cell(name, _error)) for name in names),
    ]


def _settings_columns(rows: Sequence[Row]) -> list[Column]:
    columns: list[Column] = [
        ("method", lambda r: _name(r["method"])),
        ("compression", lambda r: compression_text(r["compression"])),
    ]

    def best(runs: Sequence[Row]) -> Row:
        found = chosen(runs[0]["method"], runs[0]["compression"], runs[0]["layers"], {"rows": runs})
        return next(r for r in runs if (r["dropout"], r["lr"]) == (found["dropout"], found["lr"]))

    def validation(run: Row) -> float:
        return statistics.mean(run["validation_errors"])

    for depth in sorted(_headings(rows)):
        layers = f"{depth} hidden"
        columns += [
            (f"{layers}: dropout", _cell(depth, lambda runs: f"{best(runs)['dropout']:g}")),
            ("rate", _cell(depth, lambda runs: f"{best(runs)['lr']:g}")),
            ("error, %", _cell(depth, lambda runs: f"{validation(best(runs)):.2f}")),
            ("next, %", _cell(depth, lambda runs: f"{sorted(map(validation, runs))[1]:.2f}" if runs[1:] else "-")),
        ]
    return columns


class View(NamedTuple):
    """Which rows of a record are shown, and in which columns; ``beside`` names records whose rows belong to them."""

    select: Callable[[Sequence[Row]], Sequence[Row]]
    columns: Callable[[Sequence[Row]], list[Column]]
    beside: tuple[str, ...] = ()


VIEWS: dict[str, View] = {
    "summary": View(summary, _summary_columns),
    "epochs": View(lambda rows: rows, _epochs_columns),
    "compressions": View(by_compression, _compression_columns),
    "datasets": View(by_dataset, _dataset_columns, ("mnist_grid",)),
    "settings": View(by_settings, _settings_columns),
}
IN_A_TERMINAL = {  # what `hashedmm report` shows of a record
    "gpu_layer": "summary", "gpu_steps": "epochs",
    "mnist_grid": "compressions", "variants": "datasets", "search": "settings",
}  # fmt: skip


def has_table(record: Mapping[str, Any]) -> bool:
    """Whether there are tables of records of this kind."""
    return record["kind"] in _COLUMNS


def _cells(
    record: Mapping[str, Any], view: str | None = None, beside: Sequence[Mapping[str, Any]] = ()
) -> list[list[str]]:
    """Headings, then the rows."""
    kind = record["kind"]
    rows: Sequence[Row] = [row for one in (*beside, record) for row in one["rows"]]
    if not has_table(record):
        raise ValueError(f"there are tables of records of kind {', '.join(_COLUMNS)}, not of {kind!r}")
    if view is not None and view not in VIEWS:
        raise ValueError(f"there is no view {view!r} of a record; there are {', '.join(VIEWS)}")
    if view is not None:
        rows = VIEWS[view].select(rows)
    columns = (VIEWS[view].columns if view is not None else _COLUMNS[kind])(rows) if rows else []
    return [[heading for heading, _ in columns], *([text(row) for _, text in columns] for row in rows)]


# --------------------------------------------------------------------------------------------------------------------
# Tables


def text_table(record: Mapping[str, Any], view: str | None = None) -> str:
    """A record's rows, or a view of them, aligned for a terminal; at most 100 columns wide for trainings."""
    cells = _cells(record, view)
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


def markdown_table(record: Mapping[str, Any], view: str | None = None, beside: Sequence[Mapping[str, Any]] = ()) -> str:
    """A record's rows, or a view of them, as a Markdown table, then a line that says where they come from.

    Parameters
    ----------
    record : as `hashedmm.records.read` gives it
    view : a key of `VIEWS`, or None
    beside : records whose rows are shown with them, those that the view names
    """
    cells = _cells(record, view, beside)
    rule = ["---" if heading in _LEFT else "---:" for heading in cells[0]]
    lines = ["| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])]
    for one in (record, *beside):
        lines += ["", _said(one)]
    return "\n".join(lines)


def _said(record: Mapping[str, Any]) -> str:
    """What is said below a table: of trainings also how long they were."""
    rows = record["rows"]
    if record["kind"] != "training" or not rows:
        return origin(record)
    epochs = "/".join(sorted({str(r["epochs"]) for r in rows}, key=int))
    batch = "/".join(sorted({str(r["batch"]) for r in rows}, key=int))
    seeds = "one seed each. " if all(len(r["seeds"]) == 1 for r in rows) else ""
    return f"{epochs} epochs, batch {batch}, {seeds}{origin(record)}"


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
        name, _, view = name.partition("/")
        if name not in available:
            there = ", ".join(available) or "none"
            raise ValueError(f"the table {name!r} has no record; records there are: {there}")
        values = dict(pair.split("=", 1) for pair in wanted.split())
        rows = [row for row in available[name]["rows"] if all(str(row.get(k)) == v for k, v in values.items())]
        if not rows:
            raise ValueError(f"the table {start} has no rows: nothing in the record {name!r} is so")
        others = VIEWS[view].beside if view in VIEWS else ()
        if lacking := [other for other in others if other not in available]:
            raise ValueError(f"the table {start} shows rows of the record {lacking[0]!r}, too, and there is none")
        beside = [available[other] for other in others]
        return f"{start}\n\n{markdown_table({**available[name], 'rows': rows}, view or None, beside)}\n\n{end}"

    return _BLOCK.sub(block, text)


# --------------------------------------------------------------------------------------------------------------------
# Figures inside a document

# The file, beside the document: the record that it is drawn from, and the function of hashedmm.plots that draws it.
FIGURES: dict[str, tuple[str, str]] = {
    "docs/gpu_speed.png": ("gpu_layer", "layer_speed"),
    "docs/accuracy.png": ("mnist_grid", "accuracy"),
}
DIGEST = "Record"  # the key of a PNG's text that holds the digest


def figures(text: str) -> list[str]:
    """The files of ``FIGURES`` that a document shows."""
    shown = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)
    return [name for name in FIGURES if name in shown]


def digest(record: Mapping[str, Any]) -> str:
    """What tells records with other rows apart."""
    return hashlib.sha256(json.dumps(record["rows"], sort_keys=True).encode()).hexdigest()[:32]


def drawn_from(path: Path | str) -> str | None:
    """The digest of the record that a PNG was drawn from; None if the file is missing, none, or does not say."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return None
    for kind, content in _chunks(data):
        key, _, value = content.partition(b"\0")
        if kind == b"tEXt" and key == DIGEST.encode():
            return value.decode("latin-1")
    return None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of each chunk of a PNG file."""
    at = 8
    while at + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        yield kind, png[at + 8 : at + 8 + length]
        at += length + 12


def stale_figures(text: str, available: Mapping[str, Mapping[str, Any]], folder: Path | str) -> list[str]:
    """The figures of a document in ``folder`` that are not drawn from the records as they are.

    Raises
    ------
    ValueError
        If the record of a figure is not ``available``.
    """
    stale = []
    for name in figures(text):
        record = FIGURES[name][0]
        if record not in available:
            raise ValueError(f"the figure {name} is drawn from the record {record!r}, and there is none")
        if drawn_from(Path(folder) / name) != digest(available[record]):
            stale.append(name)
    return stale
