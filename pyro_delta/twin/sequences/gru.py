"""Twins of the GRU likelihood and guide, written from `docs/architecture.md`: networks over tokens and numbers.

B sequences of T positions, each of K voices: tokens of V levels, or numbers of variables; n latent steps of d
dimensions, of which step t belongs to the sequence from position starts[t] on; h units. Weights have torch's names and
shapes.
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

from pyro_delta.data.series.spec import SeriesSpec, require_sequences
from pyro_delta.protocol import Spec
from pyro_delta.twin.latents import LatentMap
from pyro_delta.twin.layers import linear, positive
from pyro_delta.twin.rate import minimising_factor
from pyro_delta.twin.sequences.distributions import (
    AutoregressiveNumbers,
    AutoregressiveSequence,
    AutoregressiveTokens,
)
from pyro_delta.twin.sequences.layers import GRU, NumberTable, TokenTable, Units
from pyro_delta.twin.variables import Buffer

MIXTURES = 5
"""Logistics of a number."""


def _units(spec: Any) -> Units | None:
    """Of the numbers of series; None for tokens."""
    return Units(spec.location, spec.scale) if isinstance(spec, SeriesSpec) else None


class ConditionalGRU(nnx.Module):
    """Parameters of everything given what is before it and z: position t sees the steps with starts ≤ t.

    Args:
        spec: of the sequences.
        starts: of each latent step; None if z is ignored.
        dims: d.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(self, spec: Any, starts: Sequence[int] | None, dims: int, *, hidden: int, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.shape, self.hidden, self.levels = tuple(spec.shape), hidden, spec.levels or 0
        self.voices, self.units, self.resolution = math.prod(spec.shape[1:]), _units(spec), spec.resolution

        def table(voices: int, levels: int) -> Any:
            if self.units is not None:
                return NumberTable(voices, hidden, rngs=rngs)
            return TokenTable(voices, levels, hidden, rngs=rngs)

        # One more token of each voice, for what is before the first position.
        self.embed = table(self.voices, self.levels + 1)
        if starts is not None:
            self.latents = LatentMap(dims, starts, positions=spec.shape[0], outputs=hidden, rngs=rngs)
        self.gru = GRU(hidden, hidden, rngs=rngs)
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
        seen_bth = self.gru(jnp.sum(self.embed(before_btk), axis=-2) + context_bth)
        heads = self._heads(seen_bth, context_bth)
        rows = [self._of_voice(heads, x_btk[..., :voice], last_btk) for voice in range(self.voices)]
        return jnp.stack(rows, axis=-2).reshape(*x.shape, -1)

    def generate(self, z_bnd: Array, choose: Any, inputs_tbk: Any) -> Array:
        """Writes sequences one by one, each by `choose(parameters, input)`: (B, T, K). Inputs may be a pytree."""

        def step(carry: Any, here: Any) -> Any:
            state_bh, before_bk, last_bk = carry
            context_bh, given_bk = here
            state_bh = self.gru.step(state_bh, jnp.sum(self.embed(before_bk), axis=-2) + context_bh)
            heads, chosen, standard_bk = self._heads(state_bh, context_bh), [], before_bk[:, :0]
            for voice in range(self.voices):
                given_b = jax.tree.map(lambda values, voice=voice: values[:, voice], given_bk)
                chosen.append(choose(self._of_voice(heads, standard_bk, last_bk), given_b))
                chosen_bk = jnp.stack(chosen, axis=1).astype(before_bk.dtype)
                standard_bk = self._standard(chosen_bk)
            if self.units is not None:
                last_bk = jnp.where(jnp.isnan(standard_bk), last_bk, standard_bk)
            return (state_bh, standard_bk, last_bk), chosen_bk

        context_bth = self._context(z_bnd)
        number = jnp.int32 if self.units is None else context_bth.dtype
        last_bk = jnp.zeros((len(z_bnd), self.voices), number)
        start = (self.gru.start(len(z_bnd)), self._nothing(last_bk), last_bk)
        return jax.lax.scan(step, start, (context_bth.swapaxes(0, 1), inputs_tbk))[1].swapaxes(0, 1)

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


class BackwardGRU(nnx.Module):
    """Numbers for each latent step from a GRU that reads a sequence from its end: those of the state at starts[t].

    Args:
        spec: of the sequences.
        starts: of each latent step.
        outputs: numbers for each step.
        hidden: h.
        rngs: of the initial values.
    """

    def __init__(self, spec: Any, starts: Sequence[int], outputs: int, *, hidden: int, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.voices, self.units = math.prod(spec.shape[1:]), _units(spec)
        self.starts = tuple(int(position) for position in starts)
        self.embed: Any = (
            TokenTable(self.voices, spec.levels or 0, hidden, rngs=rngs)
            if self.units is None
            else NumberTable(self.voices, hidden, rngs=rngs)
        )
        self.gru = GRU(hidden, hidden, rngs=rngs)
        self.out = linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Sequences (B, *shape), of which so many positions (B,) count, → (B, n, outputs).

        Each sequence is turned round within its length: reading starts at its own end.
        """
        x_btk = x.reshape(len(x), -1, self.voices)
        read_bth = jnp.sum(self.embed(x_btk if self.units is None else self.units.standardised(x_btk)), axis=-2)
        positions = read_bth.shape[1]
        last_b1 = (jnp.full(len(x), positions) if lengths is None else jnp.asarray(lengths))[:, None] - 1
        seen_bth = self.gru(_at(read_bth, last_b1 - jnp.arange(positions)))
        return self.out(_at(seen_bth, last_b1 - np.asarray(self.starts)))


def _at(values_bth: Array, places_bs: Array) -> Array:
    """Values (B, S, h) at places of each sequence; those below 0 are taken for 0."""
    return jnp.take_along_axis(values_bth, jnp.maximum(places_bs, 0)[..., None], axis=1)


# --- Programs ---


class GRULikelihood(nnx.Module):
    """p(x | z) by a GRU that is told of z.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts` and the event shape are read.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a position sees the steps with starts up to it, or `full`, where it sees all.
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
        sequences = require_sequences(spec, "likelihood", "gru")
        starts = np.asarray(prior.starts[...]) * (conditioning == "causal")
        self.starts = tuple(np.asarray(prior.starts[...]).tolist())
        dims, used = prior().event_shape[-1], starts.tolist() if use_latents else None
        self.network = ConditionalGRU(sequences, used, dims, hidden=hidden, rngs=rngs)

    def __call__(self, z: Array, lengths: Any = None, mask: Any = None) -> AutoregressiveSequence:
        """p(x | z) for latents (..., n, d), of sequences of so many positions (...), known as masked."""
        if lengths is not None:
            z = jnp.where(_inside(self.starts, lengths)[..., None], z, 0)
        kind = AutoregressiveTokens if self.network.units is None else AutoregressiveNumbers
        return kind(self.network, z, lengths, mask)


def _inside(starts: Sequence[int], lengths: Any) -> Array:
    """Which steps belong to a sequence of so many positions (...): (..., n)."""
    return np.asarray(starts) < jnp.asarray(lengths)[..., None]


class GRUGuide(nnx.Module):
    """Independent over steps and dimensions; z_t hears positions ≥ starts[t], and is N(0, 1) behind the end.

    Args:
        spec: of the sequences.
        prior: the twin of the prior; `starts`, the event shape and the density are read.
        rngs: of the initial weights.
        hidden: h.
    """

    causality: ClassVar[str] = "anti_causal"

    def __init__(self, spec: Spec, prior: Any, *, rngs: nnx.Rngs, hidden: int = 64) -> None:
        """See the class."""
        sequences = require_sequences(spec, "guide", "gru")
        self.dims = prior().event_shape[-1]
        starts = np.asarray(prior.starts[...]).tolist()
        self.encoder = BackwardGRU(sequences, starts, 2 * self.dims, hidden=hidden, rngs=rngs)
        scale_dt = np.diagonal(minimising_factor(prior(), 1), axis1=-2, axis2=-1)
        self.scale = Buffer(jnp.asarray(scale_dt.T))

    def __call__(self, x: Array, lengths: Any = None, mask: Any = None) -> Array:
        """Writes the site `z` for sequences x (B, *shape)."""
        with numpyro.plate("data", x.shape[0]):
            return numpyro.sample("z", self.posterior(x, lengths, mask))

    def posterior(self, x: Array, lengths: Any = None, mask: Any = None) -> Independent:
        """q(z | x) for sequences (B, *shape) of so many positions (B,), known as masked, event shape (n, d)."""
        mean, ratio = jnp.split(self.encoder(self._known(x, lengths, mask), lengths), 2, axis=-1)
        scale = self.scale[...] * positive(ratio) + 1e-6
        if lengths is not None:
            inside = _inside(self.encoder.starts, lengths)[..., None]
            mean, scale = jnp.where(inside, mean, 0.0), jnp.where(inside, scale, 1.0)
        return Normal(mean, scale).to_event(2)

    def _known(self, x: Array, lengths: Any, mask: Any) -> Array:
        """What is missing, or behind the end, as NaN, or token 0."""
        if lengths is not None:
            inside = _inside(range(x.shape[1]), lengths)
            inside = inside.reshape(inside.shape + (1,) * (x.ndim - 2))
            mask = inside if mask is None else mask & inside
        return x if mask is None else jnp.where(mask, x, 0 if self.encoder.units is None else jnp.nan)

    def start_from(self, x: Array, lengths: Any = None, mask: Any = None) -> None:
        """Initialises by sequences (B, *shape): means of mean 0 and deviation 1 over them, all else 0."""
        out, d = self.encoder.out, self.dims
        mean_bnd = self.encoder(self._known(x, lengths, mask), lengths)[..., :d]
        mean_kd = mean_bnd.reshape(-1, d) if lengths is None else mean_bnd[_inside(self.encoder.starts, lengths)]
        deviation_d = jnp.maximum(mean_kd.std(0), 1e-6)
        kernel, bias = out.kernel[...], out.bias[...]
        out.kernel[...] = jnp.zeros_like(kernel).at[:, :d].set(kernel[:, :d] / deviation_d)
        out.bias[...] = jnp.zeros_like(bias).at[:d].set((bias[:d] - mean_kd.mean(0)) / deviation_d)
