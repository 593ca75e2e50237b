"""Dilated causal convolutions over samples, in two forms that agree: all of them at once, and one by one, cached.

References:
    1. A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.nn.recompute import Block


def shifted(v_btc: Tensor, steps: int) -> Tensor:
    """Entry t of the result is entry t − steps of the argument; the first ones are zero."""
    return F.pad(v_btc, (0, 0, steps, 0))[:, : v_btc.shape[1]]


@dataclass
class Held:
    """What cached generation remembers of a block.

    Attributes:
        ring: its last inputs, that of sample t at t modulo their number, (dilation, B, C), zeros at first.
        old, new: the convolution's weights for an input that is so old and for the newest, (C, 2C) each.
        out: the weight after the gate, (C, 2C).
        bias: of that.
    """

    ring: Tensor
    old: Tensor
    new: Tensor
    out: Tensor
    bias: Tensor


class DilatedBlock(Block):
    """Gated residual block: adds to v, and says aside, linear maps of gate(W [v_{t−dilation}, v_t] + link) [1, eq. 2].

    The gate is a·sigmoid(b) of the two halves (a, b). The link, 2C numbers, holds for all samples of a position.

    NOTE: [1] has tanh(a) in the place of a.

    Args:
        channels: C.
        dilation: samples between the two that the convolution sees.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.conv = nn.Linear(2 * channels, 2 * channels)
        self.out = nn.Linear(channels, 2 * channels)

    def forward(self, v_btc: Tensor, link_bpc: Tensor) -> tuple[Tensor, Tensor]:
        """All samples at once: v (B, T, C), and links (B, P, 2C) of positions that share them, → v and what it says."""
        seen_btc = self.conv(torch.cat((shifted(v_btc, self.dilation), v_btc), dim=-1))
        linked_bpsc = seen_btc.unflatten(1, (link_bpc.shape[1], -1)) + link_bpc.unsqueeze(2)
        more_btc, said_btc = self.out(F.glu(linked_bpsc).flatten(1, 2)).chunk(2, dim=-1)
        return v_btc + more_btc, said_btc

    def held(self, batch: int) -> Held:
        """Before the first sample."""
        weight, channels = self.conv.weight, self.out.in_features
        ring_dbc = weight.new_zeros(self.dilation, batch, channels)
        old, new = weight.T.contiguous().split(channels)
        return Held(ring_dbc, old, new, self.out.weight.T.contiguous(), self.out.bias)

    def step(self, v_bc: Tensor, t: int, link_bc: Tensor, held: Held) -> tuple[Tensor, Tensor]:
        """Sample t; the link is to hold the bias of the convolution."""
        place_bc = held.ring[t % self.dilation]
        gated_bc = F.glu(torch.addmm(torch.addmm(link_bc, place_bc, held.old), v_bc, held.new))
        place_bc.copy_(v_bc)
        more_bc, said_bc = torch.addmm(held.bias, gated_bc, held.out).chunk(2, dim=-1)
        return v_bc + more_bc, said_bc
