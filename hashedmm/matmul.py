"""The public products: arguments are checked here, a kernel is chosen, and the work is handed on.

NumPy arrays in, NumPy arrays out. W is never stored: only ``materialise`` makes it. Imports hashing, reference, cpu.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hashedmm import cpu, reference
from hashedmm.hashing import HashSpec

_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Kernel:
    """A row of ``KERNELS``: one way to compute a product.

    Attributes
    ----------
    name : what ``kernel=`` takes
    operations : of "matmul", "grad_x", "grad_w"
    file : where to read it, inside the package
    specs : which specs it computes, in words; `supports` decides
    dtypes : of w and x
    least_arch : the oldest GPU it runs on ("sm_75"), None on a CPU
    """

    name: str
    operations: tuple[str, ...]
    file: str
    specs: str
    dtypes: tuple[str, ...]
    least_arch: str | None

    def supports(self, spec: HashSpec) -> bool:
        """Whether this kernel computes ``spec``."""
        return not self.name.startswith("cpu_") or cpu.supports(self.name.removeprefix("cpu_"), spec)


_ALL = ("matmul", "grad_x", "grad_w")
_FLOATS = ("float16", "float32", "float64")

KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel("reference", _ALL, "reference.py", "any matrix of up to 2^28 weights", _FLOATS, None),
        Kernel("cpu_decompress", _ALL, "cpu.py", "any", _FLOATS, None),
        Kernel("cpu_sketch", _ALL, "cpu.py", "blocks one input wide and over one output high (strips)", _FLOATS, None),
    )
}


def hashed_matmul(w: np.ndarray, x: np.ndarray, spec: HashSpec, *, kernel: str = "auto") -> np.ndarray:
    """y = W x, where W is the virtual matrix that ``spec`` draws from the buckets ``w``.

    Parameters
    ----------
    w : (n_buckets,) float16, float32 or float64
    x : (d_in, n) of w's dtype, in C or F order
    spec : HashSpec of shape (d_out, d_in)
    kernel : "auto" or a name in ``KERNELS``

    Returns
    -------
    (d_out, n) of x's dtype. Sums are accumulated in float32 (float64 for float64).

    Raises
    ------
    TypeError
        If w or x is no NumPy array of real floating numbers, their dtypes differ, or spec is no HashSpec.
    ValueError
        If a shape does not fit the spec, or the kernel is unknown or cannot compute this spec.
    """
    _check_spec(spec)
    n = _check_columns("x", x, spec.cols, "d_in", spec)
    _check_buckets(w, spec)
    _check_same_dtype("w", w, "x", x)
    _check_kernel(kernel, "matmul", spec)
    return _run("matmul", kernel, w, x, spec, n).astype(x.dtype, copy=False)


def hashed_matmul_grad_x(w: np.ndarray, gy: np.ndarray, spec: HashSpec, *, kernel: str = "auto") -> np.ndarray:
    """The gradient with respect to x: W^T gy.

    Parameters
    ----------
    w : (n_buckets,) float16, float32 or float64
    gy : (d_out, n) of w's dtype, the gradient of a loss with respect to y
    spec, kernel : as in `hashed_matmul`

    Returns
    -------
    (d_in, n) of gy's dtype.

    Raises
    ------
    TypeError, ValueError
        As `hashed_matmul`.
    """
    _check_spec(spec)
    n = _check_columns("gy", gy, spec.rows, "d_out", spec)
    _check_buckets(w, spec)
    _check_same_dtype("w", w, "gy", gy)
    _check_kernel(kernel, "grad_x", spec)
    return _run("grad_x", kernel, w, gy, spec, n).astype(gy.dtype, copy=False)


def hashed_matmul_grad_w(x: np.ndarray, gy: np.ndarray, spec: HashSpec, *, kernel: str = "auto") -> np.ndarray:
    """The gradient with respect to the buckets: each is the signed sum of the dense gradient gy x^T over its uses.

    Parameters
    ----------
    x : (d_in, n) float16, float32 or float64
    gy : (d_out, n) of x's dtype
    spec, kernel : as in `hashed_matmul`

    Returns
    -------
    (n_buckets,) float32 (float64 for float64).

    Raises
    ------
    TypeError, ValueError
        As `hashed_matmul`; also if x and gy have different numbers of columns.
    """
    _check_spec(spec)
    n = _check_columns("x", x, spec.cols, "d_in", spec)
    n_gy = _check_columns("gy", gy, spec.rows, "d_out", spec)
    if n != n_gy:
        raise ValueError(f"x and gy must have as many columns (samples), got x {x.shape} and gy {gy.shape}")
    _check_same_dtype("x", x, "gy", gy)
    _check_kernel(kernel, "grad_w", spec)
    return _run("grad_w", kernel, x, gy, spec, n)


def materialise(w: np.ndarray, spec: HashSpec) -> np.ndarray:
    """W as a dense array: the memory that hashing saves is spent again.

    Parameters
    ----------
    w : (n_buckets,) float16, float32 or float64
    spec : HashSpec

    Returns
    -------
    (d_out, d_in) of w's dtype.

    Raises
    ------
    TypeError, ValueError
        If w does not fit the spec.
    """
    _check_spec(spec)
    _check_buckets(w, spec)
    return cpu.materialise(_computable(w), spec).astype(w.dtype, copy=False)


# ---- checks: name the argument, what was expected, what came, and the fix


def _check_spec(spec: Any) -> None:
    if not isinstance(spec, HashSpec):
        raise TypeError(
            f"spec must be a HashSpec, got {type(spec).__name__}; make one with HashSpec.strips((d_out, d_in), 1/8)"
        )


def _check_array(name: str, a: Any) -> None:
    if type(a).__module__.partition(".")[0] == "cupy":
        raise TypeError(
            f"{name} is a CuPy array, and this version computes on the CPU: pass cupy.asnumpy({name}), a NumPy array"
        )
    if not isinstance(a, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(a).__name__}; try np.asarray({name}, np.float32)")
    if a.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must have dtype float16, float32 or float64, got {a.dtype}; try {name}.astype(np.float32)"
        )


def _check_columns(name: str, a: Any, rows: int, letters: str, spec: HashSpec) -> int:
    """Check a (rows, n) argument; returns n."""
    _check_array(name, a)
    if a.ndim != 2:
        fix = f"; {name}[:, None] makes one column of a vector" if a.ndim == 1 else ""
        raise ValueError(f"{name} must have shape ({letters}, n) = ({rows}, n), got {a.shape}{fix}")
    if a.shape[0] != rows:
        fix = f"; {name} holds samples in columns: pass {name}.T" if a.shape[1] == rows else ""
        raise ValueError(f"{name} must have shape ({letters}, n) = ({rows}, n) for {spec.shape}, got {a.shape}{fix}")
    return a.shape[1]


def _check_buckets(w: Any, spec: HashSpec) -> None:
    _check_array("w", w)
    if w.shape != (spec.n_buckets,):
        raise ValueError(f"w must have shape (n_buckets,) = ({spec.n_buckets},) for this spec, got {w.shape}")


def _check_same_dtype(name_a: str, a: np.ndarray, name_b: str, b: np.ndarray) -> None:
    if a.dtype != b.dtype:
        raise TypeError(
            f"{name_a} and {name_b} must share one dtype, got {a.dtype} and {b.dtype}; "
            f"try {name_b}.astype({name_a}.dtype)"
        )


def _check_kernel(kernel: Any, operation: str, spec: HashSpec) -> None:
    if isinstance(kernel, str) and kernel == "auto":
        return
    able = [k.name for k in KERNELS.values() if operation in k.operations and k.supports(spec)]
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise ValueError(f'kernel must be "auto" or one of {", ".join(KERNELS)}, got {kernel!r}')
    if kernel not in able:
        raise ValueError(
            f"kernel {kernel!r} computes {KERNELS[kernel].specs}, not this spec: block {spec.block}, panel "
            f"{spec.panel}. These do: {', '.join(able)}"
        )


# ---- running


def _computable(a: np.ndarray) -> np.ndarray:
    """``a`` in C order and in the dtype that sums are accumulated in."""
    return np.ascontiguousarray(a, np.float64 if a.dtype == np.float64 else np.float32)


def _run(operation: str, kernel: str, a: np.ndarray, b: np.ndarray, spec: HashSpec, n: int) -> np.ndarray:
    """The result in the dtype of accumulation. ``a`` is w or x, ``b`` is x or gy with n columns."""
    if n == 0:
        shape = {"matmul": (spec.rows, 0), "grad_x": (spec.cols, 0), "grad_w": (spec.n_buckets,)}[operation]
        return np.zeros(shape, np.float64 if a.dtype == np.float64 else np.float32)
    if kernel == "reference":
        function = {
            "matmul": reference.matmul,
            "grad_x": reference.matmul_grad_x,
            "grad_w": reference.matmul_grad_w,
        }[operation]
        out = function(a.astype(np.float64), b.astype(np.float64), spec)
        return out.astype(np.float64 if a.dtype == np.float64 else np.float32)
    return cpu.run(operation, kernel.removeprefix("cpu_"), _computable(a), _computable(b), spec)
