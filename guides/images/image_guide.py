"""What the shipped guides share: the image encoder, a start from data, and the site `z`."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_delta.data.images.spec import require_image
from pyro_delta.errors import UserError
from pyro_delta.guides.images.encoder import ImageEncoder, deviation, regions
from pyro_delta.nn.condition import check_told, given
from pyro_delta.protocol import Prior, Spec
from pyro_delta.svi import offer_parameters
from pyro_delta.validation import Count


class ImageGuide(nn.Module):
    """An amortised guide: an image encoder gives each latent step d means and whatever else its family asks for.

    A family derives from it, says by `extra` how many numbers beside the mean each coordinate takes, and gives
    `posterior`. Of the numbers of a coordinate, as many as its attribute `from_data` says start from data, the others
    at 0, where they should give the scale with which the posterior attains its δ.

    Args:
        spec: shape and levels of the images.
        prior: of the latents; `starts`, the event shape and, if it has them, `columns` are read, and nothing of it
            is kept.
        extra: numbers beside the mean that each coordinate takes.
        features: features averaged over the region of each step.
        channels: width of each level of the rows-above stream, finest first; each level has half the columns.
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) of the rows-above stream's convolutions.
        pixel_kernel: columns of the within-row stream's convolutions.

    Raises:
        UserError: if the data are no images, or for sizes that make no network.

    References:
        1. T. Salimans and D. Kingma, "Weight Normalization", NeurIPS 2016, §3 (initialisation by a batch of data).
    """

    causality: ClassVar[str] = "anti_causal"
    from_data: ClassVar[int] = 1

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        extra: int,
        *,
        features: Count = 64,
        channels: tuple[int, ...] = (32, 48),
        row_blocks: tuple[int, ...] = (1, 2),
        pixel_blocks: int = 2,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
    ) -> None:
        super().__init__()
        image = require_image(spec, "guide", type(self).__name__)
        self.dims = prior().event_shape[-1]
        self.encoder = ImageEncoder(
            image,
            regions(prior.starts, getattr(prior, "columns", 1), image.height, image.width),
            (1 + extra) * self.dims,
            anti_causal=self.causality == "anti_causal",
            features=features,
            channels=channels,
            row_blocks=row_blocks,
            pixel_blocks=pixel_blocks,
            row_kernel=row_kernel,
            pixel_kernel=pixel_kernel,
        )

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> Distribution:
        """q(z | x) for images (…, C, H, W), and what they are conditioned on, event shape (n, d)."""
        raise NotImplementedError

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Writes the site `z` for images x (B, C, H, W), a tensor or an array, and what they are conditioned on.

        Raises:
            UserError: if x is one image without its batch axis.
        """
        offer_parameters(self)
        x = torch.as_tensor(x)
        if x.dim() == 3:
            raise UserError(
                f"x has shape {tuple(x.shape)}, that of one image; give it a batch axis, as x[None] has one."
            )
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x, **given(condition)))

    def encode(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """The mean and the extra numbers of each coordinate, each (…, n, d), for images (…, C, H, W).

        Raises:
            UserError: if there is a condition that the spec says nothing of, or none where it does.
        """
        check_told(getattr(self.encoder, "condition", None), condition)
        batch = math.prod(x.shape[:-3])
        if condition is not None:
            own = condition.shape[x.dim() - 3 :]
            condition = condition.reshape((batch, *own))
        raw = self.encoder(x.reshape((batch, *x.shape[-3:])), **given(condition))
        return raw.reshape((*x.shape[:-3], *raw.shape[-2:])).split(self.dims, dim=-1)

    @torch.no_grad()
    def start_from(self, x: Tensor, condition: Tensor | None = None) -> None:
        """Takes its initial weights from images (B, C, H, W), and what they are conditioned on [1].

        The numbers that start from data, the mean first, get mean 0 and deviation 1 over images and steps.

        A random causal network says nearly the same of every image. A guide that starts like that carries no
        information, the decoder learns to do without z, and nothing calls it back.
        """
        encoder = self.encoder
        encoder.standardise(x)
        out, o = encoder.out, self.from_data * self.dims
        out.weight[o:], out.bias[o:] = 0.0, 0.0
        numbers_ko = encoder(x, **given(condition))[..., :o].flatten(0, 1)
        deviation_o = deviation(numbers_ko)
        out.weight[:o] /= deviation_o.unsqueeze(1)
        out.bias[:o] = (out.bias[:o] - numbers_ko.mean(0)) / deviation_o
