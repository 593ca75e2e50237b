"""A guide of your own, from a file: certified, trained, and drawn.

The guide below has no convolutions: each image row is embedded by itself, and step t adds up the rows from its first
one on. So z_t sees rows ≥ starts[t] alone, which `verify` reads off its Jacobian. The command line takes it, too:

    pyro-delta verify --guide examples/own_guide.py:SuffixGuide
    pyro-delta train --guide examples/own_guide.py:SuffixGuide --set guide.width=128

Run it with `python examples/own_guide.py`; it takes about a minute, and leaves own_guide.png behind: digits above, two
decodings of the latents of each below.
"""

import argparse
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_delta.rate import minimising_posterior


class SuffixGuide(PyroModule):
    """q(z_t | x_{≥t}): a sum of row embeddings from below, and a linear layer."""

    causality = "anti_causal"

    def __init__(self, spec, prior, *, width: int = 64) -> None:
        super().__init__()
        self.levels = spec.levels
        self.row = nn.Sequential(nn.Linear(spec.channels * spec.width, width), nn.SiLU(), nn.Linear(width, width))
        self.position = nn.Parameter(torch.randn(spec.height, width) / width**0.5)
        self.out = nn.Linear(width, 2 * prior().event_shape[1])
        self.register_buffer("starts", prior.starts)
        self.register_buffer("scale", minimising_posterior(prior()).base_dist.scale)

    def posterior(self, x: Tensor) -> dist.Independent:
        rows = x.movedim(-3, -2).flatten(-2).to(self.out.weight.dtype) * (2 / (self.levels - 1)) - 1
        features = F.silu(self.row(rows) + self.position)
        seen = features.flip(-2).cumsum(-2).flip(-2)[..., self.starts, :] / features.shape[-2] ** 0.5
        mean, ratio = self.out(seen).chunk(2, dim=-1)
        return dist.Normal(mean, self.scale * F.softplus(ratio + 0.5413)).to_event(2)  # softplus(0.5413) = 1

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))


def main(steps: int = 1500, out: Path = Path("own_guide.png")) -> None:
    """Certify, train, check, draw."""
    from pyro_delta.build import build
    from pyro_delta.config import load_preset
    from pyro_delta.data import load
    from pyro_delta.data.images.pictures import decode, grid, save_png
    from pyro_delta.diagnostics.usage import check, sample_latents
    from pyro_delta.diagnostics.verify import verify
    from pyro_delta.inference.pyro_training import PyroTraining

    data = load("digits")
    config = load_preset(
        "digits", [("guide.program", f"{__file__}:SuffixGuide"), ("training.steps", steps), ("training.validations", 0)]
    )
    torch.manual_seed(0)
    vae = build(config, data.spec)
    for finding in verify(vae, data.spec).findings:
        print(f"{finding.name:28}  {finding.found}")
    trainer = PyroTraining(config, data, vae, log=lambda line: None)
    trainer.run()
    trained = trainer.averaged()
    numbers = check(trained, data)
    print(f"−ELBO {numbers['neg_elbo_bpd']:.3f} bits/dim, KL {numbers['rate_nats_mean']:.2f} nats on average,")
    print(f"{numbers['rate_nats_min']:.4f} at the least, δ {numbers['delta_nats']:.4f};", end=" ")
    print(f"another image's z costs {numbers['shuffled_gap_nats']:.2f} nats")
    images = data.test.images[:12]
    drawn = decode(trained, sample_latents(trained, images).repeat(2, 1, 1))
    save_png(grid(torch.cat((images.long(), drawn)), data.spec.levels, columns=12), out)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A guide of your own, from a file.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("own_guide.png"))
    main(**vars(parser.parse_args()))
