"""The contour KL = δ in the plane of (μ, ln σ²): its radius, the gradient along it, and the floor in float32."""

import math
from itertools import pairwise

import pytest
import torch
from networks import random_normal
from scipy.optimize import brentq
from scipy.special import hyp1f1, wrightomega
from torch import Tensor

from pyro_delta.distributions import contour
from pyro_delta.distributions.contour import TINY, contour_radius, gaussian_beyond_contour

DELTAS = [1e-6, 1e-4, 0.01, 0.0625, 0.5, 2.0, 10.0, 40.0]
RADIUS_DELTAS = [*DELTAS, 50.0]


def angles() -> Tensor:
    """All around, and close to the axes on either side, at distances down to 1e-16."""
    around = torch.linspace(-math.pi, math.pi, 501, dtype=torch.float64)
    off = torch.logspace(-16, -1, 46, dtype=torch.float64)
    axes = torch.tensor([-math.pi / 2, 0.0, math.pi / 2, math.pi], dtype=torch.float64)
    return torch.cat([around, axes, *(axis + side * off for axis in axes for side in (1, -1))])


def kl(mean: Tensor, scale: Tensor) -> Tensor:
    """KL of N(μ, σ²) from N(0, 1), in float64, from the definition."""
    mean, scale = mean.double(), scale.double()
    return 0.5 * (mean.square() + scale.square() - 1) - scale.log()


def radius_by_brent(angle: float, delta: float) -> float:
    """In powers of e, for a root that lies anywhere from 1e-4 to 100."""

    def excess(log_radius: float) -> float:
        r = math.exp(log_radius)
        u = r * math.sin(angle)
        rest = u * u / 2 * hyp1f1(1, 3, u)  # e^u − 1 − u, which would lose its digits near 0
        return 0.5 * (rest + (r * math.cos(angle)) ** 2) - delta

    return math.exp(brentq(excess, math.log(1e-4), math.log(2 * delta + 3), xtol=1e-14, rtol=1e-14))


@pytest.mark.parametrize("delta", RADIUS_DELTAS)
def test_the_radius_is_that_of_the_root(delta: float) -> None:
    theta = angles()
    found = contour_radius(theta.cos(), theta.sin(), delta)
    expected = torch.tensor([radius_by_brent(angle, delta) for angle in theta.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("delta", RADIUS_DELTAS)
def test_the_axes_are_those_of_the_omega_function(delta: float) -> None:
    """Without a mean, x = σ² solves x − ln x = 2δ + 1, which is Lambert's W by both branches; a mean alone is √2δ."""
    up, down, right = contour_radius(
        torch.tensor([0.0, 0.0, 1.0]).double(), torch.tensor([1.0, -1.0, 0.0]).double(), delta
    ).tolist()
    roots = [math.log(-wrightomega(complex(-2 * delta - 1, side * math.pi)).real) for side in (1, -1)]
    assert [-down, up] == pytest.approx(sorted(roots), rel=1e-7 if delta < 1e-3 else 1e-11)
    assert right == pytest.approx(math.sqrt(2 * delta), rel=1e-12)


@pytest.mark.parametrize("delta", RADIUS_DELTAS)
def test_newton_descends_from_above_and_has_arrived(delta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any number of steps it is not below the root; after all of them and before the last it is at the root."""
    theta = angles()
    seen = [contour.start_above(theta.sin(), delta)]
    for steps in (0, 1, 3, contour.STEPS - 1, contour.STEPS):
        monkeypatch.setattr(contour, "STEPS", steps)
        seen.append(contour_radius(theta.cos(), theta.sin(), delta))
    for before, after in pairwise(seen):
        assert (after <= before * (1 + 1e-11)).all()
    torch.testing.assert_close(seen[-2], seen[-1], rtol=1e-12, atol=0)
    monkeypatch.setattr(contour, "STEPS", 6)
    if delta <= 1:
        torch.testing.assert_close(contour_radius(theta.cos(), theta.sin(), delta), seen[-1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("delta", DELTAS)
def test_the_floor_is_exact_in_single_precision(delta: float) -> None:
    """Anything a network may say, up to numbers whose squares overflow, and the rounding of μ and σ included."""
    theta = angles()
    directions = torch.stack([theta.cos(), theta.sin()])
    root = contour_radius(theta.cos(), theta.sin(), delta)
    near = [root * (1 + off) for off in (-1e-3, -1e-6, -1e-8, 0.0, 1e-8, 1e-6, 1e-3)]
    far = [torch.full_like(root, size) for size in (0.0, 1e-45, 1e-30, TINY, 1e-3, 1.0, 30.0, 1e3, 1e30, 3e38)]
    adversarial = torch.cat([directions * size for size in near + far], dim=1)
    random = random_normal(2, 20_000, seed=1) * 10 ** random_normal(20_000, seed=2)
    v = torch.cat([adversarial, random], dim=1).float()
    for dtype in (torch.float32, torch.bfloat16):
        mean, scale = gaussian_beyond_contour(*v.to(dtype), delta)
        assert mean.dtype == scale.dtype == torch.float32
        rate = kl(mean, scale)
        assert rate.isfinite().all()
        assert delta <= rate.min() < delta * (1 + 1e-5) + 3e-6 * math.sqrt(delta) + 1e-11


def test_beyond_the_contour_the_numbers_are_the_parameters() -> None:
    v = random_normal(2, 1000) * 3
    mean, scale = gaussian_beyond_contour(*v, 0.3)
    beyond = kl(v[0], (v[1] / 2).exp()) > 0.301
    assert 100 < beyond.sum() < 1000
    torch.testing.assert_close(torch.stack([mean, 2 * scale.log()])[:, beyond], v[:, beyond])


@pytest.mark.parametrize("delta", [1e-3, 0.01, 0.0625, 1.0, 20.0, 37.5, 50.0])
def test_gradients_are_those_of_finite_differences(delta: float) -> None:
    theta = torch.linspace(0, 2 * math.pi, 41, dtype=torch.float64)[:-1] + 0.01
    root = contour_radius(theta.cos(), theta.sin(), delta)
    for share in (0.3, 0.9, 1.1, 3.0):
        v = (share * root * torch.stack([theta.cos(), theta.sin()])).requires_grad_()
        for output in (0, 1):
            (grad,) = torch.autograd.grad(gaussian_beyond_contour(*v, delta)[output].sum(), v)
            for number in (0, 1):
                step = torch.zeros(2, 1, dtype=torch.float64)
                step[number] = 1e-5 * root.min()
                up, down = (gaussian_beyond_contour(*(v + side * step), delta)[output] for side in (1, -1))
                torch.testing.assert_close(grad[number], (up - down) / (2 * step[number]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("delta", [0.01, 0.3, 5.0])
def test_second_derivatives_are_those_of_finite_differences(delta: float) -> None:
    theta = torch.linspace(0, 2 * math.pi, 8, dtype=torch.float64)[:-1] + 0.2
    for share in (0.3, 3.0):
        v = share * contour_radius(theta.cos(), theta.sin(), delta) * torch.stack([theta.cos(), theta.sin()])
        numbers = tuple(number.clone().requires_grad_() for number in v)
        assert torch.autograd.gradgradcheck(lambda *v: gaussian_beyond_contour(*v, delta), numbers, eps=1e-7)


@pytest.mark.parametrize(("delta", "resolved"), [(1.0, True), (contour.MOST_NATS, True), (17.0, False), (37.5, False)])
def test_single_precision_holds_the_noise_of_all_that_a_guide_may_commit(delta: float, resolved: bool) -> None:
    """(μ + σε) − μ is σε to 1 %, all around; the limit is not far below the δ where it is nothing like it."""
    theta = angles()
    mean, scale = gaussian_beyond_contour(0.01 * theta.cos().float(), 0.01 * theta.sin().float(), delta)
    noise = ((mean + scale) - mean) / scale
    assert ((noise - 1).abs().max() < 0.01) == resolved


def test_moving_along_the_contour_is_free() -> None:
    """Inside, the KL has no gradient, and yet μ and σ have one."""
    theta = angles()
    v = (0.1 * torch.stack([theta.cos(), theta.sin()])).requires_grad_()
    mean, scale = gaussian_beyond_contour(*v, 0.0625)
    (of_rate,) = torch.autograd.grad(kl(mean, scale).sum(), v, retain_graph=True)
    (of_both,) = torch.autograd.grad((mean + scale).sum(), v)
    assert of_rate.abs().max() < 1e-12
    assert (of_both.norm(dim=0) > 0.1).double().mean() > 0.9


@pytest.mark.parametrize("v", [(0.0, 0.0), (-0.0, 0.0), (1e-45, -1e-45), (-TINY, 0.0), (0.0, TINY)])
def test_a_coordinate_that_says_nothing_has_a_direction(v: tuple[float, float]) -> None:
    leaf = torch.tensor(v, requires_grad=True)
    mean, scale = gaussian_beyond_contour(*leaf, 0.0625)
    assert kl(mean, scale).item() == pytest.approx(0.0625, rel=2e-5)
    (grad,) = torch.autograd.grad(mean + scale, leaf)
    assert grad.isfinite().all()
    assert 0 < grad.norm() < 0.6 / TINY
