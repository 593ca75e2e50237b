"""From a configuration to programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_delta.call import call, run
from pyro_delta.config import Config, ProgramConfig
from pyro_delta.data.named import build_data
from pyro_delta.data.splits import mapped
from pyro_delta.data.values import blank
from pyro_delta.errors import UserError
from pyro_delta.models import DeltaVAE
from pyro_delta.programs import blamed, find
from pyro_delta.protocol import CAUSALITIES, Batch, Data, Objective, Spec
from pyro_delta.vae import VAE, local_parameters, localise

RESERVED = {"batch", "z"}
"""Keywords of `DeltaVAE` and of likelihoods, which nothing that goes with x may be called."""


def load_data(config: Config, root: str | None = None, folder: Path | None = None) -> Data:
    """The data of a configuration.

    Args:
        config: of a run.
        root: where they live now, in the place of data.root.
        folder: of the run's own programs.

    Raises:
        UserError: as `build_data`, or if the data take no root.
    """
    program, options = config.data.program, dict(config.data.options)
    if root is not None:
        if "root" not in options:
            raise UserError(f"the data {program!r} take no root, so --data-root {root} has no meaning; leave it out.")
        options["root"] = root
    return build_data(program, options, folder)


def build(
    config: Config, spec: Spec, folder: Path | None = None, *, example: Batch | None = None, check: bool = True
) -> VAE:
    """Model and guide of a configuration for data of `spec`, initialised from torch's random state.

    Args:
        config: of a run.
        spec: of the data.
        folder: of the run's own programs.
        example: a batch of two data or more that programs are tried on; data of zeros if None, which do for programs
            that take x alone.
        check: whether they are tried at all.

    Raises:
        UserError: if a program cannot be made, or is not what the protocol asks for.
    """
    with local_parameters():
        prior = _made(config.prior, folder, spec)
        with blamed(config.prior.program):
            _check_prior(prior, config.prior.program, spec)
        likelihood = _made(config.likelihood, folder, spec, prior)
        guide = _made(config.guide, folder, spec, prior)
        vae = VAE(DeltaVAE(prior, likelihood), guide)
        localise(vae)
        if check:
            _check_fit(vae, config, spec, example)
    return vae


def build_objective(config: Config, folder: Path | None = None, *, dims: int = 1) -> Objective:
    """The objective of a configuration.

    Args:
        config: of a run.
        folder: of the run's own programs.
        dims: d, of the rates that it is tried on if it asks for that of each latent dimension.

    Raises:
        UserError: if it cannot be made, does not join rate and distortion to one number that has a gradient, cannot be
            advanced, or has something else than numbers in `varying`.
    """
    section = config.objective
    with blamed(section.program):
        make = find("objective", section.program, folder)
        objective, tried = make(**section.options), make(**section.options)
    if not callable(objective):
        raise UserError(f"the objective {section.program!r} makes a {type(objective).__name__}; it must be callable.")
    with blamed(section.program), torch.enable_grad():  # another one, for a call may leave its mark
        apart = getattr(tried, "per_dimension", False)
        rate, distortion = torch.ones(dims if apart else (), requires_grad=True), torch.ones((), requires_grad=True)
        joined = tried(rate, distortion, torch.ones(()))
    if not isinstance(joined, Tensor) or joined.shape:
        found = f"a tensor of shape {tuple(joined.shape)}" if isinstance(joined, Tensor) else type(joined).__name__
        raise UserError(f"the objective {section.program!r} gives {found}; it must give one number, a tensor.")
    if not joined.requires_grad:
        raise UserError(
            f"the objective {section.program!r} gives a number without a gradient; compute it of rate and distortion "
            "as they are, not of their detached or plain values."
        )
    with blamed(section.program):
        if hasattr(tried, "advance"):
            tried.advance(1)
        for made in (objective, tried):
            _check_varying(getattr(made, "varying", {}), section.program)
    return objective


def _check_varying(varying: Any, name: str) -> None:
    """What an objective changes in training goes into lines of metrics and checkpoints."""
    if not isinstance(varying, dict):
        raise UserError(f"the objective {name!r} has varying {varying!r}; it must be a dict of names and numbers.")
    for key, value in varying.items():
        number = value.numel() == 1 if isinstance(value, Tensor) else type(value) in (int, float, bool)
        if not isinstance(key, str) or not number:
            raise UserError(
                f"the objective {name!r} has varying[{key!r}] = {value!r}; it must be a name and a number, of Python "
                "or a tensor."
            )


def _made(section: ProgramConfig, folder: Path | None, *given: Any) -> nn.Module:
    with blamed(section.program):
        program = find(section.kind, section.program, folder)(*given, **section.options)
    if not isinstance(program, nn.Module):
        raise UserError(
            f"the {section.kind} {section.program!r} makes a {type(program).__name__}; it must make a torch.nn.Module."
        )
    return program


def _check_prior(prior: nn.Module, name: str, spec: Spec) -> None:
    with torch.no_grad():
        shape = tuple(_distribution(prior(), f"the prior {name!r}").event_shape)
        batch_shape = tuple(prior().batch_shape)
    if batch_shape:
        raise UserError(f"the prior {name!r} has batch shape {batch_shape}; it must be one distribution, of batch ().")
    if len(shape) != 2:
        raise UserError(f"the prior {name!r} has event shape {shape}; it must be (n, d), n steps of d dimensions.")
    starts = getattr(prior, "starts", None)
    if not isinstance(starts, Tensor) or starts.is_floating_point() or tuple(starts.shape) != shape[:1]:
        found = tuple(starts.shape) if isinstance(starts, Tensor) else starts
        raise UserError(f"the prior {name!r} has starts {found}; it must be {shape[0]} integers, one a step.")
    if not ((starts >= 0) & (starts < spec.positions)).all():
        raise UserError(
            f"the prior {name!r} has starts {starts.tolist()}; the positions of the data are 0 to {spec.positions - 1}."
        )


@torch.no_grad()
def _check_fit(vae: VAE, config: Config, spec: Spec, example: Batch | None) -> None:
    """Data through guide and model: do their event shapes fit, one at a time and two, and their sites?"""
    example = blank(spec, 2) if example is None else example
    if taken := RESERVED & (example.keys() if isinstance(example, dict) else set()):
        raise UserError(
            f"a batch has the key {min(taken)!r}, which a model takes for something else; name it otherwise."
        )
    one, two = mapped(example, lambda values: values[:1]), mapped(example, lambda values: values[:2])
    vae.eval()
    with torch.random.fork_rng(devices=[]):
        shape = tuple(vae.model.prior().event_shape)
        name = f"the guide {config.guide.program!r}"
        if hasattr(vae.guide, "posterior"):  # its shape in words, before a plate says less of it
            with blamed(config.guide.program):
                q = _distribution(call(vae.guide.posterior, _extras(one), _x(one)), name)
            _check_posterior(q, name, shape)
        with blamed(config.guide.program):
            z, q = _drawn(vae.guide, one, 1, name)
        _check_posterior(q, name, shape)
        if getattr(vae.guide, "causality", None) not in CAUSALITIES:
            raise UserError(f"{name} declares no causality; set it to {' or '.join(map(repr, CAUSALITIES))}.")
        with blamed(config.guide.program):
            both, _ = _drawn(vae.guide, two, 2, name)
        name = f"the likelihood {config.likelihood.program!r}"
        with blamed(config.likelihood.program):
            p = _likelihood_of(vae.model, one, z, name)
        if tuple(p.event_shape) != tuple(spec.shape) or tuple(p.batch_shape) != (1,):
            raise UserError(
                f"{name} gives {tuple(p.batch_shape)} + {tuple(p.event_shape)} for one latent sequence; "
                f"{getattr(spec, 'what', 'data')} are {tuple(spec.shape)}, so it must be (1,) + {tuple(spec.shape)}."
            )
        with blamed(config.likelihood.program):
            _likelihood_of(vae.model, two, both, name)
    vae.train()


def _check_posterior(q: Distribution, name: str, shape: tuple[int, ...]) -> None:
    if tuple(q.event_shape) != shape or tuple(q.batch_shape) != (1,):
        raise UserError(
            f"{name} gives {tuple(q.batch_shape)} + {tuple(q.event_shape)} for one datum; the prior has event shape "
            f"{shape}, so it must be (1,) + {shape}."
        )


def _likelihood_of(model: DeltaVAE, batch: Batch, z: Tensor, name: str) -> Distribution:
    """What the likelihood gives for latents; without scoring anything, as large networks take their time."""
    return _distribution(call(model.likelihood, _extras(batch), z), name)


def _x(batch: Batch) -> Tensor:
    return batch["x"] if isinstance(batch, dict) else batch


def _extras(batch: Batch) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key != "x"} if isinstance(batch, dict) else {}


def _drawn(guide: nn.Module, batch: Batch, size: int, name: str) -> tuple[Tensor, Distribution]:
    """What a guide draws for data; it must be one site `z` in one plate, with all that training asks of it."""
    with pyro.poutine.trace() as tracer:  # as a context, it adds nothing to the words of an error
        run(guide, batch)
    sites = prune_subsample_sites(tracer.trace)
    latent = set(sites.stochastic_nodes)
    if "z" not in latent:
        raise UserError(f"{name} samples no site 'z'; its forward(x) must, in pyro.plate('data', len(x)).")
    if others := sorted(latent - {"z"}):
        raise UserError(f"{name} samples {others[0]!r}, which the model does not; take it out.")
    site = sites.nodes["z"]
    if [plate.size for plate in site["cond_indep_stack"]] != [size]:
        raise UserError(f"{name} samples 'z' outside the plate of the data; do it in pyro.plate('data', len(x)).")
    q = site["fn"]
    for moment in ("mean", "variance"):
        try:
            getattr(q, moment)
        except NotImplementedError:
            raise UserError(f"the posterior of {name}, a {type(q).__name__}, has no {moment}; give it one.") from None
    return site["value"], q


def _distribution(value: Any, name: str) -> Distribution:
    if not isinstance(value, Distribution):
        raise UserError(f"{name} returns a {type(value).__name__}; it must return a distribution.")
    return value
