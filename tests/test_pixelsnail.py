"""PixelSNAIL against a reimplementation in loops, the first position, dropout, precision, options.

Its causality and its cached sampling are rows of the tables in `test_causality.py` and `test_autoregressive_image.py`.
"""

import math

import pytest
import torch
from networks import SPECS, StepsPrior, random_images, random_normal, randomise
from torch import Tensor

from pyro_delta.data.images import ImageSpec
from pyro_delta.distributions.images.autoregressive_image import sample_naively
from pyro_delta.errors import UserError
from pyro_delta.models import AR1Prior, ConditionalPixelSNAIL, PixelSNAILLikelihood, even_starts
from pyro_delta.nn.images.causal import PixelBlock, bounded
from pyro_delta.nn.images.pixelsnail import PixelSNAIL, RasterAttention, background
from pyro_delta.nn.precision import set_bf16

SPEC = ImageSpec(3, 5, 4, 7)
SIZES = {"channels": 8, "blocks": 2, "layers": 2, "heads": 2}


def likelihood(spec: ImageSpec = SPEC, **options: object) -> PixelSNAILLikelihood:
    prior = AR1Prior(spec, dims=2, alpha="0.5,0.9")
    return randomise(PixelSNAILLikelihood(spec, prior, mixtures=3, **{**SIZES, **options}))


def z_for(spec: ImageSpec, *batch: int) -> Tensor:
    return random_normal(*batch, spec.height, 2)


# --- the network, once more ---

Place = tuple[int, int]
Features = dict[Place, Tensor]


class Loops:
    """The page docs/architecture.md as loops over positions: one image, one vector a position, nothing shared.

    Heights and widths are powers of two, for which the background coordinates are exact in single precision.
    """

    def __init__(self, network: PixelSNAIL, x_chw: Tensor, context_chw: Tensor) -> None:
        self.weights, self.norm = network.state_dict(), network.norm
        self.x, self.context = x_chw, context_chw
        _, self.height, self.width = x_chw.shape
        self.places = [(r, c) for r in range(self.height) for c in range(self.width)]

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return weight.reshape(len(weight), -1) @ x + self.weights[f"{name}.bias"]

    def convolve(
        self, name: str, h: dict[tuple[int, int], Tensor], place: tuple[int, int], up: int, left: int
    ) -> Tensor:
        """A kernel whose last row stands `up` rows above the place and whose first column `left` to the left of it."""
        weight, out = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"].clone()
        _, _, rows, columns = weight.shape
        for i in range(rows):
            for j in range(columns):
                at = (place[0] - up - (rows - 1) + i, place[1] - left + j)
                if at in h:
                    out += weight[:, :, i, j] @ h[at]
        return out

    def gated(self, name: str, h: Tensor, inner: Tensor) -> Tensor:
        half = len(inner) // 2
        return h + self.linear(f"{name}.out", inner[:half] * inner[half:].sigmoid())

    def background(self, place: Place) -> Tensor:
        row, column = place[0] / self.height - 0.5, place[1] / self.width - 0.5
        return torch.tensor([row, column], dtype=self.x.dtype)

    def read(self, h: Tensor) -> Tensor:
        """Scaled to a root mean square of 1 where it is larger and the network has a norm."""
        return h / max(1.0, float(h.square().mean().sqrt())) if self.norm else h

    def run(self, blocks: int, layers: int, heads: int) -> Tensor:
        x = {p: self.x[:, p[0], p[1]] for p in self.places}
        h = {
            p: self.convolve("stem_rows.conv", x, p, 1, 4)
            + self.convolve("stem_pixels.conv", x, p, 0, 5)
            + self.linear("place", self.background(p))
            + self.linear("context", self.context[:, p[0], p[1]])
            for p in self.places
        }
        for b in range(blocks):
            for i in range(layers):
                name = f"blocks.{b}.layers.{i}"
                read = {p: self.read(h[p]) for p in self.places}
                h = {
                    p: self.gated(
                        f"{name}.along",
                        h[p],
                        self.convolve(f"{name}.above.conv", read, p, 1, 1)
                        + self.convolve(f"{name}.along.conv.conv", read, p, 0, 1),
                    )
                    for p in self.places
                }
            h = self.attend(f"blocks.{b}.attention", h, x, heads)
        hidden_of = [torch.nn.functional.silu(self.linear("head", self.read(h[p]))) for p in self.places]
        out = [self.linear("out", hidden) for hidden in hidden_of]
        return torch.stack(out, dim=1).unflatten(1, (self.height, self.width))

    def attend(self, name: str, h: Features, x: Features, heads: int) -> Features:
        keys, values, merged = [], [], {}
        for p in self.places:
            of_place = self.linear(f"{name}.features", self.read(h[p])) + self.linear(
                f"{name}.place", self.background(p)
            )
            query, key, value = of_place.chunk(3)
            of_pixel = self.linear(f"{name}.pixel", x[p]).chunk(2)
            seen = torch.zeros_like(query)
            size = len(query) // heads
            for a in range(heads):
                own = slice(a * size, (a + 1) * size)
                scores = [query[own] @ earlier[own] / math.sqrt(size) for earlier in keys]
                total = sum(math.exp(score) for score in scores)
                for score, earlier in zip(scores, values, strict=True):
                    seen[own] += math.exp(score) / total * earlier[own]
            inner = self.linear(f"{name}.merge.conv.conv", self.read(h[p])) + self.linear(f"{name}.link", seen)
            merged[p] = self.gated(f"{name}.merge", h[p], inner)
            keys.append(key + of_pixel[0])
            values.append(value + of_pixel[1])
        return merged


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", [(4, 8, 1, 2, 2), (8, 4, 2, 1, 4), (1, 8, 1, 1, 1)])
def test_the_network_is_what_the_page_says(size: tuple[int, int, int, int, int], norm: bool) -> None:
    height, width, blocks, layers, heads = size
    network = randomise(
        PixelSNAIL(
            3,
            5,
            height=height,
            width=width,
            channels=8,
            blocks=blocks,
            layers=layers,
            heads=heads,
            norm=norm,
            context_channels=2,
        )
    )
    x, context = random_normal(1, 3, height, width), random_normal(1, 2, height, width, seed=1)
    with torch.no_grad():
        expected = Loops(network, x[0], context[0]).run(blocks, layers, heads)
        torch.testing.assert_close(network(x, context)[0], expected, rtol=1e-12, atol=1e-12)


def test_background_coordinates() -> None:
    rows, columns = background(4, 2)
    assert rows.tolist() == [[-0.5, -0.5], [-0.25, -0.25], [0.0, 0.0], [0.25, 0.25]]
    assert columns.tolist() == [[-0.5, 0.0]] * 4


# --- the bound of what is read ---


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_are_bounded(dim: int, dtype: torch.dtype) -> None:
    """Scaled to a root mean square of 1 where it is larger, left as they are, to the bit, where it is not."""
    x = random_normal(3, 8, 4, 8).to(dtype) * torch.tensor([1e-3, 1.0, 1e3], dtype=dtype)[:, None, None, None]
    x[0, :, 0, 0] = 0
    found = bounded(x.requires_grad_(), dim)
    size = x.detach().double().square().mean(dim, keepdim=True).sqrt()
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), x.double() / size.clamp(min=1.0), rtol=rounding, atol=0)
    small = (size < 1 - rounding).expand_as(x)
    assert small.any()
    assert not small.all()
    assert torch.equal(found[small], x[small])
    (gradient,) = torch.autograd.grad(found.double().square().sum(), x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("norm", "least", "most"), [(False, 1e9, math.inf), (True, 0.0, 1e2)])
def test_blocks_with_large_weights_make_more_and_more_of_what_has_no_bound(
    norm: bool, least: float, most: float
) -> None:
    """Weights that have grown threefold, as those of long trainings do."""
    network = randomise(PixelSNAIL(3, 5, height=6, width=6, channels=8, blocks=2, layers=4, heads=2, norm=norm))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)
        assert least < network(random_normal(2, 3, 6, 6)).abs().max().item() < most


# --- the first position ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_first_position_attends_to_nothing(dtype: torch.dtype, training: bool) -> None:
    """Exactly zero, with finite gradients; bfloat16 is autocast's."""
    attention = randomise(RasterAttention(8, 3, height=4, width=5, heads=2)).train(training)
    attention.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    seen: list[Tensor] = []
    attention.link.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    h, x, where = random_normal(2, 8, 4, 5), random_normal(2, 3, 4, 5, seed=1), background(4, 5)
    h, x, where = (tensor.to(attention.link.weight.dtype) for tensor in (h, x, where))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = attention(h, x, where)
    assert seen[0].dtype == dtype
    assert (seen[0][:, :, 0, 0] == 0).all()
    assert (seen[0][:, :, 0, 1:] != 0).all()
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in attention.parameters())


# --- dropout, precision, memory format ---


def test_dropout_is_for_training_alone() -> None:
    program, plain = likelihood(dropout=0.5), likelihood()
    x, z = random_images(SPEC, (2,)), z_for(SPEC, 2)
    assert program.state_dict().keys() == plain.state_dict().keys()
    exact = plain(z).log_prob(x)
    assert not torch.equal(program(z).log_prob(x), program(z).log_prob(x))
    assert torch.equal(program.eval()(z).log_prob(x), exact)
    assert sum(isinstance(m, PixelBlock) and m.dropout.p == 0.5 for m in program.modules()) == 2 * (2 + 1)
    uniforms = torch.rand(2, SPEC.height, SPEC.width, 1 + SPEC.channels, dtype=torch.float64)
    naive = sample_naively(program(z), uniforms)
    assert torch.equal(program.train()(z).sample(uniforms=uniforms), naive)


def test_bfloat16_ends_inside_the_network() -> None:
    program = likelihood().float()
    x, z = random_images(SPEC, (4,)), z_for(SPEC, 4).float()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter *= 0.5  # as small as in use: residuals that grow from block to block magnify every rounding
        exact = program.network(x, z)
        set_bf16(program, True)
        rounded = program.network(x, z)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()
    program(z).log_prob(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in program.parameters())


def test_channels_last_keeps_the_values() -> None:
    program = likelihood()
    x, z = random_images(SPEC, (2,)), z_for(SPEC, 2)
    with torch.no_grad():
        log_p = program(z).log_prob(x)
        program.to(memory_format=torch.channels_last)
        torch.testing.assert_close(program(z).log_prob(x), log_p, rtol=1e-10, atol=0)
        sample_twice = [program(z).sample(uniforms=torch.full((2, 5, 4, 4), 0.3)) for _ in range(2)]
    assert torch.equal(*sample_twice)


# --- the program and its options ---


def test_the_program_keeps_no_part_of_its_prior() -> None:
    prior = StepsPrior([0, 2], [0.5, 0.9, 0.1])
    program = PixelSNAILLikelihood(SPEC, prior, **SIZES)
    assert prior not in list(program.modules())
    assert program.network.latents.embed[0].in_features == 3
    assert program.network.latents.visible[:, 1].tolist() == [False, False, True, True, True]
    assert not any(name.startswith("prior") for name, _ in program.named_parameters())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"channels": 10, "heads": 2}, "heads=2 cannot share half of 10 channels"),
        ({"heads": 0}, "heads=0 cannot share"),
        ({"conditioning": "ful"}, "unknown likelihood.conditioning 'ful'; did you mean 'full'"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        likelihood(**options)


SIZES_OF_CIFAR10 = {
    # options, millions of parameters
    "two cores": ({"latent_channels": 8}, 0.472),
    "the paper's ablation, l8 h128 a2": ({"channels": 128, "blocks": 2, "layers": 4, "heads": 4}, 1.738),
    "the paper's decoder, 30×256 a6": ({"channels": 256, "blocks": 6, "layers": 5, "heads": 8}, 24.04),
}


@pytest.mark.parametrize("name", SIZES_OF_CIFAR10)
def test_sizes_of_known_configurations(name: str) -> None:
    options, millions = SIZES_OF_CIFAR10[name]
    spec = SPECS["cifar10"]
    sizes = {"channels": 64, "blocks": 2, "layers": 4, "heads": 2}
    with torch.device("meta"):
        network = ConditionalPixelSNAIL(spec, even_starts(32), 4, **{**sizes, **options})
        out = network(torch.zeros(8, *spec.shape, dtype=torch.int64), torch.zeros(8, 32, 4))
    assert out.shape == (8, 100, 32, 32)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
