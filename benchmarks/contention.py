"""What the waiting of OpenMP's threads costs: training alone, and beside one busy process, by settings of OpenMP.

Every run is a process of its own, for the settings are read when torch is imported; runs of all settings take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from record import add_common_arguments, write

from pyro_delta.cores import leave_busy_cores

FREE = "as many threads as free cores"
"""What the command line does."""
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    FREE: {},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    **{f"GOMP_SPINCOUNT={count}": {"GOMP_SPINCOUNT": str(count)} for count in (1000, 2000, 4000, 10_000)},
}
OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
BUSY = "while True: pass"


def images_per_s(preset: str, seconds: float) -> float:
    """Of training steps in this process, for so many seconds, after three steps to warm up."""
    import pyro
    from step_overhead import SPECS, random_data

    from pyro_delta.api.train import prepare
    from pyro_delta.config import load_preset

    config = load_preset(preset, [("training.steps", 1_000_000)])
    trainer = prepare(config, "cpu", data=random_data(SPECS[preset], 4 * config.training.batch))
    with pyro.validation_enabled(False):
        for step in range(3):
            trainer.train_step(trainer.batches.batch(step))
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            trainer.train_step(trainer.batches.batch(steps))
            steps += 1
    return steps * config.training.batch / (time.perf_counter() - began)


def measured(name: str, preset: str, seconds: float, busy: bool) -> float:
    """The same in a process with a setting, beside a busy one or not."""
    environment = {key: value for key, value in os.environ.items() if key not in OWN} | SETTINGS[name]
    neighbour = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    try:
        command = [sys.executable, __file__, "--child", preset, "--seconds", str(seconds), "--settings", name]
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    return float(json.loads(found.stdout.splitlines()[-1]))


def main() -> None:
    """All settings in turn, alone and beside a busy process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["digits", "cifar10-small"])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of training in each run")
    parser.add_argument("--child", metavar="PRESET", help=argparse.SUPPRESS)
    add_common_arguments(parser, "contention")
    arguments = parser.parse_args()
    if arguments.child:
        if arguments.settings == [FREE]:
            leave_busy_cores()
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))  # imported by now
        print(json.dumps(images_per_s(arguments.child, arguments.seconds)))
        return
    found: dict[tuple[str, str, bool], list[float]] = {}
    for _ in range(arguments.repeats):
        for preset in arguments.presets:
            for name in arguments.settings:
                for busy in (False, True):
                    speed = measured(name, preset, arguments.seconds, busy)
                    found.setdefault((preset, name, busy), []).append(speed)
    rows: list[dict[str, Any]] = [
        {
            "preset": preset,
            "setting": name,
            "images_per_s_alone": median(found[preset, name, False]),
            "images_per_s_beside_a_busy_process": median(found[preset, name, True]),
        }
        for preset in arguments.presets
        for name in arguments.settings
    ]
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
