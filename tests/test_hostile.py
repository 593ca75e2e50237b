"""No program that only looks like a δ-VAE is certified, and the sentence names what was seen."""

import json
import re
from pathlib import Path

import pyro
import pytest
import torch
from test_cli import call
from test_verify import SMALL

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.verify import Certificate, verify
from pyro_delta.models import DeltaVAE
from pyro_delta.vae import VAE

GREY, COLOUR, FINE = ImageSpec(1, 4, 5, 5), ImageSpec(3, 3, 4, 4), ImageSpec(1, 6, 10, 256)
FILE = Path(__file__).with_name("hostile.py")
CORRELATED = [("likelihood.program", f"{FILE}:Correlated")]
LEAK = "causality of the network"
EAR = [("likelihood.program", f"{FILE}:Eavesdropping")]
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
    "a scale that is annealed": ("guide", "Annealed", NAKED, False, "committed rate", "but a KL of"),
    "a whisper in training": ("guide", "Whispering", EAR, False, "sites", "the guide saw|in a batch of"),
    "a false claim": ("guide", "FalseClaim", NAKED, False, "committed rate", "but a KL of"),
}  # fmt: skip


def certified(kind: str, name: str, settings: list[tuple[str, object]], spec: ImageSpec) -> Certificate:
    torch.manual_seed(0)
    known = SMALL
    if settings is CORRELATED or name in ("Numbers", "Shifted", "WithGain"):  # which have options of their own
        known = [pair for pair in SMALL if not pair[0].startswith("likelihood")]
    program = [(f"{kind}.program", f"{FILE}:{name}")]
    return verify(build(load_preset("digits", [*known, *program, *settings]), spec), spec, batch=8)


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


def test_dropout_in_the_likelihood_is_no_leak() -> None:
    assert certified("likelihood", "Dropping", [], GREY).delta_nats == pytest.approx(4.0, rel=1e-6)


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
