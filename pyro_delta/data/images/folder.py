"""Folders of image files, as `pyro_delta.data.folders` lists them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.folders import Account, labels_of, list_files, list_splits, names_of, readable
from pyro_delta.data.images import cache
from pyro_delta.data.images.conversion import Conversion, step_of
from pyro_delta.data.images.decoding import DECODER, SUFFIXES, decoded, quiet
from pyro_delta.data.splits import Split, split_of
from pyro_delta.data.stored import Stored, StoredFile
from pyro_delta.errors import UserError

CHUNK = 128  # files per task: enough to make the hand-over between threads cheap
PART = 1024
"""Files that are one part of the cache: what a kill may cost."""
BYTES = 64 << 20
"""Of images that are decoded together."""
IN_MEMORY = 100_000
"""Images of a folder that are held in memory."""
FEW_LEVELS = (2, 4, 16)
"""Of 1, 2 and 4 bits: looked for where nothing is said."""
AT_ONCE = 4096
"""Images whose bytes are looked at together."""


class First(NamedTuple):
    """The first image of a set: its file, pixels (C, H, W), and mode."""

    file: Path
    pixels: np.ndarray
    mode: str


class Read(NamedTuple):
    """A folder as it was read: its splits, of which all but the first may be missing, and an account of its files."""

    train: Split
    validation: Split | None
    test: Split | None
    classes: tuple[str, ...] | None
    account: Account


def read_folder(folder: Path, how: Conversion = Conversion()) -> Read:  # noqa: B008 - it is frozen
    """Splits and classes of a folder, in the order of the class and file names, with the names of the files.

    The decoded images are cached, and the cache serves as long as no file changes its name, size or time, for these
    conversions and this decoder. More than `IN_MEMORY` images are not held in memory: they are read from the cache as
    they are asked for.

    Args:
        folder: that `list_splits` takes.
        how: pictures become images.

    Raises:
        UserError: as `list_splits` and `decoded`, or if an image is unlike the first in size or mode.
    """
    listed = list_splits(folder, "images", SUFFIXES)
    files = listed.files
    way = how.digest()
    images = cache.converted(folder, parts_of(folder, files, how), in_memory=len(files) <= IN_MEMORY, way=way).images

    def split(files_by_class: Sequence[Sequence[str]] | None, place: range | None) -> Split | None:
        if files_by_class is None or place is None:
            return None
        labels = None if listed.classes is None else labels_of(files_by_class)
        part = part_of(images, place.start, place.stop, labels)
        return replace(part, names=names_of(files[place.start : place.stop]))

    places = listed.ranges()
    train, validation, test = map(split, (listed.train, listed.validation, listed.test), places)
    assert train is not None
    return Read(train, validation, test, listed.classes, listed.account)


def parts_of(folder: Path, files: Sequence[str], how: Conversion = Conversion()) -> list[cache.Part]:  # noqa: B008
    """Image files as parts of a set, by their names below a folder."""
    first = lru_cache(1)(lambda: _first(folder / files[0], how))

    def read(names: Sequence[str]) -> Iterator[tuple[np.ndarray, None]]:
        at_once = max(1, BYTES // first().pixels.size)
        for start in range(0, len(names), at_once):
            yield _decode([folder / name for name in names[start : start + at_once]], first(), how), None

    def part(names: Sequence[str]) -> cache.Part:
        def key() -> str:
            text = f"{DECODER} {how.digest()} {cache.digest(folder, names)}"
            return hashlib.sha256(text.encode()).hexdigest()[:16]

        return cache.Part(key(), lambda: read(names), key)

    return [part(files[start : start + PART]) for start in range(0, len(files), PART)]


def part_of(images: np.ndarray | StoredFile, begin: int, end: int, labels: np.ndarray | None) -> Split:
    """A split of the images from `begin` up to, without, `end`, with their labels."""
    if not isinstance(images, StoredFile):
        return split_of(images[begin:end], labels)
    labels_b = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Split(cast("torch.Tensor", Stored(images, torch.arange(begin, end))), labels_b)


def levelled(train: Split, others: Sequence[Split | None], folder: Path) -> tuple[int, list[Split]]:
    """How many levels the bytes of the training images stand on, 2, 4, 16 or 256, and all splits on these levels.

    Args:
        train: images of bytes.
        others: splits that must keep to them; those that are None are left out.
        folder: that they are of.

    Raises:
        UserError: if an image of another split does not.
    """
    given = [train, *(split for split in others if split is not None)]
    step = step_of_few(train.x)
    if step == 1:
        return 256, given
    levels = 255 // step + 1
    for split in given:
        for start in range(0, len(split), AT_ONCE):
            wrong = (split.x[start : start + AT_ONCE] % step).flatten(1).any(1).nonzero()
            if len(wrong):
                assert split.names is not None
                raise UserError(
                    f"{readable(folder)}/{split.names[start + int(wrong[0])]} has other values than the training "
                    f"images, {in_words(levels)}; data.levels=256 takes every byte for a level, data.levels={levels} "
                    "rounds to the nearest."
                )
    return levels, [replace(split, x=_in_steps(split.x, step)) for split in given]


def step_of_few(x_bchw: Tensor) -> int:
    """The largest distance of levels, of few, on which all bytes stand; 1 if it is none, or they are all the same."""
    steps = [cast(int, step_of(levels)) for levels in FEW_LEVELS]
    least, most = 255, 0
    for start in range(0, len(x_bchw), AT_ONCE):
        part = x_bchw[start : start + AT_ONCE]
        steps = [step for step in steps if not (part % step).any()]
        least, most = min(least, int(part.min())), max(most, int(part.max()))
        if not steps:
            return 1
    return steps[0] if least < most else 1


def _in_steps(x: Any, step: int) -> Tensor:
    """Bytes that stand on levels as these: of stored images, whenever they are read."""
    return cast("Tensor", x.in_steps(step)) if isinstance(x, Stored) else x // step


def in_words(levels: int) -> str:
    """Few levels, and the bytes that stand for them."""
    step = 255 // (levels - 1)
    return f"{levels} levels, " + ("0 and 255" if levels == 2 else f"0, {step}, {2 * step}, … 255")


def read_pictures(
    path: Path,
    count: int | None = None,
    how: Conversion = Conversion(),  # noqa: B008
    mend: str = "convert it to what the images of the run are",
) -> tuple[torch.Tensor, list[str]]:
    """A picture, or the first `count` of a folder in the order of their names: uint8 (N, C, H, W), and the names.

    Args:
        path: of the picture or folder.
        count: all if None.
        how: pictures become images.
        mend: what errors advise for what is not read.

    Raises:
        UserError: if there is none, or as `decoded`, or if one is unlike the first in size or mode.
    """
    if path.is_file():
        files, account = [path.name], None
        folder = path.parent
    elif path.is_dir():
        folder, (files, account) = path, list_files(path, "images", SUFFIXES, count)
    else:
        raise UserError(f"there is no picture or folder {readable(path)}; give one, or train, validation or test.")
    paths = [folder / name for name in files]
    with quiet():
        images = _decode(paths, _first(paths[0], how, mend), how, mend)
    if account is not None:
        account.tell(path)
    return torch.from_numpy(images), names_of(files).tolist()


def _first(file: Path, how: Conversion, mend: str | None = None) -> First:
    with quiet():
        return First(file, *decoded(file, how, mend))


def _decode(files: list[Path], like: First, how: Conversion, mend: str | None = None) -> np.ndarray:
    """uint8 of shape (N, C, H, W), filled by a few threads (decoders release the interpreter lock).

    Args:
        files: images.
        like: the first image of their set, in whose size and mode all must be.
        how: they become images.
        mend: as for `decoded`.
    """
    file, first, mode = like
    images = np.empty((len(files), *first.shape), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(files))):
            image, image_mode = decoded(files[index], how, mend)
            if image_mode != mode:
                to_one = "convert all images to one" + (" by data.mode=rgb or grey" if mend is None else "")
                raise UserError(f"{readable(files[index])} is {image_mode} but {readable(file)} is {mode}; {to_one}.")
            if image.shape != first.shape:
                by = ", as data.size=32 data.crop=centre does" if mend is None else ""
                raise UserError(
                    f"{readable(files[index])} is {image.shape[2]}×{image.shape[1]} but {readable(file)} is "
                    f"{first.shape[2]}×{first.shape[1]} (width×height); bring all images to one size{by}."
                )
            images[index] = image

    with quiet(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_chunk, range(0, len(files), CHUNK)):
            pass
    return images
