"""Traced counts against ones derived by hand: sectors, wavefronts, lanes; tables, JSON and records."""

import numpy as np
import pytest

from hashedmm import emulator, records
from hashedmm.emulator import KernelError, RawKernel, Row, Trace, record_traces, toolchain, trace

pytestmark = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())
F32, I32 = np.float32, np.int32

# One build: `what` picks the access. Comments give the lines that the tests name.
ACCESS = r"""
struct Odd { float x, y, z; };
extern "C" __global__ void access(
    float* y, const float* x, const float4* v, Odd* odd, const double* d, int what, int n) {
    __shared__ float square[32][32], padded[32][33];
    __shared__ double wide[64];
    __shared__ float4 vectors[64];
    extern __shared__ float dynamic[];
    int t = threadIdx.x, row = threadIdx.x / 32, col = threadIdx.x % 32;
    if (what == 1) y[t] = x[t * n];                              // strided
    if (what == 2) square[row][col] = x[t];                      // rows in
    if (what == 2) y[t] = square[col][row];                      // columns out
    if (what == 3) padded[row][col] = x[t];
    if (what == 3) y[t] = padded[col][row];                      // padded columns out
    if (what == 4) vectors[t] = v[t];                            // vector
    if (what == 5) { Odd o = odd[t]; o.y += 1; odd[t] = o; }     // twelve bytes
    if (what == 6) wide[t * n % 64] = d[t];                      // double
    if (what == 7 && t % 2) atomicAdd(&square[0][t / n], y[t]);  // atomic
    if (what == 8) for (int k = 0; k < n; k++) y[t] += x[k];     // broadcast
    if (what == 9) for (int k = 0; k < t % 4; k++) dynamic[t] = k;
    if (what == 10) { float local[4] = {1, 2, 3, 4}; local[t % 4] += n; y[t] = local[n % 4] + local[t % 4]; }
    if (what == 13) for (int k = 0; k < n; k++) y[t] += x[k % 32];
    if (what == 11) y[1000000] = 1;
    if (what == 12) { dynamic[t] = x[t]; __syncthreads(); y[t] = dynamic[t ^ 1]; __syncthreads(); y[t] = dynamic[t]; }
}
"""


def number(text):
    return next(i for i, line in enumerate(ACCESS.splitlines(), 1) if text in line)


@pytest.fixture(scope="module")
def kernel():
    return RawKernel(ACCESS, "access")


def run(kernel, what, n=1, threads=32, **keywords):
    y, x = np.zeros(1024, F32), np.zeros(32 * 64, F32)
    odd = np.zeros((1024, 3), F32).view([("x", F32), ("y", F32), ("z", F32)])
    args = (y, x, np.zeros((64, 4), F32), odd, np.zeros(64), I32(what), I32(n))
    return trace(kernel, (1,), (threads,), args, shared_mem=4096, **keywords)


def only(t, **wanted):
    (row,) = t.select(**wanted)
    return row


# 32 lanes read 4-byte words `stride` words apart: sectors of 8 words each.
@pytest.mark.parametrize("stride, sectors", [(0, 1), (1, 4), (2, 8), (4, 16), (8, 32), (33, 32)])
def test_strided_loads(kernel, stride, sectors):
    t = run(kernel, 1, stride)
    load, store = only(t, op="load"), only(t, op="store")
    line = number("// strided")
    assert (load.line, load.array, load.space, load.requests, load.lanes, load.bytes) == (
        line,
        "x",
        "global",
        1,
        32,
        128,
    )
    assert (load.sectors, load.sectors_per_request, load.ideal_sectors) == (sectors, sectors, 1 if stride == 0 else 4)
    assert (store.array, store.sectors, store.ideal_sectors) == ("y", 4, 4)
    assert load.text.startswith("if (what == 1) y[t] = x[t * n];")


def test_transposes_unpadded_and_padded(kernel):
    plain = run(kernel, 2, threads=1024)
    rows_in, columns_out = (
        only(plain, line=number("// rows in"), op="store"),
        only(plain, line=number("// columns out"), op="load"),
    )
    assert (rows_in.array, rows_in.requests, rows_in.wavefronts, rows_in.bank_conflicts) == ("square", 32, 32, 0)
    assert (columns_out.array, columns_out.wavefronts, columns_out.bank_conflicts) == ("square", 32 * 32, 31 * 32)
    padded = only(run(kernel, 3, threads=1024), line=number("// padded columns out"), op="load")
    assert (padded.array, padded.requests, padded.wavefronts, padded.bank_conflicts) == ("padded", 32, 32, 0)
    assert plain.total("global") == {
        "requests": 64, "bytes": 8192, "sectors": 256, "ideal_sectors": 256, "wavefronts": 0, "bank_conflicts": 0
    }  # fmt: skip
    assert plain.total("shared", "load")["wavefronts"] == 1024
    with pytest.raises(ValueError, match="space must be one of global, shared"):
        plain.total("local")


def test_wide_accesses(kernel):
    t = run(kernel, 4)
    load, store = only(t, op="load"), only(t, op="store")
    assert (load.requests, load.bytes, load.sectors, load.ideal_sectors) == (1, 512, 16, 16)  # one 16-byte access
    assert (store.array, store.wavefronts, store.bank_conflicts) == ("vectors", 4, 0)  # by quarter warps
    t = run(kernel, 5)  # 12 bytes have no instruction: three loads, 12 words apart, 12 sectors of 32 bytes each time
    assert {(r.op, r.requests, r.sectors, r.ideal_sectors) for r in t.rows} == {
        ("load", 3, 36, 12),
        ("store", 3, 36, 12),
    }
    double = only(run(kernel, 6), op="store")
    assert (double.array, double.wavefronts, double.bank_conflicts) == ("wide", 2, 0)  # by half warps
    assert only(run(kernel, 6, 2), op="store").bank_conflicts == 2  # two words apart: two lanes a bank in each half


def test_lanes_atomics_and_loops(kernel):
    row = only(run(kernel, 7, 8), op="atomic")  # 16 lanes on 4 words: four take turns on each
    assert (row.array, row.requests, row.lanes, row.wavefronts, row.bank_conflicts) == ("square", 1, 16, 4, 3)
    t = run(kernel, 8, 5)
    assert {(r.op, r.array, r.requests, r.sectors) for r in t.rows} == {
        ("load", "y", 5, 20),
        ("store", "y", 5, 20),
        ("load", "x", 5, 5),
    }
    row = only(run(kernel, 9))  # lanes make 0, 1, 2, 3 turns: requests of 24, 16 and 8 lanes
    assert (row.array, row.requests, row.lanes, row.bytes) == ("dynamic", 3, 16, 192)
    assert [r.array for r in run(kernel, 10).rows] == ["y"]  # no local variable is counted


def test_long_loops_are_counted_in_parts(kernel):
    n = 25000  # three accesses a turn: more than a lane's 65,536 that are kept
    assert {(r.op, r.array, r.requests, r.lanes, r.sectors) for r in run(kernel, 13, n).rows} == {
        ("load", "y", n, 32, 4 * n), ("store", "y", n, 32, 4 * n), ("load", "x", n, 32, n)
    }  # fmt: skip


def test_requests_between_barriers(kernel):
    t = run(kernel, 12, threads=64)
    assert {(r.op, r.array, r.requests) for r in t.rows} == {
        ("load", "x", 2), ("store", "dynamic", 2), ("load", "dynamic", 4), ("store", "y", 4)
    }  # fmt: skip
    drawn = t.requests(number("what == 12"), "load", first=2)
    assert [(r["array"], r["block"], r["warp"]) for r in drawn] == [
        ("x", 0, 0),
        ("x", 0, 1),
        ("dynamic", 0, 0),
        ("dynamic", 0, 1),
    ]
    assert drawn[0]["addresses"] == [4 * lane for lane in range(32)]
    assert drawn[3]["addresses"] == [4 * (32 + (lane ^ 1)) for lane in range(32)] and drawn[3]["size"] == 4
    odd = run(kernel, 7, 8).requests(number("// atomic"), "atomic")[0]
    assert odd["addresses"][:4] == [None, 0, None, 0] and odd["addresses"][-1] == 12


def test_blocks_and_arguments(kernel):
    x, y = np.zeros(32, F32), np.full(32, 7, F32)
    args = (y, x, None, None, None, I32(1), I32(1))
    whole = trace(kernel, (3, 2), (32,), args)
    one = trace(kernel, (3, 2), (32,), args, blocks=[4])
    assert whole.total("global")["requests"] == 6 * one.total("global")["requests"] == 12
    assert one.requests(number("// strided"))[0]["block"] == 4
    assert (y == 7).all()  # copies
    with pytest.raises(ValueError, match="from 0 to 5, got 6"):
        trace(kernel, (3, 2), (32,), args, blocks=[6])
    with pytest.raises(TypeError, match="must be a hashedmm.emulator.RawKernel"):
        trace(len, (1,), (1,), ())
    with pytest.raises(KernelError, match="outside y .* 998977 past"):
        trace(kernel, (1,), (1,), (np.zeros(1024, F32), x, None, None, None, I32(11), I32(0)))


def test_tables_and_files(kernel, tmp_path, monkeypatch):
    t = run(kernel, 2, threads=1024)
    lines = t.table().splitlines()
    assert max(map(len, lines)) <= 100 and str(t) == t.table() and "no caches, no timing" in lines[-1]
    assert "<table>" in t._repr_html_() and "square[col][row]" in t._repr_html_()
    assert t._repr_markdown_().startswith("| line | op |") and "| square |" in t._repr_markdown_()
    assert Trace.from_json(t.to_json()) == t
    for text in ("{}", "3", '{"rows": [{}]}', "no"):
        with pytest.raises(ValueError):
            Trace.from_json(text)

    monkeypatch.setattr(records, "results_dir", lambda: tmp_path)
    record_traces(tmp_path / "traces.json", {"transpose": t})
    assert records.read(tmp_path / "traces.json")["kind"] == "counters"
    monkeypatch.setattr(toolchain, "_compiler", lambda: ((), "no compiler here"))
    kept = trace(kernel, (1,), (1,), (), recorded="transpose")
    assert kept.rows == t.rows and kept.source == t.source and 0 < len(kept.samples) < len(t.samples)
    line, op = kept.samples[0]["line"], kept.samples[0]["op"]
    assert kept.requests(line, op) == t.requests(line, op)  # one of each is kept
    with pytest.raises(RuntimeError, match="no compiler here. .* no trace 'other'; it has: transpose"):
        trace(kernel, (1,), (1,), (), recorded="other")
    with pytest.raises(RuntimeError, match="no compiler here"):
        trace(kernel, (1,), (1,), ())


def test_traces_are_recorded_if_asked(kernel, tmp_path, monkeypatch):
    file = tmp_path / "traces.json"
    monkeypatch.setenv("HASHEDMM_RECORD_TRACES", str(file))
    for name in ("first", "second", "first"):
        run(kernel, 2, threads=1024, recorded=name)
    run(kernel, 2, threads=1024)
    assert [row["name"] for row in records.read(file)["rows"]] == ["first", "second"]


def test_row_of_nothing():
    assert Row(1, "", "global", "load", "x", 0, 0.0, 0, 0, 0, 0, 0).sectors_per_request == 0
