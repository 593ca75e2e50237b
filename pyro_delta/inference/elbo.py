"""Pyro's ELBO without host synchronisation, and with its two halves in sight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_delta.distributions.dimensions import dimensions_of, per_dimension
from pyro_delta.errors import UserError
from pyro_delta.protocol import Objective

Site = dict[str, Any]


class RateDistortionELBO(Trace_ELBO):
    """`Trace_ELBO` or `TraceMeanField_ELBO` as rate + distortion, all on the device.

    Equal to Pyro's estimators for reparametrised guides, value and gradient, but no `.item()` stalls a GPU. After each
    call `latent` holds the distributions of guide and prior at every latent site, `analytic` its KL per datum where it
    was used, `drawn` the guide's sample, without gradient, and `distortion` −log p(x | z), summed over plates and
    particles and divided by the number of particles.

    With an objective (`pyro_delta.inference.objectives`) the two halves are weighed otherwise. Then, too, the
    attributes above are those of the true ELBO; `minimised` is what the objective made of them. As the loss of
    `pyro.infer.SVI` it is the same, at the price of the host's waiting; `objective.advance` is yours to call there.

    Args:
        objective: joins rate and distortion; None for their sum, the negative ELBO.
        analytic_kl: the rate in closed form (`TraceMeanField_ELBO`) rather than from the sample (`Trace_ELBO`).
        kwargs: as for `Trace_ELBO`.
    """

    def __init__(self, objective: Objective | None = None, *, analytic_kl: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective, self.analytic_kl = objective, analytic_kl
        self.latent: dict[str, tuple[Any, Any]] = {}
        self.analytic: dict[str, Tensor] = {}
        self.drawn: dict[str, Tensor] = {}
        self.distortion = torch.zeros(())
        self.minimised = torch.zeros(())

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """What is minimised, as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """What is minimised, as a number; gradients are added to those of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def differentiable_loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """What is minimised, by default the negative ELBO, in nats summed over plates.

        Raises:
            UserError: if model and guide do not sample the same sites, if the guide observes something, if one of its
                sites has no reparametrised sampler, or, with `analytic_kl`, no closed form (Pyro would fall back to
                sampling without a word).
        """
        self.latent, self.analytic, self.drawn = {}, {}, {}
        rates: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
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
                    if self.objective is not None:
                        counts[name] = counts.get(name, 0.0) + _count(guide_trace.nodes[name])
        distortion = distortion / self.num_particles
        loss = self._joined(rates, counts, distortion)
        self.distortion, self.minimised = distortion.detach(), loss.detach()
        return loss

    def _get_trace(self, model: Callable, guide: Callable, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        """Traces of model and guide. A latent site whose rate is a KL needs no density, and gets none.

        Guides that are messengers, and steps that are to be validated, are left to Pyro, which computes all.
        """
        if not self.analytic_kl or is_validation_enabled() or isinstance(poutine.unwrap(guide), Messenger):
            return super()._get_trace(model, guide, args, kwargs)
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        guide_trace, model_trace = prune_subsample_sites(guide_trace), prune_subsample_sites(model_trace)
        model_trace.compute_log_prob(lambda name, site: site["is_observed"])
        return model_trace, guide_trace

    def _joined(self, rates: dict[str, Tensor], counts: dict[str, Tensor], distortion: Tensor) -> Tensor:
        averaged = {name: rate / self.num_particles for name, rate in rates.items()}
        if self.objective is None or not averaged:
            return sum(averaged.values()) + distortion
        if getattr(self.objective, "per_dimension", False):
            rate = torch.cat([part.reshape(-1) for part in averaged.values()])
        else:
            rate = torch.stack(list(averaged.values())).sum()
        data = torch.stack([count / self.num_particles for count in counts.values()]).amax()
        return self.objective(rate, distortion, data)

    def _rate(self, name: str, prior: Site, posterior: Site) -> Tensor:
        """Rate at one site of one trace, summed over plates; of each dimension, (d,), if the objective asks for it."""
        q, p = posterior["fn"], prior["fn"]
        if not q.has_rsample:
            raise UserError(
                f"site {name!r} of the guide, {type(q).__name__}, has no rsample; use a reparametrised one."
            )
        self.latent[name] = (q, p)
        self.drawn[name] = posterior["value"].detach()
        apart = getattr(self.objective, "per_dimension", False)
        if not self.analytic_kl:
            return (
                _rate_of_dimensions(prior, posterior, False)
                if apart
                else (posterior["log_prob_sum"] - prior["log_prob_sum"])
            )
        try:
            kl = kl_divergence(q, p)
        except NotImplementedError:
            raise UserError(
                f"site {name!r} has no closed-form KL from {type(q).__name__} to {type(p).__name__}; "
                "register one or train with --elbo trace."
            ) from None
        self.analytic[name] = kl.detach()
        if apart:
            return _rate_of_dimensions(prior, posterior, True)
        return scale_and_mask(kl, posterior["scale"], posterior["mask"]).sum()


def _rate_of_dimensions(prior: Site, posterior: Site, analytic: bool) -> Tensor:
    """Rate of each latent dimension, (d,)."""
    q, p = per_dimension(posterior["fn"]), per_dimension(prior["fn"])
    if analytic:
        return _sum_over_batch(kl_divergence(q, p), posterior)
    z_bdn1 = dimensions_of(posterior["value"])
    return _sum_over_batch(q.log_prob(z_bdn1), posterior) - _sum_over_batch(p.log_prob(z_bdn1), prior)


def _sum_over_batch(value_bd: Tensor, site: Site) -> Tensor:
    """(..., d) → (d,), scaled and masked as Pyro does at this site."""
    value_db = value_bd.movedim(-1, 0)
    return scale_and_mask(value_db, site["scale"], site["mask"]).reshape(len(value_db), -1).sum(1)


def _count(posterior: Site) -> Tensor:
    """Number of data that a site's rate is a sum over, scaled and masked as the site is."""
    ones_b = posterior["value"].new_ones(posterior["fn"].batch_shape)
    return scale_and_mask(ones_b, posterior["scale"], posterior["mask"]).sum()


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    """Every latent site is sampled by both: one that the guide lacks has no rate, one that the model lacks no prior."""
    latent = {name for name in model_trace.stochastic_nodes if not model_trace.nodes[name]["is_observed"]}
    if missing := sorted(latent - guide_trace.nodes.keys()):
        raise UserError(f"the model samples {missing[0]!r}, which the guide does not; sample it in the guide, too.")
    sampled = set(guide_trace.stochastic_nodes)
    if missing := sorted(sampled - latent):
        raise UserError(f"the guide samples {missing[0]!r}, which the model does not; take it out or add its prior.")
    for name in guide_trace.observation_nodes:
        if not guide_trace.nodes[name]["infer"].get("_deterministic"):
            raise UserError(
                f"the guide observes {name!r}, whose density is neither rate nor distortion; take it out, or minimise "
                "with Pyro's own Trace_ELBO."
            )
