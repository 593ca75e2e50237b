"""The same weights, images and noise through Pyro and through NumPyro: every term of the ELBO, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import torch
from flax import nnx
from numpyro.distributions.kl import kl_divergence as numpyro_kl
from pyro import poutine
from torch.distributions import Distribution, kl_divergence

from pyro_delta.build import Programs, parameters_of
from pyro_delta.config import Config
from pyro_delta.data.spec import ImageSpec
from pyro_delta.evaluation.bound import delta_of
from pyro_delta.twin import programs as twins
from pyro_delta.twin.weights import load_torch, named_gradients

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of a term or a gradient."""
TERMS = ("log p(z)", "log p(x|z)", "log q(z|x)", "KL", "−ELBO")
"""−ELBO takes the sampled rate."""


@dataclass(frozen=True)
class Agreement:
    """One number from both, in nats summed over the images, and the largest relative difference of any image."""

    term: str
    pyro: float | None
    numpyro: float | None
    difference: float


@dataclass(frozen=True)
class Crosscheck:
    """All that was compared.

    Attributes:
        terms: of the ELBO, and δ.
        gradients: weight → max|Δg| / max|g| of the −ELBO per image.
        tolerance: of both.
    """

    terms: tuple[Agreement, ...]
    gradients: dict[str, float]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether all differences are within the tolerance; NaN is not."""
        found = [term.difference for term in self.terms] + list(self.gradients.values())
        return all(difference <= self.tolerance for difference in found)

    @property
    def failure(self) -> str | None:
        """The worst disagreement in a sentence; None if there is none."""
        if self.passed:
            return None
        named = {term.term: term.difference for term in self.terms}
        named |= {f"the gradient of {name}": difference for name, difference in self.gradients.items()}
        worst = max(named, key=lambda name: np.nan_to_num(named[name], nan=np.inf))
        return f"crosscheck failed: {worst} differs by {named[worst]:.3g}, more than {self.tolerance:g}."

    def asdict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


def crosscheck(
    programs: Programs,
    config: Config,
    spec: ImageSpec,
    images: torch.Tensor,
    *,
    folder: Path | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Crosscheck:
    """Compares a run's Pyro programs with their NumPyro twins.

    Args:
        programs: with the weights to compare; they are cast to `dtype`.
        config: that they were built from.
        spec: shape and levels of the images.
        images: (N, C, H, W) uint8.
        folder: of the run's own programs.
        dtype: float64 or float32, of everything in both.
        seed: of the noise.

    Raises:
        UserError: if a program has no twin, or its weights do not match.
    """
    programs = programs.cpu().to(dtype).eval()
    with jax.enable_x64(dtype == torch.float64):
        twin = twins.build(config, spec, folder)
        load_torch(twin, programs.state_dict())
        noise = np.random.default_rng(seed).standard_normal(
            (len(images), *programs.model.prior().event_shape), dtype=np.float64
        )
        ours, our_gradients = _pyro(programs, images, torch.from_numpy(noise).to(dtype))
        theirs, their_gradients = _numpyro(twin, jnp.asarray(images.numpy()), jnp.asarray(noise))
    terms = [_agreement(term, ours.get(term), theirs.get(term)) for term in TERMS]
    delta = twins.delta_of(twin, programs.guide.causality)
    terms.append(_agreement("δ", _array(delta_of(programs, images)), _array(delta)))
    differences = {name: _relative(gradient, their_gradients[name]) for name, gradient in our_gradients.items()}
    return Crosscheck(tuple(terms), differences, TOLERANCE[dtype])


Terms = dict[str, "np.ndarray | None"]


def _pyro(programs: Programs, images: torch.Tensor, noise: torch.Tensor) -> tuple[Terms, dict[str, np.ndarray]]:
    with parameters_of(programs), pyro.validation_enabled(False):
        q, p = programs.guide.posterior(images), programs.model.prior()
        z = from_noise(q, noise)
        guide = poutine.trace(poutine.condition(programs.guide, {"z": z})).get_trace(images)
        model = poutine.trace(poutine.condition(programs.model, {"z": z})).get_trace(images)
        for trace in (guide, model):
            trace.compute_log_prob()
        log_q, log_p, log_px = (
            trace.nodes[site]["log_prob"] for trace, site in ((guide, "z"), (model, "z"), (model, "x"))
        )
        loss = log_q - log_p - log_px
        programs.zero_grad(set_to_none=True)
        loss.mean().backward()
    gradients = {name: _array(p.grad) for name, p in programs.named_parameters() if p.grad is not None}
    programs.zero_grad(set_to_none=True)
    return _terms(log_p, log_px, log_q, _or_none(lambda: kl_divergence(q, p)), loss), gradients


def _numpyro(twin: twins.Programs, images: jax.Array, noise: jax.Array) -> tuple[Terms, dict[str, np.ndarray]]:
    graph, weights, rest = nnx.split(twin, nnx.Param, ...)

    def loss_of(weights: nnx.State) -> tuple[jax.Array, tuple[Any, ...]]:
        programs = nnx.merge(graph, weights, rest)
        q, p = programs.guide.posterior(images), programs.model.prior()
        given = {"z": q.transform(noise) if hasattr(q, "transform") else q.mean + jnp.sqrt(q.variance) * noise}
        log = {}
        for name, program in (("guide", programs.guide), ("model", programs.model)):
            trace = numpyro.handlers.trace(numpyro.handlers.substitute(program, given)).get_trace(images)
            log |= {(name, site): node["fn"].log_prob(node["value"]) for site, node in trace.items() if site in "zx"}
        log_q, log_p, log_px = log["guide", "z"], log["model", "z"], log["model", "x"]
        loss = log_q - log_p - log_px
        return loss.mean(), (log_p, log_px, log_q, _or_none(lambda: numpyro_kl(q, p)), loss)

    (_, terms), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(weights)
    return _terms(*terms), named_gradients(gradients)


def from_noise(q: Distribution, noise: torch.Tensor) -> torch.Tensor:
    """The sample of a Gaussian that standard normal noise gives."""
    transform = getattr(q, "transform", None)
    return transform(noise) if transform else q.mean + q.stddev * noise


def _terms(*values: Any) -> Terms:
    return dict(zip(TERMS, (_array(value) for value in values), strict=True))


def _array(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    return np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)


def _or_none(divergence: Callable[[], Any]) -> Any:
    try:
        return divergence()
    except NotImplementedError:
        return None


def _agreement(term: str, ours: np.ndarray | None, theirs: np.ndarray | None) -> Agreement:
    if ours is None and theirs is None:
        return Agreement(term, None, None, 0.0)
    if ours is None or theirs is None:
        return Agreement(term, *(None if value is None else float(value.sum()) for value in (ours, theirs)), np.nan)
    return Agreement(term, float(ours.sum()), float(theirs.sum()), _relative(ours, theirs))


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|a − b| / max|a|; 0 where both are 0."""
    apart, size = np.abs(ours - theirs).max(), np.abs(ours).max()
    return float(apart / size) if size else float(apart > 0)
