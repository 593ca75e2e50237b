"""The twin's networks against torch's: values, gradients, weights there and back, and pixels written one at a time."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from networks import StepsPrior, random_images, random_normal, randomise
from torch import Tensor

from pyro_delta.data.images import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.guides import AntiCausalGuide, BidirectionalGuide
from pyro_delta.models import GatedPixelCNNLikelihood, LatticePrior, PixelSNAILLikelihood

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
from flax import nnx

from pyro_delta.twin import latents, layers
from pyro_delta.twin.images import causal, conditional, gated_pixelcnn, pixelsnail
from pyro_delta.twin.images.conditional import ConditionalGatedPixelCNN, ConditionalPixelSNAIL, generate
from pyro_delta.twin.images.encoder import ImageEncoder
from pyro_delta.twin.weights import load_weights, torch_weights

# Compiling is most of the time here, and nothing runs for long.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SEEDS = range(10)
TOLERANCE = 1e-9
DIMS = 2


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


class Case(NamedTuple):
    """A network, as either backend makes it."""

    torch: Callable[[], torch.nn.Module]
    twin: Callable[[], nnx.Module]
    spec: ImageSpec
    steps: int
    """n; 0 for an encoder, which takes no z"""


def decoder(torch_class: Any, twin_class: Any, spec: ImageSpec, starts: list[int], **settings: Any) -> Case:
    network = {name: value for name, value in settings.items() if name not in ("use_latents", "conditioning")}
    return Case(
        lambda: torch_class(spec, StepsPrior(starts, [0.5] * DIMS), **settings).network,
        lambda: twin_class(spec, seen(starts, **settings), DIMS, **network, rngs=nnx.Rngs(0)),
        spec,
        len(starts),
    )


def seen(
    starts: list[int], *, use_latents: bool = True, conditioning: str = "causal", **network: Any
) -> list[int] | None:
    """Where each step is seen from."""
    if not use_latents:
        return None
    return starts if conditioning == "causal" else [0] * len(starts)


def gated(spec: ImageSpec, starts: list[int], **settings: Any) -> Case:
    return decoder(GatedPixelCNNLikelihood, ConditionalGatedPixelCNN, spec, starts, **settings)


def snail(spec: ImageSpec, starts: list[int], **settings: Any) -> Case:
    return decoder(PixelSNAILLikelihood, ConditionalPixelSNAIL, spec, starts, **settings)


def encoder(spec: ImageSpec, starts: list[int], *, bidirectional: bool = False, **settings: Any) -> Case:
    guide = BidirectionalGuide if bidirectional else AntiCausalGuide
    return Case(
        lambda: guide(spec, StepsPrior(starts, [0.5] * DIMS), **settings).encoder,
        lambda: ImageEncoder(spec, starts, 2 * DIMS, anti_causal=not bidirectional, **settings, rngs=nnx.Rngs(0)),
        spec,
        0,
    )


def lattice_encoder(spec: ImageSpec, rows: int, columns: int, **settings: Any) -> Case:
    prior = LatticePrior(spec, dims=DIMS, rows=rows, columns=columns, alpha=0.5)
    return Case(
        lambda: AntiCausalGuide(spec, prior, **settings).encoder,
        lambda: ImageEncoder(spec, prior.starts.tolist(), 2 * DIMS, columns=columns, **settings, rngs=nnx.Rngs(0)),
        spec,
        0,
    )


GREY = ImageSpec(1, 5, 7, 17)
COLOUR = ImageSpec(3, 4, 3, 256)
U_NET: dict[str, Any] = {"channels": (4, 6, 8), "row_blocks": (1, 0, 2), "pixel_blocks": 2}
FLAT: dict[str, Any] = {"channels": (4,), "row_blocks": (1,), "pixel_blocks": 1}

CASES = {
    "gated, grey, strides, odd size, rows without a step": gated(
        GREY, [1, 2, 4], mixtures=2, latent_channels=3, norm=True, **U_NET
    ),
    "gated, colour, full, wide kernels, shared rows": gated(
        COLOUR,
        [0, 0, 2, 2],
        conditioning="full",
        mixtures=1,
        latent_channels=3,
        row_kernel=(3, 5),
        pixel_kernel=2,
        **FLAT,
    ),
    "gated, grey and alpha": gated(ImageSpec(2, 3, 4, 17), [0, 1], mixtures=2, latent_channels=3, **FLAT),
    "gated, colour and alpha": gated(ImageSpec(4, 3, 4, 17), [0, 1], mixtures=2, latent_channels=3, **FLAT),
    "gated, no latents": gated(GREY, [0, 2], use_latents=False, mixtures=1, stem=(2, 5, 3), **U_NET),
    "snail, grey, odd size, blocks, layers, heads": snail(
        GREY, [0, 1, 1, 3], mixtures=2, latent_channels=3, channels=8, blocks=2, layers=2, heads=2, norm=True
    ),
    "snail, colour, full": snail(
        COLOUR, [0, 2], conditioning="full", mixtures=1, latent_channels=3, channels=4, blocks=1, layers=1, heads=1
    ),
    "snail, no latents": snail(COLOUR, [0], use_latents=False, mixtures=1, channels=4, blocks=1, layers=0, heads=2),
    "anti-causal, grey, strides, odd size": encoder(GREY, [0, 1, 3], features=5, **U_NET),
    "anti-causal, colour": encoder(COLOUR, [0, 2], features=5, **FLAT),
    "bidirectional, strides, odd size": encoder(GREY, [0, 1, 3], bidirectional=True, features=5, **U_NET),
    "lattice of several columns": lattice_encoder(ImageSpec(1, 6, 6, 17), 3, 3, features=5, **FLAT),
}
DECODERS = {name: case for name, case in CASES.items() if case.steps}


def arguments(case: Case, seed: int) -> list[Tensor]:
    """Integers (2, C, H, W), and for a decoder z (2, n, d)."""
    images = random_images(case.spec, (2,), seed)
    return [images, random_normal(2, case.steps, DIMS, seed=seed)] if case.steps else [images]


def torch_network(case: Case, seed: int) -> torch.nn.Module:
    return randomise(case.torch(), seed).eval()


def loaded_twin(case: Case, network: torch.nn.Module) -> Any:
    twin = nnx.eval_shape(case.twin)
    load_weights(twin, network.state_dict())
    return twin


def distance(ours: Any, theirs: Any) -> float:
    """Largest difference, relative to the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300))


def as_arrays(tensors: list[Tensor]) -> list[Any]:
    return [jnp.asarray(tensor.numpy()) for tensor in tensors]


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_torchs(name: str) -> None:
    """Each weight's gradient of a random scalar, and that of z, for ten draws of the weights."""
    case = CASES[name]
    graph = nnx.graphdef(nnx.eval_shape(case.twin))

    @jit
    def differentiate(state: Any, arguments: list[Any], direction: Any) -> Any:
        def scalar(state: Any, z: list[Any]) -> Any:
            result = nnx.merge(graph, state)(arguments[0], *z)
            return (result * direction).sum(), result

        gradients, result = jax.grad(scalar, argnums=(0, 1), has_aux=True)(state, arguments[1:])
        return result, *gradients

    for seed in SEEDS:
        network = torch_network(case, seed)
        twin = loaded_twin(case, network)
        images, *z = arguments(case, seed)
        for part in z:
            part.requires_grad_()
        theirs = network(images, *z)
        direction = random_normal(*theirs.shape, seed=seed + 100)
        (theirs * direction).sum().backward()

        inputs = as_arrays([images, *(part.detach() for part in z)])
        ours, weight_gradients, z_gradients = differentiate(nnx.state(twin), inputs, jnp.asarray(direction.numpy()))

        assert distance(ours, theirs.detach()) < TOLERANCE
        gradients = torch_weights(nnx.merge(graph, weight_gradients))
        assert gradients.keys() == dict(network.named_parameters()).keys()
        for weight, parameter in network.named_parameters():
            assert parameter.grad is not None
            assert distance(gradients[weight], parameter.grad) < TOLERANCE, weight
        for part, gradient in zip(z, z_gradients, strict=True):
            # A network that uses no latents gives torch no gradient at all.
            wanted = torch.zeros_like(part) if part.grad is None else part.grad
            assert distance(gradient, wanted) < TOLERANCE


@pytest.mark.parametrize("name", DECODERS)
def test_pixels_written_in_turn_have_the_parameters_of_the_whole_image(name: str) -> None:
    """Every pixel is chosen from its parameters and noise, so that one wrong parameter shows in all that follow."""
    case = DECODERS[name]
    network = torch_network(case, 0)
    twin = loaded_twin(case, network)
    spec = case.spec
    noise = jnp.asarray(random_normal(spec.height, spec.width, 3, spec.channels).numpy())
    z = jnp.asarray(random_normal(3, case.steps, DIMS).numpy())

    def choose(parameters_bp: Any, noise_bc: Any) -> Any:
        share = jax.nn.sigmoid(parameters_bp[:, -spec.channels :] + noise_bc)
        return jnp.floor(share * spec.levels).astype(int)

    images, parameters = jit(lambda z, noise: generate(twin, z, choose, noise))(z, noise)

    assert images.shape == (3, *spec.shape)
    assert len(jnp.unique(images)) > 5
    assert distance(parameters, jit(twin)(images, z)) < 1e-10
    whole = network(torch.tensor(np.asarray(images)), torch.tensor(np.asarray(z)))
    assert distance(parameters, whole.detach()) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_weights_there_and_back_are_the_same_bits(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    state = torch_network(case, 0).to(dtype).state_dict()
    twin = nnx.eval_shape(case.twin)

    load_weights(twin, state)
    back = torch_weights(twin)

    assert back.keys() == state.keys()
    for weight, tensor in state.items():
        assert back[weight].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(back[weight], tensor.numpy(), strict=True)
    case.torch().to(dtype).load_state_dict({weight: torch.from_numpy(array) for weight, array in back.items()})


class Held(nnx.Module):
    """A linear layer, a matrix that is none, and a fixed array."""

    class Fixed(nnx.Variable):
        """A variable that is not learned."""

    def __init__(self) -> None:
        self.layer = layers.linear(2, 3, rngs=nnx.Rngs(0))
        self.weight_ih = nnx.Param(jnp.zeros((4, 3)))
        self.fixed = self.Fixed(jnp.arange(3))


def test_only_kernels_of_layers_change_their_axes() -> None:
    weights = {
        "layer.weight": np.arange(6.0).reshape(3, 2),
        "layer.bias": np.ones(3),
        "weight_ih": np.arange(12.0).reshape(4, 3),
        "fixed": np.array([2, 1, 0]),
    }
    module = Held()

    load_weights(module, weights)

    np.testing.assert_array_equal(module.layer.kernel[...], weights["layer.weight"].T)
    np.testing.assert_array_equal(module.weight_ih[...], weights["weight_ih"])
    np.testing.assert_array_equal(module.fixed[...], weights["fixed"])
    assert torch_weights(module).keys() == weights.keys()


def drop(weights: dict[str, Any]) -> None:
    del weights["trunk.link.weight"]


def add(weights: dict[str, Any]) -> None:
    weights["trunk.links.weight"] = weights["trunk.link.weight"]


def turn(weights: dict[str, Any]) -> None:
    weights["trunk.link.weight"] = weights["trunk.link.weight"].transpose(0, 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, r"lack trunk\.link\.weight,"),
        (add, r"no place for the weights trunk\.links\.weight\."),
        (turn, r"weight trunk\.link\.weight has shape \(4, 20, 1, 1\); the twin's has \(20, 4, 1, 1\)"),
    ],
)
def test_weights_that_do_not_match_are_refused_by_name(spoil: Any, message: str) -> None:
    case = CASES["gated, no latents"]
    twin = loaded_twin(case, torch_network(case, 0))
    before = torch_weights(twin)
    weights = dict(torch_network(case, 1).state_dict())
    spoil(weights)

    with pytest.raises(UserError, match=message):
        load_weights(twin, weights)

    for weight, array in torch_weights(twin).items():
        np.testing.assert_array_equal(array, before[weight])


DEALT_OUT = gated_pixelcnn.dealt_out
PLANTS: dict[str, tuple[str, Any, str, Any]] = {
    "the mask of rows flipped": (
        "gated, no latents",
        gated_pixelcnn,
        "shift_down",
        lambda v: causal.shift_down(v[:, ::-1])[:, ::-1],
    ),
    "the mask within the row flipped": (
        "gated, no latents",
        gated_pixelcnn,
        "shift_right",
        lambda v: causal.shift_right(v[:, :, ::-1])[:, :, ::-1],
    ),
    "attention that sees itself": (
        "snail, colour, full",
        pixelsnail,
        "masked_softmax",
        lambda scores, mask: layers.masked_softmax(scores, mask | np.eye(len(mask), dtype=bool)),
    ),
    "steps seen a row too late": (
        "gated, grey, strides, odd size, rows without a step",
        latents.LatentMap,
        "_visible",
        lambda self: np.asarray(self.starts) < np.arange(self.positions)[:, None],
    ),
    "the halves of the gate swapped": (
        "gated, no latents",
        causal,
        "gate",
        lambda v: v[..., v.shape[-1] // 2 :] * jax.nn.sigmoid(v[..., : v.shape[-1] // 2]),
    ),
    "the two columns that are dealt out swapped": (
        "gated, no latents",
        gated_pixelcnn,
        "dealt_out",
        lambda v, width: DEALT_OUT(jnp.roll(v, v.shape[-1] // 2, axis=-1), width),
    ),
    "red and blue swapped": (
        "snail, colour, full",
        conditional,
        "embed_pixels",
        lambda x, levels, dtype: causal.embed_pixels(x[..., ::-1], levels, dtype),
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_wrong_twin_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, owner, attribute, wrong = PLANTS[plant]
    case = CASES[name]
    network = torch_network(case, 0)
    theirs = network(*arguments(case, 0)).detach()
    monkeypatch.setattr(owner, attribute, wrong)

    ours = jit(loaded_twin(case, network))(*as_arrays(arguments(case, 0)))

    assert distance(ours, theirs) > 1e-4


def test_single_precision_unless_double_is_enabled() -> None:
    case = CASES["snail, colour, full"]
    network = torch_network(case, 0).float()
    with jax.enable_x64(False):
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.eval_shape(case.twin))} == {np.dtype("float32")}
        twin = loaded_twin(case, network)
        images, z = arguments(case, 0)
        ours = jit(twin)(jnp.asarray(images.numpy()), jnp.asarray(z.float().numpy()))
        assert distance(ours, network(images, z.float()).detach()) < 1e-5
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.eval_shape(case.twin))} == {np.dtype("float64")}


def test_initial_weights_are_drawn_as_torchs() -> None:
    """Weight by weight, the largest entry and (where there are enough) the spread."""
    case = CASES["gated, colour, full, wide kernels, shared rows"]
    theirs = {weight: tensor.numpy() for weight, tensor in case.torch().state_dict().items()}
    graph = nnx.graphdef(nnx.eval_shape(case.twin))
    ours = torch_weights(nnx.merge(graph, jit(lambda: nnx.state(case.twin()))()))
    for weight, array in theirs.items():
        if "position" in weight or "query" in weight or array.size >= 200:
            assert ours[weight].std() == pytest.approx(array.std(), rel=0.2), weight
        fan_in = theirs[weight.replace("bias", "weight")][0].size
        if weight.endswith(("weight", "bias")):
            assert np.abs(ours[weight]).max() <= fan_in**-0.5, weight


def test_dropout_is_for_training_alone() -> None:
    spec = ImageSpec(1, 4, 4, 17)
    settings: dict[str, Any] = {"mixtures": 1, "channels": 4, "blocks": 1, "layers": 1, "heads": 1}
    case = snail(spec, [0], dropout=0.5, **settings)
    torch_one = torch_network(case, 0)
    twin = loaded_twin(case, torch_one)
    inputs = as_arrays(arguments(case, 0))

    evaluated = jit(twin)(*inputs)
    train = jit(lambda key: twin(*inputs, nnx.Rngs(dropout=key)))
    first, again, other = (train(jax.random.key(seed)) for seed in (1, 1, 2))

    assert distance(evaluated, torch_one(*arguments(case, 0)).detach()) < TOLERANCE
    assert distance(first, evaluated) > 1e-3
    assert distance(other, first) > 1e-3
    np.testing.assert_array_equal(first, again)


def test_dropped_features_are_zero_and_the_others_scaled_up() -> None:
    def of_kept(key: Any) -> Any:
        block = causal.PixelBlock(50, 1, dropout=0.2, rngs=nnx.Rngs(0))
        block.out.kernel.set_value(jnp.eye(50)[None, None])
        block.out.bias.set_value(jnp.zeros(50))
        h, link = jnp.zeros((4, 5, 5, 50)), jnp.ones((4, 5, 5, 100))
        return block(h, link, nnx.Rngs(dropout=key)) / block(h, link)

    ratio = jit(of_kept)(jax.random.key(0))

    assert set(np.unique(np.asarray(ratio).round(9))) == {0.0, 1.25}
    assert float((ratio == 0).mean()) == pytest.approx(0.2, abs=0.02)
