"""What twins over tokens share, written from `docs/architecture.md`: networks around a trunk, and their programs.

B sequences of T positions, each of one token or of those of K voices, V levels; n latent steps of d dimensions, of
which step t belongs to the sequence from position starts[t] on; h features. Weights have torch's names and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from flax import nnx
from jax import Array
from numpyro.distributions import Independent, Normal

from pyro_delta.data.sequences.spec import TokenSpec, require_tokens
from pyro_delta.protocol import Spec
from pyro_delta.twin.latents import LatentMap
from pyro_delta.twin.layers import linear, positive
from pyro_delta.twin.rate import minimising_factor
from pyro_delta.twin.sequences.distributions import AutoregressiveTokens
from pyro_delta.twin.sequences.layers import Embedding
from pyro_delta.twin.variables import Buffer

Conditioning = Literal["causal", "full"]


class ConditionalTokens(nnx.Module):
    """Logits of every token given those before it and z: position t sees the steps with starts ≤ t.

    Args:
        spec: V, and the shape (T,) or (T, K).
        starts: of each latent step; None if z is ignored.
        dims: d.
        trunk: causal, of h features; `start` and `step` are its recurrence.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(
        self, spec: TokenSpec, starts: Sequence[int] | None, dims: int, trunk: Any, *, hidden: int, rngs: nnx.Rngs
    ) -> None:
        """See the class."""
        self.levels, self.shape, self.hidden, self.end = spec.levels, tuple(spec.shape), hidden, spec.end
        levels, self.voices = spec.levels, math.prod(spec.shape[1:])
        # One more of each voice, for what is before the first position.
        self.embed = Embedding(self.voices * (levels + 1), hidden, rngs=rngs)
        if starts is not None:
            self.latents = LatentMap(dims, starts, positions=self.shape[0], outputs=hidden, rngs=rngs)
        self.trunk = trunk
        self.head = linear(2 * hidden, self.voices * hidden, rngs=rngs)
        if self.voices > 1:
            self.above = Embedding((self.voices - 1) * levels, hidden, rngs=rngs)
        self.out = linear(hidden, levels, rngs=rngs)

    def __call__(self, x: Array, z_bnd: Array) -> Array:
        """Tokens (B, *shape) and z (B, n, d) → logits (B, *shape, V)."""
        x_btk = x.astype(jnp.int32).reshape(len(x), -1, self.voices)
        before_btk = jnp.pad(x_btk, ((0, 0), (1, 0), (0, 0)), constant_values=self.levels)[:, :-1]
        context_bth = self._context(z_bnd)
        seen_bth = self.trunk(self._read(before_btk) + context_bth)
        heads = self._heads(seen_bth, context_bth)
        logits = [self._logits(heads, x_btk[..., :voice]) for voice in range(self.voices)]
        return jnp.stack(logits, axis=-2).reshape(*x.shape, self.levels)

    def generate(self, z_bnd: Array, choose: Any, inputs_tbk: Any) -> Array:
        """Writes sequences token by token, each by `choose(logits, input)`: integers (B, T, K)."""

        def step(carry: Any, here: Any) -> Any:
            state, before_bk = carry
            position, context_bh, given_bk = here
            state, seen_bh = self.trunk.step(state, position, self._read(before_bk) + context_bh)
            heads, chosen_bk = self._heads(seen_bh, context_bh), before_bk[:, :0]
            for voice in range(self.voices):
                chosen_b = choose(self._logits(heads, chosen_bk), given_bk[:, voice]).astype(jnp.int32)
                chosen_bk = jnp.concatenate([chosen_bk, chosen_b[:, None]], axis=1)
            return (state, chosen_bk), chosen_bk

        context_tbh = self._context(z_bnd).swapaxes(0, 1)
        nothing_bk = jnp.full((len(z_bnd), self.voices), self.levels, jnp.int32)
        start = (self.trunk.start(context_tbh[0]), nothing_bk)
        return jax.lax.scan(step, start, (jnp.arange(self.shape[0]), context_tbh, inputs_tbk))[1].swapaxes(0, 1)

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


class BackwardTokens(nnx.Module):
    """Numbers for each latent step from a trunk that reads the tokens from the end: what comes out at starts[t].

    Args:
        levels: V.
        voices: K.
        starts: of each latent step.
        outputs: numbers for each step.
        trunk: causal, of h features.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(
        self, levels: int, voices: int, starts: Sequence[int], outputs: int, trunk: Any, *, hidden: int, rngs: nnx.Rngs
    ) -> None:
        """See the class."""
        self.levels, self.voices = levels, voices
        self.starts = tuple(int(position) for position in starts)
        self.embed = Embedding(voices * levels, hidden, rngs=rngs)
        self.trunk = trunk
        self.out = linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Tokens (B, *shape), of which so many positions (B,) count, → (B, n, outputs).

        Each sequence is turned round within its length: reading starts at its own end.
        """
        x_btk = x.astype(jnp.int32).reshape(len(x), -1, self.voices)
        read_bth = jnp.sum(self.embed(x_btk + jnp.arange(self.voices) * self.levels), axis=-2)
        positions = read_bth.shape[1]
        last_b1 = (jnp.full(len(x), positions) if lengths is None else jnp.asarray(lengths))[:, None] - 1
        seen_bth = self.trunk(_at(read_bth, last_b1 - jnp.arange(positions)))
        return self.out(_at(seen_bth, last_b1 - np.asarray(self.starts)))


def _at(values_bth: Array, places_bs: Array) -> Array:
    """Values (B, S, h) at places of each sequence; those below 0 are taken for 0."""
    return jnp.take_along_axis(values_bth, jnp.maximum(places_bs, 0)[..., None], axis=1)


# --- Programs ---


class TokenLikelihood(nnx.Module):
    """p(x | z) by a trunk that is told of z; a subclass names itself, and gives the trunk.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts` and the event shape are read.
        trunk: of h features.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a token sees the steps with starts up to it, or `full`, where it sees all.
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
        tokens = require_tokens(spec, "likelihood", self.name)
        starts = np.asarray(prior.starts[...]) * (conditioning == "causal")
        self.starts = tuple(np.asarray(prior.starts[...]).tolist())
        dims = prior().event_shape[-1]
        self.network = ConditionalTokens(
            tokens, starts.tolist() if use_latents else None, dims, trunk, hidden=hidden, rngs=rngs
        )

    def __call__(self, z: Array, lengths: Any = None) -> AutoregressiveTokens:
        """p(x | z) for latents (..., n, d), of sequences of so many positions (...)."""
        if lengths is not None:
            z = jnp.where(_inside(self.starts, lengths)[..., None], z, 0)
        return AutoregressiveTokens(self.network, z, lengths)


def _inside(starts: Sequence[int], lengths: Any) -> Array:
    """Which steps belong to a sequence of so many positions (...): (..., n)."""
    return np.asarray(starts) < jnp.asarray(lengths)[..., None]


class TokenGuide(nnx.Module):
    """Independent over steps and dimensions; z_t hears positions ≥ starts[t], and is N(0, 1) behind the end.

    A subclass names itself, and gives the trunk.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts`, the event shape and the density are read.
        trunk: of h features.
        rngs: of the initial weights.
        hidden: h.
    """

    name: ClassVar[str]
    causality: ClassVar[str] = "anti_causal"

    def __init__(self, spec: Spec, prior: Any, trunk: Any, *, rngs: nnx.Rngs, hidden: int) -> None:
        """See the class."""
        tokens = require_tokens(spec, "guide", self.name)
        self.dims = prior().event_shape[-1]
        starts = np.asarray(prior.starts[...]).tolist()
        self.encoder = BackwardTokens(
            tokens.levels, math.prod(tokens.shape[1:]), starts, 2 * self.dims, trunk, hidden=hidden, rngs=rngs
        )
        scale_dt = np.diagonal(minimising_factor(prior(), 1), axis1=-2, axis2=-1)
        self.scale = Buffer(jnp.asarray(scale_dt.T))

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Writes the site `z` for sequences x (B, *shape)."""
        with numpyro.plate("data", x.shape[0]):
            return numpyro.sample("z", self.posterior(x, lengths))

    def posterior(self, x: Array, lengths: Any = None) -> Independent:
        """q(z | x) for sequences (B, *shape) of so many positions (B,), event shape (n, d)."""
        mean, ratio = jnp.split(self.encoder(x, lengths), 2, axis=-1)
        scale = self.scale[...] * positive(ratio) + 1e-6
        if lengths is not None:
            inside = _inside(self.encoder.starts, lengths)[..., None]
            mean, scale = jnp.where(inside, mean, 0.0), jnp.where(inside, scale, 1.0)
        return Normal(mean, scale).to_event(2)

    def start_from(self, x: Array, lengths: Any = None) -> None:
        """Initialises by sequences (B, *shape): means of mean 0 and deviation 1 over them, all else 0."""
        out, d = self.encoder.out, self.dims
        mean_bnd = self.encoder(x, lengths)[..., :d]
        mean_kd = mean_bnd.reshape(-1, d) if lengths is None else mean_bnd[_inside(self.encoder.starts, lengths)]
        deviation_d = jnp.maximum(mean_kd.std(0), 1e-6)
        kernel, bias = out.kernel[...], out.bias[...]
        out.kernel[...] = jnp.zeros_like(kernel).at[:, :d].set(kernel[:, :d] / deviation_d)
        out.bias[...] = jnp.zeros_like(bias).at[:d].set((bias[:d] - mean_kd.mean(0)) / deviation_d)
