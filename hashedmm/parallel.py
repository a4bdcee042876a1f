"""One network trained by several processes: panel rows split over ranks, or the samples of every batch.

MPI (mpi4py) starts the processes, "ranks", and carries NumPy arrays; NCCL, through CuPy, carries CuPy arrays. Neither
adds anything up: sums are taken here, in the order of the ranks, so that every rank has the same bits, whatever the
library's algorithm is. Nothing hangs: who waits for longer than the time-out ends the run on all ranks, with a message.
On GPUs the steps of hashed layers are CUDA graphs, cut where ranks send (hashedmm.graph).

    with world() as ranks:                       # mpiexec -n 2 python train.py
        net = PanelParallel(MLP([784, 1000, 10]), ranks)
        train(net, data, save_state="net.state")
        save_model("net.safetensors", net)       # every rank calls, rank 0 writes

Imports hashing, launch, cpu, matmul and nn; mpi4py and CuPy where they are needed.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import hashlib
import itertools
import json
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from hashedmm import cpu, nn
from hashedmm.hashing import COLUMN_STEP, HashSpec, Window, derive_seed, fmix32
from hashedmm.launch import library, on_gpu
from hashedmm.matmul import hashed_matmul, hashed_matmul_grad_w, hashed_matmul_grad_x
from hashedmm.nn import MLP, Dropout, HashedLinear, Layer, Linear, OneProcess, Parameter, array_module, to_numpy

Array = Any  # a NumPy or a CuPy array

TIMEOUT = 300.0  # seconds
MODES = ("panels", "data")
DTYPES = ("float32", "float64", "int32", "int64", "uint8")  # of arrays that travel
# What launchers tell the processes they start: how many there are. Hydra (MPICH) and Open MPI.
STARTED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
SPIN = 2e-3  # seconds of waiting in which the processor is offered to others, and not left
PAUSE = 1e-3  # seconds of sleep between later looks, at most
GRACE = 2.0  # seconds for which other ranks leave it to rank 0 to say what failed on all


def bounds(n: int, size: int) -> list[int]:
    """Where the shares of ``n`` things begin and end: rank r has [bounds[r], bounds[r + 1]). Sizes differ by 1 at most;
    of fewer things than ranks some get none."""
    return [n * rank // size for rank in range(size + 1)]


def world(timeout: float = TIMEOUT) -> Ranks:
    """All processes that mpiexec started; the only one, where it did not.

    Parameters
    ----------
    timeout : float > 0
        Seconds that a rank waits for the others before it ends the run on all of them.

    Raises
    ------
    ValueError
        If mpi4py or an MPI library is missing, or mpiexec belongs to another MPI library than the one that is loaded.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:
        raise ValueError(
            f"several processes need mpi4py and an MPI library ({e}): in a checkout, pip install -e '.[parallel]', or "
            "'.[parallel,mpich]' where the machine has no MPI"
        ) from None
    comm = MPI.COMM_WORLD
    started = max(int(os.environ.get(name) or 1) for name in STARTED)
    if comm.size == 1 and started > 1:
        library_name = MPI.Get_library_version().splitlines()[0].rstrip("\0")
        raise ValueError(
            f"mpiexec started {started} processes, but each is alone: it belongs to another MPI library than the one "
            f"that mpi4py has loaded ({library_name}). Use the mpiexec of that library; `pip install mpich` puts one "
            "beside this Python"
        )
    return Ranks(comm, timeout)


class Ranks(OneProcess):
    """Processes that compute together, and what they send each other.

    Every method is called by all ranks, in the same order. As a context manager it ends all ranks, with a traceback, if
    one of them leaves by an exception; else it calls `close`.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        `world` takes all there are.
    timeout : float > 0
        Seconds, see `world`.

    Attributes
    ----------
    rank, size : int
        This rank's number, from 0, and how many there are.
    sent_bytes : int
        Of arrays that this rank has sent to others since it began. A broadcast counts once for every receiver.
    """

    def __init__(self, comm: Any, timeout: float = TIMEOUT) -> None:
        from mpi4py import MPI
        from mpi4py.util.dtlib import from_numpy_dtype

        self.timeout = nn._positive("timeout", timeout)
        self._mpi, self._type, self._parent = MPI, from_numpy_dtype, comm
        self.rank, self.size = comm.rank, comm.size
        self.sent_bytes = 0
        self._nccl: _Nccl | None = None
        self._comm, request = comm.Idup()  # a communicator of our own: no message of others is taken for one of ours
        self._wait(request, "the start")

    # ---- arrays

    def allreduce(self, a: Array) -> Array:
        """The sum of ``a`` over all ranks, in place and returned: C order, one shape on all ranks.

        Each rank gets its share of every other's array, adds in the order of the ranks, and sends the sums to all: 2
        (size - 1) / size of the array, as much as a ring sends. Every rank has the same bits.
        """
        self._check(a)
        if self.size > 1:
            flat, at = a.reshape(-1), bounds(a.size, self.size)
            self._gather(self._summed(flat, at, "allreduce"), flat, at, "allreduce")
        return a

    def reduce_scatter(self, a: Array, at: Sequence[int], room: Array | None = None) -> Array:
        """The sum of ``a`` over all ranks, of which each keeps a share.

        Parameters
        ----------
        a : array in C order, one size on all ranks
        at : size + 1 integers
            Rank r keeps [at[r], at[r + 1]) of the flat array.
        room : (size, at[rank + 1] - at[rank]) array in C order, like ``a``, or None
            What the others send is put there, and then the sum into its first row, which is returned.

        Returns
        -------
        (at[rank + 1] - at[rank],) array, added in the order of the ranks.
        """
        self._check(a)
        at = self._checked_bounds(at, a.size)
        if room is not None:
            self._check(room)
            shape = self.size, at[self.rank + 1] - at[self.rank]
            if room.shape != shape or room.dtype != a.dtype or on_gpu(room) != on_gpu(a):
                raise ValueError(f"room must have the shape {shape}, like a ({a.dtype}), got {room.dtype} {room.shape}")
        if self.size > 1:
            return self._summed(a.reshape(-1), at, "reduce_scatter", room)
        if room is None:
            return a.reshape(-1)
        room[0] = a.reshape(-1)
        return room[0]

    def allgather(self, part: Array, out: Array, at: Sequence[int]) -> Array:
        """Every rank's part, one after the other, in ``out`` on all ranks.

        Parameters
        ----------
        part : array in C order of at[rank + 1] - at[rank] elements; it may be its place in ``out``
        out : array in C order of at[size] elements
        at : size + 1 integers: where the parts begin and end
        """
        self._check(part)
        self._check(out)
        at = self._checked_bounds(at, out.size)
        mine = at[self.rank + 1] - at[self.rank]
        if part.size != mine or part.dtype != out.dtype or on_gpu(part) != on_gpu(out):
            raise ValueError(f"part must have {mine} elements, like out ({out.dtype}), got {part.dtype} {part.shape}")
        if self.size == 1:
            out.reshape(-1)[...] = part.reshape(-1)
        else:
            self._gather(part.reshape(-1), out.reshape(-1), at, "allgather")
        return out

    def bcast(self, a: Array, root: int = 0) -> Array:
        """``a`` of rank ``root``, in place on every other rank, and returned: C order, one shape on all ranks."""
        self._check(a)
        if self.size > 1 and a.size:
            if self.rank == root:
                self.sent_bytes += (self.size - 1) * a.nbytes
            if on_gpu(a):
                self._on_gpus(a).bcast(a, root)
            else:
                request = self._comm.Ibcast([a, self._type(a.dtype)], root)
                self._wait(request, "bcast")
        return a

    def _check(self, a: Array) -> None:
        if not isinstance(a, np.ndarray) and not on_gpu(a):
            raise TypeError(f"an array must be NumPy's or CuPy's to be sent, got {type(a).__name__}")
        if str(a.dtype) not in DTYPES:
            raise TypeError(f"an array must be of {', '.join(DTYPES)} to be sent, got {a.dtype}; convert it first")
        if not a.flags.c_contiguous:
            raise ValueError(f"an array must be in C order to be sent, got strides {a.strides}; copy it first")

    def _checked_bounds(self, at: Sequence[int], n: int) -> list[int]:
        at = list(at)
        if len(at) != self.size + 1 or at[0] != 0 or at[-1] != n or at != sorted(at):
            raise ValueError(f"at must be {self.size + 1} bounds from 0 to {n}, one a rank and the end, got {at}")
        return at

    def _summed(self, flat: Array, at: list[int], what: str, room: Array | None = None) -> Array:
        """The sum over ranks of this rank's share of their arrays."""
        mine = at[self.rank + 1] - at[self.rank]
        theirs = library(flat).empty((self.size, mine), flat.dtype) if room is None else room
        self.sent_bytes += (flat.size - mine) * flat.itemsize
        if on_gpu(flat):
            self._on_gpus(flat).exchange(flat, theirs, at, what)
        else:
            t, counts = self._type(flat.dtype), np.diff(at)
            receive = [theirs, [mine] * self.size, [mine * rank for rank in range(self.size)], t]
            self._wait(self._comm.Ialltoallv([flat, counts, at[:-1], t], receive), what)
        total = theirs[0]
        for part in theirs[1:]:
            total += part
        return total

    def _gather(self, part: Array, out: Array, at: list[int], what: str) -> None:
        self.sent_bytes += (self.size - 1) * part.nbytes
        if on_gpu(part):
            self._on_gpus(part).gather(part, out, at, what)
        else:
            t, start = self._type(part.dtype), at[self.rank]
            in_place = part.size and part.ctypes.data == out[start : start + 1].ctypes.data
            send = self._mpi.IN_PLACE if in_place else [part, t]
            self._wait(self._comm.Iallgatherv(send, [out, np.diff(at), at[:-1], t]), what)

    def share(self, n: int) -> tuple[int, int]:
        """(first, last) of ``n`` things that are this rank's: see `bounds`."""
        first, last = bounds(n, self.size)[self.rank :][:2]
        return first, last

    # ---- small things

    def exchange(self, value: Any) -> list[Any]:
        """Every rank's ``value``, a JSON document, by rank."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.empty(self.size, np.int64)
        byte, integer = self._mpi.BYTE, self._mpi.INT64_T
        length = np.array([len(text)], np.int64)
        self._wait(self._comm.Iallgather([length, integer], [lengths, integer]), "exchange")
        at = np.concatenate([[0], np.cumsum(lengths)])
        texts = np.empty(at[-1], np.uint8)
        self._wait(self._comm.Iallgatherv([text, byte], [texts, lengths, at[:-1], byte]), "exchange")
        return [json.loads(texts[a:b].tobytes()) for a, b in itertools.pairwise(at)]

    def agree(self, name: str, value: Any) -> None:
        values = self.exchange(value)
        found = [
            f"{path or name} is {theirs!r} on rank {rank} and {ours!r} on rank 0"
            for rank, other in enumerate(values)
            for path, theirs, ours in nn.unequal(other, values[0])
        ]
        if found:
            more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
            raise ValueError(
                f"the ranks do not have the same {name}: {'; '.join(found[:5])}{more}. Start all of them with the same "
                "command, files and version of hashedmm"
            )

    def any(self, flag: bool) -> bool:
        mine, all_flags = np.array([flag], np.uint8), np.empty(self.size, np.uint8)
        byte = self._mpi.BYTE
        self._wait(self._comm.Iallgather([mine, byte], [all_flags, byte]), "any")
        return bool(all_flags.any())

    def same(self, value: Any) -> Any:
        return self.exchange(value if self.rank == 0 else None)[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self._wait(self._comm.Ibarrier(), "barrier")

    # ---- GPUs

    def use_gpu(self) -> int:
        """Give each rank a GPU of its machine, its current one from now on; returns the number.

        Call it before any CuPy array is made.

        Raises
        ------
        ValueError
            On all ranks, if two would share a GPU, which NCCL refuses, or CuPy has no NCCL.
        """
        import cupy
        from cupy.cuda import nccl

        host = self._mpi.Get_processor_name()
        beside = [rank for rank, other in enumerate(self.exchange(host)) if other == host]
        number = beside.index(self.rank) % cupy.cuda.runtime.getDeviceCount()
        places = self.exchange([host, cupy.cuda.runtime.deviceGetPCIBusId(number), bool(nccl.available)])
        gpus = {tuple(place[:2]) for place in places}
        if len(gpus) < self.size:
            raise ValueError(
                f"each rank needs a GPU of its own, and {self.size} ranks found {len(gpus)}: take mpiexec -n "
                f"{len(gpus)}, or the CPU (--device cpu)"
            )
        if self.size > 1 and not all(place[2] for place in places):
            raise ValueError(
                "CuPy finds no NCCL library, which sends arrays between GPUs: pip install nvidia-nccl-cu13 (or -cu12, "
                "as CuPy), or take the CPU (--device cpu)"
            )
        cupy.cuda.Device(number).use()
        if self.size > 1 and self._nccl is None:
            first = nccl.get_unique_id() if self.rank == 0 else ()
            # Bytes, or in CuPy 13 a tuple of signed bytes.
            kind, numbers = self.same(["bytes" if isinstance(first, bytes) else "tuple", list(first)])
            self._nccl = _Nccl(self, number, bytes(numbers) if kind == "bytes" else tuple(numbers))
            atexit.register(self.close)  # runs before MPI ends, which mpi4py does later, and while CUDA is there
        return number

    def close(self) -> None:
        """End what `use_gpu` has begun, in order: once the GPUs of all ranks are done, NCCL, then the thread that
        watches it. All ranks call it; a second call does nothing. CuPy arrays cannot be sent any more then.

        A process that ends does it too, but not in this order: NCCL must be gone before CUDA and MPI are.
        """
        if self._nccl is None:
            return
        atexit.unregister(self.close)
        self._nccl.finish()
        self.barrier()  # nobody takes memory away that another's GPU reads
        self._nccl.stop()
        self._nccl = None

    def _on_gpus(self, a: Array) -> _Nccl:
        if self._nccl is None or a.device.id != self._nccl.device:
            raise ValueError(
                f"a CuPy array on GPU {a.device.id} cannot be sent before use_gpu(), or from another GPU than that has "
                "chosen: call ranks.use_gpu() before any CuPy array is made"
            )
        return self._nccl

    # ---- waiting, and ending

    def _wait(self, request: Any, what: str) -> None:
        """Wait for an MPI request, leaving the processor to others, but not for longer than the time-out."""
        start, pause = time.monotonic(), 2e-5
        while not request.Test():
            waited = time.monotonic() - start
            if waited > self.timeout:
                self.expire(what)
            if waited < SPIN:
                _offer_processor()
            else:
                time.sleep(pause)
                pause = min(PAUSE, 1.5 * pause)

    def expire(self, what: str) -> None:
        """End all ranks because ``what`` took longer than the time-out."""
        self._end(
            f"waited {self.timeout:g} s for the other ranks in {what}, and gave up. One of them has died, hangs or is "
            "that slow: a longer time-out is --timeout S, or world(timeout=S). A run that saves its state goes on from "
            "the last one",
            1,
        )

    def fail(self, message: str, code: int = 1) -> None:
        """End all ranks with a message on stderr; rank 0 speaks for all if it fails too."""
        if self.rank > 0:
            time.sleep(GRACE)
        self._end(message, code)

    def _end(self, message: str, code: int) -> None:
        sys.stdout.flush()
        print(f"rank {self.rank} of {self.size}: {message}", file=sys.stderr, flush=True)
        last = threading.Timer(5.0, os._exit, [code])  # if Abort hangs; a launcher ends the others if one leaves so
        last.daemon = True
        with contextlib.suppress(RuntimeError):  # a process that is ending starts no thread
            last.start()
        self._parent.Abort(code)
        os._exit(code)  # MPICH's Abort returns, and its launcher ends this process some time later

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.size > 1 and not (isinstance(error, SystemExit) and not error.code):
            if isinstance(error, KeyboardInterrupt):
                self.fail("interrupted", 130)
            text = "".join(traceback.format_exception(kind, error, trace)).rstrip()
            self.fail(f"ended by an error, and all others with it\n{text}")
        self.close()


def _offer_processor() -> None:
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


class _Nccl:
    """What NCCL does for CuPy arrays, on the current stream; nothing waits, but a thread watches.

    Where ranks have parts of different sizes, several calls make one group (NCCL's user guide, "Group Calls").
    """

    def __init__(self, ranks: Ranks, device: int, unique_id: Any) -> None:
        import cupy
        from cupy.cuda import nccl

        self._cupy, self._nccl = cupy, nccl
        self.device, self._ranks = device, ranks
        self._types = {name: getattr(nccl, f"NCCL_{name.upper()}") for name in DTYPES}
        self._pending: deque[tuple[str, Any]] = deque()  # what, and an event behind it
        self._stopped = threading.Event()
        self._inside: str | None = "the start of NCCL"  # a call of NCCL's that waits for the other ranks
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._comm = nccl.NcclCommunicator(ranks.size, unique_id, ranks.rank)
        self._inside = None

    def exchange(self, flat: Array, out: Array, at: list[int], what: str) -> None:
        """out[r] = this rank's share of rank r's array."""
        rank, stream, kind = self._ranks.rank, self._stream(), self._types[str(flat.dtype)]
        out[rank] = flat[at[rank] : at[rank + 1]]
        self._nccl.groupStart()
        for other in range(self._ranks.size):
            if other != rank:
                count = at[other + 1] - at[other]
                if count:
                    self._comm.send(flat.data.ptr + at[other] * flat.itemsize, count, kind, other, stream)
                if out.shape[1]:
                    self._comm.recv(out[other].data.ptr, out.shape[1], kind, other, stream)
        self._nccl.groupEnd()
        self._note(what)

    def gather(self, part: Array, out: Array, at: list[int], what: str) -> None:
        """out[at[r] : at[r + 1]] = rank r's part."""
        stream, kind, counts = self._stream(), self._types[str(part.dtype)], np.diff(at).tolist()
        if len(set(counts)) == 1:
            if part.size:
                self._comm.allGather(part.data.ptr, out.data.ptr, part.size, kind, stream)
        else:
            self._nccl.groupStart()
            for rank, count in enumerate(counts):
                if count:
                    to = out.data.ptr + at[rank] * out.itemsize
                    source = part.data.ptr if rank == self._ranks.rank else to
                    self._comm.broadcast(source, to, count, kind, rank, stream)
            self._nccl.groupEnd()
        self._note(what)

    def bcast(self, a: Array, root: int) -> None:
        self._comm.broadcast(a.data.ptr, a.data.ptr, a.size, self._types[str(a.dtype)], root, self._stream())
        self._note("bcast")

    def finish(self) -> None:
        """Wait until the GPU is done with everything, while the thread still watches."""
        with self._cupy.cuda.Device(self.device) as device:
            device.synchronize()

    def stop(self) -> None:
        """End NCCL, then the thread, from the thread that calls. The last to drop a communicator destroys it: were that
        the watching thread, which nobody waits for, CUDA could be gone before it is done."""
        with self._cupy.cuda.Device(self.device):
            self._inside = "the end of NCCL"
            self._comm.destroy()
            self._inside = None
            self._stopped.set()
            self._watcher.join()
            self._pending.clear()  # events end here, not in the thread

    def _stream(self) -> int:
        return self._cupy.cuda.get_current_stream().ptr

    def _note(self, what: str) -> None:
        event = self._cupy.cuda.Event(disable_timing=True)
        event.record()
        self._pending.append((what, event))

    def _watch(self) -> None:
        """End all ranks if nothing that waits gets done for as long as the time-out."""
        self._cupy.cuda.Device(self.device).use()
        timeout = self._ranks.timeout
        since = time.monotonic()
        while not self._stopped.wait(min(1.0, timeout / 10)):
            inside = self._inside
            idle = not self._pending and not inside
            while self._pending and self._pending[0][1].done:
                self._pending.popleft()
                since = time.monotonic()
            if idle:
                since = time.monotonic()
            elif time.monotonic() - since > timeout:
                self._ranks.expire(inside or f"{self._pending[0][0]} on the GPU")


# --------------------------------------------------------------------------------------------------------------------
# Layers


class PartDropout(Dropout):
    """`Dropout` of a part of the activations: some features, or some samples, with the mask that the whole has there.

    Parameters
    ----------
    like : Dropout
    first_feature : int
        The feature that is this part's first.
    """

    def __init__(self, like: Dropout, first_feature: int = 0) -> None:
        super().__init__(like.rate, seed=like.seed)
        self.first_feature = first_feature
        self.first_sample = 0
        self.samples: int | None = None  # of the whole batch; None: all are here
        self._places: tuple[Any, Array, Array] = (None, None, None)  # of what; words, and the half's lowest bit

    def place(self, first_sample: int, samples: int) -> None:
        """The next activations are those of samples from ``first_sample`` on, of a batch of ``samples``."""
        self.first_sample, self.samples = first_sample, samples

    def mask(self, shape: tuple[int, int], step: int, xp: Any = np) -> Array:
        key = (shape, self.first_sample, self.samples, xp)
        if self._places[0] != key:
            # Activation (feature f, sample i) takes half k % 2 of word k // 2, k = f * samples + i.
            n, features = shape
            f, i = xp.arange(features, dtype=np.int64)[:, None], xp.arange(n, dtype=np.int64)[None, :]
            k = (self.first_feature + f) * (n if self.samples is None else self.samples) + self.first_sample + i
            self._places = key, (k >> 1).astype(np.uint32) * np.uint32(COLUMN_STEP), ((k & 1) << 4).astype(np.uint32)
        _, words, lowest = self._places
        halves = (fmix32(words ^ np.uint32(derive_seed(self.seed, step))) >> lowest) & np.uint32(0xFFFF)
        return xp.multiply(halves >= np.uint32(self._threshold), np.float32(self._scale), dtype=np.float32).T


class PanelLinear(HashedLinear):
    """Some rows of panels of a hashed layer: its own buckets, biases and outputs. Takes all inputs.

    ``backward`` takes the gradient of its own outputs, and gives its share of the gradient of all inputs, which is the
    sum of the ranks' shares. The gradient of its buckets needs nothing from any other rank.

    Parameters
    ----------
    whole : HashedLinear
        Whose values it takes a copy of.
    rows : (start, stop)
        Of panels, as `HashSpec.window` takes them.
    at : where each rank's outputs begin, and the last one's end, if the others have the rest of them
    """

    def __init__(self, whole: HashedLinear, rows: tuple[int, int], at: tuple[int, ...] | None = None) -> None:
        self.whole, self.kernel, self.at = whole.spec, whole.kernel, at
        self.spec: Window = whole.spec.window(rows)
        self.d_out, self.d_in = self.spec.shape
        ((start, stop),) = self.spec.pieces  # one, as it is as wide as the whole
        first = self.spec.first_row
        self.weight = Parameter(whole.weight.value[start:stop].copy(), uses=whole.weight.uses)
        self.bias = Parameter(whole.bias.value[first : first + self.d_out].copy())
        self._x_dn = self._derived = None

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        x_dn = array_module(x).ascontiguousarray(x.T)
        self._x_dn = x_dn if train else None
        kernel = self._schedule(x_dn) if self.kernel == "auto" else self.kernel
        y = hashed_matmul(self.weight.value, x_dn, self.spec, kernel=kernel)
        self._hold()
        y += self.bias.value[:, None]
        return y.T

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        x, g = nn._kept(self, self._x_dn), array_module(gy).ascontiguousarray(gy.T)
        kernel = self._schedule(x)
        self.weight.grad = hashed_matmul_grad_w(x, g, self.spec, kernel=kernel)
        self._hold()
        self.bias.grad = gy.sum(axis=0)
        return hashed_matmul_grad_x(self.weight.value, g, self.spec, kernel=kernel).T if need_grad_x else None

    def _schedule(self, a: Array) -> str:
        """On the CPU what one process chooses for the whole layer, so that each panel is computed as it would there."""
        return "auto" if on_gpu(a) else f"cpu_{cpu.choose_schedule(self.whole, a.shape[1])}"


class Gather(Layer):
    """All activations from every rank's rows of them; the gradient goes back to the rank that owns the row.

    Parameters
    ----------
    ranks : Ranks
    at : size + 1 integers
        Rank r has the features [at[r], at[r + 1]).
    add : bool
        Whether the gradient that comes back is a share, to be summed over ranks, or the same on all ranks.
    """

    def __init__(self, ranks: Ranks, at: Sequence[int], add: bool) -> None:
        self.ranks, self.at, self.add = ranks, tuple(at), add

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        xp, n = array_module(x), len(x)
        whole = xp.empty((self.at[-1], n), x.dtype)
        return self.ranks.allgather(xp.ascontiguousarray(x.T), whole, [a * n for a in self.at]).T

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        n, first, last = len(gy), self.at[self.ranks.rank], self.at[self.ranks.rank + 1]
        if not self.add:
            return gy[:, first:last]
        g = array_module(gy).ascontiguousarray(gy.T)
        return self.ranks.reduce_scatter(g, [a * n for a in self.at]).reshape(last - first, n).T


class SumGradient(Layer):
    """Passes activations on; sums the gradient over ranks on the way back."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def forward(self, x: Array, *, train: bool = False, step: int = 0) -> Array:
        return x

    def backward(self, gy: Array, *, need_grad_x: bool = True) -> Array | None:
        return self.ranks.allreduce(array_module(gy).ascontiguousarray(gy.T)).T


# --------------------------------------------------------------------------------------------------------------------
# Networks


class _Parallel(MLP):
    """What both ways share. Values are copies of those of ``model``."""

    ranks: Ranks
    mode: str

    def __init__(self, model: MLP, ranks: Ranks) -> None:
        if not isinstance(model, MLP) or isinstance(model, _Parallel):
            raise TypeError(f"model must be an MLP of one process, got {type(model).__name__}")
        if not isinstance(ranks, Ranks):
            raise TypeError(f"ranks must be Ranks, as world() gives, got {type(ranks).__name__}")
        if model.xp is not np and ranks.size > 1:
            ranks._on_gpus(model.linears[0].weight.value)
        self.sizes, self.dropout, self.seed, self.xp = model.sizes, model.dropout, model.seed, model.xp
        self.ranks = ranks
        self._config, self._summary, self._repr = model.config(), model.summary(), repr(model)
        self._shapes = model.shapes()
        self._hashed = nn._hashed_layers(model) is not None
        self._kernel = next((linear.kernel for linear in model.linears if isinstance(linear, HashedLinear)), "auto")
        values = hashlib.sha256()
        for name, a in model.state().items():
            values.update(name.encode() + a.tobytes())
        same = {"parallel": self.mode, "model": self._config, "kernel": self._kernel, "values": values.hexdigest()}
        ranks.agree("network", same | {"device": model.xp.__name__})

    def whole(self) -> MLP:
        """The network of one process, with the values of now. All ranks call it, and each gets one."""
        model = MLP.from_config(self.config(), xp=self.xp, kernel=self._kernel)
        model.load_state(self.state())
        return model

    def hashed_chain(self) -> list[tuple[HashedLinear, Dropout | None]] | None:
        if not self._hashed:
            return None
        found: list[tuple[HashedLinear, Dropout | None]] = []
        for layer in self.layers:
            if isinstance(layer, HashedLinear):
                found.append((layer, None))
            elif isinstance(layer, Dropout):
                found[-1] = found[-1][0], layer
        return found

    def config(self) -> dict[str, Any]:
        return self._config

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    @property
    def stored_values(self) -> int:
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    @property
    def stored_bytes(self) -> int:
        return 4 * self.stored_values

    @property
    def virtual_weights(self) -> int:
        return sum(a * b for a, b in itertools.pairwise(self.sizes))

    def summary(self) -> str:
        return f"{self._summary}\n{self.mode} over {self.ranks.size} ranks"

    def __repr__(self) -> str:
        return f"{self._repr[:-1]}, {self.mode} over {self.ranks.size} ranks>"


class PanelParallel(_Parallel):
    """A network whose layers are split by rows of panels: each rank owns the buckets and biases of its panels.

    A panel's buckets belong to it alone, so that their gradient needs no communication at all: in a training step only
    activations travel. Forward, every rank computes its rows of y from all of x, and the rows are gathered; backward,
    each gets from the others what they have of the gradient of its rows, the sum of W_r^T gy_r over ranks r. Initial
    values and dropout masks are those of the network of one process.

    Whole on every rank, and computed there alike: dense layers, and those with fewer rows of panels than there are
    ranks, as elementwise output layers. So that they stay alike, they take the gradients of rank 0.

    Results are those of one process within the rounding of the sums over ranks. Given the same x and gy, the gradient
    of the buckets has the very bits that it has in one process where the sketch schedule computes it, as it works panel
    by panel (on a GPU: if the columns are worked on in the same chunks); by other kernels it agrees to rounding.

    Parameters
    ----------
    model : MLP
        The network of one process, the same on every rank; it is left as it is.
    ranks : Ranks

    Raises
    ------
    ValueError
        If the ranks' networks differ, or no layer has as many rows of panels as there are ranks.
    """

    mode = "panels"

    def __init__(self, model: MLP, ranks: Ranks) -> None:
        super().__init__(model, ranks)
        shares = [_panel_shares(linear.spec, ranks.size) for linear in model.linears]
        if ranks.size > 1 and not any(shares):
            most = max((linear.spec.panel_grid[0] for linear in model.linears if linear.spec), default=0)
            raise ValueError(
                f"no layer can be split over {ranks.size} ranks: the layers have at most {most} rows of panels. Take "
                f"{f'at most {most} ranks, ' if most > 1 else ''}lower panels (--panel), or --parallel data"
            )
        self.linears, self.layers = [], []
        self._at: dict[str, list[int]] = {}  # where the ranks' shares of a parameter begin and end
        for i, (linear, share) in enumerate(zip(model.linears, shares, strict=True)):
            rows = None
            if share:
                parts = [linear.spec.window(part) for part in share]  # type: ignore[union-attr]
                rows = [*(part.first_row for part in parts), linear.d_out]
                self._at[f"{i}.bias"] = rows
                self._at[f"{i}.weight"] = [0, *(part.pieces[0][1] for part in parts)]
                self.linears.append(PanelLinear(linear, share[ranks.rank], tuple(rows)))  # type: ignore[arg-type]
            else:
                self.linears.append(_copied(linear))
            self.layers.append(self.linears[-1])
            last = i == len(shares) - 1
            if not last:
                self.layers.append(nn.ReLU())
                if model.dropout:
                    dropout = model.layers[model.layers.index(linear) + 2]
                    self.layers.append(PartDropout(dropout, rows[ranks.rank] if rows else 0))  # type: ignore[arg-type]
            add = not last and bool(shares[i + 1])
            if rows:
                self.layers.append(Gather(ranks, rows, add))
            elif add:
                self.layers.append(SumGradient(ranks))
        self._whole = [linear for linear, share in zip(self.linears, shares, strict=True) if not share]

    def backward(self, gy: Array) -> None:
        super().backward(gy)
        for linear in self._whole:
            for p in linear.parameters().values():
                self.ranks.bcast(p.grad)

    def state(self) -> dict[str, np.ndarray]:
        return self.gathered(super().state())

    def load_state(self, state: Mapping[str, Array]) -> None:
        nn.check_arrays(state, self.shapes(), "the model's state")
        mine = self.shared_out({name: to_numpy(a) for name, a in state.items()})
        for name, p in self.parameters().items():
            p.value[...] = self.xp.asarray(mine[name])

    def gathered(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = dict(arrays)
        for key, a in arrays.items():
            if at := self._at.get(key.rpartition("/")[2]):
                out[key] = self.ranks.allgather(np.ascontiguousarray(a), np.empty(at[-1], a.dtype), at)
        return out

    def shared_out(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out = dict(arrays)
        for key, a in arrays.items():
            if at := self._at.get(key.rpartition("/")[2]):
                if a.shape != (at[-1],):
                    raise ValueError(f"{key} must have the shape ({at[-1]},) to be split over ranks, got {a.shape}")
                out[key] = a[at[self.ranks.rank] : at[self.ranks.rank + 1]]
        return out


class DataParallel(_Parallel):
    """A network that every rank holds whole, and of every batch a share.

    The gradients of all ranks are summed, weighted by their shares, in one array: the stored buckets and biases travel,
    not d_out x d_in weights. Dropout masks, loss and errors are those of the whole batch. Shares of a batch may be
    unequal, and empty in an epoch's last. Results are those of one process within the rounding of the sums.

    Parameters, errors: as `PanelParallel`, for any layers. A batch must have at least a sample for each rank.
    """

    mode = "data"

    def __init__(self, model: MLP, ranks: Ranks) -> None:
        super().__init__(model, ranks)
        self.layers, self.linears = [], []
        for layer in model.layers:
            if isinstance(layer, (Linear, HashedLinear)):
                self.layers.append(_copied(layer))
                self.linears.append(self.layers[-1])  # type: ignore[arg-type]
            else:
                self.layers.append(PartDropout(layer) if isinstance(layer, Dropout) else nn.ReLU())

    def place(self, first: int, samples: int) -> None:
        """The next training forward is of samples from ``first`` on, of a batch of ``samples``."""
        for layer in self.layers:
            if isinstance(layer, PartDropout):
                layer.place(first, samples)

    def error(self, x: Array, y: Array, batch: int = 1000) -> float:
        """`MLP.error` of all samples, of which each rank predicts a share."""
        if not len(x) or len(x) != len(y):
            raise ValueError(f"x and y must have the same length, at least 1, got {len(x)} and {len(y)}")
        first, last = self.ranks.share(len(x))
        wrong = int((self.predict(x[first:last], batch) != self._here(y[first:last])).sum()) if last > first else 0
        return 100.0 * (int(self.ranks.allreduce(np.array([wrong], np.int64))[0]) / len(x))


class _DataSteps(nn._Eager):
    """Steps of which every rank does its share of the samples."""

    model: DataParallel

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        xp = self.model.xp
        _check_batch(self.batch, self.model.ranks)
        ends = np.cumsum([0, *(p.value.size for p in self.parameters.values())]).tolist()
        self.parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        self.flat = xp.empty(ends[-1] + 2, np.float32)  # all gradients, the loss, and how many were wrong

    def run(self, i: int) -> int:
        step, ranks, flat = self.before + i, self.model.ranks, self.flat
        chosen = self.order[i * self.batch : (i + 1) * self.batch]
        n = len(chosen)
        first, last = ranks.share(n)
        if last > first:
            share = (last - first) / n
            labels = self.y[chosen[first:last]]
            self.model.place(first, n)
            logits = self.model.forward(self.x[chosen[first:last]], train=True, step=step)
            loss, grad = nn._softmax_cross_entropy(logits, labels)
            self.model.backward(grad * share)
            for part, p in zip(self.parts, self.parameters.values(), strict=True):
                flat[part] = p.grad.reshape(-1)  # type: ignore[union-attr]
            flat[-2], flat[-1] = loss * share, (logits.argmax(axis=1) != labels).sum()
        else:
            flat.fill(0)
        ranks.allreduce(flat)
        for part, p in zip(self.parts, self.parameters.values(), strict=True):
            p.grad = flat[part].reshape(p.value.shape)
        self.losses[i], self.wrong[i] = flat[-2], flat[-1]
        self.optimizer.step(self.parameters, self.lr_factor(step))
        return 1


class _CapturedPanels(nn._Captured):
    """Steps as CUDA graphs, cut where activations or their gradients travel."""

    def together(self) -> dict[str, Any]:
        ranks = self.model.ranks
        return {"ranks": ranks} if ranks.size > 1 else {}


class _CapturedData(nn._Captured):
    """Steps as CUDA graphs, of this rank's share of the samples: one until the gradients are there, and one from their
    sum on. Losses and counts of a share stay on the device, and are added up over the ranks when they are asked for."""

    model: DataParallel

    def __init__(
        self, model: MLP, optimizer: nn.Optimizer, x: Array, y: Array, n: int, batch: int, losses: Array, wrong: Array,
        lr_factor: Callable[[int], float],
    ) -> None:  # fmt: skip
        ranks, xp = model.ranks, model.xp
        assert isinstance(ranks, Ranks)
        _check_batch(batch, ranks)
        self.all_losses, self.all_wrong = losses, wrong
        super().__init__(model, optimizer, x, y, n, batch, xp.zeros_like(losses), xp.zeros_like(wrong), lr_factor)
        sizes = [batch] * (len(losses) - 1) + [n - batch * (len(losses) - 1)]
        self.shares = xp.asarray([float(np.diff(ranks.share(size))[0]) / size for size in sizes])
        self.collected = 0

    def together(self) -> dict[str, Any]:
        ranks = self.model.ranks
        return {"ranks": ranks, "share": ranks.share} if ranks.size > 1 else {}

    def begin(self, order: np.ndarray, before: int, step: int) -> None:
        self.losses.fill(0)  # steps in which this rank has no samples write nothing
        self.wrong.fill(0)
        self.collected = step
        super().begin(order, before, step)

    def collect(self, i: int) -> None:
        part = slice(self.collected, i)
        if i > self.collected:
            self.all_losses[part] = self.model.ranks.allreduce(self.losses[part] * self.shares[part])
            self.all_wrong[part] = self.model.ranks.allreduce(self.wrong[part].copy())
            self.collected = i


PanelParallel.steppers = nn._Eager, _CapturedPanels
DataParallel.steppers = _DataSteps, _CapturedData

PARALLEL: dict[str, Callable[[MLP, Ranks], _Parallel]] = {"panels": PanelParallel, "data": DataParallel}


def _check_batch(batch: int, ranks: Ranks) -> None:
    if batch < ranks.size:
        raise ValueError(
            f"batch must be at least {ranks.size}, a sample for each rank, got {batch}; take fewer ranks or a larger "
            "batch"
        )


def _panel_shares(spec: HashSpec | None, size: int) -> list[tuple[int, int]] | None:
    """Rows of panels [start, stop) of every rank; None if the layer is whole on every rank."""
    if spec is None or size == 1 or spec.panel_grid[0] < size:
        return None
    return list(itertools.pairwise(bounds(spec.panel_grid[0], size)))


def _copied(linear: Linear | HashedLinear) -> Linear | HashedLinear:
    """The same layer with values of its own."""
    new = copy.copy(linear)
    for name, p in linear.parameters().items():
        value = p.value.copy()
        setattr(new, name, Parameter(value, array_module(value).zeros_like(value), p.uses))
    return new
