"""The emulator's shared libraries as Python sees them: runtime.cpp's structures, the loaded library, guarded memory.

Imports NumPy and this folder's lines.py.
"""

from __future__ import annotations

import ctypes as ct
import functools
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hashedmm.emulator.lines import Lines, lines_of

PLAIN, TRACE, CHECK = range(3)
OK, SIGNAL, BARRIER, WARP, ASSERT, INTERRUPT = range(6)
READ, WRITE, ATOMIC = range(3)
RACE, UNINITIALISED, OUTSIDE, MISALIGNED = range(4)
STATIC_SHARED, DYNAMIC_SHARED, NOWHERE = -1, -2, -3

# One launch at a time: signal handlers and a library's variables belong to the whole process.
LOCK = threading.RLock()

STACK_BYTES = 256 * 1024


class Region(ct.Structure):
    """runtime.cpp's Region: an array's place in memory."""

    _fields_ = [("base", ct.c_uint64), ("size", ct.c_uint64), ("granule", ct.c_uint32), ("pad", ct.c_uint32)]


class Launch(ct.Structure):
    """runtime.cpp's Launch: what is to run, and what happened."""

    _fields_ = [
        ("grid", ct.c_uint32 * 3),
        ("block", ct.c_uint32 * 3),
        ("dynamic_bytes", ct.c_uint32),
        ("mode", ct.c_uint32),
        ("args", ct.POINTER(ct.c_void_p)),
        ("order", ct.c_void_p),
        ("blocks", ct.c_void_p),
        ("n_blocks", ct.c_uint64),
        ("regions", ct.POINTER(Region)),
        ("n_regions", ct.c_uint64),
        ("variables", ct.POINTER(Region)),
        ("n_variables", ct.c_uint64),
        ("stacks", ct.c_void_p),
        ("stack_bytes", ct.c_uint64),
        ("error", ct.c_int32),
        ("signal", ct.c_int32),
        ("line", ct.c_int32),
        ("other_line", ct.c_int32),
        ("thread", ct.c_uint32),
        ("other_thread", ct.c_uint32),
        ("block_index", ct.c_uint32 * 3),
        ("returned", ct.c_uint32),
        ("waiting", ct.c_uint32),
        ("wrote", ct.c_int32),
        ("address", ct.c_uint64),
        ("pc", ct.c_uint64),
        ("text", ct.c_char * 200),
    ]


class Parameter(ct.Structure):
    """hm_glue.h's HmParameter."""

    _fields_ = [(name, ct.c_int) for name in ("kind", "type", "size", "scalar", "constant")]


SITE = np.dtype(
    [("pc", "u8"), ("op", "i4"), ("region", "i4"), ("size", "i4"), ("piece", "i4")]
    + [(n, "u8") for n in "requests lanes bytes sectors ideal_sectors wavefronts ideal_wavefronts".split()],
    align=True,
)
SAMPLE = np.dtype([(n, "u4") for n in ("site", "block", "warp", "mask")] + [("offset", "i8", 32)], align=True)
PROBLEM = np.dtype(
    [(n, "i4") for n in ("kind", "op", "other_op", "region")]
    + [(n, "u8") for n in ("pc", "other_pc", "offset", "address", "count")]
    + [(n, "u4") for n in ("thread", "other_thread", "block", "other_block")]
    + [("size", "i4")],
    align=True,
)


@dataclass
class Library:
    """A loaded kernel."""

    path: Path
    handle: ct.CDLL
    base: int
    parameters: list[Parameter]
    launch_bounds: int
    static_address: int
    static_bytes: int
    dynamic_address: int

    @property
    def lines(self) -> Lines:
        return lines_of(self.path)

    def line_of(self, pc: int) -> tuple[str, int]:
        """(file, line) of an absolute program counter."""
        return self.lines.find(pc - self.base)

    def table(self, function: str, dtype: np.dtype) -> np.ndarray:
        """A copy of one of the runtime's tables."""
        count = ct.c_uint64()
        address = getattr(self.handle, function)(ct.byref(count))
        if not count.value:
            return np.empty(0, dtype)
        return np.frombuffer(ct.string_at(address, count.value * dtype.itemsize), dtype).copy()

    def output(self) -> str:
        """What the kernel printed since the last call."""
        length = ct.c_uint32()
        address = self.handle.hm_output(ct.byref(length))
        return ct.string_at(address, length.value).decode(errors="replace") if length.value else ""


@functools.cache
def load(path: Path) -> Library:
    """Load a library that `toolchain.build` made."""
    handle = ct.CDLL(str(path))
    for name, result, *arguments in (
        ("hm_run", ct.c_int, ct.POINTER(Launch)),
        ("hm_library_base", ct.c_uint64),
        ("hm_static_shared", ct.c_uint64, ct.POINTER(ct.c_uint64)),
        ("hm_dynamic_shared", ct.c_uint64),
        ("hm_describe", ct.c_int, ct.POINTER(Parameter), ct.c_int),
        ("hm_bounds", ct.c_longlong),
        ("hm_output", ct.c_void_p, ct.POINTER(ct.c_uint32)),
        ("hm_sites", ct.c_void_p, ct.POINTER(ct.c_uint64)),
        ("hm_samples", ct.c_void_p, ct.POINTER(ct.c_uint64)),
        ("hm_problems", ct.c_void_p, ct.POINTER(ct.c_uint64)),
        ("hm_last_writer", ct.c_uint64, ct.c_uint64, ct.c_uint64),
        ("hm_end_check", None),
        ("hm_forget", None),
        ("hm_map_stacks", ct.c_void_p, ct.c_uint64),
        ("hm_map_guarded", ct.c_void_p, ct.c_uint64, ct.c_uint64, ct.c_int),
        ("hm_unmap_guarded", None, ct.c_void_p, ct.c_uint64, ct.c_uint64),
    ):
        function = getattr(handle, name)
        function.restype, function.argtypes = result, arguments
    count = handle.hm_describe(None, 0)
    parameters = (Parameter * max(1, count))()
    handle.hm_describe(parameters, count)
    size = ct.c_uint64()
    start = handle.hm_static_shared(ct.byref(size))
    return Library(
        path, handle, handle.hm_library_base(), list(parameters[:count]), handle.hm_bounds(), start, size.value,
        handle.hm_dynamic_shared(),
    )  # fmt: skip


_stacks: list[int] = []


def stacks(library: Library) -> int:
    """The stacks of 1024 fibers: mapped once a process, used by one launch at a time."""
    if not _stacks:
        address = library.handle.hm_map_stacks(STACK_BYTES)
        if not address:
            raise MemoryError("no address space for the stacks of 1024 emulated threads (256 MiB)")
        _stacks.append(address)
    return _stacks[0]


@dataclass
class Buffer:
    """The guarded copy of one array, or of several that overlap."""

    base: int  # where the data starts
    size: int
    pages: int  # where the usable pages start
    pages_size: int
    guard: int
    source: int  # where the caller's data starts
    arrays: list[tuple[str, np.ndarray]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.arrays[0][0]

    @property
    def array(self) -> np.ndarray:
        return self.arrays[0][1]


class Memory:
    """Copies of the arrays of a launch, each at the end of pages that inaccessible ones surround.

    The start of an array is a multiple of 16 bytes, for vector loads; what is left at the end, at most 15 bytes, and
    before the start is filled with 0xFF and looked at afterwards.

    Parameters
    ----------
    library : Library
    arrays : sequence of (name, array, writable)
        Arrays that overlap share one buffer.
    open_guards : bool
        Map the surroundings as usable memory (zeros) instead: for `check`, which sees every access by itself.
    """

    def __init__(self, library: Library, arrays: Sequence[tuple[str, np.ndarray, bool]], open_guards: bool = False):
        self._handle = library.handle
        self._open = open_guards
        self._writable = [(name, array) for name, array, writable in arrays if writable and array.nbytes]
        self.buffers: list[Buffer] = []
        try:
            for name, array, _ in sorted(arrays, key=lambda item: (item[1].ctypes.data, -item[1].nbytes)):
                start, size = array.ctypes.data, array.nbytes
                last = self.buffers[-1] if self.buffers else None
                if last and size and start < last.source + last.size:
                    last.arrays.append((name, array))
                    last.size = max(last.size, start + size - last.source)
                else:
                    self.buffers.append(Buffer(0, size, 0, 0, 0, start, [(name, array)]))
            for buffer in self.buffers:
                self._map(buffer)
        except BaseException:
            self.release()
            raise

    def _map(self, buffer: Buffer) -> None:
        room = -(-buffer.size // 16) * 16
        buffer.pages_size = max(1, -(-room // mmap.PAGESIZE)) * mmap.PAGESIZE
        for buffer.guard in (2**30, 2**26, 2**20):
            if not self._open or buffer.guard < 2**30:
                buffer.pages = self._handle.hm_map_guarded(buffer.pages_size, buffer.guard, self._open) or 0
            if buffer.pages:
                break
        else:
            raise MemoryError(f"no memory for a copy of {buffer.name} ({buffer.size} bytes)")
        buffer.base = buffer.pages + buffer.pages_size - room
        ct.memset(buffer.pages, 0xFF, buffer.base - buffer.pages)
        ct.memset(buffer.base + buffer.size, 0xFF, room - buffer.size)
        for _, array in buffer.arrays:
            ct.memmove(buffer.base + array.ctypes.data - buffer.source, array.ctypes.data, array.nbytes)

    def pointer(self, array: np.ndarray) -> int:
        """Where the copy of an array is."""
        start = array.ctypes.data
        for b in self.buffers:
            if b.source <= start < b.source + b.size or (not array.nbytes and b.source == start):
                return b.base + start - b.source
        raise KeyError("not an array of this launch")

    def regions(self) -> ct.Array[Region]:
        """The table that the runtime gets."""
        table = (Region * max(1, len(self.buffers)))()
        for row, b in zip(table, self.buffers, strict=False):
            item = min(array.dtype.itemsize for _, array in b.arrays)
            row.base, row.size, row.granule = b.base, b.size, item if item in (1, 2, 4) else 4 if item % 4 == 0 else 1
        return table

    def overwritten(self) -> tuple[Buffer, int] | None:
        """The first buffer whose unused bytes a kernel changed, and where: an offset from the start of the data."""
        for b in self.buffers:
            for start, size in (
                (b.pages, b.base - b.pages),
                (b.base + b.size, b.pages + b.pages_size - b.base - b.size),
            ):
                changed = np.flatnonzero(np.frombuffer(ct.string_at(start, size), np.uint8) != 0xFF)
                if changed.size:
                    return b, start + int(changed[-1 if start == b.pages else 0]) - b.base
        return None

    def nearest(self, address: int) -> tuple[Buffer, int] | None:
        """The buffer that an address is closest to, and the offset from the start of its data; None if it is far."""
        found = [
            (max(b.base - address, address - (b.base + b.size), 0), i)
            for i, b in enumerate(self.buffers)
            if b.pages - b.guard <= address < b.pages + b.pages_size + b.guard
        ]
        if not found:
            return None
        b = self.buffers[min(found)[1]]
        return b, address - b.base

    def read(self, array: np.ndarray) -> np.ndarray:
        """What a launch left for an array, as a new array of the same shape and order."""
        out = np.empty_like(array, subok=False)
        ct.memmove(out.ctypes.data, self.pointer(array), array.nbytes)
        return out

    def copy_back(self) -> None:
        """Write the results into the caller's arrays."""
        for _, array in self._writable:
            ct.memmove(array.ctypes.data, self.pointer(array), array.nbytes)

    def release(self) -> None:
        """Unmap everything."""
        for b in self.buffers:
            if b.pages:
                self._handle.hm_unmap_guarded(b.pages, b.pages_size, b.guard)
                b.pages = 0
