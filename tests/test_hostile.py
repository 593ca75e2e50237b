"""No program that only looks like a δ-VAE is certified, and the sentence names what was seen."""

import contextlib
import json
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from hostile import Atom, NoAtom
from test_cli import call
from test_verify import SMALL as TWO_LEVELS
from torch import nn

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import from_tensors
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.verify import Certificate, verify
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.models import DeltaVAE
from pyro_delta.vae import VAE

GREY, COLOUR, FINE = ImageSpec(1, 4, 5, 5), ImageSpec(3, 3, 4, 4), ImageSpec(1, 6, 10, 256)
SMALL = [(key, value[:1] if isinstance(value, list) else value) for key, value in TWO_LEVELS]  # one level: half as long
FILE = Path(__file__).with_name("hostile.py")


def of(kind: str, name: str) -> list[tuple[str, object]]:
    return [(f"{kind}.program", f"{FILE}:{name}")]


CORRELATED = of("likelihood", "Correlated")
LEAK = "causality of the network"
EAR = of("likelihood", "Eavesdropping")
NAKED = [("prior.program", "standard_normal")]

HOSTILE: dict[str, tuple[str, str, list[tuple[str, object]], bool | None, str, str]] = {
    "every pixel sees itself": ("likelihood", "Itself", [], False, LEAK, r"pixel \(0, 0\)"),
    "a pixel sees itself": ("likelihood", "OnePixel", [], False, LEAK, r"pixel \(1, 3\) (sees|changes)"),
    "a channel of the next pixel": ("likelihood", "OneChannel", [], False, LEAK, "changes with"),
    "a leak in batches of eight": ("likelihood", "InOneBatch", [], False, "sites", "in a batch of 8"),
    "a leak in training": ("likelihood", "InTraining", [], False, LEAK, "training mode"),
    "a leak of blank data": ("likelihood", "Blanks", [], False, LEAK, r"changes with"),
    "a hundred nats": ("likelihood", "WithBonus", [], False, "normalisation", "the sum of its terms"),
    "half a nat a pixel": ("likelihood", "WithBonusInside", [], False, "normalisation", "sum to 1.6487"),
    "a hundred nats, of the whole": ("likelihood", "Whole", [], None, "normalisation", "give it terms"),
    "numbers too probable": ("likelihood", "Numbers", [], False, "normalisation", "Generous sum to 1.105"),
    "an expand that loses α": ("prior", "Forgetful", [], False, "sites", "another than that of its prior alone"),
    "another density in single": ("prior", "Single", [], False, "sites", "in single precision"),
    "a buffer that shrinks": ("prior", "Shrinking", [], False, "sites", "in training mode is another|calls"),
    "a counter": ("prior", "Counting", [], False, "sites", "in training mode is another|calls"),
    "α of the likelihood": ("prior", "Lent", CORRELATED, None, "committed rate", "the prior learns"),
    "α without its gradient": ("prior", "CutOff", CORRELATED, None, "committed rate", "the prior learns"),
    "a false floor": ("prior", "FalseFloor", [], False, "committed rate", "claims floor_nats = 2, but commits"),
    "a guide that is scaled": ("guide", "Scaled", [], False, "sites", "'z' counts 0.01 times"),
    "a guide that is masked": ("guide", "Masked", [], False, "sites", "masks the site 'z'"),
    "scaled in training": ("guide", "ScaledInTraining", [], False, "sites", "'z' counts 0.5 times .*training"),
    "a guide with two faces": ("guide", "TwoFaced", [], False, "sites", "GaussianSequence in training mode"),
    "draws from another": ("guide", "DrawsAnother", [], False, "sites", "another distribution than its posterior"),
    "noise in training": ("guide", "Noisy", [], None, "sites", "in training mode is another"),
    "a pixel above": ("guide", "OnePixelAbove", [], False, "causality of the guide", "changes with rows before"),
    "above in batches of eight": ("guide", "InOneBatchAbove", [], False, "sites", "in a batch of 8"),
    "a leak behind a mask": ("likelihood", "BehindMask", [], False, LEAK, r"pixel \(0, 0\)"),
    "a bonus in training": ("likelihood", "BonusInTraining", [], False, "normalisation", "the sum of its terms"),
    "a leak from the fourth datum on": ("likelihood", "Late", [], False, "sites", "in a batch of 8"),
    "a gain that grows": ("likelihood", "WithGain", [], False, "normalisation", "not 1"),
    "a guide that observes": ("guide", "Observing", [], False, "sites", "the guide observes 'z'"),
    "one number for all steps": ("guide", "SharedNoise", [], None, "committed rate", "no closed form|of which"),
    "scaled in batches of eight": ("guide", "ScaledInOneBatch", [], False, "sites", "a batch of 8"),
    "a leak in steps": ("likelihood", "InSteps", [], False, LEAK, "training mode"),
    "a leak behind a million": ("likelihood", "BehindMillion", [], False, LEAK, r"pixel \(\d, \d\) (sees|changes)"),
    "two nats for a row": ("likelihood", "WithRowBonus", [], False, "normalisation", r"pixel \(3, \d+\).* 7.389"),
    "logits that were moved": ("likelihood", "Shifted", [], False, "normalisation", "sum to 2.718"),
    "a buffer that shrinks in steps": ("prior", "ShrinkingInSteps", [], False, "sites", "with the calls"),
    "a false floor of many weights": ("prior", "WideFloor", [], False, "committed rate", "claims floor_nats"),
    "no noise": ("guide", "Noiseless", [], False, "sites", "variance off from 1 by 1 "),
    "half the noise": ("guide", "Weak", [], False, "sites", "variances? off from 1"),
    "noise of a coin": ("guide", "Coin", [], False, "sites", "kurtosis off from 3 by 2"),
    "the same noise": ("guide", "Frozen", [], False, "sites", "same at every call"),
    "no noise of a Laplace": ("guide", "SilentLaplace", [], False, "sites", "the same at every call"),
    "noise, but for some data": ("guide", "NoiselessForSome", [], False, "sites", "the noise of 128 has .* off from"),
    "noise whose signs are pixels": ("guide", "Signs", [], False, "sites", "the noise of one image has"),
    "no noise in its batch": ("guide", "NoiselessInItsBatch", [], False, "sites", "variance off from 1 by 1 "),
    "one number in its batch": ("guide", "CorrelatedInItsBatch", [], False, "sites", "the noise of 128 has"),
    "noise of the seed alone": ("guide", "FrozenBySeed", [], False, "sites", "the same at every call"),
    "noise that fades": ("guide", "Fading", [], False, "sites", "changes with the calls"),
    "a rate that fades": ("guide", "Cheaper", [], False, "sites", "'z' counts 0.99 times|changes with the calls"),
    "rows above, ever more": ("guide", "LookingAhead", [], False, "sites", "changes with the calls"),
    "itself, ever more": ("likelihood", "Opening", [], False, "sites", "changes with the calls|than its likelihood"),
    "wider in its batch": ("guide", "WiderInItsBatch", NAKED, False, "sites", "changes with the calls"),
    "a gate before α": ("prior", "Gated", [], None, "committed rate", "the prior learns"),
    "a gain that is nothing yet": ("likelihood", "SlowGain", [], None, "normalisation", "which may grow"),
    "noise that is smeared": ("guide", "Smeared", [], False, "sites", "correlations off from those of chance"),
    "a scale that is annealed": ("guide", "Annealed", NAKED, False, "committed rate", "is another in training"),
    "a scale of training": ("guide", "WiderInTraining", NAKED, False, "committed rate", "is another in training"),
    "a scale that the prior moves": ("prior", "Moving", of("guide", "Moved"), False, "committed rate", "after 8 calls"),
    "a whisper in training": ("guide", "Whispering", EAR, False, "sites", "the guide saw|in a batch of"),
    "terms that see the last pixel": ("likelihood", "WithDecoy", [], False, LEAK, r"sees pixel \(3, 4\)"),
    "a hundred nats by a back door": ("likelihood", "WithBackDoor", [], False, "normalisation", "sum of its terms"),
    "a hundred nats in dropout": ("likelihood", "BonusInDropout", [], False, "normalisation", "sum of its terms"),
    "a floor of the guide's": ("prior", "FloorOfGuide", of("guide", "Lending"), False, "committed rate", "floor_nats"),
    "a prior of statistics": ("prior", "OfStatistics", of("guide", "Counted"), False, "sites", "with batch statistics"),
    "a claim on others' weights": ("guide", "Borrowing", [*CORRELATED, *NAKED], False, "committed rate", "but a KL of"),
    "a false claim": ("guide", "FalseClaim", NAKED, False, "committed rate", "but a KL of"),
}  # fmt: skip

OWN_OPTIONS = {"Numbers", "Shifted", "WithGain", "SlowGain", "Correlated", "BonusInDropout", "Counted"}


def certified(kind: str, name: str, settings: list[tuple[str, object]], spec: ImageSpec) -> Certificate:
    torch.manual_seed(0)
    programs = [*of(kind, name), *settings]
    own = {part.partition(".")[0] for part, program in programs if str(program).rpartition(":")[2] in OWN_OPTIONS}
    known = [pair for pair in SMALL if pair[0].partition(".")[0] not in own]
    return verify(build(load_preset("digits", [*known, *programs]), spec), spec, batch=8)


@pytest.mark.parametrize(("kind", "name", "settings", "passed", "check", "words"), HOSTILE.values(), ids=HOSTILE)
def test_not_certified(
    kind: str, name: str, settings: list[tuple[str, object]], passed: bool | None, check: str, words: str
) -> None:
    spec = {"OneChannel": COLOUR, "WithRowBonus": FINE}.get(name, GREY)
    certificate = certified(kind, name, settings, spec)
    assert certificate.delta_nats is None
    ((found_passed, found),) = [(f.passed, f.found) for f in certificate.findings if f.name == check]
    assert found_passed is passed, certificate
    assert re.search(words, found), found
    assert certificate.failure or certificate.lack


@pytest.mark.parametrize("name", ["Dropping", "Rounding"])
def test_noise_and_rounding_in_the_likelihood_are_no_leak(name: str) -> None:
    assert certified("likelihood", name, [], GREY).delta_nats == pytest.approx(4.0, rel=1e-6)


def test_a_site_that_says_it_only_writes_something_down() -> None:
    with pytest.raises(UserError, match="the guide samples 'back', which the model does not"):
        certified("guide", "Deterministic", [], GREY)


@pytest.mark.parametrize(("cls", "nats"), [(Atom, None), (NoAtom, 2.847385)])
def test_an_atom_that_no_integral_sees(cls: type[dist.Normal], nats: float | None) -> None:
    torch.manual_seed(0)
    spec = from_tensors(torch.randn(60, 6)).spec
    prior, guide = ShortPrior(), ShortGuide()
    certificate = verify(VAE(DeltaVAE(prior, Independently(cls)), guide), spec, batch=8)
    assert certificate.delta_nats == (None if nats is None else pytest.approx(nats))
    if nats is None:
        assert "the density of Atom jumps at 0" in str(certificate.lack)


class ShortPrior(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.full((2,), 0.9))

    def forward(self) -> GaussianAR1:
        return GaussianAR1(self.alpha, 4)


class ShortGuide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16)

    def forward(self, x):
        mean, ratio = self.body(x).unflatten(-1, (2, 4, 2)).unbind(-3)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(mean, nn.functional.softplus(ratio) + 0.1).to_event(2))


class Independently(nn.Module):
    def __init__(self, cls: type[dist.Normal]) -> None:
        super().__init__()
        self.body, self.cls = nn.Linear(8, 6), cls

    def forward(self, z):
        return self.cls(self.body(z.flatten(-2)), torch.ones(())).to_event(1)


def test_a_scale_that_is_not_fixed_commits_no_more_than_any() -> None:
    certificate = certified("guide", "FixedButForOnePixel", [], GREY)
    assert certificate.delta_nats in (None, pytest.approx(4.0, rel=1e-6))


def test_data_that_are_not_those_that_are_given() -> None:
    class Blind(DeltaVAE):
        def forward(self, x=None, *, batch=1):
            return super().forward(None if x is None else torch.zeros_like(x), batch=batch)

    torch.manual_seed(0)
    vae = build(load_preset("digits", SMALL), GREY)
    certificate = verify(VAE(Blind(vae.model.prior, vae.model.likelihood), vae.guide), GREY, batch=8)
    assert certificate.delta_nats is None
    assert "observes other numbers than the data" in str(certificate.failure)


@pytest.mark.parametrize("site", ["z", "x"])
@pytest.mark.parametrize("handler", [lambda: pyro.poutine.scale(scale=0.1), lambda: pyro.poutine.mask(mask=False)])
def test_a_model_whose_sites_do_not_count(site: str, handler) -> None:
    class Light(DeltaVAE):
        def forward(self, x=None, *, batch=1):
            with pyro.plate("data", batch if x is None else len(x)):
                with handler() if site == "z" else pyro.poutine.block(hide=[]):
                    z = pyro.sample("z", self.prior())
                with handler() if site == "x" else pyro.poutine.block(hide=[]):
                    return pyro.sample("x", self.likelihood(z), obs=x)

    torch.manual_seed(0)
    vae = build(load_preset("digits", SMALL), GREY)
    certificate = verify(VAE(Light(vae.model.prior, vae.model.likelihood), vae.guide), GREY, batch=8)
    assert certificate.delta_nats is None
    assert f"{site!r}" in str(certificate.failure or certificate.lack)


def test_exit_codes_and_json() -> None:
    sets = [part for key, value in SMALL for part in ("--set", f"{key}={json.dumps(value)}")]
    for program, expected, words in (("Scaled", 1, "counts 0.01 times"), ("Noisy", 3, "nothing is certified: sites")):
        code, out, err = call("verify", *sets, "--guide", f"{FILE}:{program}", "--json")
        assert code == expected
        assert words in err
        numbers = json.loads(out)
        assert numbers["delta_nats"] is None
        assert numbers["certified_by"] is None
        assert {check["passed"] for check in numbers["checks"]} >= {True, False if code == 1 else None}


class GivesBack(dist.MaskedDistribution):
    """A masked density that is none."""

    def log_prob(self, value):
        return 50.0 + 0 * value

    def expand(self, batch_shape, _instance=None):
        return GivesBack(self.base_dist.expand(batch_shape), False)


def test_nats_that_only_look_like_a_note() -> None:
    class Noting(DeltaVAE):
        def forward(self, x=None, *, batch=1):
            count = batch if x is None else len(x)
            with pyro.plate("data", count):
                note = GivesBack(dist.Normal(torch.zeros(count), 1.0), False)
                pyro.sample("note", note, obs=torch.zeros(count), infer={"_deterministic": True})
                z = pyro.sample("z", self.prior())
                return pyro.sample("x", self.likelihood(z), obs=x)

    torch.manual_seed(0)
    vae = build(load_preset("digits", SMALL), GREY)
    with contextlib.suppress(UserError):
        certificate = verify(VAE(Noting(vae.model.prior, vae.model.likelihood), vae.guide), GREY, batch=8)
        assert certificate.delta_nats is None


def test_a_mask_that_nothing_beside_the_data_explains() -> None:
    class HalfSeen(DeltaVAE):
        def forward(self, x=None, *, batch=1, label=None):
            with pyro.plate("data", batch if x is None else len(x)):
                z = pyro.sample("z", self.prior())
                return pyro.sample("x", self.likelihood(z).mask(torch.arange(6) < 1).to_event(1), obs=x)

    class Numbers(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(8, 6)

        def forward(self, z):
            return dist.Normal(self.body(z.flatten(-2)), torch.ones(()))

    class Guide(ShortGuide):
        def forward(self, x, label=None):
            return super().forward(x)

    torch.manual_seed(0)
    vae = VAE(HalfSeen(ShortPrior(), Numbers()), Guide())
    spec = from_tensors(torch.randn(60, 6)).spec
    certificate = verify(vae, spec, extras={"label": torch.zeros(3)}, batch=8)
    assert certificate.delta_nats is None
    assert "masks the site 'x' alike for all data" in str(certificate.failure or certificate.lack)
