"""Train in one backend, draw in the other: a δ-VAE by NumPyro drawn by Pyro, and one by Pyro drawn by NumPyro.

Weights convert both ways under torch's names, so a model can be trained where it is fast and used where it is wanted.
Needs the extra: pip install 'pyro-delta[twin]'.

Run it with `python examples/two_backends.py`; it takes about two minutes, and leaves two_backends.png behind: above,
digits of the one that NumPyro trained, below, of the one that Pyro trained.
"""

import argparse
from pathlib import Path

import torch

import pyro_delta
from pyro_delta.diagnostics.drawing import draw
from pyro_delta.twin import sampling
from pyro_delta.twin.build import twin_of_run
from pyro_delta.twin.crosscheck import crosscheck


def main(steps: int = 800, out: Path = Path("two_backends.png")) -> None:
    """Train twice, draw twice, and compare the backends on the second model."""
    settings = {"training.steps": steps, "training.validations": 0}
    by_numpyro = pyro_delta.train({**settings, "training.backend": "numpyro"}, data="digits")
    by_pyro = pyro_delta.train(settings, data="digits")
    twin = twin_of_run(by_pyro)
    drawn = [draw(by_numpyro.vae, 24), sampling.draw(twin, 24)]

    for name, run in (("NumPyro", by_numpyro), ("Pyro", by_pyro)):
        numbers = pyro_delta.evaluate(run)
        bound, rate = numbers["neg_elbo_bpd"], numbers["rate_nats_mean"]
        print(f"trained by {name}: −ELBO {bound:.3f} bits/dim, KL {rate:.2f} nats on average,", end=" ")
        print(f"{numbers['rate_nats_min']:.4f} at the least, δ {numbers['delta_nats']:.4f}")
    found = crosscheck(by_pyro.vae, twin, by_pyro.data().test.take(slice(16)))
    print(found.failure or f"both backends agree to {max(term.difference for term in found.terms):.1g}")
    by_pyro.spec.show(torch.cat(drawn), out, columns=12)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train in one backend, draw in the other.")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("two_backends.png"))
    main(**vars(parser.parse_args()))
