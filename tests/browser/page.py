"""What a reader does with a notebook in JupyterLab, and what the reader sees: run all cells, look, move a control.

Every function takes a page of playwright. Nothing waits for a time: all waits are for a state, with a limit.
"""

import builtins
import re
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Locator, Page, TimeoutError

from .server import Server, wait_until

WINDOW = {"width": 1280, "height": 900}
LIMITS = {
    "output": 2000,  # px, the height of an output
    "stderr": 300,  # px, the height of warnings
    "shrunk": 0.9,  # of the width that an image asks for
}
MEASURE = (Path(__file__).parent / "measure.js").read_text(encoding="utf-8")
PIECE = 2400  # px, the height of a screenshot

# The notebook in front; it is there once its kernel waits for work.
READY = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.content?.widgets?.length > 0 && panel.sessionContext.session?.kernel?.status === 'idle';
}"""

# What came of "Run All Cells", and whether it is over. A cell has an execution count once it has run.
STATE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const cells = panel.content.widgets.map((cell, index) => ({model: cell.model, number: index + 1})).filter(
        ({model}) => model.type === 'code' && model.sharedModel.source.trim() !== '');
    const failures = (model) => model.outputs.toJSON().filter((output) => output.output_type === 'error');
    const errors = cells.filter(({model}) => !model.getMetadata('tags')?.includes('raises-exception')).flatMap(
        ({model, number}) => failures(model).map(
            (o) => ({number, name: o.ename, value: o.evalue, traceback: o.traceback.join('\\n')})));
    const left = cells.filter(({model}) => model.executionCount === null && failures(model).length === 0).map(
        ({number}) => number);
    const status = panel.sessionContext.session?.kernel?.status ?? 'none';
    const dialog = document.querySelector('.jp-Dialog-content')?.innerText ?? '';
    const lost = !['idle', 'busy', 'starting'].includes(status);
    const over = dialog !== '' || lost || (status === 'idle' && (left.length === 0 || errors.length > 0));
    return {cells: cells.length, left, errors, status, dialog, lost, over};
}"""

# The same question, cheap to ask while a cell runs.
OVER = f"""() => {{
    const status = window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status;
    const works = ['busy', 'starting'].includes(status) && !document.querySelector('.jp-Dialog-content');
    return !works && ({STATE})().over;
}}"""

IMAGES_LOADED = """() => [...window.jupyterapp.shell.currentWidget.content.node.querySelectorAll('img')].every(
    (image) => image.complete)"""

# What the picture of a widget is now: a digest of the file that is shown; "" while there is none.
DIGEST = """async (selector) => {
    try {
        const bytes = await (await fetch(document.querySelector(selector).src)).arrayBuffer();
        const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
        return [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    } catch {
        return '';
    }
}"""
DECODED = """(selector) => document.querySelector(selector).decode().then(() => true, () => false)"""
CONTROL = ".noUi-handle, select, button.widget-toggle-button"


def open_notebook(page: Page, server: Server, notebook: str) -> None:
    """Open a notebook of the server's folder, as from a link, and wait for its kernel."""
    page.set_viewport_size(WINDOW)
    page.goto(server.page(notebook))
    page.wait_for_function(READY, timeout=120_000, polling=100)


def run_all_cells(page: Page, seconds: float) -> list[str]:
    """Choose "Run All Cells" from the menu and wait for the end. What went wrong, each with its cell."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    late = False
    try:
        page.wait_for_function(OVER, timeout=1000 * seconds, polling=100)
    except TimeoutError:
        late = True
    state = page.evaluate(STATE)
    wrong = [
        f"cell {error['number']}: {error['name']}: {error['value']}\n{last_lines(error['traceback'])}"
        for error in state["errors"]
    ]
    if state["dialog"]:
        wrong.append(f"JupyterLab asks: {state['dialog']}")
    if state["lost"]:
        wrong.append(f"the kernel is gone (status: {state['status']})")
    if late:
        wrong.append(f"not at its end within {seconds:.0f} s")
    if wrong and state["left"]:
        wrong.append(f"cell {state['left'][0]} and {len(state['left']) - 1} after it did not finish")
    return wrong


def last_lines(traceback: str, lines: int = 15) -> str:
    """The end of a traceback, without the codes for colours."""
    return "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", traceback).splitlines()[-lines:])


def measure(page: Page) -> list[str]:
    """Unfold all that is folded, and list what does not fit into the window or is not shown as it should be."""
    page.evaluate("() => document.querySelectorAll('.jp-Notebook details').forEach((d) => { d.open = true; })")
    page.wait_for_function(IMAGES_LOADED, timeout=30_000, polling=100)
    return page.evaluate(MEASURE, LIMITS)


def take_screenshots(page: Page, folder: Path, name: str) -> list[Path]:
    """The whole notebook as pictures NAME-01.png, NAME-02.png ... from top to bottom; older ones are deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-[0-9][0-9].png"):
        old.unlink()
    page.set_viewport_size({"width": WINDOW["width"], "height": PIECE})
    panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer")
    end = panel.evaluate(
        "(p) => { const cells = p.querySelectorAll('.jp-Cell'); p.scrollTop = 0;"
        " return Math.ceil(cells[cells.length - 1].getBoundingClientRect().bottom - p.getBoundingClientRect().top); }"
    )
    box = panel.bounding_box()
    assert box is not None
    files = []
    for top in range(0, end, int(box["height"])):
        at = panel.evaluate("(p, top) => { p.scrollTop = top; return p.scrollTop; }", top)
        above = top - at  # seen before: the last piece cannot be scrolled to its top
        height = min(box["height"] - above, end - top)
        file = folder / f"{name}-{len(files) + 1:02d}.png"
        page.screenshot(path=file, clip={**box, "y": box["y"] + above, "height": height}, animations="disabled")
        files.append(file)
    page.set_viewport_size(WINDOW)
    return files


def shown_widgets(page: Page) -> list[str]:
    """The names of the package's widgets in the notebook, from the classes of their pictures."""
    classes = page.locator("[class*='hashedmm-view-']").evaluate_all("(all) => all.map((e) => e.className)")
    return sorted({name for text in classes for name in re.findall(r"hashedmm-view-(\w+)", text)})


class Controls:
    """The controls of one widget of the package, by their labels. They are moved by keyboard and mouse."""

    def __init__(self, page: Page, widget: str) -> None:
        self.page, self.widget = page, widget
        view = f".hashedmm-view-{widget}"
        self.image = f"img{view}, {view} img"
        self.box = page.locator(view).first.locator("xpath=..")

    def labelled(self, label: str) -> Locator:
        """What holds the label and its control."""
        text = self.box.locator(".widget-label").filter(has_text=re.compile(rf"^\s*{re.escape(label)}\s*$"))
        assert text.count() == 1, f"{self.widget}: {text.count()} controls are labelled {label!r}"
        holder = text.locator("xpath=..")
        # A grid lies below the line that its label is in.
        return holder if holder.locator(CONTROL).count() else holder.locator("xpath=..")

    def move(self, label: str) -> list[str]:
        """Move a control by one step; what is wrong with the picture then."""
        holder = self.labelled(label)
        handle, menu = holder.locator(".noUi-handle"), holder.locator("select")
        buttons = holder.locator("button.widget-toggle-button")
        if handle.count():
            at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
            return self.act(label, lambda: handle.press("ArrowLeft" if at_the_end else "ArrowRight"))
        if menu.count():
            following = (menu.evaluate("(m) => m.selectedIndex") + 1) % menu.locator("option").count()
            return self.act(label, lambda: menu.select_option(index=following))
        if "widget-toggle-buttons" in (holder.get_attribute("class") or ""):  # one of them is always pressed
            return self.act(label, holder.locator("button:not(.mod-active)").first.click)
        wrong = self.act(label, buttons.first.click)
        for button in holder.locator("button:not(.widget-toggle-button)").all():
            wrong += self.act(f"{label}, {button.inner_text()}", button.click)
        return wrong

    def act(self, label: str, action: Callable[[], object]) -> list[str]:
        """Do something to a control. The picture must become another one, of the same size, that can be shown."""
        self.settle()
        before, size = self.page.evaluate(DIGEST, self.image), self.size()
        action()
        try:
            wait_until(lambda: self.page.evaluate(DIGEST, self.image) not in ("", before), "another picture", 30)
        except builtins.TimeoutError:
            return [f"{self.widget}: {label}: the picture stays the same"]
        self.settle()
        wrong = []
        if self.size() != size:
            wrong.append(f"{self.widget}: {label}: the picture was {size} px, and is {self.size()} px now")
        if not self.page.evaluate(DECODED, self.image):
            wrong.append(f"{self.widget}: {label}: the picture cannot be shown")
        alert = self.box.locator("[role=alert]")
        if alert.count():
            wrong.append(f"{self.widget}: {label}: {alert.inner_text()}")
        return wrong

    def size(self) -> tuple[float, float]:
        box = self.page.locator(self.image).first.bounding_box()
        assert box is not None, f"{self.widget}: there is no picture"
        return box["width"], box["height"]

    def settle(self) -> None:
        """Wait until the kernel has answered all that was moved."""
        self.page.wait_for_function(READY, timeout=60_000, polling=50)
