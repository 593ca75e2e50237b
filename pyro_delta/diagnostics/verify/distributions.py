"""Do distributions draw what they score, and are likelihoods normalised?"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, Transform, constraints

from pyro_delta.data.values import random_values
from pyro_delta.diagnostics.trace import observed, posteriors, seeded, trace
from pyro_delta.diagnostics.verify.case import Case, Finding, moved, shake, without_dropout
from pyro_delta.distributions.any_gaussian import title_of
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.gaussian_types import gaussian_by_type
from pyro_delta.distributions.scored import as_scored
from pyro_delta.vae import copied

DRAWS = 20_000
"""Samples for the agreement of `rsample`, `log_prob`, `mean` and `variance`."""
LARGEST_Z = 6.0
"""Standard errors by which a sample mean may be off: about one false alarm in 10⁸ coordinates."""
OUTCOMES = 2**14
"""Most values that are summed over for the normalisation of a distribution of a user's own."""
SUMMED = 2**10
"""Data that are scored to sum over the conditional distributions of groups of numbers."""
NORMALISED = 1e-6
"""What a sum of probabilities may be off from 1, …"""
ROUNDED = 1e-9
"""… of which this much is rounding: what is more may grow in training."""
TRIED = 512
"""Random data by which the sums at all places are estimated, …"""
REPEATS = 16
"""Sums over values that noise differs in, such as that of dropout, whose mean is 1."""
CHUNK = 32
"""… so many at a time."""
INTEGRATED = 0.01
"""What an integral may be off from 1 because of the rule that takes it."""
NEVER_NORMALISED = {"Unit", "ImproperUniform", "Delta", "Rejector"}
"""Classes of Pyro's that are no densities over what they are evaluated at, or carry a factor of one's own."""
OWN_PARTS = {"parameters_at", "sample", "expand", "noise", "support", "arg_constraints", "has_rsample"}
"""What a subclass of a shipped distribution may change without touching how parameters become probabilities."""
LOOKED_UP_BY = {"__getattribute__", "__getattr__"}
"""By which it may change all the rest."""
JUMP = 1e-7
"""Distance, relative to a number, at which a density of real numbers should be nearly the same, …"""
JUMPED = 1e-3
"""… and part of its logarithm by which it may differ."""
MOST_SCORED = 2**20
"""Numbers that are scored for the sums over the values of a distribution that has no last one."""


# --- Draws against densities ---


@torch.no_grad()
def check_prior(title: str, case: Case) -> Finding:
    """Do the priors' draws have the mean, variance and density that they state?"""
    finding = Finding(title, None, "there is none")
    for latent in trace(case.vae, case.batch(case.x[:1])).latents.values():
        finding = _agreement(title, latent.p)
        if not finding.passed:
            break
    return finding


@torch.no_grad()
def check_posterior(title: str, case: Case) -> Finding:
    """The same of the posteriors."""
    finding = Finding(title, None, "there is none")
    for drawn in posteriors(case.vae, case.batch(case.x[:1])).values():
        finding = _agreement(title, drawn.q)
        if not finding.passed:
            break
    return finding


def _agreement(title: str, distribution: Distribution) -> Finding:
    """Do samples have the mean and variance that are stated, and the density that is evaluated?

    The density by Stein's identity: E[(z_i − m_i) ∂_i log p(z)] = −1 for every coordinate of any density that falls off
    to zero, as one over all real numbers does.
    """
    wide = as_float64(distribution)
    if is_point(distribution):
        return Finding(title, True, "a point, and nothing is drawn")
    if wide.support.is_discrete:
        return Finding(title, None, f"not checked: {title_of(distribution)} is of integers")
    draw = "rsample" if wide.has_rsample else "sample"
    try:
        z = getattr(wide, draw)((DRAWS,))
    except NotImplementedError:
        return Finding(title, None, f"not checked: {type(distribution).__name__} has no {draw}")
    try:
        mean = wide.mean
    except (NotImplementedError, AttributeError):
        mean = None
    try:
        variance = wide.variance
    except (NotImplementedError, AttributeError):
        variance = None
    if (mean is None or variance is None) and (known := gaussian_by_type(wide)) is not None:
        mean = known.mean.reshape(wide.batch_shape + wide.event_shape)
        variance = torch.linalg.inv(known.precision).diagonal(dim1=-2, dim2=-1).reshape(mean.shape)
    if mean is None:
        return Finding(title, None, f"not checked: {type(distribution).__name__} states no mean")
    return _agreeing(title, wide, draw, z, mean, variance)


def _agreeing(title: str, wide: Any, draw: str, z: Tensor, mean: Tensor, variance: Tensor | None) -> Finding:
    centred = z - mean
    measured = [("mean", z, mean)] + ([] if variance is None else [("variance", centred.square(), variance)])
    if real := is_real(wide.support):
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            (score,) = torch.autograd.grad(wide.log_prob(leaf).sum(), leaf)
        measured.append(("log_prob (Stein's identity)", centred * score, -torch.ones_like(mean)))
    for what, values, expected in measured:
        deviation = values.std(0) / math.sqrt(DRAWS)
        off = (values.mean(0) - expected).abs() / deviation.clamp_min(1e-12)
        if not off.max() <= LARGEST_Z:
            place = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
            return Finding(
                title,
                False,
                f"{draw} disagrees with {what} at {place}: {values.mean(0)[place]:.4g} in {DRAWS} draws, "
                f"{expected.expand_as(off)[place]:.4g} stated",
            )
    agree = [draw, *(["log_prob"] if real else []), "mean", *([] if variance is None else ["variance"])]
    return Finding(title, True, f"{', '.join(agree[:-1])} and {agree[-1]} agree")


def is_point(distribution: Distribution) -> bool:
    """Whether a distribution is a point mass."""
    return type(_core(distribution)) is Delta


def is_real(support: Any) -> bool:
    """Whether a support is all real numbers."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def check_support(title: str, case: Case) -> Finding:
    """Does the guide draw what the prior can score, and does the likelihood take the data?"""
    vae, batch, what = case.vae, case.batch(case.x), case.others
    for name, latent in trace(vae, batch).latents.items():
        support: Any = latent.p.support
        if not support.check(latent.placed).all():
            return Finding(title, False, f"the guide draws {name!r} outside the prior's support")
    likelihood, x = observed(vae, batch, case.latents())
    support = likelihood.support
    if case.spec.levels is not None and not support.is_discrete:
        return Finding(title, False, f"{what} are integers, but {title_of(likelihood)} is a density")
    if case.spec.levels is None and support.is_discrete:
        return Finding(title, False, f"{what} are real numbers, but {title_of(likelihood)} is of integers")
    if not support.check(x).all():
        if support.event_dim > 0 and not isinstance(support, constraints.independent):
            # Such as one-hot vectors, or counts of a given sum: what data are tried is no such thing.
            return Finding(
                title, None, f"not checked: numbers of {what} in {title_of(likelihood)} depend on one another"
            )
        return Finding(title, False, f"{what} lie outside the likelihood's support")
    if (shape := likelihood.log_prob(x).shape) != likelihood.batch_shape:
        return Finding(title, False, f"log_prob of {len(x)} {what} has shape {tuple(shape)}")
    return Finding(title, True, f"latents and {what} lie in it")


# --- Normalisation ---


def unwrapped(distribution: Distribution) -> Any:
    """What an `Independent` or a `MaskedDistribution` wraps, if that tells more than of the whole."""
    core = _core(distribution)
    return core if hasattr(core, "parameters_at") or hasattr(core, "terms") else distribution


@torch.no_grad()
def check_normalised(title: str, case: Case) -> Finding:
    """Is the likelihood a probability over data: by its type, or by sums over values where its class is not known?

    In both modes, at the weights that are given and at others, which a normalisation may depend on.
    """
    finding = Finding(title, None, "there is no likelihood")
    for size in (0.0, 0.5):
        for training in (False, True):
            other = copy.copy(case)
            other.vae = copied(case.vae)
            shake(other.vae, size)
            without_dropout(other.vae.train()) if training else other.vae.eval()
            finding = _normalised(title, other)
            if not finding.passed:
                return finding
    return finding


def _normalised(title: str, case: Case) -> Finding:
    likelihood, _ = observed(case.vae, case.batch(case.x), case.latents())
    core = _core(likelihood)
    name = title_of(core)
    levels, numbers = case.spec.levels, math.prod(case.spec.shape)
    apart = core is not likelihood and not len(core.event_shape) and (levels or 0) <= OUTCOMES
    if by_type(core):
        if apart and levels is not None:  # its parameters may have been changed since it was made
            total = _over_numbers(core, levels, case.x.dtype)
            summed = _summed(title, name, total.clamp(min=1.0) if _is_endless(core) else total)
            if not summed.passed:
                return summed
        return Finding(title, True, f"{title_of(likelihood)} is normalised by type")
    if levels is not None and numbers * math.log(levels) <= math.log(OUTCOMES):
        return _summed(title, name, _over_all(case, levels, numbers))
    whole = f"not checked: {name} is a class of its own, whose log_prob is that of the whole alone; give it terms(x)"
    if not hasattr(core, "terms"):
        if apart:
            try:
                return _of_numbers(title, name, core, case)
            except NotImplementedError:  # no moments, by which to lay out an integral
                return Finding(title, None, whole)
        return Finding(title, None, whole)
    seeded(0)  # the same noise for both, such as that of dropout
    log_prob = core.log_prob(case.x)
    seeded(0)
    terms = core.terms(case.x)
    if (off := moved(log_prob, terms.flatten(len(log_prob.shape)).sum(-1))).any():
        i = int(off.flatten().nonzero()[0])
        total = terms.reshape(len(case.x), -1).sum(-1)[i]
        return Finding(
            title,
            False,
            f"log_prob of {name} is {log_prob[i].item():.6g} nats, the sum of its terms {total.item():.6g}",
        )
    return _terms_summed(title, name, case)


def _core(distribution: Any) -> Any:
    """What stands in all wrappers of torch's and Pyro's."""
    while isinstance(distribution, (Independent, MaskedDistribution)) and _is_of_torch(type(distribution)):
        distribution = distribution.base_dist
    return distribution


def _is_of_torch(cls: type) -> bool:
    return cls.__module__.startswith(("torch.distributions", "pyro.distributions"))


def by_type(distribution: Any) -> bool:
    """Whether a distribution is normalised because of its exact class, or one that changes its parameters alone.

    Distributions and transforms that it is made of count as well.
    """
    cls = type(distribution)
    if _is_of_torch(cls):
        return cls.__name__ not in NEVER_NORMALISED and all(map(_part_by_type, vars(distribution).values()))
    own: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("pyro_delta.distributions"):
            changed = {name for name in own if not name.startswith(("__", "_abc_"))} - OWN_PARTS
            return not changed | own & LOOKED_UP_BY
        own |= vars(base).keys()
    return False


def _part_by_type(part: Any) -> bool:
    """The same of a part; an inverse and what it inverts hold one another, and are looked at once."""
    if isinstance(part, (list, tuple)):
        return all(map(_part_by_type, part))
    if isinstance(part, Distribution):
        return by_type(part)
    if isinstance(part, Transform):
        held = [value for name, value in vars(part).items() if name != "_inv"]
        of_inverse = getattr(part, "_inv", None) if type(part).__name__ == "_InverseTransform" else None
        return type(part).__module__.startswith(("torch.", "pyro.")) and all(map(_part_by_type, [*held, of_inverse]))
    return True


def _over_all(case: Case, levels: int, numbers: int) -> Tensor:
    """Sum of the probabilities of all data, for the latents of the first datum."""
    count = levels**numbers
    codes = torch.arange(count)[:, None] // levels ** torch.arange(numbers) % levels
    x = codes.reshape(count, *case.spec.shape).to(case.x.dtype)
    return _likelihood_of(case, x, 0).log_prob(x).exp().sum()


def _likelihood_of(case: Case, x: Tensor, datum: int) -> Distribution:
    """What the model observes data by, for the latents of a datum."""
    z = {name: value[datum].expand(len(x), *value.shape[1:]) for name, value in case.latents().items()}
    return observed(case.vae, case.batch(x, like=datum), z)[0]


def _of_numbers(title: str, name: str, core: Any, case: Case) -> Finding:
    """Sums, or integrals, of a class of its own whose numbers are independent."""
    levels = case.spec.levels
    total = _over_numbers(core, levels, case.x.dtype)
    if levels is None and (place := _jump(core, case.x)) is not None:  # an integral passes over an atom
        return Finding(title, None, f"not checked: the density of {name} jumps at {place:g}")
    if levels is None or not _is_endless(core) or not total.min() < 1 - NORMALISED:
        return _summed(title, name, total, levels is not None)
    above = _summed(title, name, total.clamp(min=1.0))
    more = f"not checked: the first probabilities of {name} sum to {total.min().item():.6g}, and it has no last one"
    return Finding(title, None, more) if above.passed else above


def _jump(core: Any, x: Tensor) -> float | None:
    """A number of the data at which a density is another one than close by."""
    here = core.log_prob(x)
    for side in (-JUMP, JUMP):
        off = moved(here, core.log_prob(x + side * (1 + x.abs())), JUMPED)
        if off.any():
            return x.expand(off.shape)[off][0].item()
    return None


def _is_endless(base: Any) -> bool:
    """Whether a distribution is one over all the integers from some one on, so that data are but the first of them."""
    return isinstance(base.support, type(constraints.nonnegative_integer))


def _over_numbers(base: Any, levels: int | None, dtype: torch.dtype) -> Tensor:
    """Sum, or integral, over each number that is independent of the others; beyond those of data as far as it goes."""
    if levels is not None:
        count = levels
        if (last := getattr(base.support, "upper_bound", None)) is not None:
            count = max(count, int(torch.as_tensor(last).max()) + 1)
        elif _is_endless(base):
            count = max(count, MOST_SCORED // math.prod(base.batch_shape))
        count = max(levels, min(count, OUTCOMES))
        total = torch.zeros(())
        # Those of data in the type of data, in which arithmetic may not be that of integers.
        for values in (torch.arange(levels).to(dtype), torch.arange(levels, count))[: 1 + (count > levels)]:
            grid = values.reshape(-1, *[1] * len(base.batch_shape)).expand(-1, *base.batch_shape)
            total = total + base.log_prob(as_scored(base, grid)).exp().sum(0)
        return total
    # x = m + s·sinh t reaches far into the tails; the integrand falls off at both ends.
    t = torch.linspace(-12, 12, 4097)
    shape = (-1, *[1] * len(base.batch_shape))
    spread = base.stddev
    grid = base.mean + spread * torch.sinh(t).reshape(shape)
    return (base.log_prob(grid).exp() * spread * torch.cosh(t).reshape(shape)).sum(0) * (t[1] - t[0])


def _terms_summed(title: str, name: str, case: Case) -> Finding:
    """The conditional distribution of groups of numbers, summed over their values: of all, if they are few."""
    levels, groups = case.spec.levels, len(case.group_place)
    size = max(int((case.order == group).sum()) for group in range(groups))
    if levels is None or size * math.log(levels) > math.log(SUMMED):
        what = "real numbers" if levels is None else f"{size} numbers of {levels} levels"
        found = f"not checked: {name} is a class of its own, and its terms of {what} cannot be summed"
        return Finding(title, None, found)
    many = max(1, SUMMED // levels**size)
    changed = _changed(case, groups)
    chosen = sorted({0, groups - 1, *torch.randperm(groups)[:many].tolist(), *changed[:many]})
    for datum in range(case.count):
        for group in chosen:
            here = (case.order == group).reshape(-1).nonzero()[:, 0]
            count = levels ** len(here)
            x = case.x[datum].reshape(1, -1).repeat(count, 1)
            x[:, here] = (torch.arange(count)[:, None] // levels ** torch.arange(len(here)) % levels).to(x.dtype)
            x = x.reshape(count, *case.spec.shape)
            core = unwrapped(_likelihood_of(case, x, datum))
            terms = core.terms(x).reshape(count, groups)[:, group]
            if case.extras and not terms.any():
                continue  # masked by what goes with the data: it does not count for this one
            total, off = terms.exp().sum(), NORMALISED
            if not (total - 1).abs() <= off and _noisy(core, x):  # the noise of each value is its own
                totals = torch.stack(
                    [core.terms(x).reshape(count, groups)[:, group].exp().sum() for _ in range(REPEATS)]
                )
                total, off = totals.mean(), LARGEST_Z * totals.std().item() / math.sqrt(REPEATS)
            if not (total - 1).abs() <= off:
                return Finding(
                    title, False, f"the probabilities of {case.name(group)} by {name} sum to {total.item():.6g}, not 1"
                )
            if off == NORMALISED and not (total - 1).abs() <= ROUNDED:
                found = f"not checked: {case.name(group)} by {name} sums to 1 {total.item() - 1:+.1g}, which may grow"
                return Finding(title, None, found)
    if len(chosen) < groups and (worst := _mass_by_chance(case, levels, groups)):
        return Finding(title, False, f"the probabilities of {worst[0]} by {name} sum to {worst[1]:.3g} or so, not 1")
    by_chance = f", and by {TRIED} random data at all of them" if len(chosen) < groups else ""
    return Finding(title, True, f"the terms of {name} sum to one at {len(chosen)} of {groups} places{by_chance}")


def _changed(case: Case, groups: int) -> list[int]:
    """Groups at which a subclass of a shipped distribution gives other terms than that does."""
    x = torch.cat((case.x, random_values(case.spec, CHUNK).to(case.x.dtype)))
    core = unwrapped(_likelihood_of(case, x, 0))
    shipped = [base for base in type(core).__mro__ if base.__module__.startswith("pyro_delta.distributions")]
    if not shipped or type(core) in shipped:
        return []
    plain = copy.copy(core)
    plain.__class__ = shipped[0]
    seeded(0)
    before = plain.terms(x)
    seeded(0)
    return moved(before, core.terms(x)).reshape(len(x), groups).any(0).nonzero()[:, 0].tolist()


def _noisy(core: Any, x: Tensor) -> bool:
    """Whether the terms of the same data differ from call to call."""
    return bool(moved(core.terms(x), core.terms(x)).any())


def _mass_by_chance(case: Case, levels: int, groups: int) -> tuple[str, float] | None:
    """A place whose probabilities do not sum to one, and to what they do.

    Of data x that are uniform over all values, L · p(x_g | x_<g) has the mean 1 at every group g of L values.
    """
    logs = []
    sizes = torch.bincount(case.order.reshape(-1), minlength=groups)
    for start in range(0, TRIED, CHUNK):
        x = random_values(case.spec, CHUNK).to(case.x.dtype)
        core = unwrapped(_likelihood_of(case, x, start // CHUNK % case.count))
        logs.append(core.terms(x).reshape(CHUNK, groups) + sizes * math.log(levels))
    mass = torch.cat(logs).double().exp()
    off = (mass.mean(0) - 1) / (mass.std(0) / math.sqrt(TRIED)).clamp_min(1e-12)
    # A sum below one may hide in values that were not drawn; one above it shows.
    worst = int(off.argmax())
    return (case.name(worst), mass.mean(0)[worst].item()) if off[worst] > LARGEST_Z else None


def _summed(title: str, name: str, total: Tensor, sums: bool = True) -> Finding:
    worst = total.flatten()[(total.flatten() - 1).abs().nan_to_num(nan=torch.inf).argmax()]
    off = (worst - 1).abs().item()
    if off <= NORMALISED:
        return Finding(title, True, f"the probabilities of {name} sum to one")
    if not sums and not off > INTEGRATED:  # a kink, a heavy tail, or no moments to go by
        return Finding(title, None, f"not checked: the density of {name} integrates to {worst.item():.6g}, by a rule")
    return Finding(title, False, f"the probabilities of {name} sum to {worst.item():.6g}, not 1")
