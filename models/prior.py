"""The AR(1) prior as a program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError


def rows_of_steps(length: int, height: int) -> Tensor:
    """`first_row` for `length` latent steps that share `height` rows evenly: step t belongs to row t·height/length on.

    Raises:
        UserError: if the rows cannot be shared evenly.
    """
    if length < 1 or height % length:
        raise UserError(
            f"prior.length={length} does not divide the {height} rows of the image; choose a divisor of it."
        )
    return torch.arange(length) * (height // length)


class AR1Prior(PyroModule):
    """Stationary AR(1) Gaussian process over the latent sequence, its α fixed.

    `forward()` returns `GaussianAR1(alpha, length)` of event shape (n, d).

    Args:
        alpha: (d,) correlations of neighbouring steps, |α| < 1.
        first_row: (n,) the image row from which on each step may be used.
    """

    alpha: Tensor
    first_row: Tensor

    def __init__(self, alpha: Sequence[float] | Tensor, first_row: Tensor) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.as_tensor(alpha, dtype=torch.get_default_dtype()))
        self.register_buffer("first_row", first_row)

    def forward(self) -> GaussianAR1:
        """The prior over z, event shape (n, d)."""
        return GaussianAR1(self.alpha, self.first_row.numel())
