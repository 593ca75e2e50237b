"""The certificate: shipped combinations pass, and programs broken on purpose are caught, each for its own reason."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from test_cli import call
from torch import Tensor, nn

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import ArraySpec, Split
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.diagnostics.trace import committed
from pyro_delta.diagnostics.verify import COUNT, Certificate, Finding, examples, verify
from pyro_delta.distributions import AutoregressiveImage, GaussianAR1, GaussianSequence
from pyro_delta.errors import UserError
from pyro_delta.guides import AntiCausalGuide, ContourGuide, GRUGuide, StructuredGuide
from pyro_delta.guides.sequences.sequence_guide import Backward
from pyro_delta.models import AR1Prior, DeltaVAE, GatedPixelCNNLikelihood, GRULikelihood, StandardNormalPrior
from pyro_delta.vae import VAE, copied, local_parameters

SPEC = ImageSpec(1, 4, 5, 5)
SMALL = [
    *((f"{part}.channels", [6, 4]) for part in ("likelihood", "guide")),
    *((f"{part}.row_blocks", [1, 1]) for part in ("likelihood", "guide")),
    *((f"{part}.pixel_blocks", 1) for part in ("likelihood", "guide")),
    ("likelihood.mixtures", 2),
    ("guide.features", 6),
    ("prior.dims", 2),
]


def made(*settings: tuple[str, object]) -> VAE:
    torch.manual_seed(0)
    return build(load_preset("digits", [*SMALL, *settings]), SPEC)


def finding(certificate: Certificate, name: str) -> tuple[bool | None, str]:
    ((passed, found),) = [(f.passed, f.found) for f in certificate.findings if f.name == name]
    return passed, found


def test_the_shipped_pair_is_certified() -> None:
    certificate = verify(made(("prior.rate_nats", 4.0)), SPEC)
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(4.0, rel=1e-6)
    assert all(f.passed for f in certificate.findings)
    assert "z_1 sees 4 of 4 rows" in finding(certificate, "causality of the guide")[1]


@pytest.mark.parametrize("prior", ["ar1", "lattice", "matern"])
@pytest.mark.parametrize(
    ("guide", "settings"), [("anti_causal", []), ("bidirectional", []), ("structured", [("guide.block", 3)])]
)
def test_shipped_guides_pass(
    monkeypatch: pytest.MonkeyPatch, prior: str, guide: str, settings: list[tuple[str, object]]
) -> None:
    if prior != "ar1":  # one long descent is enough
        monkeypatch.setattr("pyro_delta.diagnostics.verify.rate.DESCENT", 20)
    needed = {"matern": [("prior.rate_nats", 4.0)], "lattice": [("prior.rows", 2), ("prior.columns", 5)]}.get(prior, [])
    certificate = verify(made(("prior.program", prior), ("guide.program", guide), *settings, *needed), SPEC)
    assert certificate.failure is None
    seen = finding(certificate, "causality of the guide")[1]
    assert seen.startswith("not causal, as declared" if guide == "bidirectional" else "anti-causal")


class Tied(nn.Module):
    """All that a copy has to keep: what is shared, in names and in places, and what a module says of its own copies."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.gru = nn.Linear(2, 2), nn.Linear(2, 2), nn.GRU(2, 2)
        self.two.weight = self.one.weight
        self.places = {"one": [self.one, self.two.bias], 2: {"weight": self.one.weight}}
        self.seen: dict[str, list[int]] = {}
        self.listed = self.seen
        self.register_buffer("count", torch.zeros(1), persistent=False)
        self.unlike = Unlike()


class Unlike(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)
        self.copies = 0

    def __getstate__(self):
        return {**super().__getstate__(), "copies": self.copies + 1}


def test_a_copy_is_one_of_deepcopy() -> None:
    made = Tied()
    made.one.register_forward_hook(hook := lambda *_: None)
    there, known = copied(made), copy.deepcopy(made)
    assert there.two.weight is there.one.weight is there.places[2]["weight"] is not made.one.weight
    assert there.places["one"][0] is there.one
    assert there.places["one"][1] is there.two.bias
    assert there.listed is there.seen is not made.seen
    assert list(there.one._forward_hooks.values()) == [hook]
    assert there.unlike.copies == known.unlike.copies == 1
    assert there._non_persistent_buffers_set == {"count"}
    for mine, other, old in zip(there.modules(), known.modules(), made.modules(), strict=True):
        assert type(mine) is type(other)
        assert list(vars(mine)) == list(vars(other))
        assert not {id(value) for value in vars(mine).values() if isinstance(value, dict | list)} & {
            id(value) for value in vars(old).values()
        }
    assert there.state_dict().keys() == known.state_dict().keys()
    assert all(torch.equal(value, known.state_dict()[name]) for name, value in there.state_dict().items())
    assert there.gru(torch.ones(1, 2))[0].shape == (1, 2)


def test_verifying_changes_nothing() -> None:
    vae = made()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.get_rng_state()
    verify(vae, SPEC)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(vae.state_dict(), before, rtol=0, atol=0)
    assert vae.training
    assert torch.get_default_dtype() == torch.float32
    assert len(pyro.get_param_store()) == 0


# --- broken on purpose ---


class Around(nn.Module):
    """Something done before and after a network; a module, so that copies copy it."""

    def __init__(
        self, inner: nn.Module, before: Callable = lambda *x: x, after: Callable = lambda out, *x: out
    ) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, *x: Tensor) -> Tensor:
        return self.after(self.inner(*self.before(*x)), *x)


def leaking_mask(vae: VAE) -> None:
    """The within-row stream is not shifted: a pixel sees itself."""
    trunk = vae.model.likelihood.network.trunk
    trunk.stem_pixels = Around(trunk.stem_pixels, before=lambda x: (F.pad(x, (0, 1))[..., 1:],))


def leaking_far(vae: VAE) -> None:
    """A mean over the whole image."""
    trunk = vae.model.likelihood.network.trunk
    trunk.head = Around(trunk.head, after=lambda out, h: out + h.mean((2, 3), keepdim=True))


def batch_norm_decoder(vae: VAE) -> None:
    trunk = vae.model.likelihood.network.trunk
    trunk.head = nn.Sequential(trunk.head, nn.BatchNorm2d(trunk.head.out_channels))


def eager_conditioning(vae: VAE) -> None:
    """Every row sees all of z, which is not declared."""
    vae.model.likelihood.network.latents.visible.fill_(True)


def causal_guide(vae: VAE) -> None:
    """An encoder that is turned around: z_t sees the rows up to t."""
    vae.guide.encoder = Around(vae.guide.encoder, before=lambda x: (x.flip(2),), after=lambda out, x: out.flip(1))


class VarianceAsDeviation(GaussianAR1):
    """Noise scaled by 1 − α² rather than by its root."""

    def transform(self, eps: Tensor) -> Tensor:
        alpha = self.alpha.unsqueeze(-2)
        z = [eps[..., :1, :]]
        for t in range(1, self.length):
            z.append(alpha * z[-1] + (1 - alpha.square()) * eps[..., t : t + 1, :])
        return torch.cat(z, dim=-2)


class WrongPrior(PyroModule):
    def __init__(self, prior: PyroModule) -> None:
        super().__init__()
        self.register_buffer("alpha", prior.alpha)
        self.register_buffer("starts", prior.starts)

    def forward(self) -> VarianceAsDeviation:
        return VarianceAsDeviation(self.alpha, len(self.starts))


def variance_for_deviation(vae: VAE) -> None:
    vae.model.prior = WrongPrior(vae.model.prior)


def shared_across_the_batch(vae: VAE) -> None:
    vae.guide.encoder = Around(vae.guide.encoder, after=lambda out, x: out - out.mean(0, keepdim=True))


class Detached(dist.Normal):
    """The value of a sample is right, its gradient is not."""

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.loc + (self.scale * torch.randn(self._extended_shape(sample_shape)).to(self.loc)).detach()

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Detached":
        return Detached(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class DetachedGuide(AntiCausalGuide):
    def posterior(self, x: Tensor) -> dist.Independent:
        q = super().posterior(x)
        return Detached(q.mean, q.stddev).to_event(2)


def wrong_gradient(vae: VAE) -> None:
    vae.guide = DetachedGuide(SPEC, vae.model.prior, features=6, channels=(6,), row_blocks=(1,), pixel_blocks=1)


class MixedScales(StructuredGuide):
    """L₀·M in the place of M·L₀: every mean is anti-causal, the scales are not."""

    def posterior(self, x: Tensor) -> GaussianSequence:
        q = super().posterior(x)
        factor = self.factor.to(q.scale_tril)
        return GaussianSequence(q.mean, factor @ q.scale_tril @ torch.linalg.inv(factor))


def mixed_scales(vae: VAE) -> None:
    network = {"features": 6, "channels": (6, 4), "row_blocks": (1, 1), "pixel_blocks": 1}
    vae.guide = MixedScales(SPEC, vae.model.prior, block=4, **network)


def looks_up(vae: VAE) -> None:
    """Brightness of the whole image, by a comparison: it has no derivative."""
    vae.guide.encoder = Around(
        vae.guide.encoder,
        before=lambda x: (x,),
        after=lambda out, x: out + (x > 2).double().mean((2, 3))[:, :, None],
    )


def bright_rows_alone(vae: VAE) -> None:
    """A leak of the highest values alone, which random images never show."""
    vae.guide.encoder = Around(
        vae.guide.encoder, after=lambda out, x: out + (x[:, :, 0] == 4).all(-1).to(out)[..., None]
    )


def decoder_that_looks_up(vae: VAE) -> None:
    trunk = vae.model.likelihood.network.trunk
    trunk.head = Around(trunk.head, after=lambda out, h: out + (h > 0).to(h).mean((2, 3), keepdim=True))


class Uphill(GatedPixelCNNLikelihood):
    """What the network is given for z_t is made of later ones: the network itself is causal."""

    def forward(self, z: Tensor) -> AutoregressiveImage:
        return super().forward(z + z.flip(-2).cumsum(-2).flip(-2))


class OfTheBatch(GatedPixelCNNLikelihood):
    """In evaluation alone."""

    def forward(self, z: Tensor) -> AutoregressiveImage:
        return super().forward(z if self.training else z - z.mean(0, keepdim=True))


def replaced_likelihood(cls: type[GatedPixelCNNLikelihood]) -> Callable[[VAE], None]:
    def spoil(vae: VAE) -> None:
        network = {"channels": (6, 4), "row_blocks": (1, 1), "pixel_blocks": 1, "mixtures": 2}
        vae.model = DeltaVAE(vae.model.prior, cls(SPEC, vae.model.prior, **network))

    return spoil


class Density(PyroModule):
    def forward(self, z: Tensor) -> dist.Independent:
        return dist.Normal(z.mean((-2, -1))[..., None, None, None].expand(*z.shape[:-2], *SPEC.shape), 1.0).to_event(3)


def density(vae: VAE) -> None:
    vae.model = DeltaVAE(vae.model.prior, Density())


class SaysAnother(AntiCausalGuide):
    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(self.posterior(x).mean + 1, 1.0).to_event(2))


def another_site(vae: VAE) -> None:
    vae.guide = SaysAnother(SPEC, vae.model.prior, features=6, channels=(6,), row_blocks=(1,), pixel_blocks=1)


class TwoFaced(PyroModule):
    """Commits its rate in evaluation alone."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("starts", torch.arange(4))

    def forward(self) -> GaussianAR1:
        return GaussianAR1(torch.full((2,), 0.1 if self.training else 0.9), 4)


def two_faced(vae: VAE) -> None:
    vae.model = DeltaVAE(TwoFaced(), vae.model.likelihood)


class Free(PyroModule):
    """Learns its α, and nothing keeps it from 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("starts", torch.arange(4))
        self.correlation = nn.Parameter(torch.ones(2))

    def forward(self) -> GaussianAR1:
        return GaussianAR1(torch.tanh(self.correlation), 4)


def false_floor(vae: VAE) -> None:
    vae.model = DeltaVAE(Free(), vae.model.likelihood)
    vae.model.prior.floor_nats = 1.0


class InPlace(AntiCausalGuide):
    """Backward fails, which is a verdict on the program and no traceback."""

    def posterior(self, x: Tensor) -> dist.Independent:
        q = super().posterior(x)
        scale = q.stddev.sigmoid()
        return dist.Normal(q.mean, scale.mul_(scale)).to_event(2)


def in_place(vae: VAE) -> None:
    vae.guide = InPlace(SPEC, vae.model.prior, features=6, channels=(6,), row_blocks=(1,), pixel_blocks=1)


BROKEN: dict[str, tuple[Callable[[VAE], None], str, str]] = {
    "a leaking mask": (leaking_mask, "causality of the network", r"pixel \(0, 0\) sees pixel \(0, 0\)"),
    "a mean over the image": (leaking_far, "causality of the network", r"pixel \(0, 0\) sees pixel \(0, 0\)"),
    "a batch-norm decoder": (batch_norm_decoder, "causality of the network", "sees other images"),
    "scales that mix rows": (mixed_scales, "causality of the guide", "z_2 sees row 0, before its start at row 1"),
    "z too early": (eager_conditioning, "causality of the conditioning", "row 0 sees z_2, which starts at row 1"),
    "a causal guide": (causal_guide, "causality of the guide", "z_2 sees row 0, before its start at row 1"),
    "a guide that mixes images": (shared_across_the_batch, "causality of the guide", "sees other images"),
    "variance for deviation": (variance_for_deviation, "distribution of the prior", "disagrees with variance"),
    "a guide's look-up": (looks_up, "causality of the guide", "z_2 changes with rows before its start at row 1"),
    "bright rows": (bright_rows_alone, "causality of the guide", "z_2 changes with rows before its start at row 1"),
    "a decoder's look-up": (
        decoder_that_looks_up, "causality of the network", r"pixel \(0, 0\) changes with itself or later ones"),
    "z of later rows before the network": (
        replaced_likelihood(Uphill), "causality of the conditioning", "row 0 sees z_2, which starts at row 1"),
    "z of other images in evaluation": (
        replaced_likelihood(OfTheBatch), "causality of the conditioning", "latents of other images .evaluation mode"),
    "a density of integers": (density, "support", r"images are integers, but Independent\(Normal\) is a density"),
    "a site that is not the posterior": (another_site, "sites", "another distribution than its posterior"),
    "a prior with two faces": (two_faced, "sites", "in training mode is another"),
    "a false floor": (false_floor, "committed rate", r"claims floor_nats = 1, but commits \d"),
    "an operation in place": (in_place, "causality of the guide", "it cannot be checked: RuntimeError"),
    "a wrong gradient": (wrong_gradient, "gradient", "by finite differences"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "name", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_programs_are_caught(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[VAE], None], name: str, words: str
) -> None:
    monkeypatch.setattr("pyro_delta.diagnostics.verify.rate.DESCENT", 20)  # no claim of a guide is at stake
    vae = made()
    with local_parameters():
        spoil(vae)
    certificate = verify(vae, SPEC)
    passed, found = finding(certificate, name)
    assert passed is False
    assert re.search(words, found), found
    assert certificate.failure is not None
    assert name in certificate.failure


def test_a_prior_that_learns_is_certified_by_its_floor_alone() -> None:
    certificate = verify(made(("prior.program", "ar1_learned"), ("prior.floor_nats", 4.0)), SPEC)
    assert certificate.delta_nats == 4.0
    assert "above the floor of the prior" in finding(certificate, "committed rate")[1]
    vae = made()
    certificate = verify(VAE(DeltaVAE(Free(), vae.model.likelihood), vae.guide), SPEC)
    assert certificate.delta_nats is None
    assert finding(certificate, "committed rate")[0] is None


def test_the_floor_is_not_that_of_other_posteriors() -> None:
    """Blocks of steps come nearer to the prior than the floor, which is for independent steps."""
    vae = made(("prior.program", "ar1_learned"), ("prior.floor_nats", 4.0), ("guide.program", "structured"))
    images = torch.zeros(1, *SPEC.shape, dtype=torch.uint8)
    assert committed(vae, images).nats < 4
    assert committed(vae, images).throughout is None
    assert verify(vae, SPEC).delta_nats is None


def test_moments_that_are_missing_are_named() -> None:
    flat = dist.TransformedDistribution(
        dist.Normal(torch.zeros(4, 2), 1.0).to_event(2), [dist.transforms.ExpTransform()]
    )
    vae = made()
    prior = Heavy()
    prior.forward = lambda: flat  # type: ignore[method-assign]
    certificate = verify(VAE(DeltaVAE(prior, vae.model.likelihood), vae.guide), SPEC)
    found = finding(certificate, "distribution of the prior")
    assert found == (None, "not checked: TransformedDistribution states no mean")


def test_a_claim_against_a_prior_known_by_its_density_alone() -> None:
    """Its KL has a value and no gradient to descend."""

    class Claims(AntiCausalGuide):
        def committed_rate(self, prior: object) -> float:
            return 1e6

    vae = made()

    class Same(GaussianAR1):
        """Unknown to the KL's registry."""

    class Prior(WrongPrior):
        def forward(self) -> Same:
            return Same(self.alpha, len(self.starts))

    with local_parameters():
        prior = Prior(vae.model.prior)
        guide = Claims(SPEC, prior, features=6, channels=(6,), row_blocks=(1,), pixel_blocks=1)
        certificate = verify(VAE(DeltaVAE(prior, vae.model.likelihood), guide), SPEC)
    # No more is taken of a claim than probing the prior certifies.
    assert "the guide claims δ = 27 nats, but a KL of" in finding(certificate, "committed rate")[1]


class NoSquareRoot(ContourGuide):
    """μ = 2δ + 1 + ln σ² − σ² and more, as some public code has it; the floor asks for the root of it."""

    def posterior(self, x: Tensor) -> dist.Independent:
        mean, ratio = self.encode(x)
        variance = ratio.sigmoid() + 0.5
        floor = (2 * self.contour.delta + 1 + variance.log() - variance).clamp_min(0.0)
        return dist.Normal(floor + F.softplus(mean), variance.sqrt()).to_event(2)


def test_a_false_claim_is_refuted() -> None:
    honest = made(("prior.program", "standard_normal"), ("guide.program", "contour"))
    certificate = verify(honest, SPEC)
    assert finding(certificate, "committed rate")[0] is True
    assert certificate.delta_nats == 4.0
    with local_parameters():
        guide = NoSquareRoot(SPEC, honest.model.prior, features=6, channels=(6,), row_blocks=(1,), pixel_blocks=1)
        certificate = verify(VAE(honest.model, guide), SPEC)
    passed, found = finding(certificate, "committed rate")
    assert passed is False
    assert "the guide claims δ = 4 nats, but a KL of" in found
    assert certificate.delta_nats is None


class Narrow(ContourGuide):
    """On the lower half of the contour, where σ is small beside μ."""

    def encode(self, x: Tensor) -> list[Tensor]:
        mean, log_variance = super().encode(x)
        return [mean, log_variance - 6]


def test_the_largest_rate_of_the_contour_is_one_that_sampling_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 37.5 nats a coordinate neither draws nor densities nor gradients are right, in double precision either."""
    monkeypatch.setattr("pyro_delta.diagnostics.verify.rate.DESCENT", 5)
    model = made(("prior.program", "standard_normal")).model
    network = {"features": 6, "channels": (6,), "row_blocks": (1,), "pixel_blocks": 1}
    with pytest.raises(UserError, match="at most 80 nats"):
        ContourGuide(SPEC, model.prior, rate_nats=8 * 37.5, **network)
    certificate = verify(VAE(model, Narrow(SPEC, model.prior, rate_nats=80.0, **network)), SPEC, batch=4)
    assert certificate.failure is None
    assert certificate.delta_nats == 80


class Normalised(nn.Module):
    """Means of fixed deviation over the batch in training, over what it has seen in evaluation."""

    causality, guarantee = "none", "mean over the data"

    def __init__(self, claim: float) -> None:
        super().__init__()
        self.encode, self.log_scale, self.claim = nn.Linear(20, 8), nn.Linear(20, 8), claim
        self.register_buffer("seen", torch.tensor([0.0, 1.0]).repeat(8, 1))

    def committed_rate(self, prior: object) -> float:
        return self.claim

    def forward(self, x: Tensor) -> None:
        x = x.to(self.encode.weight).flatten(1)
        h = self.encode(x)
        if self.training:
            self.seen = torch.stack([h.mean(0), h.std(0, correction=0)], -1).detach()
        mean, scale = (h.mean(0), h.std(0, correction=0)) if self.training else self.seen.unbind(-1)
        loc = ((h - mean) / scale).unflatten(1, (4, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, self.log_scale(x).exp().unflatten(1, (4, 2))).to_event(2))


def test_batch_statistics_are_certified_in_the_mean_and_no_more() -> None:
    model = made(("prior.program", "standard_normal")).model
    certificate = verify(VAE(model, Normalised(4.0)), SPEC)
    assert certificate.failure is None
    assert (certificate.delta_nats, certificate.guarantee) == (4.0, "mean over the data")
    assert "in the mean over a batch, in training mode, and of no single datum" in certificate.findings[0].found
    false = verify(VAE(model, Normalised(4.1)), SPEC)
    assert "claims δ = 4.1 nats, but a KL of 4." in str(false.failure)
    assert false.delta_nats is None


class Heavy(PyroModule):
    """Not Gaussian: nothing is certified, and that is said."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("starts", torch.arange(4))

    def forward(self) -> dist.Independent:
        return dist.StudentT(torch.full((4, 2), 9.0)).to_event(2)


def test_other_families_are_not_certified() -> None:
    vae = made()
    certificate = verify(VAE(DeltaVAE(Heavy(), vae.model.likelihood), vae.guide), SPEC)
    assert finding(certificate, "committed rate") == (None, "no closed form of the KL, nothing is certified")
    assert certificate.delta_nats is None


# --- Data of other kinds ---

TOKENS = TokenSpec(12, 5)
SERIES = ArraySpec((12, 3))


class Series(nn.Module):
    """Teacher-forced: a GRU over what was before, and the latent step of the moment. `reads` says what it is given."""

    def __init__(self, spec: ArraySpec, prior: AR1Prior, reads: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gru, self.out, self.reads = nn.GRU(3 + 2, 6, batch_first=True), nn.Linear(6, 6), reads

    def forward(self, x: Tensor, z: Tensor) -> dist.Independent:
        seen = torch.cat((self.reads(x), z.repeat_interleave(3, 1)), -1)
        loc, scale = self.out(self.gru(seen)[0]).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + 0.1).to_event(2)


class SeriesVAE(nn.Module):
    """A stranger's: both programs are methods, sites and plates have names of their own."""

    def __init__(self, reads: Callable[[Tensor], Tensor], hears: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prior = AR1Prior(SERIES, dims=2, length=4, rate_nats=3.0)
        self.decoder, self.hears = Series(SERIES, self.prior, reads), hears
        self.encoder, self.out = nn.GRU(3, 6, batch_first=True), nn.Linear(6, 4)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("series", len(x)):
            z = pyro.sample("state", self.prior())
            pyro.sample("seen", self.decoder(x.float(), z), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, scale = self.out(self.hears(self.encoder(self.hears(x.float()))[0])[:, ::3]).chunk(2, -1)
        with pyro.plate("series", len(x)):
            pyro.sample("state", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(2))


class Pair(nn.Module):
    """A model and a guide with what is declared of them: starts of the prior, causality of the guide."""

    def __init__(self, vae: SeriesVAE, which: str) -> None:
        super().__init__()
        self.vae, self.which, self.prior, self.causality = vae, which, vae.prior, "anti_causal"

    def forward(self, x: Tensor) -> None:
        getattr(self.vae, self.which)(x)


def before(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 1, 0))[:, :-1]


def backwards(x: Tensor) -> Tensor:
    return x.flip(1)


def unchanged(x: Tensor) -> Tensor:
    return x


def series(reads: Callable[[Tensor], Tensor] = before, hears: Callable[[Tensor], Tensor] = backwards) -> VAE:
    vae = SeriesVAE(reads, hears)
    return VAE(Pair(vae, "model"), Pair(vae, "guide"))


def of_tokens(spoil: Callable[[VAE], None] = lambda vae: None, spec: TokenSpec = TOKENS, **options: object) -> VAE:
    prior = AR1Prior(spec, dims=2, length=4, rate_nats=3.0)
    vae = VAE(DeltaVAE(prior, GRULikelihood(spec, prior, hidden=6, **options)), GRUGuide(spec, prior, hidden=6))
    spoil(vae)
    return vae


class Tokens(nn.Module):
    """The logits of a network that is given something else."""

    def __init__(self, network: nn.Module, reads: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.reads, self.levels, self.shape = network, reads, network.levels, network.shape

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.network(self.reads(x), z)


def reads(change: Callable[[Tensor], Tensor]) -> Callable[[VAE], None]:
    def spoil(vae: VAE) -> None:
        vae.model.likelihood.network = Tokens(vae.model.likelihood.network, change)

    return spoil


def hears(before: Callable[..., Tensor], after: Callable[..., Tensor]) -> Callable[[VAE], None]:
    def spoil(vae: VAE) -> None:
        vae.guide.encoder = Around(vae.guide.encoder, before=lambda x: (before(x),), after=after)

    return spoil


class Forwards(Backward):
    """Reads from the first token on, and takes the state at the start of each step."""

    def features(self, x_bt: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        return self.trunk(self.reader(x_bt))[:, self.starts]


def causal_tokens(vae: VAE) -> None:
    own = vae.guide.encoder
    vae.guide.encoder = Forwards(own.reader, own.trunk, vae.model.prior.starts, 4, hidden=6)


def too_early(vae: VAE) -> None:
    """Every token sees all of z, which is not declared."""
    vae.model.likelihood.conditioning = "causal"


def last_word(out: Tensor, x: Tensor) -> Tensor:
    """A rare look-up: does a sequence begin with the last word of the vocabulary?"""
    return out + (x[:, 0] == 4).to(out)[:, None, None]


LENGTHS = {"lengths": torch.tensor([3, 12, 7])}


def test_data_with_lengths_are_certified_by_them() -> None:
    certificate = verify(of_tokens(), TOKENS, extras=LENGTHS)
    assert certificate.failure is None
    assert all(f.passed for f in certificate.findings), certificate
    assert certificate.delta_nats == pytest.approx(3.0, rel=1e-6)
    assert certificate.guarantee == "every datum, by its length"
    assert finding(certificate, "committed rate")[1].startswith(
        "δ of a datum is that of its own length, 3 nats for one of all steps, by formula"
    )


def beyond_a_contour(spoil: Callable[[Any], None] = lambda guide: None) -> VAE:
    prior = StandardNormalPrior(TOKENS, dims=2, length=4)
    guide = GRUGuide(TOKENS, prior, hidden=6, rate_nats=3.0)
    spoil(guide)
    return VAE(DeltaVAE(prior, GRULikelihood(TOKENS, prior, hidden=6)), guide)


def test_a_guide_that_commits_by_lengths_is_certified_by_them() -> None:
    certificate = verify(beyond_a_contour(), TOKENS, extras=LENGTHS)
    assert all(f.passed for f in certificate.findings), certificate
    assert (certificate.delta_nats, certificate.guarantee) == (3.0, "every datum, by its length")
    assert verify(beyond_a_contour(), TOKENS).guarantee == "every datum, at least"


def commits_a_tenth_less(guide: Any) -> None:
    guide.contour.delta *= 0.9


def says_more_of_short_ones(guide: Any) -> None:
    """As though a step were worth more to a short datum."""
    rate_of = guide.contour.committed_rate

    def committed_rate(prior: Any) -> Any:
        return rate_of(prior) if prior.lengths is None else 3.0 * (prior.lengths.double() / 4) ** 0.9

    guide.contour.committed_rate = committed_rate


def says_more_of_two_steps(guide: Any) -> None:
    """Of a length that none of the data has that are given."""
    rate_of = guide.contour.committed_rate

    def committed_rate(prior: Any) -> Any:
        return rate_of(prior) if prior.lengths is None else rate_of(prior) + 0.3 * (prior.lengths == 2)

    guide.contour.committed_rate = committed_rate


@pytest.mark.parametrize("spoil", [commits_a_tenth_less, says_more_of_short_ones, says_more_of_two_steps])
def test_a_guide_that_commits_less_than_it_says_of_a_length_is_refuted(spoil: Callable[[Any], None]) -> None:
    certificate = verify(beyond_a_contour(spoil), TOKENS, extras=LENGTHS)
    passed, found = finding(certificate, "committed rate")
    assert passed is False
    assert "the guide claims δ = 3 nats, but a KL of 2." in found


def test_the_shortest_and_the_longest_of_the_data_are_tried() -> None:
    lengths = torch.tensor([5, 5, 5, 9, 5, 2, 7])
    some = examples(Split(torch.zeros(7, 12), None, {"lengths": lengths}))
    assert sorted(some.extras["lengths"].tolist()) == [2, 5, 9]
    assert len(examples(Split(torch.zeros(7, 12)))) == COUNT


class Weaker(AR1Prior):
    """Commits less than its length says, where that is short."""

    def forward(self, lengths: Tensor | None = None) -> GaussianAR1:
        p = super().forward(lengths)
        return p if lengths is None else GaussianAR1(p.alpha * (p.lengths == p.length)[:, None], p.length, p.lengths)


class Untold(AR1Prior):
    """Says nothing of the lengths that it goes by."""

    def forward(self, lengths: Tensor | None = None) -> GaussianAR1:
        p = super().forward(lengths)
        return p if lengths is None else GaussianAR1(p.alpha * (p.lengths == p.length)[:, None], p.length)


@pytest.mark.parametrize("prior", [Weaker, Untold])
def test_what_differs_by_more_than_its_length_is_certified_by_its_prior_or_not_at_all(prior: type[AR1Prior]) -> None:
    vae = of_tokens()
    vae.model.prior = prior(TOKENS, dims=2, length=4, rate_nats=3.0)
    certificate = verify(vae, TOKENS, extras=LENGTHS)
    if prior is Weaker:
        assert certificate.delta_nats is None
    else:  # of the shorter ones, whose steps are independent
        assert (certificate.delta_nats, certificate.guarantee) == (0.0, "every datum, by its own prior")


def test_sequences_of_tokens_and_numbers_are_certified() -> None:
    score = ScoreSpec(4, 5, voices=3)
    for vae, spec, seen in (
        (of_tokens(), TOKENS, "token"),
        (of_tokens(spec=score), score, "quarter note"),
        (series(), SERIES, "position"),
    ):
        certificate = verify(vae, spec)
        assert certificate.failure is None
        assert all(f.passed for f in certificate.findings), certificate
        assert certificate.delta_nats == pytest.approx(3.0, rel=1e-6)
        assert "12 of 12 places" in finding(certificate, "causality of the network")[1]
        assert f"{seen}s see" in finding(certificate, "causality of the conditioning")[1]
    assert "z_1 sees 12 of 12 positions" in finding(certificate, "causality of the guide")[1]
    tokens = verify(of_tokens(), TOKENS)
    assert finding(tokens, "causality of the guide")[1] == (
        "anti-causal, by 3 replacements of what is not to be seen (there is no derivative)"
    )


OTHERS: dict[str, tuple[Callable[[], VAE], Any, str, str]] = {
    "tokens: a causal guide": (
        lambda: of_tokens(causal_tokens), TOKENS, "causality of the guide",
        "z_2 changes with tokens before its start at token 3"),
    "tokens: a rare look-up of the guide": (
        lambda: of_tokens(hears(unchanged, last_word)), TOKENS, "causality of the guide",
        "z_2 changes with tokens before its start at token 3"),
    "tokens: a guide that mixes sequences": (
        lambda: of_tokens(hears(unchanged, lambda out, x: out - out.mean(0))), TOKENS, "causality of the guide",
        "z of one sequence changes with other sequences"),
    "tokens: a decoder that sees the token itself": (
        lambda: of_tokens(reads(lambda x: x.roll(-1, 1))), TOKENS, "causality of the network",
        r"token \d+ changes with itself or later ones"),
    "tokens: a decoder that sees the end": (
        lambda: of_tokens(reads(lambda x: torch.cat((x[:, :-1] * 0 + x[:, -1:], x[:, -1:]), 1))), TOKENS,
        "causality of the network", r"token \d+ changes with itself or later ones"),
    "tokens: latents too early": (
        lambda: of_tokens(too_early, conditioning="full"), TOKENS, "causality of the conditioning",
        "token 0 sees z_2, which starts at token 3"),
    "series: a causal guide": (
        lambda: series(hears=unchanged), SERIES, "causality of the guide",
        "z_2 sees position 0, before its start at position 3"),
    "series: a decoder that sees itself": (
        lambda: series(reads=unchanged), SERIES, "causality of the network", "position 0 sees position 0 "),
    "series: a decoder that sees what comes": (
        lambda: series(reads=lambda x: before(x) + x.mean(1, keepdim=True)), SERIES, "causality of the network",
        "position 0 sees position 0 "),
    "series: a decoder that looks up what comes": (
        lambda: series(reads=lambda x: before(x) + (x[:, -1:] > 0).to(x)), SERIES, "causality of the network",
        "position 0 changes with itself or later ones"),
    "reals called integers": (
        series, ArraySpec((12, 3), levels=7), "support",
        r"data are integers, but Independent\(Normal\) is a density"),
    "integers called reals": (
        lambda: unordered(MLP()), ArraySpec((6,)), "support",
        r"data are real numbers, but Independent\(Binomial\) is of integers"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "spec", "name", "words"), OTHERS.values(), ids=OTHERS)
def test_broken_programs_of_other_data_are_caught(make: Callable[[], VAE], spec: Any, name: str, words: str) -> None:
    torch.manual_seed(0)
    certificate = verify(make(), spec)
    passed, found = finding(certificate, name)
    assert passed is False
    assert re.search(words, found), found
    assert certificate.failure is not None
    assert name in certificate.failure


class Forced(nn.Module):
    """A stranger's teacher-forced tokens: the distribution at the observed site is made of x; no order is declared."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.embed, self.gru, self.out = nn.Embedding(6, 6), nn.GRU(6 + 2, 6, batch_first=True), nn.Linear(6, 5)
        self.encoder, self.shift = nn.Linear(6, 4), shift

    def model(self, x: Tensor) -> None:
        with pyro.plate("sentences", len(x)):
            z = pyro.sample("topic", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            before = F.pad(x.long(), (self.shift, 0), value=5)[:, : x.shape[1]]
            h, _ = self.gru(torch.cat((self.embed(before), z[:, None].expand(-1, x.shape[1], -1)), -1))
            pyro.sample("words", dist.Categorical(logits=self.out(h)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc, scale = self.encoder(self.embed(x.long()).mean(1)).chunk(2, -1)
        with pyro.plate("sentences", len(x)):
            pyro.sample("topic", dist.Normal(loc, F.softplus(scale)).to_event(1))


def test_a_stranger_s_teacher_forcing() -> None:
    honest, leaking = Forced(1), Forced(0)
    certificate = verify(VAE(honest.model, honest.guide), TOKENS)
    assert certificate.failure is None
    assert certificate.delta_nats == 0
    assert finding(certificate, "causality of the network")[0] is True
    assert finding(certificate, "causality of the conditioning") == (
        None, "not checked: the prior says no starts, so every position may use all of z",
    )  # fmt: skip
    assert finding(certificate, "causality of the guide") == (
        None, "not checked over positions: the guide declares no causality",
    )  # fmt: skip
    failure = str(verify(VAE(leaking.model, leaking.guide), TOKENS).failure)
    assert re.search(r"token [01] changes with itself or later ones", failure)  # 0, but where it is drawn as it was


class MLP(nn.Module):
    """As in Pyro's tutorial, with batch statistics if asked for."""

    def __init__(self, *, normalised: bool = False) -> None:
        super().__init__()
        first = [nn.BatchNorm1d(6)] if normalised else []
        self.encoder, self.decoder = nn.Sequential(nn.Linear(6, 6), *first, nn.Linear(6, 4)), nn.Linear(2, 6)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("obs", dist.Binomial(8, logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, scale = self.encoder(x.float() / 8).chunk(2, -1)
        with pyro.plate("images", len(x)):
            pyro.sample("latent", dist.Normal(loc, F.softplus(scale)).to_event(1))


def unordered(vae: MLP) -> VAE:
    return VAE(vae.model, vae.guide)


def test_a_stranger_s_unordered_data() -> None:
    """No starts, no order, and nothing left behind in Pyro's store."""
    vae, spec = MLP(), ArraySpec((6,), levels=9, ordered=False)
    certificate = verify(unordered(vae), spec)
    assert certificate.failure is None
    assert certificate.delta_nats == 0
    assert finding(certificate, "committed rate")[1] == ("δ = 0 nats by type: the independence of Independent(Normal)")
    assert finding(certificate, "causality of the network")[1].startswith("strictly in the order of the data at 1 of 1")
    assert torch.get_default_dtype() == torch.float32
    assert len(pyro.get_param_store()) == 0
    mixing = MLP(normalised=True)
    certificate = verify(unordered(mixing), spec)
    assert certificate.delta_nats == 0
    assert finding(certificate, "sites")[1].endswith("but for batch statistics of the guide")


class Ladder(MLP):
    """Two sites, of which the second depends on the first in model and guide, and a choice."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            high = pyro.sample("high", dist.Gamma(1.0, torch.ones(1)).to_event(1))
            low = pyro.sample("low", dist.Normal(high, 1.0).to_event(1))
            kind = pyro.sample("kind", dist.Categorical(torch.ones(3)))
            logits = self.decoder(torch.cat((high, low), -1)) + kind[:, None]
            pyro.sample("obs", dist.Binomial(8, logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        a, b, c, d = F.softplus(self.encoder(x.float() / 8)).split(1, -1)
        with pyro.plate("images", len(x)):
            high = pyro.sample("high", dist.Gamma(a, b).to_event(1))
            pyro.sample("low", dist.Normal(c + high, d).to_event(1))
            pyro.sample("kind", dist.Categorical(logits=torch.cat((a, b, c), -1)))


def test_sites_of_other_families() -> None:
    """What has no density over real numbers, or depends on another site, is said to be beyond the check."""
    vae = Ladder()
    certificate = verify(unordered(vae), ArraySpec((6,), levels=9, ordered=False))
    assert certificate.failure is None
    assert finding(certificate, "committed rate") == (
        None, "not certified: the prior of a site depends on another site",
    )  # fmt: skip
    for name in ("distribution of the prior", "distribution of the posterior"):
        assert finding(certificate, name) == (None, "not checked: Categorical is of integers")


def test_functions_cannot_be_verified() -> None:
    vae = MLP()
    with pytest.raises(UserError, match="the model is a function, whose weights cannot be copied and drawn anew; give"):
        verify(VAE(lambda x: vae.model(x), vae.guide), TOKENS)


def test_programs_that_fail_on_such_data_are_refused_in_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"model and guide cannot be run on data of ArraySpec\(event=\(12,\).*IndexError: "
    ):
        verify(of_tokens(), ArraySpec((12,)))


# --- the command ---


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [part for key, value in SMALL for part in ("--set", f"{key}={json.dumps(value)}")]
    code, out, err = call("verify", *sets, "--json")
    assert code == 0, err
    numbers = json.loads(out)
    assert numbers["passed"]
    assert numbers["delta_nats"] == pytest.approx(4.0, rel=1e-6)
    assert {check["name"] for check in numbers["checks"]} >= {"committed rate", "causality of the guide", "gradient"}
    monkeypatch.chdir(tmp_path)
    Path("early.py").write_text(
        "from pyro_delta.guides import BidirectionalGuide\n"
        "class Early(BidirectionalGuide):\n    '''Claims what it is not.'''\n    causality = 'none'\n"
        "    def __init__(self, spec, prior, **network):\n        super().__init__(spec, prior, **network)\n"
        "        self.causality = 'anti_causal'\n"
    )
    code, out, err = call("verify", *sets, "--guide", "early.py:Early")
    assert code == 1
    assert err.count("\n") == 1
    assert "causality of the guide: z_2 sees row 0" in err
    assert "FAIL  causality of the guide" in out


def test_a_certificate_shows_itself() -> None:
    findings = (Finding("committed rate", True, "δ = 2"), Finding("sites", None, "it <cannot> be said"))
    certificate = Certificate(findings, None)
    assert str(certificate).splitlines()[1] == "–     sites                           it <cannot> be said"
    html = certificate._repr_html_()
    assert html.startswith("<table><caption>nothing is certified</caption><tr><td>ok</td><td>committed rate</td>")
    assert "it &lt;cannot&gt; be said" in html
    assert html.endswith("<p>nothing is certified: sites: it &lt;cannot&gt; be said.</p>")
    assert "δ = 2.5 nats by formula" in Certificate(findings[:1], 2.5, "by formula")._repr_html_()
