"""Images a second of a training step, PixelSNAIL against the Gated PixelCNN: 32×32×3, everything a step has.

Both are δ-VAEs of shipped presets, `cifar10-small` and `cifar10-pixelsnail`. Steps alternate, so that a machine that
slows down slows down both; medians are compared.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import pyro
from record import add_common_arguments, write
from step_overhead import random_data

from pyro_delta.api.train import prepare
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.nn.precision import set_bf16

SPEC = ImageSpec(3, 32, 32, 256)
PRESETS = ("cifar10-small", "cifar10-pixelsnail")


WAYS = {"float32": (False, False), "float32, channels_last": (False, True), "bf16, channels_last": (True, True)}


def trainers(batch: int, seed: int, bf16: bool, channels_last: bool) -> dict[str, PyroTraining]:
    """One for each preset."""
    settings: list[tuple[str, Any]] = [
        ("training.steps", 100_000),
        ("training.batch", batch),
        ("training.seed", seed),
        ("training.bf16", bf16),
        ("training.channels_last", channels_last),
    ]
    data = random_data(SPEC, 4 * batch)
    made = {preset: prepare(load_preset(preset, settings), "cpu", data=data) for preset in PRESETS}
    for trainer in made.values():
        set_bf16(trainer.vae, bf16)  # which a CPU that imitates it does without, unless it is told
    return made


def main() -> None:
    """Both presets, in every precision and layout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20, help="steps of each")
    add_common_arguments(parser, "training_speed")
    arguments = parser.parse_args()
    rows = []
    for way, settings in WAYS.items():
        contestants = trainers(arguments.batch, arguments.seed, *settings)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        with pyro.validation_enabled(False):
            for repeat in range(arguments.repeats + 3):
                for name, trainer in contestants.items():
                    x_bchw = trainer.batches.batch(repeat)
                    began = time.perf_counter()
                    trainer.train_step(x_bchw)
                    if repeat >= 3:  # the first ones warm up
                        times[name].append(time.perf_counter() - began)
        for name, trainer in contestants.items():
            rows.append(
                {
                    "preset": name,
                    "likelihood": trainer.config.likelihood.program,
                    "precision": way,
                    "batch": arguments.batch,
                    "parameters": sum(p.numel() for p in trainer.vae.model.likelihood.parameters()),
                    "median_images_per_s": arguments.batch / median(times[name]),
                    "best_images_per_s": arguments.batch / min(times[name]),
                }
            )
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
