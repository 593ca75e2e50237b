"""What image likelihoods share: pixels in, z as a context, mixtures out, cached generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from pyro_delta.data.images.spec import ImageSpec, require_image
from pyro_delta.distributions import AutoregressiveImage, DiscretizedLogisticMixture
from pyro_delta.distributions.images.replayed import FEWEST, Capture, capture_on
from pyro_delta.models.conditioning import Conditioning, Told
from pyro_delta.nn.images.causal import PixelState
from pyro_delta.nn.images.embedding import embed_pixels
from pyro_delta.nn.latents import LatentMap
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


class Trunk(Protocol):
    """A causal network over features, its arguments as of `GatedPixelCNN` and `PixelSNAIL`."""

    out: nn.Conv2d

    def __init__(
        self, channels_in: int, channels_out: int, *, height: int, width: int, context_channels: int, **network: Any
    ) -> None:
        """Builds it for images of one size."""

    def __call__(self, x_bchw: Tensor, context_bchw: Tensor | None) -> Tensor:
        """All positions at once."""

    def step_row(self, row_bcw: Tensor, context_bcw: Tensor | None, index: int, state: PixelState) -> None:
        """Prepares a row, given the one before it."""

    def step_pixel(self, x_bc: Tensor, column: int, state: PixelState) -> Tensor:
        """One position of the prepared row, given the pixel before it."""


@dataclass
class SamplingState:
    """What one cached generation carries along: the network's state and the latents' map.

    Attributes:
        pixels: of the trunk.
        context_bchw: the map.
        batch: B.
        capture: of the operations of a row, where it is worth its time.
    """

    pixels: PixelState
    context_bchw: Tensor | None
    batch: int
    capture: Capture | None = None


class ConditionalNetwork(Network):
    """Parameters of a mixture of discretised logistics at every pixel, given earlier pixels and z.

    Row r uses {z_t : starts[t] ≤ r}, all earlier rows, and earlier pixels of its own row. `forward` gives all positions
    in one teacher-forced pass; `start`, `step_row` and `step_pixel` give them one by one from a cache. A subclass names
    its trunk, the causal network in between.

    Args:
        spec: shape and levels of the images.
        starts: (n,) the row from which on each latent step may be used; None if z is ignored.
        dims: d, size of a latent step.
        mixtures: components of the mixture.
        latent_channels: channels of the map that carries z to the pixels.
        network: the remaining arguments of the trunk.

    Raises:
        UserError: whatever the trunk or the mixture raises.
    """

    trunk_class: ClassVar[type[Trunk]]

    def __init__(
        self,
        spec: ImageSpec,
        starts: Tensor | None,
        dims: int,
        *,
        mixtures: int = 10,
        latent_channels: Count = 16,
        **network: object,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.latents: LatentMap | None = None
        if starts is not None:
            self.latents = LatentMap(dims, starts, positions=spec.height, outputs=latent_channels * spec.width)
        self.trunk = self.trunk_class(
            spec.channels + 1,
            DiscretizedLogisticMixture.parameter_count(spec.channels, mixtures),
            height=spec.height,
            width=spec.width,
            context_channels=0 if starts is None else latent_channels,
            **network,
        )

    @autocast_inside
    def forward(self, x_bchw: Tensor, z_bnd: Tensor) -> Tensor:
        """Images (B, C, H, W) of integers and z (B, n, d) → mixture parameters (B, P, H, W)."""
        return self.trunk(self._embed(x_bchw), self._context(z_bnd))

    def start(self, z_bnd: Tensor) -> SamplingState:
        """Begins a cached generation."""
        capture = capture_on(z_bnd.device) if self.spec.height >= FEWEST else None
        return SamplingState(PixelState(fixed=capture is not None), self._context(z_bnd), z_bnd.shape[0], capture)

    def step_row(self, state: SamplingState, row: int, previous_bcw: Tensor | None) -> None:
        """Prepares `row`, given the finished row before it (integers; None at the first)."""
        if previous_bcw is None:
            inputs_bcw = self.trunk.out.weight.new_zeros(state.batch, self.spec.channels + 1, self.spec.width)
        else:
            inputs_bcw = self._embed(previous_bcw)
        context_bcw = None if state.context_bchw is None else state.context_bchw[:, :, row]
        self.trunk.step_row(inputs_bcw, context_bcw, row, state.pixels)

    def step_pixel(self, state: SamplingState, column: int, previous_bc: Tensor | None) -> Tensor:
        """Mixture parameters (B, P) at `column`, given the pixel before it (integers; None at the first)."""
        if previous_bc is None:
            inputs_bc = self.trunk.out.weight.new_zeros(state.batch, self.spec.channels + 1)
        else:
            inputs_bc = self._embed(previous_bc)
        return self.trunk.step_pixel(inputs_bc, column, state.pixels)

    def _embed(self, x: Tensor) -> Tensor:
        return embed_pixels(x, self.spec.levels, self.trunk.out.weight.dtype)

    def _context(self, z_bnd: Tensor) -> Tensor | None:
        if self.latents is None:
            return None
        rows_bhc = self.latents(z_bnd)  # all columns of a channel, then the next channel
        return rows_bhc.unflatten(-1, (-1, self.spec.width)).transpose(1, 2)


class ImageLikelihood(nn.Module):
    """p(x | z) over images from a `ConditionalNetwork`; a subclass names that, and the options of its trunk.

    Args:
        spec: shape and levels of the images.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": row r sees {z_t : starts[t] ≤ r}; "full": every row sees all of z, the ablation that
            goes with a guide that is not anti-causal. What images are conditioned on, every row sees.
        latent_channels: channels of the map that carries z to the pixels.
        network: mixtures, and the options of the trunk.

    Raises:
        UserError: if the data are no images, or for sizes that make no network.
    """

    network_class: ClassVar[type[ConditionalNetwork]]

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        latent_channels: Count = 16,
        **network: Any,
    ) -> None:
        super().__init__()
        self.conditioning = conditioning
        image = require_image(spec, "likelihood", type(self).__name__)
        self.told = Told(spec, prior, conditioning, use_latents=use_latents)
        self.network = self.network_class(
            image, self.told.seen, self.told.dims, latent_channels=latent_channels, **network
        )

    def forward(self, z: Tensor, condition: Tensor | None = None) -> AutoregressiveImage:
        """Z (…, n, d), and what images are conditioned on, → a distribution over images (…, C, H, W)."""
        return AutoregressiveImage(self.network, self.told(z, condition=condition))
