"""The twin's distributions by NumPyro's habits, and the same numbers as Pyro's; float64 unless a name says other."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import solve_triangular
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as torch_kl

pytest.importorskip("numpyro")
pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax.flatten_util import ravel_pytree
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.kl import kl_divergence
from numpyro.infer import TraceMeanField_ELBO

import pyro_delta.distributions as pyro_distributions
import pyro_delta.rate as pyro_rate
from pyro_delta import twin
from pyro_delta.data.images import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.models.priors.auxiliary import LSTMPrior as PyroLSTMPrior
from pyro_delta.programs import SHIPPED, find
from pyro_delta.programs import twin_of as twin_named_by
from pyro_delta.twin.auxiliary import LSTMPrior, SequentialGaussian, Weights
from pyro_delta.twin.distributions import GaussianAR1, GaussianSequence
from pyro_delta.twin.images.lattice import lattice_rate
from pyro_delta.twin.logistic_mixture import DiscretizedLogisticMixture
from pyro_delta.twin.priors import learned_alpha
from pyro_delta.twin.rate import (
    alpha_of_rate,
    alpha_of_spelling,
    ar1_rate,
    committed_rate,
    factor_rate,
    precision_rate,
)

SEEDS = range(10)
TOLERANCE = 1e-12  # relative, between the twins; the worst is 6e-15, of gradients 6e-13, where an α is 1 − 7e-5
COUNT = 20_000
SPEC = ImageSpec(1, 8, 8, 17)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    names = ("jax_enable_x64", "jax_disable_most_optimizations")  # compiling takes longer here than running
    before = {name: jax.config.values[name] for name in names}
    for name in names:
        jax.config.update(name, True)
    torch.set_default_dtype(torch.float64)
    with numpyro.validation_enabled(False):  # each check of each argument is compiled by itself
        yield
    for name in names:
        jax.config.update(name, before[name])


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference by the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-300))


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def _quick() -> dict[str, Any]:
    """Options with which JAX compiles in a third of the time; none if this JAX does not have them."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(1).compile()
    except Exception:  # it has no class of its own
        return {}
    return options


# Compiling is most of the time here: everything is under jit, which compiles a function at once, and shapes are few.
jit = partial(jax.jit, compiler_options=_quick())
draw = jit(lambda d, key: d.sample(key, (COUNT,)))
log_density = jit(lambda d, z: d.log_prob(z))
supported = jit(lambda d, z: jnp.all(d.support(z)))
transformed = jit(lambda d, noise: d.transform(noise))
entropy_of = jit(lambda d: d.entropy())
divergence = jit(lambda q, p: kl_divergence(q, p))
KEY = partial(jax.random.key, 0)


def check_gradients(function: Callable[..., Any], *at: np.ndarray) -> None:
    """Of a scalar function, reverse mode against central differences, along random directions."""
    flat, back = ravel_pytree(at)

    @jit
    def both(direction: jax.Array) -> tuple[Any, Any]:
        def along(t: Any) -> Any:
            return function(*back(flat + t * direction))

        return jnp.vdot(jax.grad(lambda flat: function(*back(flat)))(flat), direction), (
            along(1e-5) - along(-1e-5)
        ) / 2e-5

    for seed in range(3):
        exact, difference = both(normal(seed, flat.size))
        np.testing.assert_allclose(exact, difference, rtol=1e-6, atol=1e-6)


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
    "ar1": Row(ar1, (ALPHA,), (2,), (4, 3)),
    "ar1, lengths": Row(lambda alpha: GaussianAR1(alpha, 4, np.array([2, 4])), (ALPHA,), (2,), (4, 3)),
    "sequence": Row(sequence, (normal(9, 4, 3), factors(10, 3)), (), (4, 3)),
    "sequence, one factor for all dimensions": Row(sequence, (normal(9, 4, 3), factors(10, 2, 1)), (2,), (4, 3)),
    "grey": Row(partial(DiscretizedLogisticMixture, levels=4), GREY, (), (1, 1, 2), 4),
    "colour": Row(
        partial(DiscretizedLogisticMixture, levels=3), (normal(8, 2, 1, 1, 2), *COLOUR[1:]), (2,), (3, 1, 1), 3
    ),
    "lstm": Row(lstm, lstm_weights(2, 3, 2), (), (3, 2)),
}
GAUSSIAN = [name for name in ROWS if name.startswith(("ar1", "sequence"))]
IMAGES = [name for name in ROWS if ROWS[name].levels is not None]
every_row = pytest.mark.parametrize("name", ROWS)
every_gaussian = pytest.mark.parametrize("name", GAUSSIAN)


@cache
def draws(name: str) -> np.ndarray:
    return np.asarray(draw(ROWS[name](), KEY()))


@every_row
def test_shapes_support_and_kind(name: str) -> None:
    row, d, z = ROWS[name], ROWS[name](), draws(name)
    assert (d.batch_shape, d.event_shape) == (row.batch_shape, row.event_shape)
    for shape in [(), (5,), (2, 1)]:
        drawn = jax.eval_shape(partial(d.sample, sample_shape=shape), KEY())
        assert drawn.shape == d.shape(shape) == (*shape, *row.batch_shape, *row.event_shape)
        assert jax.eval_shape(d.log_prob, drawn).shape == (*shape, *row.batch_shape)
    assert d.support.event_dim == len(row.event_shape)
    assert supported(d, z)
    assert d.is_discrete == (row.levels is not None) == np.issubdtype(z.dtype, np.integer)
    assert d.has_rsample == (name in GAUSSIAN)
    if name in GAUSSIAN:
        assert d.mean.shape == d.variance.shape == d.shape()
    else:
        for moment in ("mean", "variance"):
            with pytest.raises(NotImplementedError):
                getattr(d, moment)


@pytest.mark.parametrize("name", ["ar1", "sequence", "colour", "lstm"])  # one of each class
def test_jit_changes_nothing(name: str) -> None:
    """Compiled as by default, or not at all."""
    d, z = ROWS[name](), draws(name)
    density = log_density(d, z)
    if name in GAUSSIAN:  # of the others every operation takes long to compile
        close(density, d.log_prob(z))
    jax.config.update("jax_disable_most_optimizations", False)
    close(density, jax.jit(lambda d, z: d.log_prob(z))(d, z))


@every_row
def test_flattening_and_expanding_change_nothing(name: str) -> None:
    row, d, z = ROWS[name], ROWS[name](), draws(name)
    density = log_density(d, z)
    leaves, structure = jax.tree.flatten(d)
    # Beside the parameters: coefficients, of which there are none, and integers.
    assert len(leaves) - len(row.parameters) == (name in ("grey", "ar1, lengths"))
    back = jax.tree.unflatten(structure, leaves)
    assert type(back) is type(d)
    assert (back.batch_shape, back.event_shape) == (d.batch_shape, d.event_shape)
    close(log_density(back, z), density)
    wide = d.expand((COUNT, *row.batch_shape))
    assert type(wide) is type(d)
    assert wide.batch_shape == (COUNT, *row.batch_shape)
    assert jax.eval_shape(wide.sample, KEY()).shape == draws(name).shape
    close(log_density(wide, z), density)


@pytest.mark.parametrize("flag", [True, False])
def test_expand_keeps_a_subclass_and_the_validation_flag(flag: bool) -> None:
    def flag_of(make: Callable[..., Any], *parameters: Any) -> bool:
        """Of a traced distribution: traced arguments are not checked, which would take seconds to compile."""
        flags = []
        jax.eval_shape(lambda *traced: flags.append(make(*traced, validate_args=flag).expand((5,))), *parameters)
        return flags[0]._validate_args

    assert flag_of(lambda alpha, **options: GaussianAR1(alpha, 4, **options), ALPHA[0]) is flag
    assert flag_of(GaussianSequence, LOC[0, 0], factors(10, 3)) is flag
    assert flag_of(partial(DiscretizedLogisticMixture, levels=4), *GREY) is flag
    weights = lstm_weights(2, 3, 1)
    assert flag_of(lambda *traced, **options: SequentialGaussian(Weights(*traced), 3, **options), *weights) is flag
    renamed = type("Renamed", (GaussianAR1,), {})
    assert type(renamed(ALPHA[0], 4).expand((5,))) is renamed


@every_row
def test_vmap_over_values_parameters_and_distributions(name: str) -> None:
    row, z = ROWS[name], draws(name)[:2000]
    stacked = [np.stack([part, 0.9 * part]) for part in row.parameters]
    keys = jax.random.split(KEY(), 2)

    @jit
    def mapped(z: Any, *stacked: Any) -> tuple[Any, Any, Any]:
        many = jax.vmap(row.make)(*stacked)
        if many.arg_constraints:
            assert promote_batch_shape(many).batch_shape == (2, *row.batch_shape)
        of_values = jax.vmap(row().log_prob)(z)
        return (
            of_values,
            jax.vmap(lambda d: d.log_prob(z))(many),
            jax.vmap(lambda d, key: d.sample(key, (COUNT,)))(many, keys),
        )

    of_values, of_many, drawn = map(np.asarray, mapped(z, *stacked))
    close(of_values, log_density(row(), z))
    for i in range(2):
        single = row.make(*(part[i] for part in stacked))
        close(of_many[i], log_density(single, z))
        close(drawn[i], draw(single, keys[i]))


@every_row
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    row, z = ROWS[name], draws(name)[:5]
    noise = normal(3, *z.shape)

    def total(z_or_noise: Any, *parameters: Any) -> Any:
        d = row.make(*parameters)
        values = [d.log_prob(z if name in IMAGES else z_or_noise)]
        if d.has_rsample:
            values += [d.transform(z_or_noise), d.entropy()]
        return sum(jnp.vdot(normal(4 + i, *value.shape), value) for i, value in enumerate(values))

    check_gradients(total, noise, *row.parameters)


@every_row
def test_float32_stays_float32_and_close(name: str) -> None:
    z = draws(name)
    exact = np.asarray(log_density(ROWS[name](), z))
    jax.config.update("jax_enable_x64", False)

    @jit
    def density_and_draw(z: Any, *parameters: Any) -> tuple[jax.Array, jax.Array]:
        d = ROWS[name].make(*parameters)
        return d.log_prob(z), d.sample(KEY())

    density, drawn = density_and_draw(z, *ROWS[name].parameters)
    assert density.dtype == jnp.float32
    assert drawn.dtype == (jnp.int32 if name in IMAGES else jnp.float32)
    assert relative(density, exact) < 1e-5


@jit
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
def test_density_moments_and_entropy_are_dense(name: str) -> None:
    d, z = ROWS[name](), draws(name)
    mean, covariance = dense(d)
    flat = z.reshape(*z.shape[:-2], -1) - mean
    square = np.einsum("...i,...ij,...j->...", flat, np.linalg.inv(covariance), flat)
    log_det = np.linalg.slogdet(2 * math.pi * covariance)[1]
    np.testing.assert_allclose(log_density(d, z), -0.5 * (square + log_det), rtol=1e-11)
    np.testing.assert_allclose(entropy_of(d), 0.5 * (log_det + mean.shape[-1]), rtol=1e-11)
    np.testing.assert_allclose(d.mean, mean.reshape(d.shape()), atol=1e-13)
    variances = np.diagonal(covariance, axis1=-2, axis2=-1).reshape(d.shape())
    np.testing.assert_allclose(d.variance, variances, rtol=1e-12)


def test_a_sequence_is_whitened_as_scipy_does() -> None:
    """One factor (d, n, n) for many values: also under vmap, by value and by batch."""
    factor, z = factors(40, 2, n=16), normal(42, 2000, 16, 2)
    d = GaussianSequence(np.zeros((16, 2)), factor)
    white = np.stack([solve_triangular(factor[k], z[..., k].T, lower=True) for k in range(2)])
    constant = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum() + 16 * math.log(2 * math.pi)
    expected = -0.5 * np.square(white).sum(axis=(0, 1)) - constant
    np.testing.assert_allclose(log_density(d, z), expected, rtol=1e-12)
    mapped = jit(lambda d, z: jax.vmap(d.log_prob)(z))(d, z)
    np.testing.assert_allclose(mapped, expected, rtol=1e-12)


def test_ar1_is_its_recursion_and_its_correlations() -> None:
    prior, eps = ROWS["ar1"](), normal(0, COUNT, 2, 4, 3)
    z = [eps[..., 0, :]]
    for t in range(1, 4):
        z.append(ALPHA * z[-1] + np.sqrt(1 - ALPHA**2) * eps[..., t, :])
    # Where terms cancel, z is near 0 and has the rounding of its terms.
    np.testing.assert_allclose(transformed(prior, eps), np.stack(z, axis=-2), rtol=1e-12, atol=1e-15)
    covariance = dense(prior)[1].reshape(2, 4, 3, 4, 3)
    lag = np.abs(np.arange(4)[:, None] - np.arange(4))
    for k in range(3):
        np.testing.assert_allclose(covariance[:, :, k, :, k], ALPHA[:, k, None, None] ** lag, atol=1e-13)


@every_gaussian
def test_gaussian_samples_fit(name: str) -> None:
    """Whitened by the dense covariance, they are independent standard normal numbers."""
    d, z = ROWS[name](), draws(name)
    mean, covariance = dense(d)
    change = z.reshape(*z.shape[:-2], -1) - mean
    white = np.einsum("...ij,...j->...i", np.linalg.inv(np.linalg.cholesky(covariance)), change)
    for column in np.moveaxis(white.reshape(len(z), -1, 12), 1, 0):
        assert stats.kstest(column.ravel(), stats.norm.cdf).pvalue > 1e-4
        assert np.abs(column.T @ column / len(z) - np.eye(12)).max() < 5 * math.sqrt(2 / len(z))


def test_samples_of_the_auxiliary_prior_fit() -> None:
    """For any density f, the mean of f/p over samples of p is 1; f is a narrow normal in several places."""
    z = draws("lstm")
    log_p = np.asarray(log_density(ROWS["lstm"](), z))
    for centre in z[:4]:
        log_f = stats.norm.logpdf(z, 0.5 * centre, 0.35).sum(axis=(-2, -1))
        ratio = np.exp(log_f - log_p)
        error = ratio.std() / math.sqrt(len(ratio))
        assert abs(ratio.mean() - 1) < 5 * error < 0.5


def images(row: Row) -> np.ndarray:
    """Every image of the row: (L^N, 1…, C, H, W)."""
    every = product(range(row.levels), repeat=math.prod(row.event_shape))
    return np.array(list(every)).reshape(-1, *(1 for _ in row.batch_shape), *row.event_shape)


@pytest.mark.parametrize("name", IMAGES)
def test_image_samples_fit_the_probabilities(name: str) -> None:
    row, every = ROWS[name], images(ROWS[name])
    p = np.exp(log_density(row(), every)).reshape(len(every), -1)
    np.testing.assert_allclose(p.sum(axis=0), 1, rtol=1e-12)
    drawn = draws(name).reshape(COUNT, p.shape[1], -1)
    places = row.levels ** np.arange(drawn.shape[-1])[::-1]
    for b in range(p.shape[1]):
        seen = np.bincount(drawn[:, b] @ places, minlength=len(p))
        often = p[:, b] * COUNT > 5
        expected = np.append(p[often, b], p[~often, b].sum()) * COUNT
        observed = np.append(seen[often], seen[~often].sum())
        assert stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-4


# --- KL ---


def mean_field(loc: Any, scale: Any) -> Any:
    return dist.Normal(loc, scale).to_event(2)


LOC, SCALE = normal(30, 5, 2, 4, 3), np.exp(0.5 * normal(31, 5, 2, 4, 3))
POSTERIORS = {
    "normal": lambda: mean_field(LOC, SCALE),
    "normal in a plate": lambda: mean_field(LOC[0, 0], SCALE[0, 0]).expand((5, 2)),
    "sequence": lambda: GaussianSequence(LOC, factors(34, 5, 1, 3)),
    "sequence, one factor": lambda: GaussianSequence(LOC[0, 0], factors(34, 1)).expand((5, 2)),
}


@cache
def posterior_draws(name: str) -> np.ndarray:
    return np.asarray(jit(lambda q, key: q.sample(key, (2000,)))(POSTERIORS[name](), KEY()))


def dense_of(q: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(q, dist.Independent):
        shape = q.batch_shape + q.event_shape
        mean, var = (np.broadcast_to(np.asarray(part), shape) for part in (q.mean, q.variance))
        return mean.reshape(*q.batch_shape, -1), var.reshape(*q.batch_shape, -1, 1) * np.eye(12)
    return dense(q)


@pytest.mark.parametrize("posterior", POSTERIORS)
@every_gaussian
def test_kl_is_dense_and_what_samples_say(posterior: str, name: str) -> None:
    q, p, z = POSTERIORS[posterior](), ROWS[name](), posterior_draws(posterior)
    kl = np.asarray(divergence(q, p))
    assert kl.shape == (5, 2)
    np.testing.assert_allclose(kl, dense_kl(dense_of(q), dense_of(p)), rtol=1e-10)
    ratio = np.asarray(log_density(q, z)) - np.asarray(log_density(p, z))
    assert np.all(np.abs(ratio.mean(axis=0) - kl) < 5 * ratio.std(axis=0) / math.sqrt(len(ratio)))


@pytest.mark.parametrize("posterior", POSTERIORS)
@every_gaussian
def test_mean_field_elbo_uses_the_analytic_kl_inside_plates(
    posterior: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    q, p = POSTERIORS[posterior](), ROWS[name]()
    for pair in product((dist.Independent, GaussianSequence), (GaussianAR1, GaussianSequence)):
        counted = partial(
            lambda found, q, p: calls.append((type(q), type(p))) or found(q, p), kl_divergence.funcs[pair]
        )
        monkeypatch.setitem(kl_divergence.funcs, pair, counted)
    monkeypatch.setattr(kl_divergence, "_cache", {})
    assert p.expand((5, 2)).batch_shape == (5, 2)

    def program(d: Any) -> Callable[[], None]:
        def write() -> None:
            with numpyro.plate("rows", 5, dim=-2), numpyro.plate("columns", 2, dim=-1):
                numpyro.sample("z", d)

        return write

    loss = jit(lambda key: TraceMeanField_ELBO().loss(key, {}, program(p), program(q)))(KEY())
    assert calls == [(type(q), type(p))]
    assert float(loss) == pytest.approx(float(np.sum(divergence(q, p))), rel=1e-12)


def test_the_kl_of_other_posteriors_is_not_claimed() -> None:
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Laplace(LOC[0, 0]).to_event(2), ROWS["ar1"]())
    with pytest.raises(ValueError, match="shape"):
        kl_divergence(mean_field(LOC[0, 0, :2], 1.0), ROWS["ar1"]())


# --- Images ---


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 17), (2, 5), (3, 2), (3, 5), (4, 2)])
def test_probabilities_sum_to_one_at_extremes(channels: int, levels: int) -> None:
    groups = 1 + 2 * channels + channels * (channels - 1) // 2
    parameters = 20 * normal(0, 4, 3 * groups, 1, 1)
    d = jit(partial(DiscretizedLogisticMixture.from_parameters, channels=channels, levels=levels))(parameters)
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
    with numpyro.validation_enabled(), pytest.raises(ValueError, match=message):
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
def test_the_rate_is_the_least_kl(name: str) -> None:
    """Attained at σ_t² = 1/Λ_tt; other posteriors stay above."""
    p = ROWS[name]()
    delta = committed_rate(p)
    mean, covariance = dense(p)
    precision_td = np.diagonal(np.linalg.inv(covariance), axis1=-2, axis2=-1).reshape(p.shape())
    least = mean_field(mean.reshape(p.shape()), precision_td**-0.5)
    np.testing.assert_allclose(divergence(least, p), delta, rtol=1e-10)
    assert np.all(divergence(mean_field(LOC, SCALE), p) > delta)


class Unknown(dist.Distribution):
    """A distribution of another package, of which only the density is known."""

    def __init__(self, known: Any) -> None:
        self.log_prob = known.log_prob
        super().__init__((), known.event_shape)


def test_the_rate_of_an_unknown_gaussian_is_read_off_its_density() -> None:
    known = GaussianAR1(ALPHA[0], 4)
    np.testing.assert_allclose(committed_rate(Unknown(known), 3), committed_rate(known, 3), rtol=1e-12)
    with pytest.raises(UserError, match="Unknown is not Gaussian"):
        committed_rate(Unknown(dist.StudentT(3.0).expand((2, 2)).to_event(2)))


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


def spellings(name: str, seed: int) -> list[dict[str, Any]]:
    """Options of a prior, spelled in every way; the numbers are the seed's."""
    rng = np.random.default_rng(seed)
    low, high = (float(value) for value in rng.uniform(-0.95, 0.95, 2))
    rate = {"rate_nats": float(rng.uniform(0.5, 15))}
    alphas = [{"alpha": low}, {"alpha": f"{low}:{high}"}, {"alpha": f"{low},0,{high}"}, rate]
    scale = {"length_scale": float(rng.uniform(0.2, 3))}
    lengths: list[dict[str, Any]] = [{}, {"length": 4}]
    options: dict[str, list[dict[str, Any]]] = {
        "ar1": [alpha | length for alpha, length in product(alphas, lengths)],
        "ar1_learned": [{"floor_nats": rate["rate_nats"]} | length for length in lengths],
        "standard_normal": lengths,
        "ar": [{}, *({"pacf": tuple(float(value) for value in rng.uniform(-0.9, 0.9, p))} for p in (1, 2, 5))],
        "lattice": [alpha | shape for alpha, shape in product(alphas, [{}, {"rows": 2}, {"rows": 8, "columns": 1}])],
        "matern": [
            {"smoothness": smoothness} | given for smoothness, given in product(("1/2", "3/2", "5/2"), (scale, rate))
        ]
        + [scale | {"length": 4}, {"length_scale": 0.0}],
    }
    return [{"dims": 3} | option for option in options[name]]


@cache
def pyro_prior(name: str) -> Any:
    return find("prior", name)  # reads every installed package's entry points


def twin_of(name: str) -> Any:
    """The twin that a shipped prior names."""
    module, _, attribute = str(twin_named_by(pyro_prior(name))).partition(":")
    return getattr(import_module(module), attribute)


def both(name: str, options: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """A Pyro prior and its twin with the same random parameters; fixed buffers are each one's own."""
    theirs, ours = pyro_prior(name)(SPEC, **options), twin_of(name)(SPEC, **options)
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


@pytest.mark.parametrize("name", SHIPPED["prior"])
def test_buffers_and_committed_rates_are_pyro_s(name: str) -> None:
    for seed in SEEDS:
        for options in spellings(name, seed):
            theirs, ours = both(name, options, seed)
            state = {key: value.detach() for key, value in theirs.state_dict().items()}
            assert names_and_shapes(ours) == {key: tuple(value.shape) for key, value in state.items()}
            for key in state:
                assert relative(getattr(ours, key)[...], state[key]) < TOLERANCE, (key, options)
            assert getattr(ours, "columns", 1) == getattr(theirs, "columns", 1)
            p, q = ours(), theirs()
            for block in (1, 2, 3, p.event_shape[0]):
                mine, other = committed_rate(p, block), pyro_rate.committed_rate(q, block).detach()
                # The rate of one whole block is 0: what is left is rounding of some 50 logarithms that cancel. Pyro's
                # are of a precision, which at the largest rates has a condition number of 8500, and leave 1.8e-13.
                np.testing.assert_allclose(mine, other, rtol=TOLERANCE, atol=5e-13, err_msg=f"{options}, {block}")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SHIPPED["prior"])
def test_priors_are_pyro_s(name: str, seed: int) -> None:
    several = [options for options in spellings(name, seed) if not {"length", "rows"} & set(options)]
    theirs, ours = both(name, several[seed % len(several)], seed)
    p, q = ours(), theirs()
    n, d = p.event_shape
    loc, log_scale, z, eps = (normal(seed + number, 5, n, d) for number in range(4))
    scale, factor = np.exp(log_scale), factors(seed + 4, 5, d, n=n)
    tensor = torch.as_tensor
    mean_fields = mean_field(loc, scale), Independent(Normal(tensor(loc), tensor(scale)), 2)
    sequences = GaussianSequence(loc, factor), pyro_distributions.GaussianSequence(tensor(loc), tensor(factor))
    pairs = {
        "log_prob": (log_density(p, z), q.log_prob(tensor(z))),
        "transform": (transformed(p, eps), q.transform(tensor(eps))),
        "entropy": (entropy_of(p), q.entropy()),
        "kl of a mean field": (divergence(mean_fields[0], p), torch_kl(mean_fields[1], q)),
        "kl of a sequence": (divergence(sequences[0], p), torch_kl(sequences[1], q)),
    }
    for key, (mine, other) in pairs.items():
        assert relative(mine, other.detach()) < TOLERANCE, key


def test_gradients_of_a_learned_prior_are_pyro_s_and_those_of_finite_differences() -> None:
    loc, scale = normal(0, 8, 3), np.exp(normal(1, 8, 3))

    def kl(excess: Any, shares: Any) -> Any:
        return kl_divergence(mean_field(loc, scale), GaussianAR1(learned_alpha(excess, shares, 8.0, 8), 8))

    gradient = jit(jax.grad(kl, argnums=(0, 1)))
    posterior = Independent(Normal(torch.as_tensor(loc), torch.as_tensor(scale)), 2)
    for seed in SEEDS:
        theirs, ours = both("ar1_learned", {"dims": 3}, seed)
        torch_kl(posterior, theirs()).backward()
        found = dict(zip(("excess", "shares"), gradient(ours.excess[...], ours.shares[...])))
        for name, parameter in theirs.named_parameters():
            assert relative(found[name], parameter.grad) < TOLERANCE
    check_gradients(kl, *(parameter.detach().numpy() for parameter in theirs.parameters()))


def test_a_learned_prior_keeps_its_floor_in_float32() -> None:
    jax.config.update("jax_enable_x64", False)
    prior = twin_of("ar1_learned")(SPEC, dims=3, floor_nats=9.0)
    for seed in SEEDS:
        prior.excess[...], prior.shares[...] = jnp.asarray(-40.0), jnp.asarray(normal(seed, 3), jnp.float32)
        process = prior()
        assert process.alpha.dtype == jnp.float32
        assert 9.0 <= float(committed_rate(process)) < 9.0 * (1 + 1e-4)


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
        ("matern", {"length_scale": 4000.0, "smoothness": "3/2"}, "shorter"),
        ("matern", {"length_scale": -1.0}, "not a length"),
        ("matern", {"length_scale": math.nan}, "not a length"),
        ("matern", {"length_scale": 1.0, "smoothness": "7/2"}, r"smoothness '7/2'"),
        ("matern", {"rate_nats": 1e4}, "less"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        twin_of(name)(SPEC, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("smoothness", ["1/2", "3/2", "5/2"])
def test_length_scales_that_are_refused_are_pyro_s(smoothness: str) -> None:
    refused = []
    for scale in 2.0 ** np.arange(-12, 40, 1.5):
        found = []
        for prior in (pyro_prior("matern"), twin_of("matern")):
            try:
                prior(SPEC, smoothness=smoothness, length_scale=float(scale))
            except UserError:
                found.append(scale)
        assert len(found) in (0, 2), scale
        refused += found
    assert refused


@pytest.mark.parametrize("mixtures", [1, 3])
def test_the_auxiliary_prior_is_pyro_s(mixtures: int) -> None:
    theirs = PyroLSTMPrior(pyro_prior("ar1")(SPEC, dims=3, alpha=0.5), hidden=5, mixtures=mixtures)
    ours = LSTMPrior(twin_of("ar1")(SPEC, dims=3, alpha=0.5), hidden=5, mixtures=mixtures, rngs=nnx.Rngs(0))
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert names_and_shapes(ours) == shapes
    for seed in SEEDS:
        torch.manual_seed(seed)
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter)
        load(ours, {key: value.detach() for key, value in theirs.state_dict().items()})
        z, noise = normal(seed, 5, 8, 3), normal(seed + 1, 5, 8, 4)
        with torch.no_grad():
            assert relative(log_density(ours(), z), theirs().log_prob(torch.as_tensor(z))) < TOLERANCE
            expected = theirs().sample((5,), noise=torch.as_tensor(noise))
        assert relative(transformed(ours(), noise), expected) < TOLERANCE


@pytest.mark.parametrize("mixtures", [1, 3])
def test_the_auxiliary_prior_starts_as_pyro_s_does(mixtures: int) -> None:
    prior = LSTMPrior(twin_of("ar1")(SPEC, dims=64, alpha=0.5), hidden=16, mixtures=mixtures, rngs=nnx.Rngs(0))
    out, cell = prior.network.out, prior.network.lstm
    weight, bias, of_input = (np.asarray(part[...]) for part in (out.weight, out.bias, cell.weight_ih_l0))
    assert not np.any(weight)
    means = bias[mixtures - 1 : mixtures - 1 + 64 * mixtures]
    assert np.std(means) == pytest.approx(0.5 * (mixtures > 1), rel=0.2)
    assert np.count_nonzero(bias) == 64 * mixtures * (mixtures > 1)
    assert 0.2 < np.max(np.abs(of_input)) < 0.25
    with pytest.raises(UserError, match="hidden"):
        LSTMPrior(twin_of("ar1")(SPEC, alpha=0.5), hidden=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("channels", "levels", "k"), [(1, 2, 1), (1, 17, 3), (2, 17, 3), (3, 256, 4), (4, 256, 2)])
def test_the_mixture_is_pyro_s(channels: int, levels: int, k: int) -> None:
    groups = 1 + 2 * channels + channels * (channels - 1) // 2
    options = {"channels": channels, "levels": levels}

    @jit
    def ours(parameters: Any, x: Any, uniforms: Any) -> tuple[Any, Any]:
        d = DiscretizedLogisticMixture.from_parameters(parameters, **options)
        return d.log_prob(x), d.from_uniforms(uniforms)

    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        parameters = 3 * rng.normal(size=(3, groups * k, 2, 3))
        x = rng.integers(0, levels, (3, channels, 2, 3))
        uniforms = rng.uniform(size=(3, 2, 3, 1 + channels))
        log_p, drawn = ours(parameters, x, uniforms)
        # Pyro's is one of pixels, (C,), with the channels of everything last.
        theirs = pyro_distributions.DiscretizedLogisticMixture.from_parameters(
            torch.as_tensor(parameters).movedim(1, -1), **options
        )
        of_pixels = theirs.log_prob(torch.as_tensor(x).movedim(1, -1))
        assert relative(log_p, of_pixels.sum((-2, -1))) < TOLERANCE
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
