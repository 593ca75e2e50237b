"""The Gated PixelCNN likelihood: an autoregressive image distribution conditioned on the latent sequence."""

from __future__ import annotations

from pyro.nn import PyroModule
from torch import Tensor

from pyro_delta.data.spec import ImageSpec
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.models.conditional import ConditionalNetwork
from pyro_delta.nn.gated_pixelcnn import GatedPixelCNN
from pyro_delta.nn.submodule import network_of


class ConditionalGatedPixelCNN(ConditionalNetwork):
    """A `ConditionalNetwork` whose trunk is a `GatedPixelCNN`."""

    trunk_class = GatedPixelCNN


class GatedPixelCNNLikelihood(PyroModule):
    """p(x | z) as a program: `forward(z)` returns an `AutoregressiveImage`.

    Takes the arguments of `ConditionalNetwork`, and those of `GatedPixelCNN`.
    """

    def __init__(self, spec: ImageSpec, first_row: Tensor, dims: int, **network: object) -> None:
        super().__init__()
        self.network = ConditionalGatedPixelCNN(spec, first_row, dims, **network)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> AutoregressiveImage:
        """Z (…, n, d) → a distribution over images (…, C, H, W)."""
        return AutoregressiveImage(network_of(self, "network"), z)
