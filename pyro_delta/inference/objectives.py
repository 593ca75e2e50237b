"""What the baselines minimise in place of −ELBO: the same rate and distortion, weighed otherwise.

With D the distortion and R the rate, each in nats, a mean over the minibatch:

    =================  =====================================  ============================
    elbo               D + R                                  `RateDistortionELBO`
    beta               D + β R                                `BetaELBO` [1]
    annealed           D + min(1, step / anneal_steps) R      `AnnealedELBO` [2]
    free_bits          D + max(R, λ)                          `FreeBitsELBO` [3]
    free_bits_per_dim  D + Σ_k max(R_k, λ / d)                `FreeBitsELBO(per_dim=True)` [3]
    target_rate        D + R + m (target − R), m ≥ 0 learned  `TargetRateELBO` [4]
    =================  =====================================  ============================

Only the first is read as a bound. Of the others some lie below it (β < 1, annealing; m > 0 with R > target), some above
it (β > 1, free bits). So the loop logs what was minimised as `loss_bpd`, beside rate, distortion and `neg_elbo_bpd`,
which are always the true ones.

References:
    [1] I. Higgins et al., "β-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework", ICLR 2017.
    [2] S. Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016, §3.1.
    [3] D. P. Kingma et al., "Improving Variational Inference with Inverse Autoregressive Flow", NIPS 2016, appendix.
    [4] T. Pelsmaeker, W. Aziz, "Effective Estimation of Deep Generative Language Models", ACL 2020, arXiv 1904.08194
        (minimum desired rate).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_delta.config import TrainingConfig
from pyro_delta.distributions.dimensions import dimensions_of, per_dimension
from pyro_delta.inference.elbo import RateDistortionELBO

Site = dict[str, Any]


def make_objective(settings: TrainingConfig) -> RateDistortionELBO:
    """The objective of a configuration."""
    common: dict[str, Any] = {"analytic_kl": settings.elbo == "mean_field", "max_plate_nesting": 1}
    match settings:
        case TrainingConfig(objective="beta", beta=float(beta)):
            return BetaELBO(beta=beta, **common)
        case TrainingConfig(objective="annealed", anneal_steps=int(steps)):
            return AnnealedELBO(anneal_steps=steps, **common)
        case TrainingConfig(objective="free_bits" | "free_bits_per_dim" as kind, free_nats=float(nats)):
            return FreeBitsELBO(free_nats=nats, per_dim=kind == "free_bits_per_dim", **common)
        case TrainingConfig(objective="target_rate", target_nats=float(nats)):
            return TargetRateELBO(target_nats=nats, multiplier_lr=settings.multiplier_lr, **common)
    return RateDistortionELBO(**common)


class BetaELBO(RateDistortionELBO):
    """Distortion + β · rate.

    Args:
        beta: β ≥ 0; below 1 the latents are used more, above 1 less, than the ELBO asks.
        kwargs: as for `RateDistortionELBO`.
    """

    def __init__(self, *, beta: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta = beta

    def _objective(self, rates: dict[str, Tensor], distortion: Tensor) -> Tensor:
        return distortion + self.beta * sum(rates.values())


class AnnealedELBO(RateDistortionELBO):
    """Distortion + β · rate, β rising linearly from 0 at the first step to 1 after `anneal_steps`, and 1 from then on.

    NOTE: [2] anneals along a sigmoid too; this is the line.

    Args:
        anneal_steps: steps until the objective is the ELBO.
        kwargs: as for `RateDistortionELBO`.
    """

    def __init__(self, *, anneal_steps: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.anneal_steps = anneal_steps
        self.advance(0)

    def advance(self, step: int) -> None:
        """Sets β for the next step."""
        self.varying["beta"] = min(1.0, step / self.anneal_steps)

    def _objective(self, rates: dict[str, Tensor], distortion: Tensor) -> Tensor:
        return distortion + self.varying["beta"] * sum(rates.values())


class PerImageELBO(RateDistortionELBO):
    """Counts the images, for objectives that hold the rate of an image against a number of nats."""

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """As `RateDistortionELBO`."""
        self._images: dict[str, Tensor] = {}
        return super().differentiable_loss(model, guide, *args, **kwargs)

    def _rate(self, name: str, prior: Site, posterior: Site) -> Tensor:
        ones_b = posterior["value"].new_ones(posterior["fn"].batch_shape)
        count = scale_and_mask(ones_b, posterior["scale"], posterior["mask"]).sum() / self.num_particles
        self._images[name] = self._images.get(name, 0.0) + count
        return super()._rate(name, prior, posterior)

    @property
    def images(self) -> Tensor:
        """Number of images that the newest loss is a sum over (not a mean), scaled and masked as its sites are."""
        return torch.stack(list(self._images.values())).amax()


class FreeBitsELBO(PerImageELBO):
    """Distortion + rate, where a rate below a floor counts as the floor: it is free, and has no gradient.

    The floor holds for the mean rate over minibatch and particles, as in [3], not for that of each image.

    NOTE: [3] gives λ to each group of latents. Here λ is the total for an image, so that the two variants compare: with
    `per_dim`, each of the d dimensions (a group: all n steps of one dimension) has λ/d.

    Args:
        free_nats: λ in nats per image.
        per_dim: floors for the dimensions rather than for their sum; posterior and prior must be known to
            `pyro_delta.distributions.per_dimension`.
        kwargs: as for `RateDistortionELBO`.
    """

    def __init__(self, *, free_nats: float, per_dim: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.free_nats, self.per_dim = free_nats, per_dim

    def _objective(self, rates: dict[str, Tensor], distortion: Tensor) -> Tensor:
        rate_g = torch.cat([rate.reshape(-1) for rate in rates.values()])
        if not self.per_dim:
            rate_g = rate_g.sum(0, keepdim=True)
        return distortion + torch.maximum(rate_g, self.images * self.free_nats / len(rate_g)).sum()

    def _rate(self, name: str, prior: Site, posterior: Site) -> Tensor:
        rate = super()._rate(name, prior, posterior)
        return self._rate_d(prior, posterior) if self.per_dim else rate

    def _rate_d(self, prior: Site, posterior: Site) -> Tensor:
        """The same rate by dimension, (d,)."""
        q, p = per_dimension(posterior["fn"]), per_dimension(prior["fn"])
        if self.analytic_kl:
            return _sum_over_batch(kl_divergence(q, p), posterior)
        z_bdn1 = dimensions_of(posterior["value"])
        return _sum_over_batch(q.log_prob(z_bdn1), posterior) - _sum_over_batch(p.log_prob(z_bdn1), prior)


class TargetRateELBO(PerImageELBO):
    """The ELBO under the constraint rate ≥ target, by the method of Lagrange multipliers.

    min over programs, max over m ≥ 0, of distortion + rate + m · (target − rate), so the weight of the rate is 1 − m.
    Where the ELBO alone keeps the constraint, m is 0. `advance` is the step of m: projected gradient ascent, with the
    rate in units of the target, m ← max(0, m + multiplier_lr · (1 − rate / target)).

    NOTE: GECO (D. J. Rezende, F. Viola, "Taming VAEs", 2018) constrains the distortion and minimises the rate. A floor
    under the rate is what δ and free bits are, so this compares with them. A projected m, rather than the softplus of a
    parameter, starts at the plain ELBO and leaves 0 at full speed.

    Args:
        target_nats: least mean rate over the minibatch, in nats per image, > 0.
        multiplier_lr: what m gains in a step whose rate is 0. If m moves faster than the programs it passes 1, where
            any rate is rewarded, and swings before it settles.
        kwargs: as for `RateDistortionELBO`.
    """

    def __init__(self, *, target_nats: float, multiplier_lr: float = 0.002, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.target_nats, self.multiplier_lr = target_nats, multiplier_lr
        self.varying["multiplier"] = torch.zeros(())
        self._shortfall = torch.zeros(())

    def advance(self, step: int) -> None:
        """Moves the multiplier by the newest rate; one that is not finite leaves it where it is."""
        gain = self.multiplier_lr * self._shortfall.nan_to_num(0.0, 0.0, 0.0)
        self.varying["multiplier"] = (self.varying["multiplier"] + gain).clamp_min(0.0)

    def _objective(self, rates: dict[str, Tensor], distortion: Tensor) -> Tensor:
        rate, target = torch.stack(list(rates.values())).sum(), self.images * self.target_nats
        self._shortfall = 1 - rate.detach() / target
        return distortion + rate + self.varying["multiplier"] * (target - rate)


def _sum_over_batch(value_bd: Tensor, site: Site) -> Tensor:
    """(..., d) → (d,), scaled and masked as Pyro does at this site."""
    value_db = value_bd.movedim(-1, 0)
    return scale_and_mask(value_db, site["scale"], site["mask"]).reshape(len(value_db), -1).sum(1)
