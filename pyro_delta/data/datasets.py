"""The datasets by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pyro_delta.data.folder import read_folder
from pyro_delta.data.spec import DATASETS, ImageSpec
from pyro_delta.data.splits import TEST_SEED, ImageData, Split, balanced_order, hold_out, split_of
from pyro_delta.errors import UserError, unknown_name

TEN_DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

PHOTOS = ("china", "flower")
SIDE, STRIDE = 32, 8
# Each photograph is cut into upright bands of these columns, over and over; no crop crosses the edge of its band.
PERIOD = 160
BANDS = {"train": (0, 96), "validation": (96, 128), "test": (128, 160)}


def load(name: str, *, root: str | Path | None = None, validation: int | None = None, seed: int = 0) -> ImageData:
    """Load a dataset into memory.

    Args:
        name: a name of `DATASETS`: `digits`, `photos`, `cifar10`, `mnist`, or `folder:PATH` (not below `root`).
        root: the folder that holds `cifar10` and `mnist`, and to which they are downloaded; `data` if None.
        validation: the number of validation images; None means 180 for `digits`, 400 for `photos`, 5000 for `cifar10`
            and `mnist`, and a tenth of the training images of a folder.
        seed: of the choice of the validation images. The test images are the same for every seed.

    Raises:
        UserError: if the name is unknown, the files are missing, damaged or of mixed kinds, or `validation` does not
            leave at least one image on either side.
    """
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        train, test, classes = read_folder(Path(path).expanduser())
        count = max(1, len(train) // 10) if validation is None else validation
        return _assemble(name, 256, classes, train, test, count, seed)
    if name not in _LOADERS:
        raise unknown_name("dataset", name, DATASETS)
    return _LOADERS[name](Path("data" if root is None else root).expanduser(), validation, seed)


def photo_crops(photo_hwc: np.ndarray, split: str) -> np.ndarray:
    """The crops of a photograph (H, W, 3) that belong to a split, (N, 3, 32, 32), one every 8 rows and columns.

    Neighbouring crops of a split overlap; crops of different splits share no pixel.
    """
    windows = np.lib.stride_tricks.sliding_window_view(photo_hwc, (SIDE, SIDE), axis=(0, 1))
    height, width = photo_hwc.shape[:2]
    first, last = BANDS[split]
    tops = np.arange(0, height - SIDE + 1, STRIDE)
    bands = [(band + first, min(band + last, width)) for band in range(0, width, PERIOD)]
    lefts = np.concatenate([np.arange(begin, end - SIDE + 1, STRIDE) for begin, end in bands])
    return windows[np.ix_(tops, lefts)].reshape(-1, photo_hwc.shape[2], SIDE, SIDE)


def _digits(root: Path, validation: int | None, seed: int) -> ImageData:
    from sklearn.datasets import load_digits  # slow to import, and the other datasets do without

    images_bhw, labels_b = load_digits(return_X_y=True)
    everything = split_of(images_bhw.astype(np.uint8).reshape(-1, 1, 8, 8), labels_b)
    train, test = hold_out(everything, 360, TEST_SEED)
    return _assemble("digits", 17, TEN_DIGITS, train, test, 180 if validation is None else validation, seed)


def _photos(root: Path, validation: int | None, seed: int) -> ImageData:
    from sklearn.datasets import load_sample_image

    photos = [load_sample_image(f"{photo}.jpg") for photo in PHOTOS]

    def crops(split: str, split_seed: int) -> Split:
        by_photo = [photo_crops(photo, split) for photo in photos]
        labels_b = np.repeat(np.arange(len(photos)), [len(crops_of_photo) for crops_of_photo in by_photo])
        return _reordered(split_of(np.concatenate(by_photo), labels_b), split_seed)

    held_out = crops("validation", seed)
    count = len(held_out) if validation is None else validation
    if not 1 <= count <= len(held_out):
        raise UserError(f"photos has {len(held_out)} validation images, not {count}; ask for 1 to {len(held_out)}.")
    held_out = held_out.take(slice(count))
    spec = ImageSpec(3, SIDE, SIDE, 256)
    return ImageData(spec, crops("train", seed), held_out, crops("test", TEST_SEED), "photos", PHOTOS)


def _cifar10(root: Path, validation: int | None, seed: int) -> ImageData:
    train, test = _cifar10_folder(root) or _cifar10_archive(root)
    count = 5000 if validation is None else validation
    return _assemble("cifar10", 256, CIFAR10_CLASSES, train, test, count, seed)


def _cifar10_folder(root: Path) -> tuple[Split, Split] | None:
    """CIFAR-10 as image files, if there are any."""
    if (root / "cifar10" / "train").is_dir():
        folder = root / "cifar10"
    elif (root / "train" / CIFAR10_CLASSES[0]).is_dir():
        folder = root
    else:
        return None
    train, test, classes = read_folder(folder)
    shape = tuple(train.images.shape[1:])
    if classes != CIFAR10_CLASSES or shape != (3, 32, 32):
        raise UserError(
            f"{folder} does not hold CIFAR-10, which has 32×32 RGB images in the class folders "
            f"{', '.join(CIFAR10_CLASSES)}; load other images as folder:{folder}."
        )
    return train, test


def _cifar10_archive(root: Path) -> tuple[Split, Split]:
    from torchvision.datasets import CIFAR10

    def split(train: bool) -> Split:
        with warnings.catch_warnings():
            # The archive was pickled by a NumPy of 2009, which wrote `align` as 0; NumPy 2.4.0 to 2.4.4 warn of that.
            warnings.filterwarnings("ignore", message=".*align should be passed as Python or NumPy boolean")
            data = CIFAR10(home, train=train, download=True)  # only what is missing or fails its checksum
        return split_of(data.data.transpose(0, 3, 1, 2), np.asarray(data.targets))

    home = _home(root, "cifar10", CIFAR10.base_folder, CIFAR10.filename)
    mend = f"put {CIFAR10.filename}, or train/<class>/*.png and test/<class>/*.png, into {home}"
    return _torchvision(split, "CIFAR-10", home, mend)


def _mnist(root: Path, validation: int | None, seed: int) -> ImageData:
    from torchvision.datasets import MNIST

    def split(train: bool) -> Split:
        data = MNIST(home, train=train, download=True)
        return split_of(data.data.unsqueeze(1).numpy(), data.targets.numpy())

    home = _home(root, "mnist", "MNIST")
    mend = f"put the four *-ubyte.gz files of MNIST, and nothing else, into {home / 'MNIST' / 'raw'}"
    train, test = _torchvision(split, "MNIST", home, mend)
    return _assemble("mnist", 256, TEN_DIGITS, train, test, 5000 if validation is None else validation, seed)


def _home(root: Path, name: str, *signs: str) -> Path:
    """Where torchvision is to look: the root itself if a sign of the dataset is there, else the folder `name` in it."""
    in_root = any((root / sign).exists() for sign in signs)
    in_folder = any((root / name / sign).exists() for sign in signs)
    return root if in_root and not in_folder else root / name


def _torchvision(split: Callable[[bool], Split], title: str, home: Path, mend: str) -> tuple[Split, Split]:
    try:
        return split(True), split(False)
    except Exception as error:  # no network, no space, a damaged archive: torchvision raises a dozen kinds
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        message = f"{title} could be neither read from {home} nor downloaded ({reason.rstrip('.:')}); {mend}."
        raise UserError(message) from error


def _assemble(
    name: str,
    levels: int,
    classes: tuple[str, ...] | None,
    train: Split,
    test: Split,
    validation: int,
    seed: int,
) -> ImageData:
    channels, height, width = train.images.shape[1:]
    train, held_out = hold_out(train, validation, seed)
    spec = ImageSpec(channels, height, width, levels)
    return ImageData(spec, train, held_out, _reordered(test, TEST_SEED), name, classes)


def _reordered(split: Split, seed: int) -> Split:
    return split.take(balanced_order(split, seed))


_LOADERS: dict[str, Callable[[Path, int | None, int], ImageData]] = {
    "digits": _digits,
    "photos": _photos,
    "cifar10": _cifar10,
    "mnist": _mnist,
}
