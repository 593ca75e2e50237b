"""A causal Transformer over tokens or numbers as a likelihood, conditioned on the latent sequence."""

from __future__ import annotations

from typing import ClassVar

from pyro_delta.models.conditioning import Conditioning
from pyro_delta.models.sequences.autoregressive import TrunkLikelihood
from pyro_delta.nn.sequences.transformer import CausalTransformer
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class TransformerLikelihood(TrunkLikelihood):
    """Causal Transformer over tokens or numbers: its distribution is an `AutoregressiveSequence`.

    Every position is told by attention of all those before it; z enters before the first block and after the last. What
    lengths and masks do is as for `GRULikelihood`.

    Args:
        spec: of the sequences: tokens, voices of them, or series.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every position sees all of z.
        hidden: features, a multiple of 2·heads.
        layers: blocks.
        heads: of attention.

    Raises:
        UserError: if the data are no sequences, for an unknown conditioning, or features that the heads
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
