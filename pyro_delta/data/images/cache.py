"""Decoded images, kept on disk as one array of bytes: decoding is slow, and sets may be larger than memory.

Beside the data, or in the user's cache folder where nothing can be written there, `.pyro-delta-cache` has a folder for
the files as they are now (names, sizes, times): `images.npy` (N, C, H, W), `sums.npy` with the CRC-32 of every image,
`labels.npy` where the files have labels, and `state.json`, which says how far they are good. The latter is written
last, and only after the others are on the disk: what was killed goes on from there, and is taken for whole only if it
is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import Progress

from pyro_delta.data.folders import CACHE as NAME
from pyro_delta.data.folders import readable
from pyro_delta.data.stored import StoredFile
from pyro_delta.errors import UserError
from pyro_delta.files import NO_ARRAYS, UNREADABLE, sweep_parts, written_whole
from pyro_delta.lock import awaited, leads_out

FORMAT = "pyro-delta images 2"
MOST_IN_MEMORY = 4 << 30  # bytes of images
SAVED_EVERY = 2.0  # seconds of converting that a kill may cost
TOLD_EVERY = 10.0  # seconds between lines of progress where there is no terminal
KEY = re.compile("[0-9a-f]{16}")  # names of folders of converted images end so
_KEEPS = ContextVar("keeps", default=True)


@dataclass(frozen=True)
class Part:
    """Some images of a set, in their order.

    Attributes:
        key: fingerprint of the files that they are read from.
        read: gives the images piece by piece, uint8 (M, C, H, W), and their labels, integers (M,), or None.
        key_now: gives the fingerprint anew.
    """

    key: str
    read: Callable[[], Iterable[tuple[np.ndarray, np.ndarray | None]]]
    key_now: Callable[[], str]


@dataclass(frozen=True)
class Kept:
    """A whole set.

    Attributes:
        images: uint8 (N, C, H, W) in memory, or a file of them.
        labels: int64 (N,), or None.
        counts: images of every part.
    """

    images: np.ndarray | StoredFile
    labels: np.ndarray | None
    counts: tuple[int, ...]


def digest(folder: Path, files: Sequence[str]) -> str:
    """Fingerprint of files, in the given order: their names below `folder`, sizes and modification times.

    Raises:
        UserError: if one is not there or cannot be looked at.
    """
    fingerprint = hashlib.sha256(FORMAT.encode())
    for file in files:
        try:
            status = os.stat(folder / file)
        except OSError as error:
            path = readable(folder / file)
            raise UserError(f"cannot read {path} ({error.strerror}); restore or remove it.") from None
        fingerprint.update(f"\0{status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(file))
    return fingerprint.hexdigest()[:16]


def converted(folder: Path, parts: Sequence[Part], *, in_memory: bool, way: str = "") -> Kept:
    """The images of all parts, converted unless they were before.

    Args:
        folder: where the data are.
        parts: of the set, in order.
        in_memory: whether the images are few enough to be read, if they are small; else they stay in the file.
        way: in which files become images, where there are several: each has a place of its own.

    Raises:
        UserError: if a part cannot be read, or there is no place for the images.
    """
    key = hashlib.sha256(" ".join((FORMAT, *(part.key for part in parts))).encode()).hexdigest()[:16]
    key = f"{way}-{key}" if way else key
    places = _places(folder)
    for place in places:
        if (kept := _opened(place / key, parts, in_memory)) is not None:
            return kept
    reason = ""
    keeps = _KEEPS.get() or not in_memory  # what takes minutes or hours is done once
    for place in places if keeps else ():
        try:
            with _alone(place):
                for other in place.iterdir():  # of the files as they were before
                    made, _, of = other.name.rpartition("-")
                    if other.is_dir() and other.name != key and made in ("", way) and KEY.fullmatch(of):
                        shutil.rmtree(other, ignore_errors=True)
                # Another process may have made it in the meantime.
                if (kept := _opened(place / key, parts, in_memory)) is None:
                    _convert(place / key, parts, str(folder))
                    kept = _opened(place / key, parts, in_memory)
            if kept is not None:
                return kept
        except OSError as error:
            reason = error.strerror or str(error)
    if not in_memory:
        raise UserError(
            f"{folder} is larger than memory should hold, and its images can be kept neither in {folder / NAME} nor in "
            f"{places[-1]} ({reason}); make room, or name another cache folder by XDG_CACHE_HOME."
        )
    with tempfile.TemporaryDirectory() as aside:
        _convert(Path(aside) / key, parts, str(folder))
        kept = _opened(Path(aside) / key, parts, in_memory)
    assert kept is not None
    return kept


@contextmanager
def keeping_nothing() -> Iterator[None]:
    """What is converted within is gone with the last who reads it, but for sets too large for memory."""
    token = _KEEPS.set(False)
    try:
        yield
    finally:
        _KEEPS.reset(token)


def _places(folder: Path) -> tuple[Path, ...]:
    """Where images of a folder may be kept; a link in it, as in one that was received, is not written through."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    elsewhere = cache_home / "pyro-delta" / name
    return (elsewhere,) if (folder / NAME).is_symlink() else (folder / NAME, elsewhere)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time converts; the others wait for it, unless it dies."""
    place.mkdir(parents=True, exist_ok=True)
    with awaited(place, f"waiting for another process, which converts images to {place}"):
        yield


def _opened(home: Path, parts: Sequence[Part], in_memory: bool) -> Kept | None:
    """What is whole, or None. Any trouble with it means that it is made anew."""
    try:
        state = _state(home, parts)
        if state is None or not state["whole"]:
            return None
        count, shape = sum(state["counts"]), tuple(state["shape"])
        labels = _array(home / "labels.npy", count) if state["labelled"] else None
        sums = _array(home / "sums.npy", count)
        if _digest(sums, labels) != state["digest"]:
            return None
        with (home / "images.npy").open("rb") as file:
            if _header(file) != (count, *shape):
                return None
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
            if size != offset + count * int(np.prod(shape)):
                return None
            if not in_memory or size > MOST_IN_MEMORY:
                return Kept(StoredFile(home / "images.npy", offset, sums, shape), labels, tuple(state["counts"]))
            images = np.fromfile(file, np.uint8).reshape(count, *shape)
        if any(zlib.crc32(image) != known for image, known in zip(images, sums.tolist(), strict=True)):
            return None
    except UNREADABLE:
        return None
    return Kept(images, labels, tuple(state["counts"]))


def _state(home: Path, parts: Sequence[Part]) -> dict[str, Any] | None:
    """What is good so far of these parts; None if nothing."""
    try:
        if home.is_symlink() or leads_out(home) is not None:  # which would be written through, or waited for
            return None
        state = json.loads((home / "state.json").read_text(encoding="utf-8"))
        counts = state["counts"]
        good = state["format"] == FORMAT and state["keys"] == [part.key for part in parts[: len(counts)]]
        good = good and state["whole"] == (len(counts) == len(parts)) and all(type(count) is int for count in counts)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if good else None


def _convert(home: Path, parts: Sequence[Part], title: str) -> None:
    """Writes all parts, after those that are good already.

    Raises:
        UserError: if a part cannot be read, or changes meanwhile; those before it are kept.
        OSError: if it cannot be written; then nothing is left.
    """
    state = _state(home, parts)
    if state is not None and not state["whole"]:
        sweep_parts(home)
        try:
            _write(home, parts, title, state)
            return
        except UserError:
            raise
        except NO_ARRAYS:
            pass  # what was left is damaged
    shutil.rmtree(home, ignore_errors=True)
    try:
        home.mkdir(parents=True)
        _write(home, parts, title, None)
    except OSError:
        shutil.rmtree(home, ignore_errors=True)
        raise


def _write(home: Path, parts: Sequence[Part], title: str, state: dict[str, Any] | None) -> None:
    """Goes on from a state, or from nothing."""
    counts: list[int] = [] if state is None else list(state["counts"])
    sums, labels = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
    shape: tuple[int, ...] | None = None
    labelled = False
    if state is not None:
        shape, labelled = tuple(state["shape"]), state["labelled"]
        sums = [_array(home / "sums.npy", sum(counts))]
        labels = [_array(home / "labels.npy", sum(counts))] if labelled else labels
        if _digest(sums[0], labels[0] if labelled else None) != state["digest"]:
            raise ValueError("the checksums are damaged")
    with (home / "images.npy").open("r+b" if state is not None else "w+b") as file:
        if shape is not None:
            offset = _write_header(file, 0, shape)
            end = offset + sum(counts) * int(np.prod(shape))
            if os.fstat(file.fileno()).st_size < end:
                raise ValueError("the images are cut off")
            file.truncate(end)
            file.seek(end)
        saved = time.monotonic()
        with _told(title, len(parts), len(counts)) as tell:
            for part in parts[len(counts) :]:
                counts.append(0)
                for images, found in part.read():
                    if shape is None:
                        shape, labelled = images.shape[1:], found is not None
                        _write_header(file, 0, shape)
                    file.write(np.ascontiguousarray(images).data)
                    sums.append(np.fromiter((zlib.crc32(image) for image in images), np.uint32, len(images)))
                    if found is not None:
                        labels.append(found.astype(np.int64))
                    counts[-1] += len(images)
                    del images, found  # which would be in memory while the next are read
                if part.key_now() != part.key:  # else other images would be known by the key
                    raise UserError(f"{title} was changed while it was read; start again when nothing writes there.")
                assert shape is not None
                tell(len(counts), sum(counts))
                if len(counts) == len(parts) or time.monotonic() - saved > SAVED_EVERY:
                    if len(counts) == len(parts):
                        _write_header(file, sum(counts), shape)
                    file.flush()
                    os.fsync(file.fileno())
                    _save(
                        home, parts, counts, shape, np.concatenate(sums), np.concatenate(labels) if labelled else None
                    )
                    saved = time.monotonic()


def _save(
    home: Path,
    parts: Sequence[Part],
    counts: list[int],
    shape: tuple[int, ...],
    sums: np.ndarray,
    labels: np.ndarray | None,
) -> None:
    """Says that so many parts are good, now that their images are on the disk."""
    for name, values in (("sums.npy", sums), ("labels.npy", labels)):
        if values is not None:
            with written_whole(home / name) as file:
                np.save(file, values)
    state = {
        "format": FORMAT,
        "whole": len(counts) == len(parts),
        "keys": [part.key for part in parts[: len(counts)]],
        "counts": counts,
        "shape": list(shape),
        "labelled": labels is not None,
        "digest": _digest(sums, labels),
    }
    with written_whole(home / "state.json") as file:
        file.write(json.dumps(state).encode())


def _digest(sums: np.ndarray, labels: np.ndarray | None) -> str:
    return hashlib.sha256(sums.tobytes() + (b"" if labels is None else labels.tobytes())).hexdigest()


def _array(path: Path, count: int) -> np.ndarray:
    """The first numbers of a file; a kill between it and the state leaves more than the state knows of."""
    found = np.load(path, allow_pickle=False)[:count]
    if len(found) != count:
        raise ValueError(f"{path} is cut off")
    return found


def _write_header(file: BinaryIO, count: int, shape: Sequence[int]) -> int:
    """The head of a .npy file at its start, which leaves room for any count; its size. The position is behind it or,
    where there are images already, at the end.
    """
    file.seek(0)
    head = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, head)
    size = file.tell()
    file.seek(0, os.SEEK_END)
    return size


def _header(file: BinaryIO) -> tuple[int, ...] | None:
    """The shape that the head of a .npy file of bytes says, and nothing for others."""
    if np.lib.format.read_magic(file) != (1, 0):
        return None
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return None if is_fortran or dtype != np.uint8 else shape


@contextmanager
def _told(title: str, total: int, done: int) -> Iterator[Callable[[int, int], None]]:
    """Says how many of the parts are done, and images: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("decoding images", total=total, completed=done)
            yield lambda parts, images: bar.update(task, completed=parts)
        return
    told = time.monotonic()

    def line(parts: int, images: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            print(f"converting {title}: {images} images, {100 * parts // total} %", file=sys.stderr, flush=True)

    yield line
