"""The anti-causal guide: z_t is inferred from the rows of its image that are still to come."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_delta.data.spec import ImageSpec
from pyro_delta.nn.embedding import embed_pixels
from pyro_delta.nn.gated_pixelcnn import GatedPixelCNN
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.nn.submodule import network_of
from pyro_delta.rate import minimising_posterior


class AntiCausalEncoder(Network):
    """The image pipeline of the paper's encoder [1]: what step t gives depends on rows ≥ first_row[t] alone.

    (1) reverse the image in both axes; (2) pad a zero row on top and a zero column on the right; (3) run a strictly
    causal network; (4) crop the top row and the left column, which turns "strictly before" into "up to and including",
    and reverse back; (5) average over the columns and over the rows of each latent step; then one hidden layer and a
    linear one.

    Args:
        spec: shape and levels of the images.
        first_row: (n,) the first row of each step.
        outputs: numbers given out per step.
        features: channels handed from the causal network to the pooling.
        network: the remaining arguments of `GatedPixelCNN`.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    pool: Tensor

    def __init__(
        self, spec: ImageSpec, first_row: Tensor, outputs: int, *, features: int = 64, **network: object
    ) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = GatedPixelCNN(
            spec.channels + 1,
            features,
            height=spec.height + 1,
            width=spec.width + 1,
            **network,  # type: ignore[arg-type]
        )
        self.step_scale = nn.Parameter(torch.ones(first_row.numel(), features))
        self.step_shift = nn.Parameter(torch.zeros(first_row.numel(), features))
        self.hidden = nn.Linear(features, features)
        self.out = nn.Linear(features, outputs)
        self.register_buffer("pool", row_pooling(first_row, spec.height), persistent=False)

    @autocast_inside
    def forward(self, x_bchw: Tensor) -> Tensor:
        """Images (B, C, H, W) of integers → (B, n, outputs)."""
        return self.out(F.silu(self.hidden(self._pooled(x_bchw) * self.step_scale + self.step_shift)))

    @torch.no_grad()
    def standardise(self, x_bchw: Tensor) -> None:
        """Starts every feature of every step with mean 0 and deviation 1 over a batch of images."""
        pooled_bnf = self._pooled(x_bchw)
        deviation_nf = _deviation(pooled_bnf)
        self.step_scale.copy_(1 / deviation_nf)
        self.step_shift.copy_(-pooled_bnf.mean(0) / deviation_nf)

    def _pooled(self, x_bchw: Tensor) -> Tensor:
        """Features (B, n, F) of each step."""
        reversed_bchw = embed_pixels(x_bchw, self.spec.levels, self.hidden.weight.dtype).flip((2, 3))
        features_bfhw = self.trunk(F.pad(reversed_bchw, (0, 1, 1, 0)))[:, :, 1:, 1:].flip((2, 3))
        rows_bhf = features_bfhw.mean(3).transpose(1, 2)
        member_nh = self.pool.to(rows_bhf.dtype)
        return member_nh @ rows_bhf / member_nh.sum(1, keepdim=True)


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation over dimension 0; 1 where the values hardly differ, as over a margin that is always blank."""
    deviation = values.std(0, correction=0)
    return torch.where(deviation > 1e-3 * values.square().mean(0).sqrt() + 1e-6, deviation, 1.0)


def row_pooling(first_row: Tensor, height: int) -> Tensor:
    """(n, H) boolean: the rows pooled for each step, from its first row up to the next larger one."""
    rows = torch.arange(height, device=first_row.device)
    larger = torch.where(first_row[None, :] > first_row[:, None], first_row[None, :], height)
    return (rows >= first_row[:, None]) & (rows < larger.amin(1, keepdim=True))


class AntiCausalGuide(PyroModule):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})), independent over steps and dimensions.

    What z_t could say of earlier rows the decoder has already; an anti-causal guide is left with what is still to come.

    Args:
        spec: shape and levels of the images.
        prior: of the latents; its `first_row` is read, and the posterior that attains its δ, where the scales start.
            Nothing of it is kept.
        features: features pooled from each row.
        channels: width of each level of the rows-above stream, finest first; each level halves the resolution.
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) of the rows-above stream's convolutions.
        pixel_kernel: columns of the within-row stream's convolutions.

    Raises:
        UserError: for sizes that make no network.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
        2. T. Salimans and D. Kingma, "Weight Normalization", NeurIPS 2016, §3 (initialisation by a batch of data).
    """

    causality = "anti_causal"
    scale: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        prior: PyroModule,
        *,
        features: int = 64,
        channels: tuple[int, ...] = (32, 48),
        row_blocks: tuple[int, ...] = (1, 2),
        pixel_blocks: int = 2,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
    ) -> None:
        super().__init__()
        with torch.no_grad():
            scale = minimising_posterior(prior()).base_dist.scale
        self.register_buffer("scale", scale.to(torch.get_default_dtype()))
        self.encoder = AntiCausalEncoder(
            spec,
            prior.first_row,
            2 * scale.shape[1],
            features=features,
            channels=channels,
            row_blocks=row_blocks,
            pixel_blocks=pixel_blocks,
            row_kernel=row_kernel,
            pixel_kernel=pixel_kernel,
        )

    def posterior(self, x: Tensor) -> dist.Independent:
        """q(z | x) for images (…, C, H, W), event shape (n, d)."""
        raw = network_of(self, "encoder")(x.reshape((-1, *x.shape[-3:])))
        mean, ratio = raw.reshape((*x.shape[:-3], *raw.shape[-2:])).chunk(2, dim=-1)
        # σ = scale·softplus(r)/softplus(0): positive, equal to `scale` where the network gives 0, linear for large r
        return dist.Normal(mean, self.scale * (F.softplus(ratio) / math.log(2.0)) + 1e-6).to_event(2)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Initialises by images (B, C, H, W) [2]: means of mean 0 and deviation 1 over them, and σ = scale.

        A random causal network says nearly the same of every image. A guide that starts like that carries no
        information, the decoder learns to do without z, and nothing calls it back.
        """
        encoder: AntiCausalEncoder = self._modules["encoder"]
        encoder.standardise(x)
        dims = self.scale.shape[1]
        encoder.out.weight[dims:], encoder.out.bias[dims:] = 0.0, 0.0
        mean_kd = encoder(x)[..., :dims].flatten(0, 1)
        deviation_d = _deviation(mean_kd)
        encoder.out.weight[:dims] /= deviation_d.unsqueeze(1)
        encoder.out.bias[:dims] = (encoder.out.bias[:dims] - mean_kd.mean(0)) / deviation_d

    def forward(self, x: Tensor) -> Tensor:
        """Writes the site `z` for images x (B, C, H, W)."""
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))
