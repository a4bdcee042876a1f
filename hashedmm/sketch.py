"""The sketch schedule on a GPU or in the emulator: sum first, multiply after.

The rows of one strip I are W_I = C_I S_I: a codebook of a few candidates times a signed selection of one candidate for
every input. (S_I x is feature hashing of x: Weinberger et al. 2009.) So

    y_I = C_I z_I  with  z_I = S_I x         gx = sum over I of S_I^T (C_I^T gy_I)         grad C_I = gy_I z_I^T

Each is two kernels (hashedmm/kernels/sketch_*.cu) with z or u between them, the *workspace*; the first two may be one
kernel each, without it. Columns go in chunks, so that the workspace stays small whatever n is. float16 takes tensor
cores (sketch_*_mma.cu), float32 ordinary arithmetic. The lists that a sum walks are derived from the hash on the
device, kept for the specs in use, counted by `lists_bytes`, and never saved. Nothing here ever makes W. Imports
kernels, build and launch; hashedmm.matmul checks arguments and calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from hashedmm import build
from hashedmm.hashing import HashSpec, Window
from hashedmm.kernels import C_TYPES, EMULATED_SHARED, SKETCH, STATIC_SHARED, layout, structure
from hashedmm.launch import Copy, Launch, Plan, derived, device, empty, kept, on_gpu, zeros

GROUP = 4  # float32: entries that a list is filled up to a multiple of; sketch.cuh has the same
MAX_WIDTH = {"float16": 2**11 - 16, "float32": 2**14 - 1}  # inputs of a panel that an entry's bits can name
MAX_GROUPS = 2**16 - 1  # places in a list are 16 bits
ROW = 128  # bytes of a row of samples in shared memory
ALIGN = 8  # columns are padded to a multiple of this
WORKSPACE = 96 * 2**20  # bytes of z or u at once
FEW = 8  # columns up to which y = W x takes one launch
SHARERS = 64  # most threads of a block that share outputs then; sketch_few.cu has the same
MULTIPROCESSORS = 132  # of the GPU that the emulator stands for


class Geometry(NamedTuple):
    """Sizes that follow from a spec.

    Attributes
    ----------
    strips : how many there are
    across : panels from left to right
    width : inputs of the widest panel
    bins : most bins of a panel
    all_bins : most bins of a strip, over all panels
    height : outputs of a strip
    buckets : of the largest panel
    """

    strips: int
    across: int
    width: int
    bins: int
    all_bins: int
    height: int
    buckets: int

    @property
    def groups(self) -> int:
        """Of 16 bins, most a panel."""
        return -(-self.bins // 16)


@lru_cache(maxsize=512)
def geometry(spec: HashSpec) -> Geometry:
    """The sizes of a spec of strips."""
    height = min(spec.block[0], spec.rows)
    width = min(spec.panel[1] if spec.panel else spec.cols, spec.cols)
    sums: dict[int, int] = {}
    for g in spec.regions:
        sums[g.row] = sums.get(g.row, 0) + g.grid_cols * g.candidates
    bins, buckets = max(g.candidates for g in spec.regions), max(g.panel_buckets for g in spec.regions)
    return Geometry(-(-spec.rows // height), -(-spec.cols // width), width, bins, max(sums.values()), height, buckets)


def chunk_columns(spec: HashSpec, n: int, dtype: str) -> int:
    """How many of ``n`` columns, in whole eights, go at once, so that z or u stays near ``WORKSPACE``.

    A window takes as many as the whole matrix would: a gradient of the buckets adds chunk to chunk, so that its bits
    depend on where they end.
    """
    g = geometry(spec.whole if isinstance(spec, Window) and spec.whole is not None else spec)
    most = WORKSPACE // (g.strips * g.all_bins * np.dtype(dtype).itemsize) // ROW * ROW
    return min(-(-n // ALIGN) * ALIGN, max(2 * ROW, most))


def workspace_bytes(spec: HashSpec, n: int, dtype: str) -> int:
    """Bytes of z, or of u, for a chunk of ``n`` columns."""
    g = geometry(spec)
    return g.strips * g.all_bins * -(-chunk_columns(spec, n, dtype) // 32) * 32 * np.dtype(dtype).itemsize


def why_not(spec: HashSpec, dtype: str, shared_limit: int) -> str | None:
    """What keeps the sketch kernels from computing ``spec``, as the end of a sentence; None if nothing does."""
    if spec.block[1] != 1 or min(spec.block[0], spec.rows) < 2:
        return f"strips (blocks one input wide and over one output high), and the block is {spec.block}"
    g, vector = geometry(spec), 16 // np.dtype(dtype).itemsize
    if g.height % vector or spec.unit % vector:
        return (
            f"strips whose height and stride are multiples of {vector} ({dtype}: 16 bytes), and they are {g.height} "
            f"and {spec.unit}"
        )
    if g.width > (most := min(MAX_WIDTH[dtype], shared_limit // ROW - 16)):
        return f"panels of at most {most} inputs (128 bytes each of shared memory), and this one has {g.width}"
    if g.bins > (most := min(shared_limit // (2 * ROW), MAX_GROUPS // 2)):
        return f"strips of at most {most} candidates a panel, and these have {g.bins}"
    if spec.n_buckets // -(-spec.rows // (spec.panel or spec.shape)[0]) >= 2**31:
        return "rows of panels that own less than 2^31 buckets"
    if dtype == "float32":
        if g.all_bins > (most := (shared_limit - 72 * 1024) // 4):
            return f"strips of at most {most} candidates in all panels together, and these have {g.all_bins}"
    elif None in (_project_tile(spec, 1, shared_limit, 1), _multiply_tile(spec, 1, shared_limit, 1)):
        return f"panels whose buckets fit in shared memory beside the tiles, and these own {g.buckets} each"
    return None


def lists_bytes(spec: HashSpec, dtype: str, where: build.Device) -> int:
    """Memory of the lists that a device keeps, now, beside the buckets of a spec in use: those that kernels for
    ``dtype`` read. For float16 that may be both kinds: products with few columns take float32's."""
    of_spec = derived(spec, where)
    made = of_spec.made if of_spec else {}
    kinds = [("lists", kind) for kind in {"float32", dtype}]
    return sum(int(a.nbytes) for kind in kinds for a in made.get(kind, ()))


@kept
def lists(spec: HashSpec, dtype: str, where: build.Device) -> tuple[Any, Any]:
    """(starts, entries) of a spec, made on a device at the first call and kept: float32 as sketch.cuh says, float16 as
    sketch_groups.cu does."""
    g = geometry(spec)
    if where == "emulator":
        xp: Any = np
    else:
        import cupy

        xp = cupy
    with build.on_device(where):
        if dtype == "float32":
            capacity = GROUP * (g.width // GROUP + g.bins + 2)  # as long as they can be; one group more may be read
            starts = xp.zeros((g.strips, g.across, g.bins + 1), np.uint16)
            entries = xp.zeros((g.strips, g.across, capacity), np.uint16)
            _derive("sketch_lists", spec, where, starts, entries, g.bins)
            return starts, entries
        starts = xp.zeros((g.strips, g.across, g.groups + 1), np.uint16)
        _derive("sketch_groups", spec, where, starts, None, g.groups)  # how long they are
        entries = xp.zeros((g.strips, g.across, 16 * int(starts.max())), np.uint16)  # waits for the device, this once
        _derive("sketch_groups", spec, where, starts, entries, g.groups)
    return starts, entries


def _derive(name: str, spec: HashSpec, where: build.Device, starts: Any, entries: Any, bins: int) -> None:
    g, values = geometry(spec), SKETCH[name].parameters
    built = _built(name, values, spec, SKETCH[name].dtypes[0], where, 4 * g.width)
    args = (layout(spec), starts, entries, np.int32(bins), np.int32(0 if entries is None else entries.shape[2]))
    built((g.strips * g.across,), (values["THREADS"],), args, shared_mem=4 * g.width)


Parameters = Mapping[str, Mapping[str, int]]  # kernel's name -> tile sizes that replace those chosen


def plan_matmul(
    w: Any, x: Any, y: Any, spec: HashSpec, parameters: Parameters | None = None, *, keep: bool = False
) -> Plan:
    """The launches that write y = W x; see `hashedmm.matmul.plan_matmul`.

    Where y = C S x is one launch, z is kept, and memory taken for it, only if ``keep``; where it is two, z is there
    anyhow. What needs more than one workspace is not kept.

    Up to ``FEW`` columns it is one launch and keeps nothing, unless ``parameters`` are given for other kernels alone.
    """
    asked = not parameters or "sketch_few" in parameters
    if asked and takes_few("matmul", spec, x.shape[1], str(x.dtype), build.shared_limit(device(x))):
        return plan_few(w, x, y, spec, (parameters or {}).get("sketch_few"))
    work = _Work(spec, x, parameters)
    w, x, y, after = work.vector(w), work.taken(x), *work.given(y)
    if work.fused_tile:
        keep = keep and len(work.chunks()) == 1
        work.fused(w, x, y, work.bins if keep else None)
        return work.plan(after, work.bins if keep else None)
    for first, n in work.chunks():
        work.sum(x, first, n)
        work.multiply(w, y, first, n)
    return work.plan(after, work.bins if len(work.chunks()) == 1 else None)


def plan_grad_x(w: Any, gy: Any, gx: Any, spec: HashSpec, parameters: Parameters | None = None) -> Plan:
    """The launches that write W^T gy; see `hashedmm.matmul.plan_grad_x`."""
    work = _Work(spec, gy, parameters)
    w, gy, gx, after = work.vector(w), work.taken(gy), *work.given(gx)
    if work.back_tile:
        work.back(w, gy, gx)
        return work.plan(after)
    for first, n in work.chunks():
        work.project(w, gy, first, n)
        work.spread(gx, first, n)
    return work.plan(after)


def plan_grad_w(
    x: Any, gy: Any, gw: Any, spec: HashSpec, parameters: Parameters | None = None, *, z: Any = None, room: Any = None
) -> Plan:
    """The launches that add the buckets' gradients to gw, always the same bits; see `hashedmm.matmul.plan_grad_w`.

    ``z`` is what a plan of `plan_matmul` for the same x has kept: then x is not summed again. ``room`` is a `workspace`
    to use.
    """
    work = _Work(spec, x, parameters, room if z is None else z)
    x, gy = x if z is not None else work.taken(x), work.taken(gy)
    for first, n in work.chunks():
        if z is None:
            work.sum(x, first, n)
        work.outer(gy, gw, first, n)
    return work.plan([])


def workspace(like: Any, spec: HashSpec) -> Any:
    """Memory for z or u of a chunk of columns, for arrays like ``like``."""
    return _Work(spec, like, None).bins


# ---- few columns: one launch


class Few(NamedTuple):
    """How sketch_few is launched; see there."""

    rows: int
    parts: int
    many: int
    shift: int
    blocks: int
    bytes: int


def why_few_not(spec: HashSpec, dtype: str, shared_limit: int) -> str | None:
    """What keeps sketch_few from computing ``spec``, as the end of a sentence; None if nothing does."""
    if spec.block[1] != 1 or min(spec.block[0], spec.rows) < 2:
        return f"strips (blocks one input wide and over one output high), and the block is {spec.block}"
    g = geometry(spec)
    if g.width > (most := min(MAX_WIDTH["float32"], shared_limit // 4)):
        return f"panels of at most {most} inputs, and this one has {g.width}"
    if g.width // GROUP + g.bins > MAX_GROUPS:
        return f"lists of at most {MAX_GROUPS} groups, and these may have {g.width // GROUP + g.bins}"
    values = SKETCH["sketch_few"].values(FEW)
    needed = min(_few_bytes(spec, dtype, values, rows, 1) for rows in _few_rows(spec, dtype, values))
    if needed > shared_limit:
        return f"panels that fit in {shared_limit} bytes of shared memory, and this one would take {needed}"
    return None


def takes_few(operation: str, spec: HashSpec, n: int, dtype: str, shared_limit: int) -> bool:
    """Whether a product is one launch of sketch_few."""
    return operation == "matmul" and n <= FEW and why_few_not(spec, dtype, shared_limit) is None


def takes_fused(operation: str, spec: HashSpec, n: int, dtype: str, where: build.Device) -> bool:
    """Whether y = W x is one launch of sketch_fused_mma, or gx = W^T gy one of sketch_back_mma, by what an H100 was
    seen to do. Both are made for wgmma and for warpgroups that take registers from others. The emulator takes them if
    asked.
    """
    if not build.has_wgmma(where):
        return False
    if operation == "grad_x":
        return back_is_faster(spec, n, dtype)
    return operation == "matmul" and fused_is_faster(spec, n, dtype, multiprocessors(where))


def fused_is_faster(spec: HashSpec, n: int, dtype: str, processors: int) -> bool:
    """`takes_fused` for y = W x on a Hopper GPU of so many multiprocessors (an H100: ``MULTIPROCESSORS``).

    It wants enough blocks, and overlapping windows: where each bucket is in one window, slices of w fill the shared
    memory. Panels of up to 448 inputs with up to 4096 buckets fit there with their lists, two at a time.
    """
    g = geometry(spec)
    blocks = -(-g.strips // 2) * -(-n // 64)
    fits = 128 < g.height <= 256 and g.bins <= 64 and g.buckets <= 4096 and g.width <= 448
    return dtype == "float16" and fits and 10 * blocks >= 9 * processors


def back_is_faster(spec: HashSpec, n: int, dtype: str) -> bool:
    """`takes_fused` for gx = W^T gy on a Hopper GPU: from 512 columns on, where it fits in an H100's shared memory."""
    fits = geometry(spec).height > 128 and _back_tile(spec, EMULATED_SHARED) is not None
    return dtype == "float16" and fits and n >= 512


def few_workspace(spec: HashSpec, n: int, dtype: str, shared_limit: int, processors: int) -> int:
    """Bytes that a launch of sketch_few takes beside its result, for arrays in C order: where parts of sums meet."""
    shape = _few(spec, dtype, n, (), shared_limit, processors)[1]
    return 0 if shape.parts == 1 else 4 * (shape.parts * spec.rows * n + shape.blocks // shape.parts)


def _few_rows(spec: HashSpec, dtype: str, v: Mapping[str, int]) -> list[int]:
    """Outputs of a tile, to choose from."""
    vector = 16 // np.dtype(dtype).itemsize
    pieces = -(-geometry(spec).height // vector)
    cuts = {-(-pieces // k) for k in (1, 2, 4, 8)}
    return sorted({vector * min(cut, 32 * v["WARPS"]) for cut in cuts})


def _few_bytes(spec: HashSpec, dtype: str, v: Mapping[str, int], rows: int, many: int) -> int:
    """Shared memory of a block of sketch_few."""
    g, size, columns = geometry(spec), np.dtype(dtype).itemsize, v["TILE_COLS"]
    capacity = GROUP * (g.width // GROUP + g.bins + 2)
    each = (size * g.width * columns, 2 * capacity, 4 * columns * g.bins, 4 * g.bins, 2 * g.bins + 2, size * g.buckets)
    panels = sum(-(-many * count // 16) * 16 for count in each)
    vector, threads = 16 // size, 32 * v["WARPS"]
    sharers = min(threads // (rows // vector), SHARERS)
    return max(panels, 4 * (sharers * vector * (rows // vector * min(columns, 4) + 4) + threads))


@lru_cache(maxsize=512)
def _few(spec: HashSpec, dtype: str, n: int, chosen: tuple, limit: int, processors: int) -> tuple[dict[str, int], Few]:
    """Tile sizes and shape of a launch of sketch_few: those that are expected to be the fastest."""
    values = SKETCH["sketch_few"].values(n, dict(chosen))
    if values["TILE_COLS"] < n:
        raise ValueError(f"TILE_COLS of kernel 'sketch_few' must be at least n = {n}, got {values['TILE_COLS']}")

    def cost(shape: Few) -> tuple[float, Few]:
        return _few_cost(spec, dtype, n, values, shape, limit, processors), shape

    return values, min(few_shapes(spec, dtype, values, limit), key=cost)


def few_shapes(spec: HashSpec, dtype: str, v: Mapping[str, int], limit: int) -> list[Few]:
    """Every launch of sketch_few that ``limit`` bytes of shared memory allow."""
    g, vector, threads = geometry(spec), 16 // np.dtype(dtype).itemsize, 32 * v["WARPS"]
    out = []
    for rows, parts in product(_few_rows(spec, dtype, v), range(1, min(g.across, 32) + 1)):
        panels = -(-g.across // parts)  # of a block
        fitting = (-(-panels // steps) for steps in range(1, panels + 1))
        many = next((m for m in fitting if _few_bytes(spec, dtype, v, rows, m) <= limit), None)
        if many is None:
            continue
        items = many * g.bins * max(1, v["TILE_COLS"] // vector)  # sums for a thread each, if no more share one
        lanes = min(32, max(1, threads // items), max(1, round(g.width / GROUP / g.bins)))
        blocks = g.strips * -(-g.height // rows) * parts
        out.append(Few(rows, parts, many, lanes.bit_length() - 1, blocks, _few_bytes(spec, dtype, v, rows, many)))
    return out


def _few_cost(
    spec: HashSpec, dtype: str, n: int, v: Mapping[str, int], shape: Few, limit: int, processors: int
) -> float:  # fmt: skip
    """About the nanoseconds that a launch takes on an H100, beyond what all shapes do."""
    g, size, columns, threads = geometry(spec), np.dtype(dtype).itemsize, v["TILE_COLS"], 32 * v["WARPS"]
    resident = max(1, min((1024 if columns == 1 else 512) // threads, limit // (shape.bytes + 1024)))
    waves = -(-shape.blocks // (processors * resident))
    together = min(resident, -(-shape.blocks // processors))  # blocks that share a multiprocessor
    panels = -(-g.across // shape.parts)
    steps = -(-panels // shape.many)
    copied = panels * (size * (g.width * columns + g.buckets) + 2 * (g.width + 4 * g.bins))
    gathered = panels * (g.width + 2 * g.bins) * size * columns * 2.5  # bank conflicts
    products = panels * g.bins * shape.rows * columns
    one = copied / 60 + (gathered + 1.5 * products) / 220
    meeting = 0 if shape.parts == 1 else 2000 + 700 * -(-shape.rows * n // threads)
    return waves * (1000 * steps + together * one) + meeting


def plan_few(w: Any, x: Any, y: Any, spec: HashSpec, chosen: Mapping[str, int] | None = None) -> Plan:
    """The one launch that writes y = W x for up to ``FEW`` columns. No alignment is asked for; what is in neither order
    is copied each time the plan runs."""
    n, dtype, where = x.shape[1], str(x.dtype), device(x)
    steps: list[Launch | Copy] = []
    values, shape = _few(
        spec, dtype, n, tuple(sorted((chosen or {}).items())), build.shared_limit(where), multiprocessors(where)
    )
    if not w.flags.c_contiguous:
        own = empty(w, w.shape, w.dtype)
        steps.append(Copy(own, w))
        w = own
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        own = empty(x, x.shape, x.dtype)
        steps.append(Copy(own, x))
        x = own
    down, across = (n, 1) if x.flags.c_contiguous else (1, spec.cols)
    to = y if y.flags.c_contiguous else empty(y, y.shape, y.dtype)
    part = arrived = None
    if shape.parts > 1:
        part = empty(x, (shape.parts, spec.rows, n), np.float32)
        arrived = zeros(x, shape.blocks // shape.parts, np.uint32)
    starts, entries = lists(spec, "float32", where)
    args = (
        layout(spec), w, x, np.int64(down), np.int64(across), starts, entries, np.int32(geometry(spec).bins),
        np.int32(entries.shape[2]), to, np.int32(n), part, arrived, np.int32(shape.rows), np.int32(shape.parts),
        np.int32(shape.many), np.int32(shape.shift),
    )  # fmt: skip
    built = _built("sketch_few", values, spec, dtype, where, shape.bytes)
    steps.append(Launch(built, (shape.blocks,), (32 * values["WARPS"],), args, shape.bytes))
    return Plan((*steps, *([] if to is y else [Copy(y, to)])))


class _Work:
    """A plan in the making: the arrays that kernels can take, the workspace, and the steps so far."""

    def __init__(self, spec: HashSpec, like: Any, parameters: Parameters | None, bins: Any = None) -> None:
        self.spec, self.chosen = spec, parameters or {}
        self.dtype, self.where = str(like.dtype), device(like)
        self.half = self.dtype == "float16"
        self.geometry = geometry(spec)
        self.layout = layout(spec)
        self.limit, self.processors = build.shared_limit(self.where), multiprocessors(self.where)
        self.n = like.shape[1]
        self.padded = -(-self.n // ALIGN) * ALIGN
        self.samples = ROW // like.dtype.itemsize  # columns of a row in shared memory
        self.chunk = chunk_columns(spec, self.n, self.dtype)
        self.like, self.given_bins = like, bins
        self.sums: Any = None  # float32: the windows' gradients
        self.steps: list[Launch | Copy] = []

    def plan(self, after: list[Copy], kept: Any = None) -> Plan:
        return Plan((*self.steps, *after), kept)

    @cached_property
    def bins(self) -> Any:
        """z or u of a chunk"""
        if self.given_bins is not None:
            return self.given_bins
        room = (self.geometry.strips, self.geometry.all_bins, -(-self.chunk // 32) * 32)
        return empty(self.like, room, self.like.dtype)

    @cached_property
    def fused_tile(self) -> dict[str, int] | None:
        """How y = C S x is one launch; None if it is better, or has to be, two. ``parameters`` for the one, or for one
        of the two, decide."""
        if not self.half or (self.chosen and "sketch_fused_mma" not in self.chosen):
            return None
        if not self.chosen and not takes_fused("matmul", self.spec, self.n, self.dtype, self.where):
            return None
        best = _fused_tile(self.spec, self.limit, lists(self.spec, self.dtype, self.where)[1].shape[2])
        if best is None and self.chosen:
            g = self.geometry
            raise ValueError(
                f"kernel 'sketch_fused_mma' takes strips of at most 256 outputs with at most 64 candidates a panel, "
                f"and two panels with their lists in {self.limit} bytes of shared memory; these have {g.height} "
                f"outputs, {g.bins} candidates and {g.width} inputs a panel"
            )
        return best and self.values("sketch_fused_mma", best)

    def chunks(self) -> list[tuple[int, int]]:
        """(first column, columns) of each chunk."""
        return [(s, min(self.chunk, self.padded - s)) for s in range(0, self.padded, self.chunk)]

    # ---- arrays that kernels can take

    def vector(self, w: Any) -> Any:
        """The buckets, from a 16-byte boundary on."""
        return w if w.flags.c_contiguous and _address(w) % 16 == 0 else self._copied(w, w.shape)

    def taken(self, a: Any) -> Any:
        """``a`` in C order, rows of a multiple of 16 bytes: itself, or a copy made each time the plan runs."""
        return a if self._fits(a) else self._copied(a, (a.shape[0], self.padded))

    def given(self, a: Any) -> tuple[Any, list[Copy]]:
        """Where to write ``a``: itself, or an array that is copied to it at the end."""
        if self._fits(a):
            return a, []
        own = empty(a, (a.shape[0], self.padded), a.dtype)
        return own, [Copy(a, own[:, : self.n])]

    def _fits(self, a: Any) -> bool:
        return a.flags.c_contiguous and self.n == self.padded and _address(a) % 16 == 0

    def _copied(self, a: Any, shape: tuple[int, ...]) -> Any:
        own = zeros(a, shape, a.dtype)
        self.steps.append(Copy(own[..., : a.shape[-1]], a))
        return own

    # ---- kernels

    def launch(
        self, name: str, values: Mapping[str, int], grid: int, threads: int, args: tuple, shared: int = 0
    ) -> None:
        """Add a launch of one of the sketch kernels."""
        built = _built(name, values, self.spec, self.dtype, self.where, shared)
        self.steps.append(Launch(built, (grid,), (threads,), (self.layout, *args), shared))

    def values(self, name: str, best: Mapping[str, int] | None) -> dict[str, int]:
        return {**SKETCH[name].parameters, **(best or {}), **self.chosen.get(name, {})}

    def sum(self, x: Any, first: int, n: int) -> None:
        """z = S x"""
        g = self.geometry
        name = "sketch_sum_mma" if self.half else "sketch_sum"
        shared = ROW * (-(-g.width // 8) * 8 + 8 if self.half else g.width + 1)
        blocks_each = 4 if 4 * shared <= self.limit else 2 if 2 * shared <= self.limit else 1  # resident together
        best = {"WARPS": 32 // blocks_each, "RESIDENT": min(3, blocks_each)}
        values = self.values(name, best if self.half else {"WARPS": 16 // blocks_each})
        workers = values["WARPS"] * (1 if self.half else 4)  # each takes a strip
        starts, entries = lists(self.spec, self.dtype, self.where)
        blocks = -(-n // self.samples) * g.across

        def cost(strips: int) -> float:
            """Of the launch, in strips: the busiest multiprocessor's, a tile being worth four; and a block's time. With
            fewer than 16 warps at work on a multiprocessor, each waits for itself."""
            busy = min(workers, strips * (g.groups if self.half else workers)) * blocks_each
            each = (4 + strips) * max(1.0, 16 / busy)
            return -(-blocks * -(-g.strips // strips) // self.processors) * each + 2 * strips

        strips = min((2**k for k in range(g.strips.bit_length() + 1)), key=cost)
        parts = (np.int32(max(1, min(g.groups, workers // strips))),) if self.half else ()
        args = (
            starts, entries, np.int32(g.groups if self.half else g.bins), np.int32(entries.shape[2]), x,
            np.int64(self.padded), np.int64(first), self.bins, np.int32(g.all_bins), np.int32(n), np.int32(strips),
        )  # fmt: skip
        args = (*args, *parts)
        self.launch(name, values, blocks * -(-g.strips // strips), 32 * values["WARPS"], args, shared)

    def spread(self, gx: Any, first: int, n: int) -> None:
        """gx = S^T u"""
        g = self.geometry
        strips = next((s for s in (4, 2) if 2 * s * g.bins * ROW <= self.limit), 1)
        warps, most = (16, 448) if g.width <= 448 else (8, 224)
        step = 4 * warps
        inputs = -(-g.width // -(-g.width // most) // step) * step  # of equal tiles
        values = self.values("sketch_spread", {"WARPS": warps, "INPUTS": inputs, "STRIPS": strips})
        blocks = -(-n // self.samples) * g.across * -(-g.width // values["INPUTS"])
        args = (
            np.int32(g.bins), self.bins, np.int32(g.all_bins), gx, np.int64(self.padded), np.int64(first), np.int32(n),
        )  # fmt: skip
        shared = 2 * values["STRIPS"] * g.bins * ROW
        self.launch("sketch_spread", values, blocks, 32 * values["WARPS"], args, shared)

    def fused(self, w: Any, x: Any, y: Any, z: Any) -> None:
        """y = C S x, and z if there is room given for it"""
        g, v = self.geometry, self.fused_tile or {}
        starts, entries = lists(self.spec, self.dtype, self.where)
        args = (
            starts, entries, np.int32(g.groups), np.int32(entries.shape[2]), w, x, np.int64(self.padded), np.int64(0),
            y, np.int32(self.padded), z, np.int32(g.all_bins), np.int32(_slice_size(self.spec)),
        )  # fmt: skip
        grid = -(-g.strips // v["GROUPS"]) * -(-self.padded // 64)
        shared = _fused_bytes(self.spec, v, entries.shape[2])
        self.launch("sketch_fused_mma", v, grid, 2 * _threads(v), args, shared)

    @cached_property
    def back_tile(self) -> dict[str, int] | None:
        """How gx = S^T C^T gy is one launch, as `fused_tile` is for y."""
        if not self.half or (self.chosen and "sketch_back_mma" not in self.chosen):
            return None
        if not self.chosen and not takes_fused("grad_x", self.spec, self.n, self.dtype, self.where):
            return None
        best = _back_tile(self.spec, self.limit)
        if best is None and self.chosen:
            g = self.geometry
            raise ValueError(
                f"kernel 'sketch_back_mma' takes strips of at most 256 outputs, and panels of at most 448 inputs with "
                f"at most 64 candidates whose buckets fit in {self.limit} bytes of shared memory, four at a time; "
                f"these have {g.height} outputs, {g.width} inputs, {g.bins} candidates and {g.buckets} buckets"
            )
        return best and self.values("sketch_back_mma", best)

    def back(self, w: Any, gy: Any, gx: Any) -> None:
        """gx = S^T C^T gy"""
        v = self.back_tile or {}
        tiles = self.geometry.across * -(-self.padded // 64)
        args = (w, gy, np.int64(self.padded), np.int64(0), gx, np.int32(self.padded), np.int32(_slice_size(self.spec)))
        grid = min(tiles, self.processors)
        self.launch("sketch_back_mma", v, grid, v["THREADS"], args, _back_bytes(self.spec, v))

    def multiply(self, w: Any, y: Any, first: int, n: int) -> None:
        """y = C z"""
        g = self.geometry
        args: tuple[Any, ...] = (
            w,
            self.bins,
            np.int32(g.all_bins),
            y,
            np.int64(self.padded),
            np.int64(first),
            np.int32(n),
        )
        if not self.half:
            self.product("sketch_multiply", g.height, n, args, g.all_bins)
            return
        v = self.values("sketch_multiply_mma", _multiply_tile(self.spec, n, self.limit, self.processors))
        grid = g.strips * -(-g.height // (64 * v["UNITS"] * v["GROUPS"])) * -(-n // v["TILE_N"])
        args += (np.int32(_buffers(self.spec, v)), np.int32(_slice_size(self.spec)))
        self.launch("sketch_multiply_mma", v, grid, _threads(v), args, _multiply_bytes(self.spec, v))

    def project(self, w: Any, gy: Any, first: int, n: int) -> None:
        """u = C^T gy"""
        g = self.geometry
        args: tuple[Any, ...] = (
            w,
            gy,
            np.int64(self.padded),
            np.int64(first),
            self.bins,
            np.int32(g.all_bins),
            np.int32(n),
        )
        if not self.half:
            self.product("sketch_project", g.all_bins, n, args, None)
            return
        v = self.values("sketch_project_mma", _project_tile(self.spec, n, self.limit, self.processors))
        blocks = g.strips * -(-n // v["TILE_N"])
        parts = 1 if 10 * blocks >= 9 * self.processors else min(g.across, -(-2 * self.processors // blocks))
        args += (np.int32(parts), np.int32(_slice_size(self.spec)))
        self.launch("sketch_project_mma", v, blocks * parts, _threads(v), args, _project_bytes(self.spec, v))

    def outer(self, gy: Any, gw: Any, first: int, n: int) -> None:
        """gw += what the windows of G = z gy^T say"""
        g, height = self.geometry, (self.spec.panel or self.spec.shape)[0]
        args: tuple[Any, ...] = (self.bins, np.int32(g.all_bins), gy, np.int64(self.padded), np.int64(first))
        if self.half:
            v = self.values("sketch_outer_mma", _outer_tile(self.spec, self.limit))
            grid = -(-self.spec.rows // height) * g.across
            self.launch("sketch_outer_mma", v, grid, _threads(v), (*args, gw, np.int32(n)), _outer_bytes(v))
            return
        direct = self.spec.unit == g.height and height <= g.height  # every bucket in one window of one strip
        if not direct and self.sums is None:
            self.sums = empty(gw, (g.strips, g.all_bins, g.height), np.float32)
        to = gw if direct else self.sums
        self.product("sketch_outer", g.all_bins, g.height, (*args, to, np.int32(n), np.int32(direct)), 0)
        if not direct:
            threads, buckets = SKETCH["sketch_fold"].parameters["THREADS"], self.spec.n_buckets
            args = (self.sums, np.int32(g.all_bins), gw, np.int64(buckets))
            self.launch("sketch_fold", {"THREADS": threads}, -(-buckets // threads), threads, args)

    def product(self, name: str, m: int, n: int, args: tuple, windows: int | None) -> None:
        """One of the kernels of product.cuh, with results of m x n a strip, that notes where so many windows begin
        (None: those of its tile)."""
        v = self.values(name, _split(_up(m, (32, 64, 128)), _up(n, (32, 64, 128))))
        grid = self.geometry.strips * -(-m // v["TILE_M"]) * -(-n // v["TILE_N"])
        noted = -(-(v["TILE_M"] if windows is None else windows) // 4) * 16
        self.launch(name, v, grid, _threads(v), args, noted + _product_bytes(name, v))


def multiprocessors(where: build.Device) -> int:
    """Of a GPU, or of the one that the emulator stands for."""
    if where == "emulator":
        return MULTIPROCESSORS
    import cupy

    return int(cupy.cuda.Device(where).attributes["MultiProcessorCount"])


# ---- tiles: the largest that leave no multiprocessor without a block, and fit


def _threads(v: Mapping[str, int]) -> int:
    return 128 * v["GROUPS"] if "GROUPS" in v else 32 * v["WARPS_M"] * v["WARPS_N"]


def _split(tile_m: int, tile_n: int) -> dict[str, int]:
    """A tile shared out to up to eight warps: at most 64 x 64 each, at least 16 x 16."""
    m, n = max(1, tile_m // 64), max(1, tile_n // 64)
    while m * n < 8:
        if tile_n // n > 16 and (tile_n // n >= tile_m // m or tile_m // m == 16):
            n *= 2
        elif tile_m // m > 16:
            m *= 2
        else:
            break
    return {"TILE_M": tile_m, "TILE_N": tile_n, "WARPS_M": m, "WARPS_N": n}


def _up(n: int, tiles: tuple[int, ...]) -> int:
    """The first of rising tiles that covers n, or the last."""
    return next((tile for tile in tiles if n <= tile), tiles[-1])


def _in_slice(spec: HashSpec, buckets: int) -> int:
    """in_slice of sketch.cuh"""
    return buckets // 64 * 72 + buckets % 64 if spec.unit % 64 == 0 else buckets


def _slice_size(spec: HashSpec) -> int:
    return -(-_in_slice(spec, geometry(spec).buckets) // 8) * 8 + 8


def _buffers(spec: HashSpec, v: Mapping[str, int]) -> int:
    stages = min(-(-g.candidates // v["TILE_K"]) for g in spec.regions)  # of a panel
    return 1 + -(-(v["STAGES"] - 1) // stages)


def _wide(tile_n: int) -> int:
    """Columns that a tile of warpgroup.cuh takes memory for."""
    return -(-tile_n // 64) * 64


def _multiply_bytes(spec: HashSpec, v: Mapping[str, int]) -> int:
    tiles = v["STAGES"] * v["TILE_K"] * _wide(v["TILE_N"])
    tile_m = 64 * v["UNITS"] * v["GROUPS"]
    return 2 * (tiles + _buffers(spec, v) * _slice_size(spec) + _in_slice(spec, tile_m) + 8)


def _multiply_tile(spec: HashSpec, n: int, limit: int, processors: int) -> dict[str, int] | None:
    g, fitting = geometry(spec), None
    tile_k = _up(g.bins, (16, 32, 64))
    for units, groups, tile_n in ((2, 2, 128), (2, 1, 128), (2, 1, 64), (1, 1, 64), (1, 1, 32)):
        v = {"UNITS": units, "GROUPS": groups, "TILE_N": min(tile_n, _up(n, (32, 64, 128)))}
        v |= {"TILE_K": tile_k, "STAGES": 4}
        if tile_k == 64 and 2 * _multiply_bytes(spec, v) > limit:  # another stage may mean another slice
            v["STAGES"] = 3
        tile_m = 64 * units * groups
        if tile_m > max(64, -(-g.height // 64) * 64) or _multiply_bytes(spec, v) > limit:
            continue
        fitting = v
        if g.strips * -(-g.height // tile_m) * -(-n // v["TILE_N"]) >= processors:
            break
    return fitting


def _fused_bytes(spec: HashSpec, v: Mapping[str, int], capacity: int) -> int:
    g = geometry(spec)
    parts = (v["STAGES"] + 1) * v["GROUPS"] * (_slice_size(spec) + capacity)
    tiles = 2 * v["GROUPS"] * v["TILE_K"] * 64 + v["STAGES"] * (-(-g.width // 8) * 8 + 8) * 64
    return 2 * (tiles + parts + _in_slice(spec, 64 * v["UNITS"]) + 8)


def _fused_tile(spec: HashSpec, limit: int, capacity: int) -> dict[str, int] | None:
    """None if the two halves have to be two kernels."""
    g = geometry(spec)
    if g.height > 256 or g.bins > 64:
        return None
    for stages in (3, 2):
        v = {"UNITS": -(-g.height // 64), "GROUPS": 2, "TILE_K": _up(g.bins, (16, 32, 64)), "STAGES": stages}
        if _fused_bytes(spec, v, capacity) <= limit:
            return v
    return None


def _back_bytes(spec: HashSpec, v: Mapping[str, int]) -> int:
    depth = 64 * v["UNITS"]
    return 2 * (4 * (64 * depth + _slice_size(spec)) + 8 * 64 * 64 + _in_slice(spec, depth) + 8)


def _back_tile(spec: HashSpec, limit: int) -> dict[str, int] | None:
    """None if the two halves have to be two kernels."""
    g = geometry(spec)
    v = {"UNITS": -(-g.height // 64), "INPUTS": -(-g.width // 32) * 32}
    return v if g.height <= 256 and g.bins <= 64 and g.width <= 448 and _back_bytes(spec, v) <= limit else None


def _project_bytes(spec: HashSpec, v: Mapping[str, int]) -> int:
    depth = -(-geometry(spec).height // 64) * 64
    return 2 * (depth * _wide(v["TILE_N"]) + 2 * _slice_size(spec) + _in_slice(spec, depth) + 8)


def _project_tile(spec: HashSpec, n: int, limit: int, processors: int) -> dict[str, int] | None:
    g, fitting = geometry(spec), None
    for groups, tile_n in ((2, 256), (1, 128), (1, 64), (1, 32)):
        v = {"UNITS": 1 if g.bins <= 64 else 2, "GROUPS": groups, "TILE_N": tile_n}
        if (tile_n > 32 and n <= tile_n // 2) or _project_bytes(spec, v) > limit:
            continue
        fitting = v
        if 10 * g.strips * -(-n // tile_n) >= 9 * processors or tile_n <= 64:
            break
    return fitting


def _outer_bytes(v: Mapping[str, int]) -> int:
    tile_m = 64 * v["UNITS"]
    return max(v["STAGES"] * (tile_m + v["TILE_N"]) * 128, tile_m * (v["TILE_N"] + 8) * 4)


def _outer_tile(spec: HashSpec, limit: int) -> dict[str, int]:
    g = geometry(spec)
    for groups, tile_n in ((2, 256), (2, 128), (1, 64), (1, 32)):
        for stages in (4, 3):
            v = {"UNITS": 1 if g.bins <= 64 else 2, "GROUPS": groups, "TILE_N": tile_n, "STAGES": stages}
            if (tile_n == 32 or g.height > tile_n // 2) and _outer_bytes(v) <= limit:
                return v
    return v


def _product_bytes(name: str, v: Mapping[str, int]) -> int:
    """Dynamic shared memory of a kernel of product.cuh: its operands' tiles, or the result's if that is more."""
    by_k = {"sketch_multiply": (True, True), "sketch_project": (False, True), "sketch_outer": (False, False)}[name]
    operands = 0
    for tile, rows_of_k in zip((v["TILE_M"], v["TILE_N"]), by_k, strict=True):
        rows, length = (v["TILE_K"], tile) if rows_of_k else (tile, v["TILE_K"])
        operands += 4 * rows * (length + 4)
    return max(v["STAGES"] * operands, 4 * v["TILE_M"] * (v["TILE_N"] + 4))


# ---- building


def _address(a: Any) -> int:
    return int(a.data.ptr) if on_gpu(a) else int(a.ctypes.data)


@lru_cache(maxsize=512)
def _prepared(name: str, values: tuple, spec: HashSpec, dtype: str, where: build.Device, big: bool) -> Any:
    macros: dict[str, int | str] = {**dict(values), "WEIGHT": C_TYPES[dtype]}
    if where != "emulator":  # there the structure is read from the layout at run time: one build for all specs
        macros |= structure(spec)
    built = build.kernel(name, macros, where)
    if big:
        with build.on_device(where):
            room = build.shared_limit(where) - built.attributes["shared_size_bytes"]
            built.max_dynamic_shared_size_bytes = room
    return built


def _built(name: str, values: Mapping[str, int], spec: HashSpec, dtype: str, where: build.Device, shared: int) -> Any:
    return _prepared(name, tuple(sorted(values.items())), spec, dtype, where, shared > STATIC_SHARED)
