"""From addresses in a shared library to source lines and variables: its DWARF line table and its symbols.

Imports pyelftools and the standard library.
"""

from __future__ import annotations

import bisect
import functools
import os
import re
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile


class Lines:
    """The line table of one library. Addresses are relative to where it is loaded."""

    def __init__(self, library: Path):
        self._starts: list[int] = []
        self._lines: list[tuple[str, int]] = []
        # (address, size, name): variables in shared memory, and the source's others (`__device__ int n`).
        self.shared: list[tuple[int, int, str]] = []
        self.variables: list[tuple[int, int, str]] = []
        with open(library, "rb") as file:
            elf = ELFFile(file)
            rows: dict[int, tuple[str, int] | None] = {}
            if elf.has_dwarf_info():
                dwarf = elf.get_dwarf_info()
                for unit in dwarf.iter_CUs():
                    program = dwarf.line_program_for_CU(unit)
                    if program is None:
                        continue
                    files = program["file_entry"]
                    first = 0 if program["version"] >= 5 else 1
                    for entry in program.get_entries():
                        state = entry.state
                        if state is None:
                            continue
                        if state.end_sequence:
                            rows.setdefault(state.address, None)
                        else:
                            name = os.path.basename(files[state.file - first].name.decode(errors="replace"))
                            rows[state.address] = (name, state.line)
            for address in sorted(rows):
                self._starts.append(address)
                self._lines.append(rows[address] or ("", 0))
            section = elf.get_section_by_name("hm_shared")
            low, high = (section["sh_addr"], section["sh_addr"] + section["sh_size"]) if section else (0, 0)
            symbols: Any = elf.get_section_by_name(".symtab")
            from_file = ""  # the file that local symbols are from
            for symbol in symbols.iter_symbols() if symbols else ():
                kind, address = symbol["st_info"]["type"], symbol["st_value"]
                if kind == "STT_FILE":
                    from_file = symbol.name
                elif kind == "STT_OBJECT" and symbol["st_size"]:
                    found = (address, symbol["st_size"], _plain_name(symbol.name))
                    if low <= address < high:
                        self.shared.append(found)
                    elif from_file == "unit.cpp" or (
                        symbol["st_info"]["bind"] == "STB_GLOBAL" and from_file != "runtime.cpp"
                    ):
                        self.variables.append(found)
            self.shared.sort()

    def find(self, address: int) -> tuple[str, int]:
        """(file name, line) of the instruction at an address; ("", 0) if it is not known."""
        i = bisect.bisect_right(self._starts, address) - 1
        return self._lines[i] if i >= 0 else ("", 0)

    def shared_variable(self, address: int) -> tuple[str, int, int]:
        """(name, offset inside it, its size) of the static shared variable at an address."""
        i = bisect.bisect_right(self.shared, (address, 1 << 62, "")) - 1
        if i >= 0:
            start, size, name = self.shared[i]
            return name, address - start, size
        return "", 0, 0


@functools.lru_cache(maxsize=64)
def lines_of(library: Path) -> Lines:
    """The line table of a library, read once."""
    return Lines(library)


def _plain_name(symbol: str) -> str:
    """The variable's name in the source: ``tile.0`` and ``_ZZ6kernelE4tile`` are ``tile``."""
    symbol = re.sub(r"\.\d+$", "", symbol)
    if symbol.startswith("_Z"):  # the last length and name, as the Itanium C++ ABI writes them
        names = (symbol[m.end() : m.end() + int(m[0])] for m in re.finditer(r"\d+", symbol))
        return [name for name in names if re.fullmatch(r"[A-Za-z_]\w*", name)][-1]
    return symbol
