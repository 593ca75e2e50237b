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
from torch import Tensor, nn

from pyro_delta.rate import minimising_posterior


class SuffixGuide(nn.Module):
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
    import pyro_delta
    from pyro_delta.build import build
    from pyro_delta.config import load_preset
    from pyro_delta.diagnostics.drawing import reconstructions

    settings = {"guide.program": f"{__file__}:SuffixGuide", "training.steps": steps, "training.validations": 0}
    config = load_preset("digits", list(settings.items()))
    data = pyro_delta.load_data("digits")
    for finding in pyro_delta.verify(build(config, data.spec), data.spec).findings:
        print(f"{finding.name:30}  {finding.found}")
    run = pyro_delta.train(config)
    numbers = pyro_delta.check(run).numbers
    print(f"−ELBO {numbers['neg_elbo_bpd']:.3f} bits/dim, KL {numbers['rate_nats_mean']:.2f} nats on average,")
    print(f"{numbers['rate_nats_min']:.4f} at the least, δ {numbers['delta_nats']:.4f};", end=" ")
    told, error = numbers["told_calibrated_nats"], numbers["told_calibrated_nats_se"]
    print(f"z tells the decoder {told:.2f} ± {error:.2f} nats")
    data.spec.show(reconstructions(run.vae, data.test.take(slice(12)), 2), out, columns=12)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A guide of your own, from a file.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("own_guide.png"))
    main(**vars(parser.parse_args()))
