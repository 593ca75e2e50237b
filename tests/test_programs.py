"""Model and guide as Pyro programs: every handler and estimator a user may put around them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from networks import IMAGE_PRESETS, SPECS, random_images, randomise
from pyro import poutine
from pyro.infer import SVI, Predictive, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_delta import config
from pyro_delta.build import build
from pyro_delta.data import Split, Splits
from pyro_delta.data.images import ImageSpec
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.guides import AntiCausalGuide, ImageEncoder, regions
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.models import AR1Prior, ConditionalGatedPixelCNN, DeltaVAE, GatedPixelCNNLikelihood, even_starts
from pyro_delta.models.images.pixelsnail import ConditionalPixelSNAIL
from pyro_delta.nn.images.causal import RowConv
from pyro_delta.nn.images.embedding import embed_pixels
from pyro_delta.nn.precision import set_bf16
from pyro_delta.rate import ar1_committed_rate
from pyro_delta.vae import VAE

SPEC = ImageSpec(1, 6, 5, 5)
COLOUR = ImageSpec(3, 4, 5, 256)
LENGTH, DIMS = 2, 3
NETWORK = {"channels": (6, 4), "row_blocks": (1, 1), "pixel_blocks": 1}


def toy(spec: ImageSpec = SPEC, *, alpha: float = 0.8, use_latents: bool = True) -> VAE:
    """Small programs with torch's own initial weights."""
    prior = AR1Prior(spec, dims=DIMS, length=LENGTH, alpha=alpha)
    likelihood = GatedPixelCNNLikelihood(spec, prior, mixtures=2, use_latents=use_latents, **NETWORK)
    guide = AntiCausalGuide(spec, prior, features=6, **NETWORK)
    return VAE(DeltaVAE(prior, likelihood), guide)


@pytest.fixture(params=[SPEC, COLOUR], ids=["grey", "colour"])
def spec(request: pytest.FixtureRequest) -> ImageSpec:
    return request.param


@pytest.fixture(params=[True, False], ids=["local", "store"])
def setting(request: pytest.FixtureRequest) -> object:
    """Everything but training works the same with parameters in the modules and with Pyro's default."""
    with pyro.settings.context(module_local_params=request.param):
        yield request.param


# --- handlers ---


@pytest.mark.usefixtures("setting")
def test_the_model_generates_without_data(spec: ImageSpec) -> None:
    nodes = poutine.trace(toy(spec).model).get_trace(batch=4).nodes
    assert nodes["z"]["value"].shape == (4, LENGTH, DIMS)
    assert nodes["x"]["value"].shape == (4, *spec.shape)
    assert nodes["x"]["value"].dtype == torch.int64
    assert not nodes["x"]["is_observed"]
    assert nodes["_RETURN"]["value"] is nodes["x"]["value"]
    assert toy(spec).model().shape == (1, *spec.shape)


@pytest.mark.usefixtures("setting")
def test_the_model_scores_data_in_one_plate(spec: ImageSpec) -> None:
    vae, x = toy(spec), random_images(spec, (4,))
    model = poutine.trace(vae.model).get_trace(x)
    guide = poutine.trace(vae.guide).get_trace(x)
    model.compute_log_prob()
    guide.compute_log_prob()
    assert model.nodes["x"]["is_observed"]
    assert [name for name, node in guide.nodes.items() if node["type"] == "sample" and name != "data"] == ["z"]
    for node in (model.nodes["z"], model.nodes["x"], guide.nodes["z"]):
        assert [(frame.name, frame.size) for frame in node["cond_indep_stack"]] == [("data", 4)]
        assert node["log_prob"].shape == (4,)
        assert node["scale"] == 1.0


@pytest.mark.usefixtures("setting")
def test_replay_takes_the_guides_sample() -> None:
    vae, x = toy(), random_images(SPEC, (4,))
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x)
    z = guide.nodes["z"]["value"]
    assert model.nodes["z"]["value"] is z
    expected = vae.model.prior().log_prob(z).sum() + vae.model.likelihood(z).log_prob(x).sum()
    torch.testing.assert_close(model.log_prob_sum(), expected)


@pytest.mark.usefixtures("setting")
def test_a_generated_trace_replays_to_the_same_score() -> None:
    model = toy().model
    drawn = poutine.trace(model).get_trace(batch=3)
    replayed = poutine.trace(poutine.replay(model, drawn)).get_trace(batch=3)
    assert torch.equal(replayed.nodes["x"]["value"], drawn.nodes["x"]["value"])
    torch.testing.assert_close(replayed.log_prob_sum(), drawn.log_prob_sum())


@pytest.mark.usefixtures("setting")
def test_conditioning_on_images_is_observing_them() -> None:
    model, x = toy().model, random_images(SPEC, (3,))
    z = model.prior().expand((3,)).sample()
    conditioned = poutine.trace(poutine.condition(model, {"x": x, "z": z})).get_trace(batch=3)
    observed = poutine.trace(poutine.condition(model, {"z": z})).get_trace(x)
    torch.testing.assert_close(conditioned.log_prob_sum(), observed.log_prob_sum())


@pytest.mark.usefixtures("setting")
@pytest.mark.parametrize("parallel", [False, True], ids=["loop", "parallel"])
def test_predictive(parallel: bool, spec: ImageSpec) -> None:
    vae, x = toy(spec), random_images(spec, (3,))
    prior = Predictive(vae.model, num_samples=4, parallel=parallel)(batch=3)
    assert prior["z"].shape == (4, 3, LENGTH, DIMS)
    assert prior["x"].shape == (4, 3, *spec.shape)
    posterior = Predictive(vae.model, guide=vae.guide, num_samples=4, parallel=parallel, return_sites=("z", "x"))(x)
    assert posterior["z"].shape == (4, 3, LENGTH, DIMS)
    assert (posterior["x"] == x).all()
    # new images from the guide's latents
    decoded = Predictive(vae.model, posterior_samples={"z": posterior["z"]}, parallel=parallel)(batch=3)
    assert decoded["x"].shape == (4, 3, *spec.shape)


@pytest.mark.usefixtures("setting")
def test_posteriors_take_any_batch_shape() -> None:
    guide, x = toy().guide, random_images(SPEC, (2, 3))
    q = guide.posterior(x)
    assert q.batch_shape == (2, 3)
    assert q.event_shape == (LENGTH, DIMS)
    for index in ((0, 0), (1, 2)):
        alone = guide.posterior(x[index])
        assert alone.batch_shape == ()
        torch.testing.assert_close(alone.mean, q.mean[index])
        torch.testing.assert_close(alone.stddev, q.stddev[index])


# --- estimators ---


@pytest.mark.parametrize("make", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("spell_out_nesting", [True, False])
def test_vectorised_particles_estimate_the_same(make: Callable, spell_out_nesting: bool) -> None:
    nesting = {"max_plate_nesting": 1} if spell_out_nesting else {}
    with torch.no_grad():
        vae, x = toy(alpha=0.95), random_images(SPEC, (2,))
        vectorised = make(num_particles=30, vectorize_particles=True, **nesting)(vae.model, vae.guide)
        one = make(**nesting)(vae.model, vae.guide)
        many = torch.stack([torch.as_tensor(vectorised(x)) for _ in range(5)])
        few = torch.stack([torch.as_tensor(one(x)) for _ in range(100)])
    error = (many.var() / len(many) + few.var() / len(few)).sqrt()
    assert (many.mean() - few.mean()).abs() < 5 * error
    assert many.std() < few.std()


def test_the_elbo_is_likelihood_less_rate() -> None:
    with torch.no_grad():
        vae, x = toy().double(), random_images(SPEC, (4,))
        q, p = vae.guide.posterior(x), vae.model.prior()
        for make in (Trace_ELBO, TraceMeanField_ELBO):
            torch.manual_seed(0)
            z = q.rsample()
            rate = kl_divergence(q, p) if make is TraceMeanField_ELBO else q.log_prob(z) - p.log_prob(z)
            expected = (rate - vae.model.likelihood(z).log_prob(x)).sum()
            torch.manual_seed(0)
            loss = make(max_plate_nesting=1)(vae.model, vae.guide)(x)
            torch.testing.assert_close(torch.as_tensor(loss), expected)


@pytest.mark.parametrize("vectorize", [True, False])
def test_renyi_of_order_0_is_the_importance_weighted_bound_of_each_image(vectorize: bool) -> None:
    particles = 5
    with torch.no_grad():
        vae, x = toy().double(), random_images(SPEC, (3,))
        q, p = vae.guide.posterior(x), vae.model.prior()
        elbo = RenyiELBO(alpha=0, num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
        torch.manual_seed(0)
        z = q.rsample((particles,)) if vectorize else torch.stack([q.rsample() for _ in range(particles)])
        log_w = p.log_prob(z) + vae.model.likelihood(z).log_prob(x) - q.log_prob(z)
        expected = -(log_w.logsumexp(0) - math.log(particles)).sum()
        torch.manual_seed(0)
        loss = elbo.loss(vae.model, vae.guide, x)
    torch.testing.assert_close(torch.as_tensor(loss).double(), expected.double(), rtol=1e-6, atol=0)


# --- the floor ---


def test_a_silent_guide_stands_at_the_floor() -> None:
    with torch.no_grad():
        vae, x = toy().double(), random_images(SPEC, (4,))
        nn.init.zeros_(vae.guide.encoder.out.weight)
        nn.init.zeros_(vae.guide.encoder.out.bias)
        prior = vae.model.prior()
        kl_b = kl_divergence(vae.guide.posterior(x), prior)
    delta = ar1_committed_rate(prior.alpha, LENGTH)
    torch.testing.assert_close(kl_b, delta.expand(4), rtol=1e-6, atol=0)


def test_training_starts_near_the_floor(spec: ImageSpec) -> None:
    with torch.no_grad():
        vae = toy(spec)
        prior = vae.model.prior()
        kl_b = kl_divergence(vae.guide.posterior(random_images(spec, (16,))), prior)
    delta = ar1_committed_rate(prior.alpha, LENGTH)
    assert (kl_b >= delta).all()
    assert (kl_b < 1.5 * delta + 1).all()


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_no_weights_pass_below_the_floor(bf16: bool) -> None:
    x = random_images(SPEC, (8,))
    with torch.no_grad():
        for seed in range(20):
            vae = randomise(toy(alpha=0.99), seed).float()
            # weights of every size, from silent to loud
            for parameter in vae.guide.encoder.out.parameters():
                parameter.mul_(10.0 ** (seed % 5 - 3))
            set_bf16(vae, bf16)
            q = vae.guide.posterior(x)
            prior = GaussianAR1(vae.model.prior.alpha.double(), LENGTH)
            kl_b = kl_divergence(type(q)(torch.distributions.Normal(q.mean.double(), q.stddev.double()), 2), prior)
            assert (kl_b >= ar1_committed_rate(prior.alpha, LENGTH) * (1 - 1e-9)).all()


# --- parameters ---


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def unmoved(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])]


@pytest.mark.parametrize("make", [Trace_ELBO, TraceMeanField_ELBO])
def test_svi_moves_every_parameter(make: Callable) -> None:
    """Pyro's own loop, under Pyro's default setting."""
    assert pyro.settings.get("module_local_params") is False
    vae, x = toy(), random_images(SPEC, (4,))
    before = snapshot(vae)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss=make())
    losses = [svi.step(x) for _ in range(2)]
    assert all(loss == loss for loss in losses)
    assert unmoved(vae, before) == []
    # one entry for each parameter: no two of model and guide share one
    assert len(list(pyro.get_param_store().keys())) == len(before)


@pytest.mark.parametrize("make", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("use_latents", [True, False])
def test_a_torch_optimiser_moves_every_parameter(make: Callable, use_latents: bool) -> None:
    vae, x = toy(use_latents=use_latents), random_images(SPEC, (4,))
    before = snapshot(vae)
    loss = make(max_plate_nesting=1)(vae.model, vae.guide)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    loss(x).backward()
    optimiser.step()
    assert unmoved(vae, before) == []
    assert len(pyro.get_param_store()) == 0


def test_two_models_of_one_process_are_two() -> None:
    first, second, x = toy(), toy(), random_images(SPEC, (4,))
    loss = Trace_ELBO(max_plate_nesting=1)(first.model, first.guide)
    Trace_ELBO(max_plate_nesting=1)(second.model, second.guide)(x)
    before, other = snapshot(first), snapshot(second)
    optimiser = torch.optim.SGD(loss.parameters(), lr=1e-2)
    loss(x).backward()
    optimiser.step()
    assert unmoved(first, before) == []
    assert unmoved(second, other) == list(other)


def test_weights_travel_as_a_state_dict() -> None:
    x = random_images(SPEC, (3,))
    with torch.no_grad():
        source, target = randomise(toy(alpha=0.9)), toy(alpha=0.1).double()
        target.load_state_dict(source.state_dict())
        assert torch.equal(source.guide.posterior(x).mean, target.guide.posterior(x).mean)
        z = source.model.prior().expand((3,)).sample()
        assert torch.equal(source.model.likelihood(z).log_prob(x), target.model.likelihood(z).log_prob(x))
        assert torch.equal(target.model.prior().alpha, source.model.prior().alpha)


# --- precision, layout, devices ---


@pytest.mark.parametrize(("levels", "x", "expected"), [(2, [0, 1], [-1, 1]), (5, [0, 1, 4], [-1, -0.5, 1])])
def test_pixels_are_scaled_and_marked_with_ones(levels: int, x: list[int], expected: list[float]) -> None:
    for dtype in (torch.float32, torch.float64):
        embedded = embed_pixels(torch.tensor(x, dtype=torch.uint8).view(1, 1, 1, -1), levels, dtype)
        assert embedded.dtype == dtype
        assert embedded[0, 0, 0].tolist() == expected
        assert embedded[0, 1, 0].tolist() == [1] * len(x)


def test_double_precision_end_to_end(spec: ImageSpec) -> None:
    vae, x = toy(spec).double(), random_images(spec, (3,)).to(torch.uint8)
    trace = poutine.trace(vae.model).get_trace(batch=3)
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].dtype == torch.float64
    assert trace.nodes["x"]["log_prob"].dtype == torch.float64
    assert vae.guide.posterior(x).mean.dtype == torch.float64
    loss = TraceMeanField_ELBO(max_plate_nesting=1)(vae.model, vae.guide)(x)
    assert loss.dtype == torch.float64
    single = toy(spec)
    single.load_state_dict(vae.state_dict())
    z = trace.nodes["z"]["value"]
    torch.testing.assert_close(
        single.model.likelihood(z.float()).log_prob(x).double(), vae.model.likelihood(z).log_prob(x),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def test_bf16_stays_inside_the_networks(spec: ImageSpec) -> None:
    x = random_images(spec, (4,))
    vae = toy(spec)
    z = torch.randn(4, LENGTH, DIMS)

    def outputs() -> list[Tensor]:
        q = vae.guide.posterior(x)
        return [q.mean, q.stddev, vae.model.likelihood(z).parameters_at(x)]

    exact, exact_log_p = outputs(), vae.model.likelihood(z).log_prob(x)
    set_bf16(vae, True)
    rounded, log_p = outputs(), vae.model.likelihood(z).log_prob(x)
    loss = TraceMeanField_ELBO(max_plate_nesting=1)(vae.model, vae.guide)(x)
    loss.backward()
    assert all(p.dtype == torch.float32 and p.grad.isfinite().all() for p in vae.parameters())
    for wide, narrow in zip(exact, rounded, strict=True):
        assert narrow.dtype == torch.float32
        assert not torch.equal(wide, narrow)  # autocast did run
        assert (wide - narrow).abs().max() < 0.03 * wide.abs().max()
    torch.testing.assert_close(log_p, exact_log_p, rtol=0.02, atol=0)
    drawn = vae.model.likelihood(z).sample()
    assert drawn.shape == x.shape
    set_bf16(vae, False)
    for wide, again in zip(exact, outputs(), strict=True):
        assert torch.equal(wide, again)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_bf16_reads_nothing_beyond_narrow_images(width: int) -> None:
    """On processors with AMX a strided convolution to one column would, and NaN lies about here."""
    convolution = RowConv(48, 64, (2, 3), stride=2, dilation=4).to(memory_format=torch.channels_last)
    x_bchw = torch.randn(5, 48, 5, width).to(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = convolution(x_bchw)
        for _ in range(20):
            dirt = [torch.full((2**k,), math.nan) for k in range(6, 20) for _ in range(8)]
            del dirt
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rounded = convolution(x_bchw)
            torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.05)


def test_channels_last_keeps_the_values() -> None:
    x = random_images(COLOUR, (3,))
    with torch.no_grad():
        vae = randomise(toy(COLOUR))
        z = torch.randn(3, LENGTH, DIMS, dtype=torch.float64)
        mean, log_p = vae.guide.posterior(x).mean, vae.model.likelihood(z).log_prob(x)
        torch.manual_seed(1)
        drawn = vae.model.likelihood(z).sample()
        vae.to(memory_format=torch.channels_last)
        torch.testing.assert_close(vae.guide.posterior(x).mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(vae.model.likelihood(z).log_prob(x), log_p, rtol=1e-10, atol=0)
        torch.manual_seed(1)
        assert torch.equal(vae.model.likelihood(z).sample(), drawn)


DECODERS = {"gated_pixelcnn": ConditionalGatedPixelCNN, "pixelsnail": ConditionalPixelSNAIL}


@pytest.mark.parametrize("name", IMAGE_PRESETS)
def test_networks_of_presets_have_their_shapes_on_the_meta_device(name: str) -> None:
    settings = config.load_preset(name)
    spec, batch = SPECS[settings.data.program], 64
    dims, length = settings.prior.options["dims"], settings.prior.options["length"] or spec.height
    with torch.device("meta"):
        starts = even_starts(spec.height, length)
        options = dict(settings.likelihood.options)
        assert (options.pop("use_latents"), options.pop("conditioning")) == (True, "causal")
        decoder = DECODERS[settings.likelihood.program](spec, starts, dims, **options)
        sizes = {key: value for key, value in settings.guide.options.items() if key != "rate_nats"}
        encoder = ImageEncoder(spec, regions(starts, 1, spec.height, spec.width), 2 * dims, **sizes)
        x = torch.zeros(batch, *spec.shape, dtype=torch.int64)
        z = torch.zeros(batch, length, dims)
    per_pixel = settings.likelihood.options["mixtures"] * (10 if spec.channels == 3 else 3)
    assert decoder(x, z).shape == (batch, per_pixel, spec.height, spec.width)
    assert encoder(x).shape == (batch, length, 2 * dims)
    assert all(tensor.is_meta for net in (decoder, encoder) for tensor in net.state_dict().values())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_programs_run_where_their_parameters_are(bf16: bool) -> None:
    vae, x = toy(COLOUR).cuda(), random_images(COLOUR, (4,)).cuda()
    drawn = poutine.trace(vae.model).get_trace(batch=3)
    assert all(drawn.nodes[site]["value"].is_cuda for site in ("z", "x"))
    assert vae.guide.posterior(x).mean.is_cuda
    set_bf16(vae, bf16)
    before = snapshot(vae)
    loss = TraceMeanField_ELBO(max_plate_nesting=1)(vae.model, vae.guide)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    loss(x).backward()
    optimiser.step()
    assert unmoved(vae, before) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_both_devices_score_alike() -> None:
    x, z = random_images(COLOUR, (4,)), torch.randn(4, LENGTH, DIMS, dtype=torch.float64)
    with torch.no_grad():
        vae = randomise(toy(COLOUR))
        here = vae.model.likelihood(z).log_prob(x)
        there = vae.cuda().model.likelihood(z.cuda()).log_prob(x.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=1e-8, atol=0)


# --- mistakes ---


@pytest.mark.parametrize(("length", "height"), [(0, 8), (-1, 8), (-8, 8), (3, 8), (12, 8)])
def test_steps_that_do_not_share_the_rows_evenly_are_refused(length: int, height: int) -> None:
    with pytest.raises(UserError, match=f"prior.length={length} does not divide the {height} positions"):
        even_starts(height, length)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, [0]),
        (2, [0, 4]),
        (4, [0, 2, 4, 6]),
        (8, list(range(8))),
        (None, list(range(8))),
        (16, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
    ],
)
def test_steps_share_the_rows_evenly(length: int | None, expected: list[int]) -> None:
    assert even_starts(8, length).tolist() == expected


def test_a_posterior_of_another_length_is_refused() -> None:
    prior = AR1Prior(SPEC, dims=1, length=3, alpha=0.5)
    guide = AntiCausalGuide(SPEC, AR1Prior(SPEC, dims=1, length=2, alpha=0.5), **NETWORK)
    with pytest.raises(ValueError, match="event shape"):
        kl_divergence(guide.posterior(random_images(SPEC, (1,))), prior())


# --- presets ---


@pytest.mark.parametrize("name", config.preset_names())
def test_presets_build_programs(name: str) -> None:
    settings = config.load_preset(name)
    spec = SPECS[settings.data.program]
    vae = build(settings, spec)
    options = settings.prior.options
    length = options["length"] or spec.positions
    committing = settings.guide.options if settings.guide.program == "contour" else options
    x = random_images(spec, (2,))
    prior = vae.model.prior()
    assert prior.event_shape == (length, options["dims"])
    q = vae.guide.posterior(x)
    rate = committing["rate_nats"]
    delta = torch.tensor(rate) if committing is not options else ar1_committed_rate(prior.alpha, length)
    if rate is not None:
        assert abs(delta.item() - rate) < 1e-5 * rate + 1e-9
    assert (kl_divergence(q, prior) >= delta * (1 - 1e-5)).all()


@pytest.mark.parametrize("name", config.preset_names())
def test_presets_take_a_step_with_their_own_training_settings(name: str) -> None:
    once = [("training.steps", 1), ("training.batch", 2), ("training.warmup", 0), ("training.validations", 0)]
    settings = config.load_preset(name, [*once, ("training.compile", False)])
    spec = SPECS[settings.data.program]
    split = Split(random_images(spec, (2,)).to(getattr(torch, spec.dtype)), None)
    vae = build(settings, spec)
    before = snapshot(vae)
    lines: list[dict[str, Any]] = []
    PyroTraining(settings, Splits(spec, split, split, split), vae, lines.append).run()
    assert [line["step"] for line in lines] == [1]
    assert lines[0]["skipped"] == 0
    assert unmoved(vae, before) == []


# --- the guide's start ---


def test_a_guide_starts_from_data_with_informative_means() -> None:
    vae, x = toy(), random_images(SPEC, (64,))
    before = vae.guide.posterior(x).mean
    vae.guide.start_from(x)
    q = vae.guide.posterior(x)
    # without it, hardly anything differs from image to image
    assert before.std(0).mean() < 0.05
    means_kd = q.mean.flatten(0, 1)
    torch.testing.assert_close(means_kd.mean(0), torch.zeros(DIMS), atol=1e-4, rtol=0)
    torch.testing.assert_close(means_kd.std(0, correction=0), torch.ones(DIMS), atol=1e-3, rtol=0)
    assert (q.mean.std(0) > 0.2).all()
    torch.testing.assert_close(q.stddev, vae.guide.scale.expand_as(q.stddev))


def test_a_guide_starts_finite_where_images_are_blank() -> None:
    guide, x = toy().guide, random_images(SPEC, (16,))
    x[..., 2:, :] = 0  # what the second of two steps sees is the same in every image
    guide.start_from(x)
    mean = guide.posterior(x).mean
    assert mean.isfinite().all()
    assert mean[:, 1].std(0).max() < 1e-3
    assert mean[:, 0].std(0).min() > 0.2


def test_training_starts_the_guide_once() -> None:
    """A fresh trainer does it; restored weights take its place."""
    settings = config.load_preset("digits", [("training.steps", 1)])
    spec = SPECS["digits"]
    split = Split(random_images(spec, (40,)).to(torch.uint8), None)
    data = Splits(spec, split, split, split)
    first = PyroTraining(settings, data, build(settings, spec), [].append)
    assert first.vae.guide.posterior(split.x).mean.std(0).mean() > 0.3
    state = first.state() | {"vae": build(settings, spec).state_dict()}
    second = PyroTraining(settings, data, build(settings, spec), [].append)
    second.restore(state, Path("run"))
    torch.testing.assert_close(second.vae.state_dict(), state["vae"], rtol=0, atol=0)
