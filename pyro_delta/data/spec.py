"""What a model must know of its images, and the table of datasets. Free of torch, so that both are cheap to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pyro_delta.errors import unknown_name


@dataclass(frozen=True)
class ImageSpec:
    """Size and range of the images of a dataset: integers 0 … levels−1 of shape (channels, height, width).

    Raises:
        ValueError: if a size is below 1, or `levels` is below 2 or above 256 (images are bytes).
    """

    channels: int
    height: int
    width: int
    levels: int

    def __post_init__(self) -> None:
        """Refuse sizes that no image has."""
        if min(self.shape) < 1:
            raise ValueError(f"image shape (C, H, W) = {self.shape}: every size must be at least 1")
        if not 2 <= self.levels <= 256:
            raise ValueError(f"levels = {self.levels}: an image of bytes has 2 to 256 levels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width

    @property
    def dims(self) -> int:
        """C·H·W, the number of integers in an image: the divisor of bits/dim."""
        return self.channels * self.height * self.width


class DatasetInfo(NamedTuple):
    """A line of the table of datasets."""

    description: str
    preset: str
    spec: ImageSpec | None
    """None where only the images tell"""


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        "handwritten digits, 8×8 grey, 17 levels, 1797 images (within scikit-learn)", "digits", ImageSpec(1, 8, 8, 17)
    ),
    "photos": DatasetInfo(
        "32×32 colour crops of two photographs, 4400 images (within scikit-learn)", "photos", ImageSpec(3, 32, 32, 256)
    ),
    "cifar10": DatasetInfo(
        "CIFAR-10, 32×32 colour, 60 000 images (downloaded unless there)", "cifar10-small", ImageSpec(3, 32, 32, 256)
    ),
    "mnist": DatasetInfo(
        "MNIST, 28×28 grey, 70 000 images (downloaded unless there)", "mnist", ImageSpec(1, 28, 28, 256)
    ),
    "folder:PATH": DatasetInfo(
        "your own images: PATH/train and PATH/test, with or without class folders", "photos", None
    ),
}
"""Name → description, default preset and specification, in the order in which a list of datasets should show them."""


def dataset_info(name: str) -> DatasetInfo:
    """The line of the table for a dataset's name.

    Raises:
        UserError: if there is none; the nearest name is given.
    """
    line = "folder:PATH" if name.startswith("folder:") and name != "folder:" else name
    if line not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[line]
