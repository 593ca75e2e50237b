"""Series of real numbers: their distribution, the GRU pair over them, files, and runs of them by the commands."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from networks import SPECS, StepsPrior, random_normal, randomise
from scipy import integrate, stats
from torch import Tensor

from pyro_delta import config
from pyro_delta.build import build
from pyro_delta.data.series import SeriesSpec
from pyro_delta.distributions.numbers import AutoregressiveNumbers
from pyro_delta.guides import GRUGuide
from pyro_delta.models import DeltaVAE, GRULikelihood
from pyro_delta.vae import VAE

T, C = 5, 3
NAMES, LOCATION, SCALE = ("a", "b", "c"), (0.5, -2.0, 10.0), (1.0, 0.25, 4.0)
ROUNDED = SeriesSpec(T, NAMES, LOCATION, SCALE, 0.125)
DENSE = SeriesSpec(T, NAMES, LOCATION, SCALE)
KINDS = pytest.mark.parametrize("spec", [ROUNDED, DENSE], ids=["rounded", "density"])
STARTS = {"a step a position": [0, 1, 2, 3, 4], "above zero": [1, 3], "unsorted": [3, 0, 2]}


def series(spec: SeriesSpec, count: int, seed: int = 0) -> Tensor:
    """(count, T, C) around the locations, in double precision, rounded to the resolution."""
    x = random_normal(count, *spec.shape, seed=seed) * torch.tensor(spec.scale) + torch.tensor(spec.location)
    return x if spec.resolution is None else torch.round(x / spec.resolution) * spec.resolution


def pair(spec: SeriesSpec, starts: list[int] = STARTS["above zero"], **options: Any) -> VAE:
    """Model and guide in double precision, at weights that hide nothing."""
    prior = StepsPrior(starts, [0.5, 0.8])
    likelihood = GRULikelihood(spec, prior, hidden=4, **options)
    return randomise(VAE(DeltaVAE(prior, likelihood), GRUGuide(spec, prior, hidden=4)))


def latents(vae: VAE, count: int, seed: int = 0) -> Tensor:
    return random_normal(count, *vae.model.prior().event_shape, seed=seed)


# --- A number ---


class Fixed(torch.nn.Module):
    """A network that says the same of every number."""

    def __init__(self, parameters: Tensor, resolution: float | None) -> None:
        super().__init__()
        self.parameters_p, self.resolution, self.shape = parameters, resolution, (1, 1)

    def forward(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        return self.parameters_p.expand(*x.shape, -1)

    def start(self, z_bnd: Tensor) -> int:
        return len(z_bnd)

    def step(self, state: int, i: int, previous_b: Tensor | None) -> Tensor:
        return self.parameters_p.expand(state, -1)


def number(logits: list[float], means: list[float], log_scales: list[float], resolution: float | None) -> Any:
    """The distribution of one number, of batch shape ()."""
    parameters = torch.tensor([*logits, *means, *log_scales], dtype=torch.float64)
    return AutoregressiveNumbers(Fixed(parameters, resolution), torch.zeros(1, 1, dtype=torch.float64))


MIXTURES = {
    "one": ([0.0], [0.3], [-1.0]),
    "narrow": ([0.0, 1.0], [0.25, -1.3], [-9.0, -5.0]),
    "wide": ([0.0, -2.0, 1.0], [-3.0, 0.1, 2.0], [0.5, -2.0, 1.5]),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_bins_are_differences_of_the_cumulative_distribution_and_sum_to_one(name: str) -> None:
    """By SciPy's logistic; the sum over all bins that hold anything is exhaustive."""
    logits, means, log_scales = MIXTURES[name]
    r = 0.25
    p = number(logits, means, log_scales, r)
    bins = torch.arange(-1200, 1201) * r
    log_p = p.log_prob(bins.double().reshape(-1, 1, 1)) + math.log(r)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    weights = np.exp(logits) / np.exp(logits).sum()
    for x, found in list(zip(bins.tolist(), log_p.tolist()))[1180:1220]:
        edges = [stats.logistic(m, math.exp(s)).cdf([x - r / 2, x + r / 2]) for m, s in zip(means, log_scales)]
        expected = sum(w * (above - below) for w, (below, above) in zip(weights, edges))
        if expected > 1e-6:  # below, the difference cancels, and is no witness
            assert math.exp(found) == pytest.approx(expected, rel=1e-9)
    between = p.log_prob((bins[:50] + 0.1).double().reshape(-1, 1, 1)) + math.log(r)
    torch.testing.assert_close(between, log_p[:50])  # constant over a bin


@pytest.mark.parametrize("name", MIXTURES)
def test_without_a_resolution_it_is_a_density(name: str) -> None:
    logits, means, log_scales = MIXTURES[name]
    dense, fine = number(logits, means, log_scales, None), number(logits, means, log_scales, 1e-7)

    def density(x: float) -> float:
        return dense.log_prob(torch.full((1, 1), x, dtype=torch.float64)).exp().item()

    edges = sorted({m + k * math.exp(s) for m, s in zip(means, log_scales) for k in (-40, -5, 0, 5, 40)})
    total = sum(integrate.quad(density, low, high)[0] for low, high in pairwise(edges))
    assert total == pytest.approx(1, abs=1e-6)
    for x in (-1.3, 0.0, 2.0):
        at = torch.full((1, 1), x, dtype=torch.float64)
        assert fine.log_prob(at).item() == pytest.approx(dense.log_prob(at).item(), rel=1e-3)


@pytest.mark.parametrize("resolution", [None, 1e-3, 1.0])
def test_no_extreme_is_infinite(resolution: float | None) -> None:
    """In single precision, as in training: values and slopes."""
    for mean, log_scale, x in ((0, -7, 1e4), (0, 7, -1e4), (1e4, -7, 0), (0.5, -20, 0.0), (0.5, 10, 0.0)):
        parameters = torch.tensor([0.0, 0.1, mean, -mean, log_scale, log_scale], requires_grad=True)
        p = AutoregressiveNumbers(Fixed(parameters, resolution), torch.zeros(1, 1))
        log_p = p.log_prob(torch.full((1, 1), float(x)))
        (slope,) = torch.autograd.grad(log_p, parameters)
        assert log_p.isfinite()
        assert slope.isfinite().all()


def test_draws_have_the_probabilities_that_are_scored() -> None:
    logits, means, log_scales = MIXTURES["wide"]
    torch.manual_seed(0)
    drawn = number(logits, means, log_scales, 1.0).sample((40_000,)).flatten()
    assert torch.equal(drawn, drawn.round())
    for x in range(-8, 9):
        p = number(logits, means, log_scales, 1.0).log_prob(torch.full((1, 1), float(x))).exp().item()
        share = (drawn == x).double().mean().item()
        assert abs(share - p) < 5 * math.sqrt(p / len(drawn)) + 1e-4
    for value in (0.0, 1.0):  # the ends of noise draw numbers, too
        ends = torch.full((1, 1, 2), value, dtype=torch.float64)
        assert number(logits, means, log_scales, None).sample(uniforms=ends).isfinite().all()


# --- The GRU pair ---


@KINDS
@pytest.mark.parametrize("name", STARTS)
def test_numbers_are_told_what_they_may_be(name: str, spec: SeriesSpec) -> None:
    """Bit for bit; series 1 stands by and must not move at all."""
    vae = pair(spec, STARTS[name])
    assert_causal(vae, spec, series(spec, 2))


def test_the_shipped_preset_is_causal() -> None:
    spec = SPECS["vowels"]
    assert isinstance(spec, SeriesSpec)
    settings = config.load_preset("vowels")
    assert_causal(randomise(build(settings, spec)), spec, series(spec, 2), places=range(0, spec.scored, 37))


def assert_causal(vae: VAE, spec: SeriesSpec, x: Tensor, places: Any = None) -> None:
    starts, z = vae.model.prior.starts, latents(vae, 2)
    rank, position_of = torch.arange(spec.scored), torch.from_numpy(spec.places()).flatten()
    with torch.no_grad():
        p = vae.model.likelihood(z)
        before, posterior = p.parameters_at(x), vae.guide.posterior(x).mean
        for place in range(spec.scored) if places is None else places:
            y = x.clone()
            y[0].view(-1)[place] += 1.0
            moved = (p.parameters_at(y) != before).any(-1).flatten(1)
            assert torch.equal(moved[0], rank > place), f"{place} moved {moved[0].nonzero().flatten().tolist()}"
            assert not moved[1].any()
            moved = (vae.guide.posterior(y).mean != posterior).any(-1)
            assert torch.equal(moved[0], starts <= position_of[place])
            assert not moved[1].any()
        for t, start in enumerate(starts.tolist()):
            other = z.clone()
            other[0, t] += 1.0
            moved = (vae.model.likelihood(other).parameters_at(x) != before).any(-1).flatten(1)
            assert torch.equal(moved[0], position_of >= start)


@KINDS
def test_a_missing_number_is_nothing_to_anybody(spec: SeriesSpec) -> None:
    """Whatever stands in its place, all is the same to the bit, and slopes are finite; a known one is heard."""
    vae, x = pair(spec), series(spec, 3)
    lengths = torch.tensor([5, 3, 4])
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[:, 1, 0] = True
    counted = mask & (torch.arange(T) < lengths[:, None])[..., None]
    z = latents(vae, 3)

    def said(x: Tensor) -> list[Tensor]:
        vae.zero_grad()
        q, p = vae.guide.posterior(x, lengths, mask), vae.model.likelihood(z, lengths, mask)
        (p.log_prob(x).sum() + q.log_prob(z).sum()).backward()
        slopes = [weight.grad for weight in vae.parameters() if weight.grad is not None]
        return [q.mean, q.variance, p.terms(x), p.log_prob(x), p.parameters_at(x), *slopes]

    plain = said(x)
    assert all(part.isfinite().all() for part in plain)
    assert torch.equal(plain[2].reshape(x.shape) != 0, counted)
    for value in (0.0, 1e9, math.nan, math.inf):
        assert all(map(torch.equal, said(torch.where(counted, x, value)), plain))
    other = x.clone()
    other[:, 1, 0] += 1.0
    assert not any(torch.equal(one, two) for one, two in zip(said(other)[:4], plain[:4]))
    drawn = vae.model.likelihood(z, lengths, mask).sample()
    assert torch.equal(~drawn.isnan(), counted)
    assert vae.model.likelihood(z, lengths, mask).expand((2, 3)).log_prob(drawn).isfinite().all()


@KINDS
def test_a_series_is_what_its_length_says(spec: SeriesSpec) -> None:
    """A network of that length has the same weights, but for those of later places."""
    vae, x, length = pair(spec, STARTS["a step a position"]), series(spec, 1), 3
    short_spec = SeriesSpec(length, NAMES, LOCATION, SCALE, spec.resolution)
    short, theirs = pair(short_spec, STARTS["a step a position"][:length]), vae.state_dict()
    sizes = short.state_dict()
    short.load_state_dict({name: theirs[name][tuple(map(slice, values.shape))] for name, values in sizes.items()})
    z, lengths = latents(vae, 1), torch.tensor([length])
    expected = short.model.likelihood(z[:, :length]).log_prob(x[:, :length])
    torch.testing.assert_close(vae.model.likelihood(z, lengths).log_prob(x), expected)
    q, alone = vae.guide.posterior(x, lengths).base_dist, short.guide.posterior(x[:, :length]).base_dist
    torch.testing.assert_close(q.loc[:, :length], alone.loc)
    assert (q.loc[:, length:] == 0).all()
    assert (q.scale[:, length:] == 1).all()


@KINDS
def test_cached_draws_are_naive_ones(spec: SeriesSpec) -> None:
    """Number by number from whole passes, with the same noise: all, and around what is kept or missing."""
    vae = pair(spec)
    z, x_kept = latents(vae, 4), series(spec, 4)
    generator = torch.Generator().manual_seed(2)
    kept, mask = (torch.rand(x_kept.shape, generator=generator) < part for part in (0.4, 0.7))
    lengths = torch.tensor([1, 5, 3, 2])
    for keep, given in ((None, (None, None)), ((x_kept, kept), (None, None)), ((x_kept, kept), (lengths, mask))):
        p = vae.model.likelihood(z, *given)
        uniforms = p.noise(4)
        assert uniforms.shape == (4, T, C, 2)
        x = torch.full((4, T * C), math.nan, dtype=torch.float64)
        counted = torch.ones(x.shape, dtype=torch.bool) if p.counted is None else p.counted.flatten(1)
        for i in range(T * C):
            parameters_b = p.parameters_at(x.reshape(4, T, C)).flatten(1, 2)[:, i]
            logits, mean, log_scale = parameters_b.chunk(3, -1)
            u, v = uniforms.flatten(1, 2)[:, i].unbind(-1)
            edges = logits.softmax(-1).cumsum(-1)
            pick = torch.searchsorted(edges, u[:, None].contiguous(), right=True).clamp_max(4)
            drawn = (mean + log_scale.exp() * torch.log(v / (1 - v))[:, None]).gather(1, pick)[:, 0]
            if spec.resolution is not None:
                drawn = torch.round(drawn / spec.resolution) * spec.resolution
            if keep is not None:
                drawn = torch.where(kept.flatten(1)[:, i], x_kept.flatten(1)[:, i], drawn)
            x[:, i] = torch.where(counted[:, i], drawn, math.nan)
        found = p.sample(uniforms=uniforms, keep=keep)
        torch.testing.assert_close(found, x.reshape(4, T, C), equal_nan=True)
    assert len(found[found.isfinite()].unique()) > 10


def test_the_last_number_that_is_known_is_carried() -> None:
    from pyro_delta.nn.sequences.tables import last_known

    nan = math.nan
    x_btk = torch.tensor([[[1.0, nan], [nan, nan], [3.0, 5.0], [4.0, nan], [nan, nan]]])
    assert last_known(x_btk).tolist() == [[[0, 0], [1, 0], [1, 0], [3, 5], [4, 5]]]


# --- The twin ---


@KINDS
def test_both_backends_are_one(spec: SeriesSpec) -> None:
    """The same numbers of the same weights: densities, gradients and draws, with lengths, and with what is missing."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("flax")
    from pyro_delta.data import Split
    from pyro_delta.twin import build as twins
    from pyro_delta.twin.crosscheck import crosscheck
    from pyro_delta.twin.weights import load_weights

    sections = {
        "prior": {"program": "ar1", "dims": 2, "alpha": "0.3:0.9"},
        "likelihood": {"program": "gru", "hidden": 4},
        "guide": {"program": "gru", "hidden": 5},
    }
    settings = config.validate({"data": {}, "training": {"steps": 1}, **sections})
    vae = randomise(build(settings, spec))
    lengths, x = torch.tensor([5, 2, 4]), series(spec, 3)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    given = [{}, {"lengths": lengths}, {"lengths": lengths, "mask": mask}]
    with jax.enable_x64(True):
        for extras in given:
            split = Split(x, extras=extras)
            twin = twins.build(settings, spec, example=split.batch())
            found = crosscheck(vae, twin, split)
            assert found.failure is None
            assert max(term.difference for term in found.terms) < 1e-12
            load_weights(twin, vae.state_dict())
            z = latents(vae, 3)
            p = vae.model.likelihood(z, **extras)
            q = twin.model.likelihood(
                jax.numpy.asarray(z.numpy()), **{name: jax.numpy.asarray(v.numpy()) for name, v in extras.items()}
            )
            uniforms = p.noise(3)
            drawn = np.asarray(q.from_uniforms(jax.numpy.asarray(uniforms.numpy())))
            np.testing.assert_allclose(drawn, p.sample(uniforms=uniforms).numpy(), rtol=1e-9, atol=1e-9)
            assert np.isfinite(np.asarray(q.expand((2, 3)).log_prob(jax.numpy.asarray(drawn)))).all()
