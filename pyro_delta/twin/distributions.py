"""Distributions over latent sequences in NumPyro, and their KL divergences. Everything is in nats.

Written from the equations of [1] and from `docs/architecture.md`. Arrays keep the precision that they come in.
n steps, d dimensions.

References:
    [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import Distribution, ExpandedDistribution, Independent, Normal, constraints
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import validate_sample

Shape = tuple[int, ...]


class GaussianAR1(Distribution):
    """Stationary AR(1): z_0 ~ N(0, 1), z_t ~ N(α z_{t−1}, 1 − α²), for each of d dimensions [1].

    With `lengths`, the steps from there on are padding, N(0, 1) each: α is 0 there.

    Args:
        alpha: correlation of neighbours, |α| < 1, (..., d).
        length: n ≥ 1.
        lengths: steps of each member of the batch, 1 … n, (...); None for n.
    """

    arg_constraints = {"alpha": constraints.independent(constraints.open_interval(-1.0, 1.0), 1)}  # noqa: RUF012
    support = constraints.real_matrix
    reparametrized_params = ["alpha"]  # noqa: RUF012
    pytree_data_fields = ("alpha", "lengths")
    pytree_aux_fields = ("length",)

    def __init__(self, alpha: Any, length: int, lengths: Any = None, *, validate_args: bool | None = None) -> None:
        if length < 1:
            raise ValueError(f"length = {length}: a sequence has at least one step")
        self.alpha, self.length, self.lengths = floating(alpha), length, lengths
        if lengths is not None:
            batch_shape = jnp.broadcast_shapes(self.alpha.shape[:-1], jnp.shape(lengths))
            self.alpha = jnp.broadcast_to(self.alpha, (*batch_shape, self.alpha.shape[-1]))
            self.lengths = jnp.broadcast_to(jnp.asarray(lengths), batch_shape)
        super().__init__(self.alpha.shape[:-1], (length, self.alpha.shape[-1]), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int]) -> GaussianAR1:
        """The same with another batch shape; a subclass stays one, so that its KL is found."""
        alpha = jnp.broadcast_to(self.alpha, (*batch_shape, self.alpha.shape[-1]))
        lengths = None if self.lengths is None else jnp.broadcast_to(self.lengths, tuple(batch_shape))
        return type(self)(alpha, self.length, lengths, validate_args=self._validate_args)

    @property
    def mean(self) -> Array:
        """0."""
        return jnp.zeros(self.shape(), self.alpha.dtype)

    @property
    def variance(self) -> Array:
        """1: the process is stationary."""
        return jnp.ones(self.shape(), self.alpha.dtype)

    def transform(self, eps: Array) -> Array:
        """Sample from standard normal noise: w_0 = ε_0, w_t = √(1−α²) ε_t, z_t = α z_{t−1} + w_t, in log₂ n stages.

        Args:
            eps: (..., n, d).
        """
        alpha = self.alpha_td()
        eps = jnp.broadcast_to(eps, jnp.broadcast_shapes(eps.shape, alpha.shape))
        scale = jnp.broadcast_to(jnp.sqrt(_one_minus_square(alpha)), eps.shape)
        w = jnp.concatenate([eps[..., :1, :], scale[..., 1:, :] * eps[..., 1:, :]], axis=-2)

        # Step t is the map z ↦ a z + w; a run of steps is a map of the same form.
        def then(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
            return first[0] * second[0], second[0] * first[1] + second[1]

        return jax.lax.associative_scan(then, (jnp.broadcast_to(alpha, w.shape), w), axis=w.ndim - 2)[1]

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Draws (*sample_shape, *batch_shape, n, d); gradients reach α."""
        return self.transform(jax.random.normal(key, self.shape(sample_shape), self.alpha.dtype))

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-density of (..., n, d), in O(n·d)."""
        n, d = self.event_shape
        return -0.5 * (_ar1_square(self.alpha_td(), value) + self.log_det() + n * d * math.log(2 * math.pi))

    def entropy(self) -> Array:
        """Differential entropy of the whole sequence."""
        n, d = self.event_shape
        return 0.5 * (n * d * (1 + math.log(2 * math.pi)) + self.log_det())

    def alpha_td(self) -> Array:
        """The correlation of each step with the one before, α or, on the padding, 0: (..., n or 1, d)."""
        alpha = self.alpha[..., None, :]
        if self.lengths is None:
            return alpha
        return jnp.where((jnp.arange(self.length) < self.lengths[..., None])[..., None], alpha, 0.0)

    def log_det(self) -> Array:
        """Log-determinant of the covariance, (n − 1) Σ ln(1 − α²): (...)."""
        steps = self.length if self.lengths is None else self.lengths
        return (steps - 1) * jnp.sum(_log_one_minus_square(self.alpha), axis=-1)


class GaussianSequence(Distribution):
    """A Gaussian over sequences, dimensions independent: z_·k = μ_·k + L_k ε_·k.

    Args:
        loc: μ (..., n, d).
        scale_tril: L (..., d, n, n), or (..., 1, n, n) for one factor that all dimensions share.
    """

    arg_constraints = {  # noqa: RUF012
        "loc": constraints.real_matrix,
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
    }
    support = constraints.real_matrix
    reparametrized_params = ["loc", "scale_tril"]  # noqa: RUF012
    pytree_data_fields = ("loc", "scale_tril")

    def __init__(self, loc: Any, scale_tril: Any, *, validate_args: bool | None = None) -> None:
        self.scale_tril = floating(scale_tril)
        loc = floating(loc)
        n, d = loc.shape[-2:]
        if self.scale_tril.shape[-3:] not in [(d, n, n), (1, n, n)]:
            raise ValueError(f"scale_tril of shape {self.scale_tril.shape} does not fit loc of shape {loc.shape}")
        batch_shape = jnp.broadcast_shapes(loc.shape[:-2], self.scale_tril.shape[:-3])
        self.loc = jnp.broadcast_to(loc, (*batch_shape, n, d))
        super().__init__(batch_shape, (n, d), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int]) -> GaussianSequence:
        """The same with another batch shape; the factors are not copied."""
        loc = jnp.broadcast_to(self.loc, (*batch_shape, *self.event_shape))
        return type(self)(loc, self.scale_tril, validate_args=self._validate_args)

    @property
    def mean(self) -> Array:
        """μ."""
        return self.loc

    @property
    def variance(self) -> Array:
        """Of every coordinate on its own: Σ_s L_ts²."""
        variance_td = jnp.swapaxes(jnp.sum(jnp.square(self.scale_tril), axis=-1), -1, -2)
        return jnp.broadcast_to(variance_td, self.loc.shape)

    def transform(self, eps: Array) -> Array:
        """Sample from standard normal noise (..., n, d)."""
        factor = _for_each_dimension(self.scale_tril, self.event_shape[1])
        return self.loc + jnp.einsum("...dts,...sd->...td", factor, eps, precision="highest")

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Draws (*sample_shape, *batch_shape, n, d); gradients reach μ and L."""
        return self.transform(jax.random.normal(key, self.shape(sample_shape), self.loc.dtype))

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-density of (..., n, d)."""
        n, d = self.event_shape
        square = jnp.sum(jnp.square(_whitened(self.scale_tril, value - self.loc)), axis=(-2, -1))
        return -0.5 * (square + n * d * math.log(2 * math.pi)) - _log_det(self.scale_tril, d)

    def entropy(self) -> Array:
        """Differential entropy of the whole sequence."""
        n, d = self.event_shape
        entropy = 0.5 * n * d * (1 + math.log(2 * math.pi)) + _log_det(self.scale_tril, d)
        return jnp.broadcast_to(entropy, self.batch_shape)


# --- Pieces ---


def floating(value: Any) -> Array:
    """As an array of the precision that it has; integers become JAX's default."""
    return jnp.asarray(value, jnp.result_type(value, float))


def _one_minus_square(alpha: Array) -> Array:
    """1 − α², exact where α is close to ±1."""
    return (1 - alpha) * (1 + alpha)


def _log_one_minus_square(alpha: Array) -> Array:
    """ln(1 − α²).

    NOTE: not log1p(−α) + log1p(α): on the CPU, JAX 0.10.2 gives wrong sums of that over the last axis of large batches.
    """
    return jnp.log(_one_minus_square(alpha))


def _ar1_square(alpha_td: Array, z_td: Array) -> Array:
    """Σ z_0² + Σ (z_t − α_t z_{t−1})² / (1 − α_t²) over steps and dimensions: (...).

    Args:
        alpha_td: (..., n, d), or (..., 1, d) if it is the same for all steps.
        z_td: (..., n, d).
    """
    alpha_td = alpha_td if alpha_td.shape[-2] == 1 else alpha_td[..., 1:, :]
    steps = jnp.square(z_td[..., 1:, :] - alpha_td * z_td[..., :-1, :]) / _one_minus_square(alpha_td)
    return jnp.sum(jnp.square(z_td[..., 0, :]) + jnp.sum(steps, axis=-2), axis=-1)


def _for_each_dimension(scale_tril: Array, dims: int) -> Array:
    *batch, _, n, _ = scale_tril.shape
    return jnp.broadcast_to(scale_tril, (*batch, dims, n, n))


def _whitened(scale_tril: Array, z_td: Array) -> Array:
    """L_k⁻¹ z_·k, (..., n, d). Batch dimensions that L does not have are columns of one solve."""
    *batch, n, d = z_td.shape
    inner = batch[len(batch) - (scale_tril.ndim - 3) :]
    columns = jnp.swapaxes(jnp.moveaxis(z_td.reshape(-1, *inner, n, d), 0, -1), -3, -2)
    solved = solve_triangular(jnp.broadcast_to(scale_tril, (*inner, d, n, n)), columns, lower=True)
    return jnp.moveaxis(jnp.swapaxes(solved, -3, -2), -1, 0).reshape(z_td.shape)


def _log_det(scale_tril: Array, dims: int) -> Array:
    """Σ_k ln det L_k: (...)."""
    log_diagonal = jnp.log(jnp.diagonal(scale_tril, axis1=-2, axis2=-1))
    return jnp.sum(log_diagonal, axis=(-2, -1)) * (dims // scale_tril.shape[-3])


# --- KL divergences, found by numpyro.distributions.kl.kl_divergence and TraceMeanField_ELBO ---


def normal_parameters(q: Distribution) -> tuple[Array, Array] | None:
    """μ and σ, of batch and event shape, if q is exactly Normal and independent over its coordinates, plated or not."""
    base = q
    while isinstance(base, Independent | ExpandedDistribution):
        base = base.base_dist
    if type(base) is not Normal:
        return None
    return jnp.broadcast_to(base.loc, q.shape()), jnp.broadcast_to(base.scale, q.shape())


def _normal(q: Independent, p: Distribution) -> tuple[Array, Array]:
    """Mean and standard deviation (..., n, d) of `Normal(...).to_event(2)`.

    Raises:
        NotImplementedError: if it is anything else; `TraceMeanField_ELBO` then samples.
    """
    parameters = normal_parameters(q)
    if parameters is None or len(q.event_shape) != 2:
        raise NotImplementedError
    _check_events(q, p)
    return parameters


def _check_events(q: Distribution, p: Distribution) -> None:
    if q.event_shape != p.event_shape:
        raise ValueError(f"no KL between events of shape {q.event_shape} and {p.event_shape}")


@kl_divergence.register(Independent, GaussianAR1)
def _kl_normal_ar1(q: Independent, p: GaussianAR1) -> Array:
    """½ Σ [σ_0² + Σ_t (σ_t² + α² σ_{t−1}²)/s − Σ_t ln σ_t² + (n−1) ln s − n] and the mean's part, s = 1 − α²."""
    loc, scale = _normal(q, p)
    var = jnp.square(scale)
    alpha_td = jnp.broadcast_to(p.alpha_td(), (*p.batch_shape, *p.event_shape))[..., 1:, :]
    steps_td = (var[..., 1:, :] + jnp.square(alpha_td) * var[..., :-1, :]) / _one_minus_square(alpha_td)
    trace = jnp.sum(var[..., 0, :] + jnp.sum(steps_td, axis=-2), axis=-1)
    log_ratio = p.log_det() - 2 * jnp.sum(jnp.log(scale), axis=(-2, -1))
    return 0.5 * (trace + _ar1_square(p.alpha_td(), loc) + log_ratio - math.prod(p.event_shape))


@kl_divergence.register(Independent, GaussianSequence)
def _kl_normal_sequence(q: Independent, p: GaussianSequence) -> Array:
    """½ [Σ σ_t² Λ_tt + |L⁻¹(μ_q − μ_p)|² − nd − Σ ln σ² + 2 Σ ln det L], Λ = (L Lᵀ)⁻¹."""
    loc, scale = _normal(q, p)
    n, d = p.event_shape
    inverse = solve_triangular(
        p.scale_tril, jnp.broadcast_to(jnp.eye(n, dtype=p.scale_tril.dtype), p.scale_tril.shape), lower=True
    )
    precision_td = jnp.swapaxes(jnp.sum(jnp.square(inverse), axis=-2), -1, -2)
    trace = jnp.sum(jnp.square(scale) * precision_td, axis=(-2, -1))
    square = jnp.sum(jnp.square(_whitened(p.scale_tril, loc - p.loc)), axis=(-2, -1))
    log_ratio = _log_det(p.scale_tril, d) - jnp.sum(jnp.log(scale), axis=(-2, -1))
    return 0.5 * (trace + square - n * d) + log_ratio


@kl_divergence.register(GaussianSequence, GaussianSequence)
def _kl_sequences(q: GaussianSequence, p: GaussianSequence) -> Array:
    """½ [|L_p⁻¹ L_q|² + |L_p⁻¹(μ_q − μ_p)|² − nd] + Σ ln det L_p − Σ ln det L_q."""
    _check_events(q, p)
    n, d = p.event_shape
    factors = jnp.broadcast_arrays(_for_each_dimension(p.scale_tril, d), q.scale_tril)
    trace = jnp.sum(jnp.square(solve_triangular(*factors, lower=True)), axis=(-3, -2, -1))
    square = jnp.sum(jnp.square(_whitened(p.scale_tril, q.loc - p.loc)), axis=(-2, -1))
    return 0.5 * (trace + square - n * d) + _log_det(p.scale_tril, d) - _log_det(q.scale_tril, d)


@kl_divergence.register(GaussianSequence, GaussianAR1)
def _kl_sequence_ar1(q: GaussianSequence, p: GaussianAR1) -> Array:
    """As between sequences: AR(1) whitens each column of L_q as it does a sequence."""
    _check_events(q, p)
    n, d = p.event_shape
    columns_std = jnp.swapaxes(_for_each_dimension(q.scale_tril, d), -1, -3)
    alpha_td = p.alpha_td()
    trace = jnp.sum(_ar1_square(alpha_td[..., None, :, :], columns_std), axis=-1)
    log_ratio = 0.5 * p.log_det() - _log_det(q.scale_tril, d)
    return 0.5 * (trace + _ar1_square(alpha_td, q.loc) - n * d) + log_ratio
