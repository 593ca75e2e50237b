"""Series of real numbers as one random variable: autoregressive, each a mixture of logistics."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from pyro_delta.distributions.logistic_mixture import DiscretizedLogisticMixture
from pyro_delta.distributions.sequences import AutoregressiveSequence, SequenceNetwork


class NumberNetwork(SequenceNetwork, Protocol):
    """Its parameters are those of mixtures of M logistics: M logits, M means, M log-scales. It reads NaN as missing."""

    resolution: float | None

    def take(self, state: Any, order: Tensor) -> Any:
        """The sampling state of the sequences at indices, in that order."""


class AutoregressiveNumbers(AutoregressiveSequence):
    r"""Series of real numbers; each, given those before it and z, is a mixture of logistics: P = 3M.

    Without a resolution, log-probabilities are of the density Σ_k π_k σ(u_k) σ(−u_k) / s_k, u_k = (x − m_k) / s_k. With
    a resolution r, data are multiples of r, and the density is constant over the bin around each, x̄ = r·round(x / r):

    .. math::
        p(x) = \frac{1}{r} \sum_k \pi_k [σ((x̄ + r/2 - m_k) / s_k) - σ((x̄ - r/2 - m_k) / s_k)],

    so that −log p(x) − ln r are the exact nats of a bin. Draws stand in the middle of their bin.

    A number that does not count is NaN to the network, and in draws.

    Of noise (u, v) the component #{k < M − 1 : u ≥ π_0 + … + π_k} is picked, and x = m + s·ln(v / (1 − v)), rounded to
    the resolution; v is kept from 0 and 1 by the machine's ε.
    """

    network: NumberNetwork
    dtype: ClassVar[torch.dtype | None] = None
    noises: ClassVar[tuple[int, ...]] = (2,)
    blank: ClassVar[float] = math.nan

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real numbers."""
        return constraints.independent(constraints.real, len(self.network.shape))

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-densities (…) of numbers (…) with parameters (…, 3M)."""
        logits, mean, log_scale = parameters.unflatten(-1, (3, -1)).unbind(-2)
        inverse = torch.exp(-log_scale)
        if (resolution := self.network.resolution) is None:
            centred = (x.unsqueeze(-1) - mean) * inverse
            log_p = F.logsigmoid(centred) + F.logsigmoid(-centred) - log_scale
        else:
            centred = (self._rounded(x).unsqueeze(-1) - mean) * inverse
            half = inverse * (resolution / 2)
            # ln[σ(b) − σ(a)] = ln σ(b) + ln σ(−a) + ln(1 − e^{a−b}), which cancels nowhere.
            log_p = F.logsigmoid(half + centred) + F.logsigmoid(half - centred) + torch.log(-torch.expm1(-2 * half))
            log_p = log_p - math.log(resolution)
        return torch.logsumexp(F.log_softmax(logits, dim=-1) + log_p, dim=-1)

    def tempered(self, parameters: Tensor, temperature: float) -> Tensor:
        """As `DiscretizedLogisticMixture.tempered`, (…, 3M)."""
        return DiscretizedLogisticMixture.tempered(parameters, temperature, channels=1)

    def pick(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """The numbers (…) that noise (…, 2) makes of parameters (…, 3M)."""
        logits, mean, log_scale = parameters.unflatten(-1, (3, -1)).unbind(-2)
        cumulative = F.softmax(logits, dim=-1).cumsum(-1)
        component = (uniforms[..., :1] >= cumulative[..., :-1]).sum(-1, keepdim=True)
        mean, log_scale = (part.gather(-1, component).squeeze(-1) for part in (mean, log_scale))
        noise = torch.logit(uniforms[..., 1], eps=torch.finfo(uniforms.dtype).eps)
        return self._rounded(mean + log_scale.exp() * noise)

    def _rounded(self, x: Tensor) -> Tensor:
        resolution = self.network.resolution
        return x if resolution is None else torch.round(x / resolution) * resolution
