"""Distributions the programs stand on: the AR(1) prior, the image likelihoods, and their KL registrations."""

from pyro_delta.distributions.autoregressive_image import AutoregressiveImage
from pyro_delta.distributions.dimensions import per_dimension
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.logistic_mixture import DiscretizedLogisticMixture

__all__ = ["AutoregressiveImage", "DiscretizedLogisticMixture", "GaussianAR1", "per_dimension"]
