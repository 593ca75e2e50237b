"""Data in the type that a distribution scores."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Bernoulli


def as_scored(distribution: Any, x: Tensor) -> Tensor:
    """Integers, which data of two levels are, as real numbers for a `Bernoulli`, in whatever wrappers."""
    core = distribution
    while hasattr(core, "base_dist"):
        core = core.base_dist
    return x.to(core.logits.dtype) if isinstance(core, Bernoulli) and not x.is_floating_point() else x
