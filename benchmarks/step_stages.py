"""Where a step of training goes, 32×32×3, by stage and by kernel, and what a batch's size costs an image.

Medians over steps of random images, on the CPU: the guide, the decoder with all densities, the way back, the optimiser
(which clips) and the average of the weights. Then the kernels, by torch's profiler, by their own time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pyro
from record import add_common_arguments, print_table, write
from step_overhead import random_data
from torch.profiler import ProfilerActivity, profile

from pyro_delta.api.train import prepare
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.inference.pyro_training import PyroTraining

SPEC = ImageSpec(3, 32, 32, 256)
PRESETS = ("cifar10-pixelsnail-contour", "cifar10-contour")
BATCHES = (2, 4, 8, 16)
KERNELS = 8
"""As many are named."""


class Stages:
    """Times of the stages of a trainer's steps, in seconds, one after the other."""

    def __init__(self, trainer: PyroTraining) -> None:
        self.times: dict[str, list[float]] = {}
        self.began: dict[str, float] = {}
        for name, module in (("guide", trainer.vae.guide), ("loss", trainer.loss)):
            module.register_forward_pre_hook(lambda *_, name=name: self.begin(name))
            module.register_forward_hook(lambda *_, name=name: self.end(name))
        trainer.loss.register_forward_hook(lambda *_: self.begin("backward"))
        trainer.update = self.timed("optimiser", trainer.update, before=lambda: self.end("backward"))  # type: ignore[assignment]
        trainer.average.update = self.timed("average", trainer.average.update)  # type: ignore[method-assign]

    def begin(self, name: str) -> None:
        self.began[name] = time.perf_counter()

    def end(self, name: str) -> None:
        self.times.setdefault(name, []).append(time.perf_counter() - self.began[name])

    def timed(self, name: str, call: Callable[..., Any], before: Callable[[], None] = lambda: None) -> Any:
        def wrapped(*arguments: Any) -> None:
            before()
            self.begin(name)
            call(*arguments)
            self.end(name)

        return wrapped

    def medians(self, first: int) -> dict[str, float]:
        """Of the steps from one on; the decoder is what the loss takes beside the guide."""
        found = {name: median(times[first:]) for name, times in self.times.items()}
        found["decoder"] = found.pop("loss") - found["guide"]
        return found


def trainer_of(preset: str, batch: int, seed: int) -> PyroTraining:
    """A training of random images."""
    settings = [("training.steps", 100_000), ("training.batch", batch), ("training.seed", seed)]
    return prepare(load_preset(preset, settings), "cpu", data=random_data(SPEC, 4 * batch))


def stages(preset: str, batch: int, seed: int, repeats: int) -> dict[str, Any]:
    """A row: images a second, and the milliseconds of each stage."""
    trainer, whole = trainer_of(preset, batch, seed), []
    watch = Stages(trainer)
    for step in range(repeats + 3):  # the first ones warm up
        x_bchw = trainer.batches.batch(step)
        began = time.perf_counter()
        trainer.train_step(x_bchw)
        whole.append(time.perf_counter() - began)
    step_s = median(whole[3:])
    milliseconds = {f"{name}_ms": 1e3 * seconds for name, seconds in watch.medians(3).items()}
    return {"preset": preset, "batch": batch, "images_per_s": batch / step_s, "step_ms": 1e3 * step_s, **milliseconds}


def kernels(preset: str, seed: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of what takes most of a step of the preset's own batch, by its own time."""
    trainer = trainer_of(preset, load_preset(preset).training.batch, seed)
    for step in range(3):
        trainer.train_step(trainer.batches.batch(step))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for step in range(repeats):
            trainer.train_step(trainer.batches.batch(step))
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "preset": preset,
            "kernel": event.key,
            "part": event.self_cpu_time_total / total,
            "calls_a_step": event.count / repeats,
        }
        for event in events[:KERNELS]
    ]


def main() -> None:
    """Stages of every preset and batch, kernels of every preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="steps of each")
    add_common_arguments(parser, "step_stages")
    arguments = parser.parse_args()
    with pyro.validation_enabled(False):
        by_kernel = [row for preset in PRESETS for row in kernels(preset, arguments.seed, arguments.repeats)]
        print_table(by_kernel)
        rows = [stages(preset, batch, arguments.seed, arguments.repeats) for preset in PRESETS for batch in BATCHES]
    write(arguments.out, arguments.seed, rows, kernels=by_kernel)


if __name__ == "__main__":
    main()
