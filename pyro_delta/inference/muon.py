"""Muon: weight matrices step along their orthogonalised momentum, everything else by Adam.

References:
    [1] K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon.
    [2] J. Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv 2502.16982.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2
"""Of the entries of an update, about: that of Adam's."""


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups of parameters that say `matrices`: those step as Muon does [1].

    The update of a matrix is its momentum (Nesterov's, free of its start at zero) with all singular values near 1,
    times .2 √(longer side), so that its entries are about as large as Adam's and one learning rate serves both [2]. A
    convolution's kernel is a matrix of as many rows as it has output channels. `found_inf` skips a step, as for a fused
    Adam.

    NOTE: torch's own Muon takes neither kernels nor a skipped step, and iterates in bfloat16, which many CPUs imitate.

    Takes the arguments of AdamW. A group says by `matrices` whether its parameters are matrices, for which lr and
    weight_decay hold, too; without a word they are not.

    Raises:
        ValueError: matrices of fewer than two dimensions.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes in a group of parameters."""
        super().add_param_group({"matrices": False, **param_group})
        group = self.param_groups[-1]
        if group["matrices"] and (flat := [p for p in group["params"] if p.dim() < 2]):
            self.param_groups.pop()
            raise ValueError(f"matrices have two dimensions or more, not the shape {tuple(flat[0].shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with the gradients in place, or with those that `closure` makes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = [group for group in self.param_groups if group["matrices"]]
        gradients = {p: p.grad for group in matrices for p in group["params"] if p.grad is not None}
        for p in gradients:
            p.grad = None  # Adam leaves out what has none
        adam_step: Any = torch.optim.AdamW.step
        while getattr(adam_step, "hooked", False):  # once any AdamW was made: it would call our hooks once more
            adam_step = adam_step.__wrapped__
        adam_step(self)
        for p, gradient in gradients.items():
            p.grad = gradient
        for group in matrices:
            self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None and p.numel():
                by_shape[p.shape[0], p.shape[1:].numel()].append(p)
        for (rows, columns), alike in by_shape.items():
            states = [self._state_of(p) for p in alike]
            gradient = torch.stack([p.grad.reshape(rows, columns) for p in alike])
            if group["maximize"]:
                gradient = -gradient
            momentum = torch.stack([state["momentum"] for state in states])
            count = torch.stack([state["step"] for state in states]).to(gradient.dtype)[:, None, None] + 1
            good = 1 - getattr(self, "found_inf", gradient.new_zeros(())).to(gradient.dtype)
            gradient = gradient.where(good > 0, 0.0)
            momentum = momentum.lerp(gradient, (1 - MOMENTUM) * good)
            ahead = momentum / (1 - MOMENTUM ** (count + 1)), gradient / (1 - MOMENTUM**count)
            update = orthogonalised(ahead[1].lerp(ahead[0], MOMENTUM)) * (good * RMS * max(rows, columns) ** 0.5)
            for p, state, newest, change in zip(alike, states, momentum, update, strict=True):
                state["step"] += good.to(state["step"].dtype)
                state["momentum"].copy_(newest)
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"] * good)
                p.sub_(change.view(p.shape), alpha=group["lr"])

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format).flatten(1)
        return state


def orthogonalised(matrices: Tensor) -> Tensor:
    """U Vᵀ of U S Vᵀ, about: singular values near 1, between .7 and 1.2, by Newton and Schulz's iteration [1].

    Args:
        matrices: (n, rows, columns).
    """
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    x = wide / (torch.linalg.matrix_norm(wide, keepdim=True) + 1e-8)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


def matrices_of(program: nn.Module) -> Iterator[nn.Parameter]:
    """What Muon is for: the weights of linear layers and convolutions between the ends of a network.

    A module says by an attribute `ends` which of its children read data or give the numbers of a distribution [1].
    Biases, positions and recurrent layers are left to Adam, too.
    """
    ends = {
        part
        for module in program.modules()
        for name in getattr(module, "ends", ())
        for part in module.get_submodule(name).modules()
    }
    for module in program.modules():
        layer = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and module not in ends
        if layer and isinstance(module.weight, nn.Parameter):  # and not computed from others
            yield module.weight
