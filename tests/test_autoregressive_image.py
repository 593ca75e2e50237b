"""The image as one random variable: cached generation against the naive witness, shapes, densities, kept pixels."""

import itertools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import pytest
import torch
from networks import random_images, random_normal, randomise
from torch import Size, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_delta.data.images import ImageSpec
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.distributions.images.autoregressive_image import sample_naively
from pyro_delta.models import ConditionalGatedPixelCNN, ConditionalNetwork, ConditionalPixelSNAIL, even_starts
from pyro_delta.nn.images.causal import PixelState, RowsAbove


@dataclass(frozen=True)
class Case:
    """An image and a Gated PixelCNN for it."""

    spec: ImageSpec
    channels: tuple[int, ...] = (6,)
    row_blocks: tuple[int, ...] = (1,)
    length: int = 1
    pixel_blocks: int = 1
    row_kernel: tuple[int, int] = (2, 3)
    pixel_kernel: int = 3
    stem: tuple[int, int, int] = (3, 9, 5)
    norm: bool = False
    use_latents: bool = True

    cls = ConditionalGatedPixelCNN

    def network(self, cls: type[ConditionalNetwork] | None = None) -> ConditionalNetwork:
        of_z = ("spec", "length", "use_latents", "conditioning")
        arguments = {k: v for k, v in vars(self).items() if k not in of_z}
        starts = even_starts(self.spec.height, self.length)
        starts = torch.zeros_like(starts) if getattr(self, "conditioning", "causal") == "full" else starts
        return randomise((cls or self.cls)(self.spec, starts if self.use_latents else None, 3, mixtures=3, **arguments))

    def z(self, *batch: int, seed: int = 0) -> Tensor:
        return random_normal(*batch, self.length, 3, seed=seed)


@dataclass(frozen=True)
class Snail:
    """An image and a PixelSNAIL for it."""

    spec: ImageSpec
    length: int = 1
    channels: int = 8
    blocks: int = 1
    layers: int = 1
    heads: int = 2
    norm: bool = False
    use_latents: bool = True
    conditioning: str = "causal"

    cls = ConditionalPixelSNAIL
    network, z = Case.network, Case.z


CASES = {
    "binary": Case(ImageSpec(1, 4, 4, 2)),
    "five_levels_odd": Case(ImageSpec(1, 5, 7, 5), (6, 4), (1, 1), length=5),
    "colour_256": Case(ImageSpec(3, 4, 6, 256), (6, 4), (1, 1), length=4, pixel_blocks=2),
    "grey_alpha": Case(ImageSpec(2, 3, 4, 4), length=3),
    "colour_alpha": Case(ImageSpec(4, 3, 4, 256), length=3),
    "colour_odd_3_levels": Case(ImageSpec(3, 7, 5, 5), (6, 4, 5), (1, 2, 1), length=7),
    "4_levels": Case(ImageSpec(1, 9, 8, 256), (6, 4, 5, 4), (1, 1, 1, 2), length=3),
    "norm": Case(ImageSpec(3, 5, 6, 256), (6, 4, 5), (1, 1, 1), length=5, norm=True),
    "wide_kernels": Case(ImageSpec(1, 6, 6, 17), (6, 4), (2, 1), length=3, row_kernel=(3, 5), pixel_kernel=4),
    "two_pixels": Case(ImageSpec(1, 6, 6, 17), (6,), (0,), length=3, pixel_kernel=1, stem=(1, 1, 1)),
    "no_blocks_at_full_resolution": Case(ImageSpec(1, 7, 6, 5), (6, 4), (0, 1), length=7),
    "no_latents": Case(ImageSpec(3, 4, 5, 5), (6, 4), (1, 1), use_latents=False),
    "one_row": Case(ImageSpec(1, 1, 6, 5), (6, 4), (1, 1)),
    "one_column": Case(ImageSpec(1, 6, 1, 5), (6, 4), (1, 1), length=6),
    "one_pixel": Case(ImageSpec(3, 1, 1, 5)),
    "snail_binary": Snail(ImageSpec(1, 4, 4, 2)),
    "snail_five_levels_odd": Snail(ImageSpec(1, 5, 7, 5), length=5, blocks=2, heads=4),
    "snail_colour_256": Snail(ImageSpec(3, 4, 6, 256), length=4, layers=2),
    "snail_full_conditioning": Snail(ImageSpec(1, 6, 4, 5), length=3, conditioning="full"),
    "snail_no_latents": Snail(ImageSpec(3, 4, 5, 5), use_latents=False),
    "snail_norm": Snail(ImageSpec(3, 5, 4, 256), length=5, blocks=2, norm=True),
    "snail_one_row": Snail(ImageSpec(1, 1, 6, 5)),
    "snail_one_column": Snail(ImageSpec(1, 6, 1, 5), length=6),
    "snail_one_pixel": Snail(ImageSpec(3, 1, 1, 5)),
}

SMALL = CASES["five_levels_odd"]


def noise(case: Case | Snail, *batch: int, seed: int = 0) -> Tensor:
    channels, height, width = case.spec.shape
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*batch, height, width, 1 + channels, generator=generator, dtype=torch.float64)


# --- cached against naive ---


@pytest.mark.parametrize("name", CASES)
def test_cached_samples_are_the_naive_samples(name: str) -> None:
    """In double precision, for 20 seeds; generated as one batch, each image from its seed's z and noise."""
    case = CASES[name]
    z = torch.stack([case.z(seed=seed) for seed in range(20)])
    uniforms = torch.stack([noise(case, seed=seed) for seed in range(20)])
    image = AutoregressiveImage(case.network(), z)
    cached = image.sample(uniforms=uniforms)
    assert torch.equal(cached, sample_naively(image, uniforms))
    assert image.support.check(cached).all()
    assert len({tuple(picture.flatten().tolist()) for picture in cached}) > 10  # the noise and z matter
    alone = AutoregressiveImage(image.network, z[7]).sample(uniforms=uniforms[7])
    assert torch.equal(alone, cached[7])


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "lift_fresh_copy"}
"""Operations that wait for the device, or take what they need from the host, and so go into no graph."""


class Tape(TorchDispatchMode):
    """Operations as a CUDA graph keeps them: with the memory and the numbers of the host that they had once."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def capture_on_tape(run: Callable[[], None]) -> Callable[[], None]:
    """As `cuda_graph`, but that what is captured has been run, and so is not at the first replay."""
    with Tape() as tape:
        run()
    names = {func.overloadpacket.__name__ for func, *_ in tape.operations}
    assert not names & WAITING
    calls = itertools.count()
    return lambda: None if next(calls) == 0 else tape.replay()


@pytest.mark.parametrize("name", CASES)
def test_a_row_that_was_captured_is_that_of_any_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed from the third row on, with pixels that are kept and without."""
    case = CASES[name]
    image, uniforms = AutoregressiveImage(case.network(), case.z(5)), noise(case, 5)
    generator = torch.Generator().manual_seed(1)
    keep = (random_images(case.spec, (5,)), torch.rand(5, *case.spec.shape[1:], generator=generator) < 0.3)
    expected = [image.sample(uniforms=uniforms, keep=kept, temperature=0.9) for kept in (None, keep)]
    conditional = sys.modules[ConditionalNetwork.__module__]
    monkeypatch.setattr(conditional, "FEWEST", 1)
    monkeypatch.setattr(conditional, "capture_on", lambda device: capture_on_tape)
    assert image.network.start(case.z(5)).pixels.fixed
    found = [image.sample(uniforms=uniforms, keep=kept, temperature=0.9) for kept in (None, keep)]
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def stepwise_parameters(network: ConditionalNetwork, x_bchw: Tensor, z_bnd: Tensor) -> Tensor:
    """(B, H, W, P), one position at a time."""
    state = network.start(z_bnd)
    _, height, width = network.spec.shape
    out = []
    for row in range(height):
        network.step_row(state, row, x_bchw[:, :, row - 1] if row else None)
        for column in range(width):
            out.append(network.step_pixel(state, column, x_bchw[:, :, row, column - 1] if column else None))
    return torch.stack(out, dim=1).unflatten(1, (height, width))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("name", CASES)
def test_parameters_agree_at_every_pixel(name: str, dtype: torch.dtype, tolerance: float) -> None:
    case = CASES[name]
    network = case.network().to(dtype)
    x, z = random_images(case.spec, (2,)), case.z(2).to(dtype)
    with torch.no_grad():
        at_once = AutoregressiveImage(network, z).parameters_at(x)
        stepwise = stepwise_parameters(network, x, z)
    assert ((at_once - stepwise).abs().amax(-1) <= tolerance * at_once.abs().amax(-1)).all()


@pytest.mark.parametrize("height", [1, 2, 5, 8, 11])
def test_rows_above_step_as_they_run(height: int) -> None:
    rows_above = randomise(RowsAbove((3, 4, 2), (1, 2, 1), (3, 3)))
    v, context = random_normal(2, 3, height, 5), random_normal(2, 3, height, 5, seed=1)
    state, rows = PixelState(), []
    for state.row in range(height):
        rows.append(rows_above.step_row(v[:, :, state.row].mT, context[:, :, state.row].mT, state).mT)
    torch.testing.assert_close(torch.stack(rows, dim=2), rows_above(v, context), rtol=1e-12, atol=1e-12)


def test_generation_starts_from_a_clean_state() -> None:
    """What one generation remembers must not reach the next."""
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    uniforms = noise(SMALL, 2)
    first = image.sample(uniforms=uniforms)
    image.sample()
    assert torch.equal(image.sample(uniforms=uniforms), first)
    assert PixelState().rows is not PixelState().rows


def test_samples_follow_the_seed() -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(image.sample())
    assert torch.equal(*draws)
    assert not torch.equal(image.sample(), image.sample())


# --- kept pixels ---


@pytest.mark.parametrize("name", ["five_levels_odd", "colour_odd_3_levels", "no_latents", "snail_five_levels_odd"])
@pytest.mark.parametrize("kept", [0, 1, 3, 12, None], ids=lambda kept: f"keep_{kept}")
def test_the_rest_of_a_kept_beginning_is_drawn_given_it(name: str, kept: int | None) -> None:
    """Keeping a sample's own first pixels and its noise gives the sample back; keeping others does not."""
    case = CASES[name]
    image = AutoregressiveImage(case.network(), case.z(2))
    uniforms = noise(case, 2)
    sample = image.sample(uniforms=uniforms)
    _, height, width = case.spec.shape
    mask = (torch.arange(height * width) < (height * width if kept is None else kept)).view(height, width)
    assert torch.equal(image.sample(keep=(sample, mask), uniforms=uniforms), sample)
    other = (sample + 1) % case.spec.levels
    changed = image.sample(keep=(other, mask), uniforms=uniforms)
    assert torch.equal(changed[..., mask], other[..., mask])
    redrawn = naive_continuation(image, other, mask, uniforms)
    assert torch.equal(changed, redrawn)


def naive_continuation(image: AutoregressiveImage, x: Tensor, mask: Tensor, uniforms: Tensor) -> Tensor:
    x = torch.where(mask, x, 0)
    for row, column in (~mask).nonzero().tolist():
        pixel = image._pixels(image.parameters_at(x)[:, row, column])
        x[:, :, row, column] = pixel.sample_with(uniforms[:, row, column])
    return x


def test_kept_pixels_anywhere_are_kept() -> None:
    case = CASES["colour_odd_3_levels"]
    image = AutoregressiveImage(case.network(), case.z(2))
    x, uniforms = random_images(case.spec, (2,)), noise(case, 2)
    mask = torch.rand(2, *case.spec.shape[1:]) < 0.5  # another for each image
    drawn = image.sample(keep=(x, mask), uniforms=uniforms)
    assert torch.equal(drawn.movedim(1, -1)[mask], x.movedim(1, -1)[mask])
    for b in range(2):
        alone = AutoregressiveImage(image.network, image.z[b : b + 1])
        assert torch.equal(naive_continuation(alone, x[b : b + 1], mask[b], uniforms[b : b + 1])[0], drawn[b])


def test_kept_images_and_masks_broadcast() -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    _, height, width = SMALL.spec.shape
    x = random_images(SMALL.spec, ())
    top = (torch.arange(height) < 2)[:, None]
    drawn = image.sample((3,), keep=(x, top))
    assert drawn.shape == (3, 2, *SMALL.spec.shape)
    assert (drawn[..., :2, :] == x[..., :2, :]).all()
    everything = image.sample((3,), keep=(x, torch.tensor(True)))
    assert (everything == x).all()
    before = x.clone()
    image.sample(keep=(x, torch.ones(height, width, dtype=torch.bool)))
    assert torch.equal(x, before)  # the caller's images are left alone


# --- evaluation mode ---


class Watched(ConditionalGatedPixelCNN):
    """Notes the mode in which it samples, and fails when told to."""

    modes: list[bool]
    fail_at_row: int | None = None

    def step_row(self, state: object, row: int, previous_bcw: Tensor | None) -> None:
        self.modes.append(self.training)
        if row == self.fail_at_row:
            raise RuntimeError("told to fail")
        super().step_row(state, row, previous_bcw)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fail_at_row", [None, 0, 2])
def test_sampling_runs_in_evaluation_mode_and_restores_the_mode(training: bool, fail_at_row: int | None) -> None:
    network = SMALL.network(Watched).train(training)
    network.modes, network.fail_at_row = [], fail_at_row
    image = AutoregressiveImage(network, SMALL.z(1))
    if fail_at_row is None:
        image.sample()
    else:
        with pytest.raises(RuntimeError, match="told to fail"):
            image.sample()
    assert network.modes == [False] * (SMALL.spec.height if fail_at_row is None else fail_at_row + 1)
    assert all(module.training is training for module in network.modules())


class InTurn(ConditionalGatedPixelCNN):
    """The second to begin its first row waits there until the first has ended."""

    def step_row(self, state: object, row: int, previous_bcw: Tensor | None) -> None:
        if row == 0 and not self.first_is_under_way.is_set():
            self.first_is_under_way.set()
            assert self.second_is_under_way.wait(60)
        elif row == 0 and not self.second_is_under_way.is_set():
            self.second_is_under_way.set()
            assert self.first_has_ended.wait(60)
        super().step_row(state, row, previous_bcw)


def test_two_threads_that_draw_put_back_the_mode() -> None:
    network = SMALL.network(InTurn).train()
    network.first_is_under_way, network.second_is_under_way, network.first_has_ended = Event(), Event(), Event()
    image, uniforms = AutoregressiveImage(network, SMALL.z(1)), noise(SMALL, 1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(image.sample, uniforms=uniforms)
        first.add_done_callback(lambda done: network.first_has_ended.set())
        assert network.first_is_under_way.wait(60)
        second = pool.submit(image.sample, uniforms=uniforms)
        assert torch.equal(first.result(), second.result())
    assert all(module.training for module in network.modules())


# --- shapes ---


@pytest.mark.parametrize(("sample_shape", "batch_shape"), [((0,), ()), ((2,), (0,)), ((), (3, 0))])
def test_no_images(sample_shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(*batch_shape), validate_args=False)
    x = image.sample(Size(sample_shape))
    assert x.shape == (*sample_shape, *batch_shape, *SMALL.spec.shape)
    assert image.log_prob(x).shape == (*sample_shape, *batch_shape)


def test_noise_that_would_be_of_many_places_is_refused() -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    good = noise(SMALL, 2)
    for bad in (good[..., :1], good[..., :1, :], torch.rand(())):
        with pytest.raises(ValueError, match=r"noise of shape .* does not fit: its shape must end in \("):
            image.sample(uniforms=bad)
    assert torch.equal(image.sample(uniforms=good[:1])[0], image.sample(uniforms=good)[0])


@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 1)])
@pytest.mark.parametrize("batch_shape", [(), (2,), (3, 2)])
def test_shapes(batch_shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(*batch_shape))
    assert image.batch_shape == batch_shape
    assert image.event_shape == SMALL.spec.shape
    x = image.sample(Size(sample_shape))
    assert x.dtype == torch.int64
    assert x.shape == (*sample_shape, *batch_shape, *SMALL.spec.shape)
    assert image.log_prob(x).shape == (*sample_shape, *batch_shape)
    parameters = image.parameters_at(x)
    assert parameters.shape == (*sample_shape, *batch_shape, *SMALL.spec.shape[1:], 3 * 3)
    flat = AutoregressiveImage(image.network, image.z.expand(*sample_shape, *batch_shape, -1, -1).reshape(-1, 5, 3))
    one_by_one = [flat_image.parameters_at(one) for flat_image, one in zip(each(flat), x.reshape(-1, *x.shape[-3:]))]
    torch.testing.assert_close(parameters.reshape(-1, *parameters.shape[-3:]), torch.stack(one_by_one))


def each(image: AutoregressiveImage) -> list[AutoregressiveImage]:
    return [AutoregressiveImage(image.network, z) for z in image.z]


def test_expand() -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    wide = image.expand(Size((3, 2)))
    assert type(wide) is AutoregressiveImage
    assert wide.batch_shape == (3, 2)
    assert wide.event_shape == image.event_shape
    x = wide.sample()
    torch.testing.assert_close(wide.log_prob(x), image.log_prob(x), rtol=1e-12, atol=0)
    assert not torch.equal(x[0], x[1])  # independent draws
    assert image.expand_by(Size((4,))).batch_shape == (4, 2)
    uniforms = noise(SMALL, 3, 2)
    assert torch.equal(wide.sample(uniforms=uniforms), image.sample((3,), uniforms=uniforms))


def test_log_prob_broadcasts_images_over_particles() -> None:
    """Observed images (B, …) under z of P particles (P, B, …)."""
    image = AutoregressiveImage(SMALL.network(), SMALL.z(3, 2))
    x = random_images(SMALL.spec, (2,))
    log_p = image.log_prob(x)
    assert log_p.shape == (3, 2)
    for p, b in itertools.product(range(3), range(2)):
        alone = AutoregressiveImage(image.network, image.z[p, b]).log_prob(x[b])
        torch.testing.assert_close(log_p[p, b], alone, rtol=1e-12, atol=0)


def test_log_prob_sums_the_pixels_of_the_network() -> None:
    case = CASES["colour_256"]
    image = AutoregressiveImage(case.network(), case.z(2))
    x = random_images(case.spec, (2,))
    parameters = image.parameters_at(x)
    expected = torch.zeros(2, dtype=torch.float64)
    for b, row, column in itertools.product(range(2), range(case.spec.height), range(case.spec.width)):
        expected[b] += image._pixels(parameters[b, row, column]).log_prob(x[b, :, row, column])
    torch.testing.assert_close(image.log_prob(x), expected, rtol=1e-12, atol=0)


# --- it is a distribution ---


@pytest.mark.parametrize(
    "case",
    [
        Case(ImageSpec(1, 2, 2, 2), length=2),
        Case(ImageSpec(1, 2, 2, 3), (4, 3), (1, 1), length=2),
        Case(ImageSpec(1, 3, 3, 2), (4, 3), (1, 1), length=3),
        Case(ImageSpec(3, 1, 2, 3)),
        Case(ImageSpec(3, 2, 1, 3), length=2, use_latents=False),
        Snail(ImageSpec(1, 3, 3, 2), length=3),
        Snail(ImageSpec(3, 1, 2, 3), blocks=2),
    ],
    ids=[
        "2×2, 2 levels",
        "2×2, 3 levels",
        "3×3, 2 levels",
        "colour 1×2",
        "colour 2×1, no latents",
        "snail 3×3, 2 levels",
        "snail colour 1×2",
    ],
)
def test_probabilities_of_all_images_sum_to_one(case: Case | Snail) -> None:
    image = AutoregressiveImage(case.network(), case.z())
    values = torch.arange(case.spec.levels)
    everything = torch.cartesian_prod(*[values] * case.spec.scored).reshape(-1, *case.spec.shape)
    with torch.no_grad():
        log_p = image.log_prob(everything)
    assert abs(log_p.exp().sum().item() - 1) < 1e-10
    assert log_p.exp().std() > 0


def test_samples_have_the_frequencies_of_log_prob() -> None:
    case = Case(ImageSpec(1, 2, 2, 2), length=2)
    image = AutoregressiveImage(case.network(), case.z())
    everything = torch.cartesian_prod(*[torch.arange(2)] * 4).reshape(-1, 1, 2, 2)
    with torch.no_grad():
        probability = image.log_prob(everything).exp()
    draws = 20_000
    code = (image.sample(Size((draws,))).flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    counts = torch.bincount(code, minlength=16)
    chi2 = ((counts - draws * probability).square() / (draws * probability)).sum()
    assert chi2 < 45  # 15 degrees of freedom: exceeded once in 13 000 times


def test_gradients_reach_z_and_the_network() -> None:
    network = SMALL.network()
    z = SMALL.z(2).requires_grad_()
    AutoregressiveImage(network, z).log_prob(random_images(SMALL.spec, (2,))).sum().backward()
    assert (z.grad != 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


def test_there_is_no_rsample() -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2).requires_grad_())
    assert not image.has_rsample
    assert not image.sample().requires_grad
    with pytest.raises(NotImplementedError):
        image.rsample()


def test_the_support_is_discrete_integers() -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    assert image.support.is_discrete
    assert image.support.event_dim == 3
    assert image.support.check(random_images(SMALL.spec, (2,))).all()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: x - x.max() - 1,
        lambda x: x * 0 + SMALL.spec.levels,
        lambda x: x + 0.5,
        lambda x: x.double() * float("nan"),
        lambda x: x[..., :-1],
        lambda x: x[:, 0],
        lambda x: x.expand(-1, 3, -1, -1),
        lambda x: torch.cat((x, x[:1])),
    ],
    ids=["negative", "too large", "half", "nan", "narrow", "no channel", "colour", "batch of 3 for 2"],
)
def test_images_that_do_not_fit_are_refused(spoil: object) -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    with pytest.raises(ValueError):
        image.log_prob(spoil(random_images(SMALL.spec, (2,))))


def test_any_dtype_of_integers_is_scored_alike() -> None:
    image = AutoregressiveImage(SMALL.network(), SMALL.z(2))
    x = random_images(SMALL.spec, (2,))
    for dtype in (torch.uint8, torch.int32, torch.float32, torch.float64):
        assert torch.equal(image.log_prob(x.to(dtype)), image.log_prob(x))
