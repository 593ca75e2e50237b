"""A δ-VAE trained by nothing but Pyro: SVI, Trace_ELBO and pyro.optim.Adam on scikit-learn's 8×8 digits.

Model and guide are ordinary torch modules that call pyro.sample; under SVI they offer their parameters to Pyro's store
themselves. The committed rate holds at every step, by the choice of the prior and the guide's family, without a change
to the ELBO.

Run it with `python examples/plain_svi.py`; it takes about a minute.
"""

import math

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.distributions import kl_divergence

from pyro_delta import committed_rate, load_data
from pyro_delta.guides import AntiCausalGuide
from pyro_delta.models import AR1Prior, DeltaVAE, GatedPixelCNNLikelihood


def main(steps: int = 600, batch: int = 64) -> None:
    """Train, and print −ELBO beside the rate and its floor."""
    pyro.set_rng_seed(0)
    data = load_data("digits")
    spec, images = data.spec, data.train.x
    network = {"channels": (16, 24), "row_blocks": (1, 1), "pixel_blocks": 1}

    prior = AR1Prior(spec, dims=2, rate_nats=4.0)  # a latent step per row of the image
    delta = committed_rate(prior()).item()
    model = DeltaVAE(prior, GatedPixelCNNLikelihood(spec, prior, mixtures=5, **network))
    guide = AntiCausalGuide(spec, prior, **network)
    guide.start_from(images[:256])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), Trace_ELBO(max_plate_nesting=1))

    for step in range(1, steps + 1):
        x = images[torch.randint(len(images), (batch,))]
        loss = svi.step(x) / (batch * spec.scored * math.log(2))  # the ELBO is a sum over the plate
        if step % max(1, steps // 10) == 0:
            with torch.no_grad():
                rate = kl_divergence(guide.posterior(x), prior())
            print(
                f"step {step:4d}   -ELBO {loss:.3f} bits/dim   "
                f"KL {rate.mean():.3f} nats, smallest {rate.min():.3f}   δ {delta:.3f}"
            )


if __name__ == "__main__":
    main()
