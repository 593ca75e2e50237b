"""Arrays of a user's own as sequences of tokens: whole numbers (N, T) from 0 up."""

from __future__ import annotations

from pyro_delta.data.sequences.spec import TokenSpec
from pyro_delta.data.spec import Spec
from pyro_delta.data.splits import Split

PRESET = "descriptions"
LARGEST = 65536
"""Tokens of a vocabulary that is taken for one: above it, whole numbers are something else."""


def sequences_of(split: Split, levels: int | None = None) -> tuple[Spec, Split, str] | None:
    """Spec, data and preset of arrays that are sequences of tokens; None of others.

    Args:
        split: arrays.
        levels: the size of the vocabulary; 1 + the largest token where None.
    """
    x = split.x
    if x.dim() != 2 or 0 in x.shape or x.is_floating_point() or int(x.min()) < 0 or int(x.max()) >= LARGEST:
        return None
    return TokenSpec(x.shape[1], max(2, int(x.max()) + 1) if levels is None else levels), split, PRESET
