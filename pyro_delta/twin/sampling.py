"""Data drawn by the twin, from the noise that Pyro's programs would draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import Tensor

from pyro_delta.call import call
from pyro_delta.diagnostics.bounds import ignore
from pyro_delta.diagnostics.trace import noise_seed
from pyro_delta.errors import UserError
from pyro_delta.twin.build import VAE


def draw(
    vae: VAE,
    count: int,
    *,
    decodings: int | None = None,
    seed: int = 0,
    batch: int = 64,
    advance: Callable[[int], None] = ignore,
    extras: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Data from the model, as `pyro_delta.diagnostics.drawing.draw` draws them: of the same noise, group after group.

    Takes the arguments of that function and returns data of the same shape. In double precision they are Pyro's; in
    single precision a rounding may tip a number, and with it all after it.

    Prior and likelihood say how noise becomes a sample: the prior's distribution by `transform`, of standard normal
    noise, the likelihood's by `from_uniforms`, of noise uniform on (0, 1); of the shape `noise_shape`, or of the event.

    Raises:
        UserError: if they do not.
    """
    vae.eval()
    generator = torch.Generator().manual_seed(noise_seed(seed))
    told = {name: jnp.asarray(values.numpy()) for name, values in (extras or {}).items()}
    p = call(vae.model.prior, told)
    _check(p, "prior", "transform")
    noise = torch.randn((count, *_noise_shape(p)), dtype=_dtype(p), generator=generator)
    z_bnd = p.transform(jnp.asarray(noise.numpy()))
    if decodings is not None:
        z_bnd = jnp.tile(z_bnd, (decodings, 1, 1))
        told = {name: jnp.tile(values, (decodings, *[1] * (values.ndim - 1))) for name, values in told.items()}
    x = call(vae.model.likelihood, {name: values[:1] for name, values in told.items()}, z_bnd[:1])
    _check(x, "likelihood", "from_uniforms")
    graph, state = nnx.split(vae.model.likelihood)

    @jax.jit
    def decode(state: Any, z_bnd: Any, told: Any, uniforms: Any) -> Any:
        return call(nnx.merge(graph, state), told, z_bnd).from_uniforms(uniforms)

    generator.manual_seed(noise_seed(seed + 1))
    parts = []
    for first in range(0, len(z_bnd), batch):
        z = z_bnd[first : first + batch]
        uniforms = torch.rand((len(z), *_noise_shape(x)), dtype=noise.dtype, generator=generator)
        here = {name: values[first : first + batch] for name, values in told.items()}
        drawn = torch.tensor(jax.device_get(decode(state, z, here, jnp.asarray(uniforms.numpy()))))
        parts.append(drawn if drawn.is_floating_point() else drawn.long())
        advance(len(z))
    return torch.cat(parts)


def _noise_shape(distribution: Any) -> tuple[int, ...]:
    """Of the noise of a sample."""
    return getattr(distribution, "noise_shape", distribution.event_shape)


def _dtype(p: Any) -> torch.dtype:
    """The precision of a distribution's samples."""
    return getattr(torch, jax.eval_shape(p.sample, jax.random.key(0)).dtype.name)


def _check(distribution: Any, kind: str, method: str) -> None:
    if not hasattr(distribution, method):
        raise UserError(
            f"the twin of the {kind}, {type(distribution).__name__}, does not say how noise becomes a sample; "
            f"give it a method {method}."
        )
