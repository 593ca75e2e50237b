"""Typed, validated settings, and what is wrong with them in a sentence."""

from __future__ import annotations

from numbers import Integral
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyro_delta.errors import UserError
from pyro_delta.limits import LARGEST_SEED

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""What torch and NumPy both take."""


def at_least(least: int, **values: int) -> None:
    """Refuses whole numbers that are too small, by their names.

    Raises:
        UserError: naming the first, and what to give.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or value < least:
            raise UserError(f"{name}={value!r} has no meaning; give a whole number, {least} or more.")


class Section(BaseModel):
    """A group of settings: unknown ones are errors, values are fixed once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def first_mistake(error: ValidationError, prefix: str = "") -> tuple[str, UserError | None]:
    """Dotted name of the first setting that is wrong, below `prefix`, and the error to raise; None if it is unknown."""
    first = error.errors()[0]
    key = prefix + ".".join(str(part) for part in first["loc"][: 1 if prefix else 2])
    if first["type"] == "extra_forbidden":
        return key, None
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return key, cause
    if first["type"] == "missing":
        return key, _missing(key, error)
    if first["type"] == "model_type":
        return key, UserError(f"{key}: a section of settings is needed, got {first['input']!r}.")
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "value_error" else f", got {first['input']!r}"
    return key, UserError(f"{key}: {message}{given}.")


def _missing(key: str, error: ValidationError) -> UserError:
    """A setting that is not there, or one of the values of a setting that is made of several."""
    first = error.errors()[0]
    *place, last = first["loc"]
    if not isinstance(last, int):
        return UserError(f"{key} is missing; give it a value.")
    needed = 1 + max(int(other["loc"][-1]) for other in error.errors() if list(other["loc"][:-1]) == place)
    return UserError(f"{key}={first['input']!r} has too few values; give {needed}.")
