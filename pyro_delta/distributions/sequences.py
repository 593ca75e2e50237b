"""A sequence as one random variable: autoregressive, conditioned on a latent sequence; and tokens of that kind."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_delta.distributions.shapes import broadcast_shapes


class SequenceNetwork(Protocol):
    """What `AutoregressiveSequence` asks of a network: all numbers at once, and one at a time from a cache."""

    shape: tuple[int, ...]
    training: bool

    def __call__(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        """Parameters (B, *shape, P), causal, of sequences (B, *shape), or of fewer positions of them."""

    def start(self, z_bnd: Tensor) -> Any:
        """A fresh sampling state."""

    def step(self, state: Any, i: int, previous_b: Tensor | None) -> Tensor:
        """Parameters (B, P) of number i in their order, given the one before it (None at the first)."""

    def train(self, mode: bool = True) -> Any:
        """As `torch.nn.Module.train`."""


class TokenNetwork(SequenceNetwork, Protocol):
    """Its parameters are logits of V tokens."""

    levels: int


class AutoregressiveSequence(TorchDistribution):
    """p(x | z) = Π p(x_i | x_{<i}, z) over the numbers of a sequence in the order of their raster.

    Batch shape z.shape[:-2], event shape that of the network, (T,) or (T, K). `log_prob` (nats) is one teacher-forced
    pass; `sample` is cached and incremental, in the network's evaluation mode. A subclass says what a number's
    distribution is: `scores`, `pick`, the type of the numbers, and its support. There is no `rsample`.

    Args:
        network: a `SequenceNetwork`.
        z: latent sequence (…, n, d).
        lengths: positions of each sequence, integers 1 … T that broadcast with the batch shape. What follows counts
            nothing, whatever it is, and is drawn as 0. None for T.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False
    dtype: ClassVar[torch.dtype] = torch.int64
    """Of the numbers that are drawn, …"""
    noises: ClassVar[tuple[int, ...]] = ()
    """… and the shape of the uniforms that each takes."""

    def __init__(
        self, network: SequenceNetwork, z: Tensor, lengths: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        self.network, self.z = network, z
        self.lengths = None if lengths is None else lengths.expand(z.shape[:-2])
        super().__init__(z.shape[:-2], Size(network.shape), validate_args=validate_args)

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probabilities (…) of numbers (…) with parameters (…, P), in nats."""
        raise NotImplementedError

    def pick(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """The numbers (…) that noise (…, *noises) makes of parameters (…, P)."""
        raise NotImplementedError

    def numbers(self, x: Tensor) -> Tensor:
        """Sequences in the type that the network reads."""
        return x.to(self.dtype)

    @property
    def counted(self) -> Tensor | None:
        """Which numbers count, batch_shape + event shape; None if all do."""
        if self.lengths is None:
            return None
        inside = torch.arange(self.event_shape[0], device=self.z.device) < self.lengths.unsqueeze(-1)
        return inside.reshape(inside.shape + (1,) * (len(self.event_shape) - 1)).expand(self.shape())

    def expand(self, batch_shape: Size, _instance: Self | None = None) -> Self:
        """The same distribution with z expanded to `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.network, new.z = self.network, self.z.expand(Size(batch_shape) + self.z.shape[-2:])
        new.lengths = None if self.lengths is None else self.lengths.expand(Size(batch_shape))
        super(AutoregressiveSequence, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def parameters_at(self, x: Tensor) -> Tensor:
        """Teacher-forced parameters (…, *event shape, P) for sequences x (…, *event shape), or shorter ones."""
        event_shape = x.shape[-len(self.event_shape) :]
        shape = broadcast_shapes(x.shape[: -len(event_shape)], self.batch_shape)
        flat_x = self.numbers(x.expand(shape + event_shape).reshape((-1, *event_shape)))
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((-1, *self.z.shape[-2:]))
        parameters = self.network(flat_x, z_bnd)
        return parameters.reshape((*shape, *parameters.shape[1:]))

    def terms(self, x: Tensor) -> Tensor:
        """Log-probability of each number given those before it, in their order: (…, numbers of an event) nats."""
        if self._validate_args:
            self._validate_sample(x)
        axis, positions = -len(self.event_shape), self.event_shape[0]
        # Nothing is computed behind the end of the longest.
        longest = positions if self.lengths is None else int(self.lengths.max())
        numbers = self.numbers(x.narrow(axis, 0, longest))
        terms = self.scores(self.parameters_at(numbers), numbers)
        if (counted := self.counted) is not None:
            terms = torch.where(counted.narrow(axis, 0, longest), terms, 0.0)
            terms = F.pad(terms, (0, 0) * (-axis - 1) + (0, positions - longest))
        return terms.flatten(axis)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of whole sequences in nats, of their batch shape broadcast with that of z."""
        return self.terms(x).sum(-1)

    def noise(self, *shape: int) -> Tensor:
        """Noise that `sample` turns into sequences, uniform on (0, 1), shape + event shape + `noises`."""
        return torch.rand((*shape, *self.event_shape, *self.noises), dtype=self.z.dtype, device=self.z.device)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Size | tuple[int, ...] = Size(),  # noqa: B008
        *,
        uniforms: Tensor | None = None,
    ) -> Tensor:
        """Draws sequences of shape sample_shape + batch_shape + event shape.

        Args:
            sample_shape: shape of independent draws.
            uniforms: the noise, of that shape + `noises`, in (0, 1), of which `pick` makes numbers. Drawn if not given.
        """
        shape = Size(sample_shape) + self.batch_shape
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((-1, *self.z.shape[-2:]))
        uniforms = self.noise(*shape) if uniforms is None else uniforms
        uniforms = uniforms.expand((*shape, *self.event_shape, *self.noises))
        uniforms_bi = uniforms.reshape((len(z_bnd), self.event_shape.numel(), *self.noises))
        x_bi = torch.zeros(uniforms_bi.shape[:2], dtype=self.dtype, device=self.z.device)
        was_training = self.network.training
        self.network.train(False)
        try:
            state = self.network.start(z_bnd)
            positions = self.event_shape[0]
            longest = positions if self.lengths is None else int(self.lengths.max())
            for i in range(x_bi.shape[1] * longest // positions):
                parameters_bp = self.network.step(state, i, x_bi[:, i - 1] if i else None)
                x_bi[:, i] = self.pick(parameters_bp, uniforms_bi[:, i])
        finally:
            self.network.train(was_training)
        x = x_bi.reshape(shape + self.event_shape)
        return x if (counted := self.counted) is None else torch.where(counted, x, 0)


class AutoregressiveTokens(AutoregressiveSequence):
    """Sequences of tokens, integers 0 … V−1, of which the network gives logits: P = V.

    Of noise u token v is picked where u lies between the probability of all lower tokens and that plus its own.
    """

    network: TokenNetwork

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Integers 0 … V−1 at every place."""
        tokens = constraints.integer_interval(0, self.network.levels - 1)
        return constraints.independent(tokens, len(self.network.shape))

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probabilities (…) of tokens (…) with logits (…, V)."""
        log_p = F.log_softmax(parameters, dim=-1)
        return log_p.gather(-1, x.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def pick(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """The token #{v < V − 1 : u ≥ p_0 + … + p_v} of each row."""
        cumulative = F.softmax(parameters, dim=-1).cumsum(-1)
        return (uniforms.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)
