"""Datasets as uint8 tensors in memory, with the specification that models are built from.

`ImageSpec` and `DATASETS` cost nothing to import; torch is loaded with the first of the other names.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_delta.data.spec import DATASETS, ImageSpec

if TYPE_CHECKING:
    from pyro_delta.data.batches import Batches, epoch_order
    from pyro_delta.data.datasets import load
    from pyro_delta.data.splits import ImageData, Split

__all__ = ["DATASETS", "Batches", "ImageData", "ImageSpec", "Split", "epoch_order", "load"]

_NEEDS_TORCH = {
    "Batches": "batches",
    "epoch_order": "batches",
    "load": "datasets",
    "ImageData": "splits",
    "Split": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
