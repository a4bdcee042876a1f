"""What every test shares: thread limits, the options for marked tests, seeds, MNIST, and a browser.

pytest reads this file before any test module, so that the limits are set before NumPy and Numba are loaded.
"""

import asyncio
import functools
import importlib.util
import os
import signal
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread a worker: the workers themselves fill the cores. Kernels of notebooks inherit the limit.
    assert "numpy" not in sys.modules, "a plugin loaded NumPy before its threads could be limited"
    for _variable in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[_variable] = "1"

import hypothesis  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from browser.server import HOW_TO_INSTALL, find_chromium, jupyter_lab, no_browser  # noqa: E402

from hashedmm.datasets import Dataset, load_mnist  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

# A shell starts a job in the background with Ctrl-C ignored; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# By a call, not by MPLBACKEND: the notebooks' kernels would inherit the variable and draw no inline figures.
matplotlib.use("Agg")

# The first call of a jitted function compiles it, so no deadlines. The CI run draws the same examples each time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--perf", action="store_true", help="run the tests marked perf, too")


@functools.cache
def _gpu_available() -> bool:
    import hashedmm

    return hashedmm.gpu_available()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip marked tests, each with its reason: pytest lists them at the end of the run."""
    if item.get_closest_marker("gpu") and not _gpu_available():
        pytest.skip("no CUDA GPU with CuPy here (`hashedmm doctor` says what is missing)")
    for marker in ("slow", "perf"):
        if item.get_closest_marker(marker) and not item.config.getoption(marker):
            pytest.skip(f"marked {marker}: run it with --{marker}")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run; each test gets a fresh generator."""
    return np.random.default_rng(42)


@pytest.fixture(params=[0, 42])
def seed(request: pytest.FixtureRequest) -> int:
    """Two seeds, for what must hold for more than one."""
    return request.param


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    """All of MNIST, from the checkout whatever the environment says. Do not write to its arrays."""
    return load_mnist(ROOT / "data" / "mnist")


@pytest.fixture(scope="session")
def small_mnist(mnist: Dataset) -> Dataset:
    """The first 2,000 training and 1,000 test samples of MNIST. Do not write to its arrays."""
    return mnist.subset(2000, 1000)


# Of a module, not of the session: while playwright runs, other tests of the process could not use asyncio.


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory):
    """A headless Chromium with a new profile that finds no host but this one: a context of playwright."""
    for module in ("playwright", "jupyterlab"):
        if importlib.util.find_spec(module) is None:
            no_browser(f"{module} is not installed: pip install {module}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = find_chromium(playwright.chromium.executable_path)
        if program is None:
            no_browser(f"no Chromium here. {HOW_TO_INSTALL}")
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        profile = tmp_path_factory.mktemp("chromium")  # a profile keeps JupyterLab's code compiled: it opens sooner
        context = playwright.chromium.launch_persistent_context(profile, executable_path=program, args=[rules])
        yield context
        context.close()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory: pytest.TempPathFactory):
    """JupyterLab over an empty folder, on a machine that has Chromium."""
    with jupyter_lab(tmp_path_factory.mktemp("lab")) as server:
        yield server
