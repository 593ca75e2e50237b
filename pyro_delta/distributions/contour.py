"""The contour KL(N(μ, σ²) ‖ N(0, 1)) = δ in the plane of (μ, ln σ²), and the Gaussians on it and beyond.

Along a ray, with (μ, ln σ²) = r·(c, s) and c² + s² = 1,

    KL = ½ (e^{rs} − 1 − rs + r²c²)                                                                     (1)

is 0 at r = 0, convex, and increasing: each ray meets the contour once, at a radius r(c, s) that has no closed form.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MARGIN = 1e-6
"""Added to √δ, as a part of it and by itself: more than what rounding μ and σ to float32 takes off the KL.

To first order, errors of 2⁻²⁴ in ln μ and ln σ change the KL by at most 2⁻²⁴ (μ² + |σ² − 1|), which on the contour is
about 1.2e-7 √δ where δ is small and less than 2.4e-7 δ where it is large.
"""
STEPS = 14
"""Newton steps without gradient: by then nothing but rounding changes for any δ up to 50. For δ ≤ 1 six are enough."""
TINY = 1e-4
"""Numbers nearer to 0 than this have no direction to speak of, and the derivative of it would explode."""
FARTHEST = 86.0
"""The largest distance of (μ, ln σ²) from 0: float32 holds σ² and 1/σ² there."""
MOST_NATS = 10.0
"""The largest δ of a guide. Its contour has a σ of e^−δ beside a μ of 1, and z = μ + σε in float32 must hold ε.

At δ = 10 it holds three digits of ε, at 17 none. There log q(z) is rounding, and its gradient by z, which is ε/σ,
swallows that of log p(x | z); from 36 on so it is in float64.
"""


def gaussian_beyond_contour(mean: Tensor, log_variance: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """μ and σ of a Gaussian with KL(N(μ, σ²) ‖ N(0, 1)) ≥ δ from two numbers v = (mean, log_variance) that are free.

        (μ, ln σ²) = v · max(1, r(v/|v|)/|v|)

    Beyond the contour v is (μ, ln σ²) itself; inside, its direction alone counts, and the KL is δ with no gradient. The
    floor holds for μ and σ as they are returned, rounded to float32. Nearer to 0 than TINY, where no map onto the
    contour can be continuous, v moves to the right by 2·TINY; farther than FARTHEST it is drawn back to there.

    Args:
        mean: numbers of any shape.
        log_variance: numbers of the same shape.
        delta: nats, above 0 and at most 40, whose contour lies within FARTHEST; to draw from them, at most MOST_NATS.

    Returns:
        μ and σ, of that shape, in float32 or the wider type of the numbers.
    """
    dtype = torch.promote_types(mean.dtype, torch.float32)
    mean, log_variance = mean.double(), log_variance.double()
    mean = torch.where(torch.hypot(mean, log_variance) < TINY, mean + 2 * TINY, mean)
    distance = torch.hypot(mean, log_variance)
    cos, sin = mean / distance, log_variance / distance
    radius = contour_radius(cos, sin, ((1 + MARGIN) * math.sqrt(delta) + MARGIN) ** 2)
    distance = torch.maximum(distance.clamp(max=FARTHEST), radius)
    return (distance * cos).to(dtype), (distance * sin / 2).exp().to(dtype)


def contour_radius(cos: Tensor, sin: Tensor, delta: float) -> Tensor:
    """r(c, s), the distance at which KL = δ in the directions (c, s), by Newton's method.

    From above the root it descends without passing it, for (1) is convex and increasing. The last two steps carry
    derivatives: from the root one of them gives the first, −∂KL/∂(c, s) / (∂KL/∂r), and both the second.

    Args:
        cos: c, float64.
        sin: s of the same shape, c² + s² = 1.
        delta: nats, above 0 and at most about 50.
    """
    with torch.no_grad():
        radius = start_above(sin, delta)
        for _ in range(STEPS - 1):
            radius = _newton(radius, cos, sin, delta)
    for _ in range(2):
        radius = _newton(radius, cos, sin, delta)
    return radius


def _newton(radius: Tensor, cos: Tensor, sin: Tensor, delta: float) -> Tensor:
    kl, slope = _kl_and_slope(radius, cos, sin)
    return radius - (kl - delta) / slope


def start_above(sin: Tensor, delta: float) -> Tensor:
    """A radius that is not below r(c, s).

    For s > 0, since e^u − 1 − u ≥ u²/2 for u ≥ 0, (1) is at least r²/4, so that r ≤ 2√δ. For any s, since
    e^−a − 1 + a ≥ a²/(2 + a) for a ≥ 0, (1) is at least ½ r²/(2 + r), so that r ≤ δ + √(δ² + 4δ).
    """
    return torch.where(sin > 0, 2 * math.sqrt(delta), delta + math.sqrt(delta * delta + 4 * delta)).to(sin.dtype)


def _kl_and_slope(radius: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (1) and its derivative by r, which is positive for r > 0."""
    log_variance, mean = radius * sin, radius * cos
    rise = torch.expm1(log_variance)
    return 0.5 * (rise - log_variance + mean.square()), 0.5 * sin * rise + mean * cos
