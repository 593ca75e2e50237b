"""Completing an image of which some pixels are kept, by importance sampling over latents and pixels."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_delta.data.condition import KEY
from pyro_delta.data.images.folder import read_pictures
from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.diagnostics.trace import decoder, device_of, evaluating, prior
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.errors import UserError
from pyro_delta.vae import VAE


class Completions(NamedTuple):
    """Draws of the missing pixels of one image.

    Attributes:
        images: (S, C, H, W) integers, the kept pixels as they were.
        effective_sample_size: of the K weighted particles, 1 … K.
    """

    images: Tensor
    effective_sample_size: float


@torch.no_grad()
def inpaint(
    vae: VAE,
    image_chw: Tensor,
    keep_hw: Tensor,
    *,
    particles: int = 64,
    completions: int = 4,
    seed: int = 0,
    condition: Tensor | None = None,
) -> Completions:
    """Draws from p(missing pixels | kept pixels) of an image.

    Each of K particles draws z from the prior and runs through the image in raster order: missing pixels are drawn,
    kept ones are scored, w_k = Π p(kept pixel | all before it, z_k). Completions are particles picked with
    probabilities w_k / Σ w, with all pixels behind the last kept one drawn anew given z_k and those before: exact as
    K → ∞, and the better the larger the effective sample size (Σ w)² / Σ w². Given z, what follows kept upper rows is
    thus drawn from p(missing | kept, z) itself, however few particles count.

    Args:
        vae: of which the model is used; its likelihood must be an `AutoregressiveImage`.
        image_chw: integers; what is not kept is not looked at.
        keep_hw: boolean, the pixels that are kept.
        particles: K.
        completions: draws, with replacement.
        seed: of all noise.
        condition: what the image is conditioned on, (1,) or (1, C).

    Raises:
        UserError: if the likelihood is no `AutoregressiveImage`, or gives kept pixels no finite weight.
    """
    with evaluating(vae, seed):
        given = {}
        if condition is not None:
            given[KEY] = condition.to(device_of(vae)).expand(particles, *condition.shape[1:])
        z = prior(vae, particles, given).sample()
        distribution = decoder(vae, z, given)
        places = torch.arange(keep_hw.numel(), device=z.device).view(keep_hw.shape)
        if not isinstance(distribution, AutoregressiveImage):
            raise UserError(
                f"the likelihood returns a {type(distribution).__name__}, whose pixels cannot be kept while others are "
                "drawn; completing images takes one that returns an AutoregressiveImage."
            )
        images = image_chw.to(z.device, torch.int64).expand(particles, -1, -1, -1)
        keep_hw = keep_hw.to(z.device)
        before_hw = places <= places.masked_fill(~keep_hw, -1).max()  # the last kept pixel
        x = images if torch.equal(before_hw, keep_hw) else distribution.sample(keep=(images, keep_hw))
        log_weight = (distribution.pixel_log_prob(x).double() * keep_hw).sum((-2, -1))
        weight = torch.softmax(log_weight, dim=0)
        if not weight.isfinite().all():
            raise UserError(
                f"log weights of particles, {log_weight[0].item():g} the first, are not finite: the run's weights "
                "have diverged; train it again at a lower training.lr."
            )
        chosen = torch.multinomial(weight, completions, replacement=True)
        of_chosen = decoder(vae, z[chosen], {name: values[chosen] for name, values in given.items()})
        assert isinstance(of_chosen, AutoregressiveImage)
        drawn = of_chosen.sample(keep=(x[chosen], before_hw))
        return Completions(drawn.cpu(), 1 / weight.square().sum().item())


def upper_rows(spec: ImageSpec, rows: int | None = None) -> Tensor:
    """The mask (H, W) that keeps the upper `rows` rows, half of them if None.

    Raises:
        UserError: if that leaves nothing to complete.
    """
    if rows is not None and not 1 <= rows < spec.height:
        raise UserError(f"--rows {rows} leaves nothing to complete in images of {spec.height} rows; give fewer.")
    return (torch.arange(spec.height) < (rows or spec.height // 2))[:, None].expand(spec.height, spec.width)


def mask_of_picture(path: Path, spec: ImageSpec) -> Tensor:
    """The mask (H, W) that keeps where a picture is white.

    Raises:
        UserError: if the picture is of another size, or white all over.
    """
    picture = read_pictures(path, mend="save the mask in black and white, without transparency")[0][0]
    if picture.shape[1:] != (spec.height, spec.width):
        size, needed = tuple(picture.shape[1:]), (spec.height, spec.width)
        raise UserError(f"the mask {path} is {size}, the images are {needed}; bring it to their size.")
    keep_hw = (picture > 127).all(0)
    if keep_hw.all():
        raise UserError(f"the mask {path} is white all over, which leaves nothing to complete; paint some of it black.")
    return keep_hw


def completion_sheet(images: Tensor, keep_hw: Tensor, completed: list[Completions]) -> tuple[Tensor, Tensor]:
    """Each column an image, what is kept of it, and its completions.

    Returns:
        Images (rows · N, C, H, W), and their pixels that are hidden (rows · N, H, W).
    """
    columns = [
        torch.cat((image.expand(2, *image.shape).long(), found.images)) for image, found in zip(images, completed)
    ]
    sheet = torch.stack(columns, dim=1)
    hidden = torch.zeros(*sheet.shape[:2], *keep_hw.shape, dtype=torch.bool)
    hidden[1] = ~keep_hw.cpu()
    return sheet.flatten(0, 1), hidden.flatten(0, 1)
