"""Causal building blocks over images, each in two forms that agree: all positions at once, and one position, cached.

An image is read in raster order. Two streams see its past: the *rows-above* stream, whose value at row r depends on
rows < r (all columns), and the *within-row* stream, whose value at (r, c) also depends on pixels < c of row r.
Blocks of the first offer `step_row` (called once per row), blocks of the second `step_pixel` (once per pixel). Blocks
of a network with a single stream offer both: the within-row stream's own finished rows are then the rows above. What a
block must remember between steps it keeps in a `Cache`, a plain dictionary keyed by the module itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.nn.recompute import Block, applied

Cache = dict[nn.Module, Tensor]


@dataclass
class PixelState:
    """What cached generation remembers.

    Attributes:
        rows: the newest rows of every convolution's input, row r at r modulo their number, (rows, B, padded W, C); of
            other blocks what lasts from row to row.
        links: what the rows above say to each column of the current row, (W, B, C), with the biases of what adds it.
            It lies where it lay for the row before.
        lines: the inputs of the current row's convolutions, (B, k − 1 + W, C), zero before the first column.
        kernels: weights as `step_pixel` multiplies by them.
        row: the current row.
        width: columns of a row.
        fixed: whether `step_pixel` is to be the same operations on the same memory in every row, so that those of one
            can be captured, and replayed for others.
        places: of the columns of the current row in raster order, (W,), if `fixed` and a block asks for them.
        before: which positions of the image come before each, (W, H·W).
    """

    rows: Cache = field(default_factory=dict)
    links: Cache = field(default_factory=dict)
    lines: Cache = field(default_factory=dict)
    kernels: Cache = field(default_factory=dict)
    row: int = 0
    width: int = 0
    fixed: bool = False
    places: Tensor | None = None
    before: Tensor | None = None

    def link(self, owner: nn.Module, row_bwc: Tensor) -> None:
        """Sets the links of a module for the current row, given as (B, W, C)."""
        if owner in self.links:
            self.links[owner].copy_(row_bwc.transpose(0, 1))
        else:
            self.links[owner] = row_bwc.transpose(0, 1).contiguous()


def gate(x: Tensor, dim: int = 1) -> Tensor:
    """a·sigmoid(b) of the two halves (a, b) of the channels [1].

    Not by `F.glu` where there is a gradient: it would come with its channels first, and each convolution before it
    would have to copy it.

    NOTE: Gated PixelCNN has tanh(a) in the place of a [2, eq. 2].

    References:
        1. T. Salimans et al., "PixelCNN++", ICLR 2017 (the gate of its residual blocks).
        2. A. van den Oord et al., "Conditional Image Generation with PixelCNN Decoders", NeurIPS 2016.
    """
    if not x.requires_grad:
        return F.glu(x, dim)
    a, b = x.chunk(2, dim)
    return a * torch.sigmoid(b)


def bounded(x: Tensor, dim: int = 1) -> Tensor:
    """Features with a root mean square of at most 1 over the channels of a position; larger ones are scaled to it.

    Of what a decoder has never seen, blocks without a bound make more from one to the next, up to a thousand times as
    much after ten of them.
    """
    size = torch.linalg.vector_norm(x, dim=dim, keepdim=True) / math.sqrt(x.shape[dim])
    return x * size.clamp(min=1.0).reciprocal().to(x.dtype)


class Reads(nn.Module):
    """What reads a stream of features, as it is or, with `norm`, `bounded`; the stream itself stays as it is."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.norm = norm

    def read(self, x: Tensor, dim: int = 1) -> Tensor:
        """What is read of features whose channels are at `dim`."""
        return bounded(x, dim) if self.norm else x


def shift_down(x_bchw: Tensor) -> Tensor:
    """Row r of the result is row r−1 of the argument; row 0 is zero."""
    return F.pad(x_bchw, (0, 0, 1, -1))


def shift_right(x_bchw: Tensor) -> Tensor:
    """Column c of the result is column c−1 of the argument; column 0 is zero."""
    return F.pad(x_bchw, (1, -1))


def along(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution at one position or along a row, channels last."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def bias_of(conv: nn.Conv2d) -> Tensor:
    """The bias, which every convolution here has."""
    assert conv.bias is not None
    return conv.bias


class RowConv(nn.Module):
    """Convolution that reaches up but never down: row r sees rows r, r − dilation, … r − (kernel_rows − 1)·dilation.

    Padding is zero: (kernel_rows − 1)·dilation rows on top, none below, (kernel_columns − 1)/2 columns on either side.
    An input of height H and width W gives H × ⌈W/stride⌉. Unmasked, the kernel has 2·kernel_rows − 1 rows, of which the
    causal ones are the upper part, and as many are padded below as on top; it is not for stepping.

    Args:
        channels_in: input channels.
        channels_out: output channels.
        kernel: (rows, columns), columns odd.
        stride: 1 or 2, of columns. Rows are never strided: what a row is told must not depend on whether it is odd.
        dilation: of rows.
        causal: False for the unmasked kernel.
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
    ) -> None:
        super().__init__()
        rows, columns = kernel
        if columns % 2 == 0:
            raise ValueError(f"kernel columns must be odd, got {columns}.")
        self.history, self.side = (rows - 1) * dilation, columns // 2
        self.future = 0 if causal else self.history
        kernel = (rows if causal else 2 * rows - 1, columns)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride=(1, stride), dilation=(dilation, 1))

    def forward(self, x_bchw: Tensor) -> Tensor:
        """All rows at once.

        NOTE: a strided convolution to a single column is run to two, of which the second is cut: oneDNN's kernel for it
        in bfloat16 reads beyond its input, and of what it finds there NaN comes into the result.
        """
        stride = self.conv.stride[1]
        single = 1 < stride >= x_bchw.shape[3]
        padded_bchw = F.pad(x_bchw, (self.side, self.side + stride * single, self.history, self.future))
        return self.conv(padded_bchw)[..., :1] if single else self.conv(padded_bchw)

    def step_row(self, row_bwc: Tensor, state: PixelState) -> Tensor:
        """The current row: (B, W, in) → (B, ⌈W/stride⌉, out)."""
        if self not in state.rows:
            batch, width, channels = row_bwc.shape
            state.rows[self] = row_bwc.new_zeros(self.history + 1, batch, width + 2 * self.side, channels)
            state.kernels[self] = self.conv.weight.permute(2, 1, 3, 0).flatten(1, 2)
        held_hbwc = state.rows[self]
        held_hbwc[state.row % len(held_hbwc)].narrow(1, self.side, row_bwc.shape[1]).copy_(row_bwc)
        result = bias_of(self.conv)
        for index, kernel in enumerate(state.kernels[self]):
            row = state.row - self.history + index * self.conv.dilation[0]
            patches_bwck = held_hbwc[row % len(held_hbwc)].unfold(1, self.conv.kernel_size[1], self.conv.stride[1])
            result = torch.addmm(result, patches_bwck.flatten(2).flatten(0, 1), kernel)
        return result.unflatten(0, patches_bwck.shape[:2])


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

    def step_pixel(self, x_bc: Tensor, column: int, link_bc: Tensor, state: PixelState) -> Tensor:
        """One column; the link is added, and is to hold the bias."""
        if self not in state.lines:
            columns = self.history + state.width
            state.lines[self] = x_bc.new_zeros(x_bc.shape[0], columns, x_bc.shape[1])
            state.kernels[self] = self.conv.weight.squeeze(2).permute(2, 1, 0).flatten(0, 1)
        line_bwc = state.lines[self]
        window_bkc = line_bwc.narrow(1, column, self.history + 1)
        window_bkc[:, -1] = x_bc
        return torch.addmm(link_bc, window_bkc.flatten(1), state.kernels[self])


class RowBlock(Reads, Block):
    """Gated residual block of the rows-above stream: x + W·gate(RowConv(x))."""

    def __init__(
        self,
        channels: int,
        kernel: tuple[int, int],
        *,
        dilation: int = 1,
        norm: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__(norm=norm)
        self.conv = RowConv(channels, 2 * channels, kernel, dilation=dilation, causal=causal)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, v_bchw: Tensor) -> Tensor:
        """All rows at once."""
        return v_bchw + self.out(gate(self.conv(self.read(v_bchw))))

    def step_row(self, row_bwc: Tensor, state: PixelState) -> Tensor:
        """The current row."""
        return row_bwc + along(self.out, gate(self.conv.step_row(self.read(row_bwc, -1), state), dim=-1))


class PixelBlock(Reads, Block):
    """Gated residual block of the within-row stream: h + W·gate(PixelConv(h) + link), link from the rows above.

    Args:
        channels: of h; the link has twice as many.
        width: of the convolution.
        norm: whether the convolution reads h `bounded`.
        dropout: probability with which `forward` in training mode drops a gated feature. `step_pixel` drops none:
            generation runs in evaluation mode.
    """

    def __init__(
        self, channels: int, width: int, *, norm: bool = False, dropout: float = 0.0, causal: bool = True
    ) -> None:
        super().__init__(norm=norm)
        self.conv = PixelConv(channels, 2 * channels, width, causal=causal)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, h_bchw: Tensor, link_bchw: Tensor) -> Tensor:
        """All columns at once."""
        return self.gated(h_bchw, self.conv(self.read(h_bchw)) + link_bchw)

    def gated(self, h_bchw: Tensor, linked_bchw: Tensor) -> Tensor:
        """Adds to h what the block makes of its convolution and the link, added up."""
        return h_bchw + self.out(self.dropout(gate(linked_bchw)))

    def step_pixel(self, h_bc: Tensor, column: int, link_bc: Tensor, state: PixelState) -> Tensor:
        """One column; the link is to hold the bias of the convolution."""
        return self.step_read(h_bc, self.read(h_bc), column, link_bc, state)

    def step_read(self, h_bc: Tensor, read_bc: Tensor, column: int, link_bc: Tensor, state: PixelState) -> Tensor:
        """The same, given of h what the convolution reads."""
        return h_bc + along(self.out, gate(self.conv.step_pixel(read_bc, column, link_bc, state)))


class RasterBlock(Block):
    """Gated residual block of a single raster stream: a `PixelBlock` linked to the row above in the same stream.

    The output at (r, c) sees row r − 1, columns c − 1 … c + 1, and row r, columns c − 1 and c.

    Args:
        channels: of the stream.
        norm: as for `PixelBlock`, of both convolutions.
        dropout: as for `PixelBlock`.
    """

    ROW_KERNEL = (1, 3)
    PIXEL_KERNEL = 2

    def __init__(self, channels: int, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.above = RowConv(channels, 2 * channels, self.ROW_KERNEL)
        self.along = PixelBlock(channels, self.PIXEL_KERNEL, norm=norm, dropout=dropout)

    def forward(self, h_bchw: Tensor) -> Tensor:
        """All positions at once: both convolutions are one of (2, 3), whose place to the right of a pixel is empty."""
        above, here = self.above.conv, self.along.conv.conv
        kernel = torch.cat((above.weight, F.pad(here.weight, (0, 1))), dim=2)
        linked_bchw = F.conv2d(F.pad(self.along.read(h_bchw), (1, 1, 1, 0)), kernel, bias_of(above) + bias_of(here))
        return self.along.gated(h_bchw, linked_bchw)

    def step_row(self, batch: int, state: PixelState) -> None:
        """Links the next row to the finished one (zeros at the first)."""
        if self not in state.rows:
            state.rows[self] = self.along.out.weight.new_zeros(state.width, batch, self.along.out.in_channels)
        links_bwc = self.above.step_row(state.rows[self].transpose(0, 1), state)
        state.link(self, links_bwc + bias_of(self.along.conv.conv))

    def step_pixel(self, h_bc: Tensor, column: int, state: PixelState) -> Tensor:
        """One column; what is read of h is noted down for the row to come."""
        read_bc = self.along.read(h_bc)
        state.rows[self][column] = read_bc
        return self.along.step_read(h_bc, read_bc, column, state.links[self][column], state)


class RowsAbove(nn.Module):
    """The rows-above stream: a causal U-net over columns. Strides live only here, and only in columns.

    Level s has all H rows and ⌈W/2^s⌉ columns; its blocks reach 2^s times as far up, by dilation. So every row hears
    the same of the rows above it: with strided rows, odd ones would not be told of the newest. A level first adds what
    the coarser ones say (a strided `RowConv` down, the inner stream, a 1×1 convolution whose channels are dealt out to
    two columns: fine column c hears coarse column ⌊c/2⌋), then, at level 0, the context, and runs its gated residual
    blocks.

    Args:
        channels: width of each level, finest first.
        blocks: gated residual blocks of each level.
        kernel: (rows, columns) of every block and of the strided convolutions.
        dilation: of rows, 2^s at level s.
        norm: whether blocks and strided convolutions read the stream `bounded`.
        causal: False for unmasked kernels.
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
    ) -> None:
        super().__init__()
        fine, *coarser = channels
        self.coarser: Coarser | None = None
        if coarser:
            self.coarser = Coarser(
                fine, tuple(coarser), blocks[1:], kernel, dilation=dilation, norm=norm, causal=causal
            )
        self.blocks = nn.ModuleList(
            RowBlock(fine, kernel, dilation=dilation, norm=norm, causal=causal) for _ in range(blocks[0])
        )

    def forward(self, v_bchw: Tensor, context_bchw: Tensor | None = None) -> Tensor:
        """All rows at once; the context has the shape of the input."""
        if self.coarser is not None:
            v_bchw = v_bchw + self.coarser(v_bchw)
        if context_bchw is not None:
            v_bchw = v_bchw + context_bchw
        for block in self.blocks:
            v_bchw = applied(block, v_bchw)
        return v_bchw

    def step_row(self, row_bwc: Tensor, context_bwc: Tensor | None, state: PixelState) -> Tensor:
        """The current row of this level."""
        if self.coarser is not None:
            row_bwc = row_bwc + self.coarser.step_row(row_bwc, state)
        if context_bwc is not None:
            row_bwc = row_bwc + context_bwc
        for block in cast("Iterable[RowBlock]", self.blocks):
            row_bwc = block.step_row(row_bwc, state)
        return row_bwc


class Coarser(Reads):
    """What the coarser levels say to a finer one: half the columns, the stream there, and back up."""

    def __init__(
        self,
        fine: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        kernel: tuple[int, int],
        *,
        dilation: int,
        norm: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__(norm=norm)
        self.down = RowConv(fine, channels[0], kernel, stride=2, dilation=dilation, causal=causal)
        self.stream = RowsAbove(channels, blocks, kernel, dilation=2 * dilation, norm=norm, causal=causal)
        self.up = nn.Conv2d(channels[0], 2 * fine, 1)

    def forward(self, v_bchw: Tensor) -> Tensor:
        """All rows at once; an odd width is rounded up on the way down and cropped on the way back."""
        return dealt_out(self.up(self.stream(self.down(self.read(v_bchw)))))[..., : v_bchw.shape[3]]

    def step_row(self, row_bwc: Tensor, state: PixelState) -> Tensor:
        """The current row."""
        coarse_bwc = self.stream.step_row(self.down.step_row(self.read(row_bwc, -1), state), None, state)
        return along(self.up, coarse_bwc).unflatten(2, (2, -1)).flatten(1, 2)[:, : row_bwc.shape[1]]


def dealt_out(x_bchw: Tensor) -> Tensor:
    """(B, 2C, H, W) → (B, C, H, 2W): channel k·C + c of column w becomes channel c of column 2w + k.

    With channels last in memory nothing moves.
    """
    return x_bchw.unflatten(1, (2, -1)).permute(0, 2, 3, 4, 1).flatten(3)
