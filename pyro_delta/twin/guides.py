"""Twins of the guides, from docs/architecture.md: the numbers of an `ImageEncoder` as posteriors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx

from pyro_delta.data.spec import ImageSpec
from pyro_delta.twin.distributions import GaussianSequence
from pyro_delta.twin.encoder import ImageEncoder
from pyro_delta.twin.priors import Buffer
from pyro_delta.twin.rate import precision_of


class ImageGuide(nnx.Module):
    """q(z | x) from an `ImageEncoder` that gives `numbers` arrays (B, n, d).

    Args:
        spec: shape and levels of the images.
        prior: the twin of the prior.
        numbers: numbers of each coordinate.
        rngs: of the initial weights.
        network: sizes of the encoder.
    """

    causality: ClassVar[str] = "anti_causal"

    def __init__(self, spec: ImageSpec, prior: nnx.Module, numbers: int, *, rngs: nnx.Rngs, **network: Any) -> None:
        self.dims = prior().event_shape[-1]
        self.encoder = ImageEncoder(
            spec,
            prior.first_row,
            numbers * self.dims,
            columns=getattr(prior, "columns", 1),
            anti_causal=self.causality == "anti_causal",
            rngs=rngs,
            **network,
        )

    def encode(self, x: jax.Array) -> list[jax.Array]:
        """The numbers of every coordinate, each (B, n, d)."""
        raw = self.encoder(x)
        return jnp.split(raw, raw.shape[-1] // self.dims, axis=-1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Writes the site `z` for images x (B, C, H, W)."""
        with numpyro.plate("data", x.shape[0]):
            return numpyro.sample("z", self.posterior(x))


class AntiCausalGuide(ImageGuide):
    """Independent over steps and dimensions; z_t hears rows ≥ first_row[t]."""

    def __init__(self, spec: ImageSpec, prior: nnx.Module, *, rngs: nnx.Rngs, **network: Any) -> None:
        super().__init__(spec, prior, 2, rngs=rngs, **network)
        # the σ that attains δ: 1/√Λ_tt
        self.scale = Buffer(jnp.asarray(np.diagonal(precision_of(prior()), axis1=-2, axis2=-1).T ** -0.5))

    def posterior(self, x: jax.Array) -> dist.Distribution:
        """q(z | x), event shape (n, d)."""
        mean, ratio = self.encode(x)
        scale = self.scale[...] * jax.nn.softplus(ratio) / math.log(2) + 1e-6
        return dist.Normal(mean, scale).to_event(2)


class BidirectionalGuide(AntiCausalGuide):
    """The same, and every step hears the whole image."""

    causality = "none"


class StructuredGuide(ImageGuide):
    """Gaussian with blocks of `block` consecutive steps, z = μ + M·L₀·ε."""

    def __init__(
        self, spec: ImageSpec, prior: nnx.Module, *, rngs: nnx.Rngs, block: int = 2, **network: Any
    ) -> None:
        super().__init__(spec, prior, 1 + block, rngs=rngs, **network)
        self.block = block
        precision_dnn = precision_of(prior())
        steps = np.arange(precision_dnn.shape[-1])
        together = steps[:, None] // block == steps // block
        # A block-diagonal matrix is inverted block by block.
        factor_dnn = np.linalg.cholesky(np.linalg.inv(precision_dnn * together)) * together
        self.factor = Buffer(jnp.asarray(factor_dnn))

    def posterior(self, x: jax.Array) -> dist.Distribution:
        """q(z | x), event shape (n, d)."""
        mean_bnd, ratio_bnd, *below = self.encode(x)
        steps = np.arange(mean_bnd.shape[-2])
        diagonal = jax.nn.softplus(ratio_bnd) / math.log(2) + 1e-6
        matrix_bdnn = diagonal.mT[..., None] * jnp.eye(len(steps), dtype=diagonal.dtype)
        for j, value_bnd in enumerate(below, start=1):
            row = steps[steps % self.block >= j]
            matrix_bdnn = matrix_bdnn.at[..., row, row - j].set(value_bnd[..., row, :].mT)
        return GaussianSequence(mean_bnd, matrix_bdnn @ self.factor[...])


class IndependentDeltaGuide(ImageGuide):
    """Independent over coordinates, each with KL ≥ δ/(n·d) from N(0, 1)."""

    def __init__(
        self, spec: ImageSpec, prior: nnx.Module, *, rngs: nnx.Rngs, rate_nats: float = 4.0, **network: Any
    ) -> None:
        super().__init__(spec, prior, 2, rngs=rngs, **network)
        self.delta = rate_nats / math.prod(prior().event_shape) * (1 + 1e-4) + 1e-6
        self.least, self.most = variances_of_no_mean(self.delta)

    def posterior(self, x: jax.Array) -> dist.Distribution:
        """q(z | x), event shape (n, d)."""
        mean, ratio = self.encode(x)
        variance = self.least + (self.most - self.least) * jax.nn.sigmoid(ratio)
        square = jnp.maximum(2 * self.delta + 1 + jnp.log(variance) - variance, 1e-12)
        return dist.Normal(jnp.sqrt(square) + jax.nn.softplus(mean), jnp.sqrt(variance)).to_event(2)


def variances_of_no_mean(delta: float) -> tuple[float, float]:
    """The two variances at which KL(N(0, σ²) ‖ N(0, 1)) = δ: ln x − x + 2δ + 1 = 0, by Newton's method in ln x and x."""
    c = 2 * delta + 1
    low, high = -c, c + math.log(2 * c)
    for _ in range(100):
        # in u = ln x: u − e^u + c, concave with slope 1 − e^u; each start lies outside its root and comes nearer
        low -= (low - math.exp(low) + c) / (1 - math.exp(low))
        high -= (math.log(high) - high + c) / (1 / high - 1)
    return math.exp(low), high
