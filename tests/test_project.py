"""The project agrees with itself: versions, dependencies, the Makefile, the order of imports, what a wheel holds.

Facts that have to be written twice (for pip and for conda, for people and for machines) are compared here.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import hashedmm

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hashedmm"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

# The order of imports. A module, or a subpackage as a whole, may import those of the rows above its own and no others.
ORDER = (
    ("safefile",),
    ("hashing", "datasets", "records"),
    ("reference",),
    ("kernels",),
    ("emulator",),
    ("nvrtc", "variants"),
    ("build",),
    ("compile", "launch"),
    ("cpu", "sketch"),
    ("tuning",),
    ("matmul",),
    ("graph",),
    ("nn",),
    ("batched", "checkpoint"),
    ("baselines",),
    ("stream", "parallel"),
    ("experiments",),
    ("bench",),
    ("counters", "explain", "bench_parallel", "bench_stream"),
    ("scale",),
    ("plots", "report"),
    ("exercises",),
    ("widgets", "check"),
    ("notebooks",),
    ("cli",),
    ("__main__",),
)
ROW = {module: row for row, modules in enumerate(ORDER) for module in modules}


def module_files():
    return sorted(PACKAGE.rglob("*.py"))


def module_of(file):
    """The name in ORDER that a file of the package belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(file):
    """Names in ORDER that a file imports, inside functions too; "" stands for the package's own namespace."""
    package = ("hashedmm", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            targets = [(alias.name.split("."), None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *(node.module.split(".") if node.module else ())]
            targets = [(base, alias.name) for alias in node.names]
        else:
            continue
        for parts, name in targets:
            if parts[0] != "hashedmm":
                continue
            if len(parts) > 1:
                yield parts[1], node.lineno
            elif name in ROW:
                yield name, node.lineno
            elif name != "__version__":
                yield "", node.lineno


def test_every_module_has_a_place_in_the_order():
    unknown = {module_of(file) for file in module_files()} - ROW.keys() - {"__init__"}
    assert not unknown, f"give these modules a row in ORDER, at the top of {Path(__file__).name}"


@pytest.mark.parametrize("file", module_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file):
    module = module_of(file)
    wrong = []
    for target, line in imported_modules(file):
        if module == "__init__":
            allowed = target not in ("", "cli", "__main__")
        else:
            allowed = target == module or (target in ROW and ROW[target] < ROW[module])
        if not allowed:
            wrong.append(f"{file.name}:{line} imports {target or 'from the top of the package'}")
    assert not wrong


def test_imported_modules_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "kernels").mkdir()
    source = """
import numpy, hashedmm.nn
from hashedmm import cpu, __version__, hashed_matmul
from hashedmm.hashing import HashSpec
from . import matmul
from .reference import materialise
def later():
    from .checkpoint import save_model
"""
    file = tmp_path / "bench.py"
    file.write_text(source)
    assert [target for target, _ in imported_modules(file)] == [
        "nn", "cpu", "", "hashing", "matmul", "reference", "checkpoint",
    ]  # fmt: skip
    nested = tmp_path / "kernels" / "registry.py"
    nested.write_text("from ..hashing import HashSpec\nfrom . import hash\nfrom .hash import source\n")
    assert [target for target, _ in imported_modules(nested)] == ["hashing", "kernels", "kernels"]


@pytest.mark.parametrize(
    "file", [*module_files(), *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda file: str(file.relative_to(ROOT))
)
def test_every_module_has_a_docstring(file):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert docstring and docstring.splitlines()[0].rstrip().endswith((".", ":", ";", ",")), "what is this file for?"


def test_versions_agree():
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "hashedmm/__init__.py"  # the one place that states it
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == hashedmm.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == hashedmm.__version__
    Version(hashedmm.__version__)


def test_licences_agree():
    assert PROJECT["project"]["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["license"] == "MIT"
    assert "Attribution-ShareAlike 3.0" in (ROOT / "data" / "mnist" / "README.md").read_text(encoding="utf-8")


def test_python_versions_agree():
    prefix = "Programming Language :: Python :: 3."
    supported = [c.removeprefix(prefix) for c in PROJECT["project"]["classifiers"] if c.startswith(prefix)]
    assert PROJECT["project"]["requires-python"] == f">=3.{supported[0]}"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in supported]
    assert f"(3, {supported[0]})" in MAKEFILE


# Dependencies: pyproject.toml against environment.yml.


def requirements(*extras):
    """What the package and these extras need: {name: Requirement}. An extra may name others of the package."""
    found = {}
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if requirement.name == "hashedmm":
            found |= requirements(*requirement.extras)
        else:
            found[requirement.name] = requirement
    return found


def lower_bound(specifiers):
    """The version in ">=version"; anything else in a bound is an error."""
    (specifier,) = specifiers
    assert specifier.operator == ">=", f"{specifier}: only lower bounds are used"
    return Version(specifier.version)


def conda_environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


def conda_packages(environment):
    """{name: Requirement} of the conda section, by the names that pip uses."""
    packages = (Requirement(line) for line in environment["dependencies"] if isinstance(line, str))
    return {package.name.removeprefix("python-").removesuffix("-python"): package for package in packages}


def conda_extras(environment):
    """The extras that the pip section installs."""
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    (line,) = pip
    return re.fullmatch(r"-e \.\[(.+)\]", line)[1].split(",")


@pytest.mark.parametrize(
    "extra", ["plot", "lab", "test", "cuda12", "cuda13", "nvrtc", "emulator", "parallel", "mpich", "dev"]
)
def test_extras_have_lower_bounds(extra):
    for requirement in requirements(extra).values():
        lower_bound(requirement.specifier)


def test_tests_build_with_what_pip_builds_with():
    (builder,) = PROJECT["build-system"]["requires"]
    assert builder in PROJECT["project"]["optional-dependencies"]["test"]


def test_conda_environment_agrees_with_pyproject():
    environment = conda_environment()
    packages, extras = conda_packages(environment), conda_extras(environment)
    assert environment["name"] == PROJECT["project"]["name"] and environment["channels"] == ["conda-forge"]
    assert {"lab", "test"} <= set(extras)
    needed = requirements(*extras)
    assert needed.keys() - packages.keys() == set(), "missing from environment.yml"
    assert packages.keys() - needed.keys() == {"python", "pip", "cupy"}, "in environment.yml and not in pyproject.toml"
    for name, requirement in needed.items():
        assert lower_bound(packages[name].specifier) >= lower_bound(requirement.specifier), name
    assert packages["python"].specifier == Requirement("python" + PROJECT["project"]["requires-python"]).specifier
    for cuda in ("cuda12", "cuda13"):
        (cupy,) = (r for name, r in requirements(cuda).items() if name.startswith("cupy"))
        assert lower_bound(packages["cupy"].specifier) >= lower_bound(cupy.specifier)


def test_conda_environment_without_a_gpu():
    """The way to a CPU environment, which environment.yml describes, takes away CuPy and nothing else."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "grep -vi cupy environment.yml" in text
    cpu = yaml.safe_load("\n".join(line for line in text.splitlines() if "cupy" not in line.lower()))
    everything = conda_environment()
    everything["dependencies"] = [d for d in everything["dependencies"] if not str(d).startswith("cupy")]
    assert cpu == everything


# The Makefile and what is written about it.


def make_targets():
    return set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split())


def test_make_help_lists_every_target():
    if not shutil.which("make"):
        pytest.skip("no make here")
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert set(re.findall(r"^  make ([a-z]+)", shown.stdout, re.MULTILINE)) == make_targets()


NAME_TARGETS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    ".ci/run",
    ".github/workflows/ci.yml",
    ".pre-commit-config.yaml",
)


@pytest.mark.parametrize("name", NAME_TARGETS)
def test_make_targets_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL) if name.endswith(".md") else [text]
    assert {target for part in code for target in re.findall(r"(?<![\w./-])make ([a-z]+)", part)} <= make_targets()


def test_makefile_installs_extras_that_exist():
    installed = re.findall(r"extras := (\S+)", MAKEFILE)
    assert installed
    assert {e for extras in installed for e in extras.split(",")} <= PROJECT["project"]["optional-dependencies"].keys()


# What the repository holds, and what a wheel does.


def listed_files():
    """Files that git tracks or would track."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return [file for name in listing.decode().split("\0") if name and (file := ROOT / name).is_file()]


def mentions(text, folder):
    """Whether `text` holds the absolute path `folder`; `folder` as a part of a longer name does not count."""
    return re.search(rf"(?<![\w.~/-]){re.escape(str(folder))}(?![\w.-])", text) is not None


def test_mentions():
    assert mentions("at '/home/me/kit/x.py'", "/home/me/kit") and mentions("/home/me", "/home/me")
    assert not mentions("docs/home/me", "/home/me") and not mentions("/home/me2 /home/me-too", "/home/me")


def test_no_file_names_this_machine():
    folders = [folder for folder in (ROOT, Path.home()) if folder != Path("/")]
    found = []
    for file in listed_files():
        content = file.read_bytes()
        if b"\0" in content:
            continue
        text = content.decode("utf-8")
        found += [f"{file.relative_to(ROOT)}: {folder}" for folder in folders if mentions(text, folder)]
    assert not found


def test_archives_hold_the_package_alone(tmp_path):
    """Built from a copy with one file of every kind that the package may have."""
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, copy / "hashedmm", ignore=ignore)
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "data").mkdir()
    (copy / "data" / "more.gz").write_bytes(b"")
    kinds = [f"hashedmm/of_each_kind/file.{kind}" for kind in ("cu", "cuh", "h", "cpp", "json")]
    (copy / "hashedmm" / "of_each_kind").mkdir()
    for kind in kinds:
        (copy / kind).write_text("")

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=copy, check=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name == f"hashedmm-{hashedmm.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"hashedmm-{hashedmm.__version__}.dist-info/METADATA").decode()
    assert {name.split("/")[0] for name in names} == {"hashedmm", f"hashedmm-{hashedmm.__version__}.dist-info"}
    assert set(kinds) <= names
    assert {str(file.relative_to(ROOT)) for file in module_files()} <= names
    assert f"Version: {hashedmm.__version__}\n" in metadata
