"""Arrays of a user's own as images: bytes (N, H, W), (N, C, H, W) or (N, H, W, C), or what a reader made of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_delta.data.images.conversion import step_of
from pyro_delta.data.images.folder import step_of_few
from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.data.spec import Spec
from pyro_delta.data.splits import Split
from pyro_delta.errors import UserError

PRESET = "photos"
CHANNELS = (1, 2, 3, 4)
"""That images have; where both ends of a shape could be them, they come first, as torch has it."""


def images_of(split: Split, levels: int | None = None) -> tuple[Spec, Split, str] | None:
    """Spec, data (N, C, H, W) and preset of arrays that are images; None of others.

    Bytes are, and real numbers k/255, which readers make of bytes. As in a folder of pictures there are 256 levels,
    unless all bytes stand on 2, 4 or 16 of them, 0 to 255; and two where all are 0 or 1.

    Args:
        split: arrays.
        levels: that there are; bytes are these, 0 … levels − 1, or stand for them, 0 to 255.

    Raises:
        UserError: if they do neither.
    """
    if split.x.dim() not in (3, 4) or 0 in split.x.shape:
        return None
    x = _as_bytes(split.x)
    if x is None:
        return None
    if x.dim() == 3:
        x = x.unsqueeze(1)
    elif x.shape[1] not in CHANNELS and x.shape[-1] in CHANNELS:
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.shape[1] not in CHANNELS:
        return None
    channels, height, width = x.shape[1:]
    x, levels = _levelled(x, levels)
    return ImageSpec(channels, height, width, levels), replace(split, x=x), PRESET


def _levelled(x: Tensor, levels: int | None) -> tuple[Tensor, int]:
    """Bytes on their levels, and how many these are."""
    largest = int(x.max())
    if levels is None:
        if largest == 1:
            return x, 2
        step = step_of_few(x)
        return x // step, 255 // step + 1
    if largest < levels:
        return x, levels
    at = step_of(levels) if levels <= 256 else None
    if at is None or bool((x % at).any()):
        stand = "" if at is None else f", nor are all multiples of {at}, which would stand for them"
        raise UserError(
            f"the images hold bytes up to {largest}, and with {levels} levels they go from 0 to {levels - 1}{stand}; "
            "bring them to these levels, or give others (data.levels of a training)."
        )
    return x // at, levels


def _as_bytes(x: Tensor) -> Tensor | None:
    """Bytes as they are, and truth as 0 and 1; real numbers k/255 as k, if all are such; None of other numbers."""
    if not x.is_floating_point():
        return x.to(torch.uint8) if x.dtype in (torch.uint8, torch.bool) else None
    if not 0 <= x.min() < x.max() <= 1:
        return None
    wide = 255 * x.double()
    return wide.round().to(torch.uint8) if bool(((wide - wide.round()).abs() < 1e-3).all()) else None
