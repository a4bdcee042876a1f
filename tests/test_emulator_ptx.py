"""kernels/ptx.cuh in the emulator: ldmatrix, mma_sync and cp_async against NumPy, what they cost, a forgotten wait."""

from pathlib import Path

import numpy as np
import pytest

import hashedmm
from hashedmm import emulator
from hashedmm.emulator import KernelError, RawKernel, check, trace

pytestmark = pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())
F16, F32, I32, U32 = np.float16, np.float32, np.int32, np.uint32
FOLDER = Path(hashedmm.__file__).parent / "kernels"

PTX = r"""
#include "ptx.cuh"
extern "C" __global__ void ptx(
    const unsigned short* in, unsigned* out, const unsigned short* a, const unsigned short* b,
    const float* c, float* d, int what, int n) {
    __shared__ __align__(16) unsigned short s[32 * 24];
    int lane = threadIdx.x % 32, row = lane % 8, matrix = lane / 8;
    for (int i = threadIdx.x; i < 32 * 24; i += blockDim.x) s[i] = 0xffff;
    __syncthreads();
    if (what < 10) {
        for (int i = lane; i < 32 * 8; i += 32) s[i / 8 * n + i % 8] = in[i];  // 32 rows of 8 halves, n apart
        __syncwarp();
        const unsigned short* mine = s + (matrix * 8 + row) * n;
        unsigned x1[1], x2[2], x4[4];
        if (what == 0) { ldmatrix_x1(x1, mine); out[lane] = x1[0]; }
        if (what == 1) { ldmatrix_x1_trans(x1, mine); out[lane] = x1[0]; }
        if (what == 2) { ldmatrix_x2(x2, mine); for (int m = 0; m < 2; m++) out[m * 32 + lane] = x2[m]; }
        if (what == 3) { ldmatrix_x2_trans(x2, mine); for (int m = 0; m < 2; m++) out[m * 32 + lane] = x2[m]; }
        if (what == 4) { ldmatrix_x4(x4, mine); for (int m = 0; m < 4; m++) out[m * 32 + lane] = x4[m]; }  // x4
        if (what == 5) { ldmatrix_x4_trans(x4, mine); for (int m = 0; m < 4; m++) out[m * 32 + lane] = x4[m]; }
        if (what == 6) { ldmatrix_x4(x4, mine + 1); out[lane] = x4[0]; }  // misaligned row
    }
    if (what == 10 || what == 11) {  // a product of tiles, as a kernel would do it: A by rows, B by .trans
        for (int i = lane; i < 256; i += 32) s[i] = a[i];        // 16 x 16
        for (int i = lane; i < 128; i += 32) s[256 + i] = b[i];  // 16 x 8
        __syncwarp();
        unsigned fa[4], fb[2];
        float fc[4], fd[4];
        ldmatrix_x4(fa, s + (lane % 16) * 16 + lane / 16 * 8);
        ldmatrix_x2_trans(fb, s + 256 + (lane % 16) * 8);
        for (int i = 0; i < 4; i++) fc[i] = c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
        if (what == 10) {
            mma_sync_m16n8k16(fd, fa, fb, fc);
        } else {  // the same in two halves
            unsigned a0[2] = {fa[0], fa[1]}, a1[2] = {fa[2], fa[3]}, b0[1] = {fb[0]}, b1[1] = {fb[1]};
            mma_sync_m16n8k8(fd, a0, b0, fc);
            mma_sync_m16n8k8(fd, a1, b1, fd);
        }
        for (int i = 0; i < 4; i++) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = fd[i];
    }
    if (what >= 20) {
        cp_async<16>(s + 8 * lane, in + 8 * lane, lane == 31 ? 4 : 16);  // async 16
        cp_async_commit();
        cp_async<8>(s + 256 + 4 * lane, in + 4 * lane);  // async 8
        cp_async_commit();
        cp_async<4>(s + 384 + 2 * lane, in + 2 * lane);
        if (what == 20 || what == 21) cp_async_wait<1>();
        if (what == 22) { cp_async_commit(); cp_async_wait<0>(); }
        if (what != 21) __syncwarp();
        for (int i = 0; i < 7; i++) out[i * 32 + lane] = *(unsigned*)(s + 2 * ((i * 32 + lane) ^ 1));  // read
    }
}
"""


@pytest.fixture(scope="module")
def kernel():
    return RawKernel(PTX, "ptx", (f"-I{FOLDER}",))


def arguments(rng, what, n=8):
    halves = rng.normal(size=512).astype(F16).view(np.uint16)
    a, b = rng.normal(size=(16, 16)).astype(F16), rng.normal(size=(16, 8)).astype(F16)
    c, d = rng.normal(size=(16, 8)).astype(F32), np.full((16, 8), np.nan, F32)
    return (halves, np.zeros(7 * 32, U32), a.view(np.uint16), b.view(np.uint16), c, d, I32(what), I32(n))


def run(kernel, rng, what, n=8):
    args = arguments(rng, what, n)
    kernel((1,), (32,), args)
    return args


@pytest.mark.parametrize("what, count, transposed", [(0, 1, 0), (1, 1, 1), (2, 2, 0), (3, 2, 1), (4, 4, 0), (5, 4, 1)])
def test_ldmatrix(kernel, rng, what, count, transposed):
    args = run(kernel, rng, what, 24)
    matrices = args[0][:256].reshape(4, 8, 8)[:count]
    if transposed:
        matrices = matrices.transpose(0, 2, 1)
    want = np.ascontiguousarray(matrices).view(U32).reshape(count, 32)  # lane l: row l / 4, its pair l % 4
    np.testing.assert_array_equal(args[1][: count * 32].reshape(count, 32), want)


@pytest.mark.parametrize("what", [10, 11])
def test_mma_sync(kernel, rng, what):
    _, _, a, b, c, d, _, _ = run(kernel, rng, what)
    a, b = a.view(F16).astype(np.float64), b.view(F16).astype(np.float64)
    np.testing.assert_allclose(d, a @ b + c, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("what", [0, 1, 2, 3, 4, 5, 10, 11, 22])
def test_a_gpu_does_the_same(kernel, rng, what):
    import cupy

    host = arguments(rng, what, 24)
    device = [cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in host]
    cupy.RawKernel(PTX, "ptx", (f"-I{FOLDER}",))((1,), (32,), tuple(device))
    kernel((1,), (32,), host)
    np.testing.assert_array_equal(device[1].get(), host[1])
    np.testing.assert_allclose(device[5].get(), host[5], rtol=1e-5, atol=1e-5)


def test_what_ldmatrix_costs(kernel, rng):
    line = next(i for i, text in enumerate(PTX.splitlines(), 1) if "// x4" in text)
    for apart, wavefronts in ((8, 4), (24, 4), (16, 8)):  # rows of 16 bytes: one after another, on 8 bank groups, on 4
        t = trace(kernel, (1,), (32,), arguments(rng, 4, apart))
        (row,) = t.select(line=line, op="load", space="shared")
        assert (row.array, row.requests, row.bytes, row.wavefronts) == ("s", 1, 512, wavefronts)


def test_misuse_is_an_error(kernel, rng):
    with pytest.raises(KernelError, match="the row of an ldmatrix starts at a multiple of 16 bytes"):
        run(kernel, rng, 6)


def test_cp_async(kernel, rng):
    args = run(kernel, rng, 22)
    source = args[0]
    want = np.concatenate([source[:256], source[:128], source[:64]])
    want[250:256] = 0  # the last lane asked for 4 of its 16 bytes
    got = args[1].view(np.uint16).reshape(-1, 2, 2)[:, ::-1].ravel()[: want.size]  # neighbours were read
    np.testing.assert_array_equal(got, want)


def test_a_forgotten_wait_shows(kernel, rng):
    """Groups that were not waited for have not arrived: poison is read, and `check` says so."""
    read = next(i for i, text in enumerate(PTX.splitlines(), 1) if "// read" in text)
    got = run(kernel, rng, 20)[1]
    assert (got[128:] == 0xFFFFFFFF).all() and (got[:124] != 0xFFFFFFFF).all()  # one group of three
    assert (run(kernel, rng, 23)[1] == 0xFFFFFFFF).all()
    report = check(kernel, (1,), (32,), arguments(rng, 21))
    assert any(p.kind == "race" and p.other_line == read for p in report), str(report)
    assert check(kernel, (1,), (32,), arguments(rng, 22)).ok
    t = trace(kernel, (1,), (32,), arguments(rng, 22))
    line = next(i for i, text in enumerate(PTX.splitlines(), 1) if "// async 16" in text)
    (load,) = t.select(line=line, op="load", space="global")
    assert (load.array, load.bytes, load.sectors) == ("in", 31 * 16 + 4, 17)  # the short copy is a request of its own
    (store,) = t.select(line=line, op="store", space="shared")
    assert (store.array, store.wavefronts) == ("s", 4)
