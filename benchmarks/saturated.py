"""How many samples of runs on images run off into saturated noise.

A decoder that has learned for minutes may draw a pixel that no image has there, expects the worst of what follows, and
so on to the last row. Such a sample is told by neighbours in a row that stand at opposite ends of their levels, more
than one in a hundred; of images of the test split it is said how many are like that.

Run it with `python benchmarks/saturated.py RUN…`; it takes half a minute a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import add_common_arguments, write
from torch import Tensor

import pyro_delta

MOST = 0.01
"""Part of a sample's neighbours at opposite ends, beyond which it has run off."""


def saturated(x_bchw: Tensor, levels: int) -> int:
    """How many of some images have run off."""
    return int((x_bchw.long().diff(dim=3).abs() == levels - 1).float().mean((1, 2, 3)).gt(MOST).sum())


def main() -> None:
    """Draw, count, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--num", type=int, default=48, metavar="N", help="samples of each run")
    parser.add_argument("--temperature", type=float, default=1.0, help="at which they are drawn")
    parser.add_argument("--data-root", help="where the data are, if not where the run had them")
    add_common_arguments(parser, "saturated")
    arguments = parser.parse_args()
    rows = []
    for path in arguments.runs:
        run = pyro_delta.load(path)
        torch.manual_seed(arguments.seed)
        test = run.data(arguments.data_root).test.take(slice(1000))
        model = run.vae.model
        with torch.no_grad():
            z_bnd = model.prior().sample((arguments.num,))
            samples = model.likelihood(z_bnd).sample(temperature=arguments.temperature)
        rows.append(
            {
                "run": path.name,
                "step": run.step,
                "samples": arguments.num,
                "temperature": arguments.temperature,
                "run off": saturated(samples, run.spec.levels),
                "test images": len(test),
                "like them": saturated(test.x, run.spec.levels),
            }
        )
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
