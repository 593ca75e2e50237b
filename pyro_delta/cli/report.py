"""`pyro-delta report`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    check_spares,
    check_writable,
    device_option,
    images_option,
    json_option,
    open_run,
    other_data_option,
    print_json,
    root_option,
    seed_option,
    trust_option,
)

PAGE = "report.html"


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Default: {PAGE} in RUN; of several runs it must be said.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A run without latents, of the same data, to stand beside it.",
)
@images_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def report(
    runs: tuple[Path, ...],
    out: Path | None,
    control: Path | None,
    images: int | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """RUN as one page: what was trained, what `check` says of it, how it came, what its latents hold and it draws.

    The page is one file, which needs no network. It shows the check that was kept with the run; where there is none, or
    it is of other weights or another control, the check is made now, of --images test data, or of all, and kept if it
    is the first. Several runs stand side by side.

    \b
    pyro-delta report runs/first
    pyro-delta report runs/first --control runs/first-control --out first.html
    pyro-delta report runs/first runs/second --out both.html
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.errors import UserError
    from pyro_delta.files import written_whole
    from pyro_delta.hub import check_here
    from pyro_delta.lock import check_no_links

    if len(runs) > 1 and (out is None or control is not None or images is not None):
        wrong = "--out FILE is missing" if out is None else "--control and --images go with one run"
        raise UserError(f"of {len(runs)} runs {wrong}; pyro-delta report RUN RUN --out FILE.")
    if out is None:
        check_here(runs[0], "report without --out FILE")
        out = runs[0] / PAGE
        if runs[0].is_dir():
            check_no_links(runs[0])
    if out.parent.is_dir() or out.parent != runs[0]:  # that there is no such run is said below
        check_writable(out)
    check_spares(out, runs)
    verdict: str | None = None
    failed: str | None = None
    if len(runs) > 1:
        text = _of_several(runs, device, data_root, trust)
    else:
        text, verdict, failed = _of_one(runs[0], control, images, seed, device, data_root, other_data, trust)
    with written_whole(out) as file:
        file.write(text.encode())
    if as_json:
        print_json({"file": str(out), "bytes": len(text.encode()), "verdict": verdict, "failure": failed})
    else:
        click.echo(str(out))


def write_page(run: Path, control: Path | None, device: str) -> Path:
    """Writes the page of a run that has just been trained, beside its control if it has one; makes its check."""
    from pyro_delta.files import written_whole
    from pyro_delta.lock import check_no_links

    check_no_links(run)
    text, _, _ = _of_one(run, control, None, 0, device, None, False, False)
    with written_whole(run / PAGE) as file:
        file.write(text.encode())
    return run / PAGE


def _of_one(
    run: Path,
    control: Path | None,
    images: int | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
) -> tuple[str, str, str | None]:
    """The page of a run, the verdict of its check, and why that fails, if it does."""
    from functools import partial

    from pyro_delta.api.kept import failure_of
    from pyro_delta.report.progress import counting
    from pyro_delta.report.written import page_of

    loaded = open_run(run, device, trust=trust)
    other = None if control is None else open_run(control, device, trust=trust)
    text, numbers = page_of(
        loaded,
        loaded.data(data_root, other=other_data),
        named=str(run),
        control=other,
        images=images,
        seed=seed,
        other_data=other_data,
        counting=partial(counting, "checking"),
    )
    return text, numbers["verdict"], failure_of(numbers)


def _of_several(runs: tuple[Path, ...], device: str, data_root: str | None, trust: bool) -> str:
    from pyro_delta.report.comparison import compare
    from pyro_delta.report.page import page_of_runs

    found = compare(runs, device=device, root=data_root, trust=trust, say=lambda line: click.echo(line, err=True))
    return page_of_runs(found, {str(run): open_run(run, device, trust=trust) for run in runs})
