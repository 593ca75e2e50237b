"""NumPyro programs with the sites of the Pyro ones, from the same configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpyro
from flax import nnx

from pyro_delta import models
from pyro_delta.config import Config, ProgramConfig
from pyro_delta.data.values import dtype_of
from pyro_delta.errors import UserError
from pyro_delta.inference.run import PROGRAMS, Run
from pyro_delta.programs import blamed, find, module_named, twin_of
from pyro_delta.protocol import Spec
from pyro_delta.twin.auxiliary import LSTMPrior
from pyro_delta.twin.weights import load_weights


class DeltaVAE(nnx.Module):
    """z ~ prior(), x ~ likelihood(z), in one plate `data`."""

    def __init__(self, prior: nnx.Module, likelihood: nnx.Module) -> None:
        """See the class."""
        self.prior, self.likelihood = prior, likelihood

    def __call__(self, x: jax.Array | None = None, *, batch: int = 1) -> jax.Array:
        """Writes the sites `z` and `x`: scores data (B, *shape), or without them generates `batch` of them."""
        with numpyro.plate("data", batch if x is None else x.shape[0]):
            z = numpyro.sample("z", self.prior())
            return numpyro.sample("x", self.likelihood(z), obs=x)


class VAE(nnx.Module):
    """A model and its guide; the paths of their weights are the names in a run's checkpoint."""

    def __init__(self, model: DeltaVAE, guide: nnx.Module) -> None:
        """See the class."""
        self.model, self.guide = model, guide


def build(config: Config, spec: Spec, folder: Path | None = None, *, seed: int = 0) -> VAE:
    """The twins of a configuration's programs.

    Args:
        config: of a run.
        spec: of the data.
        folder: of the run's own programs.
        seed: of the initial weights.

    Raises:
        UserError: if a program has no twin, or it fails.
    """
    rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))  # which compiles in a third of the time
    prior = _made(config.prior, folder, spec)
    with blamed(config.prior.program):
        shape, rows = prior().event_shape, prior.starts[...].shape
    if len(shape) != 2 or rows != shape[:1]:
        raise UserError(
            f"the twin of the prior {config.prior.program!r} has event shape {shape} and starts {rows}; give it "
            "(n, d), n steps of d dimensions, and n rows."
        )
    likelihood = _made(config.likelihood, folder, spec, prior, rngs=rngs)
    guide = _made(config.guide, folder, spec, prior, rngs=rngs)
    x, z = (
        jax.ShapeDtypeStruct((2, *spec.shape), str(dtype_of(spec)).removeprefix("torch.").replace("int64", "int32")),
        jax.ShapeDtypeStruct((2, *shape), "float32"),
    )
    _check_shape(config.guide, lambda x, z: guide.posterior(x).log_prob(z), x, z)
    _check_shape(config.likelihood, lambda x, z: likelihood(z).log_prob(x), x, z)
    return VAE(DeltaVAE(prior, likelihood), guide)


def _check_shape(section: ProgramConfig, log_prob: Callable[..., jax.Array], *given: jax.ShapeDtypeStruct) -> None:
    """Two data and their latents through a program, without computing anything."""
    with blamed(section.program):
        shape = jax.eval_shape(log_prob, *given).shape
    if shape != (2,):
        raise UserError(
            f"the twin of the {section.kind} {section.program!r} gives log-probabilities of shape {shape} for two "
            "data; it must be (2,)."
        )


def _made(section: ProgramConfig, folder: Path | None, *given: Any, **named: Any) -> Any:
    place = twin_of(find(section.kind, section.program, folder))
    if place is None:
        raise UserError(
            f"the {section.kind} {section.program!r} has no NumPyro twin; name one in the program's own class: "
            "twin = 'package.module:Object'."
        )
    with blamed(section.program):
        return _found(place, section)(*given, **named, **section.options)


def _found(place: str | Callable[..., Any], section: ProgramConfig) -> Callable[..., Any]:
    found: Any = place
    if isinstance(place, str):
        source, _, name = place.partition(":")
        found = getattr(module_named(source), name, None) if source and name else None
    if not callable(found):
        raise UserError(
            f"the {section.kind} {section.program!r} names the twin {place!r}, which is not there; "
            "name one as 'package.module:Object'."
        )
    return found


def twin_of_run(run: Run, *, weights: bool = True) -> VAE:
    """The twins of a run's programs, with its averaged weights, and with its auxiliary prior if it was loaded with it.

    Args:
        run: that was loaded.
        weights: whether to take over those of the run.

    Raises:
        UserError: if a program has no twin, or the weights do not fit it.
    """
    twin = build(run.config, run.spec, None if run.folder is None else run.folder / PROGRAMS)
    if isinstance(run.vae.model.prior, models.LSTMPrior):
        twin.model.prior = LSTMPrior.like(run.vae.model.prior, twin.model.prior)
    if weights:
        load_weights(twin, run.vae.state_dict())
    return twin


def compute_on(device: str) -> None:
    """Makes JAX compute on `cpu` or `cuda`; with `auto` it chooses.

    Raises:
        UserError: if there is no such device.
    """
    if device != "auto":
        try:
            jax.config.update("jax_default_device", jax.devices(device)[0])
        except RuntimeError:
            raise UserError(f"--device {device}: JAX finds no such device here; use --device cpu.") from None
