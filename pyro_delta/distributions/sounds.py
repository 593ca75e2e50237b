"""A sound as one random variable: a sequence of levels, each from a mixture of discretised logistics."""

from __future__ import annotations

from typing import ClassVar

from pyro.distributions import constraints
from torch import Tensor

from pyro_delta.distributions.logistic_mixture import DiscretizedLogisticMixture
from pyro_delta.distributions.sequences import AutoregressiveSequence, TokenNetwork


class AutoregressiveSound(AutoregressiveSequence):
    """Sequences of levels 0 … L−1, of which the network gives the parameters of a `DiscretizedLogisticMixture` [1].

    P = 3K: K logits, K means, K log-scales. Of the two uniforms of a number, the first picks the component, the second
    the level within it.

    References:
        1. A. van den Oord et al., "Parallel WaveNet: Fast High-Fidelity Speech Synthesis", ICML 2018, §2.1.
    """

    network: TokenNetwork
    noises: ClassVar[tuple[int, ...]] = (2,)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Integers 0 … L−1 at every place."""
        levels = constraints.integer_interval(0, self.network.levels - 1)
        return constraints.independent(levels, len(self.network.shape))

    def numbers(self, x: Tensor) -> Tensor:
        """Levels as they are: real numbers carry a gradient."""
        return x if x.is_floating_point() else x.to(self.dtype)

    def scores(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Log-probabilities (…) of levels (…) with parameters (…, 3K)."""
        mixture = DiscretizedLogisticMixture.from_parameters(
            parameters, channels=1, levels=self.network.levels, validate_args=False
        )
        return mixture.log_prob(x.unsqueeze(-1))

    def tempered(self, parameters: Tensor, temperature: float) -> Tensor:
        """As `DiscretizedLogisticMixture.tempered`, (…, 3K)."""
        return DiscretizedLogisticMixture.tempered(parameters, temperature, channels=1)

    def pick(self, parameters: Tensor, uniforms: Tensor) -> Tensor:
        """The levels (B,) of noise (B, 2) and parameters (B, 3K)."""
        draw = DiscretizedLogisticMixture.sample_parameters
        return draw(parameters, uniforms, channels=1, levels=self.network.levels).squeeze(-1)
