"""Twins of the Transformer likelihood and guide, written from `docs/architecture.md`."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pyro_delta.data.series.spec import require_sequences
from pyro_delta.protocol import Spec
from pyro_delta.twin.conditioning import Conditioning
from pyro_delta.twin.layers import linear, masked_softmax
from pyro_delta.twin.sequences.autoregressive import SequenceLikelihood
from pyro_delta.twin.sequences.layers import LayerNorm, PositionReader
from pyro_delta.twin.sequences.sequence_guide import SequenceGuide


class TransformerBlock(nnx.Module):
    """v + attention of positions to those up to them; then v + a perceptron at each. Both read normalised features.

    Args:
        hidden: h.
        heads: a, which share h.
        rngs: of the initial values.
    """

    def __init__(self, hidden: int, heads: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.heads = heads
        self.before_attention, self.before_perceptron = LayerNorm(hidden), LayerNorm(hidden)
        self.query_key_value = linear(hidden, 3 * hidden, rngs=rngs)
        self.merge = linear(hidden, hidden, rngs=rngs)
        self.widen, self.narrow = linear(hidden, 4 * hidden, rngs=rngs), linear(4 * hidden, hidden, rngs=rngs)

    def parts(self, v: Array, angles: Array) -> tuple[Array, Array, Array]:
        """Queries, keys and values (..., a, s) of features (..., h) at positions of which `angles` (..., s/2) is told.

        Queries and keys are turned: features i and i + s/2 are a point of the plane.
        """
        parts = jnp.split(self.query_key_value(self.before_attention(v)), 3, axis=-1)
        query, key, value = (part.reshape(*part.shape[:-1], self.heads, -1) for part in parts)
        turn = jnp.exp(1j * angles)[..., None, :]

        def turned(part: Array) -> Array:
            real, imaginary = jnp.split(part, 2, axis=-1)
            point = (real + 1j * imaginary) * turn
            return jnp.concatenate([point.real, point.imag], axis=-1).astype(part.dtype)

        return turned(query), turned(key), value

    def joined(self, v: Array, query: Array, key: Array, value: Array, visible: Any) -> Array:
        """Features (B, Q, h) with what their queries (B, Q, a, s) find at the visible of positions (B, T, a, s)."""
        scores = jnp.einsum("bqas,btas->baqt", query, key) / query.shape[-1] ** 0.5
        found = jnp.einsum("baqt,btas->bqas", masked_softmax(scores, visible), value)
        v = v + self.merge(found.reshape(v.shape))
        return v + self.narrow(jax.nn.gelu(self.widen(self.before_perceptron(v)), approximate=False))


class CausalTransformer(nnx.Module):
    """Blocks, and a normalisation after the last.

    Args:
        hidden: h.
        layers: blocks.
        heads: a.
        positions: T at most.
        rngs: of the initial values.
    """

    def __init__(self, hidden: int, *, layers: int, heads: int, positions: int, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.positions, self.size = positions, hidden // heads
        self.blocks = nnx.List([TransformerBlock(hidden, heads, rngs=rngs) for _ in range(layers)])
        self.norm = LayerNorm(hidden)

    def __call__(self, v_bth: Array) -> Array:
        """(B, T, h) → (B, T, h), of which each position hears those up to it."""
        positions = v_bth.shape[1]
        for block in self.blocks:
            query, key, value = block.parts(v_bth, self._angles(jnp.arange(positions)))
            v_bth = block.joined(v_bth, query, key, value, np.tri(positions, dtype=bool))
        return self.norm(v_bth)

    def start(self, v_bh: Array) -> Array:
        """Keys and values of all blocks and positions, none of them known: (blocks, 2, B, T, a, s)."""
        heads = v_bh.shape[1] // self.size
        return jnp.zeros((len(self.blocks), 2, len(v_bh), self.positions, heads, self.size), v_bh.dtype)

    def step(self, kept: Array, position: Array, v_bh: Array) -> tuple[Array, Array]:
        """One position, (B, h), and what is kept after it."""
        v_b1h, visible = v_bh[:, None], jnp.arange(self.positions) <= position
        for i, block in enumerate(self.blocks):
            query, key, value = block.parts(v_b1h, self._angles(position[None]))
            kept = kept.at[i, :, :, position].set(jnp.stack([key[:, 0], value[:, 0]]))
            v_b1h = block.joined(v_b1h, query, *kept[i], visible)
        return kept, self.norm(v_b1h[:, 0])

    def _angles(self, position_t: Array) -> Array:
        """Angles t · 10000^(−2i/s), (T, s/2)."""
        return position_t[:, None] * 10_000.0 ** (-jnp.arange(0, self.size, 2) / self.size)


class TransformerLikelihood(SequenceLikelihood):
    """p(x | z) by a Transformer; arguments as of `SequenceLikelihood`, and of the trunk."""

    name: ClassVar[str] = "transformer"

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        hidden: int = 128,
        layers: int = 3,
        heads: int = 4,
    ) -> None:
        """See the class."""
        trunk = CausalTransformer(hidden, layers=layers, heads=heads, positions=spec.positions, rngs=rngs)
        super().__init__(
            spec, prior, trunk, rngs=rngs, use_latents=use_latents, conditioning=conditioning, hidden=hidden
        )


class TransformerGuide(SequenceGuide):
    """q(z | x) by a Transformer; arguments as of `SequenceGuide`, and of the trunk."""

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        hidden: int = 128,
        layers: int = 3,
        heads: int = 4,
        bidirectional: bool = False,
        rate_nats: float | None = None,
    ) -> None:
        """See the class."""
        reader = PositionReader(require_sequences(spec, "guide", "transformer"), hidden, rngs=rngs)
        make = partial(CausalTransformer, hidden, layers=layers, heads=heads, positions=spec.positions, rngs=rngs)
        trunk, forwards = make(), make() if bidirectional else None
        super().__init__(spec, prior, reader, trunk, hidden=hidden, rngs=rngs, rate_nats=rate_nats, forwards=forwards)
