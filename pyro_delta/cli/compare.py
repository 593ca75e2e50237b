"""`pyro-delta compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyro_delta.cli.options import (
    check_spares,
    check_writable,
    device_option,
    json_option,
    root_option,
    trust_option,
)
from pyro_delta.errors import UserError

if TYPE_CHECKING:
    from pyro_delta.report.track import Curve

FORMS = ("text", "json", "csv", "markdown", "latex")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…|SWEEP", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMS), help="Of the table (default: text).")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there.")
@click.option("--figure", metavar="FILE", help="Draw the rate–distortion plane (.png, .pdf, .svg).")
@click.option(
    "--with",
    "beside",
    type=click.Choice(["reference"]),
    help="Instead: how validation came along, beside the recorded trainings.",
)
@device_option
@root_option
@trust_option
@json_option
def compare(
    runs: tuple[Path, ...],
    form: str | None,
    out: Path | None,
    figure: str | None,
    beside: str | None,
    device: str,
    data_root: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """Runs side by side: a row for each run, or for each arm of a sweep, with standard errors over its seeds.

    What lies below the control, or else below the first arm or run, is measured datum by datum. Runs are compared by
    the checks that a sweep, or `check --keep`, has left with them; those without are checked first. Where a [grid] goes
    through all arms of a sweep, the figure shows rate, told and −ELBO along it; where a sweep cites others, all bounds.

    \b
    pyro-delta compare runs/digits-collapse --format markdown --figure plane.png
    pyro-delta compare runs/first runs/second
    pyro-delta compare runs/first --with reference --figure curves.png
    """  # noqa: D301 (click wants the backspace itself)
    if as_json and form not in (None, "json"):
        raise UserError(f"--json and --format {form} contradict each other; give one of them.")
    if beside and (as_json or form or out):
        raise UserError("--with reference prints a table; leave out --json, --format and --out.")
    _check_files([Path(path) for path in (out, figure) if path is not None], runs)
    if beside:
        _curves(runs, figure, trust)
        return
    from pyro_delta.files import written_whole
    from pyro_delta.report.comparison import compare as compare_runs
    from pyro_delta.report.formats import written

    found = compare_runs(runs, device=device, root=data_root, trust=trust, say=lambda line: click.echo(line, err=True))
    text = written(found, "json" if as_json else form or "text")
    if figure is not None:
        from pyro_delta.report.comparison_figure import comparison_figure
        from pyro_delta.report.delta_figure import save_figure

        save_figure(figure, comparison_figure(found))
    if out is None:
        click.echo(text, nl=False)
    else:
        with written_whole(out) as file:
            file.write(text.encode())


def _check_files(files: Sequence[Path], runs: Sequence[Path]) -> None:
    """Refuses what cannot be written, what would take the place of a file of the runs, and one file for two things.

    Raises:
        UserError: naming it.
    """
    for file in files:
        check_writable(file)
        check_spares(file, runs)
    if len({file.resolve() for file in files}) < len(files):
        raise UserError(f"--out and --figure are both {files[0]}; give each a file of its own.")


def _curves(given: tuple[Path, ...], figure: str | None, trust: bool) -> None:
    """How the validations of runs, or of the arms of a sweep, came along, beside those recorded of the same data."""
    from pyro_delta.inference.run import load
    from pyro_delta.report.comparison import finished_runs, nothing_in
    from pyro_delta.report.delta_figure import save_figure
    from pyro_delta.report.tables import print_rows
    from pyro_delta.report.track import counted, curve_of, curves, of_same_data, validation_rows, validations
    from pyro_delta.report.track_figure import track_figure

    arms = finished_runs(given, trust).items()
    own: list[Curve] = []
    recorded: dict[str, Curve] = {}
    for name, folders in arms:
        loaded = {folder: load(folder, trust=trust) for folder in folders}
        known = {folder: run for folder, run in loaded.items() if validations(run.metrics)}
        for folder in loaded:
            if folder not in known:
                click.echo(
                    f"pyro-delta: without {folder}, which has no bound: it diverged, or validated never.", err=True
                )
        if not known:
            continue
        runs = list(known.values())
        kinds = {name: runs}
        if not set.intersection(*(set(validations(run.metrics)) for run in runs)):
            # Trainings of so many minutes are validated at steps of their own, and stand by themselves.
            kinds = {f"{name}, {folder.name}": [run] for folder, run in known.items()}
        own += [counted(curve_of(kind, of_kind, ""), of_kind[0]) for kind, of_kind in kinds.items()]
        recorded |= {curve.name: counted(curve, runs[0]) for curve in of_same_data(curves(), runs[0].config)}
    if not own:
        raise nothing_in(given[0])
    if not recorded:
        click.echo("pyro-delta: of these data, with these settings of theirs, no training was recorded.", err=True)
    if figure is not None:
        save_figure(figure, track_figure(own, list(recorded.values())))
    print_rows("−ELBO of the validation split", validation_rows(own, list(recorded.values())))
