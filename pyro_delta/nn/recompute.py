"""Memory for time: activations that are computed again in the backward pass rather than kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """A block of a deep network, of which only the inputs are kept if `recompute` is set [1].

    Like bfloat16 it is a setting of training, not of the weights. Results and gradients are the same to the bit: the
    same operations run on the same numbers, with the random state put back, so that the same features are dropped.

    References:
        1. T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """

    recompute: bool = False


def applied(block: nn.Module, *inputs: Tensor) -> Tensor:
    """The block of the inputs, computed again in the backward pass if it is to be."""
    if getattr(block, "recompute", False) and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def set_recompute(module: nn.Module, enabled: bool) -> int:
    """Sets it in every `Block` below `module`, and says how many there are."""
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    for block in blocks:
        block.recompute = enabled
    return len(blocks)
