"""`pyro-delta crosscheck`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyro_delta.cli.options import (
    json_option,
    open_run,
    other_data_option,
    print_json,
    root_option,
    run_argument,
    seed_option,
    split_option,
    trust_option,
    weights_option,
    with_prior_option,
)
from pyro_delta.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from pyro_delta.twin.crosscheck import Crosscheck


DATA = 32
"""Compared, unless more are asked for."""


@click.command()
@run_argument
@split_option
@click.option(
    "--images", type=click.IntRange(min=1), metavar="N", help="Data, the first of the split (default: 32, or all)."
)
@click.option(
    "--float64",
    is_flag=True,
    help="In double precision, to 1e-9, not 1e-4 (what is stored and not trained: 5e-7).",
)
@with_prior_option
@weights_option
@seed_option
@root_option
@other_data_option
@trust_option
@json_option
def crosscheck(
    run: Path,
    split: str,
    images: int | None,
    float64: bool,
    with_prior: str,
    weights: str,
    seed: int,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Does an independent implementation in NumPyro and JAX find the same numbers for RUN?

    The same weights, data and noise go through both: every term of the ELBO, the committed rate, and the gradient
    by every weight. Exits with 1 if any differs by more than 1e-4 of its size (--float64: 1e-9).

    \b
    pyro-delta crosscheck runs/first
    pyro-delta crosscheck runs/first --images 100 --float64 --json
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.twin import require

    require()
    import torch

    from pyro_delta.twin.build import twin_of_run
    from pyro_delta.twin.crosscheck import crosscheck as compare

    loaded = open_run(run, "cpu", with_prior, weights, trust=trust)
    data = getattr(loaded.data(data_root, other=other_data), split)
    if images is not None and images > len(data):
        raise UserError(f"--images {images}: the {split} split has {len(data)} data; give 1 to {len(data)}.")
    found = compare(
        loaded.vae,
        twin_of_run(loaded, weights=False, example=data.batch(slice(2)) if len(data) > 1 else None),
        data.take(slice(images or DATA)),
        elbo=loaded.config.training.elbo if with_prior == "model" else "trace",
        dtype=torch.float64 if float64 else torch.float32,
        seed=seed,
    )
    if as_json:
        print_json({"split": split, **loaded.facts, **found.asdict()})
    else:
        _print(f"{run}: {found.images} data of the {split} split, {found.precision}", found)
    if found.failure:
        hint = "" if float64 else " --float64 tells a mistake from rounding, as at a clamp."
        raise CheckFailed(found.failure + hint)


def _print(title: str, found: Crosscheck) -> None:
    from pyro_delta.report.tables import print_rows

    rows: list[Sequence[str]] = [("", "Pyro", "NumPyro", "largest relative difference")]
    for term in found.terms:
        values = ["—" if value is None else f"{value:.8g}" for value in (term.pyro, term.numpyro)]
        rows.append((f"{term.term}, nats", *values, f"{term.difference:.2g}"))
    for what, differences in (("gradient of −ELBO", found.gradients), ("fixed number", found.buffers)):
        if differences:
            worst = max(differences, key=lambda name: differences[name])
            rows.append((f"{what}, worst of {len(differences)}: {worst}", "", "", f"{differences[worst]:.2g}"))
    print_rows(title, rows)
