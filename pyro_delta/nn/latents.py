"""How rows of an image see the latent sequence: the `first_row` rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentMap(nn.Module):
    """Turns z (B, n, d) into a map (B, channels, H, W) whose row r depends on {z_t : first_row[t] ≤ r} alone.

    Each step becomes a token by a two-layer perceptron plus a learned position. Every row attends, with a learned query
    of its own, to the tokens that it may see; the newest of these is added directly. A linear layer spreads the result
    over the columns. Rows that may see no step get the bias alone.

    Args:
        dims: d, size of one latent step.
        first_row: (n,) integers, the row from which on step t may be used.
        channels: channels of the map.
        height: H.
        width: W.
        tokens: size of a token.
        heads: attention heads.
    """

    first_row: Tensor
    visible: Tensor
    newest: Tensor
    sees_any: Tensor

    def __init__(
        self, dims: int, first_row: Tensor, *, channels: int, height: int, width: int, tokens: int = 64, heads: int = 4
    ) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        steps = first_row.numel()
        rows = torch.arange(height, device=first_row.device)
        visible_hn = first_row[None, :] <= rows[:, None]
        # The newest visible step: of the steps with the largest first_row, the last.
        rank = torch.where(visible_hn, first_row[None, :] * steps + torch.arange(steps, device=rows.device), -1)
        self.register_buffer("visible", visible_hn, persistent=False)
        self.register_buffer("newest", rank.argmax(dim=1), persistent=False)
        self.register_buffer("sees_any", visible_hn.any(dim=1, keepdim=True), persistent=False)
        self.embed = nn.Sequential(nn.Linear(dims, tokens), nn.SiLU(), nn.Linear(tokens, tokens))
        self.position = nn.Parameter(torch.randn(steps, tokens) / tokens**0.5)
        self.query = nn.Parameter(torch.randn(height, tokens) / tokens**0.5)
        self.key_value = nn.Linear(tokens, 2 * tokens)
        self.mix = nn.Linear(2 * tokens, tokens)
        self.spread = nn.Linear(tokens, channels * width)

    def forward(self, z_bnd: Tensor) -> Tensor:
        """(B, n, d) → (B, channels, H, W)."""
        z_bnd = z_bnd.to(self.position.dtype)  # a prior or a guide may draw in float64
        tokens_bne = self.embed(z_bnd) + self.position
        keys, values = (self._split(part) for part in self.key_value(tokens_bne).chunk(2, dim=-1))
        queries = self._split(self.query.to(keys.dtype).expand(z_bnd.shape[0], -1, -1))
        # A boolean mask: rows that see nothing get exactly zero (an additive −1e10 would average over the future).
        seen_bhe = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.visible)
        seen_bhe = seen_bhe.transpose(1, 2).flatten(2)
        newest_bhe = tokens_bne[:, self.newest] * self.sees_any
        rows_bhe = F.silu(self.mix(torch.cat((seen_bhe, newest_bhe), dim=-1)))
        spread = self.spread(rows_bhe)
        return spread.unflatten(-1, (self.channels, -1)).transpose(1, 2)

    def _split(self, x_bne: Tensor) -> Tensor:
        return x_bne.unflatten(-1, (self.heads, -1)).transpose(1, 2)
