"""Twins of the GRU likelihood and guide, written from `docs/architecture.md`."""

from __future__ import annotations

from typing import Any, ClassVar

from flax import nnx

from pyro_delta.protocol import Spec
from pyro_delta.twin.sequences.layers import Recurrence
from pyro_delta.twin.sequences.tokens import Conditioning, TokenGuide, TokenLikelihood


class GRULikelihood(TokenLikelihood):
    """p(x | z) by a GRU; arguments as of `TokenLikelihood`."""

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


class GRUGuide(TokenGuide):
    """q(z | x) by a GRU; arguments as of `TokenGuide`."""

    name: ClassVar[str] = "gru"

    def __init__(self, spec: Spec, prior: Any, *, rngs: nnx.Rngs, hidden: int = 64) -> None:
        """See the class."""
        super().__init__(spec, prior, Recurrence(hidden, rngs=rngs), rngs=rngs, hidden=hidden)
