"""What a likelihood is told: z, of which a position sees the steps that begin at or before it, and the condition."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pyro_delta.data.condition import condition_of
from pyro_delta.errors import unknown_name
from pyro_delta.nn.condition import ConditionFeatures, check_told
from pyro_delta.protocol import Prior, Spec

Conditioning = Literal["causal", "full"]
"""Which latent steps a position sees: those that begin at or before it, or all of them."""
NUMBERS = 16
"""That tell of a condition, at least: as many latent steps as hold them."""


class Told(nn.Module):
    """Latents as a likelihood's network takes them: behind those that the condition is told by.

    What data are conditioned on is told as m = ⌈16/d⌉ latent steps of its own, which every position sees.

    Args:
        spec: of the data.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        conditioning: "causal": position p sees {z_t : starts[t] ≤ p}; "full": every position sees all of z.
        use_latents: False gives the latent-free control: z is ignored, and the condition alone is told.

    Attributes:
        seen: the position from which on each step of what is told may be used, (m + n,); None if nothing is told.
        dims: d.

    Raises:
        UserError: for an unknown conditioning.
    """

    starts: Tensor

    def __init__(self, spec: Spec, prior: Prior, conditioning: Conditioning, *, use_latents: bool) -> None:
        super().__init__()
        if conditioning not in get_args(Conditioning):
            raise unknown_name("likelihood.conditioning", conditioning, get_args(Conditioning))
        self.dims, self.use_latents = prior().event_shape[-1], use_latents
        self.register_buffer("starts", prior.starts.clone(), persistent=False)
        of_z = prior.starts[: None if use_latents else 0]
        seen = of_z if conditioning == "causal" else torch.zeros_like(of_z)
        self.features: ConditionFeatures | None = None
        if (condition := condition_of(spec)) is not None:
            steps = -(-NUMBERS // self.dims)
            self.features = ConditionFeatures(condition, steps * self.dims)
            seen = torch.cat((seen.new_zeros(steps), seen))
        self.seen: Tensor | None = seen if len(seen) else None

    def forward(self, z: Tensor, lengths: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Z (…, n, d), positions (…) of data that have lengths, and their condition, → (…, m + n, d) or less.

        Raises:
            UserError: if there is a condition that the spec says nothing of, or none where it does.
        """
        if lengths is not None:  # nothing hears the padding, also with full conditioning
            z = torch.where((self.starts < lengths.unsqueeze(-1)).unsqueeze(-1), z, 0.0)
        check_told(self.features, condition)
        if self.features is None:
            return z
        steps = self.features(condition).unflatten(-1, (-1, self.dims))
        batch = torch.broadcast_shapes(steps.shape[:-2], z.shape[:-2])
        both = [steps, z] if self.use_latents else [steps]
        return torch.cat([part.expand(batch + part.shape[-2:]) for part in both], dim=-2)
