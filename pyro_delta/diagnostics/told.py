"""What z tells the decoder of x: a contrastive bound on the mutual information, with the likelihood as its critic.

The cost of another datum's z says how far a wrong z misleads the decoder; it may exceed the KL, and is not information.
What is told is: of M posterior samples z_j, each of another datum, how well does the decoder find the right one?

    told = mean_i [ log p(x_i | z_i) − log 1/M Σ_j p(x_i | z_j) ]

With pairs (x_i, z_i) drawn independently, and any positive function of x and z in the place of p(x | z), its mean is at
most I(x; z) [1], and so at most KL(q ‖ p); it cannot exceed ln M either. A decoder that takes z for more reliable than
it is loses much of it. So there is a second one, with p(x | z)^τ: τ in (0, 1] is chosen on one half of the data, where
the bound is concave in τ, and the other half judges, so that it is a bound, too. τ itself says how overconfident the
decoder is: 1 if not at all, near 0 if what it makes of z is worth nothing on these data.

Where something is given beside x, a class c that data are conditioned on or their length, all data of a group are alike
in it, and the bound is one on I(x; z | c). Where they are conditioned on numbers, hardly any two are alike: what is
told is then of x and of these together, and no evidence of the former.

References:
    1. A. van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, §2.3; B. Poole et
       al., "On Variational Bounds of Mutual Information", ICML 2019, eq. 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.condition import given_alike, of_numbers
from pyro_delta.data.splits import size_of
from pyro_delta.diagnostics.bounds import Encoding, ignore, standard_error
from pyro_delta.diagnostics.trace import batches, device_of, evaluating, score
from pyro_delta.errors import UserError
from pyro_delta.protocol import Advance, Split
from pyro_delta.vae import VAE

TOLD_SAMPLES = 64
"""M, unless there are too few data: the bound can show at most ln 64 = 4.16 nats."""
TOLD_IMAGES = 256
"""Data that it is of: with M = 64, 16 384 passes of the decoder."""
ROWS = 128
"""Data that pass the decoder together."""
STREAM = 11
"""Keeps the choice of groups apart from what else the seed decides."""


def group_sizes(count: int, samples: int = TOLD_SAMPLES, images: int = TOLD_IMAGES) -> tuple[int, int]:
    """M and the number of groups of M data: as many as `images` holds, two at least, and no datum in two of them.

    Raises:
        UserError: if `samples` is below 2, or there are fewer than four data.
    """
    if samples < 2:
        raise UserError(f"told_samples={samples} compares z with nothing; give 2 or more.")
    if count < 4:
        raise UserError(
            f"there {'is 1 datum' if count == 1 else f'are {count} data'}; to compare latents takes 4, so give more."
        )
    size = min(samples, count // 2)
    return size, min(count // size, max(2, images // size))


def grouped(data: Split, samples: int, images: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Random data in groups: those that τ is chosen by, and those that judge. No datum is in two.

    All of M data, an equal number to either end; or, where data have something beside x that is given, of data alike in
    it: each class is halved, and each half cut into as few equal groups of at most `samples` as hold all of it. A datum
    alone in its half is a group of itself, by which nothing can be told. There are as many data as take no more passes
    of the decoder than without classes.

    Raises:
        UserError: as `group_sizes`.
    """
    size, groups = group_sizes(len(data), samples, images)
    order = torch.from_numpy(np.random.default_rng([seed, STREAM]).permutation(len(data)))
    if (alike := given_alike(data)) is None:
        parts = list(order[: groups * size].reshape(groups, size))
        return parts[: groups // 2], parts[groups // 2 :]
    kinds, few, many = alike[order], 4, len(data) + 1
    found = _halved(order[:few], kinds[:few], samples)
    while many - few > 1:  # the most data that take no more passes
        count = (few + many) // 2
        tried = _halved(order[:count], kinds[:count], samples)
        if sum(len(part) ** 2 for half in tried for part in half) <= groups * size * size:
            few, found = count, tried
        else:
            many = count
    return found


def _halved(order: Tensor, kinds: Tensor, samples: int) -> tuple[list[Tensor], list[Tensor]]:
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number, kind in enumerate(kinds.unique()):
        members = order[kinds == kind]
        middle = (len(members) + number % 2) // 2  # what is left over goes to either half in turn
        for half, part in zip(halves, (members[:middle], members[middle:]), strict=True):
            half.extend(part.tensor_split(-(-len(part) // samples)) if len(part) else [])
    return halves


@torch.no_grad()
def told(
    vae: VAE,
    data: Split,
    encoding: Encoding,
    *,
    samples: int = TOLD_SAMPLES,
    images: int = TOLD_IMAGES,
    seed: int = 0,
    advance: Advance = ignore,
) -> dict[str, Any]:
    """What z tells the decoder in nats, as it is and calibrated, each with its standard error.

    Random data are put into groups of M, and every datum of a group meets every z of it. So no sample serves two
    groups, and those that a datum meets are independent of it, as the bound asks.

    Args:
        vae: model and guide.
        data: of which `encoding` is.
        encoding: one posterior sample of each datum.
        samples: M, the datum's own sample among them; at most half the data.
        images: data, in as many groups as they fill, two at least.
        seed: of the groups.
        advance: called with the number of decoder passes just made.

    Raises:
        UserError: as `grouped`.
    """
    halves = grouped(data, samples, images, seed)
    chosen, judged = ([_log_likelihoods(vae, data, encoding, part, advance) for part in half] for half in halves)
    tau = calibration(chosen)
    plain, calibrated = contrast(chosen + judged), contrast([tempered(critic, tau) for critic in judged])
    return {
        "told_nats": plain[0],
        "told_nats_se": plain[1],
        "told_calibrated_nats": calibrated[0],
        "told_calibrated_nats_se": calibrated[1],
        "told_tau": tau,
        "told_cap_nats": _cap([len(critic) for critic in judged]),
        "told_samples": max(map(len, chosen + judged)),
        "told_images": sum(map(len, chosen + judged)),
        "told_judged": sum(map(len, judged)),
    } | ({"told_of_condition_too": True} if of_numbers(data) else {})


def _cap(sizes: list[int]) -> float:
    """The most that groups can show, the mean over data of the ln M of their groups."""
    if len(set(sizes)) == 1:
        return math.log(sizes[0])
    return sum(size * math.log(size) for size in sizes) / sum(sizes)


def _log_likelihoods(vae: VAE, data: Split, encoding: Encoding, group: Tensor, advance: Advance) -> Tensor:
    """Log p(x_i | z_j) − log p(x_i | z_i) of all pairs of a group of M data, (M, M) nats in float64.

    So a decoder that does not hear z gives exactly 0.
    """
    size, device = len(group), device_of(vae)
    found, start = torch.empty(size, size, dtype=torch.float64), 0
    with evaluating(vae, 0):
        for x in batches(data.take(group), ROWS, vae):
            rows = torch.arange(start, start + size_of(x))
            # All meet their j-th partner together: the same data in the same places, rounded alike whatever the z.
            for shift in range(size):
                columns = (rows + shift) % size
                z = {name: value[group[columns]].to(device) for name, value in encoding.z.items()}
                found[rows, columns] = score(vae, x, z).double().cpu()
                advance(len(rows))
            start += size_of(x)
    return found - found.diagonal().unsqueeze(1)


def tempered(critic: Tensor, tau: float) -> Tensor:
    """The critic p^τ of log-ratios, of which some may be −∞: a z that rules x out."""
    return tau * critic.clamp(min=-1e30)


def contrast(critics: Sequence[Tensor]) -> tuple[float, float]:
    """The contrastive bound of log-critics (M, M), datum i by sample j, of all groups, and its standard error.

    A datum enters as itself and as a partner of the others. Its influence is its own term, less the weight that it has
    in the terms of the others; these are uncorrelated to first order, where the terms are not.
    """
    terms, influences = [], []
    for critic in critics:
        own, weights = critic.diagonal(), critic.softmax(1)
        terms.append(own - logmeanexp(critic))
        influences.append(terms[-1] - (weights.sum(0) - weights.diagonal()))
    return torch.cat(terms).mean().item() + 0.0, standard_error(torch.cat(influences))


def logmeanexp(values: Tensor) -> Tensor:
    """Log of the mean of exp over the last axis; of equal values exactly their value."""
    largest = values.amax(-1, keepdim=True)
    return largest.squeeze(-1) + (values - largest).exp().mean(-1).log()


def calibration(critics: Sequence[Tensor]) -> float:
    """τ in (0, 1] that maximises the bound of log-ratios (M, M) of groups, whose own ones are 0; 1 without any.

    The bound is concave in τ: its slope is that of −log 1/M Σ_j exp(τ c_ij), which falls.
    """
    finite = [critic.clamp(min=-1e30) for critic in critics if len(critic) > 1]

    def slope(tau: float) -> float:
        return -sum(((tau * critic).softmax(-1) * critic).sum().item() for critic in finite)

    if not slope(1.0) < 0:  # or not finite
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return high
