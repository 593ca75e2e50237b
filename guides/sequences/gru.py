"""A GRU over tokens as a guide: anti-causal, for it reads the sequence from its end."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_delta.data.sequences.spec import require_tokens
from pyro_delta.guides.sequences.sequence_guide import BackwardGRU, SequenceGuide
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class BackwardTokens(BackwardGRU):
    """A `BackwardGRU` that reads the embeddings of tokens; of K voices at a position the sum of the embeddings.

    Args:
        levels: V.
        voices: K.
        starts: (n,) of the prior.
        outputs: numbers given out per step.
        hidden: units.
    """

    embed: nn.Embedding

    def __init__(self, levels: int, voices: int, starts: Tensor, outputs: int, *, hidden: int) -> None:
        super().__init__(starts, outputs, hidden=hidden, embed=nn.Embedding(voices * levels, hidden))
        self.levels, self.voices = levels, voices

    def read(self, x: Tensor) -> Tensor:
        """Tokens (B, T) or (B, T, K) → (B, T, hidden)."""
        x_btk = x.long().reshape(len(x), -1, self.voices)
        rows_k = torch.arange(self.voices, device=x.device) * self.levels
        return self.embed(x_btk + rows_k).sum(-2)


class GRUGuide(SequenceGuide):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from a GRU that reads the tokens backwards.

    See `SequenceGuide`.

    Args:
        spec: of the sequences: tokens, or voices of them.
        prior: a Gaussian prior.
        hidden: units.

    Raises:
        UserError: if the data are no sequences of tokens.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences.gru:GRUGuide"

    def __init__(self, spec: Spec, prior: Prior, *, hidden: Count = 64) -> None:
        tokens = require_tokens(spec, "guide", "gru")
        voices, dims = math.prod(tokens.shape[1:]), prior().event_shape[-1]
        encoder = BackwardTokens(tokens.levels, voices, prior.starts, 2 * dims, hidden=hidden)
        super().__init__(encoder, tokens.shape, prior)
