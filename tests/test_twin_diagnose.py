"""NumPyro programs under `diagnose`: trained ones, the twins of Pyro's, and any others beside the same in Pyro."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as torch_distributions
from test_cli import call

import pyro_delta
from pyro_delta.data.splits import Split
from pyro_delta.diagnostics.bounds import encode
from pyro_delta.diagnostics.diagnose import Diagnosis
from pyro_delta.diagnostics.trace import batches, committed, evaluating, posteriors, score, trace
from pyro_delta.errors import UserError

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpyro
from flax import linen, nnx
from numpyro import distributions, handlers
from numpyro.contrib.module import flax_module, nnx_module
from numpyro.infer import SVI, TraceMeanField_ELBO

from pyro_delta.twin.build import twin_of_run
from pyro_delta.twin.diagnose import NumPyroVAE
from pyro_delta.twin.distributions import GaussianAR1, GaussianSequence
from pyro_delta.twin.in_torch import in_torch
from pyro_delta.twin.rate import ar1_rate, committed_rate

STEPS, DIMS, ALPHA = 4, 2, 0.8
DRAWN = {
    "neg_elbo_nats": "neg_elbo_bpd_se",
    "distortion_nats": "distortion_bpd_se",
    "iw_nats": "iw_bpd_se",
    "shuffled_gap_nats": "shuffled_gap_se",
    "told_nats": "told_nats_se",
    "told_calibrated_nats": "told_calibrated_nats_se",
}
"""Numbers that depend on what is drawn, and their standard errors, over the data."""


def same(found: Diagnosis, expected: Diagnosis, rtol: float = 1e-6) -> None:
    """What is computed is the same; what is drawn is the same but for its standard error."""
    ours, theirs = found.numbers, expected.numbers
    assert ours.keys() == theirs.keys()
    assert found.verdict == expected.verdict
    computed = ["active_units", "latent_units", "n_images", "iw_images", "floor_holds", "rate_closed_form"]
    computed += [
        "mutual_information_cap_nats",
        "told_cap_nats",
        "told_samples",
        "told_images",
        "told_judged",
        "latents_used",
        "delta_nats",
        "rate_nats_per_dim",
    ]
    if theirs["rate_closed_form"]:
        computed += ["rate_nats_mean", "rate_nats_min", "rate_bpd"]
        assert ours["rate_nats_mean_se"] == pytest.approx(theirs["rate_nats_mean_se"], rel=1e-4)  # of differences
    assert abs(ours["rate_nats_mean"] - theirs["rate_nats_mean"]) < 4 * theirs["rate_nats_mean_se"]
    for key in computed:
        close = None if theirs[key] is None else pytest.approx(theirs[key], rel=rtol, abs=1e-9)
        assert ours[key] == close, key
    for key, error in DRAWN.items():
        per_number = theirs["neg_elbo_nats"] / theirs["neg_elbo_bpd"] if error.endswith("bpd_se") else 1.0
        assert abs(ours[key] - theirs[key]) < 4 * per_number * theirs[error], key
    if theirs["mutual_information_nats"] is None:
        assert ours["mutual_information_nats"] is None
    else:
        assert ours["mutual_information_nats"] == pytest.approx(theirs["mutual_information_nats"], abs=0.6)
    assert ours["k_hat_median"] == pytest.approx(theirs["k_hat_median"], abs=0.3)


# --- A VAE of a user's own, trained by NumPyro ---


class Encoder(linen.Module):
    """Means and log-deviations."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        raw = linen.Dense(2 * STEPS * DIMS)(linen.relu(linen.Dense(32)(x)))
        return jnp.split(raw.reshape(-1, STEPS, 2 * DIMS), 2, axis=-1)


class Decoder(linen.Module):
    """Logits of pixels."""

    @linen.compact
    def __call__(self, z: Any) -> Any:
        return linen.Dense(64)(linen.relu(linen.Dense(32)(z.reshape(-1, STEPS * DIMS))))


def model(x: Any) -> None:
    decoder = flax_module("decoder", Decoder(), input_shape=(1, STEPS, DIMS))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("latent", GaussianAR1(jnp.full(DIMS, ALPHA), STEPS))
        numpyro.sample("pixels", distributions.Binomial(16, logits=decoder(z)).to_event(1), obs=x)


def guide(x: Any) -> None:
    encoder = flax_module("encoder", Encoder(), input_shape=(1, 64))
    with numpyro.plate("data", len(x)):
        mean, log_scale = encoder(x / 16)
        numpyro.sample("latent", distributions.Normal(mean, jnp.exp(log_scale)).to_event(2))


def trained(steps: int = 300) -> dict[str, Any]:
    """What `diagnose` takes: arrays of JAX, and parameters of NumPyro's SVI."""
    data = pyro_delta.load_data("digits")
    train, test = (jnp.asarray(split.x.flatten(1).numpy(), float) for split in (data.train, data.test))
    svi = SVI(model, guide, numpyro.optim.Adam(3e-3), TraceMeanField_ELBO())
    result = svi.run(jax.random.key(0), steps, train, progress_bar=False)
    return {"model": model, "guide": guide, "params": result.params, "data": test, "labels": data.test.labels.numpy()}


@pytest.fixture(scope="module")
def mlp() -> dict[str, Any]:
    return trained()


def test_a_trained_vae_shows_all_that_diagnose_looks_at(mlp: dict[str, Any]) -> None:
    found = pyro_delta.diagnose(**mlp)
    numbers = found.numbers
    delta = float(ar1_rate([ALPHA] * DIMS, STEPS))
    assert numbers["delta_nats"] == pytest.approx(delta, rel=1e-6)
    assert numbers["delta_known_by"] == "a formula of GaussianAR1"
    assert numbers["rate_closed_form"]
    assert numbers["floor_holds"]
    assert numbers["rate_nats_mean"] > numbers["rate_nats_min"] > delta
    assert sum(numbers["rate_nats_per_dim"]) == pytest.approx(numbers["rate_nats_mean"], rel=1e-6)
    assert numbers["neg_elbo_bpd"] == pytest.approx(numbers["neg_elbo_nats"] / (64 * math.log(2)))
    assert numbers["neg_elbo_nats"] < 160, "it has learned something"
    assert numbers["iw_gap_nats"] > 0
    assert 0 < numbers["k_hat_median"] < 2
    assert numbers["shuffled_gap_nats"] > 100
    assert 4 < numbers["mutual_information_nats"] <= numbers["mutual_information_cap_nats"] == math.log(360)
    assert numbers["active_units"] == numbers["latent_units"] == STEPS * DIMS
    assert numbers["probe_accuracy"] > 0.7
    assert numbers["latents_used"]
    assert found.verdict in ("used", "guide fits badly")
    assert found.failure is None
    json.dumps(found.asdict())


def test_seeds_decide_what_is_drawn(mlp: dict[str, Any]) -> None:
    data = {**mlp, "data": mlp["data"][:40], "labels": mlp["labels"][:40], "weighed": 10}
    first, second, other = (pyro_delta.diagnose(**data, seed=seed).numbers for seed in (0, 0, 1))
    assert first == second
    assert first["distortion_nats"] != other["distortion_nats"]
    assert first["rate_nats_mean"] == other["rate_nats_mean"]


def test_the_importance_weighted_bound_is_numpyro_s(mlp: dict[str, Any]) -> None:
    from numpyro.infer import RenyiELBO

    x = mlp["data"][:10]
    bound = RenyiELBO(alpha=0.0, num_particles=500)
    theirs = jax.jit(lambda key: bound.loss(key, mlp["params"], model, guide, x))(jax.random.key(1))
    ours = pyro_delta.diagnose(model, guide, x, params=mlp["params"], particles=500).numbers
    assert ours["iw_nats"] == pytest.approx(float(theirs) / 10, rel=0.01)


def test_a_collapsed_vae_is_told_what_to_do(mlp: dict[str, Any]) -> None:
    """The posterior is the prior, which is N(0, 1) and commits nothing."""

    def prior_alone(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", distributions.Normal(0, 1).expand([3]).to_event(1))
            numpyro.sample("x", distributions.Normal(0.0 * z[:, :1], 1).to_event(1), obs=x)

    def ignorant(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", distributions.Normal(jnp.zeros(3), 1).to_event(1))

    found = pyro_delta.diagnose(prior_alone, ignorant, np.ones((20, 1), np.float32), params={}, weighed=5)
    assert found.verdict == "collapsed"
    assert found.numbers["delta_nats"] == 0
    assert found.numbers["delta_known_by"] == "the independence of Independent(Normal)"
    assert found.numbers["shuffled_gap_nats"] == found.numbers["told_nats"] == 0
    assert "GaussianAR1" in found.advice


def test_doctor_takes_a_file_of_numpyro(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import jax.numpy as jnp, numpyro, numpyro.distributions as dist\n"
        "def model(x):\n"
        "    with numpyro.plate('data', len(x)):\n"
        "        z = numpyro.sample('z', dist.Normal(0, 1).expand([2]).to_event(1))\n"
        "        numpyro.sample('x', dist.Normal(z, numpyro.param('noise', 1.0)).to_event(1), obs=x)\n"
        "def guide(x):\n"
        "    with numpyro.plate('data', len(x)):\n"
        "        numpyro.sample('z', dist.Normal(x * numpyro.param('slope', 1.0), 0.1).to_event(1))\n"
        "def make():\n"
        "    x = 2 * jnp.sin(jnp.arange(60.0)).reshape(30, 2)\n"
        "    return {'model': model, 'guide': guide, 'data': x, 'params': {'noise': 0.1, 'slope': 0.99}}\n"
    )
    code, out, err = call("doctor", f"{path}:make", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["delta_nats"] == pytest.approx(0.01 - 1 - math.log(0.01), rel=1e-6)  # both of scale 0.1
    assert found["delta_guarantee"] == "every datum, at least"
    assert found["n_images"] == 30
    assert found["rate_nats_mean"] > 2
    assert found["verdict"] in ("used", "guide fits badly")


# --- Twins of Pyro's programs ---


TRUNK = {"channels": [4], "row_blocks": [1], "pixel_blocks": 1}
RUNS: dict[str, dict[str, Any]] = {
    "digits": {
        "prior": {"dims": 2, "rate_nats": 3.0},
        "likelihood": {**TRUNK, "mixtures": 2, "latent_channels": 3},
        "guide": {**TRUNK, "features": 4},
    },
    "descriptions": {
        "prior": {"dims": 2, "length": 4, "rate_nats": 2.0},
        "likelihood": {"hidden": 8},
        "guide": {"hidden": 8},
    },
}


@pytest.fixture(scope="module", params=RUNS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, NumPyroVAE, Split]:
    """Programs of a short training, their twins, and data."""
    settings = {f"{part}.{key}": value for part, keys in RUNS[request.param].items() for key, value in keys.items()}
    training = {"training.steps": 60, "training.lr": 0.01, "training.warmup": 5, "training.validations": 0}
    run = pyro_delta.train({**settings, **training}, data=request.param, device="cpu")
    twin = twin_of_run(run)
    return run.vae, NumPyroVAE(twin.model, twin.guide), run.data().test.take(slice(120))


def test_twins_are_diagnosed_as_pyro_s_programs_are(pair: tuple[Any, NumPyroVAE, Split]) -> None:
    vae, twin, data = pair
    found, expected = (pyro_delta.diagnose(each, data=data, weighed=30) for each in (twin, vae))
    same(found, expected)
    assert found.numbers["delta_known_by"] == expected.numbers["delta_known_by"]
    ours, theirs = encode(twin, data), encode(vae, data)
    torch.testing.assert_close(ours.rate, theirs.rate, rtol=2e-5, atol=0)
    apart = ours.distortion - theirs.distortion
    assert abs(apart.mean()) < 4 * apart.std() / math.sqrt(len(apart))
    for name in theirs.mean:
        torch.testing.assert_close(ours.mean[name], theirs.mean[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.scale[name], theirs.scale[name], rtol=1e-4, atol=1e-6)


def test_the_same_latents_give_the_same_numbers(pair: tuple[Any, NumPyroVAE, Split]) -> None:
    vae, twin, data = pair
    (x,) = batches(data.take(slice(20)), 20, vae)
    with torch.no_grad(), evaluating(vae, 0), evaluating(twin, 0):
        given = {name: drawn.z for name, drawn in posteriors(vae, x).items()}
        torch.testing.assert_close(score(twin, x, given), score(vae, x, given), rtol=1e-5, atol=1e-3)
        ours, theirs = posteriors(twin, x, given), posteriors(vae, x, given)
    for name in theirs:
        assert torch.equal(ours[name].z, theirs[name].z)
        torch.testing.assert_close(ours[name].log_q, theirs[name].log_q, rtol=1e-5, atol=1e-4)


# --- Any programs, written once for both backends ---


PYRO = SimpleNamespace(
    sample=pyro.sample,
    plate=pyro.plate,
    mask=pyro.poutine.mask,
    scale=pyro.poutine.scale,
    dist=torch_distributions,
    array=lambda values: torch.tensor(values, dtype=torch.float32),
    ar1=pyro_delta.GaussianAR1,
    join=lambda parts: torch.cat(parts, -1),
)
NUMPYRO = SimpleNamespace(
    sample=numpyro.sample,
    plate=numpyro.plate,
    mask=numpyro.handlers.mask,
    scale=numpyro.handlers.scale,
    dist=distributions,
    array=lambda values: jnp.asarray(values, jnp.float32),
    ar1=GaussianAR1,
    join=lambda parts: jnp.concatenate(parts, -1),
)
RNG = np.random.default_rng(0)
WRITE = RNG.normal(size=(4, 6))
READ = WRITE.T @ np.linalg.inv(WRITE @ WRITE.T + 0.25 * np.eye(4))
"""What the mean of z is given x, where z is standard normal."""
X = (RNG.normal(size=(60, 4)) @ WRITE + 0.3 * RNG.normal(size=(60, 6))).astype(np.float32)
KEPT = RNG.random(60) < 0.7

Programs = tuple[Callable[..., Any], Callable[..., Any]]


def one_site(b: SimpleNamespace) -> Programs:
    """AR(1) under any name, data in a nested plate."""

    def model(x: Any) -> None:
        with b.plate("people", len(x), dim=-1):
            z = b.sample("state", b.ar1(b.array([0.9, -0.5]), 2))
        with b.plate("rows", len(x), dim=-2), b.plate("numbers", 6, dim=-1):
            b.sample("seen", b.dist.Normal(z.reshape(-1, 4) @ b.array(WRITE), 0.5), obs=x)

    def guide(x: Any) -> None:
        with b.plate("people", len(x)):
            mean = (x @ b.array(READ)).reshape(-1, 2, 2)
            b.sample("state", b.dist.Normal(mean, 0.3 + 0.1 * mean**2).to_event(2))

    return model, guide


def two_sites(b: SimpleNamespace) -> Programs:
    """Two that do not depend on one another, without a plate but for its batch shape."""

    def model(x: Any) -> None:
        parts = [
            b.sample("a", b.dist.Normal(0 * x[:, :1], 1.0).to_event(1)),
            b.sample("b", b.dist.Normal(0.5 + 0 * x[:, :3], 2.0).to_event(1)),
        ]
        b.sample("x", b.dist.Normal(b.join(parts) @ b.array(WRITE), 0.5).to_event(1), obs=x)

    def guide(x: Any) -> None:
        mean = x @ b.array(READ)
        b.sample("b", b.dist.Normal(mean[:, 1:], 0.4).to_event(1))
        b.sample("a", b.dist.Normal(mean[:, :1], 0.6).to_event(1))

    return model, guide


def dependent_sites(b: SimpleNamespace) -> Programs:
    """One hears of the other, in model and guide."""

    def model(x: Any) -> None:
        with b.plate("data", len(x)):
            top = b.sample("top", b.dist.Normal(b.array([0.0, 0.0]), 1.0).to_event(1))
            low = b.sample("low", b.dist.Normal(top, 0.5).to_event(1))
            b.sample("x", b.dist.Normal(b.join([top, low]) @ b.array(WRITE), 0.5).to_event(1), obs=x)

    def guide(x: Any) -> None:
        mean = x @ b.array(READ)
        with b.plate("data", len(x)):
            low = b.sample("low", b.dist.Normal(mean[:, 2:], 0.4).to_event(1))
            b.sample("top", b.dist.Normal(0.5 * low + mean[:, :2], 0.4).to_event(1))

    return model, guide


def masked(b: SimpleNamespace) -> Programs:
    """Some data have no latents, and some numbers are not seen; a scale is that of training alone."""

    def model(x: Any, kept: Any) -> None:
        with b.plate("data", len(x)):
            with b.mask(mask=kept):
                z = b.sample("z", b.dist.Normal(b.array([0.0] * 4), 1.0).to_event(1))
            with b.scale(scale=0.1), b.mask(mask=kept):
                b.sample("x", b.dist.Normal(z @ b.array(WRITE), 0.5).to_event(1), obs=x)

    def guide(x: Any, kept: Any) -> None:
        with b.plate("data", len(x)), b.mask(mask=kept):
            b.sample("z", b.dist.Normal(x @ b.array(READ), 0.5).to_event(1))

    return model, guide


COVARIANCE = (lambda factor: factor @ factor.T + np.eye(4))(RNG.normal(size=(4, 4)))


def known_by_density(b: SimpleNamespace) -> Programs:
    """A Gaussian whose rate no formula says, but its density."""

    def model(x: Any) -> None:
        with b.plate("data", len(x)):
            z = b.sample("z", b.dist.MultivariateNormal(b.array([1.0, 0, 0, 2]), b.array(COVARIANCE)))
            b.sample("x", b.dist.Normal(z @ b.array(WRITE), 0.5).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with b.plate("data", len(x)):
            b.sample("z", b.dist.Normal(x @ b.array(READ), 0.5).to_event(1))

    return model, guide


def not_normal(b: SimpleNamespace) -> Programs:
    """A family without a closed form, of which no formula is known."""

    def model(x: Any) -> None:
        with b.plate("data", len(x)):
            z = b.sample("z", b.dist.Normal(b.array([0.0] * 4), 1.0).to_event(1))
            b.sample("x", b.dist.Normal(z @ b.array(WRITE), 0.5).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with b.plate("data", len(x)):
            b.sample("z", b.dist.StudentT(5.0, x @ b.array(READ), 0.4).to_event(1))

    return model, guide


CASES: dict[str, Callable[[SimpleNamespace], Programs]] = {
    case.__name__: case for case in (one_site, two_sites, dependent_sites, masked, known_by_density, not_normal)
}
KNOWN_BY = {
    "one_site": "a formula of GaussianAR1",
    "two_sites": "the fixed scale of Independent(Normal) against Independent(Normal)",
    "known_by_density": "the fixed scale of Independent(Normal) against MultivariateNormal",
}


@pytest.mark.parametrize("name", CASES)
def test_both_backends_find_the_same(name: str) -> None:
    data = {"x": X, "kept": KEPT} if name == "masked" else X
    found = pyro_delta.diagnose(*CASES[name](NUMPYRO), data, params={}, weighed=40)
    expected = pyro_delta.diagnose(*CASES[name](PYRO), data, weighed=40)
    same(found, expected)
    assert found.numbers["rate_closed_form"] == (name not in ("dependent_sites", "not_normal"))
    assert (found.numbers["delta_nats"] is not None) == (name in KNOWN_BY)
    assert found.numbers["delta_known_by"] == expected.numbers["delta_known_by"]
    assert name not in KNOWN_BY or found.numbers["delta_known_by"] == KNOWN_BY[name]


# --- Parameters, modules, and what is refused ---


class Program(nnx.Module):
    """A model or a guide with weights of its own, and dropout."""

    def __init__(self, part: str) -> None:
        self.part, self.slope, self.dropout = part, nnx.Param(jnp.array(0.9)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> None:
        with numpyro.plate("data", len(x)):
            mean = self.dropout(self.slope[...] * x) if self.part == "guide" else jnp.zeros(4)
            z = numpyro.sample("z", distributions.Normal(mean, 0.5).to_event(1))
            if self.part == "model":
                numpyro.sample("x", distributions.Normal(z, 0.5).to_event(1), obs=x)


def test_modules_are_run_in_evaluation_mode_and_stay_as_they_are() -> None:
    parts = Program("model"), Program("guide")
    before = [jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(part, nnx.Param))) for part in parts]
    mean = encode(NumPyroVAE(*parts), X[:, :4]).mean["z"]
    torch.testing.assert_close(mean, torch.from_numpy(0.9 * X[:, :4]))
    assert not parts[1].dropout.deterministic
    assert before == [jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(part, nnx.Param))) for part in parts]
    both = SimpleNamespace(model=parts[0], guide=parts[1])
    assert pyro_delta.diagnose(both, data=X[:30, :4], particles=1).numbers["rate_closed_form"]


def test_functions_find_the_modules_of_their_parameters() -> None:
    net = nnx.Linear(6, 4, rngs=nnx.Rngs(0))

    def guide(x: Any) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", distributions.Normal(nnx_module("net", net)(x), 0.5).to_event(1))

    weights = {"net$params": {"kernel": jnp.asarray(READ, float), "bias": jnp.ones(4)}}
    model, _ = not_normal(NUMPYRO)
    mean = encode(NumPyroVAE(model, guide, weights), X).mean["z"]
    torch.testing.assert_close(mean, torch.from_numpy((X @ READ + 1).astype(np.float32)), rtol=1e-5, atol=1e-5)


class OneWay(distributions.transforms.AffineTransform):
    """A transform whose inverse nobody knows."""

    def _inverse(self, y: Any) -> Any:
        raise NotImplementedError


def test_a_flow_without_an_inverse_is_known_by_what_it_draws() -> None:
    model, guide = known_by_density(NUMPYRO)

    def flow(x: Any) -> None:
        base = distributions.Normal(jnp.zeros((len(x), 4)), 1.0).to_event(1)
        transform = OneWay(x @ jnp.asarray(READ, float), 0.5)
        numpyro.sample("z", distributions.TransformedDistribution(base, transform))

    found = pyro_delta.diagnose(model, flow, X, params={}, weighed=40).numbers
    same = pyro_delta.diagnose(model, guide, X, params={}, weighed=40).numbers
    assert not found["rate_closed_form"]
    assert found["mutual_information_nats"] is None
    assert abs(found["rate_nats_mean"] - same["rate_nats_mean"]) < 4 * found["rate_nats_mean_se"]
    assert found["iw_nats"] == pytest.approx(same["iw_nats"], abs=0.5)


def test_a_prior_that_training_moves_commits_nothing_throughout() -> None:
    _, guide = one_site(NUMPYRO)

    def model(x: Any, learned: bool) -> None:
        alpha = numpyro.param("alpha", jnp.array([0.5, 0.5]))
        slope = numpyro.param("slope", jnp.array(1.0))
        with numpyro.plate("people", len(x)):
            z = numpyro.sample("state", GaussianAR1(alpha if learned else jnp.array([0.5, 0.5]), 2))
            mean = slope * z.reshape(-1, 4) @ jnp.asarray(WRITE)
            numpyro.sample("seen", distributions.Normal(mean, 1).to_event(1), obs=x)

    params = {"alpha": jnp.array([0.5, 0.5]), "slope": jnp.array(2.0)}
    delta = pytest.approx(float(ar1_rate([0.5, 0.5], 2)), rel=1e-6)
    moves = committed(NumPyroVAE(lambda x: model(x, True), guide, params), X)
    stays = committed(NumPyroVAE(lambda x: model(x, False), guide, params), X)
    assert (moves.nats, moves.throughout, moves.learns) == (delta, None, True)
    assert (stays.nats, stays.throughout, stays.learns) == (delta, delta, False)


class NoTree(distributions.Distribution):
    """Its parameter is not named to JAX."""

    support = distributions.constraints.real_vector

    def __init__(self, loc: Any) -> None:
        self.loc = loc
        super().__init__(loc.shape[:-1], loc.shape[-1:])

    def sample(self, key: Any, sample_shape: Any = ()) -> Any:
        return self.loc + jax.random.normal(key, sample_shape + self.loc.shape)

    def log_prob(self, value: Any) -> Any:
        return distributions.Normal(self.loc, 1).to_event(1).log_prob(value)


def site(name: str, distribution: Callable[[Any], Any]) -> Callable[[Any], None]:
    def guide(x: Any) -> None:
        numpyro.sample(name, distribution(x))

    return guide


OTHER = site("other", lambda x: distributions.Normal(x[:, :4], 1).to_event(1))


def all_together(x: Any) -> None:
    """As NumPyro's guides for all latents in a row write them."""
    together = numpyro.sample(
        "together", distributions.Normal(jnp.zeros(4 * len(x)), 1).to_event(1), infer={"is_auxiliary": True}
    )
    numpyro.sample("z", distributions.Delta(together.reshape(len(x), 4), event_dim=1))


BATCHLESS = site("z", lambda x: distributions.Normal(jnp.zeros(4), 1).to_event(1))


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (OTHER, "the model samples 'z', which the guide does not"),
        (BATCHLESS, r"'z' has batch shape \(\) for 60 data"),
        (site("z", lambda x: NoTree(x[:, :4])), r"NoTree at 'z' is not a pytree .* pytree_data_fields"),
        (all_together, "the guide draws the latents of all data together, at 'together', so that no datum has"),
        (None, "needs a guide"),
    ],
    ids=["other site", "no batch", "no pytree", "auxiliary", "no guide"],
)
def test_what_cannot_be_run_is_said_in_a_sentence(guide: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pyro_delta.diagnose(not_normal(NUMPYRO)[0], guide, X, params={})


def test_functions_without_their_parameters_are_not_taken_for_untrained_ones() -> None:
    with pytest.raises(UserError, match=r"no parameter 'encoder\$params' among none; give those that were"):
        pyro_delta.diagnose(model, guide, np.ones((4, 64), np.float32))
    with pytest.raises(UserError, match=r"no parameter 'encoder\$params' among 'decoder\$params'; give those that"):
        pyro_delta.diagnose(model, guide, np.ones((4, 64), np.float32), params={"decoder$params": {}})


def one_number(prior: Any, family: Callable[[Any, Any], Any]) -> tuple[Callable[..., None], Callable[..., None]]:
    """A model and a guide of a latent number, with a weight each."""

    def model(x: Any) -> None:
        weight = numpyro.param("weight", jnp.ones(()))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", distributions.Normal((weight * z)[:, None], 1).expand([len(x), 2]).to_event(1), obs=x)

    def guide(x: Any) -> None:
        slope = numpyro.param("slope", jnp.ones(()))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", family(slope * x[:, 0], slope))

    return model, guide


NORMAL = one_number(distributions.Normal(0, 1), lambda mean, slope: distributions.Normal(mean, jnp.exp(slope)))
BERNOULLI = one_number(distributions.Bernoulli(0.5), lambda logits, slope: distributions.Bernoulli(logits=logits))
SMALL = np.random.default_rng(0).standard_normal((12, 2)).astype(np.float32)


@pytest.mark.parametrize("programs", [NORMAL, BERNOULLI], ids=["normal", "bernoulli"])
@pytest.mark.parametrize("weight", [1.0, math.nan])
def test_weights_that_are_not_finite_have_diverged(programs: Any, weight: float) -> None:
    found = pyro_delta.diagnose(*programs, SMALL, params={"weight": weight, "slope": math.nan}, weighed=4)
    assert found.verdict == "diverged"
    assert found.advice.startswith("The numbers are not finite: training diverged;")


WEIGHTS = {"weight": 0.5, "slope": 1.5}


class Calls:
    """Programs behind an object and its method."""

    def __call__(self, x: Any) -> None:
        NORMAL[0](x)

    def guide(self, x: Any) -> None:
        NORMAL[1](x)


def taking_more(factor: float, x: Any) -> None:
    assert factor == 2
    NORMAL[0](x)


WRAPPED: dict[str, tuple[Any, Any, Any]] = {
    "partial": (partial(taking_more, 2.0), partial(NORMAL[1]), WEIGHTS),
    "seed": (handlers.seed(NORMAL[0], 0), handlers.seed(NORMAL[1], 0), WEIGHTS),
    "substitute": (handlers.substitute(NORMAL[0], WEIGHTS), handlers.substitute(NORMAL[1], WEIGHTS), None),
    "both": (handlers.seed(handlers.substitute(NORMAL[0], WEIGHTS), 0), NORMAL[1], WEIGHTS),
    "an object": (Calls(), Calls().guide, WEIGHTS),
    "functions": (lambda x: NORMAL[0](x), lambda x: Calls().guide(x), WEIGHTS),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_programs_are_the_same(name: str) -> None:
    wrapped_model, wrapped_guide, params = WRAPPED[name]
    found = pyro_delta.diagnose(wrapped_model, wrapped_guide, SMALL, params=params, weighed=4)
    assert found.numbers == pyro_delta.diagnose(*NORMAL, SMALL, params=WEIGHTS, weighed=4).numbers
    with pytest.raises(UserError, match=r"^there is no parameter 'slope' among (none|'weight'); give those that were"):
        pyro_delta.diagnose(wrapped_model, NORMAL[1], SMALL)


def with_network(kind: str) -> Callable[[Any], None]:
    def guide(x: Any) -> None:
        if kind == "flax":
            network = flax_module("net", linen.Dense(1), input_shape=(1, 2))
        else:
            network = nnx_module("net", nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", distributions.Normal(network(x)[:, 0], 1))

    return guide


def called(x: Any) -> None:
    slope = numpyro.param("slope", lambda key: jax.random.normal(key, (2,)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", distributions.Normal(x @ slope, 1))


KERNEL, BIAS = np.ones((2, 1), np.float32), np.zeros(1, np.float32)
UNFIT: dict[str, tuple[Any, Any, str]] = {
    "shape": (NORMAL[1], {"slope": np.ones(12)}, r"'slope' is of shape \(12,\), where the program's is of shape \(\);"),
    "drawn": (
        called,
        {"slope": np.ones(3)},
        r"'slope' is of shape \(3,\), where the program's is of shape \(2,\);",
    ),
    "flax": (
        with_network("flax"),
        {"net$params": {"kernel": KERNEL.T, "bias": BIAS}},
        r"kernel' is of shape \(1, 2\)",
    ),
    "flax lacks": (
        with_network("flax"),
        {"net$params": {"kernel": KERNEL}},
        r"'net\$params.bias' is absent, where",
    ),
    "nnx": (with_network("nnx"), {"net$params": {"kernel": KERNEL.T, "bias": BIAS}}, r"kernel' is of shape \(1, 2\)"),
    "nnx lacks": (with_network("nnx"), {"net$params": {"kernel": KERNEL}}, r"'net\$params.bias' is absent, where"),
    "nnx missing": (with_network("nnx"), {}, r"there is no parameter 'net\$params' among 'weight'; give those that"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_parameters_of_another_model(name: str) -> None:
    other, params, words = UNFIT[name]
    with pytest.raises(UserError, match=words):
        pyro_delta.diagnose(NORMAL[0], other, SMALL, params={"weight": 1.0, **params})


@pytest.mark.parametrize("params", [[1, 2], {"weight": "one", "slope": 1.0}], ids=["a list", "text"])
def test_parameters_that_are_none(params: Any) -> None:
    with pytest.raises(UserError, match=r"^params are a (list|dict) that does not hold an array by each name"):
        pyro_delta.diagnose(*NORMAL, SMALL, params=params)


def test_data_that_are_not_finite_are_not_blamed_on_training() -> None:
    holes = np.where(np.arange(12)[:, None] < 3, np.nan, SMALL)
    with pytest.raises(UserError, match=r"^data holds 6 of 24 numbers that are NaN or infinite"):
        pyro_delta.diagnose(*NORMAL, holes, params={"weight": 1.0, "slope": 1.0})


# --- Distributions seen from torch ---


def test_densities_have_derivatives_of_any_order() -> None:
    """The precision of a Gaussian, from two derivatives by torch."""
    covariance = 0.7 ** np.abs(np.subtract.outer(np.arange(3), np.arange(3)))
    for own in (
        distributions.MultivariateNormal(jnp.zeros(3), jnp.asarray(covariance)),
        distributions.TransformedDistribution(
            GaussianAR1(jnp.array([0.7]), 3), distributions.transforms.ReshapeTransform((3,), (3, 1))
        ),
    ):
        p = in_torch(own)
        assert p.support is torch.distributions.constraints.real
        z = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(lambda z, p=p: p.log_prob(z), z)
        np.testing.assert_allclose(-hessian.numpy(), np.linalg.inv(covariance), rtol=1e-4, atol=1e-4)
    assert in_torch(distributions.Exponential(1.0)).support is distributions.constraints.positive


def test_what_a_torch_distribution_says_numpyro_says() -> None:
    factor = np.linalg.cholesky(COVARIANCE)
    for own in (
        GaussianAR1(jnp.array([0.5, 0.9]), 3).expand((5,)),
        GaussianSequence(jnp.ones((4, 2)), jnp.asarray(factor)[None]).expand((5,)),
        distributions.Normal(jnp.ones(3), 2.0).to_event(1).expand((5,)),
    ):
        p, z = in_torch(own), own.sample(jax.random.key(0), (7,))
        assert p.batch_shape == own.batch_shape
        assert p.event_shape == own.event_shape
        np.testing.assert_array_equal(p.mean.numpy(), np.broadcast_to(own.mean, own.shape()))
        np.testing.assert_array_equal(p.variance.numpy(), np.broadcast_to(own.variance, own.shape()))
        np.testing.assert_allclose(p.log_prob(torch.tensor(np.array(z))).numpy(), own.log_prob(z), rtol=1e-6)
        delta = pyro_delta.committed_rate(p)
        assert delta.dtype == torch.float64
        np.testing.assert_allclose(delta.numpy(), np.broadcast_to(committed_rate(own), (5,)), rtol=1e-12)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_a_plate_that_has_the_batch_s_size_by_chance(number: int) -> None:
    """As in Pyro: it stands outside that of the data, whose numbers belong to the data all the same."""
    means, of_z = jnp.arange(4.0), jnp.asarray(np.random.default_rng(1).normal(size=(4, 5)), jnp.float32)

    def model(x: Any) -> None:
        with numpyro.plate("topics", 4), numpyro.plate("data", len(x)):
            z = numpyro.sample("latent", distributions.Normal(means, 1.0))
        with numpyro.plate("pixels", 5), numpyro.plate("data again", len(x)):
            numpyro.sample("obs", distributions.Normal(z @ of_z, 1.0), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("topics", 4), numpyro.plate("data", len(x)):
            numpyro.sample("latent", distributions.Normal(x[:, :4], 0.5))

    x = torch.randn(number, 5, generator=torch.Generator().manual_seed(2))
    seen = trace(NumPyroVAE(model, guide, {}), x)
    z, normal = seen.z["latent"], torch_distributions.Normal
    torch.testing.assert_close(seen.log_q, normal(x[:, :4], 0.5).log_prob(z).sum(1))
    torch.testing.assert_close(seen.log_p, normal(torch.arange(4.0), 1.0).log_prob(z).sum(1))
    expected = normal(z @ torch.tensor(np.array(of_z)), 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(seen.log_px, expected, rtol=1e-5, atol=1e-5)
