"""What guides of sequences share: a network that reads from the end, and Gaussians, independent over steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_delta.data.condition import Condition, condition_of
from pyro_delta.errors import UserError
from pyro_delta.guides.contour import Contour
from pyro_delta.nn.condition import ConditionFeatures, check_told, given
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.protocol import Prior, Spec
from pyro_delta.rate import minimising_posterior
from pyro_delta.svi import offer_parameters


class Backward(Network):
    """From data to a few numbers for each latent step, which hear of positions ≥ starts[t] alone.

    What is read at each position is reversed, from the datum's own end on, and goes through a causal trunk; step t
    takes what comes out at position starts[t]. With a second trunk, which reads from the beginning, it takes what comes
    out of that as well, and hears of all positions.

    Args:
        reader: of positions: data (B, T, …) → (B, T, hidden); its `blank` stands for what is missing.
        trunk: causal, (B, T, hidden) → (B, T, hidden).
        starts: (n,) of the prior.
        outputs: numbers given out per step.
        hidden: features.
        forwards: the second trunk, or None.
        condition: of the spec; what is read at every position hears it.
    """

    ends = ("reader", "out")

    reader: Any
    starts: Tensor

    def __init__(
        self,
        reader: nn.Module,
        trunk: nn.Module,
        starts: Tensor,
        outputs: int,
        *,
        hidden: int,
        forwards: nn.Module | None = None,
        condition: Condition | None = None,
    ) -> None:
        super().__init__()
        self.reader, self.trunk, self.forwards = reader, trunk, forwards
        self.out = nn.Linear(hidden if forwards is None else 2 * hidden, outputs)
        self.condition = None if condition is None else ConditionFeatures(condition, hidden, scale=0.0)
        self.register_buffer("starts", starts.clone(), persistent=False)

    @autocast_inside
    def forward(self, x: Tensor, lengths_b: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Data (B, T, …), their positions if they are fewer than T, and their condition, → (B, n, outputs).

        What steps at and after the end of a datum get is of no account.
        """
        return self.out(self.features(x, lengths_b, **given(condition)))

    def features(self, x: Tensor, lengths_b: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """(B, n, hidden), or twice as many with the second trunk, before the last layer."""
        # Nothing is read behind the end of the longest; a traced program has one width for all.
        if lengths_b is not None and not torch.compiler.is_compiling():
            x = x[:, : int(lengths_b.max())]
        v_bth = self.reader(x)
        if self.condition is not None:
            v_bth = v_bth + self.condition(condition).unsqueeze(1)
        seen_bnh = self._from_the_end(v_bth, lengths_b)
        if self.forwards is None:
            return seen_bnh
        places_bn = self.starts.expand(len(x), -1)
        if lengths_b is not None:
            places_bn = torch.minimum(places_bn, lengths_b.unsqueeze(-1) - 1)
        return torch.cat((seen_bnh, _taken(self.forwards(v_bth), places_bn)), -1)

    def _from_the_end(self, v_bth: Tensor, lengths_b: Tensor | None) -> Tensor:
        if lengths_b is None:
            return self.trunk(v_bth.flip(1)).flip(1)[:, self.starts]
        last_b1 = lengths_b.unsqueeze(-1) - 1
        seen_bth = self.trunk(_taken(v_bth, last_b1 - torch.arange(v_bth.shape[1], device=v_bth.device)))
        return _taken(seen_bth, last_b1 - self.starts)


def _taken(v_bth: Tensor, places_bs: Tensor) -> Tensor:
    """(B, S, h) at places of each sequence, the first in the place of those below 0."""
    return v_bth.gather(1, places_bs.clamp_min(0).unsqueeze(-1).expand(-1, -1, v_bth.shape[-1]))


class SequenceGuide(nn.Module):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from a network that reads backwards.

    With `forwards` every step hears of all positions: x in the place of x_{≥t}, the paper's ablation.

    σ starts at that of the posterior that attains the prior's δ. Steps from the end of a datum on are N(0, 1), as a
    prior with lengths has them, and cost nothing. What a mask says is missing is not read.

    With `rate_nats` the floor is the guide's, not the prior's: against N(0, 1) each coordinate keeps its distance, as
    `Contour` has it.

    Args:
        spec: of the data.
        prior: a Gaussian prior; a standard normal one with `rate_nats`.
        reader: of positions, see `Backward`.
        trunk: causal.
        hidden: features of both.
        forwards: a second trunk, which reads from the beginning; None leaves the guide anti-causal.
        rate_nats: δ of a datum of all positions, shared evenly by its n·d coordinates; a shorter one commits the share
            of its steps. None leaves it to the prior.

    Raises:
        UserError: for a rate with a prior that is not standard normal, or one that cannot be committed.
    """

    causality: str = "anti_causal"

    scale: Tensor

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        reader: nn.Module,
        trunk: nn.Module,
        *,
        hidden: int,
        forwards: nn.Module | None = None,
        rate_nats: float | None = None,
    ) -> None:
        super().__init__()
        if forwards is not None:
            self.causality = "none"
        self.dims, self.shape = prior().event_shape[-1], spec.shape
        self.datum = getattr(spec, "datum", "datum")
        condition = condition_of(spec)
        self.encoder = Backward(
            reader, trunk, prior.starts, 2 * self.dims, hidden=hidden, forwards=forwards, condition=condition
        )
        self.contour = None if rate_nats is None else Contour(prior(), rate_nats)
        if self.contour is None:
            with torch.no_grad():
                scale = minimising_posterior(prior()).base_dist.scale
            self.register_buffer("scale", scale.to(torch.get_default_dtype()))

    @property
    def committed_rate(self) -> Callable[[Distribution], float | Tensor] | None:
        """Gives δ in nats of this family against a prior; None where the prior's own is that."""
        return None if self.contour is None else self.contour.committed_rate

    def posterior(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> dist.Independent:
        """q(z | x), event shape (n, d).

        Args:
            x: data (…, *shape).
            lengths: their positions (…), if they have lengths.
            mask: what is known of them.
            condition: what they are conditioned on.

        Raises:
            UserError: if there is a condition that the spec says nothing of, or none where it does.
        """
        check_told(getattr(self.encoder, "condition", None), condition)
        batch, x = x.shape[: -len(self.shape)], self._known(x, lengths, mask)
        size = math.prod(batch)
        flat = x.reshape((size, *self.shape))
        if condition is not None:
            condition = condition.reshape((size, *condition.shape[len(batch) :]))
        raw = self.encoder(flat, *(() if lengths is None else (lengths.reshape(-1),)), **given(condition))
        mean, scale = self._moments(*raw.reshape((*batch, *raw.shape[-2:])).split(self.dims, dim=-1))
        if lengths is not None:
            inside = self._inside(lengths).unsqueeze(-1)
            mean, scale = torch.where(inside, mean, 0.0), torch.where(inside, scale, 1.0)
        return dist.Normal(mean, scale).to_event(2)

    def _moments(self, mean: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """μ and σ of the two numbers of each coordinate."""
        if self.contour is not None:
            return self.contour(mean, other)
        return mean, self.scale * (F.softplus(other) / math.log(2.0)) + 1e-6

    def _known(self, x: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor:
        """The data, with nothing in the place of what is missing or behind the end."""
        if lengths is not None:
            inside = torch.arange(self.shape[0], device=x.device) < lengths.unsqueeze(-1)
            inside = inside.reshape(inside.shape + (1,) * (len(self.shape) - 1))
            mask = inside if mask is None else mask & inside
        return x if mask is None else torch.where(mask, x, self.encoder.reader.blank)

    def _inside(self, lengths: Tensor) -> Tensor:
        """Which steps belong to positions of a datum, (…, n)."""
        return self.encoder.starts < lengths.unsqueeze(-1)

    def forward(
        self, x: Any, lengths: Tensor | None = None, mask: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Writes the site `z` for data x (B, *shape), a tensor or an array; the others as of `posterior`.

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
            return pyro.sample("z", self.posterior(x, lengths, mask, **given(condition)))

    @torch.no_grad()
    def start_from(
        self, x: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None, condition: Tensor | None = None
    ) -> None:
        """Takes its initial weights from data (B, *shape): means of mean 0 and deviation 1 over them, all else 0.

        Of a contour both numbers of a coordinate start like the mean. Of data with lengths, the steps that belong to
        them count.
        """
        out, o = self.encoder.out, self.dims if self.contour is None else 2 * self.dims
        out.weight[o:], out.bias[o:] = 0.0, 0.0
        numbers_bno = self.encoder(self._known(x, lengths, mask), lengths, **given(condition))[..., :o]
        numbers_ko = numbers_bno.flatten(0, 1) if lengths is None else numbers_bno[self._inside(lengths)]
        deviation_o = numbers_ko.std(0, correction=0).clamp_min(1e-6)
        out.weight[:o] /= deviation_o.unsqueeze(1)
        out.bias[:o] = (out.bias[:o] - numbers_ko.mean(0)) / deviation_o
