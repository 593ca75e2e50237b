"""Pickles of plain values and arrays, read without running anything that they name.

A pickle is a program: it imports what it names and calls it. Here names are looked up in a table of a few functions,
which build arrays from their bytes; NumPy's own, which trust what they are given, are not among them.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

PLAIN = re.compile(r"[?]|[biuf][1248]")


class _DType:
    """What a pickle says of an array's type: booleans, integers and real numbers alone."""

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not PLAIN.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}")
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds an array of byte order {state[1]!r}")
        self.order = state[1]

    def made(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array:
    """An array of a pickle, which has all it needs with its state."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_columns, raw = state
        self.values = _from_bytes(raw, dtype, shape, "F" if by_columns else "C")


def _from_bytes(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array of bytes, which Python 2 wrote as text."""
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, dtype.made()).reshape(shape, order="F" if order == "F" else "C")


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes, as protocol 2 writes them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes in {encoding!r}")
    return text.encode("latin1")


def _array(*_: Any) -> _Array:
    return _Array()


def _number(dtype: Any, raw: Any) -> Any:
    return _from_bytes(raw, dtype, (), "C").item()


NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encoded,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_bytes for core in ("core", "_core")},
}
"""What a pickle may name, and what stands for it here."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'!r}, which data have no use for")
        return NAMES[module, name]


def unpickled(path: Path) -> dict[str, Any]:
    """The dict that a pickle holds; its arrays are NumPy's.

    Raises:
        OSError: if the file cannot be read.
        Exception: of any kind if it is damaged, or names what plain values have no use for.
    """
    with path.open("rb") as file:
        found = _Unpickler(file, encoding="latin1").load()
    if not isinstance(found, dict):
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}, not a dict")
    return {name: value.values if isinstance(value, _Array) else value for name, value in found.items()}
