"""`pyro-delta check`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    device_option,
    images_option,
    json_option,
    next_command,
    open_run,
    other_data_option,
    print_json,
    root_option,
    run_argument,
    seed_option,
    split_option,
    title_of_numbers,
    trust_option,
    warn,
    weights_option,
)
from pyro_delta.errors import CheckFailed


@click.command()
@run_argument
@split_option
@images_option
@click.option(
    "--told-samples",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    metavar="M",
    help="Samples z among which the decoder must find each datum's own: ln M nats at most.",
)
@click.option(
    "--told-images",
    type=click.IntRange(min=4),
    default=256,
    show_default=True,
    metavar="N",
    help="Data of that; it takes M·N passes of the decoder.",
)
@click.option(
    "--control",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A run without latents, of the same data: what do the latents buy?",
)
@click.option("--keep", "keeping", is_flag=True, help="Leave the numbers in RUN, in the place of others.")
@weights_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def check(
    run: Path,
    split: str,
    images: int | None,
    told_samples: int,
    told_images: int,
    control: Path | None,
    keeping: bool,
    weights: str,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Does the KL of RUN keep above δ for every datum, and do its latents carry information?

    Exits with 0 only if both hold and the training came to its end, with 1 if not; a control has no latents to check,
    which a sentence says, and exits with 1. What counts as information is what
    z tells the decoder, calibrated: its lower 99 % bound must exceed 0.1 nats. The first check of a finished run by its
    whole test split stays with it, for its page and `pyro-delta compare`.

    \b
    pyro-delta check runs/first
    pyro-delta check runs/first --images 1000 --json
    pyro-delta check runs/first --control runs/first-control
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.api.judge import check as check_run
    from pyro_delta.api.kept import keep, keepable, kept, unasked
    from pyro_delta.diagnostics.diagnose import passes
    from pyro_delta.hub import check_here
    from pyro_delta.report.progress import counting
    from pyro_delta.report.tables import print_table

    if keeping:
        check_here(run, "check --keep")
    loaded = open_run(run, device, weights=weights, trust=trust)
    other = None if control is None else open_run(control, device, weights=weights, trust=trust)
    data = loaded.data(data_root, other=other_data)
    count = len(getattr(data, split)) if images is None else images
    total = passes(count, control=other is not None, samples=told_samples, images=told_images)
    with counting("checking", total) as advance:
        found = check_run(
            loaded,
            data=data,
            split=split,
            images=images,
            control=other,
            seed=seed,
            advance=advance,
            told_samples=told_samples,
            told_images=told_images,
        )
    if as_json:
        print_json({**found.asdict(), "failure": found.failure})
    else:
        print_table(title_of_numbers(run, found.numbers), found.numbers, found.unit)
        click.echo(found.advice)
        next_command("report", run, *(() if control is None else ("--control", control)))
    whole = images is None and split == "test" and weights == "best"
    if keeping:
        keep(loaded, found)
    elif whole and keepable(loaded, run, found.numbers):
        with unasked(loaded, warn):
            if kept(run) is None:
                keep(loaded, found)
    if found.failure:
        raise CheckFailed(found.failure)
