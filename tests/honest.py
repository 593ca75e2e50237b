"""Programs that are δ-VAEs although they are unusual, and near relatives that are not; see `test_honest.py`."""

import math

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from pyro_delta.distributions import AutoregressiveImage
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


class SpectralNormed(Guide):
    """Its posteriors in training are others of their family, for its weights come nearer to the norm at each call."""

    def layers(self, numbers, width):
        return (nn.utils.parametrizations.spectral_norm(nn.Linear(numbers, width)),)


class SpectralNormedOfOld(Guide):
    """The same by weights that it holds."""

    def layers(self, numbers, width):
        return (nn.utils.spectral_norm(nn.Linear(numbers, width)),)


class WithConstants(Guide):
    """A tensor that is neither parameter nor buffer, and so stays in single precision."""

    def layers(self, numbers, width):
        self.constants, self.inner = torch.linspace(-1, 1, width), nn.Linear(width, 1)
        return (nn.Linear(numbers, width),)

    def posterior(self, x):
        q = super().posterior(x)
        return dist.Normal(q.mean + self.inner(self.constants), q.stddev).to_event(2)


class FrozenScale(Guide):
    """Its scale is a parameter that does not learn."""

    def layers(self, numbers, width):
        self.width = nn.Parameter(torch.tensor(0.25), requires_grad=False)
        return (nn.Linear(numbers, width),)

    def posterior(self, x):
        mean = 1e-3 * super().posterior(x).mean
        return dist.Normal(mean, self.width.expand(mean.shape)).to_event(2)


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


class Counts(nn.Module):
    """Independent pixels, which might also have more than the highest level."""

    conditioning = "full"

    def __init__(self, spec, prior):
        super().__init__()
        self.shape = spec.shape
        self.body = nn.Linear(prior().event_shape.numel(), math.prod(self.shape))

    def rates(self, z):
        return F.softplus(self.body(z.flatten(-2)).unflatten(-1, self.shape))

    def forward(self, z):
        return dist.Poisson(self.rates(z)).to_event(3)


class CountsOfItsOwn(Counts):
    """The same of a class that sums to three quarters: what it may have elsewhere is not known."""

    def forward(self, z):
        return Rare(self.rates(z)).to_event(3)


class Rare(dist.Poisson):
    def log_prob(self, value):
        return super().log_prob(value) + math.log(0.75)

    def expand(self, batch_shape, _instance=None):
        return Rare(self.rate.expand(batch_shape))


class MaskedConvolutions(nn.Module):
    """Masks are parameters that do not learn."""

    conditioning = "full"

    def __init__(self, spec, prior, *, width: int = 6):
        super().__init__()
        self.spec = spec
        self.before, self.upto = Masked(1, width, upto=False), Masked(width, 6, upto=True)
        self.context = nn.Linear(prior().event_shape.numel(), width)

    def forward(self, z):
        return AutoregressiveImage(Network(self), z)


class Masked(nn.Conv2d):
    def __init__(self, channels, out, *, upto):
        super().__init__(channels, out, 3, padding=1)
        mask = torch.zeros(3, 3)
        mask[0], mask[1, : 1 + upto] = 1, 1
        self.mask = nn.Parameter(mask, requires_grad=False)

    def forward(self, h):
        return self._conv_forward(h, self.weight * self.mask, self.bias)


class Network:
    def __init__(self, owner):
        self.owner, self.spec, self.training = owner, owner.spec, owner.training

    def __call__(self, x, z):
        h = self.owner.before(x.to(z) / self.spec.levels) + self.owner.context(z.flatten(-2))[..., None, None]
        return self.owner.upto(torch.tanh(h))


class Codes(nn.Module):
    """One-hot codes, all alike."""

    def __init__(self, spec, *, count: int = 3, levels: int = 5):
        super().__init__()
        self.register_buffer("weights", torch.ones(count, levels))
        self.register_buffer("starts", torch.arange(count))

    def forward(self):
        return dist.OneHotCategorical(self.weights).to_event(1)


class CodeLikelihood(nn.Module):
    """Independent pixels, of the codes."""

    conditioning = "full"

    def __init__(self, spec, prior):
        super().__init__()
        self.shape = (*spec.shape, spec.levels)
        self.body = nn.Linear(prior().event_shape.numel(), math.prod(self.shape))

    def forward(self, z):
        return dist.Categorical(logits=self.body(z.flatten(-2)).unflatten(-1, self.shape)).to_event(3)


class CodeGuide(nn.Module):
    """The likeliest code, with the gradient of its probabilities: a point for every image."""

    causality = "none"

    def __init__(self, spec, prior):
        super().__init__()
        self.levels, self.shape = spec.levels, prior().event_shape
        self.body = nn.Linear(math.prod(spec.shape), self.shape.numel())

    def logits(self, x):
        return self.body(x.flatten(-3).to(self.body.weight) / self.levels).unflatten(-1, self.shape)

    def posterior(self, x):
        soft = self.logits(x).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), self.shape[-1]).to(soft)
        return dist.Delta(hard + (soft - soft.detach()), event_dim=2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


class StochasticCodeGuide(CodeGuide):
    """Draws its codes: as soft as the prior, if it learns to be."""

    def posterior(self, x):
        return dist.OneHotCategoricalStraightThrough(logits=self.logits(x)).to_event(1)


class AnotherCodeGuide(CodeGuide):
    """States one code and gives another."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            q = self.posterior(x)
            with pyro.poutine.block(), pyro.poutine.trace() as tracer:
                pyro.sample("z", dist.Delta(q.v.roll(1, -1), event_dim=2))
            with pyro.poutine.replay(trace=tracer.trace):
                return pyro.sample("z", q)
