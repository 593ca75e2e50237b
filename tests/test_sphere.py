"""The sphere's distributions against witnesses that share no code with them: quadrature, mpmath, SciPy, torch, draws.

A witness knows the kernel of a density alone, f(t) = (1 + t)^κ or exp(κt), and integrates it over the angle θ to loc.
"""

import math
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import SVI, TraceMeanField_ELBO
from scipy import integrate, stats
from torch import Tensor
from torch.distributions import biject_to, kl, kl_divergence

from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.sphere import PowerSpherical, SphereUniform, VonMisesFisher
from pyro_delta.distributions.sphere_rates import (
    LARGEST_CONCENTRATION,
    concentration_for_rate,
    log_area,
    power_spherical_rate,
    von_mises_fisher_rate,
)
from pyro_delta.errors import UserError

F64 = torch.float64
KINDS = {
    PowerSpherical: ("power_spherical", power_spherical_rate),
    VonMisesFisher: ("von_mises_fisher", von_mises_fisher_rate),
}
both = pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
table = pytest.mark.parametrize(
    ("dims", "kappa"),
    [(2, 0.0), (2, 0.3), (2, 7.0), (3, 1.0), (3, 10.0), (8, 12.0), (8, 60.0), (33, 5.0), (200, 150.0), (3, 45.0)],
)


def log_kernel(cls: type, cosine: np.ndarray, kappa: float) -> np.ndarray:
    """The logarithm of f(t), less its maximum."""
    if cls is VonMisesFisher:
        return kappa * (cosine - 1)
    return kappa * np.log(np.maximum((1 + cosine) / 2, 1e-300))


def over_the_sphere(dims: int, values: Callable[[float], float], kappa: float) -> float:
    """∫ of a function of the angle θ to loc over S^(d−1): |S^(d−2)| ∫ values(θ) sin^(d−2) θ dθ."""
    belt = 2 * math.pi ** ((dims - 1) / 2) / math.gamma((dims - 1) / 2)
    peak = math.atan(math.sqrt((dims - 1) / (kappa + 1)))
    inner = sorted({min(3.0, peak * factor) for factor in (0.3, 1, 2, 4)})
    inside = integrate.quad(
        lambda angle: values(angle) * math.sin(angle) ** (dims - 2),
        0,
        math.pi,
        points=inner,
        epsabs=0,
        epsrel=1e-11,
        limit=500,
        full_output=True,  # no warning where an integral is zero
    )
    return belt * inside[0]


def moments(cls: type, dims: int, kappa: float) -> dict[str, float]:
    """What is integrated of the kernel: ln ∫ f, E[t], E[t²], the entropy, and the KL to the uniform distribution."""

    def weight(angle: float) -> float:
        return float(np.exp(log_kernel(cls, np.cos(angle), kappa)))

    total = over_the_sphere(dims, weight, kappa)
    area = 2 * math.pi ** (dims / 2) / math.gamma(dims / 2)

    def expected(g: Callable[[float], float]) -> float:
        return over_the_sphere(dims, lambda angle: g(angle) * weight(angle), kappa) / total

    energy = expected(lambda angle: float(log_kernel(cls, np.cos(angle), kappa)))
    return {
        "log_total": math.log(total),
        "t": expected(math.cos),
        "t2": expected(lambda angle: math.cos(angle) ** 2),
        "nats": energy - math.log(total / area),
        "entropy": math.log(total) - energy,
    }


def direction(dims: int, seed: int = 0) -> Tensor:
    noise = torch.randn(dims, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm()


def made(cls: type, dims: int, kappa: float, seed: int = 0) -> TorchDistribution:
    return cls(direction(dims, seed), torch.tensor(kappa, dtype=F64))


# --- The uniform distribution ---


@pytest.mark.parametrize(
    ("dims", "area"), [(2, 2 * math.pi), (3, 4 * math.pi), (4, 2 * math.pi**2), (8, math.pi**4 / 3)]
)
def test_uniform(dims: int, area: float) -> None:
    prior = SphereUniform(dims, dtype=F64)
    x = prior.sample((20_000,))
    assert prior.event_shape == (dims,)
    assert prior.batch_shape == ()
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(20_000, dtype=F64))
    torch.testing.assert_close(prior.log_prob(x), torch.full((20_000,), -math.log(area), dtype=F64))
    assert prior.entropy().item() == pytest.approx(math.log(area))
    assert log_area(dims) == pytest.approx(math.log(area))
    for axis in (torch.eye(dims, dtype=F64)[0], torch.ones(dims, dtype=F64) / math.sqrt(dims)):
        half = (dims - 1) / 2  # the cosine to any axis, scaled to [0, 1], is a Beta variable
        assert stats.kstest((x @ axis).numpy(), stats.beta(half, half, loc=-1, scale=2).cdf).pvalue > 1e-4
    assert (x.mean(0).abs() < 5 * (prior.variance / 20_000).sqrt()).all()
    torch.testing.assert_close(x.mT @ x / 20_000, torch.eye(dims, dtype=F64) / dims, rtol=0, atol=0.02)
    torch.testing.assert_close(torch.diag(prior.variance), torch.eye(dims, dtype=F64) / dims)


def test_uniform_expanded() -> None:
    prior = SphereUniform(4).expand((3, 1))
    assert prior.sample((2,)).shape == (2, 3, 1, 4)
    assert prior.log_prob(SphereUniform(4).sample((5,))).shape == (3, 5)
    assert prior.mean.shape == prior.variance.shape == (3, 1, 4)
    assert prior.entropy().shape == (3, 1)
    assert as_float64(prior).sample().dtype == F64


# --- Density, moments and KL against quadrature ---


@both
@table
def test_against_quadrature_over_the_angle(cls: type, dims: int, kappa: float) -> None:
    q, witness = made(cls, dims, kappa), moments(cls, dims, kappa)
    loc = q.loc.numpy()
    across = direction(dims, 1).numpy()
    across -= across @ loc * loc
    across /= np.linalg.norm(across)
    angles = np.linspace(0, 3, 7)
    x = torch.tensor(np.cos(angles)[:, None] * loc + np.sin(angles)[:, None] * across)
    expected = log_kernel(cls, np.cos(angles), kappa) - witness["log_total"]
    np.testing.assert_allclose(q.log_prob(x).numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(q.mean.numpy(), witness["t"] * loc, rtol=1e-8, atol=1e-12)
    assert q.entropy().item() == pytest.approx(witness["entropy"], rel=1e-9, abs=1e-9)
    assert kl_divergence(q, SphereUniform(dims)).item() == pytest.approx(witness["nats"], rel=1e-8, abs=1e-10)
    if cls is PowerSpherical:
        along = witness["t2"] - witness["t"] ** 2
        variance = along * loc**2 + (1 - witness["t2"]) / (dims - 1) * (1 - loc**2)
        np.testing.assert_allclose(q.variance.numpy(), variance, rtol=1e-7)


@both
@pytest.mark.parametrize("kappa", [0.0, 0.7, 9.0])
@pytest.mark.parametrize("dims", [2, 3])
def test_against_a_grid_over_the_whole_sphere(cls: type, dims: int, kappa: float) -> None:
    """A grid of fixed axes, which loc does not lie on: the integrals of the density and of what its moments are of."""
    longitude = (torch.arange(400, dtype=F64) + 0.5) * 2 * math.pi / 400
    if dims == 2:
        x = torch.stack([longitude.cos(), longitude.sin()], -1)
        weight = torch.full((400,), 2 * math.pi / 400, dtype=F64)
    else:
        heights, weights = (torch.tensor(a) for a in np.polynomial.legendre.leggauss(200))
        height, angle = torch.meshgrid(heights, longitude, indexing="ij")
        ring = (1 - height**2).sqrt()
        x = torch.stack([ring * angle.cos(), ring * angle.sin(), height], -1).reshape(-1, 3)
        weight = weights.repeat_interleave(400) * 2 * math.pi / 400
    q = made(cls, dims, kappa)
    log_prob = q.log_prob(x)
    mass = log_prob.exp() * weight
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(mass @ x, q.mean, rtol=1e-5, atol=1e-6)
    assert -(torch.xlogy(mass, log_prob.exp())).sum().item() == pytest.approx(q.entropy().item(), abs=1e-5)
    exact = kl_divergence(q, SphereUniform(dims)).item()
    assert (mass * (log_prob + log_area(dims))).nan_to_num().sum().item() == pytest.approx(exact, abs=1e-5)
    if cls is PowerSpherical:
        torch.testing.assert_close(mass @ x.square() - (mass @ x).square(), q.variance, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_density_at_both_poles(cls: type, dtype: torch.dtype) -> None:
    loc = direction(4).to(dtype)
    q = cls(loc, torch.tensor([0.0, 3.0, 1e6], dtype=dtype))
    uniform = SphereUniform(4, dtype=dtype)
    there, opposite = q.log_prob(loc), q.log_prob(-loc)
    assert there[0].item() == opposite[0].item() == pytest.approx(uniform.log_prob(loc).item())
    assert (there.diff() > 0).all()
    assert there.isfinite().all()
    drop = there - opposite
    expected = [0, math.inf, math.inf] if cls is PowerSpherical else [0, 6, 2e6]
    torch.testing.assert_close(drop, torch.tensor(expected, dtype=dtype))


@table
def test_von_mises_fisher_is_scipy_s_and_torch_s(dims: int, kappa: float) -> None:
    if kappa == 0:
        pytest.skip("both ask for a positive concentration")
    if not hasattr(stats, "vonmises_fisher"):
        pytest.skip("SciPy before 1.11 has no von Mises-Fisher distribution")
    q = made(VonMisesFisher, dims, kappa)
    x = SphereUniform(dims, dtype=F64).sample((50,))
    theirs = stats.vonmises_fisher(q.loc.numpy(), kappa)
    np.testing.assert_allclose(q.log_prob(x).numpy(), theirs.logpdf(x.numpy()), rtol=1e-9, atol=1e-9)
    assert q.entropy().item() == pytest.approx(theirs.entropy(), rel=1e-9)
    if dims == 2:
        circle = torch.distributions.VonMises(torch.atan2(q.loc[1], q.loc[0]), q.concentration)
        torch.testing.assert_close(q.log_prob(x), circle.log_prob(torch.atan2(x[:, 1], x[:, 0])), rtol=1e-6, atol=1e-6)


# --- The rates ---


def power_spherical_kl(mp, kappa, dims: int):
    """The formula of the paper, as it stands there; and its derivative."""
    b = mp.mpf(dims - 1) / 2
    a = b + kappa
    area = mp.log(2) + mp.mpf(dims) / 2 * mp.log(mp.pi) - mp.loggamma(mp.mpf(dims) / 2)
    scale = (a + b) * mp.log(2) + b * mp.log(mp.pi) + mp.loggamma(a) - mp.loggamma(a + b)
    nats = area + kappa * (mp.log(2) + mp.psi(0, a) - mp.psi(0, a + b)) - scale
    return nats, kappa * (mp.psi(1, a) - mp.psi(1, a + b))


def von_mises_fisher_kl(mp, kappa, dims: int):
    half = mp.mpf(dims) / 2
    bessel = mp.besseli(half - 1, kappa)
    ratio = mp.besseli(half, kappa) / bessel
    area = mp.log(2) + half * mp.log(mp.pi) - mp.loggamma(half)
    nats = kappa * ratio + (half - 1) * mp.log(kappa) - half * mp.log(2 * mp.pi) - mp.log(bessel) + area
    return nats, kappa * (1 - ratio**2 - (dims - 1) / kappa * ratio)


def concentrations(dims: int) -> list[float]:
    """Small to large, and where one formula takes over from another: around (d − 1)/2 and √(80 (19 + d/2))."""
    changes = [(dims - 1) / 2, math.sqrt(80 * (19 + dims / 2))]
    around = [change * factor for change in changes for factor in (0.9999, 1, 1.0001)]
    return [1e-9, 1e-3, 0.1, 3.0, 12.0, 50.0, 300.0, 1e4, 1e6, *around]


@both
@pytest.mark.parametrize("dims", [2, 3, 8, 64, 1000, 1_000_000])
def test_rate_and_gradient_to_nine_digits(cls: type, dims: int) -> None:
    mpmath = pytest.importorskip("mpmath")
    formula = {PowerSpherical: power_spherical_kl, VonMisesFisher: von_mises_fisher_kl}[cls]
    for kappa in [k for k in concentrations(dims) if dims < 1_000_000 or k < 1e5]:
        with mpmath.workdps(60):
            nats, slope = formula(mpmath, mpmath.mpf(kappa), dims)
        free = torch.tensor(kappa, dtype=F64, requires_grad=True)
        ours = KINDS[cls][1](free, dims)
        (gradient,) = torch.autograd.grad(ours, free)
        assert ours.item() == pytest.approx(float(nats), rel=1e-9, abs=0), kappa
        assert gradient.item() == pytest.approx(float(slope), rel=1e-8, abs=0), kappa


@both
@pytest.mark.parametrize("dims", [2, 3, 9])
def test_gradient_of_the_rate_against_finite_differences(cls: type, dims: int) -> None:
    kappa = torch.tensor([0.01, 0.5, 1.0, 4.0, 39.0, 42.9, 100.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda kappa: KINDS[cls][1](kappa, dims), kappa)


@pytest.mark.parametrize(
    ("rate", "kappa", "dims", "nats"),
    [
        (power_spherical_rate, 12.0, 8, 1.96436706),
        (power_spherical_rate, 5.0, 3, math.log(6) - 5 / 6),
        (power_spherical_rate, 5.0, 5, math.log(7 / 2) - 5 / 7 + math.log(8 / 3) - 5 / 8),
        (von_mises_fisher_rate, 10.0, 3, 1.9957323),  # two dimensions more have 2.4162
        (von_mises_fisher_rate, 10.0, 3, 10 / math.tanh(10) - 1 + math.log(10 / math.sinh(10))),
        (von_mises_fisher_rate, 10.0, 5, 2.4162),
    ],
)
def test_rates_known_by_heart(rate: Callable, kappa: float, dims: int, nats: float) -> None:
    assert rate(kappa, dims).item() == pytest.approx(nats, abs=5e-5 if nats == 2.4162 else 5e-8)
    assert rate(kappa, dims).dtype == F64


@both
@pytest.mark.parametrize("dims", [2, 5, 300])
def test_rate_vanishes_at_0_and_grows_from_there(cls: type, dims: int) -> None:
    kappa = torch.cat([torch.zeros(1, dtype=F64), torch.logspace(-12, 6, 500, dtype=F64)]).requires_grad_()
    rates = KINDS[cls][1](kappa, dims)
    (slope,) = torch.autograd.grad(rates.sum(), kappa)
    assert rates[0] == 0
    assert slope[0] == 0
    assert (rates.diff() > 0).all()
    assert (slope[1:] > 0).all()


@both
def test_the_rate_is_that_of_every_datum(cls: type) -> None:
    loc = SphereUniform(8).sample((100,))
    rates = kl_divergence(cls(loc, 12.0), SphereUniform(8).expand((100,)))
    expected = KINDS[cls][1](12.0, 8).float()
    assert torch.equal(rates, expected.expand(100))


@both
@pytest.mark.parametrize(("rate", "dims"), [(0.0, 3), (1e-9, 2), (0.3, 2), (12.0, 3), (2.0, 8), (30.0, 64)])
def test_concentration_for_rate(cls: type, rate: float, dims: int) -> None:
    kind, rate_of = KINDS[cls]
    kappa = concentration_for_rate(rate, dims, kind)
    assert rate_of(kappa, dims).item() == pytest.approx(rate, rel=1e-9, abs=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: concentration_for_rate(9.0, 2, "von_mises_fisher"), "9 nats .* out of reach"),
        (lambda: concentration_for_rate(-1.0, 2, "power_spherical"), "-1 nats"),
        (lambda: concentration_for_rate(math.nan, 2, "power_spherical"), "nan nats"),
        (lambda: concentration_for_rate(1.0, 2, "power"), "did you mean 'power_spherical'"),
        (lambda: concentration_for_rate(1.0, 1, "power_spherical"), "dims 1"),
        (lambda: power_spherical_rate(-1.0, 2), "-1 is out of range"),
        (lambda: von_mises_fisher_rate(math.nan, 2), "nan is out of range"),
        (lambda: von_mises_fisher_rate(2e6, 2), r"2e\+06 is out of range"),
        (lambda: von_mises_fisher_rate(1.0, 2.0), "dims 2.0"),
        (lambda: SphereUniform(1), "dims 1"),
        (lambda: SphereUniform(True), "dims True"),
    ],
)
def test_numbers_out_of_range(call: Callable, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


# --- Samples ---

LOCS = {
    "somewhere": [0.48, -0.6, 0.64],
    "the first axis": [1.0, 0.0, 0.0],
    "its antipode": [-1.0, 0.0, 0.0],
    "its equator": [0.0, 0.6, -0.8],
    "behind it": [-0.8, 0.0, 0.6],
}


@both
@pytest.mark.parametrize("kappa", [0.0, 0.6, 8.0, 200.0])
@pytest.mark.parametrize("loc", LOCS.values(), ids=LOCS)
def test_moments_of_samples(cls: type, kappa: float, loc: list[float]) -> None:
    q, count = cls(torch.tensor(loc, dtype=F64), kappa), 20_000
    x = q.sample((count,))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(count, dtype=F64))
    witness = moments(cls, 3, kappa)
    outer = torch.outer(q.loc, q.loc)
    second = witness["t2"] * outer + (1 - witness["t2"]) / 2 * (torch.eye(3, dtype=F64) - outer)
    for values, expected in [(x, witness["t"] * q.loc), (x.unsqueeze(-1) * x.unsqueeze(-2), second)]:
        error = values.std(0) / math.sqrt(count)
        assert ((values.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
    ratio = q.log_prob(x) - SphereUniform(3, dtype=F64).log_prob(x)
    assert abs(ratio.mean().item() - witness["nats"]) <= 5 * ratio.std().item() / math.sqrt(count) + 1e-12


@both
@table
def test_the_cosine_of_samples_follows_its_marginal(cls: type, dims: int, kappa: float) -> None:
    q = made(cls, dims, kappa)
    cosine = (q.sample((5000,)) @ q.loc).numpy()
    if cls is PowerSpherical:
        half = (dims - 1) / 2
        marginal = stats.beta(half + kappa, half, loc=-1, scale=2).cdf
    else:
        angles = np.linspace(0, math.pi, 200_001)
        log_density = log_kernel(cls, np.cos(angles), kappa) + (dims - 2) * np.log(np.maximum(np.sin(angles), 1e-300))
        mass = integrate.cumulative_trapezoid(np.exp(log_density - log_density.max()), angles, initial=0)

        def marginal(t: np.ndarray) -> np.ndarray:
            return 1 - np.interp(np.arccos(np.clip(t, -1, 1)), angles, mass / mass[-1])

    assert stats.kstest(cosine, marginal).pvalue > 1e-4


@both
@pytest.mark.parametrize("dims", [2, 3, 50])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_largest_concentration(cls: type, dims: int, dtype: torch.dtype) -> None:
    q = cls(direction(dims).to(dtype), LARGEST_CONCENTRATION)
    x = q.sample((4000,))
    away = (x.double() - q.loc.double()).square().sum(-1) / 2
    # 1 − t is nearly a Gamma variable: of mean (d − 1)/κ for the power spherical, of half that for the other.
    expected = (dims - 1) / LARGEST_CONCENTRATION / (1 if cls is PowerSpherical else 2)
    assert abs(away.mean().item() - expected) < 5 * away.std().item() / math.sqrt(4000) + 1e-4 * expected
    assert torch.isfinite(q.log_prob(x)).all()
    exact = kl_divergence(q, SphereUniform(dims, dtype=dtype)).item()
    ratio = (q.log_prob(x) + log_area(dims)).double()
    assert abs(ratio.mean().item() - exact) < 5 * ratio.std().item() / math.sqrt(4000)


# --- Gradients of samples ---


def second_moment(cls: type, along: float, kappa: float, dims: int) -> float:
    """E[(c·x)²] of a unit vector c with c·loc = `along`."""
    t2 = moments(cls, dims, kappa)["t2"]
    return t2 * along**2 + (1 - t2) / (dims - 1) * (1 - along**2)


@pytest.mark.parametrize(("dims", "kappa"), [(2, 0.5), (3, 2.0), (8, 12.0), (8, 300.0)])
def test_gradient_of_the_concentration_through_samples(dims: int, kappa: float) -> None:
    free = torch.full((40_000,), kappa, dtype=F64, requires_grad=True)
    loc, c = direction(dims), direction(dims, 1)
    x = PowerSpherical(loc, free).rsample()
    along, step = (c @ loc).item(), 1e-3 * kappa
    for power, value in [
        (1, lambda k: moments(PowerSpherical, dims, k)["t"] * along),
        (2, lambda k: second_moment(PowerSpherical, along, k, dims)),
    ]:
        (gradient,) = torch.autograd.grad((x @ c).pow(power).sum(), free, retain_graph=True)
        expected = (value(kappa + step) - value(kappa - step)) / (2 * step)
        assert abs(gradient.mean().item() - expected) < 5 * gradient.std().item() / 200 + 1e-3 * abs(expected)


@both
@pytest.mark.parametrize(("dims", "kappa"), [(2, 0.5), (3, 2.0), (8, 12.0)])
@pytest.mark.parametrize("seed", [0, 3])
def test_gradient_of_the_direction_through_samples(cls: type, dims: int, kappa: float, seed: int) -> None:
    """Of E[c·x] and E[(c·x)²]: what is left of ∂/∂loc along the sphere."""
    loc, c = direction(dims, seed), direction(dims, 1)
    free = loc.expand(40_000, dims).clone().requires_grad_()
    x = cls(free, torch.tensor(kappa, dtype=F64)).rsample()
    witness = moments(cls, dims, kappa)
    slope = {1: witness["t"], 2: 2 * (witness["t2"] - (1 - witness["t2"]) / (dims - 1)) * (c @ loc)}
    for power in (1, 2):
        (gradient,) = torch.autograd.grad((x @ c).pow(power).sum(), free, retain_graph=True)
        expected = slope[power] * (c - c @ loc * loc)
        error = gradient.std(0) / math.sqrt(len(free))
        assert ((gradient.mean(0) - expected).abs() <= 5 * error + 1e-12).all()


@both
def test_gradients_stay_small_around_both_poles(cls: type) -> None:
    tilt = torch.logspace(-8, -1, 200, dtype=F64)
    for pole in (1.0, -1.0):
        loc = torch.stack([pole * torch.ones_like(tilt), tilt, torch.zeros_like(tilt)], -1)
        free = (loc / loc.norm(dim=-1, keepdim=True)).requires_grad_()
        (gradient,) = torch.autograd.grad(cls(free, 3.0).rsample().sum(), free)
        assert gradient.norm(dim=-1).max() < 10


@both
def test_gradients_of_the_density(cls: type) -> None:
    x, loc = SphereUniform(4, dtype=F64).sample((2, 5))
    kappa = torch.tensor([0.2, 1.5, 3.0, 30.0, 90.0], dtype=F64)

    def log_prob(value: Tensor, loc: Tensor, kappa: Tensor) -> Tensor:
        unit = [v / v.norm(dim=-1, keepdim=True) for v in (value, loc)]
        return cls(unit[1], kappa).log_prob(unit[0])

    assert torch.autograd.gradcheck(log_prob, tuple(v.clone().requires_grad_() for v in (x, loc, kappa)), rtol=1e-4)
    assert torch.autograd.gradcheck(
        lambda kappa: cls(loc, kappa, validate_args=False).entropy(), kappa.clone().requires_grad_()
    )


def test_von_mises_fisher_has_no_samples_with_a_gradient_of_the_concentration() -> None:
    loc, kappa = direction(3).float(), torch.tensor(3.0, requires_grad=True)
    free, fixed = VonMisesFisher(loc, kappa), VonMisesFisher(loc, kappa.detach())
    assert fixed.has_rsample
    assert not free.has_rsample
    assert not free.expand((2,)).has_rsample
    assert free.sample((4,)).shape == (4, 3)
    with pytest.raises(NotImplementedError, match="PowerSpherical"):
        free.rsample()

    def model() -> None:
        pyro.sample("z", SphereUniform(3))

    def guide() -> None:
        pyro.sample("z", VonMisesFisher(loc, pyro.param("kappa", torch.tensor(3.0))))

    with pytest.raises(NotImplementedError, match="reparameterized"):
        TraceMeanField_ELBO().loss_and_grads(model, guide)


# --- Shapes and types ---


@both
@pytest.mark.parametrize(
    ("loc_shape", "kappa_shape", "batch_shape"),
    [((3,), (), ()), ((5, 3), (), (5,)), ((3,), (5,), (5,)), ((4, 1, 3), (5,), (4, 5)), ((5, 3), (4, 1), (4, 5))],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_shapes_and_types(cls: type, loc_shape: tuple, kappa_shape: tuple, batch_shape: tuple, dtype) -> None:
    loc = torch.randn(loc_shape, dtype=dtype)
    q = cls(loc / loc.norm(dim=-1, keepdim=True), torch.rand(kappa_shape, dtype=dtype) * 20)
    x = q.sample((7,))
    assert q.batch_shape == q.concentration.shape == batch_shape
    assert x.shape == (7, *batch_shape, 3)
    assert q.log_prob(x).shape == (7, *batch_shape)
    exact = kl_divergence(q, SphereUniform(3, dtype=dtype))
    assert q.mean.shape == q.loc.shape == (*batch_shape, 3)
    assert q.entropy().shape == exact.shape == batch_shape
    for value in (x, q.log_prob(x), q.mean, q.entropy(), exact):
        assert value.dtype == dtype
    wide, x_wide = as_float64(q), x.double() / x.double().norm(dim=-1, keepdim=True)
    torch.testing.assert_close(q.log_prob(x).double(), wide.log_prob(x_wide), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exact.double(), kl_divergence(wide, SphereUniform(3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(q.entropy() + exact, q.entropy().new_full(batch_shape, log_area(3)))
    if cls is PowerSpherical:
        assert q.variance.shape == (*batch_shape, 3)
        assert q.variance.dtype == dtype


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [(cls, (torch.tensor([0.6, 0.0, 0.8]), 2.0)) for cls in KINDS] + [(SphereUniform, (3,))],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_expand_keeps_the_class_and_the_validation_flag(cls: type, arguments: tuple) -> None:
    renamed = type("Renamed", (cls,), {})
    assert type(renamed(*arguments).expand((2,))) is renamed
    for flag in (True, False):
        assert cls(*arguments, validate_args=flag).expand((4,))._validate_args is flag
    grown = cls(*arguments).expand((1, 2)).expand((3, 2))
    assert grown.sample().shape == grown.mean.shape == (3, 2, 3)
    assert grown.entropy().shape == grown.log_prob(SphereUniform(3).sample()).shape == (3, 2)


@both
def test_expand_keeps_each_concentration(cls: type) -> None:
    q = cls(torch.tensor([[0.6, 0.8], [-1.0, 0.0]]), torch.tensor([0.5, 20.0]))
    grown, x = q.expand((3, 2)), SphereUniform(2).sample()
    assert torch.equal(grown.concentration, q.concentration.expand(3, 2))
    assert torch.equal(grown.log_prob(x), q.log_prob(x).expand(3, 2))
    assert torch.equal(grown.mean, q.mean.expand(3, 2, 2))
    exact = kl_divergence(grown, SphereUniform(2).expand((3, 2)))
    assert torch.equal(exact, kl_divergence(q, SphereUniform(2)).expand(3, 2))


# --- The analytic KL inside Pyro ---


class WithoutExpand(SphereUniform):
    """The planted bug: Pyro then wraps the prior in an ExpandedDistribution."""

    expand = TorchDistribution.expand


@both
@pytest.mark.parametrize(("prior", "analytic"), [(SphereUniform, True), (WithoutExpand, False)])
@pytest.mark.parametrize("loc_shape", [(6, 4), (4,)], ids=["one direction each", "one for all"])
def test_mean_field_elbo_uses_the_analytic_kl_inside_a_plate(
    cls: type, prior: type, analytic: bool, loc_shape: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    registered = kl._KL_REGISTRY[cls, SphereUniform]
    monkeypatch.setitem(kl._KL_REGISTRY, (cls, SphereUniform), lambda q, p: calls.append(p) or registered(q, p))
    kl._KL_MEMOIZE.clear()  # so that the count sees what torch dispatches
    loc = torch.randn(loc_shape)
    loc = loc / loc.norm(dim=-1, keepdim=True)

    def model() -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", prior(4))

    def guide() -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", cls(loc, 5.0))

    loss = TraceMeanField_ELBO().loss(model, guide)
    kl._KL_MEMOIZE.clear()
    exact = 6 * KINDS[cls][1](5.0, 4).item()
    if analytic:
        assert len(calls) == 1
        assert loss == pytest.approx(exact, rel=1e-6)
    else:
        assert not calls  # the ELBO sampled, and said nothing
        assert abs(loss - exact) > 1e-3


@both
def test_directions_are_learned_at_a_constant_rate(cls: type) -> None:
    """A likelihood that pulls towards its data: the posterior turns to them, and pays the committed rate throughout."""
    data = SphereUniform(4).sample((6,))

    def model() -> None:
        with pyro.plate("data", 6):
            z = pyro.sample("z", SphereUniform(4))
            pyro.sample("x", dist.Normal(z, 0.3).to_event(1), obs=data)

    def guide() -> None:
        loc = pyro.param("loc", lambda: SphereUniform(4).sample((6,)))
        with pyro.plate("data", 6):
            pyro.sample("z", cls(loc / loc.norm(dim=-1, keepdim=True), 20.0))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    for _ in range(60):
        svi.step()
    loc = torch.nn.functional.normalize(pyro.param("loc").detach(), dim=-1)
    assert ((loc * data).sum(-1) > 0.95).all()


# --- Mistakes ---

UNIT = torch.tensor([0.6, 0.8])


@both
@pytest.mark.parametrize(
    ("loc", "concentration", "message"),
    [
        (torch.tensor(1.0), 1.0, r"shape \(\)"),
        (torch.ones(3, 1), 1.0, r"shape \(3, 1\)"),
        (torch.tensor([1, 0]), 1.0, "int64"),
        (UNIT, torch.tensor(1), "concentration of torch.int64"),
        (UNIT, torch.tensor(1.0, dtype=F64), "concentration of torch.float64"),
        (UNIT.expand(3, 2), torch.ones(4), r"\(3, 2\).*\(4,\)"),
        (torch.tensor([0.6, 0.9]), 1.0, "loc"),
        (torch.tensor([0.6, math.nan]), 1.0, "loc"),
        (UNIT, -1.0, "concentration"),
        (UNIT, math.nan, "concentration"),
        (UNIT, 2e6, "concentration"),
    ],
)
def test_bad_arguments(cls: type, loc: Tensor, concentration: Tensor | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(loc, concentration)


@pytest.mark.parametrize("q", [cls(UNIT, 2.0) for cls in KINDS] + [SphereUniform(2)], ids=lambda q: type(q).__name__)
@pytest.mark.parametrize("value", [[0.6, 0.9], [1.0, 0.0, 0.0], [math.nan, 1.0]])
def test_bad_samples_are_refused(q: TorchDistribution, value: list[float]) -> None:
    with pytest.raises(ValueError):
        q.log_prob(torch.tensor(value))


def test_not_a_number_ends_the_rejection_without_validation() -> None:
    assert VonMisesFisher(UNIT, math.nan, validate_args=False).sample().isnan().all()


@both
def test_kl_is_that_of_exact_classes(cls: type) -> None:
    other = type("Other", (cls,), {})
    prior = type("OtherPrior", (SphereUniform,), {})
    for q, p in [(other(UNIT, 1.0), SphereUniform(2)), (cls(UNIT, 1.0), prior(2))]:
        with pytest.raises(NotImplementedError, match="register_kl another"):
            kl_divergence(q, p)
    with pytest.raises(UserError, match="event shape"):
        kl_divergence(cls(UNIT, 1.0), SphereUniform(3))
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Normal(torch.zeros(2), 1.0).to_event(1), SphereUniform(2))


@both
def test_parameters_can_be_learned_through_their_constraints(cls: type) -> None:
    free = torch.tensor([-3.0, 0.0, 3.0, 500.0])
    to_kappa = biject_to(cls.arg_constraints["concentration"])
    kappa = to_kappa(free)
    assert (kappa > 0).all()
    assert kappa[-1] == 500
    torch.testing.assert_close(to_kappa.inv(kappa), free, rtol=1e-4, atol=1e-5)
    loc = torch.distributions.transform_to(cls.arg_constraints["loc"])(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(loc, UNIT)
