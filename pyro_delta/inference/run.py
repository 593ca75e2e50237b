"""The run folder: configuration, metrics, TensorBoard events, checkpoint and sample grids of one training.

::

    config.json      the whole configuration
    run.json         format, preset, spec of the data, versions of packages, commit, digests of the configuration, of
                     the training data and of programs that are not shipped
    programs/        copies of programs that came from files
    auxiliary.pt     an auxiliary prior, trained afterwards
    metrics.jsonl    one line of numbers per logging step and validation
    events/          the same for TensorBoard
    checkpoint.pt    the newest state, and the best weights on the validation split
    samples/         what the model drew in training
    check.json       numbers of `check --keep`
    terms.npz        rate and distortion of each datum of that check
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_delta import config as configuration
from pyro_delta.build import build, load_data
from pyro_delta.config import AuxiliaryConfig, Config
from pyro_delta.data.named import spec_before_data
from pyro_delta.data.spec import spec_as_dict, spec_of_dict
from pyro_delta.data.splits import split_digest
from pyro_delta.diagnostics.table import unfinished
from pyro_delta.errors import UserError, unknown_name
from pyro_delta.files import written_whole
from pyro_delta.inference.auxiliary import AuxiliaryTraining
from pyro_delta.inference.checkpoint import load_checkpoint, load_weights, save_atomically
from pyro_delta.inference.optim import MAX_STREAK
from pyro_delta.inference.provenance import provenance
from pyro_delta.programs import KINDS, check_copies, find, keep_copies
from pyro_delta.protocol import Data, Prior, Spec
from pyro_delta.vae import VAE, with_prior

CONFIG, INFO, METRICS, EVENTS, CHECKPOINT, SAMPLES, PROGRAMS, AUXILIARY, CHECK, TERMS = (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "events",
    "checkpoint.pt",
    "samples",
    "programs",
    "auxiliary.pt",
    "check.json",
    "terms.npz",
)
PACKAGES = ("torch", "pyro-ppl", "numpy")
EXTENSIBLE = {"training.steps", "training.minutes", "data.root"}
"""Settings that may change when a run is resumed."""


FORMAT = 2
"""Of a run folder; others are refused."""
PRIORS = ("model", "auxiliary")
"""Of a run, that can be asked for."""
WEIGHTS = ("best", "last")
"""Of a run, that can be asked for."""


@dataclass(frozen=True)
class Run:
    """A trained model and its guide, with averaged weights, in float32 and evaluation mode.

    Attributes:
        config: all settings.
        spec: of the data.
        vae: model and guide.
        weights: best, of the validation with the least −ELBO, or last.
        step: that these weights are of.
        trained_steps: that its training has made, as far as is known: by its metrics where it has not come to its end.
        finished: whether that came to its end.
        folder: that it was read from; None if it was trained without one.
        given: the data, where they were handed over rather than named.
        lines: of metrics, where there is no folder.
        data_digest: of the training data, where it was kept.
        skipped_steps: of those that it has made, because they were not finite.
    """

    config: Config
    spec: Spec
    vae: VAE
    weights: str
    step: int
    trained_steps: int
    finished: bool
    folder: Path | None = None
    given: Data | None = None
    lines: tuple[dict[str, Any], ...] = ()
    data_digest: str | None = None
    skipped_steps: int = 0

    def __repr__(self) -> str:
        """In a line."""
        names = ", ".join(f"{kind} {getattr(self.config, kind).program}" for kind in KINDS[:4])
        return f"<Run {self.folder or 'in memory'}: {names}>"

    @property
    def facts(self) -> dict[str, Any]:
        """What goes with every number that is measured of it: which weights, of what training, and by which code."""
        return {
            "weights": self.weights,
            "step": self.step,
            "trained_steps": self.trained_steps,
            "skipped_steps": self.skipped_steps,
            "finished": self.finished,
            "config_digest": configuration.digest(self.config),
            **provenance(),
        }

    @property
    def caveat(self) -> str | None:
        """In a sentence, that it is not what its training was to give; None if it is."""
        if self.finished:
            return None
        mend = (
            "it diverged: train again with a lower training.lr or a training.clip"
            if self.skipped_steps >= MAX_STREAK
            else "go on with --resume"
        )
        return f"The training has not come to its end: {unfinished(self.facts)}; {mend}."

    @property
    def metrics(self) -> tuple[dict[str, Any], ...]:
        """The lines of metrics of its training."""
        if self.folder is None:
            return self.lines
        return tuple(read_metrics(self.folder))

    def trained_on(self, data: Data) -> bool | None:
        """Whether its training data are these; None if that was not kept."""
        return None if self.data_digest is None else split_digest(data.train) == self.data_digest

    def data(self, root: str | None = None) -> Data:
        """The data that it was trained on, read again; `trained_on` says whether they are still the same.

        Args:
            root: where they live now.

        Raises:
            UserError: if they are not of the kind that the run was made for.
        """
        if self.given is not None:
            return self.given
        data = load_data(self.config, root, None if self.folder is None else self.folder / PROGRAMS)
        check_spec(data, self.spec, self.config.data.program)
        return data


def check_spec(data: Data, spec: Spec, name: str) -> None:
    """Refuses data of another spec than a run was made for.

    Args:
        data: that are to be used.
        spec: of the run.
        name: of the data.

    Raises:
        UserError: with both specs.
    """
    if data.spec != spec:
        raise UserError(f"{name} now holds {data.spec}, but the run was made for {spec}; give data of that spec.")


def check_digest(data: Data, kept: str | None, folder: Path) -> None:
    """Refuses to go on with other training data than a run began with; those made before kept no digest.

    Raises:
        UserError: naming the data.
    """
    if kept is not None and split_digest(data.train) != kept:
        raise UserError(
            f"the {len(data.train)} training data are not those that {folder} was made with, though of the same spec; "
            "give these again, or start a new run."
        )


def default_folder(config: Config, preset: str) -> Path:
    """`runs/<dataset>-<preset>-<seed>`, with the first free number behind it if that is taken."""
    name, root = config.data.program, config.data.options.get("root")
    if spec_before_data(name) is None and root is not None:
        name = f"{name}-{Path(str(root)).name}"
    dataset = re.sub(r"[^\w.-]+", "-", name.removeprefix("/")).strip("-") or "data"
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


def check_kept(spec: Spec) -> None:
    """Refuses a spec that could not be read back from a run.

    Raises:
        UserError: if it is not a dataclass of plain values, or its class is not found by its name.
    """
    try:
        back = spec_of_dict(json.loads(json.dumps(spec_as_dict(spec))))
        same = bool(back == spec)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError):
        same = False
    if not same:
        raise UserError(
            f"the spec {type(spec).__qualname__} of the data cannot be kept with a run; make its class a frozen "
            "dataclass of plain values, at the top of a module."
        )


def create(folder: Path, config: Config, data: Data, preset: str) -> None:
    """Makes the folder of a new run, with copies of the files that its programs came from.

    Raises:
        UserError: as `check_free` and `check_kept`.
    """
    check_free(folder)
    check_kept(data.spec)
    chosen = {kind: getattr(config, kind).program for kind in KINDS}
    info: dict[str, Any] = {
        "format": FORMAT,
        "preset": preset,
        "spec": spec_as_dict(data.spec),
        "data_digest": split_digest(data.train),
        **provenance(),
        "config_digest": configuration.digest(config),
        "versions": {
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


@dataclass(frozen=True)
class Info:
    """What run.json says: preset, spec as plain values, programs that are not shipped, digest of the data."""

    preset: str
    spec: dict[str, Any]
    programs: dict[str, dict[str, str]]
    data_digest: str | None


def read_info(folder: Path) -> Info:
    """What run.json says.

    Raises:
        UserError: if it is missing, damaged or of another version.
    """
    path = folder / INFO
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        found = Info(str(info["preset"]), dict(info["spec"]), dict(info.get("programs", {})), info.get("data_digest"))
        written = int(info.get("format", 1))  # the first one did not say
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is missing or damaged; give a folder that `train` wrote.") from None
    if written != FORMAT:
        raise UserError(
            f"{folder} was written by {'an older' if written < FORMAT else 'a newer'} pyro-delta (format {written}, "
            f"this one reads {FORMAT}); train the run again."
        )
    return found


def read_spec(folder: Path, config: Config) -> Spec:
    """The spec of a run's data.

    Raises:
        UserError: if run.json does not hold one.
    """
    values = read_info(folder).spec
    find("data", config.data.program, folder / PROGRAMS)  # a spec of a program's own is known from then on
    try:
        spec = spec_of_dict(values)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError):
        spec = None
    if not isinstance(spec, Spec):
        raise UserError(f"{folder / INFO} is damaged: {values!r} is not a spec of data; restore it.")
    return spec


def read_config(folder: Path) -> Config:
    """The configuration of a run, whose programs are still what they were.

    Raises:
        UserError: if the folder is not a run, or a program is missing or has changed.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a run; give a folder that `pyro-delta train` wrote.")
    if (folder / CONFIG).exists():  # if not, the configuration's own words say what is wrong
        check_copies(read_info(folder).programs, folder / PROGRAMS)
    return configuration.load(folder / CONFIG, folder / PROGRAMS)


def load(folder: Path | str, device: torch.device | str = "cpu", prior: str = "model", weights: str = "best") -> Run:
    """Reads a run: its averaged weights in its programs. Torch's random state stays as it is.

    Args:
        folder: of the run.
        device: where the programs go: auto, cpu or cuda.
        prior: model, or auxiliary to put the auxiliary prior in the place of the model's own.
        weights: best, those of the validation with the least −ELBO, or last; where there was no validation, best are
            the last ones. `Run.weights` says which they are.

    Raises:
        UserError: if the folder is not a run, it has no such prior, there is no such device, its checkpoint is missing,
            damaged or of another configuration, or a program is missing or has changed.
    """
    if weights not in WEIGHTS:
        raise unknown_name("weights", weights, WEIGHTS)
    if prior not in PRIORS:
        raise unknown_name("prior of a run", prior, PRIORS)
    device = choose_device(device)
    folder = Path(folder)
    config = read_config(folder)
    spec = read_spec(folder, config)
    state = load_checkpoint(
        folder / CHECKPOINT, device, keys=("config", "average", "step", "train_s", "best", "skipped")
    )
    check_made_with(state, config, folder)
    with torch.random.fork_rng(devices=[]):
        vae = build(config, spec, folder / PROGRAMS, check=False).to(device)
    kept = state["best"] if weights == "best" else None
    chosen = kept or last_weights(state)
    load_weights(vae, chosen["vae"], folder / CHECKPOINT)
    if config.training.channels_last:  # as it was trained: up to three times as fast
        vae.to(memory_format=torch.channels_last)
    if prior == "auxiliary":
        vae = with_prior(vae, _auxiliary(folder, config, vae.model.prior, chosen, device))
    finished = is_finished(config, state["step"], state["train_s"])
    made, skipped = state["step"], int(state["skipped"])
    if not finished:  # what it made after its last checkpoint is lost, but it made it
        for line in read_metrics(folder):
            made, skipped = max(made, line["step"]), max(skipped, line.get("skipped") or 0)
    return Run(
        config,
        spec,
        vae.eval(),
        "best" if kept else "last",
        chosen["step"],
        made,
        finished,
        folder,
        data_digest=read_info(folder).data_digest,
        skipped_steps=skipped,
    )


def choose_device(name: str | torch.device) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`.

    Raises:
        UserError: if it has another name, or CUDA is asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"the device {str(name)!r} is not known; give auto, cpu or cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch finds no CUDA device here; use --device cpu.")
    return device


def run_of(given: Run | str | Path) -> Run:
    """A run, read if its folder is given.

    Raises:
        UserError: if it is neither, or as `load`.
    """
    if not isinstance(given, Run | str | Path):
        raise UserError(f"{type(given).__name__} is not a run; give what `train` or `load` returned, or its folder.")
    return given if isinstance(given, Run) else load(given)


def last_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The newest averaged weights in a state, and those of an auxiliary prior, as `Training.best` holds them."""
    auxiliary = state.get("auxiliary")
    return {
        "step": state["step"],
        "vae": averaged_weights(state),
        "auxiliary": averaged_weights(auxiliary) if auxiliary else None,
    }


def is_finished(config: Config, step: int, train_s: float) -> bool:
    """Whether a training that has made so many steps in so many seconds came to its end."""
    settings = config.training
    return step >= settings.steps if settings.steps is not None else train_s >= 60 * (settings.minutes or 0)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics of a run; a last one cut short by a crash is left out.

    Raises:
        UserError: if another line is damaged, naming it.
    """
    path = folder / METRICS
    content = path.read_bytes() if path.exists() else b""
    texts, lines = content.splitlines(), []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text.decode())
        except ValueError:
            if number == len(texts) and not content.endswith(b"\n"):
                break
            line = None
        if not (isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("split"), str)):
            raise UserError(f"{path} is damaged: line {number} is not a line of metrics; mend it or take it out.")
        lines.append(line)
    return lines


def save_auxiliary(run: Run, settings: AuxiliaryConfig, training: AuxiliaryTraining) -> None:
    """Writes an auxiliary prior that was trained for the weights of a run that was read from its folder."""
    assert run.folder is not None
    made = {"settings": settings.model_dump(), "step": run.step, **training.state()}
    save_atomically(made, run.folder / AUXILIARY)


def _auxiliary(
    folder: Path, config: Config, prior: Prior, chosen: dict[str, Any], device: torch.device | str
) -> nn.Module:
    """The auxiliary prior of a run for the weights chosen: one trained afterwards, or else beside the model."""
    settings, weights, path = config.auxiliary, chosen["auxiliary"], folder / CHECKPOINT
    if (folder / AUXILIARY).exists():
        path = folder / AUXILIARY
        state = load_checkpoint(path, device, keys=("settings", "step", "average"))
        if state["step"] != chosen["step"]:
            raise UserError(
                f"{path} was trained for the weights of step {state['step']}, not for those of step {chosen['step']}; "
                f"train it again with pyro-delta train-prior {folder}, or choose --weights best or last."
            )
        settings, weights = AuxiliaryConfig(**state["settings"]), averaged_weights(state)
    if not weights:
        raise UserError(f"{folder} has no auxiliary prior; train one with pyro-delta train-prior {folder}.")
    auxiliary = AuxiliaryTraining.of(settings, prior).prior
    load_weights(auxiliary, weights, path)
    return auxiliary


def averaged_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The averaged weights in a state, under the names of what is averaged."""
    return {name.removeprefix("module."): value for name, value in state["average"].items() if name != "n_averaged"}


def resumed_config(folder: Path, settings: list[tuple[str, Any]]) -> Config:
    """The configuration of a run to be resumed, longer if `settings` say so.

    Raises:
        UserError: if the folder is not a run, or a setting other than `EXTENSIBLE` contradicts the run's.
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


def note_configuration(folder: Path, config: Config) -> None:
    """Writes the configuration of a run that was made longer, and its digest."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    write_text(folder / INFO, json.dumps(info | {"config_digest": configuration.digest(config)}, indent=2) + "\n")
    configuration.save(config, folder / CONFIG)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())
