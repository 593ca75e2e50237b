"""Priors as programs: shapes, rows, the process they claim to be, the rate they were asked for, and mistakes."""

import math
import re
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_delta.data.images import ImageSpec
from pyro_delta.distributions import GaussianAR1, GaussianSequence
from pyro_delta.errors import UserError
from pyro_delta.models import (
    AR1Prior,
    ARPrior,
    LatticePrior,
    LearnedAR1Prior,
    MaternPrior,
    StandardNormalPrior,
)
from pyro_delta.rate import ar1_committed_rate, committed_rate, minimising_posterior

SPEC = ImageSpec(1, 8, 12, 17)
TALL = ImageSpec(1, 1024, 1024, 2)

# name: (program, options, steps, starts)
PROGRAMS = {
    "ar1, shared": (AR1Prior, {"alpha": 0.9}, list(range(8))),
    "ar1, spread": (AR1Prior, {"alpha": "0.5:0.95", "length": 4}, [0, 2, 4, 6]),
    "ar1, solved": (AR1Prior, {"rate_nats": 7.0, "length": 2}, [0, 4]),
    "ar1, learned": (LearnedAR1Prior, {"floor_nats": 7.0}, list(range(8))),
    "standard_normal": (StandardNormalPrior, {"length": 1}, [0]),
    "ar": (ARPrior, {"pacf": (0.8, 0.3, -0.2)}, list(range(8))),
    "lattice": (LatticePrior, {"rows": 2, "columns": 3, "alpha": "0.5:0.9"}, [0, 0, 0, 4, 4, 4]),
    "lattice, solved": (LatticePrior, {"rows": 4, "columns": 2, "rate_nats": 7.0}, [0, 0, 2, 2, 4, 4, 6, 6]),
    "matern": (MaternPrior, {"smoothness": "5/2", "length_scale": 2.0, "length": 4}, [0, 2, 4, 6]),
    "matern, solved": (MaternPrior, {"rate_nats": 7.0}, list(range(8))),
}


@pytest.fixture(params=PROGRAMS.values(), ids=PROGRAMS.keys())
def case(request: pytest.FixtureRequest) -> tuple[type, dict, list[int]]:
    return request.param


def test_programs_are_priors_in_a_plate(case: tuple[type, dict, list[int]]) -> None:
    program, options, starts = case
    prior = program(SPEC, dims=3, **options)

    def model() -> Tensor:
        with pyro.plate("data", 5):
            return pyro.sample("z", prior())

    trace = pyro.poutine.trace(model).get_trace()
    assert prior().event_shape == (len(starts), 3)
    assert prior.starts.tolist() == starts
    assert trace.nodes["z"]["value"].shape == (5, len(starts), 3)
    assert trace.nodes["z"]["value"].dtype == torch.float32
    # The plate keeps the class, with which the closed forms go.
    assert type(trace.nodes["z"]["fn"]) in (GaussianAR1, GaussianSequence)


def test_programs_have_unit_marginals_and_closed_forms(case: tuple[type, dict, list[int]]) -> None:
    program, options, _ = case
    p = program(SPEC, dims=3, **options)()
    torch.testing.assert_close(p.variance, torch.ones_like(p.variance), rtol=1e-5, atol=0)
    assert (p.mean == 0).all()
    delta = committed_rate(p)
    for blocks in (None, 1, p.event_shape[0]):
        best = minimising_posterior(p, blocks)
        assert kl_divergence(best, p).item() == pytest.approx(committed_rate(p, blocks).item(), rel=1e-5, abs=1e-5)
    if "rate_nats" in options:
        assert delta.item() == pytest.approx(options["rate_nats"], rel=1e-5)


def test_programs_move_in_type_and_through_a_state_dict(case: tuple[type, dict, list[int]]) -> None:
    program, options, _ = case
    prior, other = program(SPEC, dims=3, **options), program(SPEC, dims=3, **options)
    for value in other.state_dict().values():
        value.mul_(0) if value.is_floating_point() else value.fill_(1)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.starts, prior.starts)
    assert torch.equal(other().variance, prior().variance)
    assert committed_rate(other()) == committed_rate(prior())
    assert prior.double()().sample().dtype == torch.float64


# --- each is the process that it claims to be ---


def covariance(p: GaussianSequence) -> Tensor:
    return p.scale_tril @ p.scale_tril.mT


@pytest.mark.parametrize(
    "prior",
    [
        ARPrior(SPEC, dims=2, pacf=(0.7,)),
        MaternPrior(SPEC, dims=2, smoothness="1/2", length_scale=-1 / math.log(0.7)),
        LatticePrior(SPEC, dims=2, rows=8, columns=1, alpha=0.7),
        LatticePrior(ImageSpec(1, 1, 8, 2), dims=2, rows=1, columns=8, alpha=0.7),
    ],
    ids=["ar of order one", "matern 1/2", "lattice of one column", "lattice of one row"],
)
def test_four_roads_to_ar1(prior: nn.Module) -> None:
    p, chain = prior(), GaussianAR1(torch.tensor([0.7, 0.7]), 8)
    z = torch.randn(5, 8, 2)
    torch.testing.assert_close(p.log_prob(z), chain.log_prob(z), rtol=1e-5, atol=0)
    torch.testing.assert_close(committed_rate(p), committed_rate(chain), rtol=1e-5, atol=0)


def test_standard_normal() -> None:
    p = StandardNormalPrior(SPEC, dims=3)()
    z = torch.randn(5, 8, 3)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(p.log_prob(z), normal.log_prob(z).sum((-2, -1)))
    assert committed_rate(p) == 0
    assert kl_divergence(minimising_posterior(p), p) == 0
    assert (minimising_posterior(p).stddev == 1).all()


@pytest.mark.parametrize("pacf", [(0.5,), (-0.9, 0.4), (0.8, 0.3, -0.6, 0.1), tuple([0.3] * 20)])
def test_partial_autocorrelations_are_those_given(pacf: tuple[float, ...]) -> None:
    """By their definition: −Λ_0k / √(Λ_00 Λ_kk) of k + 1 neighbouring steps; 0 beyond the order."""
    matrix = covariance(ARPrior(SPEC, dims=1, pacf=pacf).double()())[0]
    for k in range(1, len(matrix)):
        diagonal = matrix.diagonal(k)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), rtol=0, atol=1e-6)  # stationary
        precision = matrix[: k + 1, : k + 1].inverse()
        partial = -precision[0, k] / (precision[0, 0] * precision[k, k]).sqrt()
        assert partial.item() == pytest.approx(pacf[k - 1] if k <= len(pacf) else 0.0, abs=1e-5)


def test_the_lattice_is_flattened_row_major() -> None:
    prior = LatticePrior(SPEC, dims=2, rows=2, columns=3, alpha="0.5,-0.9")
    matrix_dnn = covariance(prior())
    assert prior.columns == 3
    for k, alpha in enumerate([0.5, -0.9]):
        for s in range(6):
            for t in range(6):
                expected = alpha ** abs(s // 3 - t // 3) * alpha ** abs(s % 3 - t % 3)
                assert matrix_dnn[k, s, t].item() == pytest.approx(expected, abs=1e-6)


def test_a_lattice_commits_more_than_a_chain() -> None:
    square = ImageSpec(1, 8, 8, 17)
    lattice = committed_rate(LatticePrior(square, dims=1, rows=8, columns=8, alpha=0.9)()).item()
    assert lattice == pytest.approx(41.77, abs=5e-3)
    assert ar1_committed_rate(0.9, 64).item() == pytest.approx(19.22, abs=5e-3)


@pytest.mark.parametrize("smoothness", ["1/2", "3/2", "5/2"])
@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0, 20.0])
def test_matern_scales_for_rates(smoothness: str, rate: float) -> None:
    p = MaternPrior(SPEC, dims=8, smoothness=smoothness, rate_nats=rate)()
    assert committed_rate(p).item() == pytest.approx(rate, rel=1e-4, abs=0)


# --- the learned prior and its floor ---


def learned(excess: float, shares: list[float], **options: object) -> LearnedAR1Prior:
    prior = LearnedAR1Prior(SPEC, dims=len(shares), **options)
    with torch.no_grad():
        prior.excess.fill_(excess)
        prior.shares.copy_(torch.tensor(shares))
    return prior


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("floor", [0.5, 8.0, 20.0])
def test_no_parameters_commit_less_than_the_floor(floor: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for excess in (-200.0, -20.0, 0.0, 3.0):
        for width in (0.0, 0.3, 0.6):
            shares = (width * torch.randn(8, generator=generator)).tolist()
            prior = learned(excess, shares, floor_nats=floor).to(dtype)
            rate = committed_rate(prior()).item()
            # float32 is rounded up, float64 as it comes. Up is 2⁻²⁴ of α at most, which is .01 nats where one dimension
            # is to commit 8 nats over these 8 steps.
            assert rate >= floor * (1 if dtype == torch.float32 else 1 - 1e-10)
            assert rate == pytest.approx(prior.rate_nats.item(), rel=2e-2)
            assert prior.rate_nats.item() == pytest.approx(floor + math.log1p(math.exp(excess)), rel=1e-9)
            best = minimising_posterior(prior())
            assert kl_divergence(best, prior()).item() == pytest.approx(rate, rel=1e-4)


def test_shares_are_what_dimensions_commit() -> None:
    prior = learned(0.0, [0.0, 1.0, -2.0], floor_nats=5.0).double()
    each = ar1_committed_rate(prior.alpha.unsqueeze(-1), 8)
    torch.testing.assert_close(each, prior.rate_nats * prior.shares.softmax(0), rtol=1e-10, atol=0)


def test_gradients_reach_the_rate_and_the_shares() -> None:
    prior = learned(-0.3, [0.2, 0.0, -0.4], floor_nats=5.0).double()
    z = torch.randn(8, 3, dtype=torch.float64)
    excess, shares = prior.excess.detach().clone(), prior.shares.detach().clone()

    def log_prob(excess: Tensor, shares: Tensor) -> Tensor:
        parameters = {"excess": excess, "shares": shares}
        return torch.func.functional_call(prior, parameters).log_prob(z)

    assert torch.autograd.gradcheck(log_prob, (excess.requires_grad_(), shares.requires_grad_()))


class PriorAlone(nn.Module):
    """A model that ends at z."""

    def __init__(self, prior: nn.Module) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, scale: float) -> Tensor:
        return pyro.sample("z", self.prior())


class FixedGuide(nn.Module):
    """The same posterior always, of the scale that is given."""

    def forward(self, scale: float) -> Tensor:
        return pyro.sample("z", pyro.distributions.Normal(torch.zeros(8, 1), scale).to_event(2))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_learned_prior_learns_and_keeps_its_floor(elbo: type) -> None:
    """A posterior far too sure of itself pulls the rate up; one as wide as the prior lets it down, but not through."""
    prior = LearnedAR1Prior(SPEC, dims=1, floor_nats=2.0)
    loss = elbo()(PriorAlone(prior), FixedGuide())
    rates = {}
    for scale, steps in ((0.05, 20), (1.0, 60)):
        optimiser = torch.optim.Adam(prior.parameters(), lr=0.5)
        for _ in range(steps):
            optimiser.zero_grad()
            loss(scale).backward()
            optimiser.step()
            assert committed_rate(prior()).item() >= prior.floor_nats
        rates[scale] = prior.rate_nats.item()
    assert rates[0.05] > 4
    assert 2 <= rates[1.0] < 2.3


# --- mistakes ---

NEAR = 1 - 1e-11
"""An α that float32 rounds to 1."""


@pytest.mark.parametrize(
    ("program", "options", "message", "largest"),
    [
        (AR1Prior, {"alpha": NEAR}, rf"prior\.alpha has {NEAR}, which float32 rounds to 1: .* holds (\S+)", "alpha"),
        (AR1Prior, {"alpha": f"0.5:{NEAR}"}, rf"has {NEAR}, .* holds (\S+) at most", "alpha"),
        (AR1Prior, {"alpha": f"0.5,-{NEAR}"}, rf"has -{NEAR}, which float32 rounds to -1: .* holds (\S+)", "alpha"),
        (AR1Prior, {"rate_nats": 25.0}, r"rate_nats=25 needs .* at most (\S+) nats there", "rate_nats"),
        (LearnedAR1Prior, {"floor_nats": 25.0}, r"floor_nats=25 needs .* floor of (\S+) nats", "floor_nats"),
    ],
)
def test_correlations_that_round_to_1_are_refused_with_the_largest(
    program: Callable, options: dict, message: str, largest: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        program(SPEC, dims=2, **options)
    found = re.search(message, str(caught.value))
    assert found is not None
    p = program(SPEC, dims=2, **{largest: float(found[1])})()  # what is said to be held is
    assert committed_rate(p).item() == pytest.approx(20.1013, rel=1e-3)


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (LatticePrior, {"rows": 4, "columns": 2, "alpha": NEAR}),
        (LatticePrior, {"rows": 4, "columns": 2, "alpha": f"0.5:{NEAR}"}),
        (LatticePrior, {"rows": 4, "columns": 2, "rate_nats": 60.0}),
        (ARPrior, {"pacf": (NEAR, NEAR)}),
        (MaternPrior, {"smoothness": "1/2", "length_scale": 1e8}),
    ],
)
def test_priors_with_a_cholesky_factor_round_no_correlation(
    program: Callable, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = committed_rate(program(SPEC, dims=2, **options)()).item()
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    assert committed_rate(program(SPEC, dims=2, **options)()).item() == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (AR1Prior, {}, "none of prior.alpha and prior.rate_nats"),
        (AR1Prior, {"alpha": 0.5, "rate_nats": 1.0}, "both of prior.alpha and prior.rate_nats"),
        (AR1Prior, {"alpha": 1.0}, "alpha 1 is outside"),
        (AR1Prior, {"alpha": "0.5,nan", "dims": 2}, "alpha nan is outside"),
        (AR1Prior, {"alpha": "much"}, "cannot read alpha 'much'"),
        (AR1Prior, {"alpha": 0.5, "dims": 0}, "dims is 0"),
        (AR1Prior, {"alpha": 0.5, "length": 3}, "prior.length=3 does not divide the 8 positions"),
        (AR1Prior, {"alpha": 0.5, "length": 0}, "prior.length=0 does not divide"),
        (AR1Prior, {"rate_nats": 1e6}, "out of reach"),
        (AR1Prior, {"rate_nats": 1.0, "length": 1}, "length 1 commits no rate"),
        (StandardNormalPrior, {"dims": 0}, "dims is 0"),
        (LearnedAR1Prior, {"dims": 0}, "dims is 0"),
        (LearnedAR1Prior, {"floor_nats": -1.0}, "cannot be committed"),
        (LearnedAR1Prior, {"length": 1}, "length 1 commits no rate"),
        (LearnedAR1Prior, {"floor_nats": 1e4}, "alpha nearer to 1 than float32"),
        (ARPrior, {"pacf": ()}, "pacf is empty"),
        (ARPrior, {"pacf": (0.5, 1.0)}, r"prior.pacf has 1, outside \(-1, 1\)"),
        (ARPrior, {"pacf": (math.nan,)}, "prior.pacf has nan"),
        (ARPrior, {"spec": TALL}, "1024 steps are too many"),
        (LatticePrior, {"rows": 2, "columns": 2}, "none of prior.alpha and prior.rate_nats"),
        (LatticePrior, {"rows": 3, "alpha": 0.5}, "prior.rows=3 does not divide the 8 rows"),
        (LatticePrior, {"columns": 5, "alpha": 0.5}, "prior.columns=5 does not divide the 12 columns"),
        (LatticePrior, {"rows": 0, "alpha": 0.5}, "prior.rows=0 does not divide"),
        (LatticePrior, {"alpha": -1.0}, "alpha -1 is outside"),
        (LatticePrior, {"rate_nats": 1e6}, "out of reach; a lattice of 4 × 4 with d = 8"),
        (LatticePrior, {"rate_nats": 1.0, "rows": 1, "columns": 1}, "length 1 commits no rate"),
        (LatticePrior, {"spec": TALL, "rows": 32, "columns": 32, "alpha": 0.5}, "1024 steps are too many"),
        (MaternPrior, {}, "none of prior.length_scale and prior.rate_nats"),
        (MaternPrior, {"smoothness": "3/1", "length_scale": 1.0}, "unknown prior.smoothness '3/1'; did you mean"),
        (MaternPrior, {"length_scale": -1.0}, "length_scale=-1 is not a length"),
        (MaternPrior, {"length_scale": math.nan}, "length_scale=nan is not a length"),
        (MaternPrior, {"smoothness": "5/2", "length_scale": 1e4}, "all but determine one another"),
        (MaternPrior, {"rate_nats": 1e6}, "out of reach; a Matérn process"),
        (MaternPrior, {"rate_nats": 1.0, "length": 1}, "length 1 commits no rate"),
        (MaternPrior, {"spec": TALL, "length_scale": 1.0}, "1024 steps are too many"),
    ],
)
def test_options_that_do_not_fit(program: Callable, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        program(**{"spec": SPEC, **options})
