"""Rate, distortion and the bounds they make, image by image."""

from __future__ import annotations

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

from pyro_delta.build import Programs, local_parameters
from pyro_delta.distributions.any_gaussian import Gaussian, as_gaussian, gaussian_kl
from pyro_delta.distributions.float64 import as_float64
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
    """

    rate: Tensor
    closed_form: bool
    distortion: Tensor
    mean: Tensor
    scale: Tensor
    z: Tensor


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


def delta_of(programs: Programs) -> float | None:
    """The committed rate of the programs' prior in nats, or None where it has none in closed form."""
    try:
        return committed_rate(programs.model.prior()).item()
    except UserError:
        return None


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
    closed = True
    with evaluating(programs, seed):
        prior = programs.model.prior()
        closed_form = closed_form_rate(prior)
        for x in batches(images, batch, programs):
            q = programs.guide.posterior(x)
            z = q.rsample()
            rate = closed_form(q)
            if rate is None:
                closed = False
                rate = (q.log_prob(z) - prior.log_prob(z)).double()
            distortion = -programs.model.likelihood(z).log_prob(x).double()
            parts.append(tuple(part.cpu() for part in (rate, distortion, q.mean, q.stddev, z)))
            advance(len(x))
    rate, distortion, mean, scale, z = (torch.cat(column) for column in zip(*parts, strict=True))
    return Encoding(rate, closed, distortion, mean, scale, z)


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
        if _built_locally(programs):
            stack.enter_context(local_parameters())
        # Weights that diverged give numbers that are not finite, for which the run's own words are better than a trace.
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(seed)
        programs.eval()
        try:
            yield
        finally:
            programs.train(training)


def _built_locally(programs: Programs) -> bool:
    """Whether all programs were built within `local_parameters`, as a user's own may not be: Pyro fails within then."""
    parts = [part for part in programs.modules() if isinstance(part, PyroModule)]
    return all(hasattr(part._pyro_context, "param_state") for part in parts)


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
