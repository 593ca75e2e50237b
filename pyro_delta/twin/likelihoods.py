"""Twins of the likelihoods: distributions over images whose pixels are mixtures of discretised logistics."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx

from pyro_delta.data.spec import ImageSpec
from pyro_delta.twin.distributions import DiscretizedLogisticMixture
from pyro_delta.twin.networks import ConditionalGatedPixelCNN, ConditionalPixelSNAIL, Network


class AutoregressiveImage(dist.Distribution):
    """p(x | z): a network makes the mixture of each pixel from the pixels before it and from z.

    Args:
        network: (x, z) → parameters (B, P, H, W).
        z: latents, (…, n, d); the batch shape is theirs.
    """

    support = dist.constraints.independent(dist.constraints.nonnegative_integer, 3)
    pytree_data_fields = ("z",)
    pytree_aux_fields = ("network",)

    def __init__(self, network: Network, z: jax.Array, *, validate_args: bool | None = None) -> None:
        self.network, self.z = network, z
        super().__init__(z.shape[:-2], network.spec.shape, validate_args=validate_args)

    def expand(self, batch_shape: tuple[int, ...]) -> AutoregressiveImage:
        """Latents repeated to a larger batch shape."""
        z = jnp.broadcast_to(self.z, (*batch_shape, *self.z.shape[-2:]))
        return AutoregressiveImage(self.network, z)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log p(x | z) in nats, pixels summed; value (…, C, H, W)."""
        batch = jnp.broadcast_shapes(value.shape[:-3], self.batch_shape)
        x = jnp.broadcast_to(value, (*batch, *value.shape[-3:])).reshape((-1, *value.shape[-3:]))
        z = jnp.broadcast_to(self.z, (*batch, *self.z.shape[-2:])).reshape((-1, *self.z.shape[-2:]))
        pixels = DiscretizedLogisticMixture(jnp.moveaxis(self.network(x, z), 1, -1), self.network.spec.levels)
        return pixels.log_prob(jnp.moveaxis(x, 1, -1)).sum((-2, -1)).reshape(batch)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Images (…, C, H, W), pixel by pixel."""
        spec, shape = self.network.spec, (*sample_shape, *self.batch_shape)
        uniforms = jax.random.uniform(key, (*shape, spec.height, spec.width, 1 + spec.channels), self.z.dtype, 1e-7)
        return self.transform(uniforms)

    def transform(self, uniforms: jax.Array) -> jax.Array:
        """Images (…, C, H, W) from uniform noise (…, H, W, 1 + C)."""
        batch = uniforms.shape[:-3]
        z = jnp.broadcast_to(self.z, (*batch, *self.z.shape[-2:])).reshape((-1, *self.z.shape[-2:]))
        x = self.network.generate(z, uniforms.reshape((math.prod(batch), *uniforms.shape[-3:])))
        return x.reshape((*batch, *x.shape[1:]))


class GatedPixelCNNLikelihood(nnx.Module):
    """p(x | z) by a Gated PixelCNN."""

    network_class: type[Network] = ConditionalGatedPixelCNN

    def __init__(self, spec: ImageSpec, prior: nnx.Module, *, rngs: nnx.Rngs, **options: Any) -> None:
        self.network = self.network_class(spec, prior.first_row, prior().event_shape[-1], rngs=rngs, **options)

    def __call__(self, z: jax.Array) -> AutoregressiveImage:
        """The distribution of the images of latents z (…, n, d)."""
        return AutoregressiveImage(self.network, z)


class PixelSNAILLikelihood(GatedPixelCNNLikelihood):
    """p(x | z) by a PixelSNAIL."""

    network_class = ConditionalPixelSNAIL
