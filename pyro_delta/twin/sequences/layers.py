"""Layers of networks over sequences, in Flax. Weights have torch's names and shapes."""

from __future__ import annotations

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
