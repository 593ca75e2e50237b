"""What pictures of data show, in words, which are kept in their files, too."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_delta.files import written_whole

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_delta.protocol import Spec

HEAD = 33
"""Bytes of a .png file before its first optional chunk: signature, and the chunk of its size."""
TEXT = b"iTXtDescription\0\0\0\0\0"
"""Type and beginning of a chunk of text in UTF-8, by a keyword of the standard [1]: not compressed, in no language."""


def shown(spec: Spec, x: Tensor, path: Path, columns: int, caption: str) -> str | None:
    """Shows data as `Spec.show` does, and returns the caption of the picture that was written; None if there is none.

    Args:
        spec: of the data, whose `show` may write a picture, .png, beside the file.
        x: the data, row after row of a sheet.
        path: of the file.
        columns: of a sheet.
        caption: of a picture.
    """
    picture = path.with_suffix(".png")
    before = _state(picture)
    spec.show(x, path, columns)
    if _state(picture) in (None, before):  # texts; a picture of that name is somebody else's
        return None
    describe(picture, caption)
    return caption


def describe(picture: Path, caption: str) -> None:
    """Writes a caption into a .png file that has none.

    References:
        1. Portable Network Graphics (PNG) Specification, 2nd edition, W3C 2003, section 11.3.4.
    """
    content, chunk = picture.read_bytes(), TEXT + caption.encode()
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with written_whole(picture) as file:
        file.write(content[:HEAD] + framed + content[HEAD:])


def _state(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that takes its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
