"""Completing an image of which some pixels are kept, by importance sampling over latents and pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_delta.build import Programs
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.errors import UserError
from pyro_delta.evaluation.bound import evaluating


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
    programs: Programs, image_chw: Tensor, keep_hw: Tensor, *, particles: int = 64, completions: int = 4, seed: int = 0
) -> Completions:
    """Draws from p(missing pixels | kept pixels) of an image.

    Each of K particles draws z from the prior and runs through the image in raster order: missing pixels are drawn,
    kept ones are scored, w_k = Π p(kept pixel | all before it, z_k). Completions are particles picked with
    probabilities w_k / Σ w: exact as K → ∞, and the better the larger the effective sample size (Σ w)² / Σ w².

    Args:
        programs: of which the model is used; its likelihood must be an `AutoregressiveImage`.
        image_chw: integers; what is not kept is not looked at.
        keep_hw: boolean, the pixels that are kept.
        particles: K.
        completions: draws, with replacement.
        seed: of all noise.

    Raises:
        UserError: if the likelihood is no `AutoregressiveImage`, or gives kept pixels no finite weight.
    """
    with evaluating(programs, seed):
        model = programs.model
        z = model.prior().expand([particles]).sample()
        distribution = model.likelihood(z)
        if not isinstance(distribution, AutoregressiveImage):
            raise UserError(
                f"the likelihood returns a {type(distribution).__name__}, whose pixels cannot be kept while others are "
                "drawn; completing images takes one that returns an AutoregressiveImage."
            )
        images = image_chw.to(z.device, torch.int64).expand(particles, -1, -1, -1)
        keep_hw = keep_hw.to(z.device)
        x = distribution.sample(keep=(images, keep_hw))
        log_weight = (distribution.pixel_log_prob(x).double() * keep_hw).sum((-2, -1))
        weight = torch.softmax(log_weight, dim=0)
        if not weight.isfinite().all():
            raise UserError(
                f"log weights of particles, {log_weight[0].item():g} the first, are not finite: the run's weights "
                "have diverged; train it again at a lower training.lr."
            )
        chosen = torch.multinomial(weight, completions, replacement=True)
        return Completions(x[chosen].cpu(), 1 / weight.square().sum().item())
