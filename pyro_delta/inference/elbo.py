"""Pyro's ELBO without host synchronisation, and with its two halves in sight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_delta.errors import UserError


class RateDistortionELBO(Trace_ELBO):
    """`Trace_ELBO` or `TraceMeanField_ELBO` as rate + distortion, all on the device.

    Equal to Pyro's estimators for reparametrised guides, value and gradient, but no `.item()` stalls a GPU. After each
    call `latent` holds the distributions of guide and prior at every latent site, `analytic` its KL per image where it
    was used, `drawn` the guide's sample, without gradient, and `distortion` −log p(x | z), summed over plates and
    particles and divided by the number of particles.

    The baselines' objectives (`pyro_delta.inference.objectives`) are subclasses that weigh the halves otherwise. For
    them, too, the attributes above are those of the true ELBO; `loss` is what was minimised. `varying` holds the
    numbers that an objective changes while training: they are logged, and saved in checkpoints.

    Args:
        analytic_kl: the rate in closed form (`TraceMeanField_ELBO`) rather than from the sample (`Trace_ELBO`).
        kwargs: as for `Trace_ELBO`.
    """

    def __init__(self, *, analytic_kl: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.analytic_kl = analytic_kl
        self.latent: dict[str, tuple[Any, Any]] = {}
        self.analytic: dict[str, Tensor] = {}
        self.drawn: dict[str, Tensor] = {}
        self.distortion = torch.zeros(())
        self.loss = torch.zeros(())
        self.varying: dict[str, float | Tensor] = {}

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """What is minimised, here the negative ELBO, in nats summed over plates.

        Raises:
            UserError: if model and guide do not sample the same sites, if a guide's site has no reparametrised sampler,
                or, with `analytic_kl`, no closed form (Pyro would fall back to sampling without a word).
        """
        rates: dict[str, Tensor] = {}
        distortion = torch.zeros(())
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            _check_sites(model_trace, guide_trace)
            for name, site in model_trace.nodes.items():
                if site["type"] != "sample":
                    continue
                if site["is_observed"]:
                    distortion = distortion - site["log_prob_sum"]
                else:
                    rates[name] = rates.get(name, 0.0) + self._rate(name, site, guide_trace.nodes[name])
        distortion = distortion / self.num_particles
        loss = self._objective({name: rate / self.num_particles for name, rate in rates.items()}, distortion)
        self.distortion, self.loss = distortion.detach(), loss.detach()
        return loss

    def advance(self, step: int) -> None:
        """To be called after each step of training with the number of steps made; the ELBO itself does not vary."""

    def _objective(self, rates: dict[str, Tensor], distortion: Tensor) -> Tensor:
        """Joins the rates of the latent sites and the distortion, each in nats, averaged over particles."""
        return sum(rates.values()) + distortion

    def _rate(self, name: str, prior: dict[str, Any], posterior: dict[str, Any]) -> Tensor:
        """Rate at one site of one trace, summed over plates."""
        q, p = posterior["fn"], prior["fn"]
        if not q.has_rsample:
            raise UserError(
                f"site {name!r} of the guide, {type(q).__name__}, has no rsample; use a reparametrised one."
            )
        self.latent[name] = (q, p)
        self.drawn[name] = posterior["value"].detach()
        if not self.analytic_kl:
            return posterior["log_prob_sum"] - prior["log_prob_sum"]
        try:
            kl = kl_divergence(q, p)
            self.analytic[name] = kl.detach()
            return scale_and_mask(kl, posterior["scale"], posterior["mask"]).sum()
        except NotImplementedError:
            raise UserError(
                f"site {name!r} has no closed-form KL from {type(q).__name__} to {type(p).__name__}; "
                "register one or train with --elbo trace."
            ) from None


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Every latent site is sampled by both: one that the guide lacks has no rate, one that the model lacks no prior."""
    latent = {name for name in model_trace.stochastic_nodes if not model_trace.nodes[name]["is_observed"]}
    if missing := sorted(latent - guide_trace.nodes.keys()):
        raise UserError(f"the model samples {missing[0]!r}, which the guide does not; sample it in the guide, too.")
    sampled = set(guide_trace.stochastic_nodes)
    if missing := sorted(sampled - latent):
        raise UserError(f"the guide samples {missing[0]!r}, which the model does not; take it out or add its prior.")
