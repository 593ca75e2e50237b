"""μ-law: amplitudes in −1 … 1 as levels 0 … L − 1, finer where it is quiet [1].

    F(a) = sign(a) ln(1 + μ|a|) / ln(1 + μ),  μ = L − 1,

and level v stands for the amplitude whose F is 2v/μ − 1. With an even L no level stands for 0: silence is the level
L/2, 1/11,600 of full scale for L = 256.

NOTE: [1] approximates F by eight straight lines; here it is F itself, as in [2].

References:
    1. ITU-T Recommendation G.711, 1988.
    2. A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016, §2.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def compressed(amplitude: Tensor, levels: int) -> Tensor:
    """The level whose F is nearest to that of each amplitude, uint8; what is beyond ±1 counts as ±1."""
    a = amplitude.clamp(-1, 1)
    f = a.sign() * torch.log1p((levels - 1) * a.abs()) / math.log(levels)
    return ((f + 1) / 2 * (levels - 1) + 0.5).floor().to(torch.uint8)


def expanded(level: Tensor, levels: int) -> Tensor:
    """The amplitude that a level stands for; levels in a floating-point type, whose precision it has, and gradients."""
    f = level * (2 / (levels - 1)) - 1
    return f.sign() * torch.expm1(f.abs() * math.log(levels)) / (levels - 1)
