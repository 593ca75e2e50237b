"""Gaussians recognised by their class: mean and precision read off the parameters.

Nothing is probed here, so that nothing bounds what may be certified. Classes count exactly: a subclass may have another
density, and is left to `any_gaussian`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import LowerCholeskyAffine, Permute
from torch import Size, Tensor
from torch import distributions as torch_dist
from torch.distributions import transforms

from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.distributions.shapes import broadcast_shapes


class Gaussian(NamedTuple):
    """Mean (..., N), precision matrix Λ (..., N, N) and ln det Λ (...) over the flattened event, float64.

    `tolerance` is how far, in nats, the log density may be from that of this Gaussian without having been seen: 0 where
    it was read off the parameters.
    """

    mean: Tensor
    precision: Tensor
    log_det: Tensor
    event_shape: Size
    tolerance: float = 0.0

    def precision_of_dimensions(self) -> Tensor:
        """Λ within each dimension of an event of shape (n, d), (..., d, n, n); any other event is one dimension."""
        n, d = self.event_shape if len(self.event_shape) == 2 else (self.mean.shape[-1], 1)
        return self.precision.unflatten(-1, (n, d)).unflatten(-3, (n, d)).diagonal(dim1=-3, dim2=-1).movedim(-1, -3)

    @property
    def cap_nats(self) -> float | None:
        """The most that this reading of a density certifies, in whole nats; None where nothing bounds it.

        A density (1 − w) p + w f with w below the tolerance passes for the Gaussian p, and a posterior that lies in f
        has a KL of no more than −ln w.
        """
        return float(math.floor(-math.log(self.tolerance))) if self.tolerance else None


Reader = Callable[[Any], Gaussian | None]
R = TypeVar("R", bound=Reader)

_READERS: dict[type, Reader] = {}


def register_gaussian(*classes: type) -> Callable[[R], R]:
    """Register how a Gaussian is read off the parameters of distributions of exactly these classes."""

    def register(reader: R) -> R:
        _READERS.update(dict.fromkeys(classes, reader))
        return reader

    return register


def gaussian_by_type(distribution: Any) -> Gaussian | None:
    """Mean and precision of a Gaussian whose class says that it is one; None for any other.

    Known are `Normal`, `MultivariateNormal`, `LowRankMultivariateNormal`, `GaussianAR1` and `GaussianSequence`, those
    made independent by `Independent`, and any of them moved, scaled, mapped by a triangular factor, permuted or
    reshaped by a `TransformedDistribution`.
    """
    reader = _READERS.get(type(distribution))
    gaussian = None if reader is None else reader(as_float64(distribution))
    if gaussian is None or not (torch.isfinite(gaussian.precision).all() and torch.isfinite(gaussian.log_det).all()):
        return None
    return gaussian


@register_gaussian(dist.Normal, torch_dist.Normal)
def _of_normal(normal: Any) -> Gaussian:
    return Gaussian(
        normal.loc.unsqueeze(-1), normal.scale.pow(-2)[..., None, None], -2 * normal.scale.log(), normal.event_shape
    )


@register_gaussian(dist.MultivariateNormal, torch_dist.MultivariateNormal)
def _of_multivariate_normal(normal: Any) -> Gaussian:
    """By the factor, which every parametrisation has, and by which the density is computed."""
    return _of_factor(normal, normal._unbroadcasted_scale_tril)


@register_gaussian(dist.LowRankMultivariateNormal, torch_dist.LowRankMultivariateNormal)
def _of_low_rank(normal: Any) -> Gaussian:
    factor = normal._unbroadcasted_cov_factor
    return _of_factor(
        normal, torch.linalg.cholesky_ex(factor @ factor.mT + normal._unbroadcasted_cov_diag.diag_embed())[0]
    )


def _of_factor(normal: Any, scale_tril: Tensor) -> Gaussian:
    size = scale_tril.shape[-1]
    eye = torch.eye(size, dtype=scale_tril.dtype, device=scale_tril.device)
    inverse = torch.linalg.solve_triangular(scale_tril, eye, upper=False)
    log_det = -2 * scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    batch = normal.batch_shape
    precision = (inverse.mT @ inverse).expand(*batch, size, size)
    return Gaussian(normal.loc.expand(*batch, size), precision, log_det.expand(batch), normal.event_shape)


@register_gaussian(GaussianAR1, GaussianSequence)
def _of_sequence(prior: GaussianAR1 | GaussianSequence) -> Gaussian:
    if type(prior) is GaussianAR1:
        log_det = -prior._log_det_d().sum(-1)
    else:
        log_det = -2 * prior.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
    # (..., d, n, n) → (..., n, n, d, d), diagonal in the last two → (..., n, d, n, d)
    spread = prior.precision().movedim(-3, -1).diag_embed().movedim((-4, -3, -2, -1), (-4, -2, -3, -1))
    mean = prior.mean.expand(prior.batch_shape + prior.event_shape)
    return Gaussian(mean.flatten(-2), spread.flatten(-4, -3).flatten(-2), log_det, prior.event_shape)


@register_gaussian(dist.Independent, torch_dist.Independent)
def _of_independent(independent: Any) -> Gaussian | None:
    base, count = independent.base_dist, independent.reinterpreted_batch_ndims
    gaussian = gaussian_by_type(base)
    if gaussian is None or count == 0:
        return gaussian
    batch = base.batch_shape
    parts, size = math.prod(batch[len(batch) - count :]), gaussian.mean.shape[-1]
    outer = batch[: len(batch) - count]
    precision = gaussian.precision.expand(*batch, size, size).reshape(*outer, parts, size, size)
    # Block-diagonal: (..., m, N, N) → (..., N, N, m, m) → (..., m, N, m, N)
    spread = precision.movedim(-3, -1).diag_embed().movedim((-4, -3, -2, -1), (-3, -1, -4, -2))
    return Gaussian(
        gaussian.mean.expand(*batch, size).reshape(*outer, parts * size),
        spread.flatten(-4, -3).flatten(-2),
        gaussian.log_det.expand(batch).reshape(*outer, parts).sum(-1),
        independent.event_shape,
    )


@register_gaussian(dist.TransformedDistribution, torch_dist.TransformedDistribution)
def _of_transformed(transformed: Any) -> Gaussian | None:
    """Of z → a + b·z, element by element, Λ_ij becomes Λ_ij / (b_i b_j); of z → a + L z it is L⁻ᵀ Λ L⁻¹."""
    base = transformed.base_dist
    gaussian = gaussian_by_type(base)
    if gaussian is None:
        return None
    event, batch, size = Size(base.event_shape), base.batch_shape, gaussian.mean.shape[-1]
    for transform in _parts(transformed.transforms):
        if type(transform) is transforms.ReshapeTransform:
            inner = transform.in_shape
            if event[len(event) - len(inner) :] != inner:
                return None
            event = event[: len(event) - len(inner)] + transform.out_shape
        elif type(transform) is transforms.AffineTransform:
            shape = batch + event
            loc, scale = (torch.as_tensor(part, dtype=torch.float64) for part in (transform.loc, transform.scale))
            if broadcast_shapes(loc.shape, scale.shape, shape) != shape:
                return None
            loc, scale = (part.to(gaussian.mean.device).expand(shape).reshape(*batch, size) for part in (loc, scale))
            gaussian = Gaussian(
                loc + scale * gaussian.mean,
                gaussian.precision / (scale.unsqueeze(-1) * scale.unsqueeze(-2)),
                gaussian.log_det - 2 * scale.abs().log().sum(-1),
                event,
            )
        elif type(transform) is LowerCholeskyAffine and event == Size((size,)):
            factor = torch.as_tensor(transform.scale_tril, dtype=torch.float64).to(gaussian.mean.device)
            if not (torch.equal(factor, factor.tril()) and (factor.diagonal() > 0).all()):
                return None  # its density takes it for that
            loc = torch.as_tensor(transform.loc, dtype=torch.float64).to(gaussian.mean.device)
            eye = torch.eye(size, dtype=torch.float64, device=factor.device)
            inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
            gaussian = Gaussian(
                loc + (factor @ gaussian.mean.unsqueeze(-1)).squeeze(-1),
                inverse.mT @ gaussian.precision @ inverse,
                gaussian.log_det - 2 * factor.diagonal().log().sum(),
                event,
            )
        elif type(transform) is Permute and transform.dim == -1 and event == Size((size,)):
            order = transform.permutation.to(gaussian.mean.device)
            precision = gaussian.precision[..., order, :][..., order]
            gaussian = Gaussian(gaussian.mean[..., order], precision, gaussian.log_det, event)
        else:
            return None
    return gaussian._replace(event_shape=event) if event == transformed.event_shape else None


def _parts(parts: list[Any]) -> list[Any]:
    """Single transforms, those that compose others taken apart."""
    found: list[Any] = []
    for part in parts:
        if type(part) is transforms.ComposeTransform:
            found += _parts(part.parts)
        elif type(part) is transforms.IndependentTransform:
            found += _parts([part.base_transform])
        else:
            found.append(part)
    return found
