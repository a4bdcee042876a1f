"""Saved networks: what is written comes back, and every file that is not one is refused with its reason."""

import gzip
import io
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from hashedmm import safefile
from hashedmm.checkpoint import load_model, read_info, save_model
from hashedmm.hashing import HashSpec
from hashedmm.nn import MLP

STRUCTURES = ("dense", "elementwise", "panels", "strips", "runs", "tiles", "codebook")


def small_model(structure="strips", **options):
    return MLP([48, 80, 10], structure=structure, **({"compression": 1 / 2, "dropout": 0.1, "seed": 7} | options))


@pytest.fixture(scope="module")
def model():
    model = small_model()
    model.parameters()["0.bias"].value[...] = np.arange(80)
    return model


@pytest.fixture
def path(tmp_path, model):
    path = tmp_path / "net.safetensors"
    save_model(path, model, test_error=1.6)
    return path


def as_text(value):
    """A regular expression that matches a value's text."""
    return re.escape(str(value))


# ---- the round trip


@pytest.mark.parametrize("structure", STRUCTURES)
def test_round_trip(structure, tmp_path, rng):
    model = small_model(structure, hash="xxh32" if structure != "dense" else "fmix32")
    for parameter in model.parameters().values():
        parameter.value[...] = rng.standard_normal(parameter.value.shape)
    save_model(tmp_path / "net", model)
    loaded = load_model(tmp_path / "net")
    x = rng.standard_normal((9, 48)).astype(np.float32)
    assert np.array_equal(loaded.forward(x), model.forward(x))
    assert np.array_equal(loaded.forward(x, train=True, step=3), model.forward(x, train=True, step=3))
    assert loaded.config() == model.config() and loaded.summary() == model.summary()
    assert [linear.spec for linear in loaded.linears] == [linear.spec for linear in model.linears]


def test_a_loaded_model_can_be_changed(path):
    loaded = load_model(path)
    loaded.parameters()["0.weight"].value += 1


def test_info_comes_back(path, model, tmp_path):
    assert read_info(path) == {"test_error": 1.6}
    save_model(tmp_path / "plain", model)
    assert read_info(tmp_path / "plain") == {}


def test_equal_models_give_equal_files(path, model, tmp_path):
    save_model(tmp_path / "again", model, test_error=1.6)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_other_readers_find_the_arrays_and_the_specs(path, model):
    with safe_open(path, "numpy") as f:
        assert set(f.keys()) == set(model.parameters())
        assert np.array_equal(f.get_tensor("0.weight"), model.parameters()["0.weight"].value)
        ours = json.loads(f.metadata()["hashedmm"])
    assert ours["format"] == "hashedmm model" and ours["version"] == 1
    specs = [HashSpec.from_json(json.dumps(spec)) for spec in ours["document"]["model"]["specs"]]
    assert specs == [linear.spec for linear in model.linears]


# ---- writing


def test_saving_replaces_and_leaves_nothing_else(path, tmp_path):
    other = small_model(seed=8)
    save_model(path, other)
    assert load_model(path).config() == other.config()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_save_keeps_the_old_file(failing, path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="no space"):
        save_model(path, small_model(seed=8))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_saving_through_a_link_replaces_the_file(path, tmp_path, model):
    link = tmp_path / "link"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("no symbolic links here")
    other = small_model(seed=8)
    save_model(link, other)
    assert link.is_symlink() and load_model(path).config() == other.config()


def test_saving_rejects_before_writing(tmp_path, model):
    with pytest.raises(ValueError, match="must name a file, got the folder"):
        save_model(tmp_path, model)
    with pytest.raises(ValueError, match="folder .* does not exist; make it first"):
        save_model(tmp_path / "none" / "net", model)
    with pytest.raises(TypeError, match="model must be an MLP, got dict"):
        save_model(tmp_path / "net", model.state())
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_model(tmp_path / "net", model, data=np.zeros(3))
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_model(tmp_path / "net", model, test_error=float("nan"))
    broken = small_model()
    broken.parameters()["1.bias"].value[3] = np.inf
    with pytest.raises(ValueError, match="'1.bias' must be finite"):
        save_model(tmp_path / "net", broken)
    with pytest.raises(TypeError, match="'a' must be of a float, integer or bool dtype .*, got complex128"):
        safefile.write(tmp_path / "net", "model", {}, {"a": np.zeros(3, complex)})
    assert list(tmp_path.iterdir()) == []


def test_documents_come_back_as_json_gives_them(tmp_path):
    document = {"b": [1, 0.1, None, True, "ä"], "a": {9: (1, 2), 10: 1e-300}}
    arrays = {"scalar": np.array(3.5), "empty": np.zeros((0, 4)), "view": np.arange(12).reshape(3, 4).T}
    arrays["flags"] = np.array([True, False])
    safefile.write(tmp_path / "f", "thing", document, arrays)
    got, back = safefile.read(tmp_path / "f", "thing")
    assert got == json.loads(json.dumps(document))
    for name, a in arrays.items():
        assert np.array_equal(back[name], a) and back[name].dtype == a.dtype and back[name].shape == a.shape


# ---- reading what is not a saved model


def pickled(protocol):
    return pickle.dumps({"0.weight": np.arange(500.0), "0.bias": [1, 2]}, protocol)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickled(2))
    return buffer.getvalue()


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


FOREIGN = {
    "empty": (b"", "an empty file"),
    "short": (b"\x10\0\0", "3 bytes: the file is cut off"),
    **{f"pickle{p}": (pickled(p), "a pickle") for p in (2, 3, 4, 5)},
    "pickle0": (pickled(0), "something else"),
    "zip": (zipped(), "a zip archive"),
    "npy": (npy(), "a NumPy .npy file"),
    "gzip": (gzip.compress(b"x" * 100), "a gzip file"),
    "text": (b"0.1, 0.2, 0.3, 0.4\n" * 10, "something else"),
    "absurd header": ((2**40).to_bytes(8, "little") + b"{" + b" " * 100, "something else"),
    "zeros": (bytes(1000), "something else"),
    "header only begun": ((500).to_bytes(8, "little") + b'{"a"' + b" " * 100, "the header alone has 500 bytes"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_named(name, tmp_path):
    content, found = FOREIGN[name]
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{as_text(path)}: expected a safetensors file, got .*{found}"):
        load_model(path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_never_opened(protocol, tmp_path):
    (tmp_path / "net").write_bytes(pickle.dumps(Bomb(), protocol))
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_model(tmp_path / "net")


def test_a_whole_file_is_never_taken_for_a_pickle(tmp_path):
    """The first byte of a safetensors file is the low byte of its header's size and may be any, 0x80 among them."""
    first = set()
    for padding in range(0, 256, 8):  # headers are padded to multiples of 8 bytes
        safefile.write(tmp_path / "f", "thing", "x" * padding, {})
        assert safefile.read(tmp_path / "f", "thing") == ("x" * padding, {})
        first.add((tmp_path / "f").read_bytes()[0])
    assert 0x80 in first


def test_every_cut_is_noticed(path):
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = [*range(40), *range(40, header, 37), header - 1, header, *range(header + 1, len(data), 997), len(data) - 1]
    for size in cuts:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=as_text(path)):
            load_model(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=as_text(path)):
        load_model(path)
    path.write_bytes(data)
    load_model(path)


def test_altered_bytes_are_noticed(path, rng):
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for position in [*range(0, header, 3), *rng.integers(header, len(data), 100).tolist()]:
        altered = bytearray(data)
        altered[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=as_text(path)):
            load_model(path)
    path.write_bytes(data)
    load_model(path)


def test_altered_values_and_specs_are_told_as_such(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="SHA-256 .* altered or damaged: restore it"):
        load_model(path)
    seed = b'\\"seed\\": '
    at = data.rindex(seed) + len(seed)
    digit = b"1" if data[at : at + 1] != b"1" else b"2"
    path.write_bytes(data[:at] + digit + data[at + 1 :])  # another hash: another function, from the same values
    with pytest.raises(ValueError, match="SHA-256"):
        load_model(path)


def test_other_safetensors_files_are_refused(tmp_path):
    path = tmp_path / "net"
    safetensors.numpy.save_file({"0.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match="not one of hashedmm: its metadata has no entry 'hashedmm'; expected a"):
        load_model(path)
    for text, found in (("{", "is not JSON"), ("[1]", "names no format and version"), ("{}", "names no format")):
        safetensors.numpy.save_file({"0.weight": np.zeros(3, np.float32)}, path, metadata={"hashedmm": text})
        with pytest.raises(ValueError, match=found):
            load_model(path)


def rewrite(path, change):
    """Write a model file with a changed header entry, without mending the checksum."""
    with safe_open(path, "numpy") as f:
        ours, arrays = json.loads(f.metadata()["hashedmm"]), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    change(ours)
    safetensors.numpy.save_file(arrays, path, metadata={"hashedmm": json.dumps(ours)})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda h: h.update(version=2), "reads version 1 of the format, got version 2; read it with the release"),
        (lambda h: h.update(version=True), "got version True"),
        (lambda h: h.update(format="other model"), "expected a hashedmm model, got the format 'other model'"),
        (lambda h: h.update(format=["hashedmm model"]), "got the format"),
        (lambda h: h.update(more=1), "the metadata's keys are .*'more'"),
        (lambda h: h.pop("sha256"), "the metadata's keys are"),
        (lambda h: h.update(sha256=None), "SHA-256"),
        (lambda h: h["document"]["model"]["specs"][0].update(seed=1), "SHA-256"),
    ],
)
def test_headers_are_checked(change, found, path):
    rewrite(path, change)
    with pytest.raises(ValueError, match=f"{as_text(path)}: .*{found}"):
        load_model(path)


def spec_of(document, **changes):
    document["model"]["specs"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda d, a: a.pop("0.bias"), "lacks 0.bias; expected exactly 0.weight, 0.bias, 1.weight, 1.bias"),
        (lambda d, a: a.update({"2.weight": a["0.bias"]}), "has the unknown 2.weight"),
        (lambda d, a: a.update({"0.bias": a["0.bias"][:-1]}), r"0.bias must be float32 \(80,\), got float32 \(79,\)"),
        (lambda d, a: a.update({"0.bias": a["0.bias"].astype(np.float16)}), "0.bias must be float32 .* got float16"),
        (lambda d, a: a.update({"0.weight": a["0.weight"][:, None]}), "0.weight must be float32"),
        (lambda d, a: d.pop("info"), "must hold exactly a model and info"),
        (lambda d, a: d.update(info=3), "must hold exactly a model and info"),
        (lambda d, a: d["model"].pop("seed"), "config must have exactly the keys"),
        (lambda d, a: d["model"].update(seed=-1), "seed must be from 0"),
        (lambda d, a: d["model"].update(dropout=2), "dropout must be in"),
        (lambda d, a: d["model"].update(dropout=None), "dropout must be a number"),
        (lambda d, a: d["model"].update(layers=[48, 81, 10]), r"spec of layer 0 must have the shape \(81, 48\)"),
        (lambda d, a: d["model"].update(layers="48"), "layers must be a list"),
        (lambda d, a: d["model"].update(specs={}), "must list 2 specs"),
        (lambda d, a: d["model"]["specs"].pop(), "must list 2 specs"),
        (lambda d, a: spec_of(d, compression=1 / 4), "0.weight must be float32"),
        (lambda d, a: spec_of(d, compression=2), "compression .* must be in"),
        (lambda d, a: spec_of(d, hash="md5"), "hash must be one of"),
        (lambda d, a: spec_of(d, version=2), "version"),
        (lambda d, a: spec_of(d, more=2), "must have exactly the keys"),
    ],
)
def test_contents_are_checked_even_if_the_checksum_is_right(change, found, path):
    document, arrays = safefile.read(path, "model")
    change(document, arrays)
    safefile.write(path, "model", document, arrays)
    with pytest.raises(ValueError, match=f"{as_text(path)}.*{found}"):
        load_model(path)


def test_values_must_be_finite(path, monkeypatch):
    document, arrays = safefile.read(path, "model")
    arrays["1.bias"] = np.full(10, np.nan, np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(safefile, "_finite", lambda a: True)
        safefile.write(path, "model", document, arrays)
    with pytest.raises(ValueError, match="'1.bias' holds NaN or infinities: finite values were expected"):
        load_model(path)


def test_a_training_state_is_no_model(path):
    document, arrays = safefile.read(path, "model")
    safefile.write(path, "training state", document, arrays)
    with pytest.raises(ValueError, match=r"expected a hashedmm model.*training state.*train\(\.\.\., resume=path\)"):
        load_model(path)
    safefile.write(path, "model", document, arrays)
    with pytest.raises(ValueError, match=r"expected a hashedmm training state.*load_model\(path\)"):
        safefile.read(path, "training state")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="net.safetensors"):
        load_model(tmp_path / "net.safetensors")
    with pytest.raises(OSError):
        load_model(tmp_path)


def test_the_kernel_is_chosen_when_loading(path, model):
    x = np.ones((3, 48), np.float32)
    np.testing.assert_allclose(load_model(path, kernel="reference").forward(x), model.forward(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="kernel must be"):
        load_model(path, kernel="none").forward(x)
