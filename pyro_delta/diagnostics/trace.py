"""How a model and a guide are run: from their traces, what each datum of a batch gives. The only place that runs them.

Any Pyro model and guide will do: sites of any names, several latent ones included, observed and latent ones in plates
of the batch's size or with a batch shape of it, plates within those, masks, events of any shape. Programs of another
backend join in by registering `sites`, `evaluating`, `device_of` and `committed` for their own kind of pair (see
`pyro_delta.twin.diagnose`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any, Literal

import numpy as np
import pyro
import torch
from pyro.distributions import Delta, MaskedDistribution, TransformedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, biject_to, kl_divergence
from torch.distributions.transforms import identity_transform
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_delta.call import run
from pyro_delta.commitment import AT_LEAST, Commitment, Formula, commitment, committed_by_datum
from pyro_delta.data.condition import classes_given
from pyro_delta.data.splits import Split, mapped, size_of
from pyro_delta.data.tensors import as_split
from pyro_delta.distributions.any_gaussian import as_gaussian, gaussian_kl
from pyro_delta.distributions.dimensions import per_dimension
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.distributions.gaussian_types import Gaussian
from pyro_delta.distributions.mean_field import normal_parameters
from pyro_delta.errors import UserError
from pyro_delta.protocol import Batch
from pyro_delta.vae import VAE, owner_of, parameters_of

Pair = Any
"""A model and its guide: a `VAE`, or what another backend has registered."""
Latents = Mapping[str, Tensor]
"""Latent site → values, (B, …)."""
SAME = 1e-6
"""Change of a density, relative to its size, that counts as none."""
NOISE = 12
"""Keeps the noise of an evaluation apart from what else its seed decides."""
COMPARED = 16
"""Data whose posteriors tell whether a family keeps its shape, and whose priors whether all have one; or …"""
MOST_CLASSES = 64
"""… one datum of each class that they are conditioned on, up to so many."""
CPU = torch.device("cpu")
UNKNOWN_DENSITY = (KeyError, NotImplementedError)
"""Errors of a density that knows what it drew itself alone, such as that of a planar flow."""


@dataclass(frozen=True)
class Site:
    """What a program wrote at a sample site for B data.

    Attributes:
        value: drawn or given, (B, …); as it stands at the site where it is observed.
        log_prob: (B,) nats of the value, with the site's mask and without its scale.
        observed: whether it is data.
        fn: its distribution; None at an observed site of another backend.
        mask: of the site, of batch shape; of the value's shape where there is no `fn`.
        scale: that its log-probability is multiplied by in training.
        dim: the batch dimension of `fn` that is the data's, counted from the right; None for the first.
    """

    value: Tensor
    log_prob: Tensor
    observed: bool
    fn: Any
    mask: Any = None
    scale: Any = 1.0
    dim: int | None = None


@dataclass(frozen=True)
class Drawn:
    """A latent site of the guide for B data: posterior, what was drawn, and its log-probability (B,) in nats."""

    q: Distribution
    z: Tensor
    log_q: Tensor
    mask: Any = None
    dim: int | None = None

    def log_prob(self, samples: Tensor) -> Tensor:
        """Log-densities of samples (S, …), each of a datum, under the posterior of each of B data: (S, B) nats."""
        log_prob = self.q.log_prob(placed(samples.unsqueeze(1), self.q, self.dim, axis=1))
        return data_first(log_prob, None, self.dim, axis=1).flatten(2).sum(2) if log_prob.dim() > 2 else log_prob

    def moments(self) -> dict[str, Tensor]:
        """Mean and scale, (B, …), where the posterior has them."""
        return _moments(self.q, self.dim)


@dataclass(frozen=True)
class Latent:
    """A latent site for B data.

    Attributes:
        q, p: posterior and prior, as they stand at the site.
        z: what the guide drew, (B, …).
        log_q, log_p: (B,) nats of z, without the scale of the site, with its mask.
        mask: of the guide's site.
        scale: that the site's log-probability is multiplied by in training.
        mask_p: of the model's site.
        dim: as for `Site`.
    """

    q: Distribution
    p: Distribution
    z: Tensor
    log_q: Tensor
    log_p: Tensor
    mask: Any = None
    scale: Any = 1.0
    mask_p: Any = None
    dim: int | None = None

    @property
    def masked(self) -> bool:
        """Whether some of it may not count."""
        return any(mask is not None and mask is not True for mask in (self.mask, self.mask_p))

    @property
    def placed(self) -> Tensor:
        """What the guide drew, as its distribution has it."""
        return placed(self.z, self.q, self.dim)

    def moments(self) -> dict[str, Tensor]:
        """Mean and scale of the posterior, (B, …), where it has them."""
        return _moments(self.q, self.dim)


def _moments(q: Distribution, dim: int | None) -> dict[str, Tensor]:
    try:
        return {"mean": data_first(q.mean, q, dim), "scale": data_first(q.stddev, q, dim)}
    except NotImplementedError:
        return {}


@dataclass(frozen=True)
class Traced:
    """A batch of B data that went through guide and model.

    Attributes:
        latents: by site.
        log_px: (B,) log p(x | z) in nats, over all observed sites.
        scored: numbers of a datum that were scored, those that are masked left out; 1 where there are none.
    """

    latents: dict[str, Latent]
    log_px: Tensor
    scored: float

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


def runs(pair: Any) -> bool:
    """Whether it is a model and its guide that `sites` knows how to run, rather than a program."""
    return isinstance(pair, VAE) or sites.dispatch(type(pair)) is not sites.dispatch(object)


@singledispatch
def sites(vae: Pair, part: Literal["model", "guide"], batch: Batch, given: Latents) -> dict[str, Site]:
    """Runs one of the two programs on a batch: what it writes at its sample sites, those of plates left out.

    Args:
        vae: model and guide.
        part: which of them.
        batch: B data.
        given: values of latent sites, in the place of what the program draws.

    Raises:
        UserError: if a site has no batch of B.
    """
    return {name: _site(name, site, size_of(batch)) for name, site in _unscored(vae, part, batch, given).items()}


def _unscored(vae: Pair, part: str, batch: Batch, given: Latents) -> dict[str, Any]:
    """The same, as Pyro writes them, without log-probabilities, for which networks run."""
    program, count = getattr(vae, part), size_of(batch)
    found = folded(_sites(program, batch, given), program, count)
    if isinstance(program, AutoGuide):
        _check_places(program, found, count)
    return found


def _check_places(guide: AutoGuide, found: Mapping[str, Any], count: int) -> None:
    """Refuses a guide that has a posterior for each of other data than these.

    Raises:
        UserError: naming the site.
    """
    for name, site in found.items():
        shape = tuple(site["fn"].batch_shape)
        if site["cond_indep_stack"] and count not in shape:
            raise UserError(
                f"{type(guide).__name__} holds a posterior of each datum that it was made with, at {name!r} of batch "
                f"shape {shape}, and cannot be run on {count} of them; let the data say which they are: "
                "pyro.plate('data', N, subsample=index) in the model and as create_plates, and index beside x."
            )


def trace(vae: Pair, batch: Batch, z: Latents | None = None) -> Traced:
    """Runs guide and model on a batch.

    Args:
        vae: model and guide.
        batch: B data.
        z: values in the place of what the guide draws.

    Raises:
        UserError: if the programs do not sample the same sites, or a site has no batch of B.
    """
    guide = sites(vae, "guide", batch, z or {})
    model = sites(vae, "model", batch, {name: site.value for name, site in guide.items()})
    latents, log_px, scored = {}, torch.zeros(()), 0.0
    for name, p in model.items():
        if p.observed:
            log_px = log_px + p.log_prob
            scored += numbers(p) / size_of(batch)
        elif name in guide:
            q = guide[name]
            latents[name] = Latent(q.fn, p.fn, q.value, q.log_prob, p.log_prob, q.mask, q.scale, p.mask, q.dim)
        else:
            raise UserError(f"the model samples {name!r}, which the guide does not; sample it in the guide, too.")
    if missing := sorted(guide.keys() - latents.keys()):
        raise UserError(
            f"the guide samples {missing[0]!r}, which the model does not; take it out or add its prior, for the "
            "density of its other sites given the data alone is not known."
        )
    if not any(p.observed for p in model.values()):
        raise UserError("the model observes nothing; give it data with obs=x in a sample statement.")
    if not latents:
        raise UserError("model and guide have no latent site in common; a VAE has one at least.")
    return Traced(latents, log_px, scored or 1.0)


def score(vae: Pair, batch: Batch, z: Latents) -> Tensor:
    """(B,) log p(x | z) in nats of a batch, given latents."""
    return sum(site.log_prob for site in sites(vae, "model", batch, z).values() if site.observed)  # type: ignore


def posteriors(vae: Pair, batch: Batch, z: Latents | None = None) -> dict[str, Drawn]:
    """Runs the guide alone: its latent sites, by name; `z` are values in the place of what it draws."""
    found = sites(vae, "guide", batch, z or {})
    return {name: Drawn(site.fn, site.value, site.log_prob, site.mask, site.dim) for name, site in found.items()}


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


def observed(vae: VAE, batch: Batch, z: Latents) -> tuple[Distribution, Tensor]:
    """Distribution and data at the only observed site of a model that is given data and latents.

    Raises:
        UserError: if the model observes at none, or at several.
    """
    sites = {name: site for name, site in _sites(vae.model, batch, z).items() if site["is_observed"]}
    if len(sites) != 1:
        raise UserError(f"the model observes {', '.join(map(repr, sites)) or 'nothing'}; one site is needed here.")
    (site,) = sites.values()
    return site["fn"], site["value"]


def prior(vae: VAE, count: int = 1, extras: Mapping[str, Any] | None = None) -> Distribution:
    """The distribution of `count` latents of a model that generates without data, of batch shape (count,).

    Args:
        vae: of which the model is used.
        count: number of latents.
        extras: what goes with as many data, by name, for programs that ask for it.
    """
    return _reach(vae, count, extras, {}).distribution


def decoder(vae: VAE, z: Tensor, extras: Mapping[str, Any] | None = None) -> Distribution:
    """The distribution of data given latents z (B, …), of a model with one latent site; `extras` as for `prior`."""
    one = {name: values[:1] for name, values in (extras or {}).items()}
    latent = _reach(vae, 1, one, {}).name
    return _reach(vae, len(z), extras, {latent: z}).distribution


def noise_seed(seed: int) -> int:
    """The seed of an evaluation's noise: data that were drawn with `seed` itself would be that noise."""
    return int(np.random.SeedSequence([seed, NOISE]).generate_state(1)[0])


def seeded(seed: int, device: torch.device = CPU) -> None:
    """Seeds what is drawn on the CPU, and on a GPU if programs are there.

    `torch.manual_seed` seeds every GPU, whose state is not put back if the programs are on the CPU; and where none has
    been used, it writes down the stack of each call, which takes longer than a small network.
    """
    if device == CPU:
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@singledispatch
def evaluating(vae: Pair, seed: int) -> AbstractContextManager[None]:
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
        seeded(noise_seed(seed), device)
        vae.eval()
        if any(not isinstance(program, nn.Module) and owner_of(program) is None for program in (vae.model, vae.guide)):
            # Networks of a function are known when they are called.
            stack.enter_context(register_module_forward_pre_hook(partial(_evaluated, modes)))
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def _evaluated(modes: dict[nn.Module, bool], module: nn.Module, given: Any) -> None:
    """Puts a module that is about to run into evaluation mode, and writes down in which it was."""
    modes.setdefault(module, module.training)
    module.training = False


@singledispatch
def device_of(vae: Pair) -> torch.device:
    """Where the programs' parameters are."""
    for parameter in (*vae.parameters(), *(value for _, value in pyro.get_param_store().items())):
        return parameter.device
    return torch.device("cpu")


@singledispatch
def weights_of(vae: Pair) -> Iterator[tuple[str, Tensor]]:
    """The weights that learn, by name: of the programs or, where they hold none, of Pyro's store."""
    named = list(vae.named_parameters()) or pyro.get_param_store().named_parameters()
    return ((name, weight) for name, weight in named if weight.requires_grad)


def diverged_weight(vae: Pair) -> str | None:
    """The name of the first weight that is not finite; None if all are."""
    return next((name for name, weight in weights_of(vae) if not weight.isfinite().all()), None)


def batches(data: Any, batch: int, vae: Pair) -> Iterator[Batch]:
    """The data in order, every one, on the programs' device; `data` is a split or what `as_split` takes."""
    split = data if isinstance(data, Split) else as_split(data)
    device, batch = device_of(vae), at_once(vae, batch, len(split))
    for start in range(0, len(split), batch):
        yield mapped(split.batch(slice(start, start + batch)), lambda values: values.to(device))


def at_once(vae: Pair, batch: int, count: int) -> int:
    """How many of `count` data pass the programs together, `batch` or fewer.

    A plate with `subsample=index` takes the parameters of an `AutoGuide` at the index only where that is shorter than
    all the data, and as they stand otherwise.
    """
    return max(1, min(batch, count - 1)) if isinstance(getattr(vae, "guide", None), AutoGuide) else batch


def tiled(batch: Batch, count: int) -> Batch:
    """The batch `count` times over: datum i of copy k is datum k·B + i."""
    return mapped(batch, lambda values: values.repeat(count, *[1] * (values.dim() - 1)))


# --- What is committed, and the rate ---


@singledispatch
def committed(vae: Pair, data: Any) -> Commitment:
    """What the guide's family commits against the prior, read off the first of the data.

    What must be fixed for that is compared with posteriors of other data, and of the first with other weights.
    """
    with evaluating(vae, 0), torch.enable_grad():
        first, *rest = some_of(data, vae)
        seen = trace(vae, first)
        learns = prior_learns(vae, first, seen)
        model_prior = getattr(vae.model, "prior", None)
        with torch.no_grad():
            return commitment(
                {name: (latent.q, latent.p) for name, latent in seen.latents.items()},
                learns=learns,
                others=partial(_others, vae, first, rest, seen),
                priors=priors_of(vae, rest, seen),
                formula=formula_of(vae),
                guarantee=getattr(vae.guide, "guarantee", AT_LEAST),
                floor=getattr(model_prior, "floor_nats", None),
                unless=beyond_formulas(vae, first, seen),
            )


@singledispatch
def formula_of(vae: Pair) -> Formula | None:
    """The guide's own formula of what its family commits, for priors as they are traced; None if it gives none."""
    return getattr(vae.guide, "committed_rate", None)


def deltas(vae: Pair, seen: Traced) -> Tensor | None:
    """What each datum of a trace commits, see `committed_by_datum`."""
    return committed_by_datum({name: (latent.q, latent.p) for name, latent in seen.latents.items()}, formula_of(vae))


def prior_learns(vae: VAE, batch: Batch, seen: Traced) -> bool:
    """Whether the density of a prior depends on anything that training changes, whoever owns it.

    By its gradient, and by what it is once all weights of model and guide have moved: a gradient may be cut off.
    """
    if any(latent.p.log_prob(latent.placed.detach()).requires_grad for latent in seen.latents.values()):
        return True
    device = device_of(vae)
    for seed, size in enumerate((0.1, 1.0, 10.0, 10.0)):
        seeded(seed, device)
        with torch.no_grad(), moved(vae, size) as turn:
            for _ in range(2):
                turn()  # one way and then the other: a gate may open to one side alone
                after = _unscored(vae, "model", batch, seen.z)  # what data are scored by says nothing of the prior
                log_p = {name: _site(name, after[name], size_of(batch)).log_prob for name in seen.latents}
                if any(
                    not torch.allclose(latent.log_p, log_p[name], rtol=SAME, atol=SAME)
                    for name, latent in seen.latents.items()
                ):
                    return True
    return False


def _compared(split: Split) -> Tensor | slice:
    """Which data are compared: the first ones; of those that have something beside x, some from all over the split.

    Where they are conditioned on classes, one of each is among them.
    """
    if not split.extras:
        return slice(COMPARED)
    chosen = torch.linspace(0, len(split) - 1, min(COMPARED, len(split))).round().long().tolist()
    if (classes := classes_given(split)) is not None:
        kinds, place = classes.unique(return_inverse=True)
        firsts = [int((place == kind).nonzero()[0]) for kind in range(min(len(kinds), MOST_CLASSES))]
        chosen = sorted({0, *chosen, *firsts})
    return torch.tensor(chosen)


def some_of(data: Any, vae: Pair) -> list[Batch]:
    """The first of the data, and those of `COMPARED` others, or one of each class, that are not the same."""
    split = as_split(data)
    first, *others = batches(split.take(_compared(split)), 1, vae)
    return [first, *(other for other in others if not all(map(torch.equal, _tensors(first), _tensors(other))))]


def _tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []

    def note(values: Tensor) -> Tensor:
        found.append(values)
        return values

    mapped(batch, note)
    return found


def _others(vae: VAE, first: Batch, rest: list[Batch], seen: Traced) -> Iterator[dict[str, Distribution]]:
    """Posteriors of other data and, if there are any, of the first one with other weights."""
    for batch in rest:
        yield {name: drawn.q for name, drawn in posteriors(vae, batch, seen.z).items()}
    if rest:
        with moved(vae):
            yield {name: drawn.q for name, drawn in posteriors(vae, first, seen.z).items()}


def priors_of(vae: Pair, rest: list[Batch], seen: Traced) -> Iterator[dict[str, Distribution]]:
    """Priors of other data, where something goes with them that a prior may hear."""
    for batch in rest:
        if _has_extras(batch):
            yield {name: site.fn for name, site in sites(vae, "model", batch, seen.z).items() if name in seen.latents}


@contextmanager
def moved(vae: VAE, size: float = 0.1) -> Iterator[Callable[[], None]]:
    """Every weight that learns moved by a part of its own size, or of 1 if it is small; put back afterwards.

    Yields:
        what moves them by as much the other way instead.
    """
    weights = [weight for weight in _weights(vae) if weight.requires_grad and weight.is_floating_point()]
    before = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def turn() -> None:
        for weight, value in zip(weights, before, strict=True):
            weight.sub_(value).neg_().add_(value)

    try:
        with torch.no_grad():
            for weight in weights:
                weight.add_(torch.randn_like(weight).mul_(size).mul_(weight.abs().clamp_min_(1.0)))
        yield turn
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


def _weights(vae: VAE) -> list[Tensor]:
    """Of the programs, and of Pyro's store, each once."""
    found = [*vae.parameters(), *(value for _, value in pyro.get_param_store().named_parameters())]
    return list({id(weight): weight for weight in found}.values())


def beyond_formulas(vae: Pair, batch: Batch, seen: Traced) -> str | None:
    """Why no formula of single priors tells what is committed; None if it does.

    A guide whose sites depend on one another is no reason: KL(q ‖ p) is at least the sum of what the sites commit.
    """
    if masked := [name for name, latent in seen.latents.items() if latent.masked]:
        return f"the site {masked[0]!r} is masked, and what is left of it commits less"
    if depend_on_one_another(vae, batch, seen, priors=True):
        return "the prior of a site depends on another site"
    return None


class ClosedForm:
    """KL(q ‖ p) of every datum of a batch in float64, where it has a closed form.

    That is a registered KL or, for any Gaussian prior, what its density says. The latter costs O(N³) and is read off
    once, for the first batch, of a prior that all data share: where a datum has another, there is none.
    """

    def __init__(self) -> None:
        self._gaussians: dict[str, tuple[Gaussian, Distribution] | None] = {}

    def __call__(self, vae: Pair, batch: Batch, seen: Traced) -> Tensor | None:
        """(B,) nats, of sites that do not depend on one another; None if one of them has none."""
        total = torch.zeros((), dtype=torch.float64)
        for name in seen.latents:
            rate = self._rate(vae, batch, name, seen)
            if rate is None:
                return None
            total = total + rate
        return total

    def _rate(self, vae: Pair, batch: Batch, name: str, seen: Traced) -> Tensor | None:
        count, latent = size_of(batch), seen.latents[name]
        if not _same_mask(latent.mask, latent.mask_p):
            return None
        wide_q, wide_p = as_float64(latent.q), as_float64(latent.p)
        try:
            kl = kl_divergence(wide_q, wide_p)
        except NotImplementedError:
            if name not in self._gaussians:
                self._gaussians[name] = _gaussian_of(vae, batch, name, seen)
            if (known := self._gaussians[name]) is None or (_has_extras(batch) and not _alike(known[1], latent)):
                return None
            try:
                kl = gaussian_kl(latent.q, known[0])
            except NotImplementedError:
                return None
        return per_datum(name, scale_and_mask(kl, 1.0, latent.mask), count, latent.dim)


def _same_mask(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other))


def _has_extras(batch: Batch) -> bool:
    """Whether something goes with x, which a prior may hear."""
    return isinstance(batch, Mapping) and len(batch) > 1


def _alike(one: Distribution, latent: Latent) -> bool:
    """Whether the prior of one datum is that of all data of a batch."""
    try:
        found = one.log_prob(latent.placed), latent.p.log_prob(latent.placed)
    except (RuntimeError, ValueError):
        return False
    return torch.allclose(*found, rtol=SAME, atol=SAME)


def _gaussian_of(vae: Pair, batch: Batch, name: str, seen: Traced) -> tuple[Gaussian, Distribution] | None:
    """The prior of one datum, as a Gaussian and as it is, if it is one and that of all; nothing is drawn for it."""
    latent = seen.latents[name]
    given = {site: z[:1] for site, z in seen.z.items()}
    one = sites(vae, "model", mapped(batch, lambda values: values[:1]), given)[name].fn
    try:
        return (as_gaussian(one), one) if _alike(one, latent) else None
    except (UserError, RuntimeError, ValueError):
        return None


def rate_of_dimensions(seen: Traced) -> Tensor | None:
    """The KL of each latent dimension (the last axis of the event), (d,) nats, summed over a batch.

    None where the rate has no such parts, some of it is masked, or there are several sites.
    """
    (latent, *others) = seen.latents.values()
    if others or latent.masked:
        return None
    q, p = as_float64(latent.q), as_float64(latent.p)
    if (of_q := normal_parameters(q)) and (of_p := normal_parameters(p)) and len(latent.q.event_shape):
        kl = kl_divergence(Normal(*of_q), Normal(*of_p))
    else:
        try:
            kl = kl_divergence(per_dimension(q), per_dimension(p))
        except (UserError, NotImplementedError):
            return None
    return kl.reshape(-1, kl.shape[-1]).sum(0)


def depend_on_one_another(vae: Pair, batch: Batch, seen: Traced, *, priors: bool = False) -> bool:
    """Whether posterior or prior of a site (with `priors`, the latter) is another one once others have drawn anew."""
    if len(seen.latents) == 1:
        return False
    other = trace(vae, batch)
    try:
        return any(
            not torch.allclose(before.log_prob(latent.placed), after.log_prob(latent.placed), rtol=SAME, atol=SAME)
            for name, latent in seen.latents.items()
            for before, after in ((latent.p, other.latents[name].p), (latent.q, other.latents[name].q))[: 2 - priors]
        )
    except UNKNOWN_DENSITY:
        return True


# --- Sites ---


class _Given(Messenger):
    """Puts values at latent sites; `fixed` as for `_dim`."""

    def __init__(self, values: Mapping[str, Tensor], fixed: frozenset[str] | None = frozenset()) -> None:
        super().__init__()
        self.values, self.fixed = values, fixed

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            z = self.values[msg["name"]]
            msg["value"], msg["done"] = placed(z, msg["fn"], _dim(msg, len(z), self.fixed)), True


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


def _reach(vae: VAE, count: int, extras: Mapping[str, Any] | None, given: Latents) -> _Reached:
    """The first site, on the way of generating `count` data, that is given no value."""
    try:
        with _Stop(), _Given(given):
            vae.model(batch=count, **(extras or {}))
    except _Reached as reached:
        return reached
    except TypeError as error:
        raise UserError(
            f"the model does not generate without data ({error}); give its forward arguments x=None and batch=1."
        ) from error
    raise UserError("the model samples no further site; it must sample latents, and data given them.")


def _sites(program: Callable[..., Any], batch: Batch, given: Latents) -> dict[str, dict[str, Any]]:
    """What a program writes at its sites; those of plates, and values that are written down alone, are left out.

    Under `data_dim` each has its batch dimension of the data, see `_dim`.
    """
    try:
        return _written(program, batch, given, None)
    except Ambiguous:  # a plate has the batch's size by chance: it keeps it with one datum less
        fewer = _written(program, mapped(batch, lambda values: values[:-1]), {}, frozenset())
        stacks = [plate for site in fewer.values() for plate in site["cond_indep_stack"]]
        return _written(program, batch, given, frozenset(p.name for p in stacks if p.size == size_of(batch)))


def _written(
    program: Callable[..., Any], batch: Batch, given: Latents, fixed: frozenset[str] | None
) -> dict[str, dict[str, Any]]:
    with pyro.poutine.trace() as tracer, _Given(given, fixed):
        run(program, batch)
    return {
        name: {**site, "data_dim": _dim(site, size_of(batch), fixed)}
        for name, site in tracer.trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not _is_deterministic(site)
    }


def _is_deterministic(site: dict[str, Any]) -> bool:
    """Whether a site only writes down a value, as `pyro.deterministic` does, whose density is masked."""
    fn = site["fn"]
    return bool(site["infer"].get("_deterministic")) and type(fn) is MaskedDistribution and fn._mask is False


def folded(written: dict[str, dict[str, Any]], program: Callable[..., Any], count: int) -> dict[str, dict[str, Any]]:
    """Auxiliary sites within the posterior of the site that each determines, as `AutoNormal` writes them.

    It draws u = `<name>_unconstrained` and writes T(u) as a `Delta` with the density of T: together, T of u's
    distribution. Other auxiliary sites stay as they are.

    Args:
        written: sites of a guide, by name.
        program: the guide, which knows T; the identity if it is no `AutoGuide`.
        count: of the data.

    Raises:
        UserError: if an auxiliary site holds the latents of all data together.
    """
    kept = dict(written)
    for name, site in written.items():
        if not site["infer"].get("is_auxiliary"):
            continue
        for other, delta in written.items():
            if isinstance(delta["fn"], Delta) and (q := _pushed(site, other, delta["fn"], program)) is not None:
                kept[other] = {**delta, "fn": q}
                del kept[name]
                break
        else:
            check_apart(name, site, count)
    return kept


def _pushed(site: dict[str, Any], name: str, delta: Delta, program: Callable[..., Any]) -> Distribution | None:
    """The distribution of what an auxiliary site makes of the site `name`; None if it is not that."""
    prototype: Any = getattr(program, "prototype_trace", None)
    known = prototype is not None and name in prototype.nodes
    transform: Any = biject_to(prototype.nodes[name]["fn"].support) if known else identity_transform
    drawn = site["value"]
    value = transform(drawn)
    if value.shape != delta.v.shape or not torch.allclose(value, delta.v, equal_nan=True):
        return None
    slope = transform.log_abs_det_jacobian(drawn, value)
    density = slope.flatten(delta.log_density.dim()).sum(-1) if slope.dim() > delta.log_density.dim() else slope
    if not torch.allclose(-density, delta.log_density, atol=1e-5, equal_nan=True):
        return None
    return site["fn"] if value is drawn else TransformedDistribution(site["fn"], transform)


def check_apart(name: str, site: Mapping[str, Any], count: int) -> None:
    """Refuses an auxiliary site that holds the latents of all data, as those of `AutoContinuous`.

    Raises:
        UserError: naming the site.
    """
    apart = site["cond_indep_stack"] or count in site["fn"].batch_shape
    if site["infer"].get("is_auxiliary") and not apart:
        raise UserError(
            f"the guide draws the latents of all data together, at {name!r}, so that no datum has a posterior of its "
            "own; take one that has, such as AutoNormal in a plate of the data, or a guide that reads x."
        )


def _site(name: str, site: dict[str, Any], count: int) -> Site:
    fn, value, observed, dim = site["fn"], site["value"], site["is_observed"], site["data_dim"]
    log_prob = scale_and_mask(fn.log_prob(value, *site["args"], **site["kwargs"]), 1.0, site["mask"])
    first = value if observed else data_first(value, fn, dim)
    return Site(first, per_datum(name, log_prob, count, dim), observed, fn, site["mask"], site["scale"], dim)


class Ambiguous(Exception):  # noqa: N818 - not a mishap
    """Several plates of a site are of the batch's size."""


def _dim(site: Any, count: int, fixed: frozenset[str] | None) -> int | None:
    """The batch dimension of B = `count` data at a site, from the right: that of its outermost plate of their size.

    None for the first one, which it is where there is no such plate.

    Args:
        site: of a trace, or on the way into one.
        count: B.
        fixed: names of plates that keep their size for any number of data; None if that is not known.

    Raises:
        Ambiguous: if it is not known, and there are several plates of that size.
    """
    plates = [plate for plate in site["cond_indep_stack"] if plate.vectorized and plate.size == count]
    if fixed is None and count > 1 and len(plates) > 1:
        raise Ambiguous
    dims = [plate.dim for plate in plates if plate.name not in (fixed or ())]
    return None if not dims or -dims[0] == len(site["fn"].batch_shape) else dims[0]


def placed(values: Tensor, fn: Distribution, dim: int | None, axis: int = 0) -> Tensor:
    """Values whose axis `axis` is the data's, as the distribution of a site has them."""
    return values if dim is None else values.movedim(axis, dim - len(fn.event_shape))


def data_first(values: Tensor, fn: Distribution | None, dim: int | None, axis: int = 0) -> Tensor:
    """The inverse of `placed`; without `fn`, of numbers that belong to whole events."""
    return values if dim is None else values.movedim(dim - (0 if fn is None else len(fn.event_shape)), axis)


def numbers(site: Site) -> float:
    """Numbers of all data at an observed site that no mask leaves out."""
    return kept(site).sum().item()


def kept(site: Site) -> Tensor:
    """1 for each number at an observed site that no mask leaves out, 0 for the others, of the shape of its value."""
    masks, fn = [(site.mask, site.fn)], site.fn
    if (counted := getattr(fn, "counted", None)) is not None:  # of events that it knows the ends of
        masks.append((counted, None))
    while fn is not None:
        if isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, fn))
        fn = getattr(fn, "base_dist", None)
    found = torch.ones(site.value.shape, device=site.value.device)
    for mask, over in masks:
        if mask is not None and mask is not True:
            here = torch.as_tensor(mask, device=found.device)
            found = found * here.reshape(here.shape + (1,) * (0 if over is None else len(over.event_shape)))
    return found


def per_datum(name: str, values: Tensor, count: int, dim: int | None = None) -> Tensor:
    """Sums over all batch dimensions but that of the data, `dim` of `Site`.

    Raises:
        UserError: if it is not of their size.
    """
    if dim is not None:
        values = values.movedim(dim, 0)
    if values.dim() == 0 or values.shape[0] != count:
        if count == 1 and values.dim() == 0:
            return values.reshape(1)
        raise UserError(
            f"the site {name!r} has batch shape {tuple(values.shape)} for {count} data; its first batch dimension must "
            "be theirs: sample it in a plate of the batch's size, or with a distribution of that batch shape."
        )
    return values.reshape(count, -1).sum(1)
