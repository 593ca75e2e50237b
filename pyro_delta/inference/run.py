"""The run folder: configuration, metrics, TensorBoard events, checkpoint and sample grids of one training.

::

    config.json      the whole configuration
    run.json         preset, data specification and versions of packages
    metrics.jsonl    one line of numbers per logging step and validation
    events/          the same for TensorBoard
    checkpoint.pt    the newest state
    samples/         grids of generated images
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import torch
from torch.utils.tensorboard import SummaryWriter

from pyro_delta import __version__
from pyro_delta import config as configuration
from pyro_delta.build import Programs, build
from pyro_delta.config import Config
from pyro_delta.data.spec import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole
from pyro_delta.inference.checkpoint import load_checkpoint, load_weights, save_atomically
from pyro_delta.inference.loop import Trainer
from pyro_delta.report.pictures import draw, grid, save_png

CONFIG, INFO, METRICS, EVENTS, CHECKPOINT, SAMPLES = (
    "config.json",
    "run.json",
    "metrics.jsonl",
    "events",
    "checkpoint.pt",
    "samples",
)
PACKAGES = ("torch", "pyro-ppl", "numpy")
EXTENSIBLE = {"training.steps", "training.minutes"}
"""Settings that may change when a run is resumed."""
GRID = 16
"""Images in a sample grid."""

Line = dict[str, Any]


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
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} holds another run; give another --out, or --resume to go on with it.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder as --out.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no run; give a new or an empty folder as --out.")
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {folder}: no permission in {parent}; give another --out.")


def create(folder: Path, config: Config, spec: ImageSpec, preset: str) -> None:
    """Makes the folder of a new run.

    Raises:
        UserError: as `check_free`.
    """
    check_free(folder)
    info = {
        "preset": preset,
        "spec": asdict(spec),
        "versions": {
            "pyro-delta": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
    }
    try:
        (folder / SAMPLES).mkdir(parents=True)
        write_text(folder / INFO, json.dumps(info, indent=2) + "\n")
        configuration.save(config, folder / CONFIG)
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror}); give another --out.") from None


def read_info(folder: Path) -> tuple[str, ImageSpec]:
    """Preset and data specification of a run.

    Raises:
        UserError: if the file that holds them is missing or damaged.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        return str(info["preset"]), ImageSpec(**info["spec"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / INFO} is missing or damaged; give a folder that `train` wrote.") from None


def load(folder: Path, device: torch.device | str = "cpu") -> Loaded:
    """Reads a run's averaged weights into its programs. Torch's random state stays as it is.

    Raises:
        UserError: if the folder is no run, or its checkpoint is missing, damaged or of another configuration.
    """
    config = configuration.load(folder / CONFIG)
    _, spec = read_info(folder)
    state = load_checkpoint(folder / CHECKPOINT, device, keys=("average",))
    with torch.random.fork_rng(devices=[]):
        programs = build(config, spec).to(device)
    average = {name.removeprefix("module."): value for name, value in state["average"].items() if name != "n_averaged"}
    load_weights(programs, average, folder / CHECKPOINT)
    return Loaded(config, spec, programs.eval())


def resumed_config(folder: Path, settings: list[tuple[str, Any]]) -> Config:
    """The configuration of a run to be resumed, longer if `settings` say so.

    Raises:
        UserError: if the folder is no run, or a setting other than `EXTENSIBLE` contradicts the run's.
    """
    saved = configuration.load(folder / CONFIG)
    config = configuration.overlaid(saved.model_dump(), settings)
    before, after = saved.model_dump(), config.model_dump()
    for section, fields in before.items():
        for field, value in fields.items():
            key = f"{section}.{field}"
            if key not in {*EXTENSIBLE, "data.root"} and after[section][field] != value:
                raise UserError(
                    f"{folder} was made with {key}={value}, not {after[section][field]}; "
                    "leave that out to resume it, or start a new run."
                )
    return config


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())


def read_metrics(folder: Path) -> list[Line]:
    """The lines of metrics of a run; a last one cut short by a crash is left out."""
    lines = []
    path = folder / METRICS
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Recorder:
    """Writes a training into its folder: lines, events, checkpoints and pictures.

    Args:
        folder: of the run.
        show: called with every line as well.
        step: lines after it are dropped: they were written after the checkpoint that a run goes on from.
    """

    def __init__(self, folder: Path, show: Callable[[Line], None], step: int = 0) -> None:
        self.folder, self.show = folder, show
        self.lines = [line for line in read_metrics(folder) if line["step"] <= step]
        write_text(folder / METRICS, "".join(json.dumps(line) + "\n" for line in self.lines))
        self.events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1)
        self.saved, self.drawn = time.monotonic(), -1

    def log(self, line: Line) -> None:
        """Takes a line of metrics; what is not a finite number becomes null, which every reader of JSON knows."""
        line = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in line.items()}
        self.lines.append(line)
        with open(self.folder / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in line.items():
            if isinstance(value, (int, float)) and key != "step":
                self.events.add_scalar(f"{line['split']}/{key}", value, line["step"])
        self.show(line)

    def every(self, trainer: Trainer) -> None:
        """After each logging step: a checkpoint when one is due, a picture after each validation."""
        if time.monotonic() - self.saved >= 60 * trainer.config.training.checkpoint_minutes:
            self.save(trainer)
        if self.lines and self.lines[-1]["split"] == "validation":
            self.draw(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint."""
        save_atomically(trainer.state(), self.folder / CHECKPOINT)
        self.events.flush()
        self.saved = time.monotonic()

    def draw(self, trainer: Trainer) -> None:
        """Writes a grid of samples, of the same noise each time, unless this step has one."""
        if self.drawn == trainer.step:
            return
        self.drawn = trainer.step
        images = draw(cast(Programs, trainer.average.module), GRID)
        picture = grid(images, trainer.data.spec.levels, columns=8)
        save_png(picture, self.folder / SAMPLES / f"step_{trainer.step:06d}.png")

    def finish(self, trainer: Trainer) -> None:
        """The last checkpoint; of a training that came to its end, the last picture too."""
        self.save(trainer)
        if not trainer.interrupted:
            self.draw(trainer)

    def close(self) -> None:
        """Closes the events."""
        self.events.close()

    def summary(self) -> Line:
        """The newest line of the validation split, or else the newest line."""
        validated = [line for line in self.lines if line["split"] == "validation"]
        return (validated or self.lines or [{}])[-1]


@contextmanager
def stopping(trainer: Trainer) -> Iterator[None]:
    """Turns the first interrupt or termination signal into an orderly end after the step under way."""

    def stop(number: int, frame: FrameType | None) -> None:
        if trainer.interrupted:  # asked twice: at once
            raise KeyboardInterrupt
        trainer.interrupted = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
