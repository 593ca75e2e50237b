"""The committed rate: δ of a prior and a posterior family, its inverse, and the posterior that attains it.

The committed rate is the least KL(q ‖ p) that any member q of the posterior family can have. If δ > 0 the posterior
cannot collapse onto the prior. Rates are in nats. Only formulas certify here; nothing is minimised numerically.

References:
    [1] A. Razavi, A. van den Oord, B. Poole, O. Vinyals, "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn.functional import pad

from pyro_delta.distributions.any_gaussian import as_gaussian
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.distributions.gaussian_types import Gaussian
from pyro_delta.distributions.sequential_gaussian import SequentialGaussian
from pyro_delta.errors import UserError
from pyro_delta.families import family_rate
from pyro_delta.inverse import in_units, solve_for_rate
from pyro_delta.limits import LARGEST_DIMS, LARGEST_LENGTH

ClosedForm = Callable[[Any, int], Tensor | None]
F = TypeVar("F", bound=ClosedForm)

_CLOSED_FORMS: dict[type, ClosedForm] = {}

# Some ln n steps to come near, and five to converge; a fixed number, for a test of convergence would stall a GPU.
_NEWTON_STEPS = 24
MOST_MODES = 4096
"""Steps of an AR(1) whose modes are looked for: each α costs n²."""


# --- AR(1): the rate, its inverse, and the spelling of α ---


def ar1_committed_rate(alpha: float | Sequence[float] | Tensor, length: int | Tensor, blocks: int = 1) -> Tensor:
    """δ of the AR(1) prior against posteriors independent over dimensions and over blocks of b consecutive steps.

    With m = ⌈n/b⌉ ≥ 2 blocks, of which the last may be shorter,

        δ = ½ Σ_k [(m − 2) ln(1 + α_k² + … + α_k^2b) − ln(1 − α_k²)],

    which at b = 1 is [1, eq. 3], ½ Σ_k [(n − 2) ln(1 + α_k²) − ln(1 − α_k²)].

    NOTE: [1] has b = 1 alone. A block's ln det Λ_bb is ln det Λ + ln det of the covariance of all the other steps
    (Jacobi), which form one or two shorter chains.

    NOTE: the formula does not hold for a single block, as at n = 1: the posterior may be the prior, and δ = 0.

    Args:
        alpha: |α| < 1; one number, a sequence, or a tensor of shape (..., d), summed over its last dimension.
        length: number of steps n ≥ 1; or a tensor of them, which broadcasts with (...) and is not checked.
        blocks: steps b ≥ 1 that the posterior may correlate.

    Returns:
        δ in nats, float64, shape (...).

    Raises:
        UserError: |α| ≥ 1 or not a number, or `length` or `blocks` < 1.
    """
    if not isinstance(length, Tensor):
        check_whole("length", length)
    check_whole("blocks", blocks)
    alpha_d = torch.atleast_1d(torch.as_tensor(alpha, dtype=torch.float64))
    outside = alpha_d[~(alpha_d.abs() < 1)]
    if outside.numel():
        raise UserError(f"alpha {outside[0].item():g} is outside (-1, 1); give correlations strictly between -1 and 1.")
    if not isinstance(length, Tensor) and blocks >= length:
        return alpha_d.sum(-1) * 0
    length = torch.as_tensor(length, device=alpha_d.device)
    powers_d = torch.zeros_like(alpha_d)
    for _ in range(blocks):
        powers_d = alpha_d.square() * (1 + powers_d)  # α² + α⁴ + … + α^2b
    inner_blocks = -(-length // blocks).unsqueeze(-1) - 2
    # −ln(1 − α²): the two logarithms cancel where α is small, α² is rounded where it is near 1.
    near_0_d = -torch.log1p(-alpha_d.clamp(-0.5, 0.5).square())
    near_1_d = -torch.log1p(-alpha_d) - torch.log1p(alpha_d)
    ends_d = torch.where(alpha_d.abs() < 0.5, near_0_d, near_1_d)
    rate = 0.5 * (inner_blocks * torch.log1p(powers_d) + ends_d).sum(-1)
    return torch.where(length > blocks, rate, 0.0 * rate)


def alpha_for_rate(rate: float, length: int, dims: int) -> float:
    """The one α ≥ 0 that, shared by `dims` dimensions of `length` steps, commits `rate` nats in total (eq. 3 inverted).

    Raises:
        UserError: `rate` is negative, not finite, or needs an α nearer to 1 than float64 can hold; `length` is 1.
    """
    check_invertible(rate, length, dims)
    return solve_for_rate(lambda alpha: dims * _ar1_rate_of_one(alpha, length), rate, f"n = {length} with d = {dims}")


def rate_of_bitrate(bitrate: float, seconds: float | None, length: int, dims: int) -> float:
    """δ in nats of an AR(1) process of `dims` dimensions and `length` steps, from bits a second.

    In eq. 3 of [1] an inner step of a dimension commits ½ ln(1 + α²), less than half a bit. What is beyond n − 2 of
    them only the ends could commit, by −½ ln(1 − α²), of a z that is all but one number: that is refused.

    NOTE: an inner step of an AR(p) process commits less than ½ ln C(2p, p): 1.29 bits for p = 2.

    Args:
        bitrate: bits a second.
        seconds: that a datum of all steps lasts; None if data last no time.
        length: n.
        dims: d.

    Raises:
        UserError: if data last no time, or `bitrate` is below 0 or beyond that limit.
    """
    if seconds is None:
        raise UserError(f"prior.bitrate={bitrate:g} is of data that last some time; set prior.rate_nats for these.")
    most = dims * max(0, length - 2) / (2 * seconds)
    if not 0 <= bitrate < most:
        raise UserError(
            f"a bitrate of {bitrate:g} bits a second is not from 0 up to {most:g}, at which {dims} dimensions of "
            f"{length} steps in {seconds:g} s end: AR(1) commits less than half a bit per inner step and dimension; "
            "ask for less, for more prior.dims, or for a longer prior.length."
        )
    return bitrate * seconds * math.log(2)


def alpha_of_rates(rates: Tensor, length: int) -> Tensor:
    """α ≥ 0 of dimensions that commit `rates` nats each, with gradients (eq. 3 inverted for one dimension).

    With w = −ln(1 − α²) eq. 3 is δ = ½ [(n − 2) ln(2 − e^−w) + w], increasing and concave from (0, 0): Newton's method
    that starts below the root climbs to it without overshooting. The last step carries the gradient: where the others
    have converged it changes nothing, and its derivative is dw/dδ by the implicit function theorem.

    Args:
        rates: δ_k > 0, any shape, unchecked. A rate that needs an α nearer to 1 than float64 can hold gives 1.
        length: number of steps n ≥ 2.

    Returns:
        α, float64, the shape of `rates`.
    """
    rates = rates.double()

    def step(w: Tensor) -> Tensor:
        rate = 0.5 * ((length - 2) * torch.log1p(-torch.expm1(-w)) + w)
        slope = 0.5 * ((length - 2) / (2 * torch.exp(w) - 1) + 1)
        return w + (rates - rate) / slope

    with torch.no_grad():
        # The tangent at 0 and the asymptote lie above the curve, so that their roots lie below its root.
        w = torch.maximum(2 * rates / (length - 1), 2 * rates - (length - 2) * math.log(2))
        for _ in range(_NEWTON_STEPS):
            w = step(w)
    return torch.sqrt(-torch.expm1(-step(w)))


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
    check_invertible(rate, length, dims)
    if not 0 <= first < 1:
        raise UserError(f"the spread starts at alpha {first:g}; give a start from 0 up to, and without, 1.")
    if dims < 2:
        raise UserError(f"a spread over {dims} dimension has no last value to solve for; use 2 dimensions or more.")
    # With first and last in [0, 1) every α_k grows with the last one, and so does the rate.
    last = solve_for_rate(
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
    check_whole("dims", dims)
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
        if len(values) != 2:
            raise UserError(f"alpha {text!r} is not a spread: it has {len(values)} numbers; write LO:HI.")
        if dims < 2:
            raise UserError(f"alpha {text!r} with d = {dims} is not a spread; LO:HI needs 2 dimensions or more.")
        return _spread(values[0], values[1], dims)
    if len(values) == 1:
        return values * dims
    if len(values) != dims:
        raise UserError(f"alpha {text!r} has {len(values)} values for d = {dims}; give 1 or {dims}.")
    return values


def _ar1_rate_of_one(alpha: float, length: int) -> float:
    """Eq. 3 for one dimension, in plain floats, as `ar1_committed_rate` has it."""
    ends = -math.log1p(-alpha * alpha) if abs(alpha) < 0.5 else -math.log1p(-alpha) - math.log1p(alpha)
    return 0.5 * ((length - 2) * math.log1p(alpha * alpha) + ends)


def _spread(first: float, last: float, dims: int) -> list[float]:
    return [first + (last - first) * k / (dims - 1) for k in range(dims - 1)] + [last]


def check_whole(name: str, value: int) -> None:
    """Refuse a size that is not a whole number from 1 to the largest that is meant.

    Raises:
        UserError: naming it.
    """
    most = LARGEST_DIMS if name == "dims" else LARGEST_LENGTH
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UserError(f"{name} is {value!r}; give a whole number from 1 to {most}.")


def check_invertible(rate: float, length: int, dims: int) -> None:
    """Refuse a wanted rate that no sequence of `length` steps of `dims` dimensions can commit.

    Raises:
        UserError: the rate is negative or not finite, `length` is 1, or a size is not a whole number from 1 up.
    """
    check_whole("length", length)
    check_whole("dims", dims)
    if not (math.isfinite(rate) and rate >= 0):
        raise UserError(f"a rate of {in_units(rate)} cannot be committed; give a finite rate, 0 or more.")
    if length == 1:
        raise UserError("a sequence of length 1 commits no rate whatever its prior; use 2 steps or more.")


# --- Any Gaussian prior ---


def register_committed_rate(cls: type) -> Callable[[F], F]:
    """Register a closed form `f(distribution, blocks) -> δ`, float64 nats of the distribution's batch shape.

    The posterior factorises over dimensions and blocks of `blocks` steps; `blocks` = 1 is independence everywhere.
    Where the form does not cover `blocks` it returns None, and δ is computed from the density. It is used for exactly
    this class: a subclass may have another density, and registers its own.
    """

    def register(closed_form: F) -> F:
        _CLOSED_FORMS[cls] = closed_form
        return closed_form

    return register


@register_committed_rate(GaussianAR1)
def _gaussian_ar1_rate(prior: GaussianAR1, blocks: int) -> Tensor:
    return ar1_committed_rate(prior.alpha, prior.length if prior.lengths is None else prior.lengths, blocks)


@register_committed_rate(GaussianSequence)
def _gaussian_sequence_rate(prior: GaussianSequence, blocks: int) -> Tensor:
    log_det = -2 * prior.scale_tril.diagonal(dim1=-2, dim2=-1).double().log().sum((-2, -1))
    return _rate_of_precision(prior.precision(), log_det, blocks)


@register_committed_rate(SequentialGaussian)
def _sequential_gaussian_rate(prior: SequentialGaussian, blocks: int) -> Tensor:
    raise UserError("SequentialGaussian commits no rate: its moments depend on earlier steps; use a Gaussian prior.")


def committed_rate(
    distribution: Distribution, blocks: int | None = None, *, family: Distribution | None = None
) -> Tensor:
    """δ of a prior: the least KL(q ‖ prior) over Gaussian posteriors q that factorise over blocks of steps.

    With `family` over the posteriors of its fixed shape instead: of its σ against a Gaussian, of its κ on a sphere.

    A registered closed form is used if there is one. Any other Gaussian is recognised by its density alone: with
    Λ = −∇² log p,

        δ = ½ (Σ_b ln det Λ_bb − ln det Λ) ≥ 0,

    where b runs over the blocks (Hadamard's and Fischer's inequality; eq. 3 of [1] is the AR(1) case). This builds the
    dense Λ, O(N³) for N = n · d.

    NOTE: [1] gives the AR(1) case only; the general formula follows from the Gaussian KL.

    NOTE: this is the rate of that Gaussian. Where it was recognised by probing, no more than `Gaussian.cap_nats` of it
    is certain: `pyro_delta.commitment` certifies with that cap.

    Args:
        distribution: the prior. Event shape (n, d); any event shape with `blocks=None`.
        blocks: the posterior may correlate this many consecutive steps within a dimension (the last block may be
            shorter). None, the same as 1: independent over every step and dimension.
        family: one posterior, of a family in `pyro_delta.families`, of which all that is not its location is fixed.

    Returns:
        δ in nats, float64, of the distribution's batch shape. The general case carries no gradient.

    Raises:
        UserError: the distribution is not a Gaussian (normalised) density, `blocks` does not fit its event shape, or
            `family` is of none that is registered for such a prior.
    """
    if family is not None:
        if blocks is not None:
            raise UserError("a rate is of a family or of blocks of steps; give one of them.")
        return family_rate(family, distribution).nats
    steps = _block_steps(distribution, blocks)
    if type(distribution) in _CLOSED_FORMS:
        rate = _CLOSED_FORMS[type(distribution)](distribution, steps)
        if rate is not None:
            return rate
    return gaussian_rate(as_gaussian(distribution), steps)


def gaussian_rate(gaussian: Gaussian, steps: int = 1) -> Tensor:
    """δ of a Gaussian of known mean and precision, as `committed_rate` has it."""
    return _rate_of_precision(gaussian.precision_of_dimensions(), gaussian.log_det, steps)


def has_closed_form(distribution: Distribution) -> bool:
    """Whether a distribution's class has a registered formula, so that its density need not be looked at."""
    return type(distribution) in _CLOSED_FORMS


def minimising_posterior(prior: Distribution, blocks: int | None = None) -> dist.Independent | GaussianSequence:
    """The posterior whose KL from the prior is exactly the committed rate.

    Independent over every step and dimension, `blocks=None`: for GaussianAR1, with s = 1 − α², μ = 0 and σ² = s at both
    ends, s/(1 + α²) inside (σ = 1 at n = 1, and on the padding of a prior with lengths). For any other Gaussian the
    prior's mean and σ_i² = 1/Λ_ii.

    Independent over blocks of steps: a `GaussianSequence` with the prior's mean and covariances Λ_bb⁻¹.

    In the prior's type where its class is GaussianAR1 or GaussianSequence, else in float64.

    Args:
        prior: any Gaussian.
        blocks: as for `committed_rate`.

    Raises:
        UserError: the prior is not Gaussian, or `blocks` does not fit its event shape.
    """
    steps = _block_steps(prior, blocks)
    if steps == 1 and type(prior) is GaussianAR1:
        return dist.Normal(prior.mean, _gaussian_ar1_minimising_scale(prior)).to_event(2)
    mean, precision_dnn = _mean_and_precision(prior)
    if steps == 1:
        scale = precision_dnn.diagonal(dim1=-2, dim2=-1).rsqrt().mT.reshape(mean.shape)
        return dist.Normal(mean, scale.to(mean.dtype)).to_event(len(prior.event_shape))
    block = torch.arange(mean.shape[-2], device=mean.device) // steps
    within = (block[:, None] == block).double()
    factor = torch.linalg.cholesky(torch.linalg.inv(precision_dnn * within)) * within
    return GaussianSequence(mean, factor.to(mean.dtype))


@dataclass(frozen=True)
class Modes:
    """Directions in which a posterior of a family can speak against a Gaussian prior, and what that costs.

    With Λ the prior's precision and B its diagonal blocks, the eigenvalues m of B⁻¹Λ sum to their number, and
    δ = −½ Σ ln m. A posterior that attains δ has precision B. Where m < 1 its mean may move as far as the prior does:
    that tells ½ ln 1/m nats, for ½(1 − m) nats above δ. Where m > 1 nothing is told, and ½(m − 1 − ln m) nats are paid.

    Attributes:
        values: the eigenvalues m, float64, of batch shape + (N,), smallest first.
    """

    values: Tensor

    @property
    def least(self) -> Tensor:
        """The smallest m: a decoder must turn more than this part of a mode's nats into distortion to learn it."""
        return self.values[..., 0]

    @property
    def ideal_nats(self) -> Tensor:
        """What posteriors of precision B tell whose means spread as far as the prior, in all modes that can speak.

        With smaller variances, or means that spread further, they tell more, at a higher rate.
        """
        return 0.5 * self._speaking(-self.values.log())

    @property
    def excess_nats(self) -> Tensor:
        """What the KL is above δ there."""
        return 0.5 * self._speaking(1 - self.values)

    @property
    def waste_nats(self) -> Tensor:
        """Part of δ that no posterior of the family can make anything of."""
        return 0.5 * torch.where(self.values > 1, self.values - 1 - self.values.log(), 0.0).sum(-1)

    def _speaking(self, nats: Tensor) -> Tensor:
        return torch.where(self.values < 1, nats, 0.0).sum(-1)


def modes(prior: Distribution, blocks: int | None = None) -> Modes:
    """How useful the rate that a Gaussian prior commits can be, before training.

    Args:
        prior: any Gaussian.
        blocks: as for `committed_rate`.

    Raises:
        UserError: the prior is not Gaussian, `blocks` does not fit its event shape, or there are more than 512 steps;
            4096 of a GaussianAR1, for posteriors that are independent over steps.
    """
    steps = _block_steps(prior, blocks)
    if steps == 1 and type(prior) is GaussianAR1 and prior.lengths is None:
        return Modes(_gaussian_ar1_modes(prior).flatten(-2).sort(-1).values)
    if type(prior) is GaussianAR1 or type(prior) is GaussianSequence:
        precision = prior.precision()  # of each dimension
        block = torch.arange(precision.shape[-1], device=precision.device) // steps
        return Modes(_eigenvalues(precision, block).flatten(-2).sort(-1).values)
    gaussian = as_gaussian(prior)
    dims = gaussian.event_shape[-1] if len(gaussian.event_shape) == 2 else 1
    place = torch.arange(gaussian.precision.shape[-1], device=gaussian.precision.device)
    return Modes(_eigenvalues(gaussian.precision, (place // dims // steps) * dims + place % dims))


def _eigenvalues(precision: Tensor, block: Tensor) -> Tensor:
    """Of B⁻¹Λ, smallest first, where B is what Λ (..., N, N) has within blocks (N,), each named by its number."""
    factor = torch.linalg.cholesky(precision * (block[:, None] == block).double())
    # The eigenvalues of L⁻¹ Λ L⁻ᵀ are those of B⁻¹Λ, and the matrix is symmetric.
    half = torch.linalg.solve_triangular(factor, precision, upper=False)
    symmetric = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return torch.linalg.eigvalsh(symmetric)


def _mean_and_precision(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Mean, of batch and event shape, and Λ within each dimension, float64 (..., d, n, n)."""
    if type(prior) is GaussianAR1 or type(prior) is GaussianSequence:
        return prior.mean, prior.precision()
    gaussian = as_gaussian(prior)
    return gaussian.mean.reshape(prior.batch_shape + prior.event_shape), gaussian.precision_of_dimensions()


def _gaussian_ar1_modes(prior: GaussianAR1) -> Tensor:
    """Eigenvalues of B⁻¹Λ, float64 (..., d, n), at a cost of n²: those of B^−½ Λ B^−½, which is tridiagonal.

    B is 1, 1 + α², …, 1 + α², 1 and Λ has −α beside it, both over 1 − α²; the sign of α is of no account.
    """
    from scipy.linalg import eigh_tridiagonal  # here, because it takes a while to import

    if prior.length > MOST_MODES:
        raise UserError(f"the modes of {prior.length} steps take minutes; give at most {MOST_MODES} steps.")
    sizes, place = prior.alpha.detach().double().abs().cpu().unique(return_inverse=True)
    found = []
    for alpha in sizes.tolist():
        block = np.full(prior.length, 1 + alpha * alpha)
        block[[0, -1]] = 1
        beside = -alpha / np.sqrt(block[1:] * block[:-1])
        found.append(torch.from_numpy(eigh_tridiagonal(np.ones(prior.length), beside, eigvals_only=True)))
    return torch.stack(found)[place].to(prior.alpha.device)


def _gaussian_ar1_minimising_scale(prior: GaussianAR1) -> Tensor:
    alpha, inside = prior.alpha.unsqueeze(-2), prior.inside()
    before = pad(inside[..., :-1, :], (0, 0, 1, 0)) & inside
    after = pad(inside[..., 1:, :], (0, 0, 0, 1))
    end = ((1 - alpha) * (1 + alpha)).sqrt()
    linked = torch.where(before & after, end / (1 + alpha.square()).sqrt(), end)
    return torch.where(before | after, linked, 1.0)


def _block_steps(distribution: Distribution, blocks: int | None) -> int:
    """Steps in a block; 1 for None, which fits every event shape."""
    if blocks is None:
        return 1
    check_whole("blocks", blocks)
    event_shape = tuple(distribution.event_shape)
    if len(event_shape) != 2 or blocks > event_shape[0]:
        raise UserError(
            f"blocks of {blocks} steps do not fit the event shape {event_shape}; "
            "blocks need an event shape (n, d) and at most n steps."
        )
    return blocks


def _rate_of_precision(precision_dnn: Tensor, log_det: Tensor, steps: int) -> Tensor:
    """½ (Σ_b ln det Λ_bb − ln det Λ) from Λ within each dimension (..., d, n, n) and ln det of the whole Λ (...)."""
    if steps == 1:
        blocks_log_det = precision_dnn.diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
    else:
        spans = [slice(start, start + steps) for start in range(0, precision_dnn.shape[-1], steps)]
        blocks_log_det = torch.stack([_log_det(precision_dnn[..., b, b]).sum(-1) for b in spans]).sum(0)
    # Λ_bb of a product of independent parts leaves nothing but rounding, of either sign.
    return (0.5 * (blocks_log_det - log_det)).clamp_min(0.0)


def _log_det(matrix: Tensor) -> Tensor:
    return 2 * torch.linalg.cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)
