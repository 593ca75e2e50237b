"""One picture file as a viewer shows it: upright, in its colours, and nothing of it lost without a word."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageFile, ImageOps

from pyro_delta.data.folders import readable
from pyro_delta.data.images.conversion import LARGEST, MODES, Conversion
from pyro_delta.errors import UserError

DECODER = f"decoding 2, Pillow {PIL.__version__}"
"""What images depend on beside their files and how they are converted; to be raised with each change of this module."""
COMMON = (".png", ".jpg", ".tif", ".webp", ".bmp")
PASSED_OVER = {"EPS", "FPX", "MIC", "MPEG", "PDF", "PSD"}
"""Formats that take other programs, or are not pictures but documents of layers."""
NUMBERS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of single numbers of more than 8 bits."""
DEEP = re.compile(r";16[LBN]$|^L;16$")
"""Raw modes of which Pillow keeps the upper 8 of 16 bits. (RGB;16 has 16 of a whole pixel.)"""
HEAD = 1 << 16
"""Bytes of a file in which its own head is."""
FULL = (0.0, 65535.0)
FILTER = Image.Resampling.LANCZOS
WHITE = (255, 255, 255, 255)
"""What lies behind a transparent picture that is to be one no more."""
NO_PROFILE = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
"""How lcms fails at what is none, or none for a kind of picture."""
SAME = 2
"""Levels by which a colour profile may change any colour and still be taken for sRGB."""
SCREEN = 2.2
"""The exponent that sRGB is near to, and for which the gamma of a PNG is meant: 1/2.2 changes nothing."""
NEAR = 0.05
"""By how much their product may differ from 1 and still be taken for 1, as libpng does."""
PHOTOMETRIC = 262
"""The tag of TIFF that says what 0 means; 0: white."""
OF_COLOURS = ("icc_profile", "gamma", "srgb")
"""What files say of the meaning of their bytes."""


def _asks_others(name: str) -> bool:
    """Whether Pillow knows a format, but leaves its reading to somebody else."""
    factory = Image.OPEN[name][0]
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


ENDINGS = Image.registered_extensions()  # which makes all formats known, so it comes first
FORMATS = tuple(name for name in Image.OPEN if name not in PASSED_OVER and not _asks_others(name))
"""That are read, whatever a file is called: no other program is ever started."""
SUFFIXES = tuple(
    sorted(
        (ending for ending, name in ENDINGS.items() if name in (*FORMATS, "MPO")), key=lambda e: (e not in COMMON, e)
    )
)
"""Endings of the files that Pillow itself reads here, the common ones first."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings: what is wrong with pixels is an error, and of damaged metadata viewers say nothing.

    Warnings are switched off for all threads, so it stands around what starts them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        yield


def decoded(file: Path, how: Conversion, mend: str | None = None) -> tuple[np.ndarray, str]:
    """A picture, uint8 of shape (C, H, W), and its mode, of `CHANNELS`.

    Turned as its orientation says, in sRGB where it has another colour profile, then scaled, converted, cut and resized
    as it is asked for.

    Args:
        file: of the picture.
        how: it is converted.
        mend: what errors advise where that can be said no more; else they name the setting that says it.

    Raises:
        UserError: if it cannot be read, or is what nothing was said about.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(HEAD)
            if not head:
                raise UserError(f"{readable(file)} is empty; replace or remove it.")
            opened.seek(0)
            with Image.open(opened, formats=FORMATS) as image:
                _check_frames(image, file, how, mend)
                deep, negative = _is_deep(image, head), _is_negative(image)
                upright: Image.Image = _upright(image)
    except UserError:
        raise
    except Image.DecompressionBombError:
        most = f"{2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million"
        raise UserError(f"{readable(file)} has more than {most} pixels; bring it to a smaller size.") from None
    except PermissionError as error:
        raise UserError(f"cannot read {readable(file)} ({error.strerror}); give files that can be read.") from None
    except Exception as error:  # each decoder has its own ways to fail on a damaged file
        raise UserError(
            f"{readable(file)} is not a readable image ({type(error).__name__}); replace or remove it."
        ) from error
    try:
        converted = _in_mode(_in_8_bits(upright, deep, negative, file, how, mend), file, how, mend)
    except (ValueError, OSError, ImageCms.PyCMSError) as error:  # Pillow has no way from one mode to the other
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{readable(file)} has mode {upright.mode}, which cannot be converted to {how.mode}; save it as RGB."
        ) from None
    sized = _in_size(converted, file, how, mend)
    if sized.width * sized.height > LARGEST:
        raise _refused(
            file,
            f"is {sized.width}×{sized.height}, and an image has {LARGEST} pixels at most",
            "make it smaller by data.size=32 data.crop=centre",
            mend,
        )
    pixels = np.asarray(sized).reshape(sized.height, sized.width, -1).transpose(2, 0, 1)
    if how.levels is not None and how.levels < 256:
        pixels = np.rint(np.arange(256) * ((how.levels - 1) / 255)).astype(np.uint8)[pixels]
    return pixels, sized.mode


def _check_frames(image: Image.Image, file: Path, how: Conversion, mend: str | None) -> None:
    """Refuses several pictures in a file; those behind a photograph's first are its previews, maps or other eye."""
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO" and not how.first_frame:
        raise _refused(
            file,
            f"holds {count} frames or pages, and one is a picture",
            "take the first of each by data.first_frame=true",
            mend,
        )


def _is_deep(image: Image.Image, head: bytes) -> bool:
    """Whether a file, of which `head` is the beginning, has more than 8 bits a channel."""
    if image.mode in NUMBERS:
        return True
    if image.format == "JPEG2000":  # the sizes of the codestream end with the bits of the first channel, less 1
        place = head.find(b"\xff\x4f\xff\x51")
        return place >= 0 and (head[place + 42] & 127) + 1 > 8
    if image.format == "AVIF":  # the flag high_bitdepth of the AV1 configuration
        place = head.find(b"av1C")
        return place >= 0 and bool(head[place + 6] & 64)
    if image.format == "SGI":  # bytes of a value
        return head[3] > 1
    raw: list[Any] = []
    for tile in getattr(image, "tile", ()):
        raw += tile[3] if isinstance(tile[3], tuple) else [tile[3]]
    if image.format == "PPM":  # the largest value
        return any(isinstance(part, int) and part > 255 for part in raw)
    return any(isinstance(part, str) and DEEP.search(part) for part in raw)


def _is_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a TIFF of numbers, as which Pillow leaves them; bytes it turns round by itself."""
    return image.mode in NUMBERS and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0


def _upright(image: Image.Image) -> Image.Image:
    """A picture, loaded and turned as its orientation says; where it says what is no orientation, as it is."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of metadata that are damaged, where the pixels are not
        return image.copy()


def _in_8_bits(
    image: Image.Image, deep: bool, negative: bool, file: Path, how: Conversion, mend: str | None
) -> Image.Image:
    """A picture of bytes: deep ones scaled, if a scale is given; white where it is highest, or lowest if negative."""
    if not deep and image.mode not in NUMBERS:  # icons show their mode when they are loaded
        return image
    numbers = np.asarray(image) if image.mode in NUMBERS else None
    if numbers is not None and (strange := int((~np.isfinite(numbers)).sum())):
        raise UserError(
            f"{readable(file)} has NaN or infinity in {strange} of its {numbers.size} pixels, which no scale makes "
            "bytes of; write numbers in their place, or remove it."
        )
    least, most = (0.0, 65535.0) if numbers is None else (float(numbers.min()), float(numbers.max()))
    if how.scale is None:
        found = "16 bits a channel" if numbers is None else f"values from {_number(least)} to {_number(most)}"
        if image.mode != "F" and least >= 0 and most <= FULL[1]:
            least, most = FULL
        raise _refused(
            file,
            f"has mode {image.mode}, with {found}, and images have 8 bits",
            f"convert it by data.scale=[{_number(least)}, {_number(most)}], the values of black and white",
            mend,
        )
    low, high = how.scale
    if numbers is None:
        if how.scale != FULL:
            raise UserError(
                f"{readable(file)} has colours of 16 bits, which are read in their full range alone; give "
                "data.scale=[0, 65535], or save it in 8 bits."
            )
        if isinstance(see_through := image.info.get("transparency"), tuple):  # in 16 bits, too
            image.info["transparency"] = tuple(value >> 8 for value in see_through)
        return image  # of which Pillow has kept the upper 8 bits
    if not (low <= least and most <= high):
        raise UserError(
            f"{readable(file)} has values from {_number(least)} to {_number(most)}, outside of "
            f"data.scale=[{_number(low)}, {_number(high)}]; widen that, or mend the picture."
        )
    scaled = np.rint((numbers.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)
    grey = Image.fromarray(255 - scaled if negative else scaled)
    if how.scale == FULL:  # then what is said of bytes holds of these
        grey.info = {key: image.info[key] for key in OF_COLOURS if key in image.info}
    return grey


def _number(value: float) -> str:
    """A number with as many digits as it takes to give it back."""
    return str(int(value)) if value.is_integer() else repr(value)


def _in_mode(image: Image.Image, file: Path, how: Conversion, mend: str | None) -> Image.Image:
    """A picture of a mode of `CHANNELS`: the one that is asked for, or else grey or colour as it is."""
    see_through = image.has_transparency_data
    if how.mode is None:
        kind = ", with transparency" if see_through else ", a palette" if image.mode == "P" else ""
        kept = "grey_alpha" if image.mode in ("LA", "La", "L", "1") else "rgba"
        ways = "data.mode=rgb or grey" + (
            f", which lays it on white, or {kept}, which keeps that" if see_through else ""
        )
        if see_through or image.mode not in ("1", "L", "RGB"):
            what = f"has mode {image.mode}{kind}, which is neither grey (L) nor RGB"
            raise _refused(file, what, f"convert it by {ways}", mend)
    wanted = ("RGB" if image.mode == "RGB" else "L") if how.mode is None else MODES[how.mode]
    profile, exponent = image.info.get("icc_profile"), _exponent(image)
    if image.mode == wanted and not profile and exponent is None and not see_through:
        return image
    if image.mode == "LAB":
        image, profile = _through(image, ImageCms.createProfile("LAB"), "RGB"), None
    elif see_through:
        image = image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA")
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode in ("1", "La", "LA") else "RGB")
    image = _in_srgb(image, profile) if exponent is None else _raised(image, exponent)
    if see_through and not wanted.endswith("A"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    if wanted.startswith("L") and image.mode != "L":
        alpha = image.getchannel("A") if image.mode == "RGBA" and wanted == "LA" else None
        image = image.convert("RGB").convert("L")
        if alpha is not None:
            return Image.merge("LA", (image, alpha))
    return image.convert(wanted)


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A grey, colour or CMYK picture whose bytes mean what they mean without a profile.

    As viewers do, one that is damaged or for another kind of picture is passed over.
    """
    if not profile or (image.mode != "CMYK" and _is_srgb(profile, image.mode)):
        return image
    try:
        found = _through(image, profile, "RGBA" if image.mode == "RGBA" else "RGB")
    except NO_PROFILE:
        return image
    return found.convert("L") if image.mode == "L" else found


def _exponent(image: Image.Image) -> float | None:
    """What brings the bytes of a picture to sRGB as parts of 1, if it has no profile, but a gamma, and another one.

    Of the chunks of PNG a profile counts before sRGB, and that before the gamma.
    """
    gamma = image.info.get("gamma")
    if not gamma or "icc_profile" in image.info or "srgb" in image.info or abs(gamma * SCREEN - 1) <= NEAR:
        return None
    return 1 / (gamma * SCREEN)


def _raised(image: Image.Image, exponent: float) -> Image.Image:
    """A grey or colour picture with its bytes, as parts of 1, raised to a power; alpha stays."""
    table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(int).tolist()
    bands = [band if name == "A" else band.point(table) for name, band in zip(image.getbands(), image.split())]
    return Image.merge(image.mode, bands)


def _through(image: Image.Image, profile: Any, mode: str) -> Image.Image:
    """A picture in sRGB, by its profile."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile) if isinstance(profile, bytes) else profile)
    found = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    assert found is not None
    return found


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes, mode: str) -> bool:
    """Whether a profile changes no colour of a grid by more than rounding."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "L":
        colours = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        colours = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3))
    try:
        found = _through(colours, profile, "RGB")
    except NO_PROFILE:
        return True
    apart = np.asarray(found).astype(int) - np.asarray(colours.convert("RGB")).astype(int)
    return bool(np.abs(apart).max() <= SAME)


def _in_size(image: Image.Image, file: Path, how: Conversion, mend: str | None) -> Image.Image:
    """A picture cut and resized, if that is asked for; never out of proportion."""
    width, height = image.size
    if how.crop == "centre":
        rows, columns = how.size or (1, 1)
        # The largest cut of the wanted shape, with as much left out on either side.
        cut_w, cut_h = min(width, round(height * columns / rows)), min(height, round(width * rows / columns))
        cut_w, cut_h = max(cut_w, 1), max(cut_h, 1)
        left, top = (width - cut_w) // 2, (height - cut_h) // 2
        image = image.crop((left, top, left + cut_w, top + cut_h))
        width, height = image.size
    if how.size is None or how.size == (height, width):
        return image
    rows, columns = how.size
    if how.crop == "none" and round(height * columns / width) != rows and round(width * rows / height) != columns:
        raise _refused(
            file,
            f"is {width}×{height}, which {columns}×{rows} (width×height) would distort",
            "cut the middle out by data.crop=centre",
            mend,
        )
    return image.resize((columns, rows), FILTER)


def _refused(file: Path, what: str, setting: str, mend: str | None) -> UserError:
    """The error for a picture that nothing was said about, with the setting that says it, or another mend."""
    return UserError(f"{readable(file)} {what}; {setting if mend is None else mend}.")
