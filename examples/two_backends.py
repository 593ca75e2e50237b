"""Train in one backend, draw in the other: a δ-VAE by NumPyro drawn by Pyro, and one by Pyro drawn by NumPyro.

Weights convert both ways under torch's names, so a model can be trained where it is fast and used where it is wanted.
Needs the extra: pip install 'pyro-delta[twin]'.

Run it with `python examples/two_backends.py`; it takes about two minutes, and leaves two_backends.png behind: above,
digits of the one that NumPyro trained, below, of the one that Pyro trained.
"""

import argparse
from pathlib import Path

import torch

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data import load
from pyro_delta.data.images.pictures import draw, grid, save_png
from pyro_delta.diagnostics.importance import evaluate
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.twin import build as twins
from pyro_delta.twin import sampling
from pyro_delta.twin.crosscheck import crosscheck
from pyro_delta.twin.numpyro_training import NumPyroTraining
from pyro_delta.twin.weights import load_weights


def main(steps: int = 800, out: Path = Path("two_backends.png")) -> None:
    """Train twice, draw twice, and compare the backends on the second model."""
    data = load("digits")
    config = load_preset("digits", [("training.steps", steps), ("training.validations", 0)])
    torch.manual_seed(0)

    by_numpyro = NumPyroTraining(
        config, data, build(config, data.spec), twins.build(config, data.spec), log=lambda line: None
    )
    by_numpyro.run()
    drawn_by_pyro = draw(by_numpyro.averaged(), 24)

    by_pyro = PyroTraining(config, data, build(config, data.spec), log=lambda line: None)
    by_pyro.run()
    twin = twins.build(config, data.spec)
    load_weights(twin, by_pyro.averaged().state_dict())
    drawn_by_numpyro = sampling.draw(twin, 24)

    for name, trainer in (("NumPyro", by_numpyro), ("Pyro", by_pyro)):
        numbers = evaluate(trainer.averaged(), data.test)
        bound, rate = numbers["neg_elbo_bpd"], numbers["rate_nats_mean"]
        print(f"trained by {name}: −ELBO {bound:.3f} bits/dim, KL {rate:.2f} nats on average,", end=" ")
        print(f"{numbers['rate_nats_min']:.4f} at the least, δ {numbers['delta_nats']:.4f}")
    found = crosscheck(by_pyro.averaged(), twin, data.test.images[:16])
    print(found.failure or f"both backends agree to {max(term.difference for term in found.terms):.1g}")
    save_png(grid(torch.cat([drawn_by_pyro, drawn_by_numpyro]), data.spec.levels, columns=12), out)
    print(f"drawn: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train in one backend, draw in the other.")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("two_backends.png"))
    main(**vars(parser.parse_args()))
