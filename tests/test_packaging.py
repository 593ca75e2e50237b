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


EXTRAS = ("numpyro", "jax", "flax", "optax", "pyarrow", "submitit", "optuna", "hypothesis", "pytest")
"""What extras alone install."""
WITHOUT_EXTRAS = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # importing them fails
sys.path.insert(0, sys.argv[1])
import pyro_delta
from pyro_delta.cli import main
assert pyro_delta.__file__.startswith(sys.argv[1])
main("train --dataset digits --steps 2 --set training.validations=0 --device cpu --out".split() + [sys.argv[2]])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is uploaded: the source, and the wheel that is made of it."""
    pytest.importorskip("build", reason="needs build, of pyro-delta[dev]")
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    for folder in ("pyro_delta", "models", "guides"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_what_is_uploaded_is_well_described(built: Path) -> None:
    pytest.importorskip("twine", reason="needs twine, of pyro-delta[dev]")
    files = sorted(built.iterdir())
    assert [file.name.removeprefix(f"pyro_delta-{pyro_delta.__version__}") for file in files] == [
        "-py3-none-any.whl",
        ".tar.gz",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True, cwd=built
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_works_without_extras(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    command = [sys.executable, "-c", WITHOUT_EXTRAS, tmp_path / "installed", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "manifest.json").exists()


def test_the_wheel_is_whole(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
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
