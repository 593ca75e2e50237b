"""Shapes of batches and noise, and other arguments of drawing."""

from __future__ import annotations

import math

from pyro.distributions.util import broadcast_shape
from torch import Size, Tensor


def broadcast_shapes(*shapes: Size | tuple[int, ...]) -> Size:
    """The shape that all of them are expanded to. `torch.broadcast_shapes` spends its first call on importing SymPy.

    Raises:
        ValueError: if they do not fit.
    """
    return Size(broadcast_shape(*shapes))


def check_event(noise: Tensor, shape: tuple[int, ...]) -> None:
    """Refuses noise whose last dimensions are not `shape`: expanded, one number would be the noise of many places.

    Raises:
        ValueError: if they are not.
    """
    if noise.shape[noise.dim() - len(shape) :] != shape:
        raise ValueError(f"noise of shape {tuple(noise.shape)} does not fit: its shape must end in {shape}.")


def check_temperature(temperature: float) -> None:
    """Refuses what is no temperature.

    Raises:
        ValueError: if it is not finite and above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"a temperature is a number above 0, not {temperature}; 1 leaves the distribution as it is.")
