"""What is committed: certified by a formula, a type or a density, and refuted, where that can be, by a descent."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from pyro_delta.commitment import BY_LENGTH, BY_PRIOR, EXACTLY, IN_THE_MEAN, Commitment
from pyro_delta.data.values import random_values
from pyro_delta.diagnostics.trace import (
    MOST_CLASSES,
    ClosedForm,
    Traced,
    committed,
    deltas,
    depend_on_one_another,
    posteriors,
    prior,
    seeded,
    trace,
)
from pyro_delta.diagnostics.verify.case import (
    Case,
    Finding,
    is_other_in_training,
    moved,
    shake,
    with_every_class,
    with_more_lengths,
)
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.families import family_of
from pyro_delta.rate import committed_rate
from pyro_delta.vae import VAE, copied

WEIGHTS = 12
"""Weights of a learning prior at which the floor that it claims is tried."""
ROUNDING = 1e-6
"""Part of a claimed rate that a rate may lie below it."""
DESCENT = 150
"""Steps of the optimiser that tries to refute a claim, …"""
STARTS = 3
"""… weights that it starts from, …"""
TRIED = 12
"""… and weights that those are chosen from: the ones of the largest slope and of the least rate."""
CALLS = 8
"""Calls of a guide in training, after which what is fixed must still be."""
DATA = 24
"""Random data whose KL is compared with what is certified, …"""
SHAKEN = (0.0, 0.3, 3.0)
"""… at weights with noise of these sizes."""


def check_rate(title: str, case: Case) -> tuple[Finding, Commitment | None]:
    """The committed rate, and what is known of it where it is certified."""
    known = committed(case.vae, _data(case))
    case.in_the_mean, case.by_length = known.guarantee == IN_THE_MEAN, known.guarantee == BY_LENGTH
    own_priors = bool(case.extras) and not (known.claimed or known.fixed) and _known_of_each(case)
    case.by_datum = own_priors or known.guarantee in (BY_LENGTH, BY_PRIOR)
    if known.nats is not None and known.throughout is None:
        return Finding(title, None, known.sentence), None
    if known.throughout is not None and not known.claimed:
        finding = _learned_rate(title, case, known) if known.learns else _as_measured(title, case, known)
        return finding, known if finding.passed else None
    if case.by_length:
        case = with_more_lengths(case)  # a formula may be wrong for some of them alone
    with torch.no_grad():
        batch = case.batch(case.x)
        seen = trace(case.vae, batch)
        apart = not depend_on_one_another(case.vae, batch, seen)
    if not apart:
        return Finding(title, None, known.sentence), None
    if ClosedForm()(case.vae, batch, seen) is None:
        return Finding(title, None, "no closed form of the KL, nothing is certified"), None
    if own := [type(latent.q).__name__ for latent in seen.latents.values() if not _known(latent.q)]:
        words = f"{own[0]} is a class of its own, and its KL rests on its word alone: nothing is certified"
        return Finding(title, None, words), None
    least = _least_rate(case, known)
    if known.throughout is None:
        return Finding(title, None, f"not certified; the least KL found is {least:.6g} nats"), None
    if least < known.throughout * (1 - ROUNDING):
        refuted = f"the guide claims δ = {known.throughout:.6g} nats, but a KL of {least:.6g} was found"
        return Finding(title, False, refuted), None
    measured = _as_measured(title, case, known) if not case.in_the_mean else None
    if measured is not None and not measured.passed:
        return measured, None
    return Finding(title, True, f"{known.sentence}; least found {least:.6g}"), known


@torch.no_grad()
def _known_of_each(case: Case) -> bool:
    return deltas(case.vae, trace(case.vae, case.batch(case.x))) is not None


def _data(case: Case) -> Any:
    if case.extras:
        # One datum of each class, for each may have its own prior.
        return with_every_class(case.spec, {"x": case.x, **case.extras}, MOST_CLASSES)
    return torch.cat((case.x, random_values(case.spec, DATA).to(case.x.dtype)))


def _known(q: Any) -> bool:
    """Whether a posterior is of classes whose KL is their own: a subclass may draw and score something else."""
    modules = ("torch.distributions", "pyro.distributions", "pyro_delta.distributions")
    return type(q).__module__.startswith(modules) and (not hasattr(q, "base_dist") or _known(q.base_dist))


@torch.no_grad()
def _as_measured(title: str, case: Case, known: Commitment) -> Finding:
    """A rate that is certified, unless a KL of random data, at weights of any size, lies below it, or not upon it."""
    assert known.throughout is not None
    if not case.in_the_mean and (when := _unfixed(case, known)):
        return Finding(title, False, f"{known.sentence}; but what it rests on is another {when}")
    x = random_values(case.spec, DATA).to(case.x.dtype)
    tries = [(0.0, 0 if case.in_the_mean else CALLS, False), *((size, 0, False) for size in SHAKEN)]
    if not case.in_the_mean and is_other_in_training(case):
        tries += [(size, 0, True) for size in SHAKEN]
    for size, calls, training in tries:
        vae = copied(case.vae)
        shake(vae, size)
        _called_in_training(vae, case, calls)
        vae.train(training)
        rate_b = _closed_form(case, vae, x)
        if rate_b is None:
            break
        least_b = _least_of(case, vae, x, known.throughout)
        rate_b, least_b = rate_b[rate_b.isfinite()], least_b[rate_b.isfinite()]
        off_b = least_b * ROUNDING + 1e-9
        wrong = (rate_b - least_b).abs() > off_b if known.guarantee == EXACTLY else rate_b < least_b - off_b
        if wrong.any():
            found = f"{known.sentence}; but a KL of {rate_b[wrong][0].item():.6g} was found"
            if case.by_datum:
                found += f", where its own prior commits {least_b[wrong][0].item():.6g}"
            return Finding(title, False, found)
    return Finding(title, True, known.sentence)


def _least_of(case: Case, vae: VAE, x: Tensor, least: float) -> Tensor:
    """(B,) nats that data may not fall below: each by its own prior, where those differ."""
    if not case.by_datum:
        return torch.full((len(x),), least, dtype=torch.float64)
    by_datum = deltas(vae, _of_first(case, vae, x))
    assert by_datum is not None
    return by_datum


def _called_in_training(vae: VAE, case: Case, calls: int) -> None:
    """Calls the guide, and the model in the end, as training does: what counts the calls has moved then."""
    vae.train()
    with torch.enable_grad():
        for _ in range(calls):
            posteriors(vae, case.batch(case.x))
        if calls:
            trace(vae, case.batch(case.x))
    vae.eval()


def _unfixed(case: Case, known: Commitment) -> str | None:
    """When something of the posteriors is not the same that is taken for fixed: in training, or by its calls."""
    vae, batch = copied(case.vae), case.batch(case.x)

    def fixed() -> list[Tensor]:
        drawn = posteriors(vae, batch)
        families = {name: family_of(drawn[name].q, seen.latents[name].p) for name in known.fixed}
        return [part.detach().clone() for name, of in families.items() if of for part in of.rests_on(drawn[name].q)]

    if not known.fixed:
        return None
    seen = trace(vae, batch)
    before = fixed()
    with torch.enable_grad():
        vae.train()
        trained = fixed()
    _called_in_training(vae, case, CALLS)
    for when, after in (("in training mode", trained), (f"after {CALLS} calls in training", fixed())):
        same = len(after) == len(before) and not any(moved(*pair).any() for pair in zip(before, after, strict=True))
        if not same:
            return when
    return None


def _of_first(case: Case, vae: VAE, x: Tensor) -> Traced:
    """A trace that has the prior of all data: of the first, but of all where it has no statistics, or each its own."""
    return trace(vae, case.batch(x if case.batch_norms or case.in_the_mean or case.by_datum else x[:1]))


def _closed_form(case: Case, vae: VAE, x: Tensor) -> Tensor | None:
    """(B,) nats, the KL of data, where it has a closed form: against the prior of the first, which is that of all."""
    first, drawn = _of_first(case, vae, x), posteriors(vae, case.batch(x))
    latents = {
        name: replace(first.latents[name], q=of.q, z=of.z, log_q=of.log_q, mask=of.mask, dim=of.dim)
        for name, of in drawn.items()
    }
    return ClosedForm()(vae, case.batch(x), replace(first, latents=latents))


# --- The floor of a prior that learns ---


def _learned_rate(title: str, case: Case, known: Commitment) -> Finding:
    """The floor of a prior that learns, unless weights are found with which it commits less."""
    start, floor = known.nats, known.throughout
    assert start is not None
    assert floor is not None
    least = min(start, _least_by_chance(case), _least_by_descent(case))
    if least < floor * (1 - ROUNDING):
        refuted = f"the prior claims floor_nats = {floor:.6g}, but commits {least:.6g} nats with other weights"
        return Finding(title, False, refuted)
    return Finding(title, True, f"{known.sentence}; {start:.6g} nats as it starts, least found {least:.6g}")


@torch.no_grad()
def _least_by_chance(case: Case) -> float:
    """The least rate at weights of any size, of model and guide: whoever owns what moves the prior."""
    least = math.inf
    for number in range(WEIGHTS):
        other = copy.copy(case)
        other.vae = copied(case.vae)
        shake(other.vae, 0.3 * (1 + number))
        rate: Commitment = committed(other.vae, _data(other))
        least = least if rate.nats is None else min(least, rate.nats)
    return least


def _least_by_descent(case: Case) -> float:
    """The least rate on the way of a descent in all weights by which the prior's formula has a gradient."""
    vae = copied(case.vae)

    def rate() -> tuple[Tensor, float]:
        with torch.enable_grad():
            value = committed_rate(prior(vae)).sum()
        return value, value.item()

    return _descended(vae, rate)


# --- A claim of the guide ---


def _least_rate(case: Case, known: Commitment) -> float:
    """The smallest KL of any datum on the way of descents in all weights, which end once they refute a claim.

    They start from weights where the rate has a slope: a claim may rest on a unit that is saturated at the start.
    """
    least, claim, share_b = math.inf, known.throughout, _shares(case, known)
    for vae, rate in _starts(case, 1 if claim is None else STARTS, share_b):
        least = min(least, rate)
        least = min(least, _least_on_the_way(case, vae, share_b, None if claim is None else claim * (1 - ROUNDING)))
        if claim is not None and least < claim * (1 - ROUNDING):
            break
    return least


def _starts(case: Case, count: int, share_b: Tensor) -> list[tuple[VAE, float]]:
    """Weights to start from, and the least rate there: the ones that are given, and of others the most promising."""
    tried: list[tuple[VAE, float, float]] = []
    for number in range(1 if count == 1 else TRIED):
        vae = copied(case.vae)
        if number:
            shake(vae, 0.1 * 10 ** (2 * number / TRIED))
        vae.train(case.in_the_mean)
        with torch.no_grad():
            rate_b = _closed_form(case, vae, case.x)
        assert rate_b is not None
        slope = 0.0
        if (rates := _rates(case, vae)) is not None:
            slope = sum(g.square().sum().item() for g in _gradients(rates.sum(), vae).values()) ** 0.5
        tried.append((vae, _guaranteed(case, rate_b, share_b), slope))
    first, others = tried[0], tried[1:]
    most = 100 * max(1.0, first[1])  # beyond it weights are absurd
    live = [start for start in others if start[2] > 0 and start[1] < most]
    chosen = [first, *sorted(live, key=lambda start: -start[2])[:1], *sorted(live, key=lambda start: start[1])]
    unique = list({id(start[0]): start for start in chosen}.values())[:count]
    lowest = min(tried, key=lambda start: start[1])
    return [(vae, min(rate, lowest[1])) for vae, rate, _ in unique]


def _guaranteed(case: Case, rate_b: Tensor, share_b: Tensor) -> float:
    """Of the rates of a batch the number that a guarantee is about, of a datum of all steps where lengths decide it."""
    return (rate_b.mean() if case.in_the_mean else (rate_b / share_b).min()).item()


@torch.no_grad()
def _shares(case: Case, known: Commitment) -> Tensor:
    """(B,) what each datum is said to commit, as a part of what one of all steps does: 1, but where lengths decide."""
    if known.guarantee != BY_LENGTH or not known.throughout:
        return torch.ones(len(case.x), dtype=torch.float64)
    return _least_of(case, case.vae, case.x, known.throughout) / known.throughout


def _priors(case: Case, vae: VAE) -> dict[str, Distribution]:
    with torch.no_grad():
        return {name: as_float64(latent.p) for name, latent in _of_first(case, vae, case.x).latents.items()}


def _rates(case: Case, vae: VAE, priors: dict[str, Distribution] | None = None) -> Tensor | None:
    """(B,) nats of the data, with a gradient by the weights; None for a prior that is known by its density alone."""
    priors = _priors(case, vae) if priors is None else priors
    seeded(0)
    drawn = posteriors(vae, case.batch(case.x))
    try:
        rates: Tensor = sum(kl_divergence(drawn[name].q, priors[name]) for name in drawn)  # type: ignore[assignment]
    except NotImplementedError:
        return None
    return rates if rates.requires_grad else None


def _gradients(value: Tensor, vae: VAE) -> dict[nn.Parameter, Tensor]:
    """Of all the weights that a value depends on, whoever owns them."""
    parameters = [p for p in vae.parameters() if p.requires_grad]
    if not (parameters and value.requires_grad):
        return {}
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {p: g for p, g in zip(parameters, found, strict=True) if g is not None}


def _least_on_the_way(case: Case, vae: VAE, share_b: Tensor, enough: float | None) -> float:
    """The smallest KL on the way of a descent."""
    priors = _priors(case, vae)
    if _rates(case, vae, priors) is None:
        return math.inf

    def rate() -> tuple[Tensor, float]:
        rate_b = _rates(case, vae, priors)
        assert rate_b is not None
        return rate_b.sum(), _guaranteed(case, rate_b, share_b)

    return _descended(vae, rate, enough)


class _Refuted(Exception):  # noqa: N818 - not a mishap
    """A rate below the claim was found."""


def _descended(vae: VAE, rate: Callable[[], tuple[Tensor, float]], enough: float | None = None) -> float:
    """The least number on the way of a descent by L-BFGS; it ends below `enough`, or where there is no slope.

    Args:
        vae: whose weights are moved.
        rate: gives what is minimised, and the number that is asked for.
        enough: that refutes a claim.
    """
    least = math.inf
    parameters = list(_gradients(rate()[0], vae))
    if not parameters:
        return least
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=DESCENT,
        max_eval=DESCENT,
        tolerance_grad=0.0,  # many weights may each have a small part of a slope
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        nonlocal least
        value, number = rate()
        if math.isfinite(number):
            least = min(least, number)
        if enough is not None and least < enough:
            raise _Refuted
        optimizer.zero_grad()
        value.backward()
        return value.detach()

    with contextlib.suppress(_Refuted):
        optimizer.step(closure)
    return least
