"""Activations that are computed again: the same gradients to the bit, dropout and noise included, from less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pyro_delta.api.train import prepare
from pyro_delta.config import load_preset
from pyro_delta.data import Split, Splits
from pyro_delta.data.images import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.nn.images.causal import RasterBlock
from pyro_delta.nn.recompute import Block, applied, set_recompute
from pyro_delta.twin.numpyro_training import NumPyroTraining

SPEC = ImageSpec(3, 8, 8, 256)
DEEP: dict[str, dict[str, Any]] = {
    "gated_pixelcnn": {"channels": [16, 16], "row_blocks": [3, 3], "pixel_blocks": 4, "mixtures": 1},
    "pixelsnail": {"channels": 16, "blocks": 2, "layers": 3, "heads": 2, "dropout": 0.3, "mixtures": 1},
}
GUIDES = ("anti_causal", "bidirectional")


def training(likelihood: str, guide: str, recompute: bool) -> Any:
    settings = {
        "prior.dims": 2, "likelihood.program": likelihood, "guide.program": guide, "guide.channels": [6],
        "guide.row_blocks": [2], "guide.pixel_blocks": 2, "guide.features": 8, "training.batch": 4, "training.steps": 9,
        "training.bf16": False, "training.recompute": recompute,
        **{f"likelihood.{key}": value for key, value in DEEP[likelihood].items()},
    }  # fmt: skip
    split = Split(torch.randint(256, (8, *SPEC.shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8))
    return prepare(load_preset("photos", list(settings.items())), "cpu", data=Splits(SPEC, split, split, split))


def gradients(made: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Of one loss, and how many numbers it kept for them, parameters left out."""
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in made.vae.parameters()}

    def pack(values: torch.Tensor) -> torch.Tensor:
        if (place := values.untyped_storage().data_ptr()) not in weights:
            kept[place] = values.untyped_storage().nbytes()
        return values

    torch.manual_seed(1)
    with made.running(), saved_tensors_hooks(pack, lambda values: values):
        loss = made.loss(made.batches.batch(0))
    size = sum(kept.values())
    loss.backward()
    after = torch.rand(3)
    return {name: weight.grad for name, weight in made.vae.named_parameters()} | {"loss": loss, "noise": after}, size


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("likelihood", DEEP)
def test_the_same_gradients_to_the_bit_from_less(likelihood: str, guide: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        kept, again = (gradients(training(likelihood, guide, recompute)) for recompute in (False, True))
    finally:
        torch.set_default_dtype(torch.float32)
    assert kept[0]["loss"].dtype == torch.float64
    for name, value in kept[0].items():
        assert torch.equal(value, again[0][name]), name
    assert again[1] < 0.7 * kept[1], (again[1], kept[1])


@pytest.mark.parametrize("likelihood", DEEP)
def test_steps_are_the_same(likelihood: str) -> None:
    """Optimiser, averages and the noise of later steps, too."""
    after = []
    for recompute in (False, True):
        made = training(likelihood, "anti_causal", recompute)
        torch.manual_seed(2)
        with made.running():
            for step in range(3):
                made.train_step(made.batches.batch(step))
        after.append(made.vae.state_dict())
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


def test_every_block_of_the_networks_is_one() -> None:
    """What is deep is recomputed: decoder and guide, and nothing where gradients are off."""
    made = training("pixelsnail", "anti_causal", True)
    blocks = [name for name, block in made.vae.named_modules() if isinstance(block, Block)]
    assert {name.split(".")[0] for name in blocks} == {"model", "guide"}
    calls = []
    block = next(block for block in made.vae.modules() if isinstance(block, RasterBlock))
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.zeros(1, 16, 8, 8)
    with torch.no_grad():
        applied(block, x)
    assert len(calls) == 1
    applied(block, x).sum().backward()
    assert len(calls) == 3
    assert set_recompute(torch.nn.Linear(1, 1), True) == 0


def test_numpyro_refuses_it() -> None:
    with pytest.raises(UserError, match=r"training\.recompute goes with --backend pyro"):
        NumPyroTraining(load_preset("photos", [("training.recompute", True)]), Any, Any, Any, print)
