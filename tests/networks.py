"""What the tests of networks share: weights that hide nothing, small images, and what shipped presets are of."""

import torch
from torch import Tensor, nn

from pyro_delta import config
from pyro_delta.data import Spec
from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.sequences import TextSpec, TokenSpec
from pyro_delta.data.sequences.text import Descriptions
from pyro_delta.data.series import SeriesSpec
from pyro_delta.distributions import GaussianAR1

SPECS = {
    "digits": ImageSpec(1, 8, 8, 17),
    "photos": ImageSpec(3, 32, 32, 256),
    "cifar10": ImageSpec(3, 32, 32, 256),
    "mnist": ImageSpec(1, 28, 28, 256),
    "descriptions": Descriptions.spec,
    "chorales": ScoreSpec(32, 47),
    "brown": TokenSpec(128, 1000),
    "text": TextSpec(256, 256),
    "vowels": SeriesSpec(29, tuple(f"c{i}" for i in range(12)), (0.0,) * 12, (0.5,) * 12, 0.01),
    "speech": SoundSpec(80),
}
"""Of the data that presets name."""
PRESETS = {name: config.load_preset(name).data.program for name in config.preset_names()}
"""Preset → its data."""
IMAGE_PRESETS = [name for name, data in PRESETS.items() if isinstance(SPECS[data], ImageSpec)]
TOKEN_PRESETS = [name for name, data in PRESETS.items() if isinstance(SPECS[data], TokenSpec)]


class StepsPrior(nn.Module):
    """AR(1) over steps that belong to any positions: a prior of a user's own, as small as can be."""

    def __init__(self, starts: list[int], alpha: list[float]) -> None:
        super().__init__()
        self.register_buffer("starts", torch.tensor(starts))
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self) -> GaussianAR1:
        return GaussianAR1(self.alpha, len(self.starts))


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Double precision, and no parameter left at zero: biases and positions are drawn, too."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise / fan_in**0.5)
    return module


def random_images(spec: Spec, batch: tuple[int, ...], seed: int = 0) -> Tensor:
    """Integers of shape batch + (C, H, W), or of another spec's shape; normal noise where data are real numbers."""
    generator = torch.Generator().manual_seed(seed)
    if spec.levels is None:
        return torch.randn((*batch, *spec.shape), generator=generator)
    return torch.randint(spec.levels, (*batch, *spec.shape), generator=generator)


def random_normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal noise in double precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
