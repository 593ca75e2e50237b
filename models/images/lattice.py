"""A prior over a lattice of blocks of the image, as a program."""

from __future__ import annotations

import torch

from pyro_delta.data.images.spec import require_image
from pyro_delta.distributions.gaussian_ar1 import check_steps
from pyro_delta.errors import UserError
from pyro_delta.inverse import solve_for_rate
from pyro_delta.models.priors.ar1 import check_one_given, even_starts
from pyro_delta.models.priors.dense import DensePrior, ar_factor
from pyro_delta.protocol import Spec
from pyro_delta.rate import ar1_committed_rate, check_invertible, parse_alpha


class LatticePrior(DensePrior):
    """A lattice of R × C blocks of the image: correlation α_k^|r−r'| · α_k^|c−c'|, the Kronecker product of two AR(1).

    Flattened row-major: step t is block-row t // C and block-column t % C. Blocks of one block-row share their first
    row. Its rate is closed: C times that of an AR(1) over R steps plus R times that of one over C steps
    (A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019, eq. 3).

    Args:
        spec: of the images; other data have no blocks.
        dims: d, size of one latent step.
        rows: R, block-rows, a divisor of the image's rows.
        columns: C, block-columns, a divisor of the image's columns.
        alpha: one number, `LO:HI` for a linear spread over the dimensions, or d numbers with commas.
        rate_nats: committed rate from which one shared α is solved, in place of `alpha`.

    Attributes:
        columns: C, so that a guide can pool each block of columns on its own.

    Raises:
        UserError: the data are not images, an option cannot be read, blocks do not fit the image, or no α commits the
            rate.
    """

    twin = "pyro_delta.twin.images.lattice:LatticePrior"

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
        check_one_given(alpha=alpha, rate_nats=rate_nats)
        image = require_image(spec, "prior", "lattice")
        for name, blocks, size in (("rows", rows, image.height), ("columns", columns, image.width)):
            if blocks < 1 or size % blocks:
                raise UserError(
                    f"prior.{name}={blocks} does not divide the {size} {name} of the image; choose a divisor of it."
                )
        check_steps(rows * columns)
        if rate_nats is not None:
            alpha = _lattice_alpha_for_rate(rate_nats, rows, columns, dims)
        assert alpha is not None  # one of the two is given
        factors = [torch.kron(ar_factor([a], rows), ar_factor([a], columns)) for a in parse_alpha(alpha, dims)]
        super().__init__(torch.stack(factors), dims, even_starts(image.height, rows).repeat_interleave(columns))
        self.columns = columns


def _lattice_alpha_for_rate(rate: float, rows: int, columns: int, dims: int) -> float:
    """The α that, shared by all dimensions and both directions, commits `rate` nats."""
    check_invertible(rate, rows * columns, dims)

    def rate_of(alpha: float) -> float:
        return dims * (columns * ar1_committed_rate(alpha, rows) + rows * ar1_committed_rate(alpha, columns)).item()

    return solve_for_rate(rate_of, rate, f"a lattice of {rows} × {columns} with d = {dims}")
