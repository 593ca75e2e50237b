"""Where bfloat16 begins and ends: inside a network's forward, nowhere else, and on devices that compute in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A network whose output parametrises a distribution.

    `bf16` switches bfloat16 autocast on inside `forward` (see `autocast_inside`). It is a setting of training, not of
    the weights: parameters stay float32, and evaluation and sampling leave it off.
    """

    bf16: bool = False


def autocast_inside(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorates a `Network`'s forward: autocast runs inside, float32 (or wider) comes out.

    Densities evaluated in bfloat16 are wrong by up to half a bit per dimension, and a KL may fall below its floor;
    the matrix products of a network are not that particular.
    """

    @wraps(forward)
    def inside(self: Network, x: Tensor, *rest: Tensor, **named: Tensor) -> Tensor:
        if not self.bf16:
            return forward(self, x, *rest, **named)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            out = forward(self, x, *rest, **named)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    return inside


def set_bf16(module: nn.Module, enabled: bool) -> None:
    """Switches autocast in every `Network` below `module`."""
    for network in module.modules():
        if isinstance(network, Network):
            network.bf16 = enabled


def computes_in_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16, rather than imitate it, which is several times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if known:  # older releases of torch do not tell
        return any(known[name] is True for name in known if "bf16" in name)
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
