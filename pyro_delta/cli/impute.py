"""`pyro-delta impute`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyro_delta.cli.completion import completed, completion_options, opened
from pyro_delta.cli.options import data_argument, run_argument


@click.command()
@run_argument
@data_argument
@click.option(
    "--hide", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="PART", help="Of what is known, too."
)
@completion_options
def impute(run: Path, given: str, hide: float | None, seed: int, **options: Any) -> None:
    """Draws the missing numbers of series, DATA, given all others, those of later positions among them.

    K particles draw z from the prior and the guide, and what is missing from the decoder, and are weighted by the
    likelihood of the rest: as K grows, completions become draws from p(missing | known). With --hide a random part of
    the known numbers is hidden, too, and the draws are compared with them, beside the last value and linear
    interpolation. FILE.csv has all draws of each series, and a picture beside it bands. DATA: train, validation or
    test, or a .csv or .npz file.

    \b
    pyro-delta impute runs/vowels test --hide 0.2 --out imputed.csv
    """  # noqa: D301 (click wants the backspace itself)
    import torch

    from pyro_delta.errors import UserError

    out, more = options.pop("out"), {name: options.pop(name) for name in ("particles", "draws", "as_json")}
    loaded, spec, found, names, known = opened(run, given, out, **options)
    keep = known
    if hide is not None:
        noise = torch.rand(known.shape, generator=torch.Generator().manual_seed(seed))
        keep = known & (noise >= hide)
    lengths = found.extras["lengths"]
    inside = (torch.arange(spec.length) < lengths.unsqueeze(-1)).unsqueeze(-1)
    if not (inside & ~keep).any():
        raise UserError(f"nothing is missing in the series of {given}; hide some of it, as by --hide 0.2.")
    completed(loaded, spec, found, names, known, keep, lengths.tolist(), out, seed=seed, **more)
