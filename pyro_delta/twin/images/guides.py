"""Twins of the guides, written from `docs/architecture.md`: the numbers of an `ImageEncoder` as posteriors.

B images; n latent steps, d dimensions.

References:
    [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    [2] T. Salimans and D. Kingma, "Weight Normalization", NeurIPS 2016, §3 (initialisation by a batch of data).
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro
from flax import nnx
from jax import Array
from numpyro.distributions import Distribution, Independent, Normal

from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.twin.contour import Contour
from pyro_delta.twin.distributions import GaussianSequence
from pyro_delta.twin.images.encoder import ImageEncoder
from pyro_delta.twin.layers import positive
from pyro_delta.twin.rate import committed_rate, minimising_factor
from pyro_delta.twin.variables import Buffer


class ImageGuide(nnx.Module):
    """q(z | x) from an image encoder that gives d means, and `extra` numbers beside each.

    As many numbers of a coordinate as the attribute `from_data` says start from data, the mean first, the others at 0.

    Args:
        spec: shape and levels of the images.
        prior: the twin of the prior; `starts`, the event shape and, if it has them, `columns` are read.
        extra: numbers beside the mean that each coordinate takes.
        rngs: of the initial weights.
        features: averaged over the region of each step.
        channels: width of each level of the rows-above stream, finest first.
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) of the rows-above stream's convolutions.
        pixel_kernel: columns of the within-row stream's convolutions.
    """

    causality: ClassVar[str] = "anti_causal"
    from_data: ClassVar[int] = 1

    def __init__(
        self,
        spec: ImageSpec,
        prior: Any,
        extra: int,
        *,
        rngs: nnx.Rngs,
        features: int = 64,
        channels: tuple[int, ...] = (32, 48),
        row_blocks: tuple[int, ...] = (1, 2),
        pixel_blocks: int = 2,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
    ) -> None:
        """See the class."""
        self.dims = prior().event_shape[-1]
        self.encoder = ImageEncoder(
            spec,
            np.asarray(prior.starts[...]).tolist(),
            (1 + extra) * self.dims,
            columns=getattr(prior, "columns", 1),
            anti_causal=self.causality == "anti_causal",
            features=features,
            channels=tuple(channels),
            row_blocks=tuple(row_blocks),
            pixel_blocks=pixel_blocks,
            row_kernel=tuple(row_kernel),
            pixel_kernel=pixel_kernel,
            rngs=rngs,
        )

    def __call__(self, x: Array, condition: Any = None) -> Array:
        """Writes the site `z` for images x (B, C, H, W), and what they are conditioned on."""
        with numpyro.plate("data", x.shape[0]):
            return numpyro.sample("z", self.posterior(x, condition))

    def posterior(self, x: Array, condition: Any = None) -> Distribution:
        """q(z | x) for images (B, C, H, W), event shape (n, d)."""
        raise NotImplementedError

    def encode(self, x: Array, condition: Any = None) -> list[Array]:
        """The mean and the extra numbers of each coordinate, each (B, n, d)."""
        raw = self.encoder(x, condition)
        return jnp.split(raw, raw.shape[-1] // self.dims, axis=-1)

    def start_from(self, x: Array, condition: Any = None) -> None:
        """Initialises by images (B, C, H, W) [2]: `from_data` numbers with mean 0 and deviation 1, the others 0."""
        encoder, o = self.encoder, self.from_data * self.dims
        pooled_bnf = encoder.pool(x)
        deviation_nf = _deviation(pooled_bnf)
        encoder.step_scale[...] = 1 / deviation_nf
        encoder.step_shift[...] = -pooled_bnf.mean(0) / deviation_nf
        numbers_ko = encoder(x, condition)[..., :o].reshape(-1, o)
        deviation_o = _deviation(numbers_ko)
        kernel, bias = encoder.out.kernel[...], encoder.out.bias[...]
        encoder.out.kernel[...] = jnp.zeros_like(kernel).at[:, :o].set(kernel[:, :o] / deviation_o)
        encoder.out.bias[...] = jnp.zeros_like(bias).at[:o].set((bias[:o] - numbers_ko.mean(0)) / deviation_o)


class AntiCausalGuide(ImageGuide):
    """Independent over steps and dimensions; z_t hears rows ≥ starts[t] [1]. Takes the settings of `ImageGuide`."""

    def __init__(self, spec: ImageSpec, prior: Any, *, rngs: nnx.Rngs, **network: Any) -> None:
        """See the class."""
        super().__init__(spec, prior, 1, rngs=rngs, **network)
        scale_dt = np.diagonal(minimising_factor(prior(), 1), axis1=-2, axis2=-1)
        self.scale = Buffer(jnp.asarray(scale_dt.T))

    def posterior(self, x: Array, condition: Any = None) -> Independent:
        """q(z | x) for images (B, C, H, W), event shape (n, d)."""
        mean, ratio = self.encode(x, condition)
        return Normal(mean, self.scale[...] * positive(ratio) + 1e-6).to_event(2)


class BidirectionalGuide(AntiCausalGuide):
    """The same, and every step hears the whole image."""

    causality = "none"


class ContourGuide(ImageGuide):
    """Independent over coordinates, each of which keeps its distance from N(0, 1), see `Contour`.

    Args:
        spec: shape and levels of the images.
        prior: the twin of a standard normal prior.
        rngs: of the initial weights.
        rate_nats: δ of the whole sequence.
        network: settings of `ImageGuide`.
    """

    from_data = 2

    def __init__(self, spec: ImageSpec, prior: Any, *, rngs: nnx.Rngs, rate_nats: float = 4.0, **network: Any) -> None:
        """See the class."""
        super().__init__(spec, prior, 1, rngs=rngs, **network)
        self.contour = Contour(prior(), rate_nats)

    def posterior(self, x: Array, condition: Any = None) -> Independent:
        """q(z | x) for images (B, C, H, W), event shape (n, d)."""
        return Normal(*self.contour(*self.encode(x, condition))).to_event(2)

    def committed_rate(self, prior: Distribution) -> Any:
        """δ in nats of this family against a prior, which must be standard normal."""
        return self.contour.committed_rate(prior)


class StructuredGuide(ImageGuide):
    """Gaussian with blocks of consecutive steps, independent over dimensions: z = μ + M L₀ ε.

    Args:
        spec: shape and levels of the images.
        prior: the twin of a prior.
        rngs: of the initial weights.
        block: steps of a block; the last may be shorter.
        network: settings of `ImageGuide`.
    """

    def __init__(self, spec: ImageSpec, prior: Any, *, rngs: nnx.Rngs, block: int = 2, **network: Any) -> None:
        """See the class."""
        super().__init__(spec, prior, block, rngs=rngs, **network)
        self.block = block
        self.factor = Buffer(jnp.asarray(minimising_factor(prior(), block)))

    def posterior(self, x: Array, condition: Any = None) -> GaussianSequence:
        """q(z | x) for images (B, C, H, W), event shape (n, d)."""
        mean_bnd, ratio_bnd, *below = self.encode(x, condition)
        steps = np.arange(mean_bnd.shape[-2])
        matrix_bdnn = _positive_diagonal(ratio_bnd)
        for j, value_bnd in enumerate(below, start=1):
            row = steps[steps % self.block >= j]  # whose entry j to the left lies in the block, too
            matrix_bdnn = matrix_bdnn.at[..., row, row - j].set(jnp.swapaxes(value_bnd[:, row], 1, 2))
        return GaussianSequence(mean_bnd, jnp.matmul(matrix_bdnn, self.factor[...], precision="highest"))

    def committed_rate(self, prior: Distribution) -> float:
        """δ in nats of this family against a prior."""
        return committed_rate(prior, self.block).item()


def _positive_diagonal(ratio_bnd: Array) -> Array:
    """Diagonal matrices (B, d, n, n)."""
    diagonal_bdn = jnp.swapaxes(positive(ratio_bnd) + 1e-6, 1, 2)
    return diagonal_bdn[..., None] * jnp.eye(diagonal_bdn.shape[-1], dtype=diagonal_bdn.dtype)


def _deviation(values: Array) -> Array:
    """Standard deviation over axis 0; 1 where the values hardly differ."""
    found = values.std(0)
    return jnp.where(found > 1e-3 * jnp.sqrt(jnp.square(values).mean(0)) + 1e-6, found, 1.0)
