"""The PixelSNAIL trunk in Flax, written from `docs/architecture.md`: for whole images, or one pixel at a time.

B images, H rows, W columns, N = H·W positions in raster order. One stream of c channels at full resolution; attention
has a = c/2 features in heads of s.

References:
    [1] X. Chen et al., "PixelSNAIL: An Improved Autoregressive Generative Model", ICML 2018.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pyro_delta.twin.images.causal import (
    PixelBlock,
    PixelConv,
    Pointwise,
    RasterBlock,
    Reads,
    RowConv,
    shift_down,
    shift_right,
)
from pyro_delta.twin.layers import masked_softmax


def background(height: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Where a pixel is: (r − H/2)/H and (c − W/2)/W at row r and column c, (H, W, 2), rounded to single precision."""
    rows, columns = np.float32(height), np.float32(width)
    r = (np.arange(height, dtype=np.float32) - rows / 2) / rows
    c = (np.arange(width, dtype=np.float32) - columns / 2) / columns
    return np.stack(np.meshgrid(r, c, indexing="ij"), axis=-1)


class Cache(NamedTuple):
    """What attention remembers from pixel to pixel."""

    keys: Array
    """(B, heads, N, s)"""
    values: Array
    """(B, heads, N, s)"""
    pending: Array
    """(B, 2a), key and value of the position before, which lack its pixel"""


class RasterAttention(nnx.Module):
    """Attention from each position to those strictly before it [1]; keys and values know their own pixel.

    Args:
        channels: c.
        pixel_channels: of the pixels.
        height: H.
        width: W.
        heads: a divisor of a = c/2.
        norm: as for `PixelBlock`, of queries, keys and values, too.
        dropout: as for `PixelBlock`.
        rngs: of the initial values.
    """

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
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        self.positions, self.heads, self.size = height * width, heads, channels // 2
        a = self.size
        self.features = Pointwise(channels, 3 * a, rngs=rngs)
        self.place = Pointwise(2, 3 * a, rngs=rngs)
        self.pixel = Pointwise(pixel_channels, 2 * a, rngs=rngs)
        self.link = Pointwise(a, 2 * channels, rngs=rngs)
        self.merge = PixelBlock(channels, 1, norm=norm, dropout=dropout, rngs=rngs)

    def __call__(self, h_bhwc: Array, x_bhwc: Array, background_hwc: Array, rngs: nnx.Rngs | None = None) -> Array:
        """(B, H, W, c) and the image (B, H, W, in) → (B, H, W, c)."""
        features = self.features(self.merge.read(h_bhwc)) + self.place(background_hwc)
        query, key_value = jnp.split(features, [self.size], axis=-1)
        key, value = jnp.split(key_value + self.pixel(x_bhwc), 2, axis=-1)
        batch, height, width, _ = h_bhwc.shape
        query, key, value = (self._heads(part.reshape(batch, -1, self.size)) for part in (query, key, value))
        before = np.tri(self.positions, k=-1, dtype=bool)
        seen = self._attend(query, key, value, before).reshape(batch, height, width, self.size)
        return self.merge(h_bhwc, self.link(seen), rngs)

    def start(self, batch: int, dtype: Any) -> Cache:
        """The cache before the first pixel."""
        cache = jnp.zeros((batch, self.heads, self.positions, self.size // self.heads), dtype)
        return Cache(cache, cache, jnp.zeros((batch, 2 * self.size), dtype))

    def step(self, cache: Cache, position: Array, h_bc: Array, before_bc: Array, place_a: Array) -> tuple[Cache, Array]:
        """The result (B, c) at a position, given the pixel at the position before it, and `place` of this one."""
        keys, values = self._complete(cache, position, before_bc)
        query, pending = jnp.split(self.features(self.merge.read(h_bc)) + place_a, [self.size], axis=-1)
        before = jnp.arange(self.positions) < position
        seen = self._attend(self._heads(query[:, None]), keys, values, before)[:, 0]
        # The block has a kernel of width 1: its window is empty, at this pixel as at any other.
        _, result = self.merge.step(self.merge.start(h_bc.shape[0], h_bc.dtype), h_bc, self.link(seen))
        return Cache(keys, values, pending), result

    def _complete(self, cache: Cache, position: Array, before_bc: Array) -> tuple[Array, Array]:
        """Keys and values with those of the position before.

        At the first position there is none: what is written to entry 0 then is seen by nobody, and overwritten next.
        """
        key, value = jnp.split(cache.pending + self.pixel(before_bc), 2, axis=-1)
        where = (0, 0, jnp.maximum(position - 1, 0), 0)
        keys = jax.lax.dynamic_update_slice(cache.keys, self._heads(key[:, None]), where)
        values = jax.lax.dynamic_update_slice(cache.values, self._heads(value[:, None]), where)
        return keys, values

    def _heads(self, v_bna: Array) -> Array:
        """(B, n, a) → (B, heads, n, s)."""
        batch, n, _ = v_bna.shape
        return v_bna.reshape(batch, n, self.heads, -1).swapaxes(1, 2)

    def _attend(self, query: Array, key: Array, value: Array, mask: Any) -> Array:
        """Queries (B, heads, m, s), keys and values (B, heads, n, s) and a mask (m, n) or (n,) → (B, m, a)."""
        scores = jnp.einsum("bhms,bhns->bhmn", query, key) / query.shape[-1] ** 0.5
        seen = jnp.einsum("bhmn,bhns->bmhs", masked_softmax(scores, mask), value)
        return seen.reshape(*seen.shape[:2], self.size)


class SnailBlock(nnx.Module):
    """Residual blocks, then attention."""

    def __init__(
        self, channels: int, layers: int, attention: RasterAttention, *, norm: bool, dropout: float, rngs: nnx.Rngs
    ) -> None:
        """See the class."""
        self.layers = nnx.List([RasterBlock(channels, norm=norm, dropout=dropout, rngs=rngs) for _ in range(layers)])
        self.attention = attention


class BlockState(NamedTuple):
    """What a block remembers from pixel to pixel."""

    windows: list[Array]
    """one of each layer"""
    cache: Cache


class State(NamedTuple):
    """What `PixelSNAIL` remembers from pixel to pixel."""

    stem_rows: Array
    stem_pixels: Array
    blocks: list[BlockState]


class RowInputs(NamedTuple):
    """What is known of positions before any pixel is: (H, …) in `row_inputs`, without H in `step_row`."""

    base: Array
    """(H, B or 1, W, c), the place and the context in the stem"""
    places: list[Array]
    """(H, W, 3a) of each block's attention"""


class Links(NamedTuple):
    """What a row's pixels are told when it begins, (W, …)."""

    base: Array
    """(W, B, c)"""
    above: list[list[Array]]
    """(W, B, 2c) of each layer of each block"""
    places: list[Array]
    """(W, 3a) of each block's attention"""


Notes = list[list[Array]]
"""(W, B, c) of each layer of each block: what it read along a row"""


class PixelSNAIL(Reads):
    """The causal trunk: a result knows the pixels before it in raster order, and the context up to its position.

    Args:
        channels_in: of the input.
        channels_out: of the result.
        height: H.
        width: W.
        channels: c.
        blocks: each some layers and attention.
        layers: residual blocks in each block.
        heads: of the attention.
        norm: whether blocks and the hidden layer before the result read the stream `bounded`.
        dropout: probability with which gated features are dropped in training, everywhere.
        context_channels: of the context; 0 if there is none.
        rngs: of the initial values.
    """

    STEM_KERNEL = (3, 9)
    STEM_WIDTH = 5

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
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        c = channels
        self.height, self.width, self.norm = height, width, norm
        self.stem_rows = RowConv(channels_in, c, self.STEM_KERNEL, rngs=rngs)
        self.stem_pixels = PixelConv(channels_in, c, self.STEM_WIDTH, rngs=rngs)
        self.place = Pointwise(2, c, rngs=rngs)
        if context_channels:
            self.context = Pointwise(context_channels, c, rngs=rngs)
        self.blocks = nnx.List([])
        for _ in range(blocks):
            attention = RasterAttention(
                c, channels_in, height=height, width=width, heads=heads, norm=norm, dropout=dropout, rngs=rngs
            )
            self.blocks.append(SnailBlock(c, layers, attention, norm=norm, dropout=dropout, rngs=rngs))
        self.head = Pointwise(c, c, rngs=rngs)
        self.out = Pointwise(c, channels_out, rngs=rngs)

    def __call__(self, x_bhwc: Array, context_bhwc: Array | None = None, rngs: nnx.Rngs | None = None) -> Array:
        """(B, H, W, in), and a context (B, H, W, ctx), → (B, H, W, out). Dropout if `rngs` are given."""
        place_hwc = self._background()
        h = self.stem_rows(shift_down(x_bhwc)) + self.stem_pixels(shift_right(x_bhwc)) + self.place(place_hwc)
        if context_bhwc is not None:
            h = h + self.context(context_bhwc)
        for block in self.blocks:
            for layer in block.layers:
                h = layer(h, rngs)
            h = block.attention(h, x_bhwc, place_hwc, rngs)
        return self._told(h)

    def start(self, batch: int) -> State:
        """What is known before the first pixel."""
        dtype = self.place.bias[...].dtype
        return State(
            self.stem_rows.start(batch, self.width, dtype),
            self.stem_pixels.start(batch, dtype),
            [
                BlockState(
                    [layer.along.start(batch, dtype) for layer in block.layers], block.attention.start(batch, dtype)
                )
                for block in self.blocks
            ],
        )

    def row_inputs(self, context_bhwc: Array | None) -> RowInputs:
        """What `step_row` wants of each row, rows first."""
        place_hwc = self._background()
        base = self.place(place_hwc)[:, None]
        if context_bhwc is not None:
            base = base + jnp.swapaxes(self.context(context_bhwc), 0, 1)
        return RowInputs(base, [block.attention.place(place_hwc) for block in self.blocks])

    def start_notes(self, batch: int) -> Notes:
        """What `step_pixel` would have noted down along a row above row 0: zero."""
        bias_c = self.place.bias[...]
        zero = jnp.zeros((self.width, batch, *bias_c.shape), bias_c.dtype)
        return [[zero for _ in block.layers] for block in self.blocks]

    def step_row(
        self, state: State, row: Array, above_bwc: Array, notes: Notes, inputs: RowInputs
    ) -> tuple[State, Links]:
        """Begin a row, given the row above (zero for row 0) and what it noted down; returns links, columns first."""
        batch = above_bwc.shape[0]
        stem_rows, base_bwc = self.stem_rows.step(state.stem_rows, above_bwc)
        above = [
            [layer.links(note) for layer, note in zip(block.layers, block_notes, strict=True)]
            for block, block_notes in zip(self.blocks, notes, strict=True)
        ]
        fresh = self.start(batch)
        blocks = [BlockState(new.windows, old.cache) for new, old in zip(fresh.blocks, state.blocks, strict=True)]
        links = Links(jnp.swapaxes(base_bwc + inputs.base, 0, 1), above, inputs.places)
        return State(stem_rows, fresh.stem_pixels, blocks), links

    def step_pixel(
        self, state: State, position: Array, left_bc: Array, before_bc: Array, links: Links
    ) -> tuple[State, Array, Notes]:
        """The result (B, out) at a position, given the pixel to its left (zero at column 0) and the one before it.

        Notes are what every layer read, (B, c): the next row needs them.
        """
        stem_pixels, h_bc = self.stem_pixels.step(state.stem_pixels, left_bc)
        h_bc = h_bc + links.base
        states: list[BlockState] = []
        notes: Notes = []
        for block, old, above, place_a in zip(self.blocks, state.blocks, links.above, links.places, strict=True):
            windows: list[Array] = []
            given: list[Array] = []
            for layer, window, link in zip(block.layers, old.windows, above, strict=True):
                given.append(layer.along.read(h_bc))
                next_window, h_bc = layer.along.step(window, h_bc, link)
                windows.append(next_window)
            cache, h_bc = block.attention.step(old.cache, position, h_bc, before_bc, place_a)
            states.append(BlockState(windows, cache))
            notes.append(given)
        return State(state.stem_rows, stem_pixels, states), self._told(h_bc), notes

    def _told(self, h: Array) -> Array:
        return self.out(jax.nn.silu(self.head(self.read(h))))

    def _background(self) -> Array:
        return jnp.asarray(background(self.height, self.width), self.place.bias[...].dtype)
