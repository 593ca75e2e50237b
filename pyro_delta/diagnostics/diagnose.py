"""What is wrong, or right, with a VAE: rate, floor, evidence that the latents are used, and one sentence of advice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from pyro_delta.commitment import BY_LENGTH, BY_PRIOR, IN_THE_MEAN
from pyro_delta.data.condition import condition_of, in_words
from pyro_delta.diagnostics import table
from pyro_delta.diagnostics.bounds import (
    Line,
    Unit,
    committed_by_all,
    counted,
    encode,
    flat,
    ignore,
    importance_line,
    per_measure,
    standard_error,
    standard_errors,
    summarise,
)
from pyro_delta.diagnostics.control import bought
from pyro_delta.diagnostics.importance import K_HAT_LIMIT
from pyro_delta.diagnostics.told import TOLD_IMAGES, TOLD_SAMPLES, group_sizes, told
from pyro_delta.diagnostics.trace import committed, diverged_weight
from pyro_delta.diagnostics.usage import LEAST_TOLD, floor_holds, information, least_told, probe, shuffled_gap
from pyro_delta.errors import UserError, in_a_line
from pyro_delta.protocol import Advance, Spec, Split
from pyro_delta.rate import ar1_committed_rate
from pyro_delta.vae import VAE
from pyro_delta.validation import at_least

Verdict = Literal["diverged", "floor broken", "collapsed", "nothing told", "guide fits badly", "used"]

SMALL_FLOOR = 0.1
"""Nats: a floor below it is none."""
SMALL_RATE = 0.5
"""Nats: a posterior whose mean rate is below it, and that tells nothing, has collapsed."""
LARGE_GAP = 0.1
"""Part of the rate by which −ELBO may exceed the importance-weighted bound before the guide is said to fit badly."""
OVERCONFIDENT = 0.7
"""τ below which the decoder is said to take z for more reliable than it is."""
DIVERGED = "training diverged; train again with a lower learning rate, or clip gradients"
"""What to do about numbers that are not finite."""
ADVICE: dict[Verdict, str] = {
    "diverged": f"The numbers are not finite: {DIVERGED}.",
    "floor broken": (
        "The floor is broken: {broken}; the formula is not that of this guide's family, or the prior is not the one "
        "that it is of."
    ),
    "collapsed": "The posterior has collapsed and no floor prevents it: {mend}.",
    "nothing told": (
        "Nothing shows that z tells the decoder of the data (at least {told:.2g} nats, calibrated, 99 % bound), though "
        "{though}: {mend}."
    ),
    "guide fits badly": (
        "The latents are used, but the guide fits the model's posterior badly (k̂ {k_hat:.2f}, −ELBO {gap:.3g} nats "
        "above the importance-weighted bound): stop earlier if it overfits, or give it a richer network or family."
    ),
    "used": "The latents are used{floor}{tau}.",
}
"""Verdict → the sentence of advice, the first whose case is met."""


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        numbers: by name, as `pyro-delta check --json` prints them; nats, and bits per scored number (`_bpd`).
        verdict: in a word.
        advice: in a sentence.
        unit: of the `_bpd` numbers.
        terms: rate and distortion of each datum, (N,) nats.
    """

    numbers: Line
    verdict: Verdict
    advice: str
    unit: str = "bits/dim"
    terms: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def asdict(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.numbers, "unit": self.unit, "verdict": self.verdict, "advice": self.advice}

    def rows(self) -> list[table.Row]:
        """Words, value and unit of each number."""
        return table.rows(self.numbers, self.unit)

    def __str__(self) -> str:
        """A plain table, and the advice."""
        return f"{table.plain(self.verdict, self.rows())}\n{self.advice}"

    def __repr__(self) -> str:
        """In a line."""
        return f"<Diagnosis: {self.verdict}, rate {table.text(self.numbers['rate_nats_mean'])} nats>"

    def _repr_html_(self) -> str:
        return table.html(self.verdict, self.rows(), self.advice)

    def __rich__(self) -> Any:
        """A table for `rich.print`."""
        from rich.table import Table

        found = Table(title=self.verdict, caption=self.advice, title_justify="left", show_header=False)
        for row in self.rows():
            found.add_row(*row)
        return found

    @property
    def failure(self) -> str | None:
        """Why `pyro-delta check` fails, in a sentence, or None if it passes."""
        return failure(self.numbers)


def diagnosed(
    vae: VAE,
    split: Split,
    *,
    fit: Split | None = None,
    spec: Spec | None = None,
    particles: int = 30,
    weighed: int = 200,
    told_samples: int = TOLD_SAMPLES,
    told_images: int = TOLD_IMAGES,
    control: VAE | None = None,
    seed: int = 0,
    advance: Advance = ignore,
) -> Diagnosis:
    """Looks at a model and its guide on a split: numbers, a verdict and advice.

    Args:
        vae: model and guide, or whatever else `pyro_delta.diagnostics.trace` knows how to run.
        split: data.
        fit: data with labels that the probe is fitted to; without it, the first half of `split`.
        spec: of the data; without it bits are per number that the model observes.
        particles: K of the importance-weighted bound, and of k̂; 1 leaves them out.
        weighed: data, from the start, that this bound is of.
        told_samples: M of what z tells, which can show at most ln M.
        told_images: random data that it is of.
        control: a model without latents and its guide, to compare with.
        seed: of posterior samples, of the shuffle and of the random data.
        advance: called with the number of data just done, `passes` in all.

    Raises:
        UserError: if the programs cannot be run on the data, there are fewer than four data, or a number is too small.
    """
    at_least(1, particles=particles, weighed=weighed, told_images=told_images)
    at_least(0, seed=seed)
    group_sizes(len(split), told_samples, told_images)  # refused before any work is done
    lost = diverged_weight(vae)
    with _fails_by(lost):
        encoding = encode(vae, split, seed=seed, advance=advance)
        known, unit = committed_by_all(committed(vae, split), encoding), Unit.of(spec, encoding.scored)
        counts = counted(spec, split, encoding)
        numbers: Line = summarise(encoding, unit, known.nats) | standard_errors(encoding, unit, counts)
        numbers |= per_measure(spec, split, encoding, unit)
        if (condition := condition_of(spec)) is not None:
            numbers["conditioned_on"] = in_words(condition)
        numbers["neg_elbo_nats"] = (encoding.rate + encoding.distortion).mean().item()
        numbers["distortion_nats"] = encoding.distortion.mean().item()
        numbers["delta_known_by"] = known.known_by
        numbers["delta_guarantee"] = known.guarantee
        numbers["floor_holds"] = floor_holds(encoding, known.nats, known.guarantee)
        if encoding.delta is not None and known.guarantee in (BY_LENGTH, BY_PRIOR):
            numbers["rate_above_delta_nats_min"] = (encoding.rate - encoding.delta).min().item()
        numbers["rate_closed_form"] = encoding.closed_form
        per_dimension = encoding.rate_per_dimension
        numbers["rate_nats_per_dim"] = None if per_dimension is None else per_dimension.tolist()
        numbers["latent_units"] = flat(encoding.z).shape[1]
        if particles > 1:
            numbers |= importance_line(vae, split, encoding, unit, particles, counts=counts, weighed=weighed, seed=seed)
        if control is not None:
            numbers |= bought(encoding, control, split, unit, seed=seed, advance=advance)
        gap = shuffled_gap(vae, split, encoding, seed=seed, advance=advance)
        numbers["shuffled_gap_nats"], numbers["shuffled_gap_se"] = gap.mean().item(), standard_error(gap)
        numbers |= told(vae, split, encoding, samples=told_samples, images=told_images, seed=seed, advance=advance)
        numbers |= information(vae, split, encoding) | probe(vae, split, encoding, fit, seed)
        numbers["latents_used"] = least_told(numbers) > LEAST_TOLD
    # Some distributions make finite numbers of parameters that are not.
    verdict = judge(numbers) if lost is None else "diverged"
    advice = advise(verdict, numbers, {name: tuple(value.shape[1:]) for name, value in encoding.z.items()})
    terms = {"rate": encoding.rate, "distortion": encoding.distortion}
    return Diagnosis(numbers, verdict, advice, getattr(spec, "unit", "bits/number"), terms)


@contextmanager
def _fails_by(lost: str | None) -> Iterator[None]:
    """Says that training diverged where the programs cannot even be run with the weight `lost`, which is not finite."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if lost is None:
            raise
        raise UserError(
            f"the weight {lost!r} is not finite, and the programs fail with it ({in_a_line(error)}): {DIVERGED}."
        ) from error


def passes(count: int, *, control: bool, samples: int = TOLD_SAMPLES, images: int = TOLD_IMAGES) -> int:
    """Data that `diagnosed` goes through: all twice, once more for a control, and all pairs that tell what z tells."""
    size, groups = group_sizes(count, samples, images)
    return (3 if control else 2) * count + groups * size * size


# --- Verdict and advice ---


def judge(numbers: Mapping[str, Any]) -> Verdict:
    """The first verdict of `ADVICE` whose case is met."""
    if _diverged(numbers):
        return "diverged"
    if numbers["floor_holds"] is False:
        return "floor broken"
    if not numbers["latents_used"]:
        small = (numbers["delta_nats"] or 0.0) < SMALL_FLOOR and numbers["rate_nats_mean"] < SMALL_RATE
        return "collapsed" if small else "nothing told"
    bad_tail = (numbers.get("k_hat_median") or 0.0) > K_HAT_LIMIT
    if bad_tail and numbers["iw_gap_nats"] > LARGE_GAP * max(numbers["rate_nats_mean"], 1.0):
        return "guide fits badly"
    return "used"


def _diverged(numbers: Mapping[str, Any]) -> bool:
    """Whether rate or distortion is not finite; in numbers that were kept, it is unknown then."""
    found = (numbers["rate_nats_mean"], numbers["distortion_nats"])
    return not all(value is not None and math.isfinite(value) for value in found)


def advise(verdict: Verdict, numbers: Mapping[str, Any], events: Mapping[str, tuple[int, ...]]) -> str:
    """The sentence of advice, with the numbers in it; `events` holds the shape of each latent site."""
    delta = numbers["delta_nats"] or 0.0
    least = f"{delta:.4g} nats" + (" in the mean" if "rate_above_delta_nats_min" in numbers else "")
    floor = "" if delta < SMALL_FLOOR else f", and no posterior of this family can fall below {least}"
    met, tau = f"the floor of {least} is met", numbers["told_tau"]
    return ADVICE[verdict].format(
        broken=_broken(numbers) if verdict == "floor broken" else "",
        delta=delta,
        k_hat=numbers.get("k_hat_median", math.nan),
        gap=numbers.get("iw_gap_nats", math.nan),
        mend=_floors(events) if verdict == "collapsed" else _to_be_told(numbers),
        floor=floor,
        told=max(0.0, least_told(numbers)),
        though=f"the rate is {numbers['rate_nats_mean']:.3g} nats" if delta < SMALL_FLOOR else met,
        tau=f"; the decoder is overconfident in z (τ = {tau:.2g})" if tau < OVERCONFIDENT else "",
    )


def _broken(numbers: Mapping[str, Any]) -> str:
    """How a floor is broken, that of the mean or that of a datum."""
    if (above := numbers.get("rate_above_delta_nats_min")) is not None:
        return f"a datum has a KL {-above:.6g} nats below its own δ"
    found = f"a datum has a KL of {numbers['rate_nats_min']:.6g} nats"
    if numbers.get("delta_guarantee") == IN_THE_MEAN:
        found = f"the mean KL of the data is {numbers['rate_nats_mean']:.6g} nats"
    return f"{found}, below δ = {numbers['delta_nats']:.6g}"


def _to_be_told(numbers: Mapping[str, Any]) -> str:
    """What helps where nothing is seen to be told: other data to see it by, or else another training."""
    cap = numbers.get("told_cap_nats", math.inf)
    seen = least_told({**numbers, "told_calibrated_nats": cap}) > LEAST_TOLD
    if seen or numbers.get("told_of_condition_too"):
        return (
            "start the guide from data (means of deviation 1), let it learn more slowly than the model, or take a "
            "prior with fewer dimensions and a larger α"
        )
    return (
        f"the {numbers['told_judged']} data that judge could not show it, for at most {cap:.2g} ± "
        f"{numbers['told_calibrated_nats_se']:.2g} nats tell them apart; give more data, alike in length or class "
        "where they have one"
    )


def _floors(events: Mapping[str, tuple[int, ...]]) -> str:
    """Which α gives which δ for a latent of this shape, as a prior in place of the model's own."""
    name, event = max(events.items(), key=lambda pair: math.prod(pair[1]))
    total = math.prod(event)
    if total < 2:
        return f"one latent number at {name!r} cannot be given a floor by a sequence; use a sequence of 2 steps or more"
    if len(event) == 2 and event[0] >= 2:
        (steps, dims), change = event, ""
    else:
        dims = next(d for d in range(math.isqrt(total), 0, -1) if total % d == 0)
        steps = total // dims
        change = f" and its {total} numbers in shape ({steps}, {dims})"
    rates = [f"α = {a:g} commits δ = {ar1_committed_rate([a] * dims, steps).item():.3g}" for a in (0.5, 0.8, 0.95)]
    return (
        f"with GaussianAR1(α, {steps}) as the prior of {name!r}{change}, and the guide Normal and independent, "
        f"{', '.join(rates)} nats"
    )


def failure(numbers: Mapping[str, Any]) -> str | None:
    """Why a `check` fails, in a sentence, or None if it passes. A control never does: nothing hears its latents."""
    reasons: list[str] = []
    diverged = _diverged(numbers)
    if diverged:
        reasons.append("the numbers are not finite")
    elif numbers["floor_holds"] is None:
        reasons.append("the KL or δ has no closed form, so the floor cannot be certified")
    elif not numbers["floor_holds"]:
        reasons.append(f"the floor is broken: {_broken(numbers)}")
    deaf = bool(numbers.get("is_control")) and not numbers["latents_used"]
    if not (diverged or deaf or numbers["latents_used"]):
        reasons.append(
            "the latents are not shown to be used: they tell the decoder at least "
            f"{max(0.0, least_told(numbers)):.2g} nats "
            f"(calibrated, 99 % bound), not more than {LEAST_TOLD:g}"
        )
    if numbers.get("finished") is False:
        reasons.append(f"the training has not come to its end: {table.unfinished(numbers)}")
    if reasons:
        return f"check failed: {'; and '.join(reasons)}."
    return "the run is a control, whose decoder does not hear z: it has no latents to check." if deaf else None
