"""The house: which room may import which, and what stays inside the folders of one kind of data."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyro_delta
from pyro_delta.arrows import FLOORS, arrows, picture, upward

PACKAGE = Path(pyro_delta.__file__).parent
OF_IMAGES = re.compile(r"\bImageSpec\b|\.(?:height|width)\b|\bPIL\b|torchvision|_png\b")
COMMANDS = {"cli/inpaint.py", "cli/sample.py"}
"""What a person asks of images, by the word."""


def test_no_arrow_runs_up() -> None:
    assert upward() == []


def test_every_room_stands_on_a_floor() -> None:
    found = arrows()
    assert {*found, *(other for others in found.values() for other in others)} <= {r for rooms in FLOORS for r in rooms}
    assert {"cli", "diagnostics", "models", "guides", "data", "twin"} <= found.keys()


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("rate", "from pyro_delta.models import AR1Prior", ["rate → models (rate)"]),
        ("rate", "def f():\n    import pyro_delta.cli", ["rate → cli (rate)"]),
        ("rate", "from pyro_delta import diagnostics", ["rate → diagnostics (rate)"]),
        ("rate", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pyro_delta.models import AR1Prior", []),
        ("rate", "from pyro_delta.distributions import GaussianAR1", []),
    ],
)
def test_an_arrow_that_runs_up_is_seen(tmp_path: Path, module: str, text: str, wrong: list[str]) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    assert upward(arrows(tmp_path)) == wrong


def test_two_rooms_of_a_floor_do_not_import_each_other(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "guides").mkdir()
    (tmp_path / "models" / "a.py").write_text("from pyro_delta.guides import b")
    assert upward(arrows(tmp_path)) == []
    (tmp_path / "guides" / "b.py").write_text("from pyro_delta.models import a")
    assert upward(arrows(tmp_path)) == ["guides → models (guides.b)", "models → guides (models.a)"]


def test_the_command_prints_the_picture() -> None:
    done = subprocess.run([sys.executable, "-m", "pyro_delta.arrows"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == picture()


def test_the_picture_of_the_docs_is_that_of_the_imports() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert picture() in page, "docs/architecture.md: put in what `python -m pyro_delta.arrows` prints"


def test_nothing_outside_a_folder_of_images_knows_of_images() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if (
            "/images/" not in name
            and name not in COMMANDS
            and (seen := OF_IMAGES.findall(path.read_text(encoding="utf-8")))
        ):
            found[name] = seen
    assert found == {}
