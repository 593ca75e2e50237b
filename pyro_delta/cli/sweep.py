"""`pyro-delta sweep`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from pyro_delta.cli.options import json_option, new_root_option, print_json, set_option, settings_of, trust_option
from pyro_delta.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from pyro_delta.sweep.file import Sweep


def _names(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Sweeps that begin so; files, if there are none."""
    from pyro_delta.sweep.file import sweep_names

    named = [CompletionItem(name) for name in sweep_names() if name.startswith(typed)]
    return named or [CompletionItem(typed, type="file")]


@click.command()
@click.argument("given", metavar="FILE.toml|NAME", shell_complete=_names)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the sweep (default: runs/NAME).")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Runs at a time.")
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="Seeds 0 to N − 1 (default: the file's).")
@set_option
@click.option(
    "--launcher",
    type=click.Choice(["local", "submitit"]),
    default="local",
    show_default=True,
    help="submitit: jobs of Slurm where it is there, else processes of this machine.",
)
@click.option(
    "--launch",
    "parameters",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of submitit, such as timeout_min=60 or slurm_partition=gpu.",
)
@click.option("--search", type=click.IntRange(min=1), metavar="TRIALS", help="Search the file's [search] by Optuna.")
@new_root_option
@trust_option
@json_option
def sweep(
    given: str,
    out: Path | None,
    jobs: int,
    seeds: int | None,
    pairs: tuple[str, ...],
    launcher: str,
    parameters: tuple[str, ...],
    search: int | None,
    data_root: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Train and check all runs of a sweep, and compare them; what is done already is not repeated.

    Each run is an ordinary folder, OUT/ARM/seed-S, with its check. A sweep that was stopped or killed goes on by the
    same command. Exits with 1 if a run failed; of a search, whose trials may diverge, if none came to its end.

    \b
    pyro-delta sweep digits-collapse --jobs 2
    pyro-delta sweep my_sweep.toml --seeds 5 --set training.steps=500 --out runs/mine
    pyro-delta sweep my_sweep.toml --launcher submitit --jobs 50 --launch slurm_partition=gpu
    pyro-delta sweep my_sweep.toml --search 40 --jobs 4
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.hub import check_no_place
    from pyro_delta.sweep.file import read

    if parameters and launcher != "submitit":
        raise UserError(f"--launch {parameters[0]} is for submitit; add --launcher submitit.")
    if search and launcher == "submitit":
        raise UserError("a search runs on this machine; leave --launcher submitit out.")
    found = read(given, settings_of(pairs, {"data.root": data_root}), seeds)
    if search and (drawn := [pair for pair in pairs if pair.partition("=")[0].strip() in found.search]):
        raise UserError(f"--set {drawn[0]} is drawn by the search; leave it out, or take it from [search].")
    folder = out or Path("runs") / found.name
    check_no_place(folder)
    if search:
        _search(found, folder, search, jobs, as_json)
        return
    if found.search and len(found.arms) == 1 and found.arms[0].name == "base":
        raise UserError(f"the sweep {found.name!r} is a search alone; add --search TRIALS.")
    _run(found, folder, jobs, launcher, parameters, trust, as_json)


def _run(
    sweep: Sweep, out: Path, jobs: int, launcher: str, parameters: tuple[str, ...], trust: bool, as_json: bool
) -> None:
    from pyro_delta.config import parse_settings
    from pyro_delta.report.comparison import compare
    from pyro_delta.report.formats import written
    from pyro_delta.sweep.file import keep
    from pyro_delta.sweep.runs import Launcher, Local, Submitit, run_sweep

    chosen = dict(parse_settings(parameters, "--launch", "timeout_min"))
    if launcher == "submitit":
        with TemporaryDirectory() as elsewhere:  # it makes its folder even where it then refuses
            Submitit(Path(elsewhere), jobs, chosen)
    keep(sweep, out)
    launch: Launcher = Submitit(out, jobs, chosen) if launcher == "submitit" else Local(jobs)
    failed = run_sweep(sweep, out, launch, jobs, say, trust)
    for name, reason in failed.items():
        say(f"{out / name}: {reason}")
    if len(failed) < len(sweep.arms) * len(sweep.seeds):
        click.echo(written(compare(out, say=say, trust=trust), "json" if as_json else "text"), nl=False)
    if failed:
        raise CheckFailed(
            f"{len(failed)} of {len(sweep.arms) * len(sweep.seeds)} runs failed; their logs stand beside their "
            "folders, and the same command tries them again."
        )


def _search(sweep: Sweep, out: Path, trials: int, jobs: int, as_json: bool) -> None:
    from pyro_delta.sweep.search import search

    found = search(sweep, out, trials, jobs, say)
    numbers = {"best": found.best, "neg_elbo_bpd": found.neg_elbo_bpd, "run": str(found.folder), "trials": found.trials}
    if as_json:
        print_json(numbers)
        return
    counts = ", ".join(f"{count} {state}" for state, count in found.trials.items() if count)
    click.echo(f"best of {counts}: {found.neg_elbo_bpd:.4f} in {found.folder}")
    for key, value in found.best.items():
        click.echo(f"  {key} = {value}")


def say(line: str) -> None:
    """Tells how a sweep comes along, on stderr."""
    click.echo(line, err=True)
