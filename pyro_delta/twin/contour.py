"""The twin of `pyro_delta.guides.contour`, written from `docs/architecture.md`.

References:
    [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution

from pyro_delta.errors import UserError
from pyro_delta.twin.rate import committed_rate


class Contour:
    """Normals of which each coordinate keeps KL ≥ δ/(n·d) from N(0, 1) [1, appendix].

    Args:
        prior: the twin of a standard normal one.
        rate_nats: δ of the whole sequence.

    Raises:
        UserError: if the prior is not standard normal.
    """

    def __init__(self, prior: Distribution, rate_nats: float) -> None:
        """See the class."""
        self.rate_nats, self.steps = rate_nats, prior.event_shape[0]
        self.committed_rate(prior)
        self.delta = rate_nats / math.prod(prior.event_shape)

    def __call__(self, mean: Array, log_variance: Array) -> tuple[Array, Array]:
        """μ and σ from two free numbers of each coordinate."""
        v = jnp.stack((mean, log_variance))
        v = v * jnp.minimum(1.0, 1e15 / jnp.maximum(jnp.abs(v).max(0), 1.0))  # whose distance from 0 can be held
        small = jnp.hypot(*v) < 1e-4
        v = v.at[0].add(jnp.where(small, 2e-4, 0.0))
        drawn_in = v * jnp.minimum(1.0, 86 / jnp.hypot(*v))
        inside = _kl_from_standard(v) < _above(self.delta)
        mean, log_variance = jnp.where(inside, onto_contour(v, _above(self.delta)), drawn_in)
        return mean, jnp.exp(log_variance / 2)

    def committed_rate(self, prior: Any) -> Any:
        """δ in nats against a prior, which must be standard normal; of each datum, (B,), if it has their lengths."""
        if np.any(committed_rate(prior) > 1e-12):
            raise UserError(
                f"guide.rate_nats needs a standard normal prior, not {type(prior).__name__}; choose standard_normal, "
                "or leave the rate out (of images, guide.program=anti_causal does without)."
            )
        lengths = getattr(prior, "lengths", None)
        return self.rate_nats if lengths is None else self.rate_nats / self.steps * np.asarray(lengths, np.float64)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def onto_contour(v: Array, delta: float) -> Array:
    """The point w = k·v, k > 0, at which KL(N(μ, σ²) ‖ N(0, 1)) = δ with (μ, ln σ²) = w.

    The KL rises along the ray, so halving finds k: it is 0 at the near end, and at least δ at |w| = 2δ + 2, since it
    is at least (|w| − 1)/2 wherever |w| ≥ 2.

    Args:
        v: numbers other than (0, 0), shape (2, …).
        delta: nats, above 0.
    """
    unit = v / jnp.hypot(*v)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        below = _kl_from_standard(middle * unit) < delta
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    near = jnp.zeros_like(unit[0])
    low, high = jax.lax.fori_loop(0, 64, halve, (near, near + 2 * delta + 2))
    return (low + high) / 2 * unit


@onto_contour.defjvp
def _onto_contour_jvp(delta: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """KL(k·v) = δ, differentiated: w moves by k·dv, less what leads off the contour, taken off along the ray."""
    (v,), (dv,) = primals, tangents
    w = onto_contour(v, delta)
    normal = jnp.stack([w[0], jnp.expm1(w[1]) / 2])
    moved = jnp.hypot(*w) / jnp.hypot(*v) * dv
    return w, moved - w * (normal * moved).sum(0) / (normal * w).sum(0)


def _kl_from_standard(w: Array) -> Array:
    """KL(N(μ, σ²) ‖ N(0, 1)) for w = (μ, ln σ²), shape (2, …)."""
    mean, log_variance = w
    return (jnp.square(mean) + jnp.expm1(log_variance) - log_variance) / 2


def _above(delta: float) -> float:
    """δ and a margin for what rounding μ and σ to single precision takes off."""
    return ((1 + 1e-6) * math.sqrt(delta) + 1e-6) ** 2
