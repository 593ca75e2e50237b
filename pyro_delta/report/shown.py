"""What a page shows: figures, pictures, sounds and text, within it and no larger than a page of all of them may be."""

from __future__ import annotations

import base64
import io
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_delta.protocol import Spec

PICTURES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg", ".webp": "image/webp"}
WITH_PICTURE = (".mid", ".csv")
"""In the place of which the picture is shown that `show` writes beside them."""
SOUNDS = {".wav": "audio/wav", ".ogg": "audio/ogg", ".mp3": "audio/mpeg"}
FIGURE_BYTES, SHEET_BYTES, BESIDE_BYTES, SOUND_BYTES, TEXT_BYTES = 100_000, 280_000, 90_000, 190_000, 40_000
"""The most that a figure, a sheet of data, a picture beside sounds, sounds, and text may take: a page of four figures
and six of the others stays below 3 MB."""
WAV_HEAD = 44
"""Bytes of a .wav file before its samples."""
QUALITY = 80
"""Of a picture that has to be made smaller, as WebP counts it."""
LARGEST_SIDE = 4096
"""Of such a picture."""
READABLE = 0.8
"""Part of its size below which the words of a figure are not read."""


@dataclass(frozen=True)
class Shown:
    """Something to look at, to read or to hear.

    Attributes:
        kind: picture, drawing (data, whose pixels are to be seen), text or sound.
        content: a data URI, or the text.
        caption: what it is, and of what.
        alt: the same in the place of a picture.
        least: pixels that it is wide at least, on narrow screens by being moved sideways.
    """

    kind: str
    content: str
    caption: str
    alt: str
    least: int = 0


def figure(drawn: Figure, caption: str) -> Shown:
    """A matplotlib figure as a drawing of vectors, or of dots where there are too many lines."""
    file, kind = io.BytesIO(), ".svg"
    drawn.savefig(file, format="svg", metadata={"Date": None})
    if file.tell() > FIGURE_BYTES:
        file, kind = io.BytesIO(), ".png"
        drawn.savefig(file, format="png", dpi=110)
    least = round(READABLE * 96 * drawn.get_figwidth())
    return Shown("picture", _uri(file.getvalue(), PICTURES[kind]), caption, caption, least)


def shown_data(spec: Spec, x: Tensor, columns: int, caption: str, *, down: bool = False) -> Iterator[Shown]:
    """Data as their spec shows them: pictures, sounds and pictures of them, or text.

    Args:
        spec: of the data.
        x: row after row of a sheet.
        columns: of it.
        caption: of all.
        down: whether what belongs together stands in a column; where there is no sheet, it comes one after the other.
    """
    sheet = is_sheet(spec)
    group = len(x) // columns if down else columns
    if down and not sheet:
        x = x.unflatten(0, (-1, columns)).transpose(0, 1).flatten(0, 1)
    if spec.suffix in SOUNDS:
        yield from _sounds(spec, x, group, caption)
        return
    content, picture = _files(spec, x, columns)
    if sheet and (picture is not None or spec.suffix in PICTURES):
        yield _picture(spec, content, picture, caption)
        return
    yield _text(content, caption, len(x), group)


def shown_file(spec: Spec, path: Path, caption: str) -> Iterator[Shown]:
    """Data as their spec has shown them in a file before; of sounds, what a page has room for.

    Args:
        spec: of the data.
        path: of the file, which may have a picture beside it.
        caption: of all.
    """
    picture = path.with_suffix(".png")
    content, beside = path.read_bytes(), picture.read_bytes() if picture != path and picture.exists() else None
    if is_sheet(spec) and (beside is not None or spec.suffix in PICTURES):
        yield _picture(spec, content, beside, caption)
    elif spec.suffix in SOUNDS:
        heard, part = _beginning(content)
        words = f"{caption} To be heard: {part}; all of it is {path.parent.name}/{path.name}." if part else caption
        if heard:
            yield Shown("sound", _uri(heard, SOUNDS[spec.suffix]), words, words)
        else:
            yield Shown("text", f"{path.parent.name}/{path.name}", f"{caption} The file is too large for a page.", "")
        if beside is not None:
            yield _sheet(
                ".png", beside, f"{caption} Spectrograms, time to the right and frequency upwards.", BESIDE_BYTES
            )
    else:
        yield _text(content, caption)


def _beginning(content: bytes) -> tuple[bytes, str]:
    """As much of a file of sounds as a page has room for, and in words how much that is where it is not all.

    Of a large one whose samples are not plain numbers, as where they are compressed, that is nothing.
    """
    if len(content) <= SOUND_BYTES:
        return content, ""
    file = io.BytesIO()
    try:
        wave.open(io.BytesIO(content)).close()
    except (wave.Error, EOFError):
        return b"", ""
    with wave.open(io.BytesIO(content)) as whole, wave.open(file, "wb") as cut:
        cut.setparams(whole.getparams())
        frames = (SOUND_BYTES - WAV_HEAD) // (whole.getnchannels() * whole.getsampwidth())
        cut.writeframes(whole.readframes(frames))
        part = (
            f"the first {frames / whole.getframerate():.3g} of {whole.getnframes() / whole.getframerate():.3g} seconds"
        )
    return file.getvalue(), part


def _picture(spec: Spec, content: bytes, beside: bytes | None, caption: str) -> Shown:
    """The sheet that a spec has written, or the picture beside what it has written."""
    kind = "picture" if spec.suffix == ".csv" else "drawing"  # curves have no pixels of their own
    return _sheet(spec.suffix if beside is None else ".png", beside or content, caption, SHEET_BYTES, kind)


def _text(content: bytes, caption: str, count: int | None = None, group: int = 1) -> Shown:
    """Lines, cut where they are too long for a page, in groups if there is one for each of `count` data."""
    lines = content.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    most = TEXT_BYTES // max(1, len(lines))
    cut = [line if len(line.encode()) <= most else f"{line.encode()[:most].decode(errors='ignore')}…" for line in lines]
    caption += "" if cut == lines else f" Of each line, the first {most} bytes."
    if len(cut) == count:
        cut = "\n\n".join("\n".join(cut[at : at + group]) for at in range(0, len(cut), group)).split("\n")
    return Shown("text", "\n".join(cut), caption, caption)


def is_sheet(spec: Spec) -> bool:
    """Whether data of a kind are shown as one picture."""
    return spec.suffix in (*PICTURES, *WITH_PICTURE)


def _files(spec: Spec, x: Tensor, columns: int) -> tuple[bytes, bytes | None]:
    """The file of data that a spec writes, and the picture beside it, if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"shown{spec.suffix}"
        spec.show(x, file, columns)
        picture = file.with_suffix(".png")
        beside = picture.read_bytes() if picture != file and picture.exists() else None
        return file.read_bytes(), beside


def _sounds(spec: Spec, x: Tensor, group: int, caption: str) -> Iterator[Shown]:
    """A player of as many sounds as a page has room for, by whole groups if it can be, and a picture of all."""
    content, picture = _files(spec, x, group)
    count = len(x)
    while count and len(content) > SOUND_BYTES:
        fits = count * SOUND_BYTES // len(content)  # sounds are about as long as one another
        count = min(count - 1, fits // group * group or fits)
        content = _files(spec, x[:count], group)[0] if count else b""
    heard = f" To be heard: the first {count} of {len(x)}, since all would be too large." if count < len(x) else ""
    if count:
        yield Shown("sound", _uri(content, SOUNDS[spec.suffix]), caption + heard, caption)
    if picture is not None:
        words = f"{caption} Spectrograms, time to the right and frequency upwards, {group} sounds to a row."
        words += "" if count else " The sounds themselves are too long for a page: pyro-delta sample RUN writes some."
        yield _sheet(".png", picture, words, BESIDE_BYTES)


def _sheet(suffix: str, content: bytes, caption: str, most: int, kind: str = "drawing") -> Shown:
    """A picture of data, smaller and with losses where it has to be."""
    if suffix != ".svg" and len(content) > most:
        content, words = _smaller(suffix, content, most)
        suffix, caption = ".webp", f"{caption} {words}"
    return Shown(kind, _uri(content, PICTURES[suffix]), caption, caption)


def _smaller(suffix: str, content: bytes, most: int) -> tuple[bytes, str]:
    """A picture as WebP of so many bytes at most, and what has become of it."""
    from matplotlib.image import imread, imsave  # here, because it takes a while to import

    picture = imread(io.BytesIO(content), format=suffix.removeprefix("."))
    if picture.dtype == np.uint8:  # of all formats but .png
        picture = picture.astype(np.float32) / 255
    if picture.ndim == 2:  # grey, which has no channels of its own
        picture = np.repeat(picture[..., None], 3, axis=-1)
    picture_chw = torch.from_numpy(picture[..., :3]).movedim(-1, 0)
    before = (picture_chw.shape[2], picture_chw.shape[1])
    scale = min(1.0, LARGEST_SIDE / max(before))
    while True:
        width, height = (max(1, round(scale * side)) for side in before)
        scaled_chw = interpolate(picture_chw[None], (height, width), mode="area")[0]
        file = io.BytesIO()
        imsave(file, scaled_chw.movedim(0, -1).numpy(), format="webp", pil_kwargs={"quality": QUALITY})
        if file.tell() <= most or width * height == 1:
            smaller = f", made smaller, {width} × {height} of {before[0]} × {before[1]} pixels" if scale < 1 else ""
            return file.getvalue(), f"The picture is compressed with losses{smaller}."
        scale *= min(0.9, (most / file.tell()) ** 0.5)


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
