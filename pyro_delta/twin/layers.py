"""What networks of any data share, in Flax: torch's initial values, attention's softmax, and positive numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def uniform(fan_in: int) -> Callable[..., Array]:
    """Torch's initial weights and biases of a layer with `fan_in` inputs per output: uniform in ±1/√fan_in."""
    bound = fan_in**-0.5

    def draw(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def linear(features_in: int, features_out: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with torch's initial values."""
    init = uniform(features_in)
    # `float` is double precision where JAX has it enabled, and single elsewhere.
    return nnx.Linear(features_in, features_out, kernel_init=init, bias_init=init, param_dtype=float, rngs=rngs)


def masked_softmax(scores: Array, mask: Any) -> Array:
    """Softmax over the last axis where the mask is true, zero elsewhere, and exactly zero where nothing is visible.

    A softmax over −∞ is NaN in rows that see nothing; here neither the value nor the gradient is.
    """
    highest = jnp.max(jnp.where(mask, scores, -jnp.inf), axis=-1, keepdims=True)
    highest = jax.lax.stop_gradient(jnp.where(jnp.isfinite(highest), highest, 0.0))
    powers = jnp.where(mask, jnp.exp(jnp.where(mask, scores - highest, 0.0)), 0.0)
    total = powers.sum(-1, keepdims=True)
    return powers / jnp.where(total > 0, total, 1.0)


def positive(ratio: Array) -> Array:
    """Softplus, 1 at 0."""
    return jax.nn.softplus(ratio) / math.log(2)
