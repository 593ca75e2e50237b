"""How networks over sequences read what stands at a position: tokens of K voices, or numbers of K variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_SCALE_BOUND = 7.0
"""Log-scales of logistics, in units of a variable's own scale, lie in ± this."""


class TokenTable(nn.Embedding):
    """Features of tokens 0 … V−1 of K voices, by rows of each voice's own.

    Args:
        voices: K.
        levels: V.
        hidden: features.
    """

    def __init__(self, voices: int, levels: int, hidden: int) -> None:
        super().__init__(voices * levels, hidden)
        self.levels = levels

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Tokens (…, k) of the voices from `first` on → (…, k, hidden)."""
        rows_k = torch.arange(first, first + x.shape[-1], device=x.device) * self.levels
        return super().forward(x + rows_k)


class NumberTable(nn.Module):
    """Features of standardised numbers x of K variables: x·w_k + b_k, and 0 where x is NaN, a number that is missing.

    Args:
        voices: K, of the variables.
        hidden: features.
    """

    def __init__(self, voices: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(voices, 2, hidden) / voices**0.5)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Numbers (…, k) of the variables from `first` on → (…, k, hidden)."""
        missing = x.isnan()
        w_kh, b_kh = self.weight[first : first + x.shape[-1]].unbind(1)
        return x.masked_fill(missing, 0.0).unsqueeze(-1) * w_kh + (~missing).unsqueeze(-1) * b_kh


class Units(nn.Module):
    """Numbers of K variables in units of each one's own scale, from its location, and parameters of them back.

    Args:
        location: of each variable.
        scale: of each variable.
    """

    location: Tensor
    scale: Tensor

    def __init__(self, location: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("location", torch.tensor(location), persistent=False)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    @classmethod
    def of(cls, spec: Any) -> Units | None:
        """Those of a spec of series; None of one of tokens."""
        return cls(spec.location, spec.scale) if hasattr(spec, "location") else None

    def standardised(self, x: Tensor, variable: int | slice = slice(None)) -> Tensor:
        """Numbers (…, K), or those of one variable (…), from location 0 in units of scale."""
        return (x.to(self.scale.dtype) - self.location[variable]) / self.scale[variable]

    def mixture(self, raw: Tensor, last: Tensor, variable: int | slice = slice(None)) -> Tensor:
        """Of mixtures of M logistics logits, and means and log-scales in units of x.

        Args:
            raw: (…, K, 3M), or (…, 3M) of one variable: logits; means, counted from `last`; log-scales.
            last: standardised numbers (…, K), or (…) of one variable.
            variable: which one.
        """
        logits, mean, log_scale = raw.unflatten(-1, (3, -1)).unbind(-2)
        location, scale = self.location[variable].unsqueeze(-1), self.scale[variable].unsqueeze(-1)
        log_scale = scale.log() + log_scale.clamp(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)
        return torch.cat((logits, location + scale * (mean + last.unsqueeze(-1)), log_scale), dim=-1)


class PositionReader(nn.Module):
    """Features of each position of a sequence, the sum of those of its K voices or variables.

    Args:
        spec: of sequences of tokens, or of series.
        hidden: features.

    Attributes:
        blank: what stands for something that is missing: token 0, or NaN.
    """

    def __init__(self, spec: Any, hidden: int) -> None:
        super().__init__()
        self.voices, self.units = math.prod(spec.shape[1:]), Units.of(spec)
        self.embed = (
            TokenTable(self.voices, spec.levels, hidden) if self.units is None else NumberTable(self.voices, hidden)
        )
        self.blank = 0 if self.units is None else math.nan

    def forward(self, x: Tensor) -> Tensor:
        """Data (B, T) or (B, T, K) → (B, T, hidden); a number that is missing is NaN."""
        x_btk = x.reshape(*x.shape[:2], self.voices)
        return self.embed(x_btk.long() if self.units is None else self.units.standardised(x_btk)).sum(-2)


def last_known(x_btk: Tensor) -> Tensor:
    """The last number of each variable that is known before each position, 0 where there is none: (B, T, K)."""
    known = F.pad(~x_btk.isnan()[:, :-1], (0, 0, 1, 0))  # at the position before
    place_t = torch.arange(x_btk.shape[1], device=x_btk.device)
    newest_btk = torch.where(known, place_t[:, None], 0).cummax(1).values  # 1 + place, 0 if there is none
    found_btk = x_btk.gather(1, (newest_btk - 1).clamp_min(0))
    return torch.where(newest_btk > 0, found_btk, 0.0)
