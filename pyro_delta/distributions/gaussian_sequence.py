"""A Gaussian over a latent sequence with a dense covariance in each dimension, as a prior or as a posterior."""

from __future__ import annotations

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints, register_kl

from pyro_delta.distributions.gaussian_ar1 import GaussianAR1, check_steps
from pyro_delta.distributions.mean_field import check_exact, check_same_event, mean_field_parameters
from pyro_delta.distributions.shapes import broadcast_shapes
from pyro_delta.errors import UserError


class GaussianSequence(TorchDistribution):
    """n steps of d dimensions, each dimension a Gaussian on its own: z_·k ~ N(m_·k, L_k L_kᵀ).

    The whole sequence is one event of shape (n, d), one sample site. With a block-diagonal factor, one for each image,
    it is the structured posterior of blocks of consecutive steps; with one factor for all, a prior.

    What needs L⁻¹ (density and KL) is computed in float64 and handed back in the parameters' type: a smooth process
    has a nearly singular factor, and a KL that loses digits falls below δ.

    Args:
        loc: means m, shape (..., n, d).
        scale_tril: lower Cholesky factors L with a positive diagonal, shape (..., d, n, n), n ≤ 512. The leading
            dimensions of both broadcast to the batch shape.
        validate_args: check arguments and samples (torch's meaning of the flag).

    Raises:
        UserError: the shapes or types do not fit one another, or n > 512.
        ValueError: a factor is not lower triangular with a positive diagonal, with validation on.
    """

    arg_constraints = {  # noqa: RUF012 (torch's own protocol)
        "loc": constraints.independent(constraints.real, 2),
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() < 2 or scale_tril.shape[-3:] != (loc.shape[-1], loc.shape[-2], loc.shape[-2]):
            raise UserError(
                f"GaussianSequence got a loc of shape {tuple(loc.shape)} and a scale_tril of shape "
                f"{tuple(scale_tril.shape)}; give (..., n, d) and (..., d, n, n)."
            )
        if loc.dtype != scale_tril.dtype or not loc.is_floating_point():
            raise UserError(
                f"GaussianSequence got a loc of {loc.dtype} and a scale_tril of {scale_tril.dtype}; "
                "give both in one floating-point type."
            )
        check_steps(loc.shape[-2])
        batch_shape = broadcast_shapes(loc.shape[:-2], scale_tril.shape[:-3])
        self.loc = loc.expand(batch_shape + loc.shape[-2:])
        # Not expanded: one factor serves every member of a plate, and is inverted once.
        self._factor = scale_tril
        super().__init__(batch_shape, loc.shape[-2:], validate_args=validate_args)

    @property
    def scale_tril(self) -> Tensor:
        """The factors L, shape batch_shape + (d, n, n)."""
        return self._factor.expand(self.loc.shape[:-2] + self._factor.shape[-3:])

    def expand(self, batch_shape: torch.Size, _instance: GaussianSequence | None = None) -> GaussianSequence:
        """The same distribution over a larger batch, of the same class, so that a plate keeps the KL below."""
        new = self._get_checked_instance(GaussianSequence, _instance)
        new.loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        new._factor = self._factor
        super(GaussianSequence, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The means, shape (..., n, d)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variances of the single steps, shape (..., n, d)."""
        return self._factor.square().sum(-1).mT.expand(self._extended_shape())

    def precision(self) -> Tensor:
        """Λ_k = (L_k L_kᵀ)⁻¹ of each dimension, float64, shape batch_shape + (d, n, n)."""
        inverse = self._inverse_factor()
        return (inverse.mT @ inverse).expand(self.scale_tril.shape)

    def transform(self, eps: Tensor) -> Tensor:
        """Turn standard normal noise into a sample, m + L ε; noise and sample have shape (..., n, d)."""
        return self.loc + torch.einsum("...dts,...sd->...td", self._factor, eps)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (torch's own signature)
        """Draw a reparameterised sample, shape sample_shape + (..., n, d)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.transform(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; `value` has shape (..., n, d)."""
        if self._validate_args:
            self._validate_sample(value)
        square = _whitened(self._inverse_factor(), value, self.loc).square().sum((-2, -1))
        nats = -0.5 * (square + self.event_shape.numel() * math.log(2 * math.pi)) - self._half_log_det()
        return nats.to(torch.promote_types(value.dtype, self.loc.dtype))

    def entropy(self) -> Tensor:
        """Differential entropy in nats, shape batch_shape."""
        nats = self._half_log_det() + 0.5 * self.event_shape.numel() * (1 + math.log(2 * math.pi))
        return nats.to(self.loc.dtype).expand(self.batch_shape)

    def _inverse_factor(self) -> Tensor:
        """L⁻¹ in float64, of the factors as they were given."""
        eye = torch.eye(self.event_shape[0], dtype=torch.float64, device=self._factor.device)
        return torch.linalg.solve_triangular(self._factor.double(), eye, upper=False)

    def _half_log_det(self) -> Tensor:
        """½ ln det of the covariance in float64, summed over dimensions: Σ_k Σ_t ln L_ktt."""
        return self._factor.diagonal(dim1=-2, dim2=-1).double().log().sum((-2, -1))


def _whitened(inverse_factor: Tensor, value: Tensor, loc: Tensor) -> Tensor:
    """L⁻¹ (value − m) in float64, shape (..., n, d)."""
    return torch.einsum("...dts,...sd->...td", inverse_factor, value.double() - loc.double())


@register_kl(Independent, GaussianSequence)
def kl_mean_field_gaussian_sequence(q: Independent, p: GaussianSequence) -> Tensor:
    """KL(q ‖ p) in nats for a posterior that is independent over steps and dimensions, shape batch_shape.

    Per dimension, with Λ = (L Lᵀ)⁻¹ and q = N(μ, diag σ²):

        ½ Σ_t [σ_t² Λ_tt − 1 − ln σ_t²] + ½ ‖L⁻¹(μ − m)‖² + Σ_t ln L_tt

    Never below `pyro_delta.rate.committed_rate(p)`, up to the rounding of the result.

    Raises:
        NotImplementedError: q is not `Normal(μ, σ).to_event(2)`, or p is of a subclass.
        UserError: the event shapes of q and p differ.
    """
    check_exact((p, GaussianSequence))
    loc, scale = mean_field_parameters(q, p.event_shape, "GaussianSequence")
    inverse = p._inverse_factor()
    wide = scale.double()
    spread = wide.square() * inverse.square().sum(-2).mT + _whitened(inverse, loc, p.loc).square()
    nats = (0.5 * (spread - 1) - wide.log()).sum((-2, -1)) + p._half_log_det()
    return nats.to(torch.promote_types(loc.dtype, p.loc.dtype))


@register_kl(GaussianSequence, GaussianSequence)
def kl_gaussian_sequences(q: GaussianSequence, p: GaussianSequence) -> Tensor:
    """KL(q ‖ p) in nats, shape batch_shape.

    Per dimension, with M = L_p⁻¹ L_q:  ½ [‖M‖² + ‖L_p⁻¹(m_q − m_p)‖² − n] − Σ_t ln M_tt.

    Raises:
        NotImplementedError: q or p is of a subclass.
        UserError: the event shapes of q and p differ.
    """
    check_exact((q, GaussianSequence), (p, GaussianSequence))
    check_same_event(q, p.event_shape)
    inverse = p._inverse_factor()
    spread = torch.einsum("...dts,...dsr->...dtr", inverse, q._factor.double()).square().sum((-3, -2, -1))
    square = _whitened(inverse, q.loc, p.loc).square().sum((-2, -1))
    nats = 0.5 * (spread + square - p.event_shape.numel()) + p._half_log_det() - q._half_log_det()
    return nats.to(torch.promote_types(q.loc.dtype, p.loc.dtype))


@register_kl(GaussianSequence, GaussianAR1)
def kl_gaussian_sequence_gaussian_ar1(q: GaussianSequence, p: GaussianAR1) -> Tensor:
    """KL(q ‖ p) in nats, shape batch_shape.

    Per dimension, with s = 1 − α² and L the factor of q, whose rows are L_t:

        ½ [‖L_1‖² + m_1² + Σ_{t≥2} (‖L_t − α L_{t−1}‖² + (m_t − α m_{t−1})²)/s + (n − 1) ln s − n] − Σ_t ln L_tt

    The prior is Markov, so that only the variances of q and the covariances of neighbouring steps enter: no n³.

    Raises:
        NotImplementedError: q or p is of a subclass.
        UserError: the event shapes of q and p differ.
    """
    check_exact((q, GaussianSequence), (p, GaussianAR1))
    check_same_event(q, p.event_shape)
    dtype = torch.promote_types(q.loc.dtype, p.alpha.dtype)  # widens half precision, as the mean-field KL does
    loc, factor = q.loc.to(dtype), q._factor.to(dtype)
    pull_td = p._pull_td()
    rows_dt = (factor[..., 1:, :] - pull_td.mT.unsqueeze(-1) * factor[..., :-1, :]).square().sum(-1)
    means_td = (loc[..., 1:, :] - pull_td * loc[..., :-1, :]).square()
    first_d = factor[..., 0, 0].square() + loc[..., 0, :].square()
    later_d = p._over_variance(rows_dt.mT + means_td)
    log_det_d = p._log_det_d() - 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (first_d + later_d + log_det_d - p.length).sum(-1)
