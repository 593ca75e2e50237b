"""Grids of generated images, written atomically."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pyro_delta.build import Programs
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.errors import UserError
from pyro_delta.evaluation.bound import evaluating, ignore
from pyro_delta.files import written_whole

LEAST_SIDE = 64
"""Pixels to which small images are enlarged."""
FRAME = 2
"""White pixels around every image."""


@torch.no_grad()
def draw(
    programs: Programs,
    count: int,
    *,
    decodings: int | None = None,
    seed: int = 0,
    batch: int = 64,
    advance: Callable[[int], None] = ignore,
) -> Tensor:
    """Images from the model.

    Args:
        programs: of which the model is used.
        count: images, or latents if `decodings` is given.
        decodings: R pictures of each latent sequence, in the paper's manner.
        seed: of the noise.
        batch: images drawn at once.
        advance: called with the number of images just drawn.

    Returns:
        integers (count, C, H, W), or (R·count, C, H, W) with row after row, each column of which shares its z.
    """
    with evaluating(programs, seed):
        z_bnd = programs.model.prior().expand([count]).sample()
    if decodings is not None:
        z_bnd = z_bnd.repeat(decodings, 1, 1)
    return decode(programs, z_bnd, seed=seed + 1, batch=batch, advance=advance)


@torch.no_grad()
def decode(
    programs: Programs,
    z_bnd: Tensor,
    *,
    same_noise: bool = False,
    seed: int = 0,
    batch: int = 64,
    advance: Callable[[int], None] = ignore,
) -> Tensor:
    """Images drawn from the likelihood given latents.

    Args:
        programs: of which the likelihood is used.
        z_bnd: (B, n, d).
        same_noise: whether all images share the decoder's noise, so that they differ by z alone.
        seed: of the noise.
        batch: images drawn at once.
        advance: called with the number of images just drawn.

    Returns:
        integers (B, C, H, W).
    """
    parts = []
    with evaluating(programs, seed):
        for z in z_bnd.to(next(programs.parameters()).device).split(batch):
            parts.append(
                (_with_shared_noise(programs, z, seed) if same_noise else programs.model.likelihood(z).sample()).cpu()
            )
            advance(len(z))
    return torch.cat(parts)


def _with_shared_noise(programs: Programs, z_bnd: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    distribution = programs.model.likelihood(z_bnd)
    if isinstance(distribution, AutoregressiveImage):
        channels, height, width = distribution.event_shape
        return distribution.sample(uniforms=torch.rand(1, height, width, 1 + channels).to(distribution.z))
    drawn = []
    for z in z_bnd.split(1):
        torch.manual_seed(seed)
        drawn.append(programs.model.likelihood(z).sample())
    return torch.cat(drawn)


def grid(images_bchw: Tensor, levels: int, columns: int) -> Tensor:
    """One picture (3, H', W') uint8 of integers 0 … levels−1, enlarged without smoothing where they are small."""
    from torchvision.utils import make_grid  # here, because it takes seconds to import

    scale = max(1, -(-LEAST_SIDE // max(images_bchw.shape[-2:])))
    bytes_bchw = (images_bchw.double() * (255 / (levels - 1))).round().to(torch.uint8)
    large_bchw = bytes_bchw.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    return make_grid(list(large_bchw), nrow=columns, padding=FRAME, pad_value=255)


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
        raise UserError(f"the picture {str(path)!r} is no .png file; give a name that ends in .png.")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for the picture {path.name}; make it or give another.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write the picture {path}; give a path that can be written.")
