"""Gaussian priors with a dense covariance over the steps, as programs: AR(p) and Matérn.

Each has a fixed Cholesky factor, computed in float64 and kept in the default type, and returns a `GaussianSequence` of
event shape (n, d) with n ≤ 512 and N(0, 1) marginals.

References:
    [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    [2] O. Barndorff-Nielsen, G. Schou, "On the parametrization of autoregressive models by partial autocorrelations",
        Journal of Multivariate Analysis 3 (1973).
    [3] C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006, eq. 4.14–4.17.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pyro_delta.distributions import GaussianSequence
from pyro_delta.distributions.gaussian_ar1 import check_steps
from pyro_delta.errors import UserError, unknown_name
from pyro_delta.inverse import solve_for_rate
from pyro_delta.models.priors.ar1 import check_one_given, even_starts
from pyro_delta.protocol import Spec
from pyro_delta.rate import (
    check_invertible,
    check_whole,
    committed_rate,
)

# ν → 2ν and the coefficients of the polynomial in x.
_MATERN = {"1/2": (1, (1.0,)), "3/2": (3, (1.0, 1.0)), "5/2": (5, (1.0, 1.0, 1 / 3))}

# Least standard deviation of a step given all before it. Below, the factor of a float64 covariance has too few digits:
# its pivots, the squares, are exact to some 1e-16 n.
_LEAST_PIVOT = 1e-4


class DensePrior(nn.Module):
    """What the priors of this file share: d dimensions, each with a fixed Cholesky factor over the steps.

    Args:
        factor: (d, n, n) lower Cholesky factors, float64, or (1, n, n) for one that all dimensions share.
        dims: d, size of one latent step.
        starts: (n,) the position from which on each step may be used.
    """

    scale_tril: Tensor
    starts: Tensor

    def __init__(self, factor: Tensor, dims: int, starts: Tensor) -> None:
        super().__init__()
        check_whole("dims", dims)
        self.dims, self.length = dims, starts.numel()
        self.register_buffer("scale_tril", factor.to(torch.get_default_dtype()))
        self.register_buffer("starts", starts)

    def forward(self) -> GaussianSequence:
        """The prior over z, event shape (n, d)."""
        length = self.length
        return GaussianSequence(
            self.scale_tril.new_zeros(length, self.dims), self.scale_tril.expand(self.dims, length, length)
        )


class ARPrior(DensePrior):
    """Stationary AR(p) Gaussian process over the latent sequence, the same for every dimension.

    Given by its partial autocorrelations π_1 … π_p: π_k is the correlation of z_t and z_{t−k} once the steps between
    are known. Any p numbers in (−1, 1) give a stationary process, and every stationary AR(p) has such numbers [2].
    p = 1 is AR(1) with α = π_1.

    Args:
        spec: of the data.
        dims: d, size of one latent step.
        length: n, latent steps, a divisor of the positions of the data or a multiple; None is one for each.
        pacf: π_1, …, π_p.

    Raises:
        UserError: a partial autocorrelation is outside (−1, 1), or there is none; or there are too many steps.
    """

    twin = "pyro_delta.twin.priors:ARPrior"

    def __init__(
        self,
        spec: Spec,
        *,
        dims: int = 8,
        length: int | None = None,
        pacf: tuple[float, ...] = (0.8, 0.3),
    ) -> None:
        starts = even_starts(spec.positions, length)
        check_steps(starts.numel())
        if not pacf:
            raise UserError("prior.pacf is empty; give the partial autocorrelations of lag 1, 2, … up to the order.")
        for value in pacf:
            if not abs(value) < 1:
                raise UserError(
                    f"prior.pacf has {value:g}, outside (-1, 1); give partial autocorrelations strictly between."
                )
        super().__init__(ar_factor(pacf, starts.numel()).unsqueeze(0), dims, starts)


def ar_factor(pacf: Sequence[float], length: int) -> Tensor:
    """Cholesky factor (n, n), float64, of the covariance of a stationary AR(p) process with unit variances.

    The Levinson–Durbin recursion gives, for each t, the regression of z_t on the steps before and its variance v:

        a_k ← a_k − π a_{t−k},  a_t = π,  v ← v (1 − π²).

    Step t is whitened by order min(t − 1, p), and L is the inverse of that whitening: no covariance is factorised.
    """
    whitening, scale = torch.eye(length, dtype=torch.float64), torch.ones(length, dtype=torch.float64)
    weights: list[float] = []  # of the steps before, nearest first
    variance = 1.0
    for step in range(length):
        order = len(weights)
        whitening[step, step - order : step] = -torch.tensor(weights[::-1], dtype=torch.float64)
        scale[step] = math.sqrt(variance)
        if order < len(pacf):
            partial = pacf[order]
            weights = [near - partial * far for near, far in zip(weights, weights[::-1], strict=True)] + [partial]
            variance *= (1 - partial) * (1 + partial)
    return torch.linalg.solve_triangular(whitening, scale.diag(), upper=False)


class MaternPrior(DensePrior):
    """Matérn Gaussian process over the latent sequence, the same for every dimension [3].

    With x = √(2ν) |s − t| / ℓ, the correlation of steps s and t is e^−x, (1 + x) e^−x or (1 + x + x²/3) e^−x for
    smoothness ν = 1/2, 3/2 or 5/2. ν = 1/2 is AR(1) with α = exp(−1/ℓ).

    Args:
        spec: of the data.
        dims: d, size of one latent step.
        length: n, latent steps, a divisor of the positions of the data or a multiple; None is one for each.
        smoothness: ν.
        length_scale: ℓ ≥ 0, in latent steps; at 0 the steps are independent.
        rate_nats: committed rate from which ℓ is solved, in place of `length_scale`.

    Raises:
        UserError: an option cannot be read, ℓ is too long for the factor to be exact, or no such ℓ commits the rate.
    """

    twin = "pyro_delta.twin.priors:MaternPrior"

    def __init__(
        self,
        spec: Spec,
        *,
        dims: int = 8,
        length: int | None = None,
        smoothness: Literal["1/2", "3/2", "5/2"] = "3/2",
        length_scale: float | None = None,
        rate_nats: float | None = None,
    ) -> None:
        check_one_given(length_scale=length_scale, rate_nats=rate_nats)
        if smoothness not in _MATERN:
            raise unknown_name("prior.smoothness", smoothness, _MATERN)
        starts = even_starts(spec.positions, length)
        steps = starts.numel()
        check_steps(steps)
        if rate_nats is not None:
            length_scale = _matern_scale_for_rate(rate_nats, smoothness, steps, dims)
        assert length_scale is not None  # one of the two is given
        if not 0 <= length_scale < math.inf:
            raise UserError(f"prior.length_scale={length_scale:g} is not a length; give a number of steps, 0 or more.")
        factor = matern_factor(smoothness, length_scale, steps)
        if factor is None:
            raise UserError(
                f"prior.length_scale={length_scale:g} makes a process of smoothness {smoothness} so smooth that its "
                f"steps all but determine one another; one up to {_longest_scale(smoothness, steps):g} is exact."
            )
        super().__init__(factor.unsqueeze(0), dims, starts)


def matern_factor(smoothness: str, length_scale: float, length: int) -> Tensor | None:
    """Cholesky factor (n, n), float64, of the Matérn correlations [3]; None where ℓ is too long for float64.

    No jitter is added: it would change the process, and its rate with it.
    """
    twice, polynomial = _MATERN[smoothness]
    steps = torch.arange(length, dtype=torch.float64)
    # Below a thousandth of a step every correlation is 0 in float64, and so it is at ℓ = 0.
    x = math.sqrt(twice) / max(length_scale, 1e-3) * (steps[:, None] - steps).abs()
    correlation = torch.exp(-x) * sum(coefficient * x**power for power, coefficient in enumerate(polynomial))
    factor, info = torch.linalg.cholesky_ex(correlation)
    return None if info.any() or factor.diagonal().min() < _LEAST_PIVOT else factor


def _longest_scale(smoothness: str, length: int) -> float:
    """The largest power of two among the length scales whose factor is exact."""
    scale = 1.0
    while matern_factor(smoothness, 2 * scale, length) is not None:
        scale *= 2
    return scale


def _matern_scale_for_rate(rate: float, smoothness: str, length: int, dims: int) -> float:
    """The ℓ that, shared by all dimensions, commits `rate` nats."""
    check_invertible(rate, length, dims)

    def rate_of(scale: float) -> float:
        factor = matern_factor(smoothness, scale, length)
        assert factor is not None  # up to the longest scale
        return dims * committed_rate(GaussianSequence(factor.new_zeros(length, 1), factor.unsqueeze(0))).item()

    what = f"a Matérn process of smoothness {smoothness} with n = {length} and d = {dims}"
    return solve_for_rate(rate_of, rate, what, most=_longest_scale(smoothness, length))
