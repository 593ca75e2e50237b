"""Splits of data, in memory or in a file, and the orders they are drawn in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.folders import readable
from pyro_delta.data.stored import Stored
from pyro_delta.errors import UserError
from pyro_delta.protocol import Batch, Spec
from pyro_delta.validation import Seed

TEST_SEED = 0
"""Seeds the order of every test split: runs with different seeds are compared on the same test data."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """Data of one split.

    Attributes:
        x: the data, (N, *shape); a `pyro_delta.data.stored.Stored` stands for a tensor that memory should not hold.
        labels: int64 of shape (N,), or None for data without classes.
        extras: what goes with x in every batch, by name, each of N entries: lengths, masks, covariates.
        key: the name of x itself in a batch that is a dict.
        names: of the data, text of shape (N,), where they have some, such as those of files; programs do not see them.
        surplus: what `measures` of the spec counts too much of each datum, by name, (N,): of a part of a document that
            was cut, an end that the document does not have. Programs do not see it.
    """

    x: Tensor
    labels: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    key: str = "x"
    names: np.ndarray | None = None
    surplus: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of data, N."""
        return len(self.x)

    def take(self, order: Tensor | slice) -> Split:
        """The data at the indices `order`, a slice or int64 of shape (M,), in that order."""
        extras = {name: values[order] for name, values in self.extras.items()}
        x = self.x.part(order) if isinstance(self.x, Stored) else self.x[order]
        names = None if self.names is None else self.names[order.cpu().numpy() if isinstance(order, Tensor) else order]
        surplus = {name: values[order] for name, values in self.surplus.items()}
        return Split(x, None if self.labels is None else self.labels[order], extras, self.key, names, surplus)

    def batch(self, order: Tensor | slice = slice(None)) -> Batch:
        """The data at the indices as programs take them: x, or a dict of x and the extras."""
        if not self.extras and self.key == "x":
            return self.x[order]
        return {self.key: self.x[order]} | {name: values[order] for name, values in self.extras.items()}

    def to(self, device: torch.device | str) -> Split:
        """The same data on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        extras = {name: values.to(device) for name, values in self.extras.items()}
        return replace(self, x=self.x.to(device), labels=labels, extras=extras)


@dataclass(frozen=True, eq=False)
class Splits:
    """Data, and a base class for programs of data.

    Every split comes in a shuffled, class-balanced order, so that any prefix of it is a fair sample.

    Attributes:
        spec: of every datum. A program whose spec is known before any file is read has it as a class attribute, too.
        train: what the model learns from.
        validation: held out of the training data, for choosing settings.
        test: the same data in the same order for every seed.
        classes: the name of each label, or None for data without classes.
    """

    spec: Spec
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] | None = None

    preset: ClassVar[str] = "default"
    """Settings that the data are trained with when nothing else is said."""

    def split(self, name: str) -> Split:
        """The split called `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


class Given(Splits):
    """(data that were handed to a training in Python)

    Args:
        levels: that the integers of an array have, 0 … levels − 1; found out where none is said.
    """

    def __init__(
        self, *, root: str = "data", validation: int | None = None, seed: Seed = 0, levels: int | None = None
    ) -> None:
        raise UserError(
            "the data of this run were given in Python and are not kept with it; give them again, as in "
            "pyro_delta.check(run, data=…), or train with data that have a name."
        )


def split_of(x: np.ndarray, labels: np.ndarray | None) -> Split:
    """A `Split` that shares the memory of an array (N, *shape) and copies the integer labels (N,)."""
    labels_b = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Split(torch.from_numpy(np.ascontiguousarray(x)), labels_b)


def assembled(spec: Spec, train: Split, test: Split, validation: int, seed: int) -> tuple[Spec, Split, Split, Split]:
    """What `Splits` is made of, from a training and a test split as they were read.

    Args:
        spec: of the data.
        train: of which the validation data are held out.
        test: reordered alike for every seed.
        validation: number of validation data.
        seed: of their choice.

    Raises:
        UserError: as `hold_out`.
    """
    left, held_out = hold_out(train, validation, seed)
    return spec, left, held_out, reordered(test, TEST_SEED)


def with_validation(
    spec: Spec, train: Split, held_out: Split, test: Split, count: int | None, seed: int
) -> tuple[Spec, Split, Split, Split]:
    """What `Splits` is made of, from three splits as they were read.

    Args:
        spec: of the data.
        train: in an order of the seed.
        held_out: of which the validation data are so many.
        test: reordered alike for every seed.
        count: of validation data; all if None.
        seed: of their choice.

    Raises:
        UserError: if there are not so many.
    """
    chosen = reordered(held_out, seed).take(slice(chosen_count(held_out, count)))
    return spec, reordered(train, seed), chosen, reordered(test, TEST_SEED)


def chosen_count(held_out: Split, count: int | None) -> int:
    """So many of the data of a validation split, all of them if None.

    Raises:
        UserError: if there are fewer.
    """
    count = len(held_out) if count is None else count
    if not 1 <= count <= len(held_out):
        raise UserError(f"there are {len(held_out)} validation data, not {count}; ask for 1 to {len(held_out)}.")
    return count


def reordered(split: Split, seed: int) -> Split:
    """The data in a `balanced_order`."""
    return split.take(balanced_order(split, seed))


def balanced_order(split: Split, seed: int) -> Tensor:
    """A random order of the data in which every prefix holds the classes in proportion, to about one datum each.

    Without classes it is a plain random permutation.

    Returns:
        int64 of shape (N,).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    if split.labels is not None:
        shuffled = split.labels.numpy()[order]
        by_label = np.argsort(shuffled, kind="stable")
        _, first, sizes = np.unique(shuffled[by_label], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(first, sizes)
        # The i-th of m data of a class falls at random into the i-th of m equal parts of [0, 1).
        quantile = np.empty(len(order))
        quantile[by_label] = (rank + rng.random(len(order))) / np.repeat(sizes, sizes)
        order = order[np.argsort(quantile, kind="stable")]
    return torch.from_numpy(order)


def subset(split: Split, count: int | None, seed: int) -> Split:
    """So many random data of a split, in their order there; all of them if `count` is None.

    Raises:
        UserError: if there are fewer.
    """
    if count is None:
        return split
    if not 1 <= count <= len(split):
        raise UserError(f"{count} data are asked for, but the split has {len(split)}; give 1 to {len(split)}.")
    chosen = np.random.default_rng(seed).permutation(len(split))[:count]
    return split.take(torch.from_numpy(np.sort(chosen)))


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Divide a split into the data that are left, in a new order, and `count` held-out ones.

    Raises:
        UserError: if either part would be empty.
    """
    if len(split) < 2:
        raise UserError(
            "too few data for training, validation and test, which take one each at least: "
            f"{len(split)} {'is' if len(split) == 1 else 'are'} left to divide; add data."
        )
    if not 1 <= count < len(split):
        raise UserError(
            f"cannot hold {count} validation data out of {len(split)} training data; "
            f"ask for at least 1 and fewer than {len(split)}."
        )
    order = balanced_order(split, seed)
    return split.take(order[count:]), split.take(order[:count])


def with_test(train: Split, test: Split | None, folder: Path, what: str) -> tuple[Split, Split]:
    """Training and test data of a folder; where it has no test data a tenth of all, the same for every seed.

    Args:
        train: data of the folder, or those of its training split.
        test: those of its test split, or None.
        folder: in messages.
        what: they are, such as images.

    Raises:
        UserError: if there are too few.
    """
    if test is not None:
        return train, test
    if len(train) < len(SPLITS):
        held = f"1 {what.removesuffix('s')}" if len(train) == 1 else f"{len(train)} {what}"
        raise UserError(
            f"{readable(folder)} holds {held}; training, validation and test take one each at least, so put more there."
        )
    return hold_out(train, max(1, len(train) // 10), TEST_SEED)


def split_digest(split: Any) -> str:
    """What tells a split from all others: names, shapes, types and contents of x, of what goes with it, and of labels.

    It takes a second for some two gigabytes. Of data in a file it is of the checksums of all: they are known.
    """
    found = hashlib.sha256()
    labels = getattr(split, "labels", None)
    named = {"x": split.x, **(getattr(split, "extras", None) or {}), **({} if labels is None else {"labels": labels})}
    for name, given in named.items():
        if isinstance(given, Stored):
            found.update(f"{name} {tuple(given.shape)} {given.dtype}".encode() + given.sums().tobytes())
            continue
        values = torch.as_tensor(given).cpu().contiguous()
        found.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        found.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def fingerprints(data: Any) -> dict[str, dict[str, Any]]:
    """Of every split the number of data, the names of what goes with them, and its digest."""
    parts = {name: getattr(data, name) for name in SPLITS}
    return {
        name: {
            "count": len(part.x),
            "names": ["x", *(getattr(part, "extras", None) or {})],
            "digest": split_digest(part),
        }
        for name, part in parts.items()
    }


def size_of(batch: Any) -> int:
    """Number of data in a batch."""
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch)


def mapped(batch: Batch, change: Any) -> Batch:
    """A batch of which every tensor has gone through a function."""
    if isinstance(batch, Mapping):
        return {name: change(value) for name, value in batch.items()}
    return change(batch)
