"""Bounds, the importance-weighted bound, and the four measures of latent use, each against a plain witness."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import Split
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.bounds import Encoding, encode, evaluate, standard_error
from pyro_delta.diagnostics.diagnose import Diagnosis, diagnosed, failure
from pyro_delta.diagnostics.importance import importance_bound, importance_weights, k_hat
from pyro_delta.diagnostics.table import rows
from pyro_delta.diagnostics.trace import committed, noise_seed
from pyro_delta.diagnostics.usage import (
    floor_holds,
    mutual_information,
    partners,
    probe_accuracy,
    shuffled_gap,
)
from pyro_delta.distributions import GaussianAR1
from pyro_delta.models import AR1Prior, DeltaVAE
from pyro_delta.vae import VAE

SPEC = ImageSpec(1, 4, 4, 17)
TINY = [
    (f"{program}.{key}", value)
    for program in ("likelihood", "guide")
    for key, value in {"channels": [8], "row_blocks": [1], "pixel_blocks": 1}.items()
]
SETTINGS = [*TINY, ("likelihood.mixtures", 2), ("guide.features", 8), ("prior.dims", 2), ("prior.alpha", "0.5:0.9")]


def tiny_programs(*settings: tuple[str, object]) -> VAE:
    """Untrained, but far from the initial weights, so that everything depends on everything."""
    torch.manual_seed(1)
    vae = build(load_preset("cifar10-small", [*SETTINGS, *settings]), SPEC)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return vae


def random_images(count: int) -> Tensor:
    return torch.randint(0, 17, (count, *SPEC.shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Additive(PyroModule):
    """x ~ N(8 + 4 z, 1): a decoder of which everything can be worked out by hand."""

    def forward(self, z: Tensor) -> dist.Independent:
        return dist.Normal((8 + 4 * z).unsqueeze(-3), 1.0).to_event(3)


class Reader(PyroModule):
    """q(z | x) = N((x − 8) / 4, scale²)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.weight = torch.nn.Parameter(torch.ones(()))

    def posterior(self, x: Tensor) -> dist.Independent:
        return dist.Normal(self.weight * (x.float().squeeze(-3) - 8) / 4, self.scale).to_event(2)

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


def readable_programs(scale: float = 0.1) -> VAE:
    return VAE(DeltaVAE(AR1Prior(SPEC, dims=4, alpha="0.5,0.6,0.7,0.8"), Additive()), Reader(scale))


def check(vae: VAE, images: Tensor, labels: Tensor | None = None) -> Diagnosis:
    """What `pyro-delta check` does of a run."""
    split = Split(images, labels)
    return diagnosed(vae, split, fit=split, spec=SPEC)


def encoding_of(rate: Tensor, mean: Tensor, scale: Tensor, z: Tensor) -> Encoding:
    """One site of independent Normal posteriors, and a rate in closed form."""
    return Encoding(rate, True, rate, {"z": mean}, {"z": scale}, {"z": z}, mean_field=True, apart=True, scored=1)


def dense_kl(mean_nd: np.ndarray, scale_nd: np.ndarray, alpha_d: np.ndarray) -> float:
    """KL of independent normals from AR(1) through the dense covariance matrix of every dimension."""
    n, total = len(mean_nd), 0.0
    steps = np.arange(n)
    for k, alpha in enumerate(alpha_d):
        prior = alpha ** np.abs(steps[:, None] - steps[None, :])
        variance = np.diag(scale_nd[:, k] ** 2)
        precision = np.linalg.inv(prior)
        total += 0.5 * (
            np.trace(precision @ variance)
            + mean_nd[:, k] @ precision @ mean_nd[:, k]
            - n
            + np.linalg.slogdet(prior)[1]
            - np.linalg.slogdet(variance)[1]
        )
    return total


def test_evaluate_is_the_plain_sum_over_every_image() -> None:
    vae, images = tiny_programs(), random_images(7)
    numbers = evaluate(vae, Split(images, None), spec=SPEC)
    encoding = encode(vae, images, batch=100)
    vae.eval()
    rates, distortions = [], []
    with torch.no_grad():
        for i, image in enumerate(images):
            q = vae.guide.posterior(image[None])
            rates.append(
                dense_kl(
                    q.mean[0].double().numpy(),
                    q.stddev[0].double().numpy(),
                    vae.model.prior.alpha.double().numpy(),
                )
            )
            distortions.append(-vae.model.likelihood(encoding.z["z"][i : i + 1]).log_prob(image[None]).item())
    bits = 1 / (16 * math.log(2))
    losses = np.array(rates) + np.array(distortions)
    assert numbers["n_images"] == 7
    assert numbers["rate_nats_mean"] == pytest.approx(np.mean(rates), rel=1e-5)
    assert numbers["rate_nats_min"] == pytest.approx(min(rates), rel=1e-5)
    assert numbers["distortion_bpd"] == pytest.approx(np.mean(distortions) * bits, rel=1e-5)
    assert numbers["neg_elbo_bpd"] == pytest.approx(losses.mean() * bits, rel=1e-5)
    assert numbers["neg_elbo_bpd_se"] == pytest.approx(losses.std(ddof=1) / math.sqrt(7) * bits, rel=1e-4)
    assert numbers["rate_bpd"] == pytest.approx(numbers["neg_elbo_bpd"] - numbers["distortion_bpd"], abs=1e-9)


def test_of_one_datum_no_spread_is_known() -> None:
    numbers = evaluate(tiny_programs(), random_images(1), spec=SPEC, particles=2)
    errors = [value for key, value in numbers.items() if key.endswith("_se")]
    assert len(errors) == 6
    assert all(map(math.isnan, errors))
    assert numbers["active_units"] is None
    assert not any("±" in value for _, value, _ in rows(numbers))


def test_a_last_batch_that_is_not_full_counts() -> None:
    vae, images = readable_programs(), random_images(5)
    whole, parts = encode(vae, images, batch=5), encode(vae, images, batch=2)
    torch.testing.assert_close(parts.rate, whole.rate)
    assert len(parts.distortion) == 5


def test_evaluation_leaves_mode_and_random_state_alone() -> None:
    vae, images = tiny_programs(), random_images(3)
    vae.train()
    before = torch.get_rng_state()
    first = evaluate(vae, Split(images, None), particles=2)
    assert vae.training
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert evaluate(vae, Split(images, None), particles=2) == first


def test_importance_bound_against_a_direct_sum() -> None:
    vae, images, particles = tiny_programs(), random_images(4), 6
    bound = importance_bound(importance_weights(vae, images, particles, batch=4 * particles, seed=3))
    vae.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(noise_seed(3))
        q = vae.guide.posterior(images)
        z = q.rsample((particles,))
        for i in range(4):
            one = vae.guide.posterior(images[i : i + 1])
            log_weights = [
                (
                    vae.model.likelihood(z[k, i : i + 1]).log_prob(images[i : i + 1])
                    + vae.model.prior().log_prob(z[k, i])
                    - one.log_prob(z[k, i])
                ).item()
                for k in range(particles)
            ]
            top = max(log_weights)
            direct = -(top + math.log(sum(math.exp(w - top) for w in log_weights) / particles))
            assert bound[i].item() == pytest.approx(direct, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 5, 64])
def test_importance_bound_is_tighter_than_the_elbo_in_chunks_of_any_size(batch: int) -> None:
    vae, images = readable_programs(scale=0.4), random_images(20)
    elbo = importance_bound(importance_weights(vae, images, 1))
    bound = importance_bound(importance_weights(vae, images, 50, batch=batch))
    assert bound.shape == (20,)
    assert bound.dtype == torch.float64
    assert bound.mean() < elbo.mean() - 1
    numbers = evaluate(vae, Split(images, None), particles=50)
    assert numbers["iw_images"] == numbers["n_images"] == 20
    assert numbers["iw_neg_elbo_bpd"] == pytest.approx(numbers["neg_elbo_bpd"], rel=1e-12)
    paired = encode(vae, images)
    gap = paired.rate + paired.distortion - importance_bound(importance_weights(vae, images, 50))
    assert numbers["iw_gap_nats"] == pytest.approx(gap.mean().item(), rel=1e-9)
    assert numbers["iw_gap_nats_se"] == pytest.approx(standard_error(gap), rel=1e-9)


def test_importance_bound_nears_the_exact_evidence() -> None:
    """X = 8 + 4 z + noise is Gaussian: −log p(x) is known, and many particles of a wide posterior come close to it."""
    vae, images = readable_programs(scale=0.24), random_images(3) // 2 + 4
    covariance = 16 * 0.5 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4))) + np.eye(4)
    prior = AR1Prior(SPEC, dims=4, alpha=0.5)
    vae.model.prior = prior
    exact = []
    for image in images.double().numpy():
        total = 0.0
        for k in range(4):
            centred = image[0, :, k] - 8
            total += 0.5 * (
                centred @ np.linalg.solve(covariance, centred)
                + np.linalg.slogdet(covariance)[1]
                + 4 * math.log(2 * math.pi)
            )
        exact.append(total)
    bound = importance_bound(importance_weights(vae, images, 2000, batch=2000))
    np.testing.assert_allclose(bound.numpy(), exact, atol=0.05)


def test_k_hat_tells_a_guide_that_is_too_narrow() -> None:
    images = random_images(10) // 2 + 4
    good, bad = (k_hat(importance_weights(readable_programs(scale), images, 400)) for scale in (0.25, 0.05))
    assert good.shape == (10,)
    assert good.median() < 0.5
    assert bad.median() > 0.7
    numbers = evaluate(readable_programs(0.05), Split(images, None), particles=400)
    assert numbers["k_hat_bad"] > 0.5
    assert "k_hat_median" not in evaluate(readable_programs(0.05), Split(images, None), particles=29)


@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_mutual_information_against_the_double_loop(chunk: int) -> None:
    vae, images = tiny_programs(), random_images(9)
    encoding = encode(vae, images)
    total = 0.0
    for i in range(9):
        log_q = [
            dist.Normal(encoding.mean["z"][j].double(), encoding.scale["z"][j].double())
            .log_prob(encoding.z["z"][i].double())
            .sum()
            .item()
            for j in range(9)
        ]
        total += log_q[i] - math.log(sum(math.exp(value) for value in log_q) / 9)
    assert mutual_information(encoding, chunk)[0] == pytest.approx(total / 9, abs=1e-9)


def test_mutual_information_at_its_ends() -> None:
    sharp = encode(readable_programs(scale=1e-3), random_images(30))
    assert mutual_information(sharp)[0] == pytest.approx(math.log(30), abs=1e-9)
    mean, scale = torch.zeros(30, 4, 4), torch.ones(30, 4, 4)
    blind = encoding_of(torch.zeros(30), mean, scale, torch.randn(30, 4, 4))
    assert mutual_information(blind)[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_every_image_gets_the_latents_of_another_one(count: int) -> None:
    for seed in range(20):
        partner = partners(count, seed)
        assert (partner != torch.arange(count)).all()
        assert torch.equal(partner.sort().values, torch.arange(count))


def test_shuffled_gap_by_hand() -> None:
    vae, images = readable_programs(), random_images(11)
    encoding = encode(vae, images, batch=4)
    gap = shuffled_gap(vae, images, encoding, batch=4, seed=5)
    x, z = images.double().squeeze(1), encoding.z["z"].double()
    other = z[partners(11, 5)]
    expected = 0.5 * ((x - 8 - 4 * other).square() - (x - 8 - 4 * z).square()).sum((1, 2))
    torch.testing.assert_close(gap, expected, rtol=1e-5, atol=1e-4)
    assert standard_error(gap) == pytest.approx(gap.numpy().std(ddof=1) / math.sqrt(11))


def test_check_passes_where_latents_are_used() -> None:
    images = random_images(60)
    labels = (images.double().mean((1, 2, 3)) > 8).long()
    numbers = check(readable_programs(), images, labels).numbers
    assert failure(numbers) is None
    assert numbers["floor_holds"] is True
    assert numbers["latents_used"] is True
    assert numbers["probe_accuracy"] > 0.8
    assert numbers["probe_accuracy_se"] == pytest.approx(
        math.sqrt(numbers["probe_accuracy"] * (1 - numbers["probe_accuracy"]) / 60)
    )
    assert numbers["probe_chance"] == labels.bincount().max().item() / 60
    assert numbers["n_images"] == 60
    assert numbers["told_calibrated_nats"] <= numbers["told_cap_nats"] == math.log(30)
    assert numbers["mutual_information_nats"] <= numbers["mutual_information_cap_nats"] == math.log(60)


def test_check_fails_a_decoder_that_ignores_z() -> None:
    vae, images = tiny_programs(("likelihood.use_latents", False)), random_images(120)
    numbers = check(vae, images).numbers
    assert numbers["shuffled_gap_nats"] == 0
    assert numbers["shuffled_gap_se"] == 0
    assert numbers["told_nats"] == numbers["told_calibrated_nats"] == 0
    assert numbers["probe_accuracy"] is numbers["probe_chance"] is None
    assert numbers["floor_holds"] is True
    assert "the latents are not shown to be used: they tell the decoder at least 0 nats" in str(failure(numbers))


def test_check_without_a_closed_form_says_so() -> None:
    class Heavy(PyroModule):
        def forward(self) -> dist.Independent:
            return dist.StudentT(5.0, torch.zeros(4, 4), torch.ones(4, 4)).to_event(2)

    vae = VAE(DeltaVAE(Heavy(), Additive()), Reader(0.1))
    numbers = check(vae, random_images(20)).numbers
    assert numbers["floor_holds"] is None
    assert numbers["delta_nats"] is None
    assert "no closed form" in str(failure(numbers))


class CountedAR1(GaussianAR1):
    """A user's own class: no registered KL or rate is its, and its density is asked for them."""

    calls = 0

    def log_prob(self, value: Tensor) -> Tensor:
        type(self).calls += 1
        return super().log_prob(value)


def test_a_gaussian_prior_of_the_user_s_is_checked_by_its_density() -> None:
    class Own(PyroModule):
        def forward(self) -> GaussianAR1:
            return CountedAR1(torch.tensor([0.5, 0.6, 0.7, 0.8]), 4)

    images, own = random_images(20), readable_programs()
    own.model.prior = Own()
    calls = []
    for batch in (20, 2):
        CountedAR1.calls = 0
        encoding = encode(own, images, batch=batch)
        calls.append(CountedAR1.calls)
        assert encoding.closed_form
        torch.testing.assert_close(encoding.rate, encode(readable_programs(), images).rate, rtol=1e-6, atol=0)
    assert calls[1] - calls[0] == 9  # log p(z) of nine more batches: the curvature is read once for all of them
    numbers = check(own, images).numbers
    assert numbers["floor_holds"] is True
    assert numbers["delta_nats"] == pytest.approx(committed(readable_programs(), images).nats, rel=1e-6)


@pytest.mark.parametrize(
    ("rates", "delta", "holds"),
    [
        ([4.0, 5.0], 4.0, True),
        ([4.0 - 3e-9, 5.0], 4.0, True),
        ([4.0 - 1e-8, 5.0], 4.0, False),
        ([5.0, 3.9], 4.0, False),
        ([-1e-16, 1.0], 0.0, True),
        ([-1e-6, 1.0], 0.0, False),
        ([math.nan, 5.0], 4.0, False),
        ([5.0], None, None),
    ],
)
def test_floor(rates: list[float], delta: float | None, holds: bool | None) -> None:
    rate = torch.tensor(rates, dtype=torch.float64)
    empty = torch.zeros(len(rates), 1, 1)
    assert floor_holds(encoding_of(rate, empty, empty, empty), delta) is holds


def test_broken_floor_fails_the_check() -> None:
    numbers = check(readable_programs(), random_images(20)).numbers
    numbers |= {"floor_holds": False}
    assert "floor is broken" in str(failure(numbers))


def test_probe_on_separable_latents_and_on_one_class() -> None:
    labels = torch.arange(40) % 2
    z = labels.double().reshape(-1, 1, 1) + 0.01 * torch.randn(40, 3, 2)
    assert probe_accuracy(z, labels, z, labels) == 1.0
    assert probe_accuracy(z, labels * 0, z, labels) is None
    assert probe_accuracy(z, labels, z * math.nan, labels) is None


def test_the_family_is_read_off_every_batch() -> None:
    """A guide that is correlated in its last batch alone commits what no formula of independent ones says."""

    class Changing(Reader):
        def forward(self, x: Tensor) -> Tensor:
            q = self.posterior(x)
            if len(x) == 20:
                flat = dist.MultivariateNormal(q.mean.flatten(1), 0.01 * torch.eye(16))
                q = dist.TransformedDistribution(flat, dist.transforms.ReshapeTransform((16,), (4, 4)))
            with pyro.plate("data", len(x)):
                return pyro.sample("z", q)

    vae, images = readable_programs(), random_images(120)
    assert evaluate(vae, images)["delta_nats"] > 0
    vae.guide = Changing(0.1)
    encoding = encode(vae, images)
    assert encoding.families["z"] == {"Independent(Normal)", "TransformedDistribution(MultivariateNormal)"}
    assert not encoding.mean_field
    numbers = check(vae, images).numbers
    assert numbers["delta_nats"] is numbers["floor_holds"] is None
    assert numbers["delta_known_by"].startswith("posteriors of 'z' are Independent(Normal) and TransformedDistribution")


def test_delta_is_that_of_the_prior() -> None:
    alpha_d = np.array([0.5, 0.6, 0.7, 0.8], dtype=np.float32).astype(np.float64)
    expected = 0.5 * (2 * np.log1p(alpha_d**2) - np.log1p(-(alpha_d**2))).sum()
    assert committed(readable_programs(), random_images(1)).nats == pytest.approx(expected, abs=1e-12)


def test_k_hat_of_weights_that_are_alike() -> None:
    alike, tied = torch.full((2, 30), 3.0).double(), torch.tensor([0.0, 1.0]).double().repeat(1, 30)
    assert k_hat(alike).tolist() == [0, 0]
    rounded = 1e-3 * torch.randn(200, 30).double() - 7000  # what an exact posterior gives in float32
    assert not k_hat(rounded).any()
    assert k_hat(torch.randn(200, 30).double()).median() > 0
    assert k_hat(tied).item() == 0
    one_for_all = torch.cat([torch.randn(29), torch.tensor([800.0])]).double()  # exp of the others is 0 beside it
    assert k_hat(one_for_all[None]).item() == math.inf
    assert not k_hat(torch.full((1, 30), math.nan).double()).item() < math.inf
