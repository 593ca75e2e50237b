"""The paper's cast through the commands: pairs of programs, objectives of the baselines, the auxiliary prior."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forged import newest, state_of
from test_cli import SETS, call

from pyro_delta.programs import SHIPPED

CAST = [*(part for part in SETS if part != "--set"), "training.skip=null"]


def train(folder: Path, *args: object, sets: tuple[str, ...] = (), steps: int = 4) -> list[dict[str, Any]]:
    """A run on the digits; its lines of metrics."""
    given = {pair.split("=")[0] for pair in sets}
    pairs = [pair for pair in CAST if pair.split("=")[0] not in given and not pair.startswith("prior.")]
    options = [part for pair in (*pairs, *sets) for part in ("--set", pair)]
    preset = ("--preset", "cifar10-small", "--dataset", "digits", "--device", "cpu")
    code, _, err = call("train", *preset, "--steps", steps, "--out", folder, *options, *args)
    assert code == 0, err
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(*args: object, code: int = 0) -> dict[str, Any]:
    """What a command prints with --json."""
    found, out, err = call(*args, "--json")
    assert found == code, err
    return json.loads(out)


# --- programs ---


NEEDED = {"ar1_learned": ("prior.floor_nats=4",), "matern": ("prior.rate_nats=4",)}


@pytest.mark.parametrize("guide", SHIPPED["guide"])
@pytest.mark.parametrize("prior", SHIPPED["prior"])
def test_every_shipped_pair_trains_and_keeps_its_floor_or_is_refused(prior: str, guide: str, tmp_path: Path) -> None:
    options = ("--prior", prior, "--guide", guide)
    sets = tuple(part for pair in NEEDED.get(prior, ()) for part in ("--set", pair))
    words = None
    if guide == "contour" and prior != "standard_normal":
        words = "needs a standard normal prior"
    elif guide == "gru":
        sets += ("--dataset", "descriptions", "--set", "likelihood.hidden=8", "--set", "guide.hidden=8")
        words = "takes images, not data of TokenSpec" if prior == "lattice" else None
    elif guide == "transformer":
        small = ("hidden=8", "layers=1", "heads=2")
        sets += ("--dataset", "descriptions", "--likelihood", "transformer")
        sets += tuple(
            part for kind in ("likelihood", "guide") for size in small for part in ("--set", f"{kind}.{size}")
        )
        words = "takes images, not data of TokenSpec" if prior == "lattice" else None
    elif guide == "spectral":
        words = "takes sounds, not data of ImageSpec"
    if words is not None:
        code, _, err = call("train", *options, *sets, "--out", tmp_path / "run")
        assert (code, err.count("\n"), words in err) == (2, 1, True), err
        return
    if guide in ("gru", "transformer"):
        code, _, err = call("train", *options, *sets, "--steps", 2, "--device", "cpu", "--out", tmp_path / "run")
        assert code == 0, err
    else:
        train(tmp_path / "run", *options, sets=NEEDED.get(prior, ()), steps=2)
    few = ("--images", 60, "--told-images", 16, "--told-samples", 4)
    found = numbers("check", tmp_path / "run", *few, code=1)  # two steps teach nobody to use latents
    assert found["floor_holds"] is True
    assert found["rate_nats_min"] >= found["delta_nats"] * (1 - 1e-9)


def test_a_learned_prior_logs_its_floor_and_what_it_commits_now(tmp_path: Path) -> None:
    lines = train(tmp_path / "run", "--prior", "ar1_learned", sets=("prior.floor_nats=4",), steps=10)
    training = [line for line in lines if line["split"] == "train"]
    assert [line["delta_nats"] for line in training] == pytest.approx([4.0] * len(training))
    assert all(line["committed_nats"] > 4 for line in training)


# --- objectives ---


@pytest.mark.parametrize(
    ("objective", "extra", "key"),
    [
        ("beta", ("objective.beta=0.5",), None),
        ("free_bits", ("objective.free_nats=1000",), None),
        ("free_bits_per_dim", ("objective.free_nats=1000",), None),
        ("annealed", ("objective.anneal_steps=10",), "beta"),
        ("target_rate", ("objective.target_nats=50",), "multiplier"),
    ],
)
def test_objectives_are_logged_beside_the_true_elbo(
    objective: str, extra: tuple[str, ...], key: str | None, tmp_path: Path
) -> None:
    sets = (f"objective.program={objective}", *extra, "prior.alpha=0")
    lines = train(tmp_path / "run", sets=sets, steps=5)
    line = next(line for line in lines if line["split"] == "train")
    assert line["neg_elbo_bpd"] == pytest.approx(line["distortion_bpd"] + line["rate_bpd"], rel=1e-5)
    assert line["loss_bpd"] != pytest.approx(line["neg_elbo_bpd"], rel=1e-9)
    if key:
        assert line[key] > 0
    found = numbers("evaluate", tmp_path / "run")
    assert "loss_bpd" not in found


# --- the auxiliary prior ---


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an auxiliary prior trained beside it."""
    folder = tmp_path_factory.mktemp("beside") / "run"
    train(folder, sets=("auxiliary.enabled=true", "auxiliary.hidden=8", "prior.rate_nats=4"), steps=10)
    return folder


def test_beside_the_model_it_is_logged_saved_and_used(beside: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (beside / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["auxiliary_rate_nats"]) for line in lines if line["split"] == "train")
    plain, tighter = numbers("evaluate", beside), numbers("evaluate", beside, "--with-prior", "auxiliary")
    assert tighter["distortion_bpd"] == plain["distortion_bpd"]  # the same draws of z
    assert tighter["delta_nats"] is None
    assert tighter["rate_bpd_se"] > 0
    assert tighter["neg_elbo_bpd"] == pytest.approx(tighter["distortion_bpd"] + tighter["rate_bpd"], rel=1e-6)
    model, auxiliary = tmp_path / "model.png", tmp_path / "auxiliary.png"
    for prior, out in (("model", model), ("auxiliary", auxiliary)):
        assert call("sample", beside, "--with-prior", prior, "--num", 4, "--out", out)[0] == 0
    assert model.read_bytes() != auxiliary.read_bytes()


def test_a_run_with_an_auxiliary_prior_is_resumed(beside: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beside, tmp_path / "run")
    assert call("train", "--resume", "--out", folder, "--steps", 12)[0] == 0
    before, after = (state_of(run)["auxiliary"] for run in (beside, folder))
    assert all(not torch.equal(before["prior"][k], after["prior"][k]) for k in before["prior"] if "weight" in k)


def test_afterwards_it_leaves_the_run_as_it_was_and_takes_the_others_place(beside: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beside, tmp_path / "run")
    checkpoint, before = newest(folder).read_bytes(), numbers("evaluate", folder)
    trained = numbers("train-prior", folder, "--steps", 60, "--hidden", 16, "--mixtures", 2)
    assert trained["step"] == 60
    assert newest(folder).read_bytes() == checkpoint
    assert numbers("evaluate", folder) == before
    beside_rate = numbers("evaluate", beside, "--with-prior", "auxiliary")["rate_nats_mean"]
    after = numbers("evaluate", folder, "--with-prior", "auxiliary")
    assert after["rate_nats_mean"] != beside_rate
    assert after["rate_nats_mean"] < before["rate_nats_mean"]
    assert after["distortion_bpd"] == before["distortion_bpd"]
    iw = numbers("evaluate", folder, "--with-prior", "auxiliary", "--particles", 3, "--images", 10)
    assert math.isfinite(iw["iw_bpd"])


@pytest.mark.parametrize("guide", ["contour", "structured"])
def test_guides_that_know_their_rate_commit_none_against_it(guide: str, tmp_path: Path) -> None:
    train(tmp_path / "run", "--prior", "standard_normal", "--guide", guide, sets=("auxiliary.enabled=true",), steps=2)
    assert numbers("evaluate", tmp_path / "run")["delta_nats"] is not None
    assert numbers("evaluate", tmp_path / "run", "--with-prior", "auxiliary")["delta_nats"] is None


def test_a_run_without_one_says_how_to_get_one(tmp_path: Path) -> None:
    train(tmp_path / "run", steps=2)
    for command in (("evaluate",), ("sample", "--num", 1, "--out", tmp_path / "x.png")):
        code, _, err = call(*command[:1], tmp_path / "run", *command[1:], "--with-prior", "auxiliary")
        assert code == 2
        assert err.count("\n") == 1
        assert f"pyro-delta train-prior {tmp_path / 'run'}" in err
    assert not (tmp_path / "x.png").exists()


def test_a_prior_that_diverges_is_not_kept(beside: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(beside, tmp_path / "run")
    code, _, err = call("train-prior", folder, "--steps", 60, "--hidden", 8, "--lr", 1e30)
    assert (code, err.count("\n")) == (1, 1)
    assert "were not finite" in err
    assert not (folder / "auxiliary.safetensors").exists()
