"""Folders of image files: `train/<class>/*.png` and `test/<class>/*.png`, or `train/*.png` and `test/*.png`."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from pyro_delta.data.images import cache
from pyro_delta.data.splits import Split, split_of
from pyro_delta.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
CHANNELS = {"L": 1, "RGB": 3}
CHUNK = 256  # files per task: enough to make the hand-over between threads cheap


def read_folder(folder: Path) -> tuple[Split, Split, tuple[str, ...] | None]:
    """Training split, test split and classes of a folder; both splits in the order of the class and file names.

    The decoded images are cached, and the cache serves as long as no file changes its name, size or time.

    Raises:
        UserError: if the folder or a split is missing, empty or mixes class folders with images, if the two splits have
            different classes, or if an image is damaged, neither grey nor RGB, or unlike the first in size or mode.
    """
    if not folder.is_dir():
        raise UserError(f"there is no data folder {folder}; give one that holds train/ and test/.")
    train, classes = _list_split(folder / "train")
    test, test_classes = _list_split(folder / "test")
    if classes != test_classes:
        raise UserError(
            f"{folder / 'train'} and {folder / 'test'} have different classes ({_difference(classes, test_classes)}); "
            "give both the same class folders."
        )

    files = [file for files_of_class in train + test for file in files_of_class]
    key = cache.digest(folder, files)
    images = cache.read(folder, key)
    if images is None:
        images = _decode(files)
        cache.write(folder, key, images)

    count = sum(len(files_of_class) for files_of_class in train)
    train_labels, test_labels = (None if classes is None else _labels(listed) for listed in (train, test))
    return split_of(images[:count], train_labels), split_of(images[count:], test_labels), classes


def read_pictures(path: Path, count: int | None = None) -> tuple[torch.Tensor, list[str]]:
    """A picture, or the first `count` of a folder in the order of their names: uint8 (N, C, H, W), and the names.

    Raises:
        UserError: if there is none, or one is damaged, neither grey nor RGB, or unlike the first in size or mode.
    """
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = _require_images(path, _list_folder(path)[0])[:count]
    else:
        raise UserError(f"there is no picture or folder {path}; give one, or train, validation or test.")
    return torch.from_numpy(_decode(files)), [file.name for file in files]


def _list_split(split: Path) -> tuple[list[list[Path]], tuple[str, ...] | None]:
    """The files of each class with the names of the classes, or one list of files and None."""
    if not split.is_dir():
        raise UserError(f"there is no folder {split}; images belong into train/ and test/ of the data folder.")
    images, folders = _list_folder(split)
    if images and folders:
        raise UserError(f"{split} holds both images ({images[0].name}) and folders ({folders[0].name}); keep one kind.")
    if not folders:
        return [_require_images(split, images)], None
    return [_require_images(folder, _list_folder(folder)[0]) for folder in folders], tuple(f.name for f in folders)


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Images and subfolders, each sorted by name, without the hidden ones and the like of `__MACOSX`."""
    images: list[Path] = []
    folders: list[Path] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith((".", "__")):
            continue
        if entry.is_dir():
            folders.append(Path(entry.path))
        elif entry.name.lower().endswith(SUFFIXES):
            images.append(Path(entry.path))
    return images, folders


def _require_images(folder: Path, images: list[Path]) -> list[Path]:
    if not images:
        raise UserError(f"{folder} holds no images; put files ending in {', '.join(SUFFIXES)} there.")
    return images


def _difference(train: tuple[str, ...] | None, test: tuple[str, ...] | None) -> str:
    if train is None or test is None:
        return f"only {'train' if test is None else 'test'}/ has class folders"
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    sides = (("train", only_train), ("test", only_test))
    return ", ".join(f"only {split}/ has {names[0]!r}" for split, names in sides if names)


def _labels(files_by_class: list[list[Path]]) -> np.ndarray:
    return np.repeat(np.arange(len(files_by_class)), [len(files) for files in files_by_class])


def _decode(files: list[Path]) -> np.ndarray:
    """uint8 of shape (N, C, H, W), filled by a few threads (decoders release the interpreter lock)."""
    first, mode = _read_image(files[0])
    height, width = first.shape[:2]
    images = np.empty((len(files), CHANNELS[mode], height, width), dtype=np.uint8)

    def decode_chunk(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(files))):
            image, image_mode = _read_image(files[index])
            if image.shape[:2] != (height, width):
                raise UserError(
                    f"{files[index]} is {image.shape[1]}×{image.shape[0]} but {files[0]} is {width}×{height} "
                    "(width×height); bring all images to one size."
                )
            if image_mode != mode:
                raise UserError(f"{files[index]} is {image_mode} but {files[0]} is {mode}; convert all images to one.")
            images[index] = image.reshape(height, width, -1).transpose(2, 0, 1)

    starts = range(0, len(files), CHUNK)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        done = pool.map(decode_chunk, starts)
        for _ in track(
            done,
            "decoding images",
            total=len(starts),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        ):
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
