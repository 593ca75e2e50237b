"""Images a second in training by one process and by two under torchrun, of one thread each: `cifar10-small` on noise.

The batch is the same, two processes share it. The contestants take turns, each time as new processes; medians are of
the turns. Time is that of the steps alone, after a few that warm up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from record import add_common_arguments, write
from step_overhead import random_data

from pyro_delta import ranks
from pyro_delta.api.train import prepare
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec

PRESET = "cifar10-small"
SPEC = ImageSpec(3, 32, 32, 256)
PROCESSES = (1, 2)
WARM = 3


def work(batch: int, steps: int, seed: int) -> None:
    """Trains as one of the ranks; the first one prints images a second."""
    torch.set_num_threads(1)
    ranks.join("cpu")
    torch.manual_seed(seed)
    settings: list[tuple[str, Any]] = [("training.steps", 100_000), ("training.batch", batch), ("training.seed", seed)]
    training: Any = prepare(load_preset(PRESET, settings), "cpu", data=random_data(SPEC, 16 * batch))
    with training.running():
        for _ in range(WARM):
            training.advance()
        ranks.gathered(None)
        began = time.perf_counter()
        for _ in range(steps):
            training.advance()
        seconds = time.perf_counter() - began
    if ranks.first():
        print(batch * steps / seconds)


def images_per_second(processes: int, arguments: argparse.Namespace) -> float:
    """Of new processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    numbers = [f"--{name}={getattr(arguments, name)}" for name in ("batch", "steps", "seed")]
    done = subprocess.run(
        [*start, __file__, "--work", *numbers],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Both, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="data of a step, over all processes")
    parser.add_argument("--steps", type=int, default=30, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    add_common_arguments(parser, "ranks_speed")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.batch, arguments.steps, arguments.seed)
        return
    speeds: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    for _ in range(arguments.repeats):
        for processes in PROCESSES:
            speeds[processes].append(images_per_second(processes, arguments))
    rows = [
        {
            "preset": PRESET,
            "processes": processes,
            "threads_each": 1,
            "batch": arguments.batch,
            "median_images_per_s": median(found),
            "best_images_per_s": max(found),
            "turns": len(found),
        }
        for processes, found in speeds.items()
    ]
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
