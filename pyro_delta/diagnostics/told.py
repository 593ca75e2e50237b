"""What z tells the decoder of x: a contrastive bound on the mutual information, with the likelihood as its critic.

The cost of another datum's z says how far a wrong z misleads the decoder; it may exceed the KL, and is not information.
What is told is: of M posterior samples z_j, each of another datum, how well does the decoder find the right one?

    told = mean_i [ log p(x_i | z_i) − log 1/M Σ_j p(x_i | z_j) ]

With pairs (x_i, z_i) drawn independently, and any positive function of x and z in the place of p(x | z), its mean is at
most I(x; z) [1], and so at most KL(q ‖ p); it cannot exceed ln M either. A decoder that takes z for more reliable than
it is loses much of it. So there is a second one, with p(x | z)^τ: τ in (0, 1] is chosen on one half of the data, where
the bound is concave in τ, and the other half judges, so that it is a bound, too. τ itself says how overconfident the
decoder is: 1 if not at all, near 0 if what it makes of z is worth nothing on these data.

Where data are conditioned on a class c, groups are of one class each, and the bound is one on I(x; z | c).

References:
    1. A. van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, §2.3; B. Poole et
       al., "On Variational Bounds of Mutual Information", ICML 2019, eq. 12.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.condition import classes_given
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
        raise UserError(f"there {'is 1 datum' if count == 1 else f'are {count} data'}; to compare latents takes 4.")
    size = min(samples, count // 2)
    return size, min(count // size, max(2, images // size))


def grouped(data: Split, samples: int, images: int, seed: int) -> Tensor:
    """Random data in groups of M, (G, M): of one class each, where they are conditioned on one.

    M is then the largest number up to `samples` with which two groups or more are found that hold `images` data, or
    half of all.

    Raises:
        UserError: as `group_sizes`, or if no two classes have two data.
    """
    size, groups = group_sizes(len(data), samples, images)
    order = torch.from_numpy(np.random.default_rng([seed, STREAM]).permutation(len(data)))
    if (classes := classes_given(data)) is None:
        return order[: groups * size].reshape(groups, size)
    members = [order[classes[order] == of] for of in classes.unique()]
    enough = min(images, len(data) // 2)
    for of_size in range(size, 1, -1):
        found = [part for one in members for part in one[: len(one) // of_size * of_size].reshape(-1, of_size)]
        if len(found) > 1 and (len(found) * of_size >= enough or of_size == 2):
            chosen = torch.from_numpy(np.random.default_rng([seed, STREAM, 1]).permutation(len(found)))
            return torch.stack(found)[chosen[: max(2, images // of_size)]]
    raise UserError(f"{len(data)} data of {len(members)} classes hold no two groups of a class; give more data.")


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
    parts = grouped(data, samples, images, seed)
    groups, size = parts.shape
    critic_gmm = torch.stack([_log_likelihoods(vae, data, encoding, part, advance) for part in parts])
    # Against the own sample's, so that a decoder that does not hear z gives exactly 0.
    critic_gmm = critic_gmm - critic_gmm.diagonal(dim1=1, dim2=2).unsqueeze(2)
    half = groups // 2
    tau = calibration(critic_gmm[:half])
    plain, calibrated = contrast(critic_gmm), contrast(tempered(critic_gmm[half:], tau))
    return {
        "told_nats": plain[0],
        "told_nats_se": plain[1],
        "told_calibrated_nats": calibrated[0],
        "told_calibrated_nats_se": calibrated[1],
        "told_tau": tau,
        "told_cap_nats": math.log(size),
        "told_samples": size,
        "told_images": groups * size,
        "told_judged": (groups - half) * size,
    }


def _log_likelihoods(vae: VAE, data: Split, encoding: Encoding, group: Tensor, advance: Advance) -> Tensor:
    """Log p(x_i | z_j) of all pairs of a group of M data, (M, M) nats in float64."""
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
    return found


def tempered(critic: Tensor, tau: float) -> Tensor:
    """The critic p^τ of log-ratios, of which some may be −∞: a z that rules x out."""
    return tau * critic.clamp(min=-1e30)


def contrast(critic: Tensor) -> tuple[float, float]:
    """The contrastive bound of log-critics (…, M, M), datum i by sample j, and its standard error.

    A datum enters as itself and as a partner of the others. Its influence is its own term, less the weight that it has
    in the terms of the others; these are uncorrelated to first order, where the terms are not.
    """
    own = critic.diagonal(dim1=-2, dim2=-1)
    terms = own - logmeanexp(critic)
    weights = critic.softmax(-1)
    as_partner = weights.sum(-2) - weights.diagonal(dim1=-2, dim2=-1)
    return terms.mean().item() + 0.0, standard_error((terms - as_partner).flatten())


def logmeanexp(values: Tensor) -> Tensor:
    """Log of the mean of exp over the last axis; of equal values exactly their value."""
    largest = values.amax(-1, keepdim=True)
    return largest.squeeze(-1) + (values - largest).exp().mean(-1).log()


def calibration(critic_gmm: Tensor) -> float:
    """τ in (0, 1] that maximises the bound of log-ratios (G, M, M), whose own ones are 0.

    The bound is concave in τ: its slope is that of −log 1/M Σ_j exp(τ c_ij), which falls.
    """
    finite = critic_gmm.clamp(min=-1e30)

    def slope(tau: float) -> float:
        return -((tau * finite).softmax(-1) * finite).sum(-1).mean().item()

    if not slope(1.0) < 0:  # or not finite
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return high
