"""NumPyro programs with the sites of the Pyro ones, from the same configuration."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpyro
from flax import nnx

from pyro_delta import programs
from pyro_delta.config import Config, ProgramConfig
from pyro_delta.data.spec import ImageSpec
from pyro_delta.errors import UserError


class DeltaVAE(nnx.Module):
    """z ~ prior(), x ~ likelihood(z), in one plate `data`."""

    def __init__(self, prior: nnx.Module, likelihood: nnx.Module) -> None:
        self.prior, self.likelihood = prior, likelihood

    def __call__(self, x: jax.Array | None = None, *, batch: int = 1) -> jax.Array:
        """Writes the sites `z` and `x`; scores images, or generates `batch` of them."""
        with numpyro.plate("data", batch if x is None else x.shape[0]):
            z = numpyro.sample("z", self.prior())
            return numpyro.sample("x", self.likelihood(z), obs=x)


class Programs(nnx.Module):
    """A model and its guide; the paths of their weights are the names in a run's checkpoint."""

    def __init__(self, model: DeltaVAE, guide: nnx.Module) -> None:
        self.model, self.guide = model, guide


def build(config: Config, spec: ImageSpec, folder: Path | None = None, *, seed: int = 0) -> Programs:
    """The twins of a configuration's programs.

    Args:
        config: of a run.
        spec: shape and levels of the images.
        folder: of the run's own programs.
        seed: of the initial weights.

    Raises:
        UserError: if a program has no twin.
    """
    rngs = nnx.Rngs(seed)
    prior = _twin_of(config.prior, folder)(spec, **config.prior.options)
    likelihood = _twin_of(config.likelihood, folder)(spec, prior, rngs=rngs, **config.likelihood.options)
    guide = _twin_of(config.guide, folder)(spec, prior, rngs=rngs, **config.guide.options)
    return Programs(DeltaVAE(prior, likelihood), guide)


def _twin_of(section: ProgramConfig, folder: Path | None) -> Callable[..., Any]:
    place = twin_place(section.kind, section.program, folder)
    if place is None:
        raise UserError(
            f"the {section.kind} {section.program!r} has no NumPyro twin; name one in its class: "
            "twin = 'package.module:Object'."
        )
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def twin_place(kind: str, name: str, folder: Path | None = None) -> str | None:
    """Where the twin of a program is, or None: the class of the same name for a shipped one, else what it names."""
    if name in programs.SHIPPED[kind]:
        return f"pyro_delta.twin.{kind}s:{programs.SHIPPED[kind][name].partition(':')[2]}"
    return getattr(programs.find(kind, name, folder), "twin", None)
