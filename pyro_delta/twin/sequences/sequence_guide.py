"""What the twins' guides of sequences share, written from `docs/architecture.md`.

B data of T positions; n latent steps of d dimensions, of which step t belongs to the datum from position starts[t] on;
h features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from flax import nnx
from jax import Array
from numpyro.distributions import Independent, Normal

from pyro_delta.data.condition import Condition, condition_of
from pyro_delta.protocol import Spec
from pyro_delta.twin.conditioning import ConditionFeatures, check_told, inside
from pyro_delta.twin.contour import Contour
from pyro_delta.twin.layers import linear, positive
from pyro_delta.twin.rate import minimising_factor
from pyro_delta.twin.variables import Buffer


class Backward(nnx.Module):
    """Numbers for each latent step from a trunk that reads a datum from the end: what comes out at starts[t].

    A second one may read it from the beginning; what comes out of it at starts[t], or at the end of a datum that is
    shorter, stands behind that.

    Args:
        reader: of positions: data (B, T, ...) → (B, T, h); its `blank` stands for what is missing.
        trunk: causal, of h features.
        starts: of each latent step.
        outputs: numbers for each step.
        hidden: h.
        rngs: of the initial values.
        condition: of the data.
        forwards: the second trunk.
    """

    def __init__(
        self,
        reader: Any,
        trunk: Any,
        starts: Sequence[int],
        outputs: int,
        *,
        hidden: int,
        rngs: nnx.Rngs,
        condition: Condition | None,
        forwards: Any = None,
    ) -> None:
        """See the class."""
        self.starts = tuple(int(position) for position in starts)
        self.reader, self.trunk = reader, trunk
        if forwards is not None:
            self.forwards = forwards
        self.out = linear(hidden if forwards is None else 2 * hidden, outputs, rngs=rngs)
        if condition is not None:
            self.condition = ConditionFeatures(condition, hidden, rngs=rngs, scale=0.0)

    def __call__(self, x: Array, lengths: Any = None, condition: Any = None) -> Array:
        """Data (B, T, ...), of which so many positions (B,) count, and their condition, → (B, n, outputs).

        Each is turned round within its length: reading starts at its own end.
        """
        read_bth = self.reader(x)
        check_told(hasattr(self, "condition"), condition)
        if condition is not None:
            read_bth = read_bth + self.condition(condition)[:, None]
        positions = read_bth.shape[1]
        last_b1 = (jnp.full(len(x), positions) if lengths is None else jnp.asarray(lengths))[:, None] - 1
        places_n = np.asarray(self.starts)
        seen_bnh = _at(self.trunk(_at(read_bth, last_b1 - jnp.arange(positions))), last_b1 - places_n)
        if hasattr(self, "forwards"):
            earlier_bnh = _at(self.forwards(read_bth), jnp.minimum(places_n, last_b1))
            seen_bnh = jnp.concatenate([seen_bnh, earlier_bnh], -1)
        return self.out(seen_bnh)


def _at(values_bth: Array, places_bs: Array) -> Array:
    """Values (B, S, h) at places of each datum; those below 0 are taken for 0."""
    return jnp.take_along_axis(values_bth, jnp.maximum(places_bs, 0)[..., None], axis=1)


class SequenceGuide(nnx.Module):
    """Independent over steps and dimensions; z_t hears positions ≥ starts[t], and is N(0, 1) behind the end.

    With `rate_nats` each coordinate before it keeps its distance from N(0, 1), see `Contour`.

    Args:
        spec: of the data.
        prior: the twin of the prior; `starts`, the event shape and the density are read.
        reader: of positions, see `Backward`.
        trunk: causal.
        hidden: h.
        rngs: of the initial values.
        rate_nats: δ of a datum of all positions; None leaves it to the prior.
        forwards: a second trunk, with which z_t hears all positions.
    """

    causality: str = "anti_causal"

    def __init__(
        self,
        spec: Spec,
        prior: Any,
        reader: Any,
        trunk: Any,
        *,
        hidden: int,
        rngs: nnx.Rngs,
        rate_nats: float | None = None,
        forwards: Any = None,
    ) -> None:
        """See the class."""
        if forwards is not None:
            self.causality = "none"
        self.dims = prior().event_shape[-1]
        starts = np.asarray(prior.starts[...]).tolist()
        condition = condition_of(spec)
        self.encoder = Backward(
            reader, trunk, starts, 2 * self.dims, hidden=hidden, rngs=rngs, condition=condition, forwards=forwards
        )
        self.contour = None if rate_nats is None else Contour(prior(), rate_nats)
        if self.contour is None:
            scale_dt = np.diagonal(minimising_factor(prior(), 1), axis1=-2, axis2=-1)
            self.scale = Buffer(jnp.asarray(scale_dt.T))

    @property
    def committed_rate(self) -> Any:
        """Gives δ in nats of this family against a prior; None where the prior's own is that."""
        return None if self.contour is None else self.contour.committed_rate

    def __call__(self, x: Array, lengths: Any = None, mask: Any = None, condition: Any = None) -> Array:
        """Writes the site `z` for data x (B, *shape)."""
        with numpyro.plate("data", x.shape[0]):
            return numpyro.sample("z", self.posterior(x, lengths, mask, condition))

    def posterior(self, x: Array, lengths: Any = None, mask: Any = None, condition: Any = None) -> Independent:
        """q(z | x) for data (B, *shape) of so many positions (B,), known as masked, event shape (n, d)."""
        mean, other = jnp.split(self.encoder(self._known(x, lengths, mask), lengths, condition), 2, axis=-1)
        if self.contour is None:
            scale = self.scale[...] * positive(other) + 1e-6
        else:
            mean, scale = self.contour(mean, other)
        if lengths is not None:
            counted = inside(self.encoder.starts, lengths)[..., None]
            mean, scale = jnp.where(counted, mean, 0.0), jnp.where(counted, scale, 1.0)
        return Normal(mean, scale).to_event(2)

    def _known(self, x: Array, lengths: Any, mask: Any) -> Array:
        """What is missing, or behind the end, as `blank`."""
        if lengths is not None:
            counted = inside(range(x.shape[1]), lengths)
            counted = counted.reshape(counted.shape + (1,) * (x.ndim - 2))
            mask = counted if mask is None else mask & counted
        return x if mask is None else jnp.where(mask, x, self.encoder.reader.blank)

    def start_from(self, x: Array, lengths: Any = None, mask: Any = None, condition: Any = None) -> None:
        """Initialises by data (B, *shape): means of mean 0 and deviation 1 over them, all else 0.

        Of a contour both numbers of a coordinate start like the mean.
        """
        out, o = self.encoder.out, self.dims if self.contour is None else 2 * self.dims
        numbers_bno = self.encoder(self._known(x, lengths, mask), lengths, condition)[..., :o]
        numbers_ko = (
            numbers_bno.reshape(-1, o) if lengths is None else numbers_bno[inside(self.encoder.starts, lengths)]
        )
        deviation_o = jnp.maximum(numbers_ko.std(0), 1e-6)
        kernel, bias = out.kernel[...], out.bias[...]
        out.kernel[...] = jnp.zeros_like(kernel).at[:, :o].set(kernel[:, :o] / deviation_o)
        out.bias[...] = jnp.zeros_like(bias).at[:o].set((bias[:o] - numbers_ko.mean(0)) / deviation_o)
