"""The PixelSNAIL likelihood: an autoregressive image distribution conditioned on the latent sequence."""

from __future__ import annotations

from typing import Any

from pyro_delta.models.images.conditional import ConditionalNetwork, ImageLikelihood
from pyro_delta.nn.images.pixelsnail import PixelSNAIL
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count, Dropout


class ConditionalPixelSNAIL(ConditionalNetwork):
    """A `ConditionalNetwork` whose trunk is a `PixelSNAIL`.

    NOTE: Departs from the δ-VAE's decoder, as far as that is known: z is attended to once, by a learned query of every
    row (`LatentMap`), rather than by queries computed from pixels in each block. So both likelihoods have the one place
    where the `starts` rule holds, and all layers, attention between pixels included, hear of z from the start.
    """

    trunk_class = PixelSNAIL


class PixelSNAILLikelihood(ImageLikelihood):
    """PixelSNAIL: one causal stream in which pixels attend to all those before them, conditioned on z.

    `forward(z)` returns an `AutoregressiveImage`.

    Args:
        spec: shape and levels of the images.
        prior: of the latents.
        mixtures: components of the mixture of logistics.
        channels: width of the network.
        blocks: blocks, of which each ends with attention.
        layers: gated residual convolutions of each block.
        heads: attention heads, which share half of the channels.
        norm: whether blocks read features with a root mean square of at most 1: training takes larger steps then, and
            fewer samples run off into noise, but a decoder may not hear z.
        dropout: probability with which features are dropped in training.
        latents: use_latents, conditioning and latent_channels, as for `ImageLikelihood`.

    Raises:
        UserError: if the data are no images, or for an option that has no meaning.

    References:
        1. X. Chen et al., "PixelSNAIL: An Improved Autoregressive Generative Model", ICML 2018.
    """

    twin = "pyro_delta.twin.images.likelihoods:PixelSNAILLikelihood"
    network_class = ConditionalPixelSNAIL

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        mixtures: int = 10,
        channels: Count = 64,
        blocks: Count = 2,
        layers: int = 4,
        heads: int = 2,
        norm: bool = False,
        dropout: Dropout = 0.0,
        **latents: Any,
    ) -> None:
        super().__init__(
            spec,
            prior,
            mixtures=mixtures,
            channels=channels,
            blocks=blocks,
            layers=layers,
            heads=heads,
            norm=norm,
            dropout=dropout,
            **latents,
        )
