"""A latent sequence as one random variable: every step Gaussian, or a mixture of Gaussians, given the steps before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, constraints

from pyro_delta.distributions.shapes import broadcast_shapes, check_event

LOG_SCALE_BOUND = 7.0
"""Log-scales are clamped to ± this."""


class SequenceNetwork(Protocol):
    """What `SequentialGaussian` asks of a network: any number of steps at once, going on from the steps before them."""

    dims: int
    mixtures: int

    def __call__(self, previous_btd: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Parameters (B, t, P) of t steps, given the z before each of them (zero before the first), and the new state.

        Args:
            previous_btd: (B, t, d).
            state: what the network gave out after the steps before these; None at the start of a sequence.
        """

    def parameters(self) -> Iterator[Tensor]:
        """As `torch.nn.Module.parameters`: the first tells dtype and device."""


class SequentialGaussian(TorchDistribution):
    """p(z) = Π_t p(z_t | z_{<t}), each factor Σ_k π_k N(m_k, diag s_k²) with π, m and s from a network.

    The whole sequence is one event of shape (length, d), one sample site. `log_prob` (nats) is one teacher-forced pass
    over z shifted by one step; `sample` goes step by step and carries the network's state. There is no `rsample`.

    Parameters of a step, in order: K − 1 logits (the first component's is 0), K·d means (all d of the first component,
    then the next), K·d log-scales, clamped to [−7, 7].

    Args:
        network: a `SequenceNetwork` with d = `network.dims` and K = `network.mixtures`.
        length: number of steps n.
        validate_args: check parameters and samples (torch's meaning of the flag).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own protocol)
    support = constraints.independent(constraints.real, 2)
    has_rsample = False

    def __init__(self, network: SequenceNetwork, length: int, validate_args: bool | None = None) -> None:
        self.network = network
        super().__init__(Size(), Size((length, network.dims)), validate_args=validate_args)

    @staticmethod
    def parameter_count(dims: int, mixtures: int) -> int:
        """P, the numbers that a network gives for each step."""
        return mixtures - 1 + 2 * mixtures * dims

    def expand(self, batch_shape: Size, _instance: SequentialGaussian | None = None) -> SequentialGaussian:
        """The same distribution over a larger batch."""
        new = self._get_checked_instance(SequentialGaussian, _instance)
        new.network = self.network
        super(SequentialGaussian, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def conditionals(self, z: Tensor) -> MixtureSameFamily:
        """p(z_t | z_{<t}) of every step of z (…, n, d), in one pass: batch shape (…, n), event shape (d,)."""
        shape = broadcast_shapes(z.shape[:-2], self.batch_shape)
        z_bnd = z.expand(shape + self.event_shape).reshape((shape.numel(), *self.event_shape))
        parameters_bnp, _ = self.network(F.pad(z_bnd[:, :-1], (0, 0, 1, 0)))
        weights, gaussians = self._components(parameters_bnp.reshape((*shape, *parameters_bnp.shape[1:])))
        validate = self._validate_args
        return MixtureSameFamily(weights, Independent(gaussians, 1, validate_args=validate), validate_args=validate)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats; `value` has shape (…, n, d)."""
        if self._validate_args:
            self._validate_sample(value)
        return self.conditionals(value).log_prob(value).sum(-1)

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Size | tuple[int, ...] = Size(),  # noqa: B008
        *,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draws sequences, shape sample_shape + batch_shape + (n, d).

        Args:
            sample_shape: shape of independent draws.
            noise: standard normal, shape sample_shape + batch_shape + (n, 1 + d). Φ of entry 0 of a step picks the
                component (with one component it is idle), entry 1 + k moves dimension k. Drawn if not given.

        Raises:
            ValueError: noise has another shape.
        """
        length, dims = self.event_shape
        shape = Size(sample_shape) + self.batch_shape
        if noise is None:
            like = next(self.network.parameters())
            noise = torch.randn((*shape, length, 1 + dims), dtype=like.dtype, device=like.device)
        check_event(noise, (length, 1 + dims))
        noise_bne = noise.expand((*shape, length, 1 + dims)).reshape((shape.numel(), length, 1 + dims))
        z_bd, state, steps = torch.zeros_like(noise_bne[:, 0, 1:]), None, []
        for noise_be in noise_bne.unbind(1):
            parameters_b1p, state = self.network(z_bd.unsqueeze(1), state)
            z_bd = _draw(*self._components(parameters_b1p.squeeze(1)), noise_be)
            steps.append(z_bd)
        return torch.stack(steps, 1).reshape(shape + self.event_shape)

    def _components(self, parameters: Tensor) -> tuple[Categorical, Normal]:
        """Parameters (…, P) → the weights, batch shape (…), and the Gaussians, batch shape (…, K, d)."""
        components, dims, validate = self.network.mixtures, self.network.dims, self._validate_args
        logits, loc, log_scale = parameters.split((components - 1, components * dims, components * dims), -1)
        scale = log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND).exp()
        loc, scale = (each.unflatten(-1, (components, dims)) for each in (loc, scale))
        weights = Categorical(logits=F.pad(logits, (1, 0)), validate_args=validate)
        return weights, Normal(loc, scale, validate_args=validate)


def _draw(weights: Categorical, gaussians: Normal, noise_be: Tensor) -> Tensor:
    """One draw (B, d) from a mixture of batch shape (B,), noise (B, 1 + d) laid out as for `sample`."""
    below_bk = weights.probs.cumsum(-1)[:, :-1]
    chosen_b = (torch.special.ndtr(noise_be[:, :1]) >= below_bk).sum(-1)
    rows = torch.arange(len(chosen_b), device=chosen_b.device)
    return gaussians.loc[rows, chosen_b] + gaussians.scale[rows, chosen_b] * noise_be[:, 1:]
