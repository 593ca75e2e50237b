"""Dilated causal convolutions over samples as a likelihood of sounds, conditioned on the latent sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.data.audio.spec import require_sounds
from pyro_delta.distributions.sounds import AutoregressiveSound
from pyro_delta.models.conditioning import Conditioning
from pyro_delta.models.sequences.sequence_likelihood import SequenceLikelihood
from pyro_delta.nn.latents import LatentMap
from pyro_delta.nn.precision import Network, autocast_inside
from pyro_delta.nn.recompute import applied
from pyro_delta.nn.sequences.dilated import DilatedBlock, Held
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count


@dataclass
class SampleState:
    """What cached generation remembers.

    Attributes:
        links: of each position and block, with the biases of what they are added to, (P, blocks, B, 2C).
        blocks: what each block holds.
        said: what the blocks say of nothing, (B, C).
    """

    links: Tensor
    blocks: list[Held]
    said: Tensor


class ConditionalWaveNet(Network):
    """Parameters of every sample given those before it and z: gated blocks of dilated convolutions, and a head [1].

    A sound is P positions of S samples. Block k sees 2^k samples apart, so that `blocks` of them see 2^blocks samples.
    Position p uses {z_t : starts[t] ≤ p} (all of z with full conditioning). `forward` gives all samples in one
    teacher-forced pass; `start` and `step` give them one by one from the last inputs of each block.

    Args:
        levels: L.
        shape: (P, S).
        starts: (n,) the position from which on each latent step may be used; None for the latent-free control.
        dims: d, size of a latent step.
        channels: C, of the blocks and the head.
        blocks: dilated ones.
        mixtures: K, logistics of a sample.

    References:
        1. A. van den Oord et al., "WaveNet: A Generative Model for Raw Audio", 2016.
    """

    ends = ("stem", "out")

    def __init__(
        self,
        levels: int,
        shape: tuple[int, ...],
        starts: Tensor | None,
        dims: int,
        *,
        channels: int,
        blocks: int,
        mixtures: int,
    ) -> None:
        super().__init__()
        self.levels, self.shape = levels, shape
        links = blocks * 2 * channels
        self.latents = None if starts is None else LatentMap(dims, starts, positions=shape[0], outputs=links)
        self.stem = nn.Linear(1, channels)
        self.blocks = nn.ModuleList(DilatedBlock(channels, 2**k) for k in range(blocks))
        self.head = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, 3 * mixtures)

    @autocast_inside
    def forward(self, x: Tensor, z_bnd: Tensor) -> Tensor:
        """Levels (B, P, S), or fewer positions of them, and z (B, n, d) → parameters (B, P, S, 3K)."""
        links_bpkc = self._links(z_bnd, x.shape[1])
        before_bt = F.pad(self._heard(x.flatten(1)), (1, 0))[:, :-1]
        v_btc = self.stem(before_bt.unsqueeze(-1))
        said_btc = torch.zeros_like(v_btc)
        for block, link_bpc in zip(self.blocks, links_bpkc.unbind(2), strict=True):
            v_btc, more_btc = cast("tuple[Tensor, Tensor]", applied(block, v_btc, link_bpc))
            said_btc = said_btc + more_btc
        return self._told(said_btc).reshape(*x.shape, -1)

    def start(self, z_bnd: Tensor) -> SampleState:
        """Begins a cached generation."""
        blocks = [*cast("Iterable[DilatedBlock]", self.blocks)]
        bias_kc = torch.stack([block.conv.bias for block in blocks])
        links_pkbc = (self._links(z_bnd, self.shape[0]) + bias_kc).permute(1, 2, 0, 3).contiguous()
        said_bc = links_pkbc.new_zeros(z_bnd.shape[0], self.head.in_features)
        return SampleState(links_pkbc, [block.held(z_bnd.shape[0]) for block in blocks], said_bc)

    def step(self, state: SampleState, i: int, previous_b: Tensor | None) -> Tensor:
        """Parameters (B, 3K) of sample i, given the one before it (None at the first)."""
        said_bc = state.said
        before_b = said_bc[:, 0] if previous_b is None else self._heard(previous_b)
        v_bc = self.stem(before_b.unsqueeze(-1))
        links_kbc = state.links[i // self.shape[1]].unbind()
        for block, link_bc, held in zip(cast("Iterable[DilatedBlock]", self.blocks), links_kbc, state.blocks):
            v_bc, more_bc = block.step(v_bc, i, link_bc, held)
            said_bc = said_bc + more_bc
        return self._told(said_bc)

    def _links(self, z_bnd: Tensor, positions: int) -> Tensor:
        """What each of the first positions tells each block of z: (B, P, blocks, 2C)."""
        sizes = (len(self.blocks), 2 * self.head.in_features)
        if self.latents is None:
            return self.out.weight.new_zeros(z_bnd.shape[0], positions, *sizes)
        return self.latents(z_bnd, positions).unflatten(-1, sizes)

    def _heard(self, x: Tensor) -> Tensor:
        """Levels as places in −1 … 1."""
        return x.to(self.out.weight.dtype) * (2 / (self.levels - 1)) - 1

    def _told(self, said: Tensor) -> Tensor:
        return self.out(F.silu(self.head(F.silu(said))))


class WaveNetLikelihood(SequenceLikelihood):
    """WaveNet, an autoregressive likelihood of sounds: `forward(z)` returns `AutoregressiveSound`.

    With lengths, what follows the end of a sound is not scored, and drawn as level 0.

    Args:
        spec: of the sounds.
        prior: of the latents; its `starts` and event shape (n, d) are read, and nothing of it is kept.
        use_latents: False gives the latent-free control: z is ignored.
        conditioning: "causal": position p sees {z_t : starts[t] ≤ p}; "full": every sample sees all of z.
        channels: of the blocks.
        blocks: of dilation 1, 2, 4, …: a sample sees 2^blocks before it.
        mixtures: logistics of a sample.

    Raises:
        UserError: if the data are no sounds, or for an unknown conditioning.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences.wavenet:WaveNetLikelihood"

    def __init__(
        self,
        spec: Spec,
        prior: Prior,
        *,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        channels: Count = 32,
        blocks: Count = 9,
        mixtures: Count = 5,
    ) -> None:
        sounds = require_sounds(spec, "likelihood", "wavenet")
        sizes = {"channels": channels, "blocks": blocks, "mixtures": mixtures}
        super().__init__(
            sounds,
            prior,
            AutoregressiveSound,
            lambda starts, dims: ConditionalWaveNet(sounds.levels, sounds.shape, starts, dims, **sizes),
            use_latents=use_latents,
            conditioning=conditioning,
        )
