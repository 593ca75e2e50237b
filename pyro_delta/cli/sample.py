"""`pyro-delta sample`."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import click

from pyro_delta.cli.options import (
    backend_option,
    choose_device,
    device_option,
    json_option,
    print_json,
    run_argument,
    seed_option,
    with_prior_option,
)


@click.command()
@run_argument
@click.option("--num", type=click.IntRange(min=1), required=True, help="Images, or columns with --same-z.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.png", help="The picture.")
@click.option("--same-z", type=click.IntRange(min=1), metavar="R", help="R decodings of each latent, in its column.")
@with_prior_option
@backend_option
@seed_option
@device_option
@json_option
def sample(
    run: Path,
    num: int,
    out: Path,
    same_z: int | None,
    with_prior: str,
    backend: str,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Draw images from RUN into a grid.

    Both backends turn the same noise into images; in single precision a rounding may tip a pixel, and all after it.

    \b
    pyro-delta sample runs/first --num 16 --out samples.png
    pyro-delta sample runs/first --num 8 --same-z 4 --out same_z.png
    pyro-delta sample runs/first --num 16 --backend numpyro --out twin.png
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.inference.run import load
    from pyro_delta.report.pictures import check_png, draw, grid, save_png
    from pyro_delta.report.progress import counting

    check_png(out)
    if backend == "numpyro":
        from pyro_delta.twin import require

        require()
        from pyro_delta.twin.programs import compute_on, twin_of_run
        from pyro_delta.twin.sampling import draw as draw_by_twin

        compute_on(device)
        loaded = load(run, "cpu", with_prior)
        draw_from_run = partial(draw_by_twin, twin_of_run(loaded, run))
    else:
        loaded = load(run, choose_device(device), with_prior)
        draw_from_run = partial(draw, loaded.programs)
    with counting("sampling", num * (same_z or 1)) as advance:
        images = draw_from_run(num, decodings=same_z, seed=seed, advance=advance)
    columns = math.ceil(math.sqrt(num)) if same_z is None else num
    save_png(grid(images, loaded.spec.levels, columns), out)
    if as_json:
        print_json({"picture": str(out), "images": len(images), "columns": columns, "seed": seed})
    else:
        click.echo(str(out))
