"""What is committed: certified by a formula, a type or a density, and refuted, where that can be, by a descent."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_delta.commitment import IN_THE_MEAN, Commitment
from pyro_delta.diagnostics.trace import ClosedForm, committed, depend_on_one_another, posteriors, prior, trace
from pyro_delta.diagnostics.verify.case import Case, Finding, shake
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.rate import committed_rate
from pyro_delta.vae import VAE

WEIGHTS = 12
"""Weights of a learning prior at which the floor that it claims is tried."""
ROUNDING = 1e-6
"""Part of a claimed rate that a rate may lie below it."""
DESCENT = 300
"""Steps of the optimiser that tries to refute a claim, …"""
STARTS = 3
"""… weights that it starts from, …"""
TRIED = 12
"""… and weights that those are chosen from: the ones of the largest slope and of the least rate."""
STALLED = 30
"""Steps without progress after which a descent ends."""


def check_rate(title: str, case: Case) -> tuple[Finding, Commitment | None]:
    """The committed rate, and what is known of it where it is certified."""
    known = committed(case.vae, _data(case))
    if known.guarantee == IN_THE_MEAN:
        found = f"{known.nats:.6g} nats in the mean over a batch, in training mode, by the guide's formula; of no datum"
        return Finding(title, None, found), None
    if known.nats is not None and known.learns:
        if known.throughout is None:
            found = f"not certified: the prior learns, with no floor for this guide; {known.nats:.6g} nats as it starts"
            return Finding(title, None, found), None
        finding = _learned_rate(title, case, known.nats, known.throughout)
        return finding, known if finding.passed else None
    if known.nats is not None and not known.claimed:
        return Finding(title, True, f"δ = {known.nats:.6g} nats {known.way}: {known.known_by}"), known
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
    return Finding(title, True, found), known


def _data(case: Case) -> Any:
    return {"x": case.x, **case.extras} if case.extras else case.x


# --- The floor of a prior that learns ---


def _learned_rate(title: str, case: Case, start: float, floor: float) -> Finding:
    """The floor of a prior that learns, unless weights are found with which it commits less."""
    least = min(start, _least_by_chance(case), _least_by_descent(case))
    if least < floor * (1 - ROUNDING):
        refuted = f"the prior claims floor_nats = {floor:.6g}, but commits {least:.6g} nats with other weights"
        return Finding(title, False, refuted)
    now = f"{start:.6g} nats as it starts, least found {least:.6g}"
    found = f"δ = {floor:.6g} nats, the floor of a prior that learns; {now}"
    return Finding(title, True, found)


@torch.no_grad()
def _least_by_chance(case: Case) -> float:
    """The least rate at weights of any size, of the whole model: whoever owns what moves the prior."""
    least = math.inf
    for number in range(WEIGHTS):
        other = copy.copy(case)
        other.vae = copy.deepcopy(case.vae)
        shake(other.vae.model, 0.3 * (1 + number))
        rate: Commitment = committed(other.vae, _data(other))
        least = least if rate.nats is None else min(least, rate.nats)
    return least


def _least_by_descent(case: Case) -> float:
    """The least rate on the way of a descent in the model's weights, where the prior's formula has a gradient."""
    vae, least, since = copy.deepcopy(case.vae), math.inf, 0
    parameters = [p for p in vae.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(DESCENT):
        with torch.enable_grad():
            value = committed_rate(prior(vae)).sum()
        least, since = (value.item(), 0) if value.item() < least * (1 - 1e-4) else (least, since + 1)
        if since > STALLED or not value.requires_grad:
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return least


# --- A claim of the guide ---


def _least_rate(case: Case, claim: float | None) -> float:
    """The smallest KL of any datum on the way of descents in the guide's weights, which end once they refute a claim.

    They start from weights where the rate has a slope: a claim may rest on a unit that is saturated at the start.
    """
    least = math.inf
    for vae, rate in _starts(case, 1 if claim is None else STARTS):
        least = min(least, rate)
        least = min(least, _descended(case, vae, None if claim is None else claim * (1 - ROUNDING)))
        if claim is not None and least < claim * (1 - ROUNDING):
            break
    return least


def _starts(case: Case, count: int) -> list[tuple[VAE, float]]:
    """Weights to start from, and the least rate there: the ones that are given, and of others the most promising."""
    tried: list[tuple[VAE, float, float]] = []
    for number in range(1 if count == 1 else TRIED):
        vae = copy.deepcopy(case.vae)
        if number:
            shake(vae.guide, 0.1 * 10 ** (2 * number / TRIED))
        with torch.no_grad():
            rate_b = ClosedForm()(vae, case.batch(case.x), trace(vae, case.batch(case.x)))
        assert rate_b is not None
        slope = 0.0
        if (rates := _rates(case, vae)) is not None:
            slope = sum(g.square().sum().item() for g in _gradients(rates.sum(), vae)) ** 0.5
        tried.append((vae, rate_b.min().item(), slope))
    first, others = tried[0], tried[1:]
    live = [start for start in others if 0 < start[2] < math.inf]
    chosen = [first, *sorted(live, key=lambda start: -start[2])[:1], *sorted(live, key=lambda start: start[1])]
    unique = list({id(start[0]): start for start in chosen}.values())[:count]
    lowest = min(tried, key=lambda start: start[1])
    return [(vae, min(rate, lowest[1])) for vae, rate, _ in unique]


def _priors(case: Case, vae: VAE) -> dict[str, Distribution]:
    with torch.no_grad():
        return {name: as_float64(latent.p) for name, latent in trace(vae, case.batch(case.x[:1])).latents.items()}


def _rates(case: Case, vae: VAE, priors: dict[str, Distribution] | None = None) -> Tensor | None:
    """(COUNT,) nats with a gradient by the guide's weights; None for a prior that is known by its density alone."""
    priors = _priors(case, vae) if priors is None else priors
    torch.manual_seed(0)
    drawn = posteriors(vae, case.batch(case.x))
    try:
        rates: Tensor = sum(kl_divergence(drawn[name].q, priors[name]) for name in drawn)  # type: ignore[assignment]
    except NotImplementedError:
        return None
    return rates if rates.requires_grad else None


def _gradients(value: Tensor, vae: VAE) -> list[Tensor]:
    parameters = [p for p in vae.guide.parameters() if p.requires_grad]
    if not parameters:
        return []
    return [g for g in torch.autograd.grad(value, parameters, allow_unused=True) if g is not None]


def _descended(case: Case, vae: VAE, enough: float | None) -> float:
    """The smallest KL of any datum on the way of a descent; it ends below `enough`, or when it stalls."""
    parameters = [p for p in vae.guide.parameters() if p.requires_grad]
    priors, least, best, since = _priors(case, vae), math.inf, math.inf, 0
    if not parameters or _rates(case, vae, priors) is None:
        return least
    optimizer = torch.optim.Adam(parameters, lr=0.03, fused=True)
    for step in range(DESCENT):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / DESCENT)
        rate_b = _rates(case, vae, priors)
        assert rate_b is not None
        least = min(least, rate_b.min().item())
        if enough is not None and least < enough:
            return least
        total = rate_b.sum().item()
        best, since = (total, 0) if total < best * (1 - 1e-4) else (best, since + 1)
        if since > STALLED:
            return least
        optimizer.zero_grad()
        rate_b.sum().backward()
        optimizer.step()
    return least
