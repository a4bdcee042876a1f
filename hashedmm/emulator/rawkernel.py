"""``RawKernel``: CuPy's call, with the kernel run on the CPU and every argument checked before it starts.

Imports NumPy and this folder's modules.
"""

from __future__ import annotations

import ctypes as ct
import operator
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hashedmm.emulator import native, source, toolchain

DEFAULT_SHARED = 48 * 1024  # bytes that a block may have without asking for more
MAX_SHARED = 227 * 1024  # bytes on an H100
MAX_THREADS = 1024
_GRID_LIMITS = (2**31 - 1, 65535, 65535)
_BLOCK_LIMITS = (1024, 1024, 64)

# Options of NVRTC that say nothing about what a kernel computes, or that a CPU has no use for.
_IGNORED = re.compile(
    r"(--?use_fast_math|-ftz=.*|--ftz=.*|--?fmad=.*|--?prec-div=.*|--?prec-sqrt=.*|-arch=.*|--gpu-architecture=.*"
    r"|--?maxrregcount=.*|--?lineinfo|-lineinfo|--generate-line-info|-G|--device-debug|-w|--disable-warnings"
    r"|--device-as-default-execution-space|-default-device|--?rdc=.*|--relocatable-device-code=.*|--?dopt=.*"
    r"|--?extra-device-vectorization|--?restrict|-no-cache|--?split-compile=.*|--?minimal"
    r"|--ptxas-options=.*|-Xptxas=.*)"
)
_CUPY_DEFAULTS = {"backend": "nvrtc", "translate_cucomplex": False, "enable_cooperative_groups": False, "jitify": False}
_NAMES = {
    ("f", 2): "__half", ("f", 4): "float", ("f", 8): "double",
    ("i", 1): "char", ("i", 2): "short", ("i", 4): "int", ("i", 8): "long long",
    ("u", 1): "unsigned char", ("u", 2): "unsigned short", ("u", 4): "unsigned int", ("u", 8): "unsigned long long",
    ("b", 1): "bool",
}  # fmt: skip


class KernelError(RuntimeError):
    """A kernel failed while it ran: a fault, a barrier that not all threads reach, an assert.

    Attributes
    ----------
    kind : str
        "fault", "barrier", "warp" (a warp collective) or "assert".
    line : int
        In the kernel's source; 0 if it is not known.
    block, thread : tuple of three ints
        Who it was.
    """

    def __init__(self, message: str, kind: str, line: int = 0, block=(0, 0, 0), thread=(0, 0, 0)):
        super().__init__(message)
        self.kind, self.line, self.block, self.thread = kind, line, block, thread


@dataclass
class Argument:
    """One parameter of a kernel's signature."""

    position: int
    name: str
    pointer: bool
    constant: bool
    code: str  # f i u b s v
    size: int
    scalar: int

    @property
    def dtype(self) -> np.dtype | None:
        """The dtype that is expected; None for structures and void."""
        if self.code in "sv":
            return None
        return np.dtype(np.bool_) if self.code == "b" else np.dtype(f"{self.code}{self.scalar}")

    def __str__(self) -> str:
        if self.code == "v":
            base = "void"
        elif self.code == "s":
            base = f"struct of {self.size} bytes"
        else:
            base = _NAMES[self.code, self.scalar]
            if self.size != self.scalar:
                base += str(self.size // self.scalar)
        return f"{'const ' if self.constant else ''}{base}{'*' if self.pointer else ''}"


class RawKernel:
    """A CUDA C kernel that runs on the CPU: `cupy.RawKernel`'s constructor and call.

    Parameters
    ----------
    code : str
        CUDA C, unmodified.
    name : str
        Of an ``extern "C" __global__`` function in it.
    options : sequence of str
        ``-DNAME``, ``-DNAME=VALUE``, ``-I<folder>``, ``--std=c++17``. Options that only NVRTC knows are ignored.

    Raises
    ------
    ValueError
        For an unknown option, or a name that is not in the code.
    RuntimeError
        When it is compiled, if there is no compiler (`why_not` says what to do).
    CompileError
        When it is compiled, if the code is wrong. Compiling happens at the first call, or by `compile`.

    Examples
    --------
    >>> code = r'''extern "C" __global__ void twice(const float* x, float* y, int n) {
    ...     int i = blockIdx.x * blockDim.x + threadIdx.x;
    ...     if (i < n) y[i] = 2 * x[i];
    ... }'''
    >>> x, y = np.arange(100, dtype=np.float32), np.empty(100, np.float32)
    >>> RawKernel(code, "twice")((4,), (32,), (x, y, np.int32(100)))
    """

    def __init__(self, code: str, name: str, options: Sequence[str] = (), **cupy: Any):
        if not isinstance(code, str):
            raise TypeError(f"code must be a str with CUDA C, got {type(code).__name__}")
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {type(name).__name__}")
        for keyword, value in cupy.items():
            if keyword not in _CUPY_DEFAULTS:
                raise TypeError(f"RawKernel has no keyword {keyword!r}")
            if value != _CUPY_DEFAULTS[keyword]:
                raise ValueError(
                    f"{keyword}={value!r} is for CuPy on a GPU; the emulator knows {_CUPY_DEFAULTS[keyword]!r} alone"
                )
        self._found = source.kernels(code)
        if not re.search(rf"\b{re.escape(name)}\b", source.blank(code)):
            there = ", ".join(self._found) or "none"
            raise ValueError(f"name must be a __global__ function of the code, got {name!r}; the code has: {there}")
        self.code = code
        self.name = name
        self.options = tuple(options)
        self._flags, self._includes = _read_options(options)
        self._max_dynamic = DEFAULT_SHARED
        self._libraries: dict[bool, native.Library] = {}
        self.source_lines = code.splitlines()
        self._opened, self.dynamic_names = source.open_dynamic_shared(code)

    def __repr__(self) -> str:
        return f"<hashedmm.emulator.RawKernel {self.name}>"

    # ---- building

    def compile(self) -> None:
        """Build the kernel now, not at the first call."""
        self.library()

    def library(self, traced: bool = False) -> native.Library:
        """The loaded build; compiled once, found in the cache afterwards."""
        if traced not in self._libraries:
            path = toolchain.build(
                self._unit(), self.name, self._flags, self._includes, traced=traced, lines=self.source_lines
            )
            with native.LOCK:
                self._libraries[traced] = native.load(path)
        return self._libraries[traced]

    def _unit(self) -> str:
        bounds = self._found.get(self.name, ("", ""))[1] or "0"
        return "\n".join(
            [
                '#include "hm_device.h"',
                f'#line 1 "{self.name}.cu"',
                self._opened,
                '#line 1 "hm_linkage"',
                f'extern "C" decltype({self.name}) {self.name};',
                '#line 1 "hm_glue"',
                f"typedef decltype(hm_kernel_type(&{self.name})) HmThis;",
                f"HM_EXPORT HM_UNWATCHED void hm_kernel(void **args) {{ HmThis::call(&{self.name}, args); }}",
                "HM_EXPORT int hm_describe(HmParameter *out, int room) { return HmThis::describe(out, room); }",
                f"HM_EXPORT long long hm_bounds() {{ return (long long)({bounds}); }}",
                "",
            ]
        )

    @property
    def arguments(self) -> list[Argument]:
        """The kernel's parameters, by the compiler's own account."""
        parameters = self.library().parameters
        names = source.parameter_names(self._found.get(self.name, ("", ""))[0], len(parameters))
        out = []
        for i, (p, name) in enumerate(zip(parameters, names, strict=True)):
            if p.kind == 2:
                raise ValueError(
                    f"argument {i} ({name}) of kernel {self.name!r} is a pointer to pointers: the emulator passes "
                    "arrays "
                    "of numbers; pass one array and offsets into it"
                )
            out.append(Argument(i, name, p.kind == 1, bool(p.constant), chr(p.type), p.size, p.scalar))
        return out

    def lines_of(self, file: str) -> list[str]:
        """The lines of an included file, by its base name; none if it is not in the ``-I`` folders."""
        for path, text in toolchain.included(self.code, self._includes).items():
            if os.path.basename(path) == file:
                return text.splitlines()
        return []

    # ---- attributes

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Dynamic shared memory that a launch may ask for, in bytes: 48 KiB unless raised, at most 227 KiB (H100)."""
        return self._max_dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        size = operator.index(size)
        room = MAX_SHARED - self.library().static_bytes
        if not 0 <= size <= room:
            raise ValueError(
                f"max_dynamic_shared_size_bytes must be from 0 to {room} (227 KiB less the static shared memory), "
                f"got {size}"
            )
        self._max_dynamic = size

    @property
    def attributes(self) -> dict[str, int]:
        """What is known of the kernel, under CuPy's names. Registers and local memory exist on a GPU alone."""
        library = self.library()
        return {
            "max_threads_per_block": library.launch_bounds or MAX_THREADS,
            "shared_size_bytes": library.static_bytes,
            "max_dynamic_shared_size_bytes": self._max_dynamic,
        }

    # ---- running

    def __call__(self, grid: tuple, block: tuple, args: Sequence[Any], *, shared_mem: int = 0) -> None:
        """Run to completion; results are in the arrays.

        Parameters
        ----------
        grid, block : tuples of one to three ints
            Blocks of the grid, threads of a block.
        args : sequence
            NumPy arrays (contiguous, C or F) for pointers; NumPy scalars such as ``np.int32(3)`` for values;
            ``np.void`` for structures; None for a null pointer.
        shared_mem : int
            Dynamic shared memory, bytes.

        Raises
        ------
        TypeError, ValueError
            Before anything runs, for arguments that would be errors or silent nonsense on a GPU.
        KernelError
            If the kernel faults; the arrays are then as they were.
        """
        with native.LOCK:
            run = Run(self, grid, block, args, shared_mem)
            with run:
                run.go()
                run.memory.copy_back()

    def check_arguments(self, args: Sequence[Any]) -> None:
        """Raise what a call with these arguments would raise before it starts."""
        _check_arguments(self, args)


def _read_options(options: Sequence[str]) -> tuple[list[str], list[str]]:
    """(flags, include folders) for the C++ compiler."""
    if isinstance(options, str):
        raise TypeError(f"options must be a tuple of strings, got the string {options!r}; write ({options!r},)")
    flags, includes, standard = [], [], "gnu++17"
    rest = list(options)
    while rest:
        option = rest.pop(0)
        if not isinstance(option, str):
            raise TypeError(f"options must be strings, got {option!r}")
        if option in ("-D", "-I", "-U", "--define-macro", "--include-path") and rest:
            option += ("=" if option.startswith("--") else "") + rest.pop(0)
        if m := re.fullmatch(r"(?:-D|--define-macro=)([A-Za-z_]\w*(?:=.*)?)", option, re.DOTALL):
            flags.append(f"-D{m[1]}")
        elif m := re.fullmatch(r"(?:-I|--include-path=)(.+)", option):
            includes.append(os.path.abspath(m[1]))
        elif m := re.fullmatch(r"--?std=c\+\+(\d\d)", option):
            standard = f"gnu++{max(17, int(m[1]) if m[1] < '90' else 17)}"
        elif not _IGNORED.fullmatch(option):
            raise ValueError(
                f"options: the emulator does not know {option!r}; it knows -DNAME=VALUE, -I<folder> and --std=c++NN, "
                "and "
                "ignores NVRTC's options about code generation"
            )
    return [f"-std={standard}", *flags], includes


# --------------------------------------------------------------------------------------------------------------------
# Checks before a launch


def _extent(name: str, value: Any, limits: tuple[int, int, int]) -> tuple[int, int, int]:
    if not isinstance(value, (tuple, list)) or not 1 <= len(value) <= 3:
        raise TypeError(
            f"{name} must be a tuple of one to three ints, got {value!r}; write ({value!r},) for one dimension"
        )
    out = []
    for axis, v, most in zip("xyz", value, limits, strict=False):
        try:
            v = operator.index(v)
        except TypeError:
            raise TypeError(f"{name}.{axis} must be an int, got {v!r} of type {type(v).__name__}") from None
        if not 1 <= v <= most:
            raise ValueError(f"{name}.{axis} must be from 1 to {most}, got {v}")
        out.append(v)
    x, y, z = (*out, 1, 1)[:3]
    return x, y, z


def _check_launch(kernel: RawKernel, grid: Any, block: Any, shared_mem: Any):
    grid = _extent("grid", grid, _GRID_LIMITS)
    if isinstance(block, (tuple, list)) and all(isinstance(v, (int, np.integer)) for v in block):
        threads = int(np.prod([int(v) for v in block], dtype=object))
        if threads > MAX_THREADS:
            raise ValueError(f"block {tuple(block)} has {threads} threads, and a block has at most {MAX_THREADS}")
    block = _extent("block", block, _BLOCK_LIMITS)
    library = kernel.library()
    threads = block[0] * block[1] * block[2]
    if library.launch_bounds and threads > library.launch_bounds:
        raise ValueError(
            f"block {block} has {threads} threads, and kernel {kernel.name!r} says "
            f"__launch_bounds__({library.launch_bounds})"
        )
    try:
        shared = operator.index(shared_mem)
    except TypeError:
        raise TypeError(f"shared_mem must be an int (bytes), got {shared_mem!r}") from None
    static, most = library.static_bytes, kernel.max_dynamic_shared_size_bytes
    if shared < 0:
        raise ValueError(f"shared_mem must be at least 0 bytes, got {shared}")
    if static > DEFAULT_SHARED:
        raise ValueError(
            f"kernel {kernel.name!r} declares {static} bytes of static shared memory, and CUDA allows "
            f"{DEFAULT_SHARED}: "
            "use smaller tiles, or dynamic shared memory (extern __shared__)"
        )
    if static + shared > MAX_SHARED:
        raise ValueError(
            f"too much shared memory: {static} bytes static + {shared} dynamic, and a block has at most {MAX_SHARED} "
            "(227 KiB, H100): use smaller tiles"
        )
    if shared > most or (most <= DEFAULT_SHARED and static + shared > DEFAULT_SHARED):
        raise ValueError(
            f"too much shared memory: {static} bytes static + shared_mem={shared} with max_dynamic_shared_size_bytes = "
            f"{most}; over {DEFAULT_SHARED} a kernel has to ask: kernel.max_dynamic_shared_size_bytes = {shared}"
        )
    return grid, block, shared


def _check_arguments(kernel: RawKernel, args: Any) -> list[tuple[Argument, Any]]:
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write (x,) for one argument")
    expected = kernel.arguments
    if len(args) != len(expected):
        signature = ", ".join(f"{a} {a.name}" for a in expected)
        raise TypeError(f"kernel {kernel.name!r} takes {len(expected)} arguments ({signature}), got {len(args)}")
    return [(a, _check_argument(a, value)) for a, value in zip(expected, args, strict=True)]


def _check_argument(a: Argument, value: Any) -> Any:
    where = f"argument {a.position} ({a.name})"
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(
            f"{where} is an array on a GPU ({type(value).__module__}); the emulator reads NumPy arrays: pass "
            "cupy.asnumpy(x), or call cupy.RawKernel"
        )
    if a.pointer:
        return _check_pointer(a, where, value)
    if isinstance(value, np.ndarray):
        if value.ndim == 0 and a.code == "s":
            value = value[()]
        else:
            raise TypeError(
                f"{where} is {a} by value, got an array of shape {value.shape}: pass a NumPy scalar such as "
                f"{_example(a)}"
            )
    if not isinstance(value, np.generic):
        if isinstance(value, (bool, int, float, complex)):
            sent = "a bool" if isinstance(value, bool) else "a long long" if isinstance(value, int) else "a double"
            raise TypeError(
                f"{where} is {a}, got the Python {type(value).__name__} {value!r}, which CuPy would pass as {sent} "
                "whatever "
                f"the kernel expects: write {_example(a, value)}"
            )
        raise TypeError(f"{where} is {a}, got {value!r} of type {type(value).__name__}: write {_example(a)}")
    if a.code == "s":
        if not isinstance(value, np.void) or value.dtype.itemsize != a.size:
            raise TypeError(
                f"{where} is a struct of {a.size} bytes by value, got {value.dtype} of {value.dtype.itemsize} bytes: "
                "pass "
                "np.void of a structured dtype made with align=True, with the same fields"
            )
        return value
    if a.size != a.scalar:  # float4 and its kind, by value
        if value.dtype.itemsize != a.size:
            raise TypeError(f"{where} is {a} ({a.size} bytes) by value, got {value.dtype}: pass np.void of that size")
        return value
    if value.dtype != a.dtype:
        raise TypeError(f"{where} is {a} ({a.dtype}), got {value.dtype}: write {_example(a, value)}")
    return value


def _example(a: Argument, value: Any = "...") -> str:
    if a.code == "s" or a.size != a.scalar:
        return "an np.void of that structure"
    shown = value.item() if isinstance(value, np.generic) else value
    return f"np.{a.dtype}({shown!r})" if shown != "..." else f"np.{a.dtype}(...)"


def _check_pointer(a: Argument, where: str, value: Any) -> np.ndarray | None:
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        got = f"{value!r} of type {type(value).__name__}"
        raise TypeError(f"{where} is {a}, a pointer, got {got}: pass a NumPy array{_of(a)}, or None for a null pointer")
    if a.dtype is None:
        if a.code == "s" and value.dtype.itemsize != a.size:
            raise TypeError(
                f"{where} points at a struct of {a.size} bytes, got an array of {value.dtype} ({value.dtype.itemsize} "
                "bytes an element): use a structured dtype made with align=True"
            )
    elif value.dtype != a.dtype and not (value.dtype.kind == "V" and value.dtype.itemsize == a.size != a.scalar):
        raise TypeError(
            f"{where} is {a}: expected an array of {a.dtype}, got {value.dtype}: convert it with "
            f".astype(np.{a.dtype}), or "
            "change the kernel's parameter"
        )
    if not (value.flags.c_contiguous or value.flags.f_contiguous):
        raise ValueError(
            f"{where} must be contiguous (C or F order), got a view of shape {value.shape} with strides "
            f"{value.strides}: "
            "the kernel sees the buffer and no strides; pass np.ascontiguousarray(x)"
        )
    if a.size != a.scalar and value.nbytes % a.size:
        raise ValueError(f"{where} is {a}: its size must be a multiple of {a.size} bytes, got {value.nbytes}")
    if not a.constant and not value.flags.writeable:
        raise ValueError(
            f"{where} is {a}, which the kernel may write, got a read-only array: pass a copy, or make it const"
        )
    return value


def _of(a: Argument) -> str:
    return f" of {a.dtype}" if a.dtype is not None else ""


# --------------------------------------------------------------------------------------------------------------------
# A launch


class Run:
    """One launch, prepared: its memory, its blocks, its order. A context manager that frees the memory.

    Hold `native.LOCK` from before it is made until it is closed.
    """

    def __init__(
        self, kernel: RawKernel, grid, block, args, shared_mem=0, *,
        mode: int = native.PLAIN, blocks: np.ndarray | None = None, order: np.ndarray | None = None,
    ):  # fmt: skip
        self.kernel = kernel
        self.grid, self.block, self.shared_mem = _check_launch(kernel, grid, block, shared_mem)
        self.checked = _check_arguments(kernel, args)
        self.library = kernel.library(traced=mode != native.PLAIN)
        self.blocks = None if blocks is None else np.ascontiguousarray(blocks, np.uint64)
        self.order = None if order is None else np.ascontiguousarray(order, np.uint16)
        arrays = [(a.name, value, not a.constant) for a, value in self.checked if isinstance(value, np.ndarray)]
        self.memory = native.Memory(self.library, arrays, open_guards=mode == native.CHECK)
        self.launch = native.Launch(mode=mode)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.release()

    def go(self) -> None:
        """Run it; print what it printed; raise KernelError if it failed."""
        launch, library = self.launch, self.library
        launch.grid[:] = self.grid
        launch.block[:] = self.block
        launch.dynamic_bytes = self.shared_mem
        launch.n_blocks = int(np.prod(self.grid, dtype=object)) if self.blocks is None else len(self.blocks)
        launch.blocks = None if self.blocks is None else self.blocks.ctypes.data
        launch.order = None if self.order is None else self.order.ctypes.data
        values = []  # each the bytes of one argument, 16-byte aligned
        for _, value in self.checked:
            raw = np.zeros(-(-self._size(value) // 16) * 16 + 16, np.uint8)
            raw = raw[-raw.ctypes.data % 16 :]
            if value is None or isinstance(value, np.ndarray):
                address = self.memory.pointer(value) if value is not None else 0
                raw[:8] = np.frombuffer(np.uint64(address).tobytes(), np.uint8)
            else:
                raw[: value.dtype.itemsize] = np.frombuffer(value.tobytes(), np.uint8)
            values.append(raw)
        pointers = (ct.c_void_p * max(1, len(values)))(*(v.ctypes.data for v in values))
        launch.args = pointers
        regions = self.memory.regions()
        launch.regions, launch.n_regions = regions, len(self.memory.buffers)
        if launch.mode != native.PLAIN:
            known = library.lines.variables
            variables = (native.Region * max(1, len(known)))()
            for row, (address, size, _) in zip(variables, known, strict=False):
                row.base, row.size = library.base + address, size
            launch.variables, launch.n_variables = variables, len(known)
        launch.stacks, launch.stack_bytes = native.stacks(library), native.STACK_BYTES
        result = library.handle.hm_run(ct.byref(launch))
        if printed := library.output():
            sys.stdout.write(printed)
        if result == native.INTERRUPT:
            signal.raise_signal(signal.SIGINT)
            raise KeyboardInterrupt
        if result < 0:
            raise MemoryError("not enough memory to check this launch: make it smaller")
        if result:
            raise self._explain()
        if launch.mode == native.PLAIN and (found := self.memory.overwritten()):
            buffer, offset = found
            raise KernelError(
                f"kernel {self.kernel.name!r} wrote outside {describe_offset(buffer, offset)}; `check` finds the line",
                "fault",
            )

    @staticmethod
    def _size(value: Any) -> int:
        return value.dtype.itemsize if isinstance(value, np.generic) else 8

    def coordinates(self, linear: int) -> tuple[int, int, int]:
        """threadIdx of a linear thread number."""
        x, y, _ = self.block
        return linear % x, linear // x % y, linear // (x * y)

    def block_coordinates(self, linear: int) -> tuple[int, int, int]:
        """blockIdx of a linear block number."""
        x, y, _ = self.grid
        return linear % x, linear // x % y, linear // (x * y)

    def text(self, line: int, file: str = "") -> str:
        """The line of the source, or of a file that it includes; stripped."""
        lines = self.kernel.lines_of(file) if file else self.kernel.source_lines
        return lines[line - 1].strip() if 0 < line <= len(lines) else ""

    def where(self, line: int, file: str = "") -> str:
        """ "line 12 `code`", for messages."""
        if file and file != f"{self.kernel.name}.cu":
            return f"{file} line {line} `{self.text(line, file)}`"
        return f"line {line} `{self.text(line)}`" if line else "an unknown line"

    def _explain(self) -> KernelError:
        launch = self.launch
        thread = self.coordinates(launch.thread)
        block = tuple(launch.block_index)
        who = f"kernel {self.kernel.name!r}, block {block}, thread {thread}"
        text = launch.text.decode(errors="replace")
        line, file = launch.line, ""
        if launch.error == native.ASSERT:
            if not line:
                file, line = self.library.line_of(launch.pc)
            return KernelError(
                f"{who}: assert failed at {self.where(line, file)}: {text}", "assert", line, block, thread
            )
        if launch.error == native.BARRIER:
            other = self.coordinates(launch.other_thread)
            message = f"{who} waits at the barrier of {self.where(line)}; {text}"
            if launch.returned:
                message += f" ({launch.returned} of {self.block[0] * self.block[1] * self.block[2]} have)"
            message += f": thread {other}" + (f" is at {self.where(launch.other_line)}" if launch.other_line else "")
            message += ". Every thread of a block has to reach the same __syncthreads()"
            return KernelError(message, "barrier", line, block, thread)
        if launch.error == native.WARP:
            message = f"{who} {text}, at {self.where(line)}"
            if launch.other_line:
                message += f" and {self.where(launch.other_line)}"
            return KernelError(message, "warp", line, block, thread)
        file, line = self.library.line_of(launch.pc)
        message = f"{who}, {self.where(line, file)}: {self._fault()}"
        return KernelError(message, "fault", line, block, thread)

    def _fault(self) -> str:
        launch, address = self.launch, self.launch.address
        if launch.signal == signal.SIGFPE:
            return "an integer is divided by zero"
        verb = {0: "reads", 1: "writes"}.get(launch.wrote, "accesses")
        if launch.wrote == 2:
            return "a misaligned vector access (float4 needs addresses that are multiples of 16), or a wild pointer"
        if found := self.memory.nearest(address):
            return f"{verb} outside {describe_offset(*found)}"
        dynamic = self.library.dynamic_address
        if dynamic <= address < dynamic + 320 * 1024:
            return f"{verb} byte {address - dynamic} of dynamic shared memory, and shared_mem is {self.shared_mem}"
        stacks = native.stacks(self.library)
        if stacks <= address < stacks + native.STACK_BYTES * MAX_THREADS:
            return (
                f"a thread's local variables need more than {native.STACK_BYTES // 1024} KiB, or recursion is endless"
            )
        if address < 2**16:
            return f"{verb} address {address:#x}: a null pointer"
        return f"{verb} address {address:#x}, which is in no argument"


def describe_offset(buffer: native.Buffer, offset: int) -> str:
    """ "x (float32, 100 elements): index 103, 3 past the last"."""
    array = buffer.array
    item = array.dtype.itemsize
    count, index = buffer.size // item, offset // item
    if offset < 0:
        place = f"{-index} before the first element"
    elif index >= count:
        place = f"{index - count + 1} past the last element"
    else:
        place = "across the end"
    return f"{buffer.name} ({array.dtype}, {count} elements): index {index}, {place}"
