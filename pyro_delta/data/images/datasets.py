"""Data sets of images, as programs."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from pyro_delta.data.embedded import scikit_learn_data
from pyro_delta.data.folders import LOG, readable
from pyro_delta.data.images.conversion import Conversion, Crop, Mode
from pyro_delta.data.images.folder import FEW_LEVELS, in_words, levelled, read_folder
from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.data.splits import (
    TEST_SEED,
    Split,
    Splits,
    assembled,
    hold_out,
    reordered,
    split_of,
    with_test,
    with_validation,
)
from pyro_delta.errors import UserError
from pyro_delta.validation import Count, Seed

TEN_DIGITS = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "t-shirt_top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot",
)  # fmt: skip
BINARISED = tuple(f"binarized_mnist_{part}.amat" for part in ("train", "valid", "test"))
Levels = Annotated[int, Field(ge=2, le=256)]

PHOTOS = ("china", "flower")
SIDE, STRIDE = 32, 8
# Each photograph is cut into upright bands of these columns, over and over; no crop crosses the edge of its band.
PERIOD = 160
BANDS = {"train": (0, 96), "validation": (96, 128), "test": (128, 160)}


class Digits(Splits):
    """handwritten digits, 8×8 grey, 17 levels, 1797 images (within scikit-learn)

    Args:
        root: not read; the images are embedded.
        validation: number of validation images.
        seed: of their choice. The test images are the same for every seed.
    """

    preset = "digits"
    spec = ImageSpec(1, 8, 8, 17)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        rows_bc = np.loadtxt(scikit_learn_data() / "data" / "digits.csv.gz", dtype=np.uint8, delimiter=",")
        everything = split_of(rows_bc[:, :-1].reshape(-1, 1, 8, 8), rows_bc[:, -1].astype(np.int64))
        train, test = hold_out(everything, 360, TEST_SEED)
        super().__init__(*assembled(self.spec, train, test, _or(validation, 180), seed), TEN_DIGITS)


class Photos(Splits):
    """32×32 colour crops of two photographs, 4400 images (within scikit-learn)

    Args:
        root: not read; the photographs are embedded.
        validation: number of validation images, up to 400.
        seed: of the order of training and validation images.
    """

    preset = "photos"
    spec = ImageSpec(3, SIDE, SIDE, 256)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        from sklearn.datasets import load_sample_image

        photos = [load_sample_image(f"{photo}.jpg") for photo in PHOTOS]

        def crops(split: str, split_seed: int) -> Split:
            by_photo = [photo_crops(photo, split) for photo in photos]
            labels_b = np.repeat(np.arange(len(photos)), [len(crops_of_photo) for crops_of_photo in by_photo])
            return reordered(split_of(np.concatenate(by_photo), labels_b), split_seed)

        held_out = crops("validation", seed)
        count = _or(validation, len(held_out))
        if not 1 <= count <= len(held_out):
            raise UserError(f"photos has {len(held_out)} validation images, not {count}; ask for 1 to {len(held_out)}.")
        held_out = held_out.take(slice(count))
        super().__init__(self.spec, crops("train", seed), held_out, crops("test", TEST_SEED), PHOTOS)


class CIFAR10(Splits):
    """CIFAR-10, 32×32 colour, 60 000 images (downloaded unless there)

    Args:
        root: the folder that holds `cifar10`, as image files or as torchvision has it, and to which it is downloaded.
        validation: number of validation images.
        seed: of their choice.
    """

    preset = "cifar10-pixelsnail-contour"
    spec = ImageSpec(3, 32, 32, 256)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        home = Path(root).expanduser()
        train, test = _cifar10_folder(home) or _cifar10_archive(home)
        super().__init__(*assembled(self.spec, train, test, _or(validation, 5000), seed), CIFAR10_CLASSES)


class MNIST(Splits):
    """MNIST, 28×28 grey, 70 000 images (downloaded unless there)

    Args:
        root: the folder that holds `mnist`, and to which it is downloaded.
        validation: number of validation images.
        seed: of their choice.
    """

    preset = "mnist"
    spec = ImageSpec(1, 28, 28, 256)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        train, test = _mnist(Path(root).expanduser())
        super().__init__(*assembled(self.spec, train, test, _or(validation, 5000), seed), TEN_DIGITS)


class FashionMNIST(Splits):
    """Fashion-MNIST, 28×28 grey, 70 000 images of clothes (downloaded unless there)

    Args:
        root: the folder that holds `fashion_mnist`, and to which it is downloaded.
        validation: number of validation images.
        seed: of their choice.
    """

    preset = "mnist"
    spec = ImageSpec(1, 28, 28, 256)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        train, test = _mnist(Path(root).expanduser(), "FashionMNIST", "fashion_mnist", "Fashion-MNIST")
        super().__init__(*assembled(self.spec, train, test, _or(validation, 5000), seed), FASHION_CLASSES)


class BinarisedMNIST(Splits):
    """MNIST as black and white pixels, drawn once, 70 000 images (not downloaded; three .amat files)

    Larochelle and Murray's files, by which likelihoods are compared: pixels are 1 with a probability of their grey.

    Args:
        root: the folder that holds `binarised_mnist`, or its files themselves.
        validation: number of validation images, of the 10 000 of the release.
        seed: of their choice.
    """

    preset = "mnist"
    spec = ImageSpec(1, 28, 28, 2)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: Seed = 0) -> None:
        splits = read_binarised(Path(root).expanduser())
        super().__init__(*with_validation(self.spec, *splits, validation, seed))


class Folder(Splits):
    """your own images, folder:PATH: PATH/train, PATH/test and maybe PATH/val, with or without class folders

    Every format that Pillow reads by itself, but for documents of layers (.psd). Pictures are turned as their
    orientation says, and brought to sRGB by their profile or gamma. What else is to be done to them must be said:
    without a word, all are grey or colour of 8 bits and of one size. Where PATH holds pictures or classes themselves, a
    tenth of them, the same for every seed, is for test.

    Args:
        root: PATH itself.
        size: rows and columns that pictures are brought to, or one number for both.
        crop: centre, to cut pictures to that shape, or to squares without a size; none, to refuse other shapes.
        mode: grey, grey_alpha, rgb or rgba, that all pictures are converted to; those that are neither grey nor colour
            are refused without it.
        scale: values of black and white in pictures of more than 8 bits, which are refused without it; of white and
            black in a TIFF that says that its 0 is white.
        first_frame: the first picture of animations and of files of several pages, which are refused without it.
        levels: that bytes are rounded to; if the training images have no more than 2, 4 or 16, these if None, else 256.
        validation: number of validation images, of PATH/val; without that folder a tenth of the training images if
            None.
        seed: of their choice.
    """

    preset = "photos"

    def __init__(
        self,
        *,
        root: str,
        size: Count | tuple[Count, Count] | None = None,
        crop: Crop = "none",
        mode: Mode | None = None,
        scale: tuple[float, float] | None = None,
        first_frame: bool = False,
        levels: Levels | None = None,
        validation: int | None = None,
        seed: Seed = 0,
    ) -> None:
        home = Path(root).expanduser()
        how = Conversion((size, size) if isinstance(size, int) else size, crop, mode, scale, first_frame, levels)
        found = read_folder(home, how)
        train, test = with_test(found.train, found.test, home, "images")
        if levels is None:
            levels, [train, *held_out, test] = levelled(train, (found.validation, test), home)
        else:
            held_out = [] if found.validation is None else [found.validation]
        channels, height, width = train.x.shape[1:]
        spec = ImageSpec(channels, height, width, levels, conversion=how)
        if held_out:
            parts = with_validation(spec, train, held_out[0], test, validation, seed)
        else:
            parts = assembled(spec, train, test, _or(validation, max(1, len(train) // 10)), seed)
        super().__init__(*parts, found.classes)
        found.account.tell(home, len(test) if found.test is None else None)
        if levels in FEW_LEVELS and how.levels is None:
            words = "%s: the training images have %s; data.levels=256 takes every byte for one"
            LOG.info(words, readable(home), in_words(levels))


def _or(count: int | None, default: int) -> int:
    return default if count is None else count


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


def _cifar10_folder(root: Path) -> tuple[Split, Split] | None:
    """CIFAR-10 as image files, if there are any."""
    if (root / "cifar10" / "train").is_dir():
        folder = root / "cifar10"
    elif (root / "train" / CIFAR10_CLASSES[0]).is_dir():
        folder = root
    else:
        return None
    found = read_folder(folder)
    shape = tuple(found.train.x.shape[1:])
    if found.classes != CIFAR10_CLASSES or shape != (3, 32, 32) or found.test is None:
        raise UserError(
            f"{folder} does not hold CIFAR-10, which has 32×32 RGB images in the class folders "
            f"{', '.join(CIFAR10_CLASSES)}; load other images as folder:{folder}."
        )
    if found.account.left:
        found.account.tell(folder)
    return found.train, found.test


def _cifar10_archive(root: Path) -> tuple[Split, Split]:
    from torchvision.datasets import CIFAR10

    def split(home: Path, train: bool) -> Split:
        with warnings.catch_warnings():
            # The archive was pickled by a NumPy of 2009, which wrote `align` as 0; NumPy 2.4.0 to 2.4.4 warn of that.
            warnings.filterwarnings("ignore", message=".*align should be passed as Python or NumPy boolean")
            data = CIFAR10(home, train=train, download=True)  # only what is missing or fails its checksum
        return split_of(data.data.transpose(0, 3, 1, 2), np.asarray(data.targets))

    home, is_there = _home(root, "cifar10", CIFAR10.base_folder, CIFAR10.filename)
    mend = f"put {CIFAR10.filename}, or train/<class>/*.png and test/<class>/*.png, into {home}"
    return _torchvision(split, "CIFAR-10", home, is_there, mend)


def _mnist(root: Path, kind: str = "MNIST", name: str = "mnist", title: str = "MNIST") -> tuple[Split, Split]:
    """A data set of MNIST's files: torchvision's class and folder of it, our folder, and what people call it."""
    from torchvision import datasets

    def split(home: Path, train: bool) -> Split:
        data = getattr(datasets, kind)(home, train=train, download=True)
        return split_of(data.data.unsqueeze(1).numpy(), data.targets.numpy())

    home, is_there = _home(root, name, kind)
    mend = f"put the four *-ubyte.gz files of {title}, and nothing else, into {home / kind / 'raw'}"
    return _torchvision(split, title, home, is_there, mend)


def read_binarised(root: Path) -> tuple[Split, Split, Split]:
    """Training, validation and test split of the binarised MNIST.

    Raises:
        UserError: if a file is missing, damaged or another.
    """
    home, is_there = _home(root, "binarised_mnist", *BINARISED)
    if not is_there or (missing := [name for name in BINARISED if not (home / name).is_file()]):
        missing = list(BINARISED) if not is_there else missing
        raise UserError(
            f"there is no {missing[0]} in {home}; put {', '.join(BINARISED)} of "
            "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/ there."
        )
    train, held_out, test = (split_of(read_amat(home / name), None) for name in BINARISED)
    return train, held_out, test


def read_amat(path: Path) -> np.ndarray:
    """Images uint8 (N, 1, 28, 28) of a text file: a line of 784 times 0 or 1 for each.

    Raises:
        UserError: if it is no such file.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); fetch it again.") from None
    is_digit = (content == ord("0")) | (content == ord("1"))
    is_end = content == ord("\n")
    between = is_end | (content == ord(" ")) | (content == ord("\r")) | (content == ord("\t"))
    apart = not (is_digit[1:] & is_digit[:-1]).any()  # 10 is no pixel
    counts = np.diff(np.concatenate(([0], np.cumsum(is_digit)[is_end], [is_digit.sum()])))
    if not (is_digit | between).all() or not apart or not set(counts[counts > 0].tolist()) == {28 * 28}:
        raise UserError(f"{path} does not hold lines of 784 times 0 or 1; fetch it again.")
    return (content[is_digit] - ord("0")).reshape(-1, 1, 28, 28)


def _home(root: Path, name: str, *signs: str) -> tuple[Path, bool]:
    """Where torchvision is to look, and whether a sign of the dataset is there: the root if one is there and none is in
    the folder `name` in it, else that folder.
    """
    in_root = any((root / sign).exists() for sign in signs)
    in_folder = any((root / name / sign).exists() for sign in signs)
    return (root if in_root and not in_folder else root / name), in_root or in_folder


def _torchvision(
    split: Callable[[Path, bool], Split], title: str, home: Path, is_there: bool, mend: str
) -> tuple[Split, Split]:
    """Both splits. What is not there at all is downloaded aside: a failure leaves nothing, and others see it whole."""
    try:
        if is_there:
            return split(home, True), split(home, False)
        above = next(folder for folder in (home, *home.parents) if folder.is_dir())
        with tempfile.TemporaryDirectory(dir=above, prefix=f".{home.name}.") as aside:
            splits = split(Path(aside), True), split(Path(aside), False)
            home.mkdir(parents=True, exist_ok=True)
            for path in Path(aside).iterdir():
                if not (home / path.name).exists():  # another process may have been faster
                    path.replace(home / path.name)
            return splits
    except Exception as error:  # no network, no space, a damaged archive: torchvision raises a dozen kinds
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        message = f"{title} could be neither read from {home} nor downloaded ({reason.rstrip('.:')}); {mend}."
        raise UserError(message) from error
