"""Data of your own that are no images: real-valued series of 24 frames and 3 features, with a likelihood and a guide.

Everything that a δ-VAE needs of a new kind of data stands in this file: where the data come from, how they are scored
given z, and a guide that reads them from their end. The shipped prior serves them as it is, for it knows positions
alone. The command line takes the file, too:

    pyro-delta verify --dataset examples/own_data.py:Series --likelihood examples/own_data.py:Frames \
        --guide examples/own_data.py:Backward --set prior.length=6
    pyro-delta train  --dataset … --likelihood … --guide … --set prior.length=6 --out runs/series

Run it with `python examples/own_data.py`; it takes about half a minute.
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyro_delta
from pyro_delta.data import ArraySpec, Splits, from_tensors
from pyro_delta.rate import minimising_posterior

FRAMES, FEATURES, SEGMENTS = 24, 3, 6


class Series(Splits):
    """series of 24 frames and 3 features: six levels that last four frames each, and noise"""

    spec = ArraySpec((FRAMES, FEATURES))

    def __init__(self, *, root: str = "data", validation: int | None = 200, seed: int = 0) -> None:
        noise = torch.Generator().manual_seed(0)
        level = torch.randn(2400, SEGMENTS, FEATURES, generator=noise).repeat_interleave(FRAMES // SEGMENTS, 1)
        x = level + 0.3 * torch.randn(level.shape, generator=noise)
        made = from_tensors(x[:2000], validation=validation, test=x[2000:], spec=self.spec, seed=seed)
        super().__init__(made.spec, made.train, made.validation, made.test)


class Frames(nn.Module):
    """p(x | z): every frame Normal, from the newest latent step that it may see."""

    def __init__(self, spec, prior, *, hidden: int = 64) -> None:
        super().__init__()
        dims = prior().event_shape[1]
        newest = torch.searchsorted(prior.starts, torch.arange(spec.positions), right=True) - 1
        self.register_buffer("newest", newest, persistent=False)
        self.network = nn.Sequential(nn.Linear(dims, hidden), nn.SiLU(), nn.Linear(hidden, 2 * spec.shape[1]))

    def forward(self, z: Tensor) -> dist.Independent:
        mean, scale = self.network(z[..., self.newest, :]).chunk(2, dim=-1)
        return dist.Normal(mean, F.softplus(scale) + 1e-3).to_event(2)


class Backward(nn.Module):
    """q(z | x): a GRU that reads the series from its end, so that z_t hears of frames ≥ starts[t] alone."""

    causality = "anti_causal"

    def __init__(self, spec, prior, *, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(spec.shape[1], hidden, batch_first=True)
        self.out = nn.Linear(hidden, 2 * prior().event_shape[1])
        self.register_buffer("starts", prior.starts)
        self.register_buffer("scale", minimising_posterior(prior()).base_dist.scale)

    def posterior(self, x: Tensor) -> dist.Independent:
        seen, _ = self.gru(x.flip(-2))
        mean, ratio = self.out(seen.flip(-2)[..., self.starts, :]).chunk(2, dim=-1)
        return dist.Normal(mean, self.scale * F.softplus(ratio + 0.5413)).to_event(2)  # softplus(0.5413) = 1

    def forward(self, x: Tensor) -> Tensor:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


def main(steps: int = 1000) -> None:
    """Train, check."""
    settings = {
        "likelihood.program": f"{__file__}:Frames",
        "guide.program": f"{__file__}:Backward",
        "prior.length": SEGMENTS,
        "training.steps": steps,
        "training.guide_lr": 1.0,
    }
    run = pyro_delta.train(settings, data=f"{__file__}:Series")
    for finding in pyro_delta.verify(run.vae, run.spec).findings:
        print(f"{finding.name:30}  {finding.found}")
    print(pyro_delta.check(run))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Data of your own.")
    parser.add_argument("--steps", type=int, default=1000)
    main(**vars(parser.parse_args()))
