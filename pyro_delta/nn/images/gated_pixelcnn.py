"""The Gated PixelCNN as a network: features in, features out, strictly causal in raster order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.errors import UserError
from pyro_delta.nn.images.causal import (
    PixelBlock,
    PixelConv,
    PixelState,
    Reads,
    RowConv,
    RowsAbove,
    along,
    bias_of,
    shift_down,
    shift_right,
)
from pyro_delta.nn.recompute import applied


class GatedPixelCNN(Reads):
    """Two-stream gated causal network [1] whose rows-above stream is a U-net.

    The output at (r, c) depends on the input at rows < r (all columns) and at row r, columns < c, and on the context
    wherever row r may see it (the context is used at rows ≤ r). There is no blind spot and nothing is shared across
    the batch.

    NOTE: Departs from [1]: the rows-above stream runs to its end before the within-row stream starts (each within-row
    block takes its own 1×1 link from the finished stream, rather than from the layer of equal depth), and keeps coarser
    levels for reach; a learned position bias stands in for the information that zero padding gives.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        height: rows of the input.
        width: columns of the input.
        channels: width of each level of the rows-above stream, finest first; the within-row stream has channels[0].
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) in the rows-above stream.
        pixel_kernel: columns in the within-row stream.
        stem: (rows, columns, pixels) of the first look at the rows above and at the pixels to the left.
        norm: whether blocks, strided convolutions, links and the hidden layer before the output read the streams
            `bounded`; the streams themselves are not, as in a Transformer whose blocks begin with a norm.
        context_channels: channels of the context, 0 for none.
        causal: False for the same network without masks and shifts, in which every position sees its whole
            surroundings: an encoder, not for generation.

    Raises:
        UserError: for sizes that make no network.

    References:
        1. A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS 2016.
    """

    ends = ("stem_rows", "stem_pixels", "out")

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
        stem: tuple[int, int, int] = (3, 9, 5),  # wide: cheap on few channels, and where most bits are won
        norm: bool = False,
        context_channels: int = 0,
        causal: bool = True,
    ) -> None:
        super().__init__(norm=norm)
        _check_sizes(channels, row_blocks, pixel_blocks, row_kernel, pixel_kernel, stem)
        fine = channels[0]
        self.causal = causal
        self.stem_rows = RowConv(channels_in, fine, (stem[0], stem[1]), causal=causal)
        self.stem_pixels = PixelConv(channels_in, fine, stem[2], causal=causal)
        self.position = nn.Parameter(torch.zeros(fine, height, width))
        self.context = nn.Conv2d(context_channels, fine, 1) if context_channels else None
        self.rows_above = RowsAbove(channels, row_blocks, row_kernel, norm=norm, causal=causal)
        self.within_row = nn.ModuleList(
            PixelBlock(fine, pixel_kernel, norm=norm, causal=causal) for _ in range(pixel_blocks)
        )
        self.head = nn.Conv2d(fine, fine, 1)
        self.link_sizes = [2 * fine] * pixel_blocks + [fine]
        self.link = nn.Conv2d(fine, sum(self.link_sizes), 1)
        self.out = nn.Conv2d(fine, channels_out, 1)

    def forward(self, x_bchw: Tensor, context_bchw: Tensor | None = None) -> Tensor:
        """All positions at once: (B, channels_in, H, W) → (B, channels_out, H, W)."""
        v_bchw = self.stem_rows(shift_down(x_bchw) if self.causal else x_bchw) + self.position
        if self.context is not None:
            context_bchw = self.context(context_bchw)
        v_bchw = self.rows_above(v_bchw, context_bchw)
        *links, head_link = self.link(self.read(v_bchw)).split(self.link_sizes, dim=1)
        h_bchw = self.stem_pixels(shift_right(x_bchw) if self.causal else x_bchw)
        for block, link in zip(self.within_row, links, strict=True):
            h_bchw = applied(block, h_bchw, link)
        return self.out(F.silu(self.head(self.read(h_bchw)) + head_link))

    def step_row(self, row_bcw: Tensor, context_bcw: Tensor | None, index: int, state: PixelState) -> None:
        """Prepares row `index`, given the finished row before it (zeros at the first row) and the row's context."""
        state.row, state.width = index, row_bcw.shape[2]
        v_bwc = self.stem_rows.step_row(row_bcw.transpose(1, 2), state) + self.position[:, index].T
        context_bwc = None
        if self.context is not None and context_bcw is not None:
            context_bwc = along(self.context, context_bcw.transpose(1, 2))
        links_bwc = along(self.link, self.read(self.rows_above.step_row(v_bwc, context_bwc, state), -1))
        biases = [bias_of(block.conv.conv) for block in self._within_row()]
        state.link(self, links_bwc + torch.cat((*biases, bias_of(self.head))))

    def step_pixel(self, x_bc: Tensor, column: int, state: PixelState) -> Tensor:
        """Output (B, channels_out) at `column`, given the input's pixel before it (zeros at the first column)."""
        *links, head_link = state.links[self][column].split(self.link_sizes, dim=1)
        h_bc = self.stem_pixels.step_pixel(x_bc, column, bias_of(self.stem_pixels.conv), state)
        for block, link in zip(self._within_row(), links, strict=True):
            h_bc = block.step_pixel(h_bc, column, link, state)
        return along(self.out, F.silu(torch.addmm(head_link, self.read(h_bc), self.head.weight.flatten(1).T)))

    def _within_row(self) -> Iterable[PixelBlock]:
        return cast("Iterable[PixelBlock]", self.within_row)


def _check_sizes(
    channels: tuple[int, ...],
    row_blocks: tuple[int, ...],
    pixel_blocks: int,
    row_kernel: tuple[int, int],
    pixel_kernel: int,
    stem: tuple[int, int, int],
) -> None:
    if not channels or len(channels) != len(row_blocks) or min(channels) < 1 or min(row_blocks) < 0:
        raise UserError(
            f"channels={list(channels)} and row_blocks={list(row_blocks)} must name the same levels, "
            "with 1 or more channels and 0 or more blocks for each."
        )
    if row_kernel[0] < 2 or row_kernel[1] < 1 or row_kernel[1] % 2 == 0:
        raise UserError(f"row_kernel={list(row_kernel)} needs 2 or more rows and an odd number of columns.")
    if pixel_blocks < 1 or pixel_kernel < 1:
        raise UserError(f"pixel_blocks={pixel_blocks} and pixel_kernel={pixel_kernel} must be at least 1.")
    if min(stem) < 1 or stem[1] % 2 == 0:
        raise UserError(f"stem={list(stem)} needs 1 or more rows, an odd number of columns and 1 or more pixels.")
