"""The committed rate: δ of a prior and a posterior family, its inverse, and the posterior that attains it.

The committed rate is the least KL(q ‖ p) that any member q of the posterior family can have. If δ > 0 the posterior
cannot collapse onto the prior. Rates are in nats. Only formulas certify here; nothing is minimised numerically.

References:
    [1] A. Razavi, A. van den Oord, B. Poole, O. Vinyals, "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.sequential_gaussian import SequentialGaussian
from pyro_delta.errors import UserError

ClosedForm = Callable[[Any], Tensor]
F = TypeVar("F", bound=ClosedForm)

_CLOSED_FORMS: dict[type, ClosedForm] = {}

# Largest number of float64 values that one pass of second derivatives may hold.
_CHUNK = 2**22


# --- AR(1): the rate, its inverse, and the spelling of α ---


def ar1_committed_rate(alpha: float | Sequence[float] | Tensor, length: int) -> Tensor:
    """δ of the AR(1) prior against posteriors independent over steps and dimensions [1, eq. 3].

    δ = ½ Σ_k [(n − 2) ln(1 + α_k²) − ln(1 − α_k²)] for n ≥ 2.

    NOTE: the formula does not hold at n = 1, where the prior is a standard normal and the least KL is 0; 0 is returned.

    Args:
        alpha: |α| < 1; one number, a sequence, or a tensor of shape (..., d), summed over its last dimension.
        length: number of steps n ≥ 1.

    Returns:
        δ in nats, float64, shape (...).

    Raises:
        UserError: |α| ≥ 1 or not a number, or `length` < 1.
    """
    _check_whole("length", length)
    alpha_d = torch.atleast_1d(torch.as_tensor(alpha, dtype=torch.float64))
    outside = alpha_d[~(alpha_d.abs() < 1)]
    if outside.numel():
        raise UserError(f"alpha {outside[0].item():g} is outside (-1, 1); give correlations strictly between -1 and 1.")
    if length == 1:
        return alpha_d.sum(-1) * 0
    rate_d = (length - 2) * torch.log1p(alpha_d.square()) - torch.log1p(-alpha_d) - torch.log1p(alpha_d)
    return 0.5 * rate_d.sum(-1)


def alpha_for_rate(rate: float, length: int, dims: int) -> float:
    """The one α ≥ 0 that, shared by `dims` dimensions of `length` steps, commits `rate` nats in total (eq. 3 inverted).

    Raises:
        UserError: `rate` is negative, not finite, or needs an α nearer to 1 than float64 can hold; `length` is 1.
    """
    _check_invertible(rate, length, dims)
    return _solve(lambda alpha: dims * _ar1_rate_of_one(alpha, length), rate, f"n = {length} with d = {dims}")


def spread_for_rate(rate: float, length: int, dims: int, first: float) -> list[float]:
    """A linear spread of α from `first` to a solved last value in [0, 1) that commits `rate` nats in total.

    Args:
        rate: wanted δ in nats.
        length: number of steps n ≥ 2.
        dims: number of dimensions d ≥ 2.
        first: α of the first dimension, in [0, 1).

    Returns:
        d values; their δ is `rate` to at least 1e-6 relative. The last lies below `first` if the rate asks for it.

    Raises:
        UserError: the rate cannot be reached from `first`; the message names the reachable range.
    """
    _check_invertible(rate, length, dims)
    if not 0 <= first < 1:
        raise UserError(f"the spread starts at alpha {first:g}; give a start from 0 up to, and without, 1.")
    if dims < 2:
        raise UserError(f"a spread over {dims} dimension has no last value to solve for; use 2 dimensions or more.")
    # With first and last in [0, 1) every α_k grows with the last one, and so does the rate.
    last = _solve(
        lambda last: sum(_ar1_rate_of_one(alpha, length) for alpha in _spread(first, last, dims)),
        rate,
        f"n = {length} with a spread from {first:g} over d = {dims}",
    )
    return _spread(first, last, dims)


def parse_alpha(spec: str | float, dims: int) -> list[float]:
    """Read α for `dims` dimensions from its short spelling.

    Args:
        spec: one number for all dimensions, `LO:HI` for a linear spread, or `dims` numbers with commas between them.
        dims: number of dimensions d ≥ 1.

    Raises:
        UserError: `spec` cannot be read, holds a value outside (−1, 1), or has the wrong number of values.
    """
    _check_whole("dims", dims)
    text = str(spec)
    separator = ":" if ":" in text else ","
    try:
        values = [float(part) for part in text.split(separator)]
    except ValueError:
        raise UserError(
            f"cannot read alpha {text!r}; give one number, LO:HI, or {dims} numbers separated by commas."
        ) from None
    for value in values:
        if not abs(value) < 1:
            raise UserError(f"alpha {value:g} is outside (-1, 1); give correlations strictly between -1 and 1.")
    if separator == ":":
        if len(values) != 2 or dims < 2:
            raise UserError(f"alpha {text!r} with d = {dims} is no spread; LO:HI needs 2 dimensions or more.")
        return _spread(values[0], values[1], dims)
    if len(values) == 1:
        return values * dims
    if len(values) != dims:
        raise UserError(f"alpha {text!r} has {len(values)} values for d = {dims}; give 1 or {dims}.")
    return values


def _ar1_rate_of_one(alpha: float, length: int) -> float:
    """Eq. 3 for one dimension, in plain floats."""
    return 0.5 * ((length - 2) * math.log1p(alpha * alpha) - math.log1p(-alpha) - math.log1p(alpha))


def _spread(first: float, last: float, dims: int) -> list[float]:
    return [first + (last - first) * k / (dims - 1) for k in range(dims - 1)] + [last]


def _solve(rate_of: Callable[[float], float], rate: float, what: str) -> float:
    """Solve rate_of(α) = rate for an increasing function on [0, 1), by bisection down to neighbouring floats."""
    low, high = 0.0, math.nextafter(1.0, 0.0)
    least, most = rate_of(low), rate_of(high)
    # A spread that starts just below 1 sums some rounding: leave 1e-9 at the ends.
    if not least * (1 - 1e-9) <= rate <= most * (1 + 1e-9):
        raise UserError(
            f"a rate of {_in_units(rate)} is out of reach; {what} can commit {_in_units(least)} to {_in_units(most)}."
        )
    while (middle := low + (high - low) / 2) not in (low, high):
        if rate_of(middle) < rate:
            low = middle
        else:
            high = middle
    best = min(low, high, key=lambda alpha: abs(rate_of(alpha) - rate))
    if abs(rate_of(best) - rate) > 1e-6 * rate:
        raise UserError(
            f"a rate of {_in_units(rate)} needs an alpha nearer to 1 than float64 can hold; "
            "ask for a lower rate or more dimensions."
        )
    return best


def _check_whole(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}; give a whole number, 1 or more.")


def _in_units(rate: float) -> str:
    return f"{rate:.6g} nats ({rate / math.log(2):.6g} bits)"


def _check_invertible(rate: float, length: int, dims: int) -> None:
    _check_whole("length", length)
    _check_whole("dims", dims)
    if not (math.isfinite(rate) and rate >= 0):
        raise UserError(f"a rate of {_in_units(rate)} cannot be committed; give a finite rate, 0 or more.")
    if length == 1:
        raise UserError("a sequence of length 1 commits no rate whatever its alpha; use 2 steps or more.")


# --- Any Gaussian prior ---


def register_committed_rate(cls: type) -> Callable[[F], F]:
    """Register a closed form `f(distribution) -> δ` (float64 nats, batch shape) for posteriors independent everywhere.

    It is used for exactly this class: a subclass may have another density, and registers its own.
    """

    def register(closed_form: F) -> F:
        _CLOSED_FORMS[cls] = closed_form
        return closed_form

    return register


@register_committed_rate(GaussianAR1)
def _gaussian_ar1_rate(prior: GaussianAR1) -> Tensor:
    return ar1_committed_rate(prior.alpha, prior.length)


@register_committed_rate(SequentialGaussian)
def _sequential_gaussian_rate(prior: SequentialGaussian) -> Tensor:
    raise UserError("SequentialGaussian commits no rate: its moments depend on earlier steps; use a Gaussian prior.")


def committed_rate(distribution: Distribution, blocks: int | None = None) -> Tensor:
    """δ of a prior: the least KL(q ‖ prior) over Gaussian posteriors q that factorise over blocks of steps.

    A registered closed form is used if there is one. Any other Gaussian is recognised by its density alone: with
    Λ = −∇² log p,

        δ = ½ (Σ_b ln det Λ_bb − ln det Λ) ≥ 0,

    where b runs over the blocks (Hadamard's and Fischer's inequality; eq. 3 of [1] is the AR(1) case). This builds the
    dense Λ, O(N³) for N = n · d.

    NOTE: [1] gives the AR(1) case only; the general formula follows from the Gaussian KL.

    Args:
        distribution: the prior. Event shape (n, d); any event shape with `blocks=None`.
        blocks: the posterior may correlate this many consecutive steps within a dimension (the last block may be
            shorter). None, the same as 1: independent over every step and dimension.

    Returns:
        δ in nats, float64, of the distribution's batch shape. The general case carries no gradient.

    Raises:
        UserError: the distribution is not a Gaussian (normalised) density, or `blocks` does not fit its event shape.
    """
    event_shape = tuple(distribution.event_shape)
    if blocks is not None:
        _check_whole("blocks", blocks)
        if len(event_shape) != 2 or blocks > event_shape[0]:
            raise UserError(
                f"blocks of {blocks} steps do not fit the event shape {event_shape}; "
                "blocks need an event shape (n, d) and at most n steps."
            )
    if blocks in (None, 1) and type(distribution) in _CLOSED_FORMS:
        return _CLOSED_FORMS[type(distribution)](distribution)
    precision = _as_gaussian(distribution).precision
    if blocks is None or blocks == 1:
        block_log_det = precision.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    else:
        log_dets = [_log_det(precision[..., b, :][..., b]) for b in _blocks(event_shape, blocks)]
        block_log_det = torch.stack(log_dets).sum(0)
    # Λ_bb of a product of independent parts leaves nothing but rounding, of either sign.
    return (0.5 * (block_log_det - _log_det(precision))).clamp_min(0.0)


def minimising_posterior(prior: Distribution) -> dist.Independent:
    """The posterior independent over every step and dimension whose KL from the prior is exactly the committed rate.

    For GaussianAR1, with s = 1 − α²: μ = 0 and σ² = s at both ends, s/(1 + α²) inside (σ = 1 at n = 1), in α's type.
    For any other Gaussian: the prior's mean and σ_i² = 1/Λ_ii, in float64.

    Raises:
        UserError: the prior is not Gaussian.
    """
    if type(prior) is GaussianAR1:
        loc, scale = prior.mean, _gaussian_ar1_minimising_scale(prior)
    else:
        gaussian = _as_gaussian(prior)
        shape = prior.batch_shape + prior.event_shape
        loc = gaussian.mean.reshape(shape)
        scale = gaussian.precision.diagonal(dim1=-2, dim2=-1).rsqrt().reshape(shape)
    return dist.Normal(loc, scale).to_event(len(prior.event_shape))


def minimising_factor(prior: Distribution, blocks: int) -> Tensor:
    """(d, n, n) lower Cholesky factors of the covariance (Λ_bb)⁻¹ that attains `committed_rate(prior, blocks)`.

    Block-diagonal: a posterior with these factors, and the prior's mean, has exactly the committed rate.

    Args:
        prior: Gaussian, event shape (n, d), no batch shape.
        blocks: consecutive steps within a dimension that the posterior may correlate.

    Raises:
        UserError: the prior is not Gaussian.
    """
    steps, dims = prior.event_shape
    precision = _as_gaussian(prior).precision
    factor = precision.new_zeros(dims, steps, steps)
    for block in _blocks((steps, dims), blocks):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(precision[block][:, block]))
        rows = torch.div(block, dims, rounding_mode="floor")
        factor[int(block[0]) % dims, rows[:, None], rows] = torch.linalg.cholesky(inverse)
    return factor


def _gaussian_ar1_minimising_scale(prior: GaussianAR1) -> Tensor:
    if prior.length == 1:
        return torch.ones_like(prior.mean)
    alpha = prior.alpha.unsqueeze(-2)
    end = ((1 - alpha) * (1 + alpha)).sqrt()
    inside = (end / (1 + alpha.square()).sqrt()).expand(*alpha.shape[:-2], prior.length - 2, -1)
    return torch.cat([end, inside, end], dim=-2)


class _Gaussian(NamedTuple):
    """Mean (..., N) and precision matrix Λ (..., N, N) over the flattened event, float64."""

    mean: Tensor
    precision: Tensor


def _as_gaussian(distribution: Distribution) -> _Gaussian:
    """Read mean and precision off a density, or raise UserError if it is not Gaussian.

    Three things are asked of the density, because each alone can be fooled: the same curvature at two points (a mixture
    of far-apart Gaussians has it), the quadratic form at points all around the mean, and the value at the mean that
    normalises it (which the mixture fails).
    """
    name = _name(distribution)
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
        gradient, precision = _derivatives(log_prob, start)
        factor = _cholesky(precision, name)
        mean = start + torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        # The second point, and the ring of points below, lie at the distribution's own scale: x = mean + L⁻ᵀ ε.
        second = mean + torch.linalg.solve_triangular(factor.mT, 2 * noise().unsqueeze(-1), upper=True).squeeze(-1)
        precision_there = _derivatives(log_prob, second)[1]
    unit = precision.diagonal(dim1=-2, dim2=-1).sqrt()
    change = (precision_there - precision).abs() / (unit.unsqueeze(-1) * unit.unsqueeze(-2))
    if not change.max() <= 1e-6:
        raise UserError(f"{name} is not Gaussian: the curvature of its log density changes from point to point.")

    with torch.no_grad():
        peak = log_prob(mean)
        normalised = 0.5 * _log_det(precision) - 0.5 * size * math.log(2 * math.pi)
        if not torch.allclose(peak, normalised, rtol=1e-6, atol=1e-6):
            raise UserError(
                f"{name} is not Gaussian: at its mode the log density is {peak.flatten()[0]:.6g}, "
                f"where a normalised Gaussian of the same curvature has {normalised.flatten()[0]:.6g}."
            )
        radius = torch.tensor([0.5, 1.0, 2.0, 4.0] * 4, dtype=torch.float64, device=device)
        white = radius.reshape(-1, *[1] * (len(distribution.batch_shape) + 1)) * noise(len(radius))
        away = torch.linalg.solve_triangular(factor.mT, white.unsqueeze(-1), upper=True).squeeze(-1)
        if not torch.allclose(log_prob(mean + away), normalised - 0.5 * white.square().sum(-1), rtol=1e-6, atol=1e-6):
            raise UserError(f"{name} is not Gaussian: its log density is not a quadratic form around its mode.")
    return _Gaussian(mean, precision)


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
    symmetric = (precision + precision.mT) / 2
    if torch.isfinite(symmetric).all():
        factor, info = torch.linalg.cholesky_ex(symmetric)
        if not info.any():
            return factor
    raise UserError(f"{name} is not Gaussian: the curvature of its log density is not positive definite.")


def _log_det(matrix: Tensor) -> Tensor:
    return 2 * torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _blocks(event_shape: tuple[int, ...], steps: int) -> list[Tensor]:
    """Indices into the flattened (n, d) event of each block: `steps` consecutive steps of one dimension."""
    index_nd = torch.arange(math.prod(event_shape)).reshape(event_shape)
    return [column for rows in index_nd.split(steps) for column in rows.unbind(-1)]


def _name(distribution: Distribution) -> str:
    """Class name, with what a wrapper wraps: Independent(Laplace)."""
    name = type(distribution).__name__
    return f"{name}({_name(distribution.base_dist)})" if hasattr(distribution, "base_dist") else name


def _check_real_support(distribution: Distribution, name: str) -> None:
    try:
        support = distribution.support
    except NotImplementedError:
        raise UserError(f"{name} declares no support; set its `support` to constraints.real for a Gaussian.") from None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if not isinstance(support, type(constraints.real)):
        raise UserError(f"{name} is not Gaussian: its support is {support}, not the real numbers.")
