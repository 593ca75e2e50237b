"""Folders of files, a datum each: `train/<class>/*` and `test/<class>/*`, or `train/*` and `test/*`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_delta.errors import UserError


def list_splits(
    folder: Path, what: str, suffixes: Sequence[str]
) -> tuple[list[list[str]], list[list[str]], tuple[str, ...] | None]:
    """Training files, test files and classes of a folder; files of each class, or one list of files and None.

    Files are named below `folder`, in the order of the class and file names.

    Args:
        folder: that holds both splits.
        what: the files are, such as images.
        suffixes: of their names.

    Raises:
        UserError: if the folder or a split is missing, empty or mixes class folders with files, or if the two splits
            have different classes.
    """
    if not folder.is_dir():
        raise UserError(f"there is no data folder {folder}; give one that holds train/ and test/.")
    train, classes = _list_split(folder, "train", what, suffixes)
    test, test_classes = _list_split(folder, "test", what, suffixes)
    if classes != test_classes:
        raise UserError(
            f"{folder / 'train'} and {folder / 'test'} have different classes ({_difference(classes, test_classes)}); "
            "give both the same class folders."
        )
    return train, test, classes


def _list_split(
    folder: Path, name: str, what: str, suffixes: Sequence[str]
) -> tuple[list[list[str]], tuple[str, ...] | None]:
    """The files of each class with the names of the classes, or one list of files and None."""
    split = folder / name
    if not split.is_dir():
        raise UserError(f"there is no folder {split}; {what} belong into train/ and test/ of the data folder.")
    files, folders = list_folder(split, suffixes)
    if files and folders:
        raise UserError(f"{split} holds both {what} ({files[0]}) and folders ({folders[0]}); keep one kind.")
    if not folders:
        return [[f"{name}/{file}" for file in list_files(split, what, suffixes)]], None
    listed = [list_files(split / label, what, suffixes) for label in folders]
    return [[f"{name}/{label}/{file}" for file in files] for label, files in zip(folders, listed, strict=True)], tuple(
        folders
    )


def list_folder(folder: Path, suffixes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of files and of subfolders, each sorted, without the hidden ones and the like of `__MACOSX`."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__")):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(tuple(suffixes)):
                files.append(entry.name)
    return sorted(files), sorted(folders)


def list_files(folder: Path, what: str, suffixes: Sequence[str]) -> list[str]:
    """Names of files, sorted.

    Raises:
        UserError: if there is none.
    """
    files, _ = list_folder(folder, suffixes)
    if not files:
        raise UserError(f"{folder} holds no {what}; put files ending in {', '.join(suffixes)} there.")
    return files


def labels_of(files_by_class: Sequence[Sequence[str]]) -> np.ndarray:
    """The class of each file, (N,)."""
    return np.repeat(np.arange(len(files_by_class)), [len(files) for files in files_by_class])


def _difference(train: tuple[str, ...] | None, test: tuple[str, ...] | None) -> str:
    if train is None or test is None:
        return f"only {'train' if test is None else 'test'}/ has class folders"
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    sides = (("train", only_train), ("test", only_test))
    return ", ".join(f"only {split}/ has {names[0]!r}" for split, names in sides if names)
