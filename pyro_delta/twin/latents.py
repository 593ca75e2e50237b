"""From z to features of each position of the data, in Flax, written from `docs/architecture.md`.

B data of P positions; n latent steps of d dimensions, of which step t belongs to the data from position starts[t] on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pyro_delta.twin.layers import linear, masked_softmax


class LatentMap(nnx.Module):
    """Attention over the latent steps that a position may see: row p depends on {z_t : starts[t] ≤ p} alone.

    Args:
        dims: d.
        starts: of each step.
        positions: P.
        outputs: features of a position.
        rngs: of the initial values.
    """

    TOKENS = 64
    HEADS = 4

    def __init__(self, dims: int, starts: Sequence[int], *, positions: int, outputs: int, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.starts, self.positions = tuple(int(place) for place in starts), positions
        self.embed = nnx.List(
            [linear(dims, self.TOKENS, rngs=rngs), jax.nn.silu, linear(self.TOKENS, self.TOKENS, rngs=rngs)]
        )
        self.position = nnx.Param(jax.random.normal(rngs.params(), (len(self.starts), self.TOKENS), float) / 8)
        self.query = nnx.Param(jax.random.normal(rngs.params(), (positions, self.TOKENS), float) / 8)
        self.key_value = linear(self.TOKENS, 2 * self.TOKENS, rngs=rngs)
        self.mix = linear(2 * self.TOKENS, self.TOKENS, rngs=rngs)
        self.spread = linear(self.TOKENS, outputs, rngs=rngs)

    def __call__(self, z_bnd: Array) -> Array:
        """(B, n, d) → (B, P, outputs)."""
        token = z_bnd
        for layer in self.embed:
            token = layer(token)
        token = token + self.position[...]
        seen = jnp.concatenate([self._attend(token), self._newest(token)], axis=-1)
        return self.spread(jax.nn.silu(self.mix(seen)))

    def _visible(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(P, n), which steps a position may see."""
        return np.asarray(self.starts) <= np.arange(self.positions)[:, None]

    def _attend(self, token_bnf: Array) -> Array:
        """What each position's query finds among the visible steps, (B, P, 64); 0 where there is none."""
        batch, length, _ = token_bnf.shape
        key, value = jnp.split(self.key_value(token_bnf), 2, axis=-1)
        key, value = (part.reshape(batch, length, self.HEADS, -1) for part in (key, value))
        query = self.query[...].reshape(self.positions, self.HEADS, -1)
        scores = jnp.einsum("pas,bnas->bapn", query, key) / query.shape[-1] ** 0.5
        weights = masked_softmax(scores, self._visible())
        return jnp.einsum("bapn,bnas->bpas", weights, value).reshape(batch, self.positions, self.TOKENS)

    def _newest(self, token_bnf: Array) -> Array:
        """The token of the newest step that each position may see, (B, P, 64); 0 where there is none.

        That is the last of the visible steps with the largest starts.
        """
        visible_pn = self._visible()
        # (starts, t) as one number, whose largest among the visible is wanted.
        age_n = np.asarray(self.starts) * len(self.starts) + np.arange(len(self.starts))
        newest_p = np.where(visible_pn, age_n, -1).argmax(axis=1)
        return jnp.where(visible_pn.any(axis=1, keepdims=True), token_bnf[:, newest_p], 0.0)
