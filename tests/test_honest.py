"""Honest programs with unusual networks: what is certified of them, and what is said of the rest."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_cli import call
from test_hostile import GREY, NAKED
from test_verify import SMALL, finding
from torch import nn

import pyro_delta
from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import ArraySpec
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.verify import Certificate, verify
from pyro_delta.diagnostics.verify.case import Case, apart
from pyro_delta.diagnostics.verify.gradient import check_gradient
from pyro_delta.diagnostics.verify.sites import DRAWN, SURPRISE, _statistics
from pyro_delta.distributions import SphereUniform, VonMisesFisher
from pyro_delta.errors import UserError
from pyro_delta.models import DeltaVAE
from pyro_delta.vae import VAE

FILE = Path(__file__).with_name("honest.py")


def settings(kind: str, name: str) -> list[tuple[str, object]]:
    return [*(pair for pair in SMALL if not pair[0].startswith(kind)), (f"{kind}.program", f"{FILE}:{name}")]


def certified(kind: str, name: str, *more: tuple[str, object], batch: int = 8) -> Certificate:
    torch.manual_seed(0)
    return verify(build(load_preset("digits", [*settings(kind, name), *more]), GREY), GREY, batch=batch)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_weights_that_are_computed_at_each_call() -> None:
    certificate = certified("guide", "WeightNormed")
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(4.0, rel=1e-6)
    assert finding(certificate, "sites")[0] is True
    few = {"training.steps": 3, "training.batch": 8, **dict(settings("guide", "WeightNormed"))}
    for decay in (0.0, 0.9):
        run = pyro_delta.train(few | {"training.ema": decay}, preset="digits")
        assert run.vae.guide.body[0].weight_g.requires_grad
        assert pyro_delta.evaluate(run, images=8)["rate_nats_mean"] > 0


HONEST: dict[str, tuple[str, str, float]] = {
    "spectral normalisation": ("guide", "SpectralNormed", 4.0),
    "spectral normalisation of old": ("guide", "SpectralNormedOfOld", 4.0),
    "constants of single precision": ("guide", "WithConstants", 4.0),
    "a scale that does not learn": ("guide", "FrozenScale", 4.4028),
    "counts": ("likelihood", "Counts", 4.0),
    "masks that do not learn": ("likelihood", "MaskedConvolutions", 4.0),
}


@pytest.mark.parametrize(("kind", "name", "nats"), HONEST.values(), ids=HONEST)
def test_unusual_programs_are_certified(kind: str, name: str, nats: float) -> None:
    certificate = certified(kind, name)
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(nats, rel=1e-5)
    if "Spectral" in name:
        assert finding(certificate, "sites")[1].endswith(
            "but for posteriors, which are others of their family in training"
        )


def test_probabilities_that_end_nowhere_and_do_not_sum_to_one() -> None:
    assert "the first probabilities of Rare sum to 0.75, and it has no last" in str(
        certified("likelihood", "CountsOfItsOwn").lack
    )


class TwoSites(nn.Module):
    """A decoder by any name, of a sequence and of three numbers beside it."""

    def __init__(self, prior: nn.Module, *, beside: bool) -> None:
        super().__init__()
        self.prior, self.beside = prior, beside
        self.decode = nn.Linear(prior().event_shape.numel() + 3 * beside, math.prod(GREY.shape))

    def forward(self, x=None, *, batch: int = 1):
        with pyro.plate("data", batch if x is None else len(x)):
            z = [pyro.sample("z", self.prior()).flatten(-2)]
            if self.beside:
                z.append(pyro.sample("beside", dist.Normal(torch.zeros(3), 1.0).to_event(1)))
            rates = self.decode(torch.cat(z, -1)).exp().unflatten(-1, GREY.shape)
            return pyro.sample("x", dist.Poisson(rates).to_event(3), obs=x)


class TwoSitesGuide(nn.Module):
    causality = "none"

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide, self.body = guide, nn.Linear(math.prod(GREY.shape), 3)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            mean = self.body(x.flatten(1).to(self.body.weight) / GREY.levels)
            pyro.sample("beside", dist.Normal(mean, 0.5 + mean.sigmoid()).to_event(1))
            pyro.sample("z", self.guide.posterior(x))


@pytest.mark.parametrize("beside", [False, True])
def test_models_of_ones_own(beside: bool) -> None:
    torch.manual_seed(0)
    vae = build(load_preset("digits", SMALL), GREY)
    guide = TwoSitesGuide(vae.guide) if beside else vae.guide
    certificate = verify(VAE(TwoSites(vae.model.prior, beside=beside), guide), GREY, batch=8)
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(4.0, rel=1e-6)
    assert finding(certificate, "causality of the conditioning")[0] is None


class InOne(nn.Module):
    """Model and guide are methods of one module; of Gamma posteriors no floor is known."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(20, 6), nn.Linear(3, 20)

    def model(self, x=None, *, batch: int = 1):
        with pyro.plate("data", batch if x is None else len(x)):
            z = pyro.sample("z", dist.Gamma(torch.ones(3), torch.ones(3)).to_event(1))
            return pyro.sample("x", dist.Poisson(self.decode(z).exp().unflatten(-1, GREY.shape)).to_event(3), obs=x)

    def guide(self, x):
        shape, rate = self.encode(x.flatten(1).to(self.encode.weight) / 5).exp().chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(shape, rate).to_event(1))


def test_methods_of_one_module_without_a_floor() -> None:
    torch.manual_seed(0)
    both = InOne()
    certificate = verify(VAE(both.model, both.guide), GREY, batch=8)
    assert certificate.failure is None
    assert "committed rate: not certified; the least KL found is" in str(certificate.lack)


def test_noise_of_many_coordinates_raises_no_alarm() -> None:
    """Of 8 million pairs of coordinates some are far from uncorrelated by chance."""
    for size in (1, 2, 4096):
        for seed in range(200 if size < 10 else 3):
            noise = torch.randn(DRAWN, size, generator=torch.Generator().manual_seed(seed))
            assert all(surprise <= SURPRISE for _, _, surprise in _statistics(noise, normal=True))


def test_batch_statistics_of_the_guide_leave_the_floor_of_its_family() -> None:
    """They are no threat to δ, but to what is said of one datum alone, which the check of the guide says."""
    certificate = certified("guide", "BatchNormed")
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(4.0, rel=1e-6)
    passed, found = finding(certificate, "causality of the guide")
    assert passed is None
    assert "but for batch statistics: in training mode z of one image depends on the images of its batch" in found
    assert finding(certificate, "sites")[1].endswith("but for batch statistics of the guide")


BATCHES = {
    "a class of its own": ("guide", "BatchNormedOfItsOwn", 8, "causality of the guide", "sees other images .training"),
    "a floor without statistics": ("guide", "NarrowInItsBatch", 8, "committed rate", "but a KL of"),
    "batches of one": ("guide", "BatchNormed", 1, "sites", "a batch of one; .* give training.batch=2 or more"),
    "a likelihood": ("likelihood", "BatchNormedLikelihood", 8, "causality of the network", "take torch.nn.LayerNorm"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "batch", "check", "words"), BATCHES.values(), ids=BATCHES)
def test_batch_statistics_that_are_refused(kind: str, name: str, batch: int, check: str, words: str) -> None:
    more = NAKED if name == "NarrowInItsBatch" else []
    certificate = certified(kind, name, *more, batch=batch)
    assert certificate.delta_nats is None
    passed, found = finding(certificate, check)
    assert passed is False, certificate
    assert re.search(words, found), found
    assert "Expected more than 1 value" not in str(certificate.failure)


def test_training_in_batches_of_one(tmp_path: Path) -> None:
    one = {"training.steps": 3, "training.batch": 1, **dict(settings("guide", "BatchNormed"))}
    sets = [part for key, value in one.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    code, _, err = call("train", "--preset", "digits", *sets, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "a batch of one; if it is the guide's, give training.batch=2 or more" in err
    with pytest.raises(UserError, match=r"a batch of one; if it is the guide's, give training.batch=2 or more"):
        pyro_delta.train(one, preset="digits")


CODES: list[tuple[str, object]] = [
    ("prior.program", f"{FILE}:Codes"),
    ("likelihood.program", f"{FILE}:CodeLikelihood"),
]


def of_codes(guide: str) -> Certificate:
    torch.manual_seed(0)
    return verify(build(load_preset("digits", [*CODES, ("guide.program", f"{FILE}:{guide}")]), GREY), GREY, batch=8)


def test_a_code_that_is_not_the_one_stated() -> None:
    certificate = of_codes("AnotherCodeGuide")
    assert certificate.delta_nats is None
    assert finding(certificate, "sites") == (
        False, "what the guide draws at 'z' is not the point that its Delta states (evaluation mode)",
    )  # fmt: skip


@pytest.mark.parametrize(("guide", "nats"), [("CodeGuide", 3 * math.log(5)), ("StochasticCodeGuide", None)])
def test_codes_are_certified_where_they_are_points(guide: str, nats: float | None) -> None:
    certificate = of_codes(guide)
    assert certificate.failure is None
    assert certificate.delta_nats == (None if nats is None else pytest.approx(nats))
    if nats is None:
        assert "committed rate: not certified; the least KL found is" in str(certificate.lack)
    else:
        assert certificate.guarantee == "every datum, exactly"


# --- Distributions and networks that users write ---


class Plain(nn.Module):
    """Prior, likelihood and posterior as functions of what a linear layer gives."""

    def __init__(
        self, spec: ArraySpec, numbers: int, prior: Any, posterior: Any, likelihood: Any, outputs: int
    ) -> None:
        super().__init__()
        self.prior, self.likelihood, self.of = prior, likelihood, posterior
        self.encode = nn.Linear(max(math.prod(spec.shape), 1), numbers)
        self.decode = nn.Linear(numbers, outputs)

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.decode(z.reshape(len(x), -1))), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.of(self.encode(x.reshape(len(x), -1).to(self.encode.weight))))


def chain() -> dist.MultivariateNormal:
    """An AR(1) by its covariance."""
    steps = torch.arange(3.0)
    return dist.MultivariateNormal(torch.zeros(3), 0.8 ** (steps[:, None] - steps).abs())


def normal(v: torch.Tensor) -> dist.Independent:
    return dist.Normal(v, 0.5 + 0.1 * torch.sigmoid(v)).to_event(1)


def numbers(v: torch.Tensor) -> dist.Independent:
    return dist.Normal(v, 1.0).to_event(1)


DELTA = 0.5 * (math.log(1 + 0.8**2) - math.log(1 - 0.8**2))
FIVE = ArraySpec((5,), ordered=False)
OF_USERS: dict[str, tuple[ArraySpec, tuple[Any, ...], float]] = {
    "one number of latents": (
        FIVE,
        (1, lambda: dist.Normal(0.0, 1.0), lambda v: dist.Normal(v[:, 0], 0.5), numbers, 5),
        0.5 * (0.25 - 1 - math.log(0.25)),
    ),
    "one number of data": (ArraySpec(()), (3, chain, normal, lambda v: dist.Normal(v[:, 0], 1.0), 1), DELTA),
    "data of a full covariance": (
        FIVE,
        (3, chain, normal, lambda v: dist.MultivariateNormal(v, torch.eye(5).to(v) + 0.5), 5),
        DELTA,
    ),
    "von Mises–Fisher": (
        FIVE,
        (3, lambda: SphereUniform(3), lambda v: VonMisesFisher(v / v.norm(dim=-1, keepdim=True), 10.0), numbers, 5),
        1.9957323,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "parts", "nats"), OF_USERS.values(), ids=OF_USERS)
def test_what_users_write_is_certified(spec: ArraySpec, parts: tuple[Any, ...], nats: float) -> None:
    torch.manual_seed(0)
    plain = Plain(spec, *parts)
    certificate = verify(VAE(plain.model, plain.guide), spec, batch=8)
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(nats, rel=1e-5)


def test_a_prior_that_nothing_is_known_of_is_no_failure() -> None:
    mixed = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([[-1.0] * 3, [1.0] * 3]), 1.0).to_event(1)
    )
    torch.manual_seed(0)
    plain = Plain(FIVE, 3, lambda: mixed, normal, numbers, 5)
    certificate = verify(VAE(plain.model, plain.guide), FIVE, batch=8)
    assert certificate.failure is None
    assert certificate.delta_nats is None
    assert finding(certificate, "distribution of the prior")[0] is True


def test_kinks_of_a_network_are_no_wrong_gradient() -> None:
    torch.manual_seed(0)
    wide = ArraySpec((200,), ordered=False)
    plain = Plain(wide, 3, chain, normal, numbers, 200)
    plain.encode = nn.Sequential(nn.Linear(200, 2000), nn.ReLU(), nn.Linear(2000, 500), nn.ReLU(), nn.Linear(500, 3))
    plain.encode.weight = plain.encode[0].weight
    case = Case(VAE(plain.model, plain.guide), wide, {}, 8)
    with apart(case.vae):
        for seed in range(8):
            torch.manual_seed(seed)
            assert check_gradient("gradient", case).passed


def test_a_gradient_that_is_wrong_is_refused_at_every_step() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, v: torch.Tensor) -> torch.Tensor:
            return v * 1.0

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return 1.01 * grad

    torch.manual_seed(0)
    plain = Plain(FIVE, 3, chain, lambda v: normal(Wrong.apply(v)), numbers, 5)
    case = Case(VAE(plain.model, plain.guide), FIVE, {}, 8)
    with apart(case.vae):
        assert check_gradient("gradient", case).passed is False


def test_words_that_are_dropped_in_training_are_noise() -> None:
    torch.manual_seed(0)
    plain = Plain(FIVE, 3, chain, normal, numbers, 5)
    decode = plain.decode

    class Dropped(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return decode(z * (torch.rand(z.shape).to(z) > 0.2) if self.training else z)

    plain.decode = Dropped()
    plain.kept = decode
    certificate = verify(VAE(plain.model, plain.guide), FIVE, batch=8)
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(DELTA, rel=1e-5)


def test_two_levels_are_scored_by_bernoullis() -> None:
    """What everybody begins with: Bernoulli variables, independent given all of z, of data that are integers."""

    class OfTwoLevels(nn.Module):
        conditioning = "full"

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.LazyLinear(20)

        def forward(self, z: torch.Tensor) -> dist.Independent:
            return dist.Bernoulli(logits=self.out(z.flatten(-2)).unflatten(-1, (1, 4, 5))).to_event(3)

    torch.manual_seed(0)
    spec = ImageSpec(1, 4, 5, 2)
    vae = build(load_preset("digits", SMALL), spec)
    model = DeltaVAE(vae.model.prior, OfTwoLevels())
    with pytest.raises(UserError, match=r"weight model.likelihood.out.weight has no shape yet; call model and guide"):
        verify(VAE(model, vae.guide), spec, batch=8)
    model(torch.zeros(2, 1, 4, 5, dtype=torch.uint8))
    certificate = verify(VAE(model, vae.guide), spec, batch=8)
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(4.0, rel=1e-6)
