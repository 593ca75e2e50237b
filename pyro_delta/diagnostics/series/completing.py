"""Completing a series of which some numbers are kept, by importance sampling over latents, and how good that is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_delta.data.condition import KEY
from pyro_delta.data.splits import Split
from pyro_delta.diagnostics.drawing import Continued
from pyro_delta.diagnostics.trace import decoder, device_of, evaluating, posterior, prior
from pyro_delta.distributions.any_gaussian import as_gaussian
from pyro_delta.distributions.numbers import AutoregressiveNumbers
from pyro_delta.errors import UserError
from pyro_delta.vae import VAE

GROUPS = 32
"""Of particles."""
BAND = (0.1, 0.9)
"""Quantiles of a band, which should hold four of five numbers."""


class Completions(NamedTuple):
    """Draws of the numbers of one series that are not kept.

    Attributes:
        series: (S, T, C), the kept numbers as they were, NaN behind the end.
        effective_sample_size: of the K latents that particles began with, 1 … K.
    """

    series: Tensor
    effective_sample_size: float


@torch.no_grad()
def complete(
    vae: VAE,
    x_tc: Tensor,
    keep_tc: Tensor,
    length: int,
    *,
    particles: int = 2048,
    completions: int = 32,
    seed: int = 0,
    condition: Tensor | None = None,
) -> Completions:
    """Draws from p(other numbers | kept numbers) of a series.

    The latent steps that belong to positions up to the last kept one, z_E, are drawn from the prior for one half of K
    particles, and for the other from the guide, which hears the kept numbers alone. Each particle runs through the
    series in order up to the last kept number: kept numbers are scored, the others drawn, and its weight is

        w_k = p(z_E) / ½[p(z_E) + q(z_E | kept)] · Π p(kept number | all before it, z_k).

    Particles are in groups. Where fewer than half of a group count after numbers were drawn, it is resampled by its
    weights, and goes on with their mean [1]; groups stay apart, for descendants of one particle are alike, and are
    weighed against each other in the end. Completions are particles picked by their weights, with later latent steps
    from the prior given z_E, and later numbers given all of that: exact as K → ∞, for any guide. The effective sample
    size is that of the latents that particles began with: (Σ w)² / Σ w², each weight summed over its descendants.

    Args:
        vae: whose prior is Gaussian, and whose likelihood an `AutoregressiveNumbers`.
        x_tc: numbers (T, C); what is not kept is not looked at.
        keep_tc: boolean, which of them are kept.
        length: positions that the completed series has.
        particles: K, cut down to a multiple of `GROUPS`.
        completions: S, draws with replacement.
        seed: of all noise.
        condition: what the series is conditioned on, (1,) or (1, C).

    Raises:
        UserError: if prior or likelihood are others, or kept numbers give no finite weight.

    References:
        1. N. Gordon, D. Salmond, A. Smith, "Novel approach to nonlinear/non-Gaussian Bayesian state estimation", IEE
           Proceedings F 140, 1993.
    """
    with evaluating(vae, seed):
        device = device_of(vae)
        x_tc, keep_tc = x_tc.to(device), keep_tc.to(device)
        end = int(keep_tc.any(1).nonzero()[-1]) + 1 if keep_tc.any() else 0
        given = {} if condition is None else {KEY: condition.to(device)}
        sequence = _Latents(vae, end, length, given)
        groups = min(GROUPS, particles)
        z, log_weight = sequence.proposed(vae, x_tc, keep_tc, particles // groups * groups)
        order = torch.randperm(len(z), device=device).reshape(groups, -1)  # proposals of both kinds in each
        z, log_weight = z[order].flatten(0, 1), log_weight[order]
        x, log_weight, root = _filtered(_decoder(vae, z, length, given), x_tc, keep_tc, log_weight, end)
        weight = torch.softmax(log_weight, dim=0)
        if not weight.isfinite().all():
            raise UserError(
                f"log weights of particles, {log_weight[0].item():g} the first, are not finite: the run's weights "
                "have diverged; train it again at a lower training.lr."
            )
        of_root = torch.zeros_like(weight).index_add(0, root, weight)
        chosen = torch.multinomial(weight, completions, replacement=True)
        z = sequence.continued(z[root[chosen]])
        before = (torch.arange(len(x_tc), device=device) < end)[:, None]
        drawn = _decoder(vae, z, length, given).sample(keep=(x[chosen].reshape(-1, *x_tc.shape), before))
        return Completions(drawn.cpu(), 1 / of_root.square().sum().item())


def second_halves(vae: VAE, split: Split, *, completions: int = 2, particles: int = 512, seed: int = 0) -> Continued:
    """Draws of how series go on after the first half of their positions, as `drawing.continuations`, by `complete`.

    Args:
        vae: as for `complete`.
        split: N series.
        completions: of each.
        particles: K of each.
        seed: of all noise.

    Raises:
        UserError: as `complete`.
    """
    x_ntc, extras = split.x[:], split.extras
    lengths = extras.get("lengths", torch.full((len(split),), x_ntc.shape[1]))
    place_t = torch.arange(x_ntc.shape[1])
    known = extras.get("mask", torch.ones_like(x_ntc, dtype=torch.bool)) & (place_t < lengths[:, None])[..., None]
    keep = known & (place_t < lengths[:, None] // 2)[..., None]
    found = [
        complete(
            vae,
            x_ntc[i],
            keep[i],
            int(lengths[i]),
            particles=particles,
            completions=completions,
            seed=seed,
            condition=extras[KEY][i : i + 1] if KEY in extras else None,
        )
        for i in range(len(split))
    ]
    drawn = torch.stack([one.series for one in found], 1).flatten(0, 1)
    data = torch.where(known, x_ntc, math.nan).to(drawn.dtype)
    return Continued(torch.cat((data, drawn)), [one.effective_sample_size for one in found])


def _decoder(vae: VAE, z: Tensor, length: int, given: dict[str, Tensor]) -> AutoregressiveNumbers:
    of_all = {name: values.expand(len(z), *values.shape[1:]) for name, values in given.items()}
    distribution = decoder(vae, z, {"lengths": torch.full((len(z),), length, device=z.device), **of_all})
    if not isinstance(distribution, AutoregressiveNumbers):
        raise UserError(
            f"the likelihood returns a {type(distribution).__name__}, whose numbers cannot be kept while others are "
            "drawn; completing series takes one that returns an AutoregressiveNumbers."
        )
    return distribution


def _filtered(
    p: AutoregressiveNumbers, x_tc: Tensor, keep_tc: Tensor, log_weight_gm: Tensor, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """G groups of M particles run through the positions before `end`.

    Returns:
        numbers (G·M, T·C), log weights (G·M,), and the first ancestor of each.
    """
    count, network = log_weight_gm.numel(), p.network
    x = torch.full((count, x_tc.numel()), p.blank, dtype=x_tc.dtype, device=x_tc.device)
    root = torch.arange(count, device=x.device)
    uniforms, keep, drawn = p.noise(count).flatten(1, 2), keep_tc.flatten(), False
    network.train(False)
    state = network.start(p.z)
    for i in range(end * x_tc.shape[1]):
        parameters = network.step(state, i, x[:, i - 1] if i else None)
        if not keep[i]:
            x[:, i], drawn = p.pick(parameters, uniforms[:, i]), True
            continue
        x[:, i] = x_tc.flatten()[i]
        log_weight_gm = log_weight_gm + p.scores(parameters, x[:, i]).double().reshape(log_weight_gm.shape)
        weight_gm = torch.softmax(log_weight_gm, dim=1)
        few_g1 = weight_gm.square().sum(1, keepdim=True) > 2 / weight_gm.shape[1]
        if drawn and few_g1.any():
            chosen = _resampled(weight_gm, few_g1)
            x, root, state = x[chosen], root[chosen], network.take(state, chosen)
            mean_g1 = log_weight_gm.logsumexp(1, keepdim=True) - math.log(weight_gm.shape[1])
            log_weight_gm = torch.where(few_g1, mean_g1, log_weight_gm)
    return x, log_weight_gm.flatten(), root


def _resampled(weight_gm: Tensor, few_g1: Tensor) -> Tensor:
    """Indices (G·M,) of particles: in groups of which few count, each as often as its weight says but for one."""
    groups, size = weight_gm.shape
    own = torch.arange(size, device=weight_gm.device).expand(groups, -1)
    places = (own + torch.rand(groups, 1, device=weight_gm.device)) / size
    picked = torch.searchsorted(weight_gm.cumsum(1), places.to(weight_gm.dtype)).clamp_max(size - 1)
    first_g1 = torch.arange(groups, device=weight_gm.device).unsqueeze(1) * size
    return (first_g1 + torch.where(few_g1, picked, own)).flatten()


class _Latents:
    """Latents of a series, in two parts: steps that belong to positions before `end`, and later ones.

    With a likelihood whose positions all see all of z, all steps are of the first part. `given` is what the series is
    conditioned on, by name.
    """

    def __init__(self, vae: VAE, end: int, length: int, given: dict[str, Tensor] | None = None) -> None:
        device, starts, self.given = device_of(vae), vae.model.prior.starts, given or {}
        p = prior(vae, 1, {"lengths": torch.tensor([length], device=device), **self.given})
        gaussian = as_gaussian(p)
        self.end, self.shape = end, p.event_shape
        self.mean = gaussian.mean.reshape(-1)
        self.precision = gaussian.precision.reshape(len(self.mean), -1)
        full = getattr(vae.model.likelihood, "conditioning", "causal") == "full"
        self.early = (full | (starts.to(device) < end)).repeat_interleave(self.shape[-1])

    def proposed(self, vae: VAE, x_tc: Tensor, keep_tc: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Latents (K, n, d), half of the early ones by the guide, and ln p − ln proposal of these, (K,) in float64."""
        early, device = self.early, x_tc.device
        z = torch.zeros(count, len(early), dtype=torch.float64, device=device)
        log_weight = torch.zeros(count, dtype=torch.float64, device=device)
        if early.any():
            of_prior = MultivariateNormal(self.mean[early], torch.linalg.inv(self.precision)[early][:, early])
            halves, by_guide = [count, 0], of_prior
            if self.end:
                heard = {"lengths": torch.tensor([self.end], device=device), "mask": keep_tc[None]}
                moments = posterior(vae, {"x": x_tc[None], **heard, **self.given}).moments()
                loc, scale = (moments[name].double().reshape(-1)[early] for name in ("mean", "scale"))
                halves, by_guide = [count - count // 2, count // 2], MultivariateNormal(loc, scale_tril=scale.diag())
            z[:, early] = torch.cat([q.sample((half,)) for q, half in zip((of_prior, by_guide), halves)])
            log_p, log_q = of_prior.log_prob(z[:, early]), by_guide.log_prob(z[:, early])
            share = torch.tensor(halves, dtype=torch.float64, device=device).div(count).log()
            log_weight = log_p - torch.logaddexp(log_p + share[0], log_q + share[1])
        return self._shaped(vae, z), log_weight

    def continued(self, z: Tensor) -> Tensor:
        """Latents with the later steps drawn anew from the prior given the early ones."""
        if self.early.all():
            return z
        flat, early, late = z.flatten(1).double(), self.early, ~self.early
        inner = self.precision[late][:, late]
        away = torch.linalg.solve(inner, self.precision[late][:, early] @ (flat[:, early] - self.mean[early]).T).T
        flat[:, late] = MultivariateNormal(self.mean[late] - away, precision_matrix=inner).sample()
        return flat.to(z.dtype).reshape(z.shape)

    def _shaped(self, vae: VAE, flat: Tensor) -> Tensor:
        dtype = next(vae.parameters()).dtype
        return flat.to(dtype).reshape(len(flat), *self.shape)


# --- How good completions are ---


def last_value(x_tc: np.ndarray, keep_tc: np.ndarray, location: tuple[float, ...]) -> np.ndarray:
    """Each number as the last one of its variable that is kept; the next one, or the location, where there is none."""
    found = np.empty(x_tc.shape)
    for variable, (values, keep) in enumerate(zip(x_tc.T, keep_tc.T, strict=True)):
        places = np.flatnonzero(keep)
        if not places.size:
            found[:, variable] = location[variable]
            continue
        newest = np.searchsorted(places, np.arange(len(values)), side="right") - 1
        found[:, variable] = values[places[newest.clip(0)]]
    return found


def interpolated(x_tc: np.ndarray, keep_tc: np.ndarray, location: tuple[float, ...]) -> np.ndarray:
    """Each number on the line between the kept ones of its variable around it; at the ends, as the nearest one."""
    found = last_value(x_tc, keep_tc, location)
    for variable, (values, keep) in enumerate(zip(x_tc.T, keep_tc.T, strict=True)):
        if keep.any():
            places = np.flatnonzero(keep)
            found[:, variable] = np.interp(np.arange(len(values)), places, values[places])
    return found


def crps(draws_sn: np.ndarray, truth_n: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of S draws of each of N numbers: E|X − y| − ½ E|X − X'|, unbiased, (N,) [1].

    Of a single draw, or of a forecast that is one number, it is the absolute error.

    References:
        1. T. Gneiting, A. Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 102, 2007.
    """
    count = len(draws_sn)
    error = np.abs(draws_sn - truth_n).mean(0)
    if count == 1:
        return error
    ordered = np.sort(draws_sn, axis=0)
    weight_s = 2 * np.arange(count) - count + 1  # Σ_ij |x_i − x_j| = 2 Σ_i (2i − S + 1) x_(i)
    return error - (weight_s[:, None] * ordered).sum(0) / (count * (count - 1))


def scores(
    completed: list[Completions],
    truth: list[np.ndarray],
    keep: list[np.ndarray],
    hidden: list[np.ndarray],
    location: tuple[float, ...],
    scale: tuple[float, ...],
) -> dict[str, float | int | None]:
    """How far completions are from what was hidden, in units of each variable's scale, beside two simple ways.

    Args:
        completed: of each series.
        truth: numbers (T, C) of each series.
        keep: those that were kept, boolean.
        hidden: those that are known and were not kept, boolean.
        location: of each variable.
        scale: of each variable.

    Returns:
        how many were hidden, and of these the root mean square error of the draws' mean, the mean CRPS, the share that
        lies in the band; of the last value, and of linear interpolation, error and CRPS, which is their absolute error.
    """
    unit = np.array(scale)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("error", "crps", "inside", "last", "line")}
    for done, x_tc, keep_tc, hidden_tc in zip(completed, truth, keep, hidden, strict=True):
        scaled = (np.broadcast_to(unit, x_tc.shape))[hidden_tc]
        draws_sn, y = done.series.double().numpy()[:, hidden_tc] / scaled, x_tc[hidden_tc] / scaled
        low, high = np.quantile(draws_sn, BAND, axis=0)
        parts["error"].append(draws_sn.mean(0) - y)
        parts["crps"].append(crps(draws_sn, y))
        parts["inside"].append((low <= y) & (y <= high))
        parts["last"].append(last_value(x_tc, keep_tc, location)[hidden_tc] / scaled - y)
        parts["line"].append(interpolated(x_tc, keep_tc, location)[hidden_tc] / scaled - y)
    found = {name: np.concatenate(values) for name, values in parts.items()}
    count = len(found["error"])
    if not count:
        return {"hidden": 0}

    def root(values: np.ndarray) -> float:
        return math.sqrt(float(np.square(values).mean()))

    return {
        "hidden": count,
        "rmse": root(found["error"]),
        "crps": float(found["crps"].mean()),
        "in_band": float(found["inside"].mean()),
        "rmse_last_value": root(found["last"]),
        "crps_last_value": float(np.abs(found["last"]).mean()),
        "rmse_interpolated": root(found["line"]),
        "crps_interpolated": float(np.abs(found["line"]).mean()),
    }
