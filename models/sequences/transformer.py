"""A causal Transformer over tokens as a likelihood, conditioned on the latent sequence."""

from __future__ import annotations

from typing import ClassVar

from pyro_delta.models.sequences.tokens import Conditioning, TokenLikelihood
from pyro_delta.nn.sequences.transformer import CausalTransformer
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class TransformerLikelihood(TokenLikelihood):
    """Causal Transformer over tokens: `forward(z)` returns `AutoregressiveTokens`.

    Every token is told by attention of all those before it; z enters before the first block and after the last. With
    lengths, what follows the end of a sequence is not scored, and drawn as token 0.

    Args:
        spec: of the sequences: tokens, or voices of them.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every token sees all of z.
        hidden: features, a multiple of 2·heads.
        layers: blocks.
        heads: of attention.

    Raises:
        UserError: if the data are no sequences of tokens, for an unknown conditioning, or features that the heads
            cannot share.
    """

    name: ClassVar[str] = "transformer"
    twin: ClassVar[str] = "pyro_delta.twin.sequences.transformer:TransformerLikelihood"

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        hidden: Count = 128,
        layers: Count = 3,
        heads: Count = 4,
    ) -> None:
        trunk = CausalTransformer(hidden, layers=layers, heads=heads, positions=spec.positions)
        super().__init__(spec, prior, trunk, use_latents=use_latents, conditioning=conditioning, hidden=hidden)
