"""The ELBO against Pyro's, the step against `pyro.infer.SVI`, and a run against its own interruption."""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_delta.build import build
from pyro_delta.config import Config, TrainingConfig, validate
from pyro_delta.data import Split, Splits
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.bounds import encode
from pyro_delta.errors import CheckFailed, UserError
from pyro_delta.inference import training
from pyro_delta.inference.checkpoint import TrainingState, check_types, pack, unpack
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.inference.objectives import Beta
from pyro_delta.inference.optim import MAX_STREAK, MovingAverage, learning_rate, make_optimizer
from pyro_delta.inference.pyro_training import PyroTraining, Window
from pyro_delta.nn.precision import Network
from pyro_delta.vae import VAE, local_parameters

SPEC = ImageSpec(1, 4, 4, 5)
TRUNK = {"channels": [4, 6], "row_blocks": [1, 1], "pixel_blocks": 1}


OBJECTIVE_OPTIONS = {"beta", "free_nats", "anneal_steps", "cycles", "target_nats", "multiplier_lr"}


def config_of(objective: str = "elbo", **training: Any) -> Config:
    if not {"steps", "minutes"} & training.keys():
        training["steps"] = 6
    options = {key: training.pop(key) for key in OBJECTIVE_OPTIONS & training.keys()}
    return validate(
        {
            "data": {},
            "prior": {"dims": 2, "alpha": "0.5:0.8"},
            "likelihood": {**TRUNK, "mixtures": 2, "latent_channels": 3},
            "guide": {**TRUNK, "features": 6},
            "objective": {"program": objective, **options},
            "training": {"batch": 5, "warmup": 0, "validations": 2, "log_every": 2, **training},
        }
    )


def toy_data() -> Splits:
    """Random images whose rows repeat, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, 5, (40, 1, 1, 4), generator=generator)
    images = ((first + torch.arange(4)[:, None]) % 5).to(torch.uint8)
    train, validation, test = (Split(part, None) for part in images.split((24, 8, 8)))
    return Splits(SPEC, train, validation, test)


def trainer_of(lines: list[dict[str, Any]] | None = None, vae: VAE | None = None, **training: Any) -> PyroTraining:
    config = config_of(**training)
    if vae is None:
        torch.manual_seed(config.training.seed)
        vae = build(config, SPEC)
    return PyroTraining(config, toy_data(), vae, [].append if lines is None else lines.append)


def train_steps(trainer: PyroTraining, count: int) -> None:
    """Steps without logging, validation of arguments off, as in the loop."""
    with local_parameters(), pyro.validation_enabled(False):
        for _ in range(count):
            trainer.train_step(trainer.batches.batch(trainer.step))


def flat(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


# Precision


@pytest.mark.parametrize(
    ("capabilities", "capability", "computes"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "bf16"}, "AVX512", False),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "AVX512", True),
        ({"neon": True, "bf16": True}, "DEFAULT", True),
        ({}, "AVX2", False),  # torch that does not tell more
        ({}, "AVX512", True),
    ],
)
def test_a_cpu_trains_in_bfloat16_only_where_it_computes_in_it(
    capabilities: dict[str, Any], capability: str, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    trainer = trainer_of(bf16=True)
    assert {part.bf16 for part in trainer.vae.modules() if isinstance(part, Network)} == {computes}
    assert (trainer.notices == []) is computes
    assert trainer_of(bf16=False).notices == []


def test_the_averaged_programs_have_the_newest_buffers() -> None:
    vae = build(config_of(), SPEC)
    vae.guide.register_buffer("calls", torch.zeros(()))
    trainer = trainer_of(vae=vae)
    vae.guide.calls += 3
    assert trainer.averaged().guide.calls == 3
    assert trainer.weights()["vae"]["guide.calls"] == 3


# The objective


class ToyModel(PyroModule):
    """A global and a local latent, a subsampled plate, a mask: whatever scales a site."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(self.weight, 1.0).to_event(1))
        with pyro.plate("data", len(x), subsample_size=4) as index, pyro.poutine.mask(mask=x[index] > -0.5):
            z = pyro.sample("z", dist.Normal(w[..., 0], 1.5))
            pyro.sample("x", dist.Normal(z * w[..., 1], 0.5), obs=x[index])


class ToyGuide(PyroModule):
    """Amortised in the local latent."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.1, 0.2]))
        self.slope = nn.Parameter(torch.tensor(0.6))
        self.log_scale = nn.Parameter(torch.tensor(-0.4))

    def forward(self, x: Tensor) -> None:
        pyro.sample("w", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
        with pyro.plate("data", len(x), subsample_size=4) as index, pyro.poutine.mask(mask=x[index] > -0.5):
            pyro.sample("z", dist.Normal(self.slope * x[index], self.log_scale.exp()))


def toy_programs() -> tuple[nn.Module, nn.Module, Tensor]:
    return ToyModel(), ToyGuide(), torch.linspace(-1.5, 1.5, 10)


def delta_vae() -> tuple[nn.Module, nn.Module, Tensor]:
    vae = build(config_of(), SPEC)
    # Away from the start, where the posterior is flat and some gradients vanish.
    for parameter in vae.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return vae.model, vae.guide, toy_data().train.x[:3]


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


PARTICLES = {
    "one": {},
    "three": {"num_particles": 3},
    "three vectorised": {"num_particles": 3, "vectorize_particles": True},
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES.keys())
@pytest.mark.parametrize("analytic_kl", [False, True], ids=["trace", "mean field"])
@pytest.mark.parametrize("make", [toy_programs, delta_vae])
def test_elbo_equals_pyro(
    make: Callable[[], tuple[nn.Module, nn.Module, Tensor]], analytic_kl: bool, particles: dict[str, Any]
) -> None:
    with local_parameters():
        model, guide, x = make()
        parameters = [*model.parameters(), *guide.parameters()]
        theirs = TraceMeanField_ELBO if analytic_kl else Trace_ELBO
        found = []
        for elbo in (theirs(max_plate_nesting=1, **particles), RateDistortionELBO(
            analytic_kl=analytic_kl, max_plate_nesting=1, **particles
        )):  # fmt: skip
            torch.manual_seed(3)
            loss = elbo(model, guide)(x)
            found.append((loss.detach(), torch.autograd.grad(loss, parameters)))
    (loss, gradients), (our_loss, our_gradients) = found
    torch.testing.assert_close(our_loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(our_gradients, gradients, rtol=1e-9, atol=1e-11)
    assert sum(gradient.abs().max() > 1e-6 for gradient in gradients) > 0.8 * len(gradients)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("analytic_kl", [False, True], ids=["trace", "mean field"])
def test_distortion_and_latents_are_in_sight(analytic_kl: bool) -> None:
    with local_parameters():
        model, guide, x = delta_vae()
        elbo = RateDistortionELBO(analytic_kl=analytic_kl, num_particles=2, max_plate_nesting=1)
        torch.manual_seed(0)
        loss = elbo(model, guide)(x)
        torch.manual_seed(0)
        q, p = guide.posterior(x), model.prior()
        z_pbnd = [q.rsample(), q.rsample()]
        distortion = -sum(model.likelihood(z).log_prob(x).sum() for z in z_pbnd) / 2
        if analytic_kl:
            rate = torch.distributions.kl_divergence(q, p).sum()
        else:
            rate = sum((q.log_prob(z) - p.log_prob(z)).sum() for z in z_pbnd) / 2
    torch.testing.assert_close(elbo.distortion, distortion.detach())
    assert not elbo.distortion.requires_grad
    torch.testing.assert_close(loss, distortion + rate)
    torch.testing.assert_close(elbo.latent["z"][0].mean, q.mean)
    assert type(elbo.latent["z"][1]) is type(p)


class OneSite(PyroModule):
    """A program of one latent site, and an observation if it is the model."""

    def __init__(self, site: dist.TorchDistribution, *, observed: bool) -> None:
        super().__init__()
        self.site, self.observed = site, observed

    def forward(self) -> None:
        z = pyro.sample("latent", self.site)
        if self.observed:
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))


def test_a_guide_without_rsample_is_refused() -> None:
    elbo = RateDistortionELBO(max_plate_nesting=0)
    with pytest.raises(UserError, match=r"'latent' of the guide, Poisson, has no rsample"):
        elbo(
            OneSite(dist.Poisson(torch.tensor(2.0)), observed=True),
            OneSite(dist.Poisson(torch.tensor(3.0)), observed=False),
        )()


class Named(PyroModule):
    """Samples the sites it is told to, and an observation if it is the model."""

    def __init__(self, names: str, *, observed: bool) -> None:
        super().__init__()
        self.names, self.observed = names, observed

    def forward(self) -> None:
        total = sum(pyro.sample(name, dist.Normal(0.0, 1.0)) for name in self.names)
        if self.observed:
            pyro.sample("x", dist.Normal(total, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize(
    ("model", "guide", "words"),
    [("ab", "a", "the model samples 'b', which the guide"), ("a", "ab", "the guide samples 'b', which the model")],
)
def test_model_and_guide_sample_the_same_sites(model: str, guide: str, words: str) -> None:
    elbo = RateDistortionELBO(max_plate_nesting=0)
    with pyro.validation_enabled(False), pytest.raises(UserError, match=words):
        elbo(Named(model, observed=True), Named(guide, observed=False))()


def test_a_guide_that_observes_is_refused() -> None:
    """Its density would be neither rate nor distortion; what it notes down has none."""

    def model() -> None:
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=torch.tensor(0.0))

    def guide(factor: bool) -> None:
        z = pyro.deterministic("twice", 2 * pyro.sample("z", dist.Normal(0.0, 1.0)))
        if factor:
            pyro.factor("reg", -z.square(), has_rsample=True)

    for analytic_kl in (False, True):
        elbo = RateDistortionELBO(analytic_kl=analytic_kl, max_plate_nesting=0)
        with pyro.validation_enabled(False):  # Pyro's own would warn of `twice`
            assert elbo.loss(model, functools.partial(guide, False)) < 10
            with pytest.raises(UserError, match="the guide observes 'reg', whose density is neither rate nor dist"):
                elbo.loss(model, functools.partial(guide, True))


@pytest.mark.parametrize("beta", [None, 0.0])
@pytest.mark.parametrize("analytic_kl", [False, True])
def test_svi_minimises_what_it_is_given(analytic_kl: bool, beta: float | None) -> None:
    objective = None if beta is None else Beta(beta=beta)
    model, guide, x = delta_vae()
    elbo = RateDistortionELBO(objective, analytic_kl=analytic_kl, max_plate_nesting=1)
    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.5}), elbo)
    torch.manual_seed(3)
    loss = elbo.differentiable_loss(model, guide, x)
    learning = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
    slopes = torch.autograd.grad(loss, learning, allow_unused=True)
    expected = [p if slope is None else p - 0.5 * slope for p, slope in zip(learning, slopes, strict=True)]
    torch.manual_seed(3)
    assert svi.evaluate_loss(x) == pytest.approx(loss.item(), rel=1e-6)
    torch.manual_seed(3)
    assert svi.step(x) == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(learning, [each.detach() for each in expected])


def test_sites_of_an_earlier_call_are_gone() -> None:
    elbo = RateDistortionELBO(analytic_kl=True, max_plate_nesting=0)
    for names in ("ab", "c"):
        elbo(Named(names, observed=True), Named(names, observed=False))()
    assert elbo.latent.keys() == elbo.analytic.keys() == elbo.drawn.keys() == {"c"}


def test_a_missing_closed_form_is_an_error_not_a_fall_back() -> None:
    model = OneSite(dist.StudentT(torch.tensor(3.0)), observed=True)
    guide = OneSite(dist.Normal(torch.tensor(0.0), 1.0), observed=False)
    with pytest.raises(UserError, match=r"'latent' has no closed-form KL from Normal to StudentT.*--elbo trace"):
        RateDistortionELBO(analytic_kl=True, max_plate_nesting=0)(model, guide)()
    assert RateDistortionELBO(max_plate_nesting=0)(model, guide)().isfinite()


# The step


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_same_steps_as_svi(elbo: str, optimizer: str) -> None:
    settings = {"elbo": elbo, "optimizer": optimizer, "lr": 3e-3, "decay": "none", "weight_decay": 0.01}
    trainer = trainer_of(**settings)
    theirs = copy.deepcopy(trainer.vae)
    start = flat(theirs)
    torch.manual_seed(5)
    train_steps(trainer, 4)

    pyro.clear_param_store()
    make = {"adam": pyro.optim.Adam, "adamw": pyro.optim.AdamW}[optimizer]
    loss = {"trace": Trace_ELBO, "mean_field": TraceMeanField_ELBO}[elbo](max_plate_nesting=1)
    # SVI's loss is a sum over the batch; Adam would forgive the factor but for its ε.
    scale = 1 / (5 * SPEC.scored)
    model, guide = pyro.poutine.scale(theirs.model, scale), pyro.poutine.scale(theirs.guide, scale)
    svi = SVI(model, guide, make({"lr": 3e-3, "weight_decay": 0.01}), loss)
    torch.manual_seed(5)
    for step in range(4):
        svi.step(trainer.batches.batch(step))
    assert (flat(theirs) - start).abs().max() > 5e-3
    torch.testing.assert_close(flat(trainer.vae), flat(theirs), rtol=1e-8, atol=1e-10)


def test_every_parameter_moves() -> None:
    trainer = trainer_of()
    before = {name: value.clone() for name, value in trainer.vae.named_parameters()}
    train_steps(trainer, 2)
    still = [name for name, value in trainer.vae.named_parameters() if torch.equal(value, before[name])]
    assert still == []


class HostSyncs(TorchDispatchMode):
    """Notes every operation that would make the host wait for a GPU, without a GPU.

    A tensor lives on the device if it is one of `resident`, or computed from one that does; a tensor made from nothing,
    like the moving average's counter, lives on the CPU, and reading it waits for nothing.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()
        self.found: list[str] = []
        self.read_on_cpu = 0
        self.on_device: dict[int, Tensor] = {}  # by address; held, so that no address is used twice
        self.place(resident)

    def place(self, tensors: Iterable[Tensor]) -> None:
        self.on_device |= {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.untyped_storage().data_ptr() in self.on_device for tensor in inputs)
        if on_device:
            self.place(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        if func.overloadpacket.__name__ in self.WAITING:
            if on_device:
                self.found.append(func.overloadpacket.__name__)
            else:
                self.read_on_cpu += 1
        return out


OBJECTIVES: dict[str, dict[str, Any]] = {
    "elbo": {},
    "beta": {"beta": 0.5},
    "free_bits": {"free_nats": 1.0},
    "free_bits_per_dim": {"free_nats": 1.0},
    "annealed": {"anneal_steps": 4},
    "target_rate": {"target_nats": 9.0},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_no_host_synchronisation_in_a_step(
    elbo: str, clip: float | None, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(elbo=elbo, clip=clip, ema=0.9, objective=objective, **OBJECTIVES[objective])
    train_steps(trainer, 1)
    window, update, average = Window(0.0), trainer.update, trainer.average.module
    modules = [*trainer.vae.parameters(), *trainer.vae.buffers(), *average.parameters(), *average.buffers()]
    moments = [leaf for leaf in tree_leaves(trainer.optimizer.state_dict()) if isinstance(leaf, Tensor)]
    syncs = HostSyncs([trainer.batches.split.x, *modules, *moments, update.skipped, update.streak, update.norm])
    # The few that never reach the dispatcher.
    for name in ("tolist", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, name, lambda *_, name=name: syncs.found.append(name))
    with syncs:
        train_steps(trainer, 2)
        window.add(trainer.elbo)
    monkeypatch.undo()
    assert syncs.found == []
    assert syncs.read_on_cpu > 0, "the average's counter was not seen: the witness is blind"
    assert trainer.average.n_averaged.device.type == "cpu"


def test_pyros_own_elbo_does_synchronise() -> None:
    """The witness above sees what it looks for."""
    with local_parameters():
        model, guide, x = delta_vae()
        with HostSyncs([x, *model.parameters(), *guide.parameters()]) as syncs:
            Trace_ELBO(max_plate_nesting=1)(model, guide)(x)
    assert syncs.found.count("_local_scalar_dense") >= 3


SCHEDULES = [
    # decay, warmup, step, progress, part of lr
    ("none", 0, 0, 0.0, 1.0),
    ("none", 9, 0, 0.0, 0.1),
    ("none", 9, 4, 0.2, 0.5),
    ("none", 9, 9, 0.3, 1.0),
    ("none", 9, 500, 1.0, 1.0),
    ("linear", 0, 0, 0.0, 1.0),
    ("linear", 0, 50, 0.5, 0.1 + 0.9 * 0.5),
    ("linear", 0, 100, 1.0, 0.1),
    ("linear", 0, 100, 1.2, 0.1),
    ("linear", 9, 1, 0.25, 0.2 * (0.1 + 0.9 * 0.75)),
    ("cosine", 0, 0, 0.0, 1.0),
    ("cosine", 0, 1, 1 / 3, 0.1 + 0.9 * 0.75),
    ("cosine", 0, 1, 0.5, 0.1 + 0.9 * 0.5),
    ("cosine", 0, 1, 2 / 3, 0.1 + 0.9 * 0.25),
    ("cosine", 0, 1, 1.0, 0.1),
]


@pytest.mark.parametrize(("decay", "warmup", "step", "progress", "expected"), SCHEDULES)
def test_learning_rate(decay: Any, warmup: int, step: int, progress: float, expected: float) -> None:
    config = TrainingConfig(steps=100, lr=0.02, decay=decay, warmup=warmup, final=0.1)
    assert learning_rate(config, step, progress) == pytest.approx(0.02 * expected)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.01), (3, 0.02), (99, 0.02), (399, 0.01), (9999, 0.002)])
def test_learning_rate_below_a_root(step: int, expected: float) -> None:
    config = TrainingConfig(steps=10**6, lr=0.02, lr_sqrt=0.2, decay="none", warmup=1)
    assert learning_rate(config, step, 0.0) == pytest.approx(expected)


def test_the_sum_of_rates_below_a_root_times_the_rate() -> None:
    """At most 2c², however long the training."""
    config = TrainingConfig(steps=10**5, lr=0.02, lr_sqrt=0.11, decay="none", warmup=0)
    rates = torch.tensor([learning_rate(config, step, 0.0) for step in range(10**5)], dtype=torch.float64)
    assert 0.95 < (rates.cumsum(0) * rates).max() / (2 * 0.11**2) < 1


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_what_model_and_guide_share_learns_once(optimizer: str) -> None:
    config = config_of(optimizer=optimizer, guide_lr=0.5)
    vae = build(config, SPEC)
    vae.guide.likelihood = vae.model.likelihood
    groups = make_optimizer(vae, config.training).param_groups
    rates = {p: group["factor"] for group in groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    assert {rates[p] for p in vae.model.parameters()} == {1.0}
    assert {rates[p] for p in vae.guide.encoder.parameters()} == {0.5}


def test_learning_rate_reaches_the_optimiser() -> None:
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, steps=4, log_every=1, validations=0, lr=0.02, decay="linear", final=0.0, warmup=1)
    trainer.run()
    # step k runs at warm-up (k + 1)/2 and with k of 4 steps over
    assert [line["lr"] for line in lines] == pytest.approx([0.02 * part for part in (0.5, 0.75, 0.5, 0.25)])


@pytest.mark.parametrize("clip", [None, 1e-3, 0.05, 1e6])
def test_clipping(clip: float | None) -> None:
    # AdamW and Adam hide the gradient's size; their first moment, 0.1 of the gradient after one step, does not.
    trainer, free = trainer_of(clip=clip), trainer_of(clip=None)
    for each in (trainer, free):
        torch.manual_seed(2)
        train_steps(each, 1)
    moment, whole = (
        torch.cat([state["exp_avg"].flatten() for state in each.optimizer.state.values()]) for each in (trainer, free)
    )
    norm = 10 * whole.norm()
    assert free.update.norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert trainer.update.norm.item() == pytest.approx(norm.item(), rel=1e-5)
    factor = 1.0 if clip is None else min(1.0, clip / norm.item())
    torch.testing.assert_close(moment, factor * whole, rtol=1e-4, atol=1e-9)
    assert clip != 0.05 or norm > 0.05, "the case meant to clip does not"


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_a_step_with_a_gradient_beyond_skip_changes_nothing(clip: float | None, optimizer: str) -> None:
    """By its norm before it is clipped; after it training goes on."""
    trainer = trainer_of(clip=clip, optimizer=optimizer, skip=1e3)
    train_steps(trainer, 2)
    before = snapshot(trainer)
    trainer.update.skip = 1e-2
    train_steps(trainer, 1)
    torch.testing.assert_close(snapshot(trainer), before, rtol=0, atol=0)
    assert (trainer.update.skipped.item(), trainer.update.streak.item(), trainer.step) == (1, 1, 3)
    assert trainer.update.norm.item() > 1
    trainer.update.skip = 1e3
    train_steps(trainer, 1)
    assert (trainer.update.skipped.item(), trainer.update.streak.item()) == (1, 0)
    assert not torch.equal(snapshot(trainer)["0.exp_avg"], before["0.exp_avg"])


def test_a_step_that_is_skipped_leaves_the_statistics_of_batches() -> None:
    switch = {"bad": False}
    vae = build(config_of(), SPEC)
    vae.guide.norm = nn.BatchNorm1d(1)
    vae.guide.encoder.register_forward_hook(
        lambda module, args, out: out + 0 * vae.guide.norm(out.reshape(-1, 1) / (not switch["bad"])).reshape(out.shape)
    )
    trainer = trainer_of(vae=vae, skip=1e3)
    train_steps(trainer, 2)
    before = {name: value.clone() for name, value in vae.guide.norm.named_buffers()}
    switch["bad"] = True
    train_steps(trainer, 2)
    torch.testing.assert_close(dict(vae.guide.norm.named_buffers()), before, rtol=0, atol=0)
    switch["bad"] = False
    train_steps(trainer, 1)
    assert vae.guide.norm.num_batches_tracked == before["num_batches_tracked"] + 1
    assert trainer.update.skipped == 2


def test_a_step_that_is_skipped_moves_neither_multiplier_nor_auxiliary_prior() -> None:
    """Which an enormous z would push far off, though the programs stay where they are."""
    config = config_of("target_rate", target_nats=50.0, multiplier_lr=0.01, skip=1e3)
    config = config.model_copy(update={"auxiliary": config.auxiliary.model_copy(update={"enabled": True})})
    trainer = PyroTraining(config, toy_data(), build(config, SPEC), [].append)
    auxiliary = trainer.auxiliary
    assert auxiliary is not None

    def state() -> list[Tensor]:
        moments = [value for state in auxiliary.optimizer.state.values() for value in state.values()]
        return [*(value.clone() for value in moments), flat(auxiliary.prior), trainer.varying["multiplier"].clone()]

    train_steps(trainer, 2)
    before = state()
    trainer.update.skip = 1e-9
    posterior = trainer.vae.guide.posterior
    trainer.vae.guide.posterior = lambda x: dist.Normal(posterior(x).mean + 1e3, posterior(x).stddev).to_event(2)
    train_steps(trainer, 2)
    torch.testing.assert_close(state(), before, rtol=0, atol=0)
    assert (int(trainer.update.skipped), int(auxiliary.update.skipped)) == (2, 2)
    trainer.update.skip, trainer.vae.guide.posterior = 1e3, posterior
    train_steps(trainer, 1)
    assert not any(torch.equal(now, then) for now, then in zip(state(), before, strict=True))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9995])
def test_moving_average_warms_up(decay: float) -> None:
    module = nn.Linear(2, 3)
    average = MovingAverage(module, decay)
    weights, expected = [], None
    for t in range(30):
        module.weight.data = torch.randn(3, 2)
        weights.append(module.weight.data.clone())
        average.update()
        rate = min(decay, (1 + t) / (10 + t))
        expected = weights[0] if expected is None else rate * expected + (1 - rate) * weights[-1]
    torch.testing.assert_close(average.module.weight.data, expected, rtol=1e-12, atol=1e-14)


# Steps that are not finite


def spoil_gradient(vae: VAE, switch: dict[str, bool]) -> None:
    parameter = next(vae.guide.parameters())
    parameter.register_hook(lambda gradient: gradient * math.nan if switch["bad"] else gradient)


def spoil_gradient_inf(vae: VAE, switch: dict[str, bool]) -> None:
    parameter = next(vae.model.parameters())
    parameter.register_hook(lambda gradient: gradient + math.inf if switch["bad"] else gradient)


def spoil_output(vae: VAE, switch: dict[str, bool]) -> None:
    vae.model.likelihood.network.register_forward_hook(
        lambda module, args, out: out * math.nan if switch["bad"] else out
    )


def snapshot(trainer: PyroTraining) -> dict[str, Tensor]:
    """Everything that an optimiser step changes."""
    found = {name: value.detach().clone() for name, value in trainer.vae.named_parameters()}
    for index, state in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{index}.{key}": value.clone() for key, value in state.items()}
    return found


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("spoil", [spoil_gradient, spoil_gradient_inf, spoil_output])
def test_a_step_that_is_not_finite_changes_nothing(spoil: Callable, clip: float | None, optimizer: str) -> None:
    switch = {"bad": False}
    vae = build(config_of(), SPEC)
    spoil(vae, switch)
    trainer = trainer_of(vae=vae, clip=clip, optimizer=optimizer, weight_decay=0.1)
    train_steps(trainer, 2)
    before = snapshot(trainer)
    assert {"0.exp_avg", "0.exp_avg_sq", "0.step"} <= before.keys()
    assert any(name.endswith(".momentum") for name in before) == (optimizer == "muon")
    switch["bad"] = True
    train_steps(trainer, 2)
    torch.testing.assert_close(snapshot(trainer), before, rtol=0, atol=0)
    assert (trainer.update.skipped.item(), trainer.update.streak.item(), trainer.step) == (2, 2, 4)
    switch["bad"] = False
    train_steps(trainer, 1)
    after = snapshot(trainer)
    assert (trainer.update.skipped.item(), trainer.update.streak.item(), trainer.step) == (2, 0, 5)
    assert after["0.step"] == before["0.step"] + 1
    assert not torch.equal(flat(trainer.average), flat(trainer.vae))
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(after["0.exp_avg"], before["0.exp_avg"])


def test_a_run_stops_when_they_persist() -> None:
    switch = {"bad": False}
    vae = build(config_of(), SPEC)
    spoil_gradient(vae, switch)
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, vae, steps=200, log_every=5, validations=0)

    def spoil_from_ten(trainer: PyroTraining) -> None:
        switch["bad"] = trainer.step >= 10

    with pytest.raises(CheckFailed, match=rf"step {10 + MAX_STREAK}: the last {MAX_STREAK} steps were not finite.*lr"):
        trainer.run(spoil_from_ten)
    assert [line["skipped"] for line in lines] == [0, 0, 5, 10, 15, 20]
    assert flat(trainer.vae).isfinite().all()
    assert flat(trainer.average).isfinite().all()


def test_a_run_outlives_a_few() -> None:
    switch = {"bad": False}
    vae = build(config_of(), SPEC)
    spoil_gradient(vae, switch)
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, vae, steps=60, log_every=10, validations=0)

    def spoil_every_other(trainer: PyroTraining) -> None:
        switch["bad"] = trainer.step % 20 == 10

    trainer.run(spoil_every_other)
    assert [line["skipped"] for line in lines] == [0, 10, 10, 20, 20, 30]


# The run

KEYS = {
    "step", "wall_s", "train_s", "lr", "split", "neg_elbo_bpd", "distortion_bpd", "rate_bpd", "rate_nats_mean",
    "rate_nats_min", "delta_nats", "active_units",
}  # fmt: skip


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_metrics(elbo: str) -> None:
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, steps=30, log_every=10, validations=3, elbo=elbo, lr=0.01)
    trainer.run()
    assert [(line["step"], line["split"]) for line in lines] == [
        (step, split) for step in (10, 20, 30) for split in ("train", "validation")
    ]
    delta = trainer.delta
    assert delta is not None
    assert delta > 0.1
    for line in lines:
        assert line.keys() >= KEYS
        assert line["delta_nats"] == delta
        # float32 on the way, in training; float64 from float32 μ and σ when evaluated
        assert line["rate_nats_min"] >= delta * (1 - (1e-5 if line["split"] == "train" else 1e-9))
        assert line["rate_nats_mean"] >= line["rate_nats_min"]
        assert line["rate_bpd"] == pytest.approx(line["rate_nats_mean"] / (SPEC.scored * math.log(2)))
        assert line["neg_elbo_bpd"] == pytest.approx(line["rate_bpd"] + line["distortion_bpd"])
        assert 0 < line["distortion_bpd"] < 5
        assert 0 <= line["active_units"] <= 4 * 2
        assert 0 <= line["train_s"] <= line["wall_s"]
    train = [line for line in lines if line["split"] == "train"]
    assert all(line["images_per_s"] > 0 and line["grad_norm"] > 0 and line["skipped"] == 0 for line in train)
    assert train[-1]["neg_elbo_bpd"] < train[0]["neg_elbo_bpd"]
    assert lines[-1]["n_images"] == 8


def test_metrics_of_a_window_are_means_over_its_images() -> None:
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, steps=3, log_every=3, validations=0)
    seen = []
    step = trainer.train_step

    def watch(x: Tensor) -> None:
        step(x)
        q, p = trainer.elbo.latent["z"]
        seen.append((torch.distributions.kl_divergence(q, p), trainer.elbo.distortion, q.mean))

    trainer.train_step = watch  # type: ignore[method-assign]
    trainer.run()
    rates_b = torch.cat([rate_b for rate_b, _, _ in seen])
    means_bnd = torch.cat([mean_bnd for _, _, mean_bnd in seen])
    (line,) = lines
    assert line["rate_nats_mean"] == pytest.approx(rates_b.mean().item(), rel=1e-5)
    assert line["rate_nats_min"] == pytest.approx(rates_b.min().item(), rel=1e-6)
    nats = sum(distortion.item() for _, distortion, _ in seen) / 15
    assert line["distortion_bpd"] == pytest.approx(nats / (SPEC.scored * math.log(2)), rel=1e-5)
    assert line["active_units"] == (means_bnd.var(0, correction=0) > 0.01).sum()


def test_the_floor_holds_at_every_step() -> None:
    trainer = trainer_of(lr=0.02, decay="none", elbo="mean_field")
    images = trainer.data.train.x
    assert trainer.delta is not None
    least = []
    for _ in range(30):
        train_steps(trainer, 1)
        encoding = encode(trainer.vae, images)
        assert encoding.closed_form
        least.append(encoding.rate.min().item())
    assert min(least) >= trainer.delta * (1 - 1e-9)
    # … and the posterior did move, so that the bound had something to hold against
    assert max(least) > trainer.delta * 1.001


def interruption(at: int, path: Path) -> Callable[[PyroTraining], None]:
    def save(trainer: PyroTraining) -> None:
        if trainer.step == at:
            path.write_bytes(pack(trainer.state()))
            raise KeyboardInterrupt

    return save


RESUMED = {
    "trace": {},
    "mean field, clipped, channels last": {"elbo": "mean_field", "clip": 0.5, "channels_last": True},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "ema": 0.5, "warmup": 4},
    "muon": {"optimizer": "muon", "weight_decay": 0.1},
    "annealed": {"objective": "annealed", "anneal_steps": 5},
    "target rate": {"objective": "target_rate", "target_nats": 9.0},
}


def begun(settings: dict[str, Any]) -> tuple[PyroTraining, list[dict[str, Any]]]:
    """A training that is about to run, always with the same noise, and where its lines go."""
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, **settings)
    torch.manual_seed(11)
    return trainer, lines


def without_clocks(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("wall_s", "train_s", "images_per_s")} for line in lines]


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
def test_three_and_three_steps_are_six(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    settings = {"steps": 6, "log_every": 3, "lr": 0.01, **settings}
    one, whole = begun(settings)
    one.run()
    first, parts = begun(settings)
    with pytest.raises(KeyboardInterrupt):
        first.run(interruption(3, path))
    torch.manual_seed(12345)  # another process begins elsewhere …
    second = trainer_of(parts, vae=build(config_of(), SPEC), **settings)
    second.restore(unpack(path.read_bytes(), path), path)  # … and is put back
    second.run()

    expected, found = one.state(), second.state()
    assert found.pop("config") == expected.pop("config")
    for state in (expected, found):
        for key in ("train_s", "wall_s"):
            state.pop(key)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert torch.equal(found["rng"]["cpu"], expected["rng"]["cpu"])
    assert without_clocks(parts) == without_clocks(whole)
    assert len(whole) == 4


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
def test_the_line_after_an_orderly_stop_covers_the_whole_window(settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {"steps": 4, "log_every": 4, "validations": 0, "ema": 0.5, **settings}
    one, whole = begun(settings)
    one.run()
    first, parts = begun(settings)
    step = first.train_step

    def stopped(x: Tensor) -> None:
        step(x)
        first.interrupted = first.step == 3

    first.train_step = stopped  # type: ignore[method-assign]
    first.run()
    assert parts == []
    content = pack(first.state())
    second = trainer_of(parts, vae=build(config_of(), SPEC), **settings)
    second.restore(check_types(unpack(content, tmp_path), TrainingState, tmp_path), tmp_path)
    second.run()
    (found,) = parts
    assert without_clocks(parts) == without_clocks(whole)
    assert found["images_per_s"] == pytest.approx(4 * 5 / found["train_s"], rel=0.05)

    state = unpack(content, tmp_path)
    state["window"]["mean"] = torch.zeros(3)
    with pytest.raises(UserError, match="its window's 'mean' differs"):
        second.restore(state, tmp_path)


def test_a_checkpoint_of_other_networks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(pack(trainer_of().state()))
    tree = config_of().model_dump()
    tree["prior"]["dims"] = 3
    config = validate(tree)
    other = PyroTraining(config, toy_data(), build(config, SPEC), [].append)
    with pytest.raises(UserError, match=r"last\.pt does not fit the run's configuration: weight 'guide\."):
        other.restore(unpack(path.read_bytes(), path), path)


class FakeTime:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def read(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def fake_time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=fake.read, monotonic=fake.read))
    return fake


def test_minutes_count_training_alone(fake_time: FakeTime) -> None:
    vae = build(config_of(), SPEC)
    # A training step takes a second, a batch of validation a hundred, a picture a thousand.
    seconds = {True: 1.0, False: 100.0}
    vae.guide.encoder.register_forward_hook(lambda module, *_: fake_time.pass_(seconds[module.training]))
    lines: list[dict[str, Any]] = []
    trainer = trainer_of(lines, vae, minutes=0.1, log_every=2, validations=3, lr=0.02, decay="linear", final=0.0)
    trainer.run(lambda _: fake_time.pass_(1000.0))
    assert [(line["split"], line["step"], line["train_s"], line["wall_s"]) for line in lines] == [
        ("train", 2, 2, 2), ("validation", 2, 2, 102),
        ("train", 4, 4, 1104), ("validation", 4, 4, 1204),
        ("train", 6, 6, 2206), ("validation", 6, 6, 2306),
    ]  # fmt: skip
    # Steps 2, 4, 6 set their rate with 2, 4 and 6 of 6 seconds gone: their own second passed in the forward pass.
    assert [line["lr"] for line in lines[::2]] == pytest.approx([0.02 * 4 / 6, 0.02 * 2 / 6, 0.0])
    assert lines[0]["images_per_s"] == pytest.approx(5.0)
    assert trainer.state()["train_s"] == 6


def test_minutes_go_on_after_an_interruption(fake_time: FakeTime, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"

    def hooked() -> VAE:
        vae = build(config_of(), SPEC)
        vae.guide.encoder.register_forward_hook(lambda module, *_: fake_time.pass_(float(module.training)))
        return vae

    settings = {"minutes": 0.1, "log_every": 2, "validations": 0}
    first = trainer_of([], hooked(), **settings)
    with pytest.raises(KeyboardInterrupt):
        first.run(interruption(4, path))
    fake_time.pass_(5000.0)
    lines: list[dict[str, Any]] = []
    second = trainer_of(lines, hooked(), **settings)
    second.restore(unpack(path.read_bytes(), path), path)
    second.run()
    assert [(line["step"], line["train_s"], line["wall_s"]) for line in lines] == [(6, 6, 6)]


def test_a_clock_that_is_set_back_spoils_no_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path, hours = tmp_path / "last.pt", iter(range(10**6, 0, -1))
    monkeypatch.setattr("time.time", lambda: 3600.0 * next(hours))
    trainer = trainer_of(steps=2)
    trainer.run()
    state = trainer.state()
    assert 0 <= check_types(unpack(pack(state), path), TrainingState, path)["wall_s"] < 60
    other = trainer_of(steps=2)  # from a checkpoint that was spoilt before
    other.restore(check_types(unpack(pack(state | {"wall_s": -3600.0}), path), TrainingState, path), path)
    assert 0 <= other.state()["wall_s"] < 60


def test_a_clock_that_strikes_between_two_steps_loses_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading is later than the last, so some reading is the first to be past the end, wherever it falls."""
    for tick in (0.37, 0.41, 0.43, 0.47, 0.53, 0.61):
        readings = iter(range(10**6))
        monkeypatch.setattr(
            training, "time", SimpleNamespace(perf_counter=lambda it=readings, t=tick: next(it) * t, monotonic=float)
        )
        lines: list[dict[str, Any]] = []
        trainer = trainer_of(lines, minutes=0.1, log_every=1000, validations=1)
        trainer.run()
        assert [(line["split"], line["step"]) for line in lines] == [
            ("train", trainer.step),
            ("validation", trainer.step),
        ]


# torch's tracer raises this warning at itself and means to hide it, which making it an error prevents.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_networks_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    # Everything but inductor's code generation, which takes a minute and a half and is torch's own affair.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    lines: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    trainers = {}
    for compiled in (False, True):
        trainers[compiled] = trainer_of(lines[compiled], steps=3, log_every=1, validations=1, compile=compiled)
        torch.manual_seed(4)
        trainers[compiled].run()
    assert torch.distributions.Distribution._validate_args, "compiling left validation switched off"
    with pytest.raises(ValueError, match="constraint"):
        dist.Normal(0.0, torch.tensor(-1.0))
    assert any(getattr(module, "_compiled_call_impl", None) for module in trainers[True].vae.modules())
    eager, compiled_ = trainers[False].state(), trainers[True].state()
    assert compiled_["vae"].keys() == eager["vae"].keys()
    assert compiled_["average"].keys() == eager["average"].keys()
    torch.testing.assert_close(dict(compiled_["vae"]), dict(eager["vae"]), rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(lines[True], lines[False], strict=True):
        assert ours["neg_elbo_bpd"] == pytest.approx(theirs["neg_elbo_bpd"], rel=1e-4)
