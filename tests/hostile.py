"""Programs that look like δ-VAEs and are not: none may be certified, for reasons that `test_hostile.py` says."""

import math

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from honest import BatchNormed
from torch import nn
from torch.distributions import constraints

from pyro_delta.distributions import AutoregressiveImage, GaussianAR1, GaussianSequence
from pyro_delta.guides import AntiCausalGuide
from pyro_delta.models import AR1Prior, GatedPixelCNNLikelihood

# --- Likelihoods ---


class SeesItself(AutoregressiveImage):
    """Every pixel, outside the network."""

    def parameters_at(self, x):
        return super().parameters_at(x) + 0.1 * x.movedim(-3, -1)[..., :1].to(self.z.dtype)


class SeesOnePixel(AutoregressiveImage):
    """The pixel (1, 3) sees itself, a little."""

    def parameters_at(self, x):
        found = super().parameters_at(x).clone()
        found[..., 1, 3, :] += 1e-3 * x[..., :1, 1, 3].to(found)
        return found


class SeesOneChannel(AutoregressiveImage):
    """The last channel of the pixel after this one."""

    def parameters_at(self, x):
        later = torch.roll(x[..., -1, :, :], -1, -1)
        return super().parameters_at(x) + torch.where(later == 3, 0.01, 0.0)[..., None].to(self.z.dtype)


class SeesInOneBatch(AutoregressiveImage):
    """In batches of eight alone."""

    def parameters_at(self, x):
        found = super().parameters_at(x)
        return found + 0.1 * x.movedim(-3, -1)[..., :1].to(found) if len(x) == 8 else found


class SeesInTraining(AutoregressiveImage):
    """The network is asked, in which mode it is."""

    def parameters_at(self, x):
        found = super().parameters_at(x)
        return found + 0.1 * x.movedim(-3, -1)[..., :1].to(found) if self.network.training else found


class SeesBlanks(AutoregressiveImage):
    """Only where all pixels that come are blank."""

    def parameters_at(self, x):
        found = super().parameters_at(x)
        blank = (x.flatten(-3)[..., -5:] == 0).all(-1)
        return found + 0.1 * blank.to(found)[..., None, None, None]


class Bonus(AutoregressiveImage):
    """A hundred nats for everybody."""

    def log_prob(self, x):
        return super().log_prob(x) + 100


class BonusInside(AutoregressiveImage):
    """The same, a part with each pixel."""

    def pixel_log_prob(self, x):
        return super().pixel_log_prob(x) + 0.5


class Generous(dist.Categorical):
    """A scalar of one's own that is no probability."""

    def log_prob(self, value):
        return super().log_prob(value) + 0.1

    def expand(self, batch_shape, _instance=None):
        return Generous(logits=self.logits.expand((*batch_shape, self.logits.shape[-1])))


class Opaque(AutoregressiveImage):
    """Tells the whole alone, and a hundred nats too much."""

    def __getattribute__(self, name):
        if name in ("terms", "parameters_at"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def log_prob(self, x):
        return AutoregressiveImage(self.network, self.z, validate_args=False).log_prob(x) + 100


def likelihood_of(cls):
    """A likelihood that gives a distribution of a class of its own."""

    class Likelihood(GatedPixelCNNLikelihood):
        def forward(self, z):
            p = super().forward(z)
            return cls(p.network, p.z, validate_args=False)

    return Likelihood


Itself, OnePixel, OneChannel = likelihood_of(SeesItself), likelihood_of(SeesOnePixel), likelihood_of(SeesOneChannel)
InOneBatch, InTraining, Blanks = map(likelihood_of, (SeesInOneBatch, SeesInTraining, SeesBlanks))
WithBonus, WithBonusInside, Whole = likelihood_of(Bonus), likelihood_of(BonusInside), likelihood_of(Opaque)


class BehindMask(GatedPixelCNNLikelihood):
    """The leak is wrapped, with a mask that leaves nothing out."""

    def forward(self, z):
        p = super().forward(z)
        return SeesItself(p.network, p.z, validate_args=False).mask(True)


class BonusInTraining(GatedPixelCNNLikelihood):
    """A hundred nats for everybody, in training."""

    def forward(self, z):
        p = super().forward(z)
        return Bonus(p.network, p.z, validate_args=False) if self.training else p


class SeesLate(AutoregressiveImage):
    """From the fourth datum of a batch of eight on."""

    def parameters_at(self, x):
        found = super().parameters_at(x).clone()
        if len(x) == 8:
            found[3:] += 0.1 * x[3:].movedim(-3, -1)[..., :1].to(found)
        return found


class Growing(AutoregressiveImage):
    """A gain that training may take as far as it likes."""

    def __init__(self, network, z, gain=0.0):
        self.gain = gain
        super().__init__(network, z, validate_args=False)

    def pixel_log_prob(self, x):
        return super().pixel_log_prob(x) + self.gain

    def expand(self, batch_shape, _instance=None):
        return Growing(self.network, self.z.expand((*batch_shape, *self.z.shape[-2:])), self.gain)


class WithGain(GatedPixelCNNLikelihood):
    def __init__(self, spec, prior, *, use_latents: bool = True, channels: tuple[int, ...] = (6, 4),
                 row_blocks: tuple[int, ...] = (1, 1), pixel_blocks: int = 1, mixtures: int = 2):  # fmt: skip
        super().__init__(spec, prior, use_latents=use_latents, channels=channels, row_blocks=row_blocks,
                         pixel_blocks=pixel_blocks, mixtures=mixtures)  # fmt: skip
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, z):
        p = super().forward(z)
        return Growing(p.network, p.z, self.gain)


class Dropping(GatedPixelCNNLikelihood):
    """Honest: dropout is no leak."""

    def forward(self, z):
        return super().forward(F.dropout(z, 0.2, self.training))


Late = likelihood_of(SeesLate)


class Numbers(nn.Module):
    """All numbers independent given z, each a hair too probable."""

    def __init__(self, spec, prior, *, hidden: int = 4):
        super().__init__()
        self.shape, self.levels = spec.shape, spec.levels
        self.out = nn.Linear(prior().event_shape.numel(), math.prod(spec.shape) * spec.levels)
        self.conditioning = "full"

    def forward(self, z):
        logits = self.out(z.flatten(-2)).unflatten(-1, (*self.shape, self.levels))
        return Generous(logits=logits).to_event(len(self.shape))


class SeesInSteps(AutoregressiveImage):
    """Only where a step of training is made: in training mode, with gradients."""

    def parameters_at(self, x):
        found = super().parameters_at(x)
        step = self.network.training and torch.is_grad_enabled()
        return found + 0.1 * x.movedim(-3, -1)[..., :1].to(found) if step else found


class SeesBehindMillion(AutoregressiveImage):
    """One logit of a million, beside which what the others see looks like rounding."""

    def parameters_at(self, x):
        found = super().parameters_at(x).clone()
        found[..., 0] = -1e6
        found[..., 1] += 0.01 * x[..., 0, :, :].to(found)
        return found


class RowBonus(AutoregressiveImage):
    """Two nats for every pixel of one row."""

    def pixel_log_prob(self, x):
        found = super().pixel_log_prob(x)
        return found + 2.0 * (torch.arange(found.shape[-2]) == 3).to(found)[:, None]


InSteps, BehindMillion = likelihood_of(SeesInSteps), likelihood_of(SeesBehindMillion)
WithRowBonus = likelihood_of(RowBonus)


class TermsSeeLast(AutoregressiveImage):
    """Every pixel but the last sees that one, in its terms alone; each sums to one given all the others."""

    def pixel_log_prob(self, x):
        others = torch.ones(self.event_shape[1:]).index_put((torch.tensor(-1), torch.tensor(-1)), torch.tensor(0.0))
        leak = 0.5 * x[..., -1, -1, -1].to(self.z)[..., None, None] * others.to(self.z)
        return self._pixels(self.parameters_at(x) + leak[..., None], False).log_prob(x.movedim(-3, -1))


class BackDoor(AutoregressiveImage):
    """A hundred nats without a method of its own."""

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        return (lambda x: found(x) + 100) if name == "log_prob" else found


WithDecoy, WithBackDoor = likelihood_of(TermsSeeLast), likelihood_of(BackDoor)


class BonusInDropout(GatedPixelCNNLikelihood):
    """A hundred nats as long as its dropout drops anything."""

    def __init__(self, spec, prior, *, use_latents: bool = True, channels: tuple[int, ...] = (6, 4),
                 row_blocks: tuple[int, ...] = (1, 1), pixel_blocks: int = 1, mixtures: int = 2):  # fmt: skip
        super().__init__(spec, prior, use_latents=use_latents, channels=channels, row_blocks=row_blocks,
                         pixel_blocks=pixel_blocks, mixtures=mixtures)  # fmt: skip
        self.dropout = nn.Dropout(0.1)

    def forward(self, z):
        p = super().forward(self.dropout(z))
        return Bonus(p.network, p.z, validate_args=False) if self.dropout.training else p


class RoundsAlone(AutoregressiveImage):
    """Honest: one image and many go through other kernels, of single precision."""

    def parameters_at(self, x):
        found = super().parameters_at(x)
        return found * (1 + 1e-4) if len(x) == 1 and found.dtype == torch.float32 else found


Rounding = likelihood_of(RoundsAlone)


class Atom(dist.Normal):
    """A hundred nats at zero alone, which no integral sees."""

    def log_prob(self, value):
        return super().log_prob(value) + 100 * (value == 0)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class NoAtom(Atom):
    """Honest: a class of one's own that changes nothing."""

    def log_prob(self, value):
        return dist.Normal.log_prob(self, value)


class Shifted(Numbers):
    """A Categorical whose logits were changed after it was made."""

    def forward(self, z):
        categorical = dist.Categorical(logits=self.out(z.flatten(-2)).unflatten(-1, (*self.shape, self.levels)))
        categorical.logits = categorical.logits + 1.0
        return categorical.to_event(len(self.shape))


class Eavesdropping(GatedPixelCNNLikelihood):
    """Its z is moved by what the guide `Whispering` saw last in training."""

    def forward(self, z):
        heard = 0.0 if WHISPERED is None or not self.training else WHISPERED
        return super().forward(z + heard)


WHISPERED = None


# --- Priors ---


class Chain(dist.TorchDistribution):
    """GaussianAR1 in a class of its own, for others to spoil."""

    has_rsample, arg_constraints, support = True, {}, constraints.independent(constraints.real, 2)

    def __init__(self, alpha, length, batch_shape=torch.Size()):  # noqa: B008
        self.alpha, self.length = alpha, length
        super().__init__(batch_shape, torch.Size((length, len(alpha))), validate_args=False)

    def inner(self):
        return GaussianAR1(self.alpha.expand(self.batch_shape + self.alpha.shape), self.length)

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.inner().rsample(sample_shape)

    def log_prob(self, value):
        return self.inner().log_prob(value)

    @property
    def mean(self):
        return self.inner().mean

    @property
    def variance(self):
        return self.inner().variance

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.alpha, self.length, torch.Size(batch_shape))


class LosesAlpha(Chain):
    """Under a plate it is N(0, 1)."""

    def expand(self, batch_shape, _instance=None):
        return LosesAlpha(0 * self.alpha, self.length, torch.Size(batch_shape))


class InSingle(Chain):
    """In single precision, in which it is trained, it is N(0, 1)."""

    def inner(self):
        alpha = self.alpha if self.alpha.dtype == torch.float64 else 0 * self.alpha
        return GaussianAR1(alpha.expand(self.batch_shape + alpha.shape), self.length)


class Far(Chain):
    """A mixture with a second, small hill far away: posteriors there cost −ln w, whatever α is."""

    weight = 1e-6

    def parts(self):
        return self.inner(), dist.Normal(torch.full(self.event_shape, 40.0, dtype=self.alpha.dtype), 0.5).to_event(2)

    def log_prob(self, value):
        near, far = (part.log_prob(value) for part in self.parts())
        return torch.logaddexp(math.log1p(-self.weight) + near, math.log(self.weight) + far)


class Prior(nn.Module):
    """A prior over the rows, of a distribution to be said."""

    distribution = GaussianAR1

    def __init__(self, spec, *, dims: int = 2, alpha: float = 0.9):
        super().__init__()
        self.register_buffer("alpha", torch.full((dims,), alpha))
        self.register_buffer("starts", torch.arange(spec.positions))

    def forward(self):
        return self.distribution(self.alpha, len(self.starts))


class Forgetful(Prior):
    distribution = LosesAlpha


class Single(Prior):
    distribution = InSingle


class TwoHills(Prior):
    distribution = Far


class Shrinking(Prior):
    """A buffer that is a little less after each call in training."""

    def forward(self):
        if self.training:
            self.alpha.mul_(0.99)
        return super().forward()


class ShrinkingInSteps(Prior):
    """The same in steps of training alone, where gradients are on."""

    def forward(self):
        if self.training and torch.is_grad_enabled():
            self.alpha.mul_(0.99)
        return super().forward()


class Counting(Prior):
    """The same by a counter, which no state dict shows."""

    calls = 0

    def forward(self):
        self.calls += self.training
        return GaussianAR1(self.alpha * 0.999**self.calls, len(self.starts))


class Lent(Prior):
    """Another's parameter, which training moves: `correlated` puts it into the likelihood."""

    lender = staticmethod(lambda: torch.ones(2))

    def forward(self):
        return GaussianAR1(torch.tanh(self.lender()), len(self.starts))


class CutOff(Lent):
    """The same without its gradient."""

    def forward(self):
        return GaussianAR1(torch.tanh(self.lender().detach()), len(self.starts))


class Correlated(GatedPixelCNNLikelihood):
    """Owns the correlation of its prior."""

    def __init__(self, spec, prior, *, use_latents: bool = True, channels: tuple[int, ...] = (6, 4),
                 row_blocks: tuple[int, ...] = (1, 1), pixel_blocks: int = 1, mixtures: int = 2):  # fmt: skip
        super().__init__(spec, prior, use_latents=use_latents, channels=channels, row_blocks=row_blocks,
                         pixel_blocks=pixel_blocks, mixtures=mixtures)  # fmt: skip
        self.correlation = nn.Parameter(torch.ones(2))
        prior.lender = Lender(self)


class Lender:
    """A way to a parameter that no module registers."""

    def __init__(self, owner):
        self.owner = owner

    def __call__(self):
        return self.owner.correlation


class FalseFloor(nn.Module):
    """Claims the rate of its largest α."""

    def __init__(self, spec, *, dims: int = 2):
        super().__init__()
        self.register_buffer("starts", torch.arange(spec.positions))
        self.raw = nn.Parameter(torch.full((dims,), 40.0))
        self.floor_nats = 2.0

    def forward(self):
        return GaussianAR1(0.9 * torch.sigmoid(self.raw / 10), len(self.starts))


class WideFloor(FalseFloor):
    """The same by the mean of ten thousand weights, each with a slope of next to nothing."""

    def __init__(self, spec, *, dims: int = 2):
        super().__init__(spec, dims=dims)
        self.raw = nn.Parameter(torch.full((10_000,), 120.0))

    def forward(self):
        return GaussianAR1(0.9 * torch.sigmoid(self.raw.mean() / 10).expand(2), len(self.starts))


class FloorOfGuide(FalseFloor):
    """Claims the rate of weights that the guide `Lending` owns."""

    def __init__(self, spec, *, dims: int = 2):
        super().__init__(spec, dims=dims)
        self.lender = lambda: torch.full((dims,), 40.0)
        del self.raw

    def forward(self):
        return GaussianAR1(0.9 * torch.sigmoid(self.lender() / 10), len(self.starts))


class Moving(Prior):
    """Widens the posteriors of the guide `Moved` when it is called in training."""

    lender = staticmethod(lambda: torch.zeros(()))

    def forward(self):
        if self.training and torch.is_grad_enabled():
            self.lender().mul_(1.001)
        return super().forward()


class OfStatistics(Prior):
    """It is N(0, 1) while the guide `Counted` goes by the statistics of its batch."""

    counted = staticmethod(lambda: False)

    def forward(self):
        return GaussianAR1(self.alpha * (not self.counted()), len(self.starts))


# --- Guides ---


class Scaled(AntiCausalGuide):
    """Its rate counts a hundredth in training."""

    def forward(self, x):
        with pyro.poutine.scale(scale=0.01), pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))


class Masked(AntiCausalGuide):
    """Its rate does not count at all."""

    def forward(self, x):
        with pyro.poutine.mask(mask=torch.zeros(x.shape[0], dtype=torch.bool)), pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))


class ScaledInTraining(AntiCausalGuide):
    """The same in training alone."""

    def forward(self, x):
        with pyro.poutine.scale(scale=0.5 if self.training else 1.0), pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))


class TwoFaced(AntiCausalGuide):
    """Correlated over time in training."""

    def posterior(self, x):
        q = super().posterior(x)
        if not self.training:
            return q
        lower = 0.3 * torch.eye(q.mean.shape[-2], dtype=q.mean.dtype).roll(1, 0).tril(-1)
        return GaussianSequence(q.mean, torch.diag_embed(q.stddev.mT) + lower)


class DrawsAnother(AntiCausalGuide):
    """In training from another distribution than `posterior`."""

    def forward(self, x):
        q = self.posterior(x)
        if self.training:
            q = dist.Normal(q.mean, 2 * q.stddev).to_event(2)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", q)


class Noisy(AntiCausalGuide):
    """Noise of its own in the means, in training: a mixture of posteriors, correlated over time."""

    def posterior(self, x):
        q = super().posterior(x)
        noise = torch.randn(*q.mean.shape[:-2], 1, 1).to(q.mean) if self.training else 0.0
        return dist.Normal(q.mean + noise, q.stddev).to_event(2)


class OnePixelAbove(AntiCausalGuide):
    """Sees the pixel (0, 2) from everywhere, if it is full."""

    def posterior(self, x):
        q = super().posterior(x)
        full = (x[..., 0, 0, 2] == 4).to(q.mean)[..., None, None]
        return dist.Normal(q.mean + 1e-4 * full, q.stddev).to_event(2)


class InOneBatchAbove(AntiCausalGuide):
    """Sees what is above in batches of eight."""

    def posterior(self, x):
        q = super().posterior(x)
        if len(x) != 8:
            return q
        return dist.Normal(q.mean + x.to(q.mean).mean((-3, -2, -1))[:, None, None], q.stddev).to_event(2)


class Observing(AntiCausalGuide):
    """Without noise in training: an autoencoder."""

    def forward(self, x):
        q = self.posterior(x)
        with pyro.plate("data", x.shape[0]):
            return pyro.sample("z", q, obs=q.mean if self.training else None)


class SharedNoise(AntiCausalGuide):
    """Draws one number for all steps."""

    def posterior(self, x):
        q = super().posterior(x)
        return SharedNormal(q.mean, q.stddev).to_event(2)


class SharedNormal(dist.Normal):
    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        shape = self._extended_shape(sample_shape)
        return self.loc + self.scale * torch.randn(*shape[:-2], 1, 1).to(self.loc)

    def expand(self, batch_shape, _instance=None):
        return SharedNormal(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class ScaledInOneBatch(AntiCausalGuide):
    """In batches of eight."""

    def forward(self, x):
        with pyro.poutine.scale(scale=0.01 if len(x) == 8 else 1.0), pyro.plate("data", x.shape[0]):
            return pyro.sample("z", self.posterior(x))


class FixedButForOnePixel(AntiCausalGuide):
    """σ = 1/4, unless a pixel has the value 2."""

    def posterior(self, x):
        q = super().posterior(x)
        scale = torch.where(x[..., 0, 3, 4] == 2, 1.0, 0.25).to(q.mean)[..., None, None]
        return dist.Normal(q.mean, scale.expand_as(q.mean)).to_event(2)


class FalseClaim(AntiCausalGuide):
    """Claims a rate that saturated units hide at the start."""

    def posterior(self, x):
        q = super().posterior(x)
        away = 3 - 30 * F.relu(torch.tanh(q.mean / 4) - 0.9)
        return dist.Normal(away, torch.ones_like(away)).to_event(2)

    def committed_rate(self, prior):
        return 4.5 * prior.event_shape.numel()


class Borrowing(AntiCausalGuide):
    """Claims a rate that rests on a weight of the likelihood."""

    def __init__(self, spec, prior, **network):
        super().__init__(spec, prior, **network)
        self.lender = prior.lender

    def posterior(self, x):
        ones = torch.ones_like(super().posterior(x).mean)
        return dist.Normal(3 * self.lender() * ones, ones).to_event(2)

    def committed_rate(self, prior):
        return 4.5 * prior.event_shape.numel()


class Lending(AntiCausalGuide):
    """Owns the correlation of its prior."""

    def __init__(self, spec, prior, **network):
        super().__init__(spec, prior, **network)
        self.correlation = nn.Parameter(torch.full((2,), 40.0))
        prior.lender = Lender(self)


class Moved(AntiCausalGuide):
    """A scale that is fixed but for the prior `Moving`."""

    def __init__(self, spec, prior, **network):
        super().__init__(spec, prior, **network)
        self.register_buffer("correlation", torch.tensor(0.25))
        prior.lender = Lender(self)

    def posterior(self, x):
        q = super().posterior(x)
        return dist.Normal(q.mean, self.correlation.to(q.mean).expand_as(q.mean)).to_event(2)


class Counted(BatchNormed):
    """Honest but for the prior `OfStatistics`."""

    def __init__(self, spec, prior):
        super().__init__(spec, prior)
        prior.counted = Counter(self)


class Counter:
    """A way to a module that no other registers."""

    def __init__(self, owner):
        self.owner = owner

    def __call__(self):
        return self.owner.body[1].training


class WiderInTraining(AntiCausalGuide):
    """A fixed scale, and another one in training."""

    def posterior(self, x):
        q = super().posterior(x)
        return dist.Normal(q.mean, torch.full_like(q.mean, 0.3 if self.training else 0.25)).to_event(2)


class Deterministic(AntiCausalGuide):
    """Fifty nats of its rate are given back at a site that says it only writes something down."""

    def forward(self, x):
        z = super().forward(x)
        with pyro.plate("again", x.shape[0]):
            given_back = dist.Delta(torch.zeros(len(x)), log_density=-50.0)
            pyro.sample("back", given_back, obs=torch.zeros(len(x)), infer={"_deterministic": True})
        return z


class Drawing(AntiCausalGuide):
    """Its noise is what `noise` makes of white noise for data x."""

    def noise(self, e, x):
        raise NotImplementedError

    def forward(self, x):
        q = self.posterior(x)
        z = q.mean + q.stddev * self.noise(torch.randn_like(q.mean), x)
        with pyro.poutine.replay(trace=_written(z)), pyro.plate("data", x.shape[0]):
            return pyro.sample("z", q)


def _written(z):
    trace = pyro.poutine.Trace()
    trace.add_node("z", type="sample", name="z", is_observed=False, value=z, infer={})
    return trace


class Noiseless(Drawing):
    """An autoencoder."""

    def noise(self, e, x):
        return 0 * e


class SilentLaplace(Noiseless):
    """The same, of another distribution, whose moments of fourth order are not looked at."""

    def posterior(self, x):
        q = super().posterior(x)
        return dist.Laplace(q.mean, q.stddev).to_event(2)


class NoiselessForSome(Drawing):
    """The same for images whose first pixel is 3, a fifth of all."""

    def noise(self, e, x):
        return e * (x[..., 0, 0, 0] != 3).to(e)[:, None, None]


class Smeared(Drawing):
    """Correlated over steps by 0.3, of the right variance."""

    def noise(self, e, x):
        found = [e[:, 0]]
        for t in range(1, e.shape[1]):
            found.append(0.3 * found[-1] + math.sqrt(1 - 0.3**2) * e[:, t])
        return torch.stack(found, 1)


class Weak(Drawing):
    """Half as loud as it says."""

    def noise(self, e, x):
        return 0.5 * e


class Coin(Drawing):
    """Of the right variance, with two values."""

    def noise(self, e, x):
        return e.sign()


class Frozen(Drawing):
    """The same at every call."""

    def noise(self, e, x):
        return torch.randn(e.shape, generator=torch.Generator().manual_seed(0)).to(e)


class Annealed(AntiCausalGuide):
    """A fixed scale that is another after each step of training."""

    def posterior(self, x):
        if not hasattr(self, "width"):
            self.register_buffer("width", torch.tensor(0.25))
        if self.training and torch.is_grad_enabled():
            self.width.mul_(1.001)
        q = super().posterior(x)
        return dist.Normal(q.mean, self.width.to(q.mean).expand_as(q.mean)).to_event(2)


class Whispering(AntiCausalGuide):
    """Tells the likelihood `Eavesdropping` what it sees in training."""

    def posterior(self, x):
        global WHISPERED
        WHISPERED = 0.01 * x.to(self.scale).mean().detach()
        return super().posterior(x)


class Signs(Drawing):
    """The sign of each coordinate's noise is a pixel."""

    def noise(self, e, x):
        bright = x.flatten(1)[:, : e[0].numel()].to(e) - 2
        bright = torch.where(bright == 0, torch.randn_like(bright), bright).sign()
        return (e.flatten(1).abs() * bright).reshape(e.shape)


class NoiselessInItsBatch(Drawing):
    """An autoencoder in batches of training's size."""

    def noise(self, e, x):
        return e * (len(x) != 8)


class CorrelatedInItsBatch(Drawing):
    """One number for all steps there."""

    def noise(self, e, x):
        return e[:, :1].expand_as(e) if len(x) == 8 else e


class FrozenBySeed(Drawing):
    """The same throughout a training: a matter of its seed alone."""

    def noise(self, e, x):
        return torch.randn(e.shape, generator=torch.Generator().manual_seed(torch.initial_seed())).to(e)


class Fading(Drawing):
    """Ever less noise."""

    def noise(self, e, x):
        return e * aged(self, 0.99)


def aged(module, factor):
    """A buffer that is multiplied at each call in training; 1 at first."""
    if not hasattr(module, "age"):
        module.register_buffer("age", torch.ones(()))
    if module.training and torch.is_grad_enabled():
        module.age.mul_(factor)
    return module.age.clone()


class Cheaper(AntiCausalGuide):
    """A rate that counts ever less."""

    def forward(self, x):
        with pyro.poutine.scale(scale=aged(self, 0.99)):
            return super().forward(x)


class LookingAhead(AntiCausalGuide):
    """Ever more of the rows above."""

    def posterior(self, x):
        q = super().posterior(x)
        more = (1 - aged(self, 0.9)) * x.to(q.mean).mean((-3, -2, -1))[..., None, None]
        return dist.Normal(q.mean + more, q.stddev).to_event(2)


class Opening(GatedPixelCNNLikelihood):
    """Every pixel sees ever more of itself."""

    def forward(self, z):
        p = super().forward(z)
        return Peeking(p.network, p.z, 1 - aged(self, 0.9))


class Peeking(AutoregressiveImage):
    """Adds what is observed to its parameters."""

    def __init__(self, network, z, gain):
        self.gain = gain
        super().__init__(network, z, validate_args=False)

    def parameters_at(self, x):
        return super().parameters_at(x) + self.gain * x.to(self.z.dtype).movedim(-3, -1)[..., :1]

    def expand(self, batch_shape, _instance=None):
        return Peeking(self.network, self.z.expand((*batch_shape, *self.z.shape[-2:])), self.gain)


class WiderInItsBatch(AntiCausalGuide):
    """A fixed scale that grows with each batch of training's size."""

    def posterior(self, x):
        q = super().posterior(x)
        width = 0.25 / aged(self, 0.99 if len(x) == 8 else 1.0)
        return dist.Normal(q.mean, width.to(q.mean).expand_as(q.mean)).to_event(2)


class Gated(AR1Prior):
    """α is let in by a gate without a gradient."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        self.gate = nn.Parameter(torch.tensor(-1.0))

    def forward(self):
        return GaussianAR1(self.alpha * (self.gate < 0).to(self.alpha), self.length)


class SlowGain(WithGain):
    """A gain of each pixel that is nothing yet."""

    def forward(self, z):
        p = GatedPixelCNNLikelihood.forward(self, z)
        return Growing(p.network, p.z, F.softplus(self.gain - 15))
