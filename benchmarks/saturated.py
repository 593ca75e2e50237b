"""How many samples of runs on images run off into saturated noise, and how large what the decoder's blocks read gets.

A decoder that has learned for minutes may draw a pixel that no image has there, expects the worst of what follows, and
so on to the last row. Such a sample is told by neighbours in a row that stand at opposite ends of their levels, more
than one in a hundred; of images of the test split it is said how many are like that. Of images and of noise, black and
white, it is said how large the streams are that blocks read, as root mean squares over channels: the median position's
and the largest.

Run it with `python benchmarks/saturated.py RUN…`; it takes half a minute a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import add_common_arguments, write
from torch import Tensor

import pyro_delta
from pyro_delta.nn.recompute import Block
from pyro_delta.vae import VAE

READ = 64
"""Images, and as many pieces of noise, of which the streams are looked at."""
MOST = 0.01
"""Part of a sample's neighbours at opposite ends, beyond which it has run off."""


def saturated(x_bchw: Tensor, levels: int) -> int:
    """How many of some images have run off."""
    return int((x_bchw.long().diff(dim=3).abs() == levels - 1).float().mean((1, 2, 3)).gt(MOST).sum())


def streams(vae: VAE, x_bchw: Tensor) -> list[float]:
    """Root mean squares over channels of what the decoder's blocks read of some images: the median and the largest."""
    seen: list[Tensor] = []

    def see(_: Block, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float().square().mean(1).sqrt().flatten())

    hooks = [block.register_forward_pre_hook(see) for block in vae.model.modules() if isinstance(block, Block)]
    with torch.no_grad():
        vae.model.likelihood(vae.model.prior().sample((len(x_bchw),))).log_prob(x_bchw)
    for hook in hooks:
        hook.remove()
    found = torch.cat(seen)
    return [round(float(value), 3) for value in (found.median(), found.max())]


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
                "read of images": streams(run.vae, test.x[:READ].long()),
                "read of noise": streams(run.vae, torch.randint(2, test.x[:READ].shape) * (run.spec.levels - 1)),
            }
        )
    write(arguments.out, arguments.seed, rows)


if __name__ == "__main__":
    main()
