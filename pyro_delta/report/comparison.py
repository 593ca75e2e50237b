"""Runs side by side: a row for each arm, means and standard errors over its seeds, and what lies below the first arm.

A difference to the baseline (the control of a sweep, or else its first arm, at each place of a grid that goes through
all arms; the first of several runs) is taken datum by datum, run by run of the same seed, where both were checked on
the same data. It then has two errors: over the seeds,

    sd_s(mean_i d_si) / √S,

and over the data, sd_i(mean_s d_si) / √N. Seeds and data are crossed, so that the error of both together lies below the
root of the sum of their squares.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyro_delta.api.judge import check
from pyro_delta.api.kept import Kept, keep, keepable, kept, of_check, otherwise, unasked
from pyro_delta.data.values import blank
from pyro_delta.diagnostics import table
from pyro_delta.diagnostics.cost import flops_per_datum, parameters
from pyro_delta.errors import UserError
from pyro_delta.files import finite
from pyro_delta.hub import here
from pyro_delta.inference.run import Run, has_checkpoint, load, read_info, written_sections
from pyro_delta.report.track import ASIDE
from pyro_delta.sweep.file import KEPT, Arm, Sweep, run_folder
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


COST = (
    "FLOPs: of model and guide in the whole training, forwards and backwards, in matrix products, convolutions and "
    "attention; a multiply-add is two, and what the optimiser takes is not counted."
)


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
        baseline: name of the arm that differences are taken to; of its family, where each place of a grid that goes
            through several families has its own.
        rows: numbers of each arm: means under the names of `MEANS` and `BELOW`, errors over the seeds under `<name>_se`
            (over the data where there is one seed, as `errors` says), those of differences over the data under
            `<name>_se_data`. Of a decoder that does not hear z the rate is 0, and the −ELBO is the distortion.
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
    _check_given(folders)

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

    def control_of(arm: Arm, seed: int) -> Path | None:
        """The control of a run, if it has come to its end and has not diverged."""
        if sweep.control in (None, arm.name):
            return None
        folder = run_folder(out, sweep.arm(sweep.control or ""), seed)
        usable = _has_ended(folder, trust) and checked(folder).numbers["neg_elbo_bpd"] is not None
        return folder if usable else None

    arms, missing = [], 0
    for arm in sweep.arms:
        checks = {}
        for seed in sweep.seeds:
            folder = run_folder(out, arm, seed)
            if _has_ended(folder, trust):
                checks[seed] = kept(folder) or checked(folder, control_of(arm, seed))
            else:
                missing += 1
        if checks:
            arms.append(ArmChecks(arm.name, arm.family, arm.across, checks))
    if not arms:
        raise nothing_in(out)
    baseline = sweep.control if sweep.control in [arm.name for arm in arms] else arms[0].name
    assert baseline is not None
    found = summary(sweep.title, arms, baseline, missing)
    if len(versions := _versions(sweep, out, arms)) > 1:
        found.notes.append(f"Trained by more than one version of pyro-delta: {', '.join(versions)}.")
    if apart := _not_alike(sweep, out, arms):
        found.notes.append(f"Trained otherwise than the sweep says, or than the rest of their arm: {'; '.join(apart)}.")
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
    each = flops_per_datum(run.vae, blank(run.spec, 2))
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
    # Along a grid that goes through several families, as that of decoders of growing strength, each place has its own.
    along = len({arm.across for arm in arms}) > 1 and len({arm.family for arm in arms}) > 1 and bool(base.across)
    own = {arm.across: arm for arm in arms if arm.family == base.family} if along else {}
    bases = {arm.name: own.get(arm.across) if along else base for arm in arms}
    rows = [_row(arm, bases[arm.name]) for arm in arms]
    for across in {row["across"] for row in rows} if along else {None}:
        _mark_front([row for row in rows if across in (None, row["across"])])
    found = Comparison(title, units[0], base.family if along else baseline, rows, [])
    return replace(found, notes=_notes(arms, rows, bases, found.baseline, missing))


def finished_runs(runs: Sequence[Path], trust: bool = False) -> dict[str, list[Path]]:
    """Folders of finished runs by arm, of a sweep or of single runs, which are arms each."""
    _check_given(runs)
    if not (runs[0] / KEPT).exists():
        return {name: [folder] for name, folder in zip(_names(runs), runs)}
    sweep = kept_sweep(runs[0])
    found = {arm.name: [run_folder(runs[0], arm, seed) for seed in sweep.seeds] for arm in sweep.arms}
    found = {
        name: [folder for folder in folders if has_checkpoint(folder) and load(folder, trust=trust).finished]
        for name, folders in found.items()
    }
    return {name: folders for name, folders in found.items() if folders}


def nothing_in(out: Path) -> UserError:
    """What to say of the folder of a sweep that has no run to compare."""
    if any(out.glob("trial-*/")):
        return UserError(
            f"{out} holds the trials of a search; compare runs of it, such as {next(out.glob('trial-*/'))}."
        )
    return UserError(f"{out} holds no finished run yet; pyro-delta sweep makes them.")


def _check_given(folders: Sequence[Path]) -> None:
    """Refuses nothing, a sweep among others, and a run given twice, also by another path or a link.

    Raises:
        UserError: saying which.
    """
    if not folders:
        raise UserError("there is nothing to compare; give runs, or the folder of a sweep.")
    same: dict[Path, Path] = {}
    for folder in folders:
        if (folder / KEPT).exists() and len(folders) > 1:
            raise UserError(f"{folder} is a sweep, and compared by itself; give runs, or one sweep.")
        if (before := same.setdefault(folder.resolve(), folder)) is not folder:
            also = "" if before == folder else f", also as {before}"
            raise UserError(f"{folder} is given more than once{also}; give each run once.")


def _has_ended(folder: Path, trust: bool) -> bool:
    """Whether there is a run whose training has come to its end."""
    return has_checkpoint(folder) and (kept(folder) is not None or load(folder, trust=trust).finished)


def _not_alike(sweep: Sweep, out: Path, arms: Sequence[ArmChecks]) -> list[str]:
    """Runs whose settings are not what the sweep says of their arm, or most of its runs have, and by which, in words.

    Own programs that have changed between two runs are said, too. No program is imported.
    """
    found: list[str] = []
    programs: dict[tuple[str, str], set[str]] = {}
    for arm in arms:
        made = {seed: _told(run_folder(out, sweep.arm(arm.name), seed)) for seed in arm.checks}
        for key in dict.fromkeys(key for settings in made.values() for key in settings):
            usual = Counter(settings.get(key, "") for settings in made.values()).most_common(1)[0][0]
            said = sweep.arm(arm.name).settings.get(key)
            if said is not None and not key.endswith(".program"):  # a name may say more: folder:PATH
                usual = json.dumps(said)
            found += (
                f"{arm.name}/seed-{seed} ({key}={settings[key]}, not {usual})"
                for seed, settings in made.items()
                if key in settings and usual and json.loads(settings[key]) != json.loads(usual)
            )
        for seed in arm.checks:
            info = read_info(run_folder(out, sweep.arm(arm.name), seed))
            for kind, record in info.programs.items():
                programs.setdefault((kind, record.name), set()).add(f"{record.digest} {sorted(record.beside.items())}")
    changed = (name for (_, name), versions in programs.items() if len(versions) > 1)
    return [*found, *(f"with {name}, whose files have changed between two runs" for name in changed)]


def _versions(sweep: Sweep, out: Path, arms: Sequence[ArmChecks]) -> list[str]:
    """Of pyro-delta, by which runs were trained: version and commit, where that is known."""
    infos = [read_info(run_folder(out, sweep.arm(arm.name), seed)) for arm in arms for seed in arm.checks]
    return sorted({f"{info.version}{f' ({info.commit[:20]})' if info.commit else ''}" for info in infos})


def _told(folder: Path) -> dict[str, str]:
    """The settings of a run that decide its bound, as they were written down: dotted key → JSON."""
    return {
        f"{section}.{key}": json.dumps(value, sort_keys=True)
        for section, fields in written_sections(folder).items()
        for key, value in fields.items()
        if key not in ASIDE.get(section, ())
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, which is 0 for a single value."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return mean, math.sqrt(variance / len(values))


def _row(arm: ArmChecks, base: ArmChecks | None) -> dict[str, Any]:
    """The numbers of an arm."""
    checks = _paying(arm)
    several = len(checks) > 1
    row: dict[str, Any] = {
        "arm": arm.name,
        "family": arm.family,
        "across": arm.across,
        "seeds": len(checks),
        "errors": "seeds" if several else "data",
    }
    for key in MEANS:
        values = _known(checks, key)
        row[key] = row[f"{key}_se"] = None
        if values:
            row[key], error = mean_and_error(values)
            if not several:
                row[f"{key}_se"] = checks[0].get(f"{key}_se")
            elif len(values) > 1:  # of one value alone there is none
                row[f"{key}_se"] = error
    of = {_data_of(numbers) for numbers in checks}
    row["data"] = " and ".join(sorted(of))
    row["judged_digest"] = _same(numbers["judged_digest"] for numbers in checks)
    row["rate_nats_min"] = min(_known(checks, "rate_nats_min"), default=None)
    row["floor_holds"] = sum(numbers["floor_holds"] is True for numbers in checks)
    row["latents_used"] = sum(bool(numbers["latents_used"]) for numbers in checks)
    row["unfinished"] = sum(numbers.get("finished") is False for numbers in checks)
    row["diverged"] = sum(numbers["neg_elbo_bpd"] is None for numbers in checks)
    return row | _below(arm, base)


def _known(checks: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """A number in those checks that know it."""
    return [numbers[key] for numbers in checks if numbers.get(key) is not None]


def _paying(arm: ArmChecks) -> list[dict[str, Any]]:
    """The numbers of an arm's checks; a decoder that does not hear z pays no rate, whatever its guide and prior do.

    Its −ELBO is its distortion, −log p(x), and a floor of its rate means nothing.
    """
    unpaid: dict[str, Any] = {"rate_nats_mean": 0.0, "rate_nats_mean_se": 0.0}
    unpaid |= dict.fromkeys(("rate_nats_min", "delta_nats", "auxiliary_neg_elbo_bpd"))
    found = []
    for made in arm.checks.values():
        numbers = dict(made.numbers)
        if _is_deaf(made):
            numbers |= unpaid | {f"neg_elbo_bpd{end}": numbers.get(f"distortion_bpd{end}") for end in ("", "_se")}
        found.append(numbers)
    return found


def _is_deaf(check: Kept) -> bool:
    """Whether its decoder does not hear z."""
    return check.numbers["shuffled_gap_nats"] == 0 and check.numbers["shuffled_gap_se"] == 0


def _data_of(numbers: Mapping[str, Any]) -> str:
    """Of what a check is, in words."""
    diverged = numbers.get("neg_elbo_bpd") is None  # then there are no best ones
    last = ", last weights" if numbers.get("weights") == "last" and not diverged else ""
    return f"{numbers['n_images']} data of the {numbers['split']} split{last}"


def _same(values: Iterable[Any]) -> Any:
    """What all values are, None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _below(arm: ArmChecks, base: ArmChecks | None) -> dict[str, Any]:
    """How far distortion and −ELBO lie below those of the baseline, in nats, by datum; None where data differ."""
    found: dict[str, Any] = {"paired_seeds": 0}
    for key in BELOW:
        found |= {key: None, f"{key}_se": None, f"{key}_se_data": None}
    if base is None or arm is base:
        return found
    pairs = [(check, base.checks[seed]) for seed, check in arm.checks.items() if seed in base.checks]
    pairs = [pair for pair in pairs if _of_the_same_data(*pair) and all(map(_is_finite, pair))]
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


def _is_finite(check: Kept) -> bool:
    return bool(np.isfinite(check.rate_b).all() and np.isfinite(check.distortion_b).all())


def _loss(check: Kept, key: str) -> np.ndarray:
    """Distortion or −ELBO of each datum; a decoder that does not hear z pays no rate, p(x | z) = p(x)."""
    return check.distortion_b if key == BELOW[0] or _is_deaf(check) else check.distortion_b + check.rate_b


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


def _notes(
    arms: Sequence[ArmChecks],
    rows: list[dict[str, Any]],
    bases: Mapping[str, ArmChecks | None],
    baseline: str,
    missing: int,
) -> list[str]:
    along = baseline not in [arm.name for arm in arms]
    counts = sorted({len(arm.checks) for arm in arms})
    over = "over the data" if counts == [1] else "over the seeds"
    if len(counts) > 1 and 1 in counts:
        over += ", over the data in arms of one seed"
    data = _same(row["data"] for row in rows)
    if data is None:
        data = "Other data in each: " + "; ".join(f"{row['arm']}, {row['data']}" for row in rows)
    elif not _alike(rows):
        data += ", not the same ones in all rows"
    notes = [f"{data}; standard errors {over}."]
    if any(row["paired_seeds"] for row in rows):
        notes.append(
            f"Below {baseline!r}{' at the same place of the grid' if along else ''}: by datum"
            f"{' and seed' if counts != [1] else ''}; positive is better."
        )
    if missing:
        are = (
            "is not there, or has not come to its end"
            if missing == 1
            else "are not there, or have not come to their end"
        )
        notes.append(f"{missing} of the sweep's runs {are}.")
    asked = {f"{arm.name}/seed-{seed}": otherwise(made.numbers) for arm in arms for seed, made in arm.checks.items()}
    if measured := [f"{name} ({' '.join(words)})" for name, words in asked.items() if words]:
        notes.append(f"Measured otherwise than by default: {', '.join(measured)}.")
    if unfinished := sum(row["unfinished"] for row in rows):
        notes.append(f"{unfinished} {'run has' if unfinished == 1 else 'runs have'} not come to the end.")
    if diverged := [f"{row['arm']} ({row['diverged']} of {row['seeds']})" for row in rows if row["diverged"]]:
        notes.append(f"Diverged, and in no mean: {', '.join(diverged)}.")
    if partly := [words for arm, row in zip(arms, rows) if (words := _partly(arm, row))]:
        notes.append(f"Not known of all runs: {'; '.join(partly)}.")
    if deaf := [arm.name for arm in arms if all(map(_is_deaf, arm.checks.values()))]:
        notes.append(f"Decoders that do not hear z pay no rate, their −ELBO is their distortion: {', '.join(deaf)}.")
    lost = {row["arm"] for row in rows if row["diverged"] == row["seeds"]}
    others = [
        row
        for row in rows
        if (base := bases[row["arm"]]) is not None and base.name != row["arm"] and not {row["arm"], base.name} & lost
    ]
    if apart := [row["arm"] for row in others if not row["paired_seeds"]]:
        notes.append(f"Of other data or seeds, and so not compared by datum: {', '.join(apart)}.")
    fewer = [
        f"{row['arm']} ({row['paired_seeds']} of {row['seeds']}"
        + (", with the error over the data)" if row["paired_seeds"] == 1 else ")")
        for row in others
        if 0 < row["paired_seeds"] < row["seeds"]
    ]
    if fewer:
        notes.append(f"Compared by datum in a part of the runs alone: {', '.join(fewer)}.")
    if len(rows) > 2 and _alike(rows):
        notes.append(
            f"Pareto front of rate and distortion{', at each place' if along else ''}: "
            f"{', '.join(row['arm'] for row in rows if row['on_front'])}."
        )
    return notes


def _partly(arm: ArmChecks, row: Mapping[str, Any]) -> str:
    """Which means are not of all runs of an arm that have not diverged, in words; empty where none is."""
    checks, runs = _paying(arm), row["seeds"] - row["diverged"]
    counts = {key: len(_known(checks, key)) for key in MEANS}
    found = [f"{key} ({count} of {row['seeds']})" for key, count in counts.items() if 0 < count < runs]
    return f"{arm.name}, {', '.join(found)}" if found else ""


def _names(folders: Sequence[Path]) -> list[str]:
    """Short names of runs: their folders' own, or their paths where these are not enough."""
    short = [folder.name or str(folder) for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]
