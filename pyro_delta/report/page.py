"""A run as one page: what was trained, what came of it, and what it draws. One file, which needs no network.

Two pages are of one run: that of a check, and that which a training ends with, for which nothing more is measured.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Distribution

from pyro_delta.api.kept import failure_of
from pyro_delta.data.splits import Split, subset
from pyro_delta.describe import flat as flat_settings
from pyro_delta.describe import written
from pyro_delta.diagnostics import table
from pyro_delta.diagnostics.bounds import Encoding, encode, flat
from pyro_delta.diagnostics.steps import floor_of_steps, rate_of_steps
from pyro_delta.diagnostics.trace import device_of
from pyro_delta.diagnostics.trace import prior as prior_of
from pyro_delta.diagnostics.usage import PROBE_DATA, sample_latents, taken_for
from pyro_delta.errors import UserError
from pyro_delta.hub import on_hub
from pyro_delta.inference.optim import calmer
from pyro_delta.inference.run import SAMPLES, Run, is_control, read_info
from pyro_delta.protocol import Data
from pyro_delta.rate import Modes, committed_rate, modes
from pyro_delta.report.commands import (
    GIVEN,
    command_of_check,
    commands_of_training,
    python_of_check,
    python_of_training,
)
from pyro_delta.report.comparison import Comparison
from pyro_delta.report.comparison_figure import comparison_figure
from pyro_delta.report.delta_figure import modes_figure
from pyro_delta.report.drawn import drawn
from pyro_delta.report.formats import cells
from pyro_delta.report.page_figures import confusion_figure, steps_figure, training_figure
from pyro_delta.report.shown import Shown, figure, shown_file
from pyro_delta.report.track import recorded

LOOKED_AT = 1000
"""Test data, at most, of which steps, dimensions and classes are shown."""
CLASSES = 40
"""Of a confusion, at most: more are not read."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: of it.
        words: paragraphs.
        rows: of a table, head first where `head`.
        shown: pictures and the like, below.
        folded: whether the table opens at a click.
        head: whether the first row names the columns.
    """

    title: str
    words: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    shown: Sequence[Shown] = ()
    folded: bool = False
    head: bool = False

    @property
    def anchor(self) -> str:
        """By which links find it."""
        return self.title.lower().replace(" ", "-")


def page(
    run: Run,
    data: Data,
    numbers: Mapping[str, Any],
    *,
    named: str,
    evaluated: Sequence[Mapping[str, Any]] = (),
    control: Run | None = None,
    seed: int = 0,
) -> str:
    """The HTML of a run.

    Args:
        run: with its folder.
        data: that it was trained on.
        numbers: of a check, as `Diagnosis.asdict` gives them.
        named: the run, as it was given: its folder or its place on the hub.
        evaluated: what evaluations found, as they were kept.
        control: the run without latents whose training is drawn beside it.
        seed: of what is drawn.

    Raises:
        UserError: as `pyro_delta.load` for what the run's programs cannot do.
    """
    test: Any = data.test
    part = subset(test, min(LOOKED_AT, len(test)), seed)
    encoding = encode(run.vae, part, seed=seed)
    beside = None if control is None else str(control.folder)
    given = run.config.data.program == GIVEN
    check = (python_of_check if given else command_of_check)(named, numbers, beside)
    checks = [check if given or on_hub(named) else f"{check} --keep"]
    if given:
        checks.append(f"pyro_delta.write_report({named!r}, data=x{'' if beside is None else f', control={beside!r}'})")
    else:
        checks.append(shlex.join(["pyro-delta", "report", named, *(() if beside is None else ("--control", beside))]))
    # Weights that have diverged draw nothing, and their latents hold nothing.
    sound = all(bool(values.isfinite().all()) for values in (encoding.distortion, encoding.rate))
    shown = list(drawn(run, data, encoding, part, seed)) if sound else []
    sections = [
        _what_was_trained(run, data, numbers, encoding),
        _what_was_measured(run, numbers, check),
        *_evaluations(run, evaluated),
        how_it_came(run, control),
        *(_latents(run, data, part, encoding, seed) if sound else ()),
        *([Section("What it draws", shown=shown)] if shown else []),
        *made_by(run, named, checks),
    ]
    verdict, advice = verdict_of(run, numbers)
    return rendered(title=named, verdict=verdict, advice=advice, sections=sections)


def page_of_training(run: Run, floor: str, measured: Mapping[str, Any], control: Run | None = None) -> str:
    """The HTML of a run as its training leaves it, before any check: of what is known of it already.

    Args:
        run: with its folder.
        floor: its committed rate, in words.
        measured: by its newest validation, or of its last batch where there was none.
        control: the run without latents whose training is drawn beside it.
    """
    assert run.folder is not None
    named, beside = str(run.folder), () if control is None else ("--control", str(control.folder))
    check, report = (shlex.join(["pyro-delta", command, named, *beside]) for command in ("check", "report"))
    title = "The last batch of training" if measured.get("split") == "train" else "What validation found"
    in_short, advice = _of_training(run, measured, check, report)
    found = {key: value for key, value in measured.items() if key != "run"}
    samples = run.folder / SAMPLES / f"step_{run.trained_steps:06d}{run.spec.suffix}"
    sections = [
        Section("What was trained", [*in_words(run), *_how_it_ended(run, measured), f"Committed rate: {floor}."]),
        Section(title, rows=[list(row) for row in table.rows(found, run.spec.unit)]),
        how_it_came(run, control),
    ]
    if samples.exists():
        caption = (
            f"Drawn from the model at the end of the training, by its averaged weights of step {run.trained_steps}."
        )
        sections.append(Section("What it draws", shown=list(shown_file(run.spec, samples, caption))))
    sections += made_by(run, named, [check, report])
    return rendered(title=named, verdict=in_short, advice=advice, sections=sections)


def _of_training(run: Run, measured: Mapping[str, Any], check: str, report: str) -> tuple[str, str]:
    """What stands first on the page of a run that was not checked, and what to do next."""
    if run.weights == "last" and _has_diverged(measured):  # the best weights are of before
        return "diverged", f"Its bound is not finite; train again with {calmer(run.config.training)}."
    if is_control(run.config):
        compared = shlex.join(["pyro-delta", "check", "RUN", "--control", str(run.folder)])
        return "a control, trained", f"Its decoder sees no latents; {compared} compares a run with it."
    advice = (
        f"{check} says whether the decoder uses its latents; {report} does so, and shows here what they hold and draw."
    )
    return "trained, and not checked yet", advice


def _has_diverged(measured: Mapping[str, Any]) -> bool:
    """Whether the newest bound is there and not finite; of a training without validation there is none."""
    bound = measured.get("neg_elbo_bpd", 0.0)
    return bound is None or not math.isfinite(bound)


def _how_it_ended(run: Run, measured: Mapping[str, Any]) -> Iterator[str]:
    """What was not as it was set: steps that were skipped, and an end before the last one."""
    if run.skipped_steps and run.caveat is None:
        yield f"{run.skipped_steps} of the steps were skipped: not finite, or beyond training.skip."
    if run.weights == "best" and _has_diverged(measured):
        yield "Its newest bound is not finite: the best weights are of before it diverged."
    if measured.get("ended_early"):
        yield "It ended early, as training.patience has it: further validations were no better than the best."


def verdict_of(run: Run, numbers: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict on a run, and the advice, with why its check fails where it does: a control's, not for lack of z."""
    verdict, advice = str(numbers["verdict"]), str(numbers["advice"])
    control = is_control(run.config) and not numbers["latents_used"]
    wrong = failure_of({**numbers, "latents_used": True} if control else numbers)
    if control and verdict in ("nothing told", "collapsed"):
        verdict = "a control"
    if wrong is None:
        return verdict, advice
    return f"{verdict}, and the check fails", f"{wrong[0].upper()}{wrong[1:]} {advice}"


def page_of_runs(found: Comparison, runs: Mapping[str, Run]) -> str:
    """The HTML of several runs side by side.

    Args:
        found: their comparison.
        runs: by their names in it.
    """
    metrics = {name: run.metrics for name, run in runs.items()}
    unit = next(iter(runs.values())).spec.unit
    caption = "Bounds and distortions along the trainings (left), rate and δ of the first (right)."
    plane = "Distortion, and what z tells, against the rate; errors are over seeds, or over the data of one run."
    sections = [
        Section("Side by side", found.notes, cells(found), [figure(comparison_figure(found), plane)], head=True),
        Section("How the trainings went", shown=[figure(training_figure(metrics, unit, None), caption)]),
        *(Section(f"What {name} is", in_words(run)) for name, run in runs.items()),
    ]
    return rendered(title="Runs side by side", verdict=f"{len(runs)} runs", advice="", sections=sections)


def rendered(*, title: str, verdict: str, advice: str, sections: Sequence[Section]) -> str:
    """The page of sections."""
    from jinja2 import Environment

    template = resources.files("pyro_delta.report").joinpath("page.html.jinja").read_text("utf-8")
    made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    return made.render(title=title, verdict=verdict, advice=advice, sections=sections)


# --- What was trained, and what came of it ---


def in_words(run: Run, *, caveat: bool = True) -> list[str]:
    """Programs, objective and steps; and, unless it is said elsewhere, that the training has not come to its end."""
    config = run.config
    data = "given in Python" if config.data.program == GIVEN else config.data.program
    return [
        f"Data {data}, prior {config.prior.program}, likelihood {config.likelihood.program}, guide "
        f"{config.guide.program}. {_count(run.vae.model)} weights in the model, {_count(run.vae.guide)} in the guide.",
        f"Objective {config.objective.program}, {run.trained_steps} steps of batch {config.training.batch}, seed "
        f"{config.training.seed}; here are the {run.weights} weights, of step {run.step}."
        + ("" if run.caveat is None or not caveat else f" {run.caveat}"),
    ]


def _what_was_trained(run: Run, data: Data, numbers: Mapping[str, Any], encoding: Encoding) -> Section:
    delta = numbers.get("delta_nats")
    floor = (
        f"δ = {delta:.4g} nats, known by {numbers['delta_known_by']}, bounds the rate of {numbers['delta_guarantee']}"
        if delta
        else "nothing is committed: the posterior may collapse"
    )
    known = (len(data.train), len(data.validation), len(data.test))
    z = " and ".join(str(tuple(value.shape[1:])) for value in encoding.z.values())
    words = [
        f"{known[0]} data for training, {known[1]} for validation, {known[2]} for the test; each of shape "
        f"{tuple(run.spec.shape)}, {run.spec.positions} {getattr(run.spec, 'place', 'position')}s. Latents of shape "
        f"{z}.",
        f"Committed rate: {floor}.",
    ]
    return Section("What was trained", [*in_words(run), *words])


def _count(program: torch.nn.Module) -> str:
    return f"{sum(weight.numel() for weight in program.parameters()):,}".replace(",", " ")


def _what_was_measured(run: Run, numbers: Mapping[str, Any], check: str) -> Section:
    words = (
        f"By {check}: {numbers['n_images']} of the {numbers['split_images']} data of the {numbers['split']} split, "
        f"seed {numbers['seed']}. ± is a standard error over the data.",
    )
    return Section("What was measured", words, [list(row) for row in table.rows(numbers, run.spec.unit)])


def _evaluations(run: Run, evaluated: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    if evaluated:
        words = (
            "By pyro-delta evaluate, as kept with the run: "
            f"bounds and distortion in {run.spec.unit}, rates in nats; ± is a standard error over the data."
        )
        yield Section("Bounds", [words], table.evaluations(evaluated), head=True)


def how_it_came(run: Run, control: Run | None) -> Section:
    """Curves of the training, beside the recorded ones of its settings and those of a control."""
    curve = recorded(run.config)
    runs = {"run": run.metrics} | ({} if control is None else {"control": control.metrics})
    known = None if curve is None else (list(curve.steps), [curve.at(step)[0] for step in curve.steps])  # type: ignore[index]
    curves = training_figure(runs, run.spec.unit, known)
    beside = "" if control is None else f" Control: {control.folder}, without latents."
    caption = f"Bound and distortion (left), rate and δ (right) along the training.{beside}"
    return Section("How the training went", shown=(figure(curves, caption),))


# --- Its latents ---


def _latents(run: Run, data: Data, part: Split, encoding: Encoding, seed: int) -> Iterator[Section]:
    shown, priors = [], prior_of(run.vae, len(part), part.extras)
    own = _are_own(priors, encoding, device_of(run.vae))
    rate_nd = rate_of_steps(encoding, priors)
    if rate_nd is not None:
        each = ", and δ is the mean of what their own priors commit" if own else ""
        each += (
            ". Behind the end of a datum it counts as nothing" if getattr(priors, "lengths", None) is not None else ""
        )
        caption = (
            f"Rate of each latent step and dimension, mean over {len(part)} test data, beside the share of δ: a step's "
            f"is that of z_t given the step before it{each}."
        )
        shown.append(figure(steps_figure(rate_nd, floor_of_steps(priors)), caption))  # type: ignore[arg-type]
    prior = prior_of(run.vae, 1, part.take(slice(1)).extras)
    if (spectrum := _spectrum(getattr(prior, "whole", prior))) is not None:
        of = "the prior of the first of the data, which have priors of their own" if own else "the prior"
        caption = f"Modes of {of}: in which directions a posterior can speak, and at what price."
        shown.append(figure(spectrum, caption))
    if (confusion := _confusion(run, data, part, encoding, seed)) is not None:
        counts, classes = confusion
        right = counts.diagonal().sum() / counts.sum()
        caption = f"A linear probe on samples of z takes {100 * right:.0f} % of {len(part)} data for what they are."
        shown.append(figure(confusion_figure(counts.numpy(), classes), caption))
    if shown:
        yield Section("What the latents hold", shown=shown)


def _are_own(priors: Distribution, encoding: Encoding, device: torch.device) -> bool:
    """Whether the priors of N data differ in more than their lengths: at the z of the first, to be seen."""
    if len(encoding.z) != 1 or not priors.batch_shape:
        return False
    (z,) = encoding.z.values()
    log_p: Tensor = getattr(priors, "whole", priors).log_prob(z[:1].to(device))
    return not torch.allclose(log_p, log_p[:1], equal_nan=True)


def _spectrum(prior: Any) -> Figure | None:
    """Of a Gaussian prior that commits something."""
    try:
        delta = float(committed_rate(prior).sum())
        found = Modes(modes(prior).values.flatten(0, -2)[0]) if prior.batch_shape else modes(prior)
        return modes_figure(found, delta) if delta > 0 else None
    except (UserError, RuntimeError):  # the latter of weights that have diverged
        return None


def _confusion(run: Run, data: Data, part: Split, encoding: Encoding, seed: int) -> tuple[Tensor, list[str]] | None:
    """Counts (K, K) of what a probe takes data for, true classes in rows, and their names; None without classes."""
    fit = data.train.take(slice(PROBE_DATA))
    if part.labels is None or fit.labels is None:
        return None
    count = max(int(max(part.labels.max(), fit.labels.max())) + 1, len(data.classes or ()))
    if count > CLASSES:
        return None
    found = taken_for(sample_latents(run.vae, fit, seed=seed + 1), fit.labels, flat(encoding.z))
    if found is None:
        return None
    names = [str(name) for name in (data.classes or range(count))]
    return torch.bincount(part.labels * count + found, minlength=count * count).reshape(count, count), names


# --- Settings, versions, commands ---


def made_by(run: Run, named: str, checks: Sequence[str]) -> Iterator[Section]:
    """Commands of the training and of what was done with it, settings and versions."""
    assert run.folder is not None
    preset = read_info(run.folder).preset
    folder = Path("RUN") if on_hub(named) else run.folder
    if run.config.data.program == GIVEN:
        commands = [python_of_training(run.config, preset, str(folder))]
        words = "The training on x, data that were given in Python, from its settings, and what was done with it:"
    else:
        commands, words = commands_of_training(run.config, preset, folder, run.metrics)
    facts = [[name, str(value)] for name, value in run.facts.items() if value is not None]
    yield Section("How to make it again", [words], shown=[Shown("text", "\n".join([*commands, *checks]), "", "")])
    yield Section("All settings", rows=[[key, written(value)] for key, value in flat_settings(run.config)], folded=True)
    yield Section("Versions", rows=facts + _versions(run.folder), folded=True)


def _versions(folder: Path) -> list[list[str]]:
    known = json.loads((folder / "run.json").read_text("utf-8"))
    rows = [[f"trained with {name}", str(value)] for name, value in known.get("versions", {}).items()]
    return [["trained by version", str(known.get("version"))], ["trained by commit", str(known.get("commit"))], *rows]
