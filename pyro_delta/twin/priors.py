"""A twin of every shipped prior, with its options and its names, as Flax (nnx) modules.

Written from `docs/architecture.md`. A prior returns its NumPyro distribution, of event shape (n, d), when it is called.
`starts` (n,) holds the position of the data from which each latent step belongs to them. Buffers are computed in
float64 and held in JAX's default precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pyro_delta.errors import UserError, unknown_name
from pyro_delta.protocol import Spec
from pyro_delta.twin.distributions import GaussianAR1, GaussianSequence
from pyro_delta.twin.rate import (
    Array,
    alpha_of_rate,
    alpha_of_spelling,
    factor_rate,
    solve_for_rate,
)
from pyro_delta.twin.variables import Buffer

# Matérn's ν: 2ν, and the coefficients of the polynomial.
_MATERN = {"1/2": (1, (1.0,)), "3/2": (3, (1.0, 1.0)), "5/2": (5, (1.0, 1.0, 1 / 3))}

# Least entry of the diagonal of an exact factor: its square has a rounding of some 1e-16 n.
_LEAST_PIVOT = 1e-4


def steps_within(starts: jax.Array, lengths: Any) -> jax.Array | None:
    """How many steps belong to data of so many positions (...); None for data without lengths."""
    return None if lengths is None else jnp.sum(starts < jnp.asarray(lengths)[..., None], axis=-1)


class AR1Prior(nnx.Module):
    """Stationary AR(1) over the steps, α fixed.

    Args:
        spec: of the data.
        dims: d.
        length: n, a divisor of the positions of the data or a multiple; None is one step for each.
        alpha: one number, `LO:HI` for a linear spread over the dimensions, or d numbers with commas.
        rate_nats: the committed rate from which one shared α is solved, in place of `alpha`.
        bitrate: the same in bits a second of a datum of all positions.

    Raises:
        UserError: if an option does not fit.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        dims: int = 8,
        length: int | None = None,
        alpha: str | float | None = None,
        rate_nats: float | None = None,
        bitrate: float | None = None,
    ) -> None:
        starts = even_starts(spec.positions, length)
        n = len(starts)
        if bitrate is not None:
            seconds = getattr(spec, "seconds", None)
            if rate_nats is not None or not seconds or not 0 <= bitrate < dims * (n - 2) / (2 * seconds):
                raise UserError(
                    f"bitrate={bitrate:g} does not fit; it is below half a bit per inner step and dimension."
                )
            rate_nats = bitrate * seconds / math.log2(math.e)
        alpha_d = alphas(alpha, rate_nats, dims, n, lambda rate: float(alpha_of_rate(rate / dims, n)))
        self.starts = Buffer(jnp.asarray(starts))
        self.alpha = Buffer(jnp.asarray(alpha_d))

    def __call__(self, lengths: Any = None) -> GaussianAR1:
        """The process; with a length for each of data of so many positions (B,)."""
        return GaussianAR1(self.alpha[...], self.starts.shape[0], steps_within(self.starts[...], lengths))


class StandardNormalPrior(nnx.Module):
    """N(0, 1) everywhere, as AR(1) with α = 0. Options are those of `AR1Prior`, without a rate."""

    def __init__(self, spec: Spec, *, dims: int = 8, length: int | None = None) -> None:
        self.starts = Buffer(jnp.asarray(even_starts(spec.positions, length)))
        self.alpha = Buffer(jnp.zeros(dims))

    def __call__(self, lengths: Any = None) -> GaussianAR1:
        """The process; with a length for each of data of so many positions (B,)."""
        return GaussianAR1(self.alpha[...], self.starts.shape[0], steps_within(self.starts[...], lengths))


class LearnedAR1Prior(nnx.Module):
    """AR(1) that learns its rate above a floor, and how the dimensions share it.

    Args:
        spec: of the data.
        dims: d.
        length: n ≥ 2, a divisor of the positions of the data or a multiple; None is one step for each.
        floor_nats: δ₀, which every value of the parameters commits.

    Raises:
        UserError: if an option does not fit.
    """

    def __init__(self, spec: Spec, *, dims: int = 8, length: int | None = None, floor_nats: float = 8.0) -> None:
        starts = even_starts(spec.positions, length)
        self.floor_nats = checked_rate(floor_nats, len(starts))
        self.starts = Buffer(jnp.asarray(starts))
        self.excess = nnx.Param(jnp.zeros(()))
        self.shares = nnx.Param(jnp.zeros(dims))
        start = (np.asarray(parameter[...]) for parameter in (self.excess, self.shares))
        _below_one(_learned_alpha_in_float64(*start, floor=self.floor_nats, length=len(starts)), floor_nats)

    def __call__(self) -> GaussianAR1:
        """The process at the parameters' present values."""
        length = self.starts.shape[0]
        return GaussianAR1(learned_alpha(self.excess[...], self.shares[...], self.floor_nats, length), length)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def learned_alpha(excess: jax.Array, shares_d: jax.Array, floor: float, length: int) -> jax.Array:
    """α_k ≥ 0 that commits (δ₀ + softplus(excess)) · softmax(shares)_k nats.

    Solved on the host in float64, whatever the precision of the parameters, and rounded up to it: rounding alone would
    undercut the floor. Its gradient is that of the inverse function.

    Args:
        excess: ().
        shares_d: (d,).
        floor: δ₀.
        length: n.
    """
    dtype = shares_d.dtype
    # Numbers travel as bits: the thread that JAX calls back in may not know of double precision.
    as_bits = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.uint32)

    def solve(excess_bits: Any, shares_bits: Any) -> Array:
        excess, shares_d = (np.asarray(bits).reshape(-1).view(dtype) for bits in (excess_bits, shares_bits))
        alpha_d = _learned_alpha_in_float64(excess[0], shares_d, floor=floor, length=length)
        return alpha_d.view(np.uint32).reshape(shares_bits.shape)

    bits = as_bits(excess.astype(dtype)), as_bits(shares_d)
    found = jax.pure_callback(solve, jax.ShapeDtypeStruct(bits[1].shape, jnp.uint32), *bits, vmap_method="sequential")
    return jax.lax.bitcast_convert_type(found, dtype)


@learned_alpha.defjvp
def _learned_alpha_jvp(floor: float, length: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    def rates(excess: jax.Array, shares_d: jax.Array) -> jax.Array:
        return (floor + jax.nn.softplus(excess)) * jax.nn.softmax(shares_d)

    alpha_d = learned_alpha(*primals, floor, length)
    change_d = jax.jvp(rates, primals, tangents)[1]
    slope_d = alpha_d * ((length - 2) / (1 + jnp.square(alpha_d)) + 1 / ((1 - alpha_d) * (1 + alpha_d)))
    return alpha_d, change_d / slope_d


def _learned_alpha_in_float64(excess: Any, shares_d: Any, *, floor: float, length: int) -> Array:
    shares = np.asarray(shares_d, np.float64)
    parts = np.exp(shares - shares.max())
    total = floor + np.logaddexp(0.0, np.asarray(excess, np.float64))
    exact = alpha_of_rate(total * parts / parts.sum(), length)
    rounded = exact.astype(np.asarray(shares_d).dtype)
    return np.where(rounded < exact, np.nextafter(rounded, np.ones_like(rounded)), rounded)


class DensePrior(nnx.Module):
    """A Gaussian of unit marginals with a Cholesky factor for each dimension, or one for all.

    Args:
        scale_tril: (d, n, n) or (1, n, n), float64.
        dims: d.
        starts: (n,).
    """

    def __init__(self, scale_tril: Array, dims: int, starts: Array) -> None:
        self.dims = dims
        self.starts = Buffer(jnp.asarray(starts))
        self.scale_tril = Buffer(jnp.asarray(scale_tril))

    def __call__(self) -> GaussianSequence:
        """The Gaussian."""
        factor = self.scale_tril[...]
        return GaussianSequence(jnp.zeros((factor.shape[-1], self.dims), factor.dtype), factor)


class ARPrior(DensePrior):
    """Stationary AR(p), the same for every dimension.

    Args:
        spec: of the data.
        dims: d.
        length: n, a divisor of the positions of the data or a multiple; None is one step for each.
        pacf: partial autocorrelations π_1 … π_p, each in (−1, 1).

    Raises:
        UserError: if an option does not fit.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        dims: int = 8,
        length: int | None = None,
        pacf: Sequence[float] = (0.8, 0.3),
    ) -> None:
        if not pacf or not all(abs(pi) < 1 for pi in pacf):
            raise UserError(f"pacf {tuple(pacf)} is not a list of numbers between -1 and 1; give at least one.")
        starts = even_starts(spec.positions, length)
        super().__init__(ar_factor(pacf, len(starts))[None], dims, starts)


def ar_factor(pacf: Sequence[float], length: int) -> Array:
    """Cholesky factor (n, n) of AR(p): z_t = Σ_j a_j z_{t−j} + √v ε_t, with a and v of order min(t, p)."""
    factor = np.zeros((length, length))
    a, v = np.zeros(0), 1.0
    for t in range(length):
        if 1 <= t <= len(pacf):  # Levinson and Durbin: the next order
            pi = pacf[t - 1]
            a, v = np.append(a - pi * a[::-1], pi), v * (1 - pi**2)
        factor[t] = a @ factor[t - len(a) : t][::-1]
        factor[t, t] = math.sqrt(v)
    return factor


class MaternPrior(DensePrior):
    """Matérn process over the steps, the same for every dimension.

    Args:
        spec: of the data.
        dims: d.
        length: n, a divisor of the positions of the data or a multiple; None is one step for each.
        smoothness: ν: '1/2', '3/2' or '5/2'.
        length_scale: ℓ ≥ 0 in latent steps.
        rate_nats: the committed rate from which ℓ is solved, in place of `length_scale`.

    Raises:
        UserError: if an option does not fit.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        dims: int = 8,
        length: int | None = None,
        smoothness: str = "3/2",
        length_scale: float | None = None,
        rate_nats: float | None = None,
    ) -> None:
        if smoothness not in _MATERN:
            raise unknown_name("smoothness", smoothness, _MATERN)
        starts = even_starts(spec.positions, length)
        n = len(starts)
        if given("length_scale", length_scale, "rate_nats", rate_nats) == "rate_nats":
            scale = _matern_scale_for_rate(checked_rate(rate_nats, n) / dims, smoothness, n)
        else:
            scale = float(length_scale)  # type: ignore[arg-type]
        if not 0 <= scale < math.inf:
            raise UserError(f"length_scale {scale:g} is not a length; give a number of steps from 0 up.")
        factor = matern_factor(smoothness, scale, n)
        if factor is None:
            longest = _longest_scale(smoothness, n)
            raise UserError(f"length_scale {scale:g} leaves no exact factor; give a shorter one, of up to {longest:g}.")
        super().__init__(factor[None], dims, starts)


def matern_factor(smoothness: str, length_scale: float, length: int) -> Array | None:
    """Cholesky factor (n, n) of the Matérn correlations of neighbours at distance 1; None if float64 has no exact one.

    Pyro's prior has the same rule, so that each refuses what the other refuses.
    """
    twice_nu, coefficients = _MATERN[smoothness]
    t = np.arange(length)
    # Steps are independent up to ℓ = 1e-3, where e^−x is 0 in float64.
    x = math.sqrt(twice_nu) * np.abs(t[:, None] - t) / max(length_scale, 1e-3)
    try:
        factor = np.linalg.cholesky(np.polynomial.Polynomial(coefficients)(x) * np.exp(-x))
    except np.linalg.LinAlgError:
        return None
    return factor if np.min(np.diagonal(factor)) >= _LEAST_PIVOT else None


def _longest_scale(smoothness: str, length: int) -> float:
    """The largest power of two that has an exact factor."""
    scale = 1.0
    while matern_factor(smoothness, 2 * scale, length) is not None:
        scale *= 2
    return scale


def _matern_scale_for_rate(rate: float, smoothness: str, length: int) -> float:
    """ℓ that commits a rate for one dimension."""

    def rate_of(length_scale: float) -> float:
        factor = matern_factor(smoothness, length_scale, length)
        assert factor is not None  # up to the longest
        return float(factor_rate(factor))

    solved = solve_for_rate(rate_of, rate, _longest_scale(smoothness, length))
    if not math.isclose(rate_of(solved), rate, rel_tol=1e-6, abs_tol=1e-12):
        raise UserError(f"no length scale that float64 can hold commits {rate:g} nats for a dimension; ask for less.")
    return solved


# --- Options ---


def even_starts(positions: int, length: int | None = None) -> Array:
    """starts[t] = ⌊t · P / n⌋ for n steps and P positions of the data, of which one number divides the other."""
    n = positions if length is None else length
    if n < 1 or min(positions % n, n % positions):
        raise UserError(
            f"length = {n} does not divide the {positions} positions of the data; give a divisor or multiple."
        )
    return np.arange(n) * positions // n


def given(first: str, first_value: Any, second: str, second_value: Any) -> str:
    """Which of two options is given."""
    if (first_value is None) == (second_value is None):
        raise UserError(f"give exactly one of {first} and {second}.")
    return first if second_value is None else second


def alphas(
    alpha: str | float | None, rate_nats: float | None, dims: int, length: int, solve: Callable[[float], float]
) -> Array:
    """α of each dimension, as it is spelt, or one for all of them that `solve` finds for a rate."""
    given("alpha", alpha, "rate_nats", rate_nats)
    if alpha is not None:
        return alpha_of_spelling(alpha, dims)
    rate = checked_rate(rate_nats, length)
    return _below_one(np.full(dims, solve(rate)), rate)


def _below_one(alpha_d: Array, rate: float) -> Array:
    if not np.all(alpha_d < 1):
        raise UserError(f"{rate:g} nats need an alpha nearer to 1 than its type can hold; ask for less.")
    return alpha_d


def checked_rate(nats: float | None, length: int) -> float:
    """A rate that a sequence can commit."""
    if nats is None or not 0 <= nats < math.inf or length < 2:
        raise UserError(f"{length} latent steps cannot commit {nats} nats; at least two commit a rate from 0 up.")
    return float(nats)
