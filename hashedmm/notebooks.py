"""Gates for the notebooks: ``python -m hashedmm.notebooks`` says what is wrong with them, ``--fix`` mends what it can.

A gate is a function from a notebook to a list of findings, some with a function that mends them; `GATES` lists all.
``--execute`` runs notebooks in place and reports the minutes measured beside the minutes stated. Imports exercises,
widgets and safefile; nbformat, and nbclient to execute, which the extra ``lab`` brings.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from hashedmm import exercises, safefile, widgets

try:
    import nbformat
except ImportError:
    raise ImportError("hashedmm.notebooks needs nbformat: pip install 'hashedmm[lab]', or `make lab`") from None

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
INDEX = "00_start_here.ipynb"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
CHECKED, IGNORED, WIDGET = "nbval-check-output", "nbval-ignore-output", "widget"
TAGS = {CHECKED, IGNORED, WIDGET, "raises-exception"}


# --------------------------------------------------------------------------------------------------------------------
# A notebook, and what there is to read in it


class Finding(NamedTuple):
    """What is wrong, and in which cell (counted from 0; None: the whole notebook)."""

    cell: int | None
    text: str


class Heading(NamedTuple):
    """A heading: its cell, the number of its line there, its level, and its text in Markdown."""

    cell: int
    line: int
    level: int
    text: str


class Minutes(NamedTuple):
    """What a first cell states: minutes to read, and minutes for the exercises (None: there are none)."""

    read: int
    exercises: int | None


@dataclass
class Notebook:
    """A notebook and where it lies.

    Attributes
    ----------
    path : its file, ``NN_topic.ipynb``
    content : the notebook, as nbformat has it
    shelf : all notebooks of the folder, in order; this one is among them
    """

    path: Path
    content: Any
    shelf: list[Notebook] = field(default_factory=list, repr=False)

    @property
    def number(self) -> str:
        return self.path.name[:2]

    @property
    def cells(self) -> list[Any]:
        return self.content.cells  # type: ignore[no-any-return]

    @property
    def title(self) -> str:
        """The H1, short, as links to this notebook say it: "a HashedNet on MNIST"."""
        full = next((h.text for h in headings(self.cells) if h.level == 1), self.path.stem[3:].replace("_", " "))
        short = re.split(r"[:,]", full)[0].strip()
        return short[:1].lower() + short[1:]

    @property
    def minutes(self) -> Minutes | None:
        """What the first cell states; None if it does not."""
        found = TIME.search(self.cells[0].source) if self.cells else None
        return Minutes(int(found[1]), int(found[2]) if found[2] else None) if found else None


TIME = re.compile(
    r"^\*\*Time\*\* about (\d+) minutes to read(?:, about (\d+) for the exercises)?, [^.]+ to run\.", re.MULTILINE
)


def read(path: Path) -> Notebook:
    """Read a notebook; a ValueError if the file is not one."""
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        if text["nbformat"] != 4 or not isinstance(text["cells"], list):
            raise ValueError(f"nbformat 4 with cells was expected, got nbformat {text['nbformat']}")
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not a notebook: {e}") from None
    for cell in text["cells"]:
        if isinstance(cell.get("source"), list):
            cell["source"] = "".join(cell["source"])
        for output in cell.get("outputs", ()):
            if isinstance(output.get("text"), list):
                output["text"] = "".join(output["text"])
            for kind, value in output.get("data", {}).items():
                if isinstance(value, list) and all(isinstance(v, str) for v in value):
                    output["data"][kind] = "".join(value)
    return Notebook(path, nbformat.from_dict(text))


def shelf(folder: Path = FOLDER) -> list[Notebook]:
    """All notebooks of a folder, in order.

    Raises
    ------
    ValueError
        If there are none, or a file is not a notebook.
    """
    books = [read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    if not books:
        raise ValueError(f"there are no notebooks NN_topic.ipynb in {folder}: run this in a checkout, or name them")
    for book in books:
        book.shelf = books
    return books


def text_of(book: Notebook) -> str:
    """The notebook as it is written to its file."""
    return str(nbformat.v4.writes(book.content)).rstrip("\n") + "\n"


def without_code(markdown: str) -> str:
    """Markdown with its code and its formulas blanked out, line by line: neither holds headings or links."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    markdown = re.sub(r"^(```+|~~~+).*?^\1[`~]*[ \t]*$", blank, markdown, flags=re.DOTALL | re.MULTILINE)
    markdown = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", blank, markdown)
    markdown = re.sub(r"\$\$.+?\$\$", blank, markdown, flags=re.DOTALL)
    return re.sub(r"(?<![\\$])\$[^$\n]+\$", blank, markdown)


def headings(cells: Sequence[Any]) -> list[Heading]:
    """All headings, in order."""
    found = []
    for k, cell in enumerate(cells):
        if cell.cell_type != "markdown":
            continue
        lines = cell.source.splitlines()
        for line, bare in enumerate(without_code(cell.source).splitlines()):
            if start := re.match(r"(#{1,6}) +", bare):
                found.append(Heading(k, line, len(start[1]), lines[line][start.end() :].strip()))
    return found


def anchors(book: Notebook) -> set[str]:
    """The anchors of a notebook's headings as JupyterLab and GitHub make them, and those it declares itself."""
    found = set()
    for heading in headings(book.cells):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.text)
        found.add(re.sub(r"[`*]", "", text).replace(" ", "-"))
    for cell in book.cells:
        if cell.cell_type == "markdown":
            found |= set(re.findall(r"<a (?:id|name)=[\"']([^\"']+)[\"']", cell.source))
    return found


def tags_of(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", ()))


def text_outputs(cell: Any) -> Iterator[str]:
    """What a code cell's outputs say as text."""
    for output in cell.get("outputs", ()):
        if output.output_type == "stream":
            yield output.text
        elif output.output_type == "error":
            yield "\n".join(output.traceback)
        else:
            yield from (v for k, v in output.data.items() if isinstance(v, str) and k.startswith("text/"))


# --------------------------------------------------------------------------------------------------------------------
# Format


def find_format(book: Notebook) -> list[Finding]:
    """Valid; the kernel is Python's; no widget state; cells have ids of their own and no metadata but known tags."""
    found = []
    content = book.content
    ids = [cell.get("id", "") for cell in book.cells]
    found += [Finding(k, "the cell has no id") for k, name in enumerate(ids) if not name]
    found += [Finding(k, f"the id {name!r} is used twice") for k, name in enumerate(ids) if name and name in ids[:k]]
    if not found:  # validate would mend ids, not report them
        try:
            nbformat.validate(content)
        except nbformat.ValidationError as e:
            found.append(Finding(None, f"not a valid notebook: {e.message.splitlines()[0]}"))
    if content.get("nbformat_minor", 0) < 5:
        found.append(Finding(None, f"nbformat 4.5 or newer has cell ids, got 4.{content.get('nbformat_minor', 0)}"))
    metadata = content.get("metadata", {})
    if metadata.get("kernelspec") != KERNEL:
        found.append(Finding(None, f"kernelspec must be {KERNEL}, got {dict(metadata.get('kernelspec', {}))}"))
    if metadata.get("language_info", {}).get("name") != "python":
        found.append(Finding(None, "language_info must name python: execute the notebook"))
    if more := sorted(metadata.keys() - {"kernelspec", "language_info"}):
        found.append(Finding(None, f"metadata holds {', '.join(more)}: only kernelspec and language_info are kept"))
    for k, cell in enumerate(book.cells):
        if more := sorted(cell.metadata.keys() - {"tags"}):
            found.append(Finding(k, f"cell metadata holds {', '.join(more)}: only tags are kept"))
        if unknown := sorted(set(tags_of(cell)) - TAGS):
            found.append(Finding(k, f"unknown tags {', '.join(unknown)}; known are {', '.join(sorted(TAGS))}"))
    return found


def fix_format(book: Notebook) -> None:
    content = book.content
    kept = {k: v for k, v in content.metadata.items() if k == "language_info"}
    content.metadata = nbformat.from_dict({"kernelspec": KERNEL, **kept})
    content.nbformat_minor = max(5, content.get("nbformat_minor", 0))
    seen: set[str] = set()
    for cell in book.cells:
        cell.id = new_id(cell.get("id") or "cell", seen)
        seen.add(cell.id)
        kept = {"tags": tags_of(cell)} if tags_of(cell) else {}
        cell.metadata = nbformat.from_dict(kept)


def new_id(name: str, taken: set[str]) -> str:
    """``name``, or ``name-2``, ``name-3`` ... if it is taken."""
    name = re.sub(r"[^a-zA-Z0-9_-]+", "-", name).strip("-")[:56] or "cell"
    names = (name if k == 1 else f"{name}-{k}" for k in range(1, len(taken) + 2))
    return next(n for n in names if n not in taken)


# --------------------------------------------------------------------------------------------------------------------
# Outputs

SHOWING = {"print", "display", "plots.show", "plots.source", "plots.kernel_source", "widgets.static", "hashedmm.check"}


def shows(source: str) -> bool:
    """Whether a cell prints or draws in any case: by a call that is not in a function, and not behind a condition."""
    code = re.sub(r"^[ \t]*[%!].*$", "", source, flags=re.MULTILINE)
    waiting: list[ast.AST] = list(ast.parse(code).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.If, ast.IfExp, ast.Try, ast.While)):
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func) in SHOWING:
            return True
        waiting += ast.iter_child_nodes(node)
    return False


def find_outputs(book: Notebook) -> list[Finding]:
    """Executed from top to bottom, once; what prints or draws has an output; no error; an exercise says "not yet"."""
    found = []
    count = 0
    names = {source: name for name in exercises.EXERCISES for kind, source in exercises.cells(name) if kind == "code"}
    for k, cell in enumerate(book.cells):
        if cell.cell_type != "code":
            continue
        count += 1
        if cell.execution_count != count:
            found.append(Finding(k, f"execution count {cell.execution_count}, expected {count}: execute the notebook"))
        tags = tags_of(cell)
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in tags:
                found.append(Finding(k, f"the output is an error, {output.ename}"))
        if WIDGET in tags and cell.outputs:
            found.append(Finding(k, "a widget's output has no life in a file: it is kept empty"))
        if WIDGET not in tags and not cell.outputs and shows(cell.source):
            found.append(Finding(k, "the cell shows something, and has no output: execute the notebook"))
        if CHECKED in tags and IGNORED in tags:
            found.append(Finding(k, f"the tags {CHECKED} and {IGNORED} exclude each other"))
        if CHECKED in tags and not cell.outputs:
            found.append(Finding(k, f"tagged {CHECKED}, and there is nothing to compare"))
        if cell.source in names and cell.outputs and not any("not yet" in text for text in text_outputs(cell)):
            found.append(Finding(k, f'exercise {names[cell.source]}: the output must say "not yet"'))
    return found


def fix_outputs(book: Notebook) -> None:
    for cell in book.cells:
        if cell.cell_type == "code" and WIDGET in tags_of(cell):
            cell.outputs = []


# --------------------------------------------------------------------------------------------------------------------
# The first cell, and the ways from notebook to notebook

PARTS = {
    "**What you will do.**": "what the reader does",
    "**After this notebook you can**": "what can be done after it, as a list of verbs",
    "**You need**": "what has to be known",
    "**GPU** ": "whether a GPU is needed",
}


def find_first_cell(book: Notebook) -> list[Finding]:
    """One H1, at the top; what you will do, learn and need; minutes; GPU or not."""
    first = book.cells[0] if book.cells else None
    if first is None or first.cell_type != "markdown":
        return [Finding(0, "the first cell must be Markdown")]
    found = []
    tops = [h for h in headings(book.cells) if h.level == 1]
    if len(tops) != 1 or (tops[0].cell, tops[0].line) != (0, 0):
        found.append(Finding(0, f"one H1, in the first line of the notebook, was expected; there are {len(tops)}"))
    found += [Finding(0, f"`{mark}` is missing: {what}") for mark, what in PARTS.items() if mark not in first.source]
    minutes, mine = book.minutes, [e for e in exercises.EXERCISES.values() if e.notebook == book.number]
    if minutes is None:
        line = "**Time** about 45 minutes to read, about 20 for the exercises, seconds to run."
        found.append(Finding(0, f"a line like `{line}` was expected"))
    elif (minutes.exercises is None) == bool(mine):
        found.append(Finding(0, f"there are {len(mine)} exercises, and the minutes for them are {minutes.exercises}"))
    return found


def navigation(book: Notebook) -> str:
    """The line previous | index | next of a notebook."""
    place = book.shelf.index(book)

    def link(word: str, k: int) -> str:
        if not 0 <= k < len(book.shelf):
            return f"{word}: none"
        other = book.shelf[k]
        return f"[{word}: {other.title}]({other.path.name})"

    index = "index: this page" if book.path.name == INDEX else f"[index]({INDEX})"
    return " | ".join((link("previous", place - 1), index, link("next", place + 1)))


NAVIGATION = re.compile(r"^\[?previous: .* \| \[?index.* \| \[?next: .*$", re.MULTILINE)


def find_navigation(book: Notebook) -> list[Finding]:
    """The line previous | index | next under the H1 and at the end, with the titles that the notebooks have."""
    expected = navigation(book)
    found = []
    last = len(book.cells) - 1
    for k in sorted({0, last}):
        lines = NAVIGATION.findall(book.cells[k].source)
        if lines != [expected]:
            found.append(Finding(k, f"expected one line `{expected}`, got {lines or 'none'}"))
        elif k == last and k and not book.cells[k].source.rstrip().endswith(expected):
            found.append(Finding(k, "the line previous | index | next must be the last"))
    for k in range(1, last):
        if book.cells[k].cell_type == "markdown" and NAVIGATION.search(book.cells[k].source):
            found.append(Finding(k, "previous | index | next is for the first and the last cell"))
    return found


def fix_navigation(book: Notebook) -> None:
    line = navigation(book)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            here = NAVIGATION.sub("", cell.source)
            if here != cell.source:
                cell.source = re.sub(r"\n{3,}", "\n\n", here).strip()
    first, last = book.cells[0], book.cells[-1]
    title, _, rest = first.source.partition("\n")
    first.source = f"{title}\n\n{line}\n\n{rest.strip()}".rstrip()
    if last is not first:
        if last.cell_type != "markdown":
            last = nbformat.v4.new_markdown_cell("", id=new_id("end", {c.id for c in book.cells}))
            book.cells.append(last)
        last.source = f"{last.source.rstrip()}\n\n{line}".lstrip()


# --------------------------------------------------------------------------------------------------------------------
# Links, paths, and what is not the same on every machine

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HTML_LINK = re.compile(r"<(?:a|img)\s[^>]*?(?:href|src)=[\"']([^\"']+)[\"']")
SECTIONS = re.compile(r"\]\((\d\d_\w+\.ipynb)\)(?: \([^)]*\))?, sections? (\d+)(?:(?:,| to| and) (\d+))*")
ABSOLUTE = re.compile(r"(?<![\w.:/<>\\-])(?:/(?:home|root|work|tmp|Users|usr|opt|mnt|var|etc|private)/|[A-Z]:\\\w)")
VOLATILE = {
    "an address": re.compile(r"\bat 0x[0-9a-fA-F]{6,}"),
    "a time": re.compile(r"\b\d+(?:\.\d+)?(?:e-?\d+)? ?(?:ms|us|µs|μs|ns|seconds)\b|\b\d{1,2}:\d\d:\d\d\b"),
    "a date": re.compile(r"\b20\d\d-\d\d-\d\d\b"),
}


def find_links(book: Notebook) -> list[Finding]:
    """Links, pictures, anchors and numbers of sections lead to something in the repository; no path is absolute."""
    found = []
    books = {b.path.resolve(): b for b in book.shelf}
    for k, cell in enumerate(book.cells):
        texts = [cell.source, *text_outputs(cell)]
        if any(ABSOLUTE.search(text) for text in texts):
            found.append(Finding(k, "an absolute path: it is another one on every machine"))
        if CHECKED in tags_of(cell):
            for what, pattern in VOLATILE.items():
                shown = next((hit[0] for text in text_outputs(cell) if (hit := pattern.search(text))), None)
                if shown:
                    found.append(Finding(k, f"tagged {CHECKED}, and the output holds {what}, `{shown}`"))
        if cell.cell_type != "markdown":
            continue
        bare = without_code(cell.source)
        for target in [m[3] for m in LINK.finditer(bare)] + HTML_LINK.findall(bare):
            if wrong := _wrong_target(book, books, target):
                found.append(Finding(k, f"the link {target} {wrong}"))
        for name, *numbers in SECTIONS.findall(bare):
            other = books.get((book.path.parent / name).resolve())
            if other is None:
                continue
            there = {h.text.partition(".")[0] for h in headings(other.cells) if h.level == 2}
            found += [Finding(k, f"{name} has no section {n}") for n in numbers if n and n not in there]
    return found


def _wrong_target(book: Notebook, books: dict[Path, Notebook], target: str) -> str:
    """What is wrong with the target of a link; "" if nothing is."""
    if re.match(r"(https?|mailto):", target):
        return ""
    if re.match(r"/|\w+:|~", target):
        return "must be relative"
    name, _, anchor = unquote(target).partition("#")
    path = (book.path.parent / name).resolve() if name else book.path.resolve()
    if not path.exists():
        return "leads to no file"
    if not path.is_relative_to(book.path.resolve().parent.parent):
        return "leads out of the repository"
    if anchor:
        other = book if path == book.path.resolve() else books.get(path)
        there = anchors(other) if other else _markdown_anchors(path)
        if anchor not in there:
            return f"leads to no heading of {path.name}"
    return ""


def _markdown_anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes for the headings of a Markdown file."""
    if path.suffix != ".md":
        return set()
    text = path.read_text(encoding="utf-8")
    lines = zip(text.splitlines(), without_code(text).splitlines(), strict=True)
    tops = [line.lstrip("#").strip().lower() for line, bare in lines if re.match(r"#{1,6} ", bare)]
    return {re.sub(r"[^\w\- ]", "", top).replace(" ", "-") for top in tops}


def find_alt(book: Notebook) -> list[Finding]:
    """Every picture says what it shows to whoever cannot see it."""
    found = []
    for k, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            bare = without_code(cell.source)
            if any(m[1] and not m[2].strip() for m in LINK.finditer(bare)) or _images_without_alt(bare):
                found.append(Finding(k, "a picture without alternative text: ![what it shows](file)"))
        for output in cell.get("outputs", ()):
            for kind in output.get("data", {}):
                if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip():
                    found.append(Finding(k, f"an output {kind} without alternative text: plots.show(figure, alt=...)"))
            if _images_without_alt(output.get("data", {}).get("text/html", "")):
                found.append(Finding(k, "an <img> in the output without alt"))
    return found


def _images_without_alt(text: str) -> bool:
    return any(not re.search(r"\balt=[\"'][^\"']+[\"']", tag) for tag in re.findall(r"<img\b[^>]*>", text))


# --------------------------------------------------------------------------------------------------------------------
# Exercises


def exercise_cells(name: str) -> list[Any]:
    """The three cells of an exercise, new: text, stub, and hints with the solution."""
    made = []
    for (kind, source), part in zip(exercises.cells(name), ("", "-try", "-help"), strict=True):
        identity = f"exercise-{name.replace('.', '-')}{part}"
        if kind == "code":  # untouched, it says "not yet" on every machine
            made.append(nbformat.v4.new_code_cell(source, id=identity, metadata={"tags": [CHECKED]}))
        else:
            made.append(nbformat.v4.new_markdown_cell(source, id=identity))
    return made


_EXERCISE_HEADING = re.compile(r"### (?:Exercise|Find the bug|Predict) (\d\d\.\d+):")
_EXERCISE_CHECK = re.compile(r"^(?:hashedmm\.)?check\(\"(\d\d\.\d+)\"", re.MULTILINE)


def exercise_of(cell: Any) -> str | None:
    """The id of the exercise that a cell belongs to, by the cell's id, its heading, or its call of ``check``."""
    if found := re.fullmatch(r"exercise-(\d\d)-(\d+)(?:-try|-help)?", cell.get("id", "")):
        return f"{found[1]}.{found[2]}"
    pattern = _EXERCISE_HEADING if cell.cell_type == "markdown" else _EXERCISE_CHECK
    here = pattern.match(cell.source) if cell.cell_type == "markdown" else pattern.search(cell.source)
    return here[1] if here else None


class _Fault(NamedTuple):
    """What is wrong with an exercise: it is "strange" here, "missing", "torn", "altered", or out of its "place"."""

    exercise: str
    kind: str
    cell: int | None
    text: str


def _exercise_faults(book: Notebook) -> list[_Fault]:
    places: dict[str, list[int]] = {}
    for k, cell in enumerate(book.cells):
        if name := exercise_of(cell):
            places.setdefault(name, []).append(k)
    mine = {n: e for n, e in exercises.EXERCISES.items() if e.notebook == book.number}
    found = [
        _Fault(n, "strange", places[n][0], "is not declared for this notebook in hashedmm/exercises")
        for n in sorted(places.keys() - mine.keys())
    ]
    last = -1
    for name, e in mine.items():
        here, want = places.get(name, []), exercise_cells(name)
        if not here:
            found.append(_Fault(name, "missing", None, f"is missing: it belongs after `{e.after}`"))
            continue
        if here != list(range(here[0], here[0] + 3)):
            found.append(_Fault(name, "torn", here[0], f"must be three cells in a row, once; it is in cells {here}"))
            continue
        for k, cell in zip(here, want, strict=True):
            if (book.cells[k].cell_type, book.cells[k].source) != (cell.cell_type, cell.source):
                found.append(_Fault(name, "altered", k, "differs from the one declared in hashedmm/exercises"))
            elif (book.cells[k].get("id"), tags_of(book.cells[k])) != (cell.id, tags_of(cell)):
                found.append(_Fault(name, "altered", k, f"must have the id {cell.id} and the tags {tags_of(cell)}"))
        start = next((h.cell for h in headings(book.cells) if f"{'#' * h.level} {h.text}" == e.after), None)
        if start is None or here[0] <= max(start, last):
            found.append(_Fault(name, "place", here[0], f"must come after `{e.after}`, in the order of numbers"))
        last = max(last, here[0])
    return found


def find_exercises(book: Notebook) -> list[Finding]:
    """Every declared exercise is in its notebook, once, after its section's heading, as it is declared."""
    return [Finding(f.cell, f"exercise {f.exercise} {f.text}") for f in _exercise_faults(book)]


def fix_exercises(book: Notebook) -> None:
    faults = _exercise_faults(book)
    for name in sorted({f.exercise for f in faults}):
        kinds = {f.kind for f in faults if f.exercise == name}
        here = [k for k, cell in enumerate(book.cells) if exercise_of(cell) == name]
        if kinds == {"altered"}:
            old, new = book.cells[here[1]], exercise_cells(name)
            if old.cell_type == "code" and old.source == new[1].source:
                new[1].outputs, new[1].execution_count = old.outputs, old.execution_count
            book.cells[here[0] : here[0] + 3] = new
            continue
        for k in reversed(here):
            del book.cells[k]
        if "strange" not in kinds:
            place = section_end(book, exercises.EXERCISES[name].after)
            names = [exercise_of(cell) or name for cell in book.cells]
            place = max([place, *(k + 1 for k, other in enumerate(names) if other < name)])
            while place and names[place - 1] > name:  # those that end the same section
                place -= 1
            book.cells[place:place] = exercise_cells(name)


def section_end(book: Notebook, heading: str) -> int:
    """The number of the cell before which the section of ``heading`` ends; a cell that holds the end is split there.

    Raises
    ------
    ValueError
        If the notebook has no such heading.
    """
    tops = headings(book.cells)
    start = next((k for k, h in enumerate(tops) if f"{'#' * h.level} {h.text}" == heading), None)
    if start is None:
        raise ValueError(f"{book.path.name} has no heading `{heading}`")
    exercise = [exercise_of(cell) is not None for cell in book.cells]
    after = (h for h in tops[start + 1 :] if h.level <= tops[start].level and not exercise[h.cell])
    end = next(after, None)
    if end is None:
        return len(book.cells)
    if end.line == 0:
        return end.cell
    cell = book.cells[end.cell]
    lines = cell.source.splitlines()
    rest = "\n".join(lines[end.line :])
    cell.source = "\n".join(lines[: end.line]).rstrip()
    identity = new_id(end.text.lower(), {c.get("id", "") for c in book.cells})
    book.cells.insert(end.cell + 1, nbformat.v4.new_markdown_cell(rest, id=identity))
    return end.cell + 1


# --------------------------------------------------------------------------------------------------------------------
# Widgets


def find_widgets(book: Notebook) -> list[Finding]:
    """Every widget is in its notebook, once, tagged; above it stand its static picture and a sentence."""
    found = []
    for name, widget in widgets.WIDGETS.items():
        if widget.notebook != book.path.stem:
            continue
        made = [k for k, c in enumerate(book.cells) if c.cell_type == "code" and f"widgets.{name}(" in c.source]
        if len(made) != 1:
            found.append(Finding(None, f"the widget {name} must be made in one cell, got {len(made)}"))
            continue
        (k,) = made
        if tags_of(book.cells[k]) != [IGNORED, WIDGET]:
            found.append(Finding(k, f"the widget {name}: tag its cell {IGNORED} and {WIDGET}"))
        before = [c for c in book.cells[:k] if c.cell_type == "code"]
        if not before or f'widgets.static("{name}"' not in before[-1].source:
            found.append(Finding(k, f'the widget {name}: `widgets.static("{name}")` must stand in the code cell above'))
        elif k < 2 or not any(c.cell_type == "markdown" for c in book.cells[max(0, k - 3) : k]):
            found.append(Finding(k, f"the widget {name}: a sentence must stand above"))
    for k, cell in enumerate(book.cells):
        if WIDGET in tags_of(cell) and not re.search(r"\bwidgets\.\w+\(", cell.source):
            found.append(Finding(k, f"tagged {WIDGET}, and makes none"))
    return found


# --------------------------------------------------------------------------------------------------------------------
# The index: the table of notebooks in notebook 00 and in README.md

_ROW = re.compile(r"^\|(.*\|) *(\d+) *\| *(\d+|-) *\|$")
_WHOLE = re.compile(r"\*\*The whole: about (\d+) hours\.\*\*")


def index_rows(text: str) -> dict[int, tuple[str, Minutes]]:
    """Rows of the table in an index: {number of the line: (file that it links to, minutes)}; "" is the page itself,
    which begins with 00."""
    rows = {}
    for number, line in enumerate(text.splitlines()):
        if row := _ROW.match(line):
            link = re.search(r"\]\((?:notebooks/)?(\d\d_\w+\.ipynb)\)", row[1])
            if not link and not re.match(r"\W*00\b", row[1]):
                continue  # of another table
            rows[number] = link[1] if link else "", Minutes(int(row[2]), None if row[3] == "-" else int(row[3]))
    return rows


def total_hours(books: Sequence[Notebook]) -> int:
    """What all notebooks take by what they state, in hours."""
    minutes = [b.minutes for b in books if b.minutes]
    return round(sum(m.read + (m.exercises or 0) for m in minutes) / 60)


def index_findings(text: str, books: Sequence[Notebook]) -> list[str]:
    """What is wrong with an index: every notebook has one row, with the minutes that its first cell states."""
    stated = {b.path.name: b.minutes for b in books}
    found = []
    rows = [(name or INDEX, minutes) for name, minutes in index_rows(text).values()]
    for name, count in Counter(name for name, _ in rows).items():
        if count > 1:
            found.append(f"the index has {count} rows for {name}")
    named = {name for name, _ in rows}
    found += [f"the index has no row for {name}" for name in sorted(stated.keys() - named)]
    found += [f"the index has a row for {name}, which does not exist" for name in sorted(named - stated.keys())]
    for name, minutes in rows:
        if name in stated and minutes != stated[name]:
            found.append(f"the index says {minutes} of {name}, its first cell {stated[name]}")
    hours = _WHOLE.findall(text)
    if hours != [str(total_hours(books))]:
        found.append(f"a path `**The whole: about {total_hours(books)} hours.**` was expected, got {hours or 'none'}")
    return found


def fixed_index(text: str, books: Sequence[Notebook]) -> str:
    """An index with the minutes that the first cells state."""
    stated = {b.path.name: b.minutes for b in books}
    lines = text.splitlines()
    for number, (name, _) in index_rows(text).items():
        minutes = stated.get(name or INDEX)
        if minutes and (row := _ROW.match(lines[number])):
            lines[number] = f"|{row[1]} {minutes.read} | {'-' if minutes.exercises is None else minutes.exercises} |"
    ending = "\n" if text.endswith("\n") else ""
    return _WHOLE.sub(f"**The whole: about {total_hours(books)} hours.**", "\n".join(lines) + ending)


def find_index(book: Notebook) -> list[Finding]:
    """Notebook 00 lists all notebooks, with the minutes that they state; README.md too."""
    if book.path.name != INDEX:
        return []
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    found = index_findings(text, book.shelf)
    readme = book.path.resolve().parent.parent / "README.md"
    if readme.exists():
        found += [f"README.md: {f}" for f in index_findings(readme.read_text(encoding="utf-8"), book.shelf)]
    return [Finding(None, f) for f in found]


def fix_index(book: Notebook) -> None:
    if book.path.name != INDEX:
        return
    for cell in book.cells:
        if cell.cell_type == "markdown":
            cell.source = fixed_index(cell.source, book.shelf)
    readme = book.path.resolve().parent.parent / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        if (new := fixed_index(text, book.shelf)) != text:
            safefile.write_bytes(readme, new.encode())


# --------------------------------------------------------------------------------------------------------------------
# All gates


@dataclass(frozen=True)
class Gate:
    """A rule for notebooks: what breaks it, and, where a machine can, how to mend that."""

    find: Callable[[Notebook], list[Finding]]
    fix: Callable[[Notebook], None] | None = None


GATES = {  # in the order in which they are mended
    "exercises": Gate(find_exercises, fix_exercises),
    "format": Gate(find_format, fix_format),
    "outputs": Gate(find_outputs, fix_outputs),
    "first cell": Gate(find_first_cell),
    "navigation": Gate(find_navigation, fix_navigation),
    "links": Gate(find_links),
    "alternative text": Gate(find_alt),
    "widgets": Gate(find_widgets),
    "index": Gate(find_index, fix_index),
}


def findings(book: Notebook) -> list[tuple[str, Finding]]:
    """All that is wrong with a notebook, by the name of the gate."""
    return [(name, finding) for name, gate in GATES.items() for finding in gate.find(book)]


def mend(book: Notebook) -> bool:
    """Mend what a machine can, in memory; True if the notebook has changed."""
    before = text_of(book)
    for gate in GATES.values():
        if gate.fix and gate.find(book):
            gate.fix(book)
    return text_of(book) != before


def write(book: Notebook) -> None:
    """Write a notebook to its file, all or nothing."""
    safefile.write_bytes(book.path, text_of(book).encode())


def execute(book: Notebook) -> float:
    """Execute a notebook in its folder, and return the minutes that it took; its file is not written.

    Raises
    ------
    ImportError
        If nbclient is not installed.
    RuntimeError
        If a cell raises; the message has its traceback.
    """
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
    except ImportError:
        raise ImportError("executing notebooks needs nbclient: pip install 'hashedmm[lab]', or `make lab`") from None
    client = NotebookClient(
        book.content, timeout=None, kernel_name=KERNEL["name"], record_timing=False, store_widget_state=False,
        resources={"metadata": {"path": str(book.path.resolve().parent)}},
    )  # fmt: skip
    start = time.perf_counter()
    try:
        client.execute()
    except CellExecutionError as e:
        raise RuntimeError(f"{book.path.name}: {e}") from None
    minutes = (time.perf_counter() - start) / 60
    fix_outputs(book)
    fix_format(book)
    return minutes


def minutes_table(rows: Sequence[tuple[Notebook, float]]) -> str:
    """Minutes stated, for a reader, beside minutes measured, of this machine's run."""
    lines = [
        f"{'notebook':28}{'stated, for a reader':>24}{'measured, this run':>22}",
        f"{'':28}{'read':>12}{'exercises':>12}{'minutes':>22}",
    ]
    for book, measured in rows:
        stated = book.minutes
        read_, solve = (str(stated.read), str(stated.exercises or "-")) if stated else ("?", "?")
        lines.append(f"{book.path.stem:28}{read_:>12}{solve:>12}{measured:>22.2f}")
    known = [book.minutes for book, _ in rows if book.minutes]
    sums = sum(m.read for m in known), sum(m.exercises or 0 for m in known), sum(measured for _, measured in rows)
    lines.append(f"{'all':28}{sums[0]:>12}{sums[1]:>12}{sums[2]:>22.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m hashedmm.notebooks``; returns 1 if something is left that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m hashedmm.notebooks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="files of one folder; all of notebooks/ if none")
    parser.add_argument("--fix", action="store_true", help="mend what a machine can")
    parser.add_argument("--execute", action="store_true", help="execute in place, and report the minutes")
    options = parser.parse_args(arguments)
    chosen = [path.resolve() for path in options.notebooks]
    try:
        folders = {path.parent for path in chosen} or {FOLDER}
        if len(folders) > 1 or any(not path.is_file() for path in chosen):
            raise ValueError("notebooks must be files in one folder, got " + ", ".join(map(str, options.notebooks)))
        books = shelf(folders.pop())
        mine = [b for b in books if not chosen or b.path.resolve() in chosen]
        if len(mine) < len(chosen):
            raise ValueError("notebooks are called NN_topic.ipynb, got " + ", ".join(map(str, options.notebooks)))
        if options.fix:
            for book in mine:
                if mend(book):
                    write(book)
                    print(f"{book.path.name}: mended")
        if options.execute:
            rows = []
            for book in mine:
                rows.append((book, execute(book)))
                write(book)
                print(f"{book.path.name}: {rows[-1][1]:.2f} minutes", flush=True)
            print(minutes_table(rows))
    except (ImportError, RuntimeError, ValueError) as e:
        print(e, file=sys.stderr)
        return 1
    wrong = [(book, name, finding) for book in mine for name, finding in findings(book)]
    for book, name, finding in wrong:
        cell = "" if finding.cell is None else f", cell {finding.cell}"
        print(f"{book.path.name}{cell}: {name}: {finding.text}")
    if wrong:
        many = sum(GATES[name].fix is not None for _, name, _ in wrong)
        print(f"{len(wrong)} findings; `python -m hashedmm.notebooks --fix` can help with {many}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
