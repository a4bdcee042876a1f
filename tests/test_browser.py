"""JupyterLab in Chromium: every notebook runs to its end and fits the window, and every control moves its picture.

Nothing in the checkout changes: JupyterLab shows copies. Pictures of all notebooks, with everything unfolded, are left
in out/browser. Without Chromium the tests are skipped, or fail where HASHEDMM_REQUIRE_BROWSER=1 (.ci/run sets it).
"""

import asyncio
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from browser.server import HOW_TO_INSTALL, find_chromium, jupyter_lab

from hashedmm.widgets import WIDGETS, Choice

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = ROOT / "out" / "browser"
REQUIRED = "HASHEDMM_REQUIRE_BROWSER"
SECONDS = 900  # for one notebook


def no_browser(reason):
    """Skip, or fail where a browser has to be there."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{reason}, and {REQUIRED}=1", pytrace=False)
    pytest.skip(reason)


# Of the module, not of the session: while playwright runs, other tests of the process could not use asyncio.


@pytest.fixture(scope="module")
def chromium():
    """A headless Chromium that finds no host but this one."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        no_browser("playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        program = find_chromium(playwright.chromium.executable_path)
        if program is None:
            no_browser(f"no Chromium here. {HOW_TO_INSTALL}")
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=program, args=[rules])
        yield browser.new_context()
        browser.close()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """JupyterLab over an empty folder, in a machine that has Chromium."""
    with jupyter_lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@dataclass
class Visit:
    """What was seen in one notebook."""

    notebook: str
    errors: list = field(default_factory=list)  # of the cells
    problems: list = field(default_factory=list)  # what a reader would find broken
    widgets: list = field(default_factory=list)  # what is wrong with them
    console: list = field(default_factory=list)  # the page's own errors
    elsewhere: list = field(default_factory=list)  # addresses that are not JupyterLab's
    screenshots: list = field(default_factory=list)


def visit_notebook(chromium, lab, notebook, name, folder=None, look=None):
    """Open a notebook without its outputs, run it, look at it. ``look`` does more, with (page, visit)."""
    from browser.page import measure, open_notebook, run_all_cells, take_screenshots

    visit = Visit(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, lab.root / f"{name}.ipynb")

    page = chromium.new_page()
    page.on("pageerror", lambda error: visit.console.append(str(error)))
    page.on("console", lambda m: visit.console.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if here(r.url, lab.url) else visit.elsewhere.append(r.url))
    try:
        open_notebook(page, lab, f"{name}.ipynb")
        visit.errors += run_all_cells(page, SECONDS)
        visit.problems += measure(page)
        if folder:
            visit.screenshots += take_screenshots(page, folder, name)
        if look:
            look(page, visit)
    finally:
        page.close()
        lab.stop_kernels()
    return visit


def here(url, server):
    """Whether the server, or the page itself, answers this address."""
    parts = urlsplit(url)
    return parts.scheme in ("data", "blob", "about") or parts.netloc == urlsplit(server).netloc


def none_of(visit, *findings):
    """Fail with the notebook and every finding on a line of its own."""
    if found := [line for lines in findings for line in lines]:
        pytest.fail("\n".join([f"{visit.notebook}.ipynb:", *found]), pytrace=False)


# The notebooks


def move_first_controls(page, visit):
    """The notebook has the widgets that it should have, and the first control of each moves its picture."""
    from browser.page import Controls, shown_widgets

    shown = shown_widgets(page)
    missing = [w.name for w in WIDGETS.values() if w.notebook == visit.notebook and w.name not in shown]
    visit.widgets += [f"{name}: there is no picture" for name in missing]
    for name in shown:
        parameter = next(iter(WIDGETS[name].parameters.values()))
        visit.widgets += Controls(page, name).move(parameter.label)


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda file: file.stem)
def visit(request, chromium, lab):
    notebook = nbformat.read(request.param, 4)
    return visit_notebook(chromium, lab, notebook, request.param.stem, SCREENSHOTS, move_first_controls)


def test_notebook_runs_to_its_end(visit):
    none_of(visit, visit.errors, visit.widgets)
    assert visit.screenshots


def test_notebook_fits_the_window(visit):
    none_of(visit, visit.problems)


def test_page_has_no_errors_and_asks_no_other_host(visit):
    none_of(visit, visit.console, visit.elsewhere)


# The widgets

MODELS = """from hashedmm import MLP
dense, hashed = MLP([784, 64, 10], structure="dense", seed=1), MLP([784, 128, 10], seed=2)
models = {"dense": dense, "hashed, 1/8": hashed}"""


def new_notebook(cells):
    """A notebook of code cells."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=metadata)


def options(parameter):
    """How many values a control can have; one that has a single value cannot be moved."""
    return len(parameter.found()) if isinstance(parameter, Choice) else 2


def test_every_control_of_every_widget_moves_its_picture(chromium, lab):
    from browser.page import Controls, shown_widgets

    calls = [f"WIDGETS[{name!r}].factory({', '.join(widget.needs)})" for name, widget in WIDGETS.items()]
    notebook = new_notebook([f"{MODELS}\nfrom hashedmm.widgets import WIDGETS", *calls])
    moved = []

    def move_all(page, visit):
        shown = shown_widgets(page)
        visit.widgets += [f"{name}: there is no picture" for name in WIDGETS.keys() - set(shown)]
        for name in shown:
            controls = Controls(page, name)
            for parameter in reversed(WIDGETS[name].parameters.values()):  # what the first are set to may hide the last
                if options(parameter) > 1:
                    visit.widgets += controls.move(parameter.label)
                    moved.append((name, parameter.label))

    visit = visit_notebook(chromium, lab, notebook, "widgets", SCREENSHOTS, move_all)
    none_of(visit, visit.errors, visit.problems, visit.widgets, visit.console, visit.elsewhere)
    assert {name for name, _ in moved} == WIDGETS.keys()


# The checks themselves

PICTURE = """
import base64, io
import ipywidgets
from matplotlib.figure import Figure
buffer = io.BytesIO()
Figure(figsize=(1, 1)).savefig(buffer)
image = ipywidgets.Image(value=buffer.getvalue())
image.add_class("hashedmm-view-hash_explorer")
ipywidgets.VBox([ipywidgets.Box([ipywidgets.IntSlider(description="Structure")]), image])"""

BROKEN = {
    "print('x' * 150)": "1 line(s) are broken; the longest has 150 characters",
    "import sys; print(*range(60), sep='\\n', file=sys.stderr)": " px high, over 300",
    "print(*range(150), sep='\\n')": " px high, over 2000",
    "from IPython.display import HTML; HTML('<table><tr><td style=\"min-width:1200px\">wide</td></tr></table>')":
        "horizontal scroll bar",
    "from IPython.display import Markdown; Markdown('```c\\nint a;\\n' + 'y' * 150 + '\\n```\\n')":
        "1 line(s) are broken",
    "HTML('<img alt=\"lost\" src=\"data:image/png;base64,AAAA\">')": "an image was not loaded (lost)",
    "HTML('<img alt=\"far\" src=\"https://hashedmm.invalid/a.png\">')": "an image was not loaded (far)",
    "from matplotlib import pyplot as plt; plt.figure(figsize=(20, 2)); plt.plot([1]); plt.show()": "is shrunk to",
    f"a = '{'y' * 120}'": "its longest line has 126 characters",
    "from IPython.display import Math; Math(r'\\frac{1}')": "a formula that MathJax cannot read",
    PICTURE: None,
    "def f():\n    raise KeyError('lost')\nf()": None,
    "'never run'": None,
}  # fmt: skip


def test_the_checks_find_what_is_broken(chromium, lab):
    visit = visit_notebook(chromium, lab, new_notebook(BROKEN), "broken", None, move_first_controls)
    for number, (source, problem) in enumerate(BROKEN.items(), 1):
        found = [line for line in visit.problems if line.startswith(f"cell {number} (")]
        if problem:
            assert any(problem in line for line in found), (source, visit.problems)
        else:
            assert not found
    error, left = visit.errors
    assert error.startswith("cell 12: KeyError: 'lost'\n") and "raise KeyError" in error and "\x1b" not in error
    assert left == "cell 13 and 0 after it did not finish"
    assert visit.widgets == ["hash_explorer: Structure: the picture stays the same"]
    assert set(visit.elsewhere) == {"https://hashedmm.invalid/a.png"} and visit.console


def test_a_kernel_that_dies_is_seen(chromium, lab):
    visit = visit_notebook(chromium, lab, new_notebook(["import os; os._exit(1)", "1"]), "dies")
    assert any("the kernel is gone" in e or "JupyterLab asks" in e for e in visit.errors), visit.errors


def test_a_missing_browser_is_a_skip_or_a_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    own = tmp_path / "own"
    assert find_chromium(str(own)) is None
    (tmp_path / "google-chrome").touch(0o755)
    assert find_chromium(str(own)) == str(tmp_path / "google-chrome")
    own.touch()
    assert find_chromium(str(own)) == str(own)
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium"):
        no_browser(f"no Chromium here. {HOW_TO_INSTALL}")
    monkeypatch.setenv(REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        no_browser(f"no Chromium here. {HOW_TO_INSTALL}")
