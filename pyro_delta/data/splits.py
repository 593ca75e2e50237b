"""Splits of a dataset, and the orders they are drawn in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.spec import ImageSpec
from pyro_delta.errors import UserError

TEST_SEED = 0
"""Seeds the order of every test split: runs with different seeds are compared on the same test images."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one split.

    Attributes:
        images: uint8 of shape (N, C, H, W).
        labels: int64 of shape (N,), or None for images without classes.
    """

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        """The number of images, N."""
        return len(self.images)

    def take(self, order: Tensor | slice) -> Split:
        """The images at the indices `order`, a slice or int64 of shape (M,), in that order."""
        return Split(self.images[order], None if self.labels is None else self.labels[order])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A dataset in memory.

    Every split comes in a shuffled, class-balanced order, so that any prefix of it is a fair sample.

    Attributes:
        spec: shape and levels of the images.
        train: what the model learns from.
        validation: held out of the training images, for choosing settings.
        test: the same images in the same order for every seed.
        name: the name the data was loaded by.
        classes: the name of each label, or None for images without classes.
    """

    spec: ImageSpec
    train: Split
    validation: Split
    test: Split
    name: str
    classes: tuple[str, ...] | None

    def split(self, name: str) -> Split:
        """The split called `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def split_of(images_bchw: np.ndarray, labels: np.ndarray | None) -> Split:
    """A `Split` that shares the memory of uint8 images (N, C, H, W) and copies the integer labels (N,)."""
    labels_b = None if labels is None else torch.from_numpy(labels.astype(np.int64))
    return Split(torch.from_numpy(np.ascontiguousarray(images_bchw)), labels_b)


def balanced_order(split: Split, seed: int) -> Tensor:
    """A random order of the images in which every prefix holds the classes in proportion, to about one image each.

    Without classes it is a plain random permutation.

    Returns:
        int64 of shape (N,).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    if split.labels is not None:
        shuffled = split.labels.numpy()[order]
        quantile = np.empty(len(order))
        for label in np.unique(shuffled):
            (members,) = np.nonzero(shuffled == label)
            # The i-th of m images of a class falls at random into the i-th of m equal parts of [0, 1).
            quantile[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
        order = order[np.argsort(quantile, kind="stable")]
    return torch.from_numpy(order)


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Divide a split into the images that are left, in a new order, and `count` held-out ones.

    Raises:
        UserError: if either part would be empty.
    """
    if len(split) < 2:
        raise UserError(
            f"{len(split)} training image cannot be divided, and one at least is held out for validation; add images."
        )
    if not 1 <= count < len(split):
        raise UserError(
            f"cannot hold {count} validation images out of {len(split)} training images; "
            f"ask for at least 1 and fewer than {len(split)}."
        )
    order = balanced_order(split, seed)
    return split.take(order[count:]), split.take(order[:count])
