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
from pyro_delta.files import named

LOCK = ".lock"
"""The file of a folder that its writer holds; it stays behind, and means nothing by itself."""


def locked(descriptor: int, path: Path) -> bool:
    """Takes the lock on an open file, if it is free; processes that inherit the descriptor hold it as well.

    Raises:
        OSError: that names `path`, where its file system has no locks.
    """
    with named(path), suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


class Lock:
    """The right to write into a folder, until it is released or the process ends, by kill -9 as well.

    Args:
        folder: that exists.

    Raises:
        UserError: if another writer holds it, with the process and the host that it wrote down; or if the folder holds
            links by which a writer would change what lies elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        check_no_links(folder)
        self._take()
        self.identity = os.stat(folder)

    def _take(self) -> None:
        self.file = (self.folder / LOCK).open("a+", encoding="utf-8")
        try:
            free = locked(self.file.fileno(), self.folder / LOCK)
        except OSError:
            self.file.close()
            raise
        if not free:
            self.file.seek(0)
            who = _writer(self.file.read())
            self.file.close()
            raise UserError(f"{self.folder} is being written by {who}; wait until that ends, or give another folder.")
        self.file.truncate(0)
        self.file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        self.file.flush()

    def check(self) -> None:
        """Refuses to write into another folder of the same name, as one that was removed and begun anew meanwhile.

        A lock that somebody has deleted is taken again, if it is free.

        Raises:
            UserError: if the folder is gone or another, or another writer has it.
        """
        with suppress(OSError):
            if os.path.samestat(os.stat(self.folder / LOCK), os.fstat(self.file.fileno())):
                return
        try:
            here = os.path.samestat(os.stat(self.folder), self.identity)
        except OSError:
            here = False
        if not here:
            raise UserError(
                f"{self.folder} was removed or replaced while it was being written, and is left as it is now; what was "
                "written before is lost with it."
            )
        self.file.close()
        self._take()

    def release(self) -> None:
        """Lets others write."""
        self.file.close()


def leads_out(folder: Path) -> Path | None:
    """The first link in a folder, or in those in it, or other file that is none, by which a writer would leave it."""
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            return path
    return None


def check_no_links(folder: Path) -> None:
    """Refuses a folder that holds links, as one that was received may: what is written into it would go elsewhere.

    Raises:
        UserError: naming the first.
    """
    if (path := leads_out(folder)) is not None:
        raise UserError(
            f"{path} is a link or no ordinary file, and a folder with such is not written into; take a copy of it, as "
            "cp -rL makes."
        )


def _writer(text: str) -> str:
    try:
        found = json.loads(text)
        return f"process {int(found['pid'])} on {str(found['host'])[:64]!r}"
    except (ValueError, KeyError, TypeError):  # it has the lock, and has not said who it is yet
        return "another process"


@contextmanager
def awaited(folder: Path, said: str = "") -> Iterator[None]:
    """Holds the lock of a folder, for which it waits, and says so once on stderr where there is something to say.

    Raises:
        OSError: if it is a link, as in a folder that was received: what that leads to is not made.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if not locked(descriptor, folder / LOCK):
            if said:
                print(said, file=sys.stderr)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
