"""Twins of the likelihoods, written from `docs/architecture.md`: distributions over whole images.

C channels, H rows, W columns; n latent steps of d dimensions; K mixture components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from flax import nnx
from jax import Array
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.twin.conditioning import Conditioning, Told
from pyro_delta.twin.images.conditional import (
    ConditionalGatedPixelCNN,
    ConditionalNetwork,
    ConditionalPixelSNAIL,
    generate,
)
from pyro_delta.twin.logistic_mixture import DiscretizedLogisticMixture


class AutoregressiveImage(Distribution):
    """p(x | z): the network makes the mixture of each pixel from the pixels before it and from z.

    `log_prob` is one pass over whole images; `sample` writes pixel after pixel in a scan, and computes nothing twice.

    Args:
        network: of the parameters of all pixels.
        z: latents (..., n, d); the batch shape is theirs.
        dropout_key: with one, `log_prob` drops features, as in training.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    pytree_data_fields = ("network", "z", "dropout_key")

    def __init__(
        self,
        network: ConditionalNetwork,
        z: Array,
        dropout_key: Array | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.network, self.z, self.dropout_key = network, z, dropout_key
        super().__init__(z.shape[:-2], network.spec.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        """Integers 0 … levels − 1 of shape (C, H, W)."""
        return constraints.independent(constraints.integer_interval(0, self.network.spec.levels - 1), 3)

    def expand(self, batch_shape: Sequence[int]) -> AutoregressiveImage:
        """The same with latents repeated to another batch shape."""
        z = jnp.broadcast_to(self.z, (*batch_shape, *self.z.shape[-2:]))
        return type(self)(self.network, z, self.dropout_key, validate_args=self._validate_args)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-probability of images (..., C, H, W)."""
        batch = jnp.broadcast_shapes(value.shape[:-3], self.batch_shape)
        x_bchw = jnp.broadcast_to(value, (*batch, *self.event_shape)).reshape(-1, *self.event_shape)
        rngs = None if self.dropout_key is None else nnx.Rngs(self.dropout_key)
        parameters_bphw = self.network(x_bchw, self._latents(batch), rngs)
        return self._pixels(parameters_bphw).log_prob(x_bchw).reshape(batch)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of a sample, (H, W, 1 + C)."""
        channels, *image = self.event_shape
        return *image, 1 + channels

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Images (*sample_shape, *batch_shape, C, H, W), integers."""
        shape = (*sample_shape, *self.batch_shape, *self.noise_shape)
        tiny = jnp.finfo(self.z.dtype).tiny  # 0 itself is no draw
        return self.from_uniforms(jax.random.uniform(key, shape, self.z.dtype, minval=tiny))

    def from_uniforms(self, uniforms: Array) -> Array:
        """The images (..., C, H, W) that uniforms (..., H, W, 1 + C) give; see `DiscretizedLogisticMixture`."""
        batch = uniforms.shape[:-3]
        uniforms_hwbu = jnp.moveaxis(uniforms.reshape(-1, *uniforms.shape[-3:]), 0, 2)

        def choose(parameters_bp: Array, uniforms_bu: Array) -> Array:
            pixel = self._pixels(parameters_bp[..., None, None])
            return pixel.from_uniforms(uniforms_bu[:, None, None])[..., 0, 0]

        images, _ = generate(self.network, self._latents(batch), choose, uniforms_hwbu)
        return images.reshape(*batch, *self.event_shape)

    def _latents(self, batch: tuple[int, ...]) -> Array:
        """Z repeated to a batch shape, whose dimensions are then one: (B, n, d)."""
        event = self.z.shape[-2:]
        return jnp.broadcast_to(self.z, (*batch, *event)).reshape(math.prod(batch), *event)

    def _pixels(self, parameters_bphw: Array) -> DiscretizedLogisticMixture:
        spec = self.network.spec
        return DiscretizedLogisticMixture.from_parameters(
            parameters_bphw, channels=spec.channels, levels=spec.levels, validate_args=False
        )


class ImageLikelihood(nnx.Module):
    """p(x | z) by a network; `train` and `eval` of `nnx.Module` switch its dropout on and off (off at first).

    Args:
        network: made of where each step of what it is told is seen from, and of d.
        told: what it is told.
    """

    def __init__(self, network: Callable[[Any, int], ConditionalNetwork], told: Told) -> None:
        """See the class."""
        self.told, self.network, self.deterministic = told, network(told.seen, told.dims), True

    def __call__(self, z: Array, condition: Any = None) -> AutoregressiveImage:
        """p(x | z) for latents (..., n, d), and what images are conditioned on."""
        key = None if self.deterministic else numpyro.prng_key()
        return AutoregressiveImage(self.network, self.told(z, condition=condition), key)


class GatedPixelCNNLikelihood(ImageLikelihood):
    """p(x | z) by a Gated PixelCNN that is told of z.

    Args:
        spec: shape and levels of the images.
        prior: the twin of the prior; `starts` and the event shape are read.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a row sees the steps with starts up to it, or `full`, where it sees all.
        mixtures: K.
        latent_channels: of the map made from z.
        channels: width of each level of the rows-above stream, finest first.
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) of the rows-above stream's convolutions.
        pixel_kernel: columns of the within-row stream's convolutions.
        stem: (rows, columns, pixels) of the first look at the rows above and at the pixels to the left.
        norm: whether blocks read features with a root mean square of at most 1.
    """

    def __init__(
        self,
        spec: ImageSpec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        mixtures: int = 5,
        latent_channels: int = 16,
        channels: tuple[int, ...] = (32, 48),
        row_blocks: tuple[int, ...] = (1, 2),
        pixel_blocks: int = 2,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
        stem: tuple[int, int, int] = (3, 9, 5),
        norm: bool = False,
    ) -> None:
        """See the class."""
        network = partial(
            ConditionalGatedPixelCNN,
            spec,
            mixtures=mixtures,
            latent_channels=latent_channels,
            channels=tuple(channels),
            row_blocks=tuple(row_blocks),
            pixel_blocks=pixel_blocks,
            row_kernel=tuple(row_kernel),
            pixel_kernel=pixel_kernel,
            stem=tuple(stem),
            norm=norm,
            rngs=rngs,
        )
        super().__init__(network, Told(spec, prior, conditioning, use_latents=use_latents, rngs=rngs))


class PixelSNAILLikelihood(ImageLikelihood):
    """p(x | z) by a PixelSNAIL that is told of z.

    Args:
        spec: shape and levels of the images.
        prior: the twin of the prior; `starts` and the event shape are read.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a row sees the steps with starts up to it, or `full`, where it sees all.
        mixtures: K.
        latent_channels: of the map made from z.
        channels: width.
        blocks: each ends with attention.
        layers: gated convolutions of each block.
        heads: of attention.
        norm: whether blocks read features with a root mean square of at most 1.
        dropout: probability with which features are dropped in training.
    """

    def __init__(
        self,
        spec: ImageSpec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        mixtures: int = 10,
        latent_channels: int = 16,
        channels: int = 64,
        blocks: int = 2,
        layers: int = 4,
        heads: int = 2,
        norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        """See the class."""
        network = partial(
            ConditionalPixelSNAIL,
            spec,
            mixtures=mixtures,
            latent_channels=latent_channels,
            channels=channels,
            blocks=blocks,
            layers=layers,
            heads=heads,
            norm=norm,
            dropout=dropout,
            rngs=rngs,
        )
        super().__init__(network, Told(spec, prior, conditioning, use_latents=use_latents, rngs=rngs))
