"""`pyro-delta evaluate`."""

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
    with_prior_option,
)
from pyro_delta.errors import UserError


@click.command()
@run_argument
@split_option
@click.option("--particles", type=click.IntRange(min=1), default=1, help="K > 1 adds the importance-weighted bound.")
@with_prior_option
@click.option("--images", type=click.IntRange(min=1), help="Of the split, for that bound alone (default: all).")
@device_option
@root_option
@json_option
def evaluate(
    run: Path,
    split: str,
    particles: int,
    with_prior: str,
    images: int | None,
    device: str,
    data_root: str | None,
    as_json: bool,
) -> None:
    """Bounds on the likelihood, rate and distortion of RUN over a whole split, with standard errors.

    \b
    pyro-delta evaluate runs/first
    pyro-delta evaluate runs/first --particles 100 --images 200 --json
    pyro-delta evaluate runs/first --with-prior auxiliary
    """  # noqa: D301 (click wants the backspace itself)
    if images is not None and particles == 1:
        raise UserError(f"--images {images} goes with --particles K, K > 1; the rest always takes the whole split.")
    from pyro_delta.api.train import choose_device
    from pyro_delta.diagnostics.bounds import evaluate as evaluate_split
    from pyro_delta.inference.run import load
    from pyro_delta.report.progress import counting
    from pyro_delta.report.tables import print_table

    loaded = load(run, choose_device(device), with_prior)
    part = getattr(loaded.data(data_root), split)
    total = len(part) + (0 if particles == 1 else min(images or len(part), len(part)))
    with counting("evaluating", total) as advance:
        numbers = evaluate_split(
            loaded.vae, part, spec=loaded.spec, particles=particles, images=images, advance=advance
        )
    if as_json:
        print_json({"split": split, "unit": loaded.spec.unit, **numbers})
    else:
        print_table(f"{run}: {split} split", numbers, loaded.spec.unit)
