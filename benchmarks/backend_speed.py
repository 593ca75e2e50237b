"""Images a second in training, Pyro against NumPyro: the same networks and batches, everything that a step has.

Each contestant trains a stretch of steps in its turn, so that a machine that slows down slows down all; medians over
the stretches are compared. Pyro runs in float32, as NumPyro does, and as the presets have it (bf16, channels_last).
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import torch
from record import add_common_arguments, write
from step_overhead import random_data

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import ImageSpec
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.inference.training import Training
from pyro_delta.twin import build as twins
from pyro_delta.twin.numpyro_training import NumPyroTraining

CASES = {
    "digits": (ImageSpec(1, 8, 8, 17), 50),
    "cifar10-small": (ImageSpec(3, 32, 32, 256), 10),
    "cifar10-pixelsnail": (ImageSpec(3, 32, 32, 256), 5),
}
"""Preset → images, and steps of a stretch."""
FLOAT32 = [("training.bf16", False), ("training.channels_last", False)]
WAYS: dict[str, list[tuple[str, Any]]] = {
    "Pyro, float32": FLOAT32,
    "Pyro, bf16 and channels_last": [("training.bf16", True), ("training.channels_last", True)],
    "NumPyro, float32": [("training.backend", "numpyro")],
}


def contestant(preset: str, settings: list[tuple[str, Any]], stretches: int) -> Training:
    """A training that logs once a stretch."""
    spec, steps = CASES[preset]
    common = [("training.steps", (stretches + 1) * steps), ("training.log_every", steps), ("training.validations", 0)]
    config = load_preset(preset, [*common, *settings])
    data = random_data(spec, 8 * config.training.batch)
    lines: list[dict[str, Any]] = []
    vae = build(config, spec)
    training: Training
    if config.training.backend == "numpyro":
        training = NumPyroTraining(config, data, vae, twins.build(config, spec), lines.append)
    else:
        training = PyroTraining(config, data, vae, lines.append)
    training.lines = lines  # type: ignore[attr-defined]
    return training


def main() -> None:
    """Every preset, every way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stretches", type=int, default=12, help="of each contestant")
    parser.add_argument("--presets", nargs="*", choices=list(CASES), default=list(CASES))
    add_common_arguments(parser, "backend_speed")
    arguments = parser.parse_args()
    rows = []
    for preset in arguments.presets:
        torch.manual_seed(arguments.seed)
        contestants = {way: contestant(preset, settings, arguments.stretches) for way, settings in WAYS.items()}
        for _ in range(arguments.stretches + 1):
            for training in contestants.values():
                training.run(lambda training: setattr(training, "interrupted", True))
                training.interrupted = False
        speeds = {way: [line["images_per_s"] for line in t.lines[1:]] for way, t in contestants.items()}  # type: ignore[attr-defined]
        reference = median(speeds["Pyro, float32"])
        rows += [
            {
                "preset": preset,
                "backend": way,
                "batch": contestants[way].config.training.batch,
                "median_images_per_s": median(found),
                "against_pyro_float32": median(found) / reference,
            }
            for way, found in speeds.items()
        ]
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
