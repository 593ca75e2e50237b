"""`diagnose` on VAEs that know nothing of this library: the kinds of programs and data, numbers known in closed form,
advice, and the command `doctor`.
"""

import copy
import inspect
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import rich.console
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuide, AutoGuideList, AutoNormal
from pyro.nn import PyroModule
from test_cli import call
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_delta import Diagnosis, diagnose
from pyro_delta.data import ArraySpec, from_tensors
from pyro_delta.diagnostics.diagnose import ADVICE, advise, judge
from pyro_delta.diagnostics.trace import trace
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.rate import alpha_for_rate
from pyro_delta.vae import VAE

N, D, K = 12, 16, 4
"""Data, numbers of a datum, latent numbers."""


def net(inputs: int, outputs: int, hidden: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def counts(number: int = N) -> Tensor:
    """Integers 0 … 8 as real numbers, as scikit-learn hands out its digits."""
    return torch.randint(9, (number, D)).float()


def gaussian(out: Tensor) -> dist.Independent:
    loc, scale = out.chunk(2, -1)
    return dist.Normal(loc, F.softplus(scale) + 0.1).to_event(1)


def binomial(logits: Tensor) -> dist.Independent:
    return dist.Binomial(8, logits=logits).to_event(1)


def standard(*shape: int) -> dist.Normal:
    return dist.Normal(torch.zeros(shape), 1.0)


@dataclass
class Stranger:
    """A VAE, and what is to be found: numbers scored of a datum, latent coordinates, δ and whether the KL is closed."""

    model: Any
    guide: Any
    data: Any
    scored: float = D
    latent: int = K
    delta: float | None = 0.0
    closed: bool = True
    batch: Any = None
    """what Pyro's own ELBO is called with, where that is not the data, …"""
    witness: Any = None
    """… and of which programs"""


# --- Programs of every form ---


class Methods(nn.Module):
    """Both programs are methods, as in Pyro's tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = net(D, 2 * K), net(K, D)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", standard(len(x), K).to_event(1))
            pyro.sample("obs", binomial(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", len(x)):
            pyro.sample("latent", gaussian(self.encoder(x)))


def methods() -> Stranger:
    vae = Methods()
    return Stranger(vae.model, vae.guide, counts())


def functions() -> Stranger:
    vae = Methods()
    return Stranger(lambda x: vae.model(x), lambda x: vae.guide(x), counts())


def partials() -> Stranger:
    vae = Methods()

    def model(beta: float, x: Tensor) -> None:
        assert beta == 1
        vae.model(x)

    return Stranger(partial(model, 1.0), partial(Methods.guide, vae), counts())


class Program(nn.Module):
    """A module that is a program."""

    def __init__(self, program: Callable[..., Any], network: nn.Module) -> None:
        super().__init__()
        self.program, self.network = program, network

    def forward(self, x: Tensor) -> Any:
        return self.program(x, self.network)


def modules() -> Stranger:
    def model(x: Tensor, network: nn.Module) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pyro.sample("obs", binomial(network(z)), obs=x)

    def guide(x: Tensor, network: nn.Module) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("latent", gaussian(network(x)))

    return Stranger(Program(model, net(K, D)), Program(guide, net(D, 2 * K)), counts())


class PyroDecoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](K, D)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pyro.sample("obs", binomial(self.layer(z)), obs=x)


class PyroEncoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](D, 2 * K)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            pyro.sample("latent", gaussian(self.layer(x)))


def pyro_modules() -> Stranger:
    return Stranger(PyroDecoder(), PyroEncoder(), counts())


class Plain:
    """Objects that are called, of no base class."""

    def __init__(self, program: Callable[..., Any], network: nn.Module) -> None:
        self.program, self.network = program, network

    def __call__(self, x: Tensor) -> Any:
        return self.program(x, self.network)


def objects() -> Stranger:
    made = modules()
    return Stranger(
        Plain(made.model.program, made.model.network), Plain(made.guide.program, made.guide.network), counts()
    )


# --- Sites and plates ---


def without_plates() -> Stranger:
    encoder, decoder = net(D, 2 * K), net(K, D)

    def model(x: Tensor) -> None:
        z = pyro.sample("latent", standard(len(x), K).to_event(1))
        pyro.sample("obs", binomial(decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("latent", gaussian(encoder(x)))

    return Stranger(model, guide, counts())


OF_HALF = K * 0.5 * (0.25 - 1 - math.log(0.25))
"""Committed by posteriors whose scale is 1/2 for every datum, against N(0, 1)."""


def without_events() -> Stranger:
    encoder, decoder = net(D, K), net(K, D)

    def model(x: Tensor) -> None:
        z = pyro.sample("latent", standard(len(x), K))
        pyro.sample("obs", dist.Binomial(8, logits=decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("latent", dist.Normal(encoder(x), 0.5))

    return Stranger(model, guide, counts(), delta=OF_HALF)


def inner_plates(number: int = N) -> Stranger:
    """Pyro gives the outer plate the last batch dimension, so that data come last."""
    encoder, decoder = net(D, K), net(K, D)

    def model(x: Tensor) -> None:
        with pyro.plate("documents", len(x)):
            with pyro.plate("topics", K):
                z = pyro.sample("latent", dist.Normal(0.0, 1.0))
            with pyro.plate("words", D):
                pyro.sample("obs", dist.Binomial(8, logits=decoder(z.T).T), obs=x.T)

    def guide(x: Tensor) -> None:
        with pyro.plate("documents", len(x)), pyro.plate("topics", K):
            pyro.sample("latent", dist.Normal(encoder(x).T, 0.5))

    return Stranger(model, guide, counts(number), delta=OF_HALF)


def outer_dimensions() -> Stranger:
    """The plate of data is given the first batch dimension."""
    encoder, decoder = net(D, K), net(K, D)

    def model(x: Tensor) -> None:
        with pyro.plate("documents", len(x), dim=-2):
            with pyro.plate("topics", K, dim=-1):
                z = pyro.sample("latent", dist.Normal(0.0, 1.0))
            with pyro.plate("words", D, dim=-1):
                pyro.sample("obs", dist.Binomial(8, logits=decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("documents", len(x), dim=-2), pyro.plate("topics", K, dim=-1):
            pyro.sample("latent", dist.Normal(encoder(x), 0.5))

    return Stranger(model, guide, counts(), delta=OF_HALF)


def independent_sites() -> Stranger:
    encoder, decoder = net(D, 2 * K), net(K, D)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = [pyro.sample(name, standard(K // 2).to_event(1)) for name in ("shape", "style")]
            pyro.sample("obs", binomial(decoder(torch.cat(parts, -1))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for name, part in zip(("shape", "style"), encoder(x).chunk(2, -1), strict=True):
                pyro.sample(name, gaussian(part))

    return Stranger(model, guide, counts())


def dependent_guide() -> Stranger:
    """Independent priors, of which each commits its share whatever the guide hands on."""
    encoder, decoder, second = net(D, K), net(K, D), net(D + K // 2, K)
    alpha = torch.tensor([0.8])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = [pyro.sample(name, GaussianAR1(alpha, 2)) for name in ("low", "high")]
            pyro.sample("obs", binomial(decoder(torch.cat(parts, -1).flatten(-2))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, scale = encoder(x).unflatten(-1, (2, 2)).chunk(2, -1)
            low = pyro.sample("low", dist.Normal(loc, F.softplus(scale)).to_event(2))
            loc, scale = second(torch.cat((x, low.flatten(-2)), -1)).unflatten(-1, (2, 2)).chunk(2, -1)
            pyro.sample("high", dist.Normal(loc, F.softplus(scale)).to_event(2))

    return Stranger(model, guide, counts(), delta=2 * -0.5 * math.log(1 - 0.64), closed=False)


def ladder() -> Stranger:
    """Prior and guide of a site depend on another one."""
    encoder, top, decoder, prior = net(D, K), net(K // 2, K), net(K, D), net(K // 2, K)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            high = pyro.sample("high", standard(K // 2).to_event(1))
            low = pyro.sample("low", gaussian(prior(high)))
            pyro.sample("obs", binomial(decoder(torch.cat((low, high), -1))), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            high = pyro.sample("high", gaussian(encoder(x)))
            pyro.sample("low", gaussian(top(high)))

    return Stranger(model, guide, counts(), delta=None, closed=False)


def several_observed() -> Stranger:
    encoder, decoder = net(D, 2 * K), net(K, D + 3)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pixels, classes = decoder(z).split((D, 3), -1)
            pyro.sample("x", binomial(pixels), obs=x)
            pyro.sample("y", dist.Categorical(logits=classes), obs=y)
            pyro.deterministic("probabilities", classes.softmax(-1))
        pyro.deterministic("mean", pixels.sigmoid())

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("latent", gaussian(encoder(x)))

    return Stranger(model, guide, {"x": counts(), "y": torch.arange(N) % 3}, scored=D + 1)


def factor() -> Stranger:
    """A likelihood that is no distribution."""
    encoder, decoder = net(D, 2 * K), net(K, D)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pyro.factor("fit", -(decoder(z) - x).square().sum(-1))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("latent", gaussian(encoder(x)))

    return Stranger(model, guide, counts(), scored=1)


def lengths(number: int) -> Tensor:
    return 1 + torch.arange(number) % 4


def masked() -> Stranger:
    """Sequences of 1 to 4 steps, a latent for each: what is beyond the end counts nowhere."""
    encoder, decoder = net(4, 2), net(1, 4)

    def beyond(length: Tensor) -> Tensor:
        return torch.arange(4)[:, None] < length

    def model(x: Tensor, length: Tensor) -> None:
        with (
            pyro.plate("sequences", len(length)),
            pyro.plate("steps", 4),
            poutine.mask(mask=beyond(length)),
        ):
            z = pyro.sample("state", dist.Normal(0.0, 1.0))
            pyro.sample("obs", binomial(decoder(z[..., None])), obs=x)

    def guide(x: Tensor, length: Tensor) -> None:
        loc, scale = encoder(x).unbind(-1)
        with (
            pyro.plate("sequences", len(length)),
            pyro.plate("steps", 4),
            poutine.mask(mask=beyond(length)),
        ):
            pyro.sample("state", dist.Normal(loc, F.softplus(scale)))

    data = {"x": counts().unflatten(-1, (4, 4)), "length": lengths(N)}
    return Stranger(Reversed(model), Reversed(guide), data, scored=10, delta=None)


class Reversed:
    """Steps of data come first in the programs, data in the batch."""

    def __init__(self, program: Callable[..., Any]) -> None:
        self.program = program

    def __call__(self, x: Tensor, length: Tensor) -> Any:
        return self.program(x.movedim(0, 1), length)


def observed_mask() -> Stranger:
    """Numbers that are missing, by the mask of a distribution."""
    encoder, decoder = net(2 * D, 2 * K), net(K, D)

    def model(x: Tensor, known: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pyro.sample("obs", dist.Binomial(8, logits=decoder(z)).mask(known).to_event(1), obs=x)

    def guide(x: Tensor, known: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("latent", gaussian(encoder(torch.cat((x * known, known.float()), -1))))

    known = torch.arange(N * D).reshape(N, D) % 4 > 0
    return Stranger(model, guide, {"x": counts(), "known": known}, scored=0.75 * D)


def scaled() -> Stranger:
    """A weight on the KL belongs to training, and so does that of a minibatch: the bound has none."""
    vae = Methods()

    def weighed(weight: float, data: int) -> tuple[Any, Any]:
        def model(x: Tensor, weight: float = weight) -> None:
            with pyro.plate("images", data, subsample_size=len(x)):
                with poutine.scale(scale=weight):
                    z = pyro.sample("latent", standard(K).to_event(1))
                pyro.sample("obs", binomial(vae.decoder(z)), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("images", data, subsample_size=len(x)), poutine.scale(scale=weight):
                pyro.sample("latent", gaussian(vae.encoder(x)))

        return model, guide

    return Stranger(*weighed(0.1, 1000), counts(), witness=weighed(1.0, N))


def categorical() -> Stranger:
    encoder, decoder = net(D, 3), net(3, D)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("class", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("obs", binomial(decoder(F.one_hot(z, 3).float())), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("class", dist.Categorical(logits=encoder(x)))

    return Stranger(model, guide, counts(), latent=1, delta=None)


def full_covariance() -> Stranger:
    encoder, decoder = net(D, K), net(K, D)
    factor = torch.eye(K) + torch.ones(K, K).tril(-1) / 3

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pyro.sample("obs", binomial(decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.MultivariateNormal(encoder(x), scale_tril=factor))

    return Stranger(model, guide, counts(), delta=None, closed=False)


def flow() -> Stranger:
    encoder, decoder = net(D, 2 * K), net(K, D)
    bend = dist.transforms.Planar(K)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pyro.sample("obs", binomial(decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("bend", bend)
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.TransformedDistribution(gaussian(encoder(x)), [bend]))

    return Stranger(model, guide, counts(), delta=None, closed=False)


def positive() -> Stranger:
    encoder, decoder = net(D, 2 * K), net(K, D)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Gamma(torch.ones(K), 1.0).to_event(1))
            pyro.sample("obs", binomial(decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            shape, rate = (F.softplus(encoder(x)) + 0.5).chunk(2, -1)
            pyro.sample("latent", dist.Gamma(shape, rate).to_event(1))

    return Stranger(model, guide, counts(), delta=None)


# --- Data of every kind ---


class Decoder(nn.Module):
    """A Transformer over 24 tokens, of which each sees those before it and its latent step."""

    def __init__(self, levels: int = 5, hidden: int = 8) -> None:
        super().__init__()
        self.levels = levels
        self.embed, self.place = nn.Embedding(levels + 1, hidden), nn.Parameter(torch.randn(24, hidden))
        self.latent, self.out = nn.Linear(2, hidden), nn.Linear(hidden, levels)
        self.layer = nn.TransformerEncoderLayer(hidden, 2, 16, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        before = torch.cat((torch.full_like(x[:, :1], self.levels), x[:, :-1]), 1)
        h = self.embed(before) + self.place + self.latent(z).repeat_interleave(4, 1)
        return self.out(self.layer(h, src_mask=nn.Transformer.generate_square_subsequent_mask(24), is_causal=True))


class TokenVAE(nn.Module):
    """Teacher-forced: the distribution of the observed site is made of x itself."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.embed = Decoder(), nn.Embedding(5, 8)
        self.gru, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)
        self.register_buffer("alpha", torch.tensor([0.5, 0.8]))

    def model(self, tokens: Tensor) -> None:
        with pyro.plate("sentences", len(tokens)):
            z = pyro.sample("topics", GaussianAR1(self.alpha, 6))
            pyro.sample("words", dist.Categorical(logits=self.decoder(tokens, z)).to_event(1), obs=tokens)

    def guide(self, tokens: Tensor) -> None:
        loc, scale = self.out(self.gru(self.embed(tokens).flip(1))[0].flip(1)[:, ::4]).chunk(2, -1)
        with pyro.plate("sentences", len(tokens)):
            pyro.sample("topics", dist.Normal(loc, F.softplus(scale)).to_event(2))


def ar1_rate(steps: int, *alpha: float) -> float:
    """Eq. 3 of the paper."""
    return sum(0.5 * ((steps - 2) * math.log(1 + a * a) - math.log(1 - a * a)) for a in alpha)


def tokens() -> Stranger:
    vae = TokenVAE()
    return Stranger(
        vae.model, vae.guide, torch.randint(5, (N, 24)), scored=24, latent=12, delta=ar1_rate(6, 0.5, 0.8),
    )  # fmt: skip


def dict_of_tokens() -> Stranger:
    vae = TokenVAE()

    def model(tokens: Tensor, length: Tensor) -> None:
        with pyro.plate("sentences", len(tokens)):
            z = pyro.sample("topics", GaussianAR1(vae.alpha, 6))
            words = dist.Categorical(logits=vae.decoder(tokens, z)).mask(torch.arange(24) < length[:, None])
            pyro.sample("words", words.to_event(1), obs=tokens)

    return Stranger(
        model, vae.guide, {"tokens": torch.randint(5, (N, 24)), "length": 8 * lengths(N).clamp(max=3)},
        scored=8 * (1 + 2 + 3 + 3) / 4, latent=12, delta=ar1_rate(6, 0.5, 0.8),
    )  # fmt: skip


def series() -> Stranger:
    encoder, decoder = nn.GRU(3, 4, batch_first=True), net(2, 6)
    prior = GaussianAR1(torch.tensor([0.9, 0.7]), 6)

    def model(x: Tensor) -> None:
        with pyro.plate("series", len(x)):
            z = pyro.sample("state", prior)
            loc, scale = decoder(z.repeat_interleave(4, -2)).chunk(2, -1)
            pyro.sample("obs", dist.Normal(loc, F.softplus(scale) + 0.1).to_event(2), obs=x)

    def guide(x: Tensor) -> None:
        loc, scale = encoder(x.flip(1))[0].flip(1)[:, ::4].chunk(2, -1)
        with pyro.plate("series", len(x)):
            pyro.sample("state", dist.Normal(loc, F.softplus(scale)).to_event(2))

    return Stranger(model, guide, torch.randn(N, 24, 3), scored=72, latent=12, delta=ar1_rate(6, 0.9, 0.7))


class Own(Dataset):
    """A data set of one's own, of pairs."""

    def __init__(self) -> None:
        self.x = counts()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], index % 2


def dataset() -> Stranger:
    data = Own()
    return Stranger(methods().model, methods().guide, data, batch=data.x)


def tensor_dataset() -> Stranger:
    x = counts()
    return Stranger(methods().model, methods().guide, TensorDataset(x), batch=x)


def arrays() -> Stranger:
    """NumPy's real numbers are of double precision, networks are not."""
    x = counts()
    return Stranger(methods().model, methods().guide, x.double().numpy(), batch=x)


def indexed(prior: Callable[[], Any]) -> tuple[Callable[..., None], Callable[..., Any], dict[str, Tensor]]:
    """A model whose latents belong to the data by their places, its plate, and the data."""

    def plate(x: Tensor, index: Tensor) -> Any:
        return pyro.plate("images", N, subsample=index)

    def model(x: Tensor, index: Tensor) -> None:
        with plate(x, index):
            z = pyro.sample("latent", prior())
            pyro.sample("obs", dist.Normal(z.repeat_interleave(D // K, -1), 1.0).to_event(1), obs=x)

    return model, plate, {"x": torch.randn(N, D), "index": torch.arange(N)}


def by_place(model: Any, guide: AutoGuide, data: dict[str, Tensor], **found: Any) -> Stranger:
    """With a posterior of each datum's own."""
    guide(**data)
    with torch.no_grad():
        for weight in guide.parameters():
            weight.add_(torch.randn_like(weight))
    return Stranger(model, guide, data, witness=(model, lambda x, index: guide(x, index)), **found)


def auto_normal() -> Stranger:
    model, plate, data = indexed(lambda: standard(K).to_event(1))
    return by_place(model, AutoNormal(model, create_plates=plate), data)


def auto_positive() -> Stranger:
    """What the guide draws is the logarithm of the latents."""
    model, plate, data = indexed(lambda: dist.LogNormal(torch.zeros(K), 0.5).to_event(1))
    return by_place(model, AutoNormal(model, create_plates=plate), data, delta=None, closed=False)


def auto_list() -> Stranger:
    model, plate, data = indexed(lambda: standard(K).to_event(1))
    guide = AutoGuideList(model, create_plates=plate)
    guide.append(AutoNormal(poutine.block(model, expose=["latent"])))
    return by_place(model, guide, data)


def auxiliary() -> Stranger:
    """A guide that draws what the site then is."""
    vae = Methods()

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            drawn = pyro.sample("drawn", gaussian(vae.encoder(x)), infer={"is_auxiliary": True})
            pyro.sample("latent", dist.Delta(drawn, event_dim=1))

    return Stranger(vae.model, guide, counts())


STRANGERS: list[Callable[[], Stranger]] = [
    methods, functions, partials, modules, pyro_modules, objects,
    without_plates, without_events, inner_plates, partial(inner_plates, D), partial(inner_plates, K), outer_dimensions,
    independent_sites, dependent_guide, ladder, several_observed, factor, masked, observed_mask, scaled,
    categorical, full_covariance, flow, positive,
    tokens, dict_of_tokens, series, dataset, tensor_dataset, arrays, auto_normal, auto_positive, auto_list, auxiliary,
]  # fmt: skip


def title(make: Any) -> str:
    return getattr(make, "__name__", "") or f"{make.func.__name__} of {make.args[0]}"


@pytest.mark.parametrize("make", STRANGERS, ids=title)
def test_vaes_of_every_kind(make: Callable[[], Stranger]) -> None:
    """Against Pyro's own ELBO, drawn many times over."""
    stranger = make()
    numbers = diagnose(stranger.model, stranger.guide, stranger.data, particles=5).numbers
    assert numbers["latent_units"] == stranger.latent
    assert numbers["rate_closed_form"] is stranger.closed
    assert numbers["delta_nats"] == (None if stranger.delta is None else pytest.approx(stranger.delta, rel=1e-6))
    assert numbers["floor_holds"] is (True if stranger.closed and stranger.delta is not None else None)
    bits = numbers["neg_elbo_nats"] / (stranger.scored * math.log(2))
    assert numbers["neg_elbo_bpd"] == pytest.approx(bits, rel=1e-6)
    assert numbers["neg_elbo_nats"] == pytest.approx(numbers["rate_nats_mean"] + numbers["distortion_nats"], rel=1e-6)
    drawn = torch.tensor([elbo(stranger) for _ in range(40)])
    assert numbers["neg_elbo_nats"] == pytest.approx(drawn.mean().item(), abs=5 * drawn.std().item() + 1e-3)


def elbo(stranger: Stranger) -> float:
    """−ELBO of a datum by one sample, in evaluation mode."""
    model, guide = stranger.witness or (stranger.model, stranger.guide)
    for program in (model, guide):
        if isinstance(owner := getattr(program, "__self__", program), nn.Module):
            owner.eval()
    batch: Any = stranger.data if stranger.batch is None else stranger.batch
    size = len(batch)
    if isinstance(batch, Mapping):
        size, (model, guide) = N, (partial(named, program, batch) for program in (model, guide))
        batch = None
    with pyro.validation_enabled(False):
        return Trace_ELBO(max_plate_nesting=2).loss(model, guide, batch) / size


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_a_plate_that_has_the_batch_s_size_by_chance(number: int) -> None:
    """It stands outside that of the data, whose numbers belong to the data all the same."""
    means, of_z = torch.arange(4.0), torch.randn(4, 5, generator=torch.Generator().manual_seed(1))

    def model(x: Tensor) -> None:
        with pyro.plate("topics", 4), pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(means, 1.0))
        with pyro.plate("pixels", 5), pyro.plate("data again", len(x)):
            pyro.sample("obs", dist.Normal(z @ of_z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("topics", 4), pyro.plate("data", len(x)):
            pyro.sample("latent", dist.Normal(x[:, :4], 0.5))

    x = torch.randn(number, 5, generator=torch.Generator().manual_seed(2))
    seen = trace(VAE(model, guide), x)
    z = seen.z["latent"]
    torch.testing.assert_close(seen.log_q, dist.Normal(x[:, :4], 0.5).log_prob(z).sum(1))
    torch.testing.assert_close(seen.log_p, dist.Normal(means, 1.0).log_prob(z).sum(1))
    torch.testing.assert_close(seen.log_px, dist.Normal(z @ of_z, 1.0).log_prob(x).sum(1))
    torch.testing.assert_close(seen.latents["latent"].moments()["mean"], x[:, :4])


def named(program: Callable[..., Any], batch: Mapping[str, Tensor], nothing: None) -> Any:
    """A program with what its signature names."""
    return program(**{name: batch[name] for name in inspect.signature(program).parameters})


# --- What is left as it was ---


def test_programs_are_looked_at_in_evaluation_mode_and_left_as_they_are() -> None:
    """Networks of functions, too, which nobody can see before they run."""
    encoder = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2 * K))
    decoder = nn.Sequential(nn.Dropout(0.5), net(K, D))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", standard(K).to_event(1))
            pyro.sample("obs", binomial(decoder(z)), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("latent", gaussian(encoder(x)))

    x = counts(101)
    encoder[2].eval()  # one that was in evaluation mode stays in it
    before = copy.deepcopy((encoder.state_dict(), decoder.state_dict()))
    random = torch.get_rng_state()
    modes = [module.training for module in (*encoder.modules(), *decoder.modules())]
    found = diagnose(model, guide, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in (*encoder.modules(), *decoder.modules())] == modes
    torch.testing.assert_close((encoder.state_dict(), decoder.state_dict()), before, rtol=0, atol=0)
    assert found.asdict() == diagnose(model, guide, x).asdict()
    encoder.eval()
    decoder.eval()
    q, p = gaussian(encoder(x)), standard(K).to_event(1)
    assert found.numbers["rate_nats_mean"] == pytest.approx(dist.kl.kl_divergence(q, p).mean().item(), rel=1e-5)


def test_labels_are_for_the_probe() -> None:
    vae, x = Methods(), counts(40)
    labels = (x.sum(1) > x.sum(1).median()).long()
    alone = diagnose(vae.model, vae.guide, x).numbers
    assert alone["probe_accuracy"] is None
    given = diagnose(vae.model, vae.guide, x, labels=labels.numpy()).numbers
    within = diagnose(vae.model, vae.guide, TensorDataset(x, labels)).numbers
    assert given == within
    assert 0 <= given["probe_accuracy"] <= 1
    fit = diagnose(vae.model, vae.guide, x, labels=labels, fit={"x": x, "labels": labels}).numbers
    assert {key for key in fit if fit[key] != given[key]} <= {"probe_accuracy", "probe_accuracy_se", "probe_chance"}


def test_data_with_splits() -> None:
    """The test split is looked at, in the unit of the spec, and the probe is fitted to the training split."""
    vae, x = Methods(), counts(40)
    labels = torch.arange(40) % 2
    data = from_tensors({"x": x[:20].long(), "labels": labels[:20]}, test={"x": x[20:].long(), "labels": labels[20:]})

    class Cast(nn.Module):
        def __init__(self, program: Callable[..., Any]) -> None:
            super().__init__()
            self.program = program

        def forward(self, x: Tensor) -> Any:
            return self.program(x.float())

    model, guide = Cast(vae.model), Cast(vae.guide)
    found = diagnose(model, guide, data)
    assert found.numbers["n_images"] == 20
    assert found.unit == "bits/dim"
    fit = {"x": data.train.x.float(), "labels": data.train.labels}
    by_hand = diagnose(vae.model, vae.guide, x[20:], labels=labels[20:], fit=fit).numbers
    assert {key: found.numbers[key] for key in by_hand} == by_hand


def test_one_object_with_both_programs() -> None:
    vae, x = Methods(), counts()
    assert diagnose(vae, data=x).numbers == diagnose(vae.model, vae.guide, x).numbers


# --- Numbers that are known ---


def test_every_number_of_an_exact_model() -> None:
    """X = W z + s ε with orthogonal columns of W: the posterior is Normal and independent, and everything is known."""
    torch.manual_seed(1)  # other noise than that of posterior samples, which is of seed 0
    number, noise, size = 2000, 0.5, torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64)).Q
    weight = directions * size
    x = torch.randn(number, 3, dtype=torch.float64) @ weight.T + noise * torch.randn(number, 6, dtype=torch.float64)
    variance = 1 / (1 + size.square() / noise**2)
    mean = variance * (x @ weight) / noise**2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(size), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(variance * (x @ weight) / noise**2, variance.sqrt()).to_event(1))

    labels = (mean[:, 0] > 0).long()
    found = diagnose(model, guide, x, labels=labels, fit={"x": x, "labels": labels}).numbers
    evidence = dist.MultivariateNormal(torch.zeros(6).double(), weight @ weight.T + noise**2 * torch.eye(6).double())
    log_px = evidence.log_prob(x)
    rate_bk = 0.5 * (mean.square() + variance - 1 - variance.log())
    known = {
        "rate_nats_mean": rate_bk.sum(1).mean(),
        "rate_nats_min": rate_bk.sum(1).min(),
        "rate_nats_per_dim": rate_bk.mean(0),
        "delta_nats": 0.5 * (variance - 1 - variance.log()).sum(),  # of this scale, which is that of every datum
        "active_units": 2,
        "latent_units": 3,
        "n_images": number,
        "iw_nats": -log_px[:200].mean(),  # every weight is p(x), whatever z
        "iw_images": 200,
        "particles": 30,
        "k_hat_bad": 0,
        "mutual_information_cap_nats": math.log(number),
        "rate_nats_mean_se": rate_bk.sum(1).std() / number**0.5,
    }
    for key, value in known.items():
        expected = value.tolist() if isinstance(value, Tensor) else value
        assert found[key] == pytest.approx(expected, rel=1e-9, abs=1e-9), key
    bits = 6 * math.log(2)
    for key in ("rate", "distortion", "neg_elbo"):
        nats = found["rate_nats_mean" if key == "rate" else f"{key}_nats"]
        assert found[f"{key}_bpd"] == pytest.approx(nats / bits, rel=1e-9)
    assert found["iw_bpd"] == pytest.approx(found["iw_nats"] / bits, rel=1e-9)
    signal = size.square() / noise**2
    within = {
        "neg_elbo_nats": (-log_px.mean(), found["neg_elbo_bpd_se"] * bits),
        "distortion_nats": (-log_px.mean() - rate_bk.sum(1).mean(), found["distortion_bpd_se"] * bits),
        "iw_gap_nats": (0.0, found["iw_gap_nats_se"]),
        "shuffled_gap_nats": (signal.sum(), found["shuffled_gap_se"]),
        "mutual_information_nats": (0.5 * signal.log1p().sum(), found["mutual_information_nats_se"]),
        # The sign of a sample against that of its mean, which are correlated normals, and half the data.
        "probe_accuracy": (1 - math.acos((1 - variance[0]) ** 0.5) / math.pi, found["probe_accuracy_se"]),
    }
    for key, (value, error) in within.items():
        assert found[key] == pytest.approx(float(value), abs=4 * error), key
    # The decoder is the model's own: z tells it all, and the bound of M samples is near the information.
    information = 0.5 * signal.log1p().sum().item()
    assert information - 0.25 < found["told_nats"] < information + 3 * found["told_nats_se"]
    assert found["told_tau"] > 0.7
    assert found["floor_holds"] is found["latents_used"] is found["rate_closed_form"] is True


def test_a_gap_that_is_known() -> None:
    """AR(1) latents seen through noise: the posterior is correlated, the guide is the best that is not."""
    torch.manual_seed(1)
    steps, alpha, noise, number = 5, 0.8, 1.0, 600
    prior = GaussianAR1(torch.tensor([alpha], dtype=torch.float64), steps)
    x = prior.sample((number,)) + noise * torch.randn(number, steps, 1).double()
    covariance = alpha ** (torch.arange(steps)[:, None] - torch.arange(steps)).abs().double()
    precision = torch.linalg.inv(covariance) + torch.eye(steps).double() / noise**2

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, noise).to_event(2), obs=x)

    def guide(x: Tensor) -> None:
        mean = torch.linalg.solve(precision, x / noise**2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, precision.diagonal()[:, None].rsqrt()).to_event(2))

    found = diagnose(model, guide, x, particles=1000, weighed=50).numbers
    log_px = dist.MultivariateNormal(torch.zeros(steps).double(), covariance + torch.eye(steps).double()).log_prob(
        x.squeeze(-1)
    )
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    product = torch.linalg.inv(covariance) / precision.diagonal()  # ΛS of a guide of fixed scale
    committed = 0.5 * (product.trace() - steps - torch.logdet(product)).item()
    assert found["delta_nats"] == pytest.approx(committed, rel=1e-9)
    assert ar1_rate(steps, alpha) < found["delta_nats"] <= found["rate_nats_min"]
    bits = steps * math.log(2)
    error = found["neg_elbo_bpd_se"] * bits
    assert found["neg_elbo_nats"] == pytest.approx((gap - log_px.mean()).item(), abs=4 * error)
    assert found["iw_nats"] == pytest.approx(-log_px[:50].mean().item(), abs=0.05)
    assert found["iw_gap_nats"] == pytest.approx(gap.item(), abs=4 * found["iw_gap_nats_se"] + 0.05)
    assert len(found["rate_nats_per_dim"]) == 1
    assert found["rate_nats_per_dim"][0] == pytest.approx(found["rate_nats_mean"], rel=1e-9)


def test_a_resolution_makes_bits_of_a_density() -> None:
    stranger = series()
    spec = ArraySpec((24, 3), resolution=0.125)
    plain, rounded = (diagnose(stranger.model, stranger.guide, stranger.data, spec=s) for s in (None, spec))
    assert (plain.unit, rounded.unit) == ("bits/number", "bits/dim")
    for key in ("neg_elbo_bpd", "distortion_bpd", "iw_bpd"):
        assert rounded.numbers[key] == pytest.approx(plain.numbers[key] + 3, rel=1e-6)
    assert rounded.numbers["rate_bpd"] == pytest.approx(plain.numbers["rate_bpd"], rel=1e-6)


# --- Advice ---


def fitted(stranger: Stranger, x: Tensor, steps: int, lr: float = 0.01) -> Stranger:
    """Trained by plain SVI on minibatches of x."""
    svi = SVI(stranger.model, stranger.guide, pyro.optim.Adam({"lr": lr}), Trace_ELBO())
    for _ in range(steps):
        svi.step(x[torch.randint(len(x), (min(len(x), 100),))])
    return stranger


def prototypes(number: int) -> tuple[Tensor, Tensor]:
    """Four kinds of data, and which they are of."""
    labels = torch.arange(number) % 4
    logits = 2 * torch.randn(4, D, generator=torch.Generator().manual_seed(0))
    return dist.Binomial(8, logits=logits[labels]).sample(), labels


def used() -> Diagnosis:
    x, labels = prototypes(1000)
    made = fitted(methods(), x[:800], 150)
    return diagnose(made.model, made.guide, x[800:], labels=labels[800:])


def collapsed() -> Diagnosis:
    """Noise, of which a latent could say nothing."""
    x = dist.Binomial(8, 0.5).sample((800, D))
    made = fitted(methods(), x[:600], 200, 0.02)
    return diagnose(made.model, made.guide, x[600:])


class Floored(nn.Module):
    """A sequence of 8 latent steps with a floor; `tells` says whether the decoder hears of it."""

    def __init__(self, *, tells: bool) -> None:
        super().__init__()
        self.encoder, self.decoder, self.tells = net(D, 32), net(16, D), tells
        self.register_buffer("alpha", torch.full((2,), alpha_for_rate(4.0, 8, 2)))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", GaussianAR1(self.alpha, 8)).flatten(-2)
            pyro.sample("x", binomial(self.decoder(z if self.tells else 0 * z)), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        loc, scale = self.encoder(x).unflatten(-1, (8, 4)).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(2))


def with_floor(*, tells: bool) -> Diagnosis:
    x, _ = prototypes(1000)
    vae = Floored(tells=tells)
    made = fitted(Stranger(vae.model, vae.guide, x), x[:800], 100)
    return diagnose(made.model, made.guide, x[800:])


def false_formula() -> Diagnosis:
    class Claims(Floored):
        def committed_rate(self, prior: Any) -> float:
            return 100.0

    vae = Claims(tells=True)
    guide = Program(lambda x, network: vae.guide(x), nn.Identity())
    guide.committed_rate = vae.committed_rate  # type: ignore[assignment]
    return diagnose(vae.model, guide, counts(40))


def overfitted() -> Diagnosis:
    """A guide that has learned a few data by heart is sure of others, wrongly."""
    x, _ = prototypes(400)
    made = fitted(methods(), x[:20], 1000, 0.02)
    return diagnose(made.model, made.guide, x[200:], particles=100)


def diverged() -> Diagnosis:
    vae = Methods()
    with torch.no_grad():
        vae.encoder[0].weight.fill_(math.nan)
    return diagnose(vae.model, vae.guide, counts(40))


@pytest.mark.parametrize(
    ("make", "verdict", "words"),
    [
        (used, "used", r"The latents are used; the decoder is overconfident in z \(τ = 0\.[1-6]\d*\)\.$"),
        (collapsed, "collapsed", r"with GaussianAR1\(α, 2\) as the prior of 'latent' and its 4 numbers in shape"),
        (partial(with_floor, tells=True), "used", r"used, and no posterior of this family can fall below 4 nats"),
        (
            partial(with_floor, tells=False),
            "nothing told",
            r"at least 0 nats, .* though the floor of 4 nats is met: start",
        ),
        (false_formula, "floor broken", r"a datum has a KL of [\d.]+ nats, below δ = 100; the formula is not that of"),
        (overfitted, "guide fits badly", r"fits the model's posterior badly \(k̂ [\d.]+, −ELBO [\d.]+ nats above"),
        (diverged, "diverged", r"not finite: training diverged; train again with a lower learning rate"),
    ],
    ids=["used", "collapsed", "floor", "floor tells nothing", "false formula", "overfitted", "diverged"],
)
def test_verdicts_on_real_models(make: Callable[[], Diagnosis], verdict: str, words: str) -> None:
    found = make()
    assert found.verdict == verdict, str(found)
    assert re.search(words, found.advice), found.advice
    assert found.advice.endswith(".")
    if make is used:
        assert found.numbers["probe_accuracy"] > 0.9


NUMBERS = {
    "rate_nats_mean": 5.0, "rate_nats_min": 4.5, "distortion_nats": 20.0, "delta_nats": 0.0, "floor_holds": True,
    "shuffled_gap_nats": 9.0, "shuffled_gap_se": 0.1, "latents_used": True, "k_hat_median": 0.2, "iw_gap_nats": 0.3,
    "told_calibrated_nats": 2.0, "told_calibrated_nats_se": 0.0, "told_judged": 128, "told_tau": 0.9,
}  # fmt: skip
"""Of a VAE that is well."""
UNUSED = {"latents_used": False, "told_calibrated_nats": 0.04, "rate_nats_mean": 0.4}


@pytest.mark.parametrize(
    ("numbers", "event", "sentence"),
    [
        ({"rate_nats_mean": math.inf}, (4, 2), (
            "The numbers are not finite: training diverged; train again with a lower learning rate, or clip "
            "gradients.")),
        ({"floor_holds": False, "delta_nats": 4.6, **UNUSED}, (4, 2), (
            "The floor is broken: a datum has a KL of 4.5 nats, below δ = 4.6; the formula is not that of this guide's "
            "family, or the prior is not the one that it is of.")),
        (UNUSED, (8, 2), (
            "The posterior has collapsed and no floor prevents it: with GaussianAR1(α, 8) as the prior of 'z', and the "
            "guide Normal and independent, α = 0.5 commits δ = 1.63, α = 0.8 commits δ = 3.99, α = 0.95 commits "
            "δ = 6.19 nats.")),
        ({**UNUSED, "delta_nats": None, "floor_holds": None}, (7,), (
            "The posterior has collapsed and no floor prevents it: with GaussianAR1(α, 7) as the prior of 'z' and its "
            "7 numbers in shape (7, 1), and the guide Normal and independent, α = 0.5 commits δ = 0.702, α = 0.8 "
            "commits δ = 1.75, α = 0.95 commits δ = 2.77 nats.")),
        (UNUSED, (), (
            "The posterior has collapsed and no floor prevents it: one latent number at 'z' cannot be given a floor by "
            "a sequence; use a sequence of 2 steps or more.")),
        ({**UNUSED, "delta_nats": 4.0}, (4, 2), (
            "Nothing shows that z tells the decoder of the data (at least 0.04 nats, calibrated, 99 % bound), though "
            "the floor of 4 nats is met: start the guide from data (means of deviation 1), let it learn more slowly "
            "than the model, or take a prior with fewer dimensions and a larger α.")),
        ({**UNUSED, "told_calibrated_nats": -0.01, "rate_nats_mean": 3.0}, (4, 2), (
            "Nothing shows that z tells the decoder of the data (at least 0 nats, calibrated, 99 % bound), though the "
            "rate is 3 nats: start the guide from data (means of deviation 1), let it learn more slowly than the "
            "model, or take a prior with fewer dimensions and a larger α.")),
        ({**UNUSED, "delta_nats": 4.0, "told_calibrated_nats": 0.15, "told_calibrated_nats_se": 0.07,
          "told_cap_nats": 0.154, "told_judged": 18}, (4, 2), (
            "Nothing shows that z tells the decoder of the data (at least 0 nats, calibrated, 99 % bound), though the "
            "floor of 4 nats is met: the 18 data that judge could not show it, for at most 0.15 ± 0.07 nats tell them "
            "apart; give more data, alike in length or class where they have one.")),
        ({"k_hat_median": 0.9, "iw_gap_nats": 0.8}, (4, 2), (
            "The latents are used, but the guide fits the model's posterior badly (k̂ 0.90, −ELBO 0.8 nats above the "
            "importance-weighted bound): stop earlier if it overfits, or give it a richer network or family.")),
        ({"k_hat_median": 0.9, "iw_gap_nats": 0.4}, (4, 2), "The latents are used."),
        ({"k_hat_median": None, "iw_gap_nats": 40.0}, (4, 2), "The latents are used."),
        ({"delta_nats": 4.0}, (4, 2), (
            "The latents are used, and no posterior of this family can fall below 4 nats.")),
        ({"delta_nats": 1e-16}, (4, 2), "The latents are used."),
        ({"told_tau": 0.35}, (4, 2), "The latents are used; the decoder is overconfident in z (τ = 0.35)."),
    ],
)  # fmt: skip
def test_every_sentence_of_advice(numbers: dict[str, Any], event: tuple[int, ...], sentence: str) -> None:
    made_up = NUMBERS | numbers
    verdict = judge(made_up)
    assert advise(verdict, made_up, {"z": event, "small": ()}) == sentence
    start = ADVICE[verdict].split("{")[0].rstrip(".")
    assert sentence.startswith(start)


def test_verdicts_are_all_reached() -> None:
    cases = test_every_sentence_of_advice.pytestmark[0].args[1]
    assert {judge(NUMBERS | case[0]) for case in cases} == set(ADVICE)


# --- Forms ---


def test_forms_of_a_diagnosis() -> None:
    numbers = NUMBERS | {"delta_known_by": "<b>a formula</b>", "probe_accuracy": None, "rate_nats_per_dim": [1.0, 3.5]}
    found = Diagnosis(numbers, "used", "The latents are used & well.", "bits/token")
    assert found.asdict() == numbers | {
        "unit": "bits/token",
        "verdict": "used",
        "advice": "The latents are used & well.",
    }
    lines = str(found).splitlines()
    assert lines[0] == "used"
    assert lines[-1] == "The latents are used & well."
    assert re.search(r"^rate, mean +5\.0000 +nats$", str(found), re.MULTILINE)
    assert re.search(r"^cost of another datum's z \(not information\) +9\.0000 ± 0\.1 +nats$", str(found), re.MULTILINE)
    assert re.search(r"^linear probe on z, accuracy +—$", str(found), re.MULTILINE)
    assert re.search(r"^rate of each latent dimension +1 3\.5 +nats$", str(found), re.MULTILINE)
    assert repr(found) == "<Diagnosis: used, rate 5.0000 nats>"
    html = found._repr_html_()
    assert html.startswith("<table><caption>used</caption><tr><td>")
    assert "<td>rate, mean</td><td>5.0000</td><td>nats</td>" in html
    assert "&lt;b&gt;a formula&lt;/b&gt;" in html
    assert html.endswith("</table><p>The latents are used &amp; well.</p>")
    console = rich.console.Console(width=100, file=io.StringIO())
    console.print(found)
    assert "rate, mean" in console.file.getvalue()
    assert "The latents are used & well." in console.file.getvalue()
    assert found.failure is None
    assert str(Diagnosis(NUMBERS | UNUSED, "collapsed", "…").failure).startswith(
        "check failed: the latents are not shown to be used: they tell the decoder at least 0.04 nats"
    )


# --- Refusals ---


def outside(x: Tensor) -> None:
    """A latent that all data share."""
    z = pyro.sample("latent", standard(K).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", binomial(z.sum() * torch.ones(D)), obs=x)


def guide_outside(x: Tensor) -> None:
    pyro.sample("latent", standard(K).to_event(1))


def nothing_observed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("latent", standard(K).to_event(1))


def no_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("obs", binomial(torch.zeros(D)), obs=x)


def another_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("other", standard(K).to_event(1))


def subsampled(x: Tensor) -> None:
    with pyro.plate("data", len(x), subsample_size=5) as some:
        pyro.sample("latent", standard(K).to_event(1))
        pyro.sample("obs", binomial(torch.zeros(D)), obs=x[some])


def subsampled_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x), subsample_size=5):
        pyro.sample("latent", standard(K).to_event(1))


def guide_of_latent(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("latent", standard(K).to_event(1))


def takes_others(a: Tensor, b: Tensor) -> None:
    """No key of the batch."""


def random_beside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        beside = pyro.sample("beside", standard(K).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("latent", dist.Normal(beside, 1.0).to_event(1))


def of_k(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("latent", standard(K).to_event(1))
        pyro.sample("obs", binomial(z[:, :1]), obs=x)


class Diverged(nn.Module):
    """A posterior that torch cannot draw from: its logits are NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((3,), math.nan))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.OneHotCategorical(torch.ones(3)))
            pyro.sample("obs", binomial(z[:, :1]), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("latent", dist.OneHotCategorical(logits=self.logits))


X = torch.ones(N, D)
HOLES = torch.where(torch.arange(D) < 2, torch.tensor([math.nan, math.inf] * (D // 2)), X)
DIVERGED = Diverged()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((outside, guide_outside, X), "the site 'latent' has batch shape () for 12 data; its first batch dimension"),
        ((subsampled, subsampled_guide, X), "the site 'latent' has batch shape (5,) for 12 data; its first"),
        ((nothing_observed, guide_of_latent, X), "the model observes nothing; give it data with obs=x"),
        ((no_latent, guide_of_latent, X), "the guide samples 'latent', which the model does not; take it out"),
        ((nothing_observed, another_latent, X), "the model samples 'latent', which the guide does not"),
        ((no_latent, takes_others, {"a": X, "b": X}), "a batch has the keys 'a', 'b', of which no_latent takes none"),
        ((no_latent, lambda x: None, X), "model and guide have no latent site in common"),
        ((nothing_observed, None, X), "needs a guide; give the one that the model is trained with"),
        ((nothing_observed, X), "the guide is a Tensor, not callable; call diagnose(model, guide, data)"),
        ((nothing_observed, X, X), "the guide is a Tensor, not callable; call diagnose(model, guide, data)"),
        ((X, nothing_observed, X), "the model is a Tensor, not callable; call diagnose(model, guide, data)"),
        ((nothing_observed, guide_of_latent), "needs data; give what both are called with"),
        ((nothing_observed, guide_of_latent, X[:1]), "there is 1 datum; to compare latents takes 4, so give more."),
        ((nothing_observed, guide_of_latent, torch.tensor(1.0)), "is not data; give a tensor (N, *shape)"),
        ((nothing_observed, guide_of_latent, {}), "a dict of data has the keys []"),
        ((nothing_observed, guide_of_latent, {"x": X, "y": X[:3]}), "'y' has 3 entries for 12 data; give one for each"),
        ((nothing_observed, guide_of_latent, ["one", "two"]), "list is not data; give a tensor or an array"),
        ((nothing_observed, guide_of_latent, DataLoader(TensorDataset(X))), "DataLoader is not data; give a tensor"),
        ((nothing_observed, guide_of_latent, HOLES), "data holds 24 of 192 numbers that are NaN or infinite; "),
        ((nothing_observed, guide_of_latent, {"x": X, "y": HOLES}), "data['y'] holds 24 of 192 numbers that are NaN"),
        ((of_k, random_beside, X), "the guide samples 'beside', which the model does not; take it out or add its"),
        ((of_k, AutoDiagonalNormal(of_k), X), "of all data together, at '_AutoDiagonalNormal_latent', so that no"),
        ((of_k, AutoNormal(of_k), X), "AutoNormal holds a posterior of each datum that it was made with, at 'latent'"),
        ((of_k, AutoDelta(of_k), X), "AutoDelta holds a posterior of each datum that it was made with, at 'latent'"),
        ((outside, AutoNormal(outside), X), "the site 'latent' has batch shape () for 11 data; its first"),
        ((DIVERGED.model, DIVERGED.guide, X), "'owners.0.logits' is not finite, and the programs fail with it ("),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_refused_in_a_sentence(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UserError) as error:
        diagnose(*given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [(torch.zeros(3), "3 labels do not fit 12 data"), (torch.zeros(N, 2), "labels have shape (12, 2)"),
     (["a"] * N, "list is not data"), (torch.full((N,), 0.5), "labels hold 0.5")],
)  # fmt: skip
def test_labels_that_are_none(labels: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        diagnose(nothing_observed, guide_of_latent, X, labels=labels)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spec": ArraySpec((D,), levels=2), "data": 2 * X}, "data holds integers 2 to 2; they must lie in 0 to 1"),
        ({"spec": ArraySpec((D,), levels=2), "data": X / 2}, "data holds 0.5, which is not an integer 0 to 1"),
        ({"data": X, "fit": HOLES}, "fit holds 24 of 192 numbers that are NaN or infinite"),
    ],
)
def test_values_that_no_model_is_to_blame_for(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        diagnose(nothing_observed, guide_of_latent, **options)
    assert words in str(error.value)


# --- The command ---

FILE = """
import pyro, torch
import pyro.distributions as dist
import pyro_delta
from torch import nn

net = nn.Linear(3, 3)

def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(2 * z, 1.0).to_event(1), obs=x)

def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * x, 0.2 ** 0.5).to_event(1))

def make():
    generator = torch.Generator().manual_seed(1)
    z, noise = torch.randn(2, 60, 3, generator=generator)
    return model, guide, 2 * z + noise

def as_dict():
    model, guide, x = make()
    spec = pyro_delta.data.ArraySpec((3,))
    return {"model": model, "guide": guide, "data": x, "labels": (x[:, 0] > 0).long(), "spec": spec}

def nothing():
    return 3

def too_much():
    return {"model": model, "guide": guide, "data": make()[2], "batch": 3}

def takes(x):
    return x

def fails():
    raise KeyError("weights.pt")

def runs_into():
    return model, lambda x: guide(x[:, :2]) or guide(x[:, :1] @ x), make()[2]

value = 3

def helped():
    import helping
    return model, helping.guide, make()[2]

def outside():
    from functools import partial
    return model, partial(torch.distributions.Normal, 0.0, "one"), make()[2]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("def make(:")
    (tmp_path / "importable.py").write_text(FILE)
    (tmp_path / "helping.py").write_text("import torch\n\ndef guide(x):\n    return torch.ones(3) @ x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_doctor(here: Path) -> None:
    code, out, err = call("doctor", "mine.py:make")
    assert (code, err) == (0, "")
    assert out.startswith("used\n")
    assert re.search(r"\nThe latents are used, and no posterior of this family can fall below [\d.]+ nats.\n$", out)
    assert re.search(r"^active latent coordinates +3$", out, re.MULTILINE)
    code, out, err = call("doctor", "mine.py:as_dict", "--json", "--particles", 30)
    assert (code, err) == (0, "")
    numbers = json.loads(out)
    assert (numbers["verdict"], numbers["particles"], numbers["unit"]) == ("used", 30, "bits/dim")
    assert numbers["probe_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("mine.py", "'mine.py' is not a place; write path/to/file.py:make or package.module:make"),
        ("mine.py:made", "unknown function of mine.py 'made'; did you mean 'make'?"),
        ("mine.py:value", "mine.py:value is not a function, but of type int; name a function"),
        ("yours.py:make", "cannot read the program yours.py"),
        ("broken.py:make", "broken.py fails at broken.py, line 1: SyntaxError"),
        ("no.such.module:make", "there is no module no.such.module"),
        ("mine.py:nothing", "mine.py:nothing returns a int; return (model, guide, data), or a dict"),
        ("mine.py:too_much", "mine.py:too_much returns what diagnose does not take"),
        ("mine.py:takes", "mine.py:takes fails: TypeError"),
        ("mine.py:fails", "mine.py:fails fails at mine.py, line 38: KeyError: 'weights"),
        ("mine.py:runs_into", "mine.py:runs_into fails at mine.py, line 41: RuntimeError: … mat1 and mat2"),
        ("./mine.py:runs_into", "./mine.py:runs_into fails at mine.py, line 41: RuntimeError: … mat1 and mat2"),
        ("importable:runs_into", "/importable.py, line 41: RuntimeError: … mat1 and mat2"),
        ("mine.py:helped", "helping.py, line 4: RuntimeError"),
        ("mine.py:outside", "mine.py:outside runs into an error outside its own files, at "),
    ],
)
def test_doctor_refuses_in_a_sentence(here: Path, place: str, words: str) -> None:
    code, out, err = call("doctor", place)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert all(part in err for part in words.split("… ")), err  # torch begins as it likes
