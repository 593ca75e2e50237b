"""What do the latents do? A δ-VAE against the same decoder without them.

Both are trained alike. The latent-free decoder says log p(x) itself, with no bound; the δ-VAE pays its rate, and gets
something for it: what its columns share.

Run it with `python examples/latent_free.py`; it takes about two minutes, and leaves latent_free.png behind: above, four
rows of the δ-VAE, each column with one z; below, four rows of the decoder without latents, whose columns share nothing.
"""

import argparse
from pathlib import Path

import torch

from pyro_delta.build import VAE, build
from pyro_delta.config import load_preset
from pyro_delta.data import ImageData, load
from pyro_delta.data.images.pictures import draw, grid, save_png
from pyro_delta.diagnostics.usage import check
from pyro_delta.inference.pyro_training import PyroTraining


def trained(data: ImageData, steps: int, *, use_latents: bool) -> VAE:
    """The preset `digits`, with or without latents in the decoder."""
    settings = [("likelihood.use_latents", use_latents), ("training.steps", steps), ("training.validations", 0)]
    config = load_preset("digits", settings)
    torch.manual_seed(0)
    trainer = PyroTraining(config, data, build(config, data.spec), log=lambda line: None)
    trainer.run()
    return trainer.averaged()


def main(steps: int = 1500, out: Path = Path("latent_free.png")) -> None:
    """Train both, compare, draw."""
    data = load("digits")
    rows = []
    for use_latents in (True, False):
        vae = trained(data, steps, use_latents=use_latents)
        numbers = check(vae, data)
        name = "δ-VAE" if use_latents else "without latents"
        # without latents the rate buys nothing: −log p(x) is the distortion alone
        total = numbers["neg_elbo_bpd"] if use_latents else numbers["distortion_bpd"]
        print(f"{name:16} {total:.3f} bits/dim, of which distortion {numbers['distortion_bpd']:.3f};", end=" ")
        print(f"another image's z costs {numbers['shuffled_gap_nats']:.2f} nats")
        rows.append(draw(vae, 12, decodings=4))
    save_png(grid(torch.cat(rows), data.spec.levels, columns=12), out)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What do the latents do?")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("latent_free.png"))
    main(**vars(parser.parse_args()))
