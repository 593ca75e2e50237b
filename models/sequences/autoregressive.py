"""Tokens or numbers in, z as a context, parameters out, cached generation: a network around a trunk."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pyro_delta.data.sequences.spec import TokenSpec
from pyro_delta.data.series.spec import SeriesSpec, require_sequences
from pyro_delta.distributions.numbers import AutoregressiveNumbers
from pyro_delta.distributions.sequences import AutoregressiveTokens
from pyro_delta.models.conditioning import Conditioning
from pyro_delta.models.sequences.sequence_likelihood import SequenceLikelihood
from pyro_delta.nn.latents import LatentMap
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.nn.sequences.tables import NumberTable, TokenTable, Units, last_known
from pyro_delta.protocol import Prior, Spec

MIXTURES = 5
"""Logistics of a number."""


class Trunk(Protocol):
    """A causal network over positions: what comes out at one hears those up to it."""

    def __call__(self, v_bth: Tensor) -> Tensor:
        """All positions at once: (B, T, h) → (B, T, h)."""

    def start(self, v_bh: Tensor) -> dict[str, Tensor]:
        """A state before the first position, for inputs like v."""

    def take(self, state: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """The state of the sequences at indices, in that order."""

    def step(self, state: dict[str, Tensor], position: int, v_bh: Tensor) -> Tensor:
        """One position after the other: (B, h) → (B, h)."""


class ConditionalSequence(Network):
    """Parameters of every token or number given those before it and z: embedding, trunk, linear layers.

    There is one at each of T positions, or K of them, voices (variables of a series), each of which hears those before
    it at its position. The trunk goes over positions, and reads the sum of the embeddings of a position's voices.
    Position p uses {z_t : starts[t] ≤ p} (all of z with full conditioning). `forward` gives all in one teacher-forced
    pass; `start` and `step` give them one by one, with the trunk's state as the cache.

    Parameters are the logits of V tokens, or what an `AutoregressiveNumbers` takes. A number that is missing is NaN.

    Args:
        spec: of the data, (T,) or (T, K).
        starts: (n,) the position from which on each latent step may be used; None for the latent-free control.
        dims: d, size of a latent step.
        trunk: of `hidden` features.
        hidden: features of numbers, latents and the trunk.
    """

    ends = ("out",)

    trunk: Any

    def __init__(
        self, spec: TokenSpec | SeriesSpec, starts: Tensor | None, dims: int, trunk: Trunk, *, hidden: int
    ) -> None:
        super().__init__()
        self.shape, self.voices = spec.shape, math.prod(spec.shape[1:])
        self.units, self.end = Units.of(spec), getattr(spec, "end", None)
        # One more token of each voice, for what is before the first position; of numbers, all are missing there.
        self.levels, self.resolution = spec.levels or 0, spec.resolution
        self.before = math.nan if self.units is not None else self.levels
        self.embed = self._table(self.voices, self.levels + 1, hidden)
        self.latents = None if starts is None else LatentMap(dims, starts, positions=self.shape[0], outputs=hidden)
        self.trunk = trunk
        self.head = nn.Linear(2 * hidden, self.voices * hidden)
        self.above = self._table(self.voices - 1, self.levels, hidden) if self.voices > 1 else None
        self.out = nn.Linear(hidden, self.levels or 3 * MIXTURES)

    @autocast_inside
    def forward(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        """Data (B, *shape), or fewer positions of them, and z (B, n, d) → parameters (B, *shape, P)."""
        x_btk = x.reshape(x.shape[0], -1, self.voices)
        here_btk = last_btk = x_btk
        if self.units is not None:
            x_btk = self.units.standardised(x_btk)
            last_btk = last_known(x_btk)
            here_btk = x_btk - last_btk
        before_btk = torch.cat((torch.full_like(x_btk[:, :1], self.before), x_btk[:, :-1]), dim=1)
        context_bth = self._context(z_bnd, x_btk.shape[1])
        seen_bth = self.trunk(self.embed(before_btk).sum(-2) + context_bth)
        hidden_btkh = self._heads(seen_bth, context_bth)
        if self.above is not None:
            above_btkh = self.above(here_btk[..., :-1]).cumsum(-2)
            hidden_btkh = hidden_btkh + nn.functional.pad(above_btkh, (0, 0, 1, 0))
        return self._of_heads(hidden_btkh, last_btk).reshape(*x.shape, -1)

    def start(self, z_bnd: Tensor) -> dict[str, Any]:
        """Begins a cached generation."""
        context_bth = self._context(z_bnd, self.shape[0])
        nothing_k = torch.full((self.voices,), self.before, device=z_bnd.device)
        return {
            "context": context_bth,
            "trunk": self.trunk.start(context_bth[:, 0]),
            "before": self.embed(nothing_k).sum(0).expand_as(context_bth[:, 0]),  # of voices since the last position
            "last": context_bth.new_zeros(z_bnd.shape[0], self.voices),
        }

    def take(self, state: dict[str, Any], order: Tensor) -> dict[str, Any]:
        """The state of the sequences at indices, in that order."""
        of_trunk = self.trunk.take(state["trunk"], order)
        return {name: of_trunk if name == "trunk" else values[order] for name, values in state.items()}

    def step(self, state: dict[str, Any], i: int, previous_b: Tensor | None) -> Tensor:
        """Parameters (B, P) of token or number i = t·K + k, given the one before it (None at the first)."""
        t, voice = i // self.voices, i % self.voices  # divmod would not do for a number that is traced
        if voice == 0:
            return self.step_position(state, t, previous_b)
        assert previous_b is not None
        return self.step_voice(state, voice, previous_b)

    def step_position(self, state: dict[str, Any], t: int, previous_b: Tensor | None) -> Tensor:
        """Parameters (B, P) of the first voice at position t, given the last voice before it (None at the first)."""
        if previous_b is not None:
            self._hear(state, self.voices - 1, previous_b)
        context_bh = state["context"][:, t]
        seen_bh = self.trunk.step(state["trunk"], t, state["before"] + context_bh)
        state["heads"] = self._heads(seen_bh, context_bh)
        state["before"] = state["above"] = torch.zeros_like(context_bh)
        return self._of_heads(state["heads"][:, 0], state["last"][:, 0], 0)

    def step_voice(self, state: dict[str, Any], voice: int, previous_b: Tensor) -> Tensor:
        """Parameters (B, P) of a voice but the first at the position of the step before, given the voice before it."""
        here_b = self._hear(state, voice - 1, previous_b)
        assert self.above is not None
        state["above"] = state["above"] + self.above(here_b.unsqueeze(1), voice - 1)[:, 0]
        return self._of_heads(state["heads"][:, voice] + state["above"], state["last"][:, voice], voice)

    def _hear(self, state: dict[str, Any], voice: int, x_b: Tensor) -> Tensor:
        """Notes down a voice for the next position; what those above it are to hear of it, (B,)."""
        here_b = x_b
        if self.units is not None:
            x_b, last_b = self.units.standardised(x_b, voice), state["last"][:, voice]
            here_b = x_b - last_b
            state["last"] = state["last"].clone()
            state["last"].select(1, voice).copy_(torch.where(x_b.isnan(), last_b, x_b))
        state["before"] = state["before"] + self.embed(x_b.unsqueeze(1), voice)[:, 0]
        return here_b

    def _table(self, voices: int, levels: int, hidden: int) -> TokenTable | NumberTable:
        return TokenTable(voices, levels, hidden) if self.units is None else NumberTable(voices, hidden)

    def _context(self, z_bnd: Tensor, positions: int) -> Tensor:
        """What z says to the first positions, (B, T, h)."""
        if self.latents is None:
            return self.out.weight.new_zeros(z_bnd.shape[0], positions, self.head.in_features // 2)
        return self.latents(z_bnd, positions)

    def _heads(self, seen: Tensor, context: Tensor) -> Tensor:
        """(…, h) of the trunk and of z → (…, K, h)."""
        return self.head(torch.cat((seen, context), dim=-1)).unflatten(-1, (self.voices, -1))

    def _of_heads(self, hidden: Tensor, last: Tensor, voice: int | slice = slice(None)) -> Tensor:
        """Of all voices (…, K, h), or of one (…, h), whose means count from what was last known of them."""
        raw = self.out(nn.functional.silu(hidden))
        return raw if self.units is None else self.units.mixture(raw, last, voice)


class TrunkLikelihood(SequenceLikelihood):
    """Base class of likelihoods of tokens or numbers: a subclass names itself, and gives the trunk.

    Args:
        spec: of the sequences: tokens, voices of them, or series.
        prior: of the latents, as of `SequenceLikelihood`.
        trunk: of `hidden` features.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every position sees all of z.
        hidden: features.

    Raises:
        UserError: if the data are no sequences, or for an unknown conditioning.
    """

    name: ClassVar[str]

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        trunk: Trunk,
        *,
        use_latents: bool,
        conditioning: Conditioning,
        hidden: int,
    ) -> None:
        sequences = require_sequences(spec, "likelihood", self.name)
        super().__init__(
            sequences,
            prior,
            AutoregressiveNumbers if isinstance(spec, SeriesSpec) else AutoregressiveTokens,
            lambda starts, dims: ConditionalSequence(sequences, starts, dims, trunk, hidden=hidden),
            use_latents=use_latents,
            conditioning=conditioning,
        )
