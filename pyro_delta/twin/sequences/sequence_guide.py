"""What the twins' guides of sequences share, written from `docs/architecture.md`.

B data of T positions; n latent steps of d dimensions, of which step t belongs to the datum from position starts[t] on;
h units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro
from flax import nnx
from jax import Array
from numpyro.distributions import Independent, Normal

from pyro_delta.twin.layers import linear, positive
from pyro_delta.twin.rate import minimising_factor
from pyro_delta.twin.sequences.layers import GRU
from pyro_delta.twin.variables import Buffer


class BackwardGRU(nnx.Module):
    """Numbers for each latent step from a GRU that reads a datum from the end: those of the state at starts[t].

    Args:
        starts: of each latent step.
        outputs: numbers for each step.
        hidden: h.
        rngs: of the initial values.
        reading: layers of `read`, by name.
    """

    def __init__(self, starts: Sequence[int], outputs: int, *, hidden: int, rngs: nnx.Rngs, **reading: Any) -> None:
        """See the class."""
        self.starts = tuple(int(position) for position in starts)
        for name, layer in reading.items():
            setattr(self, name, layer)
        self.gru = GRU(hidden, hidden, rngs=rngs)
        self.out = linear(hidden, outputs, rngs=rngs)

    def read(self, x: Array) -> Array:
        """What the GRU reads at each position of data (B, T, ...): (B, T, h)."""
        raise NotImplementedError

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Data (B, T, ...), of which so many positions (B,) count, → (B, n, outputs).

        Each is turned round within its length: reading starts at its own end.
        """
        read_bth = self.read(x)
        positions = read_bth.shape[1]
        last_b1 = (jnp.full(len(x), positions) if lengths is None else jnp.asarray(lengths))[:, None] - 1
        seen_bth = self.gru(_at(read_bth, last_b1 - jnp.arange(positions)))
        return self.out(_at(seen_bth, last_b1 - np.asarray(self.starts)))


def _at(values_bth: Array, places_bs: Array) -> Array:
    """Values (B, S, h) at places of each datum; those below 0 are taken for 0."""
    return jnp.take_along_axis(values_bth, jnp.maximum(places_bs, 0)[..., None], axis=1)


def inside(starts: Sequence[int], lengths: Any) -> Array:
    """Which steps belong to a datum of so many positions (...): (..., n)."""
    return np.asarray(starts) < jnp.asarray(lengths)[..., None]


class SequenceGuide(nnx.Module):
    """Independent over steps and dimensions; z_t hears positions ≥ starts[t], and is N(0, 1) behind the end.

    Args:
        encoder: that gives 2d numbers for each step.
        prior: the twin of the prior; its density is read.
    """

    causality: ClassVar[str] = "anti_causal"

    def __init__(self, encoder: BackwardGRU, prior: Any) -> None:
        """See the class."""
        self.dims, self.encoder = prior().event_shape[-1], encoder
        scale_dt = np.diagonal(minimising_factor(prior(), 1), axis1=-2, axis2=-1)
        self.scale = Buffer(jnp.asarray(scale_dt.T))

    def __call__(self, x: Array, lengths: Any = None) -> Array:
        """Writes the site `z` for data x (B, *shape)."""
        with numpyro.plate("data", x.shape[0]):
            return numpyro.sample("z", self.posterior(x, lengths))

    def posterior(self, x: Array, lengths: Any = None) -> Independent:
        """q(z | x) for data (B, *shape) of so many positions (B,), event shape (n, d)."""
        mean, ratio = jnp.split(self.encoder(x, lengths), 2, axis=-1)
        scale = self.scale[...] * positive(ratio) + 1e-6
        if lengths is not None:
            counted = inside(self.encoder.starts, lengths)[..., None]
            mean, scale = jnp.where(counted, mean, 0.0), jnp.where(counted, scale, 1.0)
        return Normal(mean, scale).to_event(2)

    def start_from(self, x: Array, lengths: Any = None) -> None:
        """Initialises by data (B, *shape): means of mean 0 and deviation 1 over them, all else 0."""
        out, d = self.encoder.out, self.dims
        mean_bnd = self.encoder(x, lengths)[..., :d]
        mean_kd = mean_bnd.reshape(-1, d) if lengths is None else mean_bnd[inside(self.encoder.starts, lengths)]
        deviation_d = jnp.maximum(mean_kd.std(0), 1e-6)
        kernel, bias = out.kernel[...], out.bias[...]
        out.kernel[...] = jnp.zeros_like(kernel).at[:, :d].set(kernel[:, :d] / deviation_d)
        out.bias[...] = jnp.zeros_like(bias).at[:d].set((bias[:d] - mean_kd.mean(0)) / deviation_d)
