"""`pyro-delta train`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_delta.cli.options import (
    config_option,
    dataset_option,
    device_option,
    json_option,
    new_root_option,
    next_command,
    objective_option,
    other_data_option,
    preset_option,
    print_json,
    program_options,
    set_option,
    settings_of,
    trust_option,
    warn,
)
from pyro_delta.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from pyro_delta.config import Config, TrainingConfig
    from pyro_delta.inference.training import Training


@click.command()
@dataset_option
@new_root_option
@preset_option
@program_options
@objective_option
@click.option(
    "--elbo",
    type=click.Choice(["trace", "mean_field"]),
    help="Rate by sampling, or in closed form (default: the preset's).",
)
@click.option(
    "--bitrate",
    type=float,
    help="δ in bits a second, of sounds: AR(1) commits less than ½ bit (.347 nats) per inner step and dimension.",
)
@click.option("--backend", type=click.Choice(["pyro", "numpyro"]), help="What trains the programs (default: pyro).")
@click.option("--steps", type=int, help="Training steps.")
@click.option("--minutes", type=float, help="Minutes of training alone, in place of --steps.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder (default: runs/<dataset>-<preset>-<seed>).")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; --steps or --minutes may extend it.")
@click.option("--control", is_flag=True, help="Then train the same without latents, as many steps, into OUT-control.")
@click.option("--seed", type=int, help="Of weights, batches and noise (default: 0).")
@device_option
@other_data_option
@trust_option
@config_option
@set_option
@click.option(
    "--tracker", type=click.Choice(["wandb", "trackio", "mlflow"]), help="Send metrics and settings there, too."
)
@click.option(
    "--report/--no-report",
    default=None,
    help="Check the run at the end, so that its page, OUT/report.html, has that too; or leave the page out.",
)
@click.option("--dry-run", is_flag=True, help="Make a few steps, say what it takes, and write nothing (but data sets).")
@json_option
def train(
    dataset: str | None,
    data_root: str | None,
    preset: str | None,
    prior: str | None,
    likelihood: str | None,
    guide: str | None,
    objective: str | None,
    elbo: str | None,
    bitrate: float | None,
    backend: str | None,
    steps: int | None,
    minutes: float | None,
    out: Path | None,
    resume: bool,
    control: bool,
    seed: int | None,
    device: str,
    other_data: bool,
    trust: bool,
    config_file: Path | None,
    pairs: tuple[str, ...],
    tracker: str | None,
    report: bool | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train a δ-VAE into a run folder: weights, metrics, TensorBoard events, sample grids and a page, report.html.

    \b
    pyro-delta train --dataset digits --out runs/first
    pyro-delta train --dataset cifar10 --minutes 30 --seed 1 --set training.lr=1e-3 --dry-run
    pyro-delta train --config runs/first/config.json --seed 1
    pyro-delta train --out runs/first --resume --steps 4000
    pyro-delta train --dataset digits --control --out runs/second
    pyro-delta train --dataset digits --tracker wandb --out runs/tracked
    pyro-delta check runs/second --control runs/second-control
    torchrun --nproc-per-node=2 -m pyro_delta train --dataset digits --out runs/third
    """  # noqa: D301 (click wants the backspace itself)
    settings = settings_of(
        pairs,
        {
            "data.program": dataset,
            "data.root": data_root,
            "prior.program": prior,
            "prior.bitrate": bitrate,
            "likelihood.program": likelihood,
            "guide.program": guide,
            "objective.program": objective,
            "training.elbo": elbo,
            "training.backend": backend,
            "training.steps": steps,
            "training.minutes": minutes,
            "training.seed": seed,
        },
        config_file,
        trust=trust,
    )
    if tracker is not None:
        from pyro_delta.inference.trackers import check_tracker

        check_tracker(tracker)
    if resume and out is None:
        raise UserError("--resume needs --out RUN, the folder of the run to go on with.")
    if dry_run and (resume or control or out or report):
        raise UserError(
            "--dry-run writes nothing and goes on with nothing; leave --out, --resume, --control and --report out."
        )
    if resume and control:
        raise UserError("--control goes with a new run; of a finished one, pyro_delta.train_control(run) makes it.")
    from pyro_delta import ranks
    from pyro_delta.api.train import begin, control_config, control_folder, reopen
    from pyro_delta.config import choose
    from pyro_delta.inference.run import check_free, default_folder, preset_beside

    named = None if config_file is None else preset_beside(config_file)
    if named is not None and preset not in (None, named):
        raise UserError(f"{config_file} has all settings of a run, whose preset is {named!r}; leave --preset out.")
    if dry_run:
        _plan(choose(settings, preset)[0], device, as_json)
        return
    ranks.join(device)
    if report and ranks.count() > 1:
        raise UserError("--report goes with one process; train without it, and then: pyro-delta report RUN.")
    if resume:
        assert out is not None
        reopened, preset = reopen(out, settings, device, preset=preset, trust=trust, other_data=other_data)
        if reopened is None:
            if ranks.first():
                if report:
                    from pyro_delta.cli.report import write_page

                    write_page(out, None, device)
                _say_finished(out, as_json)
            return
        trainer, folder = reopened, out
    else:
        with ranks.together():
            config, preset = choose(settings, preset)
            preset = named or preset
            folder = out or default_folder(config, preset)
            if control:  # refused before anything is written
                control_config(config, 1)
                check_free(control_folder(folder))
        with ranks.watched():
            folder = ranks.of_first(folder)
        trainer = begin(config, folder, preset, device)
    pages = report is not False and ranks.first()
    result = _run(trainer, folder, preset, resume, as_json, tracker)
    if pages:
        result["report"] = _write_page(trainer, folder, result)
    beside = control_folder(folder) if control else None
    if beside is not None:
        without = begin(control_config(trainer.config, trainer.step), beside, preset, device)
        result["control"] = _run(without, beside, preset, False, as_json, tracker)
        if pages:
            result["control"]["report"] = _write_page(without, beside, result["control"])
            result["report"] = _write_page(trainer, folder, result, without)
    if not ranks.first():
        return
    if report:
        from pyro_delta.cli.report import write_page

        write_page(folder, beside, device)
    if as_json:
        print_json(result)
    elif result.get("report"):
        click.echo(f"page: {result['report']}")
    for each, numbers in ((folder, result), (beside, result.get("control"))):
        if each is not None and numbers is not None and (failure := _failure(each, numbers, trainer.config.training)):
            raise CheckFailed(failure)
    next_command("check", folder, *(() if beside is None else ("--control", beside)))


def _failure(folder: Path, result: Mapping[str, Any], settings: TrainingConfig) -> str | None:
    """In a sentence, that a training has come to its end, and to nothing."""
    from pyro_delta.inference.optim import calmer, unfit
    from pyro_delta.inference.run import read_metrics

    counted = [line for line in read_metrics(folder) if "skipped" in line]
    if result.get("neg_elbo_bpd", 0.0) is None:
        found = "diverged: its newest bound is not finite"
    elif counted and counted[-1]["skipped"] == counted[-1]["step"]:
        found = f"learned nothing: all of its {counted[-1]['step']} steps {unfit(settings.skip)} and were skipped"
    else:
        return None
    return f"the training {folder} {found}; train again with {calmer(settings)}."


def _write_page(
    trainer: Training, folder: Path, measured: Mapping[str, Any], without: Training | None = None
) -> str | None:
    """Writes the page of a training, beside that of its control where that has been made; its path, if it could be."""
    from pyro_delta.api.kept import unasked
    from pyro_delta.api.train import control_folder, trained
    from pyro_delta.report.written import write_page_of_training

    run = trained(trainer, folder)
    control = None if without is None else trained(without, control_folder(folder))
    with unasked(run, warn):
        return str(write_page_of_training(run, trainer.committed.sentence, measured, control))
    return None


def _plan(config: Config, device: str, as_json: bool) -> None:
    """What a training would be and take, by its first steps."""
    from pyro_delta.api.plan import plan
    from pyro_delta.describe import flat, written

    found = plan(config, device)
    if as_json:
        print_json({**found, "config": config.model_dump(mode="json")})
        return
    for key, value in flat(config):
        click.echo(f"{key} = {written(value)}")
    for key, value in found.items():
        click.echo(f"{key.replace('_', ' ')}: {format(value, '.4g') if isinstance(value, float) else value}")


def _say_finished(folder: Path, as_json: bool) -> None:
    """Of a run with which there is nothing to go on."""
    if as_json:
        print_json({"run": str(folder), "finished": True})
    else:
        click.echo(f"{folder} has come to its end already; --steps or --minutes makes it longer.")
    next_command("check", folder)


def _run(
    trainer: Training, folder: Path, preset: str, resumed: bool, as_json: bool, tracker: str | None
) -> dict[str, Any]:
    """Trains to the end, and returns the newest judgement; a table of it is printed, but with `as_json`.

    Of several ranks, the first one speaks.
    """
    from pyro_delta import ranks
    from pyro_delta.api.train import carry_out
    from pyro_delta.diagnostics.trace import device_of
    from pyro_delta.inference.run import DEAF, is_control, read_metrics
    from pyro_delta.inference.trackers import tracking
    from pyro_delta.report.progress import following
    from pyro_delta.report.tables import print_table

    if not ranks.first():
        carry_out(trainer, folder, lambda line: None, resumed=resumed)
        if trainer.interrupted and not trainer.over:
            raise click.exceptions.Exit(130)
        return {}
    if not as_json:
        kept = (
            "nothing keeps the posterior from its prior: ar1 commits a rate, and so does contour"
            if trainer.committed.nats == 0
            else "pyro-delta verify checks that the programs keep it"
        )
        click.echo(f"committed rate: {trainer.committed.sentence} ({kept})")
    for notice in trainer.notices:
        warn(notice)
    past = read_metrics(folder) if resumed else []

    with (
        following(trainer.config, trainer.data.spec.unit, device_of(trainer.vae), past) as show,
        tracking(tracker, folder, trainer.config, resumed=resumed, warn=warn) as track,
    ):

        def note(line: dict[str, Any]) -> None:
            show(line)
            track(line)

        summary = carry_out(trainer, folder, note, resumed=resumed)
    if trainer.interrupted and not trainer.over:
        click.echo(
            f"pyro-delta: stopped at step {trainer.step}; go on with: "
            + shlex.join(["pyro-delta", "train", "--out", str(folder), "--resume"]),
            err=True,
        )
        raise click.exceptions.Exit(130)
    result = summary | {"run": str(folder)}
    if trainer.best is not None:
        result |= {f"best_{key}": trainer.best[key] for key in ("step", "neg_elbo_bpd")}
    if trainer.over and trainer.progress < 1:
        result["ended_early"] = True
        click.echo(
            f"pyro-delta: ended at step {trainer.step}, for {trainer.stale} validations in a row were no better than "
            f"that of step {result['best_step']}; --resume --set training.patience=… goes on.",
            err=True,
        )
    if not as_json:
        title = f"{trainer.config.data.program}, preset {preset}: {result.get('split', '')} split"
        print_table(title, result, trainer.data.spec.unit)
        if is_control(trainer.config):
            click.echo(DEAF)
    return result
