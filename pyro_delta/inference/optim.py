"""A step that no gradient spoils, be it not finite or far too large, and the averages; no host synchronisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pyro_delta.config import TrainingConfig
from pyro_delta.errors import CheckFailed
from pyro_delta.inference.muon import Muon, matrices_of
from pyro_delta.vae import VAE, copied

MAX_STREAK = 20
"""Skipped steps in a row after which a run stops."""


def make_optimizer(vae: VAE, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam, AdamW or Muon, fused, which knows how to skip a step. Model and guide are groups of their own.

    What they share, as a guide may that holds the prior, is the model's.
    """
    groups, shared = [], set(vae.model.parameters())
    for program, factor, others in ((vae.model, 1.0, set()), (vae.guide, config.guide_lr, shared)):
        matrices = set(matrices_of(program)) if config.optimizer == "muon" else set()
        learning = [p for p in program.parameters() if p.requires_grad and p not in others]
        for chosen in (False, True):
            parameters = [p for p in learning if (p in matrices) is chosen]
            groups.append({"params": parameters, "factor": factor, "matrices": chosen})
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon}[config.optimizer]
    return kind(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: TrainingConfig, step: int, progress: float) -> float:
    """Linear warm-up over the first steps, then decay over the whole of training, below `lr_sqrt` / √step.

    Muon's steps are of one size, and what they add to weights grows with the sum of the rates. Trainings of PixelSNAIL
    ran off where that sum times the rate came to .03; below c/√step it is 2c² at most.

    Args:
        config: the settings.
        step: 0, 1, …
        progress: part of all steps or minutes that is over, 0 … 1.
    """
    warm = min(1.0, (step + 1) / (config.warmup + 1))
    progress = min(max(progress, 0.0), 1.0)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "none": 1.0}[config.decay]
    lr = config.lr * warm * (left if config.decay == "none" else config.final + (1 - config.final) * left)
    return lr if config.lr_sqrt is None else min(lr, config.lr_sqrt / math.sqrt(step + 1))


class GuardedStep:
    """Clips, steps, and skips where loss or gradient is not finite, or the gradient's norm beyond `skip`.

    Parameters and moments then stay as they were. Clipping alone does not save them: of a batch that a network makes
    something enormous of, it keeps the direction, and orthogonalised steps are of one size whatever the gradient's.

    The optimiser itself is told on the device (`found_inf`, as a gradient scaler does), so nothing waits for the GPU.

    Attributes:
        skipped: steps skipped so far (a tensor).
        streak: steps skipped in a row, up to the newest (a tensor).
        taken: whether the newest step was not skipped (a tensor).
        norm: gradient norm of the newest step, before clipping (a tensor).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, clip: float | None, device: torch.device, skip: float | None = None
    ) -> None:
        self.optimizer, self.clip, self.skip = optimizer, clip, skip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.skipped = torch.zeros((), device=device)
        self.streak = torch.zeros((), device=device)
        self.taken = torch.ones((), dtype=torch.bool, device=device)
        self.norm = torch.zeros((), device=device)

    def __call__(self, loss: Tensor, lr: float, taken: Tensor | None = None) -> None:
        """One step with the gradients in place, which are then dropped; none where another was not `taken`."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(grads, foreach=True)
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, self.norm, foreach=True)
        good = torch.isfinite(self.norm) & torch.isfinite(loss.detach())
        if self.skip is not None:
            good &= self.norm <= self.skip
        if taken is not None:
            good &= taken
        self.taken, bad = good, 1.0 - good.float()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.grad_scale, self.optimizer.found_inf = None, bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += bad
        self.streak = (self.streak + 1) * bad

    def stop_if_stuck(self, step: int, mend: str) -> None:
        """Reads the streak, for which the host waits.

        Raises:
            CheckFailed: if `MAX_STREAK` steps in a row were skipped; says `mend`.
        """
        stop_if_stuck(int(self.streak), step, mend, self.skip)


def calmer(config: TrainingConfig) -> str:
    """Settings by which a training might not run off. Norms are compared with `skip` before they are clipped."""
    others = ["a larger training.skip"] if config.skip is not None else []
    others += ["a training.clip"] if config.clip is None else []
    return " or ".join(["a lower training.lr", *others])


def unfit(skip: float | None) -> str:
    """Why steps were skipped, in words."""
    return "were not finite" + ("" if skip is None else f", or had gradients beyond training.skip={skip:g},")


def stop_if_stuck(streak: int, step: int, mend: str, skip: float | None = None) -> None:
    """Gives up when steps are skipped on and on.

    Raises:
        CheckFailed: if `streak`, the steps in a row that were skipped, has reached `MAX_STREAK`; says `mend`.
    """
    if streak >= MAX_STREAK:
        raise CheckFailed(
            f"training stopped at step {step}: the last {streak} steps {unfit(skip)} and were skipped; {mend}."
        )


def averaging_weight(step: int, decay: float) -> float:
    """What the newest weights count in the moving average after step 0, 1, …; those of the first are copied."""
    return 1.0 if step == 0 else 1 - min(decay, (1 + step) / (10 + step))


class MovingAverage(AveragedModel):
    """Exponential moving average of a module's weights with decay min(decay, (1 + t)/(10 + t)) at step t.

    torch's own has no warm-up: at 0.9995, 61 % of the average after 1000 steps would be the initial weights. It also
    reads its counter on the device and walks both modules at every step, which costs most of a millisecond.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(copied(module))
        self.decay = decay
        self.averaged: list[Tensor] = list(self.module.parameters())
        self.newest: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the newest weights; the first ones are copied."""
        count = int(self.n_averaged)  # a CPU tensor wherever the weights are
        torch._foreach_lerp_(self.averaged, self.newest, averaging_weight(count, self.decay))
        self.n_averaged += 1
