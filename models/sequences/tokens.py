"""What likelihoods of tokens share: tokens in, z as a context, logits out, cached generation."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from pyro_delta.data.sequences.spec import TokenSpec, require_tokens
from pyro_delta.distributions.sequences import AutoregressiveTokens
from pyro_delta.errors import unknown_name
from pyro_delta.nn.latents import LatentMap
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.protocol import Prior, Spec

Conditioning = Literal["causal", "full"]
"""Which latent steps a position sees: those that begin at or before it, or all of them."""


class Trunk(Protocol):
    """A causal network over positions: what comes out at one hears those up to it."""

    def __call__(self, v_bth: Tensor) -> Tensor:
        """All positions at once: (B, T, h) → (B, T, h)."""

    def start(self, v_bh: Tensor) -> dict[str, Tensor]:
        """A state before the first position, for inputs like v."""

    def step(self, state: dict[str, Tensor], position: int, v_bh: Tensor) -> Tensor:
        """One position after the other: (B, h) → (B, h)."""


class ConditionalTokens(Network):
    """Logits of every token given those before it and z: embedding, trunk, linear layers.

    There is a token at each of T positions, or K of them, voices, each of which hears those above it at its position.
    The trunk goes over positions, and reads the sum of the embeddings of a position's voices. Position p uses
    {z_t : starts[t] ≤ p} (all of z with full conditioning). `forward` gives all tokens in one teacher-forced pass;
    `start` and `step` give them one by one, with the trunk's state as the cache.

    Args:
        spec: of the tokens: V, and the shape (T,) or (T, K).
        starts: (n,) the position from which on each latent step may be used; None for the latent-free control.
        dims: d, size of a latent step.
        trunk: of `hidden` features.
        hidden: features of tokens, latents and the trunk.
    """

    ends = ("out",)

    trunk: Any

    def __init__(self, spec: TokenSpec, starts: Tensor | None, dims: int, trunk: Trunk, *, hidden: int) -> None:
        super().__init__()
        self.levels, self.shape, self.end = spec.levels, spec.shape, spec.end
        self.voices = math.prod(self.shape[1:])
        # One more of each voice, for what is before the first position.
        self.embed = nn.Embedding(self.voices * (self.levels + 1), hidden)
        self.latents = None if starts is None else LatentMap(dims, starts, positions=self.shape[0], outputs=hidden)
        self.trunk = trunk
        self.head = nn.Linear(2 * hidden, self.voices * hidden)
        self.above = nn.Embedding((self.voices - 1) * self.levels, hidden) if self.voices > 1 else None
        self.out = nn.Linear(hidden, self.levels)

    @autocast_inside
    def forward(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        """Tokens (B, *shape), or fewer positions of them, and z (B, n, d) → logits (B, *shape, V)."""
        x_btk = x.reshape(len(x), -1, self.voices)
        before_btk = torch.cat((torch.full_like(x_btk[:, :1], self.levels), x_btk[:, :-1]), dim=1)
        context_bth = self._context(z_bnd, x_btk.shape[1])
        seen_bth = self.trunk(self._embedded(before_btk).sum(-2) + context_bth)
        hidden_btkh = self._heads(seen_bth, context_bth)
        if self.above is not None:
            rows_k = torch.arange(self.voices - 1, device=x.device) * self.levels
            above_btkh = self.above(x_btk[..., :-1] + rows_k).cumsum(-2)
            hidden_btkh = hidden_btkh + nn.functional.pad(above_btkh, (0, 0, 1, 0))
        return self._logits(hidden_btkh).reshape(*x.shape, self.levels)

    def start(self, z_bnd: Tensor) -> dict[str, Any]:
        """Begins a cached generation."""
        context_bth = self._context(z_bnd, self.shape[0])
        nothing_k = torch.full((self.voices,), self.levels, device=z_bnd.device)
        return {
            "context": context_bth,
            "trunk": self.trunk.start(context_bth[:, 0]),
            "before": self._embedded(nothing_k).sum(0).expand_as(context_bth[:, 0]),
        }

    def step(self, state: dict[str, Any], i: int, previous_b: Tensor | None) -> Tensor:
        """Logits (B, V) of token i = t·K + k, given the one before it (None at the first)."""
        (t, voice), context_bth = divmod(i, self.voices), state["context"]
        if previous_b is not None:
            last = (i - 1) % self.voices
            embedded_bh = self.embed(previous_b + last * (self.levels + 1))
            state["before"] = state["before"] + embedded_bh if last else embedded_bh
        if voice == 0:
            context_bh = context_bth[:, t]
            seen_bh = self.trunk.step(state["trunk"], t, state["before"] + context_bh)
            state["heads"] = self._heads(seen_bh, context_bh)
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

    def _context(self, z_bnd: Tensor, positions: int) -> Tensor:
        """What z says to the first positions, (B, T, h)."""
        if self.latents is None:
            return self.out.weight.new_zeros(len(z_bnd), positions, self.embed.embedding_dim)
        return self.latents(z_bnd, positions)

    def _heads(self, seen: Tensor, context: Tensor) -> Tensor:
        """(…, h) of the trunk and of z → (…, K, h)."""
        return self.head(torch.cat((seen, context), dim=-1)).unflatten(-1, (self.voices, -1))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.out(nn.functional.silu(hidden))


class TokenLikelihood(nn.Module):
    """Base class of likelihoods of tokens: a subclass gives the trunk.

    With lengths, what follows the end of a sequence is not scored, and drawn as token 0.

    Args:
        spec: of the sequences: tokens, or voices of them.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        trunk: of `hidden` features.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every token sees all of z.
        hidden: features.

    Raises:
        UserError: if the data are no sequences of tokens, or for an unknown conditioning.
    """

    name: ClassVar[str]

    starts: Tensor

    def __init__(
        self, spec: Spec, prior: Prior, trunk: Trunk, *, use_latents: bool, conditioning: Conditioning, hidden: int
    ) -> None:
        super().__init__()
        if conditioning not in get_args(Conditioning):
            raise unknown_name("likelihood.conditioning", conditioning, get_args(Conditioning))
        tokens = require_tokens(spec, "likelihood", self.name)
        self.conditioning = conditioning
        starts = prior.starts if conditioning == "causal" else torch.zeros_like(prior.starts)
        dims = prior().event_shape[-1]
        self.network = ConditionalTokens(tokens, starts if use_latents else None, dims, trunk, hidden=hidden)
        self.register_buffer("starts", prior.starts.clone(), persistent=False)

    def forward(self, z: Tensor, lengths: Tensor | None = None) -> AutoregressiveTokens:
        """Z (…, n, d), and positions (…) of each sequence if it has a length, → a distribution over sequences."""
        if lengths is not None:  # no token hears the padding, also with full conditioning
            z = torch.where((self.starts < lengths.unsqueeze(-1)).unsqueeze(-1), z, 0.0)
        return AutoregressiveTokens(self.network, z, lengths)
