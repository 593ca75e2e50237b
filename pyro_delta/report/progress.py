"""How training and evaluation come along: a live line on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pyro_delta.config import Config, TrainingConfig
from pyro_delta.cores import Cores, left_cores, set_threads
from pyro_delta.report.track import Track


@contextmanager
def counting(what: str, total: int, *, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar for `total` data on a terminal, if it is to show; yields what to call with the number of data just done."""
    if not (show and sys.stderr.isatty()):
        yield lambda data: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda data: bar.advance(task, data)


@contextmanager
def following(
    config: Config, unit: str, device: torch.device, past: Iterable[dict[str, Any]] = ()
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Follows a training on a device, whose bounds are in `unit`; yields what to call with each line of metrics.

    Lines that are there already, of a training that goes on, are `past`.
    """
    settings, track, crowded = config.training, Track(config, past), Crowded()
    by_threads = settings.backend == "pyro" and device.type == "cpu"

    def told(line: dict[str, Any]) -> str:
        beside = track.beside(line)
        return f"{line['split']}: {describe(line, settings, unit)}" + (f" · {beside}" if beside else "")

    def notices(line: dict[str, Any]) -> Iterator[str]:
        found = (track.notice(line), crowded.notice(torch.get_num_threads()) if by_threads else None)
        yield from (f"pyro-delta: {notice}" for notice in found if notice)

    if not sys.stderr.isatty():

        def write(line: dict[str, Any]) -> None:
            for text in (told(line), *notices(line)):
                print(text, file=sys.stderr, flush=True)

        yield write
        return
    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)

        def show(line: dict[str, Any]) -> None:
            if line["split"] == "train":
                bar.update(task, completed=part_done(line, settings), description=describe(line, settings, unit))
            else:
                bar.console.print(told(line), highlight=False, markup=False)
            for notice in notices(line):
                bar.console.print(notice, highlight=False, markup=False)

        yield show


class Crowded:
    """Says once that there are too many threads for the cores that others leave, or fewer than those."""

    def __init__(self) -> None:
        self.cores, self.said = Cores(), False

    def notice(self, threads: int) -> str | None:
        """The sentence, if in the time since the last call too few cores were free for so many threads, or more.

        On a single thread nothing waits. Of more threads it speaks where it was us who took fewer.
        """
        taken, count, kept = self.cores.taken(), len(self.cores.allowed), set_threads()
        crowded = threads > max(1, round(count - taken))
        spare = threads < self.cores.threads(taken) and left_cores()
        if self.said or not (crowded or spare):
            return None
        self.said = True
        mend = "stopped and gone on with by --resume, this takes as many as are free"
        if spare:
            on = f"on {threads} thread{'' if threads == 1 else 's'}"
            return f"this trains {on}, and other processes keep only {taken:.1f} of {count} cores busy by now; {mend}."
        return (
            f"other processes keep {taken:.1f} of {count} cores busy, and {threads} threads on the rest wait for one "
            f"another; {mend if kept is None else f'{kept} holds here, and fewer would go faster'}."
        )


def describe(line: dict[str, Any], settings: TrainingConfig, unit: str) -> str:
    """Step, data/s, −ELBO, rate, δ and time left, in a line."""
    left = seconds_left(line, settings)
    parts = [
        f"step {line['step']}",
        f"{line['images_per_s']:.0f} data/s" if "images_per_s" in line else "",
        f"{_number(line['neg_elbo_bpd'], 4)} {unit}",
        f"rate {_number(line['rate_nats_mean'], 3)} nats",
        f"δ {_number(line['delta_nats'], 3)}",
        f"{left // 60:.0f}:{left % 60:02.0f} left" if "images_per_s" in line else "",
        f"{line['skipped']} step{'s' * (line['skipped'] > 1)} skipped" if line.get("skipped") else "",
    ]
    return " · ".join(part for part in parts if part)


def part_done(line: dict[str, Any], settings: TrainingConfig) -> float:
    """Part of training that is over, 0 … 1."""
    if settings.steps is not None:
        return min(1.0, line["step"] / settings.steps)
    assert settings.minutes is not None
    return min(1.0, line["train_s"] / (60 * settings.minutes))


def seconds_left(line: dict[str, Any], settings: TrainingConfig) -> int:
    """Training time still to come, at the speed so far."""
    done = part_done(line, settings)
    return round(line["train_s"] * (1 - done) / done) if done else 0


def _number(value: float | None, digits: int) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _console() -> Console:
    return Console(stderr=True)
