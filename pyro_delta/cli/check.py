"""`pyro-delta check`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    choose_device,
    device_option,
    json_option,
    load_data_of,
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
    """Does the KL of RUN keep above δ on every image, and do its latents carry information?

    Exits with 0 only if both hold, with 1 if not.
    """
    from pyro_delta.evaluation.usage import check as check_split
    from pyro_delta.evaluation.usage import failure
    from pyro_delta.inference.run import load
    from pyro_delta.report.progress import counting
    from pyro_delta.report.tables import print_table

    loaded = load(run, choose_device(device))
    data = load_data_of(loaded, data_root)
    with counting("checking", 2 * len(data.split(split))) as advance:
        numbers = check_split(loaded.programs, data, split=split, advance=advance)
    if as_json:
        print_json({"split": split, **numbers})
    else:
        print_table(f"{run}: {split} split", numbers)
    if reason := failure(numbers):
        raise CheckFailed(reason)
