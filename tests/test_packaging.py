"""A wheel holds real files where the tree has links."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    for file in (ROOT / "pyro_delta").rglob("*.py"):
        assert file.relative_to(ROOT).as_posix() in names
    for folder in ("presets", "sweeps"):
        files = list((ROOT / "pyro_delta" / folder).glob("*.toml"))
        assert files
        for file in files:
            assert f"pyro_delta/{folder}/{file.name}" in names
    assert "pyro_delta/py.typed" in names
    assert not any(name.startswith(("models/", "guides/", "tests/")) for name in names)
