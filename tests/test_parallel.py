"""Several processes, started by mpiexec: equal to one, on any number of ranks; none outlives another.

What the ranks do is in tests/parallel; a start costs seconds, so that each makes many checks.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from hashedmm import cli, nn, parallel
from hashedmm.checkpoint import load_model
from hashedmm.nn import MLP

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "parallel"
BESIDE = Path(sys.executable).parent / "mpiexec"
MPIEXEC = str(BESIDE) if BESIDE.exists() else shutil.which("mpiexec")
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or importlib.util.find_spec("mpi4py") is None,
    reason="mpiexec or mpi4py is missing: pip install -e '.[parallel,mpich]'",
)
SECONDS = 240  # after which a run counts as hanging; the machine may be busy


def launcher():
    """mpiexec, and what Open MPI's wants before it starts more processes than cores, or any as root."""
    version = subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True, timeout=60).stdout
    openmpi = "Open MPI" in version or "OpenRTE" in version
    return [MPIEXEC, *(["--allow-run-as-root", "--oversubscribe"] if openmpi else [])]


def with_this_package():
    """The environment in which a program finds the hashedmm of this folder, and all that this process finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def mpi(n, *arguments, cwd=None, seconds=SECONDS):
    """Run a Python command line on n ranks, one thread each."""
    environment = with_this_package()
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = "1"
    command = [*launcher(), "-n", str(n), sys.executable, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=cwd or ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{command} did not end in {seconds} s\n{out}\n{err}")
    return process.returncode, out, err


# Equal to one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


def checked(n, *arguments):
    code, out, err = mpi(n, PROGRAMS / "checks.py", *arguments)
    assert code == 0, f"{out}\n{err}"
    assert f"checks passed on {n} ranks" in out


@needs_mpi
def test_two_ranks(folder):
    checked(2, folder)


@needs_mpi
def test_three_ranks_of_unequal_shares(folder):
    """They also go on from what two have left."""
    checked(3, folder)


@needs_mpi
def test_one_process_goes_on_from_two_ranks(folder, monkeypatch):
    state = folder / "interrupted.state"
    if not state.exists():
        pytest.skip("test_two_ranks leaves the state, and has not run")
    monkeypatch.setattr(sys, "argv", ["checks.py", str(folder)])
    spec = importlib.util.spec_from_file_location("checks", PROGRAMS / "checks.py")
    checks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    whole, part = checks.net(), checks.net()
    expected = nn.train(whole, checks.DATA, **checks.RUN, validation=30)
    history = nn.train(part, checks.DATA, **checks.RUN, validation=30, resume=state)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-4)
    for name, a in part.state().items():
        np.testing.assert_allclose(a, whole.state()[name], rtol=1e-3, atol=1e-4)


# One ends, all end


@needs_mpi
@pytest.mark.parametrize(
    ("n", "how", "found"),
    [
        (3, "kill", None),
        (2, "hang", "waited 2 s for the other ranks in "),
        (3, "raise", "rank 2 of 3: ended by an error, and all others with it"),
        (2, "seed", "the ranks do not have the same network: model.seed is 7 on rank 1 and 0 on rank 0"),
    ],
)
def test_one_ends_all_end(n, how, found):
    """With a message, and long before a training of 100,000 epochs would."""
    code, out, err = mpi(n, PROGRAMS / "fail.py", how)
    assert code != 0
    assert (f"{how} follows" in err) == (how != "seed")
    assert found is None or found in err
    assert how != "kill" or "signal" in (out + err).lower()  # the launcher tells that
    assert how != "raise" or "RuntimeError: what went wrong" in err


# The command


SHORT = ("--limit", "300", "--epochs", "2", "--layers", "784,256,10", "--device", "cpu")


@needs_mpi
@pytest.mark.parametrize(("n", "how"), [(2, "panels"), (3, "data")])
def test_command(n, how, tmp_path, capsys, monkeypatch):
    argv = ["train", *SHORT, "--json", "--quiet"]
    several = [*argv, "--parallel", how, "--save", "net.safetensors", "--timeout", "200"]
    code, out, err = mpi(n, "-m", "hashedmm", *several, cwd=tmp_path)
    assert code == 0, err
    (line,) = out.splitlines()  # one rank prints
    found = json.loads(line)
    assert (found["parallel"], found["ranks"], found["saved"]) == (how, n, "net.safetensors")
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 0
    expected = json.loads(capsys.readouterr().out)
    same = ("stored_buckets", "stored_values", "stored_bytes", "virtual_weights", "layers", "seed", "options")
    assert [found[name] for name in same] == [expected[name] for name in same]
    np.testing.assert_allclose(found["history"]["loss"], expected["history"]["loss"], rtol=1e-3)
    assert abs(found["test_error"] - expected["test_error"]) < 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    assert isinstance(load_model("net.safetensors"), MLP)


@needs_mpi
def test_command_says_what_is_wrong_once(tmp_path):
    code, out, err = mpi(2, "-m", "hashedmm", "train", *SHORT, "--parallel", "data", "--batch", "1", cwd=tmp_path)
    assert code == 2 and "Traceback" not in err
    assert err.count("hashedmm: error: batch must be at least 2, a sample for each rank, got 1") == 1


@needs_mpi
def test_command_of_one_rank(tmp_path):
    """Without mpiexec, in a process of its own: MPI is not begun in this one."""
    command = [sys.executable, "-m", "hashedmm", "train", *SHORT, "--quiet", "--parallel", "panels"]
    run = subprocess.run(
        command, cwd=tmp_path, env=with_this_package(), capture_output=True, text=True, timeout=SECONDS
    )
    assert run.returncode == 0, run.stderr
    assert "test error" in run.stdout and "mpiexec -n 2 hashedmm train" in run.stderr


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[parallel\]'"):
        parallel.world()


@needs_mpi
def test_an_mpiexec_of_another_library_is_noticed():
    """Each of its processes would believe to be alone."""
    program = "from hashedmm.parallel import world\ntry:\n    world()\nexcept ValueError as e:\n    print(e)"
    environment = {**with_this_package(), "OMPI_COMM_WORLD_SIZE": "2"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert "mpiexec started 2 processes, but each is alone" in run.stdout, run.stderr


def test_bounds():
    assert parallel.bounds(10, 3) == [0, 3, 6, 10]
    assert parallel.bounds(2, 4) == [0, 0, 1, 1, 2]
    assert parallel.bounds(0, 2) == [0, 0, 0]


def test_programs_find_what_this_process_finds(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"one{os.pathsep}two")
    assert with_this_package()["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "one", "two"]
    monkeypatch.delenv("PYTHONPATH")
    assert with_this_package()["PYTHONPATH"] == str(ROOT)


# The end of NCCL


@pytest.fixture
def ranks_on_gpus(monkeypatch):
    """Ranks with an `_Nccl`, on modules that only note what is called and by which thread; and these notes."""
    notes = []

    def note(what):
        notes.append((what, threading.current_thread() is threading.main_thread()))

    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def use(self):
            pass

        def synchronize(self):
            note("GPU done")

    class Communicator:
        def __init__(self, size, unique_id, rank):
            pass

        def destroy(self):
            note(f"destroy, the watcher {'alive' if ranks._nccl._watcher.is_alive() else 'dead'}")

    class Event:
        done = False

        def __init__(self, **options):
            pass

        def record(self):
            pass

        def __del__(self):
            note("event")

    modules = {name: types.ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.nccl")}
    cupy, cuda, nccl = modules.values()
    cupy.cuda, cuda.nccl, cuda.Device, cuda.Event, nccl.NcclCommunicator = cuda, nccl, Device, Event, Communicator
    for name in parallel.DTYPES:
        setattr(nccl, f"NCCL_{name.upper()}", name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    ranks = object.__new__(parallel.Ranks)
    ranks.rank, ranks.size, ranks.timeout = 0, 2, 60.0
    ranks.barrier = lambda: note("barrier")
    ranks._nccl = parallel._Nccl(ranks, 0, b"")
    yield ranks, notes
    if ranks._nccl is not None:
        ranks._nccl._stopped.set()


def test_nccl_ends_in_order_and_in_the_thread_that_asks(ranks_on_gpus):
    ranks, notes = ranks_on_gpus
    ranks._nccl._note("allreduce")
    watcher = ranks._nccl._watcher
    with ranks:
        assert watcher.is_alive() and not notes
    assert notes == [("GPU done", True), ("barrier", True), ("destroy, the watcher alive", True), ("event", True)]
    assert not watcher.is_alive() and ranks._nccl is None
    ranks.close()
    assert len(notes) == 4


def test_the_end_of_nccl_is_watched(ranks_on_gpus, monkeypatch):
    """Of a destroy that waits for ranks that never come."""
    ranks, _ = ranks_on_gpus
    ranks.timeout = 0.3
    expired = threading.Event()
    said = []
    monkeypatch.setattr(ranks, "expire", lambda what: (said.append(what), expired.set()), raising=False)
    ranks._nccl._stopped.set()  # it has taken the longer time-out
    ranks._nccl = parallel._Nccl(ranks, 0, b"")
    ranks._nccl._comm.destroy = lambda: expired.wait(20)
    ranks.close()
    assert set(said) == {"the end of NCCL"}


# On GPUs


@pytest.mark.gpu
@needs_mpi
def test_two_gpus(tmp_path):
    import cupy

    if (count := cupy.cuda.runtime.getDeviceCount()) < 2:
        pytest.skip(f"needs two GPUs, and there is {count}")
    checked(2, tmp_path, "cupy")


@pytest.mark.gpu
@needs_mpi
@pytest.mark.parametrize("how", ["panels", "data"])
def test_command_on_two_gpus(how, tmp_path):
    """Again and again, as what goes wrong when a process ends does so now and then."""
    import cupy

    if (count := cupy.cuda.runtime.getDeviceCount()) < 2:
        pytest.skip(f"needs two GPUs, and there is {count}")
    for _ in range(3):
        code, out, err = mpi(2, "-m", "hashedmm", "train", *SHORT[:-1], "gpu", "--parallel", how, cwd=tmp_path)
        assert code == 0 and "test error" in out, f"{out}\n{err}"


@pytest.mark.gpu
@needs_mpi
def test_more_ranks_than_gpus(tmp_path):
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    code, out, err = mpi(count + 1, PROGRAMS / "checks.py", tmp_path, "cupy")
    assert code != 0 and f"{count + 1} ranks found {count}: take mpiexec -n {count}" in err
