"""`pyro-delta doctor`."""

from __future__ import annotations

import click

from pyro_delta.cli.options import json_option, print_json, seed_option


@click.command()
@click.argument("place", metavar="FILE.py:make")
@click.option(
    "--particles", type=click.IntRange(min=1), default=30, show_default=True, help="Of the importance-weighted bound."
)
@seed_option
@json_option
def doctor(place: str, particles: int, seed: int, as_json: bool) -> None:
    """What is wrong, or right, with a VAE of your own: does it use its latents, does a floor keep it from collapsing?

    FILE.py:make names a function without arguments, of a file or of a module (package.module:make), that returns a
    trained model, its guide and data, or a dict of the arguments of `pyro_delta.diagnose`. Any Pyro or NumPyro model.

    \b
    pyro-delta doctor my_vae.py:make
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.api.doctor import examine

    found = examine(place, particles=particles, seed=seed)
    if as_json:
        print_json(found.asdict())
    else:
        click.echo(str(found))
