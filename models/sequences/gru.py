"""A GRU over tokens as a likelihood: small, autoregressive, conditioned on the latent sequence."""

from __future__ import annotations

import math
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
    """Logits of every token given those before it and z: embedding, GRU, linear layers.

    There is a token at each of T positions, or K of them, voices, each of which hears those above it at its position.
    The GRU goes over positions, and reads the sum of the embeddings of a position's voices. Position p uses
    {z_t : starts[t] ≤ p} (all of z with full conditioning). `forward` gives all tokens in one teacher-forced pass;
    `start` and `step` give them one by one, with the GRU's state as the cache.

    Args:
        levels: V.
        shape: (T,) or (T, K).
        starts: (n,) the position from which on each latent step may be used; None for the latent-free control.
        dims: d, size of a latent step.
        hidden: units of the GRU, and features of tokens and latents.
    """

    ends = ("out",)

    def __init__(self, levels: int, shape: tuple[int, ...], starts: Tensor | None, dims: int, *, hidden: int) -> None:
        super().__init__()
        self.levels, self.shape, self.voices = levels, shape, math.prod(shape[1:])
        # One more of each voice, for what is before the first position.
        self.embed = nn.Embedding(self.voices * (levels + 1), hidden)
        self.latents = None if starts is None else LatentMap(dims, starts, positions=shape[0], outputs=hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.head = nn.Linear(2 * hidden, self.voices * hidden)
        self.above = nn.Embedding((self.voices - 1) * levels, hidden) if self.voices > 1 else None
        self.out = nn.Linear(hidden, levels)

    @autocast_inside
    def forward(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        """Tokens (B, *shape), or fewer positions of them, and z (B, n, d) → logits (B, *shape, V)."""
        x_btk = x.reshape(len(x), -1, self.voices)
        before_btk = torch.cat((torch.full_like(x_btk[:, :1], self.levels), x_btk[:, :-1]), dim=1)
        context_bth = self._context(z_bnd, len(x))[:, : x_btk.shape[1]]
        seen_bth, _ = self.gru(self._embedded(before_btk).sum(-2) + context_bth)
        hidden_btkh = self._heads(seen_bth, context_bth)
        if self.above is not None:
            rows_k = torch.arange(self.voices - 1, device=x.device) * self.levels
            above_btkh = self.above(x_btk[..., :-1] + rows_k).cumsum(-2)
            hidden_btkh = hidden_btkh + nn.functional.pad(above_btkh, (0, 0, 1, 0))
        return self._logits(hidden_btkh).reshape(*x.shape, self.levels)

    def start(self, z_bnd: Tensor) -> dict[str, Tensor]:
        """Begins a cached generation."""
        context_bth = self._context(z_bnd, len(z_bnd))
        nothing_k = torch.full((self.voices,), self.levels, device=z_bnd.device)
        return {
            "context": context_bth,
            "state": context_bth.new_zeros(1, len(z_bnd), context_bth.shape[-1]),
            "before": self._embedded(nothing_k).sum(0).expand_as(context_bth[:, 0]),
        }

    def step(self, state: dict[str, Tensor], i: int, previous_b: Tensor | None) -> Tensor:
        """Logits (B, V) of token i = t·K + k, given the one before it (None at the first)."""
        (t, voice), context_bth = divmod(i, self.voices), state["context"]
        if previous_b is not None:
            last = (i - 1) % self.voices
            embedded_bh = self.embed(previous_b + last * (self.levels + 1))
            state["before"] = state["before"] + embedded_bh if last else embedded_bh
        if voice == 0:
            context_bh = context_bth[:, t]
            seen_b1h, state["state"] = self.gru((state["before"] + context_bh).unsqueeze(1), state["state"])
            state["heads"] = self._heads(seen_b1h[:, 0], context_bh)
        else:
            assert self.above is not None
            assert previous_b is not None
            above_bh = self.above(previous_b + (voice - 1) * self.levels)
            state["above"] = state["above"] + above_bh if voice > 1 else above_bh
        hidden_bh = state["heads"][:, voice]
        return self._logits(hidden_bh + state["above"] if voice else hidden_bh)

    def _embedded(self, x_k: Tensor) -> Tensor:
        """Tokens (…, K) → (…, K, h), by rows of each voice's own."""
        return self.embed(x_k + torch.arange(self.voices, device=x_k.device) * (self.levels + 1))

    def _context(self, z_bnd: Tensor, batch: int) -> Tensor:
        if self.latents is None:
            return self.out.weight.new_zeros(batch, self.shape[0], self.gru.hidden_size)
        return self.latents(z_bnd)

    def _heads(self, seen: Tensor, context: Tensor) -> Tensor:
        """(…, h) of the GRU and of z → (…, K, h)."""
        return self.head(torch.cat((seen, context), dim=-1)).unflatten(-1, (self.voices, -1))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.out(nn.functional.silu(hidden))


class GRULikelihood(nn.Module):
    """GRU over tokens, a small autoregressive likelihood: `forward(z)` returns `AutoregressiveTokens`.

    With lengths, what follows the end of a sequence is not scored, and drawn as token 0.

    Args:
        spec: of the sequences: tokens, or voices of them.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every token sees all of z.
        hidden: units.

    Raises:
        UserError: if the data are no sequences of tokens, or for an unknown conditioning.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences.gru:GRULikelihood"

    starts: Tensor

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
            tokens.levels, tokens.shape, starts if use_latents else None, prior().event_shape[-1], hidden=hidden
        )
        self.register_buffer("starts", prior.starts.clone(), persistent=False)

    def forward(self, z: Tensor, lengths: Tensor | None = None) -> AutoregressiveTokens:
        """Z (…, n, d), and positions (…) of each sequence if it has a length, → a distribution over sequences."""
        if lengths is not None:  # no token hears the padding, also with full conditioning
            z = torch.where((self.starts < lengths.unsqueeze(-1)).unsqueeze(-1), z, 0.0)
        return AutoregressiveTokens(self.network, z, lengths)
