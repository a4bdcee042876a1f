"""The figures: colours, texts, alternative texts, and the package's own source as notebooks show it."""

from importlib import resources

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
    assert lines[:2] == ["```python", "# hashedmm/reference.py"]
    assert lines[2] == "def materialise(w: np.ndarray, spec: HashSpec) -> np.ndarray:"
    assert lines[-1] == "```"
    assert "    return sign.astype(w.dtype) * w[bucket]" in lines
    assert ("Parameters" in text) == docstring


def test_source_text_of_methods_classes_and_compiled_functions():
    method = plots.source_text(HashSpec.indices)
    assert method.splitlines()[2] == "def indices(self) -> tuple[np.ndarray, np.ndarray]:"
    assert "Returns" not in method
    whole = plots.source_text(HashSpec)
    assert "class HashSpec:" in whole and '"""' not in whole
    assert "@njit" in plots.source_text(cpu._sum_inputs)


def test_source_text_refuses_what_has_no_source():
    with pytest.raises(TypeError):
        plots.source_text(3)


def test_source_shows_each_function_once(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    plots.source(reference.materialise, reference.matmul)
    (markdown,) = shown
    assert markdown.data.count("```python") == 2
    assert markdown.data.index("def materialise") < markdown.data.index("def matmul(")


def test_kernel_text_is_the_file_or_a_part_of_it():
    whole = (resources.files("hashedmm") / "kernels" / "sketch_sum_mma.cu").read_text()
    assert plots.kernel_text("sketch_sum_mma") == f"```cuda\n// hashedmm/kernels/sketch_sum_mma.cu\n{whole}```"
    part = plots.kernel_text("sketch_sum_mma", "unsigned select(", "}").splitlines()
    first = next(i for i, line in enumerate(whole.splitlines(), start=1) if "unsigned select(" in line)
    assert part[1] == f"// hashedmm/kernels/sketch_sum_mma.cu, lines {first} to {first + len(part) - 4}"
    assert part[2].startswith("__device__") and part[3].startswith("    ") and part[-2:] == ["}", "```"]
    assert plots.kernel_text("hash.cuh", last="#pragma once").splitlines()[-2] == "#pragma once"
    indented = plots.kernel_text("sketch_sum_mma", "int task = first_strip", "int group_end").splitlines()
    assert indented[2].startswith("for (") and indented[3].startswith("    const int strip")


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
