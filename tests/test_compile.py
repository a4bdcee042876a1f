"""Compiling the kernels with NVRTC, with no GPU: a few of them here, all by `hashedmm compile`."""

import json
import math

import pytest

from hashedmm import HashSpec, build, cli, compile, nvrtc, records
from hashedmm.build import CompileError
from hashedmm.kernels import BUILT, CUDA, STEP, structure

needs_nvrtc = pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed: pip install 'hashedmm[nvrtc]'")
ROW = {"kernel": "naive", "variant": "float32, strips", "arch": "sm_90", "registers": 32, "shared_bytes": 0,
       "stack_bytes": 8, "spill_bytes": 0}  # fmt: skip


@pytest.mark.parametrize("kernel", CUDA)
@pytest.mark.parametrize("architecture", [75, 90])
@needs_nvrtc
def test_kernels_compile_and_do_not_spill_more_than_recorded(kernel, architecture):
    """A few variants of each kernel; `hashedmm compile` does this for all of them."""
    if architecture < int(CUDA[kernel].least_arch.removeprefix("sm_")):
        pytest.skip(f"{kernel} is for newer GPUs")
    few = ("float16, strips", "float32, panels", "float32, strips, n <= 1")
    chosen = [variant for variant in compile.variants(CUDA[kernel]) if variant.name in few]
    rows = []
    for variant in chosen:
        code, log = nvrtc.compiler().cubin(CUDA[kernel].source, kernel, architecture, variant.options)
        assert code[:4] == b"\x7fELF"  # machine code for this GPU
        rows.append({"kernel": kernel, "variant": variant.name, "arch": f"sm_{architecture}", **compile.usage(log)})
        assert 8 < rows[-1]["registers"] <= min(255, 65536 // math.prod(CUDA[kernel].block(CUDA[kernel].values(1000))))
        if variant.name in few[:2]:
            assert rows[-1]["shared_bytes"] == CUDA[kernel].static(CUDA[kernel].parameters)
    assert compile.new_spills(rows, compile.recorded()) == []


@pytest.mark.parametrize("architecture", [75, 90])
@needs_nvrtc
def test_kernels_of_a_step_compile(architecture):
    for name, kernel in STEP.items():
        (variant,) = compile.variants(kernel)
        _, log = nvrtc.compiler().cubin(kernel.source, name, architecture, variant.options)
        used = compile.usage(log)
        assert used["spill_bytes"] == 0 and used["shared_bytes"] == kernel.static(kernel.parameters)


@needs_nvrtc
def test_compile_errors_show_the_line():
    broken = CUDA["naive"].source.replace("float sum", "flaot sum")
    with pytest.raises(CompileError, match=r'naive\.cu:\d+: error: identifier "flaot" is undefined\n.*flaot sum = 0'):
        nvrtc.compiler().cubin(broken, "naive", 90)
    with pytest.raises(ValueError, match="compiles for 75, .*, not for 12"):
        nvrtc.compiler().cubin(broken, "naive", 12)


def test_variants_cover_dtypes_structures_and_narrow_tiles():
    for kernel in CUDA.values():
        names = [variant.name for variant in compile.variants(kernel)]
        assert len(set(names)) == len(names) and len({v.options for v in compile.variants(kernel)}) == len(names)
        if "float32" in kernel.dtypes:
            assert {f"float32, {label}" for label in compile.SPECS if kernel.rule(compile.SPECS[label])} <= set(names)
        assert "float16, strips" in names
    assert "float32, strips, n <= 1" in [variant.name for variant in compile.variants(CUDA["panel"])]


@needs_nvrtc
@pytest.mark.parametrize("name", [n for n, k in BUILT.items() if build._includes(k.source, "warpgroup.cuh")])
def test_hopper_builds(name):
    """What is built for sm_90a: wgmma, where ptxas sees nothing that makes the tensor cores wait for each step."""
    kernel, spec = BUILT[name], HashSpec.strips((8192, 8192), 1 / 64, height=256, panel=(256, 416), stride=24)
    macros = {**kernel.parameters, **structure(spec), "WEIGHT": "__half"}
    flags = [f"-D{k}={v}" for k, v in macros.items() if k != "THREADS"]
    log = nvrtc.compiler().cubin(kernel.source, name, "90a", flags)[1]
    assert "serialized" not in log and compile.usage(log)["spill_bytes"] <= 48


def test_usage_adds_up():
    log = (
        "ptxas info    : Function properties for naive\n"
        "ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 80 registers, used 1 barriers, 8704 bytes smem, 8 bytes cumulative stack size\n"
    )
    assert compile.usage(log) == {"registers": 80, "shared_bytes": 8704, "stack_bytes": 8, "spill_bytes": 16}


def test_new_spills():
    before = {"rows": [ROW, ROW | {"kernel": "panel", "spill_bytes": 8}]}
    assert compile.new_spills(before["rows"], before) == []
    (sentence,) = compile.new_spills([ROW | {"spill_bytes": 4}], before)
    assert sentence == "naive (float32, strips) for sm_90 spills 4 bytes, 0 before"
    assert compile.new_spills([ROW | {"kernel": "panel", "spill_bytes": 4}], before) == []
    assert compile.new_spills([ROW | {"spill_bytes": 4}], None)


def test_the_record_is_complete():
    """Every variant of every kernel for every architecture that is looked at by default."""
    record = compile.recorded()
    assert record["kind"] == "counters"
    wanted = {
        (name, variant.name, f"sm_{architecture}")
        for architecture in compile.ARCHITECTURES
        for name, kernel in BUILT.items()
        if architecture >= int(kernel.least_arch.removeprefix("sm_"))
        for variant in compile.variants(kernel)
    }
    assert {(row["kernel"], row["variant"], row["arch"]) for row in record["rows"]} == wanted


def test_without_the_wheels(monkeypatch, capsys):
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    nvrtc.compiler.cache_clear()
    assert not nvrtc.available()
    assert cli.main(["compile", "--arch", "90"]) == 2
    assert "pip install 'hashedmm[nvrtc]'" in capsys.readouterr().err


# ---- the command


@pytest.fixture
def one_row(monkeypatch):
    """The command with a stand-in for the compiler."""
    asked = {"architectures": [], "spills": 0}

    def compile_all(architectures, kernels):
        asked["architectures"] += architectures
        asked["kernels"] = list(kernels)
        yield ROW | {"spill_bytes": asked["spills"]}

    monkeypatch.setattr(compile, "compile_all", compile_all)
    monkeypatch.setattr(compile, "recorded", lambda: {"rows": [ROW]})
    monkeypatch.setattr(nvrtc, "compiler", lambda: type("Compiler", (), {"version": "13.0"})())
    return asked


def test_command(one_row, capsys):
    assert cli.main(["compile", "--arch", "75,sm_90", "--kernel", "naive"]) == 0
    assert one_row["architectures"] == [75, 90] and one_row["kernels"] == ["naive"]
    heading, _, row, _ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["kernel", "variant", "arch", "registers", "shared", "stack", "spill"]
    assert row.split() == ["naive", "float32,", "strips", "sm_90", "32", "0", "8", "0"]
    one_row["architectures"].clear()
    assert cli.main(["compile", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == 7 * [ROW]
    assert one_row["architectures"] == list(compile.ARCHITECTURES) and one_row["kernels"] == list(BUILT)


def test_command_fails_on_a_new_spill(one_row, capsys):
    one_row["spills"] = 24
    assert cli.main(["compile", "--arch", "90"]) == 1
    assert "spills 24 bytes, 0 before" in capsys.readouterr().err


def test_command_writes_a_record(one_row, tmp_path, capsys):
    one_row["spills"] = 24  # it is recorded, and is not new from now on
    path = tmp_path / "compile.json"
    assert cli.main(["compile", "--arch", "90", "--output", str(path)]) == 0
    record = records.read(path)
    assert record["rows"] == [ROW | {"spill_bytes": 24}] and record["device"]["name"] == "NVRTC 13.0, no GPU"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--arch", "ninety"], "--arch: expected numbers such as 75,90, got 'ninety'"),
        (["--kernel", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_bad_command_lines(words, message, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(["compile", *words])
    assert e.value.code == 2 and message in capsys.readouterr().err
