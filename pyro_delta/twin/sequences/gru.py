"""Twins of the GRU likelihood and guide, written from `docs/architecture.md`: networks over tokens.

B sequences of T positions, each of one token or of those of K voices, V levels; n latent steps of d dimensions, of
which step t belongs to the sequence from position starts[t] on; h units. Weights have torch's names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pyro_delta.data.sequences.spec import require_tokens
from pyro_delta.protocol import Spec
from pyro_delta.twin.latents import LatentMap
from pyro_delta.twin.layers import linear
from pyro_delta.twin.sequences.distributions import AutoregressiveTokens
from pyro_delta.twin.sequences.layers import GRU, Embedding
from pyro_delta.twin.sequences.sequence_guide import BackwardGRU, SequenceGuide, inside


class ConditionalGRU(nnx.Module):
    """Logits of every token given those before it and z: position t sees the steps with starts ≤ t.

    Args:
        levels: V.
        shape: (T,) or (T, K).
        starts: of each latent step; None if z is ignored.
        dims: d.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(
        self,
        levels: int,
        shape: tuple[int, ...],
        starts: Sequence[int] | None,
        dims: int,
        *,
        hidden: int,
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        self.levels, self.shape, self.hidden = levels, tuple(shape), hidden
        self.voices = math.prod(shape[1:])
        # One more of each voice, for what is before the first position.
        self.embed = Embedding(self.voices * (levels + 1), hidden, rngs=rngs)
        if starts is not None:
            self.latents = LatentMap(dims, starts, positions=shape[0], outputs=hidden, rngs=rngs)
        self.gru = GRU(hidden, hidden, rngs=rngs)
        self.head = linear(2 * hidden, self.voices * hidden, rngs=rngs)
        if self.voices > 1:
            self.above = Embedding((self.voices - 1) * levels, hidden, rngs=rngs)
        self.out = linear(hidden, levels, rngs=rngs)

    def __call__(self, x: Array, z_bnd: Array) -> Array:
        """Tokens (B, *shape) and z (B, n, d) → logits (B, *shape, V)."""
        x_btk = x.astype(jnp.int32).reshape(len(x), -1, self.voices)
        before_btk = jnp.pad(x_btk, ((0, 0), (1, 0), (0, 0)), constant_values=self.levels)[:, :-1]
        context_bth = self._context(z_bnd)
        seen_bth = self.gru(self._read(before_btk) + context_bth)
        heads = self._heads(seen_bth, context_bth)
        logits = [self._logits(heads, x_btk[..., :voice]) for voice in range(self.voices)]
        return jnp.stack(logits, axis=-2).reshape(*x.shape, self.levels)

    def generate(self, z_bnd: Array, choose: Any, inputs_tbk: Any) -> Array:
        """Writes sequences token by token, each by `choose(logits, input)`: integers (B, T, K)."""

        def step(carry: Any, here: Any) -> Any:
            state_bh, before_bk = carry
            context_bh, given_bk = here
            state_bh = self.gru.step(state_bh, self._read(before_bk) + context_bh)
            heads, chosen_bk = self._heads(state_bh, context_bh), before_bk[:, :0]
            for voice in range(self.voices):
                chosen_b = choose(self._logits(heads, chosen_bk), given_bk[:, voice]).astype(jnp.int32)
                chosen_bk = jnp.concatenate([chosen_bk, chosen_b[:, None]], axis=1)
            return (state_bh, chosen_bk), chosen_bk

        start = (self.gru.start(len(z_bnd)), jnp.full((len(z_bnd), self.voices), self.levels, jnp.int32))
        return jax.lax.scan(step, start, (self._context(z_bnd).swapaxes(0, 1), inputs_tbk))[1].swapaxes(0, 1)

    def _context(self, z_bnd: Array) -> Array:
        if hasattr(self, "latents"):
            return self.latents(z_bnd)
        return jnp.zeros((len(z_bnd), self.shape[0], self.hidden), self.out.bias[...].dtype)

    def _read(self, tokens_k: Array) -> Array:
        """The sum of the embeddings of the voices (..., K)."""
        return jnp.sum(self.embed(tokens_k + jnp.arange(self.voices) * (self.levels + 1)), axis=-2)

    def _heads(self, seen: Array, context: Array) -> Array:
        """What the logits of each voice are made of, before it hears the others: (..., K, h)."""
        both = self.head(jnp.concatenate([seen, context], axis=-1))
        return both.reshape(*both.shape[:-1], self.voices, self.hidden)

    def _logits(self, heads: Array, above_k: Array) -> Array:
        """Logits of the voice below those that have sung `above_k`, (..., k): (..., V)."""
        voice = above_k.shape[-1]
        hidden = heads[..., voice, :]
        for k in range(voice):
            hidden = hidden + self.above(above_k[..., k] + k * self.levels)
        return self.out(jax.nn.silu(hidden))


class BackwardTokens(BackwardGRU):
    """A `BackwardGRU` that reads the sums of the embeddings of a position's voices.

    Args:
        levels: V.
        voices: K.
        starts: of each latent step.
        outputs: numbers for each step.
        hidden: h.
        rngs: of the initial values.
    """

    embed: Embedding

    def __init__(
        self, levels: int, voices: int, starts: Sequence[int], outputs: int, *, hidden: int, rngs: nnx.Rngs
    ) -> None:
        """See the class."""
        embed = Embedding(voices * levels, hidden, rngs=rngs)
        super().__init__(starts, outputs, hidden=hidden, rngs=rngs, embed=embed)
        self.levels, self.voices = levels, voices

    def read(self, x: Array) -> Array:
        """Tokens (B, *shape) → (B, T, h)."""
        x_btk = x.astype(jnp.int32).reshape(len(x), -1, self.voices)
        return jnp.sum(self.embed(x_btk + jnp.arange(self.voices) * self.levels), axis=-2)


# --- Programs ---


class GRULikelihood(nnx.Module):
    """p(x | z) by a GRU that is told of z.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts` and the event shape are read.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a token sees the steps with starts up to it, or `full`, where it sees all.
        hidden: h.
    """

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool = True,
        conditioning: Literal["causal", "full"] = "causal",
        hidden: int = 64,
    ) -> None:
        """See the class."""
        tokens = require_tokens(spec, "likelihood", "gru")
        starts = np.asarray(prior.starts[...]) * (conditioning == "causal")
        self.starts = tuple(np.asarray(prior.starts[...]).tolist())
        self.network = ConditionalGRU(
            tokens.levels,
            tokens.shape,
            starts.tolist() if use_latents else None,
            prior().event_shape[-1],
            hidden=hidden,
            rngs=rngs,
        )

    def __call__(self, z: Array, lengths: Any = None) -> AutoregressiveTokens:
        """p(x | z) for latents (..., n, d), of sequences of so many positions (...)."""
        if lengths is not None:
            z = jnp.where(inside(self.starts, lengths)[..., None], z, 0)
        return AutoregressiveTokens(self.network, z, lengths)


class GRUGuide(SequenceGuide):
    """A `SequenceGuide` that reads tokens.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts`, the event shape and the density are read.
        rngs: of the initial weights.
        hidden: h.
    """

    def __init__(self, spec: Spec, prior: Any, *, rngs: nnx.Rngs, hidden: int = 64) -> None:
        """See the class."""
        tokens = require_tokens(spec, "guide", "gru")
        starts, outputs = np.asarray(prior.starts[...]).tolist(), 2 * prior().event_shape[-1]
        voices = math.prod(tokens.shape[1:])
        super().__init__(BackwardTokens(tokens.levels, voices, starts, outputs, hidden=hidden, rngs=rngs), prior)
