"""The CUDA kernels: one .cu a kernel, the table that describes them, and the layout that they all receive.

Nothing is compiled or launched here: `hashedmm.build` compiles, `hashedmm.matmul` launches. Imports hashing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hashedmm.hashing import HASHES, HashSpec, multiply_shift_parameters

FOLDER = Path(__file__).resolve().parent
WHOLE = 2**31 - 1  # a side of a panel that is not split; hash.cuh has the same
MAX_SIDE = 2**31 - 1025  # rows, cols, n: rounded up to a tile they are still 32-bit integers
MAX_GRID = 2**31 - 1  # blocks in a 1-D grid
MAX_THREADS = 1024
STATIC_SHARED = 48 * 1024  # bytes of static shared memory that a block may have
EMULATED_SHARED = 227 * 1024  # bytes of shared memory a block in the emulator: an H100's
C_TYPES = {"float32": "float", "float16": "__half"}  # what WEIGHT is for an array's dtype

# --------------------------------------------------------------------------------------------------------------------
# The layout: struct Layout of hash.cuh, field by field

LAYOUT = np.dtype(
    [
        ("row_buckets", np.int64),
        ("buckets", np.int64, (2, 2)),
        ("a1", np.uint64),
        ("a2", np.uint64),
        ("b", np.uint64),
        ("candidates", np.uint32, (2, 2)),
        ("seed", np.uint32),
        ("rows", np.int32),
        ("cols", np.int32),
        ("block_rows", np.int32),
        ("block_cols", np.int32),
        ("stride", np.int32),
        ("panel_rows", np.int32),
        ("panel_cols", np.int32),
        ("full_rows", np.int32),
        ("full_cols", np.int32),
        ("hash", np.int32),
    ],
    align=True,
)
# Compiled in on a GPU. Any or none of a kernel's builds has them: all six, or none and the struct's values count.
STRUCTURE = ("HASH", "BLOCK_ROWS", "BLOCK_COLS", "STRIDE", "PANEL_ROWS", "PANEL_COLS")


def layout(spec: HashSpec) -> np.ndarray:
    """What kernels receive of a spec: a 0-d array of dtype ``LAYOUT``, which a launch passes by value.

    A block, stride or panel that reaches past 2^31 - 1 is cut to that: no index of the matrix sees the difference.
    """
    panel_rows, panel_cols = (
        side if side < size else WHOLE for side, size in zip(spec.panel or spec.shape, spec.shape, strict=True)
    )
    full_rows = 0 if panel_rows == WHOLE else spec.rows // panel_rows
    full_cols = 0 if panel_cols == WHOLE else spec.cols // panel_cols
    out = np.zeros((), LAYOUT)
    out["rows"], out["cols"] = spec.shape
    out["block_rows"], out["block_cols"] = (min(side, WHOLE) for side in spec.block)
    out["stride"] = min(spec.unit, WHOLE)
    out["panel_rows"], out["panel_cols"] = panel_rows, panel_cols
    out["full_rows"], out["full_cols"] = full_rows, full_cols
    for region in spec.regions:
        lower, narrower = int(region.row // panel_rows == full_rows), int(region.col // panel_cols == full_cols)
        out["buckets"][lower, narrower] = region.panel_buckets
        out["candidates"][lower, narrower] = region.candidates
        if not lower:
            out["row_buckets"] = region.base_step
    out["hash"], out["seed"] = HASHES.index(spec.hash), spec.seed
    out["a1"], out["a2"], out["b"] = multiply_shift_parameters(spec.seed)
    return out


def structure(spec: HashSpec) -> dict[str, int]:
    """The values of ``STRUCTURE`` for a spec."""
    values = layout(spec)
    return {name: int(values[name.lower()]) for name in STRUCTURE}


def blocks_per_panel(spec: HashSpec) -> int:
    """Blocks of the largest panel, cut ones counted: how often a bucket can be used at most."""
    bh, bw = spec.block
    return max(-(-g.panel_rows // bh) * -(-g.panel_cols // bw) for g in spec.regions)


# --------------------------------------------------------------------------------------------------------------------
# The table

Values = Mapping[str, int]


class Shape(NamedTuple):
    """How a kernel is launched: blocks, threads a block, bytes of dynamic shared memory."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_mem: int = 0


@dataclass(frozen=True)
class Kernel:
    """One way to compute a product: a row of ``hashedmm.KERNELS``.

    Attributes
    ----------
    name : what ``kernel=`` takes
    operations : of "matmul", "grad_x", "grad_w", "materialise"
    file : where to read it, inside the package
    specs : which specs it computes, in words; `supports` decides
    dtypes : of w and x
    least_arch : the oldest GPU it runs on ("sm_75"), None on a CPU
    rule : whether it computes a spec at all
    """

    name: str
    operations: tuple[str, ...]
    file: str
    specs: str
    dtypes: tuple[str, ...]
    least_arch: str | None
    rule: Callable[[HashSpec], bool] = field(default=lambda spec: True, repr=False, compare=False)

    def supports(self, spec: HashSpec, dtype: str = "float32", shared_limit: int = EMULATED_SHARED) -> bool:
        """Whether this kernel computes ``spec`` for arrays of ``dtype``, in blocks that have ``shared_limit`` bytes of
        shared memory."""
        return self.rule(spec)


@dataclass(frozen=True)
class CudaKernel(Kernel):
    """A kernel of this folder, which CuPy or the emulator runs.

    Attributes
    ----------
    parameters : its tile sizes and their defaults, all of them #defines but THREADS
    narrow : {most columns n: parameters that are better up to there}
    tiles : (spec, n, parameters, itemsize) -> how many blocks
    block : parameters -> threads, in up to three dimensions
    static : parameters -> bytes of static shared memory
    slices : whether it keeps a panel's buckets in dynamic shared memory
    """

    parameters: Values = field(default_factory=dict)
    narrow: Mapping[int, Values] = field(default_factory=dict)
    tiles: Callable[[HashSpec, int, Values, int], int] = field(default=lambda *_: 1, repr=False)
    block: Callable[[Values], tuple[int, ...]] = field(default=lambda _: (1,), repr=False)
    static: Callable[[Values], int] = field(default=lambda _: 0, repr=False)
    slices: bool = False

    @property
    def path(self) -> Path:
        """The .cu file."""
        return FOLDER / f"{self.name}.cu"

    @property
    def source(self) -> str:
        """The text of the .cu file."""
        return self.path.read_text(encoding="utf-8")

    def values(self, n: int, chosen: Values | None = None) -> dict[str, int]:
        """Parameters for ``n`` columns, checked; those that are ``chosen`` replace the defaults."""
        narrow = next((values for most, values in self.narrow.items() if n <= most), {})
        values = {**self.parameters, **narrow, **(chosen or {})}
        check_values(self, values)
        return values

    @property
    def tile_bytes(self) -> int:
        """Static shared memory that a block may need, whatever the number of columns."""
        return max(self.static({**self.parameters, **values}) for values in ({}, *self.narrow.values()))

    def slice_bytes(self, spec: HashSpec, dtype: str) -> int:
        """Dynamic shared memory a block: the buckets of the largest panel, or nothing."""
        return max(g.panel_buckets for g in spec.regions) * np.dtype(dtype).itemsize if self.slices else 0

    def supports(self, spec: HashSpec, dtype: str = "float32", shared_limit: int = EMULATED_SHARED) -> bool:
        if dtype not in self.dtypes:
            return False
        return self.slice_bytes(spec, dtype) + self.tile_bytes <= shared_limit

    def shape(self, spec: HashSpec, n: int, values: Values, dtype: str) -> Shape:
        """The launch for ``n`` columns; ValueError if there would be too many blocks."""
        tiles = self.tiles(spec, n, values, np.dtype(dtype).itemsize)
        if tiles > MAX_GRID:
            raise ValueError(
                f"kernel {self.name!r} would need {tiles} blocks for {spec.shape} and n = {n}, and a grid has at most "
                f"{MAX_GRID}; split x into fewer columns a call"
            )
        return Shape((tiles,), self.block(values), self.slice_bytes(spec, dtype))


def check_values(kernel: CudaKernel, values: Mapping[str, object]) -> None:
    """Check parameters before anything is compiled.

    Raises
    ------
    TypeError
        If a value is no integer.
    ValueError
        If a name is unknown or missing, a value is out of range, sizes do not divide each other, or a block would have
        too many threads or too much static shared memory.
    """
    known = ", ".join(kernel.parameters) or "none"
    checked: dict[str, int] = {}
    for name, value in values.items():
        if name not in kernel.parameters:
            raise ValueError(f"kernel {kernel.name!r} has no parameter {name!r}; it has {known}")
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} of kernel {kernel.name!r} must be an integer, got {value!r}")
        if not 1 <= value <= MAX_THREADS:
            raise ValueError(f"{name} of kernel {kernel.name!r} must be from 1 to {MAX_THREADS}, got {value}")
        checked[name] = int(value)
    if missing := kernel.parameters.keys() - values.keys():
        raise ValueError(f"kernel {kernel.name!r} needs a value for {', '.join(sorted(missing))} too")

    def divides(part: str, whole: str) -> None:
        if part in checked and whole in checked and checked[whole] % checked[part]:
            raise ValueError(
                f"{part} of kernel {kernel.name!r} must divide {whole} = {checked[whole]}, got {checked[part]}"
            )

    divides("THREAD_ROWS", "TILE_ROWS")
    divides("THREAD_COLS", "TILE_COLS")
    divides("PARTS", "DEPTH")
    outputs = checked.get("THREAD_ROWS", 1) * checked.get("THREAD_COLS", 1)
    if outputs > 64:
        raise ValueError(
            f"THREAD_ROWS * THREAD_COLS of kernel {kernel.name!r} are the sums that a thread keeps in registers: at "
            f"most 64, got {outputs}"
        )
    threads = int(np.prod(kernel.block(checked)))
    if threads > MAX_THREADS:
        sizes = ", ".join(f"{name}={value}" for name, value in checked.items())
        raise ValueError(
            f"kernel {kernel.name!r} with {sizes} would have {threads} threads a block, and a GPU has at most "
            f"{MAX_THREADS}; take smaller tiles"
        )
    parts = checked.get("PARTS", 1)
    if parts > 32 or parts & (parts - 1) or (parts > 1 and threads % 32):
        raise ValueError(
            f"PARTS of kernel {kernel.name!r} must be a power of two up to 32, in whole warps of 32 threads, got "
            f"{parts} with {threads} threads"
        )
    if (static := kernel.static(checked)) > STATIC_SHARED:
        raise ValueError(
            f"the tiles of kernel {kernel.name!r} would take {static} bytes of static shared memory, and a block has "
            f"{STATIC_SHARED}; take smaller tiles or a smaller DEPTH"
        )


# ---- how many blocks, threads and bytes


def _ceil(n: int, part: int) -> int:
    return -(-n // part)


def _a_thread_an_output(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    return _ceil(spec.rows * n, v["THREADS"])


def _square_tiles_of_y(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    return _ceil(spec.rows, v["TILE"]) * _ceil(n, v["TILE"])


def _square_tiles_of_x(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    return _ceil(spec.cols, v["TILE"]) * _ceil(n, v["TILE"])


def _tiles_of_y(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    return _ceil(spec.rows, v["TILE_ROWS"]) * _ceil(n, v["TILE_COLS"])


def _tiles_of_w(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    return _ceil(spec.rows, v["TILE_ROWS"]) * _ceil(spec.cols, v["TILE_COLS"])


def _tiles_in_panels(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    height = min((spec.panel or spec.shape)[0], spec.rows)
    return _ceil(spec.rows, height) * _ceil(height, v["TILE_ROWS"]) * _ceil(n, v["TILE_COLS"])


def _runs_of_w(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    runs = _ceil(spec.rows, spec.block[0]) * _ceil(min(spec.block[0], spec.rows), v["RUN"])
    return _ceil(_ceil(spec.cols, 16 // itemsize) * runs, v["THREADS"])


def _threads(v: Values) -> tuple[int, ...]:
    return (v["THREADS"],)


def _square(v: Values) -> tuple[int, ...]:
    return (v["TILE"], v["TILE"])


def _register_threads(v: Values) -> tuple[int, ...]:
    return (v.get("PARTS", 1) * (v["TILE_ROWS"] // v["THREAD_ROWS"]) * (v["TILE_COLS"] // v["THREAD_COLS"]),)


def _square_bytes(v: Values) -> int:
    return 2 * 4 * v["TILE"] ** 2


def _register_bytes(v: Values) -> int:
    return 4 * v["DEPTH"] * (v["TILE_ROWS"] + 4 + v["TILE_COLS"] + 4)


_TILE = {"TILE_ROWS": 64, "TILE_COLS": 64, "DEPTH": 16, "THREAD_ROWS": 4, "THREAD_COLS": 4}
_THIN = {"TILE_ROWS": 16, "DEPTH": 128, "THREAD_ROWS": 1, "THREAD_COLS": 1}  # 256 threads for few columns
_ROWS = (
    ("naive", "matmul", {"THREADS": 256}, _a_thread_an_output, _threads, None),
    ("coalesced", "matmul", {"THREADS": 256}, _a_thread_an_output, _threads, None),
    ("shared", "matmul", {"TILE": 32}, _square_tiles_of_y, _square, _square_bytes),
    ("register_tile", "matmul", _TILE, _tiles_of_y, _register_threads, _register_bytes),
    ("panel", "matmul", {**_TILE, "PARTS": 1}, _tiles_in_panels, _register_threads, _register_bytes),
    ("materialise", "materialise", {"THREADS": 256, "RUN": 16}, _runs_of_w, _threads, None),
    ("grad_x", "grad_x", {"TILE": 32}, _square_tiles_of_x, _square, _square_bytes),
    ("grad_w", "grad_w", _TILE, _tiles_of_w, _register_threads, _register_bytes),
    ("grad_w_fixed", "grad_w", _TILE, _tiles_of_w, _register_threads, _register_bytes),
)
_NARROW = {"panel": {1: {**_THIN, "TILE_COLS": 1, "PARTS": 16}, 8: {**_THIN, "TILE_COLS": 8, "PARTS": 2}}}
_SPECS = {"panel": "any spec whose panels' buckets fit in shared memory, one panel at a time"}

CUDA: dict[str, CudaKernel] = {
    name: CudaKernel(
        name,
        (operation,),
        f"kernels/{name}.cu",
        _SPECS.get(name, "any"),
        ("float16", "float32"),
        "sm_75",
        parameters=parameters,
        narrow=_NARROW.get(name, {}),
        tiles=tiles,
        block=block,
        static=static or (lambda _: 0),
        slices=name == "panel",
    )
    for name, operation, parameters, tiles, block, static in _ROWS
}
