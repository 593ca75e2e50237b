"""The committed rate, against the paper's figures, dense linear algebra, random posteriors and gradient descent."""

import json
import math
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_delta.cli.delta import delta as delta_command
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.rate import (
    alpha_for_rate,
    alpha_of_rates,
    ar1_committed_rate,
    committed_rate,
    minimising_posterior,
    parse_alpha,
    register_committed_rate,
    spread_for_rate,
)

BITS = math.log(2)
LOW = np.linspace(0.5, 0.95, 8).tolist()
HIGH = np.linspace(0.5, 0.99, 64).tolist()


def ar1_covariance(alpha: float, n: int) -> Tensor:
    steps = torch.arange(n)
    return torch.tensor(alpha, dtype=torch.float64) ** (steps[:, None] - steps).abs()


def reshaped_normal(covariance: Tensor, n: int, d: int, loc: float = 0.0) -> dist.TorchDistribution:
    """A multivariate normal over n · d values (time-major) as one event of shape (n, d): no closed form registered."""
    flat = dist.MultivariateNormal(torch.full((n * d,), loc, dtype=covariance.dtype), covariance)
    return dist.TransformedDistribution(flat, [dist.transforms.ReshapeTransform((n * d,), (n, d))])


def random_covariance(*batch: int, size: int) -> Tensor:
    root = torch.randn(*batch, size, 2 * size, dtype=torch.float64)
    return root @ root.mT / size


# --- Eq. 3 ---


@pytest.mark.parametrize(
    ("alpha", "length", "nats", "tolerance"),
    [
        # The rates of the paper's experiments, given in bits.
        (LOW, 32, 79.447 * BITS, 5e-4),
        (HIGH, 32, 666.63 * BITS, 5e-3),
        # Two steps, one dimension.
        (0.5, 2, 0.1438, 5e-5),
        (0.8, 2, 0.5108, 5e-5),
        (0.95, 2, 1.1640, 5e-5),
        # α = 0 is the standard VAE; the sign of α does not matter; at one step there is nothing to correlate.
        (0.0, 32, 0.0, 0.0),
        ([-a for a in LOW], 32, 79.447 * BITS, 5e-4),
        (0.9, 1, 0.0, 0.0),
        (LOW, 1, 0.0, 0.0),
        # A 64-step chain, and a 32-step one.
        (0.9, 64, 19.22, 5e-3),
        (0.9, 32, 9.73, 5e-3),
    ],
)
def test_eq_3(alpha: float | list[float], length: int, nats: float, tolerance: float) -> None:
    delta = ar1_committed_rate(alpha, length)
    assert delta.dtype == torch.float64
    assert delta.shape == ()
    assert delta.item() == pytest.approx(nats, abs=tolerance)


CURVE_ALPHA = [0.2, 0.4, 0.6, 0.8, 0.95, 0.99]


@pytest.mark.parametrize(
    ("length", "curve"),
    [
        (2, [0.020, 0.087, 0.223, 0.511, 1.164, 1.959]),
        (8, [0.138, 0.532, 1.146, 1.995, 3.093, 4.008]),
        (16, [0.295, 1.126, 2.376, 3.974, 5.666, 6.741]),
    ],
)
def test_the_curve_of_figure_1(length: int, curve: list[float]) -> None:
    deltas = ar1_committed_rate(torch.tensor(CURVE_ALPHA, dtype=torch.float64).unsqueeze(-1), length)
    assert deltas.tolist() == pytest.approx(curve, abs=6e-4)


@pytest.mark.parametrize("alpha", [1e-150, 1e-12, 1e-3, 0.4999])
def test_eq_3_keeps_its_digits_near_zero(alpha: float) -> None:
    exact = 0.5 * (30 * math.log1p(alpha * alpha) - math.log1p(-alpha * alpha))
    assert ar1_committed_rate(alpha, 32).item() == pytest.approx(exact, rel=1e-14, abs=0)


def test_eq_3_near_the_edge_and_for_float32_parameters() -> None:
    # 1 − α² = 2ε − ε² is exact in float64 at ε = 2⁻⁵⁰, where 1 − α·α would keep three bits.
    epsilon = 2.0**-50
    exact = 0.5 * (30 * math.log(2) - math.log(2 * epsilon))
    assert ar1_committed_rate(1 - epsilon, 32).item() == pytest.approx(exact, rel=1e-14)
    alpha = torch.tensor([0.99999])
    assert ar1_committed_rate(alpha, 32).item() == pytest.approx(ar1_committed_rate(alpha.item(), 32).item(), rel=1e-15)


@pytest.mark.parametrize(
    ("alpha", "length", "message"),
    [
        (0.5, 10**20, "length is 100000000000000000000"),
        (1.0, 2, "alpha 1 is outside"),
        ([0.5, -1.5], 2, "alpha -1.5 is outside"),
        (math.nan, 2, "alpha nan is outside"),
        (0.5, 0, "length is 0"),
        (0.5, 2.5, "length is 2.5"),
    ],
)
def test_eq_3_refuses(alpha: float | list[float], length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ar1_committed_rate(alpha, length)


# --- Eq. 3 inverted ---


@pytest.mark.parametrize(
    ("bits", "alpha"), [(10, 0.2395), (20, 0.3432), (40, 0.4980), (61.44, 0.6339), (79.44, 0.7360)]
)
def test_one_alpha_for_a_rate(bits: float, alpha: float) -> None:
    assert alpha_for_rate(bits * BITS, 32, 8) == pytest.approx(alpha, abs=5.1e-5)


@pytest.mark.parametrize("rate", [0.0, 1e-300, 1e-12, 1e-3, 1.0, 55.0, 150.0, 190.0])
def test_alpha_and_back(rate: float) -> None:
    alpha = alpha_for_rate(rate, 32, 8)
    assert ar1_committed_rate([alpha] * 8, 32).item() == pytest.approx(rate, rel=1e-6, abs=0)


@pytest.mark.parametrize("length", [2, 3, 8, 32, 512, 100_000])
def test_alphas_of_rates_and_back(length: int) -> None:
    """From a rate next to 0 to the largest that float64 holds, where eq. 3 is flat, steep, and asymptotic."""
    most = ar1_committed_rate(math.nextafter(1.0, 0.0), length).item()
    rates = most * torch.tensor([1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.95], dtype=torch.float64)
    alpha = alpha_of_rates(rates, length)
    rate = ar1_committed_rate(alpha.unsqueeze(-1), length)
    # Near 1 the nearest float64 to α is all that can be asked for.
    room = 2**-53 * alpha / (1 - alpha.square())
    assert ((rate - rates).abs() <= 1e-12 * rates + room).all()


@pytest.mark.parametrize("length", [2, 3, 32, 100_000])
def test_the_slope_of_alphas_of_rates(length: int) -> None:
    rates = torch.tensor([0.01, 0.5, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rates: alpha_of_rates(rates, length), (rates,))


@pytest.mark.parametrize(
    ("bits", "dims", "first", "last"),
    [
        (79.447, 8, 0.5, 0.95),
        (666.6288, 64, 0.5, 0.99),
        (20.0, 8, 0.5, None),  # the last lies below the first
        (60.0, 8, 0.0, None),
        (30.0, 2, 0.9, None),
    ],
)
def test_spread_and_back(bits: float, dims: int, first: float, last: float | None) -> None:
    alpha_d = spread_for_rate(bits * BITS, 32, dims, first)
    assert alpha_d == pytest.approx(np.linspace(first, alpha_d[-1], dims).tolist(), abs=1e-15)
    assert last is None or alpha_d[-1] == pytest.approx(last, abs=1e-5)
    assert ar1_committed_rate(alpha_d, 32).item() == pytest.approx(bits * BITS, rel=1e-9)


def test_a_spread_below_its_first_value_exists_down_to_zero() -> None:
    least = ar1_committed_rate(np.linspace(0.5, 0, 8).tolist(), 32).item()
    assert spread_for_rate(least, 32, 8, 0.5)[-1] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(UserError, match=f"from 0.5 over d = 8 can commit {least:.6g} nats .* to "):
        spread_for_rate(least * 0.99, 32, 8, 0.5)


@pytest.mark.parametrize(
    ("rate", "length", "dims", "message"),
    [
        (-1.0, 32, 8, r"-1 nats \(-1.4427 bits\) cannot be committed"),
        (math.nan, 32, 8, "nan nats .* cannot be committed"),
        (math.inf, 32, 8, "inf nats .* cannot be committed"),
        (1.0, 1, 8, "length 1"),
        (1.0, 0, 8, "length is 0"),
        (1.0, 32, 0, "dims is 0"),
        (1e6, 32, 8, "out of reach; n = 32 with .*d = 8"),
        (1.0, 10**9 + 1, 8, "length is 1000000001; give a whole number from 1 to 1000000000"),
        (1.0, 32, 10**6 + 1, "dims is 1000001; give a whole number from 1 to 1000000"),
        (18.0, 2, 1, "nearer to 1 than float64"),
        (5e-324, 32, 8, "too small for float64"),
    ],
)
def test_rates_that_no_alpha_commits(rate: float, length: int, dims: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        alpha_for_rate(rate, length, dims)
    if dims > 1:
        with pytest.raises(UserError, match=message):
            spread_for_rate(rate, length, dims, 0.0)


@pytest.mark.parametrize(("dims", "first"), [(1, 0.5), (8, 1.0), (8, -0.1), (8, math.nan)])
def test_spreads_that_do_not_exist(dims: int, first: float) -> None:
    with pytest.raises(UserError, match="spread"):
        spread_for_rate(10.0, 32, dims, first)


@pytest.mark.parametrize(
    ("spec", "dims", "alpha"),
    [
        ("0.5:0.95", 8, LOW),
        ("0.95:0.5", 8, LOW[::-1]),
        ("0.5", 3, [0.5] * 3),
        (0.5, 1, [0.5]),
        (0, 2, [0.0] * 2),
        ("-0.5, 0,.25", 3, [-0.5, 0.0, 0.25]),
    ],
)
def test_parse_alpha(spec: str | float, dims: int, alpha: list[float]) -> None:
    assert parse_alpha(spec, dims) == pytest.approx(alpha, abs=1e-15)


@pytest.mark.parametrize(
    ("spec", "dims", "message"),
    [
        ("much", 2, "cannot read alpha 'much'"),
        ("", 2, "cannot read alpha ''"),
        ("0.1,", 2, "cannot read alpha '0.1,'"),
        ("0.5:1", 2, "alpha 1 is outside"),
        ("nan", 2, "alpha nan is outside"),
        ("0.1,0.2", 3, "2 values for d = 3"),
        ("0.5:0.9", 1, "not a spread; LO:HI needs 2 dimensions"),
        ("0.5:0.7:0.9", 2, "not a spread: it has 3 numbers"),
        ("0.5", 0, "dims is 0"),
    ],
)
def test_parse_alpha_refuses(spec: str, dims: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_alpha(spec, dims)


# --- δ is the least KL ---


@pytest.mark.parametrize(
    ("alpha", "length"), [(LOW, 32), (HIGH, 32), ([0.5], 1), ([0.5, -0.9], 2), ([0.0, 0.9], 3), ([0.99999], 100)]
)
def test_minimiser_attains_delta_and_random_posteriors_stay_above(alpha: list[float], length: int) -> None:
    prior = GaussianAR1(torch.tensor(alpha, dtype=torch.float64), length)
    delta = committed_rate(prior)
    q = minimising_posterior(prior)
    assert kl_divergence(q, prior).item() == pytest.approx(delta.item(), rel=1e-10, abs=1e-12)
    for width in [1e-3, 0.1, 1.0]:  # from next to the minimiser to far away
        loc, log_ratio = width * torch.randn(2, 200, *prior.event_shape, dtype=torch.float64)
        near = dist.Normal(loc, q.base_dist.scale * log_ratio.exp()).to_event(2)
        assert (kl_divergence(near, prior) >= delta - 1e-10).all()


def test_gradient_descent_from_a_random_start_converges_to_delta() -> None:
    prior = GaussianAR1(torch.tensor([0.3, 0.9], dtype=torch.float64), 6)
    loc, log_scale = (torch.randn(6, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimiser = torch.optim.LBFGS([loc, log_scale], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = kl_divergence(dist.Normal(loc, log_scale.exp()).to_event(2), prior)
        value.backward()
        return value

    assert loss() > committed_rate(prior) + 1
    optimiser.step(loss)
    assert loss().item() == pytest.approx(committed_rate(prior).item(), abs=1e-9)
    q = minimising_posterior(prior).base_dist
    torch.testing.assert_close(loc.detach(), q.loc, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_scale.exp().detach(), q.scale, rtol=1e-4, atol=0)


# --- Any Gaussian ---


@pytest.mark.parametrize(("blocks", "nats"), [(None, 9.73), (1, 9.73), (2, 7.15), (4, 4.53), (32, 0.0)])
def test_blocks_of_a_chain(blocks: int | None, nats: float) -> None:
    closed = committed_rate(GaussianAR1(torch.tensor([0.9], dtype=torch.float64), 32), blocks)
    dense = committed_rate(reshaped_normal(ar1_covariance(0.9, 32), 32, 1), blocks)
    assert closed.item() == pytest.approx(nats, abs=5e-3)
    assert dense.item() == pytest.approx(closed.item(), abs=1e-9)


@pytest.mark.parametrize(("length", "blocks"), [(1, 1), (1, 5), (2, 1), (5, 2), (5, 3), (7, 6), (7, 7), (8, 4), (9, 4)])
def test_the_block_formula_of_a_chain_whatever_the_last_block(length: int, blocks: int) -> None:
    closed = ar1_committed_rate(-0.7, length, blocks).item()
    dense = committed_rate(reshaped_normal(ar1_covariance(-0.7, length), length, 1), min(blocks, length)).item()
    assert closed == pytest.approx(dense, abs=1e-12)


def test_a_lattice_commits_more_than_a_chain() -> None:
    lattice = torch.kron(ar1_covariance(0.9, 8), ar1_covariance(0.9, 8))
    assert committed_rate(reshaped_normal(lattice, 64, 1)).item() == pytest.approx(41.77, abs=5e-3)


@pytest.mark.parametrize(("n", "d", "blocks"), [(6, 2, None), (6, 2, 2), (6, 2, 3), (7, 2, 3), (5, 3, 5), (4, 1, 4)])
def test_any_covariance_against_dense_algebra(n: int, d: int, blocks: int | None) -> None:
    covariance = random_covariance(size=n * d)
    precision = np.linalg.inv(covariance.numpy())
    label = [(t // (blocks or 1), k) for t in range(n) for k in range(d)]
    total = 0.0
    for name in set(label):
        inside = [i for i, other in enumerate(label) if other == name]
        total += np.linalg.slogdet(precision[np.ix_(inside, inside)])[1]
    expected = 0.5 * (total + np.linalg.slogdet(covariance.numpy())[1])
    assert committed_rate(reshaped_normal(covariance, n, d, loc=5.0), blocks).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_the_block_posterior_that_attains_delta_exists() -> None:
    """A second witness for blocks: torch's KL between multivariate normals, at the block-diagonal of the precision."""
    covariance = random_covariance(size=6)
    precision = covariance.inverse()
    block_precision = torch.block_diag(*(precision[i : i + 2, i : i + 2] for i in (0, 2, 4)))
    zero = torch.zeros(6, dtype=torch.float64)
    q = dist.MultivariateNormal(zero, precision_matrix=block_precision)
    least = kl_divergence(q, dist.MultivariateNormal(zero, covariance))
    assert committed_rate(reshaped_normal(covariance, 6, 1), 2).item() == pytest.approx(least.item(), rel=1e-9)


def test_minimiser_of_any_gaussian_attains_delta() -> None:
    covariance = random_covariance(size=6)
    prior = reshaped_normal(covariance, 3, 2, loc=5.0)
    q = minimising_posterior(prior)
    assert q.event_shape == (3, 2)
    q_flat = dist.MultivariateNormal(q.mean.reshape(6), scale_tril=q.base_dist.scale.reshape(6).diag())
    least = kl_divergence(q_flat, prior.base_dist)
    assert least.item() == pytest.approx(committed_rate(prior).item(), rel=1e-9)


def gaussian_hmm() -> dist.TorchDistribution:
    noise = dist.Normal(torch.zeros(1), 0.6).to_event(1)
    start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    observation = dist.Normal(torch.zeros(1), 1e-2).to_event(1)
    return dist.GaussianHMM(start, torch.tensor([[0.8]]), noise, torch.eye(1), observation, duration=9)


AR1 = GaussianAR1(torch.tensor([0.5, 0.9]), 5)
AR1_RATE = ar1_committed_rate(torch.tensor([0.5, 0.9]), 5).item()


@pytest.mark.parametrize(
    ("prior", "batch", "nats"),
    [
        # float32 parameters, wherever they hide, are widened before anything is computed.
        (dist.Normal(torch.zeros(4, 2), 3.0).to_event(2), (), 0.0),
        (dist.Normal(torch.zeros(4, 2), 3.0), (4, 2), 0.0),
        (dist.Normal(0.0, 1.0), (), 0.0),
        (AR1.expand((3,)), (3,), AR1_RATE),
        (AR1.expand((3,)).to_event(1), (), 3 * AR1_RATE),
        (dist.TransformedDistribution(AR1, [dist.transforms.AffineTransform(1e4, 1e-3)]), (), AR1_RATE),
        (
            dist.TransformedDistribution(
                AR1, [dist.transforms.AffineTransform(torch.full((5, 2), 2.0), torch.tensor([0.1, 7.0])).inv]
            ),
            (),
            AR1_RATE,
        ),
        (dist.MultivariateNormal(torch.zeros(2, 9), ar1_covariance(0.8, 9).float()), (2,), None),
        (dist.MultivariateNormal(torch.zeros(9), precision_matrix=ar1_covariance(0.8, 9).inverse().float()), (), None),
        (dist.MultivariateNormal(torch.zeros(9), ar1_covariance(0.8, 9).float()).expand((2, 3)), (2, 3), None),
    ],
)
def test_gaussians_in_many_clothes(prior: dist.TorchDistribution, batch: tuple[int, ...], nats: float | None) -> None:
    nats = ar1_committed_rate(0.8, 9).item() if nats is None else nats
    delta = committed_rate(prior)
    assert delta.dtype == torch.float64
    assert delta.shape == batch
    torch.testing.assert_close(delta, torch.full(batch, nats, dtype=torch.float64), rtol=1e-5, atol=1e-9)


def test_a_state_space_model_is_a_gaussian_too() -> None:
    """Pyro's GaussianHMM keeps its parameters in helper objects; the witness is its covariance, written down."""
    state = ar1_covariance(0.8, 10)[1:, 1:]
    covariance = state + 1e-4 * torch.eye(9, dtype=torch.float64)
    expected = 0.5 * (covariance.inverse().diagonal().log().sum() + covariance.logdet())
    assert committed_rate(gaussian_hmm()).item() == pytest.approx(expected.item(), rel=1e-4)


def test_each_member_of_a_batch_has_its_own_rate() -> None:
    covariance = random_covariance(4, size=6)
    batch = reshaped_normal(covariance, 3, 2)
    single = [committed_rate(reshaped_normal(one, 3, 2), 2) for one in covariance]
    torch.testing.assert_close(committed_rate(batch, 2), torch.stack(single), rtol=1e-9, atol=0)


def test_certifying_changes_nothing() -> None:
    loc = torch.zeros(9, requires_grad=True)
    prior = dist.MultivariateNormal(loc, ar1_covariance(0.8, 9).float())
    before = torch.get_rng_state()
    committed_rate(prior)
    assert torch.equal(torch.get_rng_state(), before)
    assert prior.loc.dtype == torch.float32
    assert prior.loc.requires_grad
    assert loc.grad is None
    with torch.no_grad():
        assert committed_rate(prior) > 0


class Unnormalised(dist.Normal):
    """A Gaussian shape that is no density."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.01


class HeavyTailed(dist.Normal):
    """Gaussian up to three standard deviations, Laplace beyond: curvature and height at the mode give nothing away."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + 0.5 * (value.abs() - 3).clamp(min=0).square()


class Unsupported(dist.TorchDistribution):
    """A distribution whose author declared no support."""

    arg_constraints = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            dist.Laplace(torch.zeros(4, 2), 1.0).to_event(2),
            r"Independent\(Laplace\) is not Gaussian: .*positive definite",
        ),
        (dist.StudentT(3.0, torch.zeros(4, 2), 1.0).to_event(2), "not Gaussian"),
        (dist.Logistic(torch.zeros(4, 2), 1.0).to_event(2), "changes from point to point"),
        (dist.LogNormal(torch.zeros(4, 2), 1.0).to_event(2), "support is GreaterThan"),
        (dist.Bernoulli(torch.full((3,), 0.5)).to_event(1), "support is Boolean"),
        (dist.TransformedDistribution(AR1, [dist.transforms.TanhTransform()]), "support is Interval"),
        (dist.Delta(torch.zeros(3)).to_event(1), "not Gaussian"),
        (
            dist.MixtureOfDiagNormalsSharedCovariance(
                torch.tensor([[-15.0, -15.0], [15.0, 15.0]]), torch.ones(2), torch.zeros(2)
            ),
            "not Gaussian: at its mode the log density is",
        ),
        (AR1.mask(False), "positive definite"),
        (Unnormalised(torch.zeros(4, 2), 1.0).to_event(2), "normalised Gaussian of the same curvature"),
        (HeavyTailed(torch.zeros(1), 1.0).to_event(1), "not a quadratic form"),
        (Unsupported(), "declares no support"),
    ],
)
def test_what_is_not_gaussian_gets_no_certificate(prior: dist.TorchDistribution, message: str) -> None:
    with pytest.raises(UserError, match=message):
        committed_rate(prior)
    with pytest.raises(UserError, match=message):
        minimising_posterior(prior)


@pytest.mark.parametrize(
    ("prior", "blocks", "message"),
    [
        (AR1, 0, "blocks is 0"),
        (AR1, 6, r"blocks of 6 steps do not fit the event shape \(5, 2\)"),
        (dist.Normal(torch.zeros(4), 1.0).to_event(1), 2, r"event shape \(4,\)"),
    ],
)
def test_blocks_that_do_not_fit(prior: dist.TorchDistribution, blocks: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        committed_rate(prior, blocks)


def test_a_registered_closed_form_holds_for_its_own_class_only() -> None:
    class Mine(GaussianAR1):
        pass

    class Child(Mine):
        pass

    @register_committed_rate(Mine)
    def mine(prior: Mine, blocks: int) -> Tensor | None:
        return torch.tensor(7.0, dtype=torch.float64) if blocks == 1 else None

    alpha = torch.tensor([0.5, 0.9])
    assert committed_rate(Mine(alpha, 5)) == 7
    assert committed_rate(Mine(alpha, 5).expand((2,))) == 7
    # A child has another rate, and of blocks this form says nothing: both are computed.
    assert committed_rate(Child(alpha, 5)).item() == pytest.approx(AR1_RATE, rel=1e-6)
    assert committed_rate(Mine(alpha, 5), blocks=2) < AR1_RATE


# --- The command ---


def run_delta(line: str) -> str:
    return CliRunner().invoke(delta_command, line.split(), catch_exceptions=False).output


@pytest.mark.parametrize(
    ("line", "bits", "first", "last"),
    [
        ("--length 32 --dims 8 --alpha 0.5:0.95", 79.447, 0.5, 0.95),
        ("--length 32 --dims 64 --alpha 0.5:0.99", 666.629, 0.5, 0.99),
        ("--length 32 --dims 8 --rate-bits 79.44", 79.44, 0.736, 0.736),
        ("--length 32 --dims 8 --rate-bits 79.447 --spread 0.5", 79.447, 0.5, 0.95),
        ("--length 1 --dims 2 --alpha 0.5,-0.9", 0.0, 0.5, -0.9),
    ],
)
def test_the_command(line: str, bits: float, first: float, last: float) -> None:
    result = json.loads(run_delta(f"{line} --json --shape 3x32x32"))
    assert set(result) == {"delta_nats", "delta_bits", "alpha", "delta_bits_per_dim"}
    assert result["delta_bits"] == pytest.approx(bits, abs=1e-3)
    assert result["delta_nats"] == pytest.approx(bits * BITS, abs=1e-3)
    assert result["delta_bits_per_dim"] == pytest.approx(bits / 3072, abs=1e-6)
    assert (result["alpha"][0], result["alpha"][-1]) == pytest.approx((first, last), abs=1e-4)
    assert f"{result['delta_bits']:.4f} bits" in run_delta(line)


@pytest.mark.parametrize("length", [1, 3, 32, 1000])
def test_the_command_draws(length: int, tmp_path: Path) -> None:
    figure = tmp_path / "delta.svg"
    run_delta(f"--length {length} --dims 2 --alpha -0.3,0.9 --plot {figure}")
    assert figure.read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--length 2 --dims 1", "exactly one"),
        ("--length 2 --dims 1 --alpha 0.5 --rate-bits 1", "exactly one"),
        ("--length 2 --dims 2 --alpha 0.5 --spread 0.1", "--spread 0.1 goes with --rate-bits"),
        ("--length 0 --dims 1 --alpha 0.5", "length is 0"),
        ("--length 2 --dims 0 --alpha 0.5", "dims is 0"),
        ("--length 2 --dims 1 --alpha 1", "alpha 1 is outside"),
        ("--length 2 --dims 1 --alpha nan", "alpha nan is outside"),
        ("--length 2 --dims 1 --rate-bits 1e6", "out of reach"),
        ("--length 2 --dims 1 --alpha 0.5 --shape 3x0", "cannot read the shape '3x0'"),
        ("--length 2 --dims 1 --alpha 0.5 --plot /no/such/x.png", r"/no/such/x.png \(No such file .*\); give"),
        ("--length 2 --dims 1 --alpha 0.5 --plot figure.sheep", "cannot write the figure .*; name a .png"),
        ("--length 2 --dims 1 --alpha 0.5 --plot figure", "cannot tell the format"),
    ],
)
def test_the_command_refuses(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_delta(line)
