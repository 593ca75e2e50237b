"""Where in the latent sequence the rate of a Gaussian AR(1) prior is spent."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_delta.diagnostics.bounds import Encoding
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.rate import minimising_posterior


def rate_of_steps(encoding: Encoding, prior: object) -> Tensor | None:
    """The share of each step and dimension in the mean rate, (n, d) nats; their sum is that rate.

    Step t has E_q KL(q(z_t | x) ‖ p(z_t | z_{t−1})), by the chain rule.

    Args:
        encoding: of N data.
        prior: that its rate is against, of all data or of each, of batch shape () or (N,).

    Returns:
        None for other priors than a `GaussianAR1` without lengths, or posteriors that are not independent over steps.
    """
    if type(prior) is not GaussianAR1 or prior.lengths is not None:
        return None
    if not encoding.mean_field or len(encoding.mean) != 1:
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
    return GaussianAR1(prior.alpha.detach().cpu(), prior.length)


def _shares(mean: Tensor, scale: Tensor, prior: GaussianAR1) -> Tensor:
    """(…, n, d) nats."""
    alpha_d = prior.alpha.double().unsqueeze(-2)  # of each datum, at all steps
    first = torch.arange(prior.length).unsqueeze(-1) == 0
    innovation = torch.where(first, 1.0, 1 - alpha_d**2)
    before_mean, before_scale = (torch.nn.functional.pad(part[..., :-1, :], (0, 0, 1, 0)) for part in (mean, scale))
    square = scale**2 + (mean - alpha_d * before_mean) ** 2 + (alpha_d * before_scale) ** 2
    return 0.5 * (square / innovation - 1 - torch.log(scale**2 / innovation))
