"""A Transformer over tokens or numbers as a guide: anti-causal, for positions attend to later ones and themselves."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pyro_delta.data.series.spec import require_sequences
from pyro_delta.guides.sequences.sequence_guide import SequenceGuide
from pyro_delta.nn.sequences.tables import PositionReader
from pyro_delta.nn.sequences.transformer import CausalTransformer
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class TransformerGuide(SequenceGuide):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from the Transformer of the likelihood, its mask inverted.

    The tokens are given to it in reverse, each attends to those before it there: to later ones [1]. σ starts at that of
    the posterior that attains the prior's δ. Steps from the end of a sequence on are N(0, 1), as a prior with lengths
    has them, and cost nothing. What a mask says is missing is not read.

    Args:
        spec: of the sequences: tokens, voices of them, or series.
        prior: a Gaussian prior.
        hidden: features, a multiple of 2·heads.
        layers: blocks.
        heads: of attention.
        bidirectional: whether a second Transformer reads them forwards, so that every step hears the whole sequence:
            the paper's ablation, which goes with likelihood.conditioning = "full".
        rate_nats: δ of a datum of all positions against a standard normal prior, see `SequenceGuide`; None leaves it to
            the prior.

    Raises:
        UserError: if the data are no sequences, for features that the heads cannot share, or for a rate that cannot be
            committed against this prior.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences.transformer:TransformerGuide"

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        hidden: Count = 128,
        layers: Count = 3,
        heads: Count = 4,
        bidirectional: bool = False,
        rate_nats: float | None = None,
    ) -> None:
        sequences = require_sequences(spec, "guide", "transformer")
        make = partial(CausalTransformer, hidden, layers=layers, heads=heads, positions=spec.positions)
        reader, trunk, forwards = PositionReader(sequences, hidden), make(), make() if bidirectional else None
        super().__init__(sequences, prior, reader, trunk, hidden=hidden, forwards=forwards, rate_nats=rate_nats)
