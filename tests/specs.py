"""Specs to test with: a table of odd shapes, a hypothesis strategy, and the layout's definition.

The definition is spelled out weight by weight in Python integers, independently of the package's vectorised code.
"""

from hypothesis import strategies as st

from hashedmm.hashing import HASHES, HashSpec, fmix32, multiply_shift_parameters

SHAPES = [(1, 1), (1, 7), (7, 1), (17, 33), (33, 17), (40, 30), (127, 65), (129, 785), (300, 70)]

STRUCTURES = {
    "elementwise": lambda shape, c, **k: HashSpec.elementwise(shape, c, **k),
    "panels": lambda shape, c, **k: HashSpec.panels(shape, c, (16, 32), **k),
    "strips": lambda shape, c, **k: HashSpec.strips(shape, c, height=16, panel=(32, 64), **k),
    "strips, overlapping": lambda shape, c, **k: HashSpec.strips(shape, c, height=16, panel=(16, 64), stride=5, **k),
    "runs": lambda shape, c, **k: HashSpec.runs(shape, c, **k),
    "tiles": lambda shape, c, **k: HashSpec.tiles(shape, c, tile=8, **k),
    "codebook": lambda shape, c, **k: HashSpec.codebook(shape, c, **k),
    "blocks in panels": lambda shape, c, **k: HashSpec(shape, c, (3, 2), (9, 8), 2, **k),
    "strips, one panel": lambda shape, c, **k: HashSpec(shape, c, (5, 1), None, 3, **k),
}


def table(compressions=(1.0, 0.3, 1 / 8), hashes=HASHES, seeds=(5,)):
    """Every structure x shape x compression x hash x seed that exists."""
    for name, make in STRUCTURES.items():
        for shape in SHAPES:
            for compression in compressions:
                for hash in hashes:
                    for seed in seeds:
                        try:
                            yield name, make(shape, compression, seed=seed, hash=hash)
                        except ValueError:  # panels or blocks too large for so few buckets
                            continue


@st.composite
def specs(draw, most=60):
    """A random valid HashSpec of at most most x most weights."""
    rows, cols = draw(st.integers(1, most)), draw(st.integers(1, most))
    bh, bw = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    panel = None
    if draw(st.booleans()):
        panel = (bh * draw(st.integers(1, 12)), bw * draw(st.integers(1, 12)))
    stride = draw(st.none() | st.integers(1, bh * bw))
    compression = draw(st.floats(0.01, 1))
    seed, hash = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from(HASHES))
    while True:
        try:
            return HashSpec((rows, cols), compression, (bh, bw), panel, stride, seed, hash)
        except ValueError:  # too many panels for so few buckets: store more, or in the end drop the panels
            if compression == 1:
                panel, bh, bw, stride = None, 1, 1, None
            compression = min(1.0, 2 * compression)


def block_hash(spec, block_row, block_col):
    """The hash of one block, in Python integers."""
    if spec.hash == "fmix32":
        key = fmix32(spec.seed ^ fmix32(block_row + 0x9E3779B9))
        return fmix32(key ^ (block_col * 0x9E3779B1 & 0xFFFFFFFF))
    if spec.hash == "multiply_shift":
        a1, a2, b = multiply_shift_parameters(spec.seed)
        return (a1 * block_row + a2 * block_col + b) % 2**64 >> 32
    import xxhash

    data = block_row.to_bytes(4, "little") + block_col.to_bytes(4, "little")
    return xxhash.xxh32(data, seed=spec.seed).intdigest()


def layout(spec):
    """(panel row, panel col) -> (first bucket, buckets), by the definition."""
    (rows, cols), (bh, bw) = spec.shape, spec.block
    ph, pw = spec.panel or spec.shape
    unit = spec.stride or bh * bw
    out, base = {}, 0
    for r in range(-(-rows // ph)):
        for c in range(-(-cols // pw)):
            area = (min(rows, (r + 1) * ph) - r * ph) * (min(cols, (c + 1) * pw) - c * pw)
            units = max(-(-bh * bw // unit), round(area * spec.compression) // unit)
            out[r, c] = (base, units * unit)
            base += units * unit
    return out


def weight(spec, panels, i, j):
    """(bucket, sign) of one virtual weight, by the definition."""
    bh, bw = spec.block
    ph, pw = spec.panel or spec.shape
    unit = spec.stride or bh * bw
    base, buckets = panels[i // ph, j // pw]
    h = block_hash(spec, i // bh, j // bw)
    candidates = (buckets - bh * bw) // unit + 1
    offset = base + (h * candidates >> 32) * unit
    return offset + (j % bw) * bh + i % bh, -1 if h & 1 else 1
