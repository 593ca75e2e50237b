"""A VAE of somebody's own, by the name of the function that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro_delta.api.judge import diagnose
from pyro_delta.diagnostics.diagnose import Diagnosis
from pyro_delta.errors import UserError
from pyro_delta.programs import blamed, object_at


def examine(place: str, **options: Any) -> Diagnosis:
    """`diagnose` of what a function makes.

    Args:
        place: `path/to/file.py:make` or `package.module:make`. It takes no arguments, and returns (model, guide, data),
            or a mapping of the arguments of `diagnose`.
        options: of `diagnose`, where the function does not say them.

    Raises:
        UserError: if there is no such function, it fails, or it returns something else.
    """
    make = object_at(place)
    with blamed(place):
        made = make()
    if isinstance(made, tuple) and len(made) == 3:
        made = dict(zip(("model", "guide", "data"), made, strict=True))
    if not isinstance(made, Mapping) or "model" not in made:
        raise UserError(
            f"{place} returns a {type(made).__name__}; return (model, guide, data), or a dict of the arguments of "
            "pyro_delta.diagnose."
        )
    with blamed(place):
        try:
            return diagnose(**{**options, **made})
        except TypeError as error:
            if "diagnose() got an unexpected" in str(error):
                raise UserError(f"{place} returns what diagnose does not take: {error}; leave it out.") from None
            raise
