"""Data drawn from a model: from its prior, or from given latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_delta.call import required
from pyro_delta.data.condition import condition_of
from pyro_delta.diagnostics.bounds import ignore
from pyro_delta.diagnostics.posterior import interpolate
from pyro_delta.diagnostics.trace import decoder, device_of, evaluating, prior
from pyro_delta.diagnostics.usage import sample_latents
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.distributions.sequences import AutoregressiveSequence
from pyro_delta.errors import UserError
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
    temperature: float = 1.0,
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
        temperature: of the decoder, number by number; with any but 1 the data are no draws from the model.
        seed: of the noise.
        batch: data drawn at once.
        advance: called with the number of data just drawn.
        extras: of `count` data; those of a latent serve for all its decodings.

    Returns:
        (count, *shape), or (R·count, *shape) with row after row, each column of which shares its z.

    Raises:
        UserError: if the likelihood has no temperature, and one but 1 is asked for.
    """
    with evaluating(vae, seed):
        z_bnd = prior(vae, count, extras).sample()
    if decodings is not None:
        z_bnd, extras = _again(z_bnd, decodings), _all_again(extras or {}, decodings)
    return decode(vae, z_bnd, temperature=temperature, seed=seed + 1, batch=batch, advance=advance, extras=extras)


@torch.no_grad()
def decode(
    vae: VAE,
    z_bnd: Tensor,
    *,
    same_noise: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 64,
    advance: Advance = ignore,
    extras: Extras | None = None,
) -> Tensor:
    """Data drawn from the likelihood given latents.

    Args:
        vae: of which the likelihood is used.
        z_bnd: (B, n, d).
        same_noise: whether all data share the decoder's noise, so that they differ by z alone; at temperature 1.
        temperature: as for `draw`.
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
            drawn = _with_shared_noise(vae, z, given, seed) if same_noise else _sample(vae, z, given, temperature)
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


class Continued(NamedTuple):
    """Data and how they may go on.

    Attributes:
        x: ((1 + completions) · N, *shape): the data, and row by row below what begins as they do.
        effective_sample_sizes: of the particles of each, 1 … K.
    """

    x: Tensor
    effective_sample_sizes: list[float]


@torch.no_grad()
def continuations(
    vae: VAE, split: Split, *, completions: int = 2, particles: int = 64, batch: int = 16, seed: int = 0
) -> Continued:
    """Draws of how data go on after their first half: the upper rows of an image, the first positions of a sequence.

    K particles z_k of each datum come from the prior. Their weights are w_k = p(first half | z_k), in one pass, since
    nothing of the first half depends on what follows it. Completions are particles picked with probabilities w_k / Σ w,
    and the second half drawn from the decoder given the first and z: exact as K → ∞, and the better the larger the
    effective sample size (Σ w)² / Σ w².

    Args:
        vae: of which the model is used; its likelihood must be an `AutoregressiveImage` or `AutoregressiveSequence`.
        split: N data.
        completions: of each, with replacement.
        particles: K.
        batch: particles weighed at once.
        seed: of all noise.

    Raises:
        UserError: if the likelihood is another, or gives a first half no finite weight.
    """
    device, chosen, sizes = device_of(vae), [], []
    with evaluating(vae, seed):
        for i in range(len(split)):
            one = {name: values[i : i + 1].to(device) for name, values in split.extras.items()}
            many = {name: values.expand(particles, *values.shape[1:]) for name, values in one.items()}
            z, x, log_weight = prior(vae, particles, many).sample(), split.x[i : i + 1].to(device), []
            for start in range(0, particles, batch):
                part = z[start : start + batch]
                given = {name: values.expand(len(part), *values.shape[1:]) for name, values in one.items()}
                log_weight.append(_log_first_half(decoder(vae, part, given), x.expand(len(part), *x.shape[1:])))
            weight = torch.softmax(torch.cat(log_weight), dim=0)
            if not weight.isfinite().all():
                raise UserError("the first half of a datum has no finite weight: the run's weights have diverged.")
            chosen.append(z[torch.multinomial(weight, completions, replacement=True)])
            sizes.append(1 / weight.square().sum().item())
        z, extras = torch.stack(chosen, 1).flatten(0, 1), _all_again(split.extras, completions)
        distribution: Any = decoder(vae, z, {name: values.to(device) for name, values in extras.items()})
        x = _again(split.x[:], completions).to(device)
        drawn = distribution.sample(keep=(x, _first_half(distribution))).cpu()
    data = _as_drawn(vae, split, torch.stack(chosen)[:, 0])
    return Continued(torch.cat((data.to(drawn.dtype), drawn)), sizes)


def _first_half(distribution: Any) -> Tensor:
    """Which pixels or numbers are kept, (B, H, W) or of batch and event shape: half of all that count, and at most."""
    if isinstance(distribution, AutoregressiveImage):
        _, height, width = distribution.event_shape
        rows = torch.arange(height, device=distribution.z.device) < height // 2
        return rows[:, None].expand(*distribution.batch_shape, height, width)
    if not isinstance(distribution, AutoregressiveSequence):
        raise UserError(f"data of a {type(distribution).__name__} are not drawn one number after the other.")
    event, device = distribution.event_shape, distribution.z.device
    lengths = torch.full(distribution.batch_shape, event[0]) if distribution.lengths is None else distribution.lengths
    inside = torch.arange(event[0], device=device) < (lengths.to(device) // 2)[..., None]
    return inside.reshape(*inside.shape, *[1] * (len(event) - 1)).expand(*distribution.batch_shape, *event)


def _log_first_half(distribution: Any, x: Tensor) -> Tensor:
    """Log-probability of the first half of data (B, *shape), (B,) nats in float64."""
    keep = _first_half(distribution)
    if isinstance(distribution, AutoregressiveImage):
        return (distribution.pixel_log_prob(x).double() * keep).flatten(1).sum(1)
    return torch.where(keep.flatten(1), distribution.terms(x).double(), 0.0).sum(1)


def is_told(vae: VAE, spec: Spec, *, condition_given: bool = False) -> bool:
    """Whether a likelihood must be told what only data have beside x, such as lengths or numbers, or can be."""
    condition = condition_of(spec)
    of_numbers = condition is not None and not condition.classes and not condition_given
    return bool(required(vae.model.likelihood, 1)) or hasattr(spec, "beside") or of_numbers


def extras_of(split: Split, count: int) -> Extras:
    """What goes with the first `count` data of a split, over and over if it has fewer; nothing is missing of a draw."""
    extras = dict(split.take(torch.arange(count) % len(split)).extras) if split.extras else {}
    if "mask" in extras:
        extras["mask"] = torch.ones_like(extras["mask"])
    return extras


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


def _sample(vae: VAE, z_bnd: Tensor, extras: Extras, temperature: float = 1.0) -> Tensor:
    distribution: Any = decoder(vae, z_bnd, extras)
    if temperature == 1:
        drawn: Tensor = distribution.sample()
        return drawn
    if not isinstance(distribution, (AutoregressiveImage, AutoregressiveSequence)):
        raise UserError(f"data of a {type(distribution).__name__} have no temperature; leave it out.")
    return distribution.sample(temperature=temperature)


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
