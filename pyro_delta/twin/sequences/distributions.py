"""The twin's p(x | z) of sequences, autoregressive: of anything, of tokens, and of real numbers.

B sequences of T positions, each of one number or of K of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample


class AutoregressiveSequence(Distribution):
    """p(x | z) = Π p(x_i | x_{<i}, z): the network makes the parameters of each number from those before it and from z.

    `log_prob` is one pass over whole sequences; `sample` writes position after position in a scan. A subclass says what
    a number's distribution is: `scores`, `pick`, its support, and the shape of the uniforms that a number takes.

    Args:
        network: of the parameters of all numbers.
        z: latents (..., n, d); the batch shape is theirs.
        lengths: positions of each sequence, (...); what follows counts nothing, and is drawn as `blank`. None for T.
        mask: numbers that are known, broadcastable to the batch and event shape; others count nothing, and the network
            reads `blank` in their place. None for all.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    pytree_data_fields = ("network", "z", "lengths", "mask")
    noises: ClassVar[tuple[int, ...]] = ()
    blank: ClassVar[float] = 0

    def __init__(
        self, network: Any, z: Array, lengths: Any = None, mask: Any = None, *, validate_args: bool | None = None
    ) -> None:
        self.network, self.z = network, z
        self.lengths = None if lengths is None else jnp.broadcast_to(jnp.asarray(lengths), z.shape[:-2])
        self.mask = None if mask is None else jnp.broadcast_to(jnp.asarray(mask), z.shape[:-2] + tuple(network.shape))
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
        mask = None if self.mask is None else jnp.broadcast_to(self.mask, (*batch_shape, *self.event_shape))
        return type(self)(self.network, z, lengths, mask, validate_args=self._validate_args)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-probability of sequences (..., *event shape), of which only what counts must lie in the support."""
        return self._log_prob(self._counted(value, 0))

    @validate_sample
    def _log_prob(self, value: Array) -> Array:
        batch = jnp.broadcast_shapes(value.shape[: -self.event_dim], self.batch_shape)
        x = jnp.broadcast_to(value, (*batch, *self.event_shape))
        heard = self._counted(x, self.blank).reshape(-1, *self.event_shape)
        terms = self.scores(self.network(heard, self._latents(batch)), x.reshape(heard.shape))
        terms = self._counted(terms.reshape(batch + self.event_shape), 0)
        return jnp.sum(terms, axis=tuple(range(-self.event_dim, 0)))

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

        def by_position(values: Array, *more: int) -> Array:
            return values.reshape(math.prod(batch), self.event_shape[0], -1, *more).swapaxes(0, 1)

        counted = jnp.broadcast_to(True if self.counted is None else self.counted, batch + self.event_shape)
        given = by_position(uniforms, *self.noises), by_position(counted)
        drawn = self.network.generate(self._latents(batch), self._written, given)
        return self.up_to_end(drawn.reshape(batch + self.event_shape))

    def _written(self, parameters: Array, given: tuple[Array, Array]) -> Array:
        """A number from its noise, `blank` where it does not count."""
        uniforms, counted = given
        return jnp.where(counted, self.pick(parameters, uniforms), self.blank)

    def up_to_end(self, x: Array) -> Array:
        """What was drawn; a subclass whose sequences end puts 0 in the place of what was drawn after that."""
        return x

    @property
    def counted(self) -> Array | None:
        """Which numbers count, of batch shape + event shape; None if all do."""
        if self.lengths is None:
            return self.mask
        inside = jnp.arange(self.event_shape[0]) < self.lengths[..., None]
        inside = jnp.broadcast_to(inside.reshape(inside.shape + (1,) * (self.event_dim - 1)), self.shape())
        return inside if self.mask is None else inside & self.mask

    def _counted(self, values: Array, blank: float) -> Array:
        """Values (..., *event shape), and `blank` in the place of those that do not count."""
        return values if self.counted is None else jnp.where(self.counted, values, blank)

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


class AutoregressiveNumbers(AutoregressiveSequence):
    """Series of real numbers, each a mixture of M logistics, of which the network gives logits, means and log-scales.

    At a resolution r the density is that of the bin around r·round(x / r), divided by r.
    """

    noises = (2,)
    blank = math.nan

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real numbers."""
        return constraints.independent(constraints.real, len(self.network.shape))

    def scores(self, parameters: Array, x: Array) -> Array:
        """Log-densities (...) of numbers (...) with parameters (..., 3M)."""
        logits, mean, log_scale = jnp.split(parameters, 3, axis=-1)
        centre = (self._rounded(x)[..., None] - mean) * jnp.exp(-log_scale)
        if (resolution := self.network.resolution) is None:
            of_each = jax.nn.log_sigmoid(centre) + jax.nn.log_sigmoid(-centre) - log_scale
        else:
            half = resolution / 2 * jnp.exp(-log_scale)
            # ln[σ(b) − σ(a)] = ln σ(b) + ln σ(−a) + ln(1 − e^{a−b}), over the width of the bin.
            of_each = jax.nn.log_sigmoid(centre + half) + jax.nn.log_sigmoid(half - centre)
            of_each = of_each + jnp.log(-jnp.expm1(-2 * half)) - math.log(resolution)
        return logsumexp(jax.nn.log_softmax(logits) + of_each, axis=-1)

    def pick(self, parameters: Array, uniforms: Array) -> Array:
        """Numbers (...) of noise (..., 2): a component by the first, its logistic by the second, off 0 and 1 by ε."""
        logits, mean, log_scale = jnp.split(parameters, 3, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(logits), axis=-1)[..., :-1]
        component = jnp.sum(uniforms[..., :1] >= before, axis=-1, keepdims=True)
        mean, log_scale = (jnp.take_along_axis(part, component, axis=-1)[..., 0] for part in (mean, log_scale))
        eps = jnp.finfo(uniforms.dtype).eps
        u = jnp.clip(uniforms[..., 1], eps, 1 - eps)
        return self._rounded(mean + jnp.exp(log_scale) * (jnp.log(u) - jnp.log1p(-u)))

    def _rounded(self, x: Array) -> Array:
        resolution = self.network.resolution
        return x if resolution is None else jnp.round(x / resolution) * resolution
