"""A GRU over tokens as a guide: anti-causal, for it reads the sequence from its end."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.data.sequences.spec import require_tokens
from pyro_delta.errors import UserError
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.protocol import Prior, Spec
from pyro_delta.rate import minimising_posterior
from pyro_delta.svi import offer_parameters
from pyro_delta.validation import Count


class BackwardGRU(Network):
    """From tokens to a few numbers for each latent step, which hear of tokens ≥ starts[t] alone.

    The sequence is reversed and read by a GRU; step t takes the state at token starts[t].

    Args:
        levels: V.
        starts: (n,) of the prior.
        outputs: numbers given out per step.
        hidden: units.
    """

    ends = ("out",)

    starts: Tensor

    def __init__(self, levels: int, starts: Tensor, outputs: int, *, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(levels, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, outputs)
        self.register_buffer("starts", starts.clone(), persistent=False)

    @autocast_inside
    def forward(self, x_bt: Tensor) -> Tensor:
        """Tokens (B, T) → (B, n, outputs)."""
        return self.out(self.features(x_bt))

    def features(self, x_bt: Tensor) -> Tensor:
        """(B, n, hidden), before the last layer."""
        seen_bth, _ = self.gru(self.embed(x_bt.long()).flip(1))
        return seen_bth.flip(1)[:, self.starts]


class GRUGuide(nn.Module):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from a GRU that reads the tokens backwards.

    σ starts at that of the posterior that attains the prior's δ.

    Args:
        spec: of the sequences.
        prior: a Gaussian prior.
        hidden: units.

    Raises:
        UserError: if the data are no sequences of tokens.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences:GRUGuide"
    causality: ClassVar[str] = "anti_causal"

    scale: Tensor

    def __init__(self, spec: Spec, prior: Prior, *, hidden: Count = 64) -> None:
        super().__init__()
        tokens = require_tokens(spec, "guide", "gru")
        self.dims = prior().event_shape[-1]
        self.encoder = BackwardGRU(tokens.levels, prior.starts, 2 * self.dims, hidden=hidden)
        with torch.no_grad():
            scale = minimising_posterior(prior()).base_dist.scale
        self.register_buffer("scale", scale.to(torch.get_default_dtype()))

    def posterior(self, x: Tensor) -> dist.Independent:
        """q(z | x) for sequences (…, T), event shape (n, d)."""
        raw = self.encoder(x.reshape((-1, x.shape[-1])))
        mean, ratio = raw.reshape((*x.shape[:-1], *raw.shape[-2:])).split(self.dims, dim=-1)
        return dist.Normal(mean, self.scale * (F.softplus(ratio) / math.log(2.0)) + 1e-6).to_event(2)

    def forward(self, x: Tensor) -> Tensor:
        """Writes the site `z` for sequences x (B, T), a tensor or an array.

        Raises:
            UserError: if x is one sequence without its batch axis.
        """
        offer_parameters(self)
        x = torch.as_tensor(x)
        if x.dim() == 1:
            raise UserError(
                f"x has shape {tuple(x.shape)}, that of one sequence; give it a batch axis, as x[None] has."
            )
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Takes its initial weights from sequences (B, T): means of mean 0 and deviation 1 over them, all else 0."""
        out, d = self.encoder.out, self.dims
        out.weight[d:], out.bias[d:] = 0.0, 0.0
        mean_kd = self.encoder(x)[..., :d].flatten(0, 1)
        deviation_d = mean_kd.std(0, correction=0).clamp_min(1e-6)
        out.weight[:d] /= deviation_d.unsqueeze(1)
        out.bias[:d] = (out.bias[:d] - mean_kd.mean(0)) / deviation_d
