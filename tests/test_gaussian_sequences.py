"""Every Gaussian over a latent sequence, as prior and as posterior: one row of the table buys every check below.

The witnesses are dense multivariate normals of covariances written down here, samples, and finite differences.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch import Tensor
from torch.distributions import Independent, kl, kl_divergence

from pyro_delta.distributions import GaussianAR1, GaussianSequence
from pyro_delta.distributions.any_gaussian import as_gaussian, gaussian_kl
from pyro_delta.models.priors.dense import ar_factor, matern_factor
from pyro_delta.rate import committed_rate, minimising_posterior


class Row(NamedTuple):
    """A distribution of free parameters (float64), and its moments by another road."""

    make: Callable[..., TorchDistribution]
    free: tuple[Tensor, ...]
    mean: Tensor  # (..., n, d)
    covariance: Tensor  # (..., d, n, n)


def lags(n: int) -> Tensor:
    steps = torch.arange(n, dtype=torch.float64)
    return (steps[:, None] - steps).abs()


def ar1(alpha: list, length: int) -> Row:
    a = torch.tensor(alpha, dtype=torch.float64)
    mean = torch.zeros(*a.shape[:-1], length, a.shape[-1], dtype=torch.float64)
    return Row(lambda a: GaussianAR1(a, length), (a,), mean, a[..., None, None] ** lags(length))


def ar1_of_lengths(alpha: list, length: int, lengths: list) -> Row:
    """Of each length a dense covariance of its own, and one of independent steps behind it."""
    a, of = torch.tensor(alpha, dtype=torch.float64), torch.tensor(lengths)
    inside = torch.arange(length) < of[..., None]
    linked = (inside[..., None, :] & inside[..., None])[..., None, :, :]
    covariance = torch.where(linked, a[..., None, None] ** lags(length), torch.eye(length, dtype=torch.float64))
    mean = torch.zeros(*covariance.shape[:-3], length, a.shape[-1], dtype=torch.float64)
    return Row(lambda a: GaussianAR1(a, length, of), (a,), mean, covariance)


def sequence(loc: Tensor, factor: Tensor, covariance: Tensor | None = None, blocks: int | None = None) -> Row:
    n = loc.shape[-2]
    block = torch.arange(n) // (blocks or n)
    within = (block[:, None] == block).tril()
    factor = factor * within
    batch = torch.broadcast_shapes(loc.shape[:-2], factor.shape[:-3])
    covariance = factor @ factor.mT if covariance is None else covariance
    return Row(
        lambda loc, factor: GaussianSequence(loc, factor * within),
        (loc, factor),
        loc.expand(batch + loc.shape[-2:]),
        covariance.expand(batch + factor.shape[-3:]),
    )


def drawn(loc_batch: tuple, factor_batch: tuple, n: int, d: int, blocks: int | None = None) -> Row:
    generator = torch.Generator().manual_seed(n + d)
    loc = torch.randn(*loc_batch, n, d, dtype=torch.float64, generator=generator)
    below = torch.randn(*factor_batch, d, n, n, dtype=torch.float64, generator=generator).tril(-1) / n**0.5
    scale = torch.randn(*factor_batch, d, n, dtype=torch.float64, generator=generator).mul(0.5).exp()
    return sequence(loc, below + torch.diag_embed(scale), blocks=blocks)


def standard(factor: Tensor, correlation: Tensor) -> Row:
    """One dimension with mean 0."""
    return sequence(torch.zeros(len(factor), 1, dtype=torch.float64), factor[None], correlation[None])


def ar2_correlation(first: float, second: float, n: int) -> Tensor:
    """By Yule and Walker's recursion ρ_k = φ_1 ρ_{k−1} + φ_2 ρ_{k−2}, φ_1 = π_1 (1 − π_2), φ_2 = π_2."""
    rho = [1.0, first]
    while len(rho) < n:
        rho.append(first * (1 - second) * rho[-1] + second * rho[-2])
    return torch.tensor(rho, dtype=torch.float64)[lags(n).long()]


def matern(smoothness: str, scale: float, n: int) -> Row:
    r = lags(n) / scale
    correlation = {
        "1/2": torch.exp(-r),
        "3/2": (1 + 3**0.5 * r) * torch.exp(-(3**0.5) * r),
        "5/2": (1 + 5**0.5 * r + 5 / 3 * r**2) * torch.exp(-(5**0.5) * r),
    }[smoothness]
    factor = matern_factor(smoothness, scale, n)
    assert factor is not None
    return standard(factor, correlation)


TABLE = {
    "AR(1), one step": ar1([0.5, -0.9], 1),
    "AR(1), two steps": ar1([0.5, -0.9], 2),
    "AR(1), three steps, one is white": ar1([0.0, 0.3, 0.99], 3),
    "AR(1), seven steps, a batch of shape (2, 1)": ar1([[[0.2, 0.4]], [[-0.7, 0.0]]], 7),
    "AR(1), the low rate of the paper": ar1(np.linspace(0.5, 0.95, 8).tolist(), 32),
    "AR(1), near the edge": ar1([0.9999], 32),
    "AR(1), a length for each": ar1_of_lengths([0.5, -0.9], 5, [1, 2, 4, 5]),
    "AR(1), lengths and α for each": ar1_of_lengths([[[0.2, 0.4]], [[-0.7, 0.0]]], 7, [[3], [6]]),
    "AR(1), lengths in two blocks": ar1_of_lengths([0.9], 40, [[1, 33], [40, 20]]),
    "sequence, one step": drawn((), (), 1, 2),
    "sequence, two steps": drawn((), (), 2, 1),
    "sequence, three steps, a batch of shape (2, 1)": drawn((2, 1), (2, 1), 3, 2),
    "sequence, one factor for a batch of means": drawn((4,), (), 5, 2),
    "sequence, means and factors that broadcast": drawn((3, 1), (2,), 4, 2),
    "sequence, blocks of two in five steps, for each of three": drawn((3,), (3,), 5, 2, blocks=2),
    "sequence, thirty-two steps": drawn((), (), 32, 2),
    "AR(2)": standard(ar_factor([0.8, 0.3], 32), ar2_correlation(0.8, 0.3, 32)),
    "AR(2), more orders than steps": standard(ar_factor([0.8, 0.3, 0.5, 0.1], 3), ar2_correlation(0.8, 0.3, 3)),
    "AR(1) as AR(p), two steps": standard(ar_factor([-0.6], 2), (-0.6) ** lags(2)),
    "lattice 4 × 3": standard(
        torch.kron(ar_factor([0.9], 4), ar_factor([0.9], 3)), torch.kron(0.9 ** lags(4), 0.9 ** lags(3))
    ),
    "Matérn 1/2": matern("1/2", 5.0, 32),
    "Matérn 3/2": matern("3/2", 3.0, 32),
    "Matérn 5/2": matern("5/2", 2.0, 32),
    "Matérn 5/2, one step": matern("5/2", 2.0, 1),
}


@pytest.fixture(params=TABLE.values(), ids=TABLE.keys())
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def made(row: Row, dtype: torch.dtype = torch.float64) -> TorchDistribution:
    return row.make(*(value.to(dtype) for value in row.free))


def dense(row: Row) -> dist.MultivariateNormal:
    """The witness: for each dimension a multivariate normal over the steps; batch (..., d)."""
    return dist.MultivariateNormal(row.mean.mT, row.covariance)


def mean_field(like: TorchDistribution, *sample: int, width: float = 1.0) -> dist.Independent:
    shape = (*sample, *like.batch_shape, *like.event_shape)
    loc, log_scale = width * torch.randn(2, *shape, dtype=like.mean.dtype)
    return dist.Normal(loc, log_scale.exp()).to_event(2)


def structured(like: TorchDistribution, *sample: int, width: float = 1.0) -> GaussianSequence:
    """A posterior with a dense factor for each member of the batch."""
    n, d = like.event_shape
    batch, dtype = (*sample, *like.batch_shape), like.mean.dtype
    scale = torch.diag_embed((width * torch.randn(*batch, d, n, dtype=dtype)).exp())
    below = width * torch.randn(*batch, d, n, n, dtype=dtype).tril(-1) / n**0.5
    return GaussianSequence(width * torch.randn(*batch, n, d, dtype=dtype), below + scale)


def dense_kl(q: TorchDistribution, row: Row) -> Tensor:
    factor = q.scale_tril if isinstance(q, GaussianSequence) else torch.diag_embed(q.base_dist.scale.mT)
    return kl_divergence(dist.MultivariateNormal(q.mean.mT, scale_tril=factor), dense(row)).sum(-1)


FAMILIES = pytest.mark.parametrize("posterior", [mean_field, structured])


# --- one row, every check ---


def test_shapes(row: Row) -> None:
    p, batch, event = made(row), row.mean.shape[:-2], row.mean.shape[-2:]
    assert p.batch_shape == batch
    assert p.event_shape == event
    assert p.mean.shape == p.variance.shape == p.stddev.shape == batch + event
    for sample in [(), (3,), (3, 2)]:
        z = p.rsample(sample)
        assert z.shape == sample + batch + event
        assert p.log_prob(z).shape == sample + batch
    assert p.entropy().shape == batch
    assert committed_rate(p).shape == batch
    for q in (mean_field(p, 5), structured(p, 5)):
        assert kl_divergence(q, p).shape == (5, *batch)


def test_float32_is_float64_rounded(row: Row) -> None:
    narrow, wide = made(row, torch.float32), made(row)
    torch.manual_seed(1)
    z, q = narrow.sample(), mean_field(narrow)
    assert z.dtype == torch.float32
    pairs = [
        (narrow.log_prob(z), wide.log_prob(z.double())),
        (narrow.entropy(), wide.entropy()),
        (kl_divergence(q, narrow), kl_divergence(dist.Normal(q.mean.double(), q.stddev.double()).to_event(2), wide)),
    ]
    for value, exact in pairs:
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact, rtol=2e-3, atol=2e-3)


def test_expand(row: Row) -> None:
    p = made(row)
    wide = p.expand((5, *p.batch_shape))
    assert type(wide) is type(p)
    assert (wide.batch_shape, wide.event_shape) == ((5, *p.batch_shape), p.event_shape)
    z = wide.sample()
    assert z.shape == wide.batch_shape + wide.event_shape
    assert not torch.equal(z[0], z[1])
    assert torch.equal(wide.log_prob(z), p.log_prob(z))
    for name in ("mean", "variance"):
        assert torch.equal(getattr(wide, name), getattr(p, name).expand(wide.batch_shape + wide.event_shape))
    assert torch.equal(wide.entropy(), p.entropy().expand(wide.batch_shape))
    assert torch.equal(committed_rate(wide), committed_rate(p).expand(wide.batch_shape))
    for q in (mean_field(wide), structured(wide)):
        torch.testing.assert_close(kl_divergence(q, wide), kl_divergence(q, p), rtol=1e-12, atol=0)
    assert type(wide.expand((4, *wide.batch_shape))) is type(p)


def test_density_moments_and_entropy_are_dense(row: Row) -> None:
    p, witness = made(row), dense(row)
    z = 2 * torch.randn(6, *row.mean.shape, dtype=torch.float64)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(p.log_prob(z), witness.log_prob(z.mT).sum(-1), **close)
    torch.testing.assert_close(p.entropy(), witness.entropy().sum(-1), **close)
    torch.testing.assert_close(p.mean, row.mean, **close)
    torch.testing.assert_close(p.variance, row.covariance.diagonal(dim1=-2, dim2=-1).mT, **close)


@FAMILIES
def test_kl_is_dense(row: Row, posterior: Callable) -> None:
    p = made(row)
    q = posterior(p, 6)
    torch.testing.assert_close(kl_divergence(q, p), dense_kl(q, row), rtol=1e-10, atol=1e-10)


@FAMILIES
def test_kl_is_what_samples_say(row: Row, posterior: Callable) -> None:
    p = made(row)
    q = posterior(p, width=0.1)
    z = q.sample((2000,))
    draws = q.log_prob(z) - p.log_prob(z)
    error = draws.std(0) / math.sqrt(len(z))
    assert ((draws.mean(0) - kl_divergence(q, p)).abs() < 4.5 * error).all()


def test_gradients_by_finite_differences(row: Row) -> None:
    p = made(row)
    free = tuple(value.clone().requires_grad_() for value in row.free)
    x = torch.randn(row.mean.shape, dtype=torch.float64, requires_grad=True)
    q = structured(p, width=0.3)
    loc, factor, scale = (value.clone().requires_grad_() for value in (q.mean, q.scale_tril, mean_field(p).stddev))
    # At α = .9999 a step of 1e-6 is 1 % of 1 − α: the rounding and curvature of the difference need smaller steps.
    near_the_edge = isinstance(p, GaussianAR1) and p.alpha.abs().max() > 0.999
    how = {"fast_mode": True, "eps": 1e-9, "atol": 1e-1} if near_the_edge else {"fast_mode": True}
    functions = [
        (lambda x, *free: row.make(*free).log_prob(x), (x,)),
        (lambda *free: row.make(*free).entropy(), ()),
        (lambda x, *free: row.make(*free).transform(x), (x,)),
        (
            lambda loc, scale, *free: kl_divergence(dist.Normal(loc, scale).to_event(2), row.make(*free)),
            (loc, scale),
        ),
        (
            lambda loc, factor, *free: kl_divergence(GaussianSequence(loc, factor.tril()), row.make(*free)),
            (loc, factor),
        ),
    ]
    for function, inputs in functions:
        assert torch.autograd.gradcheck(function, (*inputs, *free), **how)


def test_samples_fit(row: Row) -> None:
    """Mahalanobis distances of samples are χ², and their marginals normal (Kolmogorov–Smirnov)."""
    n, witness = row.mean.shape[-2], dense(row)
    z = made(row).sample((1500,))
    square = 2 * (witness.log_prob(row.mean.mT) - witness.log_prob(z.mT))
    assert stats.kstest(square.flatten(), stats.chi2(df=n).cdf).pvalue > 1e-3
    unit = (z - row.mean) / row.covariance.diagonal(dim1=-2, dim2=-1).mT.sqrt()
    for t in {0, n - 1}:
        assert stats.kstest(unit[..., t, 0].reshape(1500, -1)[:, 0], stats.norm.cdf).pvalue > 1e-3


# --- the committed rate of each row ---


def block_sizes(n: int) -> list[int]:
    return sorted({1, min(2, n), min(4, n), n})


def test_delta_is_hadamard_s_and_fischer_s_gap(row: Row) -> None:
    """½ (Σ_b ln det Λ_bb − ln det Λ), by numpy from the covariance."""
    n = row.mean.shape[-2]
    precision = np.linalg.inv(row.covariance.numpy())
    for steps in block_sizes(n):
        total = sum(
            np.linalg.slogdet(precision[..., s : s + steps, s : s + steps])[1].sum(-1) for s in range(0, n, steps)
        )
        expected = 0.5 * (total - np.linalg.slogdet(precision)[1].sum(-1))
        delta = committed_rate(made(row), steps)
        np.testing.assert_allclose(delta, expected, rtol=1e-9, atol=1e-9)


def test_the_minimiser_attains_delta_and_others_stay_above(row: Row) -> None:
    p = made(row)
    for steps in block_sizes(p.event_shape[0]):
        delta, best = committed_rate(p, steps), minimising_posterior(p, steps)
        torch.testing.assert_close(kl_divergence(best, p), delta, rtol=1e-10, atol=1e-9)
        family = (
            GaussianSequence(best.mean, best.scale_tril)
            if steps > 1
            else GaussianSequence(best.mean, torch.diag_embed(best.stddev.mT))
        )
        for width in [1e-3, 0.1, 1.0]:  # from next to the minimiser to far away, within the family
            shape = (50, *p.batch_shape, *p.event_shape)
            loc, log_ratio = width * torch.randn(2, *shape, dtype=torch.float64)
            turn = width * torch.randn(50, *family.scale_tril.shape, dtype=torch.float64).tril(-1)
            factor = family.scale_tril * (1 + turn) * log_ratio.exp().mT.unsqueeze(-1)
            assert (kl_divergence(GaussianSequence(best.mean + loc, factor), p) >= delta - 1e-9).all()
            if steps == 1:
                near = dist.Normal(best.mean + loc, best.stddev * log_ratio.exp()).to_event(2)
                assert (kl_divergence(near, p) >= delta - 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kl_of_a_narrow_posterior_keeps_the_floor(row: Row, dtype: torch.dtype) -> None:
    p = made(row, torch.float32)
    for steps in block_sizes(p.event_shape[0]):
        best, delta = minimising_posterior(p, steps), committed_rate(p, steps)
        if steps == 1:
            narrow = dist.Normal(best.mean.to(dtype), best.stddev.to(dtype), validate_args=False).to_event(2)
        else:
            narrow = GaussianSequence(best.mean.to(dtype), best.scale_tril.to(dtype), validate_args=False)
        # What is allowed is the rounding of one float32 sum, 1 part in 1e6 of its n·d terms.
        rounding = 1e-6 * (delta + p.event_shape.numel())
        assert (kl_divergence(narrow, p).double() >= delta - rounding).all()


@FAMILIES
def test_the_density_alone_gives_the_same_kl(row: Row, posterior: Callable) -> None:
    """`gaussian_kl` reads the prior off its log_prob; the registered KL knows its parameters."""
    p = made(row)
    q = posterior(p, 3)
    torch.testing.assert_close(gaussian_kl(q, as_gaussian(p)), kl_divergence(q, p), rtol=1e-8, atol=1e-8)


def test_a_hundred_dimensions_and_five_hundred_steps_of_blocks() -> None:
    """The closed form of AR(1) needs no factor: blocks of any size, any number of steps."""
    alpha = torch.linspace(-0.95, 0.95, 100)
    assert committed_rate(GaussianAR1(alpha, 100_000), 7) > committed_rate(GaussianAR1(alpha, 100_000), 8) > 0


# --- inside Pyro ---

PRIORS = {
    GaussianAR1: lambda: GaussianAR1(torch.tensor([0.5, 0.9]), 4),
    GaussianSequence: lambda: GaussianSequence(torch.zeros(4, 2), ar_factor([0.8, 0.3], 4).float().expand(2, 4, 4)),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", [Independent, GaussianSequence])
def test_mean_field_elbo_uses_the_analytic_kl_inside_a_plate(
    prior: type, posterior: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of the registered KL are counted: torch's dispatch cache is emptied so that the count sees them."""
    calls = []
    registered = kl._KL_REGISTRY[posterior, prior]

    def counted(q: TorchDistribution, p: TorchDistribution) -> Tensor:
        calls.append(p)
        return registered(q, p)

    monkeypatch.setitem(kl._KL_REGISTRY, (posterior, prior), counted)
    monkeypatch.setattr(kl, "_KL_MEMOIZE", {})
    q = (mean_field if posterior is Independent else structured)(PRIORS[prior](), 6)

    def model() -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", PRIORS[prior]())

    def guide() -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", q)

    loss = TraceMeanField_ELBO().loss(model, guide)
    assert len(calls) == 1
    assert loss == pytest.approx(registered(q, PRIORS[prior]()).sum().item(), rel=1e-6)


# --- mistakes ---


class Shifted(GaussianSequence):
    """A subclass with another density."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value - 1)


class ShiftedAR1(GaussianAR1):
    """A subclass with another density."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value - 1)


class HalfNormal(dist.Normal):
    """A subclass with another density."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + math.log(2)


EYE = torch.eye(3).expand(2, 3, 3)
CHAIN, OTHER_CHAIN = (cls(torch.tensor([0.5, 0.9]), 3) for cls in (GaussianAR1, ShiftedAR1))
DENSE, OTHER_DENSE = (cls(torch.zeros(3, 2), EYE) for cls in (GaussianSequence, Shifted))
NORMAL = dist.Normal(torch.zeros(3, 2), 1.0).to_event(2)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (NORMAL, OTHER_CHAIN),
        (NORMAL, OTHER_DENSE),
        (DENSE, OTHER_CHAIN),
        (DENSE, OTHER_DENSE),
        (OTHER_DENSE, CHAIN),
        (OTHER_DENSE, DENSE),
        (HalfNormal(torch.zeros(3, 2), 1.0).to_event(2), CHAIN),
        (HalfNormal(torch.zeros(3, 2), 1.0).to_event(2), DENSE),
        (dist.Laplace(torch.zeros(3, 2), 1.0).to_event(2), DENSE),
        (dist.Normal(torch.zeros(4, 3, 2), 1.0).to_event(3), DENSE),
    ],
)
def test_the_kl_of_another_density_is_not_claimed(q: TorchDistribution, p: TorchDistribution) -> None:
    with pytest.raises(NotImplementedError, match=r"this KL is that of|is known for Normal\(...\)"):
        kl_divergence(q, p)


def test_the_rate_and_the_kl_of_a_subclass_come_from_its_density() -> None:
    shifted = gaussian_kl(NORMAL, as_gaussian(OTHER_CHAIN))
    # The shift leaves the covariance alone: the gap of the means is one in each step and dimension.
    ones = dist.Normal(torch.ones(3, 2), 1.0).to_event(2)
    torch.testing.assert_close(gaussian_kl(ones, as_gaussian(OTHER_CHAIN)).float(), kl_divergence(NORMAL, CHAIN))
    assert shifted > kl_divergence(NORMAL, CHAIN) + 0.1
    torch.testing.assert_close(committed_rate(OTHER_CHAIN), committed_rate(CHAIN), rtol=1e-9, atol=0)
    torch.testing.assert_close(minimising_posterior(OTHER_DENSE).mean, torch.ones(3, 2).double())


@pytest.mark.parametrize("p", [CHAIN, DENSE])
@pytest.mark.parametrize(
    "q",
    [
        dist.Normal(torch.zeros(4, 2), 1.0).to_event(2),
        GaussianSequence(torch.zeros(4, 2), torch.eye(4).expand(2, 4, 4)),
    ],
)
def test_the_kl_of_another_event_shape_is_an_error(q: TorchDistribution, p: TorchDistribution) -> None:
    for value in (lambda: kl_divergence(q, p), lambda: gaussian_kl(q, as_gaussian(p))):
        with pytest.raises(ValueError, match=r"event shape \(4, 2\), the prior \(3, 2\)"):
            value()


@pytest.mark.parametrize(
    ("loc", "factor", "message"),
    [
        (torch.zeros(3), torch.eye(3), "shape"),
        (torch.zeros(3, 2), torch.eye(3), "shape"),
        (torch.zeros(2, 3), EYE, "shape"),
        (torch.zeros(3, 2), EYE.double(), "one floating-point type"),
        (torch.zeros(3, 2, dtype=torch.int64), EYE.long(), "one floating-point type"),
        (torch.zeros(3, 2), torch.ones(2, 3, 3), "scale_tril"),
        (torch.zeros(3, 2), -EYE, "scale_tril"),
        (torch.full((3, 2), math.nan), EYE, "loc"),
        (torch.zeros(513, 1), torch.eye(513)[None], "513 steps are too many"),
    ],
)
def test_bad_arguments(loc: Tensor, factor: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianSequence(loc, factor)


def test_bad_samples_are_refused() -> None:
    for value in (torch.zeros(4, 2), torch.full((3, 2), math.nan)):
        with pytest.raises(ValueError):
            DENSE.log_prob(value)


def test_expand_keeps_the_class_and_the_validation_flag() -> None:
    assert type(OTHER_DENSE.expand((3,))) is Shifted
    for flag in (True, False):
        assert GaussianSequence(torch.zeros(3, 2), EYE, validate_args=flag).expand((3,))._validate_args is flag
