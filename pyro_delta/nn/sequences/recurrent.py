"""A GRU as the trunk of a network over sequences: positions in, positions out, each of those up to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrence(nn.Module):
    """A GRU of one layer.

    Args:
        hidden: units, and features of its input.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRU(hidden, hidden, batch_first=True)

    def forward(self, v_bth: Tensor) -> Tensor:
        """(B, T, h) → all states, (B, T, h)."""
        return self.gru(v_bth)[0]

    def start(self, v_bh: Tensor) -> dict[str, Tensor]:
        """Nothing read yet; v is like an input in its number, type and device."""
        return {"state": torch.zeros_like(v_bh)}

    def take(self, state: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        """The state of the sequences at indices, in that order."""
        return {"state": state["state"][order]}

    def step(self, state: dict[str, Tensor], position: int, v_bh: Tensor) -> Tensor:
        """One position after the other: (B, h) → (B, h)."""
        state["state"] = self.gru(v_bh.unsqueeze(1), state["state"].unsqueeze(0))[0][:, 0]
        return state["state"]
