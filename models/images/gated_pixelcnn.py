"""The Gated PixelCNN likelihood: an autoregressive image distribution conditioned on the latent sequence."""

from __future__ import annotations

from typing import Any

from pyro_delta.models.images.conditional import ConditionalNetwork, ImageLikelihood
from pyro_delta.nn.images.gated_pixelcnn import GatedPixelCNN
from pyro_delta.protocol import Prior, Spec


class ConditionalGatedPixelCNN(ConditionalNetwork):
    """A `ConditionalNetwork` whose trunk is a `GatedPixelCNN`."""

    trunk_class = GatedPixelCNN


class GatedPixelCNNLikelihood(ImageLikelihood):
    """Gated PixelCNN: two causal streams, the rows above with coarser levels for reach, conditioned on z.

    `forward(z)` returns an `AutoregressiveImage`.

    Args:
        spec: shape and levels of the images.
        prior: of the latents.
        mixtures: components of the mixture of discretised logistics.
        channels: width of each level of the rows-above stream, finest first; each level has half the columns.
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) of the rows-above stream's convolutions.
        pixel_kernel: columns of the within-row stream's convolutions.
        stem: (rows, columns, pixels) of the first look at the rows above and at the pixels to the left.
        norm: whether blocks read features with a root mean square of at most 1: training takes larger steps then, and
            fewer samples run off into noise, but a decoder may not hear z.
        latents: use_latents, conditioning and latent_channels, as for `ImageLikelihood`.

    Raises:
        UserError: if the data are no images, or for sizes that make no network.
    """

    twin = "pyro_delta.twin.images.likelihoods:GatedPixelCNNLikelihood"
    network_class = ConditionalGatedPixelCNN

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        mixtures: int = 5,
        channels: tuple[int, ...] = (32, 48),
        row_blocks: tuple[int, ...] = (1, 2),
        pixel_blocks: int = 2,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
        stem: tuple[int, int, int] = (3, 9, 5),
        norm: bool = False,
        **latents: Any,
    ) -> None:
        super().__init__(
            spec,
            prior,
            mixtures=mixtures,
            channels=channels,
            row_blocks=row_blocks,
            pixel_blocks=pixel_blocks,
            row_kernel=row_kernel,
            pixel_kernel=pixel_kernel,
            stem=stem,
            norm=norm,
            **latents,
        )
