"""Rate, distortion and the bounds they make, datum by datum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from typing import Any

import torch
from torch import Tensor

from pyro_delta import ranks
from pyro_delta.commitment import BY_LENGTH, BY_PRIOR, Commitment
from pyro_delta.data.tensors import as_split
from pyro_delta.diagnostics.importance import (
    FEWEST_FOR_K_HAT,
    K_HAT_LIMIT,
    importance_bound,
    importance_weights,
    k_hat,
)
from pyro_delta.diagnostics.trace import (
    ClosedForm,
    at_once,
    batches,
    committed,
    deltas,
    depend_on_one_another,
    device_of,
    evaluating,
    posteriors,
    rate_of_dimensions,
    trace,
)
from pyro_delta.distributions.any_gaussian import title_of
from pyro_delta.distributions.mean_field import normal_parameters
from pyro_delta.protocol import Advance, Batch, Spec, Split
from pyro_delta.vae import VAE
from pyro_delta.validation import at_least

LN2 = math.log(2.0)
WORD = "word"
"""The measure of which perplexities are told: 2 to the bits of one."""

Line = dict[str, Any]


def ignore(data: int) -> None:
    """Does nothing with the number of data just done."""


@dataclass(frozen=True)
class Encoding:
    """What evaluation keeps of N data, on the CPU.

    Attributes:
        rate: (N,) KL(q(z|x) ‖ p(z)) in nats: closed form in float64, or log q − log p of the sample where
            there is none.
        closed_form: whether `rate` is the closed form.
        distortion: (N,) −log p(x | z) in nats for the sampled z, float64.
        mean, scale: of the posterior, by site, (N, …); a site whose posterior has no moments is left out.
        z: one sample each, by site, (N, …).
        mean_field: whether posteriors are Normal, independent over coordinates, and sites independent of one another,
            so that mean and scale are all.
        apart: whether sites do not depend on one another, in any batch.
        families: what the posterior of each site is, by name, in any batch; one where it is the same for all data.
        scored: numbers of a datum that were scored, a mean over the data.
        masked: whether some latents may not count, of some data.
        delta: (N,) what each datum commits in nats, float64, where that is known of each, and they have lengths or
            priors of their own.
        rate_per_dimension: mean KL of each latent dimension (the last axis of the event), (d,) nats; None where the
            rate has no such parts, or there are several sites.
    """

    rate: Tensor
    closed_form: bool
    distortion: Tensor
    mean: dict[str, Tensor]
    scale: dict[str, Tensor]
    z: dict[str, Tensor]
    mean_field: bool
    apart: bool
    scored: float
    masked: bool = False
    delta: Tensor | None = None
    rate_per_dimension: Tensor | None = None
    families: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def take(self, order: Tensor) -> Encoding:
        """The same of the data at indices (M,), in that order; the rate of each dimension stays that of all."""
        return replace(
            self,
            rate=self.rate[order],
            distortion=self.distortion[order],
            mean={name: value[order] for name, value in self.mean.items()},
            scale={name: value[order] for name, value in self.scale.items()},
            z={name: value[order] for name, value in self.z.items()},
            delta=None if self.delta is None else self.delta[order],
        )


def flat(values: dict[str, Tensor]) -> Tensor:
    """All sites' coordinates in a row, (N, K)."""
    return torch.cat([value.reshape(len(value), -1) for value in values.values()], dim=1)


@dataclass(frozen=True)
class _Seen:
    """What `encode` keeps of a batch of B data; names as those of `Encoding`."""

    rate: Tensor
    closed: bool
    distortion: Tensor
    dimensions: Tensor | None
    scored: float
    apart: bool
    masked: bool
    mean_field: bool
    families: dict[str, str]
    by_length: bool
    """whether a prior has the lengths of the data"""
    delta: Tensor | None
    parts: dict[str, dict[str, Tensor]]


@torch.no_grad()
def encode(
    vae: VAE,
    data: Any,
    *,
    batch: int = 100,
    seed: int = 0,
    advance: Advance = ignore,
    shared: bool = False,
) -> Encoding:
    """Rate and distortion of every datum with one posterior sample, in evaluation mode.

    Data with lengths are looked at from the shortest to the longest, so that those of a batch are about as long as one
    another; what is found is in the order of the data.

    Args:
        vae: model and guide.
        data: a split, a tensor (N, …), or anything that `pyro_delta.data.from_tensors` takes.
        batch: data at a time. Rates do not depend on it, nor does the distortion of a given z; but torch draws noise in
            runs of 16 numbers, so that z may be another sample where a datum's latents are no multiple of 16.
        seed: of the posterior samples.
        advance: called with the number of data just done.
        shared: whether all ranks call this, and each does a part of the data; all get the same, as one alone would.
    """
    split = as_split(data)
    lengths = split.extras.get("lengths")
    order = None if lengths is None or lengths.dim() != 1 else torch.argsort(lengths.cpu(), stable=True)
    split = split if order is None else split.take(order)
    with evaluating(vae, seed):
        found = _of_all_ranks(vae, split, batch, _Encoder(vae, advance)) if shared and ranks.count() > 1 else None
        encoding = _joined(found or list(map(_Encoder(vae, advance), batches(split, batch, vae))))
    return encoding if order is None else encoding.take(torch.argsort(order))


class _Encoder:
    """Runs the programs on a batch; sites that depended on one another in a batch do so in those after it."""

    def __init__(self, vae: VAE, advance: Advance) -> None:
        self.vae, self.advance = vae, advance
        self.apart, self.closed_form = True, ClosedForm()

    def __call__(self, x: Batch) -> _Seen:
        """What is kept of it."""
        seen = trace(self.vae, x)
        self.apart = self.apart and not depend_on_one_another(self.vae, x, seen)
        rate = self.closed_form(self.vae, x, seen) if self.apart else None
        dimensions, latents = rate_of_dimensions(seen), seen.latents.items()
        parts: dict[str, dict[str, Tensor]] = {"mean": {}, "scale": {}, "z": {}}
        for name, latent in latents:
            for what, value in {"z": latent.z, **latent.moments()}.items():
                parts[what][name] = value.cpu()
        self.advance(len(seen.log_px))
        return _Seen(
            rate=((seen.log_q - seen.log_p).double() if rate is None else rate).cpu(),
            closed=rate is not None,
            distortion=-seen.log_px.double().cpu(),
            dimensions=None if dimensions is None else dimensions.cpu(),
            scored=seen.scored * len(seen.log_px),
            apart=self.apart,
            masked=any(latent.masked for _, latent in latents),
            mean_field=self.apart and all(normal_parameters(latent.q) is not None for _, latent in latents),
            families={name: title_of(latent.q) for name, latent in latents},
            by_length=any(getattr(latent.p, "lengths", None) is not None for _, latent in latents),
            delta=deltas(self.vae, seen),
            parts=parts,
        )


def _of_all_ranks(vae: VAE, data: Any, batch: int, encoded: Callable[[Batch], _Seen]) -> list[_Seen] | None:
    """What all ranks have seen, each in a run of batches of its own; None if their noise is not that of one alone.

    Noise goes on from batch to batch. A rank passes over the batches before its own: in the place of each it draws from
    the posterior of the first, which takes as many random numbers for most families. Whether it did is seen at the
    seams: what a rank leaves to draw from must be what the next one began with.
    """
    split, device = as_split(data), device_of(vae)
    before = _noise(device)
    count = math.ceil(len(split) / at_once(vae, batch, len(split)))
    first, last = (count * (ranks.rank() + more) // ranks.count() for more in (0, 1))
    if first:
        drawn = posteriors(vae, next(batches(split, batch, vae)))
        for _ in range(first - 1):
            for latent in drawn.values():
                latent.q()  # type: ignore[operator]
    began = _noise(device)
    mine = [encoded(x) for x in islice(batches(split, batch, vae), first, last)]
    of_all = ranks.gathered((began, _noise(device), mine))
    if all(all(map(torch.equal, left, taken)) for (_, left, _), (taken, _, _) in pairwise(of_all)):
        return list(chain.from_iterable(seen for _, _, seen in of_all))
    torch.set_rng_state(before[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(before[1], device)
    return None


def _noise(device: torch.device) -> list[Tensor]:
    """The random states that programs on a device draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _joined(seen: list[_Seen]) -> Encoding:
    """Batches, one after the other."""
    parts: dict[str, dict[str, list[Tensor]]] = {"mean": {}, "scale": {}, "z": {}}
    families: dict[str, set[str]] = {}
    for one in seen:
        for what, by_name in one.parts.items():
            for name, value in by_name.items():
                parts[what].setdefault(name, []).append(value)
        for name, family in one.families.items():
            families.setdefault(name, set()).add(family)
    mean, scale, z = ({name: torch.cat(part) for name, part in parts[what].items()} for what in ("mean", "scale", "z"))
    for name in [name for name, values in mean.items() if values.isnan().all() and z[name].isfinite().all()]:
        del mean[name], scale[name]  # a Categorical has none, for one
    rate, closed, per_dimension = torch.cat([one.rate for one in seen]), all(one.closed for one in seen), None
    deltas = [one.delta.cpu() for one in seen if one.delta is not None]
    delta = torch.cat(deltas) if len(deltas) == len(seen) else None
    if delta is not None and not any(one.by_length for one in seen) and bool((delta == delta[0]).all()):
        delta = None  # one prior for all: what they commit together may be more than the prior alone says
    known = [one.dimensions for one in seen if one.dimensions is not None]
    if closed and len(known) == len(seen):
        per_dimension = torch.stack(known).sum(0).cpu() / len(rate)
    return Encoding(
        rate=rate,
        closed_form=closed,
        distortion=torch.cat([one.distortion for one in seen]),
        mean=mean,
        scale=scale,
        z=z,
        mean_field=all(one.mean_field for one in seen),
        apart=all(one.apart for one in seen),
        scored=sum(one.scored for one in seen) / len(rate),
        masked=any(one.masked for one in seen),
        delta=delta,
        rate_per_dimension=per_dimension,
        families={name: frozenset(found) for name, found in families.items()},
    )


def evaluate(
    vae: VAE,
    data: Any,
    *,
    spec: Spec | None = None,
    particles: int = 1,
    seed: int = 0,
    advance: Advance = ignore,
    shared: bool = False,
) -> Line:
    """Bounds, rate and distortion, each mean with its standard error over the data; all are of all the data.

    Args:
        vae: model and guide.
        data: as for `encode`; every datum counts.
        spec: of the data; without it bounds are per number that the model observes.
        particles: K; above 1 the importance-weighted bound is added.
        seed: of the posterior samples.
        advance: called with the number of data just done, first for the ELBO, then for the bound.
        shared: as for `encode`; the importance-weighted bound is made by each rank alike.

    Raises:
        UserError: if `particles` is below 1 or the seed below 0, or the programs cannot be run on the data.
    """
    at_least(1, particles=particles)
    at_least(0, seed=seed)
    split = as_split(data)
    encoding = encode(vae, split, seed=seed, advance=advance, shared=shared)
    unit = Unit.of(spec, encoding.scored)
    known = committed_by_all(committed(vae, split), encoding)
    counts = counted(spec, split, encoding)
    numbers = summarise(encoding, unit, known.nats) | standard_errors(encoding, unit, counts)
    numbers |= per_measure(spec, split, encoding, unit)
    if particles > 1:
        numbers |= importance_line(vae, split, encoding, unit, particles, counts=counts, seed=seed, advance=advance)
    return numbers


def committed_by_all(known: Commitment, encoding: Encoding) -> Commitment:
    """What was read off some data, unless posteriors of others are of another family, or others have other priors."""
    for name, families in encoding.families.items():
        if len(families) > 1:
            which = " and ".join(sorted(families))
            return replace(
                known, nats=None, throughout=None, known_by=f"posteriors of {name!r} are {which}, by batch: no one rate"
            )
    if encoding.delta is None or known.claimed or known.guarantee in (None, BY_LENGTH, BY_PRIOR):
        return known
    if bool((encoding.delta == encoding.delta[0]).all()):
        return known
    return replace(known, nats=encoding.delta.min().item(), guarantee=BY_PRIOR)


def importance_line(
    vae: VAE,
    split: Split,
    encoding: Encoding,
    unit: Unit,
    particles: int,
    *,
    counts: Tensor | None = None,
    weighed: int | None = None,
    seed: int = 0,
    advance: Advance = ignore,
) -> Line:
    """The importance-weighted bound beside −ELBO of the same data, what lies between them datum by datum, and k̂.

    Args:
        vae: model and guide.
        split: data.
        encoding: of them.
        unit: of bounds.
        particles: K.
        counts: as `counted` gives them.
        weighed: data, from the start, that it is of (all if None).
        seed: of the particles.
        advance: called with the number of data just done.
    """
    log_weights = importance_weights(vae, split.take(slice(weighed)), particles, seed=seed, advance=advance)
    bound = importance_bound(log_weights)
    loss = (encoding.rate + encoding.distortion)[: len(bound)]
    if counts is not None:  # those of these data
        counts = counts[: len(bound)]
        scored = counts.mean().item()
        unit = Unit(scored, unit.shift * scored / unit.scored)
    numbers: Line = {
        "iw_bpd": unit.bits(bound.mean().item()),
        "iw_bpd_se": error_per_number(bound, unit, counts),
        "iw_nats": bound.mean().item(),
        "iw_neg_elbo_bpd": unit.bits(loss.mean().item()),
        "iw_gap_nats": (loss - bound).mean().item(),
        "iw_gap_nats_se": standard_error(loss - bound),
        "iw_images": len(bound),
        "particles": particles,
    }
    if particles >= FEWEST_FOR_K_HAT:
        k = k_hat(log_weights)
        numbers |= {"k_hat_median": k.median().item(), "k_hat_bad": (k > K_HAT_LIMIT).double().mean().item()}
    return numbers


@dataclass(frozen=True)
class Unit:
    """How nats of a datum become bits per scored number.

    Attributes:
        scored: numbers of a datum.
        shift: nats of a datum that a stated resolution adds to −log p(x): −scored · ln(resolution).
    """

    scored: float
    shift: float = 0.0

    @classmethod
    def of(cls, spec: Spec | None, scored: float = math.inf) -> Unit:
        """That of a spec, or of `scored` numbers: where there is none, or fewer were scored, such as of short data."""
        if spec is None:
            return cls(scored)
        scored = min(spec.scored, scored)
        return cls(scored, 0.0 if spec.resolution is None else -scored * math.log(spec.resolution))

    @property
    def per_number(self) -> float:
        """Bits per scored number in a nat."""
        return 1 / (self.scored * LN2)

    def bits(self, nats: float) -> float:
        """−log p(x) in nats, or a bound on it, as bits per scored number."""
        return (nats + self.shift) * self.per_number


def summarise(encoding: Encoding, unit: Unit, delta: float | None) -> Line:
    """The numbers that a run is judged by: means over all data, rate and distortion apart.

    Args:
        encoding: of the data.
        unit: of bounds.
        delta: nats that every datum commits; None if they are not known. Where each is known to commit its own, the
            mean is given.
    """
    if delta is not None and encoding.delta is not None:
        # Less the first, so that the mean of what is all the same is that, to the last digit.
        delta = (encoding.delta[0] + (encoding.delta - encoding.delta[0]).mean()).item()
    return line_of(
        encoding.rate.mean().item(),
        encoding.distortion.mean().item(),
        encoding.rate.min().item() if encoding.closed_form else None,  # the least of estimates is no least rate
        active_units(flat(encoding.mean)) if encoding.mean and len(encoding.rate) > 1 else None,
        len(encoding.rate),
        unit,
        delta,
    )


def counted(spec: Spec | None, split: Split, encoding: Encoding) -> Tensor | None:
    """Numbers of each datum that are scored, (N,) in float64, where lengths or masks make them differ."""
    lengths, mask = split.extras.get("lengths"), split.extras.get("mask")
    if spec is None or (lengths is None and mask is None):
        return None
    inside = torch.ones(len(split.x), *spec.shape, dtype=torch.bool)
    if lengths is not None:
        if lengths.dim() != 1:
            return None
        inside &= torch.from_numpy(spec.places()) < lengths.cpu().reshape(-1, *[1] * len(spec.shape))
    if mask is not None:
        if mask.shape != inside.shape:
            return None
        inside &= mask.cpu().bool()
    counts = inside.flatten(1).sum(1).double()
    # Whoever scores what lies behind the end has all data alike.
    return counts if math.isclose(counts.mean().item(), encoding.scored, rel_tol=1e-6) else None


def error_per_number(nats: Tensor, unit: Unit, counts: Tensor | None) -> float:
    """Standard error, over the data, of their nats (N,) in bits per number; of a ratio of sums if counts differ."""
    if counts is not None:
        nats = nats - nats.sum() / counts.sum() * counts
    return standard_error(nats) * unit.per_number


def standard_errors(encoding: Encoding, unit: Unit, counts: Tensor | None = None) -> dict[str, float]:
    """Standard errors, over the data, of the means that `summarise` gives, under `<key>_se`.

    Args:
        encoding: of the data.
        unit: of bounds.
        counts: as `counted` gives them.
    """
    return {
        "neg_elbo_bpd_se": error_per_number(encoding.rate + encoding.distortion, unit, counts),
        "distortion_bpd_se": error_per_number(encoding.distortion, unit, counts),
        "rate_bpd_se": error_per_number(encoding.rate, unit, counts),
        "rate_nats_mean_se": standard_error(encoding.rate),
    }


def per_measure(spec: Spec | None, split: Split, encoding: Encoding, unit: Unit) -> dict[str, float]:
    """−ELBO and rate of all data over all that a spec counts in them, such as words, and perplexities.

    Standard errors are those of a ratio of sums over the data. What a split says is counted too much is taken off.
    """
    measures, surplus = getattr(spec, "measures", None), getattr(split, "surplus", {})
    numbers: dict[str, float] = {}
    for name, counts in ({} if measures is None else measures(split.x)).items():
        count_b = torch.as_tensor(counts, dtype=torch.float64)
        if name in surplus:
            count_b = count_b - surplus[name].cpu()
        if not count_b.any():
            continue  # no word begins in these parts of documents
        loss_b = (encoding.rate + encoding.distortion + unit.shift) / LN2
        bits = (loss_b.sum() / count_b.sum()).item()
        error = standard_error(loss_b - bits * count_b) / count_b.mean().item()
        rate = (encoding.rate.sum() / LN2 / count_b.sum()).item()
        numbers |= {f"bits_per_{name}": bits, f"bits_per_{name}_se": error, f"rate_bits_per_{name}": rate}
        if name == WORD:
            perplexity = torch.tensor(bits, dtype=torch.float64).exp2().item()  # infinite beyond what numbers hold
            numbers |= {"perplexity_per_word": perplexity, "perplexity_per_word_se": perplexity * LN2 * error}
    return numbers


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of values (N,); not a number for a single one, which tells nothing of it."""
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan


def line_of(
    rate: float,
    distortion: float,
    least_rate: float | None,
    active: int | None,
    data: int,
    unit: Unit,
    delta: float | None,
) -> Line:
    """A line of metrics from nats per datum; `_bpd` is bits per scored number."""
    return {
        "neg_elbo_bpd": unit.bits(rate + distortion),
        "distortion_bpd": unit.bits(distortion),
        "rate_bpd": rate * unit.per_number,
        "rate_nats_mean": rate,
        "rate_nats_min": least_rate,
        "delta_nats": delta,
        "active_units": active,
        "n_images": data,
    }


def active_units(mean_bk: Tensor, threshold: float = 0.01) -> int:
    """Latent coordinates whose posterior mean varies over the data, Var > 0.01 [1].

    References:
        1. Y. Burda et al., "Importance Weighted Autoencoders", ICLR 2016, §5.2.
    """
    return int((mean_bk.double().var(0, correction=0) > threshold).sum())
