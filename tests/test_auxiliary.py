"""The auxiliary prior: its density and sampler against plain ones, its training apart from the model, its bound."""

import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from networks import random_normal, randomise
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.nn import PyroModule
from scipy import special, stats
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_delta.data import Split
from pyro_delta.diagnostics.bounds import encode, evaluate
from pyro_delta.diagnostics.drawing import decode, draw
from pyro_delta.diagnostics.importance import importance_bound, importance_weights
from pyro_delta.diagnostics.trace import committed, noise_seed
from pyro_delta.distributions import GaussianAR1, SequentialGaussian
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.errors import UserError
from pyro_delta.inference.auxiliary import AuxiliaryTraining, train_prior
from pyro_delta.inference.checkpoint import pack, unpack
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.models import DeltaVAE, LSTMPrior
from pyro_delta.rate import committed_rate, minimising_posterior
from pyro_delta.vae import VAE, with_prior

LENGTH, DIMS = 4, 3


class Chain(PyroModule):
    """The prior that is stood in for."""

    def __init__(self, length: int = LENGTH, dims: int = DIMS, alpha: float = 0.8) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("alpha", torch.full((dims,), alpha))
        self.register_buffer("starts", torch.arange(length))

    def forward(self) -> GaussianAR1:
        return GaussianAR1(self.alpha, self.length)


class Decoder(PyroModule):
    """x ~ N(8 + 4 w z, 1), an image of n rows and d columns."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)

    def forward(self, z: Tensor) -> dist.Independent:
        return dist.Normal(self.net((8 + 4 * z).unsqueeze(-1)).movedim(-1, -3), 1.0).to_event(3)


class Encoder(PyroModule):
    """q(z | x) = N(w (x − 8) / 8 + b, scale²)."""

    causality = "none"

    def __init__(self, scale: Tensor | float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.as_tensor(scale))
        self.encoder = nn.Linear(1, 1)

    def posterior(self, x: Tensor) -> dist.Independent:
        mean = self.encoder((x.float().squeeze(-3).unsqueeze(-1) - 8) / 8).squeeze(-1)
        return dist.Normal(mean, self.scale).to_event(2)

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


@pytest.fixture(params=[True, False], ids=["local", "store"])
def setting(request: pytest.FixtureRequest) -> Iterator[None]:
    """Parameters in the modules, and Pyro's default."""
    with pyro.settings.context(module_local_params=request.param):
        yield


def toy_programs(scale: Tensor | float = 0.3) -> VAE:
    torch.manual_seed(1)
    return VAE(DeltaVAE(Chain(), Decoder()), Encoder(scale))


def toy_images(count: int) -> Tensor:
    """Random, with rows that resemble each other."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 14, (count, 1, 1, DIMS), generator=generator)
    return (first + torch.randint(0, 4, (count, 1, LENGTH, DIMS), generator=generator)).to(torch.uint8)


def lstm(length: int = LENGTH, dims: int = DIMS, mixtures: int = 1, *, hidden: int = 5) -> LSTMPrior:
    """In double precision, with random weights everywhere."""
    return randomise(LSTMPrior(Chain(length, dims), hidden=hidden, mixtures=mixtures))


SIZES = [(1, 1, 1), (4, 2, 1), (5, 1, 2), (3, 2, 3)]
"""Steps, dimensions, components."""


# --- the density ---


class NumPyLSTM:
    """The network of an `LSTMPrior` written out: weights by name, one sequence and one step at a time."""

    def __init__(self, prior: LSTMPrior) -> None:
        self.weights = {name: value.numpy() for name, value in prior.network.state_dict().items()}
        self.dims, self.mixtures = prior.network.dims, prior.network.mixtures

    def step(self, previous_d: np.ndarray, state: tuple[Any, Any] | None) -> tuple[tuple[Any, Any, Any], Any]:
        """Weights (K,), means (K, d) and scales (K, d) of a step, and the new state."""
        w = self.weights
        hidden = w["out.weight"].shape[1]
        h, c = state or (np.zeros(hidden), np.zeros(hidden))
        gates = w["lstm.weight_ih_l0"] @ previous_d + w["lstm.bias_ih_l0"]
        gates = gates + w["lstm.weight_hh_l0"] @ h + w["lstm.bias_hh_l0"]
        enter, forget, cell, leave = gates.reshape(4, hidden)
        c = special.expit(forget) * c + special.expit(enter) * np.tanh(cell)
        h = special.expit(leave) * np.tanh(c)
        out = w["out.weight"] @ h + w["out.bias"]
        k, kd = self.mixtures, self.mixtures * self.dims
        pi = special.softmax(np.concatenate([[0.0], out[: k - 1]]))
        loc, log_scale = out[k - 1 :][:kd], out[k - 1 + kd :]
        return (pi, loc.reshape(k, -1), np.exp(np.clip(log_scale, -7, 7)).reshape(k, -1)), (h, c)

    def conditionals(self, z_nd: np.ndarray) -> list[tuple[Any, Any, Any]]:
        previous, state, found = np.zeros(self.dims), None, []
        for z_d in z_nd:
            conditional, state = self.step(previous, state)
            found.append(conditional)
            previous = z_d
        return found

    def log_prob(self, z_nd: np.ndarray) -> float:
        return sum(
            special.logsumexp(np.log(pi) + stats.norm.logpdf(z_d, loc, scale).sum(1))
            for z_d, (pi, loc, scale) in zip(z_nd, self.conditionals(z_nd), strict=True)
        )


@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_log_prob_is_the_lstm_written_out(n: int, d: int, k: int) -> None:
    prior = lstm(n, d, k)
    witness, z = NumPyLSTM(prior), 2 * random_normal(2, 3, n, d)
    expected = [[witness.log_prob(z_nd) for z_nd in row] for row in z.numpy()]
    torch.testing.assert_close(prior().log_prob(z), torch.tensor(expected), rtol=1e-10, atol=1e-10)
    assert prior().log_prob(z[0, 0]).shape == ()


def test_log_scales_are_clamped() -> None:
    prior = lstm()
    prior.network.out.weight.data.mul_(100)
    z = random_normal(5, LENGTH, DIMS)
    log_scale = prior().conditionals(z).component_distribution.base_dist.scale.log()
    assert log_scale.abs().max().item() == pytest.approx(7)
    expected = [NumPyLSTM(prior).log_prob(z_nd) for z_nd in z.numpy()]
    torch.testing.assert_close(prior().log_prob(z), torch.tensor(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 3), (2, 1), (2, 3), (3, 2)])
def test_integrates_to_one(n: int, k: int) -> None:
    prior = lstm(n, 1, k)
    axis = torch.linspace(-16, 16, 129, dtype=torch.float64)  # a sum over a grid is exact for what is this smooth
    grid = torch.cartesian_prod(*[axis] * n).reshape(-1, n, 1)
    with torch.no_grad():
        total = sum(prior().log_prob(part).exp().sum() for part in grid.split(2**18)) * (axis[1] - axis[0]) ** n
    assert total.item() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_causal_over_steps(n: int, d: int, k: int) -> None:
    prior = lstm(n, d, k)()
    z = random_normal(2, n, d)
    jacobian = torch.autograd.functional.jacobian(lambda z: prior.conditionals(z).log_prob(z), z)
    for b, t, c, s in itertools.product(range(2), range(n), range(2), range(n)):
        moves = jacobian[b, t, c, s].abs() > 0
        assert moves.all() if b == c and s <= t else not moves.any(), (b, t, c, s)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("mixtures", [1, 2])
def test_shapes(batch: tuple[int, ...], mixtures: int) -> None:
    prior = lstm(mixtures=mixtures)()
    wide = prior.expand(batch)
    assert type(wide) is SequentialGaussian
    assert wide.batch_shape == batch
    assert wide.event_shape == (LENGTH, DIMS)
    assert wide.sample().shape == (*batch, LENGTH, DIMS)
    z = wide.sample((5,))
    assert z.shape == (5, *batch, LENGTH, DIMS)
    assert z.dtype == torch.float64
    assert not z.requires_grad
    torch.testing.assert_close(wide.log_prob(z), prior.log_prob(z))
    torch.testing.assert_close(wide.log_prob(z[0]), prior.log_prob(z[0]))
    one = random_normal(LENGTH, DIMS)
    torch.testing.assert_close(wide.log_prob(one), prior.log_prob(one).expand(batch))


def test_bad_samples_are_refused() -> None:
    for bad in (torch.full((LENGTH, DIMS), math.nan), torch.zeros(LENGTH + 1, DIMS)):
        with pytest.raises(ValueError):
            lstm()().log_prob(bad.double())


# --- samples ---


@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_stepwise_samples_are_the_naive_ones(n: int, d: int, k: int) -> None:
    """The witness runs the whole sequence anew for every step, in NumPy."""
    prior, noise = lstm(n, d, k), random_normal(20, n, 1 + d, seed=1)
    witness, expected = NumPyLSTM(prior), np.zeros((20, n, d))
    for z_nd, noise_ne in zip(expected, noise.numpy(), strict=True):
        for t in range(n):
            pi, loc, scale = witness.conditionals(z_nd)[t]
            chosen = np.searchsorted(pi.cumsum()[:-1], stats.norm.cdf(noise_ne[t, 0]), side="right")
            z_nd[t] = loc[chosen] + scale[chosen] * noise_ne[t, 1:]
    sampled = prior().sample((20,), noise=noise)
    torch.testing.assert_close(sampled, torch.tensor(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        prior().expand((4,)).sample((5,), noise=noise.reshape(5, 4, n, -1)).flatten(0, 1), sampled
    )


@pytest.mark.parametrize(("n", "d", "k"), [(3, 1, 1), (2, 2, 3)])
def test_samples_fit_the_density(n: int, d: int, k: int) -> None:
    """Rosenblatt's transform: every coordinate's distribution function, given all before it, is uniform."""
    prior = lstm(n, d, k)
    with torch.no_grad():
        z = prior().sample((3000,))
        mixture = prior().conditionals(z)
    gaussian = mixture.component_distribution.base_dist
    log_pi, loc, scale = mixture.mixture_distribution.logits.numpy(), gaussian.loc.numpy(), gaussian.scale.numpy()
    uniforms = []
    for j in range(d):
        z_bn1 = z[..., j, None].numpy()
        weights = special.softmax(log_pi, -1)
        uniforms.append((weights * stats.norm.cdf(z_bn1, loc[..., j], scale[..., j])).sum(-1))
        log_pi = log_pi + stats.norm.logpdf(z_bn1, loc[..., j], scale[..., j])
    u = np.stack(uniforms, -1).reshape(3000, -1)
    assert all(stats.kstest(column, "uniform").pvalue > 1e-3 for column in u.T)
    for one, other in itertools.combinations(u.T, 2):
        assert stats.spearmanr(one, other).pvalue > 1e-3
        assert stats.spearmanr(abs(one - 0.5), abs(other - 0.5)).pvalue > 1e-3


# --- the program ---


def test_it_starts_as_a_standard_normal_and_several_components_apart() -> None:
    z = random_normal(5, LENGTH, DIMS)
    prior = LSTMPrior(Chain(), hidden=6).double()
    torch.testing.assert_close(prior().log_prob(z), dist.Normal(torch.zeros(LENGTH, DIMS), 1.0).to_event(2).log_prob(z))
    loc = LSTMPrior(Chain(), mixtures=3)().conditionals(z.float()).component_distribution.base_dist.loc
    assert (loc[..., 0, :] != loc[..., 1, :]).all()


def test_it_stands_in_for_its_prior() -> None:
    chain = Chain(5, 2)
    prior = LSTMPrior(chain, hidden=3)
    assert prior().event_shape == chain().event_shape
    assert torch.equal(prior.starts, chain.starts)


@pytest.mark.parametrize("option", [{"hidden": 0}, {"mixtures": 0}, {"mixtures": -2}])
def test_bad_options(option: dict[str, int]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"{name} {value}"):
        LSTMPrior(Chain(), **option)


@pytest.mark.usefixtures("setting")
def test_a_model_generates_from_it() -> None:
    torch.manual_seed(0)
    model = DeltaVAE(lstm().float(), Decoder())
    nodes = poutine.trace(model).get_trace(batch=4).nodes
    assert nodes["z"]["value"].shape == (4, LENGTH, DIMS)
    assert nodes["x"]["value"].shape == (4, 1, LENGTH, DIMS)
    replayed = poutine.trace(poutine.condition(model, {"z": nodes["z"]["value"]})).get_trace(nodes["x"]["value"])
    replayed.compute_log_prob()
    torch.testing.assert_close(replayed.nodes["z"]["log_prob"], model.prior().log_prob(nodes["z"]["value"]))
    for parallel in (False, True):
        drawn = Predictive(model, num_samples=5, parallel=parallel)(batch=2)
        assert drawn["z"].shape == (5, 2, LENGTH, DIMS)
        assert drawn["x"].shape == (5, 2, 1, LENGTH, DIMS)


@pytest.mark.usefixtures("setting")
def test_vectorised_particles() -> None:
    vae, x = toy_programs(), toy_images(4)
    model = with_prior(vae, lstm().float()).model
    with torch.no_grad():
        torch.manual_seed(0)
        q = vae.guide.posterior(x)
        z = q.rsample((6,))
        expected = (q.log_prob(z) - model.prior().log_prob(z) - model.likelihood(z).log_prob(x)).sum(1).mean()
        torch.manual_seed(0)
        elbo = Trace_ELBO(num_particles=6, vectorize_particles=True, max_plate_nesting=1)
        assert elbo.loss(model, vae.guide, x) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_every_device_and_precision(mixtures: int) -> None:
    """On the meta device any tensor that is made elsewhere is an error."""
    prior = LSTMPrior(Chain(), hidden=6, mixtures=mixtures).to("meta")
    with pyro.validation_enabled(False):
        z = prior().expand((7,)).sample((2,))
        assert z.device.type == prior().log_prob(z).device.type == "meta"
        assert z.shape == (2, 7, LENGTH, DIMS)
        assert prior().log_prob(z).shape == (2, 7)
    single = lstm(mixtures=mixtures).float()
    wide, z = as_float64(single()), random_normal(4, LENGTH, DIMS)
    expected = copy.deepcopy(single).double()().log_prob(z)
    torch.testing.assert_close(wide.log_prob(z), expected.detach(), rtol=1e-14, atol=0)
    assert wide.sample().dtype == torch.float64
    assert single().sample().dtype == torch.float32


def test_it_commits_no_rate() -> None:
    for blocks in (None, 1):
        with pytest.raises(UserError, match="SequentialGaussian commits no rate"):
            committed_rate(LSTMPrior(Chain())(), blocks)


# --- training ---


def flat(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def training_of(mixtures: int = 1, *, seed: int = 0, **options: Any) -> AuxiliaryTraining:
    torch.manual_seed(seed)
    return AuxiliaryTraining(LSTMPrior(Chain(), hidden=8, mixtures=mixtures), **options)


def test_a_step_is_adam_on_the_mean_over_the_batch() -> None:
    training = training_of(lr=0.1)
    theirs = copy.deepcopy(training.prior)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.05)
    for seed in range(3):
        z = random_normal(6, LENGTH, DIMS, seed=seed).float()
        training.step(z, part=0.5)
        optimizer.zero_grad()
        loss = sum(-theirs().log_prob(each) for each in z) / 6
        loss.backward()
        optimizer.step()
        assert training.cross_entropy.item() == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(flat(training.prior), flat(theirs), rtol=1e-4, atol=1e-5)
    before = flat(LSTMPrior(Chain(), hidden=8))
    assert (flat(training.prior) != before).all()


def test_no_gradient_reaches_the_programs() -> None:
    vae, training = toy_programs(), training_of()
    z = vae.guide.posterior(toy_images(5)).rsample()
    assert z.requires_grad
    training.step(z)
    training.step(vae.guide.posterior(toy_images(5)).rsample())
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize("analytic_kl", [False, True], ids=["trace", "mean field"])
def test_training_beside_a_model_leaves_the_model_as_it_would_be(analytic_kl: bool) -> None:
    found = []
    for beside in (False, True):
        with pyro.settings.context(module_local_params=True):
            vae = toy_programs()
            training = training_of()
            start = flat(training.prior)
            elbo = RateDistortionELBO(analytic_kl=analytic_kl, max_plate_nesting=1)
            loss, optimizer = elbo(vae.model, vae.guide), torch.optim.Adam(vae.parameters(), lr=1e-2)
            torch.manual_seed(2)
            for _ in range(3):
                optimizer.zero_grad()
                loss(toy_images(5)).backward()
                optimizer.step()
                if beside:
                    training.step(elbo.drawn["z"])
            assert torch.equal(flat(training.prior), start) is not beside
            found.append(flat(vae))
    assert torch.equal(*found)


def test_the_elbo_hands_on_the_guides_sample() -> None:
    vae, x = toy_programs(), toy_images(5)
    for particles in ({}, {"num_particles": 3, "vectorize_particles": True}):
        elbo = RateDistortionELBO(max_plate_nesting=1, **particles)
        torch.manual_seed(0)
        elbo.differentiable_loss(vae.model, vae.guide, x)
        torch.manual_seed(0)
        z = vae.guide.posterior(x).rsample((3,) if particles else ())
        assert torch.equal(elbo.drawn["z"], z)
        assert not elbo.drawn["z"].requires_grad


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    training, z = training_of(), random_normal(6, LENGTH, DIMS).float()
    with pyro.validation_enabled(False):
        training.step(z)
        before, average = flat(training.prior), flat(training.average)
        for bad in (math.nan, math.inf):
            training.step(z + bad)
        assert torch.equal(flat(training.prior), before)
        torch.testing.assert_close(flat(training.average), average)
        assert int(training.update.skipped) == 2
        training.step(z)
        assert not torch.equal(flat(training.prior), before)
        assert flat(training.prior).isfinite().all()


def test_a_restored_training_goes_on_as_if_uninterrupted(tmp_path: Path) -> None:
    z = random_normal(6, 5, LENGTH, DIMS).float()
    whole = training_of(mixtures=2)
    for each in z:
        whole.step(each)
    first, second = training_of(mixtures=2), training_of(mixtures=2, seed=9)
    for each in z[:3]:
        first.step(each)
    second.restore(unpack(pack({"auxiliary": first.state()}), tmp_path)["auxiliary"], tmp_path)
    for each in z[3:]:
        second.step(each)
    assert torch.equal(flat(second.prior), flat(whole.prior))
    assert torch.equal(flat(second.average), flat(whole.average))
    with pytest.raises(UserError, match="differs or is missing"):
        training_of(mixtures=3).restore(first.state(), tmp_path)


def test_pyros_store_never_sees_it() -> None:
    """So no handler, and no SVI over a model that holds it, can train it."""
    training = training_of(lr=0.1)
    for seed in range(3):
        training.step(random_normal(6, LENGTH, DIMS, seed=seed).float())
    average = flat(training.average)
    poutine.trace(DeltaVAE(training.prior, Decoder())).get_trace(batch=2)
    encode(with_prior(toy_programs(), training.average.module), toy_images(5))
    assert torch.equal(flat(training.average), average)
    assert not torch.allclose(flat(training.prior), average)
    assert not any("lstm" in name for name in pyro.get_param_store())


class Recording(AuxiliaryTraining):
    """Keeps every z that it was given."""

    def step(self, z: Tensor, part: float = 1.0) -> None:
        self.seen = [*getattr(self, "seen", []), z]
        super().step(z, part)


@pytest.mark.usefixtures("setting")
def test_training_afterwards_draws_z_anew_and_leaves_everything_else_alone() -> None:
    vae, split = toy_programs(), Split(toy_images(6), None)
    torch.manual_seed(0)
    training = Recording(LSTMPrior(Chain(), hidden=8), lr=0.01)
    before, state, mode = flat(vae), torch.get_rng_state(), vae.training
    lines: list[dict[str, float]] = []
    train_prior(training, vae, split, 5, batch=6, log_every=2, log=lines.append)
    assert torch.equal(flat(vae), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training is mode
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[1]["lr"] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 3 / 5)))
    with torch.no_grad():
        q = vae.guide.posterior(split.x)
        for one, other in itertools.combinations(training.seen, 2):
            # The same six images in another order: sums agree only as far as the draws do.
            assert not torch.allclose(one.sum(0), other.sum(0), rtol=1e-4)
        mean, scale = torch.stack(training.seen).flatten(0, 1).mean(0), q.stddev.max()
        assert ((mean - q.mean.mean(0)).abs() < 5 * scale / math.sqrt(30)).all()


def test_the_lines_of_training_afterwards_are_means_since_the_last_one() -> None:
    vae, split = toy_programs(), Split(toy_images(6), None)
    every: list[dict[str, float]] = []
    pairs: list[dict[str, float]] = []
    for log_every, lines in ((1, every), (2, pairs)):
        train_prior(training_of(), vae, split, 4, batch=3, log_every=log_every, log=lines.append)
    for key in ("cross_entropy_nats", "rate_nats_mean"):
        means = [(every[i][key] + every[i + 1][key]) / 2 for i in (0, 2)]
        assert [line[key] for line in pairs] == pytest.approx(means, rel=1e-5)
    # The first step meets the initial prior, N(0, 1).
    assert every[0]["rate_nats_mean"] - every[0]["cross_entropy_nats"] == pytest.approx(
        -12 * (math.log(0.3) + 0.5 * math.log(2 * math.pi) + 0.5), abs=5
    )


def test_several_components_find_two_modes() -> None:
    """All of a step's dimensions at −2 or at 2, as the step before or not: one Gaussian cannot say that."""
    generator = torch.Generator().manual_seed(0)

    def draw_z(count: int) -> Tensor:
        sign = torch.randint(0, 2, (count, LENGTH, 1), generator=generator) * 2.0 - 1
        return 2 * sign + 0.3 * torch.randn(count, LENGTH, DIMS, generator=generator)

    cross_entropies = []
    for mixtures in (1, 2):
        training = training_of(mixtures, lr=0.02)
        for step in range(250):
            training.step(draw_z(64), part=1 - step / 250)
        with torch.no_grad():
            cross_entropies.append(-training.prior().log_prob(draw_z(2000)).mean().item())
    entropy = LENGTH * (math.log(2) + DIMS * (math.log(0.3) + 0.5 * math.log(2 * math.pi * math.e)))
    assert cross_entropies[1] == pytest.approx(entropy, abs=0.5)
    assert cross_entropies[0] > entropy + 5


# --- the bound ---


@pytest.mark.usefixtures("setting")
def test_the_bound_has_the_same_distortion_from_the_same_z() -> None:
    vae, images, prior = toy_programs(), toy_images(30), lstm().float()
    other = with_prior(vae, prior)
    own, auxiliary = encode(vae, images, seed=3), encode(other, images, seed=3)
    assert torch.equal(auxiliary.z["z"], own.z["z"])
    assert torch.equal(auxiliary.distortion, own.distortion)
    assert own.closed_form
    assert not auxiliary.closed_form
    numbers = evaluate(vae, Split(images, None), seed=3)
    tighter = evaluate(other, Split(images, None), particles=2, seed=3)
    assert tighter["distortion_bpd"] == numbers["distortion_bpd"]
    assert tighter["distortion_bpd_se"] == numbers["distortion_bpd_se"]
    assert tighter["delta_nats"] is None
    assert committed(vae, images).nats == numbers["delta_nats"] is not None
    with torch.no_grad():
        rate = (vae.guide.posterior(images).log_prob(own.z["z"]) - prior().log_prob(own.z["z"])).double()
    assert tighter["rate_nats_mean"] == pytest.approx(rate.mean().item(), rel=1e-5)
    assert tighter["rate_nats_mean_se"] == pytest.approx(rate.std().item() / math.sqrt(30), rel=1e-4)
    bound = importance_bound(importance_weights(other, images, 1, seed=3))
    torch.testing.assert_close(bound, auxiliary.distortion + rate, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("setting")
def test_programs_keep_their_own_prior() -> None:
    vae = toy_programs().eval()
    chain, names = vae.model.prior, list(vae.state_dict())
    prior = lstm().float()
    other = with_prior(vae, prior)
    evaluate(other, Split(toy_images(5), None))
    poutine.trace(other.model).get_trace(batch=2)
    assert vae.model.prior is chain
    assert list(vae.state_dict()) == names
    assert not vae.training
    assert not vae.model.likelihood.training
    assert other.model.prior is prior
    assert other.model.likelihood is vae.model.likelihood
    assert other.guide is vae.guide
    poutine.trace(vae.model).get_trace(batch=2)


@pytest.mark.usefixtures("setting")
def test_pictures_come_from_the_prior_in_place() -> None:
    vae, prior = toy_programs(), lstm().float()
    other = with_prior(vae, prior)
    with torch.no_grad():
        torch.manual_seed(noise_seed(5))
        z = prior().expand([3]).sample()
        for decodings in (None, 2):
            expected = decode(vae, z.repeat(decodings or 1, 1, 1), seed=6)
            assert torch.equal(draw(other, 3, decodings=decodings, seed=5), expected)


def trained(vae: VAE, split: Split, steps: int = 200) -> VAE:
    """The programs with an auxiliary prior trained for them."""
    training = training_of(lr=0.02)
    train_prior(training, vae, split, steps, batch=64)
    return with_prior(vae, training.average.module)


def test_after_training_the_rate_is_at_most_that_of_the_models_prior() -> None:
    vae, split = toy_programs(), Split(toy_images(300), None)
    own, auxiliary = (evaluate(each, split) for each in (vae, trained(vae, split)))
    assert auxiliary["distortion_bpd"] == own["distortion_bpd"]
    assert auxiliary["rate_nats_mean"] <= own["rate_nats_mean"] + auxiliary["rate_nats_mean_se"]
    assert auxiliary["rate_nats_mean"] < 0.9 * own["rate_nats_mean"]


def test_the_rate_of_a_guide_that_ignores_x_falls_from_delta_to_zero() -> None:
    """At the floor of the AR(1) prior the posterior is the same for every image: nothing has to be said."""
    vae = toy_programs(minimising_posterior(Chain()()).base_dist.scale)
    nn.init.zeros_(vae.guide.encoder.weight)
    nn.init.zeros_(vae.guide.encoder.bias)
    split = Split(toy_images(300), None)
    own, auxiliary = (evaluate(each, split) for each in (vae, trained(vae, split)))
    assert own["rate_nats_mean"] == pytest.approx(own["delta_nats"], rel=1e-5)
    with torch.no_grad():
        q, p = vae.guide.posterior(split.x[:1]), vae.model.prior()
        assert kl_divergence(q, p).item() == pytest.approx(own["delta_nats"], rel=1e-5)
    assert own["delta_nats"] > 2
    assert abs(auxiliary["rate_nats_mean"]) < 0.4
