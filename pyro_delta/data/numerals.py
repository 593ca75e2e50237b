"""Numbers as files and people write them, in ASCII: Python reads `1_000`, full-width digits and `infinity`, too."""

from __future__ import annotations

import math
import re

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
WHOLE = re.compile(r"[+-]?[0-9]+")
MISSING = re.compile(r"[+-]?nan", re.IGNORECASE | re.ASCII)


def number_of(text: str) -> float:
    """The number that a text says, such as -12.5 or 1e3; NaN of `nan`, in capitals or not.

    Raises:
        ValueError: if it says none, or one that no number of double precision holds.
    """
    text = text.strip()
    if MISSING.fullmatch(text):
        return math.nan
    if NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text!r} is no number")


def whole_of(text: str) -> int:
    """The whole number that a text says.

    Raises:
        ValueError: if it says none.
    """
    text = text.strip()
    if WHOLE.fullmatch(text):
        return int(text)
    raise ValueError(f"{text!r} is no whole number")
