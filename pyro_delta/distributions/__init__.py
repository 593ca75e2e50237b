"""Distributions the programs stand on: priors, image likelihoods, and the KL registration."""

from pyro_delta.distributions.dimensions import per_dimension
from pyro_delta.distributions.gaussian_ar1 import GaussianAR1
from pyro_delta.distributions.gaussian_sequence import GaussianSequence
from pyro_delta.distributions.images.autoregressive_image import AutoregressiveImage
from pyro_delta.distributions.logistic_mixture import DiscretizedLogisticMixture
from pyro_delta.distributions.sequential_gaussian import SequentialGaussian
from pyro_delta.distributions.sphere import PowerSpherical, SphereUniform, VonMisesFisher

__all__ = [
    "AutoregressiveImage",
    "DiscretizedLogisticMixture",
    "GaussianAR1",
    "GaussianSequence",
    "PowerSpherical",
    "SequentialGaussian",
    "SphereUniform",
    "VonMisesFisher",
    "per_dimension",
]
