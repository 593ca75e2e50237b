"""The certificate of a combination of prior, likelihood and guide, before any training.

Formulas and the Gaussian route certify a rate; an optimiser can only refute a claim or give an estimate. Causality is
read off Jacobians in double precision at randomised weights, in training and in evaluation mode.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.build import Programs, parameters_of
from pyro_delta.data.spec import ImageSpec
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.evaluation.bound import claimed_rate, closed_form_rate, mean_field_rate
from pyro_delta.inference.elbo import RateDistortionELBO

DRAWS = 20_000
"""Samples for the agreement of `rsample`, `log_prob`, `mean` and `variance`."""
LARGEST_Z = 6.0
"""Standard errors by which a sample mean may be off: about one false alarm in 10⁸ coordinates."""
IMAGES = 3
"""Images in a batch: with more than one, a leak across the batch shows."""
TARGETS = 24
"""Pixels of the decoder that are looked at, corners among them."""
DESCENT = 400
"""Steps of the optimiser that tries to refute a claim."""


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


def verify(programs: Programs, spec: ImageSpec, seed: int = 0) -> Certificate:
    """Checks rate, distributions, causality, support and gradients of programs for images of `spec`.

    Args:
        programs: model and guide; they are copied, not changed.
        spec: shape and levels of the images.
        seed: of weights, images and noise.
    """
    with parameters_of(programs), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
        torch.manual_seed(seed)
        programs = copy.deepcopy(programs).cpu().double().eval()
        x = torch.randint(spec.levels, (IMAGES, *spec.shape))
        rate, delta = _rate(programs, x)
        checks: list[Callable[[], Finding]] = [
            lambda: _agreement("prior", programs.model.prior()),
            lambda: _agreement("posterior", as_float64(programs.guide.posterior(x[:1]))),
            lambda: _support(programs, x),
            lambda: _network_causality(programs, x),
            lambda: _conditioning(programs, x),
            lambda: _guide_causality(programs, x),
            lambda: _gradient(programs, x),
        ]
        findings = (rate, *(check() for check in checks))
    return Certificate(findings, delta)


# --- The rate ---


def _rate(programs: Programs, x: Tensor) -> tuple[Finding, float | None]:
    """Certified by formula or by the Gaussian route, refuted or estimated by descent."""
    prior, q = programs.model.prior(), programs.guide.posterior(x)
    certified, claimed = mean_field_rate(q, prior), claimed_rate(programs.guide, prior)
    if claimed is None and certified is not None:
        return Finding("committed rate", True, f"δ = {certified:.6g} nats, certified"), certified
    if closed_form_rate(prior)(q) is None:
        return Finding("committed rate", None, "no closed form of the KL, nothing is certified"), None
    least = _least_rate(programs, x)
    if claimed is None:
        return Finding("committed rate", None, f"not certified; the least KL found is {least:.6g} nats"), None
    if least < claimed * (1 - 1e-6):
        refuted = f"the guide claims δ = {claimed:.6g} nats, but a KL of {least:.6g} was found"
        return Finding("committed rate", False, refuted), None
    return Finding(
        "committed rate", True, f"δ = {claimed:.6g} nats by the guide's formula; least found {least:.6g}"
    ), claimed


def _least_rate(programs: Programs, x: Tensor) -> float:
    """The smallest KL of any image on the way of a descent in the guide's weights, from several starts."""
    least = math.inf
    for start in range(3):
        guide = copy.deepcopy(programs.guide)
        if start:
            _shake(guide, 0.3 * start)
        parameters = [p for p in guide.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=0.03)
        prior = as_float64(programs.model.prior())
        for step in range(DESCENT):
            for group in optimizer.param_groups:
                group["lr"] = 0.03 * (1 - step / DESCENT)
            rate_b = torch.distributions.kl_divergence(guide.posterior(x), prior)
            least = min(least, rate_b.min().item())
            optimizer.zero_grad()
            rate_b.sum().backward()
            optimizer.step()
    return least


# --- Distributions ---


@torch.no_grad()
def _agreement(name: str, distribution: Distribution) -> Finding:
    """Do samples have the mean and variance that are stated, and the density that is evaluated?

    The density by Stein's identity: E[(z_i − m_i) ∂_i log p(z)] = −1 for every coordinate of any density that falls off
    to zero.
    """
    title = f"distribution of the {name}"
    wide = as_float64(distribution)
    try:
        z = wide.rsample((DRAWS,))
        mean, variance = wide.mean, wide.variance
    except NotImplementedError as error:
        return Finding(title, False, f"{type(distribution).__name__} lacks {error or 'rsample, mean or variance'}")
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        (score,) = torch.autograd.grad(wide.log_prob(leaf).sum(), leaf)
    centred = z - mean
    for what, values, expected in (
        ("mean", z, mean),
        ("variance", centred.square(), variance),
        ("log_prob (Stein's identity)", centred * score, -torch.ones_like(mean)),
    ):
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
    return Finding(title, True, "rsample, log_prob, mean and variance agree")


def _support(programs: Programs, x: Tensor) -> Finding:
    """Does the guide draw what the prior can score, and does the likelihood take the images?"""
    z = programs.guide.posterior(x).rsample()
    prior, likelihood = programs.model.prior(), programs.model.likelihood(z)
    if not prior.support.check(z).all():
        return Finding("support", False, "the guide draws latents outside the prior's support")
    if not likelihood.support.check(x).all():
        return Finding("support", False, "images lie outside the likelihood's support")
    if likelihood.log_prob(x).shape != (IMAGES,):
        return Finding("support", False, f"log_prob of {IMAGES} images has shape {tuple(likelihood.log_prob(x).shape)}")
    return Finding("support", True, "latents and images lie in it")


# --- Causality ---


def _network_causality(programs: Programs, x: Tensor) -> Finding:
    """∂ parameters at a pixel / ∂ pixels: zero from the pixel on in raster order, and in other images."""
    title = "causality of the network"
    z = as_float64(programs.guide.posterior(x)).rsample()
    image = programs.model.likelihood(z)
    if not isinstance(image, AutoregressiveImage):
        return Finding(title, None, f"{type(image).__name__} is not autoregressive")
    height, width = x.shape[-2:]
    order = torch.arange(height * width).reshape(height, width)
    for mode, network in _modes(cast(torch.nn.Module, image.network)):
        for row, column in _targets(height, width):
            leaf = x.double().requires_grad_()
            out = network(leaf, z)[0, :, row, column]
            (grad,) = torch.autograd.grad(out, leaf, torch.randn_like(out))
            seen = (grad != 0).any(1)
            if seen[1:].any():
                return Finding(title, False, f"pixel {(row, column)} of an image sees other images ({mode})")
            if (late := (seen[0] & (order >= order[row, column])).nonzero()).numel():
                return Finding(title, False, f"pixel {(row, column)} sees pixel {tuple(late[0].tolist())} ({mode})")
    return Finding(title, True, f"strict raster order at {len(_targets(height, width))} pixels, both modes")


def _conditioning(programs: Programs, x: Tensor) -> Finding:
    """∂ parameters of a row / ∂ z_t: non-zero only if first_row[t] ≤ row, unless conditioning is declared full."""
    title = "causality of the conditioning"
    z = as_float64(programs.guide.posterior(x)).rsample()
    image = programs.model.likelihood(z)
    if not isinstance(image, AutoregressiveImage):
        return Finding(title, None, f"{type(image).__name__} has no rows")
    full = getattr(programs.model.likelihood, "conditioning", "causal") == "full"
    first_row = programs.model.prior.first_row.cpu()
    used = torch.zeros(len(first_row), dtype=torch.bool)
    for mode, network in _modes(cast(torch.nn.Module, image.network)):
        for row in range(x.shape[-2]):
            leaf = z.clone().requires_grad_()
            out = network(x, leaf)[0, :, row]
            if not out.requires_grad:
                continue
            (grad,) = torch.autograd.grad(out, leaf, torch.randn_like(out), allow_unused=True)
            if grad is None:
                continue
            seen = (grad != 0).any(-1)
            if seen[1:].any():
                return Finding(title, False, f"row {row} of an image sees latents of other images ({mode})")
            used |= seen[0]
            early = (seen[0] & (first_row > row)).nonzero()
            if early.numel() and not full:
                t = int(early[0])
                return Finding(title, False, f"row {row} sees z_{t + 1}, whose first row is {first_row[t]} ({mode})")
    if not used.any():
        return Finding(title, True, "no row sees any latent: a latent-free likelihood")
    return Finding(title, True, "every row sees all of z" if full else "rows see {z_t : first_row[t] ≤ row} alone")


def _guide_causality(programs: Programs, x: Tensor) -> Finding:
    """∂ posterior of z_t / ∂ rows: if anti-causal, zero above first_row[t]."""
    title = "causality of the guide"
    first_row = programs.model.prior.first_row.cpu()
    sees_first = torch.zeros(x.shape[-2], dtype=torch.bool)
    for mode, guide in _modes(programs.guide):
        for t in range(len(first_row)):
            leaf = x.double().requires_grad_()
            q = cast(PyroModule, guide).posterior(leaf)
            out = torch.cat([q.mean[0, t], q.stddev[0, t]])
            if not out.requires_grad or (grad := _gradient_of(out, leaf)) is None:
                return Finding(title, None, "the posterior has no derivative in the images")
            if (grad[1:] != 0).any():
                return Finding(title, False, f"z_{t + 1} of an image sees other images ({mode})")
            rows = (grad[0] != 0).any(0).any(1)
            if t == 0:
                sees_first = rows
            early = (rows & (torch.arange(len(rows)) < first_row[t])).nonzero()
            if early.numel() and programs.guide.causality == "anti_causal":
                return Finding(
                    title, False, f"z_{t + 1} sees row {int(early[0])}, above its first row {first_row[t]} ({mode})"
                )
    kind = "anti-causal" if programs.guide.causality == "anti_causal" else "not causal, as declared"
    return Finding(title, True, f"{kind}; z_1 sees {int(sees_first.sum())} of {len(sees_first)} rows")


def _gradient_of(out: Tensor, leaf: Tensor) -> Tensor | None:
    (grad,) = torch.autograd.grad(out, leaf, torch.randn_like(out), allow_unused=True)
    return grad


def _targets(height: int, width: int) -> list[tuple[int, int]]:
    """The corners, and pixels spread over the image."""
    spread = torch.linspace(0, height * width - 1, TARGETS).long().tolist()
    corners = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    return sorted({*corners, *((place // width, place % width) for place in spread)})


def _modes(network: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """A copy at randomised weights, where the zeros of an initialisation hide nothing, in both modes."""
    network = copy.deepcopy(network)
    _shake(network, 0.1)
    yield "training mode", network.train()
    yield "evaluation mode", network.eval()


@torch.no_grad()
def _shake(module: torch.nn.Module, size: float) -> None:
    for parameter in module.parameters():
        parameter.add_(size * torch.randn_like(parameter))


# --- Gradients ---


def _gradient(programs: Programs, x: Tensor) -> Finding:
    """The ELBO's gradient along a random direction, against finite differences with the same noise."""
    programs = copy.deepcopy(programs)
    _shake(programs, 0.05)
    parameters = [p for p in programs.parameters() if p.requires_grad]
    elbo = RateDistortionELBO(max_plate_nesting=1)
    direction = [torch.randn_like(p) for p in parameters]

    def loss() -> Tensor:
        torch.manual_seed(0)
        return elbo(programs.model, programs.guide)(x)

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
        return Finding("gradient", False, f"{slope:.6g} along a random direction, {measured:.6g} by finite differences")
    return Finding("gradient", True, f"agrees with finite differences ({slope:.6g})")
