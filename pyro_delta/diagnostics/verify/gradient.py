"""Is what the optimiser follows the gradient of what is minimised?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_delta.diagnostics.trace import seeded, trace
from pyro_delta.diagnostics.verify.case import Case, Finding, shake
from pyro_delta.diagnostics.verify.distributions import is_real
from pyro_delta.vae import copied

STEPS = (1e-5, 1e-7, 1e-8)
"""Of the finite differences: between shorter ones there are fewer kinks, such as those of ReLUs, and more rounding."""
WRONG = 1e-3
"""Part of a slope by which it may be off."""


def check_gradient(title: str, case: Case) -> Finding:
    """−ELBO's gradient along a random direction, against finite differences with the same noise.

    Latents of other kinds than real numbers are no smooth function of their noise, nor are codes that are given the
    gradient of something else: they stay as they are.
    """
    vae, batch = copied(case.vae), case.batch(case.x)
    shake(vae, 0.05)
    with torch.no_grad():
        latents = trace(vae, batch).latents
    fixed = {
        name: latent.z
        for name, latent in latents.items()
        if not (is_real(latent.q.support) and is_real(latent.p.support))
    }
    parameters = [p for p in vae.parameters() if p.requires_grad]
    direction = [torch.randn_like(p) for p in parameters]

    def loss() -> Tensor:
        seeded(0)
        seen = trace(vae, batch, fixed)
        return (seen.log_q - seen.log_p - seen.log_px).sum()

    if not parameters:
        return Finding(title, None, "there are no parameters")
    grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum((g * v).sum().item() for g, v in zip(grads, direction, strict=True) if g is not None)

    def moved_by(step: float) -> float:
        with torch.no_grad():
            for parameter, v in zip(parameters, direction, strict=True):
                parameter.add_(step * v)
            value = loss().item()
            for parameter, v in zip(parameters, direction, strict=True):
                parameter.sub_(step * v)
        return value

    measured = math.nan
    for step in STEPS:
        measured = (moved_by(step) - moved_by(-step)) / (2 * step)
        if abs(slope - measured) <= WRONG * max(abs(slope), abs(measured), 1.0):
            return Finding(title, True, f"agrees with finite differences ({slope:.6g})")
    return Finding(title, False, f"{slope:.6g} along a random direction, {measured:.6g} by finite differences")
