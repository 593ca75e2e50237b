"""`pyro-delta train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_delta.cli.options import (
    Settings,
    choose_device,
    chosen_config,
    dataset_option,
    device_option,
    json_option,
    load_data,
    preset_option,
    print_json,
    program_options,
    set_option,
    settings_of,
)
from pyro_delta.errors import UserError

if TYPE_CHECKING:
    from pyro_delta.config import Config
    from pyro_delta.inference.training import Training


@click.command()
@dataset_option
@click.option("--data-root", metavar="DIR", help="Where data sets live (default: data).")
@preset_option
@program_options
@click.option(
    "--elbo",
    type=click.Choice(["trace", "mean_field"]),
    help="Rate by sampling, or in closed form (default: the preset's).",
)
@click.option("--backend", type=click.Choice(["pyro", "numpyro"]), help="What trains the programs (default: pyro).")
@click.option("--steps", type=int, help="Training steps.")
@click.option("--minutes", type=float, help="Minutes of training alone, in place of --steps.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder (default: runs/<dataset>-<preset>-<seed>).")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; --steps or --minutes may extend it.")
@click.option("--seed", type=int, help="Of weights, batches and noise (default: 0).")
@device_option
@set_option
@json_option
def train(
    dataset: str | None,
    data_root: str | None,
    preset: str | None,
    prior: str | None,
    likelihood: str | None,
    guide: str | None,
    elbo: str | None,
    backend: str | None,
    steps: int | None,
    minutes: float | None,
    out: Path | None,
    resume: bool,
    seed: int | None,
    device: str,
    pairs: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train a δ-VAE into a run folder: weights, metrics, TensorBoard events and sample grids.

    \b
    pyro-delta train --dataset digits --out runs/first
    pyro-delta train --dataset cifar10 --minutes 30 --seed 1 --set training.lr=1e-3
    pyro-delta train --out runs/first --resume --steps 4000
    """  # noqa: D301 (click wants the backspace itself)
    settings = settings_of(
        pairs,
        {
            "data.name": dataset,
            "data.root": data_root,
            "prior.program": prior,
            "likelihood.program": likelihood,
            "guide.program": guide,
            "training.elbo": elbo,
            "training.backend": backend,
            "training.steps": steps,
            "training.minutes": minutes,
            "training.seed": seed,
        },
    )
    if resume:
        trainer, folder, preset = _resumed(out, preset, settings, device)
    else:
        trainer, folder, preset = _new(out, preset, settings, device)
    _run(trainer, folder, preset, resume, as_json)


def _new(out: Path | None, preset: str | None, settings: Settings, device: str) -> tuple[Training, Path, str]:
    config, preset = chosen_config(preset, settings)
    from pyro_delta.inference.run import check_free, create, default_folder

    if out is not None:
        check_free(out)
    trainer = _trainer(config, device)
    folder = out or default_folder(config, preset)
    create(folder, config, trainer.data.spec, preset)
    return trainer, folder, preset


def _resumed(out: Path | None, preset: str | None, settings: Settings, device: str) -> tuple[Training, Path, str]:
    if out is None:
        raise UserError("--resume needs --out RUN, the folder of the run to go on with.")
    from pyro_delta import config as configuration
    from pyro_delta.inference.checkpoint import load_checkpoint
    from pyro_delta.inference.recorder import read_metrics
    from pyro_delta.inference.run import (
        CHECKPOINT,
        CONFIG,
        PROGRAMS,
        check_made_with,
        read_config,
        read_info,
        resumed_config,
    )
    from pyro_delta.inference.training import STATE

    config = resumed_config(out, settings)
    made_with, spec, _ = read_info(out)
    if preset not in (None, made_with):
        raise UserError(f"{out} was made with the preset {made_with!r}, not {preset!r}; leave --preset out to resume.")
    if not (out / CHECKPOINT).exists():
        raise UserError(f"{out} has no checkpoint to go on from; the same command without --resume starts it again.")
    state = load_checkpoint(out / CHECKPOINT, keys=STATE)
    check_made_with(state, config, out)
    read_metrics(out)  # refuses damaged lines before anything is written
    _check_extension(config, state["step"], state["train_s"], given=dict(settings))
    trainer = _trainer(config, device, out / PROGRAMS)
    if trainer.data.spec != spec:
        raise UserError(f"{config.data.name} now holds {trainer.data.spec}, but the run was made for {spec}.")
    trainer.restore(state, out / CHECKPOINT)
    if config != read_config(out):
        configuration.save(config, out / CONFIG)
    return trainer, out, made_with


def _check_extension(config: Config, step: int, train_s: float, given: dict[str, Any]) -> None:
    steps, minutes = config.training.steps, config.training.minutes
    if "training.steps" in given and steps is not None and steps <= step:
        raise UserError(f"--steps {steps}: the run is at step {step} already; give more to go on.")
    if "training.minutes" in given and minutes is not None and 60 * minutes <= train_s:
        raise UserError(f"--minutes {minutes:g}: the run has had {train_s / 60:.3g} already; give more to go on.")


def _trainer(config: Config, device: str, folder: Path | None = None) -> Training:
    import torch

    from pyro_delta.build import build

    if config.training.backend == "numpyro":
        from pyro_delta.twin import require

        require()
        place = torch.device("cpu")  # of the programs that are evaluated
    else:
        place = choose_device(device)
    data = load_data(config)
    torch.manual_seed(config.training.seed)
    programs = build(config, data.spec, folder).to(place)
    if config.training.backend == "numpyro":
        from pyro_delta.twin.programs import build as build_twin
        from pyro_delta.twin.programs import compute_on
        from pyro_delta.twin.training import NumPyroTrainer

        compute_on(device)
        twin = build_twin(config, data.spec, folder, seed=config.training.seed)
        return NumPyroTrainer(config, data, programs, twin, log=lambda line: None)
    from pyro_delta.inference.loop import Trainer

    return Trainer(config, data, programs, log=lambda line: None)


def _run(trainer: Training, folder: Path, preset: str, resumed: bool, as_json: bool) -> None:
    from pyro_delta.inference.recorder import Recorder, stopping
    from pyro_delta.report.progress import following
    from pyro_delta.report.tables import print_table

    with following(trainer.config.training) as show:
        recorder = Recorder(folder, show, trainer.step)
        trainer.log = recorder.log
        try:
            with stopping(trainer):
                if not resumed:
                    recorder.save(trainer)  # from here on the folder can be resumed whatever happens
                trainer.run(recorder.every)
                recorder.finish(trainer)
        finally:
            recorder.close()
    if trainer.interrupted and trainer.progress < 1:
        click.echo(
            f"pyro-delta: stopped at step {trainer.step}; go on with: pyro-delta train --out {folder} --resume",
            err=True,
        )
        raise click.exceptions.Exit(130)
    result = recorder.summary() | {"run": str(folder)}
    if as_json:
        print_json(result)
    else:
        print_table(f"{trainer.config.data.name}, preset {preset}: {result.get('split', '')} split", result)
