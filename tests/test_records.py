"""Records: written whole or not at all, checked when written and when read; those in the repository are sound."""

import json

import pytest

from hashedmm import records

TIMING = {
    "operation": "matmul", "kernel": "cpu_sketch", "structure": "strips", "spec": {}, "compression": 0.125,
    "shape": [10, 10, 1], "dtype": "float32", "ms": 1.0, "ms_p20": 0.9, "ms_p80": 1.1, "error": 1e-7,
    "baselines": {"numpy_float32": 2.0},
}  # fmt: skip


def test_round_trip(tmp_path):
    record = records.new_record("timing", [TIMING], "hashedmm bench --cpu")
    records.write(tmp_path / "new" / "a.json", record)
    assert records.read(tmp_path / "new" / "a.json") == record
    assert record["schema"] == 1 and record["device"]["cores"] >= 1 and "numpy" in record["software"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]  # no temporary file is left


@pytest.mark.parametrize(
    "change, message",
    [
        ({"schema": 2}, "schema 1, got 2"),
        ({"kind": "speed"}, "kind must be one of timing"),
        ({"rows": {}}, "rows must be a list"),
        ({"rows": [{k: v for k, v in TIMING.items() if k != "baselines"}]}, r"row 0 lacks \['baselines'\]"),
        ({"rows": [TIMING | {"ms": float("nan")}]}, "not finite"),
        ({"rows": [TIMING | {"baselines": {"a": float("inf")}}]}, "not finite"),
        ({"extra": 1}, "exactly the keys"),
    ],
)
def test_a_bad_record_is_refused_and_the_old_file_stays(tmp_path, change, message):
    good = records.new_record("timing", [TIMING], "c")
    path = tmp_path / "a.json"
    records.write(path, good)
    with pytest.raises(ValueError, match=message):
        records.write(path, good | change)
    assert records.read(path) == good
    path.write_text(json.dumps(good | change))
    with pytest.raises(ValueError, match=message):
        records.read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}'])
def test_a_file_that_is_no_record(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="a.json"):
        records.read(path)


def test_missing_file():
    with pytest.raises(FileNotFoundError):
        records.read("no_such_record")


def test_the_repository_s_records_are_sound():
    found = records.load_all()
    assert found
    for name, record in found.items():
        assert record["rows"], name
        assert record["command"].startswith(("hashedmm ", "make ", "mpiexec ")), name
        assert not (record["commit"] or "").endswith("-dirty"), name
    assert set(records.load_all("training")) <= set(found)
