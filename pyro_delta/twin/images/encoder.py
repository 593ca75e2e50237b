"""The guides' image encoder in Flax, written from `docs/architecture.md`.

B images, H rows, W columns; n latent steps, of which step t belongs to the image from row starts[t] on; f features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pyro_delta.data.images.spec import ImageSpec
from pyro_delta.twin.conditioning import ConditionFeatures, check_told
from pyro_delta.twin.images.causal import embed_pixels
from pyro_delta.twin.images.gated_pixelcnn import GatedPixelCNN
from pyro_delta.twin.layers import linear


def region_weights(spec: ImageSpec, starts: Sequence[int], columns: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The average over the region of each step, (n, H, W), rounded to single precision.

    Step t has the rows from starts[t] to the next larger value in starts, and block number t mod `columns` of
    that many equal blocks of columns.
    """
    first = np.asarray(starts)
    later = np.where(first > first[:, None], first, spec.height)
    rows, c = np.arange(spec.height), np.arange(spec.width)
    in_rows = (rows >= first[:, None]) & (rows < later.min(axis=1)[:, None])
    in_columns = c * columns // spec.width == (np.arange(len(starts)) % columns)[:, None]
    region = (in_rows[:, :, None] & in_columns[:, None, :]).astype(np.float32)
    return region / region.sum((1, 2), keepdims=True)


class ImageEncoder(nnx.Module):
    """Numbers for each latent step from the image.

    Args:
        spec: of the images.
        starts: of each latent step.
        outputs: numbers for each step.
        columns: blocks of columns that the steps of a row share; 1 unless the prior is a lattice.
        anti_causal: whether step t sees rows ≥ starts[t] only; else it sees all of the image.
        features: f.
        rngs: of the initial values.
        network: settings of the `GatedPixelCNN`.
    """

    def __init__(
        self,
        spec: ImageSpec,
        starts: Sequence[int],
        outputs: int,
        *,
        columns: int = 1,
        anti_causal: bool = True,
        features: int = 64,
        rngs: nnx.Rngs,
        **network: Any,
    ) -> None:
        """See the class."""
        self.spec, self.starts, self.columns = spec, tuple(int(row) for row in starts), columns
        self.anti_causal = anti_causal
        border = 1 if anti_causal else 0
        self.trunk = GatedPixelCNN(
            spec.channels + 1,
            features,
            height=spec.height + border,
            width=spec.width + border,
            causal=anti_causal,
            rngs=rngs,
            **network,
        )
        self.step_scale = nnx.Param(jnp.ones((len(self.starts), features), float))
        self.step_shift = nnx.Param(jnp.zeros((len(self.starts), features), float))
        self.hidden = linear(features, features, rngs=rngs)
        if spec.condition is not None:
            self.condition = ConditionFeatures(spec.condition, features, rngs=rngs, scale=0.0)
        self.out = linear(features, outputs, rngs=rngs)

    def __call__(self, x_bchw: Array, condition: Any = None) -> Array:
        """Integers (B, C, H, W), and what they are conditioned on, → (B, n, outputs)."""
        hidden = self.hidden(self.pool(x_bchw) * self.step_scale[...] + self.step_shift[...])
        check_told(hasattr(self, "condition"), condition)
        if condition is not None:
            hidden = hidden + self.condition(condition)[:, None]
        return self.out(jax.nn.silu(hidden))

    def pool(self, x_bchw: Array) -> Array:
        """The average features of each step's region, (B, n, f), before they are scaled and shifted."""
        e_bhwc = embed_pixels(x_bchw.transpose(0, 2, 3, 1), self.spec.levels, self.step_scale[...].dtype)
        features_bhwf = self._anti_causal(e_bhwc) if self.anti_causal else self.trunk(e_bhwc)
        weights_nhw = region_weights(self.spec, self.starts, self.columns).astype(features_bhwf.dtype)
        return jnp.einsum("bhwf,nhw->bnf", features_bhwf, weights_nhw)

    def _anti_causal(self, e_bhwc: Array) -> Array:
        """Features (B, H, W, f) of which row r knows rows ≥ r, and column c of its own row columns ≥ c.

        The trunk runs over the reversed image. It sees strictly earlier pixels; the border of one row and one column
        shifts the result by one, so that a pixel knows itself.
        """
        padded = jnp.pad(e_bhwc[:, ::-1, ::-1], ((0, 0), (1, 0), (0, 1), (0, 0)))
        return self.trunk(padded)[:, 1:, 1:][:, ::-1, ::-1]
