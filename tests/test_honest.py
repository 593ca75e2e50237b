"""Honest programs with unusual networks: what is certified of them, and what is said of the rest."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from test_cli import call
from test_hostile import GREY, NAKED
from test_verify import SMALL, finding

import pyro_delta
from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.diagnostics.verify import Certificate, verify

FILE = Path(__file__).with_name("honest.py")


def settings(kind: str, name: str) -> list[tuple[str, object]]:
    return [*(pair for pair in SMALL if not pair[0].startswith(kind)), (f"{kind}.program", f"{FILE}:{name}")]


def certified(kind: str, name: str, *more: tuple[str, object], batch: int = 8) -> Certificate:
    torch.manual_seed(0)
    return verify(build(load_preset("digits", [*settings(kind, name), *more]), GREY), GREY, batch=batch)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_weights_that_are_computed_at_each_call() -> None:
    certificate = certified("guide", "WeightNormed")
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(4.0, rel=1e-6)
    assert finding(certificate, "sites")[0] is True
    few = {"training.steps": 3, "training.batch": 8, **dict(settings("guide", "WeightNormed"))}
    for decay in (0.0, 0.9):
        run = pyro_delta.train(few | {"training.ema": decay}, preset="digits")
        assert run.vae.guide.body[0].weight_g.requires_grad
        assert pyro_delta.evaluate(run, images=8)["rate_nats_mean"] > 0


def test_batch_statistics_of_the_guide_leave_the_floor_of_its_family() -> None:
    """They are no threat to δ, but to what is said of one datum alone, which the check of the guide says."""
    certificate = certified("guide", "BatchNormed")
    assert certificate.failure is None
    assert certificate.delta_nats == pytest.approx(4.0, rel=1e-6)
    passed, found = finding(certificate, "causality of the guide")
    assert passed is None
    assert "but for batch statistics: in training mode z of one image depends on the images of its batch" in found
    assert finding(certificate, "sites")[1].endswith("but for batch statistics of the guide")


BATCHES = {
    "a class of its own": ("guide", "BatchNormedOfItsOwn", 8, "causality of the guide", "sees other images .training"),
    "a floor without statistics": ("guide", "NarrowInItsBatch", 8, "committed rate", "but a KL of"),
    "batches of one": ("guide", "BatchNormed", 1, "sites", "a batch of one; .* give training.batch=2 or more"),
    "a likelihood": ("likelihood", "BatchNormedLikelihood", 8, "causality of the network", "take torch.nn.LayerNorm"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "batch", "check", "words"), BATCHES.values(), ids=BATCHES)
def test_batch_statistics_that_are_refused(kind: str, name: str, batch: int, check: str, words: str) -> None:
    more = NAKED if name == "NarrowInItsBatch" else []
    certificate = certified(kind, name, *more, batch=batch)
    assert certificate.delta_nats is None
    passed, found = finding(certificate, check)
    assert passed is False, certificate
    assert re.search(words, found), found
    assert "Expected more than 1 value" not in str(certificate.failure)


def test_training_in_batches_of_one(tmp_path: Path) -> None:
    one = {"training.steps": 3, "training.batch": 1, **dict(settings("guide", "BatchNormed"))}
    sets = [part for key, value in one.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    code, _, err = call("train", "--preset", "digits", *sets, "--out", str(tmp_path / "run"))
    assert code == 2
    assert "a batch of one; if it is the guide's, give training.batch=2 or more" in err


CODES: list[tuple[str, object]] = [
    ("prior.program", f"{FILE}:Codes"),
    ("likelihood.program", f"{FILE}:CodeLikelihood"),
]


def of_codes(guide: str) -> Certificate:
    torch.manual_seed(0)
    return verify(build(load_preset("digits", [*CODES, ("guide.program", f"{FILE}:{guide}")]), GREY), GREY, batch=8)


def test_a_code_that_is_not_the_one_stated() -> None:
    certificate = of_codes("AnotherCodeGuide")
    assert certificate.delta_nats is None
    assert finding(certificate, "sites") == (
        False, "what the guide draws at 'z' is not the point that its Delta states (evaluation mode)",
    )  # fmt: skip


@pytest.mark.parametrize(("guide", "nats"), [("CodeGuide", 3 * math.log(5)), ("StochasticCodeGuide", None)])
def test_codes_are_certified_where_they_are_points(guide: str, nats: float | None) -> None:
    certificate = of_codes(guide)
    assert certificate.failure is None
    assert certificate.delta_nats == (None if nats is None else pytest.approx(nats))
    if nats is None:
        assert "committed rate: not certified; the least KL found is" in str(certificate.lack)
    else:
        assert certificate.guarantee == "every datum, exactly"
