"""A Transformer over tokens as a guide: anti-causal, for its tokens attend to themselves and to later ones alone."""

from __future__ import annotations

from typing import ClassVar

from pyro_delta.guides.sequences.tokens import TokenGuide
from pyro_delta.nn.sequences.transformer import CausalTransformer
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class TransformerGuide(TokenGuide):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from the Transformer of the likelihood, its mask inverted.

    The tokens are given to it in reverse, each attends to those before it there: to later ones [1]. σ starts at that of
    the posterior that attains the prior's δ. Steps from the end of a sequence on are N(0, 1), as a prior with lengths
    has them, and cost nothing.

    Args:
        spec: of the sequences: tokens, or voices of them.
        prior: a Gaussian prior.
        hidden: features, a multiple of 2·heads.
        layers: blocks.
        heads: of attention.

    Raises:
        UserError: if the data are no sequences of tokens, or for features that the heads cannot share.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    name: ClassVar[str] = "transformer"
    twin: ClassVar[str] = "pyro_delta.twin.sequences.transformer:TransformerGuide"

    def __init__(self, spec: Spec, prior: Prior, *, hidden: Count = 128, layers: Count = 3, heads: Count = 4) -> None:
        trunk = CausalTransformer(hidden, layers=layers, heads=heads, positions=spec.positions)
        super().__init__(spec, prior, trunk, hidden=hidden)
