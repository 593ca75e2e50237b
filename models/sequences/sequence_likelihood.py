"""What likelihoods of sequences share: which latent steps are seen, and that nothing hears the padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_delta.distributions.sequences import AutoregressiveSequence
from pyro_delta.models.conditioning import Conditioning, seen_from
from pyro_delta.protocol import Prior


class SequenceLikelihood(nn.Module):
    """p(x | z), an `AutoregressiveSequence` by a network.

    With lengths, what follows the end of a sequence is not scored, and drawn as `blank` of the family: token or level
    0, or NaN. So is what a mask says is missing; nothing depends on what stands there.

    Args:
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        family: of the distribution.
        network: made of where each step is seen from, (n,) or None for the latent-free control, and of d.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position t sees {z_s : starts[s] ≤ t}; "full": every position sees all of z.

    Raises:
        UserError: for an unknown conditioning.
    """

    starts: Tensor

    def __init__(
        self,
        prior: Prior,
        family: type[AutoregressiveSequence],
        network: Callable[[Tensor | None, int], Any],
        *,
        use_latents: bool,
        conditioning: Conditioning,
    ) -> None:
        super().__init__()
        self.family, self.conditioning = family, conditioning
        seen = seen_from(prior.starts, conditioning, use_latents=use_latents)
        self.network = network(seen, prior().event_shape[-1])
        self.register_buffer("starts", prior.starts.clone(), persistent=False)

    def forward(self, z: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> AutoregressiveSequence:
        """Z (…, n, d), positions (…) of sequences that have lengths, and what is known of them, → a distribution."""
        if lengths is not None:  # nothing hears the padding, also with full conditioning
            z = torch.where((self.starts < lengths.unsqueeze(-1)).unsqueeze(-1), z, 0.0)
        return self.family(self.network, z, lengths, mask)
