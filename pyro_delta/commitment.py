"""What a prior and a posterior's family commit: how many nats, for how long, and how it is known. The only place.

Formulas certify: a registered closed form of the prior, its density where that is a Gaussian's, or a formula that the
guide gives for a family of its own. An optimiser can only refute (`pyro_delta.diagnostics.verify`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.distributions import Distribution

from pyro_delta.distributions.any_gaussian import title_of
from pyro_delta.distributions.mean_field import normal_parameters
from pyro_delta.errors import UserError
from pyro_delta.rate import committed_rate, has_closed_form

Pairs = Mapping[str, tuple[Distribution, Distribution]]
"""Latent site → posterior q and prior p."""
Formula = Callable[[Distribution], Any]


@dataclass(frozen=True)
class Commitment:
    """The least KL(q ‖ p) of any datum, for every posterior of a family.

    Attributes:
        nats: for the prior as it is now; None if no formula says it.
        throughout: whatever training does; None if no formula says it.
        known_by: how it is known, or why nothing is.
        learns: whether training moves the density of the prior.
        claimed: whether the guide itself gave the formula.
    """

    nats: float | None
    throughout: float | None
    known_by: str
    learns: bool = False
    claimed: bool = False


def commitment(
    pairs: Pairs,
    *,
    learns: bool,
    formula: Formula | None = None,
    floor: float | None = None,
    unless: str | None = None,
) -> Commitment:
    """What posteriors of the families of `pairs` commit against their priors.

    Args:
        pairs: of one datum.
        learns: whether training moves the density of the prior.
        formula: the guide's own `committed_rate(prior)`, for a family of its own.
        floor: nats that a prior which learns commits whatever it learns, against independent posteriors.
        unless: why no formula holds, if there is a reason that the pairs do not show.

    Raises:
        UserError: if the formula gives what is no rate.
    """
    if unless is not None:
        return Commitment(None, None, unless, learns)
    if formula is not None and len(pairs) == 1:
        ((_, p),) = pairs.values()
        claimed = claimed_rate(formula, p)
        if claimed is None:
            return Commitment(None, None, "the guide's formula does not know this prior", learns)
        return Commitment(claimed, None if learns else claimed, "the guide's own formula", learns, claimed=True)
    total, ways = 0.0, set()
    for name, (q, p) in pairs.items():
        if normal_parameters(q) is None:
            return Commitment(
                None, None, f"posteriors of {name!r} are {title_of(q)}, of which no formula is known", learns
            )
        if normal_parameters(p) is not None:
            ways.add(f"the independence of {title_of(p)}")
            continue
        try:
            total += committed_rate(p).sum().item()
        except UserError as error:
            return Commitment(None, None, str(error), learns)
        ways.add(f"a formula of {title_of(p)}" if has_closed_form(p) else f"the density of {title_of(p)}, a Gaussian")
    known_by = " and ".join(sorted(ways))
    if not learns:
        return Commitment(total, total, known_by)
    return Commitment(total, floor, known_by if floor is None else f"{known_by}, above the floor of the prior", learns)


def claimed_rate(formula: Formula, prior: Distribution) -> float | None:
    """δ that a guide's own formula gives against a prior; None if it gives none for this one.

    Raises:
        UserError: if what it gives is no rate.
    """
    try:
        claimed = formula(prior)
    except (UserError, NotImplementedError):  # the latter from a prior without moments, such as an auxiliary one
        return None
    try:
        rate = float(claimed)
    except (TypeError, ValueError, RuntimeError):
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise UserError(
            f"committed_rate of the guide gives {claimed!r}; it must be a finite number of nats, 0 or more."
        )
    return rate
