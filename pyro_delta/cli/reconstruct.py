"""`pyro-delta reconstruct`."""

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
@click.option("--num", type=click.IntRange(min=1), default=8, show_default=True, help="The first so many images.")
@click.option("--decodings", type=click.IntRange(min=1), default=3, show_default=True, help="Of each image's z.")
@seed_option
@device_option
@root_option
def reconstruct(
    run: Path, images: str, out: Path, num: int, decodings: int, seed: int, device: str, data_root: str | None
) -> None:
    """Images and, below each, what the decoder of RUN makes of one sample of its latents.

    What z says returns in every decoding; what it does not say is drawn anew. IMAGES: a picture, a folder of pictures,
    or train, validation or test.

    \b
    pyro-delta reconstruct runs/first test --num 8 --out reconstructions.png
    """  # noqa: D301 (click wants the backspace itself)
    import torch

    from pyro_delta.evaluation.usage import sample_latents
    from pyro_delta.inference.run import load
    from pyro_delta.report.pictures import check_png, decode, grid, save_png
    from pyro_delta.report.progress import counting

    check_png(out)
    loaded = load(run, choose_device(device))
    found, _ = read_images(loaded, images, num, data_root)
    z_bnd = sample_latents(loaded.programs, found[:num], seed=seed)
    with counting("decoding", len(z_bnd) * decodings) as advance:
        drawn = decode(loaded.programs, z_bnd.repeat(decodings, 1, 1), seed=seed, advance=advance)
    save_png(grid(torch.cat((found[:num].long(), drawn)), loaded.spec.levels, len(z_bnd)), out)
    click.echo(str(out))
