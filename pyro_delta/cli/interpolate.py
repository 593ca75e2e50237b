"""`pyro-delta interpolate`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    choose_device,
    device_option,
    images_argument,
    read_images,
    root_option,
    run_argument,
    seed_option,
)


@click.command()
@run_argument
@images_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.png", help="The picture.")
@click.option("--steps", type=click.IntRange(min=2), default=8, show_default=True, help="Points of each path.")
@click.option("--pairs", type=click.IntRange(min=1), default=4, show_default=True, help="Paths, each a row.")
@seed_option
@device_option
@root_option
def interpolate(
    run: Path, images: str, out: Path, steps: int, pairs: int, seed: int, device: str, data_root: str | None
) -> None:
    """Decodings along the way from the latents of one image to those of the next, pair by pair.

    The path is spherical in the whitened noise of the prior, and the decoder's own noise is the same all along a row.
    At its ends stand the two images themselves. IMAGES: a folder of pictures, or train, validation or test.

    \b
    pyro-delta interpolate runs/first test --pairs 4 --out path.png
    """  # noqa: D301 (click wants the backspace itself)
    import torch

    from pyro_delta.errors import UserError
    from pyro_delta.evaluation.latents import interpolate as path_between
    from pyro_delta.evaluation.usage import sample_latents
    from pyro_delta.inference.run import load
    from pyro_delta.report.pictures import check_png, decode, grid, save_png
    from pyro_delta.report.progress import counting

    check_png(out)
    loaded = load(run, choose_device(device))
    found, _ = read_images(loaded, images, 2 * pairs, data_root)
    if len(found) < 2 * pairs:
        raise UserError(f"{pairs} pairs take {2 * pairs} images, but {images} has {len(found)}; give fewer --pairs.")
    z_bnd = sample_latents(loaded.programs, found, seed=seed)
    prior, place = loaded.programs.model.prior(), loaded.programs.model.prior.first_row.device
    rows = []
    with counting("decoding", pairs * steps) as advance:
        for pair in range(pairs):
            a, b = 2 * pair, 2 * pair + 1
            path_snd = path_between(prior, z_bnd[a].to(place), z_bnd[b].to(place), steps)
            drawn = decode(loaded.programs, path_snd, seed=seed + pair, same_noise=True, advance=advance)
            rows.append(torch.cat((found[a : a + 1].long(), drawn, found[b : b + 1].long())))
    save_png(grid(torch.cat(rows), loaded.spec.levels, steps + 2), out)
    click.echo(str(out))
