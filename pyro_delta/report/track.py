"""Am I on track? The validations of a training beside those that were recorded of the same configuration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from statistics import fmean, stdev
from typing import Any

from pyro_delta import config as configuration
from pyro_delta.build import build
from pyro_delta.config import Config
from pyro_delta.data.values import blank
from pyro_delta.diagnostics.cost import flops_per_datum
from pyro_delta.errors import UserError
from pyro_delta.inference.run import Run

ASIDE = {
    "data": {"root"},
    "training": {
        "seed", "backend", "bf16", "channels_last", "recompute", "accumulate", "compile", "log_every", "validations",
        "checkpoint_minutes", "patience", "skip",
    },
}  # fmt: skip
"""Settings that decide where, how and by which noise a training is computed, but not what bound it has at a step.

`skip` is among them: no gradient that was logged in a recorded training was as large as presets have it.
"""
FAR = 5.0
"""Deviations of single runs above the recorded mean from which on a run is far off, …"""
LEAST = 0.005
"""… of which one is at least that part of the mean: few seeds do not tell how far runs differ."""


@dataclass(frozen=True)
class Curve:
    """The validations of recorded trainings of a configuration.

    Attributes:
        name: of the configuration.
        settings: all of them, by section.
        unit: of the bounds.
        steps: of the validations.
        bounds: −ELBO of the validation split, by step and seed.
        seen: data of a step.
        command: that made the runs.
        flops_per_datum: of a step; 0 until they are `counted`.
    """

    name: str
    settings: dict[str, Any]
    unit: str
    steps: list[int]
    bounds: list[list[float]]
    seen: int
    command: str
    flops_per_datum: int = 0

    def at(self, step: int) -> tuple[float, float] | None:
        """Mean and deviation over the seeds, 0 for one, at a step; None if none was recorded there."""
        if step not in self.steps:
            return None
        values = self.bounds[self.steps.index(step)]
        return fmean(values), stdev(values) if len(values) > 1 else 0.0


def tracked(config: Config) -> dict[str, Any]:
    """The settings that decide the bound of a training at each step, seeds apart."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    return {
        section: {key: value for key, value in fields.items() if key not in ASIDE.get(section, ())}
        for section, fields in tree.items()
    }


def curves() -> list[Curve]:
    """All that were recorded."""
    files = (file for file in resources.files("pyro_delta.curves").iterdir() if file.name.endswith(".json"))
    return [Curve(**json.loads(file.read_text("utf-8"))["curve"]) for file in sorted(files, key=lambda file: file.name)]


def recorded(config: Config) -> Curve | None:
    """What was recorded of a configuration; settings that have come since are as they were by default."""
    here = tracked(config)
    return next((curve for curve in curves() if tracked(configuration.validate(curve.settings)) == here), None)


def curve_of(name: str, runs: Sequence[Run], command: str) -> Curve:
    """The curve of finished runs of one configuration, of any seeds.

    Raises:
        UserError: if they differ in more than their seeds, or have no validation.
    """
    first = runs[0]
    for run in runs:
        if tracked(run.config) != tracked(first.config):
            raise UserError(f"{run.folder} and {first.folder} differ in more than their seeds; give runs of one kind.")
    by_run = [validations(run.metrics) for run in runs]
    steps = sorted(set.intersection(*(set(bounds) for bounds in by_run)))
    if not steps:
        raise UserError(f"{first.folder} has no validation at a step of all the others; set training.validations.")
    settings = first.config.model_dump(mode="json")
    settings["data"].pop("root", None)  # of the machine
    return Curve(
        name=name,
        settings=settings,
        unit=first.spec.unit,
        steps=steps,
        bounds=[[bounds[step] for bounds in by_run] for step in steps],
        seen=first.config.training.batch,
        command=command,
    )


def counted(curve: Curve, run: Run) -> Curve:
    """A curve of the data of a run, with the operations that the networks at hand take, whatever they took before."""
    alike = tracked(configuration.validate(curve.settings)) == tracked(run.config)
    vae = run.vae if alike else build(configuration.validate(curve.settings), run.spec)
    return replace(curve, flops_per_datum=flops_per_datum(vae, blank(run.spec, 2)))


def of_same_data(known: Iterable[Curve], config: Config) -> list[Curve]:
    """Those curves that were recorded on the data of a configuration, wherever these lie."""
    data = tracked(config)["data"]
    return [curve for curve in known if tracked(configuration.validate(curve.settings))["data"] == data]


def validations(lines: Iterable[dict[str, Any]]) -> dict[int, float]:
    """Step → −ELBO of the validation split, of lines of metrics."""
    found = {line["step"]: line["neg_elbo_bpd"] for line in lines if line["split"] == "validation"}
    return {step: bound for step, bound in found.items() if bound is not None}


def validation_rows(own: Sequence[Curve], recorded: Sequence[Curve]) -> list[list[str]]:
    """A table, head first: steps and floating-point operations of the last validation, and the bound there.

    It stands beside the deviation of single runs, where there are several.
    """
    rows = [["training", "seeds", "step", "FLOPs", "−ELBO ± deviation"]]
    for curve in (*own, *recorded):
        step = curve.steps[-1]
        mean, deviation = curve.at(step) or (math.nan, 0.0)
        name = curve.name if curve in own else f"{curve.name}, recorded"
        bound = f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation else "") + f" {curve.unit}"
        rows.append(
            [name, str(len(curve.bounds[-1])), str(step), f"{step * curve.seen * curve.flops_per_datum:.2e}", bound]
        )
    return rows


class Track:
    """Sets each validation of a training beside the recorded ones, and says once if it is far off.

    Args:
        config: of the training.
        past: its lines of metrics so far, of a training that goes on: what was said of them is not said again.
    """

    def __init__(self, config: Config, past: Iterable[dict[str, Any]] = ()) -> None:
        self.curve, self.said = recorded(config), False
        for line in past:
            self.notice(line)

    def beside(self, line: dict[str, Any]) -> str:
        """What was recorded at the step of a line of metrics, in words; empty where nothing was."""
        if self.curve is None or line["split"] != "validation" or (known := self.curve.at(line["step"])) is None:
            return ""
        mean, deviation = known
        return f"recorded {mean:.4f}" + (f" ± {deviation:.4f}" if deviation else "")

    def notice(self, line: dict[str, Any]) -> str | None:
        """The sentence, the first time that a validation is far above what was recorded."""
        if self.said or self.curve is None or line["split"] != "validation":
            return None
        known, bound = self.curve.at(line["step"]), line["neg_elbo_bpd"]
        if known is None:
            return None
        mean, deviation = known
        if bound is not None and bound <= mean + FAR * max(deviation, LEAST * abs(mean)):
            return None
        self.said = True
        what = "no number" if bound is None else f"{bound:.4f} {self.curve.unit}"
        return (
            f"the bound at step {line['step']} is {what}, where {mean:.4f} was recorded: this training is off its "
            f"track; data, code or machine differ from those of `{self.curve.command}`."
        )
