"""Peak memory of a training step against the depth of the decoder, with and without recomputed activations.

Each row is a process of its own, in which one of a few programs makes two steps on random images of 32×32 in eager
float32 on the CPU. Its peak resident memory is split into what it has before the first step (interpreter, libraries,
weights, a guide started from data) and what the steps add; seconds are those of the processor, for the last step.
`--paper` adds a step of `cifar10-paper` itself, at batch 1; its guide starts from fewer data than in a training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from time import process_time
from typing import Any

import torch
from record import add_common_arguments, peak_gib, print_table, save

from pyro_delta.api.train import prepare
from pyro_delta.config import load_preset
from pyro_delta.data import Split, Splits
from pyro_delta.data.images import ImageSpec

SPEC = ImageSpec(3, 32, 32, 256)
DEPTHS = (2, 8)
BATCH = 8
EAGER = {"training.bf16": False, "training.channels_last": False, "training.compile": False}


def settings_of(program: str, depth: int) -> dict[str, Any]:
    """A decoder of a depth: blocks of a PixelSNAIL, or of both streams of a Gated PixelCNN."""
    if program == "pixelsnail":
        return {"likelihood.blocks": depth, "likelihood.layers": 4, "likelihood.channels": 64}
    return {
        "likelihood.channels": [64],
        "likelihood.row_blocks": [4 * depth],
        "likelihood.pixel_blocks": 4 * depth,
    }


def measure(program: str, depth: int, recompute: bool, seed: int) -> dict[str, Any]:
    """Steps in this process."""
    torch.manual_seed(seed)
    chosen: dict[str, Any] = {**EAGER, "training.recompute": recompute, "training.seed": seed}
    if program == "cifar10-paper":
        config, steps = load_preset("cifar10-paper", list({**chosen, "training.batch": 1}.items())), 1
    else:
        own = {"likelihood.program": program, "training.batch": BATCH, **settings_of(program, depth)}
        config, steps = load_preset("photos", list({**chosen, **own}.items())), 2
    split = Split(torch.randint(256, (BATCH, *SPEC.shape)).to(torch.uint8))
    training: Any = prepare(config, "cpu", data=Splits(SPEC, split, split, split))
    before, times = peak_gib(), []
    with training.running():
        for step in range(steps):
            began = process_time()
            training.train_step(training.batches.batch(step))
            times.append(process_time() - began)
    assert all(bool(weight.isfinite().all()) for weight in training.vae.parameters())
    return {
        "program": program,
        "depth": depth,
        "recompute": recompute,
        "batch": config.training.batch,
        "parameters": sum(weight.numel() for weight in training.vae.parameters()),
        "peak_gib": peak_gib(),
        "before_gib": before,
        "processor_s_per_step": times[-1],
    }


def main() -> None:
    """A process for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, "memory")
    parser.add_argument("--paper", action="store_true", help="a step of cifar10-paper, too")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        program, depth, recompute = arguments.row
        print(json.dumps(measure(program, int(depth), recompute == "True", arguments.seed)))
        return
    wanted = [("cifar10-paper", 6)] if arguments.paper else []
    wanted += [(program, depth) for program in ("pixelsnail", "gated_pixelcnn") for depth in DEPTHS]
    rows = []
    for program, depth in wanted:
        for recompute in (False, True):
            row = (program, str(depth), str(recompute))
            again = [sys.executable, __file__, "--seed", str(arguments.seed), "--row", *row]
            said = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(said.splitlines()[-1]))
            save(arguments.out, arguments.seed, rows)  # as they come, for they take long
            print(rows[-1], file=sys.stderr)
    print_table(rows)


if __name__ == "__main__":
    main()
