"""Honest programs with unusual networks: what is certified of them, and what is said of the rest."""

from pathlib import Path

import pytest
import torch
from test_hostile import GREY
from test_verify import SMALL, finding

import pyro_delta
from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.diagnostics.verify import Certificate, verify

FILE = Path(__file__).with_name("honest.py")


def settings(kind: str, name: str) -> list[tuple[str, object]]:
    return [*(pair for pair in SMALL if not pair[0].startswith(kind)), (f"{kind}.program", f"{FILE}:{name}")]


def certified(kind: str, name: str, *, batch: int = 8) -> Certificate:
    torch.manual_seed(0)
    return verify(build(load_preset("digits", settings(kind, name)), GREY), GREY, batch=batch)


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
