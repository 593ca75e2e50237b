"""Programs that are δ-VAEs although their networks are unusual; `test_honest.py` says what is certified of them."""

import math

import pyro
import pyro.distributions as dist
import torch.nn.functional as F
from torch import nn

from pyro_delta.rate import minimising_posterior


class Guide(nn.Module):
    """A fully connected network of the whole image."""

    causality = "none"

    def __init__(self, spec, prior, *, width: int = 8):
        super().__init__()
        self.levels, self.shape = spec.levels, prior().event_shape
        numbers = math.prod(spec.shape)
        self.body = nn.Sequential(*self.layers(numbers, width), nn.Tanh(), nn.Linear(width, 2 * self.shape.numel()))
        self.register_buffer("scale", minimising_posterior(prior()).base_dist.scale)

    def layers(self, numbers, width):
        raise NotImplementedError

    def posterior(self, x):
        mean, ratio = self.body(x.flatten(-3).to(self.scale) / self.levels).unflatten(-1, (2, *self.shape)).unbind(-3)
        return dist.Normal(mean, self.scale * F.softplus(ratio)).to_event(2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


class WeightNormed(Guide):
    """Its weight is a tensor that is computed at each call, which `copy.deepcopy` refuses."""

    def layers(self, numbers, width):
        return (nn.utils.weight_norm(nn.Linear(numbers, width)),)
