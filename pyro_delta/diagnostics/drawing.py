"""Data drawn from a model: from its prior, or from given latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_delta.diagnostics.bounds import ignore
from pyro_delta.diagnostics.posterior import interpolate
from pyro_delta.diagnostics.trace import decoder, device_of, evaluating, prior
from pyro_delta.diagnostics.usage import sample_latents
from pyro_delta.protocol import Advance, Split
from pyro_delta.vae import VAE


@torch.no_grad()
def draw(
    vae: VAE,
    count: int,
    *,
    decodings: int | None = None,
    seed: int = 0,
    batch: int = 64,
    advance: Advance = ignore,
) -> Tensor:
    """Data from the model.

    Args:
        vae: of which the model is used.
        count: data, or latents if `decodings` is given.
        decodings: R data of each latent sequence, in the paper's manner.
        seed: of the noise.
        batch: data drawn at once.
        advance: called with the number of data just drawn.

    Returns:
        (count, *shape), or (R·count, *shape) with row after row, each column of which shares its z.
    """
    with evaluating(vae, seed):
        z_bnd = prior(vae, count).sample()
    if decodings is not None:
        z_bnd = z_bnd.repeat(decodings, *[1] * (z_bnd.dim() - 1))
    return decode(vae, z_bnd, seed=seed + 1, batch=batch, advance=advance)


@torch.no_grad()
def decode(
    vae: VAE,
    z_bnd: Tensor,
    *,
    same_noise: bool = False,
    seed: int = 0,
    batch: int = 64,
    advance: Advance = ignore,
) -> Tensor:
    """Data drawn from the likelihood given latents.

    Args:
        vae: of which the likelihood is used.
        z_bnd: (B, n, d).
        same_noise: whether all data share the decoder's noise, so that they differ by z alone.
        seed: of the noise.
        batch: data drawn at once.
        advance: called with the number of data just drawn.

    Returns:
        (B, *shape).
    """
    parts = []
    with evaluating(vae, seed):
        for z in z_bnd.to(device_of(vae)).split(batch):
            parts.append((_with_shared_noise(vae, z, seed) if same_noise else decoder(vae, z).sample()).cpu())
            advance(len(z))
    return torch.cat(parts)


def reconstructions(vae: VAE, split: Split, decodings: int, *, seed: int = 0, advance: Advance = ignore) -> Tensor:
    """Data and, row by row below, decodings of one sample of their latents: ((1 + decodings) · N, *shape)."""
    z_bnd = sample_latents(vae, split, seed=seed)
    drawn = decode(vae, z_bnd.repeat(decodings, *[1] * (z_bnd.dim() - 1)), seed=seed, advance=advance)
    return torch.cat((split.x.to(drawn.dtype), drawn))


def paths(vae: VAE, split: Split, steps: int, *, seed: int = 0, advance: Advance = ignore) -> Tensor:
    """Decodings along the way from the latents of one datum to those of the next, pair by pair.

    Args:
        vae: model and guide.
        split: data, an even number.
        steps: points of each path, both ends included.
        seed: of latents and of the decoder's noise, which is the same all along a path.
        advance: called with the number of data just drawn.

    Returns:
        (steps + 2) · N / 2 data: of each pair the first datum, its path, and the second datum.
    """
    z_bnd = sample_latents(vae, split, seed=seed)
    with evaluating(vae, seed):
        p = prior(vae)
    rows = []
    for pair in range(len(split) // 2):
        a, b = 2 * pair, 2 * pair + 1
        path_snd = interpolate(p, z_bnd[a].to(device_of(vae)), z_bnd[b].to(device_of(vae)), steps)
        drawn = decode(vae, path_snd, seed=seed + pair, same_noise=True, advance=advance)
        rows.append(torch.cat((split.x[a : a + 1].to(drawn.dtype), drawn, split.x[b : b + 1].to(drawn.dtype))))
    return torch.cat(rows)


def _with_shared_noise(vae: VAE, z_bnd: Tensor, seed: int) -> Tensor:
    """Drawn at once where the distribution says how noise becomes a sample, one after the other where not."""
    torch.manual_seed(seed)
    distribution: Any = decoder(vae, z_bnd)
    if hasattr(distribution, "noise"):
        return distribution.sample(uniforms=distribution.noise(1))
    drawn = []
    for z in z_bnd.split(1):
        torch.manual_seed(seed)
        drawn.append(decoder(vae, z).sample())
    return torch.cat(drawn)
