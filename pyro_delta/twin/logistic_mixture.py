"""Images as mixtures of discretised logistics [1], in NumPyro. Everything is in nats.

Written from the equations and from `docs/architecture.md`. Arrays keep the precision that they come in.
C channels, H rows, W columns, L levels, K mixture components.

References:
    [1] T. Salimans et al., "PixelCNN++", ICLR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.util import validate_sample

from pyro_delta.twin.distributions import Shape, floating


class DiscretizedLogisticMixture(Distribution):
    """Pixels of L levels from mixtures of logistics; a channel's mean hears those before it [1].

    Level x stands at y = 2x/(L−1) − 1. One component k speaks for all channels of a pixel.

    Args:
        logits: (..., H, W, K).
        means: μ (..., C, H, W, K), C = 1 to 4.
        log_scales: (..., C, H, W, K).
        coefficients: for C > 1: (..., C(C−1)/2, H, W, K); of three, red to green, red to blue, green to blue.
        levels: L ≥ 2.
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.independent(constraints.real, 3),
        "means": constraints.independent(constraints.real, 4),
        "log_scales": constraints.independent(constraints.real, 4),
        "coefficients": constraints.independent(constraints.real, 4),
    }
    pytree_data_fields = ("logits", "means", "log_scales", "coefficients")
    pytree_aux_fields = ("levels",)

    def __init__(
        self,
        logits: Any,
        means: Any,
        log_scales: Any,
        coefficients: Any = None,
        *,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.means, self.log_scales = floating(logits), floating(means), floating(log_scales)
        channels, *image, mixtures = self.means.shape[-4:]
        if channels not in range(1, 5) or levels < 2:
            raise ValueError(f"{channels} channels of {levels} levels: there are 1 to 4 of at least 2")
        if coefficients is None:
            coefficients = jnp.zeros((0, *image, mixtures), self.means.dtype)
        self.coefficients, self.levels = floating(coefficients), levels
        pairs = channels * (channels - 1) // 2
        fitting = [(*image, mixtures), (channels, *image, mixtures), (pairs, *image, mixtures)]
        if [self.logits.shape[-3:], self.log_scales.shape[-4:], self.coefficients.shape[-4:]] != fitting:
            raise ValueError(
                f"logits {self.logits.shape}, means {self.means.shape}, log_scales {self.log_scales.shape} and "
                f"coefficients {self.coefficients.shape} do not fit each other"
            )
        batches = [self.logits.shape[:-3], self.means.shape[:-4], self.log_scales.shape[:-4]]
        batch_shape = jnp.broadcast_shapes(*batches, self.coefficients.shape[:-4])
        super().__init__(batch_shape, (channels, *image), validate_args=validate_args)

    @classmethod
    def from_parameters(
        cls, parameters: Array, *, channels: int, levels: int, validate_args: bool | None = None
    ) -> DiscretizedLogisticMixture:
        """From a network's output (..., P, H, W): logits, means, log-scales, and for colour coefficients.

        Log-scales are clamped to [−7, 7], coefficients go through tanh.

        Raises:
            ValueError: if P is not K·(1 + 2C + C(C−1)/2) for a whole K.
        """
        pairs = channels * (channels - 1) // 2
        mixtures, rest = divmod(parameters.shape[-3], 1 + 2 * channels + pairs)
        if rest or not mixtures:
            raise ValueError(f"{parameters.shape[-3]} parameters of a pixel do not fit {channels} channels")
        *batch, _, h, w = parameters.shape
        # The groups of K, in the order of the output: (..., groups, H, W, K).
        groups = jnp.moveaxis(parameters.reshape(*batch, -1, mixtures, h, w), -3, -1)
        logits, means, log_scales, raw = jnp.split(groups, [1, 1 + channels, 1 + 2 * channels], axis=-4)
        return cls(
            logits[..., 0, :, :, :],
            means,
            jnp.clip(log_scales, -7, 7),
            jnp.tanh(raw),
            levels=levels,
            validate_args=validate_args,
        )

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        """Integers 0 … L − 1 of shape (C, H, W)."""
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 3)

    def expand(self, batch_shape: Sequence[int]) -> DiscretizedLogisticMixture:
        """The same with another batch shape."""
        events = {name: constraint.event_dim for name, constraint in self.arg_constraints.items()}
        parts = {name: getattr(self, name) for name in events}
        parts = {
            name: jnp.broadcast_to(part, (*batch_shape, *part.shape[-events[name] :])) for name, part in parts.items()
        }
        return type(self)(**parts, levels=self.levels, validate_args=self._validate_args)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """Log-probability of images (..., C, H, W), integers 0 … L − 1."""
        x = value[..., None]
        y = self._at(x)
        parts = [jnp.unstack(part, axis=-4) for part in (self.means, self.coefficients, y)]
        means = jnp.broadcast_arrays(*(_mean(c, *parts) for c in range(self.event_shape[0])))
        mean = jnp.stack(means, axis=-4)
        inverse = jnp.exp(-self.log_scales)
        # Both edges from one rounded distance: apart, each rounded by itself, the bin would change its width.
        centre, half = (y - mean) * inverse, inverse / (self.levels - 1)
        above, below = centre - half, centre + half
        # ln[σ(b) − σ(a)] = ln σ(b) + ln σ(−a) + ln(1 − e^{a−b}), which cancels nowhere.
        up_to, from_on = jax.nn.log_sigmoid(below), jax.nn.log_sigmoid(-above)
        within = up_to + from_on + jnp.log(-jnp.expm1(-2 * half))
        of_channel = jnp.where(x == 0, up_to, jnp.where(x == self.levels - 1, from_on, within))
        of_component = jax.nn.log_softmax(self.logits) + jnp.sum(of_channel, axis=-4)
        return jnp.sum(logsumexp(of_component, axis=-1), axis=(-2, -1))

    def sample(self, key: Array, sample_shape: Shape = ()) -> Array:
        """Draws (*sample_shape, *batch_shape, C, H, W), integers."""
        channels, *image = self.event_shape
        shape = (*sample_shape, *self.batch_shape, *image, 1 + channels)
        tiny = jnp.finfo(self.means.dtype).tiny  # 0 itself is no draw
        return self.from_uniforms(jax.random.uniform(key, shape, self.means.dtype, minval=tiny))

    def from_uniforms(self, uniforms: Array) -> Array:
        """The images (..., C, H, W) that uniforms (..., H, W, 1 + C) give.

        Entry 0 picks the component, entry 1 + c the place of channel c within its logistic. Each channel is rounded to
        its level before it enters the next one's mean.
        """
        before = jnp.cumsum(jax.nn.softmax(self.logits), axis=-1)[..., :-1]
        component = jnp.sum(uniforms[..., :1] >= before, axis=-1)
        chosen = jax.nn.one_hot(component, self.logits.shape[-1], dtype=self.means.dtype)[..., None, :, :, :]
        means, log_scales, coefficients = (
            jnp.unstack(jnp.sum(part * chosen, axis=-1), axis=-3)
            for part in (self.means, self.log_scales, self.coefficients)
        )
        levels: list[Array] = []
        for c in range(self.event_shape[0]):
            mean = _mean(c, means, coefficients, [self._at(level) for level in levels])
            u = uniforms[..., 1 + c]
            drawn = mean + jnp.exp(log_scales[c]) * (jnp.log(u) - jnp.log1p(-u))
            levels.append(jnp.clip(jnp.round((drawn + 1) * (self.levels - 1) / 2), 0, self.levels - 1))
        return jnp.stack(levels, axis=-3).astype(jnp.int32)

    def _at(self, levels: Array) -> Array:
        """Where levels stand on [−1, 1]."""
        return levels.astype(self.means.dtype) * (2 / (self.levels - 1)) - 1


def _mean(channel: int, means: Sequence[Array], coefficients: Sequence[Array], y: Sequence[Array]) -> Array:
    """Mean of a channel once those before it stand at y. All sequences are over channels, or pairs of them."""
    mean = means[channel]
    first = channel * (channel - 1) // 2  # coefficients: red to green; red to blue, green to blue
    for before in range(channel):
        mean = mean + coefficients[first + before] * y[before]
    return mean
