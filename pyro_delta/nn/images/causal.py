"""Causal building blocks over images, each in two forms that agree: all positions at once, and one position, cached.

An image is read in raster order. Two streams see its past: the *rows-above* stream, whose value at row r depends on
rows < r (all columns), and the *within-row* stream, whose value at (r, c) also depends on pixels < c of row r.
Blocks of the first offer `step_row` (called once per row), blocks of the second `step_pixel` (once per pixel). Blocks
of a network with a single stream offer both: the within-row stream's own finished rows are then the rows above. What a
block must remember between steps it keeps in a `Cache`, a plain dictionary keyed by the module itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = dict[nn.Module, Tensor]


@dataclass
class PixelState:
    """What cached generation remembers.

    Attributes:
        rows: what lasts from row to row.
        pixels: what is forgotten at each new row.
        links_wbc: what a network's rows above say to each column of the current row.
        row: the current row.
    """

    rows: Cache = field(default_factory=dict)
    pixels: Cache = field(default_factory=dict)
    links_wbc: Tensor = field(default_factory=lambda: torch.empty(0))
    row: int = 0


def gate(x_bchw: Tensor) -> Tensor:
    """tanh(a)·sigmoid(b) of the two halves (a, b) of the channels (dimension 1) [1, eq. 2].

    References:
        1. A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS 2016.
    """
    a, b = x_bchw.chunk(2, dim=1)
    return torch.tanh(a) * torch.sigmoid(b)


def shift_down(x_bchw: Tensor) -> Tensor:
    """Row r of the result is row r−1 of the argument; row 0 is zero."""
    return F.pad(x_bchw, (0, 0, 1, 0))[:, :, :-1]


def shift_right(x_bchw: Tensor) -> Tensor:
    """Column c of the result is column c−1 of the argument; column 0 is zero."""
    return F.pad(x_bchw, (1, 0))[..., :-1]


def at_pixel(conv: nn.Conv2d, x_bc: Tensor) -> Tensor:
    """A 1×1 convolution at one position."""
    return F.linear(x_bc, conv.weight.flatten(1), conv.bias)


def along_row(conv: nn.Conv2d, row_bcw: Tensor) -> Tensor:
    """A 1×1 convolution of one row."""
    return conv(row_bcw.unsqueeze(2)).squeeze(2)


def columns_first(row_bcw: Tensor) -> Tensor:
    """(B, C, W) → (W, B, C): one contiguous slice a pixel."""
    return row_bcw.permute(2, 0, 1).contiguous()


class RowConv(nn.Module):
    """Convolution that reaches up but never down: output row j sees input rows stride·j − kernel_rows + 1 … stride·j.

    Padding is zero: kernel_rows − 1 rows on top, none below, (kernel_columns − 1)/2 columns on either side.
    An input of height H and width W gives ⌈H/stride⌉ × ⌈W/stride⌉. Unmasked, the kernel has 2·kernel_rows − 1 rows, of
    which the causal ones are the upper part, and as many are padded below as on top; it is not for stepping.

    Args:
        channels_in: input channels.
        channels_out: output channels.
        kernel: (rows, columns), columns odd.
        stride: 1 or 2, of rows and columns alike.
        causal: False for the unmasked kernel.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int],
        *,
        stride: int = 1,
        causal: bool = True,
    ) -> None:
        super().__init__()
        rows, columns = kernel
        if columns % 2 == 0:
            raise ValueError(f"kernel columns must be odd, got {columns}.")
        self.history, self.side = rows - 1, columns // 2
        self.future = 0 if causal else self.history
        kernel = (rows + self.future, columns)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=stride)

    def forward(self, x_bchw: Tensor) -> Tensor:
        """All rows at once."""
        return self.conv(F.pad(x_bchw, (self.side, self.side, self.history, self.future)))

    def remember(self, row_bcw: Tensor, cache: Cache) -> Tensor:
        """Adds a finished input row; returns the window of the kernel_rows newest ones, (B, C, kernel_rows, W)."""
        row = row_bcw.unsqueeze(2)
        past = cache.get(self)
        if past is None:
            past = row.new_zeros(*row.shape[:2], self.history, row.shape[3])
        window = torch.cat((past, row), dim=2)
        cache[self] = window[:, :, 1:]
        return window

    def convolve(self, window_bckw: Tensor) -> Tensor:
        """The output row that ends at the window's last row."""
        return self.conv(F.pad(window_bckw, (self.side, self.side))).squeeze(2)

    def step_row(self, row_bcw: Tensor, cache: Cache) -> Tensor:
        """One row; for stride 1."""
        return self.convolve(self.remember(row_bcw, cache))


class PixelConv(nn.Module):
    """Convolution along a row that reaches left but never right: column c sees input columns c − width + 1 … c.

    Unmasked it sees as many to the right; it is not for stepping then.
    """

    def __init__(self, channels_in: int, channels_out: int, width: int, *, causal: bool = True) -> None:
        super().__init__()
        self.history = width - 1
        self.future = 0 if causal else self.history
        self.conv = nn.Conv2d(channels_in, channels_out, (1, width + self.future))

    def forward(self, x_bchw: Tensor) -> Tensor:
        """All columns at once."""
        return self.conv(F.pad(x_bchw, (self.history, self.future)))

    def step_pixel(self, x_bc: Tensor, cache: Cache) -> Tensor:
        """One column; the cache is emptied at the start of each row."""
        past = cache.get(self)
        if past is None:
            past = x_bc.new_zeros(*x_bc.shape, self.history)
        window = torch.cat((past, x_bc.unsqueeze(2)), dim=2)
        cache[self] = window[..., 1:]
        return F.linear(window.flatten(1), self.conv.weight.flatten(1), self.conv.bias)


class RowBlock(nn.Module):
    """Gated residual block of the rows-above stream: x + W·gate(RowConv(x))."""

    def __init__(self, channels: int, kernel: tuple[int, int], *, causal: bool = True) -> None:
        super().__init__()
        self.conv = RowConv(channels, 2 * channels, kernel, causal=causal)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, v_bchw: Tensor) -> Tensor:
        """All rows at once."""
        return v_bchw + self.out(gate(self.conv(v_bchw)))

    def step_row(self, row_bcw: Tensor, cache: Cache) -> Tensor:
        """One row."""
        gated_bcw = gate(self.conv.step_row(row_bcw, cache))
        return row_bcw + along_row(self.out, gated_bcw)


class PixelBlock(nn.Module):
    """Gated residual block of the within-row stream: h + W·gate(PixelConv(h) + link), link from the rows above.

    Args:
        channels: of h; the link has twice as many.
        width: of the convolution.
        dropout: probability with which `forward` in training mode drops a gated feature. `step_pixel` drops none:
            generation runs in evaluation mode.
    """

    def __init__(self, channels: int, width: int, *, dropout: float = 0.0, causal: bool = True) -> None:
        super().__init__()
        self.conv = PixelConv(channels, 2 * channels, width, causal=causal)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, h_bchw: Tensor, link_bchw: Tensor) -> Tensor:
        """All columns at once."""
        return h_bchw + self.out(self.dropout(gate(self.conv(h_bchw) + link_bchw)))

    def step_pixel(self, h_bc: Tensor, link_bc: Tensor, cache: Cache) -> Tensor:
        """One column."""
        return h_bc + at_pixel(self.out, gate(self.conv.step_pixel(h_bc, cache) + link_bc))


class RasterBlock(nn.Module):
    """Gated residual block of a single raster stream: a `PixelBlock` linked to the row above in the same stream.

    The output at (r, c) sees row r − 1, columns c − 1 … c + 1, and row r, columns c − 1 and c.

    Args:
        channels: of the stream.
        dropout: as for `PixelBlock`.
    """

    ROW_KERNEL = (1, 3)
    PIXEL_KERNEL = 2

    def __init__(self, channels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.above = RowConv(channels, 2 * channels, self.ROW_KERNEL)
        self.along = PixelBlock(channels, self.PIXEL_KERNEL, dropout=dropout)

    def forward(self, h_bchw: Tensor) -> Tensor:
        """All positions at once."""
        return self.along(h_bchw, self.above(shift_down(h_bchw)))

    def step_row(self, state: PixelState) -> None:
        """Links the next row to the finished one (zeros at the first)."""
        if self not in state.rows:
            state.rows[self] = torch.zeros_like(state.links_wbc)
        finished_bcw = state.rows[self].permute(1, 2, 0)
        state.pixels[self] = columns_first(self.above.step_row(finished_bcw, state.rows))

    def step_pixel(self, h_bc: Tensor, column: int, state: PixelState) -> Tensor:
        """One column; h is noted down for the row to come."""
        state.rows[self][column] = h_bc
        return self.along.step_pixel(h_bc, state.pixels[self][column], state.pixels)


class RowsAbove(nn.Module):
    """The rows-above stream: a causal U-net. Strides live only here.

    Level 0 keeps the image's resolution, level s has ⌈H/2^s⌉ rows, of which row j depends on input rows ≤ 2^s·j. A
    level first adds what the coarser ones say (a strided `RowConv` down, the inner stream, a 1×1 convolution and pixel
    shuffle up: fine row r hears coarse row ⌊r/2⌋), then, at level 0, the context, and runs its gated residual blocks.

    Args:
        channels: width of each level, finest first.
        blocks: gated residual blocks of each level.
        kernel: (rows, columns) of every block and of the strided convolutions.
        causal: False for unmasked kernels.
    """

    def __init__(
        self, channels: tuple[int, ...], blocks: tuple[int, ...], kernel: tuple[int, int], *, causal: bool = True
    ) -> None:
        super().__init__()
        fine, *coarser = channels
        self.coarser: Coarser | None = None
        if coarser:
            self.coarser = Coarser(fine, tuple(coarser), blocks[1:], kernel, causal=causal)
        self.blocks = nn.ModuleList(RowBlock(fine, kernel, causal=causal) for _ in range(blocks[0]))

    def forward(self, v_bchw: Tensor, context_bchw: Tensor | None = None) -> Tensor:
        """All rows at once; the context has the shape of the input."""
        if self.coarser is not None:
            v_bchw = v_bchw + self.coarser(v_bchw)
        if context_bchw is not None:
            v_bchw = v_bchw + context_bchw
        for block in self.blocks:
            v_bchw = block(v_bchw)
        return v_bchw

    def step_row(self, row_bcw: Tensor, context_bcw: Tensor | None, index: int, cache: Cache) -> Tensor:
        """Row `index` of this level."""
        if self.coarser is not None:
            row_bcw = row_bcw + self.coarser.step_row(row_bcw, index, cache)
        if context_bcw is not None:
            row_bcw = row_bcw + context_bcw
        for block in cast("Iterable[RowBlock]", self.blocks):
            row_bcw = block.step_row(row_bcw, cache)
        return row_bcw


class Coarser(nn.Module):
    """What the coarser levels say to a finer one: half the rows and columns, the stream there, and back up."""

    def __init__(
        self,
        fine: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        kernel: tuple[int, int],
        *,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.down = RowConv(fine, channels[0], kernel, stride=2, causal=causal)
        self.stream = RowsAbove(channels, blocks, kernel, causal=causal)
        self.up = nn.Conv2d(channels[0], 4 * fine, 1)

    def forward(self, v_bchw: Tensor) -> Tensor:
        """All rows at once; odd sizes are rounded up on the way down and cropped on the way back."""
        up_bchw = F.pixel_shuffle(self.up(self.stream(self.down(v_bchw))), 2)
        return up_bchw[:, :, : v_bchw.shape[2], : v_bchw.shape[3]]

    def step_row(self, row_bcw: Tensor, index: int, cache: Cache) -> Tensor:
        """Fine row `index`: every second one makes a coarse row, which serves two fine ones."""
        window_bckw = self.down.remember(row_bcw, cache)
        if index % 2 == 0:
            coarse_bcw = self.stream.step_row(self.down.convolve(window_bckw), None, index // 2, cache)
            cache[self] = F.pixel_shuffle(self.up(coarse_bcw.unsqueeze(2)), 2)
        return cache[self][:, :, index % 2, : row_bcw.shape[2]]
