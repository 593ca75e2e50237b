"""The Gated PixelCNN likelihood: an autoregressive image distribution conditioned on the latent sequence."""

from __future__ import annotations

from pyro.nn import PyroModule
from torch import Tensor

from pyro_delta.data.spec import ImageSpec
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.models.conditional import ConditionalNetwork, Conditioning
from pyro_delta.nn.gated_pixelcnn import GatedPixelCNN
from pyro_delta.nn.submodule import network_of


class ConditionalGatedPixelCNN(ConditionalNetwork):
    """A `ConditionalNetwork` whose trunk is a `GatedPixelCNN`."""

    trunk_class = GatedPixelCNN


class GatedPixelCNNLikelihood(PyroModule):
    """Gated PixelCNN: two causal streams, the rows above with coarser levels for reach, conditioned on z.

    `forward(z)` returns an `AutoregressiveImage`.

    Args:
        spec: shape and levels of the images.
        prior: of the latents; its `first_row` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": row r sees {z_t : first_row[t] ≤ r}; "full": every row sees all of z, the ablation that
            goes with a guide that is not anti-causal.
        mixtures: components of the mixture of discretised logistics.
        latent_channels: channels of the map that carries z to the pixels.
        channels: width of each level of the rows-above stream, finest first; each level halves the resolution.
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) of the rows-above stream's convolutions.
        pixel_kernel: columns of the within-row stream's convolutions.

    Raises:
        UserError: for sizes that make no network.
    """

    twin = "pyro_delta.twin.likelihoods:GatedPixelCNNLikelihood"

    def __init__(
        self,
        spec: ImageSpec,
        prior: PyroModule,
        *,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        mixtures: int = 5,
        latent_channels: int = 16,
        channels: tuple[int, ...] = (32, 48),
        row_blocks: tuple[int, ...] = (1, 2),
        pixel_blocks: int = 2,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.conditioning = conditioning
        self.network = ConditionalGatedPixelCNN(
            spec,
            prior.first_row,
            prior().event_shape[-1],
            use_latents=use_latents,
            conditioning=conditioning,
            mixtures=mixtures,
            latent_channels=latent_channels,
            channels=channels,
            row_blocks=row_blocks,
            pixel_blocks=pixel_blocks,
            row_kernel=row_kernel,
            pixel_kernel=pixel_kernel,
        )

    def forward(self, z: Tensor) -> AutoregressiveImage:
        """Z (…, n, d) → a distribution over images (…, C, H, W)."""
        return AutoregressiveImage(network_of(self, "network"), z)
