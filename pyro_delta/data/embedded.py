"""Data that come with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def scikit_learn_data() -> Path:
    """The folder of scikit-learn's data sets, found without importing it, which takes as long as importing torch.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    return Path(found.origin).parent / "datasets"
