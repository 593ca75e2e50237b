"""Typed, validated settings, and what is wrong with them in a sentence."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from pyro_delta.errors import UserError


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
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] in ("value_error", "missing") else f", got {first['input']!r}"
    return key, UserError(f"{key}: {message}{given}.")
