"""Weights from torch to Flax and back, by name and shape, and completely.

A variable of a module is named by its path, as in torch's state dict. Where the layer is one of Flax's own (`nnx.Conv`,
`nnx.Linear`), its `kernel` is torch's `weight` in another order of axes; every other variable, parameter or `Buffer`,
has the same name and shape in both. Numbers and precision stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyro_delta.errors import UserError


class _Slot(NamedTuple):
    """A variable, its name in torch, and the order of axes that makes each form from the other; None if they agree."""

    name: str
    variable: nnx.Variable
    to_torch: tuple[int, ...] | None = None
    from_torch: tuple[int, ...] | None = None


def load_weights(module: nnx.Module, weights: Mapping[str, Any]) -> None:
    """Set every variable of a module from a torch state dict.

    Args:
        module: to be set in place, unless an error is raised. Its variables get the precision of the weights.
        weights: name → tensor or array, copied. Every name must have its place in the module, and every place its name.

    Raises:
        UserError: if a weight is missing, left over, or of another shape; it is named.
    """
    slots = {slot.name: slot for slot in _slots(module)}
    kind = type(module).__name__
    if missing := sorted(slots.keys() - weights.keys()):
        raise UserError(f"the weights lack {', '.join(missing)}, which {kind} of the twin needs.")
    if left_over := sorted(weights.keys() - slots.keys()):
        raise UserError(f"{kind} of the twin has no place for the weights {', '.join(left_over)}.")
    arrays = {name: _from_torch(slot, weights[name]) for name, slot in slots.items()}
    for name, slot in slots.items():
        # A copy: JAX may take over the memory of a tensor, which torch's optimisers write into.
        slot.variable.set_value(jnp.array(arrays[name]))


def torch_weights(module: nnx.Module) -> dict[str, np.ndarray[Any, Any]]:
    """A module's variables under the names and in the shapes of torch's state dict, copied."""
    return {slot.name: _to_torch(slot) for slot in _slots(module)}


def _slots(module: nnx.Module) -> Iterator[_Slot]:
    for path, part in nnx.iter_modules(module):
        layer = isinstance(part, nnx.Conv | nnx.Linear)
        for key, value in vars(part).items():
            if not isinstance(value, nnx.Variable):
                continue
            if layer and key == "kernel":
                # rows, columns, in, out ↔ out, in, rows, columns; in, out ↔ out, in.
                orders = ((3, 2, 0, 1), (2, 3, 1, 0)) if isinstance(part, nnx.Conv) else ((1, 0), (1, 0))
                yield _Slot(".".join(map(str, (*path, "weight"))), value, *orders)
            else:
                yield _Slot(".".join(map(str, (*path, key))), value)


def _to_torch(slot: _Slot) -> np.ndarray[Any, Any]:
    array = np.asarray(slot.variable[...])
    # A copy: torch warns of arrays that it may not write to, and JAX's are of that kind.
    return np.array(array if slot.to_torch is None else array.transpose(slot.to_torch), order="C")


def _from_torch(slot: _Slot, weight: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(weight.detach().cpu() if hasattr(weight, "detach") else weight)
    # A module made by `nnx.eval_shape` has shapes alone.
    shape = slot.variable.get_value().shape
    expected = shape if slot.to_torch is None else tuple(shape[axis] for axis in slot.to_torch)
    if array.shape != expected:
        raise UserError(f"the weight {slot.name} has shape {array.shape}; the twin's has {expected}.")
    return array if slot.from_torch is None else np.ascontiguousarray(array.transpose(slot.from_torch))
