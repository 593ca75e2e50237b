"""From a configuration to programs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_delta.config import Config, ProgramConfig
from pyro_delta.data.spec import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.models import DeltaVAE
from pyro_delta.programs import blamed, find

CAUSALITIES = ("anti_causal", "none")


class Programs(nn.Module):
    """A model and its guide: what is trained, averaged, saved and evaluated together."""

    def __init__(self, model: DeltaVAE, guide: PyroModule) -> None:
        super().__init__()
        self.model = model
        self.guide = guide


def local_parameters() -> Any:
    """The context in which the library builds and runs programs: parameters live in the modules, not in Pyro's store.

    With the global store a second model of the same process would silently train the first one's parameters.
    """
    return pyro.settings.context(module_local_params=True)


def parameters_of(programs: Programs) -> AbstractContextManager[Any]:
    """The context that programs run in: `local_parameters`, unless a part was built outside it, on which it fails."""
    parts = [part for part in programs.modules() if isinstance(part, PyroModule)]
    return local_parameters() if all(hasattr(part._pyro_context, "param_state") for part in parts) else nullcontext()


def build(config: Config, spec: ImageSpec, folder: Path | None = None) -> Programs:
    """The programs of a configuration for images of `spec`, initialised from torch's random state.

    Args:
        config: of a run.
        spec: shape and levels of the images.
        folder: of the run's own programs.

    Raises:
        UserError: if a program cannot be made, or is not what the protocol asks for.
    """
    with local_parameters():
        prior = _made(config.prior, folder, spec)
        with blamed(config.prior.program):
            _check_prior(prior, config.prior.program, spec)
        likelihood = _made(config.likelihood, folder, spec, prior)
        guide = _made(config.guide, folder, spec, prior)
        programs = Programs(DeltaVAE(prior, likelihood), guide)
        _check_fit(programs, config, spec)
    return programs


def _made(section: ProgramConfig, folder: Path | None, *given: Any) -> PyroModule:
    with blamed(section.program):
        program = find(section.kind, section.program, folder)(*given, **section.options)
    if not isinstance(program, PyroModule):
        raise UserError(
            f"the {section.kind} {section.program!r} makes a {type(program).__name__}; it must make a PyroModule."
        )
    return program


def _check_prior(prior: PyroModule, name: str, spec: ImageSpec) -> None:
    with torch.no_grad():
        shape = tuple(_distribution(prior(), f"the prior {name!r}").event_shape)
        batch_shape = tuple(prior().batch_shape)
    if batch_shape:
        raise UserError(f"the prior {name!r} has batch shape {batch_shape}; it must be one distribution, of batch ().")
    if len(shape) != 2:
        raise UserError(f"the prior {name!r} has event shape {shape}; it must be (n, d), n steps of d dimensions.")
    first_row = getattr(prior, "first_row", None)
    if not isinstance(first_row, Tensor) or first_row.is_floating_point() or tuple(first_row.shape) != shape[:1]:
        found = tuple(first_row.shape) if isinstance(first_row, Tensor) else first_row
        raise UserError(f"the prior {name!r} has first_row {found}; it must be {shape[0]} integers, one a step.")
    if not ((first_row >= 0) & (first_row < spec.height)).all():
        raise UserError(f"the prior {name!r} has first_row {first_row.tolist()}; rows are 0 to {spec.height - 1}.")


@torch.no_grad()
def _check_fit(programs: Programs, config: Config, spec: ImageSpec) -> None:
    """Blank images through guide and likelihood: do their event shapes fit, one at a time and two, and their sites?"""
    x_bchw = torch.zeros(1, *spec.shape, dtype=torch.uint8)
    programs.eval()
    with torch.random.fork_rng(devices=[]):
        shape = programs.model.prior().event_shape
        with blamed(config.guide.program):
            q = programs.guide.posterior(x_bchw)
        name = f"the guide {config.guide.program!r}"
        if _distribution(q, name).event_shape != shape or q.batch_shape != (1,):
            raise UserError(
                f"{name} gives {tuple(q.batch_shape)} + {tuple(q.event_shape)} for one image; the prior has event "
                f"shape {tuple(shape)}, so it must be (1,) + {tuple(shape)}."
            )
        if getattr(programs.guide, "causality", None) not in CAUSALITIES:
            raise UserError(f"{name} declares no causality; set it to {' or '.join(map(repr, CAUSALITIES))}.")
        with blamed(config.guide.program):
            z_bnd = _drawn(programs.guide, x_bchw.expand(2, -1, -1, -1), name)
        with blamed(config.likelihood.program):
            p = programs.model.likelihood(z_bnd[:1])
            programs.model.likelihood(z_bnd)
        name = f"the likelihood {config.likelihood.program!r}"
        if _distribution(p, name).event_shape != spec.shape or p.batch_shape != (1,):
            raise UserError(
                f"{name} gives {tuple(p.batch_shape)} + {tuple(p.event_shape)} for one latent sequence; images are "
                f"{spec.shape}, so it must be (1,) + {spec.shape}."
            )
    programs.train()


def _drawn(guide: PyroModule, x_bchw: Tensor, name: str) -> Tensor:
    """What a guide draws for images; it must be one site `z` in one plate, with all that training asks of it."""
    sites = prune_subsample_sites(pyro.poutine.trace(guide).get_trace(x_bchw))
    latent = set(sites.stochastic_nodes)
    if "z" not in latent:
        raise UserError(f"{name} samples no site 'z'; its forward(x) must, in pyro.plate('data', len(x)).")
    if others := sorted(latent - {"z"}):
        raise UserError(f"{name} samples {others[0]!r}, which the model does not; take it out.")
    site = sites.nodes["z"]
    if [plate.size for plate in site["cond_indep_stack"]] != [len(x_bchw)]:
        raise UserError(f"{name} samples 'z' outside the plate of the images; do it in pyro.plate('data', len(x)).")
    q = guide.posterior(x_bchw)
    for moment in ("mean", "variance"):
        try:
            getattr(q, moment)
        except NotImplementedError:
            raise UserError(f"the posterior of {name}, a {type(q).__name__}, has no {moment}; give it one.") from None
    return site["value"]


def _distribution(value: Any, name: str) -> Distribution:
    if not isinstance(value, Distribution):
        raise UserError(f"{name} returns a {type(value).__name__}; it must return a distribution.")
    return value
