"""What likelihoods of sequences share: which latent steps are seen, and that nothing hears the padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pyro_delta.distributions.sequences import AutoregressiveSequence
from pyro_delta.models.conditioning import Conditioning, Told
from pyro_delta.protocol import Prior, Spec


class SequenceLikelihood(nn.Module):
    """p(x | z), an `AutoregressiveSequence` by a network.

    With lengths, what follows the end of a sequence is not scored, and drawn as `blank` of the family: token or level
    0, or NaN. So is what a mask says is missing; nothing depends on what stands there.

    Args:
        spec: of the sequences.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        family: of the distribution.
        network: made of where each step of what it is told is seen from, or None if it is told nothing, and of d.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every position sees all of z. What
            sequences are conditioned on, every position sees.

    Raises:
        UserError: for an unknown conditioning.
    """

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        family: type[AutoregressiveSequence],
        network: Callable[[Tensor | None, int], Any],
        *,
        use_latents: bool,
        conditioning: Conditioning,
    ) -> None:
        super().__init__()
        self.family, self.conditioning = family, conditioning
        self.told = Told(spec, prior, conditioning, use_latents=use_latents)
        self.network = network(self.told.seen, self.told.dims)

    def forward(
        self,
        z: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> AutoregressiveSequence:
        """Z (…, n, d) → a distribution over sequences.

        Args:
            z: latents.
            lengths: positions (…) of sequences that have lengths.
            mask: what is known of them, (…, *shape).
            condition: what they are conditioned on.
        """
        return self.family(self.network, self.told(z, lengths, condition), lengths, mask)
