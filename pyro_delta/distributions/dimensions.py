"""Distributions over a latent sequence, taken apart into their dimensions."""

from __future__ import annotations

from functools import singledispatch

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.errors import UserError


@singledispatch
def per_dimension(distribution: Distribution) -> Distribution:
    """The d independent sequences that make up a distribution of event shape (n, d), as a batch.

    Where both posterior and prior come apart, so does the rate: KL(q ‖ p) = Σ_k KL(q_k ‖ p_k).

        kl_bd = kl_divergence(per_dimension(q), per_dimension(p))
        log_prob_bd = per_dimension(p).log_prob(dimensions_of(z))

    A new distribution joins in by `@per_dimension.register`.

    Args:
        distribution: batch shape (...), event shape (n, d).

    Returns:
        A distribution of batch shape (..., d) and event shape (n, 1).

    Raises:
        UserError: if the distribution's class is not registered, or its dimensions depend on each other.
    """
    raise UserError(
        f"{type(distribution).__name__} is not known to be independent over its latent dimensions, so its rate has no "
        "parts; register it with pyro_delta.distributions.per_dimension, or take an objective of the total rate."
    )


@per_dimension.register
def _independent(distribution: Independent) -> Distribution:
    base = distribution.base_dist
    if not isinstance(base, Normal) or distribution.reinterpreted_batch_ndims != 2:
        raise UserError(
            f"the rate has parts for Normal(...).to_event(2), not for {type(base).__name__} with "
            f"{distribution.reinterpreted_batch_ndims} event dimensions from the batch; "
            "take an objective of the total rate."
        )
    return dist.Normal(dimensions_of(base.loc), dimensions_of(base.scale)).to_event(2)


@per_dimension.register
def _gaussian_ar1(distribution: GaussianAR1) -> Distribution:
    lengths = None if distribution.lengths is None else distribution.lengths.unsqueeze(-1)
    return GaussianAR1(distribution.alpha.unsqueeze(-1), distribution.length, lengths)


def dimensions_of(z_bnd: Tensor) -> Tensor:
    """Values of the parts: (..., n, d) → (..., d, n, 1)."""
    return z_bnd.mT.unsqueeze(-1)
