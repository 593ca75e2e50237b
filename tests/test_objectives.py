"""The baselines' objectives against values written by hand from rate and distortion, and what is logged beside them."""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from pyro.nn import PyroModule
from test_inference import OBJECTIVES, PARTICLES, SPEC, config_of, train_steps, trainer_of
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from pyro_delta.build import build, build_objective
from pyro_delta.distributions import GaussianAR1, per_dimension
from pyro_delta.distributions.dimensions import dimensions_of
from pyro_delta.errors import UserError
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.inference.objectives import (
    Annealed,
    Beta,
    FreeBits,
    FreeBitsPerDimension,
    NegativeELBO,
    TargetRate,
)
from pyro_delta.vae import local_parameters

STEPS, DIMS, IMAGES = 3, 2, 4
ALPHA = torch.tensor([0.3, 0.8], dtype=torch.float64)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Programs whose rate and distortion can be written down


class Model(PyroModule):
    """An AR(1) sequence and a linear observation of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 0.9, STEPS * DIMS * 2).reshape(STEPS * DIMS, 2))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", GaussianAR1(ALPHA, STEPS))
            pyro.sample("x", dist.Normal(z.flatten(-2) @ self.weight, 0.5).to_event(1), obs=x)


class Guide(PyroModule):
    """Linear means, a scale for each latent; keeps the noise of its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(-0.8, 0.6, 2 * STEPS * DIMS).reshape(2, STEPS * DIMS))
        self.log_scale = nn.Parameter(torch.linspace(-0.7, 0.1, STEPS * DIMS).reshape(STEPS, DIMS))
        self.noise: list[Tensor] = []

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc_bnd = (x @ self.slope).reshape(len(x), STEPS, DIMS)
        return loc_bnd, self.log_scale.exp().expand_as(loc_bnd)

    def forward(self, x: Tensor) -> None:
        loc_bnd, scale_bnd = self.moments(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc_bnd, scale_bnd).to_event(2))
        self.noise.append(((z - loc_bnd) / scale_bnd).detach())


def programs() -> tuple[Model, Guide, Tensor, list[Tensor]]:
    model, guide = Model(), Guide()
    x = torch.linspace(-1.0, 1.6, IMAGES * 2, dtype=torch.float64).reshape(IMAGES, 2)
    return model, guide, x, [*model.parameters(), *guide.parameters()]


def dense_prior() -> MultivariateNormal:
    """The AR(1) prior as d dense normals over the steps."""
    distance = (torch.arange(STEPS)[:, None] - torch.arange(STEPS)).abs()
    return MultivariateNormal(torch.zeros(DIMS, STEPS), ALPHA[:, None, None] ** distance)


def written_by_hand(model: Model, guide: Guide, x: Tensor, analytic_kl: bool) -> tuple[Tensor, Tensor]:
    """Mean rate of each dimension (d,) and mean distortion, in nats per image, for the noise that the guide kept."""
    loc_bnd, scale_bnd = guide.moments(x)
    z_pbnd = loc_bnd + scale_bnd * torch.stack(guide.noise).reshape(-1, IMAGES, STEPS, DIMS)
    distortion = -Normal(z_pbnd.flatten(-2) @ model.weight, 0.5).log_prob(x).sum(-1).mean()
    if analytic_kl:
        q = MultivariateNormal(loc_bnd.mT, torch.diag_embed(scale_bnd.mT.square()))
        return kl_divergence(q, dense_prior()).mean(0), distortion
    log_ratio = Normal(loc_bnd, scale_bnd).log_prob(z_pbnd).sum(-2) - dense_prior().log_prob(z_pbnd.mT)
    return log_ratio.mean((0, 1)), distortion


class Case(NamedTuple):
    """An objective, and its value by hand from the rate of each dimension and the distortion."""

    make: Callable[..., RateDistortionELBO]
    loss: Callable[[Tensor, Tensor], Tensor]


def annealed(steps_made: int, cycles: int = 1) -> Callable[..., RateDistortionELBO]:
    def make(**kwargs: Any) -> RateDistortionELBO:
        objective = Annealed(anneal_steps=8, cycles=cycles)
        if steps_made:
            objective.advance(steps_made)
        return RateDistortionELBO(objective, **kwargs)

    return make


def with_multiplier(multiplier: float) -> Callable[..., RateDistortionELBO]:
    def make(**kwargs: Any) -> RateDistortionELBO:
        objective = TargetRate(target_nats=2.5)
        objective.varying["multiplier"] = torch.tensor(multiplier)
        return RateDistortionELBO(objective, **kwargs)

    return make


def free(nats: float, per_dim: bool) -> Callable[..., RateDistortionELBO]:
    objective = FreeBitsPerDimension if per_dim else FreeBits
    return lambda **kwargs: RateDistortionELBO(objective(free_nats=nats), **kwargs)


# In closed form the two dimensions have 0.75 and 2.35 nats, the images from 2.3 to 4.3.
CASES = {
    "elbo": Case(RateDistortionELBO, lambda r, d: d + r.sum()),
    "elbo, as an objective": Case(lambda **k: RateDistortionELBO(NegativeELBO(), **k), lambda r, d: d + r.sum()),
    "beta 0": Case(lambda **k: RateDistortionELBO(Beta(beta=0.0), **k), lambda r, d: d),
    "beta 0.3": Case(lambda **k: RateDistortionELBO(Beta(beta=0.3), **k), lambda r, d: d + 0.3 * r.sum()),
    "beta 1": Case(lambda **k: RateDistortionELBO(Beta(beta=1.0), **k), lambda r, d: d + r.sum()),
    "annealed, first step": Case(annealed(0), lambda r, d: d),
    "annealed, step 2 of 8": Case(annealed(2), lambda r, d: d + 0.25 * r.sum()),
    "annealed, half way": Case(annealed(4), lambda r, d: d + 0.5 * r.sum()),
    "annealed, at its end": Case(annealed(8), lambda r, d: d + r.sum()),
    "annealed, after its end": Case(annealed(90), lambda r, d: d + r.sum()),
    "annealed twice, between": Case(annealed(12, 2), lambda r, d: d + r.sum()),
    "annealed twice, again at 0": Case(annealed(16, 2), lambda r, d: d),
    "annealed twice, half way again": Case(annealed(20, 2), lambda r, d: d + 0.5 * r.sum()),
    "annealed twice, after its end": Case(annealed(33, 2), lambda r, d: d + r.sum()),
    "free bits, above": Case(free(1.0, False), lambda r, d: d + r.sum().clamp_min(1.0)),
    "free bits, between the images": Case(free(3.5, False), lambda r, d: d + r.sum().clamp_min(3.5)),
    "free bits, below": Case(free(50.0, False), lambda r, d: d + r.sum().clamp_min(50.0)),
    "free bits per dimension, above": Case(free(0.4, True), lambda r, d: d + r.clamp_min(0.2).sum()),
    "free bits per dimension, between": Case(free(3.0, True), lambda r, d: d + r.clamp_min(1.5).sum()),
    "free bits per dimension, below": Case(free(60.0, True), lambda r, d: d + r.clamp_min(30.0).sum()),
    "target rate, multiplier 0": Case(with_multiplier(0.0), lambda r, d: d + r.sum()),
    "target rate, multiplier 0.4": Case(with_multiplier(0.4), lambda r, d: d + r.sum() + 0.4 * (2.5 - r.sum())),
    "target rate, multiplier 1.3": Case(with_multiplier(1.3), lambda r, d: d + r.sum() + 1.3 * (2.5 - r.sum())),
}


@pytest.mark.usefixtures("double")
def test_the_cases_are_what_they_are_called() -> None:
    with local_parameters():
        model, guide, x, _ = programs()
        RateDistortionELBO(max_plate_nesting=1)(model, guide)(x)
        rate_d, _ = written_by_hand(model, guide, x, True)
        loc_bnd, scale_bnd = guide.moments(x)
        rate_b = kl_divergence(dist.Normal(loc_bnd, scale_bnd).to_event(2), GaussianAR1(ALPHA, STEPS))
    assert 0.2 < rate_d[0] < 1.5 < rate_d[1] < 30
    assert 1 < rate_b.mean() < 3.5 < rate_b.max()


def common(analytic_kl: bool) -> dict[str, Any]:
    return {"analytic_kl": analytic_kl, "max_plate_nesting": 1}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES.keys())
@pytest.mark.parametrize("analytic_kl", [False, True], ids=["trace", "mean field"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_are_those_written_by_hand(case: Case, analytic_kl: bool, particles: dict[str, Any]) -> None:
    with local_parameters():
        model, guide, x, parameters = programs()
        elbo = case.make(**common(analytic_kl), **particles)
        loss = elbo(model, guide)(x)
        gradients = torch.autograd.grad(loss, parameters)
    rate_d, distortion = written_by_hand(model, guide, x, analytic_kl)
    expected = IMAGES * case.loss(rate_d, distortion)
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters), rtol=1e-9, atol=1e-10)
    # … and what the loop logs is the true ELBO's.
    torch.testing.assert_close(elbo.minimised, loss.detach())
    torch.testing.assert_close(elbo.distortion, IMAGES * distortion.detach())
    rate = kl_divergence(*elbo.latent["z"])
    torch.testing.assert_close(rate.mean(), written_by_hand(model, guide, x, True)[0].sum())
    assert elbo.analytic.keys() == ({"z"} if analytic_kl else set())
    torch.testing.assert_close(elbo.analytic.get("z", rate), rate)
    assert not any(value.requires_grad for value in (elbo.minimised, elbo.distortion, *elbo.analytic.values()))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("analytic_kl", [False, True], ids=["trace", "mean field"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_scaled_program_scales_the_loss(case: Case, analytic_kl: bool) -> None:
    with local_parameters():
        model, guide, x, _ = programs()
        found = []
        for scale in (1.0, 0.01):
            torch.manual_seed(2)
            parts = [pyro.poutine.scale(part, scale) for part in (model, guide)]
            found.append(case.make(**common(analytic_kl)).differentiable_loss(*parts, x))
    torch.testing.assert_close(found[1], 0.01 * found[0])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_images_that_are_masked_do_not_count(case: Case) -> None:
    with local_parameters():
        model, guide, x, _ = programs()
        some, masked = case.make(**common(True)), case.make(**common(True))
        loss = some.differentiable_loss(model, guide, x[:3])
        parts = [pyro.poutine.mask(part, torch.arange(IMAGES) < 3) for part in (model, guide)]
        masked_loss = masked.differentiable_loss(*parts, x)
    # The noise of the two distortions differs, the closed-form rate does not.
    torch.testing.assert_close(masked_loss - masked.distortion, loss - some.distortion)


def gradients_of(elbo: RateDistortionELBO) -> dict[str, Tensor]:
    """Gradients of the guide's parameters, always for the same noise."""
    with local_parameters():
        model, guide, x, _ = programs()
        torch.manual_seed(6)
        elbo(model, guide)(x).backward()
    return {name: parameter.grad for name, parameter in guide.named_parameters()}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("analytic_kl", [False, True], ids=["trace", "mean field"])
def test_free_bits_have_no_gradient(analytic_kl: bool) -> None:
    options = common(analytic_kl)
    of_both = gradients_of(RateDistortionELBO(**options))
    of_distortion = gradients_of(RateDistortionELBO(Beta(beta=0.0), **options))
    assert (of_both["log_scale"] - of_distortion["log_scale"]).abs().min() > 0.05
    for per_dim in (False, True):
        found = gradients_of(free(100.0, per_dim)(**options))
        torch.testing.assert_close(found, of_distortion, rtol=1e-12, atol=1e-12)
        found = gradients_of(free(0.1, per_dim)(**options))
        torch.testing.assert_close(found, of_both, rtol=1e-12, atol=1e-12)
    # 1.5 nats for each dimension: the first lies below its floor, the second above.
    found = gradients_of(free(3.0, True)(**options))
    torch.testing.assert_close(found["log_scale"][:, 0], of_distortion["log_scale"][:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["log_scale"][:, 1], of_both["log_scale"][:, 1], rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_free_bits_per_dimension_need_dimensions() -> None:
    class Student(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.StudentT(3.0, torch.zeros(STEPS, DIMS), 1.0).to_event(2))
                pyro.sample("x", dist.Normal(z.flatten(-2) @ self.weight, 0.5).to_event(1), obs=x)

    with local_parameters():
        model, guide, x, _ = Student(), *programs()[1:]
        free(1.0, False)(max_plate_nesting=1).differentiable_loss(model, guide, x)
        with pytest.raises(UserError, match=r"parts for Normal\(...\).to_event\(2\), not for StudentT with 2"):
            free(1.0, True)(max_plate_nesting=1).differentiable_loss(model, guide, x)


# Dimensions


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("batch", [(), (5,), (3, 5)])
def test_distributions_come_apart_into_dimensions(batch: tuple[int, ...]) -> None:
    prior = GaussianAR1(ALPHA, STEPS).expand(torch.Size(batch))
    posterior = dist.Normal(torch.randn(*batch, STEPS, DIMS), torch.rand(*batch, STEPS, DIMS) + 0.1).to_event(2)
    z = posterior.sample()
    dense = dense_prior()
    parts = per_dimension(prior)
    assert (parts.batch_shape, parts.event_shape) == ((*batch, DIMS), (STEPS, 1))
    torch.testing.assert_close(parts.log_prob(dimensions_of(z)), dense.log_prob(z.mT))
    parts = per_dimension(posterior)
    assert (parts.batch_shape, parts.event_shape) == ((*batch, DIMS), (STEPS, 1))
    expected = MultivariateNormal(posterior.mean.mT, torch.diag_embed(posterior.variance.mT))
    torch.testing.assert_close(parts.log_prob(dimensions_of(z)), expected.log_prob(z.mT))
    kl = kl_divergence(parts, per_dimension(prior))
    torch.testing.assert_close(kl, kl_divergence(expected, dense))
    torch.testing.assert_close(kl.sum(-1), kl_divergence(posterior, prior))


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        (dist.Normal(torch.zeros(3, 2), 1.0).to_event(1), "not for Normal with 1 event dimensions"),
        (dist.Laplace(torch.zeros(3, 2), 1.0).to_event(2), "not for Laplace with 2 event dimensions"),
        (dist.MultivariateNormal(torch.zeros(3), torch.eye(3)), "MultivariateNormal is not known to be independent"),
    ],
)
def test_others_do_not(distribution: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        per_dimension(distribution)


# The multiplier


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("before", [0.0, 0.4])
@pytest.mark.parametrize("target", [1.0, 200.0])
def test_multiplier_climbs_with_the_shortfall(target: float, before: float) -> None:
    with local_parameters():
        model, guide, x, _ = programs()
        objective = TargetRate(target_nats=target, multiplier_lr=0.02)
        objective.varying["multiplier"] = torch.tensor(before)
        RateDistortionELBO(objective, **common(True))(model, guide)(x)
    assert objective.varying["multiplier"] == before, "the loss alone moved it"
    objective.advance(1)
    rate = written_by_hand(model, guide, x, True)[0].sum().item()
    assert objective.varying["multiplier"].item() == pytest.approx(
        max(0.0, before + 0.02 * (1 - rate / target)), abs=1e-12
    )


class ScalarModel(PyroModule):
    """z ~ N(0, 1), x ~ N(2z, 1)."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", GaussianAR1(torch.zeros(1), 1))
            pyro.sample("x", dist.Normal(2.0 * z[..., 0], 1.0).to_event(1), obs=x)


class ScalarGuide(PyroModule):
    """q(z | x) = N(slope · x, variance)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))
        self.log_variance = nn.Parameter(torch.tensor(-0.1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            scale = (0.5 * self.log_variance).exp().expand(len(x), 1, 1)
            pyro.sample("z", dist.Normal(self.slope * x[..., None], scale).to_event(2))


def optimal_rate(weight: float, mean_square: float) -> float:
    """Rate of the ScalarGuide that minimises distortion + weight · rate, by setting both derivatives to zero."""
    slope, variance = 2 / (4 + weight), weight / (4 + weight)
    return 0.5 * (slope**2 * mean_square + variance - 1 - math.log(variance))


@pytest.mark.parametrize("target", [0.3, 1.2])
def test_multiplier_converges(target: float) -> None:
    x = torch.linspace(-2.0, 2.0, 200)[:, None]
    mean_square = x.square().mean().item()
    free = optimal_rate(1.0, mean_square)
    if target > free:
        weight = scipy.optimize.brentq(lambda weight: optimal_rate(weight, mean_square) - target, 1e-3, 1.0)
        rate, multiplier = target, 1 - weight
    else:
        rate, multiplier = free, 0.0
    with local_parameters(), pyro.validation_enabled(False):
        model, guide = ScalarModel(), ScalarGuide()
        objective = TargetRate(target_nats=target, multiplier_lr=0.01)
        elbo = RateDistortionELBO(objective, **common(True))
        loss, optimizer, tail = elbo(model, guide), torch.optim.Adam(guide.parameters(), lr=0.03), []
        for step in range(1, 901):
            optimizer.zero_grad()
            (loss(x) / len(x)).backward()
            optimizer.step()
            objective.advance(step)
            tail.append((elbo.analytic["z"].mean(), objective.varying["multiplier"]))
    found_rate, found_multiplier = torch.tensor(tail[-200:]).mean(0).tolist()
    assert found_rate == pytest.approx(rate, rel=0.02)
    assert found_multiplier == pytest.approx(multiplier, abs=0.02)


def test_multiplier_outlives_a_rate_that_is_not_finite() -> None:
    switch = {"bad": False}
    vae = build(config_of(), SPEC)
    vae.guide.encoder.register_forward_hook(lambda module, args, out: out * math.nan if switch["bad"] else out)
    trainer = trainer_of(vae=vae, objective="target_rate", target_nats=90.0)
    train_steps(trainer, 2)
    before = trainer.varying["multiplier"]
    assert 0 < before < 0.004
    switch["bad"] = True
    train_steps(trainer, 2)
    assert trainer.update.streak == 2
    assert trainer.varying["multiplier"] == before
    switch["bad"] = False
    train_steps(trainer, 1)
    assert before < trainer.varying["multiplier"] < 0.006


# In the loop


def test_annealing_counts_the_trainers_steps() -> None:
    settings = {"objective": "annealed", "anneal_steps": 4}
    trainer, betas = trainer_of(**settings), []
    for step in range(6):
        betas.append(trainer.varying["beta"])
        train_steps(trainer, 1)
        if step == 2:
            state = copy.deepcopy(trainer.state())
    assert betas == [0, 0.25, 0.5, 0.75, 1, 1]
    resumed = trainer_of(**settings)
    assert resumed.varying == {"beta": 0}
    resumed.restore(state, Path("unused"))
    assert resumed.varying == {"beta": 0.75}
    train_steps(resumed, 1)
    assert resumed.varying == {"beta": 1}


def bits_per_dim(nats: float) -> float:
    return nats / (SPEC.scored * math.log(2))


VARYING = {"annealed": {"beta": 0.25}, "target_rate": {"multiplier": None}}


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "elbo"])
@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_the_true_elbo_is_logged_beside_the_loss(elbo: str, objective: str) -> None:
    found, trainers = [], []
    for settings in ({}, {"objective": objective, **OBJECTIVES[objective]}):
        lines: list[dict[str, Any]] = []
        trainers.append(trainer_of(lines, steps=1, log_every=1, validations=1, elbo=elbo, **settings))
        torch.manual_seed(4)
        trainers[-1].run()
        found.append(lines)
    (plain, plain_validation), (line, validation) = found
    for key in ("neg_elbo_bpd", "rate_bpd", "distortion_bpd", "rate_nats_mean", "rate_nats_min", "active_units"):
        assert line[key] == plain[key]
    assert line.keys() - plain.keys() == {"loss_bpd", *VARYING.get(objective, {})}
    assert validation.keys() - plain_validation.keys() <= {"loss_bpd"}
    assert validation["neg_elbo_bpd"] == pytest.approx(validation["rate_bpd"] + validation["distortion_bpd"])

    q, p = trainers[1].elbo.latent["z"]
    rate_d = kl_divergence(per_dimension(q), per_dimension(p)).mean(0)
    rate = rate_d.sum().item()
    expected = {
        "beta": 0.5 * rate,
        "free_bits": max(rate, 1.0),
        "free_bits_per_dim": rate_d.clamp_min(0.5).sum().item(),
        "annealed": 0.0,
        "target_rate": rate,
    }[objective]
    if elbo == "mean_field":
        assert line["loss_bpd"] - line["distortion_bpd"] == pytest.approx(bits_per_dim(expected), abs=1e-5)
    if objective == "annealed":
        assert line["loss_bpd"] == pytest.approx(line["distortion_bpd"])
        assert line["beta"] == 0.25


def test_the_losses_of_a_window_are_averaged() -> None:
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, steps=3, log_every=3, validations=0, objective="beta", beta=0.5)
    step, losses = trainer.train_step, []

    def watch(x: Tensor) -> None:
        step(x)
        losses.append(trainer.elbo.minimised.item() / len(x))

    trainer.train_step = watch  # type: ignore[method-assign]
    trainer.run()
    assert lines[0]["loss_bpd"] == pytest.approx(bits_per_dim(sum(losses) / 3), rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_best_validation_is_that_of_what_is_minimised(objective: str) -> None:
    """By hand from rate and distortion; of what changes as training goes on, the bound decides."""
    lines: list[dict[str, Any]] = []
    options = {**OBJECTIVES[objective], **({"beta": 0.0} if objective == "beta" else {})}
    trainer = trainer_of(lines, steps=30, validations=6, lr=0.02, objective=objective, **options)
    trainer.run()
    lines = [line for line in lines if line["split"] == "validation"]
    by = "loss_bpd" if objective in ("beta", "free_bits", "free_bits_per_dim") else "neg_elbo_bpd"
    assert all(("loss_bpd" in line) == (by == "loss_bpd") for line in lines)
    for line in lines:
        if objective == "beta":
            assert line["loss_bpd"] == pytest.approx(line["distortion_bpd"], rel=1e-6)
        if objective == "free_bits":
            least = bits_per_dim(max(line["rate_nats_mean"], options["free_nats"]))
            assert line["loss_bpd"] == pytest.approx(line["distortion_bpd"] + least, rel=1e-6)
        if objective == "free_bits_per_dim":
            assert line["loss_bpd"] >= line["distortion_bpd"] + bits_per_dim(options["free_nats"]) - 1e-9
    best = min(lines, key=lambda line: line[by])
    assert trainer.best is not None
    assert (trainer.best["step"], trainer.best[by]) == (best["step"], best[by])
    if objective == "beta":
        assert best["step"] != min(lines, key=lambda line: line["neg_elbo_bpd"])["step"]


# Configuration


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_objective_of_a_configuration(objective: str, elbo: str) -> None:
    trainer = trainer_of(elbo=elbo, objective=objective, **OBJECTIVES[objective])
    made = build_objective(trainer.config)
    kind, attributes = {
        "elbo": (NegativeELBO, {}),
        "beta": (Beta, {"beta": 0.5}),
        "free_bits": (FreeBits, {"free_nats": 1.0}),
        "free_bits_per_dim": (FreeBitsPerDimension, {"free_nats": 1.0}),
        "annealed": (Annealed, {"anneal_steps": 4}),
        "target_rate": (TargetRate, {"target_nats": 9.0, "multiplier_lr": 0.002}),
    }[objective]
    assert type(made) is type(trainer.objective) is kind
    assert vars(made).items() >= attributes.items()
    assert made.per_dimension is (objective == "free_bits_per_dim")
    assert trainer.elbo.analytic_kl == (elbo == "mean_field")
    assert trainer.elbo.objective is (None if objective == "elbo" else trainer.objective)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "beta"}, "objective.beta is missing; give it a value."),
        ({"objective": "free_bits"}, "objective.free_nats is missing; give it a value."),
        ({"objective": "free_bits_per_dim"}, "objective.free_nats is missing; give it a value."),
        ({"objective": "annealed"}, "objective.anneal_steps is missing; give it a value."),
        ({"objective": "target_rate"}, "objective.target_nats is missing; give it a value."),
        ({"beta": 0.5}, "unknown setting of the objective 'elbo' 'objective.beta'"),
        (
            {"objective": "annealed", "anneal_steps": 9, "beta": 0.5},
            "unknown setting of the objective 'annealed' 'objective.beta'",
        ),
        ({"objective": "beta", "beta": 0.5, "target_nats": 2.0}, "of the objective 'beta' 'objective.target_nats'"),
        ({"objective": "beta", "beta": -0.1}, "greater than or equal to 0"),
        ({"objective": "free_bits", "free_nats": 0.0}, "greater than 0"),
        ({"objective": "annealed", "anneal_steps": 0}, "greater than or equal to 1"),
        ({"objective": "target_rate", "target_nats": -3.0}, "greater than 0"),
        ({"objective": "target_rate", "target_nats": 3.0, "multiplier_lr": 0.0}, "greater than 0"),
        ({"objective": "gamma"}, "unknown objective 'gamma'; known: annealed, beta, elbo, "),
    ],
)
def test_refused_objectives(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("cycles", [1, 2])
def test_a_sigmoid_rises_from_0_to_1(cycles: int) -> None:
    objective, betas = Annealed(anneal_steps=40, cycles=cycles, curve="sigmoid"), []
    for step in range(200):
        objective.advance(step)
        betas.append(objective.varying["beta"])
    rise = betas[:41]
    assert (rise[0], rise[40], set(betas[40:80])) == (pytest.approx(0, abs=1e-15), 1, {1.0})
    assert rise[20] == pytest.approx(0.5)
    logits = [math.log(beta / (1 - beta)) for beta in (0.5 + (beta - 0.5) * math.tanh(2.5) for beta in rise)]
    assert logits == pytest.approx([0.25 * step - 5 for step in range(41)])
    assert (betas[80:121] == rise) == (cycles == 2)
    assert set(betas[160:]) == {1.0}
