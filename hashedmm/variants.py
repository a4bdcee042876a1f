"""Harder data than MNIST: the data sets of Larochelle et al. (2007), made again from MNIST or drawn, seeded.

    basic         fewer digits to learn from               rect      outlines of rectangles: tall or wide
    rot           digits at any angle                      convex    white regions: convex or not
    bg_rand       noise behind the digits
    bg_img        patches of pictures behind the digits
    bg_img_rot    both: digits at any angle, over patches

The same arguments give the same bits on every machine. Random numbers are the raw words of PCG64, which NumPy keeps
stable, and none of Generator's, whose streams may change with NumPy's version. Arithmetic is on integers, or on float64
or float32 with the operations that IEEE 754 rounds correctly (+ - * / and square root); sines and cosines are made of
these. Pixels are bytes. `CHECKSUMS` holds what seed 0 must give.

Imports datasets, hashing and safefile, and from the emulator where the user's cache is; matplotlib and Pillow, for the
one natural picture, when it is asked for.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hashedmm import safefile
from hashedmm.datasets import MNIST_FILES, Dataset, _check_count, _find, _mnist_folder, _pixels, _read
from hashedmm.emulator.toolchain import cache_dir
from hashedmm.hashing import _integer

Images = NDArray[np.uint8]  # (n, 28, 28)
Labels = NDArray[np.uint8]  # (n,)
Part = tuple[Images, Labels]
Recipe = Callable[[int, int, int, str], tuple[Part, Part]]  # (seed, n_train, n_test, backgrounds) -> train, test

SIDE = 28  # pixels
CHUNK = 16  # images at a time: arrays of 100 kB, which stay in a processor's cache
BACKGROUNDS = ("procedural", "natural", "auto")


class Variant(NamedTuple):
    """One data set: what it is, its published size, its recipe, and whether it is cached as that takes seconds."""

    about: str
    n_train: int
    n_test: int
    n_classes: int
    make: Recipe
    cached: bool


def load_variant(
    name: str, *, seed: int = 0, n_train: int | None = None, n_test: int | None = None, backgrounds: str | None = None
) -> Dataset:
    """A data set of Larochelle et al. (2007), made again. It takes seconds, and less when it is in the user's cache.

    **Made again, not the originals**: same sizes, same ideas, other random numbers, and details that the paper leaves
    open. Compare which method is better, and by how much; do not compare digits with published tables.

    Parameters
    ----------
    name : str, a key of `VARIANTS`
        - "basic": digits of MNIST, 12,000 to train and 50,000 to test with, out of all 70,000.
        - "rot": each rotated by an angle uniform in [0, 2 pi), bilinear.
        - "bg_rand": noise behind each, uniform in [0, 1] in every pixel.
        - "bg_img": a random patch of a picture behind each.
        - "bg_img_rot": rotated, with a patch behind.
        - "rect": outlines of rectangles, one pixel thick; label 1 if taller than wide, else 0. 1,200 and 50,000.
        - "convex": white regions; label 1 if convex, else 0. 8,000 and 50,000.
    seed : int, 0 to 2^32 - 1
        Of all that is random. The five sets of digits of one seed hold the same digits in the same order, and
        "bg_img_rot" has the angles of "rot" and the patches of "bg_img".
    n_train, n_test : int, optional
        Take the first so many samples of each part: 1 to the published size, the default.
    backgrounds : str, optional; for "bg_img" and "bg_img_rot" alone
        Where patches come from. The name of the data set says which, so that results never mix the two.

        - "procedural", the default: 20 drawn pictures (`procedural_pictures`). They need nothing but NumPy.
        - "natural": the one photograph that matplotlib's package holds (`natural_picture`), which needs the extra
          `plot`. Its decoded pixels are verified.
        - "auto": "natural" where that is possible, else "procedural".

    Returns
    -------
    Dataset
        x (n, 784) float32 in [0, 1], multiples of 1/255: rows of 28 pixels one after the other; y (n,) int64. Its name
        is `name`, then ":procedural" or ":natural", then ":seed=..." unless that is 0, and [:n_train, :n_test] for less
        than all. No image is in both parts.

    Raises
    ------
    TypeError, ValueError
        An argument is not as above.
    FileNotFoundError, ValueError
        A digit is asked for, and `hashedmm.load_mnist` does not find or trust MNIST's files.
    RuntimeError
        The photograph is not here or decodes to other pixels; or this machine made other bits than `CHECKSUMS` holds.

    Warns
    -----
    RuntimeWarning
        A file in the cache was damaged, and is made again; or the cache cannot be written to.

    Notes
    -----
    H. Larochelle, D. Erhan, A. Courville, J. Bergstra and Y. Bengio, "An empirical evaluation of deep architectures on
    problems with many factors of variation", ICML 2007, and the pages MnistVariations, RectanglesData and
    ConvexNonConvex that they published with it. What differs from these, or is not said there:

    - A digit covers what is behind it by the larger of the two values in each pixel.
    - Their patches came from 20 pictures of the internet. One photograph has few patches that do not overlap, and which
      packages are installed must not change the data: so drawn pictures are the default, and not "auto".
    - Drawings to test with that are in the training part are left out, and no patch is behind digits of both parts.
    - Convex regions: see `convex`.

    What takes seconds to make is kept in the folder variants of $HASHEDMM_CACHE, else of hashedmm in $XDG_CACHE_HOME or
    ~/.cache: 49 MB a set. Files are verified when read, and may be deleted at any time. All of a set is made even if
    few samples are asked for.

    Examples
    --------
    >>> load_variant("rot", n_train=1000, n_test=500)
    Dataset('rot[:1000, :500]': 1000 to train, 500 to test, 784 features, 10 classes)
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise ValueError(f"name: expected one of {', '.join(VARIANTS)}, got {name!r}; MNIST itself is load_mnist()")
    variant = VARIANTS[name]
    seed = _integer("seed", seed, 0, 2**32 - 1)
    n_train = variant.n_train if n_train is None else _check_count("n_train", n_train, variant.n_train, name)
    n_test = variant.n_test if n_test is None else _check_count("n_test", n_test, variant.n_test, name)
    origin = _origin(name, backgrounds)

    kind = f"{name}:{origin}" if origin else name
    full = kind if seed == 0 else f"{kind}:seed={seed}"
    (x_train, y_train), (x_test, y_test) = _cached(kind, variant, seed, origin)
    whole = Dataset(
        full, _pixels(x_train), y_train.astype(np.int64), _pixels(x_test), y_test.astype(np.int64), variant.n_classes
    )
    return whole.subset(n_train, n_test)


def _origin(name: str, backgrounds: str | None) -> str:
    """Where the pictures of a variant come from: "procedural", "natural", or "" if it has none."""
    if name not in ("bg_img", "bg_img_rot"):
        if backgrounds is not None:
            raise ValueError(f"backgrounds: {name!r} has no pictures, got {backgrounds!r}; leave it out")
        return ""
    if backgrounds is None:
        return "procedural"
    if backgrounds not in BACKGROUNDS:
        raise ValueError(f"backgrounds: expected one of {', '.join(BACKGROUNDS)}, got {backgrounds!r}")
    if backgrounds == "auto":
        try:
            natural_picture()
        except RuntimeError:
            return "procedural"
        return "natural"
    return backgrounds


# --------------------------------------------------------------------------------------------------------------------
# The cache, and what seed 0 must give

# What `checksum` gives for seed 0. A recipe that changes needs a new sum here; cached files carry the sum in their
# names, so that those of an older recipe are not read.
CHECKSUMS: dict[str, str] = {
    "basic": "fb52b0be32fd93242e959a93f7bede892a2a9849f908063e2036a46332165097",
    "rot": "91c45bc9a730176bd0d0a9617a93e60b9a264b8e3428fe4166459eadad81a3c6",
    "bg_rand": "ac72e7a041e63e121b1a64da360151494489f2e6c6fd906625780aeb6ba6b945",
    "bg_img:procedural": "4d7f7f953a85281de3e74393cf6cf0ba0f29f237cd39776eb4dea5f93850c8cf",
    "bg_img:natural": "e9aaa85a5400b801cb778b2ec3ad61a95bb0c939f4e3b65e939c5d7d4cd7d2af",
    "bg_img_rot:procedural": "9d1e6a9eab540e1ab87278fadcd2b62b065c96e6e13e1676f58d8e8b6d801e58",
    "bg_img_rot:natural": "f53bfd56235bdaf697594265ad749b011141bc0f1ce68446e7134ba73517258a",
    "rect": "67550678a0a5d8831ecddee8eb764b453ded98199fcc6323cabd96636e5429e7",
    "convex": "c0964d0e2da4b8e3e446c4c000c3da71bf8223d006ccc635b8032791eee25005",
}


def checksum(train: Part, test: Part) -> str:
    """The SHA-256 of both parts of a full data set: for each its images, then its labels, as bytes."""
    sha = hashlib.sha256()
    for array in (*train, *test):
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def cache_file(kind: str, seed: int) -> Path:
    """Where a data set is kept: `kind` is a key of `CHECKSUMS`."""
    return cache_dir() / "variants" / f"{kind.replace(':', '-')}-{seed}-{CHECKSUMS[kind][:8]}.safetensors"


def _cached(kind: str, variant: Variant, seed: int, origin: str) -> tuple[Part, Part]:
    """The full data set: from the cache, else made, checked and, if that took seconds, kept there."""
    path = cache_file(kind, seed)
    if variant.cached:
        try:
            return _from_cache(path, kind, variant, seed)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            warnings.warn(f"{kind} is made again, as its file in the cache is of no use: {error}", RuntimeWarning, 3)

    train, test = variant.make(seed, variant.n_train, variant.n_test, origin)
    if seed == 0 and (got := checksum(train, test)) != CHECKSUMS[kind]:
        raise RuntimeError(
            f"{kind}: this machine makes other bits than those recorded: expected the SHA-256 {CHECKSUMS[kind]}, got "
            f"{got}. Results would not compare. Please report it, with the processor and the version of NumPy "
            f"({np.__version__}); until it is mended use another release of NumPy"
        )
    if variant.cached:
        arrays = {"x_train": train[0], "y_train": train[1], "x_test": test[0], "y_test": test[1]}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            safefile.write(path, "dataset", {"kind": kind, "seed": seed}, arrays)
        except (OSError, ValueError) as error:
            warnings.warn(f"{kind} is not kept for the next time: {error}", RuntimeWarning, 3)
    return train, test


def _from_cache(path: Path, kind: str, variant: Variant, seed: int) -> tuple[Part, Part]:
    """What the cache holds. ValueError if it is not this data set, whole and unaltered."""
    document, arrays = safefile.read(path, "dataset")
    parts = []
    for part, n in (("train", variant.n_train), ("test", variant.n_test)):
        for name, shape in ((f"x_{part}", (n, SIDE, SIDE)), (f"y_{part}", (n,))):
            array = arrays.get(name)
            if array is None or array.dtype != np.uint8 or array.shape != shape:
                got = "none" if array is None else f"{array.shape} of {array.dtype}"
                raise ValueError(f"{path}: expected the array {name}, {shape} of uint8, got {got}")
        parts.append((arrays[f"x_{part}"], arrays[f"y_{part}"]))
    train, test = parts
    if document != {"kind": kind, "seed": seed} or (seed == 0 and checksum(train, test) != CHECKSUMS[kind]):
        raise ValueError(f"{path}: expected {kind} of seed {seed}, got another data set: {document}")
    return train, test


# --------------------------------------------------------------------------------------------------------------------
# Random numbers and angles


class Stream:
    """Random numbers for one purpose of one seed: the raw words of PCG64, so that no version of NumPy changes them."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence([seed, int.from_bytes(purpose.encode(), "big")]))

    def words(self, n: int) -> NDArray[np.uint64]:
        """(n,) uniform 64-bit integers."""
        return self._bits.random_raw(n)

    def turns(self, n: int) -> NDArray[np.uint64]:
        """(n,) angles, uniform, in units of 2^-32 of a full turn."""
        return self.words(n) >> np.uint64(32)

    def below(self, bound: int | NDArray[np.int64], n: int) -> NDArray[np.int64]:
        """(n,) integers in [0, bound), with a bound below 2^31 for all or for each: the high word of a product."""
        return ((self.turns(n) * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)

    def units(self, n: int) -> NDArray[np.float64]:
        """(n,) multiples of 2^-53 in [0, 1)."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def bytes(self, n: int) -> NDArray[np.uint8]:
        """(n,) bytes, eight a word; n must be a multiple of 8."""
        return self.words(n // 8).astype("<u8").view(np.uint8)


def circle(turn: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of turn / 2^32 of a full turn, the same bits on every machine, exact at quarter turns.

    Taylor's series in one quarter, to the last bit or two: libraries' own functions differ there.
    """
    x = (turn & np.uint64(2**30 - 1)).astype(np.float64) * (math.pi / 2**31)  # in [0, pi/2)
    square = x * x
    cosine, sine = np.ones_like(x), np.ones_like(x)
    for k in range(24, 0, -2):
        cosine = 1.0 - cosine * square / (k * (k - 1))
        sine = 1.0 - sine * square / (k * (k + 1))
    sine *= x
    quarter = (turn >> np.uint64(30)).astype(np.int64)
    return np.choose(quarter, [cosine, -sine, -cosine, sine]), np.choose(quarter, [sine, cosine, -sine, -cosine])


# --------------------------------------------------------------------------------------------------------------------
# Digits


def _digits(seed: int, n_train: int, n_test: int) -> tuple[Part, Part]:
    """MNIST's 70,000 digits, shuffled: some from the front to train on, some from the back to test with."""
    folder = _mnist_folder(None)
    content = {name: _read(_find(folder, name), name) for name in MNIST_FILES}
    images, labels = (
        np.concatenate([content[f"{part}-{what}-ubyte"] for part in ("train", "t10k")])
        for what in ("images-idx3", "labels-idx1")
    )
    order = np.argsort(Stream(seed, "order of digits").words(len(labels)), kind="stable")
    train, test = order[:n_train], order[::-1][:n_test]
    return (images[train], labels[train]), (images[test], labels[test])


def rotate(images: Images, turn: NDArray[np.uint64]) -> Images:
    """Rotate images counterclockwise about their centres, each by its own angle. Bilinear; black comes in from outside.

    Parameters
    ----------
    images : (n, 28, 28) uint8
    turn : (n,) uint64, angles in units of 2^-32 of a full turn. At quarter turns the result is `np.rot90`'s.

    Returns
    -------
    (n, 28, 28) uint8, rounded to nearest
    """
    wide = SIDE + 3  # one black pixel before, two behind
    framed = np.zeros((len(images), wide, wide), np.uint8)
    framed[:, 1 : SIDE + 1, 1 : SIDE + 1] = images
    centre = (SIDE - 1) / 2
    y, x = (np.arange(SIDE) - centre)[:, None], (np.arange(SIDE) - centre)[None, :]
    cosine, sine = (values[:, None, None] for values in circle(turn))
    # Where each pixel comes from, inside the frame: 0 to 29, so that it has four neighbours.
    row = np.clip(cosine * y + sine * x + (centre + 1), 0, SIDE + 1)
    column = np.clip(cosine * x - sine * y + (centre + 1), 0, SIDE + 1)
    top, left = row.astype(np.int32), column.astype(np.int32)
    down, right = row - top, column - left
    at = top * np.int32(wide) + left + (np.arange(len(images), dtype=np.int32) * wide**2)[:, None, None]
    flat = framed.reshape(-1)
    a, b, c, d = (flat.take(at + np.int32(step)).astype(np.float64) for step in (0, 1, wide, wide + 1))
    upper, lower = a + right * (b - a), c + right * (d - c)
    return (upper + down * (lower - upper) + 0.5).astype(np.uint8)


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, CHUNK):
        yield slice(start, min(start + CHUNK, n))


def _digit_variant(*, rotated: bool = False, noise: bool = False, pictures: bool = False) -> Recipe:
    """The recipe of a set of digits: first rotated, then before a background."""

    def make(seed: int, n_train: int, n_test: int, backgrounds: str) -> tuple[Part, Part]:
        source = Patches(_pictures(seed, backgrounds)) if pictures else None
        train, test = _digits(seed, n_train, n_test)
        for half, (part, (images, _)) in enumerate((("train", train), ("test", test))):
            angles = Stream(seed, f"angles, {part}")
            background = Stream(seed, f"background, {part}")
            for chunk in _chunks(len(images)):
                some = images[chunk]
                if rotated:
                    some = rotate(some, angles.turns(len(some)))
                if noise:
                    some = np.maximum(some, background.bytes(some.size).reshape(some.shape))
                if source:
                    some = np.maximum(some, source.draw(background, len(some), half))
                images[chunk] = some
        return train, test

    return make


# --------------------------------------------------------------------------------------------------------------------
# Pictures to put behind digits

PICTURES, PICTURE_SIDE, LEAVES = 20, 512, 4000
LEAST_DEVIATION = 16  # grey levels
PHOTOGRAPH = "grace_hopper.jpg"
PHOTOGRAPH_SHA256 = "eab88577b69ab054245c69f59ef8f167d3daaededa33ad4eb7af4a9fe5d177f3"  # of its luminance


def _pictures(seed: int, backgrounds: str) -> Images:
    return natural_picture()[None] if backgrounds == "natural" else procedural_pictures(seed)


def procedural_pictures(seed: int, n: int = PICTURES) -> NDArray[np.uint8]:
    """Pictures with the statistics of natural ones: dead leaves with a grain whose spectrum falls as 1/f.

    Dead leaves: ellipses that fall one over the other. Their radii follow a power law of exponent -3, which makes the
    picture look alike at every scale, as natural pictures do (A. Lee, D. Mumford and J. Huang, "Occlusion models for
    natural images", IJCV 2001). Each has a grey level of its own, and all of a picture lie about along one direction.
    The grain adds octaves of noise of equal strength, an amplitude of 1/f (D. Field, "Relations between the statistics
    of natural images and the response properties of cortical cells", JOSA A 1987).

    Returns
    -------
    (n, 512, 512) uint8
    """
    pictures = np.empty((n, PICTURE_SIDE, PICTURE_SIDE), np.uint8)
    for number in range(n):
        stream = Stream(seed, f"picture {number}")
        leaves = _dead_leaves(stream)
        grain = np.sum([_octave(stream, cell) for cell in (2, 4, 8, 16, 32, 64)], axis=0)
        pictures[number] = np.clip(leaves.astype(np.int64) + grain // 8, 0, 255)
    return pictures


def _dead_leaves(stream: Stream) -> NDArray[np.uint8]:
    """One picture of `LEAVES` ellipses, the last one on top."""
    side, smallest, largest = PICTURE_SIDE, 6.0, 200.0
    # The inverse of the radii's distribution: density r^-3 between the two bounds.
    radius = smallest / np.sqrt(1.0 - stream.units(LEAVES) * (1.0 - (smallest / largest) ** 2))
    centre = stream.units(2 * LEAVES).reshape(2, LEAVES) * (side + 128) - 64
    elongation = 1.0 + 2.0 * stream.units(LEAVES)
    grey = stream.below(113, LEAVES) + stream.below(113, LEAVES)  # 0 to 224, seldom near the ends: digits stay visible
    about = stream.turns(1) + (stream.turns(LEAVES) >> np.uint64(2)) - np.uint64(2**29)  # an eighth to either side
    cosine, sine = circle(about & np.uint64(2**32 - 1))
    picture = np.full((side, side), 112, np.uint8)
    columns = np.arange(side, dtype=np.float64)
    low = np.clip(np.ceil(centre - radius), 0, side).astype(np.int64)
    high = np.clip(np.floor(centre + radius) + 1, 0, side).astype(np.int64)
    for k in range(LEAVES):
        (top, left), (bottom, right) = low[:, k], high[:, k]
        dy, dx = columns[top:bottom, None] - centre[0, k], columns[None, left:right] - centre[1, k]
        along, across = cosine[k] * dx + sine[k] * dy, (cosine[k] * dy - sine[k] * dx) * elongation[k]
        picture[top:bottom, left:right][along * along + across * across <= radius[k] * radius[k]] = grey[k]
    return picture


def _octave(stream: Stream, cell: int) -> NDArray[np.int64]:
    """Smooth noise about 0: random bytes at every `cell`-th pixel, bilinear in between, in exact integers."""
    n = PICTURE_SIDE // cell + 1
    corners = stream.bytes(-(-n * n // 8) * 8)[: n * n].reshape(n, n).astype(np.int64) - 128
    step = np.arange(cell)
    rows = corners[:-1, None] * (cell - step)[None, :, None] + corners[1:, None] * step[None, :, None]
    rows = rows.reshape(PICTURE_SIDE, n)
    both = rows[:, :-1, None] * (cell - step) + rows[:, 1:, None] * step
    return np.floor_divide(both.reshape(PICTURE_SIDE, PICTURE_SIDE), cell**2, dtype=np.int64)


def natural_picture() -> NDArray[np.uint8]:
    """The photograph of Grace Hopper (public domain) that matplotlib's package holds: (600, 512) uint8, grey.

    One photograph, 307,200 pixels: 62,000 patches of 784 pixels show every one of them 158 times. The luminance is
    decoded as the file stores it, without the colours, and verified, since decoders may differ.

    Raises
    ------
    RuntimeError
        matplotlib, Pillow or the file is missing, or the pixels are not those expected.
    """
    instead = 'or choose backgrounds="procedural"'
    try:
        from matplotlib import get_data_path
        from PIL import Image

        with Image.open(Path(get_data_path()) / "sample_data" / PHOTOGRAPH) as image:
            image.draft("L", image.size)
            picture = np.array(image.convert("L"))
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"the photograph {PHOTOGRAPH} of matplotlib's package cannot be read: {error}. Install it with "
            f"pip install 'hashedmm[plot]', {instead}"
        ) from error
    got = hashlib.sha256(picture.tobytes()).hexdigest()
    if got != PHOTOGRAPH_SHA256:
        raise RuntimeError(
            f"{PHOTOGRAPH}: expected pixels with the SHA-256 {PHOTOGRAPH_SHA256}, got {got}: another file, or a "
            f"decoder that rounds in another way. Install other releases of matplotlib or Pillow, {instead}"
        )
    return picture


class Patches:
    """The patches of 28 x 28 pixels of some pictures, (k, height, width) uint8, but for those with little texture.

    As the paper does, though its bound is not known: here the grey levels' standard deviation must be at least
    `LEAST_DEVIATION`. Sums are exact integers.
    """

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self._windows = sliding_window_view(pictures, (SIDE, SIDE), axis=(1, 2))
        n, found, start = SIDE**2, [], 0
        for picture in pictures.astype(np.int64):
            total, squares = _window_sums(picture), _window_sums(picture * picture)
            found.append(start + np.flatnonzero(n * squares - total * total >= (n * LEAST_DEVIATION) ** 2))
            start += total.size
        self.places = np.concatenate(found)  # picture, row and column of each patch, as one number

    def draw(self, stream: Stream, n: int, half: int) -> Images:
        """(n, 28, 28) patches, uniform in every other one of all: in half 0 or half 1, which share none."""
        chosen = self.places[2 * stream.below(len(self.places) // 2, n) + half]
        return self._windows[np.unravel_index(chosen, self._windows.shape[:3])]


def _window_sums(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of each window of 28 x 28 values: differences of cumulative sums."""
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.int64)
    sums[1:, 1:] = values.cumsum(0).cumsum(1)
    return sums[SIDE:, SIDE:] - sums[:-SIDE, SIDE:] - sums[SIDE:, :-SIDE] + sums[:-SIDE, :-SIDE]


# --------------------------------------------------------------------------------------------------------------------
# Drawings

BATCH = 512  # candidates at a time
LEAST_DIFFERENCE = 3  # pixels, between the sides of a rectangle


def _drawings(batch: Callable[[Stream], Part]) -> Recipe:
    """The recipe of a set of drawings, from a function that draws some: test images are none that are trained on."""

    def make(seed: int, n_train: int, n_test: int, backgrounds: str) -> tuple[Part, Part]:
        train = _gather(batch, Stream(seed, f"{batch.__name__}, train"), n_train, set())
        test = _gather(batch, Stream(seed, f"{batch.__name__}, test"), n_test, set(_marks(train[0])))
        return train, test

    return make


def _gather(batch: Callable[[Stream], Part], stream: Stream, n: int, seen: set[bytes]) -> Part:
    """The first n drawings that are not in `seen`."""
    images, labels, count = [], [], 0
    while count < n:
        x, y = batch(stream)
        new = np.array([mark not in seen for mark in _marks(x)], bool)
        images.append(x[new])
        labels.append(y[new])
        count += int(new.sum())
    return np.concatenate(images)[:n], np.concatenate(labels)[:n]


def _marks(images: Images) -> list[bytes]:
    """What tells black-and-white images apart: a bit a pixel."""
    return [row.tobytes() for row in np.packbits(images.reshape(len(images), -1) > 0, axis=1)]


def rectangles(stream: Stream, n: int = BATCH) -> Part:
    """Outlines of rectangles, one pixel thick, and whether each is taller than wide.

    Height and width are uniform in 1 to 28, of pairs that differ by at least 3; then its place is, of those where it
    fits.
    """
    sides = np.arange(1, SIDE + 1)
    pairs = np.array([(h, w) for h in sides for w in sides if abs(h - w) >= LEAST_DIFFERENCE])
    height, width = pairs[stream.below(len(pairs), n)].T
    top, left = stream.below(SIDE + 1 - height, n), stream.below(SIDE + 1 - width, n)

    def filled(margin: int) -> NDArray[np.bool_]:
        rows, columns = (
            (np.arange(SIDE) >= (start + margin)[:, None]) & (np.arange(SIDE) < (start + size - margin)[:, None])
            for start, size in ((top, height), (left, width))
        )
        return rows[:, :, None] & columns[:, None, :]

    return np.where(filled(0) & ~filled(1), np.uint8(255), np.uint8(0)), (height > width).astype(np.uint8)


def convex(stream: Stream) -> Part:
    """White regions and whether each is convex: as many of one kind as of the other, in random order.

    Convex: the pixels in all of some half-planes, whose edges have a uniform direction and pass through a uniform point
    of the image; at least 19 pixels. Not convex: the union of 2, 3 or 4 such sets of at least 10 pixels each, if a
    pixel is missing in it that lies in its convex hull.

    The number of half-planes is geometric, as published. Published are the parameters 0.195 and, for parts of unions,
    0.07, and that both kinds have the same mean number of pixels. They do only if numbers begin with 0: then more than
    a third of the convex images are white all over, one and the same image, in training and test. So numbers begin with
    1 here, in unions with 3, and the first parameter is 0.3, which balances the mean again (about 295 pixels).
    """
    regions = _half_planes(stream, BATCH, chance=0.3, least=1, pixels=19)
    regions = regions[is_convex(regions)]  # but for rounding, all of them
    parts = _half_planes(stream, 24 * BATCH, chance=0.07, least=3, pixels=10)
    parts = parts[: len(parts) // 4 * 4].reshape(-1, 4, SIDE, SIDE)
    used = np.arange(4) < 2 + stream.below(3, len(parts))[:, None]
    unions: NDArray[np.bool_] = np.logical_or.reduce(parts & used[:, :, None, None], axis=1)
    unions = unions[~is_convex(unions)]
    n = min(len(regions), len(unions))
    order = np.argsort(stream.words(2 * n), kind="stable")
    white = np.concatenate([regions[:n], unions[:n]])[order]
    return np.where(white, np.uint8(255), np.uint8(0)), (order < n).astype(np.uint8)


def _half_planes(stream: Stream, n: int, *, chance: float, least: int, pixels: int) -> NDArray[np.bool_]:
    """Intersections of half-planes, (m, 28, 28): of n candidates those that have at least `pixels` pixels.

    Each is cut by `least` half-planes and then by more, until an event of probability `chance` stops it. A row of a
    convex set is one run of pixels, so that a cut takes one division a row.
    """
    survival = np.cumprod(np.full(64, 1.0 - chance))  # of at least 1, 2, ... cuts more
    cuts = least + np.searchsorted(-survival, -stream.units(n))
    rows = np.arange(SIDE, dtype=np.float32)
    ends = np.zeros((2, n, SIDE), np.float32)  # of each row: its first column, and its last with a minus sign
    ends[1] = 1 - SIDE
    index = np.arange(n)
    done: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    for cut in range(int(cuts.max()) + 1):
        enough = np.maximum(1 - ends[0] - ends[1], 0).sum(axis=1) >= pixels  # regions only become smaller
        finished, unfinished = enough & (cuts == cut), enough & (cuts > cut)
        done.append((index[finished], ends[:, finished]))
        index, ends, cuts = index[unfinished], ends[:, unfinished], cuts[unfinished]
        if (m := len(index)) == 0:
            break
        # Odd turns: an edge is never quite level, so that no cosine is 0.
        cosine, sine = (values[:, None].astype(np.float32) for values in circle(stream.turns(m) | np.uint64(1)))
        x, y = (stream.units(2 * m) * SIDE - 0.5).astype(np.float32).reshape(2, m, 1)
        sign = np.where(cosine > 0, np.float32(1), np.float32(-1))  # white is right of the edge, or left
        edge = sign * x - sine * (rows - y) / np.abs(cosine)
        side = (np.where(cosine[:, 0] > 0, 0, 1), np.arange(m))
        ends[side] = np.maximum(ends[side], np.ceil(edge))
    order = np.argsort(np.concatenate([index for index, _ in done]))
    first, minus_last = np.concatenate([ends for _, ends in done], axis=1)[:, order, :, None]
    columns = np.arange(SIDE)
    return (first <= columns) & (columns <= -minus_last)


def is_convex(white: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the pixels of each region are all those in their convex hull: (n, 28, 28) bool -> (n,) bool. Exact.

    Each row must be one run of pixels. Then a pixel is missing beside a run if, in its row, a chord between the ends of
    two other rows passes by the first pixel outside or beyond it: if some slope down to a later row is at least some
    slope from an earlier one. Equal fractions of small integers are equal as float64. Rows without pixels, in what is
    left, are looked at one by one.
    """
    count = white.sum(axis=2)
    filled = count > 0
    first = white.argmax(axis=2)
    last = white.shape[2] - 1 - white[:, :, ::-1].argmax(axis=2)
    rows = np.arange(white.shape[1])
    good: NDArray[np.bool_] = np.logical_and.reduce((count == last - first + 1) | ~filled, axis=1)
    for end in (last.astype(np.float64), -first.astype(np.float64)):
        for y in rows[1:-1]:
            outside = end[:, y, None] + 1
            before = np.where(filled[:, :y], (outside - end[:, :y]) / (y - rows[:y]), np.inf).min(axis=1)
            after = np.where(filled[:, y + 1 :], (end[:, y + 1 :] - outside) / (rows[y + 1 :] - y), -np.inf).max(axis=1)
            good &= ~(filled[:, y] & (after >= before))
    extent = rows[-1] + 1 - filled[:, ::-1].argmax(axis=1) - filled.argmax(axis=1)
    for k in np.flatnonzero(good & (filled.sum(axis=1) < extent)):
        good[k] = not _pixels_between(first[k], last[k], filled[k])
    return good


def _pixels_between(first: NDArray[np.int64], last: NDArray[np.int64], filled: NDArray[np.bool_]) -> bool:
    """Whether a row without pixels, between rows that have some, has a pixel in the hull: only in slivers has none."""
    rows = np.flatnonzero(filled)
    for y in np.flatnonzero(~filled):
        above, below = rows[rows < y, None], rows[rows > y]
        if above.size and below.size:
            left = -(-(first[above] * (below - y) + first[below] * (y - above)) // (below - above))  # rounded up
            right = (last[above] * (below - y) + last[below] * (y - above)) // (below - above)
            if left.min() <= right.max():
                return True
    return False


# --------------------------------------------------------------------------------------------------------------------

# Each of the published size, which `load_variant` cuts down.
VARIANTS: dict[str, Variant] = {
    "basic": Variant("digits of MNIST, fewer to train on", 12000, 50000, 10, _digit_variant(), False),
    "rot": Variant("digits at any angle", 12000, 50000, 10, _digit_variant(rotated=True), True),
    "bg_rand": Variant("digits on noise", 12000, 50000, 10, _digit_variant(noise=True), False),
    "bg_img": Variant("digits on patches of pictures", 12000, 50000, 10, _digit_variant(pictures=True), True),
    "bg_img_rot": Variant(
        "both: digits at any angle on patches", 12000, 50000, 10, _digit_variant(rotated=True, pictures=True), True
    ),
    "rect": Variant("outlines of rectangles: tall or wide", 1200, 50000, 2, _drawings(rectangles), False),
    "convex": Variant("white regions: convex or not", 8000, 50000, 2, _drawings(convex), True),
}
