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

import pyro_delta
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.drawing import draw
from pyro_delta.models import LatticePrior
from pyro_delta.rate import ar1_committed_rate, committed_rate


def main(steps: int = 1500, out: Path = Path("lattice_prior.png")) -> None:
    """Compare the rates, train, check, draw."""
    shape = {"rows": 4, "columns": 4, "dims": 1}
    lattice = LatticePrior(ImageSpec(channels=1, height=8, width=8, levels=17), **shape, alpha=0.9)
    print(f"at α = 0.9: lattice of 4 × 4 commits {committed_rate(lattice()).item():.3f} nats,", end=" ")
    print(f"chain of 16 steps {ar1_committed_rate(0.9, 16).item():.3f}")
    print(f"first rows of the blocks: {lattice.starts.tolist()}")

    settings = {f"prior.{option}": value for option, value in shape.items()} | {"prior.program": "lattice"}
    settings |= {"training.steps": steps, "training.validations": 0}
    run = pyro_delta.train(settings, data="digits")
    numbers = pyro_delta.check(run).numbers
    print(f"−ELBO {numbers['neg_elbo_bpd']:.3f} bits/dim, KL {numbers['rate_nats_mean']:.2f} nats on average,")
    print(f"{numbers['rate_nats_min']:.4f} at the least, δ {numbers['delta_nats']:.4f};", end=" ")
    told, error = numbers["told_calibrated_nats"], numbers["told_calibrated_nats_se"]
    print(f"z tells the decoder {told:.2f} ± {error:.2f} nats")
    run.spec.show(draw(run.vae, 12, decodings=4), out, columns=12)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Latents in two dimensions.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("lattice_prior.png"))
    main(**vars(parser.parse_args()))
