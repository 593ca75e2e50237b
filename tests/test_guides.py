"""The families of guides: their floors, their starts, and what each step averages and sees."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from networks import StepsPrior, random_images, randomise
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.data.series import SeriesSpec
from pyro_delta.distributions import GaussianSequence
from pyro_delta.errors import UserError
from pyro_delta.guides import (
    AntiCausalGuide,
    BidirectionalGuide,
    ContourGuide,
    GRUGuide,
    SpectralGuide,
    StructuredGuide,
    TransformerGuide,
    regions,
)
from pyro_delta.models import AR1Prior, LatticePrior, StandardNormalPrior
from pyro_delta.nn.precision import set_bf16

SPEC = ImageSpec(1, 8, 6, 5)
NETWORK = {"features": 6, "channels": (6, 4), "row_blocks": (1, 1), "pixel_blocks": 1}
GUIDES = [AntiCausalGuide, BidirectionalGuide, StructuredGuide]


@pytest.mark.parametrize("make", GUIDES)
def test_a_guide_that_says_nothing_stands_at_its_floor(make: type) -> None:
    prior = AR1Prior(SPEC, dims=2, alpha="0.6,0.9").double()
    guide = make(SPEC, prior, **NETWORK).double()
    guide.start_from(random_images(SPEC, (20,)))
    with torch.no_grad():
        guide.encoder.out.weight.zero_()
        guide.encoder.out.bias.zero_()
        q, p = guide.posterior(random_images(SPEC, (3,))), prior()
        claim = getattr(guide, "committed_rate", None)
        delta = claim(p) if claim else StructuredGuide(SPEC, prior, block=1, **NETWORK).committed_rate(p)
    torch.testing.assert_close(kl_divergence(q, p), torch.full((3,), delta).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", GUIDES)
def test_no_weights_pass_below_the_floor(make: type) -> None:
    prior = AR1Prior(SPEC, dims=2, alpha=0.8).double()
    p = prior()
    for seed in range(10):
        guide = randomise(make(SPEC, prior, **NETWORK), seed)
        claim = getattr(guide, "committed_rate", None)
        delta = claim(p) if claim else StructuredGuide(SPEC, prior, block=1, **NETWORK).committed_rate(p)
        assert (kl_divergence(guide.posterior(random_images(SPEC, (5,), seed)), p) > delta).all()


# --- blocks ---


@pytest.mark.parametrize(("block", "delta"), [(1, 9.73), (2, 7.15), (4, 4.53), (32, 0.0)])
def test_longer_blocks_commit_less(block: int, delta: float) -> None:
    spec = ImageSpec(1, 32, 2, 2)
    prior = AR1Prior(spec, dims=1, alpha=0.9)
    guide = StructuredGuide(spec, prior, block=block, **NETWORK)
    assert guide.committed_rate(prior()) == pytest.approx(delta, abs=6e-3)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8])
def test_a_structured_posterior_correlates_within_blocks_alone(block: int) -> None:
    guide = randomise(StructuredGuide(SPEC, AR1Prior(SPEC, dims=2, alpha=0.7), block=block, **NETWORK))
    q = guide.posterior(random_images(SPEC, (4,)))
    assert type(q) is GaussianSequence
    covariance = q.scale_tril @ q.scale_tril.mT
    steps = torch.arange(8)
    together = steps[:, None] // block == steps // block
    assert ((covariance != 0) == together).all()
    assert (q.scale_tril.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("block", [0, 9, -1])
def test_blocks_that_do_not_fit(block: int) -> None:
    with pytest.raises(UserError, match=rf"guide\.block={block} does not fit 8 latent steps"):
        StructuredGuide(SPEC, AR1Prior(SPEC, dims=1, alpha=0.5), block=block, **NETWORK)


# --- a floor in every coordinate ---


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("delta", [1e-6, 0.01, 0.08, 1.0, 10.0])
def test_the_floor_of_the_contour_holds_for_every_image(delta: float, bf16: bool) -> None:
    prior = StandardNormalPrior(SPEC, dims=2)
    guide = ContourGuide(SPEC, prior, rate_nats=delta * 16, **NETWORK)
    assert guide.committed_rate(prior()) == delta * 16
    set_bf16(guide, bf16)
    least = math.inf
    for seed in range(10):
        randomise(guide, seed).float()
        q = guide.posterior(random_images(SPEC, (8,), seed))
        assert q.mean.dtype == q.stddev.dtype == torch.float32
        mean, variance = q.mean.double(), q.stddev.double().square()
        rate = 0.5 * (mean.square() + variance - 1 - variance.log()).sum((-1, -2))
        least = min(least, rate.min().item())
    assert delta * 16 <= least
    assert least < delta * 16 * 1.02 or delta < 0.1, "no weights came near the floor: the test would miss a broken one"


def test_both_numbers_of_the_contour_start_from_data() -> None:
    guide = ContourGuide(SPEC, StandardNormalPrior(SPEC, dims=2), **NETWORK)
    x = random_images(SPEC, (64,))
    guide.start_from(x)
    for numbers in guide.encode(x):
        flat = numbers.detach().flatten(0, 1)
        torch.testing.assert_close(flat.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(flat.std(0, correction=0), torch.ones(2), atol=1e-3, rtol=0)


SEQUENCE_GUIDES: dict[str, tuple[Callable[..., Any], Any]] = {
    "gru": (partial(GRUGuide, hidden=4), TokenSpec(8, 5)),
    "transformer": (partial(TransformerGuide, hidden=8, layers=1, heads=2), TokenSpec(8, 5)),
    "series": (partial(GRUGuide, hidden=4), SeriesSpec(8, ("a", "b"), (0.0, 0.0), (1.0, 1.0), None)),
    "spectral": (partial(SpectralGuide, hidden=4), SoundSpec(8, samples=6)),
}


@pytest.mark.parametrize("name", SEQUENCE_GUIDES)
@pytest.mark.parametrize("delta", [0.01, 1.0, 10.0])
def test_the_floor_of_a_sequence_beyond_a_contour_is_that_of_its_length(name: str, delta: float) -> None:
    """With any weights, and by the definition of the KL; what is behind the end costs nothing."""
    made, spec = SEQUENCE_GUIDES[name]
    prior = StandardNormalPrior(spec, dims=2, length=4)
    guide, lengths = made(spec, prior, rate_nats=delta * 8), torch.tensor([1, 2, 3, 5, 8])
    steps = torch.tensor([1, 1, 2, 3, 4])
    expected = 2 * delta * steps.double()
    torch.testing.assert_close(guide.committed_rate(prior(lengths)), expected)
    assert guide.committed_rate(prior()) == delta * 8
    least = torch.full((5,), math.inf, dtype=torch.float64)
    for seed in range(10):
        randomise(guide, seed).float()
        q = guide.posterior(random_images(spec, (5,), seed), lengths)
        mean, variance = q.mean.double(), q.stddev.double().square()
        rate = 0.5 * (mean.square() + variance - 1 - variance.log()).sum((-1, -2))
        torch.testing.assert_close(kl_divergence(q, prior(lengths)).double(), rate, rtol=1e-4, atol=1e-5)
        behind = torch.arange(4) >= steps[:, None]
        assert not q.mean[behind].any()
        assert (q.stddev[behind] == 1).all()
        least = torch.minimum(least, rate.detach())
    assert (least >= expected).all()
    assert (least < expected * 1.5).any() or delta < 0.1, "no weights came near the floor"


@pytest.mark.parametrize("name", SEQUENCE_GUIDES)
def test_both_numbers_of_a_sequence_beyond_a_contour_start_from_data(name: str) -> None:
    made, spec = SEQUENCE_GUIDES[name]
    guide = made(spec, StandardNormalPrior(spec, dims=2, length=4), rate_nats=2.0)
    x, lengths = random_images(spec, (64,)), torch.arange(64) % 8 + 1
    guide.start_from(x, lengths)
    inside = torch.arange(4) * 2 < lengths[:, None]
    numbers_ko = guide.encoder(guide._known(x, lengths, None), lengths)[inside].detach()
    torch.testing.assert_close(numbers_ko.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(numbers_ko.std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", SEQUENCE_GUIDES)
@pytest.mark.parametrize("rate", [0.0, 161.0, math.nan])
def test_rates_that_no_sequence_can_commit(name: str, rate: float) -> None:
    made, spec = SEQUENCE_GUIDES[name]
    with pytest.raises(UserError, match="cannot be committed; give a rate above 0, at most 160 nats"):
        made(spec, StandardNormalPrior(spec, dims=2), rate_nats=rate)
    with pytest.raises(UserError, match="needs a standard normal prior, not GaussianAR1; choose standard_normal"):
        made(spec, AR1Prior(spec, dims=2, alpha=0.3), rate_nats=2.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, 81.0, math.inf, math.nan])
def test_rates_that_cannot_be_committed(rate: float) -> None:
    with pytest.raises(UserError, match="cannot be committed; give a rate above 0, at most 80 nats"):
        ContourGuide(SPEC, StandardNormalPrior(SPEC, dims=1), rate_nats=rate, **NETWORK)


def test_the_contour_needs_a_standard_normal_prior() -> None:
    prior = AR1Prior(SPEC, dims=1, alpha=0.3)
    with pytest.raises(UserError, match="needs a standard normal prior, not GaussianAR1"):
        ContourGuide(SPEC, prior, **NETWORK)
    guide = ContourGuide(SPEC, StandardNormalPrior(SPEC, dims=1), **NETWORK)
    with pytest.raises(UserError, match="standard normal"):
        guide.committed_rate(prior())


# --- what a step averages and sees ---


@pytest.mark.parametrize(
    ("starts", "columns", "expected"),
    [
        ([0, 2], 1, [(0, 2, 0, 6), (2, 4, 0, 6)]),
        ([0, 0, 2, 2], 2, [(0, 2, 0, 3), (0, 2, 3, 6), (2, 4, 0, 3), (2, 4, 3, 6)]),
        ([1], 1, [(1, 4, 0, 6)]),
    ],
)
def test_regions(starts: list[int], columns: int, expected: list[tuple[int, ...]]) -> None:
    found = regions(torch.tensor(starts), columns, 4, 6)
    for region, (top, bottom, left, right) in zip(found, expected, strict=True):
        mask = torch.zeros(4, 6, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        assert torch.equal(region, mask)


def seen_rows(guide: AntiCausalGuide, spec: ImageSpec) -> Tensor:
    """(n, H): which rows each step sees, of its own image; and that it sees no other image."""
    x = random_images(spec, (2,)).double().requires_grad_()
    q = guide.posterior(x)
    rows = []
    for t in range(q.event_shape[0]):
        (grad,) = torch.autograd.grad(q.mean[0, t].sum() + q.stddev[0, t].sum(), x, retain_graph=True)
        assert not (grad[1] != 0).any()
        rows.append((grad[0] != 0).any(0).any(1))
    return torch.stack(rows)


@pytest.mark.parametrize("training", [True, False])
def test_a_bidirectional_guide_sees_everything(training: bool) -> None:
    network = NETWORK | {"channels": (6, 4, 4), "row_blocks": (1, 1, 1)}
    guide = randomise(BidirectionalGuide(SPEC, AR1Prior(SPEC, dims=2, alpha=0.5), **network)).train(training)
    assert guide.causality == "none"
    assert seen_rows(guide, SPEC).all()


def test_blocks_of_a_lattice_see_their_rows_and_all_below() -> None:
    prior = LatticePrior(SPEC, dims=1, rows=4, columns=3, alpha=0.5)
    guide = randomise(AntiCausalGuide(SPEC, prior, **NETWORK))
    assert (seen_rows(guide, SPEC) == (torch.arange(8) >= prior.starts[:, None])).all()


def test_steps_of_the_same_rows_may_say_different_things() -> None:
    """Steps that share a region have scales and shifts of their own."""
    guide = randomise(AntiCausalGuide(SPEC, StepsPrior([0, 0, 4], [0.5]), **NETWORK))
    mean = guide.posterior(random_images(SPEC, (3,))).mean
    assert not torch.equal(mean[:, 0], mean[:, 1])
