"""CUDA C on the CPU: run an unmodified kernel, trace what the hardware would have to do, check it for mistakes.

It may import this folder and `hashedmm.records`; hashing at most.
"""

from __future__ import annotations

from hashedmm.emulator.check import Problem, Report, check
from hashedmm.emulator.rawkernel import KernelError, RawKernel
from hashedmm.emulator.toolchain import CompileError, available, why_not
from hashedmm.emulator.trace import Row, Trace, record_traces, trace

__all__ = [
    "CompileError", "KernelError", "Problem", "RawKernel", "Report", "Row", "Trace", "available", "check",
    "record_traces", "trace", "why_not",
]  # fmt: skip
