"""What is committed, for how long, and how that is known: every route by which it may be."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_delta.commitment import Commitment, claimed_rate, commitment, committed_by_datum
from pyro_delta.diagnostics.trace import committed
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.rate import ar1_committed_rate
from pyro_delta.vae import VAE

ALPHA = torch.tensor([0.5, 0.8])
AR1 = GaussianAR1(ALPHA, 4)
RATE = sum(0.5 * (2 * math.log(1 + a * a) - math.log(1 - a * a)) for a in (0.5, 0.8))


class Own(GaussianAR1):
    """A density that no formula is registered for."""


def mean_field(*shape: int) -> dist.Independent:
    return dist.Normal(torch.zeros(shape), 0.3).to_event(len(shape) - 1)


def plain(prior: Distribution, *, q: Distribution | None = None, **options: Any) -> Commitment:
    """One site of one datum."""
    return commitment({"z": (mean_field(1, 4, 2) if q is None else q, prior)}, **{"learns": False, **options})


CORRELATED = dist.MultivariateNormal(torch.zeros(8), torch.eye(8) + 0.5 * (1 - torch.eye(8)))
# Of 8 numbers with correlations 1/2: ln det Σ = 7 ln (1/2) + ln (9/2), and every Λ_ii = 16/9.
CORRELATED_RATE = 0.5 * (7 * math.log(0.5) + math.log(4.5) + 8 * math.log(16 / 9))


@pytest.mark.parametrize(
    ("found", "nats", "throughout", "known_by"),
    [
        (lambda: plain(AR1), RATE, RATE, "a formula of GaussianAR1"),
        (lambda: plain(Own(ALPHA, 4)), RATE, RATE, "the density of Own, a Gaussian"),
        (lambda: plain(mean_field(1, 4, 2)), 0.0, 0.0, "the independence of Independent(Normal)"),
        (lambda: plain(CORRELATED, q=mean_field(1, 8)), CORRELATED_RATE, CORRELATED_RATE,
         "the type of MultivariateNormal, a Gaussian"),
        (lambda: plain(AR1, learns=True), RATE, None, "a formula of GaussianAR1"),
        (lambda: plain(AR1, learns=True, floor=1.5), RATE, 1.5,
         "a formula of GaussianAR1, above the floor of the prior"),
        (lambda: plain(AR1, formula=lambda prior: 1.25), 1.25, 1.25, "the guide's own formula"),
        (lambda: plain(AR1, formula=lambda prior: torch.tensor(1.25), learns=True), 1.25, None,
         "the guide's own formula"),
        # The floor is for independent posteriors, and says nothing of those of the guide.
        (lambda: plain(AR1, formula=lambda prior: 1.25, learns=True, floor=1.5), 1.25, None, "the guide's own formula"),
        (lambda: plain(AR1.expand((3,))), 3 * RATE, 3 * RATE, "a formula of GaussianAR1"),  # in an inner plate
        (lambda: commitment({"a": (mean_field(1, 4, 2), AR1), "b": (mean_field(1, 4, 2), Own(ALPHA, 4)),
                             "c": (mean_field(1, 3), mean_field(1, 3))}, learns=False),
         2 * RATE, 2 * RATE,
         "a formula of GaussianAR1 and the density of Own, a Gaussian and the independence of Independent(Normal)"),
        (lambda: commitment({"a": (mean_field(1, 4, 2), AR1), "b": (mean_field(1, 4, 2), AR1)}, learns=False,
                            formula=lambda prior: 1.25),  # it is for a single prior
         2 * RATE, 2 * RATE, "a formula of GaussianAR1"),
    ],
)  # fmt: skip
def test_what_formulas_know(
    found: Callable[[], Commitment], nats: float, throughout: float | None, known_by: str
) -> None:
    known = found()
    assert known.nats == pytest.approx(nats, rel=1e-6, abs=1e-12)
    assert known.throughout == (None if throughout is None else pytest.approx(throughout, rel=1e-6, abs=1e-12))
    assert known.known_by == known_by
    assert known.claimed is (known_by == "the guide's own formula")


WITH_LENGTHS = GaussianAR1(torch.zeros(3, 2), 4, torch.tensor([1, 4, 2]))


def by_steps(prior: Any) -> Any:
    """A formula of a guide that hears of lengths."""
    return 5.0 if prior.lengths is None else 1.25 * prior.lengths.double()


def test_a_guides_own_formula_may_go_by_lengths() -> None:
    pairs = {"z": (mean_field(3, 4, 2), WITH_LENGTHS)}
    known = commitment(pairs, learns=False, formula=by_steps)
    assert (known.nats, known.guarantee, known.claimed) == (5.0, "every datum, by its length", True)
    found = committed_by_datum(pairs, by_steps)
    assert found is not None
    assert found.tolist() == [1.25, 5.0, 2.5]


@pytest.mark.parametrize("formula", [lambda prior: 0.5, lambda prior: torch.ones(2), lambda prior: refuses(prior)])
def test_a_formula_that_says_nothing_of_lengths_bounds_every_datum_alike_or_none(formula: Any) -> None:
    pairs = {"z": (mean_field(3, 4, 2), WITH_LENGTHS)}
    assert committed_by_datum(pairs, formula) is None
    try:
        known = commitment(pairs, learns=False, formula=formula)
    except UserError:
        return  # of what is no number
    assert known.guarantee in ("every datum, at least", None)


@pytest.mark.parametrize("formula", [lambda prior: by_steps(prior).sum(), lambda prior: by_steps(prior)[:, None]])
def test_what_is_not_said_of_each_datum_is_not_certified_by_the_least_of_some(formula: Any) -> None:
    lengths = [GaussianAR1(torch.zeros(1, 2), 4, torch.tensor([steps])) for steps in (4, 2)]
    pairs = {"z": (mean_field(1, 4, 2), lengths[0])}
    known = commitment(pairs, learns=False, priors=[{"z": lengths[1]}], formula=formula)
    assert known.nats is known.throughout is None
    assert "2.5 nats for one length and 5 for another" in known.known_by


@pytest.mark.parametrize("wrong", [math.nan, -1.0, math.inf])
def test_what_is_no_rate_for_a_short_datum_is_refused(wrong: float) -> None:
    def formula(prior: Any) -> Any:
        rates = torch.as_tensor(by_steps(prior))
        return rates if prior.lengths is None else torch.where(prior.lengths < 2, wrong, rates)

    with pytest.raises(UserError, match=r"gives -?\w+ for a datum of 1 of 4 steps; it must be a finite number"):
        commitment({"z": (mean_field(3, 4, 2), WITH_LENGTHS)}, learns=False, formula=formula)


def refuses(prior: Any) -> float:
    raise UserError("not this one.")


def lacks(prior: Any) -> float:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("found", "known_by"),
    [
        (lambda: plain(AR1, q=dist.Laplace(torch.zeros(1, 4, 2), 1.0).to_event(2)),
         "posteriors of 'z' are Independent(Laplace), of which no formula is known"),
        (lambda: plain(AR1, q=dist.MultivariateNormal(torch.zeros(2), torch.eye(2))),
         "posteriors of 'z' are MultivariateNormal, of which no formula is known"),
        (lambda: plain(dist.StudentT(5.0, torch.zeros(4, 2)).to_event(2)), "Independent(StudentT) is not Gaussian: "),
        (lambda: plain(dist.Gamma(torch.ones(4, 2), 1.0).to_event(2)), "Independent(Gamma) is not Gaussian: its supp"),
        (lambda: plain(AR1, formula=refuses), "the guide's formula does not know this prior"),
        (lambda: plain(AR1, formula=lacks), "the guide's formula does not know this prior"),
        (lambda: plain(AR1, unless="it is masked"), "it is masked"),
        (lambda: plain(AR1, unless="it is masked", formula=lambda prior: 1.0), "it is masked"),
        (lambda: commitment({"a": (mean_field(1, 4, 2), AR1), "b": (mean_field(1), dist.Laplace(0.0, 1.0))},
                            learns=False), "Laplace is not Gaussian: "),
    ],
)  # fmt: skip
def test_what_no_formula_knows(found: Callable[[], Commitment], known_by: str) -> None:
    known = found()
    assert (known.nats, known.throughout, known.claimed) == (None, None, False)
    assert known.known_by.startswith(known_by)


class Mixture(GaussianAR1):
    """With a weight of 1e-6 on a Gaussian far away, whose KL is then 13.8 nats."""

    def log_prob(self, value: Tensor) -> Tensor:
        far = dist.Normal(40.0, 0.5).log_prob(value).sum((-1, -2))
        parts = [math.log1p(-1e-6) + super().log_prob(value), math.log(1e-6) + far]
        return torch.stack(parts).logsumexp(0)


LONG = torch.full((4,), 0.9)


@pytest.mark.parametrize(
    ("found", "nats", "way", "guarantee"),
    [
        (lambda: plain(GaussianAR1(LONG, 32)), 38.92, "by formula", "every datum, at least"),
        (lambda: plain(CORRELATED, q=mean_field(1, 8)), CORRELATED_RATE, "by type", "every datum, at least"),
        (lambda: plain(mean_field(1, 4, 2)), 0.0, "by type", "every datum, at least"),
        (lambda: plain(Own(ALPHA, 4)), RATE, "by probing, up to 27 nats", "every datum, at least"),
        (lambda: plain(Mixture(LONG, 32), q=mean_field(1, 32, 4)), 13, "by probing, up to 13 nats",
         "every datum, at least"),
        (lambda: commitment({"a": (mean_field(1, 32, 4), Mixture(LONG, 32)), "b": (mean_field(1, 4, 2), AR1),
                             "c": (mean_field(1, 4, 2), Own(ALPHA, 4))}, learns=False),
         13 + 2 * RATE, "by probing, up to 13 nats", "every datum, at least"),
        (lambda: plain(AR1, formula=lambda prior: 1.25), 1.25, "by formula", "every datum, at least"),
        (lambda: plain(AR1, formula=lambda prior: 1.25, guarantee="mean over the data"), 1.25, "by formula",
         "mean over the data"),
        (lambda: plain(dist.StudentT(5.0, torch.zeros(4, 2)).to_event(2)), None, "not certified", None),
    ],
)  # fmt: skip
def test_by_what_it_is_certified(
    found: Callable[[], Commitment], nats: float | None, way: str, guarantee: str | None
) -> None:
    known = found()
    assert known.nats == (None if nats is None else pytest.approx(nats, abs=1e-2))
    assert (known.way, known.guarantee) == (way, guarantee)
    assert (known.certified_by is None) == (known.nats is None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "much", None, torch.ones(2)])
def test_claims_that_are_no_rates(value: Any) -> None:
    with pytest.raises(UserError, match=r"committed_rate of the guide gives .*; it must be a finite number of nats"):
        claimed_rate(lambda prior: value, AR1)


# --- Read off programs ---


@dataclass
class Wanted:
    nats: float | None
    throughout: float | None
    learns: bool
    known_by: str


class Program(nn.Module):
    """A model or a guide; what is declared of it are attributes."""

    def __init__(self, program: Callable[..., None], weights: nn.Module | None = None, **declared: Any) -> None:
        super().__init__()
        self.program, self.weights = program, weights
        for name, value in declared.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            self.program(x, self.weights)


def likelihood(z: Tensor, x: Tensor) -> None:
    pyro.sample("x", dist.Normal(z.flatten(1).sum(1, keepdim=True), 1.0).to_event(1), obs=x)


def fixed(x: Tensor, weights: Any) -> None:
    likelihood(pyro.sample("z", AR1), x)


def learned(x: Tensor, weights: Any) -> None:
    likelihood(pyro.sample("z", GaussianAR1(weights.bias.sigmoid(), 4)), x)


def moved(x: Tensor, weights: Any) -> None:
    """A prior with a weight that its density does not hold."""
    likelihood(pyro.sample("z", GaussianAR1(ALPHA + 0 * weights.bias.detach(), 4)), x)


def guide(x: Tensor, weights: Any) -> None:
    pyro.sample("z", dist.Normal(weights(x)[..., None].expand(-1, 4, 2), 0.3).to_event(2))


def two(x: Tensor, weights: Any) -> None:
    likelihood(pyro.sample("a", AR1) + pyro.sample("b", AR1), x)


def two_in_turn(x: Tensor, weights: Any) -> None:
    a = pyro.sample("a", AR1)
    likelihood(pyro.sample("b", dist.Normal(a, 1.0).to_event(2)), x)


def guide_of_two(x: Tensor, weights: Any) -> None:
    a = pyro.sample("a", mean_field(len(x), 4, 2))
    pyro.sample("b", dist.Normal(a.tanh(), 0.3).to_event(2))


def masked(x: Tensor, weights: Any) -> None:
    with poutine.mask(mask=x[:, 0] > 0):
        z = pyro.sample("z", AR1)
    likelihood(z, x)


def start() -> nn.Linear:
    weights = nn.Linear(1, 2)
    with torch.no_grad():
        weights.bias.fill_(math.log(4.0))  # α = 0.8
    return weights


TWO = 2 * 0.5 * (2 * math.log(1.64) - math.log(0.36))
"""Of α = 0.8 in both dimensions."""
FORMULA, OWN = "a formula of GaussianAR1", "the guide's own formula"


@pytest.mark.parametrize(
    ("model", "of_guide", "wanted"),
    [
        (Program(fixed), Program(guide, nn.Linear(1, 4)), Wanted(RATE, RATE, False, FORMULA)),
        (Program(learned, start()), Program(guide, nn.Linear(1, 4)), Wanted(TWO, None, True, FORMULA)),
        (Program(learned, start(), prior=Program(fixed, floor_nats=1.5)), Program(guide, nn.Linear(1, 4)),
         Wanted(TWO, 1.5, True, f"{FORMULA}, above the floor of the prior")),
        (Program(moved, start()), Program(guide, nn.Linear(1, 4)), Wanted(RATE, RATE, False, FORMULA)),
        (Program(fixed), Program(guide, nn.Linear(1, 4), committed_rate=lambda prior: 1.25),
         Wanted(1.25, 1.25, False, OWN)),
        (Program(learned, start()), Program(guide, nn.Linear(1, 4), committed_rate=lambda prior: prior.length / 2),
         Wanted(2.0, None, True, OWN)),
        (Program(two), Program(guide_of_two), Wanted(2 * RATE, 2 * RATE, False, FORMULA)),
        (Program(two_in_turn), Program(guide_of_two),
         Wanted(None, None, False, "the prior of a site depends on another site")),
        (Program(masked), Program(guide, nn.Linear(1, 4)),
         Wanted(None, None, False, "the site 'z' is masked, and what is left of it commits less")),
    ],
    ids=["fixed", "learned", "floor", "unmoved", "own formula", "own, learned", "two sites", "in turn", "masked"],
)  # fmt: skip
def test_programs(model: Program, of_guide: Program, wanted: Wanted) -> None:
    vae = VAE(model, of_guide).train()
    with torch.no_grad():  # as validation calls it
        known = committed(vae, torch.ones(5, 1))
    assert known.nats == (None if wanted.nats is None else pytest.approx(wanted.nats, rel=1e-6))
    assert known.throughout == (None if wanted.throughout is None else pytest.approx(wanted.throughout, rel=1e-6))
    assert (known.learns, known.known_by) == (wanted.learns, wanted.known_by)
    assert vae.training


def test_a_rate_that_moves_is_that_of_the_moment() -> None:
    vae = VAE(Program(learned, start()), Program(guide, nn.Linear(1, 4)))
    before = committed(vae, torch.ones(1, 1)).nats
    with torch.no_grad():
        vae.model.weights.bias.fill_(0.0)
    after = committed(vae, torch.ones(1, 1)).nats
    assert before == pytest.approx(TWO, rel=1e-6)
    assert after == pytest.approx(ar1_committed_rate([0.5, 0.5], 4).item(), rel=1e-6)


class Half(GaussianAR1):
    """A class of its own, whose density may be another than its name says: no formula of AR(1) is one of it."""


class Lengths(dist.Independent):
    """A prior of somebody's own that has lengths."""

    lengths = torch.tensor([2])


def test_lengths_are_certified_by_a_formula_of_their_own_class_alone() -> None:
    priors = Half(ALPHA, 4, torch.tensor([2])), Lengths(dist.Normal(torch.zeros(1, 4, 2), 1.0), 2)
    for prior in priors:
        pairs = {"z": (mean_field(1, 4, 2), prior)}
        assert plain(prior).nats is None
        assert "no formula is known for data with lengths" in plain(prior).known_by
        claimed = plain(prior, formula=lambda prior: torch.ones(1))
        assert claimed.nats is None
        assert "no `whole` of its own class" in claimed.known_by
        assert committed_by_datum(pairs) is None
