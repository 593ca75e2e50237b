"""What guides of sequences share: a network that reads from the end, and Gaussians, independent over steps."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.errors import UserError
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.protocol import Prior
from pyro_delta.rate import minimising_posterior
from pyro_delta.svi import offer_parameters


class BackwardGRU(Network):
    """From data to a few numbers for each latent step, which hear of positions ≥ starts[t] alone.

    What a subclass reads at each position is reversed, from the datum's own end on, and read by a GRU; step t takes the
    state at position starts[t].

    Args:
        starts: (n,) of the prior.
        outputs: numbers given out per step.
        hidden: units.
        reading: layers that `read` uses, by name.
    """

    ends = ("out",)

    starts: Tensor

    def __init__(self, starts: Tensor, outputs: int, *, hidden: int, **reading: nn.Module) -> None:
        super().__init__()
        for name, layer in reading.items():
            self.add_module(name, layer)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, outputs)
        self.register_buffer("starts", starts.clone(), persistent=False)

    def read(self, x: Tensor) -> Tensor:
        """Data (B, T, …) → what is read at each position, (B, T, hidden)."""
        raise NotImplementedError

    @autocast_inside
    def forward(self, x: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        """Data (B, T, …), and their positions if they are fewer than T, → (B, n, outputs).

        What steps at and after the end of a datum get is of no account.
        """
        return self.out(self.features(x, lengths_b))

    def features(self, x: Tensor, lengths_b: Tensor | None = None) -> Tensor:
        """(B, n, hidden), before the last layer."""
        if lengths_b is not None:  # nothing is read behind the end of the longest
            x = x[:, : int(lengths_b.max())]
        v_bth = self.read(x)
        if lengths_b is None:
            seen_bth, _ = self.gru(v_bth.flip(1))
            return seen_bth.flip(1)[:, self.starts]
        last_b1 = lengths_b.unsqueeze(-1) - 1
        seen_bth, _ = self.gru(_taken(v_bth, last_b1 - torch.arange(v_bth.shape[1], device=x.device)))
        return _taken(seen_bth, last_b1 - self.starts)


def _taken(v_bth: Tensor, places_bs: Tensor) -> Tensor:
    """(B, S, h) at places of each sequence, the first in the place of those below 0."""
    return v_bth.gather(1, places_bs.clamp_min(0).unsqueeze(-1).expand(-1, -1, v_bth.shape[-1]))


class SequenceGuide(nn.Module):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from a network that reads backwards.

    σ starts at that of the posterior that attains the prior's δ. Steps from the end of a datum on are N(0, 1), as a
    prior with lengths has them, and cost nothing.

    Args:
        encoder: that gives 2d numbers for each step.
        shape: event shape of the data.
        prior: a Gaussian prior.
        datum: one of the data in words.
    """

    causality: ClassVar[str] = "anti_causal"

    scale: Tensor

    def __init__(self, encoder: BackwardGRU, shape: tuple[int, ...], prior: Prior, datum: str = "sequence") -> None:
        super().__init__()
        self.dims, self.shape, self.datum = prior().event_shape[-1], shape, datum
        self.encoder = encoder
        with torch.no_grad():
            scale = minimising_posterior(prior()).base_dist.scale
        self.register_buffer("scale", scale.to(torch.get_default_dtype()))

    def posterior(self, x: Tensor, lengths: Tensor | None = None) -> dist.Independent:
        """q(z | x) for data (…, *shape), of positions (…) if they have lengths, event shape (n, d)."""
        batch = x.shape[: -len(self.shape)]
        flat = x.reshape((-1, *self.shape))
        raw = self.encoder(flat) if lengths is None else self.encoder(flat, lengths.reshape(-1))
        mean, ratio = raw.reshape((*batch, *raw.shape[-2:])).split(self.dims, dim=-1)
        scale = self.scale * (F.softplus(ratio) / math.log(2.0)) + 1e-6
        if lengths is not None:
            inside = self._inside(lengths).unsqueeze(-1)
            mean, scale = torch.where(inside, mean, 0.0), torch.where(inside, scale, 1.0)
        return dist.Normal(mean, scale).to_event(2)

    def _inside(self, lengths: Tensor) -> Tensor:
        """Which steps belong to positions of a datum, (…, n)."""
        return self.encoder.starts < lengths.unsqueeze(-1)

    def forward(self, x: Any, lengths: Tensor | None = None) -> Tensor:
        """Writes the site `z` for data x (B, *shape), a tensor or an array, of positions (B,).

        Raises:
            UserError: if x is one datum without its batch axis.
        """
        offer_parameters(self)
        x = torch.as_tensor(x)
        if x.dim() == len(self.shape):
            raise UserError(
                f"x has shape {tuple(x.shape)}, that of one {self.datum}; give it a batch axis, as x[None] has."
            )
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x, lengths))

    @torch.no_grad()
    def start_from(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Takes its initial weights from data (B, *shape): means of mean 0 and deviation 1 over them, all else 0.

        Of data with lengths, the steps that belong to them count.
        """
        out, d = self.encoder.out, self.dims
        out.weight[d:], out.bias[d:] = 0.0, 0.0
        mean_bnd = self.encoder(x, lengths)[..., :d]
        mean_kd = mean_bnd.flatten(0, 1) if lengths is None else mean_bnd[self._inside(lengths)]
        deviation_d = mean_kd.std(0, correction=0).clamp_min(1e-6)
        out.weight[:d] /= deviation_d.unsqueeze(1)
        out.bias[:d] = (out.bias[:d] - mean_kd.mean(0)) / deviation_d
