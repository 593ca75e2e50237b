"""Trainings that are killed at random moments and go on: do they end as one that nobody disturbed?

    python benchmarks/kills.py --kills 100 --seed 0

Trains a small run of the embedded digits once to its end. Then the same training again and again, each of its
processes ended by SIGKILL, SIGTERM or SIGINT at a random moment of its life, from its first instant on, and begun anew
by `--resume`, or as it was where there was no checkpoint yet. When such a training has come to its end, all that it
left is compared with the undisturbed one, bit for bit: weights, averages, best weights, optimiser, random state, sums
since the last line, and the lines of metrics, clocks aside. A loss is a run that differs, or cannot be gone on with.
Prints a table, writes reference/benchmarks/kills.json, and exits with 1 if there is a loss.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for all processes

import argparse
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by the first step of an optimiser
from record import add_common_arguments, write
from tiny import TINY

from pyro_delta.api.train import prepare
from pyro_delta.cli import main as command_line
from pyro_delta.config import load_preset
from pyro_delta.errors import UserError
from pyro_delta.inference.run import has_checkpoint, read_metrics, read_state

SETTINGS = TINY | {
    "auxiliary.enabled": "true",
    "auxiliary.hidden": 4,
    "training.steps": 60,
    "training.log_every": 7,
    "training.validations": 4,
    "training.validation_images": 64,
    "training.checkpoint_minutes": 1e-6,  # one at every line: as many to be disturbed as there can be
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
CLOCKS = {"wall_s", "train_s", "images_per_s"}
STOPPED = 130


def begin(folder: Path, said: Path) -> int:
    """A process that trains into a folder, or goes on there; its number."""
    command = ["train", "--out", str(folder), "--device", "cpu"]
    if folder.exists() and has_checkpoint(folder):
        command += ["--resume"]
    else:
        command += ["--dataset", "digits", *(part for k, v in SETTINGS.items() for part in ("--set", f"{k}={v}"))]
    child = os.fork()
    if child:
        return child
    code = STOPPED
    try:
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        command_line(command)
    except SystemExit as error:
        code = int(error.code or 0)
    except KeyboardInterrupt:  # before the command took signals into its hands
        pass
    finally:
        os._exit(code)


def moments(random_: random.Random, longest: float) -> Iterator[tuple[signal.Signals, float]]:
    """Signals in turn, each with the second of a process's life at which it comes."""
    while True:
        for number in SIGNALS:
            yield number, random_.uniform(0, longest)


def remains(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """All that a finished run holds, clocks aside."""
    state, _, _ = read_state(folder)
    if window := state.get("window"):
        window.pop("began")
    lines = [{key: value for key, value in line.items() if key not in CLOCKS} for line in read_metrics(folder)]
    return {key: value for key, value in state.items() if key not in CLOCKS}, lines


def same(found: Any, expected: Any) -> bool:
    """Whether two runs are the same in every bit."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else bool(found == expected)


def ended(child: int, number: signal.Signals, after: float) -> int | None:
    """How a process ended that was sent a signal after so many seconds; None if it had come to its end before.

    Returns:
        its exit code, or minus the number of the signal.
    """
    end = time.monotonic() + after
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None if status == 0 else os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code or None  # an orderly stop at the last step is an end


def main() -> int:
    """Kills, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, "kills")
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    given = parser.parse_args()
    torch.set_num_threads(1)
    import_module("pyro_delta.cli.train")
    prepare(load_preset("digits"), "cpu")  # imports, once for all processes; without a gradient, so that they may fork
    counts: dict[signal.Signals, Counter[str]] = {number: Counter() for number in SIGNALS}
    losses: list[str] = []
    trainings, kills = 0, 0
    with tempfile.TemporaryDirectory() as place:
        whole, said = Path(place) / "whole", Path(place) / "said"
        began = time.monotonic()
        if os.waitpid(begin(whole, said), 0)[1]:
            print(said.read_text())
            return 1
        expected, longest = remains(whole), 0.7 * (time.monotonic() - began)
        when = moments(random.Random(given.seed), longest)
        while kills < given.kills and not losses:
            folder = Path(place) / f"run-{trainings}"
            trainings += 1
            while True:
                number, after = next(when)
                try:
                    first = not (folder.exists() and has_checkpoint(folder))
                    code = ended(begin(folder, said), number, after)
                except UserError as error:
                    losses.append(str(error))
                    break
                if code is None:
                    break
                if code not in (STOPPED, -number):
                    losses.append(said.read_text())
                    break
                kills += 1
                counts[number]["from the beginning" if first else "from a checkpoint"] += 1
                counts[number]["in order" if code == STOPPED else "at once"] += 1
            if not losses and not same(remains(folder), expected):
                losses.append(f"training {trainings} is another one")
    columns = ("from the beginning", "from a checkpoint", "in order", "at once")
    rows = [
        {"signal": number.name, "kills": sum(counts[number][key] for key in columns[:2])}
        | {key: counts[number][key] for key in columns}
        for number in SIGNALS
    ]
    more = {"kills": kills, "trainings": trainings, "losses": len(losses), "settings": SETTINGS}
    write(given.out, given.seed, rows, **more)
    print(f"{kills} kills in {trainings} trainings, {len(losses)} losses", *losses, sep="\n")
    return int(bool(losses))


if __name__ == "__main__":
    raise SystemExit(main())
