"""Data and an objective of a user's own file through the commands, and folders of images by their path."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from forged import forge, state_of
from test_cli import SETS, call, write_images

from pyro_delta.build import build, build_objective
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.errors import UserError
from pyro_delta.inference.run import load

MINE = '''\
"""Striped images, and an objective that weighs the rate less at every step."""
from dataclasses import dataclass

import torch
from pyro_delta.data import Split, Splits
from pyro_delta.data.images import ImageSpec


@dataclass(frozen=True)
class Striped(ImageSpec):
    stripes: tuple[tuple[int, ...], ...] = ((0, 2), (1, 3))


class Stripes(Splits):
    """striped images, 1×4×4, 5 levels"""

    def __init__(self, *, count: int = 48, seed: int = 0):
        spec = Striped(1, 4, 4, 5)
        kind = torch.arange(count) % 2
        x = torch.randint(3, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        for label, rows in enumerate(spec.stripes):
            for row in rows:
                x[kind == label, :, row] += 2
        parts = [Split(x[start::3], kind[start::3]) for start in range(3)]
        super().__init__(spec, *parts, ("even", "odd"))


class Lighter:
    """Distortion + weight · rate, the weight falling as 1 / steps."""

    def __init__(self, *, weight: float = 0.5):
        self.weight, self.varying = weight, {"weight": weight}

    def advance(self, step):
        self.varying["weight"] = self.weight / (1 + step)

    def __call__(self, rate, distortion, data):
        return distortion + self.varying["weight"] * rate
'''
OPTIONS = [
    "--dataset", "mine.py:Stripes", "--set", "data.count=60", "--objective", "mine.py:Lighter", "--set",
    "objective.weight=0.25", "--preset", "cifar10-small", "--device", "cpu", *SETS, "--set", "training.batch=5",
]  # fmt: skip
OPTIONS = [part.replace("log_every=5", "log_every=2") for part in OPTIONS]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mine.py and a run of it."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("mine.py").write_text(MINE)
        code, _, err = call("train", *OPTIONS, "--steps", 4, "--out", "run")
    assert code == 0, err
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the current folder."""
    folder = shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_run_keeps_the_programs_and_their_settings(here: Path) -> None:
    config = json.loads((here / "run" / "config.json").read_text())
    assert config["data"] == {"program": "mine.py:Stripes", "count": 60, "seed": 0}
    assert config["objective"] == {"program": "mine.py:Lighter", "weight": 0.25}
    info = json.loads((here / "run" / "run.json").read_text())
    digest = hashlib.sha256(MINE.encode()).hexdigest()
    assert info["programs"] == {
        "data": {"name": "mine.py:Stripes", "digest": digest, "beside": {}},
        "objective": {"name": "mine.py:Lighter", "digest": digest, "beside": {}},
    }
    assert [path.name for path in (here / "run" / "programs").iterdir()] == ["mine.py"]
    assert (here / "run" / "programs" / "mine.py").read_text() == MINE


def test_the_objective_is_what_is_minimised(here: Path) -> None:
    training = [line for line in lines_of(here / "run") if line["split"] == "train"]
    assert [(line["step"], line["weight"]) for line in training] == [(2, 0.25 / 3), (4, 0.25 / 5)]
    for line, weights in zip(training, ((0.25, 0.25 / 2), (0.25 / 3, 0.25 / 4)), strict=True):
        over_distortion = line["loss_bpd"] - line["distortion_bpd"]
        assert min(weights) * 0.9 < over_distortion / line["rate_bpd"] < max(weights) * 1.1
        assert line["neg_elbo_bpd"] == pytest.approx(line["distortion_bpd"] + line["rate_bpd"], rel=1e-6)
    state = state_of(here / "run")
    assert state["objective"] == {"weight": 0.25 / 5}


@pytest.mark.parametrize("original", ["gone", "another"])
def test_the_run_stands_on_its_own_copies(original: str, here: Path, tmp_path: Path) -> None:
    code, out, _ = call("evaluate", "run", "--json")
    assert code == 0
    before = json.loads(out)
    (here / "mine.py").unlink()
    if original == "another":
        (here / "mine.py").write_text("raise ValueError('not this one')\n")
    moved = shutil.move(here / "run", tmp_path / "moved")
    code, out, err = call("evaluate", moved, "--json")
    assert code == 0, err
    assert json.loads(out) == before
    assert before["n_images"] == 20
    code, out, err = call("check", moved, "--json")
    assert code == 1, err  # four steps make no use of latents
    assert json.loads(out)["floor_holds"] is True
    assert json.loads(out)["probe_accuracy"] is not None
    code, _, err = call("train", "--resume", "--out", moved, "--steps", 8)
    assert code == 0, err
    training = [line for line in lines_of(moved) if line["split"] == "train"]
    assert [line["weight"] for line in training] == [0.25 / (1 + step) for step in (2, 4, 6, 8)]


def test_resuming_is_the_training_that_was_not_interrupted(here: Path) -> None:
    options = [*OPTIONS, "--set", "training.decay=none"]
    for run, steps in (("whole", 6), ("parts", 3)):
        assert call("train", *options, "--steps", steps, "--out", run)[0] == 0
    (here / "mine.py").unlink()
    assert call("train", "--resume", "--out", "parts", "--steps", 6)[0] == 0
    whole, parts = (state_of(here / run) for run in ("whole", "parts"))
    torch.testing.assert_close(parts["vae"], whole["vae"], rtol=0, atol=0)
    assert parts["objective"] == whole["objective"]


def test_a_spec_of_its_own_class_comes_back_whole(here: Path) -> None:
    (here / "mine.py").unlink()
    run = load(here / "run")
    assert type(run.spec).__name__ == "Striped"
    assert isinstance(run.spec, ImageSpec)
    assert run.spec.stripes == ((0, 2), (1, 3))
    data = run.data()
    assert data.spec == run.spec
    assert data.classes == ("even", "odd")
    assert len(data.train) == 20


def test_a_changed_copy_is_refused(here: Path) -> None:
    (here / "run" / "programs" / "mine.py").write_text(MINE + "\n")
    for _ in range(2):
        for command in (["evaluate", "run"], ["train", "--resume", "--out", "run", "--steps", "9"]):
            code, _, err = call(*command)
            assert (code, err.count("\n")) == (2, 1)
            assert "the run's data 'mine.py:Stripes' has changed: run/programs/mine.py is not what" in err
        forge(here / "run")  # checksums that fit do not help


def test_two_files_of_one_name_are_refused(here: Path) -> None:
    (here / "other").mkdir()
    (here / "other" / "mine.py").write_text(MINE + "\n# another\n")
    options = [part.replace("mine.py:Lighter", "other/mine.py:Lighter") for part in OPTIONS]
    code, _, err = call("train", *options, "--steps", 1, "--out", "new")
    assert (code, err.count("\n")) == (2, 1)
    assert "two programs are in files called mine.py; rename one of them." in err


def test_their_settings_are_checked_like_any_others(here: Path) -> None:
    for more, words in (
        (["--set", "data.cuont=3"], "unknown setting of the data 'mine.py:Stripes' 'data.cuont'; did you mean"),
        (["--set", "objective.wieght=3"], "unknown setting of the objective 'mine.py:Lighter' 'objective.wieght'; did"),
        (["--data-root", "somewhere"], "unknown setting of the data 'mine.py:Stripes' 'data.root'"),
    ):
        code, _, err = call("train", *OPTIONS, *more, "--steps", 1, "--out", "new")
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    code, _, err = call("evaluate", "run", "--data-root", "somewhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "the data 'mine.py:Stripes' take no root, so --data-root somewhere has no meaning" in err
    code, _, err = call("train", "--resume", "--out", "run", "--set", "objective.weight=1")
    assert (code, "objective.weight=0.25, not 1" in err) == (2, True)
    assert not (here / "new").exists()


def test_data_without_a_preset_are_trained_with_the_default_one(here: Path) -> None:
    code, out, err = call("train", "--dataset", "mine.py:Stripes", "--steps", 1, "--set", "training.batch=5", "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == "runs/mine.py-Stripes-default-0"
    assert json.loads((here / json.loads(out)["run"] / "run.json").read_text())["preset"] == "default"
    (here / "mine.py").write_text(MINE.replace('    """striped', '    preset = "photos"\n    """striped'))
    code, out, err = call("train", "--dataset", "mine.py:Stripes", "--steps", 1, "--set", "training.batch=5", "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == "runs/mine.py-Stripes-photos-0"


BROKEN = {
    "no such class": ("Lihgter", MINE, "unknown objective of mine.py 'Lihgter'; did you mean 'Lighter'?"),
    "no number": ("Lighter", MINE.replace("return distortion +", "return 'much',"), "gives tuple; it must give one nu"),
    "a float": ("Lighter", MINE.replace("return distortion +", "return 1.0 #"), "gives float; it must give one number"),
    "many numbers": (
        "Lighter", MINE.replace("return distortion +", "return torch.ones(3) *"),
        "gives a tensor of shape (3,); it must give one number, a tensor."),
    "fails": (
        "Lighter", MINE.replace("return distortion +", "return distortion.no +"),
        "mine.py:Lighter fails at mine.py, line 38: AttributeError: 'Tensor' object has no attribute 'no'; mend the"),
    "not callable": ("Lighter", MINE.replace("__call__", "call"), "makes a Lighter; it must be callable."),
    "detached": ("Lighter", MINE.replace("return distortion +", "return torch.ones(()) #"),
        "gives a number without a gradient; compute it of rate and distortion as they are"),
    "no step": ("Lighter", MINE.replace("advance(self, step)", "advance(self)"),
        "fails: TypeError: Lighter.advance() takes 1 positional argument but 2 were given; mend the program."),
    "no advance": (
        "Lighter", MINE.replace("def advance(self, step):\n        ", "advance = 3\n    def other(self, step):"),
        "TypeError: 'int' object is not callable; mend the program."),
    "varying a number": (
        "Lighter", MINE.replace('["weight"] = self', " = self").replace('self.varying["weight"]', "0.5"),
        "has varying 0.125; it must be a dict of names and numbers."),
    "varying a word": ("Lighter", MINE.replace("self.weight / (1 + step)", "'less'"),
        "has varying['weight'] = 'less'; it must be a name and a number"),
    "varying of NumPy": ("Lighter", MINE.replace("self.weight / (1 + step)", "__import__('numpy').float64(1)"),
        "has varying['weight'] = np.float64(1.0); it must be a name and a number"),
    "a plain function": ("plain", MINE + "\n\ndef plain(rate, distortion, data):\n    return rate + distortion\n",
        "the objective 'mine.py:plain' asks for rate, distortion, data to be made; name what makes it of its options"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_objectives_are_one_sentence(name: str, text: str, words: str, here: Path) -> None:
    (here / "mine.py").write_text(text)
    options = [part.replace("mine.py:Lighter", f"mine.py:{name}") for part in OPTIONS]
    code, _, err = call("train", *options, "--steps", 1, "--out", "new")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not (here / "new").exists()


def test_an_objective_that_fails_later_is_one_sentence(here: Path) -> None:
    (here / "mine.py").write_text(MINE.replace("self.weight / (1 + step)", "1 / (2 - step)"))
    code, _, err = call("train", *OPTIONS, "--steps", 4, "--out", "new")
    assert code == 2
    assert err.splitlines()[-1] == (
        "pyro-delta: mine.py:Lighter fails at mine.py, line 35: ZeroDivisionError: division by zero; mend the program."
    )


def test_an_objective_may_ask_for_the_rate_of_each_dimension(here: Path) -> None:
    text = MINE.replace("class Lighter:", "class Lighter:\n    per_dimension = True\n")
    text = text.replace('self.varying["weight"] * rate', "(torch.tensor([1.0, 0.0, 0.5]) * rate).sum()")
    (here / "mine.py").write_text(text)
    options = [part.replace("prior.dims=2", "prior.dims=3") for part in OPTIONS]
    code, _, err = call("train", *options, "--steps", 2, "--out", "new")
    assert code == 0, err
    (line, *_) = lines_of(here / "new")
    assert line["distortion_bpd"] < line["loss_bpd"] < line["neg_elbo_bpd"]


def test_an_objective_may_be_made_by_a_function(here: Path) -> None:
    text = "def half(*, part: float = 0.5):\n    return lambda rate, distortion, data: distortion + part * rate\n"
    (here / "f.py").write_text(text)
    options = [part.replace("mine.py:Lighter", "f.py:half").replace("weight", "part") for part in OPTIONS]
    code, _, err = call("train", *options, "--steps", 2, "--out", "new")
    assert code == 0, err
    (line, *_) = lines_of(here / "new")
    assert line["loss_bpd"] == pytest.approx(line["distortion_bpd"] + 0.25 * line["rate_bpd"], rel=0.1)


def test_trying_an_objective_leaves_no_mark(here: Path) -> None:
    (here / "mine.py").write_text(MINE.replace("return distortion", "self.varying['n'] = 1; return distortion"))
    made = build_objective(load_preset("digits", [("objective.program", "mine.py:Lighter")]))
    assert made.varying == {"weight": 0.5}
    with pytest.raises(UserError, match=r"cannot read the program nowhere/mine\.py"):
        build_objective(load_preset("digits", [("objective.program", "mine.py:Lighter")]), Path("nowhere"))


# --- folders of images, by their path ---


FOLDER = ["--preset", "cifar10-small", "--device", "cpu", *SETS, "--set", "training.batch=4", "--steps", "2"]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `mine` of 12 images in the current folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_images(Path("mine"), 12)
    return tmp_path / "here"


def data_of(run: str) -> dict[str, Any]:
    return json.loads(Path(run, "config.json").read_text())["data"]


def evaluated(*args: object) -> dict[str, Any]:
    code, out, err = call("evaluate", *args, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_path_after_the_colon_is_the_root(images: Path) -> None:
    expected = {"program": "folder", "root": "mine", "validation": None, "seed": 0}
    for run, data in (
        ("a", ["--dataset", "folder:mine"]),
        ("b", ["--dataset", "folder", "--data-root", "mine"]),
        ("c", ["--dataset", "folder:mine", "--data-root", "mine"]),
        ("d", ["--set", "data.program=folder:mine"]),
    ):
        code, _, err = call("train", *data, *FOLDER, "--out", run)
        assert code == 0, err
        assert expected.items() <= data_of(run).items()
    first, *others = (state_of(images / run)["vae"] for run in "abcd")
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    # not the preset's own options alone: the path after the colon goes through a preset that names other data, too
    assert load_preset("descriptions", [("data.program", "folder:x:y")]).data.options["root"] == "x:y"


def test_a_folder_that_moved_is_named_by_its_root(images: Path) -> None:
    assert call("train", "--dataset", "folder:mine", *FOLDER, "--out", "run")[0] == 0
    before = evaluated("run")
    shutil.move("mine", "moved")
    code, _, err = call("evaluate", "run")
    assert (code, err) == (
        2,
        f"pyro-delta: the data of run were in {Path('mine').absolute()}, which is not there any more (there is no data "
        "folder mine; give one that holds train/ and test/); say where they are now by --data-root.\n",
    )
    assert evaluated("run", "--data-root", "moved") == before
    assert data_of("run")["root"] == "mine"
    code, out, err = call("check", "run", "--data-root", "moved", "--json")
    assert json.loads(out)["n_images"] == 12, err
    code, _, err = call("reconstruct", "run", "test", "--out", "r.png", "--data-root", "moved")
    assert code == 0, err
    code, _, err = call("train", "--resume", "--out", "run", "--steps", 3)
    assert (code, "there is no data folder mine" in err) == (2, True)
    code, _, err = call("train", "--resume", "--out", "run", "--steps", 3, "--data-root", "moved")
    assert code == 0, err
    assert data_of("run")["root"] == "moved"
    assert evaluated("run")["n_images"] == 12
    shutil.move("moved", "again")
    code, _, err = call("train", "--resume", "--out", "run", "--steps", 4, "--dataset", "folder:again")
    assert code == 0, err
    assert {"program": "folder", "root": "again", "validation": None, "seed": 0}.items() <= data_of("run").items()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["--dataset", "folder:mine", "--data-root", "other"], "data.root=other and folder:mine contradict each other"),
        (["--dataset", "folder:mine", "--data-root", "mine", "--set", "prio.dims=1"], "did you mean 'prior.dims'?"),
        (["--dataset", "folder"], "data.root is missing; give it a value."),
        (["--dataset", "folder:"], "the data 'folder:' lack what follows the colon; write folder:PATH."),
        (["--dataset", "folder:other"], "there is no data folder other"),
        (["--dataset", "folders:mine"], "there is no module folders for the data 'folders:mine'; check its spelling."),
    ],
)
def test_a_folder_needs_one_path(data: list[str], words: str, images: Path) -> None:
    code, _, err = call("train", *data, *FOLDER, "--out", "new")
    assert (code, err.count("\n")) == (2, 1), err
    assert words in err
    assert not (images / "new").exists()


def test_a_run_gets_a_name_of_its_folder(images: Path) -> None:
    code, out, err = call("train", "--dataset", "folder:./mine", *FOLDER, "--json")
    assert code == 0, err
    assert json.loads(out)["run"] == "runs/folder-mine-cifar10-small-0"


def test_what_is_called_wrongly_is_named_without_torch_s_files(tmp_path: Path) -> None:
    (tmp_path / "noz.py").write_text(
        "import torch\nclass L(torch.nn.Module):\n    def __init__(self, spec, prior):\n        super().__init__()\n"
        "    def forward(self):\n        return None\n"
    )
    with pytest.raises(UserError, match=r"noz.py:L fails: TypeError: .*forward\(\) takes 1 positional argument"):
        build(load_preset("digits", [("likelihood.program", f"{tmp_path}/noz.py:L")]), ImageSpec(1, 4, 4, 5))


@pytest.mark.parametrize("key", ["batch", "z"])
def test_keys_that_models_take_for_something_else(key: str) -> None:
    example = {"x": torch.zeros(2, 1, 4, 4, dtype=torch.uint8), key: torch.ones(2)}
    with pytest.raises(UserError, match=f"a batch has the key '{key}', which a model takes for something else"):
        build(load_preset("digits"), ImageSpec(1, 4, 4, 5), example=example)
