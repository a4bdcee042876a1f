"""The command ``hashedmm``: doctor, tune, train, bench, experiment, compile, report. It parses, checks, calls, prints.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed (doctor, compile, report
--check), 2 bad input, 130 Ctrl-C. May import everything in the package; what is optional is imported where needed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hashedmm import __version__, emulator, experiments, records, safefile, tuning
from hashedmm.build import gpu_available
from hashedmm.checkpoint import save_model
from hashedmm.datasets import Dataset, _mnist_folder, load_mnist
from hashedmm.experiments import (
    DEVICES,
    EXPERIMENTS,
    default_dropout,
    default_options,
    device_module,
    find_experiment,
    run_experiment,
)
from hashedmm.hashing import HASHES, HashSpec
from hashedmm.kernels import BUILT, C_TYPES
from hashedmm.matmul import hashed_matmul
from hashedmm.nn import DECAYS, MLP, STRUCTURES, Adam, History, OneProcess, train
from hashedmm.report import (
    DIGEST,
    FIGURES,
    IN_A_TERMINAL,
    digest,
    has_table,
    origin,
    render,
    stale_figures,
    text_table,
)

TRACEBACK = "HASHEDMM_TRACEBACK"  # set this variable to see where an error comes from
OUT = Path("out")  # where results go if nothing else is said
EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130
BAD_INPUT = (ValueError, TypeError, OSError, ArithmeticError)  # errors that are told in a line


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; ``argv`` without the program's name. Returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments, argv)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except BAD_INPUT as e:
        if os.environ.get(TRACEBACK):
            raise
        print(_message(e), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("\nhashedmm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _message(error: BaseException) -> str:
    """An error in a line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        message = f"{error.filename}: {error.strerror}"
    else:
        message = str(error) or type(error).__name__
    return f"hashedmm: error: {message}"


@contextlib.contextmanager
def _processes(together: bool, timeout: float | None) -> Iterator[OneProcess]:
    """The processes that run this command together: this one, or all that mpiexec started. An error ends all."""
    if not together:
        yield OneProcess()
        return
    from hashedmm import parallel

    with parallel.world(parallel.TIMEOUT if timeout is None else timeout) as ranks:
        try:
            yield ranks
        except BAD_INPUT as e:
            if ranks.size > 1 and not os.environ.get(TRACEBACK):
                ranks.fail(_message(e), EXIT_BAD_INPUT)
            raise


# --------------------------------------------------------------------------------------------------------------------
# Arguments


class _Parser(argparse.ArgumentParser):
    """Errors look like all others of the program."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"hashedmm: error: {message}. See {self.prog} --help\n")


def _typed(convert: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """A converter for argparse whose error says what was expected and what came."""

    def checked(text: str) -> Any:
        try:
            return convert(text)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}") from None

    return checked


def _compression(text: str) -> float:
    value = float(Fraction(text.replace(" ", "")))
    if not 0 < value <= 1:
        raise ValueError
    return value


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in re.split("[,-]", text)]
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError
    return sizes


def _pair(text: str) -> tuple[int, int]:
    height, width = (int(part) for part in re.split("[,x]", text))
    if min(height, width) < 1:
        raise ValueError
    return height, width


def _part(text: str) -> tuple[int, int]:
    part, shares = (int(number) for number in text.split("/"))
    if not 1 <= part <= shares:
        raise ValueError
    return part, shares


def _at_least(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise ValueError
        return value

    return _typed(integer, f"an integer of at least {least}")


def _number(low: float, high: float, expected: str, *, with_low: bool = False) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not (low < value < high or (with_low and value == low)):
            raise ValueError
        return value

    return _typed(number, expected)


def _architectures(text: str) -> list[int]:
    return [int(part.removeprefix("sm_")) for part in text.split(",")]


def _seed(text: str) -> int:
    if not 0 <= (value := int(text)) < 2**32:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hashedmm",
        description="Weight matrices whose entries a hash draws from few stored buckets.",
        epilog=f"Set {TRACEBACK}=1 to see where an error comes from.",
    )
    parser.add_argument("--version", action="version", version=f"hashedmm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    p = command("doctor", _doctor, "say what is on this machine, what will run where, and what to install for more")
    p.add_argument("--explain", nargs=3, type=_at_least(1), metavar=("D_OUT", "D_IN", "N"),
                   help="say instead which kernel a product takes, why, how long each takes, and how much "
                   "memory")  # fmt: skip
    p.add_argument("--operation", choices=tuning.OPERATIONS, default="matmul", metavar="NAME",
                   help=f"of --explain: {', '.join(tuning.OPERATIONS)} (default matmul)")  # fmt: skip
    p.add_argument("--dtype", choices=tuple(C_TYPES), default="float16", metavar="NAME",
                   help="of --explain: float16 or float32 (default float16)")  # fmt: skip
    _add_spec(p, "1/64")

    p = command("tune", _tune, 'measure the CUDA kernels on this GPU, so that kernel="auto" chooses by its own times')
    p.add_argument("sizes", nargs="*", type=_at_least(1), metavar="D_OUT D_IN N",
                   help="outputs, inputs, and one or more numbers of columns")  # fmt: skip
    p.add_argument("--dtype", choices=tuple(C_TYPES), metavar="NAME", help="float16 or float32 (default both)")
    p.add_argument("--output", metavar="FILE", help="add the times to a record, instead of keeping them for this GPU")
    p.add_argument("--ship", nargs="+", metavar="RECORD",
                   help="write instead the table that the package ships, from timing records")  # fmt: skip
    _add_spec(p, "1/64")

    p = command("train", _train, "train a network on MNIST")
    net = p.add_argument_group("the network")
    net.add_argument("--structure", choices=STRUCTURES, default="strips", metavar="NAME",
                     help=f"one of {', '.join(STRUCTURES)} (default strips)")  # fmt: skip
    net.add_argument("--compression", type=_typed(_compression, "a number in (0, 1], such as 1/8 or 0.125"),
                     metavar="C", help="stored / virtual weights, as 1/8 or 0.125 (default 1/8)")  # fmt: skip
    net.add_argument("--layers", type=_typed(_sizes, "sizes of at least 1, such as 784,1000,10"), metavar="SIZES",
                     default=[784, 1000, 10], help="from the inputs to the classes (default 784,1000,10)")  # fmt: skip
    net.add_argument("--dropout", type=_number(0, 1, "a rate in [0, 1)", with_low=True), metavar="RATE",
                     help="on hidden activations (default: by structure and compression)")  # fmt: skip
    net.add_argument("--hash", choices=HASHES, default="fmix32", metavar="NAME",
                     help=f"one of {', '.join(HASHES)} (default fmix32)")  # fmt: skip
    _add_options(net)
    how = p.add_argument_group("the training")
    how.add_argument("--epochs", type=_at_least(1), default=30, metavar="N", help="(default 30)")
    how.add_argument("--batch", type=_at_least(1), default=100, metavar="N", help="samples a step (default 100)")
    how.add_argument("--lr", type=_number(0, math.inf, "a number above 0"), default=1e-3, metavar="RATE",
                     help="learning rate of Adam (default 0.001)")  # fmt: skip
    how.add_argument("--decay", choices=tuple(DECAYS), default="linear", metavar="NAME",
                     help=f"of the learning rate: {', '.join(DECAYS)} (default linear)")  # fmt: skip
    how.add_argument("--seed", type=_typed(_seed, "an integer from 0 to 4294967295"), default=0, metavar="N",
                     help="everything random follows from it (default 0)")  # fmt: skip
    how.add_argument("--validation", type=_at_least(0), default=0, metavar="N",
                     help="hold out N training samples and keep the weights of the best epoch on them")  # fmt: skip
    how.add_argument("--limit", type=_at_least(1), metavar="N", help="use the first N training samples only")
    how.add_argument("--data", metavar="FOLDER",
                     help="where MNIST's files are (default: $HASHEDMM_DATA, else the checkout)")  # fmt: skip
    how.add_argument("--device", choices=DEVICES, default="auto", metavar="NAME",
                     help="cpu; gpu, by CuPy; or auto: the GPU if there is one, else the CPU (default auto). Errors "
                     "differ in the last digits, as rounding does")  # fmt: skip
    several = p.add_argument_group("several processes, as mpiexec -n 2 hashedmm train --parallel data")
    several.add_argument("--parallel", choices=("panels", "data"), metavar="HOW",
                         help="panels: each has rows of panels, and owns their buckets; data: each takes a share of "
                         "every batch")  # fmt: skip
    several.add_argument("--timeout", type=_number(0, math.inf, "a number above 0"), metavar="S",
                         help="seconds that one waits for the others before it ends all (default 300)")  # fmt: skip
    out = p.add_argument_group("what comes out")
    out.add_argument("--json", action="store_true", help="print one line of JSON and nothing else on stdout")
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    out.add_argument("--save", metavar="FILE", help="save the trained network (safetensors)")
    out.add_argument("--state", metavar="FILE", help="keep the state of the training there, to go on from")
    out.add_argument("--resume", metavar="FILE", help="go on from the state of an interrupted training")

    p = command("experiment", _experiment, "train the runs of a declared experiment and compare them")
    p.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(EXPERIMENTS)}")
    p.add_argument("--list", action="store_true", help="list the experiments, or with NAME the runs of one")
    p.add_argument("--output", metavar="FILE", help="the record, ending in .json (default out/NAME.json)")
    p.add_argument("--device", choices=DEVICES, default="cpu", metavar="NAME",
                   help="where to train: cpu, gpu or auto (default cpu)")  # fmt: skip
    p.add_argument("--tf32", action="store_true", help="on a GPU: products by tensor cores, factors rounded to 11 bits")
    p.add_argument("--minutes", type=_number(0, math.inf, "a number above 0"), metavar="N",
                   help="begin nothing more after so many minutes; the same command goes on")  # fmt: skip
    either = p.add_mutually_exclusive_group()
    either.add_argument("--row", metavar="LABEL",
                        help="train one run again, as --list names it, and compare it with the record in data/results "
                        "or --output")  # fmt: skip
    either.add_argument("--part", type=_typed(_part, "a share such as 1/4"), default=(1, 1), metavar="K/N",
                        help="train share K of N, into a record of its own (default out/NAME.K-of-N.json)")  # fmt: skip
    either.add_argument("--merge", nargs="+", metavar="FILE", help="join the records of all parts instead of training")
    p.add_argument("--fresh", action="store_true", help="begin anew instead of going on from what the record holds")
    p.add_argument("--quiet", action="store_true", help="no progress bars")

    p = command("bench", _bench, "measure speed and memory: every result is verified, then timed")
    either = p.add_mutually_exclusive_group()
    either.add_argument("--cpu", action="store_true", help="the CPU paths, against NumPy (default without a GPU)")
    either.add_argument("--gpu", action="store_true", help="the CUDA kernels, against cuBLAS (default on a GPU)")
    either.add_argument("--counters", action="store_true",
                        help="what the CUDA kernels ask memory for: emulated; on a GPU also by ncu")  # fmt: skip
    either.add_argument("--bounds", action="store_true",
                        help="what bounds the kernels of a large layer: how busy the GPU is, by ncu")  # fmt: skip
    either.add_argument("--parallel", action="store_true",
                        help="a training step on several ranks: mpiexec -n 2 hashedmm bench --parallel")  # fmt: skip
    p.add_argument("--stream", action="store_true",
                   help="a matrix larger than the GPU's memory, from the host's; without a GPU one from a "
                   "file")  # fmt: skip
    p.add_argument("--rows", type=_at_least(1), metavar="N",
                   help="of --stream: side of the square matrix (default 262144; without a GPU 16384)")  # fmt: skip
    p.add_argument("--columns", type=_at_least(1), metavar="N",
                   help="of --stream: columns of x (default 1024; without a GPU 64)")  # fmt: skip
    p.add_argument("--budget", type=_number(0, math.inf, "a number of bytes such as 8e9"), metavar="BYTES",
                   help="of --stream: memory that it may take (default 8e9; without a GPU 128e6)")  # fmt: skip
    p.add_argument("--output", metavar="FOLDER", default=str(OUT), help="where the records go (default out)")
    p.add_argument("--quick", action="store_true", help="smaller and fewer: half a minute, or a few minutes on a GPU")
    p.add_argument("--only", action="append", default=[], metavar="NAME",
                   help="of the records of --gpu write this one alone, such as gpu_layer; may be repeated")  # fmt: skip

    p = command("compile", _compile, "compile the CUDA kernels with NVRTC, no GPU needed: registers, memory, spills")
    p.add_argument("--arch", type=_typed(_architectures, "numbers such as 75,90"), metavar="LIST",
                   help="architectures, as 75,80 for sm_75 and sm_80 (default: from 75 to 120)")  # fmt: skip
    p.add_argument("--kernel", choices=tuple(BUILT), action="append", metavar="NAME",
                   help=f"this one alone, may be repeated: {', '.join(BUILT)}")  # fmt: skip
    p.add_argument("--json", action="store_true", help="print a row of JSON a line instead of a table")
    p.add_argument("--output", metavar="FILE", help="write the record, ending in .json, and compare with none")

    p = command("report", _report, "make tables from the records of data/results")
    either = p.add_mutually_exclusive_group()
    either.add_argument("--write", metavar="FILE", nargs="?", const="README.md",
                        help="write them between the markers of a file (default README.md)")  # fmt: skip
    either.add_argument("--check", metavar="FILE", nargs="?", const="README.md",
                        help="exit 1 if the tables in a file (default README.md) differ from the records")  # fmt: skip
    return parser


def _add_spec(p: argparse.ArgumentParser, compression: str) -> None:
    """The arguments that a spec is made from beside its shape."""
    hashed = [s for s in STRUCTURES if s != "dense"]
    p.add_argument("--structure", choices=hashed, default="strips", metavar="NAME",
                   help=f"one of {', '.join(hashed)} (default strips)")  # fmt: skip
    p.add_argument("--compression", type=_typed(_compression, "a number in (0, 1], such as 1/8 or 0.125"), metavar="C",
                   default=_compression(compression),
                   help=f"stored / virtual weights (default {compression})")  # fmt: skip
    _add_options(p)


def _add_options(p: Any) -> None:
    for option, kind, text in (
        ("--height", _at_least(1), "of strips"),
        ("--panel", _typed(_pair, "height and width, such as 128,1024"), "of strips and panels, as 128,1024"),
        ("--stride", _at_least(1), "between the candidates of strips (default: by compression)"),
        ("--length", _at_least(1), "of runs and of codebook's words"),
        ("--tile", _at_least(1), "side of tiles"),
    ):
        p.add_argument(option, type=kind, metavar="N" if option != "--panel" else "H,W", help=text)


# --------------------------------------------------------------------------------------------------------------------
# train

_OPTIONS = {  # of a structure's constructor
    "strips": ("height", "panel", "stride"), "panels": ("panel",), "runs": ("length",), "tiles": ("tile",),
    "codebook": ("length",),
}  # fmt: skip


def _train(arguments: argparse.Namespace, argv: list[str]) -> int:
    if arguments.timeout is not None and not arguments.parallel:
        raise ValueError("--timeout belongs to --parallel; leave one of them out, or add the other")
    with _processes(bool(arguments.parallel), arguments.timeout) as ranks:
        return _train_by(ranks, arguments, argv)


def _train_by(ranks: OneProcess, arguments: argparse.Namespace, argv: list[str]) -> int:
    """`_train` by one process, or by several, of which the first prints and writes."""
    settings = _train_settings(arguments)
    xp = device_module(arguments.device)
    first, several = ranks.rank == 0, ranks.size > 1
    if several and xp is not np:
        ranks.use_gpu()  # type: ignore[attr-defined]
    on_gpu = xp is not np
    default = OUT / f"train-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]}.state"
    state = arguments.state or arguments.resume or str(default)
    _check_files(arguments)
    model = MLP(
        settings["layers"], structure=settings["structure"], compression=settings["compression"],
        dropout=settings["dropout"], seed=settings["seed"], hash=settings["hash"], xp=xp, **settings["options"],
    )  # fmt: skip
    data = _train_data(arguments, settings)
    if several:
        from hashedmm import parallel

        model = parallel.PARALLEL[arguments.parallel](model, ranks)  # type: ignore[arg-type]
    again = [*(["mpiexec", "-n", str(ranks.size)] if several else []), "hashedmm"]
    if arguments.parallel and not several:
        two = shlex.join(["mpiexec", "-n", "2", "hashedmm", *argv])
        print(f"One process trains. For two:\n    {two}", file=sys.stderr)
    if first and Path(state) == default and default.exists() and not arguments.resume:
        print(f"{state} is the state of such a run that was interrupted; this one begins anew and replaces it.",
              "To go on instead:", f"    {_resume_command(argv, state, again)}", sep="\n",
              file=sys.stderr)  # fmt: skip
    with _folder_for(Path(state)) if first else contextlib.nullcontext():
        if first and not arguments.json:
            print(model.summary())
            place = f"the GPU, {records.gpu_info()['name']}" if on_gpu else "the CPU"
            print(f"{len(data.y_train):,} training samples, on {place}\n", flush=True)
        history = train(
            model, data, epochs=settings["epochs"], batch=settings["batch"], optimizer=Adam(settings["lr"]),
            decay=settings["decay"], seed=settings["seed"], validation=settings["validation"],
            progress=not arguments.quiet, save_state=state, resume=arguments.resume,
        )  # fmt: skip
        if history.interrupted and not first:
            return EXIT_INTERRUPTED
        if history.interrupted:
            done = f"{len(history.epoch)} of {settings['epochs']} epochs are done"
            print(f"\nInterrupted: {done}, and the state is saved in {state}. To go on:", file=sys.stderr)
            print(f"    {_resume_command(argv, state, again)}", file=sys.stderr)
            return EXIT_INTERRUPTED
        if arguments.save is not None:
            save_model(arguments.save, model, test_error=history.final_test_error, settings=settings)
        if first and Path(state) == default:  # nobody asked for it, and it has done its work
            default.unlink()
    if not first:
        return 0
    if arguments.json:
        result = _train_result(settings, model, data, history, arguments.save)
        print(json.dumps(result | ({"parallel": arguments.parallel, "ranks": ranks.size} if several else {})))
    else:
        print("\n" + _closing(model, data, history, arguments.save))
    return 0


def _check_files(arguments: argparse.Namespace) -> None:
    """ValueError unless every file that is named can be read, or written without destroying another."""
    save, state, resume = (
        path and os.path.realpath(path) for path in (arguments.save, arguments.state, arguments.resume)
    )
    if resume and not os.path.isfile(resume):
        raise ValueError(f"--resume must name the state of an interrupted run; there is no file {arguments.resume}")
    if save:
        safefile.check_writable(arguments.save, "--save")
    if save and save in (state, resume):
        raise ValueError(f"--save must name another file than the state, got {arguments.save} for both")
    if state:
        safefile.check_writable(arguments.state, "--state")
        if os.path.exists(state) and state != resume:
            raise ValueError(
                f"--state: {arguments.state} exists. To go on from it, take --resume instead; to begin anew, delete it "
                "or name another file"
            )


@contextlib.contextmanager
def _folder_for(file: Path) -> Iterator[None]:
    """Make the folder of the default state file, and remove it again if it is left empty."""
    made = file.parent == OUT and not OUT.exists()
    if made:
        OUT.mkdir()
    safefile.check_writable(file, "the state's file")
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds something
                OUT.rmdir()


def _train_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """All that the result depends on, every default filled in; ValueError where arguments contradict each other."""
    structure, compression = arguments.structure, arguments.compression
    options = _options(arguments)
    if structure == "dense":
        if compression not in (None, 1.0):
            raise ValueError("--compression: a dense network stores every weight; leave it out or change --structure")
        compression = 1.0
    compression = 1 / 8 if compression is None else compression
    method = structure if structure == "dense" else f"hashed:{structure}"
    dropout = default_dropout(method, compression) if arguments.dropout is None else arguments.dropout
    options = options or default_options(method, compression)
    return {
        "dataset": "mnist", "structure": structure, "compression": compression, "layers": arguments.layers,
        "options": options, "hash": arguments.hash, "dropout": dropout, "epochs": arguments.epochs,
        "batch": arguments.batch, "lr": arguments.lr, "decay": arguments.decay, "seed": arguments.seed,
        "validation": arguments.validation, "limit": arguments.limit,
    }  # fmt: skip


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the structure that were given; ValueError if one belongs to another."""
    structure = arguments.structure
    names = ("height", "panel", "stride", "length", "tile")
    options = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    for name in options:
        if name not in _OPTIONS.get(structure, ()):
            able = " and ".join(s for s, takes in _OPTIONS.items() if name in takes)
            raise ValueError(f"--{name} belongs to {able}, and --structure is {structure}; leave one of them out")
    return options


def _spec(arguments: argparse.Namespace, shape: tuple[int, int]) -> HashSpec:
    """The spec that `_add_spec`'s arguments describe."""
    structure, compression = arguments.structure, arguments.compression
    options = _options(arguments) or default_options(f"hashed:{structure}", compression)
    return getattr(HashSpec, structure)(shape, compression, **options)


def _train_data(arguments: argparse.Namespace, settings: dict[str, Any]) -> Dataset:
    data = load_mnist(arguments.data)
    inputs, classes = settings["layers"][0], settings["layers"][-1]
    if inputs != data.n_features or classes != data.n_classes:
        raise ValueError(
            f"--layers must begin with {data.n_features} and end with {data.n_classes} for {data.name}, got "
            f"{','.join(map(str, settings['layers']))}"
        )
    if arguments.limit is not None:
        if arguments.limit > len(data.y_train):
            raise ValueError(
                f"--limit must be at most the {len(data.y_train)} samples there are, got {arguments.limit}"
            )
        data = data.subset(arguments.limit, len(data.y_test))
    return data


def _resume_command(argv: Sequence[str], state: str, program: Sequence[str] = ("hashedmm",)) -> str:
    """The command line that goes on from ``state``."""
    kept = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--state", "--resume"):
            skip = True
        elif not word.startswith(("--state=", "--resume=")):
            kept.append(word)
    return shlex.join([*program, *kept, "--resume", state])


def _train_result(settings: dict[str, Any], model: MLP, data: Dataset, history: History, saved: str | None) -> dict:
    """What --json prints."""
    return {
        "test_error": history.final_test_error,
        "stored_buckets": model.stored_values - sum(model.sizes[1:]),
        "stored_values": model.stored_values,
        "stored_bytes": model.stored_bytes,
        "virtual_weights": model.virtual_weights,
        "seconds_per_epoch": history.seconds_per_epoch,
        "device": "cpu" if model.xp is np else "gpu",
        "training_samples": len(data.y_train),
        "saved": saved,
        **settings,
        "history": history.to_dict(),
    }


def _closing(model: MLP, data: Dataset, history: History, saved: str | None) -> str:
    """What a person sees at the end."""
    dense_bytes = 4 * (model.virtual_weights + sum(model.sizes[1:]))
    part = model.stored_bytes / dense_bytes
    share = f", {100 * part:.1f} % of the dense net's" if part != 1 else ""
    seconds = f"{history.seconds_per_epoch:.2f} s, {history.total_seconds:.1f} s in all"
    lines = [
        ("test error", f"{history.final_test_error:.2f} % of {len(data.y_test):,} samples"),
        ("stored", f"{model.stored_values:,} values, {model.stored_bytes:,} bytes{share}"),
        ("time", f"{len(history.epoch)} epochs of {seconds}"),
    ]
    if history.best_epoch is not None:
        lines.insert(1, ("weights", f"of epoch {history.best_epoch}, the best on the samples held out"))
    if saved is not None:
        lines.append(("saved", f"{saved}; in Python: hashedmm.load_model({saved!r})"))
    return "\n".join(f"{name:<12}{text}" for name, text in lines)


# --------------------------------------------------------------------------------------------------------------------
# experiment, bench, report


def _experiment(arguments: argparse.Namespace, argv: list[str]) -> int:
    if arguments.list:
        return _list_experiments(arguments.name)
    if arguments.name is None:
        raise ValueError(f"name an experiment: {', '.join(EXPERIMENTS)}; --list says what they are")
    name = find_experiment(arguments.name).name
    if arguments.row is not None:
        return _rerun(arguments, name)
    k, shares = arguments.part
    output = Path(arguments.output or OUT / (f"{name}.json" if shares == 1 else f"{name}.{k}-of-{shares}.json"))
    if arguments.merge:
        record = experiments.merge(name, arguments.merge, output=output)
    else:
        before = output.stat().st_mtime_ns if output.exists() else None
        try:
            record = run_experiment(
                name, output=output, progress=not arguments.quiet, fresh=arguments.fresh, device=arguments.device,
                tf32=arguments.tf32, part=arguments.part, minutes=arguments.minutes,
            )  # fmt: skip
        except KeyboardInterrupt:
            again = shlex.join(["hashedmm", *(word for word in argv if word != "--fresh")])
            print(f"\nInterrupted; what is done is saved in {output} and beside it. To go on:", file=sys.stderr)
            print(f"    {again}", file=sys.stderr)
            return EXIT_INTERRUPTED
        if before is not None and output.stat().st_mtime_ns == before:
            print(f"{output} is complete already, from {record['date']}; --fresh trains again.", file=sys.stderr)
    print("\n" + _training_tables(record) + "\n")
    print(f"record  {output}")
    kinds = {(row["dataset"], row["test_error_mean"] is None, *row["layers"]) for row in record["rows"]}
    if len(kinds) == 1 and not any(row["test_error_mean"] is None for row in record["rows"]):
        figure = output.with_suffix(".png")
        try:
            from hashedmm import plots
        except ImportError:
            print("figure  none: it needs matplotlib; in a checkout, pip install -e '.[plot]'")
        else:
            drawn = plots.error_against_storage(record["rows"], f"{name}: test error against storage")
            safefile.write_bytes(figure, plots.png(drawn))
            print(f"figure  {figure}")
    if name == "demo":
        print("\n`make lab` opens the walkthrough: notebooks that explain, step by step, what you have just seen.")
    return 0


def _training_tables(record: dict[str, Any]) -> str:
    """A table for each data set and network; validation errors for runs that do not look at the test set."""
    tables = []
    kinds = list(dict.fromkeys((row["dataset"], *row["layers"]) for row in record["rows"]))
    for dataset, *layers in kinds:
        rows = [row for row in record["rows"] if (row["dataset"], *row["layers"]) == (dataset, *layers)]
        lines = [f"{dataset}, {'-'.join(map(str, layers))}"] if len(kinds) > 1 else []
        if tested := [row for row in rows if row["test_error_mean"] is not None]:
            lines.append(text_table(record | {"rows": tested}))
        lines += [
            f"{row['method']:30} {experiments.compression_text(row['compression']):>5}  dropout {row['dropout']:<5g} "
            f"lr {row['lr']:<7g} validation error {statistics.mean(row['validation_errors']):6.2f} %"
            for row in rows if row["test_error_mean"] is None
        ]  # fmt: skip
        tables.append("\n".join(lines))
    return "\n\n".join(tables) or "nothing is trained yet"


def _list_experiments(name: str | None) -> int:
    """All experiments, two lines each; or one with its runs, by the labels that --row takes."""
    for experiment in EXPERIMENTS.values() if name is None else [find_experiment(name)]:
        trainings = sum(len(run.seeds) for run in experiment.runs)
        minutes = sum(experiments.cost(run) * len(run.seeds) for run in experiment.runs) / 60
        print(f"{experiment.name}: {experiment.description}")
        print(f"    {len(experiment.runs)} runs, {trainings} trainings; about {minutes:.1f} minutes on an H100")
        for run in experiment.runs if name is not None else ():
            seeds = f"seed {run.seeds[0]}" if len(run.seeds) == 1 else f"{len(run.seeds)} seeds"
            settings = f"{run.epochs} epochs, batch {run.batch}, dropout {run.dropout:g}, lr {run.lr:g}, {seeds}"
            print(f"    {experiment.label(run):40} {settings}")
    return 0


def _rerun(arguments: argparse.Namespace, name: str) -> int:
    """One row again, beside what is recorded: 0 if it lands within its error bar, else 1."""
    record = records.read(arguments.output or name)
    with tempfile.TemporaryDirectory() as folder:
        result = experiments.rerun(
            name, arguments.row, record=record, device=arguments.device, tf32=arguments.tf32,
            progress=not arguments.quiet, folder=folder,
        )  # fmt: skip
    for what, errors in (("recorded", result.recorded), ("again", result.again)):
        spread = f" +- {statistics.stdev(errors):.3f}" if len(errors) > 1 else ""
        each = ", ".join(f"{error:.2f}" for error in errors)
        print(f"{what:9} {statistics.mean(errors):.3f}{spread} %   ({each})")
    verdict = "within" if result.agrees else "outside"
    print(
        f"difference {result.difference:+.3f}: {verdict} the error bar of {result.allowed:.3f} "
        "(2 sqrt(s1^2 / n1 + s2^2 / n2) + 0.05)"
    )
    return 0 if result.agrees else EXIT_FAILED


def _bench(arguments: argparse.Namespace, argv: list[str]) -> int:
    from hashedmm import bench, counters

    folder = Path(arguments.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output must be a folder for bench, got the file {folder}")
    others = arguments.cpu or arguments.counters or arguments.bounds or arguments.parallel
    if arguments.stream and (others or arguments.gpu):
        raise ValueError("--stream is a benchmark of its own, and another is asked for, too; leave one of them out")
    others = others or arguments.stream
    for name in ("rows", "columns", "budget"):
        if getattr(arguments, name) is not None and not arguments.stream:
            raise ValueError(f"--{name} is for bench --stream, and this is another benchmark; leave it out")
    on_gpu = arguments.gpu or (not others and gpu_available())
    if arguments.only and not on_gpu:
        raise ValueError("--only names records of bench --gpu, and this is another benchmark; leave it out")
    if arguments.parallel:
        from hashedmm import bench_parallel

        with _processes(True, bench_parallel.TIMEOUT) as ranks:
            written = bench_parallel.run(folder, ranks, quick=arguments.quick)  # type: ignore[arg-type]
    elif arguments.counters:
        written = counters.run(folder)
    elif arguments.bounds:
        written = counters.run_bounds(folder)
    elif arguments.stream:
        from hashedmm import bench_stream

        written = bench_stream.run(
            folder, rows=arguments.rows, n=arguments.columns, budget=arguments.budget, quick=arguments.quick
        )
    elif on_gpu:
        written = bench.run_gpu(folder, quick=arguments.quick, only=arguments.only)
    else:
        written = bench.run_cpu(folder, quick=arguments.quick)
    for path in written:
        print(f"record  {path}")
    return 0


def _compile(arguments: argparse.Namespace, argv: list[str]) -> int:
    from hashedmm import compile, nvrtc

    if arguments.output is not None:
        safefile.check_writable(arguments.output, "--output")
    rows = []
    for architecture in arguments.arch or compile.ARCHITECTURES:
        print(f"compiling for sm_{architecture}", file=sys.stderr)
        for row in compile.compile_all([architecture], arguments.kernel or tuple(BUILT)):
            rows.append(row)
            if arguments.json:
                print(json.dumps(row), flush=True)
    if not arguments.json:
        print(compile.table(rows))
    if arguments.output is not None:
        device = {"kind": "none", "name": f"NVRTC {nvrtc.compiler().version}, no GPU"}
        records.write(arguments.output, records.new_record("counters", rows, shlex.join(["hashedmm", *argv]), device))
        print(f"record  {arguments.output}", file=sys.stderr)
        return 0
    spills = compile.new_spills(rows, compile.recorded())
    for sentence in spills:
        print(f"hashedmm: {sentence}", file=sys.stderr)
    return EXIT_FAILED if spills else 0


def _report(arguments: argparse.Namespace, argv: list[str]) -> int:
    target = arguments.write or arguments.check
    text = Path(target).read_text(encoding="utf-8") if target else ""
    available = records.load_all()
    if not target:
        shown = {name: record for name, record in available.items() if has_table(record)}
        tables = [
            f"{name}\n{origin(record)}\n\n{text_table(record, IN_A_TERMINAL.get(name))}"
            for name, record in shown.items()
        ]
        print("\n\n\n".join(tables) or "There are no records in data/results.")
        return 0
    made = render(text, available)
    folder = Path(target).resolve().parent
    stale = stale_figures(text, available, folder)
    if made == text and not stale:
        print(f"{target}: its tables agree with the records.")
    elif arguments.check:
        mend = f"`hashedmm report --write {target}` mends it"
        what = "its tables differ from the records"
        if made == text:
            what = f"{stale[0]} is not drawn from the record as it is"
        print(f"{target}: {what}; {mend}.", file=sys.stderr)
        return EXIT_FAILED
    if made != text:
        safefile.write_bytes(target, made.encode("utf-8"))
        print(f"{target}: its tables are written anew from the records.")
    for name in stale:
        _draw(folder / name, available[FIGURES[name][0]], FIGURES[name][1])
        print(f"{name} is drawn anew from the record {FIGURES[name][0]}.")
    return 0


def _draw(path: Path, record: dict[str, Any], function: str) -> None:
    """Draw a figure of a record by a function of hashedmm.plots, and note in the file what it is drawn from."""
    try:
        from hashedmm import plots
    except ImportError:
        raise ValueError(f"drawing {path.name} needs matplotlib; in a checkout, pip install -e '.[plot]'") from None
    drawn = getattr(plots, function)(record["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    safefile.write_bytes(path, plots.png(drawn, {DIGEST: digest(record)}))


# --------------------------------------------------------------------------------------------------------------------
# doctor


def _doctor(arguments: argparse.Namespace, argv: list[str]) -> int:
    if arguments.explain is not None:
        from hashedmm.explain import explain

        d_out, d_in, n = arguments.explain
        print(explain(arguments.operation, _spec(arguments, (d_out, d_in)), n, arguments.dtype))
        return 0
    missing: list[tuple[str, str]] = []  # what for, how to install
    cores = records.device_info()["cores"]
    print(f"hashedmm {__version__}: what is on this machine\n")
    _say("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}, {cores} cores")
    _say("NumPy", f"{metadata.version('numpy')}, {_blas()}")
    _say("numba", metadata.version("numba"))
    for package, name, purpose, extra in (
        ("matplotlib", "matplotlib", "figures", "plot"),
        ("jupyterlab", "JupyterLab", "the notebooks", "lab"),
        ("pytest", "pytest", "the tests", "lab,test"),
        ("mpi4py", "mpi4py", "several processes", "parallel"),
    ):
        version = _version(package)
        _say(name, version or "not installed")
        if version is None:
            missing.append((purpose, f"pip install -e '.[{extra}]'"))
    driver, cupy = _nvidia(), _cupy()
    _say("NVIDIA GPU", driver or "none found (nvidia-smi does not answer)")
    _say("CuPy", cupy)
    try:
        data = load_mnist()
        samples = f"{len(data.y_train):,} + {len(data.y_test):,} samples"
        _say("MNIST", f"{samples}, checksums verified, in {_mnist_folder(None)}")
    except (OSError, ValueError) as e:
        _say("MNIST", str(e).removeprefix("MNIST: "))
    working, what = _works(
        "the CPU path", "auto", HashSpec.strips((48, 40), 1 / 4, height=16), HashSpec.elementwise((48, 40), 1 / 4)
    )
    _say("CPU path", what)
    emulating = emulator.available()
    if emulating:
        emulating, what = _works("the emulator", "shared", HashSpec.elementwise((48, 40), 1 / 4))
        _say("emulator", what)
    else:
        _say("emulator", emulator.why_not())
    if driver and not gpu_available():
        missing.append(("CUDA kernels on the GPU", "pip install -e '.[cuda13]' (or cuda12, as the driver)"))
    if _version("nvidia-cuda-nvrtc") is None:
        missing.append(("hashedmm compile", "pip install -e '.[nvrtc]'"))

    print("\nWhat will run here\n")
    _say("on the CPU", "everything but CUDA kernels" if working else "nothing: the CPU path is broken, see above")
    _say("CUDA kernels", "on the GPU, by CuPy" if gpu_available() else "on the CPU, in the emulator, to be watched and "
         "checked" if emulating else "nowhere: there is no GPU that CuPy can use, and no emulator")  # fmt: skip
    if missing:
        print("\nTo get more, in a checkout (`make lab` and `make test` do this for you)\n")
        width = max(len(purpose) for purpose, _ in missing)
        for purpose, command in missing:
            print(f"  {purpose:<{width}}  {command}")
    return 0 if working else EXIT_FAILED


def _tune(arguments: argparse.Namespace, argv: list[str]) -> int:
    if arguments.ship:
        tables = tuning.ship(arguments.ship)
        for table in tables:
            print(f"{tuning.SHIPPED}: {len(table.problems)} problems measured on {table.gpu}")
        for name in arguments.ship:
            print(f"{name}: {tuning.quality(records.read(name), tables)}")
        return 0
    if len(arguments.sizes) < 3:
        raise ValueError(
            f"tune needs D_OUT D_IN N, such as 8192 8192 1 64 1024, got {len(arguments.sizes)} of these sizes"
        )
    from hashedmm.explain import tune

    d_out, d_in, *columns = arguments.sizes
    dtypes = [arguments.dtype] if arguments.dtype else list(C_TYPES)
    print(f"kept    {tune(_spec(arguments, (d_out, d_in)), columns, dtypes, output=arguments.output)}")
    return 0


def _say(name: str, text: str) -> None:
    """Print "name  text" in 80 columns; the text hangs."""
    indent = " " * 16
    wrapped = textwrap.wrap(text, 80 - len(indent), break_long_words=False, break_on_hyphens=False)
    print(f"  {name:<14}" + f"\n{indent}".join(wrapped))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _blas() -> str:
    """Which library multiplies dense matrices, as NumPy was built."""
    try:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"with {blas['name']} {blas['version']}"
    except (KeyError, TypeError):
        return "with an unknown BLAS"


def _nvidia() -> str | None:
    """Names of the GPUs and the driver's version, as nvidia-smi says, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [" with driver ".join(part.strip() for part in line.split(",")) for line in found if line.strip()]
    return "; ".join(lines) or None


def _cupy() -> str:
    """What CuPy is here, and if it is of no use, why."""
    version = next((v for name in ("cupy-cuda12x", "cupy-cuda13x", "cupy") if (v := _version(name))), None)
    if version is None:
        return "not installed; only a GPU needs it"
    return f"{version}, {'sees a GPU' if gpu_available() else 'sees no GPU that it can use'}"


def _works(what: str, kernel: str, *specs: HashSpec) -> tuple[bool, str]:
    """Whether products by ``kernel`` agree with the reference here, and a sentence about it."""
    rng = np.random.default_rng(0)
    try:
        for spec in specs:
            w, x = rng.standard_normal(spec.n_buckets, np.float32), rng.standard_normal((spec.cols, 3), np.float32)
            y, expected = hashed_matmul(w, x, spec, kernel=kernel), hashed_matmul(w, x, spec, kernel="reference")
            if not np.allclose(y, expected, rtol=1e-4, atol=1e-4):
                return False, f"a product of {spec.structure} differs from the reference: {what} is broken, reinstall"
    except Exception as e:  # whatever is broken here is what the doctor is asked about
        return False, f"computing a product by {what} fails ({type(e).__name__}: {e}): reinstall NumPy and numba"
    return True, "its products agree with the reference"
