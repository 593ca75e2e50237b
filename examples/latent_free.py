"""What do the latents do? A δ-VAE against the same decoder without them.

Both are trained alike. The latent-free decoder says log p(x) itself, with no bound; the δ-VAE pays its rate, and gets
something for it: what its columns share.

Run it with `python examples/latent_free.py`; it takes about two minutes, and leaves latent_free.png behind: above, four
rows of the δ-VAE, each column with one z; below, four rows of the decoder without latents, whose columns share nothing.
"""

import argparse
from pathlib import Path

import torch

import pyro_delta
from pyro_delta.diagnostics.drawing import draw


def main(steps: int = 1000, out: Path = Path("latent_free.png")) -> None:
    """Train both, compare, draw."""
    run = pyro_delta.train({"training.steps": steps}, data="digits")
    control = pyro_delta.train_control(run)  # the same seed, the same number of steps
    numbers = pyro_delta.check(run, control=control).numbers
    print(
        f"δ-VAE            {numbers['neg_elbo_bpd']:.3f} bits/dim, of which distortion {numbers['distortion_bpd']:.3f}"
    )
    print(f"without latents  {numbers['control_bpd']:.3f} bits/dim")
    print(f"z tells the decoder {numbers['told_calibrated_nats']:.2f} ± {numbers['told_calibrated_nats_se']:.2f} nats;")
    print(f"it buys {numbers['bought_nats']:.2f} ± {numbers['bought_nats_se']:.2f} nats of distortion,", end=" ")
    print(f"for a rate of {numbers['rate_nats_mean']:.2f} nats")
    rows = [draw(either.vae, 12, decodings=4) for either in (run, control)]
    run.spec.show(torch.cat(rows), out, columns=12)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What do the latents do?")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("latent_free.png"))
    main(**vars(parser.parse_args()))
