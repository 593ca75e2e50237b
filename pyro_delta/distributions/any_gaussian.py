"""Gaussians recognised by their density alone, whatever class they come in, and the KL to them.

What the parameters of a known class do not say is probed: where the density is looked at it must be that of a Gaussian,
to the last digits that float64 leaves. What lies elsewhere stays unseen, so that a probe certifies a bounded rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.distributions.gaussian_types import Gaussian, gaussian_by_type
from pyro_delta.distributions.mean_field import check_same_event, mean_field_parameters
from pyro_delta.errors import UserError

# Largest number of float64 values that one pass of second derivatives may hold.
_CHUNK = 2**22

_MOST = 1e-6
"""Difference from a Gaussian, in nats and relative, beyond which a density is refused."""

_LEAST_TOLERANCE = 1e-12
_ROOM = 8.0
"""Multiple of the rounding estimated below; of 150 Gaussians of 8 to 500 numbers, AR(1) up to α = .9999, Matérn, dense
and lattices among them, the worst was off by 2.9 times the estimate (a float32 factor), and all others by at most 1."""

_CURVATURE_CHANGE = 1e-10
"""Relative to the curvature along both axes; of those Gaussians it was at most 2e-13."""

_RADII = (0.5, 1.0, 2.0, 4.0)
"""At 1 a probe is a draw from the Gaussian."""


def gaussian_kl(posterior: Distribution, prior: Gaussian) -> Tensor:
    """KL(posterior ‖ prior) in float64 nats, shape batch_shape, for any Gaussian prior.

    With prior N(m, Λ⁻¹) over N numbers and posterior N(μ, Σ):

        ½ [tr ΛΣ + (μ − m)ᵀ Λ (μ − m) − N − ln det Λ − ln det Σ]

    Args:
        posterior: `Normal(μ, σ).to_event(k)`, or a `GaussianSequence` where the prior's event shape is (n, d).
        prior: from `as_gaussian`, which costs O(N³): once for many posteriors.

    Raises:
        NotImplementedError: the posterior is of another family.
        UserError: the event shapes differ.
    """
    wide = as_float64(posterior)
    if type(wide) is GaussianSequence:
        check_same_event(wide, prior.event_shape)
        trace = ((prior.precision_of_dimensions() @ wide.scale_tril) * wide.scale_tril).sum((-3, -2, -1))
    else:
        _, scale = mean_field_parameters(wide, prior.event_shape, "this Gaussian")
        trace = (prior.precision.diagonal(dim1=-2, dim2=-1) * scale.square().flatten(-len(prior.event_shape))).sum(-1)
    away = wide.mean.flatten(-len(prior.event_shape)) - prior.mean
    square = (torch.einsum("...i,...ij->...j", away, prior.precision) * away).sum(-1)
    size = away.shape[-1]
    return 0.5 * (trace + square + size * math.log(2 * math.pi) - prior.log_det) - wide.entropy()


def as_gaussian(distribution: Distribution) -> Gaussian:
    """Mean and precision of any Gaussian: read off the parameters where the class is known, otherwise off the density.

    Three things are asked of a density, because each alone can be fooled: the same curvature at two points (a mixture
    of far-apart Gaussians has it), the quadratic form at points all around the mean, and the value at the mean that
    normalises it (which the mixture fails).

    Returns:
        The Gaussian; its `tolerance` is the most by which the density may differ from it where a draw of the Gaussian
        lies: 1e-12 nats, or what the rounding of float64 allows if that is more, and what was seen beyond it. With
        K = Σ_ij |Λ_ij| |Λ⁻¹_ij|, which grows with the condition of Λ, ln det Λ is known to about ε K. A density with
        constants of single precision is off by some 1e-8, which is seen.

    Raises:
        UserError: the density is not that of a Gaussian.
    """
    by_type = gaussian_by_type(distribution)
    return _probed(distribution) if by_type is None else by_type


def _probed(distribution: Distribution) -> Gaussian:
    name = title_of(distribution)
    _check_real_support(distribution, name)
    size = math.prod(distribution.event_shape)
    copied: dict[int, Any] = {}
    wide = as_float64(distribution, copied)
    device = next((new.device for new, _ in copied.values() if isinstance(new, Tensor)), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)  # a private one: certifying must not move the user's random numbers

    def noise(*points: int) -> Tensor:
        flat = torch.randn(*points, *distribution.batch_shape, size, dtype=torch.float64, generator=generator)
        return flat.to(device)

    def log_prob(x_flat: Tensor) -> Tensor:
        try:
            return wide.log_prob(x_flat.reshape(x_flat.shape[:-1] + distribution.event_shape))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{name}.log_prob fails in float64, so its rate cannot be certified: {error}") from error

    with torch.enable_grad():
        start = noise()
        gradient, hessian = _derivatives(log_prob, start)
        precision = (hessian + hessian.mT) / 2
        factor = _cholesky(precision, name)
        mean = start + torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        # Once more from there: where the mean is far from the start, rounding leaves it a little off.
        there = mean.detach().requires_grad_()
        gradient = _grad(log_prob(there).sum(), there).detach()
        mean = mean + torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        # The second point, and the ring of points below, lie at the distribution's own scale: x = mean + L⁻ᵀ ε.
        second = mean + torch.linalg.solve_triangular(factor.mT, 2 * noise().unsqueeze(-1), upper=True).squeeze(-1)
        hessian_there = _derivatives(log_prob, second)[1]
    unit = precision.diagonal(dim1=-2, dim2=-1).sqrt()
    change = (hessian_there - hessian).abs() / (unit.unsqueeze(-1) * unit.unsqueeze(-2))
    if not change.max() <= _CURVATURE_CHANGE:
        raise UserError(f"{name} is not Gaussian: the curvature of its log density changes from point to point.")

    with torch.no_grad():
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        normalised = 0.5 * (log_det - size * math.log(2 * math.pi))
        condition = (precision.abs() * torch.cholesky_inverse(factor).abs()).sum((-2, -1))
        rounding = torch.finfo(torch.float64).eps * (0.5 * condition + 0.5 * log_det.abs() + size)
        peak = log_prob(mean)
        if not torch.allclose(peak, normalised, rtol=_MOST, atol=_MOST):
            raise UserError(
                f"{name} is not Gaussian: at its mode the log density is {peak.flatten()[0]:.6g}, "
                f"where a normalised Gaussian of the same curvature has {normalised.flatten()[0]:.6g}."
            )
        radius = torch.tensor(_RADII * 4, dtype=torch.float64, device=device)
        radius = radius.reshape(-1, *[1] * len(distribution.batch_shape))
        white = radius.unsqueeze(-1) * noise(len(radius))
        away = torch.linalg.solve_triangular(factor.mT, white.unsqueeze(-1), upper=True).squeeze(-1)
        found, wanted = log_prob(mean + away), normalised - 0.5 * white.square().sum(-1)
        if not torch.allclose(found, wanted, rtol=_MOST, atol=_MOST):
            raise UserError(f"{name} is not Gaussian: its log density is not a quadratic form around its mode.")
        allowed = _ROOM * torch.cat([rounding[None], rounding + _rounding_of_points(precision, mean, away)])
        seen = torch.cat([(peak - normalised).abs()[None], (found - wanted).abs()])
        beyond = (seen - allowed).clamp_min(0).max()
        drawn = torch.cat([torch.zeros_like(radius[:1]), radius]) <= 1
        tolerance = torch.where(drawn, allowed, 0.0).max().clamp_min(_LEAST_TOLERANCE) + beyond
    return Gaussian(mean, precision, log_det, distribution.event_shape, tolerance.item())


def _rounding_of_points(precision: Tensor, mean: Tensor, away: Tensor) -> Tensor:
    """What float64 makes of the quadratic form at points `away` (S, ..., N) from the mean, and of the points."""
    square = 0.5 * (torch.einsum("...i,...ij->...j", away.abs(), precision.abs()) * away.abs()).sum(-1)
    slope = torch.einsum("...i,...ij->...j", away, precision).abs()
    return torch.finfo(torch.float64).eps * (square + (slope * (mean + away).abs()).sum(-1))


def _derivatives(log_prob: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (..., N) and negative Hessian (..., N, N) of a log density at `point` (..., N).

    Row i of the Hessian comes from copy i of the point, stacked as a sample dimension: two backward passes a chunk.
    """
    size = point.shape[-1]
    rows_per_chunk = max(1, _CHUNK // point.numel())
    rows = []
    gradient = torch.zeros_like(point)
    for first in range(0, size, rows_per_chunk):
        indices = range(first, min(first + rows_per_chunk, size))
        copies = point.detach().expand(len(indices), *point.shape).clone().requires_grad_()
        total = log_prob(copies).sum()
        gradients = _grad(total, copies)
        gradient = gradients[0].detach()
        chosen = torch.stack([gradients[row, ..., index] for row, index in enumerate(indices)])
        rows.append(_grad(chosen.sum(), copies).detach())
    return gradient, -torch.stack([row for chunk in rows for row in chunk], dim=-2)


def _grad(output: Tensor, x: Tensor) -> Tensor:
    """Gradient with a graph, zero where the output does not depend on x."""
    if not output.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(output, x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _cholesky(precision: Tensor, name: str) -> Tensor:
    if torch.isfinite(precision).all():
        factor, info = torch.linalg.cholesky_ex(precision)
        if not info.any():
            return factor
    raise UserError(f"{name} is not Gaussian: the curvature of its log density is not positive definite.")


def title_of(distribution: Distribution) -> str:
    """Class name, with what a wrapper wraps: Independent(Laplace)."""
    name = type(distribution).__name__
    return f"{name}({title_of(distribution.base_dist)})" if hasattr(distribution, "base_dist") else name


def _check_real_support(distribution: Distribution, name: str) -> None:
    try:
        support = distribution.support
    except NotImplementedError:
        raise UserError(f"{name} declares no support; set its `support` to constraints.real for a Gaussian.") from None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not isinstance(support, type(constraints.real)):
        raise UserError(f"{name} is not Gaussian: its support is {support}, not the real numbers.")
