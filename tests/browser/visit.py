"""A visit to one notebook in JupyterLab: it is opened, run and looked at, and what was found is kept.

Imports the package's widgets, and playwright when a visit begins.
"""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

from hashedmm.widgets import WIDGETS

SCREENSHOTS = Path(__file__).resolve().parent.parent.parent / "out" / "browser"
SECONDS = 900  # for one notebook


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


def move_first_controls(page, visit):
    """The notebook has the widgets that it should have, and the first control of each moves its picture."""
    from browser.page import Controls, shown_widgets

    shown = shown_widgets(page)
    missing = [w.name for w in WIDGETS.values() if w.notebook == visit.notebook and w.name not in shown]
    visit.widgets += [f"{name}: there is no picture" for name in missing]
    for name in shown:
        parameter = next(iter(WIDGETS[name].parameters.values()))
        visit.widgets += Controls(page, name).move(parameter.label)
