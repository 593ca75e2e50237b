"""From image and z to the parameters of each pixel, in Flax, written from `docs/architecture.md`: at once, or in turn.

B images, C channels, H rows, W columns; n latent steps of d dimensions, of which step t belongs to the image from row
starts[t] on; P parameters per pixel of a mixture of K logistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.twin.images.causal import embed_pixels
from pyro_delta.twin.images.gated_pixelcnn import GatedPixelCNN
from pyro_delta.twin.images.pixelsnail import PixelSNAIL
from pyro_delta.twin.latents import LatentMap


class ConditionalNetwork(nnx.Module):
    """The parameters of each pixel's mixture from the pixels before it and z: a trunk, told of z by a `LatentMap`.

    Args:
        spec: of the images.
        starts: of each latent step: row r sees those with starts ≤ r; None if z is ignored.
        dims: d.
        mixtures: K.
        latent_channels: of the map made from z.
        rngs: of the initial values.
        network: settings of the trunk.
    """

    Trunk: type[GatedPixelCNN] | type[PixelSNAIL]

    def __init__(
        self,
        spec: ImageSpec,
        starts: Sequence[int] | None,
        dims: int,
        *,
        mixtures: int = 10,
        latent_channels: int = 16,
        rngs: nnx.Rngs,
        **network: Any,
    ) -> None:
        """See the class."""
        self.spec = spec
        if starts is not None:
            self.latents = LatentMap(
                dims, starts, positions=spec.height, outputs=latent_channels * spec.width, rngs=rngs
            )
        self.trunk = self.Trunk(
            spec.channels + 1,
            mixtures * (1 + 2 * spec.channels + spec.channels * (spec.channels - 1) // 2),
            height=spec.height,
            width=spec.width,
            context_channels=0 if starts is None else latent_channels,
            rngs=rngs,
            **network,
        )

    def __call__(self, x_bchw: Array, z_bnd: Array, rngs: nnx.Rngs | None = None) -> Array:
        """Integers (B, C, H, W) and z (B, n, d) → (B, P, H, W). Features are dropped only if `rngs` are given."""
        return self.trunk(self.embed(x_bchw.transpose(0, 2, 3, 1)), self.context(z_bnd), rngs).transpose(0, 3, 1, 2)

    def embed(self, x: Array) -> Array:
        """Integers (..., C) as the trunk wants them, (..., C + 1)."""
        return embed_pixels(x, self.spec.levels, self.trunk.out.bias[...].dtype)

    def context(self, z_bnd: Array) -> Array | None:
        """The map of z, (B, H, W, ctx), if z is used."""
        if not hasattr(self, "latents"):
            return None
        # Output k·W + c of a row is channel k at column c.
        return self.latents(z_bnd).reshape(len(z_bnd), self.spec.height, -1, self.spec.width).swapaxes(2, 3)


class ConditionalGatedPixelCNN(ConditionalNetwork):
    """A Gated PixelCNN told of z; settings of the trunk are those of `GatedPixelCNN`."""

    Trunk = GatedPixelCNN


class ConditionalPixelSNAIL(ConditionalNetwork):
    """A PixelSNAIL told of z; settings of the trunk are those of `PixelSNAIL`."""

    Trunk = PixelSNAIL


Choose = Callable[[Array, Any], Array]
"""(B, P) parameters of a pixel, and the inputs at that pixel, → its levels, integers (B, C)."""


def generate(network: ConditionalNetwork, z_bnd: Array, choose: Choose, inputs: Any) -> tuple[Array, Array]:
    """Write images pixel by pixel in raster order, each by `choose` from its parameters given the pixels before.

    A scan over rows with a scan over columns inside; nothing is computed twice, and no dropout applies. The parameters
    are those that `network` gives for the finished images. Under `jit`, a result that is not used costs nothing.

    Args:
        network: whose parameters the pixels are drawn from.
        z_bnd: (B, n, d); its batch is that of the images, even if z is ignored.
        choose: draws a pixel (or copies a given one).
        inputs: arrays (H, W, …), in any nesting: what `choose` is given at (row, column), such as noise.

    Returns:
        The images, integers (B, C, H, W), and the parameters, (B, P, H, W).
    """
    trunk, spec, batch = network.trunk, network.spec, len(z_bnd)
    nothing_bwc = jnp.zeros((batch, spec.width, spec.channels + 1), trunk.out.bias[...].dtype)
    columns = jnp.arange(spec.width)

    def write_pixel(carry: Any, here: Any) -> Any:
        state, before_bc = carry
        position, column, links, inputs = here
        left_bc = jnp.where(column > 0, before_bc, 0.0)
        state, parameters_bp, notes = trunk.step_pixel(state, position, left_bc, before_bc, links)
        levels_bc = choose(parameters_bp, inputs)
        return (state, network.embed(levels_bc)), (levels_bc, parameters_bp, notes)

    def write_row(carry: Any, here: Any) -> Any:
        state, above_bwc, notes = carry
        row, row_inputs, inputs = here
        state, links = trunk.step_row(state, row, above_bwc, notes, row_inputs)
        along = (row * spec.width + columns, columns, links, inputs)
        (state, _), (levels_wbc, parameters_wbp, notes) = jax.lax.scan(write_pixel, (state, above_bwc[:, -1]), along)
        return (state, network.embed(levels_wbc.swapaxes(0, 1)), notes), (levels_wbc, parameters_wbp)

    start = (trunk.start(batch), nothing_bwc, trunk.start_notes(batch))
    rows = (jnp.arange(spec.height), trunk.row_inputs(network.context(z_bnd)), inputs)
    _, (levels_hwbc, parameters_hwbp) = jax.lax.scan(write_row, start, rows)
    return levels_hwbc.transpose(2, 3, 0, 1), parameters_hwbp.transpose(2, 3, 0, 1)
