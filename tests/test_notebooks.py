"""The notebooks pass every gate; every gate finds what it is for, mends what it can, and leaves good ones alone."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from hashedmm import exercises, notebooks, widgets
from hashedmm.notebooks import FOLDER, GATES, findings, mend, shelf

BOOKS = shelf()
NAMES = [book.path.name for book in BOOKS]


@pytest.fixture
def folder(tmp_path):
    """A copy of the notebooks, of the README, and of what they link to."""
    shutil.copytree(FOLDER, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*", "*.tmp"))
    shutil.copy(FOLDER.parent / "README.md", tmp_path)
    return tmp_path / "notebooks"


def book(number, books=None):
    """A copy of a notebook among the others."""
    books = [copy.copy(b) for b in books or BOOKS]
    for b in books:
        b.shelf = books
        if b.number == number:
            b.content = copy.deepcopy(b.content)
    return next(b for b in books if b.number == number)


def texts(b, gate):
    return [finding.text for finding in GATES[gate].find(b)]


# The notebooks.


@pytest.mark.parametrize("b", BOOKS, ids=NAMES)
def test_notebook_passes_every_gate(b):
    assert findings(b) == [], "python -m hashedmm.notebooks --fix"


@pytest.mark.parametrize("b", BOOKS, ids=NAMES)
def test_good_notebooks_are_left_alone(b):
    assert notebooks.text_of(b) == b.path.read_text(encoding="utf-8")
    assert not mend(book(b.number))


def test_every_exercise_and_every_widget_is_in_a_notebook():
    sources = ["\n".join(c.source for c in b.cells) for b in BOOKS]
    for name in exercises.EXERCISES:
        assert sum(s.count(f'hashedmm.check("{name}"') for s in sources) == 1, name
    for name in widgets.WIDGETS:  # another notebook may show its picture, too
        assert sum(s.count(f'widgets.static("{name}"') for s in sources) >= 1, name


def test_cells_that_are_compared_are_many():
    """nbval passes a notebook whose outputs were stripped: here each has some that are compared."""
    for b in BOOKS:
        compared = [c for c in b.cells if notebooks.CHECKED in notebooks.tags_of(c)]
        assert compared and all(c.outputs for c in compared), b.path.name


# Every gate finds what it is for.


def cell(b, name):
    return next(c for c in b.cells if c.id == name)


def number_of(b, name):
    return next(k for k, c in enumerate(b.cells) if c.id == name)


def code_with(b, condition=lambda c: True):
    return next(c for c in b.cells if c.cell_type == "code" and condition(c))


def double_id(b):
    b.cells[3].id = b.cells[2].id


def tagless_exercise(b):
    cell(b, "exercise-05-2-try").metadata = nbformat.from_dict({})


def edited_stub(b):
    cell(b, "exercise-05-2-try").source = cell(b, "exercise-05-2-try").source.replace("// TODO", "// done")


def lost_help(b):
    del b.cells[number_of(b, "exercise-05-2-help")]


def lost_exercise(b):
    k = number_of(b, "exercise-05-2")
    del b.cells[k : k + 3]


def two_of_an_exercise(b):
    k = number_of(b, "exercise-05-2")
    b.cells.extend(copy.deepcopy(b.cells[k : k + 3]))


def exercise_moved_to_the_top(b):
    k = number_of(b, "exercise-05-3")
    moved = b.cells[k : k + 3]
    del b.cells[k : k + 3]
    b.cells[1:1] = moved


def strange_exercise(b):
    b.cells.insert(5, nbformat.v4.new_markdown_cell("### Exercise 05.9: of nobody\n\nNothing.", id="new"))


def widget_state(b):
    b.content.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}


def timed(b):
    b.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}


def other_kernel(b):
    b.content.metadata.kernelspec = {"display_name": "mine", "language": "python", "name": "mine"}


def shown_widget(b):
    view = nbformat.v4.new_output("display_data", {"text/plain": "VBox()"})
    cell(b, "widget-index-map").outputs = [view]


def renamed_next(b):
    b.cells[0].source = b.cells[0].source.replace("[next: what", "[next: where")


def navigation_in_the_middle(b):
    b.cells[4].source += "\n\n" + notebooks.navigation(b)


def no_navigation_at_the_end(b):
    b.cells[-1].source = b.cells[-1].source.replace(notebooks.navigation(b), "").rstrip()


def wrong_minutes(b):
    for c in b.cells:
        c.source = c.source.replace(" | 75 | 30 |", " | 74 | 30 |", 1)


MENDED = {
    "exercise edited": ("05", edited_stub, "exercises", "exercise 05.2 differs from the one declared"),
    "tags of an exercise": ("05", tagless_exercise, "exercises", "exercise 05.2 must have the id"),
    "hints lost": ("05", lost_help, "exercises", "exercise 05.2 must be three cells in a row, once"),
    "exercise lost": ("05", lost_exercise, "exercises", "exercise 05.2 is missing: it belongs after `## 3. A check"),
    "exercise twice": ("05", two_of_an_exercise, "exercises", "exercise 05.2 must be three cells in a row, once"),
    "exercise at the top": ("05", exercise_moved_to_the_top, "exercises", "exercise 05.3 must come after `### Checks"),
    "undeclared exercise": ("05", strange_exercise, "exercises", "exercise 05.9 is not declared"),
    "id twice": ("05", double_id, "format", "is used twice"),
    "widget state": ("05", widget_state, "format", "metadata holds widgets"),
    "times in metadata": ("05", timed, "format", "cell metadata holds execution"),
    "kernel": ("05", other_kernel, "format", "kernelspec must be"),
    "output of a widget": ("05", shown_widget, "outputs", "no life in a file"),
    "title of the next": ("05", renamed_next, "navigation", "expected one line"),
    "navigation in the middle": ("05", navigation_in_the_middle, "navigation", "for the first and the last cell"),
    "no navigation": ("05", no_navigation_at_the_end, "navigation", "expected one line"),
    "minutes of the index": ("00", wrong_minutes, "index", "the index says Minutes(read=74, exercises=30) of "),
}  # fmt: skip


@pytest.mark.parametrize(("number", "breaks", "gate", "text"), MENDED.values(), ids=MENDED)
def test_found_and_mended(number, breaks, gate, text):
    good, b = book(number), book(number)
    breaks(b)
    found = texts(b, gate)
    assert [t for t in found if text in t], found
    if gate == "index":  # the README is of the repository
        for c in b.cells:
            c.source = notebooks.fixed_index(c.source, b.shelf)
    else:
        assert mend(b)
    assert texts(b, gate) == []
    assert [c.source for c in b.cells] == [c.source for c in good.cells]
    assert [notebooks.tags_of(c) for c in b.cells] == [notebooks.tags_of(c) for c in good.cells]


def strip_outputs(b):
    for c in b.cells:
        if c.cell_type == "code":
            c.outputs, c.execution_count = [], None


def solved(b):
    cell(b, "exercise-05-2-try").outputs = [nbformat.v4.new_output("stream", text="05.2 samples in rows: right\n")]


def run_again(b):
    b.cells[1].execution_count = 99


def error(b):
    c = code_with(b)
    c.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=["ValueError"])]


def address(b):
    c = code_with(b, lambda c: notebooks.CHECKED in notebooks.tags_of(c))
    c.outputs = [nbformat.v4.new_output("stream", text="<object at 0x7f00deadbeef>, 12:30:01, 3.5 ms\n")]


def append(text):
    def breaks(b):
        b.cells[4].source += text

    return breaks


def replace(old, new):
    def breaks(b):
        assert old in b.cells[0].source
        b.cells[0].source = b.cells[0].source.replace(old, new)

    return breaks


def no_alt(b):
    c = code_with(b, lambda c: any("image/png" in o.get("data", {}) for o in c.outputs))
    for output in c.outputs:
        output.metadata = nbformat.from_dict({})


def no_static(b):
    cell(b, "widget-index-map-picture").source = "print(1)"


def no_widget(b):
    del b.cells[number_of(b, "widget-index-map")]


FOUND = {
    "stripped": (strip_outputs, "outputs", "has no output: execute"),
    "stripped, and compared": (strip_outputs, "outputs", "there is nothing to compare"),
    "run out of order": (run_again, "outputs", "execution count 99, expected 1"),
    "error": (error, "outputs", "the output is an error, ValueError"),
    "exercise solved": (solved, "outputs", 'exercise 05.2: the output must say "not yet"'),
    "no objectives": (replace("**After this notebook you can**", "You"), "first cell", "`**After this"),
    "no minutes": (replace("about 60 minutes to read", "an hour"), "first cell", "a line like `**Time**"),
    "no minutes for exercises": (replace(", about 40 for the exercises", ""), "first cell", "there are 4 exercises"),
    "no word about a GPU": (replace("**GPU** ", ""), "first cell", "`**GPU** ` is missing"),
    "two H1": (append("\n\n# Another title"), "first cell", "there are 2"),
    "file": (append("\n\nSee [this](nothing.ipynb)."), "links", "the link nothing.ipynb leads to no file"),
    "anchor": (append("\n\nSee [this](#Nothing)."), "links", "the link #Nothing leads to no heading"),
    "anchor elsewhere": (append("\n\n[a](06_memory_access.ipynb#No)."), "links", "leads to no heading of 06_memory"),
    "anchor in the README": (append("\n\n[a](../README.md#no)."), "links", "leads to no heading of README.md"),
    "absolute link": (append("\n\n[a](/etc/hosts)."), "links", "must be relative"),
    "out of the repository": (append("\n\n[a](../../x)"), "links", "the link ../../x leads"),
    "section": (append("\n\n[06](06_memory_access.ipynb), sections 2 and 99."), "links", "has no section 99"),
    "absolute path": (append("\n\n`open('/home/me/x')`"), "links", "an absolute path"),
    "address": (address, "links", "the output holds an address, `at 0x7f00deadbeef`"),
    "time": (address, "links", "the output holds a time"),
    "output without alt": (no_alt, "alternative text", "image/png without alternative text"),
    "picture without alt": (append("\n\n![](../docs/gpu_speed.png)"), "alternative text", "a picture without"),
    "img without alt": (append('\n\n<img src="../docs/gpu_speed.png">'), "alternative text", "a picture without"),
    "no static picture": (no_static, "widgets", 'widgets.static("index_map")` must stand'),
    "no widget": (no_widget, "widgets", "the widget index_map must be made in one cell, got 0"),
}  # fmt: skip


@pytest.mark.parametrize(("breaks", "gate", "text"), FOUND.values(), ids=FOUND)
def test_found(breaks, gate, text):
    b = book("05")
    breaks(b)
    found = texts(b, gate)
    assert [t for t in found if text in t], found


GOOD_LINKS = (
    "[a](#2.-The-kernel)",
    "[a](#Checks-that-pass-wrong-kernels)",
    "[a](06_memory_access.ipynb#2.-Eight-ways-to-copy)",
    "[a](../README.md#the-notebooks)",
    "[a](https://example.org/x#y)",
    '<a id="here"></a> [a](#here)',
    "`[a](nothing)` and $E[x](y)$\n\n```\n[a](nothing)\n# no heading\n```",
    "![a curve](../docs/gpu_speed.png)",
)


@pytest.mark.parametrize("text", GOOD_LINKS)
def test_good_links_pass(text):
    b = book("05")
    append(f"\n\n{text}")(b)
    assert texts(b, "links") + texts(b, "alternative text") + texts(b, "first cell") == []


# Exercises find their place.


def test_exercises_go_where_they_were():
    """All of them taken out and put in again: every notebook has the same cells, in the same order."""
    for good in BOOKS:
        b = book(good.number)
        b.content.cells = [c for c in b.cells if notebooks.exercise_of(c) is None]
        if len(b.cells) == len(good.cells):
            continue
        mend(b)
        assert [(c.cell_type, c.source) for c in b.cells] == [(c.cell_type, c.source) for c in good.cells], b.path.name
        assert texts(b, "exercises") == []


def test_a_section_ends_inside_a_cell():
    b = book("05")
    b.content.cells = [c for c in b.cells if notebooks.exercise_of(c) is None]
    k = number_of(b, "check-intro")
    b.cells[k].source = "The end of section 2.\n\n" + b.cells[k].source
    mend(b)
    at = number_of(b, "exercise-05-1")
    assert b.cells[at - 1].source == "The end of section 2." and b.cells[at - 1].id == "check-intro"
    assert b.cells[at + 3].source.startswith("## 3. A check that means something")
    assert len({c.id for c in b.cells}) == len(b.cells)


def test_outputs_of_an_exercise_stay_if_its_code_does():
    b = book("05")
    cell(b, "exercise-05-2").source += "\n\nMore."
    before = copy.deepcopy(cell(b, "exercise-05-2-try").outputs)
    mend(b)
    assert cell(b, "exercise-05-2-try").outputs == before and before
    edited_stub(b)
    mend(b)
    assert cell(b, "exercise-05-2-try").outputs == []


def test_section_that_is_missing():
    with pytest.raises(ValueError, match="05_naive_kernel.ipynb has no heading `## Nothing`"):
        notebooks.section_end(book("05"), "## Nothing")


def test_headings_are_not_in_code():
    cells = [nbformat.v4.new_markdown_cell("# A\n\n```\n# no\n```\n\n`# no`\n## B `c`")]
    assert [(h.level, h.text) for h in notebooks.headings(cells)] == [(1, "A"), (2, "B `c`")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(1)", True),
        ("for x in y:\n    print(x)", True),
        ("with a:\n    plots.show(f, alt='x')", True),
        ("%matplotlib inline\nhashedmm.check('1', f)", True),
        ("def f():\n    print(1)", False),
        ("if x:\n    print(1)", False),
        ("x = 1", False),
        ("f = lambda: print(1)", False),
    ],
)
def test_shows(source, expected):
    assert notebooks.shows(source) is expected


# The index.


def test_index():
    text = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert notebooks.index_findings(text, BOOKS) == []
    assert notebooks.fixed_index(text, BOOKS) == text
    hours = notebooks.total_hours(BOOKS)
    wrong = text.replace(f"about {hours} hours.**", "about 3 hours.**").replace("| 45 | 15 |", "| 46 | 15 |", 1)
    found = notebooks.index_findings(wrong, BOOKS)
    assert len(found) == 2 and "46" in found[0] and f"about {hours} hours" in found[1]
    assert notebooks.fixed_index(wrong, BOOKS) == text
    without = "\n".join(line for line in text.splitlines() if "](notebooks/05_naive_kernel.ipynb) | " not in line)
    assert notebooks.index_findings(without, BOOKS) == ["the index has no row for 05_naive_kernel.ipynb"]
    assert "15_more.ipynb, which does not exist" in str(
        notebooks.index_findings(text + "\n| [15](15_more.ipynb) | 3 | 4 |\n", BOOKS)
    )


# The command.


def test_command_mends_files(folder, capsys):
    b = next(b for b in shelf(folder) if b.number == "05")
    edited_stub(b)
    timed(b)
    notebooks.write(b)
    readme = folder.parent / "README.md"
    readme.write_text(readme.read_text().replace("| 45 | 15 |", "| 46 | 15 |", 1))
    path = str(folder / "05_naive_kernel.ipynb")
    assert notebooks.main([path]) == 1
    shown = capsys.readouterr()
    assert "05_naive_kernel.ipynb, cell " in shown.out and "exercise 05.2 differs" in shown.out
    assert "findings; `python -m hashedmm.notebooks --fix`" in shown.err
    assert notebooks.main(["--fix", path, str(folder / "00_start_here.ipynb")]) == 1  # the output has to be made anew
    left = capsys.readouterr().out
    assert "05_naive_kernel.ipynb: mended" in left and "execute the notebook" in left and "differs" not in left
    assert "README" not in left and "| 46 | 15 |" not in readme.read_text()


def test_command_refuses(tmp_path, capsys):
    assert notebooks.main([str(tmp_path / "01_none.ipynb")]) == 1
    assert "must be files in one folder" in capsys.readouterr().err
    (tmp_path / "01_x.ipynb").write_text("{}")
    assert notebooks.main([str(tmp_path / "01_x.ipynb")]) == 1
    assert "is not a notebook" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there are no notebooks NN_topic.ipynb in"):
        shelf(tmp_path / "empty")


def small(path, source):
    """A notebook of one code cell."""
    content = nbformat.v4.new_notebook(metadata={"kernelspec": notebooks.KERNEL})
    time = "**Time** about 5 minutes to read, about 3 for the exercises, seconds to run."
    content.cells = [
        nbformat.v4.new_markdown_cell(f"# A\n\n{time}"),
        nbformat.v4.new_code_cell(source),
        nbformat.v4.new_code_cell("2", metadata={"tags": [notebooks.IGNORED, notebooks.WIDGET]}),
    ]  # fmt: skip
    path.write_text(nbformat.writes(content), encoding="utf-8")


def test_executes(tmp_path, capsys):
    pytest.importorskip("ipykernel")
    path = tmp_path / "01_a.ipynb"
    small(path, "print(6 * 7)")
    notebooks.main(["--execute", str(path)])
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["notebook", "stated,", "for", "a", "reader", "measured,", "this", "run"] in rows
    (line,) = (row for row in rows if row and row[0] == "01_a")
    assert line[1:3] == ["5", "3"] and 0 < float(line[3]) < 5
    (done,) = shelf(tmp_path)
    assert done.cells[1].outputs[0].text == "42\n" and done.cells[1].execution_count == 1
    assert done.cells[2].outputs == [] and done.cells[2].execution_count == 2
    assert texts(done, "format") == [] and texts(done, "outputs") == []
    small(path, "raise ValueError('no')")
    before = path.read_text()
    assert notebooks.main(["--execute", str(path)]) == 1
    assert "01_a.ipynb" in (said := capsys.readouterr().err) and "ValueError" in said
    assert path.read_text() == before


def test_nbformat_is_asked_for():
    code = "import sys; sys.modules['nbformat'] = None; import hashedmm.notebooks"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("needs nbformat: pip install 'hashedmm[lab]', or `make lab`")


def test_written_as_jupyter_writes(tmp_path):
    path = tmp_path / "01_a.ipynb"
    small(path, "1")
    b = notebooks.read(path)
    notebooks.write(b)
    assert json.loads(path.read_text())["cells"][1]["source"] == ["1"]
    assert path.read_text().endswith("}\n") and Path(path).stat().st_size > 100
