"""Figures: one look for the whole kit (colour-blind-safe colours with markers, direct labels, alt text).

Functions take an Axes or return a Figure; nothing here computes a result. Importing this module sets matplotlib's
defaults to the kit's style. Imports datasets and hashing; needs matplotlib, and in a notebook IPython and
Pygments, which come with Jupyter.
"""

from __future__ import annotations

import ast
import inspect
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from hashedmm.datasets import Dataset
from hashedmm.hashing import HashSpec

# The palette of Okabe and Ito (2008): told apart with any colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#777777"

# One colour and one marker a method, everywhere.
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"color": BLACK, "marker": "s", "label": "dense"},
    "small_dense": {"color": GREY, "marker": "X", "label": "small dense, equal storage"},
    "hashed:elementwise": {"color": VERMILION, "marker": "o", "label": "hashed, elementwise"},
    "hashed:panels": {"color": PURPLE, "marker": "v", "label": "hashed, panels"},
    "hashed:strips": {"color": BLUE, "marker": "D", "label": "hashed, strips"},
    "hashed:runs": {"color": ORANGE, "marker": "<", "label": "hashed, runs"},
    "hashed:tiles": {"color": GREEN, "marker": "P", "label": "hashed, tiles"},
    "hashed:codebook": {"color": SKY, "marker": ">", "label": "hashed, codebook"},
    "hashed8:strips": {"color": SKY, "marker": "d", "label": "hashed, strips of 8 bits"},
    "random_edges": {"color": SKY, "marker": "h", "label": "random edges"},
    "magnitude": {"color": PURPLE, "marker": "p", "label": "pruned by magnitude"},
    "obd": {"color": BLUE, "marker": "^", "label": "pruned by saliency"},
    "low_rank": {"color": ORANGE, "marker": "8", "label": "low rank"},
    "low_rank_fixed": {"color": GREEN, "marker": "*", "label": "low rank, V random"},
    "fixed_point": {"color": ORANGE, "marker": "H", "label": "fixed point"},
    "quantised": {"color": GREEN, "marker": "h", "label": "dense of few bits"},
    "distilled:small_dense": {"color": BLACK, "marker": "X", "label": "small dense, taught"},
    "distilled:hashed:elementwise": {"color": ORANGE, "marker": "o", "label": "hashed, elementwise, taught"},
    "distilled:hashed:strips": {"color": SKY, "marker": "D", "label": "hashed, strips, taught"},
}


def method_name(method: str) -> str:
    """A method's name in a figure: its label without "hashed, " and without "equal storage"."""
    label = METHODS.get(method, {"label": method.replace("_", " ")})["label"]
    return str(label).removeprefix("hashed, ").removesuffix(", equal storage")


DIVERGING = "PuOr"  # signed values: zero is white, and purple against orange is safe

STYLE: Any = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
matplotlib.rcParams.update(STYLE)


def subplots(rows: int = 1, cols: int = 1, *, size: tuple[float, float] = (7.0, 3.2), **kwargs: Any):
    """``(figure, axes)`` in the kit's style, not registered with pyplot (nothing to close). ``size`` in inches."""
    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, cols, **kwargs)


def png(figure: Figure, texts: Mapping[str, str] | None = None) -> bytes:
    """The figure as a PNG image at one and a half times the screen's density; ``texts`` are kept inside the file."""
    buffer, density = io.BytesIO(), 1.5 * figure.dpi
    figure.savefig(buffer, format="png", dpi=density, pil_kwargs={"optimize": True}, metadata=dict(texts or {}))
    return buffer.getvalue()


def show(figure: Figure, alt: str) -> None:
    """Show a figure in a notebook, with the text ``alt`` for whoever cannot see it."""
    from IPython.display import Image, display

    width = round(figure.get_figwidth() * figure.dpi)
    display(Image(png(figure), width=width, alt=alt))


def matrix(ax: Axes, values: np.ndarray, title: str = "", *, limit: float | None = None, colorbar: bool = True) -> None:
    """Draw a signed matrix as an image: zero is white, the colours are symmetric, rows run downwards."""
    limit = limit or float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
    if colorbar and ax.figure is not None:
        ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.02)
    ax.set_title(title)


def label_end(ax: Axes, x: float, y: float, text: str, color: str) -> None:
    """Write a line's name beside its last point: a label where the eye already is, instead of a legend."""
    ax.annotate(
        text, (x, y), xytext=(6, 0), textcoords="offset points", va="center", color=color, annotation_clip=False
    )


def buckets(
    ax: Axes, bucket: np.ndarray, sign: np.ndarray | None = None, title: str = "", *,
    n_buckets: int | None = None, numbers: bool = False,
) -> None:  # fmt: skip
    """Draw bucket numbers as colours: a virtual matrix, a piece of one, or a stored vector.

    Parameters
    ----------
    ax : where to draw
    bucket : (rows, cols) integers, as ``spec.indices()`` gives them
    sign : (rows, cols) of +-1, optional: a bar marks the weights that are subtracted
    title : of the axes
    n_buckets : colours run from bucket 0 (dark) to n_buckets - 1 (bright); default: the largest number drawn. Give the
        same number to two pictures whose colours are to be compared.
    numbers : write the bucket number into each cell, "-" before it where the sign is negative (small matrices)
    """
    rows, cols = bucket.shape
    last = max(1, (int(bucket.max()) + 1 if n_buckets is None else n_buckets) - 1)
    ax.imshow(bucket, cmap="viridis", vmin=0, vmax=last, interpolation="nearest", aspect="auto")
    for i in range(rows):
        for j in range(cols):
            negative = sign is not None and sign[i, j] < 0
            ink = "white" if bucket[i, j] < 0.6 * last else "black"
            if numbers:
                text = f"{'−' if negative else ''}{bucket[i, j]}"
                ax.text(j, i, text, ha="center", va="center", color=ink, fontsize=8)
            elif negative:
                ax.plot([j - 0.25, j + 0.25], [i, i], color=ink, linewidth=1.0, solid_capstyle="butt")
    ax.set(title=title, xlim=(-0.5, cols - 0.5), ylim=(rows - 0.5, -0.5))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def source(*functions: Any, docstring: bool = False) -> None:
    """Show the package's own source of functions or classes in a notebook: never a copy, so the two cannot drift.

    Parameters
    ----------
    functions : functions, methods or classes, compiled by numba or not
    docstring : show docstrings, too
    """
    _show_code("python", *(source_text(f, docstring=docstring) for f in functions))


def source_text(function: Any, *, docstring: bool = False) -> str:
    """The source of one function or class, its file in the first line.

    Parameters
    ----------
    function : a function, method or class, compiled by numba or not
    docstring : keep docstrings

    Raises
    ------
    TypeError
        If it has no Python source (a value, a built-in).
    """
    function = getattr(function, "py_func", function)  # what numba compiled
    text = textwrap.dedent(inspect.getsource(function))
    hidden: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if not docstring and isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            hidden.update(range(node.body[0].lineno, (node.body[0].end_lineno or node.body[0].lineno) + 1))
    kept = [line for number, line in enumerate(text.splitlines(), start=1) if number not in hidden]
    return "\n".join([f"# {function.__module__.replace('.', '/')}.py", *kept])


def kernel_source(name: str, first: str | None = None, last: str | None = None) -> None:
    """Show a file of ``hashedmm/kernels`` in a notebook: a kernel by its name ("naive") or a header ("hash.cuh").

    With ``first`` and ``last`` only an excerpt: from the one line that contains ``first`` to the next that contains
    ``last``.
    """
    _show_code("cuda", kernel_text(name, first, last))


def kernel_text(name: str, first: str | None = None, last: str | None = None) -> str:
    """What `kernel_source` shows, its file in the first line. ValueError if the lines are not there."""
    file = name if "." in name else f"{name}.cu"
    text = (resources.files("hashedmm") / "kernels" / file).read_text(encoding="utf-8").rstrip("\n")
    if first is None and last is None:
        return f"// hashedmm/kernels/{file}\n{text}"
    lines = text.splitlines()
    begins = [i for i, line in enumerate(lines) if first is None or first in line]
    if first is not None and len(begins) != 1:
        raise ValueError(f"first must be in exactly one line of {file}, got {first!r}, which is in {len(begins)}")
    begin = begins[0]
    end = next((i for i in range(begin, len(lines)) if last is not None and last in lines[i]), None)
    if last is not None and end is None:
        raise ValueError(f"last must be in a line of {file} from line {begin + 1} on, got {last!r}")
    shown = textwrap.dedent("\n".join(lines[begin : None if end is None else end + 1]))
    where = f"lines {begin + 1} to {len(lines) if end is None else end + 1}"
    return f"// hashedmm/kernels/{file}, {where}\n{shown}"


# A block of code with a light background of its own, for dark themes too. At this size JupyterLab shows lines of
# SOURCE_COLUMNS characters whole in a window of 1280 px; a test measures it.
SOURCE_COLUMNS = 130
_SOURCE_STYLE = (
    "background: #f8f8f8; color: #202020; border: 0; margin: 0 0 8px; padding: 4px 2px; overflow-x: auto; "
    "white-space: pre; font: 10.5px/1.4 var(--jp-code-font-family, monospace)"
)


def _show_code(language: str, *texts: str) -> None:
    """Show texts in a notebook as highlighted blocks, lines unbroken; where HTML is not shown, as they are."""
    from IPython.display import display
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    lexer, formatter = get_lexer_by_name(language, stripnl=False), HtmlFormatter(noclasses=True, nowrap=True)
    blocks = [f'<pre style="{_SOURCE_STYLE}">{highlight(text, lexer, formatter)}</pre>' for text in texts]
    display({"text/html": "\n".join(blocks), "text/plain": "\n\n".join(texts)}, raw=True)


def error_against_storage(rows: Sequence[Mapping[str, Any]], title: str = "Test error against storage") -> Figure:
    """The test error of trained networks against the values that each stores: one colour and one marker a method.

    Each point has its error beside it, and each method its name at the point where it stores least.

    Parameters
    ----------
    rows : of a training record (`hashedmm.records`): method, stored_values, test_error_mean, test_error_std
    title : of the figure
    """
    figure, ax = subplots(size=(8.0, 4.8))
    methods = [m for m in METHODS if any(row["method"] == m for row in rows)]
    stored = [row["stored_values"] for row in rows]
    errors = [row["test_error_mean"] for row in rows]
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(min(stored) / 3.6, max(stored) * 2.8)  # room for names on the left and numbers on the right
    ax.set_ylim(min(errors) / 1.15, max(errors) * 1.15)

    labels: list[tuple[float, float, str, str, bool]] = []
    for method in methods:
        style = METHODS[method]
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["stored_values"])
        x, y = [row["stored_values"] for row in mine], [row["test_error_mean"] for row in mine]
        ax.plot(x, y, color=style["color"], marker=style["marker"], markersize=7, markeredgecolor="white")
        spread = [row["test_error_std"] or 0.0 for row in mine]
        if any(spread):
            ax.errorbar(x, y, spread, color=style["color"], linestyle="none", capsize=3, linewidth=1.0)
        for i, row in enumerate(mine):
            name = f"{style['label'].removeprefix('hashed, ').partition(',')[0]} " if i == 0 else ""
            text = f"{name}{row['test_error_mean']:.2f}"
            labels.append((x[i], y[i], text, style["color"], bool(name) and len(mine) > 1))
    write_apart(ax, labels)

    ax.set_title(title, loc="left", weight="bold")
    ax.set_xlabel("stored values: weights and biases (log scale)")
    ax.set_ylabel("test error, % (log scale)")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    low, high = ax.get_ylim()
    ticks = [t for t in (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100) if low <= t <= high]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.yaxis.minorticks_off()
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    return figure


def error_against_sums(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """The test error of networks of strips against the sums that each strip sees, one line a height.

    Parameters
    ----------
    rows : height, sums (of all panels, T for a single one), test_error_mean, test_error_std or None. Rows without a
        height, None, are drawn as a band: elementwise hashing, which knows no strips.
    title : of the figure
    """
    figure, ax = subplots(size=(8.0, 4.2))
    strips = [row for row in rows if row["height"] is not None]
    heights = sorted({row["height"] for row in strips})
    sums = sorted({row["sums"] for row in strips})
    errors = [row["test_error_mean"] for row in rows]
    ax.set_xscale("log")
    ax.set_xlim(sums[0] / 1.5, sums[-1] * 2.2)
    ax.set_ylim(min(errors) - 0.25, max(errors) + 0.25)
    looks = [(SKY, "s"), (BLUE, "D"), (GREEN, "P"), (ORANGE, "<"), (PURPLE, "v"), (BLACK, "o")]
    labels: list[tuple[float, float, str, str, bool]] = []
    for height, (color, marker) in zip(heights, looks, strict=False):
        mine = sorted((row for row in strips if row["height"] == height), key=lambda row: row["sums"])
        x, y = [row["sums"] for row in mine], [row["test_error_mean"] for row in mine]
        spread = [row["test_error_std"] or 0.0 for row in mine]
        ax.errorbar(x, y, spread, color=color, marker=marker, markersize=7, markeredgecolor="white", capsize=3)
        at = -1 if x[-1] == sums[-1] else 0  # a line that ends among others is named where it begins
        labels.append((x[at], y[at], f"{height} high", color, at == 0))
    for row in rows:
        if row["height"] is None:
            mean, half = row["test_error_mean"], row["test_error_std"] or 0.0
            ax.axhspan(mean - half, mean + half, color=VERMILION, alpha=0.2, linewidth=0)
            ax.axhline(mean, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 2)))
            labels.append((sums[-1], mean, "elementwise", VERMILION, False))
    write_apart(ax, labels)
    ticks: list[int] = []
    for n in sums:
        if not ticks or n > 1.15 * ticks[-1]:  # no number over another
            ticks.append(n)
    ax.set_xticks(ticks, [str(n) for n in ticks], fontsize=8)
    ax.minorticks_off()
    ax.set(xlabel="sums of its inputs that a strip sees (log scale)", ylabel="test error, %")
    ax.set_title(title)
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    return figure


def write_apart(ax: Axes, labels: Sequence[tuple[float, float, str, str, bool]], gap: float = 13.0) -> None:
    """Write labels (x, y, text, colour, whether left of the point) beside their points, pushed apart up and down where
    they would cover each other: at least ``gap`` typographer's points between two on one side of about the same x. One
    that would cover a point of its neighbours begins behind that. The limits of the axes must be set."""
    place = {label: ax.transAxes.inverted().transform(ax.transData.transform(label[:2])) for label in labels}
    width, height = (72 * pixels / ax.figure.dpi for pixels in ax.bbox.size)  # in typographer's points
    columns: list[list[tuple[float, float, str, str, bool]]] = []
    for label in sorted(labels, key=lambda k: (k[4], place[k][0])):
        last = columns[-1][-1] if columns else None
        near = last is not None and last[4] == label[4] and (place[label][0] - place[last][0]) * width < 30
        if near:
            columns[-1].append(label)
        else:
            columns.append([label])
    for column in columns:
        column.sort(key=lambda k: place[k][1])
        wanted = [height * place[k][1] for k in column]
        groups: list[list[float]] = []  # labels that touch; each group is centred on what its labels want
        for w in wanted:
            groups.append([w])
            while len(groups) > 1 and _middle(groups[-1]) - _middle(groups[-2]) < gap * sum(map(len, groups[-2:])) / 2:
                groups[-2:] = [groups[-2] + groups[-1]]
        at = [_middle(g) + gap * (i - (len(g) - 1) / 2) for g in groups for i in range(len(g))]
        for k, w, a in zip(column, wanted, at, strict=True):
            x, y, text, color, left = k
            side = -1 if left else 1
            level = [o for o in column if abs(height * place[o][1] - a) < 0.75 * gap]  # points beside this label
            ahead = (side * width * (place[o][0] - place[k][0]) for o in level)
            behind = max((d for d in ahead if 0 < d < 30), default=0.0)
            ax.annotate(
                text, (x, y), xytext=(side * (8 + behind), a - w), textcoords="offset points",
                ha="right" if left else "left", va="center", color=color, annotation_clip=False,
                path_effects=[withStroke(linewidth=3, foreground="white")], zorder=5,
            )  # fmt: skip


def _middle(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# One colour a structure of gpu_layer, and one marker a kernel.
LAYERS: dict[str, tuple[str, str]] = {
    "strips": (BLUE, "strips"),
    "strips-128": (SKY, "strips, 128 high"),
    "strips-16": (GREEN, "strips, 16 high"),
    "panels": (PURPLE, "panels"),
    "elementwise": (VERMILION, "elementwise"),
}
KERNEL_MARKERS = {"sketch": "D", "tensor": "s", "strip": "^", "panel": "v", "panel_few": "<", "shared": "o"}


def layer_speed(
    rows: Sequence[Mapping[str, Any]], title: str = "How fast a hashed layer is, the dense one being 1", *,
    size: str | None = None, dtype: str = "float16",
) -> Figure:  # fmt: skip
    """Speed of y = W x relative to the fastest dense product against the number of columns, a line a structure and
    kernel, a panel a compression. Of the kernels of a structure those are drawn that are its fastest somewhere.

    Parameters
    ----------
    rows : of the record gpu_layer (`hashedmm.bench.layer_row`)
    title : of the figure
    size : of W, as "8192x8192"; default: the size of most rows
    dtype : of the rows that are drawn
    """
    matmul = [r for r in rows if r["operation"] == "matmul" and r["dtype"] == dtype and r["kernel"] != "auto"]
    sizes = [r["size"] for r in matmul]
    size = size or max(sizes, key=sizes.count)
    drawn = [r for r in matmul if r["size"] == size]
    compressions = sorted({r["compression"] for r in drawn})
    figure, axes = subplots(len(compressions), 1, size=(8.8, 4.2 * len(compressions)), sharex=True, squeeze=False)
    columns = sorted({r["shape"][2] for r in drawn})
    room = max(columns[-1] / columns[0], 10.0) ** 0.6  # for names on both sides
    speeds = [s for c in compressions for _, _, _, line in _speed_lines(drawn, c, dtype) for s in line.values()]
    low, high = min(*speeds, 1.0) / 1.3, max(*speeds, 1.0) * 1.3
    for ax, compression in zip(axes[:, 0], compressions, strict=True):
        ax.set(xscale="log", yscale="log", xlim=(columns[0] / room, columns[-1] * room), ylim=(low, high))
        ax.axhline(1.0, color=BLACK, linewidth=1.2, linestyle=(0, (4, 2)))
        labels = [(columns[-1], 1.0, f"dense, cuBLAS {dtype}", BLACK, False)]
        for name, color, marker, line in _speed_lines(drawn, compression, dtype):
            ax.plot(list(line), list(line.values()), color=color, marker=marker, markersize=6, markeredgecolor="white")
            last = max(line)
            at = last if last == columns[-1] else min(line)
            labels.append((at, line[at], name, color, at != last))
        write_apart(ax, labels)
        ax.set_title(f"1/{round(1 / compression)} of the weights stored")
        ax.set_xticks(columns, [str(n) for n in columns], fontsize=8)
        ticks = [t for t in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32) if low <= t <= high]
        ax.set_yticks(ticks, [f"{t:g}" if t >= 1 else f"1/{round(1 / t)}" for t in ticks])
        ax.minorticks_off()
        ax.set_ylabel("times as fast as dense (log scale)")
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    axes[-1, 0].set_xlabel("n, columns of x (log scale)")
    figure.suptitle(f"{title}: W {size.replace('x', ' x ')}, {dtype}", x=0.01, ha="left", weight="bold")
    return figure


def _speed_lines(
    rows: Sequence[Mapping[str, Any]], compression: float, dtype: str
) -> list[tuple[str, str, str, dict[int, float]]]:
    """(name, colour, marker, {n: speed}) of every line of `layer_speed`."""
    mine = [r for r in rows if r["compression"] == compression]
    lines = []
    for layer, (color, label) in LAYERS.items():
        ms: dict[int, dict[str, Mapping[str, Any]]] = {}
        for r in mine:
            if r["layer"] == layer:
                ms.setdefault(r["shape"][2], {})[r["kernel"]] = r
        best = {min(found, key=lambda kernel: found[kernel]["ms"]) for found in ms.values()}
        for kernel in sorted(best):
            line = {
                n: found[kernel]["baselines"][f"cublas_{dtype}"] / found[kernel]["ms"]
                for n, found in sorted(ms.items())
                if kernel in found
            }
            lines.append((f"{label}: {kernel}", color, KERNEL_MARKERS.get(kernel, "P"), line))
    both = {
        r["shape"][2]: r["baselines"][f"cublas_{dtype}"] / r["baselines"]["materialise_cublas"]
        for r in sorted(mine, key=lambda r: r["shape"][2])
        if r["layer"] == "strips"
    }
    return [*lines, *([("materialise, then cuBLAS", GREY, "X", both)] if both else [])]


# The ways from buckets to y = W x: one colour and one marker a way.
WAYS: dict[str, tuple[str, str, str]] = {
    "materialise": (ORANGE, "X", "materialise, then cuBLAS"),
    "direct": (BLUE, "^", "direct: hash and multiply"),
    "sketch": (GREEN, "D", "sketch: sum first"),
}


def ways(rows: Sequence[Mapping[str, Any]], layer: str, uses: int = 1) -> dict[tuple[Any, ...], dict[str, float]]:
    """Milliseconds a product by each way: {(size, dtype, compression, n): {"dense": ms, "materialise": ms, ...}}.

    "dense" is cuBLAS on a matrix that is stored; "materialise" makes W once for ``uses`` products, the first of which
    is timed together with it; "direct" is the fastest kernel that hashes while it multiplies; "sketch" is there if the
    layer has one. All compute in the row's dtype: of float32, TF32 does not count. A row of the kernel "auto" counts
    where no other row of its way was timed.

    Parameters
    ----------
    rows : of the record gpu_layer (`hashedmm.bench.layer_row`)
    layer : its name in that record
    uses : of one materialised W
    """
    if uses < 1:
        raise ValueError(f"uses must be at least 1, got {uses}")
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    mine = [row for row in rows if row["operation"] == "matmul" and row["layer"] == layer]
    for row in sorted(mine, key=lambda r: r["kernel"] == "auto"):
        dense, both = row["baselines"][f"cublas_{row['dtype']}"], row["baselines"]["materialise_cublas"]
        case = (row["size"], row["dtype"], row["compression"], row["shape"][2])
        ms = found.setdefault(case, {"dense": dense, "materialise": (both + (uses - 1) * dense) / uses})
        way = "sketch" if row.get("chosen", row["kernel"]) == "sketch" else "direct"
        if row["kernel"] != "auto" or way not in ms:
            ms[way] = min(row["ms"], ms.get(way, row["ms"]))
    return found


def ways_map(
    rows: Sequence[Mapping[str, Any]], layer: str = "strips", *, uses: Sequence[int] = (1, 10, 1000),
    dtype: str | None = None, title: str | None = None,
) -> Figure:  # fmt: skip
    """Which way to y = W x is the fastest: a panel a number of uses of one materialised W, a cell a case.

    A cell's colour and marker are those of the fastest way of the hashed layer (``WAYS``); its number says how many
    times as fast as cuBLAS on the stored dense matrix it is. Pale cells: the dense matrix is faster. A point: not
    measured.

    Parameters
    ----------
    rows, layer : as in `ways`
    uses : products that one materialised W is used for
    dtype : of the rows that are drawn; default: all
    title : of the figure
    """
    found = {u: {c: ms for c, ms in ways(rows, layer, u).items() if dtype in (None, c[1])} for u in uses}
    cases = list(found[uses[0]]) if uses else []
    if not cases:
        raise ValueError(f"no rows of layer {layer!r}{f' and {dtype}' if dtype else ''} to draw")
    columns = sorted({c[3] for c in cases})
    lines = sorted({c[:3] for c in cases}, key=lambda line: (-int(line[0].split("x")[0]), line[1], -line[2]))
    height = 0.44 * len(lines) + 1.5
    figure, axes = subplots(1, len(uses), size=(8.4, height), squeeze=False, sharey=True)
    for ax, u in zip(axes[0], uses, strict=True):
        for y, line in enumerate(lines):
            for x, n in enumerate(columns):
                ms = found[u].get((*line, n))
                if ms is None:
                    ax.plot(x, y, ".", color="#bbbbbb", markersize=3)
                    continue
                way = min((w for w in WAYS if w in ms), key=ms.__getitem__)
                color, marker, _ = WAYS[way]
                speed = ms["dense"] / ms[way]
                strong, weight, ink = (0.5, "bold", BLACK) if speed >= 1 else (0.14, "normal", GREY)
                ax.fill_between([x - 0.47, x + 0.47], y - 0.45, y + 0.45, color=color, alpha=strong, linewidth=0)
                ax.plot(x, y - 0.2, marker, color=color, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6)
                ax.text(x, y + 0.22, _times(speed), ha="center", va="center", fontsize=8, weight=weight, color=ink)
        ax.set(xlim=(-0.55, len(columns) - 0.45), ylim=(len(lines) - 0.45, -0.55), xlabel="n, columns of x")
        ax.set_xticks(range(len(columns)), [str(n) for n in columns], fontsize=8)
        ax.set_title(f"W used {'once' if u == 1 else f'{u:,} times'}")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    texts = [f"{s.replace('x', ' x ')}, {d}, 1/{round(1 / c)}" for s, d, c in lines]
    axes[0, 0].set_yticks(range(len(lines)), texts, fontsize=8)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="none", markersize=7, label=label)
        for color, marker, label in WAYS.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
    figure.suptitle(
        title or f"The fastest way, and how many times as fast as dense cuBLAS: {LAYERS.get(layer, ('', layer))[1]}",
        x=0.01, ha="left", weight="bold",
    )  # fmt: skip
    return figure


def _times(ratio: float) -> str:
    """Two digits: 0.087, 0.87, 8.7, 87."""
    return f"{ratio:.2g}" if ratio < 0.995 else f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"


# The rungs of the kernel ladder, in order: one colour and one marker a kernel.
RUNGS: dict[str, tuple[str, str]] = {
    "naive": (VERMILION, "o"),
    "coalesced": (VERMILION, "^"),
    "shared": (ORANGE, "o"),
    "register_tile": (ORANGE, "P"),
    "panel": (PURPLE, "v"),
    "panel_few": (PURPLE, "<"),
    "strip": (BLUE, "^"),
    "tensor": (SKY, "s"),
    "sketch": (GREEN, "D"),
}


def ladder_bars(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[int] | None = None, title: str = "The kernel ladder"
) -> Figure:
    """Milliseconds of every rung as bars on a log scale, a panel a number of columns, a dashed line for cuBLAS on the
    dense matrix. Bars are blue where a kernel is faster than that, grey where not; the text says how many times.

    Parameters
    ----------
    rows : products of one matrix (shape, spec, dtype) from gpu_ladder or gpu_layer
    columns : n; default: all
    title : of the figure
    """
    rows = [r for r in rows if r["operation"] == "matmul" and r["kernel"] in RUNGS]
    if len({(str(r["spec"]), r["dtype"]) for r in rows}) != 1:
        raise ValueError("rows must be products of one matrix: one spec and one dtype; select them first")
    columns = columns or sorted({r["shape"][2] for r in rows})
    found = {n: {r["kernel"]: r for r in rows if r["shape"][2] == n} for n in columns}
    kernels = [k for k in RUNGS if any(k in by for by in found.values())]
    figure, axes = subplots(1, len(found), size=(8.4, 0.36 * len(kernels) + 1.5), squeeze=False, sharey=True)
    dtype = rows[0]["dtype"]
    for ax, (n, by) in zip(axes[0], found.items(), strict=True):
        dense = next(iter(by.values()))["baselines"][f"cublas_{dtype}"]
        low = min(dense, *(r["ms"] for r in by.values())) / 3
        high = max(dense, *(r["ms"] for r in by.values()))
        for y, kernel in enumerate(kernels):
            if kernel not in by:
                ax.text(low * 1.1, y, "not timed here", va="center", fontsize=8, color=GREY)
                continue
            ms = by[kernel]["ms"]
            ax.barh(y, ms - low, left=low, height=0.7, color=BLUE if ms < dense else "#bbbbbb")
            times = f"{_times(dense / ms)} x as fast" if ms < dense else f"{_times(ms / dense)} x as long"
            ax.annotate(
                f"{ms:.3g} ms: {times}", (max(ms, dense), y), xytext=(4, 0), textcoords="offset points", va="center",
                fontsize=8,
            )  # fmt: skip
        ax.axvline(dense, color=BLACK, linewidth=1.2, linestyle=(0, (4, 2)))
        ax.text(dense, -0.8, f" cuBLAS, dense: {dense:.3g} ms", ha="left", va="bottom", fontsize=8)
        ax.set(xscale="log", xlim=(low, high * (high / low) ** 0.8), ylim=(len(kernels) - 0.4, -1.3))
        ax.set(xlabel="ms (log scale)")
        ax.set_title(f"n = {n}")
        ax.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(kernels)), kernels)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


class Point(NamedTuple):
    """A kernel under a roofline: operations a byte, operations a second, and how it is drawn."""

    label: str
    intensity: float
    per_second: float
    color: str
    marker: str
    filled: bool = True


def roofline(
    roofs: Sequence[Mapping[str, Any]], points: Sequence[Point], title: str = "The roofline", *,
    size: tuple[float, float] = (8.4, 5.8), machine: tuple[float, float] | None = None,
) -> Figure:  # fmt: skip
    """Points under the roofs of a machine: bytes a second of a copy (slanted), operations a second (flat).

    Parameters
    ----------
    roofs : rows of the record gpu_roofs: "roof", "per_second", "unit"
    points : in operations a byte and a second; their labels, if not empty, stand beside them
    title : of the figure
    size : in inches
    machine : (bytes a second, operations a second) of another machine, whose roofs are drawn dashed
    """
    memory = next(r["per_second"] for r in roofs if r["unit"] == "bytes")
    flat = {r["roof"]: r["per_second"] for r in roofs if r["unit"] != "bytes"}
    places = [p.intensity for p in points] + [rate / memory for rate in flat.values()]
    rates = [p.per_second for p in points]
    places += [machine[1] / machine[0]] if machine else []
    low, high = min(places) / 2, max(places) * 12  # room for names
    slowest = min(memory, machine[0]) if machine else memory
    bottom, top = min([*rates, low * slowest]) / 6, max([*rates, *flat.values(), *(machine or ())[1:]]) * 3
    figure, ax = subplots(size=size)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom / 1e12, top / 1e12))
    reach = max(flat.values())
    ax.plot([low, reach / memory], [low * memory / 1e12, reach / 1e12], color=BLACK, linewidth=1.8)
    middle = low**0.3 * (min(flat.values()) / memory) ** 0.7
    room = math.log(middle / low) / math.log(high / low) > 0.2  # left of the slanted roof
    ax.annotate(
        f"memory, {memory / 1e12:.3g} TB/s", (middle, middle * memory / 1e12), xytext=(-8, 2) if room else (8, -2),
        textcoords="offset points", ha="right" if room else "left", va="baseline" if room else "top", fontsize=9,
    )  # fmt: skip
    ends = []
    for name, rate in flat.items():
        ax.plot([rate / memory, high], [rate / 1e12] * 2, color=BLACK, linewidth=1.2)
        text = f"{name.removeprefix('cublas_').replace('tf32', 'TF32')}: {rate / 1e12:.3g} TFLOP/s"
        ends.append((high, rate / 1e12, text, BLACK, False))
    if machine:
        per_byte, rate = machine
        roof = [low * per_byte / 1e12, rate / 1e12, rate / 1e12]
        ax.plot([low, rate / per_byte, high], roof, color=VERMILION, linewidth=1.4, linestyle=(0, (4, 2)))
        text = f"your {rate / 1e12:.3g} TFLOP/s, {per_byte / 1e9:.3g} GB/s"
        ends.append((high, rate / 1e12, text, VERMILION, False))
    write_apart(ax, ends)
    for p in points:
        face = p.color if p.filled else "white"
        edge = "white" if p.filled else p.color
        ax.plot(
            p.intensity, p.per_second / 1e12, p.marker, color=face, markersize=13 if p.marker == "*" else 8,
            markeredgecolor=edge,
            markeredgewidth=0.8 if p.filled else 1.6,
        )  # fmt: skip
    write_apart(ax, [(p.intensity, p.per_second / 1e12, p.label, p.color, False) for p in points if p.label])
    ax.set(xlabel="operations a byte that must move at least (log scale)", ylabel="TFLOP/s (log scale)")
    ax.set_title(title)
    return figure


def access_map(
    requests: Sequence[Mapping[str, Any]], titles: Sequence[str], *, space: str = "global", most_rows: int = 16
) -> Figure:
    """What the lanes of a warp ask memory for, one panel a request: the number of each lane stands where it reads.

    Memory is drawn in rows of 32 words of 4 bytes, 128 bytes a row. In global memory the hardware moves sectors of 32
    bytes, eight words: those that are moved are tinted. In shared memory every column is a bank: columns that are asked
    for several words are tinted, the darker the more.

    Parameters
    ----------
    requests : as `hashedmm.emulator.Trace.requests` gives them: ``addresses``, a byte offset a lane or None, ``size``
        in bytes, ``array``
    titles : one a request
    space : "global" or "shared"
    most_rows : rows drawn; a note says how many more there are
    """
    if space not in ("global", "shared"):
        raise ValueError(f'space must be "global" or "shared", got {space!r}')
    heights = [min(len(_words_asked(request)), most_rows) + 2.6 for request in requests]
    size = (8.6, 0.24 * sum(heights) + 0.2)
    figure, axes = subplots(len(heights), 1, size=size, squeeze=False, height_ratios=heights)
    for ax, request, title in zip(axes[:, 0], requests, titles, strict=True):
        access_rows(ax, request, title, space=space, most_rows=most_rows)
    return figure


def _words_asked(request: Mapping[str, Any]) -> dict[int, dict[int, list[int]]]:
    """{row of 128 bytes: {word in it: lanes that ask for it}} of a request."""
    rows: dict[int, dict[int, list[int]]] = {}
    for lane, address in enumerate(request["addresses"]):
        if address is not None:
            for word in range(address // 4, (address + request["size"] - 1) // 4 + 1):
                rows.setdefault(word // 32, {}).setdefault(word % 32, []).append(lane)
    return rows


def access_rows(
    ax: Axes, request: Mapping[str, Any], title: str = "", *, space: str = "global", most_rows: int = 16,
    height: int | None = None,
) -> None:  # fmt: skip
    """Draw one request on an Axes; parameters as in `access_map`. ``height``: rows to draw at least, if need be the
    ones that follow in memory, which nobody asks for."""
    rows = _words_asked(request)
    shown = sorted(rows)[:most_rows]
    while height is not None and len(shown) < height:
        shown.append(shown[-1] + 1 if shown else 0)
    words = [len({row for row, cells in rows.items() if column in cells}) for column in range(32)]
    tint = np.zeros((len(shown), 32, 4))  # red, green, blue and how strong
    for y, row in enumerate(shown):
        for column in range(32):
            lanes = rows.get(row, {}).get(column, [])
            if space == "global" and any(c // 8 == column // 8 for c in rows.get(row, {})):
                tint[y, column] = to_rgba(SKY, 0.45)
            elif space == "shared" and lanes:
                tint[y, column] = to_rgba(
                    VERMILION if words[column] > 1 else SKY, min(0.15 + 0.05 * words[column], 0.8)
                )
            if lanes:
                text = f"{lanes[0]}" if len(lanes) == 1 else f"{lanes[0]}+" if len(lanes) < 32 else "all"
                ax.text(column + 0.5, y + 0.52, text, ha="center", va="center", fontsize=7)
    ax.imshow(tint, extent=(0, 32, len(shown), 0), aspect="auto", interpolation="nearest")
    ax.hlines(range(len(shown) + 1), 0, 32, color="#dddddd", linewidth=0.5)
    ax.vlines(range(33), 0, len(shown), color="#dddddd", linewidth=0.5)
    if space == "global":
        ax.vlines(range(0, 33, 8), 0, len(shown), color=GREY, linewidth=0.9)
    ax.set_yticks([y + 0.5 for y in range(len(shown))], [f"{128 * row:,}" for row in shown], fontsize=8)
    ax.set_xticks([0, 8, 16, 24, 32] if space == "global" else range(0, 33, 4))
    ax.set(xlim=(0, 32), ylim=(len(shown), 0))
    ax.tick_params(length=0, labelsize=8)
    ax.spines[:].set_visible(False)
    more = f"; {len(rows) - most_rows} more rows" if len(rows) > most_rows else ""
    unit = "bank" if space == "shared" else "word in a row of 128 bytes"
    ax.set_xlabel(f"{unit}; rows: first byte in {request['array']}{more}", fontsize=8)
    ax.set_title(title)


def samples(data: Dataset, rows: int = 4, cols: int = 10, *, part: str = "train", title: str = "") -> Figure:
    """The first images of a data set in a grid, each with its label above it; black is 0 and white is 1.

    Parameters
    ----------
    data : of square images, on the CPU
    rows, cols : of the grid; if the part has fewer samples, places stay empty
    part : "train" or "test"
    title : of the figure; default: the name of the data set and the part
    """
    if part not in ("train", "test"):
        raise ValueError(f'part must be "train" or "test", got {part!r}')
    if rows < 1 or cols < 1:
        raise ValueError(f"rows and cols must be at least 1, got {rows} and {cols}")
    side = math.isqrt(data.n_features)
    if side * side != data.n_features:
        raise ValueError(f"data must hold square images, got {data.n_features} features in {data.name!r}")
    images, labels = (data.x_train, data.y_train) if part == "train" else (data.x_test, data.y_test)
    figure, axes = subplots(rows, cols, size=(0.72 * cols, 0.9 * rows + 0.4), squeeze=False)
    for k, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if k < len(labels):
            ax.imshow(images[k].reshape(side, side), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_title(f"{labels[k]}", fontsize=8, weight="normal", loc="center", pad=2)
    figure.suptitle(title or f"{data.name}, {part}", x=0.01, ha="left", weight="bold")
    return figure


# --------------------------------------------------------------------------------------------------------------------
# The study: error against storage, data sets, shapes, hashes, speed. Rows are those of records of kind "training".

Rows = Sequence[Mapping[str, Any]]

# What a panel of `error_groups` compares. Elementwise hashing is drawn in each, so that panels can be compared.
GROUPS: dict[str, tuple[str, ...]] = {
    "Six ways to share weights by a hash": (
        "hashed:panels", "hashed:strips", "hashed:runs", "hashed:tiles", "hashed:codebook",
    ),
    "Fewer weights": ("small_dense", "random_edges", "magnitude", "obd", "low_rank", "low_rank_fixed"),
    "Fewer bits": ("fixed_point", "quantised", "hashed8:strips", "hashed:strips"),
    "Taught by a dense network": (
        "small_dense", "hashed:strips",
        "distilled:small_dense", "distilled:hashed:elementwise", "distilled:hashed:strips",
    ),
}  # fmt: skip
REFERENCE = "hashed:elementwise"
HIGHLIGHTED = ("small_dense", "low_rank", "magnitude", REFERENCE, "hashed:strips", "hashed8:strips", "quantised")
_ERROR_TICKS = (0.5, 0.7, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100)


def error_groups(rows: Rows, title: str, groups: Mapping[str, Sequence[str]] = GROUPS) -> Figure:
    """Test error against stored bytes, a panel a group of methods, with bands of one standard deviation of the seeds.

    The dense network is a dotted line, elementwise hashing is in every panel, and each panel has its own scale of
    errors. Each method has its name and its error at the point where it stores least.

    Parameters
    ----------
    rows : of one data set and one network (method, stored_bytes, test_error_mean, test_error_std)
    title : of the figure
    groups : {title of the panel: methods}
    """
    _need_rows(rows)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = subplots(lines, columns, size=(4.2 * columns, 3.7 * lines), squeeze=False)
    for ax, (name, methods) in zip(axes.flat, groups.items(), strict=False):
        _error_lines(ax, rows, tuple(dict.fromkeys((REFERENCE, *methods))))
        ax.set_title(name)
    for ax in axes.flat[len(groups) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("stored, KiB (log scale)")
    for ax in axes[:, 0]:
        ax.set_ylabel("test error, % (log scale)")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def accuracy(
    rows: Rows, title: str = "MNIST: test error against stored bytes, mean and standard deviation of the seeds",
    methods: Sequence[str] = HIGHLIGHTED,
) -> Figure:  # fmt: skip
    """The test error of some methods against stored bytes, a panel a depth; drawn as `error_groups` draws.

    Parameters
    ----------
    rows : of one data set (layers, and as in `error_groups`)
    title : of the figure
    methods : those that are drawn, beside the dense network
    """
    _need_rows(rows)
    depths = sorted({len(row["layers"]) for row in rows})
    figure, axes = subplots(1, len(depths), size=(4.9 * len(depths), 4.6), squeeze=False, sharey=True)
    shown = [r for r in rows if r["method"] in (*methods, "dense")]
    for ax, depth in zip(axes[0], depths, strict=True):
        mine = [r for r in shown if len(r["layers"]) == depth]
        _error_lines(ax, mine, methods)
        ax.set_title("-".join(map(str, mine[0]["layers"])))
        ax.set_xlabel("stored, KiB (log scale)")
    errors = [r["test_error_mean"] for r in shown]
    _error_axis(axes[0, 0], min(errors), max(errors))
    axes[0, 0].set_ylabel("test error, % (log scale)")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def _need_rows(rows: Rows) -> None:
    if not rows:
        raise ValueError("rows must hold at least one row to draw, got none: select others")


def _error_lines(ax: Axes, rows: Rows, methods: Sequence[str]) -> None:
    """Lines of ``methods``, and the dense network dotted."""
    drawn = [r for r in rows if r["method"] in (*methods, "dense")]
    stored = [r["stored_bytes"] / 1024 for r in drawn if r["method"] != "dense"]
    errors = [r["test_error_mean"] for r in drawn]
    ax.set(xscale="log", xlim=(min(stored) / 24, max(stored) * 1.5))  # room for names
    _error_axis(ax, min(errors), max(errors))
    labels = []
    for method in methods:
        style = METHODS[method]
        mine = sorted((r for r in rows if r["method"] == method), key=lambda r: r["stored_bytes"])
        if not mine:
            continue
        x, y = [r["stored_bytes"] / 1024 for r in mine], [r["test_error_mean"] for r in mine]
        spread = [r["test_error_std"] or 0.0 for r in mine]
        low, high = ([e + sign * s for e, s in zip(y, spread, strict=True)] for sign in (-1, 1))
        ax.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        dashes = (0, (4, 2)) if method.startswith("distilled:") else "-"
        ax.plot(
            x, y, color=style["color"], marker=style["marker"], linestyle=dashes, markersize=6, markeredgecolor="white",
        )  # fmt: skip
        labels.append((x[0], y[0], f"{method_name(method)} {y[0]:.2f}", style["color"], True))
    for r in rows:
        if r["method"] == "dense":
            ax.axhline(r["test_error_mean"], color=BLACK, linewidth=1.2, linestyle=(0, (1, 1.5)))
            text = f"dense, {r['stored_bytes'] / 1024:,.0f} KiB: {r['test_error_mean']:.2f}"
            ax.annotate(
                text, (0.01, r["test_error_mean"]), xycoords=("axes fraction", "data"), xytext=(0, -3), va="top",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
    write_apart(ax, labels, gap=11.5)
    for written in ax.texts:
        written.set_fontsize(8)
    powers = [4.0**k for k in range(12)]
    low_end, high_end = min(stored) / 1.2, ax.get_xlim()[1]
    ticks = [t for t in powers if low_end <= t <= high_end]
    ax.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
    ax.minorticks_off()


def _error_axis(ax: Axes, low: float, high: float) -> None:
    """A logarithmic axis of errors in percent, with a grid."""
    bottom, top = low * (low / high) ** 0.12 / 1.02, high * (high / low) ** 0.07 * 1.02
    ax.set(yscale="log", ylim=(bottom, top))
    ticks = [t for t in _ERROR_TICKS if bottom <= t <= top]
    if len(ticks) < 4:
        step = 1 if top - bottom < 0.9 else 2
        ticks = [k / 10 for k in range(step * math.ceil(10 * bottom / step), math.floor(10 * top) + 1, step)]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.yaxis.minorticks_off()
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)


UNSTABLE = 0.1  # a standard deviation of the seeds above this share of the mean: some seeds learned, others did not


def error_map(rows: Rows, title: str) -> Figure:
    """Test errors of methods on data sets as a coloured table, a panel a depth and compression.

    White is the error of elementwise hashing on the same data set, purple is less, orange more: the darkest is half or
    twice. The least of a column is bold. Below a mean whose standard deviation is over a tenth of it stands "±".

    Parameters
    ----------
    rows : dataset, layers, compression, method, test_error_mean, test_error_std
    title : of the figure
    """
    _need_rows(rows)
    found = {(len(r["layers"]), r["compression"], r["method"], r["dataset"]): r for r in rows}
    depths, compressions = (sorted({key[i] for key in found}, reverse=bool(i)) for i in (0, 1))
    methods, datasets = (list(dict.fromkeys(r[name] for r in rows)) for name in ("method", "dataset"))
    if REFERENCE not in methods:
        raise ValueError(f"rows must hold {REFERENCE}, which the others are compared with; got {', '.join(methods)}")
    size = (4.2 * len(compressions), (0.34 * len(methods) + 0.75) * len(depths) + 0.4)
    figure, axes = subplots(len(depths), len(compressions), size=size, squeeze=False, sharey=True)
    for (i, depth), (j, c) in ((a, b) for a in enumerate(depths) for b in enumerate(compressions)):
        ax = axes[i, j]
        table = [[found.get((depth, c, m, d)) for d in datasets] for m in methods]
        mean = np.array([[np.nan if r is None else r["test_error_mean"] for r in line] for line in table])
        with np.errstate(invalid="ignore"):
            ratio = np.log2(mean / mean[methods.index(REFERENCE)])
        ax.imshow(ratio, cmap=f"{DIVERGING}_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
        for x in range(len(datasets)):
            known = np.flatnonzero(~np.isnan(mean[:, x]))
            best = known[np.argmin(mean[known, x])] if known.size else -1
            for y in known:
                error, std = mean[y, x], table[y][x]["test_error_std"] or 0.0  # type: ignore[index]
                shaky = std > UNSTABLE * error
                ax.text(
                    x, y, _three_digits(error) + (f"\n±{_three_digits(std)}" if shaky else ""), ha="center",
                    va="center", fontsize=6.5 if shaky else 8, weight="bold" if y == best else "normal",
                    color="white" if abs(ratio[y, x]) > 0.75 else BLACK, linespacing=0.9,
                )  # fmt: skip
        ax.set_title(f"{depth - 2} hidden layer{'s' if depth > 3 else ''}, 1/{round(1 / c)}")
        ax.set_xticks(range(len(datasets)), [d.replace("_", "\n") for d in datasets], fontsize=7.5)
        ax.set_yticks(range(len(methods)), [method_name(m) for m in methods], fontsize=8)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def expansion(rows: Rows, title: str = "More hidden units from as many buckets") -> Figure:
    """Test error against hidden units at about equal storage, a panel a storage, with bands of one standard deviation.

    Parameters
    ----------
    rows : of networks with one hidden layer (method, compression, layers, stored_bytes, test_error_mean and _std)
    title : of the figure
    """
    _need_rows(rows)
    least = min(r["layers"][1] for r in rows)
    budgets = sorted({round(r["compression"] * r["layers"][1] / least, 9) for r in rows}, reverse=True)
    figure, axes = subplots(1, len(budgets), size=(4.2 * len(budgets), 3.6), squeeze=False)
    units = sorted({r["layers"][1] for r in rows})
    for ax, budget in zip(axes[0], budgets, strict=True):
        mine = [r for r in rows if round(r["compression"] * r["layers"][1] / least, 9) == budget]
        errors = [r["test_error_mean"] + s * (r["test_error_std"] or 0.0) for r in mine for s in (-1, 1)]
        ax.set(xscale="log", xlim=(units[0] / 1.25, units[-1] * 4.6), ylim=(min(errors) - 0.1, max(errors) + 0.1))
        labels = []
        for method in dict.fromkeys(r["method"] for r in mine):
            line = sorted((r for r in mine if r["method"] == method), key=lambda r: r["layers"][1])
            style = METHODS[method]
            x, y = [r["layers"][1] for r in line], [r["test_error_mean"] for r in line]
            spread = [r["test_error_std"] or 0.0 for r in line]
            low, high = ([e + s * d for e, d in zip(y, spread, strict=True)] for s in (-1, 1))
            ax.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
            ax.plot(x, y, color=style["color"], marker=style["marker"], markersize=7, markeredgecolor="white")
            labels.append((x[-1], y[-1], f"{method_name(method)} {y[-1]:.2f}", style["color"], False))
        write_apart(ax, labels)
        kib = [r["stored_bytes"] / 1024 for r in mine]
        ax.set_title(f"{min(kib):.0f} to {max(kib):.0f} KiB stored")
        ax.set_xticks(units, [f"{u:,}" for u in units])
        ax.minorticks_off()
        ax.set(xlabel="hidden units (log scale)", ylabel="test error, %")
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def sweeps(rows: Rows) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """Rows of the record strips_shape at one compression, by what is varied: {"stride": [("128", row), ...], ...}.

    The default, of height 128 and whole panels, is in each of "stride", "height" and "panel"; its stride is that of the
    panels' rows. Panels are named as they were cut to the matrix. "all three" are the others.
    """
    strips = [(dict(r["options"] or ()), r) for r in rows if r["method"] == "hashed:strips"]
    default = {o["stride"] for o, _ in strips if "panel" in o and "height" not in o}
    out: dict[str, list[tuple[str, Mapping[str, Any]]]] = {"stride": [], "height": [], "panel": [], "all three": []}
    for options, row in strips:
        spec = row["specs"][0][0]
        texts = {
            "stride": str(spec["stride"]),
            "height": str(spec["block"][0]),
            "panel": "{} x {}".format(*spec["panel"]),
        }
        given = options.keys()
        is_default = given == {"stride"} and options["stride"] in default
        for name, wanted in (("stride", {"stride"}), ("height", {"height", "stride"}), ("panel", {"panel", "stride"})):
            if given == wanted or is_default:
                out[name].append((texts[name], row))
        if {"height", "panel"} <= given:
            out["all three"].append(
                (f"height {texts['height']}, panel {texts['panel']}, stride {texts['stride']}", row)
            )
    size = {"stride": "stride", "height": "block", "panel": "panel"}
    for name, key in size.items():
        out[name].sort(key=lambda pair: np.prod(pair[1]["specs"][0][0][key]))
    return out


def strips_shape(rows: Rows, title: str = "Strips: what is varied, and the error") -> Figure:
    """Test error against stride, height and panel of strips, each varied alone; a row of panels a compression.

    The band is elementwise hashing, mean and standard deviation; the default is filled, the others are hollow.

    Parameters
    ----------
    rows : of the record strips_shape
    title : of the figure
    """
    _need_rows(rows)
    compressions = sorted({r["compression"] for r in rows}, reverse=True)
    size = (8.4, 2.9 * len(compressions) + 0.3)
    figure, axes = subplots(len(compressions), 3, size=size, squeeze=False, sharey="row")
    axis = {"stride": "stride, buckets", "height": "height, rows", "panel": "panel, rows x columns"}
    for line, c in zip(axes, compressions, strict=True):
        mine = [r for r in rows if r["compression"] == c]
        found = sweeps(mine)
        errors = [r["test_error_mean"] + s * (r["test_error_std"] or 0.0) for r in mine for s in (-1, 1)]
        default = {id(r) for _, r in found["stride"]} & {id(r) for _, r in found["height"]}
        for ax, name in zip(line, axis, strict=True):
            _error_axis(ax, min(errors), max(errors))
            for r in mine:
                if r["method"] == REFERENCE:
                    mean, std = r["test_error_mean"], r["test_error_std"] or 0.0
                    ax.axhspan(mean - std, mean + std, color=VERMILION, alpha=0.2, linewidth=0)
                    ax.axhline(mean, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 2)))
                    if name == "stride":
                        at = {"xycoords": ("axes fraction", "data"), "xytext": (0, -2), "textcoords": "offset points"}
                        ax.annotate("elementwise", (0.02, mean - std), va="top", color=VERMILION, fontsize=8, **at)
            pairs = found[name]
            y = [r["test_error_mean"] for _, r in pairs]
            spread = [r["test_error_std"] or 0.0 for _, r in pairs]
            ax.errorbar(range(len(y)), y, spread, color=BLUE, capsize=3, linewidth=1.2)
            for x, (_, r) in enumerate(pairs):
                face = BLUE if id(r) in default else "white"
                ax.plot(x, y[x], "D", color=face, markeredgecolor=BLUE, markersize=6)
                ax.annotate(
                    f"{y[x]:.2f}", (x, y[x]), xytext=(5, 5), textcoords="offset points", fontsize=8, color=BLUE,
                    path_effects=[withStroke(linewidth=3, foreground="white")], zorder=5,
                )  # fmt: skip
            ax.set_xticks(range(len(y)), [t.replace(" x ", " x\n") for t, _ in pairs], fontsize=8)
            ax.set_xlim(-0.5, len(y) - 0.3)
            ax.set_title(f"1/{round(1 / c)}: {name}")
            ax.set_xlabel(axis[name])
        line[0].set_ylabel("test error, % (log scale)")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


HASH_LOOKS = {"fmix32": (BLUE, "o"), "xxh32": (GREEN, "^"), "multiply_shift": (VERMILION, "X")}


def hash_errors(rows: Rows, title: str = "Three hash functions: the test error of every seed") -> Figure:
    """Test errors of single seeds by method and hash function, with a bar at their mean; a panel a compression.

    Parameters
    ----------
    rows : method, compression, hash, test_errors
    title : of the figure
    """
    _need_rows(rows)
    compressions = sorted({r["compression"] for r in rows}, reverse=True)
    cases = list(dict.fromkeys((r["method"], r["hash"]) for r in rows))
    size = (4.2 * len(compressions), 0.42 * len(cases) + 1.3)
    figure, axes = subplots(1, len(compressions), size=size, squeeze=False, sharey=True)
    for ax, c in zip(axes[0], compressions, strict=True):
        for r in rows:
            if r["compression"] == c:
                y, mean = cases.index((r["method"], r["hash"])), float(np.mean(r["test_errors"]))
                color, marker = HASH_LOOKS[r["hash"]]
                ax.plot(r["test_errors"], [y] * len(r["test_errors"]), marker, color=color, alpha=0.6, markersize=6,
                        markeredgecolor="white")  # fmt: skip
                ax.plot([mean, mean], [y - 0.32, y + 0.32], color=color, linewidth=2.5)
                ax.annotate(f"{mean:.2f}", (1, y), xycoords=("axes fraction", "data"), va="center", ha="right",
                            color=color, fontsize=9)  # fmt: skip
        low, high = ax.get_xlim()
        ax.set(xlim=(low, high + 0.16 * (high - low)), ylim=(len(cases) - 0.5, -0.5), xlabel="test error, %")
        ax.set_title(f"1/{round(1 / c)}")
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    axes[0, 0].set_yticks(range(len(cases)), [f"{method_name(m)}, {h}" for m, h in cases], fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def error_against_operations(rows: Rows, title: str, compressions: Sequence[float] = (1 / 8, 1 / 64)) -> Figure:
    """Test error against the arithmetic of one sample's forward pass, a panel a compression, and the dense network.

    Parameters
    ----------
    rows : of one data set and one network (method, compression, multiply_adds, additions, test_error_mean and _std)
    title : of the figure
    compressions : one a panel
    """
    shown = [r for r in rows if r["method"] == "dense" or r["compression"] in compressions]
    _need_rows(shown)
    figure, axes = subplots(1, len(compressions), size=(4.2 * len(compressions), 5.2), squeeze=False)
    work = [r["multiply_adds"] + r["additions"] for r in shown]
    for ax, c in zip(axes[0], compressions, strict=True):
        ax.set(xscale="log", xlim=(min(work) / 1.6, max(work) * 16))
        mine = [r for r in shown if r["method"] == "dense" or r["compression"] == c]
        errors = [r["test_error_mean"] for r in mine]
        _error_axis(ax, min(errors), max(errors))
        labels = []
        for r in mine:
            style, x = METHODS[r["method"]], r["multiply_adds"] + r["additions"]
            ax.errorbar(
                x, r["test_error_mean"], r["test_error_std"] or 0.0, color=style["color"], marker=style["marker"],
                markersize=7, markeredgecolor="white", capsize=2, linewidth=1.0, zorder=4,
            )  # fmt: skip
            labels.append((x, r["test_error_mean"], method_name(r["method"]), style["color"], False))
        write_apart(ax, labels, gap=10.5)
        for text in ax.texts:
            text.set_fontsize(8)
        ax.set_title(f"1/{round(1 / c)} stored")
        ax.set_xlabel("multiply-adds and additions a sample (log scale)")
    axes[0, 0].set_ylabel("test error, % (log scale)")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


class Traded(NamedTuple):
    """A structure whose speed and whose error were both measured, on different layers.

    Attributes
    ----------
    layer : its name in gpu_layer
    name : its structure, and for strips their height and stride
    way : the fastest kernel, or "materialise": W is made, then multiplied by cuBLAS
    speed : times as fast as the fastest dense product in the same dtype
    error, std : test error of the network whose layers are cut by the same rule, percent
    """

    layer: str
    name: str
    way: str
    speed: float
    error: float
    std: float


def traded(
    layer_rows: Rows, trained: Rows, compression: float, n: int, *, size: str = "8192x8192", dtype: str = "float16"
) -> list[Traded]:
    """The structures for which both a speed and an error are recorded, fastest first.

    A layer of gpu_layer and a row of training belong together if the same constructor arguments (height, panel, stride)
    give the ``HashSpec`` of the row's first layer.

    Parameters
    ----------
    layer_rows : of gpu_layer
    trained : of one network (mnist_grid, strips_shape): rows of hashed methods count, the first that fits
    compression, n, size, dtype : which products
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for r in layer_rows:
        case = (r["operation"], r["compression"], r["shape"][2], r.get("size"), r["dtype"])
        if case == ("matmul", compression, n, size, dtype):
            found.setdefault(r["layer"], []).append(r)
    points = []
    for layer, rows in found.items():
        match = next((t for t in trained if t["compression"] == compression and _cut_alike(rows[0], t)), None)
        if match is None:
            continue
        ms = {r.get("chosen", r["kernel"]): r["ms"] for r in sorted(rows, key=lambda r: -r["ms"])}
        ms["materialise"] = min(r["baselines"]["materialise_cublas"] for r in rows)
        way = min(ms, key=ms.__getitem__)
        dense = min(r["baselines"][f"cublas_{dtype}"] for r in rows)
        spec, name = match["specs"][0][0], rows[0]["structure"]
        if name == "strips":
            name = f"strips, {spec['block'][0]} high, stride {spec['stride'] or math.prod(spec['block'])}"
        error, std = match["test_error_mean"], match["test_error_std"] or 0.0
        points.append(Traded(layer, name, way, dense / ms[way], error, std))
    return sorted(points, key=lambda p: -p.speed)


def _cut_alike(timed: Mapping[str, Any], trained: Mapping[str, Any]) -> bool:
    """Whether a timed layer and the first layer of a trained network are of one structure."""
    if not trained["method"].startswith("hashed:") or trained["method"] != f"hashed:{timed['structure']}":
        return False
    there, here = trained["specs"][0][0], timed["spec"]
    options: dict[str, Any] = {}
    if timed["structure"] == "strips":
        options = {"height": here["block"][0], "stride": here["stride"]}
    if here["panel"] is not None:
        options["panel"] = tuple(here["panel"])
    make = getattr(HashSpec, timed["structure"])
    made = make(tuple(there["shape"]), there["compression"], seed=there["seed"], hash=there["hash"], **options)

    def cut(block: Sequence[int], panel: Sequence[int] | None, stride: int | None) -> tuple[Any, ...]:
        return tuple(block), None if panel is None else tuple(panel), stride or math.prod(block)

    return cut(made.block, made.panel, made.stride) == cut(there["block"], there["panel"], there["stride"])


def frontier(
    panels: Mapping[str, Sequence[Traded]], title: str, *, dense_error: float | None = None, columns: int = 2
) -> Figure:
    """Error of structures against their speed, a panel a case. Left and below is slow and accurate.

    Parameters
    ----------
    panels : {title: points of `traded`}
    title : of the figure
    dense_error : of the dense network, which is drawn at 1; percent
    columns : of panels
    """
    points = [p for found in panels.values() for p in found]
    _need_rows(points)  # type: ignore[arg-type]
    lines = -(-len(panels) // columns)
    figure, axes = subplots(lines, columns, size=(4.2 * columns, 3.4 * lines), squeeze=False, sharex=True)
    speeds = [*(p.speed for p in points), 1.0]
    for ax, (name, found) in zip(axes.flat, panels.items(), strict=False):
        ax.set(xscale="log", xlim=(min(speeds) / 1.6, max(speeds) * 160))
        ends = [p.error + s * p.std for p in found for s in (-1, 1)] + ([dense_error] if dense_error else [])
        _error_axis(ax, min(ends), max(ends))
        ax.axvline(1.0, color=BLACK, linewidth=1.2, linestyle=(0, (4, 2)))
        labels = []
        if dense_error:
            ax.plot(1.0, dense_error, "s", color=BLACK, markersize=7, markeredgecolor="white")
            labels.append((1.0, dense_error, f"dense {dense_error:.2f}", BLACK, False))
        for p in found:
            color, marker = LAYERS[p.layer][0], KERNEL_MARKERS.get(p.way, "P")
            ax.errorbar(p.speed, p.error, p.std, color=color, marker=marker, markersize=7, markeredgecolor="white",
                        markeredgewidth=0.5, capsize=3, linewidth=1.2, zorder=4)  # fmt: skip
            gap = ":\n" if p.speed < 0.5 else ": "  # there is little room up to 1
            labels.append((p.speed, p.error, f"{p.name}{gap}{p.way}", color, False))
        write_apart(ax, labels, gap=11.5)
        for label in ax.texts:
            label.set_fontsize(8)
        ax.set_title(name)
        ticks = [t for t in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8) if min(speeds) / 1.6 <= t]
        ax.set_xticks(ticks, [f"{t:g}" if t >= 1 else f"1/{round(1 / t)}" for t in ticks])
        ax.xaxis.minorticks_off()
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in axes[-1]:
        ax.set_xlabel("times as fast as dense (log scale)")
    for ax in axes[:, 0]:
        ax.set_ylabel("test error, % (log scale)")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


# --------------------------------------------------------------------------------------------------------------------
# Larger than memory, and several ranks

# One colour and one marker a way to spread a layer (`hashedmm.scale`), and what a line of it is called.
SPREAD: dict[str, tuple[str, str, str]] = {
    "stream": (BLUE, "D", "streamed"),
    "panels": (PURPLE, "v", "panels split"),
    "data": (ORANGE, "o", "samples split"),
    "dense": (BLACK, "s", "dense"),
}
LANES = {"up": (SKY, "copy up"), "product": (GREEN, "product"), "down": (ORANGE, "copy down")}


def stream_timeline(panels: Mapping[str, Sequence[Any]], title: str, unit: str = "ms") -> Figure:
    """What a stream does when: a row for copies up, for products and for copies down, a numbered bar a window.

    Parameters
    ----------
    panels : {title: events (what, window, start, stop), as `hashedmm.scale.timeline` gives them}; times in ``unit``
    title : of the figure
    unit : of the times
    """
    if not all(panels.values()) or not panels:
        raise ValueError("panels must have at least one event each, got an empty one")
    last = max(e[3] for events in panels.values() for e in events)
    heights = [len({e[0] for e in events}) + 0.9 for events in panels.values()]
    size = 8.4, 0.7 + 0.42 * sum(heights)
    figure, axes = subplots(len(panels), 1, size=size, sharex=True, squeeze=False, height_ratios=heights)
    for ax, (name, events) in zip(axes[:, 0], panels.items(), strict=True):
        lanes = [lane for lane in LANES if any(e[0] == lane for e in events)]
        for what, window, start, stop in events:
            y, color = lanes.index(what), LANES[what][0]
            ax.barh(y, stop - start, left=start, height=0.72, color=color, edgecolor="white", linewidth=1.2)
            if stop - start > 0.018 * last:
                ax.text((start + stop) / 2, y, str(window), ha="center", va="center", fontsize=8)
        end = max(e[3] for e in events)
        ax.axvline(end, color=BLACK, linewidth=1.0, linestyle=(0, (4, 2)))
        ax.annotate(f"{end:.3g} {unit}", (end, len(lanes) - 0.5), xytext=(3, 3), textcoords="offset points", fontsize=9)
        ax.set(xlim=(0, 1.1 * last), ylim=(len(lanes) - 0.5, -0.5))
        ax.set_yticks(range(len(lanes)), [LANES[lane][1] for lane in lanes])
        ax.tick_params(axis="y", length=0)
        ax.set_title(name)
    axes[-1, 0].set_xlabel(f"time, {unit}; the numbers are windows")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    return figure


def bytes_text(count: float) -> str:
    """Bytes in a decimal unit, as memory and links are sold: 8.6 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.0f} TB" if count >= 999.5 else f"{count:.3g} TB"


def seconds_text(seconds: float) -> str:
    """Seconds in the unit that leaves few digits."""
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 0.9995 or unit == "us":
            value = seconds * factor
            return f"{value:,.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"
    raise AssertionError


def _seconds_axis(ax: Axes, low: float, high: float) -> None:
    """A logarithmic axis of seconds, in units that one says: a tick a power of ten, or also at 2 and 5 of them."""
    ax.set(yscale="log", ylim=(low, high))
    steps = (1, 2, 5) if high / low < 100 else (1,)
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [step * 10.0**p for p in powers for step in steps if low <= step * 10.0**p <= high]
    ax.set_yticks(ticks, [seconds_text(t) for t in ticks])
    ax.yaxis.minorticks_off()
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)


Line = tuple[str, Sequence[float], Sequence[float]]  # a key of SPREAD, x, y


def time_against_size(
    lines: Mapping[str, Line], points: Sequence[tuple[str, float, float, str]], ends: Mapping[str, float], title: str,
) -> Figure:  # fmt: skip
    """Seconds against the side of a square matrix: what the model says as lines, what was measured as points, and where
    memory ends.

    Parameters
    ----------
    lines : {name: (key of `SPREAD`, sides, seconds)}
    points : (key, side, seconds, text) that were measured
    ends : {what no longer fits: the side from which on}
    title : of the figure
    """
    sides = [x for _, xs, _ in lines.values() for x in xs]
    times = [y for _, _, ys in lines.values() for y in ys] + [p[2] for p in points]
    if not times:
        raise ValueError("lines must have at least one, got none")
    figure, ax = subplots(size=(8.4, 4.6))
    ax.set(xscale="log", xlim=(min(sides) / 1.15, max(sides) * 5.2))
    _seconds_axis(ax, min(times) / 2, max(times) * 4)
    labels = []
    for name, (key, xs, ys) in lines.items():
        color = SPREAD[key][0]
        ax.plot(xs, ys, color=color, linestyle="-" if key != "dense" else (0, (4, 2)))
        labels.append((xs[-1], ys[-1], name, color, False))
    for key, x, y, _ in points:
        ax.plot(x, y, SPREAD[key][1], color=SPREAD[key][0], markersize=8, markeredgecolor="white", zorder=4)
    write_apart(ax, [(x, y, text, SPREAD[key][0], True) for key, x, y, text in points])
    for name, side in ends.items():
        ax.axvline(side, color=GREY, linewidth=1.0, linestyle=":")
        ax.text(side, min(times) / 1.8, f"{name} ", rotation=90, ha="right", va="bottom", fontsize=8, color=GREY)
    write_apart(ax, labels)
    ticks = [s for s in (2**k for k in range(10, 31)) if min(sides) / 1.01 <= s <= max(sides) * 1.01]
    ax.set_xticks(ticks, [f"{s // 1024:,}k" for s in ticks])
    ax.xaxis.minorticks_off()
    ax.set_xlabel("rows and columns of W, in units of 1,024 (log scale)")
    ax.set_ylabel("seconds (log scale)")
    ax.set_title(title)
    return figure


def over_ranks(
    lines: Mapping[str, Line], points: Sequence[tuple[str, float, float]], title: str, *,
    ylabel: str = "seconds a training step (log scale)",
) -> Figure:  # fmt: skip
    """Seconds against the number of GPUs or ranks: the model's lines, carried on beyond the points that were measured.

    Parameters
    ----------
    lines : {name: (key of `SPREAD`, ranks, seconds)}
    points : (key, ranks, seconds) that were measured
    title, ylabel : of the axes
    """
    figure, ax = subplots(size=(8.4, 4.2))
    draw_over_ranks(ax, lines, points)
    ax.set_ylabel(ylabel)
    ax.set_title(title)
    return figure


def draw_over_ranks(ax: Axes, lines: Mapping[str, Line], points: Sequence[tuple[str, float, float]] = ()) -> None:
    """The axes of `over_ranks`."""
    ranks = sorted({x for _, xs, _ in lines.values() for x in xs})
    times = [y for _, _, ys in lines.values() for y in ys] + [y for *_, y in points]
    if not times:
        raise ValueError("lines must have at least one, got none")
    ax.set(xscale="log", xlim=(ranks[0] / 1.15, max(ranks[-1], 2 * ranks[0]) * (ranks[-1] / ranks[0]) ** 0.45 * 1.2))
    _seconds_axis(ax, min(times) / 1.8, max(times) * 1.8)
    labels = []
    for name, (key, xs, ys) in lines.items():
        color, marker, _ = SPREAD[key]
        ax.plot(xs, ys, color=color, linestyle="-" if key != "dense" else (0, (4, 2)))
        ax.plot(xs, ys, marker, color=color, markersize=4, markerfacecolor="white")
        labels.append((xs[-1], ys[-1], name, color, False))
    for key, x, y in points:
        color, marker, _ = SPREAD[key]
        ax.plot(x, y, marker, color=color, markersize=9, markeredgecolor="white", zorder=4)
    write_apart(ax, labels)
    ax.set_xticks(ranks, [f"{r:,}" for r in ranks])
    ax.xaxis.minorticks_off()
    ax.set_xlabel("GPUs (log scale)")


def bytes_sent(rows: Sequence[tuple[str, str, float]], title: str, xlabel: str = "bytes (log scale)") -> Figure:
    """Bytes as horizontal bars on a logarithmic axis, each with its number.

    Parameters
    ----------
    rows : (name, key of `SPREAD`, bytes), from the top
    title, xlabel : of the axes
    """
    figure, ax = subplots(size=(8.4, 1.1 + 0.32 * len(rows)))
    draw_bytes(ax, rows)
    ax.set_xlabel(xlabel)
    ax.set_title(title)
    return figure


def draw_bytes(ax: Axes, rows: Sequence[tuple[str, str, float]], limit: float | None = None) -> None:
    """The axes of `bytes_sent`; a dashed line at ``limit`` bytes, if there is one."""
    counts = [count for *_, count in rows if count] + ([limit] if limit else [])
    if not counts:
        raise ValueError("rows must have bytes, got none")
    low, high = 10 ** math.floor(math.log10(min(counts)) - 0.3), max(counts)
    ax.set(xscale="log", xlim=(low, high * (high / low) ** 0.32))
    for y, (_, key, count) in enumerate(rows):
        color = SPREAD[key][0]
        ax.barh(y, max(count - low, 0), left=low, height=0.66, color=color, alpha=0.45 if key == "dense" else 1.0)
        text = bytes_text(count) if count else "none"
        ax.annotate(
            text, (max(count, low), y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9,
            path_effects=[withStroke(linewidth=3, foreground="white")], zorder=5,
        )  # fmt: skip
    if limit:
        ax.axvline(limit, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 2)))
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    step = 3 if len(powers) > 5 else 1
    ticks = [10.0**p for p in powers if p % step == 0]
    ax.set_xticks(ticks, [bytes_text(t) for t in ticks])
    ax.xaxis.minorticks_off()
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.4, -0.6)
