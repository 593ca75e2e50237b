"""Batches that hold more than x: programs are handed what their signatures name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import nn

from pyro_delta.errors import UserError

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def call(program: Callable[..., Any], extras: Mapping[str, Any], *given: Any) -> Any:
    """Calls a program with `given` and those of `extras` that its signature names."""
    if not extras:
        return program(*given)
    names = _names(program)
    return program(*given, **{name: value for name, value in extras.items() if names is None or name in names})


def run(program: Callable[..., Any], batch: Any) -> Any:
    """Runs a program on a batch: a tensor is its argument, of a dict it is handed the keys that its signature names.

    Raises:
        UserError: if its signature names none of them.
    """
    if not isinstance(batch, Mapping):
        return program(batch)
    names = _names(program)
    if names is not None and not names & batch.keys():
        raise UserError(
            f"a batch has the keys {', '.join(map(repr, batch))}, of which {_title(program)} takes none; name one of "
            "them in its signature."
        )
    return call(program, batch)


def required(program: Callable[..., Any], given: int) -> list[str]:
    """Names of the arguments, after the first `given`, that a program cannot be called without."""
    function = program.forward if isinstance(program, nn.Module) else program
    after = list(inspect.signature(function).parameters.values())[given:]
    return [p.name for p in after if p.kind in _NAMED and p.default is p.empty]


def _names(program: Callable[..., Any]) -> frozenset[str] | None:
    """Names that a program takes as keywords; None if any."""
    function = program
    if isinstance(program, nn.Module):
        function = program.forward
    elif inspect.isfunction(inspect.getattr_static(type(program), "__call__", None)):  # an object of a class of its own
        function = program.__call__  # type: ignore[operator]
    return _names_of(getattr(function, "__func__", function), inspect.ismethod(function))


@lru_cache(maxsize=1024)
def _names_of(function: Callable[..., Any], bound: bool) -> frozenset[str] | None:
    parameters = list(inspect.signature(function).parameters.values())[bound:]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in _NAMED)


def _title(program: Callable[..., Any]) -> str:
    return getattr(program, "__name__", type(program).__name__)
