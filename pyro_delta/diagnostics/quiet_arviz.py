"""ArviZ without the announcement that 0.23 makes on import, once a day, to whoever runs a command."""

from __future__ import annotations

import warnings
from typing import Any


def load_arviz() -> Any:
    """The module `arviz`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz
