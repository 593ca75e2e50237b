"""Layers of networks over sequences, in Flax. Weights have torch's names and shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pyro_delta.twin.layers import uniform


class Embedding(nnx.Module):
    """A row of numbers for each token, standard normal at first."""

    def __init__(self, tokens: int, features: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (tokens, features), float))

    def __call__(self, tokens: Array) -> Array:
        """Integers (...) → (..., features)."""
        return self.weight[...][tokens]


class TokenTable(Embedding):
    """Features of tokens of several voices: row k·V + v is token v of voice k."""

    def __init__(self, voices: int, levels: int, features: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        super().__init__(voices * levels, features, rngs=rngs)
        self.levels = levels

    def __call__(self, x: Array, first: int = 0) -> Array:
        """Tokens (..., k) of the voices from `first` on → (..., k, features)."""
        return super().__call__(x.astype(jnp.int32) + (first + jnp.arange(x.shape[-1])) * self.levels)


class NumberTable(nnx.Module):
    """Features x·w_k + b_k of standardised numbers of K variables; 0 where a number is missing, which is NaN."""

    def __init__(self, voices: int, features: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (voices, 2, features), float) / voices**0.5)

    def __call__(self, x: Array, first: int = 0) -> Array:
        """Numbers (..., k) of the variables from `first` on → (..., k, features)."""
        rows = self.weight[...][first : first + x.shape[-1]]
        known = ~jnp.isnan(x)
        features = jnp.where(known, x, 0.0)[..., None] * rows[:, 0] + rows[:, 1]
        return jnp.where(known[..., None], features, 0.0)


class Units:
    """Location and scale of K variables, by which numbers are standardised.

    Args:
        location: of each.
        scale: of each.
    """

    def __init__(self, location: Sequence[float], scale: Sequence[float]) -> None:
        """See the class."""
        self.location, self.scale = tuple(location), tuple(scale)

    @classmethod
    def of(cls, spec: Any) -> Units | None:
        """Those of a spec of series; None of one of tokens."""
        return cls(spec.location, spec.scale) if hasattr(spec, "location") else None

    def __eq__(self, other: object) -> bool:
        """Equal units make equal networks, which are compiled once."""
        return isinstance(other, Units) and vars(self) == vars(other)

    def __hash__(self) -> int:
        """Of what makes them equal."""
        return hash((self.location, self.scale))

    def standardised(self, x: Array) -> Array:
        """Numbers (..., K)."""
        return (x - jnp.asarray(self.location, x.dtype)) / jnp.asarray(self.scale, x.dtype)

    def mixture(self, raw: Array, last: Array, variable: int) -> Array:
        """Of the logistics (..., 3M) of a variable, whose means count from `last` (...), in units of x."""
        logits, mean, log_scale = jnp.split(raw, 3, axis=-1)
        mean = self.location[variable] + self.scale[variable] * (mean + last[..., None])
        log_scale = jnp.log(jnp.asarray(self.scale[variable], raw.dtype)) + jnp.clip(log_scale, -7, 7)
        return jnp.concatenate([logits, mean, log_scale], axis=-1)


class PositionReader(nnx.Module):
    """Features of each position, the sum of those of its voices or variables.

    Args:
        spec: of sequences of tokens, or of series.
        hidden: features.
        rngs: of the initial values.
    """

    def __init__(self, spec: Any, hidden: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.voices, self.units = math.prod(spec.shape[1:]), Units.of(spec)
        self.embed: Any = (
            TokenTable(self.voices, spec.levels, hidden, rngs=rngs)
            if self.units is None
            else NumberTable(self.voices, hidden, rngs=rngs)
        )

    @property
    def blank(self) -> float:
        """What stands for something that is missing: token 0, or NaN."""
        return 0 if self.units is None else math.nan

    def __call__(self, x: Array) -> Array:
        """Data (B, T) or (B, T, K) → (B, T, h)."""
        x_btk = x.reshape(*x.shape[:2], self.voices)
        return jnp.sum(self.embed(x_btk if self.units is None else self.units.standardised(x_btk)), axis=-2)


class GRU(nnx.Module):
    """A single layer: r = σ(W_r v + U_r s), u = σ(W_u v + U_u s), n = tanh(W_n v + r (U_n s)), s' = (1 − u) n + u s.

    Each product has a bias of its own. Rows of the weights are those of r, u and n, h each; all start uniform in ±1/√h.
    """

    def __init__(self, features: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""

        def drawn(*shape: int) -> nnx.Param:
            return nnx.Param(uniform(hidden)(rngs.params(), shape, float))

        self.weight_ih_l0, self.weight_hh_l0 = drawn(3 * hidden, features), drawn(3 * hidden, hidden)
        self.bias_ih_l0, self.bias_hh_l0 = drawn(3 * hidden), drawn(3 * hidden)

    def start(self, v_bh: Array) -> Array:
        """The state before anything is read: zero, (B, h)."""
        return jnp.zeros_like(v_bh)

    def step(self, state_bh: Array, v_bf: Array) -> Array:
        """The next state."""
        put = jnp.split(v_bf @ self.weight_ih_l0[...].T + self.bias_ih_l0[...], 3, axis=-1)
        kept = jnp.split(state_bh @ self.weight_hh_l0[...].T + self.bias_hh_l0[...], 3, axis=-1)
        reset, update = jax.nn.sigmoid(put[0] + kept[0]), jax.nn.sigmoid(put[1] + kept[1])
        return (1 - update) * jnp.tanh(put[2] + reset * kept[2]) + update * state_bh


class Recurrence(nnx.Module):
    """A GRU as a trunk: positions in, states out."""

    def __init__(self, hidden: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.gru = GRU(hidden, hidden, rngs=rngs)

    def __call__(self, v_bth: Array) -> Array:
        """(B, T, h) → all states, (B, T, h)."""

        def step(state_bh: Array, v_bh: Array) -> tuple[Array, Array]:
            return self.step(state_bh, 0, v_bh)

        return jax.lax.scan(step, self.start(v_bth[:, 0]), v_bth.swapaxes(0, 1))[1].swapaxes(0, 1)

    def start(self, v_bh: Array) -> Array:
        """The state before anything is read."""
        return self.gru.start(v_bh)

    def step(self, state_bh: Array, position: Any, v_bh: Array) -> tuple[Array, Array]:
        """The next state, kept and given out."""
        state_bh = self.gru.step(state_bh, v_bh)
        return state_bh, state_bh


class LayerNorm(nnx.Module):
    """Features of mean 0 and variance 1 at each place (1e-5 added to the variance), scaled and shifted."""

    def __init__(self, features: int) -> None:
        """See the class."""
        self.weight, self.bias = nnx.Param(jnp.ones(features, float)), nnx.Param(jnp.zeros(features, float))

    def __call__(self, v: Array) -> Array:
        """(..., h) → (..., h)."""
        centred = v - v.mean(-1, keepdims=True)
        deviation = jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return centred / deviation * self.weight[...] + self.bias[...]
