"""Generative programs: priors, likelihoods, and the δ-VAE that joins them. Import as `pyro_delta.models`."""

from pyro_delta.models.delta_vae import DeltaVAE
from pyro_delta.models.images.conditional import ConditionalNetwork, ImageLikelihood
from pyro_delta.models.images.gated_pixelcnn import ConditionalGatedPixelCNN, GatedPixelCNNLikelihood
from pyro_delta.models.images.lattice import LatticePrior
from pyro_delta.models.images.pixelsnail import ConditionalPixelSNAIL, PixelSNAILLikelihood
from pyro_delta.models.priors.ar1 import AR1Prior, LearnedAR1Prior, StandardNormalPrior, even_starts
from pyro_delta.models.priors.auxiliary import LSTMPrior
from pyro_delta.models.priors.dense import ARPrior, MaternPrior
from pyro_delta.models.sequences.gru import GRULikelihood
from pyro_delta.models.sequences.transformer import TransformerLikelihood
from pyro_delta.models.sequences.wavenet import WaveNetLikelihood

__all__ = [
    "AR1Prior",
    "ARPrior",
    "ConditionalGatedPixelCNN",
    "ConditionalNetwork",
    "ConditionalPixelSNAIL",
    "DeltaVAE",
    "GRULikelihood",
    "GatedPixelCNNLikelihood",
    "ImageLikelihood",
    "LSTMPrior",
    "LatticePrior",
    "LearnedAR1Prior",
    "MaternPrior",
    "PixelSNAILLikelihood",
    "StandardNormalPrior",
    "TransformerLikelihood",
    "WaveNetLikelihood",
    "even_starts",
]
