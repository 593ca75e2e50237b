"""The generative program of a δ-VAE."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_delta.call import call
from pyro_delta.distributions.scored import as_scored
from pyro_delta.errors import UserError
from pyro_delta.svi import offer_parameters


class DeltaVAE(nn.Module):
    """z ~ prior(), x ~ likelihood(z): any prior and any likelihood program, in one plate `data`.

    Run with data it scores them; run without it generates:

        pyro.poutine.trace(model).get_trace(batch=16).nodes["x"]["value"]

    Args:
        prior: program whose `forward()` returns a distribution of event shape (n, d).
        likelihood: program whose `forward(z)` returns a distribution over data.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    def __init__(self, prior: nn.Module, likelihood: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.likelihood = likelihood

    def forward(self, x: Tensor | None = None, *, batch: int = 1, **extras: Any) -> Tensor:
        """Writes the sites `z` (…, n, d) and `x` (…, *shape); returns x, observed or drawn.

        Args:
            x: data (B, *shape), a tensor or an array, or None to generate.
            batch: number of data to generate when x is None.
            extras: what goes with x, such as lengths: each goes to the programs that name it in their signature.

        Raises:
            UserError: if x is one datum without its batch axis.
        """
        offer_parameters(self)
        if x is not None:
            x = torch.as_tensor(x)
        with pyro.plate("data", batch if x is None else x.shape[0]):
            z = pyro.sample("z", call(self.prior, extras))
            p = call(self.likelihood, extras, z)
            if x is not None and x.dim() == len(p.event_shape):
                raise UserError(
                    f"x has shape {tuple(x.shape)}, that of one datum; give it a batch axis, as x[None] has one."
                )
            return pyro.sample("x", p, obs=None if x is None else as_scored(p, x))
