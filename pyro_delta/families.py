"""Posterior families with a fixed shape, and the rate that they commit: registered for pairs of classes.

A family may keep something fixed for every datum, whatever it learns: the concentration of a direction, the scale of a
Gaussian, the point mass of a code. Then KL(q ‖ p) has a floor that no encoder moves, and often a single value. Only a
caller who has seen the posteriors of several data knows whether it is fixed (`pyro_delta.commitment`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
from torch import Tensor
from torch import distributions as torch_dist
from torch.distributions import Distribution, kl_divergence

from pyro_delta.distributions.any_gaussian import as_gaussian, gaussian_kl
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.distributions.mean_field import check_same_event, normal_parameters
from pyro_delta.distributions.shapes import broadcast_shapes
from pyro_delta.distributions.sphere import PowerSpherical, SphereUniform, VonMisesFisher
from pyro_delta.errors import UserError

Guarantee = Literal[
    "every datum, exactly",
    "every datum, at least",
    "every datum, by its length",
    "every datum, by its own prior",
    "mean over the data",
]
"""What a committed rate bounds: the KL of each datum, which it may be equal to; that of a datum of full length, where
shorter ones commit less, each what its own length says; the least of some data, where each has a prior of its own, by
its condition, say, and commits what that says; or the mean KL alone."""
CertifiedBy = Literal["formula", "type", "probing"]


class FamilyRate(NamedTuple):
    """Nats, float64, of the prior's batch shape, how they are known, and the most that this certifies."""

    nats: Tensor
    by: CertifiedBy = "formula"
    cap_nats: float | None = None


@dataclass(frozen=True)
class Family:
    """How a posterior family of fixed shape commits a rate.

    Attributes:
        rate: from a posterior and a prior; None where the prior is of another kind.
        rests_on: what of a posterior must be fixed.
        words: that in words.
        guarantee: what the rate bounds.
    """

    rate: Callable[[Any, Any], FamilyRate | None]
    rests_on: Callable[[Any], tuple[Tensor, ...]]
    words: str
    guarantee: Guarantee


_FAMILIES: dict[tuple[type, type], Family] = {}


def register_family(posteriors: tuple[type, ...], priors: tuple[type, ...], family: Family) -> None:
    """Register a family for every pair of these classes.

    They count exactly, for a subclass may have another density, and stand for themselves and for what `Independent`
    makes of them.
    """
    _FAMILIES.update({(posterior, prior): family for posterior in posteriors for prior in priors})


def family_of(posterior: Distribution, prior: Distribution) -> Family | None:
    """The family that a posterior is of if its shape is fixed; None if none is registered for such a pair."""
    if normal_parameters(posterior) is not None:
        return FIXED_SCALE
    return _FAMILIES.get((type(_core(posterior)), type(_core(prior))))


def family_rate(posterior: Distribution, prior: Distribution) -> FamilyRate:
    """The least KL to `prior` of all posteriors that have the fixed shape of this one.

    Raises:
        UserError: no family is registered for such a pair, or the prior is of another kind.
    """
    family = family_of(posterior, prior)
    rate = None if family is None else family.rate(posterior, prior)
    if rate is None:
        raise UserError(
            f"no committed rate is known of {type(_core(posterior)).__name__} posteriors of a fixed shape against a "
            f"prior {type(_core(prior)).__name__} like this one; register_family one."
        )
    return rate


def _core(distribution: Any) -> Any:
    while type(distribution) in (dist.Independent, torch_dist.Independent):
        distribution = distribution.base_dist
    return distribution


# --- Directions ---


def _direction_rate(q: Any, p: Any) -> FamilyRate:
    """KL(q ‖ p), which does not depend on the mean direction."""
    return FamilyRate(kl_divergence(as_float64(q), as_float64(p)))


register_family(
    (PowerSpherical, VonMisesFisher),
    (SphereUniform,),
    Family(_direction_rate, lambda q: (_core(q).concentration,), "fixed concentration", "every datum, exactly"),
)


# --- A Gaussian of fixed scale ---


def _fixed_scale_rate(q: Any, p: Any) -> FamilyRate:
    """½ (tr ΛS − N − ln det ΛS) with S = diag σ²: the KL at the prior's mean, which a posterior may have."""
    parameters = normal_parameters(as_float64(q))
    assert parameters is not None
    scale, wide, events = parameters[1], as_float64(p), len(p.event_shape)
    check_same_event(q, p.event_shape)
    if (of_p := normal_parameters(wide)) is not None:
        kl = kl_divergence(dist.Normal(of_p[0], scale), dist.Normal(*of_p))
        return FamilyRate(kl.sum(tuple(range(-events, 0))) if events else kl, "type")
    if type(p) in (GaussianAR1, GaussianSequence):
        mean = wide.mean.expand(broadcast_shapes(wide.mean.shape, scale.shape))
        return FamilyRate(kl_divergence(dist.Normal(mean, scale).to_event(2), wide), "type")
    gaussian = as_gaussian(p)
    mean = gaussian.mean.reshape(p.batch_shape + p.event_shape)
    kl = gaussian_kl(dist.Normal(mean, scale).to_event(events), gaussian)
    return FamilyRate(kl, "probing" if gaussian.tolerance else "type", gaussian.cap_nats)


def _scale(q: Any) -> tuple[Tensor, ...]:
    parameters = normal_parameters(q)
    return () if parameters is None else (parameters[1],)


FIXED_SCALE = Family(_fixed_scale_rate, _scale, "fixed scale", "every datum, at least")
"""Normal and independent over all coordinates, against any Gaussian: registered for no class of priors."""


# --- Codes: one-hot, and finite scalars ---


def _code_rate(q: dist.Delta, p: Any) -> FamilyRate | None:
    """Σ ln L_i: −ln p of any code, of which L_i levels are possible at place i, all alike.

    Only a `Delta` is a point mass for every datum: a soft posterior can come as near the prior as it likes.
    """
    check_same_event(q, p.event_shape)
    probs = _core(p).probs.detach()
    possible = probs > 0
    if q.log_density.any() or (probs != probs.amax(-1, keepdim=True))[possible].any():
        return None
    nats = possible.sum(-1).double().log()
    return FamilyRate(nats.sum(tuple(range(len(p.batch_shape) - nats.dim(), 0))) if nats.dim() else nats)


register_family(
    (dist.Delta,),
    (dist.Categorical, torch_dist.Categorical, dist.OneHotCategorical, torch_dist.OneHotCategorical),
    Family(_code_rate, lambda q: (q.log_density,), "point mass", "every datum, exactly"),
)
