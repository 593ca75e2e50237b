"""Amortised inference programs. Import as `pyro_delta.guides`."""

from pyro_delta.guides.encoder import ImageEncoder, regions
from pyro_delta.guides.image_guide import ImageGuide
from pyro_delta.guides.independent_delta import IndependentDeltaGuide
from pyro_delta.guides.mean_field import AntiCausalGuide, BidirectionalGuide
from pyro_delta.guides.structured import StructuredGuide

__all__ = [
    "AntiCausalGuide",
    "BidirectionalGuide",
    "ImageEncoder",
    "ImageGuide",
    "IndependentDeltaGuide",
    "StructuredGuide",
    "regions",
]
