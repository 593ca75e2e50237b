"""Layers of networks over sequences, in Flax. Weights have torch's names and shapes."""

from __future__ import annotations

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

    def start(self, batch: int) -> Array:
        """The state before anything is read: zero, (B, h)."""
        hidden = self.weight_hh_l0[...].shape[1]
        return jnp.zeros((batch, hidden), self.weight_hh_l0[...].dtype)

    def step(self, state_bh: Array, v_bf: Array) -> Array:
        """The next state."""
        put = jnp.split(v_bf @ self.weight_ih_l0[...].T + self.bias_ih_l0[...], 3, axis=-1)
        kept = jnp.split(state_bh @ self.weight_hh_l0[...].T + self.bias_hh_l0[...], 3, axis=-1)
        reset, update = jax.nn.sigmoid(put[0] + kept[0]), jax.nn.sigmoid(put[1] + kept[1])
        return (1 - update) * jnp.tanh(put[2] + reset * kept[2]) + update * state_bh

    def __call__(self, v_btf: Array) -> Array:
        """(B, T, f) → all states, (B, T, h)."""

        def step(state_bh: Array, v_bf: Array) -> tuple[Array, Array]:
            state_bh = self.step(state_bh, v_bf)
            return state_bh, state_bh

        state_tbh = jax.lax.scan(step, self.start(len(v_btf)), v_btf.swapaxes(0, 1))[1]
        return state_tbh.swapaxes(0, 1)
