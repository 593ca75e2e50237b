"""ImageNet at 32×32 [1]: its release in pickles, in `.npz` files, and that of the original paper in image files.

References:
    1. P. Chrabaszcz et al., "A Downsampled Variant of ImageNet as an Alternative to the CIFAR datasets", 2017.
    2. A. van den Oord et al., "Pixel Recurrent Neural Networks", ICML 2016 (the images without labels).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyro_delta.data.folders import list_folder
from pyro_delta.data.images import cache
from pyro_delta.data.images.decoding import SUFFIXES
from pyro_delta.data.images.folder import part_of, parts_of
from pyro_delta.data.images.pickles import unpickled
from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.data.splits import Splits, assembled
from pyro_delta.errors import UserError, in_a_line
from pyro_delta.validation import Seed

BATCHES = (*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data")
FOLDERS = ("train_32x32", "valid_32x32")
CLASSES = 1000
SHAPE = (3, 32, 32)


class ImageNet32(Splits):
    """ImageNet 32×32, 1.3 million colour images (not downloaded; pickles, .npz or image files of its releases)

    Args:
        root: the folder that holds `imagenet32`, or its files themselves.
        validation: number of validation images, of the training images. The release's own are the test images.
        seed: of their choice.
    """

    preset = "cifar10-small"
    spec = ImageSpec(*SHAPE, 256)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        folder = Path(root).expanduser()
        if (folder / "imagenet32").is_dir():
            folder = folder / "imagenet32"
        parts, of_train = _batches(folder) or _files(folder) or _nothing(folder)
        kept = cache.converted(folder, parts, in_memory=False)
        shape = tuple(kept.images.shape[1:])
        if shape != SHAPE:
            raise UserError(f"the images of {folder} have shape (C, H, W) = {shape}; those of ImageNet 32×32 {SHAPE}.")
        count, in_all = sum(kept.counts[:of_train]), sum(kept.counts)
        labels = (None, None) if kept.labels is None else (kept.labels[:count], kept.labels[count:])
        train, test = part_of(kept.images, 0, count, labels[0]), part_of(kept.images, count, in_all, labels[1])
        names = None if kept.labels is None else tuple(str(label + 1) for label in range(CLASSES))
        held_out = 5000 if validation is None else validation
        super().__init__(*assembled(self.spec, train, test, held_out, seed), names)


def _batches(folder: Path) -> tuple[list[cache.Part], int] | None:
    """The files of the downsampled release as parts, and how many are of the training split; None if there are none."""
    for suffix in ("", ".npz"):
        names = [f"{name}{suffix}" for name in BATCHES]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing == names:
            continue
        if missing:
            raise UserError(f"{folder} lacks {', '.join(missing)} of ImageNet 32×32; put all {len(names)} files there.")
        return [_part(folder, name) for name in names], len(names) - 1
    return None


def _files(folder: Path) -> tuple[list[cache.Part], int] | None:
    """The same of the original release: image files."""
    missing = [name for name in FOLDERS if not (folder / name).is_dir()]
    if missing == list(FOLDERS):
        return None
    if missing:
        raise UserError(f"{folder} lacks the folder {missing[0]} of ImageNet 32×32; put it there.")
    listed = [
        [f"{name}/{image}" for image in list_folder(folder / name)[0] if image.lower().endswith(SUFFIXES)]
        for name in FOLDERS
    ]
    for name, images in zip(FOLDERS, listed, strict=True):
        if not images:
            raise UserError(f"{folder / name} holds no images; put those of ImageNet 32×32 there.")
    train, test = (parts_of(folder, images) for images in listed)
    return train + test, len(train)


def _nothing(folder: Path) -> tuple[list[cache.Part], int]:
    raise UserError(
        f"there is no ImageNet 32×32 in {folder}; put {BATCHES[0]} … {BATCHES[-2]} and {BATCHES[-1]} there, as they "
        f"come or as .npz, or the folders {' and '.join(FOLDERS)}."
    )


def _part(folder: Path, name: str) -> cache.Part:
    key = partial(cache.digest, folder, [name])
    return cache.Part(key(), partial(_pieces, folder / name), key)


def _pieces(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield read_batch(path)


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A file of the downsampled release: images uint8 (N, 3, 32, 32), and labels from 0 on, (N,).

    Raises:
        UserError: if it is no such file.
    """
    try:
        found = _of_npz(path) if path.suffix.lower() == ".npz" else unpickled(path)
        data, labels = found["data"], np.asarray(found["labels"])
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or in_a_line(error)}).") from None
    except KeyError as error:
        raise UserError(f"{path} has no {error}; a file of ImageNet 32×32 holds data and labels.") from None
    except Exception as error:  # a damaged zip file or pickle fails in a dozen ways
        reason = in_a_line(error).rstrip(".:")
        raise UserError(f"{path} is not a file of ImageNet 32×32 ({reason}); fetch it again.") from None
    pixels = int(np.prod(SHAPE))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
        said = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise UserError(f"data of {path} are {said}; those of ImageNet 32×32 are uint8 (N, {pixels}).")
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu" or not len(data):
        raise UserError(
            f"labels of {path} are {labels.dtype} {labels.shape} for {len(data)} images; they must be whole numbers, "
            "one for each."
        )
    if not 1 <= labels.min() <= labels.max() <= CLASSES:
        raise UserError(f"labels of {path} go from {labels.min()} to {labels.max()}; they must lie in 1 to {CLASSES}.")
    return data.reshape(-1, *SHAPE), labels.astype(np.int64) - 1


def _of_npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
        return {name: saved[name] for name in ("data", "labels")}
