"""Folders of files, a datum each, as people keep them: splits, classes, files at any depth, and an account of all."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from pyro_delta.errors import UserError

LOG = logging.getLogger("pyro_delta.data")
"""What is told of data: commands print it on stderr; in Python what was left out is a warning, the rest is info."""
VALIDATION = ("val", "valid", "validation")
OTHER_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(VALIDATION, "val"),
}
"""Folders that are meant for a split, in small letters, and what the folder of that split is called."""
OF_SYSTEMS = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}
"""Folders that no person made, in small letters; like hidden ones they are not looked into."""
FILES_OF_SYSTEMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"}
CACHE = ".pyro-delta-cache"
"""The folder beside data that this library keeps: no file of theirs."""
KINDS_TOLD = 8
"""Of files that are left out; of more, the number."""


@dataclass
class Account:
    """Of all files below a folder, how many are data, and what the others are.

    Attributes:
        read: files that are data.
        left: others, by the ending of their names, or by the folder that they are in.
    """

    read: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def tell(self, folder: Path, test: int | None = None) -> None:
        """Says in a line what became of every file, and in another one what is for test.

        Args:
            folder: of the files.
            test: files that are for test, where the folder did not say which.
        """
        if test is not None:
            words = "%s has no train/ and test/: %d of its %d files, the same for every seed, are for test"
            LOG.warning(words, readable(folder), test, self.read)
        count = self.read + self.left.total()
        if not self.left:
            LOG.info("%s: read %d of %d files", readable(folder), self.read, count)
            return
        LOG.warning("%s: left out %d of %d files: %s", readable(folder), self.left.total(), count, told(self.left))


@dataclass(frozen=True)
class Listed:
    """Files of the splits of a folder, by their names below it, in the order of class and file names.

    Attributes:
        train: files of each class, or one list of files.
        validation: the same, of a folder of its own; None where there is none.
        test: the same; None where the folder is not divided.
        classes: by name, or None.
        account: of all files.
    """

    train: list[list[str]]
    validation: list[list[str]] | None
    test: list[list[str]] | None
    classes: tuple[str, ...] | None
    account: Account

    @property
    def files(self) -> list[str]:
        """All of them: training, validation, test."""
        return list(chain(*self.train, *(self.validation or []), *(self.test or [])))

    def ranges(self) -> tuple[range, range | None, range | None]:
        """Where the files of the three splits stand among all."""
        counts = [None if split is None else sum(map(len, split)) for split in (self.train, self.validation, self.test)]
        ends = np.cumsum([count or 0 for count in counts]).tolist()
        found = [None if count is None else range(end - count, end) for count, end in zip(counts, ends, strict=True)]
        assert found[0] is not None
        return found[0], found[1], found[2]


def list_splits(folder: Path, what: str, suffixes: Sequence[str]) -> Listed:
    """Files of `folder/train`, `folder/test` and, if it is there, `folder/val`; else those of the folder itself.

    Where each of them holds folders, these are the classes, and files at any depth below are theirs.

    Args:
        folder: that holds the splits, or files or classes that are not divided.
        what: the files are, such as images.
        suffixes: of their names.

    Raises:
        UserError: if a folder is missing, empty, mixes class folders with files, or cannot be read, if the splits have
            different classes, or if a file is a link to nothing.
    """
    if not folder.is_dir():
        raise UserError(f"there is no data folder {readable(folder)}; give one that holds train/ and test/.")
    account = Account()
    _, folders = list_folder(folder)
    named = [name for name in folders if name.casefold() in OTHER_WORDS]
    if not named:
        listed, classes = _list_split(folder, "", what, suffixes, account)
        return Listed(listed, None, None, classes, account)
    known = ("train", "test", *VALIDATION)
    if wrong := [name for name in named if name not in known and OTHER_WORDS[name.casefold()] not in folders]:
        raise UserError(
            f"{readable(folder)} holds {readable(wrong[0])}/, which is not the name of a split; call it "
            f"{OTHER_WORDS[wrong[0].casefold()]}/."
        )
    held_out = [name for name in VALIDATION if name in folders]
    if len(held_out) > 1:
        raise UserError(f"{readable(folder)} holds both {held_out[0]}/ and {held_out[1]}/; keep one for validation.")
    found, classes_of = {}, {}
    for name in ("train", "test", *held_out):
        if name not in folders:
            raise UserError(
                f"there is no folder {readable(folder / name)}; {what} belong into train/ and test/ of the data folder."
            )
        found[name], classes_of[name] = _list_split(folder, name, what, suffixes, account)
        if classes_of[name] != classes_of["train"]:
            raise UserError(
                f"{readable(folder / 'train')} and {readable(folder / name)} have different classes "
                f"({_difference(classes_of['train'], classes_of[name], name)}); give both the same class folders."
            )
    _chosen(folder, list_folder(folder, account)[0], (), account)
    for name in folders:
        if name not in found:
            account.left[f"in {readable(name)}/"] += _count(folder / name)
    account.left = +account.left  # without folders of no file
    validation = found[held_out[0]] if held_out else None
    return Listed(found["train"], validation, found["test"], classes_of["train"], account)


def _list_split(
    folder: Path, name: str, what: str, suffixes: Sequence[str], account: Account
) -> tuple[list[list[str]], tuple[str, ...] | None]:
    """The files of each class with the names of the classes, or one list of files and None."""
    split, known = folder / name, account.left.copy()
    files, folders = list_folder(split, account)
    chosen = _chosen(split, files, suffixes, account)
    before = f"{name}/" if name else ""
    if chosen and folders:
        raise UserError(
            f"{readable(split)} holds both {what} ({readable(chosen[0])}) and folders ({readable(folders[0])}); "
            "keep one kind."
        )
    if not folders:
        _check_some(split, chosen, what, suffixes, account.left - known)
        return [[before + file for file in chosen]], None
    listed = []
    for label in folders:
        known = account.left.copy()
        found = _below(split / label, suffixes, account)
        _check_some(split / label, found, what, suffixes, account.left - known)
        listed.append([f"{before}{label}/{file}" for file in found])
    return listed, tuple(map(readable, folders))


def list_files(folder: Path, what: str, suffixes: Sequence[str], count: int | None = None) -> tuple[list[str], Account]:
    """Names of files at any depth below a folder, those of the folder first, and an account of all.

    Args:
        folder: to be looked into.
        what: the files are, such as images.
        suffixes: of their names.
        count: the first so many; all if None.

    Raises:
        UserError: if there is none, or as `list_splits`.
    """
    account = Account()
    files = _below(folder, suffixes, account)
    _check_some(folder, files, what, suffixes, account.left)
    account.read = len(files[:count])
    account.left += Counter({"not asked for": len(files) - account.read})
    return files[:count], account


def list_folder(folder: Path, account: Account | None = None) -> tuple[list[str], list[str]]:
    """Names of files and of subfolders, each sorted, without those that are hidden or a system's.

    Args:
        folder: to be looked into, not below.
        account: that counts the files of the folders that are passed over.

    Raises:
        UserError: if it cannot be read.
    """
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    files.append(entry.name)
                elif not _is_hidden(entry.name) and entry.name.casefold() not in OF_SYSTEMS:
                    folders.append(entry.name)
                elif account is not None and entry.name != CACHE and (count := _count(Path(entry.path))):
                    account.left[f"in {readable(entry.name)}/"] += count
    except OSError as error:
        raise UserError(f"cannot read {readable(folder)} ({error.strerror}); give a folder that can be read.") from None
    return sorted(files), sorted(folders)


def _below(folder: Path, suffixes: Sequence[str], account: Account, above: tuple[str, ...] = ()) -> list[str]:
    """Names of the files at any depth; links are followed, but for those that lead back."""
    real = os.path.realpath(folder)
    if real in above:
        raise UserError(f"{readable(folder)} is a link that leads back to {readable(real)}; remove it.")
    files, folders = list_folder(folder, account)
    found = _chosen(folder, files, suffixes, account)
    for name in folders:
        found += [f"{name}/{file}" for file in _below(folder / name, suffixes, account, (*above, real))]
    return found


def _chosen(folder: Path, files: Sequence[str], suffixes: Sequence[str], account: Account) -> list[str]:
    """Of the files of a folder those that are data; the others are counted."""
    found = []
    for name in files:
        if _is_hidden(name) or not name.lower().endswith(tuple(suffixes)):
            account.left[_kind(name)] += 1
            continue
        if not (folder / name).is_file():
            kind = "a link to nothing" if (folder / name).is_symlink() else "not a file"
            raise UserError(f"{readable(folder / name)} is {kind}; remove it.")
        found.append(name)
    account.read += len(found)
    return found


def _check_some(folder: Path, files: Sequence[str], what: str, suffixes: Sequence[str], left: Counter[str]) -> None:
    if not files:
        listed = suffixes if len(suffixes) < 6 else [*suffixes[:5], "…"]
        others = f", but {told(left)}" if left else ""
        raise UserError(f"{readable(folder)} holds no {what}{others}; put files ending in {', '.join(listed)} there.")


def told(left: Counter[str]) -> str:
    """Numbers and kinds of files in words, the most frequent first."""
    kinds = [f"{number} {kind}" for kind, number in sorted(left.items(), key=lambda item: (-item[1], item[0]))]
    return ", ".join(kinds[:KINDS_TOLD] if len(kinds) <= KINDS_TOLD else [*kinds[:KINDS_TOLD], "and others"])


def _count(folder: Path) -> int:
    """Files at any depth below a folder."""
    return sum(len(files) for _, _, files in os.walk(folder))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _kind(name: str) -> str:
    """By what a file that is left out is counted."""
    if name.casefold() in FILES_OF_SYSTEMS:
        return readable(name)
    if _is_hidden(name):
        return "hidden"
    return readable(os.path.splitext(name)[1].lower()) or "without an ending"


def readable(name: str | Path) -> str:
    """A name or path as text that every file can hold: bytes that are no UTF-8 stand as their numbers."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def labels_of(files_by_class: Sequence[Sequence[str]]) -> np.ndarray:
    """The class of each file, (N,)."""
    return np.repeat(np.arange(len(files_by_class)), [len(files) for files in files_by_class])


def labels_in(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """The class of each file, by the first folder of its name that is called so; None where there is none."""
    numbers = {name: number for number, name in enumerate(classes)}
    return [next((numbers[part] for part in name.split("/")[:-1] if part in numbers), None) for name in names]


def names_of(files: Sequence[str]) -> np.ndarray:
    """Names as the data of a split keep them, (N,)."""
    return np.array([readable(file) for file in files], dtype=object)


def _difference(train: tuple[str, ...] | None, other: tuple[str, ...] | None, name: str) -> str:
    if train is None or other is None:
        return f"only {'train' if other is None else name}/ has class folders"
    sides = (("train", sorted(set(train) - set(other))), (name, sorted(set(other) - set(train))))
    return ", ".join(f"only {split}/ has {names[0]!r}" for split, names in sides if names)
