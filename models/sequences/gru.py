"""A GRU over tokens or numbers as a likelihood: small, autoregressive, conditioned on the latent sequence."""

from __future__ import annotations

from typing import ClassVar

from pyro_delta.models.conditioning import Conditioning
from pyro_delta.models.sequences.autoregressive import TrunkLikelihood
from pyro_delta.nn.sequences.recurrent import Recurrence
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class GRULikelihood(TrunkLikelihood):
    """GRU over tokens or numbers, a small autoregressive likelihood: its distribution is an `AutoregressiveSequence`.

    With lengths, what follows the end of a sequence is not scored, and drawn as token 0, or as NaN. So is what a mask
    says is missing; nothing depends on what stands there.

    Args:
        spec: of the sequences: tokens, voices of them, or series.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every position sees all of z.
        hidden: units.

    Raises:
        UserError: if the data are no sequences, or for an unknown conditioning.
    """

    name: ClassVar[str] = "gru"
    twin: ClassVar[str] = "pyro_delta.twin.sequences.gru:GRULikelihood"

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        hidden: Count = 64,
    ) -> None:
        super().__init__(
            spec, prior, Recurrence(hidden), use_latents=use_latents, conditioning=conditioning, hidden=hidden
        )
