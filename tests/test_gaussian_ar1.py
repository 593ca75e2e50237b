"""What is GaussianAR1's own: the recursion, its length, NumPyro's word. Shared checks: test_gaussian_sequences.py."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from scipy import stats
from torch.distributions import Independent, biject_to, kl, kl_divergence

from pyro_delta.distributions import GaussianAR1, gaussian_ar1
from pyro_delta.errors import UserError
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.rate import ar1_committed_rate, committed_rate, minimising_posterior


def test_expand_keeps_the_class_and_the_validation_flag() -> None:
    class Renamed(GaussianAR1):
        pass

    alpha = torch.tensor([0.5])
    assert type(Renamed(alpha, 2).expand((3,))) is Renamed
    assert GaussianAR1(alpha, 2, validate_args=False).expand((3,))._validate_args is False
    assert GaussianAR1(alpha, 2, validate_args=True).expand((3,))._validate_args is True


@pytest.mark.parametrize("blocks", [False, True], ids=["doubling", "blocks"])
@pytest.mark.parametrize(
    ("alpha", "length"),
    [
        ([0.5, -0.9], 1),
        ([0.0, 0.3, 0.99], 3),
        ([[[0.2]], [[-0.7]]], 7),
        ([[0.2, 0.0], [-0.7, 0.99]], 64),
        ([[[0.2, 1e-3]], [[-0.7, 0.99]]], 65),
        ([0.0, -0.9, 0.999], 32 * 33 + 5),  # blocks of blocks
    ],
)
def test_transform_is_the_recursion_with_its_gradients(
    alpha: list, length: int, blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaussian_ar1, "_blocks_pay", lambda alpha, eps: blocks)
    alpha_d = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
    prior = GaussianAR1(alpha_d, length)
    eps = torch.randn(3, *prior.batch_shape, *prior.event_shape, dtype=torch.float64, requires_grad=True)
    z = [eps[..., 0, :]]
    for t in range(1, prior.length):
        z.append(prior.alpha * z[-1] + (1 - prior.alpha**2).sqrt() * eps[..., t, :])
    expected, found = torch.stack(z, dim=-2), prior.transform(eps)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected)
    wanted, given = (
        torch.autograd.grad(values, (eps, alpha_d), weights, allow_unused=length == 1) for values in (expected, found)
    )
    torch.testing.assert_close(given[0], wanted[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given[1], torch.zeros_like(alpha_d) if length == 1 else wanted[1], rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")  # torch's own, of forward mode
@pytest.mark.parametrize("blocks", [False, True], ids=["doubling", "blocks"])
@pytest.mark.parametrize("length", [1, 3, 4, 11])
def test_derivatives_of_any_order_and_mode(length: int, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From either end, of blocks of blocks, too, against finite differences; batches of α or noise alone."""
    monkeypatch.setattr(gaussian_ar1, "_blocks_pay", lambda alpha, eps: blocks)
    monkeypatch.setattr(gaussian_ar1, "BLOCK", 3)
    alpha_ad = torch.tensor([[[0.0, 0.9]], [[-0.8, 0.3]]], dtype=torch.float64, requires_grad=True)
    weight_ad = torch.rand_like(alpha_ad, requires_grad=True)
    start_d = torch.rand(2, dtype=torch.float64, requires_grad=True)
    eps = torch.randn(2, 3, length, 2, dtype=torch.float64, requires_grad=True)

    def draw(alpha: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        return GaussianAR1(alpha, length, validate_args=False).transform(eps)

    def back(*tensors: torch.Tensor) -> torch.Tensor:
        return gaussian_ar1._Recursion.apply(*tensors, True)

    for function, inputs in ((draw, (alpha_ad, eps)), (back, (eps.mT, alpha_ad, weight_ad, start_d))):
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=function is draw)
        assert torch.autograd.gradgradcheck(function, inputs)
    torch.testing.assert_close(torch.func.vmap(draw)(alpha_ad, eps), draw(alpha_ad, eps))
    torch.testing.assert_close(torch.func.vmap(draw, (0, None))(alpha_ad, eps[0]), draw(alpha_ad, eps[:1]))
    torch.testing.assert_close(torch.func.vmap(draw, (None, 0))(alpha_ad[0], eps), draw(alpha_ad[:1], eps))
    by_rows, by_columns = (mode(draw)(alpha_ad, eps) for mode in (torch.func.jacrev, torch.func.jacfwd))
    torch.testing.assert_close(by_rows, by_columns)

    def energy(alpha: torch.Tensor) -> torch.Tensor:
        return draw(alpha, eps).square().sum()

    rows, columns = torch.func.jacrev, torch.func.jacfwd
    second = [outer(inner(energy))(alpha_ad) for outer in (rows, columns) for inner in (rows, columns)]
    for mode in () if blocks else ("reverse-mode", "forward-mode"):  # torch's older vmap knows no einsum
        over = torch.autograd.functional.hessian(energy, alpha_ad, vectorize=True, outer_jacobian_strategy=mode)
        second.append(over)
    for other in second[1:]:
        torch.testing.assert_close(other, second[0])
    third = [rows(rows(rows(energy)))(alpha_ad), columns(columns(columns(energy)))(alpha_ad)]
    torch.testing.assert_close(*third)

    along, pull = torch.randn_like(eps), torch.func.vjp(lambda alpha: draw(alpha, eps), alpha_ad)[1]
    _, pulled = torch.func.jvp(lambda gain: pull(gain)[0], (eps.detach(),), (along,))
    torch.testing.assert_close(pulled, pull(along)[0])


@pytest.mark.parametrize("blocks", [False, True], ids=["doubling", "blocks"])
def test_noise_of_another_batch_than_alpha(blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer dimensions than α, and of none at all; and as torch.compile traces it."""
    monkeypatch.setattr(gaussian_ar1, "_blocks_pay", lambda alpha, eps: blocks)
    length = 65
    alpha_ad = torch.tensor([[0.5, -0.9], [0.0, 0.3]], dtype=torch.float64, requires_grad=True)
    prior, eps = GaussianAR1(alpha_ad, length), torch.randn(length, 2, dtype=torch.float64, requires_grad=True)
    found, expected = prior.transform(eps), prior.transform(eps.expand(2, length, 2))
    torch.testing.assert_close(found, expected)
    gradients = torch.autograd.grad(found.square().sum(), (alpha_ad, eps))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), (alpha_ad, eps)))
    assert prior.rsample((0,)).shape == (0, 2, length, 2)
    (none,) = torch.autograd.grad(prior.rsample((0,)).sum(), alpha_ad)
    assert torch.equal(none, torch.zeros_like(alpha_ad))
    for shape in ((0, 2), (2, 0, 2), (0,)):
        empty = GaussianAR1(torch.tensor([0.5, -0.9]), length).expand(shape)
        assert empty.rsample().shape == empty.rsample((3,)).shape[1:] == (*shape, length, 2)
    traced = torch.compile(prior.transform, backend="eager", fullgraph=True)(eps)
    torch.testing.assert_close(traced, found)
    torch.testing.assert_close(torch.autograd.grad(traced.square().sum(), (alpha_ad, eps)), gradients)


def test_transform_takes_one_of_the_copies_of_a_plate() -> None:
    prior = GaussianAR1(torch.tensor([0.5, -0.9]), 40)
    eps = torch.randn(5, 3, 40, 2)
    torch.testing.assert_close(prior.expand((5, 3)).transform(eps), prior.transform(eps))


def test_rsample_is_transform_of_noise() -> None:
    prior = GaussianAR1(torch.tensor([0.5, 0.9]), 5)
    torch.manual_seed(3)
    z = prior.rsample((4,))
    torch.manual_seed(3)
    assert torch.equal(z, prior.transform(torch.randn(4, 5, 2)))


def test_log_prob_is_numpyro_s_state_space_model() -> None:
    """NumPyro's process starts from z_0 = 0, so it is compared on z_2..z_n with the pull of z_1 taken out."""
    jax = pytest.importorskip("jax")
    state_space = pytest.importorskip("numpyro.distributions").GaussianStateSpace
    jax.config.update("jax_enable_x64", True)
    alpha, length = np.array([0.5, -0.9, 0.0]), 32
    z = np.random.default_rng(0).normal(size=(length, 3))
    rest = z[1:] - alpha ** np.arange(1, length)[:, None] * z[:1]
    later = state_space(length - 1, np.diag(alpha), np.diag(1 - alpha**2)).log_prob(rest)
    expected = stats.norm.logpdf(z[0]).sum() + float(later)
    ours = GaussianAR1(torch.tensor(alpha), length).log_prob(torch.tensor(z))
    assert ours.item() == pytest.approx(expected, rel=1e-10)


def test_a_hundred_thousand_steps() -> None:
    alpha, length = torch.tensor([0.5, 0.99], dtype=torch.float64), 100_000
    prior = GaussianAR1(alpha, length)
    z = prior.sample()
    assert torch.isfinite(z).all()
    assert torch.isfinite(prior.log_prob(z))
    # The standard errors of the sample variance and correlation of an AR(1), over n steps.
    variance_error = (2 * (1 + alpha**2) / (1 - alpha**2) / length).sqrt()
    lag_error = ((1 - alpha**2) / length).sqrt()
    assert ((z.var(0) - 1).abs() < 4 * variance_error).all()
    lag_one = (z[1:] * z[:-1]).mean(0) / z.square().mean(0)
    assert ((lag_one - alpha).abs() < 4 * lag_error).all()
    delta = kl_divergence(minimising_posterior(prior), prior)
    torch.testing.assert_close(delta, ar1_committed_rate(alpha, length), rtol=1e-10, atol=0)


def test_kl_of_a_half_precision_posterior_keeps_the_floor() -> None:
    alpha = torch.linspace(0.5, 0.99, 64)
    q = minimising_posterior(GaussianAR1(alpha, 32)).base_dist
    half = dist.Normal(q.loc.bfloat16(), q.scale.bfloat16()).to_event(2)
    value = kl_divergence(half, GaussianAR1(alpha, 32))
    delta = ar1_committed_rate(alpha, 32)
    assert delta * (1 - 1e-6) <= value <= delta * 1.001


@pytest.mark.parametrize("sign", [1, -1])
def test_float32_keeps_the_innovations_as_alpha_goes_to_one(sign: int) -> None:
    """Innovations are a thousandth of z there: sums of z_t² and z_t z_{t−1} would cancel to an error of nats."""
    length = 32
    alpha_d = torch.tensor([sign * 0.999999])
    prior, steps = GaussianAR1(alpha_d, length), torch.arange(length)
    covariance = alpha_d.double()[:, None, None] ** (steps[:, None] - steps).abs()
    witness = dist.MultivariateNormal(torch.zeros(1, length, dtype=torch.float64), covariance)
    z = GaussianAR1(alpha_d.double(), length).sample((20,)).float()
    scale = (2e-6**0.5 * torch.randn_like(z).exp()).requires_grad_()
    q = dist.Normal(z.requires_grad_(), scale).to_event(2)
    dense = dist.MultivariateNormal(z.double().mT, scale_tril=torch.diag_embed(scale.double().mT))
    rows = [
        (prior.log_prob(z), witness.log_prob(z.double().mT).squeeze(-1), (z,)),
        (kl_divergence(q, prior), kl_divergence(dense, witness).squeeze(-1), (z, scale)),
    ]
    for found, exact, inputs in rows:
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=0.01)
        given, wanted = (torch.autograd.grad(values.sum(), inputs) for values in (found, exact))
        for ours, theirs in zip(given, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * theirs.abs().max().item())


@pytest.mark.parametrize("length", [1, 2, 5])
def test_second_derivatives_and_functorch(length: int) -> None:
    alpha, loc = torch.tensor([0.3, -0.9], dtype=torch.float64), torch.randn(4, length, 2, dtype=torch.float64)
    scale = torch.rand_like(loc) + 0.5

    def log_prob(alpha: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return GaussianAR1(alpha, length, validate_args=False).log_prob(z)

    def kl_of(alpha: torch.Tensor, loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        q = dist.Normal(loc, scale, validate_args=False).to_event(2)
        return kl_divergence(q, GaussianAR1(alpha, length, validate_args=False))

    for function, values in ((log_prob, (loc,)), (kl_of, (loc, scale))):
        free = tuple(value.clone().requires_grad_() for value in (alpha, *values))
        assert torch.autograd.gradgradcheck(function, free)
        over_batch = (None, *(0 for _ in values))
        torch.testing.assert_close(
            torch.func.vmap(function, over_batch)(alpha, *values), function(alpha, *values), rtol=1e-12, atol=0
        )
        each = torch.func.vmap(torch.func.grad(function), over_batch)(alpha, *values)
        torch.testing.assert_close(each.sum(0), torch.func.grad(lambda *v, f=function: f(*v).sum())(alpha, *values))


# --- The analytic KL inside Pyro ---


@pytest.fixture
def kl_calls(monkeypatch: pytest.MonkeyPatch):
    """Counts calls of the registered KL; torch's dispatch cache is emptied so that the count sees them."""
    calls = []
    registered = kl._KL_REGISTRY[Independent, GaussianAR1]

    def counted(q, p):
        calls.append(p)
        return registered(q, p)

    monkeypatch.setitem(kl._KL_REGISTRY, (Independent, GaussianAR1), counted)
    kl._KL_MEMOIZE.clear()
    yield calls
    kl._KL_MEMOIZE.clear()


class WithoutExpand(GaussianAR1):
    """The planted bug: Pyro then wraps the prior in an ExpandedDistribution."""

    expand = TorchDistribution.expand


@pytest.mark.parametrize(("cls", "analytic"), [(GaussianAR1, True), (WithoutExpand, False)])
def test_mean_field_elbo_uses_the_analytic_kl_inside_a_plate(cls, analytic: bool, kl_calls: list) -> None:
    alpha = torch.tensor([0.5, 0.9])
    loc, scale = torch.randn(6, 4, 2), torch.rand(6, 4, 2) + 0.1

    def model():
        with pyro.plate("data", 6):
            pyro.sample("z", cls(alpha, 4))

    def guide():
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(loc, scale).to_event(2))

    loss = TraceMeanField_ELBO().loss(model, guide)
    exact = kl_divergence(dist.Normal(loc, scale).to_event(2), GaussianAR1(alpha, 4).expand((6,))).sum().item()
    if analytic:
        assert len(kl_calls) == 2  # the ELBO's and our own
        assert loss == pytest.approx(exact, rel=1e-6)
    else:
        assert len(kl_calls) == 1  # only our own: the ELBO sampled, and said nothing
        assert abs(loss - exact) > 1e-3


def test_a_rate_in_closed_form_costs_no_density(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps without validation leave the densities of z out, and come to the same loss and gradient."""
    loc, x = torch.randn(6, 4, 2, requires_grad=True), torch.randn(6, 4, 2)
    calls: list[torch.Tensor] = []
    density = GaussianAR1.log_prob
    monkeypatch.setattr(GaussianAR1, "log_prob", lambda p, z: calls.append(z) or density(p, z))

    def model() -> None:
        with pyro.plate("data", 6):
            z = pyro.sample("z", GaussianAR1(torch.tensor([0.5, 0.9]), 4))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(2), obs=x)

    def guide() -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(2))

    def step(validate: bool) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        with pyro.validation_enabled(validate):
            loss = RateDistortionELBO(analytic_kl=True, max_plate_nesting=1).differentiable_loss(model, guide)
        return loss.detach(), torch.autograd.grad(loss, loc)[0]

    validated, count = step(True), len(calls)
    bare = step(False)
    assert count == len(calls) == 1
    assert all(map(torch.equal, validated, bare))


# --- Mistakes ---


@pytest.mark.parametrize(
    ("alpha", "length", "message"),
    [
        (torch.tensor([0.5]), 0, "length 0"),
        (torch.tensor([0.5]), 2.0, "length 2.0"),
        (torch.tensor([0.5]), True, "length True"),
        (torch.tensor(0.5), 2, r"shape \(\)"),
        (torch.tensor([0]), 2, "int64"),
        (torch.tensor([1.0]), 2, "alpha"),
        (torch.tensor([-1.5]), 2, "alpha"),
        (torch.tensor([math.nan]), 2, "alpha"),
    ],
)
def test_bad_arguments(alpha: torch.Tensor, length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianAR1(alpha, length)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([2, 4]), r"^GaussianAR1 of 3 steps got the length 4; give lengths of 1 to 3\.$"),
        (torch.tensor([0, 3]), r"^GaussianAR1 of 3 steps got the length 0; give lengths of 1 to 3\.$"),
        (torch.tensor([2.0]), r"^GaussianAR1 got lengths of type torch.float32; give integers, one a sequence\.$"),
    ],
)
def test_bad_lengths(lengths: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GaussianAR1(torch.tensor([0.5]), 3, lengths)


def test_a_prefix_is_the_process_of_that_length() -> None:
    """Draws, KL, and δ; the padding costs nothing where the posterior has N(0, 1) there, and something elsewhere."""
    alpha, lengths = torch.tensor([0.9, -0.5], dtype=torch.float64), torch.tensor([1, 2, 4, 6])
    prior = GaussianAR1(alpha, 6, lengths)
    eps, loc, scale = torch.randn(4, 6, 2).double(), torch.randn(4, 6, 2).double(), torch.rand(4, 6, 2).double() + 0.1
    inside = prior.inside()
    rate = kl_divergence(dist.Normal(loc, scale).to_event(2), prior)
    tight = dist.Normal(torch.where(inside, loc, 0.0), torch.where(inside, scale, 1.0)).to_event(2)
    z = prior.transform(eps)
    for i, n in enumerate(lengths.tolist()):
        short, q = GaussianAR1(alpha, n), dist.Normal(loc[i, :n], scale[i, :n]).to_event(2)
        torch.testing.assert_close(z[i, :n], short.transform(eps[i, :n]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(kl_divergence(tight, prior)[i], kl_divergence(q, short), rtol=1e-12, atol=1e-12)
        behind = dist.Normal(0.0, 1.0).log_prob(eps[i, n:]).sum()
        torch.testing.assert_close(prior.log_prob(z)[i] - behind, short.log_prob(z[i, :n]), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(committed_rate(prior)[i], ar1_committed_rate(alpha, n), rtol=1e-12, atol=0)
    assert (rate[:3] > kl_divergence(tight, prior)[:3]).all()
    with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 4):
        drawn = pyro.poutine.trace(lambda: pyro.sample("z", prior)).get_trace().nodes["z"]
    assert type(drawn["fn"]) is GaussianAR1
    assert drawn["fn"].lengths.shape == (5, 4)


def test_bad_sample_is_refused() -> None:
    prior = GaussianAR1(torch.tensor([0.5]), 3)
    with pytest.raises(ValueError):
        prior.log_prob(torch.zeros(4, 1))
    with pytest.raises(ValueError):
        prior.log_prob(torch.full((3, 1), math.nan))


@pytest.mark.parametrize(
    "q",
    [dist.Laplace(torch.zeros(3, 1), 1.0).to_event(2), dist.Normal(torch.zeros(2, 3, 1), 1.0).to_event(3)],
    ids=["another family", "another number of event dimensions"],
)
def test_kl_of_other_posteriors_is_not_claimed(q: dist.Independent) -> None:
    with pytest.raises(NotImplementedError, match="KL to GaussianAR1"):
        kl_divergence(q, GaussianAR1(torch.tensor([0.5]), 3))


def test_alpha_can_be_learned_through_its_constraint() -> None:
    to_alpha = biject_to(GaussianAR1.arg_constraints["alpha"])
    free = torch.tensor([-3.0, 0.0, 3.0])
    alpha = to_alpha(free)
    torch.testing.assert_close(alpha, free.tanh())
    torch.testing.assert_close(to_alpha.inv(alpha), free, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.9, 0.99999, 1 - 1e-6, -0.99999])
def test_long_draws_keep_single_precision(alpha: float) -> None:
    """Powers that follow from block to block in it would be off by 1e-4."""
    alpha_d, eps = torch.tensor([alpha]), torch.randn(100_000, 1)
    found, exact = (
        GaussianAR1(a, len(eps)).transform(e) for a, e in ((alpha_d, eps), (alpha_d.double(), eps.double()))
    )
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("alpha", [0.9, -0.3, 0.06, 0.01, 1e-8, 0.0])
def test_powers_hold_no_subnormal_numbers(alpha: float) -> None:
    """By which products take ten times as long; their derivatives stay, those of flushed ones, too."""
    alpha_d = torch.tensor([alpha], requires_grad=True)
    (powers_b,), _ = gaussian_ar1._powers(alpha_d, 32, torch.float32)
    exact_b = torch.tensor(alpha, dtype=torch.float64) ** torch.arange(32)
    torch.testing.assert_close(powers_b.double(), exact_b, rtol=1e-5, atol=1e-27)
    assert ((powers_b == 0) | (powers_b.abs() > torch.finfo().tiny)).all()
    for power in range(1, 6):
        (slope,) = torch.autograd.grad(powers_b[power], alpha_d, retain_graph=True)
        torch.testing.assert_close(slope.item(), power * alpha ** (power - 1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("batch", "alphas", "length", "blocks"),
    [
        (1, 1, 64, False),
        (10**4, 1, 64, False),
        (64, 1, 65, True),
        (62, 1, 65, False),
        (64, 64, 65, False),
        (1, 1, 10**5, True),
    ],
)
def test_blocks_are_for_much_noise_and_few_alphas(batch: int, alphas: int, length: int, blocks: bool) -> None:
    alpha = torch.full((alphas, 1), 0.5)
    assert gaussian_ar1._blocks_pay(alpha, torch.empty(batch, length, 1, device="meta")) is blocks


@pytest.mark.parametrize("length", [32, 100, 2000])
@pytest.mark.parametrize("strict", [False, True])
def test_draws_are_exported_with_a_free_batch(length: int, strict: bool) -> None:
    class Draw(torch.nn.Module):
        def forward(self, eps: torch.Tensor) -> torch.Tensor:
            return GaussianAR1(torch.tensor([0.5, -0.9]), length, validate_args=False).transform(eps)

    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    program = torch.export.export(Draw(), (torch.randn(3, length, 2),), dynamic_shapes=(batch,), strict=strict)
    eps = torch.randn(7, length, 2)
    torch.testing.assert_close(program.module()(eps), Draw()(eps))


def test_numpy_s_whole_numbers_are_lengths() -> None:
    assert GaussianAR1(torch.tensor([0.5]), np.int64(3)).length == 3
