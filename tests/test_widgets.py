"""The widgets: their numbers against independent computations, their pictures, and their controls without a browser."""

import builtins
import gc
import html
import itertools
import json
import subprocess
import sys
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from hashedmm import MLP, HashSpec, bench, emulator, plots, records, scale, sketch, widgets
from hashedmm.emulator import toolchain
from hashedmm.matmul import plan_matmul
from hashedmm.widgets import WIDGETS, Cells, Choice, Real, Several, Whole

ROOT = Path(__file__).resolve().parent.parent
MODELS = {
    "dense": MLP([784, 64, 10], structure="dense", seed=1),
    "hashed, 1/8": MLP([784, 128, 10], seed=2),
}


def given(widget):
    return (MODELS,) if widget.needs else ()


def others(parameter, settings):
    """Values of a parameter other than its default: the ends and one between."""
    if isinstance(parameter, Whole):
        middle = (parameter.low + parameter.most(settings)) // 2 // parameter.step * parameter.step
        return [v for v in (parameter.most(settings), parameter.low, middle) if v != parameter.default]
    if isinstance(parameter, Real):
        return [parameter.high, parameter.low]
    if isinstance(parameter, Choice):
        values = list(parameter.found().values())
        return [v for v in values if v != settings["value"]]
    if isinstance(parameter, Several):
        return [parameter.default[:1], parameter.default[-2:]]
    assert isinstance(parameter, Cells)
    return [((0, 0),), tuple(itertools.product(range(parameter.side), repeat=2))]


def drawn_texts(figure):
    """(text, its box in pixels) of all that is written in a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = set()  # tick labels beyond the limits, which exist and are not drawn
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        shown = axis.get_majorticklabels() + axis.get_minorticklabels()
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_majorticklocs(), *axis.get_minorticklocs()]
        slack = 1e-9 * max(abs(low), abs(high)) if axis.get_scale() == "linear" else 1e-9 * low
        hidden |= {id(t) for t, at in zip(shown, ticks, strict=True) if not low - slack <= at <= high + slack}
        hidden |= {id(t) for tick in (*axis.majorTicks, *axis.minorTicks) for t in (tick.label1, tick.label2)} - {
            id(t) for t in shown
        }
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and id(t) not in hidden]
    return [(t, t.get_window_extent(canvas.get_renderer())) for t in texts]


def check_picture(widget, figure, *, apart=True):
    """A title, labels at all axes, nothing outside the figure, and no text over another."""
    assert isinstance(figure, Figure)
    assert tuple(figure.get_size_inches()) == widget.size
    named = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    assert named
    for ax in named:
        assert ax.get_title(loc="left") or ax.get_title()
        assert ax.get_xlabel()
    assert named[0].get_ylabel() or named[0].get_yticklabels()
    boxes = drawn_texts(figure)
    width, height = figure.bbox.size
    for text, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text.get_text()
    if apart:
        for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
            across = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
            down = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
            assert across <= 1.5 or down <= 1.5, (a.get_text(), b.get_text())


@pytest.mark.parametrize("name", WIDGETS)
def test_pictures_at_the_defaults(name):
    widget = WIDGETS[name]
    check_picture(widget, widget.view(*given(widget)))
    said = widget.alt(*given(widget))
    assert said.endswith(".") and said[0].isupper() and "nan" not in said and len(said) < 420


CASES = [(name, parameter) for name, widget in WIDGETS.items() for parameter in widget.parameters]


def drawn_over_the_range(widget, parameter, most):
    """Pictures for values of one parameter, the others being at their defaults. What cannot be drawn says why."""
    settings = widget.settings()
    values = others(widget.parameters[parameter], {**settings, "value": settings[parameter]})
    numbers = widget.computed(*given(widget))
    before, told = (widget.say(numbers), str(widget.table(numbers))), set()
    for value in values[:most]:
        try:
            numbers = widget.computed(*given(widget), **{parameter: value})
        except ValueError as e:
            assert "compression" in str(e) or "none of the chosen" in str(e)
            continue
        told.add((widget.say(numbers), str(widget.table(numbers))))
        yield widget.draw(numbers)
    assert told and before not in told


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_ends_of_every_control(name, parameter):
    for figure in drawn_over_the_range(WIDGETS[name], parameter, 2):
        assert tuple(figure.get_size_inches()) == WIDGETS[name].size and figure.axes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_nothing_is_cut_off_anywhere(name, parameter):
    for figure in drawn_over_the_range(WIDGETS[name], parameter, 99):
        check_picture(WIDGETS[name], figure, apart=False)


EXTREMES = [  # where texts are longest or axes widest
    ("hash_explorer", {"compression": 1.0, "shape": (64, 96), "structure": "codebook"}),
    ("memory_calculator", {"inputs": 16384, "hidden": 16384, "depth": 6, "outputs": 1000, "n": 4096}),
    ("index_map", {"kernel": "shared", "rows": 40, "n": 40, "threads": 1024, "block": 3, "thread": 1023}),
    ("access_map", {"stride": 40, "offset": 40, "size": 16, "layout": "F"}),
    ("occupancy_explorer", {"arch": "sm_75", "threads": 1024, "registers": 255, "shared": 227}),
    ("roofline", {"gflop": 1e-4, "megabytes": 1e6, "peak": 1e-3, "bandwidth": 1.0}),
    ("ways_explorer", {"layer": "strips-16", "uses": 10_000}),
    ("sketch_explorer", {"shape": (8192, 8192), "compression": 1.0, "height": 512, "stride": 4, "panel": 2048}),
    ("accuracy_explorer", {"runs": ("strips_accuracy", "mnist", (784, 1000, 10))}),
    ("draw_a_digit", {"index": 9999, "rotate": 180, "noise": 100, "thicken": 3}),
    ("scale_explorer", {"side": 2**20, "batch": 16384, "gpus": 64, "mode": "data", "budget": 8}),
]


@pytest.mark.parametrize(("name", "params"), EXTREMES, ids=[name for name, _ in EXTREMES])
def test_pictures_at_extremes(name, params):
    check_picture(WIDGETS[name], WIDGETS[name].view(*given(WIDGETS[name]), **params), apart=False)


@pytest.fixture
def quick(monkeypatch):
    """In place of a PNG what is drawn, as bytes, which takes less time."""

    def content(figure):
        parts = []
        for artist in figure.findobj():
            if isinstance(artist, Text):
                parts.append((artist.get_text(), artist.get_position()))
            elif isinstance(artist, Line2D):
                parts.append((artist.get_xydata().tolist(), artist.get_color()))
            elif isinstance(artist, Patch):
                parts.append((np.asarray(artist.get_verts()).tolist(), artist.get_facecolor()))
            elif isinstance(artist, AxesImage):
                parts.append(artist.get_array().tolist())
        return repr(parts).encode()

    monkeypatch.setattr(plots, "png", content)


def test_the_picture_is_a_png():
    image, _ = parts(widgets.access_map())
    assert bytes(image.value).startswith(b"\x89PNG")
    assert image.value != parts(widgets.access_map(stride=3))[0].value


# ---- the controls, from Python


def control_of(box, label):
    """The control, or the buttons, with this label."""
    found = []

    def walk(w):
        if getattr(w, "description", "") == label:
            found.append(w)
        elif isinstance(w, ipywidgets.Box):
            labels = [c for c in w.children if isinstance(c, ipywidgets.Label) and c.value == label]
            if labels:
                found.append(w)
            for c in w.children:
                walk(c)

    walk(box)
    assert found, label
    return found[0]


def parts(box):
    """(image, text) of a widget."""
    (image,) = [c for c in box.children if isinstance(c, ipywidgets.Image)]
    (text,) = [c for c in box.children if isinstance(c, ipywidgets.HTML)]
    return image, text


def move(box, parameter, settings):
    """Set a control to something else, as a reader does."""
    control = control_of(box, parameter.label)
    if isinstance(parameter, (Several, Cells)):
        controls = control.children if isinstance(parameter, Several) else None
        buttons = [c for c in (controls or box_buttons(box)) if isinstance(c, ipywidgets.ToggleButton)]
        control = buttons[0]
        other = not control.value
    elif isinstance(parameter, Whole):
        step = parameter.step * max(1, (parameter.most(settings) - parameter.low) // parameter.step // 3)
        other = control.value + step if control.value + step <= control.max else control.value - step
    elif isinstance(parameter, Real):
        other = 3 * control.value
    else:
        values = [v[1] if isinstance(v, tuple) else v for v in control.options]
        other = values[(values.index(control.value) + 1) % len(values)]
    control.value = other


def box_buttons(box):
    found = []

    def walk(w):
        if isinstance(w, ipywidgets.GridBox):
            found.extend(w.children)
        for c in getattr(w, "children", ()):
            walk(c)

    walk(box)
    return found


@pytest.mark.parametrize("name", WIDGETS)
def test_every_control_moves_the_picture_and_the_text(name, quick):
    widget = WIDGETS[name]
    box = widget.factory(*given(widget))
    image, text = parts(box)
    assert f"hashedmm-view-{name}" in image._dom_classes
    assert len(image.value) > 1000 and "<b>" in text.value
    assert widget.alt(*given(widget)) in html.unescape(text.value)
    assert image.layout.height == f"{round(100 * widget.size[1])}px"
    for parameter in reversed(widget.parameters.values()):  # the last ones depend on those before them
        before = bytes(image.value), text.value
        move(box, parameter, widget.settings())
        after = bytes(image.value), text.value
        assert hash(after[0]) != hash(before[0]), parameter.label  # hashes, for a message that can be read
        assert after[1] != before[1], parameter.label


@pytest.mark.parametrize("name", WIDGETS)
def test_controls_are_described_and_wait_for_the_end_of_a_drag(name, quick):
    widget = WIDGETS[name]
    box = widget.factory(*given(widget))
    seen = []

    def walk(w):
        if isinstance(w, (ipywidgets.IntSlider, ipywidgets.FloatLogSlider, ipywidgets.SelectionSlider)):
            assert w.continuous_update is False
        if isinstance(w, ipywidgets.ValueWidget) and not isinstance(w, (ipywidgets.Image, ipywidgets.HTML)):
            if not isinstance(w, ipywidgets.Label):
                assert w.description or w.tooltip
                seen.append(w)
        for c in getattr(w, "children", ()):
            walk(c)

    walk(box)
    assert len(seen) >= len(widget.parameters)
    labels = [p.label for p in widget.parameters.values()]
    assert len(set(labels)) == len(labels)
    assert (ROOT / "notebooks" / f"{widget.notebook}.ipynb").exists()


def test_a_picture_that_cannot_be_drawn_says_why(quick):
    box = widgets.hash_explorer(structure="codebook", compression=1 / 64, shape=(16, 24))
    image, text = parts(box)
    assert 'role="alert"' in text.value and "compression" in text.value
    good = WIDGETS["hash_explorer"].factory()
    assert bytes(image.value) != bytes(parts(good)[0].value)
    control_of(box, "Structure").value = "elementwise"
    assert "alert" not in text.value and "buckets" in text.value


def test_sliders_follow_what_they_depend_on(quick):
    box = widgets.index_map(threads=1024, thread=900)
    thread, threads = control_of(box, "Thread"), control_of(box, "Threads a block")
    assert (thread.max, thread.value) == (1023, 900)
    threads.value = 64
    assert (thread.max, thread.value) == (63, 63)
    assert "thread 63 of block 0" in parts(box)[1].value


def test_painting_and_clearing(quick):
    box = widgets.draw_a_digit(MODELS)
    image, _ = parts(box)
    clean = bytes(image.value)
    buttons = box_buttons(box)
    assert len(buttons) == 14 * 14
    buttons[0].value = buttons[17].value = True
    assert bytes(image.value) != clean
    (clear,) = [c for c in control_of(box, "Paint").children if isinstance(c, ipywidgets.Button)]
    clear.click()
    assert bytes(image.value) == clean and not any(b.value for b in buttons)


def test_figures_are_not_kept(quick):
    def figures():
        gc.collect()
        return sum(isinstance(o, Figure) for o in gc.get_objects())

    before = figures()
    box = widgets.occupancy_explorer()
    control_of(box, "Threads a block").value = 512
    assert WIDGETS["occupancy_explorer"].view() is not None
    assert figures() == before and not plt.get_fignums()


def test_static_needs_no_ipywidgets(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "ipywidgets")
    widgets.static("access_map", stride=4)
    image, text = shown
    assert image.alt == WIDGETS["access_map"].alt(stride=4) and "16" in text.data
    with pytest.raises(ImportError, match="pip install ipywidgets"):
        widgets.access_map()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: widgets.static("no_such"), ValueError, "there are hash_explorer"),
        (lambda: widgets.hash_view(colour=1), TypeError, "takes structure"),
        (lambda: widgets.hash_view(structure="rows"), ValueError, "structure must be one of 'elementwise'"),
        (lambda: widgets.hash_view(seed=1.5), TypeError, "seed must be a whole number"),
        (lambda: widgets.hash_view(seed=True), TypeError, "seed must be a whole number"),
        (lambda: widgets.access_view(stride=-1), ValueError, "stride must be from 0 to 40, got -1"),
        (lambda: widgets.index_view(threads=64, thread=64), ValueError, "thread must be from 0 to 63"),
        (lambda: widgets.index_view(rows=1, n=1, block=1), ValueError, "block must be from 0 to 0"),
        (lambda: widgets.roofline_view(ms=0), ValueError, "ms must be from 0.001"),
        (lambda: widgets.roofline_view(ms="1"), TypeError, "ms must be a number"),
        (lambda: widgets.accuracy_view(methods="dense"), TypeError, "methods must be a tuple"),
        (lambda: widgets.accuracy_view(methods=("rows",)), ValueError, "methods may hold 'dense'"),
        (lambda: widgets.accuracy_view(methods=()), ValueError, "none of the chosen methods; it has dense"),
        (lambda: widgets.draw_a_digit(), TypeError, "needs models first"),
        (lambda: widgets.draw_a_digit([MLP([784, 10])]), TypeError, "must be a dict"),
        (lambda: widgets.draw_a_digit({"a": MLP([784, 9])}), ValueError, "10 classes, got 784-9"),
        (lambda: widgets.hash_explorer(MODELS), TypeError, "needs no argument"),
        (lambda: WIDGETS["draw_a_digit"].view({}), TypeError, "at least one"),
        (lambda: WIDGETS["draw_a_digit"].view({"a": MLP([10, 10])}), ValueError, "784 inputs to 10 classes, got 10-10"),
        (lambda: WIDGETS["draw_a_digit"].view(dict.fromkeys("abcdefg", MODELS["dense"])), ValueError, "at most 6"),
        (lambda: WIDGETS["draw_a_digit"].view(MODELS, paint=((14, 0),)), ValueError, "from 0 to 13"),
        (lambda: WIDGETS["draw_a_digit"].view(MODELS, paint=(3,)), TypeError, "pairs"),
        (lambda: widgets.digit_view(np.zeros(784), MODELS), ValueError, "shape"),
        (lambda: widgets.occupancy("sm_1", 32, 32, 0), ValueError, "arch must be one of sm_75"),
        (lambda: widgets.occupancy("sm_90", 1025, 32, 0), ValueError, "threads must be from 1 to 1024"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- the numbers


@pytest.mark.parametrize("structure", widgets.SMALL_OPTIONS)
@pytest.mark.parametrize("hash", ["fmix32", "multiply_shift"])
def test_hash_numbers(structure, hash):
    n = WIDGETS["hash_explorer"].computed(structure=structure, hash=hash, seed=3, compression=1 / 4, shape=(64, 96))
    assert n.spec == getattr(HashSpec, structure)(
        (64, 96), 1 / 4, seed=3, hash=hash, **widgets.SMALL_OPTIONS[structure]
    )
    bucket, sign = n.spec.indices()
    assert np.array_equal(n.loads, np.bincount(bucket.ravel(), minlength=n.spec.n_buckets))
    values = {}
    for b, w in zip(bucket.ravel(), (sign * n.weights).ravel(), strict=True):
        assert values.setdefault(b, w) == w  # one value a bucket
    alike = bucket[:, :, None] == bucket[:, None, :]
    assert n.pairs == pytest.approx((alike.sum() - bucket.size) / 2 / len(bucket))
    if n.expected_pairs is not None and hash == "fmix32":
        assert n.pairs == pytest.approx(n.expected_pairs, rel=0.25)
    assert (n.expected_pairs is None) == (structure in ("runs", "tiles", "codebook"))
    assert n.expected.sum() == pytest.approx(n.spec.n_buckets, rel=0.02)


def test_hash_picture_shows_the_loads():
    widget = WIDGETS["hash_explorer"]
    n = widget.computed(seed=5)
    bars = widget.draw(n).axes[1].patches
    heights = {round(b.get_x() + b.get_width() / 2): b.get_height() for b in bars}
    assert heights == {k: (n.loads == k).sum() for k in heights} and sum(heights.values()) == n.spec.n_buckets


@pytest.mark.parametrize("structure", ["strips", "elementwise", "tiles"])
@pytest.mark.parametrize("compression", [1 / 8, 1 / 64])
def test_memory_is_that_of_the_network(structure, compression):
    n = WIDGETS["memory_calculator"].computed(
        inputs=784, hidden=256, depth=2, structure=structure, compression=compression, n=32, optimizer=2
    )
    options = {"stride": 16} if structure == "strips" and compression < 1 / 8 else {}
    net = MLP([784, 256, 256, 10], structure=structure, compression=compression, **options)
    assert n.hashed["weights"] + n.hashed["biases"] == net.stored_bytes
    assert n.hashed["gradients"] == net.stored_bytes and n.hashed["optimiser"] == 2 * net.stored_bytes
    dense = MLP([784, 256, 256, 10], structure="dense")
    assert n.dense["weights"] + n.dense["biases"] == dense.stored_bytes
    assert n.dense["activations"] == n.hashed["activations"] == 4 * 32 * (784 + 256 + 256 + 10)
    assert n.dense["lists of the sketch"] == 0
    lists = n.hashed["lists of the sketch"]
    assert (lists > 0) == (structure == "strips")
    if structure == "strips":
        specs = [linear.spec for linear in net.linears[:2]]
        kept = [a for s in specs for a in sketch.lists(s, "float32", "emulator")] if emulator.available() else []
        if kept:
            assert lists == sum(a.nbytes for a in kept)
    inference = WIDGETS["memory_calculator"].computed(hidden=256, optimizer=0, n=32, dtype="float16")
    assert inference.dense["optimiser"] == inference.dense["gradients"] == 0
    assert inference.dense["activations"] == 2 * 32 * (784 + 256)
    assert inference.dense["weights"] == 2 * (784 * 256 + 256 * 10)


@pytest.mark.parametrize("kernel", ["naive", "coalesced", "shared"])
@pytest.mark.parametrize(("rows", "n", "threads"), [(20, 24, 64), (33, 7, 256), (1, 1, 64), (40, 40, 1024)])
def test_every_output_has_one_thread(kernel, rows, n, threads):
    blocks = widgets.grid_blocks(kernel, rows, n, threads)
    places = [widgets.written(kernel, rows, n, threads, b, t) for b in range(blocks) for t in range(threads)]
    real = [p for p in places if p is not None]
    assert sorted(real) == list(itertools.product(range(rows), range(n)))
    assert WIDGETS["index_map"].computed(kernel=kernel, rows=rows, n=n, threads=threads).owner.min() == 0


@pytest.mark.skipif(not emulator.available(), reason="the emulator needs a C++ compiler")
@pytest.mark.parametrize("kernel", ["naive", "coalesced", "shared"])
def test_index_map_is_what_the_kernel_does(kernel):
    """The store of the kernel's first warp, as the emulator traced it, goes where the map says."""
    rows, n, threads = 20, 24, 64 if kernel != "shared" else 1024
    spec = HashSpec.elementwise((rows, 4), 1 / 2)
    w, x, y = np.zeros(spec.n_buckets, np.float32), np.zeros((4, n), np.float32), np.zeros((rows, n), np.float32)
    chosen = {} if kernel == "shared" else {"THREADS": threads}
    launch = plan_matmul(w, x, y, spec, kernel, chosen)
    found = emulator.trace(*launch[:4])
    assert int(np.prod(launch.grid)) == widgets.grid_blocks(kernel, rows, n, threads)
    (store,) = [row for row in found.rows if row.op == "store" and row.space == "global"]
    for sample in found.requests(store.line, "store", first=8):
        numbers = WIDGETS["index_map"].computed(
            kernel=kernel, rows=rows, n=n, threads=threads, block=sample["block"], thread=32 * sample["warp"]
        )
        assert [None if o is None else 4 * (o[0] * n + o[1]) for o in numbers.outputs] == sample["addresses"]
        assert len(widgets.sectors(sample["addresses"], 4)) == widgets.store_sectors(numbers)


STRIDES = [  # stride, offset, bytes, order, sectors, lines: by hand (notebook 06)
    (1, 0, 4, "C", 4, 1), (2, 0, 4, "C", 8, 2), (4, 0, 4, "C", 16, 4), (8, 0, 4, "C", 32, 8), (33, 0, 4, "C", 32, 32),
    (1, 1, 4, "C", 5, 2), (0, 0, 4, "C", 1, 1), (1, 0, 16, "C", 16, 4), (1, 0, 2, "C", 2, 1), (1, 0, 8, "C", 8, 2),
    (1, 0, 4, "F", 32, 32), (0, 3, 4, "F", 1, 1), (2, 1, 2, "C", 4, 1), (2, 15, 2, "C", 5, 2),
]  # fmt: skip


@pytest.mark.parametrize(("stride", "offset", "size", "layout", "sectors", "lines"), STRIDES)
def test_access_numbers(stride, offset, size, layout, sectors, lines):
    n = WIDGETS["access_map"].computed(stride=stride, offset=offset, size=size, layout=layout)
    assert (n.sectors, n.lines) == (sectors, lines)
    assert n.wanted == size * (32 if stride else 1)
    assert n.efficiency == n.wanted / (32 * sectors)


ACCESS = r"""
extern "C" __global__ void access(const ELEMENT* x, ELEMENT* y, const int first, const int stride) {
    y[threadIdx.x] = x[first + threadIdx.x * stride];
}
"""


@pytest.mark.skipif(not emulator.available(), reason="the emulator needs a C++ compiler")
@pytest.mark.parametrize("ctype, size", [("float", 4), ("double", 8), ("float4", 16), ("short", 2)])
def test_sectors_are_the_emulator_s(ctype, size):
    """The same rule as that of the trace, for aligned and unaligned patterns."""
    kernel = emulator.RawKernel(ACCESS, "access", options=(f"-DELEMENT={ctype}",))
    dtype = {2: np.int16, 8: np.float64}.get(size, np.float32)
    x, y = (np.zeros(n * 32 * size // np.dtype(dtype).itemsize, dtype) for n in (100, 1))
    for stride, first in ((0, 0), (1, 0), (1, 3), (2, 1), (3, 5), (7, 2), (33, 1)):
        trace = emulator.trace(kernel, (1,), (32,), (x, y, np.int32(first), np.int32(stride)))
        load = next(row for row in trace.rows if row.op == "load" and row.array == "x")
        numbers = WIDGETS["access_map"].computed(stride=stride, offset=first, size=size)
        assert numbers.sectors == load.sectors
        assert -(-numbers.wanted // 32) == load.ideal_sectors


KNOWN = [  # architecture, threads, registers, shared bytes, blocks, warps
    ("sm_90", 256, 64, 0, 4, 32),
    ("sm_90", 256, 32, 0, 8, 64),
    ("sm_90", 1024, 64, 0, 1, 32),
    ("sm_90", 1024, 65, 0, 0, 0),  # 72 registers a thread by the rounding: too many for one block
    ("sm_90", 32, 16, 0, 32, 32),  # blocks bind
    ("sm_90", 128, 32, 227 * 1024, 1, 4),
    ("sm_90", 128, 32, 228 * 1024, 0, 0),
    ("sm_90", 128, 32, 113 * 1024, 2, 8),  # with what the system takes: exactly half
    ("sm_90", 128, 32, 114 * 1024, 1, 4),
    ("sm_80", 256, 168, 0, 1, 8),  # three warps a part of the multiprocessor
    ("sm_86", 256, 32, 0, 6, 48),
    ("sm_86", 64, 32, 0, 16, 32),
    ("sm_89", 64, 32, 0, 24, 48),
    ("sm_75", 256, 32, 0, 4, 32),
    ("sm_75", 256, 32, 64 * 1024, 1, 8),
    ("sm_100", 96, 32, 0, 21, 63),
    ("sm_120", 64, 32, 0, 24, 48),
]


@pytest.mark.parametrize(("arch", "threads", "registers", "shared", "blocks", "warps"), KNOWN)
def test_occupancy(arch, threads, registers, shared, blocks, warps):
    o = widgets.occupancy(arch, threads, registers, shared)
    assert (o.blocks, o.warps) == (blocks, warps)
    assert o.share == warps / widgets.ARCHITECTURES[arch].warps
    assert o.binding and all(o.by[name] == blocks for name in o.binding)


def cuda_header():
    """CUDA's cuda_occupancy.h, from the compiler's wheels."""
    for folder in map(Path, sys.path):
        for path in folder.glob("nvidia/*/include/cuda_occupancy.h"):
            return path
    return None


OCCUPANCY_CPP = r"""
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
    int major, minor, threads, warps, registers, shared_sm, shared_block, reserved, shared;
    while (scanf("%d %d %d %d %d %d %d %d %d", &major, &minor, &warps, &shared_sm, &shared_block, &reserved, &threads,
                 &registers, &shared) == 9) {
        cudaOccDeviceProp p;
        p.computeMajor = major, p.computeMinor = minor, p.maxThreadsPerBlock = 1024;
        p.maxThreadsPerMultiprocessor = 32 * warps, p.regsPerBlock = 65536, p.regsPerMultiprocessor = 65536;
        p.warpSize = 32, p.sharedMemPerBlock = 48 * 1024, p.sharedMemPerMultiprocessor = shared_sm, p.numSms = 1;
        p.sharedMemPerBlockOptin = shared_block, p.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes a;
        a.maxThreadsPerBlock = 1024, a.numRegs = registers, a.sharedSizeBytes = 0;
        a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, a.maxDynamicSharedSizeBytes = shared_block;
        cudaOccDeviceState s;
        s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult r;
        const int failed = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, shared);
        printf("%d\n", failed ? -1 : r.activeBlocksPerMultiprocessor);
    }
}
"""


@pytest.mark.skipif(
    not toolchain.available() or cuda_header() is None, reason="needs a C++ compiler and CUDA's headers"
)
def test_occupancy_is_that_of_cuda(tmp_path):
    (tmp_path / "main.cpp").write_text(OCCUPANCY_CPP)
    command, _ = toolchain._compiler()
    flags = ["-w", "-O1", f"-I{cuda_header().parent}", "main.cpp", "-o", "main"]
    subprocess.run([*command, *flags], cwd=tmp_path, check=True)
    lines, ours = [], []
    for arch, limits in widgets.ARCHITECTURES.items():
        number = int(arch.removeprefix("sm_"))
        for threads, registers, shared in itertools.product(
            (32, 64, 96, 160, 256, 384, 512, 1000, 1024), (16, 33, 40, 64, 65, 96, 128, 168, 255),
            (0, 1, 4000, 16 * 1024, 33_000, 49 * 1024, 64 * 1024, 99 * 1024, 113 * 1024, 163 * 1024, 227 * 1024),
        ):  # fmt: skip
            kib = 1024
            lines.append(
                f"{number // 10} {number % 10} {limits.warps} {limits.shared * kib} {limits.shared_block * kib} "
                f"{limits.reserved} {threads} {registers} {shared}"
            )
            ours.append(widgets.occupancy(arch, threads, registers, shared).blocks)
    done = subprocess.run(
        [tmp_path / "main"], input="\n".join(lines), capture_output=True, text=True, check=True, cwd=tmp_path
    )
    theirs = list(map(int, done.stdout.split()))
    assert len(theirs) == len(ours)
    assert [(a, b, c) for a, b, c in zip(lines, ours, theirs, strict=True) if b != c] == []


def test_roofline_numbers():
    widget = WIDGETS["roofline"]
    n = widget.computed(gflop=10.0, megabytes=5.0, ms=20.0, bandwidth=100.0, peak=2.0)
    assert n.mine.intensity == pytest.approx(2000) and n.mine.per_second == pytest.approx(0.5e12)
    assert widgets.roof(n) == pytest.approx(2e12)
    assert "25" in widget.say(n) and "arithmetic" in widget.say(n)
    low = widget.computed(gflop=1.0, megabytes=1000.0, ms=20.0, bandwidth=100.0, peak=2.0)
    assert widgets.roof(low) == pytest.approx(1e11) and "memory" in widget.say(low)
    record = records.read("gpu_ladder")
    row = next(
        r for r in record["rows"]
        if (r["kernel"], r["structure"], r["dtype"], r["compression"]) == ("naive", "strips", "float16", 1 / 64)
        and r["shape"] == [4096, 4096, 512] and r["spec"]["block"] == [16, 1]
    )  # fmt: skip
    chosen = widget.computed(products=widgets.Product("gpu_ladder", (4096, 4096, 512), 16, 16))
    (naive,) = [p for p in chosen.points if p.label == "naive"]
    assert naive.per_second == pytest.approx(2 * 4096 * 4096 * 512 / (row["ms"] / 1e3))
    stored = HashSpec.from_json(json.dumps(row["spec"])).n_buckets
    assert naive.intensity == pytest.approx(2 * 4096 * 4096 * 512 / (2 * (stored + 2 * 4096 * 512)))
    alone = widget.computed(device=None, products=None)
    assert alone.points == [] and alone.device is None and widget.draw(alone).axes[0].get_title(loc="left")


def test_ways_are_counted_from_the_record():
    rows = records.read("gpu_layer")["rows"]
    wins = {}
    for uses in (1, 1000):
        n = WIDGETS["ways_explorer"].computed(layer="elementwise", uses=uses)
        best = [
            min((w for w in ms if w != "dense"), key=ms.get) for ms in plots.ways(rows, "elementwise", uses).values()
        ]
        assert {way: best.count(way) for way in plots.WAYS} == n.wins
        wins[uses] = n.wins
    assert wins[1000]["materialise"] > wins[1]["materialise"]  # what it costs is spread
    one = WIDGETS["ways_explorer"].computed(layer="strips", dtype="float32")
    assert {case[1] for case in one.cases} == {"float32"}
    with pytest.raises(ValueError, match="choose another dtype"):
        WIDGETS["ways_explorer"].computed(layer="strips-16", dtype="float32")


@pytest.mark.parametrize(
    ("height", "stride", "panel"), [(128, None, 784), (128, 16, 784), (256, 24, 416), (16, None, 1024)]
)
@pytest.mark.parametrize("shape", [(1000, 784), (4096, 4096)])
def test_sketch_numbers(shape, height, stride, panel):
    n = WIDGETS["sketch_explorer"].computed(
        shape=shape, compression=1 / 64, height=height, stride=stride, panel=panel, n=32, dtype="float32"
    )
    spec = n.spec
    assert spec == HashSpec.strips(shape, 1 / 64, height=height, panel=(height, panel), stride=stride)
    slices = spec.panel_slices()
    high, wide = spec.panel
    across = -(-spec.cols // wide)
    windows = [(stop - start - spec.block[0]) // spec.unit + 1 for start, stop in slices]
    strips = -(-spec.rows // high)
    assert n.candidates == max(windows)
    assert n.sums == max(sum(windows[i * across : (i + 1) * across]) for i in range(strips))
    assert n.additions == strips * spec.cols and n.multiply_adds == spec.rows * n.sums
    assert n.z_bytes == strips * n.sums * 32 * 4
    if shape == (4096, 4096):
        assert n.nearest is None and "no such layer" in WIDGETS["sketch_explorer"].say(n)


def test_recorded_error_of_strips():
    widget = WIDGETS["sketch_explorer"]
    n = widget.computed(height=128, stride=16, panel=784)
    rows = [
        r for r in records.read(n.nearest.record)["rows"]
        if (r["method"], r["options"], r["compression"]) == ("hashed:strips", [["stride", 16]], 1 / 64)
    ]  # fmt: skip
    assert n.exact and n.nearest.error in [r["test_error_mean"] for r in rows] and n.nearest.seeds >= 3
    assert f"these strips had {n.nearest.error:.2f} %" in widget.say(n)
    near = widget.computed(height=64, stride=16)
    assert not near.exact and "nearest measured strips" in widget.say(near)


def test_accuracy_draws_the_record(monkeypatch):
    widget = WIDGETS["accuracy_explorer"]
    record = records.read("mnist_cpu")
    n = widget.computed(runs=("mnist_cpu", "mnist", (784, 1000, 10)), methods=("hashed:strips", "dense"))
    expected = sorted(
        (r["stored_bytes"], r["test_error_mean"]) for r in record["rows"] if r["method"] in ("hashed:strips", "dense")
    )
    assert [(r["stored_bytes"], r["test_error_mean"]) for r in n.rows] == expected
    (ax,) = widget.draw(n).axes
    drawn = sorted((1024 * x, y) for line in ax.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert drawn == pytest.approx([pytest.approx(p) for p in expected]) or np.allclose(drawn, expected)
    assert not ax.collections  # one seed: no bands

    several = [dict(r, seeds=[0, 1], test_error_std=0.1) for r in record["rows"]]
    (ax,) = widget.draw(n._replace(rows=[r for r in several if r["method"] == "hashed:strips"])).axes
    (band,) = [c for c in ax.collections if type(c).__name__.startswith("FillBetween") or "Poly" in type(c).__name__]
    edge = band.get_paths()[0].vertices[:, 1]
    errors = [r["test_error_mean"] for r in several if r["method"] == "hashed:strips"]
    assert edge.min() == pytest.approx(min(errors) - 0.1) and edge.max() == pytest.approx(max(errors) + 0.1)


def test_new_training_records_and_methods_appear(monkeypatch, tmp_path):
    record = records.read("mnist_cpu")
    rows = [dict(r, dataset="rotated", layers=[784, 1000, 1000, 1000, 10], method=m) for r, m in zip(
        record["rows"][:2], ("dense", "low_rank"), strict=True
    )]  # fmt: skip
    records.write(tmp_path / "grid.json", {**record, "rows": rows})
    monkeypatch.setattr(records, "results_dir", lambda: tmp_path)
    widget = WIDGETS["accuracy_explorer"]
    (key,) = widgets.recorded_trainings().values()
    assert key == ("grid", "rotated", (784, 1000, 1000, 1000, 10))
    assert set(widgets.recorded_methods().values()) == {"dense", "low_rank"}
    check_picture(widget, widget.view())
    monkeypatch.setattr(records, "results_dir", lambda: tmp_path / "none")
    with pytest.raises(ValueError, match="no record in data/results has it"):
        widget.view()


def digit():
    image = np.zeros((28, 28), np.float32)
    image[6:22, 13:15] = 1
    image[6, 13:20] = 1
    return image


def test_digits_are_changed_as_said():
    d = digit()
    assert np.array_equal(widgets.digit_image(d), d)
    assert np.array_equal(widgets.digit_image(d, right=3, down=-2), np.roll(d, (-2, 3), (0, 1)))
    assert not widgets.digit_image(d, right=10, down=10)[:10].any()
    for quarter in (90, 180, -90):
        turned = widgets.digit_image(d, rotate=quarter)
        assert np.allclose(turned, np.rot90(d, quarter // 90), atol=1e-5), quarter
    thick, thin = widgets.digit_image(d, thicken=1), widgets.digit_image(d, thicken=-1)
    assert np.all(thick >= d) and thick.sum() > d.sum() and np.all(thin <= d) and thin.sum() < d.sum()
    assert not widgets.digit_image(d, erase="the upper half")[:14].any()
    assert np.array_equal(widgets.digit_image(d, erase="the upper half")[14:], d[14:])
    painted = widgets.digit_image(d, erase="everything", paint=((0, 1), (13, 13)))
    assert painted.sum() == 8 and painted[0:2, 2:4].all() and painted[26:, 26:].all()
    noisy = widgets.digit_image(d, noise=50)
    assert 0 <= noisy.min() and noisy.max() <= 1 and np.array_equal(noisy, widgets.digit_image(d, noise=50))
    assert d.sum() == digit().sum()  # the digit is left alone


def test_guesses_are_the_networks():
    widget = WIDGETS["draw_a_digit"]
    n = widget.computed(MODELS, index=7, rotate=30)
    x = n.image.reshape(1, 784)
    for name, model in MODELS.items():
        logits = model.forward(x)[0].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum()
        assert np.allclose(n.probabilities[name], p, atol=1e-6)
        assert n.guesses[name] == model.predict(x)[0] and f"{name} says {p.argmax()}" in widget.say(n)
    bars = widget.draw(n).axes[1].patches
    assert np.allclose([b.get_width() for b in bars], 100 * n.probabilities["dense"])
    figure = widgets.digit_view(n.image, dict(zip("abcdef", [MODELS["dense"]] * 6, strict=True)))
    check_picture(widget, figure)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (2**20 - 1, "1024 KiB"), (3 * 2**30, "3 GiB")]
)
def test_sizes_in_words(count, text):
    assert widgets.size_text(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1720.4, "1,720"),
        (0.0123456, "0.0123"),
        (34.44, "34.4"),
        (1e-4, "0.0001"),
        (12345678.0, "1.23e+07"),
        (1.0, "1.00"),
    ],
)
def test_digits_that_count(value, text):
    assert widgets.digits(value) == text


# ---- the scale explorer


def test_scale_is_the_model_s(monkeypatch):
    """Numbers, text and table by the model itself, with rates that are written here."""
    products = {"matmul": 2e-15, "grad_x": 2e-15, "grad_w": 2e-15, "backward": 5e-15}
    rates = scale.Rates("a GPU", 50e9, 50e9, 40e9, products, 2, step=2e-14, fixed=1e-3, link=1e11)
    monkeypatch.setattr(widgets, "recorded_rates", lambda compression: rates)
    n = widgets.scale_numbers(2**18, 1 / 8, 1024, 16, "stream", 24)
    spec = bench.LAYER["strips"]((2**18, 2**18), 1 / 8)
    expected = scale.predict(spec, 1024, rates, mode="stream", ranks=16, hosts=2, budget=24e9)
    assert n.chosen == expected and expected.fits
    said, table = widgets.say_scale(n), dict(widgets.table_scale(n))
    assert "streamed, on 16 GPUs like a GPU" in said and "which fits in 24 GB" in said
    assert plots.seconds_text(expected.seconds) in said and expected.bound in said
    assert table["stored"] == plots.bytes_text(4 * spec.n_buckets) and table["dense"] == "275 GB"
    left, right = widgets.draw_scale(n).axes
    (x, y), = [(line.get_xdata(), line.get_ydata()) for line in left.lines if line.get_markersize() == 9
               and line.get_marker() == "D"]  # fmt: skip
    assert (x[0], y[0]) == (16, expected.seconds)
    crosses = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "x"]
    for (mode, found), away in zip(n.found.items(), crosses, strict=True):
        assert away == [p for p, s in found.items() if not s.fits], mode
    assert crosses[2] == list(widgets.GPUS) and "none" not in [t.get_text() for t in right.texts]
    alone = widgets.scale_numbers(2**14, 1 / 64, 256, 1, "data", 8)
    assert "sends" not in widgets.say_scale(alone) and dict(widgets.table_scale(alone))["in a host"] == "none"


def test_scale_needs_its_records(monkeypatch, tmp_path, quick):
    monkeypatch.setattr(records, "results_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="gpu_stream.json is missing; `hashedmm bench --stream`"):
        widgets.recorded_rates(1 / 8)
    _, text = parts(widgets.scale_explorer())
    assert 'role="alert"' in text.value and "gpu_stream" in text.value
