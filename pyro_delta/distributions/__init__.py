"""Distributions the programs stand on: Gaussian sequences, the image likelihoods, and their KL registrations."""

from pyro_delta.distributions.autoregressive_image import AutoregressiveImage
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.distributions.logistic_mixture import DiscretizedLogisticMixture

__all__ = ["AutoregressiveImage", "DiscretizedLogisticMixture", "GaussianAR1", "GaussianSequence"]
