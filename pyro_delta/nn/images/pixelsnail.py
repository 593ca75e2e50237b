"""PixelSNAIL as a network: features in, features out, strictly causal in raster order, all of the past in reach."""

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
    RasterBlock,
    Reads,
    RowConv,
    along,
    bias_of,
    shift_down,
    shift_right,
)
from pyro_delta.nn.recompute import Block, applied


def background(height: int, width: int) -> Tensor:
    """(2, H, W): where a position is, (r − H/2)/H and (c − W/2)/W."""
    rows = ((torch.arange(height) - height / 2) / height)[:, None].expand(height, width)
    columns = ((torch.arange(width) - width / 2) / width)[None, :].expand(height, width)
    return torch.stack((rows, columns))


class RasterAttention(Block):
    """Attention of every position to those strictly before it in raster order, merged by a gated residual block.

    Keys and values of a position come from its features, its own pixel and its background coordinates, the query from
    its features and background [1, section 3]. A position's features know only what is before it, but what attends to
    it comes later and may see its pixel. The first position attends to nothing and gets exactly zero.

    Args:
        channels: of the features; keys, queries and values have half of them.
        pixel_channels: channels of a pixel of the input.
        height: H.
        width: W.
        heads: attention heads, which share the half of the channels evenly.
        norm: as for `PixelBlock`, of queries, keys and values, too.
        dropout: as for `PixelBlock`.

    References:
        1. X. Chen et al., "PixelSNAIL: An Improved Autoregressive Generative Model", ICML 2018.
    """

    ends = ("pixel", "place")

    def __init__(
        self,
        channels: int,
        pixel_channels: int,
        *,
        height: int,
        width: int,
        heads: int,
        norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.positions, self.heads, size = height * width, heads, channels // 2
        self.features = nn.Conv2d(channels, 3 * size, 1)
        self.pixel = nn.Conv2d(pixel_channels, 2 * size, 1)
        self.place = nn.Conv2d(2, 3 * size, 1)
        self.link = nn.Conv2d(size, 2 * channels, 1)
        self.merge = PixelBlock(channels, 1, norm=norm, dropout=dropout)
        self.sizes = [size, 2 * size]

    def forward(self, h_bchw: Tensor, x_bchw: Tensor, background_chw: Tensor) -> Tensor:
        """All positions at once; x is the input, not shifted."""
        features_bchw = self.features(self.merge.read(h_bchw)) + self.place(background_chw[None])
        query, key_value = features_bchw.split(self.sizes, dim=1)
        key, value = (key_value + self.pixel(x_bchw)).chunk(2, dim=1)
        query, key, value = (self._split(part) for part in (query, key, value))
        # Without the first query and the last key, "strictly before" is the common causal mask, for which kernels skip
        # half of the work. What is left out is the first position: zero.
        seen = F.scaled_dot_product_attention(query[:, :, 1:], key[:, :, :-1], value[:, :, :-1], is_causal=True)
        seen_bne = F.pad(seen.transpose(1, 2).flatten(2), (0, 0, 1, 0))
        seen_bchw = seen_bne.unflatten(1, h_bchw.shape[2:]).permute(0, 3, 1, 2)
        return self.merge(h_bchw, self.link(seen_bchw))

    def step_row(self, batch: int, background_wc: Tensor, state: PixelState) -> None:
        """Prepares a row, given where its positions are."""
        state.link(self, along(self.place, background_wc).expand(batch, -1, -1))

    def step_pixel(self, h_bc: Tensor, column: int, state: PixelState) -> Tensor:
        """One position of the current row, after `see_pixel` of the one before."""
        read_bc = self.merge.read(h_bc)
        qkv_bc = along(self.features, read_bc) + state.links[self][column]
        query, key_value = qkv_bc.split(self.sizes, dim=1)
        query = query.unflatten(1, (self.heads, 1, -1))
        if self not in state.rows:
            state.rows[self] = query.new_zeros(h_bc.shape[0], 2, self.heads, self.positions, query.shape[-1])
        held, before = state.rows[self], None
        if state.before is not None:
            before = state.before[column : column + 1]
        else:
            held = held[:, :, :, : state.row * state.width + column]
        # no keys at the first position: zero
        keys, values = held.unbind(1)
        seen_bc = F.scaled_dot_product_attention(query, keys, values, attn_mask=before).flatten(1)
        self._add(key_value, column, state)
        link_bc = along(self.link, seen_bc) + bias_of(self.merge.conv.conv)
        return self.merge.step_read(h_bc, read_bc, column, link_bc, state)

    def see_pixel(self, x_bc: Tensor, column: int, state: PixelState) -> None:
        """Completes the key and value of a position of the current row, now that its pixel is known."""
        self._add(along(self.pixel, x_bc), column, state)

    def _add(self, key_value_bc: Tensor, column: int, state: PixelState) -> None:
        """Adds to the key and value of a position, which are zero at first."""
        added = key_value_bc.unflatten(1, (2, self.heads, -1)).unsqueeze(3)
        if state.places is not None:
            state.rows[self].index_add_(3, state.places[column : column + 1], added)
        else:
            state.rows[self].narrow(3, state.row * state.width + column, 1).add_(added)

    def _split(self, x_bchw: Tensor) -> Tensor:
        """(B, C, H, W) → (B, heads, H·W, C/heads)."""
        return x_bchw.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)


class SnailBlock(nn.Module):
    """Gated residual causal convolutions, then attention."""

    def __init__(
        self, channels: int, layers: int, attention: RasterAttention, *, norm: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RasterBlock(channels, norm=norm, dropout=dropout) for _ in range(layers))
        self.attention = attention

    def forward(self, h_bchw: Tensor, x_bchw: Tensor, background_chw: Tensor) -> Tensor:
        """All positions at once."""
        for layer in self.layers:
            h_bchw = applied(layer, h_bchw)
        return applied(self.attention, h_bchw, x_bchw, background_chw)

    def step_row(self, batch: int, background_wc: Tensor, state: PixelState) -> None:
        """Prepares a row."""
        for layer in cast("Iterable[RasterBlock]", self.layers):
            layer.step_row(batch, state)
        self.attention.step_row(batch, background_wc, state)

    def step_pixel(self, h_bc: Tensor, column: int, state: PixelState) -> Tensor:
        """One position."""
        for layer in cast("Iterable[RasterBlock]", self.layers):
            h_bc = layer.step_pixel(h_bc, column, state)
        return self.attention.step_pixel(h_bc, column, state)


class PixelSNAIL(Reads):
    """Gated residual causal convolutions and causal attention in turns [1], in a single stream of full resolution.

    The output at (r, c) depends on the input at all positions strictly before (r, c) in raster order, and on the
    context at positions up to (r, c). Nothing is shared across the batch.

    NOTE: Departs from [1]: the convolutions see three pixels of the row above and two of their own (2×2 there), so that
    there is no blind spot even before attention; a residual block is one convolution, a·sigmoid(b) gate and 1×1
    convolution (ELU, two convolutions and that gate there); queries, keys and values are linear (a gated block
    each there), have channels/2 features each (16, 16 and channels/2 there) and several heads (one there); the first
    convolutions look further, and are told the background; one hidden layer before the output.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        height: rows of the input.
        width: columns of the input.
        channels: width of the stream.
        blocks: blocks, of which each ends with attention.
        layers: gated residual convolutions of each block.
        heads: attention heads; 2·heads divides the channels.
        norm: whether blocks and the hidden layer before the output read the stream `bounded`; the stream itself is not,
            as in a Transformer whose blocks begin with a norm.
        dropout: probability with which gated features are dropped in training.
        context_channels: channels of the context, 0 for none.

    Raises:
        UserError: for channels that the heads cannot share.

    References:
        1. X. Chen et al., "PixelSNAIL: An Improved Autoregressive Generative Model", ICML 2018.
    """

    ends = ("stem_rows", "stem_pixels", "place", "out")

    STEM_KERNEL = (3, 9)
    STEM_WIDTH = 5

    background_chw: Tensor

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        height: int,
        width: int,
        channels: int,
        blocks: int,
        layers: int,
        heads: int,
        norm: bool = False,
        dropout: float = 0.0,
        context_channels: int = 0,
    ) -> None:
        super().__init__(norm=norm)
        if heads < 1 or channels % (2 * heads):
            raise UserError(
                f"heads={heads} cannot share half of {channels} channels evenly; let channels be a multiple of 2·heads."
            )
        self.width = width
        self.stem_rows = RowConv(channels_in, channels, self.STEM_KERNEL)
        self.stem_pixels = PixelConv(channels_in, channels, self.STEM_WIDTH)
        self.place = nn.Conv2d(2, channels, 1)
        self.context = nn.Conv2d(context_channels, channels, 1) if context_channels else None
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            attention = RasterAttention(
                channels, channels_in, height=height, width=width, heads=heads, norm=norm, dropout=dropout
            )
            self.blocks.append(SnailBlock(channels, layers, attention, norm=norm, dropout=dropout))
        self.head = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels_out, 1)
        self.register_buffer("background_chw", background(height, width), persistent=False)

    def forward(self, x_bchw: Tensor, context_bchw: Tensor | None = None) -> Tensor:
        """All positions at once: (B, channels_in, H, W) → (B, channels_out, H, W)."""
        h_bchw = self.stem_rows(shift_down(x_bchw)) + self.place(self.background_chw[None])
        if self.context is not None:
            h_bchw = h_bchw + self.context(context_bchw)
        h_bchw = h_bchw + self.stem_pixels(shift_right(x_bchw))
        for block in self.blocks:
            h_bchw = block(h_bchw, x_bchw, self.background_chw)
        return self.out(F.silu(self.head(self.read(h_bchw))))

    def step_row(self, row_bcw: Tensor, context_bcw: Tensor | None, index: int, state: PixelState) -> None:
        """Prepares row `index`, given the finished row before it (zeros at the first row) and the row's context."""
        if index:
            state.row = index - 1  # a step that was exported does not know it
            self._see_pixel(row_bcw[:, :, -1], self.width - 1, state)
        state.row, state.width = index, self.width
        if state.fixed:
            self._place(index, state)
        background_wc = self.background_chw[:, index].T
        h_bwc = self.stem_rows.step_row(row_bcw.transpose(1, 2), state) + along(self.place, background_wc)
        if self.context is not None and context_bcw is not None:
            h_bwc = h_bwc + along(self.context, context_bcw.transpose(1, 2))
        state.link(self, h_bwc + bias_of(self.stem_pixels.conv))
        for block in self._blocks():
            block.step_row(row_bcw.shape[0], background_wc, state)

    def step_pixel(self, x_bc: Tensor, column: int, state: PixelState) -> Tensor:
        """Output (B, channels_out) at `column`, given the input's pixel before it (zeros at the first column)."""
        if column:
            self._see_pixel(x_bc, column - 1, state)
        h_bc = self.stem_pixels.step_pixel(x_bc, column, state.links[self][column], state)
        for block in self._blocks():
            h_bc = block.step_pixel(h_bc, column, state)
        return along(self.out, F.silu(along(self.head, self.read(h_bc))))

    def _place(self, index: int, state: PixelState) -> None:
        """Says where the row is, in the memory of the row before."""
        positions = torch.arange(self.background_chw[0].numel(), device=self.background_chw.device)
        places = positions[index * self.width : (index + 1) * self.width]
        before = positions < places.unsqueeze(1)
        if state.places is None or state.before is None:
            state.places, state.before = places.clone(), before
        else:
            state.places.copy_(places)
            state.before.copy_(before)

    def _see_pixel(self, x_bc: Tensor, column: int, state: PixelState) -> None:
        for block in self._blocks():
            block.attention.see_pixel(x_bc, column, state)

    def _blocks(self) -> Iterable[SnailBlock]:
        return cast("Iterable[SnailBlock]", self.blocks)
