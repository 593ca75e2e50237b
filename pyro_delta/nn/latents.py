"""How positions of the data see the latent sequence: the `starts` rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentMap(nn.Module):
    """Turns z (B, n, d) into features (B, P, outputs), of which row p depends on {z_t : starts[t] ≤ p} alone.

    Each step becomes a token by a two-layer perceptron plus a learned position. Every position of the data attends,
    with a learned query of its own, to the tokens that it may see; the newest of these is added directly. A linear
    layer gives the features. Positions that may see no step get the bias alone.

    Args:
        dims: d, size of one latent step.
        starts: (n,) integers, the position from which on step t may be used.
        positions: P, of the data.
        outputs: features of a position.
        tokens: size of a token.
        heads: attention heads.
    """

    visible: Tensor
    newest: Tensor
    sees_any: Tensor

    def __init__(
        self, dims: int, starts: Tensor, *, positions: int, outputs: int, tokens: int = 64, heads: int = 4
    ) -> None:
        super().__init__()
        self.heads = heads
        steps = starts.numel()
        places = torch.arange(positions, device=starts.device)
        visible_pn = starts[None, :] <= places[:, None]
        # The newest visible step: of the steps with the largest starts, the last.
        rank = torch.where(visible_pn, starts[None, :] * steps + torch.arange(steps, device=places.device), -1)
        self.register_buffer("visible", visible_pn, persistent=False)
        self.register_buffer("newest", rank.argmax(dim=1), persistent=False)
        self.register_buffer("sees_any", visible_pn.any(dim=1, keepdim=True), persistent=False)
        self.embed = nn.Sequential(nn.Linear(dims, tokens), nn.SiLU(), nn.Linear(tokens, tokens))
        self.position = nn.Parameter(torch.randn(steps, tokens) / tokens**0.5)
        self.query = nn.Parameter(torch.randn(positions, tokens) / tokens**0.5)
        self.key_value = nn.Linear(tokens, 2 * tokens)
        self.mix = nn.Linear(2 * tokens, tokens)
        self.spread = nn.Linear(tokens, outputs)

    def forward(self, z_bnd: Tensor, first: int | None = None) -> Tensor:
        """(B, n, d) → (B, P, outputs), or of the first so many positions alone, (B, first, outputs)."""
        z_bnd = z_bnd.to(self.position.dtype)  # a prior or a guide may draw in float64
        tokens_bne = self.embed(z_bnd) + self.position
        keys, values = (self._split(part) for part in self.key_value(tokens_bne).chunk(2, dim=-1))
        queries = self._split(self.query[:first].to(keys.dtype).expand(z_bnd.shape[0], -1, -1))
        # A boolean mask: positions that see nothing get exactly zero (an additive −1e10 would average over the future).
        seen_bpe = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.visible[:first])
        seen_bpe = seen_bpe.transpose(1, 2).flatten(2)
        newest_bpe = tokens_bne[:, self.newest[:first]] * self.sees_any[:first]
        return self.spread(F.silu(self.mix(torch.cat((seen_bpe, newest_bpe), dim=-1))))

    def _split(self, x_bne: Tensor) -> Tensor:
        return x_bne.unflatten(-1, (self.heads, -1)).transpose(1, 2)
