"""Amortised inference programs. Import as `pyro_delta.guides`."""

from pyro_delta.guides.anti_causal import AntiCausalEncoder, AntiCausalGuide

__all__ = ["AntiCausalEncoder", "AntiCausalGuide"]
