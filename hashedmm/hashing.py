"""Which bucket and which sign every virtual weight has: ``HashSpec``, the hash functions, and statistics on them.

The hash is the model. A ``HashSpec`` is saved with the weights and nothing about speed may change it. Everything here
is exact integer arithmetic: the same spec gives the same indices on every machine. Imports NumPy and nothing of this
package.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np

GOLDEN32 = 0x9E3779B9  # 2^32 / golden ratio: spreads consecutive integers
GOLDEN64 = 0x9E3779B97F4A7C15
COLUMN_STEP = 0x9E3779B1
MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF
MAX_SIDE = 2**31 - 1  # rows, cols
MAX_PANEL_BUCKETS = 2**31  # a 32-bit hash cannot choose among more with little bias
MAX_LISTED = 2**28  # weights that indices() lists

HASHES = ("fmix32", "xxh32", "multiply_shift")


# --------------------------------------------------------------------------------------------------------------------
# Hash functions: on Python integers and, element by element, on arrays of NumPy or CuPy.


def fmix32(h):
    """The finaliser of MurmurHash3: a bijection of 32-bit words in which every input bit flips every output bit.

    Parameters
    ----------
    h : int, or array of uint32 (any shape; NumPy or CuPy)
        Integers are taken modulo 2^32.

    Returns
    -------
    int, or a new uint32 array of the same shape.

    References
    ----------
    A. Appleby, MurmurHash3 (2011), ``fmix32``.
    """
    if isinstance(h, int):
        h &= MASK32
        h ^= h >> 16
        h = h * 0x85EBCA6B & MASK32
        h ^= h >> 13
        h = h * 0xC2B2AE35 & MASK32
        return h ^ h >> 16
    h = h ^ (h >> 16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> 13
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> 16
    return h


def splitmix64(state: int, count: int) -> list[int]:
    """The first ``count`` outputs of the SplitMix64 generator (Steele, Lea and Flood 2014), as 64-bit integers."""
    out = []
    for _ in range(count):
        state = (state + GOLDEN64) & MASK64
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK64
        out.append(z ^ z >> 31)
    return out


def derive_seed(seed: int, layer: int) -> int:
    """The seed of layer ``layer`` (0, 1, ...) of a network with seed ``seed``: layers never share one pattern."""
    seed = _integer("seed", seed, 0, MASK32)
    layer = _integer("layer", layer, 0, MAX_SIDE)
    return fmix32(seed + GOLDEN32 * (layer + 1))


def _as_uint32(a) -> np.ndarray:
    return np.atleast_1d(np.asarray(a, dtype=np.uint32))


def row_key(block_row, seed: int) -> np.ndarray:
    """fmix32(seed ^ fmix32(I + 0x9E3779B9)) for an array of block rows I: what all blocks of one row share."""
    return fmix32(np.uint32(seed) ^ fmix32(_as_uint32(block_row) + np.uint32(GOLDEN32)))


def hash_fmix32(block_row, block_col, seed: int) -> np.ndarray:
    """Hash blocks (I, J): fmix32(row_key(I) ^ (J * 0x9E3779B1)). Arrays broadcast; uint32 comes back."""
    return fmix32(row_key(block_row, seed) ^ (_as_uint32(block_col) * np.uint32(COLUMN_STEP)))


def hash_xxh32(block_row, block_col, seed: int) -> np.ndarray:
    """XXH32 (Y. Collet) of the eight bytes LE32(I) LE32(J). Arrays broadcast; uint32 comes back.

    The HashedNets paper hashes with xxHash; this is the same function for this one length of input.
    """
    p2, p3, p4, p5 = (np.uint32(p) for p in (2246822519, 3266489917, 668265263, 374761393))

    def rotate(h, bits):
        return (h << np.uint32(bits)) | (h >> np.uint32(32 - bits))

    h = _as_uint32(seed) + p5 + np.uint32(8)
    for word in (_as_uint32(block_row), _as_uint32(block_col)):
        h = rotate(h + word * p3, 17) * p4
    h = (h ^ (h >> np.uint32(15))) * p2
    h = (h ^ (h >> np.uint32(13))) * p3
    return h ^ (h >> np.uint32(16))


def multiply_shift_parameters(seed: int) -> tuple[int, int, int]:
    """(a1, a2, b) of the multiply-shift hash: three 64-bit outputs of SplitMix64 from state ``seed``."""
    a1, a2, b = splitmix64(seed, 3)
    return a1, a2, b


def hash_multiply_shift(block_row, block_col, seed: int) -> np.ndarray:
    """((a1 I + a2 J + b) mod 2^64) >> 32. Arrays broadcast; uint32 comes back.

    2-universal over random (a1, a2, b): *any two* blocks collide as seldom as with a perfect hash (Dietzfelbinger
    1996). But one seed is one linear function, and a linear function of (I, J) makes lattice patterns: a teaching
    example of why pairwise guarantees over seeds say little about one drawn matrix. Not meant for use.
    """
    a1, a2, b = (np.uint64(v) for v in multiply_shift_parameters(seed))
    i, j = _as_uint32(block_row).astype(np.uint64), _as_uint32(block_col).astype(np.uint64)
    return ((a1 * i + a2 * j + b) >> np.uint64(32)).astype(np.uint32)


_HASH_FUNCTIONS = {"fmix32": hash_fmix32, "xxh32": hash_xxh32, "multiply_shift": hash_multiply_shift}


# --------------------------------------------------------------------------------------------------------------------
# Checks of arguments


def _integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got the bool {value!r}")
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}") from None
    if value < low or (high is not None and value > high):
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name} must be {limits}, got {value}")
    return value


def _pair(name: str, value: Any, parts: tuple[str, str], high: int | None = None) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair ({parts[0]}, {parts[1]}), got {value!r}")
    first, second = (_integer(f"{name}'s {part}", v, 1, high) for part, v in zip(parts, value, strict=True))
    return first, second


def _compression(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"compression must be a number (stored / virtual weights), got {value!r}")
    value = float(value)
    if not 0 < value <= 1:
        raise ValueError(f"compression is stored / virtual weights and must be in (0, 1], got {value!r}; try 1/8")
    return value


def _fit_stride(stride: Any, block_size: int) -> int | None:
    return None if stride is None else min(_integer("stride", stride, 1), block_size)


def share(n: int, most: int) -> int:
    """The size of equal parts of ``n`` of at most about ``most`` each, so that the last part is not a sliver.

    ``n`` if it fits, else ceil(n / ceil(n / most)), rounded up to a multiple of 16 where ``most`` is one.
    """
    if n <= most:
        return n
    part = -(-n // -(-n // most))
    return -(-part // 16) * 16 if most % 16 == 0 else part


# --------------------------------------------------------------------------------------------------------------------
# The spec


@dataclass(frozen=True)
class Region:
    """A grid of panels of equal true size: what one launch or one loop handles. A matrix has at most four of them
    (inner panels, right edge, bottom edge, corner).

    Panel (r, c) of the grid holds the weights from row ``row + r * panel_rows`` and column ``col + c * panel_cols`` and
    owns the buckets [b, b + panel_buckets) with b = ``base + r * base_step + c * panel_buckets``.
    """

    row: int
    col: int
    grid_rows: int
    grid_cols: int
    panel_rows: int
    panel_cols: int
    base: int
    base_step: int
    panel_buckets: int
    candidates: int

    @property
    def rows(self) -> int:
        """Matrix rows that the region covers."""
        return self.grid_rows * self.panel_rows

    @property
    def cols(self) -> int:
        """Matrix columns that the region covers."""
        return self.grid_cols * self.panel_cols


@dataclass(frozen=True)
class HashSpec:
    """The bucket and the sign of every weight of a virtual ``rows x cols`` matrix. Immutable, checked when made.

    Blocks of ``bh x bw`` virtual weights share one hash value; panels of ``ph x pw`` weights own their buckets alone.
    Prefer the named constructors (`elementwise`, `panels`, `strips`, `runs`, `tiles`, `codebook`): they fit block and
    panel to the matrix. This constructor fits nothing.

    Parameters
    ----------
    shape : (rows, cols)
        Outputs and inputs of the layer; 1 to 2^31 - 1 each.
    compression : float in (0, 1]
        Stored / virtual weights that is aimed at; `n_buckets` says what came out.
    block : (bh, bw)
        Weights that share a hash. Inside a block buckets run down the columns.
    panel : (ph, pw) or None
        Multiples of the block. None: one panel covers everything.
    stride : int or None
        Distance between candidate offsets, 1 to bh*bw. None: bh*bw, so that candidates do not overlap.
    seed : int
        0 to 2^32 - 1.
    hash : "fmix32", "xxh32" or "multiply_shift"

    Raises
    ------
    TypeError
        If a value has the wrong type (a bool is not an integer).
    ValueError
        If a value is out of range, a panel is no multiple of the block, a panel would own more than 2^31 buckets, or
        the least number of buckets that the panels need is over twice what the compression allows.
    """

    shape: tuple[int, int]
    compression: float
    block: tuple[int, int] = (1, 1)
    panel: tuple[int, int] | None = None
    stride: int | None = None
    seed: int = 0
    hash: str = "fmix32"

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("shape", _pair("shape", self.shape, ("rows", "cols"), MAX_SIDE))
        put("compression", _compression(self.compression))
        put("block", _pair("block", self.block, ("height", "width")))
        if self.panel is not None:
            put("panel", _pair("panel", self.panel, ("height", "width")))
            for side, p, b in zip(("height", "width"), self.panel, self.block, strict=True):
                if p % b:
                    raise ValueError(
                        f"the panel's {side} must be a multiple of the block's, got panel {self.panel} and block "
                        f"{self.block}; {-(-p // b) * b} would do"
                    )
        if self.stride is not None:
            put("stride", _integer("stride", self.stride, 1, self.block_size))
        put("seed", _integer("seed", self.seed, 0, MASK32))
        if not isinstance(self.hash, str):
            raise TypeError(f"hash must be one of {', '.join(HASHES)}, got {self.hash!r}")
        if self.hash not in HASHES:
            raise ValueError(f"hash must be one of {', '.join(HASHES)}, got {self.hash!r}")
        self._check_layout()

    def _check_layout(self) -> None:
        for region in self.regions:
            if region.panel_buckets > MAX_PANEL_BUCKETS:
                raise ValueError(
                    f"a panel of {region.panel_rows} x {region.panel_cols} weights would own {region.panel_buckets} "
                    f"buckets, more than the {MAX_PANEL_BUCKETS} that a 32-bit hash reaches; use panels (smaller "
                    "ones), for example panel=(128, 1024)"
                )
        asked = max(1, round(self.rows * self.cols * self.compression))
        if self.n_buckets > 2 * asked:
            panel = "None (one panel)" if self.panel is None else str(self.panel)
            least = self.unit * -(-self.block_size // self.unit)
            fits = self.n_panels * least / (2 * self.rows * self.cols)
            area = math.ceil(least / (2 * self.compression))
            advice = f"a compression of {fits:.3g} or more, " if fits <= 1 else ""
            raise ValueError(
                f"block {self.block} and panel {panel} need {self.n_buckets} buckets for a {self.rows} x {self.cols} "
                f"matrix, over twice the {asked} that compression {self.compression:.6g} allows: each of the "
                f"{self.n_panels} panels owns at least one block's worth, {least}. What would fit: {advice}"
                f"smaller blocks, or panels of {area} weights or more"
            )

    # ---- named constructors: each one idea with a source

    @classmethod
    def elementwise(cls, shape, compression, *, seed: int = 0, hash: str = "fmix32") -> HashSpec:
        """Every weight hashed by itself into all buckets: HashedNets (Chen, Wilson, Tyree, Weinberger, Chen 2015)."""
        return cls(shape, compression, seed=seed, hash=hash)

    @classmethod
    def panels(cls, shape, compression, panel=(128, 1024), *, seed: int = 0, hash: str = "fmix32") -> HashSpec:
        """Elementwise inside panels that own their buckets: a predictable split that makes the work independent."""
        rows, cols = _pair("shape", shape, ("rows", "cols"), MAX_SIDE)
        ph, pw = _pair("panel", panel, ("height", "width"))
        return cls((rows, cols), compression, panel=(share(rows, ph), share(cols, pw)), seed=seed, hash=hash)

    @classmethod
    def strips(
        cls, shape, compression, height: int = 128, panel=(128, 1024), stride: int | None = None, *,
        seed: int = 0, hash: str = "fmix32",
    ) -> HashSpec:  # fmt: skip
        """One hash for a run of ``height`` outputs of one input, inside panels.

        A strip of rows is then a small codebook times a signed selection, W_I = C_I S_I, so that a product may sum
        inputs first and multiply after (see `hashedmm.cpu`, `hashedmm.sketch`): less arithmetic than the dense layer
        it stands for.

        What to choose (notebook 11; data/results/strips_accuracy.json and gpu_layer.json). A strip sees its inputs only
        through its sums, one a candidate. At 1/8 a panel has plenty of them. At 1/64 the defaults leave 12 for 784
        inputs, too few: give a ``stride`` of 16 to 24, which makes more candidates of the same buckets. More sums are
        more accurate, and cost more. The benchmark of GPUs takes height 256: at 1/64 panels (256, 416) and stride 24,
        at 1/8 panels (256, 512) and no stride. ``kernel="sketch"`` needs height and stride to be multiples of 8 in
        float16, of 4 in float32.
        """
        rows, cols = _pair("shape", shape, ("rows", "cols"), MAX_SIDE)
        height = _integer("height", height, 1)
        ph, pw = _pair("panel", panel, ("height", "width"))
        bh = share(rows, height)
        fitted = (bh * max(1, share(rows, ph) // bh), share(cols, pw))
        return cls((rows, cols), compression, (bh, 1), fitted, _fit_stride(stride, bh), seed, hash)

    @classmethod
    def runs(cls, shape, compression, length: int = 8, *, seed: int = 0, hash: str = "fmix32") -> HashSpec:
        """Runs of ``length`` inputs start at any bucket: ROBE-Z (Desai, Chou, Shrivastava 2022)."""
        rows, cols = _pair("shape", shape, ("rows", "cols"), MAX_SIDE)
        length = _integer("length", length, 1)
        return cls((rows, cols), compression, (1, min(length, cols)), stride=1, seed=seed, hash=hash)

    @classmethod
    def tiles(cls, shape, compression, tile: int = 16, *, seed: int = 0, hash: str = "fmix32") -> HashSpec:
        """Square tiles that start at any bucket: ROAST (Desai, Zhou, Shrivastava 2023)."""
        rows, cols = _pair("shape", shape, ("rows", "cols"), MAX_SIDE)
        tile = _integer("tile", tile, 1)
        return cls((rows, cols), compression, (min(tile, rows), min(tile, cols)), stride=1, seed=seed, hash=hash)

    @classmethod
    def codebook(cls, shape, compression, length: int = 8, *, seed: int = 0, hash: str = "fmix32") -> HashSpec:
        """Each group of ``length`` inputs has a codebook of its own, each output picks one signed codeword of it: the
        product-quantisation view (Jegou, Douze, Schmid 2011), with the choice hashed rather than learned."""
        rows, cols = _pair("shape", shape, ("rows", "cols"), MAX_SIDE)
        bw = min(_integer("length", length, 1), cols)
        return cls((rows, cols), compression, (1, bw), (rows, bw), seed=seed, hash=hash)

    # ---- layout

    @property
    def rows(self) -> int:
        """Outputs, d_out."""
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Inputs, d_in."""
        return self.shape[1]

    @property
    def block_size(self) -> int:
        """Weights in a block, bh * bw."""
        return self.block[0] * self.block[1]

    @property
    def unit(self) -> int:
        """Distance between candidate offsets, in buckets."""
        return self.block_size if self.stride is None else self.stride

    @cached_property
    def _panel_counts(self) -> tuple[int, int]:
        ph, pw = self.panel or self.shape
        return -(-self.rows // ph), -(-self.cols // pw)

    @property
    def n_panels(self) -> int:
        """Panels of the matrix; they are numbered row by row."""
        return self._panel_counts[0] * self._panel_counts[1]

    def _panel_buckets(self, panel_rows: int, panel_cols: int) -> int:
        need = -(-self.block_size // self.unit)
        return self.unit * max(need, round(panel_rows * panel_cols * self.compression) // self.unit)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The layout: one to four grids of equal panels that cover the matrix, in row-major order of their corners."""
        ph, pw = self.panel or self.shape
        row_parts = [(0, self.rows // ph, ph), (self.rows - self.rows % ph, 1, self.rows % ph)]
        col_parts = [(0, self.cols // pw, pw), (self.cols - self.cols % pw, 1, self.cols % pw)]
        regions, base = [], 0
        for row, grid_rows, rows in row_parts:
            if not grid_rows or not rows:
                continue
            parts = [(col, n, cols, self._panel_buckets(rows, cols)) for col, n, cols in col_parts if n and cols]
            step = sum(n * buckets for _, n, _, buckets in parts)
            start = base
            for col, n, cols, buckets in parts:
                candidates = (buckets - self.block_size) // self.unit + 1
                regions.append(Region(row, col, grid_rows, n, rows, cols, start, step, buckets, candidates))
                start += n * buckets
            base += grid_rows * step
        return tuple(regions)

    @cached_property
    def n_buckets(self) -> int:
        """Stored weights: the length of ``w``. A Python integer, it may pass 2^32."""
        return sum(g.grid_rows * g.grid_cols * g.panel_buckets for g in self.regions)

    def panel_slices(self) -> list[tuple[int, int]]:
        """(start, stop) of the buckets of every panel, panels row by row."""
        ph, pw = self.panel or self.shape
        panel_rows, panel_cols = self._panel_counts
        slices, start = [], 0
        for r in range(panel_rows):
            for c in range(panel_cols):
                buckets = self._panel_buckets(min(ph, self.rows - r * ph), min(pw, self.cols - c * pw))
                slices.append((start, start + buckets))
                start += buckets
        return slices

    @property
    def panel_grid(self) -> tuple[int, int]:
        """How many panels there are from top to bottom, and from left to right."""
        return self._panel_counts

    def panel_start(self, row: int, col: int = 0) -> int:
        """The first bucket of panel (row, col) of `panel_grid`. (row + 1, 0) is where a row of panels ends."""
        down, across = self.panel_grid
        row, col = _integer("row", row, 0, down), _integer("col", col, 0, across)
        if row == down:
            return self.n_buckets
        ph, pw = self.panel or self.shape
        height = min(ph, self.rows - row * ph)
        if col == across:
            return self.panel_start(row + 1)
        return row * self.regions[0].base_step + col * self._panel_buckets(height, min(pw, self.cols))

    def window(self, rows: tuple[int, int] | None = None, cols: tuple[int, int] | None = None) -> Window:
        """Whole panels as a matrix of their own: rows [start, stop) and columns [start, stop) of `panel_grid`.

        Parameters
        ----------
        rows, cols : (start, stop), counted in panels; None means all

        Returns
        -------
        Window, which every product takes like a HashSpec.

        Raises
        ------
        TypeError, ValueError
            If a range is no pair of integers, is empty or leaves the grid.
        """
        down, across = self.panel_grid
        return Window.of(self, _panel_range("rows", rows, down), _panel_range("cols", cols, across))

    @property
    def first_block(self) -> tuple[int, int]:
        """What is added to a block's (I, J) before it is hashed: (0, 0), but in a `Window`."""
        return 0, 0

    def hash_blocks(self, block_row, block_col) -> np.ndarray:
        """The hash values, uint32, of blocks (I, J); the two integer arrays broadcast."""
        row, col = self.first_block
        return _HASH_FUNCTIONS[self.hash](np.asarray(block_row) + row, np.asarray(block_col) + col, self.seed)

    def _iter_blocks(self) -> Iterator[tuple[Region, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Walk the matrix in groups of whole block rows: (region, I, J, offset, sign) with I (a,), J (b,), the others
        (a, b), about four million blocks at once."""
        bh, bw = self.block
        for g in self.regions:
            block_cols = np.arange(g.col // bw, -(-(g.col + g.cols) // bw))
            first, last = g.row // bh, -(-(g.row + g.rows) // bh)
            step = max(1, 2**22 // len(block_cols))
            for start in range(first, last, step):
                block_rows = np.arange(start, min(last, start + step))
                h = self.hash_blocks(block_rows[:, None], block_cols[None, :])
                t = (h.astype(np.uint64) * np.uint64(g.candidates)) >> np.uint64(32)
                base = g.base + (block_rows * bh - g.row) // g.panel_rows * g.base_step
                base = base[:, None] + (block_cols * bw - g.col) // g.panel_cols * g.panel_buckets
                sign = 1 - 2 * (h & 1).astype(np.int8)
                yield g, block_rows, block_cols, base + t.astype(np.int64) * self.unit, sign

    def indices(self) -> tuple[np.ndarray, np.ndarray]:
        """The bucket and the sign of every virtual weight: W[i, j] = sign[i, j] * w[bucket[i, j]].

        Returns
        -------
        bucket : (rows, cols) int32
        sign : (rows, cols) int8, +1 or -1

        Raises
        ------
        ValueError
            If the matrix has more than 2^28 weights: too large to list.
        """
        if self.rows * self.cols > MAX_LISTED:
            raise ValueError(
                f"indices() lists every weight and a {self.rows} x {self.cols} matrix has {self.rows * self.cols}, "
                f"more than {MAX_LISTED}; use the products of hashedmm, which never list them, or a smaller spec"
            )
        bh, bw = self.block
        bucket = np.empty(self.shape, np.int32)
        sign = np.empty(self.shape, np.int8)
        for g, block_rows, block_cols, offset, block_sign in self._iter_blocks():
            i = np.arange(block_rows[0] * bh, min(g.row + g.rows, (block_rows[-1] + 1) * bh))
            j = np.arange(block_cols[0] * bw, min(g.col + g.cols, (block_cols[-1] + 1) * bw))
            pick = np.ix_(i // bh - block_rows[0], j // bw - block_cols[0])
            place = (slice(i[0], i[-1] + 1), slice(j[0], j[-1] + 1))
            bucket[place] = offset[pick] + (j % bw)[None, :] * bh + (i % bh)[:, None]
            sign[place] = block_sign[pick]
        return bucket, sign

    # ---- saying what it is

    @property
    def structure(self) -> str:
        """The named constructor whose shape of block and panel this is, or "custom"."""
        bh, bw = self.block
        if self.panel is None:
            if self.block == (1, 1):
                return "elementwise"
            if self.unit == 1:
                return "runs" if bh == 1 else "tiles" if bh == bw or bh == self.rows or bw == self.cols else "custom"
            return "custom"
        if bw == 1:
            return "strips" if bh > 1 else "panels"
        if bh == 1 and self.panel == (self.rows, bw) and self.unit == bw:
            return "codebook"
        return "custom"

    def to_json(self) -> str:
        """The spec as one line of JSON: the fields and ``"version": 1``."""
        return json.dumps(
            {
                "version": 1,
                "shape": self.shape,
                "compression": self.compression,
                "block": self.block,
                "panel": self.panel,
                "stride": self.stride,
                "seed": self.seed,
                "hash": self.hash,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> HashSpec:
        """The spec that `to_json` wrote. Exactly its keys are required; anything else is a ValueError."""

        def unique(pairs):
            if len({key for key, _ in pairs}) != len(pairs):
                raise ValueError("a key appears twice")
            return dict(pairs)

        try:
            fields = json.loads(text, object_pairs_hook=unique)
        except (ValueError, TypeError, RecursionError) as e:
            raise ValueError(f"a HashSpec must be JSON text as to_json() writes it: {e}") from None
        expected = {"version", "shape", "compression", "block", "panel", "stride", "seed", "hash"}
        if not isinstance(fields, dict) or set(fields) != expected:
            got = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(f"a HashSpec's JSON must have exactly the keys {sorted(expected)}, got {got}")
        version = fields.pop("version")
        if type(version) is not int or version != 1:
            raise ValueError(f"this program reads version 1 of the hash specification, got version {version!r}")
        try:
            return cls(**fields)
        except TypeError as e:
            raise ValueError(f"a HashSpec's JSON has a field of the wrong type: {e}") from None

    def summary(self) -> str:
        """A few lines: what is stored as it came out, how many panels, the smallest number of candidates T."""
        virtual = self.rows * self.cols
        smallest = min(g.candidates for g in self.regions)
        panel = "one panel" if self.panel is None else f"{self.n_panels} panels of {self.panel[0]} x {self.panel[1]}"
        return "\n".join(
            [
                f"{self.structure}: {self.rows} x {self.cols} = {virtual:,} virtual weights from "
                f"{self.n_buckets:,} buckets",
                f"stored / virtual {self.n_buckets / virtual:.6g} (asked {self.compression:.6g}), "
                f"{virtual / self.n_buckets:.4g} weights a bucket",
                f"blocks of {self.block[0]} x {self.block[1]}, candidates every {self.unit}, {panel}",
                f"smallest T (candidates of a block) {smallest:,}; hash {self.hash}, seed {self.seed}",
            ]
        )


@dataclass(frozen=True)
class Window(HashSpec):
    """Some whole panels of a larger matrix, as a matrix of its own: what one step of a stream, or one of several
    processes, computes. Made by `HashSpec.window`.

    Its weights are those of the larger matrix, bit for bit: blocks are hashed by their place in ``whole``, and every
    panel has the buckets that it has there. Its own vector of buckets is that of its panels, row by row: ``pieces`` of
    the whole vector, one after the other. It cannot be saved: save ``whole``.

    Attributes
    ----------
    whole : HashSpec
    first_panel : (row, col) of its first panel in the grid of ``whole``
    """

    whole: HashSpec | None = None
    first_panel: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, whole: HashSpec, rows: tuple[int, int], cols: tuple[int, int]) -> Window:
        """Panels rows[0] .. rows[1] - 1 down, cols[0] .. cols[1] - 1 across."""
        if isinstance(whole, Window):
            raise TypeError("a window of a window is not made; take one of `whole`")
        ph, pw = whole.panel or whole.shape
        shape = min(rows[1] * ph, whole.rows) - rows[0] * ph, min(cols[1] * pw, whole.cols) - cols[0] * pw
        same = whole.compression, whole.block, (ph, pw) if whole.panel else None, whole.stride, whole.seed, whole.hash
        return cls(shape, *same, whole, (rows[0], cols[0]))

    def _check_layout(self) -> None:
        """The layout of ``whole`` was checked when that was made."""
        if not isinstance(self.whole, HashSpec):
            raise TypeError(f"whole must be a HashSpec, got {self.whole!r}; HashSpec.window makes windows")

    @property
    def first_row(self) -> int:
        """Its first row in ``whole``."""
        assert self.whole is not None
        return self.first_panel[0] * (self.whole.panel or self.whole.shape)[0]

    @property
    def first_col(self) -> int:
        """Its first column in ``whole``."""
        assert self.whole is not None
        return self.first_panel[1] * (self.whole.panel or self.whole.shape)[1]

    @property
    def first_block(self) -> tuple[int, int]:
        return self.first_row // self.block[0], self.first_col // self.block[1]

    @cached_property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """(start, stop) of its buckets in the vector of ``whole``: one piece if it is as wide as ``whole``, else one a
        row of panels."""
        assert self.whole is not None
        (down, across), (row, col) = self.panel_grid, self.first_panel
        if across == self.whole.panel_grid[1]:
            return ((self.whole.panel_start(row), self.whole.panel_start(row + down)),)
        start = self.whole.panel_start
        return tuple((start(r, col), start(r, col + across)) for r in range(row, row + down))

    def to_json(self) -> str:
        """TypeError: a window is not saved."""
        raise TypeError("a Window is a part of a matrix and is not saved; save its `whole`")


def _panel_range(name: str, value: Any, count: int) -> tuple[int, int]:
    if value is None:
        return 0, count
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (start, stop) of panels, got {value!r}")
    start = _integer(f"start of {name}", value[0], 0, count - 1)
    return start, _integer(f"stop of {name}", value[1], start + 1, count)


# --------------------------------------------------------------------------------------------------------------------
# Statistics: is this hash good enough? They list every weight (`indices`), so they are for matrices one can look at.


def bucket_loads(spec: HashSpec) -> np.ndarray:
    """How many virtual weights use each bucket: (n_buckets,) int64, summing to rows * cols."""
    return np.bincount(spec.indices()[0].ravel(), minlength=spec.n_buckets)


def poisson_pmf(mean: float, most: int) -> np.ndarray:
    """P[load = k] for k = 0 .. most if ``mean`` balls a bin are thrown at random: what a good hash looks like."""
    k = np.arange(most + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
    return np.exp(k * math.log(mean) - mean - log_factorial)


def load_statistics(spec: HashSpec) -> dict[str, float]:
    """Loads against Poisson's: mean, variance / mean (1 for random loads), empty buckets and the share expected."""
    loads = bucket_loads(spec)
    mean = float(loads.mean())
    return {
        "mean": mean,
        "dispersion": float(loads.var() / mean),
        "smallest": int(loads.min()),
        "largest": int(loads.max()),
        "empty": float((loads == 0).mean()),
        "empty_poisson": math.exp(-mean),
    }


def block_signs(spec: HashSpec) -> np.ndarray:
    """The sign of every block, (block rows, block cols) int8: one draw a block, where ``indices`` repeats it."""
    return spec.indices()[1][:: spec.block[0], :: spec.block[1]]


def sign_statistics(spec: HashSpec) -> dict[str, float]:
    """Mean of the block signs and its z-score: for a fair coin z is within +-3 almost always."""
    signs = block_signs(spec)
    mean = float(signs.mean(dtype=np.float64))
    return {"blocks": signs.size, "mean": mean, "z": mean * math.sqrt(signs.size)}


def autocorrelation(values: np.ndarray, reach: int) -> np.ndarray:
    """Correlation of a pattern with itself, shifted.

    Parameters
    ----------
    values : (rows, cols) real array
        Signs or hash values of blocks, for example.
    reach : int
        Shifts 0 .. reach down and -reach .. reach across are tried.

    Returns
    -------
    (reach + 1, 2 * reach + 1) float64: entry [di, reach + dj] is the correlation of v[i, j] with v[i + di, j + dj]
    over all pairs inside the array. Independent entries give about 1 / sqrt(size) everywhere but at shift (0, 0).
    """
    v = np.asarray(values, np.float64)
    rows, cols = v.shape
    reach = _integer("reach", reach, 0, min(rows, cols) - 1)
    out = np.empty((reach + 1, 2 * reach + 1))
    v = v - v.mean()
    power = float((v * v).mean()) or 1.0
    for di in range(reach + 1):
        for dj in range(-reach, reach + 1):
            a = v[: rows - di, max(0, -dj) : cols - max(0, dj)]
            b = v[di:, max(0, dj) : cols - max(0, -dj)]
            out[di, reach + dj] = float((a * b).mean()) / power
    return out


def largest_autocorrelation(values: np.ndarray, reach: int) -> tuple[float, tuple[int, int]]:
    """The autocorrelation largest in size among shifts other than (0, 0), and that shift (di, dj)."""
    c = autocorrelation(values, reach)
    c[0, : reach + 1] = 0  # shift (0, 0), and those to its left, which mirror the right
    di, dj = np.unravel_index(np.argmax(np.abs(c)), c.shape)
    return float(c[di, dj]), (int(di), int(dj) - reach)
