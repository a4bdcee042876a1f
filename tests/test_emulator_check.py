"""A table of planted faults, each caught by `check` with its kind and line; right kernels raise nothing."""

import numpy as np
import pytest

from hashedmm import emulator
from hashedmm.emulator import Problem, RawKernel, Report, check

pytestmark = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())
F32, I32 = np.float32, np.int32

# The faults that people make, in one source: FAULT is a run-time argument, so that one build serves them all.
TILED = r"""
#define TILE 8
extern "C" __global__ void tiled(const float* a_mk, const float* b_kn, float* c_mn, int m, int n, int k, int fault) {
    __shared__ float a[TILE][TILE], b[TILE][TILE];
    int row = blockIdx.y * TILE + threadIdx.y, col = blockIdx.x * TILE + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < k; t += TILE) {
        a[threadIdx.y][threadIdx.x] = row < m && t + threadIdx.x < k ? a_mk[row * k + t + threadIdx.x] : 0;  // fill a
        bool in_b = col < n && t + threadIdx.y < k;
        if (fault != 8 || threadIdx.y)
            b[threadIdx.y][threadIdx.x] = in_b || fault == 3 ? b_kn[(t + threadIdx.y) * n + col] : 0;
        if (fault != 1) __syncthreads();
        for (int i = 0; i < TILE; i++) sum += a[threadIdx.y][i] * b[i][threadIdx.x];  // use
        if (fault != 2) __syncthreads();
        if (fault == 5 && threadIdx.x < 3) __syncthreads();  // some threads
    }
    if ((row < m && col < n) || fault == 4) c_mn[row * n + col] = sum;  // store
    if (fault == 6) c_mn[threadIdx.x] = sum;  // all blocks, all rows
    if (fault == 7) c_mn[-1] = sum;  // into the neighbour
    if (fault == 9 && threadIdx.x == 1) return;
    if (fault == 9) __syncthreads();  // without those that returned
}
"""
# fault: the kinds that must be reported, each with a line of it
TILED_FAULTS = [
    (1, "race", "// fill a", "// use"),
    (1, "race", "b[threadIdx.y][threadIdx.x] =", "// use"),
    (2, "race", "// fill a", "// use"),
    (3, "outside", "b[threadIdx.y][threadIdx.x] =", None),
    (4, "outside", "// store", None),
    (5, "barrier", "// some threads", "if (fault != 1)"),
    (6, "race", "// all blocks", "// all blocks"),
    (7, "outside", "// into the neighbour", None),
    (8, "uninitialised", "// use", None),
    (9, "barrier", "// without those", None),
]

SMALL = r"""
struct __align__(8) Pair { float x, y; };
extern "C" __global__ void small(float* y, const float* x, int* count, int what, int n) {
    __shared__ float s[64];
    extern __shared__ float dynamic[];
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (what == 1) y[i / 2] = x[i];                                               // two threads
    if (what == 2) { y[i] = x[i]; if (i + 1 < n) y[i] += y[i + 1]; }              // the neighbour's
    if (what == 3) y[atomicAdd(count, 1)] = i;                                    // order
    if (what == 4) atomicAdd(y, x[i]);                                            // sum
    if (what == 5) { atomicAdd(count, 1); y[i] = *count; }                        // not by an atomic
    if (what == 6) { s[t] = x[i]; __syncwarp(); y[i] = s[t ^ 1]; }                // right: lanes of a warp
    if (what == 7) { s[t] = x[i]; __syncwarp(); y[i] = s[t ^ 32]; }               // another warp
    if (what == 8) { s[t] = x[i]; float v = __shfl_xor_sync(~0u, s[t], 1); y[i] = v + s[t ^ 1]; }  // no order
    if (what == 9) dynamic[t + 1] = x[i];                                         // past the dynamic
    if (what == 10) y[i] = s[t + 1 - t / 63];                                     // never written
    if (what == 11) { Pair p = {1, 2}; ((Pair*)(y + 1))[i / 2] = p; }               // misaligned
    if (what == 12) { if (t < 32) __syncwarp(); else __syncthreads(); __syncthreads(); }  // two barriers
    if (what == 13 && t != 5) y[i] = __shfl_down_sync(~0u, x[i], 1);              // without lane 5
    if (what == 14) assert(x[i] < 0.5f);                                          // assertion
    if (what == 15) y[i] = x[i + (long long)n * 100000000000];                    // wild
    if (what == 16) y[i] = n / (n - n);                                           // division
    if (what == 17) s[t] = s[t + 64 * n];                                         // past the static
    if (what == 18) {
        s[t] = 1;
        __syncthreads();
        if (t < 16) s[t] += s[t + 16];
        __syncwarp();
        if (t < 8) s[t] += s[t + 8];
        y[i] = t < 8 ? s[t] : 0;
    }
    if (what == 19) {
        float v = x[i];
        for (int k = 16; k; k /= 2) v += __shfl_xor_sync(~0u, v, k);
        if (t % 32 == 0) atomicAdd(y + blockIdx.x, v);
    }
    if (what == 20) { atomicMax(count, t); s[t] = x[i]; __syncthreads(); y[i] = s[63 - t]; }
}
"""
SMALL_FAULTS = [
    (1, "race", "// two threads", "// two threads"),
    (2, "race", "// the neighbour's", "// the neighbour's"),
    (3, "order", "// order", None),
    (4, "order", "// sum", None),
    (5, "race", "// not by an atomic", "// not by an atomic"),
    (7, "race", "// another warp", "// another warp"),
    (8, "race", "// no order", "// no order"),
    (9, "outside", "// past the dynamic", None),
    (10, "uninitialised", "// never written", None),
    (11, "misaligned", "// misaligned", None),
    (12, "barrier", "// two barriers", None),
    (13, "warp", "// without lane 5", None),
    (14, "assert", "// assertion", None),
    (15, "outside", "// wild", None),
    (16, "fault", "// division", None),
    (17, "outside", "// past the static", None),
]
RIGHT = [6, 18, 19, 20]


def number(code, text):
    return next(i for i, line in enumerate(code.splitlines(), 1) if text in line)


@pytest.fixture(scope="module")
def kernels():
    return RawKernel(TILED, "tiled"), RawKernel(SMALL, "small")


def tiled(kernels, fault):
    m, n, k = 13, 11, 20
    rng = np.random.default_rng(1)
    # One allocation: what lies before c is b's last element.
    memory = rng.normal(size=m * k + k * n + m * n).astype(F32)
    a, b, c = memory[: m * k], memory[m * k : m * k + k * n], np.full((m, n), np.nan, F32)
    return check(kernels[0], (2, 2), (8, 8), (a, b, c, I32(m), I32(n), I32(k), I32(fault)))


def small(kernels, what, **keywords):
    rng = np.random.default_rng(1)
    args = (np.zeros(256, F32), rng.random(128).astype(F32), np.zeros(1, I32), I32(what), I32(128))
    return check(kernels[1], (2,), (64,), args, shared_mem=256, **keywords)


def assert_found(report, code, kind, line, other):
    wanted = {number(code, text) for text in (line, other) if text}
    found = [p for p in report if p.kind == kind and ({p.line, p.other_line} - {0}) >= wanted and p.line in wanted]
    assert found and not report.ok, str(report)
    assert found[0].text == code.splitlines()[found[0].line - 1].strip() and found[0].count >= 1
    return found[0]


@pytest.mark.parametrize("fault, kind, line, other", TILED_FAULTS)
def test_faults_of_a_tiled_product(kernels, fault, kind, line, other):
    problem = assert_found(tiled(kernels, fault), TILED, kind, line, other)
    if fault == 1 and line == "// fill a":
        assert (
            problem.line == number(TILED, line)
            and "writes a[" in problem.message
            and "no barrier between" in problem.message
        )
    if fault == 3:
        assert "b_kn (float32, 220 elements): index" in problem.message
    if fault == 4:
        assert "c_mn (float32, 143 elements): index" in problem.message and "past the last" in problem.message
    if fault == 7:
        assert "index -1, 1 before the first element" in problem.message
    if fault == 9:
        assert "other threads have returned" in problem.message


@pytest.mark.parametrize("what, kind, line, other", SMALL_FAULTS)
def test_faults_of_small_kernels(kernels, what, kind, line, other):
    problem = assert_found(small(kernels, what), SMALL, kind, line, other)
    if what == 3:
        assert "in one order of threads and blocks" in problem.message
    if what == 4:
        assert "order_dependent=True" in problem.message


def test_right_kernels_raise_nothing(kernels):
    report = tiled(kernels, 0)
    assert (
        report.ok
        and not report.problems
        and "no problem found" in str(report)
        and "no problem" in report._repr_markdown_()
    )
    for what in RIGHT:
        assert small(kernels, what, order_dependent=what == 19).ok, what
    assert small(kernels, 4, order_dependent=True).ok
    assert not small(kernels, 4, order_dependent=True, rtol=0.0).ok
    assert not small(kernels, 3, order_dependent=True).ok
    assert small(kernels, 3, seeds=1).ok  # one order has nothing to differ from


def test_reports(kernels):
    report = tiled(kernels, 1)
    assert report.kinds >= {"race"} and len(list(report)) == len(report.problems)
    text, markdown = str(report), report._repr_markdown_()
    assert text.startswith("tiled: ") and "\nrace: line 8 `a[threadIdx.y]" in text and " times)" in text
    assert markdown.startswith("| kind | line |") and "| race | 8, 13 |" in markdown
    assert "1 problem\n" in str(Report("k", [Problem("race", 1, "", 0, "", "m")], 3))


def test_arguments(kernels):
    y = np.zeros(256, F32)
    small(kernels, 1)
    assert (y == 0).all()
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        small(kernels, 1, seeds=0)
    with pytest.raises(TypeError, match="argument 3"):
        check(kernels[1], (1,), (64,), (y, y, None, 1, I32(1)))
    with pytest.raises(TypeError, match="must be a hashedmm.emulator.RawKernel"):
        check(print, (1,), (1,), ())
