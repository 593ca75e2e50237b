"""The PixelSNAIL likelihood: an autoregressive image distribution conditioned on the latent sequence."""

from __future__ import annotations

from pyro.nn import PyroModule
from torch import Tensor

from pyro_delta.data.spec import ImageSpec
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.models.conditional import ConditionalNetwork, Conditioning
from pyro_delta.nn.pixelsnail import PixelSNAIL
from pyro_delta.nn.submodule import network_of


class ConditionalPixelSNAIL(ConditionalNetwork):
    """A `ConditionalNetwork` whose trunk is a `PixelSNAIL`.

    NOTE: Departs from the δ-VAE's decoder, as far as that is known: z is attended to once, by a learned query of every
    row (`LatentMap`), rather than by queries computed from pixels in each block. So both likelihoods have the one place
    where the `first_row` rule holds, and all layers, attention between pixels included, hear of z from the start.
    """

    trunk_class = PixelSNAIL


class PixelSNAILLikelihood(PyroModule):
    """PixelSNAIL: one causal stream in which pixels attend to all those before them, conditioned on z.

    `forward(z)` returns an `AutoregressiveImage`.

    Args:
        spec: shape and levels of the images.
        prior: the program whose z it is conditioned on.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": row r sees {z_t : first_row[t] ≤ r}; "full": every row sees all of z.
        mixtures: components of the mixture of logistics.
        latent_channels: channels of the map that carries z to the pixels.
        channels: width of the network.
        blocks: blocks, of which each ends with attention.
        layers: gated residual convolutions of each block.
        heads: attention heads, which share half of the channels.
        dropout: probability with which features are dropped in training.

    Raises:
        UserError: for an option that has no meaning.

    References:
        1. X. Chen et al., "PixelSNAIL: An Improved Autoregressive Generative Model", ICML 2018.
    """

    twin = "pyro_delta.twin.likelihoods:PixelSNAILLikelihood"

    def __init__(
        self,
        spec: ImageSpec,
        prior: PyroModule,
        *,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        mixtures: int = 10,
        latent_channels: int = 16,
        channels: int = 64,
        blocks: int = 2,
        layers: int = 4,
        heads: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.network = ConditionalPixelSNAIL(
            spec,
            prior.first_row,
            prior().event_shape[-1],
            use_latents=use_latents,
            conditioning=conditioning,
            mixtures=mixtures,
            latent_channels=latent_channels,
            channels=channels,
            blocks=blocks,
            layers=layers,
            heads=heads,
            dropout=dropout,
        )

    def forward(self, z: Tensor) -> AutoregressiveImage:
        """Z (…, n, d) → a distribution over images (…, C, H, W)."""
        return AutoregressiveImage(network_of(self, "network"), z)
