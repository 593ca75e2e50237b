"""The same weights, data and noise through Pyro and through NumPyro: every term of the ELBO, and its gradient."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import numpyro
import pyro
import torch
from flax import nnx
from numpyro import handlers
from numpyro.distributions.kl import kl_divergence as numpyro_kl
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from pyro_delta import vae as in_pyro
from pyro_delta.call import call, run
from pyro_delta.data.splits import Split, mapped
from pyro_delta.data.tensors import as_split
from pyro_delta.diagnostics.trace import committed, deltas, posterior, trace
from pyro_delta.errors import UserError
from pyro_delta.protocol import Batch
from pyro_delta.twin.build import VAE
from pyro_delta.twin.rate import committed_rate
from pyro_delta.twin.weights import load_weights, torch_weights
from pyro_delta.vae import copied, parameters_of

Array = np.ndarray[Any, Any]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of a term or a gradient."""
BUFFER_TOLERANCE = 4 * float(np.finfo(np.float32).eps)
"""Of fixed numbers, which either side computes for itself: a run stores them in single precision."""
TERMS = ("log p(z)", "log p(x|z)", "log q(z|x)", "KL(q‖p)", "−ELBO")


@dataclass(frozen=True)
class Agreement:
    """One number from both sides.

    Attributes:
        term: what it is.
        pyro, numpyro: nats, the mean over the data; None where there is no closed form.
        difference: largest absolute difference of any datum, over the largest absolute value of any datum.
    """

    term: str
    pyro: float | None
    numpyro: float | None
    difference: float


@dataclass(frozen=True)
class Crosscheck:
    """All that was compared.

    Attributes:
        terms: of the ELBO, and δ.
        gradients: weight → max|Δg| / max|g|, both over all data, g the gradient of the −ELBO of a datum; 0 where the
            difference is a rounding error of the largest gradient of any weight.
        buffers: fixed number of the programs, such as α → max|Δ| / max|value|.
        tolerance: of terms and gradients.
        images: number of data.
        precision: float64 or float32.
    """

    terms: tuple[Agreement, ...]
    gradients: dict[str, float]
    buffers: dict[str, float]
    tolerance: float
    images: int
    precision: str

    @property
    def failure(self) -> str | None:
        """The worst disagreement in a sentence, or None. What is not a number disagrees."""
        found = {term.term: (term.difference, self.tolerance) for term in self.terms}
        found |= {f"the gradient of {name}": (value, self.tolerance) for name, value in self.gradients.items()}
        found |= {f"the buffer {name}": (value, BUFFER_TOLERANCE) for name, value in self.buffers.items()}
        wrong = {name: pair for name, pair in found.items() if not pair[0] <= pair[1]}
        if not wrong:
            return None
        worst = max(wrong, key=lambda name: np.nan_to_num(wrong[name][0] / wrong[name][1], nan=np.inf))
        difference, tolerance = wrong[worst]
        return f"Pyro and NumPyro disagree: {worst} differs by {difference:.3g}, more than {tolerance:.3g}."

    def asdict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "agrees": self.failure is None}


def crosscheck(
    vae: in_pyro.VAE,
    twin: VAE,
    data: Any,
    *,
    elbo: Literal["trace", "mean_field"] = "trace",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Crosscheck:
    """Compares Pyro programs with their NumPyro twins, on the CPU.

    Args:
        vae: with the weights to compare; they stay as they are.
        twin: of the same configuration; takes over the weights.
        data: a split, a tensor (N, …), or anything that `pyro_delta.data.from_tensors` takes.
        elbo: how the rate enters −ELBO: from the sample, or in closed form.
        dtype: float64 or float32, of everything on both sides.
        seed: of the noise that z is drawn with.

    Raises:
        UserError: if weights do not match, or a posterior does not say how a sample comes from noise.
    """
    vae = copied(vae).cpu().to(dtype).eval()
    split = _in_precision(as_split(data), dtype)
    noise = np.random.default_rng(seed).standard_normal((len(split), *_event_shape(vae, split.batch(slice(1)))))
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64(dtype == torch.float64))
        stack.enter_context(jax.default_device(jax.devices("cpu")[0]))
        own = torch_weights(twin)
        weights = vae.state_dict()
        load_weights(twin, weights)
        buffers = {
            name: _relative(_array(weights[name]), own[name])
            for name in sorted(weights.keys() - dict(vae.named_parameters()).keys())
        }
        given = [(split.batch(slice(i, i + 1)), noise[i : i + 1]) for i in range(len(split))]
        ours = (_pyro(vae, one, torch.from_numpy(eps).to(dtype), elbo) for one, eps in given)
        parts = nnx.split(twin, nnx.Param, ...)
        theirs = (
            _numpyro(parts, mapped(one, _array), eps.astype(str(dtype).removeprefix("torch.")), elbo)
            for one, eps in given
        )
        terms, gradients = _compared(zip(ours, theirs, strict=True), torch.finfo(dtype).eps)
        known = committed(vae, split.take(slice(1)))  # of a single datum no scale is seen to be fixed
        if known.nats is None:
            terms.append(Agreement("δ", None, None, 0.0))
        else:
            deltas, extras = np.array([known.nats]), {}
            if (of_data := _deltas_of(vae, split)) is not None:
                deltas, extras = of_data, {name: _array(values) for name, values in split.extras.items()}
            of_twin = np.minimum(_deltas_of_twin(twin, extras), np.inf if known.cap_nats is None else known.cap_nats)
            terms.append(_agreement("δ", deltas, np.broadcast_to(of_twin, deltas.shape).astype(np.float64)))
    precision = str(dtype).removeprefix("torch.")
    return Crosscheck(tuple(terms), gradients, buffers, TOLERANCE[dtype], len(split), precision)


def _compared(sides: Iterable[tuple[Side, Side]], eps: float) -> tuple[list[Agreement], dict[str, float]]:
    """Terms and gradients of one datum after the other.

    What is within `eps` of the largest gradient of any weight is rounding: a gradient that should be 0, as that of a
    posterior which pays its floor and says nothing, is rounding on either side.
    """
    terms: dict[str, list[tuple[Array | None, Array | None]]] = {name: [] for name in TERMS}
    apart: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for ours, theirs in sides:
        for name in TERMS:
            terms[name].append((ours.terms[name], theirs.terms[name]))
        for name, gradient in ours.gradients.items():
            apart[name] = np.maximum(apart[name], np.abs(gradient - theirs.gradients[name]).max())
            size[name] = np.maximum(size[name], np.abs(gradient).max())
    agreements = [_agreement(name, *map(_joined, zip(*pairs, strict=True))) for name, pairs in terms.items()]
    rounding = eps * max(size.values(), default=0.0)
    return agreements, {name: 0.0 if apart[name] <= rounding else _ratio(apart[name], size[name]) for name in size}


@dataclass(frozen=True)
class Side:
    """What one backend says of a datum: terms (1,), and the gradient of its −ELBO by each weight."""

    terms: Mapping[str, Array | None]
    gradients: Mapping[str, Array]


def _pyro(vae: in_pyro.VAE, batch: Batch, noise: Tensor, elbo: str) -> Side:
    with parameters_of(vae), pyro.validation_enabled(False):
        z = _drawn(posterior(vae, batch).q, noise)
        seen = trace(vae, batch, {"z": z})
        (latent,) = seen.latents.values()
        kl = _or_none(lambda: kl_divergence(latent.q, latent.p))
        loss = (kl if elbo == "mean_field" else seen.log_q - seen.log_p) - seen.log_px
        vae.zero_grad(set_to_none=True)
        loss.sum().backward()
    gradients = {
        name: _array(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        for name, weight in vae.named_parameters()
    }
    return Side(_terms(seen.log_p, seen.log_px, seen.log_q, kl, loss), gradients)


def _numpyro(parts: tuple[Any, Any, Any], batch: Any, noise: Array, elbo: str) -> Side:
    graph, weights, rest = parts
    gradients, terms = _numpyro_gradient(graph, elbo, weights, rest, batch, noise)
    return Side(_terms(*terms), torch_weights(nnx.merge(graph, gradients, rest)))


# Compiled once for all weights of one architecture: a graph definition is hashable.
@partial(jax.jit, static_argnums=(0, 1))
def _numpyro_gradient(graph: Any, elbo: str, weights: Any, rest: Any, batch: Any, noise: Any) -> Any:
    def loss_of(weights: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        vae = nnx.merge(graph, weights, rest)
        q = _sites(vae.guide, batch, {})["z"]["fn"]
        z = _drawn(q, noise)
        model = _sites(vae.model, batch, {"z": z})
        p, x = model["z"]["fn"], model["x"]
        log_p, log_px, log_q = p.log_prob(z), x["fn"].log_prob(x["value"]), q.log_prob(z)
        kl = _or_none(lambda: numpyro_kl(q, p))
        loss = (kl if elbo == "mean_field" else log_q - log_p) - log_px
        return loss.sum(), (log_p, log_px, log_q, kl, loss)

    return jax.grad(loss_of, has_aux=True)(weights)


def _sites(program: Callable[..., Any], batch: Any, given: dict[str, Any]) -> Any:
    with handlers.trace() as written, handlers.seed(rng_seed=jax.random.key(0)), handlers.substitute(data=given):
        run(program, batch)
    return written


def _drawn(q: Any, noise: Any) -> Any:
    """The sample of q that standard normal noise of its shape gives."""
    if transform := getattr(q, "transform", None):
        return transform(noise)
    if isinstance(q, Independent) and isinstance(q.base_dist, Normal):
        return q.mean + q.stddev * noise
    if isinstance(q, numpyro.distributions.Independent) and isinstance(q.base_dist, numpyro.distributions.Normal):
        return q.base_dist.loc + q.base_dist.scale * noise
    raise UserError(
        f"the posterior {type(q).__name__} does not say how noise becomes a sample; give it a method transform(noise)."
    )


def _in_precision(split: Split, dtype: torch.dtype) -> Split:
    """The data with all real numbers of one type."""

    def changed(values: Tensor) -> Tensor:
        return values.to(dtype) if values.is_floating_point() else values

    return replace(split, x=changed(split.x), extras={name: changed(v) for name, v in split.extras.items()})


def _event_shape(vae: in_pyro.VAE, batch: Batch) -> tuple[int, ...]:
    with parameters_of(vae), torch.no_grad():
        return tuple(posterior(vae, batch).q.event_shape)


def _deltas_of(vae: in_pyro.VAE, split: Split) -> Array | None:
    """δ of each datum in nats (N,), where it is known of each, for each may have its own length; else None."""
    if not split.extras:
        return None
    with parameters_of(vae), torch.no_grad():
        found = deltas(vae, trace(vae, split.batch()))
    return None if found is None else _array(found)


def _deltas_of_twin(twin: VAE, extras: Mapping[str, Any]) -> Array:
    """δ of a guide's family in nats, (N,) with priors of N data, else (); not a number if there is none.

    A guide without a formula of its own is independent over steps and dimensions.
    """
    rate_of: Any = getattr(twin.guide, "committed_rate", None) or committed_rate
    try:
        return np.asarray(rate_of(call(twin.model.prior, extras)))
    except (UserError, NotImplementedError):
        return np.array(np.nan)


def _terms(*values: Any) -> dict[str, Array | None]:
    return {name: None if value is None else _array(value) for name, value in zip(TERMS, values, strict=True)}


def _array(value: Any) -> Array:
    return np.asarray(value.detach() if isinstance(value, Tensor) else value)


def _or_none(divergence: Callable[[], Any]) -> Any:
    try:
        return divergence()
    except NotImplementedError:
        return None


def _agreement(term: str, ours: Array | None, theirs: Array | None) -> Agreement:
    pyro, numpyro = (None if side is None else float(side.mean()) for side in (ours, theirs))
    if ours is None or theirs is None:
        return Agreement(term, pyro, numpyro, 0.0 if ours is theirs else math.nan)
    return Agreement(term, pyro, numpyro, _relative(ours, theirs))


def _relative(ours: Array, theirs: Array) -> float:
    """max|a − b| / max|a|; not a number where the shapes differ."""
    if ours.shape != theirs.shape:
        return math.nan
    return _ratio(np.abs(ours - theirs).max(initial=0.0), np.abs(ours).max(initial=0.0))


def _ratio(apart: float, size: float) -> float:
    """0 where both are 0."""
    return float(apart / size) if size else float(apart)


def _joined(parts: Iterable[Array | None]) -> Array | None:
    """(1,) of each datum → (N,)."""
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None
