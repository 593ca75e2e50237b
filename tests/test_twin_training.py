"""Training in NumPyro: the steps of NumPyro's own SVI and of Pyro's trainer, runs that go on, and the commands."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import call

import pyro_delta
from pyro_delta import config
from pyro_delta.build import build
from pyro_delta.data import from_tensors, load
from pyro_delta.diagnostics import drawing
from pyro_delta.errors import CheckFailed, UserError
from pyro_delta.inference.pyro_training import PyroTraining

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpyro
import optax
from flax import nnx
from numpyro.contrib.module import nnx_module

from pyro_delta.twin import build as twins
from pyro_delta.twin import numpyro_training, sampling
from pyro_delta.twin.build import VAE
from pyro_delta.twin.crosscheck import crosscheck
from pyro_delta.twin.numpyro_training import NumPyroTraining, make_optimizer, negative_elbo
from pyro_delta.twin.weights import load_weights, torch_weights

TRUNK = {"channels": [4], "row_blocks": [1], "pixel_blocks": 1}
SMALL = [
    "likelihood.channels=[4]", "likelihood.row_blocks=[1]", "likelihood.pixel_blocks=1", "likelihood.mixtures=1",
    "guide.channels=[4]", "guide.row_blocks=[1]", "guide.pixel_blocks=1", "guide.features=4", "training.batch=8",
]  # fmt: skip


def settings(**options: Any) -> config.Config:
    tree = {
        "data": {},
        "prior": {"dims": 1, "rate_nats": 2.0},
        "likelihood": {**TRUNK, "mixtures": 1, "latent_channels": 3},
        "guide": {**TRUNK, "features": 4},
        "training": {"batch": 8, "log_every": 3, "validations": 0, "warmup": 2, "lr": 0.01, "ema": 0.9} | options,
    }
    return config.validate(tree)


@pytest.fixture(scope="module")
def data() -> Any:
    return load("digits")


@pytest.fixture(scope="module", autouse=True)
def one_build() -> Iterator[None]:
    """Twins are built once; every training gets copies of their weights."""
    yield
    SAVED.clear()


SAVED: dict[str, Any] = {}


def twin_of(made: config.Config, data: Any) -> VAE:
    key = str(made.prior)
    if key not in SAVED:
        SAVED[key] = nnx.split(twins.build(made, data.spec))
    graph, state = SAVED[key]
    return nnx.merge(graph, jax.tree.map(jnp.copy, state))


def trainer_of(data: Any, lines: list[dict[str, Any]] | None = None, **options: Any) -> NumPyroTraining:
    made = settings(**({"steps": 6} | options))
    log = (lambda line: None) if lines is None else lines.append
    return NumPyroTraining(made, data, build(made, data.spec), twin_of(made, data), log)


def weights_of(trainer: NumPyroTraining) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.numpy() for name, value in trainer.state()["vae"].items()}


def assert_equal(found: Any, expected: Any, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **tolerance)


# --- Steps ---


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_a_step_is_one_of_numpyro_s_svi(data: Any, elbo: str) -> None:
    """With parameters in NumPyro's store, and its own step."""
    twin = twin_of(settings(steps=1), data)
    x_bchw = jnp.asarray(data.train.x[:5].numpy())

    def model(x: Any) -> None:
        nnx_module("model", twin.model)(x)

    def guide(x: Any) -> None:
        nnx_module("guide", twin.guide)(x)

    estimator = {"trace": numpyro.infer.Trace_ELBO, "mean_field": numpyro.infer.TraceMeanField_ELBO}[elbo]()
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.optax_to_numpyro(optax.sgd(1e-3)), estimator)
    state = jax.jit(svi.init)(jax.random.key(1), x_bchw)
    key = jax.random.split(state.rng_key)[1]
    after, loss = jax.jit(svi.update)(state, x_bchw)

    graph, weights, rest = nnx.split(twin, nnx.Param, ...)
    loss_of = partial(_loss, graph, rest, x_bchw, key, elbo)
    (ours, _), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(weights)
    assert float(ours) == pytest.approx(float(loss), rel=1e-6)
    moved = svi.get_params(after)
    stepped = jax.tree.map(lambda w, g: w - 1e-3 * g, weights, gradient)
    for part in ("model", "guide"):
        pairs = zip(jax.tree.leaves(moved[f"{part}$params"]), jax.tree.leaves(stepped[part]), strict=True)
        for found, expected in pairs:
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def _loss(graph: Any, rest: Any, x_bchw: Any, key: Any, elbo: str, weights: Any) -> Any:
    return negative_elbo(nnx.merge(graph, weights, rest), x_bchw, key, elbo)


@pytest.mark.parametrize(
    ("options", "rtol"),
    [
        ({"guide_lr": 0.2}, 1e-9),
        # Torch adds 1e-6 to the norm that it divides by.
        ({"clip": 0.05, "optimizer": "adamw", "weight_decay": 0.1, "decay": "linear"}, 1e-5),
        ({"optimizer": "adam", "weight_decay": 0.1, "decay": "none"}, 1e-9),
        ({"optimizer": "muon", "weight_decay": 0.1, "guide_lr": 0.2}, 1e-9),
        ({"skip": 20.0}, 1e-9),
    ],
    ids=["guide's rate", "clipped, AdamW", "Adam, decayed weights", "Muon", "large gradients skipped"],
)
def test_updates_are_those_of_the_pyro_trainer(
    data: Any, options: dict[str, Any], rtol: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same weights, without noise: batches, learning rates, clipping, moments, averages and metrics."""
    quiet(monkeypatch)
    made = settings(steps=6, elbo="mean_field", **options)
    torch.manual_seed(0)
    reference = PyroTraining(made, data, build(made, data.spec).double(), (pyro_lines := []).append)
    with jax.enable_x64(True):
        twin = twins.build(made, data.spec)
        theirs = NumPyroTraining(made, data, build(made, data.spec).double(), twin, (lines := []).append)
        state = reference.vae.state_dict()
        load_weights(twin, state)
        theirs.buffers = nnx.split(twin, nnx.Param, ...)[2]
        theirs.steps = theirs.steps._replace(weights=theirs._from_torch(state), average=theirs._from_torch(state))
        reference.run()
        theirs.run()
    assert_equal(weights_of(theirs), reference.vae.state_dict(), rtol=rtol, atol=rtol / 100)
    assert_equal(dict(theirs.averaged().state_dict()), reference.averaged().state_dict(), rtol=rtol, atol=rtol / 100)
    assert len(lines) == len(pyro_lines) == 2
    assert (0 < lines[-1]["skipped"] < 6) is ("skip" in options)
    for found, expected in zip(lines, pyro_lines, strict=True):
        assert found.keys() == expected.keys()
        for key in expected.keys() - {"wall_s", "train_s", "images_per_s", "split"}:
            assert found[key] == pytest.approx(expected[key], rel=1e-6), key


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both backends take the posterior's mean for its sample."""

    def by_numpyro(self: Any, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return jnp.broadcast_to(self.loc, self.shape(sample_shape))

    def by_pyro(self: Any, sample_shape: tuple[int, ...] = ()) -> torch.Tensor:
        return self.loc.expand(self._extended_shape(sample_shape))

    monkeypatch.setattr(numpyro.distributions.Normal, "sample", by_numpyro)
    monkeypatch.setattr(torch.distributions.Normal, "rsample", by_pyro)


def test_what_is_trained_beats_what_was_drawn(data: Any) -> None:
    trainer = trainer_of(data, lines := [], steps=60, validations=3, lr=0.02, elbo="mean_field")
    trainer.run()
    bounds = [line["neg_elbo_bpd"] for line in lines if line["split"] == "validation"]
    assert bounds[-1] < bounds[0] - 0.1
    assert all(line["rate_nats_min"] >= line["delta_nats"] > 1.9 for line in lines)
    assert [line["step"] for line in lines if line["split"] == "validation"] == [21, 42, 60]


def test_a_learned_prior_moves_and_keeps_its_floor(data: Any) -> None:
    made = settings(steps=9)
    made = config.overlaid(made.model_dump(), [("prior.program", "ar1_learned"), ("prior.floor_nats", 1.5)])
    lines: list[dict[str, Any]] = []
    NumPyroTraining(made, data, build(made, data.spec), twins.build(made, data.spec), lines.append).run()
    committed = [line["committed_nats"] for line in lines]
    assert committed[0] != committed[-1]
    assert min(committed) >= 1.5
    assert lines[0]["delta_nats"] == 1.5


# --- Runs ---


@pytest.mark.parametrize("length", [3, 4], ids=["at a line of metrics", "between two"])
def test_interrupted_and_resumed_is_uninterrupted(data: Any, length: int, tmp_path: Path) -> None:
    whole = trainer_of(data, steps=6, decay="none")
    whole.run()
    first = trainer_of(data, steps=length, decay="none")
    first.run()
    second = trainer_of(data, lines := [], steps=6, decay="none")
    second.restore(first.state(), tmp_path)
    second.run()
    assert_equal(weights_of(second), weights_of(whole), rtol=0, atol=0)
    assert_equal(dict(second.averaged().state_dict()), whole.averaged().state_dict(), rtol=0, atol=0)
    assert [line["step"] for line in lines] == [6]


def test_the_best_weights_are_kept(data: Any) -> None:
    trainer = trainer_of(data, lines := [], steps=6, validations=3, log_every=2, decay="none")
    trainer.run()
    validated = [line for line in lines if line["split"] == "validation"]
    assert len(validated) == 3
    least = min(validated, key=lambda line: line["neg_elbo_bpd"])
    best = trainer.state()["best"]
    assert (best["step"], best["neg_elbo_bpd"]) == (least["step"], least["neg_elbo_bpd"])
    until = trainer_of(data, steps=best["step"], log_every=2, decay="none")
    until.run()
    assert_equal(best["vae"], until.averaged().state_dict(), rtol=0, atol=0)


def test_steps_that_are_not_finite_are_skipped_and_end_a_run(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(data, lines := [], steps=60)
    before = weights_of(trainer)
    broken = trainer.steps._replace(weights=jax.tree.map(lambda w: w * jnp.nan, trainer.steps.weights))
    trainer.steps = broken
    with pytest.raises(CheckFailed, match="the last 21 steps were not finite and were skipped"):
        trainer.run()
    assert lines[-1]["skipped"] == 21
    gradient = jax.tree.map(jnp.zeros_like, broken.weights)
    optimizer = make_optimizer(trainer.rule, gradient)
    bad = jax.tree.map(lambda g: g * jnp.nan, gradient)
    changes, state = optimizer.update(bad, optimizer.init(gradient), gradient)
    assert all(not leaf.any() for leaf in jax.tree.leaves(changes))
    assert numpyro_training._skips(state) == (1, 1)
    assert before


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [("objective.program", "beta"), ("objective.beta", 2.0)],
            "objective.program=beta is trained by --backend pyro alone",
        ),
        ([("auxiliary.enabled", True)], "auxiliary.enabled goes with --backend pyro"),
        ([("training.batch", 10**6)], "batch size 1000000 does not fit"),
    ],
)
def test_what_it_does_not_do_is_refused(data: Any, pairs: list[tuple[str, Any]], message: str) -> None:
    made = config.overlaid(settings(steps=1).model_dump(), pairs)
    with pytest.raises(UserError, match=message):
        NumPyroTraining(made, data, build(made, data.spec), twin_of(made, data), lambda line: None)


def test_weights_that_do_not_fit_are_named_before_training(data: Any) -> None:
    """Not when the averaged weights are first evaluated."""
    made, other = settings(steps=1), config.overlaid(settings(steps=1).model_dump(), [("prior.dims", 2)])
    with pytest.raises(UserError, match=r"the weight .* has shape .*; the twin's has"):
        NumPyroTraining(made, data, build(made, data.spec), twins.build(other, data.spec), lambda line: None)


def test_a_run_has_pyro_s_fixed_numbers(data: Any) -> None:
    """Not the twin's: a crosscheck of the run would compare those with themselves."""
    made, other = settings(steps=1), config.overlaid(settings(steps=1).model_dump(), [("prior.rate_nats", 3.0)])
    vae = build(made, data.spec)
    alpha = vae.model.prior.alpha.clone()
    trainer = NumPyroTraining(made, data, vae, twins.build(other, data.spec), lambda line: None)
    trainer.run()
    assert torch.equal(trainer.state()["vae"]["model.prior.alpha"], alpha)
    assert torch.equal(trainer.averaged().model.prior.alpha, alpha)


def test_a_posterior_without_a_closed_form_is_not_sampled_in_silence(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpyro_training, "kl_divergence", lambda q, p: (_ for _ in ()).throw(NotImplementedError))
    twin = twin_of(settings(steps=1), data)
    x_bchw = jnp.asarray(data.train.x[:2].numpy())
    with pytest.raises(UserError, match="has no closed-form KL from Independent to GaussianAR1"):
        negative_elbo(twin, x_bchw, jax.random.key(0), "mean_field")
    assert jnp.isfinite(negative_elbo(twin, x_bchw, jax.random.key(0), "trace")[0])


def test_weights_survive_both_ways(data: Any) -> None:
    twin = twin_of(settings(steps=1), data)
    vae = build(settings(steps=1), data.spec)
    named = torch_weights(twin)
    vae.load_state_dict({name: torch.from_numpy(value) for name, value in named.items()})
    load_weights(twin, vae.state_dict())
    assert_equal(torch_weights(twin), named, rtol=0, atol=0)


# --- Data of other kinds ---


def test_sequences_are_trained_checked_and_drawn() -> None:
    options = {"training.steps": 30, "training.log_every": 15, "training.lr": 0.01, "training.validations": 0}
    run = pyro_delta.train(
        {"training.backend": "numpyro", "likelihood.hidden": 8, "guide.hidden": 8, **options},
        data="descriptions",
        device="cpu",
    )
    first, last = run.metrics
    assert last["neg_elbo_bpd"] < first["neg_elbo_bpd"] - 0.1
    assert last["rate_nats_min"] >= last["delta_nats"] > 3.9
    data = run.data().test
    with jax.enable_x64(True):
        twin = twins.twin_of_run(replace(run, vae=run.vae.double()))
        assert torch.equal(sampling.draw(twin, 3), drawing.draw(run.vae, 3))
    found = crosscheck(run.vae, twin, data.take(slice(4)), elbo="mean_field")
    assert found.failure is None


OWN = """
import jax.numpy as jnp, numpyro, numpyro.distributions as numpyro_dist, pyro, pyro.distributions as dist, torch
from flax import nnx
from pyro_delta.twin.layers import linear

class LikelihoodTwin(nnx.Module):
    def __init__(self, spec, prior, *, rngs):
        self.net = linear(4, 4, rngs=rngs)

    def __call__(self, z, seen):
        return numpyro_dist.Normal(self.net(z.reshape(*z.shape[:-2], 4)), 0.5).mask(seen).to_event(1)

class GuideTwin(nnx.Module):
    def __init__(self, spec, prior, *, rngs):
        self.net = linear(8, 8, rngs=rngs)

    def posterior(self, x, seen):
        raw = self.net(jnp.concatenate([x * seen, seen], -1)).reshape(-1, 2, 4)
        return numpyro_dist.Normal(raw[..., :2], jnp.exp(raw[..., 2:])).to_event(2)

    def __call__(self, x, seen):
        with numpyro.plate("data", len(x)):
            return numpyro.sample("z", self.posterior(x, seen))

class Likelihood(torch.nn.Module):
    twin = LikelihoodTwin

    def __init__(self, spec, prior):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)

    def forward(self, z, seen):
        return dist.Normal(self.net(z.flatten(-2)), 0.5).mask(seen).to_event(1)

class Guide(torch.nn.Module):
    twin, causality = GuideTwin, "none"

    def __init__(self, spec, prior):
        super().__init__()
        self.net = torch.nn.Linear(8, 8)

    def posterior(self, x, seen):
        raw = self.net(torch.cat([x * seen, seen.to(x.dtype)], -1)).reshape(-1, 2, 4)
        return dist.Normal(raw[..., :2], raw[..., 2:].exp()).to_event(2)

    def forward(self, x, seen):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, seen))
"""


def test_what_goes_with_the_data_reaches_both_backends(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    torch.manual_seed(0)
    x = torch.randn(80, 2) @ torch.randn(2, 4) + 0.1 * torch.randn(80, 4)
    given = from_tensors({"x": x, "seen": torch.rand(80, 4) < 0.7})
    programs = {"likelihood.program": f"{path}:Likelihood", "guide.program": f"{path}:Guide"}
    options = {"training.steps": 60, "training.batch": 8, "training.log_every": 30, "training.lr": 0.02}
    run = pyro_delta.train(
        {**programs, **options, "prior.length": 2, "training.backend": "numpyro", "training.validations": 1},
        data=given,
        device="cpu",
    )
    losses = [line["neg_elbo_bpd"] for line in run.metrics if line["split"] == "train"]
    assert losses[-1] < losses[0]
    example = given.test.batch(slice(2))
    found = crosscheck(run.vae, twins.twin_of_run(run, example=example), given.test, elbo="mean_field")
    assert found.failure is None
    with pytest.raises(UserError, match=r"missing 1 required positional argument: 'seen'"):
        twins.twin_of_run(run)


# --- Commands ---


def test_the_commands_on_a_run_of_numpyro(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sets = [part for pair in SMALL for part in ("--set", pair)]
    code, out, err = call(
        "train", "--dataset", "digits", "--backend", "numpyro", "--steps", "4", "--out", str(run), "--json",
        "--set", "training.log_every=2", *sets,
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["step"] == 4
    assert json.loads((run / "config.json").read_text())["training"]["backend"] == "numpyro"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train", "validation"}
    assert list((run / "samples").iterdir())

    code, out, err = call("evaluate", str(run), "--split", "validation", "--json")
    assert code == 0, err
    assert json.loads(out)["neg_elbo_bpd"] == pytest.approx(lines[-1]["neg_elbo_bpd"], rel=1e-6)
    assert call("check", str(run))[0] in (0, 1)  # it runs; four steps teach little

    pictures = []
    for backend in ("pyro", "numpyro"):
        picture = tmp_path / f"{backend}.png"
        code, _, err = call("sample", str(run), "--num", "2", "--backend", backend, "--out", str(picture))
        assert code == 0, err
        pictures.append(picture.read_bytes())
    assert pictures[0] == pictures[1]

    code, out, err = call("crosscheck", str(run), "--images", "2", "--float64", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["agrees"]
    assert max(found["gradients"].values()) < 1e-9
    text = call("crosscheck", str(run), "--images", "2")[1]
    assert "log p(x|z), nats" in text
    assert "gradient of −ELBO, worst of" in text

    code, _, err = call("train", "--out", str(run), "--resume", "--steps", "6")
    assert code == 0, err
    code, _, err = call("train", "--out", str(run), "--resume", "--backend", "pyro", "--steps", "8")
    assert code == 2
    assert "was made with training.backend=numpyro, not pyro" in err


@pytest.mark.parametrize(
    "command",
    [
        ["crosscheck", "."],
        ["sample", ".", "--num", "1", "--out", "x.png", "--backend", "numpyro"],
        ["train", "--backend", "numpyro"],
    ],
    ids=lambda command: command[0],
)
def test_without_the_extra_one_sentence_says_how_to_get_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    from pyro_delta import twin

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(twin, "find_spec", lambda name: None if name == "flax" else util.find_spec(name))
    code, _, err = call(*command)
    assert code == 2
    assert err.strip() == (
        "pyro-delta: the NumPyro twin needs flax; install the extra: pip install 'pyro-delta[twin]'."
    )


def test_crosscheck_exits_with_1_beyond_its_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyro_delta.twin import crosscheck

    run = tmp_path / "run"
    sets = [part for pair in SMALL for part in ("--set", pair)]
    assert call("train", "--dataset", "digits", "--steps", "1", "--out", str(run), *sets)[0] == 0
    monkeypatch.setattr(crosscheck, "TOLERANCE", dict.fromkeys(crosscheck.TOLERANCE, -1.0))
    code, out, err = call("crosscheck", str(run), "--images", "1", "--json")
    assert code == 1
    assert not json.loads(out)["agrees"]
    assert "Pyro and NumPyro disagree" in err
    assert "--float64 tells a mistake from rounding" in err
    err = call("crosscheck", str(run), "--images", "1", "--float64")[2]
    assert "Pyro and NumPyro disagree" in err
    assert "--float64" not in err
