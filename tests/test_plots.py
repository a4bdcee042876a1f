"""The figures: colours, texts, alternative texts, and the package's own source as notebooks show it."""

import numpy as np
import pytest

from hashedmm import HashSpec, cpu, plots, reference


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
