"""AR(1) priors as programs: with a fixed α, with a learned one above a floor, and without any correlation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.protocol import Spec
from pyro_delta.rate import (
    alpha_for_rate,
    alpha_of_rates,
    ar1_committed_rate,
    check_invertible,
    check_whole,
    parse_alpha,
    rate_of_bitrate,
)


def even_starts(positions: int, length: int | None = None) -> Tensor:
    """`starts` of n = `length` latent steps that share the positions of the data evenly, (n,): ⌊t · positions / n⌋.

    One step for each position where `length` is None. With more steps than positions, several belong to each.

    Raises:
        UserError: if neither number divides the other.
    """
    steps = positions if length is None else length
    if steps < 1 or (positions % steps and steps % positions):
        raise UserError(
            f"prior.length={steps} does not divide the {positions} positions of the data; choose a divisor of them, or "
            "a multiple."
        )
    return torch.arange(steps) * positions // steps


def steps_within(starts: Tensor, lengths: Tensor | None) -> Tensor | None:
    """How many latent steps belong to data of so many positions, (B,); None for data without lengths."""
    return None if lengths is None else (starts < lengths.unsqueeze(-1)).sum(-1)


def check_one_given(**options: float | str | None) -> None:
    """Refuse anything but one of the options.

    Raises:
        UserError: naming them.
    """
    given = [name for name, value in options.items() if value is not None]
    if len(given) != 1:
        names = " and ".join(f"prior.{name}" for name in given or options)
        raise UserError(f"{'both' if given else 'none'} of {names} given; give just one.")


def largest(kind: torch.dtype) -> Tensor:
    """The largest α < 1 of a type, ()."""
    return torch.nextafter(torch.ones((), dtype=kind), torch.zeros((), dtype=kind))


def held(alpha_d: Tensor, length: int, rate: float | None) -> Tensor:
    """Correlations in torch's default type, if that holds them, and the rate that was asked for.

    Args:
        alpha_d: in float64, (d,).
        length: n, latent steps.
        rate: that they must commit, in nats, to a thousandth of it; None if that was not asked for.

    Raises:
        UserError: one rounds to 1, or they commit another rate when they are rounded.
    """
    kind = torch.get_default_dtype()
    name, held_d = str(kind).removeprefix("torch."), alpha_d.to(kind)

    def rate_of(alpha_d: Tensor) -> float:
        return float(ar1_committed_rate(alpha_d.double(), length))

    most = largest(kind)
    if bool((held_d.abs() >= 1).any()):
        if rate is None:
            value = alpha_d[alpha_d.abs().argmax()].item()
            raise UserError(
                f"prior.alpha has {value!r}, which {name} rounds to {value:.0f}: it holds {most.numpy()!s} at most, "
                f"with which a dimension of {length} steps commits {rate_of(most.expand(1)):.6g} nats."
            )
        raise UserError(
            f"prior.rate_nats={rate:g} needs an alpha nearer to 1 than {name} holds; {len(alpha_d)} dimensions of "
            f"{length} steps commit at most {rate_of(most.expand(len(alpha_d))):.6g} nats there: ask for less, or for "
            "more prior.dims."
        )
    if rate is not None and abs(rate_of(held_d) - rate) > 1e-3 * rate:
        near = (torch.nextafter(held_d, torch.full_like(held_d, end)) for end in (0.0, 1.0))
        both = sorted({f"{rate_of(a_d):.6g}" for a_d in (held_d, *near) if bool((a_d < 1).all())}, key=float)
        raise UserError(
            f"prior.rate_nats={rate:g} needs an alpha that {name} does not hold: near it, it commits "
            f"{' or '.join(both)} nats; ask for one of these, or for more prior.dims."
        )
    return held_d


class AR1Prior(nn.Module):
    """Stationary AR(1) Gaussian process over the latent sequence, its α fixed [1].

    `forward()` returns `GaussianAR1(alpha, length)` of event shape (n, d). Data with `lengths`, in positions, have as
    many steps as belong to these, and commit what a process of so many steps commits.

    Args:
        spec: of the data.
        dims: d, size of one latent step.
        length: n, latent steps, a divisor of the positions of the data or a multiple; None is one for each.
        alpha: one number, `LO:HI` for a linear spread over the dimensions, or d numbers with commas.
        rate_nats: committed rate from which one shared α is solved (eq. 3 of [1]), in place of `alpha`.
        bitrate: the same in bits a second of a datum of all positions, of data that last some time.

    Raises:
        UserError: an option cannot be read, or no α of torch's default type commits the rate to a thousandth; or a
            bitrate is more than AR(1) can commit, or given for data that last no time.

    References:
        [1] A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    twin = "pyro_delta.twin.priors:AR1Prior"

    alpha: Tensor
    starts: Tensor

    def __init__(
        self,
        spec: Spec,
        *,
        dims: int = 8,
        length: int | None = None,
        alpha: str | float | None = None,
        rate_nats: float | None = None,
        bitrate: float | None = None,
    ) -> None:
        super().__init__()
        check_one_given(alpha=alpha, rate_nats=rate_nats, **({} if bitrate is None else {"bitrate": bitrate}))
        starts = even_starts(spec.positions, length)
        if bitrate is not None:
            rate_nats = rate_of_bitrate(bitrate, getattr(spec, "seconds", None), starts.numel(), dims)
        if rate_nats is not None:
            alpha = alpha_for_rate(rate_nats, starts.numel(), dims)
        assert alpha is not None  # one of the two is given
        self.length = starts.numel()
        exact_d = torch.tensor(parse_alpha(alpha, dims), dtype=torch.float64)
        self.register_buffer("alpha", held(exact_d, self.length, rate_nats))
        self.register_buffer("starts", starts)

    def forward(self, lengths: Tensor | None = None) -> GaussianAR1:
        """The prior over z, event shape (n, d); of batch shape (B,) for data of so many positions each, (B,)."""
        return GaussianAR1(self.alpha, self.length, steps_within(self.starts, lengths))


class StandardNormalPrior(nn.Module):
    """N(0, 1) for every step and dimension: δ = 0, the baseline that may collapse.

    `forward()` returns `GaussianAR1` with α = 0, which has that density, and a closed-form KL from every guide.

    Args:
        spec: of the data.
        dims: d, size of one latent step.
        length: n, latent steps, a divisor of the positions of the data or a multiple; None is one for each.
    """

    twin = "pyro_delta.twin.priors:StandardNormalPrior"

    alpha: Tensor
    starts: Tensor

    def __init__(self, spec: Spec, *, dims: int = 8, length: int | None = None) -> None:
        super().__init__()
        check_whole("dims", dims)
        starts = even_starts(spec.positions, length)
        self.length = starts.numel()
        self.register_buffer("alpha", torch.zeros(dims))
        self.register_buffer("starts", starts)

    def forward(self, lengths: Tensor | None = None) -> GaussianAR1:
        """The prior over z, event shape (n, d); of batch shape (B,) for data of so many positions each, (B,)."""
        return GaussianAR1(self.alpha, self.length, steps_within(self.starts, lengths))


class LearnedAR1Prior(nn.Module):
    """AR(1) process whose α is learned, and whose committed rate cannot fall below a floor δ₀.

    The total rate is δ₀ + softplus(`excess`), dimension k commits the share softmax(`shares`)_k of it, and α_k is the
    inverse of eq. 3 of [1]. So KL ≥ δ₀ holds for every value of the parameters, by construction.

    NOTE: [1] fixes α.

    NOTE: a share that needs an α nearer to 1 than the parameters' type can hold (in float32, above 18 nats at n = 32)
    gives α = 1, which is no process: an error with validation on, a loss that is not finite without.

    Args:
        spec: of the data.
        dims: d, size of one latent step.
        length: n ≥ 2, latent steps, a divisor of the positions of the data or a multiple; None is one for each.
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

    starts: Tensor

    def __init__(self, spec: Spec, *, dims: int = 8, length: int | None = None, floor_nats: float = 8.0) -> None:
        super().__init__()
        starts = even_starts(spec.positions, length)
        self.length = starts.numel()
        self.register_buffer("starts", starts)
        check_invertible(floor_nats, self.length, dims)
        self.floor_nats = float(floor_nats)
        self.excess = nn.Parameter(torch.zeros(()))
        self.shares = nn.Parameter(torch.zeros(dims))
        if not (self.alpha < 1).all():
            # Training starts ln 2 above the floor. Rounded down, for α is rounded up.
            most = dims * float(ar1_committed_rate(largest(self.shares.dtype).double(), self.length)) - math.log(2)
            raise UserError(
                f"prior.floor_nats={floor_nats:g} needs an alpha nearer to 1 than "
                f"{str(self.shares.dtype).removeprefix('torch.')} holds; {dims} dimensions of {self.length} steps can "
                f"have a floor of {math.floor(1e3 * most) / 1e3:g} nats at most: ask for less, or for more prior.dims."
            )

    @property
    def rate_nats(self) -> Tensor:
        """The total rate committed now, δ₀ + softplus(excess), float64."""
        return self.floor_nats + F.softplus(self.excess.double())

    @property
    def alpha(self) -> Tensor:
        """(d,) correlations in the parameters' type, rounded up: rounded down they would commit less than the floor."""
        exact_d = alpha_of_rates(self.rate_nats * self.shares.double().softmax(0), self.length)
        alpha_d = exact_d.to(self.shares.dtype)
        with torch.no_grad():
            step_d = torch.nextafter(alpha_d, torch.ones_like(alpha_d)) - alpha_d
            step_d = torch.where(alpha_d.double() < exact_d, step_d, 0)
        return alpha_d + step_d

    def forward(self) -> GaussianAR1:
        """The prior over z, event shape (n, d)."""
        return GaussianAR1(self.alpha, self.length)
