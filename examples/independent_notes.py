"""A likelihood of your own: chorales whose notes are independent given z, as in Pyro's deep Markov model.

    pyro-delta train --dataset chorales --likelihood examples/independent_notes.py:IndependentNotes
        --prior standard_normal --set prior.dims=8 --out runs/independent
    pyro-delta check runs/independent

A decoder that knows nothing but z leaves it all to say: the posterior does not collapse, with N(0, 1) as the prior.
What the notes have to do with one another is lost: −ELBO is far above that of the preset, whose notes hear each other.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_delta.data.music import ScoreSpec
from pyro_delta.nn.latents import LatentMap
from pyro_delta.protocol import Prior


class IndependentNotes(nn.Module):
    """Every note on its own, given the latents of its quarter note and of those before it.

    Args:
        spec: of scores.
        prior: of the latents.
        hidden: features of a quarter note.
    """

    def __init__(self, spec: ScoreSpec, prior: Prior, *, hidden: int = 128) -> None:
        super().__init__()
        self.shape, dims = spec.shape, prior().event_shape[-1]
        self.latents = LatentMap(dims, prior.starts, positions=spec.positions, outputs=hidden)
        self.notes = nn.Sequential(nn.SiLU(), nn.Linear(hidden, spec.voices * spec.levels))

    def forward(self, z: Tensor) -> dist.Independent:
        """Z (…, n, d) → a distribution over scores (…, T, K)."""
        logits = self.notes(self.latents(z.reshape(-1, *z.shape[-2:])))
        return dist.Categorical(logits=logits.reshape(*z.shape[:-2], *self.shape, -1)).to_event(2)
