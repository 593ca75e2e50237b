"""The independent δ-VAE: a floor by the scale of each coordinate, against a standard normal prior."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.errors import UserError
from pyro_delta.guides.images.image_guide import ImageGuide
from pyro_delta.protocol import Prior, Spec
from pyro_delta.rate import committed_rate

MARGIN = 1e-4
"""Part of δ that is committed on top, so that rounding of μ and σ to float32 cannot break the floor."""


class IndependentDeltaGuide(ImageGuide):
    """q(z | x) = Π N(μ, σ²) with KL(q ‖ N(0, 1)) ≥ δ in every coordinate [1, appendix].

    KL ≥ δ holds if and only if μ² ≥ 2δ + 1 + ln σ² − σ². So σ² stays between the two roots of the right side, where it
    is not negative, and

        μ = √(2δ + 1 + ln σ² − σ²) + softplus(m).

    NOTE: without the square root, as some public code has it, the floor is broken. [1] adds max(0, m), which would have
    no gradient below 0.

    Args:
        spec: shape and levels of the images.
        prior: a standard normal one.
        rate_nats: δ of the whole sequence, shared evenly by its n·d coordinates.
        network: as for `ImageGuide`.

    Raises:
        UserError: if the prior is not standard normal, or the rate not positive.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    twin = "pyro_delta.twin.images.guides:IndependentDeltaGuide"

    def __init__(self, spec: Spec, prior: Prior, *, rate_nats: float = 4.0, **network: Any) -> None:
        super().__init__(spec, prior, 1, **network)
        p = prior()
        _check_standard_normal(p)
        if not 0 < rate_nats < math.inf:
            raise UserError(f"guide.rate_nats={rate_nats:g} cannot be committed; give a finite rate above 0.")
        self.rate_nats = rate_nats
        self.delta = rate_nats / p.event_shape.numel() * (1 + MARGIN) + 1e-6
        self.least, self.most = variance_bounds(self.delta)

    def posterior(self, x: Tensor) -> dist.Independent:
        """q(z | x) for images (…, C, H, W), event shape (n, d)."""
        mean, ratio = self.encode(x)
        variance = self.least + (self.most - self.least) * torch.sigmoid(ratio)
        # Never below the root, whose derivative is infinite at 0.
        floor = (2 * self.delta + 1 + variance.log() - variance).clamp_min(1e-12).sqrt()
        return dist.Normal(floor + F.softplus(mean), variance.sqrt()).to_event(2)

    def committed_rate(self, prior: Distribution) -> float:
        """δ in nats of this family against a prior, which must be standard normal."""
        _check_standard_normal(prior)
        return self.rate_nats


def variance_bounds(delta: float) -> tuple[float, float]:
    """The two roots of x − ln x = 2δ + 1, between which σ² stays: −W(−e^(−2δ−1)) by both branches of Lambert's W."""
    from scipy.special import wrightomega  # here, because it takes a while to import

    # Wright's ω(−c ± πi) is W(−e^−c) by either branch, without the power, which would underflow.
    least, most = sorted(-wrightomega(complex(-2 * delta - 1, side * math.pi)).real for side in (1, -1))
    return float(least), float(most)


def _check_standard_normal(prior: Distribution) -> None:
    # N(0, 1) in every coordinate, and no rate committed by correlations
    if prior.mean.any() or (prior.variance != 1).any() or committed_rate(prior).item() > 1e-12:
        raise UserError(f"the guide independent_delta needs a standard normal prior, not {type(prior).__name__}.")
