"""Folders of image files: `train/<class>/*.png` and `test/<class>/*.png`, or `train/*.png` and `test/*.png`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from pyro_delta.data.folders import labels_of, list_files, list_splits
from pyro_delta.data.images import cache
from pyro_delta.data.splits import Split, split_of
from pyro_delta.data.stored import Stored, StoredFile
from pyro_delta.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
CHANNELS = {"L": 1, "RGB": 3}
CHUNK = 128  # files per task: enough to make the hand-over between threads cheap
PART = 1024
"""Files that are decoded, and written to the cache, together."""
IN_MEMORY = 100_000
"""Images of a folder that are held in memory."""


class First(NamedTuple):
    """The first image of a set: its file, pixels (H, W) or (H, W, 3), and mode."""

    file: Path
    pixels: np.ndarray
    mode: str


def read_folder(folder: Path) -> tuple[Split, Split, tuple[str, ...] | None]:
    """Training split, test split and classes of a folder; both splits in the order of the class and file names.

    The decoded images are cached, and the cache serves as long as no file changes its name, size or time. More than
    `IN_MEMORY` images are not held in memory: they are read from the cache as they are asked for.

    Raises:
        UserError: if the folder or a split is missing, empty or mixes class folders with images, if the two splits have
            different classes, or if an image is damaged, neither grey nor RGB, or unlike the first in size or mode.
    """
    train, test, classes = list_splits(folder, "images", SUFFIXES)
    count, in_all = sum(map(len, train)), sum(map(len, train + test))
    files = [name for names in train + test for name in names]
    images = cache.converted(folder, parts_of(folder, files), in_memory=in_all <= IN_MEMORY).images
    train_labels, test_labels = (None if classes is None else labels_of(listed) for listed in (train, test))
    return part_of(images, 0, count, train_labels), part_of(images, count, in_all, test_labels), classes


def parts_of(folder: Path, files: Sequence[str]) -> list[cache.Part]:
    """Image files as parts of a set, by their names below a folder."""
    first = lru_cache(1)(lambda: First(folder / files[0], *_read_image(folder / files[0])))

    def part(names: Sequence[str]) -> cache.Part:
        return cache.Part(
            cache.digest(folder, names), lambda: (_decode([folder / name for name in names], first()), None)
        )

    return [part(files[start : start + PART]) for start in range(0, len(files), PART)]


def part_of(images: np.ndarray | StoredFile, begin: int, end: int, labels: np.ndarray | None) -> Split:
    """A split of the images from `begin` up to, without, `end`, with their labels."""
    if not isinstance(images, StoredFile):
        return split_of(images[begin:end], labels)
    labels_b = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Split(cast("torch.Tensor", Stored(images, torch.arange(begin, end))), labels_b)


def read_pictures(path: Path, count: int | None = None) -> tuple[torch.Tensor, list[str]]:
    """A picture, or the first `count` of a folder in the order of their names: uint8 (N, C, H, W), and the names.

    Raises:
        UserError: if there is none, or one is damaged, neither grey nor RGB, or unlike the first in size or mode.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = [path / name for name in list_files(path, "images", SUFFIXES)[:count]]
    else:
        raise UserError(f"there is no picture or folder {path}; give one, or train, validation or test.")
    return torch.from_numpy(_decode(files, First(files[0], *_read_image(files[0])))), [file.name for file in files]


def _decode(files: list[Path], like: First) -> np.ndarray:
    """uint8 of shape (N, C, H, W), filled by a few threads (decoders release the interpreter lock).

    Args:
        files: images.
        like: the first image of their set, in whose size and mode all must be.
    """
    file, first, mode = like
    height, width = first.shape[:2]
    images = np.empty((len(files), CHANNELS[mode], height, width), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(files))):
            image, image_mode = _read_image(files[index])
            if image.shape[:2] != (height, width):
                raise UserError(
                    f"{files[index]} is {image.shape[1]}×{image.shape[0]} but {file} is {width}×{height} "
                    "(width×height); bring all images to one size."
                )
            if image_mode != mode:
                raise UserError(f"{files[index]} is {image_mode} but {file} is {mode}; convert all images to one.")
            images[index] = image.reshape(height, width, -1).transpose(2, 0, 1)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_chunk, range(0, len(files), CHUNK)):
            pass
    return images


def _read_image(file: Path) -> tuple[np.ndarray, str]:
    """One decoded image, uint8 of shape (H, W) or (H, W, 3), and its mode."""
    try:
        with Image.open(file) as image:
            mode, pixels = image.mode, np.asarray(image)
    except Exception as error:  # each decoder has its own ways to fail on a damaged file
        raise UserError(f"{file} is not a readable image ({type(error).__name__}); replace or remove it.") from error
    if mode not in CHANNELS:
        raise UserError(f"{file} has mode {mode}, which is neither grey (L) nor RGB; convert it to one of them.")
    return pixels, mode
