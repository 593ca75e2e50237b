"""Causal building blocks in Flax, written from `docs/architecture.md`: for whole images, or one row or pixel at a time.

B images, H rows, W columns, c channels; arrays are (B, H, W, c), a row (B, W, c), a pixel (B, c). Attributes have the
names of torch's state dicts, so that weights convert by name. `step` uses the same weights as `__call__`; what a block
remembers between steps is an array of fixed size, its *window*, so that a scan can carry it.

References:
    [1] A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NIPS 2016.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pyro_delta.twin.layers import uniform


class Convolution(nnx.Conv):
    """A convolution that pads nothing, with torch's initial values: one matrix product over patches.

    XLA's own is slower on CPUs: twice with its gradient, ten times with its gradient inside a loop.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        """Columns are strided, rows dilated."""
        init = uniform(channels_in * kernel[0] * kernel[1])
        super().__init__(
            channels_in,
            channels_out,
            kernel,
            strides=(1, stride),
            kernel_dilation=(dilation, 1),
            padding="VALID",
            kernel_init=init,
            bias_init=init,
            param_dtype=float,
            rngs=rngs,
        )
        self.stride, self.dilation = stride, dilation

    def __call__(self, v_bhwc: Array) -> Array:
        """(B, H, W, in) → (B, H', W', out)."""
        kernel = self.kernel[...]
        rows, columns, channels_in, channels_out = kernel.shape
        left_rows, left_columns = v_bhwc.shape[1] - (rows - 1) * self.dilation, v_bhwc.shape[2] - columns + 1
        patches = [
            v_bhwc[:, r * self.dilation : r * self.dilation + left_rows, c : c + left_columns : self.stride]
            for r in range(rows)
            for c in range(columns)
        ]
        weights = kernel.reshape(rows * columns * channels_in, channels_out)
        return jnp.concatenate(patches, axis=-1) @ weights + self.bias[...]


class Pointwise(nnx.Conv):
    """A 1×1 convolution that takes images, rows and pixels alike: (..., in) → (..., out)."""

    def __init__(self, channels_in: int, channels_out: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        init = uniform(channels_in)
        super().__init__(
            channels_in, channels_out, (1, 1), kernel_init=init, bias_init=init, param_dtype=float, rngs=rngs
        )

    def __call__(self, v: Array) -> Array:
        """(..., in) → (..., out)."""
        return v @ self.kernel[...][0, 0] + self.bias[...]


def embed_pixels(x: Array, levels: int, dtype: Any) -> Array:
    """Integers 0 … levels−1, (..., C), to [−1, 1] with a channel of ones behind them, (..., C + 1)."""
    e = x.astype(dtype) * (2 / (levels - 1)) - 1
    return jnp.concatenate([e, jnp.ones_like(e[..., :1])], axis=-1)


def gate(v: Array) -> Array:
    """The first half of the channels times the sigmoid of the second."""
    a, b = jnp.split(v, 2, axis=-1)
    return a * jax.nn.sigmoid(b)


def bounded(v: Array) -> Array:
    """Features with a root mean square of at most 1 over the channels of a position; larger ones are scaled to it."""
    return v * jax.lax.rsqrt(jnp.square(v).mean(-1, keepdims=True).clip(1.0))


class Reads(nnx.Module):
    """What reads a stream of features, as it is or, with `norm`, `bounded`."""

    norm: bool

    def read(self, v: Array) -> Array:
        """What is read of features."""
        return bounded(v) if self.norm else v


def shift_down(v_bhwc: Array) -> Array:
    """Row r of the result is row r − 1, row 0 is zero."""
    return jnp.pad(v_bhwc, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]


def shift_right(v_bhwc: Array) -> Array:
    """Column c of the result is column c − 1, column 0 is zero."""
    return jnp.pad(v_bhwc, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]


class RowConv(nnx.Module):
    """A convolution whose row r sees rows r, r − dilation, … r − (k_r − 1)·dilation, and columns on both sides.

    Args:
        channels_in: channels of the argument.
        channels_out: channels of the result.
        kernel: (k_r, k_c), k_c odd.
        stride: of columns, 1 or 2.
        dilation: of rows.
        causal: if false, as many rows are seen below as above: the kernel has 2·k_r − 1 rows.
        rngs: of the initial values.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        rows, columns = kernel
        self.above, self.below = (rows - 1) * dilation, 0 if causal else (rows - 1) * dilation
        self.side = (columns - 1) // 2
        rows = rows if causal else 2 * rows - 1
        self.conv = Convolution(channels_in, channels_out, (rows, columns), stride=stride, dilation=dilation, rngs=rngs)

    def __call__(self, v_bhwc: Array) -> Array:
        """(B, H, W, in) → (B, H, ⌈W/stride⌉, out)."""
        side = (self.side, self.side)
        return self.conv(jnp.pad(v_bhwc, ((0, 0), (self.above, self.below), side, (0, 0))))

    def start(self, batch: int, width: int, dtype: Any) -> Array:
        """The window before row 0: as many rows of zeros as the kernel reaches up, (B, (k_r − 1)·dilation, W, in)."""
        return jnp.zeros((batch, self.above, width, self.conv.in_features), dtype)

    def row(self, rows_bkwc: Array) -> Array:
        """The result, (B, W', out), of the last of the rows that the kernel spans."""
        side = (self.side, self.side)
        return self.conv(jnp.pad(rows_bkwc, ((0, 0), (0, 0), side, (0, 0))))[:, 0]

    def step(self, window_bkwc: Array, row_bwc: Array) -> tuple[Array, Array]:
        """The next window, and the result for the row."""
        rows_bkwc = jnp.concatenate([window_bkwc, row_bwc[:, None]], axis=1)
        return rows_bkwc[:, 1:], self.row(rows_bkwc)


class PixelConv(nnx.Module):
    """A convolution along the row: column c sees columns c − k + 1 … c; if not causal, as many on the right as well."""

    def __init__(self, channels_in: int, channels_out: int, width: int, *, causal: bool = True, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.left, self.right = width - 1, 0 if causal else width - 1
        self.conv = Convolution(channels_in, channels_out, (1, self.left + 1 + self.right), rngs=rngs)

    def __call__(self, v_bhwc: Array) -> Array:
        """(B, H, W, in) → (B, H, W, out)."""
        return self.conv(jnp.pad(v_bhwc, ((0, 0), (0, 0), (self.left, self.right), (0, 0))))

    def start(self, batch: int, dtype: Any) -> Array:
        """The window at the start of a row: k − 1 zero pixels, (B, k − 1, in)."""
        return jnp.zeros((batch, self.left, self.conv.in_features), dtype)

    def step(self, window_bkc: Array, pixel_bc: Array) -> tuple[Array, Array]:
        """The next window, and the result for the pixel, (B, out)."""
        pixels_bkc = jnp.concatenate([window_bkc, pixel_bc[:, None]], axis=1)
        result = jnp.einsum("bkc,kco->bo", pixels_bkc, self.conv.kernel[...][0]) + self.conv.bias[...]
        return pixels_bkc[:, 1:], result


class RowBlock(Reads):
    """v + out(gate(conv(v))), a gated residual block [1] on rows."""

    def __init__(
        self,
        channels: int,
        kernel: tuple[int, int],
        *,
        dilation: int = 1,
        norm: bool = False,
        causal: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        self.norm = norm
        self.conv = RowConv(channels, 2 * channels, kernel, dilation=dilation, causal=causal, rngs=rngs)
        self.out = Pointwise(channels, channels, rngs=rngs)

    def __call__(self, v_bhwc: Array) -> Array:
        """(B, H, W, c) → (B, H, W, c)."""
        return v_bhwc + self.out(gate(self.conv(self.read(v_bhwc))))

    def start(self, batch: int, width: int, dtype: Any) -> Array:
        """The window before row 0."""
        return self.conv.start(batch, width, dtype)

    def step(self, window: Array, row_bwc: Array) -> tuple[Array, Array]:
        """The next window, and the result for the row."""
        window, gated = self.conv.step(window, self.read(row_bwc))
        return window, row_bwc + self.out(gate(gated))


class PixelBlock(Reads):
    """h + out(gate(conv(h) + link)): a gated residual block [1] along the row, told of the rows above by the link.

    Args:
        channels: c.
        width: of the kernel.
        norm: whether the convolution reads h `bounded`.
        dropout: probability with which gated features are dropped in training.
        causal: as for `PixelConv`.
        rngs: of the initial values.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        norm: bool = False,
        dropout: float = 0.0,
        causal: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        self.norm = norm
        self.conv = PixelConv(channels, 2 * channels, width, causal=causal, rngs=rngs)
        self.out = Pointwise(channels, channels, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, h_bhwc: Array, link_bhwc: Array, rngs: nnx.Rngs | None = None) -> Array:
        """(B, H, W, c) and a link (B, H, W, 2c) → (B, H, W, c). Features are dropped if `rngs` are given."""
        gated = gate(self.conv(self.read(h_bhwc)) + link_bhwc)
        return h_bhwc + self.out(self.dropout(gated, deterministic=rngs is None, rngs=rngs))

    def start(self, batch: int, dtype: Any) -> Array:
        """The window at the start of a row."""
        return self.conv.start(batch, dtype)

    def step(self, window: Array, pixel_bc: Array, link_bc: Array) -> tuple[Array, Array]:
        """The next window, and the result for the pixel."""
        window, v = self.conv.step(window, self.read(pixel_bc))
        return window, pixel_bc + self.out(gate(v + link_bc))


class RasterBlock(nnx.Module):
    """A residual block on one stream in raster order: three pixels of the row above and two of its own."""

    def __init__(self, channels: int, *, norm: bool = False, dropout: float = 0.0, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.above = RowConv(channels, 2 * channels, (1, 3), rngs=rngs)
        self.along = PixelBlock(channels, 2, norm=norm, dropout=dropout, rngs=rngs)

    def __call__(self, h_bhwc: Array, rngs: nnx.Rngs | None = None) -> Array:
        """(B, H, W, c) → (B, H, W, c)."""
        return self.along(h_bhwc, self.above(shift_down(self.along.read(h_bhwc))), rngs)

    def links(self, row_above_wbc: Array) -> Array:
        """The links of a row, (W, B, 2c), from the block's inputs along the row above, (W, B, c)."""
        row_bwc = jnp.swapaxes(row_above_wbc, 0, 1)
        return jnp.swapaxes(self.above.row(row_bwc[:, None]), 0, 1)
