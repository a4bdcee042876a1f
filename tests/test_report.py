"""Views of long records, and figures that know the record they are drawn from; on a small made-up record."""

import pytest

from hashedmm import HashSpec, bench, cli, plots, records, report

SHAPE = (128, 96)
SPECS = {
    "strips": lambda c: HashSpec.strips(SHAPE, c, height=32, panel=(32, 96), seed=1),
    "strips-16": lambda c: HashSpec.strips(SHAPE, c, height=16, panel=(32, 96), seed=1),
    "panels": lambda c: HashSpec.panels(SHAPE, c, panel=(32, 96), seed=1),
}


def layer_rows():
    """Rows of gpu_layer: "sketch" is twice as fast as dense, "tensor" half as fast; "strip" has n = 1."""
    rows = []

    def add(label, operation, kernel, c, n, ratio, dtype="float16"):
        names = [f"cublas_{dtype}"] if operation != "materialise" else ["fill"]
        dense = {names[0]: [1.0 * n] * 3} | ({"materialise_cublas": [4.0 * n] * 3} if operation == "matmul" else {})
        forms = {names[0]: "CC.C"} if operation != "materialise" else {}
        took = [n / ratio] * 3
        spec = SPECS[label](c)
        rows.append(bench.layer_row(label, operation, kernel, spec, n, dtype, 1e-4, took, dense, forms))

    for c in (1 / 4, 1 / 8):
        add("strips", "materialise", "materialise", c, 1, 0.8)
        for n in (1, 8, 1024):
            add("strips", "matmul", "sketch", c, n, 2.0)
            add("strips", "matmul", "tensor", c, n, 0.5)
        add("strips", "matmul", "strip", c, 1, 3.0)
        add("strips", "grad_w", "tensor_grad_w", c, 1024, 2.5)
        add("strips", "grad_w", "grad_w_fixed", c, 1024, 0.1)
        add("strips", "grad_w", "sketch", c, 1024, 1.5)
        add("strips", "step", "sketch", c, 1024, 2.0)
        add("strips-16", "matmul", "tensor", c, 1024, 0.6)
        add("panels", "matmul", "panel_few", c, 1, 2.5, dtype="float32")
    return rows


@pytest.fixture(scope="module")
def layer():
    return records.new_record("timing", layer_rows(), "hashedmm bench --gpu", {"kind": "gpu", "name": "a GPU"})


def test_the_summary_has_one_row_for_each_question(layer):
    rows = report.summary(layer["rows"])
    assert [r["compression"] for r in rows] == sorted(r["compression"] for r in rows)
    found = [(r["operation"], r["layer"], r["kernel"], r["shape"][2]) for r in rows if r["compression"] == 1 / 8]
    assert found == [
        ("matmul", "strips", "strip", 1), ("matmul", "strips", "sketch", 8), ("matmul", "strips", "sketch", 1024),
        ("grad_w", "strips", "tensor_grad_w", 1024), ("grad_w", "strips", "sketch", 1024),
        ("step", "strips", "sketch", 1024), ("matmul", "strips-16", "tensor", 1024),
        ("matmul", "panels", "panel_few", 1),
        ("materialise", "strips", "materialise", 1),
    ]  # fmt: skip
    fixed = [dict(r, fixed_order=True) if "fixed_order" in r else r for r in layer["rows"]]
    assert sum(r["operation"] == "grad_w" for r in report.summary(fixed)) == 2  # the fastest alone, once a compression


def test_the_summary_as_a_table(layer):
    text = "<!-- table: gpu_layer/summary size=128x96 -->\n<!-- end -->"
    lines = report.render(text, {"gpu_layer": layer}).splitlines()
    assert lines[2].startswith("| outputs x inputs | operation | n | structure | compression | kernel | ms | against |")
    assert lines[4] == (
        "| 128 x 96 | matmul | 1 | strips, height 32 | 1/8 | strip | 0.333 | cuBLAS float16 | 1 | 3.00 |"
    )
    assert "| grad_w, fixed order | 1024 | strips, height 32 | 1/8 | sketch |" in lines[8]
    assert "| step | 1024 | strips, height 32 | 1/8 | sketch |" in lines[9]
    assert "| panel_few | 0.4 | cuBLAS float32 | 1 | 2.50 |" in lines[11]
    assert "| materialise | 1.25 | a fill of as many bytes | 1 | 0.80 |" in lines[12]
    assert report.render("\n".join(lines), {"gpu_layer": layer}) == "\n".join(lines)
    assert "sketch" in report.text_table(layer, "summary")


@pytest.mark.parametrize(
    "marker, message",
    [
        ("gpu_layer/everything", "there is no view 'everything' of a record; there are summary, epochs, compressions"),
        ("gpu_layer/summary size=1x1", "has no rows"),
        ("nothing/summary", "the table 'nothing' has no record"),
    ],
)
def test_views_that_are_not_there(layer, marker, message):
    with pytest.raises(ValueError, match=message):
        report.render(f"<!-- table: {marker} -->\n<!-- end -->", {"gpu_layer": layer})


def training(**changes):
    spec = SPECS["strips"](1 / 8)
    history = {"seconds": [0.12, 0.1, 0.1], "test_error": [3.0, 1.71, 1.65]}
    baselines = {"dense_torch_graph": [0.16, 0.16], "dense_cupy": [2.5]}
    row = bench.training_row("hashed:strips", 1 / 8, spec, (96, 128, 10), history, 1e-6, baselines, 5.0, "PyTorch 2")
    return row | changes


def test_the_epochs_view():
    rows = [
        training(),
        training(structure="elementwise", seconds_to_target=None, baseline_seconds={"dense_cupy": [2.5]}),
    ]
    first, second = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in report.markdown_table(records.new_record("timing", rows, "c"), "epochs").splitlines()[2:4]
    )
    assert first == ["strips, height 32", "1/8", "0.100", "0.16", "2.5", "3", "98.35", "0.32"]
    assert second[3:5] == ["-", "2.5"] and second[-1] == "-"


def test_reached_counts_the_seconds_up_to_the_epoch():
    assert bench.reached(98.3, [97.0, 98.3, 98.1], [1.0, 2.0, 4.0]) == 3.0
    assert bench.reached(99.0, [97.0, 98.3], [1.0, 2.0]) is None


# The study


def study(method, compression, error, std=0.1, layers=(784, 1000, 10), dataset="mnist", **more):
    return {
        "method": method, "compression": compression, "layers": list(layers), "dataset": dataset, "epochs": 30,
        "batch": 100, "seeds": [0, 1], "test_error_mean": error, "test_error_std": std,
        "seconds": 1.0, "stored_bytes": 4,
    } | more  # fmt: skip


DEEP = (784, 1000, 1000, 1000, 10)


def table_cells(record, view, beside=()):
    lines = report.markdown_table(record, view, beside).splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]


def training_record(rows, command="hashedmm experiment x"):
    return records.new_record("training", rows, command, {"kind": "gpu", "name": "a GPU"})


@pytest.fixture
def grid():
    rows = [
        study("dense", 1.0, 1.4), study("hashed8:strips", 1 / 64, 1.875), study("hashed8:strips", 1 / 8, 1.5),
        study("distilled:small_dense", 1 / 8, 2.0, None), study("hashed8:strips", 1 / 8, 1.25, layers=DEEP),
    ]  # fmt: skip
    return training_record(rows, "hashedmm experiment mnist_grid")


def test_methods_against_compressions(grid):
    assert table_cells(grid, "compressions") == [
        ["hidden layers", "method", "1", "1/8", "1/64"],
        ["---:", "---", "---:", "---:", "---:"],
        ["1", "dense", "1.40 ± 0.10", "-", "-"],
        ["1", "strips, 8 bits", "-", "1.50 ± 0.10", "1.88 ± 0.10"],
        ["1", "distilled small dense", "-", "2.00", "-"],
        ["3", "strips, 8 bits", "-", "1.25 ± 0.10", "-"],
    ]


def test_methods_against_data_sets(grid):
    rows = [
        study("hashed8:strips", 1 / 64, 5.0, dataset="bg_rand", epochs=60),
        study("hashed8:strips", 1 / 8, 4.0, dataset="bg_rand", epochs=60),
        study("hashed8:strips", 1 / 8, 3.0, dataset="rect", epochs=300),
    ]
    variants = training_record(rows, "hashedmm experiment variants")
    text = "<!-- table: variants/datasets -->\n<!-- end -->"
    written = report.render(text, {"variants": variants, "mnist_grid": grid})
    assert "60/300 epochs, batch 100" in written and "30 epochs, batch 100" in written
    assert written.index("experiment variants") < written.index("experiment mnist_grid")
    assert report.render(written, {"variants": variants, "mnist_grid": grid}) == written
    assert table_cells(variants, "datasets", [grid]) == [
        ["hidden layers", "compression", "method", "mnist", "bg rand", "rect"],
        ["---:", "---:", "---", "---:", "---:", "---:"],
        ["1", "1/8", "strips, 8 bits", "1.50 ± 0.10", "4.00 ± 0.10", "3.00 ± 0.10"],
        ["1", "1/64", "strips, 8 bits", "1.88 ± 0.10", "5.00 ± 0.10", "-"],
        ["3", "1/8", "strips, 8 bits", "1.25 ± 0.10", "-", "-"],
    ]
    with pytest.raises(ValueError, match="rows of the record 'mnist_grid', too, and there is none"):
        report.render(text, {"variants": variants})


def test_what_a_search_chose():
    def searched(dropout, lr, error, layers=(784, 1000, 10)):
        more = {"dropout": dropout, "lr": lr, "validation_errors": [error], "seeds": [0]}
        return study("small_dense", 1 / 8, None, None, layers, **more)

    record = training_record([
        searched(0.0, 1e-3, 2.5), searched(0.1, 1e-3, 2.25), searched(0.1, 3e-4, 2.75),
        searched(0.5, 3e-4, 1.5, DEEP),
    ])  # fmt: skip
    assert table_cells(record, "settings")[2] == [
        "small dense", "1/8", "0.1", "0.001", "2.25", "2.50", "0.5", "0.0003", "1.50", "-"
    ]  # fmt: skip
    assert "2.50 (validation)" in report.text_table({**record, "rows": [
        r | {"sizes": [1], "stored_values": 1, "seconds_per_epoch": 1.0, "options": []}
        for r in record["rows"]
    ]})  # fmt: skip


def test_timings_without_a_baseline_have_a_table(layer):
    rows = [dict(r, baselines={}) for r in layer["rows"]]
    (head, *_) = report.text_table({**layer, "rows": rows}).splitlines()
    assert head.split()[-1] == "ms"
    assert report.text_table(layer).splitlines()[0].endswith("times as fast")


# Figures


def test_the_figure_of_speeds(layer):
    figure = plots.layer_speed(layer["rows"])
    axes = figure.axes
    assert [ax.get_title(loc="left") for ax in axes] == ["1/8 of the weights stored", "1/4 of the weights stored"]
    texts = [t.get_text() for t in axes[0].texts]
    assert sorted(texts) == [
        "dense, cuBLAS float16",
        "materialise, then cuBLAS",
        "strips, 16 high: tensor",
        "strips: sketch",
        "strips: strip",
    ]
    lines = {tuple(line.get_ydata()): tuple(line.get_xdata()) for line in axes[0].lines}
    assert lines[(2.0, 2.0, 2.0)] == (1, 8, 1024) and lines[(3.0,)] == (1,) and lines[(0.25,) * 3] == (1, 8, 1024)
    assert "128 x 96" in figure.get_suptitle() and axes[1].get_xlabel() and axes[0].get_ylabel()
    assert plots.png(figure).startswith(b"\x89PNG")


def test_a_figure_knows_its_record(layer, tmp_path):
    text = "![speeds](docs/gpu_speed.png)"
    available = {"gpu_layer": layer}
    assert report.figures(text) == ["docs/gpu_speed.png"] and report.figures("docs/gpu_speed.png") == []
    assert report.stale_figures(text, available, tmp_path) == ["docs/gpu_speed.png"]
    path = tmp_path / "docs" / "gpu_speed.png"
    cli._draw(path, layer, "layer_speed")
    assert report.drawn_from(path) == report.digest(layer) and report.stale_figures(text, available, tmp_path) == []
    other = {**layer, "rows": layer["rows"][:-1]}
    assert report.stale_figures(text, {"gpu_layer": other}, tmp_path) == ["docs/gpu_speed.png"]
    with pytest.raises(ValueError, match="there is none"):
        report.stale_figures(text, {}, tmp_path)
    path.write_bytes(b"no image")
    assert report.drawn_from(path) is None


def test_report_draws_what_the_document_shows(layer, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"
    records.write(folder / "gpu_layer.json", layer)
    monkeypatch.setattr(records, "results_dir", lambda: folder)
    monkeypatch.chdir(tmp_path)
    document = tmp_path / "README.md"
    document.write_text("![speeds](docs/gpu_speed.png)\n<!-- table: gpu_layer/summary -->\n<!-- end -->\n")
    assert cli.main(["report", "--check"]) == 1
    assert cli.main(["report", "--write"]) == 0
    assert "docs/gpu_speed.png is drawn anew from the record gpu_layer." in capsys.readouterr().out
    assert cli.main(["report", "--check"]) == 0
    (tmp_path / "docs" / "gpu_speed.png").unlink()
    assert cli.main(["report", "--check"]) == 1
    assert "docs/gpu_speed.png is not drawn from the record as it is" in capsys.readouterr().err
    assert cli.main(["report"]) == 0
    assert "sketch" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["gpu_stream", "gpu_parallel"])
def test_tables_of_scale(name):
    record = records.load_all("scaling")[name]
    table = report.markdown_table(record)
    for row in record["rows"]:
        assert f" {row['ms']:.3g} " in table
    assert name == "gpu_stream" or ("| the panels |" in table and "| the batch |" in table)
