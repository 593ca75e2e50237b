"""Twin of the WaveNet likelihood, written from `docs/architecture.md`.

B sounds of P positions of S samples, L levels; n latent steps of d dimensions, of which step t belongs to the sound
from position starts[t] on; C channels, K logistics of a sample. Weights have torch's names and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from numpyro.distributions import constraints

from pyro_delta.data.audio.spec import require_sounds
from pyro_delta.protocol import Spec
from pyro_delta.twin.conditioning import Conditioning, Told
from pyro_delta.twin.latents import LatentMap
from pyro_delta.twin.layers import linear
from pyro_delta.twin.logistic_mixture import DiscretizedLogisticMixture
from pyro_delta.twin.sequences.distributions import AutoregressiveSequence


class AutoregressiveSound(AutoregressiveSequence):
    """Sequences of levels 0 … L − 1, of which the network gives the parameters of a mixture of logistics."""

    noises: ClassVar[tuple[int, ...]] = (2,)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Integers 0 … L − 1 at every place."""
        levels = constraints.integer_interval(0, self.network.levels - 1)
        return constraints.independent(levels, len(self.network.shape))

    def scores(self, parameters: Array, x: Array) -> Array:
        """Log-probabilities (...) of levels (...) with parameters (..., 3K)."""
        return self._one(parameters).log_prob(x[..., None, None, None])

    def pick(self, parameters: Array, uniforms: Array) -> Array:
        """The levels (...) of uniforms (..., 2): the first picks the component, the second the level."""
        return self._one(parameters).from_uniforms(uniforms[..., None, None, :])[..., 0, 0, 0]

    def _one(self, parameters: Array) -> DiscretizedLogisticMixture:
        """The distribution of a level as that of a picture of one grey pixel."""
        return DiscretizedLogisticMixture.from_parameters(
            parameters[..., None, None], channels=1, levels=self.network.levels, validate_args=False
        )


class DilatedBlock(nnx.Module):
    """Gated residual block that sees v at two samples, `dilation` apart.

    Args:
        channels: C.
        dilation: samples between the two.
        rngs: of the initial values.
    """

    def __init__(self, channels: int, dilation: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.dilation = dilation
        self.conv = linear(2 * channels, 2 * channels, rngs=rngs)
        self.out = linear(channels, 2 * channels, rngs=rngs)

    def __call__(self, v_btc: Array, link_bpc: Array) -> tuple[Array, Array]:
        """All samples: what goes on, and what is said aside, (B, T, C) each."""
        old_btc = jnp.pad(v_btc, ((0, 0), (self.dilation, 0), (0, 0)))[:, : v_btc.shape[1]]
        link_btc = jnp.repeat(link_bpc, v_btc.shape[1] // link_bpc.shape[1], axis=1)
        return self._both(v_btc, old_btc, link_btc)

    def step(self, v_bc: Array, t: Array, link_bc: Array, ring_dbc: Array) -> tuple[Array, Array, Array]:
        """Sample t: the same, (B, C) each, and the block's last inputs, that of sample t at t mod dilation."""
        went_on, said = self._both(v_bc, ring_dbc[t % self.dilation], link_bc)
        return went_on, said, ring_dbc.at[t % self.dilation].set(v_bc)

    def _both(self, v: Array, old: Array, link: Array) -> tuple[Array, Array]:
        a, b = jnp.split(self.conv(jnp.concatenate([old, v], axis=-1)) + link, 2, axis=-1)
        more, said = jnp.split(self.out(a * jax.nn.sigmoid(b)), 2, axis=-1)
        return v + more, said


class ConditionalWaveNet(nnx.Module):
    """Parameters of every sample given those before it and z: position p sees the steps with starts ≤ p.

    Args:
        levels: L.
        shape: (P, S).
        starts: of each latent step; None if z is ignored.
        dims: d.
        channels: C.
        blocks: of dilation 1, 2, 4, …
        mixtures: K.
        rngs: of the initial values.
    """

    def __init__(
        self,
        levels: int,
        shape: tuple[int, ...],
        starts: Sequence[int] | None,
        dims: int,
        *,
        channels: int,
        blocks: int,
        mixtures: int,
        rngs: nnx.Rngs,
    ) -> None:
        """See the class."""
        self.levels, self.shape, self.channels = levels, tuple(shape), channels
        if starts is not None:
            links = blocks * 2 * channels
            self.latents = LatentMap(dims, starts, positions=shape[0], outputs=links, rngs=rngs)
        self.stem = linear(1, channels, rngs=rngs)
        self.blocks = nnx.List([DilatedBlock(channels, 2**k, rngs=rngs) for k in range(blocks)])
        self.head = linear(channels, channels, rngs=rngs)
        self.out = linear(channels, 3 * mixtures, rngs=rngs)

    def __call__(self, x: Array, z_bnd: Array) -> Array:
        """Levels (B, P, S) and z (B, n, d) → parameters (B, P, S, 3K)."""
        before_bt = jnp.pad(self._heard(x.reshape(len(x), -1)), ((0, 0), (1, 0)))[:, :-1]
        v_btc = self.stem(before_bt[..., None])
        said_btc, links_bpkc = jnp.zeros_like(v_btc), self._links(z_bnd)
        for k, block in enumerate(self.blocks):
            v_btc, more_btc = block(v_btc, links_bpkc[:, :, k])
            said_btc = said_btc + more_btc
        return self._told(said_btc).reshape(*x.shape, -1)

    def generate(self, z_bnd: Array, choose: Any, inputs_tbk: Any) -> Array:
        """Writes sounds sample by sample, each by `choose(parameters, input)`: integers (B, P·S).

        The inputs are a tree of arrays (P, B, S, ...).
        """
        batch, samples = len(z_bnd), self.shape[0] * self.shape[1]
        links_bpkc = self._links(z_bnd)
        inputs_sb = jax.tree.map(lambda one: one.swapaxes(1, 2).reshape(samples, batch, *one.shape[3:]), inputs_tbk)
        dtype = self.out.bias[...].dtype

        def step(carry: Any, here: Any) -> Any:
            rings, before_b = carry
            t, given_b = here
            v_bc = self.stem(before_b[:, None])
            said_bc, kept = jnp.zeros_like(v_bc), []
            for k, (block, ring_dbc) in enumerate(zip(self.blocks, rings, strict=True)):
                v_bc, more_bc, ring_dbc = block.step(v_bc, t, links_bpkc[:, t // self.shape[1], k], ring_dbc)
                said_bc = said_bc + more_bc
                kept.append(ring_dbc)
            chosen_b = choose(self._told(said_bc), given_b).astype(jnp.int32)
            return (kept, self._heard(chosen_b)), chosen_b

        rings = [jnp.zeros((block.dilation, batch, self.channels), dtype) for block in self.blocks]
        start = (rings, jnp.zeros(batch, dtype))
        return jax.lax.scan(step, start, (jnp.arange(samples), inputs_sb))[1].swapaxes(0, 1)

    def _links(self, z_bnd: Array) -> Array:
        """What each position tells each block of z: (B, P, blocks, 2C)."""
        sizes = (len(z_bnd), self.shape[0], len(self.blocks), 2 * self.channels)
        if hasattr(self, "latents"):
            return self.latents(z_bnd).reshape(sizes)
        return jnp.zeros(sizes, self.out.bias[...].dtype)

    def _heard(self, x: Array) -> Array:
        """Levels as places in −1 … 1."""
        return x.astype(self.out.bias[...].dtype) * (2 / (self.levels - 1)) - 1

    def _told(self, said: Array) -> Array:
        return self.out(jax.nn.silu(self.head(jax.nn.silu(said))))


class WaveNetLikelihood(nnx.Module):
    """p(x | z) by a WaveNet that is told of z.

    Args:
        spec: of the sounds.
        prior: the twin of the prior; `starts` and the event shape are read.
        rngs: of the initial weights.
        use_latents: if false, z is ignored.
        conditioning: `causal`, where a sample sees the steps with starts up to its position, or `full`, where it sees
            all.
        channels: C.
        blocks: of dilation 1, 2, 4, …
        mixtures: K.
    """

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        *,
        rngs: nnx.Rngs,
        use_latents: bool = True,
        conditioning: Conditioning = "causal",
        channels: int = 32,
        blocks: int = 9,
        mixtures: int = 5,
    ) -> None:
        """See the class."""
        sounds = require_sounds(spec, "likelihood", "wavenet")
        self.told = Told(spec, prior, conditioning, use_latents=use_latents, rngs=rngs)
        self.network = ConditionalWaveNet(
            sounds.levels,
            sounds.shape,
            self.told.seen,
            self.told.dims,
            channels=channels,
            blocks=blocks,
            mixtures=mixtures,
            rngs=rngs,
        )

    def __call__(self, z: Array, lengths: Any = None, condition: Any = None) -> AutoregressiveSound:
        """p(x | z) for latents (..., n, d), of sounds of so many positions (...)."""
        return AutoregressiveSound(self.network, self.told(z, lengths, condition), lengths)
