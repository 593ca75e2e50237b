"""A GRU over tokens as a likelihood: small, autoregressive, conditioned on the latent sequence."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pyro_delta.data.sequences.spec import require_tokens
from pyro_delta.distributions.sequences import AutoregressiveTokens
from pyro_delta.errors import unknown_name
from pyro_delta.nn.latents import LatentMap
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count

Conditioning = Literal["causal", "full"]


class ConditionalGRU(Network):
    """Logits (B, T, V) of every token given those before it and z: embedding, GRU, linear layer.

    Token t uses {z_t : starts[t] ≤ t} (all of z with full conditioning). `forward` gives all positions in one
    teacher-forced pass; `start` and `step` give them one by one, with the GRU's state as the cache.

    Args:
        levels: V.
        length: T.
        starts: (n,) the token from which on each latent step may be used; None for the latent-free control.
        dims: d, size of a latent step.
        hidden: units of the GRU, and features of tokens and latents.
    """

    ends = ("out",)

    def __init__(self, levels: int, length: int, starts: Tensor | None, dims: int, *, hidden: int) -> None:
        super().__init__()
        self.levels, self.length = levels, length
        self.embed = nn.Embedding(levels + 1, hidden)  # one more, for what is before the first token
        self.latents = None if starts is None else LatentMap(dims, starts, positions=length, outputs=hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(2 * hidden, hidden)
        self.out = nn.Linear(hidden, levels)

    @autocast_inside
    def forward(self, x_bt: Tensor, z_bnd: Tensor) -> Tensor:
        """Tokens (B, T) and z (B, n, d) → logits (B, T, V)."""
        before_bt = torch.cat((torch.full_like(x_bt[:, :1], self.levels), x_bt[:, :-1]), dim=1)
        context_bth = self._context(z_bnd, len(x_bt))
        seen_bth, _ = self.gru(self.embed(before_bt) + context_bth)
        return self._logits(seen_bth, context_bth)

    def start(self, z_bnd: Tensor) -> dict[str, Tensor]:
        """Begins a cached generation."""
        context_bth = self._context(z_bnd, len(z_bnd))
        return {"context": context_bth, "state": context_bth.new_zeros(1, len(z_bnd), context_bth.shape[-1])}

    def step(self, state: dict[str, Tensor], t: int, previous_b: Tensor | None) -> Tensor:
        """Logits (B, V) of token t, given the one before it (None at the first)."""
        context_bh = state["context"][:, t]
        if previous_b is None:
            previous_b = torch.full((len(context_bh),), self.levels, device=context_bh.device)
        seen_b1h, state["state"] = self.gru((self.embed(previous_b) + context_bh).unsqueeze(1), state["state"])
        return self._logits(seen_b1h[:, 0], context_bh)

    def _context(self, z_bnd: Tensor, batch: int) -> Tensor:
        if self.latents is None:
            return self.out.weight.new_zeros(batch, self.length, self.gru.hidden_size)
        return self.latents(z_bnd)

    def _logits(self, seen: Tensor, context: Tensor) -> Tensor:
        return self.out(nn.functional.silu(self.head(torch.cat((seen, context), dim=-1))))


class GRULikelihood(nn.Module):
    """GRU over tokens, a small autoregressive likelihood for trying: `forward(z)` returns `AutoregressiveTokens`.

    Args:
        spec: of the sequences.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": token t sees {z_s : starts[s] ≤ t}; "full": every token sees all of z.
        hidden: units.

    Raises:
        UserError: if the data are no sequences of tokens, or for an unknown conditioning.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences:GRULikelihood"

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        hidden: Count = 64,
    ) -> None:
        super().__init__()
        if conditioning not in get_args(Conditioning):
            raise unknown_name("likelihood.conditioning", conditioning, get_args(Conditioning))
        tokens = require_tokens(spec, "likelihood", "gru")
        self.conditioning = conditioning
        starts = prior.starts if conditioning == "causal" else torch.zeros_like(prior.starts)
        self.network = ConditionalGRU(
            tokens.levels, tokens.length, starts if use_latents else None, prior().event_shape[-1], hidden=hidden
        )

    def forward(self, z: Tensor) -> AutoregressiveTokens:
        """Z (…, n, d) → a distribution over sequences (…, T)."""
        return AutoregressiveTokens(self.network, z)
