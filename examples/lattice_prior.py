"""Latents in two dimensions: a lattice of blocks rather than a chain of rows.

The lattice prior is the Kronecker product of two AR(1) processes over block-rows and block-columns. At the same α it
commits more than a chain of as many steps, for every block has two neighbours more. Its blocks stand in row-major
order, and those of one block-row belong to the same image rows, so that the decoder's rule (row r sees
{z_t : starts[t] ≤ r}) is that of any prior; the guide averages each block's own columns.

Run it with `python examples/lattice_prior.py`; it takes about a minute, and leaves lattice_prior.png behind: each
column shares one z.
"""

import argparse
from pathlib import Path

import torch

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import load
from pyro_delta.data.images.pictures import draw, grid, save_png
from pyro_delta.diagnostics.usage import check
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.rate import ar1_committed_rate, committed_rate


def main(steps: int = 1500, out: Path = Path("lattice_prior.png")) -> None:
    """Compare the rates, train, check, draw."""
    data = load("digits")
    settings = [("prior.program", "lattice"), ("prior.rows", 4), ("prior.columns", 4), ("prior.dims", 1)]
    config = load_preset("digits", [*settings, ("training.steps", steps), ("training.validations", 0)])
    torch.manual_seed(0)
    vae = build(config, data.spec)
    lattice = build(load_preset("digits", [*settings, ("prior.alpha", 0.9)]), data.spec).model.prior
    print(f"at α = 0.9: lattice of 4 × 4 commits {committed_rate(lattice()).item():.3f} nats,", end=" ")
    print(f"chain of 16 steps {ar1_committed_rate(0.9, 16).item():.3f}")
    print(f"first rows of the blocks: {lattice.starts.tolist()}")
    trainer = PyroTraining(config, data, vae, log=lambda line: None)
    trainer.run()
    trained = trainer.averaged()
    numbers = check(trained, data)
    print(f"−ELBO {numbers['neg_elbo_bpd']:.3f} bits/dim, KL {numbers['rate_nats_mean']:.2f} nats on average,")
    print(f"{numbers['rate_nats_min']:.4f} at the least, δ {numbers['delta_nats']:.4f};", end=" ")
    print(f"another image's z costs {numbers['shuffled_gap_nats']:.2f} nats")
    save_png(grid(draw(trained, 12, decodings=4), data.spec.levels, columns=12), out)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Latents in two dimensions.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("lattice_prior.png"))
    main(**vars(parser.parse_args()))
