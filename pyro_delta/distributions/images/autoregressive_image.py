"""An image as one random variable: autoregressive in raster order, conditioned on a latent sequence."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from pyro_delta.distributions.images.replayed import Replayed
from pyro_delta.distributions.logistic_mixture import DiscretizedLogisticMixture
from pyro_delta.distributions.mode import in_evaluation
from pyro_delta.distributions.shapes import broadcast_shapes, check_event


class ImageShape(Protocol):
    """What must be known of images: shape and number of levels."""

    @property
    def channels(self) -> int:
        """C."""

    @property
    def levels(self) -> int:
        """Of integers."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""


class PixelNetwork(Protocol):
    """What `AutoregressiveImage` asks of a network: all positions at once, and one position at a time from a cache."""

    training: bool

    @property
    def spec(self) -> ImageShape:
        """Of the images."""

    def __call__(self, x_bchw: Tensor, z_bnd: Tensor) -> Tensor:
        """Mixture parameters (B, P, H, W), causal in raster order."""

    def start(self, z_bnd: Tensor) -> Any:
        """A fresh sampling state.

        Its attribute `capture`, if it has one that is not None, says that `step_pixel` of every row is the same
        operations on the same memory, and captures those of a row (`pyro_delta.distributions.images.replayed`).
        """

    def step_row(self, state: Any, row: int, previous_bcw: Tensor | None) -> None:
        """Called once per row, with the finished row before it (None at the first)."""

    def step_pixel(self, state: Any, column: int, previous_bc: Tensor | None) -> Tensor:
        """Mixture parameters (B, P) at a column, given the pixel before it in the row (None at the first)."""

    def train(self, mode: bool = True) -> Any:
        """As `torch.nn.Module.train`."""


class AutoregressiveImage(TorchDistribution):
    """p(x | z) = Π p(pixel | earlier pixels, z), with pixels from `DiscretizedLogisticMixture`.

    Batch shape z.shape[:-2], event shape (C, H, W), integers 0 … levels−1. `log_prob` (nats) is one teacher-forced
    pass. `sample` is cached and incremental: the network is never run again over what it has seen, and it runs in
    evaluation mode. There is no `rsample`: images are discrete.

    Args:
        network: a `PixelNetwork`.
        z: latent sequence (…, n, d).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, network: PixelNetwork, z: Tensor, validate_args: bool | None = None) -> None:
        self.network, self.z = network, z
        super().__init__(z.shape[:-2], Size(network.spec.shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        """Integers 0 … levels−1 at every place."""
        return constraints.independent(constraints.integer_interval(0, self.network.spec.levels - 1), 3)

    def expand(self, batch_shape: Size, _instance: AutoregressiveImage | None = None) -> AutoregressiveImage:
        """The same distribution with z expanded to `batch_shape`."""
        new = self._get_checked_instance(AutoregressiveImage, _instance)
        new.network, new.z = self.network, self.z.expand(Size(batch_shape) + self.z.shape[-2:])
        super(AutoregressiveImage, new).__init__(Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def parameters_at(self, x: Tensor) -> Tensor:
        """Teacher-forced mixture parameters (…, H, W, P) for images x (…, C, H, W)."""
        shape = broadcast_shapes(x.shape[:-3], self.batch_shape)
        batch = math.prod(shape)  # `numel` would fix a batch that torch.export is to leave free
        x_bchw = x.expand(shape + self.event_shape).reshape((batch, *self.event_shape))
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((batch, *self.z.shape[-2:]))
        parameters_bhwp = self.network(x_bchw, z_bnd).permute(0, 2, 3, 1)
        return parameters_bhwp.reshape(shape + parameters_bhwp.shape[1:])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of whole images in nats, shape x.shape[:-3] broadcast with the batch shape."""
        return self.pixel_log_prob(x).sum((-2, -1))

    def pixel_log_prob(self, x: Tensor) -> Tensor:
        """Log-probability of each pixel given all before it in nats, shape of `log_prob` + (H, W)."""
        if self._validate_args:
            self._validate_sample(x)
        return self._pixels(self.parameters_at(x), self._validate_args).log_prob(x.movedim(-3, -1))

    @torch.no_grad()
    def sample(
        self,
        sample_shape: Size | tuple[int, ...] = Size(),  # noqa: B008
        *,
        keep: tuple[Tensor, Tensor] | None = None,
        uniforms: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draws images, integers of shape sample_shape + batch_shape + (C, H, W).

        Args:
            sample_shape: shape of independent draws.
            keep: (images, mask): where the boolean mask, broadcastable to (…, H, W), is true, the images' pixels are
                kept (all channels) and what follows is drawn given them. Exact conditioning on kept pixels holds when
                they come before all others in raster order.
            uniforms: the noise, shape sample_shape + batch_shape + (H, W, 1 + C) in (0, 1). Entry 0 of a pixel
                picks the mixture component, entry 1 + c is the logistic noise of channel c. Drawn if not given; the
                same noise gives the same picture as drawing naively.
            temperature: of each pixel given those before it, as `DiscretizedLogisticMixture.tempered` has it. With any
                but 1 the images are no draws from p(x | z).

        Raises:
            ValueError: kept images are none, uniforms have another shape, or the temperature is no positive number.
        """
        channels, height, width = self.event_shape
        shape = Size(sample_shape) + self.batch_shape
        batch = shape.numel()
        z_bnd = self.z.expand(shape + self.z.shape[-2:]).reshape((batch, *self.z.shape[-2:]))
        if uniforms is None:
            uniforms = self.noise(*shape)
        check_event(uniforms, (height, width, 1 + channels))
        uniforms_bhwu = uniforms.expand((*shape, *uniforms.shape[-3:])).reshape((batch, *uniforms.shape[-3:]))
        x_bchw = torch.zeros((batch, channels, height, width), dtype=torch.int64, device=self.z.device)
        mask_bhw = None
        if keep is not None:
            images, mask = keep[0].to(x_bchw), keep[1].to(x_bchw.device, torch.bool)
            if not self.support.check(images).all():
                raise ValueError(f"kept images must hold integers 0 to {self.network.spec.levels - 1}.")
            mask_bhw = mask.expand((*shape, height, width)).reshape((batch, height, width))
            kept_bchw = images.expand((*shape, *self.event_shape)).reshape(x_bchw.shape)
            x_bchw = torch.where(mask_bhw.unsqueeze(1), kept_bchw, x_bchw)
        with in_evaluation(self.network):
            state = self.network.start(z_bnd)
            mask_bw = None if mask_bhw is None else mask_bhw[:, 0]
            line = _Row(self.network, state, x_bchw[:, :, 0], uniforms_bhwu[:, 0], mask_bw, temperature)
            capture = getattr(state, "capture", None)
            draw = line.draw if capture is None else Replayed(line.draw, capture)
            for row in range(height):
                self.network.step_row(state, row, x_bchw[:, :, row - 1] if row else None)
                line.begin(x_bchw[:, :, row], uniforms_bhwu[:, row], None if mask_bhw is None else mask_bhw[:, row])
                draw()
                x_bchw[:, :, row] = line.x_bcw
        return x_bchw.reshape(shape + self.event_shape)

    def noise(self, *shape: int) -> Tensor:
        """Noise that `sample` turns into images, uniform on (0, 1), shape + (H, W, 1 + C)."""
        channels, height, width = self.event_shape
        return torch.rand((*shape, height, width, 1 + channels), dtype=self.z.dtype, device=self.z.device)

    def terms(self, x: Tensor) -> Tensor:
        """Log-probability of each pixel given those before it, in raster order, (…, H·W) nats."""
        return self.pixel_log_prob(x).flatten(-2)

    def _pixels(self, parameters: Tensor, validate: bool | None = None) -> DiscretizedLogisticMixture:
        spec = self.network.spec
        return DiscretizedLogisticMixture.from_parameters(
            parameters, channels=spec.channels, levels=spec.levels, validate_args=validate
        )


class _Row:
    """A row of pictures that is drawn, in memory that stays where it is from row to row.

    Args:
        network: of the distribution.
        state: of its cached generation.
        x_bcw: any row of them, for its shape.
        noise_bwu: its noise.
        mask_bw: which of its pixels are kept; None if none is.
        temperature: as for `AutoregressiveImage.sample`.
    """

    def __init__(
        self,
        network: PixelNetwork,
        state: Any,
        x_bcw: Tensor,
        noise_bwu: Tensor,
        mask_bw: Tensor | None,
        temperature: float,
    ) -> None:
        self.network, self.state, self.temperature = network, state, temperature
        self.x_bcw, self.noise_bwu = torch.empty_like(x_bcw), torch.empty_like(noise_bwu)
        self.mask_bw = None if mask_bw is None else torch.empty_like(mask_bw)

    def begin(self, x_bcw: Tensor, noise_bwu: Tensor, mask_bw: Tensor | None) -> None:
        """Takes over what is kept of the next row, and its noise."""
        self.x_bcw.copy_(x_bcw)
        self.noise_bwu.copy_(noise_bwu)
        if self.mask_bw is not None and mask_bw is not None:
            self.mask_bw.copy_(mask_bw)

    def draw(self) -> None:
        """Draws the row, pixel by pixel."""
        channels, width = self.x_bcw.shape[1:]
        for column in range(width):
            previous_bc = self.x_bcw[:, :, column - 1] if column else None
            parameters_bp = self.network.step_pixel(self.state, column, previous_bc)
            if self.temperature != 1:
                parameters_bp = DiscretizedLogisticMixture.tempered(parameters_bp, self.temperature, channels=channels)
            drawn_bc = DiscretizedLogisticMixture.sample_parameters(
                parameters_bp, self.noise_bwu[:, column], channels=channels, levels=self.network.spec.levels
            )
            if self.mask_bw is not None:
                drawn_bc = torch.where(self.mask_bw[:, column, None], self.x_bcw[:, :, column], drawn_bc)
            self.x_bcw[:, :, column] = drawn_bc


@torch.no_grad()
def sample_naively(distribution: AutoregressiveImage, uniforms: Tensor) -> Tensor:
    """The slow witness of `AutoregressiveImage.sample`: a full pass of the network for every pixel.

    Args:
        distribution: with batch shape (B,).
        uniforms: (B, H, W, 1 + C), laid out as for `sample`.
    """
    channels, height, width = distribution.event_shape
    x_bchw = torch.zeros(
        (*distribution.batch_shape, channels, height, width), dtype=torch.int64, device=uniforms.device
    )
    for row in range(height):
        for column in range(width):
            pixel = distribution._pixels(distribution.parameters_at(x_bchw)[:, row, column], False)
            x_bchw[:, :, row, column] = pixel.sample_with(uniforms[:, row, column])
    return x_bchw
