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
    length: int
    training: bool

    def __call__(self, x_bt: Tensor, z_bnd: Tensor) -> Tensor:
        """Logits (B, T, V), causal."""

    def start(self, z_bnd: Tensor) -> Any:
        """A fresh sampling state."""

    def step(self, state: Any, t: int, previous_b: Tensor | None) -> Tensor:
        """Logits (B, V) of token t, given the one before it (None at the first)."""

    def train(self, mode: bool = True) -> Any:
        """As `torch.nn.Module.train`."""


class AutoregressiveTokens(TorchDistribution):
    """p(x | z) = Π p(x_t | x_{<t}, z), categorical.

    Batch shape z.shape[:-2], event shape (T,), integers 0 … V−1. `log_prob` (nats) is one teacher-forced pass; `sample`
    is cached and incremental, in the network's evaluation mode. There is no `rsample`: tokens are discrete.

    Args:
        network: a `TokenNetwork`.
        z: latent sequence (…, n, d).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, network: TokenNetwork, z: Tensor, validate_args: bool | None = None) -> None:
        self.network, self.z = network, z
        super().__init__(z.shape[:-2], Size((network.length,)), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Integers 0 … V−1 at every place."""
        return constraints.independent(constraints.integer_interval(0, self.network.levels - 1), 1)

    def expand(self, batch_shape: Size, _instance: AutoregressiveTokens | None = None) -> AutoregressiveTokens:
        """The same distribution with z expanded to `batch_shape`."""
        new = self._get_checked_instance(AutoregressiveTokens, _instance)
        new.network, new.z = self.network, self.z.expand(Size(batch_shape) + self.z.shape[-2:])
        super(AutoregressiveTokens, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def parameters_at(self, x: Tensor) -> Tensor:
        """Teacher-forced logits (…, T, V) for sequences x (…, T)."""
        shape = broadcast_shapes(x.shape[:-1], self.batch_shape)
        x_bt = x.expand(shape + self.event_shape).reshape((-1, *self.event_shape)).long()
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((-1, *self.z.shape[-2:]))
        logits_btv = self.network(x_bt, z_bnd)
        return logits_btv.reshape((*shape, *logits_btv.shape[1:]))

    def terms(self, x: Tensor) -> Tensor:
        """Log-probability of each token given those before it, (…, T) nats."""
        if self._validate_args:
            self._validate_sample(x)
        log_p = F.log_softmax(self.parameters_at(x), dim=-1)
        tokens = x.long().expand(log_p.shape[:-1])
        return log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of whole sequences in nats, shape x.shape[:-1] broadcast with the batch shape."""
        return self.terms(x).sum(-1)

    def noise(self, *shape: int) -> Tensor:
        """Noise that `sample` turns into sequences, uniform on (0, 1), shape + (T,)."""
        return torch.rand((*shape, *self.event_shape), dtype=self.z.dtype, device=self.z.device)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Size | tuple[int, ...] = Size(),  # noqa: B008
        *,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """Draws sequences, integers of shape sample_shape + batch_shape + (T,).

        Args:
            sample_shape: shape of independent draws.
            uniforms: the noise, shape sample_shape + batch_shape + (T,) in (0, 1): token v is picked where the noise
                lies between the probability of all lower tokens and that plus its own. Drawn if not given.
        """
        shape = Size(sample_shape) + self.batch_shape
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((-1, *self.z.shape[-2:]))
        uniforms = self.noise(*shape) if uniforms is None else uniforms
        uniforms_bt = uniforms.expand((*shape, *self.event_shape)).reshape((-1, *self.event_shape))
        x_bt = torch.zeros(uniforms_bt.shape, dtype=torch.int64, device=self.z.device)
        was_training = self.network.training
        self.network.train(False)
        try:
            state = self.network.start(z_bnd)
            for t in range(self.event_shape[0]):
                logits_bv = self.network.step(state, t, x_bt[:, t - 1] if t else None)
                x_bt[:, t] = pick(logits_bv, uniforms_bt[:, t])
        finally:
            self.network.train(was_training)
        return x_bt.reshape(shape + self.event_shape)


def pick(logits_bv: Tensor, uniform_b: Tensor) -> Tensor:
    """The category #{v < V − 1 : u ≥ p_0 + … + p_v} of each row."""
    cumulative_bv = F.softmax(logits_bv, dim=-1).cumsum(-1)
    return (uniform_b.unsqueeze(-1) >= cumulative_bv[:, :-1]).sum(-1)
