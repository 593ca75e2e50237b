"""The importance-weighted bound on the likelihood, and the whole evaluation of a split."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyro_delta.build import Programs
from pyro_delta.data import Split
from pyro_delta.distributions.float64 import as_float64
from pyro_delta.errors import UserError
from pyro_delta.evaluation.bound import (
    LN2,
    batches,
    delta_of,
    encode,
    evaluating,
    ignore,
    standard_error,
    standard_errors,
    summarise,
)
from pyro_delta.evaluation.quiet_arviz import load_arviz

Numbers = dict[str, float | int | None]


FEWEST_FOR_K_HAT = 25
"""Particles below which the tail of the weights is not fitted."""
K_HAT_LIMIT = 0.7
"""Above it, an importance-weighted estimate is not to be trusted [1].

References:
    1. A. Vehtari et al., "Pareto Smoothed Importance Sampling", JMLR 2024.
"""


@torch.no_grad()
def importance_weights(
    programs: Programs,
    images: Tensor,
    particles: int,
    *,
    batch: int = 128,
    seed: int = 0,
    advance: Callable[[int], None] = ignore,
) -> Tensor:
    """Log p(x, z_k) − log q(z_k | x) of every image, z_k ~ q, k = 1 … K.

    Args:
        programs: model and guide.
        images: (N, C, H, W) uint8.
        particles: K ≥ 1.
        batch: pairs of image and particle that pass the network together.
        seed: of the particles.
        advance: called with the number of images just done.

    Returns:
        (N, K) nats, float64, on the CPU.
    """
    parts = []
    with evaluating(programs, seed):
        prior = as_float64(programs.model.prior())
        for x in batches(images, max(1, batch // particles), programs):
            q = programs.guide.posterior(x)
            weights = []
            for start in range(0, particles, batch):
                z = q.rsample((min(batch, particles - start),))
                log_ratio = prior.log_prob(z.double()) - as_float64(q).log_prob(z.double())
                weights.append(programs.model.likelihood(z).log_prob(x).double() + log_ratio)
            parts.append(torch.cat(weights).T.cpu())
            advance(len(x))
    return torch.cat(parts)


def importance_bound(log_weights: Tensor) -> Tensor:
    """−log 1/K Σ_k w_k of log weights (N, K): (N,) nats, an upper bound on −log p(x) in expectation [1].

    K = 1 gives −ELBO with a sampled rate.

    References:
        1. Y. Burda et al., "Importance Weighted Autoencoders", ICLR 2016, eq. 8.
    """
    return math.log(log_weights.shape[1]) - log_weights.logsumexp(1)


def k_hat(log_weights: Tensor) -> Tensor:
    """Shape of the Pareto distribution that fits the largest weights (N, K) of every image: (N,), by ArviZ."""
    return torch.from_numpy(np.asarray(load_arviz().psislw(log_weights.numpy())[1]))


def evaluate(
    programs: Programs,
    split: Split,
    *,
    particles: int = 1,
    images: int | None = None,
    seed: int = 0,
    advance: Callable[[int], None] = ignore,
) -> Numbers:
    """Bounds, rate and distortion over a whole split, each mean with its standard error over the images.

    Args:
        programs: model and guide.
        split: every image of it counts.
        particles: K; above 1 the importance-weighted bound is added.
        images: of the split, from its start, for that bound (all if None).
        seed: of the posterior samples.
        advance: called with the number of images just done, first for the ELBO, then for the bound.

    Raises:
        UserError: if the split has fewer than `images`.
    """
    if images is not None and not 1 <= images <= len(split):
        raise UserError(f"{images} images are asked for, but the split has {len(split)}; give 1 to {len(split)}.")
    dims = split.images[0].numel()
    encoding = encode(programs, split.images, seed=seed, advance=advance)
    numbers = summarise(encoding, dims, delta_of(programs, split.images)) | standard_errors(encoding, dims)
    if particles > 1:
        log_weights = importance_weights(programs, split.images[:images], particles, seed=seed, advance=advance)
        bound_bpd = importance_bound(log_weights) / (dims * LN2)
        numbers |= {
            "iw_bpd": bound_bpd.mean().item(),
            "iw_bpd_se": standard_error(bound_bpd),
            "iw_images": len(bound_bpd),
            "particles": particles,
        }
        if particles >= FEWEST_FOR_K_HAT:
            k = k_hat(log_weights)
            numbers |= {"k_hat_median": k.median().item(), "k_hat_bad": (k > K_HAT_LIMIT).double().mean().item()}
    return numbers
