"""A sequence of tokens as one random variable: autoregressive, conditioned on a latent sequence."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_delta.distributions.shapes import broadcast_shapes


class TokenNetwork(Protocol):
    """What `AutoregressiveTokens` asks of a network: all tokens at once, and one at a time from a cache."""

    levels: int
    shape: tuple[int, ...]
    training: bool

    def __call__(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        """Logits (B, *shape, V), causal, of tokens (B, *shape)."""

    def start(self, z_bnd: Tensor) -> Any:
        """A fresh sampling state."""

    def step(self, state: Any, i: int, previous_b: Tensor | None) -> Tensor:
        """Logits (B, V) of token i in their order, given the one before it (None at the first)."""

    def train(self, mode: bool = True) -> Any:
        """As `torch.nn.Module.train`."""


class AutoregressiveTokens(TorchDistribution):
    """p(x | z) = Π p(x_i | x_{<i}, z), categorical, over tokens in the order of their raster.

    Batch shape z.shape[:-2], event shape that of the network, (T,) or (T, K), integers 0 … V−1. `log_prob` (nats) is
    one teacher-forced pass; `sample` is cached and incremental, in the network's evaluation mode. There is no
    `rsample`: tokens are discrete.

    Args:
        network: a `TokenNetwork`.
        z: latent sequence (…, n, d).
        lengths: positions of each sequence, integers 1 … T that broadcast with the batch shape. What follows counts
            nothing, whatever it is, and is drawn as 0. None for T.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self, network: TokenNetwork, z: Tensor, lengths: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        self.network, self.z = network, z
        self.lengths = None if lengths is None else lengths.expand(z.shape[:-2])
        super().__init__(z.shape[:-2], Size(network.shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Integers 0 … V−1 at every place."""
        tokens = constraints.integer_interval(0, self.network.levels - 1)
        return constraints.independent(tokens, len(self.network.shape))

    @property
    def counted(self) -> Tensor | None:
        """Which tokens count, batch_shape + event shape; None if all do."""
        if self.lengths is None:
            return None
        inside = torch.arange(self.event_shape[0], device=self.z.device) < self.lengths.unsqueeze(-1)
        return inside.reshape(inside.shape + (1,) * (len(self.event_shape) - 1)).expand(self.shape())

    def expand(self, batch_shape: Size, _instance: AutoregressiveTokens | None = None) -> AutoregressiveTokens:
        """The same distribution with z expanded to `batch_shape`."""
        new = self._get_checked_instance(AutoregressiveTokens, _instance)
        new.network, new.z = self.network, self.z.expand(Size(batch_shape) + self.z.shape[-2:])
        new.lengths = None if self.lengths is None else self.lengths.expand(Size(batch_shape))
        super(AutoregressiveTokens, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def parameters_at(self, x: Tensor) -> Tensor:
        """Teacher-forced logits (…, *event shape, V) for sequences x (…, *event shape)."""
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        """The same for sequences that may be shorter."""
        event_shape = x.shape[-len(self.event_shape) :]
        shape = broadcast_shapes(x.shape[: -len(event_shape)], self.batch_shape)
        flat_x = x.expand(shape + event_shape).reshape((-1, *event_shape)).long()
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((-1, *self.z.shape[-2:]))
        logits = self.network(flat_x, z_bnd)
        return logits.reshape((*shape, *logits.shape[1:]))

    def terms(self, x: Tensor) -> Tensor:
        """Log-probability of each token given those before it, in their order: (…, numbers of an event) nats."""
        if self._validate_args:
            self._validate_sample(x)
        axis, positions = -len(self.event_shape), self.event_shape[0]
        # Nothing is computed behind the end of the longest.
        longest = positions if self.lengths is None else int(self.lengths.max())
        tokens = x.narrow(axis, 0, longest).long()
        log_p = F.log_softmax(self._logits(tokens), dim=-1)
        terms = log_p.gather(-1, tokens.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        if (counted := self.counted) is not None:
            terms = torch.where(counted.narrow(axis, 0, longest), terms, 0.0)
            terms = F.pad(terms, (0, 0) * (-axis - 1) + (0, positions - longest))
        return terms.flatten(axis)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of whole sequences in nats, of their batch shape broadcast with that of z."""
        return self.terms(x).sum(-1)

    def noise(self, *shape: int) -> Tensor:
        """Noise that `sample` turns into sequences, uniform on (0, 1), shape + event shape."""
        return torch.rand((*shape, *self.event_shape), dtype=self.z.dtype, device=self.z.device)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Size | tuple[int, ...] = Size(),  # noqa: B008
        *,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """Draws sequences, integers of shape sample_shape + batch_shape + event shape.

        Args:
            sample_shape: shape of independent draws.
            uniforms: the noise, of that shape, in (0, 1): token v is picked where the noise lies between the
                probability of all lower tokens and that plus its own. Drawn if not given.
        """
        shape = Size(sample_shape) + self.batch_shape
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((-1, *self.z.shape[-2:]))
        uniforms = self.noise(*shape) if uniforms is None else uniforms
        uniforms_bi = uniforms.expand((*shape, *self.event_shape)).reshape((-1, self.event_shape.numel()))
        x_bi = torch.zeros(uniforms_bi.shape, dtype=torch.int64, device=self.z.device)
        was_training = self.network.training
        self.network.train(False)
        try:
            state = self.network.start(z_bnd)
            for i in range(x_bi.shape[1]):
                logits_bv = self.network.step(state, i, x_bi[:, i - 1] if i else None)
                x_bi[:, i] = pick(logits_bv, uniforms_bi[:, i])
        finally:
            self.network.train(was_training)
        x = x_bi.reshape(shape + self.event_shape)
        return x if (counted := self.counted) is None else torch.where(counted, x, 0)


def pick(logits_bv: Tensor, uniform_b: Tensor) -> Tensor:
    """The category #{v < V − 1 : u ≥ p_0 + … + p_v} of each row."""
    cumulative_bv = F.softmax(logits_bv, dim=-1).cumsum(-1)
    return (uniform_b.unsqueeze(-1) >= cumulative_bv[:, :-1]).sum(-1)
