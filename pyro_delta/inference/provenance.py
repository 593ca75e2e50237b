"""Which code measured a number: the version, and the commit if it runs from a checkout."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from pyro_delta import __version__

ROOT = Path(__file__).resolve().parents[2]


def provenance() -> dict[str, Any]:
    """`version` and `commit` of this package, for a record of what it has found."""
    return {"version": __version__, "commit": commit()}


@cache
def commit() -> str | None:
    """The commit of the checkout that this package lies in, with `-dirty` if files differ from it; None elsewhere.

    A package that was installed into an environment within somebody's repository is not of that repository.
    """
    if not ((ROOT / ".git").exists() and (ROOT / "pyproject.toml").exists()):
        return None
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):  # no git here, or a folder that it does not trust
        return None
