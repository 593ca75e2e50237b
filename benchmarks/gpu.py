"""What a GPU makes of the presets that are meant for one: training, sampling, and the same step in NumPyro.

A row for each thing measured, printed as it comes and kept in `reference/gpu/`: images a second of whole training steps
in bf16, eager and compiled, at the largest batch that fits, the share of the card's own bf16 matrix product that their
floating-point operations are, and whether a step ever makes the host wait; seconds of cached sampling; a step of the
twin beside that of Pyro in float32. Images are random. `benchmarks/gpu.sh` runs this and all else; `--toy` goes
through the same lines with a tiny network on any machine, and compiles nothing but the twin.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from record import FOLDER, add_common_arguments, save, text
from step_overhead import random_data
from tiny import TINY

from pyro_delta.api.train import prepare
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.cost import flops_per_datum
from pyro_delta.diagnostics.drawing import draw
from pyro_delta.inference.pyro_training import PyroTraining

SPEC = ImageSpec(3, 32, 32, 256)
TRAINED = ["cifar10-small", "cifar10-pixelsnail-contour", "cifar10-ablation-l6", "cifar10-ablation-l8", "cifar10-paper"]
SAMPLED = ["cifar10-small", "cifar10-pixelsnail-contour", "cifar10-ablation-l6"]
TOY = "digits"
"""The preset of a dry run."""
SHARE = 0.85
"""Of the card's memory that the largest batch may take: the rest is for what an estimate from small batches misses."""

Row = dict[str, Any]


class Bench:
    """The device, its ceiling, and what differs in a dry run."""

    def __init__(self, toy: bool, seed: int) -> None:
        self.toy, self.seed = toy, seed
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.spec = ImageSpec(1, 8, 8, 17) if toy else SPEC
        self.network = list(TINY.items()) if toy else []
        self.ceiling = self._matrix_product()

    def training(self, preset: str, batch: int, compiled: bool) -> PyroTraining:
        """Of a preset on random images, in bf16."""
        settings: list[tuple[str, Any]] = [
            ("training.batch", batch),
            ("training.bf16", True),
            ("training.compile", compiled),
            ("training.seed", self.seed),
            *self.network,
        ]
        made = prepare(load_preset(preset, settings), self.device, data=random_data(self.spec, 2 * batch))
        assert isinstance(made, PyroTraining)
        return made

    def wait(self) -> None:
        """For all that the device has been given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[int], object], times: int, warmup: int = 3) -> float:
        """Of one call, as the mean over many between two waits."""
        for k in range(warmup):
            run(k)
        self.wait()
        began = time.perf_counter()
        for k in range(times):
            run(k)
        self.wait()
        return (time.perf_counter() - began) / times

    def largest_batch(self, preset: str) -> int:
        """The largest power of two whose eager step fits, estimated from the peak memory of two small ones."""
        if self.device == "cpu":
            return 4
        peaks = []
        for batch in (8, 16):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            training = self.training(preset, batch, compiled=False)
            with training.running():
                training.train_step(training.batches.batch(0))
                training.train_step(training.batches.batch(1))
            peaks.append(torch.cuda.max_memory_allocated())
            del training
        per_image = (peaks[1] - peaks[0]) / 8
        room = SHARE * torch.cuda.get_device_properties(0).total_memory - (peaks[0] - 8 * per_image)
        return min(2 ** int(room / per_image).bit_length() // 2, 1024)

    def _matrix_product(self) -> float:
        """Operations a second of a large bf16 matrix product."""
        size = 256 if self.toy else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda _: a @ b, 10)


def train(bench: Bench, preset: str, batch: int, compiled: bool) -> Row:
    """Images a second of whole steps, and whether one makes the host wait."""
    training, steps = bench.training(preset, batch, compiled), 3 if bench.toy else 10
    flops = flops_per_datum(training.vae, training.batches.batch(0)[:2])
    began = time.perf_counter()
    with training.running(), pyro.validation_enabled(False):

        def step(k: int) -> None:
            training.train_step(training.batches.batch(k))

        step(0)
        bench.wait()
        first = time.perf_counter() - began
        seconds = bench.seconds(step, steps)
        waits = makes_the_host_wait(bench, step)
    return {
        "what": "training",
        "preset": preset,
        "compiled": compiled,
        "batch": batch,
        "images_per_s": batch / seconds,
        "ms_per_step": 1e3 * seconds,
        "gflop_per_image": flops / 1e9,
        "share_of_matrix_product": flops * batch / seconds / bench.ceiling,
        "host_waits": waits,
        "first_step_s": first,
    }


def makes_the_host_wait(bench: Bench, step: Callable[[int], None]) -> bool | None:
    """Whether a step asks the device for a result; None without a device to ask."""
    if bench.device == "cpu":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is a prototype, says torch
        torch.cuda.set_sync_debug_mode("error")
    try:
        step(0)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def sample(bench: Bench, preset: str) -> Row:
    """Seconds of drawing images in one batch."""
    count = 4 if bench.toy else 256
    vae = bench.training(preset, 4, compiled=False).vae.eval()
    seconds = bench.seconds(lambda k: draw(vae, count, seed=k, batch=count), 2, warmup=1)
    return {"what": "sampling", "preset": preset, "images": count, "seconds": seconds}


def twin(bench: Bench, preset: str) -> list[Row]:
    """Images a second in float32, Pyro eager and NumPyro compiled."""
    rows, steps = [], 5 if bench.toy else 40
    for backend in ("pyro", "numpyro"):
        settings: list[tuple[str, Any]] = [
            ("training.backend", backend),
            ("training.bf16", False),
            ("training.steps", 3 * steps),
            ("training.log_every", steps),
            ("training.validations", 0),
            ("training.seed", bench.seed),
            *bench.network,
        ]
        config = load_preset(preset, settings)
        training = prepare(config, bench.device, data=random_data(bench.spec, 8 * config.training.batch))
        lines: list[Row] = []
        training.log = lines.append
        training.run()
        speed = lines[-1]["images_per_s"]
        rows.append({"what": "twin", "preset": preset, "backend": backend, "images_per_s": speed})
    return rows


def main() -> None:
    """Every part, a line for each row, kept as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a small network, for a dry run on any machine")
    add_common_arguments(parser, "gpu")
    parser.set_defaults(out=FOLDER.parent / "gpu" / "speed.json")
    parser.add_argument("--only", choices=["sampling", "twin", "training"], help="one of the parts")
    arguments = parser.parse_args()
    bench, rows = Bench(arguments.toy, arguments.seed), []

    def keep(row: Row) -> None:
        rows.append(row)
        save(arguments.out, arguments.seed, rows, bf16_matrix_product_tflop_per_s=bench.ceiling / 1e12)
        print(" · ".join(f"{name} {text(value)}" for name, value in row.items()), flush=True)

    parts = ["sampling", "twin", "training"] if arguments.only is None else [arguments.only]
    if "sampling" in parts:
        for preset in [TOY] if bench.toy else SAMPLED:
            keep(sample(bench, preset))
    if "twin" in parts:
        for row in twin(bench, TOY if bench.toy else TRAINED[0]):
            keep(row)
    if "training" in parts:
        for preset in [TOY] if bench.toy else TRAINED:
            batch = bench.largest_batch(preset)
            for compiled in (False,) if bench.toy else (False, True):
                keep(train(bench, preset, batch, compiled))


if __name__ == "__main__":
    main()
