"""Priors and guides at whatever hypothesis finds: finite, never below the floor, densities those of dense algebra.

Examples are few and always the same; `HYPOTHESIS_EXAMPLES=1000` looks longer.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import randomise
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import kl_divergence

from pyro_delta.data.images import ImageSpec
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.guides import AntiCausalGuide, BidirectionalGuide, ContourGuide, StructuredGuide
from pyro_delta.models import AR1Prior, ARPrior, LatticePrior, LearnedAR1Prior, MaternPrior, StandardNormalPrior
from pyro_delta.rate import alpha_for_rate, ar1_committed_rate, committed_rate, minimising_posterior, spread_for_rate

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "30"))
few = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one dtype serves all examples
)
LONGEST = 12
correlations = st.floats(-0.999, 0.999)
lengths = st.integers(1, LONGEST)
seeds = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Priors keep their numbers in the default type; what rounding does to them is tested elsewhere."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def spec(rows: int, columns: int = 4) -> ImageSpec:
    return ImageSpec(1, rows, columns, 5)


# --- Priors, each with its correlations by definition ---


def powers(alpha: float, n: int) -> np.ndarray:
    steps = np.arange(n)
    return np.power(alpha, np.abs(steps[:, None] - steps), dtype=float)


@st.composite
def ar1(draw: st.DrawFn) -> tuple[nn.Module, list[np.ndarray]]:
    n, alphas = draw(lengths), draw(st.lists(correlations, min_size=1, max_size=3))
    prior = AR1Prior(spec(n), dims=len(alphas), alpha=",".join(map(repr, alphas)))
    return prior, [powers(alpha, n) for alpha in alphas]


@st.composite
def ar(draw: st.DrawFn) -> tuple[nn.Module, list[np.ndarray]]:
    """The autocorrelations by the recursion over them, ρ_k = Σ_j a_j ρ_{k−j} + π_k v."""
    n, pacf = draw(lengths), draw(st.lists(st.floats(-0.95, 0.95), min_size=1, max_size=4))
    rho, a, v = [1.0], [], 1.0
    for k in range(1, n):
        pi = pacf[k - 1] if k <= len(pacf) else 0.0
        rho.append(sum(a_j * rho[k - j] for j, a_j in enumerate(a, 1)) + pi * v)
        a = [a_j - pi * b for a_j, b in zip(a, reversed(a), strict=True)] + [pi]
        v *= 1 - pi * pi
    steps = np.arange(n)
    matrix = np.array(rho)[np.abs(steps[:, None] - steps)]
    return ARPrior(spec(n), dims=2, pacf=tuple(pacf)), [matrix, matrix]


@st.composite
def matern(draw: st.DrawFn) -> tuple[nn.Module, list[np.ndarray]]:
    n, smoothness = draw(lengths), draw(st.sampled_from(["1/2", "3/2", "5/2"]))
    scale = draw(st.floats(0, 4))
    steps = np.arange(n)
    x = math.sqrt(int(smoothness[0])) * np.abs(steps[:, None] - steps) / max(scale, 1e-12)
    polynomial = {"1/2": 1, "3/2": 1 + x, "5/2": 1 + x + x * x / 3}[smoothness]
    with np.errstate(over="ignore", invalid="ignore"):
        matrix = np.where(x > 700, 0.0, polynomial * np.exp(-x))
    return MaternPrior(spec(n), dims=1, smoothness=smoothness, length_scale=scale), [matrix]


@st.composite
def lattice(draw: st.DrawFn) -> tuple[nn.Module, list[np.ndarray]]:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    alphas = draw(st.lists(st.floats(-0.95, 0.95), min_size=1, max_size=2))
    prior = LatticePrior(
        spec(rows, columns), dims=len(alphas), rows=rows, columns=columns, alpha=",".join(map(repr, alphas))
    )
    return prior, [np.kron(powers(alpha, rows), powers(alpha, columns)) for alpha in alphas]


PRIORS = st.one_of(ar1(), ar(), matern(), lattice())


@few
@given(PRIORS, seeds)
def test_densities_are_those_of_dense_algebra(case: tuple[nn.Module, list[np.ndarray]], seed: int) -> None:
    prior, matrices = case
    p = prior()
    z = (
        p.sample(torch.Size([3]))
        if seed % 2
        else torch.from_numpy(np.random.default_rng(seed).normal(size=(3, *p.event_shape)))
    )
    assert z.isfinite().all()
    expected = sum(
        multivariate_normal(np.zeros(len(matrix)), matrix, allow_singular=True).logpdf(z[..., k].numpy())
        for k, matrix in enumerate(matrices)
    )
    assert p.log_prob(z).numpy() == pytest.approx(np.atleast_1d(expected), rel=1e-7, abs=1e-7)


@few
@given(PRIORS, seeds)
def test_no_posterior_comes_below_the_rate(case: tuple[nn.Module, list[np.ndarray]], seed: int) -> None:
    prior, matrices = case
    p, random = prior(), np.random.default_rng(seed)
    rate = committed_rate(p).item()
    # ½ (Σ ln Λ_tt − ln det Λ), by NumPy
    dense = sum(
        0.5 * (np.log(np.diag(np.linalg.inv(matrix))).sum() + np.linalg.slogdet(matrix)[1]) for matrix in matrices
    )
    assert math.isfinite(rate)
    assert rate == pytest.approx(dense, rel=1e-6, abs=1e-9)
    shape = (5, *p.event_shape)
    loc, scale = random.normal(0, 10 ** random.uniform(-3, 1), shape), np.exp(random.normal(0, 2, shape))
    kl = kl_divergence(dist.Normal(torch.from_numpy(loc), torch.from_numpy(scale)).to_event(2), p)
    assert kl.isfinite().all()
    assert (kl >= rate * (1 - 1e-9) - 1e-12).all()
    assert kl_divergence(minimising_posterior(p), p).item() == pytest.approx(rate, rel=1e-6, abs=1e-9)


@few
@given(st.floats(-1, 1, exclude_min=True, exclude_max=True), st.integers(1, 10**6))
def test_the_formula_is_finite_up_to_the_last_number_below_one(alpha: float, length: int) -> None:
    rate = ar1_committed_rate(alpha, length).item()
    assert math.isfinite(rate)
    assert rate >= 0
    assert length > 1 or rate == 0


@few
@given(st.floats(1e-6, 1e4), st.integers(2, 4096), st.integers(1, 256), st.floats(0, 0.9))
def test_rates_come_back_from_their_correlations(rate: float, length: int, dims: int, first: float) -> None:
    try:
        alpha = alpha_for_rate(rate, length, dims)
    except UserError:  # out of reach: no α of float64 commits it
        assert rate > dims * 15
        return
    assert 0 < alpha < 1
    found = ar1_committed_rate([alpha] * dims, length).item()
    # What the spacing of float64 near α leaves.
    assert found == pytest.approx(rate, rel=1e-6 + 1e-15 / (1 - alpha))
    try:
        alpha_d = spread_for_rate(rate, length, dims, first) if dims > 1 else []
    except UserError:
        return
    if alpha_d:
        assert alpha_d[0] == first
        assert ar1_committed_rate(alpha_d, length).item() == pytest.approx(rate, rel=1e-6 + 1e-15 / (1 - alpha_d[-1]))


@few
@given(st.floats(0.01, 8), st.floats(-100, 5), st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.integers(2, 32))
def test_a_learned_rate_stays_above_its_floor(floor: float, excess: float, shares: list[float], length: int) -> None:
    prior = LearnedAR1Prior(spec(length), dims=len(shares), floor_nats=floor)
    with torch.no_grad():
        prior.excess.fill_(excess)
        prior.shares.copy_(torch.tensor(shares))
        p = prior()
    assert committed_rate(p).item() >= floor * (1 - 1e-9)
    assert p.log_prob(p.sample()).isfinite()


# --- Guides of any weights, for any images ---

NETWORK: dict[str, Any] = {"features": 3, "channels": (3,), "row_blocks": (1,), "pixel_blocks": 1}
guides = settings(few, max_examples=max(EXAMPLES // 2, 1))


@guides
@given(st.sampled_from([AntiCausalGuide, BidirectionalGuide, StructuredGuide]), correlations, lengths, seeds)
def test_guides_keep_the_floor(make: type, alpha: float, length: int, seed: int) -> None:
    prior = AR1Prior(spec(length), dims=2, alpha=alpha)
    options = {"block": min(2, length)} if make is StructuredGuide else {}
    guide = randomise(make(spec(length), prior, **options, **NETWORK), seed)
    p = prior()
    assert isinstance(p, GaussianAR1)
    blocks = options.get("block", 1)
    floor = committed_rate(p, -(-length // blocks)).item() if blocks > 1 else committed_rate(p).item()
    q = guide.posterior(torch.randint(5, (4, 1, length, 4), generator=torch.Generator().manual_seed(seed)))
    kl = kl_divergence(q, p)
    assert kl.isfinite().all()
    assert (kl >= floor * (1 - 1e-9)).all()


@guides
@given(st.floats(0.01, 10), st.integers(1, 3), lengths, seeds)
def test_the_contour_is_kept_coordinate_by_coordinate(nats: float, dims: int, length: int, seed: int) -> None:
    """The guide is handed a rate for all n · d coordinates."""
    prior, rate = StandardNormalPrior(spec(length), dims=dims), nats * length * dims
    guide = randomise(ContourGuide(spec(length), prior, rate_nats=rate, **NETWORK), seed)
    q = guide.posterior(torch.randint(5, (4, 1, length, 4), generator=torch.Generator().manual_seed(seed)))
    each = kl_divergence(q.base_dist, dist.Normal(0.0, 1.0))
    assert each.isfinite().all()
    assert (each >= nats * (1 - 1e-9)).all()
    assert (kl_divergence(q, prior()) >= rate * (1 - 1e-9)).all()
