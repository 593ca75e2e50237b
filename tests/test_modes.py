"""What a prior's rate can carry: modes against dense algebra, and against posteriors that speak in them."""

import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from PIL import Image
from test_cli import call
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.steps import slowest_modes
from pyro_delta.distributions import GaussianAR1, GaussianSequence
from pyro_delta.distributions.any_gaussian import as_gaussian
from pyro_delta.errors import UserError
from pyro_delta.models import ARPrior, LatticePrior, MaternPrior
from pyro_delta.rate import committed_rate, minimising_posterior, modes

SPEC = ImageSpec(1, 8, 8, 17)


def spread(*alpha: float) -> Tensor:
    return torch.tensor(alpha, dtype=torch.float64)


PRIORS: dict[str, Distribution] = {
    "ar1": GaussianAR1(spread(0.9), 12),
    "ar1, two dimensions": GaussianAR1(spread(0.5, -0.8), 7),
    "no correlation": GaussianAR1(spread(0.0), 5),
    "one step": GaussianAR1(spread(0.7), 1),
    "ar(2)": ARPrior(SPEC, dims=2).double()(),
    "lattice": LatticePrior(SPEC, dims=1, alpha=0.8).double()(),
    "matern": MaternPrior(SPEC, dims=2, length_scale=2.0).double()(),
    "a batch": GaussianAR1(torch.tensor([[0.3, 0.6], [0.9, 0.1]], dtype=torch.float64), 4),
}


def dense_precision(prior: Distribution) -> np.ndarray:
    """(..., d, n, n), by the inverse of covariances that are sampled by nothing but the definition of the prior."""
    steps = prior.event_shape[0]
    if isinstance(prior, GaussianSequence):
        return np.linalg.inv((prior.scale_tril @ prior.scale_tril.mT).numpy())
    lag = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    return np.linalg.inv(prior.alpha.numpy()[..., None, None] ** lag)


@pytest.mark.parametrize("blocks", [None, 1, 3])
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_eigenvalues(prior: Distribution, blocks: int | None) -> None:
    if (blocks or 1) > prior.event_shape[0]:
        with pytest.raises(UserError, match="do not fit"):
            modes(prior, blocks)
        return
    precision = dense_precision(prior)
    block = np.arange(prior.event_shape[0]) // (blocks or 1)
    diagonal = precision * (block[:, None] == block)
    expected = np.linalg.eigvals(np.linalg.inv(diagonal) @ precision).real
    expected = np.sort(expected.reshape(*prior.batch_shape, -1), -1)
    found = modes(prior, blocks)
    np.testing.assert_allclose(found.values.numpy(), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(-0.5 * found.values.log().sum(-1), committed_rate(prior, blocks), rtol=1e-9, atol=1e-9)


def test_the_numbers_of_a_long_chain() -> None:
    found = modes(GaussianAR1(torch.full((4,), 0.9, dtype=torch.float64), 32))
    assert found.least.item() == pytest.approx(0.0076, abs=5e-5)
    assert found.ideal_nats.item() == pytest.approx(54.15, abs=0.01)
    assert found.excess_nats.item() == pytest.approx(20.51, abs=0.01)
    assert found.waste_nats.item() == pytest.approx(5.27, abs=0.01)


def test_a_posterior_that_speaks_in_every_mode_costs_the_excess() -> None:
    """Means that are drawn so that the posteriors together are the prior in the modes below 1."""
    prior = GaussianAR1(spread(0.8), 6)
    precision = torch.from_numpy(dense_precision(prior)[0])
    scale = minimising_posterior(prior).base_dist.scale[:, 0]
    white = scale[:, None] * precision * scale  # in units of the posterior's deviation
    value, vector = torch.linalg.eigh(white)
    variance = torch.where(value < 1, 1 / value - 1, 0.0)
    torch.manual_seed(0)
    mean = (torch.randn(200_000, 6, dtype=torch.float64) * variance.sqrt()) @ vector.T * scale
    rate = kl_divergence(dist.Normal(mean[..., None], scale[:, None].expand(6, 1)).to_event(2), prior)
    found = modes(prior)
    above = rate - committed_rate(prior)
    assert above.mean().item() == pytest.approx(found.excess_nats.item(), abs=5 * above.std().item() / 200_000**0.5)
    information = 0.5 * torch.where(value < 1, (1 + variance).log(), 0.0).sum()  # of a Gaussian channel
    assert found.ideal_nats.item() == pytest.approx(information.item(), rel=1e-9)


def test_other_priors_have_no_modes() -> None:
    with pytest.raises(UserError, match="is not Gaussian"):
        modes(dist.StudentT(torch.full((4, 2), 9.0)).to_event(2))


def test_command(tmp_path) -> None:
    code, out, err = call("delta", "--length", "32", "--dims", "4", "--alpha", "0.9", "--modes", "--json")
    assert code == 0, err
    numbers = json.loads(out)
    assert numbers["least_mode"] == pytest.approx(0.0076, abs=5e-5)
    assert numbers["ideal_nats"] == pytest.approx(54.15, abs=0.01)
    figure = tmp_path / "modes.png"
    code, out, err = call(
        "delta", "--length", "8", "--dims", "2", "--alpha", "0.5:0.9", "--modes", "--plot", str(figure)
    )
    assert code == 0, err
    assert "tells ideally" in out
    with Image.open(figure) as picture:
        assert f"{figure}: {picture.info['Description']}" in out
    code, _, err = call("delta", "--length", "5000", "--dims", "2", "--alpha", "0.5", "--modes")
    assert code == 2
    assert err == "pyro-delta: the modes of 5000 steps take minutes; give at most 4096 steps.\n"


@pytest.mark.parametrize("alpha", [0.5, -0.9, 0.99])
def test_a_chain_longer_than_a_dense_matrix_is_for(alpha: float) -> None:
    """They sum to their number, their product is the rate's, and they are those of a cosine but for the ends."""
    prior = GaussianAR1(spread(alpha, 0.3), 1500)
    found = modes(prior)
    assert found.values.sum().item() == pytest.approx(3000, rel=1e-12)
    torch.testing.assert_close(-0.5 * found.values.log().sum(), committed_rate(prior), rtol=1e-9, atol=0)
    inside = 1 - 2 * abs(alpha) / (1 + alpha**2)
    assert inside < found.least.item() < inside + 1e-4
    with pytest.raises(UserError, match=r"1500 matrix; use at most 512\.$"):
        modes(prior, 2)


@pytest.mark.parametrize("blocks", [None, 2])
def test_correlations_across_dimensions_count(blocks: int | None) -> None:
    """Against the eigenvalues of B⁻¹Λ by NumPy, for a covariance that joins all steps and dimensions."""
    n, d = 4, 2
    root = torch.randn(n * d, n * d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = root @ root.T + torch.eye(n * d)
    prior = dist.TransformedDistribution(
        dist.MultivariateNormal(torch.zeros(n * d, dtype=torch.float64), covariance_matrix=covariance),
        [dist.transforms.ReshapeTransform((n * d,), (n, d))],
    )
    precision, size = np.linalg.inv(covariance.numpy()), blocks or 1
    block = np.array([(t // size, k) for t in range(n) for k in range(d)])
    within = (block[:, None] == block).all(-1)
    expected = np.sort(np.linalg.eigvals(np.linalg.inv(precision * within) @ precision).real)
    found = modes(prior, blocks)
    assert found.values.numpy() == pytest.approx(expected)
    assert float(committed_rate(prior, blocks)) == pytest.approx(-0.5 * np.log(expected).sum())


@pytest.mark.parametrize("name", [name for name in PRIORS if name != "a batch"])
def test_directions_of_the_slowest_modes(name: str) -> None:
    """Eigenvectors of the definition, Λ v = m B v, each a standard deviation of the prior long; others tell nothing."""
    prior = PRIORS[name]
    steps, dims = prior.event_shape
    if name == "lattice":  # which is no GaussianSequence
        gaussian = as_gaussian(prior)
        precision = gaussian.precision
    else:
        parts = torch.as_tensor(dense_precision(prior)).expand(dims, steps, steps)
        precision = torch.zeros(steps, dims, steps, dims, dtype=torch.float64)
        for k in range(dims):
            precision[:, k, :, k] = parts[k]
        precision = precision.reshape(steps * dims, -1)
    found, values = slowest_modes(prior, 3), modes(prior).values
    assert len(found) == min(3, int((values < 1 - 1e-9).sum()))
    for v, m in zip(found.flatten(1), values):
        torch.testing.assert_close(precision @ v, m * precision.diagonal() * v)
        assert (v @ precision @ v).item() == pytest.approx(1)
    if name == "ar1":  # the slowest way is that of all steps together
        assert (found[0].sign() == found[0, 0].sign()).all()
