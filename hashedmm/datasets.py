"""Data to train on: MNIST, read from four local files and verified by checksum, and the ``Dataset`` that holds it.

Nothing is downloaded. Imports NumPy and nothing of this package.
"""

from __future__ import annotations

import gzip
import hashlib
import operator
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ENVIRONMENT_VARIABLE = "HASHEDMM_DATA"

# MNIST's files, in the order in which they are read: the shape of the content, and the SHA-256 of the whole
# decompressed file, header included. This table is the loader's only knowledge of MNIST.
MNIST_FILES: dict[str, tuple[tuple[int, ...], str]] = {
    "train-labels-idx1-ubyte": ((60000,), "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-labels-idx1-ubyte": ((10000,), "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    "t10k-images-idx3-ubyte": ((10000, 28, 28), "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "train-images-idx3-ubyte": ((60000, 28, 28), "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
}

_MEND = (
    "To mend it: in a checkout of hashedmm, `git checkout -- data/mnist`; elsewhere copy the four files of that folder "
    f"and set ${ENVIRONMENT_VARIABLE} to where they are."
)


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Samples and labels, split into a part to train on and a part to test with.

    Parameters
    ----------
    name : str
        What records and tables call it.
    x_train, x_test : float32 arrays, (n_train, n_features) and (n_test, n_features)
        One sample a row. The images of MNIST are in [0, 1].
    y_train, y_test : int64 arrays, (n_train,) and (n_test,)
        Labels, 0 to n_classes - 1.
    n_classes : int
        0, the default: one more than the largest label.

    Raises
    ------
    ValueError
        An array is not of the type above, the shapes disagree, or a label is not in [0, n_classes).
    """

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]
    n_classes: int = 0

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            _check_array(f"x_{part}", x, ndim=2, dtype="float32")
            _check_array(f"y_{part}", y, ndim=1, dtype="int64")
            if len(x) != len(y) or len(y) == 0:
                raise ValueError(
                    f"x_{part} has {len(x)} samples and y_{part} {len(y)} labels; expected as many, at least one"
                )
        if self.x_train.shape[1] != self.x_test.shape[1]:
            raise ValueError(
                f"x_train has {self.x_train.shape[1]} features and x_test {self.x_test.shape[1]}; expected as many"
            )
        lowest = int(min(self.y_train.min(), self.y_test.min()))
        highest = int(max(self.y_train.max(), self.y_test.max()))
        if self.n_classes == 0:
            object.__setattr__(self, "n_classes", highest + 1)
        if lowest < 0 or highest >= self.n_classes:
            raise ValueError(
                f"labels go from {lowest} to {highest}; expected 0 to {self.n_classes - 1} (n_classes {self.n_classes})"
            )

    @property
    def n_features(self) -> int:
        """Values a sample has: 784 for MNIST."""
        return self.x_train.shape[1]

    def subset(self, n_train: int, n_test: int) -> Dataset:
        """The first `n_train` training and `n_test` test samples, as views, under a name that says so.

        In MNIST the first half of the test set is the easier one: compare errors on the same subset only.

        Raises
        ------
        TypeError, ValueError
            A number is not an integer, or not between 1 and what there is.
        """
        n_train = _check_count("n_train", n_train, len(self.y_train), self.name)
        n_test = _check_count("n_test", n_test, len(self.y_test), self.name)
        if (n_train, n_test) == (len(self.y_train), len(self.y_test)):
            return self
        return Dataset(
            f"{self.name}[:{n_train}, :{n_test}]",
            self.x_train[:n_train],
            self.y_train[:n_train],
            self.x_test[:n_test],
            self.y_test[:n_test],
            self.n_classes,
        )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}: {len(self.y_train)} to train, {len(self.y_test)} to test, "
            f"{self.n_features} features, {self.n_classes} classes)"
        )


def _check_count(argument: str, n: object, there: int, name: str) -> int:
    """A number of samples, between 1 and the `there` that the data set `name` has."""
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"{argument}: expected an integer, got {n!r}")
    count = operator.index(n)
    if not 1 <= count <= there:
        raise ValueError(f"{argument}: expected 1 to {there} (the samples of {name!r}), got {n}")
    return count


def _check_array(argument: str, array: object, ndim: int, dtype: str) -> None:
    """Refuse what is not an array (of NumPy or CuPy) with these dimensions and this type."""
    got_ndim, got_dtype = getattr(array, "ndim", None), getattr(array, "dtype", None)
    if got_ndim != ndim or got_dtype != dtype:
        got = f"a {type(array).__name__}" if got_dtype is None else f"a {got_ndim}-d array of {got_dtype}"
        raise ValueError(f"{argument}: expected a {ndim}-d array of {dtype}, got {got}; reshape or convert it first")


def load_mnist(path: str | os.PathLike[str] | None = None) -> Dataset:
    """MNIST, from four local files, each verified by the SHA-256 of its decompressed content. Takes under a second.

    Parameters
    ----------
    path : path of a folder, optional
        Where the four IDX files are, as they come or gzip-compressed (`.gz`); or the folder above, if theirs is called
        `mnist`. Without it: the folder in the environment variable HASHEDMM_DATA, else the checkout's data/mnist.

    Returns
    -------
    Dataset
        x_train (60000, 784) and x_test (10000, 784), float32 in [0, 1]: rows of 28 pixels one after the other;
        y_train (60000,) and y_test (10000,), int64, 0 to 9.

    Raises
    ------
    FileNotFoundError
        A folder or a file is missing.
    ValueError
        A file is cut off, altered, or not MNIST's.

    Notes
    -----
    MNIST is by Yann LeCun and Corinna Cortes, derived from databases of NIST, under CC BY-SA 3.0.
    """
    folder = _mnist_folder(path)
    files = {name: _find(folder, name) for name in MNIST_FILES}  # all are there, before any is read
    content = {name: _read(files[name], name) for name in MNIST_FILES}
    return Dataset(
        name="mnist",
        x_train=_pixels(content["train-images-idx3-ubyte"]),
        y_train=content["train-labels-idx1-ubyte"].astype(np.int64),
        x_test=_pixels(content["t10k-images-idx3-ubyte"]),
        y_test=content["t10k-labels-idx1-ubyte"].astype(np.int64),
    )


def _mnist_folder(path: str | os.PathLike[str] | None) -> Path:
    """The folder with MNIST's files: `path`, else the environment variable, else the checkout."""
    if path is not None and not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected the path of a folder, as str or Path, got {path!r}")
    variable = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if path is not None:
        given, source = Path(path), "path"
    elif variable:
        given, source = Path(variable), f"${ENVIRONMENT_VARIABLE}"
    else:
        checkout = Path(__file__).resolve().parent.parent / "data" / "mnist"
        if not checkout.is_dir():
            raise FileNotFoundError(
                f"MNIST: no folder was given, ${ENVIRONMENT_VARIABLE} is not set, and {checkout} does not exist (an "
                f"installed package holds no data). {_MEND}"
            )
        return checkout
    given = given.expanduser()
    for folder in (given, given / "mnist"):
        if any((folder / f"{name}{suffix}").exists() for name in MNIST_FILES for suffix in ("", ".gz")):
            return folder
    what = "holds none of MNIST's files, nor does its subfolder mnist" if given.is_dir() else "is not a folder"
    raise FileNotFoundError(
        f"MNIST: {source} is {str(given)!r}, which {what}. Expected {', '.join(MNIST_FILES)}, each as it is or with "
        f".gz. {_MEND}"
    )


def _find(folder: Path, name: str) -> Path:
    """The file `name`, or its compressed form."""
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise FileNotFoundError(f"MNIST: {folder} holds neither {name} nor {name}.gz; all four files are needed. {_MEND}")


def _read(file: Path, name: str) -> NDArray[np.uint8]:
    """The verified content of one IDX file: bytes, in the shape that `MNIST_FILES` says.

    Whether a file is compressed is seen from its first bytes, since browsers like to unpack without renaming.
    """
    shape, expected_sum = MNIST_FILES[name]
    # IDX: two zero bytes, 8 for unsigned bytes, the number of dimensions, and each of them as big-endian uint32.
    header = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    size = len(header) + int(np.prod(shape))

    with open(file, "rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file) if compressed else open(file, "rb") as stream:
            content = stream.read(size + 1)  # never more, whatever came
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"MNIST: {file} is cut off or altered: gzip says {error}. {_MEND}") from error

    if content[: len(header)] != header[: len(content)] or not content:
        raise ValueError(
            f"MNIST: {file} is not {name}: expected it to begin with the bytes {header.hex(' ')}, "
            f"got {content[: len(header)].hex(' ') or 'an empty file'}. {_MEND}"
        )
    if len(content) != size:
        got = "more" if len(content) > size else f"{len(content)}: it is cut off"
        raise ValueError(f"MNIST: {file}: expected {size} bytes of content, got {got}. {_MEND}")
    got_sum = hashlib.sha256(content).hexdigest()
    if got_sum != expected_sum:
        raise ValueError(
            f"MNIST: {file} was altered: expected content with SHA-256 {expected_sum}, got {got_sum}. {_MEND}"
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images as rows of float32 in [0, 1]."""
    return np.divide(images.reshape(len(images), -1), np.float32(255), dtype=np.float32)
