"""`pyro-delta interpolate`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    check_out,
    condition_option,
    data_argument,
    device_option,
    json_option,
    open_run,
    other_data_option,
    print_json,
    print_shown,
    read_given,
    root_option,
    run_argument,
    seed_option,
    trust_option,
    weights_option,
)


@click.command()
@run_argument
@data_argument
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The picture (.png), or text (.txt)."
)
@click.option("--steps", type=click.IntRange(min=2), default=8, show_default=True, help="Points of each path.")
@click.option("--pairs", type=click.IntRange(min=1), default=4, show_default=True, help="Paths, each a row.")
@weights_option
@condition_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def interpolate(
    run: Path,
    given: str,
    out: Path,
    steps: int,
    pairs: int,
    weights: str,
    condition: str | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Decodings along the way from the latents of one datum to those of the next, pair by pair.

    The path is spherical in the whitened noise of the prior, and the decoder's own noise is the same all along a row.
    At its ends stand the two data themselves. DATA: train, validation or test, or a file or folder of the same kind.

    \b
    pyro-delta interpolate runs/first test --pairs 4 --out path.png
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.data.captions import shown
    from pyro_delta.diagnostics.drawing import paths
    from pyro_delta.errors import UserError
    from pyro_delta.report.progress import counting

    loaded = open_run(run, device, weights=weights, trust=trust)
    check_out(out, loaded.spec, given)
    found, *_ = read_given(loaded, given, 2 * pairs, data_root, other_data, condition)
    if len(found) < 2 * pairs:
        raise UserError(f"{pairs} pairs take {2 * pairs} data, but {given} has {len(found)}; give fewer --pairs.")
    with counting("decoding", pairs * steps) as advance:
        drawn = paths(loaded.vae, found, steps, seed=seed, advance=advance)
    words = (
        f"Each row: two data of {given}, first and last, and between them {steps} decodings along the way from the "
        "latents of one to those of the other."
    )
    caption = shown(loaded.spec, drawn, out, steps + 2, words)
    if as_json:
        print_json({"file": str(out), "caption": caption, "data": len(found), "seed": seed, **loaded.facts})
    else:
        print_shown(out, caption)
