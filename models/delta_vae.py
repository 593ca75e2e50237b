"""The generative program of a δ-VAE."""

from __future__ import annotations

import pyro
from pyro.nn import PyroModule
from torch import Tensor


class DeltaVAE(PyroModule):
    """z ~ prior(), x ~ likelihood(z): any prior and any likelihood program, in one plate `data`.

    Run with images it scores them; run without it generates:

        pyro.poutine.trace(model).get_trace(batch=16).nodes["x"]["value"]

    Args:
        prior: program whose `forward()` returns a distribution of event shape (n, d).
        likelihood: program whose `forward(z)` returns a distribution over images.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    def __init__(self, prior: PyroModule, likelihood: PyroModule) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, x: Tensor | None = None, *, batch: int = 1) -> Tensor:
        """Writes the sites `z` (…, n, d) and `x` (…, C, H, W); returns x, observed or drawn.

        Args:
            x: images of integers (B, C, H, W), or None to generate.
            batch: images to generate when x is None.
        """
        with pyro.plate("data", batch if x is None else x.shape[0]):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)
