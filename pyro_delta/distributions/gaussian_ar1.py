"""The stationary Gaussian AR(1) prior over a latent sequence, and its KL from a mean-field posterior."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd import forward_ad
from torch.distributions import Independent, biject_to, constraints, register_kl, transform_to, transforms

from pyro_delta.distributions.mean_field import check_exact, mean_field_parameters
from pyro_delta.distributions.shapes import broadcast_shapes
from pyro_delta.errors import UserError

BLOCK = 32
"""Steps of a recursion that are taken at once."""
SHORT = 64
"""Steps up to which a recursion is summed by doubling, however many sequences there are."""
MAX_STEPS = 512
"""Steps that a dense factor is for: each dimension holds n² numbers and costs n³."""


def check_steps(length: int, otherwise: str = ", or GaussianAR1, whose cost is linear") -> None:
    """Refuse sequences that a dense factor is not for.

    Args:
        length: n.
        otherwise: what there is for longer ones.

    Raises:
        UserError: `length` is above `MAX_STEPS`.
    """
    if length > MAX_STEPS:
        raise UserError(
            f"{length} steps are too many for a dense {length} × {length} matrix; use at most {MAX_STEPS}{otherwise}."
        )


class _Correlation(constraints.Constraint):
    """The open interval (−1, 1): at ±1 the conditional variance 1 − α² is zero and the density does not exist."""

    def check(self, value: Tensor) -> Tensor:
        return value.abs() < 1


@biject_to.register(_Correlation)
@transform_to.register(_Correlation)
def _tanh(constraint: _Correlation) -> transforms.Transform:
    return transforms.TanhTransform()


class GaussianAR1(TorchDistribution):
    """Stationary Gaussian AR(1) process over `length` steps, each of the d dimensions on its own [1].

    z_1 ~ N(0, 1) and z_t | z_{t−1} ~ N(α z_{t−1}, 1 − α²), so every marginal is N(0, 1) and z_s and z_t have
    correlation α^|s−t|. The whole sequence is one event of shape (length, d), one sample site. Density, entropy and KL
    cost O(length · d); so does sampling, by blocks of 32 steps in ⌈log32 length⌉ vectorised passes; or, up to 64 steps
    and where sequences hardly share their α, in ⌈log2 length⌉ passes.

    A prefix of the process is the process of that length. With `lengths`, each member of the batch has its own, and
    the steps after it are padding: independent N(0, 1), whatever α. So the event keeps its shape, and stays a proper
    Gaussian; KL and committed rate are those of the prefix, where the posterior has N(0, 1) on the padding, too.

    NOTE: a density of 0 nats on the padding would be one of nothing that can be drawn. N(0, 1) on both sides costs
    nothing either: log p − log q of the padding is 0, draw by draw.

    Args:
        alpha: correlation of neighbouring steps, |α| < 1, shape (..., d); the leading dimensions are the batch shape.
        length: number of steps n ≥ 1.
        lengths: steps of each member of the batch, integers 1 … n that broadcast with the batch shape; None for n.
        validate_args: check arguments and samples (torch's meaning of the flag).

    Raises:
        UserError: `length` is not a positive integer, `alpha` has no dimension for d, or `lengths` are no integers or,
            with validation on, outside 1 … n.
        ValueError: |α| ≥ 1 or not a number, with validation on.

    References:
        [1] A. Razavi, A. van den Oord, B. Poole, O. Vinyals, "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    arg_constraints = {"alpha": constraints.independent(_Correlation(), 1)}  # noqa: RUF012 (torch's own protocol)
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, alpha: Tensor, length: int, lengths: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
            raise UserError(f"GaussianAR1 got length {length!r}; give a whole number of steps, 1 or more.")
        alpha = torch.as_tensor(alpha)
        if alpha.dim() < 1 or not alpha.is_floating_point():
            raise UserError(
                f"GaussianAR1 got an alpha of shape {tuple(alpha.shape)} and type {alpha.dtype}; "
                "give a floating-point tensor of shape (..., d)."
            )
        batch_shape = alpha.shape[:-1]
        if lengths is not None:
            lengths = torch.as_tensor(lengths)
            if lengths.is_floating_point() or lengths.dtype == torch.bool:
                raise UserError(f"GaussianAR1 got lengths of type {lengths.dtype}; give integers, one a sequence.")
            batch_shape = broadcast_shapes(batch_shape, lengths.shape)
            alpha, lengths = alpha.expand(batch_shape + alpha.shape[-1:]), lengths.expand(batch_shape)
        self.alpha = alpha
        self.length = length = int(length)
        self.lengths = lengths
        super().__init__(batch_shape, torch.Size((length, alpha.shape[-1])), validate_args=validate_args)
        if self._validate_args and lengths is not None and not ((lengths >= 1) & (lengths <= length)).all():
            wrong = lengths[(lengths < 1) | (lengths > length)][0].item()
            raise UserError(f"GaussianAR1 of {length} steps got the length {wrong}; give lengths of 1 to {length}.")

    def expand(self, batch_shape: torch.Size, _instance: GaussianAR1 | None = None) -> GaussianAR1:
        """The same prior over a larger batch.

        NOTE: without an `expand` that keeps the class, a plate would wrap the prior, the KL below would not be found,
        and TraceMeanField_ELBO would fall back to sampling without a word.
        """
        new = self._get_checked_instance(GaussianAR1, _instance)
        new.alpha = self.alpha.expand(torch.Size(batch_shape) + self.alpha.shape[-1:])
        new.length = self.length
        new.lengths = None if self.lengths is None else self.lengths.expand(torch.Size(batch_shape))
        super(GaussianAR1, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """Zero, shape (..., n, d)."""
        return torch.zeros_like(self.alpha).unsqueeze(-2).expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """One, by stationarity, shape (..., n, d)."""
        return torch.ones_like(self.alpha).unsqueeze(-2).expand(self._extended_shape())

    def transform(self, eps: Tensor) -> Tensor:
        """Turn standard normal noise into a sample; the map is linear and has a triangular Jacobian.

        Args:
            eps: noise, shape (..., n, d).

        Returns:
            z, shape (..., n, d).
        """
        alpha = _once(self.alpha)
        scale = _innovation_variance(alpha).sqrt()
        if _blocks_pay(alpha, eps):
            start = alpha / (1 + scale) * eps[..., 0, :]  # the z_0 from which z_1 = α z_0 + √(1 − α²) ε_1 is ε_1
            z = _follow(eps.mT.contiguous(), alpha, scale, start, False).mT.contiguous()
        else:
            z = _doubled(eps, alpha.unsqueeze(-2), scale.unsqueeze(-2))
        return z if self.lengths is None else torch.where(self.inside(), z, eps)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw a reparameterised sample, shape sample_shape + (..., n, d)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.transform(torch.randn(shape, dtype=self.alpha.dtype, device=self.alpha.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; `value` has shape (..., n, d)."""
        if self._validate_args:
            self._validate_sample(value)
        first_d, later_td, before_td = _ends(value)
        square_d = first_d.square() + self._over_variance(_innovations(later_td, before_td, self._pull_td()).square())
        return -0.5 * (square_d + (self._log_det_d() + self.length * math.log(2 * math.pi))).sum(-1)

    def precision(self) -> Tensor:
        """Λ_k of each dimension, float64, shape batch_shape + (d, n, n).

        Tridiagonal: with s = 1 − α², 1/s at both ends of the diagonal, (1 + α²)/s inside, −α/s beside it.

        Raises:
            UserError: there are more than 512 steps.
        """
        check_steps(self.length, otherwise="")
        later_td = self._pull_td().double().expand(*self.batch_shape, self.length - 1, self.event_shape[-1])
        pull_dt = F.pad(later_td, (0, 0, 1, 0)).mT
        steps = torch.eye(self.length, dtype=torch.float64, device=pull_dt.device)
        # Row t of the whitening matrix is (z_t − α z_{t−1})/√s, the first is z_1.
        whitening = steps - pull_dt.unsqueeze(-1) * steps.roll(1, 0).tril()
        whitening = whitening / _innovation_variance(pull_dt).sqrt().unsqueeze(-1)
        return whitening.mT @ whitening

    def entropy(self) -> Tensor:
        """Differential entropy in nats, shape batch_shape."""
        return 0.5 * (self._log_det_d() + self.length * (1 + math.log(2 * math.pi))).sum(-1)

    @property
    def whole(self) -> GaussianAR1:
        """The same process without lengths: all its steps count."""
        return GaussianAR1(self.alpha, self.length, validate_args=self._validate_args)

    def inside(self) -> Tensor:
        """Which steps are no padding, (..., n, 1)."""
        steps = torch.arange(self.length, device=self.alpha.device)
        if self.lengths is None:
            return torch.ones_like(steps, dtype=torch.bool).unsqueeze(-1)
        return (steps < self.lengths.unsqueeze(-1)).unsqueeze(-1)

    def _pull_td(self) -> Tensor:
        """By which each step but the first follows the one before, α or, on the padding, 0: (..., n − 1 or 1, d)."""
        alpha = self.alpha.unsqueeze(-2)
        return alpha if self.lengths is None else torch.where(self.inside()[..., 1:, :], alpha, 0.0)

    def _over_variance(self, square_td: Tensor) -> Tensor:
        """Σ of squares (..., n − 1, d) of all later steps, each over the variance of its innovation: (..., d)."""
        if self.lengths is None:
            return square_td.sum(-2) / _innovation_variance(self.alpha)
        return (square_td / _innovation_variance(self._pull_td())).sum(-2)

    def _log_det_d(self) -> Tensor:
        """Log-determinant of the covariance of one dimension: (n − 1) ln(1 − α²)."""
        length = self.length if self.lengths is None else self.lengths.unsqueeze(-1)
        return (length - 1) * (torch.log1p(-self.alpha) + torch.log1p(self.alpha))


def _ends(z_td: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first step (..., d), all steps but the first (..., n − 1, d), and all but the last.

    They are made by `split`, whose gradient is one `cat`: that of a slice fills the whole length with zeros.
    """
    length = z_td.shape[-2]
    first_td, later_td = z_td.split([1, length - 1], -2)
    before_td, _ = z_td.split([length - 1, 1], -2)
    return first_td.squeeze(-2), later_td, before_td


def _innovations(later_td: Tensor, before_td: Tensor, pull_td: Tensor) -> Tensor:
    """z_t − α z_{t−1}, (..., n − 1, d).

    NOTE: Σ z_t² and Σ z_t z_{t−1} would give their squares in fewer passes over memory, but cancel as α → 1.
    """
    return torch.addcmul(later_td, pull_td, before_td, value=-1)


def _innovation_variance(alpha_d: Tensor) -> Tensor:
    """1 − α², the variance of a step given the one before."""
    return (1 - alpha_d) * (1 + alpha_d)


def _blocks_pay(alpha: Tensor, eps: Tensor) -> bool:
    """Whether there is far more noise than blocks have powers to multiply it by, 32 × 32 of each α.

    What compiles is not asked for the size of its batch, which it may leave free.
    """
    if torch.compiler.is_compiling():
        return eps.shape[-2] > SHORT
    return eps.shape[-2] > SHORT and eps.numel() >= 4 * BLOCK**2 * alpha.numel()


def _follow(e_dn: Tensor, alpha_d: Tensor, weight_d: Tensor | None, start_d: Tensor | None, back: bool) -> Tensor:
    """The recursion with the gradient by hand, but where torch itself derives forward or compiles: see below."""
    taken = _recursion if _forward_mode() or torch.compiler.is_compiling() else _Recursion.apply
    return taken(e_dn, alpha_d, weight_d, start_d, back)


class _Recursion(torch.autograd.Function):
    """z_t = α z_{t−1} + w e_t of every sequence, (..., d, n), from z_0; or `back`, from the last step to the first.

    w is 1 and z_0 is 0 where they are None. The gradient by the terms w e_t, λ_t = ∂z_t + α λ_{t+1}, is the same
    recursion from the other end, and those by α and w are Σ λ_t z_{t−1} and Σ λ_t e_t. Autograd's own, of the passes
    below, would go through memory twice as often.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(e_dn: Tensor, alpha_d: Tensor, weight_d: Tensor | None, start_d: Tensor | None, back: bool) -> Tensor:
        return _recursion(e_dn, alpha_d, weight_d, start_d, back)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.back = inputs
        ctx.save_for_backward(*tensors, output)

    @staticmethod
    def backward(ctx: Any, gain_dn: Tensor) -> tuple[Tensor | None, ...]:
        e_dn, alpha_d, weight_d, start_d, z_dn = ctx.saved_tensors
        by_e, by_alpha, by_weight, by_start, _ = ctx.needs_input_grad
        gain_dn = _follow(gain_dn.contiguous(), alpha_d, None, None, not ctx.back)
        first, later, before = (-1, slice(-1), slice(1, None)) if ctx.back else (0, slice(1, None), slice(-1))
        first_d = gain_dn[..., first]
        found: list[Tensor | None] = [None] * 5
        if by_e:
            found[0] = gain_dn if weight_d is None else gain_dn * weight_d.unsqueeze(-1)
        if by_alpha:
            along_d = _dot(gain_dn[..., later], z_dn[..., before])
            found[1] = along_d if start_d is None else torch.addcmul(along_d, first_d, start_d)
        if by_weight:
            found[2] = _dot(gain_dn, e_dn)
        if by_start:
            found[3] = first_d * alpha_d
        given = (e_dn, alpha_d, weight_d, start_d, None)
        return tuple(f if f is None else f.sum_to_size(g.shape) for f, g in zip(found, given, strict=True))


def _dot(one_dn: Tensor, other_dn: Tensor) -> Tensor:
    """Σ over the steps of the products, (..., d), without a product that is held."""
    return torch.einsum("...t,...t->...", one_dn, other_dn)


def _before(z_dn: Tensor, start_d: Tensor | None, back: bool) -> Tensor:
    """The step before each, z_0 or 0 before the first, (..., d, n); `back`, the one after each, z_0 after the last."""
    kept_dn = z_dn[..., 1:] if back else z_dn[..., :-1]
    if start_d is None:
        return F.pad(kept_dn, (0, 1) if back else (1, 0))
    start_d1 = start_d.expand_as(z_dn[..., 0]).unsqueeze(-1)
    return torch.cat([kept_dn, start_d1] if back else [start_d1, kept_dn], -1)


def _recursion(e_dn: Tensor, alpha_d: Tensor, weight_d: Tensor | None, start_d: Tensor | None, back: bool) -> Tensor:
    """What `_Recursion` is: within blocks by a triangular product, then across them.

    A block of B steps is w Σ_{s≤t} α^{t−s} e_s, a Toeplitz matrix times its terms. Its last value follows the same
    recursion from block to block, with α^B; and reaches into the next one as α^t. So memory is gone through a few
    times, whatever the length.
    """
    length = e_dn.shape[-1]
    size = min(length, BLOCK)
    spare = -length % size
    padded = F.pad(e_dn, (spare, 0) if back else (0, spare)) if spare else e_dn
    e_dcb = padded.reshape(*padded.shape[:-1], padded.shape[-1] // size, size)
    # In double precision from block to block: in single, α^1024 of an α near 1 would be off by 1e-4.
    powers_db, ahead_d = _powers(alpha_d.double(), size, e_dn.dtype)
    matrix_dst = _toeplitz(powers_db if weight_d is None else weight_d.unsqueeze(-1) * powers_db)
    z_dcb = torch.einsum("...dcs,...dst->...dct", e_dcb, matrix_dst.mT if back else matrix_dst)
    reach_db = alpha_d.unsqueeze(-1).to(e_dn.dtype) * powers_db  # by which what is before the block reaches step t, α^t
    before_dc = None if start_d is None else start_d.unsqueeze(-1)
    if length > size:
        ends_dc = _recursion(z_dcb[..., 0 if back else -1], ahead_d, None, start_d, back)
        before_dc = _before(ends_dc, start_d, back)
    if before_dc is not None:
        reach_db = reach_db.flip(-1) if back else reach_db
        z_dcb = torch.addcmul(z_dcb, reach_db.unsqueeze(-2), before_dc.unsqueeze(-1))
    z_dn = z_dcb.flatten(-2)
    return z_dn[..., spare:] if back else z_dn[..., :length]


def _doubled(eps_td: Tensor, alpha_1d: Tensor, scale_1d: Tensor) -> Tensor:
    """z_1 = ε_1 and z_t = α z_{t−1} + w ε_t by doubling (Hillis–Steele).

    After k passes z_t holds the last 2^k terms of Σ α^j e_{t−j}.
    """
    # Adding zeros gives the first step the batch shape of α, which the later steps get from their scale.
    z_td = torch.cat([eps_td[..., :1, :] + torch.zeros_like(alpha_1d), scale_1d * eps_td[..., 1:, :]], -2)
    shift, weight_1d = 1, alpha_1d
    while shift < z_td.shape[-2]:
        later_td = z_td[..., shift:, :] + weight_1d * z_td[..., :-shift, :]
        z_td = torch.cat([z_td[..., :shift, :], later_td], -2)
        shift, weight_1d = 2 * shift, weight_1d * weight_1d
    return z_td


def _powers(alpha: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """α^0 … α^{length − 1}, (..., d, length), of a type, and α^length, (..., d), of α's.

    They are made by products, whose derivatives are right at 0, too. Powers below ε⁴ add nothing to a step, and are 0,
    with the derivatives that they had: products of subnormal numbers take ten times as long as others.
    """
    powers_db, factor_d1 = torch.ones_like(alpha).unsqueeze(-1), alpha.unsqueeze(-1)
    while powers_db.shape[-1] < length:
        powers_db = torch.cat([powers_db, powers_db * factor_d1], -1)
        factor_d1 = factor_d1 * factor_d1
    powers_db = powers_db[..., :length]
    small = powers_db.abs() < torch.finfo(dtype).eps ** 4
    flushed_db = powers_db - torch.where(small, powers_db, 0.0).detach()
    return flushed_db.to(dtype), alpha * powers_db[..., -1]


def _toeplitz(lags_db: Tensor) -> Tensor:
    """The upper triangular matrix of which element (s, t) is that of lag t − s, (..., d, length, length).

    Each row is the one above it, moved by one: rows of 2·length numbers, read as if they had one less.
    """
    length = lags_db.shape[-1]
    rows = F.pad(lags_db, (0, length)).unsqueeze(-2).expand(*lags_db.shape, 2 * length).flatten(-2)
    return rows[..., :-length].unflatten(-1, (length, 2 * length - 1))[..., :length]


def _forward_mode() -> bool:
    """Whether torch derives forward.

    NOTE: within a `jvp` of a function's own, torch forgets those around it, and results would be wrong without a word.
    """
    return forward_ad._current_level >= 0


def _once(alpha: Tensor) -> Tensor:
    """One of the copies that `expand` shows of α, along each dimension: their powers are the same."""
    for dim, stride in enumerate(alpha.stride()[:-1]):
        alpha = alpha.narrow(dim, 0, min(1, alpha.shape[dim])) if stride == 0 else alpha
    return alpha


@register_kl(Independent, GaussianAR1)
def kl_mean_field_gaussian_ar1(q: Independent, p: GaussianAR1) -> Tensor:
    """KL(q ‖ p) in nats for a posterior that is independent over steps and dimensions, shape batch_shape.

    Per dimension, with s = 1 − α²:

        ½(σ_1² + μ_1² − 1 − ln σ_1²) + ½ Σ_{t≥2} [(σ_t² + α² σ_{t−1}² + (μ_t − α μ_{t−1})²)/s − 1 − ln σ_t² + ln s]

    In exact arithmetic it is never below `pyro_delta.rate.ar1_committed_rate(p.alpha, p.length)`; what is returned is,
    up to rounding in the wider type of q's and p's parameters. On the padding of a prior with lengths α is 0.

    Raises:
        NotImplementedError: q is not `Normal(μ, σ).to_event(2)`, or p is of a subclass.
        UserError: the event shapes of q and p differ.
    """
    check_exact((p, GaussianAR1))
    loc, scale = mean_field_parameters(q, p.event_shape, "GaussianAR1")
    # In half precision the squares and the logarithm of σ round apart, and the KL falls below δ: widen first.
    dtype = torch.promote_types(loc.dtype, p.alpha.dtype)
    loc, scale = loc.to(dtype), scale.to(dtype)
    log_scale_d = scale.log().sum(-2)  # first, so that fewer sequences are held at once
    first_d, later_td, before_td = _ends(loc)
    first_variance_d, later_variance_td, before_variance_td = _ends(scale.square())
    pull_td = p._pull_td()
    step_td = _innovations(later_td, before_td, pull_td)
    spread_td = torch.addcmul(later_variance_td, step_td, step_td)
    if p.lengths is None:  # sums first, which takes a pass over memory less
        spread_d = torch.addcmul(spread_td.sum(-2), p.alpha.square(), before_variance_td.sum(-2))
        spread_d = spread_d / _innovation_variance(p.alpha)
    else:
        spread_d = p._over_variance(torch.addcmul(spread_td, pull_td.square(), before_variance_td))
    square_d = torch.addcmul(first_variance_d, first_d, first_d) + spread_d
    return 0.5 * (square_d - p.length - 2 * log_scale_d + p._log_det_d()).sum(-1)
