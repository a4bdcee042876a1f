"""JupyterLab in Chromium: every notebook runs to its end, fits the window, and has widgets that move their pictures.

Nothing in the checkout changes: JupyterLab shows copies. Pictures of all notebooks, with everything unfolded, are left
in out/browser. Without Chromium the tests are skipped, or fail where HASHEDMM_REQUIRE_BROWSER=1 (.ci/run sets it).
"""

from pathlib import Path

import nbformat
import pytest
from browser.visit import SCREENSHOTS, move_first_controls, none_of, visit_notebook

pytestmark = pytest.mark.browser

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


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
