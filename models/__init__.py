"""Generative programs: priors, likelihoods, and the δ-VAE that joins them. Import as `pyro_delta.models`."""

from pyro_delta.models.delta_vae import DeltaVAE
from pyro_delta.models.dense_prior import ARPrior, LatticePrior, MaternPrior
from pyro_delta.models.gated_pixelcnn import ConditionalGatedPixelCNN, GatedPixelCNNLikelihood
from pyro_delta.models.prior import AR1Prior, LearnedAR1Prior, StandardNormalPrior, rows_of_steps

__all__ = [
    "AR1Prior",
    "ARPrior",
    "ConditionalGatedPixelCNN",
    "DeltaVAE",
    "GatedPixelCNNLikelihood",
    "LatticePrior",
    "LearnedAR1Prior",
    "MaternPrior",
    "StandardNormalPrior",
    "rows_of_steps",
]
