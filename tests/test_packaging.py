"""A wheel holds real files where the tree has links."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

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
