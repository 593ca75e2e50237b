"""Arrays of a user's own as images: bytes (N, H, W), (N, C, H, W) or (N, H, W, C), or what a reader made of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.data.spec import Spec
from pyro_delta.data.splits import Split

PRESET = "photos"
CHANNELS = (1, 2, 3, 4)
"""That images have; where both ends of a shape could be them, they come first, as torch has it."""


def images_of(split: Split) -> tuple[Spec, Split, str] | None:
    """Spec, data (N, C, H, W) and preset of arrays that are images; None of others.

    Bytes are, and real numbers k/255, which readers make of bytes. There are as many levels as the largest value
    says, two where all are black or white.
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
    if bool(((x == 0) | (x == 255)).all()) and bool((x == 255).any()):  # black and white
        x = x // 255
    return ImageSpec(channels, height, width, max(2, int(x.max()) + 1)), replace(split, x=x), PRESET


def _as_bytes(x: Tensor) -> Tensor | None:
    """Bytes as they are, and truth as 0 and 1; real numbers k/255 as k, if all are such; None of other numbers."""
    if not x.is_floating_point():
        return x.to(torch.uint8) if x.dtype in (torch.uint8, torch.bool) else None
    if not 0 <= x.min() < x.max() <= 1:
        return None
    wide = 255 * x.double()
    return wide.round().to(torch.uint8) if bool(((wide - wide.round()).abs() < 1e-3).all()) else None
