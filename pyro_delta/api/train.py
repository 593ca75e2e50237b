"""Training from beginning to end: `train`, `resume`, and the pieces of them that the command line shows at work."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyro_delta import config as configuration
from pyro_delta import ranks
from pyro_delta.api.notebook import following
from pyro_delta.build import build, load_data
from pyro_delta.config import Config, DataConfig
from pyro_delta.data.named import data_of
from pyro_delta.data.splits import fingerprints
from pyro_delta.data.tensors import Given
from pyro_delta.errors import ALONE, UserError, in_a_line
from pyro_delta.files import sweep_parts
from pyro_delta.inference import manifest as manifests
from pyro_delta.inference.optim import learning_rate
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.inference.recorder import Recorder, stopping
from pyro_delta.inference.run import (
    CONFIG,
    FORMER,
    PROGRAMS,
    DataRecord,
    Info,
    Run,
    check_free,
    check_made_with,
    check_same,
    choose_device,
    config_digest,
    create,
    data_of_run,
    has_checkpoint,
    in_terms_of,
    is_finished,
    load,
    names_of_classes,
    note_configuration,
    read_config,
    read_info,
    read_metrics,
    read_spec,
    read_state,
    resumed_config,
    run_of,
)
from pyro_delta.inference.training import Training
from pyro_delta.lock import Lock
from pyro_delta.protocol import Data
from pyro_delta.vae import copied

Show = Callable[[dict[str, Any]], None]
Settings = Mapping[str, Any]


def train(
    settings: Config | Settings | None = None,
    *,
    data: str | Path | Data | Given | None = None,
    preset: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    show: Show | None = None,
) -> Run:
    """Trains a δ-VAE, as `pyro-delta train` does.

        run = train({"prior.rate_nats": 4.0, "training.steps": 500}, data="digits", out="runs/first")

    Args:
        settings: dotted names and values, laid over the preset; or a whole configuration.
        data: by name, such as digits or folder:PATH; or data themselves, which are not kept with the run: an array or
            tensor of bytes, images (N, H, W), (N, C, H, W) or (N, H, W, C), or of tokens (N, T); such a one with its
            labels, by name; or what `pyro_delta.data.from_tensors` makes of any others. Images have 256 levels, unless
            all bytes stand on 2, 4 or 16 of them, or the setting data.levels says how many there are.
        preset: by name; by default the one that the data ask for.
        out: a new folder for the run; None to keep nothing on disk.
        device: auto, cpu or cuda.
        show: called with each line of metrics; by default a line in a notebook says how training comes along, and
            elsewhere nothing does.

    Returns:
        The run, with its best averaged weights on the validation split, as `load` gives it; the last ones where
        there was no validation.

    Raises:
        UserError: for settings, data or a folder that do not do.
        CheckFailed: if training diverges.
    """
    ranks.join(device)
    data = str(data) if isinstance(data, Path) else data
    given = None if data is None or isinstance(data, str) else data_of(data, levels=_levels(settings, data))
    if isinstance(settings, Config):
        if preset is not None or isinstance(data, str):
            raise UserError("a whole configuration names its own data and has no preset; leave data and preset out.")
        config, preset = settings, "none"
        if given is not None and config.data.program != "given":  # the run must not find other data by that name
            config = config.model_copy(update={"data": DataConfig.model_validate({"program": "given"})})
    else:
        pairs = dict(settings or {})
        if data is not None:
            of_named = [key for key in pairs if key.startswith("data.") and key != "data.levels"] if given else []
            if named := [*(key for key in pairs if key == "data.program"), *of_named]:
                by_key = "give what they are conditioned on by the key 'condition'"
                mend = by_key if named[0] == "data.condition" else "leave one of them out"
                raise UserError(f"data are given, and {named[0]} is set, too; {mend}.")
            pairs["data.program"] = data if isinstance(data, str) else "given"
        if given is not None and preset is None:
            preset = getattr(given, "preset", "default")
        config, preset = configuration.choose(list(pairs.items()), preset)
    folder = None if out is None else Path(out)
    training = begin(config, folder, preset, device, given)
    return _run(training, folder, show, given, resumed=False)


def _levels(settings: Config | Settings | None, data: Any) -> Any:
    """Levels that settings say of an array that is given; those of a configuration may come with data that say them."""
    if isinstance(settings, Config):
        of_array = settings.data.program == "given" and not hasattr(data, "spec")
        return settings.data.options.get("levels") if of_array else None
    return (settings or {}).get("data.levels")


def resume(
    out: str | Path,
    settings: Settings | None = None,
    *,
    data: str | Path | Data | Given | None = None,
    device: str = "auto",
    show: Show | None = None,
    trust: bool = False,
    other_data: bool = False,
) -> Run:
    """Goes on with a run that was interrupted, or makes a finished one longer; else a finished one stays as it is.

    Args:
        out: folder of the run.
        settings: training.steps or training.minutes to extend it, data.root if the data have moved.
        data: again, or their name, if the run was given data rather than their name.
        device: auto, cpu or cuda.
        show: called with each line of metrics; by default a line in a notebook says how training comes along, and
            elsewhere nothing does.
        trust: as for `load`.
        other_data: whether the data may be others than the run began with.

    Raises:
        UserError: if there is nothing to go on from, a setting contradicts the run's, its data are others, or another
            process writes there.
        CheckFailed: if training diverges.
    """
    training, _ = reopen(
        Path(out), list((settings or {}).items()), device, data=data, trust=trust, other_data=other_data
    )
    if training is None:
        return load(out, trust=trust)
    return _run(training, Path(out), show, training.data, resumed=True)


def train_control(
    run: Run | str | Path,
    *,
    data: str | Path | Data | Given | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    show: Show | None = None,
) -> Run:
    """Trains the same decoder without latents: the control for `check(run, control=…)`.

    With the settings, data and seed of a run, and as many steps as it has made.

    Args:
        run: with latents, or its folder.
        data: again, if the run was given data rather than their name, and read from its folder.
        out: a new folder; by default that of the run, with `-control` behind it; none if the run has none.
        device: auto, cpu or cuda.
        show: called with each line of metrics; by default a line in a notebook says how training comes along, and
            elsewhere nothing does.

    Raises:
        UserError: if its likelihood has no option `use_latents`, the data are others than the run's, or as `train`.
    """
    run = run_of(run)
    config = control_config(run.config, run.trained_steps)
    if out is None and run.folder is not None:
        out = control_folder(run.folder)
    if data is not None:
        given = run.in_its_terms(data)
        if run.trained_on(given) is False:
            raise UserError(f"the data are not those that {run.folder or 'the run'} was trained on; give these again.")
        return train(config, data=given, out=out, device=device, show=show)
    given = run.data()
    if config.data.program == "given":
        return train(config, data=given, out=out, device=device, show=show)
    record = run.data_record
    if record is not None and record.folder is not None and Path(record.folder).exists():  # wherever one is now
        options = {**config.data.options, "root": record.folder}
        config = config.model_copy(update={"data": config.data.model_copy(update={"options": options})})
    folder = None if out is None else Path(out)
    return _run(begin(config, folder, "none", device, given), folder, show, None, resumed=False)


def control_folder(folder: Path) -> Path:
    """Where the control of a run goes unless something else is said."""
    return folder.with_name(f"{folder.name}-control")


def control_config(config: Config, steps: int) -> Config:
    """A configuration without latents, for so many steps.

    Raises:
        UserError: if the likelihood cannot do without.
    """
    likelihood = config.likelihood
    if "use_latents" not in likelihood.options:
        raise UserError(
            f"the likelihood {likelihood.program!r} has no option use_latents, by which a control would be made; train "
            "a model without latents yourself, and give it to check --control."
        )
    if likelihood.options["use_latents"] is False:
        raise UserError("likelihood.use_latents=False leaves no latents to do without; leave control out.")
    without = likelihood.model_copy(update={"options": {**likelihood.options, "use_latents": False}})
    return config.model_copy(
        update={
            "likelihood": without,
            "training": config.training.model_copy(update={"steps": steps, "minutes": None}),
            "auxiliary": config.auxiliary.model_copy(update={"enabled": False}),
        }
    )


def begin(config: Config, folder: Path | None, preset: str, device: str, data: Data | None = None) -> Training:
    """A new training with its folder, if it is to have one, which the first of several ranks makes.

    Raises:
        UserError: as `train`.
    """
    ranks.join(device)
    with ranks.together():
        if folder is not None and ranks.first():
            check_free(folder)
        training = prepare(config, device, data=data)
    _check_agreed(training)
    with ranks.together():
        if folder is not None and ranks.first():
            training.lock = create(folder, config, training.data, preset)
    return training


def _check_agreed(training: Training) -> None:
    """Refuses ranks that would not make one training: of other settings, or with other data, as hosts may have.

    Raises:
        UserError: naming the rank.
    """
    if ranks.count() > 1:
        ranks.agree("the settings", configuration.digest(training.config))
        ranks.agree("the data", fingerprints(training.data))


def reopen(
    out: Path,
    settings: list[tuple[str, Any]],
    device: str,
    *,
    preset: str | None = None,
    data: str | Path | Data | Given | None = None,
    trust: bool = False,
    other_data: bool = False,
) -> tuple[Training | None, str]:
    """A training that goes on from the newest whole checkpoint of a run, and the preset of the run.

    None for one that has come to its end, unless it is made longer. All ranks read the folder, then the first one
    writes.

    Raises:
        UserError: as `resume`.
    """
    ranks.join(device)
    with ranks.together():
        config, training, lock, preset = _reread(out, settings, device, preset, data, trust, other_data)
    if training is None:
        return None, preset
    training.lock = lock
    try:
        _check_agreed(training)
        with ranks.together():
            if ranks.first():
                sweep_parts(out)
                manifest = manifests.read(out)
                assert manifest is not None
                kept = [saved for saved in manifest.checkpoints if saved.step <= training.step]
                manifests.keep_checkpoints(out, manifest, kept)
                if config != read_config(out):
                    note_configuration(out, config)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return training, preset


def _reread(
    out: Path,
    settings: list[tuple[str, Any]],
    device: str,
    preset: str | None,
    data: str | Path | Data | Given | None,
    trust: bool,
    other_data: bool,
) -> tuple[Config, Training | None, Lock | None, str]:
    """What a run goes on with: configuration, training at its newest checkpoint, lock of the first rank, preset."""
    config = resumed_config(out, settings, trust)
    info = read_info(out)
    if preset not in (None, info.preset):
        raise UserError(
            f"{out} was made with the preset {info.preset!r}, not {preset!r}; leave --preset out to resume."
        )
    if info.format == FORMER:
        raise UserError(f"{out} was written by an older pyro-delta: it is read, but not gone on with; train it again.")
    if not has_checkpoint(out):
        raise UserError(f"{out} has no checkpoint to go on from; the same command without --resume starts it again.")
    if info.exported:
        raise UserError(
            f"{out} was exported, without the state of its optimiser, and cannot be gone on with; resume the run that "
            f"it was made from, or start a new one: {_anew(config, info, out)}."
        )
    lock = Lock(out) if ranks.first() else None
    try:
        state, path, notes = read_state(out)
        check_made_with(state, config, out)
        metrics = read_metrics(out)
        _check_extension(config, state["step"], state["train_s"], given=dict(settings))
        if is_finished(config, state):
            if lock is not None:
                lock.release()
            return config, None, None, info.preset
        root = config.data.options.get("root")  # if they are said to have moved
        root = None if root == read_config(out).data.options.get("root") else str(root)
        spec = read_spec(out, config)
        given = data_of_run(config, info.data, root, out) if data is None else data_of(data, like=spec)
        given = in_terms_of(spec, config, given, config.data.program if data is None else "what is given")
        if not other_data:
            check_same(given, info.data, out)
        training = prepare(config, device, out / PROGRAMS, given)
        training.restore(state, path)
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    training.notices += notes
    if lost := sum(line["step"] > training.step for line in metrics):
        training.notices.append(
            f"{lost} line{'s' * (lost > 1)} of metrics, up to step {metrics[-1]['step']}, came after the checkpoint of "
            f"step {training.step}, and those steps are made again."
        )
    was = state["config"]["training"]
    if (was["steps"], was["minutes"]) != (config.training.steps, config.training.minutes):
        training.notices.append(_rate_from_here(training, metrics))
    if other_data and info.data is not None and info.data.first_other(training.data) is not None:
        training.notices.append("The data are not those that the run began with.")
    return config, training, lock, info.preset


def _anew(config: Config, info: Info, out: Path) -> str:
    """What starts a training with the settings of a run."""
    if config.data.program == "given":
        return "pyro_delta.train(settings, data=…), as its README.md has it"
    return f"pyro-delta train --config {shlex.quote(str(out / CONFIG))}{' --trust' if info.programs else ''} --out NEW"


def prepare(config: Config, device: str, folder: Path | None = None, data: Data | None = None) -> Training:
    """A training of a configuration at its beginning: data loaded, programs built.

    Args:
        config: all settings.
        device: auto, cpu or cuda.
        folder: of the run's own programs.
        data: in the place of those that the configuration names.
    """
    numpyro = config.training.backend == "numpyro"
    if numpyro and ranks.count() > 1:
        raise UserError(
            f"training.backend=numpyro trains in one process, not in {ranks.count()}; start it without torchrun, or "
            "use --backend pyro."
        )
    if numpyro:
        from pyro_delta.twin import require

        require()
    # Where Pyro's programs are evaluated.
    place = torch.device("cpu") if numpyro else choose_device(ranks.device(device))
    data = load_data(config, folder=folder) if data is None else data
    torch.manual_seed(config.training.seed)
    example = data.train.batch(slice(2)) if len(data.train) > 1 else None
    vae = build(config, data.spec, folder, example=example).to(place)
    if not numpyro:
        return PyroTraining(config, data, vae, log=lambda line: None, folder=folder)
    from pyro_delta.twin.build import build as build_twin
    from pyro_delta.twin.build import compute_on
    from pyro_delta.twin.numpyro_training import NumPyroTraining

    compute_on(device)
    twin = build_twin(config, data.spec, folder, seed=config.training.seed, example=example)
    return NumPyroTraining(config, data, vae, twin, log=lambda line: None)


def carry_out(training: Training, folder: Path, show: Show, *, resumed: bool) -> dict[str, Any]:
    """Trains to the end or to the first interrupt, and writes the run's folder; returns the newest judgement.

    Of several ranks, the first one writes, and knows the judgement.
    """
    recorder: Recorder | None = None
    try:
        with stopping(training):
            with ranks.together():
                if ranks.first():
                    recorder = Recorder(folder, show, training.step, training.lock)
                    training.log = recorder.log
                    if not resumed:
                        recorder.save(training)  # from here on the folder can be resumed whatever happens
            training.run(lambda training: None if recorder is None else recorder.every(training))
            with ranks.together():
                if recorder is not None:
                    recorder.finish(training)
    finally:
        if recorder is not None:
            recorder.close()
        if training.lock is not None:
            training.lock.release()
    return {} if recorder is None else recorder.summary()


def _run(training: Training, folder: Path | None, show: Show | None, given: Data | None, *, resumed: bool) -> Run:
    lines: list[dict[str, Any]] = []
    try:
        with following(training) if show is None else nullcontext(show) as told:
            if folder is None:

                def log(line: dict[str, Any]) -> None:
                    lines.append(line)
                    if ranks.first():
                        told(line)

                training.log = log
                training.run()
            else:
                carry_out(training, folder, told, resumed=resumed)
    except ValueError as error:
        if ALONE not in str(error):
            raise
        raise UserError(f"{in_a_line(error)}.") from error
    record = {"folder": None, "splits": fingerprints(training.data), "classes": names_of_classes(training.data)}
    return replace(
        trained(training, folder),
        given=given or training.data,
        lines=tuple(lines),
        data_record=DataRecord.model_validate(record),
    )


def trained(training: Training, folder: Path | None) -> Run:
    """A training as a run with the best weights of its validations so far, or the last if there was none."""
    vae, best = copied(training.averaged()).eval(), training.best
    if best is not None:
        vae.load_state_dict(best["vae"])
    return Run(
        training.config,
        training.data.spec,
        vae,
        "last" if best is None else "best",
        training.step if best is None else best["step"],
        training.step,
        training.over,
        folder,
        skipped_steps=int(training.state()["skipped"]),
        digest=None if folder is None else config_digest(folder),
    )


def _rate_from_here(training: Training, metrics: list[dict[str, Any]]) -> str:
    """What the learning rate does in a training that is made longer: it is of the part of the whole that is over."""
    settings, step = training.config.training, training.step
    final = settings.warmup if settings.steps is None else settings.steps - 1
    now, last = learning_rate(settings, step, training.progress), learning_rate(settings, final, 1.0)
    before = next((f", after {line['lr']:.3g}" for line in reversed(metrics) if line["step"] <= step), "")
    length = f"{settings.minutes:g} minutes" if settings.steps is None else f"{settings.steps} steps"
    return (
        f"The learning rate follows the schedule of all {length} from here: {now:.3g} at step {step + 1}{before}, and "
        f"{last:.3g} at the end."
    )


def _check_extension(config: Config, step: int, train_s: float, given: dict[str, Any]) -> None:
    steps, minutes = config.training.steps, config.training.minutes
    if "training.steps" in given and steps is not None and steps <= step:
        raise UserError(f"--steps {steps}: the run is at step {step} already; give more to go on.")
    if "training.minutes" in given and minutes is not None and 60 * minutes <= train_s:
        raise UserError(f"--minutes {minutes:g}: the run has had {train_s / 60:.3g} already; give more to go on.")
