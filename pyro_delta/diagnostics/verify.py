"""The certificate of a combination of prior, likelihood and guide, before any training.

Formulas and the Gaussian route certify a rate; an optimiser can only refute a claim or give an estimate. Causality is
read off Jacobians in double precision at randomised weights, in training and in evaluation mode, and off what changes
when what must not be seen is changed: a look-up or a rounding has no derivative. What may depend on what is said by the
spec of the data: its order, and its positions, which latent steps belong to. Everything is asked of the sites that
model and guide write, as `pyro_delta.diagnostics.trace` gives them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, constraints, kl_divergence
from torch.overrides import TorchFunctionMode

from pyro_delta.call import call
from pyro_delta.commitment import IN_THE_MEAN, Commitment
from pyro_delta.data.values import random_values
from pyro_delta.diagnostics.trace import (
    ClosedForm,
    Drawn,
    committed,
    depend_on_one_another,
    observed,
    posteriors,
    trace,
)
from pyro_delta.distributions.any_gaussian import title_of
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.errors import UserError, is_out_of_memory
from pyro_delta.protocol import Batch, Spec
from pyro_delta.vae import VAE, owner_of, parameters_of

DRAWS = 20_000
"""Samples for the agreement of `rsample`, `log_prob`, `mean` and `variance`."""
LARGEST_Z = 6.0
"""Standard errors by which a sample mean may be off: about one false alarm in 10⁸ coordinates."""
COUNT = 3
"""Data in a batch: with more than one, a leak across the batch shows."""
TARGETS = 24
"""Groups of numbers of the likelihood that are looked at, besides the corners."""
WEIGHTS = 20
"""Weights of a learning prior at which the floor that it claims is tried."""
ROUNDING = 1e-6
"""Part of a claimed rate that a rate may lie below it."""
SAME = 1e-9
"""Change, relative to the largest value, that counts as none: sums may be taken in another order."""
DESCENT = 400
"""Steps of the optimiser that tries to refute a claim, …"""
STARTS = 3
"""… and weights that it starts from."""
FILLS = 3
"""Times that what must not be seen is replaced, where it is of a kind that has no derivative."""


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it passed (None: there was nothing to check), and what was found."""

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Certificate:
    """All findings, and the committed rate in nats where it is certified."""

    findings: tuple[Finding, ...]
    delta_nats: float | None

    @property
    def failure(self) -> str | None:
        """The first check that failed, in a sentence; None if none did."""
        failed = [finding for finding in self.findings if finding.passed is False]
        return f"verify failed: {failed[0].name}: {failed[0].found}." if failed else None


class _Case:
    """What is verified: programs in double precision, random data, and who may see whom.

    Attributes:
        vae: the copy.
        x: COUNT random data.
        starts: (n,) of the prior, or None if it says none.
        place: position of every number, of the event shape.
        order: rank of every number, of the event shape.
        group_place: (G,) the position of each group of numbers.
    """

    def __init__(self, vae: VAE, spec: Spec, extras: Mapping[str, Tensor]) -> None:
        self.vae, self.spec = vae, spec
        self.x = _widened(random_values(spec, COUNT))
        self.extras = {name: _widened(values) for name, values in extras.items()}
        starts = getattr(getattr(vae.model, "prior", None), "starts", None)
        self.starts: Tensor | None = None if starts is None else starts.cpu()
        self.place, self.order = torch.from_numpy(spec.places().copy()), torch.from_numpy(spec.order().copy())
        groups = int(self.order.max()) + 1
        self.group_place = torch.from_numpy(_least_place(self.place, self.order, groups))

    def batch(self, x: Tensor) -> Batch:
        """Data as programs take them."""
        return {"x": x} | {name: values[: len(x)] for name, values in self.extras.items()} if self.extras else x

    def latents(self) -> dict[str, Tensor]:
        """Latents drawn by the guide, in double precision, with no gradient."""
        with torch.no_grad():
            return {name: _widened(drawn.z) for name, drawn in posteriors(self.vae, self.batch(self.x)).items()}

    def name(self, group: int) -> str:
        """A group of numbers in words."""
        name = getattr(self.spec, "group", None)
        return name(group) if name else f"number {group}"

    @property
    def where(self) -> str:
        """What a position is called."""
        return getattr(self.spec, "place", "position")

    @property
    def what(self) -> str:
        """What a datum is called."""
        return getattr(self.spec, "datum", "datum")

    @property
    def others(self) -> str:
        """What data are called."""
        return getattr(self.spec, "what", "data")


def _widened(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


class _Widened(TorchFunctionMode):
    """Gives double precision where a program asks for single: it does the same, and rounding hides less."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of torch."""
        if function is Tensor.float:
            return args[0].double()
        if function in (Tensor.to, Tensor.type):
            args = [torch.float64 if value is torch.float32 else value for value in args]
        if kwargs and kwargs.get("dtype") is torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return function(*args, **(kwargs or {}))


@contextmanager
def _apart(vae: VAE) -> Iterator[None]:
    """Double precision, and random state, parameters and Pyro's store of its own; all put back afterwards."""
    dtype = torch.get_default_dtype()
    with parameters_of(vae), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.set_default_dtype(torch.float64)
        try:
            with pyro.get_param_store().scope(), _Widened():
                yield
        finally:
            torch.set_default_dtype(dtype)


def _least_place(place: Tensor, order: Tensor, groups: int) -> np.ndarray:
    least = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(least, order.numpy().reshape(-1), place.numpy().reshape(-1))
    return least


def verify(vae: VAE, spec: Spec, seed: int = 0, extras: Mapping[str, Tensor] | None = None) -> Certificate:
    """Checks rate, distributions, causality, support and gradients of programs for data of `spec`.

    Args:
        vae: model and guide; they are copied, not changed.
        spec: of the data.
        seed: of weights, data and noise.
        extras: what goes with three data in a batch, by name, for programs that take it.

    Raises:
        UserError: for programs that cannot be copied, or cannot be run on data of `spec`.
    """
    for name, program in (("model", vae.model), ("guide", vae.guide)):
        if not isinstance(program, nn.Module) and owner_of(program) is None:
            raise UserError(
                f"the {name} is a {type(program).__name__}, whose weights cannot be copied and drawn anew; give a "
                "torch.nn.Module, or a method of one."
            )
    with _apart(vae):
        torch.manual_seed(seed)
        case = _Case(copy.deepcopy(vae).cpu().double().eval(), spec, extras or {})
        _try(case)
        rate, delta = _rate(case)
        checks: dict[str, Callable[[str, _Case], Finding]] = {
            "distribution of the prior": _prior_agreement,
            "distribution of the posterior": _posterior_agreement,
            "support": _support,
            "causality of the network": _network_causality,
            "causality of the conditioning": _conditioning,
            "causality of the guide": _guide_causality,
            "gradient": _gradient,
        }
        findings = (rate, *(_made(title, check, case) for title, check in checks.items()))
    return Certificate(findings, delta)


@torch.no_grad()
def _try(case: _Case) -> None:
    """Runs the programs once; what they fail with on such data is the user's to mend."""
    try:
        trace(case.vae, case.batch(case.x))
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"model and guide cannot be run on data of {case.spec}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '').rstrip('.')}"


def _made(title: str, check: Callable[[str, _Case], Finding], case: _Case) -> Finding:
    """A finding; a check that the programs do not let be made has failed."""
    try:
        return check(title, case)
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return Finding(title, False, f"it cannot be checked: {_reason(error)}")


# --- The rate ---


def _rate(case: _Case) -> tuple[Finding, float | None]:
    """Certified by formula or by the Gaussian route, refuted or estimated by descent."""
    title = "committed rate"
    known = _committed(case)
    if known.guarantee == IN_THE_MEAN:
        found = f"{known.nats:.6g} nats in the mean over a batch, in training mode, by the guide's formula; of no datum"
        return Finding(title, None, found), None
    if known.nats is not None and known.learns:
        if known.throughout is None:
            found = f"not certified: the prior learns, with no floor for this guide; {known.nats:.6g} nats as it starts"
            return Finding(title, None, found), None
        return _learned_rate(title, case, known.nats, known.throughout)
    if known.nats is not None and not known.claimed:
        return Finding(title, True, f"δ = {known.nats:.6g} nats {known.way}: {known.known_by}"), known.nats
    with torch.no_grad():
        batch = case.batch(case.x)
        seen = trace(case.vae, batch)
        apart = not depend_on_one_another(case.vae, batch, seen)
    if not apart:
        return Finding(title, None, f"not certified: {known.known_by}"), None
    if ClosedForm()(case.vae, batch, seen) is None:
        return Finding(title, None, "no closed form of the KL, nothing is certified"), None
    least = _least_rate(case, known.nats)
    if known.nats is None:
        return Finding(title, None, f"not certified; the least KL found is {least:.6g} nats"), None
    if least < known.nats * (1 - ROUNDING):
        refuted = f"the guide claims δ = {known.nats:.6g} nats, but a KL of {least:.6g} was found"
        return Finding(title, False, refuted), None
    found = f"δ = {known.nats:.6g} nats by the guide's formula; least found {least:.6g}"
    return Finding(title, True, found), known.nats


def _committed(case: _Case) -> Commitment:
    return committed(case.vae, _split_of(case))


def _split_of(case: _Case) -> Any:
    return {"x": case.x, **case.extras} if case.extras else case.x


@torch.no_grad()
def _learned_rate(title: str, case: _Case, start: float, floor: float) -> tuple[Finding, float | None]:
    """The floor of a prior that learns, unless weights are found with which it commits less."""
    least = start
    for number in range(WEIGHTS):
        other = copy.copy(case)
        other.vae = copy.deepcopy(case.vae)
        _shake(getattr(other.vae.model, "prior", other.vae.model), 0.3 * (1 + number))
        rate = _committed(other).nats
        least = least if rate is None else min(least, rate)
    if least < floor * (1 - ROUNDING):
        refuted = f"the prior claims floor_nats = {floor:.6g}, but commits {least:.6g} nats with other weights"
        return Finding(title, False, refuted), None
    now = f"{start:.6g} nats as it starts, least found {least:.6g}"
    found = f"δ = {floor:.6g} nats, the floor of a prior that learns; {now}"
    return Finding(title, True, found), floor


def _least_rate(case: _Case, claim: float | None) -> float:
    """The smallest KL of any datum on the way of a descent in the guide's weights, which ends once it refutes a claim.

    From several starts, or from a single one where there is no claim.
    """
    least, batch = math.inf, case.batch(case.x)
    for start in range(1 if claim is None else STARTS):
        vae = copy.deepcopy(case.vae)
        if start:
            _shake(vae.guide, 0.3 * start)
        with torch.no_grad():
            rate_b = ClosedForm()(vae, batch, trace(vae, batch))
        assert rate_b is not None
        least = min(least, rate_b.min().item())
        parameters = [p for p in vae.guide.parameters() if p.requires_grad]
        with torch.no_grad():
            priors = {name: as_float64(latent.p) for name, latent in trace(vae, batch).latents.items()}

        def rates(vae: VAE = vae, priors: dict[str, Distribution] = priors) -> Tensor:
            drawn = posteriors(vae, batch)
            return sum(kl_divergence(drawn[name].q, priors[name]) for name in drawn)  # type: ignore[return-value]

        try:
            descends = rates().requires_grad and bool(parameters)
        except NotImplementedError:  # a prior known by its density alone, whose KL has no gradient
            descends = False
        if not descends:
            continue
        optimizer = torch.optim.Adam(parameters, lr=0.03, fused=True)
        for step in range(DESCENT):
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * (1 - step / DESCENT)
            rate_b = rates()
            least = min(least, rate_b.min().item())
            if claim is not None and least < claim * (1 - ROUNDING):
                return least
            optimizer.zero_grad()
            rate_b.sum().backward()
            optimizer.step()
    return least


# --- Distributions ---


@torch.no_grad()
def _prior_agreement(title: str, case: _Case) -> Finding:
    """The same of a prior, which moreover is the same in training as in evaluation, where its rate is read."""
    one = case.batch(case.x[:1])
    seen = trace(case.vae, one)
    for name, latent in seen.latents.items():
        finding = _agreement(title, latent.p)
        if not finding.passed:
            return finding
        evaluated = as_float64(latent.p)
        trained = as_float64(trace(copy.deepcopy(case.vae).train(), one, seen.z).latents[name].p)
        z = evaluated.rsample((COUNT,))
        if _moved(evaluated.log_prob(z), trained.log_prob(z)).any():
            return Finding(title, False, "its density in training mode is another than in evaluation mode")
    return finding


@torch.no_grad()
def _posterior_agreement(title: str, case: _Case) -> Finding:
    for drawn in posteriors(case.vae, case.batch(case.x[:1])).values():
        finding = _agreement(title, drawn.q)
        if not finding.passed:
            break
    return finding


@torch.no_grad()
def _agreement(title: str, distribution: Distribution) -> Finding:
    """Do samples have the mean and variance that are stated, and the density that is evaluated?

    The density by Stein's identity: E[(z_i − m_i) ∂_i log p(z)] = −1 for every coordinate of any density that falls off
    to zero, as one over all real numbers does.
    """
    wide = as_float64(distribution)
    if _support_of(wide).is_discrete:
        return Finding(title, None, f"not checked: {title_of(distribution)} is of integers")
    try:
        z = wide.rsample((DRAWS,))
        mean, variance = wide.mean, wide.variance
    except NotImplementedError as error:
        return Finding(title, False, f"{type(distribution).__name__} lacks {str(error) or 'rsample, mean or variance'}")
    centred = z - mean
    measured = [("mean", z, mean), ("variance", centred.square(), variance)]
    if real := _is_real(_support_of(wide)):
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
                f"rsample disagrees with {what} at {place}: {values.mean(0)[place]:.4g} in {DRAWS} draws, "
                f"{expected.expand_as(off)[place]:.4g} stated",
            )
    return Finding(title, True, "rsample, log_prob, mean and variance agree" if real else "mean and variance agree")


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def _support(title: str, case: _Case) -> Finding:
    """Does the guide draw what it says and what the prior can score, and does the likelihood take the data?"""
    vae, batch, what = case.vae, case.batch(case.x), case.others
    for name, latent in trace(vae, batch).latents.items():
        stated = getattr(vae.guide, "posterior", None)
        if stated is not None and _moved(latent.log_q, call(stated, case.extras, case.x).log_prob(latent.z)).any():
            return Finding(title, False, "the guide samples z from another distribution than its posterior(x)")
        if not _support_of(latent.p).check(latent.placed).all():
            return Finding(title, False, f"the guide draws {name!r} outside the prior's support")
    likelihood, x = observed(vae, batch, case.latents())
    support = _support_of(likelihood)
    if case.spec.levels is not None and not support.is_discrete:
        return Finding(title, False, f"{what} are integers, but {title_of(likelihood)} is a density")
    if case.spec.levels is None and support.is_discrete:
        return Finding(title, False, f"{what} are real numbers, but {title_of(likelihood)} is of integers")
    if not support.check(x).all():
        return Finding(title, False, f"{what} lie outside the likelihood's support")
    if (shape := likelihood.log_prob(x).shape) != likelihood.batch_shape:
        return Finding(title, False, f"log_prob of {COUNT} {what} has shape {tuple(shape)}")
    return Finding(title, True, f"latents and {what} lie in it")


def _support_of(distribution: Distribution) -> Any:
    return distribution.support


# --- Causality ---


def _outputs(case: _Case, vae: VAE, x: Tensor, z: Mapping[str, Tensor]) -> tuple[Tensor, bool] | None:
    """What the likelihood says of every group of numbers given those before it, (B, G, …), and how it must be read.

    Parameters at a group must depend on earlier groups alone. Its log-probability depends on the group itself, too, so
    with those the second entry is False. Of a distribution that is independent over numbers the log-probability of
    other, fixed values is asked, through which what the model does with x shows. None if it tells of the whole alone.
    """
    distribution, _ = observed(vae, case.batch(x), z)
    if hasattr(distribution, "parameters_at"):
        found = distribution.parameters_at(x)
        return found.reshape(len(x), len(case.group_place), -1), True
    if hasattr(distribution, "terms"):
        return distribution.terms(x).reshape(len(x), len(case.group_place), 1), False
    base: Distribution = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if base.batch_shape[-len(case.spec.shape) :] != torch.Size(case.spec.shape) or len(base.event_shape):
        return None
    fixed = torch.roll(case.x, 1, 0)[: len(x)]
    terms = base.log_prob(fixed).reshape(len(x), -1)
    groups = terms.new_zeros(len(x), len(case.group_place))
    return groups.index_add(1, case.order.reshape(-1), terms).unsqueeze(-1), True


def _network_causality(title: str, case: _Case) -> Finding:
    """What is said of a group of numbers does not depend on itself or later ones in their order, nor on other data."""
    if _outputs(case, case.vae, case.x, case.latents()) is None:
        return Finding(title, None, _not_inside(case))
    z, fills = case.latents(), _other_values(case)
    for mode, vae in _modes(case.vae):
        plain, strict = _look(case, vae, case.x, z)
        for group in _targets(case):
            hidden = case.order >= group if strict else case.order > group
            leaf = case.x.double().clone().requires_grad_()
            grad = _gradient_of(partial(_look_at, case, vae, z, group), leaf)
            if grad is not None:
                seen = grad != 0
                if seen[1:].any():
                    return Finding(
                        title, False, f"{case.name(group)} of one {case.what} sees other {case.others} ({mode})"
                    )
                late = case.order[seen[0] & hidden]
                if late.numel():
                    return Finding(title, False, f"{case.name(group)} sees {case.name(int(late.min()))} ({mode})")
            for fill in fills if grad is None else fills[:1]:
                changed, _ = _look(case, vae, torch.where(hidden, fill, case.x), z)
                if _moved(plain[:, group], changed[:, group]).any():
                    which = "itself or later ones" if strict else "later ones"
                    return Finding(title, False, f"{case.name(group)} changes with {which} ({mode})")
        mixed, _ = _look(case, vae, torch.cat((case.x[:1], fills[0][1:])), z)
        if _moved(plain[0], mixed[0]).any():
            return Finding(title, False, f"a {case.what} changes with other {case.others} ({mode})")
    count = len(_targets(case))
    return Finding(
        title, True, f"strictly in the order of the data at {count} of {len(case.group_place)} places, both modes"
    )


def _not_inside(case: _Case) -> str:
    likelihood, _ = observed(case.vae, case.batch(case.x), case.latents())
    return (
        f"not checked: {title_of(likelihood)} tells the log-probability of the whole alone; give it parameters_at(x) "
        "or terms(x)"
    )


def _look(case: _Case, vae: VAE, x: Tensor, z: Mapping[str, Tensor], gradient: bool = False) -> tuple[Tensor, bool]:
    """`_outputs` with the same noise at each call, such as that of dropout."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradient):
        torch.manual_seed(0)
        found = _outputs(case, vae, x, z)
    assert found is not None
    return found


def _conditioning(title: str, case: _Case) -> Finding:
    """What is said at a position depends on z_t only if starts[t] ≤ position, unless conditioning is declared full.

    What a likelihood does to z before its network sees it counts as well.
    """
    starts, z = case.starts, case.latents()
    if starts is None:
        return Finding(title, None, "not checked: the prior says no starts, so every position may use all of z")
    if _outputs(case, case.vae, case.x, z) is None:
        return Finding(title, None, _not_inside(case))
    ((name, z_bnd),) = z.items()
    full = getattr(getattr(case.vae.model, "likelihood", None), "conditioning", "causal") == "full"
    used = torch.zeros(len(starts), dtype=torch.bool)
    other = z_bnd + 3 * torch.randn_like(z_bnd)
    for mode, vae in _modes(case.vae):
        plain, _ = _look(case, vae, case.x, z)
        for place in range(case.spec.positions):
            here = case.group_place == place
            leaf = z_bnd.clone().requires_grad_()
            grad = _gradient_of(partial(_look_from, case, vae, name, here), leaf)
            late = starts > place
            if grad is not None:
                seen = (grad != 0).any(-1)
                if seen[1:].any():
                    where = f"{case.where} {place} of one {case.what}"
                    return Finding(title, False, f"{where} sees latents of other {case.others} ({mode})")
                used |= seen[0]
                early = (seen[0] & late).nonzero()
                if early.numel() and not full:
                    t = int(early[0])
                    found = f"{case.where} {place} sees z_{t + 1}, which starts at {case.where} {starts[t]} ({mode})"
                    return Finding(title, False, found)
            changed, _ = _look(case, vae, case.x, {name: torch.where(late[:, None], other, z_bnd)})
            if not full and _moved(plain[:, here], changed[:, here]).any():
                return Finding(
                    title, False, f"{case.where} {place} changes with latents of later {case.where}s ({mode})"
                )
        mixed, _ = _look(case, vae, case.x, {name: torch.cat((z_bnd[:1], other[1:]))})
        if _moved(plain[0], mixed[0]).any():
            return Finding(title, False, f"a {case.what} changes with latents of other {case.others} ({mode})")
    if not used.any():
        return Finding(title, True, f"no {case.where} sees any latent: a latent-free likelihood")
    rule = (
        f"every {case.where} sees all of z" if full else f"{case.where}s see {{z_t : starts[t] ≤ {case.where}}} alone"
    )
    return Finding(title, True, rule)


def _guide_causality(title: str, case: _Case) -> Finding:
    """The posterior of z_t depends, if anti-causal, on no position before starts[t]; and on no other datum."""
    causality, starts = getattr(case.vae.guide, "causality", None), case.starts
    if starts is None or causality is None:
        lacks = "guide declares no causality" if causality is None else "prior says no starts"
        starts, causality = torch.zeros(0, dtype=torch.int64), "none"
        note = f"not checked over positions: the {lacks}"
    else:
        note = ""
    sees_first = torch.zeros(case.spec.positions, dtype=torch.bool)
    anti_causal, differentiable = causality == "anti_causal", True
    fills, z = _other_values(case), case.latents()
    for mode, vae in _modes(case.vae):

        def moments(x: Tensor, vae: VAE = vae, gradient: bool = False) -> Tensor:
            with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradient):
                torch.manual_seed(0)
                parts = [_told(drawn, z[name]) for name, drawn in posteriors(vae, case.batch(x), z).items()]
            if len(starts):
                return parts[0]
            return torch.cat([part.reshape(len(x), -1) for part in parts], 1)

        plain = moments(case.x)
        for t in range(len(starts)):
            above = case.place < starts[t]
            leaf = case.x.double().clone().requires_grad_()
            grad = _gradient_of(partial(_row, partial(moments, gradient=True), t), leaf)
            if grad is None:
                differentiable = False
            else:
                if (grad[1:] != 0).any():
                    return Finding(title, False, f"z_{t + 1} of one {case.what} sees other {case.others} ({mode})")
                seen = torch.zeros(case.spec.positions, dtype=torch.bool)
                seen[case.place[grad[0] != 0]] = True
                if t == 0:
                    sees_first = seen
                early = case.place[(grad[0] != 0) & above]
                if early.numel() and anti_causal:
                    where = f"{case.where} {int(early.min())}, before its start at {case.where} {starts[t]}"
                    return Finding(title, False, f"z_{t + 1} sees {where} ({mode})")
            for fill in (fills if grad is None else fills[:1]) if anti_causal else ():
                changed = moments(torch.where(above, fill, case.x))
                if _moved(plain[:, t], changed[:, t]).any():
                    before = f"{case.where}s before its start at {case.where} {starts[t]}"
                    return Finding(title, False, f"z_{t + 1} changes with {before} ({mode})")
        mixed = moments(torch.cat((case.x[:1], fills[0][1:])))
        if _moved(plain[0], mixed[0]).any():
            return Finding(title, False, f"z of a {case.what} changes with other {case.others} ({mode})")
    if note:
        return Finding(title, None, note)
    kind = "anti-causal" if anti_causal else "not causal, as declared"
    if not differentiable:
        return Finding(
            title, True, f"{kind}, by {FILLS} replacements of what is not to be seen (there is no derivative)"
        )
    return Finding(title, True, f"{kind}; z_1 sees {int(sees_first.sum())} of {len(sees_first)} {case.where}s")


def _told(drawn: Drawn, z: Tensor) -> Tensor:
    """What tells a posterior from others, (B, …): its moments, or its density of fixed latents where it has none."""
    moments = drawn.moments()
    if not moments or moments["mean"].isnan().all():
        return drawn.log_q
    return torch.cat((moments["mean"], moments["scale"]), dim=-1)


def _other_values(case: _Case) -> list[Tensor]:
    """Data to put in the place of what must not be seen: any values, the lowest and the highest."""
    x, levels = case.x, case.spec.levels
    fills = []
    for _ in range(FILLS if levels is not None else 1):
        fill = 3 * torch.randn_like(x) if levels is None else torch.randint_like(x, levels)
        fill[1], fill[2] = (-10, 10) if levels is None else (0, levels - 1)
        fills.append(fill)
    return fills


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """Where two results differ by more than rounding, or are no numbers."""
    return ~((before - after).abs() <= SAME * (1 + before.abs().max()))


def _look_at(case: _Case, vae: VAE, z: Mapping[str, Tensor], group: int, x: Tensor) -> Tensor:
    """What the likelihood says of a group of the first datum, with a gradient by the data."""
    return _look(case, vae, x, z, True)[0][0, group]


def _look_from(case: _Case, vae: VAE, name: str, here: Tensor, z: Tensor) -> Tensor:
    """What it says at a position of the first datum, with a gradient by the latents."""
    return _look(case, vae, case.x, {name: z}, True)[0][0, here]


def _row(function: Callable[[Tensor], Tensor], t: int, x: Tensor) -> Tensor:
    return function(x)[0, t]


def _gradient_of(function: Callable[[Tensor], Tensor], leaf: Tensor) -> Tensor | None:
    """Gradient of what a function gives for `leaf`, along a random direction; None where there is no derivative."""
    try:
        out = function(leaf)
    except (RuntimeError, IndexError, TypeError):
        return None  # tokens that index a table cannot be real numbers
    if not out.requires_grad:
        return None
    (grad,) = torch.autograd.grad(out, leaf, torch.randn_like(out), allow_unused=True)
    return grad


def _targets(case: _Case) -> list[int]:
    """Groups spread over the datum, and the ends of its first and last position."""
    count = len(case.group_place)
    spread = torch.linspace(0, count - 1, min(TARGETS, count)).long().tolist()
    ends = []
    for place in (int(case.group_place.min()), int(case.group_place.max())):
        here = (case.group_place == place).nonzero()
        ends += [int(here[0]), int(here[-1])]
    return sorted({*spread, *ends})


def _modes(vae: VAE) -> Iterator[tuple[str, VAE]]:
    """A copy at randomised weights, where the zeros of an initialisation hide nothing, in both modes."""
    vae = copy.deepcopy(vae)
    _shake(vae, 0.1)
    yield "training mode", vae.train()
    yield "evaluation mode", vae.eval()


@torch.no_grad()
def _shake(module: nn.Module, size: float) -> None:
    for parameter in module.parameters():
        parameter.add_(size * torch.randn_like(parameter))


# --- Gradients ---


def _gradient(title: str, case: _Case) -> Finding:
    """−ELBO's gradient along a random direction, against finite differences with the same noise.

    Latents of other kinds than real numbers are no smooth function of their noise: they stay as they are.
    """
    vae, batch = copy.deepcopy(case.vae), case.batch(case.x)
    _shake(vae, 0.05)
    with torch.no_grad():
        latents = trace(vae, batch).latents
    fixed = {name: latent.z for name, latent in latents.items() if not _is_real(_support_of(latent.q))}
    parameters = [p for p in vae.parameters() if p.requires_grad]
    direction = [torch.randn_like(p) for p in parameters]

    def loss() -> Tensor:
        torch.manual_seed(0)
        seen = trace(vae, batch, fixed)
        return (seen.log_q - seen.log_p - seen.log_px).sum()

    if not parameters:
        return Finding(title, None, "there are no parameters")
    grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum((g * v).sum().item() for g, v in zip(grads, direction, strict=True) if g is not None)
    values = []
    for side in (1e-5, -1e-5):
        with torch.no_grad():
            for parameter, v in zip(parameters, direction, strict=True):
                parameter.add_(side * v)
            values.append(loss().item())
            for parameter, v in zip(parameters, direction, strict=True):
                parameter.sub_(side * v)
    measured = (values[0] - values[1]) / 2e-5
    if not abs(slope - measured) <= 1e-3 * max(abs(slope), abs(measured), 1.0):
        return Finding(title, False, f"{slope:.6g} along a random direction, {measured:.6g} by finite differences")
    return Finding(title, True, f"agrees with finite differences ({slope:.6g})")
