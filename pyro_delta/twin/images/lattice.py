"""The twin of the lattice prior."""

from __future__ import annotations

import numpy as np

from pyro_delta.data.images.spec import require_image
from pyro_delta.errors import UserError
from pyro_delta.protocol import Spec
from pyro_delta.twin.priors import DensePrior, alphas, ar_factor
from pyro_delta.twin.rate import Array, ar1_rate, solve_for_rate


class LatticePrior(DensePrior):
    """R × C blocks of the image, flattened row-major: the Kronecker product of two AR(1) for each dimension.

    Args:
        spec: of the images; other data have no blocks.
        dims: d.
        rows: R, a divisor of the image's rows.
        columns: C, a divisor of the image's columns.
        alpha: one number, `LO:HI` for a linear spread over the dimensions, or d numbers with commas.
        rate_nats: the committed rate from which one shared α is solved, in place of `alpha`.

    Raises:
        UserError: if an option does not fit.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        dims: int = 8,
        rows: int = 4,
        columns: int = 4,
        alpha: str | float | None = None,
        rate_nats: float | None = None,
    ) -> None:
        image = require_image(spec, "prior", "lattice")
        if rows < 1 or columns < 1 or image.height % rows or image.width % columns:
            raise UserError(
                f"{rows} × {columns} blocks do not divide an image of {image.height} × {image.width}; give divisors."
            )

        def solve(rate: float) -> float:
            return solve_for_rate(lambda value: lattice_rate(np.full(dims, value), rows, columns), rate, 1.0)

        alpha_d = alphas(alpha, rate_nats, dims, rows * columns, solve)
        factor = np.stack([np.kron(ar_factor([alpha], rows), ar_factor([alpha], columns)) for alpha in alpha_d])
        starts = np.arange(rows * columns) // columns * (image.height // rows)
        super().__init__(factor, dims, starts)
        self.columns = columns


def lattice_rate(alpha_d: Array, rows: int, columns: int) -> float:
    """δ in nats: Λ is a Kronecker product, so each of its C columns (R rows) is a chain of R (C) steps."""
    return float(columns * ar1_rate(alpha_d, rows) + rows * ar1_rate(alpha_d, columns))
