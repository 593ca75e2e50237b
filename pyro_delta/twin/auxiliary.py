"""The auxiliary prior p_aux(z_t | z_{<t}) [1]: a single-layer LSTM with Gaussian outputs, or mixtures of them.

Written from `docs/architecture.md`. n steps, d dimensions, h hidden units, K components. Weights have torch's names and
shapes, so that they convert as they are.

References:
    [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.scipy.special import logsumexp, ndtr
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from pyro_delta.errors import UserError
from pyro_delta.twin.variables import Buffer


class Weights(NamedTuple):
    """The numbers of the network: of the layer (input, forget, cell, output gate, h rows each), and of its output."""

    weight_ih: Array
    """(4h, d)"""
    weight_hh: Array
    """(4h, h)"""
    bias: Array
    """(4h,), of input and state together"""
    out_weight: Array
    """(P, h), P = K − 1 + 2Kd"""
    out_bias: Array
    """(P,)"""


class State(NamedTuple):
    """Hidden state and cell, (..., h) each."""

    hidden: Array
    cell: Array


class Mixture(NamedTuple):
    """One step's mixture of diagonal Gaussians."""

    logits: Array
    """(..., K)"""
    means: Array
    """(..., K, d)"""
    log_scales: Array
    """(..., K, d)"""


def _start(weights: Weights, batch: tuple[int, ...], dtype: Any) -> State:
    zero = jnp.zeros((*batch, weights.weight_hh.shape[1]), dtype)
    return State(zero, zero)


def _step(weights: Weights, state: State, previous_d: Array) -> State:
    gates = previous_d @ weights.weight_ih.T + state.hidden @ weights.weight_hh.T + weights.bias
    put, keep, new, show = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(keep) * state.cell + jax.nn.sigmoid(put) * jnp.tanh(new)
    return State(jax.nn.sigmoid(show) * jnp.tanh(cell), cell)


def _mixture(weights: Weights, hidden: Array) -> Mixture:
    """What the output layer says: K − 1 logits (component 0 has 0), K·d means, K·d log-scales in [−7, 7]."""
    d = weights.weight_ih.shape[1]
    numbers = hidden @ weights.out_weight.T + weights.out_bias
    k = (numbers.shape[-1] + 1) // (1 + 2 * d)
    logits, means, log_scales = jnp.split(numbers, [k - 1, k - 1 + k * d], axis=-1)
    logits = jnp.concatenate([jnp.zeros_like(numbers[..., :1]), logits], axis=-1)
    shape = (*numbers.shape[:-1], k, d)
    return Mixture(logits, means.reshape(shape), jnp.clip(log_scales.reshape(shape), -7, 7))


class SequentialGaussian(Distribution):
    """z_t given z_{<t} from an LSTM that reads z_{t−1}. No committed rate, no closed-form KL.

    Args:
        weights: of the network.
        length: n.
        batch_shape: the weights have none; draws of a batch are independent.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_matrix
    pytree_data_fields = ("weights",)
    pytree_aux_fields = ("length",)

    def __init__(
        self,
        weights: Weights,
        length: int,
        batch_shape: Sequence[int] = (),
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.weights, self.length = Weights(*map(jnp.asarray, weights)), length
        event_shape = (length, weights.weight_ih.shape[1])
        super().__init__(tuple(batch_shape), event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        """Components are picked: no gradient through samples."""
        return False

    def expand(self, batch_shape: Sequence[int]) -> SequentialGaussian:
        """The same with another batch shape."""
        return type(self)(self.weights, self.length, batch_shape, validate_args=self._validate_args)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-density of (..., n, d), every step given the true ones before it."""
        batch = jnp.broadcast_shapes(value.shape[:-2], self.batch_shape)
        value = jnp.asarray(value, jnp.result_type(value, self.weights.out_weight))
        z_tbd = jnp.moveaxis(jnp.broadcast_to(value, (*batch, *self.event_shape)), -2, 0)
        previous_tbd = jnp.concatenate([jnp.zeros_like(z_tbd[:1]), z_tbd[:-1]])

        def step(state: State, previous_bd: Array) -> tuple[State, Array]:
            state = _step(self.weights, state, previous_bd)
            return state, state.hidden

        hidden = jax.lax.scan(step, _start(self.weights, batch, z_tbd.dtype), previous_tbd)[1]
        logits, means, log_scales = _mixture(self.weights, hidden)
        square = jnp.square((z_tbd[..., None, :] - means) * jnp.exp(-log_scales))
        of_component = -0.5 * jnp.sum(square + 2 * log_scales + math.log(2 * math.pi), axis=-1)
        return jnp.sum(logsumexp(jax.nn.log_softmax(logits) + of_component, axis=-1), axis=0)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Of the noise of a sample, (n, 1 + d)."""
        n, d = self.event_shape
        return n, 1 + d

    def transform(self, noise: Array) -> Array:
        """Sample from standard normal noise (..., n, 1 + d), step by step.

        Φ of entry 0 picks the component, entries 1 … d are its noise.
        """
        noise_t = jnp.moveaxis(noise, -2, 0)
        batch = noise_t.shape[1:-1]

        def step(carry: tuple[State, Array], eps: Array) -> tuple[tuple[State, Array], Array]:
            state = _step(self.weights, *carry)
            logits, means, log_scales = _mixture(self.weights, state.hidden)
            before = jnp.cumsum(jax.nn.softmax(logits), axis=-1)[..., :-1]
            component = jnp.sum(ndtr(eps[..., :1]) >= before, axis=-1)[..., None, None]
            mean, log_scale = (jnp.take_along_axis(part, component, -2)[..., 0, :] for part in (means, log_scales))
            z_bd = mean + jnp.exp(log_scale) * eps[..., 1:]
            return (state, z_bd), z_bd

        start = _start(self.weights, batch, noise.dtype), jnp.zeros((*batch, self.event_shape[1]), noise.dtype)
        return jnp.moveaxis(jax.lax.scan(step, start, noise_t)[1], 0, -2)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws (*sample_shape, *batch_shape, n, d)."""
        n, d = self.event_shape
        shape = (*sample_shape, *self.batch_shape, n, 1 + d)
        return self.transform(jax.random.normal(key, shape, self.weights.out_weight.dtype))


class LSTM(nnx.Module):
    """Weights of a single LSTM layer, uniform in ±1/√h."""

    def __init__(self, dims: int, hidden: int, rngs: nnx.Rngs) -> None:
        def uniform(*shape: int) -> nnx.Param:
            bound = 1 / math.sqrt(hidden)
            return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound))

        self.weight_ih_l0, self.weight_hh_l0 = uniform(4 * hidden, dims), uniform(4 * hidden, hidden)
        self.bias_ih_l0, self.bias_hh_l0 = uniform(4 * hidden), uniform(4 * hidden)


class Output(nnx.Module):
    """Weights of the output layer: zero, but for the means of several components, drawn from N(0, ½²)."""

    def __init__(self, dims: int, hidden: int, mixtures: int, rngs: nnx.Rngs) -> None:
        bias = jnp.zeros(mixtures - 1 + 2 * mixtures * dims)
        if mixtures > 1:
            apart = 0.5 * jax.random.normal(rngs.params(), (mixtures * dims,))
            bias = bias.at[mixtures - 1 : mixtures - 1 + mixtures * dims].set(apart)
        self.weight, self.bias = nnx.Param(jnp.zeros((len(bias), hidden))), nnx.Param(bias)


class LSTMNetwork(nnx.Module):
    """The layer and its output."""

    def __init__(self, dims: int, *, hidden: int, mixtures: int, rngs: nnx.Rngs) -> None:
        self.lstm = LSTM(dims, hidden, rngs)
        self.out = Output(dims, hidden, mixtures, rngs)


class LSTMPrior(nnx.Module):
    """A prior that is learned from samples of q(z | x), in place of one that commits a rate.

    Args:
        prior: the module that it stands in for; gives n, d and `starts`.
        hidden: h.
        mixtures: K.
        rngs: of the initial weights.

    Raises:
        UserError: if `hidden` or `mixtures` is below 1.
    """

    def __init__(self, prior: Any, *, hidden: int = 128, mixtures: int = 1, rngs: nnx.Rngs) -> None:
        for name, size in (("hidden", hidden), ("mixtures", mixtures)):
            if size < 1:
                raise UserError(f"{name} = {size}: give at least 1.")
        self.starts = Buffer(prior.starts[...])
        self.network = LSTMNetwork(prior().event_shape[1], hidden=hidden, mixtures=mixtures, rngs=rngs)

    @classmethod
    def like(cls, auxiliary: Any, prior: Any) -> LSTMPrior:
        """The twin of a Pyro `LSTMPrior`, of the same sizes, in place of the twin `prior`."""
        network = auxiliary.network
        return cls(prior, hidden=network.lstm.hidden_size, mixtures=network.mixtures, rngs=nnx.Rngs(0))

    def __call__(self) -> SequentialGaussian:
        """p_aux at the weights' present values."""
        lstm, out = self.network.lstm, self.network.out
        weights = Weights(
            weight_ih=lstm.weight_ih_l0[...],
            weight_hh=lstm.weight_hh_l0[...],
            bias=lstm.bias_ih_l0[...] + lstm.bias_hh_l0[...],
            out_weight=out.weight[...],
            out_bias=out.bias[...],
        )
        return SequentialGaussian(weights, self.starts.shape[0])
