"""One writer at a time: a lock on an open file, which the operating system lets go when its process ends, however.

NOTE: the locks are those of POSIX systems (`flock`).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_delta.errors import UserError

LOCK = ".lock"
"""The file of a folder that its writer holds; it stays behind, and means nothing by itself."""


def locked(descriptor: int) -> bool:
    """Takes the lock on an open file, if it is free; processes that inherit the descriptor hold it as well."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


class Lock:
    """The right to write into a folder, until it is released or the process ends, by kill -9 as well.

    Args:
        folder: that exists.

    Raises:
        UserError: if another writer holds it, with the process and the host that it wrote down.
    """

    def __init__(self, folder: Path) -> None:
        self.file = (folder / LOCK).open("a+", encoding="utf-8")
        if not locked(self.file.fileno()):
            self.file.seek(0)
            who = _writer(self.file.read())
            self.file.close()
            raise UserError(f"{folder} is being written by {who}; wait until that ends, or give another folder.")
        self.file.truncate(0)
        self.file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        self.file.flush()

    def release(self) -> None:
        """Lets others write."""
        self.file.close()


def _writer(text: str) -> str:
    try:
        found = json.loads(text)
        return f"process {int(found['pid'])} on {str(found['host'])[:64]!r}"
    except (ValueError, KeyError, TypeError):  # it has the lock, and has not said who it is yet
        return "another process"


@contextmanager
def awaited(folder: Path, said: str) -> Iterator[None]:
    """Holds the lock of a folder, for which it waits, and says so once on stderr."""
    with (folder / LOCK).open("a") as file:
        if not locked(file.fileno()):
            print(said, file=sys.stderr)
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder.

    Raises:
        UserError: as `Lock`.
    """
    lock = Lock(folder)
    try:
        yield
    finally:
        lock.release()
