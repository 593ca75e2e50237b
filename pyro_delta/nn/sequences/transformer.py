"""A Transformer as the trunk of a network over sequences: positions in, positions out, each of those up to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.errors import UserError
from pyro_delta.nn.recompute import Block, applied

WAVELENGTHS = 10_000.0
"""The slowest pair of features turns once in 2π times so many positions, nearly."""


class TransformerBlock(Block):
    """Attention to all positions up to one's own, then a perceptron at each, both added to what comes in.

    Layers are normalised before each of the two [2]. Positions enter by rotation of queries and keys alone [3]: what a
    position finds at another depends on how far it is, not on where either stands.

    Args:
        hidden: features h.
        heads: that share them.

    References:
        1. A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
        2. R. Xiong et al., "On Layer Normalization in the Transformer Architecture", ICML 2020.
        3. J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.merge = nn.Linear(hidden, hidden)
        self.before_perceptron = nn.LayerNorm(hidden)
        self.widen = nn.Linear(hidden, 4 * hidden)
        self.narrow = nn.Linear(4 * hidden, hidden)

    def forward(self, v_bth: Tensor, turn_2ts: Tensor) -> Tensor:
        """(B, T, h), and the rotation of T positions, → (B, T, h)."""
        parts = self.query_key_value(self.before_attention(v_bth)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        query, key = turned(query, turn_2ts), turned(key, turn_2ts)
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._perceive(v_bth + self.merge(found.transpose(1, 2).flatten(2)))

    def step(self, v_bh: Tensor, turn_2s: Tensor, kept_2bats: Tensor, position: int) -> Tensor:
        """One position, (B, h) → (B, h): its key and value are kept beside those of the positions before it."""
        parts = self.query_key_value(self.before_attention(v_bh)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        kept_2bats.select(3, position).copy_(torch.stack((turned(key, turn_2s), value)))
        keys, values = kept_2bats[:, :, :, : position + 1]
        query = turned(query, turn_2s).unsqueeze(2)
        found = F.scaled_dot_product_attention(query, keys, values)
        return self._perceive(v_bh + self.merge(found.flatten(1)))

    def _perceive(self, v: Tensor) -> Tensor:
        return v + self.narrow(F.gelu(self.widen(self.before_perceptron(v))))


class CausalTransformer(nn.Module):
    """Blocks of attention and perceptrons [1], and a normalisation after the last.

    Args:
        hidden: features h, in and out.
        layers: blocks.
        heads: of attention; h is a multiple of 2·heads, for features are turned in pairs.
        positions: T at most.

    Raises:
        UserError: for features that the heads cannot share.

    References:
        1. A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    def __init__(self, hidden: int, *, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        if hidden % (2 * heads):
            raise UserError(
                f"heads={heads} cannot share {hidden} hidden features in pairs; let hidden be a multiple of 2·heads."
            )
        self.blocks = nn.ModuleList(TransformerBlock(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.positions, self.heads = positions, heads

    def forward(self, v_bth: Tensor) -> Tensor:
        """(B, T, h), of T positions or fewer, → (B, T, h)."""
        turn_2ts = rotation(v_bth.shape[1], v_bth[0, 0], self.heads)
        for block in self.blocks:
            v_bth = applied(block, v_bth, turn_2ts)
        return self.norm(v_bth)

    def start(self, v_bh: Tensor) -> dict[str, Tensor]:
        """Nothing read yet; v is like an input in its number, type and device. Keys and values will be kept."""
        sizes = v_bh.shape[0], self.heads, self.positions, v_bh.shape[1] // self.heads
        return {
            "kept": v_bh.new_zeros(len(self.blocks), 2, *sizes),
            "turn": rotation(self.positions, v_bh[0], self.heads),
        }

    def take(self, state: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """The state of the sequences at indices, in that order."""
        return {**state, "kept": state["kept"][:, :, order]}

    def step(self, state: dict[str, Tensor], position: int, v_bh: Tensor) -> Tensor:
        """One position after the other: (B, h) → (B, h)."""
        turn_2s = state["turn"][:, position]
        for i, block in enumerate(cast("Iterable[TransformerBlock]", self.blocks)):
            v_bh = block.step(v_bh, turn_2s, state["kept"][i], position)
        return self.norm(v_bh)


def rotation(positions: int, v_h: Tensor, heads: int) -> Tensor:
    """Cosines and sines of the angles t·10000^(−2i/s), i = 0 … s/2 − 1, at positions t: (2, T, s/2).

    Of the type and device of features v (h,), of which each head has s. Angles are of double precision: far positions
    would be rounded otherwise.
    """
    size = len(v_h) // heads
    frequency_s = WAVELENGTHS ** (-torch.arange(0, size, 2, dtype=torch.float64, device=v_h.device) / size)
    angle_ts = torch.arange(positions, dtype=torch.float64, device=v_h.device)[:, None] * frequency_s
    return torch.stack((angle_ts.cos(), angle_ts.sin())).to(v_h.dtype)


def turned(v: Tensor, turn: Tensor) -> Tensor:
    """Features (…, s), of which the first and the second half make pairs, each turned by its angle, (2, …, s/2)."""
    cos, sin = turn.to(v.dtype)
    first, second = v.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
