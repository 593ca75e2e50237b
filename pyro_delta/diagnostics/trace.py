"""How a model and a guide are run: from their traces, what each datum of a batch gives. The only place that runs them.

Any Pyro model and guide will do: sites of any names, several latent ones included, observed and latent ones in plates of
the batch's size or with a batch shape of it, events of any shape. Programs of another backend join in by registering
`trace`, `score`, `evaluating` and `committed` for their own kind of pair (see `pyro_delta.twin.diagnose`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import pyro
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from pyro_delta.call import run
from pyro_delta.commitment import Commitment, commitment
from pyro_delta.data.splits import Split, mapped, size_of
from pyro_delta.data.tensors import as_split
from pyro_delta.distributions.any_gaussian import Gaussian, as_gaussian, gaussian_kl
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.errors import UserError
from pyro_delta.protocol import Batch
from pyro_delta.vae import VAE, parameters_of

Latents = Mapping[str, Tensor]
"""Latent site → values, (B, …)."""
SAME = 1e-6
"""Change of a density, relative to its size, that counts as none."""


@dataclass(frozen=True)
class Drawn:
    """A latent site of the guide for B data: posterior, what was drawn, and its log-probability (B,) in nats."""

    q: Distribution
    z: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Latent:
    """A latent site for B data.

    Attributes:
        q, p: posterior and prior, as they stand at the site.
        z: what the guide drew, (B, …).
        log_q, log_p: (B,) nats of z, without the scale of the site, with its mask.
        mask: of the guide's site.
        scale: that the site's log-probability is multiplied by in training.
    """

    q: Distribution
    p: Distribution
    z: Tensor
    log_q: Tensor
    log_p: Tensor
    mask: Any = None
    scale: Any = 1.0


@dataclass(frozen=True)
class Traced:
    """A batch of B data that went through guide and model.

    Attributes:
        latents: by site.
        observed: distribution at each observed site.
        log_px: (B,) log p(x | z) in nats, over all observed sites.
        scored: numbers of a datum that were scored.
    """

    latents: dict[str, Latent]
    observed: dict[str, Distribution]
    log_px: Tensor
    scored: int

    @property
    def z(self) -> dict[str, Tensor]:
        """What the guide drew, by site."""
        return {name: latent.z for name, latent in self.latents.items()}

    @property
    def log_q(self) -> Tensor:
        """(B,) log q(z | x) in nats."""
        return sum(latent.log_q for latent in self.latents.values())  # type: ignore[return-value]

    @property
    def log_p(self) -> Tensor:
        """(B,) log p(z) in nats."""
        return sum(latent.log_p for latent in self.latents.values())  # type: ignore[return-value]


# --- Running ---


@singledispatch
def trace(vae: VAE, batch: Batch, z: Latents | None = None) -> Traced:
    """Runs guide and model on a batch.

    Args:
        vae: model and guide.
        batch: B data.
        z: values in the place of what the guide draws.

    Raises:
        UserError: if the programs do not sample the same sites, or a site has no batch of B.
    """
    count = size_of(batch)
    guide = _sites(vae.guide, batch, z or {})
    given = {name: site["value"] for name, site in guide.items()}
    model = _sites(vae.model, batch, given)
    latents, observed, log_px, scored = {}, {}, torch.zeros(()), 0
    for name, site in model.items():
        if site["is_observed"]:
            observed[name] = site["fn"]
            log_px = log_px + _log_prob(name, site, count)
            scored += site["value"].numel() // count
        elif name in guide:
            q = guide[name]
            latents[name] = Latent(
                q["fn"], site["fn"], q["value"], _log_prob(name, q, count), _log_prob(name, site, count), q["mask"],
                q["scale"],
            )  # fmt: skip
        else:
            raise UserError(f"the model samples {name!r}, which the guide does not; sample it in the guide, too.")
    if missing := sorted(guide.keys() - latents.keys()):
        raise UserError(f"the guide samples {missing[0]!r}, which the model does not; take it out or add its prior.")
    if not observed:
        raise UserError("the model observes nothing; give it data with obs=x in a sample statement.")
    if not latents:
        raise UserError("model and guide have no latent site in common; a VAE has one at least.")
    return Traced(latents, observed, log_px, scored)


@singledispatch
def score(vae: VAE, batch: Batch, z: Latents) -> Tensor:
    """(B,) log p(x | z) in nats of a batch, given latents."""
    count = size_of(batch)
    sites = _sites(vae.model, batch, z)
    return sum(_log_prob(name, site, count) for name, site in sites.items() if site["is_observed"])  # type: ignore


@singledispatch
def posteriors(vae: VAE, batch: Batch, z: Latents | None = None) -> dict[str, Drawn]:
    """Runs the guide alone: its latent sites, by name; `z` are values in the place of what it draws."""
    count = size_of(batch)
    sites = _sites(vae.guide, batch, z or {})
    return {name: Drawn(site["fn"], site["value"], _log_prob(name, site, count)) for name, site in sites.items()}


def posterior(vae: VAE, batch: Batch) -> Drawn:
    """The only latent site of a guide.

    Raises:
        UserError: if there are none, or several.
    """
    sites = posteriors(vae, batch)
    if len(sites) != 1:
        raise UserError(
            f"the guide samples {', '.join(map(repr, sites)) or 'nothing'}; one latent site is needed here."
        )
    (site,) = sites.values()
    return site


def observed(vae: VAE, batch: Batch, z: Latents) -> Distribution:
    """The distribution at the only observed site of a model that is given data and latents.

    Raises:
        UserError: if the model observes at none, or at several.
    """
    sites = {name: site["fn"] for name, site in _sites(vae.model, batch, z).items() if site["is_observed"]}
    if len(sites) != 1:
        raise UserError(f"the model observes {', '.join(map(repr, sites)) or 'nothing'}; one site is needed here.")
    return next(iter(sites.values()))


def prior(vae: VAE, count: int = 1) -> Distribution:
    """The distribution of `count` latents of a model that generates without data, of batch shape (count,)."""
    return _next_site(lambda: vae.model(batch=count), {})


def decoder(vae: VAE, z: Tensor, extras: Mapping[str, Any] | None = None) -> Distribution:
    """The distribution of data given latents z (B, …), of a model with one latent site."""
    given: dict[str, Tensor] = {}
    name = _next_name(vae)
    given[name] = z
    return _next_site(lambda: vae.model(batch=len(z), **(extras or {})), given)


@singledispatch
def evaluating(vae: VAE, seed: int) -> AbstractContextManager[None]:
    """Evaluation mode, no validation, and parameters and random state of its own; all put back afterwards."""
    return _evaluating(vae, seed)


@contextmanager
def _evaluating(vae: VAE, seed: int) -> Iterator[None]:
    device = device_of(vae)
    modes = {module: module.training for module in vae.modules()}
    with ExitStack() as stack:
        stack.enter_context(parameters_of(vae))
        # Weights that diverged give numbers that are not finite, for which the run's own words are better than a trace.
        stack.enter_context(pyro.validation_enabled(False))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.manual_seed(seed)
        vae.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def device_of(vae: VAE) -> torch.device:
    """Where the programs' parameters are."""
    for parameter in (*vae.parameters(), *(value for _, value in pyro.get_param_store().items())):
        return parameter.device
    return torch.device("cpu")


def batches(data: Any, batch: int, vae: VAE) -> Iterator[Batch]:
    """The data in order, every one, on the programs' device; `data` is a split or what `as_split` takes."""
    split = data if isinstance(data, Split) else as_split(data)
    device = device_of(vae)
    for start in range(0, len(split), batch):
        yield mapped(split.batch(slice(start, start + batch)), lambda values: values.to(device))


def tiled(batch: Batch, count: int) -> Batch:
    """The batch `count` times over: datum i of copy k is datum k·B + i."""
    return mapped(batch, lambda values: values.repeat(count, *[1] * (values.dim() - 1)))


# --- What is committed, and the rate ---


@singledispatch
def committed(vae: VAE, data: Any) -> Commitment:
    """What the guide's family commits against the prior; the families are read off the first of the data."""
    with evaluating(vae, 0), torch.enable_grad():
        (first, *_) = batches(as_split(data).take(slice(1)), 1, vae)
        seen = trace(vae, first)
        learns = any(latent.p.log_prob(latent.z.detach()).requires_grad for latent in seen.latents.values())
        model_prior = getattr(vae.model, "prior", None)
        with torch.no_grad():
            return commitment(
                {name: (latent.q, latent.p) for name, latent in seen.latents.items()},
                learns=learns,
                formula=getattr(vae.guide, "committed_rate", None),
                floor=getattr(model_prior, "floor_nats", None),
            )


class ClosedForm:
    """KL(q ‖ p) of every datum of a batch in float64, where it has a closed form.

    That is a registered KL or, for any Gaussian prior, what its density says. The latter costs O(N³) and is read off
    once, for the first batch, of a prior that all data share.
    """

    def __init__(self) -> None:
        self._gaussians: dict[str, Gaussian | None] = {}

    def __call__(self, vae: VAE, batch: Batch, seen: Traced) -> Tensor | None:
        """(B,) nats, or None if a site has none, or sites depend on one another."""
        total = torch.zeros((), dtype=torch.float64)
        for name, latent in seen.latents.items():
            rate = self._rate(vae, batch, name, latent)
            if rate is None:
                return None
            total = total + rate
        return total

    def _rate(self, vae: VAE, batch: Batch, name: str, latent: Latent) -> Tensor | None:
        count = size_of(batch)
        wide_q, wide_p = as_float64(latent.q), as_float64(latent.p)
        try:
            kl = kl_divergence(wide_q, wide_p)
        except NotImplementedError:
            if name not in self._gaussians:
                self._gaussians[name] = _gaussian_of(vae, batch, name, latent)
            if (gaussian := self._gaussians[name]) is None:
                return None
            try:
                kl = gaussian_kl(latent.q, gaussian)
            except NotImplementedError:
                return None
        return _per_datum(name, scale_and_mask(kl, 1.0, latent.mask), count)


def _gaussian_of(vae: VAE, batch: Batch, name: str, latent: Latent) -> Gaussian | None:
    """The prior of one datum as a Gaussian, if it is one and that of every datum."""
    one = trace(vae, mapped(batch, lambda values: values[:1])).latents[name].p
    try:
        alike = torch.allclose(one.log_prob(latent.z), latent.p.log_prob(latent.z), rtol=SAME, atol=SAME)
        return as_gaussian(one) if alike else None
    except (UserError, RuntimeError, ValueError):
        return None


def depend_on_one_another(vae: VAE, batch: Batch, seen: Traced) -> bool:
    """Whether posterior or prior of a site is another one once other sites have drawn something else."""
    if len(seen.latents) == 1:
        return False
    other = trace(vae, batch)
    return any(
        not torch.allclose(before.log_prob(latent.z), after.log_prob(latent.z), rtol=SAME, atol=SAME)
        for name, latent in seen.latents.items()
        for before, after in ((latent.q, other.latents[name].q), (latent.p, other.latents[name].p))
    )


# --- Sites ---


class _Given(Messenger):
    """Puts values at latent sites."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _Reached(Exception):  # noqa: N818 - not a mishap
    """The next site was reached."""

    def __init__(self, name: str, distribution: Distribution) -> None:
        super().__init__(name)
        self.name, self.distribution = name, distribution


class _Stop(Messenger):
    """Ends a run at the first site that holds no value yet."""

    def _pyro_post_sample(self, msg: Any) -> None:
        """Nothing; the run ends before."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["done"] and not site_is_subsample(msg):
            raise _Reached(msg["name"], msg["fn"])


def _next_site(generate: Callable[[], Any], given: Latents) -> Distribution:
    return _reach(generate, given).distribution


def _next_name(vae: VAE) -> str:
    return _reach(lambda: vae.model(batch=1), {}).name


def _reach(generate: Callable[[], Any], given: Latents) -> _Reached:
    try:
        with _Stop(), _Given(given):
            generate()
    except _Reached as reached:
        return reached
    except TypeError as error:
        raise UserError(
            f"the model does not generate without data ({error}); give its forward arguments x=None and batch=1."
        ) from error
    raise UserError("the model samples no further site; it must sample latents, and data given them.")


def _sites(program: Callable[..., Any], batch: Batch, given: Latents) -> dict[str, dict[str, Any]]:
    """What a program writes at its sites; those of plates are left out."""
    with pyro.poutine.trace() as tracer, _Given(given):
        run(program, batch)
    return {
        name: site
        for name, site in tracer.trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def _log_prob(name: str, site: dict[str, Any], count: int) -> Tensor:
    """(B,) nats of a site's value: masked as the site is, but not scaled."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return _per_datum(name, scale_and_mask(log_prob, 1.0, site["mask"]), count)


def _per_datum(name: str, values: Tensor, count: int) -> Tensor:
    """Sums over all but the first batch dimension, which must be that of the data."""
    if values.dim() == 0 or values.shape[0] != count:
        if count == 1 and values.dim() == 0:
            return values.reshape(1)
        raise UserError(
            f"the site {name!r} has batch shape {tuple(values.shape)} for {count} data; its first batch dimension must "
            "be theirs: sample it in a plate of the batch's size, or with a distribution of that batch shape."
        )
    return values.reshape(count, -1).sum(1)
