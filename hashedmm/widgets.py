"""Things to drag in a notebook: each idea as a picture that follows its controls.

``widgets.hash_explorer()`` as the last line of a cell shows the controls, the picture and its numbers.
``widgets.static("hash_explorer", seed=3)`` shows the picture and its numbers alone: it needs no ipywidgets, and a saved
notebook keeps it. Both draw with the same plain function, ``widgets.hash_view(seed=3)`` -> matplotlib Figure.

Every widget is three functions: one computes the numbers from the parameters, one draws them, one says them in a
sentence (the picture's alternative text). `WIDGETS` lists all. Imports hashing, sketch, explain, nn, records, scale and
plots; ipywidgets only when a widget is made.
"""

from __future__ import annotations

import html
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hashedmm import bench, build, datasets, experiments, explain, plots, records, scale, sketch
from hashedmm.experiments import compression_text
from hashedmm.hashing import HASHES, HashSpec, bucket_loads, derive_seed, poisson_pmf
from hashedmm.nn import MLP, SMALL_LAYER, to_numpy
from hashedmm.reference import materialise

WARP = 32  # lanes
SECTOR, LINE = 32, 128  # bytes: what global memory moves, and what a cache keeps together


# --------------------------------------------------------------------------------------------------------------------
# Parameters: what a control may say. Each is checked in the same way whether it comes from a control or from a call.


@dataclass(frozen=True)
class Whole:
    """A whole number on a slider. ``high`` may depend on the other parameters."""

    label: str
    default: int
    low: int
    high: int | Callable[[Mapping[str, Any]], int]
    step: int = 1

    def most(self, settings: Mapping[str, Any]) -> int:
        """The largest value, the other parameters being ``settings``."""
        return self.high(settings) if callable(self.high) else self.high

    def check(self, name: str, value: Any, settings: Mapping[str, Any]) -> int:
        most = self.most(settings)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if not self.low <= value <= most:
            raise ValueError(f"{name} must be from {self.low} to {most}, got {value}")
        return int(value)


@dataclass(frozen=True)
class Real:
    """A positive number on a logarithmic slider, whose value can be typed, too."""

    label: str
    default: float
    low: float
    high: float

    def check(self, name: str, value: Any, settings: Mapping[str, Any]) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9):  # a slider's ends are rounded powers of ten
            raise ValueError(f"{name} must be from {self.low:g} to {self.high:g}, got {value:g}")
        return float(value)


@dataclass(frozen=True)
class Choice:
    """One of several values, from a menu, from buttons or, where they have an order, on a slider.

    ``options`` is {text: value}, or a function that finds it (in records, say) when it is needed.
    """

    label: str
    options: Mapping[str, Any] | Callable[[], Mapping[str, Any]]
    default: Any = None  # the first option's value
    look: str = "menu"  # "menu", "buttons" or "slider"

    def found(self) -> Mapping[str, Any]:
        """The options, as they are now."""
        return self.options() if callable(self.options) else self.options

    def check(self, name: str, value: Any, settings: Mapping[str, Any]) -> Any:
        options = self.found()
        if value not in list(options.values()):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, options.values()))}, got {value!r}")
        return value


@dataclass(frozen=True)
class Several:
    """Any of several values, one button each that is pressed or not. The parameter is a tuple."""

    label: str
    options: Callable[[], Mapping[str, Any]]
    pressed: tuple[Any, ...] = ()  # at first; all if none

    @property
    def default(self) -> tuple[Any, ...]:
        values = tuple(self.options().values())
        return tuple(v for v in values if v in self.pressed) or values

    def check(self, name: str, value: Any, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        options = self.options()
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise TypeError(f"{name} must be a tuple of values, got {value!r}")
        chosen = tuple(value)
        if unknown := [v for v in chosen if v not in options.values()]:
            raise ValueError(f"{name} may hold {', '.join(map(repr, options.values()))}, got {unknown[0]!r}")
        return chosen


@dataclass(frozen=True)
class Cells:
    """Cells of a square grid of buttons that are pressed. The parameter is a sequence of (row, column)."""

    label: str
    side: int
    default: tuple[tuple[int, int], ...] = ()

    def check(self, name: str, value: Any, settings: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
        try:
            cells = tuple(sorted({(int(i), int(j)) for i, j in value}))
        except (TypeError, ValueError):
            raise TypeError(f"{name} must hold pairs (row, column), got {value!r}") from None
        if wrong := [c for c in cells if not (0 <= c[0] < self.side and 0 <= c[1] < self.side)]:
            raise ValueError(f"{name} must hold rows and columns from 0 to {self.side - 1}, got {wrong[0]}")
        return cells


Parameter = Whole | Real | Choice | Several | Cells
Table = list[tuple[str, str]]  # what a number is, and the number


# --------------------------------------------------------------------------------------------------------------------
# A widget


@dataclass(frozen=True, eq=False)
class Widget:
    """One thing to drag.

    Attributes
    ----------
    name : what its functions, its picture's class in the page (``hashedmm-view-NAME``) and `WIDGETS` call it
    notebook : the notebook that it belongs to
    parameters : {name: what its control may say}, in the order of the controls
    numbers : computes what is shown from the parameters; what it raises is shown to the reader
    draw : a Figure of these numbers, always of the same size, ``size`` inches
    say : what the picture shows, in one sentence, from the numbers
    table : the numbers that the picture shows
    needs : names of arguments without a control, which come first in every call
    check : raises TypeError or ValueError if those arguments are wrong
    """

    name: str
    notebook: str
    parameters: Mapping[str, Parameter]
    numbers: Callable[..., Any]
    draw: Callable[[Any], Figure]
    say: Callable[[Any], str]
    table: Callable[[Any], Table]
    size: tuple[float, float]
    needs: tuple[str, ...] = ()
    check: Callable[..., None] | None = None

    def settings(self, **params: Any) -> dict[str, Any]:
        """All parameters: ``params``, checked, and the defaults of the others.

        Raises
        ------
        TypeError, ValueError
            If there is no such parameter, or a value is not allowed.
        """
        if unknown := set(params) - set(self.parameters):
            raise TypeError(f"{self.name} takes {', '.join(self.parameters)}; got {sorted(unknown)[0]!r}")
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if name in params:
                values[name] = params[name]
            elif isinstance(parameter, Choice) and parameter.default is None:
                values[name] = _first(parameter, name)
            else:
                values[name] = parameter.default
        for name, parameter in self.parameters.items():  # a whole number's end may depend on what comes before it
            if name not in params and isinstance(parameter, Whole) and callable(parameter.high):
                values[name] = min(parameter.default, parameter.most(values))
            values[name] = parameter.check(name, values[name], values)
        return values

    def computed(self, *given: Any, **params: Any) -> Any:
        """The numbers for these parameters; TypeError or ValueError if one is wrong."""
        self._check(given)
        return self.numbers(*given, **self.settings(**params))

    def _check(self, given: tuple[Any, ...]) -> None:
        if len(given) != len(self.needs):
            raise TypeError(f"{self.name} needs {', '.join(self.needs) or 'no argument but its parameters'} first")
        if self.check:
            self.check(*given)

    def view(self, *given: Any, **params: Any) -> Figure:
        """The picture for these parameters (all have defaults), as a matplotlib Figure."""
        return self.draw(self.computed(*given, **params))

    def alt(self, *given: Any, **params: Any) -> str:
        """One sentence on what `view` shows for these parameters: its alternative text."""
        return self.say(self.computed(*given, **params))

    def factory(self, *given: Any, **start: Any) -> Any:
        """The controls, the picture and its numbers, for the last line of a cell.

        Parameters
        ----------
        given : what the widget needs (``needs``)
        start : where the controls begin

        Raises
        ------
        ImportError
            If ipywidgets is not installed.
        TypeError, ValueError
            If a value to begin with is wrong.
        """
        ipywidgets = _ipywidgets()
        self._check(given)
        settings = self.settings(**start)
        width, height = (round(100 * side) for side in self.size)
        layout = ipywidgets.Layout(
            width=f"{width}px",
            height=f"{height}px",
            max_width="100%",
            object_fit="contain",
            flex="0 0 auto",
            margin="0",
        )
        image = ipywidgets.Image(format="png", layout=layout)
        image.add_class(f"hashedmm-view-{self.name}")
        text = ipywidgets.HTML(layout=ipywidgets.Layout(min_height="72px", width="auto", max_width=f"{width}px"))
        text.add_class(f"hashedmm-text-{self.name}")
        controls = {
            name: _control(ipywidgets, parameter, settings[name], settings)
            for name, parameter in self.parameters.items()
        }
        busy = False

        def refresh(change: Any = None) -> None:
            nonlocal busy
            if busy:  # the end of a slider is being moved
                return
            busy = True
            try:
                values = {name: control.value() for name, control in controls.items()}
                for name, parameter in self.parameters.items():
                    if isinstance(parameter, Whole) and callable(parameter.high):
                        slider = controls[name].shown
                        slider.max = parameter.most(values)  # takes the slider's value along
                        values[name] = slider.value
                figure, page = self._shown(given, values)
                image.value, text.value = plots.png(figure), page
            finally:
                busy = False

        for control in controls.values():
            control.watch(refresh)
        refresh()
        box = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="flex-start", max_width=f"{width}px")
        return ipywidgets.VBox([ipywidgets.Box([c.shown for c in controls.values()], layout=box), image, text])

    def _shown(self, given: tuple[Any, ...], values: Mapping[str, Any]) -> tuple[Figure, str]:
        """The picture, and the HTML under it, which says what it shows; where there is none, why."""
        try:
            numbers = self.numbers(*given, **values)
        except (ValueError, FileNotFoundError) as e:
            figure = Figure(figsize=self.size)
            words = f"This cannot be drawn. {e}"
            figure.text(0.03, 0.9, _wrapped(words, 90), va="top", color=plots.VERMILION)
            return figure, f'<p role="alert">{html.escape(words)}</p>'
        return self.draw(numbers), self._html(numbers)

    def _html(self, numbers: Any) -> str:
        rows = " &nbsp; ".join(f"{html.escape(k)}&nbsp;<b>{html.escape(v)}</b>" for k, v in self.table(numbers))
        said = html.escape(self.say(numbers))
        return f'<div role="status" aria-live="polite" style="line-height:1.5">{said}<br>{rows}</div>'

    def static(self, *given: Any, **params: Any) -> None:
        """Show the picture and its numbers in a notebook, without controls."""
        from IPython.display import HTML, display

        numbers = self.computed(*given, **params)
        plots.show(self.draw(numbers), self.say(numbers))
        display(HTML(self._html(numbers)))


def _first(parameter: Choice, name: str) -> Any:
    options = parameter.found()
    if not options:
        raise ValueError(f"{name}: there is nothing to choose from, no record in data/results has it")
    return next(iter(options.values()))


def _ipywidgets() -> ModuleType:
    try:
        import ipywidgets
    except ImportError:
        raise ImportError(
            "the widgets need ipywidgets: pip install ipywidgets (or `make lab` in a checkout). "
            "hashedmm.widgets.static(NAME) shows the same pictures without it"
        ) from None
    return ipywidgets


class _Control(NamedTuple):
    """A control in the page: what is shown, how its value is read, and how a change is heard."""

    shown: Any
    value: Callable[[], Any]
    watch: Callable[[Callable[..., None]], None]


def _control(ipw: ModuleType, parameter: Parameter, value: Any, settings: Mapping[str, Any]) -> _Control:
    """The control of one parameter. All report a change when it is complete, not while it is dragged."""
    look: dict[str, Any] = {"description": parameter.label, "style": {"description_width": "initial"}}
    wide = ipw.Layout(width="340px")
    if isinstance(parameter, Several):
        return _toggles(ipw, parameter, value)
    if isinstance(parameter, Cells):
        return _grid(ipw, parameter, value)
    shown: Any
    if isinstance(parameter, Whole):
        shown = ipw.IntSlider(
            value, min=parameter.low, max=parameter.most(settings), step=parameter.step, continuous_update=False,
            layout=wide, **look,
        )  # fmt: skip
    elif isinstance(parameter, Real):
        shown = ipw.FloatLogSlider(
            value, base=10, min=math.log10(parameter.low), max=math.log10(parameter.high), step=0.02,
            continuous_update=False, readout_format=".3g", layout=wide, **look,
        )  # fmt: skip
    else:
        options = list(parameter.found().items())
        if parameter.look == "slider":
            shown = ipw.SelectionSlider(options=options, value=value, continuous_update=False, layout=wide, **look)
        elif parameter.look == "buttons":
            look["style"] = {**look["style"], "button_width": "auto"}
            shown = ipw.ToggleButtons(options=options, value=value, **look)
        else:
            shown = ipw.Dropdown(options=options, value=value, layout=wide, **look)
    return _Control(shown, lambda: shown.value, lambda heard: shown.observe(heard, names="value"))


def _toggles(ipw: ModuleType, parameter: Several, value: tuple[Any, ...]) -> _Control:
    options = parameter.options()
    buttons = {
        option: ipw.ToggleButton(option in value, description=text, layout=ipw.Layout(width="auto"))
        for text, option in options.items()
    }
    label = ipw.Label(parameter.label)
    box = ipw.Layout(display="flex", flex_flow="row wrap", align_items="center")

    def watch(heard: Callable[..., None]) -> None:
        for button in buttons.values():
            button.observe(heard, names="value")

    def pressed() -> tuple[Any, ...]:
        return tuple(option for option, button in buttons.items() if button.value)

    return _Control(ipw.Box([label, *buttons.values()], layout=box), pressed, watch)


def _grid(ipw: ModuleType, parameter: Cells, value: tuple[tuple[int, int], ...]) -> _Control:
    small = ipw.Layout(width="17px", height="17px", padding="0px", margin="0px", border="1px solid #bbbbbb")
    buttons = {
        (i, j): ipw.ToggleButton(
            (i, j) in value, tooltip=f"row {i}, column {j}", layout=small,
            button_style="primary" if (i, j) in value else "",
        )
        for i in range(parameter.side)
        for j in range(parameter.side)
    }  # fmt: skip
    clear = ipw.Button(description="Clear", tooltip="take all painted squares away", layout=ipw.Layout(width="70px"))
    grid = ipw.GridBox(
        list(buttons.values()),
        layout=ipw.Layout(grid_template_columns=f"repeat({parameter.side}, 18px)", grid_gap="0px"),
    )
    heard: list[Callable[..., None]] = []
    clearing = False

    def changed(change: Any = None) -> None:
        if change is not None:
            change["owner"].button_style = "primary" if change["new"] else ""
        if not clearing:
            for function in heard:
                function(change)

    def erase(_: Any) -> None:
        nonlocal clearing
        clearing = True
        for button in buttons.values():
            button.value = False
        clearing = False
        changed()

    for button in buttons.values():
        button.observe(changed, names="value")
    clear.on_click(erase)

    def pressed() -> tuple[tuple[int, int], ...]:
        return tuple(cell for cell, button in buttons.items() if button.value)

    return _Control(ipw.VBox([ipw.HBox([ipw.Label(parameter.label), clear]), grid]), pressed, heard.append)


# --------------------------------------------------------------------------------------------------------------------
# Words and looks that several pictures share


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def size_text(count: float) -> str:
    """Bytes in the unit that leaves few digits: 512 B, 1.5 KiB, 3.03 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return (
                f"{count:,.0f} B" if unit == "B" else f"{count:.3g} {unit}" if count < 999.5 else f"{count:.0f} {unit}"
            )
        count /= 1024
    raise AssertionError


def digits(value: float) -> str:
    """Three digits that count, without an exponent between a thousandth and a million."""
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _labelled_bars(
    ax: Any, names: Sequence[str], values: Sequence[float], texts: Sequence[str], colors: Sequence[str],
    low: float = 0.0,
) -> None:  # fmt: skip
    """Horizontal bars from ``low`` on, the first on top, each with its text at its end."""
    for y, (value, text, color) in enumerate(zip(values, texts, colors, strict=True)):
        ax.barh(y, max(value - low, 0), left=low, height=0.66, color=color)
        ax.annotate(text, (max(value, low), y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.4, -0.6)


COMPRESSIONS = {compression_text(1 / d): 1 / d for d in (64, 32, 16, 8, 4, 2)} | {"1": 1.0}


# --------------------------------------------------------------------------------------------------------------------
# 1. The hash explorer

# A structure's options for matrices that one can look at.
SMALL_OPTIONS: dict[str, dict[str, Any]] = {
    "elementwise": {},
    "panels": {"panel": (16, 24)},
    "strips": {"height": 8, "panel": (16, 24)},
    "runs": {"length": 8},
    "tiles": {"tile": 8},
    "codebook": {"length": 8},
}


class HashNumbers(NamedTuple):
    """What `hash_view` shows; ``pairs`` counts colliding pairs of inputs in a row of W, the mean over the rows."""

    spec: HashSpec
    weights: np.ndarray
    loads: np.ndarray
    expected: np.ndarray
    pairs: float
    expected_pairs: float | None


def hash_numbers(structure: str, compression: float, seed: int, hash: str, shape: tuple[int, int]) -> HashNumbers:
    """A small hashed matrix with normally distributed buckets, its loads, and pairs of inputs that collide in a row.

    The expected loads are Poisson's, of weights that are thrown at buckets at random. The expected pairs hold for
    blocks that are one input wide: two inputs of a panel collide with probability 1/T.
    """
    spec = getattr(HashSpec, structure)(shape, compression, seed=seed, hash=hash, **SMALL_OPTIONS[structure])
    w = np.random.default_rng(0).standard_normal(spec.n_buckets)
    loads = bucket_loads(spec)
    mean, most = float(loads.mean()), int(loads.max())
    counts = [np.unique(row, return_counts=True)[1] for row in spec.indices()[0]]
    pairs = float(np.mean([np.sum(k * (k - 1) / 2) for k in counts]))
    expected = None
    if spec.block[1] == 1:
        per_row = sum(g.rows * g.grid_cols * g.panel_cols * (g.panel_cols - 1) / 2 / g.candidates for g in spec.regions)
        expected = per_row / spec.rows
    most = max(most, math.ceil(mean + 4 * math.sqrt(mean)))  # where nothing more is to be expected
    thrown = spec.n_buckets * poisson_pmf(mean, most)
    return HashNumbers(spec, materialise(w, spec), loads, thrown, pairs, expected)


def draw_hash(n: HashNumbers) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, size=HASH_SIZE, width_ratios=[1.45, 1])
    rows, cols = n.spec.shape
    title = f"W: {rows} x {cols} from {_plural(n.spec.n_buckets, 'bucket')}"
    plots.matrix(left, n.weights, title, limit=3.0)
    left.set(xlabel="input j", ylabel="output i")
    if n.spec.panel:
        for i in range(n.spec.panel[0], rows, n.spec.panel[0]):
            left.axhline(i - 0.5, color=plots.BLACK, linewidth=0.9)
        for j in range(n.spec.panel[1], cols, n.spec.panel[1]):
            left.axvline(j - 0.5, color=plots.BLACK, linewidth=0.9)
    k = np.arange(len(n.expected))
    counted = np.bincount(n.loads, minlength=len(k))
    right.bar(k, counted, width=0.8, color=plots.SKY)
    right.plot(k, n.expected, "o", color=plots.VERMILION, markersize=4)
    high = max(float(counted.max()), float(n.expected.max()))
    right.set(title="Loads of the buckets", ylim=(0, 1.3 * high), xlim=(-0.8, len(k) - 0.2))
    right.set(xlabel="load, weights a bucket", ylabel="buckets")
    right.xaxis.get_major_locator().set_params(integer=True)
    for y, text, color in ((0.98, "bars: counted", plots.BLUE), (0.91, "dots: thrown at random", plots.VERMILION)):
        right.text(0.98, y, text, color=color, ha="right", va="top", transform=right.transAxes)
    return figure


def say_hash(n: HashNumbers) -> str:
    s = n.spec
    wanted = "" if n.expected_pairs is None else f", about {n.expected_pairs:,.1f} being expected"
    return (
        f"A {s.rows} x {s.cols} matrix ({s.structure}, {s.hash}, seed {s.seed}) draws its weights from "
        f"{_plural(s.n_buckets, 'bucket')}; a bucket serves {n.loads.min()} to {n.loads.max()} weights, "
        f"{n.loads.mean():.3g} on average, and in a row {n.pairs:,.1f} pairs of inputs share a bucket{wanted}."
    )


def table_hash(n: HashNumbers) -> Table:
    s = n.spec
    shape = f"blocks of {s.block[0]} x {s.block[1]}" + (f" in panels of {s.panel[0]} x {s.panel[1]}" if s.panel else "")
    return [
        ("buckets", f"{s.n_buckets:,}"),
        ("stored / virtual", f"{s.n_buckets / (s.rows * s.cols):.4g}"),
        ("structure", shape),
        ("smallest T", f"{min(g.candidates for g in s.regions):,}"),
        ("unused buckets", f"{100 * float((n.loads == 0).mean()):.1f} %"),
        ("variance of loads / mean", f"{n.loads.var() / n.loads.mean():.2f}"),
        ("colliding pairs a row", f"{n.pairs:,.1f}"),
        ("expected", "-" if n.expected_pairs is None else f"{n.expected_pairs:,.1f}"),
    ]


HASH_SIZE = (9.2, 4.0)


# --------------------------------------------------------------------------------------------------------------------
# 2. The memory calculator

OPTIMIZERS = {"none: inference": 0, "SGD with momentum": 1, "Adam": 2}  # float32 values that are kept a stored value
SIDES = {f"{side:,}": side for side in (64, 256, 784, 1024, 2048, 4096, 8192, 16384)}


class MemoryNumbers(NamedTuple):
    """Bytes of a dense network and of a hashed one of the same layers, by what they are for."""

    sizes: tuple[int, ...]
    dense: dict[str, int]
    hashed: dict[str, int]
    structure: str
    compression: float
    dtype: str
    n: int


def layer_specs(sizes: Sequence[int], structure: str, compression: float) -> list[HashSpec]:
    """The specs of a network's layers as `hashedmm.nn.MLP` and ``hashedmm train`` choose them, seeds left at 0."""
    options = experiments.default_options(f"hashed:{structure}", compression)
    specs = []
    for i, (cols, rows) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        kind, more = (structure, options) if rows >= SMALL_LAYER else ("elementwise", {})
        specs.append(getattr(HashSpec, kind)((rows, cols), compression, seed=derive_seed(0, i), **more))
    return specs


def memory_numbers(
    inputs: int, hidden: int, depth: int, outputs: int, structure: str, compression: float, dtype: str, n: int,
    optimizer: int,
) -> MemoryNumbers:  # fmt: skip
    """Bytes that a network of ``depth`` equal hidden layers takes.

    Weights, biases and activations have ``dtype``; gradients and the optimiser's state are float32. Training keeps the
    input and every layer's output for the backward pass; inference holds one layer's input and output at a time. The
    lists are what the sketch kernels keep on a GPU beside the buckets (`hashedmm.sketch.lists`), for layers that they
    can compute.
    """
    sizes = (inputs, *[hidden] * depth, outputs)
    size, train = np.dtype(dtype).itemsize, optimizer > 0
    pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
    biases = sum(sizes[1:])
    activations = size * n * (sum(sizes) if train else max(a + b for a, b in pairs))
    specs = layer_specs(sizes, structure, compression)
    limit = build.shared_limit("emulator")
    lists = sum(
        explain.derived_bytes("sketch", "matmul", s, n, dtype)
        for s in specs
        if sketch.why_not(s, dtype, limit) is None
    )  # fmt: skip

    def parts(weights: int, more: int) -> dict[str, int]:
        learned = weights + biases
        return {
            "weights": size * weights,
            "biases": size * biases,
            "lists of the sketch": more,
            "gradients": 4 * learned if train else 0,
            "optimiser": 4 * optimizer * learned,
            "activations": activations,
        }

    dense = parts(sum(a * b for a, b in pairs), 0)
    return MemoryNumbers(sizes, dense, parts(sum(s.n_buckets for s in specs), lists), structure, compression, dtype, n)


def draw_memory(n: MemoryNumbers) -> Figure:
    figure, ax = plots.subplots(size=MEMORY_SIZE)
    names = [*n.dense, "all"]
    rows = [
        (name, n.dense.get(name, sum(n.dense.values())), n.hashed.get(name, sum(n.hashed.values()))) for name in names
    ]
    sizes = [b for _, *both in rows for b in both if b]
    low, high = 2.0 ** math.floor(math.log2(min(sizes)) - 2), max(sizes)
    ax.set(xscale="log", xlim=(low, high * (high / low) ** 0.22))
    for y, (_, dense, hashed) in enumerate(rows):
        for offset, count, color in ((-0.2, dense, plots.GREY), (0.2, hashed, plots.BLUE)):
            ax.barh(y + offset, max(count - low, 0), left=low, height=0.36, color=color)
            text = size_text(count) if count else "none"
            at = (max(count, low), y + offset)
            ax.annotate(text, at, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=color)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    ticks = [2.0**p for p in powers if p % (4 if len(powers) < 30 else 8) == 0]
    ax.set_xticks(ticks, [size_text(t) for t in ticks], fontsize=8)
    ax.minorticks_off()
    ax.tick_params(axis="y", length=0)
    ax.set(ylim=(len(rows) - 0.4, -0.6), ylabel="what for")
    ax.set_xlabel(f"bytes (log scale): {'-'.join(map(str, n.sizes))}, {n.structure}, {compression_text(n.compression)}")
    ax.set_title("Memory of a network: dense (grey, above) and hashed (blue)")
    return figure


def say_memory(n: MemoryNumbers) -> str:
    dense, hashed = sum(n.dense.values()), sum(n.hashed.values())
    return (
        f"A {'-'.join(map(str, n.sizes))} network in {n.dtype} with {_plural(n.n, 'sample')} at a time takes "
        f"{size_text(dense)} dense and {size_text(hashed)} as {n.structure} at {compression_text(n.compression)}, "
        f"{hashed / dense:.2g} times as much; its weights take {size_text(n.dense['weights'])} and "
        f"{size_text(n.hashed['weights'])}."
    )


def table_memory(n: MemoryNumbers) -> Table:
    return [(name, f"{n.dense[name]:,} / {n.hashed[name]:,} bytes") for name in n.dense] + [
        ("all", f"{sum(n.dense.values()):,} / {sum(n.hashed.values()):,} bytes (dense / hashed)")
    ]


MEMORY_SIZE = (9.2, 4.6)


# --------------------------------------------------------------------------------------------------------------------
# 3. Which thread writes which output


class IndexNumbers(NamedTuple):
    """One thread of a launch. ``outputs`` has the (row, column) of y of each lane of its warp, or None."""

    kernel: str
    shape: tuple[int, int]
    threads: int
    blocks: int
    block: int
    thread: int
    owner: np.ndarray
    outputs: list[tuple[int, int] | None]

    @property
    def lane(self) -> int:
        return self.thread % WARP

    @property
    def warp(self) -> int:
        return self.thread // WARP


def grid_blocks(kernel: str, rows: int, n: int, threads: int) -> int:
    """Blocks of a launch that writes y of (rows, n) with ``threads`` threads a block: see the kernels' sources."""
    if kernel == "shared":
        tile = math.isqrt(threads)
        return -(-rows // tile) * -(-n // tile)
    return -(-rows * n // threads)


def written(kernel: str, rows: int, n: int, threads: int, block: int, thread: int) -> tuple[int, int] | None:
    """(i, s) of the output y[i][s] that a thread writes, or None: as naive.cu, coalesced.cu and shared.cu say."""
    if kernel == "shared":
        tile = math.isqrt(threads)
        across = (n - 1) // tile + 1
        i = block // across * tile + thread // tile
        s = block % across * tile + thread % tile
    else:
        output = block * threads + thread
        i, s = (output % rows, output // rows) if kernel == "naive" else (output // n, output % n)
    return (i, s) if i < rows and s < n else None


def index_numbers(kernel: str, rows: int, n: int, threads: int, block: int, thread: int) -> IndexNumbers:
    """Who writes what: the block of every output, and what the warp of one thread writes."""
    blocks = grid_blocks(kernel, rows, n, threads)
    owner = np.full((rows, n), -1)
    for b in range(blocks):
        for t in range(threads):
            if (place := written(kernel, rows, n, threads, b, t)) is not None:
                owner[place] = b
    first = thread // WARP * WARP
    outputs = [written(kernel, rows, n, threads, block, first + lane) for lane in range(WARP)]
    return IndexNumbers(kernel, (rows, n), threads, blocks, block, thread, owner, outputs)


def store_sectors(n: IndexNumbers, size: int = 4) -> int:
    """Sectors that the warp's store to y touches."""
    columns = n.shape[1]
    return len(sectors([None if o is None else size * (o[0] * columns + o[1]) for o in n.outputs], size))


def draw_index(n: IndexNumbers) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, size=INDEX_SIZE, width_ratios=[1, 1.45])
    warps = n.threads // WARP
    lanes = np.ones((warps, WARP, 3))
    lanes[n.warp] = _rgb(plots.SKY)
    lanes[n.warp, n.lane] = _rgb(plots.VERMILION)
    left.imshow(lanes, aspect="auto", interpolation="nearest")
    left.set_yticks(range(0, warps, max(1, warps // 8)))
    left.set(xticks=[0, 8, 16, 24, 31], xlabel="lane", ylabel="warp of the block")
    left.set_ylim(max(warps, 8) - 0.5, -0.5)
    left.set_title(f"Block {n.block} of {n.blocks}: thread {n.thread}")
    left.vlines(np.arange(1, WARP) - 0.5, -0.5, warps - 0.5, color="#dddddd", linewidth=0.5)
    left.hlines(np.arange(1, warps + 1) - 0.5, -0.5, WARP - 0.5, color="#dddddd", linewidth=0.5)
    rows, columns = n.shape
    shade = np.where(n.owner % 2 == 0, 1.0, 0.9)[..., None] * np.ones(3)
    shade[n.owner == n.block] = (1.0, 0.95, 0.75)
    for lane, place in enumerate(n.outputs):
        if place is not None:
            shade[place] = _rgb(plots.VERMILION if lane == n.lane else plots.SKY)
    right.imshow(shade, aspect="auto", interpolation="nearest")
    for lane, place in enumerate(n.outputs):
        if place is not None:
            ink = "white" if lane == n.lane else "black"
            size = 6.5 if columns <= 30 else 5
            right.text(place[1], place[0], str(lane), ha="center", va="center", fontsize=size, color=ink)
    for x in range(1, columns):
        right.axvline(x - 0.5, color="#dddddd", linewidth=0.5)
    for y in range(1, rows):
        right.axhline(y - 0.5, color="#dddddd", linewidth=0.5)
    mine = n.outputs[n.lane]
    right.set_title("y: this thread writes " + ("nothing" if mine is None else f"y[{mine[0]}][{mine[1]}]"))
    right.set(xlabel="column s of y; blue: the warp's lanes, yellow: its block", ylabel="row i of y")
    for axis in (right.xaxis, right.yaxis):
        axis.get_major_locator().set_params(integer=True)
    for ax in (left, right):
        ax.spines[:].set_color(plots.GREY)
        ax.spines[:].set_visible(True)
        ax.tick_params(length=0)
    return figure


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def say_index(n: IndexNumbers) -> str:
    mine = n.outputs[n.lane]
    what = "writes nothing, it lies beyond the edge" if mine is None else f"writes y[{mine[0]}][{mine[1]}]"
    active = sum(o is not None for o in n.outputs)
    stored = f"store to {_plural(store_sectors(n), 'sector')}" if active else "store nothing"
    return (
        f"In {n.kernel}, thread {n.thread} of block {n.block} is lane {n.lane} of warp {n.warp} and {what}; "
        f"{active} of the warp's 32 lanes {stored} of y."
    )


def table_index(n: IndexNumbers) -> Table:
    tile = math.isqrt(n.threads)
    place = f"({n.thread % tile}, {n.thread // tile})" if n.kernel == "shared" else f"({n.thread}, 0)"
    mine = n.outputs[n.lane]
    return [
        ("blockIdx.x", str(n.block)),
        ("threadIdx (x, y)", place),
        ("warp", str(n.warp)),
        ("lane", str(n.lane)),
        ("output", "none" if mine is None else f"y[{mine[0]}][{mine[1]}]"),
        ("blocks", str(n.blocks)),
        ("sectors of the warp's store, float", str(store_sectors(n))),
    ]


INDEX_SIZE = (9.2, 4.4)


# --------------------------------------------------------------------------------------------------------------------
# 4. What a warp asks memory for

ELEMENTS = {"half, 2 bytes": 2, "float, 4 bytes": 4, "double, 8 bytes": 8, "float4, 16 bytes": 16}
MATRIX_ROWS = 64


def sectors(addresses: Iterable[int | None], size: int) -> set[int]:
    """The sectors of 32 bytes that lanes touch which access ``size`` bytes each (at most 32) at these addresses.

    What `hashedmm.emulator.trace` counts for every request to global memory (``count_global`` in its runtime.cpp).
    """
    asked = [a for a in addresses if a is not None]
    return {a // SECTOR for a in asked} | {(a + size - 1) // SECTOR for a in asked}


class AccessNumbers(NamedTuple):
    """One request of a warp. ``wanted`` and ``moved`` are bytes: distinct ones asked for, and those of all sectors."""

    addresses: list[int]
    size: int
    stride: int
    offset: int
    layout: str
    sectors: int
    lines: int
    wanted: int

    @property
    def moved(self) -> int:
        return SECTOR * self.sectors

    @property
    def efficiency(self) -> float:
        """Wanted of the moved bytes."""
        return self.wanted / self.moved


def access_numbers(stride: int, offset: int, size: int, layout: str) -> AccessNumbers:
    """Lane t reads A[0, offset + stride * t] of a matrix of 64 rows, in C order (neighbours in a row are neighbours in
    memory) or in F order (they are 64 elements apart)."""
    apart = size * (1 if layout == "C" else MATRIX_ROWS)
    addresses = [apart * (offset + stride * lane) for lane in range(WARP)]
    touched = sectors(addresses, size)
    lines = {s * SECTOR // LINE for s in touched}
    return AccessNumbers(addresses, size, stride, offset, layout, len(touched), len(lines), size * len(set(addresses)))


def draw_access(n: AccessNumbers) -> Figure:
    figure, (top, bottom) = plots.subplots(2, 1, size=ACCESS_SIZE, height_ratios=[18, 4])
    name = next(text for text, size in ELEMENTS.items() if size == n.size)
    request = {"addresses": n.addresses, "size": n.size, "array": "A"}
    index = " + ".join([*([str(n.offset)] if n.offset else []), "t" if n.stride == 1 else f"{n.stride} t"])
    title = f"Lane t reads A[0, {index}] in {n.layout} order, {name}: {_plural(n.sectors, 'sector')}"
    plots.access_rows(top, request, title, most_rows=16, height=16)
    texts = [f"{n.wanted:,} bytes", f"{n.moved:,} bytes"]
    _labelled_bars(bottom, ["wanted", "moved"], [n.wanted, n.moved], texts, [plots.GREEN, plots.SKY])
    bottom.set(xlim=(0, 1.15 * max(n.moved, n.wanted)), xlabel="bytes of this request")
    bottom.set_title(f"{100 * n.efficiency:.3g} % of what moves is wanted")
    return figure


def say_access(n: AccessNumbers) -> str:
    apart, touched = n.addresses[1] - n.addresses[0], _plural(n.sectors, "sector")
    return (
        f"A warp whose 32 lanes read {n.size} bytes each, {apart} bytes apart and from byte {n.addresses[0]} on, "
        f"touches {touched} of 32 bytes in {_plural(n.lines, 'line')} of 128: {n.moved:,} bytes move and {n.wanted:,} "
        f"are wanted, {100 * n.efficiency:.3g} %."
    )


def table_access(n: AccessNumbers) -> Table:
    return [
        ("requests", "1"),
        ("sectors", str(n.sectors)),
        ("lines of 128 bytes", str(n.lines)),
        ("wanted", f"{n.wanted:,} bytes"),
        ("moved", f"{n.moved:,} bytes"),
        ("efficiency", f"{100 * n.efficiency:.3g} %"),
        ("in the picture", "a number is a lane, 5+ the first of several, a tint a moved sector"),
    ]


ACCESS_SIZE = (9.2, 5.6)


# --------------------------------------------------------------------------------------------------------------------
# 5. Occupancy


class Limits(NamedTuple):
    """What a multiprocessor holds; see `ARCHITECTURES`."""

    warps: int
    blocks: int
    shared: int  # KiB, of a multiprocessor
    shared_block: int  # KiB, the most of one block
    reserved: int  # bytes of shared memory that the system takes for each block
    unit: int  # bytes; a block's shared memory is rounded up to a multiple


# CUDA C++ Programming Guide, "Compute Capabilities", table "Technical Specifications per Compute Capability"; what is
# reserved and the units are those of CUDA's cuda_occupancy.h, with which a test compares all of it.
ARCHITECTURES: dict[str, Limits] = {
    "sm_75": Limits(32, 16, 64, 64, 0, 256),
    "sm_80": Limits(64, 32, 164, 163, 1024, 128),
    "sm_86": Limits(48, 16, 100, 99, 1024, 128),
    "sm_89": Limits(48, 24, 100, 99, 1024, 128),
    "sm_90": Limits(64, 32, 228, 227, 1024, 128),
    "sm_100": Limits(64, 32, 228, 227, 1024, 128),
    "sm_120": Limits(48, 24, 100, 99, 1024, 128),
}
REGISTERS = 65536  # of a multiprocessor, and the most of a block, on all of them
REGISTER_UNIT = 256  # registers; a warp's are rounded up to a multiple
PARTS = 4  # of a multiprocessor: a warp's registers all lie in one of them
MOST_REGISTERS = 255  # of a thread


class Occupancy(NamedTuple):
    """Blocks that fit on one multiprocessor at once. ``by`` says how many each limit would allow, None: any number."""

    arch: str
    threads: int
    registers: int
    shared: int
    by: dict[str, int | None]

    @property
    def blocks(self) -> int:
        return min(b for b in self.by.values() if b is not None)

    @property
    def warps(self) -> int:
        """Of all blocks on the multiprocessor."""
        return self.blocks * -(-self.threads // WARP)

    @property
    def share(self) -> float:
        """Occupancy: warps there are of warps that a multiprocessor can hold."""
        return self.warps / ARCHITECTURES[self.arch].warps

    @property
    def binding(self) -> list[str]:
        """The limits that keep the next block out."""
        return [name for name, b in self.by.items() if b == self.blocks]


def occupancy(arch: str, threads: int, registers: int, shared: int) -> Occupancy:
    """How many blocks of a kernel one multiprocessor holds at once.

    Parameters
    ----------
    arch : a key of `ARCHITECTURES`
    threads : a block, 1 to 1024
    registers : a thread, 1 to 255
    shared : bytes a block, static and dynamic

    Returns
    -------
    Occupancy; 0 blocks means that such a block cannot be launched.

    Raises
    ------
    ValueError
        If an argument is out of range.

    References
    ----------
    CUDA C++ Programming Guide, "Compute Capabilities"; the rounding is that of cuda_occupancy.h.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, got {arch!r}")
    for name, value, low, high in (
        ("threads", threads, 1, 1024), ("registers", registers, 1, MOST_REGISTERS), ("shared", shared, 0, 2**20),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, got {value}")
    limits = ARCHITECTURES[arch]
    warps = -(-threads // WARP)
    a_warp = _up(registers * WARP, REGISTER_UNIT)
    resident = REGISTERS // PARTS // a_warp * PARTS  # warps, by their registers
    by_registers = resident // warps if a_warp * _up(warps, PARTS) <= REGISTERS else 0
    needed = _up(shared + limits.reserved, limits.unit)
    by_shared: int | None = None
    if needed:
        by_shared = 1024 * limits.shared // needed if shared <= 1024 * limits.shared_block else 0
    by = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": by_registers,
        "shared memory": by_shared,
    }
    return Occupancy(arch, threads, registers, shared, by)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class OccupancyNumbers(NamedTuple):
    """`occupancy` of one launch, and that of other block sizes."""

    here: Occupancy
    curve: list[Occupancy]


def occupancy_numbers(arch: str, threads: int, registers: int, shared: int) -> OccupancyNumbers:
    """``shared`` in KiB a block, whatever the number of its threads."""
    sizes = range(WARP, 1025, WARP)
    return OccupancyNumbers(
        occupancy(arch, threads, registers, 1024 * shared),
        [occupancy(arch, t, registers, 1024 * shared) for t in sizes],
    )


def draw_occupancy(n: OccupancyNumbers) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, size=OCCUPANCY_SIZE, width_ratios=[1, 1.2])
    o, limits = n.here, ARCHITECTURES[n.here.arch]
    most = max(b for b in o.by.values() if b is not None)
    values = [most if b is None else b for b in o.by.values()]
    texts = ["any number" if b is None else str(b) for b in o.by.values()]
    colors = [plots.VERMILION if name in o.binding else "#bbbbbb" for name in o.by]
    _labelled_bars(left, list(o.by), values, texts, colors)
    left.set(xlim=(0, 1.3 * max(most, 1)), xlabel="blocks a multiprocessor", ylabel="limit")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_title(f"{o.arch}: " + (f"{_plural(o.blocks, 'block')} fit" if o.blocks != 1 else "1 block fits"))
    x, y = [c.threads for c in n.curve], [c.warps for c in n.curve]
    right.axhline(limits.warps, color=plots.BLACK, linewidth=1.0, linestyle=(0, (4, 2)))
    right.annotate(
        f"all {limits.warps} warps",
        (1024, limits.warps),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
    )
    right.plot(x, y, color=plots.BLUE, marker=".", markersize=5, linewidth=1.0)
    right.plot(o.threads, o.warps, "D", color=plots.VERMILION, markersize=9, markeredgecolor="white")
    right.set(xlim=(0, 1060), ylim=(-0.03 * limits.warps, 1.15 * limits.warps))
    right.set(xlabel="threads a block", ylabel="warps a multiprocessor", xticks=[32, 256, 512, 768, 1024])
    right.set_title(f"{_plural(o.warps, 'warp')}: {100 * o.share:.3g} % occupancy")
    return figure


def say_occupancy(n: OccupancyNumbers) -> str:
    o = n.here
    launch = f"{o.threads} threads of {o.registers} registers and {o.shared // 1024} KiB of shared memory"
    if not o.blocks:
        return f"On {o.arch} a block of {launch} cannot be launched: {_listed(o.binding)} do not suffice."
    return (
        f"On {o.arch} a multiprocessor holds {_plural(o.blocks, 'block')} of {launch}, {_plural(o.warps, 'warp')} of "
        f"{ARCHITECTURES[o.arch].warps}, {100 * o.share:.3g} %; what binds: {_listed(o.binding)}."
    )


def table_occupancy(n: OccupancyNumbers) -> Table:
    o = n.here
    best = max(n.curve, key=lambda c: c.warps)
    return [
        ("blocks", str(o.blocks)),
        ("warps", str(o.warps)),
        ("occupancy", f"{100 * o.share:.3g} %"),
        *[(f"allowed by {name}", "any number" if b is None else str(b)) for name, b in o.by.items()],
        ("most warps with these registers and memory", f"{best.warps}, at {best.threads} threads a block"),
    ]


OCCUPANCY_SIZE = (9.2, 3.8)


# --------------------------------------------------------------------------------------------------------------------
# Records, read again when their file has changed


def _read(name: str) -> dict[str, Any]:
    path = records.results_dir() / f"{name}.json"
    return _read_version(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read_version(path: str, version: int) -> dict[str, Any]:
    return records.read(path)


def _named(kind: str) -> dict[str, dict[str, Any]]:
    """The records of a kind, by name; none where there is no checkout."""
    try:
        names = sorted(p.stem for p in records.results_dir().glob("*.json"))
    except FileNotFoundError:
        return {}
    found = {name: _read(name) for name in names}
    found = {name: record for name, record in found.items() if record["kind"] == kind}
    if kind == "training":  # trainings that chose parameters have no test error
        tested = {name: [r for r in found[name]["rows"] if r["test_error_mean"] is not None] for name in found}
        found = {name: {**found[name], "rows": rows} for name, rows in tested.items() if rows}
    return found


# --------------------------------------------------------------------------------------------------------------------
# 6. The roofline, with a point of the reader's


class RooflineNumbers(NamedTuple):
    """Roofs as rows of a record of kind "roof", points under them, and the reader's machine and point."""

    roofs: list[dict[str, Any]]
    device: str | None
    product: str
    points: list[plots.Point]
    mine: plots.Point
    machine: tuple[float, float]


def least_bytes(row: Mapping[str, Any], dense: bool = False) -> float:
    """Bytes that a product must move: its buckets (W, if ``dense``), x and y, once each."""
    d_out, d_in, n = row["shape"]
    stored = d_out * d_in if dense else _spec(row).n_buckets
    return float(np.dtype(row["dtype"]).itemsize * (stored + n * (d_out + d_in)))


def _spec(row: Mapping[str, Any]) -> HashSpec:
    return HashSpec.from_json(json.dumps(row["spec"]))


class Product(NamedTuple):
    """A recorded product of strips in float16: the record, d_out, d_in and n, height and stride of the strips."""

    record: str
    shape: tuple[int, int, int]
    height: int
    stride: int


def recorded_products() -> dict[str, Product | None]:
    """{text: product}: those at 1/64 that at least three kernels of the ladder were timed on; most columns first."""
    kernels: dict[Product, set[str]] = {}
    for name, record in _named("timing").items():
        for row, product in _products(name, record["rows"]):
            kernels.setdefault(product, set()).add(row["kernel"])
    found = [p for p, k in kernels.items() if len(k) >= 3]
    out: dict[str, Product | None] = {}
    for p in sorted(found, key=lambda p: (p.record, p.height, -math.prod(p.shape[:2]), -p.shape[2])):
        out[f"{_product_text(p)} ({p.record})"] = p
    return {**out, "none": None}


def _product_text(p: Product | None) -> str:
    if p is None:
        return ""
    stride = f", stride {p.stride}" if p.stride != p.height else ""
    return f"{p.shape[0]} x {p.shape[1]}, strips {p.height} high{stride}, n = {p.shape[2]}"


def _products(record: str, rows: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Product]]:
    """The rows of kernels of the ladder whose product can be chosen."""
    wanted = {"operation": "matmul", "structure": "strips", "dtype": "float16", "compression": 1 / 64}
    out = []
    for r in rows:
        if all(r[k] == v for k, v in wanted.items()) and r["kernel"] in plots.RUNGS:
            d_out, d_in, n = r["shape"]
            height = r["spec"]["block"][0]
            out.append((r, Product(record, (d_out, d_in, n), height, r["spec"]["stride"] or height)))
    return out


def recorded_roofs() -> dict[str, str | None]:
    """{device: name of its record of kind "roof"}, and your own machine alone."""
    found = {record["device"]["name"]: name for name, record in _named("roof").items()}
    return {**found, "your machine alone": None}


def roofline_numbers(
    device: str | None, products: Product | None, gflop: float, megabytes: float, ms: float, bandwidth: float,
    peak: float,
) -> RooflineNumbers:  # fmt: skip
    """The roofs of a record, the kernels of one recorded product, and the reader's own machine and kernel.

    Parameters
    ----------
    device : name of a record of kind "roof", or None
    products : a value of `recorded_products`
    gflop, megabytes, ms : 1e9 operations, 1e6 bytes and milliseconds of the reader's kernel
    bandwidth, peak : of the reader's machine, in GB/s and TFLOP/s
    """
    machine = (1e9 * bandwidth, 1e12 * peak)
    if device is None:
        roofs = [
            {"roof": "copy", "per_second": machine[0], "unit": "bytes"},
            {"roof": "your machine", "per_second": machine[1], "unit": "FLOP"},
        ]
    else:
        roofs = [r for r in _read(device)["rows"] if r["roof"] in ("copy", "cublas_float32", "cublas_float16")]
    points = []
    if products is not None:
        every = _products(products.record, _read(products.record)["rows"])
        rows = [row for row, product in every if product == products]
        for r in rows:
            color, marker = plots.RUNGS[r["kernel"]]
            operations = 2.0 * math.prod(r["shape"])
            label = r["kernel"] + (", as the product" if r["kernel"] == "sketch" else "")  # it does less than that
            per_second, filled = 1e3 * operations / r["ms"], r["kernel"] != "sketch"
            points.append(plots.Point(label, operations / least_bytes(r), per_second, color, marker, filled))
        if rows:
            r, operations = rows[0], 2.0 * math.prod(rows[0]["shape"])
            place = operations / least_bytes(r, dense=True), 1e3 * operations / r["baselines"]["cublas_float16"]
            points.append(plots.Point("cuBLAS, dense", *place, plots.BLACK, "X"))
    mine = plots.Point("yours", 1e3 * gflop / megabytes, 1e12 * gflop / ms, plots.VERMILION, "*")
    name_of = None if device is None else _read(device)["device"]["name"]
    return RooflineNumbers(roofs, name_of, _product_text(products), points, mine, machine)


def roof(n: RooflineNumbers) -> float:
    """Operations a second that the reader's machine allows at the reader's operations a byte."""
    return min(n.machine[1], n.machine[0] * n.mine.intensity)


def draw_roofline(n: RooflineNumbers) -> Figure:
    title = f"Roofline: {n.device or 'your machine'}" + (f"; {n.product}" if n.product else "")
    return plots.roofline(
        n.roofs, [*n.points, n.mine], title, size=ROOFLINE_SIZE, machine=n.machine if n.device else None
    )


def say_roofline(n: RooflineNumbers) -> str:
    side = "memory" if n.machine[0] * n.mine.intensity < n.machine[1] else "arithmetic"
    others = f"; beside it {_plural(len(n.points), 'recorded kernel')} of {n.device}" if n.points and n.device else ""
    share, there = digits(100 * n.mine.per_second / roof(n)), digits(roof(n) / 1e12)
    return (
        f"Your kernel does {digits(n.mine.intensity)} operations a byte and {digits(n.mine.per_second / 1e12)} "
        f"TFLOP/s, {share} % of your machine's roof of {there} TFLOP/s there, which is that of {side}{others}."
    )


def table_roofline(n: RooflineNumbers) -> Table:
    return [
        ("yours", f"{digits(n.mine.intensity)} operations a byte, {digits(n.mine.per_second / 1e12)} TFLOP/s"),
        ("your roof there", f"{digits(roof(n) / 1e12)} TFLOP/s"),
        ("your machine", f"{digits(n.machine[0] / 1e9)} GB/s, {digits(n.machine[1] / 1e12)} TFLOP/s"),
        *[(p.label, f"{digits(p.per_second / 1e12)} TFLOP/s") for p in n.points],
    ]


ROOFLINE_SIZE = (9.2, 5.2)


# --------------------------------------------------------------------------------------------------------------------
# 7. Materialise or fuse


class WaysNumbers(NamedTuple):
    """Milliseconds by each way of every measured case, as `hashedmm.plots.ways` gives them."""

    rows: list[dict[str, Any]]
    device: str
    layer: str
    uses: int
    dtype: str
    cases: dict[tuple[Any, ...], dict[str, float]]

    @property
    def wins(self) -> dict[str, int]:
        """In how many cases each way is the fastest of the hashed ones."""
        best = [min((w for w in plots.WAYS if w in ms), key=ms.__getitem__) for ms in self.cases.values()]
        return {way: best.count(way) for way in plots.WAYS}

    @property
    def faster(self) -> int:
        """Cases in which the best way is faster than the stored dense matrix."""
        return sum(min(ms[w] for w in plots.WAYS if w in ms) < ms["dense"] for ms in self.cases.values())


def recorded_layers() -> dict[str, str]:
    """{text: name} of the layers in the record gpu_layer."""
    rows = _named("timing").get("gpu_layer", {"rows": []})["rows"]
    names = dict.fromkeys(r["layer"] for r in rows)
    return {plots.LAYERS.get(name, ("", name))[1]: name for name in names}


def ways_numbers(layer: str, uses: int, dtype: str) -> WaysNumbers:
    """The recorded times of one layer's products, a materialised W being used for ``uses`` products."""
    record = _read("gpu_layer")
    cases = {c: ms for c, ms in plots.ways(record["rows"], layer, uses).items() if dtype in ("both", c[1])}
    if not cases:
        raise ValueError(f"the record gpu_layer has no products of {layer} in {dtype}; choose another dtype")
    return WaysNumbers(record["rows"], record["device"]["name"], layer, uses, dtype, cases)


def draw_ways(n: WaysNumbers) -> Figure:
    label = plots.LAYERS.get(n.layer, ("", n.layer))[1]
    title = f"The fastest way, and times as fast as dense cuBLAS: {label}, {n.device}"
    figure = plots.ways_map(n.rows, n.layer, uses=(n.uses,), dtype=None if n.dtype == "both" else n.dtype, title=title)
    figure.set_size_inches(*WAYS_SIZE)
    (ax,) = figure.axes
    ax.set_ylabel("matrix, dtype, compression")
    return figure


def say_ways(n: WaysNumbers) -> str:
    parts = [f"{way} in {count}" for way, count in n.wins.items() if count]
    used = "once" if n.uses == 1 else f"{n.uses:,} times"
    return (
        f"If a materialised W is used {used}, the fastest way is {_listed(parts)} of {len(n.cases)} measured cases, "
        f"and in {n.faster} of them it is faster than the stored dense matrix."
    )


def table_ways(n: WaysNumbers) -> Table:
    return [
        ("cases", str(len(n.cases))),
        *[(plots.WAYS[way][2], str(count)) for way, count in n.wins.items()],
        ("faster than dense", str(n.faster)),
    ]


WAYS_SIZE = (9.2, 6.4)


# --------------------------------------------------------------------------------------------------------------------
# 8. The sketch explorer

LAYER_SHAPES = {"1000 x 784": (1000, 784), "4096 x 4096": (4096, 4096), "8192 x 8192": (8192, 8192)}
STRIDES: dict[str, int | None] = {"none": None, **{str(s): s for s in (4, 8, 16, 24, 32, 64, 128)}}


class Measured(NamedTuple):
    """A recorded training of strips: which record, its spec of the first layer, and its error in percent."""

    record: str
    spec: HashSpec
    sums: int
    error: float
    spread: float | None
    seeds: int


class SketchNumbers(NamedTuple):
    """Operations are those of one sample; ``nearest`` is the recorded training whose strips are most like these."""

    spec: HashSpec
    candidates: int
    sums: int
    additions: int
    multiply_adds: int
    z_bytes: int
    dtype: str
    n: int
    measured: list[Measured]
    nearest: Measured | None

    @property
    def dense(self) -> int:
        """Multiply-adds of the dense product, a sample."""
        return self.spec.rows * self.spec.cols

    @property
    def exact(self) -> bool:
        """Whether ``nearest`` has these very strips."""
        return self.nearest is not None and _like(self.nearest.spec, self.spec) == (0.0, 0.0)


def measured_strips(shape: tuple[int, int], compression: float) -> list[Measured]:
    """Recorded trainings on MNIST whose first layer is strips of this shape and compression."""
    out = []
    for name, record in _named("training").items():
        for row in record["rows"]:
            found = row["specs"][0][0] if row["method"] == "hashed:strips" and row["dataset"] == "mnist" else None
            if found is None or len(row["layers"]) != 3 or row.get("hash", "fmix32") != "fmix32":
                continue
            spec = HashSpec.from_json(json.dumps(found))
            if spec.shape == shape and spec.compression == compression:
                sums = sketch.geometry(spec).all_bins
                error, spread = row["test_error_mean"], row["test_error_std"]
                out.append(Measured(name, spec, sums, error, spread, len(row["seeds"])))
    return out


def _like(a: HashSpec, b: HashSpec) -> tuple[float, float]:
    """How far two strips are apart: in sums and height, in factors of two; then in panels and stride, 0 or 1."""
    first = abs(math.log2(sketch.geometry(a).all_bins / sketch.geometry(b).all_bins))
    first += abs(math.log2(a.block[0] / b.block[0]))
    return first, float((a.panel, a.unit) != (b.panel, b.unit))


def sketch_numbers(
    shape: tuple[int, int], compression: float, height: int, stride: int | None, panel: int, n: int, dtype: str
) -> SketchNumbers:
    """What sum-first-multiply-after costs for strips of one layer: panels are as high as a strip.

    A strip adds each input once (rows / height strips), then multiplies its sums by its codebook; notebook 11 derives
    it. z is the workspace between the two, for n samples.
    """
    spec = HashSpec.strips(shape, compression, height=height, panel=(height, panel), stride=stride)
    g = sketch.geometry(spec)
    measured = measured_strips(shape, compression)
    nearest = min(measured, key=lambda m: (_like(m.spec, spec), -m.seeds), default=None)
    return SketchNumbers(
        spec, g.bins, g.all_bins, g.strips * spec.cols, spec.rows * g.all_bins,
        g.strips * g.all_bins * n * np.dtype(dtype).itemsize, dtype, n, measured, nearest,
    )  # fmt: skip


def draw_sketch(n: SketchNumbers) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, size=SKETCH_SIZE, width_ratios=[1.1, 1])
    names = ["dense: multiply-adds", "sketch: additions", "sketch: multiply-adds"]
    values = [float(n.dense), float(n.additions), float(n.multiply_adds)]
    low, high = min(values) / 4, max(values)
    texts = [f"{v:,.0f}" + (f": {digits(100 * v / n.dense)} %" if i else "") for i, v in enumerate(values)]
    left.set(xscale="log", xlim=(low, high * (high / low) ** 0.6))
    _labelled_bars(left, names, values, texts, [plots.GREY, plots.SKY, plots.BLUE], low)
    left.minorticks_off()
    s = n.spec
    z = f"z for n = {n.n:,} in {n.dtype}: {size_text(n.z_bytes)}"
    left.set(xlabel=f"operations a sample (log scale)\n{z}")
    left.set_title(f"{s.rows} x {s.cols}: {100 * (n.additions + n.multiply_adds) / n.dense:.3g} % of the dense work")
    which = "" if n.nearest is None else f"{n.nearest.error:.2f} %" if n.exact else f"nearest {n.nearest.error:.2f} %"
    right.set_title(f"Recorded error, MNIST: {which or 'none'}")
    right.set(xscale="log", xlabel="sums that a strip sees (log scale)", ylabel="test error, %")
    places = [n.sums, *(m.sums for m in n.measured)]
    right.set_xlim(min(places) / 2, max(places) * 2)
    right.axvline(n.sums, color=plots.VERMILION, linestyle=(0, (4, 2)), linewidth=1.4)
    if n.measured:
        errors = [m.error for m in n.measured]
        right.set_ylim(0, 1.35 * max(errors))
        for m in n.measured:
            near = m is n.nearest
            right.errorbar(
                m.sums, m.error, m.spread or 0, marker="D", markersize=9 if near else 6, capsize=3,
                color=plots.BLUE if near else plots.SKY, markeredgecolor="white",
            )  # fmt: skip
    else:
        right.set_ylim(0, 6)
        white = {"facecolor": "white", "edgecolor": "none"}
        right.text(0.5, 0.5, "none was measured", ha="center", transform=right.transAxes, color=plots.GREY, bbox=white)
    ticks = [
        t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if min(places) / 2 <= t <= max(places) * 2
    ]
    right.set_xticks(ticks, [str(t) for t in ticks])
    right.minorticks_off()
    side = 1 if n.sums < 1.01 * math.sqrt(min(places) * max(places)) else -1  # where there is room
    right.annotate(
        f"here: {n.sums:,}", (n.sums, 0), xytext=(4 * side, 4), textcoords="offset points", color=plots.VERMILION,
        ha="left" if side > 0 else "right",
    )  # fmt: skip
    return figure


def say_sketch(n: SketchNumbers) -> str:
    s = n.spec
    stride = f" and stride {s.unit}" if s.unit != s.block[0] else ""
    if n.nearest is None:
        error = "no such layer's error was measured"
    else:
        which = "these strips" if n.exact else f"the nearest measured strips ({_strips(n.nearest.spec)})"
        error = f"{which} had {n.nearest.error:.2f} % test error on MNIST"
    return (
        f"Strips {s.block[0]} high in panels {s.panel[1] if s.panel else s.cols} wide{stride} have T = "
        f"{n.candidates:,} candidates a panel, {n.sums:,} sums a strip, and do "
        f"{100 * (n.additions + n.multiply_adds) / n.dense:.3g} % of the dense work; {error}."
    )


def _recorded(m: Measured) -> str:
    return f"{m.error:.2f} %, {_strips(m.spec)}, {_plural(m.seeds, 'seed')} ({m.record})"


def _strips(spec: HashSpec) -> str:
    return f"{spec.block[0]} high, stride {spec.unit}, {sketch.geometry(spec).all_bins} sums"


def table_sketch(n: SketchNumbers) -> Table:
    return [
        ("T", f"{n.candidates:,}"),
        ("sums a strip", f"{n.sums:,}"),
        ("additions a sample", f"{n.additions:,}"),
        ("multiply-adds", f"{n.multiply_adds:,}"),
        ("dense", f"{n.dense:,}"),
        ("buckets", f"{n.spec.n_buckets:,}"),
        (f"z for n = {n.n:,}, {n.dtype}", size_text(n.z_bytes)),
        (
            "recorded error",
            "none was measured" if n.nearest is None else _recorded(n.nearest),
        ),
    ]


SKETCH_SIZE = (9.2, 3.8)


# --------------------------------------------------------------------------------------------------------------------
# 9. Compression against accuracy


class AccuracyNumbers(NamedTuple):
    """Rows of a training record, of one dataset and one network, of the methods that are shown."""

    record: str
    dataset: str
    layers: tuple[int, ...]
    epochs: int
    rows: list[dict[str, Any]]


def recorded_trainings() -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """{text: (record, dataset, layers)} of all records of kind "training": what compares most methods comes first."""
    methods: dict[tuple[str, str, tuple[int, ...]], set[str]] = {}
    for name, record in _named("training").items():
        for row in record["rows"]:
            methods.setdefault((name, row["dataset"], tuple(row["layers"])), set()).add(row["method"])
    ordered = sorted(methods, key=lambda key: -len(methods[key]))
    return {
        f"{name}: {dataset}, {'-'.join(map(str, layers))}": (name, dataset, layers) for name, dataset, layers in ordered
    }


def recorded_methods() -> dict[str, str]:
    """{label: method} of all methods in records of kind "training", in the order of `hashedmm.plots.METHODS`."""
    there = {row["method"]: None for record in _named("training").values() for row in record["rows"]}
    known = [m for m in plots.METHODS if m in there]
    return {method_label(m): m for m in [*known, *(m for m in there if m not in plots.METHODS)]}


def method_label(method: str) -> str:
    """A method's name on a button and in a picture, different for each: without "hashed, " and ", equal storage"."""
    label = plots.METHODS.get(method, {"label": method.replace("_", " ")})["label"]
    return str(label).removeprefix("hashed, ").removesuffix(", equal storage")


def accuracy_numbers(runs: tuple[str, str, tuple[int, ...]], methods: tuple[str, ...]) -> AccuracyNumbers:
    """The recorded trainings ``runs`` (a value of `recorded_trainings`) of some methods."""
    name, dataset, layers = runs
    all_rows = [r for r in _named("training")[name]["rows"] if (r["dataset"], tuple(r["layers"])) == (dataset, layers)]
    rows = sorted((r for r in all_rows if r["method"] in methods), key=lambda r: r["stored_bytes"])
    if not rows:
        there = ", ".join(dict.fromkeys(method_label(r["method"]) for r in all_rows))
        raise ValueError(f"{name} has none of the chosen methods; it has {there}")
    return AccuracyNumbers(name, dataset, layers, max(r["epochs"] for r in rows), rows)


def draw_accuracy(n: AccuracyNumbers) -> Figure:
    figure, ax = plots.subplots(size=ACCURACY_SIZE)
    stored = [r["stored_bytes"] / 1024 for r in n.rows]
    errors = [r["test_error_mean"] for r in n.rows]
    ends = [r["test_error_mean"] + sign * (r["test_error_std"] or 0) for r in n.rows for sign in (-1, 1)]
    few = len({r["method"] for r in n.rows}) <= 4
    ax.set(xscale="log", yscale="log", xlim=(min(stored) / (3.4 if few else 6.0), max(stored) * 2.6))
    ax.set_ylim(max(min(ends), 0.5 * min(errors)) / 1.2, max(ends) * 1.2)
    other = iter([plots.PURPLE, plots.YELLOW, plots.GREY] * 9)
    labels = []
    for method in dict.fromkeys(r["method"] for r in n.rows):
        style = plots.METHODS.get(method) or {"color": next(other), "marker": "o"}
        color, mine = style["color"], [r for r in n.rows if r["method"] == method]
        x, y = [r["stored_bytes"] / 1024 for r in mine], [r["test_error_mean"] for r in mine]
        joined = len({r["compression"] for r in mine}) == len(mine)  # else several of one size, told apart by options
        ax.plot(
            x, y, color=color, marker=style["marker"], markersize=7, markeredgecolor="white",
            linestyle="-" if joined else "none",
        )  # fmt: skip
        spread = [r["test_error_std"] or 0.0 for r in mine]
        if any(spread):
            low, high = ([e + sign * s for e, s in zip(y, spread, strict=True)] for sign in (-1, 1))
            if joined and len(mine) > 1:
                ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            ax.errorbar(x, y, spread, color=color, linestyle="none", capsize=3, linewidth=1.0)
        for i, r in enumerate(mine):
            more = [f"{k} {v[0]} x {v[1]}" if isinstance(v, list) else f"{k} {v}" for k, v in r.get("options") or ()]
            name = method_label(method) if i == 0 or not joined else ""
            what = ", ".join([name, *more] if not joined else [name] if name else [])
            left = bool(what) and joined and len(mine) > 1
            if what or few:  # of many methods only their names, at the smallest: the numbers are in the table
                labels.append((x[i], y[i], f"{what} {y[i]:.2f}".strip(), color, left))
    plots.write_apart(ax, labels)
    ax.set_xlabel("stored, KiB: weights, biases and what else a method keeps (log scale)")
    ax.set_ylabel("test error, % (log scale)")
    kib = [t for t in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)]
    shown = [t for t in kib if ax.get_xlim()[0] <= t <= ax.get_xlim()[1]]
    ax.set_xticks(shown, [f"{t:,}" for t in shown])
    low_end, high_end = ax.get_ylim()
    ticks = [t for t in (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70) if low_end <= t <= high_end]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    seeds = {len(r["seeds"]) for r in n.rows}
    count = f"{min(seeds)}" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
    word = "seed" if seeds == {1} else "seeds"
    ax.set_title(f"{n.dataset}, {'-'.join(map(str, n.layers))}: test error against bytes, {count} {word}")
    return figure


def say_accuracy(n: AccuracyNumbers) -> str:
    best = min(n.rows, key=lambda r: r["test_error_mean"])
    least = n.rows[0]
    return (
        f"Of {_plural(len(n.rows), 'training')} on {n.dataset} ({n.record}), the lowest test error is "
        f"{best['test_error_mean']:.2f} %, {method_label(best['method'])} with {size_text(best['stored_bytes'])}; the "
        f"smallest is {method_label(least['method'])} with {size_text(least['stored_bytes'])} and "
        f"{least['test_error_mean']:.2f} %."
    )


def table_accuracy(n: AccuracyNumbers) -> Table:
    return [
        (
            f"{method_label(r['method'])} {compression_text(r['compression'])}",
            f"{r['test_error_mean']:.2f} %" + (f" ± {r['test_error_std']:.2f}" if r["test_error_std"] else ""),
        )
        for r in n.rows
    ]


ACCURACY_SIZE = (9.2, 4.8)


# --------------------------------------------------------------------------------------------------------------------
# 10. Draw a digit

SIDE = 28  # pixels
PAINT = 14  # squares of the grid to paint on, 2 x 2 pixels each
ERASED: dict[str, tuple[slice, slice] | None] = {
    "nothing": None,
    "the upper half": (slice(0, 14), slice(0, 28)),
    "the lower half": (slice(14, 28), slice(0, 28)),
    "the left half": (slice(0, 28), slice(0, 14)),
    "the right half": (slice(0, 28), slice(14, 28)),
    "the middle": (slice(10, 18), slice(10, 18)),
    "everything": (slice(0, 28), slice(0, 28)),
}


class DigitNumbers(NamedTuple):
    """An image and each network's probabilities of the ten digits."""

    image: np.ndarray
    label: int | None
    probabilities: dict[str, np.ndarray]

    @property
    def guesses(self) -> dict[str, int]:
        return {name: int(p.argmax()) for name, p in self.probabilities.items()}


def _shifted(image: np.ndarray, right: int, down: int) -> np.ndarray:
    """Moved by whole pixels; what leaves the image is lost."""
    out = np.zeros_like(image)
    rows, cols = image.shape
    out[max(0, down) : rows + min(0, down), max(0, right) : cols + min(0, right)] = image[
        max(0, -down) : rows - max(0, down), max(0, -right) : cols - max(0, right)
    ]
    return out


def _rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turned anticlockwise about the centre, by bilinear interpolation."""
    if not degrees:
        return image
    angle, centre = math.radians(degrees), (SIDE - 1) / 2
    i, j = np.mgrid[:SIDE, :SIDE] - centre
    y = i * math.cos(angle) + j * math.sin(angle) + centre  # where each pixel comes from
    x = j * math.cos(angle) - i * math.sin(angle) + centre
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    out = np.zeros_like(image)
    for di in (0, 1):
        for dj in (0, 1):
            weight = np.abs(1 - di - (y - y0)) * np.abs(1 - dj - (x - x0))
            inside = (y0 + di >= 0) & (y0 + di < SIDE) & (x0 + dj >= 0) & (x0 + dj < SIDE)
            source = image[np.clip(y0 + di, 0, SIDE - 1), np.clip(x0 + dj, 0, SIDE - 1)]
            out += (weight * np.where(inside, source, 0)).astype(image.dtype)
    return out


def _thickened(image: np.ndarray, pixels: int) -> np.ndarray:
    """Strokes wider (the largest of five neighbours, ``pixels`` times), or thinner (the smallest) if it is negative."""
    for _ in range(abs(pixels)):
        neighbours = [_shifted(image, *step) for step in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
        image = np.max(neighbours, axis=0) if pixels > 0 else np.min(neighbours, axis=0)
    return image


def digit_image(
    digit: np.ndarray, right: int = 0, down: int = 0, rotate: int = 0, thicken: int = 0, noise: int = 0,
    erase: str = "nothing", paint: Sequence[tuple[int, int]] = (),
) -> np.ndarray:  # fmt: skip
    """A digit, changed: rotated, thickened, shifted, erased in part, painted over, and noise added, in this order.

    Parameters
    ----------
    digit : (28, 28) float32 from 0 to 1
    right, down : pixels
    rotate : degrees anticlockwise
    thicken : pixels on each side; negative makes strokes thinner
    noise : standard deviation of normal noise in percent of full ink; always the same noise
    erase : a key of `ERASED`
    paint : squares (row, column) of 2 x 2 pixels to fill with ink

    Returns
    -------
    (28, 28) float32 from 0 to 1
    """
    if digit.shape != (SIDE, SIDE):
        raise ValueError(f"digit must be an image of shape {(SIDE, SIDE)}, got {digit.shape}")
    image = _shifted(_thickened(_rotated(digit, rotate), thicken), right, down).copy()
    if (part := ERASED[erase]) is not None:
        image[part] = 0
    for i, j in paint:
        image[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = 1
    if noise:
        image = image + noise / 100 * np.random.default_rng(0).standard_normal(image.shape)
    return np.clip(image, 0, 1).astype(np.float32)


def check_models(models: Any) -> None:
    """TypeError or ValueError unless ``models`` is a dict of one to six networks from 784 inputs to 10 classes."""
    if not isinstance(models, Mapping) or not models:
        raise TypeError(f"models must be a dict of names and networks, at least one, got {models!r}")
    if len(models) > 6:
        raise ValueError(f"models: at most 6 fit in the picture, got {len(models)}")
    for name, model in models.items():
        if not isinstance(model, MLP) or (model.sizes[0], model.sizes[-1]) != (SIDE * SIDE, 10):
            what = "-".join(map(str, model.sizes)) if isinstance(model, MLP) else type(model).__name__
            raise ValueError(f"models[{name!r}] must be an MLP from 784 inputs to 10 classes, got {what}")


def guess(image: np.ndarray, models: Mapping[str, MLP], label: int | None = None) -> DigitNumbers:
    """What each network makes of an image: softmax of its logits.

    Parameters
    ----------
    image : (28, 28), 0 to 1
    models : {name: MLP of 784 inputs and 10 outputs}; at least one, at most six
    label : the digit that it is, if known
    """
    check_models(models)
    found = {}
    for name, model in models.items():
        x = model.xp.asarray(np.ascontiguousarray(image, np.float32).reshape(1, -1))
        logits = to_numpy(model.forward(x))[0].astype(np.float64)
        e = np.exp(logits - logits.max())
        found[str(name)] = e / e.sum()
    return DigitNumbers(np.asarray(image), label, found)


@lru_cache(maxsize=1)
def _test_digits() -> tuple[np.ndarray, np.ndarray]:
    data = datasets.load_mnist()
    return data.x_test.reshape(-1, SIDE, SIDE), data.y_test


def digit_numbers(
    models: Mapping[str, MLP], index: int, right: int, down: int, rotate: int, thicken: int, noise: int, erase: str,
    paint: Sequence[tuple[int, int]],
) -> DigitNumbers:  # fmt: skip
    """Test digit number ``index`` of MNIST, changed by `digit_image`, and what the networks make of it."""
    images, labels = _test_digits()
    image = digit_image(images[index], right, down, rotate, thicken, noise, erase, paint)
    return guess(image, models, int(labels[index]))


def draw_digit(n: DigitNumbers) -> Figure:
    count = len(n.probabilities)
    ratios = [2.0, *[1.6] * count] if count < 4 else [2.0, *[1.0] * count]
    figure, axes = plots.subplots(1, 1 + count, size=DIGIT_SIZE, width_ratios=ratios)
    axes[0].imshow(n.image, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set(xticks=[0, 13, 27], yticks=[0, 13, 27], xlabel="pixel", ylabel="pixel")
    axes[0].set_title("The image\n" if n.label is None else f"The image,\nfrom a {n.label}")
    looks = [plots.BLUE, plots.VERMILION, plots.GREEN, plots.ORANGE, plots.PURPLE, plots.SKY]
    for k, ((name, p), color) in enumerate(zip(n.probabilities.items(), looks, strict=False)):
        ax, best = axes[1 + k], int(p.argmax())
        ax.barh(range(10), 100 * p, color=[color if d == best else "#bbbbbb" for d in range(10)])
        ax.set(xlim=(0, 100), ylim=(9.6, -0.6), xticks=[0, 100])
        ax.set_yticks(range(10))
        ax.tick_params(axis="y", length=0)
        ax.set_title(
            f"{_wrapped(name, 22 if count < 4 else 11)}\n{best}, {100 * p[best]:.0f} %", color=color, fontsize=10
        )
        ax.set_xlabel("probability, %", fontsize=9)
    axes[1].set_ylabel("digit")
    return figure


def digit_view(image: np.ndarray, models: Mapping[str, MLP]) -> Figure:
    """Any image of 28 x 28 values from 0 to 1 beside what each network makes of it. Errors as `guess` has them."""
    image = np.asarray(image)
    if image.shape != (SIDE, SIDE):
        raise ValueError(f"image must have the shape {(SIDE, SIDE)}, got {image.shape}")
    return draw_digit(guess(image, models))


def say_digit(n: DigitNumbers) -> str:
    said = [f"{name} says {p.argmax()} ({100 * p.max():.0f} %)" for name, p in n.probabilities.items()]
    return (
        f"The image {'' if n.label is None else f'began as a {n.label} and '}is shown to the networks: {_listed(said)}."
    )


def table_digit(n: DigitNumbers) -> Table:
    out = []
    for name, p in n.probabilities.items():
        order = np.argsort(-p)[:3]
        out.append((name, ", ".join(f"{d}: {100 * p[d]:.1f} %" for d in order)))
    return out


DIGIT_SIZE = (9.2, 3.4)


# --------------------------------------------------------------------------------------------------------------------
# 11. The scale explorer

GPUS = (1, 2, 4, 8, 16, 32, 64)
A_HOST = 8  # GPUs in one host


class ScaleNumbers(NamedTuple):
    """What the model says of a training step of a square layer.

    Attributes
    ----------
    device : whose rates were measured
    side, compression, n, gpus, mode, budget : as chosen; the budget in bytes a GPU
    found : {mode: {GPUs: Scale}}
    """

    device: str
    side: int
    compression: float
    n: int
    gpus: int
    mode: str
    budget: float
    found: Mapping[str, Mapping[int, scale.Scale]]

    @property
    def chosen(self) -> scale.Scale:
        """The step that was chosen."""
        return self.found[self.mode][self.gpus]


def recorded_rates(compression: float) -> scale.Rates:
    """The rates in the records gpu_stream and gpu_parallel; FileNotFoundError if one is missing."""
    try:
        stream, parallel = _read("gpu_stream"), _read("gpu_parallel")
    except FileNotFoundError as e:
        raise FileNotFoundError(
            f"the rates come from the records gpu_stream and gpu_parallel, and {Path(e.filename).name} is missing; "
            "`hashedmm bench --stream` and `mpiexec -n 2 hashedmm bench --parallel` measure them on GPUs"
        ) from None
    return scale.together(scale.stream_rates(stream), scale.parallel_rates(parallel, compression))


def scale_numbers(side: int, compression: float, batch: int, gpus: int, mode: str, budget: int) -> ScaleNumbers:
    """A training step of one square layer of strips, SGD with momentum, on 1 to 64 GPUs, ``A_HOST`` in a host, in every
    mode, by `hashedmm.scale.predict`; ``budget`` in gigabytes (10^9 bytes) a GPU."""
    rates = recorded_rates(compression)
    spec = bench.LAYER["strips"]((side, side), compression)
    found = {
        m: {
            p: scale.predict(spec, batch, rates, mode=m, ranks=p, hosts=-(-p // A_HOST), budget=1e9 * budget)
            for p in GPUS
        }
        for m in scale.MODES
    }
    return ScaleNumbers(rates.device, side, compression, batch, gpus, mode, 1e9 * budget, found)


def draw_scale(n: ScaleNumbers) -> Figure:
    figure, (left, right) = plots.subplots(1, 2, size=SCALE_SIZE, width_ratios=(1.25, 1))
    lines = {
        plots.SPREAD[mode][2]: (mode, list(found), [s.seconds for s in found.values()])
        for mode, found in n.found.items()
    }
    plots.draw_over_ranks(left, lines, [(n.mode, n.gpus, n.chosen.seconds)])
    for found in n.found.values():
        away = [p for p, s in found.items() if not s.fits]
        left.plot(away, [found[p].seconds for p in away], "x", color=plots.GREY, markersize=9, zorder=5)
    left.set_ylabel("seconds a step (log scale)")
    left.set_title("Time; x: does not fit")
    s = n.chosen
    rows = [
        ("W, dense", "dense", s.dense_bytes),
        ("W, stored", n.mode, s.stored_bytes),
        ("on a GPU", n.mode, s.gpu_bytes),
        ("in a host", n.mode, s.host_bytes),
        ("sent, dense", "dense", s.dense_sent_bytes),
        ("sent", n.mode, s.sent_bytes),
    ]
    plots.draw_bytes(right, rows, n.budget)
    right.set_xlabel("bytes (log scale); dashed: a GPU")
    right.set_title(f"Bytes: {plots.SPREAD[n.mode][2]}, {_plural(n.gpus, 'GPU')}")
    return figure


def say_scale(n: ScaleNumbers) -> str:
    s = n.chosen
    fits = "fits" if s.fits else "does not fit"
    what = f"layer of {n.side:,} x {n.side:,} at {compression_text(n.compression)}"
    sent = f", and the one that sends most sends {plots.bytes_text(s.sent_bytes)}" if n.gpus > 1 else ""
    return (
        f"A training step of a {what} with {_plural(n.n, 'sample')}, {plots.SPREAD[n.mode][2]}, on "
        f"{_plural(n.gpus, 'GPU')} like {n.device}: {plots.seconds_text(s.seconds)} by the model, bound by {s.bound}. "
        f"A GPU needs {plots.bytes_text(s.gpu_bytes)}, which {fits} in {plots.bytes_text(n.budget)}{sent}."
    )


def table_scale(n: ScaleNumbers) -> Table:
    s = n.chosen
    parts = ", ".join(f"{name} {plots.seconds_text(t)}" for name, t in s.parts.items() if t)
    return [
        ("seconds alone", parts),
        ("stored", plots.bytes_text(s.stored_bytes)),
        ("dense", plots.bytes_text(s.dense_bytes)),
        ("in a host", plots.bytes_text(s.host_bytes) if s.host_bytes else "none"),
        ("sent, dense layer", plots.bytes_text(s.dense_sent_bytes) if s.dense_sent_bytes else "none"),
    ]


SCALE_SIZE = (8.4, 3.8)


# --------------------------------------------------------------------------------------------------------------------
# All of them

_NOTEBOOKS = {
    "hash": "02_hash_functions", "memory": "01_why_hash_weights", "index": "05_naive_kernel",
    "access": "06_memory_access", "occupancy": "07_shared_memory_tiles", "roofline": "16_kernel_ladder",
    "ways": "09_materialise_or_fuse", "sketch": "11_strips_and_sketches", "accuracy": "13_hashednet_on_mnist",
    "digit": "13_hashednet_on_mnist", "scale": "15_larger_than_memory",
}  # fmt: skip


def _threads_of(settings: Mapping[str, Any]) -> int:
    return int(settings["threads"]) - 1


def _blocks_of(settings: Mapping[str, Any]) -> int:
    return grid_blocks(settings["kernel"], settings["rows"], settings["n"], settings["threads"]) - 1


def _same(*values: Any) -> dict[str, Any]:
    return {f"{v:,}" if isinstance(v, int) else str(v): v for v in values}


WIDGETS: dict[str, Widget] = {
    w.name: w
    for w in (
        Widget(
            "hash_explorer", _NOTEBOOKS["hash"],
            {
                "structure": Choice("Structure", _same(*SMALL_OPTIONS)),
                "compression": Choice("Compression", COMPRESSIONS, 1 / 8, "slider"),
                "seed": Whole("Seed", 0, 0, 30),
                "hash": Choice("Hash function", _same(*HASHES)),
                "shape": Choice("Matrix", {f"{a} x {b}": (a, b) for a, b in ((16, 24), (32, 48), (64, 96))}, (32, 48)),
            },
            hash_numbers, draw_hash, say_hash, table_hash, HASH_SIZE,
        ),
        Widget(
            "memory_calculator", _NOTEBOOKS["memory"],
            {
                "inputs": Choice("Inputs", SIDES, 784, "slider"),
                "hidden": Choice("Hidden units", SIDES, 1024, "slider"),
                "depth": Whole("Hidden layers", 1, 1, 6),
                "outputs": Choice("Outputs", _same(10, 100, 1000), 10, "slider"),
                "structure": Choice("Structure", _same(*SMALL_OPTIONS), "strips"),
                "compression": Choice("Compression", COMPRESSIONS, 1 / 8, "slider"),
                "dtype": Choice("Type", _same("float32", "float16"), look="buttons"),
                "n": Choice("Samples at a time", _same(1, 32, 128, 1024, 4096), 128, "slider"),
                "optimizer": Choice("Optimiser", OPTIMIZERS, 2),
            },
            memory_numbers, draw_memory, say_memory, table_memory, MEMORY_SIZE,
        ),
        Widget(
            "index_map", _NOTEBOOKS["index"],
            {
                "kernel": Choice("Kernel", _same("naive", "coalesced", "shared"), look="buttons"),
                "rows": Whole("Rows of y", 20, 1, 40),
                "n": Whole("Columns n", 24, 1, 40),
                "threads": Choice("Threads a block", _same(64, 256, 1024), 64, "slider"),
                "block": Whole("Block", 0, 0, _blocks_of),
                "thread": Whole("Thread", 5, 0, _threads_of),
            },
            index_numbers, draw_index, say_index, table_index, INDEX_SIZE,
        ),
        Widget(
            "access_map", _NOTEBOOKS["access"],
            {
                "stride": Whole("Stride, elements", 2, 0, 40),
                "offset": Whole("Offset, elements", 0, 0, 40),
                "size": Choice("Element", ELEMENTS, 4),
                "layout": Choice("Order of A", {"C (rows)": "C", "F (columns)": "F"}, look="buttons"),
            },
            access_numbers, draw_access, say_access, table_access, ACCESS_SIZE,
        ),
        Widget(
            "occupancy_explorer", _NOTEBOOKS["occupancy"],
            {
                "arch": Choice("Architecture", _same(*ARCHITECTURES), "sm_90"),
                "threads": Whole("Threads a block", 256, 32, 1024, 32),
                "registers": Whole("Registers a thread", 64, 16, MOST_REGISTERS),
                "shared": Whole("Shared KiB a block", 16, 0, 227),
            },
            occupancy_numbers, draw_occupancy, say_occupancy, table_occupancy, OCCUPANCY_SIZE,
        ),
        Widget(
            "roofline", _NOTEBOOKS["roofline"],
            {
                "device": Choice("Roofs of", recorded_roofs),
                "products": Choice("Kernels of", recorded_products),
                "gflop": Real("Your GFLOP", 17.2, 1e-4, 1e5),
                "megabytes": Real("Your MB", 8.9, 1e-3, 1e6),
                "ms": Real("Your ms", 50.0, 1e-3, 1e5),
                "bandwidth": Real("Your GB/s", 50.0, 1.0, 1e4),
                "peak": Real("Your TFLOP/s", 1.0, 1e-3, 2e3),
            },
            roofline_numbers, draw_roofline, say_roofline, table_roofline, ROOFLINE_SIZE,
        ),
        Widget(
            "ways_explorer", _NOTEBOOKS["ways"],
            {
                "layer": Choice("Layer", recorded_layers),
                "uses": Choice("Uses of a W", _same(1, 2, 3, 5, 10, 20, 50, 100, 1000, 10_000), 1, "slider"),
                "dtype": Choice("Type", _same("both", "float16", "float32"), look="buttons"),
            },
            ways_numbers, draw_ways, say_ways, table_ways, WAYS_SIZE,
        ),
        Widget(
            "sketch_explorer", _NOTEBOOKS["sketch"],
            {
                "shape": Choice("Layer", LAYER_SHAPES),
                "compression": Choice("Compression", COMPRESSIONS, 1 / 64, "slider"),
                "height": Choice("Height of strips", _same(8, 16, 32, 64, 128, 256, 512), 256, "slider"),
                "stride": Choice("Stride", STRIDES, 24, "slider"),
                "panel": Choice("Width of panels", _same(64, 128, 256, 416, 784, 1024, 2048), 416, "slider"),
                "n": Choice("Samples n", _same(1, 32, 128, 1024, 4096), 1024, "slider"),
                "dtype": Choice("Type of z", _same("float16", "float32"), look="buttons"),
            },
            sketch_numbers, draw_sketch, say_sketch, table_sketch, SKETCH_SIZE,
        ),
        Widget(
            "accuracy_explorer", _NOTEBOOKS["accuracy"],
            {
                "runs": Choice("Trainings", recorded_trainings),
                "methods": Several(
                    "Methods", recorded_methods, ("dense", "small_dense", "hashed:elementwise", "hashed:strips")
                ),
            },
            accuracy_numbers, draw_accuracy, say_accuracy, table_accuracy, ACCURACY_SIZE,
        ),
        Widget(
            "draw_a_digit", _NOTEBOOKS["digit"],
            {
                "index": Whole("Test digit", 0, 0, 9999),
                "right": Whole("Shift right, pixels", 0, -10, 10),
                "down": Whole("Shift down, pixels", 0, -10, 10),
                "rotate": Whole("Rotate, degrees", 0, -180, 180, 5),
                "thicken": Whole("Thicken, pixels", 0, -2, 3),
                "noise": Whole("Noise, %", 0, 0, 100, 5),
                "erase": Choice("Erase", {text: text for text in ERASED}),
                "paint": Cells("Paint", PAINT),
            },
            digit_numbers, draw_digit, say_digit, table_digit, DIGIT_SIZE, ("models",),
            check_models,
        ),
        Widget(
            "scale_explorer", _NOTEBOOKS["scale"],
            {
                "side": Choice("Rows and columns", {f"{2**k:,}": 2**k for k in range(14, 21)}, 2**18, "slider"),
                "compression": Choice(
                    "Compression", {t: c for t, c in COMPRESSIONS.items() if c <= 1 / 8}, 1 / 8, "slider"
                ),
                "batch": Choice("Samples a step", _same(256, 1024, 4096, 16384), 1024, "slider"),
                "gpus": Choice("GPUs", _same(*GPUS), 8, "slider"),
                "mode": Choice("Way", {plots.SPREAD[m][2]: m for m in scale.MODES}, "panels", look="buttons"),
                "budget": Choice("GB a GPU", _same(8, 16, 24, 40, 80, 141), 80, "slider"),
            },
            scale_numbers, draw_scale, say_scale, table_scale, SCALE_SIZE,
        ),
    )
}  # fmt: skip


def find_widget(name: str) -> Widget:
    """The widget of this name; a ValueError lists all names."""
    if name not in WIDGETS:
        raise ValueError(f"there is no widget {name!r}; there are {', '.join(WIDGETS)}")
    return WIDGETS[name]


def static(name: str, *given: Any, **params: Any) -> None:
    """Show a widget's picture and numbers without controls, with alternative text: what a saved notebook keeps."""
    find_widget(name).static(*given, **params)


hash_explorer, hash_view = WIDGETS["hash_explorer"].factory, WIDGETS["hash_explorer"].view
memory_calculator, memory_view = WIDGETS["memory_calculator"].factory, WIDGETS["memory_calculator"].view
index_map, index_view = WIDGETS["index_map"].factory, WIDGETS["index_map"].view
access_map, access_view = WIDGETS["access_map"].factory, WIDGETS["access_map"].view
occupancy_explorer, occupancy_view = WIDGETS["occupancy_explorer"].factory, WIDGETS["occupancy_explorer"].view
roofline, roofline_view = WIDGETS["roofline"].factory, WIDGETS["roofline"].view
ways_explorer, ways_view = WIDGETS["ways_explorer"].factory, WIDGETS["ways_explorer"].view
sketch_explorer, sketch_view = WIDGETS["sketch_explorer"].factory, WIDGETS["sketch_explorer"].view
accuracy_explorer, accuracy_view = WIDGETS["accuracy_explorer"].factory, WIDGETS["accuracy_explorer"].view
draw_a_digit = WIDGETS["draw_a_digit"].factory
scale_explorer, scale_view = WIDGETS["scale_explorer"].factory, WIDGETS["scale_explorer"].view
