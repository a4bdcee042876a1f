"""Every CUDA kernel under NVIDIA's compute-sanitizer: memory, races, initialised reads, barriers.

Run as a program this file is what the sanitizer watches: each kernel once for each odd case.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hashedmm import (
    MLP,
    SGD,
    Adam,
    Dataset,
    HashSpec,
    hashed_matmul,
    hashed_matmul_grad_w,
    hashed_matmul_grad_x,
    materialise,
    sketch,
    train,
)
from hashedmm.kernels import CUDA

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    "memcheck": ["--leak-check=no"],
    "racecheck": ["--racecheck-report=all"],
    "initcheck": [],
    "synccheck": [],
}


CASES = (((70, 50), 9), ((33, 131), 33))


def specs(shape: tuple[int, int]) -> tuple[HashSpec, ...]:
    return (
        HashSpec.elementwise(shape, 1 / 4, seed=1),
        HashSpec.strips(shape, 1 / 4, height=16, panel=(32, 48), seed=1),
    )


def launch_every_kernel() -> None:
    import cupy

    cupy.cuda.set_allocator(None)  # from the driver, so that the sanitizer knows where each array ends
    rng = np.random.default_rng(0)
    count = 0
    for shape, n in CASES:
        for spec in specs(shape):
            for dtype in (np.float32, np.float16):
                w, x, gy = (
                    cupy.asarray(rng.standard_normal(s, np.float32).astype(dtype))
                    for s in (spec.n_buckets, (spec.cols, n), (spec.rows, n))
                )
                calls = {
                    "matmul": lambda name: hashed_matmul(w, x, spec, kernel=name),  # noqa: B023
                    "grad_x": lambda name: hashed_matmul_grad_x(w, gy, spec, kernel=name),  # noqa: B023
                    "grad_w": lambda name: hashed_matmul_grad_w(x, gy, spec, kernel=name),  # noqa: B023
                    "materialise": lambda name: materialise(w, spec),  # noqa: B023
                }
                for kernel in CUDA.values():
                    if not kernel.supports(spec, np.dtype(dtype).name):
                        continue
                    calls[kernel.operations[0]](kernel.name)
                    count += 1
                if spec.structure == "strips":
                    for operation in ("matmul", "grad_x", "grad_w"):
                        calls[operation]("sketch")
                    if dtype is np.float16:
                        y = cupy.empty((spec.rows, n), dtype)
                        sketch.plan_matmul(w, x, y, spec, {"sketch_fused_mma": {}}, keep=True).run()
                        sketch.plan_grad_x(w, gy, cupy.empty_like(x), spec, {"sketch_back_mma": {}}).run()
                    w, x, gy = w, x[:, :3].copy(), gy[:, :3].copy()
                    calls["matmul"]("sketch")
    data = Dataset("random", *(rng.standard_normal((40, 30), np.float32), rng.integers(0, 3, 40)) * 2)
    for optimizer in (Adam(1e-3), SGD(1e-2)):  # the steps' kernels, captured
        train(MLP([30, 32, 3], compression=0.5, dropout=0.2, xp=cupy), data, epochs=2, batch=9, optimizer=optimizer)
    cupy.cuda.Device().synchronize()
    print(f"{count} launches")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_the_sanitizer_finds_nothing(tool):
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    command = [
        program,
        "--tool",
        tool,
        *TOOLS[tool],
        "--error-exitcode",
        "86",
        sys.executable,
        str(Path(__file__).resolve()),
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    launches = sum(
        kernel.supports(spec, dtype)
        for shape, _ in CASES
        for spec in specs(shape)
        for dtype in ("float32", "float16")
        for kernel in CUDA.values()
    )
    assert f"{launches} launches" in run.stdout
    assert "0 errors" in run.stdout or "0 hazards" in run.stdout


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    launch_every_kernel()
