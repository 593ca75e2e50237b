"""Which latent steps a position of the data sees, and from where on."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pyro_delta.errors import unknown_name

Conditioning = Literal["causal", "full"]
"""Those that begin at or before it, or all of them."""


def seen_from(starts: Tensor, conditioning: Conditioning, *, use_latents: bool) -> Tensor | None:
    """The position from which on each latent step may be used, (n,); None for the latent-free control.

    Args:
        starts: of the prior, (n,).
        conditioning: "full" lets every position use all steps.
        use_latents: whether any is.

    Raises:
        UserError: for an unknown conditioning.
    """
    if conditioning not in get_args(Conditioning):
        raise unknown_name("likelihood.conditioning", conditioning, get_args(Conditioning))
    if not use_latents:
        return None
    return starts if conditioning == "causal" else torch.zeros_like(starts)
