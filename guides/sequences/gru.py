"""A GRU over tokens or numbers as a guide: anti-causal, for it reads the sequence from its end."""

from __future__ import annotations

from typing import ClassVar

from pyro_delta.data.series.spec import require_sequences
from pyro_delta.guides.sequences.sequence_guide import SequenceGuide
from pyro_delta.nn.sequences.recurrent import Recurrence
from pyro_delta.nn.sequences.tables import PositionReader
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class GRUGuide(SequenceGuide):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from a GRU that reads the sequence backwards.

    σ starts at that of the posterior that attains the prior's δ. Steps from the end of a sequence on are N(0, 1), as a
    prior with lengths has them, and cost nothing. What a mask says is missing is not read: the guide hears that it is,
    of tokens that they are 0.

    Args:
        spec: of the sequences: tokens, voices of them, or series.
        prior: a Gaussian prior.
        hidden: units.
        bidirectional: whether a second GRU reads it forwards, so that every step hears the whole sequence: the paper's
            ablation, which goes with likelihood.conditioning = "full".
        rate_nats: δ of a datum of all positions against a standard normal prior, see `SequenceGuide`; None leaves it to
            the prior.

    Raises:
        UserError: if the data are no sequences, or for a rate that cannot be committed against this prior.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences.gru:GRUGuide"

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        hidden: Count = 64,
        bidirectional: bool = False,
        rate_nats: float | None = None,
    ) -> None:
        sequences = require_sequences(spec, "guide", "gru")
        reader, trunk = PositionReader(sequences, hidden), Recurrence(hidden)
        forwards = Recurrence(hidden) if bidirectional else None
        super().__init__(sequences, prior, reader, trunk, hidden=hidden, forwards=forwards, rate_nats=rate_nats)
