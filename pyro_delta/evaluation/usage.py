"""Are the latents used? The floor, the cost of another image's latents, mutual information, and a linear probe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.build import Programs
from pyro_delta.data import ImageData
from pyro_delta.errors import UserError
from pyro_delta.evaluation.bound import (
    Encoding,
    batches,
    delta_of,
    encode,
    evaluating,
    ignore,
    standard_error,
    summarise,
)

PROBE_IMAGES = 10_000
PAIRWISE_IMAGES = 1000
"""Of the split, for the mutual information where the posterior is not mean-field: it costs their square."""
QUANTILE_99 = 2.326
"""One-sided 99 % quantile of the standard normal."""
LEAST_GAP = 0.1
"""Nats that the gap must exceed, and …"""
LEAST_GAP_OF_RATE = 0.05
"""… the part of the mean rate."""
ROUNDING = 1e-10
"""Nats: at δ = 0 a posterior equal to the prior may come out a rounding error below zero."""


def check(
    programs: Programs,
    data: ImageData,
    *,
    split: str = "test",
    seed: int = 0,
    advance: Callable[[int], None] = ignore,
) -> dict[str, Any]:
    """Whether the KL keeps above δ on every image, and whether the latents are used.

    Args:
        programs: model and guide.
        data: images.
        split: train, validation or test.
        seed: of posterior samples and of the shuffle.
        advance: called with the number of images just done; it sees the split twice.

    Returns:
        The keys of `pyro-delta check --json`. `floor_holds` is None where δ or the KL has no closed form.
    """
    part = data.split(split)
    if len(part) < 2:
        raise UserError(f"the {split} split has {len(part)} image; to shuffle latents takes 2 or more.")
    encoding = encode(programs, part.images, seed=seed, advance=advance)
    numbers: dict[str, Any] = dict(summarise(encoding, data.spec.dims, delta_of(programs, part.images)))
    gap = shuffled_gap(programs, part.images, encoding, seed=seed, advance=advance)
    numbers["floor_holds"] = floor_holds(encoding, numbers["delta_nats"])
    numbers["shuffled_gap_nats"], numbers["shuffled_gap_se"] = gap.mean().item(), standard_error(gap)
    if encoding.mean_field:
        numbers["mutual_information_nats"], count = mutual_information(encoding), len(part)
    else:
        count = min(len(part), PAIRWISE_IMAGES)
        numbers["mutual_information_nats"] = pairwise_mutual_information(programs, part.images[:count], encoding.z)
    numbers["mutual_information_cap_nats"] = math.log(count)
    numbers["probe_accuracy"] = _probe(programs, data, split, encoding, seed)
    numbers["latents_used"] = least_gap(numbers) > needed_gap(numbers)
    return numbers


def failure(numbers: dict[str, Any]) -> str | None:
    """Why a `check` fails, in a sentence, or None if it passes."""
    reasons = []
    if numbers["floor_holds"] is None:
        reasons.append("the KL or δ has no closed form, so the floor cannot be certified")
    elif not numbers["floor_holds"]:
        reasons.append(
            f"the floor is broken: an image has KL {numbers['rate_nats_min']:.6g} nats, "
            f"below δ = {numbers['delta_nats']:.6g}"
        )
    if not numbers["latents_used"]:
        reasons.append(
            f"the latents are not used: another image's latents cost at least {least_gap(numbers):.3g} nats "
            f"(99 % bound), not more than {needed_gap(numbers):.3g}"
        )
    return f"check failed: {'; and '.join(reasons)}." if reasons else None


def least_gap(numbers: dict[str, Any]) -> float:
    """Lower 99 % bound of the shuffled gap in nats."""
    return numbers["shuffled_gap_nats"] - QUANTILE_99 * numbers["shuffled_gap_se"]


def needed_gap(numbers: dict[str, Any]) -> float:
    """The gap in nats above which latents count as used."""
    return max(LEAST_GAP, LEAST_GAP_OF_RATE * numbers["rate_nats_mean"])


def floor_holds(encoding: Encoding, delta: float | None) -> bool | None:
    """Whether every image has KL ≥ δ(1 − 1e-9); None without a closed form."""
    if delta is None or not encoding.closed_form:
        return None
    return bool((encoding.rate >= delta * (1 - 1e-9) - ROUNDING).all())


@torch.no_grad()
def shuffled_gap(
    programs: Programs,
    images: Tensor,
    encoding: Encoding,
    *,
    batch: int = 100,
    seed: int = 0,
    advance: Callable[[int], None] = ignore,
) -> Tensor:
    """−log p(x_i | z_j) + log p(x_i | z_i) of every image i with the latents of another one j, (N,) nats.

    Args:
        programs: model and guide.
        images: (N, C, H, W) uint8 of which `encoding` is.
        encoding: latents and distortions.
        batch: as it was for `encode`, so that a decoder which ignores z gives exactly 0.
        seed: of the shuffle.
        advance: called with the number of images just done.
    """
    z_bnd = encoding.z[partners(len(images), seed)]
    parts = []
    with evaluating(programs, seed):
        for x, z in zip(batches(images, batch, programs), z_bnd.split(batch), strict=True):
            parts.append(-programs.model.likelihood(z.to(x.device)).log_prob(x).double().cpu())
            advance(len(x))
    return torch.cat(parts) - encoding.distortion


def partners(count: int, seed: int) -> Tensor:
    """Another image for every image, each once: a random order, rolled by a random shift. int64 (count,)."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, rng.integers(1, count))
    return torch.from_numpy(partner)


def mutual_information(encoding: Encoding, chunk: int = 256) -> float:
    """I(z; x) in nats under the aggregate posterior of these N images: mean of log q(z_i|x_i) − log 1/N Σ_j q(z_i|x_j).

    One sample z_i of each image; at most ln N. Costs O(N²·n·d), in float64.

    Args:
        encoding: of the N images; q is Normal and independent over coordinates.
        chunk: rows of the N×N matrix of log densities held at a time.
    """
    z_bk, mean_bk, scale_bk = (part.double().flatten(1) for part in (encoding.z, encoding.mean, encoding.scale))
    precision_bk = scale_bk.pow(-2)
    # log N(z; μ, σ) summed over k = −½ z²·σ⁻² + z·(μσ⁻²) + what depends on j alone; what depends on i alone cancels.
    linear_bk = mean_bk * precision_bk
    constant_b = -0.5 * (mean_bk * linear_bk).sum(1) - scale_bk.log().sum(1)
    total = 0.0
    for start in range(0, len(z_bk), chunk):
        z = z_bk[start : start + chunk]
        log_q = (-0.5 * z.square()) @ precision_bk.T + z @ linear_bk.T + constant_b
        total += (log_q.diagonal(start) - log_q.logsumexp(1)).sum().item()
    return total / len(z_bk) + math.log(len(z_bk))


@torch.no_grad()
def pairwise_mutual_information(programs: Programs, images: Tensor, z: Tensor, batch: int = 50) -> float:
    """`mutual_information` for a posterior of any family, by the density of every sample under every posterior.

    Args:
        programs: of which the guide is used.
        images: (N, C, H, W) uint8.
        z: (N or more, n, d), samples of the first N.
        batch: posteriors at a time.
    """
    count, parts = len(images), []
    with evaluating(programs, 0):
        z_i1nd = z[:count, None].to(next(programs.parameters()).device)
        for x in batches(images, batch, programs):
            parts.append(programs.guide.posterior(x).log_prob(z_i1nd).double().cpu())
    log_q = torch.cat(parts, dim=1)
    return (log_q.diagonal() - log_q.logsumexp(1)).mean().item() + math.log(count)


@torch.no_grad()
def sample_latents(programs: Programs, images: Tensor, *, batch: int = 100, seed: int = 0) -> Tensor:
    """(N, n, d) one posterior sample of each image, on the CPU."""
    with evaluating(programs, seed):
        return torch.cat([programs.guide.posterior(x).rsample().cpu() for x in batches(images, batch, programs)])


def probe_accuracy(z_fit: Tensor, labels_fit: Tensor, z: Tensor, labels: Tensor) -> float | None:
    """Accuracy of a logistic regression from standardised latents to labels; None with one class or infinite values."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(labels_fit.unique()) < 2 or not (z_fit.isfinite().all() and z.isfinite().all()):
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 rounds are part of the measure
        probe.fit(z_fit.double().flatten(1).numpy(), labels_fit.numpy())
    return float(probe.score(z.double().flatten(1).numpy(), labels.numpy()))


def _probe(programs: Programs, data: ImageData, split: str, encoding: Encoding, seed: int) -> float | None:
    """Fitted to train images; on the train split itself, to its first half, and judged on the rest."""
    labels = data.split(split).labels
    if data.train.labels is None or labels is None:
        return None
    count = min(PROBE_IMAGES, len(data.train) // 2 if split == "train" else len(data.train))
    skipped = count if split == "train" else 0
    z_fit = sample_latents(programs, data.train.images[:count], seed=seed + 1)
    return probe_accuracy(z_fit, data.train.labels[:count], encoding.z[skipped:], labels[skipped:])
