"""Draws at a temperature: of each number, given those before it, the distribution that the definition says."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from test_autoregressive_image import CASES, noise
from torch import Tensor, nn

from pyro_delta.diagnostics.drawing import draw
from pyro_delta.distributions import AutoregressiveImage, DiscretizedLogisticMixture
from pyro_delta.distributions.images.autoregressive_image import sample_naively
from pyro_delta.distributions.numbers import AutoregressiveNumbers
from pyro_delta.distributions.sequences import AutoregressiveSequence, AutoregressiveTokens
from pyro_delta.distributions.sounds import AutoregressiveSound
from pyro_delta.errors import UserError
from pyro_delta.models import DeltaVAE
from pyro_delta.vae import VAE


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0])
def test_a_mixture_at_a_temperature_by_hand(temperature: float) -> None:
    """Each of 16 levels: Σ_k π_k^(1/T) / Z [σ((y + h − m_k) / s_k) − σ((y − h − m_k) / s_k)]."""
    torch.manual_seed(0)
    logits, means, log_scales = torch.randn(3, 4, dtype=torch.float64) * torch.tensor([[1.0], [0.5], [0.4]]) - 0.3
    parameters = torch.stack((logits, means, log_scales)).flatten()
    found = DiscretizedLogisticMixture.from_parameters(
        DiscretizedLogisticMixture.tempered(parameters, temperature, channels=1), channels=1, levels=16
    )
    weight = logits.softmax(0) ** (1 / temperature)
    y, scale = torch.arange(16, dtype=torch.float64)[:, None] / 7.5 - 1, log_scales.exp()
    upper, lower = (torch.sigmoid((y + side / 15 - means) / scale) for side in (1, -1))
    upper[15], lower[0] = 1.0, 0.0
    expected = ((upper - lower) * weight / weight.sum()).sum(1)
    torch.testing.assert_close(found.log_prob(torch.arange(16)[:, None]).exp(), expected, rtol=1e-9, atol=1e-12)


def warmer(parameters: Tensor, temperature: float, channels: int) -> Tensor:
    """Parameters (…, P) of a mixture, row by row: logits, C means, C log-scales, and the coefficients."""
    rows = 1 + 2 * channels + channels * (channels - 1) // 2
    table = parameters.clone().unflatten(-1, (rows, -1))
    table[..., 0, :] /= temperature
    return table.flatten(-2)


@pytest.mark.parametrize("name", ["five_levels_odd", "colour_256", "colour_alpha", "snail_colour_256"])
def test_images_are_those_of_a_warmer_network(name: str) -> None:
    """Drawn naively, by whole passes."""
    case = CASES[name]
    network, z = case.network(), case.z(3)

    class Warmer:
        spec = network.spec

        def __call__(self, x_bchw: Tensor, z_bnd: Tensor) -> Tensor:
            return warmer(network(x_bchw, z_bnd).movedim(1, -1), 0.6, self.spec.channels).movedim(-1, 1)

    uniforms = noise(case, 3)
    found = AutoregressiveImage(network, z).sample(uniforms=uniforms, temperature=0.6)
    assert torch.equal(found, sample_naively(AutoregressiveImage(Warmer(), z), uniforms))  # type: ignore[arg-type]
    assert not torch.equal(found, AutoregressiveImage(network, z).sample(uniforms=uniforms))


class Walk:
    """Parameters that depend on the number before, and by them all."""

    shape, levels, end, resolution, training = (5, 2), 6, None, 0.25, False

    def __init__(self, width: int, heat: float = 0.0) -> None:
        self.width, self.heat = width, heat

    def train(self, mode: bool = True) -> None:
        """Has one mode."""

    def start(self, z_bnd: Tensor) -> int:
        return len(z_bnd)

    def step(self, state: int, i: int, previous_b: Tensor | None) -> Tensor:
        before = torch.zeros(state) if previous_b is None else previous_b.double()
        parameters = torch.sin(before[:, None] + 0.7 * i + torch.arange(self.width, dtype=torch.float64))
        if self.heat and self.width == self.levels:
            return torch.log_softmax(parameters, 1) / self.heat
        return warmer(parameters, self.heat, 1) if self.heat else parameters


@pytest.mark.parametrize("cls", [AutoregressiveTokens, AutoregressiveSound, AutoregressiveNumbers])
def test_sequences_are_those_of_a_warmer_network(cls: type[AutoregressiveSequence]) -> None:
    width = Walk.levels if cls is AutoregressiveTokens else 9
    z = torch.zeros(40, 1, 1, dtype=torch.float64)
    plain: AutoregressiveSequence = cls(Walk(width), z)  # type: ignore[arg-type]
    uniforms = plain.noise(40)
    found = plain.sample(uniforms=uniforms, temperature=0.4)
    expected = cls(Walk(width, 0.4), z).sample(uniforms=uniforms)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert not torch.equal(found, plain.sample(uniforms=uniforms))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_temperature_is_refused(temperature: float) -> None:
    kinds = {AutoregressiveTokens: Walk.levels, AutoregressiveSound: 9, AutoregressiveNumbers: 9}
    for distribution in (
        AutoregressiveImage(CASES["five_levels_odd"].network(), CASES["five_levels_odd"].z(1)),
        *(cls(Walk(width), torch.zeros(1, 1, 1)) for cls, width in kinds.items()),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=rf"a temperature is a number above 0, not {temperature}"):
            distribution.sample(temperature=temperature)


def test_what_has_no_temperature_says_so() -> None:
    class Prior(nn.Module):
        def forward(self) -> Any:
            return dist.Normal(torch.zeros(3, 1), 1.0).to_event(2)

    class Coins(nn.Module):
        def forward(self, z: Tensor) -> Any:
            return dist.Bernoulli(logits=z[..., 0]).to_event(1)

    vae = VAE(DeltaVAE(Prior(), Coins()), nn.Identity())
    assert draw(vae, 4).shape == (4, 3)
    with pytest.raises(UserError, match="of a Independent have no temperature; leave it out"):
        draw(vae, 4, temperature=0.9)
    with pytest.raises(UserError, match="AutoregressiveSequence has no temperature; leave it out, or give that class"):
        AutoregressiveSequence(Walk(9), torch.zeros(1, 1, 1)).sample(temperature=0.9)  # type: ignore[arg-type]
