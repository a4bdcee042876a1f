"""The README agrees with the rest: its tables with the records, its Python runs, its commands and files exist."""

import re
import shlex
from pathlib import Path

import pytest

from hashedmm import cli, emulator, records, report
from hashedmm.hashing import HashSpec
from hashedmm.nn import STRUCTURES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_tables_agree_with_the_records():
    assert "<!-- table: mnist_cpu -->" in README
    assert report.render(README, records.load_all()) == README, "make readme"


def test_figures_are_drawn_from_the_records():
    assert report.stale_figures(README, records.load_all(), ROOT) == [], "make readme"


def test_the_quick_start_is_three_commands():
    first = next(code for _, code in BLOCKS)
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test", "make lab"]


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    code = next(code for language, code in BLOCKS if language == "python" and "load_mnist" in code)
    assert len([line for line in code.splitlines() if line]) <= 12
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HASHEDMM_DATA", raising=False)
    variables = {}
    exec(compile(code, "README.md", "exec"), variables)
    shown = re.search(r"test error ([\d.]+) %", capsys.readouterr().out)
    assert shown and float(shown[1]) < 10
    assert variables["y"].shape == (1000, 64) and (tmp_path / "net.safetensors").is_file()


@pytest.mark.skipif(not emulator.available(), reason=emulator.why_not())
def test_the_kernel_is_checked(capsys):
    code = next(code for language, code in BLOCKS if language == "python" and "RawKernel" in code)
    exec(compile(code, "README.md", "exec"), {})
    found = " ".join(capsys.readouterr().out.split())
    (shown,) = (" ".join(code.split()) for _, code in BLOCKS if code.startswith("race: "))
    assert shown in found and "sectors" in found


COMMANDS = [line for _, code in BLOCKS for line in code.splitlines() if line.startswith("hashedmm ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    cli._parser().parse_args(shlex.split(command, comments=True)[1:])


def test_commands_in_sentences_are_understood():
    commands = re.findall(r"`hashedmm ([^`]+)`", README)
    assert commands and COMMANDS
    for command in commands:
        cli._parser().parse_args(shlex.split(command))


def test_files_that_are_named_exist():
    names = [name for name in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in name]
    (tree,) = (code for _, code in BLOCKS if code.startswith("hashedmm/\n"))
    names += ["hashedmm/" + name for name in re.findall(r"^  (\w+\.py)", tree, re.MULTILINE)]
    names += re.findall(r"^(\w+/)", tree, re.MULTILINE)
    names += ["notebooks/" + name for name in re.findall(r"\w+\.ipynb", README)]
    assert len(names) > 15
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_structure_is_named():
    for structure in set(STRUCTURES) - {"dense"}:
        assert f"`{structure}`" in README and hasattr(HashSpec, structure)


def test_lines_are_short_enough_to_read():
    prose = re.sub(r"<!-- table: .*?<!-- end -->", "", README, flags=re.DOTALL)
    assert max(map(len, prose.splitlines())) <= 145
