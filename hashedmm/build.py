"""From CUDA C to a kernel that can be called: on a GPU by CuPy, elsewhere by the emulator, with the same call.

``gpu_available`` is the single gate: nothing else in the package asks. ``RawKernel`` takes any source; ``kernel``
builds one of this package's, once for each choice of parameters and device. Imports kernels and emulator, and CuPy
where it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hashedmm import emulator
from hashedmm.emulator import CompileError, source
from hashedmm.kernels import (
    BUILT,
    C_TYPES,
    EMULATED_SHARED,
    FOLDER,
    MAX_THREADS,
    STATIC_SHARED,
    STEP,
    STRUCTURE,
    check_values,
)
from hashedmm.nvrtc import compiler, explain

Device = int | Literal["emulator"]  # a GPU's number as CUDA counts them
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)


@lru_cache(maxsize=1)
def gpu_available() -> bool:
    """Whether CuPy is installed and sees a GPU with a working driver. Never raises; asks once a process."""
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0 and int(cupy.arange(3).sum()) == 3
    except Exception:  # a missing package, a missing or too old driver, a broken install: all mean no GPU
        return False


# --------------------------------------------------------------------------------------------------------------------
# Any source


def RawKernel(code: str, name: str, options: Sequence[str] = (), **keywords: Any) -> Any:
    """A kernel from CUDA C source, to be called as ``kernel(grid, block, args, shared_mem=0)``.

    On a GPU it is `cupy.RawKernel` behind checks of what CuPy takes on trust (`CheckedRawKernel`); elsewhere it is the
    emulator's, which checks the same. The kernels folder is on the include path, so ``#include "hash.cuh"`` works.

    Parameters
    ----------
    code : the source; the kernel is declared ``extern "C" __global__ void``
    name : the kernel's name in it
    options : for the compiler, such as ``("-DTILE=16",)``
    keywords : of cupy.RawKernel, on a GPU

    Raises
    ------
    CompileError
        If the source does not compile, with the line at fault (on a GPU at the first call).
    RuntimeError
        If there is neither a GPU nor what the emulator needs; the message says how to get it.
    """
    if isinstance(options, str):
        raise TypeError(f"options must be a tuple of strings, got the string {options!r}; write ({options!r},)")
    options = (*options, f"-I{FOLDER}")
    if gpu_available():
        return CheckedRawKernel(code, name, options, **keywords)
    return emulator.RawKernel(code, name, options, **keywords)


class CheckedRawKernel:
    """`cupy.RawKernel` that checks a launch before it happens: CuPy itself hands anything to the GPU.

    Wrong types, a Python float (CuPy passes a C double), a view whose elements do not lie one after the other (CuPy
    passes its first address), more threads or shared memory than a block may have: all are errors in Python here.
    """

    def __init__(
        self, code: str, name: str, options: Sequence[str] = (), *, cubin: bytes | None = None, **keywords: Any
    ) -> None:
        if not re.search(rf"\b{re.escape(name)}\b", source.blank(code)):
            there = ", ".join(source.kernels(code)) or "none"
            raise ValueError(f"name must be a __global__ function of the code, got {name!r}; the code has: {there}")
        import cupy

        self.code, self.name, self.options = code, name, tuple(options)
        self.parameters = signature(code, name, self.options)
        if cubin is not None:  # compiled already, for the current GPU
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{name}.cubin"
                path.write_bytes(cubin)
                self._kernel = cupy.RawModule(path=str(path)).get_function(name)
        else:
            # CuPy keeps what it compiled on disk, by source and options: it would not see that a header has changed.
            self._kernel = cupy.RawKernel(code, name, (*self.options, f"-DHASHEDMM_HEADERS={_headers()}"), **keywords)
        self._threads: dict[Device, int] = {}

    def compile(self) -> None:
        """Compile now, for the current GPU, if that is not done; otherwise the first call does."""
        from cupy.cuda.compiler import CompileException

        try:
            _ = self._kernel.kernel  # kept; RawKernel.compile() would load it anew each time
        except CompileException as e:
            raise CompileError(explain(str(e), self.code, self.name)) from None

    def _most_threads(self) -> int:
        """Threads a block that this kernel's registers allow on the current GPU."""
        device = current_device()
        if device not in self._threads:
            self._threads[device] = self._kernel.max_threads_per_block
        return self._threads[device]

    @property
    def attributes(self) -> dict[str, int]:
        """What the driver knows: registers, shared memory, threads."""
        self.compile()
        return self._kernel.attributes

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Dynamic shared memory that a launch may ask for; set it to go past 48 KiB."""
        self.compile()
        return self._kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self.compile()
        limit = shared_limit()
        static = self._kernel.shared_size_bytes
        if static + size > limit:
            raise ValueError(
                f"max_dynamic_shared_size_bytes must be from 0 to {limit - static} ({limit} bytes a block on this GPU, "
                f"less the static shared memory), got {size}"
            )
        self._kernel.max_dynamic_shared_size_bytes = size

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0) -> None:
        check_launch(self.name, grid, block)
        check_arguments(self.name, self.parameters, args)
        self.compile()
        threads, most = math.prod(block), self._most_threads()
        if threads > most:
            raise ValueError(
                f"block {tuple(block)} has {threads} threads, and kernel {self.name!r} can have {most} (its registers "
                "or its __launch_bounds__ say so)"
            )
        if shared_mem and shared_mem > self.max_dynamic_shared_size_bytes:
            raise ValueError(
                f"too much shared memory: shared_mem={shared_mem} with max_dynamic_shared_size_bytes = "
                f"{self.max_dynamic_shared_size_bytes}; over {STATIC_SHARED} a kernel has to ask: "
                f"kernel.max_dynamic_shared_size_bytes = {shared_mem}"
            )
        self._kernel(tuple(grid), tuple(block), tuple(args), shared_mem=shared_mem)


def on_device(device: Device) -> contextlib.AbstractContextManager:
    """A context in which a GPU is the current one; of no effect for the emulator."""
    if device == "emulator":
        return contextlib.nullcontext()
    import cupy

    return cupy.cuda.Device(device)


@cache
def _headers() -> str:
    """A number that changes with the headers of the kernels' folder."""
    texts = (path.read_bytes() for path in sorted(FOLDER.glob("*.cuh")))
    return f"0x{hashlib.sha256(b''.join(texts)).hexdigest()[:15]}"


def shared_limit(device: Device | None = None) -> int:
    """Shared memory in bytes that a block may have if it asks: of a GPU (None: the current one) or the emulator."""
    return _shared_limit(current_device() if device is None else device)


@cache
def _shared_limit(device: Device) -> int:
    if device == "emulator":
        return EMULATED_SHARED
    import cupy

    return int(cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])


# ---- what a launch is checked against


class Parameter(NamedTuple):
    """One parameter in a kernel's signature. ``dtype`` is None where the C type is not one we know (a struct)."""

    name: str
    c_type: str
    pointer: bool
    dtype: np.dtype | None


_DTYPES = {
    "bool": np.bool_, "char": np.int8, "signed char": np.int8, "unsigned char": np.uint8, "short": np.int16,
    "unsigned short": np.uint16, "int": np.int32, "unsigned": np.uint32, "unsigned int": np.uint32,
    "long long": np.int64, "long": np.int64, "unsigned long long": np.uint64, "unsigned long": np.uint64,
    "size_t": np.uint64, "int32_t": np.int32, "uint32_t": np.uint32, "int64_t": np.int64, "uint64_t": np.uint64,
    "uint8_t": np.uint8, "int8_t": np.int8, "float": np.float32, "double": np.float64, "__half": np.float16,
    "half": np.float16,
}  # fmt: skip


def signature(code: str, name: str, options: Sequence[str] = ()) -> tuple[Parameter, ...] | None:
    """The parameters of kernel ``name``, read from its source, with macros of ``options`` and of the source put in.

    None if the source declares none of that name (a macro does): the launch's arguments are not checked then.
    """
    kernels, text = source.kernels(code), source.blank(code)
    if name not in kernels:
        return None
    macros = dict(re.findall(r"^\s*#\s*define\s+(\w+)\s+(\w+)\s*$", text, re.MULTILINE))
    macros |= {key: value for key, value in (o[2:].split("=", 1) for o in options if re.match(r"-D\w+=", o))}
    parameters = []
    for declaration in filter(None, (part.strip() for part in kernels[name][0].split(","))):
        words = re.findall(r"\w+|\*", re.sub(r"\w+", lambda m: macros.get(m[0]) or m[0], declaration))
        pointer = "*" in words
        before = words[: words.index("*")] if pointer else words[:-1]
        kind = " ".join(word for word in before if word not in ("const", "volatile", "struct", "__restrict__"))
        dtype = np.dtype(_DTYPES[kind]) if kind in _DTYPES and words.count("*") < 2 else None
        c_type = ("const " if pointer and "const" in before else "") + kind + "*" * words.count("*")
        parameters.append(Parameter(words[-1], c_type, pointer, dtype))
    return tuple(parameters)


def check_launch(name: str, grid: Sequence[int], block: Sequence[int]) -> None:
    """TypeError or ValueError unless ``grid`` and ``block`` are what CUDA takes."""
    for what, sizes, limits in (("grid", grid, MAX_GRID), ("block", block, MAX_BLOCK)):
        if not isinstance(sizes, (tuple, list)) or not 1 <= len(sizes) <= 3:
            raise TypeError(
                f"{what} must be a tuple of one to three ints, got {sizes!r}; write ({sizes!r},) for one dimension"
            )
        for axis, n in zip("xyz", sizes, strict=False):
            if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
                raise TypeError(f"{what}.{axis} must be an int, got {n!r} of type {type(n).__name__}")
        if what == "block" and math.prod(sizes) > MAX_THREADS:
            raise ValueError(
                f"block {tuple(sizes)} has {math.prod(sizes)} threads, and a block has at most {MAX_THREADS}"
            )
        for axis, n, most in zip("xyz", sizes, limits, strict=False):
            if not 1 <= n <= most:
                raise ValueError(f"{what}.{axis} must be from 1 to {most}, got {n}")


def check_arguments(name: str, parameters: Sequence[Parameter] | None, args: Sequence[Any]) -> None:
    """TypeError or ValueError unless ``args`` are what a kernel's signature says, for arrays of CuPy.

    Where the signature is not known, a Python number is still refused: CuPy would choose a C type by itself.
    """
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write (x,) for one argument")
    if parameters is None:
        parameters = [Parameter("?", "of an unknown type", False, None) for _ in args]
    if len(args) != len(parameters):
        takes = ", ".join(f"{p.c_type} {p.name}" for p in parameters)
        raise TypeError(f"kernel {name!r} takes {len(parameters)} arguments ({takes}), got {len(args)}")
    for position, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
        where = f"argument {position} ({parameter.name}) is {parameter.c_type}"
        if parameter.pointer:
            _check_pointer(where, parameter, value)
        else:
            _check_value(where, parameter, value)


def _check_value(where: str, parameter: Parameter, value: Any) -> None:
    expected = parameter.dtype
    if isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic):
        sent = "a bool" if isinstance(value, bool) else "a long long" if isinstance(value, int) else "a double"
        raise TypeError(
            f"{where}, got the Python {type(value).__name__} {value!r}, which CuPy would pass as {sent} whatever the "
            f"kernel expects: write np.{expected or 'float32'}({value!r})"
        )
    if expected is None:  # a struct, or a type that is not known
        return
    if isinstance(value, (np.ndarray, type(None))) or not isinstance(value, np.generic):
        raise TypeError(f"{where}, got {value!r} of type {type(value).__name__}: write np.{expected}(...)")
    if value.dtype != expected:
        raise TypeError(f"{where} ({expected}), got {value.dtype}: write np.{expected}({value.item()!r})")


def _check_pointer(where: str, parameter: Parameter, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, np.ndarray):
        raise TypeError(f"{where}, got a NumPy array, and a GPU reads its own memory: pass cupy.asarray(x)")
    if type(value).__module__.partition(".")[0] != "cupy" or not hasattr(value, "dtype"):
        got = f"{value!r} of type {type(value).__name__}"
        raise TypeError(f"{where}, a pointer, got {got}: pass a CuPy array, or None for a null pointer")
    if parameter.dtype is not None and value.dtype != parameter.dtype:
        raise TypeError(
            f"{where}: expected an array of {parameter.dtype}, got {value.dtype}: convert it with "
            f".astype(np.{parameter.dtype}), or change the kernel's parameter"
        )
    if not (value.flags.c_contiguous or value.flags.f_contiguous):
        raise ValueError(
            f"{where} and must be contiguous (C or F order), got a view of shape {value.shape} with strides "
            f"{value.strides}: the kernel sees the buffer and no strides; pass cupy.ascontiguousarray(x)"
        )


# --------------------------------------------------------------------------------------------------------------------
# The kernels of this package


def options(name: str, parameters: Mapping[str, int | str]) -> tuple[str, ...]:
    """The -D options for one of the package's kernels, checked, in one order.

    Parameters
    ----------
    name : a name in ``hashedmm.kernels.BUILT``
    parameters : all of the kernel's tile sizes, ``WEIGHT`` ("float" or "__half"), and either all names in
        ``hashedmm.kernels.STRUCTURE`` or none of them; of a kernel in ``STEP`` the tile sizes alone

    Raises
    ------
    TypeError, ValueError
        If a name or a value is none that the kernel takes.
    """
    if name not in BUILT:
        raise ValueError(f"kernel must be one of {', '.join(BUILT)}, got {name!r}")
    others = () if name in STEP else ("WEIGHT", *STRUCTURE)
    tiles = {key: value for key, value in parameters.items() if key not in others}
    check_values(BUILT[name], tiles)
    if others and parameters.get("WEIGHT") not in C_TYPES.values():
        raise ValueError(f"WEIGHT must be {' or '.join(C_TYPES.values())}, got {parameters.get('WEIGHT')!r}")
    given = [key for key in STRUCTURE if key in parameters]
    if given and len(given) < len(STRUCTURE):
        raise ValueError(f"give all of {', '.join(STRUCTURE)} or none, got {', '.join(given)}")
    for key in given:
        if not isinstance(parameters[key], int) or isinstance(parameters[key], bool):
            raise TypeError(f"{key} must be an integer, got {parameters[key]!r}")
    # THREADS is the caller's choice at the launch where it is a parameter at all.
    return tuple(f"-D{key}={value}" for key, value in sorted(parameters.items()) if key != "THREADS")


def kernel(name: str, parameters: Mapping[str, int | str], device: Device | None = None) -> Any:
    """One of the package's kernels, compiled: built once for each (name, parameters, device).

    Parameters
    ----------
    name, parameters : as `options` takes them
    device : a GPU's number or "emulator". None: the current GPU, or the emulator where there is none.

    Raises
    ------
    TypeError, ValueError
        As `options`, before anything is compiled.
    CompileError
        With file, line and text.
    """
    if device is None:
        device = current_device()
    return _build(name, options(name, parameters), device)


def current_device() -> Device:
    """The current GPU, or the emulator where there is none."""
    if not gpu_available():
        return "emulator"
    import cupy

    return int(cupy.cuda.runtime.getDevice())


@cache
def _build(name: str, defines: tuple[str, ...], device: Device) -> Any:
    flags = (*defines, f"-I{FOLDER}")
    if device == "emulator":
        return emulator.RawKernel(BUILT[name].source, name, flags)
    with on_device(device):
        cubin = _hopper_cubin(name, defines) if _includes(BUILT[name].source, "warpgroup.cuh") else None
        built = CheckedRawKernel(BUILT[name].source, name, flags, cubin=cubin)
        built.compile()
    return built


def _includes(text: str, header: str) -> bool:
    """Whether a source of the kernels' folder includes ``header``, perhaps by way of other headers."""
    names = [name for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE) if (FOLDER / name).is_file()]
    return header in names or any(_includes((FOLDER / name).read_text(encoding="utf-8"), header) for name in names)


def has_wgmma(device: Device | None = None) -> bool:
    """Whether kernels that include warpgroup.cuh are built with wgmma: on a Hopper GPU, for sm_90a, which CuPy does not
    compile for; so NVRTC and the CUDA headers must be there as wheels (they are what ``cupy-cuda13x[ctk]`` brings)."""
    device = current_device() if device is None else device
    if device == "emulator":
        return False
    import cupy

    try:
        return cupy.cuda.Device(device).compute_capability == "90" and 90 in compiler().architectures
    except FileNotFoundError:
        return False


def _hopper_cubin(name: str, defines: tuple[str, ...]) -> bytes | None:
    """The kernel compiled for sm_90a, if the current GPU has wgmma and it can be compiled for."""
    if not has_wgmma():
        return None
    return compiler().cubin(BUILT[name].source, name, "90a", defines)[0]
