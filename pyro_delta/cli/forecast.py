"""`pyro-delta forecast`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyro_delta.cli.completion import completed, completion_options, opened
from pyro_delta.cli.options import data_argument, run_argument


@click.command()
@run_argument
@data_argument
@click.option("--keep", type=click.IntRange(min=1), metavar="K", help="The first so many positions of each series.")
@click.option("--horizon", type=click.IntRange(min=1), metavar="H", help="Draw so many positions after them.")
@completion_options
def forecast(run: Path, given: str, keep: int | None, horizon: int | None, seed: int, **options: Any) -> None:
    """Draws how series, DATA, go on after the positions that are kept.

    Without --horizon, to the end of each series, half of which is kept unless --keep says more; with --horizon alone,
    from the end on. Exact by autoregression given z, which the kept positions are evidence of: K particles draw its
    steps up to there from the prior and the guide, weighted, and later ones from the prior. What is known of the drawn
    positions judges them, beside the last value. FILE.csv has all draws of each series, and a picture beside it bands.
    DATA: train, validation or test, or a .csv or .npz file.

    \b
    pyro-delta forecast runs/vowels test --keep 6 --out forecast.csv
    """  # noqa: D301 (click wants the backspace itself)
    import torch

    from pyro_delta.errors import UserError

    out, more = options.pop("out"), {name: options.pop(name) for name in ("particles", "draws", "as_json")}
    loaded, spec, found, names, known = opened(run, given, out, **options)
    ends, kept = found.extras["lengths"].tolist(), []
    for name, end in zip(names, ends, strict=True):
        kept.append(keep or (end if horizon else (end + 1) // 2))
        if kept[-1] > end:
            raise UserError(f"{name} has {end} positions, of which {kept[-1]} cannot be kept; give a smaller --keep.")
        if horizon is None and kept[-1] == end:
            raise UserError(
                f"{name} has {end} positions, which leaves nothing to draw after {kept[-1]}; give a smaller --keep, or "
                "a --horizon."
            )
    lengths = [first + horizon for first in kept] if horizon else ends
    if max(lengths) > spec.length:
        raise UserError(
            f"--horizon {horizon} goes on to {max(lengths)} positions, and series of this model have {spec.length} at "
            "most; give a smaller one."
        )
    before = torch.arange(spec.length) < torch.tensor(kept).unsqueeze(-1)
    completed(loaded, spec, found, names, known, known & before.unsqueeze(-1), lengths, out, seed=seed, **more)
