"""Runs side by side: a row for each arm, means and standard errors over its seeds, and what lies below the first arm.

A difference to the baseline (the control of a sweep, or else its first arm; the first of several runs) is taken datum
by datum, run by run of the same seed, where both were checked on the same data. It then has two errors: over the seeds,

    sd_s(mean_i d_si) / √S,

and over the data, sd_i(mean_s d_si) / √N. Seeds and data are crossed, so that the error of both together lies below the
root of the sum of their squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyro_delta.api.judge import check
from pyro_delta.api.kept import Kept, keep, keepable, kept, of_check, unasked
from pyro_delta.data.values import random_values
from pyro_delta.diagnostics import table
from pyro_delta.diagnostics.cost import flops_per_datum, parameters
from pyro_delta.errors import UserError
from pyro_delta.files import finite
from pyro_delta.hub import here
from pyro_delta.inference.run import CONFIG, Run, has_checkpoint, load
from pyro_delta.sweep.file import KEPT, run_folder
from pyro_delta.sweep.file import kept as kept_sweep

MEANS = (
    "neg_elbo_bpd",
    "auxiliary_neg_elbo_bpd",
    "distortion_bpd",
    "rate_nats_mean",
    "delta_nats",
    "told_calibrated_nats",
    "mutual_information_nats",
    "probe_accuracy",
)
"""Numbers of a check whose mean over the seeds is given."""
BELOW = ("distortion_below_nats", "neg_elbo_below_nats")
"""What lies below the baseline: of a control, what the latents buy, and the same less their rate."""


COST = "FLOPs: of the whole training, in matrix products, convolutions and attention; a multiply-add is two."


@dataclass(frozen=True)
class ArmChecks:
    """The checks of an arm, by seed.

    Attributes:
        name: of the arm.
        family: arms of a family differ in one setting.
        across: its place in a grid that goes through all families; empty where there is none.
        checks: seed → check.
    """

    name: str
    family: str
    across: str
    checks: dict[int, Kept]


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Attributes:
        title: what they are of.
        unit: of the `_bpd` numbers.
        baseline: name of the arm that differences are taken to.
        rows: numbers of each arm: means under the names of `MEANS` and `BELOW`, errors over the seeds under `<name>_se`
            (over the data where there is one seed, as `errors` says), those of differences over the data under
            `<name>_se_data`.
        notes: what a reader must know, in sentences.
        cited: what others have published: name, −ELBO and source.
    """

    title: str
    unit: str
    baseline: str
    rows: list[dict[str, Any]]
    notes: list[str]
    cited: list[dict[str, Any]] = field(default_factory=list)

    def _repr_html_(self) -> str:
        from pyro_delta.report.formats import cells

        return table.html(self.title, cells(self), " ".join(self.notes))

    def asdict(self) -> dict[str, Any]:
        """Plain values."""
        return finite(
            {
                "title": self.title,
                "unit": self.unit,
                "baseline": self.baseline,
                "rows": self.rows,
                "notes": self.notes,
                "cited": self.cited,
            }
        )


def compare(
    runs: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    root: str | None = None,
    trust: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compares the arms of a sweep, or single runs, by their checks; runs without a kept one are checked first.

    Args:
        runs: the folder of a sweep, or folders of runs, of which each is an arm.
        device: for runs that have to be checked.
        root: where their data live now.
        trust: as for `pyro_delta.load`, of all of them.
        say: called with a line for each run that is checked.

    Raises:
        UserError: if there is nothing to compare, or a folder is neither.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    if not folders:
        raise UserError("there is nothing to compare; give runs, or the folder of a sweep.")
    for folder in folders:
        if (folder / KEPT).exists() and len(folders) > 1:
            raise UserError(f"{folder} is a sweep, and compared by itself; give runs, or one sweep.")
        if folders.count(folder) > 1:
            raise UserError(f"{folder} is given {folders.count(folder)} times; give each run once.")

    def checked(folder: Path, control: Path | None = None) -> Kept:
        if (found := kept(here(folder))) is not None:
            return found
        run = load(folder, device, trust=trust)
        say(f"checking {folder} first")
        made = check(run, control=control, root=root)
        if keepable(run, folder, made.numbers):
            with unasked(run, say):
                keep(run, made)
        return of_check(made)

    if not (folders[0] / KEPT).exists():
        names = _names(folders)
        return summary(
            "runs", [ArmChecks(name, name, "", {0: checked(folder)}) for name, folder in zip(names, folders)], names[0]
        )
    sweep, out = kept_sweep(folders[0]), folders[0]
    arms, missing = [], 0
    for arm in sweep.arms:
        checks = {}
        for seed in sweep.seeds:
            folder = run_folder(out, arm, seed)
            control = (
                None if sweep.control in (None, arm.name) else run_folder(out, sweep.arm(sweep.control or ""), seed)
            )
            if has_checkpoint(folder) and (kept(folder) or load(folder, trust=trust).finished):
                checks[seed] = checked(folder, control if control and (control / CONFIG).exists() else None)
            else:
                missing += 1
        if checks:
            arms.append(ArmChecks(arm.name, arm.family, arm.across, checks))
    if not arms:
        raise UserError(f"{out} holds no run yet; pyro-delta sweep makes them.")
    baseline = sweep.control if sweep.control in [arm.name for arm in arms] else arms[0].name
    assert baseline is not None
    found = summary(sweep.title, arms, baseline, missing)
    if not sweep.cited:
        return found
    # Bounds of others have taken other compute: theirs are set beside what ours have.
    for checks_of, row in zip(arms, found.rows, strict=True):
        row |= cost(load(run_folder(out, sweep.arm(checks_of.name), next(iter(checks_of.checks))), trust=trust))
    return replace(
        found,
        cited=[cited.model_dump(mode="json") for cited in sweep.cited],
        notes=[*found.notes, COST, *(f"{cited.name}: {cited.source}." for cited in sweep.cited)],
    )


def cost(run: Run) -> dict[str, int]:
    """What a run's training has taken: learned weights, data, and floating-point operations, all in all."""
    seen = run.trained_steps * run.config.training.batch
    each = flops_per_datum(run.vae, random_values(run.spec, 2))
    return {"parameters": parameters(run.vae), "data_seen": seen, "training_flops": seen * each}


def summary(title: str, arms: Sequence[ArmChecks], baseline: str, missing: int = 0) -> Comparison:
    """The comparison of arms that were checked.

    Args:
        title: what they are of.
        arms: with a check at least.
        baseline: name of the arm that differences are taken to.
        missing: runs that are not there.

    Raises:
        UserError: if bounds are in different units.
    """
    units = sorted({str(check.numbers["unit"]) for arm in arms for check in arm.checks.values()})
    if len(units) > 1:
        raise UserError(f"the runs' bounds are in {' and '.join(units)}; compare runs of one kind of data.")
    base = next(arm for arm in arms if arm.name == baseline)
    rows = [_row(arm, base) for arm in arms]
    _mark_front(rows)
    return Comparison(title, units[0], baseline, rows, _notes(arms, rows, base, missing))


def finished_runs(runs: Sequence[Path], trust: bool = False) -> dict[str, list[Path]]:
    """Folders of finished runs by arm, of a sweep or of single runs, which are arms each."""
    if not (runs[0] / KEPT).exists():
        return {name: [folder] for name, folder in zip(_names(runs), runs)}
    sweep = kept_sweep(runs[0])
    found = {arm.name: [run_folder(runs[0], arm, seed) for seed in sweep.seeds] for arm in sweep.arms}
    found = {
        name: [folder for folder in folders if has_checkpoint(folder) and load(folder, trust=trust).finished]
        for name, folders in found.items()
    }
    return {name: folders for name, folders in found.items() if folders}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which is 0 for a single value."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return mean, math.sqrt(variance / len(values))


def _row(arm: ArmChecks, base: ArmChecks) -> dict[str, Any]:
    """The numbers of an arm."""
    checks = list(arm.checks.values())
    several = len(checks) > 1
    row: dict[str, Any] = {
        "arm": arm.name,
        "family": arm.family,
        "across": arm.across,
        "seeds": len(checks),
        "errors": "seeds" if several else "data",
    }
    for key in MEANS:
        values = [check.numbers[key] for check in checks if check.numbers.get(key) is not None]
        row[key] = row[f"{key}_se"] = None
        if values:
            mean, error = mean_and_error(values)
            row[key], row[f"{key}_se"] = mean, error if several else checks[0].numbers.get(f"{key}_se")
    least = [check.numbers["rate_nats_min"] for check in checks if check.numbers["rate_nats_min"] is not None]
    of = {_data_of(check) for check in checks}
    row["data"] = " and ".join(sorted(of))
    row["judged_digest"] = _same(check.numbers["judged_digest"] for check in checks)
    row["rate_nats_min"] = min(least, default=None)
    row["floor_holds"] = sum(check.numbers["floor_holds"] is True for check in checks)
    row["latents_used"] = sum(bool(check.numbers["latents_used"]) for check in checks)
    row["unfinished"] = sum(check.numbers.get("finished") is False for check in checks)
    return row | _below(arm, base)


def _data_of(check: Kept) -> str:
    """Of what a check is, in words."""
    numbers = check.numbers
    last = ", last weights" if numbers.get("weights") == "last" else ""
    return f"{numbers['n_images']} data of the {numbers['split']} split{last}"


def _same(values: Iterable[Any]) -> Any:
    """What all values are, None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _below(arm: ArmChecks, base: ArmChecks) -> dict[str, Any]:
    """How far distortion and −ELBO lie below those of the baseline, in nats, by datum; None where data differ."""
    found: dict[str, Any] = {"paired_seeds": 0}
    for key in BELOW:
        found |= {key: None, f"{key}_se": None, f"{key}_se_data": None}
    if arm is base:
        return found
    pairs = [(check, base.checks[seed]) for seed, check in arm.checks.items() if seed in base.checks]
    pairs = [(check, other) for check, other in pairs if _of_the_same_data(check, other)]
    if not pairs:
        return found
    found["paired_seeds"] = len(pairs)
    for key in BELOW:
        difference_sn = np.stack([_loss(other, key) - _loss(check, key) for check, other in pairs])
        mean, over_seeds = mean_and_error(difference_sn.mean(1).tolist())
        _, over_data = mean_and_error(difference_sn.mean(0).tolist())
        found |= {
            key: mean,
            f"{key}_se": over_seeds if len(pairs) > 1 else over_data,
            f"{key}_se_data": over_data,
        }
    return found


def _of_the_same_data(check: Kept, other: Kept) -> bool:
    same = all(check.numbers[key] == other.numbers[key] for key in ("split", "n_images", "judged_digest"))
    return same and check.rate_b.shape == other.rate_b.shape


def _loss(check: Kept, key: str) -> np.ndarray:
    """Distortion or −ELBO of each datum; a decoder that does not hear z pays no rate, p(x | z) = p(x)."""
    deaf = check.numbers["shuffled_gap_nats"] == 0 and check.numbers["shuffled_gap_se"] == 0
    return check.distortion_b if key == BELOW[0] or deaf else check.distortion_b + check.rate_b


def _mark_front(rows: list[dict[str, Any]]) -> None:
    """Marks the Pareto front of rate and distortion: no other row has less of one and no more of the other.

    Rows of other data cannot be set against each other: then none is on it.
    """
    alike = _alike(rows)
    points = [(row["rate_nats_mean"], row["distortion_bpd"]) for row in rows]
    for row, (rate, distortion) in zip(rows, points):
        known = None not in (rate, distortion)
        row["on_front"] = (
            alike
            and known
            and not any(
                None not in other and other != (rate, distortion) and other[0] <= rate and other[1] <= distortion
                for other in points
            )
        )


def _alike(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all rows are of the same data."""
    return _same(row["judged_digest"] for row in rows) is not None


def _notes(arms: Sequence[ArmChecks], rows: list[dict[str, Any]], base: ArmChecks, missing: int) -> list[str]:
    counts = sorted({len(arm.checks) for arm in arms})
    over = "over the data" if counts == [1] else "over the seeds"
    if len(counts) > 1 and 1 in counts:
        over += ", over the data in arms of one seed"
    data = _same(row["data"] for row in rows)
    if data is None:
        data = "Other data in each: " + "; ".join(f"{row['arm']}, {row['data']}" for row in rows)
    elif not _alike(rows):
        data += ", not the same ones in all rows"
    notes = [
        f"{data}; standard errors {over}.",
        f"Below {base.name!r}: by datum{' and seed' if counts != [1] else ''}; positive is better.",
    ]
    if missing:
        are = (
            "is not there, or has not come to its end"
            if missing == 1
            else "are not there, or have not come to their end"
        )
        notes.append(f"{missing} of the sweep's runs {are}.")
    if unfinished := sum(row["unfinished"] for row in rows):
        notes.append(f"{unfinished} {'run has' if unfinished == 1 else 'runs have'} not come to the end.")
    if apart := [row["arm"] for row in rows if row["arm"] != base.name and not row["paired_seeds"]]:
        notes.append(f"Of other data or seeds, and so not compared by datum: {', '.join(apart)}.")
    if len(rows) > 2 and _alike(rows):
        notes.append(
            f"Pareto front of rate and distortion: {', '.join(row['arm'] for row in rows if row['on_front'])}."
        )
    return notes


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names of runs: their folders' own, or their paths where these are not enough."""
    short = [folder.name or str(folder) for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]
