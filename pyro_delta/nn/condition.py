"""A condition, a class or a few numbers, as features of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_delta.errors import UserError

if TYPE_CHECKING:
    from pyro_delta.data.condition import Condition


class ConditionFeatures(nn.Module):
    """A vector for each class, or a linear map of numbers, which are standardised.

    Args:
        condition: K classes or C numbers.
        outputs: features.
        scale: deviation of the initial weights; 0 for features that say nothing at first.
    """

    def __init__(self, condition: Condition, outputs: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(condition.size, outputs))
        self.of_classes = bool(condition.classes)

    def forward(self, condition: Tensor) -> Tensor:
        """Whole numbers (…) of classes, or real ones (…, C), → (…, outputs).

        Raises:
            IndexError: on the CPU, for a number that is no class.
            UserError: for numbers that are not whole, where classes are expected.
        """
        if self.of_classes:
            if condition.is_floating_point():
                raise UserError(f"the condition is a class, a whole number, not of type {condition.dtype}.")
            # By number, whatever the type: as an index, bytes and truth values would be a mask, and −1 the last class.
            return F.embedding(condition.long(), self.weight)
        return condition.to(self.weight.dtype) @ self.weight


def given(condition: Tensor | None) -> dict[str, Tensor]:
    """The condition as a keyword, for what may know of none; nothing if there is none."""
    return {} if condition is None else {"condition": condition}


def check_told(features: nn.Module | None, condition: Tensor | None) -> None:
    """Refuses a condition that programs were not made for, and none where they were.

    Raises:
        UserError: in either case.
    """
    if features is None and condition is not None:
        raise UserError(
            "data have the key 'condition', but their spec says nothing of it; set data.condition=condition where they "
            "are named, or give the spec its `condition`."
        )
    if features is not None and condition is None:
        raise UserError("the programs are conditioned, and are given no condition; give 'condition' beside x.")
