"""What is minimised: the negative ELBO, and what baselines make of the same rate and distortion.

With D the distortion and R the rate, each in nats, a mean over the minibatch:

    =================  =====================================  ============================
    elbo               D + R                                  `NegativeELBO`
    beta               D + β R                                `Beta` [1]
    annealed           D + β R, β rising from 0 to 1          `Annealed` [2]
    free_bits          D + max(R, λ)                          `FreeBits` [3]
    free_bits_per_dim  D + Σ_k max(R_k, λ / d)                `FreeBitsPerDimension` [3]
    target_rate        D + R + m (target − R), m ≥ 0 learned  `TargetRate` [4]
    =================  =====================================  ============================

Only the first is read as a bound. Of the others some lie below it (β < 1, annealing; m > 0 with R > target), some above
it (β > 1, free bits). So the loop logs what was minimised as `loss_bpd`, beside rate, distortion and `neg_elbo_bpd`,
which are always the true ones.

An objective is any object with the protocol `pyro_delta.protocol.Objective`: called with the rate, the distortion
(nats, summed over the data of a minibatch and averaged over particles) and the number of data, it gives what is
minimised. One of your own, from a file: `--objective mine.py:Mine --set objective.weight=2`.

References:
    [1] I. Higgins et al., "β-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", ICLR 2017.
    [2] S. Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016, §3.1.
    [3] D. P. Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow", NIPS 2016, appendix.
    [4] T. Pelsmaeker, W. Aziz, "Effective Estimation of Deep Generative Language Models", ACL 2020, arXiv 1904.08194
        (minimum desired rate).
    [5] H. Fu et al., "Cyclical Annealing Schedule", NAACL 2019.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pyro_delta import ranks

Positive = Annotated[float, Field(gt=0)]


class NegativeELBO:
    """Distortion + rate, the negative ELBO; the base class of the others, whose `advance` does nothing."""

    per_dimension: ClassVar[bool] = False
    additive: ClassVar[bool] = True

    def __init__(self) -> None:
        self.varying: dict[str, float | Tensor] = {}

    def __call__(self, rate: Tensor, distortion: Tensor, data: Tensor) -> Tensor:
        """What is minimised, in nats, for rate and distortion summed over `data` data."""
        return rate + distortion

    def advance(self, step: int) -> None:
        """To be called after each step of training with the number of steps made."""


class Beta(NegativeELBO):
    """Distortion + β · rate.

    Args:
        beta: β ≥ 0; below 1 the latents are used more, above 1 less, than the ELBO asks.
    """

    def __init__(self, *, beta: Annotated[float, Field(ge=0)]) -> None:
        super().__init__()
        self.beta = beta

    def __call__(self, rate: Tensor, distortion: Tensor, data: Tensor) -> Tensor:
        """See the class."""
        return distortion + self.beta * rate


STEEP = 5.0
"""Of the sigmoid along which β rises: its argument goes from −STEEP to STEEP."""


class Annealed(NegativeELBO):
    """Distortion + β · rate, β rising from 0 at the first step to 1 after `anneal_steps`, and 1 from then on.

    Or in cycles: β is 1 for as many steps, and starts from 0 again [5].

    Args:
        anneal_steps: steps until the objective is the ELBO.
        cycles: how often β rises; each cycle takes twice as many steps.
        curve: along which β rises: a line, or a sigmoid [2], scaled to reach from 0 to 1.

    NOTE: the sigmoid of [2] only comes near 0 and 1.
    """

    def __init__(
        self,
        *,
        anneal_steps: Annotated[int, Field(ge=1)],
        cycles: Annotated[int, Field(ge=1)] = 1,
        curve: Literal["linear", "sigmoid"] = "linear",
    ) -> None:
        super().__init__()
        self.anneal_steps, self.cycles, self.curve = anneal_steps, cycles, curve
        self.advance(0)

    def advance(self, step: int) -> None:
        """Sets β for the next step."""
        cycle, since = divmod(step, 2 * self.anneal_steps)
        part = min(1.0, since / self.anneal_steps) if cycle < self.cycles else 1.0
        if self.curve == "sigmoid":  # tanh is one, of twice the argument
            part = (1 + math.tanh(STEEP * (part - 0.5)) / math.tanh(STEEP / 2)) / 2
        self.varying["beta"] = part

    def __call__(self, rate: Tensor, distortion: Tensor, data: Tensor) -> Tensor:
        """See the class."""
        return distortion + self.varying["beta"] * rate


class FreeBits(NegativeELBO):
    """Distortion + rate, where a rate below a floor counts as the floor: it is free, and has no gradient.

    The floor holds for the mean rate over minibatch and particles, as in [3], not for that of each datum.

    Args:
        free_nats: λ in nats per datum.
    """

    additive: ClassVar[bool] = False

    def __init__(self, *, free_nats: Positive) -> None:
        super().__init__()
        self.free_nats = free_nats

    def __call__(self, rate: Tensor, distortion: Tensor, data: Tensor) -> Tensor:
        """See the class; `rate` is the total, or one of each group."""
        rate_g = rate.reshape(-1)
        return distortion + torch.maximum(rate_g, data * self.free_nats / len(rate_g)).sum()


class FreeBitsPerDimension(FreeBits):
    """Free bits for each of the d latent dimensions, a group of all n steps, rather than for their sum.

    NOTE: [3] gives λ to each group. Here λ is the total for a datum, so that the two variants compare: each group has
    λ/d. Posterior and prior must be known to `pyro_delta.distributions.per_dimension`.

    Args:
        free_nats: λ in nats per datum, shared evenly by the dimensions.
    """

    per_dimension = True


class TargetRate(NegativeELBO):
    """The ELBO under the constraint rate ≥ target, by the method of Lagrange multipliers.

    min over programs, max over m ≥ 0, of distortion + rate + m · (target − rate), so the weight of the rate is 1 − m.
    Where the ELBO alone keeps the constraint, m is 0. `advance` is the step of m: projected gradient ascent, with the
    rate in units of the target, m ← max(0, m + multiplier_lr · (1 − rate / target)).

    NOTE: GECO (D. J. Rezende, F. Viola, "Taming VAEs", 2018) constrains the distortion and minimises the rate. A floor
    under the rate is what δ and free bits are, so this compares with them. A projected m, rather than the softplus of a
    parameter, starts at the plain ELBO and leaves 0 at full speed.

    Args:
        target_nats: least mean rate over the minibatch, in nats per datum, > 0.
        multiplier_lr: what m gains in a step whose rate is 0. If m moves faster than the programs it passes 1, where
            any rate is rewarded, and swings before it settles.
    """

    additive: ClassVar[bool] = False

    def __init__(self, *, target_nats: Positive, multiplier_lr: Positive = 0.002) -> None:
        super().__init__()
        self.target_nats, self.multiplier_lr = target_nats, multiplier_lr
        self.varying["multiplier"] = torch.zeros(())
        self._shortfall = torch.zeros(())

    def advance(self, step: int) -> None:
        """Moves the multiplier by the newest rate; one that is not finite leaves it where it is."""
        gain = self.multiplier_lr * self._shortfall.nan_to_num(0.0, 0.0, 0.0)
        self.varying["multiplier"] = (self.varying["multiplier"] + gain).clamp_min(0.0)

    def __call__(self, rate: Tensor, distortion: Tensor, data: Tensor) -> Tensor:
        """See the class."""
        target = data * self.target_nats
        self._shortfall = 1 - rate.detach() / target
        return distortion + rate + self.varying["multiplier"] * (target - rate)


class OfAllRanks:
    """An objective of the batch that several ranks share, for one that is not a sum over the batch's parts.

    Its value is this rank's share of what is minimised; its gradient is the whole one by what this rank computes.

    Args:
        objective: of the whole batch.
    """

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.per_dimension = getattr(objective, "per_dimension", False)

    def __call__(self, rate: Tensor, distortion: Tensor, data: Tensor) -> Tensor:
        """As the objective of the sums over all ranks."""
        mine = torch.cat([rate.reshape(-1), distortion.reshape(1), data.reshape(1)])
        whole = mine + (ranks.total(mine) - mine.detach())
        loss: Tensor = self.objective(whole[:-2].reshape(rate.shape), whole[-2], whole[-1].detach())
        return loss - loss.detach() * (1 - 1 / ranks.count())
