"""What model and guide do at their sites, against what the programs say alone, and against themselves.

A rate is read off one trace. Here the traces are compared that training, evaluation, other batches, other data and
single precision give: the certificate holds for all of them, or it says which differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_delta.call import call
from pyro_delta.diagnostics.trace import Drawn, Site, data_first, kept, numbers, placed, seeded, sites
from pyro_delta.diagnostics.verify.case import (
    DROPOUT,
    Case,
    Finding,
    as_trained,
    first,
    in_training,
    is_other_in_training,
    moved,
    replacements,
    widened,
    without_dropout,
)
from pyro_delta.diagnostics.verify.distributions import is_point, is_real
from pyro_delta.distributions.any_gaussian import title_of
from pyro_delta.distributions.mean_field import normal_parameters
from pyro_delta.vae import VAE, copied

CALLS = 4
"""Times that the programs are called in training mode, for a density that changes with each call."""
DRAWN = 128
"""Draws of a guide, for as many data, whose noise is looked at, …"""
ENOUGH = 1000
"""… draws of one coordinate each from which on a kurtosis is known, …"""
PAIRED = 1024
"""… and coordinates, at most, that are compared with one another."""
SURPRISE = math.log(1e8)
"""Nats of surprise beyond which noise is not what is stated: about one false alarm in 10⁸ for each of what is measured.

Bounds are for all that is measured together, so that large latents raise no more of them."""
SINGLE = 1e-3
"""Part of a log-probability, and nats, by which single precision may differ from double."""
MODES = ("evaluation mode", "training mode")

Found = tuple[bool | None, str] | None
"""Whether a check passed, and what it found; None if there is nothing to say."""
Scores = dict[tuple[str, str], Tensor]
"""Log-probabilities (N,) of data, by part and site."""


@dataclass(frozen=True)
class Single:
    """What a trace in single precision gave: data, latents, and log-probabilities (B,) by site."""

    mode: str
    x: Tensor
    z: dict[str, Tensor]
    log_prob: dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """What model and guide wrote at their sites in a mode, for the first data and latents of `at_all_sizes`."""

    mode: str
    vae: VAE
    x: Tensor
    z: dict[str, Tensor]
    found: dict[str, dict[str, Site]]

    @property
    def where(self) -> str:
        """In words."""
        return f"a batch of {len(self.x)}, {self.mode}"


@torch.no_grad()
def in_single_precision(case: Case) -> list[Single]:
    """Traces of the programs as they came, in both modes, on random, blank and full data."""
    found = []
    for mode, vae in _modes(case):
        with as_trained(vae):
            z = {name: site.value.detach() for name, site in sites(vae, "guide", case.batch(case.x), {}).items()}
        once, again = (_log_probs(_run(case, vae, case.x, z, seed)) for seed in (0, 1))
        # Noise that a program draws in training, such as that of dropped words, is another in another precision.
        if not any(moved(once[name], again[name], case.same).any() for name in once):
            found.append(Single(mode, case.x, z, once))
    return found


def _log_probs(found: dict[str, dict[str, Site]]) -> dict[str, Tensor]:
    of_q = {f"q of {name!r}": site.log_prob for name, site in found["guide"].items()}
    return of_q | {f"p of {name!r}": site.log_prob for name, site in found["model"].items()}


def check_sites(title: str, case: Case, singles: list[Single], drawn: Mapping[str, Found], later: Found) -> Finding:
    """The first way in which sites differ from what is certified, or that there is none.

    Args:
        title: of the finding.
        case: in double precision.
        singles: what `in_single_precision` found.
        drawn: what `as_drawn` found, in single precision.
        later: what `after_calls` found, in single precision.
    """
    runs = _at_all_sizes(case)
    checks: tuple[Callable[[], Found], ...] = (
        lambda: _plain_sites(case, runs),
        lambda: _given_data(case, runs),
        lambda: _after_calls(case),
        lambda: later,
        lambda: _as_stated(case, runs),
        lambda: _one_prior(case),
        lambda: drawn[MODES[0]],
        lambda: None if case.in_the_mean else drawn[MODES[1]],
        lambda: _in_both_modes(case),
        lambda: _in_its_batch(case) if case.coupled else None,
        lambda: _one_by_one(case, runs),
        lambda: _apart(case),
        lambda: _as_in_single(case, singles),
    )
    for check in checks:
        if (found := check()) is not None:
            return Finding(title, *found)
    sizes = ", ".join(map(str, case.sizes))
    same = f"the same in training and evaluation, in batches of {sizes}, single and double"
    if case.coupled:
        same += ", but for batch statistics of the guide"
    elif is_other_in_training(case):
        same += ", but for posteriors, which are others of their family in training"
    return Finding(title, True, same)


def _at_all_sizes(case: Case) -> list[Run]:
    """Runs in both modes on batches of all sizes, which begin with the same data and latents."""
    x = case.data(max(*case.sizes, case.count))
    z = case.latents(x)
    return [
        Run(mode, vae, x[:size], first(z, size), _run(case, vae, x[:size], first(z, size)))
        for mode, vae in _modes(case)
        for size in sorted({case.count, *case.sizes})
        if not (case.in_the_mean and size == 1 and mode == MODES[1])  # one datum has no variance to normalise by
    ]


@torch.no_grad()
def _run(
    case: Case,
    vae: VAE,
    x: Tensor,
    z: Mapping[str, Tensor],
    seed: int = 0,
    like: int | None = None,
    *,
    keep: bool = False,
) -> dict[str, dict[str, Site]]:
    """Sites of guide and model on data, given latents, with the same noise at each call; `keep` as for `as_trained`."""
    seeded(seed)
    batch = case.batch(x, like)
    with as_trained(vae, keep=keep):
        return {part: _detached(sites(vae, part, batch, z)) for part in ("guide", "model")}


def _detached(found: dict[str, Site]) -> dict[str, Site]:
    return {
        name: replace(site, value=site.value.detach(), log_prob=site.log_prob.detach()) for name, site in found.items()
    }


def _modes(case: Case) -> list[tuple[str, VAE]]:
    return [(MODES[0], case.vae), (MODES[1], without_dropout(in_training(case, copied(case.vae))))]


# --- What stands at the sites ---


def _plain_sites(case: Case, runs: list[Run]) -> Found:
    """No scale and no mask, which would make another thing of the bound than of the rate that is certified."""
    last = runs[-1]
    if case.coupled or any(isinstance(module, DROPOUT) for module in case.vae.modules()):  # left out of runs so far
        whole = copied(case.vae).train()
        runs = [*runs, Run(MODES[1], whole, last.x, last.z, _run(case, whole, last.x, last.z))]
    for run in runs:
        scales = [(name, torch.as_tensor(site.scale)) for part in run.found.values() for name, site in part.items()]
        flat = torch.cat([scale.double().flatten() for _, scale in scales])
        if flat.max() != flat.min():
            name, scale = max(scales, key=lambda pair: (pair[1] - 1).abs().max().item())
            times = scale.flatten()[0].item()
            return False, f"the site {name!r} counts {times:g} times in training ({run.where}); take poutine.scale away"
        for part, of_part in run.found.items():
            for name, site in of_part.items():
                if part == "guide" and site.observed:
                    return False, f"the guide observes {name!r} rather than draw it ({run.where}); take obs=… away"
                counted = numbers(site) if site.observed else float(not _masked(site.mask))
                all_of_it = site.value.numel() if site.observed else 1
                if site.observed and 0 < counted < all_of_it and case.extras and _alike(site):
                    return None, f"the {part} masks the site {name!r} alike for all data, whatever goes with them"
                if counted < all_of_it and (not case.extras or not site.observed or counted == 0):
                    return False, (
                        f"the {part} masks the site {name!r} ({run.where}), so that not all of it counts; take the "
                        "mask away"
                    )
    return None


def _given_data(case: Case, runs: list[Run]) -> Found:
    """What the model observes are the data that it is given."""
    for run in runs:
        seen = [site for site in run.found["model"].values() if site.observed]
        if len(seen) == 1 and seen[0].value.numel() == run.x.numel():
            value = data_first(seen[0].value, seen[0].fn, seen[0].dim)
            if moved(run.x.double().reshape(len(run.x), -1), value.double().reshape(len(run.x), -1)).any():
                return False, f"the model observes other numbers than the data that it is given ({run.where})"
    return None


def _one_prior(case: Case) -> Found:
    """All data have the prior that the rate is read off; or all with which the same goes, where each has its own."""
    z = {name: value[:1].expand_as(value) for name, value in case.latents().items()}
    differs = "differs from datum to datum: what it commits is that of the first"
    for like in range(case.count) if case.by_datum else (None,):
        for name, site in _run(case, case.vae, case.x, z, like=like)["model"].items():
            if not site.observed and moved(site.log_prob[:1].expand_as(site.log_prob), site.log_prob).any():
                return None, f"the prior of {name!r} {differs}"
    if case.by_length:
        for name, site in _run(case, case.vae, case.x, z)["model"].items():
            alpha_bd = getattr(site.fn, "alpha", None)
            if not site.observed and alpha_bd is not None and moved(alpha_bd[:1].expand_as(alpha_bd), alpha_bd).any():
                return None, f"the prior of {name!r} {differs}, not in its length alone"
    return None


@torch.no_grad()
def as_drawn(case: Case) -> dict[str, Found]:
    """Is what a guide draws what its distribution draws? By mode; its noise is white, over coordinates and data."""
    return {
        mode: _white(case, mode, vae) for mode, vae in zip(MODES, (case.vae, copied(case.vae).train()), strict=True)
    }


def _white(case: Case, mode: str, vae: VAE) -> Found:
    """The first way in which noise is not white, or not drawn anew.

    In batches of the training's size, of data that differ, and of one datum again and again, of which noise that is a
    function of the data tells.
    """
    seeded(0)
    before = _noise(case, vae, case.x)
    again = _noise(case, vae, case.x)  # with no seed between the two: noise may be one of the seed's alone
    frozen = [name for name, (fn, noise) in again.items() if not is_point(fn) and torch.equal(noise, before[name][1])]
    same = "the noise of what the guide draws at {!r} is the same at every call ({})"
    for name in frozen:
        if again[name][1].any():
            return False, same.format(name, mode)
    size = case.sizes[-1]
    calls = -(-DRAWN // size)
    different = case.data(size * calls)
    one = case.x[:1].expand_as(different)
    for what, data, like in ((f"{len(different)}", different, None), (f"one {case.what}", one, 0)):
        drawn = [_noise(case, vae, batch, like) for batch in data.split(size)]
        for name, (fn, _) in drawn[0].items():
            noise = torch.cat([of_batch[name][1] for of_batch in drawn])
            if is_point(fn):
                if noise.any():
                    return False, f"what the guide draws at {name!r} is not the point that its Delta states ({mode})"
                continue
            of = f"what the guide draws at {name!r} is not what its distribution there draws: the noise of {what}"
            for measure, number, surprise in _statistics(noise, normal=normal_parameters(fn) is not None):
                if not surprise <= SURPRISE:
                    return False, f"{of} has {measure} {number:.2g} ({mode})"
    # None at all, of which the moments of a Normal would have told more.
    return (False, same.format(frozen[0], mode)) if frozen else None


def _noise(case: Case, vae: VAE, x: Tensor, like: int | None = None) -> dict[str, tuple[Distribution, Tensor]]:
    """By site what is drawn for data, less its mean and over its scale, (B, K); of points, how far off they are.

    Left out are distributions without moments, and those over anything but real numbers.
    """
    with as_trained(vae):
        found = sites(vae, "guide", case.batch(x, like), {})
    noise: dict[str, tuple[Distribution, Tensor]] = {}
    for name, site in found.items():
        moments = Drawn(site.fn, site.value, site.log_prob, site.mask, site.dim).moments()
        if is_point(site.fn) or (moments and is_real(site.fn.support)):
            scale = 1.0 if is_point(site.fn) else moments["scale"]
            noise[name] = site.fn, ((site.value - moments["mean"]) / scale).detach().reshape(len(x), -1)
    return noise


def _statistics(noise: Tensor, *, normal: bool) -> list[tuple[str, float, float]]:
    """What is measured of noise (draws, coordinates), a number, and how surprising it is.

    That is −ln of a bound on the probability that any of its kind is as far off by chance, Chernoff's for moments. So
    thousands of coordinates raise no false alarm.
    """
    if not normal:
        noise = noise[:, :1]  # coordinates may depend on one another
    noise = noise.double()
    draws, size = noise.shape
    mean, pairs = noise.mean(0).abs().max().item(), _cosines(noise)
    largest = min(pairs.abs().max().item(), 1 - 1e-12)
    means = ("a mean of", mean, draws * mean**2 / 2 - math.log(2 * size))
    # Of two Gaussian vectors in M dimensions P(|cos| > c) ≤ (1 − c²)^((M − 1)/2); along the draws there is one less.
    unlikely = -(draws - 2) / 2 * math.log1p(-(largest**2)) - math.log(len(pairs))
    correlation = ("a correlation of", largest, unlikely)
    if not normal:
        return [means, correlation]
    squares = noise.square()
    of_coordinates, of_draws = _from_chance(squares.mean(0), draws), _from_chance(squares.mean(1), size)
    variance, worst = squares.mean(), int(of_coordinates.argmax())
    # E|e| = √(2/π) ± √(1 − 2/π); E[e⁴] = 3 ± √96, of which few give heavy tails.
    size_of_one, kurtosis = noise.abs().mean().item() - math.sqrt(2 / math.pi), squares.square().mean().item() - 3
    tails = kurtosis**2 / 2 * noise.numel() / 96 if noise.numel() >= ENOUGH else 0.0
    square = draws * pairs.square().mean()
    # ln E exp ½ S for S = `of_draws` of one draw: draws may be of different data, each with noise of its own kind.
    half = size / 2
    typical = math.lgamma(half / 2) - math.lgamma(half) + half * math.log(half) - half / 2 * (1 + math.log(half / 2))
    odd = of_draws.sum().item() / 2 - draws * typical
    return [
        means,
        ("a variance off from 1 by", _off(squares.mean(0)[worst]), of_coordinates[worst].item() - math.log(2 * size)),
        ("variances off from 1 by", _off(variance), _from_chance(variance, noise.numel()).item()),
        ("a kurtosis off from 3 by", abs(kurtosis), tails),
        ("a mean size off from 0.798 by", abs(size_of_one), size_of_one**2 / 2 * noise.numel() / (1 - 2 / math.pi)),
        ("draws with variances off from 1 by", _off(squares.mean(1)[int(of_draws.argmax())]), odd),
        correlation,
        ("squares of correlations off from those of chance by", _off(square), _from_chance(square, len(pairs)).item()),
    ]


def _from_chance(variance: Tensor, count: int) -> Tensor:
    """−ln of Chernoff's bound on the probability that the mean of as many squares of N(0, 1) is as far from 1."""
    return count / 2 * (variance - 1 - variance.log())


def _off(variance: Tensor) -> float:
    return abs(variance.item() - 1)


def _cosines(noise: Tensor) -> Tensor:
    """Between coordinates over the draws, and between draws that follow one another, at each coordinate."""
    chosen = noise[:, torch.randperm(noise.shape[1])[:PAIRED]]
    unit = chosen / chosen.norm(dim=0).clamp_min(1e-30)
    one, other = torch.triu_indices(unit.shape[1], unit.shape[1], 1)
    return torch.cat(((unit.T @ unit)[one, other], torch.cosine_similarity(noise[1:], noise[:-1], dim=0)))


def _alike(site: Site) -> bool:
    """Whether what is masked at a site is the same for all data."""
    rows = data_first(kept(site), site.fn, site.dim)
    return len(rows) > 1 and bool((rows == rows[:1]).all())


def _masked(mask: Any) -> bool:
    return mask is not None and not bool(torch.as_tensor(mask).all())


def _as_stated(case: Case, runs: list[Run]) -> Found:
    """The distributions at the sites are those that prior, likelihood and guide state when they are called alone."""
    for run in runs:
        for what, site, stated in _stated(case, run):
            seeded(0)
            with torch.no_grad(), as_trained(run.vae):
                distribution = stated()
                if not isinstance(distribution, Distribution):
                    continue
                value = site.value if site.observed else placed(site.value, site.fn, site.dim)
                alone = _scored(distribution, value)
                if alone.shape == site.log_prob.shape and not moved(site.log_prob, alone).any():
                    continue
                there = _scored(site.fn, value)  # again, with the noise and without the mask
            if moved(there, alone.expand_as(there)).any():
                return False, f"{what}, in {run.where}"
    return None


def _scored(distribution: Distribution, value: Tensor) -> Tensor:
    """Log-probability, with the same noise at each call."""
    seeded(0)
    return distribution.log_prob(value)


def _stated(case: Case, run: Run) -> list[tuple[str, Site, Callable[[], Any]]]:
    """What is wrong if they differ, a site, and what makes the distribution that is stated for it."""
    batch, vae = case.batch(run.x), run.vae
    extras = {key: value for key, value in batch.items() if key != "x"} if isinstance(batch, dict) else {}
    guide, model = run.found["guide"], run.found["model"]
    stated: list[tuple[str, Site, Callable[[], Any]]] = []
    if len(guide) != 1:
        return stated
    (name,) = guide
    posterior = getattr(vae.guide, "posterior", None)
    if callable(posterior):
        what = f"the guide samples {name!r} from another distribution than its posterior(x)"
        stated.append((what, guide[name], lambda: call(posterior, extras, run.x)))
    prior, likelihood = (getattr(vae.model, part, None) for part in ("prior", "likelihood"))
    if callable(prior):
        what = f"the density of {name!r} in the model's plate is another than that of its prior alone"
        stated.append((what, model[name], lambda: call(prior, extras)))
    observed = [site for site in model.values() if site.observed]
    if callable(likelihood) and len(observed) == 1:
        what = "the model observes data by another distribution than its likelihood(z)"
        stated.append((what, observed[0], lambda: call(likelihood, extras, run.z[name])))
    return stated


# --- Against themselves ---


def _one_by_one(case: Case, runs: list[Run]) -> Found:
    """A datum has the same log-probabilities alone and in batches of any size."""
    alone: Scores = {}
    for mode in MODES:
        here = [run for run in runs if run.mode == mode]
        if mode == MODES[1] and case.in_the_mean:
            continue
        if alone and all(_unlike(run, alone) is None for run in here):
            continue  # training gives what evaluation gives
        if mode == MODES[1] and _noisy(case, next(run for run in here if len(run.x) == case.count)):
            continue
        alone = _scores_alone(case, here[-1])
        for run in here:
            if (off := _unlike(run, alone)) is not None:
                part, name, i = off
                return False, (
                    f"the log-probability of one {case.what} at {name!r} of the {part} is "
                    f"{alone[part, name][i].item():.6g} nats in a batch of {'few' if i >= case.count else 1} and "
                    f"{run.found[part][name].log_prob[i].item():.6g} in a batch of {len(run.x)} ({mode})"
                )
    return None


def _scores_alone(case: Case, run: Run) -> Scores:
    """Log-probabilities of a run's data: of the first each alone, of the others in batches of a few."""
    few = [slice(i, i + 1) for i in range(case.count)]
    few += [slice(start, start + case.count) for start in range(case.count, len(run.x), case.count)]
    found = [
        _run(
            case,
            run.vae,
            run.x[some],
            {name: values[some] for name, values in run.z.items()},
            like=some.start if some.start < case.count else None,
        )
        for some in few
    ]
    return {
        (part, name): torch.cat([one[part][name].log_prob for one in found])
        for part, of_part in run.found.items()
        for name in of_part
    }


def _unlike(run: Run, alone: Scores) -> tuple[str, str, int] | None:
    """Part, site and datum of the first log-probability that differs from that of the datum alone."""
    for part, of_part in run.found.items():
        for name, site in of_part.items():
            if (off := moved(alone[part, name][: len(run.x)], site.log_prob)).any():
                return part, name, int(off.nonzero()[0])
    return None


def _apart(case: Case) -> Found:
    """What the model says of data does not depend on what the guide saw before."""
    z, fill = case.latents(), replacements(case)[0]
    for mode, vae in _modes(case):
        found = []
        for other in (case.x, fill.to(case.x.dtype)):
            with torch.no_grad(), as_trained(vae):
                seeded(0)
                sites(vae, "guide", case.batch(other), {})
                seeded(1)
                found.append(_detached(sites(vae, "model", case.batch(case.x), z)))
        for name, site in found[0].items():
            if moved(site.log_prob, found[1][name].log_prob).any():
                found_ = f"what the model says at {name!r} depends on the data that the guide saw, and not by z alone"
                return False, f"{found_} ({mode})"
    return None


def _noisy(case: Case, run: Run) -> bool:
    """Whether log-probabilities of given values differ from call to call."""
    one, two = (_run(case, run.vae, run.x, run.z, seed) for seed in (1, 2))
    return any(
        bool(moved(site.log_prob, two[part][name].log_prob).any()) for part in one for name, site in one[part].items()
    )


def _in_both_modes(case: Case) -> Found:
    """Priors are the same in training, with everything switched on, as in evaluation; posteriors of the same class.

    A posterior may be another one then, such as by spectral normalisation, if it is the same at each call.
    """
    z = case.latents()
    plain = _run(case, case.vae, case.x, z)
    training, trained = in_training(case, copied(case.vae)), dict[str, Site]()
    for seed in (1, 2):
        found = _run(case, training, case.x, z, seed)
        for part, whose in (("model", "prior"), ("guide", "posterior")):
            for name, site in found[part].items():
                if site.observed:
                    continue
                there = plain[part][name]
                if (one := title_of(there.fn)) != (other := title_of(site.fn)):
                    return False, f"the {whose} of {name!r} is {one} in evaluation mode and {other} in training mode"
                if part == "guide":
                    there = trained.setdefault(name, site)
                if moved(there.log_prob, site.log_prob).any():
                    if part == "guide":  # as by dropout: a mixture, whose family is not known
                        return None, f"the density of the posterior of {name!r} in training mode is another each time"
                    return False, f"the density of the prior of {name!r} in training mode is another than in evaluation"
    return None


def _in_its_batch(case: Case) -> Found:
    """With batch statistics the prior is the same, posteriors of the same class, and the same at each call."""
    x = case.data(case.sizes[-1])
    z = case.latents(x)
    evaluated = _run(case, case.vae, x, z)
    vae = copied(case.vae).train()
    once, again = (_run(case, vae, x, z, seed) for seed in (1, 2))
    for name, site in once["guide"].items():
        if moved(evaluated["model"][name].log_prob, once["model"][name].log_prob).any():
            return False, f"the density of the prior of {name!r} with batch statistics is another than in evaluation"
        if (one := title_of(evaluated["guide"][name].fn)) != (other := title_of(site.fn)):
            return False, f"the posterior of {name!r} is {one} in evaluation mode and {other} with batch statistics"
        if moved(site.log_prob, again["guide"][name].log_prob).any():
            return None, f"the density of the posterior of {name!r} with batch statistics is another at each call"
    return None


def _after_calls(case: Case) -> Found:
    """The prior is still the same after some calls in training mode: no counter, no buffer moves it."""
    z = case.latents()
    vae = copied(case.vae)
    evaluated = _run(case, vae, case.x, z)["model"]
    trained = _run(case, vae.train(), case.x, z, keep=True)["model"]
    for _ in range(CALLS):
        trained_later = _run(case, vae, case.x, z, keep=True)["model"]
    evaluated_later = _run(case, vae.eval(), case.x, z)["model"]
    for before, after in ((trained, trained_later), (evaluated, evaluated_later)):
        for name, site in before.items():
            if not site.observed and moved(site.log_prob, after[name].log_prob).any():
                return False, (
                    f"the prior of {name!r} changes with the calls of the model: {site.log_prob[0].item():.6g} nats of "
                    f"a value at first, {after[name].log_prob[0].item():.6g} after {CALLS} more"
                )
    return None


@torch.no_grad()
def after_calls(case: Case) -> Found:
    """What model and guide do in training is still the same after some calls with batches of the training's size.

    Statistics that torch's own modules keep, of batches or of the powers of a weight, are put back: those are known.
    """
    vae, x = copied(case.vae).train(), case.data(case.sizes[-1])
    known = [buffer for module in vae.modules() if _is_of_torch(module) for buffer in module.buffers(recurse=False)]
    before = [buffer.clone() for buffer in known]

    def seen() -> dict[str, Tensor]:
        for buffer, value in zip(known, before, strict=True):
            buffer.data.copy_(value)
        seeded(0)
        with as_trained(vae):
            guide = sites(vae, "guide", case.batch(x), {})
            z = {name: site.value.detach() for name, site in guide.items()}
            model = sites(vae, "model", case.batch(x), z)
        found: dict[str, Tensor] = {}
        for part, of_part in (("guide", guide), ("model", model)):
            for name, site in of_part.items():
                found[f"the log-probability of {name!r} in the {part}"] = site.log_prob.detach()
                found[f"the scale of the site {name!r} in the {part}"] = torch.as_tensor(site.scale)
                if part == "guide":
                    found[f"what the guide draws at {name!r}, with the same noise,"] = site.value.detach()
        return found

    first_ = seen()
    seeded(1)
    with as_trained(vae, keep=True):
        for _ in range(CALLS):
            z = {name: site.value.detach() for name, site in sites(vae, "guide", case.batch(x), {}).items()}
            sites(vae, "model", case.batch(x), z)
    later = seen()
    for what, value in first_.items():
        if value.shape != later[what].shape or moved(value, later[what], case.same).any():
            return False, f"{what} changes with the calls in training mode: it is another after {CALLS} of them"
    return None


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn")


def _as_in_single(case: Case, singles: list[Single]) -> Found:
    """What the programs give in single precision, in which they are trained, is the same but for rounding."""
    vaes = dict(_modes(case))
    for single in singles:
        z = {name: widened(values) for name, values in single.z.items()}
        found = _run(case, vaes[single.mode], widened(single.x), z)
        for name, there in _log_probs(found).items():
            here = single.log_prob[name].double()
            off = (here - there).abs() > SINGLE * (1 + there.abs())
            if (off & there.isfinite() | (here.isfinite() != there.isfinite())).any():
                i = int(off.nonzero()[0]) if off.any() else 0
                return False, (
                    f"the log-probability {name} is {here[i].item():.6g} nats in single precision and "
                    f"{there[i].item():.6g} in double ({single.mode})"
                )
    return None
