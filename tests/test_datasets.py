"""MNIST is what it says, from any folder and packing; whatever is wrong with a file gets a message that mends it."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest

from hashedmm import datasets
from hashedmm.datasets import MNIST_FILES, Dataset, load_mnist

DATA = Path(__file__).resolve().parent.parent / "data" / "mnist"
NAMES = tuple(MNIST_FILES)
LABELS = "t10k-labels-idx1-ubyte"  # small: fast to break
IMAGES = "t10k-images-idx3-ubyte"


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("HASHEDMM_DATA", raising=False)


@pytest.fixture
def folder(tmp_path):
    """A folder like data/mnist; a test breaks one file of it."""
    for name in NAMES:
        (tmp_path / f"{name}.gz").symlink_to(DATA / f"{name}.gz")
    return tmp_path


def unpacked(name):
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def replace(folder, name, content, suffix=".gz"):
    (folder / f"{name}.gz").unlink()
    (folder / f"{name}{suffix}").write_bytes(content)


def message_of(error, folder, *parts):
    """Load what is broken; the message has the parts, and says how to mend it."""
    with pytest.raises(error) as caught:
        load_mnist(folder)
    message = str(caught.value)
    for part in (*parts, "git checkout -- data/mnist", "HASHEDMM_DATA"):
        assert str(part) in message
    return message


def test_mnist_is_mnist(mnist):
    assert mnist.x_train.shape == (60000, 784) and mnist.x_test.shape == (10000, 784)
    assert mnist.y_train.shape == (60000,) and mnist.y_test.shape == (10000,)
    assert mnist.x_train.dtype == mnist.x_test.dtype == np.float32
    assert mnist.y_train.dtype == mnist.y_test.dtype == np.int64
    assert mnist.x_train.flags.c_contiguous and mnist.x_test.flags.c_contiguous
    assert mnist.x_train.min() == 0 and mnist.x_train.max() == 1
    # The published counts of each digit, and the mean and standard deviation that every tutorial normalises with.
    assert np.bincount(mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.y_train[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.x_train.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert mnist.x_train.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
    assert (mnist.name, mnist.n_features, mnist.n_classes) == ("mnist", 784, 10)
    assert repr(mnist) == "Dataset('mnist': 60000 to train, 10000 to test, 784 features, 10 classes)"


def test_pixels_are_exact(mnist):
    stored = np.frombuffer(unpacked(IMAGES), np.uint8, offset=16).reshape(10000, 784)
    assert np.array_equal(mnist.x_test * np.float32(255), stored)


def test_checksum_file_agrees_with_the_loader():
    lines = (DATA / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert listed == {name: digest for name, (_, digest) in MNIST_FILES.items()}


def test_folder_holds_only_what_it_says():
    files = {file.name for file in DATA.iterdir()}
    assert files == {f"{name}.gz" for name in NAMES} | {"README.md", "SHA256SUMS"}


@pytest.mark.parametrize("below", ["", "mnist"])
@pytest.mark.parametrize("by", ["path", "variable"])
def test_folder_is_found(tmp_path, monkeypatch, mnist, below, by):
    target = tmp_path / below
    target.mkdir(exist_ok=True)
    for name in NAMES:
        (target / f"{name}.gz").symlink_to(DATA / f"{name}.gz")
    if by == "variable":
        monkeypatch.setenv("HASHEDMM_DATA", str(tmp_path))
    loaded = load_mnist(tmp_path if by == "path" else None)
    assert np.array_equal(loaded.y_test, mnist.y_test) and np.array_equal(loaded.x_test, mnist.x_test)


def test_path_goes_before_variable_before_checkout(monkeypatch, folder, tmp_path_factory):
    nowhere = tmp_path_factory.mktemp("empty")
    monkeypatch.setenv("HASHEDMM_DATA", str(nowhere))
    assert load_mnist(folder).n_features == 784
    message_of(FileNotFoundError, None, nowhere)
    monkeypatch.setenv("HASHEDMM_DATA", "")  # the same as unset
    assert load_mnist().n_features == 784


def test_raw_files(folder, mnist):
    for name in NAMES:
        replace(folder, name, unpacked(name), suffix="")
    loaded = load_mnist(str(folder))
    assert np.array_equal(loaded.x_train, mnist.x_train) and np.array_equal(loaded.y_train, mnist.y_train)


def test_packing_is_seen_from_the_content(folder, mnist):
    replace(folder, LABELS, unpacked(LABELS))  # unpacked, and still called .gz
    assert np.array_equal(load_mnist(folder).y_test, mnist.y_test)


@pytest.mark.parametrize("name", NAMES)
def test_missing_file(folder, name):
    (folder / f"{name}.gz").unlink()
    message_of(FileNotFoundError, folder, folder, f"neither {name} nor {name}.gz")


@pytest.mark.parametrize("size", [0, 1, 5, 18, 2000, -1])
def test_truncated_gz(folder, size):
    replace(folder, LABELS, (DATA / f"{LABELS}.gz").read_bytes()[:size])
    message_of(ValueError, folder, folder / f"{LABELS}.gz")


def test_truncated_gz_says_so(folder):
    replace(folder, LABELS, (DATA / f"{LABELS}.gz").read_bytes()[:2000])
    message_of(ValueError, folder, "cut off or altered", "gzip says")


@pytest.mark.parametrize("position", [10, 2000, -6])
def test_altered_gz(folder, position):
    content = bytearray((DATA / f"{LABELS}.gz").read_bytes())
    content[position] ^= 0x10
    replace(folder, LABELS, bytes(content))
    message_of(ValueError, folder, folder / f"{LABELS}.gz")


@pytest.mark.parametrize("name", NAMES)
def test_altered_content_in_a_valid_gz(folder, name):
    content = bytearray(unpacked(name))
    content[-1] ^= 1
    replace(folder, name, gzip.compress(bytes(content), compresslevel=1))
    message_of(ValueError, folder, folder / f"{name}.gz", "was altered", MNIST_FILES[name][1])


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", b"\x80\x04\x95"])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_wrong_magic(folder, content, pack):
    replace(folder, LABELS, pack(content))
    message_of(
        ValueError, folder, f"is not {LABELS}", "00 00 08 01 00 00 27 10", content[:8].hex(" ") or "an empty file"
    )


def test_files_swapped(folder):
    replace(folder, LABELS, unpacked("train-labels-idx1-ubyte"))
    message_of(ValueError, folder, f"is not {LABELS}", "00 00 08 01 00 00 ea 60")


@pytest.mark.parametrize(("size", "got"), [(10007, "got 10007: it is cut off"), (8, "got 8:"), (10009, "got more")])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_wrong_length(folder, size, got, suffix):
    content = unpacked(LABELS)[:size].ljust(size, b"\0")
    replace(folder, LABELS, gzip.compress(content) if suffix else content, suffix=suffix)
    message_of(ValueError, folder, folder / f"{LABELS}{suffix}", "expected 10008 bytes", got)


@pytest.mark.parametrize("by", ["path", "variable"])
@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_folder_without_data(tmp_path, monkeypatch, by, what):
    place = tmp_path / what
    says = "holds none" if what == "empty" else "is not a folder"
    if what == "empty":
        place.mkdir()
    elif what == "file":
        place.write_text("")
    if by == "variable":
        monkeypatch.setenv("HASHEDMM_DATA", str(place))
    source = "path is" if by == "path" else "$HASHEDMM_DATA is"
    message_of(FileNotFoundError, place if by == "path" else None, source, place, says, *NAMES)


def test_no_checkout_around_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "__file__", str(tmp_path / "site-packages" / "hashedmm" / "datasets.py"))
    message_of(FileNotFoundError, None, "no folder was given", "is not set", tmp_path)


@pytest.mark.parametrize("path", [3, b"data", ["data"], True])
def test_path_of_another_type(path):
    with pytest.raises(TypeError, match="path: expected the path of a folder"):
        load_mnist(path)


def test_subset(mnist):
    small = mnist.subset(300, np.int64(20))
    assert small.x_train.shape == (300, 784) and small.y_test.shape == (20,)
    assert np.shares_memory(small.x_train, mnist.x_train)
    assert np.array_equal(small.x_test, mnist.x_test[:20]) and np.array_equal(small.y_train, mnist.y_train[:300])
    assert small.name == "mnist[:300, :20]"  # records of a run on a part must not look like records of the whole
    assert mnist.subset(1, 1).n_classes == 10
    assert mnist.subset(60000, 10000) is mnist


@pytest.mark.parametrize(
    ("n_train", "n_test", "error", "says"),
    [
        (0, 10, ValueError, "n_train: expected 1 to 60000"),
        (60001, 10, ValueError, "n_train: .* got 60001"),
        (10, -1, ValueError, "n_test: expected 1 to 10000"),
        (10.0, 10, TypeError, "n_train: expected an integer, got 10.0"),
        (10, True, TypeError, "n_test: expected an integer, got True"),
        (10, None, TypeError, "n_test: expected an integer, got None"),
    ],
)
def test_subset_refuses(mnist, n_train, n_test, error, says):
    with pytest.raises(error, match=says):
        mnist.subset(n_train, n_test)


def tiny(**changes):
    arrays = {
        "x_train": np.zeros((3, 2), np.float32),
        "y_train": np.array([0, 1, 2]),
        "x_test": np.zeros((2, 2), np.float32),
        "y_test": np.array([0, 1]),
    }
    return Dataset("tiny", **{**arrays, **changes})


def test_dataset_counts_its_classes():
    assert tiny().n_classes == 3
    assert tiny(n_classes=7).n_classes == 7
    assert tiny().n_features == 2


def test_dataset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().name = "other"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_train": np.zeros((3, 2))}, "x_train: expected a 2-d array of float32, got a 2-d array of float64"),
        ({"x_test": np.zeros(2, np.float32)}, "x_test: expected a 2-d array of float32, got a 1-d array"),
        ({"y_test": [0, 1]}, "y_test: expected a 1-d array of int64, got a list"),
        ({"y_train": np.zeros(3, np.uint8)}, "y_train: expected a 1-d array of int64, got a 1-d array of uint8"),
        ({"y_train": np.array([0, 1])}, "x_train has 3 samples and y_train 2 labels"),
        ({"x_test": np.zeros((0, 2), np.float32), "y_test": np.zeros(0, np.int64)}, "0 samples and y_test 0 labels"),
        ({"x_test": np.zeros((2, 3), np.float32)}, "x_train has 2 features and x_test 3"),
        ({"y_train": np.array([0, -1, 2])}, "labels go from -1 to 2"),
        ({"n_classes": 2}, "labels go from 0 to 2; expected 0 to 1"),
    ],
)
def test_dataset_refuses(changes, says):
    with pytest.raises(ValueError, match=says):
        tiny(**changes)
