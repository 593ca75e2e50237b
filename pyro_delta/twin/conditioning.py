"""What twins of likelihoods and guides are told beside the data, written from `docs/architecture.md`.

n latent steps of d dimensions, of which step t belongs to the data from position starts[t] on; a condition of K classes
or C real numbers.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pyro_delta.data.condition import Condition, condition_of
from pyro_delta.errors import UserError
from pyro_delta.protocol import Spec

Conditioning = Literal["causal", "full"]


class ConditionFeatures(nnx.Module):
    """A vector for each class, or a linear map of standardised numbers.

    Args:
        condition: of the data.
        outputs: features.
        rngs: of the initial values.
        scale: their deviation.
    """

    def __init__(self, condition: Condition, outputs: int, *, rngs: nnx.Rngs, scale: float = 1.0) -> None:
        """See the class."""
        self.condition = condition
        self.weight = nnx.Param(scale * jax.random.normal(rngs.params(), (condition.size, outputs), float))

    def __call__(self, condition: Array) -> Array:
        """Whole numbers (...) or real ones (..., C) → (..., outputs)."""
        weight = self.weight[...]
        if self.condition.classes:
            return weight[jnp.asarray(condition).astype(int)]
        return jnp.asarray(condition, weight.dtype) @ weight


def inside(starts: Any, lengths: Any) -> Array:
    """Which steps belong to a datum of so many positions (...): (..., n)."""
    return np.asarray(starts) < jnp.asarray(lengths)[..., None]


class Told(nnx.Module):
    """Latents as a network takes them: first ⌈16/d⌉ steps that tell of the condition to every position, then z.

    Args:
        spec: of the data.
        prior: the twin of the prior; `starts` and the event shape are read.
        conditioning: `causal`, where a position sees the steps with starts up to it, or `full`, where it sees all.
        use_latents: if false, z is ignored.
        rngs: of the initial values.
    """

    def __init__(
        self, spec: Spec, prior: Any, conditioning: Conditioning, *, use_latents: bool, rngs: nnx.Rngs
    ) -> None:
        """See the class."""
        self.starts = tuple(np.asarray(prior.starts[...]).tolist())
        self.dims, self.use_latents = prior().event_shape[-1], use_latents
        seen = [start * (conditioning == "causal") for start in self.starts] if use_latents else []
        condition = condition_of(spec)
        if condition is not None:
            steps = (16 + self.dims - 1) // self.dims
            self.features = ConditionFeatures(condition, steps * self.dims, rngs=rngs)
            seen = [0] * steps + seen
        self.seen = tuple(seen) or None

    def __call__(self, z: Array, lengths: Any = None, condition: Any = None) -> Array:
        """Z (..., n, d), for data of so many positions (...) and a condition each."""
        if lengths is not None:
            z = jnp.where(inside(self.starts, lengths)[..., None], z, 0)
        check_told(hasattr(self, "features"), condition)
        if condition is None:
            return z
        steps = self.features(condition)
        steps = steps.reshape(*steps.shape[:-1], -1, self.dims)
        batch = jnp.broadcast_shapes(steps.shape[:-2], z.shape[:-2])
        parts = [steps, z] if self.use_latents else [steps]
        return jnp.concatenate([jnp.broadcast_to(part, batch + part.shape[-2:]) for part in parts], axis=-2)


def check_told(takes: bool, condition: Any) -> None:
    """Refuses a condition where a twin takes none, and none where it takes one.

    Raises:
        UserError: in either case.
    """
    if takes != (condition is not None):
        need = "need the key 'condition' beside x" if takes else "take no condition; their spec says nothing of one"
        raise UserError(f"the twins {need}.")
