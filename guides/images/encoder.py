"""The image pipeline of the guides: what each latent step is told of the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.nn.condition import ConditionFeatures
from pyro_delta.nn.images.embedding import embed_pixels
from pyro_delta.nn.images.gated_pixelcnn import GatedPixelCNN
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.validation import Count


class ImageEncoder(Network):
    """From an image to a few numbers for each latent step.

    Anti-causal, it is the paper's pipeline [1], in which what step t gives depends on rows ≥ starts[t] alone: (1)
    reverse the image in both axes; (2) pad a zero row on top and a zero column on the right; (3) run a strictly causal
    network; (4) crop the top row and the left column, which turns "strictly before" into "up to and including", and
    reverse back; (5) average over the region of each latent step; then a scale and a shift of each feature at each
    step, one hidden layer, to which what images are conditioned on is added, and a linear one. Otherwise it is the
    paper's ablation: the same network without masks and shifts, and no reversing, padding or cropping.

    Args:
        spec: shape and levels of the images.
        region_nhw: (n, H, W) boolean, the pixels that each step averages; see `regions`.
        outputs: numbers given out per step.
        anti_causal: whether the network is masked.
        features: channels handed from the network to the averages.
        network: the remaining arguments of `GatedPixelCNN`.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    ends = ("out",)

    weight_nhw: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        region_nhw: Tensor,
        outputs: int,
        *,
        anti_causal: bool = True,
        features: Count = 64,
        **network: object,
    ) -> None:
        super().__init__()
        self.spec, self.anti_causal = spec, anti_causal
        self.trunk = GatedPixelCNN(
            spec.channels + 1,
            features,
            height=spec.height + anti_causal,
            width=spec.width + anti_causal,
            causal=anti_causal,
            **network,  # type: ignore[arg-type]
        )
        self.step_scale = nn.Parameter(torch.ones(len(region_nhw), features))
        self.step_shift = nn.Parameter(torch.zeros(len(region_nhw), features))
        self.hidden = nn.Linear(features, features)
        self.condition = None if spec.condition is None else ConditionFeatures(spec.condition, features, scale=0.0)
        self.out = nn.Linear(features, outputs)
        weight_nhw = region_nhw.float() / region_nhw.float().sum((1, 2), keepdim=True)
        self.register_buffer("weight_nhw", weight_nhw, persistent=False)

    @autocast_inside
    def forward(self, x_bchw: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) of integers, and what they are conditioned on, → (B, n, outputs)."""
        hidden_bnf = self.hidden(self._averaged(x_bchw) * self.step_scale + self.step_shift)
        if self.condition is not None:
            hidden_bnf = hidden_bnf + self.condition(condition).unsqueeze(-2)
        return self.out(F.silu(hidden_bnf))

    @torch.no_grad()
    def standardise(self, x_bchw: Tensor) -> None:
        """Starts every feature of every step with mean 0 and deviation 1 over a batch of images."""
        averaged_bnf = self._averaged(x_bchw)
        deviation_nf = deviation(averaged_bnf)
        self.step_scale.copy_(1 / deviation_nf)
        self.step_shift.copy_(-averaged_bnf.mean(0) / deviation_nf)

    def _averaged(self, x_bchw: Tensor) -> Tensor:
        """Features (B, n, F) of each step."""
        embedded_bchw = embed_pixels(x_bchw, self.spec.levels, self.hidden.weight.dtype)
        if self.anti_causal:
            padded_bchw = F.pad(embedded_bchw.flip((2, 3)), (0, 1, 1, 0))
            features_bfhw = self.trunk(padded_bchw)[:, :, 1:, 1:].flip((2, 3))
        else:
            features_bfhw = self.trunk(embedded_bchw)
        weight_nhw = self.weight_nhw.to(features_bfhw.dtype)
        return torch.einsum("bfhw,nhw->bnf", features_bfhw, weight_nhw)


def regions(starts: Tensor, columns: int, height: int, width: int) -> Tensor:
    """(n, H, W) boolean: the pixels that each step averages.

    Rows: from its first row up to the next larger one. Columns: all of them; with `columns` > 1 the steps that share a
    first row are blocks of one block-row, from left to right, and share the columns evenly.
    """
    rows = torch.arange(height, device=starts.device)
    larger = torch.where(starts[None, :] > starts[:, None], starts[None, :], height)
    row_nh = (rows >= starts[:, None]) & (rows < larger.amin(1, keepdim=True))
    block_w = torch.arange(width, device=starts.device) * columns // width
    column_nw = (torch.arange(len(starts), device=starts.device) % columns)[:, None] == block_w
    return row_nh[:, :, None] & column_nw[:, None, :]


def deviation(values: Tensor) -> Tensor:
    """Standard deviation over dimension 0; 1 where the values hardly differ, as over a margin that is always blank."""
    found = values.std(0, correction=0)
    return torch.where(found > 1e-3 * values.square().mean(0).sqrt() + 1e-6, found, 1.0)
