"""The public products: arguments are checked here, a kernel is chosen, and the work is handed on.

NumPy arrays in, NumPy arrays out; CuPy in, CuPy out. W is never stored: only ``materialise`` makes it. A CUDA kernel
that is named for NumPy arrays runs in the emulator. `choose` says which kernel "auto" is, and why. Imports hashing,
reference, cpu, kernels, build, launch, sketch and tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from hashedmm import build, cpu, reference, sketch, tuning
from hashedmm.build import gpu_available
from hashedmm.hashing import HashSpec
from hashedmm.kernels import (
    C_TYPES,
    CUDA,
    EMULATED_SHARED,
    MAX_SIDE,
    STATIC_SHARED,
    CudaKernel,
    Kernel,
    Shape,
    SplitKernel,
    blocks_per_panel,
    layout,
    structure,
)
from hashedmm.launch import Launch, Plan, beside, device, empty, library, on_gpu, zeros

_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
_ALL = ("matmul", "grad_x", "grad_w")
_FLOATS = ("float16", "float32", "float64")
_STRIPS = "blocks one input wide and over one output high (strips)"


@dataclass(frozen=True)
class SketchKernel(Kernel):
    """The sketch schedule on a GPU: several kernels in a row (hashedmm.sketch), one name."""

    def supports(self, spec: HashSpec, dtype: str = "float32", shared_limit: int = EMULATED_SHARED) -> bool:
        return dtype in self.dtypes and sketch.why_not(spec, dtype, shared_limit) is None


KERNELS: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (
        Kernel("reference", _ALL, "reference.py", "any matrix of up to 2^28 weights", _FLOATS, None),
        Kernel("cpu_decompress", _ALL, "cpu.py", "any", _FLOATS, None),
        Kernel("cpu_sketch", _ALL, "cpu.py", _STRIPS, _FLOATS, None, lambda spec: cpu.supports("sketch", spec)),
        *(kernel for kernel in CUDA.values() if set(kernel.operations) <= set(_ALL)),
        # Up to FEW columns blocks share a sum, as many as keep a GPU busy: other windows, other bits.
        SketchKernel(
            "sketch", _ALL, "sketch.py", "strips", ("float16", "float32"), "sm_80", deterministic=sketch.FEW + 1
        ),
    )
}
"""What ``kernel=`` takes."""


def hashed_matmul(w: Any, x: Any, spec: HashSpec, *, kernel: str = "auto") -> Any:
    """y = W x, where W is the virtual matrix that ``spec`` draws from the buckets ``w``.

    Parameters
    ----------
    w : (n_buckets,) float16, float32 or (NumPy alone) float64
    x : (d_in, n) of w's dtype, in C or F order
    spec : HashSpec of shape (d_out, d_in)
    kernel : "auto" or a name in ``KERNELS``. "auto" takes, for NumPy arrays, the faster CPU schedule; for CuPy arrays
        the kernel that is expected to be the fastest here: `choose` says which and why, and so does `hashedmm doctor
        --explain`.

    Returns
    -------
    (d_out, n) of x's dtype, in C order. Sums are accumulated in float32 (float64 for float64).

    Raises
    ------
    TypeError
        If w or x is no array of real floating numbers, their dtypes differ, one is NumPy's and one CuPy's, or spec is
        no HashSpec.
    ValueError
        If a shape does not fit the spec, or the kernel is unknown or cannot compute this.
    """
    _check_spec(spec)
    n = _check_columns("x", x, spec.cols, "d_in", spec)
    _check_buckets(w, spec)
    _check_alike("w", w, "x", x)
    kernel = _check_kernel(kernel, "matmul", spec, x)
    if not _is_cuda(kernel):
        return _run("matmul", kernel, w, x, spec, n).astype(x.dtype, copy=False)
    y = empty(x, (spec.rows, n), x.dtype)
    if n:
        plan_matmul(w, x, y, spec, kernel).run()
    return y


def hashed_matmul_grad_x(w: Any, gy: Any, spec: HashSpec, *, kernel: str = "auto") -> Any:
    """The gradient with respect to x: W^T gy.

    Parameters
    ----------
    w : (n_buckets,) float16, float32 or (NumPy alone) float64
    gy : (d_out, n) of w's dtype, in C or F order: the gradient of a loss with respect to y
    spec : as in `hashed_matmul`
    kernel : as in `hashed_matmul`

    Returns
    -------
    (d_in, n) of gy's dtype, in C order.

    Raises
    ------
    TypeError, ValueError
        As `hashed_matmul`.
    """
    _check_spec(spec)
    n = _check_columns("gy", gy, spec.rows, "d_out", spec)
    _check_buckets(w, spec)
    _check_alike("w", w, "gy", gy)
    kernel = _check_kernel(kernel, "grad_x", spec, gy)
    if not _is_cuda(kernel):
        return _run("grad_x", kernel, w, gy, spec, n).astype(gy.dtype, copy=False)
    gx = empty(gy, (spec.cols, n), gy.dtype)
    if n:
        plan_grad_x(w, gy, gx, spec, kernel).run()
    return gx


def hashed_matmul_grad_w(x: Any, gy: Any, spec: HashSpec, *, kernel: str = "auto") -> Any:
    """The gradient with respect to the buckets: each is the signed sum of the dense gradient gy x^T over its uses.

    Parameters
    ----------
    x : (d_in, n) float16, float32 or (NumPy alone) float64, in C or F order
    gy : (d_out, n) of x's dtype, in C or F order
    spec : as in `hashed_matmul`
    kernel : as in `hashed_matmul`. "sketch" and "grad_w_fixed" give the same bits each time; the float atomics of
        "grad_w" may differ in the last bits from run to run, and "auto" may choose it. In "grad_w_fixed" a number that
        is not finite in x or gy, or in their product, makes every element NaN.

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
    _check_alike("x", x, "gy", gy)
    kernel = _check_kernel(kernel, "grad_w", spec, x)
    if not _is_cuda(kernel):
        return _run("grad_w", kernel, x, gy, spec, n)
    if kernel == "grad_w_fixed":
        return _grad_w_fixed(x, gy, spec)
    # Before the result: a pool of memory would cut that from the piece that grad_x has just given back.
    room = sketch.workspace(x, spec) if kernel == "sketch" and n else None
    gw = zeros(x, spec.n_buckets, np.float32)
    if n:
        plan_grad_w(x, gy, gw, spec, kernel, room=room).run()
    return gw


def materialise(w: Any, spec: HashSpec) -> Any:
    """W as a dense array: the memory that hashing saves is spent again.

    Parameters
    ----------
    w : (n_buckets,) float16, float32 or (NumPy alone) float64
    spec : HashSpec

    Returns
    -------
    (d_out, d_in) of w's dtype, in C order.

    Raises
    ------
    TypeError, ValueError
        If w does not fit the spec.
    """
    _check_spec(spec)
    _check_buckets(w, spec)
    if not on_gpu(w):
        return cpu.materialise(_computable(w), spec).astype(w.dtype, copy=False)
    _check_cuda(CUDA["materialise"], spec, w)
    dense = empty(w, spec.shape, w.dtype)
    plan_materialise(w, dense, spec).run()
    return dense


# ---- checks: name the argument, what was expected, what came, and the fix


def _check_spec(spec: Any) -> None:
    if not isinstance(spec, HashSpec):
        raise TypeError(
            f"spec must be a HashSpec, got {type(spec).__name__}; make one with HashSpec.strips((d_out, d_in), 1/8)"
        )


def _check_array(name: str, a: Any) -> None:
    if on_gpu(a):
        if not gpu_available():
            raise TypeError(
                f"{name} is a CuPy array, and there is no GPU here: pass cupy.asnumpy({name}), a NumPy array"
            )
        if not isinstance(a, library(a).ndarray):
            raise TypeError(f"{name} must be a NumPy or CuPy array, got {type(a).__name__}; try cupy.asnumpy({name})")
        if a.dtype == np.float64:
            raise TypeError(
                f"{name} must have dtype float16 or float32 on a GPU, got float64; try {name}.astype(np.float32), or "
                f"compute on the CPU with cupy.asnumpy({name})"
            )
    elif not isinstance(a, np.ndarray):
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


def _check_alike(name_a: str, a: Any, name_b: str, b: Any) -> None:
    """One library, one GPU, one dtype."""
    if on_gpu(a) != on_gpu(b):
        gpu, other = (name_a, name_b) if on_gpu(a) else (name_b, name_a)
        raise TypeError(
            f"{gpu} is a CuPy array and {other} a NumPy array; pass cupy.asarray({other}) to compute on the GPU or "
            f"cupy.asnumpy({gpu}) to compute on the CPU"
        )
    if on_gpu(a) and a.device != b.device:
        raise ValueError(
            f"{name_a} and {name_b} must be on one GPU, got {a.device} and {b.device}; copy one of them inside "
            f"`with {name_a}.device:`"
        )
    if a.dtype != b.dtype:
        raise TypeError(
            f"{name_a} and {name_b} must share one dtype, got {a.dtype} and {b.dtype}; "
            f"try {name_b}.astype({name_a}.dtype)"
        )


def _check_kernel(kernel: Any, operation: str, spec: HashSpec, a: Any) -> str:
    """The kernel to run for arrays like ``a``; "auto" stays as it is for NumPy arrays."""
    if isinstance(kernel, str) and kernel == "auto":
        if not on_gpu(a):
            return "auto"
        kernel = _auto(operation, spec, a)
    if not isinstance(kernel, str) or kernel not in KERNELS:
        raise ValueError(f'kernel must be "auto" or one of {", ".join(KERNELS)}, got {kernel!r}')
    row = KERNELS[kernel]
    if operation not in row.operations:
        raise ValueError(
            f"kernel {kernel!r} computes {', '.join(row.operations)}, not {operation}. "
            f"These do: {_able(operation, spec, a)}"
        )
    if _is_cuda(kernel):
        _check_cuda(row, spec, a, operation)
    elif on_gpu(a):
        raise ValueError(
            f"kernel {kernel!r} computes on the CPU, and the arrays are CuPy's; pass cupy.asnumpy of them, or take "
            f"another kernel: {_able(operation, spec, a)}"
        )
    elif not row.supports(spec):
        raise ValueError(
            f"kernel {kernel!r} computes {row.specs}, not this spec: block {spec.block}, panel {spec.panel}. "
            f"These do: {_able(operation, spec, a)}"
        )
    return kernel


def _auto(operation: str, spec: HashSpec, a: Any) -> str:
    """The CUDA kernel that "auto" is for arrays like ``a``, of n columns."""
    return choose(operation, spec, max(1, a.shape[1]), str(a.dtype), device(a)).kernel


def _is_cuda(kernel: str) -> bool:
    """Whether a kernel runs on a GPU, or in the emulator."""
    return kernel == "sketch" or kernel in CUDA


def _able(operation: str, spec: HashSpec, a: Any) -> str:
    """Names of the kernels that can do this for arrays like ``a``."""
    dtype, where = str(a.dtype), device(a)
    return ", ".join(
        name
        for name, row in KERNELS.items()
        if operation in row.operations
        and (
            _why_not(row, spec, dtype, build.shared_limit(where), architecture(where)) is None
            if _is_cuda(name)
            else row.supports(spec) and not on_gpu(a)
        )
    )


def _why_not(row: Kernel, spec: HashSpec, dtype: str, shared_limit: int, arch: int) -> str | None:
    """What keeps a CUDA kernel from computing ``spec``, short: what follows its name in a sentence."""
    if dtype not in row.dtypes:
        return f"computes {' and '.join(row.dtypes)} alone"
    if row.least_arch and arch < int(row.least_arch.removeprefix("sm_")):
        return f"needs {row.least_arch} or newer, and this is sm_{arch}"
    if not isinstance(row, CudaKernel):
        why = sketch.why_not(spec, dtype, shared_limit)
        return why and f"computes {why}"
    if not row.rule(spec):
        return f"computes {row.specs}; not block {spec.block}, stride {spec.unit}"
    if not row.supports(spec, dtype, shared_limit):
        needed, most = row.slice_bytes(spec, dtype), shared_limit - row.tile_bytes
        return f"keeps a panel's buckets in shared memory: {needed:,} bytes here, and there are {most:,}"
    return None


@lru_cache(maxsize=16)
def architecture(where: build.Device) -> int:
    """90 for sm_90: what a GPU can run. The emulator takes what an H100 does."""
    if where == "emulator":
        return 90
    import cupy

    return int(cupy.cuda.Device(where).compute_capability)


def _check_cuda(row: Kernel, spec: HashSpec, a: Any, operation: str = "materialise") -> None:
    """ValueError or TypeError unless a CUDA kernel computes ``spec`` for arrays like ``a``: w, or one of n columns."""
    dtype, where = str(a.dtype), device(a)
    if dtype not in row.dtypes:
        raise TypeError(
            f"kernel {row.name!r} computes {' and '.join(row.dtypes)}, got arrays of {a.dtype}; try "
            f'astype(np.float32), or kernel="auto"'
        )
    for what, size in (("d_out", spec.rows), ("d_in", spec.cols), ("n", a.shape[-1] if a.ndim == 2 else 1)):
        if size > MAX_SIDE:
            raise ValueError(f"{what} of a CUDA kernel can be at most {MAX_SIDE} (32-bit indices), got {size}")
    limit = build.shared_limit(where)
    if (why := _why_not(row, spec, dtype, limit, architecture(where))) is None:
        return
    if isinstance(row, CudaKernel) and row.rule(spec) and not row.supports(spec, dtype, limit):
        needed, most = row.slice_bytes(spec, dtype), limit - row.tile_bytes
        buckets = row.most_buckets(most, a.dtype.itemsize)
        raise ValueError(
            f"kernel {row.name!r} keeps the buckets of a panel in shared memory: {needed} bytes for panel "
            f"{spec.panel} of this spec, and a block has {most} beside its tiles. These do: "
            f"{_able(operation, spec, a)}. Or make a spec whose panels own at most {buckets:,} buckets each: panels of "
            f"up to {int(buckets / spec.compression):,} weights, at this compression"
        )
    raise ValueError(f"kernel {row.name!r} {why}. These do: {_able(operation, spec, a)}")


# ---- which kernel "auto" is


class Candidate(NamedTuple):
    """A kernel that computes the operation: its expected milliseconds, or the reason why it is out."""

    kernel: str
    ms: float | None
    reason: str = ""


class Choice(NamedTuple):
    """A CUDA kernel, and why it was chosen.

    Attributes
    ----------
    kernel : its name in ``KERNELS``
    why : one sentence
    candidates : of Candidate, the fastest first, then those that are out
    """

    kernel: str
    why: str
    candidates: tuple[Candidate, ...]


def choose(
    operation: str, spec: HashSpec, n: int, dtype: Any = "float32", device: build.Device | None = None
) -> Choice:
    """The CUDA kernel that "auto" stands for: the one that is expected to be the fastest of those that can.

    What to expect is looked up in a table of measured times (hashedmm.tuning): the user's own, if `hashedmm tune` has
    measured something near, else the one that ships with the package. Nothing is hashed, and nothing allocated.

    Parameters
    ----------
    operation : "matmul", "grad_x" or "grad_w"
    spec : HashSpec
    n : columns of x or gy, at least 1
    dtype : float16 or float32
    device : number of a GPU, or "emulator", which stands for an H100; None: the current GPU, or "emulator"

    Raises
    ------
    TypeError
        If spec is no HashSpec, or n no integer.
    ValueError
        If the operation or dtype is another, or n is less than 1.
    """
    _check_spec(spec)
    if operation not in _ALL:
        raise ValueError(f"operation must be one of {', '.join(_ALL)}, got {operation!r}")
    dtype = str(np.dtype(dtype))
    if dtype not in C_TYPES:
        raise ValueError(f"dtype must be float16 or float32 for CUDA kernels, got {dtype}")
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"n must be an integer, got {n!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return _choose(operation, spec, int(n), dtype, build.current_device() if device is None else device)


def cuda_kernels(
    operation: str, spec: HashSpec, dtype: str, where: build.Device
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The CUDA kernels that compute this on a device, and for each that does not, the reason."""
    limit, arch = build.shared_limit(where), architecture(where)
    rows = [row for name, row in KERNELS.items() if _is_cuda(name) and operation in row.operations]
    out = {row.name: why for row in rows if (why := _why_not(row, spec, dtype, limit, arch))}
    return tuple(row.name for row in rows if row.name not in out), out


@lru_cache(maxsize=4096)
def _choose(operation: str, spec: HashSpec, n: int, dtype: str, where: build.Device) -> Choice:
    able, out = cuda_kernels(operation, spec, dtype, where)
    estimates, table, mine = tuning.expected(operation, able, spec, n, dtype, tuning.gpu_name(where))
    kernel = tuning.fastest(estimates)
    whose = f"measured on this GPU ({table.date})" if mine else f"measured on {table.gpu} ({table.date})"
    if kernel is None:
        kernel = min(able, key=lambda name: tuning.work(name, operation, spec, n, dtype))
        why = f"It does the least work; no kernel that can compute this was {whose}."
    else:
        times = sorted((e.ms, name) for name, e in estimates.items() if e is not None)
        away = estimates[kernel].away  # type: ignore[union-attr]
        near = "this very problem" if away == 0 else f"problems {away:.1f} doublings of sizes away and farther"
        lead = f"{times[1][0] / times[0][0]:.1f} x as fast as {times[1][1]}" if len(times) > 1 else "the only one"
        why = f"Expected to be the fastest, {lead}, by times of {near}, {whose}."
    timed = [Candidate(name, e.ms) for name, e in estimates.items() if e is not None]
    others = {
        name: "far slower near here" if table.knows(operation, name) else "never measured"
        for name, e in estimates.items()
        if e is None
    }
    unknown = [Candidate(name, None, reason) for name, reason in (others | out).items()]
    return Choice(kernel, why, (*sorted(timed, key=lambda c: c.ms or 0.0), *unknown))


def forget_choices() -> None:
    """Choose anew, by tables that are read anew: after `hashedmm.tuning.keep` or `ship`."""
    tuning.forget()
    _choose.cache_clear()


# ---- running on the CPU


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


# ---- launching CUDA kernels, on a GPU or emulated


Parameters = Mapping[str, Any]


def plan_matmul(
    w: Any, x: Any, y: Any, spec: HashSpec, kernel: str, parameters: Parameters | None = None, *, keep: bool = False
) -> Launch | Plan:
    """What writes y = W x into ``y``, (d_out, n) in C order, n >= 1: ``run`` it, or trace or check its ``launches``.

    A `Launch`; for "sketch" a `Plan` of several. The arrays are as `hashed_matmul` takes them and are not checked
    again. ``parameters`` replace tile sizes of the kernel's row in ``KERNELS``, ValueError or TypeError if they do not
    fit; for "sketch", {name of one of its kernels: its parameters}. ``keep``: a sketch leaves its sums of x behind, if
    they are not too large, for `plan_grad_w`.
    """
    if kernel == "sketch":
        return sketch.plan_matmul(w, x, y, spec, parameters, keep=keep)
    w, (x, down, across), n = _contiguous(w), _matrix(x), x.shape[1]
    return _plan(kernel, spec, n, x, parameters, (w, x, down, across, y, np.int32(n)))


def plan_grad_x(
    w: Any, gy: Any, gx: Any, spec: HashSpec, kernel: str = "grad_x", parameters: Parameters | None = None
) -> Launch | Plan:
    """What writes W^T gy into ``gx``, (d_in, n) in C order; the rest as `plan_matmul`."""
    if kernel == "sketch":
        return sketch.plan_grad_x(w, gy, gx, spec, parameters)
    w, (gy, down, across), n = _contiguous(w), _matrix(gy), gy.shape[1]
    return _plan(kernel, spec, n, gy, parameters, (w, gy, down, across, gx, np.int32(n)))


def plan_grad_w(
    x: Any, gy: Any, gw: Any, spec: HashSpec, kernel: str = "grad_w", parameters: Parameters | None = None,
    *, fixed: tuple[Any, Any, Any] | None = None, forward: Launch | Plan | None = None, room: Any = None,
) -> Launch | Plan:  # fmt: skip
    """What adds the buckets' gradients to ``gw``, (n_buckets,) float32, zeros before; the rest as `plan_matmul`.

    "sketch" adds in a fixed order, always to the same bits; ``forward``, the plan of the product with the same x, saves
    it half of the work if that is a sketch too, made with ``keep``, and has just run; ``room`` is a `sketch.workspace`.
    For "grad_w_fixed" the three arrays ``fixed`` take the place of ``gw``: scale (1,) float64, sums (n_buckets,)
    uint64, failed (1,) int32. `fixed_arrays` makes them.
    """
    if kernel == "sketch":
        z = forward.kept if isinstance(forward, Plan) else None
        return sketch.plan_grad_w(x, gy, gw, spec, parameters, z=z, room=room)
    n = x.shape[1]
    x, gy = _matrix(x), _matrix(gy)
    return _plan(kernel, spec, n, x[0], parameters, (*x, *gy, *(fixed or (gw,)), np.int32(n)))


def plan_materialise(w: Any, dense: Any, spec: HashSpec, parameters: Parameters | None = None) -> Launch:
    """The launch that writes W into ``dense``, (d_out, d_in) in C order; the rest as `plan_matmul`."""
    return _plan("materialise", spec, 1, w, parameters, (_contiguous(w), dense))


def _plan(
    name: str, spec: HashSpec, n: int, a: Any, parameters: Parameters | None, args: tuple[Any, ...]
) -> Launch:  # fmt: skip
    chosen = tuple(sorted((parameters or {}).items()))
    built, shape, at = _prepare(name, spec, n, str(a.dtype), device(a), chosen)
    if isinstance(CUDA[name], SplitKernel):
        args += _meeting(a, spec.rows, n, shape)
    return Launch(built, shape.grid, shape.block, (at, *args), shape.shared_mem)


@lru_cache(maxsize=512)
def _prepare(
    name: str, spec: HashSpec, n: int, dtype: str, device: build.Device, chosen: tuple[tuple[str, int], ...]
) -> tuple[Any, Shape, np.ndarray]:
    """What a launch needs and does not depend on the arrays: kernel, shape, layout. Kept, since a launch takes less."""
    row = CUDA[name]
    values = row.fitted(row.values(n, dict(chosen)), spec, dtype, build.shared_limit(device))
    shape = row.shape(spec, n, values, dtype)
    macros: dict[str, int | str] = {**values, "WEIGHT": C_TYPES[dtype]}
    if device != "emulator":  # there the structure is read from the layout at run time: one build for all specs
        macros |= structure(spec)
    built = build.kernel(name, macros, device)
    if row.static(values) + shape.shared_mem > STATIC_SHARED:
        with build.on_device(device):
            room = build.shared_limit(device) - built.attributes["shared_size_bytes"]
            built.max_dynamic_shared_size_bytes = room
    return built, shape, layout(spec)


def _meeting(like: Any, rows: int, n: int, shape: Shape) -> tuple[Any, Any]:
    """Where the parts of sums meet, for a `SplitKernel`: (parts, rows, n), and a count of arrivals a tile, zeros."""
    if shape.splits == 1:
        return None, None
    parts = empty(like, (shape.splits, rows, n), np.float32)
    return parts, zeros(like, shape.grid[0] // shape.splits, np.uint32)


def fixed_arrays(x: Any, gy: Any, spec: HashSpec) -> tuple[Any, Any, Any]:
    """(scale, sums, failed) for "grad_w_fixed": made where x and gy are, without waiting for a GPU.

    scale is the largest power of two with which no sum of (blocks a panel) * n * max|x| * max|gy| leaves 62 bits.
    """
    xp = library(x)
    largest_x, largest_gy = (xp.maximum(a.max(), -a.min()).astype(np.float64).reshape(1) for a in (x, gy))
    bound = largest_x * largest_gy * float(x.shape[1] * blocks_per_panel(spec))
    _, exponent = xp.frexp(bound)  # bound < 2^exponent
    scale = xp.ldexp(xp.ones(1, np.float64), 62 - exponent)
    return scale, xp.zeros(spec.n_buckets, np.uint64), xp.zeros(1, np.int32)


def _grad_w_fixed(x: Any, gy: Any, spec: HashSpec) -> Any:
    if x.shape[1] == 0:
        return zeros(x, spec.n_buckets, np.float32)
    with beside(x), np.errstate(over="ignore", invalid="ignore"):
        scale, sums, failed = fixed = fixed_arrays(x, gy, spec)
        plan_grad_w(x, gy, None, spec, "grad_w_fixed", fixed=fixed).run()
        gw = sums.view(np.int64) / scale
        return library(x).where(failed == 0, gw, np.nan).astype(np.float32)


def _contiguous(a: Any) -> Any:
    """A vector whose elements lie one after the other: itself if it is one, else a copy."""
    return library(a).ascontiguousarray(a)


def _matrix(a: Any) -> tuple[Any, np.int64, np.int64]:
    """A matrix and how far apart, in elements, its rows and its columns are. Copied if it is in neither order."""
    if a.flags.f_contiguous and not a.flags.c_contiguous:
        return a, np.int64(1), np.int64(a.shape[0])
    return library(a).ascontiguousarray(a), np.int64(a.shape[1]), np.int64(1)
