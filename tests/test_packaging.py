"""A wheel holds real files where the tree has links; versions are those that the project says."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pyro_delta

ROOT = Path(__file__).parents[1]


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    for folder in ("pyro_delta", "models", "guides"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("models", "guides"):
        files = [file.relative_to(ROOT) for file in (ROOT / folder).rglob("*.py")]
        assert len({file.parent for file in files}) > 1
        for file in files:
            assert f"pyro_delta/{file.as_posix()}" in names
    data = [file for file in (ROOT / "pyro_delta").rglob("*.*") if "__pycache__" not in file.parts]
    assert {".toml", ".json", ".jinja", ".typed"} <= {file.suffix for file in data}
    for file in data:
        assert file.is_dir() or file.relative_to(ROOT).as_posix() in names
    assert not any(name.startswith(("models/", "guides/", "tests/")) for name in names)


def test_one_version_stands_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()
    assert pyro_delta.__version__ == version


CONSTRAINTS = ("constraints-oldest.txt", "constraints.txt", "constraints-newest.txt")
ONE_VERSION = {"mypy", "ruff"}
"""What judges the code as it is written, not as it runs."""


def admitted() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    return {found.name: found for found in map(Requirement, listed)}


def pinned(file: str, python: str) -> dict[str, str]:
    """Package → version, for a version of Python."""
    lines = [Requirement(line) for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    here = [line for line in lines if line.marker is None or line.marker.evaluate({"python_version": python})]
    assert len({line.name for line in here}) == len(here)
    return {line.name: str(line.specifier).removeprefix("==") for line in here}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("file", CONSTRAINTS)
def test_constraints_are_within_what_is_admitted(file: str, python: str) -> None:
    pins, needed = pinned(file, python), admitted()
    assert needed.keys() - ONE_VERSION <= pins.keys()
    for name, requirement in needed.items():
        if name in pins:
            assert requirement.specifier.contains(pins[name]), name
            assert len(requirement.specifier) == 1, name  # no upper bounds


def test_the_oldest_constraints_are_the_oldest_that_are_admitted() -> None:
    pins = pinned("constraints-oldest.txt", "3.11")
    for name, requirement in admitted().items():
        if name not in ONE_VERSION:
            (bound,) = requirement.specifier
            assert bound.operator == ">="
            assert f"{pins[name]}.".startswith(f"{bound.version}."), name
