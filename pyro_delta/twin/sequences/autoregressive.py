"""What twins of likelihoods of sequences share, written from `docs/architecture.md`: a network around a trunk.

B sequences of T positions, each of K voices: tokens of V levels, or numbers of variables; n latent steps of d
dimensions, of which step t belongs to the sequence from position starts[t] on; h features. Weights have torch's names
and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pyro_delta.data.series.spec import require_sequences
from pyro_delta.protocol import Spec
from pyro_delta.twin.conditioning import Conditioning, Told
from pyro_delta.twin.latents import LatentMap
from pyro_delta.twin.layers import linear
from pyro_delta.twin.sequences.distributions import (
    AutoregressiveNumbers,
    AutoregressiveSequence,
    AutoregressiveTokens,
)
from pyro_delta.twin.sequences.layers import NumberTable, TokenTable, Units

MIXTURES = 5
"""Logistics of a number."""


class ConditionalSequence(nnx.Module):
    """Parameters of everything given what is before it and z: position t sees the steps with starts ≤ t.

    Args:
        spec: of the sequences.
        starts: of each latent step; None if z is ignored.
        dims: d.
        trunk: causal, of h features; `start` and `step` are its recurrence.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(
        self, spec: Any, starts: Sequence[int] | None, dims: int, trunk: Any, *, hidden: int, rngs: nnx.Rngs
    ) -> None:
        """See the class."""
        self.shape, self.hidden, self.levels = tuple(spec.shape), hidden, spec.levels or 0
        self.voices, self.units, self.resolution = math.prod(spec.shape[1:]), Units.of(spec), spec.resolution
        self.end = getattr(spec, "end", None)

        def table(voices: int, levels: int) -> Any:
            if self.units is not None:
                return NumberTable(voices, hidden, rngs=rngs)
            return TokenTable(voices, levels, hidden, rngs=rngs)

        # One more token of each voice, for what is before the first position.
        self.embed = table(self.voices, self.levels + 1)
        if starts is not None:
            self.latents = LatentMap(dims, starts, positions=spec.shape[0], outputs=hidden, rngs=rngs)
        self.trunk = trunk
        self.head = linear(2 * hidden, self.voices * hidden, rngs=rngs)
        if self.voices > 1:
            self.above = table(self.voices - 1, self.levels)
        self.out = linear(hidden, self.levels or 3 * MIXTURES, rngs=rngs)

    def __call__(self, x: Array, z_bnd: Array) -> Array:
        """Sequences (B, *shape) and z (B, n, d) → parameters (B, *shape, P)."""
        x_btk = self._standard(x.reshape(len(x), -1, self.voices))
        before_btk = jnp.concatenate([self._nothing(x_btk[:, :1]), x_btk[:, :-1]], axis=1)
        last_btk = _carried(before_btk) if self.units is not None else jnp.zeros_like(before_btk)
        context_bth = self._context(z_bnd)
        seen_bth = self.trunk(jnp.sum(self.embed(before_btk), axis=-2) + context_bth)
        heads = self._heads(seen_bth, context_bth)
        rows = [self._of_voice(heads, x_btk[..., :voice], last_btk) for voice in range(self.voices)]
        return jnp.stack(rows, axis=-2).reshape(*x.shape, -1)

    def generate(self, z_bnd: Array, choose: Any, inputs_tbk: Any) -> Array:
        """Writes sequences one by one, each by `choose(parameters, input)`: (B, T, K). Inputs may be a pytree."""

        def step(carry: Any, here: Any) -> Any:
            state, before_bk, last_bk = carry
            position, context_bh, given_bk = here
            state, seen_bh = self.trunk.step(state, position, jnp.sum(self.embed(before_bk), axis=-2) + context_bh)
            heads, chosen, standard_bk = self._heads(seen_bh, context_bh), [], before_bk[:, :0]
            for voice in range(self.voices):
                given_b = jax.tree.map(lambda values, voice=voice: values[:, voice], given_bk)
                chosen.append(choose(self._of_voice(heads, standard_bk, last_bk), given_b))
                chosen_bk = jnp.stack(chosen, axis=1).astype(before_bk.dtype)
                standard_bk = self._standard(chosen_bk)
            if self.units is not None:
                last_bk = jnp.where(jnp.isnan(standard_bk), last_bk, standard_bk)
            return (state, standard_bk, last_bk), chosen_bk

        context_bth = self._context(z_bnd)
        number = jnp.int32 if self.units is None else context_bth.dtype
        last_bk = jnp.zeros((len(z_bnd), self.voices), number)
        start = (self.trunk.start(context_bth[:, 0]), self._nothing(last_bk), last_bk)
        here = (jnp.arange(self.shape[0]), context_bth.swapaxes(0, 1), inputs_tbk)
        return jax.lax.scan(step, start, here)[1].swapaxes(0, 1)

    def _nothing(self, like: Array) -> Array:
        """What is before the first position: a token of its own, or numbers that are all missing."""
        return jnp.full_like(like, self.levels if self.units is None else jnp.nan)

    def _standard(self, x_k: Array) -> Array:
        """Tokens as integers, numbers standardised (..., k), of the first k voices."""
        if self.units is None:
            return x_k.astype(jnp.int32)
        k = x_k.shape[-1]
        return Units(self.units.location[:k], self.units.scale[:k]).standardised(x_k)

    def _context(self, z_bnd: Array) -> Array:
        if hasattr(self, "latents"):
            return self.latents(z_bnd)
        return jnp.zeros((len(z_bnd), self.shape[0], self.hidden), self.out.bias[...].dtype)

    def _heads(self, seen: Array, context: Array) -> Array:
        """What the parameters of each voice are made of, before it hears the others: (..., K, h)."""
        both = self.head(jnp.concatenate([seen, context], axis=-1))
        return both.reshape(*both.shape[:-1], self.voices, self.hidden)

    def _of_voice(self, heads: Array, above_k: Array, last: Array) -> Array:
        """Parameters of the voice after those of `above_k` (..., k): (..., P)."""
        voice = above_k.shape[-1]
        hidden = heads[..., voice, :]
        if voice:
            heard_k = above_k if self.units is None else above_k - last[..., :voice]
            hidden = hidden + jnp.sum(self.above(heard_k), axis=-2)
        raw = self.out(jax.nn.silu(hidden))
        return raw if self.units is None else self.units.mixture(raw, last[..., voice], voice)


def _carried(before_btk: Array) -> Array:
    """The last number that was known up to each position (B, T, K); 0 where there was none."""

    def step(last_bk: Array, here_bk: Array) -> tuple[Array, Array]:
        last_bk = jnp.where(jnp.isnan(here_bk), last_bk, here_bk)
        return last_bk, last_bk

    return jax.lax.scan(step, jnp.zeros_like(before_btk[:, 0]), before_btk.swapaxes(0, 1))[1].swapaxes(0, 1)


class SequenceLikelihood(nnx.Module):
    """p(x | z) by a trunk that is told of z; a subclass names itself, and gives the trunk.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts` and the event shape are read.
        trunk: of h features.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a position sees the steps with starts up to it, or `full`, where it sees all.
        hidden: h.
    """

    name: ClassVar[str]

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        trunk: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool,
        conditioning: Conditioning,
        hidden: int,
    ) -> None:
        """See the class."""
        sequences = require_sequences(spec, "likelihood", self.name)
        self.told = Told(spec, prior, conditioning, use_latents=use_latents, rngs=rngs)
        self.network = ConditionalSequence(sequences, self.told.seen, self.told.dims, trunk, hidden=hidden, rngs=rngs)

    def __call__(
        self, z: Array, lengths: Any = None, mask: Any = None, condition: Any = None
    ) -> AutoregressiveSequence:
        """p(x | z) for latents (..., n, d), of sequences of so many positions (...), known as masked."""
        kind = AutoregressiveTokens if self.network.units is None else AutoregressiveNumbers
        return kind(self.network, self.told(z, lengths, condition), lengths, mask)
