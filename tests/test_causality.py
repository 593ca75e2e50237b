"""Every network sees what it may see, all that it is declared to see, and nothing else.

The Jacobian of each network is compared, target by target, with a field of view that is derived by itself: boolean
masks carried backwards through the architecture. That the field is causal and has no hole is checked apart.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE_PRESETS, SPECS, TOKEN_PRESETS, StepsPrior, random_images, random_normal, randomise
from torch import Tensor, nn

from pyro_delta import config
from pyro_delta.build import build
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.guides import AntiCausalGuide, GRUGuide, ImageEncoder, TransformerGuide, regions
from pyro_delta.models import (
    AR1Prior,
    ConditionalGatedPixelCNN,
    ConditionalNetwork,
    ConditionalPixelSNAIL,
    DeltaVAE,
    GRULikelihood,
    TransformerLikelihood,
    even_starts,
)
from pyro_delta.models.conditioning import Told
from pyro_delta.nn.images.causal import PixelBlock, PixelConv, RasterBlock, RowBlock, RowConv, RowsAbove, shift_down
from pyro_delta.nn.images.embedding import embed_pixels
from pyro_delta.nn.images.gated_pixelcnn import GatedPixelCNN
from pyro_delta.nn.images.pixelsnail import PixelSNAIL, RasterAttention, background
from pyro_delta.nn.latents import LatentMap
from pyro_delta.vae import VAE

Place = tuple[int, int]
Mask = Tensor
"""(H, W), true where something is seen."""


# --- the field of view, derived from the description of the architecture ---


def only(place: Place, height: int, width: int) -> Mask:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[place] = True
    return mask


def row_conv_field(
    seen: Mask, kernel: tuple[int, int], stride: int, height: int, width: int, dilation: int = 1
) -> Mask:
    """Row r, column c of the output sees `rows` rows r, r − dilation, …, and columns stride·c ± columns // 2."""
    rows, columns = kernel
    field = torch.zeros(height, width, dtype=torch.bool)
    r, c = seen.nonzero(as_tuple=True)
    for up in range(rows):
        for aside in range(-(columns // 2), columns // 2 + 1):
            row, column = r - up * dilation, stride * c + aside
            inside = (row >= 0) & (column >= 0) & (column < width)
            field[row[inside], column[inside]] = True
    return field


def pixel_conv_field(seen: Mask, width: int) -> Mask:
    """Column c sees columns c − width + 1 … c of its row."""
    field = torch.zeros_like(seen)
    r, c = seen.nonzero(as_tuple=True)
    for left in range(width):
        inside = c >= left
        field[r[inside], (c - left)[inside]] = True
    return field


def raster_block_field(seen: Mask) -> Mask:
    """Row r, column c sees row r − 1, columns c − 1 … c + 1, and row r, columns c − 1 and c."""
    above = row_conv_field(seen, (1, 3), 1, *seen.shape)
    return F.pad(above, (0, 0, 0, 1))[1:] | pixel_conv_field(seen, 2)


def strictly_before(place: Place, height: int, width: int) -> Mask:
    """All earlier positions in raster order."""
    return (torch.arange(height * width) < place[0] * width + place[1]).view(height, width)


def rows_above_field(
    seen: Mask, blocks: tuple[int, ...], kernel: tuple[int, int], dilation: int = 1
) -> tuple[Mask, Mask]:
    """What is seen of the input and of the context."""
    height, width = seen.shape
    for _ in range(blocks[0]):
        seen = row_conv_field(seen, kernel, 1, height, width, dilation)
    context = seen
    if len(blocks) > 1:
        coarse = torch.zeros(height, (width + 1) // 2, dtype=torch.bool)
        r, c = seen.nonzero(as_tuple=True)
        coarse[r, c // 2] = True
        inner, _ = rows_above_field(coarse, blocks[1:], kernel, 2 * dilation)
        seen = seen | row_conv_field(inner, kernel, 2, height, width, dilation)
    return seen, context


@dataclass(frozen=True)
class Trunk:
    """A Gated PixelCNN, and its field of view."""

    height: int
    width: int
    channels: tuple[int, ...]
    row_blocks: tuple[int, ...]
    pixel_blocks: int = 2
    row_kernel: tuple[int, int] = (2, 3)
    pixel_kernel: int = 3
    stem: tuple[int, int, int] = (3, 9, 5)

    def build(self, cls: type[GatedPixelCNN] = GatedPixelCNN) -> GatedPixelCNN:
        return randomise(cls(2, 3, context_channels=2, **vars(self)))

    def field(self, target: Place) -> tuple[Mask, Mask]:
        """What the target sees of the input and of the context."""
        pixels = only(target, self.height, self.width)
        links = pixels
        for _ in range(self.pixel_blocks):
            links = links | pixels
            pixels = pixel_conv_field(pixels, self.pixel_kernel)
        rows, context = rows_above_field(links, self.row_blocks, self.row_kernel)
        rows = row_conv_field(rows, self.stem[:2], 1, self.height, self.width)
        pixels = pixel_conv_field(pixels, self.stem[2])
        return F.pad(rows, (0, 0, 0, 1))[1:] | F.pad(pixels, (0, 1))[:, 1:], context


def reach(trunk: Trunk) -> tuple[int, int, int]:
    """What every pixel sees, edges apart: rows above, columns to either side in the row above, pixels to the left."""
    period = 2 ** (len(trunk.channels) - 1)
    height, width = 256, 512
    wide = replace(trunk, height=height, width=width)
    rows, aside, left = [], [], []
    for row in range(height - period, height):
        for column in range(width // 2, width // 2 + period):
            field, _ = wide.field((row, column))
            rows.append(int(field[:row].any(1).sum()))
            above = field[row - 1].nonzero().flatten()
            aside.append(min(column - int(above[0]), int(above[-1]) - column))
            left.append(int(field[row].sum()))
    return min(rows), min(aside), min(left)


def trunk_of(network: config.ProgramConfig, height: int, width: int) -> Trunk:
    names = ("channels", "row_blocks", "pixel_blocks", "row_kernel", "pixel_kernel")
    return Trunk(height, width, **{name: network.options[name] for name in names})


# --- the Jacobian ---


def seen_by(out: Tensor, place: tuple[int | slice, ...], inputs: Tensor) -> Tensor:
    """(B, H, W), true where the output of image 0 at a place has a non-zero derivative by an input, NaN included.

    A random cotangent over the output's channels stands for all of them.
    """
    target = out[(0, slice(None), *place)]
    (grad,) = torch.autograd.grad(target, inputs, random_normal(*target.shape, seed=1), retain_graph=True)
    return (grad != 0).any(1)


def assert_seen(out: Tensor, place: tuple[int | slice, ...], inputs: Tensor, expected: Mask) -> None:
    seen = seen_by(out, place, inputs)
    leaks, holes = seen[0] & ~expected, expected & ~seen[0]
    assert not leaks.any(), f"the output at {place} sees {leaks.nonzero().tolist()}"
    assert not holes.any(), f"the output at {place} does not see {holes.nonzero().tolist()}"
    assert not seen[1:].any(), f"the output at {place} sees other images"


def places(height: int, width: int) -> Iterator[Place]:
    return ((r, c) for r in range(height) for c in range(width))


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return random_normal(*shape, seed=seed).requires_grad_()


# --- building blocks ---

BLOCKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, int], Callable[[Mask, int, int], Mask]]] = {
    # name: (module, its stride of columns, (H, W), field)
    "row_conv": (lambda: RowConv(2, 3, (2, 3)), 1, (5, 6), lambda s, h, w: row_conv_field(s, (2, 3), 1, h, w)),
    "row_conv_3x5": (lambda: RowConv(2, 3, (3, 5)), 1, (6, 7), lambda s, h, w: row_conv_field(s, (3, 5), 1, h, w)),
    "row_conv_dilated": (
        lambda: RowConv(2, 3, (2, 3), dilation=2),
        1,
        (6, 5),
        lambda s, h, w: row_conv_field(s, (2, 3), 1, h, w, 2),
    ),
    "row_conv_narrow": (lambda: RowConv(2, 3, (2, 1)), 1, (4, 3), lambda s, h, w: row_conv_field(s, (2, 1), 1, h, w)),
    "row_conv_strided": (
        lambda: RowConv(2, 3, (2, 3), stride=2),
        2,
        (6, 8),
        lambda s, h, w: row_conv_field(s, (2, 3), 2, h, w),
    ),
    "row_conv_strided_odd": (
        lambda: RowConv(2, 3, (3, 5), stride=2),
        2,
        (7, 5),
        lambda s, h, w: row_conv_field(s, (3, 5), 2, h, w),
    ),
    "pixel_conv": (lambda: PixelConv(2, 3, 3), 1, (3, 7), lambda s, h, w: pixel_conv_field(s, 3)),
    "pixel_conv_wide": (lambda: PixelConv(2, 3, 5), 1, (2, 4), lambda s, h, w: pixel_conv_field(s, 5)),
    "row_block": (lambda: RowBlock(2, (2, 3)), 1, (4, 5), lambda s, h, w: row_conv_field(s, (2, 3), 1, h, w)),
    "raster_block": (lambda: RasterBlock(2), 1, (4, 6), lambda s, h, w: raster_block_field(s)),
    "rows_above_1": (
        lambda: RowsAbove((2,), (2,), (2, 3)),
        1,
        (6, 5),
        lambda s, h, w: rows_above_field(s, (2,), (2, 3))[0],
    ),
    "rows_above_2": (
        lambda: RowsAbove((2, 3), (1, 1), (2, 3)),
        1,
        (8, 8),
        lambda s, h, w: rows_above_field(s, (1, 1), (2, 3))[0],
    ),
    "rows_above_2_odd": (
        lambda: RowsAbove((2, 3), (1, 2), (2, 3)),
        1,
        (7, 9),
        lambda s, h, w: rows_above_field(s, (1, 2), (2, 3))[0],
    ),
    "rows_above_3_odd": (
        lambda: RowsAbove((2, 3, 2), (1, 1, 1), (3, 3)),
        1,
        (11, 5),
        lambda s, h, w: rows_above_field(s, (1, 1, 1), (3, 3))[0],
    ),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_see_their_field(name: str, training: bool) -> None:
    make, stride, (height, width), field = BLOCKS[name]
    module = randomise(make()).train(training)
    x = leaf(2, 2, height, width)
    out = module(x)
    assert out.shape[2:] == (height, -(-width // stride))
    for place in places(*out.shape[2:]):
        seen = field(only(place, *out.shape[2:]), height, width)
        assert_seen(out, place, x, seen)
        assert not seen[place[0] + 1 :].any()


def test_a_pixel_block_sees_its_link_in_place() -> None:
    block = randomise(PixelBlock(2, 3))
    h, link = leaf(2, 2, 3, 5), leaf(2, 4, 3, 5, seed=1)
    out = block(h, link)
    for place in places(3, 5):
        assert_seen(out, place, h, pixel_conv_field(only(place, 3, 5), 3))
        assert_seen(out, place, link, only(place, 3, 5))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_attention_sees_its_own_features_and_all_that_is_strictly_before(training: bool) -> None:
    attention = randomise(RasterAttention(4, 3, height=4, width=5, heads=2)).train(training)
    h, x = leaf(2, 4, 4, 5), leaf(2, 3, 4, 5, seed=1)
    out = attention(h, x, background(4, 5).double())
    for place in places(4, 5):
        before = strictly_before(place, 4, 5)
        assert_seen(out, place, h, before | only(place, 4, 5))
        assert_seen(out, place, x, before)


@pytest.mark.parametrize("blocks", [(2,), (1, 1), (1, 2, 1)])
def test_rows_above_see_their_context(blocks: tuple[int, ...]) -> None:
    rows_above = randomise(RowsAbove((2, 3, 2)[: len(blocks)], blocks, (2, 3)))
    context = leaf(2, 2, 7, 5)
    out = rows_above(random_normal(2, 2, 7, 5, seed=1), context)
    for place in places(7, 5):
        assert_seen(out, place, context, rows_above_field(only(place, 7, 5), blocks, (2, 3))[1])


def test_even_kernel_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="columns must be odd, got 4"):
        RowConv(1, 1, (2, 4))


# --- the trunk ---

TRUNKS = {
    "one_level": Trunk(7, 6, (4,), (1,)),
    "short_of_the_top": Trunk(12, 16, (4,), (1,), pixel_blocks=1),
    "two_levels": Trunk(8, 8, (4, 3), (1, 1)),
    "three_levels_odd": Trunk(11, 9, (4, 3, 2), (1, 1, 1), pixel_blocks=1),
    "wide_kernels": Trunk(9, 7, (4, 3), (1, 2), row_kernel=(3, 5), pixel_kernel=2),
    "two_pixels": Trunk(5, 6, (3,), (0,), pixel_kernel=1, stem=(1, 1, 1)),
    "no_blocks_at_full_resolution": Trunk(8, 7, (4, 3), (0, 1), pixel_blocks=1),
    "one_pixel": Trunk(1, 1, (4,), (1,)),
    "one_row": Trunk(1, 7, (4, 3), (1, 1)),
    "one_column": Trunk(7, 1, (4, 3), (1, 1)),
}


def assert_trunk_sees_its_field(trunk: Trunk, network: GatedPixelCNN, targets: Iterator[Place] | list[Place]) -> None:
    x = leaf(2, 2, trunk.height, trunk.width)
    context = leaf(2, 2, trunk.height, trunk.width, seed=1)
    out = network(x, context)
    for target in targets:
        pixels, contexts = trunk.field(target)
        assert_seen(out, target, x, pixels)
        assert_seen(out, target, context, contexts)


def assert_causal_without_holes(field: Mask, target: Place) -> None:
    """Strictly before the target in raster order; of each row above one run of columns that covers the target's own."""
    row, column = target
    assert not field[row + 1 :].any()
    assert not field[row, column:].any()
    assert column == 0 or field[row, column - 1]
    top = int(field.any(1).int().argmax()) if field[:row].any() else row
    assert row == 0 or top < row
    for r in range(top, row):
        seen = field[r].nonzero().flatten()
        assert field[r, column], f"{target} does not see the column above it in row {r}"
        assert len(seen) == seen[-1] - seen[0] + 1, f"{target} sees row {r} with a hole"
    own = field[row].nonzero().flatten()
    assert len(own) == 0 or len(own) == column - own[0]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", TRUNKS)
def test_trunks_see_their_field(name: str, training: bool) -> None:
    trunk = TRUNKS[name]
    assert_trunk_sees_its_field(trunk, trunk.build().train(training), places(trunk.height, trunk.width))


@pytest.mark.parametrize("name", TRUNKS)
def test_fields_are_causal_and_have_no_hole(name: str) -> None:
    trunk = TRUNKS[name]
    for target in places(trunk.height, trunk.width):
        pixels, context = trunk.field(target)
        assert_causal_without_holes(pixels, target)
        assert context[target]
        assert not context[target[0] + 1 :].any()


SNAILS = {
    "one_block": (6, 5, 1, 1),
    "two_blocks": (5, 6, 2, 1),
    "far_beyond_the_convolutions": (3, 24, 1, 1),
    "two_layers_a_block": (5, 4, 1, 2),
    "one_pixel": (1, 1, 1, 1),
    "one_row": (1, 7, 1, 1),
    "one_column": (7, 1, 1, 1),
}


def snail(height: int, width: int, blocks: int, layers: int) -> PixelSNAIL:
    network = PixelSNAIL(
        2,
        3,
        height=height,
        width=width,
        channels=4,
        blocks=blocks,
        layers=layers,
        heads=2,
        norm=layers > 1,
        context_channels=2,
    )
    return randomise(network)


def assert_snail_sees_all_before(network: PixelSNAIL, height: int, width: int) -> None:
    x, context = leaf(2, 2, height, width), leaf(2, 2, height, width, seed=1)
    out = network(x, context)
    for target in places(height, width):
        before = strictly_before(target, height, width)
        assert_seen(out, target, x, before)
        assert_seen(out, target, context, before | only(target, height, width))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", SNAILS)
def test_snails_see_all_that_is_strictly_before(name: str, training: bool) -> None:
    height, width, _, _ = SNAILS[name]
    assert_snail_sees_all_before(snail(*SNAILS[name]).train(training), height, width)


# --- the test can fail ---


class OffByOne(RasterAttention):
    """Keys and values hold the next pixel rather than their own."""

    def forward(self, h_bchw: Tensor, x_bchw: Tensor, background_chw: Tensor) -> Tensor:
        following = F.pad(x_bchw.flatten(2), (0, 1))[..., 1:].unflatten(2, x_bchw.shape[2:])
        return super().forward(h_bchw, following, background_chw)


class WithoutKeys(RasterAttention):
    """Attention is lost: what is left sees as far as the convolutions do."""

    def forward(self, h_bchw: Tensor, x_bchw: Tensor, background_chw: Tensor) -> Tensor:
        return self.merge(h_bchw, self.link(0 * h_bchw[:, : h_bchw.shape[1] // 2]))


@pytest.mark.parametrize(("broken", "complaint"), [(OffByOne, "sees"), (WithoutKeys, "does not see")])
def test_the_causality_test_of_snails_can_fail(broken: type[RasterAttention], complaint: str) -> None:
    network = snail(4, 24, 1, 1)
    network.blocks[0].attention.__class__ = broken
    with pytest.raises(AssertionError, match=complaint):
        assert_snail_sees_all_before(network, 4, 24)


class WithoutShift(GatedPixelCNN):
    """The mask is off by one: pixels see themselves."""

    def forward(self, x_bchw: Tensor, context_bchw: Tensor | None = None) -> Tensor:
        # moves the input one column to the left, which undoes the shift of the within-row stream
        return super().forward(F.pad(x_bchw, (0, 1))[..., 1:], context_bchw)


class WithBatchNorm(GatedPixelCNN):
    """Batch normalisation carries values between pixels and images in training mode."""

    def __init__(self, *args: int, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.head = nn.Sequential(self.head, nn.BatchNorm2d(self.head.out_channels))


class WithBlindSpot(GatedPixelCNN):
    """The links from the rows above are lost: a row sees no other row."""

    def forward(self, x_bchw: Tensor, context_bchw: Tensor | None = None) -> Tensor:
        apart = [super(WithBlindSpot, self).forward(x_bchw * mask, context_bchw) for mask in self._each_row(x_bchw)]
        return torch.cat([out[:, :, r : r + 1] for r, out in enumerate(apart)], dim=2)

    @staticmethod
    def _each_row(x_bchw: Tensor) -> Tensor:
        return torch.eye(x_bchw.shape[2], dtype=x_bchw.dtype)[:, :, None]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [(WithoutShift, "sees"), (WithBatchNorm, "sees"), (WithBlindSpot, "does not see")],
)
def test_the_causality_test_can_fail(broken: type[GatedPixelCNN], complaint: str) -> None:
    trunk = TRUNKS["two_levels"]
    with pytest.raises(AssertionError, match=complaint):
        assert_trunk_sees_its_field(trunk, trunk.build(broken), places(trunk.height, trunk.width))


def test_an_additive_mask_would_be_seen() -> None:
    latents = randomise(LatentMap(2, torch.tensor([2, 4]), positions=6, outputs=3))
    latents.visible = torch.where(latents.visible, 0.0, -1e10).double()
    z = leaf(2, 2, 2)
    (grad,) = torch.autograd.grad(latents(z)[0, 0].sum(), z)
    assert (grad != 0).any(), "−1e10 was expected to leak into rows that see no step"


# --- latents ---

FIRST_ROWS = {
    "one_step_a_row": (6, [0, 1, 2, 3, 4, 5]),
    "one_step_for_two_rows": (8, [0, 2, 4, 6]),
    "one_step": (5, [0]),
    "above_zero": (9, [2, 2, 5, 5, 8]),
    "lattice": (6, [0, 0, 0, 3, 3, 3]),
    "unsorted": (6, [4, 0, 2]),
}


def gated_pixelcnn(spec: ImageSpec, starts: Tensor, dims: int, **options: str) -> ConditionalNetwork:
    sizes = {"channels": (4, 3), "row_blocks": (1, 1), "pixel_blocks": 1}
    return randomise(ConditionalGatedPixelCNN(spec, starts, dims, mixtures=2, **sizes, **options))


def pixelsnail(spec: ImageSpec, starts: Tensor, dims: int, **options: str) -> ConditionalNetwork:
    sizes = {"channels": 4, "blocks": 1, "layers": 1, "heads": 2}
    return randomise(ConditionalPixelSNAIL(spec, starts, dims, mixtures=2, **sizes, **options))


LIKELIHOODS = [gated_pixelcnn, pixelsnail]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", FIRST_ROWS)
def test_rows_see_the_latents_from_their_first_row_on(
    name: str, likelihood: Callable[..., ConditionalNetwork], training: bool
) -> None:
    height, starts = FIRST_ROWS[name]
    network = likelihood(ImageSpec(1, height, 4, 5), torch.tensor(starts), 3)
    assert_rows_see_latents(network.train(training), torch.tensor(starts), 3)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", FIRST_ROWS)
def test_rows_see_all_latents_under_full_conditioning(name: str, likelihood: Callable[..., ConditionalNetwork]) -> None:
    height, starts = FIRST_ROWS[name]
    told = Told(ImageSpec(1, height, 4, 5), StepsPrior(starts, [0.5] * 3), "full", use_latents=True)
    network = likelihood(ImageSpec(1, height, 4, 5), told.seen, told.dims)
    assert_rows_see_latents(network, torch.zeros(len(starts)), 3)


def assert_rows_see_latents(network: ConditionalNetwork, starts: Tensor, dims: int) -> None:
    z = leaf(2, len(starts), dims)
    out = network(random_images(network.spec, (2,)), z)
    assert out.isfinite().all()
    _, height, width = network.spec.shape
    for row in range(height):
        for column in {0, width // 2, width - 1}:
            (grad,) = torch.autograd.grad(out[0, :, row, column].sum(), z, retain_graph=True)
            assert ((grad[0] != 0).all(1) == (starts <= row)).all(), f"wrong latents at ({row}, {column})"
            assert ((grad[0] != 0).any(1) == (starts <= row)).all(), f"wrong latents at ({row}, {column})"
            assert not (grad[1:] != 0).any(), f"latents of other images at ({row}, {column})"


def test_rows_that_see_no_step_have_finite_gradients() -> None:
    latents = randomise(LatentMap(2, torch.tensor([2, 4]), positions=6, outputs=3))
    z = leaf(3, 2, 2)
    latents(z)[:, :2].square().sum().backward()
    assert z.grad is not None
    assert (z.grad == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in latents.parameters())


def test_rows_before_the_first_step_are_the_same_for_every_z() -> None:
    latents = randomise(LatentMap(2, torch.tensor([2, 4]), positions=6, outputs=3))
    first, second = latents(random_normal(1, 2, 2)), latents(random_normal(1, 2, 2, seed=1))
    assert torch.equal(first[:, :2], second[:, :2])
    assert (first[:, 2:] != second[:, 2:]).all()


# --- integer images ---


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_changed_pixel_changes_later_parameters_only(
    channels: int, likelihood: Callable[..., ConditionalNetwork]
) -> None:
    network = likelihood(ImageSpec(channels, 7, 6, 5), even_starts(7), 2)
    assert_a_change_moves_later_pixels(network, list(places(7, 6)))


def assert_a_change_moves_later_pixels(network: ConditionalNetwork, changed: list[Place]) -> None:
    """Bit for bit; image 1 stands by and must not move at all."""
    spec = network.spec
    z = random_normal(2, *latent_shape(network))
    x = random_images(spec, (2,))
    with torch.no_grad():
        before = network(x, z)
        for row, column in changed:
            for channel in range(spec.channels):
                y = x.clone()
                y[0, channel, row, column] = (y[0, channel, row, column] + spec.levels // 2) % spec.levels
                moved = (network(y, z) != before).any(1)
                until = row * spec.width + column + 1
                assert not moved[0].flatten()[:until].any(), f"({row}, {column}) moved an earlier pixel"
                assert not moved[1].any(), f"({row}, {column}) moved another image"
                for target in ((row, column + 1), (row + 1, column), (row + 1, max(0, column - 1))):
                    if target[0] < spec.height and target[1] < spec.width:
                        assert moved[0][target], f"({row}, {column}) did not move {target}"


def latent_shape(network: ConditionalNetwork) -> tuple[int, int]:
    return (1, 1) if network.latents is None else (len(network.latents.position), network.latents.embed[0].in_features)


# --- the guide ---

GUIDES = {
    "a_step_a_row": (ImageSpec(1, 6, 5, 5), [0, 1, 2, 3, 4, 5]),
    "colour_odd": (ImageSpec(3, 7, 9, 4), [0, 1, 2, 3, 4, 5, 6]),
    "a_step_for_two_rows": (ImageSpec(1, 8, 6, 2), [0, 2, 4, 6]),
    "lattice": (ImageSpec(1, 6, 6, 5), [0, 0, 3, 3]),
    "above_zero": (ImageSpec(1, 6, 4, 5), [2, 4]),
    "one_step": (ImageSpec(1, 5, 5, 5), [0]),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", GUIDES)
def test_guides_see_the_rows_to_come(name: str, training: bool) -> None:
    spec, starts = GUIDES[name]
    guide = AntiCausalGuide(
        spec, StepsPrior(starts, [0.5, 0.8]), features=5, channels=(4, 3, 3), row_blocks=(1, 1, 1), pixel_blocks=2
    )
    assert_sees_rows_to_come(randomise(guide).train(training), spec, torch.tensor(starts))


def assert_sees_rows_to_come(guide: AntiCausalGuide, spec: ImageSpec, starts: Tensor) -> None:
    x = random_images(spec, (2,)).double().requires_grad_()
    posterior = guide.posterior(x).base_dist
    rows = torch.arange(spec.height)
    for part in (posterior.loc, posterior.scale):
        for t, first in enumerate(starts.tolist()):
            (grad,) = torch.autograd.grad(part[0, t].sum(), x, retain_graph=True)
            seen_hw = (grad[0] != 0).any(0)
            assert (seen_hw.any(1) == (rows >= first)).all(), f"z_{t} sees rows {seen_hw.any(1).nonzero().tolist()}"
            assert seen_hw[first:].all(), f"z_{t} does not see {(~seen_hw[first:]).nonzero().tolist()} from row {first}"
            assert not (grad[1:] != 0).any(), f"z_{t} sees other images"


def test_a_shallow_guide_would_not_see_all_rows() -> None:
    """Without coarser levels the first step has no global view: depth alone reaches a few rows."""
    spec = ImageSpec(1, 16, 4, 5)
    prior = AR1Prior(spec, dims=2, alpha=0.5)
    guide = AntiCausalGuide(spec, prior, channels=(4,), row_blocks=(1,), pixel_blocks=1)
    with pytest.raises(AssertionError, match="z_0 sees rows"):
        assert_sees_rows_to_come(randomise(guide), spec, prior.starts)


def test_features_see_their_own_pixel_and_what_follows_in_raster_order() -> None:
    """Before the pooling: the pixel itself, the pixels to its right and the rows below, as far as the trunk reaches."""
    spec = ImageSpec(1, 6, 7, 5)
    network = {"channels": (4,), "row_blocks": (1,), "pixel_blocks": 1}
    encoder = randomise(ImageEncoder(spec, regions(torch.arange(6), 1, 6, 7), 4, features=5, **network))
    features: list[Tensor] = []
    encoder.trunk.register_forward_hook(lambda module, inputs, out: features.append(out))
    x = random_images(spec, (2,)).double().requires_grad_()
    encoder(x)
    padded = Trunk(7, 8, **network)
    for row, column in places(spec.height, spec.width):
        place = (spec.height - row, spec.width - column)  # reversed, below the row and right of the column to crop
        field, _ = padded.field(place)
        expected = field[1:, :-1].flip((0, 1))
        assert expected[row, column]
        assert not expected[:row].any()
        assert not expected[row, :column].any()
        assert_seen(features[0], place, x, expected)


def test_a_guide_changes_with_later_rows_only() -> None:
    spec, starts = GUIDES["a_step_for_two_rows"]
    encoder = randomise(
        ImageEncoder(
            spec, regions(torch.tensor(starts), 1, 8, 6), 4, channels=(4, 3), row_blocks=(1, 1), pixel_blocks=1
        )
    )
    x = random_images(spec, (1,))
    for row, column in places(spec.height, spec.width):
        y = x.clone()
        y[0, 0, row, column] = 1 - y[0, 0, row, column]
        moved = (encoder(y) != encoder(x)).any(2)[0]
        assert (moved == (torch.tensor(starts) <= row)).all()


# --- the prior ---


@pytest.mark.parametrize(("length", "height"), [(1, 4), (2, 8), (7, 7)])
def test_a_prior_step_hears_its_past(length: int, height: int) -> None:
    prior = AR1Prior(ImageSpec(1, height, 1, 2), dims=2, length=length, alpha="0.5,-0.9").double()
    assert prior.starts.tolist() == [t * height // length for t in range(length)]
    eps = leaf(2, length, 2)
    z = prior().transform(eps)
    for t in range(length):
        for k in range(2):
            (grad,) = torch.autograd.grad(z[0, t, k], eps, retain_graph=True)
            expected = torch.zeros(2, length, 2, dtype=torch.bool)
            expected[0, : t + 1, k] = True
            assert ((grad != 0) == expected).all()


# --- shipped presets, at their real size ---


@pytest.mark.parametrize("name", [name for name in IMAGE_PRESETS if "[likelihood]" in config.preset_text(name)])
def test_the_documented_reach_is_the_computed_one(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    settings = config.load_preset(name)
    spec = SPECS[settings.data.program]
    for part in ("likelihood", "guide"):
        if getattr(settings, part).program == "pixelsnail":
            continue  # sees all that is before
        numbers = reach(trunk_of(getattr(settings, part), spec.height, spec.width))
        row = f"| `{name}` | {part} | " + " | ".join(str(number) for number in numbers) + " |"
        assert row in page, f"docs/architecture.md, 'Receptive fields', lacks the row {row}"


@pytest.mark.parametrize("part", ["likelihood", "guide"])
@pytest.mark.parametrize("name", [name for name in IMAGE_PRESETS if "[likelihood]" in config.preset_text(name)])
def test_every_row_is_told_the_same_of_the_rows_above(name: str, part: str) -> None:
    """One row further down, the same output, beyond the reach of the edge above: odd rows are no worse off."""
    options = getattr(narrowed(config.load_preset(name)), part).options
    if "row_blocks" not in options:
        pytest.skip("a PixelSNAIL has no strides: no row is told less than the next")
    kernel = tuple(options["row_kernel"])
    rows_above = randomise(RowsAbove(tuple(options["channels"]), tuple(options["row_blocks"]), kernel))
    x_bchw = random_normal(1, options["channels"][0], 96, 8)
    further_bchw = rows_above(shift_down(x_bchw))
    moved = (further_bchw - shift_down(rows_above(x_bchw))).abs().amax((0, 1, 3)) / further_bchw.abs().amax()
    assert moved[64:].amax() < 1e-12


def narrowed(settings: config.Config) -> config.Config:
    """Few channels: what a network sees hangs on depth, kernels and strides, not on width."""
    tree = settings.model_dump()
    for part in ("likelihood", "guide"):
        if tree[part]["program"] == "pixelsnail":
            tree[part].update(channels=4, heads=1)
        else:
            tree[part]["channels"] = [min(channels, 4) for channels in tree[part]["channels"]]
    return config.validate(tree)


def decoder_field(settings: config.Config, spec: ImageSpec, target: Place) -> Mask:
    """What a preset's decoder sees of the image."""
    if settings.likelihood.program == "pixelsnail":
        return strictly_before(target, spec.height, spec.width)
    return trunk_of(settings.likelihood, spec.height, spec.width).field(target)[0]


@pytest.mark.parametrize("name", IMAGE_PRESETS)
def test_shipped_presets_are_causal(name: str) -> None:
    """Depth and image size as shipped, every row, every latent step."""
    settings = narrowed(config.load_preset(name))
    spec = SPECS[settings.data.program]
    vae = randomise(build(settings, spec)).eval()  # dropout would move pixels, too
    prior, guide, network = vae.model.prior, vae.guide, vae.model.likelihood.network
    # the decoder in its image: corners, edges and an inner pixel
    bottom, right = spec.height - 1, spec.width - 1
    targets = [(0, 0), (0, right), (1, 0), (bottom, 0), (bottom, right), (spec.height // 2, spec.width // 3)]
    x = embed_pixels(random_images(spec, (2,)), spec.levels, torch.float64).requires_grad_()
    z = random_normal(2, len(prior.starts), settings.prior.options["dims"])
    out = network.trunk(x, network._context(z))
    for target in targets:
        field = decoder_field(settings, spec, target)
        assert_causal_without_holes(field, target)
        assert_seen(out, target, x, field)
    assert_a_change_moves_later_pixels(network, [(0, 0), (spec.height // 2, right), (bottom, right)])
    # every row of the decoder in the image, with a random cotangent, and in z
    for row in range(spec.height):
        assert_row_is_causal(out, row, x)
    if settings.likelihood.options["use_latents"]:
        assert_rows_see_latents_by_row(network, prior.starts, z.shape[-1], list(range(spec.height)))
    assert guide.causality == "anti_causal"
    assert_sees_rows_to_come(guide, spec, prior.starts)


@pytest.mark.parametrize("name", sorted({*IMAGE_PRESETS} - {"cifar10-paper"}))  # half a minute for one row
def test_shipped_presets_are_causal_at_their_width(name: str) -> None:
    """The networks as they are: one row of the decoder, and the first step of the guide, which sees the whole image."""
    settings = config.load_preset(name)
    spec = SPECS[settings.data.program]
    vae = randomise(build(settings, spec)).eval()  # dropout would move pixels, too
    network, starts = vae.model.likelihood.network, vae.model.prior.starts
    x = embed_pixels(random_images(spec, (2,)), spec.levels, torch.float64).requires_grad_()
    z = random_normal(2, len(starts), settings.prior.options["dims"])
    assert_row_is_causal(network.trunk(x, network._context(z)), spec.height // 2, x)
    if settings.likelihood.options["use_latents"]:
        assert_rows_see_latents_by_row(network, starts, settings.prior.options["dims"], [spec.height // 2])
    images = random_images(spec, (2,)).double().requires_grad_()
    (grad,) = torch.autograd.grad(vae.guide.posterior(images).mean[0, 0].sum(), images)
    assert (grad[0] != 0).all()
    assert not (grad[1] != 0).any()


def assert_row_is_causal(out: Tensor, row: int, x: Tensor) -> None:
    """All rows above but none below are open to a row, and of itself all columns but the last."""
    seen = seen_by(out, (row, slice(None)), x)
    assert not seen[1:].any()
    assert not seen[0, row + 1 :].any()
    assert seen[0, row, :-1].all()
    assert not seen[0, row, -1]
    assert row == 0 or seen[0, row - 1].all()


def assert_rows_see_latents_by_row(
    network: ConditionalGatedPixelCNN, starts: Tensor, dims: int, rows: list[int]
) -> None:
    z = leaf(2, len(starts), dims)
    out = network(random_images(network.spec, (2,)), z)
    for row in rows:
        (grad,) = torch.autograd.grad(out[0, :, row], z, random_normal(*out[0, :, row].shape), retain_graph=True)
        assert ((grad[0] != 0).any(1) == (starts <= row)).all()
        assert not (grad[1:] != 0).any()


# --- sequences of tokens ---

TOKENS, VOICES = TokenSpec(6, 5), ScoreSpec(6, 5, voices=3)


OF_TOKENS: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "gru": (GRULikelihood, GRUGuide, {"hidden": 4}),
    "transformer": (TransformerLikelihood, TransformerGuide, {"hidden": 8, "layers": 2, "heads": 2}),
}


@pytest.fixture(params=OF_TOKENS)
def trunk(request: pytest.FixtureRequest) -> str:
    return request.param


def token_vae(
    starts: list[int], spec: TokenSpec, trunk: str, *, conditioning: str = "causal", bidirectional: bool = False
) -> VAE:
    prior = StepsPrior(starts, [0.5, 0.8])
    likelihood, guide, sizes = OF_TOKENS[trunk]
    model = DeltaVAE(prior, likelihood(spec, prior, conditioning=conditioning, **sizes))
    return randomise(VAE(model, guide(spec, prior, bidirectional=bidirectional, **sizes)))


TOKEN_STARTS = {
    "a_step_a_token": [0, 1, 2, 3, 4, 5],
    "a_step_for_two_tokens": [0, 2, 4],
    "two_steps_a_token": [0, 0, 3, 3],
    "above_zero": [2, 4],
    "unsorted": [4, 0, 2],
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("spec", [TOKENS, VOICES], ids=["tokens", "voices"])
@pytest.mark.parametrize("name", TOKEN_STARTS)
def test_tokens_are_told_what_they_may_be(name: str, spec: TokenSpec, training: bool, trunk: str) -> None:
    assert_tokens_are_causal(token_vae(TOKEN_STARTS[name], spec, trunk).train(training), spec)


@pytest.mark.parametrize("spec", [TOKENS, VOICES], ids=["tokens", "voices"])
@pytest.mark.parametrize("name", TOKEN_STARTS)
def test_tokens_see_all_latents_under_full_conditioning(name: str, spec: TokenSpec, trunk: str) -> None:
    vae = token_vae(TOKEN_STARTS[name], spec, trunk, conditioning="full")
    assert_tokens_see_latents(vae, spec, torch.zeros(len(TOKEN_STARTS[name])))


@pytest.mark.parametrize("spec", [TOKENS, VOICES], ids=["tokens", "voices"])
@pytest.mark.parametrize("name", TOKEN_STARTS)
def test_a_bidirectional_guide_hears_all_of_a_sequence(name: str, spec: TokenSpec, trunk: str) -> None:
    vae = token_vae(TOKEN_STARTS[name], spec, trunk, conditioning="full", bidirectional=True)
    assert vae.guide.causality == "none"
    x, lengths = random_images(spec, (2,)), torch.tensor([4, 6])
    for known in (None, lengths):
        before = vae.guide.posterior(x, known).mean
        for place, position in some_places(spec, None):
            y = x.flatten(1).clone()
            y[0, place] = (y[0, place] + 1) % spec.levels
            moved = (vae.guide.posterior(y.reshape(x.shape), known).mean != before).any(-1)
            heard = torch.ones(len(vae.model.prior.starts), dtype=torch.bool)
            if known is not None:
                heard = (vae.model.prior.starts < lengths[0]) & (position < lengths[0])
            assert (moved[0] == heard).all(), f"{place} moved steps {moved[0].tolist()}"
            assert not moved[1].any(), f"{place} moved the latents of another sequence"


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("name", TOKEN_STARTS)
def test_nothing_is_heard_from_behind_the_end(name: str, bidirectional: bool, trunk: str) -> None:
    """Nor scored: each sequence is treated as one of its length alone, whatever is behind it."""
    vae = token_vae(TOKEN_STARTS[name], VOICES, trunk, bidirectional=bidirectional)
    lengths = torch.tensor([3, 6, 5])
    starts, x, other = vae.model.prior.starts, random_images(VOICES, (3,)), random_images(VOICES, (3,), 1)
    inside = torch.arange(6) < lengths[:, None]
    y = torch.where(inside[..., None], x, other)
    q, found = vae.guide.posterior(x, lengths).base_dist, vae.guide.posterior(y, lengths).base_dist
    assert torch.equal(q.loc, found.loc)
    assert torch.equal(q.scale, found.scale)
    padding = starts >= lengths[:, None]
    assert (q.loc[padding] == 0).all()
    assert (q.scale[padding] == 1).all()
    z = random_normal(3, *vae.model.prior().event_shape)
    score = vae.model.likelihood(z, lengths).log_prob
    assert torch.equal(score(x), score(y))
    assert torch.equal(score(x), vae.model.likelihood(torch.where(padding[..., None], -z, z), lengths).log_prob(x))
    for i, length in enumerate(lengths.tolist()):
        if name == "a_step_a_token":  # a network of that length has the same weights, but for those of later places
            alone_spec = ScoreSpec(length, 5, voices=3)
            short = token_vae(TOKEN_STARTS[name][:length], alone_spec, trunk, bidirectional=bidirectional)
            theirs, sizes = vae.state_dict(), short.state_dict()
            short.load_state_dict({k: v[tuple(map(slice, sizes[k].shape))] for k, v in theirs.items()})
            alone = short.guide.posterior(x[i : i + 1, :length]).base_dist
            torch.testing.assert_close(alone.loc[0], q.loc[i, :length])
            expected = short.model.likelihood(z[i : i + 1, :length]).log_prob(x[i : i + 1, :length])
            torch.testing.assert_close(score(x)[i], expected[0])


@pytest.mark.parametrize("spec", [TOKENS, VOICES], ids=["tokens", "voices"])
def test_short_sequences_alone_are_what_they_are_beside_longer_ones(spec: TokenSpec, trunk: str) -> None:
    """Nothing is computed behind the end of the longest one of a batch, and nothing is lost by that."""
    vae, lengths = token_vae([0, 1, 2, 3, 4, 5], spec, trunk), torch.tensor([3, 1, 4, 6])
    x, z = random_images(spec, (4,)), random_normal(4, *vae.model.prior().event_shape)
    together, alone = vae.model.likelihood(z, lengths), vae.model.likelihood(z[:3], lengths[:3])
    log_p = together.parameters_at(x).log_softmax(-1).gather(-1, x.unsqueeze(-1)).squeeze(-1)
    expected = (log_p.flatten(1) * (torch.from_numpy(spec.places().reshape(-1)) < lengths[:, None])).sum(1)
    torch.testing.assert_close(together.log_prob(x), expected)
    torch.testing.assert_close(alone.log_prob(x[:3]), expected[:3])
    assert alone.terms(x[:3]).shape == (3, spec.scored)
    q, of_alone = vae.guide.posterior(x, lengths).base_dist, vae.guide.posterior(x[:3], lengths[:3]).base_dist
    torch.testing.assert_close(of_alone.loc, q.loc[:3])
    torch.testing.assert_close(of_alone.scale, q.scale[:3])


@pytest.mark.parametrize("spec", [TOKENS, VOICES], ids=["tokens", "voices"])
def test_cached_samples_are_naive_ones(spec: TokenSpec, trunk: str) -> None:
    """With the same noise, token by token from whole passes; behind the end there are zeros."""
    p = token_vae(TOKEN_STARTS["above_zero"], spec, trunk).model.likelihood(random_normal(4, 2, 2))
    uniforms = p.noise(4)
    x = torch.zeros(4, spec.scored, dtype=torch.int64)
    for i in range(spec.scored):
        logits_bv = p.parameters_at(x.reshape(4, *spec.shape)).reshape(4, spec.scored, -1)[:, i]
        edges = logits_bv.softmax(-1).cumsum(-1)
        x[:, i] = (uniforms.reshape(4, -1)[:, i, None] > edges[:, :-1]).sum(-1)
    assert torch.equal(p.sample(uniforms=uniforms), x.reshape(4, *spec.shape))
    assert len(x.unique()) > 2
    lengths = torch.tensor([1, 6, 3, 2])
    within = torch.where((torch.arange(6) < lengths[:, None]).repeat_interleave(spec.scored // 6, 1), x, 0)
    shortened = type(p)(p.network, p.z, lengths)
    assert torch.equal(shortened.sample(uniforms=uniforms), within.reshape(4, *spec.shape))
    assert torch.equal(
        shortened.expand((3, 4)).counted[2].any(-1) if spec is VOICES else shortened.counted,
        torch.arange(6) < lengths[:, None],
    )


@pytest.mark.parametrize("name", TOKEN_PRESETS)
def test_shipped_presets_of_tokens_are_causal(name: str) -> None:
    settings = config.load_preset(name)
    spec = SPECS[settings.data.program]
    assert_tokens_are_causal(randomise(build(settings, spec)).eval(), spec, at_most=24)


def some_places(spec: TokenSpec, at_most: int | None) -> list[tuple[int, int]]:
    """Places and their positions: all, or the first, the last and random ones between."""
    every = list(enumerate(spec.places().reshape(-1).tolist()))
    if at_most is None or len(every) <= at_most:
        return every
    between = torch.randperm(len(every) - 2)[: at_most - 2] + 1
    return [every[place] for place in (0, *between.sort().values.tolist(), -1)]


def assert_tokens_are_causal(vae: VAE, spec: TokenSpec, at_most: int | None = None) -> None:
    """Bit for bit; sequence 1 stands by and must not move at all."""
    starts = vae.model.prior.starts
    z = random_normal(2, *vae.model.prior().event_shape)
    x = random_images(spec, (2,))
    with torch.no_grad():
        p = vae.model.likelihood(z)
        before, posterior = p.parameters_at(x), vae.guide.posterior(x).mean
        for place, position in some_places(spec, at_most):
            y = x.flatten(1).clone()
            y[0, place] = (y[0, place] + 1) % spec.levels
            y = y.reshape(x.shape)
            moved = (p.parameters_at(y) != before).any(-1).flatten(1)
            assert (moved[0] == (torch.arange(spec.scored) > place)).all(), f"{place} moved {moved[0].tolist()}"
            assert not moved[1].any(), f"{place} moved another sequence"
            moved = (vae.guide.posterior(y).mean != posterior).any(-1)
            assert (moved[0] == (starts <= position)).all(), f"{place} moved steps {moved[0].tolist()}"
            assert not moved[1].any(), f"{place} moved the latents of another sequence"
    assert vae.guide.causality == "anti_causal"
    assert_tokens_see_latents(vae, spec, starts, at_most)


def assert_tokens_see_latents(vae: VAE, spec: TokenSpec, starts: Tensor, at_most: int | None = None) -> None:
    z = leaf(2, *vae.model.prior().event_shape)
    out = vae.model.likelihood(z).parameters_at(random_images(spec, (2,))).flatten(1, -2)
    for place, position in some_places(spec, at_most):
        (grad,) = torch.autograd.grad(out[0, place], z, random_normal(spec.levels), retain_graph=True)
        assert ((grad[0] != 0).all(1) == (starts <= position)).all(), f"wrong latents at {place}"
        assert ((grad[0] != 0).any(1) == (starts <= position)).all(), f"wrong latents at {place}"
        assert not (grad[1:] != 0).any(), f"latents of other sequences at {place}"
