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
        ("first_block_row", np.int32),
        ("first_block_col", np.int32),
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
    out["first_block_row"], out["first_block_col"] = spec.first_block
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
    """How a kernel is launched: blocks, threads a block, bytes of dynamic shared memory, blocks that share a sum."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_mem: int = 0
    splits: int = 1


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
    deterministic : the least number of columns from which on its results have the same bits every time, and those of a
        `Window` have the bits that they have in the whole matrix; None if there is none. Each sum is then made in one
        order, which depends neither on how many blocks there are nor on which comes first. "grad_w_fixed" needs the
        scale of the whole matrix for that.
    """

    name: str
    operations: tuple[str, ...]
    file: str
    specs: str
    dtypes: tuple[str, ...]
    least_arch: str | None
    rule: Callable[[HashSpec], bool] = field(default=lambda spec: True, repr=False, compare=False)
    deterministic: int | None = None

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

    def most_buckets(self, room: int, itemsize: int) -> int:
        """How many buckets a panel can own if there are ``room`` bytes for slices."""
        return room // itemsize

    def supports(self, spec: HashSpec, dtype: str = "float32", shared_limit: int = EMULATED_SHARED) -> bool:
        if dtype not in self.dtypes or not self.rule(spec):
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

    def fitted(self, values: Values, spec: HashSpec, dtype: str, shared_limit: int) -> Values:
        """The parameters that a launch takes: ``values``, or what fits this spec better."""
        return values


@dataclass(frozen=True)
class TensorKernel(CudaKernel):
    """tensor, tensor_grad_x and tensor_grad_w: all of their shared memory is dynamic.

    Attributes
    ----------
    stage : parameters -> bytes of one stage of the pipeline
    kept : (spec, parameters) -> bytes of what is kept of panels
    """

    stage: Callable[[Values], int] = field(default=lambda _: 0, repr=False)
    kept: Callable[[HashSpec, Values], int] = field(default=lambda *_: 0, repr=False)

    @property
    def _least(self) -> list[dict[str, int]]:
        """The parameters for every number of columns, with one copy of a slice and two stages."""
        least = {"COPIES": 1, "STAGES": 2} if "COPIES" in self.parameters else {}
        return [{**self.parameters, **values, **least} for values in ({}, *self.narrow.values())]

    @property
    def tile_bytes(self) -> int:
        return max(v["STAGES"] * self.stage(v) for v in self._least)

    def slice_bytes(self, spec: HashSpec, dtype: str) -> int:
        """Shared memory for the buckets of panels, at least."""
        return max(self.kept(spec, v) for v in self._least)

    def most_buckets(self, room: int, itemsize: int) -> int:
        return room // 4 - 32  # two slices of float16 and some zeros, or one of float32 sums

    def fitted(self, values: Values, spec: HashSpec, dtype: str, shared_limit: int) -> Values:
        """With as many copies of a slice as fit, and two stages where three do not; grad_w: with enough blocks for a
        large GPU."""
        out = dict(values)
        while out.get("COPIES", 1) > 1 and self._bytes(spec, out) > shared_limit:
            out["COPIES"] //= 2
        if "COPIES" in out and out["STAGES"] == 3 and self._bytes(spec, out) > shared_limit:
            out["STAGES"] = 2
        while out.get("SPAN", 1) > 1 and self.tiles(spec, 1, out, 2) < _MANY_BLOCKS:
            out["SPAN"] //= 2
        if (needed := self._bytes(spec, out)) > shared_limit:
            raise ValueError(
                f"kernel {self.name!r} with these parameters would need {needed} bytes of shared memory, and a block "
                f"has {shared_limit}; take smaller tiles or fewer STAGES"
            )
        return out

    def _bytes(self, spec: HashSpec, values: Values) -> int:
        return values["STAGES"] * self.stage(values) + self.kept(spec, values)

    def shape(self, spec: HashSpec, n: int, values: Values, dtype: str) -> Shape:
        return super().shape(spec, n, values, dtype)._replace(shared_mem=self._bytes(spec, values))


_MANY_BLOCKS = 264  # two for each multiprocessor of an H100


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
    if "EACH" in checked and (checked["TILE_COLS"] not in (1, 2, 4, 8, 16, 32) or checked["TILE_ROWS"] > 64):
        raise ValueError(
            f"TILE_COLS of kernel {kernel.name!r} must be a power of two up to 32 and TILE_ROWS at most 64, got "
            f"{checked['TILE_COLS']} and {checked['TILE_ROWS']}"
        )
    if isinstance(kernel, TensorKernel):
        _check_tensor(kernel, checked)
    if "TILE_M" in checked:
        _check_product(kernel, checked)
    if "UNITS" in checked:
        _check_warpgroups(kernel, checked)
    if checked.get("STRIPS", 1) not in (1, 2, 4, 8):
        raise ValueError(f"STRIPS of kernel {kernel.name!r} must be 1, 2, 4 or 8, got {checked['STRIPS']}")
    if kernel.name == "sketch_few" and (
        checked.get("TILE_COLS", 1) not in (1, 2, 4, 8) or checked.get("WARPS", 1) > 16
    ):
        raise ValueError(
            f"TILE_COLS of kernel {kernel.name!r} must be 1, 2, 4 or 8 and WARPS at most 16, got "
            f"{checked.get('TILE_COLS')} and {checked.get('WARPS')}"
        )
    if checked.get("INPUTS", 0) % (4 * checked.get("WARPS", 1)):
        raise ValueError(
            f"INPUTS of kernel {kernel.name!r} must be a multiple of 4 * WARPS = {4 * checked['WARPS']}, got "
            f"{checked['INPUTS']}"
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


def _check_tensor(kernel: CudaKernel, v: Values) -> None:
    part = "GROUP" if "GROUP_ROWS" in v else "WARP"
    rows, cols = v[f"{part}_ROWS"], v[f"{part}_COLS"]
    words_of = {"GROUP": "warpgroup", "WARP": "warp"}
    columns = (32, 64, 128, 256)
    for name, allowed, words in (
        ("WARP_ROWS", (16, 32, 64, 128), "16, 32, 64 or 128"),
        ("WARP_COLS", range(16, MAX_THREADS + 1, 16), "a multiple of 16"),
        ("GROUP_ROWS", (64, 128), "64 or 128"),
        ("GROUP_COLS", columns, "32, 64, 128 or 256"),
        ("TILE_ROWS", range(rows, 129, rows), f"a multiple of {part}_ROWS = {rows} up to 128"),
        ("TILE_COLS", range(cols, MAX_THREADS + 1, cols), f"a multiple of {part}_COLS = {cols}"),
        ("TILE_COLS", columns if part == "GROUP" else range(MAX_THREADS + 1), "32, 64, 128 or 256"),
        ("DEPTH", range(32, MAX_THREADS + 1, 32), "a multiple of 32"),
        ("STAGES", range(2 if part == "GROUP" else 3, 17), f"from {2 if part == 'GROUP' else 3} to 16"),
        ("COPIES", (1, 2, 4, 8), "1, 2, 4 or 8"),
    ):  # fmt: skip
        if name in v and v[name] not in allowed:
            raise ValueError(f"{name} of kernel {kernel.name!r} must be {words}, got {v[name]}")
    most = 64 * (256 if part == "GROUP" else 64)
    if rows * cols > most:
        raise ValueError(
            f"{part}_ROWS * {part}_COLS of kernel {kernel.name!r} are the sums that a {words_of[part]} keeps in "
            f"registers: at most {most}, got {rows * cols}"
        )


def _check_warpgroups(kernel: CudaKernel, v: Values) -> None:
    """The tiles of warpgroup.cuh."""
    columns = v.get("TILE_N", 64) // (1 if "TILE_K" in v else v.get("GROUPS", 1))
    if "INPUTS" in v:  # sketch_back_mma
        if v["THREADS"] != 512 or v["UNITS"] > 4 or v["INPUTS"] % 32 or v["INPUTS"] > 448:
            raise ValueError(
                f"kernel {kernel.name!r} takes 512 THREADS, up to 4 UNITS, and INPUTS that are a multiple of 32 up to "
                f"448, got {v['THREADS']}, {v['UNITS']} and {v['INPUTS']}"
            )
    elif "TILE_N" not in v:  # sketch_fused_mma
        if v["UNITS"] > 4 or v["GROUPS"] > 2:
            raise ValueError(
                f"kernel {kernel.name!r} takes up to 4 UNITS and 2 GROUPS, got {v['UNITS']} and {v['GROUPS']}"
            )
    elif v["UNITS"] > 2 or v["GROUPS"] > 2 or columns not in (32, 64, 128) or (columns == 32 and v["TILE_N"] > 32):
        raise ValueError(
            f"kernel {kernel.name!r} takes 1 or 2 UNITS and GROUPS, and 32, 64 or 128 columns a warpgroup, got UNITS = "
            f"{v['UNITS']}, GROUPS = {v['GROUPS']}, TILE_N = {v['TILE_N']}"
        )
    if v.get("TILE_K", 16) % 16 or v.get("TILE_K", 16) > 64:
        raise ValueError(f"TILE_K of kernel {kernel.name!r} must be a multiple of 16 up to 64, got {v['TILE_K']}")
    if v.get("STAGES", 2) < 2:
        raise ValueError(f"STAGES of kernel {kernel.name!r} must be at least 2, got {v['STAGES']}")


def _check_product(kernel: CudaKernel, v: Values) -> None:
    """The tiles of product.cuh."""
    for tile, warps in (("TILE_M", "WARPS_M"), ("TILE_N", "WARPS_N")):
        if v[tile] % (16 * v[warps]):
            raise ValueError(
                f"{tile} of kernel {kernel.name!r} must be a multiple of 16 * {warps} = {16 * v[warps]}, got {v[tile]}"
            )
    if v.get("TILE_K", 16) % 16 or v.get("STAGES", 2) < 2:
        raise ValueError(
            f"TILE_K of kernel {kernel.name!r} must be a multiple of 16 and STAGES at least 2, got {v.get('TILE_K')} "
            f"and {v.get('STAGES')}"
        )
    if (sums := v["TILE_M"] * v["TILE_N"] // (32 * v["WARPS_M"] * v["WARPS_N"])) > 128:
        raise ValueError(
            f"TILE_M * TILE_N of kernel {kernel.name!r} over its threads are the sums that a thread keeps in "
            f"registers: at most 128, got {sums}"
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
    height = min(spec.block[0], spec.rows)
    runs = _ceil(spec.rows, max(height, v["RUN"] // height * height)) * _ceil(height, v["RUN"])
    return _ceil(_ceil(spec.cols, 16 // itemsize), v["THREADS"]) * runs


def _threads(v: Values) -> tuple[int, ...]:
    return (v["THREADS"],)


def _square(v: Values) -> tuple[int, ...]:
    return (v["TILE"], v["TILE"])


def _warps(v: Values) -> tuple[int, ...]:
    return (32 * v["WARPS"],)


def _register_threads(v: Values) -> tuple[int, ...]:
    return (v.get("PARTS", 1) * (v["TILE_ROWS"] // v["THREAD_ROWS"]) * (v["TILE_COLS"] // v["THREAD_COLS"]),)


def _square_bytes(v: Values) -> int:
    return 2 * 4 * v["TILE"] ** 2


def _register_bytes(v: Values) -> int:
    return 4 * v["DEPTH"] * (v["TILE_ROWS"] + 4 + v["TILE_COLS"] + 4)


def _few_rows_bytes(v: Values) -> int:
    chunk = v["EACH"] * 32 * v["WARPS"] // v["TILE_COLS"]
    return 4 * max(chunk * (v["TILE_ROWS"] + 4), v["WARPS"] * v["TILE_ROWS"] * v["TILE_COLS"])


_TILE = {"TILE_ROWS": 64, "TILE_COLS": 64, "DEPTH": 16, "THREAD_ROWS": 4, "THREAD_COLS": 4}
_THIN = {"TILE_ROWS": 16, "DEPTH": 128, "THREAD_ROWS": 1, "THREAD_COLS": 1}  # 256 threads for few columns
_FEW = {"TILE_ROWS": 16, "TILE_COLS": 8, "WARPS": 32, "EACH": 4}
_ROWS = (
    ("naive", "matmul", {"THREADS": 256}, _a_thread_an_output, _threads, None),
    ("coalesced", "matmul", {"THREADS": 256}, _a_thread_an_output, _threads, None),
    ("shared", "matmul", {"TILE": 32}, _square_tiles_of_y, _square, _square_bytes),
    ("register_tile", "matmul", _TILE, _tiles_of_y, _register_threads, _register_bytes),
    ("panel", "matmul", {**_TILE, "PARTS": 1}, _tiles_in_panels, _register_threads, _register_bytes),
    ("few_rows", "matmul", _FEW, _tiles_of_y, _warps, _few_rows_bytes),
    ("materialise", "materialise", {"THREADS": 256, "RUN": 16}, _runs_of_w, _threads, None),
    ("grad_x", "grad_x", {"TILE": 32}, _square_tiles_of_x, _square, _square_bytes),
    ("grad_w", "grad_w", _TILE, _tiles_of_w, _register_threads, _register_bytes),
    ("grad_w_fixed", "grad_w", _TILE, _tiles_of_w, _register_threads, _register_bytes),
)
_NARROW = {
    "panel": {1: {**_THIN, "TILE_COLS": 1, "PARTS": 16}, 8: {**_THIN, "TILE_COLS": 8, "PARTS": 2}},
    "few_rows": {1: {"TILE_COLS": 1, "WARPS": 16, "EACH": 1}},
}
_ANY_ORDER = ("grad_w",)  # atomics of floats
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
        deterministic=None if name in _ANY_ORDER else 1,
    )
    for name, operation, parameters, tiles, block, static in _ROWS
}


# ---- few columns: several blocks share a sum, each with a part of the inputs

FILL = 512  # blocks that keep a large GPU busy


@dataclass(frozen=True)
class SplitKernel(CudaKernel):
    """A kernel of split.cuh. Its last two arguments are where the parts of the sums meet.

    Attributes
    ----------
    depth : parameters -> inputs of a tile: a block takes whole tiles
    """

    depth: Callable[[Values], int] = field(default=lambda _: 1, repr=False)

    def shape(self, spec: HashSpec, n: int, values: Values, dtype: str) -> Shape:
        whole = super().shape(spec, n, values, dtype)
        (tiles,), depth = whole.grid, self.depth(values)
        most = max(1, min(FILL // tiles, _ceil(spec.cols, depth)))
        inputs = _ceil(_ceil(spec.cols, most), depth) * depth  # a block: rounded up, so that fewer blocks may do
        splits = _ceil(spec.cols, inputs)
        return whole._replace(grid=(tiles * splits,), splits=splits)


def _tiles_of_pieces(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    height = min((spec.panel or spec.shape)[0], spec.rows)
    strip_rows = min(spec.block[0], spec.rows)
    pieces = _ceil(height, strip_rows) * _ceil(strip_rows, 16 // itemsize)
    return _ceil(spec.rows, height) * _ceil(pieces, v["PIECES"]) * _ceil(n, v["TILE_COLS"])


def _panel_few_bytes(v: Values) -> int:
    pitch = v["TILE_COLS"] | 1 if v["TILE_COLS"] % 4 else 4 * (v["TILE_COLS"] // 4 | 1)
    return 16 * _ceil(v["DEPTH"] * pitch + 1, 4)


def _strip_depth(v: Values) -> int:
    return 4 * v["PARTS"] * v["STEPS"]


def _strip_bytes(v: Values) -> int:
    slots = v["PIECES"] * (max(4 * v["STEPS"], 8 if v["STEPS"] == 1 else 0) * v["PARTS"] + 4)
    return 16 * _ceil(slots + v["TILE_COLS"] * (_strip_depth(v) + 4) + v["PIECES"] + 1, 4)


CUDA |= {
    kernel.name: kernel
    for kernel in (
        SplitKernel(
            "panel_few",
            ("matmul",),
            "kernels/panel_few.cu",
            "any spec whose panels' buckets fit in shared memory, one panel at a time",
            ("float16", "float32"),
            "sm_75",
            parameters={"TILE_ROWS": 32, "TILE_COLS": 8, "DEPTH": 256, "THREAD_ROWS": 4},
            narrow={
                1: {"TILE_ROWS": 128, "TILE_COLS": 1, "THREAD_ROWS": 8},
                4: {"TILE_ROWS": 64, "TILE_COLS": 4, "THREAD_ROWS": 8},
            },
            tiles=_tiles_in_panels,
            block=lambda v: (32 * (v["TILE_ROWS"] // v["THREAD_ROWS"]),),
            static=_panel_few_bytes,
            slices=True,
            depth=lambda v: v["DEPTH"],
        ),
        SplitKernel(
            "strip",
            ("matmul",),
            "kernels/strip.cu",
            "blocks one input wide and over one output high (strips) whose panels' buckets fit in shared memory",
            ("float16", "float32"),
            "sm_75",
            lambda spec: spec.block[0] > 1 and spec.block[1] == 1,
            parameters={"PIECES": 16, "PARTS": 16, "STEPS": 4, "TILE_COLS": 8},
            narrow={1: {"TILE_COLS": 1}, 4: {"TILE_COLS": 4}},
            tiles=_tiles_of_pieces,
            block=lambda v: (v["PIECES"] * v["PARTS"],),
            static=_strip_bytes,
            slices=True,
            depth=_strip_depth,
        ),
    )
}


# ---- tensor cores


def _strips_of_slabs(spec: HashSpec) -> bool:
    return spec.block[1] == 1 and spec.block[0] % 16 == 0 and spec.unit % 8 == 0


def _panel_side(spec: HashSpec, axis: int) -> int:
    return min((spec.panel or spec.shape)[axis], spec.shape[axis])


def _tiles_in_panels_of_x(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    width = _panel_side(spec, 1)
    return _ceil(spec.cols, width) * _ceil(width, v["TILE_ROWS"]) * _ceil(n, v["TILE_COLS"])


def _spans_in_panels(spec: HashSpec, n: int, v: Values, itemsize: int) -> int:
    height, width = _panel_side(spec, 0), _panel_side(spec, 1)
    down = _ceil(spec.rows, height) * _ceil(height, v["TILE_ROWS"])
    return down * _ceil(spec.cols, width) * _ceil(width, v["TILE_COLS"] * v["SPAN"])


def _groups_of_tile(v: Values) -> tuple[int, ...]:
    return (128 * (v["TILE_ROWS"] // v["GROUP_ROWS"]) * (v["TILE_COLS"] // v["GROUP_COLS"]),)


def _warps_of_tile(v: Values) -> tuple[int, ...]:
    return (32 * (v["TILE_ROWS"] // v["WARP_ROWS"]) * (v["TILE_COLS"] // v["WARP_COLS"]),)


def _lines_bytes(v: Values, side: str) -> int:
    """Of a tile of the dense operand in the order that takes more."""
    return 2 * max(v["DEPTH"] * (v[side] + 8), v[side] * (v["DEPTH"] + 8))


_DEPTH = 64  # of a stage of tensor.cuh


def _stage_bytes(v: Values) -> int:
    return 2 * _DEPTH * max(v["TILE_COLS"], 64) + v["TILE_ROWS"] // 16 * (2 * _DEPTH + 2 * 4)


def _pair_bytes(v: Values) -> int:
    return _lines_bytes(v, "TILE_ROWS") + _lines_bytes(v, "TILE_COLS")


def _slices_bytes(axis: int) -> Callable[[HashSpec, Values], int]:
    """Of the slices that are kept while panels follow each other along ``axis``: Slices of tensor.cuh."""

    def kept(spec: HashSpec, v: Values) -> int:
        side = _panel_side(spec, axis)
        buffers = min(1 + _ceil(v["STAGES"] - 1, _ceil(side, _DEPTH)), _ceil(spec.shape[axis], side))
        return 16 * v["COPIES"] * buffers * (max(g.panel_buckets for g in spec.regions) // 8 + 2)

    return kept


def _sums_bytes(spec: HashSpec, v: Values) -> int:
    return 4 * max(g.panel_buckets for g in spec.regions) + 4 * v["TILE_ROWS"] // 16 * v["TILE_COLS"]


_TENSOR = {"TILE_ROWS": 128, "TILE_COLS": 256, "GROUP_ROWS": 64, "GROUP_COLS": 256, "STAGES": 3, "COPIES": 8}
_OUTER = {"TILE_ROWS": 128, "TILE_COLS": 128, "DEPTH": 32, "STAGES": 4, "WARP_ROWS": 64, "WARP_COLS": 32, "SPAN": 4}
_TENSOR_NARROW = {
    64: {"TILE_ROWS": 64, "TILE_COLS": 64, "GROUP_COLS": 32},
    128: {"TILE_COLS": 64, "GROUP_COLS": 64},
}
CUDA |= {
    name: TensorKernel(
        name,
        (operation,),
        f"kernels/{name}.cu",
        "strips, blocks (h, 1), with h a multiple of 16 and a stride (h if none is given) of a multiple of 8, whose "
        "panels' buckets fit in shared memory",
        ("float16",),
        "sm_80",
        _strips_of_slabs,
        parameters=parameters,
        narrow=narrow,
        tiles=tiles,
        block=block,
        stage=stage,
        kept=kept,
        deterministic=None if name == "tensor_grad_w" else 1,  # which adds up by atomics of floats
    )
    for name, operation, parameters, narrow, tiles, block, stage, kept in (
        (
            "tensor",
            "matmul",
            _TENSOR,
            _TENSOR_NARROW,
            _tiles_in_panels,
            _groups_of_tile,
            _stage_bytes,
            _slices_bytes(1),
        ),
        (
            "tensor_grad_x",
            "grad_x",
            _TENSOR,
            _TENSOR_NARROW,
            _tiles_in_panels_of_x,
            _groups_of_tile,
            _stage_bytes,
            _slices_bytes(0),
        ),
        ("tensor_grad_w", "grad_w", _OUTER, {}, _spans_in_panels, _warps_of_tile, _pair_bytes, _sums_bytes),
    )  # fmt: skip
}

# The kernels of a training step beside the products (hashedmm.graph): no products themselves, so that ``kernel=`` does
# not take them. They have no spec and no WEIGHT.
_STEP_ROWS = (
    ("step_gather", {"TILE": 32, "DOWN": 8}, lambda v: (v["TILE"], v["DOWN"]),
     lambda v: 4 * v["TILE"] * (v["TILE"] + 1)),
    ("step_activate", {"THREADS": 256}, _threads, None),
    ("step_softmax", {"SAMPLES": 64, "PARTS": 16}, lambda v: (v["SAMPLES"] * v["PARTS"],),
     lambda v: 12 * v["SAMPLES"] * v["PARTS"]),
    ("step_activate_grad", {"THREADS": 256}, _threads, None),
    ("step_adam", {"THREADS": 256}, _threads, None),
    ("step_sgd", {"THREADS": 256}, _threads, None),
    # of many networks in lock-step (hashedmm.batched)
    ("batch_gather", {"THREADS": 128}, _threads, None),
    ("batch_weights", {"TILE": 32, "DOWN": 8}, lambda v: (v["TILE"], v["DOWN"]),
     lambda v: 8 * v["TILE"] * (v["TILE"] + 1)),
    ("batch_scatter", {"TILE": 32, "DOWN": 8}, lambda v: (v["TILE"], v["DOWN"]),
     lambda v: 8 * v["TILE"] * (v["TILE"] + 1)),
    ("batch_activate", {"THREADS": 256}, _threads, None),
    ("batch_activate_grad", {"ACROSS": 32, "DOWN": 8}, lambda v: (v["ACROSS"], v["DOWN"]),
     lambda v: 4 * v["ACROSS"] * v["DOWN"]),
    ("batch_softmax", {"THREADS": 128}, _threads, lambda v: 8 * v["THREADS"]),
    ("batch_adam", {"THREADS": 256}, _threads, None),
    ("batch_total", {"THREADS": 256}, _threads, lambda v: 4 * v["THREADS"]),
    ("batch_quantise", {"THREADS": 256}, _threads, lambda v: 4 * v["THREADS"]),
)  # fmt: skip
STEP: dict[str, CudaKernel] = {
    name: CudaKernel(
        name,
        ("step",),
        f"kernels/{name}.cu",
        "any",
        ("float32",),
        "sm_75",
        parameters=parameters,
        block=block,
        static=static or (lambda _: 0),
    )
    for name, parameters, block, static in _STEP_ROWS
}

# The parts of the sketch schedule (hashedmm.sketch): none computes a product alone, so that ``kernel=`` takes "sketch",
# which stands for all of them. Their shapes are worked out there.
_PRODUCT = {"TILE_M": 128, "TILE_N": 128, "TILE_K": 16, "WARPS_M": 2, "WARPS_N": 4, "STAGES": 3}
_SKETCH_ROWS = (
    ("sketch_few", {"WARPS": 16, "TILE_COLS": 8}, ("float16", "float32")),
    ("sketch_lists", {"THREADS": 128}, ("float32",)),
    ("sketch_sum", {"WARPS": 8}, ("float32",)),
    ("sketch_multiply", _PRODUCT, ("float32",)),
    ("sketch_project", _PRODUCT, ("float32",)),
    ("sketch_spread", {"WARPS": 8, "INPUTS": 224, "STRIPS": 4}, ("float16", "float32")),
    ("sketch_outer", _PRODUCT, ("float32",)),
    ("sketch_fold", {"THREADS": 256}, ("float32",)),
    ("sketch_groups", {"THREADS": 128}, ("float16",)),
    ("sketch_sum_mma", {"WARPS": 8, "RESIDENT": 3}, ("float16",)),
    ("sketch_multiply_mma", {"UNITS": 2, "GROUPS": 2, "TILE_N": 128, "TILE_K": 64, "STAGES": 3}, ("float16",)),
    ("sketch_fused_mma", {"UNITS": 4, "GROUPS": 2, "TILE_K": 64, "STAGES": 3}, ("float16",)),
    ("sketch_project_mma", {"UNITS": 2, "GROUPS": 2, "TILE_N": 256}, ("float16",)),
    ("sketch_back_mma", {"THREADS": 512, "UNITS": 4, "INPUTS": 416}, ("float16",)),
    ("sketch_outer_mma", {"UNITS": 2, "GROUPS": 2, "TILE_N": 256, "STAGES": 3}, ("float16",)),
)  # fmt: skip
_SKETCH_NARROW = {"sketch_few": {n: {"TILE_COLS": n} for n in (1, 2, 4)}}
SKETCH: dict[str, CudaKernel] = {
    name: CudaKernel(
        name,
        ("sketch",),
        f"kernels/{name}.cu",
        "strips",
        dtypes,
        "sm_80",
        lambda spec: spec.block[0] > 1 and spec.block[1] == 1,
        parameters=parameters,
        narrow=_SKETCH_NARROW.get(name, {}),
        block=lambda v: (
            v.get("THREADS") or 32 * (v.get("WARPS") or 4 * v.get("GROUPS", 0) or v["WARPS_M"] * v["WARPS_N"]),
        ),
    )
    for name, parameters, dtypes in _SKETCH_ROWS
}
BUILT = {**CUDA, **STEP, **SKETCH}  # every .cu of this folder
