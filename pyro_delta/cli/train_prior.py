"""`pyro-delta train-prior`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from pyro_delta.cli.options import (
    device_option,
    json_option,
    next_command,
    open_run,
    other_data_option,
    print_json,
    root_option,
    run_argument,
    seed_option,
    trust_option,
    weights_option,
)
from pyro_delta.errors import UserError


@click.command()
@run_argument
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--hidden", type=click.IntRange(min=1), default=128, show_default=True, help="Size of the LSTM's state.")
@click.option("--mixtures", type=click.IntRange(min=1), default=1, show_default=True, help="Gaussians of each step.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=3e-3, show_default=True)
@weights_option
@seed_option
@device_option
@root_option
@other_data_option
@trust_option
@json_option
def train_prior(
    run: Path,
    steps: int,
    batch: int,
    hidden: int,
    mixtures: int,
    lr: float,
    weights: str,
    seed: int,
    device: str,
    data_root: str | None,
    other_data: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Train an auxiliary prior for RUN, on samples of its posterior; model and guide stay as they are.

    It makes the bound tighter and samples better, but commits no rate.

    \b
    pyro-delta train-prior runs/first --steps 2000
    pyro-delta evaluate runs/first --with-prior auxiliary
    pyro-delta sample runs/first --with-prior auxiliary --num 16 --out samples.png
    """  # noqa: D301 (click wants the backspace itself)
    import torch

    from pyro_delta.config import AuxiliaryConfig
    from pyro_delta.inference.auxiliary import AuxiliaryTraining
    from pyro_delta.inference.auxiliary import train_prior as fit
    from pyro_delta.inference.run import read_config, save_auxiliary
    from pyro_delta.lock import writing
    from pyro_delta.report.progress import counting
    from pyro_delta.report.tables import print_table

    if not math.isfinite(lr):  # nan passes every range
        raise UserError(f"--lr {lr} is not a learning rate; give a finite number above 0.")
    read_config(run, trust)  # of what is no run nothing is locked
    with writing(run):
        loaded = open_run(run, device, weights=weights, trust=trust)
        data = loaded.data(data_root, other=other_data)
        torch.manual_seed(seed)
        settings = AuxiliaryConfig(enabled=True, hidden=hidden, mixtures=mixtures, lr=lr)
        training = AuxiliaryTraining.of(settings, loaded.vae.model.prior)
        lines: list[dict[str, float]] = []
        with counting("training the prior", steps) as advance:

            def log(line: dict[str, float]) -> None:
                advance(int(line["step"] - (lines[-1]["step"] if lines else 0)))
                lines.append(line)

            fit(training, loaded.vae, data.train, steps, batch=batch, seed=seed, log=log)
        save_auxiliary(loaded, settings, training)
    if as_json:
        print_json(lines[-1])
    else:
        print_table(f"{run}: auxiliary prior", dict(lines[-1]))
    next_command("evaluate", run, "--with-prior", "auxiliary")
