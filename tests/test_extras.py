"""Batches that are dicts: data with lengths beside them, for programs that name `lengths` in their signatures."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import call
from torch import Tensor
from torch.utils.data import Dataset

import pyro_delta
from pyro_delta.build import build
from pyro_delta.commitment import BY_LENGTH
from pyro_delta.config import load_preset
from pyro_delta.data import ArraySpec, Split, Splits, from_tensors
from pyro_delta.data.batches import Batches
from pyro_delta.diagnostics.bounds import encode
from pyro_delta.diagnostics.drawing import decode, draw, extras_of, paths, reconstructions
from pyro_delta.diagnostics.importance import importance_weights
from pyro_delta.diagnostics.trace import evaluating
from pyro_delta.diagnostics.usage import floor_holds, partners, shuffled_gap
from pyro_delta.errors import UserError
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.inference.run import Run
from pyro_delta.rate import ar1_committed_rate
from pyro_delta.vae import local_parameters

TIME = 6
MINE = '''\
"""Random walks of different lengths, which nothing is to be told of after their end."""
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from pyro_delta.data import ArraySpec, from_tensors

TIME = 6


def walks(*, count: int = 60, seed: int = 0):
    """Walks of 2 to 6 steps; those that end hold 9 from then on. `unused` is for nobody."""
    noise = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, TIME + 1, (count,), generator=noise)
    x = torch.randn(count, TIME, generator=noise).cumsum(1)
    x[torch.arange(TIME) >= lengths[:, None]] = 9.0
    return from_tensors(
        {"x": x, "lengths": lengths, "unused": torch.zeros(count, 2), "labels": lengths % 2}, spec=ArraySpec((TIME,))
    )


def within(x, lengths):
    assert x.shape[-2] == len(lengths), (x.shape, lengths.shape)
    return torch.arange(TIME, device=x.device) < lengths[:, None]


class Walk(nn.Module):
    """N(linear in z, 1) up to the end; what follows is drawn as 9, and not scored."""

    def __init__(self, spec, prior):
        super().__init__()
        self.net = nn.Linear(prior().event_shape[-1], 1)

    def forward(self, z, lengths):
        mean = self.net(z).squeeze(-1)
        inside = within(mean, lengths)
        scale = torch.where(inside, torch.ones_like(mean), torch.full_like(mean, 1e-30))
        return dist.Normal(torch.where(inside, mean, torch.full_like(mean, 9.0)), scale).mask(inside).to_event(1)


class Reader(nn.Module):
    """Normal, linear in what stands before the end."""

    causality = "none"

    def __init__(self, spec, prior):
        super().__init__()
        self.event = prior().event_shape
        self.net = nn.Linear(TIME, self.event.numel())
        self.scale = nn.Parameter(torch.zeros(self.event))

    def posterior(self, x, lengths):
        inside = torch.where(within(x, lengths), x, torch.zeros_like(x))
        mean = self.net(inside).reshape(len(x), *self.event)
        return dist.Normal(mean, self.scale.exp().expand_as(mean)).to_event(2)

    def forward(self, x, lengths):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, lengths))

    @torch.no_grad()
    def start_from(self, x, lengths):
        self.started = (len(x), int(lengths.sum()))
        self.net.bias.fill_(0.125)
'''
PROGRAMS = {"likelihood.program": "mine.py:Walk", "guide.program": "mine.py:Reader"}
SETTINGS: dict[str, Any] = {
    **PROGRAMS, "prior.rate_nats": 1.0, "training.steps": 6, "training.batch": 8, "training.log_every": 3,
    "training.validations": 2, "training.decay": "none", "training.ema": 0.0, "training.warmup": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mine.py and a run of it."""
    folder = tmp_path_factory.mktemp("extras")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("mine.py").write_text(MINE)
        pyro_delta.train(SETTINGS, data="mine.py:walks", out="run", device="cpu")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the current folder."""
    folder = shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(here: Path) -> Run:
    """That run, with weights at which everything matters."""
    found = pyro_delta.load("run")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in found.vae.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return found


def distortion_by_hand(run: Run, split: Split, z: Tensor) -> Tensor:
    """−log p(x | z) of the numbers before the end, (N,) float64."""
    net = run.vae.model.likelihood.net
    mean = (z.double() @ net.weight.double().T + net.bias.double()).squeeze(-1)
    nats = 0.5 * (split.x.double() - mean).square() + 0.5 * math.log(2 * math.pi)
    return torch.where(torch.arange(TIME) < split.extras["lengths"][:, None], nats, 0.0).sum(1)


# --- evaluated ---


def test_every_datum_is_scored_up_to_its_own_length(run: Run) -> None:
    test = run.data().test
    assert set(test.extras["lengths"].tolist()) > {2, 3}
    encoding = encode(run.vae, test, batch=4, seed=2)
    torch.testing.assert_close(
        encoding.distortion, distortion_by_hand(run, test, encoding.z["z"]), rtol=1e-5, atol=1e-5
    )
    found = pyro_delta.evaluate(run, seed=2)
    scored = test.extras["lengths"].double().mean().item()
    nats = encoding.distortion.mean().item()
    assert found["distortion_bpd"] == pytest.approx(nats / (scored * math.log(2)), rel=1e-6)
    for batch in (1, 5):  # nothing of a datum depends on its neighbours
        again = encode(run.vae, test, batch=batch, seed=2)
        torch.testing.assert_close(again.rate, encoding.rate, rtol=1e-6, atol=1e-6)
        assert again.scored == pytest.approx(scored)
        assert len(again.rate) == len(test)
    other = Split(torch.where(test.x == 9.0, -5.0, test.x), test.labels, test.extras)  # what is not read or scored
    assert torch.equal(encode(run.vae, other, batch=4, seed=2).distortion, encoding.distortion)


def test_particles_keep_their_lengths(run: Run) -> None:
    test = run.data().test
    torch.manual_seed(0)
    log_weights = importance_weights(run.vae, test, 3, batch=9, seed=5)
    with torch.no_grad(), evaluating(run.vae, 5):
        expected = []
        for start in range(0, len(test), 3):
            part = test.take(slice(start, start + 3))
            q = run.vae.guide.posterior(part.x.repeat(3, 1), part.extras["lengths"].repeat(3))
            z = q.sample()
            log_pz = run.vae.model.prior(part.extras["lengths"].repeat(3)).log_prob(z)
            thrice = part.take(torch.arange(3 * len(part)) % len(part))
            weight = -distortion_by_hand(run, thrice, z) + (log_pz - q.log_prob(z)).double()
            expected.append(weight.reshape(3, -1).T)
    torch.testing.assert_close(log_weights, torch.cat(expected), rtol=1e-4, atol=1e-4)


def test_another_datums_latents_are_scored_at_ones_own_length(run: Run) -> None:
    test = run.data().test
    encoding = encode(run.vae, test, batch=4)
    gap = shuffled_gap(run.vae, test, encoding, batch=4, seed=3)
    partner = partners(len(test), 3, test.extras["lengths"])
    assert torch.equal(test.extras["lengths"][partner], test.extras["lengths"])  # length is given, and no information
    other = encoding.z["z"][partner]
    expected = distortion_by_hand(run, test, other) - distortion_by_hand(run, test, encoding.z["z"])
    torch.testing.assert_close(gap, expected, rtol=1e-4, atol=1e-4)


def test_checked(run: Run) -> None:
    found = pyro_delta.check(run)
    assert found.numbers["floor_holds"] is True
    assert found.numbers["delta_guarantee"] == "every datum, by its length"
    alpha, lengths = run.vae.model.prior.alpha.double(), run.data().test.extras["lengths"]
    delta_b = torch.stack([ar1_committed_rate(alpha, length) for length in lengths.tolist()])
    assert ar1_committed_rate(alpha, TIME).item() == pytest.approx(1.0, rel=1e-6)
    assert found.numbers["delta_nats"] == pytest.approx(delta_b.mean().item(), rel=1e-6)
    above_b = encode(run.vae, run.data().test).rate - delta_b
    assert found.numbers["rate_above_delta_nats_min"] == pytest.approx(above_b.min().item(), rel=1e-5)
    assert 0 <= found.numbers["probe_accuracy"] <= 1
    assert math.isfinite(found.numbers["mutual_information_nats"])
    assert math.isfinite(found.numbers["iw_bpd"])
    model, guide, test = run.vae.model, run.vae.guide, run.data().test
    batch = {"x": test.x, **test.extras}
    anybodys = pyro_delta.diagnose(model, guide, batch, labels=test.labels, fit=run.data().train, spec=run.spec)
    assert anybodys.numbers == {key: found.numbers[key] for key in anybodys.numbers}


# --- trained ---


def test_the_floor_of_a_datum_is_that_of_its_length(run: Run) -> None:
    """Short data may have a rate below the mean δ, long ones not one below their own."""
    encoding = encode(run.vae, run.data().test)
    delta_b = encoding.delta
    assert delta_b is not None
    assert delta_b.min() < delta_b.mean() < delta_b.max()
    assert floor_holds(replace(encoding, rate=delta_b), 1.0, BY_LENGTH) is True
    longest = torch.where(delta_b == delta_b.max(), (delta_b.mean() + delta_b.max()) / 2, delta_b)
    assert floor_holds(replace(encoding, rate=longest), 1.0, BY_LENGTH) is False


def test_lines_of_training_say_the_mean_of_what_lengths_commit(here: Path) -> None:
    data, run = pyro_delta.load_data("mine.py:walks"), pyro_delta.load("run")
    alpha = run.vae.model.prior.alpha.double()
    for line in run.metrics:
        lengths = getattr(data, line["split"]).extras["lengths"]
        mean = torch.stack([ar1_committed_rate(alpha, length) for length in lengths.tolist()]).mean()
        assert line["delta_nats"] == pytest.approx(mean.item(), rel=1e-6)
        nats = line["rate_nats_mean"] / (lengths.double().mean().item() * math.log(2))
        assert line["rate_bpd"] == pytest.approx(nats, rel=1e-6)


def test_batches_are_of_data_about_as_long_as_one_another(here: Path) -> None:
    """Exact epochs, a function of the step alone; who is left over is who would be without lengths."""
    split = pyro_delta.load_data("mine.py:walks").train
    lengths = split.extras["lengths"]
    batches, plain = Batches(split, 7, 3, "cpu"), Batches(Split(split.x), 7, 3, "cpu")
    count = len(split) // 7
    first = [batches.indices(step) for step in range(2 * count)]
    for epoch in (first[:count], first[count:]):
        assert len(torch.cat(epoch).unique()) == 7 * count
        spans = [(int(lengths[index].min()), int(lengths[index].max())) for index in epoch]
        for (_, high), (low, _) in pairwise(sorted(spans)):
            assert high <= low
    shortest = [lengths[index].min().item() for index in first[:count]]
    assert shortest != sorted(shortest)
    assert set(torch.cat(first[:count]).tolist()) == {i for step in range(count) for i in plain.indices(step).tolist()}
    other = Batches(split, 7, 3, "cpu")
    assert all(torch.equal(other.indices(step), first[step]) for step in (count + 1, 0, 3))


def test_a_step_is_the_elbos_of_what_was_handed_over(here: Path) -> None:
    data = pyro_delta.load_data("mine.py:walks")
    settings = [("data.program", "mine.py:walks"), *SETTINGS.items()]
    config = load_preset("default", settings)
    torch.manual_seed(0)
    vae = build(config, data.spec, example=data.train.batch(slice(2)))
    trainer = PyroTraining(config, data, vae, [].append)
    batch = trainer.batches.batch(0)
    assert isinstance(batch, dict)
    assert list(batch) == ["x", "lengths", "unused"]
    index = trainer.batches.indices(0)
    assert torch.equal(batch["x"], data.train.x[index])
    assert torch.equal(batch["lengths"], data.train.extras["lengths"][index])
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with local_parameters():
        trainer.train_step(batch)
    z, split = trainer.elbo.drawn["z"], data.train.take(index)
    assert all(not torch.equal(value, before[name]) for name, value in vae.named_parameters())
    vae.load_state_dict(before)
    expected = distortion_by_hand(Run(config, data.spec, vae, "last", 1, 1, False), split, z).sum()
    assert trainer.elbo.distortion.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_guide_starts_from_data_and_their_lengths(here: Path) -> None:
    data = pyro_delta.load_data("mine.py:walks")
    config = load_preset("default", [("data.program", "mine.py:walks"), *SETTINGS.items()])
    vae = build(config, data.spec, example=data.train.batch(slice(2)))
    PyroTraining(config, data, vae, [].append)
    assert vae.guide.started == (len(data.train), int(data.train.extras["lengths"].sum()))
    assert (vae.guide.net.bias == 0.125).all()


def test_the_run_is_whole(here: Path) -> None:
    found = pyro_delta.load("run")
    assert [(line["step"], line["split"]) for line in found.metrics] == [
        (3, "train"), (3, "validation"), (6, "train"), (6, "validation"),
    ]  # fmt: skip
    for step in (3, 6):
        lines = (here / "run" / "samples" / f"step_{step:06d}.txt").read_text().splitlines()
        drawn = np.array([line.split() for line in lines], float)
        lengths = extras_of(found.data().validation, 16)["lengths"].numpy()
        assert drawn.shape == (16, TIME)
        assert ((drawn == 9.0) == (np.arange(TIME) >= lengths[:, None])).all()


def test_resumed_is_trained_in_one_go(here: Path) -> None:
    whole = pyro_delta.train({**SETTINGS, "training.steps": 9}, data="mine.py:walks", out="whole", device="cpu")
    parts = pyro_delta.resume("run", {"training.steps": 9}, device="cpu")
    torch.testing.assert_close(parts.vae.state_dict(), whole.vae.state_dict(), rtol=0, atol=0)


def test_an_auxiliary_prior_is_trained_beside_and_afterwards(here: Path) -> None:
    settings = {**SETTINGS, "auxiliary.enabled": True, "auxiliary.hidden": 4}
    pyro_delta.train(settings, data="mine.py:walks", out="beside", device="cpu")
    before = pyro_delta.evaluate(pyro_delta.load("beside", prior="auxiliary"))
    assert call("train-prior", "beside", "--steps", 3, "--hidden", 4, "--batch", 8)[0] == 0
    after = pyro_delta.evaluate(pyro_delta.load("beside", prior="auxiliary"))
    assert after["distortion_bpd"] == before["distortion_bpd"]
    assert after["rate_nats_mean"] != before["rate_nats_mean"]


# --- drawn ---


def ends(drawn: Tensor) -> Tensor:
    """Where each of the drawn walks ends."""
    return (drawn != 9.0).sum(1)


def test_what_is_drawn_has_the_lengths_that_it_is_told(run: Run) -> None:
    split = run.data().test.take(slice(5))
    lengths = split.extras["lengths"]
    told = dict(split.extras)
    assert torch.equal(ends(draw(run.vae, 5, extras=told, batch=2)), lengths)
    assert torch.equal(ends(draw(run.vae, 5, decodings=3, extras=told, batch=2)), lengths.repeat(3))
    assert torch.equal(ends(reconstructions(run.vae, split, 2)[5:]), lengths.repeat(2))
    z = encode(run.vae, split).z["z"]
    assert torch.equal(ends(decode(run.vae, z, same_noise=True, extras=told)), lengths)
    pairs = paths(run.vae, split.take(slice(4)), 3).reshape(2, 5, TIME)
    assert torch.equal(pairs[:, 0], split.x[0:4:2])
    assert torch.equal(pairs[:, 4], split.x[1:4:2])
    for pair, first in zip(pairs, lengths[0:4:2], strict=True):
        assert (ends(pair[1:4]) == first).all()


def test_lengths_of_few_data_serve_again(run: Run) -> None:
    split = run.data().test.take(slice(2))
    lengths = split.extras["lengths"]
    assert extras_of(split, 5)["lengths"].tolist() == [*lengths.tolist(), *lengths.tolist(), lengths[0].item()]
    assert extras_of(Split(split.x), 5) == {}


def test_commands_draw_with_the_lengths_of_a_split(here: Path) -> None:
    lengths = pyro_delta.load("run").data().test.extras["lengths"]
    for args, expected in (
        (["sample", "run", "--num", 3], lengths[:3]),
        (["sample", "run", "--num", 2, "--same-z", 2], lengths[:2].repeat(2)),
        (["reconstruct", "run", "test", "--num", 2, "--decodings", 1], lengths[:2].repeat(2)),
    ):
        code, _, err = call(*args, "--out", "out.txt")
        assert code == 0, err
        drawn = torch.tensor([[float(x) for x in line.split()] for line in Path("out.txt").read_text().splitlines()])
        assert torch.equal(ends(drawn), expected)
    assert call("interpolate", "run", "test", "--pairs", 1, "--out", "path.txt")[0] == 0
    assert call("encode", "run", "test", "--out", "z.nc")[0] == 0
    assert Path("z.nc").stat().st_size > 0
    for command in ("encode", "reconstruct", "interpolate"):
        code, _, err = call(command, "run", "out.txt", "--out", "no.nc" if command == "encode" else "no.txt")
        sentence = "the run's programs take 'lengths' beside x, which no file holds; name a split: test."
        assert (code, err) == (2, f"pyro-delta: {sentence}\n")


def test_through_the_commands(here: Path) -> None:
    shutil.rmtree("run")
    sets = [part for key, value in SETTINGS.items() if key not in PROGRAMS for part in ("--set", f"{key}={value}")]
    programs = ["--dataset", "mine.py:walks", "--likelihood", "mine.py:Walk", "--guide", "mine.py:Reader"]
    assert call("train", *programs, *sets, "--device", "cpu", "--out", "run")[0] == 0
    (here / "mine.py").unlink()
    code, out, err = call("evaluate", "run", "--particles", 2, "--json")
    assert code == 0, err
    assert math.isfinite(json.loads(out)["iw_bpd"])
    code, out, _ = call("check", "run", "--json")
    assert (code, json.loads(out)["floor_holds"]) == (1, True)  # a few steps teach nobody
    assert call("train", "--resume", "--out", "run", "--steps", 8)[0] == 0


# --- refused ---


def refuse(here: Path, old: str, new: str) -> str:
    """The sentence about a changed mine.py."""
    assert MINE.count(old) >= 1
    (here / "mine.py").write_text(MINE.replace(old, new))
    with pytest.raises(UserError) as caught:
        pyro_delta.train(SETTINGS, data="mine.py:walks", out="new", device="cpu")
    assert not (here / "new").exists()
    print(str(caught.value))
    return str(caught.value)


def test_programs_that_ask_for_what_data_lack_are_refused_when_they_are_built(here: Path) -> None:
    words = refuse(here, "def forward(self, x, lengths):", "def forward(self, x, lengths, widths):")
    assert words.endswith("Reader.forward() missing 1 required positional argument: 'widths'; mend the program.")
    words = refuse(here, "def forward(self, z, lengths):", "def forward(self, z, lengths, widths):")
    assert words.startswith("mine.py:Walk fails: ")
    assert words.endswith("Walk.forward() missing 1 required positional argument: 'widths'; mend the program.")


def test_a_guide_that_takes_nothing_of_a_batch_is_refused(here: Path) -> None:
    assert refuse(here, "def forward(self, x, lengths):", "def forward(self, image, size):") == (
        "a batch has the keys 'x', 'lengths', 'unused', of which Reader takes none; name one of them in its signature."
    )


def test_programs_that_take_x_alone_do_on_data_with_more(here: Path) -> None:
    """Extras go to those who name them; digits with extras are trained as digits without."""
    images = pyro_delta.load_data("digits")
    small = {f"{part}.{key}": [6] if key == "channels" else [1] for part in ("likelihood", "guide") for key in
             ("channels", "row_blocks")}  # fmt: skip
    settings = {**small, "training.steps": 2, "training.batch": 8, "training.log_every": 1, "training.bf16": False}

    def more(split: Split) -> Split:
        return Split(split.x, split.labels, {"index": torch.arange(len(split))})

    data = Splits(images.spec, *(more(part) for part in (images.train, images.validation, images.test)))
    plain, extra = (pyro_delta.train(settings, data=given, preset="digits", device="cpu") for given in (images, data))
    torch.testing.assert_close(extra.vae.state_dict(), plain.vae.state_dict(), rtol=0, atol=0)
    found, expected = pyro_delta.evaluate(extra), pyro_delta.evaluate(plain)
    assert found.pop("judged_digest") != expected.pop("judged_digest")  # the index is one of the data
    assert found == expected


# --- other ways to come by such data ---


class Walks(Dataset):
    """A torch data set whose items are dicts."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"x": self.split.x[i], "labels": self.split.labels[i], "lengths": int(self.split.extras["lengths"][i])}


def as_arrays(split: Split) -> dict[str, Any]:
    return {"x": split.x.numpy(), "labels": split.labels.numpy(), "lengths": split.extras["lengths"].numpy()}


@pytest.mark.parametrize("make", [lambda split: split, Walks, as_arrays], ids=["splits", "data sets", "arrays"])
def test_given_in_python(make: Callable[[Split], Any], here: Path) -> None:
    named = pyro_delta.load_data("mine.py:walks")
    parts = {name: make(getattr(named, name)) for name in ("train", "validation", "test")}
    data = from_tensors(**parts, spec=ArraySpec((TIME,)))
    run = pyro_delta.train(SETTINGS, data=data, out="given", device="cpu")
    expected = pyro_delta.load("run")
    torch.testing.assert_close(run.vae.state_dict(), expected.vae.state_dict(), rtol=0, atol=0)
    for judge in (pyro_delta.evaluate, lambda run, **given: pyro_delta.check(run, **given).numbers):
        found, theirs = judge("given", data=data), judge(expected)
        assert found.pop("config_digest") != theirs.pop("config_digest")
        found["judged_digest"] = theirs["judged_digest"]  # another one where what is not used is not given
        assert found == theirs
