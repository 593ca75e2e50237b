"""The library from Python: train, resume, load, check and evaluate, with and without a folder; what that imports."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from forged import former, state_of
from test_cli import call
from test_inference import SPEC, toy_data
from torch import Tensor

import pyro_delta
from pyro_delta.api.judge import _unexplained
from pyro_delta.api.kept import keep
from pyro_delta.api.train import control_config
from pyro_delta.config import Config, digest, load_preset, validate
from pyro_delta.data import ArraySpec, Spec, Split, Splits
from pyro_delta.data.images.datasets import Digits
from pyro_delta.data.splits import subset
from pyro_delta.diagnostics.bounds import encode
from pyro_delta.diagnostics.diagnose import Diagnosis
from pyro_delta.errors import CheckFailed, UserError
from pyro_delta.inference import training
from pyro_delta.inference.run import Run, create, read_config

SETTINGS = {
    "prior.dims": 2,
    "prior.rate_nats": 3.0,
    "likelihood.channels": [6],
    "likelihood.row_blocks": [1],
    "likelihood.pixel_blocks": 1,
    "likelihood.mixtures": 2,
    "guide.channels": [6],
    "guide.row_blocks": [1],
    "guide.pixel_blocks": 1,
    "guide.features": 6,
    "training.steps": 4,
    "training.batch": 5,
    "training.bf16": False,
    "training.decay": "none",
    "training.log_every": 2,
    "training.validations": 2,
}
QUICK = {"told_samples": 4, "told_images": 16, "weighed": 5}
"""For a check of which other numbers are looked at."""
CLOCKS = {"wall_s", "train_s", "images_per_s"}
FILES = [
    ".lock", "checkpoint-00000002.safetensors", "checkpoint-00000004.safetensors", "config.json", "events",
    "manifest.json", "metrics.jsonl", "run.json", "samples",
]  # fmt: skip


def without_clocks(lines: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def train(data: str | Splits | None = None, /, **options: Any) -> Run:
    settings = SETTINGS | {key.replace("__", "."): options.pop(key) for key in list(options) if "__" in key}
    return pyro_delta.train(settings, data=data, device="cpu", **options)


def weights(run: Run) -> Tensor:
    return torch.cat([value.flatten() for value in run.vae.state_dict().values()])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the digits, with a folder."""
    return train("digits", out=tmp_path_factory.mktemp("api") / "run")


# --- train ---


def test_a_run_holds_all_of_it(digits: Run) -> None:
    assert digits.folder is not None
    assert repr(digits) == (
        f"<Run {digits.folder}: data digits, prior ar1, likelihood gated_pixelcnn, guide anti_causal>"
    )
    assert sorted(path.name for path in digits.folder.iterdir()) == FILES
    assert digits.config == load_preset("digits", [("data.program", "digits"), *SETTINGS.items()])
    assert digits.spec == pyro_delta.load_data("digits").spec
    assert not digits.vae.training
    assert not any(getattr(part, "bf16", False) for part in digits.vae.modules())
    assert [(line["step"], line["split"]) for line in digits.metrics] == [
        (2, "train"), (2, "validation"), (4, "train"), (4, "validation"),
    ]  # fmt: skip
    assert list(digits.metrics) == [
        json.loads(line) for line in (digits.folder / "metrics.jsonl").read_text().splitlines()
    ]
    state = state_of(digits.folder)
    for name, value in digits.vae.state_dict().items():
        torch.testing.assert_close(value, state["average"][f"module.{name}"], rtol=0, atol=0)


def test_it_is_the_run_of_the_command_line(digits: Run, tmp_path: Path) -> None:
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={json.dumps(value).strip(chr(34))}")]
    code, _, err = call("train", "--dataset", "digits", "--device", "cpu", *sets, "--out", tmp_path / "run")
    assert code == 0, err
    theirs = pyro_delta.load(tmp_path / "run")
    assert theirs.config == digits.config
    assert torch.equal(weights(theirs), weights(digits))
    assert without_clocks(theirs.metrics) == without_clocks(digits.metrics)


def test_without_a_folder_nothing_is_kept(digits: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown: list[dict[str, Any]] = []
    run = train("digits", show=shown.append)
    assert list(tmp_path.iterdir()) == []
    assert run.folder is None
    assert repr(run) == "<Run in memory: data digits, prior ar1, likelihood gated_pixelcnn, guide anti_causal>"
    assert list(run.metrics) == shown
    assert without_clocks(run.metrics) == without_clocks(digits.metrics)
    assert torch.equal(weights(run), weights(digits))
    assert pyro_delta.evaluate(run) == pyro_delta.evaluate(digits)
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In a kernel alone (of which a stand-in has what is asked for), and not where lines are shown otherwise."""
    shown: list[str] = []

    def display(data: dict[str, str], *, raw: bool, display_id: bool = False) -> Any:
        assert raw
        assert data["text/html"].startswith('<progress value="')
        shown.append(data["text/plain"])
        return SimpleNamespace(update=display) if display_id else None

    shell = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    train("digits")
    assert shown == []  # IPython on a terminal
    shell.kernel = "of a notebook"
    lines: list[dict[str, Any]] = []
    train("digits", show=lines.append)
    assert shown == []
    train("digits")
    assert len(shown) == 1 + len(lines)
    assert shown[0] == "starting"
    last = {line["split"]: f"{line['split']} {line['neg_elbo_bpd']:.4g} bits/dim" for line in lines}
    assert shown[-1].split(" · ")[:3] == ["step 4", last["train"], last["validation"]]
    assert [line.endswith(" left") for line in shown] == [0 < step < 4 for step in (0, *(x["step"] for x in lines))]
    assert capfd.readouterr() == ("", "")


def test_nothing_said_is_the_digits() -> None:
    run = pyro_delta.train({**SETTINGS, "training.steps": 1}, device="cpu")
    assert run.config == load_preset("digits", [*SETTINGS.items(), ("training.steps", 1)])


def test_a_whole_configuration(digits: Run) -> None:
    run = pyro_delta.train(digits.config, device="cpu")
    assert run.config == digits.config
    assert torch.equal(weights(run), weights(digits))


def test_a_preset_and_data_by_name(tmp_path: Path) -> None:
    settings = {"training.steps": 1, "likelihood.hidden": 8, "guide.hidden": 8}
    run = pyro_delta.train(settings, data="descriptions", out=tmp_path / "run", device="cpu")
    assert (run.config.likelihood.program, run.config.guide.program) == ("gru", "gru")
    assert run.metrics[-1]["split"] == "validation"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["preset"] == "descriptions"
    found = pyro_delta.evaluate(tmp_path / "run")
    assert found["n_images"] == len(run.data().test)
    assert train("digits", preset="cifar10-small").config.training.optimizer == "muon"


def test_training_leaves_pyro_and_torch_as_they_were() -> None:
    with pyro.validation_enabled(False):
        train("digits", training__steps=1)
        assert not torch.distributions.Distribution._validate_args
    train("digits", training__steps=1)
    assert torch.distributions.Distribution._validate_args
    assert torch.get_default_dtype() == torch.float32
    assert len(pyro.get_param_store()) == 0
    assert torch.is_grad_enabled()


def test_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"the last [0-9]+ steps were not finite"):
        train("digits", out=tmp_path / "run", training__lr=1e30, training__steps=60)


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"prior.dmis": 2}, {}, "unknown setting of the prior 'ar1' 'prior.dmis'; did you mean 'prior.dims'?"),
        ({"data.program": "digits"}, {"data": "digits"}, "data are given, and data.program is set, too"),
        ({"data.seed": 3}, {"data": toy_data()}, "data are given, and data.seed is set, too"),
        (load_preset("digits"), {"preset": "digits"}, "a whole configuration names its own data and has no preset"),
        (load_preset("digits"), {"data": "digits"}, "a whole configuration names its own data and has no preset"),
        ({}, {"data": "digit"}, "unknown data 'digit'; did you mean 'digits'?"),
        ({}, {"preset": "digit"}, "unknown preset 'digit'; did you mean 'digits'?"),
        ({"training.batch": 10**6}, {}, "batch size 1000000 does not fit"),
    ],
)
def test_refused_trainings(
    settings: dict[str, Any] | Config, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        pyro_delta.train(settings, out=tmp_path / "run", device="cpu", **options)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused_before_any_work(digits: Run) -> None:
    with pytest.raises(UserError, match="holds another run"):
        train("digits", out=digits.folder)


# --- data themselves ---


def test_data_that_are_given(tmp_path: Path) -> None:
    data = toy_data()
    run = train(data, out=tmp_path / "run")
    assert repr(run).startswith(f"<Run {tmp_path / 'run'}: data given, prior ar1, ")
    assert run.data() is data
    assert run.spec == SPEC
    assert run.config.data.program == "given"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["preset"] == "default"
    expected = pyro_delta.evaluate(run)
    assert expected["n_images"] == 8

    again = pyro_delta.load(tmp_path / "run")
    assert torch.equal(weights(again), weights(run))
    for attempt in (again.data, lambda: pyro_delta.check(again), lambda: pyro_delta.evaluate(tmp_path / "run")):
        with pytest.raises(UserError, match=r"the data of .*run were given in Python and are not kept with it"):
            attempt()
    assert pyro_delta.evaluate(again, data=data) == expected
    assert pyro_delta.evaluate(tmp_path / "run", data=data) == expected
    assert pyro_delta.check(again, data=data).numbers["n_images"] == 8
    code, _, err = call("evaluate", tmp_path / "run")
    assert (code, err.count("\n"), "were given in Python" in err) == (2, 1, True)

    with pytest.raises(UserError, match="were given in Python"):
        pyro_delta.resume(tmp_path / "run", {"training.steps": 6})
    longer = pyro_delta.resume(tmp_path / "run", {"training.steps": 6}, data=data, device="cpu")
    assert longer.metrics[-1]["step"] == 6
    assert longer.data() is data


def test_given_data_take_the_place_of_those_that_a_configuration_names(digits: Run, tmp_path: Path) -> None:
    """Or else the run would find other data by their name later."""
    tree = digits.config.model_dump()
    run = pyro_delta.train(validate(tree), data=toy_data(), out=tmp_path / "run", device="cpu")
    assert run.config.data.program == "given"
    assert run.spec == SPEC
    assert pyro_delta.load(tmp_path / "run").config == run.config
    assert {**run.config.model_dump(), "data": None} == {**tree, "data": None}


def test_other_data_of_the_same_kind_are_not_those_it_was_resumed_for(tmp_path: Path) -> None:
    run = train(toy_data(), out=tmp_path / "run")
    other = pyro_delta.load_data("digits")
    with pytest.raises(
        UserError, match=r"what is given holds images of shape 1×8×8 with 17 levels, but the run was made for"
    ):
        pyro_delta.resume(tmp_path / "run", {"training.steps": 6}, data=other, device="cpu")
    assert run.metrics[-1]["step"] == 4


def with_training(change: Callable[[Split], Split]) -> Callable[[Splits], Splits]:
    return lambda data: replace(data, train=change(data.train))


OTHERS = {
    "values": with_training(lambda split: replace(split, x=split.x.flip(2))),
    "order": with_training(lambda split: split.take(torch.arange(len(split)).flip(0))),
    "number": with_training(lambda split: split.take(slice(1, None))),
    "beside": with_training(lambda split: replace(split, extras={"beside": split.x[:, 0, 0, 0]})),
}
"""Data of the same spec, of which the training split differs."""


def test_training_goes_on_with_the_data_that_it_began_with(tmp_path: Path) -> None:
    data, folder = toy_data(), tmp_path / "run"
    run = train(data, out=folder)
    assert pyro_delta.evaluate(run)["data_as_trained"] is True
    for make in OTHERS.values():
        other = make(data)
        with pytest.raises(UserError, match=r"train data are not the \d+ that \S+run was made with, though of the sa"):
            pyro_delta.resume(folder, {"training.steps": 6}, data=other, device="cpu")
        assert pyro_delta.evaluate(folder, data=other)["data_as_trained"] is False
    found = pyro_delta.check(folder, data=other, **QUICK)
    assert found.numbers["data_as_trained"] is False
    assert "The data are not those that the run was trained on, or not all of them." in found.advice
    control = pyro_delta.train(control_config(run.config, 1), data=other, device="cpu")
    with pytest.raises(UserError, match=r"the control was trained on .*, whose data were others; give one"):
        pyro_delta.check(folder, data=data, control=control)

    resumed = pyro_delta.resume(folder, {"training.steps": 6}, data=other, device="cpu", other_data=True)
    assert resumed.trained_steps == 6

    # A run of the former format is taken at its word.
    former(folder)
    assert pyro_delta.evaluate(folder, data=other)["data_as_trained"] is None
    before = pyro_delta.load(folder)
    keep(before, found)  # leaves it what it was
    assert pyro_delta.load(folder).step == before.step


def test_data_may_be_any_object_with_a_spec_and_splits() -> None:
    class Own:
        """No subclass of anything, with a preset of its own."""

        preset = "photos"
        classes = None

        def __init__(self) -> None:
            data = toy_data()
            self.spec, self.train, self.validation, self.test = data.spec, data.train, data.validation, data.test

    run = train(Own())
    assert run.config.training.clip == 1.0  # as the preset has it
    assert pyro_delta.check(run).numbers["n_images"] == 8


# --- resume and load ---


def test_resumed_is_trained_in_one_go(tmp_path: Path) -> None:
    whole = train("digits", out=tmp_path / "whole", training__steps=6)
    train("digits", out=tmp_path / "parts", training__steps=2)
    shown: list[dict[str, Any]] = []
    settings = {"training.steps": 6}
    parts = pyro_delta.resume(tmp_path / "parts", settings, device="cpu", show=shown.append)
    assert parts.config == whole.config
    assert torch.equal(weights(parts), weights(whole))
    assert [line["step"] for line in parts.metrics if line["split"] == "train"] == [2, 4, 6]
    assert [line["step"] for line in shown if line["split"] == "train"] == [4, 6]
    assert torch.equal(weights(pyro_delta.load(str(tmp_path / "parts"))), weights(whole))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training.steps": 4}, "the run is at step 4 already"),
        ({"prior.dims": 3}, "prior.dims=2, not 3; leave that out to resume it"),
        ({"training.lrr": 3}, "did you mean 'training.lr'?"),
    ],
)
def test_refused_resumes(settings: dict[str, Any], words: str, digits: Run) -> None:
    assert digits.folder is not None
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        pyro_delta.resume(digits.folder, settings, device="cpu")


def test_only_runs_are_resumed_and_loaded(tmp_path: Path) -> None:
    for attempt in (pyro_delta.resume, pyro_delta.load, pyro_delta.check, pyro_delta.evaluate):
        with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
            attempt(tmp_path)


def test_loading_leaves_the_random_state_alone(digits: Run) -> None:
    assert digits.folder is not None
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    again = pyro_delta.load(digits.folder)
    assert torch.equal(torch.rand(3), expected)
    assert again.given is None
    assert again.metrics == digits.metrics
    assert repr(again) == repr(digits)


def test_an_auxiliary_prior_stands_in_for_the_models(tmp_path: Path) -> None:
    train("digits", out=tmp_path / "run", auxiliary__enabled=True, auxiliary__hidden=4)
    plain, auxiliary = (pyro_delta.load(tmp_path / "run", prior=prior) for prior in ("model", "auxiliary"))
    found, tighter = pyro_delta.evaluate(plain), pyro_delta.evaluate(auxiliary)
    assert tighter["distortion_bpd"] == found["distortion_bpd"]
    assert (found["delta_nats"], tighter["delta_nats"]) == (pytest.approx(3.0, rel=1e-6), None)


# --- Which weights ---


def test_the_best_weights_are_kept_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is made to say that the first of two was the better one."""
    judged: list[dict[str, Tensor]] = []
    encode, summarise = training.encode, training.summarise

    def seen(vae: Any, split: Split, **options: Any) -> Any:
        judged.append({name: value.clone() for name, value in vae.state_dict().items()})
        return encode(vae, split, **options)

    monkeypatch.setattr(training, "encode", seen)
    monkeypatch.setattr(training, "summarise", lambda *given: summarise(*given) | {"neg_elbo_bpd": float(len(judged))})
    run = train("digits", out=tmp_path / "run", auxiliary__enabled=True, auxiliary__hidden=4)
    best, last = (pyro_delta.load(tmp_path / "run", weights=which) for which in ("best", "last"))
    assert len(judged) == 2
    for found, expected in ((run, judged[0]), (best, judged[0]), (last, judged[1])):
        torch.testing.assert_close(dict(found.vae.state_dict()), expected, rtol=0, atol=0)
    assert [(r.weights, r.step, r.trained_steps, r.finished) for r in (run, best, last)] == [
        ("best", 2, 4, True), ("best", 2, 4, True), ("last", 4, 4, True),
    ]  # fmt: skip
    auxiliary = [pyro_delta.load(tmp_path / "run", prior="auxiliary", weights=which) for which in ("best", "last")]
    state = state_of(tmp_path / "run")
    kept = state["best"]["auxiliary"], state["auxiliary"]["average"]
    name = "network.lstm.weight_hh_l0"
    assert torch.equal(auxiliary[0].vae.model.prior.state_dict()[name], kept[0][name])
    assert torch.equal(auxiliary[1].vae.model.prior.state_dict()[name], kept[1][f"module.{name}"])
    assert not torch.equal(kept[0][name], kept[1][f"module.{name}"])
    numbers = pyro_delta.evaluate(best, images=5)
    assert {key: numbers[key] for key in best.facts} == best.facts
    assert (numbers["weights"], numbers["step"], numbers["finished"]) == ("best", 2, True)
    assert call("train-prior", tmp_path / "run", "--steps", 1, "--hidden", 4)[0] == 0
    assert pyro_delta.load(tmp_path / "run", prior="auxiliary").step == 2
    with pytest.raises(UserError, match=r"was trained for the weights of step 2, not for those of step 4; train it"):
        pyro_delta.load(tmp_path / "run", prior="auxiliary", weights="last")
    with pytest.raises(UserError, match="unknown weights 'bset'; did you mean 'best'"):
        pyro_delta.load(tmp_path / "run", weights="bset")


def test_without_validations_the_last_weights_are_those(tmp_path: Path) -> None:
    run = train("digits", out=tmp_path / "run", training__validations=0)
    for found in (run, pyro_delta.load(tmp_path / "run")):
        assert (found.weights, found.step) == ("last", 4)


def test_what_goes_with_every_number(digits: Run) -> None:
    assert digits.folder is not None
    facts = digits.facts
    assert facts["config_digest"] == digest(digits.config) == digest(read_config(digits.folder))
    assert facts["config_digest"] != digest(load_preset("digits"))
    assert facts["version"] == pyro_delta.__version__
    info = json.loads((digits.folder / "run.json").read_text())
    assert {key: info[key] for key in ("version", "commit", "config_digest")} == {
        key: facts[key] for key in ("version", "commit", "config_digest")
    }
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert str(facts["commit"]).removesuffix("-dirty") == head.stdout.strip()


def test_a_run_made_longer_has_the_digest_of_what_it_is(tmp_path: Path) -> None:
    train("digits", out=tmp_path / "run", training__steps=2)
    longer = pyro_delta.resume(tmp_path / "run", {"training.steps": 3}, device="cpu")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config_digest"] == longer.facts["config_digest"]


# --- check and evaluate ---


def test_evaluate_is_the_command(digits: Run) -> None:
    code, out, _ = call("evaluate", digits.folder, "--particles", 3, "--images", 10, "--json")
    assert code == 0
    numbers = json.loads(out)
    seen: list[int] = []
    for run in (digits, digits.folder, str(digits.folder)):
        found = pyro_delta.evaluate(run, particles=3, images=10, advance=seen.append)
        assert {key: numbers[key] for key in found} == pytest.approx(found)
    assert numbers.keys() - found.keys() == {"unit"}
    assert sum(seen) == 3 * (10 + 10)
    assert (found["n_images"], found["iw_images"], found["split_images"], found["seed"]) == (10, 10, 360, 0)
    assert found["iw_neg_elbo_bpd"] == pytest.approx(found["neg_elbo_bpd"], rel=1e-9)
    others = pyro_delta.evaluate(digits, images=10, seed=1)
    assert others["distortion_bpd"] != found["distortion_bpd"]
    other = pyro_delta.evaluate(digits, split="validation")
    assert other["n_images"] == len(digits.data().validation)
    assert other["neg_elbo_bpd"] == pytest.approx(digits.metrics[-1]["neg_elbo_bpd"], rel=1e-6)


def test_check_is_the_command(digits: Run) -> None:
    code, out, err = call("check", digits.folder, "--json")
    found = pyro_delta.check(digits)
    assert isinstance(found, Diagnosis)
    numbers = json.loads(out)
    assert numbers == {"split": "test", **found.asdict(), "failure": found.failure}
    assert (code, err) == (1, f"pyro-delta: {found.failure}\n")
    assert found.numbers["floor_holds"] is True
    assert found.numbers["n_images"] == len(digits.data().test)
    assert found.numbers["particles"] == 30
    assert "iw_bpd" not in pyro_delta.check(digits.folder, particles=1, **QUICK).numbers
    assert pyro_delta.check(digits, split="train", **QUICK).numbers["n_images"] == len(digits.data().train)


def test_data_of_ones_own_are_judged_in_the_place_of_the_runs(digits: Run) -> None:
    few = digits.data().test.take(slice(20))
    data = Splits(digits.spec, digits.data().train, few, few)
    assert pyro_delta.evaluate(digits, data=data)["n_images"] == 20
    assert pyro_delta.check(digits, data=data, split="validation").numbers["n_images"] == 20
    one = Splits(digits.spec, few, few, Split(few.x[:1]))
    with pytest.raises(UserError, match="there is 1 datum; to compare latents takes 4"):
        pyro_delta.check(digits, data=one)


def test_what_latents_buy_is_paired_with_a_control(tmp_path: Path) -> None:
    run = train("digits", out=tmp_path / "run")
    control = pyro_delta.train_control(run, device="cpu")
    assert control.folder == tmp_path / "run-control"
    assert control.config.likelihood.options["use_latents"] is False
    assert (control.trained_steps, control.config.training.seed) == (run.trained_steps, run.config.training.seed)
    assert run.config.model_dump() == {
        **control.config.model_dump(), "likelihood": run.config.likelihood.model_dump(),
    }  # fmt: skip
    found = pyro_delta.check(tmp_path / "run", control=tmp_path / "run-control", images=60, **QUICK).numbers
    chosen = subset(run.data().test, 60, 0)
    ours, theirs = encode(run.vae, chosen), encode(control.vae, chosen)
    for name, gain in (
        ("bought_nats", theirs.distortion - ours.distortion),
        ("net_bought_nats", theirs.distortion - ours.distortion - ours.rate),
    ):
        assert found[name] == pytest.approx(gain.mean().item(), rel=1e-9)
        assert found[f"{name}_se"] == pytest.approx(gain.std().item() / 60**0.5, rel=1e-9)
    assert found["control_bpd"] == pytest.approx(theirs.distortion.mean().item() / (64 * math.log(2)), rel=1e-9)
    assert (found["n_images"], found["split_images"], found["control_step"]) == (60, 360, control.step)

    shorter = train("digits", likelihood__use_latents=False, training__steps=2)
    advice = pyro_delta.check(run, control=shorter, images=20, **QUICK).advice
    assert "Run and control have had different numbers of steps, 4 and 2: part of what lies between them" in advice
    with pytest.raises(UserError, match="the control's decoder changes with z; give a run without latents"):
        pyro_delta.check(run, control=run, images=20)
    other = train("digits", likelihood__use_latents=False, training__steps=2, data__seed=1)
    with pytest.raises(UserError, match=r"the control was trained on .*data.seed=1, the run on .*data.seed=0"):
        pyro_delta.check(run, control=other, images=20)


@pytest.mark.parametrize(
    ("used", "bought", "said"), [(False, 16.4, True), (False, 0.5, False), (False, -9.0, False), (True, 16.4, False)]
)
def test_a_gain_that_z_does_not_tell_of(used: bool, bought: float, said: bool) -> None:
    words = _unexplained({"latents_used": used, "bought_nats": bought, "bought_nats_se": 0.4})
    assert ("The 16.4 nats by which" in words) is said


def test_a_likelihood_that_knows_no_control_says_so() -> None:
    config = load_preset("digits")
    options = {key: value for key, value in config.likelihood.options.items() if key != "use_latents"}
    own = config.model_copy(update={"likelihood": config.likelihood.model_copy(update={"options": options})})
    with pytest.raises(UserError, match="'gated_pixelcnn' has no option use_latents, by which a control would be made"):
        control_config(own, 3)


@pytest.mark.parametrize("judge", [pyro_delta.check, pyro_delta.evaluate])
def test_splits_have_three_names(judge: Any, digits: Run) -> None:
    with pytest.raises(UserError, match="unknown split 'tets'; did you mean 'test'"):
        judge(digits, split="tets")


NOT_DATA = {
    "a tensor": (torch.zeros(40, 3), r"an array of float32 of shape \(40, 3\) is (neither .*from_tensors|not what)"),
    "an array": (np.zeros((40, 3)), r"an array of float32 of shape \(40, 3\) is (neither .* nor tokens|not what)"),
    "a class": (Digits, "the data 'given' are the class Digits; they must be .*from_tensors"),
    "a number": (3, "the data 'given' are of type int; "),
}
"""given as data → what the sentence says of it"""
TAKE_DATA = {
    "train": lambda run, data: pyro_delta.train(SETTINGS, data=data),
    "resume": lambda run, data: pyro_delta.resume(run.folder, {"training.steps": 6}, data=data),
    "check": lambda run, data: pyro_delta.check(run, data=data),
    "evaluate": lambda run, data: pyro_delta.evaluate(run, data=data),
}


@pytest.mark.parametrize("entry", TAKE_DATA)
@pytest.mark.parametrize("given", NOT_DATA)
def test_what_is_not_data_is_refused_in_a_sentence(entry: str, given: str, digits: Run) -> None:
    data, words = NOT_DATA[given]
    with pytest.raises(UserError, match=f"^{words}"):
        TAKE_DATA[entry](digits, data)


@pytest.mark.parametrize("entry", TAKE_DATA)
def test_a_name_of_data_may_be_a_path(entry: str, digits: Run) -> None:
    with pytest.raises(UserError, match=r"there is no data folder nowhere"):
        TAKE_DATA[entry](digits, Path("folder:nowhere"))


@pytest.mark.parametrize("entry", ["resume", "check", "evaluate"])
def test_a_run_is_of_one_kind_of_data(entry: str, digits: Run) -> None:
    with pytest.raises(
        UserError, match=r"what is given holds images of .*, but the run was made for images of .*; give data of"
    ):
        TAKE_DATA[entry](digits, toy_data())


SMALL = {"particles": (0, 1), "weighed": (0, 1), "told_images": (0, 1), "seed": (-1, 0)}
"""name → a number that is too small, and the least"""


@pytest.mark.parametrize("name", SMALL)
def test_numbers_that_are_too_small(name: str, digits: Run) -> None:
    value, least = SMALL[name]
    judges = [pyro_delta.check, pyro_delta.diagnose]
    judges += [pyro_delta.evaluate] if name in ("particles", "seed") else []
    for judge in judges:
        with pytest.raises(UserError, match=f"^{name}={value} has no meaning; give a whole number, {least} or more"):
            judge(digits, **{name: value})  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior": "aux"}, "unknown prior of a run 'aux'; did you mean 'auxiliary'"),
        ({"device": "gpu"}, "the device 'gpu' is not known; give auto, cpu or cuda"),
        ({"device": "meta"}, "the device 'meta' is not known; give auto, cpu or cuda"),
        ({"device": "cuda:77"}, "--device cuda:77: torch finds no CUDA device here"),
    ],
)
def test_runs_are_loaded_as_is_said(options: dict[str, Any], words: str, digits: Run) -> None:
    assert digits.folder is not None
    with pytest.raises(UserError, match=words):
        pyro_delta.load(digits.folder, **options)
    if "device" in options:
        with pytest.raises(UserError, match=words):
            pyro_delta.train(SETTINGS, data="digits", **options)


class Bare(Spec):
    """Of three numbers; no dataclass."""

    shape = (3,)


def local_spec() -> Any:
    @dataclass(frozen=True)
    class Local(ArraySpec):
        pass

    return Local((3,))


@pytest.mark.parametrize("spec", [Bare(), local_spec()], ids=["no dataclass", "of a function"])
def test_a_spec_that_cannot_be_kept_is_refused_before_training(spec: Any, tmp_path: Path) -> None:
    split = Split(torch.zeros(4, 3))
    with pytest.raises(UserError, match=r"^the spec \S+ of the data cannot be kept with a run; make its"):
        create(tmp_path / "run", load_preset("default"), Splits(spec, split, split, split), "default")
    assert not (tmp_path / "run").exists()


def test_data_are_taken_by_name_and_runs_by_their_folder(digits: Run) -> None:
    assert digits.folder is not None
    assert pyro_delta.evaluate(digits, data="digits") == pyro_delta.evaluate(digits)
    assert pyro_delta.load_data(Path("digits")).spec == digits.spec
    found = [pyro_delta.diagnose(run, **QUICK) for run in (digits, str(digits.folder))]
    assert found[0].unit == "bits/dim"
    assert found[0].numbers["neg_elbo_bpd"] == found[1].numbers["neg_elbo_bpd"]
    assert found[0].numbers["n_images"] == len(digits.data().test)
    assert pyro_delta.verify(str(digits.folder)).asdict() == pyro_delta.verify(digits.vae, digits.spec).asdict()
    with pytest.raises(UserError, match=r"call verify\(vae, spec\), or verify\(run\)"):
        pyro_delta.verify(digits.vae)
    for entry in (pyro_delta.train_control, pyro_delta.check, pyro_delta.evaluate):
        with pytest.raises(UserError, match="int is not a run; give what `train` or `load` returned, or its folder"):
            entry(3)


# --- what it imports ---


@pytest.mark.parametrize(
    "script",
    [
        "import pyro_delta",
        "import pyro_delta; dir(pyro_delta), pyro_delta.__version__",
        "import pyro_delta.protocol, pyro_delta.data, pyro_delta.data.images, pyro_delta.data.sequences",
        "from pyro_delta.data import ArraySpec, Spec; ArraySpec((3, 2)).positions",
        "import pyro_delta.config, pyro_delta.programs; pyro_delta.config.preset_names()",
    ],
)
def test_importing_it_loads_no_torch(script: str) -> None:
    check = f"import sys\n{script}\nassert not {{'torch', 'pyro', 'jax', 'numpyro', 'PIL', 'rich'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_its_names_are_there() -> None:
    assert set(pyro_delta.__all__) <= set(dir(pyro_delta))
    for name in pyro_delta.__all__:
        assert getattr(pyro_delta, name) is not None
    with pytest.raises(AttributeError, match="module 'pyro_delta' has no attribute 'trian'"):
        pyro_delta.trian  # noqa: B018
