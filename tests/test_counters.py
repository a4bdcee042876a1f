"""Counts of memory accesses: the emulator's against those derived by hand, and the reading of Nsight Compute's."""

import sys

import numpy as np
import pytest

from hashedmm import counters, emulator, records

WARPS = counters.SHAPE[0] * counters.COLUMNS // 32  # of one thread an output
STEPS = counters.SHAPE[1]


@pytest.fixture(scope="module")
def emulated():
    if not emulator.available():
        pytest.skip(emulator.why_not())
    return {(row["kernel"], row["case"]): row for row in counters.emulated()}


def test_every_case_is_counted(emulated):
    assert list(emulated) == counters.cases()
    assert {(k, s) for k in counters.KERNELS for s in counters.SPECS} < set(emulated)


@pytest.mark.parametrize("structure", counters.SPECS)
def test_one_thread_an_output_by_hand(emulated, structure):
    naive, coalesced = emulated["naive", structure], emulated["coalesced", structure]
    # A step of a thread: one weight, one element of x.
    assert naive["global_load_requests"] == coalesced["global_load_requests"] == WARPS * STEPS * 2
    # coalesced: all lanes read one bucket (1 sector), and 32 neighbours of x (4); they store 32 neighbours of y (4).
    assert coalesced["global_load_sectors"] == WARPS * STEPS * (1 + 4)
    assert coalesced["global_store_sectors"] == WARPS * 4
    # naive: stores go to 32 rows.
    assert naive["global_store_sectors"] == WARPS * 32
    assert not any(row[name] for row in (naive, coalesced) for name in counters.METRICS if name.startswith("shared"))


def test_naive_gathers_by_hand(emulated):
    # The sectors that 32 rows of one column touch, counted from the indices alone; and one sector of x.
    for structure, spec in counters.SPECS.items():
        sector = spec.indices()[0] * 4 // 32
        gathered = sum(len(np.unique(sector[i : i + 32, j])) for i in range(0, spec.rows, 32) for j in range(spec.cols))
        expected = (gathered + spec.rows // 32 * spec.cols) * counters.COLUMNS
        assert emulated["naive", structure]["global_load_sectors"] == expected


@pytest.mark.parametrize("structure", counters.SPECS)
def test_tiles_by_hand(emulated, structure):
    row = emulated["shared", structure]
    blocks = (counters.SHAPE[0] // 32) * (counters.COLUMNS // 32)
    warps, steps = 32, STEPS // 32
    assert row["global_load_requests"] == blocks * warps * steps * 2
    assert row["shared_store_wavefronts"] == blocks * warps * steps * 2
    # w_tile[y][k] is one word for the whole warp, x_tile[k][x] 32 neighbours: no conflicts.
    assert row["shared_load_wavefronts"] == row["shared_load_requests"] == blocks * warps * STEPS * 2
    assert row["shared_load_conflicts"] == row["shared_store_conflicts"] == 0


def test_the_banks_by_hand(emulated):
    def loads(kernel, case):
        return tuple(emulated[kernel, case][f"shared_load_{what}"] for what in ("wavefronts", "conflicts"))

    assert loads("load_4", "neighbours") == (1, 0) and loads("load_4", "every second") == (2, 1)
    assert loads("load_8", "neighbours") == (2, 0) and loads("load_8", "one address") == (1, 0)
    assert loads("load_16", "neighbours") == (4, 0) and loads("load_16", "one address") == (2, 0)
    assert loads("load_16", "every eighth") == (32, 28)


def test_the_hardware_agrees():
    """In the committed record the emulator's counts are the hardware's, but for one thing that a compiler did."""
    rows = records.read("counters")["rows"]
    found = {(row["source"], row["kernel"], row["case"]): row for row in rows}
    assert len(found) == len(rows) == 2 * len(counters.cases())
    for kernel, case in counters.cases():
        ours, theirs = found["emulator", kernel, case], found["ncu", kernel, case]
        differ = {name for name in counters.METRICS if ours[name] != theirs[name]}
        if kernel == "shared":
            # NVRTC reads four neighbours of a row of the tile of W, one address for the whole warp, at once: a quarter
            # of the requests, each of 16 bytes and so of two wavefronts.
            of_w = ours["shared_load_requests"] // 2
            assert theirs["shared_load_requests"] == of_w + of_w // 4
            assert theirs["shared_load_wavefronts"] == of_w + 2 * (of_w // 4)
            assert differ == {"shared_load_requests", "shared_load_wavefronts"}
        else:
            assert not differ


def test_nsight_computes_report_is_read(tmp_path, monkeypatch):
    lines = ['"ID","Kernel Name",' + ",".join(f'"{m}"' for m in counters.METRICS.values())]
    lines.append('"","",' + ",".join('"sector"' for _ in counters.METRICS))
    for i in range(len(counters.cases())):
        name = counters.cases()[i][0]
        lines.append(f'"{i}","{name}(Layout, const float *)",' + ",".join(f'"{1000 * i + k:,}"' for k in range(10)))
    program = tmp_path / "ncu"
    program.write_text(f"#!{sys.executable}\nprint('==PROF== Connected')\nprint({chr(10).join(lines)!r})\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = counters.hardware()
    assert len(rows) == len(counters.cases()) and rows[7]["kernel"] == "shared" and rows[7]["case"] == "panels"
    assert rows[7]["global_load_requests"] == 7000 and rows[7]["shared_store_conflicts"] == 7009
    program.write_text(f"#!{sys.executable}\nprint('no counters here')\n")
    with pytest.raises(RuntimeError, match="no counters here"):
        counters.hardware()
    program.unlink()
    with pytest.raises(RuntimeError, match="not on the PATH"):
        counters.hardware()


def test_the_record(tmp_path, emulated, monkeypatch):
    monkeypatch.setattr(counters, "gpu_available", lambda: False)
    lines = []
    (path,) = counters.run(tmp_path / "new", say=lines.append)
    rows = records.read(path)["rows"]
    assert {row["source"] for row in rows} == {"emulator"} and len(lines) == len(rows) == len(emulated)
