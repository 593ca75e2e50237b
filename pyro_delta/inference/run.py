"""The run folder: configuration, metrics, TensorBoard events, checkpoint and sample grids of one training.

::

    config.json      the whole configuration
    run.json         preset, data specification, versions of packages, digests of programs that are not shipped
    programs/        copies of programs that came from files
    auxiliary.pt     an auxiliary prior, trained afterwards
    metrics.jsonl    one line of numbers per logging step and validation
    events/          the same for TensorBoard
    checkpoint.pt    the newest state
    samples/         grids of generated images
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pyro.nn import PyroModule

from pyro_delta import __version__
from pyro_delta import config as configuration
from pyro_delta.build import Programs, build
from pyro_delta.config import AuxiliaryConfig, Config
from pyro_delta.data.spec import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.evaluation.bound import with_prior
from pyro_delta.files import written_whole
from pyro_delta.inference.auxiliary import AuxiliaryTraining
from pyro_delta.inference.checkpoint import load_checkpoint, load_weights, save_atomically
from pyro_delta.programs import KINDS, check_copies, keep_copies

CONFIG, INFO, METRICS, EVENTS, CHECKPOINT, SAMPLES, PROGRAMS, AUXILIARY = (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "events",
    "checkpoint.pt",
    "samples",
    "programs",
    "auxiliary.pt",
)
PACKAGES = ("torch", "pyro-ppl", "numpy")
EXTENSIBLE = {"training.steps", "training.minutes", "data.root"}
"""Settings that may change when a run is resumed."""


class Loaded(NamedTuple):
    """A run that was read back: its programs carry the averaged weights, in float32 and evaluation mode."""

    config: Config
    spec: ImageSpec
    programs: Programs


def default_folder(config: Config, preset: str) -> Path:
    """`runs/<dataset>-<preset>-<seed>`, with the first free number behind it if that is taken."""
    kind, _, path = config.data.name.partition(":")
    dataset = f"{kind}-{Path(path).name}" if path else kind
    first = Path("runs") / f"{dataset}-{preset}-{config.training.seed}"
    folder, number = first, 2
    while folder.exists():
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return folder


def check_free(folder: Path) -> None:
    """Refuses, before any work is done, a folder that a new run must not or cannot use.

    Raises:
        UserError: if it holds another run or anything else, or cannot be written.
    """
    if (folder / CHECKPOINT).exists():
        raise UserError(f"{folder} holds another run; give another --out, or --resume to go on with it.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder as --out.")
    # A run that died before its first checkpoint has nothing to lose, and may be begun again.
    if folder.is_dir() and not (folder / INFO).exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; give a new or an empty folder as --out.")
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {folder}: no permission in {parent}; give another --out.")


def create(folder: Path, config: Config, spec: ImageSpec, preset: str) -> None:
    """Makes the folder of a new run, with copies of the files that its programs came from.

    Raises:
        UserError: as `check_free`.
    """
    check_free(folder)
    chosen = {kind: getattr(config, kind).program for kind in KINDS}
    info: dict[str, Any] = {
        "preset": preset,
        "spec": asdict(spec),
        "versions": {
            "pyro-delta": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }
    try:
        (folder / SAMPLES).mkdir(parents=True, exist_ok=True)
        info["programs"] = keep_copies(chosen, folder / PROGRAMS)
        write_text(folder / INFO, json.dumps(info, indent=2) + "\n")
        configuration.save(config, folder / CONFIG)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror}); give another --out.") from None


def read_info(folder: Path) -> tuple[str, ImageSpec, dict[str, dict[str, str]]]:
    """Preset and data specification of a run, and name and digest of its programs that are not shipped.

    Raises:
        UserError: if the file that holds them is missing or damaged.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        return str(info["preset"]), ImageSpec(**info["spec"]), dict(info.get("programs", {}))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / INFO} is missing or damaged; give a folder that `train` wrote.") from None


def read_config(folder: Path) -> Config:
    """The configuration of a run, whose programs are still what they were.

    Raises:
        UserError: if the folder is no run, or a program is missing or has changed.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, no run; give a folder that `pyro-delta train` wrote.")
    if (folder / CONFIG).exists():  # if not, the configuration's own words say what is wrong
        check_copies(read_info(folder)[2], folder / PROGRAMS)
    return configuration.load(folder / CONFIG, folder / PROGRAMS)


def load(folder: Path, device: torch.device | str = "cpu", prior: str = "model") -> Loaded:
    """Reads a run's averaged weights into its programs. Torch's random state stays as it is.

    Args:
        folder: of the run.
        device: where the programs go.
        prior: model, or auxiliary to put the auxiliary prior in the place of the model's own.

    Raises:
        UserError: if the folder is no run, it has no such prior, its checkpoint is missing, damaged or of another
            configuration, or a program is missing or has changed.
    """
    config = read_config(folder)
    _, spec, _ = read_info(folder)
    state = load_checkpoint(folder / CHECKPOINT, device, keys=("config", "average"))
    check_made_with(state, config, folder)
    with torch.random.fork_rng(devices=[]):
        programs = build(config, spec, folder / PROGRAMS).to(device)
    load_weights(programs, averaged_weights(state), folder / CHECKPOINT)
    if config.training.channels_last:  # as it was trained: up to three times as fast
        programs.to(memory_format=torch.channels_last)
    if prior == "auxiliary":
        programs = with_prior(programs, _auxiliary(folder, config, programs.model.prior, state, device))
    return Loaded(config, spec, programs.eval())


def save_auxiliary(folder: Path, settings: AuxiliaryConfig, training: AuxiliaryTraining) -> None:
    """Writes an auxiliary prior that was trained for a finished run."""
    save_atomically({"settings": settings.model_dump(), **training.state()}, folder / AUXILIARY)


def _auxiliary(
    folder: Path, config: Config, prior: PyroModule, state: dict[str, Any], device: torch.device | str
) -> PyroModule:
    """The auxiliary prior of a run: one trained afterwards, or else beside the model."""
    settings, weights, path = config.auxiliary, state.get("auxiliary"), folder / CHECKPOINT
    if (folder / AUXILIARY).exists():
        path = folder / AUXILIARY
        weights = load_checkpoint(path, device, keys=("settings", "average"))
        settings = AuxiliaryConfig(**weights["settings"])
    if not weights:
        raise UserError(f"{folder} has no auxiliary prior; train one with pyro-delta train-prior {folder}.")
    auxiliary = AuxiliaryTraining.of(settings, prior).prior
    load_weights(auxiliary, averaged_weights(weights), path)
    return auxiliary


def averaged_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The averaged weights in a state, under the names of what is averaged."""
    return {name.removeprefix("module."): value for name, value in state["average"].items() if name != "n_averaged"}


def resumed_config(folder: Path, settings: list[tuple[str, Any]]) -> Config:
    """The configuration of a run to be resumed, longer if `settings` say so.

    Raises:
        UserError: if the folder is no run, or a setting other than `EXTENSIBLE` contradicts the run's.
    """
    saved = read_config(folder)
    config = configuration.overlaid(saved.model_dump(), settings, folder / PROGRAMS)
    if found := _first_change(saved.model_dump(mode="json"), config):
        key, before, now = found
        raise UserError(
            f"{folder} was made with {key}={before}, not {now}; leave that out to resume it, or start a new run."
        )
    return config


def check_made_with(state: dict[str, Any], config: Config, folder: Path) -> None:
    """Refuses a configuration other than the one that a run's checkpoint was made with: config.json was edited.

    Raises:
        UserError: naming the first setting that differs, `EXTENSIBLE` ones aside, and both values.
    """
    if found := _first_change(state["config"], config):
        key, before, now = found
        raise UserError(
            f"{folder / CONFIG} has {key}={now}, but the run was made with {before}; put that back, or start a new run."
        )


def _first_change(before: dict[str, Any], config: Config) -> tuple[str, Any, Any] | None:
    """The first setting, of those that may not change, that differs from the sections `before`, and both its values."""
    after = config.model_dump(mode="json")
    for section, fields in before.items():
        for field, value in fields.items():
            key, now = f"{section}.{field}", after[section].get(field)
            if key not in EXTENSIBLE and now != value:
                return key, value, now
    return None


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())
