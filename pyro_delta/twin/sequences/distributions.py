"""The twin's p(x | z) of sequences, autoregressive: of any numbers, and of tokens.

B sequences of T positions, each of one number or of K of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample


class AutoregressiveSequence(Distribution):
    """p(x | z) = Π p(x_i | x_{<i}, z): the network makes the parameters of each number from those before it and from z.

    `log_prob` is one pass over whole sequences; `sample` writes position after position in a scan. A subclass says what
    a number's distribution is: `scores`, `pick`, its support, and the shape of the uniforms that a number takes.

    Args:
        network: of the parameters of all numbers.
        z: latents (..., n, d); the batch shape is theirs.
        lengths: positions of each sequence, (...); what follows counts nothing, and is drawn as 0. None for T.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    pytree_data_fields = ("network", "z", "lengths")
    noises: ClassVar[tuple[int, ...]] = ()

    def __init__(self, network: Any, z: Array, lengths: Any = None, *, validate_args: bool | None = None) -> None:
        self.network, self.z = network, z
        self.lengths = None if lengths is None else jnp.broadcast_to(jnp.asarray(lengths), z.shape[:-2])
        super().__init__(z.shape[:-2], network.shape, validate_args=validate_args)

    def scores(self, parameters: Array, x: Array) -> Array:
        """Log-probabilities (...) of numbers (...) with parameters (..., P)."""
        raise NotImplementedError

    def pick(self, parameters: Array, uniforms: Array) -> Array:
        """The numbers (...) that noise (..., *noises) makes of parameters (..., P)."""
        raise NotImplementedError

    def expand(self, batch_shape: Sequence[int]) -> Self:
        """The same with latents repeated to another batch shape."""
        z = jnp.broadcast_to(self.z, (*batch_shape, *self.z.shape[-2:]))
        lengths = None if self.lengths is None else jnp.broadcast_to(self.lengths, tuple(batch_shape))
        return type(self)(self.network, z, lengths, validate_args=self._validate_args)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-probability of sequences (..., *event shape)."""
        batch = jnp.broadcast_shapes(value.shape[: -self.event_dim], self.batch_shape)
        x = jnp.broadcast_to(value, (*batch, *self.event_shape)).reshape(-1, *self.event_shape)
        terms = self.scores(self.network(x, self._latents(batch)), x)
        return jnp.sum(self._within(terms.reshape(batch + self.event_shape)), axis=tuple(range(-self.event_dim, 0)))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of a sample."""
        return self.event_shape + self.noises

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Sequences (*sample_shape, *batch_shape, *event shape)."""
        return self.from_uniforms(jax.random.uniform(key, self.shape(sample_shape) + self.noises, self.z.dtype))

    def from_uniforms(self, uniforms: Array) -> Array:
        """The sequences of uniforms (..., *event shape, *noises), by `pick` at each place."""
        batch = uniforms.shape[: -self.event_dim - len(self.noises)]
        uniforms_tbk = uniforms.reshape(math.prod(batch), self.event_shape[0], -1, *self.noises).swapaxes(0, 1)
        drawn = self.network.generate(self._latents(batch), self.pick, uniforms_tbk)
        return self._within(self.up_to_end(drawn.reshape(batch + self.event_shape)))

    def up_to_end(self, x: Array) -> Array:
        """What was drawn; a subclass whose sequences end puts 0 in the place of what was drawn after that."""
        return x

    @property
    def counted(self) -> Array | None:
        """Which numbers count, of batch shape + event shape; None if all do."""
        if self.lengths is None:
            return None
        inside = jnp.arange(self.event_shape[0]) < self.lengths[..., None]
        return jnp.broadcast_to(inside.reshape(inside.shape + (1,) * (self.event_dim - 1)), self.shape())

    def _within(self, values: Array) -> Array:
        """Values (..., *event shape), 0 in the place of those behind the end of a sequence."""
        return values if self.counted is None else jnp.where(self.counted, values, 0)

    def _latents(self, batch: tuple[int, ...]) -> Array:
        """Z repeated to a batch shape, whose dimensions are then one: (B, n, d)."""
        event = self.z.shape[-2:]
        return jnp.broadcast_to(self.z, (*batch, *event)).reshape(math.prod(batch), *event)


class AutoregressiveTokens(AutoregressiveSequence):
    """Sequences of tokens, integers 0 … V − 1, of which the network gives logits, and says which token ends one."""

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Integers 0 … V − 1 at every place."""
        tokens = constraints.integer_interval(0, self.network.levels - 1)
        return constraints.independent(tokens, len(self.network.shape))

    def scores(self, parameters: Array, x: Array) -> Array:
        """Log-probabilities (...) of tokens (...) with logits (..., V)."""
        log_p = jax.nn.log_softmax(parameters)
        return jnp.take_along_axis(log_p, x[..., None].astype(jnp.int32), axis=-1)[..., 0]

    def pick(self, parameters: Array, uniforms: Array) -> Array:
        """Token #{v < V − 1 : u ≥ p_0 + … + p_v} at each place."""
        before = jnp.cumsum(jax.nn.softmax(parameters), axis=-1)[..., :-1]
        return jnp.sum(uniforms[..., None] >= before, axis=-1)

    def up_to_end(self, x: Array) -> Array:
        """0 in the place of tokens after the first that ends a sequence."""
        if self.network.end is None:
            return x
        ends = jnp.cumsum(x == self.network.end, axis=-1)
        return jnp.where(jnp.pad(ends[..., :-1], [(0, 0)] * (x.ndim - 1) + [(1, 0)]) == 0, x, 0)
