"""The Gated PixelCNN likelihood: an autoregressive image distribution conditioned on the latent sequence."""

from __future__ import annotations

from dataclasses import dataclass

from pyro.nn import PyroModule
from torch import Tensor

from pyro_delta.data.spec import ImageSpec
from pyro_delta.distributions import AutoregressiveImage, DiscretizedLogisticMixture
from pyro_delta.nn.embedding import embed_pixels
from pyro_delta.nn.gated_pixelcnn import GatedPixelCNN, PixelState
from pyro_delta.nn.latents import LatentMap
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.nn.submodule import network_of


@dataclass
class SamplingState:
    """What one cached generation carries along: the network's state and the latents' map."""

    pixels: PixelState
    context_bchw: Tensor | None
    batch: int


class ConditionalGatedPixelCNN(Network):
    """Parameters of a mixture of discretised logistics at every pixel, given earlier pixels and z.

    Row r uses {z_t : first_row[t] ≤ r}, all earlier rows, and earlier pixels of its own row. `forward` gives all
    positions in one teacher-forced pass; `start`, `step_row` and `step_pixel` give them one by one from a cache.

    Args:
        spec: shape and levels of the images.
        first_row: (n,) row from which on each latent step may be used.
        dims: d, size of a latent step.
        use_latents: False gives the latent-free control: z is ignored.
        mixtures: components of the mixture.
        latent_channels: channels of the map that carries z to the pixels.
        network: the remaining arguments of `GatedPixelCNN`.
    """

    def __init__(
        self,
        spec: ImageSpec,
        first_row: Tensor,
        dims: int,
        *,
        use_latents: bool = True,
        mixtures: int = 10,
        latent_channels: int = 16,
        **network: object,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.latents: LatentMap | None = None
        if use_latents:
            self.latents = LatentMap(dims, first_row, channels=latent_channels, height=spec.height, width=spec.width)
        self.trunk = GatedPixelCNN(
            spec.channels + 1,
            DiscretizedLogisticMixture.parameter_count(spec.channels, mixtures),
            height=spec.height,
            width=spec.width,
            context_channels=latent_channels if use_latents else 0,
            **network,  # type: ignore[arg-type]
        )

    @autocast_inside
    def forward(self, x_bchw: Tensor, z_bnd: Tensor) -> Tensor:
        """Images (B, C, H, W) of integers and z (B, n, d) → mixture parameters (B, P, H, W)."""
        return self.trunk(self._embed(x_bchw), self._context(z_bnd))

    def start(self, z_bnd: Tensor) -> SamplingState:
        """Begins a cached generation."""
        return SamplingState(PixelState(), self._context(z_bnd), len(z_bnd))

    def step_row(self, state: SamplingState, row: int, previous_bcw: Tensor | None) -> None:
        """Prepares `row`, given the finished row before it (integers; None at the first)."""
        if previous_bcw is None:
            inputs_bcw = self.trunk.position.new_zeros(state.batch, self.spec.channels + 1, self.spec.width)
        else:
            inputs_bcw = self._embed(previous_bcw)
        context_bcw = None if state.context_bchw is None else state.context_bchw[:, :, row]
        self.trunk.step_row(inputs_bcw, context_bcw, row, state.pixels)

    def step_pixel(self, state: SamplingState, column: int, previous_bc: Tensor | None) -> Tensor:
        """Mixture parameters (B, P) at `column`, given the pixel before it (integers; None at the first)."""
        if previous_bc is None:
            batch = state.pixels.links_wbc.shape[1]
            inputs_bc = self.trunk.position.new_zeros(batch, self.spec.channels + 1)
        else:
            inputs_bc = self._embed(previous_bc)
        return self.trunk.step_pixel(inputs_bc, column, state.pixels)

    def _embed(self, x: Tensor) -> Tensor:
        return embed_pixels(x, self.spec.levels, self.trunk.position.dtype)

    def _context(self, z_bnd: Tensor) -> Tensor | None:
        return None if self.latents is None else self.latents(z_bnd)


class GatedPixelCNNLikelihood(PyroModule):
    """Gated PixelCNN: two causal streams, the rows above with coarser levels for reach, conditioned on z.

    `forward(z)` returns an `AutoregressiveImage`.

    Args:
        spec: shape and levels of the images.
        prior: of the latents; its `first_row` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        mixtures: components of the mixture of discretised logistics.
        latent_channels: channels of the map that carries z to the pixels.
        channels: width of each level of the rows-above stream, finest first; each level halves the resolution.
        row_blocks: gated blocks of each level.
        pixel_blocks: gated blocks of the within-row stream.
        row_kernel: (rows, columns) of the rows-above stream's convolutions.
        pixel_kernel: columns of the within-row stream's convolutions.

    Raises:
        UserError: for sizes that make no network.
    """

    def __init__(
        self,
        spec: ImageSpec,
        prior: PyroModule,
        *,
        use_latents: bool = True,
        mixtures: int = 5,
        latent_channels: int = 16,
        channels: tuple[int, ...] = (32, 48),
        row_blocks: tuple[int, ...] = (1, 2),
        pixel_blocks: int = 2,
        row_kernel: tuple[int, int] = (2, 3),
        pixel_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.network = ConditionalGatedPixelCNN(
            spec,
            prior.first_row,
            prior().event_shape[-1],
            use_latents=use_latents,
            mixtures=mixtures,
            latent_channels=latent_channels,
            channels=channels,
            row_blocks=row_blocks,
            pixel_blocks=pixel_blocks,
            row_kernel=row_kernel,
            pixel_kernel=pixel_kernel,
        )

    def forward(self, z: Tensor) -> AutoregressiveImage:
        """Z (…, n, d) → a distribution over images (…, C, H, W)."""
        return AutoregressiveImage(network_of(self, "network"), z)
