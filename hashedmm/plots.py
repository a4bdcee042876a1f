"""Figures: one look for the whole kit (colour-blind-safe colours with markers, direct labels, alt text).

Functions take an Axes or return a Figure; nothing here computes a result. Importing this module sets matplotlib's
defaults to the kit's style. Needs matplotlib (and IPython for ``show``).
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

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
}

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


def png(figure: Figure) -> bytes:
    """The figure as a PNG image at one and a half times the screen's density."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=1.5 * figure.dpi, pil_kwargs={"optimize": True})
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
    from IPython.display import Markdown, display

    display(Markdown("\n\n".join(source_text(f, docstring=docstring) for f in functions)))


def source_text(function: Any, *, docstring: bool = False) -> str:
    """The source of one function or class as a Markdown block of Python code, its file in the first line.

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
    return "\n".join(["```python", f"# {function.__module__.replace('.', '/')}.py", *kept, "```"])


def kernel_source(name: str) -> None:
    """Show a file of ``hashedmm/kernels`` in a notebook: a kernel by its name ("naive") or a header ("hash.cuh")."""
    from IPython.display import Markdown, display

    file = name if "." in name else f"{name}.cu"
    text = (resources.files("hashedmm") / "kernels" / file).read_text(encoding="utf-8")
    display(Markdown(f"```cuda\n// hashedmm/kernels/{file}\n{text}```"))


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
    _write_apart(ax, labels)

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


def _write_apart(ax: Axes, labels: Sequence[tuple[float, float, str, str, bool]], gap: float = 13.0) -> None:
    """Write labels (x, y, text, colour, whether left of the point) beside their points, pushed apart up and down where
    they would cover each other: at least ``gap`` typographer's points between two on one side of about the same x. The
    limits of the axes must be set."""
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
            ax.annotate(
                text, (x, y), xytext=(-8 if left else 8, a - w), textcoords="offset points",
                ha="right" if left else "left", va="center", color=color, annotation_clip=False,
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip


def _middle(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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
    drawn: list[tuple[dict[int, dict[int, list[int]]], str]] = []
    for request in requests:
        rows: dict[int, dict[int, list[int]]] = {}
        for lane, address in enumerate(request["addresses"]):
            if address is not None:
                for word in range(address // 4, (address + request["size"] - 1) // 4 + 1):
                    rows.setdefault(word // 32, {}).setdefault(word % 32, []).append(lane)
        drawn.append((rows, str(request["array"])))
    heights = [min(len(rows), most_rows) + 2.6 for rows, _ in drawn]
    figure, axes = subplots(len(drawn), 1, size=(8.6, 0.24 * sum(heights) + 0.2), squeeze=False, height_ratios=heights)
    for ax, (rows, array), title in zip(axes[:, 0], drawn, titles, strict=True):
        shown = sorted(rows)[:most_rows]
        words = [len({row for row, cells in rows.items() if column in cells}) for column in range(32)]
        tint = np.zeros((len(shown), 32, 4))  # red, green, blue and how strong
        for y, row in enumerate(shown):
            for column in range(32):
                lanes = rows[row].get(column, [])
                if space == "global" and any(c // 8 == column // 8 for c in rows[row]):
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
        more = f"; {len(rows) - len(shown)} more rows" if len(rows) > len(shown) else ""
        unit = "bank" if space == "shared" else "word in a row of 128 bytes"
        ax.set_xlabel(f"{unit}; rows: first byte in {array}{more}", fontsize=8)
        ax.set_title(title)
    return figure
