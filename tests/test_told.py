"""What z tells the decoder, against a model that is enumerated, and its errors against the spread of many draws."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_delta
from pyro_delta.data import Split
from pyro_delta.diagnostics.bounds import Encoding, encode
from pyro_delta.diagnostics.told import calibration, contrast, group_sizes, tempered, told
from pyro_delta.diagnostics.usage import least_told, mutual_information
from pyro_delta.errors import UserError
from pyro_delta.vae import VAE

P_X = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64)
"""q(z | x)"""
P = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.3, 0.1, 0.6]], dtype=torch.float64)
"""p(x | z)"""
Q_Z = P_X @ Q
INFORMATION = (P_X[:, None] * Q * (Q / Q_Z).log()).sum().item()


def discrete(likelihood: Tensor = P) -> VAE:
    """One latent of three values, data of three values."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(Q_Z))
            pyro.sample("x", dist.Categorical(likelihood[z]), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(Q[x]))

    return VAE(model, guide)


def expected(size: int, likelihood: Tensor = P, tau: float = 1.0) -> float:
    """The bound's mean over M independent pairs, by summing over all of them."""
    total = 0.0
    for x, *zs in itertools.product(range(3), repeat=size + 1):
        chance = P_X[x] * Q[x, zs[0]] * math.prod(Q_Z[z] for z in zs[1:])
        critic = tau * likelihood[zs, x].log()
        total += (chance * (critic[0] - critic.exp().mean().log())).item()
    return total


OVERCONFIDENT = P.pow(4) / P.pow(4).sum(1, keepdim=True)


@pytest.mark.parametrize("likelihood", [P, OVERCONFIDENT], ids=["honest", "overconfident"])
def test_both_are_what_enumeration_says(likelihood: Tensor) -> None:
    torch.manual_seed(1)  # other noise than that of the posterior samples
    x = dist.Categorical(P_X).sample((1000,))
    size = 4
    vae = discrete(likelihood)
    found = told(vae, Split(x), encode(vae, x), samples=size, images=1000)
    assert (found["told_samples"], found["told_images"], found["told_judged"]) == (4, 1000, 500)
    assert found["told_cap_nats"] == math.log(size)
    plain = expected(size, likelihood)
    tempered_one = expected(size, likelihood, found["told_tau"])
    assert 0 < found["told_nats_se"] < 0.08
    assert found["told_nats"] == pytest.approx(plain, abs=4 * found["told_nats_se"])
    assert found["told_calibrated_nats"] == pytest.approx(tempered_one, abs=4 * found["told_calibrated_nats_se"])
    for nats in (plain, tempered_one):
        assert nats < min(INFORMATION, math.log(size))
    if likelihood is OVERCONFIDENT:
        assert found["told_tau"] < 0.6
        assert tempered_one > plain + 0.03


def pairs(groups: int, size: int, dims: int, noise: float) -> Tensor:
    """Log-critics of a linear-Gaussian channel, z = x + noise: log N(z_j; x_i, noise²)."""
    x, z = torch.randn(2, groups, size, dims, dtype=torch.float64)
    z = x + noise * z
    return -0.5 * (x[:, :, None] - z[:, None]).square().sum(-1) / noise**2


@pytest.mark.parametrize(
    ("groups", "size", "dims", "noise", "tau"),
    [(4, 64, 1, 1.0, 1.0), (4, 64, 4, 0.5, 1.0), (4, 64, 4, 0.5, 4.0), (2, 64, 1, 5.0, 1.0)],
)
def test_the_error_is_the_spread_over_draws(groups: int, size: int, dims: int, noise: float, tau: float) -> None:
    """Terms of a group are dependent, for they share their samples: at noise 5 they count for a third of themselves."""
    drawn = torch.tensor([contrast(tau * pairs(groups, size, dims, noise)) for _ in range(300)])
    assert drawn[:, 1].mean().item() == pytest.approx(drawn[:, 0].std().item(), rel=0.13)
    assert drawn[:, 0].mean() < dims * 0.5 * math.log1p(noise**-2)


def test_tau_is_the_best_on_a_grid() -> None:
    for scale in (0.5, 1.0, 3.0):
        critic = scale * pairs(2, 40, 2, 0.7)
        critic = critic - critic.diagonal(dim1=1, dim2=2).unsqueeze(2)
        grid = torch.linspace(0, 1, 401).tolist()
        bounds = [contrast(tempered(critic, tau))[0] for tau in grid]
        assert calibration(critic) == pytest.approx(grid[bounds.index(max(bounds))], abs=0.003)


@pytest.mark.parametrize(
    ("critic", "tau", "nats"),
    [
        (torch.zeros(2, 5, 5), 1.0, 0.0),
        (torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()[None], 0.0, 0.0),  # every wrong z is better than the right one
        (torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]]).double()[None], 1.0, math.log(2)),  # z rules the other out
        (torch.tensor([[0.0, -math.inf], [2.0, 0.0]]).double()[None], 0.0, 0.3466),
    ],
)
def test_calibration_at_its_ends(critic: Tensor, tau: float, nats: float) -> None:
    assert calibration(critic) == pytest.approx(tau, abs=1e-3)
    assert contrast(tempered(critic, calibration(critic)))[0] == pytest.approx(nats, abs=1e-3)


def two_sites(*, hears: bool) -> VAE:
    """Two latent sites, the second in a plate dimension of its own; the decoder may hear neither."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal((a + b) if hears else 0.1 * torch.ones_like(x), 0.3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x / 3, 0.8).to_event(1))
            pyro.sample("b", dist.Normal(x - a, 0.3).to_event(1))

    return VAE(model, guide)


def test_several_sites_by_the_double_loop() -> None:
    x, vae = torch.randn(21, 2), two_sites(hears=True)
    encoding = encode(vae, x, seed=1)
    found = told(vae, Split(x), encoding, samples=5, images=20, seed=3)
    assert (found["told_samples"], found["told_images"], found["told_judged"]) == (5, 20, 10)
    order = np.random.default_rng([3, 11]).permutation(21)[:20].reshape(4, 5)
    centre = (encoding.z["a"] + encoding.z["b"]).double()

    def by_hand(groups: np.ndarray, tau: float) -> float:
        terms = []
        for group in groups:
            for i in group:
                log_p = [tau * dist.Normal(centre[j], 0.3).log_prob(x[i].double()).sum() for j in group]
                terms.append(log_p[list(group).index(i)] - torch.stack(log_p).logsumexp(0) + math.log(5))
        return torch.stack(terms).mean().item()

    assert found["told_nats"] == pytest.approx(by_hand(order, 1.0), rel=1e-5)
    tau = found["told_tau"]
    assert tau < 1
    assert by_hand(order[:2], tau) > max(by_hand(order[:2], part * tau) for part in (0.9, 1.1))
    assert found["told_calibrated_nats"] == pytest.approx(by_hand(order[2:], tau), rel=1e-5)


def test_a_decoder_that_does_not_hear_z_is_told_exactly_nothing() -> None:
    x, vae = torch.randn(300, 2), two_sites(hears=False)
    found = told(vae, Split(x), encode(vae, x))
    assert found["told_nats"] == found["told_calibrated_nats"] == 0
    assert found["told_nats_se"] < 1e-12
    assert found["told_tau"] == 1


@pytest.mark.parametrize(
    ("count", "options", "plan"),
    [
        (10_000, {}, (64, 4)),
        (360, {}, (64, 4)),
        (130, {}, (64, 2)),
        (100, {}, (50, 2)),
        (10_000, {"samples": 200}, (200, 2)),
        (10_000, {"samples": 16, "images": 1024}, (16, 64)),
        (5, {}, (2, 2)),
    ],
)
def test_groups(count: int, options: dict[str, int], plan: tuple[int, int]) -> None:
    assert group_sizes(count, **options) == plan


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (3, {}, "there are 3 data; to compare latents takes 4, so give more."),
        (1, {}, "there is 1 datum; to compare latents takes 4, so give more."),
        (9, {"samples": 1}, "told_samples=1 compares z with nothing; give 2 or more."),
    ],
)
def test_too_little_to_compare(count: int, options: dict[str, int], words: str) -> None:
    with pytest.raises(UserError) as caught:
        group_sizes(count, **options)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("nats", "error", "judged", "least"),
    [
        (0.3, 0.05, 10**6, 0.3 - 2.3263 * 0.05),
        (0.3, 0.05, 6, 0.3 - 3.36493 * 0.05),
        (0.3, 0.05, 5, -math.inf),
        (0.0, 0.0, 6, 0.0),
    ],
)
def test_the_lower_bound_widens_with_few_data(nats: float, error: float, judged: int, least: float) -> None:
    numbers = {"told_calibrated_nats": nats, "told_calibrated_nats_se": error, "told_judged": judged}
    assert least_told(numbers) == pytest.approx(least, abs=1e-5)


# --- The same error, of the mutual information ---


def gaussian_encoding(count: int, scale: float) -> Encoding:
    mean = torch.randn(count, 1, 2)
    wide = torch.full_like(mean, scale)
    z = mean + wide * torch.randn_like(mean)
    empty = torch.zeros(count)
    return Encoding(empty, True, empty, {"z": mean}, {"z": wide}, {"z": z}, mean_field=True, apart=True, scored=1)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_error_of_the_mutual_information_is_the_spread_over_draws(scale: float) -> None:
    drawn = torch.tensor([mutual_information(gaussian_encoding(150, scale), chunk=64) for _ in range(250)])
    assert drawn[:, 1].mean().item() == pytest.approx(drawn[:, 0].std().item(), rel=0.15)


@pytest.mark.parametrize("judge", [contrast, calibration])
def test_numbers_that_are_not_finite_stay_so_or_count_for_nothing(judge: Callable[[Tensor], Any]) -> None:
    found = judge(torch.full((2, 3, 3), math.nan).double())
    assert found == 1.0 if judge is calibration else math.isnan(found[0])


def test_noise_is_not_that_of_data_drawn_with_the_same_seed() -> None:
    torch.manual_seed(0)
    x = 2**0.5 * torch.randn(100, 1)

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:  # ignores x
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    numbers = pyro_delta.diagnose(model, guide, x, particles=1).numbers
    assert not numbers["latents_used"]
    assert abs(numbers["told_calibrated_nats"]) < 0.1
