"""Where in the latent sequence the rate of a Gaussian prior is spent, and along which directions it is slowest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.diagnostics.bounds import Encoding
from pyro_delta.distributions.any_gaussian import as_gaussian
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1, check_steps
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.rate import minimising_posterior


def rate_of_steps(encoding: Encoding, prior: object) -> Tensor | None:
    """The share of each step and dimension in the mean rate, (n, d) nats; their sum is that rate.

    Step t has E_q KL(q(z_t | x) ‖ p(z_t | z_{t−1})), by the chain rule. Behind the end of a datum p(z_t) is N(0, 1).

    Args:
        encoding: of N data.
        prior: that its rate is against, of all data or of each, of batch shape () or (N,).

    Returns:
        None for other priors than a `GaussianAR1`, or posteriors that are not independent over steps.
    """
    if type(prior) is not GaussianAR1 or not encoding.mean_field or len(encoding.mean) != 1:
        return None
    (mean_bnd,), (scale_bnd,) = encoding.mean.values(), encoding.scale.values()
    if mean_bnd.shape[1:] != prior.event_shape:
        return None
    return _shares(mean_bnd.double(), scale_bnd.double(), _on_cpu(prior)).mean(0)


def floor_of_steps(prior: GaussianAR1) -> Tensor:
    """The same of the posterior that attains δ, of each datum where data have priors of their own, (n, d) nats."""
    prior = _on_cpu(prior)
    scale = minimising_posterior(prior).base_dist.scale.double()
    return _shares(torch.zeros_like(scale), scale, prior).reshape(-1, *prior.event_shape).mean(0)


def _on_cpu(prior: GaussianAR1) -> GaussianAR1:
    lengths = None if prior.lengths is None else prior.lengths.cpu()
    return GaussianAR1(prior.alpha.detach().cpu(), prior.length, lengths)


def _shares(mean: Tensor, scale: Tensor, prior: GaussianAR1) -> Tensor:
    """(…, n, d) nats."""
    alpha_d = prior.alpha.double().unsqueeze(-2)  # of each datum, at all steps
    step = torch.arange(prior.length).unsqueeze(-1)
    own = step == 0 if prior.lengths is None else (step == 0) | (step >= prior.lengths[..., None, None])
    follows_nd = torch.where(own, 0.0, alpha_d)
    innovation = 1 - follows_nd**2
    before_mean, before_scale = (torch.nn.functional.pad(part[..., :-1, :], (0, 0, 1, 0)) for part in (mean, scale))
    square = scale**2 + (mean - follows_nd * before_mean) ** 2 + (follows_nd * before_scale) ** 2
    return 0.5 * (square / innovation - 1 - torch.log(scale**2 / innovation))


def slowest_modes(prior: Distribution, count: int) -> Tensor:
    """The directions of a Gaussian prior over (n, d) in which a posterior can say the most, slowest first: (K, n, d).

    With Λ the prior's precision and B its diagonal, they are the eigenvectors v of B⁻¹Λ with the smallest eigenvalues m
    (`pyro_delta.rate.Modes`), Λ v = m B v, as long as a standard deviation of the prior: vᵀ Λ v = 1. Those with m ≥ 1,
    of which nothing can be told, are none.

    Args:
        prior: of batch shape () or (1,).
        count: K at most.

    Raises:
        UserError: if the prior is not Gaussian, or has more than 512 steps.
    """
    if type(prior) is GaussianAR1 or type(prior) is GaussianSequence:
        precision_dnn = prior.precision().reshape(-1, *[prior.event_shape[0]] * 2).cpu()
    else:
        precision_dnn = as_gaussian(prior).precision.reshape(1, *[prior.event_shape.numel()] * 2).cpu()
        check_steps(precision_dnn.shape[-1], otherwise="")
    root_dn = precision_dnn.diagonal(dim1=-2, dim2=-1).rsqrt()
    value_dn, vector_dnn = torch.linalg.eigh(root_dn.unsqueeze(-1) * precision_dnn * root_dn.unsqueeze(-2))
    found = []
    for place in value_dn.flatten().argsort()[:count].tolist():
        k, m = divmod(place, value_dn.shape[1])
        if value_dn[k, m] >= 1 - 1e-9:
            break
        direction = torch.zeros(precision_dnn.shape[:2], dtype=torch.float64)
        direction[k] = root_dn[k] * vector_dnn[k, :, m] / value_dn[k, m].sqrt()
        # One row for each dimension, where these are independent; else all numbers in their order.
        found.append(direction.mT if len(direction) > 1 else direction.reshape(prior.event_shape))
    return torch.stack(found) if found else torch.zeros(0, *prior.event_shape, dtype=torch.float64)
