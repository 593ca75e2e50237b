"""`pyro-delta compare`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import device_option, root_option, trust_option

FORMS = ("text", "json", "csv", "markdown", "latex")


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…|SWEEP", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(FORMS), default="text", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the table there.")
@click.option("--figure", metavar="FILE", help="Draw the rate–distortion plane (.png, .pdf, .svg).")
@device_option
@root_option
@trust_option
def compare(
    runs: tuple[Path, ...],
    form: str,
    out: Path | None,
    figure: str | None,
    device: str,
    data_root: str | None,
    trust: bool,
) -> None:
    """Runs side by side: a row for each run, or for each arm of a sweep, with standard errors over its seeds.

    What lies below the control, or else below the first arm or run, is measured datum by datum. Runs are compared by
    the checks that a sweep, or `check --keep`, has left with them; those without are checked first. Where a [grid] goes
    through all arms of a sweep, the figure shows rate, told and −ELBO along it.

    \b
    pyro-delta compare runs/digits-collapse --format markdown --figure plane.png
    pyro-delta compare runs/first runs/second
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.files import written_whole
    from pyro_delta.report.comparison import compare as compare_runs
    from pyro_delta.report.formats import written

    found = compare_runs(runs, device=device, root=data_root, trust=trust, say=lambda line: click.echo(line, err=True))
    text = written(found, form)
    if figure is not None:
        from pyro_delta.report.comparison_figure import comparison_figure
        from pyro_delta.report.delta_figure import save_figure

        save_figure(figure, comparison_figure(found))
    if out is None:
        click.echo(text, nl=False)
    else:
        with written_whole(out) as file:
            file.write(text.encode())
