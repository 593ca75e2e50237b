"""A guide whose posterior correlates consecutive steps."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.distributions import GaussianSequence
from pyro_delta.errors import UserError
from pyro_delta.guides.images.image_guide import ImageGuide
from pyro_delta.nn.condition import given
from pyro_delta.protocol import Prior, Spec
from pyro_delta.rate import committed_rate, minimising_posterior


class StructuredGuide(ImageGuide):
    """q(z | x): Gaussian, independent over dimensions and over blocks of `block` consecutive steps.

    Within a block its covariance is free: z = μ + M L₀ ε, where L₀ is the factor of the posterior that attains δ, and M
    is lower triangular within blocks, the identity at the start. (In this order: row t of M L₀ takes row t of M alone,
    so that no scale hears of image rows above its own.) The richer family commits less:
    δ = ½ (Σ_b ln det Λ_bb − ln det Λ), 0 with a single block.

    NOTE: the paper's posterior is independent over steps (block = 1).

    Args:
        spec: shape and levels of the images.
        prior: a Gaussian prior that is independent over dimensions.
        block: steps of a block, 1 to n; the last block may be shorter.
        network: as for `ImageGuide`.

    Raises:
        UserError: if the blocks do not fit the prior.
    """

    twin = "pyro_delta.twin.images.guides:StructuredGuide"

    factor: Tensor

    def __init__(self, spec: Spec, prior: Prior, *, block: int = 2, **network: Any) -> None:
        steps = prior().event_shape[0]
        if not 1 <= block <= steps:
            raise UserError(f"guide.block={block} does not fit {steps} latent steps; give 1 to {steps}.")
        super().__init__(spec, prior, block, **network)
        self.block = block
        with torch.no_grad():
            best = minimising_posterior(prior(), block)
            factor_dnn = best.scale_tril if isinstance(best, GaussianSequence) else torch.diag_embed(best.stddev.mT)
        self.register_buffer("factor", factor_dnn.to(torch.get_default_dtype()))

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> GaussianSequence:
        """q(z | x) for images (…, C, H, W), and what they are conditioned on, event shape (n, d)."""
        mean, ratio, *below = self.encode(x, **given(condition))
        steps = torch.arange(mean.shape[-2], device=mean.device)
        matrix = torch.diag_embed((F.softplus(ratio) / math.log(2.0) + 1e-6).mT)
        for back, value in enumerate(below, start=1):
            # entry (t, t − back) of M, where both lie in one block
            row = steps[steps % self.block >= back]
            matrix[..., row, row - back] = value[..., row, :].mT
        return GaussianSequence(mean, matrix @ self.factor)

    def committed_rate(self, prior: Distribution) -> float:
        """δ in nats of this family against a prior."""
        return committed_rate(prior, blocks=self.block).item()
