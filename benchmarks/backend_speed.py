"""Images a second in training, Pyro against NumPyro: the same networks and batches, everything that a step has.

Each contestant trains a stretch of steps in its turn, so that a machine that slows down slows down all; medians over
the stretches are compared. Pyro runs in float32, as NumPyro does, and as the presets have it (bf16, channels_last).
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from record import add_common_arguments, write
from step_overhead import random_data

from pyro_delta.api.train import prepare
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.inference.training import Training

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


def contestant(
    preset: str, settings: list[tuple[str, Any]], stretches: int, seed: int
) -> tuple[Training, list[dict[str, Any]]]:
    """A training that logs once a stretch, and its lines."""
    spec, steps = CASES[preset]
    common = [("training.steps", (stretches + 1) * steps), ("training.log_every", steps), ("training.validations", 0)]
    config = load_preset(preset, [*common, ("training.seed", seed), *settings])
    training = prepare(config, "cpu", data=random_data(spec, 8 * config.training.batch))
    lines: list[dict[str, Any]] = []
    training.log = lines.append
    return training, lines


def main() -> None:
    """Every preset, every way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stretches", type=int, default=12, help="of each contestant")
    parser.add_argument("--presets", nargs="*", choices=list(CASES), default=list(CASES))
    add_common_arguments(parser, "backend_speed")
    arguments = parser.parse_args()
    rows = []
    for preset in arguments.presets:
        contestants = {
            way: contestant(preset, settings, arguments.stretches, arguments.seed) for way, settings in WAYS.items()
        }
        for _ in range(arguments.stretches + 1):
            for training, _ in contestants.values():
                training.run(lambda training: setattr(training, "interrupted", True))
                training.interrupted = False
        speeds = {way: [line["images_per_s"] for line in lines[1:]] for way, (_, lines) in contestants.items()}
        reference = median(speeds["Pyro, float32"])
        rows += [
            {
                "preset": preset,
                "backend": way,
                "batch": contestants[way][0].config.training.batch,
                "median_images_per_s": median(found),
                "against_pyro_float32": median(found) / reference,
            }
            for way, found in speeds.items()
        ]
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
