"""Sweeps of runs: the file that says them, the processes that make them, the search over their settings."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pyro_delta.errors import UserError


def require(package: str) -> Any:
    """A package of the extra `sweep`.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"this needs {package}; install the extra: pip install 'pyro-delta[sweep]'.") from None
