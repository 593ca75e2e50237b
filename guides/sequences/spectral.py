"""A GRU over the spectra of a sound's positions as a guide: anti-causal, for it reads the sound from its end."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_delta.data.audio.companding import expanded
from pyro_delta.data.audio.spec import require_sounds
from pyro_delta.guides.sequences.sequence_guide import SequenceGuide
from pyro_delta.nn.sequences.recurrent import Recurrence
from pyro_delta.protocol import Prior, Spec
from pyro_delta.validation import Count

QUIET = 1e-4
"""Power below which spectra do not differ: some 25 dB above the noise of μ-law."""
LOUDNESS = 3.0
"""Nats of power that are 1 to the network, …"""
MIDDLE = -5.0
"""… and those that are 0."""


class SpectrumReader(nn.Module):
    """A linear map of the logarithmic power spectrum of each position's samples.

    With window w_s = sin²(π(s + ½)/S), nowhere 0, and amplitudes a_s:
    (ln(10⁻⁴ + |Σ_s w_s a_s e^(−2πifs/S)|²) + 5) / 3 for f = 0 … ⌊S/2⌋.

    Args:
        levels: L, of μ-law.
        samples: S, of a position.
        hidden: features.
    """

    blank = 0

    def __init__(self, levels: int, samples: int, hidden: int) -> None:
        super().__init__()
        self.levels, self.spectrum = levels, nn.Linear(samples // 2 + 1, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Levels (B, P, S) → (B, P, hidden)."""
        x, samples = x.to(self.spectrum.weight.dtype), x.shape[-1]
        window_s = torch.sin(math.pi / samples * (torch.arange(samples, device=x.device, dtype=x.dtype) + 0.5)).square()
        power_bpf = torch.view_as_real(torch.fft.rfft(expanded(x, self.levels) * window_s)).square().sum(-1)
        return self.spectrum((torch.log(power_bpf + QUIET) - MIDDLE) / LOUDNESS)


class SpectralGuide(SequenceGuide):
    """q(z | x) = Π_t N(z_t; μ_t(x_{≥t}), σ_t(x_{≥t})) from a GRU that reads the spectra of positions backwards.

    See `SequenceGuide`.

    Args:
        spec: of the sounds.
        prior: a Gaussian prior.
        hidden: units.
        rate_nats: δ of a datum of all positions against a standard normal prior, see `SequenceGuide`; None leaves it to
            the prior.

    Raises:
        UserError: if the data are no sounds, or for a rate that cannot be committed against this prior.
    """

    twin: ClassVar[str] = "pyro_delta.twin.sequences.spectral:SpectralGuide"

    def __init__(self, spec: Spec, prior: Prior, *, hidden: Count = 64, rate_nats: float | None = None) -> None:
        sounds = require_sounds(spec, "guide", "spectral")
        reader = SpectrumReader(sounds.levels, sounds.samples, hidden)
        super().__init__(sounds, prior, reader, Recurrence(hidden), hidden=hidden, rate_nats=rate_nats)
