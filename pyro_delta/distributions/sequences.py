"""A sequence as one random variable: autoregressive, conditioned on a latent sequence; and tokens of that kind."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_delta.distributions.mode import in_evaluation
from pyro_delta.distributions.shapes import broadcast_shapes, check_event, check_temperature
from pyro_delta.errors import UserError

LOOK = 16
"""Numbers that are drawn between looks whether all sequences have ended."""


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
    """Its parameters are logits of V tokens; `end` is the one that ends a sequence, if one does."""

    levels: int
    end: int | None


class AutoregressiveSequence(TorchDistribution):
    """p(x | z) = Π p(x_i | x_{<i}, z) over the numbers of a sequence in the order of their raster.

    Batch shape z.shape[:-2], event shape that of the network, (T,) or (T, K). `log_prob` (nats) is one teacher-forced
    pass; `sample` is cached and incremental, in the network's evaluation mode. A subclass says what a number's
    distribution is: `scores`, `pick`, the type of the numbers, and its support. There is no `rsample`.

    Args:
        network: a `SequenceNetwork`.
        z: latent sequence (…, n, d).
        lengths: positions of each sequence, integers 1 … T that broadcast with the batch shape. What follows counts
            nothing, whatever it is, and is drawn as `blank`. None for T.
        mask: the numbers that are known, boolean of a shape that broadcasts with batch and event shape. The others
            count nothing, no other number depends on what they are, and they are drawn as `blank`. None for all.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False
    dtype: ClassVar[torch.dtype | None] = torch.int64
    """Of the numbers that are drawn, that of z if None; …"""
    noises: ClassVar[tuple[int, ...]] = ()
    """… the shape of the uniforms that each takes; …"""
    blank: ClassVar[float] = 0
    """… and what the network reads, and draws give, where nothing counts."""

    def __init__(
        self,
        network: SequenceNetwork,
        z: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.network, self.z = network, z
        self.lengths = None if lengths is None else lengths.expand(z.shape[:-2])
        self.mask = None if mask is None else mask.expand(z.shape[:-2] + network.shape)
        super().__init__(z.shape[:-2], Size(network.shape), validate_args=validate_args)

    @property
    def end(self) -> int | None:
        """The number that ends a sequence, if one does: what would be drawn after it is 0."""
        return None

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probabilities (…) of numbers (…) with parameters (…, P), in nats."""
        raise NotImplementedError

    def pick(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """The numbers (…) that noise (…, *noises) makes of parameters (…, P)."""
        raise NotImplementedError

    def tempered(self, parameters: Tensor, temperature: float) -> Tensor:
        """Parameters (…, P) at a temperature: below 1 what is likely becomes likelier.

        Raises:
            UserError: if the subclass does not say how.
        """
        raise UserError(
            f"{type(self).__name__} has no temperature; leave it out, or give that class a method tempered."
        )

    def numbers(self, x: Tensor) -> Tensor:
        """Sequences in the type that the network reads."""
        return x.to(self._dtype)

    @property
    def counted(self) -> Tensor | None:
        """Which numbers count, batch_shape + event shape; None if all do."""
        if self.lengths is None:
            return self.mask
        inside = torch.arange(self.event_shape[0], device=self.z.device) < self.lengths.unsqueeze(-1)
        inside = inside.reshape(inside.shape + (1,) * (len(self.event_shape) - 1)).expand(self.shape())
        return inside if self.mask is None else inside & self.mask

    def expand(self, batch_shape: Size, _instance: Self | None = None) -> Self:
        """The same distribution with z expanded to `batch_shape`."""
        new = self._get_checked_instance(type(self), _instance)
        new.network, new.z = self.network, self.z.expand(Size(batch_shape) + self.z.shape[-2:])
        new.lengths = None if self.lengths is None else self.lengths.expand(Size(batch_shape))
        new.mask = None if self.mask is None else self.mask.expand(Size(batch_shape) + self.event_shape)
        super(AutoregressiveSequence, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def parameters_at(self, x: Tensor) -> Tensor:
        """Teacher-forced parameters (…, *event shape, P) for sequences x (…, *event shape), or shorter ones."""
        event_shape = x.shape[-len(self.event_shape) :]
        shape = broadcast_shapes(x.shape[: -len(event_shape)], self.batch_shape)
        x = self._where_counted(self.numbers(x), self.blank)
        batch = math.prod(shape)  # `numel` would fix a batch that torch.export is to leave free
        flat_x = x.expand(shape + event_shape).reshape((batch, *event_shape))
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((batch, *self.z.shape[-2:]))
        parameters = self.network(flat_x, z_bnd)
        return parameters.reshape((*shape, *parameters.shape[1:]))

    def terms(self, x: Tensor) -> Tensor:
        """Log-probability of each number given those before it, in their order: (…, numbers of an event) nats."""
        x = self._where_counted(x, 0)  # whatever stands there
        if self._validate_args:
            self._validate_sample(x)
        axis, positions = -len(self.event_shape), self.event_shape[0]
        # Nothing is computed behind the end of the longest.
        longest = positions if self.lengths is None else int(self.lengths.max())
        numbers = self.numbers(x.narrow(axis, 0, longest))
        terms = self._where_counted(self.scores(self.parameters_at(numbers), numbers), 0.0)
        return F.pad(terms, (0, 0) * (-axis - 1) + (0, positions - longest)).flatten(axis)

    @property
    def _dtype(self) -> torch.dtype:
        return self.dtype or self.z.dtype

    def _where_counted(self, values: Tensor, blank: float) -> Tensor:
        """Values (…, *event shape), or of fewer positions, and `blank` in the place of those that do not count."""
        if (counted := self.counted) is None:
            return values
        axis = -len(self.event_shape)
        return torch.where(counted.narrow(axis, 0, values.shape[axis]), values, blank)

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
        keep: tuple[Tensor, Tensor] | None = None,
        uniforms: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws sequences of shape sample_shape + batch_shape + event shape.

        Args:
            sample_shape: shape of independent draws.
            keep: sequences, and where, boolean, their numbers are kept; what follows is drawn given them. Both
                broadcast with the shape of the draws.
            uniforms: the noise, of that shape + `noises`, in (0, 1), of which `pick` makes numbers. Drawn if not given.
            temperature: of each number given those before it. With any but 1 they are no draws from p(x | z).

        Raises:
            ValueError: uniforms have another shape, or the temperature is no positive number.
            UserError: as `tempered`.
        """
        shape = Size(sample_shape) + self.batch_shape
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((shape.numel(), *self.z.shape[-2:]))
        uniforms = self.noise(*shape) if uniforms is None else uniforms
        check_event(uniforms, (*self.event_shape, *self.noises))
        uniforms = uniforms.expand((*shape, *self.event_shape, *self.noises))
        uniforms_bi = uniforms.reshape((len(z_bnd), self.event_shape.numel(), *self.noises))

        def by_number(values: Tensor) -> Tensor:
            return values.to(self.z.device).expand(shape + self.event_shape).reshape(uniforms_bi.shape[:2])

        x_bi = torch.full(uniforms_bi.shape[:2], self.blank, dtype=self._dtype, device=self.z.device)
        kept = None if keep is None else [by_number(part) for part in keep]
        counted_bi = None if (counted := self.counted) is None else by_number(counted)
        with in_evaluation(self.network):
            state = self.network.start(z_bnd)
            ended_b = torch.zeros(len(x_bi), dtype=torch.bool, device=x_bi.device)
            positions = self.event_shape[0]
            longest = positions if self.lengths is None else int(self.lengths.max())
            for i in range(x_bi.shape[1] * longest // positions):
                # A look at a GPU makes the host wait: not at every number.
                if self.end is not None and i % LOOK == 0 and bool(ended_b.all()):
                    break
                parameters_bp = self.network.step(state, i, x_bi[:, i - 1] if i else None)
                if temperature != 1:
                    parameters_bp = self.tempered(parameters_bp, temperature)
                drawn_b = self.pick(parameters_bp, uniforms_bi[:, i]).to(x_bi.dtype)
                if kept is not None:
                    drawn_b = torch.where(kept[1][:, i], kept[0][:, i].to(x_bi.dtype), drawn_b)
                if counted_bi is not None:
                    drawn_b = torch.where(counted_bi[:, i], drawn_b, self.blank)
                if self.end is not None:
                    drawn_b = torch.where(ended_b, 0, drawn_b)
                    ended_b |= drawn_b == self.end
                x_bi[:, i] = drawn_b
        return x_bi.reshape(shape + self.event_shape)


class AutoregressiveTokens(AutoregressiveSequence):
    """Sequences of tokens, integers 0 … V−1, of which the network gives logits: P = V.

    Where the network knows a token that ends a sequence, samples hold 0 after the first one. That is how a text is
    drawn: what would come after its end says nothing of it.

    Of noise u token v is picked where u lies between the probability of all lower tokens and that plus its own.
    """

    network: TokenNetwork

    @property
    def end(self) -> int | None:
        """The token that ends a sequence, if one does."""
        return self.network.end

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Integers 0 … V−1 at every place."""
        tokens = constraints.integer_interval(0, self.network.levels - 1)
        return constraints.independent(tokens, len(self.network.shape))

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probabilities (…) of tokens (…) with logits (…, V)."""
        log_p = F.log_softmax(parameters, dim=-1)
        return log_p.gather(-1, x.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def tempered(self, parameters: Tensor, temperature: float) -> Tensor:
        """Logits (…, V) of probabilities to the power 1/T."""
        check_temperature(temperature)
        return parameters / temperature

    def pick(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """The token #{v < V − 1 : u ≥ p_0 + … + p_v} of each row."""
        cumulative = F.softmax(parameters, dim=-1).cumsum(-1)
        return (uniforms.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)
