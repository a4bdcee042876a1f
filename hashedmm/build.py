"""What this machine can run.

``gpu_available`` is the single gate: nothing else in the package asks. Imports CuPy alone, and only inside it.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1)
def gpu_available() -> bool:
    """Whether CuPy is installed and sees a GPU with a working driver. Never raises; asks once a process."""
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount() > 0 and int(cupy.arange(3).sum()) == 3
    except Exception:  # a missing package, a missing or too old driver, a broken install: all mean no GPU
        return False
