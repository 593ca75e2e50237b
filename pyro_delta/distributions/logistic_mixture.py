"""A mixture of discretised logistics over the channels of a pixel, each depending on those before it.

References:
    [1] T. Salimans, A. Karpathy, X. Chen, D. P. Kingma, "PixelCNN++: Improving the PixelCNN with Discretized Logistic
        Mixture Likelihood and Other Modifications", ICLR 2017, arXiv 1701.05517.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_delta.distributions.shapes import broadcast_shapes, check_temperature
from pyro_delta.errors import UserError

# Below -7 a component is a point mass at up to 256 levels (its scale is a quarter of half a bin) and 1/scale soon
# overflows; above 7 it is a coin thrown between the lowest and the highest level, and log(1 - exp(-bin/scale)) soon
# takes the logarithm of an underflow. In between, all terms and their gradients are finite, in float32 too.
LOG_SCALE_BOUND = 7.0

MOST_CHANNELS = 4  # red, green, blue, alpha


class DiscretizedLogisticMixture(TorchDistribution):
    r"""Mixture of discretised logistics over the C channels of a pixel, C = 1 to 4 [1, eqs. 1-3].

    A level x in 0..levels-1 stands at y = 2x/(levels-1) - 1 and owns the bin y ± h, h = 1/(levels-1); the lowest bin
    reaches to -∞ and the highest to +∞. One component k is shared by all channels, and the channels form a chain:

    .. math::
        P(x) = \sum_k \pi_k \prod_c
            [σ((y_c + h - m_{ck}) / s_{ck}) - σ((y_c - h - m_{ck}) / s_{ck})],
        \quad m_g = μ_g + c_0 y_r, \quad m_b = μ_b + c_1 y_r + c_2 y_g.

    Two channels end the chain at the second, and a fourth one hears the three before it, by c_3, c_4 and c_5.

    Batch shape (...), event shape (C,). Values are integers 0..levels-1 of any integer or floating dtype; samples are
    int64. Log-probabilities are in nats per pixel (the channels summed).

    NOTE: [1] replaces bins of tiny probability by density × width; here the difference of the two sigmoids is exact,
    log(σ(b) - σ(a)) = logsigmoid(b) + logsigmoid(-a) + log(-expm1(a - b)), so that the probabilities sum to one.

    NOTE: [1] bounds log-scales from below only, at -7; here they are clamped to [-7, 7], because a log-scale far above
    underflows in the last term. Outside, the gradient with respect to the log-scale is zero.

    NOTE: [1]'s code samples y as a real number, clamped to [-1, 1], which enters the next channel's mean unrounded;
    here it is rounded to a level first, so that samples follow exactly the probabilities that `log_prob` gives.

    Args:
        logits: unnormalised log-weights of the components, (..., K).
        means: μ, in units of y, (..., C, K).
        log_scales: log s, in units of y, (..., C, K); clamped to [-7, 7].
        coefficients: (c_0, c_1, c_2) = red to green, red to blue, green to blue, already squashed by tanh, (..., 3, K);
            one for each pair of channels, by the later one first, (..., C(C-1)/2, K); None for one channel.
        levels: number of levels of a channel, at least 2.
        validate_args: whether parameters and values are checked; Pyro's default if None.

    Batch shapes are broadcast against each other. Parameters in half precision are cast to float32: evaluated in half
    precision, 256 levels would come out wrong by tenths of a bit.

    Raises:
        UserError: for fewer than two levels, channels other than 1 to 4, coefficients missing or superfluous, or shapes
            that do not fit.
    """

    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        means: Tensor,
        log_scales: Tensor,
        coefficients: Tensor | None = None,
        *,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        _check_levels(levels)
        batch_shape = _checked_batch_shape(logits, means, log_scales, coefficients)
        channels, mixtures = means.shape[-2:]
        self.levels = levels
        self.logits = _at_least_float32(logits).expand(*batch_shape, mixtures)
        self.means = _at_least_float32(means).expand(*batch_shape, channels, mixtures)
        log_scales = _at_least_float32(log_scales).clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        self.log_scales = log_scales.expand(*batch_shape, channels, mixtures)
        self.coefficients = None
        if coefficients is not None:
            coefficients = _at_least_float32(coefficients)
            self.coefficients = coefficients.expand(*batch_shape, _pairs(channels), mixtures)
        super().__init__(batch_shape, torch.Size([channels]), validate_args=validate_args)

    @staticmethod
    def parameter_count(channels: int, mixtures: int) -> int:
        """Number of parameters of a pixel, K(1 + 2C + C(C-1)/2): the last are the coefficients of pairs of channels.

        Raises:
            UserError: for channels other than 1 to 4, or fewer than one mixture component.
        """
        _check_channels(channels)
        if mixtures < 1:
            raise UserError(f"a mixture of {mixtures} logistics is empty: give at least one component.")
        return mixtures * _parameters_per_component(channels)

    @classmethod
    def from_parameters(
        cls, parameters: Tensor, *, channels: int, levels: int, validate_args: bool | None = None
    ) -> DiscretizedLogisticMixture:
        """The mixture whose parameters a network gives in one tensor (..., P), P = `parameter_count(channels, K)`.

        Layout of the last dimension: K logits; C·K means, channel-major (all K of the first channel, then the next);
        C·K log-scales, channel-major; a raw coefficient for each pair of channels (all K of red to green, then red to
        blue, then green to blue), which are squashed by tanh here.

        Raises:
            UserError: for channels other than 1 to 4, fewer than two levels, or a P that fits no number of components.
        """
        _check_channels(channels)
        per_component = _parameters_per_component(channels)
        count = parameters.shape[-1] if parameters.ndim else 0
        if count == 0 or count % per_component:
            raise UserError(
                f"{count} parameters per pixel fit no mixture over {channels} channel(s): the last dimension must be "
                f"a positive multiple of {per_component}, see parameter_count(channels, mixtures)."
            )
        table = parameters.unflatten(-1, (per_component, -1))
        logits, means, log_scales, *raw = table.split(_sizes(channels), dim=-2)
        # Cast before tanh: in half precision the squashed coefficients would lose their last bits twice.
        coefficients = _at_least_float32(raw[0]).tanh() if raw else None
        return cls(logits.squeeze(-2), means, log_scales, coefficients, levels=levels, validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Constraints of the parameters; the coefficients are among them where there are several channels."""
        matrix = constraints.independent(constraints.real, 2)
        found: dict[str, constraints.Constraint] = {
            "logits": constraints.real_vector,
            "means": matrix,
            "log_scales": matrix,
        }
        if self.coefficients is not None:
            found["coefficients"] = matrix
        return found

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Integers 0..levels-1 in each channel."""
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 1)

    @property
    def channels(self) -> int:
        """C, the number of channels."""
        return self.means.shape[-2]

    @property
    def mixtures(self) -> int:
        """K, the number of components."""
        return self.means.shape[-1]

    def expand(
        self, batch_shape: torch.Size, _instance: DiscretizedLogisticMixture | None = None
    ) -> DiscretizedLogisticMixture:
        """The same mixture with its batch dimensions expanded to `batch_shape`; no memory is copied."""
        new = self._get_checked_instance(DiscretizedLogisticMixture, _instance)
        batch_shape = torch.Size(batch_shape)
        new.levels = self.levels
        new.logits = self.logits.expand(*batch_shape, -1)
        new.means = self.means.expand(*batch_shape, -1, -1)
        new.log_scales = self.log_scales.expand(*batch_shape, -1, -1)
        new.coefficients = None if self.coefficients is None else self.coefficients.expand(*batch_shape, -1, -1)
        super(DiscretizedLogisticMixture, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats of integer values (..., C), exact in every bin; gradients are finite throughout.

        Raises:
            ValueError: with validation on, if a value is no level or the shape does not fit.
        """
        if self._validate_args:
            self._validate_sample(value)
        x = value.to(self.means.dtype)
        inverse_scale = torch.exp(-self.log_scales)
        half_bin = inverse_scale / (self.levels - 1)  # half a bin's width in scales
        centred = self._deviations(self._positions(x)) * inverse_scale
        # The bin's width is b - a = 2 half_bin, and never computed as b minus a, which cancels far from the mean.
        log_width = torch.log(-torch.expm1(-2 * half_bin))
        is_bottom = (x == 0).unsqueeze(-1)
        is_top = (x == self.levels - 1).unsqueeze(-1)
        log_p = F.logsigmoid(half_bin + centred).masked_fill(is_top, 0.0)
        log_p = log_p + F.logsigmoid(half_bin - centred).masked_fill(is_bottom, 0.0)
        log_p = log_p + log_width.masked_fill(is_bottom | is_top, 0.0)
        return torch.logsumexp(F.log_softmax(self.logits, dim=-1) + log_p.sum(-2), dim=-1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Independent draws, int64, of shape sample_shape + batch_shape + (C,)."""
        shape = (*sample_shape, *self.batch_shape, 1 + self.channels)
        return self.sample_with(torch.rand(shape, dtype=self.means.dtype, device=self.means.device))

    @torch.no_grad()
    def sample_with(self, uniforms: Tensor) -> Tensor:
        """The draw that given uniform noise determines: the same noise gives the same pixel, however it is generated.

        Args:
            uniforms: in (0, 1), (..., 1 + C), where (...) broadcasts against the batch shape. Entry 0 picks the
                component by the inverse of its cumulative weights, entry 1 + c gives channel c its logistic noise
                log u - log(1 - u). The ends of the interval do no harm: 0 gives the lowest level, 1 the highest.

        Returns:
            int64 values, (..., C).

        Raises:
            UserError: for a shape that does not fit.
        """
        shape = self._sample_batch_shape(uniforms)
        u = uniforms.expand(*shape, -1)
        component = _picked_component(self.logits, u[..., 0])
        mean, log_scale = self._of_component(self.means, component), self._of_component(self.log_scales, component)
        coefficients = None if self.coefficients is None else self._of_component(self.coefficients, component)
        return _picked_levels(mean, log_scale, coefficients, u[..., 1:], self.levels)

    @staticmethod
    @torch.no_grad()
    def sample_parameters(parameters: Tensor, uniforms: Tensor, *, channels: int, levels: int) -> Tensor:
        """What `from_parameters(parameters, …).sample_with(uniforms)` draws, for (B, P) and uniforms (B, 1 + C).

        Pictures are drawn pixel by pixel: nothing is checked, and no distribution made, at each.
        """
        table_bpk = _at_least_float32(parameters).unflatten(1, (_parameters_per_component(channels), -1))
        component_b = _picked_component(table_bpk[:, 0], uniforms[:, 0])
        index_bp1 = component_b[:, None, None].expand(-1, table_bpk.shape[1], 1)
        _, mean, log_scale, *rest = table_bpk.gather(2, index_bp1).squeeze(2).split(_sizes(channels), dim=1)
        log_scale = log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        return _picked_levels(mean, log_scale, rest[0].tanh() if rest else None, uniforms[:, 1:], levels)

    @staticmethod
    def tempered(parameters: Tensor, temperature: float, *, channels: int) -> Tensor:
        """Parameters (…, P) at a temperature T: the weights of the components to the power 1/T.

        The components stay as wide as they are: narrower ones draw pictures without texture.

        Raises:
            ValueError: T is not finite and above 0.
        """
        check_temperature(temperature)
        count = parameters.shape[-1] // _parameters_per_component(channels)
        logits, others = _at_least_float32(parameters).split((count, parameters.shape[-1] - count), dim=-1)
        return torch.cat((logits / temperature, others), dim=-1)

    def _positions(self, x: Tensor) -> Tensor:
        """Levels 0..levels-1 to positions y in [-1, 1]."""
        return x * (2 / (self.levels - 1)) - 1

    def _deviations(self, y: Tensor) -> Tensor:
        """Distance (..., C, K) of positions (..., C) from the components' means, given the channels before."""
        deviation = y.unsqueeze(-1) - self.means
        if self.coefficients is None:
            return deviation
        coefficients, before = self.coefficients.unbind(-2), y.split(1, dim=-1)
        shifts = [sum(coefficients[_pairs(c) + b] * before[b] for b in range(c)) for c in range(1, self.channels)]
        return deviation - torch.stack([torch.zeros_like(shifts[0]), *shifts], dim=-2)

    @staticmethod
    def _of_component(parameters: Tensor, component: Tensor) -> Tensor:
        """Entries (..., C) of parameters (..., C, K) for the picked component (...)."""
        parameters = parameters.expand(*component.shape, *parameters.shape[-2:])
        index = component[..., None, None].expand(*parameters.shape[:-1], 1)
        return parameters.gather(-1, index).squeeze(-1)

    def _sample_batch_shape(self, uniforms: Tensor) -> torch.Size:
        if uniforms.ndim and uniforms.shape[-1] == 1 + self.channels:
            try:
                return broadcast_shapes(uniforms.shape[:-1], self.batch_shape)
            except ValueError:
                pass
        raise UserError(
            f"uniforms of shape {tuple(uniforms.shape)} do not fit: they must have the shape "
            f"sample_shape + {tuple(self.batch_shape)} + ({1 + self.channels},)."
        )


def _parameters_per_component(channels: int) -> int:
    return sum(_sizes(channels))


def _sizes(channels: int) -> list[int]:
    """Parameters of a component: its logit, the means, the log-scales and, of several channels, the coefficients."""
    return [1, channels, channels, *([_pairs(channels)] if channels > 1 else [])]


def _pairs(channels: int) -> int:
    """Pairs of so many channels, and the place of the first coefficient of the channel that follows them."""
    return channels * (channels - 1) // 2


def _picked_component(logits: Tensor, u: Tensor) -> Tensor:
    """Index (...) of the component in whose share of the cumulative weights u (...) falls."""
    cumulative = F.softmax(logits, dim=-1).cumsum(-1)
    # The last bound is 1 but for rounding, so u is never compared with it. Not >, because torch.rand may return 0,
    # which must not pick a first component of no weight.
    return (u.unsqueeze(-1) >= cumulative[..., :-1]).sum(-1)


def _picked_levels(
    mean: Tensor, log_scale: Tensor, coefficients: Tensor | None, uniforms: Tensor, levels: int
) -> Tensor:
    """The levels (..., C), int64, of a component's logistics (..., C), in whose bins means and noise fall.

    A channel is rounded to a level before the next one sees it, as the data are in `log_prob`.
    """
    half = (levels - 1) / 2  # what 1 is in levels
    place = (torch.addcmul(mean, log_scale.exp(), torch.logit(uniforms)) + 1) * half
    if coefficients is None:
        return place.round().clamp(0, levels - 1).long()
    pair, found = (coefficients * half).unbind(-1), list[Tensor]()
    for c, level in enumerate(place.unbind(-1)):
        for before, earlier in enumerate(found):
            level = torch.addcmul(level, pair[_pairs(c) + before], earlier / half - 1)
        found.append(level.round().clamp(0, levels - 1))
    return torch.stack(found, dim=-1).long()


def _at_least_float32(parameter: Tensor) -> Tensor:
    return parameter.float() if parameter.dtype in (torch.float16, torch.bfloat16) else parameter


def _check_levels(levels: int) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise UserError(f"levels is {levels!r}: give a whole number of at least 2, 256 for 8-bit images.")


def _check_channels(channels: int) -> None:
    if not 1 <= channels <= MOST_CHANNELS:
        raise UserError(
            f"{channels} channels are not supported: give 1 (grey), 3 (red, green, blue), or one more of alpha."
        )


def _checked_batch_shape(logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor | None) -> torch.Size:
    """The common batch shape, once the shapes of all parameters are seen to fit each other."""
    if means.ndim < 2:
        raise UserError(f"means of shape {tuple(means.shape)} do not fit: give (..., channels, mixtures).")
    channels, mixtures = means.shape[-2:]
    _check_channels(channels)
    if channels == 1 and coefficients is not None:
        raise UserError("coefficients were given for 1 channel, which depends on no other: give None.")
    if channels > 1 and coefficients is None:
        raise UserError(
            f"coefficients are missing for {channels} channels: give a tensor of shape "
            f"(..., {_pairs(channels)}, {mixtures})."
        )
    expected = [("logits", logits, (mixtures,)), ("log_scales", log_scales, (channels, mixtures))]
    if coefficients is not None:
        expected.append(("coefficients", coefficients, (_pairs(channels), mixtures)))
    batch_shapes = [means.shape[:-2]]
    for name, parameter, tail in expected:
        split = parameter.ndim - len(tail)
        if split < 0 or tuple(parameter.shape[split:]) != tail:
            raise UserError(
                f"{name} of shape {tuple(parameter.shape)} do not fit means of shape {tuple(means.shape)}: "
                f"their last dimensions must be {tail}."
            )
        batch_shapes.append(parameter.shape[:split])
    try:
        return broadcast_shapes(*batch_shapes)
    except ValueError:
        raise UserError(
            f"batch shapes {[tuple(shape) for shape in batch_shapes]} of means, "
            f"{', '.join(name for name, _, _ in expected)} do not broadcast: give all parameters the same batch shape."
        ) from None
