"""Amortised inference programs. Import as `pyro_delta.guides`."""

from pyro_delta.guides.contour import Contour
from pyro_delta.guides.images.contour import ContourGuide
from pyro_delta.guides.images.encoder import ImageEncoder, regions
from pyro_delta.guides.images.image_guide import ImageGuide
from pyro_delta.guides.images.mean_field import AntiCausalGuide, BidirectionalGuide
from pyro_delta.guides.images.structured import StructuredGuide
from pyro_delta.guides.sequences.gru import GRUGuide
from pyro_delta.guides.sequences.spectral import SpectralGuide
from pyro_delta.guides.sequences.transformer import TransformerGuide

__all__ = [
    "AntiCausalGuide",
    "BidirectionalGuide",
    "Contour",
    "ContourGuide",
    "GRUGuide",
    "ImageEncoder",
    "ImageGuide",
    "SpectralGuide",
    "StructuredGuide",
    "TransformerGuide",
    "regions",
]
