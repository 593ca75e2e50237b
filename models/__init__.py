"""Generative programs: priors, likelihoods, and the δ-VAE that joins them. Import as `pyro_delta.models`."""

from pyro_delta.models.auxiliary import LSTMPrior
from pyro_delta.models.conditional import ConditionalNetwork
from pyro_delta.models.delta_vae import DeltaVAE
from pyro_delta.models.dense_prior import ARPrior, LatticePrior, MaternPrior
from pyro_delta.models.gated_pixelcnn import ConditionalGatedPixelCNN, GatedPixelCNNLikelihood
from pyro_delta.models.pixelsnail import ConditionalPixelSNAIL, PixelSNAILLikelihood
from pyro_delta.models.prior import AR1Prior, LearnedAR1Prior, StandardNormalPrior, rows_of_steps

__all__ = [
    "AR1Prior",
    "ARPrior",
    "ConditionalGatedPixelCNN",
    "ConditionalNetwork",
    "ConditionalPixelSNAIL",
    "DeltaVAE",
    "GatedPixelCNNLikelihood",
    "LSTMPrior",
    "LatticePrior",
    "LearnedAR1Prior",
    "MaternPrior",
    "PixelSNAILLikelihood",
    "StandardNormalPrior",
    "rows_of_steps",
]
