"""Importance weights of posterior samples, the bound that they give, and how far it can be trusted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_delta.data.splits import size_of
from pyro_delta.data.tensors import as_split
from pyro_delta.diagnostics.quiet_arviz import pareto_k
from pyro_delta.diagnostics.trace import at_once, batches, evaluating, tiled, trace
from pyro_delta.protocol import Advance
from pyro_delta.vae import VAE

FEWEST_FOR_K_HAT = 30
"""Particles below which the tail of the weights, a fifth of them, is not fitted: ArviZ fits six or more."""
K_HAT_LIMIT = 0.7
"""Above it, an importance-weighted estimate is not to be trusted [1].

References:
    1. A. Vehtari et al., "Pareto Smoothed Importance Sampling", JMLR 2024.
"""
ALIKE = 0.01
"""Nats within which log weights count as equal: the float32 sums that they come from round to as much."""


@torch.no_grad()
def importance_weights(
    vae: VAE,
    data: Any,
    particles: int,
    *,
    batch: int = 128,
    seed: int = 0,
    advance: Advance = lambda data: None,
) -> Tensor:
    """Log p(x, z_k) − log q(z_k | x) of every datum, z_k ~ q, k = 1 … K.

    Args:
        vae: model and guide.
        data: as for `pyro_delta.diagnostics.bounds.encode`.
        particles: K ≥ 1.
        batch: pairs of datum and particle that pass the programs together.
        seed: of the particles.
        advance: called with the number of data just done.

    Returns:
        (N, K) nats, float64, on the CPU.
    """
    parts, batch = [], at_once(vae, batch, len(as_split(data)))
    with evaluating(vae, seed):
        for x in batches(data, max(1, batch // particles), vae):
            weights = []
            for start in range(0, particles, batch):
                copies = min(batch, particles - start)
                seen = trace(vae, tiled(x, copies))
                log_weight = seen.log_px.double() + seen.log_p.double() - seen.log_q.double()
                weights.append(log_weight.reshape(copies, -1))
            parts.append(torch.cat(weights).T.cpu())
            advance(size_of(x))
    return torch.cat(parts)


def importance_bound(log_weights: Tensor) -> Tensor:
    """−log 1/K Σ_k w_k of log weights (N, K): (N,) nats, an upper bound on −log p(x) in expectation [1].

    K = 1 gives −ELBO with a sampled rate.

    References:
        1. Y. Burda et al., "Importance Weighted Autoencoders", ICLR 2016, eq. 8.
    """
    return math.log(log_weights.shape[1]) - log_weights.logsumexp(1)


def k_hat(log_weights: Tensor) -> Tensor:
    """Shape of the Pareto distribution that fits the largest weights (N, K) of every datum: (N,), by ArviZ.

    0 where the largest are alike, such as those of an exact posterior, whose tail would be one of rounding errors; inf
    where a few are so much larger than the others that no tail can be fitted.
    """
    with np.errstate(invalid="ignore"):  # of weights that are not finite, whose k̂ is not either
        k = torch.from_numpy(pareto_k(log_weights.numpy()))
    tail = log_weights.topk(log_weights.shape[1] // 5 + 1).values
    alike = tail[:, 0] - tail[:, -1] < ALIKE
    return torch.where(alike & log_weights.isfinite().all(1), 0.0, k)
