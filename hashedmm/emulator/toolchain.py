"""The C++ compiler: which one, with which flags, and the cache of what it built. Imports the standard library alone."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
RUNTIME = HERE / "runtime.cpp"

_COMMON = (
    "-fPIC", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector", "-fstack-clash-protection",
    "-fno-threadsafe-statics", "-w",
    "-fno-strict-aliasing", "-fwrapv", "-ffp-contract=off", "-fno-optimize-sibling-calls",
    "-fdiagnostics-color=never",
)  # fmt: skip
# One `__syncthreads()` in the source stays one in the code; no load, store or loop is invented or dropped.
_GCC = (
    "-fwhole-program",
    "-fno-crossjumping",
    "-fno-tree-tail-merge",
    "-fno-finite-loops",
    "-fno-diagnostics-show-caret",
)
# Unrolling also keeps sums in registers: GCC spills them to the stack around a barrier in the loop outside.
_PLAIN = ("-O2", "-funroll-loops", "-g1")
_TRACED = ("-fsanitize=thread", "-g1", "-DHM_TRACED")
# Every access of the source is one event: keep the optimiser from merging, moving, splitting or removing them.
_TRACED_GCC = (
    "-O1", "--param=tsan-instrument-func-entry-exit=0", "-fno-tree-sra", "-fno-tree-fre", "-fno-tree-dominator-opts",
    "-fno-tree-dse", "-fno-tree-pre", "-fno-tree-loop-im", "-fno-tree-phiprop", "-fno-tree-vectorize", "-fno-tree-sink",
    "-fno-tree-loop-optimize", "-fno-ssa-phiopt", "-fno-inline-functions-called-once", "-fno-ipa-sra", "-fno-ipa-cp",
)  # fmt: skip
_CLANG = ("-fno-sanitize=undefined",)  # which Zig adds unasked
_TRACED_CLANG = (
    "-O0",
    "-mllvm",
    "-tsan-instrument-func-entry-exit=0",
    "-mllvm",
    "-tsan-instrument-read-before-write=1",
)


class CompileError(RuntimeError):
    """The compiler refused the source; the message has the source's own line numbers and the text of these lines."""


@functools.cache
def _compiler() -> tuple[tuple[str, ...], str]:
    """(command, "") or ((), why there is none)."""
    if sys.platform != "linux":
        return (
            (),
            f"the CUDA emulator runs on Linux, and this is {platform.system()}: recorded traces are shown instead",
        )
    if platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64") or sys.maxsize < 2**32:
        return (), f"the CUDA emulator needs a 64-bit x86-64 or aarch64 processor, and this one is {platform.machine()}"
    if named := os.environ.get("CXX"):
        command = shlex.split(named)
        if command and shutil.which(command[0]):
            return tuple(command), ""
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return (path,), ""
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++"), ""
    return (), (
        "the CUDA emulator needs a C++ compiler and found none (c++, g++, clang++ on PATH, or $CXX): install g++ with "
        "your system's packages, or the `ziglang` wheel with pip: pip install ziglang"
    )


@functools.cache
def _identity() -> tuple[str, bool]:
    """(what tells two compilers apart, whether it is a Clang)."""
    command, _ = _compiler()
    text = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    return f"{command} {text}", "clang" in text.lower()


@functools.cache
def _machine_flags() -> tuple[str, ...]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ()
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    found = re.search(r"^flags\s*:(.*)$", info, re.MULTILINE)
    wanted = {"avx2", "fma", "bmi2", "f16c", "popcnt"}
    return tuple(f"-m{flag}" for flag in sorted(wanted)) if found and wanted <= set(found[1].split()) else ()


def available() -> bool:
    """Whether CUDA C can be emulated here: Linux on x86-64 or aarch64, with a C++ compiler. Never raises."""
    return not _compiler()[1]


def why_not() -> str:
    """Why `available` is false, and what to do about it; "" if it is true."""
    return _compiler()[1]


def cache_dir() -> Path:
    """Where builds are kept: $HASHEDMM_CACHE, else hashedmm in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("HASHEDMM_CACHE"):
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hashedmm"


def _run(command: Sequence[str], folder: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def included(code: str, folders: Sequence[str], seen: dict[str, str] | None = None) -> dict[str, str]:
    """The files that the code includes, out of these folders: {path: text}."""
    seen = {} if seen is None else seen
    for name in re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', code, re.MULTILINE):
        for folder in folders:
            path = os.path.join(folder, name)
            if path not in seen and os.path.isfile(path):
                seen[path] = Path(path).read_text(encoding="utf-8", errors="replace")
                included(seen[path], [*folders, os.path.dirname(path)], seen)
    return seen


def _runtime_object() -> Path:
    command, (identity, clang) = _compiler()[0], _identity()
    text = RUNTIME.read_text(encoding="utf-8")
    flags = (
        "-std=gnu++17",
        "-O2",
        "-fPIC",
        "-fno-exceptions",
        "-fno-rtti",
        "-fno-stack-protector",
        "-fvisibility=hidden",
        *(_CLANG if clang else ()),
    )
    out = cache_dir() / f"{_hash(text, identity, *flags)}.o"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            done = _run([*command, *flags, "-c", str(RUNTIME), "-o", "runtime.o"], folder)
            if done.returncode:
                raise CompileError(f"{command[-1]} cannot compile the emulator's runtime:\n{done.stderr}")
            os.replace(Path(folder) / "runtime.o", out)
    return out


def build(
    unit: str, name: str, options: Sequence[str], includes: Sequence[str], *, traced: bool, lines: Sequence[str]
) -> Path:
    """Compile and link one translation unit, or find it in the cache.

    Parameters
    ----------
    unit : str
        C++: the source behind a ``#line 1 "<name>.cu"``, with the glue.
    name : str
        The kernel's name, for messages.
    options, includes : sequences of str
        Flags for the compiler, and the folders in ``-I`` (made absolute).
    traced : bool
        With hooks at every access, and hardly optimised.
    lines : sequence of str
        The user's source lines, for messages.

    Returns
    -------
    Path of the shared library.

    Raises
    ------
    RuntimeError
        If there is no compiler.
    CompileError
        If it refuses the source.
    """
    command, problem = _compiler()
    if problem:
        raise RuntimeError(problem)
    identity, clang = _identity()
    flags = [*_COMMON, *_machine_flags(), *(_CLANG if clang else _GCC)]
    flags += [*_TRACED, *(_TRACED_CLANG if clang else _TRACED_GCC)] if traced else _PLAIN
    flags += [*options, f"-I{INCLUDE}", *(f"-I{folder}" for folder in includes)]
    headers = included(unit, [*includes, str(INCLUDE)])
    key = _hash(
        unit, identity, *flags, *(part for item in sorted(headers.items()) for part in item), RUNTIME.read_text()
    )
    out = cache_dir() / f"{key}.so"
    if out.exists():
        return out
    runtime = _runtime_object()
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        (Path(folder) / "unit.cpp").write_text(unit, encoding="utf-8")
        done = _run([*command, *flags, "-c", "unit.cpp", "-o", "unit.o"], folder)
        if done.returncode:
            raise CompileError(_message(done.stderr, name, lines))
        link = [
            *(("-nostdlib++",) if clang else ()),  # Zig would build one, for minutes
            "-shared",
            "-Wl,-Bsymbolic",
            "-Wl,-z,defs",
            "unit.o",
            str(runtime),
            "-lm",
            "-lpthread",
            "-o",
            "kernel.so",
        ]
        done = _run([*command, *link], folder)
        if done.returncode:
            raise CompileError(f"kernel {name!r} does not link: {done.stderr.strip()}")
        os.replace(Path(folder) / "kernel.so", out)
    return out


def _message(stderr: str, name: str, lines: Sequence[str]) -> str:
    """The compiler's errors, each with the text of the source's line."""
    if "hm_linkage" in stderr and re.search(r"hm_linkage.*(linkage|declaration)", stderr):
        return (
            f'kernel {name!r} is not declared extern "C", so that its name in the binary is a mangled one and CuPy '
            f'would not find it: write extern "C" __global__ void {name}(...)'
        )
    out = []
    for line in stderr.splitlines():
        m = re.match(
            r"(?P<file>[^:]+):(?P<line>\d+):(?:(?P<column>\d+):)? (?:fatal )?(?P<text>(?:error|note): .*)", line
        )
        if not m:
            continue
        out.append(f"{m['file']}:{m['line']}: {m['text']}")
        number = int(m["line"])
        if m["file"] == f"{name}.cu" and number <= len(lines):
            out.append(f"{number:6d} | {lines[number - 1].rstrip()}")
        if len(out) >= 24:
            break
    return f"kernel {name!r} does not compile:\n" + ("\n".join(out) or stderr.strip())
