"""Data of many kinds, each with programs of its own in a file, through every command."""

import json
import re
from pathlib import Path

import arviz
import pytest
from test_cli import call

TOKENS = '''
"""Tokens about a topic that changes every four: a Transformer, and a distribution that tells the whole alone."""
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from pyro_delta.data import from_tensors
from pyro_delta.data.sequences import TokenSpec

V, T, H = 6, 24, 12


def Data(*, root="data", validation=None, seed=0, count: int = 120):
    """Synthetic sequences."""
    generator = torch.Generator().manual_seed(0)
    topic = torch.randint(V, (count, 6), generator=generator).repeat_interleave(4, 1)
    x = (topic + torch.randint(2, (count, T), generator=generator)) % V
    return from_tensors(x, spec=TokenSpec(T, V), validation=validation, seed=seed)


class Decoder(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.embed, self.place = nn.Embedding(V + 1, H), nn.Parameter(torch.randn(T, H) / 4)
        self.latent, self.out = nn.Linear(d, H), nn.Linear(H, V)
        self.layer = nn.TransformerEncoderLayer(H, 2, 2 * H, dropout=0.0, batch_first=True)

    def forward(self, x, z):
        before = torch.cat((torch.full_like(x[:, :1], V), x[:, :-1]), 1)
        h = self.embed(before) + self.place + self.latent(z).repeat_interleave(T // z.shape[1], 1)
        return self.out(self.layer(h, src_mask=nn.Transformer.generate_square_subsequent_mask(T), is_causal=True))


class Sentences(dist.TorchDistribution):
    arg_constraints = {}
    support = dist.constraints.independent(dist.constraints.integer_interval(0, V - 1), 1)

    def __init__(self, network, z):
        self.network, self.z = network, z
        super().__init__(z.shape[:-2], torch.Size((T,)), validate_args=False)

    def expand(self, shape, _instance=None):
        return type(self)(self.network, self.z.expand(*shape, *self.z.shape[-2:]))

    def log_prob(self, x):
        return dist.Categorical(logits=self.network(x.long(), self.z)).log_prob(x).sum(-1)

    def sample(self, shape=()):
        x = torch.zeros(len(self.z), T, dtype=torch.long)
        for t in range(T):
            x[:, t] = dist.Categorical(logits=self.network(x, self.z)[:, t]).sample()
        return x


class Told(Sentences):
    """The same for those who want to look inside."""

    def terms(self, x):
        return dist.Categorical(logits=self.network(x.long(), self.z)).log_prob(x)


class Likelihood(nn.Module):
    def __init__(self, spec, prior, *, told: bool = True):
        super().__init__()
        self.network, self.kind = Decoder(prior().event_shape[-1]), Told if told else Sentences

    def forward(self, z):
        return self.kind(self.network, z)


class Guide(nn.Module):
    causality = "anti_causal"

    def __init__(self, spec, prior):
        super().__init__()
        n, d = prior().event_shape
        self.embed, self.gru, self.out = nn.Embedding(V, H), nn.GRU(H, H, batch_first=True), nn.Linear(H, 2 * d)
        self.every = T // n

    def posterior(self, x):
        h, _ = self.gru(self.embed(x.long()).flip(1))
        loc, scale = self.out(h.flip(1)[:, :: self.every]).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


class Causal(Guide):
    """Declares what it is not."""

    def posterior(self, x):
        h, _ = self.gru(self.embed(x.long()))
        loc, scale = self.out(h[:, :: self.every]).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(2)
'''

SERIES = '''
"""A series of three real numbers at a time; the data are a torch data set."""
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from pyro_delta.data import ArraySpec, Splits, from_dataset, from_tensors


def values(count):
    generator = torch.Generator().manual_seed(0)
    slow = torch.randn(count, 6, 3, generator=generator).repeat_interleave(4, 1)
    return slow + 0.3 * torch.randn(count, 24, 3, generator=generator)


class Data(Splits):
    """Synthetic series."""

    spec = ArraySpec((24, 3), resolution=0.01)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: int = 0):
        made = from_tensors(values(120).numpy(), spec=self.spec, validation=validation, seed=seed)
        super().__init__(made.spec, made.train, made.validation, made.test)


class Own(torch.utils.data.Dataset):
    def __init__(self):
        self.x = values(120)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], index % 2


def Items(*, root="data", validation=None, seed=0):
    """The same, item by item, with labels."""
    return from_dataset(Own(), validation=validation, seed=seed)


class Likelihood(nn.Module):
    def __init__(self, spec, prior):
        super().__init__()
        self.every, self.net = spec.positions // len(prior.starts), nn.Linear(prior().event_shape[-1], 6)

    def forward(self, z):
        loc, scale = self.net(z.repeat_interleave(self.every, -2)).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + 1e-2).to_event(2)


class Guide(nn.Module):
    causality = "anti_causal"

    def __init__(self, spec, prior):
        super().__init__()
        n, d = prior().event_shape
        self.every, self.gru, self.out = 24 // n, nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2 * d)

    def posterior(self, x):
        loc, scale = self.out(self.gru(x.flip(1))[0].flip(1)[:, :: self.every]).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


class Seeing(Likelihood):
    """What it says of a moment depends on all latents."""

    def forward(self, z):
        return super().forward(z + z.mean(-2, keepdim=True))
'''

DIGITS = '''
"""Counts in no order: an MLP, and several latent steps in the one position."""
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from pyro_delta.data import ArraySpec, from_tensors


def Data(*, root="data", validation=None, seed=0):
    """Synthetic counts."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(120) % 3
    x = torch.binomial(torch.full((120, 16), 8.0), torch.rand(3, 16, generator=generator)[kind], generator=generator)
    spec = ArraySpec((16,), levels=9, ordered=False)
    return from_tensors({"x": x, "labels": kind}, spec=spec, validation=validation, seed=seed, classes=("a", "b", "c"))


class Likelihood(nn.Module):
    def __init__(self, spec, prior, *, hidden: int = 16):
        super().__init__()
        inputs = prior().event_shape.numel()
        self.net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 16))
        self.most = spec.levels - 1

    def forward(self, z):
        return dist.Binomial(self.most, logits=self.net(z.flatten(-2))).to_event(1)


class Guide(nn.Module):
    causality = "none"

    def __init__(self, spec, prior, *, hidden: int = 16):
        super().__init__()
        self.event = tuple(prior().event_shape)
        self.net = nn.Sequential(nn.Linear(16, hidden), nn.Tanh(), nn.Linear(hidden, 2 * prior().event_shape.numel()))

    def posterior(self, x):
        loc, scale = self.net(x / 8).unflatten(-1, (2, *self.event)).unbind(-3)
        return dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(2)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))


class Peeking(Guide):
    """Batch statistics: a datum's latents depend on the others'."""

    def posterior(self, x):
        return super().posterior(x - x.float().mean(0))
'''

PADDED = '''
"""Tokens that end early; the spec is known before the data, what goes with them is not."""
import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

from pyro_delta.data import Splits, from_tensors
from pyro_delta.data.sequences import TokenSpec


class Data(Splits):
    """Synthetic sentences."""

    spec = TokenSpec(12, 6)

    def __init__(self, *, root: str = "data", validation: int | None = None, seed: int = 0):
        generator = torch.Generator().manual_seed(0)
        x, length = (torch.randint(*of, generator=generator) for of in ((6, (120, 12)), (3, 13, (120,))))
        made = from_tensors({"x": x, "length": length}, spec=self.spec, validation=validation, seed=seed)
        super().__init__(made.spec, made.train, made.validation, made.test)


class Sentences(dist.Independent):
    def __init__(self, logits, here):
        self.here = here
        super().__init__(dist.Categorical(logits=logits), 1, validate_args=False)

    def expand(self, shape, _instance=None):
        return Sentences(self.base_dist.logits.expand(*shape, 12, 6), self.here)

    def terms(self, x):
        return self.base_dist.log_prob(x) * self.here

    def log_prob(self, x):
        return self.terms(x).sum(-1)


class Likelihood(nn.Module):
    def __init__(self, spec, prior):
        super().__init__()
        self.out = nn.Linear(prior().event_shape[-1], 6)

    def forward(self, z, length):
        return Sentences(self.out(z).repeat_interleave(12 // z.shape[-2], -2), torch.arange(12) < length[:, None])


class Guide(nn.Module):
    causality = "anti_causal"

    def __init__(self, spec, prior):
        super().__init__()
        n, d = prior().event_shape
        self.embed, self.gru, self.out = nn.Embedding(6, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2 * d)
        self.every = 12 // n

    def posterior(self, x, length):
        seen = self.embed(x.long()) * (torch.arange(12) < length[:, None]).float()[..., None]
        loc, scale = self.out(self.gru(seen.flip(1))[0].flip(1)[:, :: self.every]).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale) + 1e-3).to_event(2)

    def forward(self, x, length):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, length))
'''

FILES = {"tokens.py": TOKENS, "series.py": SERIES, "digits.py": DIGITS, "padded.py": PADDED}
SIZES = {"tokens": 24, "series": 72, "digits": 16, "padded": 12}
FEW = ["--device", "cpu", "--steps", 3, "--set", "training.batch=16", "--set", "training.validations=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def programs(file: str, data: str = "Data", likelihood: str = "Likelihood", guide: str = "Guide") -> list[str]:
    named = {"--dataset": data, "--likelihood": likelihood, "--guide": guide}
    return [part for option, name in named.items() for part in (option, f"{file}.py:{name}")] + ["--prior", "ar1"]


@pytest.mark.parametrize(
    ("file", "data", "length", "unit"),
    [("tokens", "Data", 6, "bits/token"), ("series", "Data", 6, "bits/dim"), ("series", "Items", 12, "bits/dim"),
     ("digits", "Data", 8, "bits/dim"), ("padded", "Data", 6, "bits/token")],
)  # fmt: skip
def test_programs_of_one_s_own_go_all_the_way(file: str, data: str, length: int, unit: str) -> None:
    names = [*programs(file, data), "--set", f"prior.length={length}", "--set", "prior.rate_nats=3"]
    code, out, err = call("verify", *names, "--json")
    assert code == 0, err
    verified = json.loads(out)
    assert verified["delta_nats"] == pytest.approx(3.0, rel=1e-6)
    assert all(check["passed"] for check in verified["checks"]), verified
    code, out, err = call("train", *names, *FEW, "--out", "run", "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 3
    assert re.search(rf"^train: step 3 · \d+ data/s · [\d.]+ {unit} · rate [\d.]+ nats · δ 3\.000", err, re.MULTILINE)
    code, out, err = call("check", "run", "--json")
    numbers = json.loads(out)
    assert code == (0 if numbers["latents_used"] else 1), err
    assert numbers["floor_holds"] is True
    assert numbers["delta_nats"] == pytest.approx(3.0, rel=1e-6)
    assert (numbers["probe_accuracy"] is None) == (data == "Data" and file != "digits")
    code, out, err = call("evaluate", "run", "--particles", 4)
    assert code == 0, err
    assert unit in out
    assert call("encode", "run", "test", "--draws", 2, "--out", "z.nc")[0] == 0
    found = arviz.from_netcdf("z.nc")
    assert found.posterior["z"].shape == (1, 2, 12, length, 2)
    assert list(found.constant_data["starts"].values) == starts(file, length)
    code, out, err = call("sample", "run", "--num", 3, "--out", "drawn.txt")
    assert code == 0, err
    lines = Path("drawn.txt").read_text().splitlines()
    assert len(lines) == 3
    assert all(len(line.split()) == SIZES[file] for line in lines)
    code, out, err = call("encode", "run", "drawn.txt", "--out", "drawn.nc")
    if file == "padded":
        assert (code, "the run's programs take 'length' beside x, which no file holds" in err) == (2, True)
    else:
        assert code == 0, err
        assert arviz.from_netcdf("drawn.nc").posterior["z"].shape == (1, 1, 3, length, 2)
    for command in (["reconstruct", "--num", 2], ["interpolate", "--pairs", 1, "--steps", 2]):
        assert call(command[0], "run", "test", *command[1:], "--out", "more.txt")[0] == 0
        assert Path("more.txt").read_text().count("\n") == (8 if command[0] == "reconstruct" else 4)
    assert call("train", "--resume", "--out", "run", "--steps", 4)[0] == 0


def starts(file: str, length: int) -> list[int]:
    places = {"tokens": 24, "series": 24, "digits": 1, "padded": 12}[file]
    return [t * places // length for t in range(length)]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (programs("tokens", guide="Causal"), "causality of the guide: z_2 changes with tokens before its start at"),
        (programs("series", likelihood="Seeing"), "causality of the conditioning: position 0 sees z_2, which starts"),
        (programs("digits", guide="Peeking"), "causality of the guide: z_1 of one datum sees other data"),
    ],
)  # fmt: skip
def test_false_declarations_are_found(names: list[str], words: str) -> None:
    code, out, err = call("verify", *names, "--set", "prior.length=8")
    assert (code, err.count("\n")) == (1, 1), err
    assert words in err
    assert re.search(r"^FAIL  causality", out, re.MULTILINE)


def test_what_tells_the_whole_alone_is_not_certified() -> None:
    """It is said, and no check fails."""
    code, out, err = call("verify", *programs("tokens"), "--set", "likelihood.told=false", "--set", "prior.length=6")
    assert code == 3, err
    assert "nothing is certified: normalisation: not checked: Sentences is a class of its own" in err
    words = "not checked: Sentences tells the log-probability of the whole alone; give it parameters_at(x) or terms(x)"
    assert out.count(words) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["--dataset", "tokens.py:Data", "--likelihood", "gated_pixelcnn"], "takes images, not data of TokenSpec"),
        (
            [*programs("tokens"), "--set", "prior.length=7"],
            "prior.length=7 does not divide the 24 positions of the data",
        ),
        (programs("digits", likelihood="Gide"), "unknown likelihood of digits.py 'Gide'"),
        (programs("series", data="Dato"), "unknown data of series.py 'Dato'; did you mean 'Data'?"),
    ],
)
def test_programs_that_do_not_fit(names: list[str], words: str) -> None:
    code, out, err = call("train", *names, *FEW, "--out", "run")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert words in err
    assert not Path("run").exists()
