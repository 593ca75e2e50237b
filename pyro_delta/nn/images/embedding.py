"""From integer pixels to the input of a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def embed_pixels(x: Tensor, levels: int, dtype: torch.dtype, *, channel_dim: int = 1) -> Tensor:
    """Scales integers 0 … levels−1 to [−1, 1] and appends a channel of ones.

    The ones tell a pixel of the image from zero padding. The scaling runs in the parameters' precision: a bfloat16
    image would make the likelihood look better than it is.
    """
    scaled = x.to(dtype) * (2.0 / (levels - 1)) - 1.0
    return F.pad(scaled, (0, 0) * (scaled.dim() - channel_dim - 1) + (0, 1), value=1.0)
