"""Data drawn from a model: from its prior, or from given latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_delta.call import required
from pyro_delta.data.condition import condition_of
from pyro_delta.diagnostics.bounds import ignore
from pyro_delta.diagnostics.posterior import interpolate
from pyro_delta.diagnostics.trace import decoder, device_of, evaluating, prior
from pyro_delta.diagnostics.usage import sample_latents
from pyro_delta.protocol import Advance, Spec, Split
from pyro_delta.vae import VAE

Extras = Mapping[str, Tensor]
"""What goes with data, such as lengths, for likelihoods that take it: by name, an entry for each datum."""


@torch.no_grad()
def draw(
    vae: VAE,
    count: int,
    *,
    decodings: int | None = None,
    seed: int = 0,
    batch: int = 64,
    advance: Advance = ignore,
    extras: Extras | None = None,
) -> Tensor:
    """Data from the model.

    Args:
        vae: of which the model is used.
        count: data, or latents if `decodings` is given.
        decodings: R data of each latent sequence, in the paper's manner.
        seed: of the noise.
        batch: data drawn at once.
        advance: called with the number of data just drawn.
        extras: of `count` data; those of a latent serve for all its decodings.

    Returns:
        (count, *shape), or (R·count, *shape) with row after row, each column of which shares its z.
    """
    with evaluating(vae, seed):
        z_bnd = prior(vae, count, extras).sample()
    if decodings is not None:
        z_bnd, extras = _again(z_bnd, decodings), _all_again(extras or {}, decodings)
    return decode(vae, z_bnd, seed=seed + 1, batch=batch, advance=advance, extras=extras)


@torch.no_grad()
def decode(
    vae: VAE,
    z_bnd: Tensor,
    *,
    same_noise: bool = False,
    seed: int = 0,
    batch: int = 64,
    advance: Advance = ignore,
    extras: Extras | None = None,
) -> Tensor:
    """Data drawn from the likelihood given latents.

    Args:
        vae: of which the likelihood is used.
        z_bnd: (B, n, d).
        same_noise: whether all data share the decoder's noise, so that they differ by z alone.
        seed: of the noise.
        batch: data drawn at once.
        advance: called with the number of data just drawn.
        extras: of B data.

    Returns:
        (B, *shape).
    """
    parts, device = [], device_of(vae)
    with evaluating(vae, seed):
        for start in range(0, len(z_bnd), batch):
            here = slice(start, start + batch)
            z, given = z_bnd[here].to(device), {k: v[here].to(device) for k, v in (extras or {}).items()}
            drawn = _with_shared_noise(vae, z, given, seed) if same_noise else _sample(vae, z, given)
            parts.append(drawn.cpu())
            advance(len(z))
    return torch.cat(parts)


def reconstructions(vae: VAE, split: Split, decodings: int, *, seed: int = 0, advance: Advance = ignore) -> Tensor:
    """Data and, row by row below, decodings of one sample of their latents: ((1 + decodings) · N, *shape)."""
    z_bnd = sample_latents(vae, split, seed=seed)
    extras = _all_again(split.extras, decodings)
    drawn = decode(vae, _again(z_bnd, decodings), seed=seed, advance=advance, extras=extras)
    return torch.cat((_as_drawn(vae, split, z_bnd).to(drawn.dtype), drawn))


def paths(vae: VAE, split: Split, steps: int, *, seed: int = 0, advance: Advance = ignore) -> Tensor:
    """Decodings along the way from the latents of one datum to those of the next, pair by pair.

    What goes with the first datum of a pair, such as its length, holds all along its path.

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
    rows, x = [], _as_drawn(vae, split, z_bnd)
    for pair in range(len(split) // 2):
        a, b = 2 * pair, 2 * pair + 1
        with evaluating(vae, seed):
            p = prior(vae, 1, split.take(slice(a, a + 1)).extras)
        path_snd = interpolate(p, z_bnd[a].to(device_of(vae)), z_bnd[b].to(device_of(vae)), steps)
        extras = _all_again({name: values[a : a + 1] for name, values in split.extras.items()}, steps)
        drawn = decode(vae, path_snd, seed=seed + pair, same_noise=True, advance=advance, extras=extras)
        rows.append(torch.cat((x[a : a + 1].to(drawn.dtype), drawn, x[b : b + 1].to(drawn.dtype))))
    return torch.cat(rows)


def is_told(vae: VAE, spec: Spec, *, condition_given: bool = False) -> bool:
    """Whether a likelihood must be told what only data have beside x, such as lengths or numbers, or can be."""
    condition = condition_of(spec)
    of_numbers = condition is not None and not condition.classes and not condition_given
    return bool(required(vae.model.likelihood, 1)) or hasattr(spec, "beside") or of_numbers


def extras_of(split: Split, count: int) -> Extras:
    """What goes with the first `count` data of a split, over and over if it has fewer."""
    return split.take(torch.arange(count) % len(split)).extras if split.extras else {}


def _as_drawn(vae: VAE, split: Split, z_bnd: Tensor) -> Tensor:
    """Data with nothing where their distribution counts nothing, as draws have it: behind the end, say."""
    device = device_of(vae)
    with evaluating(vae, 0):
        extras = {name: values.to(device) for name, values in split.extras.items()}
        distribution: Any = decoder(vae, z_bnd.to(device), extras)
    counted = getattr(distribution, "counted", None)
    return split.x[:] if counted is None else torch.where(counted.cpu(), split.x[:], getattr(distribution, "blank", 0))


def _again(values: Tensor, count: int) -> Tensor:
    return values.repeat(count, *[1] * (values.dim() - 1))


def _all_again(extras: Extras, count: int) -> Extras:
    return {name: _again(values, count) for name, values in extras.items()}


def _sample(vae: VAE, z_bnd: Tensor, extras: Extras) -> Tensor:
    return decoder(vae, z_bnd, extras).sample()


def _with_shared_noise(vae: VAE, z_bnd: Tensor, extras: Extras, seed: int) -> Tensor:
    """Drawn at once where the distribution says how noise becomes a sample, one after the other where not."""
    torch.manual_seed(seed)
    distribution: Any = decoder(vae, z_bnd, extras)
    if hasattr(distribution, "noise"):
        return distribution.sample(uniforms=distribution.noise(1))
    drawn = []
    for i in range(len(z_bnd)):
        torch.manual_seed(seed)
        drawn.append(_sample(vae, z_bnd[i : i + 1], {name: values[i : i + 1] for name, values in extras.items()}))
    return torch.cat(drawn)
