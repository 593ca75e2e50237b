"""AR(1) priors as programs: with a fixed α, with a learned one above a floor, and without any correlation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_delta.data.spec import ImageSpec
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.rate import (
    alpha_for_rate,
    alpha_of_rates,
    check_invertible,
    check_whole,
    parse_alpha,
)


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


def steps_of_image(spec: ImageSpec, length: int | None) -> Tensor:
    """`first_row` of `length` steps, or of one step per row of the image where `length` is None."""
    return rows_of_steps(spec.height if length is None else length, spec.height)


def check_one_given(**options: float | str | None) -> None:
    """Refuse anything but one of the options.

    Raises:
        UserError: naming them.
    """
    given = sum(value is not None for value in options.values())
    if given != 1:
        names = " and ".join(f"prior.{name}" for name in options)
        raise UserError(f"{'none' if given == 0 else 'both'} of {names} given; give just one.")


class AR1Prior(PyroModule):
    """Stationary AR(1) Gaussian process over the latent sequence, its α fixed [1].

    `forward()` returns `GaussianAR1(alpha, length)` of event shape (n, d).

    Args:
        spec: the images.
        dims: d, size of one latent step.
        length: n, latent steps, a divisor of the image's rows; None is one for each row.
        alpha: one number, `LO:HI` for a linear spread over the dimensions, or d numbers with commas.
        rate_nats: committed rate from which one shared α is solved (eq. 3 of [1]), in place of `alpha`.

    Raises:
        UserError: an option cannot be read, or no α commits the rate.

    References:
        [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    twin = "pyro_delta.twin.priors:AR1Prior"

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
        check_one_given(alpha=alpha, rate_nats=rate_nats)
        first_row = steps_of_image(spec, length)
        if rate_nats is not None:
            alpha = alpha_for_rate(rate_nats, first_row.numel(), dims)
        assert alpha is not None  # one of the two is given
        self.register_buffer("alpha", torch.tensor(parse_alpha(alpha, dims), dtype=torch.get_default_dtype()))
        self.register_buffer("first_row", first_row)

    def forward(self) -> GaussianAR1:
        """The prior over z, event shape (n, d)."""
        return GaussianAR1(self.alpha, self.first_row.numel())


class StandardNormalPrior(PyroModule):
    """N(0, 1) for every step and dimension: δ = 0, the baseline that may collapse.

    `forward()` returns `GaussianAR1` with α = 0, which has that density, and a closed-form KL from every guide.

    Args:
        spec: the images.
        dims: d, size of one latent step.
        length: n, latent steps, a divisor of the image's rows; None is one for each row.
    """

    twin = "pyro_delta.twin.priors:StandardNormalPrior"

    alpha: Tensor
    first_row: Tensor

    def __init__(self, spec: ImageSpec, *, dims: int = 8, length: int | None = None) -> None:
        super().__init__()
        check_whole("dims", dims)
        self.register_buffer("alpha", torch.zeros(dims))
        self.register_buffer("first_row", steps_of_image(spec, length))

    def forward(self) -> GaussianAR1:
        """The prior over z, event shape (n, d)."""
        return GaussianAR1(self.alpha, self.first_row.numel())


class LearnedAR1Prior(PyroModule):
    """AR(1) process whose α is learned, and whose committed rate cannot fall below a floor δ₀.

    The total rate is δ₀ + softplus(`excess`), dimension k commits the share softmax(`shares`)_k of it, and α_k is the
    inverse of eq. 3 of [1]. So KL ≥ δ₀ holds for every value of the parameters, by construction.

    NOTE: [1] fixes α.

    NOTE: a share that needs an α nearer to 1 than the parameters' type can hold (in float32, above 18 nats at n = 32)
    gives α = 1, which is no process: an error with validation on, a loss that is not finite without.

    Args:
        spec: the images.
        dims: d, size of one latent step.
        length: n ≥ 2, latent steps, a divisor of the image's rows; None is one for each row.
        floor_nats: δ₀ in nats.

    Attributes:
        floor_nats: δ₀, which no step of training can undercut.
        rate_nats: the rate committed now, which training moves: log it apart from the floor.

    Raises:
        UserError: no α commits the floor in the parameters' type.

    References:
        [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    twin = "pyro_delta.twin.priors:LearnedAR1Prior"

    first_row: Tensor

    def __init__(self, spec: ImageSpec, *, dims: int = 8, length: int | None = None, floor_nats: float = 8.0) -> None:
        super().__init__()
        self.register_buffer("first_row", steps_of_image(spec, length))
        check_invertible(floor_nats, self.first_row.numel(), dims)
        self.floor_nats = float(floor_nats)
        self.excess = nn.Parameter(torch.zeros(()))
        self.shares = nn.Parameter(torch.zeros(dims))
        if not (self.alpha < 1).all():
            raise UserError(
                f"prior.floor_nats={floor_nats:g} over {dims} dimensions of {self.first_row.numel()} steps needs an "
                f"alpha nearer to 1 than {self.shares.dtype} can hold; ask for less or more dimensions."
            )

    @property
    def rate_nats(self) -> Tensor:
        """The total rate committed now, δ₀ + softplus(excess), float64."""
        return self.floor_nats + F.softplus(self.excess.double())

    @property
    def alpha(self) -> Tensor:
        """(d,) correlations in the parameters' type, rounded up: rounded down they would commit less than the floor."""
        exact_d = alpha_of_rates(self.rate_nats * self.shares.double().softmax(0), self.first_row.numel())
        alpha_d = exact_d.to(self.shares.dtype)
        with torch.no_grad():
            step_d = torch.nextafter(alpha_d, torch.ones_like(alpha_d)) - alpha_d
            step_d = torch.where(alpha_d.double() < exact_d, step_d, 0)
        return alpha_d + step_d

    def forward(self) -> GaussianAR1:
        """The prior over z, event shape (n, d)."""
        return GaussianAR1(self.alpha, self.first_row.numel())
