"""`pyro-delta evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    device_option,
    images_option,
    json_option,
    open_run,
    other_data_option,
    print_json,
    root_option,
    run_argument,
    seed_option,
    split_option,
    title_of_numbers,
    trust_option,
    warn,
    weights_option,
    with_prior_option,
)


@click.command()
@run_argument
@split_option
@click.option("--particles", type=click.IntRange(min=1), default=1, help="K > 1 adds the importance-weighted bound.")
@with_prior_option
@weights_option
@images_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def evaluate(
    run: Path,
    split: str,
    particles: int,
    with_prior: str,
    weights: str,
    images: int | None,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Bounds on the likelihood, rate and distortion of RUN over a whole split, with standard errors.

    All numbers are of the same data: with --particles, which takes K passes a datum, --images limits them all. Those of
    a finished run stay with it, for its page.

    \b
    pyro-delta evaluate runs/first
    pyro-delta evaluate runs/first --particles 100 --images 200 --json
    pyro-delta evaluate runs/first --with-prior auxiliary
    torchrun --nproc-per-node=2 -m pyro_delta evaluate runs/first
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta import ranks
    from pyro_delta.api.judge import OTHER_DATA
    from pyro_delta.api.judge import evaluate as evaluate_run
    from pyro_delta.api.kept import keep_evaluation, keepable, unasked
    from pyro_delta.data.splits import fingerprints
    from pyro_delta.inference.run import DEAF
    from pyro_delta.report.progress import counting
    from pyro_delta.report.tables import print_table

    ranks.join(device)
    with ranks.together():
        loaded = open_run(run, ranks.device(device), with_prior, weights, trust=trust)
        data = loaded.data(data_root, other=other_data)
    if ranks.count() > 1:
        ranks.agree("the data", fingerprints(data))
    count = len(getattr(data, split)) if images is None else images
    passes = count * (1 if particles == 1 else 2)
    with ranks.together(), counting("evaluating", passes, show=ranks.first()) as advance:
        numbers = evaluate_run(
            loaded, data=data, split=split, images=images, particles=particles, seed=seed, advance=advance, shared=True
        )
    if not ranks.first():
        return
    if keepable(loaded, run, numbers):
        with unasked(loaded, warn):
            keep_evaluation(loaded, numbers | {"prior": with_prior})
    if as_json:
        print_json({"unit": loaded.spec.unit, **numbers})
    else:
        print_table(title_of_numbers(run, numbers), numbers, loaded.spec.unit)
        if loaded.caveat:
            click.echo(loaded.caveat)
        if numbers["data_as_trained"] is False:
            click.echo(OTHER_DATA)
        if "is_control" in numbers:
            click.echo(DEAF)
