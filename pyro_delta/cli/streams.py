"""Standard output and error that no reader, encoding or disk can end a command by. No torch here.

A verdict is an exit code, and a training is hours of work: neither is lost because `head` has read enough, a terminal
has gone or a log's disk is full.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from pyro_delta.errors import is_plain

SPELLED = {
    "δ": "delta", "α": "alpha", "β": "beta", "σ": "sigma", "τ": "tau", "κ": "kappa", "μ": "mu", "λ": "lambda",
    "−": "-", "–": "-", "—": "-", "±": "+/-", "≥": ">=", "≤": "<=", "→": "->", "…": "...", "·": "|", "∣": "|",
    "‖": "||", "×": "x", "½": "1/2", "√": "sqrt", "Σ": "sum", "∞": "inf", "²": "^2", "³": "^3", "Δ": "Delta",
}  # fmt: skip
"""What stands for a character that an encoding lacks."""


class Steady(io.FileIO):
    """A stream that goes on, and drops what it is given, once it cannot be written any more.

    Attributes:
        lost: why it cannot.
    """

    lost: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes bytes, or drops them."""
        if self.lost is None:
            try:
                return super().write(data)
            except BlockingIOError:  # it can, later
                raise
            except OSError as error:
                self.lost = error
        return memoryview(data).nbytes


def spelled(error: UnicodeError) -> tuple[str, int]:
    """A handler of codecs: characters that the encoding lacks are spelled, or stand as question marks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = []
    for character in error.object[error.start : error.end]:
        plain = SPELLED.get(character) or unicodedata.normalize("NFKD", character)
        found.append(plain if plain.isascii() else "?")
    return "".join(found), error.end


def steady() -> None:
    """Makes standard output and error steady, where they are files, pipes or terminals."""
    codecs.register_error("spelled", spelled)
    for number in (0, 1, 2):  # a closed one would be the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _steady(sys.stdout, 1), _steady(sys.stderr, 2)


def _steady(stream: TextIO | None, number: int) -> TextIO:
    if stream is not None:
        raw = _raw(stream)
        if not isinstance(raw, io.FileIO) or isinstance(raw, Steady) or raw.fileno() != number:
            return stream  # somebody else's, as in tests and notebooks
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Steady(number, "w", closefd=False)),
        encoding="utf-8" if stream is None else stream.encoding,
        errors="spelled",
        line_buffering=stream is None or number == 2 or stream.isatty() or _raw(stream) is stream.buffer,
    )


def _raw(stream: TextIO) -> Any:
    """What a stream writes to in the end; unbuffered ones have nothing between."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


def lost_output() -> OSError | None:
    """Why standard output was lost; None if it was not, or its reader had gone."""
    raw = _raw(sys.stdout)
    return raw.lost if isinstance(raw, Steady) else None


def plain(text: str) -> str:
    """A text in a line, with such characters as they are written in Python."""
    line = " ".join(text.split())
    return "".join(
        character if is_plain(character) else character.encode("unicode_escape").decode() for character in line
    )


class Told(logging.Handler):
    """What the library tells of data, a line each on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line."""
        click.echo(f"pyro-delta: {plain(record.getMessage())}", err=True)


@contextmanager
def telling() -> Iterator[None]:
    """While a command runs, what is told of its data is printed; of several processes, the first one does."""
    log = logging.getLogger("pyro_delta.data")
    handler = Told() if os.environ.get("RANK", "0") == "0" else logging.NullHandler()
    level, propagates = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
