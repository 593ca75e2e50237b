"""Sequences of tokens: their specs, text in windows, and documents."""

from pyro_delta.data.sequences.spec import TextSpec, TokenSpec

__all__ = ["TextSpec", "TokenSpec"]
