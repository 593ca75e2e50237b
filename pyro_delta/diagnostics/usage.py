"""Are the latents used? The floor, what a wrong z costs, mutual information, and a linear probe; see `told`, too."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.commitment import IN_THE_MEAN
from pyro_delta.data.condition import given_alike
from pyro_delta.data.splits import size_of
from pyro_delta.data.tensors import as_split
from pyro_delta.diagnostics.bounds import Encoding, flat, ignore, standard_error
from pyro_delta.diagnostics.told import contrast
from pyro_delta.diagnostics.trace import UNKNOWN_DENSITY, batches, device_of, evaluating, posteriors, score
from pyro_delta.families import Guarantee
from pyro_delta.protocol import Advance, Split
from pyro_delta.vae import VAE

PROBE_DATA = 10_000
PAIRWISE_DATA = 1000
"""Of a split, for the mutual information where the posterior is not mean-field: it costs their square."""
DEPENDENT_DATA = 64
"""The same where the guide must run for every pair, since its sites depend on one another."""
LEAST_TOLD = 0.1
"""Nats that z must tell the decoder, with 99 % confidence, to count as used: whatever the rate, it is information."""
ROUNDING = 1e-10
"""Nats: at δ = 0 a posterior equal to the prior may come out a rounding error below zero."""


FEWEST_JUDGED = 6
"""Data whose mean is told with an error that is to be trusted."""


def least_told(numbers: Mapping[str, Any]) -> float:
    """Lower 99 % bound, by Student's t, of what is told in nats, calibrated.

    −∞ of fewer than `FEWEST_JUDGED` data, and where it is told of the numbers that data are conditioned on, too.
    """
    from scipy.stats import t

    if numbers["told_judged"] < FEWEST_JUDGED or numbers.get("told_of_condition_too"):
        return -math.inf

    quantile = float(t.ppf(0.99, numbers["told_judged"] - 1))
    return numbers["told_calibrated_nats"] - quantile * numbers["told_calibrated_nats_se"]


def floor_holds(encoding: Encoding, delta: float | None, guarantee: Guarantee | None = None) -> bool | None:
    """Whether every datum, or their mean if no more is guaranteed, has KL ≥ δ(1 − 1e-9); None without a closed form.

    δ is that of each datum where data have lengths, or priors of their own.
    """
    if delta is None or not encoding.closed_form:
        return None
    rate = encoding.rate.mean() if guarantee == IN_THE_MEAN else encoding.rate
    least = torch.tensor(delta, dtype=torch.float64) if encoding.delta is None else encoding.delta
    return bool((rate >= least * (1 - 1e-9) - ROUNDING).all())


@torch.no_grad()
def shuffled_gap(
    vae: VAE,
    data: Any,
    encoding: Encoding,
    *,
    batch: int = 100,
    seed: int = 0,
    advance: Advance = ignore,
) -> Tensor:
    """−log p(x_i | z_j) + log p(x_i | z_i) of every datum i with the latents of another one j, (N,) nats.

    How far a wrong z misleads the decoder, which says whether it hears z at all. It is not information: it may well
    exceed the KL. Where data have a class or a length that is given, the other one is of the same.

    Args:
        vae: model and guide.
        data: of which `encoding` is.
        encoding: latents and distortions.
        batch: as it was for `encode`, so that a decoder which ignores z gives exactly 0.
        seed: of the shuffle.
        advance: called with the number of data just done.
    """
    order = partners(len(encoding.rate), seed, given_alike(as_split(data)))
    parts, start, device = [], 0, device_of(vae)
    with evaluating(vae, seed):
        for x in batches(data, batch, vae):
            other = order[start : start + size_of(x)]
            z = {name: value[other].to(device) for name, value in encoding.z.items()}
            parts.append(-score(vae, x, z).double().cpu())
            start += size_of(x)
            advance(size_of(x))
    return torch.cat(parts) - encoding.distortion


def partners(count: int, seed: int, classes: Tensor | None = None) -> Tensor:
    """Another datum for every datum, each once: a random order, rolled by a random shift. int64 (count,).

    With classes (count,) it is one of the same, or the datum itself where it is the only one.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    partner = np.empty(count, dtype=np.int64)
    of_order = np.zeros(count) if classes is None else classes.numpy()[order]
    for of in np.unique(of_order):
        same = order[of_order == of]
        partner[same] = np.roll(same, rng.integers(1, len(same)) if len(same) > 1 else 0)
    return torch.from_numpy(partner)


def information(vae: VAE, data: Split, encoding: Encoding) -> dict[str, float | None]:
    """I(z; x) in nats under the aggregate posterior of the data, its standard error, and the most it could show, ln N.

    Where data have a class or a length c that is given, I(z; x | c), at most the mean of the ln N of those alike. Of
    all data where the posterior is mean-field; of the first `PAIRWISE_DATA`, or `DEPENDENT_DATA`, where it is not.
    None where data have different latents, by masks, or a posterior's density is known of its own draws alone.
    """
    found: tuple[float, float] | None = None
    count = len(data)
    if encoding.mean_field and not encoding.masked:
        found = mutual_information(encoding, classes=given_alike(data))
    elif not encoding.masked:
        count = min(count, PAIRWISE_DATA if encoding.apart else DEPENDENT_DATA)
        z = {name: value[:count] for name, value in encoding.z.items()}
        with suppress(*UNKNOWN_DENSITY):
            found = pairwise_mutual_information(vae, data.take(slice(count)), z, apart=encoding.apart)
    alike = given_alike(data.take(slice(count)))
    cap = math.log(count) if alike is None else _log_counts(alike, count).mean().item()
    return {
        "mutual_information_nats": None if found is None else found[0],
        "mutual_information_nats_se": None if found is None else found[1],
        "mutual_information_cap_nats": None if found is None else cap,
    }


def _log_counts(classes: Tensor | None, count: int) -> Tensor:
    """Log of the number of data of each datum's class, or of all, (count,)."""
    if classes is None:
        return torch.full((count,), math.log(count), dtype=torch.float64)
    _, kind, sizes = classes.unique(return_inverse=True, return_counts=True)
    return sizes.double().log()[kind]


def mutual_information(encoding: Encoding, chunk: int = 256, *, classes: Tensor | None = None) -> tuple[float, float]:
    """I(z; x) in nats under the aggregate posterior of these N data: mean of log q(z_i|x_i) − log 1/N Σ_j q(z_i|x_j).

    One sample z_i of each datum; at most ln N. Costs O(N²·n·d), in float64.

    Args:
        encoding: of the N data; q is Normal and independent over coordinates.
        chunk: rows of the N×N matrix of log densities held at a time.
        classes: (N,), within which j runs.

    Returns:
        The information, and its standard error over the data, as that of `pyro_delta.diagnostics.told.contrast`.
    """
    z_bk, mean_bk, scale_bk = (flat(part).double() for part in (encoding.z, encoding.mean, encoding.scale))
    precision_bk = scale_bk.pow(-2)
    # log N(z; μ, σ) summed over k = −½ z²·σ⁻² + z·(μσ⁻²) + what depends on j alone; what depends on i alone cancels.
    linear_bk = mean_bk * precision_bk
    constant_b = -0.5 * (mean_bk * linear_bk).sum(1) - scale_bk.log().sum(1)
    terms_b = torch.zeros(len(z_bk), dtype=torch.float64)
    as_partner_b, log_counts_b = torch.zeros_like(terms_b), _log_counts(classes, len(z_bk))
    for start in range(0, len(z_bk), chunk):
        z = z_bk[start : start + chunk]
        log_q = (-0.5 * z.square()) @ precision_bk.T + z @ linear_bk.T + constant_b
        if classes is not None:
            log_q = log_q.masked_fill(classes[start : start + chunk, None] != classes, -math.inf)
        terms_b[start : start + chunk] = log_q.diagonal(start) - log_q.logsumexp(1)
        weights = log_q.softmax(1)
        as_partner_b += weights.sum(0)
        as_partner_b[start : start + chunk] -= weights.diagonal(start)
    return (terms_b + log_counts_b).mean().item(), standard_error(terms_b + log_counts_b - as_partner_b)


@torch.no_grad()
def pairwise_mutual_information(
    vae: VAE, data: Any, z: dict[str, Tensor], *, apart: bool = True, batch: int = 50
) -> tuple[float, float]:
    """`mutual_information` for a posterior of any family, by the density of every sample under every posterior.

    Args:
        vae: of which the guide is used.
        data: N data.
        z: samples of them, by site, (N, …).
        apart: whether sites do not depend on one another; if they do, the guide runs for every pair.
        batch: posteriors at a time.
    """
    columns, device = [], device_of(vae)
    samples = {name: value.to(device) for name, value in z.items()}
    count = len(next(iter(samples.values())))
    with evaluating(vae, 0):
        for x in batches(data, batch, vae):
            if apart:
                of_site = [drawn.log_prob(samples[name]) for name, drawn in posteriors(vae, x).items()]
                columns.append(torch.stack(of_site).sum(0).double())
            else:
                rows = [
                    sum(drawn.log_q for drawn in posteriors(vae, x, _same_for_all(samples, i, size_of(x))).values())
                    for i in range(count)
                ]
                columns.append(torch.stack(rows).double())  # type: ignore[arg-type]
    critic = torch.cat(columns, 1).cpu()
    if (classes := given_alike(as_split(data))) is None:
        return contrast([critic])
    # The sum over a class in the place of one over all, and its mean by the number of the class.
    told, error = contrast([critic.masked_fill(classes.unsqueeze(1) != classes, -math.inf)])
    return told + (_log_counts(classes, count).mean().item() - math.log(count)), error


def _same_for_all(samples: dict[str, Tensor], i: int, count: int) -> dict[str, Tensor]:
    return {name: value[i].expand(count, *value.shape[1:]) for name, value in samples.items()}


def sample_latents(vae: VAE, data: Any, *, batch: int = 100, seed: int = 0) -> Tensor:
    """One posterior sample of each datum, on the CPU: (N, n, d), or (N, K), all sites in a row, of several ones."""
    parts: list[dict[str, Tensor]] = []
    with evaluating(vae, seed), torch.no_grad():
        for x in batches(data, batch, vae):
            parts.append({name: drawn.z.cpu() for name, drawn in posteriors(vae, x).items()})
    if len(parts[0]) > 1:
        return torch.cat([flat(part) for part in parts])
    return torch.cat([next(iter(part.values())) for part in parts])


def taken_for(z_fit: Tensor, labels_fit: Tensor, z: Tensor) -> Tensor | None:
    """Labels (N,) that a logistic regression on standardised latents gives; None with one class or infinite values."""
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
    return torch.from_numpy(probe.predict(z.double().flatten(1).numpy()))


def probe_accuracy(z_fit: Tensor, labels_fit: Tensor, z: Tensor, labels: Tensor) -> float | None:
    """Part of the labels (N,) of z that `taken_for` finds; None where it finds none."""
    found = taken_for(z_fit, labels_fit, z)
    return None if found is None else (found == labels).double().mean().item()


def probe(vae: VAE, data: Split, encoding: Encoding, fit: Split | None, seed: int) -> dict[str, float | None]:
    """Accuracy of a linear probe on samples of z, its standard error, and what guessing gives; None without labels.

    Chance is the accuracy of always saying the commonest class of those that the probe is fitted to.

    Args:
        vae: model and guide.
        data: of which `encoding` is.
        encoding: of `data`.
        fit: training data that the probe is fitted to; None to fit it to the first half of `data` and judge the rest.
        seed: of the samples.
    """
    z, labels = flat(encoding.z), data.labels
    found: dict[str, float | None] = {"probe_accuracy": None, "probe_accuracy_se": None, "probe_chance": None}
    if fit is None:
        half = min(PROBE_DATA, len(data) // 2)
        fit, z, labels = data.take(slice(half)), z[half:], None if labels is None else labels[half:]
    first = fit.take(slice(PROBE_DATA))
    if labels is None or first.labels is None:
        return found
    accuracy = probe_accuracy(sample_latents(vae, first, seed=seed + 1), first.labels, z, labels)
    if accuracy is None:
        return found
    error = math.sqrt(accuracy * (1 - accuracy) / len(labels))
    chance = (labels == first.labels.mode().values).double().mean().item()
    return {"probe_accuracy": accuracy, "probe_accuracy_se": error, "probe_chance": chance}
