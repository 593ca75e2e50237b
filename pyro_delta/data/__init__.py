"""Data as programs: a spec and three splits in memory, of a shipped name, an installed one, or your own.

`Spec` and `ArraySpec` cost nothing to import; torch is loaded with the first of the others. `pyro_delta.data.images`
and `pyro_delta.data.sequences` have the specs of their kinds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_delta.data.spec import ArraySpec, Spec

if TYPE_CHECKING:
    from pyro_delta.data.batches import Batches, epoch_order
    from pyro_delta.data.named import load
    from pyro_delta.data.splits import Split, Splits
    from pyro_delta.data.tensors import from_dataset, from_tensors

__all__ = [
    "ArraySpec",
    "Batches",
    "Spec",
    "Split",
    "Splits",
    "epoch_order",
    "from_dataset",
    "from_tensors",
    "load",
]

_NEEDS_TORCH = {
    "Batches": "batches",
    "epoch_order": "batches",
    "from_dataset": "tensors",
    "from_tensors": "tensors",
    "load": "named",
    "Split": "splits",
    "Splits": "splits",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEEDS_TORCH[name]}"), name)
