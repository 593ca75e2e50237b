"""The certificate of a combination of prior, likelihood and guide, before any training.

Formulas and the Gaussian route certify a rate; an optimiser can only refute a claim or give an estimate. Causality is
read off Jacobians in double precision at randomised weights, in training and in evaluation mode, and off what changes
when what must not be seen is changed: a look-up or a rounding has no derivative.
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
from pyro_delta.errors import UserError, is_out_of_memory
from pyro_delta.evaluation.bound import claimed_rate, closed_form_rate, floor_of, mean_field_rate
from pyro_delta.inference.elbo import RateDistortionELBO

DRAWS = 20_000
"""Samples for the agreement of `rsample`, `log_prob`, `mean` and `variance`."""
LARGEST_Z = 6.0
"""Standard errors by which a sample mean may be off: about one false alarm in 10⁸ coordinates."""
IMAGES = 3
"""Images in a batch: with more than one, a leak across the batch shows."""
TARGETS = 24
"""Pixels of the decoder that are looked at, corners among them."""
WEIGHTS = 20
"""Weights of a learning prior at which the floor that it claims is tried."""
SAME = 1e-9
"""Change, relative to the largest value, that counts as none: sums may be taken in another order."""
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
        checks: dict[str, Callable[[str], Finding]] = {
            "distribution of the prior": lambda title: _prior_agreement(title, programs.model.prior),
            "distribution of the posterior": lambda title: _agreement(
                title, as_float64(programs.guide.posterior(x[:1]))
            ),
            "support": lambda title: _support(title, programs, x),
            "causality of the network": lambda title: _network_causality(title, programs, x),
            "causality of the conditioning": lambda title: _conditioning(title, programs, x),
            "causality of the guide": lambda title: _guide_causality(title, programs, x),
            "gradient": lambda title: _gradient(title, programs, x),
        }
        findings = (rate, *(_made(title, check) for title, check in checks.items()))
    return Certificate(findings, delta)


def _made(title: str, check: Callable[[str], Finding]) -> Finding:
    """A finding; a check that the programs do not let be made has failed."""
    try:
        return check(title)
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), "").rstrip(".")
        return Finding(title, False, f"it cannot be checked: {type(error).__name__}: {reason}")


# --- The rate ---


def _rate(programs: Programs, x: Tensor) -> tuple[Finding, float | None]:
    """Certified by formula or by the Gaussian route, refuted or estimated by descent."""
    prior, q = programs.model.prior(), programs.guide.posterior(x)
    certified, claimed = mean_field_rate(q, prior), claimed_rate(programs.guide, prior)
    start = certified if claimed is None else claimed
    if start is not None and any(p.requires_grad for p in programs.model.prior.parameters()):
        floor = floor_of(programs, x)
        if floor is None:
            found = f"not certified: the prior learns, with no floor for this guide; {start:.6g} nats as it starts"
            return Finding("committed rate", None, found), None
        return _learned_rate(programs.model.prior, q, start, floor)
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


@torch.no_grad()
def _learned_rate(prior: PyroModule, q: Distribution, start: float, floor: float) -> tuple[Finding, float | None]:
    """The floor of a prior that learns, unless weights are found with which it commits less."""
    least = start
    for number in range(WEIGHTS):
        other = copy.deepcopy(prior)
        _shake(other, 0.3 * (1 + number))
        rate = mean_field_rate(q, other())
        least = least if rate is None else min(least, rate)
    if least < floor * (1 - 1e-6):
        refuted = f"the prior claims floor_nats = {floor:.6g}, but commits {least:.6g} nats with other weights"
        return Finding("committed rate", False, refuted), None
    found = f"δ = {floor:.6g} nats, the floor of a prior that learns; {start:.6g} as it starts, least found {least:.6g}"
    return Finding("committed rate", True, found), floor


def _least_rate(programs: Programs, x: Tensor) -> float:
    """The smallest KL of any image on the way of a descent in the guide's weights, from several starts."""
    least = math.inf
    prior = as_float64(programs.model.prior())
    closed_form = closed_form_rate(prior)
    for start in range(3):
        guide = copy.deepcopy(programs.guide)
        if start:
            _shake(guide, 0.3 * start)
        rate_b = closed_form(guide.posterior(x))
        assert rate_b is not None
        least = min(least, rate_b.min().item())
        parameters = [p for p in guide.parameters() if p.requires_grad]
        try:
            descends = torch.distributions.kl_divergence(guide.posterior(x), prior).requires_grad and bool(parameters)
        except NotImplementedError:  # a prior known by its density alone, whose KL has no gradient
            descends = False
        if not descends:
            continue
        optimizer = torch.optim.Adam(parameters, lr=0.03)
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
def _prior_agreement(title: str, prior: PyroModule) -> Finding:
    """The same of a prior, which moreover is the same in training as in evaluation, where its rate is read."""
    finding = _agreement(title, prior())
    if not finding.passed:
        return finding
    evaluated, trained = as_float64(prior()), as_float64(copy.deepcopy(prior).train()())
    z = evaluated.rsample((IMAGES,))
    if _moved(evaluated.log_prob(z), trained.log_prob(z)).any():
        return Finding(title, False, "its density in training mode is another than in evaluation mode")
    return finding


@torch.no_grad()
def _agreement(title: str, distribution: Distribution) -> Finding:
    """Do samples have the mean and variance that are stated, and the density that is evaluated?

    The density by Stein's identity: E[(z_i − m_i) ∂_i log p(z)] = −1 for every coordinate of any density that falls off
    to zero.
    """
    wide = as_float64(distribution)
    try:
        z = wide.rsample((DRAWS,))
        mean, variance = wide.mean, wide.variance
    except NotImplementedError as error:
        return Finding(title, False, f"{type(distribution).__name__} lacks {str(error) or 'rsample, mean or variance'}")
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


def _support(title: str, programs: Programs, x: Tensor) -> Finding:
    """Does the guide draw what it says and what the prior can score, and does the likelihood take the images?"""
    site = pyro.poutine.trace(programs.guide).get_trace(x).nodes["z"]
    z = site["value"]
    if _moved(site["fn"].log_prob(z), programs.guide.posterior(x).log_prob(z)).any():
        return Finding(title, False, "the guide samples z from another distribution than its posterior(x)")
    prior, likelihood = programs.model.prior(), programs.model.likelihood(z)
    if not prior.support.check(z).all():
        return Finding(title, False, "the guide draws latents outside the prior's support")
    if not likelihood.support.check(x).all():
        return Finding(title, False, "images lie outside the likelihood's support")
    if not likelihood.support.is_discrete:
        return Finding(title, False, f"images are integers, but {type(likelihood).__name__} is a density")
    if likelihood.log_prob(x).shape != (IMAGES,):
        return Finding(title, False, f"log_prob of {IMAGES} images has shape {tuple(likelihood.log_prob(x).shape)}")
    return Finding(title, True, "latents and images lie in it")


# --- Causality ---


def _network_causality(title: str, programs: Programs, x: Tensor) -> Finding:
    """Parameters at a pixel do not depend on pixels from it on in raster order, nor on other images."""
    z = as_float64(programs.guide.posterior(x)).rsample()
    image = programs.model.likelihood(z)
    if not isinstance(image, AutoregressiveImage):
        return Finding(title, None, f"{type(image).__name__} is not autoregressive")
    height, width = x.shape[-2:]
    order = torch.arange(height * width).reshape(height, width)
    fill = _other_values(x)
    for mode, likelihood in _modes(programs.model.likelihood):
        image = cast(AutoregressiveImage, likelihood(z))
        plain = _same_noise(image.network, x, image.z)
        for row, column in _targets(height, width):
            leaf = x.double().requires_grad_()
            out = image.network(leaf, image.z)[0, :, row, column]
            later = order >= order[row, column]
            if (grad := _gradient_of(out, leaf)) is not None:
                seen = (grad != 0).any(1)
                if seen[1:].any():
                    return Finding(title, False, f"pixel {(row, column)} of an image sees other images ({mode})")
                if (late := (seen[0] & later).nonzero()).numel():
                    return Finding(title, False, f"pixel {(row, column)} sees pixel {tuple(late[0].tolist())} ({mode})")
            changed = _same_noise(image.network, torch.where(later, fill, x), image.z)
            if _moved(plain[..., row, column], changed[..., row, column]).any():
                return Finding(title, False, f"pixel {(row, column)} changes with itself or later pixels ({mode})")
        mixed = _same_noise(image.network, torch.cat((x[:1], fill[1:])), image.z)
        if _moved(plain[0], mixed[0]).any():
            return Finding(title, False, f"an image changes with other images ({mode})")
    return Finding(title, True, f"strict raster order at {len(_targets(height, width))} pixels, both modes")


def _conditioning(title: str, programs: Programs, x: Tensor) -> Finding:
    """Parameters of a row depend on z_t only if first_row[t] ≤ row, unless conditioning is declared full.

    What a likelihood does to z before its network sees it counts as well.
    """
    z = as_float64(programs.guide.posterior(x)).rsample()
    image = programs.model.likelihood(z)
    if not isinstance(image, AutoregressiveImage):
        return Finding(title, None, f"{type(image).__name__} has no rows")
    full = getattr(programs.model.likelihood, "conditioning", "causal") == "full"
    first_row = programs.model.prior.first_row.cpu()
    used = torch.zeros(len(first_row), dtype=torch.bool)
    other = z + 3 * torch.randn_like(z)
    for mode, likelihood in _modes(programs.model.likelihood):

        def parameters(x: Tensor, z: Tensor, likelihood: torch.nn.Module = likelihood) -> Tensor:
            image = cast(AutoregressiveImage, likelihood(z))
            return image.network(x, image.z)

        plain = _same_noise(parameters, x, z)
        for row in range(x.shape[-2]):
            leaf = z.clone().requires_grad_()
            grad = _gradient_of(parameters(x, leaf)[0, :, row], leaf)
            late = first_row > row
            if grad is not None:
                seen = (grad != 0).any(-1)
                if seen[1:].any():
                    return Finding(title, False, f"row {row} of an image sees latents of other images ({mode})")
                used |= seen[0]
                early = (seen[0] & late).nonzero()
                if early.numel() and not full:
                    t = int(early[0])
                    return Finding(
                        title, False, f"row {row} sees z_{t + 1}, whose first row is {first_row[t]} ({mode})"
                    )
            changed = _same_noise(parameters, x, torch.where(late[:, None], other, z))
            if not full and _moved(plain[..., row, :], changed[..., row, :]).any():
                return Finding(title, False, f"row {row} changes with latents of later rows ({mode})")
        mixed = _same_noise(parameters, x, torch.cat((z[:1], other[1:])))
        if _moved(plain[0], mixed[0]).any():
            return Finding(title, False, f"an image changes with latents of other images ({mode})")
    if not used.any():
        return Finding(title, True, "no row sees any latent: a latent-free likelihood")
    return Finding(title, True, "every row sees all of z" if full else "rows see {z_t : first_row[t] ≤ row} alone")


def _guide_causality(title: str, programs: Programs, x: Tensor) -> Finding:
    """The posterior of z_t depends, if anti-causal, on no row above first_row[t]; and on no other image."""
    first_row = programs.model.prior.first_row.cpu()
    rows = torch.arange(x.shape[-2])
    sees_first = torch.zeros(len(rows), dtype=torch.bool)
    anti_causal, differentiable = programs.guide.causality == "anti_causal", True
    fill = _other_values(x)
    for mode, guide in _modes(programs.guide):

        def moments(x: Tensor, guide: torch.nn.Module = guide) -> Tensor:
            q = cast(PyroModule, guide).posterior(x)
            return torch.cat((q.mean, q.stddev), dim=-1)

        plain = _same_noise(moments, x)
        for t in range(len(first_row)):
            above = rows < first_row[t]
            leaf = x.double().requires_grad_()
            if (grad := _gradient_of(moments(leaf)[0, t], leaf)) is None:
                differentiable = False
            else:
                if (grad[1:] != 0).any():
                    return Finding(title, False, f"z_{t + 1} of an image sees other images ({mode})")
                seen = (grad[0] != 0).any(0).any(1)
                if t == 0:
                    sees_first = seen
                early = (seen & above).nonzero()
                if early.numel() and anti_causal:
                    where = f"row {int(early[0])}, above its first row {first_row[t]}"
                    return Finding(title, False, f"z_{t + 1} sees {where} ({mode})")
            changed = _same_noise(moments, torch.where(above[:, None], fill, x))
            if anti_causal and _moved(plain[:, t], changed[:, t]).any():
                return Finding(title, False, f"z_{t + 1} changes with rows above its first row {first_row[t]} ({mode})")
        mixed = _same_noise(moments, torch.cat((x[:1], fill[1:])))
        if _moved(plain[0], mixed[0]).any():
            return Finding(title, False, f"z of an image changes with other images ({mode})")
    if not differentiable:
        return Finding(title, None, "the posterior has no derivative in the images")
    kind = "anti-causal" if anti_causal else "not causal, as declared"
    return Finding(title, True, f"{kind}; z_1 sees {int(sees_first.sum())} of {len(sees_first)} rows")


def _other_values(x: Tensor) -> Tensor:
    """Images to put in the place of what must not be seen: any values, the lowest and the highest."""
    levels = int(x.max()) + 1
    fill = torch.randint_like(x, levels)
    fill[1], fill[2] = 0, levels - 1
    return fill


@torch.no_grad()
def _same_noise(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The result of a function that may draw noise, such as dropout, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return function(*arguments)


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """Where two results differ by more than rounding, or are no numbers."""
    return ~((before - after).abs() <= SAME * (1 + before.abs().max()))


def _gradient_of(out: Tensor, leaf: Tensor) -> Tensor | None:
    """Gradient along a random direction; None where there is no derivative."""
    if not out.requires_grad:
        return None
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


def _gradient(title: str, programs: Programs, x: Tensor) -> Finding:
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
        return Finding(title, False, f"{slope:.6g} along a random direction, {measured:.6g} by finite differences")
    return Finding(title, True, f"agrees with finite differences ({slope:.6g})")
