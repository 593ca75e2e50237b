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


class BatchNormed(Guide):
    """In training its posteriors are those of a batch; each of them is of the family, whatever the network says."""

    def layers(self, numbers, width):
        return (nn.Linear(numbers, width), nn.BatchNorm1d(width))


class BatchNormedOfItsOwn(Guide):
    """A normalisation that only looks like torch's: what it does is not known."""

    def layers(self, numbers, width):
        return (nn.Linear(numbers, width), Normalisation(width))


class Normalisation(nn.BatchNorm1d):
    def forward(self, h):
        return super().forward(h)


class NarrowInItsBatch(BatchNormed):
    """Claims a floor that holds in evaluation alone."""

    def committed_rate(self, prior):
        return 4.0

    def posterior(self, x):
        q = super().posterior(x)
        if self.body[1].training:
            return dist.Normal(0.0 * q.mean, self.scale.expand(q.mean.shape)).to_event(2)
        return dist.Normal(q.mean + 3.0, self.scale.expand(q.mean.shape)).to_event(2)


class BatchNormedLikelihood(nn.Module):
    """Independent pixels; in training each image is scored by what is known of the others."""

    conditioning = "full"

    def __init__(self, spec, prior, *, width: int = 8):
        super().__init__()
        self.shape = (*spec.shape, spec.levels)
        latents = prior().event_shape.numel()
        self.body = nn.Sequential(
            nn.Linear(latents, width), nn.BatchNorm1d(width), nn.Linear(width, math.prod(self.shape))
        )

    def forward(self, z):
        return dist.Categorical(logits=self.body(z.flatten(-2)).unflatten(-1, self.shape)).to_event(3)
