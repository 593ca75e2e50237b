"""The family of the independent δ-VAE, whatever network gives its numbers."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.distributions.contour import MOST_NATS, gaussian_beyond_contour
from pyro_delta.errors import UserError
from pyro_delta.rate import committed_rate


class Contour:
    """Normals of which each coordinate keeps KL ≥ δ_k from N(0, 1): an independent δ-VAE [1, appendix].

    A network's two numbers for a coordinate, v, are (μ, ln σ²) themselves where the KL is at least δ_k. Where it would
    be less, v is stretched up to the contour KL = δ_k, along which it moves for nothing: what the coordinate says
    there, it says at the price of the floor. Both numbers should start from data.

    NOTE: [1] picks σ² between the two variances with KL(N(0, σ²) ‖ N(0, 1)) = δ_k and puts
    μ = √(2δ_k + 1 + ln σ² − σ²) + max(0, m). With softplus(m) for the maximum, which has no gradient below 0, the rate
    drives m to where softplus has no slope either, and the guide says nothing: its mutual information on the digits was
    .01 nats. Here there is no such place.

    Args:
        prior: over (n, d), N(0, 1) in every coordinate.
        rate_nats: δ of the whole sequence, shared evenly by its n·d coordinates.

    Raises:
        UserError: if the prior is not standard normal, or the rate cannot be committed.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    def __init__(self, prior: Distribution, rate_nats: float) -> None:
        _check_standard_normal(prior)
        most = MOST_NATS * prior.event_shape.numel()
        if not 0 < rate_nats <= most:
            raise UserError(
                f"guide.rate_nats={rate_nats:g} cannot be committed; give a rate above 0, at most {most:g} nats."
            )
        self.rate_nats, self.steps = rate_nats, prior.event_shape[0]
        self.delta = rate_nats / prior.event_shape.numel()

    def __call__(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ from two free numbers of each coordinate, see `gaussian_beyond_contour`."""
        return gaussian_beyond_contour(mean, log_variance, self.delta)

    def committed_rate(self, prior: Distribution) -> float | Tensor:
        """δ in nats against a prior, which must be standard normal; of each datum, (B,), if it has their lengths."""
        _check_standard_normal(prior)
        lengths = getattr(prior, "lengths", None)
        return self.rate_nats if lengths is None else self.rate_nats / self.steps * lengths.double()


def _check_standard_normal(prior: Distribution) -> None:
    # N(0, 1) in every coordinate, and no rate committed by correlations
    if prior.mean.any() or (prior.variance != 1).any() or bool((committed_rate(prior) > 1e-12).any()):
        raise UserError(
            f"guide.rate_nats needs a standard normal prior, not {type(prior).__name__}; choose standard_normal, "
            "or leave the rate out (of images, guide.program=anti_causal does without)."
        )
