"""The figures: colours, texts, alternative texts, and the package's own source as notebooks show it."""

import ast
import html
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from hashedmm import Dataset, HashSpec, cpu, plots, reference


def image_of(ax):
    (image,) = ax.images
    return image


def test_buckets_draws_every_bucket_with_its_sign():
    spec = HashSpec.elementwise((4, 6), 1 / 2, seed=42)
    bucket, sign = spec.indices()
    figure, ax = plots.subplots()
    plots.buckets(ax, bucket, sign, "W", n_buckets=spec.n_buckets, numbers=True)
    assert np.array_equal(image_of(ax).get_array(), bucket)
    assert image_of(ax).get_clim() == (0, spec.n_buckets - 1)
    texts = [int(t.get_text().replace("−", "-")) for t in ax.texts]
    assert np.array_equal(np.abs(texts).reshape(4, 6), bucket)
    assert [t.get_text().startswith("−") for t in ax.texts] == list((sign < 0).ravel())
    assert "W" in {ax.get_title(loc="left"), ax.get_title(loc="center")}
    assert plots.png(figure).startswith(b"\x89PNG")


def test_buckets_marks_subtracted_weights_with_a_bar():
    bucket, sign = HashSpec.strips((8, 6), 1 / 2, height=4, panel=(4, 6), seed=42).indices()
    _, ax = plots.subplots()
    plots.buckets(ax, bucket, sign)
    assert not ax.texts
    places = {(int(line.get_ydata()[0]), int(np.mean(line.get_xdata()))) for line in ax.lines}
    assert places == {(int(i), int(j)) for i, j in np.argwhere(sign < 0)}
    assert image_of(ax).get_clim()[1] == bucket.max()


def test_buckets_draws_a_single_bucket():
    _, ax = plots.subplots()
    plots.buckets(ax, np.zeros((1, 1), int), numbers=True)
    assert [t.get_text() for t in ax.texts] == ["0"]


@pytest.mark.parametrize("docstring", [False, True])
def test_source_text_is_the_package_s_own(docstring):
    text = plots.source_text(reference.materialise, docstring=docstring)
    lines = text.splitlines()
    assert lines[0] == "# hashedmm/reference.py"
    assert lines[1] == "def materialise(w: np.ndarray, spec: HashSpec) -> np.ndarray:"
    assert lines[-1] == "    return sign.astype(w.dtype) * w[bucket]"
    assert ("Parameters" in text) == docstring


def test_source_text_of_methods_classes_and_compiled_functions():
    method = plots.source_text(HashSpec.indices)
    assert method.splitlines()[1] == "def indices(self) -> tuple[np.ndarray, np.ndarray]:"
    assert "Returns" not in method
    whole = plots.source_text(HashSpec)
    assert "class HashSpec:" in whole and '"""' not in whole
    assert "@njit" in plots.source_text(cpu._sum_inputs)


def test_source_text_refuses_what_has_no_source():
    with pytest.raises(TypeError):
        plots.source_text(3)


def test_kernel_text_is_the_file_or_a_part_of_it():
    whole = (resources.files("hashedmm") / "kernels" / "sketch_sum_mma.cu").read_text()
    assert plots.kernel_text("sketch_sum_mma") + "\n" == f"// hashedmm/kernels/sketch_sum_mma.cu\n{whole}"
    header = (resources.files("hashedmm") / "kernels" / "sketch.cuh").read_text()
    part = plots.kernel_text("sketch.cuh", "unsigned select(", "}").splitlines()
    first = next(i for i, line in enumerate(header.splitlines(), start=1) if "unsigned select(" in line)
    assert part[0] == f"// hashedmm/kernels/sketch.cuh, lines {first} to {first + len(part) - 2}"
    assert part[1].startswith("__device__") and part[2].startswith("    ") and part[-1] == "}"
    assert plots.kernel_text("hash.cuh", last="#pragma once").splitlines()[-1] == "#pragma once"
    indented = plots.kernel_text("sketch_sum_mma", "int task = first_strip", "int group_end").splitlines()
    assert indented[1].startswith("for (") and indented[2].startswith("    const int strip")


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("no such line", None, "exactly one line"),
        ("int", None, "exactly one line"),
        ("#pragma once", "no such line", "last must be in a line"),
    ],
)
def test_kernel_text_says_what_it_does_not_find(first, last, message):
    with pytest.raises(ValueError, match=message):
        plots.kernel_text("hash.cuh", first, last)


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would be given to show."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def words_of(block):
    """The text of a block of HTML, as it is read."""
    return html.unescape(re.sub(r"<[^>]*>", "", block))


def test_source_shows_each_function_once(shown):
    plots.source(reference.materialise, reference.matmul)
    (bundle,) = shown
    texts = [plots.source_text(f) for f in (reference.materialise, reference.matmul)]
    blocks = re.findall("<pre .*?</pre>", bundle["text/html"], re.DOTALL)
    assert [words_of(block).rstrip("\n") for block in blocks] == texts
    assert bundle["text/plain"] == "\n\n".join(texts)
    assert re.search(r"<span [^>]*bold[^>]*>def</span>", blocks[0])


def test_kernel_source_is_shown_as_it_is(shown):
    plots.kernel_source("warpgroup.cuh")
    plots.kernel_source("sketch_sum_mma", "int task = first_strip", "int group_end")
    texts = [
        plots.kernel_text("warpgroup.cuh"),
        plots.kernel_text("sketch_sum_mma", "int task = first_strip", "int group_end"),
    ]
    assert [bundle["text/plain"] for bundle in shown] == texts
    assert [words_of(bundle["text/html"]).rstrip("\n") for bundle in shown] == texts
    assert "&lt;" in shown[0]["text/html"] and ">const</span>" in shown[1]["text/html"]


def luminance(color):
    """Relative luminance of "#rrggbb" (WCAG 2.1)."""
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


def test_shown_source_is_readable_in_any_theme(shown):
    plots.source(HashSpec, docstring=True)
    plots.kernel_source("ptx.cuh")
    for bundle in shown:
        block = bundle["text/html"]
        (background,) = re.findall(r"background: (#\w{6})", block)
        inks = set(re.findall(r"[\" ]color: (#\w{6})", re.sub(r"<span [^>]*>\s*</span>", "", block)))
        assert len(inks) > 3
        for ink in inks:  # 4.5 to 1 is the contrast that WCAG asks of text
            assert (luminance(background) + 0.05) / (luminance(ink) + 0.05) >= 4.5, ink


def kernel_sources_of_notebooks():
    """The arguments of every call of `plots.kernel_source` in the notebooks, each with its notebook."""
    for file in sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and "plots.kernel_source" in source:
                for node in ast.walk(ast.parse(source)):
                    if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.kernel_source":
                        yield file.stem, tuple(ast.literal_eval(argument) for argument in node.args)


def test_shown_sources_fit_the_window():
    """Lines of Python have 120 characters at most: ruff sees to that."""
    calls = list(kernel_sources_of_notebooks())
    assert len(calls) > 10
    for notebook, call in calls:
        for line in plots.kernel_text(*call).splitlines():
            assert len(line) <= plots.SOURCE_COLUMNS, (notebook, call, line)


def test_error_against_sums_draws_a_line_a_height_and_a_band():
    def row(height, sums, error, std=0.05):
        return {"height": height, "sums": sums, "test_error_mean": error, "test_error_std": std}

    rows = [row(128, 91, 3.0), row(128, 12, 5.0), row(256, 12, 6.0, None), row(None, None, 2.5)]
    figure = plots.error_against_sums(rows, "error")
    (ax,) = figure.axes
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in ax.lines if line.get_marker() in "sD"}
    assert lines[(12, 91)] == (5.0, 3.0) and lines[(12,)] == (6.0,)
    assert {t.get_text() for t in ax.texts} == {"128 high", "256 high", "elementwise"}
    (band,) = ax.patches
    assert band.get_y() == pytest.approx(2.45) and band.get_height() == pytest.approx(0.1)
    assert ax.get_xscale() == "log" and "%" in ax.get_ylabel()
    assert plots.png(figure).startswith(b"\x89PNG")


def _request(address, size=4):
    return {"array": "x_dn", "addresses": [address(lane) for lane in range(32)], "size": size}


def test_access_map_draws_a_number_for_every_lane():
    figure = plots.access_map([_request(lambda lane: 4 * lane), _request(lambda lane: 0)], ["a row", "one word"])
    row, one = figure.axes
    assert [t.get_text() for t in row.texts] == [str(lane) for lane in range(32)]
    assert [t.get_text() for t in one.texts] == ["all"]
    assert (row.get_title(loc="left"), one.get_title(loc="left")) == ("a row", "one word")
    tinted = [int((image_of(ax).get_array()[..., 3] > 0).sum()) for ax in (row, one)]
    assert tinted == [32, 8]  # four sectors of eight words, and one


def test_access_map_says_what_it_leaves_out():
    figure = plots.access_map([_request(lambda lane: 128 * lane)], ["column"], space="shared", most_rows=10)
    assert len(figure.axes[0].texts) == 10 and "22 more rows" in figure.axes[0].get_xlabel()
    with pytest.raises(ValueError, match="space must be"):
        plots.access_map([], [], space="local")


# Ways from buckets to y, the ladder, and the roofline: on made-up times.


def timed(kernel, n, ms, *, dense=1.0, both=5.0, chosen=None, layer="strips", seed=1):
    """A row of gpu_layer: a product takes ``ms``, the dense one ``dense``, materialising and multiplying ``both``."""
    row = {
        "operation": "matmul", "kernel": kernel, "layer": layer, "size": "64x32", "dtype": "float16",
        "compression": 1 / 8, "shape": [64, 32, n], "spec": {"seed": seed}, "ms": ms,
        "baselines": {"cublas_float16": dense, "materialise_cublas": both},
    }  # fmt: skip
    return row | ({"chosen": chosen} if chosen else {})


LAYER_ROWS = [
    timed("auto", 1, 0.1, chosen="sketch"),  # does not count: sketch itself was timed
    timed("strip", 1, 0.5),
    timed("panel", 1, 0.8),
    timed("sketch", 1, 2.0),
    timed("auto", 8, 3.0, chosen="strip"),  # counts: no direct kernel was timed by its name
    timed("sketch", 8, 4.5),
    timed("strip", 1, 0.01, layer="strips-16"),
    timed("grad_x", 1, 0.01) | {"operation": "grad_x"},
]


@pytest.mark.parametrize("uses, materialise", [(1, 5.0), (4, 2.0), (1000, 1.004)])
def test_ways_shares_one_matrix_among_its_uses(uses, materialise):
    found = plots.ways(LAYER_ROWS, "strips", uses)
    case = ("64x32", "float16", 1 / 8)
    assert found[(*case, 1)] == {"dense": 1.0, "materialise": pytest.approx(materialise), "direct": 0.5, "sketch": 2.0}
    assert found[(*case, 8)] == {"dense": 1.0, "materialise": pytest.approx(materialise), "direct": 3.0, "sketch": 4.5}
    assert len(found) == 2


def test_ways_refuses_no_use():
    with pytest.raises(ValueError, match="uses must be at least 1, got 0"):
        plots.ways(LAYER_ROWS, "strips", 0)


def test_the_map_names_the_fastest_way_and_its_speed():
    figure = plots.ways_map([*LAYER_ROWS, timed("sketch", 8, 1.0) | {"size": "128x32"}], "strips", uses=(1, 1000))
    once, often = figure.axes
    color = {way: look[0] for way, look in plots.WAYS.items()}

    def cells(ax):
        """(colour, text, weight) in reading order."""
        marks = [line for line in ax.lines if line.get_marker() != "."]
        texts = sorted(ax.texts, key=lambda text: (round(text.get_position()[1]), text.get_position()[0]))
        assert len(marks) == len(texts)
        marks.sort(key=lambda line: (round(line.get_ydata()[0] + 0.2), line.get_xdata()[0]))
        return [(m.get_color(), k.get_text(), k.get_weight()) for m, k in zip(marks, texts, strict=True)]

    assert [label.get_text() for label in once.get_yticklabels()] == ["128 x 32, float16, 1/8", "64 x 32, float16, 1/8"]
    assert cells(once) == [
        (color["sketch"], "1.0", "bold"), (color["direct"], "2.0", "bold"), (color["direct"], "0.33", "normal"),
    ]  # fmt: skip
    assert [found[0] for found in cells(often)] == [color["sketch"], color["direct"], color["materialise"]]
    assert [line for line in once.lines if line.get_marker() == "."]  # a case that was not measured
    assert (once.get_title(loc="left"), often.get_title(loc="left")) == ("W used once", "W used 1,000 times")
    with pytest.raises(ValueError, match="no rows of layer 'tiles' and float32 to draw"):
        plots.ways_map(LAYER_ROWS, "tiles", dtype="float32")


def test_the_ladder_says_how_each_kernel_compares():
    rows = [timed("naive", 1, 20.0), timed("sketch", 1, 0.4), timed("naive", 8, 3.0), timed("auto", 1, 0.4)]
    figure = plots.ladder_bars(rows, title="the ladder")
    one, eight = figure.axes
    assert [label.get_text() for label in one.get_yticklabels()] == ["naive", "sketch"]
    texts = [text.get_text().strip() for text in one.texts]
    assert texts == ["20 ms: 20 x as long", "0.4 ms: 2.5 x as fast", "cuBLAS, dense: 1 ms"]
    assert "not timed here" in [text.get_text() for text in eight.texts]
    assert [bar.get_facecolor()[:3] for bar in one.patches][1] == pytest.approx(plots.to_rgba(plots.BLUE)[:3])
    with pytest.raises(ValueError, match="one spec and one dtype"):
        plots.ladder_bars([*rows, timed("strip", 1, 1.0, seed=2)])


def test_the_roofline_places_points_and_roofs():
    roofs = [
        {"roof": "copy", "per_second": 2e12, "unit": "bytes"},
        {"roof": "cublas_tf32", "per_second": 100e12, "unit": "FLOP"},
    ]
    points = [
        plots.Point("fast", 10.0, 5e12, plots.BLUE, "D"),
        plots.Point("", 20.0, 200e12, plots.GREEN, "*", False),
    ]
    (ax,) = plots.roofline(roofs, points, "roofs").axes
    slanted, flat, *drawn = ax.lines
    assert slanted.get_xdata()[1] == 50.0 and slanted.get_ydata()[1] == 100.0  # the ridge
    assert flat.get_xdata()[0] == 50.0
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in drawn] == [(10.0, 5.0), (20.0, 200.0)]
    assert [line.get_markerfacecolor() for line in drawn] == [plots.BLUE, "white"]
    assert [text.get_text() for text in ax.texts] == ["memory, 2 TB/s", "TF32: 100 TFLOP/s", "fast"]
    assert all(ax.get_ylim()[0] < p.per_second / 1e12 < ax.get_ylim()[1] for p in points)


def test_samples_shows_images_with_their_labels(small_mnist):
    data = small_mnist.subset(7, 3)
    figure = plots.samples(data, rows=2, cols=4)
    assert len(figure.axes) == 8 and figure.get_suptitle() == f"{data.name}, train"
    for k, ax in enumerate(figure.axes[:7]):
        assert np.array_equal(image_of(ax).get_array(), data.x_train[k].reshape(28, 28))
        assert image_of(ax).get_clim() == (0, 1)
        assert ax.get_title() == str(data.y_train[k])
    assert not figure.axes[7].images and not figure.axes[7].axison
    (first, *_) = plots.samples(data, rows=1, cols=2, part="test", title="digits").axes
    assert np.array_equal(image_of(first).get_array(), data.x_test[0].reshape(28, 28))
    assert plots.png(figure).startswith(b"\x89PNG")


def test_samples_refuses_what_it_cannot_draw(small_mnist):
    data = small_mnist.subset(7, 3)
    with pytest.raises(ValueError, match='"train" or "test"'):
        plots.samples(data, part="validation")
    with pytest.raises(ValueError, match="at least 1"):
        plots.samples(data, rows=0)
    oblong = Dataset("oblong", data.x_train[:, :783], data.y_train, data.x_test[:, :783], data.y_test)
    with pytest.raises(ValueError, match="square"):
        plots.samples(oblong)


# The study, on made-up rows.


def trained(method, compression=1 / 8, error=2.0, std: float | None = 0.1, layers=(784, 1000, 10), **more):
    """A row of a training record."""
    stored = round(3_000_000 * compression)
    errors = [error - (std or 0), error, error + (std or 0)] if std else [error]
    return {
        "method": method, "compression": compression, "layers": list(layers), "dataset": "mnist", "options": [],
        "hash": "fmix32", "stored_bytes": stored, "test_error_mean": error, "test_error_std": std,
        "test_errors": errors, "multiply_adds": stored // 4, "additions": 0,
    } | more  # fmt: skip


def curves(ax):
    """{colour: (x, y)} of the lines with a marker."""
    lines = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
    return {line.get_color(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines}


def texts_of(ax):
    return [text.get_text() for text in ax.texts]


GRID = [
    trained(method, c, error * (1 + k / 2))
    for k, c in enumerate((1 / 2, 1 / 8, 1 / 64))
    for method, error in (("hashed:elementwise", 1.5), ("hashed:strips", 1.6), ("small_dense", 2.0), ("low_rank", 3.0))
] + [trained("dense", 1.0, 1.4)]


def test_every_method_of_the_study_has_a_look_of_its_own_in_its_panel():
    from hashedmm import experiments

    assert set(experiments.COMPARED) | {"dense"} <= plots.METHODS.keys()
    assert set().union(*plots.GROUPS.values()) | {plots.REFERENCE} == set(experiments.COMPARED)
    for methods in (*plots.GROUPS.values(), plots.HIGHLIGHTED, experiments.COMPARED):
        looks = [(plots.METHODS[m]["color"], plots.METHODS[m]["marker"]) for m in {*methods, plots.REFERENCE}]
        assert len(set(looks)) == len(looks)
    assert len({plots.method_name(m) for m in experiments.COMPARED}) == len(experiments.COMPARED)


def test_error_groups_draws_each_group_beside_the_reference():
    groups = {"hashes": ("hashed:strips",), "others": ("small_dense", "low_rank", "obd")}
    figure = plots.error_groups(GRID, "errors", groups)
    left, right = figure.axes
    color = {m: plots.METHODS[m]["color"] for m in plots.METHODS}
    assert curves(left).keys() == {color["hashed:elementwise"], color["hashed:strips"]}
    assert curves(right).keys() == {color[m] for m in ("hashed:elementwise", "small_dense", "low_rank")}
    x, y = curves(left)[color["hashed:strips"]]
    assert x == [round(3_000_000 * c) / 1024 for c in (1 / 64, 1 / 8, 1 / 2)] and y == pytest.approx([3.2, 2.4, 1.6])
    band = left.collections[1].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(1.5) and band.max() == pytest.approx(3.3)
    assert {"strips 3.20", "elementwise 3.00"} <= set(texts_of(left)) and any("dense" in t for t in texts_of(left))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["hashes", "others"]
    assert "%" in left.get_ylabel() and "KiB" in left.get_xlabel()
    assert right.get_ylim()[1] > 6 > left.get_ylim()[1] > 3.2  # scales of their own
    assert plots.png(figure).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least one row"):
        plots.error_groups([], "nothing")


def test_accuracy_has_a_panel_a_depth():
    deep = [dict(r, layers=[784, 1000, 1000, 1000, 10], test_error_mean=r["test_error_mean"] / 2) for r in GRID]
    figure = plots.accuracy([*deep, *GRID])
    one, three = figure.axes
    assert one.get_title(loc="left") == "784-1000-10" and three.get_title(loc="left") == "784-1000-1000-1000-10"
    strips = plots.METHODS["hashed:strips"]["color"]
    assert curves(three)[strips][1] == pytest.approx([y / 2 for y in curves(one)[strips][1]])
    low, high = one.get_ylim()
    assert (low, high) == three.get_ylim() and low < 0.7 and high > 6  # one scale for both
    assert "strips 3.20" in texts_of(one) and "strips 1.60" in texts_of(three)


def test_error_map_compares_with_elementwise():
    rows = [
        trained("hashed:elementwise", error=2.0), trained("small_dense", error=4.0, std=1.0),
        trained("low_rank", error=1.0), trained("hashed:elementwise", error=10.0, dataset="bg_rand"),
        trained("small_dense", error=20.0, dataset="bg_rand"),
    ]  # fmt: skip
    (ax,) = plots.error_map(rows, "errors").axes
    ratio = np.asarray(image_of(ax).get_array().filled(np.nan))
    assert ratio[:2].tolist() == [[0, 0], [1, 1]] and ratio[2, 0] == -1 and np.isnan(ratio[2, 1])
    by_text = {t.get_text(): t for t in ax.texts}
    assert by_text.keys() == {"2.00", "4.00\n±1.00", "1.00", "10.0", "20.0"}  # unstable: says so
    assert {t for t, text in by_text.items() if text.get_weight() == "bold"} == {"1.00", "10.0"}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["mnist", "bg\nrand"]
    with pytest.raises(ValueError, match="rows must hold hashed:elementwise"):
        plots.error_map([trained("dense")], "errors")


def test_expansion_compares_equal_storage():
    rows = [
        trained("hashed:strips", c / k, error, layers=(784, 1000 * k, 10), stored_bytes=b)
        for c, b in ((1 / 8, 400_000), (1 / 64, 50_000))
        for k, error in ((1, 2.0), (2, 1.8 + c))
    ]
    large, small = plots.expansion(rows).axes
    blue = plots.METHODS["hashed:strips"]["color"]
    assert curves(large)[blue] == ([1000, 2000], [2.0, 1.925])
    assert curves(small)[blue] == ([1000, 2000], [2.0, pytest.approx(1.815625)])
    assert large.get_title(loc="left") == "391 to 391 KiB stored" and texts_of(small) == ["strips 1.82"]


def strips(error, given, stride, height=128, panel=(128, 784)):
    """A row of strips_shape: the options ``given``, and what they were cut to."""
    spec = {"block": [height, 1], "panel": list(panel), "stride": stride}
    return trained("hashed:strips", 1 / 64, error, options=[list(o) for o in given.items()], specs=[[spec, None]])


SHAPES = [
    trained("hashed:elementwise", 1 / 64, 2.5),
    strips(4.7, {"stride": 128}, 128),
    strips(2.7, {"stride": 16}, 16),
    strips(2.6, {"height": 8, "stride": 8}, 8, height=8),
    strips(2.8, {"panel": [128, 256], "stride": 16}, 16, panel=(128, 208)),
    strips(2.9, {"height": 256, "panel": [256, 416], "stride": 24}, 24, height=256, panel=(256, 400)),
]


def test_sweeps_vary_one_thing_each():
    found = {name: [(text, r["test_error_mean"]) for text, r in pairs] for name, pairs in plots.sweeps(SHAPES).items()}
    assert found == {
        "stride": [("16", 2.7), ("128", 4.7)],
        "height": [("8", 2.6), ("128", 2.7)],
        "panel": [("128 x 208", 2.8), ("128 x 784", 2.7)],
        "all three": [("height 256, panel 256 x 400, stride 24", 2.9)],
    }


def test_the_shapes_of_strips_are_drawn_beside_elementwise():
    figure = plots.strips_shape(SHAPES)
    stride, height, panel = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["1/64: stride", "1/64: height", "1/64: panel"]
    for ax, errors in ((stride, ["2.70", "4.70"]), (height, ["2.60", "2.70"]), (panel, ["2.80", "2.70"])):
        assert [t for t in texts_of(ax) if t != "elementwise"] == errors
        (band,) = ax.patches
        assert (band.get_y(), band.get_height()) == (pytest.approx(2.4), pytest.approx(0.2))
        filled = [line for line in ax.lines if line.get_marker() == "D" and line.get_markerfacecolor() == plots.BLUE]
        assert [line.get_ydata()[0] for line in filled] == [2.7]  # the default
    assert [t.get_text() for t in panel.get_xticklabels()] == ["128 x\n208", "128 x\n784"]


def test_hash_errors_shows_every_seed():
    rows = [trained("hashed:strips", 1 / 8, 2.0), trained("hashed:strips", 1 / 8, 2.4, hash="multiply_shift")]
    (ax,) = plots.hash_errors(rows).axes
    seeds = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in ax.lines if line.get_marker() in "oX"}
    assert seeds[tuple(rows[0]["test_errors"])] == (0, 0, 0) and seeds[tuple(rows[1]["test_errors"])] == (1, 1, 1)
    assert texts_of(ax) == ["2.00", "2.40"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["strips, fmix32", "strips, multiply_shift"]


def test_error_against_operations_counts_both_kinds():
    rows = [*GRID, trained("hashed:codebook", 1 / 64, 3.5, multiply_adds=1000, additions=9000)]
    eighth, least = plots.error_against_operations(rows, "operations").axes
    assert "codebook" in texts_of(least) and "codebook" not in texts_of(eighth)
    assert {"dense", "strips"} <= set(texts_of(eighth)) & set(texts_of(least))
    places = {line.get_xdata()[0] for line in least.lines if line.get_marker() == ">"}
    assert places == {10_000}
    with pytest.raises(ValueError, match="at least one row"):
        plots.error_against_operations([trained("low_rank", 1 / 2)], "operations")


def layer_row(layer, kernel, ms, spec, n=1, both=2.0, compression=1 / 8):
    return {
        "operation": "matmul", "kernel": kernel, "layer": layer, "size": "1024x1024", "dtype": "float16",
        "compression": compression, "shape": [1024, 1024, n], "structure": spec.structure, "ms": ms,
        "spec": {"block": list(spec.block), "panel": spec.panel and list(spec.panel), "stride": spec.stride},
        "baselines": {"cublas_float16": 1.0, "materialise_cublas": both},
    }  # fmt: skip


def of_spec(spec, error):
    """A trained row whose first layer is ``spec``."""
    first = {
        "shape": list(spec.shape), "compression": spec.compression, "block": list(spec.block), "seed": spec.seed,
        "panel": spec.panel and list(spec.panel), "stride": spec.stride, "hash": spec.hash,
    }  # fmt: skip
    return trained(f"hashed:{spec.structure}", 1 / 8, error, specs=[[first, None]])


def test_traded_finds_the_layers_whose_error_is_known():
    big, small = (1024, 1024), (200, 150)
    rows = [
        layer_row("strips", "sketch", 0.25, HashSpec.strips(big, 1 / 8, height=64, panel=(64, 512))),
        layer_row("strips", "tensor", 4.0, HashSpec.strips(big, 1 / 8, height=64, panel=(64, 512))),
        layer_row("strips-16", "strip", 0.1, HashSpec.strips(big, 1 / 8, height=16, panel=(64, 512))),
        layer_row("panels", "panel", 5.0, HashSpec.panels(big, 1 / 8, panel=(64, 512)), both=0.5),
        layer_row("elementwise", "shared", 9.0, HashSpec.elementwise(big, 1 / 8), n=1024),
    ]
    networks = [
        of_spec(HashSpec.strips(small, 1 / 8, height=64, panel=(64, 100), seed=3), 9.0),  # another panel
        of_spec(HashSpec.strips(small, 1 / 8, height=64, panel=(64, 512), stride=64, seed=3), 2.5),
        of_spec(HashSpec.strips(small, 1 / 8, height=64, panel=(64, 512), stride=64, seed=3), 7.0),  # the second
        of_spec(HashSpec.panels(small, 1 / 8, panel=(64, 512), seed=3), 2.25),
        of_spec(HashSpec.elementwise(small, 1 / 8, seed=3), 2.0),
        trained("low_rank"),
    ]
    found = plots.traded(rows, networks, 1 / 8, 1, size="1024x1024")
    assert found == [
        plots.Traded("strips", "strips, 64 high, stride 64", "sketch", 4.0, 2.5, 0.1),
        plots.Traded("panels", "panels", "materialise", 2.0, 2.25, 0.1),
    ]
    (many,) = plots.traded(rows, networks, 1 / 8, 1024, size="1024x1024")
    assert (many.layer, many.way, many.speed) == ("elementwise", "materialise", 0.5)
    assert plots.traded(rows, networks, 1 / 64, 1, size="1024x1024") == []

    figure = plots.frontier({"n = 1": found, "n = 1,024": [many]}, "both", dense_error=1.5)
    one, other = figure.axes
    assert texts_of(one) == ["dense 1.50", "panels: materialise", "strips, 64 high, stride 64: sketch"]
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in one.lines if len(line.get_xdata()) == 1}
    assert {(4.0, 2.5), (2.0, 2.25), (1.0, 1.5)} <= points
    assert "elementwise: materialise" in texts_of(other)
    with pytest.raises(ValueError, match="at least one row"):
        plots.frontier({"nothing": []}, "none")


# Larger than memory, and several ranks


def test_a_timeline_has_a_bar_a_step_and_says_when_it_ends():
    two = [("up", 0, 0.0, 2.0), ("product", 0, 2.0, 5.0), ("up", 1, 2.0, 4.0), ("product", 1, 5.0, 8.0)]
    down = [("product", 0, 0.0, 1.0), ("down", 0, 1.0, 3.0)]
    figure = plots.stream_timeline({"one way": two, "back": down}, "a stream")
    first, second = figure.axes
    bars = {(bar.get_x(), bar.get_width(), round(bar.get_y() + bar.get_height() / 2)) for bar in first.patches}
    assert bars == {(0, 2, 0), (2, 3, 1), (2, 2, 0), (5, 3, 1)}
    assert texts_of(first) == ["0", "0", "1", "1", "8 ms"] and "3 ms" in texts_of(second)
    assert [t.get_text() for t in first.get_yticklabels()] == ["copy up", "product"]
    assert [t.get_text() for t in second.get_yticklabels()] == ["product", "copy down"]
    assert figure.get_figwidth() <= 8.4
    with pytest.raises(ValueError, match="at least one event each"):
        plots.stream_timeline({"nothing": []}, "none")


def test_time_against_size_has_lines_points_and_where_memory_ends():
    lines = {"hashed": ("stream", [2**14, 2**16], [0.01, 0.16]), "dense": ("dense", [2**14, 2**16], [0.04, 0.64])}
    figure = plots.time_against_size(lines, [("stream", 2**15, 0.05, "measured")], {"the GPU is full": 40000}, "time")
    (ax,) = figure.axes
    drawn = {(line.get_color(), line.get_linestyle()): line for line in ax.lines}
    assert list(drawn[plots.BLUE, "-"].get_ydata()) == [0.01, 0.16]
    assert drawn[plots.BLACK, "--"].get_ydata()[1] == 0.64
    points = [line for line in ax.lines if len(line.get_xdata()) == 1 and line.get_marker() == "D"]
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [(2**15, 0.05)]
    assert drawn[plots.GREY, ":"].get_xdata()[0] == 40000
    assert {"measured", "the GPU is full", "hashed", "dense"} <= {t.strip() for t in texts_of(ax)}
    assert [t.get_text() for t in ax.get_xticklabels()] == ["16k", "32k", "64k"]
    with pytest.raises(ValueError, match="at least one"):
        plots.time_against_size({}, [], {}, "none")


def test_over_ranks_carries_lines_beyond_the_points():
    figure = plots.over_ranks({"panels split": ("panels", [1, 2, 4], [4.0, 2.2, 1.3])}, [("panels", 2, 2.5)], "steps")
    (ax,) = figure.axes
    line, *_ = ax.lines
    assert list(line.get_xdata()) == [1, 2, 4] and texts_of(ax) == ["panels split"]
    (point,) = [p for p in ax.lines if p.get_markersize() == 9]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (2, 2.5)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4"]
    assert {"1 s", "2 s", "5 s"} == {t.get_text() for t in ax.get_yticklabels()}


def test_bytes_are_bars_with_their_numbers():
    (ax,) = plots.bytes_sent([("dense", "dense", 2e9), ("split", "data", 1.5e7), ("alone", "panels", 0)], "sent").axes
    assert texts_of(ax) == ["2 GB", "15 MB", "none"]
    low = ax.get_xlim()[0]
    assert [low + bar.get_width() for bar in ax.patches] == [2e9, 1.5e7, low]
    _, limited = plots.subplots()
    plots.draw_bytes(limited, [("a", "data", 1e6)], 1e9)
    assert [line.get_xdata()[0] for line in limited.lines] == [1e9]
    with pytest.raises(ValueError, match="rows must have bytes"):
        plots.bytes_sent([("a", "data", 0)], "none")


@pytest.mark.parametrize(
    "count, text",
    [(0.5, "0.5 B"), (999, "999 B"), (1500, "1.5 kB"), (8.59e9, "8.59 GB"), (2.75e11, "275 GB"), (1.1e12, "1.1 TB"),
     (4.4e15, "4,400 TB")],
)  # fmt: skip
def test_bytes_in_words(count, text):
    assert plots.bytes_text(count) == text


@pytest.mark.parametrize("seconds, text", [(2.5e-6, "2.5 us"), (0.0123, "12.3 ms"), (1, "1 s"), (5000, "5,000 s")])
def test_seconds_in_words(seconds, text):
    assert plots.seconds_text(seconds) == text
