"""Images drawn by the twin, from the noise that Pyro's programs would draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import Tensor

from pyro_delta.diagnostics.bounds import ignore
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
) -> Tensor:
    """Images from the model, as `pyro_delta.diagnostics.drawing.draw` draws them: of the same noise, pixel after pixel.

    Takes the arguments of that function and returns images of the same shape. In double precision they are Pyro's; in
    single precision a rounding may tip a pixel, and with it all after it.

    Raises:
        UserError: if prior or likelihood do not say how a sample comes from noise.
    """
    vae.eval()
    generator = torch.Generator().manual_seed(seed)
    p = vae.model.prior()
    _check(p, "prior", "transform")
    noise = torch.randn((count, *getattr(p, "noise_shape", p.event_shape)), dtype=_dtype(p), generator=generator)
    z_bnd = p.transform(jnp.asarray(noise.numpy()))
    if decodings is not None:
        z_bnd = jnp.tile(z_bnd, (decodings, 1, 1))
    image = vae.model.likelihood(z_bnd[:1])
    _check(image, "likelihood", "from_uniforms")
    channels, height, width = image.event_shape
    graph, state = nnx.split(vae.model.likelihood)

    @jax.jit
    def decode(state: Any, z_bnd: Any, uniforms: Any) -> Any:
        return nnx.merge(graph, state)(z_bnd).from_uniforms(uniforms)

    generator.manual_seed(seed + 1)
    parts = []
    for first in range(0, len(z_bnd), batch):
        z = z_bnd[first : first + batch]
        shape = (len(z), height, width, 1 + channels)
        uniforms = torch.rand(shape, dtype=noise.dtype, generator=generator)
        parts.append(torch.tensor(jax.device_get(decode(state, z, jnp.asarray(uniforms.numpy()))), dtype=torch.int64))
        advance(len(z))
    return torch.cat(parts)


def _dtype(p: Any) -> torch.dtype:
    """The precision of a distribution's samples."""
    return getattr(torch, jax.eval_shape(p.sample, jax.random.key(0)).dtype.name)


def _check(distribution: Any, kind: str, method: str) -> None:
    if not hasattr(distribution, method):
        raise UserError(
            f"the twin of the {kind}, {type(distribution).__name__}, does not say how noise becomes a sample; "
            f"give it a method {method}."
        )
