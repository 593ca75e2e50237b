"""`pyro-delta inpaint`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.completion import too_few
from pyro_delta.cli.options import (
    check_apart,
    condition_option,
    data_argument,
    device_option,
    json_option,
    open_run,
    other_data_option,
    print_json,
    read_given,
    root_option,
    run_argument,
    seed_option,
    trust_option,
    weights_option,
)

OF_ROWS = (
    "their completions go on from one z, exactly given it and the kept rows, but it is far from a draw from "
    "p(z | kept): take more --particles, or keep fewer --rows."
)
OF_MASKS = (
    "their completions are alike, and far from draws from p(missing | kept): take more --particles, keep fewer pixels, "
    "or keep whole upper --rows, behind which all is drawn exactly given z."
)
"""What it means that too few particles count, and what helps."""


@click.command()
@run_argument
@data_argument
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FILE.png", help="The picture.")
@click.option("--rows", type=click.IntRange(min=1), help="Keep the upper so many rows (default: half of them).")
@click.option("--mask", type=click.Path(path_type=Path), metavar="FILE.png", help="Keep where this picture is white.")
@click.option("--num", type=click.IntRange(min=1), default=4, show_default=True, help="The first so many images.")
@click.option("--particles", type=click.IntRange(min=1), default=64, show_default=True, help="K of each image.")
@click.option("--completions", type=click.IntRange(min=1), default=4, show_default=True, help="Of each image.")
@weights_option
@condition_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def inpaint(
    run: Path,
    given: str,
    out: Path,
    rows: int | None,
    mask: Path | None,
    num: int,
    particles: int,
    completions: int,
    weights: str,
    condition: str | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Completes images, DATA, of which some pixels are kept: each column an image, what is kept of it, and completions.

    K particles draw z from the prior and the missing pixels from the decoder, and are weighted by the likelihood of the
    kept ones; what lies behind the last kept pixel is drawn anew for each completion. Asymptotically exact: as K grows,
    completions become draws from p(missing | kept). The effective sample size, 1 to K, tells how near that is.
    DATA: a picture, a folder of pictures, or train, validation or test.

    \b
    pyro-delta inpaint runs/first test --rows 4 --particles 256 --out completed.png
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.data.captions import describe
    from pyro_delta.data.condition import KEY
    from pyro_delta.data.images.pictures import check_png, grid, save_png
    from pyro_delta.data.images.spec import ImageSpec
    from pyro_delta.diagnostics.images.inpainting import completion_sheet, mask_of_picture, upper_rows
    from pyro_delta.diagnostics.images.inpainting import inpaint as complete
    from pyro_delta.errors import UserError
    from pyro_delta.hub import check_no_place
    from pyro_delta.report.progress import counting

    check_no_place(out)
    check_png(out)
    check_apart(out, given, mask)
    if rows is not None and mask is not None:
        raise UserError(f"--rows {rows} and --mask {mask} contradict each other; give one of them.")
    loaded = open_run(run, device, weights=weights, trust=trust)
    spec = loaded.spec
    if not isinstance(spec, ImageSpec):
        raise UserError(
            f"images are completed, not data of {type(spec).__name__}; give a run that was made for images."
        )
    keep_hw = upper_rows(spec, rows) if mask is None else mask_of_picture(mask, spec)
    found, names, _ = read_given(loaded, given, num, data_root, other_data, condition)
    completed = []
    with counting("completing", len(found)) as advance:
        for i, image in enumerate(found.x[:].long()):
            given_one = found.extras[KEY][i : i + 1] if KEY in found.extras else None
            options = {"particles": particles, "completions": completions, "seed": seed}
            completed.append(complete(loaded.vae, image, keep_hw, condition=given_one, **options))
            advance(1)
    sheet, hidden = completion_sheet(found.x[:], keep_hw, completed)
    save_png(grid(sheet, spec.levels, len(found), hidden), out)
    caption = (
        f"Each column: an image of {given}, what is kept of it beside magenta, and {completions} "
        f"completion{'s' * (completions > 1)}."
    )
    describe(out, caption)
    sizes = [done.effective_sample_size for done in completed]
    warning = too_few(sizes, "images", OF_ROWS if mask is None else OF_MASKS)
    if as_json:
        found_sizes = dict(zip(names, sizes))
        facts = {"picture": str(out), "caption": caption, "warning": warning, "particles": particles, **loaded.facts}
        print_json({**facts, "effective_sample_size": found_sizes})
    else:
        click.echo(f"{out}: effective sample size of {particles}: " + ", ".join(f"{size:.1f}" for size in sizes))
        click.echo(caption)
        if warning:
            click.echo(warning)
