"""Twins of the GRU likelihood and guide, written from `docs/architecture.md`."""

from __future__ import annotations

from typing import Any, ClassVar

from flax import nnx

from pyro_delta.data.series.spec import require_sequences
from pyro_delta.protocol import Spec
from pyro_delta.twin.conditioning import Conditioning
from pyro_delta.twin.sequences.autoregressive import SequenceLikelihood
from pyro_delta.twin.sequences.layers import PositionReader, Recurrence
from pyro_delta.twin.sequences.sequence_guide import SequenceGuide


class GRULikelihood(SequenceLikelihood):
    """p(x | z) by a GRU; arguments as of `SequenceLikelihood`."""

    name: ClassVar[str] = "gru"

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        hidden: int = 64,
    ) -> None:
        """See the class."""
        trunk = Recurrence(hidden, rngs=rngs)
        super().__init__(
            spec, prior, trunk, rngs=rngs, use_latents=use_latents, conditioning=conditioning, hidden=hidden
        )


class GRUGuide(SequenceGuide):
    """q(z | x) by a GRU; arguments as of `SequenceGuide`."""

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        hidden: int = 64,
        bidirectional: bool = False,
        rate_nats: float | None = None,
    ) -> None:
        """See the class."""
        reader = PositionReader(require_sequences(spec, "guide", "gru"), hidden, rngs=rngs)
        trunk = Recurrence(hidden, rngs=rngs)
        forwards = Recurrence(hidden, rngs=rngs) if bidirectional else None
        super().__init__(spec, prior, reader, trunk, hidden=hidden, rngs=rngs, rate_nats=rate_nats, forwards=forwards)
