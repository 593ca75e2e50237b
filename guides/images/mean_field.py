"""Guides that are independent over steps and dimensions: anti-causal, and the paper's non-causal ablation."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_delta.guides.images.image_guide import ImageGuide
from pyro_delta.nn.condition import given
from pyro_delta.protocol import Prior, Spec
from pyro_delta.rate import minimising_posterior


class AntiCausalGuide(ImageGuide):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})), independent over steps and dimensions [1].

    What z_t could say of earlier rows the decoder has already; an anti-causal guide is left with what is still to come,
    as far as its network reaches: all of it with the sizes of the presets.
    σ starts at that of the posterior that attains the prior's δ.

    Args:
        spec: shape and levels of the images.
        prior: a Gaussian prior.
        network: as for `ImageGuide`.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    twin = "pyro_delta.twin.images.guides:AntiCausalGuide"

    scale: Tensor

    def __init__(self, spec: Spec, prior: Prior, **network: Any) -> None:
        super().__init__(spec, prior, 1, **network)
        with torch.no_grad():
            scale = minimising_posterior(prior()).base_dist.scale
        self.register_buffer("scale", scale.to(torch.get_default_dtype()))

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> dist.Independent:
        """q(z | x) for images (…, C, H, W), and what they are conditioned on, event shape (n, d)."""
        mean, ratio = self.encode(x, **given(condition))
        # σ = scale·softplus(r)/softplus(0): positive, equal to `scale` where the network gives 0, linear for large r
        return dist.Normal(mean, self.scale * (F.softplus(ratio) / math.log(2.0)) + 1e-6).to_event(2)


class BidirectionalGuide(AntiCausalGuide):
    """Every z_t sees rows above as well as below: the paper's non-causal ablation, a network without masks and shifts.

    It sees as far as the network reaches, which at the default sizes is not the whole of a large image.

    Takes the arguments of `AntiCausalGuide`.
    """

    twin = "pyro_delta.twin.images.guides:BidirectionalGuide"

    causality = "none"
