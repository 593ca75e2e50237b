"""Twin of the guide that reads spectra, written from `docs/architecture.md`.

B sounds of P positions of S samples, L μ-law levels; h units.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pyro_delta.data.audio.spec import require_sounds
from pyro_delta.protocol import Spec
from pyro_delta.twin.layers import linear
from pyro_delta.twin.sequences.layers import Recurrence
from pyro_delta.twin.sequences.sequence_guide import SequenceGuide


class SpectrumReader(nnx.Module):
    """A linear map of ln(10⁻⁴ + power) of each position's spectrum, by sines and cosines.

    Args:
        levels: L.
        samples: S.
        hidden: h.
        rngs: of the initial values.
    """

    blank: ClassVar[float] = 0

    def __init__(self, levels: int, samples: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        """See the class."""
        self.levels, self.spectrum = levels, linear(samples // 2 + 1, hidden, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Levels (B, P, S) → (B, P, h)."""
        mu, samples = self.levels - 1, x.shape[-1]
        f = 2 * x.astype(self.spectrum.bias[...].dtype) / mu - 1
        amplitude = jnp.sign(f) * ((1 + mu) ** jnp.abs(f) - 1) / mu
        place_s = np.arange(samples)
        window_s = np.sin(np.pi * (place_s + 0.5) / samples) ** 2
        angle_sf = 2 * np.pi * np.outer(place_s, np.arange(samples // 2 + 1)) / samples
        waves = [jnp.asarray(window_s[:, None] * wave(angle_sf), amplitude.dtype) for wave in (np.cos, np.sin)]
        power_bpf = sum((amplitude @ wave_sf) ** 2 for wave_sf in waves)
        return self.spectrum((jnp.log(power_bpf + 1e-4) + 5) / 3)


class SpectralGuide(SequenceGuide):
    """A `SequenceGuide` that reads spectra.

    Args:
        spec: of the sounds.
        prior: the twin of the prior; `starts`, the event shape and the density are read.
        rngs: of the initial weights.
        hidden: h.
        rate_nats: as of `SequenceGuide`.
    """

    def __init__(
        self, spec: Spec, prior: Any, *, rngs: nnx.Rngs, hidden: int = 64, rate_nats: float | None = None
    ) -> None:
        """See the class."""
        sounds = require_sounds(spec, "guide", "spectral")
        reader = SpectrumReader(sounds.levels, sounds.samples, hidden, rngs=rngs)
        super().__init__(
            spec, prior, reader, Recurrence(hidden, rngs=rngs), hidden=hidden, rngs=rngs, rate_nats=rate_nats
        )
