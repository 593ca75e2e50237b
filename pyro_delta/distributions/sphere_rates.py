"""The rate that a concentration commits against the uniform distribution on a sphere: formulas of κ alone.

What depends on κ is computed in float64. Up to κ = 10⁶ a rate keeps nine digits, and its gradient eight.

References:
    [1] N. De Cao, W. Aziz, "The Power Spherical Distribution", 2020, arXiv:2006.04437.
    [2] NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to, transforms

from pyro_delta.errors import UserError, unknown_name
from pyro_delta.inverse import solve_for_rate
from pyro_delta.limits import LARGEST_DIMS

LARGEST_CONCENTRATION = 1e6
"""Beyond it the directions of one mean differ by less than a thousandth, and float64 loses digits of the rate."""

# Terms of the series of I_ν, and of its expansion for large arguments: either leaves out less than float64 holds.
_SERIES_TERMS = 72
_EXPANSION_TERMS = 13


class Concentration(constraints.Constraint):
    """The interval [0, 10⁶]; κ = 0 is the uniform distribution."""

    def check(self, value: Tensor) -> Tensor:
        return (value >= 0) & (value <= LARGEST_CONCENTRATION)


@biject_to.register(Concentration)
@transform_to.register(Concentration)
def _softplus(constraint: Concentration) -> transforms.Transform:
    return transforms.SoftplusTransform()


def log_area(dims: int) -> float:
    """The logarithm of the area of the unit sphere in R^d, ln |S^(d−1)| = ln 2 + (d/2) ln π − ln Γ(d/2)."""
    return math.log(2) + dims / 2 * math.log(math.pi) - math.lgamma(dims / 2)


# --- The rate of a concentration, and its inverse ---


def power_spherical_rate(concentration: float | Tensor, dims: int) -> Tensor:
    """δ that every PowerSpherical posterior of this κ commits against SphereUniform(dims), with gradients.

    Args:
        concentration: κ from 0 to 10⁶, any shape.
        dims: dimension d ≥ 2.

    Returns:
        Nats, float64, the shape of `concentration`.

    Raises:
        UserError: an argument is out of range.
    """
    return power_spherical_nats(_checked(concentration, dims), dims)


def von_mises_fisher_rate(concentration: float | Tensor, dims: int) -> Tensor:
    """δ that every VonMisesFisher posterior of this κ commits against SphereUniform(dims), with gradients.

    Args:
        concentration: κ from 0 to 10⁶, any shape.
        dims: dimension d ≥ 2.

    Returns:
        Nats, float64, the shape of `concentration`.

    Raises:
        UserError: an argument is out of range.
    """
    return von_mises_fisher_tilt(_checked(concentration, dims), dims).nats


_RATES = {"power_spherical": power_spherical_rate, "von_mises_fisher": von_mises_fisher_rate}


def concentration_for_rate(rate: float, dims: int, kind: Literal["power_spherical", "von_mises_fisher"]) -> float:
    """The κ whose posteriors commit `rate` nats against SphereUniform(dims): the rates above, inverted.

    Args:
        rate: wanted δ in nats.
        dims: dimension d ≥ 2.
        kind: "power_spherical" or "von_mises_fisher".

    Raises:
        UserError: no κ from 0 to 10⁶ commits `rate`, or another argument is out of range.
    """
    if kind not in _RATES:
        raise unknown_name("kind of posterior", str(kind), _RATES)
    if rate == 0:
        check_dims(dims)
        return 0.0
    what = f"{kind} at d = {dims} with a concentration up to {LARGEST_CONCENTRATION:g}"
    rate_of = _RATES[kind]
    return solve_for_rate(lambda kappa: rate_of(kappa, dims).item(), rate, what, most=LARGEST_CONCENTRATION)


def _checked(concentration: float | Tensor, dims: int) -> Tensor:
    check_dims(dims)
    kappa = torch.as_tensor(concentration, dtype=torch.float64)
    outside = kappa[~Concentration().check(kappa)]
    if outside.numel():
        raise UserError(
            f"a concentration of {outside[0].item():g} is out of range; give 0 to {LARGEST_CONCENTRATION:g}."
        )
    return kappa


def check_dims(dims: int) -> None:
    if isinstance(dims, bool) or not isinstance(dims, int) or not 2 <= dims <= LARGEST_DIMS:
        raise UserError(f"a sphere got dims {dims!r}; give a whole number from 2 to {LARGEST_DIMS}.")


# --- What depends on κ alone, float64 ---


def log_beta_ratio(kappa: Tensor, dims: int) -> Tensor:
    """−ln E[((1 + t)/2)^κ] under the uniform distribution: ln B(b, b) − ln B(a, b), b = (d − 1)/2, a = b + κ."""
    b = (dims - 1) / 2
    a = b + kappa
    return torch.lgamma(a + b) - torch.lgamma(a) - (math.lgamma(2 * b) - math.lgamma(b))


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    """Twelve nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    return (nodes + 1) / 2, weights / 2


def power_spherical_nats(kappa: Tensor, dims: int) -> Tensor:
    """KL of a power spherical distribution to the uniform one.

    By the duplication formula of Γ that of [1] is D(κ) − D(0) − κ D′(κ) with D(κ) = ln Γ(a + b) − ln Γ(a), which
    cancels where κ is small. There it is taken as the integral of its derivative, ∫ s [ψ′(b + s) − ψ′(2b + s)] ds from
    0 to κ, whose integrand is positive and has its nearest pole at −b.
    """
    b = (dims - 1) / 2
    near = kappa < b
    large = torch.where(near, b, kappa)  # not a clamp: at a tie it has no gradient
    direct = large * (torch.digamma(large + b) - torch.digamma(large + 2 * b)) + log_beta_ratio(large, dims)
    small = torch.where(near, kappa, b)
    nodes, weights = (torch.as_tensor(x, device=kappa.device) for x in _gauss_legendre())
    s = small.unsqueeze(-1) * nodes
    two = kappa.new_tensor(2.0)
    integral = small * (s * (torch.special.zeta(two, b + s) - torch.special.zeta(two, 2 * b + s)) * weights).sum(-1)
    return torch.where(near, integral, direct)


class Tilt(NamedTuple):
    """Of the density ∝ exp(κt): E[t], the KL to the uniform distribution, and ln E[exp(κt − κ)] under the latter."""

    resultant: Tensor
    nats: Tensor
    log_scale: Tensor


def von_mises_fisher_tilt(kappa: Tensor, dims: int) -> Tilt:
    """E[t] = I_{ν+1}(κ)/I_ν(κ) and, with M = ln [Γ(ν + 1) (2/κ)^ν I_ν(κ)], the KL κ E[t] − M; ν = d/2 − 1.

    By the power series [2, 10.25.2] up to where its middle term is about the twentieth, from there by the expansion for
    large orders [2, 10.41.3], which holds for a large argument at any order.
    """
    order = dims / 2 - 1
    bound = math.sqrt(80 * (20 + order))
    near = kappa <= bound

    small = torch.where(near, kappa, bound)
    k = torch.arange(1, _SERIES_TERMS + 1, dtype=kappa.dtype, device=kappa.device)
    terms = torch.cumprod((small.square() / 4).unsqueeze(-1) / (k * (k + order)), dim=-1)
    total = terms.sum(-1)
    next_total = (terms * (order + 1) / (order + 1 + k)).sum(-1)  # the series of order ν + 1
    resultant = small / dims * (1 + next_total) / (1 + total)
    series = Tilt(resultant, small * resultant - torch.log1p(total), torch.log1p(total) - small)

    large = torch.where(near, bound, kappa)
    log_bessel = _log_scaled_bessel(order, large)
    log_resultant = _log_scaled_bessel(order + 1, large) - log_bessel
    log_scale = math.lgamma(order + 1) + log_bessel - order * torch.log(large / 2)
    expansion = Tilt(log_resultant.exp(), large * torch.expm1(log_resultant) - log_scale, log_scale)
    return Tilt(*(torch.where(near, *pair) for pair in zip(series, expansion, strict=True)))


def _log_scaled_bessel(order: float, kappa: Tensor) -> Tensor:
    """The logarithm of I_ν(κ) e^−κ where r = √(ν² + κ²) is 40 or more, by the expansion in u_k(ν/r)/ν^k."""
    r = (kappa.square() + order**2).sqrt()
    powers = torch.arange(_EXPANSION_TERMS, device=kappa.device)
    table = torch.tensor(_expansion_table(), dtype=kappa.dtype, device=kappa.device)
    inverse, share = r.reciprocal().unsqueeze(-1), (order / r).square().unsqueeze(-1)
    total = torch.einsum("...k,kj,...j->...", inverse**powers, table, share**powers)
    exponent = order**2 / (r + kappa) + order * torch.log(kappa / (r + order))
    return exponent - 0.5 * torch.log(2 * math.pi * r) + total.log()


@lru_cache(maxsize=1)
def _expansion_table() -> list[list[float]]:
    """Row k: the coefficients c_j of u_k(p) = p^k Σ_j c_j p^2j, by the recursion [2, 10.41.9]."""
    rows = [[1.0] + [0.0] * (_EXPANSION_TERMS - 1)]
    for k in range(_EXPANSION_TERMS - 1):
        row = [0.0] * _EXPANSION_TERMS
        for j, c in enumerate(rows[-1][: k + 1]):
            m = k + 2 * j  # u_{k+1} = ½ p² (1 − p²) u_k′ + ⅛ ∫ (1 − 5s²) u_k ds, term by term
            row[j] += c * (m / 2 + 1 / (8 * (m + 1)))
            row[j + 1] -= c * (m / 2 + 5 / (8 * (m + 3)))
        rows.append(row)
    return rows
