"""Sequences of tokens: their spec, and text."""

from pyro_delta.data.sequences.spec import TokenSpec

__all__ = ["TokenSpec"]
