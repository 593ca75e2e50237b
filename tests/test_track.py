"""Recorded curves: which training one belongs to, what is said beside it, and what a training costs."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_cli import call
from torch import Tensor, nn

import pyro_delta
from pyro_delta import config as configuration
from pyro_delta.diagnostics.cost import flops_per_datum, parameters
from pyro_delta.report import track
from pyro_delta.report.progress import following
from pyro_delta.report.track import Curve, Track, counted, curves, recorded, tracked, validation_rows
from pyro_delta.report.track_figure import track_figure
from pyro_delta.vae import VAE

DIGITS = configuration.load_preset("digits", [("training.steps", 4)])


def curve(*bounds: tuple[float, ...], unit: str = "bits/dim") -> Curve:
    return Curve(
        "c", DIGITS.model_dump(mode="json"), unit, [2, 4], [list(values) for values in bounds], 32, "train", 100
    )


def line(step: int, bound: float | None, split: str = "validation") -> dict[str, Any]:
    return {"split": split, "step": step, "neg_elbo_bpd": bound}


def configured(command: str) -> configuration.Config:
    """What a `train` command configures, by its options that are settings."""
    words = command.removeprefix("pyro-delta train ").split()
    options = list(zip(words[::2], words[1::2], strict=True))
    named = {"--dataset": "data.program", "--steps": "training.steps"}
    pairs = [value if name == "--set" else f"{named[name]}={value}" for name, value in options if name != "--preset"]
    return configuration.choose(configuration.parse_settings(pairs), dict(options).get("--preset"))[0]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "curves", lambda: [curve((2.1, 2.3), (1.9, 2.0))])


def test_mean_and_deviation_over_the_seeds() -> None:
    found = curve((2.1, 2.3, 2.2), (1.9,))
    assert found.at(2) == (pytest.approx(2.2), pytest.approx(0.1))
    assert found.at(4) == (1.9, 0.0)
    assert found.at(3) is None


@pytest.mark.parametrize("name", [curve.name for curve in curves()])
def test_shipped_curves_are_of_settings_that_this_version_has(name: str) -> None:
    shipped = next(curve for curve in curves() if curve.name == name)
    assert recorded(configuration.validate(shipped.settings)) == shipped
    assert shipped.steps == sorted(shipped.steps)
    assert {len(values) for values in shipped.bounds} == {len(shipped.bounds[0])}
    assert recorded(configured(shipped.command)) == shipped


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("training.seed", 7, True),
        ("data.root", "elsewhere", True),
        ("training.validations", 3, True),
        ("training.backend", "numpyro", True),
        ("training.steps", 5, False),
        ("training.lr", 1e-3, False),
        ("prior.dims", 3, False),
        ("data.seed", 1, False),
    ],
)
def test_a_curve_is_of_a_configuration_but_for_seeds_and_machines(
    key: str, value: object, same: bool, known: None
) -> None:
    other = configuration.load_preset("digits", [("training.steps", 4), (key, value)])
    assert (tracked(other) == tracked(DIGITS)) is same
    assert (recorded(other) is not None) is same


def test_settings_that_have_come_since_are_at_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    old = asdict(curve((2.0,), (1.9,)))
    del old["settings"]["likelihood"]["stem"]
    monkeypatch.setattr(track, "curves", lambda: [Curve(**old)])
    assert recorded(DIGITS) is not None
    assert (
        recorded(configuration.load_preset("digits", [("training.steps", 4), ("likelihood.stem", [1, 1, 1])])) is None
    )


def test_a_validation_stands_beside_what_was_recorded_at_its_step(known: None) -> None:
    on = Track(DIGITS)
    assert on.beside(line(2, 2.5)) == "recorded 2.2000 ± 0.1414"
    assert on.beside(line(3, 2.5)) == on.beside(line(2, 2.5, "train")) == ""
    assert Track(configuration.load_preset("digits")).beside(line(2, 2.5)) == ""


@pytest.mark.parametrize(
    ("bounds", "said_at"),
    [
        ([(2, 2.85), (4, 2.25)], None),  # 5 deviations are 0.71 and 0.35
        ([(2, 2.95), (4, 2.95)], 2),
        ([(2, 2.3), (4, 2.35)], 4),
        ([(2, None), (4, None)], 2),
        ([(2, 0.5), (4, 0.5)], None),
        ([(3, 9.0)], None),
    ],
)
def test_a_run_far_off_says_so_once(bounds: list[tuple[int, float | None]], said_at: int | None, known: None) -> None:
    on = Track(DIGITS)
    assert on.notice(line(2, 99.0, "train")) is None
    found = {step: on.notice(line(step, bound)) for step, bound in bounds}
    assert [step for step, notice in found.items() if notice] == ([] if said_at is None else [said_at])
    if said_at:
        assert f"the bound at step {said_at} is {'no number' if bounds[0][1] is None else ''}" in str(found[said_at])
        assert "off its track" in str(found[said_at])


@pytest.mark.parametrize("past", [[], [line(2, 2.95)]])
def test_what_was_said_before_a_training_goes_on_is_not_said_again(
    past: list[dict[str, Any]], known: None, capsys: pytest.CaptureFixture[str]
) -> None:
    number = {**line(4, 2.95), "rate_nats_mean": 1.0, "delta_nats": 0.5, "train_s": 1.0}
    with following(DIGITS, "bits/dim", torch.device("cpu"), past) as show:
        show(number)
    assert ("off its track" in capsys.readouterr().err) == (not past)


@pytest.mark.parametrize("mean", [2.0, -2.0])
def test_of_one_seed_a_part_of_the_bound_is_the_deviation(mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(track, "curves", lambda: [curve((mean,), (mean,))])
    assert Track(DIGITS).notice(line(2, mean + 0.04)) is None
    assert Track(DIGITS).notice(line(2, mean + 0.06)) is not None


def test_rows_and_figure() -> None:
    own, known = [replace(curve((2.2,), (2.1,)), name="mine")], [curve((2.1, 2.3), (1.9, 2.0))]
    assert validation_rows(own, known)[1:] == [
        ["mine", "1", "4", "1.28e+04", "2.1000 bits/dim"],
        ["c, recorded", "2", "4", "1.28e+04", "1.9500 ± 0.0707 bits/dim"],
    ]
    by_step, by_flops = track_figure(own, known).axes
    assert [drawn.get_label() for drawn in by_step.get_lines()] == ["mine", "c, recorded"]
    assert by_step.get_lines()[1].get_ydata() == pytest.approx([2.2, 1.95])
    assert list(by_flops.get_lines()[0].get_xdata()) == [6400, 12800]
    with pytest.raises(ValueError, match="bounds are in bits/dim and nats/step"):
        track_figure([*own, curve((1.0,), (1.0,), unit="nats/step")], [])


# --- What a training costs ---


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 7)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.layer(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.layer(x), self.scale).to_event(1))


def test_operations_are_those_of_the_products() -> None:
    vae = VAE(Model(), Guide())
    # Forwards and for its weights each layer takes 2·3·7, and that of the model once more for z.
    assert flops_per_datum(vae, torch.randn(4, 7)) == 42 * (3 + 2)
    assert all(weight.grad is None for weight in vae.parameters())
    assert parameters(vae) == (21 + 7) + (21 + 3)
    vae.guide.layer.bias.requires_grad_(False)
    assert parameters(vae) == 28 + 21


class Attending(Model):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5, 4), 1.0).to_event(2))
            key = self.layer.expand(len(x), 5, 4)
            heard = nn.functional.scaled_dot_product_attention(z, key, key)
            pyro.sample("x", dist.Normal(heard, 1.0).to_event(2), obs=x)


class Aside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(5, 4))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(2))


def test_operations_of_attention_are_those_of_its_products() -> None:
    """Two of 5 × 5 × 4 forwards, and twice as many backwards."""
    assert flops_per_datum(VAE(Attending(), Aside()), torch.randn(3, 5, 4)) == 2 * 5 * 5 * 4 * (2 + 4)


def test_recorded_curves_name_no_folder_of_a_machine() -> None:
    assert [curve.name for curve in curves() if "root" in curve.settings["data"]] == []


def test_operations_of_what_was_recorded_are_those_of_the_networks_at_hand(tmp_path: Path) -> None:
    """So that both stand on one axis; and what was recorded on other data, such as by class, does not stand there."""
    tiny = ["--set", "training.steps=4", "--set", "training.validations=2", "--no-report", "--device", "cpu"]
    for name, more in (("plain", []), ("by-class", ["--set", "data.condition=labels"])):
        code, _, err = call("train", "--dataset", "digits", *tiny, *more, "--out", tmp_path / name)
        assert code == 0, err
        code, out, err = call("compare", tmp_path / name, "--with", "reference", "--figure", tmp_path / "a.png")
        assert code == 0, err
        found = re.search(r"(\S+)e\+(\d+) │ (\d\.\d+) bits/dim", out)
        assert found is not None
        assert ("digits, recorded" in out) == (name == "plain")
        assert ("no training was recorded" in err) == (name == "by-class")
    run = pyro_delta.load(tmp_path / "plain")
    shipped = next(curve for curve in curves() if curve.name == "digits")
    assert counted(shipped, run).flops_per_datum == flops_per_datum(run.vae, torch.zeros(2, 1, 8, 8).long()) > 0
