"""NumPyro programs with the sites of the Pyro ones, from the same configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpyro
from flax import nnx

from pyro_delta import models
from pyro_delta.call import call
from pyro_delta.config import Config, ProgramConfig
from pyro_delta.data.splits import mapped
from pyro_delta.data.values import blank
from pyro_delta.errors import UserError
from pyro_delta.inference.run import PROGRAMS, Run
from pyro_delta.programs import blamed, find, module_named, twin_of
from pyro_delta.protocol import Batch, Spec
from pyro_delta.twin.auxiliary import LSTMPrior
from pyro_delta.twin.weights import load_weights


class DeltaVAE(nnx.Module):
    """z ~ prior(), x ~ likelihood(z), in one plate `data`."""

    def __init__(self, prior: nnx.Module, likelihood: nnx.Module) -> None:
        """See the class."""
        self.prior, self.likelihood = prior, likelihood

    def __call__(self, x: jax.Array | None = None, *, batch: int = 1, **extras: Any) -> jax.Array:
        """Writes the sites `z` and `x`: scores data (B, *shape), or without them generates `batch` of them.

        What goes with x, the extras, goes to the programs that name it in their signature.
        """
        with numpyro.plate("data", batch if x is None else x.shape[0]):
            z = numpyro.sample("z", call(self.prior, extras))
            return numpyro.sample("x", call(self.likelihood, extras, z), obs=x)


class VAE(nnx.Module):
    """A model and its guide; the paths of their weights are the names in a run's checkpoint."""

    def __init__(self, model: DeltaVAE, guide: nnx.Module) -> None:
        """See the class."""
        self.model, self.guide = model, guide


def build(
    config: Config, spec: Spec, folder: Path | None = None, *, seed: int = 0, example: Batch | None = None
) -> VAE:
    """The twins of a configuration's programs.

    Args:
        config: of a run.
        spec: of the data.
        folder: of the run's own programs.
        seed: of the initial weights.
        example: a batch of two data or more whose shapes programs are tried on; x alone if None, which does for
            programs that take no more.

    Raises:
        UserError: if a program has no twin, or it fails.
    """
    rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))  # which compiles in a third of the time
    prior = _made(config.prior, folder, spec)
    with blamed(config.prior.program):
        shape, starts = prior().event_shape, prior.starts[...].shape
    if len(shape) != 2 or starts != shape[:1]:
        raise UserError(
            f"the twin of the prior {config.prior.program!r} has event shape {shape} and starts {starts}; give it "
            "(n, d), n steps of d dimensions, and n starts."
        )
    likelihood = _made(config.likelihood, folder, spec, prior, rngs=rngs)
    guide = _made(config.guide, folder, spec, prior, rngs=rngs)
    batch = mapped(blank(spec, 2) if example is None else example, lambda values: values[:2].numpy())
    extras = dict(batch) if isinstance(batch, dict) else {"x": batch}
    given = extras.pop("x"), jax.ShapeDtypeStruct((2, *shape), "float32"), extras
    _check_shape(config.guide, lambda x, z, extras: call(guide.posterior, extras, x).log_prob(z), *given)
    _check_shape(config.likelihood, lambda x, z, extras: call(likelihood, extras, z).log_prob(x), *given)
    return VAE(DeltaVAE(prior, likelihood), guide)


def _check_shape(section: ProgramConfig, log_prob: Callable[..., jax.Array], *given: Any) -> None:
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


def twin_of_run(run: Run, *, weights: bool = True, example: Batch | None = None) -> VAE:
    """The twins of a run's programs, with its averaged weights, and with its auxiliary prior if it was loaded with it.

    Args:
        run: that was loaded.
        weights: whether to take over those of the run.
        example: as for `build`.

    Raises:
        UserError: if a program has no twin, or the weights do not fit it.
    """
    twin = build(run.config, run.spec, None if run.folder is None else run.folder / PROGRAMS, example=example)
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
