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
    """p(x | z) as a program: `forward(z)` returns an `AutoregressiveImage`.

    Takes the arguments of `ConditionalGatedPixelCNN`.
    """

    def __init__(self, spec: ImageSpec, first_row: Tensor, dims: int, **network: object) -> None:
        super().__init__()
        self.network = ConditionalGatedPixelCNN(spec, first_row, dims, **network)  # type: ignore[arg-type]

    def forward(self, z: Tensor) -> AutoregressiveImage:
        """Z (…, n, d) → a distribution over images (…, C, H, W)."""
        return AutoregressiveImage(network_of(self, "network"), z)
