"""Conditional δ-VAEs: what data are conditioned on, who hears it, what is told within it, what each datum commits."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from networks import random_images, random_normal, randomise
from PIL import Image
from pyro.distributions import Bernoulli, MultivariateNormal, Normal
from test_cli import call
from torch import Tensor, nn

import pyro_delta
from pyro_delta.build import build
from pyro_delta.commitment import BY_PRIOR, IN_THE_MEAN
from pyro_delta.config import Config, validate
from pyro_delta.data import ArraySpec, Split, Splits, from_tensors
from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.condition import Condition, conditioned, told_alike
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.named import data_of
from pyro_delta.data.sequences import TextSpec, TokenSpec
from pyro_delta.data.series import SeriesSpec
from pyro_delta.data.spec import Spec, spec_as_dict, spec_of_dict
from pyro_delta.diagnostics.bounds import encode, evaluate
from pyro_delta.diagnostics.diagnose import diagnosed
from pyro_delta.diagnostics.told import grouped
from pyro_delta.diagnostics.trace import committed
from pyro_delta.diagnostics.usage import (
    floor_holds,
    mutual_information,
    pairwise_mutual_information,
    partners,
)
from pyro_delta.diagnostics.verify import verify
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.models import DeltaVAE
from pyro_delta.rate import ar1_committed_rate
from pyro_delta.vae import VAE

OF_CLASSES = Condition(classes=("a", "b", "c"))
OF_NUMBERS = Condition(location=(1.0, -2.0), scale=(0.5, 3.0))
CLASSES, NUMBERS = torch.tensor([2, 0, 1]), torch.tensor([[1.0, 2.0], [0.0, -9.0], [3.0, 0.0]])
TOLD = {"classes": (OF_CLASSES, CLASSES), "numbers": (OF_NUMBERS, NUMBERS)}
TRUNK = {"channels": [4], "row_blocks": [1], "pixel_blocks": 1}
GATED = {"program": "gated_pixelcnn", "mixtures": 1, "latent_channels": 2, **TRUNK}
SNAIL = {"program": "pixelsnail", "mixtures": 1, "latent_channels": 2, "channels": 4, "blocks": 1, "layers": 1}
GUIDE = {"features": 4, **TRUNK}
AR1: dict[str, Any] = {"program": "ar1", "dims": 2, "alpha": 0.8}
GREY = ImageSpec(1, 4, 3, 5)
SERIES = SeriesSpec(4, ("u", "v"), (0.0, 0.0), (1.0, 1.0), 0.1)


def configured(likelihood: dict[str, Any], guide: dict[str, Any], prior: dict[str, Any] = AR1) -> Config:
    return validate({"data": {}, "training": {"steps": 1}, "prior": prior, "likelihood": likelihood, "guide": guide})


PROGRAMS = {
    "gated, anti-causal": (GREY, GATED, {"program": "anti_causal", **GUIDE}),
    "snail full, bidirectional": (GREY, {**SNAIL, "conditioning": "full"}, {"program": "bidirectional", **GUIDE}),
    "gated, structured": (GREY, GATED, {"program": "structured", **GUIDE}),
    "gru, gru": (TokenSpec(4, 6), {"program": "gru", "hidden": 4}, {"program": "gru", "hidden": 4}),
    "transformer, transformer": (
        ScoreSpec(4, 6, voices=2),
        {"program": "transformer", "hidden": 4, "layers": 1, "heads": 1},
        {"program": "transformer", "hidden": 4, "layers": 1, "heads": 1},
    ),
    "wavenet, spectral": (
        SoundSpec(4, samples=5, levels=16),
        {"program": "wavenet", "channels": 3, "blocks": 2, "mixtures": 1},
        {"program": "spectral", "hidden": 4},
    ),
}


def made(name: str, condition: Condition, **likelihood: Any) -> VAE:
    spec, by, guide = PROGRAMS[name]
    spec = replace(spec, condition=condition)  # type: ignore[type-var]
    return build(configured({**by, **likelihood}, guide), spec, check=False)


# --- Data ---


def some(labels: list[int] | None = None, **extras: Tensor) -> Splits:
    split = Split(torch.zeros(4, 3), None if labels is None else torch.tensor(labels), extras)
    return Splits(ArraySpec((3,)), split, split, split, None if labels is None else ("no", "yes", "perhaps"))


WRONG: dict[str, tuple[Splits, str, str]] = {
    "no labels": (some(), "labels", r"data.condition='labels' is not there .* no labels, and nothing beside x"),
    "no such thing": (some([0, 1, 1, 0], age=torch.ones(4)), "size", r"'size' is not there .* 'labels', 'age'"),
    "matrices": (some(a=torch.ones(4, 2, 2)), "a", r"has shape \(4, 2, 2\) in train; give a class or a few numbers"),
    "whole numbers in rows": (some(a=torch.ones(4, 2).long()), "a", r"has shape \(4, 2\) in train"),
    "no numbers": (some(a=torch.ones(4, 0)), "a", r"has shape \(4, 0\) in train"),
    "below 0": (some([0, -1, 1, 0]), "labels", r"is -1 in train; classes are whole numbers from 0 up"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_data_cannot_be_conditioned_on(name: str) -> None:
    data, on, words = WRONG[name]
    with pytest.raises(UserError, match=words):
        conditioned(data, on)


def test_labels_that_have_no_name_are_refused() -> None:
    split = Split(torch.zeros(4, 3), torch.tensor([0, 1, 1, 3]))
    with pytest.raises(UserError, match=r"labels go up to 3, but there are names for 2 classes; name all"):
        conditioned(Splits(ArraySpec((3,)), split, split, split, ("a", "b")), "labels")
    many = some(kind=torch.tensor([0, 1, 10**9, 1]))
    with pytest.raises(
        UserError, match=r"'kind' is 1000000000 in train; classes are numbered 0, 1, 2, …, without large"
    ):
        conditioned(many, "kind")


def test_conditions_of_another_kind_than_in_training_are_refused() -> None:
    classes, number, two = (
        some(kind=given).train for given in (torch.tensor([0, 1, 1, 0]), torch.rand(4), torch.rand(4, 2))
    )
    for train, test, words in (
        (classes, number, "is real numbers, 1 each in test, and classes in train; make them alike."),
        (number, classes, "is classes in test, and real numbers, 1 each in train"),
        (number, two, "is real numbers, 2 each in test, and real numbers, 1 each in train"),
    ):
        with pytest.raises(UserError, match=words):
            conditioned(Splits(ArraySpec((3,)), train, train, test), "kind")


def test_a_class_without_training_data_is_told(caplog: pytest.LogCaptureFixture) -> None:
    few, all_ = (some(given).train for given in ([0, 1, 1, 0], [0, 2, 2, 1]))
    conditioned(Splits(ArraySpec((3,)), all_, few, all_, ("a", "b", "c")), "labels")
    assert not caplog.messages
    conditioned(Splits(ArraySpec((3,)), few, few, all_, ("a", "b", "c")), "labels")
    assert caplog.messages == [
        "2 of the test data are conditioned on 'c', of which no training datum is: nothing is learned of it"
    ]


def test_a_name_means_one_class() -> None:
    """Who says it would be given the first, whoever made the data."""
    split = Split(torch.zeros(8, 3), torch.arange(8) % 3)
    made: list[Callable[[], object]] = [
        lambda: Condition(classes=("crane", "eel", "crane")),
        lambda: conditioned(Splits(ArraySpec((3,)), split, split, split, ("crane", "eel", "crane")), "labels"),
        lambda: from_tensors(split, classes=("crane", "eel", "crane")),
        lambda: data_of(Splits(ArraySpec((3,)), split, split, split, ("crane", "eel", "crane"))),
    ]
    for make in made:
        with pytest.raises(UserError, match="two classes of the name 'crane'; give each a name of its own"):
            make()
    with pytest.raises(UserError, match="series have two variables of the name 'a'; give each a name of its own"):
        SeriesSpec(3, ("a", "a"), (0.0, 0.0), (1.0, 1.0))


def test_numbers_keep_their_digits() -> None:
    """Seconds since 1970, a minute apart: in single precision, neighbours would be one."""
    seconds = 1.7e9 + 60 * np.arange(30.0)
    data = from_tensors({"x": torch.zeros(30, 3), "condition": seconds})
    found = torch.cat([part.extras["condition"] for part in (data.train, data.validation, data.test)])
    assert len(found.unique()) == 30
    back = data.spec.condition.numbers(found).flatten().sort().values
    np.testing.assert_allclose(back - 1.7e9, 60 * np.arange(30.0), atol=1e-3)


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e200, 1e307])
def test_numbers_of_any_unit_are_told(unit: float) -> None:
    """As those of another, whose squares and sums double precision holds; the location is theirs to the last digit."""
    given = torch.from_numpy(np.random.default_rng(0).normal(3, 1, 4))
    plain, other = (conditioned(some(kind=given * factor), "kind") for factor in (1.0, unit))
    torch.testing.assert_close(other.train.extras["condition"], plain.train.extras["condition"])
    assert plain.spec.condition.location == (given.mean().item(),)
    assert plain.spec.condition.scale == (given.std(correction=0).item(),)


def test_new_data_are_told_in_the_terms_of_the_run() -> None:
    spec = replace(ArraySpec((3,)), condition=OF_NUMBERS)
    new = from_tensors({"x": torch.zeros(20, 3), "condition": np.random.default_rng(0).normal(5, 2, (20, 2))})
    told = told_alike(new, spec)
    assert told.spec == spec
    own, theirs = new.spec.condition, told.test.extras["condition"]
    np.testing.assert_allclose(OF_NUMBERS.numbers(theirs), own.numbers(new.test.extras["condition"]), rtol=1e-6)
    spec = replace(ArraySpec((3,)), condition=Condition(classes=("perhaps", "yes", "no", "never")))
    told = told_alike(conditioned(some([0, 1, 1, 2]), "labels"), spec)
    assert told.train.extras["condition"].tolist() == [2, 1, 1, 0]
    other = replace(ArraySpec((3,)), condition=Condition(classes=("a",)))
    assert told_alike(told, other) is told


def test_a_spec_without_the_field_is_refused() -> None:
    @dataclass(frozen=True)
    class Three(Spec):
        shape = (3,)  # type: ignore[assignment]

    split = Split(torch.zeros(4, 3), torch.tensor([0, 1, 1, 0]))
    with pytest.raises(UserError, match=r"the spec Three of the data has no field `condition`; give it one"):
        conditioned(Splits(Three(), split, split, split), "labels")


def test_labels_and_numbers_as_conditions() -> None:
    data = conditioned(some([0, 1, 1, 0]), "labels")
    assert data.spec.condition == Condition(classes=("no", "yes", "perhaps"))
    assert data.train.batch(slice(2))["condition"].tolist() == [0, 1]
    with pytest.raises(UserError, match="the data are conditioned already, on 3 classes"):
        conditioned(data, "labels")
    given = {"x": np.zeros((20, 3), np.float32), "condition": np.arange(20.0)[:, None] % 4}
    data = from_tensors(given)
    condition, told = data.spec.condition, data.train.extras["condition"]
    assert (told.mean().item(), told.std(correction=0).item()) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert set(condition.numbers(told).round().flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert from_tensors({"x": torch.zeros(20, 3), "condition": torch.arange(20) % 3}).spec.condition.size == 3
    one = from_tensors({"x": torch.zeros(20, 3), "condition": torch.ones(20)})
    assert (one.spec.condition.location, one.spec.condition.scale) == ((1.0,), (1.0,))  # no division by 0
    assert one.train.extras["condition"].shape[1:] == (1,)


@pytest.mark.parametrize(
    "spec",
    [
        GREY,
        ArraySpec((3,)),
        TokenSpec(4, 6),
        TextSpec(4, 256),
        ScoreSpec(4, 6),
        SERIES,
        SoundSpec(4),
    ],
    ids=lambda spec: type(spec).__name__,
)
@pytest.mark.parametrize("kind", TOLD)
def test_specs_are_kept_with_their_condition(spec: Any, kind: str) -> None:
    with_condition = replace(spec, condition=TOLD[kind][0])
    back = spec_of_dict(json.loads(json.dumps(spec_as_dict(with_condition))))
    assert back == with_condition != spec


@pytest.mark.parametrize(
    ("condition", "typed", "found"),
    [
        (OF_CLASSES, "b", [1]),
        (OF_CLASSES, "2", [2]),
        (Condition(classes=("7", "1")), "1", [1]),  # names come first
        (OF_NUMBERS, "1,-2.5", [[0.0, pytest.approx(-0.5 / 3)]]),
        (OF_NUMBERS, " 1e0 ,+.5", [[0.0, pytest.approx(2.5 / 3)]]),
    ],
)
def test_conditions_as_they_are_typed(condition: Condition, typed: str, found: list[Any]) -> None:
    assert condition.parsed(typed).tolist() == found


@pytest.mark.parametrize(
    ("condition", "typed", "words"),
    [
        (OF_CLASSES, "3", "unknown condition '3'; known: a, b, c"),
        (OF_CLASSES, "-1", "unknown condition '-1'"),
        (OF_CLASSES, "²", "unknown condition '²'"),
        (OF_CLASSES, "", "unknown condition ''"),
        (OF_NUMBERS, "1", "the condition '1' is none of these data; give 2 numbers with commas"),
        (OF_NUMBERS, "1,nan", "the condition '1,nan' is none"),
        (OF_NUMBERS, "1,1e999", "the condition '1,1e999' is none"),
        (OF_NUMBERS, "1,1e300", "the condition '1,1e300' is none"),
        (OF_NUMBERS, "1,1_0", "the condition '1,1_0' is none"),
        (OF_NUMBERS, "1,٣", "is none"),
        (Condition(classes=("1", "2", "5")), "0", "unknown condition '0'; known: 1, 2, 5"),
        (OF_NUMBERS, "1,b", "the condition '1,b' is none"),
    ],
)
def test_conditions_that_are_none(condition: Condition, typed: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        condition.parsed(typed)


# --- Who hears it ---


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_position_and_step_hears_the_condition_and_all_else_is_as_before(name: str, kind: str) -> None:
    condition, told = TOLD[kind]
    vae = made(name, condition)
    data = from_tensors(
        {"x": random_images(PROGRAMS[name][0], (12,)), "condition": told.repeat(4, *[1] * (told.dim() - 1))},
        spec=replace(PROGRAMS[name][0], condition=condition),  # type: ignore[type-var]
    )
    certificate = verify(vae, data.spec, extras={"condition": told})
    assert certificate.failure is None, certificate
    assert certificate.delta_nats is not None
    randomise(vae).eval()
    x, z = random_images(data.spec, (3,)), random_normal(3, 4, 2)
    other = told.roll(1, 0)
    p, q = vae.model.likelihood, vae.guide.posterior
    for program, first in ((p, z), (q, x)):
        before, after = (program(first, condition=each) for each in (told, other))
        if program is p:
            terms = [each.network(x, each.z) for each in (before, after)]
            moved = (terms[0] != terms[1]).reshape(3, -1).double().mean(1)
            assert (moved > 0.5).all()
        else:
            assert (before.mean != after.mean).all(-1).all()
    with pytest.raises(UserError, match="the programs are conditioned, and are given no condition"):
        p(z)
    with pytest.raises(UserError, match="the programs are conditioned, and are given no condition"):
        q(x)
    if kind == "classes":  # by their numbers, of any type
        for dtype in (torch.uint8, torch.int32):
            assert torch.equal(p(z, condition=told.to(dtype)).log_prob(x), p(z, condition=told).log_prob(x))
            assert torch.equal(q(x, condition=told.to(dtype)).mean, q(x, condition=told).mean)
        for wrong in (-1, 9):
            with pytest.raises(IndexError):
                p(z, condition=torch.full_like(told, wrong)).log_prob(x)
        with pytest.raises(UserError, match=r"a class, a whole number, not of type torch\.float32"):
            p(z, condition=told.float()).log_prob(x)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_control_hears_the_condition_and_no_latents(name: str) -> None:
    vae = randomise(made(name, OF_CLASSES, use_latents=False)).eval()
    x, z = random_images(PROGRAMS[name][0], (3,)), random_normal(3, 4, 2)
    p = vae.model.likelihood
    first, other_z, other_c = p(z, condition=CLASSES), p(z + 1, condition=CLASSES), p(z, condition=CLASSES.roll(1))
    assert torch.equal(first.log_prob(x), other_z.log_prob(x))
    assert (first.log_prob(x) != other_c.log_prob(x)).all()


def test_programs_that_were_made_for_no_condition_refuse_one() -> None:
    vae = build(configured(GATED, {"program": "anti_causal", **GUIDE}), GREY, check=False)
    x = random_images(GREY, (3,))
    for asked in (
        lambda: vae.guide.posterior(x, condition=CLASSES),
        lambda: vae.model.likelihood(torch.zeros(3, 4, 2), condition=CLASSES),
    ):
        with pytest.raises(UserError, match=r"data have the key 'condition', but their spec says nothing of it"):
            asked()


def test_what_a_guide_says_at_first_it_says_of_x() -> None:
    vae = made("gated, anti-causal", OF_CLASSES)
    x = random_images(GREY, (12,))
    vae.guide.start_from(x, CLASSES.repeat(4))
    first, other = (vae.guide.posterior(x, each.repeat(4)).mean for each in (CLASSES, CLASSES.roll(1)))
    assert torch.equal(first, other)
    assert first.flatten(0, 1).std(0, correction=0).tolist() == pytest.approx([1.0, 1.0], rel=1e-4)


# --- What is told within a class ---


def passes(halves: tuple[list[Tensor], list[Tensor]]) -> int:
    return sum(len(part) ** 2 for half in halves for part in half)


def test_groups_are_alike_in_what_is_given_and_every_kind_is_in_both_halves() -> None:
    classes = torch.tensor([0] * 20 + [1] * 11 + [2] * 2 + [3])
    data = Split(torch.zeros(34, 1), None, {"condition": classes})
    halves = grouped(data, 8, 256, 0)
    all_of_it = torch.cat([part for half in halves for part in half])
    assert sorted(all_of_it.tolist()) == list(range(34))  # of so few, none is left out
    for half in halves:
        assert all(len(part) <= 8 and (classes[part] == classes[part[0]]).all() for part in half)
        found = classes[torch.cat(half)].bincount(minlength=4)
        assert ((found - torch.tensor([10, 5.5, 1, 0.5])).abs() <= 0.5).all()
    large = Split(torch.zeros(5000, 1), None, {"condition": torch.arange(5000) % 10})
    halves = grouped(large, 64, 256, 0)
    assert 0.9 * 4 * 64**2 <= passes(halves) <= 4 * 64**2
    lengths = Split(torch.zeros(33, 1), None, {"lengths": torch.arange(33) % 4 + 1, "condition": torch.arange(33) % 2})
    for part in (part for half in grouped(lengths, 8, 256, 0) for part in half):
        assert all((values[part] == values[part[0]]).all() for values in lengths.extras.values())
    numbers = Split(torch.zeros(33, 1), None, {"condition": torch.rand(33, 1)})
    plain = grouped(Split(torch.zeros(33, 1)), 8, 24, 0)
    assert all(map(torch.equal, chain(*grouped(numbers, 8, 24, 0)), chain(*plain)))


def test_partners_are_of_the_same_class() -> None:
    classes = torch.tensor([0, 1, 0, 1, 2, 0, 1])
    for seed in range(5):
        partner = partners(7, seed, classes)
        assert sorted(partner.tolist()) == list(range(7))
        assert torch.equal(classes[partner], classes)
        assert ((partner == torch.arange(7)) == (classes == 2)).all()


def test_information_within_classes_by_hand() -> None:
    vae = randomise(made("gated, anti-causal", OF_CLASSES))
    classes = torch.tensor([0, 1, 0, 1, 2, 0, 1])
    split = Split(random_images(GREY, (7,)), None, {"condition": classes})
    encoding = encode(vae, split)
    z, mean, scale = (part["z"].double().flatten(1) for part in (encoding.z, encoding.mean, encoding.scale))
    log_q = torch.distributions.Normal(mean, scale).log_prob(z[:, None]).sum(-1)
    told = [
        (log_q[i, i] - torch.logsumexp(log_q[i, classes == classes[i]], 0) + math.log((classes == classes[i]).sum()))
        for i in range(7)
    ]
    by_hand = torch.stack(told).mean().item()
    assert mutual_information(encoding, 3, classes=classes)[0] == pytest.approx(by_hand, rel=1e-6)
    assert pairwise_mutual_information(vae, split, encoding.z)[0] == pytest.approx(by_hand, rel=1e-5)
    assert mutual_information(encoding)[0] > by_hand + 0.1


# --- What each datum commits ---


class ByClass(nn.Module):
    """AR(1) whose α is another one for every class."""

    def __init__(self, of: str = "alpha") -> None:
        super().__init__()
        self.of = of
        self.register_buffer("starts", torch.arange(4))
        self.register_buffer("alpha", torch.tensor([[0.3, 0.5], [0.6, 0.6], [0.9, 0.8]]))

    def forward(self, condition: Tensor | None = None) -> Any:
        if condition is None:
            return GaussianAR1(self.alpha[0], 4)
        if self.of == "alpha":
            return GaussianAR1(self.alpha[condition], 4)
        lag = (torch.arange(8)[:, None] - torch.arange(8)).abs()
        covariance = self.alpha[condition, :1, None] ** lag
        return MultivariateNormal(torch.zeros(8).to(covariance), covariance)


def by_class(prior: nn.Module) -> VAE:
    vae = made("gated, anti-causal", OF_CLASSES)
    vae.model.prior = prior
    return vae


def test_a_prior_of_its_own_for_every_class() -> None:
    vae, classes = by_class(ByClass()), torch.tensor([2, 0, 1, 1, 0, 2, 2])
    split = Split(random_images(GREY, (7,)), None, {"condition": classes})
    delta = ar1_committed_rate(vae.model.prior.alpha.double(), 4)
    known = committed(vae, split)
    assert known.guarantee == BY_PRIOR
    assert known.nats == pytest.approx(delta.min().item(), rel=1e-6)
    assert "δ of a datum is that of its own prior" in known.sentence
    for batch in (3, 1):  # the last one of a single datum
        encoding = encode(vae, split, batch=batch)
        assert encoding.delta is not None
        np.testing.assert_allclose(encoding.delta.numpy(), delta[classes].numpy(), rtol=1e-6)
    assert floor_holds(encoding, known.nats, known.guarantee) is True
    assert floor_holds(encoding, known.nats, IN_THE_MEAN) is True
    # Above the least δ, and below its own.
    low = replace(encoding, rate=torch.full((7,), (delta.min() + delta.max()).item() / 2))
    assert floor_holds(low, known.nats, known.guarantee) is False
    certificate = verify(vae, replace(GREY, condition=OF_CLASSES), extras={"condition": CLASSES})
    assert certificate.guarantee == BY_PRIOR
    assert certificate.delta_nats == pytest.approx(delta.min().item(), rel=1e-6)


class Flat(nn.Module):
    """A guide of eight numbers in a row."""

    causality = "none"

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Any:
        mean = self.mean(x.flatten(1).to(self.mean.weight.dtype))
        with pyro.plate("data", len(x)):
            return pyro.sample("z", Normal(mean, torch.full_like(mean, 0.5)).to_event(1))


class Read(nn.Module):
    conditioning = "full"

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 12)

    def forward(self, z: Tensor) -> Any:
        return Bernoulli(logits=self.out(z).reshape(*z.shape[:-1], 1, 4, 3)).to_event(3)


def test_one_floor_is_not_claimed_for_all_where_it_is_not_known_of_each() -> None:
    """Found by `check` and `verify` alike: the first datum's rate is not that of the others."""
    vae = VAE(DeltaVAE(ByClass("covariance"), Read()), Flat())
    spec = ArraySpec((1, 4, 3), levels=2, ordered=False, condition=OF_CLASSES)
    x = torch.randint(2, (6, 1, 4, 3))
    found = committed(vae, Split(x, None, {"condition": torch.tensor([0, 1, 2, 0, 1, 2])}))
    assert found.nats is None
    assert "the prior of 'z' differs from datum to datum, and commits" in found.known_by
    certificate = verify(vae, spec, extras={"condition": CLASSES})
    assert certificate.failure is None
    assert certificate.delta_nats is None
    same = committed(vae, Split(x, None, {"condition": torch.ones(6).long()}))
    p = vae.model.prior(torch.tensor([1]))
    posterior = MultivariateNormal(torch.zeros(8), 0.25 * torch.eye(8))
    assert same.nats == pytest.approx(torch.distributions.kl_divergence(posterior, p).item(), rel=1e-5)


@pytest.mark.parametrize("order", ["sorted", "mixed"])
def test_a_prior_of_other_data_is_not_that_of_all(order: str) -> None:
    """However the data are ordered: neither its rate nor its δ is taken for that of others."""
    vae = VAE(DeltaVAE(ByClass("covariance"), Read()), Flat())
    classes = torch.arange(3).repeat_interleave(40) if order == "sorted" else torch.arange(120) % 3
    x = torch.randint(2, (120, 1, 4, 3))
    split = Split(x, None, {"condition": classes})
    assert committed(vae, split).nats is None
    encoding = encode(vae, split, batch=20)
    with torch.no_grad():
        mean = vae.guide.mean(x.flatten(1).float())
        q = MultivariateNormal(mean, 0.25 * torch.eye(8))
        expected = torch.distributions.kl_divergence(q, vae.model.prior(classes))
    np.testing.assert_allclose(encoding.rate, expected, rtol=1e-4)
    assert floor_holds(encoding, None) is None


def test_every_class_is_asked_what_it_commits() -> None:
    """Also one that no data of `verify` are of, and one behind the first data of a split that is sorted."""
    many = Condition(classes=tuple("abcdefghij"))
    vae = build(configured(GATED, {"program": "anti_causal", **GUIDE}), replace(GREY, condition=many), check=False)
    vae.model.prior = prior = ByClass()
    prior.alpha = torch.full((10, 2), 0.9)
    prior.alpha[9] = 0.0
    certificate = verify(vae, replace(GREY, condition=many))
    assert (certificate.delta_nats, certificate.guarantee) == (0.0, BY_PRIOR)
    classes = torch.arange(10).repeat_interleave(30)
    split = Split(random_images(GREY, (300,)), None, {"condition": classes})
    assert committed(vae, split).nats == 0.0
    structured = build(
        configured(GATED, {"program": "structured", **GUIDE}), replace(GREY, condition=many), check=False
    )
    structured.model.prior = prior
    assert committed(structured, split).nats == pytest.approx(0.0, abs=1e-6)


def turned(of: Tensor, condition: Tensor) -> Tensor:
    """Upside down for the last of five classes alone."""
    last = (condition == 4).reshape(-1, *[1] * (of.dim() - 1))
    return torch.where(last, of.flip(-2), of)


class LooksAhead(nn.Module):
    def __init__(self, honest: Any) -> None:
        super().__init__()
        self.honest = honest

    def forward(self, z: Tensor, condition: Tensor) -> Any:
        return self.honest(turned(z, condition), condition=condition)


class LooksBack(nn.Module):
    causality = "anti_causal"

    def __init__(self, honest: Any) -> None:
        super().__init__()
        self.honest = honest

    def posterior(self, x: Tensor, condition: Tensor) -> Any:
        return self.honest.posterior(turned(x, condition), condition=condition)

    def forward(self, x: Tensor, condition: Tensor) -> Any:
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, condition))


def test_every_class_is_looked_at() -> None:
    """What is seen by one class alone, behind those of the first three data, is found."""
    five = Condition(classes=tuple("abcde"))
    vae, spec = made("gated, anti-causal", five), replace(GREY, condition=five)
    assert verify(vae, spec).failure is None
    back = VAE(vae.model, LooksBack(vae.guide))
    found = verify(back, spec).failure or ""
    assert "causality of the guide: z_2 changes with rows before its start" in found
    vae.model.likelihood = LooksAhead(vae.model.likelihood)
    found = verify(vae, spec, extras={"condition": CLASSES}).failure or ""
    assert "causality of the conditioning: row 0 changes with latents of later rows" in found


def test_length_is_no_information_about_x() -> None:
    spec = TokenSpec(6, 5)
    config = configured({"program": "gru", "hidden": 4}, {"program": "gru", "hidden": 4}, {**AR1, "length": 6})
    vae = build(config, spec, check=False)
    with torch.no_grad():  # the same posterior for all
        vae.guide.encoder.out.weight.zero_()
    lengths = torch.arange(60) % 6 + 1
    split = Split(random_images(spec, (60,)), None, {"lengths": lengths})
    found = diagnosed(vae, split, spec=spec, particles=1)
    assert found.numbers["mutual_information_nats"] == pytest.approx(0.0, abs=1e-6)
    assert found.numbers["mutual_information_cap_nats"] == pytest.approx(math.log(10))


def test_what_numbers_tell_is_no_evidence() -> None:
    """Z is drawn about c, by prior and guide alike, and says nothing of x."""

    class About(nn.Module):
        causality = "none"

        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.zeros(()))

        def q(self, condition: Tensor) -> Any:
            return Normal(3 * condition.expand(-1, 8), 1 + 0 * self.none).to_event(1)

        def forward(self, x: Tensor, condition: Tensor) -> Any:
            with pyro.plate("data", len(x)):
                return pyro.sample("z", self.q(condition))

    class Model(nn.Module):
        def __init__(self, guide: About) -> None:
            super().__init__()
            self.of = guide

        def forward(self, x: Tensor, condition: Tensor) -> Any:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.of.q(condition))
                return pyro.sample("x", Normal(z[:, :1] / 3, 0.1).to_event(1), obs=x)

    guide, c = About(), random_normal(80, 1).float()
    found = diagnosed(VAE(Model(guide), guide), Split(c.clone(), None, {"condition": c}), particles=1)
    assert found.numbers["told_calibrated_nats"] > 0.5
    assert found.numbers["told_of_condition_too"] is True
    assert found.numbers["latents_used"] is False


# --- By commands ---


def invoke(*words: object, code: int = 0) -> str:
    found, out, err = call(*words)
    assert found == code, err
    return out + err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditional")
    draw = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for kind in ("cats", "dogs"):
            (folder / "data" / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "data" / split / kind / f"{number}.png")
    programs = {"prior": AR1, "likelihood": GATED, "guide": {"program": "anti_causal", **GUIDE}}
    options = [f"{kind}.{name}={value}" for kind, of in programs.items() for name, value in of.items()]
    options += ["data.condition=labels", "data.validation=6", "training.batch=8"]
    sets = [word for option in options for word in ("--set", option)]
    invoke("train", "--dataset", f"folder:{folder / 'data'}", *sets, "--steps", 3, "--out", folder / "run")
    return folder / "run"


def test_a_conditional_run_from_train_to_inpaint(run: Path, tmp_path: Path) -> None:
    loaded = pyro_delta.load(run)
    assert loaded.spec.condition == Condition(classes=("cats", "dogs"))
    assert loaded.config.data.options["condition"] == "labels"
    numbers = json.loads(invoke("check", run, "--images", "12", "--json", code=1).splitlines()[0])
    assert numbers["floor_holds"] is True
    assert numbers["conditioned_on"] == "2 classes"
    png = tmp_path / "drawn.png"
    invoke("sample", run, "--num", "3", "--out", png)
    invoke("sample", run, "--num", "2", "--condition", "dogs", "--out", png)
    one = ("--num", "1", "--out", png)
    invoke("reconstruct", run, "test", *one)
    invoke("inpaint", run, "test", "--particles", "4", *one)
    invoke("interpolate", run, "test", "--pairs", "1", "--steps", "2", "--out", png)
    cat = run.parent / "data" / "test" / "cats" / "0.png"
    for command, options in (
        ("reconstruct", one),
        ("inpaint", ("--particles", "4", *one)),
        ("encode", ("--out", tmp_path / "z.npz")),
    ):
        invoke(command, run, cat, "--condition", "cats", *options)
        out = invoke(command, run, cat, *options, code=2)
        assert "the run is conditioned on 2 classes, and" in out
        assert "is read without them; give --condition" in out
        out = invoke(command, run, "test", "--condition", "dogs", *options, code=2)
        assert "data of the split test have their own conditions; leave out --condition dogs" in out
    invoke("encode", run, run.parent / "data" / "test", "--out", tmp_path / "z.npz")  # folders say the classes
    arrays = np.load(tmp_path / "z.npz")
    assert arrays["condition"].tolist() == arrays["label"].tolist() == ["cats"] * 8 + ["dogs"] * 8
    assert "unknown condition 'cat'; did you mean 'cats'" in invoke("sample", run, "--condition", "cat", *one, code=2)


def test_a_class_is_drawn_as_it_is_asked_for(run: Path, tmp_path: Path) -> None:
    """Samples of a class are those of the decoder told of it, and of no other."""
    from pyro_delta.diagnostics.drawing import draw

    loaded, png = pyro_delta.load(run), tmp_path / "drawn.png"
    invoke("sample", run, "--num", "2", "--condition", "dogs", "--out", png)
    drawn = draw(loaded.vae, 2, extras={"condition": torch.tensor([1, 1])})
    other = tmp_path / "other.png"
    loaded.spec.show(drawn, other, 2)
    assert np.array_equal(np.asarray(Image.open(png)), np.asarray(Image.open(other)))


def test_other_data_are_told_in_the_terms_of_the_run_by_every_command(run: Path, tmp_path: Path) -> None:
    """Of dogs alone, whose first class is the second one of the run."""
    for split in ("train", "test"):
        shutil.copytree(run.parent / "data" / split / "dogs", tmp_path / "new" / split / "dogs")
    there, png = ("--data-root", tmp_path / "new"), tmp_path / "drawn.png"
    assert "or say --other-data" in invoke("evaluate", run, *there, code=2)
    found = json.loads(invoke("evaluate", run, *there, "--other-data", "--json").splitlines()[0])
    loaded = pyro_delta.load(run)
    test = loaded.data(str(tmp_path / "new"), other=True).test
    assert test.extras["condition"].tolist() == [1] * 8
    expected = evaluate(loaded.vae, Split(test.x, None, {"condition": torch.ones(8, dtype=torch.int64)}))
    assert found["neg_elbo_bpd"] == pytest.approx(expected["neg_elbo_bpd"])
    invoke("check", run, *there, "--other-data", "--images", "8", code=1)
    invoke("sample", run, *there, "--other-data", "--num", "1", "--out", png)
    invoke("reconstruct", run, "test", *there, "--other-data", "--num", "1", "--out", png)
    by_name = pyro_delta.evaluate(loaded, data=f"folder:{tmp_path / 'new'}")
    assert by_name["neg_elbo_bpd"] == pytest.approx(expected["neg_elbo_bpd"])
    shutil.copytree(run, tmp_path / "run")
    invoke("train", "--resume", "--out", tmp_path / "run", "--steps", 4, *there, "--other-data")
    assert pyro_delta.load(tmp_path / "run").spec == loaded.spec
    dogs = pyro_delta.data.load(f"folder:{tmp_path / 'new'}", condition="labels", validation=6)
    one = pyro_delta.diagnose(loaded, data=dogs, particles=1).numbers
    assert one["neg_elbo_nats"] == pytest.approx(evaluate(loaded.vae, test)["neg_elbo_bpd"] * 64 * math.log(2))


OWN_PRIOR = """
import torch
from pyro_delta.distributions import GaussianAR1

class Own(torch.nn.Module):
    def __init__(self, spec, *, dims: int = 2):
        super().__init__()
        self.register_buffer("starts", torch.arange(spec.positions))
        self.register_buffer("alpha", torch.tensor([[0.9, 0.8], [0.1, 0.2]]))

    def forward(self, condition=None):
        return GaussianAR1(self.alpha[0 if condition is None else condition], len(self.starts))
"""


def test_a_page_says_whose_prior_the_rates_stand_beside(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_PRIOR)
    sets = ["likelihood.program=gated_pixelcnn", "guide.program=anti_causal", "data.condition=labels"]
    options = {f"likelihood.{name}": value for name, value in GATED.items() if name != "program"}
    options |= {f"guide.{name}": value for name, value in GUIDE.items()}
    sets += [f"{name}={value}" for name, value in options.items()]
    words = [word for given in [*sets, "data.validation=6", "training.batch=8"] for word in ("--set", given)]
    mine = ("--prior", f"{tmp_path / 'own.py'}:Own", "--trust", "--steps", 1, "--out", tmp_path / "run")
    invoke("train", "--dataset", f"folder:{run.parent / 'data'}", *words, *mine)
    invoke("report", tmp_path / "run", "--images", "8")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "and δ is the mean of what their own priors commit." in page
    assert "Modes of the prior of the first of the data, which have priors of their own:" in page


def test_runs_that_are_conditioned_on_nothing_say_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    invoke("train", "--dataset", "digits", "--steps", "1", "--set", "training.batch=8", "--out", run)
    assert "condition" not in pyro_delta.load(run).config.data.options
    out = invoke("sample", run, "--num", "1", "--condition", "7", "--out", tmp_path / "drawn.png", code=2)
    assert "the run is conditioned on nothing, so --condition 7 has no meaning" in out
    out = invoke("train", "--dataset", "digits", "--set", "data.condition=size", "--out", tmp_path / "other", code=2)
    assert "data.condition='size' is not there to condition train on; they have 'labels'" in out
    assert not (tmp_path / "other").exists()


def test_a_control_is_conditioned_alike(run: Path) -> None:
    loaded = pyro_delta.load(run)
    control = pyro_delta.train_control(loaded)
    found = diagnosed(loaded.vae, loaded.data().test, control=control.vae, particles=1)
    assert math.isfinite(found.numbers["bought_nats"])
