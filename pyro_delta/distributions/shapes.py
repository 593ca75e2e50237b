"""Shapes of batches."""

from __future__ import annotations

from pyro.distributions.util import broadcast_shape
from torch import Size


def broadcast_shapes(*shapes: Size | tuple[int, ...]) -> Size:
    """The shape that all of them are expanded to. `torch.broadcast_shapes` spends its first call on importing SymPy.

    Raises:
        ValueError: if they do not fit.
    """
    return Size(broadcast_shape(*shapes))
