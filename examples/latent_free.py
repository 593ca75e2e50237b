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


def main(steps: int = 1500, out: Path = Path("latent_free.png")) -> None:
    """Train both, compare, draw."""
    rows = []
    for name, use_latents in (("δ-VAE", True), ("without latents", False)):
        settings = {"likelihood.use_latents": use_latents, "training.steps": steps, "training.validations": 0}
        run = pyro_delta.train(settings, data="digits")
        numbers = pyro_delta.check(run).numbers
        # without latents the rate buys nothing: −log p(x) is the distortion alone
        total = numbers["neg_elbo_bpd"] if use_latents else numbers["distortion_bpd"]
        print(f"{name:16} {total:.3f} bits/dim, of which distortion {numbers['distortion_bpd']:.3f};", end=" ")
        print(f"another image's z costs {numbers['shuffled_gap_nats']:.2f} nats")
        rows.append(draw(run.vae, 12, decodings=4))
    run.spec.show(torch.cat(rows), out, columns=12)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What do the latents do?")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("latent_free.png"))
    main(**vars(parser.parse_args()))
