"""Folders of one's own pictures: what a viewer shows is what is read, what is not is refused or said; sounds, too."""

import io
import itertools
import json
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
import torch
from PIL import Image, ImageCms
from test_cli import TINY, call, contents
from torchvision.utils import make_grid

from pyro_delta.data import Splits, load
from pyro_delta.data.images import ImageSpec, cache, decoding, folder
from pyro_delta.data.images.conversion import Conversion
from pyro_delta.data.images.decoding import SUFFIXES, decoded, quiet
from pyro_delta.data.images.pictures import FRAME, grid, side_by_side
from pyro_delta.data.spec import spec_as_dict, spec_of_dict
from pyro_delta.errors import UserError

H, W = 6, 9
PARTS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def noise(*shape: int, seed: int = 0, high: int = 256, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape or (H, W, 3), dtype=dtype)


def save(file: Path, pixels: np.ndarray | None = None, mode: str | None = None, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise() if pixels is None else pixels)
    (image if mode is None else image.convert(mode)).save(file, **options)


def fill(root: Path, *splits: str, count: int = 3, classes: tuple[str, ...] = ("",), shape: tuple = (H, W, 3)) -> Path:
    """Random pictures, no two of them alike, in each class of each split."""
    seeds = itertools.count()
    for split, label, number in itertools.product(splits or ("train", "test"), classes, range(count)):
        save(root / split / label / f"{number}.png", noise(*shape, seed=next(seeds)))
    return root


def pixels_of(data: Any, name: str) -> np.ndarray:
    """The image of a file, (H, W, C)."""
    for part in (data.train, data.validation, data.test):
        if name in part.names:
            return part.x[[*part.names].index(name)].numpy().transpose(1, 2, 0)
    raise KeyError(name)


# ---------------------------------------------------------------- upright

TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""What an orientation tag says is done to the rows and columns of a file."""


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("tag", TURNED)
def test_pictures_stand_upright(tmp_path: Path, tag: int, suffix: str) -> None:
    for split, number in itertools.product(("train", "test"), range(3)):
        picture = Image.fromarray(noise(seed=number))
        exif = picture.getexif()
        exif[0x0112] = tag
        (tmp_path / split).mkdir(exist_ok=True)
        picture.save(
            tmp_path / split / f"{number}{suffix}", exif=exif, **({"lossless": True} if suffix == ".webp" else {})
        )
    raw = noise(seed=2)
    if suffix == ".jpg":  # whose decoder is asked about the pixels, but not about the tag
        raw = np.asarray(Image.open(tmp_path / "test" / "2.jpg"))
    assert np.array_equal(pixels_of(load(f"folder:{tmp_path}"), f"test/2{suffix}"), TURNED[tag](raw))


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0nonsense", b"\xff" * 40])
def test_damaged_metadata_turn_nothing(tmp_path: Path, exif: bytes) -> None:
    fill(tmp_path)
    save(tmp_path / "test" / "1.png", noise(seed=9), exif=exif)
    assert np.array_equal(pixels_of(load(f"folder:{tmp_path}"), "test/1.png"), noise(seed=9))


# ---------------------------------------------------------------- what is converted on request

COLOUR, GREY, SEE = noise(), noise(H, W, seed=1), noise(H, W, 4, seed=2)
DEEP, REAL = (
    noise(H, W, seed=3, high=65536, dtype=np.uint16),
    np.random.default_rng(4).random((H, W)).astype(np.float32),
)
TABLE = noise(8, 3, seed=5)
INDEX = noise(H, W, seed=6, high=8)


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


def on_white(rgba: np.ndarray) -> np.ndarray:
    part = rgba[..., 3:] / 255
    return rgba[..., :3] * part + 255 * (1 - part)


def palette(file: Path, **options: Any) -> None:
    picture = Image.fromarray(INDEX).convert("P")
    picture.putdata(INDEX.ravel().tolist())
    picture.putpalette(TABLE.ravel().tolist())
    picture.save(file, **options)


def png_of_16_bits(file: Path, values: np.ndarray, transparent: np.ndarray | None = None) -> None:
    """An RGB picture that Pillow does not write: (H, W, 3) of 16 bits, maybe with a transparent colour."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    height, width, _ = values.shape
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    head += b"" if transparent is None else chunk(b"tRNS", transparent.astype(">u2").tobytes())
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def white_is_0(file: Path, values: np.ndarray, bits: int) -> None:
    """A TIFF of one strip whose 0 is white, as some scanners write it."""
    real, data = values.dtype.kind == "f", values.tobytes() if bits > 1 else np.packbits(values, axis=1).tobytes()
    data += bytes(len(data) % 2)
    tags = {256: W, 257: H, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: H, 279: len(data), 339: 3 if real else 1}
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    file.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def with_gamma(file: Path, pixels: np.ndarray, gamma: float, srgb: bool = False) -> None:
    """A PNG that says a gamma behind its head, and maybe that it is in sRGB."""
    save(file, pixels)
    content, parts = file.read_bytes(), [b"gAMA" + struct.pack(">I", round(gamma * 1e5)), *[b"sRGB\0"] * srgb]
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    file.write_bytes(content[:33] + b"".join(chunks) + content[33:])


def of_gamma(pixels: np.ndarray, gamma: float) -> np.ndarray:
    """As a screen of the exponent 2.2 shows it."""
    return 255 * (pixels / 255) ** (1 / (2.2 * gamma))


def of_frames(file: Path, count: int = 3, **options: Any) -> None:
    first, *others = (Image.fromarray(noise(H, W, seed=seed)) for seed in range(10, 10 + count))
    first.save(file, save_all=True, append_images=others, **options)


def with_profile(file: Path, profile: bytes, pixels: np.ndarray = COLOUR) -> None:
    Image.fromarray(pixels).save(file, icc_profile=profile)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """The profile of sRGB with the primaries of red and blue in each other's place."""
    tags = {SRGB[i : i + 4]: struct.unpack(">II", SRGB[i + 4 : i + 12]) for i in range(132, 132 + 12 * SRGB[131], 12)}
    found, ((red, size), (blue, _)) = bytearray(SRGB), (tags[b"rXYZ"], tags[b"bXYZ"])
    found[red : red + size], found[blue : blue + size] = SRGB[blue : blue + size], SRGB[red : red + size]
    return bytes(found)


# ending, how the file is written, options, what is read as (H, W, C), and by how much it may be off
CONVERTED: dict[str, tuple[str, Callable[[Path], object], dict[str, Any], np.ndarray, int]] = {
    "grey": ("png", lambda f: save(f, GREY), {}, GREY[..., None], 0),
    "colour": ("tif", lambda f: save(f, COLOUR), {}, COLOUR, 0),
    "interlaced": ("gif", lambda f: save(f, GREY, interlace=1), {"mode": "grey"}, GREY[..., None], 0),
    "one bit": ("png", lambda f: save(f, (GREY > 99) * np.uint8(255), "1"), {}, (GREY[..., None] > 99) * 255, 0),
    "grey to colour": ("png", lambda f: save(f, GREY), {"mode": "rgb"}, np.stack([GREY] * 3, -1), 0),
    "colour to grey": ("png", lambda f: save(f, COLOUR), {"mode": "grey"}, luma(COLOUR)[..., None], 1),
    "alpha kept": ("png", lambda f: save(f, SEE), {"mode": "rgba"}, SEE, 0),
    "alpha kept, in WebP": ("webp", lambda f: save(f, SEE, lossless=True, exact=True), {"mode": "rgba"}, SEE, 0),
    "alpha on white": ("png", lambda f: save(f, SEE), {"mode": "rgb"}, on_white(SEE), 1),
    "alpha on white, grey": ("png", lambda f: save(f, SEE), {"mode": "grey"}, luma(on_white(SEE))[..., None], 2),
    "alpha kept, grey": (
        "png",
        lambda f: save(f, SEE),
        {"mode": "grey_alpha"},
        np.stack([luma(SEE[..., :3]), SEE[..., 3]], -1),
        1,
    ),
    "grey and alpha": ("png", lambda f: save(f, SEE[..., :2]), {"mode": "grey_alpha"}, SEE[..., :2], 0),
    "grey and alpha on white": (
        "tif",
        lambda f: save(f, SEE[..., :2]),
        {"mode": "grey"},
        on_white(SEE[..., [0, 0, 0, 1]])[..., :1],
        1,
    ),
    "opaque": ("png", lambda f: save(f, COLOUR), {"mode": "rgba"}, np.dstack([COLOUR, np.full((H, W), 255)]), 0),
    "a palette": ("png", palette, {"mode": "rgb"}, TABLE[INDEX], 0),
    "a palette, in GIF": ("gif", palette, {"mode": "rgb"}, TABLE[INDEX], 0),
    "a palette with a hole": (
        "png",
        lambda f: palette(f, transparency=3),
        {"mode": "rgba"},
        np.dstack([TABLE[INDEX], np.where(INDEX == 3, 0, 255)]),
        0,
    ),
    "a palette with alpha on white": (
        "png",
        lambda f: palette(f, transparency=bytes(range(0, 240, 30))),
        {"mode": "rgb"},
        on_white(np.dstack([TABLE[INDEX], INDEX * 30])),
        1,
    ),
    "a transparent grey": (
        "png",
        lambda f: save(f, GREY, transparency=int(GREY[2, 2])),
        {"mode": "grey_alpha"},
        np.stack([GREY, np.where(GREY[2, 2] == GREY, 0, 255)], -1),
        0,
    ),
    "a transparent colour": (
        "png",
        lambda f: save(f, COLOUR, transparency=tuple(map(int, COLOUR[1, 1]))),
        {"mode": "rgba"},
        np.dstack([COLOUR, np.where((COLOUR[1, 1] == COLOUR).all(-1), 0, 255)]),
        0,
    ),
    "CMYK": (
        "tif",
        lambda f: Image.frombytes("CMYK", (W, H), SEE.tobytes()).save(f),
        {"mode": "rgb"},
        (255 - SEE[..., :3].astype(int)) * (255 - SEE[..., 3:].astype(int)) / 255,
        1,
    ),
    "16 bits": ("png", lambda f: save(f, DEEP), {"scale": (0, 65535)}, np.rint(DEEP / 257)[..., None], 0),
    "12 of 16 bits": (
        "tif",
        lambda f: save(f, DEEP >> 4),
        {"scale": (0, 4095)},
        np.rint((DEEP >> 4) * (255 / 4095))[..., None],
        0,
    ),
    "32 bits": (
        "tif",
        lambda f: save(f, DEEP.astype(np.int32) - 9),
        {"scale": (-9, 99991), "mode": "rgb"},
        np.rint(np.stack([DEEP] * 3, -1) * (255 / 100000)),
        0,
    ),
    "real numbers": ("tif", lambda f: save(f, REAL), {"scale": (0, 1)}, np.rint(REAL * 255)[..., None], 0),
    "real numbers, in PFM": ("pfm", lambda f: save(f, REAL), {"scale": (0, 1)}, np.rint(REAL * 255)[..., None], 0),
    "colours of 16 bits": (
        "png",
        lambda f: png_of_16_bits(f, COLOUR.astype(np.uint16) * 257),
        {"scale": (0, 65535)},
        COLOUR,
        0,
    ),
    "a transparent colour of 16 bits": (
        "png",
        lambda f: png_of_16_bits(f, COLOUR.astype(np.uint16) * 257, COLOUR[1, 1].astype(np.uint16) * 257),
        {"scale": (0, 65535), "mode": "rgba"},
        np.dstack([COLOUR, np.where((COLOUR[1, 1] == COLOUR).all(-1), 0, 255)]),
        0,
    ),
    "white is 0, 1 bit": ("tif", lambda f: white_is_0(f, GREY > 99, 1), {}, (GREY[..., None] <= 99) * 255, 0),
    "white is 0, 8 bits": ("tif", lambda f: white_is_0(f, GREY, 8), {}, 255 - GREY[..., None], 0),
    "white is 0, 16 bits": (
        "tif",
        lambda f: white_is_0(f, DEEP, 16),
        {"scale": (0, 65535)},
        255 - np.rint(DEEP / 257)[..., None],
        0,
    ),
    "white is 0, real numbers": (
        "tif",
        lambda f: white_is_0(f, REAL, 32),
        {"scale": (0, 1)},
        255 - np.rint(REAL * 255)[..., None],
        0,
    ),
    "gamma of light": ("png", lambda f: with_gamma(f, COLOUR, 1.0), {}, of_gamma(COLOUR, 1), 0.5),
    "gamma of light, in 16 bits": (
        "png",
        lambda f: with_gamma(f, DEEP, 1.0),
        {"scale": (0, 65535)},
        of_gamma(np.rint(DEEP / 257), 1)[..., None],
        0.5,
    ),
    "gamma beside alpha": (
        "png",
        lambda f: with_gamma(f, SEE, 1 / 1.8),
        {"mode": "rgba"},
        np.dstack([of_gamma(SEE[..., :3], 1 / 1.8), SEE[..., 3]]),
        0.5,
    ),
    "gamma beside sRGB": ("png", lambda f: with_gamma(f, GREY, 1.0, srgb=True), {}, GREY[..., None], 0),
    "gamma of sRGB": ("png", lambda f: with_gamma(f, GREY, 0.45455), {}, GREY[..., None], 0),
    "8 bits beside a scale": ("png", lambda f: save(f, GREY), {"scale": (0, 65535)}, GREY[..., None], 0),
    "the first frame": (
        "gif",
        of_frames,
        {"mode": "grey", "first_frame": True},
        noise(H, W, seed=10)[..., None],
        0,
    ),
    "the first page": ("tif", of_frames, {"first_frame": True}, noise(H, W, seed=10)[..., None], 0),
    "the first of an APNG": ("png", of_frames, {"first_frame": True}, noise(H, W, seed=10)[..., None], 0),
    "previews behind a photograph": (
        "mpo",
        lambda f: of_frames(f, 2, quality=95),
        {"mode": "grey"},
        noise(H, W, seed=10)[..., None],
        40,
    ),
    "profile of sRGB": ("png", lambda f: with_profile(f, SRGB), {}, COLOUR, 0),
    "damaged profile": ("png", lambda f: with_profile(f, b"no profile"), {}, COLOUR, 0),
    "profile of colours in grey": ("png", lambda f: with_profile(f, SRGB, GREY), {}, GREY[..., None], 0),
    "profile of other primaries": ("png", lambda f: with_profile(f, swapped()), {}, COLOUR[..., ::-1], 3),
    "profile beside alpha": (
        "png",
        lambda f: with_profile(f, swapped(), SEE),
        {"mode": "rgba"},
        SEE[..., [2, 1, 0, 3]],
        3,
    ),
    "the middle": ("png", lambda f: save(f, COLOUR), {"crop": "centre"}, COLOUR[:, 1:7], 0),
    "the middle of an upright one": (
        "png",
        lambda f: save(f, COLOUR.swapaxes(0, 1)),
        {"crop": "centre"},
        COLOUR.swapaxes(0, 1)[1:7],
        0,
    ),
    "a cut to shape": ("png", lambda f: save(f, COLOUR), {"crop": "centre", "size": (2, 1)}, None, 0),  # type: ignore[dict-item]
    "the same size": ("png", lambda f: save(f, COLOUR), {"size": (H, W)}, COLOUR, 0),
    "a larger size": (
        "png",
        lambda f: save(f, GREY * 0 + 7),
        {"size": (2 * H, 2 * W), "levels": 256},
        np.full((2 * H, 2 * W, 1), 7),
        0,
    ),
    "rounded levels": ("png", lambda f: save(f, GREY), {"levels": 5}, np.rint(GREY * (4 / 255))[..., None], 0),
    "black and white of a photograph": ("png", lambda f: save(f, GREY), {"levels": 2}, (GREY[..., None] > 127) * 1, 0),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_what_is_read(tmp_path: Path, name: str) -> None:
    """Against the arrays that were written, by formulas of NumPy."""
    suffix, write, options, expected, off = CONVERTED[name]
    write(tmp_path / f"a.{suffix}")
    with quiet():
        found, mode = decoded(tmp_path / f"a.{suffix}", Conversion(**options))
    if expected is None:
        assert found.shape == (3, 2, 1)
        return
    assert found.dtype == np.uint8
    assert mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[expected.shape[-1]]
    assert found.shape == np.moveaxis(expected, -1, 0).shape
    assert np.abs(np.moveaxis(found, 0, -1).astype(float) - expected).max() <= off


def test_a_fair_filter(tmp_path: Path) -> None:
    """Resizing keeps the mean, shows no stripes where there were fine ones, and does not let hidden colours out."""
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    save(tmp_path / "a.png", stripes)
    found, _ = decoded(tmp_path / "a.png", Conversion(size=(8, 8), levels=256))
    assert np.abs(found.astype(int) - 127.5).max() < 16
    hidden = np.zeros((64, 64, 4), np.uint8)
    hidden[:, :32] = (255, 0, 0, 0)  # red that nobody sees beside black
    hidden[:, 32:, 3] = 255
    save(tmp_path / "b.png", hidden)
    found, _ = decoded(tmp_path / "b.png", Conversion(size=(7, 7), mode="rgba"))
    assert found[0][found[3] > 20].max() == 0


def test_every_ending_that_pillow_reads_alone() -> None:
    assert {".tif", ".tiff", ".gif", ".jfif", ".ppm", ".tga", ".ico", ".jp2", ".bmp", ".webp"} <= set(SUFFIXES)
    assert not {".pdf", ".eps", ".ps", ".psd", ".wmf", ".mpg", ".h5", ".grib"} & set(SUFFIXES)


def test_no_other_program_is_started(tmp_path: Path) -> None:
    """PostScript by the name of a picture: Pillow would hand it to Ghostscript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    with pytest.raises(UserError, match=r"a.png is not a readable image \(UnidentifiedImageError\)"):
        decoded(tmp_path / "a.png", Conversion())


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".gif", ".bmp", ".webp", ".ppm", ".tga"])
@pytest.mark.parametrize("part", [0.2, 0.6, 0.95])
def test_truncated_files_are_never_half_read(tmp_path: Path, suffix: str, part: float) -> None:
    save(tmp_path / f"a{suffix}", noise(40, 40))
    content = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UserError, match=rf"a{suffix} is not a readable image \(\w+\); replace or remove it"):
        decoded(tmp_path / f"a{suffix}", Conversion(mode="rgb"))


# ---------------------------------------------------------------- what is refused without a word

Write = Callable[[Path], object]
"""Puts a picture into a folder by some name that it ends by itself."""
# what is put to the others, options, what the sentence says
REFUSED: dict[str, tuple[Write, list[str], str]] = {
    "alpha": (
        lambda f: save(f / "z.png", SEE),
        [],
        "z.png has mode RGBA, with transparency … data.mode=rgb or grey, which lays it on white, or rgba",
    ),
    "grey and alpha": (
        lambda f: save(f / "z.png", SEE[..., :2]),
        [],
        "mode LA, with transparency … or grey_alpha, which keeps",
    ),
    "a palette": (
        lambda f: palette(f / "z.png"),
        [],
        "z.png has mode P, a palette … convert it by data.mode=rgb or grey",
    ),
    "a palette with a hole": (
        lambda f: palette(f / "z.gif", transparency=3),
        [],
        "z.gif has mode P, with transparency … data.mode=rgb",
    ),
    "a transparent colour": (
        lambda f: save(f / "z.png", COLOUR, transparency=(1, 2, 3)),
        [],
        "mode RGB, with transparency",
    ),
    "CMYK": (lambda f: save(f / "z.jpg", mode="CMYK"), [], "z.jpg has mode CMYK … data.mode=rgb"),
    "LAB": (lambda f: Image.new("LAB", (W, H)).save(f / "z.tif"), [], "z.tif has mode LAB … data.mode=rgb"),
    "16 bits": (lambda f: save(f / "z.png", DEEP), [], "z.png has mode I;16, with values … data.scale=[0, 65535]"),
    "16 bits in TIFF": (lambda f: save(f / "z.tif", DEEP), [], "z.tif has mode I;16 … data.scale=[0, 65535]"),
    "16 bits in colour": (
        lambda f: png_of_16_bits(f / "z.png", COLOUR.astype(np.uint16)),
        [],
        "z.png has mode RGB, with 16 bits a channel … data.scale=[0, 65535]",
    ),
    "12 bits in colour": (
        lambda f: png_of_16_bits(f / "z.png", COLOUR.astype(np.uint16)),
        ["scale=[0,4095]"],
        "full range alone",
    ),
    "16 bits in PPM": (
        lambda f: (f / "z.ppm").write_bytes(b"P6 9 6 65535\n" + bytes(9 * 6 * 6)),
        [],
        "z.ppm has mode RGB, with 16 bits",
    ),
    "real numbers": (lambda f: save(f / "z.tif", REAL), [], "z.tif has mode F, with values from 0"),
    "beyond the scale": (lambda f: save(f / "z.tif", REAL), ["scale=[0,0.5]"], "outside of data.scale=[0, 0.5]; widen"),
    "NaN": (lambda f: save(f / "z.tif", np.where(REAL > 0.5, np.nan, REAL)), ["scale=[0,1]"], "z.tif has NaN or"),
    "infinity": (lambda f: save(f / "z.tif", np.where(REAL > 0.5, np.inf, REAL)), [], "z.tif has NaN or infinity in"),
    "an animation": (
        lambda f: of_frames(f / "z.gif"),
        ["mode=grey"],
        "z.gif holds 3 frames or pages … data.first_frame=true",
    ),
    "an APNG": (lambda f: of_frames(f / "z.png"), [], "z.png holds 3 frames or pages … data.first_frame=true"),
    "a WebP that moves": (lambda f: of_frames(f / "z.webp"), [], "z.webp holds 3 frames or pages"),
    "several pages": (lambda f: of_frames(f / "z.tif"), [], "z.tif holds 3 frames or pages … data.first_frame=true"),
    "another shape": (
        lambda f: save(f / "z.png", noise(W, H, 3)),
        [f"size=[{H},{W}]"],
        "z.png is 6×9, which 9×6 (width×height) would distort; cut the middle out by data.crop=centre",
    ),
    "another size": (
        lambda f: save(f / "z.png", noise(7, W, 3)),
        [],
        "z.png is 9×7 but … is 9×6 … data.size=32 data.crop=centre",
    ),
    "grey among colour": (
        lambda f: save(f / "z.png", GREY),
        [],
        "z.png is L but … is RGB; convert all … data.mode=rgb",
    ),
    "empty": (lambda f: (f / "z.png").touch(), [], "z.png is empty; replace or remove it"),
    "text": (lambda f: (f / "z.jpg").write_text("no picture"), [], "z.jpg is not a readable image"),
    "a link to nothing": (
        lambda f: (f / "z.png").symlink_to("/nonexistent.png"),
        [],
        "z.png is a link to nothing; remove it",
    ),
    "a pipe": (lambda f: os.mkfifo(f / "z.png"), [], "z.png is not a file; remove it"),
    "a bomb": (lambda f: (f / "z.pbm").write_bytes(b"P4 60000 60000\n"), [], "z.pbm has more than 179 million pixels"),
    "folders beside files": (lambda f: save(f / "more" / "1.png"), [], "holds both images (0.png) and folders (more)"),
    "a photograph": (
        lambda f: save(f / "z.png", noise(1025, 1025)),
        [],
        "z.png is 1025×1025, and an image has 1048576 pixels at most; make it smaller by data.size=32",
    ),
    "a size of no image": (lambda f: None, ["size=1025"], "data.size=[1025, 1025] is more than the 1048576 pixels"),
    "a scale that falls": (lambda f: None, ["scale=[9,0]"], "data.scale=[9, 0] does not rise"),
    "one level": (lambda f: None, ["levels=1"], "data.levels"),
    "too many levels": (lambda f: None, ["levels=257"], "data.levels"),
    "no size": (lambda f: None, ["size=0"], "data.size"),
    "a crop of another name": (lambda f: None, ["crop=center"], "data.crop"),
    "a mode of another name": (lambda f: None, ["mode=RGB"], "data.mode"),
}


@pytest.mark.parametrize("where", ["train", "test"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str) -> None:
    """One sentence with the file and the setting, exit code 2, and no run."""
    write, options, words = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    fill(Path("pictures"))
    write(Path("pictures") / where)
    before = contents(tmp_path)
    sets = [part for option in options for part in ("--set", f"data.{option}")]
    args = [part if part != "digits" else "folder:pictures" for part in TINY]
    code, out, err = call("train", *args, *sets, "--steps", 1, "--out", "run")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    found = 0
    for part in words.split(" … "):
        found = err.index(part, found)
    assert contents(tmp_path) == before


def test_a_wrong_picture_for_a_run_names_no_setting(tmp_path: Path) -> None:
    save(tmp_path / "a.png", SEE)
    with pytest.raises(UserError, match=r"a.png has mode RGBA, .*; convert it to what the images of the run are\.$"):
        ImageSpec(3, H, W, 256).open(tmp_path / "a.png")


# ---------------------------------------------------------------- splits, classes, and an account of all files


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pyro_delta.data"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"something")


# files beside six pictures, and what is told
ACCOUNTS: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing else": ((), "read 6 of 6 files"),
    "text": (("train/a.txt", "train/b.TXT", "test/c.csv"), "left out 3 of 9 files: 2 .txt, 1 .csv"),
    "files of systems": (
        ("train/Thumbs.db", "test/Thumbs.db", "test/.DS_Store", "train/._0.png"),
        "left out 4 of 10 files: 2 Thumbs.db, 1 .DS_Store, 1 hidden",
    ),
    "folders of systems": (
        ("train/.ipynb_checkpoints/0.png", "test/__MACOSX/a/0.png", "test/@eaDir/0.png", "lost+found/x"),
        "left out 4 of 10 files: 1 in .ipynb_checkpoints/, 1 in @eaDir/, 1 in __MACOSX/, 1 in lost+found/",
    ),
    "beside the splits": (
        ("README", "other/0.png", "other/deep/1.png"),
        "left out 3 of 9 files: 2 in other/, 1 without an ending",
    ),
    "other pictures": (("train/a.heic", "train/b.svg"), "left out 2 of 8 files: 1 .heic, 1 .svg"),
    "many kinds": (tuple(f"train/a.x{i}" for i in range(10)), "1 .x7, and others"),
}


@pytest.mark.parametrize("name", ACCOUNTS)
def test_every_file_is_accounted_for(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    others, words = ACCOUNTS[name]
    touch(fill(tmp_path), *others)
    with caplog.at_level(logging.INFO, "pyro_delta.data"):
        for _ in ("decoded", "cached"):
            caplog.clear()
            load(f"folder:{tmp_path}")
            (line,) = told(caplog)
            assert line.startswith(f"{tmp_path}: ")
            assert line.endswith(words)
    assert all(record.levelno == (logging.WARNING if others else logging.INFO) for record in caplog.records)


def test_empty_folders_of_systems_are_passed_over_and_those_of_classes_said(tmp_path: Path) -> None:
    fill(tmp_path, classes=("cat", "dog"))
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"):
        (tmp_path / "train" / name).mkdir()
    assert load(f"folder:{tmp_path}").classes == ("cat", "dog")
    (tmp_path / "train" / "eel").mkdir()
    (tmp_path / "test" / "eel").mkdir()
    touch(tmp_path, "train/eel/a.heic")
    with pytest.raises(UserError, match=r"train/eel holds no images, but 1 .heic; put files ending in .bmp, .jpg"):
        load(f"folder:{tmp_path}")


def test_files_at_any_depth_are_of_the_first_folder_s_class(tmp_path: Path) -> None:
    """As torchvision reads them."""
    from torchvision.datasets import ImageFolder

    fill(tmp_path, classes=("cat", "cat/young/small", "dog", "dog/old"))
    data = load(f"folder:{tmp_path}", validation=3)
    assert data.classes == ("cat", "dog")
    found = {
        name: data.classes[label]
        for part in (data.train, data.validation)
        for name, label in zip(part.names, part.labels)
    }
    theirs = ImageFolder(tmp_path / "train")
    assert found == {str(Path(path).relative_to(tmp_path)): theirs.classes[label] for path, label in theirs.samples}
    for name in found:
        assert np.array_equal(pixels_of(data, name), np.asarray(Image.open(tmp_path / name)))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_split_of_one_s_own(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "train", name, "test", classes=("cat", "dog"))
    data = load(f"folder:{tmp_path}")
    for part, folder_of in zip(PARTS, ("train", name, "test"), strict=True):
        split = getattr(data, part)
        assert sorted(split.names) == sorted(
            f"{folder_of}/{label}/{i}.png" for label in ("cat", "dog") for i in range(3)
        )
        assert all(data.classes[label] == file.split("/")[1] for file, label in zip(split.names, split.labels))
    assert len(load(f"folder:{tmp_path}", validation=4).validation) == 4
    with pytest.raises(UserError, match=r"there are 6 validation data, not 7; ask for 1 to 6"):
        load(f"folder:{tmp_path}", validation=7)


def test_without_splits_some_are_for_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same for every seed, of each class in proportion, and said."""
    fill(tmp_path, "cat", "dog", count=20)
    with caplog.at_level(logging.INFO, "pyro_delta.data"):
        first, other = (load(f"folder:{tmp_path}", seed=seed) for seed in (1, 2))
    assert [len(getattr(first, part)) for part in PARTS] == [33, 3, 4]
    assert [*first.test.names] == [*other.test.names]
    assert {*first.validation.names} != {*other.validation.names}
    assert torch.bincount(first.test.labels).tolist() == [2, 2]
    every = {name for part in PARTS for name in getattr(first, part).names}
    assert every == {f"{label}/{i}.png" for label in ("cat", "dog") for i in range(20)}
    assert (
        told(caplog)[0]
        == f"{tmp_path} has no train/ and test/: 4 of its 40 files, the same for every seed, are for test"
    )
    flat = fill(tmp_path / "flat", ".")
    assert [len(getattr(load(f"folder:{flat}"), part)) for part in PARTS] == [1, 1, 1]
    (flat / "0.png").unlink()
    with pytest.raises(UserError, match=r"flat holds 2 images; training, validation and test take one each"):
        load(f"folder:{flat}")
    (flat / "1.png").unlink()
    with pytest.raises(UserError, match=r"flat holds 1 image; training"):
        load(f"folder:{flat}")


# what is done to a folder with train, val and test of two classes, and what is said
TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "two for validation": (lambda f: fill(f, "valid", classes=("cat", "dog")), "holds both val/ and valid/; keep one"),
    "another case": (
        lambda f: (f / "train").rename(f / "Train"),
        "holds Train/, which is not the name of a split; call it train/",
    ),
    "another word": (
        lambda f: (f / "test").rename(f / "testing"),
        "holds testing/, which is not the name of a split; call it test/",
    ),
    "no test": (
        lambda f: (f / "test").rename(f / "more"),
        r"there is no folder \S+/test; images belong into train/ and test/",
    ),
    "other classes": (
        lambda f: (f / "val" / "dog").rename(f / "val" / "eel"),
        r"only train/ has 'dog', only val/ has 'eel'",
    ),
    "no classes": (
        lambda f: [(f / "val" / name).rename(f / name) for name in ("cat", "dog")] and save(f / "val" / "0.png"),
        "only train/ has class folders",
    ),
    "a loop": (
        lambda f: (f / "train" / "cat" / "loop").symlink_to(f / "train" / "cat"),
        r"cat/loop is a link that leads back to \S+/cat; remove it",
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_that_are_not_understood(tmp_path: Path, name: str) -> None:
    spoil, message = TREES[name]
    spoil(fill(tmp_path, "train", "val", "test", classes=("cat", "dog")))
    with pytest.raises(UserError, match=message) as caught:
        load(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", "train", "test", "cat", "more")
    (tmp_path / "real" / "train" / "z.png").symlink_to(tmp_path / "real" / "cat" / "1.png")
    (tmp_path / "there").symlink_to(tmp_path / "real")
    data = load(f"folder:{tmp_path / 'there'}")
    assert np.array_equal(pixels_of(data, "train/z.png"), np.asarray(Image.open(tmp_path / "real" / "cat" / "1.png")))


def test_names_that_are_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are no UTF-8, in names of files and of classes; and what steers a terminal is not printed."""
    odd = os.fsdecode(b"caf\xe9")
    fill(tmp_path, classes=("cat", odd))
    touch(tmp_path, f"train/cat/x.{odd}")
    data = load(f"folder:{tmp_path}")
    assert data.classes == (r"caf\xe9", "cat")
    assert r"train/caf\xe9/0.png" in {*data.train.names, *data.validation.names}
    assert told(caplog) == [rf"{tmp_path}: left out 1 of 13 files: 1 .caf\xe9"]
    (tmp_path / "test" / odd / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"test/caf\\xe9/1.png is empty"):
        load(f"folder:{tmp_path}")


def test_sounds_are_accounted_for_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        for label, number in itertools.product("ab", range(count)):
            (tmp_path / split / label / "deep").mkdir(parents=True, exist_ok=True)
            sound = np.random.default_rng(number).uniform(-0.5, 0.5, 400)
            soundfile.write(tmp_path / split / label / "deep" / f"{number}.wav", sound, 8000)
    touch(tmp_path, "train/a/x.mp3", "train/a/deep/y.mp3", "test/b/Thumbs.db")
    data = load(f"audio:{tmp_path}", length=3)
    assert told(caplog) == [f"{tmp_path}: left out 3 of 19 files: 2 .mp3, 1 Thumbs.db"]
    assert [len(getattr(data, part)) for part in PARTS] == [8, 4, 4]
    assert sorted(data.validation.names) == [f"valid/{label}/deep/{i}.wav" for label in "ab" for i in range(2)]
    cut = load(f"audio:{tmp_path}", length=2, cut=True)
    assert {"test/a/deep/0.wav/0", "test/a/deep/0.wav/1"} <= {*cut.test.names}
    x, names = data.spec.open(tmp_path / "test" / "a", 1)
    assert names == ["deep/0.wav"]
    assert torch.equal(x[0], data.test.x[[*data.test.names].index("test/a/deep/0.wav")])
    assert told(caplog)[-1].endswith("left out 1 of 2 files: 1 not asked for")
    flat = load(f"audio:{tmp_path / 'train'}", length=3)
    assert [len(getattr(flat, part)) for part in PARTS] == [6, 1, 1]


# ---------------------------------------------------------------- levels


def on_levels(levels: int, *shape: int, seed: int = 0) -> np.ndarray:
    return noise(*shape, seed=seed, high=levels) * np.uint8(255 // (levels - 1))


def fill_levels(
    root: Path, levels: int, shape: tuple[int, ...] = (H, W), test: int | None = None
) -> dict[str, np.ndarray]:
    seeds, found = itertools.count(), {}
    for split, number in itertools.product(("train", "val", "test"), range(4)):
        name = f"{split}/{number}.png"
        found[name] = on_levels(test if test and split == "test" else levels, *shape, seed=next(seeds))
        save(root / name, found[name])
    return found


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("shape", [(H, W), (H, W, 3)])
@pytest.mark.parametrize("levels", [2, 4, 16])
def test_few_levels_are_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    levels: int,
    shape: tuple,
    stored: bool,
) -> None:
    """In memory and in a file; said, and kept in the spec. A step of the bytes is one of the levels."""
    if stored:
        monkeypatch.setattr(folder, "IN_MEMORY", 3)
    monkeypatch.setattr(folder, "AT_ONCE", 3)
    written = fill_levels(tmp_path, levels, shape)
    with caplog.at_level(logging.INFO, "pyro_delta.data"):
        data = load(f"folder:{tmp_path}")
    assert data.spec.levels == levels
    assert f"the training images have {levels} levels, 0" in told(caplog)[-1]
    for part in PARTS:
        split = getattr(data, part)
        assert isinstance(split.x, torch.Tensor)  # few are read at once
        for image, name in zip(split.x[:], split.names):
            expected = (written[name] // (255 // (levels - 1))).reshape(H, W, -1).transpose(2, 0, 1)
            assert np.array_equal(image.numpy(), expected)
    kept = load(f"folder:{tmp_path}", levels=256)
    assert kept.spec.levels == 256
    assert np.array_equal(pixels_of(kept, "test/1.png").squeeze(), written["test/1.png"])


def test_stored_images_of_few_levels_are_read_as_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fill_levels(tmp_path, 2)
    monkeypatch.setattr(folder, "IN_MEMORY", 3)
    monkeypatch.setattr("pyro_delta.data.stored.HELD", 0)
    data = load(f"folder:{tmp_path}")
    assert not isinstance(data.train.x, torch.Tensor)
    for image, name in zip(data.train.x[:], data.train.names):
        assert np.array_equal(image[0].numpy(), written[name] // 255)
    part = data.train.take(torch.tensor([2, 0])).to("cpu")
    assert torch.equal(part.x[:], data.train.x[torch.tensor([2, 0])])
    assert [*part.names] == [data.train.names[2], data.train.names[0]]


def test_levels_are_decided_by_the_training_images(tmp_path: Path) -> None:
    fill_levels(tmp_path / "a", 2, test=4)
    with pytest.raises(
        UserError,
        match=r"a/test/\d.png has other values than the training images, 2 levels, 0 and 255; .*data.levels=2 rounds",
    ):
        load(f"folder:{tmp_path / 'a'}")
    assert load(f"folder:{tmp_path / 'a'}", levels=2).spec.levels == 2
    fill_levels(tmp_path / "b", 256, test=2)
    assert load(f"folder:{tmp_path / 'b'}").spec.levels == 256
    for split, number in itertools.product(("train", "test"), range(3)):
        save(tmp_path / "c" / split / f"{number}.png", np.zeros((H, W), np.uint8))
    assert load(f"folder:{tmp_path / 'c'}").spec.levels == 256  # of one colour, which tells nothing


# ---------------------------------------------------------------- the cache


def test_the_cache_serves_what_was_decoded_in_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, shape=(8, 8, 3))
    ways: list[dict[str, Any]] = [{}, {"mode": "grey"}, {"size": 4}, {"levels": 5}, {"size": 4, "mode": "rgba"}]
    first = [load(f"folder:{tmp_path}", **way) for way in ways]
    assert [data.spec.shape for data in first] == [(3, 8, 8), (1, 8, 8), (3, 4, 4), (3, 8, 8), (4, 4, 4)]
    assert int(first[3].train.x.max()) == 4
    calls: list[Path] = []

    def counted(file: Path, *given: Any) -> Any:
        calls.append(file)
        return decoded(file, *given)

    monkeypatch.setattr(folder, "decoded", counted)
    for way, before in zip(ways, first, strict=True):
        assert torch.equal(load(f"folder:{tmp_path}", **way).train.x, before.train.x)
    assert not calls  # each way has a place of its own
    monkeypatch.setattr(folder, "DECODER", "another Pillow")
    load(f"folder:{tmp_path}")
    assert len(calls) >= 6
    assert len([*(tmp_path / cache.NAME).glob("*/images.npy")]) == len(ways)  # in the place of the old one
    assert Image.__version__ in decoding.DECODER


@pytest.mark.parametrize("in_memory", [100, 2])
def test_a_dry_run_keeps_decoded_pictures_only_if_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    """What it reads is what is read otherwise. What is too large for memory is converted once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "IN_MEMORY", in_memory)
    before = contents(fill(tmp_path / "pictures", shape=(8, 8)))
    with cache.keeping_nothing():
        data = load("folder:pictures")
    args = [part if part != "digits" else "folder:pictures" for part in TINY]
    code, out, err = call("train", *args, "--set", "training.batch=2", "--dry-run")
    assert (code, "committed rate" in out) == (0, True), err
    kept = (tmp_path / "pictures" / cache.NAME).is_dir()
    assert kept == (in_memory == 2)
    assert kept or contents(tmp_path / "pictures") == before
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    monkeypatch.setattr(cache, "_convert", None if kept else cache._convert)  # it is not converted again
    assert torch.equal(load("folder:pictures").train.x[:], data.train.x[:])
    assert (tmp_path / "pictures" / cache.NAME).is_dir()


# ---------------------------------------------------------------- specs, and pictures for a run


def test_specs_keep_how_pictures_were_converted(tmp_path: Path) -> None:
    how = Conversion((4, 6), "centre", "grey_alpha", (0, 4095), True, 16)
    spec = ImageSpec(2, 4, 6, 16, conversion=how)
    assert spec_of_dict(json.loads(json.dumps(spec_as_dict(spec)))) == spec
    before = {"kind": "pyro_delta.data.images.spec:ImageSpec", "channels": 1, "height": 4, "width": 5, "levels": 17}
    assert spec_of_dict(before) == ImageSpec(1, 4, 5, 17)


def test_pictures_for_a_run_go_the_way_of_its_data(tmp_path: Path) -> None:
    for split, number in itertools.product(("train", "test"), range(4)):
        picture = Image.fromarray(noise(20, 30, 4, seed=number))
        exif = picture.getexif()
        exif[0x0112] = 6
        (tmp_path / split).mkdir(exist_ok=True)
        picture.save(tmp_path / split / f"{number}.png", exif=exif)
    data = load(f"folder:{tmp_path}", size=[6, 4], crop="centre", mode="grey_alpha", levels=9)
    assert data.spec.shape == (2, 6, 4)
    x, names = data.spec.open(tmp_path / "test")
    assert names == [f"{i}.png" for i in range(4)]
    for image, name in zip(x, names):
        assert torch.equal(image, data.test.x[[*data.test.names].index(f"test/{name}")])
    found = fill_levels(tmp_path / "few", 4)
    few = load(f"folder:{tmp_path / 'few'}")
    x, _ = few.spec.open(tmp_path / "few" / "test" / "2.png")
    assert np.array_equal(x[0, 0].numpy(), found["test/2.png"] // 85)
    save(tmp_path / "grey.png", noise(H, W))
    with pytest.raises(UserError, match=r"grey.png of \S+ has other values than the 4 levels of the run's images"):
        few.spec.open(tmp_path / "grey.png")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grids_of_every_kind_of_image(channels: int) -> None:
    x = torch.from_numpy(noise(2, channels, 70, 64))
    shown = grid(x, 256, 2)[:, 2:72, 2:66].double()
    colour = x[0].double() if channels in (1, 3) else x[0, :-1].double()
    if channels in (2, 4):
        part = x[0, -1].double() / 255
        colour = colour * part + 255 * (1 - part)
    assert (shown - colour).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 5), (5, 3), (6, 3), (7, 1)])
def test_images_lie_side_by_side_as_torchvision_has_them(count: int, columns: int) -> None:
    x = torch.from_numpy(noise(count, 3, 7, 5))
    assert torch.equal(side_by_side(x, columns), make_grid(x, nrow=columns, padding=FRAME, pad_value=255))


@pytest.mark.parametrize("mode", ["grey_alpha", "rgba"])
def test_from_pictures_to_latents_with_the_names_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Trained, drawn and encoded, of two and of four channels; a picture by its path has the latents of the split."""
    monkeypatch.chdir(tmp_path)
    for split, label, number in itertools.product(("train", "test"), ("cat", "dog"), range(6)):
        save(Path("pictures") / split / label / f"{number}.png", noise(20, 30, 4, seed=number))
    touch(Path("pictures"), "train/cat/Thumbs.db")
    args = [part if part != "digits" else "folder:pictures" for part in TINY]
    sets = [
        part
        for option in ("data.size=6", "data.crop=centre", f"data.mode={mode}", "training.batch=4")
        for part in ("--set", option)
    ]
    code, _, err = call("train", *args, *sets, "--steps", 2, "--out", "run")
    assert code == 0, err
    line = "left out 1 of 25 files: 1 Thumbs.db\n"
    assert f"pyro-delta: pictures: {line}" in err
    code, _, err = call("encode", "run", "test", "--out", "z.csv")
    assert code == 0, err
    assert line in err
    assert call("encode", "run", "pictures/test/dog/3.png", "--out", "one.csv")[0] == 0
    table, one = pandas.read_csv("z.csv", index_col="datum"), pandas.read_csv("one.csv", index_col="datum")
    assert call("encode", "run", "pictures/test", "--out", "again.csv")[0] == 0
    again = pandas.read_csv("again.csv", index_col="datum")
    assert [*again.index] == [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(6)]
    assert again["label"].tolist() == ["cat"] * 6 + ["dog"] * 6
    save(Path("pictures/test/bird/0.png"), noise(20, 30, 4))
    code, _, err = call("encode", "run", "pictures/test", "--out", "birds.csv")
    assert "no labels, for 1 of 13 files, such as bird/0.png" in err
    assert "label" not in pandas.read_csv("birds.csv")
    shutil.rmtree("pictures/test/bird")
    assert sorted(table.index) == [f"test/{label}/{i}.png" for label in ("cat", "dog") for i in range(6)]
    assert [name.split("/")[1] for name in table.index] == table["label"].tolist()
    np.testing.assert_allclose(
        table.loc["test/dog/3.png"].drop("label").astype(float), one.loc["3.png"].astype(float), rtol=1e-4, atol=1e-5
    )
    for command in (
        ["reconstruct", "run", "pictures/test/cat"],
        ["inpaint", "run", "pictures/test/cat/1.png", "--particles", 2],
    ):
        assert call(*command, "--num", 2, "--out", "a.png")[0] == 0
        with Image.open("a.png") as picture:
            assert picture.mode == "RGB"
    assert call("evaluate", "run", "--json")[2].count(line) == 1


def test_what_was_loaded_is_data(tmp_path: Path) -> None:
    data = load(f"folder:{fill(tmp_path)}", mode="rgba")
    assert isinstance(data, Splits)
    buffer = io.BytesIO()
    torch.save(data.train.x, buffer)
    assert data.train.names.dtype == object


def test_large_images_are_decoded_piece_by_piece_and_stay_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, count=7)
    known, made = load(f"folder:{tmp_path}"), []
    monkeypatch.setattr(folder, "BYTES", 2 * H * W * 3)
    monkeypatch.setattr(folder, "DECODER", "another Pillow")
    monkeypatch.setattr(cache, "MOST_IN_MEMORY", 14 * H * W * 3 - 1)
    monkeypatch.setattr("pyro_delta.data.stored.HELD", 0)
    whole = folder._decode
    monkeypatch.setattr(folder, "_decode", lambda files, *given: made.append(len(files)) or whole(files, *given))
    data = load(f"folder:{tmp_path}")
    assert made == [2] * 7
    for part in PARTS:
        assert not isinstance(getattr(data, part).x, torch.Tensor)
        assert torch.equal(getattr(data, part).x[:], getattr(known, part).x)
