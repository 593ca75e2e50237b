"""Floors of posteriors with a fixed shape: against quadrature, dense algebra and enumeration; and how fixed is seen."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from scipy import integrate
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from pyro_delta import diagnose
from pyro_delta.commitment import AT_LEAST, EXACTLY, IN_THE_MEAN, Commitment, commitment
from pyro_delta.diagnostics.trace import committed, moved
from pyro_delta.distributions import GaussianAR1, GaussianSequence, PowerSpherical, SphereUniform, VonMisesFisher
from pyro_delta.errors import UserError
from pyro_delta.families import family_rate
from pyro_delta.rate import committed_rate
from pyro_delta.vae import VAE

F64 = torch.float64


def unit(*shape: int) -> Tensor:
    return SphereUniform(shape[-1], dtype=F64).sample(shape[:-1])


# --- The rates ---


@pytest.mark.parametrize(
    ("cls", "dims", "kappa", "nats"),
    [
        (PowerSpherical, 8, 12.0, 1.96436706),
        (VonMisesFisher, 3, 10.0, 1.9957323),
        (PowerSpherical, 3, 5.0, None),
        (VonMisesFisher, 8, 4.0, None),
    ],
)
def test_a_direction_of_fixed_concentration(cls: type, dims: int, kappa: float, nats: float | None) -> None:
    """By quadrature over the cosine t, whose uniform density is proportional to (1 − t²)^((d−3)/2)."""

    def measure(t: float) -> float:
        return (1 - t * t) ** ((dims - 3) / 2)

    def shape(t: float) -> float:
        return (1 + t) ** kappa if cls is PowerSpherical else math.exp(kappa * (t - 1))

    area = integrate.quad(measure, -1, 1)[0]
    total = integrate.quad(lambda t: shape(t) * measure(t), -1, 1)[0]
    ratio = area / total
    mean = integrate.quad(lambda t: shape(t) * measure(t) * math.log(ratio * shape(t)) if t > -1 else 0.0, -1, 1)[0]
    q, p = cls(unit(4, dims), torch.tensor(kappa, dtype=F64)), SphereUniform(dims, dtype=F64)
    found = committed_rate(p, family=q)
    assert found.shape == (4,)
    torch.testing.assert_close(found, torch.full((4,), mean / total, dtype=F64), rtol=1e-7, atol=1e-9)
    if nats is not None:
        assert found[0].item() == pytest.approx(nats, abs=1e-7)
    several = committed_rate(p.expand((4,)).to_event(1), family=q.to_event(1))
    assert several.item() == pytest.approx(4 * mean / total, rel=1e-7)


COVARIANCE = torch.tensor([[2.0, 0.8, 0.1], [0.8, 1.0, -0.3], [0.1, -0.3, 0.5]], dtype=F64)
EYE = torch.eye(3, dtype=F64)
SCALE = torch.tensor([0.5, 1.3, 0.2], dtype=F64)
ALPHA = torch.tensor([0.5, -0.9], dtype=F64)


class Own(dist.MultivariateNormal):
    pass


def ar1_covariance(alpha: Tensor) -> Tensor:
    return alpha ** (torch.arange(3)[:, None] - torch.arange(3)).abs()


@pytest.mark.parametrize(
    ("prior", "scale", "covariance", "by"),
    [
        (dist.Normal(torch.zeros(3, dtype=F64), 1.0).to_event(1), SCALE.clone().fill_(0.5), EYE, "type"),
        (dist.Normal(torch.ones(3, dtype=F64), 3.0).to_event(1), SCALE, 9 * EYE, "type"),
        (dist.MultivariateNormal(torch.ones(3, dtype=F64), COVARIANCE), SCALE, COVARIANCE, "type"),
        (Own(torch.ones(3, dtype=F64), COVARIANCE), SCALE, COVARIANCE, "probing"),
        (GaussianAR1(ALPHA, 3), SCALE[:, None].expand(3, 2), torch.stack([ar1_covariance(a) for a in ALPHA]), "type"),
        (GaussianSequence(torch.ones(3, 1, dtype=F64), torch.linalg.cholesky(COVARIANCE)[None]), SCALE[:, None],
         COVARIANCE, "type"),
    ],
)  # fmt: skip
def test_a_gaussian_of_fixed_scale(prior: Distribution, scale: Tensor, covariance: Tensor, by: str) -> None:
    """½ (tr ΛS − N − ln det ΛS), and no mean of 1000 has less."""
    columns = scale if scale.dim() > 1 else scale[:, None]
    product = torch.linalg.inv(covariance) @ columns.mT.square().diag_embed()
    expected = 0.5 * (product.diagonal(dim1=-2, dim2=-1).sum(-1) - 3 - torch.logdet(product)).sum()
    found = family_rate(dist.Normal(torch.zeros_like(scale), scale).to_event(scale.dim()), prior)
    assert found.nats.item() == pytest.approx(expected.item(), rel=1e-9)
    assert found.by == by
    assert (found.cap_nats is None) == (by == "type")
    if type(prior) is not Own:
        means = prior.mean + torch.randn(1000, *scale.shape, dtype=F64)
        joint = dist.MultivariateNormal(means, scale_tril=scale.diag_embed()) if scale.dim() == 1 else None
        q = joint if type(prior) is dist.MultivariateNormal else dist.Normal(means, scale).to_event(scale.dim())
        assert (kl_divergence(q, prior) >= found.nats - 1e-9).all()


def test_a_quarter_of_the_variance_commits_a_third_of_a_nat() -> None:
    q = dist.Normal(torch.zeros(1), 0.5).to_event(1)
    assert committed_rate(dist.Normal(torch.zeros(1), 1.0).to_event(1), family=q).item() == pytest.approx(
        0.5 * (0.25 - 1 - math.log(0.25)), rel=1e-9
    )


LEVELS = (8, 5, 3)
SCALARS = dist.Categorical(torch.tensor([[1.0] * levels + [0.0] * (8 - levels) for levels in LEVELS])).to_event(1)
ONE_HOT = dist.OneHotCategorical(torch.ones(4, 6)).to_event(1)


def delta(value: Tensor, events: int, log_density: float = 0.0) -> dist.Delta:
    return dist.Delta(value, torch.tensor(log_density), event_dim=events)


@pytest.mark.parametrize(
    ("q", "p", "nats"),
    [
        (delta(torch.eye(6)[[0, 1, 5, 5]], 2), ONE_HOT, 4 * math.log(6)),
        (delta(torch.tensor([3, 0, 2]), 1), SCALARS, sum(map(math.log, LEVELS))),
        (delta(torch.tensor([7.0, 4.0, 0.0]), 1), SCALARS, math.log(120)),
        (delta(torch.tensor(2), 0), dist.Categorical(logits=torch.zeros(7)), math.log(7)),
        (delta(torch.tensor([2, 1]), 1), dist.Categorical(torch.ones(7)).expand((2,)).to_event(1), 2 * math.log(7)),
    ],
)
def test_a_code(q: dist.Delta, p: Distribution, nats: float) -> None:
    """By the density: all probability of the posterior is where it was put."""
    assert committed_rate(p, family=q).item() == pytest.approx(nats, rel=1e-9)
    assert -p.log_prob(q.v).item() == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (delta(torch.tensor([3, 0, 2]), 1, 1.0), SCALARS),  # not normalised
        (delta(torch.tensor([0]), 1), dist.Categorical(torch.tensor([[0.2, 0.8]])).to_event(1)),  # not uniform
        (dist.OneHotCategorical(torch.eye(6)[:4]).to_event(1), ONE_HOT),  # it may be soft elsewhere
        (dist.OneHotCategoricalStraightThrough(torch.eye(6)[:4]).to_event(1), ONE_HOT),
        (dist.Categorical(torch.eye(8)[:3]).to_event(1), SCALARS),
        (dist.RelaxedOneHotCategorical(torch.tensor(0.1), torch.ones(4, 6)).to_event(1), ONE_HOT),
        (delta(torch.eye(6)[:4], 2), dist.OneHotCategorical(torch.eye(6)[:4] + 0.1).to_event(1)),  # not uniform
        (PowerSpherical(unit(4), 2.0), dist.Normal(torch.zeros(4), 1.0).to_event(1)),
        (dist.Laplace(torch.zeros(4), 2.0).to_event(1), dist.Normal(torch.zeros(4), 1.0).to_event(1)),
        (type("Mine", (PowerSpherical,), {})(unit(4), 2.0), SphereUniform(4)),
        (PowerSpherical(unit(4), 2.0), type("Mine", (SphereUniform,), {})(4)),
    ],
)
def test_pairs_without_a_rate(q: Distribution, p: Distribution) -> None:
    with pytest.raises(UserError, match="no committed rate is known of"):
        family_rate(q, p)
    assert commitment({"z": (q, p)}, learns=False, others=lambda: [{"z": q}]).nats is None


def test_a_family_or_blocks() -> None:
    with pytest.raises(UserError, match="of a family or of blocks"):
        committed_rate(SphereUniform(3), 1, family=PowerSpherical(unit(3), 2.0))


# --- What counts as fixed ---

STANDARD = dist.Normal(torch.zeros(3), 1.0).to_event(1)


def normal(scale: Any = 0.5) -> Distribution:
    return dist.Normal(torch.randn(3), scale).to_event(1)


def sphere(kappa: float = 12.0) -> Distribution:
    return PowerSpherical(unit(8).float(), kappa)


FIXED = 3 * 0.5 * (0.25 - 1 - math.log(0.25))


@pytest.mark.parametrize(
    ("q", "p", "others", "nats", "guarantee", "known_by"),
    [
        (normal(), STANDARD, [normal(), normal()], FIXED, AT_LEAST,
         "the fixed scale of Independent(Normal) against Independent(Normal)"),
        (normal(), STANDARD, [], 0.0, AT_LEAST, "the independence of Independent(Normal)"),
        (normal(), STANDARD, [normal(), normal(0.5000001)], 0.0, AT_LEAST, "the independence of Independent(Normal)"),
        (normal(torch.full((3,), 0.5, requires_grad=True)), STANDARD, [normal()], 0.0, AT_LEAST,
         "the independence of Independent(Normal)"),
        (sphere(), SphereUniform(8), [sphere(), sphere()], 1.96436706, EXACTLY,
         "the fixed concentration of PowerSpherical against SphereUniform"),
        (sphere(), SphereUniform(8), [], None, None,
         "posteriors of 'z' are PowerSpherical, of which no fixed concentration is seen against SphereUniform"),
        (sphere(), SphereUniform(8), [sphere(), sphere(12.00001)], None, None,
         "posteriors of 'z' are PowerSpherical, of which no fixed concentration is seen against SphereUniform"),
        (sphere(), SphereUniform(8), [VonMisesFisher(unit(8).float(), 12.0)], None, None,
         "posteriors of 'z' are PowerSpherical, of which no fixed concentration is seen against SphereUniform"),
        (delta(torch.tensor([1, 2, 0]), 1), SCALARS, [delta(torch.tensor([3, 3, 0]), 1)], math.log(120), EXACTLY,
         "the point mass of Delta against Independent(Categorical)"),
    ],
)  # fmt: skip
def test_what_is_seen_as_fixed(
    q: Distribution, p: Distribution, others: list[Distribution], nats: float | None, guarantee: str, known_by: str
) -> None:
    known = commitment({"z": (q, p)}, learns=False, others=lambda: [{"z": other} for other in others])
    assert known.nats == (None if nats is None else pytest.approx(nats, rel=1e-6))
    assert (known.guarantee, known.known_by) == (guarantee, known_by)


def test_sites_together_are_as_good_as_the_weakest() -> None:
    pairs = {"a": (sphere(), SphereUniform(8)), "b": (normal(), STANDARD)}
    known = commitment(pairs, learns=False, others=lambda: [{"a": sphere(), "b": normal()}])
    assert known.nats == pytest.approx(1.96436706 + FIXED, rel=1e-6)
    assert (known.guarantee, known.certified_by, known.cap_nats) == (AT_LEAST, "type", None)
    exact = commitment({"a": pairs["a"]}, learns=False, others=lambda: [{"a": sphere()}])
    assert (exact.guarantee, exact.way) == (EXACTLY, "by formula")


# --- Programs ---


class Model(nn.Module):
    """Data around a linear map of the latents."""

    def __init__(self, prior: Callable[[], Distribution]) -> None:
        super().__init__()
        self.prior, self.decode = prior, nn.LazyLinear(4)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decode(z.flatten(1).float()), 0.5).to_event(1), obs=x)


class Guide(PyroModule):
    """Posteriors of one family, from features of the data."""

    def __init__(self, posterior: Callable[[Any, Tensor], Distribution], width: int) -> None:
        super().__init__()
        self.encode, self.posterior = nn.Linear(4, width), posterior
        self.log_kappa = PyroParam(torch.tensor(2.0))
        self.low = nn.Parameter(torch.tensor(-40.0))
        self.register_buffer("kappa", torch.tensor(12.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self, self.encode(x)))


def direction(h: Tensor) -> Tensor:
    return h / h.norm(dim=-1, keepdim=True)


PROGRAMS: dict[str, tuple[Callable[[], Distribution], Callable[[Any, Tensor], Distribution], int, float | None]] = {
    "sphere": (lambda: SphereUniform(8), lambda g, h: PowerSpherical(direction(h), g.kappa), 8, 1.96436706),
    "κ learns": (lambda: SphereUniform(8), lambda g, h: PowerSpherical(direction(h), g.log_kappa.exp()), 8, None),
    "κ learns, detached": (
        lambda: SphereUniform(8), lambda g, h: PowerSpherical(direction(h), g.log_kappa.detach().exp()), 8, None),
    "κ is of the data": (
        lambda: SphereUniform(8), lambda g, h: PowerSpherical(direction(h), 5 + h[:, 0].sigmoid().detach()), 8, None),
    "von Mises-Fisher": (lambda: SphereUniform(3), lambda g, h: VonMisesFisher(direction(h), 10.0), 3, 1.9957323),
    "three directions": (
        lambda: SphereUniform(8).expand((3,)).to_event(1),
        lambda g, h: PowerSpherical(direction(h.unflatten(-1, (3, 8))), g.kappa).to_event(1), 24, 3 * 1.96436706),
    "fixed σ": (
        lambda: STANDARD, lambda g, h: dist.Normal(h, 0.5).to_event(1), 3, FIXED),
    "σ learns, where it does not move yet": (
        lambda: STANDARD, lambda g, h: dist.Normal(h, g.low.clamp_min(0.5)).to_event(1), 3, 0.0),
    "finite scalars": (
        lambda: SCALARS,
        lambda g, h: dist.Delta(((h.sigmoid() * torch.tensor(LEVELS)).floor()), event_dim=1), 3, math.log(120)),
}  # fmt: skip


def made(prior: Callable[[], Distribution], posterior: Callable[..., Distribution], width: int) -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    vae, x = VAE(Model(prior), Guide(posterior, width)), torch.randn(20, 4)
    vae.guide(x)
    pyro.clear_param_store()
    vae.model(x)
    return vae, x


@pytest.mark.parametrize(("prior", "posterior", "width", "nats"), PROGRAMS.values(), ids=PROGRAMS)
def test_programs(prior: Any, posterior: Any, width: int, nats: float | None) -> None:
    vae, x = made(prior, posterior, width)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    known = committed(vae, x)
    assert known.nats == (None if nats is None else pytest.approx(nats, rel=1e-6))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    if nats:
        assert committed(vae, x[:1]).nats in (None, 0.0)  # a single datum shows nothing fixed


def test_moved_weights_come_back_after_an_error() -> None:
    vae, _ = made(*PROGRAMS["sphere"][:3])
    before = [value.clone() for value in vae.state_dict().values()]

    def fail() -> None:
        with moved(vae):
            assert not all(map(torch.equal, vae.state_dict().values(), before))
            raise ValueError("mishap")

    with pytest.raises(ValueError, match="mishap"):
        fail()
    assert all(map(torch.equal, vae.state_dict().values(), before))


@pytest.mark.parametrize("name", ["sphere", "three directions", "fixed σ", "finite scalars"])
def test_a_diagnosis_of_any_event_shape(name: str) -> None:
    prior, posterior, width, nats = PROGRAMS[name]
    vae, x = made(prior, posterior, width)
    found = diagnose(vae.model, vae.guide, x)
    assert found.numbers["delta_nats"] == pytest.approx(nats, rel=1e-6)
    assert found.numbers["delta_guarantee"] == (AT_LEAST if name == "fixed σ" else EXACTLY)
    assert found.numbers["floor_holds"] is True
    assert "δ bounds the rate of" in str(found)
    if found.numbers["delta_guarantee"] == EXACTLY:
        assert found.numbers["rate_nats_mean"] == pytest.approx(nats, rel=1e-6)


# --- Means that are normalised over the batch ---


class Normalised(nn.Module):
    """Means of fixed mean β and deviation γ over the batch in training, over what it has seen in evaluation.

    Without an ε below the root: with one the deviation may shrink, and the floor with it.
    """

    guarantee = IN_THE_MEAN

    def __init__(self, dims: int, gamma: float = 0.6, beta: float = 0.1) -> None:
        super().__init__()
        self.encode, self.log_scale = nn.Linear(4, dims), nn.Linear(4, dims)
        self.dims, self.gamma, self.beta = dims, gamma, beta
        self.register_buffer("seen", torch.tensor([0.0, 1.0]).repeat(dims, 1))

    def committed_rate(self, prior: Distribution) -> float:
        """KL ≥ ½ μ² in each coordinate, whatever σ is."""
        return 0.5 * self.dims * (self.gamma**2 + self.beta**2)

    def forward(self, x: Tensor) -> None:
        h = self.encode(x)
        if self.training:
            self.seen = torch.stack([h.mean(0), h.std(0, correction=0)], -1).detach()
        mean, scale = (h.mean(0), h.std(0, correction=0)) if self.training else self.seen.unbind(-1)
        with pyro.plate("data", len(x)):
            loc = self.gamma * (h - mean) / scale + self.beta
            pyro.sample("z", dist.Normal(loc, self.log_scale(x).exp()).to_event(1))


def test_a_floor_of_the_mean_is_that_and_no_more() -> None:
    torch.manual_seed(0)
    guide = Normalised(3)
    vae, x = VAE(Model(lambda: STANDARD), guide), torch.randn(50, 4)
    vae.model(x)
    guide(x)
    floor = 3 * (0.36 + 0.01) / 2
    with torch.no_grad():
        guide.log_scale.weight.zero_()
        guide.log_scale.bias.zero_()  # σ = 1, where the floor is attained

    def rates(batch: Tensor) -> Tensor:
        q = pyro.poutine.trace(guide).get_trace(batch).nodes["z"]["fn"]
        return kl_divergence(q, STANDARD)

    for batch in (x, 3 * x[:7] + 1):
        assert rates(batch).mean().item() == pytest.approx(floor, rel=1e-5)
        assert rates(batch).min() < floor  # so that it is a floor of no datum
    guide(x)
    known = committed(vae, x)
    assert known.nats == pytest.approx(floor)
    assert (known.guarantee, known.claimed, known.way) == (IN_THE_MEAN, True, "by formula")
    assert known.known_by == "the guide's own formula, in training mode"

    found = diagnose(vae.model, vae.guide, x)
    assert found.numbers["delta_guarantee"] == IN_THE_MEAN
    assert found.numbers["floor_holds"] is True
    assert found.numbers["rate_nats_min"] < floor
    # Of other data than the statistics are of, evaluation gives no such mean, and it is judged.
    other = diagnose(vae.model, vae.guide, 0.01 * x)
    assert other.numbers["floor_holds"] is False
    assert other.verdict == "floor broken"
    assert "the mean KL of the data is" in other.advice


def test_a_guarantee_that_is_none() -> None:
    with pytest.raises(UserError, match="guarantee of the guide is 'always'; give one of every datum, exactly, "):
        commitment({"z": (normal(), STANDARD)}, learns=False, formula=lambda prior: 1.0, guarantee="always")


def test_a_formula_is_known_no_better_than_its_prior() -> None:
    far = Own(torch.zeros(3, dtype=F64), COVARIANCE)
    known: Commitment = commitment({"z": (normal(), far)}, learns=False, formula=lambda prior: 100.0)
    assert known.certified_by == "probing"
    assert known.nats == known.cap_nats is not None
    assert known.way == f"by probing, up to {np.floor(known.nats):g} nats"
    assert commitment({"z": (normal(), STANDARD)}, learns=False, formula=lambda prior: 100.0).nats == 100
