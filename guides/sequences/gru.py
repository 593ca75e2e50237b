"""A GRU over tokens as a guide: anti-causal, for it reads the sequence from its end."""

from __future__ import annotations

from typing import ClassVar

from pyro_delta.guides.sequences.tokens import TokenGuide
from pyro_delta.nn.sequences.recurrent import Recurrence
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class GRUGuide(TokenGuide):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from a GRU that reads the tokens backwards.

    σ starts at that of the posterior that attains the prior's δ. Steps from the end of a sequence on are N(0, 1), as a
    prior with lengths has them, and cost nothing.

    Args:
        spec: of the sequences: tokens, or voices of them.
        prior: a Gaussian prior.
        hidden: units.

    Raises:
        UserError: if the data are no sequences of tokens.
    """

    name: ClassVar[str] = "gru"
    twin: ClassVar[str] = "pyro_delta.twin.sequences.gru:GRUGuide"

    def __init__(self, spec: Spec, prior: Prior, *, hidden: Count = 64) -> None:
        super().__init__(spec, prior, Recurrence(hidden), hidden=hidden)
