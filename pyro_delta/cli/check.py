"""`pyro-delta check`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    device_option,
    json_option,
    print_json,
    root_option,
    run_argument,
    split_option,
)
from pyro_delta.errors import CheckFailed


@click.command()
@run_argument
@split_option
@device_option
@root_option
@json_option
def check(run: Path, split: str, device: str, data_root: str | None, as_json: bool) -> None:
    """Does the KL of RUN keep above δ for every datum, and do its latents carry information?

    Exits with 0 only if both hold, with 1 if not.
    """
    from pyro_delta.api.judge import check as check_run
    from pyro_delta.api.train import choose_device
    from pyro_delta.inference.run import load
    from pyro_delta.report.progress import counting
    from pyro_delta.report.tables import print_table

    loaded = load(run, choose_device(device))
    data = loaded.data(data_root)
    part = getattr(data, split)
    with counting("checking", 2 * len(part)) as advance:
        found = check_run(loaded, data=data, split=split, advance=advance)
    if as_json:
        print_json({"split": split, **found.asdict()})
    else:
        print_table(f"{run}: {split} split", found.numbers, found.unit)
        click.echo(found.advice)
    if found.failure:
        raise CheckFailed(found.failure)
