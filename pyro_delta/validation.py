"""Typed, validated settings, and what is wrong with them in a sentence."""

from __future__ import annotations

from numbers import Integral
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from pyro_delta.errors import UserError
from pyro_delta.limits import LARGEST_SEED

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""What torch and NumPy both take."""
Count = Annotated[int, Field(ge=1)]
"""A whole number, 1 or more."""
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""A probability with which features are zeroed."""


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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """True and False, which Python takes for 1 and 0, are refused where a number is needed."""
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if kinds & {int, float} and not kinds & {bool, Any}:
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, bool):
                    raise ValueError(f"{part} is not a number")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """An annotation and all that it is made of."""
    return {annotation}.union(*map(_kinds, get_args(annotation)))


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
    if first["type"] in ("tuple_type", "list_type"):
        return key, UserError(f"{key}: a list in brackets is needed, as [24, 32], got {first['input']!r}.")
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
