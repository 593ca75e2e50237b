"""A distribution in double precision."""

from __future__ import annotations

import copy
import types
import weakref
from functools import singledispatch
from typing import Any

from torch import Tensor

# Values with a __dict__ that hold no parameters of a distribution.
_CODE = (type, types.FunctionType, types.MethodType, types.ModuleType)


@singledispatch
def as_float64(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy whose floating tensors, however deep, are detached and float64; the rest is shared or shallow-copied.

    Distributions have no `.to`, and their tensors hide in transforms, nested distributions and plain helper objects.
    `memo` maps the id of each value to its copy and to the value itself, which keeps that id from being used again.
    Distributions of another backend join in by `@as_float64.register`.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][0]
    new: Any = value
    if isinstance(value, Tensor):
        new = value.detach().double() if value.is_floating_point() else value
    elif isinstance(value, weakref.ref):
        new = None  # a transform's cached inverse: it is made again on demand
    elif isinstance(value, (list, tuple)):
        items = [as_float64(item, memo) for item in value]
        new = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    elif isinstance(value, dict):
        new = copy.copy(value)
        new.update({key: as_float64(item, memo) for key, item in value.items()})
    elif hasattr(value, "__dict__") and not isinstance(value, _CODE):
        new = copy.copy(value)
        memo[id(value)] = (new, value)  # before its parts, which may point back to it
        vars(new).update({key: as_float64(item, memo) for key, item in vars(value).items()})
    memo[id(value)] = (new, value)
    return new
