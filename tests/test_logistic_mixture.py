"""DiscretizedLogisticMixture against sixty-digit arithmetic, exhaustive sums, a pixel-by-pixel sampler and χ² tests."""

import math
from decimal import MAX_EMAX, MIN_EMIN, Decimal, localcontext
from itertools import product

import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_delta.distributions.logistic_mixture import DiscretizedLogisticMixture
from pyro_delta.errors import UserError

FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def random_raw(seed, batch, channels, mixtures, spread=1.0, dtype=torch.float64):
    """Raw network output (batch, P) of the given spread."""
    generator = torch.Generator().manual_seed(seed)
    count = DiscretizedLogisticMixture.parameter_count(channels, mixtures)
    return spread * torch.randn(batch, count, generator=generator, dtype=dtype)


def random_mixture(seed, batch, channels, mixtures, levels, spread=1.0):
    raw = random_raw(seed, batch, channels, mixtures, spread)
    return DiscretizedLogisticMixture.from_parameters(raw, channels=channels, levels=levels)


def extreme_parameters(channels, dtype=torch.float64):
    """Every combination of a far or near mean and a huge, tiny or ordinary scale, in two components; the leaves."""
    corners = list(product((-1e4, -1.0, 0.0, 0.3, 1e4), (-100.0, -7.0, 0.0, 7.0, 100.0)))
    n = len(corners)
    means = torch.zeros(n, channels, 2, dtype=dtype)
    log_scales = torch.zeros(n, channels, 2, dtype=dtype)
    for i in range(n):
        for c, k in product(range(channels), range(2)):
            means[i, c, k], log_scales[i, c, k] = corners[(i + 7 * c + 11 * k) % n]
    logits = torch.tensor([0.0, 100.0], dtype=dtype) * torch.linspace(-1, 1, n, dtype=dtype).unsqueeze(-1)
    coefficients = None
    if channels > 1:
        pairs = [[1.0, -1.0], [0.5, 1.0], [-1.0, 0.0], [1.0, 1.0], [0.3, -0.5], [-1.0, 1.0]][
            : channels * (channels - 1) // 2
        ]
        coefficients = torch.tensor(pairs, dtype=dtype).repeat(n, 1, 1)
    leaves = [logits, means, log_scales, coefficients]
    return [None if leaf is None else leaf.requires_grad_() for leaf in leaves]


def all_pixels(levels, channels):
    return torch.tensor(list(product(range(levels), repeat=channels)))


def probabilities(mixture):
    """Exhaustive table (levels ** C, batch) of probabilities."""
    pixels = all_pixels(mixture.levels, mixture.channels)
    shape = (len(pixels), *(1 for _ in mixture.batch_shape), mixture.channels)
    return mixture.log_prob(pixels.reshape(shape)).exp()


def decimal_sigmoid(x):
    return 1 / (1 + (-x).exp())


def decimal_log_prob(pixel, logits, means, log_scales, coefficients, levels):
    """Logarithm of P(pixel) from the definition, in sixty-digit decimal arithmetic, for nested lists of numbers."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, MIN_EMIN, MAX_EMAX
        logits = [Decimal(logit) for logit in logits]
        y = [2 * Decimal(x) / (levels - 1) - 1 for x in pixel]
        total = Decimal(0)
        for k, logit in enumerate(logits):
            probability = logit.exp() / sum(other.exp() for other in logits)
            for c, x in enumerate(pixel):
                mean = Decimal(means[c][k])
                if c == 1:
                    mean += Decimal(coefficients[0][k]) * y[0]
                if c == 2:
                    mean += Decimal(coefficients[1][k]) * y[0] + Decimal(coefficients[2][k]) * y[1]
                if c == 3:
                    mean += sum(Decimal(coefficients[3 + before][k]) * y[before] for before in range(3))
                scale = Decimal(min(max(log_scales[c][k], -7.0), 7.0)).exp()
                below = (y[c] - Decimal(1) / (levels - 1) - mean) / scale
                above = (y[c] + Decimal(1) / (levels - 1) - mean) / scale
                if x == 0:
                    probability *= decimal_sigmoid(above)
                elif x == levels - 1:
                    probability *= decimal_sigmoid(-below)
                elif below > 0:  # the same difference, taken where the digits are
                    probability *= decimal_sigmoid(-below) - decimal_sigmoid(-above)
                else:
                    probability *= decimal_sigmoid(above) - decimal_sigmoid(below)
            total += probability
        return float(total.ln())


def decimal_log_probs(mixture, values):
    coefficients = [None] * len(values) if mixture.coefficients is None else mixture.coefficients.tolist()
    rows = zip(
        values.tolist(),
        mixture.logits.tolist(),
        mixture.means.tolist(),
        mixture.log_scales.tolist(),
        coefficients,
        strict=True,
    )
    return torch.tensor([decimal_log_prob(*row, mixture.levels) for row in rows], dtype=torch.float64)


def naive_sample(mixture, index, uniforms):
    """One pixel drawn with plain numbers, channel by channel, by walking up the cumulative weights."""
    weights = mixture.logits[index].softmax(-1).tolist()
    k, cumulative = 0, weights[0]
    while uniforms[0] > cumulative and k < len(weights) - 1:
        k += 1
        cumulative += weights[k]
    levels, pixel, y = mixture.levels, [], []
    for c in range(mixture.channels):
        mean = mixture.means[index][c][k].item()
        if c == 1:
            mean += mixture.coefficients[index][0][k].item() * y[0]
        if c == 2:
            mean += mixture.coefficients[index][1][k].item() * y[0] + mixture.coefficients[index][2][k].item() * y[1]
        if c == 3:
            mean += sum(mixture.coefficients[index][3 + before][k].item() * y[before] for before in range(3))
        u = uniforms[1 + c]
        position = mean + math.exp(mixture.log_scales[index][c][k].item()) * math.log(u / (1 - u))
        pixel.append(min(max(math.floor((position + 1) / 2 * (levels - 1) + 0.5), 0), levels - 1))
        y.append(2 * pixel[-1] / (levels - 1) - 1)
    return pixel


# ---------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize(
    ("channels", "levels"), [(1, 2), (1, 3), (1, 17), (1, 256), (2, 5), (3, 2), (3, 3), (3, 5), (4, 3)]
)
def test_probabilities_sum_to_one(channels, levels, spread):
    total = probabilities(random_mixture(0, 50, channels, 4, levels, spread)).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 17), (1, 256), (2, 5), (3, 2), (3, 3), (3, 5), (4, 2)])
def test_probabilities_sum_to_one_at_extremes(channels, levels):
    mixture = DiscretizedLogisticMixture(*extreme_parameters(channels), levels=levels)
    total = probabilities(mixture).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-10)


@pytest.mark.parametrize("levels", [2, 3, 256, 1000])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_log_prob_is_that_of_sixty_digits(channels, levels):
    mixture = random_mixture(1, 40, channels, 3, levels, spread=2.0)
    generator = torch.Generator().manual_seed(2)
    values = torch.randint(0, levels, (40, channels), generator=generator)
    values[:8] = torch.tensor([0, levels - 1]).repeat_interleave(4).unsqueeze(-1)  # the edges, surely
    values[8:12, ::2] = levels - 1
    torch.testing.assert_close(mixture.log_prob(values), decimal_log_probs(mixture, values), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_log_prob_at_extremes_is_that_of_sixty_digits(channels, level):
    mixture = DiscretizedLogisticMixture(*extreme_parameters(channels), levels=256)
    values = torch.full((*mixture.batch_shape, channels), level)
    torch.testing.assert_close(
        mixture.log_prob(values).detach(), decimal_log_probs(mixture, values), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_float32_is_close_to_float64(spread):
    raw = random_raw(3, 500, 3, 10, spread, dtype=torch.float32)
    values = torch.randint(0, 256, (500, 3), generator=torch.Generator().manual_seed(4))
    single = DiscretizedLogisticMixture.from_parameters(raw, channels=3, levels=256).log_prob(values)
    double = DiscretizedLogisticMixture.from_parameters(raw.double(), channels=3, levels=256).log_prob(values)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_parameters_are_evaluated_in_float32(half):
    raw = random_raw(3, 20, 3, 5).to(half)
    values = torch.randint(0, 256, (20, 3), generator=torch.Generator().manual_seed(4))
    found = DiscretizedLogisticMixture.from_parameters(raw, channels=3, levels=256).log_prob(values)
    expected = DiscretizedLogisticMixture.from_parameters(raw.float(), channels=3, levels=256).log_prob(values)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_values_of_any_dtype(dtype):
    mixture = random_mixture(5, 6, 3, 2, 256)
    values = torch.tensor([[0, 128, 255], [255, 0, 1], [3, 254, 127]]).repeat(2, 1)
    torch.testing.assert_close(mixture.log_prob(values.to(dtype)), mixture.log_prob(values), rtol=0, atol=0)


def test_values_with_sample_dimensions_and_broadcast_parameters():
    logits, means, log_scales, coefficients = (leaf.detach() for leaf in extreme_parameters(3))
    mixture = DiscretizedLogisticMixture(logits[0], means, log_scales[:1], coefficients[:1, :, :], levels=4)
    assert mixture.batch_shape == means.shape[:1]
    values = torch.randint(0, 4, (5, 2, len(means), 3), generator=torch.Generator().manual_seed(6))
    found = mixture.log_prob(values)
    assert found.shape == (5, 2, len(means))
    one_by_one = [
        DiscretizedLogisticMixture(logits[0], means[i], log_scales[0], coefficients[0], levels=4).log_prob(
            values[4, 1, i]
        )
        for i in range(len(means))
    ]
    torch.testing.assert_close(found[4, 1], torch.stack(one_by_one))


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("levels", [2, 256, 65536])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gradients_are_finite_at_extremes(channels, levels, dtype):
    leaves = extreme_parameters(channels, dtype)
    for level in (0, 1, levels // 2, levels - 1):
        mixture = DiscretizedLogisticMixture(*leaves, levels=levels)
        log_p = mixture.log_prob(torch.full((len(leaves[0]), channels), level))
        assert log_p.isfinite().all()
        assert (log_p <= 1e-6).all()
        for gradient in torch.autograd.grad(log_p.sum(), [leaf for leaf in leaves if leaf is not None]):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("levels", [2, 5, 256])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gradients_are_those_of_finite_differences(channels, levels):
    raw = random_raw(7, 6, channels, 3).requires_grad_()
    values = torch.randint(0, levels, (6, channels), generator=torch.Generator().manual_seed(8))
    values[0], values[1] = 0, levels - 1

    def log_prob(parameters):
        mixture = DiscretizedLogisticMixture.from_parameters(parameters, channels=channels, levels=levels)
        return mixture.log_prob(values)

    assert torch.autograd.gradcheck(log_prob, (raw,), eps=1e-6, atol=1e-5)


def test_log_scales_are_clamped_with_no_gradient_outside():
    log_scales = torch.tensor([[-30.0, -7.1, 0.5, 7.1, 30.0]], requires_grad=True)
    mixture = DiscretizedLogisticMixture(torch.zeros(5), torch.zeros(1, 5), log_scales, levels=8)
    torch.testing.assert_close(mixture.log_scales, torch.tensor([[-7.0, -7.0, 0.5, 7.0, 7.0]]))
    mixture.log_prob(torch.tensor([4])).backward()
    assert (log_scales.grad != 0).tolist() == [[False, False, True, False, False]]


# --------------------------------------------------------------------------------------------------------- sampling


def strongly_coupled_mixture(levels):
    """Three colour mixtures in which what enters the next channel's mean matters."""
    coefficients = torch.tensor(
        [
            [[0.9, -0.9], [-0.8, 0.5], [0.9, 0.9]],
            [[0.7, 0.9], [0.9, 0.0], [-0.9, -0.5]],
            [[-0.9, 0.3], [0.2, 0.9], [0.6, -0.9]],
        ]
    )
    generator = torch.Generator().manual_seed(9)
    means = 0.6 * torch.randn(3, 3, 2, generator=generator)
    log_scales = torch.tensor([[-2.0, -1.0], [-1.5, -2.0], [-2.5, -0.5]]).expand(3, 3, 2)
    logits = torch.tensor([[0.0, 0.0], [1.0, -1.0], [-2.0, 1.0]])
    return DiscretizedLogisticMixture(logits, means, log_scales, coefficients, levels=levels)


def goodness_of_fit(samples, expected):
    """p-value of Pearson's χ² for integer codes against expected counts, cells below 5 pooled."""
    observed = torch.bincount(samples, minlength=len(expected)).double()
    rare = expected < 5
    observed = torch.cat([observed[~rare], observed[rare].sum().reshape(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().reshape(1)])
    filled = expected > 0
    assert observed[~filled].sum() == 0
    return stats.chisquare(observed[filled].numpy(), expected[filled].numpy()).pvalue


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_colour_samples_fit_the_joint_probabilities(levels):
    torch.manual_seed(10)
    mixture = strongly_coupled_mixture(levels)
    draws = 100_000
    samples = mixture.sample((draws,))
    table = probabilities(mixture).double()
    codes = samples[..., 0] * levels**2 + samples[..., 1] * levels + samples[..., 2]
    for i in range(3):
        expected = table[:, i] / table[:, i].sum() * draws
        assert goodness_of_fit(codes[:, i], expected) > 1e-3


def test_grey_samples_fit_the_probabilities():
    torch.manual_seed(11)
    mixture = random_mixture(12, 2, 1, 4, 64)
    samples = mixture.sample((100_000,)).squeeze(-1)
    table = probabilities(mixture)
    for i in range(2):
        assert goodness_of_fit(samples[:, i], table[:, i] / table[:, i].sum() * 100_000) > 1e-3


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 256), (2, 17), (3, 2), (3, 5), (3, 256), (4, 256)])
def test_sample_with_is_the_naive_loop(channels, levels, spread):
    mixture = random_mixture(13, 60, channels, 5, levels, spread)
    generator = torch.Generator().manual_seed(14)
    uniforms = torch.rand(7, 60, 1 + channels, generator=generator, dtype=torch.float64)
    found = mixture.sample_with(uniforms)
    expected = [[naive_sample(mixture, i, uniforms[s, i].tolist()) for i in range(60)] for s in range(7)]
    assert found.tolist() == expected


def test_samples_have_shape_dtype_and_support():
    mixture = random_mixture(15, 4, 3, 3, 256, spread=5.0)
    samples = mixture.sample((2, 5))
    assert samples.shape == (2, 5, 4, 3)
    assert samples.dtype == torch.int64
    assert mixture.support.check(samples).all()
    assert mixture.log_prob(samples).isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_uniforms_at_the_ends_give_the_ends(uniform, dtype):
    leaves = [leaf.detach() for leaf in extreme_parameters(3, dtype)]
    pixels = DiscretizedLogisticMixture(*leaves, levels=256).sample_with(
        torch.full((len(leaves[0]), 4), uniform, dtype=dtype)
    )
    assert (pixels == round(255 * uniform)).all()


def test_a_component_of_no_weight_is_never_drawn():
    means = torch.tensor([[-1.0, 1.0, -1.0]])
    logits = torch.tensor([-math.inf, 0.0, -math.inf])
    mixture = DiscretizedLogisticMixture(logits, means, torch.full((1, 3), -7.0), levels=2)
    uniforms = torch.rand(1000, 2, generator=torch.Generator().manual_seed(16))
    uniforms[0, 0] = 0
    assert mixture.sample_with(uniforms).min() == 1
    assert mixture.log_prob(torch.tensor([1])) == 0


# ------------------------------------------------------------------------------------------------- shapes and layout


def test_from_parameters_layout():
    """Components 0 and 1, grey then colour, written out number by number."""
    grey = DiscretizedLogisticMixture.from_parameters(torch.arange(6.0), channels=1, levels=4)
    assert grey.logits.tolist() == [0, 1]
    assert grey.means.tolist() == [[2, 3]]
    assert grey.log_scales.tolist() == [[4, 5]]
    assert grey.coefficients is None
    raw = torch.arange(20.0) / 10
    colour = DiscretizedLogisticMixture.from_parameters(raw, channels=3, levels=4)
    torch.testing.assert_close(colour.logits, raw[:2])
    torch.testing.assert_close(colour.means, torch.tensor([[0.2, 0.3], [0.4, 0.5], [0.6, 0.7]]))
    torch.testing.assert_close(colour.log_scales, torch.tensor([[0.8, 0.9], [1.0, 1.1], [1.2, 1.3]]))
    torch.testing.assert_close(colour.coefficients, torch.tensor([[1.4, 1.5], [1.6, 1.7], [1.8, 1.9]]).tanh())


@pytest.mark.parametrize(
    ("channels", "mixtures", "count"), [(1, 1, 3), (1, 10, 30), (2, 3, 18), (3, 1, 10), (3, 10, 100), (4, 2, 30)]
)
def test_parameter_count(channels, mixtures, count):
    assert DiscretizedLogisticMixture.parameter_count(channels, mixtures) == count
    mixture = DiscretizedLogisticMixture.from_parameters(torch.zeros(2, count), channels=channels, levels=256)
    assert (mixture.channels, mixture.mixtures) == (channels, mixtures)
    assert (mixture.batch_shape, mixture.event_shape) == ((2,), (channels,))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_expand_keeps_the_class_and_the_numbers(channels):
    mixture = random_mixture(17, 4, channels, 3, 8)
    wide = mixture.expand((5, 4))
    assert type(wide) is DiscretizedLogisticMixture
    assert (wide.batch_shape, wide.event_shape, wide.levels) == ((5, 4), (channels,), 8)
    assert wide.means.data_ptr() == mixture.means.data_ptr()
    values = mixture.sample((5,))
    torch.testing.assert_close(wide.log_prob(values), mixture.log_prob(values), rtol=0, atol=0)
    assert wide.sample((2,)).shape == (2, 5, 4, channels)


def test_it_is_a_pyro_site():
    """A plate over images expands it and keeps the class; the site's log-density is the sum over pixels."""
    mixture = random_mixture(18, 6, 3, 2, 256)
    image_mixture = mixture.expand((6,)).to_event(1)
    assert (image_mixture.batch_shape, image_mixture.event_shape) == ((), (6, 3))
    values = torch.randint(0, 256, (4, 6, 3), generator=torch.Generator().manual_seed(19))

    def model(obs=None):
        with pyro.plate("images", 4):
            return pyro.sample("x", image_mixture, obs=obs)

    trace = poutine.trace(model).get_trace(values)
    torch.testing.assert_close(trace.log_prob_sum(), mixture.log_prob(values).sum())
    assert poutine.trace(model).get_trace().nodes["x"]["value"].shape == (4, 6, 3)
    assert not mixture.has_rsample
    assert mixture.support.event_dim == 1
    with pyro.plate("pixels", 6), poutine.trace() as tracer:
        pyro.sample("pixel", random_mixture(18, 1, 3, 2, 256))
    assert type(tracer.trace.nodes["pixel"]["fn"]) is DiscretizedLogisticMixture


# ------------------------------------------------------------------------------------------------------------ errors


def build(**changes):
    parameters = {
        "logits": torch.zeros(7, 2),
        "means": torch.zeros(7, 3, 2),
        "log_scales": torch.zeros(7, 3, 2),
        "coefficients": torch.zeros(7, 3, 2),
        "levels": 256,
    }
    return DiscretizedLogisticMixture(**{**parameters, **changes})


GREY = {"means": torch.zeros(7, 1, 2), "log_scales": torch.zeros(7, 1, 2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 1}, r"levels is 1: give a whole number of at least 2"),
        ({"levels": -3}, r"levels is -3"),
        ({"levels": 256.0}, r"levels is 256\.0"),
        ({"levels": True}, r"levels is True"),
        ({"means": torch.zeros(7, 5, 2)}, r"5 channels are not supported: give 1 .*, 3 .*, or one more of alpha"),
        ({"means": torch.zeros(7)}, r"means of shape \(7,\) do not fit"),
        ({"coefficients": None}, r"coefficients are missing for 3 channels: give .* \(\.\.\., 3, 2\)"),
        (GREY, r"coefficients were given for 1 channel.*give None"),
        ({"coefficients": torch.zeros(7, 2, 2)}, r"coefficients of shape \(7, 2, 2\) do not fit .*\(3, 2\)"),
        ({"logits": torch.zeros(7, 3)}, r"logits of shape \(7, 3\) do not fit .*\(2,\)"),
        ({"logits": torch.zeros(())}, r"logits of shape \(\) do not fit"),
        ({"log_scales": torch.zeros(7, 3, 4)}, r"log_scales of shape \(7, 3, 4\) do not fit .*\(3, 2\)"),
        ({"logits": torch.zeros(6, 2)}, r"batch shapes .*\(6,\).* do not broadcast"),
    ],
)
def test_wrong_constructor_arguments(changes, message):
    build()
    with pytest.raises(UserError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("shape", "channels", "levels", "message"),
    [
        ((4, 31), 1, 256, r"31 parameters per pixel fit no mixture over 1 channel.* multiple of 3"),
        ((4, 99), 3, 256, r"99 parameters per pixel fit no mixture over 3 channel.* multiple of 10"),
        ((4, 0), 3, 256, r"0 parameters per pixel"),
        ((), 3, 256, r"0 parameters per pixel"),
        ((4, 100), 5, 256, r"5 channels are not supported"),
        ((4, 100), 3, 0, r"levels is 0"),
    ],
)
def test_wrong_network_output(shape, channels, levels, message):
    with pytest.raises(UserError, match=message):
        DiscretizedLogisticMixture.from_parameters(torch.zeros(shape), channels=channels, levels=levels)


@pytest.mark.parametrize(("channels", "mixtures"), [(5, 5), (0, 5), (3, 0)])
def test_wrong_parameter_count_arguments(channels, mixtures):
    with pytest.raises(UserError, match=r"channels are not supported|at least one component"):
        DiscretizedLogisticMixture.parameter_count(channels, mixtures)


@pytest.mark.parametrize("shape", [(7, 3), (7, 5), (6, 4), (), (2, 6, 4)])
def test_wrong_uniforms(shape):
    with pytest.raises(UserError, match=r"uniforms of shape .* sample_shape \+ \(7,\) \+ \(4,\)"):
        build().sample_with(torch.full(shape, 0.5))


@pytest.mark.parametrize("value", [[0, 0, 256], [-1, 0, 0], [0.0, 0.5, 0.0]])
def test_values_outside_the_support(value):
    with pytest.raises(ValueError, match="support"):
        build(validate_args=True).log_prob(torch.tensor(value).expand(7, 3))


@pytest.mark.parametrize("name", ["logits", "means", "log_scales", "coefficients"])
def test_parameters_that_are_not_a_number(name):
    parameter = getattr(build(), name).clone()
    parameter[3] = math.nan
    with pytest.raises(ValueError, match=name):
        build(**{name: parameter, "validate_args": True})
