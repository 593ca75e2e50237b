"""The twin's distributions by NumPyro's habits, and the same numbers as Pyro's; float64 unless a name says other."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats

pytest.importorskip("numpyro")
pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax.test_util import check_grads
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import TraceMeanField_ELBO

import pyro_delta.distributions as pyro_distributions
import pyro_delta.rate as pyro_rate
from pyro_delta import twin
from pyro_delta.data.spec import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.models.auxiliary import LSTMPrior as PyroLSTMPrior
from pyro_delta.programs import SHIPPED, find
from pyro_delta.twin.auxiliary import LSTMPrior, SequentialGaussian, Weights
from pyro_delta.twin.distributions import DiscretizedLogisticMixture, GaussianAR1, GaussianSequence
from pyro_delta.twin.priors import PRIORS, lattice_rate, learned_alpha
from pyro_delta.twin.rate import (
    alpha_of_rate,
    alpha_of_spelling,
    ar1_rate,
    committed_rate,
    factor_rate,
    precision_rate,
)

SEEDS = range(10)
SPEC = ImageSpec(1, 8, 8, 17)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    names = ("jax_enable_x64", "jax_disable_most_optimizations")  # compiling takes longer here than running
    before = {name: jax.config.values[name] for name in names}
    for name in names:
        jax.config.update(name, True)
    torch.set_default_dtype(torch.float64)
    yield
    for name in names:
        jax.config.update(name, before[name])


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference by the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300))


# Under jit, because to compile a function takes less than to compile its operations one by one.
draw = jax.jit(lambda d, key, shape=(): d.sample(key, shape), static_argnums=2)
log_density = jax.jit(lambda d, z: d.log_prob(z))
transformed = jax.jit(lambda d, noise: d.transform(noise))
entropy_of = jax.jit(lambda d: d.entropy())
divergence = jax.jit(lambda q, p: kl_divergence(q, p))


# --- The table ---


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def factors(seed: int, *batch: int, n: int = 4) -> np.ndarray:
    lower = np.tril(0.4 * normal(seed, *batch, n, n), -1)
    return lower + np.eye(n) * np.exp(0.3 * normal(seed + 1, *batch, n, 1))


def ar1(alpha: Any) -> GaussianAR1:
    return GaussianAR1(alpha, 4)


def sequence(loc: Any, scale_tril: Any) -> GaussianSequence:
    return GaussianSequence(loc, jnp.tril(scale_tril))


def lstm(*weights: Any) -> SequentialGaussian:
    return SequentialGaussian(Weights(*weights), 3)


def lstm_weights(d: int, h: int, k: int) -> tuple[np.ndarray, ...]:
    p = k - 1 + 2 * k * d
    shapes = [(4 * h, d), (4 * h, h), (4 * h,), (p, h), (p,)]
    return tuple(0.5 * normal(20 + number, *shape) for number, shape in enumerate(shapes))


class Row(NamedTuple):
    """A distribution as a function of its parameters; every test below runs on it."""

    make: Callable[..., Any]
    parameters: tuple[np.ndarray, ...]
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    levels: int | None = None

    def __call__(self) -> Any:
        return self.make(*self.parameters)


ALPHA = np.array([[0.5, -0.8, 0.0], [0.9, 0.2, -0.3]])
GREY = (normal(1, 1, 2, 2), 0.5 * normal(2, 1, 1, 2, 2), normal(3, 1, 1, 2, 2) - 1)
COLOUR = (normal(4, 1, 1, 2), *(0.5 * normal(5 + i, 3, 1, 1, 2) - (i == 1) for i in range(3)))
ROWS = {
    "ar1": Row(ar1, (ALPHA[0],), (), (4, 3)),
    "ar1, batch": Row(ar1, (ALPHA,), (2,), (4, 3)),
    "sequence": Row(sequence, (normal(9, 4, 3), factors(10, 3)), (), (4, 3)),
    "sequence, one factor for all dimensions": Row(sequence, (normal(9, 4, 3), factors(10, 2, 1)), (2,), (4, 3)),
    "grey": Row(partial(DiscretizedLogisticMixture, levels=4), GREY, (), (1, 1, 2), 4),
    "colour": Row(partial(DiscretizedLogisticMixture, levels=3), COLOUR, (), (3, 1, 1), 3),
    "colour, batch": Row(
        partial(DiscretizedLogisticMixture, levels=3), (normal(8, 2, 1, 1, 2), *COLOUR[1:]), (2,), (3, 1, 1), 3
    ),
    "lstm": Row(lstm, lstm_weights(2, 3, 1), (), (3, 2)),
    "lstm, mixture": Row(lstm, lstm_weights(2, 3, 2), (), (3, 2)),
}
GAUSSIAN = [name for name in ROWS if name.startswith(("ar1", "sequence"))]
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
every_gaussian = pytest.mark.parametrize("row", [ROWS[name] for name in GAUSSIAN], ids=GAUSSIAN)


@every_row
def test_shapes_support_and_kind_with_jit_and_without(row: Row) -> None:
    d = row()
    z = d.sample(jax.random.key(0), (5,))
    density = d.log_prob(z)
    assert (d.batch_shape, d.event_shape) == (row.batch_shape, row.event_shape)
    assert z.shape == d.shape((5,)) == (5, *row.batch_shape, *row.event_shape)
    assert density.shape == (5, *row.batch_shape)
    assert d.support.event_dim == len(row.event_shape)
    assert np.all(d.support(z))
    assert d.is_discrete == (row.levels is not None) == jnp.issubdtype(z.dtype, jnp.integer)
    assert d.has_rsample == isinstance(d, GaussianAR1 | GaussianSequence)
    back = jax.jit(lambda d: d)(d)
    assert type(back) is type(d)
    assert (back.batch_shape, back.event_shape) == (d.batch_shape, d.event_shape)
    np.testing.assert_allclose(log_density(d, z), density, rtol=1e-12)
    np.testing.assert_allclose(draw(d, jax.random.key(0), (5,)), z, rtol=1e-12, atol=1e-12)


@every_row
def test_float32_stays_float32_and_close(row: Row) -> None:
    d = row()
    z = np.asarray(draw(d, jax.random.key(0), (5,)))
    exact = np.asarray(log_density(d, z))
    jax.config.update("jax_enable_x64", False)
    single = row()
    density, drawn = log_density(single, z), draw(single, jax.random.key(0), (5,))
    assert density.dtype == jnp.float32
    assert drawn.dtype == (jnp.float32 if row.levels is None else jnp.int32)
    assert relative(density, exact) < 1e-5


@every_row
def test_expand(row: Row) -> None:
    d = row()
    wide = d.expand((5, *row.batch_shape))
    z = draw(d, jax.random.key(0), (5,))
    assert type(wide) is type(d)
    assert wide.batch_shape == (5, *row.batch_shape)
    assert draw(wide, jax.random.key(1), (2,)).shape == (2, 5, *row.batch_shape, *row.event_shape)
    np.testing.assert_allclose(log_density(wide, z), log_density(d, z), rtol=1e-13)


@pytest.mark.parametrize("flag", [True, False])
def test_expand_keeps_a_subclass_and_the_validation_flag(flag: bool) -> None:
    for cls, arguments in [
        (GaussianAR1, (ALPHA[0], 4)),
        (GaussianSequence, (LOC[0, 0], factors(10, 3))),
        (partial(DiscretizedLogisticMixture, levels=4), GREY),
        (SequentialGaussian, (Weights(*lstm_weights(2, 3, 1)), 3)),
    ]:
        assert cls(*arguments, validate_args=flag).expand((5,))._validate_args is flag
    renamed = type("Renamed", (GaussianAR1,), {})
    assert type(renamed(ALPHA[0], 4).expand((5,))) is renamed


@every_row
def test_vmap_over_values_parameters_and_distributions(row: Row) -> None:
    d = row()
    z = draw(d, jax.random.key(0), (2,))
    np.testing.assert_allclose(jax.vmap(log_density, (None, 0))(d, z), log_density(d, z), rtol=1e-12)
    stacked = [np.stack([part, 0.9 * part]) for part in row.parameters]
    singles = [row.make(*(part[i] for part in stacked)) for i in range(2)]
    keys = jax.random.split(jax.random.key(1), 2)
    many = jax.jit(jax.vmap(row.make))(*stacked)
    for function, arguments in [(log_density, z), (draw, keys)]:
        expected = [function(single, arguments[i]) for i, single in enumerate(singles)]
        np.testing.assert_allclose(jax.vmap(function)(many, arguments), expected, rtol=1e-12, atol=1e-12)
    if d.arg_constraints:
        assert promote_batch_shape(many).batch_shape == (2, *row.batch_shape)


@every_row
def test_gradients_are_those_of_finite_differences(row: Row) -> None:
    z = draw(row(), jax.random.key(0), (5,))[0]
    noise = normal(3, *z.shape)

    def values(z_or_noise: Any, *parameters: Any) -> list[Any]:
        d = row.make(*parameters)
        if row.levels is not None:
            return [d.log_prob(z)]
        values = [d.log_prob(z_or_noise)]
        return [*values, d.transform(z_or_noise), d.entropy()] if d.has_rsample else values

    parameters = tuple(jnp.asarray(part) for part in row.parameters)
    check_grads(jax.jit(values), (noise, *parameters), order=1, atol=1e-6, rtol=1e-6)


@jax.jit
def affine(d: Any) -> tuple[jax.Array, jax.Array]:
    zero = jnp.zeros(d.event_shape)
    return jnp.broadcast_to(d.transform(zero), d.shape()), jax.jacfwd(d.transform)(zero)


def dense(d: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean (..., N) and covariance (..., N, N), N = n·d, of what `transform` makes of noise."""
    events = math.prod(d.event_shape)
    mean, jacobian = (np.asarray(part) for part in affine(d))
    jacobian = jacobian.reshape(*d.batch_shape, events, events)
    return mean.reshape(*d.batch_shape, events), jacobian @ np.swapaxes(jacobian, -1, -2)


def dense_kl(q: tuple[np.ndarray, np.ndarray], p: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    (mean_q, cov_q), (mean_p, cov_p) = q, p
    precision, change = np.linalg.inv(cov_p), mean_p - mean_q
    trace = np.trace(precision @ cov_q, axis1=-2, axis2=-1)
    square = np.einsum("...i,...ij,...j->...", change, precision, change)
    logs = np.linalg.slogdet(cov_p)[1] - np.linalg.slogdet(cov_q)[1]
    return 0.5 * (trace + square - mean_p.shape[-1] + logs)


@every_gaussian
def test_density_moments_and_entropy_are_dense(row: Row) -> None:
    d = row()
    mean, covariance = dense(d)
    z = draw(d, jax.random.key(0), (5,))
    flat = np.asarray(z).reshape(*z.shape[:-2], -1) - mean
    square = np.einsum("...i,...ij,...j->...", flat, np.linalg.inv(covariance), flat)
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    np.testing.assert_allclose(log_density(d, z), -0.5 * (square + log_det), rtol=1e-11)
    np.testing.assert_allclose(entropy_of(d), 0.5 * (log_det + mean.shape[-1]), rtol=1e-11)
    np.testing.assert_allclose(d.mean, mean.reshape(d.shape()), atol=1e-13)
    variances = np.diagonal(covariance, axis1=-2, axis2=-1).reshape(d.shape())
    np.testing.assert_allclose(d.variance, variances, rtol=1e-12)
    assert d.mean.shape == d.variance.shape == d.shape()


def test_ar1_is_its_recursion_and_its_correlations() -> None:
    prior, eps = ROWS["ar1, batch"](), normal(0, 5, 2, 4, 3)
    z = [eps[..., 0, :]]
    for t in range(1, 4):
        z.append(ALPHA * z[-1] + np.sqrt(1 - ALPHA**2) * eps[..., t, :])
    np.testing.assert_allclose(transformed(prior, eps), np.stack(z, axis=-2), rtol=1e-12)
    covariance = dense(prior)[1].reshape(2, 4, 3, 4, 3)
    lag = np.abs(np.arange(4)[:, None] - np.arange(4))
    for k in range(3):
        np.testing.assert_allclose(covariance[:, :, k, :, k], ALPHA[:, k, None, None] ** lag, atol=1e-13)


@every_gaussian
def test_gaussian_samples_fit(row: Row) -> None:
    """Whitened by the dense covariance, they are independent standard normal numbers."""
    d = row()
    mean, covariance = dense(d)
    z = np.asarray(draw(d, jax.random.key(0), (20_000,)))
    change = z.reshape(*z.shape[:-2], -1) - mean
    white = np.einsum("...ij,...j->...i", np.linalg.inv(np.linalg.cholesky(covariance)), change)
    for column in np.moveaxis(white.reshape(len(z), -1, 12), 1, 0):
        assert stats.kstest(column.ravel(), stats.norm.cdf).pvalue > 1e-4
        assert np.abs(column.T @ column / len(z) - np.eye(12)).max() < 5 * math.sqrt(2 / len(z))


@pytest.mark.parametrize("name", ["lstm", "lstm, mixture"])
def test_samples_of_the_auxiliary_prior_fit(name: str) -> None:
    """For any density f, the mean of f/p over samples of p is 1; f is a narrow normal in several places."""
    d = ROWS[name]()
    z = np.asarray(draw(d, jax.random.key(0), (20_000,)))
    log_p = np.asarray(log_density(d, z))
    for centre in z[:4]:
        log_f = stats.norm.logpdf(z, 0.5 * centre, 0.35).sum(axis=(-2, -1))
        ratio = np.exp(log_f - log_p)
        error = ratio.std() / math.sqrt(len(ratio))
        assert abs(ratio.mean() - 1) < 5 * error < 0.5


def images(row: Row) -> np.ndarray:
    """Every image of the row: (L^N, 1…, C, H, W)."""
    every = product(range(row.levels), repeat=math.prod(row.event_shape))
    return np.array(list(every)).reshape(-1, *(1 for _ in row.batch_shape), *row.event_shape)


@pytest.mark.parametrize("name", ["grey", "colour", "colour, batch"])
def test_image_samples_fit_the_probabilities(name: str) -> None:
    row, count = ROWS[name], 20_000
    d, every = row(), images(ROWS[name])
    p = np.exp(log_density(d, every)).reshape(len(every), -1)
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-12)
    drawn = np.asarray(draw(d, jax.random.key(0), (count,))).reshape(count, p.shape[1], -1)
    places = row.levels ** np.arange(drawn.shape[-1])[::-1]
    for b in range(p.shape[1]):
        seen = np.bincount(drawn[:, b] @ places, minlength=len(p))
        often = p[:, b] * count > 5
        expected = np.append(p[often, b], p[~often, b].sum()) * count
        observed = np.append(seen[often], seen[~often].sum())
        assert stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-4


# --- KL ---


def mean_field(loc: Any, scale: Any) -> Any:
    return dist.Normal(loc, scale).to_event(2)


LOC, SCALE = normal(30, 5, 2, 4, 3), np.exp(0.5 * normal(31, 5, 2, 4, 3))
POSTERIORS = {
    "normal": lambda: mean_field(LOC[0, 0], SCALE[0, 0]),
    "normal, batch": lambda: mean_field(LOC, SCALE),
    "normal in a plate": lambda: mean_field(LOC[0, 0], SCALE[0, 0]).expand((5, 2)),
    "sequence": lambda: GaussianSequence(normal(32, 4, 3), factors(33, 3)),
    "sequence, batch": lambda: GaussianSequence(LOC, factors(34, 5, 1, 3)),
    "sequence, one factor": lambda: GaussianSequence(LOC, factors(34, 1)),
}


def dense_of(q: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(q, dist.Independent):
        shape = q.batch_shape + q.event_shape
        mean, var = (np.broadcast_to(np.asarray(part), shape) for part in (q.mean, q.variance))
        return mean.reshape(*q.batch_shape, -1), var.reshape(*q.batch_shape, -1, 1) * np.eye(12)
    return dense(q)


@pytest.mark.parametrize("posterior", POSTERIORS)
@every_gaussian
def test_kl_is_dense_and_what_samples_say(posterior: str, row: Row) -> None:
    q, p = POSTERIORS[posterior](), row()
    kl = np.asarray(divergence(q, p))
    assert kl.shape == np.broadcast_shapes(q.batch_shape, p.batch_shape)
    np.testing.assert_allclose(kl, dense_kl(dense_of(q), dense_of(p)), rtol=1e-10)
    z = draw(q.expand((5, 2)), jax.random.key(0), (2000,))
    ratio = np.asarray(log_density(q, z)) - np.asarray(log_density(p, z))
    assert np.all(np.abs(ratio.mean(axis=0) - kl) < 5 * ratio.std(axis=0) / math.sqrt(len(ratio)))


@every_gaussian
def test_mean_field_elbo_uses_the_analytic_kl_inside_plates(row: Row) -> None:
    q = mean_field(LOC, SCALE) if row.batch_shape else mean_field(LOC[:, :1], SCALE[:, :1])

    def plates() -> ExitStack:
        stack = ExitStack()
        stack.enter_context(numpyro.plate("data", 5, dim=-2))
        stack.enter_context(numpyro.plate("batch", q.batch_shape[1], dim=-1))
        return stack

    def model() -> None:
        with plates():
            numpyro.sample("z", row())

    def guide() -> None:
        with plates():
            numpyro.sample("z", q)

    loss = jax.jit(lambda key: TraceMeanField_ELBO().loss(key, {}, model, guide))(jax.random.key(0))
    assert float(loss) == pytest.approx(float(np.sum(divergence(q, row()))), rel=1e-12)


def test_the_kl_of_other_posteriors_is_not_claimed() -> None:
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Laplace(LOC[0, 0]).to_event(2), ROWS["ar1"]())
    with pytest.raises(ValueError, match="shape"):
        kl_divergence(mean_field(LOC[0, 0, :2], 1.0), ROWS["ar1"]())


# --- Images ---


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 17), (3, 2), (3, 5)])
def test_probabilities_sum_to_one_at_extremes(channels: int, levels: int) -> None:
    groups = 1 + 2 * channels + channels * (channels - 1) // 2
    parameters = 20 * normal(0, 4, 3 * groups, 1, 1)
    d = jax.jit(partial(DiscretizedLogisticMixture.from_parameters, channels=channels, levels=levels))(parameters)
    every = np.array(list(product(range(levels), repeat=channels))).reshape(-1, 1, channels, 1, 1)
    log_p = np.asarray(log_density(d, every))
    assert np.all(np.isfinite(log_p))
    np.testing.assert_allclose(np.exp(log_p).sum(axis=0), 1, rtol=1e-12)


@pytest.mark.parametrize("parameters", [(GREY[0], GREY[1], GREY[2][..., :1]), (*COLOUR[:3],)])
def test_mixtures_whose_parts_do_not_fit(parameters: tuple) -> None:
    with pytest.raises(ValueError, match="fit"):
        DiscretizedLogisticMixture(*parameters, levels=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianAR1(jnp.array([1.0]), 3), "alpha"),
        (lambda: GaussianAR1(jnp.array([0.5]), 0), "length"),
        (lambda: GaussianSequence(jnp.zeros((4, 3)), jnp.eye(4)[None, :3]), "scale_tril"),
        (lambda: GaussianSequence(jnp.zeros((4, 3)), -jnp.eye(4)[None]), "scale_tril"),
        (lambda: DiscretizedLogisticMixture.from_parameters(jnp.zeros((7, 1, 1)), channels=3, levels=4), "parameters"),
        (lambda: DiscretizedLogisticMixture.from_parameters(jnp.zeros((6, 1, 1)), channels=1, levels=1), "levels"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- Rates ---


@pytest.mark.parametrize(
    ("alpha", "length", "nats"),
    [
        (np.linspace(0.5, 0.95, 8), 32, 79.447 * math.log(2)),
        (np.linspace(0.5, 0.99, 64), 32, 666.63 * math.log(2)),
        (0.5, 2, 0.1438),
        (-0.95, 2, 1.1640),
        (0.99, 16, 6.741),
        (0.9, 1, 0.0),
        (0.0, 9, 0.0),
    ],
)
def test_eq_3(alpha: Any, length: int, nats: float) -> None:
    assert float(ar1_rate(alpha, length)) == pytest.approx(nats, rel=5e-4, abs=1e-15)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 7])
def test_rates_of_blocks_three_ways(block: int) -> None:
    n, alpha = 7, 0.8
    covariance = alpha ** np.abs(np.arange(n)[:, None] - np.arange(n))
    by_precision = precision_rate(np.linalg.inv(covariance), block)
    assert float(ar1_rate(alpha, n, block)) == pytest.approx(float(by_precision), rel=1e-11, abs=1e-13)
    assert float(factor_rate(np.linalg.cholesky(covariance), block)) == pytest.approx(
        float(by_precision), rel=1e-11, abs=1e-13
    )


@every_gaussian
def test_the_rate_is_the_least_kl(row: Row) -> None:
    """Attained at σ_t² = 1/Λ_tt; other posteriors stay above."""
    p = row()
    delta = committed_rate(p)
    mean, covariance = dense(p)
    precision_td = np.diagonal(np.linalg.inv(covariance), axis1=-2, axis2=-1).reshape(p.shape())
    least = mean_field(mean.reshape(p.shape()), precision_td**-0.5)
    np.testing.assert_allclose(divergence(least, p), delta, rtol=1e-10)
    assert np.all(divergence(mean_field(LOC, SCALE), p) > delta)


@pytest.mark.parametrize("length", [2, 3, 32, 1024])
def test_alpha_of_a_rate_and_back(length: int) -> None:
    rate = np.array([0.0, 1e-9, 1e-3, 0.3, 2.0, 7.0, 12.0])
    alpha = alpha_of_rate(rate, length)
    back = [float(ar1_rate(one, length)) for one in alpha]
    np.testing.assert_allclose(back, rate, rtol=1e-6 if length < 32 else 1e-8, atol=0)
    assert float(alpha_of_rate(79.44 * math.log(2) / 8, 32)) == pytest.approx(0.7360, abs=5e-5)


def test_lattice_rate() -> None:
    assert lattice_rate(np.array([0.9]), 8, 8) == pytest.approx(41.77, abs=5e-3)
    assert float(ar1_rate(0.9, 64)) == pytest.approx(19.22, abs=5e-3)


@pytest.mark.parametrize("spelling", ["x", "0.5:1.5", "0.1,0.2", "1", "0.1:0.2:0.3"])
def test_spellings_of_alpha_that_are_refused(spelling: str) -> None:
    with pytest.raises(UserError, match="alpha"):
        alpha_of_spelling(spelling, 3)


# --- The same numbers as Pyro's ---


def options_of(name: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    alpha = ",".join(str(value) for value in rng.uniform(-0.95, 0.95, 3))
    rate = float(rng.uniform(0.5, 15))
    options: dict[str, dict[str, Any]] = {
        "ar1": {"alpha": alpha} if seed % 2 else {"rate_nats": rate},
        "ar1_learned": {"floor_nats": rate},
        "standard_normal": {},
        "ar": {"pacf": tuple(float(value) for value in rng.uniform(-0.9, 0.9, 1 + seed % 4))},
        "lattice": {"columns": 2} | [{"alpha": alpha}, {"alpha": 0.1 * seed - 0.5}, {"rate_nats": rate}][seed % 3],
        "matern": {"smoothness": ("1/2", "3/2", "5/2")[seed % 3]}
        | ({"length_scale": float(rng.uniform(0.2, 3))} if seed % 2 else {"rate_nats": rate}),
    }
    return {"dims": 3} | options[name]


def both(name: str, seed: int) -> tuple[Any, nnx.Module]:
    """A Pyro prior and its twin with the same random parameters; fixed buffers are each one's own."""
    theirs, ours = find("prior", name)(SPEC, **options_of(name, seed)), PRIORS[name](SPEC, **options_of(name, seed))
    torch.manual_seed(seed)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    load(ours, {key: value.detach() for key, value in theirs.named_parameters()})
    return theirs, ours


def load(module: Any, state: dict[str, torch.Tensor]) -> None:
    for name, value in state.items():
        *path, last = name.split(".")
        holder = module
        for part in path:
            holder = getattr(holder, part)
        assert getattr(holder, last).shape == tuple(value.shape)
        getattr(holder, last)[...] = jnp.asarray(value.numpy())


def names_and_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    flat = nnx.to_flat_state(nnx.state(module))
    return {".".join(path): tuple(variable.shape) for path, variable in flat}


def test_every_shipped_prior_has_a_twin() -> None:
    assert set(PRIORS) == set(SHIPPED["prior"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PRIORS)
def test_priors_are_pyro_s(name: str, seed: int) -> None:
    theirs, ours = both(name, seed)
    state = {key: value.detach() for key, value in theirs.state_dict().items()}
    assert names_and_shapes(ours) == {key: tuple(value.shape) for key, value in state.items()}
    for key in state:
        assert relative(getattr(ours, key)[...], state[key]) < 1e-9, key
    assert getattr(ours, "columns", 1) == getattr(theirs, "columns", 1)
    p, q = ours(), theirs()
    loc, log_scale, z, eps = (normal(seed + number, 5, 8, 3) for number in range(4))
    scale = np.exp(log_scale)
    tensor = torch.as_tensor
    pyro_normal = torch.distributions.Independent(torch.distributions.Normal(tensor(loc), tensor(scale)), 2)
    pairs = {
        "log_prob": (log_density(p, z), q.log_prob(tensor(z))),
        "transform": (transformed(p, eps), q.transform(tensor(eps))),
        "kl": (divergence(mean_field(loc, scale), p), torch.distributions.kl_divergence(pyro_normal, q)),
        "entropy": (entropy_of(p), q.entropy()),
        "delta": (committed_rate(p), pyro_rate.committed_rate(q)),
        "delta of blocks": (committed_rate(p, 3), pyro_rate.committed_rate(q, 3)),
    }
    for key, (mine, other) in pairs.items():
        assert relative(mine, other.detach()) < 1e-9, key


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_of_a_learned_prior_are_pyro_s_and_those_of_finite_differences(seed: int) -> None:
    theirs, ours = both("ar1_learned", seed)
    loc, scale = normal(seed, 8, 3), np.exp(normal(seed + 1, 8, 3))
    graph, state = nnx.split(ours)
    loss = jax.jit(lambda state: kl_divergence(mean_field(loc, scale), nnx.merge(graph, state)()))
    gradient = jax.jit(jax.grad(loss, allow_int=True))(state)
    tensor = torch.as_tensor
    q = torch.distributions.Independent(torch.distributions.Normal(tensor(loc), tensor(scale)), 2)
    torch.distributions.kl_divergence(q, theirs()).backward()
    for name, parameter in theirs.named_parameters():
        assert relative(gradient[name][...], parameter.grad) < 1e-9
    if seed == 0:
        excess, shares = (parameter.detach().numpy() for parameter in theirs.parameters())

        def of_parameters(excess: Any, shares: Any) -> Any:
            return kl_divergence(mean_field(loc, scale), GaussianAR1(learned_alpha(excess, shares, 8.0, 8), 8))

        check_grads(jax.jit(of_parameters), (excess, shares), order=1, atol=1e-5, rtol=1e-5)


def test_a_learned_prior_keeps_its_floor_in_float32() -> None:
    jax.config.update("jax_enable_x64", False)
    prior = PRIORS["ar1_learned"](SPEC, dims=3, floor_nats=9.0)
    for seed in SEEDS:
        prior.excess[...], prior.shares[...] = jnp.asarray(-40.0), jnp.asarray(normal(seed, 3), jnp.float32)
        assert prior().alpha.dtype == jnp.float32
        assert 9.0 <= float(committed_rate(prior())) < 9.0 * (1 + 1e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ar1", {}, "exactly one"),
        ("ar1", {"alpha": 0.5, "rate_nats": 3.0}, "exactly one"),
        ("ar1", {"alpha": 0.5, "length": 3}, "divide"),
        ("ar1", {"rate_nats": 1e4}, "nearer to 1"),
        ("ar1", {"rate_nats": 1.0, "length": 1}, "cannot commit"),
        ("ar1_learned", {"floor_nats": -1.0}, "cannot commit"),
        ("ar1_learned", {"floor_nats": 1e4}, "nearer to 1"),
        ("ar", {"pacf": (1.0,)}, "pacf"),
        ("lattice", {"alpha": 0.5, "rows": 3}, "divide"),
        ("matern", {"length_scale": 1e9, "smoothness": "5/2"}, "shorter"),
        ("matern", {"rate_nats": 1e4}, "less"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PRIORS[name](SPEC, **options)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_the_auxiliary_prior_is_pyro_s(mixtures: int) -> None:
    theirs = PyroLSTMPrior(find("prior", "ar1")(SPEC, dims=3, alpha=0.5), hidden=5, mixtures=mixtures)
    ours = LSTMPrior(PRIORS["ar1"](SPEC, dims=3, alpha=0.5), hidden=5, mixtures=mixtures, rngs=nnx.Rngs(0))
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert names_and_shapes(ours) == shapes
    for seed in SEEDS:
        torch.manual_seed(seed)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
        load(ours, {key: value.detach() for key, value in theirs.state_dict().items()})
        z, noise = normal(seed, 5, 8, 3), normal(seed + 1, 5, 8, 4)
        with torch.no_grad():
            assert relative(log_density(ours(), z), theirs().log_prob(torch.as_tensor(z))) < 1e-9
            expected = theirs().sample((5,), noise=torch.as_tensor(noise))
        assert relative(transformed(ours(), noise), expected) < 1e-9


@pytest.mark.parametrize("mixtures", [1, 3])
def test_the_auxiliary_prior_starts_as_pyro_s_does(mixtures: int) -> None:
    prior = LSTMPrior(PRIORS["ar1"](SPEC, dims=64, alpha=0.5), hidden=16, mixtures=mixtures, rngs=nnx.Rngs(0))
    out, cell = prior.network.out, prior.network.lstm
    assert not np.any(out.weight[...])
    means = out.bias[mixtures - 1 : mixtures - 1 + 64 * mixtures]
    assert np.std(means) == pytest.approx(0.5 * (mixtures > 1), rel=0.2)
    assert np.count_nonzero(out.bias[...]) == 64 * mixtures * (mixtures > 1)
    assert 0.2 < float(jnp.max(jnp.abs(cell.weight_ih_l0[...]))) < 0.25
    with pytest.raises(UserError, match="hidden"):
        LSTMPrior(PRIORS["ar1"](SPEC, alpha=0.5), hidden=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("channels", "levels", "k"), [(1, 2, 1), (1, 17, 3), (3, 256, 4)])
def test_the_mixture_is_pyro_s(channels: int, levels: int, k: int) -> None:
    groups = 1 + 2 * channels + channels * (channels - 1) // 2
    options = {"channels": channels, "levels": levels}

    @jax.jit
    def ours(parameters: Any, x: Any, uniforms: Any) -> tuple[Any, Any]:
        d = DiscretizedLogisticMixture.from_parameters(parameters, **options)
        return d.log_prob(x), d.from_uniforms(uniforms)

    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        parameters = 2 * rng.normal(size=(3, groups * k, 2, 3))
        x = rng.integers(0, levels, (3, channels, 2, 3))
        uniforms = rng.uniform(size=(3, 2, 3, 1 + channels))
        log_p, drawn = ours(parameters, x, uniforms)
        # Pyro's is one of pixels, (C,), with the channels of everything last.
        theirs = pyro_distributions.DiscretizedLogisticMixture.from_parameters(
            torch.as_tensor(parameters).movedim(1, -1), **options
        )
        of_pixels = theirs.log_prob(torch.as_tensor(x).movedim(1, -1))
        assert relative(log_p, of_pixels.sum((-2, -1))) < 1e-9
        np.testing.assert_array_equal(drawn, theirs.sample_with(torch.as_tensor(uniforms)).movedim(-1, 1))


# --- The extra ---


def test_the_package_loads_no_jax() -> None:
    code = "import sys, pyro_delta, pyro_delta.twin; assert not {'jax', 'numpyro', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_extra_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    twin.require()
    monkeypatch.setattr(twin, "find_spec", lambda name: None if name == "jax" else object())
    with pytest.raises(UserError, match=r"needs jax; install the extra: pip install 'pyro-delta\[twin\]'"):
        twin.require()
