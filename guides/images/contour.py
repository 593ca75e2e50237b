"""The independent δ-VAE of images: each coordinate keeps its distance from a standard normal prior."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.guides.contour import Contour
from pyro_delta.guides.images.image_guide import ImageGuide
from pyro_delta.nn.condition import given
from pyro_delta.protocol import Prior, Spec


class ContourGuide(ImageGuide):
    """q(z | x) = Π N(μ, σ²) with KL(q ‖ N(0, 1)) ≥ δ_k in every coordinate: an independent δ-VAE, see `Contour`.

    Args:
        spec: shape and levels of the images.
        prior: a standard normal one.
        rate_nats: δ of the whole sequence, shared evenly by its n·d coordinates.
        network: as for `ImageGuide`.

    Raises:
        UserError: if the prior is not standard normal, or the rate cannot be committed.
    """

    twin = "pyro_delta.twin.images.guides:ContourGuide"

    from_data = 2

    def __init__(self, spec: Spec, prior: Prior, *, rate_nats: float = 4.0, **network: Any) -> None:
        super().__init__(spec, prior, 1, **network)
        self.contour = Contour(prior(), rate_nats)

    def posterior(self, x: Tensor, condition: Tensor | None = None) -> dist.Independent:
        """q(z | x) for images (…, C, H, W), and what they are conditioned on, event shape (n, d)."""
        return dist.Normal(*self.contour(*self.encode(x, **given(condition)))).to_event(2)

    def committed_rate(self, prior: Distribution) -> float | Tensor:
        """δ in nats of this family against a prior, which must be standard normal."""
        return self.contour.committed_rate(prior)
