"""JupyterLab in Chromium: every control of every widget moves its picture, and the checks find what is broken.

A file of its own, so that it can run beside the notebooks (tests/test_browser.py).
"""

import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from browser.server import HOW_TO_INSTALL, REQUIRED, find_chromium, no_browser, wait_until
from browser.visit import SCREENSHOTS, move_first_controls, none_of, visit_notebook

from hashedmm.widgets import WIDGETS, Choice

pytestmark = pytest.mark.browser

TESTS = Path(__file__).resolve().parent

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
    "from hashedmm import plots; plots._show_code('cuda', 'y' * (plots.SOURCE_COLUMNS + 1))": "horizontal scroll bar",
    "plots._show_code('cuda', 'y' * plots.SOURCE_COLUMNS)": None,
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
    assert error.startswith("cell 14: KeyError: 'lost'\n") and "raise KeyError" in error and "\x1b" not in error
    assert left == "cell 15 and 0 after it did not finish"
    assert visit.widgets == ["hash_explorer: Structure: the picture stays the same"]
    assert set(visit.elsewhere) == {"https://hashedmm.invalid/a.png"} and visit.console


def test_a_kernel_that_dies_is_seen(chromium, lab):
    visit = visit_notebook(chromium, lab, new_notebook(["import os; os._exit(1)", "1"]), "dies")
    assert any("the kernel is gone" in e or "JupyterLab asks" in e for e in visit.errors), visit.errors


def test_jupyter_lab_ends_with_its_process(tmp_path):
    code = (
        "import os, pathlib\nfrom browser.server import jupyter_lab\n"
        f"with jupyter_lab(pathlib.Path({str(tmp_path)!r})) as server:\n    print(server.url, flush=True); os._exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 3
    address = urlsplit(done.stdout.strip())

    def is_gone():
        with socket.socket() as s:
            return s.connect_ex((address.hostname, address.port)) != 0

    wait_until(is_gone, "JupyterLab is gone", 60)


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
