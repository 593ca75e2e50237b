"""The independent δ-VAE: each coordinate keeps its distance from a standard normal prior."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.distributions.contour import MOST_NATS, gaussian_beyond_contour
from pyro_delta.errors import UserError
from pyro_delta.guides.images.image_guide import ImageGuide
from pyro_delta.nn.condition import given
from pyro_delta.protocol import Prior, Spec
from pyro_delta.rate import committed_rate


class ContourGuide(ImageGuide):
    """q(z | x) = Π N(μ, σ²) with KL(q ‖ N(0, 1)) ≥ δ_k in every coordinate: an independent δ-VAE [1, appendix].

    The network's two numbers for a coordinate, v, are (μ, ln σ²) themselves where the KL is at least δ_k. Where it
    would be less, v is stretched up to the contour KL = δ_k, along which it moves for nothing: what the coordinate says
    there, it says at the price of the floor. Both numbers start from data.

    NOTE: [1] picks σ² between the two variances with KL(N(0, σ²) ‖ N(0, 1)) = δ_k and puts
    μ = √(2δ_k + 1 + ln σ² − σ²) + max(0, m). With softplus(m) for the maximum, which has no gradient below 0, the rate
    drives m to where softplus has no slope either, and the guide says nothing: its mutual information on the digits was
    .01 nats. Here there is no such place.

    Args:
        spec: shape and levels of the images.
        prior: a standard normal one.
        rate_nats: δ of the whole sequence, shared evenly by its n·d coordinates.
        network: as for `ImageGuide`.

    Raises:
        UserError: if the prior is not standard normal, or the rate cannot be committed.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    twin = "pyro_delta.twin.images.guides:ContourGuide"

    from_data = 2

    def __init__(self, spec: Spec, prior: Prior, *, rate_nats: float = 4.0, **network: Any) -> None:
        super().__init__(spec, prior, 1, **network)
        p = prior()
        _check_standard_normal(p)
        most = MOST_NATS * p.event_shape.numel()
        if not 0 < rate_nats <= most:
            raise UserError(
                f"guide.rate_nats={rate_nats:g} cannot be committed; give a rate above 0, at most {most:g} nats."
            )
        self.rate_nats = rate_nats
        self.delta = rate_nats / p.event_shape.numel()

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> dist.Independent:
        """q(z | x) for images (…, C, H, W), and what they are conditioned on, event shape (n, d)."""
        mean, log_variance = self.encode(x, **given(condition))
        return dist.Normal(*gaussian_beyond_contour(mean, log_variance, self.delta)).to_event(2)

    def committed_rate(self, prior: Distribution) -> float:
        """δ in nats of this family against a prior, which must be standard normal."""
        _check_standard_normal(prior)
        return self.rate_nats


def _check_standard_normal(prior: Distribution) -> None:
    # N(0, 1) in every coordinate, and no rate committed by correlations
    if prior.mean.any() or (prior.variance != 1).any() or committed_rate(prior).item() > 1e-12:
        raise UserError(f"the guide contour needs a standard normal prior, not {type(prior).__name__}.")
