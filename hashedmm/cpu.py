"""The fast products on a CPU, compiled by numba: never more than a few rows of W exist at any time.

Two schedules compute the same product; ``choose_schedule`` takes the cheaper one.

``decompress``  any spec. A few rows of W are rebuilt from the hash into a small buffer, BLAS multiplies them, then the
                next rows.
``sketch``      blocks one input wide (strips). Sum first, multiply after. The rows of one strip are W_I = C_I S_I: a
                codebook (height x T) times a signed selection with one +-1 a column. Hence
                    y_I = C_I z_I,   z_I = S_I x            T signed sums of inputs, then a small product
                    grad_x = sum over I of S_I^T (C_I^T gy_I)
                    grad_C_I = gy_I z_I^T
                The sums are feature hashing of x (Weinberger et al. 2009); the codebook windows are slices of w.

Threads: only BLAS has them. The compiled loops run on one, since two pools that spin on the same cores stall each other
for whole time slices. Arguments are checked in `hashedmm.matmul`; here they are C-contiguous float32 or float64 of one
dtype. Imports hashing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.lib.stride_tricks import as_strided

from hashedmm.hashing import COLUMN_STEP, GOLDEN32, HASHES, HashSpec, Region, multiply_shift_parameters

SCHEDULES = ("decompress", "sketch")
BUFFER = 2**20  # weights of W that exist at once, at most (unless one row of a panel is longer)
SUMS = 2**21  # numbers in the sums z at once, about


# --------------------------------------------------------------------------------------------------------------------
# Hashing, compiled. The hash of a row of blocks goes to a buffer first: plain loops that vectorise.


@lru_cache(maxsize=64)
def _hash_arguments(spec: HashSpec) -> tuple[np.ndarray, int]:
    """(seed, a1, a2, b, first block's row and column) as uint64, and which hash it is."""
    numbers = [spec.seed, *multiply_shift_parameters(spec.seed), *spec.first_block]
    return np.array(numbers, np.uint64), HASHES.index(spec.hash)


# Numba types a product or a shift of uint32 as uint64, which halves the lanes of every vector instruction and adds
# conversions. These four stay in 32 bits.


def _in_32_bits(build):
    """An intrinsic of two uint32 that gives a uint32; ``build(builder, a, b)`` emits it."""

    @intrinsic
    def operation(context, a, b):
        return types.uint32(types.uint32, types.uint32), lambda context, builder, sig, args: build(builder, *args)

    return operation


def _emit_rotate(builder, h, bits):
    return builder.or_(builder.shl(h, bits), builder.lshr(h, builder.sub(ir.Constant(h.type, 32), bits)))


def _emit_high(builder, a, b):
    wide = ir.IntType(64)
    product = builder.mul(builder.zext(a, wide), builder.zext(b, wide))
    return builder.trunc(builder.lshr(product, ir.Constant(wide, 32)), a.type)


_add = _in_32_bits(lambda builder, a, b: builder.add(a, b))
_multiply = _in_32_bits(lambda builder, a, b: builder.mul(a, b))
_xor_shifted = _in_32_bits(lambda builder, h, bits: builder.xor(h, builder.lshr(h, bits)))  # h ^ (h >> bits)
_rotate = _in_32_bits(_emit_rotate)
_high = _in_32_bits(_emit_high)  # (a * b) >> 32


@njit(inline="always")
def _fmix32(h):
    h = _multiply(_xor_shifted(h, np.uint32(16)), np.uint32(0x85EBCA6B))
    h = _multiply(_xor_shifted(h, np.uint32(13)), np.uint32(0xC2B2AE35))
    return _xor_shifted(h, np.uint32(16))


@njit(cache=True, nogil=True)
def _hash_row(arguments, kind, block_row, block_col, count, out):
    """out[k] = hash of block (block_row, block_col + k), k = 0 .. count - 1."""
    i = _add(np.uint32(block_row), np.uint32(arguments[4]))
    first = _add(np.uint32(block_col), np.uint32(arguments[5]))
    seed = np.uint32(arguments[0])
    if kind == 0:
        key = _fmix32(np.uint32(seed ^ _fmix32(_add(i, np.uint32(GOLDEN32)))))
        for k in range(count):
            j = _add(first, np.uint32(k))
            out[k] = _fmix32(np.uint32(key ^ _multiply(j, np.uint32(COLUMN_STEP))))
    elif kind == 1:
        p2, p3, p4 = np.uint32(2246822519), np.uint32(3266489917), np.uint32(668265263)
        start = _add(seed, np.uint32(374761393 + 8))
        key = _multiply(_rotate(_add(start, _multiply(i, p3)), np.uint32(17)), p4)
        for k in range(count):
            j = _add(first, np.uint32(k))
            h = _multiply(_rotate(_add(key, _multiply(j, p3)), np.uint32(17)), p4)
            h = _multiply(_xor_shifted(h, np.uint32(15)), p2)
            h = _multiply(_xor_shifted(h, np.uint32(13)), p3)
            out[k] = _xor_shifted(h, np.uint32(16))
    else:
        start64 = arguments[1] * np.uint64(i) + arguments[3]
        for k in range(count):
            j64 = np.uint64(_add(first, np.uint32(k)))
            out[k] = np.uint32((start64 + arguments[2] * j64) >> np.uint64(32))


@njit(cache=True, nogil=True)
def _pick(arguments, kind, block_row, block_col, count, candidates, unit, h, offset, sign):
    """offset[k], sign[k] of blocks (block_row, block_col + k): offset from the panel's first bucket, sign +-1."""
    _hash_row(arguments, kind, block_row, block_col, count, h)
    t, u = np.uint32(candidates), np.uint32(unit)
    for k in range(count):
        offset[k] = _multiply(_high(h[k], t), u)  # below 2^31, as a panel owns no more buckets
        sign[k] = np.int32(1) - np.int32(_multiply(h[k] & np.uint32(1), np.uint32(2)))


# --------------------------------------------------------------------------------------------------------------------
# decompress: a few rows of W at a time

# A region's numbers as the compiled functions take them (see hashing.Region).
_ROW, _COL, _PH, _PW, _BASE, _STEP, _BUCKETS, _T, _BH, _BW, _UNIT = range(11)


@lru_cache(maxsize=256)
def _geometry(spec: HashSpec, g: Region) -> np.ndarray:
    panel = (g.row, g.col, g.panel_rows, g.panel_cols, g.base, g.base_step, g.panel_buckets, g.candidates)
    return np.array([*panel, *spec.block, spec.unit], np.int64)


@njit(cache=True, nogil=True)
def _decompress(arguments, kind, geometry, w, i0, j0, out):
    """out[i - i0, j - j0] = W[i, j], all inside one region."""
    row, col, ph, pw = geometry[_ROW], geometry[_COL], geometry[_PH], geometry[_PW]
    candidates, bh, bw, unit = geometry[_T], geometry[_BH], geometry[_BW], geometry[_UNIT]
    i1, j1 = i0 + out.shape[0], j0 + out.shape[1]
    widest = min(pw, j1 - j0) // bw + 2
    h = np.empty(widest, np.uint32)
    offset = np.empty(widest, np.uint32)
    sign = np.empty(widest, w.dtype)
    for block_row in range(i0 // bh, (i1 - 1) // bh + 1):
        top, bottom = max(i0, block_row * bh), min(i1, (block_row + 1) * bh)
        for c in range((j0 - col) // pw, (j1 - 1 - col) // pw + 1):
            base = geometry[_BASE] + (top - row) // ph * geometry[_STEP] + c * geometry[_BUCKETS]
            left, right = max(j0, col + c * pw), min(j1, col + (c + 1) * pw)
            block_col = left // bw
            count = (right - 1) // bw - block_col + 1
            _pick(arguments, kind, block_row, block_col, count, candidates, unit, h, offset, sign)
            for i in range(top, bottom):
                owned = w[base + i - block_row * bh :]  # an unsigned index into it needs no look at its sign
                if bw == 1:
                    row_out = out[i - i0, left - j0 :]
                    for k in range(count):
                        row_out[k] = sign[k] * owned[offset[k]]
                else:
                    for k in range(count):
                        corner = (block_col + k) * bw
                        for j in range(max(left, corner), min(right, corner + bw)):
                            out[i - i0, j - j0] = sign[k] * owned[offset[k] + (j - corner) * bh]


@njit(cache=True, nogil=True)
def _scatter(arguments, kind, geometry, dense, i0, j0, out):
    """out[bucket(i, j)] += sign(i, j) * dense[i - i0, j - j0], all inside one region: the way back of _decompress."""
    row, col, ph, pw = geometry[_ROW], geometry[_COL], geometry[_PH], geometry[_PW]
    candidates, bh, bw, unit = geometry[_T], geometry[_BH], geometry[_BW], geometry[_UNIT]
    i1, j1 = i0 + dense.shape[0], j0 + dense.shape[1]
    widest = min(pw, j1 - j0) // bw + 2
    h = np.empty(widest, np.uint32)
    offset = np.empty(widest, np.uint32)
    sign = np.empty(widest, out.dtype)
    for block_row in range(i0 // bh, (i1 - 1) // bh + 1):
        top, bottom = max(i0, block_row * bh), min(i1, (block_row + 1) * bh)
        for c in range((j0 - col) // pw, (j1 - 1 - col) // pw + 1):
            base = geometry[_BASE] + (top - row) // ph * geometry[_STEP] + c * geometry[_BUCKETS]
            left, right = max(j0, col + c * pw), min(j1, col + (c + 1) * pw)
            block_col = left // bw
            count = (right - 1) // bw - block_col + 1
            _pick(arguments, kind, block_row, block_col, count, candidates, unit, h, offset, sign)
            for i in range(top, bottom):
                owned = out[base + i - block_row * bh :]
                if bw == 1:
                    row_in = dense[i - i0, left - j0 :]
                    for k in range(count):
                        owned[offset[k]] += sign[k] * row_in[k]
                else:
                    for k in range(count):
                        corner = (block_col + k) * bw
                        for j in range(max(left, corner), min(right, corner + bw)):
                            owned[offset[k] + (j - corner) * bh] += sign[k] * dense[i - i0, j - j0]


def _tiles(spec: HashSpec) -> Iterator[tuple[np.ndarray, int, int, int, int]]:
    """(geometry, i0, i1, j0, j1): pieces of W of at most BUFFER weights, each inside one region."""
    for g in spec.regions:
        geometry = _geometry(spec, g)
        width = min(g.cols, BUFFER)
        height = max(1, BUFFER // width)
        if height > spec.block[0]:
            height -= height % spec.block[0]
        for i in range(g.row, g.row + g.rows, height):
            for j in range(g.col, g.col + g.cols, width):
                yield geometry, i, min(i + height, g.row + g.rows), j, min(j + width, g.col + g.cols)


def _buffer(spec: HashSpec, dtype) -> np.ndarray:
    return np.empty(max((i1 - i0) * (j1 - j0) for _, i0, i1, j0, j1 in _tiles(spec)), dtype)


def _matmul_decompress(w: np.ndarray, x: np.ndarray, spec: HashSpec) -> np.ndarray:
    arguments, kind = _hash_arguments(spec)
    y = np.zeros((spec.rows, x.shape[1]), x.dtype)
    buffer = _buffer(spec, x.dtype)
    for geometry, i0, i1, j0, j1 in _tiles(spec):
        rows = buffer[: (i1 - i0) * (j1 - j0)].reshape(i1 - i0, j1 - j0)
        _decompress(arguments, kind, geometry, w, i0, j0, rows)
        y[i0:i1] += rows @ x[j0:j1]
    return y


def _grad_x_decompress(w: np.ndarray, gy: np.ndarray, spec: HashSpec) -> np.ndarray:
    arguments, kind = _hash_arguments(spec)
    gx = np.zeros((spec.cols, gy.shape[1]), gy.dtype)
    buffer = _buffer(spec, gy.dtype)
    for geometry, i0, i1, j0, j1 in _tiles(spec):
        rows = buffer[: (i1 - i0) * (j1 - j0)].reshape(i1 - i0, j1 - j0)
        _decompress(arguments, kind, geometry, w, i0, j0, rows)
        gx[j0:j1] += rows.T @ gy[i0:i1]
    return gx


def _grad_w_decompress(x: np.ndarray, gy: np.ndarray, spec: HashSpec) -> np.ndarray:
    arguments, kind = _hash_arguments(spec)
    out = np.zeros(spec.n_buckets, x.dtype)
    buffer = _buffer(spec, x.dtype)
    for geometry, i0, i1, j0, j1 in _tiles(spec):
        dense = buffer[: (i1 - i0) * (j1 - j0)].reshape(i1 - i0, j1 - j0)
        np.matmul(gy[i0:i1], x[j0:j1].T, out=dense)
        _scatter(arguments, kind, geometry, dense, i0, j0, out)
    return out


def materialise(w: np.ndarray, spec: HashSpec) -> np.ndarray:
    """W as a dense (rows, cols) array of w's dtype (float32 or float64)."""
    arguments, kind = _hash_arguments(spec)
    dense = np.empty(spec.shape, w.dtype)
    for g in spec.regions:
        out = dense[g.row : g.row + g.rows, g.col : g.col + g.cols]
        if out.shape == dense.shape:
            _decompress(arguments, kind, _geometry(spec, g), w, g.row, g.col, out)
        else:
            piece = np.empty(out.shape, w.dtype)
            _decompress(arguments, kind, _geometry(spec, g), w, g.row, g.col, piece)
            out[...] = piece
    return dense


# --------------------------------------------------------------------------------------------------------------------
# sketch: sum first, multiply after. z has the shape (panel rows, strips a panel, panels across * T, n).


@njit(cache=True, nogil=True)
def _matvec(arguments, kind, geometry, grid_rows, grid_cols, w, x, y):
    """y += W x for one region and one column: sum and multiply panel by panel, so that w is read once, in order."""
    ph, pw, candidates, bh = geometry[_PH], geometry[_PW], geometry[_T], geometry[_BH]
    h, t = np.empty(pw, np.uint32), np.empty(pw, np.uint32)
    sign, z = np.empty(pw, x.dtype), np.empty(candidates, x.dtype)
    for r in range(grid_rows):
        for c in range(grid_cols):
            base = geometry[_BASE] + r * geometry[_STEP] + c * geometry[_BUCKETS]
            for top in range(0, ph, bh):
                block_row = (geometry[_ROW] + r * ph + top) // bh
                _pick(arguments, kind, block_row, geometry[_COL] + c * pw, pw, candidates, 1, h, t, sign)
                column = x[c * pw :]
                z[:] = 0
                for k in range(pw):
                    z[t[k]] += sign[k] * column[k]
                rows = y[r * ph + top : r * ph + min(top + bh, ph)]
                for b in range(candidates):
                    codeword = w[base + b * geometry[_UNIT] :]
                    for i in range(len(rows)):
                        rows[i] += codeword[i] * z[b]


@njit(cache=True, nogil=True)
def _sum_inputs(arguments, kind, geometry, r0, x, z):
    """z = S x for all strips of panel rows r0 .. r0 + z.shape[0] - 1 of a region; x (cols of the region, n)."""
    strips, n = z.shape[1], z.shape[3]
    ph, pw, candidates, bh = geometry[_PH], geometry[_PW], geometry[_T], geometry[_BH]
    h, t = np.empty(pw, np.uint32), np.empty(pw, np.uint32)
    sign = np.empty(pw, z.dtype)
    z[:] = 0
    for c in range(z.shape[2] // candidates):  # panel by panel across, so that its rows of x stay in the cache
        rows = x[c * pw : (c + 1) * pw]
        for q in range(z.shape[0] * strips):
            r, s = q // strips, q % strips
            block_row = (geometry[_ROW] + (r0 + r) * ph) // bh + s
            _pick(arguments, kind, block_row, geometry[_COL] + c * pw, pw, candidates, 1, h, t, sign)
            sums = z[r, s, c * candidates :]
            if n == 1:
                for k in range(pw):
                    sums[t[k], 0] += sign[k] * rows[k, 0]
            else:
                for k in range(pw):
                    out, row = sums[t[k]], rows[k]
                    for m in range(n):
                        out[m] += sign[k] * row[m]


@njit(cache=True, nogil=True)
def _add_selected(arguments, kind, geometry, r0, z, width, gx):
    """gx += S^T z for all strips of panel rows r0 .. r0 + z.shape[0] - 1; gx (cols of the region, n), of which
    ``width`` rows at a time are worked on, to stay in the cache."""
    strips, n = z.shape[1], z.shape[3]
    ph, pw, candidates, bh = geometry[_PH], geometry[_PW], geometry[_T], geometry[_BH]
    h, t = np.empty(width, np.uint32), np.empty(width, np.uint32)
    sign = np.empty(width, z.dtype)
    for c in range(z.shape[2] // candidates):
        for left in range(0, pw, width):
            count = min(width, pw - left)
            rows = gx[c * pw + left :]
            for q in range(z.shape[0] * strips):
                r, s = q // strips, q % strips
                block_row = (geometry[_ROW] + (r0 + r) * ph) // bh + s
                _pick(arguments, kind, block_row, geometry[_COL] + c * pw + left, count, candidates, 1, h, t, sign)
                sums = z[r, s, c * candidates :]
                if n == 1:
                    for k in range(count):
                        rows[k, 0] += sign[k] * sums[t[k], 0]
                else:
                    for k in range(count):
                        out, row = rows[k], sums[t[k]]
                        for m in range(n):
                            out[m] += sign[k] * row[m]


@njit(cache=True, nogil=True)
def _add_windows(geometry, r0, windows, out):
    """Add the gradient of every codebook window, windows (panel rows, panels across * T, bh), to its buckets."""
    candidates, bh, unit = geometry[_T], geometry[_BH], geometry[_UNIT]
    for r in range(windows.shape[0]):
        for c in range(windows.shape[1] // candidates):
            base = geometry[_BASE] + (r0 + r) * geometry[_STEP] + c * geometry[_BUCKETS]
            for t in range(candidates):
                for i in range(bh):
                    out[base + t * unit + i] += windows[r, c * candidates + t, i]


def _codebooks(w: np.ndarray, spec: HashSpec, g: Region, r0: int, r1: int) -> np.ndarray:
    """C^T of panel rows r0 .. r1 - 1: (r1 - r0, 1, panels across * T, bh). A view of w where windows do not overlap."""
    bh, item = spec.block[0], w.itemsize
    views = as_strided(
        w[g.base + r0 * g.base_step :],
        (r1 - r0, g.grid_cols, g.candidates, bh),
        (g.base_step * item, g.panel_buckets * item, spec.unit * item, item),
        writeable=False,
    )
    if g.panel_buckets == g.candidates * bh and spec.unit == bh:
        return views.reshape(r1 - r0, 1, g.grid_cols * g.candidates, bh)
    return np.ascontiguousarray(views).reshape(r1 - r0, 1, g.grid_cols * g.candidates, bh)


def _strips(spec: HashSpec, n: int) -> Iterator[tuple[Region, np.ndarray, int, int, int, slice]]:
    """(region, geometry, strips a panel, first panel row, last + 1, columns of x) so that z stays near SUMS numbers."""
    for g in spec.regions:
        strips = -(-g.panel_rows // spec.block[0])
        one_row = strips * g.grid_cols * g.candidates
        width = min(n, max(16, SUMS // one_row))
        step = max(1, SUMS // (one_row * width))
        for k in range(0, n, width):
            for r in range(0, g.grid_rows, step):
                yield g, _geometry(spec, g), strips, r, min(r + step, g.grid_rows), slice(k, min(k + width, n))


def _by_strip(a: np.ndarray, spec: HashSpec, g: Region, strips: int, r0: int, r1: int) -> np.ndarray:
    """Rows of panel rows r0 .. r1 - 1 of ``a`` as (r1 - r0, strips, bh, n); rows beyond a cut-off strip are zero."""
    bh = spec.block[0]
    rows = a[g.row + r0 * g.panel_rows : g.row + r1 * g.panel_rows]
    if strips * bh == g.panel_rows:
        return rows.reshape(r1 - r0, strips, bh, -1)
    padded = np.zeros((r1 - r0, strips * bh, a.shape[1]), a.dtype)
    padded[:, : g.panel_rows] = rows.reshape(r1 - r0, g.panel_rows, -1)
    return padded.reshape(r1 - r0, strips, bh, -1)


def _columns(a: np.ndarray, k: slice) -> np.ndarray:
    return a if k.stop - k.start == a.shape[1] else np.ascontiguousarray(a[:, k])


def _sums(x: np.ndarray, spec: HashSpec, g: Region, geometry, strips: int, r0: int, r1: int) -> np.ndarray:
    arguments, kind = _hash_arguments(spec)
    z = np.empty((r1 - r0, strips, g.grid_cols * g.candidates, x.shape[1]), x.dtype)
    _sum_inputs(arguments, kind, geometry, r0, x[g.col : g.col + g.cols], z)
    return z


def _matmul_sketch(w: np.ndarray, x: np.ndarray, spec: HashSpec) -> np.ndarray:
    y = np.zeros((spec.rows, x.shape[1]), x.dtype)
    if x.shape[1] == 1:
        for g in spec.regions:
            columns, rows = x[g.col : g.col + g.cols, 0], y[g.row : g.row + g.rows, 0]
            _matvec(*_hash_arguments(spec), _geometry(spec, g), g.grid_rows, g.grid_cols, w, columns, rows)
        return y
    for g, geometry, strips, r0, r1, k in _strips(spec, x.shape[1]):
        z = _sums(_columns(x, k), spec, g, geometry, strips, r0, r1)
        product = _codebooks(w, spec, g, r0, r1).swapaxes(2, 3) @ z
        rows = product.reshape(r1 - r0, -1, product.shape[3])[:, : g.panel_rows]
        out = y[g.row + r0 * g.panel_rows : g.row + r1 * g.panel_rows, k]
        out += rows.reshape(out.shape)
    return y


def _grad_x_sketch(w: np.ndarray, gy: np.ndarray, spec: HashSpec) -> np.ndarray:
    arguments, kind = _hash_arguments(spec)
    gx = np.zeros((spec.cols, gy.shape[1]), gy.dtype)
    for g, geometry, strips, r0, r1, k in _strips(spec, gy.shape[1]):
        z = _codebooks(w, spec, g, r0, r1) @ _by_strip(_columns(gy, k), spec, g, strips, r0, r1)
        width = max(16, 2**14 // z.shape[3])
        _add_selected(arguments, kind, geometry, r0, z, width, gx[g.col : g.col + g.cols, k])
    return gx


def _grad_w_sketch(x: np.ndarray, gy: np.ndarray, spec: HashSpec) -> np.ndarray:
    out = np.zeros(spec.n_buckets, x.dtype)
    for g, geometry, strips, r0, r1, k in _strips(spec, x.shape[1]):
        z = _sums(_columns(x, k), spec, g, geometry, strips, r0, r1)
        gradient = _by_strip(_columns(gy, k), spec, g, strips, r0, r1)
        windows = z[:, 0] @ gradient[:, 0].swapaxes(1, 2)
        for s in range(1, strips):
            windows += z[:, s] @ gradient[:, s].swapaxes(1, 2)
        _add_windows(geometry, r0, windows, out)
    return out


# --------------------------------------------------------------------------------------------------------------------
# The choice


def supports(schedule: str, spec: HashSpec) -> bool:
    """Whether a schedule can compute this spec: the sketch needs blocks that are one input wide and over one high."""
    return schedule == "decompress" or (spec.block[1] == 1 and spec.block[0] > 1)


def choose_schedule(spec: HashSpec, n: int) -> str:
    """The cheaper schedule for n columns. Both compute the same product, to rounding.

    Counts nanoseconds for one strip of one panel: what a sum, a product and a rebuilt weight cost was fitted to
    timings of both schedules on one core, over heights 4 to 128, compressions 1/2 to 1/64 and n from 1 to 256.
    """
    if not supports("sketch", spec):
        return "decompress"
    g = spec.regions[0]
    height = spec.block[0]
    sketch = 2000 + g.panel_cols * (0.4 + 0.2 * n) + g.candidates * height * (0.7 + 0.02 * n)
    decompress = g.panel_cols * height * (1.3 + 0.02 * n)
    return "sketch" if sketch < decompress else "decompress"


_OPERATIONS = {
    ("matmul", "decompress"): _matmul_decompress,
    ("matmul", "sketch"): _matmul_sketch,
    ("grad_x", "decompress"): _grad_x_decompress,
    ("grad_x", "sketch"): _grad_x_sketch,
    ("grad_w", "decompress"): _grad_w_decompress,
    ("grad_w", "sketch"): _grad_w_sketch,
}


def run(operation: str, schedule: str, a: np.ndarray, b: np.ndarray, spec: HashSpec) -> np.ndarray:
    """Compute ``operation`` ("matmul", "grad_x", "grad_w") by ``schedule`` ("auto" chooses): the arguments are those of
    the public function, C-contiguous, of one dtype, float32 or float64."""
    if schedule == "auto":
        schedule = choose_schedule(spec, b.shape[1])
    return _OPERATIONS[operation, schedule](a, b, spec)
