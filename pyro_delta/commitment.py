"""What a prior and a posterior's family commit: how many nats, for how long, and how it is known. The only place.

Formulas certify: a registered closed form of the prior or of prior and family, the parameters of a Gaussian of a known
class, or a formula that the guide gives for a family of its own. A density that was probed certifies up to the cap that
its digits allow. An optimiser can only refute (`pyro_delta.diagnostics.verify`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.distributions.any_gaussian import as_gaussian, title_of
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.distributions.mean_field import normal_parameters
from pyro_delta.errors import UserError
from pyro_delta.families import CertifiedBy, Family, Guarantee, family_of
from pyro_delta.rate import committed_rate, gaussian_rate, has_closed_form

Pairs = Mapping[str, tuple[Distribution, Distribution]]
"""Latent site → posterior q and prior p."""
Posteriors = Mapping[str, Distribution]
"""Latent site → posterior."""
Priors = Mapping[str, Distribution]
"""Latent site → prior."""
Formula = Callable[[Distribution], Any]
"""A guide's own `committed_rate(prior)`: nats, or (B,) of them against a prior that has the lengths of B data."""

EXACTLY: Guarantee = "every datum, exactly"
AT_LEAST: Guarantee = "every datum, at least"
BY_LENGTH: Guarantee = "every datum, by its length"
BY_PRIOR: Guarantee = "every datum, by its own prior"
IN_THE_MEAN: Guarantee = "mean over the data"


@dataclass(frozen=True)
class Commitment:
    """The least KL(q ‖ p) of any datum, for every posterior of a family; or the least mean of them.

    Where data have lengths, and a prior with them, it is that of a datum of all steps; where they have priors of their
    own, by what they are conditioned on, the least of some. `committed_by_datum` says what the others commit.

    Attributes:
        nats: for the prior as it is now; None if no formula says it.
        throughout: whatever training does; None if no formula says it.
        known_by: how it is known, or why nothing is.
        learns: whether training moves the density of the prior.
        claimed: whether the guide itself gave the formula.
        guarantee: what `nats` bounds; None if there are none.
        certified_by: the weakest way by which a part of `nats` is known; None if there are none.
        cap_nats: the most that probing certifies of a site; None where nothing was probed.
        fixed: latent sites of whose posteriors something is fixed that `nats` rests on.
    """

    nats: float | None
    throughout: float | None
    known_by: str
    learns: bool = False
    claimed: bool = False
    guarantee: Guarantee | None = None
    certified_by: CertifiedBy | None = None
    cap_nats: float | None = None
    fixed: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What is committed, in a sentence."""
        if self.nats is None:
            return f"not certified: {self.known_by}"
        if self.throughout is None:
            return f"not certified: the prior learns, with no floor for this guide; {self.nats:.6g} nats as it starts"
        of = (
            " in the mean over a batch, in training mode, and of no single datum,"
            if self.guarantee == IN_THE_MEAN
            else ""
        )
        if self.guarantee == BY_LENGTH:
            whole = f"{self.throughout:.6g} nats for one of all steps"
            return f"δ of a datum is that of its own length, {whole}, {self.way}: {self.known_by}"
        if self.guarantee == BY_PRIOR:
            least = f"{self.throughout:.6g} nats the least that was found"
            return f"δ of a datum is that of its own prior, {least}, {self.way}: {self.known_by}"
        return f"δ = {self.throughout:.6g} nats{of} {self.way}: {self.known_by}"

    @property
    def way(self) -> str:
        """How it is certified, in short: by formula, by type, by probing and up to which nats, or not at all."""
        if self.certified_by is None:
            return "not certified"
        return f"by {self.certified_by}" + ("" if self.cap_nats is None else f", up to {self.cap_nats:g} nats")


def commitment(
    pairs: Pairs,
    *,
    learns: bool,
    others: Callable[[], Iterable[Posteriors]] = tuple,
    priors: Iterable[Priors] = (),
    formula: Formula | None = None,
    guarantee: Any = AT_LEAST,
    floor: float | None = None,
    unless: str | None = None,
) -> Commitment:
    """What posteriors of the families of `pairs` commit against their priors.

    Args:
        pairs: of one datum.
        learns: whether training moves the density of the prior.
        others: posteriors of other data, and of that one with other weights: what is the same in all of them is fixed.
            Without them nothing counts as fixed.
        priors: of other data. Without them that of `pairs` counts as the prior of all.
        formula: the guide's own `committed_rate(prior)`, for a family of its own.
        guarantee: the guide's word for what its formula bounds.
        floor: nats that a prior which learns commits whatever it learns, against independent posteriors.
        unless: why no formula holds, if there is a reason that the pairs do not show.

    Raises:
        UserError: if the formula gives what is no rate, or the guide's guarantee is unknown.
    """
    if unless is not None:
        return Commitment(None, None, unless, learns)
    of_others = list(priors)
    if formula is not None and len(pairs) == 1:
        ((name, (_, p)),) = pairs.items()
        if guarantee == AT_LEAST and _claimed_by_datum(pairs, formula) is not None:
            try:
                whole = _whole(name, p)
            except UserError as error:
                return Commitment(None, None, str(error), learns)
            return _claim(formula, whole, BY_LENGTH, learns)
        claims = [_claim(formula, each, guarantee, learns) for each in (p, *(one[name] for one in of_others))]
        if any(claim.nats is None for claim in claims):
            return next(claim for claim in claims if claim.nats is None)
        said = sorted({claim.nats for claim in claims if claim.nats is not None})
        if getattr(p, "lengths", None) is not None and len(said) > 1:
            # What it would say of other lengths is not known: the least of some data is not that of all.
            return Commitment(None, None, _NOT_BY_DATUM.format(said[0], said[-1]), learns)
        return min(claims, key=lambda claim: claim.nats or 0.0)  # of no datum is less claimed
    total, ways, sites = 0.0, set(), []
    for name, (q, p) in pairs.items():
        try:
            site = _of_each(_site(name, q, p, others), name, q, [one[name] for one in of_others], others)
        except UserError as error:
            return Commitment(None, None, str(error), learns)
        total += site.nats if site.cap_nats is None else min(site.nats, site.cap_nats)
        ways.add(site.known_by)
        sites.append(site)
    known_by = " and ".join(sorted(ways))
    caps = [site.cap_nats for site in sites if site.cap_nats is not None]
    known: dict[str, Any] = {
        "guarantee": _guarantee([site.guarantee for site in sites]),
        "certified_by": max((site.by for site in sites), key=get_args(CertifiedBy).index),
        "cap_nats": min(caps, default=None),
        "fixed": tuple(name for name, site in zip(pairs, sites, strict=True) if site.fixed),
    }
    if not learns:
        return Commitment(total, total, known_by, **known)
    known_by = known_by if floor is None else f"{known_by}, above the floor of the prior"
    return Commitment(total, floor, known_by, learns, **known)


def committed_by_datum(pairs: Pairs, formula: Formula | None = None) -> Tensor | None:
    """What each of B data commits against its own prior, (B,) nats in float64; None where it is not known of each.

    It is of independent posteriors against sequences of a registered class, whose parameters may be other ones for
    other data, or their lengths; and of a guide whose own formula takes lengths.

    Args:
        pairs: of B data.
        formula: the guide's own, for a family of its own.
    """
    if formula is not None:
        return _claimed_by_datum(pairs, formula)
    committing = {name: p for name, (_, p) in pairs.items() if normal_parameters(p) is None}
    if not committing or any(normal_parameters(q) is None for q, _ in pairs.values()):
        return None
    if not all(map(_is_sequence, committing.values())):
        return None
    return sum(map(committed_rate, committing.values()), torch.zeros((), dtype=torch.float64))


_NOT_BY_DATUM = (
    "the guide's formula gives {:.6g} nats for one length and {:.6g} for another, but not those of each datum, (B,), "
    "against a prior with their lengths"
)


def _claimed_by_datum(pairs: Pairs, formula: Formula) -> Tensor | None:
    """What a guide's own formula gives of each datum, where one site has a prior with their lengths.

    Raises:
        UserError: if what it gives of one is no rate.
    """
    priors: list[Any] = [p for _, p in pairs.values()]
    if len(priors) != 1 or getattr(priors[0], "lengths", None) is None:
        return None
    try:
        claimed = torch.as_tensor(formula(priors[0]), dtype=torch.float64)
    except (UserError, NotImplementedError, TypeError, ValueError, RuntimeError):  # `_claim` says what is no number
        return None
    if claimed.shape != priors[0].batch_shape:
        return None
    if (wrong := ~((claimed >= 0) & (claimed < math.inf))).any():
        raise UserError(
            f"committed_rate of the guide gives {claimed[wrong][0].item():g} for a datum of "
            f"{priors[0].lengths[wrong][0].item()} of {priors[0].event_shape[0]} steps; it must be a finite number of "
            "nats, 0 or more, for every length."
        )
    return claimed


def _is_sequence(p: Distribution) -> bool:
    """Whether what a prior commits is known for each datum: its batch is that of the data."""
    with_lengths = getattr(p, "lengths", None) is not None and has_closed_form(p)
    return (type(p) in (GaussianAR1, GaussianSequence) or with_lengths) and len(p.batch_shape) == 1


def _guarantee(of_sites: list[Guarantee]) -> Guarantee:
    for by_datum in (BY_LENGTH, BY_PRIOR):
        if by_datum in of_sites:
            return by_datum
    return EXACTLY if all(one == EXACTLY for one in of_sites) else AT_LEAST


class _Site(NamedTuple):
    nats: float
    by: CertifiedBy
    guarantee: Guarantee
    known_by: str
    cap_nats: float | None = None
    fixed: bool = False


def _site(name: str, q: Distribution, p: Distribution, others: Callable[[], Iterable[Posteriors]]) -> _Site:
    """What a site commits.

    Raises:
        UserError: why no formula says it.
    """
    if getattr(p, "lengths", None) is not None:
        return _by_length(name, q, p)
    family = family_of(q, p)
    if family is not None and _is_fixed(family, name, q, others) and (rate := family.rate(q, p)) is not None:
        known_by = f"the {family.words} of {title_of(q)} against {title_of(p)}"
        return _Site(rate.nats.sum().item(), rate.by, family.guarantee, known_by, rate.cap_nats, fixed=True)
    if normal_parameters(q) is None:
        lack = "no formula is known" if family is None else f"no {family.words} is seen against {title_of(p)}"
        raise UserError(f"posteriors of {name!r} are {title_of(q)}, of which {lack}")
    if normal_parameters(p) is not None:
        return _Site(0.0, "type", AT_LEAST, f"the independence of {title_of(p)}")
    if has_closed_form(p):
        return _Site(committed_rate(p).sum().item(), "formula", AT_LEAST, f"a formula of {title_of(p)}")
    gaussian = as_gaussian(p)
    nats = gaussian_rate(gaussian).sum().item()
    if gaussian.cap_nats is None:
        return _Site(nats, "type", AT_LEAST, f"the type of {title_of(p)}, a Gaussian")
    return _Site(nats, "probing", AT_LEAST, f"the density of {title_of(p)}, a Gaussian", gaussian.cap_nats)


def _of_each(
    first: _Site, name: str, q: Distribution, priors: list[Distribution], others: Callable[[], Iterable[Posteriors]]
) -> _Site:
    """What a site commits that commits `first` for the first datum, and has these priors for others.

    Raises:
        UserError: if others commit another rate, and it is not known of each.
    """
    if first.guarantee == BY_LENGTH:
        return first
    rates = [_site(name, q, p, others).nats for p in priors]
    if all(math.isclose(rate, first.nats, rel_tol=1e-9, abs_tol=1e-9) for rate in rates):
        return first
    if first.fixed or not all(map(_is_sequence, priors)):
        other = next(rate for rate in rates if not math.isclose(rate, first.nats, rel_tol=1e-9, abs_tol=1e-9))
        raise UserError(
            f"the prior of {name!r} differs from datum to datum, and commits {first.nats:.6g} nats for one and "
            f"{other:.6g} for another"
        )
    return first._replace(nats=min(first.nats, *rates), guarantee=BY_PRIOR)


def _by_length(name: str, q: Distribution, p: Any) -> _Site:
    """What a site commits whose prior has a length for each datum, at all steps.

    Raises:
        UserError: if posteriors are no independent Normals.
    """
    if normal_parameters(q) is None:
        raise UserError(f"posteriors of {name!r} are {title_of(q)}, of which no formula is known for data with lengths")
    if not has_closed_form(p):
        # A subclass may have another density, and a density that is probed is not known for every length.
        raise UserError(f"the prior of {name!r} is {title_of(p)}, of which no formula is known for data with lengths")
    return _Site(committed_rate(_whole(name, p)).sum().item(), "formula", BY_LENGTH, f"a formula of {title_of(p)}")


def _whole(name: str, p: Distribution) -> Distribution:
    """A prior that has lengths, without them.

    Raises:
        UserError: if it does not say so in its own class.
    """
    whole = getattr(p, "whole", None)
    if type(whole) is not type(p):
        raise UserError(
            f"the prior of {name!r} is {title_of(p)}, which has lengths, but no `whole` of its own class: the same "
            "without them"
        )
    return whole


def _is_fixed(family: Family, name: str, q: Distribution, others: Callable[[], Iterable[Posteriors]]) -> bool:
    """Whether what a family rests on is the same, to the last digit, in all posteriors, and learns from none."""
    mine, compared = family.rests_on(q), False
    if any(part.requires_grad for part in mine):
        return False
    for posteriors in others():
        compared = True
        if not _same(mine, family.rests_on(posteriors[name]), type(q) is type(posteriors[name])):
            return False
    return compared


def _same(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...], alike: bool) -> bool:
    return alike and len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


def _claim(formula: Formula, prior: Distribution, guarantee: Any, learns: bool) -> Commitment:
    if guarantee not in get_args(Guarantee):
        raise UserError(f"guarantee of the guide is {guarantee!r}; give one of {', '.join(get_args(Guarantee))}.")
    claimed = claimed_rate(formula, prior)
    if claimed is None:
        return Commitment(None, None, "the guide's formula does not know this prior", learns)
    known_by = "the guide's own formula" + (", in training mode" if guarantee == IN_THE_MEAN else "")
    # A formula of a Gaussian prior is no better known than that the prior is that Gaussian.
    cap = _cap_of(prior)
    if cap is not None:
        claimed = min(claimed, cap)
    by: CertifiedBy = "formula" if cap is None else "probing"
    return Commitment(claimed, None if learns else claimed, known_by, learns, True, guarantee, by, cap)


def _cap_of(prior: Distribution) -> float | None:
    """The cap of a Gaussian prior that is recognised by probing alone; None for any other prior."""
    if normal_parameters(prior) is not None or has_closed_form(prior):
        return None
    try:
        return as_gaussian(prior).cap_nats
    except UserError:
        return None


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
