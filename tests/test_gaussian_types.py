"""Gaussians by their class, against dense algebra and against their own density; and what may not count as one."""

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch import distributions as torch_dist
from torch.distributions import Distribution, transforms

from pyro_delta.distributions import GaussianAR1, GaussianSequence
from pyro_delta.distributions.any_gaussian import as_gaussian
from pyro_delta.distributions.gaussian_types import gaussian_by_type
from pyro_delta.errors import UserError

F64 = torch.float64
torch.manual_seed(0)
ROOT = torch.randn(2, 6, 12, dtype=F64)
COVARIANCE = ROOT @ ROOT.mT / 6
MEAN = torch.randn(2, 6, dtype=F64)
FACTOR, NOISE = torch.randn(6, 2, dtype=F64), torch.rand(6, dtype=F64) + 0.5
ORDER = torch.tensor([3, 0, 5, 1, 2, 4])
ALPHA = torch.tensor([0.5, -0.8], dtype=F64)
MOVED, SCALED = torch.randn(3, 2, dtype=F64), torch.tensor([[0.5, 2.0], [-3.0, 1.0], [0.1, 4.0]], dtype=F64)


def ar1_covariance() -> Tensor:
    """Of three steps of two dimensions, flattened as the event is."""
    steps = (torch.arange(3)[:, None] - torch.arange(3)).abs()
    return torch.stack([alpha**steps for alpha in ALPHA], -1).diag_embed().movedim(2, 1).reshape(6, 6)


def blocks(covariance: Tensor) -> Tensor:
    return torch.block_diag(*covariance)


AR1, RESHAPED = GaussianAR1(ALPHA, 3), transforms.ReshapeTransform((6,), (3, 2))
CHOLESKY = torch.linalg.cholesky(COVARIANCE)
NORMAL = dist.Normal(MEAN, 0.5 + torch.arange(12, dtype=F64).reshape(2, 6))


def moved(base: Distribution, *parts: transforms.Transform) -> Distribution:
    return dist.TransformedDistribution(base, list(parts))


KNOWN: dict[str, tuple[Distribution, Tensor, Tensor]] = {
    "normal": (NORMAL.to_event(1), MEAN, NORMAL.scale.square().diag_embed()),
    "torch's normal": (
        torch_dist.Independent(torch_dist.Normal(MEAN, NORMAL.scale), 2),
        MEAN.flatten(),
        NORMAL.scale.square().flatten().diag(),
    ),
    "covariance": (dist.MultivariateNormal(MEAN, COVARIANCE), MEAN, COVARIANCE),
    "precision": (dist.MultivariateNormal(MEAN, precision_matrix=torch.linalg.inv(COVARIANCE)), MEAN, COVARIANCE),
    "factor": (torch_dist.MultivariateNormal(MEAN, scale_tril=CHOLESKY), MEAN, COVARIANCE),
    "one factor for all": (dist.MultivariateNormal(MEAN, COVARIANCE[0]), MEAN, COVARIANCE[:1].expand(2, 6, 6)),
    "low rank": (
        dist.LowRankMultivariateNormal(MEAN, FACTOR, NOISE),
        MEAN,
        (FACTOR @ FACTOR.mT + NOISE.diag()).expand(2, 6, 6),
    ),
    "blocks": (dist.MultivariateNormal(MEAN, COVARIANCE).to_event(1), MEAN.flatten(), blocks(COVARIANCE)),
    "AR(1)": (AR1, torch.zeros(6, dtype=F64), ar1_covariance()),
    "AR(1) in a plate": (
        AR1.expand((2,)).to_event(1),
        torch.zeros(12, dtype=F64),
        torch.block_diag(ar1_covariance(), ar1_covariance()),
    ),
    "sequence": (
        GaussianSequence(MEAN.reshape(2, 3, 2), torch.linalg.cholesky(torch.stack([c[:3, :3] for c in COVARIANCE]))),
        MEAN,
        torch.stack([c[:3, :3] for c in COVARIANCE], -1).diag_embed().movedim(2, 1).reshape(6, 6).expand(2, 6, 6),
    ),
    "moved AR(1)": (
        moved(AR1, transforms.AffineTransform(MOVED, SCALED)),
        MOVED.flatten(),
        SCALED.flatten() * ar1_covariance() * SCALED.flatten()[:, None],
    ),
    "moved twice, reshaped": (
        moved(
            dist.MultivariateNormal(MEAN, COVARIANCE),
            transforms.ComposeTransform([transforms.AffineTransform(1.0, 2.0), RESHAPED]),
            transforms.IndependentTransform(transforms.AffineTransform(MOVED, SCALED), 2),
        ),
        MOVED.flatten() + SCALED.flatten() * (1 + 2 * MEAN),
        4 * SCALED.flatten() * COVARIANCE * SCALED.flatten()[:, None],
    ),
    "mapped and permuted": (
        moved(
            dist.MultivariateNormal(MEAN, COVARIANCE),
            dist.transforms.LowerCholeskyAffine(MEAN[0], CHOLESKY[0]),
            dist.transforms.Permute(ORDER),
        ),
        (MEAN[0] + (CHOLESKY[0] @ MEAN.unsqueeze(-1)).squeeze(-1))[:, ORDER],
        (CHOLESKY[0] @ COVARIANCE @ CHOLESKY[0].mT)[:, ORDER][:, :, ORDER],
    ),
    "moved normal": (
        moved(dist.Normal(torch.zeros(3, 2, dtype=F64), 1.0), transforms.AffineTransform(MOVED, SCALED, event_dim=2)),
        MOVED.flatten(),
        SCALED.square().flatten().diag(),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("known", "mean", "covariance"), KNOWN.values(), ids=KNOWN)
def test_mean_and_precision_of_a_type(known: Distribution, mean: Tensor, covariance: Tensor) -> None:
    found = gaussian_by_type(known)
    assert found is not None
    assert found.cap_nats is None
    assert found.event_shape == known.event_shape
    torch.testing.assert_close(found.mean, mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.linalg.inv(found.precision), covariance, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.log_det, -torch.logdet(covariance), rtol=1e-9, atol=1e-9)
    x = known.sample()
    away = x.flatten(len(known.batch_shape)) - found.mean
    form = torch.einsum("...i,...ij,...j->...", away, found.precision, away)
    density = 0.5 * (found.log_det - form - away.shape[-1] * math.log(2 * math.pi))
    torch.testing.assert_close(density, known.log_prob(x), rtol=1e-9, atol=1e-9)


def test_single_precision_parameters_are_read_in_double() -> None:
    prior = dist.MultivariateNormal(MEAN.float(), COVARIANCE.float())
    factor = prior.scale_tril.double()
    found = as_gaussian(prior)
    torch.testing.assert_close(torch.linalg.inv(found.precision), factor @ factor.mT, rtol=1e-10, atol=1e-10)


class OwnNormal(dist.Normal):
    """A subclass may have another density, and this one does not."""


class OwnMultivariate(dist.MultivariateNormal):
    pass


class OwnTransformed(dist.TransformedDistribution):
    pass


@pytest.mark.parametrize(
    "other",
    [
        OwnNormal(MEAN, 1.0).to_event(1),
        OwnMultivariate(MEAN, COVARIANCE),
        OwnTransformed(AR1, [transforms.AffineTransform(0.0, 2.0)]),
        moved(OwnMultivariate(MEAN, COVARIANCE), transforms.AffineTransform(0.0, 2.0)),
        moved(AR1, transforms.AffineTransform(0.0, 0.0)),
        moved(AR1, transforms.ExpTransform()),
        moved(dist.MultivariateNormal(MEAN, COVARIANCE), transforms.LowerCholeskyTransform()),
        dist.Normal(MEAN, 1.0).to_event(1).mask(False),
        dist.Laplace(MEAN, 1.0).to_event(1),
        dist.Normal(MEAN, -1.0, validate_args=False).to_event(1),
    ],
    ids=lambda other: type(other).__name__,
)
def test_others_are_known_by_no_type(other: Distribution) -> None:
    assert gaussian_by_type(other) is None


# --- Probing: what is honest passes, and what it certifies is bounded ---


class Quadratic(dist.TorchDistribution):
    """A Gaussian whose log density is written out, with the logarithm of a determinant."""

    arg_constraints, support = {}, torch_dist.constraints.real_vector

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.loc, self.covariance = mean, covariance
        super().__init__(torch.Size(), mean.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        away = value - self.loc
        form = (away @ torch.linalg.inv(self.covariance) * away).sum(-1)
        return -0.5 * (form + torch.logdet(self.covariance) + len(self.loc) * math.log(2 * math.pi))


class OwnAR1(GaussianAR1):
    pass


def matern(length: int, scale: float, terms: int) -> Tensor:
    x = math.sqrt(2 * terms + 1) * (torch.arange(length)[:, None] - torch.arange(length)).abs().double() / scale
    return torch.exp(-x) * [1 + 0 * x, 1 + x, 1 + x + x.square() / 3][terms]


def correlated(length: int, alpha: float) -> Tensor:
    return torch.tensor(alpha, dtype=F64) ** (torch.arange(length)[:, None] - torch.arange(length)).abs()


def dense(size: int) -> Tensor:
    root = torch.randn(size, 2 * size, dtype=F64)
    return root @ root.mT / size


def lattice() -> Distribution:
    return OwnMultivariate(torch.zeros(144, dtype=F64), torch.kron(correlated(12, 0.9), correlated(12, 0.9)))


def single_precision() -> Distribution:
    return OwnMultivariate(torch.zeros(128), scale_tril=torch.linalg.cholesky(correlated(128, 0.9999)).float())


def hmm() -> Distribution:
    """Its density is off by 1.6e-8 nats."""
    noise, start, observation = (dist.Normal(torch.zeros(1), scale).to_event(1) for scale in (0.6, 1.0, 1e-2))
    return dist.GaussianHMM(start, torch.tensor([[0.8]]), noise, torch.eye(1), observation, duration=9)


HONEST: dict[str, tuple[Callable[[], Distribution], float]] = {
    "32 numbers": (lambda: Quadratic(torch.zeros(32, dtype=F64), correlated(32, 0.5)), 27),
    "AR(1), 128 numbers": (lambda: OwnAR1(torch.full((4,), 0.9), 32), 26),
    "AR(1), 250 numbers, α = .9999": (lambda: OwnAR1(torch.tensor([0.9999]), 250), 18),
    "its covariance": (lambda: Quadratic(torch.zeros(250, dtype=F64), correlated(250, 0.9999)), 18),
    "dense, 200 numbers, far away": (lambda: Quadratic(1e4 * torch.randn(200, dtype=F64), dense(200)), 19),
    "Matérn 5/2, smooth": (lambda: Quadratic(torch.zeros(64, dtype=F64), matern(64, 16.0, 2)), 15),
    "lattice": (lattice, 23),
    "single precision": (single_precision, 18),
    "constants of single precision": (hmm, 17),
}


@pytest.mark.parametrize(("made", "cap"), HONEST.values(), ids=HONEST)
def test_honest_gaussians_pass_with_the_cap_that_rounding_leaves(made: Callable[[], Distribution], cap: float) -> None:
    torch.manual_seed(1)
    found = as_gaussian(made()).cap_nats
    assert found is not None
    assert abs(found - cap) <= 1  # a draw of the points moves it


class Mixture(dist.TorchDistribution):
    """(1 − w) of an AR(1) process and w of a Gaussian far away."""

    arg_constraints, support = {}, GaussianAR1.support

    def __init__(self, weight: float) -> None:
        self.near, self.weight = GaussianAR1(torch.full((4,), 0.9), 32, validate_args=False), weight
        self.far = dist.Normal(torch.full((32, 4), 40.0), 0.5, validate_args=False).to_event(2)
        super().__init__(torch.Size(), self.near.event_shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        parts = math.log1p(-self.weight) + self.near.log_prob(value), math.log(self.weight) + self.far.log_prob(value)
        return torch.stack(parts).logsumexp(0)


@pytest.mark.parametrize("exponent", range(2, 16))
def test_a_probe_certifies_no_more_than_a_mixture_may_hide(exponent: int) -> None:
    """The posterior that is the far part has a KL of −ln w, up to the near part's density there, which is nothing."""
    weight = 10.0**-exponent
    prior = Mixture(weight)
    x = prior.far.sample((100,)).double()
    kl = (prior.far.log_prob(x) - prior.log_prob(x)).mean().item()
    assert kl == pytest.approx(-math.log(weight), rel=1e-6)
    if exponent < 5:
        with pytest.raises(UserError, match="at its mode the log density is"):
            as_gaussian(prior)
        return
    cap = as_gaussian(prior).cap_nats
    assert cap is not None
    assert cap <= kl
    assert cap > min(kl, 26) - 2  # and what may be said is said
