"""Whole programs of the twin against Pyro's: the cross-check, that it finds what is wrong, and images."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from networks import random_images, randomise

from pyro_delta import config, programs
from pyro_delta.build import build
from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.condition import Condition
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.diagnostics import drawing
from pyro_delta.distributions.contour import contour_radius
from pyro_delta.errors import UserError
from pyro_delta.models import LSTMPrior
from pyro_delta.protocol import Spec
from pyro_delta.vae import VAE, local_parameters, with_prior

pytest.importorskip("flax")

import jax
import jax.numpy as jnp

from pyro_delta.twin import auxiliary, distributions, latents, logistic_mixture, priors, sampling
from pyro_delta.twin import build as twins
from pyro_delta.twin import crosscheck as crosschecking
from pyro_delta.twin.contour import Contour, onto_contour
from pyro_delta.twin.crosscheck import Crosscheck, crosscheck
from pyro_delta.twin.distributions import GaussianAR1 as TwinAR1
from pyro_delta.twin.images import conditional, encoder, gated_pixelcnn
from pyro_delta.twin.weights import load_weights, torch_weights

GREY, COLOUR, TOKENS = ImageSpec(1, 4, 6, 17), ImageSpec(3, 4, 4, 256), TokenSpec(6, 11)
OF_CLASSES = Condition(classes=("a", "b", "c"))
OF_NUMBERS = Condition(location=(1.0, -2.0), scale=(0.5, 3.0))
SCORE, SOUND = ScoreSpec(6, 9, voices=3), SoundSpec(4, samples=5, levels=16)
TRUNK = {"channels": [4, 6], "row_blocks": [1, 1], "pixel_blocks": 1}
GATED = {"program": "gated_pixelcnn", "mixtures": 2, "latent_channels": 3, **TRUNK}
SNAIL = {"program": "pixelsnail", "mixtures": 2, "latent_channels": 3, "channels": 8, "blocks": 1, "layers": 1}
GUIDE = {"features": 4, **TRUNK}


class Case(NamedTuple):
    """Programs, and data for them."""

    prior: dict[str, Any]
    likelihood: dict[str, Any]
    guide: dict[str, Any]
    spec: Spec = GREY
    elbo: str = "mean_field"
    auxiliary: bool = False


CASES = {
    "ar1, gated, anti-causal": Case(
        {"program": "ar1", "dims": 2, "alpha": "0.3:0.9"}, GATED, {"program": "anti_causal", **GUIDE}, COLOUR
    ),
    "learned, snail, structured": Case(
        {"program": "ar1_learned", "dims": 2, "floor_nats": 1.0},
        SNAIL,
        {"program": "structured", "block": 3, **GUIDE},
        elbo="trace",
    ),
    "standard, gated, contour": Case(
        {"program": "standard_normal", "dims": 2, "length": 2},
        GATED,
        {"program": "contour", "rate_nats": 0.8, **GUIDE},
    ),
    "ar, snail full, bidirectional": Case(
        {"program": "ar", "dims": 2, "pacf": [0.7, -0.3]},
        {**SNAIL, "conditioning": "full"},
        {"program": "bidirectional", **GUIDE},
        COLOUR,
    ),
    "lattice, gated, anti-causal": Case(
        {"program": "lattice", "dims": 2, "rows": 2, "columns": 2, "rate_nats": 3.0},
        GATED,
        {"program": "anti_causal", **GUIDE},
        elbo="trace",
    ),
    "matern, no latents, structured": Case(
        {"program": "matern", "dims": 1, "rate_nats": 2.0},
        {**GATED, "use_latents": False},
        {"program": "structured", **GUIDE},
    ),
    "auxiliary, snail, anti-causal": Case(
        {"program": "ar1", "dims": 2, "rate_nats": 2.0},
        SNAIL,
        {"program": "anti_causal", **GUIDE},
        elbo="trace",
        auxiliary=True,
    ),
    "ar1, gru, gru": Case(
        {"program": "ar1", "dims": 2, "length": 3, "alpha": "0.3:0.9"},
        {"program": "gru", "hidden": 5},
        {"program": "gru", "hidden": 4},
        TOKENS,
    ),
    "standard, gru of voices, gru": Case(
        {"program": "standard_normal", "dims": 2, "length": 3},
        {"program": "gru", "hidden": 5},
        {"program": "gru", "hidden": 4},
        SCORE,
    ),
    "learned, gru full, gru both ways": Case(
        {"program": "ar1_learned", "dims": 1, "length": 12, "floor_nats": 1.0},
        {"program": "gru", "hidden": 4, "conditioning": "full"},
        {"program": "gru", "hidden": 5, "bidirectional": True},
        TOKENS,
        elbo="trace",
    ),
    "ar1, transformer, transformer": Case(
        {"program": "ar1", "dims": 2, "length": 3, "alpha": "0.3:0.9"},
        {"program": "transformer", "hidden": 8, "layers": 2, "heads": 2},
        {"program": "transformer", "hidden": 4, "layers": 1, "heads": 1},
        TOKENS,
    ),
    "standard, transformer of voices, gru beyond a contour": Case(
        {"program": "standard_normal", "dims": 2, "length": 3},
        {"program": "transformer", "hidden": 4, "layers": 1, "heads": 2, "conditioning": "full"},
        {"program": "gru", "hidden": 4, "rate_nats": 0.8},
        SCORE,
    ),
    "standard, transformer of voices full, transformer both ways beyond a contour": Case(
        {"program": "standard_normal", "dims": 1, "length": 3},
        {"program": "transformer", "hidden": 4, "layers": 1, "heads": 1, "conditioning": "full"},
        {"program": "transformer", "hidden": 4, "layers": 1, "heads": 2, "bidirectional": True, "rate_nats": 0.8},
        SCORE,
    ),
    "matern, gru without latents, gru": Case(
        {"program": "matern", "dims": 2, "rate_nats": 2.0},
        {"program": "gru", "hidden": 4, "use_latents": False},
        {"program": "gru", "hidden": 4},
        TOKENS,
    ),
    "ar1, wavenet, spectral": Case(
        {"program": "ar1", "dims": 2, "length": 2, "alpha": "0.3:0.9"},
        {"program": "wavenet", "channels": 4, "blocks": 3, "mixtures": 2},
        {"program": "spectral", "hidden": 4},
        SOUND,
    ),
    "ar, wavenet full, spectral": Case(
        {"program": "ar", "dims": 2, "pacf": [0.7, -0.3]},
        {"program": "wavenet", "channels": 3, "blocks": 2, "mixtures": 1, "conditioning": "full"},
        {"program": "spectral", "hidden": 3},
        SOUND,
        elbo="trace",
    ),
    "standard, wavenet without latents, spectral beyond a contour": Case(
        {"program": "standard_normal", "dims": 1},
        {"program": "wavenet", "channels": 3, "blocks": 2, "mixtures": 2, "use_latents": False},
        {"program": "spectral", "hidden": 3, "rate_nats": 0.8},
        SOUND,
    ),
    "conditioned on classes, gated, contour": Case(
        {"program": "standard_normal", "dims": 2, "length": 2},
        GATED,
        {"program": "contour", "rate_nats": 0.8, **GUIDE},
        replace(GREY, condition=OF_CLASSES),
    ),
    "conditioned on numbers, snail full, structured": Case(
        {"program": "ar1", "dims": 3, "alpha": "0.3:0.9"},
        {**SNAIL, "conditioning": "full"},
        {"program": "structured", "block": 2, **GUIDE},
        replace(GREY, condition=OF_NUMBERS),
        elbo="trace",
    ),
    "conditioned on classes, gated without latents, anti-causal": Case(
        {"program": "ar1", "dims": 2, "alpha": 0.5},
        {**GATED, "use_latents": False},
        {"program": "anti_causal", **GUIDE},
        replace(GREY, condition=OF_CLASSES),
    ),
    "conditioned on numbers, gru, gru": Case(
        {"program": "ar1", "dims": 2, "length": 3, "alpha": "0.3:0.9"},
        {"program": "gru", "hidden": 5},
        {"program": "gru", "hidden": 4},
        replace(TOKENS, condition=OF_NUMBERS),
    ),
    "conditioned on classes, wavenet, spectral": Case(
        {"program": "ar1", "dims": 1, "length": 2, "alpha": 0.7},
        {"program": "wavenet", "channels": 4, "blocks": 2, "mixtures": 2},
        {"program": "spectral", "hidden": 4},
        replace(SOUND, condition=OF_CLASSES),
    ),
}
FIRST = CASES["ar1, gated, anti-causal"]
SEEDS = range(10)


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def settings_of(case: Case) -> config.Config:
    sections = {"prior": case.prior, "likelihood": case.likelihood, "guide": case.guide}
    return config.validate({"data": {}, "training": {"steps": 1}, **sections})


def pyro_programs(case: Case) -> VAE:
    made = build(settings_of(case), case.spec)
    if not case.auxiliary:
        return made
    with local_parameters():
        return with_prior(made, LSTMPrior(made.model.prior, hidden=5, mixtures=2))


@cache
def pair(name: str) -> tuple[VAE, twins.VAE]:
    """Built once: every seed brings its own weights."""
    case = CASES[name]
    made, twin = pyro_programs(case), twins.build(settings_of(case), case.spec)
    if case.auxiliary:
        twin.model.prior = auxiliary.LSTMPrior.like(made.model.prior, twin.model.prior)
    return made, twin


def conditions(spec: Spec) -> dict[str, torch.Tensor]:
    """What three data are conditioned on, if they are."""
    condition = getattr(spec, "condition", None)
    if condition is None:
        return {}
    told = torch.tensor([2, 0, 2]) if condition.classes else torch.tensor([[1.0, 2.0], [0, -9], [3, 0]])
    return {"condition": told}


def compared(case: Case, made: VAE, twin: twins.VAE, seed: int = 0, **options: Any) -> Crosscheck:
    images = {"x": random_images(case.spec, (3,), seed).to(torch.uint8), **conditions(case.spec)}
    return crosscheck(randomise(made, seed), twin, images, elbo=case.elbo, seed=seed, **options)


def test_every_shipped_program_is_in_a_case() -> None:
    for kind in ("prior", "likelihood", "guide"):
        assert {getattr(case, kind)["program"] for case in CASES.values()} == set(programs.SHIPPED[kind])


@pytest.mark.parametrize("name", CASES)
def test_pyro_and_numpyro_agree(name: str) -> None:
    made, twin = pair(name)
    for seed in SEEDS:
        found = compared(CASES[name], made, twin, seed)
        assert found.failure is None
        assert {term.term for term in found.terms} == {"log p(z)", "log p(x|z)", "log q(z|x)", "KL(q‖p)", "−ELBO", "δ"}
        unknown = {term.term for term in found.terms if term.pyro is None}
        assert unknown == ({"KL(q‖p)", "δ"} if CASES[name].auxiliary else set())
        assert found.gradients.keys() == dict(made.named_parameters()).keys()
        assert set(found.buffers) == set(made.state_dict()) - set(found.gradients)


@pytest.mark.parametrize("name", ["standard, gated, contour", "standard, transformer of voices, gru beyond a contour"])
def test_both_numbers_of_a_coordinate_start_alike_from_data(name: str) -> None:
    made, twin = pair(name)
    randomise(made, 0)
    load_weights(twin, made.state_dict())
    spec = CASES[name].spec
    given = [random_images(spec, (16,)), *([torch.arange(16) % 6 + 1] if spec is SCORE else [])]
    made.guide.start_from(*given)
    twin.guide.start_from(*(jnp.asarray(values.numpy()) for values in given))
    found = torch_weights(twin)
    for name, value in made.state_dict().items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("delta", [0.01, 1.0, 10.0, 37.5, 50.0])
def test_the_contour_and_its_gradient_are_those_of_pyro_for_any_rate(delta: float) -> None:
    theta = torch.linspace(0, 2 * torch.pi, 41, dtype=torch.float64)[:-1] + 0.01
    v = torch.stack([theta.cos(), theta.sin()]).requires_grad_()
    radius = contour_radius(*(v / v.norm(dim=0)), delta)
    weights = torch.linspace(-1, 1, 80, dtype=torch.float64).reshape(2, -1)
    found = radius * v / v.norm(dim=0)
    (grad,) = torch.autograd.grad((weights * found).sum(), v)
    at, slope = jax.vjp(lambda v: onto_contour(v, delta), jnp.asarray(v.detach().numpy()))
    np.testing.assert_allclose(at, found.detach().numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slope(jnp.asarray(weights.numpy()))[0], grad.numpy(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("delta", [1e-3, 0.3, 5.0])
def test_the_contour_holds_as_far_as_single_precision_reaches(delta: float) -> None:
    """Where the distance from 0 has no number any more."""
    v = jnp.asarray(np.array(np.meshgrid(*2 * [[-3e38, -1e19, -1.0, 0.0, 1e19, 3e38]]), np.float32).reshape(2, -1))
    contour = Contour(TwinAR1(jnp.zeros(1), 1), delta)
    mean, scale = (np.asarray(part, np.float64) for part in contour(*v))
    assert (0.5 * (mean**2 + scale**2 - 1) - np.log(scale) >= delta).all()
    slopes = jax.grad(lambda v: jnp.stack(contour(*v)).sum())(v)
    assert np.isfinite(slopes).all()


def test_a_gradient_of_rounding_errors_agrees() -> None:
    """A weight without any effect: what either side has for its gradient is noise, and its ratio means nothing."""
    terms = dict.fromkeys(crosschecking.TERMS)
    ours = crosschecking.Side(terms, {"a": np.array([8.0, 1.0]), "b": np.array([1e-16])})
    for noise, expected in ((-1e-16, 0.0), (1e-14, 99.0)):
        theirs = crosschecking.Side(terms, {"a": np.array([8.0, 1.0]), "b": np.array([noise])})
        _, gradients = crosschecking._compared([(ours, theirs)], 2e-16)
        assert gradients == {"a": 0.0, "b": pytest.approx(expected)}


def test_single_precision_agrees_to_its_own_rounding() -> None:
    case, (made, twin) = FIRST, pair("ar1, gated, anti-causal")
    found = compared(case, made, twin, dtype=torch.float32)
    assert found.failure is None
    assert found.tolerance == 1e-4
    assert max(term.difference for term in found.terms) > 1e-12, "nothing was computed in single precision"


def test_what_is_compared_is_left_as_it_was() -> None:
    made, twin = pair("ar1, gated, anti-causal")
    randomise(made, 0).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    crosscheck(made, twin, random_images(COLOUR, (1,)), dtype=torch.float32)
    assert made.training
    assert all(p.grad is None for p in made.parameters())
    assert all(
        torch.equal(value, before[name]) and value.dtype == before[name].dtype
        for name, value in made.state_dict().items()
    )


# --- Twins that are wrong ---


def alpha_is_a_variance(patch: pytest.MonkeyPatch) -> None:
    """z_t = √α z_{t−1} + …: α read as the variance that is handed on."""
    init = distributions.GaussianAR1.__init__
    patch.setattr(
        distributions.GaussianAR1, "__init__", lambda self, alpha, *a, **k: init(self, jnp.sqrt(alpha), *a, **k)
    )


def a_variance_is_a_deviation(patch: pytest.MonkeyPatch) -> None:
    """The noise of a step is scaled by 1 − α², the variance, in place of its root."""
    patch.setattr(distributions, "_one_minus_square", lambda alpha: jnp.square((1 - alpha) * (1 + alpha)))


def a_pixel_sees_itself(patch: pytest.MonkeyPatch) -> None:
    """A flipped mask: the row is not shifted."""
    patch.setattr(gated_pixelcnn, "shift_right", lambda v: v)


def a_row_sees_later_steps(patch: pytest.MonkeyPatch) -> None:
    """A flipped mask: rows see the steps that they must not, and no others."""
    visible = latents.LatentMap._visible
    patch.setattr(latents.LatentMap, "_visible", lambda self: ~visible(self))


def the_guide_looks_up(patch: pytest.MonkeyPatch) -> None:
    """The image is not reversed: z_t hears the rows up to its own."""
    patch.setattr(
        encoder.ImageEncoder,
        "_anti_causal",
        lambda self, e: self.trunk(jnp.pad(e, ((0, 0), (1, 0), (0, 1), (0, 0))))[:, 1:, 1:],
    )


def blue_comes_first(patch: pytest.MonkeyPatch) -> None:
    """A swapped order of channels, on the way in."""
    embed = conditional.embed_pixels
    patch.setattr(conditional, "embed_pixels", lambda x, *a: embed(x[..., ::-1], *a))


def green_and_blue_swap_their_coefficients(patch: pytest.MonkeyPatch) -> None:
    """A swapped order of channels, on the way out."""
    init = logistic_mixture.DiscretizedLogisticMixture.__init__

    def swapped(self: Any, logits: Any, means: Any, log_scales: Any, coefficients: Any = None, **options: Any) -> None:
        init(self, logits, means, log_scales, coefficients[..., ::-1, :, :, :], **options)

    patch.setattr(logistic_mixture.DiscretizedLogisticMixture, "__init__", swapped)


def rows_are_averaged_with_the_next(patch: pytest.MonkeyPatch) -> None:
    """A region that is a row too tall."""
    regions = encoder.region_weights
    patch.setattr(encoder, "region_weights", lambda *a: (lambda w: (w + np.roll(w, 1, 1)) / 2)(regions(*a)))


WRONG: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    alpha_is_a_variance: "log p(z)",
    a_variance_is_a_deviation: "log p(z)",
    a_pixel_sees_itself: "log p(x|z)",
    a_row_sees_later_steps: "log p(x|z)",
    the_guide_looks_up: "log q(z|x)",
    blue_comes_first: "log p(x|z)",
    green_and_blue_swap_their_coefficients: "log p(x|z)",
    rows_are_averaged_with_the_next: "log q(z|x)",
}
"""Mistakes, and a term that shows each."""


@pytest.mark.parametrize("mistake", WRONG, ids=lambda mistake: mistake.__name__)
def test_a_wrong_twin_is_found(mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision, where the tolerance is the larger one."""
    made, twin = pair("ar1, gated, anti-causal")
    uncompiled = crosschecking._numpyro_gradient.__wrapped__
    # A function that JAX has not seen: it would not look into the other one again.
    anew = jax.jit(lambda *arguments: uncompiled(*arguments), static_argnums=(0, 1))
    monkeypatch.setattr(crosschecking, "_numpyro_gradient", anew)
    mistake(monkeypatch)
    found = compared(FIRST, made, twin, dtype=torch.float32)
    assert found.failure
    differences = {term.term: term.difference for term in found.terms}
    assert not differences[WRONG[mistake]] <= found.tolerance
    assert not found.asdict()["agrees"]


def test_a_fixed_number_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are taken over, but what the twin computes for itself is compared first."""
    spread = priors.alpha_of_spelling
    monkeypatch.setattr(priors, "alpha_of_spelling", lambda *a: spread(*a) + 1e-5)
    twin = twins.build(settings_of(FIRST), FIRST.spec)
    found = compared(FIRST, pyro_programs(FIRST), twin)
    assert found.buffers["model.prior.alpha"] == pytest.approx(1e-5 / 0.9, rel=0.01)
    assert "the buffer" in str(found.failure)


def test_weights_that_do_not_fit_are_named() -> None:
    made, twin = pair("ar1, gated, anti-causal")
    state = made.state_dict()
    name = next(iter(state))
    with pytest.raises(UserError, match=r"lack model\.prior"):
        load_weights(twin, {key: value for key, value in state.items() if key != name})
    with pytest.raises(UserError, match="no place for the weights more"):
        load_weights(twin, {**state, "more": torch.zeros(1)})


# --- Twins of a user's own ---


def test_a_program_without_a_twin_says_how_to_name_one(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text("from pyro_delta.models import AR1Prior\nclass Mine(AR1Prior):\n    pass\n")
    with pytest.raises(UserError, match="has no NumPyro twin; name one"):
        twins.build(settings_of(FIRST._replace(prior={"program": f"{path}:Mine", "alpha": 0.5})), FIRST.spec)


@pytest.mark.parametrize("place", ["no.module:X", "os:nothing", "os:sep", "nocolon", "", ":X", 3])
def test_a_twin_that_is_not_there_is_said_in_a_sentence(place: Any, tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN.replace("twin = Twin", f"twin = {place!r}"))
    with pytest.raises(UserError, match=re.escape(f"names the twin {place!r}, which is not there; name one as")):
        twins.build(settings_of(FIRST._replace(prior={"program": f"{path}:Mine"})), FIRST.spec)


def test_a_twin_of_other_steps_than_its_rows_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN.replace("t = jnp.arange(self.starts.shape[0])", "t = jnp.arange(3)"))
    with pytest.raises(UserError, match=r"has event shape \(3, 1\) and starts \(4,\)"):
        twins.build(settings_of(FIRST._replace(prior={"program": f"{path}:Mine"})), FIRST.spec)


FAILING = """
from pyro_delta.guides import AntiCausalGuide
from pyro_delta.twin.images import guides

class Raising(guides.AntiCausalGuide):
    def posterior(self, x):
        return 1 / 0

class Flat(guides.AntiCausalGuide):
    def posterior(self, x):
        return super().posterior(x).base_dist

class Mine(AntiCausalGuide):
    twin = Raising

class Other(AntiCausalGuide):
    twin = Flat
"""


@pytest.mark.parametrize(
    ("name", "message"), [("Mine", "line 7: ZeroDivisionError"), ("Other", "of shape .* for two data; it must be")]
)
def test_a_twin_that_fails_on_images_is_said_when_it_is_built(name: str, message: str, tmp_path: Any) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FAILING)
    with pytest.raises(UserError, match=message):
        twins.build(settings_of(FIRST._replace(guide={"program": f"{path}:{name}", **GUIDE})), FIRST.spec)


OWN = """
import jax.numpy as jnp, numpyro.distributions as dist, torch
from flax import nnx
from pyro.nn import PyroModule
from pyro_delta.distributions import GaussianAR1
from pyro_delta.twin.variables import Buffer

class Twin(nnx.Module):
    def __init__(self, spec, *, alpha=0.5):
        self.starts, self.alpha = Buffer(jnp.arange(spec.height)), Buffer(jnp.full(1, alpha))

    def __call__(self):
        t = jnp.arange(self.starts.shape[0])
        normal = dist.MultivariateNormal(jnp.zeros(len(t)), self.alpha[...] ** jnp.abs(t[:, None] - t))
        return dist.TransformedDistribution(normal, dist.transforms.ReshapeTransform((len(t), 1), (len(t),)))

class Mine(PyroModule):
    twin = Twin

    def __init__(self, spec, *, alpha=0.5):
        super().__init__()
        self.register_buffer("starts", torch.arange(spec.height))
        self.register_buffer("alpha", torch.full((1,), alpha))

    def forward(self):
        return GaussianAR1(self.alpha, len(self.starts))
"""


def test_a_user_s_own_twin_is_found_and_certified(tmp_path: Any) -> None:
    """A prior whose twin is another distribution altogether: the same density, and δ read off it."""
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    case = FIRST._replace(prior={"program": f"{path}:Mine", "alpha": 0.75}, elbo="trace")
    guide = {"program": "pyro_delta.guides:AntiCausalGuide", **GUIDE}
    made, twin = (
        pyro_programs(case._replace(guide=guide)),
        twins.build(settings_of(case._replace(guide=guide)), case.spec),
    )
    found = compared(case, made, twin)
    by_name = {term.term: term for term in found.terms}
    for term in ("log p(z)", "log p(x|z)", "−ELBO", "δ"):
        assert by_name[term].difference < 1e-9, term
    assert "KL(q‖p)" in str(found.failure), "Pyro has a closed form and the twin has none"


# --- Images ---


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("decodings", [None, 2])
def test_the_same_noise_gives_the_same_images(name: str, decodings: int | None) -> None:
    made, twin = pair(name)
    randomise(made, 1)
    load_weights(twin, made.state_dict())
    counted: list[int] = []
    told = conditions(CASES[name].spec)
    options: dict[str, Any] = {"decodings": decodings, "seed": 3, "batch": 2, "extras": told}
    found = sampling.draw(twin, 3, **options, advance=counted.append)
    assert torch.equal(found, drawing.draw(made, 3, **options))
    assert sum(counted) == len(found) == 3 * (decodings or 1)
    assert found.unique().numel() > 1
