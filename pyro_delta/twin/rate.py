"""The committed rate δ in nats, in float64 NumPy, written from the formulas [1, eq. 3].

References:
    [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from numpyro.distributions import Distribution

from pyro_delta.errors import UserError
from pyro_delta.twin.distributions import GaussianAR1, GaussianSequence, normal_parameters

Array = np.ndarray[Any, np.dtype[Any]]


def committed_rate(prior: Distribution, block: int = 1) -> Array:
    """δ of a prior against posteriors that factorise over dimensions and over blocks of consecutive steps.

    Of independent Normals it is 0. Of another Gaussian that is not of this package Λ is read off its log-density, by
    differentiating twice in float64.

    Args:
        prior: a Gaussian over (n, d), without a batch if it is not of this package; Normals of any shape.
        block: steps in a block; the last may have fewer.

    Returns:
        δ in nats, float64, of the prior's batch shape.

    Raises:
        UserError: if the prior is not Gaussian.
    """
    if isinstance(prior, GaussianAR1):
        return ar1_rate(prior.alpha, prior.length if prior.lengths is None else prior.lengths, block)
    if normal_parameters(prior) is not None:
        return np.zeros(prior.batch_shape)
    if not isinstance(prior, GaussianSequence):
        return _rate_of_density(prior, block)
    n, d = prior.event_shape
    factor = np.broadcast_to(np.asarray(prior.scale_tril, np.float64), (*prior.batch_shape, d, n, n))
    return np.sum(factor_rate(factor, block), axis=-1)


def _rate_of_density(prior: Distribution, block: int) -> Array:
    n, d = prior.event_shape
    precision = _precision_of_density(prior)
    halves = [np.linalg.slogdet(precision[part, part])[1] for part in _parts(n, d, block)]
    return 0.5 * (np.sum(halves) - np.linalg.slogdet(precision)[1])


def _parts(length: int, dims: int, block: int) -> list[slice]:
    """Where the blocks lie in a sequence that is flattened dimension by dimension."""
    starts = [(k, b) for k in range(0, dims * length, length) for b in range(0, length, block)]
    return [slice(k + b, k + min(b + block, length)) for k, b in starts]


def _precision_of_density(prior: Distribution) -> Array:
    """Λ = −∇² log p, (d·n, d·n), flattened dimension by dimension, in float64.

    Raises:
        UserError: if it is not the same at two points.
    """
    n, d = prior.event_shape
    hessian = jax.jit(jax.hessian(lambda z_dn: prior.log_prob(z_dn.reshape(d, n).T)))
    with jax.enable_x64(True):
        points = (jnp.zeros(d * n), jnp.linspace(-1.0, 2.0, d * n))
        precision, elsewhere = (-np.asarray(hessian(point)) for point in points)
    if not np.allclose(precision, elsewhere, rtol=1e-9, atol=1e-12):
        raise UserError(f"the twin's prior {type(prior).__name__} is not Gaussian, and commits no known rate.")
    return precision


def ar1_rate(alpha_d: ArrayLike, length: ArrayLike, block: int = 1) -> Array:
    """δ of an AR(1) process, by eq. 3 of [1] for blocks of one step.

    A block of b steps between two others has ln det Λ_bb = ln((1 + α² + … + α^2b) / s^b), s = 1 − α²; the first and the
    last have −b ln s, and ln det Λ = (1 − n) ln s. A single block is the whole: δ = 0, also at n = 1.

    Args:
        alpha_d: (..., d), or one number.
        length: n, or several that broadcast with (...).
        block: b.

    Returns:
        δ in nats, float64 (...).
    """
    alpha_d = np.atleast_1d(np.asarray(alpha_d, np.float64))
    blocks = -(-np.asarray(length) // block)
    between_d = np.log1p(sum(alpha_d ** (2 * j) for j in range(1, block + 1)))
    log_s_d = np.log1p(-alpha_d) + np.log1p(alpha_d)
    return np.where(blocks == 1, 0.0, np.sum(0.5 * ((blocks[..., None] - 2) * between_d - log_s_d), axis=-1))


def precision_rate(precision: ArrayLike, block: int = 1) -> Array:
    """δ = ½ (Σ_b ln det Λ_bb − ln det Λ) of Gaussians with precision Λ.

    Args:
        precision: Λ (..., n, n).
        block: steps in a block; the last may have fewer.

    Returns:
        δ in nats, float64 (...).
    """
    precision = np.asarray(precision, np.float64)
    starts = range(0, precision.shape[-1], block)
    parts = (precision[..., b : b + block, b : b + block] for b in starts)
    return 0.5 * (sum(np.linalg.slogdet(part)[1] for part in parts) - np.linalg.slogdet(precision)[1])


def factor_rate(scale_tril: ArrayLike, block: int = 1) -> Array:
    """δ of Gaussians with covariance L Lᵀ: as `precision_rate`, exact also where the covariance is close to singular.

    With G the inverse of L, Λ_bb = G_·bᵀ G_·b, so that half its ln det is Σ ln |r_ii| of the QR factors of G's columns.

    Args:
        scale_tril: L (..., n, n).
        block: steps in a block; the last may have fewer.

    Returns:
        δ in nats, float64 (...).
    """
    scale_tril = np.asarray(scale_tril, np.float64)
    inverse = np.linalg.inv(scale_tril)
    columns = (inverse[..., b : b + block] for b in range(0, scale_tril.shape[-1], block))
    halves = [_log_diagonal(np.linalg.qr(part).R) for part in columns]
    return np.sum(halves, axis=0) + _log_diagonal(scale_tril)


def minimising_factor(prior: Distribution, block: int = 1) -> Array:
    """L₀ of the posterior that attains δ: each block has the covariance (Λ_bb)⁻¹, of which it is the lower factor.

    Args:
        prior: a Gaussian over (n, d), without a batch.
        block: steps in a block; the last may have fewer.

    Returns:
        (d, n, n), float64, zero outside the blocks.

    Raises:
        UserError: if the prior is not Gaussian.
    """
    n, d = prior.event_shape
    precision, factor = _precision(prior), np.zeros((d, n, n))
    for part in _parts(n, d, block):
        k, start = divmod(part.start, n)
        steps = slice(start, start + part.stop - part.start)
        factor[k, steps, steps] = np.linalg.cholesky(np.linalg.inv(precision[part, part]))
    return factor


def _precision(prior: Distribution) -> Array:
    """Λ (d·n, d·n), flattened dimension by dimension."""
    n, d = prior.event_shape
    if isinstance(prior, GaussianAR1):
        whitening = _ar1_whitening(prior.alpha_td(), n)
    elif isinstance(prior, GaussianSequence):
        whitening = np.linalg.inv(np.broadcast_to(np.asarray(prior.scale_tril, np.float64), (d, n, n)))
    else:
        return _precision_of_density(prior)
    precision = np.zeros((d, n, d, n))
    precision[np.arange(d), :, np.arange(d)] = whitening.mT @ whitening
    return precision.reshape(d * n, d * n)


def _ar1_whitening(alpha_td: ArrayLike, length: int) -> Array:
    """The inverse of the Cholesky factor of AR(1), (d, n, n): row t is z_t − α_t z_{t−1} over its deviation."""
    alpha_dt = np.asarray(alpha_td, np.float64).swapaxes(-1, -2)[..., None]
    deviation = np.sqrt((1 - alpha_dt) * (1 + alpha_dt))
    whitening = (np.eye(length) - alpha_dt * np.eye(length, k=-1)) / deviation
    whitening[..., 0, 0] = 1.0
    return whitening


def _log_diagonal(matrix: Array) -> Array:
    return np.sum(np.log(np.abs(np.diagonal(matrix, axis1=-2, axis2=-1))), axis=-1)


# --- Back: parameters that commit a rate ---


def alpha_of_rate(rate: ArrayLike, length: int) -> Array:
    """α ≥ 0 of one dimension that commits a rate: the inverse of eq. 3, elementwise, in float64.

    In w = −ln(1 − α²) the rate is ½ [(n − 2) ln(2 − e^−w) + w], increasing and concave: Newton's method from w = 0
    climbs to the solution and never overshoots.

    Args:
        rate: nats, ≥ 0.
        length: n ≥ 2.
    """
    rate = np.asarray(rate, np.float64)
    w = np.zeros_like(rate)
    for _ in range(100):
        value = 0.5 * ((length - 2) * np.log1p(-np.expm1(-w)) + w)
        slope = 0.5 * ((length - 2) * np.exp(-w) / (2 - np.exp(-w)) + 1)
        higher = w + (rate - value) / slope
        if np.all(np.abs(higher - w) <= 1e-16 * higher):
            break
        w = higher
    return np.sqrt(-np.expm1(-w))


def solve_for_rate(rate_of: Callable[[float], float], rate: float, high: float) -> float:
    """Where an increasing function on [0, high) reaches a rate, to the last bits and from above; `high` if nowhere."""
    from scipy.optimize import brentq

    below = float(np.nextafter(high, 0.0))
    if rate_of(below) < rate:
        return high
    if rate_of(0.0) >= rate:
        return 0.0
    found = brentq(lambda value: rate_of(value) - rate, 0.0, below, xtol=1e-300, rtol=1e-15, maxiter=10_000)
    while rate_of(found) < rate:
        found = float(np.nextafter(found, high))
    return found


def alpha_of_spelling(spelling: str | float, dims: int) -> Array:
    """α of each dimension, (d,): from one number, `LO:HI` (linear) or d numbers with commas.

    Raises:
        UserError: if it cannot be read, has another length, or |α| ≥ 1.
    """
    try:
        if ":" in str(spelling):
            low, high = (float(end) for end in str(spelling).split(":"))
            alpha_d = np.linspace(low, high, dims)
        else:
            given = [float(number) for number in str(spelling).split(",")]
            alpha_d = np.array(given * dims if len(given) == 1 else given)
    except ValueError:
        raise UserError(
            f"alpha {spelling!r} is neither a number nor LO:HI nor a list of {dims} numbers; give one of them."
        ) from None
    if len(alpha_d) != dims:
        raise UserError(f"alpha {spelling!r} has {len(alpha_d)} numbers for {dims} dimensions; give one of each.")
    if not np.all(np.abs(alpha_d) < 1):
        raise UserError(f"alpha {spelling!r} is not between -1 and 1; a correlation is.")
    return alpha_d
