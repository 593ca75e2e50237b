"""Grids of images as PNG files, written whole. Transparent ones lie on white, as in most viewers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from pyro_delta.errors import UserError
from pyro_delta.files import written_whole

LEAST_SIDE = 64
"""Pixels to which small images are enlarged."""
FRAME = 2
"""White pixels around every image."""


HIDDEN = (255, 0, 200)
"""The colour of pixels that are not shown: hardly one of a photograph, and of no grey image."""


def grid(images_bchw: Tensor, levels: int, columns: int, hidden_bhw: Tensor | None = None) -> Tensor:
    """One picture (3, H', W') uint8 of images, enlarged without smoothing where they are small.

    Args:
        images_bchw: integers 0 … levels − 1; of 1 to 4 channels, see `ImageSpec`.
        levels: of them.
        columns: images side by side.
        hidden_bhw: pixels that are painted in a colour of their own instead.
    """
    scale = max(1, -(-LEAST_SIDE // max(images_bchw.shape[-2:])))
    shown_bchw = images_bchw.double() * (255 / (levels - 1))
    if images_bchw.shape[1] in (2, 4):
        colour_bchw, alpha_b1hw = shown_bchw[:, :-1], shown_bchw[:, -1:] / 255
        shown_bchw = colour_bchw * alpha_b1hw + 255 * (1 - alpha_b1hw)
    bytes_bchw = shown_bchw.round().to(torch.uint8)
    if hidden_bhw is not None:
        colour_c11 = torch.tensor(HIDDEN, dtype=torch.uint8)[:, None, None]
        bytes_bchw = torch.where(hidden_bhw[:, None], colour_c11, bytes_bchw)
    large_bchw = bytes_bchw.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    return side_by_side(large_bchw.expand(-1, 3, -1, -1), columns)


def side_by_side(images_bchw: Tensor, columns: int) -> Tensor:
    """One picture (C, H', W') of images with white between and around them, row by row; a single image as it is.

    As torchvision's `make_grid`, which takes seconds to import.
    """
    count = len(images_bchw)
    if count == 1:
        return images_bchw[0]
    columns = min(columns, count)
    rows = -(-count // columns)
    white_bchw = images_bchw.new_full((rows * columns - count, *images_bchw.shape[1:]), 255)
    framed_bchw = pad(torch.cat([images_bchw, white_bchw]), (FRAME, 0, FRAME, 0), value=255)
    picture_chw = framed_bchw.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    return pad(picture_chw, (0, FRAME, 0, FRAME), value=255)


def save_png(picture_chw: Tensor, path: Path) -> None:
    """Writes a picture; a reader sees the old file or the new one, never a part.

    Raises:
        UserError: if the path does not end in .png or cannot be written.
    """
    check_png(path)
    try:
        with written_whole(path) as file:
            Image.fromarray(picture_chw.permute(1, 2, 0).numpy()).save(file, format="PNG")
    except OSError as error:
        raise UserError(f"cannot write the picture {path} ({error.strerror}); give another path.") from None


def check_png(path: Path) -> None:
    """Refuses, before any work is done, a path that no picture can be written to.

    Raises:
        UserError: if it does not end in .png or its folder is missing.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"the picture {str(path)!r} is not a .png file; give a name that ends in .png.")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for the picture {path.name}; make it or give another.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write the picture {path}; give a path that can be written.")
