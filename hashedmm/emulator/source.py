"""Reading CUDA C as text: where kernels are, how their parameters are called, the one rewrite that a compiler needs.

Imports the standard library alone. Everything keeps line numbers.
"""

from __future__ import annotations

import re

_SKIPPED = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_DYNAMIC = re.compile(
    r"\bextern\b(?P<before>[^;{}]*?)\b__shared__\b(?P<type>[^;{}]*?)\b(?P<name>[A-Za-z_]\w*)\s*"
    r"(?P<extents>\[\s*\](?:\s*\[[^\]]*\])*)\s*(?P<end>;)"
)
_WITH_PARENTHESES = {"__launch_bounds__", "__attribute__", "__align__", "alignas", "__cluster_dims__", "__maxnreg__"}


def blank(code: str) -> str:
    """The code with comments and strings as spaces: every offset and every line stays where it is."""
    return _SKIPPED.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), code)


def _closing(code: str, opening: int) -> int:
    """The offset of the parenthesis that closes the one at ``opening``; the code's length if none does."""
    depth = 0
    for i in range(opening, len(code)):
        depth += (code[i] == "(") - (code[i] == ")")
        if not depth:
            return i
    return len(code)


def kernels(code: str) -> dict[str, tuple[str, str]]:
    """Every ``__global__`` function: {name: (parameter list, what ``__launch_bounds__`` says or "")}."""
    code = blank(code)
    found = {}
    for start in re.finditer(r"\b__global__\b", code):
        at, bounds = start.end(), ""
        while call := re.compile(r"\b([A-Za-z_]\w*)\s*\(").search(code, at):
            end = _closing(code, call.end() - 1)
            inside = code[call.end() : end]
            if call[1] not in _WITH_PARENTHESES:
                found[call[1]] = (inside, bounds)
                break
            if call[1] == "__launch_bounds__":
                bounds = _split(inside)[0]
            at = end
    return found


def _split(text: str) -> list[str]:
    """Split at the commas outside all brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and not depth:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def parameter_names(parameters: str, count: int) -> list[str]:
    """The names in a parameter list; "argument i" where a macro or a nameless parameter hides them."""
    names = []
    for part in _split(parameters):
        name = re.search(r"([A-Za-z_]\w*)\s*(?:\[[^\]]*\]\s*)*(?:=.*)?$", part, re.DOTALL)
        names.append(name[1] if name else "")
    if len(names) != count:
        return [f"argument {i}" for i in range(count)]
    return [name or f"argument {i}" for i, name in enumerate(names)]


def open_dynamic_shared(code: str) -> tuple[str, list[str]]:
    """Make ``extern __shared__ T name[];`` a name for the runtime's buffer. Returns the code and these names."""
    out, names, last = [], [], 0
    for m in _DYNAMIC.finditer(blank(code)):
        names.append(m["name"])
        declaration = (
            "extern" + code[m.start("before") : m.end("before")] + code[m.start("type") : m.end("type")]
        ).replace("alignas", "__align__")
        name_and_extents = code[m.start("name") : m.start("end")]
        out += [code[last : m.start()], declaration, name_and_extents, ' __asm__("hm_dynamic") HM_HIDDEN;']
        last = m.end()
    return "".join([*out, code[last:]]), list(dict.fromkeys(names))
