"""`pyro-delta sample`."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import click

from pyro_delta.cli.options import (
    backend_option,
    check_out,
    condition_given,
    condition_option,
    device_option,
    json_option,
    open_run,
    other_data_option,
    print_json,
    print_shown,
    root_option,
    run_argument,
    seed_option,
    trust_option,
    weights_option,
    with_prior_option,
)


@click.command()
@run_argument
@click.option("--num", type=click.IntRange(min=1), required=True, help="How many, or columns with --same-z.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The picture (.png), or text (.txt)."
)
@click.option("--same-z", type=click.IntRange(min=1), metavar="R", help="R decodings of each latent, in its column.")
@click.option(
    "--temperature",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    metavar="T",
    help="Of the decoder: below 1, less of what is unlikely.",
)
@with_prior_option
@weights_option
@backend_option
@condition_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def sample(
    run: Path,
    num: int,
    out: Path,
    same_z: int | None,
    temperature: float,
    with_prior: str,
    weights: str,
    backend: str,
    condition: str | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Draw data from RUN: a grid of images, lines of text.

    A likelihood that must be told more than z, such as lengths, is told those of the test split (of what these lack,
    nothing is missing in what is drawn); one that is conditioned on classes, these in turn.

    A decoder that has learned for minutes may draw what no datum has, and run off from there: a --temperature below 1
    keeps it from that, and what is drawn is no longer distributed as the model is.

    Both backends turn the same noise into data; in single precision a rounding may tip a pixel, and all after it.

    \b
    pyro-delta sample runs/first --num 16 --out samples.png
    pyro-delta sample runs/first --num 8 --same-z 4 --out same_z.png
    pyro-delta sample runs/first --num 16 --temperature 0.9 --out likely.png
    pyro-delta sample runs/first --num 16 --backend numpyro --out twin.png
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.data.captions import shown
    from pyro_delta.data.condition import KEY, condition_of, some_conditions
    from pyro_delta.diagnostics.drawing import draw, extras_of, is_told
    from pyro_delta.errors import UserError
    from pyro_delta.report.progress import counting

    if math.isnan(temperature):  # which passes every range
        raise UserError("--temperature nan is no number; give one from 0.01 to 100.")
    if backend == "numpyro":
        if temperature != 1:
            raise UserError("--temperature goes with Pyro's programs; leave it or --backend numpyro out.")
        from pyro_delta.twin import require

        require()
        from pyro_delta.twin.build import compute_on, twin_of_run
        from pyro_delta.twin.sampling import draw as draw_by_twin

        compute_on(device)
    loaded = open_run(run, "cpu" if backend == "numpyro" else device, with_prior, weights, trust=trust)
    told = is_told(loaded.vae, loaded.spec, condition_given=condition is not None)
    extras = dict(extras_of(loaded.data(data_root, other=other_data).test, num)) if told else {}
    known = condition_of(loaded.spec)
    in_turn = known is not None and bool(known.classes) and condition is None
    if condition is not None:
        extras[KEY] = condition_given(loaded, condition, num)
    elif in_turn or not told:
        extras |= some_conditions(loaded.spec, num)
    if backend == "numpyro":
        draw_from_run = partial(draw_by_twin, twin_of_run(loaded), extras=extras)
    else:
        draw_from_run = partial(draw, loaded.vae, extras=extras, temperature=temperature)
    check_out(out, loaded.spec)
    with counting("sampling", num * (same_z or 1)) as advance:
        drawn = draw_from_run(num, decodings=same_z, seed=seed, advance=advance)
    columns = math.ceil(math.sqrt(num)) if same_z is None else num
    of = f" given {condition}" if condition is not None else ""
    if known is not None and in_turn:
        of = f" of the classes {', '.join(known.classes[:num])} in turn"
    of += "" if temperature == 1 else f" at temperature {temperature:g}"
    words = f"Each column: {same_z} decoding{'s' * (same_z != 1)} of one z{of}."
    if same_z is None:
        words = f"{num} sample{'s' * (num > 1)}{of}, {columns} to a row."
    caption = shown(loaded.spec, drawn, out, columns, words)
    if as_json:
        facts = {"file": str(out), "caption": caption, "data": len(drawn), "columns": columns, "seed": seed}
        print_json({**facts, "temperature": temperature, **loaded.facts})
    else:
        print_shown(out, caption)
