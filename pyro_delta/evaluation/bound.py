"""Rate, distortion and the bounds they make, image by image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_delta.build import Programs, parameters_of
from pyro_delta.distributions.any_gaussian import Gaussian, as_gaussian, gaussian_kl
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.mean_field import mean_field_parameters
from pyro_delta.errors import UserError
from pyro_delta.rate import committed_rate

LN2 = math.log(2.0)


@dataclass(frozen=True)
class Encoding:
    """What evaluation keeps of N images, on the CPU.

    Attributes:
        rate: (N,) KL(q(z|x) ‖ p(z)) in nats: closed form in float64, or log q − log p of the sample where
            there is none.
        closed_form: whether `rate` is the closed form.
        distortion: (N,) −log p(x | z) in nats for the sampled z, float64.
        mean, scale: (N, n, d) of the posterior.
        z: (N, n, d) one sample each.
        mean_field: whether the posterior is Normal and independent over coordinates, so that mean and scale are all.
    """

    rate: Tensor
    closed_form: bool
    distortion: Tensor
    mean: Tensor
    scale: Tensor
    z: Tensor
    mean_field: bool = True


def closed_form_rate(prior: Distribution) -> Callable[[Distribution], Tensor | None]:
    """The function posterior → KL(posterior ‖ prior), in float64, or None where it has no closed form.

    The closed form is a registered KL or, for any Gaussian prior, what its density says. The latter costs O(N³), and is
    read off once for all posteriors.
    """
    wide = as_float64(prior)

    @cache
    def gaussian() -> Gaussian | None:
        try:
            return as_gaussian(prior)
        except UserError:
            return None

    def rate_of(posterior: Distribution) -> Tensor | None:
        try:
            return kl_divergence(as_float64(posterior), wide)
        except NotImplementedError:
            density = gaussian()
        try:
            return None if density is None else gaussian_kl(posterior, density)
        except NotImplementedError:
            return None

    return rate_of


@torch.no_grad()
def delta_of(programs: Programs, images: Tensor) -> float | None:
    """What the guide's family commits against the prior in nats, or None where no formula certifies it.

    The family is read off the posterior of the first of the images (N, C, H, W).
    """
    with evaluating(programs, 0):
        prior = programs.model.prior()
        claimed = claimed_rate(programs.guide, prior)
        if claimed is not None:
            return claimed
        (x,) = batches(images[:1], 1, programs)
        return mean_field_rate(programs.guide.posterior(x), prior)


@torch.no_grad()
def floor_of(programs: Programs, images: Tensor) -> float | None:
    """δ that a prior which learns guarantees by its `floor_nats`, whatever it learns.

    It holds for posteriors that are independent over steps and dimensions, read off as by `delta_of`; None for others,
    or without a floor.
    """
    if hasattr(programs.guide, "committed_rate"):
        return None
    with evaluating(programs, 0):
        (x,) = batches(images[:1], 1, programs)
        independent = is_mean_field(programs.guide.posterior(x))
    return getattr(programs.model.prior, "floor_nats", None) if independent else None


def claimed_rate(guide: PyroModule, prior: Distribution) -> float | None:
    """δ that a guide gives for its own family by `committed_rate(prior)`; None if it gives none for this prior.

    Raises:
        UserError: if what it gives is no rate.
    """
    if (formula := getattr(guide, "committed_rate", None)) is None:
        return None
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


def mean_field_rate(posterior: Distribution, prior: Distribution) -> float | None:
    """δ of posteriors that are independent over steps and dimensions; None for another family or prior."""
    if not is_mean_field(posterior):
        return None
    try:
        return committed_rate(prior).item()
    except UserError:
        return None


def is_mean_field(posterior: Distribution) -> bool:
    """Whether a posterior is exactly `Normal(μ, σ).to_event(2)`, which subclasses are not."""
    try:
        mean_field_parameters(posterior, posterior.event_shape, "any prior")
    except NotImplementedError:
        return False
    return len(posterior.event_shape) == 2


def with_prior(programs: Programs, prior: PyroModule) -> Programs:
    """The same programs, sharing their weights, with another prior in the model.

    With an auxiliary prior `evaluate` gives the tighter bound D + E_q[log q − log p_aux] [1]: from the same seed
    come the same z, so the distortion is the same, the rate is sampled, and no δ is committed.

    Args:
        programs: model and guide; they stay as they are.
        prior: of the same event shape and `first_row` as the model's own.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """
    # A copy: as a part of a second DeltaVAE the likelihood would forget the Pyro context that it shares with the first.
    model = copy.copy(programs.model)
    model._modules = {**programs.model._modules, "prior": prior}
    return Programs(model, programs.guide).train(programs.training)


def ignore(images: int) -> None:
    """Reports progress to nobody."""


@torch.no_grad()
def encode(
    programs: Programs,
    images: Tensor,
    *,
    batch: int = 100,
    seed: int = 0,
    advance: Callable[[int], None] = ignore,
) -> Encoding:
    """Rate and distortion of every image with one posterior sample, in evaluation mode.

    Args:
        programs: model and guide.
        images: (N, C, H, W) uint8.
        batch: images at a time.
        seed: of the posterior samples.
        advance: called with the number of images just done.
    """
    parts: list[tuple[Tensor, ...]] = []
    closed = mean_field = True
    with evaluating(programs, seed):
        prior = programs.model.prior()
        closed_form = closed_form_rate(prior)
        for x in batches(images, batch, programs):
            q = programs.guide.posterior(x)
            z, mean_field = q.rsample(), is_mean_field(q)
            rate = closed_form(q)
            if rate is None:
                closed = False
                rate = (q.log_prob(z) - prior.log_prob(z)).double()
            distortion = -programs.model.likelihood(z).log_prob(x).double()
            parts.append(tuple(part.cpu() for part in (rate, distortion, q.mean, q.stddev, z)))
            advance(len(x))
    rate, distortion, mean, scale, z = (torch.cat(column) for column in zip(*parts, strict=True))
    return Encoding(rate, closed, distortion, mean, scale, z, mean_field)


def batches(images: Tensor, batch: int, programs: Programs) -> Iterator[Tensor]:
    """The images in order, every one, on the programs' device."""
    device = next(programs.parameters()).device
    for part in images.split(batch):
        yield part.to(device)


@contextmanager
def evaluating(programs: Programs, seed: int) -> Iterator[None]:
    """Evaluation mode, no validation, and parameters and random state of its own; all put back afterwards."""
    device, training = next(programs.parameters()).device, programs.training
    with ExitStack() as stack:
        stack.enter_context(parameters_of(programs))
        # Weights that diverged give numbers that are not finite, for which the run's own words are better than a trace.
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(seed)
        programs.eval()
        try:
            yield
        finally:
            programs.train(training)


def summarise(encoding: Encoding, dims: int, delta: float | None) -> dict[str, float | int | None]:
    """The numbers that a run is judged by: means over all images, rate and distortion apart."""
    return line_of(
        encoding.rate.mean().item(),
        encoding.distortion.mean().item(),
        encoding.rate.min().item(),
        active_units(encoding.mean),
        len(encoding.rate),
        dims,
        delta,
    )


def standard_errors(encoding: Encoding, dims: int) -> dict[str, float]:
    """Standard errors, over the images, of the means that `summarise` gives, under `<key>_se`."""
    per_dim = 1 / (dims * LN2)
    return {
        "neg_elbo_bpd_se": standard_error(encoding.rate + encoding.distortion) * per_dim,
        "distortion_bpd_se": standard_error(encoding.distortion) * per_dim,
        "rate_bpd_se": standard_error(encoding.rate) * per_dim,
        "rate_nats_mean_se": standard_error(encoding.rate),
    }


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of values (N,); 0 for a single one."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0


def line_of(
    rate: float, distortion: float, least_rate: float, active: int, images: int, dims: int, delta: float | None
) -> dict[str, float | int | None]:
    """A line of metrics from nats per image; `_bpd` is bits per image dimension."""
    per_dim = 1 / (dims * LN2)
    return {
        "neg_elbo_bpd": (rate + distortion) * per_dim,
        "distortion_bpd": distortion * per_dim,
        "rate_bpd": rate * per_dim,
        "rate_nats_mean": rate,
        "rate_nats_min": least_rate,
        "delta_nats": delta,
        "active_units": active,
        "n_images": images,
    }


def active_units(mean_bnd: Tensor, threshold: float = 0.01) -> int:
    """Latent coordinates whose posterior mean varies over the images, Var > 0.01 [1].

    References:
        1. Y. Burda et al., "Importance Weighted Autoencoders", ICLR 2016, §5.2.
    """
    return int((mean_bnd.double().var(0, correction=0) > threshold).sum())
