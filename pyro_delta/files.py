"""Files that are there whole or not at all, errors that name them, and numbers that every reader of them knows."""

from __future__ import annotations

import json
import math
import os
import secrets
import tomllib
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

from pyro_delta.errors import UserError, is_plain

NO_ARRAYS: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    SyntaxError,
    TokenError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy raises for arrays (.npy, .npz) that are damaged: a bit of their heads is enough."""
UNREADABLE: tuple[type[Exception], ...] = (OSError, *NO_ARRAYS)
"""The same, and what the system raises for their files."""
WIDE = "it holds a whole number of more than 64 bits"


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when it is complete.

    A reader, or a second writer, sees the old file or the new one, never a part; if writing fails, the old one stays. A
    link stays, too: what it leads to is written.

    Raises:
        OSError: that names `path`, if it cannot be written.
    """
    # Opened like any file, not by tempfile, whose files nobody but the owner may read.
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with named(path):
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
    finally:
        with suppress(OSError):  # a read-only or missing folder holds no such file
            aside.unlink(missing_ok=True)


def sweep_parts(folder: Path) -> None:
    """Takes away what `written_whole` has left in a folder, and in those in it, where its process was killed."""
    for path in (*folder.glob(".*.part"), *folder.glob("*/.*.part")):
        with suppress(OSError):
            path.unlink()


def bytes_of(path: Path) -> bytes:
    """What a file of a run holds.

    Raises:
        FileNotFoundError: if it is missing.
        UserError: if it is there and cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of a run, readable to you.") from None


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An error of writing names `path`: a full disk's names no file at all, others the one that is written aside."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def json_of(content: bytes) -> Any:
    """What JSON says, which may be a stranger's.

    Raises:
        ValueError: if it is none, nested too deep, or holds text that would steer a terminal.
    """
    try:
        found = json.loads(content)
        plain = all(map(is_plain, _texts(found)))
    except (ValueError, RecursionError):  # of text, of JSON, of numbers with thousands of digits
        raise ValueError("it is not JSON") from None
    if not plain:
        raise ValueError("it holds control characters")
    return found


def toml_of(path: Path) -> dict[str, Any]:
    """What a TOML file says; some editors put a mark of the order of bytes before it, which is no part of it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is none, nested too deep, or holds what no setting can be: a whole number of more than the 64
            bits of TOML, or text that would steer a terminal.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        parts = list(_parts(found))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # of numbers with thousands of digits
        raise ValueError(WIDE) from None
    if any(isinstance(part, int) and not -(2**63) <= part < 2**63 for part in parts):
        raise ValueError(WIDE)
    if not all(is_plain(part) for part in parts if isinstance(part, str)):
        raise ValueError("it holds control characters")
    return found


def _texts(value: Any) -> Iterator[str]:
    """Texts in plain values, at any depth."""
    return (part for part in _parts(value) if isinstance(part, str))


def _parts(value: Any) -> Iterator[Any]:
    """Keys and plain values, at any depth."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from _parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def finite(value: Any) -> Any:
    """Plain values for JSON: a number that is not finite becomes null, which every reader knows, at any depth."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
