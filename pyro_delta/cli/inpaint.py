"""`pyro-delta inpaint`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    choose_device,
    device_option,
    images_argument,
    json_option,
    print_json,
    read_images,
    root_option,
    run_argument,
    seed_option,
)


@click.command()
@run_argument
@images_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.png", help="The picture.")
@click.option("--rows", type=click.IntRange(min=1), help="Keep the upper so many rows (default: half of them).")
@click.option("--mask", type=click.Path(path_type=Path), metavar="FILE.png", help="Keep where this picture is white.")
@click.option("--num", type=click.IntRange(min=1), default=4, show_default=True, help="The first so many images.")
@click.option("--particles", type=click.IntRange(min=1), default=64, show_default=True, help="K of each image.")
@click.option("--completions", type=click.IntRange(min=1), default=4, show_default=True, help="Of each image.")
@seed_option
@device_option
@root_option
@json_option
def inpaint(
    run: Path,
    images: str,
    out: Path,
    rows: int | None,
    mask: Path | None,
    num: int,
    particles: int,
    completions: int,
    seed: int,
    device: str,
    data_root: str | None,
    as_json: bool,
) -> None:
    """Completes IMAGES of which some pixels are kept: each column an image, what is kept of it, and completions.

    K particles draw z from the prior and the missing pixels from the decoder, and are weighted by the likelihood of the
    kept ones. Asymptotically exact: as K grows, completions become draws from p(missing | kept). The effective sample
    size, 1 to K, tells how near that is. IMAGES: a picture, a folder of pictures, or train, validation or test.

    \b
    pyro-delta inpaint runs/first test --rows 4 --particles 256 --out completed.png
    """  # noqa: D301 (click wants the backspace itself)
    import torch

    from pyro_delta.data.folder import read_pictures
    from pyro_delta.errors import UserError
    from pyro_delta.evaluation.inpainting import inpaint as complete
    from pyro_delta.inference.run import load
    from pyro_delta.report.pictures import check_png, grid, save_png
    from pyro_delta.report.progress import counting

    check_png(out)
    if rows is not None and mask is not None:
        raise UserError(f"--rows {rows} and --mask {mask} contradict each other; give one of them.")
    loaded = load(run, choose_device(device))
    height, width = loaded.spec.height, loaded.spec.width
    if mask is None:
        if rows is not None and rows >= height:
            raise UserError(f"--rows {rows} leaves nothing to complete in images of {height} rows; give fewer.")
        keep_hw = (torch.arange(height) < (rows or height // 2))[:, None].expand(height, width)
    else:
        picture = read_pictures(mask)[0][0]
        if picture.shape[1:] != (height, width):
            size = tuple(picture.shape[1:])
            raise UserError(f"the mask {mask} is {size}, the images are {(height, width)}; bring it to their size.")
        keep_hw = (picture > 127).all(0)
        if keep_hw.all():
            raise UserError(
                f"the mask {mask} is white all over, which leaves nothing to complete; paint some of it black."
            )
    found, names = read_images(loaded, images, num, data_root)
    columns, sizes = [], []
    with counting("completing", len(found[:num])) as advance:
        for image in found[:num].long():
            done = complete(loaded.programs, image, keep_hw, particles=particles, completions=completions, seed=seed)
            columns.append(torch.cat((image[None], (image * keep_hw)[None], done.images)))
            sizes.append(done.effective_sample_size)
            advance(1)
    picture = grid(torch.stack(columns, dim=1).flatten(0, 1), loaded.spec.levels, len(columns))
    save_png(picture, out)
    if as_json:
        print_json({"picture": str(out), "particles": particles, "effective_sample_size": dict(zip(names, sizes))})
    else:
        click.echo(f"{out}: effective sample size of {particles}: " + ", ".join(f"{size:.1f}" for size in sizes))
