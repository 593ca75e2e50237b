"""What people mistype, and what files may hold: one sentence that names it, exit code 2, and nothing written."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forged import forge, former, state_of
from PIL import Image
from test_cli import SETTINGS, TINY, call, contents, write_images

from pyro_delta.cli import COMMANDS
from pyro_delta.config import settings_of_file
from pyro_delta.sweep.file import read


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    code, _, err = call("train", *TINY, "--steps", 20, "--out", folder)
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another kind of data."""
    folder = tmp_path_factory.mktemp("text") / "text"
    sets = ("--set", "training.validations=0", "--set", "guide.hidden=4", "--set", "likelihood.hidden=4")
    code, _, err = call("train", "--dataset", "descriptions", "--device", "cpu", "--steps", 1, *sets, "--out", folder)
    assert code == 0, err
    return folder


Prepare = Callable[[Path, Path], None]
"""Fills the current folder; the second path is that of a finished run."""

# --- Rows whose words stand in the sentence as they are ---


def odd_images(size: int, mode: str) -> Prepare:
    def prepare(here: Path, trained: Path) -> None:
        write_images(here / "images", 3)
        noise = np.zeros((size, size, 4), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(here / "images" / "train" / "z.png")

    return prepare


def damaged_image(here: Path, trained: Path) -> None:
    write_images(here / "images", 3)
    (here / "images" / "train" / "1.png").write_bytes(b"\x89PNG no more")


def empty_folder(here: Path, trained: Path) -> None:
    for split in ("train", "test"):
        (here / "images" / split).mkdir(parents=True)


def a_file(here: Path, trained: Path) -> None:
    (here / "file").write_text("precious")


def full_folder(here: Path, trained: Path) -> None:
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter.txt").write_text("precious")


def a_run(here: Path, trained: Path) -> None:
    shutil.copytree(trained, here / "run")


def run_with(name: str, content: bytes | None, forged: bool = True) -> Prepare:
    """A run of which files are replaced, or taken away, and the checksums with them."""

    def prepare(here: Path, trained: Path) -> None:
        a_run(here, trained)
        for path in (here / "run").glob(name):
            path.unlink()
            if content is not None:
                path.write_bytes(content)
        if forged:
            forge(here / "run")

    return prepare


def without(*names: str) -> Prepare:
    """A run without some of its files; where checkpoints are, its manifest has lost them, too."""

    def prepare(here: Path, trained: Path) -> None:
        a_run(here, trained)
        for name in names:
            for path in (here / "run").glob(name):
                path.unlink()
        if (here / "run" / "manifest.json").exists():
            forge(here / "run")

    return prepare


def truncated(here: Path, trained: Path) -> None:
    a_run(here, trained)
    for path in (here / "run").glob("checkpoint-*"):
        path.write_bytes(path.read_bytes()[:9999])


def foreign(here: Path, trained: Path) -> None:
    a_run(here, trained)
    for path in (here / "run").glob("checkpoint-*"):
        torch.save({"weight": torch.zeros(3)}, path)
    forge(here / "run")


def of_format(number: Any) -> Prepare:
    """A run of another format: run.json says its number, the first one said none."""

    def prepare(here: Path, trained: Path) -> None:
        a_run(here, trained)
        path = here / "run" / "run.json"
        info = json.loads(path.read_text())
        del info["format"]
        path.write_text(json.dumps(info if number is None else {**info, "format": number}))
        if number is None:
            (here / "run" / "manifest.json").unlink()  # it had none
        else:
            forge(here / "run")

    return prepare


def of_the_former_version(here: Path, trained: Path) -> None:
    """A run as it was written before formats had numbers."""
    of_format(None)(here, trained)
    run = here / "run"
    info, config = (json.loads((run / name).read_text()) for name in ("run.json", "config.json"))
    info["spec"] = {key: value for key, value in info["spec"].items() if key != "kind"}
    config["data"]["name"] = config["data"].pop("program")
    config["training"]["objective"] = config.pop("objective")["program"]
    state = state_of(run)
    state = {**state, "config": config, "programs": state.pop("vae"), "format": "pyro-delta checkpoint 1"}
    (run / "run.json").write_text(json.dumps(info))
    (run / "config.json").write_text(json.dumps(config))
    torch.save(state, run / "checkpoint.pt")


def former_checkpoint(here: Path, trained: Path) -> None:
    a_run(here, trained)
    former(here / "run")
    torch.save({"format": "pyro-delta checkpoint 1"}, here / "run" / "checkpoint.pt")


def edited(section: str, **settings: Any) -> Prepare:
    """A run whose config.json was edited by hand."""

    def prepare(here: Path, trained: Path) -> None:
        a_run(here, trained)
        path = here / "run" / "config.json"
        tree = json.loads(path.read_text())
        tree[section] |= settings
        path.write_text(json.dumps(tree))
        forge(here / "run")

    return prepare


def damaged_metrics(line: bytes) -> Prepare:
    """A run whose third line of metrics is another."""

    def prepare(here: Path, trained: Path) -> None:
        a_run(here, trained)
        path = here / "run" / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:2], line + b"\n", *lines[3:]]))
        forge(here / "run")

    return prepare


def one_image(here: Path, trained: Path) -> None:
    write_images(here / "images", 1)


def nothing(here: Path, trained: Path) -> None:
    pass


TRAIN = ["train", *TINY, "--out", "new"]
RESUME = ["train", "--resume", "--out", "run", "--steps", "30"]
FOLDER = ["train", *(part if part != "digits" else "folder:images" for part in TINY), "--steps", "1", "--out", "new"]


def training(*args: str) -> list[str]:
    return [*TRAIN, "--steps", "1", *args]


def setting(pair: str) -> list[str]:
    """TRAIN with a setting; one that SETTINGS has already takes its place."""
    key = pair.partition("=")[0]
    sets = [part for k, v in SETTINGS.items() if k != key for part in ("--set", f"{k}={v}")]
    if key == "prior.alpha":
        sets = [part for k, v in SETTINGS.items() if k != "prior.rate_nats" for part in ("--set", f"{k}={v}")]
    return [*TRAIN[:7], *sets, "--out", "new", "--steps", "1", "--set", pair]


OLDER = "pyro-delta: run was written by an older pyro-delta (format 1, this one reads 2 and 3); train the run again.\n"
OLDER_CHECKPOINT = (
    "pyro-delta: run/checkpoint.pt was written by an older pyro-delta, whose networks have changed since; train the "
    "run again.\n"
)
BAD: dict[str, tuple[list[str], str, Prepare]] = {
    "no such command": (["trian"], "did you mean 'train'?", nothing),
    "no such option": (["train", "--stepz", "3"], "--stepz", nothing),
    "no such data set": (["train", "--dataset", "digit"], "did you mean 'digits'?", nothing),
    "folder without path": (
        ["train", "--dataset", "folder:"],
        "the data 'folder:' lack what follows the colon; write folder:PATH.",
        nothing,
    ),
    "no such preset": (["train", "--preset", "cifar10-smal"], "did you mean 'cifar10-small'?", nothing),
    "no such elbo": (training("--elbo", "renyi"), "'renyi' is not one of 'trace', 'mean_field'", nothing),
    "no such device": (training("--device", "gpu"), "'gpu' is not one of", nothing),
    "no such kind": (["list", "guids"], "did you mean 'guides'?", nothing),
    "no such split": (["check", "run", "--split", "tst"], "'tst' is not one of", a_run),
    "typo in --set": (setting("training.lrr=1"), "did you mean 'training.lr'?", nothing),
    "--set without value": (training("--set", "training.lr"), "not of the form key=value", nothing),
    "--set without key": (training("--set", "=3"), "not of the form key=value", nothing),
    "--set without section": (training("--set", "lr=4"), "did you mean 'training.lr' or 'auxiliary.lr'?", nothing),
    "text for a number": (setting("training.lr=fast"), "training.lr", nothing),
    "NaN": (setting("training.lr=NaN"), "finite", nothing),
    "alpha 1": (setting("prior.alpha=1"), "alpha 1 is outside (-1, 1)", nothing),
    "alpha -1.5": (setting("prior.alpha=-1.5:0.5"), "alpha -1.5 is outside (-1, 1)", nothing),
    "alpha NaN": (setting("prior.alpha=nan"), "alpha nan is outside (-1, 1)", nothing),
    "alpha NaN of JSON": (setting("prior.alpha=NaN"), "alpha nan is outside (-1, 1)", nothing),
    "alpha and rate": (training("--set", "prior.alpha=0.5"), "contradict each other", nothing),
    "rate NaN": (setting("prior.rate_nats=NaN"), "finite", nothing),
    "rate infinite": (setting("prior.rate_nats=Infinity"), "finite", nothing),
    "rate negative": (setting("prior.rate_nats=-1"), "cannot be committed", nothing),
    "rate unreachable": (setting("prior.rate_nats=1e9"), "out of reach", nothing),
    "no dimension": (setting("prior.dims=0"), "dims is 0", nothing),
    "too many dimensions": (setting("prior.dims=100000000000"), "dims is 100000000000", nothing),
    "no step": (setting("prior.length=0"), "prior.length", nothing),
    "length of one": (setting("prior.length=1"), "commits no rate", nothing),
    "length that does not divide": (setting("prior.length=3"), "does not divide the 8 positions of the data", nothing),
    "batch too large": (setting("training.batch=5000"), "5000", nothing),
    "validation too large": (setting("data.validation=5000"), "5000", nothing),
    "zero steps": ([*TRAIN, "--steps", "0"], "training.steps", nothing),
    "minutes NaN": ([*TRAIN, "--minutes", "nan"], "finite", nothing),
    "steps and minutes": (training("--minutes", "1"), "contradict each other", nothing),
    "steps twice": (training("--set", "training.steps=2"), "training.steps is set twice", nothing),
    "negative seed": (training("--seed", "-1"), "training.seed", nothing),
    "huge seed": (training("--seed", "99999999999999999999999"), "training.seed", nothing),
    "sample: huge seed": (["sample", "run", "--num", "1", "--out", "a.png", "--seed", str(2**63)], "--seed", nothing),
    "delta: alpha 1": (["delta", "--length", "8", "--dims", "2", "--alpha", "1"], "outside (-1, 1)", nothing),
    "delta: alpha -2": (["delta", "--length", "8", "--dims", "2", "--alpha=-2"], "outside (-1, 1)", nothing),
    "delta: alpha nan": (["delta", "--length", "8", "--dims", "2", "--alpha", "nan"], "nan", nothing),
    "delta: no step": (["delta", "--length", "0", "--dims", "2", "--alpha", "0.5"], "length is 0", nothing),
    "delta: no dimension": (["delta", "--length", "8", "--dims", "0", "--alpha", "0.5"], "dims is 0", nothing),
    "delta: rate nan": (["delta", "--length", "8", "--dims", "2", "--rate-bits", "nan"], "nan", nothing),
    "delta: rate beyond": (["delta", "--length", "8", "--dims", "2", "--rate-bits", "1e9"], "out of reach", nothing),
    "delta: two ways": (
        ["delta", "--length", "8", "--dims", "2", "--rate-bits", "1", "--alpha", "0.5"],
        "exactly one of",
        nothing,
    ),
    "no data folder": (FOLDER, "there is no data folder images", nothing),
    "one image": (FOLDER, "1 is left to divide; add data", one_image),
    "empty data folder": (FOLDER, "holds no images", empty_folder),
    "damaged image": (FOLDER, "1.png is not a readable image", damaged_image),
    "mixed sizes": (FOLDER, "bring all images to one size", odd_images(9, "L")),
    "mixed modes": (FOLDER, "convert all images to one", odd_images(8, "RGB")),
    "wrong channels": (FOLDER, "neither grey (L) nor RGB", odd_images(8, "RGBA")),
    "out holds a run": (["train", *TINY, "--out", "run", "--steps", "1"], "holds another run", a_run),
    "out is not empty": (["train", *TINY, "--out", "thesis", "--steps", "1"], "holds no run", full_folder),
    "out is a file": (["train", *TINY, "--out", "file", "--steps", "1"], "is a file", a_file),
    "out below a file": (["train", *TINY, "--out", "file/x", "--steps", "1"], "cannot write file/x", a_file),
    "out not writable": (["train", *TINY, "--out", "/proc/pyro-delta", "--steps", "1"], "/proc/pyro-delta", nothing),
    "resume without out": (["train", "--resume"], "--resume needs --out", nothing),
    "resume of nothing": (["train", "--resume", "--out", "new"], "is not a run", nothing),
    "resume backwards": (["train", "--resume", "--out", "run", "--steps", "10"], "at step 20 already", a_run),
    "resume other seed": (["train", "--resume", "--out", "run", "--seed", "1"], "training.seed=0, not 1", a_run),
    "resume other data": (["train", "--resume", "--out", "run", "--dataset", "photos"], "data.program=digits", a_run),
    "resume other elbo": (["train", "--resume", "--out", "run", "--elbo", "trace"], "training.elbo=mean_field", a_run),
    "resume other preset": (["train", "--resume", "--out", "run", "--preset", "digits"], "the preset", a_run),
    "resume other setting": (["train", "--resume", "--out", "run", "--set", "prior.dims=3"], "prior.dims=2", a_run),
    "resume truncated": (
        ["train", "--resume", "--out", "run", "--steps", "30"],
        "all 2 checkpoints of run are damaged",
        truncated,
    ),
    "evaluate no run": (["evaluate", "new"], "is not a run", nothing),
    "evaluate a file": (["evaluate", "file"], "file is a file, not a run", a_file),
    "evaluate truncated": (["evaluate", "run"], "all 2 checkpoints of run are damaged or missing", truncated),
    "evaluate foreign": (["evaluate", "run"], "truncated or no checkpoint", foreign),
    "evaluate misfit": (["evaluate", "run"], "guide.features=9, but the run was", edited("guide", features=9)),
    "evaluate other rate": (["evaluate", "run"], "prior.rate_nats=5.0, but", edited("prior", rate_nats=5)),
    "resume other rate": (RESUME, "run/config.json has prior.rate_nats=5.0, but", edited("prior", rate_nats=5)),
    "resume other weight decay": (RESUME, "training.weight_decay=0.5, but", edited("training", weight_decay=0.5)),
    "evaluate a run of format 1": (["evaluate", "run"], OLDER, of_format(None)),
    "evaluate a former run": (["evaluate", "run"], OLDER, of_the_former_version),
    "check a former run": (["check", "run"], OLDER, of_the_former_version),
    "resume a former run": (RESUME, OLDER, of_the_former_version),
    "sample a former run": (["sample", "run", "--num", "1", "--out", "a.png"], OLDER, of_the_former_version),
    "encode a former run": (["encode", "run", "test", "--out", "a.nc"], OLDER, of_the_former_version),
    "train-prior of a former run": (["train-prior", "run"], OLDER, of_the_former_version),
    "crosscheck a former run": (["crosscheck", "run"], OLDER, of_the_former_version),
    "evaluate a run of format 4": (
        ["evaluate", "run"],
        OLDER.replace("an older", "a newer").replace("1,", "4,"),
        of_format(4),
    ),
    "evaluate a run of no format": (["evaluate", "run"], "run/run.json is missing or damaged", of_format("new")),
    "evaluate a former checkpoint": (["evaluate", "run"], OLDER_CHECKPOINT, former_checkpoint),
    "resume a former checkpoint": (RESUME, "it is read, but not gone on with", former_checkpoint),
    "resume metrics cut": (RESUME, "run/metrics.jsonl is damaged: line 3", damaged_metrics(b'{"step": 2')),
    "resume metrics 3": (RESUME, "run/metrics.jsonl is damaged: line 3", damaged_metrics(b"3")),
    "resume metrics {}": (RESUME, "run/metrics.jsonl is damaged: line 3", damaged_metrics(b"{}")),
    "resume metrics bytes": (RESUME, "run/metrics.jsonl is damaged: line 3", damaged_metrics(b"\xff\xfe")),
    "resume without checkpoint": (RESUME, "without --resume", run_with("checkpoint-*", None)),
    "resume a file": (["train", "--resume", "--out", "file"], "file is a file, not a run", a_file),
    "check without checkpoint": (["check", "run"], "no checkpoint yet", run_with("checkpoint-*", None)),
    "check empty checkpoint": (["check", "run"], "truncated", run_with("checkpoint-*", b"")),
    "check damaged config": (["check", "run"], "is damaged: it is not JSON", run_with("config.json", b"{")),
    "check changed config": (
        ["check", "run"],
        "run/config.json is damaged or was",
        run_with("config.json", b"{", False),
    ),
    "check without manifest": (["check", "run"], "run/manifest.json is missing", without("manifest.json")),
    "check damaged manifest": (
        ["check", "run"],
        "run/manifest.json is damaged",
        run_with("manifest.json", b"{", False),
    ),
    "train over metrics": (["train", *TINY, "--out", "run"], "metrics of a run, but no checkpoint", without("chec*")),
    "check odd config": (["check", "run"], "run/config.json is damaged", run_with("config.json", b"[]")),
    "check damaged info": (["check", "run"], "missing or damaged", run_with("run.json", b"{}")),
    "too many images to check": (["check", "run", "--images", "361"], "give 1 to 360", a_run),
    "too few images to check": (["check", "run", "--images", "3"], "to compare latents takes 4", a_run),
    "control on resuming": (["train", "--resume", "--control", "--out", "run"], "goes with a new run", a_run),
    "control that is not a run": (["check", "run", "--control", "no"], "no is not a run", a_run),
    "too many images": (["evaluate", "run", "--images", "361", "--particles", "2"], "give 1 to 360", a_run),
    "no particle": (["evaluate", "run", "--particles", "0"], "--particles", a_run),
    "no image": (["sample", "run", "--num", "0", "--out", "a.png"], "--num", a_run),
    "no decoding": (["sample", "run", "--num", "1", "--same-z", "0", "--out", "a.png"], "--same-z", a_run),
    "no such picture folder": (["sample", "run", "--num", "1", "--out", "no/a.png"], "there is no folder no", a_run),
    "not a png": (["sample", "run", "--num", "1", "--out", "a.jpg"], "ends in .png", a_run),
    "picture not writable": (["sample", "run", "--num", "1", "--out", "/proc/a.png"], "/proc/a.png", a_run),
}


# --- Rows of one line: the command, and what the sentence says, with … for whatever stands between ---

TYPED = """
train --dataset photo --out new => unknown data 'photo'; did you mean 'photos'?
train --dataset folder:file --out new => there is no data folder file
train --dataset folder:empty --out new => empty holds no images; put files ending in
train --dataset folder:empty --out new --set data.size=0 => data.size: Input should be greater than or equal to 1
train --dataset folder:empty --out new --set data.sise=32 => unknown setting … did you mean 'data.size'
train --dataset folder:empty --out new --set data.mode=RGB => data.mode: Input should be 'grey', 'grey_alpha', 'rgb' or
train --dataset digits --out new --set data.size=32 => unknown setting … 'data.size'
train --out new --dataset binarised_mnist --data-root empty => there is no binarized_mnist_train.amat in … put binarized
train --out new --dataset binarized_mnist => unknown data 'binarized_mnist'; did you mean 'binarised_mnist'?
train --dataset '' --out new => the argument after '--dataset' is empty
train --out '' --steps 1 => the argument after '--out' is empty
train --out new --preset cifar => unknown preset 'cifar'
train --out new extra => unexpected extra argument (extra)
train --out new --prior arr1 => unknown prior 'arr1'; did you mean 'ar1'?
train --out new --prior nothere.py:Prior => cannot read the program nothere.py
train --out new --prior file:Prior => there is no module file for the prior 'file:Prior'
train --out new --prior os:getcwd => os:getcwd fails
train --out new --guide ar1 => unknown guide 'ar1'; known: anti_causal
train --out new --likelihood anti_causal => unknown likelihood 'anti_causal'
train --out new --likelihood gru => the likelihood gru takes sequences of tokens, and series, not data of ImageSpec
train --out new --likelihood wavenet => the likelihood wavenet takes sounds, not data of ImageSpec
train --out new --guide spectral => the guide spectral takes sounds, not data of ImageSpec
train --out new --dataset speech --data-root empty => there is no folder empty/speech/digits; put the folders
train --out new --dataset audio:file => there is no data folder file; give one that holds train/ and test/.
train --out new --dataset audio: => the data 'audio:' lack what follows the colon; write audio:PATH.
train --out new --dataset audio:empty --set data.length=0 => data.length … got 0
train --out new --bitrate 5 => prior.bitrate=5 is of data that last some time; set prior.rate_nats for these.
train --out new --bitrate 5 --set prior.alpha=0.5 => prior.alpha and prior.bitrate contradict each other
train --out new --bitrate fast => '--bitrate': 'fast' is not a valid float
delta --length 80 --dims 4 --bitrate 30 => --bitrate goes with --seconds
delta --length 80 --dims 4 --bitrate 98 --seconds 1.6 => a bitrate of 98 bits a second is not from 0 up to 97.5
delta --length 80 --dims 4 --bitrate nan --seconds 1.6 => a bitrate of nan bits a second
delta --length 80 --dims 4 --alpha 0.5 --seconds 0 => --seconds 0 is no time; give a number above 0.
delta --length 80 --dims 4 --rate-bits 5 --bitrate 5 --seconds 2 => stands in the place of --rate-bits
train --out new --dataset descriptions --guide anti_causal => takes images, not data of TokenSpec
train --out new --guide contour --set guide.rate_nats=4 => needs a standard normal prior, not GaussianAR1
train --out new --guide contour --prior standard_normal --set guide.rate_nats=1e9 => guide.rate_nats=1e+09 cannot
train --out new --guide contour --prior standard_normal --set guide.rate_nats=-1 => guide.rate_nats=-1 cannot
train --out new --objective elbow => unknown objective 'elbow'; did you mean 'elbo'?
train --out new --objective beta => objective.beta is missing
train --out new --objective beta --set objective.beta=-1 => objective.beta … got -1
train --out new --objective beta --set objective.beta=nan => objective.beta … finite number, got 'nan'
train --out new --objective free_bits --set objective.free_nats=-1 => objective.free_nats … got -1
train --out new --objective annealed --set objective.anneal_steps=0 => objective.anneal_steps … got 0
train --out new --objective target_rate --set objective.target_nats=inf => objective.target_nats … got 'inf'
train --out new --backend jax => '--backend': 'jax' is not one of
train --out new --backend numpyro --set training.recompute=true => training.recompute goes with --backend pyro
train --out new --backend numpyro --set auxiliary.enabled=true => auxiliary.enabled goes with --backend pyro
train --out new --steps 1.5 => '--steps': '1.5' is not a valid integer
train --out new --steps 99999999999999999999 => training.steps … got 99999999999999999999
train --out new --minutes -1 => training.minutes … got -1.0
train --out new --minutes inf => training.minutes … got inf
train --out new --set training.steps=null => give just one of training.steps and training.minutes
train --out new --seed 1.5 => '--seed': '1.5' is not a valid integer
train --out new --seed 1 --set training.seed=1 => training.seed is set twice
train --out new --device cuda:0 => '--device': 'cuda:0' is not one of
train --out new --set training.batch=0 => training.batch … got 0
train --out new --set training.batch=2.5 => training.batch … got 2.5
train --out new --set training.batch=null => training.batch … got None
train --out new --set training.batch=true => training.batch: True is not a number
train --out new --set training.lr=-1e-3 => training.lr … got -0.001
train --out new --set training.lr=false => training.lr: False is not a number
train --out new --set training.lr=1e-3,1e-4 => training.lr … got '1e-3,1e-4'
train --out new --set training.betas=[0.9] => training.betas=[0.9] has too few values; give 2
train --out new --set training.betas=[0.9,1.0] => training.betas=[0.9, 1.0] must lie in [0, 1)
train --out new --set training.betas=[0.9,true] => training.betas: True is not a number
train --out new --set training.ema=1 => training.ema … got 1
train --out new --set training.clip=0 => training.clip … got 0
train --out new --set training.skip=0 => training.skip … got 0
train --out new --set training.lr_sqrt=-0.1 => training.lr_sqrt … got -0.1
train --out new --set training.warmup=-1 => training.warmup … got -1
train --out new --set training.optimizer=sgd => training.optimizer … got 'sgd'
train --out new --set training.decay=exp => training.decay … got 'exp'
train --out new --set training.compile=maybe => training.compile … got 'maybe'
train --out new --set training.validation_images=0 => training.validation_images … got 0
train --out new --set training.checkpoint_minutes=nan => training.checkpoint_minutes … got 'nan'
train --out new --set auxiliary.hidden=0 => auxiliary.hidden … got 0
train --out new --set auxiliary.enabled=2 => auxiliary.enabled … got 2
train --out new --set likelihood.channels=[] => channels=[] and row_blocks=[1, 2] must name the same levels
train --out new --set likelihood.channels=8 => likelihood.channels … got 8
train --out new --set likelihood.mixtures=0 => a mixture of 0 logistics is empty
train --out new --set likelihood.pixel_kernel=0 => pixel_kernel=0 must be at least 1
train --out new --set likelihood.row_kernel=[3,2] => row_kernel=[3, 2] needs 2 or more rows and an odd number
train --out new --set likelihood.stem=[1,2] => likelihood.stem=[1, 2] has too few values; give 3
train --out new --set likelihood.latent_channels=0 => likelihood.latent_channels … got 0
train --out new --set likelihood.conditioning=half => likelihood.conditioning … got 'half'
train --out new --set likelihood.use_latents=5 => likelihood.use_latents … got 5
train --out new --likelihood pixelsnail --set likelihood.channels=0 => likelihood.channels … got 0
train --out new --likelihood pixelsnail --set likelihood.blocks=-1 => likelihood.blocks … got -1
train --out new --likelihood pixelsnail --set likelihood.heads=3 => heads=3 cannot share half of 64 channels
train --out new --likelihood pixelsnail --set likelihood.dropout=1 => likelihood.dropout … got 1
train --out new --dataset descriptions --set likelihood.hidden=0 => likelihood.hidden … got 0
train --out new --dataset descriptions --set guide.hidden=-1 => guide.hidden … got -1
train --out new --set guide.features=0 => guide.features … got 0
train --out new --guide bidirectional --set guide.features=-3 => guide.features … got -3
train --out new --guide structured --set guide.features=0 => guide.features … got 0
train --out new --guide structured --set guide.block=9 => guide.block=9 does not fit 8 latent steps
train --out new --set guide.channels=[-8] => channels=[-8] and row_blocks
train --out new --set prior.dims=2.5 => prior.dims … got 2.5
train --out new --set prior.dims=true => prior.dims: True is not a number
train --out new --set prior.length=-8 => prior.length=-8 does not divide the 8 positions
train --out new --set prior.alpha=0.9:0.5:0.1 => alpha '0.9:0.5:0.1' is not a spread
train --out new --set prior.alpha=[0.5,0.6] => prior.alpha … got [0.5, 0.6]
train --out new --set prior.alpha=0.99999999999 => 0.99999999999, which … holds 0.99999994
train --out new --set prior.rate_nats=25 => prior.rate_nats=25 needs an alpha … at most 20.1013 nats
train --out new --prior ar1_learned --set prior.floor_nats=500 => prior.floor_nats=500 needs … nats at most
train --out new --prior ar --set prior.pacf=[] => prior.pacf is empty
train --out new --prior ar --set 'prior.pacf=["a"]' => prior.pacf … got 'a'
train --out new --prior lattice --set prior.rows=3 => prior.rows=3 does not divide the 8 rows
train --out new --prior matern --set prior.smoothness=2.5 => prior.smoothness … got 2.5
train --out new --prior matern --set prior.length_scale=-1 => prior.length_scale=-1 is not a length
train --out new --set prior=ar1 => unknown setting 'prior'
train --out new --set prior.program=ar2 => unknown prior 'ar2'; did you mean 'ar'?
train --out new --set prior.pacf=[0.5] => unknown setting of the prior 'ar1' 'prior.pacf'
train --out new --set data.validation=-5 => cannot hold -5 validation data
train --out new --set data.rot=x => 'data.rot'; did you mean 'data.root'?
train --out new --dataset imagenet32 --data-root empty => there is no ImageNet 32×32 in empty
train --out new --control --set likelihood.use_latents=false => likelihood.use_latents=False leaves no latents
train --resume --out text --dataset digits => text was made with data.program=descriptions, not digits
train --resume --out empty => empty is not a run
train --resume --out run --steps -3 => training.steps … got -3
train --resume --out run --guide contour => run was made with guide.program=anti_causal, not contour
train --resume --out run --backend numpyro => run was made with training.backend=pyro, not numpyro
evaluate => Missing argument 'RUN'
evaluate '' => the argument after 'evaluate' is empty
evaluate run text => unexpected extra argument (text)
evaluate empty => empty is not a run
evaluate run/config.json => run/config.json is a file, not a run
evaluate run --particles -1 => '--particles': -1 is not in the range
evaluate run --particles 2.5 => '--particles': '2.5' is not a valid integer
evaluate run --images -1 => '--images': -1 is not in the range
evaluate run --images many => '--images': 'many' is not a valid integer
evaluate run --seed 99999999999999999999 => '--seed': 99999999999999999999 is not in the range
evaluate run --weights bst => '--weights': 'bst' is not one of
evaluate run --with-prior auxilliary => '--with-prior': 'auxilliary' is not one of
evaluate run --with-prior auxiliary => run has no auxiliary prior; train one with pyro-delta train-prior run
evaluate run --data-root nowhere => --data-root nowhere does not exist
check run --told-samples 1 => '--told-samples': 1 is not in the range
check run --told-images 3 => '--told-images': 3 is not in the range
check run --images 0 => '--images': 0 is not in the range
check run --images 4 --control run => the control's decoder changes with z
check run --images 4 --control text => on data.program=descriptions … the run on data.program=digits
check run --control file => file is a file, not a run
sample run --out a.png => Missing option '--num'
sample run --num 1 => Missing option '--out'
sample run --num -3 --out a.png => '--num': -3 is not in the range
sample run --num 1e9 --out a.png => '--num': '1e9' is not a valid integer
sample run --num 1 --out a.png --temperature 0 => '--temperature': 0.0 is not in the range
sample run --num 1 --out a.png --temperature nan => --temperature nan is no number
sample run --num 1 --out a.png --temperature 0.9 --backend numpyro => --temperature goes with Pyro's programs
sample run --num 1 --out empty => 'empty' is not a .png file
sample run --num 1 --out file/a.png => there is no folder file for a.png
sample run --num 1 --out a.png --backend jax => '--backend': 'jax' is not one of
sample text --num 1 --out a.png => 'a.png' is not a .txt file
sample file --num 1 --out a.png => file is a file, not a run
encode run test => Missing option '--out'
encode run tset --out a.nc => there is no picture or folder tset
encode run test --out a.txt => 'a.txt' does not say what to write; give a name that ends in .nc
encode run test --out no/a.nc => there is no folder no for a.nc
encode run test --out a.nc --num 0 => '--num': 0 is not in the range
encode run test --out a.nc --draws 0 => '--draws': 0 is not in the range
encode run file --out a.nc => file is not a readable image
encode run empty --out a.nc => empty holds no images
encode run '' --out a.nc => the argument after 'run' is empty
encode text run --out a.nc => cannot read run (Is a directory); give a text file
reconstruct run test --out a.jpg => 'a.jpg' is not a .png file
reconstruct run tests --out a.png => there is no picture or folder tests
reconstruct run test --num 0 --out a.png => '--num': 0 is not in the range
reconstruct run test --decodings 0 --out a.png => '--decodings': 0 is not in the range
reconstruct text test --out a.png => 'a.png' is not a .txt file
interpolate run test --out a.png --pairs 0 => '--pairs': 0 is not in the range
interpolate run test --out a.png --pairs 9999 => 9999 pairs take 19998 data, but test has 360
interpolate run test --out a.png --steps 1 => '--steps': 1 is not in the range
interpolate run nothere --out a.png => there is no picture or folder nothere
inpaint run test --out a.png --rows 0 => '--rows': 0 is not in the range
inpaint run test --out a.png --rows 8 => --rows 8 leaves nothing to complete in images of 8 rows
inpaint run test --out a.png --rows 4 --mask w.png => --rows 4 and --mask w.png contradict each other
inpaint run test --out a.png --mask nothere.png => there is no picture or folder nothere.png
inpaint run test --out a.png --mask file => file is not a readable image
inpaint run test --out a.png --particles 0 => '--particles': 0 is not in the range
inpaint run test --out a.png --completions 0 => '--completions': 0 is not in the range
inpaint run test --out a.txt => the picture 'a.txt' is not a .png file
impute => Missing argument 'RUN'
impute run => Missing argument 'DATA'
impute run test => Missing option '--out'
impute run test --out a.csv => series are completed, not data of ImageSpec
impute text test --out a.csv => series are completed, not data of TokenSpec
impute run test --out a.csv --hide 1 => '--hide': 1.0 is not in the range 0<x<1
impute run test --out a.csv --hide some => '--hide': 'some' is not a valid float
impute run test --out a.csv --particles 0 => '--particles': 0 is not in the range
impute run test --out a.csv --draws 0 => '--draws': 0 is not in the range
impute run test --out a.csv --num 0 => '--num': 0 is not in the range
impute nothere test --out a.csv => nothere is not a run
forecast => Missing argument 'RUN'
forecast run test => Missing option '--out'
forecast run test --out a.csv => series are completed, not data of ImageSpec
forecast run test --out a.csv --keep 0 => '--keep': 0 is not in the range
forecast run test --out a.csv --horizon 0 => '--horizon': 0 is not in the range
forecast run test --out a.csv --horizon all => '--horizon': 'all' is not a valid integer
forecast nothere test --out a.csv => nothere is not a run
train --dataset series --out new => data.root is missing
train --dataset series: --out new => the data 'series:' lack what follows the colon; write series:PATH
train --dataset series:nothere.csv --out new => cannot read nothere.csv
train --dataset series:file --out new => file is no table and no arrays of NumPy; give a .csv or .npz file
train --dataset vowels --out new => there are no vowels in data/vowels
train --dataset vowels --data-root empty --out new => there are no vowels in empty/vowels
train --dataset vowels --set data.resolution=0 --out new => data.resolution: Input should be greater than 0
inpaint text test --out a.png => images are completed, not data of TokenSpec
crosscheck run --images 0 => '--images': 0 is not in the range
crosscheck run --images 361 => --images 361: the test split has 360 data; give 1 to 360
crosscheck run --split tst => '--split': 'tst' is not one of
crosscheck run --with-prior auxiliary => run has no auxiliary prior
crosscheck empty => empty is not a run
train-prior run --steps 0 => '--steps': 0 is not in the range
train-prior run --batch 100000 => batch size 100000 does not fit 1257 training data
train-prior run --hidden 0 => '--hidden': 0 is not in the range
train-prior run --lr nan => --lr nan is not a learning rate
train-prior run --lr -1 => '--lr': -1.0 is not in the range
train-prior file => file is a file, not a run
verify --prior ar2 => unknown prior 'ar2'; did you mean 'ar'?
verify --guide file => unknown guide 'file'
verify --dataset folder:nothere => there is no data folder nothere
verify --preset digit => unknown preset 'digit'; did you mean 'digits'?
verify --set prior.rate_nats=25 => prior.rate_nats=25 needs an alpha nearer to 1 than float32 … at most 20.1013 nats
verify --set prior.alpha=0.5:0.99999999999 => prior.alpha has 0.99999999999 … holds 0.99999994 at most
verify --prior ar1_learned --set prior.floor_nats=500 => prior.floor_nats=500 needs … nats at most
verify --set prior.dims=0 => dims is 0
verify extra => unexpected extra argument (extra)
delta => Missing option '--length'
delta --length 8 --dims 2 => exactly one of --alpha and --rate-bits
delta --length -1 --dims 2 --alpha 0.5 => length is -1
delta --length 8 --dims 1e3 --alpha 0.5 => '--dims': '1e3' is not a valid integer
delta --length 99999999999 --dims 2 --alpha 0.5 => length is 99999999999
delta --length 8 --dims 2 --alpha '' => the argument after '--alpha' is empty
delta --length 8 --dims 2 --alpha 0.5: => cannot read alpha '0.5:'
delta --length 8 --dims 2 --alpha 0.5,0.6,0.7 => alpha '0.5,0.6,0.7' has 3 values for d = 2
delta --length 8 --dims 2 --alpha inf => alpha inf is outside (-1, 1)
delta --length 8 --dims 2 --alpha 0.5 --shape 3x0x32 => cannot read the shape '3x0x32'
delta --length 8 --dims 2 --alpha 0.5 --spread 0.1 => --spread 0.1 goes with --rate-bits
delta --length 8 --dims 2 --rate-bits -1 => (-1 bits) cannot be committed
delta --length 8 --dims 2 --rate-bits inf => a rate of inf nats
delta --length 8 --dims 2 --rate-bits 10 --spread nan => the spread starts at alpha nan
delta --length 8 --dims 2 --rate-bits 1 --spread 0.99 => (1 bits) is out of reach
delta --length 8 --dims 2 --alpha 0.5 --plot a.docx => a.docx … name a .png, .pdf or .svg file
delta --length 8 --dims 2 --alpha 0.5 --plot no/a.png => cannot write the figure no/a.png
delta --length 1 --dims 2 --rate-bits 10 => a sequence of length 1 commits no rate
report => Missing argument 'RUN
report empty => empty is not a run
report nothere => nothere is not a run
report run/config.json => run/config.json is a file, not a run
report run run => of 2 runs --out FILE is missing
report run run --out both.html => run is given more than once
report run text --out both.html --images 3 => --control and --images go with one run
report run --out no/a.html => there is no folder no for a.html
report run --out empty => cannot write empty
report run --images -1 => '--images': -1 is not in the range
report run --control nothere => nothere is not a run
report run --data-root nowhere => --data-root nowhere does not exist
export => Missing argument 'RUN
export nothere first => nothere is not a run
export run => there is no place to export to
export run empty/no/first => there is no folder empty/no for first
export run run => run is a folder that is not empty
export run file => file is there already
export run first.tar.gz => first.tar.gz is no archive that is written here
export run first --license ' ' => ' ' is no SPDX expression
export run first --weights newest => '--weights': 'newest' is not one of
export run first --private => --private is of a repository on the hub
export run --to me/first => 'me/first' is no place on the hub
export run --to hf:first => 'hf:first' is no place on the hub
export run/config.json first => run/config.json is a file, not a run
export run first --torch --data-root nowhere => --data-root nowhere does not exist
compare hf:first => 'hf:first' is no place on the hub
compare run --json --format csv => --json and --format csv contradict each other
train-prior hf:me/first => this command would write into hf:me/first
check hf:me/first --keep => check --keep would write into hf:me/first
report hf:me/first => report without --out FILE would write into hf:me/first
train --resume --out hf:me/first => this command would write into hf:me/first
evaluate hf:first => 'hf:first' is no place on the hub
compare => Missing argument 'RUN
compare nothere => nothere is not a run
compare run --format yaml => '--format': 'yaml' is not one of
compare run --out no/a.txt => there is no folder no for a.txt
compare run --out empty => cannot write empty
compare run --figure no/a.png => there is no folder no for a.png
compare run run => run is given more than once
compare run --with paper => '--with': 'paper' is not 'reference'
sweep => Missing argument 'FILE.toml|NAME'
sweep digits-colapse => unknown sweep 'digits-colapse'; did you mean 'digits-collapse'?
sweep nothere.toml => there is no sweep file nothere.toml
sweep file => unknown sweep 'file'
sweep digits-collapse --jobs 0 => '--jobs': 0 is not in the range
sweep digits-collapse --seeds 0 => '--seeds': 0 is not in the range
sweep digits-collapse --set training.lrr=1 => unknown setting 'training.lrr'; did you mean 'training.lr'?
sweep digits-collapse --set training.seed=3 => training.seed is set, but seeds are the sweep's
sweep digits-collapse --launcher slurm => '--launcher': 'slurm' is not one of
sweep digits-collapse --launch timeout_min=3 => --launch timeout_min=3 is for submitit
sweep digits-collapse --launcher submitit --launch x => --launch 'x' is not … write timeout_min=VALUE
sweep digits-collapse --search 3 => the sweep 'digits-collapse' has no [search]
sweep digits-collapse --out run => run is not empty and holds no sweep
doctor => Missing argument 'FILE.py:make'
doctor file => 'file' is not a place
doctor file:make => there is no module file for the function 'file:make'
doctor nothere.py:make => cannot read the program nothere.py
doctor os:getcwd => os:getcwd returns a str
doctor os:name => os:name is not a function, but of type str
doctor os:nothere => unknown function of os 'nothere'
doctor os:getcwd --particles 0 => '--particles': 0 is not in the range
list everything => unknown name 'everything'
list trainig => unknown name 'trainig'; did you mean 'training'?
list nowhere.py:Prior => nowhere.py
list datasets training => what 'training' is of 'datasets' is not clear; give one name
train --config => requires an argument
train --config nowhere.toml => cannot read nowhere.toml
train --config empty => cannot read empty
train --config text => cannot read text
train --config file => file is not TOML
list guides priors => what 'priors' is of 'guides' is not clear
"""
MADE = {"file", "empty", "run", "text"}
"""Of a row, what is there when it is named: a file, an empty folder, a run, and one of another kind of data."""


def rows() -> list[Any]:
    found = [line.split(" => ") for line in TYPED.strip().splitlines()]
    return [pytest.param(shlex.split(command), words, id=command) for command, words in found]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "here"


def refused(here: Path, args: list[str], words: str) -> None:
    before = contents(here)
    code, out, err = call(*args)
    assert code == 2, err
    assert err.startswith("pyro-delta: ")
    assert err.count("\n") == 1
    assert re.search(".*".join(re.escape(part.strip()) for part in words.split("…")), err), err
    assert out == ""
    assert contents(here) == before


def test_every_command_has_rows() -> None:
    assert {row.values[0][0] for row in rows()} == set(COMMANDS)
    assert len(rows()) == len({row.id for row in rows()}) > 200


@pytest.mark.parametrize(("args", "words"), rows())
def test_mistyped(args: list[str], words: str, here: Path, trained: Path, text: Path) -> None:
    for name in MADE & {part.partition("/")[0].rpartition(":")[2] for part in args}:
        if name == "file":
            a_file(here, trained)
        elif name == "empty":
            (here / "empty").mkdir()
        else:
            shutil.copytree({"run": trained, "text": text}[name], here / name)
    refused(here, args, words)


@pytest.mark.parametrize(("args", "words", "prepare"), BAD.values(), ids=BAD)
def test_bad_input(args: list[str], words: str, prepare: Prepare, here: Path, trained: Path) -> None:
    prepare(here, trained)
    refused(here, args, words)


# --- Files that hold something else ---


def holding(name: str, content: str | bytes | None) -> Prepare:
    """A file of such a content, in the place of what is there; a folder for None."""

    def prepare(here: Path, trained: Path) -> None:
        if name.startswith("run/"):
            a_run(here, trained)
            (here / name).unlink(missing_ok=True)
        if content is None:
            (here / name).mkdir(parents=True)
        else:
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def picture(*shape: int, value: int = 0) -> Prepare:
    """A picture of one colour, and a run."""

    def prepare(here: Path, trained: Path) -> None:
        a_run(here, trained)
        Image.fromarray(np.full(shape, value, np.uint8)).save(here / "w.png")

    return prepare


def unreadable(name: str) -> Prepare:
    def prepare(here: Path, trained: Path) -> None:
        if os.geteuid() == 0:
            pytest.skip("everything is readable to this user")
        a_run(here, trained)
        (here / name).chmod(0)

    return prepare


def swept(content: str) -> Prepare:
    return holding("s.toml", '[sweep]\nname = "a"\ntitle = "A"\n' + content)


def made(content: str) -> Prepare:
    return holding("v.py", content)


MAKE = "doctor v.py:make"
SWEEP = "sweep s.toml --out new"
INPAINT = "inpaint run test --num 1 --particles 2 --out a.png --mask w.png"
IMAGENET = "train --dataset imagenet32 --data-root d --out new"
ARMS = '[[arms]]\nname = "x"\n'
STEERING: dict[str, Any] = {
    "name": "my name", "title": "my title", "preset": None, "control": None, "seeds": [0],
    "arms": [{"name": "my arm", "family": "a", "across": "", "settings": {}}], "search": {},
    "cited": [{"name": "my model", "neg_elbo_bpd": 1.0, "source": "my paper"}],
}  # fmt: skip
HELD: dict[str, tuple[str, str, Prepare]] = {
    "a manifest of a list": ("evaluate run", "run/manifest.json is damaged", holding("run/manifest.json", "[]")),
    "a manifest of nothing": ("evaluate run", "run/manifest.json is damaged", holding("run/manifest.json", "")),
    "a manifest that is a folder": ("evaluate run", "manifest.json cannot be read", holding("run/manifest.json", None)),
    "settings that are a folder": ("evaluate run", "run/config.json cannot be read", holding("run/config.json", None)),
    "metrics that are a folder": (
        "train --resume --out run --steps 30",
        "run/metrics.jsonl cannot be read",
        holding("run/metrics.jsonl", None),
    ),
    "an empty run.json": ("check run", "run/run.json is damaged or was changed", holding("run/run.json", "")),
    "settings that cannot be read": ("evaluate run", "config.json cannot be read", unreadable("run/config.json")),
    "a manifest that cannot be read": ("check run", "manifest.json cannot be read", unreadable("run/manifest.json")),
    "a picture of another size": ("reconstruct run w.png --out a.png", "(1, 9, 9) … (1, 8, 8)", picture(9, 9)),
    "a picture over itself": ("reconstruct run w.png --out w.png", "w.png is read, and would be lost", picture(8, 8)),
    "ends over one another": ("interpolate run . --out w.png", "w.png is read, and would be lost", picture(8, 8)),
    "a completion over its mask": (
        "inpaint run test --out w.png --mask w.png",
        "w.png is read, and would be lost; give another --out",
        picture(8, 8),
    ),
    "latents over a file of the run": (
        "encode run test --out run/terms.npz",
        "run/terms.npz could take the place of a file of run",
        holding("run/terms.npz", ""),
    ),
    "a picture of another kind": ("encode run w.png --out a.nc", "(3, 8, 8) … (1, 8, 8)", picture(8, 8, 3)),
    "a mask of another size": (INPAINT, "the mask w.png is (9, 9), the images are (8, 8)", picture(9, 9)),
    "a white mask": (INPAINT, "the mask w.png is white all over", picture(8, 8, value=255)),
    "an empty text": ("encode text a.txt --out a.nc", "a.txt has no line of", holding("a.txt", "")),
    "a text that is none": ("encode text a.txt --out a.nc", "a.txt is not text in UTF-8", holding("a.txt", b"\xff")),
    "a file for a network": ("encode run test --out d.nc", "cannot write d.nc", holding("d.nc", None)),
    "an empty sweep": (SWEEP, "s.toml: there is nothing to run", holding("s.toml", "")),
    "half a sweep": (SWEEP, "s.toml is not TOML", holding("s.toml", "[")),
    "bytes for a sweep": (SWEEP, "s.toml is not TOML", holding("s.toml", b"\xff\xfe")),
    "a deep sweep": (SWEEP, "s.toml is not TOML: it is nested too deep", holding("s.toml", "a = " + "[" * 5000)),
    "a sweep of many dots": (SWEEP, "s.toml is not TOML: it is nested", holding("s.toml", "a." * 5000 + "a = 1")),
    "an endless number": (SWEEP, "number of more than 64 bits", holding("s.toml", "a = " + "9" * 5000)),
    "an endless hexadecimal number": (SWEEP, "number of more than 64 bits", swept(f"seeds = [0x{'f' * 5000}]\n{ARMS}")),
    "a preset that steers": (SWEEP, "s.toml is not TOML: it holds control", swept(f'preset = "\\u001b[2J"\n{ARMS}')),
    "a source that steers": (
        SWEEP,
        "s.toml is not TOML: it holds control characters",
        swept(f'{ARMS}[[cited]]\nname = "a"\nneg_elbo_bpd = 1\nsource = "\\u009b2J"\n'),
    ),
    "a folder for a sweep": (SWEEP, "s.toml", holding("s.toml", None)),
    "a table that no sweep has": (SWEEP, "unknown table of a sweep 'base'; did you mean 'arms'?", swept("[base]\n")),
    "nothing to sweep": (SWEEP, "s.toml: there is nothing to run", swept("")),
    "a seed twice": (SWEEP, "sweep.seeds=[1, 1] names a seed twice", swept(f"seeds = [1, 1]\n{ARMS}")),
    "a seed below 0": (SWEEP, "sweep.seeds … got -1", swept(f"seeds = [-1]\n{ARMS}")),
    "no seeds": (SWEEP, "sweep.seeds … got []", swept(f"seeds = []\n{ARMS}")),
    "True for a seed": (SWEEP, "sweep.seeds: True is not a number", swept(f"seeds = [true]\n{ARMS}")),
    "no such control": (SWEEP, "unknown arm as sweep.control 'b'", swept(f'control = "b"\n{ARMS}')),
    "no such preset of a sweep": (SWEEP, "'digit'; did you mean 'digits'?", swept(f'preset = "digit"\n{ARMS}')),
    "a setting that is NaN": (SWEEP, "training.lr … got nan", swept(f'{ARMS}[settings]\n"training.lr" = nan\n')),
    "a name of an arm that is a path": (SWEEP, "name='../x' names a folder", swept('[[arms]]\nname = "../x"\n')),
    "an arm twice": (SWEEP, "two arms are called 'x'", swept(ARMS + ARMS)),
    "an empty axis": (SWEEP, "grid.prior.dims=[] is not a list", swept('[grid]\n"prior.dims" = []\n')),
    "an axis of one number": (SWEEP, "grid.prior.dims=3 is not a list", swept('[grid]\n"prior.dims" = 3\n')),
    "a range the wrong way round": (
        f"{SWEEP} --search 2",
        "search.training.lr.low=1 is not a range",
        swept('[search]\n"training.lr" = {low = 1, high = 0}\n'),
    ),
    "a sweep.json of a list": ("compare k", "k/sweep.json is damaged", holding("k/sweep.json", "[]")),
    "half a sweep.json": ("compare k", "k/sweep.json is damaged", holding("k/sweep.json", "{")),
    "a deep sweep.json": ("compare k", "k/sweep.json is damaged", holding("k/sweep.json", "[" * 100_000)),
    **{
        f"a sweep.json whose {what} steers": (
            "compare k",
            "k/sweep.json is damaged",
            holding("k/sweep.json", json.dumps(STEERING).replace(f"my {what}", "\\u001b[2J")),
        )
        for what in ("name", "title", "arm", "model", "paper")
    },
    "deep settings": ("train --config c.toml --out n", "c.toml is not TOML (", holding("c.toml", "a = " + "[" * 5000)),
    "a setting with an endless number": (
        "train --config c.toml --out n",
        "c.toml is not TOML (ValueError: it holds a whole number of more than 64 bits); mend it",
        holding("c.toml", f"[training]\nsteps = 0x{'f' * 5000}"),
    ),
    "an endless number that is typed": (
        f"train --set training.steps={'9' * 5000} --out n",
        "training.steps: Unable to parse input string as an integer, exceeded maximum size",
        lambda here, trained: None,
    ),
    "a sweep.json that is a folder": ("compare k", "k/sweep.json", holding("k/sweep.json", None)),
    "a program with a mistake": (MAKE, "v.py fails at v.py, line 1: SyntaxError", made("def make(:")),
    "a number for a function": (MAKE, "v.py:make is not a function, but of type int", made("make = 3")),
    "a function of another name": (MAKE, "'make'; did you mean 'made'?", made("def made(): pass")),
    "a function that returns a number": (MAKE, "v.py:make returns a int", made("def make(): return 3")),
    "a function that fails": (MAKE, "v.py:make fails … ZeroDivisionError", made("def make(): return 1 / 0")),
    "a function that asks for more": (MAKE, "argument: 'a'", made("def make(a): return 1")),
    "a model that is a number": (MAKE, "the model is a int, not callable", made("def make(): return 1, 2, 3")),
    "no guide": (MAKE, "needs a guide", made("def make(): return {'model': 3}")),
    "a folder for a program": (MAKE, "cannot read the program v.py", made(None)),  # type: ignore[arg-type]
    "a prior that is a number": (
        "verify --prior v.py:P",
        "the prior 'v.py:P' makes a int",
        made("def P(spec, *, dims=2): return 3"),
    ),
    "a prior that imports what is missing": (
        "verify --prior v.py:P",
        "v.py fails at v.py, line 1: ModuleNotFoundError: No module named 'nothing'",
        made("import nothing"),
    ),
    "batches that are missing": (IMAGENET, "d lacks train_data_batch_2.npz", holding("d/train_data_batch_1.npz", "")),
}


@pytest.mark.parametrize(("command", "words", "prepare"), HELD.values(), ids=HELD)
def test_files_that_hold_something_else(
    command: str, words: str, prepare: Prepare, here: Path, trained: Path, text: Path
) -> None:
    prepare(here, trained)
    for name, folder in (("run", trained), ("text", text)):
        if name in command.split() and not (here / name).exists():
            shutil.copytree(folder, here / name)
    refused(here, shlex.split(command), words)


def test_a_mark_of_the_order_of_bytes_is_no_part_of_a_file(here: Path) -> None:
    """Editors of Windows begin a file with one."""
    Path("s.toml").write_text('[sweep]\nname = "a"\ntitle = "A"\n' + ARMS, encoding="utf-8-sig")
    Path("c.toml").write_text("[training]\nsteps = 3\n", encoding="utf-8-sig")
    Path("c.json").write_text('{"training": {"steps": 3}}', encoding="utf-8-sig")
    assert read("s.toml").arm("x")
    assert settings_of_file(Path("c.toml")) == settings_of_file(Path("c.json")) == [("training.steps", 3)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_asked_for_and_absent(trained: Path, tmp_path: Path) -> None:
    for args in (["evaluate", trained], [*TRAIN[:-1], tmp_path / "new", "--steps", "1"]):
        code, _, err = call(*args, "--device", "cuda")
        assert code == 2
        assert err == "pyro-delta: --device cuda: torch finds no CUDA device here; use --device cpu.\n"
    assert not (tmp_path / "new").exists()
