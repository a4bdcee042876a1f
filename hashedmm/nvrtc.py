"""NVRTC, the run-time compiler that CuPy uses too, called by itself: it comes as a wheel and needs no driver.

So kernels are compiled on a machine without a GPU (hashedmm.compile), and for architectures that CuPy does not name
(hashedmm.build: sm_90a). It is called through ctypes, with the flags that CuPy adds. Imports emulator and kernels.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from hashedmm.emulator import CompileError
from hashedmm.kernels import FOLDER

CUPY_FLAGS = ("-ftz=true", "--device-as-default-execution-space", "--std=c++17")
INSTALL = "pip install 'hashedmm[nvrtc]' (in a checkout: pip install -e '.[nvrtc]')"


def explain(log: str, code: str, name: str) -> str:
    """NVRTC's log, each error with the kernel's own file and line and that line's text."""
    errors = []
    for file, number, text in re.findall(r"^(.*?)\((\d+)\): *(.*?error.*)$", log, re.MULTILINE):
        header = FOLDER / re.split(r"[/\\]", file)[-1]
        inside = header.suffix == ".cuh" and header.is_file()
        lines = (header.read_text(encoding="utf-8") if inside else code).splitlines()
        line = int(number)
        errors.append(f"{header.name if inside else name + '.cu'}:{line}: {text}")
        if 0 < line <= len(lines):
            errors.append(f"{line:6d} | {lines[line - 1].rstrip()}")
    return f"kernel {name!r} does not compile:\n" + (
        "\n".join(errors or [line for line in log.splitlines() if "error" in line]) or log.strip()
    )


class Compiler:
    """NVRTC from the wheels ``nvidia-cuda-nvrtc`` and its headers, or FileNotFoundError that says what to install."""

    def __init__(self) -> None:
        library, self.include = _find()
        self._nvrtc = ctypes.CDLL(str(library))
        self._nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = f"{major.value}.{minor.value}"
        count = ctypes.c_int()
        self._check(self._nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        listed = (ctypes.c_int * count.value)()
        self._check(self._nvrtc.nvrtcGetSupportedArchs(listed))
        self.architectures = tuple(listed)

    def cubin(self, code: str, name: str, architecture: int | str, flags: Sequence[str] = ()) -> tuple[bytes, str]:
        """Machine code of a source, and the compiler's log, in which ptxas says what each kernel uses.

        ``architecture`` is 90, for example, or "90a" for the instructions that no other architecture has.

        Raises
        ------
        CompileError
            With the kernel's own line.
        ValueError
            If this NVRTC does not know the architecture.
        """
        if int(str(architecture).rstrip("a")) not in self.architectures:
            known = ", ".join(map(str, self.architectures))
            raise ValueError(f"NVRTC {self.version} compiles for {known}, not for {architecture}")
        program = ctypes.c_void_p()
        create = self._nvrtc.nvrtcCreateProgram
        self._check(create(ctypes.byref(program), code.encode(), f"{name}.cu".encode(), 0, None, None))
        try:
            all_flags = [
                f"--gpu-architecture=sm_{architecture}", *CUPY_FLAGS, "--ptxas-options=-v", f"-I{FOLDER}",
                *(f"-I{folder}" for folder in self.include), *flags,
            ]  # fmt: skip
            array = (ctypes.c_char_p * len(all_flags))(*(flag.encode() for flag in all_flags))
            status = self._nvrtc.nvrtcCompileProgram(program, len(all_flags), array)
            log = self._text(program, "ProgramLog").decode(errors="replace").rstrip("\0")
            if status:
                raise CompileError(explain(log, code, name))
            return self._text(program, "CUBIN"), log
        finally:
            self._nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._nvrtc, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC: {self._nvrtc.nvrtcGetErrorString(status).decode()}")


def _find() -> tuple[Path, list[Path]]:
    """The library and the folders of headers in the wheels: nvidia/cu13 since CUDA 13, one folder a wheel before."""
    found = importlib.util.find_spec("nvidia")
    roots = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    libraries = [
        path
        for root in roots
        for pattern in ("*/lib/libnvrtc.so.*", "*/bin/**/nvrtc64_*.dll")
        for path in sorted(root.glob(pattern))
        if "builtins" not in path.name and ".alt" not in path.name
    ]
    include = [path for root in roots for path in sorted(root.glob("*/include"))]
    if not libraries or not any((folder / "cuda_fp16.h").is_file() for folder in include):
        raise FileNotFoundError(
            f"compiling needs NVRTC and the CUDA headers as wheels, and they are not here: {INSTALL}"
        )
    return libraries[-1], include


@lru_cache(maxsize=1)
def compiler() -> Compiler:
    """The NVRTC of this environment, loaded once."""
    return Compiler()


def available() -> bool:
    """Whether the wheels are installed."""
    try:
        _find()
    except FileNotFoundError:
        return False
    return True
