"""The AR(1) prior as a program."""

from __future__ import annotations

import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_delta.data.spec import ImageSpec
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.rate import alpha_for_rate, parse_alpha


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
        spec: shape and levels of the images.
        dims: d, size of one latent step.
        length: n, latent steps, a divisor of the image's rows (default: one per row).
        alpha: correlation of neighbouring steps, |α| < 1: one number, LO:HI for a linear spread, or d numbers with
            commas.
        rate_nats: committed rate from which one shared α is solved, in place of alpha.
    """

    alpha: Tensor
    first_row: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        *,
        dims: int = 8,
        length: int | None = None,
        alpha: str | float | None = None,
        rate_nats: float | None = None,
    ) -> None:
        super().__init__()
        if (alpha is None) == (rate_nats is None):
            raise UserError("give just one of prior.alpha and prior.rate_nats.")
        self.register_buffer("first_row", rows_of_steps(length or spec.height, spec.height))
        if rate_nats is not None:
            alpha_d = [alpha_for_rate(rate_nats, len(self.first_row), dims)] * dims
        else:
            alpha_d = parse_alpha(alpha, dims)
        self.register_buffer("alpha", torch.tensor(alpha_d, dtype=torch.get_default_dtype()))

    def forward(self) -> GaussianAR1:
        """The prior over z, event shape (n, d)."""
        return GaussianAR1(self.alpha, self.first_row.numel())
