"""The Gated PixelCNN trunk in Flax, written from `docs/architecture.md`: for whole images, or one pixel at a time.

B images, H rows, W columns. The stream of the rows above [1] is a U-net over columns, of c_0, c_1, … channels from
fine to coarse; the stream within the row has c_0 channels at full resolution.

References:
    [1] A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NIPS 2016.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pyro_delta.twin.images.causal import (
    PixelBlock,
    PixelConv,
    Pointwise,
    Reads,
    RowBlock,
    RowConv,
    shift_down,
    shift_right,
)


def dealt_out(v: Array, width: int) -> Array:
    """(..., ⌈W/2⌉, 2c) → (..., W, c): the two halves of the channels become neighbouring columns."""
    return v.reshape((*v.shape[:-2], 2 * v.shape[-2], v.shape[-1] // 2))[..., :width, :]


class CoarserState(NamedTuple):
    """What a coarser level remembers between rows."""

    window: Array
    """the newest fine rows"""
    stream: RowsState


class RowsState(NamedTuple):
    """What a level of the rows-above stream remembers between its rows."""

    coarser: CoarserState | None
    windows: list[Array]
    """one of each block"""


class Coarser(Reads):
    """The coarser levels, seen from the finest: half the columns, their stream, and all columns again."""

    def __init__(
        self,
        fine: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        kernel: tuple[int, int],
        *,
        dilation: int,
        norm: bool,
        causal: bool,
        rngs: nnx.Rngs,
    ) -> None:
        """`fine` is the number of channels of the finer level."""
        self.norm = norm
        self.down = RowConv(fine, channels[0], kernel, stride=2, dilation=dilation, causal=causal, rngs=rngs)
        self.stream = RowsAbove(channels, blocks, kernel, dilation=2 * dilation, norm=norm, causal=causal, rngs=rngs)
        self.up = Pointwise(channels[0], 2 * fine, rngs=rngs)

    def __call__(self, v_bhwc: Array) -> Array:
        """(B, H, W, fine) → (B, H, W, fine)."""
        return dealt_out(self.up(self.stream(self.down(self.read(v_bhwc)))), v_bhwc.shape[2])

    def start(self, batch: int, width: int, dtype: Any) -> CoarserState:
        """What is known before row 0."""
        return CoarserState(self.down.start(batch, width, dtype), self.stream.start(batch, (width + 1) // 2, dtype))

    def step(self, state: CoarserState, row_bwc: Array) -> tuple[CoarserState, Array]:
        """The next window and stream, and the result for the row."""
        window, u_bwc = self.down.step(state.window, self.read(row_bwc))
        stream, u_bwc = self.stream.step(state.stream, u_bwc)
        return CoarserState(window, stream), dealt_out(self.up(u_bwc), row_bwc.shape[1])


class RowsAbove(nnx.Module):
    """The rows-above stream: gated blocks on rows, over as many levels as there are widths.

    Args:
        channels: c_0, c_1, …, finest first.
        blocks: the number of blocks at each level.
        kernel: (k_r, k_c) of all of them.
        dilation: of rows at the finest level; it doubles from level to level.
        norm: whether blocks and strided convolutions read the stream `bounded`.
        causal: if false, rows below are seen as well.
        rngs: of the initial values.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        kernel: tuple[int, int],
        *,
        dilation: int = 1,
        norm: bool = False,
        causal: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        fine, *coarser = channels
        same: dict[str, Any] = {"dilation": dilation, "norm": norm, "causal": causal, "rngs": rngs}
        self.has_coarser = bool(coarser)
        if self.has_coarser:
            self.coarser = Coarser(fine, tuple(coarser), blocks[1:], kernel, **same)
        self.blocks = nnx.List([RowBlock(fine, kernel, **same) for _ in range(blocks[0])])

    def __call__(self, v_bhwc: Array, context_bhwc: Array | None = None) -> Array:
        """(B, H, W, c_0), and a context of the same shape, → (B, H, W, c_0)."""
        if self.has_coarser:
            v_bhwc = v_bhwc + self.coarser(v_bhwc)
        if context_bhwc is not None:
            v_bhwc = v_bhwc + context_bhwc
        for block in self.blocks:
            v_bhwc = block(v_bhwc)
        return v_bhwc

    def start(self, batch: int, width: int, dtype: Any) -> RowsState:
        """What is known before row 0."""
        coarser = self.coarser.start(batch, width, dtype) if self.has_coarser else None
        return RowsState(coarser, [block.start(batch, width, dtype) for block in self.blocks])

    def step(self, state: RowsState, row_bwc: Array, context_bwc: Array | None = None) -> tuple[RowsState, Array]:
        """The result for the next row."""
        coarser = state.coarser
        v_bwc = row_bwc
        if coarser is not None:
            coarser, u_bwc = self.coarser.step(coarser, v_bwc)
            v_bwc = v_bwc + u_bwc
        if context_bwc is not None:
            v_bwc = v_bwc + context_bwc
        windows = []
        for block, window in zip(self.blocks, state.windows, strict=True):
            next_window, v_bwc = block.step(window, v_bwc)
            windows.append(next_window)
        return RowsState(coarser, windows), v_bwc


class State(NamedTuple):
    """What `GatedPixelCNN` remembers from pixel to pixel."""

    stem_rows: Array
    rows: RowsState
    stem_pixels: Array
    windows: list[Array]
    """one of each block within the row"""


class GatedPixelCNN(Reads):
    """The causal trunk: a result knows the pixels before it in raster order, and the context up to its row.

    Args:
        channels_in: of the input.
        channels_out: of the result.
        height: H.
        width: W.
        channels: c_0, c_1, … of the rows-above stream, finest first.
        row_blocks: blocks of that stream at each level.
        pixel_blocks: b, blocks within the row.
        row_kernel: (k_r, k_c) of the rows-above stream.
        pixel_kernel: width of the kernels within the row.
        stem: rows and columns of the kernel over the rows above, and width of that within the row, that see the input.
        norm: whether blocks, strided convolutions, links and the hidden layer before the result read `bounded`.
        context_channels: of the context; 0 if there is none.
        causal: if false, there are neither masks nor shifts: every pixel sees all around it.
        rngs: of the initial values.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        height: int,
        width: int,
        channels: tuple[int, ...],
        row_blocks: tuple[int, ...],
        pixel_blocks: int,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
        stem: tuple[int, int, int] = (3, 9, 5),
        norm: bool = False,
        context_channels: int = 0,
        causal: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        c = channels[0]
        self.norm = norm
        self.causal, self.splits = causal, tuple(2 * c * (i + 1) for i in range(pixel_blocks))
        self.stem_rows = RowConv(channels_in, c, stem[:2], causal=causal, rngs=rngs)
        self.stem_pixels = PixelConv(channels_in, c, stem[2], causal=causal, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((c, height, width), float))
        if context_channels:
            self.context = Pointwise(context_channels, c, rngs=rngs)
        self.rows_above = RowsAbove(tuple(channels), tuple(row_blocks), row_kernel, norm=norm, causal=causal, rngs=rngs)
        self.link = Pointwise(c, 2 * c * pixel_blocks + c, rngs=rngs)
        self.within_row = nnx.List(
            [PixelBlock(c, pixel_kernel, norm=norm, causal=causal, rngs=rngs) for _ in range(pixel_blocks)]
        )
        self.head = Pointwise(c, c, rngs=rngs)
        self.out = Pointwise(c, channels_out, rngs=rngs)

    def __call__(self, x_bhwc: Array, context_bhwc: Array | None = None, rngs: nnx.Rngs | None = None) -> Array:
        """(B, H, W, in), and a context (B, H, W, ctx), → (B, H, W, out). There is no dropout that needs `rngs`."""
        above, left = (shift_down(x_bhwc), shift_right(x_bhwc)) if self.causal else (x_bhwc, x_bhwc)
        v = self.stem_rows(above) + self._positions()
        v = self.rows_above(v, None if context_bhwc is None else self.context(context_bhwc))
        *links, link = jnp.split(self.link(self.read(v)), self.splits, axis=-1)
        h = self.stem_pixels(left)
        for block, block_link in zip(self.within_row, links, strict=True):
            h = block(h, block_link)
        return self.out(jax.nn.silu(self.head(self.read(h)) + link))

    def start(self, batch: int) -> State:
        """What is known before the first pixel."""
        position_chw = self.position[...]
        width, dtype = position_chw.shape[2], position_chw.dtype
        return State(
            self.stem_rows.start(batch, width, dtype),
            self.rows_above.start(batch, width, dtype),
            self.stem_pixels.start(batch, dtype),
            [block.start(batch, dtype) for block in self.within_row],
        )

    def row_inputs(self, context_bhwc: Array | None) -> tuple[Array, Array | None]:
        """What `step_row` wants of each row, rows first: position (H, W, c_0) and context (H, B, W, c_0)."""
        context = None if context_bhwc is None else jnp.swapaxes(self.context(context_bhwc), 0, 1)
        return self._positions(), context

    def start_notes(self, batch: int) -> None:
        """Nothing is noted down at pixels for the next row."""

    def step_row(
        self, state: State, row: Array, above_bwc: Array, notes: None, inputs: tuple[Array, Array | None]
    ) -> tuple[State, list[Array]]:
        """Begin a row, given the row above (zero for row 0); returns the links of its pixels, columns first."""
        position_wc, context_bwc = inputs
        stem_rows, v_bwc = self.stem_rows.step(state.stem_rows, above_bwc)
        rows, v_bwc = self.rows_above.step(state.rows, v_bwc + position_wc, context_bwc)
        links = jnp.split(jnp.swapaxes(self.link(self.read(v_bwc)), 0, 1), self.splits, axis=-1)
        fresh = self.start(above_bwc.shape[0])
        return State(stem_rows, rows, fresh.stem_pixels, fresh.windows), links

    def step_pixel(
        self, state: State, position: Array, left_bc: Array, before_bc: Array, links: list[Array]
    ) -> tuple[State, Array, None]:
        """The result (B, out) at the next pixel of the row, given the pixel to its left (zero at column 0)."""
        *block_links, link = links
        stem_pixels, h_bc = self.stem_pixels.step(state.stem_pixels, left_bc)
        windows = []
        for block, window, block_link in zip(self.within_row, state.windows, block_links, strict=True):
            next_window, h_bc = block.step(window, h_bc, block_link)
            windows.append(next_window)
        result = self.out(jax.nn.silu(self.head(self.read(h_bc)) + link))
        return State(state.stem_rows, state.rows, stem_pixels, windows), result, None

    def _positions(self) -> Array:
        return self.position[...].transpose(1, 2, 0)
