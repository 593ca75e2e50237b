"""Models that travel: an exported folder is a run like the one it was made from, and says what it is."""

import getpass
import json
import os
import re
import shutil
import socket
import sys
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from forged import edit_json, edit_state, forge, state_of
from standin_hub import Hub, standing_in
from test_cli import SETS, TINY, call

import pyro_delta
from pyro_delta import trust
from pyro_delta.api.kept import evaluations, kept
from pyro_delta.call import call as called
from pyro_delta.data import Splits, from_tensors
from pyro_delta.data.audio import SoundSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.series import SeriesSpec
from pyro_delta.data.spec import Spec
from pyro_delta.distributions import DiscretizedLogisticMixture
from pyro_delta.distributions.images.autoregressive_image import AutoregressiveImage
from pyro_delta.distributions.sequences import AutoregressiveTokens
from pyro_delta.errors import UserError
from pyro_delta.inference.run import Run
from pyro_delta.share.card import KNOWN_LICENCES
from pyro_delta.share.export import export

MINE = '''\
"""AR(1) of a constant of its own, by a file beside it."""
import torch
from helper import ALPHA
from pyro.nn import PyroModule
from pyro_delta.distributions import GaussianAR1


class Mine(PyroModule):
    def __init__(self, spec, *, dims: int = 2, table: str = "none"):
        super().__init__()
        self.register_buffer("starts", torch.arange(spec.positions))
        self.register_buffer("alpha", torch.full((dims,), ALPHA))

    def forward(self):
        return GaussianAR1(self.alpha, len(self.starts))
'''
STOPS = '''\
"""A guide that torch.export cannot follow: what it computes depends on the data."""
from pyro_delta.guides import AntiCausalGuide


class Stops(AntiCausalGuide):
    def posterior(self, x):
        return super().posterior(x if x.sum() > 0 else -x)
'''


def other_best(state: dict[str, Any]) -> None:
    """Makes the best weights others than the last: which of four steps is best would be left to chance."""
    best = state["best"]
    best |= {"step": 3, "vae": {name: w + 1e-3 if "network" in name else w for name, w in best["vae"].items()}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best weights are not its last ones, with what was found of it and an auxiliary prior beside it."""
    folder = tmp_path_factory.mktemp("made") / "run"
    sets = ("training.log_every=1", "training.ema=0", "auxiliary.enabled=true", "auxiliary.hidden=4")
    names = {pair.partition("=")[0] for pair in sets}
    pairs = [*sets, *(pair for pair in SETS if pair != "--set" and pair.partition("=")[0] not in names)]
    code, _, err = call("train", *TINY[:6], *(p for s in pairs for p in ("--set", s)), "--steps", 4, "--out", folder)
    assert code == 0, err
    edit_state(folder, other_best)
    assert call("check", folder, "--keep", "--images", 60, "--device", "cpu")[0] in (0, 1)
    for weights in ("best", "last"):
        assert call("evaluate", folder, "--images", 5, "--particles", 3, "--weights", weights)[0] == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, "run"))


def same(one: Run, other: Run) -> bool:
    before, after = one.vae.state_dict(), other.vae.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def numbers(*args: object) -> dict[str, Any]:
    code, out, err = call(*args, "--json", "--device", "cpu")
    assert code in (0, 1), err
    return json.loads(out)


# --- the same run ---


@pytest.mark.parametrize("prior", ["model", "auxiliary"])
@pytest.mark.parametrize("weights", ["best", "last"])
def test_it_has_the_weights_that_were_asked_for(run: Path, weights: str, prior: str) -> None:
    export(run, "out", weights=weights)
    mine, theirs = (pyro_delta.load(folder, prior=prior, weights=weights) for folder in (run, "out"))
    assert same(mine, theirs)
    assert mine.facts == theirs.facts
    other = pyro_delta.load(run, weights={"best": "last", "last": "best"}[weights])
    assert not same(other, pyro_delta.load("out", weights=weights))
    if weights == "last":
        assert pyro_delta.load("out").facts == theirs.facts  # there are no better ones
    else:
        with pytest.raises(UserError, match=r"^out was exported with its best weights alone; .*--weights last\.$"):
            pyro_delta.load("out", weights="last")


def test_it_is_small_and_holds_no_state_of_training(run: Path) -> None:
    found = export(run, "out")
    assert set(found.files) == {
        "README.md", "auxiliary.safetensors", "check.json", "checkpoint-00000004.safetensors", "config.json",
        "evaluations.json", "manifest.json", "metrics.jsonl", "run.json", "terms.npz",
    } - {"auxiliary.safetensors"}  # fmt: skip
    assert found.files == tuple(sorted(path.name for path in Path("out").iterdir()))
    state = state_of(Path("out"))
    assert not {"optimizer", "rng", "window", "vae"} & state.keys()
    weights = sum(value.numel() for value in state["best"]["vae"].values())
    of_auxiliary = sum(value.numel() for value in state["best"]["auxiliary"].values())
    size = Path("out/checkpoint-00000004.safetensors").stat().st_size
    assert size < 4 * (weights + of_auxiliary) + 20_000


COMMANDS = [
    ["evaluate", "RUN", "--images", "8"],
    ["evaluate", "RUN", "--images", "8", "--with-prior", "auxiliary"],
    ["check", "RUN", "--images", "40"],
    ["crosscheck", "RUN", "--images", "2", "--float64"],
    ["sample", "RUN", "--num", "2", "--out", "OUT.png"],
    ["encode", "RUN", "test", "--num", "3", "--out", "OUT.npz"],
    ["reconstruct", "RUN", "test", "--num", "2", "--out", "OUT.png"],
    ["interpolate", "RUN", "test", "--pairs", "1", "--steps", "2", "--out", "OUT.png"],
    ["inpaint", "RUN", "test", "--num", "1", "--rows", "4", "--out", "OUT.png"],
]


def test_every_command_reads_it_and_finds_the_same(run: Path) -> None:
    export(run, "out")
    for command in COMMANDS:
        found = []
        for place in ("run", "out"):
            args = [part.replace("RUN", place).replace("OUT", f"of_{place}") for part in command]
            device = [] if command[0] == "crosscheck" else ["--device", "cpu"]
            code, out, err = call(*args, *device, "--json")
            assert code in ((0, 1) if command[0] == "check" else (0,)), (command, err)
            found.append(json.loads(re.sub(r"of_(run|out)", "", out)))
        if command[0] != "crosscheck":
            assert found[0] == found[1], command
    assert call("report", "out", "--device", "cpu")[0] == 0
    assert call("compare", "run", "out", "--device", "cpu")[0] == 0
    assert call("train-prior", "out", "--steps", 2, "--hidden", 4, "--device", "cpu")[0] == 0
    export("out", "again")  # of one that was exported, with a prior that was trained for it there
    assert numbers("evaluate", "again", "--with-prior", "auxiliary") == numbers(
        "evaluate", "out", "--with-prior", "auxiliary"
    )


def test_training_does_not_go_on_from_it(run: Path) -> None:
    export(run, "out")
    before = sorted(path.name for path in Path("out").iterdir())
    code, _, err = call("train", "--resume", "--out", "out", "--steps", 9)
    assert (code, err.count("\n")) == (2, 1)
    assert "out was exported, without the state of its optimiser, and cannot be gone on with" in err
    assert err.endswith("or start a new one: pyro-delta train --config out/config.json --out NEW.\n")
    assert call("train", "--config", "out/config.json", "--steps", 1, "--out", "new", "--device", "cpu")[0] == 0
    assert sorted(path.name for path in Path("out").iterdir()) == before
    with pytest.raises(UserError, match="was exported"):
        pyro_delta.resume("out")


def test_damage_is_seen(run: Path) -> None:
    export(run, "out")
    for name, words in (("checkpoint-00000004.safetensors", "damaged or missing"), ("config.json", "was changed")):
        copy = Path(shutil.copytree("out", f"of_{name}"))
        content = bytearray((copy / name).read_bytes())
        content[-3] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=words):
            pyro_delta.load(copy)


def test_packed_it_is_the_same_folder(run: Path) -> None:
    export(run, "out")
    found = export(run, "first.zip")
    with zipfile.ZipFile("first.zip") as archive:
        assert sorted(archive.namelist()) == [f"first/{name}" for name in found.files]
        archive.extractall()
    for name in set(found.files) - {"README.md"}:  # which says its name
        assert Path("first", name).read_bytes() == Path("out", name).read_bytes()
    assert same(pyro_delta.load("first"), pyro_delta.load("out"))
    with pytest.raises(UserError, match=r"^first\.zip is packed; unpack it, and give the folder that comes out\.$"):
        pyro_delta.load("first.zip")


# --- what does not travel ---


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a program of one's own, named by a path that leads through this machine, as are its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "author"))
    monkeypatch.setattr(trust, "_ACCEPTED", set())
    secret = tmp_path / "home" / "alice"
    secret.mkdir(parents=True)
    (secret / "mine.py").write_text(MINE)
    (secret / "helper.py").write_text("ALPHA = 0.7\n")
    pairs = [p for p in SETS if p != "--set" and not p.startswith("prior.")] + [f"prior.table={secret}/table.csv"]
    sets = [part for pair in pairs for part in ("--set", pair)]
    options = [*TINY[:6], *sets, "--prior", f"{secret}/mine.py:Mine", "--data-root", secret, "--steps", 2]
    code, _, err = call("train", *options, "--out", secret / "run")
    assert code == 0, err
    assert call("check", secret / "run", "--keep", "--images", 60, "--device", "cpu")[0] in (0, 1)
    return secret / "run"


def test_no_path_of_the_makers_machine_travels_and_programs_need_trust(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = pyro_delta.load(own)
    found = export(own, "out", license="MIT")
    private = [str(own.parent), str(tmp_path), "alice", socket.gethostname()]
    private += [name for name in [getpass.getuser()] if len(name) > 4]
    for name in found.files:
        content = (Path("out") / name).read_bytes()
        # two letters, such as a host may be called, are found in any weights
        looked_for = [word for word in private if len(word) > 4 or not name.endswith(".safetensors")]
        assert not [word for word in looked_for if word.encode() in content], name
    assert {"programs/mine.py", "programs/helper.py"} <= set(found.files)
    config = json.loads(Path("out/config.json").read_text())
    assert config["prior"]["program"] == "mine.py:Mine"
    assert config["prior"]["table"] == "table.csv"
    assert "mine.py:Mine" in Path("out/README.md").read_text()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "reader"))
    monkeypatch.setattr(trust, "_ACCEPTED", set())
    shutil.rmtree(own.parent)
    code, _, err = call("evaluate", "out", "--images", 4, "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "out would run mine.py:Mine (prior), which is not shipped" in err
    assert numbers("evaluate", "out", "--images", 4, "--trust")["n_images"] == 4
    (again,) = [line for line in Path("out/README.md").read_text().splitlines() if line.startswith("pyro-delta train")]
    assert again == "pyro-delta train --config out/config.json --trust --out RUN"
    monkeypatch.setattr(trust, "_ACCEPTED", set())
    words = again.split()[1:]
    code, _, err = call(*(word for word in words if word != "--trust"), "--steps", 1, "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1), err
    assert "out would run mine.py:Mine (prior), which is not shipped" in err
    assert not Path("RUN").exists()
    assert call(*words, "--steps", 1, "--device", "cpu")[0] == 0
    assert pyro_delta.load("RUN").config.prior.program == "out/programs/mine.py:Mine"
    code, _, err = call("train", "--resume", "--out", "out", "--trust")
    assert err.endswith("pyro-delta train --config out/config.json --trust --out NEW.\n")
    assert same(mine, pyro_delta.load("out"))
    assert kept(Path("out")) is not None  # also where settings, and with them their digest, have changed
    Path("out/programs/helper.py").write_text("ALPHA = 0.5\n")
    forge(Path("out"))
    code, _, err = call("evaluate", "out", "--trust")
    assert (code, err.count("\n")) == (2, 1), err


def test_data_are_looked_for_where_the_reader_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(f"line {i} of a few" for i in range(40))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text(lines)
    sets = [part for pair in ("likelihood.hidden=4", "guide.hidden=4") for part in ("--set", pair)]
    sets += ["--prior", "ar1", "--likelihood", "gru", "--guide", "gru", "--set", "training.batch=4"]
    code, _, err = call("train", "--dataset", f"text:{tmp_path}/mine/notes.txt", *sets, "--steps", 1, "--out", "run")
    assert code == 0, err
    export("run", "out")
    assert "--dataset text:notes.txt " in Path("out/README.md").read_text()
    code, _, err = call("evaluate", "out", "--device", "cpu")
    assert (code, err.count("\n")) == (2, 1)
    assert "the data of out are not here" in err
    assert "say where they are by --data-root." in err
    mine, theirs = numbers("evaluate", "run"), numbers("evaluate", "out", "--data-root", "mine/notes.txt")
    assert {key for key in mine if mine[key] != theirs[key]} == {"config_digest"}  # of which the path was a part


# --- the card ---


def front_matter(text: str) -> dict[str, Any]:
    """Of a card, as far as it goes: `key: value` and lists."""
    head = text.split("---\n")[1]
    found: dict[str, Any] = {}
    for line in head.splitlines():
        if line.startswith("- "):
            found[list(found)[-1]].append(line[2:])
        else:
            key, _, value = line.partition(":")
            found[key] = value.strip().strip('"') or []
    return found


@pytest.mark.parametrize(
    ("license", "front", "words"),
    [
        (None, {"license": "unknown"}, "The licence of these weights is unknown"),
        ("CC-BY-4.0", {"license": "cc-by-4.0"}, "CC-BY-4.0 (SPDX)"),
        ("gpl-3.0-OR-later", {"license": "other", "license_name": "gpl-3.0-or-later"}, "GPL-3.0-or-later (SPDX)"),
    ],
)
def test_the_card_says_the_licence(run: Path, license: str | None, front: dict[str, str], words: str) -> None:
    export(run, "out", license=license)
    text = Path("out/README.md").read_text()
    found = front_matter(text)
    assert {key: value for key, value in found.items() if key.startswith("license")} == front
    assert found["library_name"] == "pyro-delta"
    assert {"pyro", "vae", "delta-vae", "digits", "gated_pixelcnn"} <= set(found["tags"])
    assert words in text
    export("out", "again")  # keeps it
    assert words in Path("again/README.md").read_text()
    assert json.loads(Path("again/run.json").read_text()).get("license") == (license and words.partition(" ")[0])
    export("out", "other", license="ISC")
    assert "ISC (SPDX)" in Path("other/README.md").read_text()


@pytest.mark.parametrize("license", ["MIT AND", "MIT License", "Apache", "", "MIT\nlicense: x", "(MIT"])
def test_what_is_no_licence_is_refused(run: Path, license: str) -> None:
    with pytest.raises(
        UserError, match=r"is no SPDX expression \(.*\); write such as MIT, CC-BY-4.0 or LicenseRef-Mine"
    ):
        export(run, "out", license=license)
    assert not Path("out").exists()


def changed(run: Path, section: str, **values: Any) -> Path:
    """A run that says that it has other settings."""
    edit_json(run, "config.json", lambda tree: {**tree, section: {**tree[section], **values}})
    forge(run)
    return run


def found_otherwise(run: Path, **values: Any) -> None:
    """Writes other numbers of its check into a run."""
    edit_json(run, "check.json", lambda tree: {**tree, **values})
    forge(run)


@pytest.mark.parametrize(
    ("numbers", "first", "tagged"),
    [
        ({}, "A δ-VAE, made with pyro-delta .*: its posterior cannot collapse onto its prior, .* at least δ = ", True),
        ({"delta_nats": 0.0}, "A variational autoencoder, .* No rate is committed .* nothing but its training", False),
        ({"delta_nats": None}, "A variational autoencoder, .* What rate it commits is not known", False),
        ({"floor_holds": False}, "A variational autoencoder, .* above δ, but its check found that it does not", True),
    ],
)
def test_the_card_says_of_the_posterior_what_is_true_of_this_run(
    run: Path, numbers: dict[str, Any], first: str, tagged: bool
) -> None:
    found_otherwise(run, **numbers)
    export(run, "out")
    text = Path("out/README.md").read_text()
    assert re.fullmatch(f"{first}.*", text.split("\n\n")[2]), text
    assert ("cannot collapse" in text) == (not numbers)
    assert ("delta-vae" in front_matter(text)["tags"]) == tagged


def test_the_card_of_a_strangers_run_holds_no_html_of_theirs(run: Path) -> None:
    script = "<script>alert(1)</script>"
    edit_json(run, "run.json", lambda tree: {**tree, "version": script, "versions": {script: script}})
    edit_json(run, "check.json", lambda numbers: {**numbers, "verdict": script, "advice": script})
    export(run, "out")
    text = Path("out/README.md").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_the_card_of_a_control_says_that_it_does_not_hear_z(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call("train", *TINY, "--set", "likelihood.use_latents=false", "--steps", 1, "--out", "run")
    assert code == 0, err
    export("run", "out")
    text = Path("out/README.md").read_text()
    assert text.split("\n\n")[2].startswith(
        "**This model does not hear its latents** (likelihood.use_latents is false)"
    )
    assert "Committed rate" not in text
    assert "cannot collapse" not in text
    assert "delta-vae" not in front_matter(text)["tags"]


def test_the_card_of_a_run_on_an_array_speaks_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = tokens()
    run = pyro_delta.train({**GRU, "data.levels": 7, "training.steps": 1}, data=x, out="run", device="cpu")
    export(run, "out")
    text = Path("out/README.md").read_text()
    assert "given" not in front_matter(text)["tags"]
    assert "Trained on data that were given in Python (train " in text
    assert "pyro-delta check" not in text
    assert "pyro-delta train" not in text
    assert "x: sequences of shape 4 with 7 levels, in an array" in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"x": x}
    for block in blocks:
        exec(block, names)
    assert pyro_delta.load("DIR").config == run.config


def test_the_card_says_what_was_measured(run: Path) -> None:
    export(run, "out")
    text, found = Path("out/README.md").read_text(), json.loads(Path("run/check.json").read_text())
    assert found["verdict"].rstrip(".") in text
    assert f"δ = {found['delta_nats']:.4g} nats, known by {found['delta_known_by']}" in text
    assert f"| −ELBO | {found['neg_elbo_bpd']:.4f} ± {found['neg_elbo_bpd_se']:.2g} | bits/dim |" in text
    assert "On 60 of the 360 data of the test split, seed 0" in text
    (evaluated,) = (found for found in evaluations(Path("run")) if found["weights"] == "best")
    assert f"| test | model | best | 5 | 3 | {evaluated['neg_elbo_bpd']:.4f} ± " in text
    assert "| last |" not in text
    assert 'pyro_delta.load("out")' in text
    assert "--steps" not in text
    (command,) = [line for line in text.splitlines() if line.startswith("pyro-delta train")]
    assert "--set training.steps=4" in command
    assert "1×8×8: 8 rows" in text
    assert "@inproceedings{razavi2019delta," in text
    assert "has not come to its end" not in text


def test_a_check_of_other_weights_stays_behind(run: Path) -> None:
    found = export(run, "out", weights="last")
    assert found.notes == ("The check that was kept is of other weights, and stays behind.",)
    assert not {"check.json", "terms.npz"} & set(found.files)
    text = Path("out/README.md").read_text()
    assert "No check was kept with this run" in text
    assert "known by" not in text
    assert "In training, at step 4, on the validation split: −ELBO" in text


def test_an_unfinished_run_says_so(run: Path) -> None:
    edit_json(run, "config.json", lambda tree: {**tree, "training": {**tree["training"], "steps": 9}})
    forge(run)
    export(run, "out")
    text = Path("out/README.md").read_text()
    assert "**The training has not come to its end: it has made 4 steps" in text
    assert not Path("out/check.json").exists()  # of what it was before
    assert pyro_delta.load("out").finished is False


def test_licences_are_names_of_the_hub() -> None:
    assert all(name == name.lower() for name in KNOWN_LICENCES)


# --- torch programs ---


def tokens(count: int = 80) -> torch.Tensor:
    """Short sequences, for a recurrence is traced step by step."""
    return torch.randint(5, (count, 4), generator=torch.Generator().manual_seed(0))


def given(shape: tuple[int, ...], spec: Spec, levels: int | None = None) -> Splits:
    """Noise, of numbers every fifth of which is missing."""
    generator = torch.Generator().manual_seed(0)
    if levels is not None:
        return from_tensors(torch.randint(levels, (80, *shape), generator=generator), spec=spec)
    x = torch.randn(80, *shape, generator=generator)
    mask = torch.rand(x.shape, generator=generator) > 0.2
    return from_tensors({"x": torch.where(mask, x, 0.0), "mask": mask}, spec=spec)


SERIES = SeriesSpec(4, ("a", "b", "c"), (0.0, 1.0, 0.0), (1.0, 2.0, 1.0), 0.125)
SMALL = {"channels": (8,), "row_blocks": (1,), "pixel_blocks": 1}
IMAGES = {"prior.rate_nats": 4.0, "prior.dims": 2, "likelihood.mixtures": 2, "training.batch": 8} | {
    f"{kind}.{name}": value for kind in ("likelihood", "guide") for name, value in SMALL.items()
}
GRU = {"prior.alpha": 0.7, "likelihood.program": "gru", "guide.program": "gru", "likelihood.hidden": 4} | {
    "guide.hidden": 4,
    "training.batch": 8,
}
TRANSFORMER = {**GRU, "likelihood.program": "transformer", "likelihood.layers": 1, "likelihood.heads": 2}
SOUND = {"prior.alpha": 0.7, "likelihood.program": "wavenet", "guide.program": "spectral", "training.batch": 8} | {
    "likelihood.channels": 4,
    "likelihood.blocks": 3,
    "guide.hidden": 4,
}
SNAIL = {key: value for key, value in IMAGES.items() if not key.startswith("likelihood")} | {
    f"likelihood.{name}": value
    for name, value in {"program": "pixelsnail", "channels": 4, "blocks": 1, "layers": 1, "heads": 2}.items()
}


OLD = torch.__version__.startswith("2.6.")
"""The oldest torch does not export what indexes by a place that is free, nor Fourier transforms."""


@pytest.mark.parametrize(
    ("data", "settings", "told"),
    [
        ("digits", IMAGES, set()),
        ("digits", {**IMAGES, "data.condition": "labels"}, {"condition"}),
        (tokens(), GRU, set()),
        ({"x": tokens(), "lengths": 1 + torch.arange(80) % 4}, TRANSFORMER, {"lengths"}),
        ("digits", SNAIL, set()),
        (given((4, 3), ScoreSpec(4, 5, voices=3), 5), GRU, set()),
        (given((4, 3), SERIES), GRU, {"mask"}),
        (given((2, 6), SoundSpec(2, samples=6, levels=16), 16), SOUND, set()),
    ],
    ids=["gated_pixelcnn", "conditioned", "gru", "transformer", "pixelsnail", "voices", "series", "wavenet"],
)
def test_torch_programs_compute_what_the_run_does(
    data: Any, settings: dict[str, Any], told: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    preset = "cifar10-small" if isinstance(data, str) else None
    trained = pyro_delta.train({**settings, "training.steps": 2}, data=data, preset=preset, out="run", device="cpu")
    if OLD and "wavenet" in settings.values():
        with pytest.raises(UserError, match=r"cannot make guide\.pt2 of this run .*; leave --torch out"):
            export(trained, "out", torch_programs=True)
        return
    found = export(trained, "out", torch_programs=True)
    made = [
        "guide.pt2",
        "decoder.pt2",
        "decoder_start.pt2",
        *["decoder_row.pt2"] * (isinstance(data, str)),
        "decoder_step.pt2",
        *["decoder_voice.pt2"] * (isinstance(data, Splits) and "wavenet" not in settings.values()),
    ][: 2 if OLD else None]
    assert {file for file in found.files if file.endswith(".pt2")} == set(made)
    assert any("the steps of its sampling stay behind" in note for note in found.notes) == OLD
    text = Path("out/README.md").read_text()
    assert f"{', '.join(made[:-1])} and {made[-1]} are `torch.export` programs" in text
    assert OLD or "`decoder_start(z, extras)`" in text
    run, test = pyro_delta.load("out"), trained.data().test
    guide, decoder = (torch.export.load(Path("out", name)).module() for name in ("guide.pt2", "decoder.pt2"))
    for count in (1, 2, 4):
        some = test.take(slice(0, count))
        extras = dict(some.extras)
        assert set(extras) == told
        with torch.no_grad():
            q = called(run.vae.guide.posterior, extras, some.x)
            z = q.sample()
            p = called(run.vae.model.likelihood, extras, z)
            mean, scale = guide(some.x, extras)
            parameters = decoder(some.x, z, extras)
            torch.testing.assert_close(log_prob_of(p, parameters, some.x), p.log_prob(some.x), rtol=1e-6, atol=1e-5)
            counted = getattr(p, "counted", None)  # what follows the end is read as token 0, a missing number as NaN
            x = some.x if counted is None else torch.where(counted, some.x, p.blank)
            for place, found in step_by_step("out", x, z, extras) if count == 2 and not OLD else ():
                torch.testing.assert_close(found, parameters[(slice(None), *place)], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mean, q.base_dist.loc, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(scale, q.base_dist.scale, rtol=1e-6, atol=1e-6)


def step_by_step(
    folder: str, x: torch.Tensor, z: torch.Tensor, extras: dict[str, torch.Tensor]
) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Place and parameters of each pixel or token by the programs of one step, each told of x before it alone."""
    programs = {path.stem: torch.export.load(path).module() for path in Path(folder).glob("decoder_*.pt2")}
    parameters, state = programs["decoder_start"](z, extras)
    names = list(state)
    if x.dim() < 4:
        voices = x.shape[2] if "decoder_voice" in programs else 1
        for i, place in enumerate(product(*map(range, x.shape[1:]))):
            if i:
                position, voice = divmod(i, voices)
                name, at = ("decoder_voice", voice) if voice else ("decoder_step", position)
                parameters, state = programs[name](torch.tensor(at), x.flatten(1)[:, i - 1], state)
            yield place, parameters
        assert list(state) == names
        return
    for row, column in product(range(x.shape[2]), range(x.shape[3])):
        if column:
            before = x[:, :, row, column - 1]
            parameters, state = programs["decoder_step"](torch.tensor(row), torch.tensor(column), before, state)
        elif row:
            parameters, state = programs["decoder_row"](torch.tensor(row), x[:, :, row - 1], state)
        yield (row, column), parameters
    assert list(state) == names


def log_prob_of(p: Any, parameters: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Log-probabilities from parameters at all positions, by the distributions of a pixel, a token and a number."""
    if isinstance(p, AutoregressiveImage):
        channels, levels = p.event_shape[0], p.network.spec.levels
        pixels = DiscretizedLogisticMixture.from_parameters(parameters, channels=channels, levels=levels)
        return pixels.log_prob(x.movedim(-3, -1)).sum((-2, -1))
    if isinstance(p, AutoregressiveTokens):
        terms = parameters.log_softmax(-1).gather(-1, x.long().unsqueeze(-1)).squeeze(-1)
    else:
        terms = p.scores(parameters, x)
    return (terms if p.counted is None else torch.where(p.counted, terms, 0.0)).flatten(1).sum(-1)


def test_what_torch_cannot_follow_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stops.py").write_text(STOPS)
    code, _, err = call("train", *TINY, "--guide", "stops.py:Stops", "--steps", 2, "--out", "run")
    assert code == 0, err
    before = sorted(path.name for path in tmp_path.iterdir())
    code, _, err = call("export", "run", "out", "--torch")
    assert (code, err.count("\n")) == (2, 1), err
    assert re.match(r"pyro-delta: torch.export of torch .* cannot make guide.pt2 of this run", err), err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# --- refused ---


def test_an_empty_folder_is_taken_and_a_run_in_memory_is_not(run: Path) -> None:
    Path("empty").mkdir()
    export(pyro_delta.load(run), Path("empty"))
    assert same(pyro_delta.load("empty"), pyro_delta.load(run))
    Path("here").mkdir()
    os.chdir("here")
    try:
        export("../run", ".")
        assert same(pyro_delta.load("."), pyro_delta.load("../run"))
        assert "# here\n" in Path("README.md").read_text()
        with pytest.raises(UserError, match=r"^\. is a folder that is not empty"):
            export("../run", ".")
    finally:
        os.chdir("..")
    assert not list(Path().glob(".*.part"))
    loaded = pyro_delta.load(run)
    with pytest.raises(UserError, match="in memory alone"):
        export(Run(loaded.config, loaded.spec, loaded.vae, "last", 4, 4, True), "memory")


WRITES = [
    ["train", *TINY, "--steps", "1", "--out"],
    ["sweep", "digits-collapse", "--out"],
    ["sample", "run", "--num", "1", "--out"],
    ["encode", "run", "test", "--out"],
    ["reconstruct", "run", "test", "--out"],
    ["interpolate", "run", "test", "--out"],
    ["inpaint", "run", "test", "--out"],
    ["report", "run", "--out"],
    ["compare", "run", "run", "--out"],
    ["compare", "run", "run", "--figure"],
    ["delta", "--length", "8", "--dims", "1", "--alpha", "0.9", "--plot"],
    ["export", "run"],
]


@pytest.mark.parametrize("command", WRITES, ids=lambda command: f"{command[0]} {command[-1]}")
def test_a_place_on_the_hub_is_no_path_to_write_to(run: Path, command: list[str]) -> None:
    ending = ".nc" if command[0] == "encode" else ".png"
    code, _, err = call(*command, f"hf:me/x{ending}")
    assert (code, err.count("\n")) == (2, 1), err
    assert f"hf:me/x{ending} is a place on the hub, not a path to write to; give " in err
    assert [path.name for path in Path().iterdir()] == ["run"]


# --- the hub ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in of the hub, which huggingface-hub takes for the real one; a user that is logged in."""
    pytest.importorskip("huggingface_hub")
    with standing_in(tmp_path / "cache", monkeypatch) as found:
        yield found


def test_there_and_back(hub: Hub, run: Path) -> None:
    code, out, err = call("export", run, "--to", "hf:me/first", "--license", "MIT")
    assert (code, out) == (0, f"{hub.address}/me/first\n"), err
    mine, theirs = pyro_delta.load(run), pyro_delta.load("hf:me/first")
    assert same(mine, theirs)
    assert mine.facts == theirs.facts
    assert [method for method, path in hub.asked if path.startswith("/large/")] == ["PUT", "GET"]  # the weights
    (first,) = list(hub.repositories["me/first"].revisions)[1:]
    assert 'pyro_delta.load("hf:me/first")' in hub.repositories["me/first"].revisions[first]["README.md"].decode()
    assert numbers("evaluate", "hf:me/first", "--images", 8) == numbers("evaluate", run, "--images", 8)
    assert call("report", "hf:me/first", "--out", "page.html", "--device", "cpu")[0] == 0
    export("hf:me/first", "copy")
    assert "MIT (SPDX)" in Path("copy/README.md").read_text()
    assert (
        "pyro-delta check hf:me/first --images 60\n" in Path("page.html").read_text()
    )  # without --keep, nor the cache's own path
    code, _, err = call("report", "hf:me/first", run, "--out", "both.html", "--device", "cpu")
    assert code == 0, err
    export(run, "both", to="hf:me/first", weights="last")
    assert same(pyro_delta.load("both"), pyro_delta.load("hf:me/first"))
    assert same(mine, pyro_delta.load(f"hf:me/first@{first}"))
    assert not list(Path().glob(".*.part"))


def test_why_weights_could_not_be_put_is_said(hub: Hub, run: Path) -> None:
    """The package has an error of its own around that."""
    hub.full = True
    with pytest.raises(UserError, match=r"Error while uploading 'checkpoint-\d+.safetensors' to the Hub: \w+: .*507"):
        export(run, to="hf:me/first")


def test_what_the_hub_refuses_is_said(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, to="hf:me/hidden", private=True)
    assert hub.repositories["me/hidden"].private
    pyro_delta.load("hf:me/hidden")
    for place in ("hf:me/nothing", "hf:me/hidden@nowhere"):
        code, _, err = call("evaluate", place, "--device", "cpu")
        assert (code, err.count("\n")) == (2, 1)
        assert f"{place} cannot be fetched" in err
    with pytest.raises(UserError, match="says a revision, which the hub gives itself"):
        export(run, to="hf:me/hidden@mine")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    code, _, err = call("export", run, "out", "--to", "hf:me/other")
    assert (code, err.count("\n")) == (2, 1)
    assert "hf:me/other cannot be written" in err
    assert "log in" in err
    assert not Path("out").exists()
    assert "me/other" not in hub.repositories


def test_programs_from_the_hub_need_trust(own: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(own, to="hf:me/own")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "reader"))
    monkeypatch.setattr(trust, "_ACCEPTED", set())
    with pytest.raises(UserError, match=r"would run mine\.py:Mine \(prior\), which is not shipped"):
        pyro_delta.load("hf:me/own")
    assert pyro_delta.load("hf:me/own", trust=True).step == 2


@pytest.mark.parametrize("args", [("evaluate", "hf:me/first"), ("export", "run", "out", "--to", "hf:me/first")])
def test_without_the_package_it_says_what_to_install(
    run: Path, args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = call(*args)
    assert (code, err.count("\n")) == (2, 1)
    assert "the hub needs huggingface-hub; install the extra: pip install 'pyro-delta[hub]'." in err
    assert not Path("out").exists()
