"""The exercises of the notebooks, declared: text, stub, hints, solution and test, one file a notebook.

`EXERCISES` is the table, `cells` makes the cells that a notebook shows, so that the two cannot drift. `hashedmm.check`
looks an answer over. It may import everything above `hashedmm.check` in the order of imports.
"""

from __future__ import annotations

import importlib
import pkgutil

from hashedmm.exercises.base import Case, Demand, Exercise, FunctionTest, KernelTest, Launch, ValueTest

__all__ = [
    "EXERCISES", "Case", "Demand", "Exercise", "FunctionTest", "KernelTest", "Launch", "ValueTest", "cells",
]  # fmt: skip


def _declared() -> dict[str, Exercise]:
    """Every exercise of the files ``nb*.py``, by its id."""
    found: dict[str, Exercise] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith("nb")):
        for exercise in importlib.import_module(f"{__name__}.{module}").EXERCISES:
            if exercise.id in found or exercise.notebook != module[2:]:
                raise ValueError(f"exercise {exercise.id!r} of {module}.py must be new, and of notebook {module[2:]}")
            found[exercise.id] = exercise
    return found


EXERCISES: dict[str, Exercise] = _declared()


def cells(name: str) -> list[tuple[str, str]]:
    """The cells of an exercise in its notebook.

    Parameters
    ----------
    name : str
        The exercise's id, "05.2".

    Returns
    -------
    list of (cell type, source): "markdown" with the spec, "code" with the stub and the call of ``check``, "markdown"
    with hints and solution folded away.

    Raises
    ------
    ValueError
        If there is no such exercise.
    """
    e = find(name)
    what = {"fix": "Find the bug", "value": "Predict"}.get(e.kind, "Exercise")
    size = f"about {e.lines} line{'s' if e.lines > 1 else ''}"
    facts = f"**Sizes** {e.sizes} | {size}" if e.sizes else size[0].upper() + size[1:]
    text = f"### {what} {e.id}: {e.title}\n\n{e.spec.strip()}\n\n{facts}."
    stub = e.stub.strip()
    space = "\n" if stub.startswith("from ") else "\n\n\n" if stub.startswith("def ") else "\n\n"
    gap = "\n\n\n" if "\ndef " in f"\n{stub}" else "\n"
    code = f'import hashedmm{space}{stub}{gap}hashedmm.check("{e.id}", {e.answer})'
    folded = [
        f"<details><summary>Hint{f' {k}' if len(e.hints) > 1 else ''}</summary>\n\n{hint.strip()}\n\n</details>"
        for k, hint in enumerate(e.hints, 1)
    ]
    folded.append(f"<details><summary>Solution</summary>\n\n```python\n{e.solution.strip()}\n```\n\n</details>")
    return [("markdown", text), ("code", code), ("markdown", "\n\n".join(folded))]


def find(name: str) -> Exercise:
    """The exercise of this id; ValueError, with the ids that there are, if there is none."""
    if not isinstance(name, str) or name not in EXERCISES:
        notebook = str(name).partition(".")[0]
        near = [i for i in EXERCISES if i.startswith(f"{notebook}.")] or list(EXERCISES)
        raise ValueError(f"exercise must be one of {', '.join(near)}, got {name!r}")
    return EXERCISES[name]
