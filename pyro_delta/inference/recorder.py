"""What a training leaves in its run folder while it goes on: metrics, events, checkpoints and pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from pyro_delta import ranks
from pyro_delta.data.captions import shown
from pyro_delta.diagnostics.drawing import draw, extras_of
from pyro_delta.files import finite, named, written_whole
from pyro_delta.inference import manifest as manifests
from pyro_delta.inference.checkpoint import pack
from pyro_delta.inference.manifest import METRICS
from pyro_delta.inference.run import EVENTS, SAMPLES, parse_metrics
from pyro_delta.inference.training import Training
from pyro_delta.lock import Lock
from pyro_delta.signals import ended_by

SHOWN = 16
"""Data that are drawn and shown at each validation."""
COLUMNS = 8

Line = dict[str, Any]


class Recorder:
    """Writes a training into its folder: lines, events, checkpoints and pictures.

    Args:
        folder: of the run; lines that were written after its newest checkpoint are dropped.
        show: called with every line as well.
        step: that training goes on from.
        lock: on the folder.
    """

    def __init__(self, folder: Path, show: Callable[[Line], None], step: int = 0, lock: Lock | None = None) -> None:
        self.folder, self.show, self.lock = folder, show, lock
        manifest = manifests.read(folder)
        self.saved_step = -1 if manifest is None or manifest.newest is None else manifest.newest.step
        vouched = 0 if manifest is None or manifest.newest is None else manifest.newest.metrics_bytes
        kept = manifests.verified_metrics(folder)[:vouched]
        self.lines = parse_metrics(kept, folder / METRICS)
        with written_whole(folder / METRICS) as file:
            file.write(kept)
        self.events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1)
        self.saved, self.drawn = time.monotonic(), -1

    def log(self, line: Line) -> None:
        """Takes a line of metrics; what is not a finite number becomes null, which every reader of JSON knows.

        Raises:
            UserError: as `Lock.check`.
        """
        self._check()
        line = finite(line)
        self.lines.append(line)
        path = self.folder / METRICS
        with named(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in line.items():
            if isinstance(value, (int, float)) and key != "step":
                self.events.add_scalar(f"{line['split']}/{key}", value, line["step"])
        self.show(line)

    def every(self, trainer: Training) -> None:
        """After each logging step: a checkpoint when one is due or the weights are the best so far, and pictures."""
        best = trainer.best is not None and trainer.best["step"] == trainer.step
        if best or time.monotonic() - self.saved >= 60 * trainer.config.training.checkpoint_minutes:
            self.save(trainer)
        if self.lines and self.lines[-1]["split"] == "validation":
            self.draw(trainer)

    def save(self, trainer: Training) -> None:
        """Writes the checkpoint, unless that of this step is there.

        Raises:
            UserError: as `Lock.check`.
        """
        self._check()
        if trainer.step != self.saved_step:  # none is replaced while it is the newest
            manifests.add_checkpoint(self.folder, trainer.step, pack(trainer.state()))
            self.saved_step = trainer.step
        self.events.flush()
        self.saved = time.monotonic()

    def _check(self) -> None:
        if self.lock is not None:
            self.lock.check()

    def draw(self, trainer: Training) -> None:
        """Shows samples, of the same noise each time, unless this step has some."""
        if self.drawn == trainer.step:
            return
        self.drawn = trainer.step
        spec, name = trainer.data.spec, f"step_{trainer.step:06d}"
        drawn = draw(trainer.averaged(), SHOWN, extras=extras_of(trainer.data.validation, SHOWN))
        caption = f"{SHOWN} samples after step {trainer.step}, {COLUMNS} to a row."
        shown(spec, drawn, self.folder / SAMPLES / f"{name}{spec.suffix}", COLUMNS, caption)

    def finish(self, trainer: Training) -> None:
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
def stopping(trainer: Training) -> Iterator[None]:
    """Turns the first interrupt or termination signal into an orderly end after the step under way.

    Of several ranks each may get it, and more than once: from the terminal, and from torchrun, which ends them for good
    after half a minute.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if trainer.interrupted and ranks.count() == 1:  # asked twice: at once
            raise KeyboardInterrupt
        trainer.interrupted = True

    with ended_by(stop):
        yield
