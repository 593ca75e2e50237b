"""`pyro-delta reconstruct`."""

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
@click.option("--num", type=click.IntRange(min=1), default=8, show_default=True, help="The first so many data.")
@click.option("--decodings", type=click.IntRange(min=1), default=3, show_default=True, help="Of each datum's z.")
@weights_option
@condition_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def reconstruct(
    run: Path,
    given: str,
    out: Path,
    num: int,
    decodings: int,
    weights: str,
    condition: str | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Data and, below each, what the decoder of RUN makes of one sample of its latents.

    What z says returns in every decoding; what it does not say is drawn anew. DATA: train, validation or test,
    or a file or folder of the same kind.

    \b
    pyro-delta reconstruct runs/first test --num 8 --out reconstructions.png
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.data.captions import shown
    from pyro_delta.diagnostics.drawing import reconstructions
    from pyro_delta.report.progress import counting

    loaded = open_run(run, device, weights=weights, trust=trust)
    check_out(out, loaded.spec, given)
    found, *_ = read_given(loaded, given, num, data_root, other_data, condition)
    with counting("decoding", len(found) * decodings) as advance:
        drawn = reconstructions(loaded.vae, found, decodings, seed=seed, advance=advance)
    words = (
        f"Each column: a datum of {given}, and below it {decodings} decoding{'s' * (decodings > 1)} of one "
        "sample of its latents."
    )
    caption = shown(loaded.spec, drawn, out, len(found), words)
    if as_json:
        print_json({"file": str(out), "caption": caption, "data": len(found), "seed": seed, **loaded.facts})
    else:
        print_shown(out, caption)
