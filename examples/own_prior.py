"""A Gaussian prior of your own, certified: committed_rate reads δ off its density, with no formula from you.

The prior here is a fading rhythm in each latent dimension: steps half a period apart are of opposite sign, which no
shipped prior offers, and the precision matrix is dense.
Run it with `python examples/own_prior.py`; it takes seconds.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_delta.rate import ar1_committed_rate, committed_rate, minimising_posterior


class RhythmPrior(nn.Module):
    """Correlation e^(−lag/8) cos(2π lag/period) over n latent steps; `forward()` has event shape (n, d)."""

    def __init__(self, length: int, period_d: list[float]) -> None:
        super().__init__()
        self.event_shape = (length, len(period_d))
        self.register_buffer("starts", torch.arange(length))  # latent step t belongs to the image from row t on
        lag_tt = (self.starts[:, None] - self.starts).abs()
        angle_dtt = 2 * math.pi * lag_tt / torch.tensor(period_d, dtype=torch.float64)[:, None, None]
        correlation_dtt = torch.exp(-lag_tt / 8) * torch.cos(angle_dtt)
        # Over the flattened (n, d) event, time-major; different dimensions are independent.
        size = length * len(period_d)
        covariance = torch.einsum("dts,de->tdse", correlation_dtt, torch.eye(len(period_d)).double())
        self.register_buffer("covariance", covariance.reshape(size, size))

    def flat(self) -> dist.MultivariateNormal:
        """The same density over n · d values in a row."""
        return dist.MultivariateNormal(self.covariance.new_zeros(len(self.covariance)), self.covariance)

    def forward(self) -> dist.TorchDistribution:
        flat = self.flat()
        return dist.TransformedDistribution(
            flat, [dist.transforms.ReshapeTransform(flat.event_shape, self.event_shape)]
        )


def kl(q: dist.Independent, prior: RhythmPrior) -> Tensor:
    """KL of an independent Normal from the prior, by torch's multivariate normals, which know nothing of δ."""
    loc, scale = q.base_dist.loc.flatten(-2), q.base_dist.scale.flatten(-2)
    return kl_divergence(dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(scale)), prior.flat())


def main() -> None:
    """Certify the prior, then try to break the certificate."""
    torch.manual_seed(0)
    prior = RhythmPrior(length=16, period_d=[8.0, 16.0])
    delta = committed_rate(prior()).item()
    lag_one = prior.covariance[0, 2].item(), prior.covariance[1, 3].item()
    print(f"committed rate δ               {delta:8.4f} nats = {delta / math.log(2):.4f} bits")
    print(f"δ of an AR(1) of equal lag-1   {ar1_committed_rate(lag_one, 16).item():8.4f} nats")

    best = minimising_posterior(prior())
    attained = kl(best, prior).item()
    print(f"KL of the minimiser            {attained:8.4f} nats")
    loc, log_ratio = 0.02 * torch.randn(2, 1000, 16, 2, dtype=torch.float64)
    least = kl(dist.Normal(loc, best.base_dist.scale * log_ratio.exp()).to_event(2), prior).min().item()
    print(f"least KL of 1000 random others {least:8.4f} nats")
    if least < delta or not math.isclose(attained, delta, rel_tol=1e-9):
        raise SystemExit("a posterior fell below δ, or the minimiser missed it")


if __name__ == "__main__":
    main()
