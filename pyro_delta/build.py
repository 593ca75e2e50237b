"""From a configuration to programs."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_delta.config import Config, NetworkConfig, PriorConfig
from pyro_delta.data.spec import ImageSpec
from pyro_delta.guides import AntiCausalGuide
from pyro_delta.models import AR1Prior, DeltaVAE, GatedPixelCNNLikelihood, rows_of_steps
from pyro_delta.rate import alpha_for_rate, minimising_posterior, parse_alpha

PRIORS = {"ar1": AR1Prior}
LIKELIHOODS = {"gated_pixelcnn": GatedPixelCNNLikelihood}
GUIDES = {"anti_causal": AntiCausalGuide}


class Programs(nn.Module):
    """A model and its guide: what is trained, averaged, saved and evaluated together."""

    def __init__(self, model: DeltaVAE, guide: AntiCausalGuide) -> None:
        super().__init__()
        self.model = model
        self.guide = guide


def local_parameters() -> Any:
    """The context in which the library builds and runs programs: parameters live in the modules, not in Pyro's store.

    With the global store a second model of the same process would silently train the first one's parameters.
    """
    return pyro.settings.context(module_local_params=True)


def build(config: Config, spec: ImageSpec) -> Programs:
    """The programs of a configuration for images of `spec`, initialised from torch's random state."""
    with local_parameters():
        first_row = rows_of_steps(config.prior.length or spec.height, spec.height)
        prior = PRIORS[config.prior.program](spec, **config.prior.model_dump(exclude={"program"}))
        likelihood = LIKELIHOODS[config.likelihood.program](
            spec, first_row, config.prior.dims, **_network(config.likelihood)
        )
        guide = GUIDES[config.guide.program](spec, first_row, starting_scale(prior), **_network(config.guide))
        return Programs(DeltaVAE(prior, likelihood), guide)


def prior_alpha(prior: PriorConfig, length: int) -> list[float]:
    """α of each dimension, given or solved from the committed rate."""
    if prior.rate_nats is not None:
        return [alpha_for_rate(prior.rate_nats, length, prior.dims)] * prior.dims
    assert prior.alpha is not None  # the configuration saw to it
    return parse_alpha(prior.alpha, prior.dims)


def starting_scale(prior: AR1Prior) -> Tensor:
    """(n, d) standard deviations of the posterior that attains δ, where guides start."""
    with torch.no_grad():
        return minimising_posterior(prior()).base_dist.scale


def _network(config: NetworkConfig) -> dict[str, Any]:
    return config.model_dump(exclude={"program"})
