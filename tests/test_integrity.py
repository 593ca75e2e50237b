"""What a run folder is worth: damage, forgeries, strangers' programs, two writers and other data."""

import errno
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forged import edit_json, edit_state, forge, former, newest
from test_cli import SETTINGS, TINY, call, write_images

import pyro_delta
from pyro_delta import trust
from pyro_delta.api.kept import kept
from pyro_delta.api.train import begin, carry_out
from pyro_delta.errors import UserError
from pyro_delta.files import bytes_of, written_whole
from pyro_delta.inference import manifest as manifests
from pyro_delta.lock import LOCK, Lock
from pyro_delta.programs import check_copies, copies

HELPER = "RATE = {rate}\n"
MINE = """
from pathlib import Path
from pyro_delta.models import AR1Prior

class Mine(AR1Prior):
    twin = None
    def __init__(self, spec, *, dims: int = 2):
        import helper
        Path({proof!r}).write_text("ran")
        super().__init__(spec, dims=dims, rate_nats=helper.RATE)
"""


def train(folder: Path, *more: object) -> Path:
    code, _, err = call("train", *TINY, "--steps", 10, "--out", folder, *more)
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 10 steps, with a check and an auxiliary prior."""
    run = train(tmp_path_factory.mktemp("integrity") / "run")
    call("check", run, "--keep", "--told-samples", 2, "--told-images", 4)
    assert call("train-prior", run, "--steps", 1, "--hidden", 2)[0] == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def numbers_of(run: Path) -> Any:
    """All that is read of a run."""
    loaded = pyro_delta.load(run, prior="auxiliary")
    found = kept(run)
    assert found is not None
    weights = {name: value.numpy().tobytes() for name, value in loaded.vae.state_dict().items()}
    return weights, loaded.facts, loaded.metrics, found.numbers, found.rate_b.tobytes(), loaded.spec, loaded.config


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


# --- Damage ---


def test_single_bits_are_missed_or_harmless(run: Path) -> None:
    before, generator = numbers_of(run), random.Random(0)
    files = sorted(p for p in run.iterdir() if p.is_file() and p.name != ".lock")
    outcome = {"detected": 0, "passed over": 0, "harmless": 0}
    for number in range(200):
        path = files[number % len(files)]
        bit = generator.randrange(8 * path.stat().st_size)
        flip(path, bit)
        try:
            found = numbers_of(run)
        except UserError:
            outcome["detected"] += 1
        else:
            assert (found == before) or pyro_delta.load(run).notes, (path.name, bit)
            outcome["harmless" if found == before else "passed over"] += 1
        flip(path, bit)
    assert numbers_of(run) == before
    assert outcome["detected"] > 100


def test_a_damaged_checkpoint_falls_back_on_the_one_before(run: Path) -> None:
    flip(newest(run), 80_000)
    words = (
        "checkpoint-00000010.safetensors is damaged or missing and is passed over: what follows is of the checkpoint"
    )
    code, out, err = call("evaluate", run, "--json", "--images", 5)
    assert (code, json.loads(out)["step"]) == (0, 5)
    assert words in err
    code, _, err = call("train", "--resume", "--out", run)
    assert code == 0
    assert words in err
    assert "2 lines of metrics, up to step 10, came after the checkpoint of step 5, and those steps are made" in err
    code, out, err = call("evaluate", run, "--json", "--images", 5)
    assert (code, err, json.loads(out)["step"]) == (0, "", 10)
    for path in run.glob("checkpoint-*"):
        flip(path, 80_000)
    code, _, err = call("evaluate", run)
    assert code == 2
    assert "all 2 checkpoints of" in err


def test_what_a_killed_process_left_is_swept(run: Path) -> None:
    part = run / ".checkpoint-00000012.safetensors.0123abcd.part"
    part.write_bytes(b"half")
    assert call("train", "--resume", "--out", run, "--steps", 11)[0] == 0
    assert not part.exists()


def test_a_run_of_the_former_format_is_read_and_said_to_be_unverified(trained: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    before = json.loads(call("evaluate", run, "--images", 5, "--json")[1])
    former(run)
    code, out, err = call("evaluate", run, "--images", 5, "--json")
    assert code == 0
    assert "was written by an older pyro-delta, without checksums: damage may go unseen." in err
    assert {**json.loads(out), "data_as_trained": True} == before
    code, _, err = call("train", "--resume", "--out", run, "--steps", 20)
    assert (code, "it is read, but not gone on with" in err) == (2, True)


def test_a_kept_check_outlives_new_options_and_no_other_change(run: Path) -> None:
    def without(tree: dict[str, Any]) -> dict[str, Any]:
        del tree["training"]["recompute"], tree["likelihood"]["pixel_kernel"]
        return tree

    def changed(tree: dict[str, Any]) -> dict[str, Any]:
        tree["training"]["log_every"] += 1
        return tree

    edit_json(run, "config.json", without)  # as a version left it that did not have these options yet
    assert kept(run) is None
    text = json.dumps(json.loads((run / "config.json").read_text()), sort_keys=True)
    then = hashlib.sha256(text.encode()).hexdigest()[:16]
    edit_json(run, "check.json", lambda numbers: {**numbers, "config_digest": then})
    assert kept(run) is not None
    assert pyro_delta.load(run).facts["config_digest"] == then
    edit_json(run, "config.json", changed)
    assert kept(run) is None


# --- Well-formed files with wrong contents, whose checksums fit ---


def info(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def altered(tree: dict[str, Any]) -> dict[str, Any]:
        change(tree)
        return tree

    return lambda run: edit_json(run, "run.json", altered)


def settings(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def altered(tree: dict[str, Any]) -> dict[str, Any]:
        change(tree)
        return tree

    return lambda run: edit_json(run, "config.json", altered)


def state(**values: Any) -> Callable[[Path], None]:
    return lambda run: edit_state(run, lambda state: state.update(values))


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / name).write_text(content)
        forge(run)

    return write


def first_weight(value: float) -> Callable[[Path], None]:
    def change(state: dict[str, Any]) -> None:
        for weights in (state["average"], state["vae"], (state["best"] or {"vae": state["vae"]})["vae"]):
            next(v for k, v in weights.items() if k.endswith("weight")).view(-1)[0] = value

    return lambda run: edit_state(run, change)


def terms(rate: Any) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        with written_whole(run / "terms.npz") as file:
            np.savez_compressed(file, rate=rate, distortion=rate)
        forge(run)

    return write


def checked(**values: Any) -> Callable[[Path], None]:
    return lambda run: edit_json(run, "check.json", lambda numbers: {**numbers, **values})


def without(key: str) -> Callable[[Path], None]:
    return lambda run: edit_json(run, "check.json", lambda numbers: {k: v for k, v in numbers.items() if k != key})


DEEP = "[" * 100_000
STEERS = "\x1b]0;owned\x07"
EVALUATION = ("n_images", "seed", "step", "config_digest")
WRONG: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a record of a program that is empty": ("run.json", info(lambda t: t.update(programs={"prior": {}}))),
    "programs as a list": ("run.json", info(lambda t: t.update(programs=[]))),
    "a number for a preset": ("run.json", info(lambda t: t.update(preset=3))),
    "a spec as text": ("run.json", info(lambda t: t.update(spec="digits"))),
    "a spec of another module": ("run.json", info(lambda t: t["spec"].update(kind="os:getcwd"))),
    "a spec of no kind": ("run.json", info(lambda t: t["spec"].pop("kind"))),
    "a spec with a list for a number": ("run.json", info(lambda t: t["spec"].update(height=[8]))),
    "a huge number in the spec": ("run.json", info(lambda t: t["spec"].update(levels=10**300))),
    "no data": ("run.json", info(lambda t: t.pop("data"))),
    "a count below 0": ("run.json", info(lambda t: t["data"]["splits"]["train"].update(count=-1))),
    "a split without a digest": ("run.json", info(lambda t: t["data"]["splits"]["test"].pop("digest"))),
    "deep run.json": ("run.json", text("run.json", DEEP)),
    "a format as text": ("run.json", info(lambda t: t.update(format="3"))),
    "deep config.json": ("config.json", text("config.json", '{"data":' * 50_000)),
    "numbers of thousands of digits": ("config.json", text("config.json", "1" * 5000)),
    "a number for a program": ("config.json", settings(lambda t: t["prior"].update(program=3))),
    "a section as a number": ("config.json", settings(lambda t: t.update(training=3))),
    "NaN in the settings": ("config.json", settings(lambda t: t["training"].update(lr=float("nan")))),
    "a list for a number": ("config.json", settings(lambda t: t["training"].update(batch=[5]))),
    "an unknown setting": ("config.json", settings(lambda t: t["training"].update(lrr=1))),
    "another program by name": ("has no digest", settings(lambda t: t["prior"].update(program="os:getcwd"))),
    "optimizer=None": ("resume", state(optimizer=None)),
    "an optimiser of nothing": ("resume", state(optimizer={})),
    "step as text": ("step", state(step="x")),
    "step below 0": ("step", state(step=-1)),
    "a huge step": ("step", state(step=10**40)),
    "seconds that are NaN": ("train_s", state(train_s=float("nan"))),
    "weights as numbers": ("average", state(average={"weight": 3})),
    "no weights": ("average", state(average=None)),
    "the best as a list": ("best", state(best=[1])),
    "no random state": ("resume", state(rng={})),
    "a random state of another size": ("resume", state(rng={"cpu": torch.zeros(3, dtype=torch.uint8)})),
    "settings as text": ("config", state(config="x")),
    "a weight that is NaN": ("not finite", first_weight(float("nan"))),
    "a weight that is infinite": ("not finite", first_weight(float("inf"))),
    "metrics with a list": ("metrics", text("metrics.jsonl", '{"step": 1, "split": "train", "lr": []}\n')),
    "deep metrics": ("metrics", text("metrics.jsonl", DEEP + "\n")),
    "a manifest of something else": ("manifest", text("metrics.jsonl", "")),
    "a check that is a list": ("kept", text("check.json", "[]")),
    "a deep check": ("check.json", text("check.json", DEEP)),
    "evaluations of no list": ("evaluations", text("evaluations.json", '{"split": "test"}')),
    "evaluations without a split": ("evaluations", text("evaluations.json", "[{}]")),
    "deep evaluations": ("evaluations.json", text("evaluations.json", DEEP)),
    "terms of another length": ("kept", terms(np.ones(3))),
    "terms that are NaN, of a run that has not diverged": ("kept", terms(np.full(360, np.nan))),
    "a check of no split": ("kept", checked(split="all")),
    **{f"a check whose {key} is text": ("kept", checked(**{key: "x"})) for key in ("rate_nats_mean", "probe_accuracy")},
    **{
        f"a check whose {key} is a number": ("kept", checked(**{key: 1}))
        for key in ("floor_holds", "verdict", "advice")
    },
    **{f"a check without {key}": ("kept", without(key)) for key in ("rate_nats_min", "floor_holds", "seed")},
    "an evaluation of no split": (
        "evaluations",
        text("evaluations.json", json.dumps([dict.fromkeys(EVALUATION, 1) | {"split": "all", "finished": True}])),
    ),
    "a preset that steers a terminal": ("run.json", info(lambda t: t.update(preset=STEERS))),
    "a version that does": ("run.json", info(lambda t: t.update({STEERS: "1"}))),
    "settings that do": ("config.json", settings(lambda t: t.update({STEERS: {}}))),
    "a verdict that does": ("check.json", checked(verdict=STEERS)),
    "a verdict in reverse": ("check.json", checked(verdict="\u202eabc")),
    "a verdict of half a character": ("check.json", checked(verdict="\ud800")),
    "an evaluation that steers": ("evaluations.json", text("evaluations.json", json.dumps([{"prior": STEERS}]))),
    "metrics that steer": ("metrics", text("metrics.jsonl", json.dumps({"step": 1, "split": STEERS}) + "\n")),
    "terms as objects": ("kept", terms(np.array(["a"] * 360))),
}


@pytest.mark.parametrize(("words", "change"), WRONG.values(), ids=WRONG)
def test_wrong_contents_are_refused_before_anything_is_rewritten(
    words: str, change: Callable[[Path], None], run: Path
) -> None:
    change(run)
    if words == "manifest":
        (run / "manifest.json").write_text(json.dumps({"files": [], "sha256": 3}))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    command = {
        "resume": ["train", "--resume", "--out", run, "--steps", 12],
        "metrics": ["train", "--resume", "--out", run, "--steps", 12],
        "kept": ["compare", run],
        "check.json": ["compare", run],
        "evaluations": ["report", run],
        "evaluations.json": ["report", run],
    }.get(words, ["evaluate", run, "--images", 5])
    code, _, err = call(*command)
    assert code == 2, err
    assert err.count("\n") == 1
    assert {"resume": "checkpoint-00000010"}.get(words, words) in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# --- Programs of others ---


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a program that imports a file beside it, as somebody else receives it; `proof` says that it ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "author"))
    Path("theirs").mkdir()
    Path("theirs/helper.py").write_text(HELPER.format(rate=3))
    Path("theirs/mine.py").write_text(MINE.format(proof=str(tmp_path / "proof")))
    pairs = [("--set", f"{key}={value}") for key, value in SETTINGS.items() if key != "prior.rate_nats"]
    options = [*TINY[:6], *(part for pair in pairs for part in pair), "--prior", "theirs/mine.py:Mine"]
    code, _, err = call("train", *options, "--steps", 4, "--out", "run")
    assert code == 0, err
    shutil.rmtree("theirs")
    Path("proof").unlink()
    return tmp_path / "run"


COMMANDS = [
    ["evaluate", "run", "--images", "5"], ["check", "run"], ["sample", "run", "--num", "1", "--out", "a.png"],
    ["encode", "run", "test", "--out", "a.nc"], ["reconstruct", "run", "test", "--out", "a.png"],
    ["interpolate", "run", "test", "--out", "a.png"], ["inpaint", "run", "test", "--rows", "4", "--out", "a.png"],
    ["crosscheck", "run"], ["train", "--resume", "--out", "run"], ["train-prior", "run"], ["compare", "run"],
]  # fmt: skip


def test_a_strangers_run_runs_nothing_unless_it_is_trusted(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(path.name for path in (foreign / "programs").iterdir()) == ["helper.py", "mine.py"]
    code, _, err = call("evaluate", "run", "--images", 5)
    assert code == 0, err  # its author's
    shutil.move("run", "moved")
    shutil.move("moved", "run")
    Path("proof").unlink()
    monkeypatch.setenv("XDG_DATA_HOME", str(foreign.parent / "reader"))
    for command in COMMANDS:
        code, _, err = call(*command)
        assert (code, err.count("\n")) == (2, 1), command
        assert "run would run theirs/mine.py:Mine (prior), which is not shipped" in err
    assert not Path("proof").exists()
    monkeypatch.setattr(trust, "_ACCEPTED", set())
    code, out, err = call("evaluate", "run", "--images", 5, "--trust", "--json")
    assert code == 0, err
    assert json.loads(out)["delta_nats"] == pytest.approx(3)
    assert Path("proof").exists()


def test_a_program_that_imports_a_changed_file_is_refused(foreign: Path) -> None:
    (foreign / "programs" / "helper.py").write_text(HELPER.format(rate=0.25))
    for _ in range(2):
        code, _, err = call("evaluate", "run", "--trust")
        assert code == 2
        assert "has changed: run/programs/helper.py is not what the run was made with" in err
        forge(foreign)


@pytest.mark.parametrize("where", ["no record", "settings", "spec"])
def test_edited_files_alone_run_nothing(where: str, foreign: Path, trained: Path) -> None:
    if where == "no record":
        edit_json(foreign, "run.json", lambda tree: {**tree, "programs": {}})
        words = "of which its run.json has no digest"
    elif where == "settings":
        edit_json(foreign, "config.json", lambda tree: {**tree, "prior": {**tree["prior"], "dims": 3}})
        words = "would run theirs/mine.py:Mine"
    else:
        edit_json(foreign, "run.json", lambda tree: {**tree, "spec": {**tree["spec"], "kind": "antigravity:fly"}})
        words = "antigravity:fly"
    trust._ACCEPTED.clear()
    code, _, err = call("evaluate", "run")
    assert (code, words in err) == (2, True), err
    assert not Path("proof").exists()
    assert "antigravity" not in sys.modules


STRANGE = """
from pathlib import Path
from pyro_delta.models import AR1Prior as Mine
Path({proof!r}).write_text("ran")
"""


@pytest.fixture
def strange(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A received run of shipped programs, beside a file and a module that it does not name; `proof` says they ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("run/strange.py", "strangers.py"):
        Path(name).write_text(f"# {os.urandom(8).hex()}\n" + STRANGE.format(proof=str(tmp_path / "proof")))
    yield run
    sys.modules.pop("strangers", None)


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "pyro_delta.programs:object_at", "place": "run/strange.py:Mine"},
        {"kind": "pyro_delta.programs:import_module", "name": "strangers"},
        {"kind": "pyro_delta.api.train:train", "out": "mine", "settings": {"prior.program": "run/strange.py:Mine"}},
        {"kind": "pyro_delta.inference.recorder:Recorder", "folder": "mine", "show": None},
        {"kind": "pyro_delta.lock:Lock", "folder": "mine"},
    ],
    ids=lambda spec: spec["kind"],
)
def test_a_spec_calls_nothing_but_the_class_of_a_spec(spec: dict[str, Any], strange: Path) -> None:
    edit_json(strange, "run.json", lambda tree: {**tree, "spec": spec})
    code, _, err = call("evaluate", "run", "--images", 5)
    assert (code, "is not a spec of data" in err) == (2, True), err
    assert not Path("proof").exists()
    assert not Path("mine").exists()


@pytest.mark.parametrize("kind", ["prior", "spec", "twin"])
def test_records_of_programs_that_are_not_named_import_nothing(kind: str, strange: Path) -> None:
    Path("strange_package").mkdir()
    shutil.copy("strangers.py", "strange_package/__init__.py")
    Path("strange_package/part.py").touch()
    record = {"name": "strange_package.part:Mine", "digest": hashlib.sha256(b"").hexdigest(), "beside": {}}
    edit_json(strange, "run.json", lambda tree: {**tree, "programs": {kind: record}})
    code, _, err = call("evaluate", "run", "--images", 5)
    assert (code, "strange_package.part:Mine" in err) == (2, True), err
    assert not Path("proof").exists()
    assert "strange_package" not in sys.modules


@pytest.mark.parametrize("rest", ["whole", "no copy of it", "another copy", "config.json alone"])
@pytest.mark.parametrize("name", ["run/strange.py:Mine", "strangers:Mine"])
def test_settings_of_a_received_run_name_nothing_that_runs(name: str, rest: str, strange: Path) -> None:
    edit_json(strange, "config.json", lambda tree: {**tree, "prior": {"program": name, "dims": 2}})
    if rest in ("whole", "another copy"):
        (strange / "programs").mkdir()
        (strange / "programs" / ("strange.py" if rest == "whole" else "other.py")).write_text("")
    if rest == "config.json alone":
        (strange / "run.json").unlink()
    command = ["train", "--config", "run/config.json", "--dry-run"]
    code, _, err = call(*command)
    assert (code, name in err, err.count("\n")) == (2, True, 1), err
    assert not Path("proof").exists()
    assert call(*command, "--prior", "ar1")[0] == 0  # the rest of its settings will do
    assert not Path("proof").exists()


# --- Links and names that lead out of a received folder ---


@pytest.mark.parametrize(
    ("name", "command"),
    [
        (".lock", ["evaluate", "run", "--images", "5"]),
        ("evaluations.json", ["evaluate", "run", "--images", "5"]),
        ("manifest.json", ["evaluate", "run", "--images", "5"]),
        ("report.html", ["report", "run"]),
        ("check.json", ["check", "run", "--keep", "--told-samples", "2", "--told-images", "4"]),
        ("metrics.jsonl", ["train", "--resume", "--out", "run", "--steps", "11"]),
        ("samples", ["train", "--resume", "--out", "run", "--steps", "11"]),
        ("auxiliary.safetensors", ["train-prior", "run", "--steps", "1", "--hidden", "2"]),
    ],
)
@pytest.mark.parametrize("leads", ["to a file", "to nothing"])
def test_links_in_a_run_are_not_written_through(
    leads: str, name: str, command: list[str], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outside, inside = tmp_path / "outside", run / name
    if leads == "to a file" and inside.exists():
        shutil.move(inside, outside)
    elif leads == "to a file":
        outside.write_text("mine")
    elif inside.is_dir():
        shutil.rmtree(inside)
    else:
        inside.unlink(missing_ok=True)
    if leads == "to nothing" and name in ("manifest.json", "metrics.jsonl"):
        pytest.skip("it is no run without")
    inside.symlink_to(outside)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, _, err = call(*command)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    if command[0] == "evaluate":  # which only reads, where it may not write
        assert code == 0, err
    else:
        assert (code, f"run/{name} is a link" in err) == (2, True), err


@pytest.mark.parametrize("name", ["programs/../../../stolen", "../stolen", "/stolen", "programs/a/b", "programs/.."])
def test_names_in_a_manifest_lead_nowhere(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (run / "programs").mkdir()
    found = manifests.read(run)
    assert found is not None
    files = {**found.files, "programs/a.py": [hashlib.sha256(b"").hexdigest()], name: ["0"]}
    (run / "programs" / "a.py").touch()
    manifests.write(run, found.model_copy(update={"files": files}))
    code, _, err = call("export", run, "out")
    assert (code, "manifest.json is damaged" in err) == (2, True), err
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["../../../stolen", "/stolen", "a\x1b[2Jb"])
def test_the_preset_of_a_received_run_names_no_folder(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a" / "b" / "c"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    edit_json(run, "run.json", lambda info: info | {"preset": name})
    forge(run)
    code, out, err = call("train", "--config", run / "config.json", "--steps", 1)
    assert code == 0, err
    assert [folder.name for folder in Path("runs").iterdir()] == ["digits-digits-0"]
    assert "\x1b" not in out + err


@pytest.mark.parametrize(
    ("imports", "file"),
    [
        ("from {0}.helper import RATE", "{0}/helper.py"),
        ("from .helper import RATE", "{0}/helper.py"),
        ("from . import helper; RATE = helper.RATE", "{0}/helper.py"),
        ("from .deep import helper; RATE = helper.RATE", "{0}/deep/helper.py"),
        ("import {0}.deep.helper; RATE = {0}.deep.helper.RATE", "{0}/deep/helper.py"),
        ("from {0}.between import RATE", "{0}/helper.py"),
        ("from {0} import RATE", "{0}/__init__.py"),
        ("from beside_{0} import RATE", "beside_{0}.py"),
    ],
)
def test_a_module_whose_package_has_changed_is_refused(
    imports: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"package_{os.urandom(4).hex()}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in (f"{package}/deep/__init__.py", f"{package}/__init__.py", file.format(package)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("RATE = 3\n")
    Path(package, "between.py").write_text("from .helper import RATE\n")
    Path(package, "mine.py").write_text(f"{imports.format(package)}\nimport torch, pyro_delta.models\n")
    records, contents = copies({"prior": f"{package}.mine:Mine"})
    assert not contents
    assert file.format(package) in records["prior"].beside
    assert all(not name.startswith(("torch", "pyro_delta")) for name in records["prior"].beside)
    check_copies(records, tmp_path)
    check_copies({"prior": records["prior"].model_copy(update={"beside": {}})}, tmp_path)  # of a former version
    Path(file.format(package)).write_text("RATE = 0.25\n")
    with pytest.raises(UserError, match=f"has changed: {file.format(package)} is not what the run was made with"):
        check_copies(records, tmp_path)


@pytest.mark.parametrize("inside", ["__init__.py", "deep.py"])
def test_packages_beside_a_program_are_refused_at_once(
    inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    Path("parts", inside).touch()
    Path("mine.py").write_text("def later():\n    import parts.deep\n")
    code, _, err = call("train", *TINY, "--guide", "mine.py:Mine", "--steps", 1, "--out", "run")
    assert (code, "imports parts, a package beside it" in err) == (2, True)
    assert not Path("run").exists()


# --- One writer ---


def test_a_second_writer_is_refused_and_a_killed_one_is_not_waited_for(run: Path) -> None:
    script = f"import time\nfrom pathlib import Path\nfrom pyro_delta.lock import Lock\n_ = Lock(Path({str(run)!r}))\n"
    with subprocess.Popen(
        [sys.executable, "-c", script + "print('held', flush=True)\ntime.sleep(60)"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for command in (
            ["train", "--resume", "--steps", 20, "--out", run],
            ["train-prior", run],
            ["check", run, "--keep"],
        ):
            code, _, err = call(*command)
            assert code == 2
            assert f"is being written by process {process.pid} on {os.uname().nodename!r}; wait until that ends" in err
        process.kill()
    Lock(run).release()


def test_a_file_system_without_locks_is_told_of(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    for command in (["train", "--resume", "--steps", 20, "--out", run], ["train-prior", run]):
        words = f"pyro-delta: cannot use {run / LOCK}: No locks available; give another path.\n"
        assert call(*command)[::2] == (2, words)


@pytest.mark.parametrize("trouble", ["a writer", "a damaged file", "a full disk"])
@pytest.mark.parametrize(
    "command", [["evaluate", "--images", "5"], ["check", "--told-samples", "2", "--told-images", "4"]]
)
def test_what_cannot_be_kept_unasked_is_told_all_the_same(
    command: list[str], trouble: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "check.json").unlink()
    name = "evaluations.json" if command[0] == "evaluate" else "check.json"
    if trouble == "a damaged file":
        text(name, "{}")(run)
        (run / name).write_text("[")
    lock = Lock(run) if trouble == "a writer" else None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trouble == "a full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        code, out, err = call(command[0], run, *command[1:], "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if lock is not None:
        lock.release()
    assert code in (0, 1), err
    assert json.loads(out)["step"] == 10
    words = {"a writer": "is being written by", "a damaged file": f"{name} is damaged", "a full disk": "File too large"}
    assert f"what was found is not kept with {run} (" in err
    assert words[trouble] in err


def test_two_trainings_cannot_begin_in_one_folder(tmp_path: Path) -> None:
    lock = Lock(tmp_path)
    code, _, err = call("train", *TINY, "--steps", 1, "--out", tmp_path)
    assert (code, f"is being written by process {os.getpid()}" in err) == (2, True)
    lock.release()


def test_a_folder_that_was_begun_anew_is_left_to_its_new_writer(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    old = Lock(folder)
    old.check()
    (folder / ".lock").unlink()
    old.check()  # which takes it again
    with pytest.raises(UserError, match="is being written by process"):
        Lock(folder)
    (folder / ".lock").unlink()
    new = Lock(folder)
    with pytest.raises(UserError, match="is being written by process"):
        old.check()
    new.release()
    old = Lock(folder)
    shutil.move(folder, tmp_path / "aside")
    with pytest.raises(UserError, match="was removed or replaced while it was being written"):
        old.check()
    folder.mkdir()
    with pytest.raises(UserError, match="was removed or replaced while it was being written"):
        old.check()
    old.release()


def test_a_training_writes_nothing_into_a_folder_that_took_the_place_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def show(line: dict[str, Any]) -> None:
        if folder.exists():
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / "other", folder)

    other = train(tmp_path / "other")
    before = {path.name: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    training = begin(pyro_delta.load(other).config, folder, "none", "cpu")
    with pytest.raises(UserError, match="was removed or replaced while it was being written"):
        carry_out(training, folder, show, resumed=False)
    found = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {name: found[name] for name in before} == before


def test_what_is_being_written_is_read_as_it_was_or_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(number: int) -> None:
        manifests.put(tmp_path, {"evaluations.json": b"%d" % number})
        for step in (number, number + 1):
            manifests.add_checkpoint(tmp_path, step, b"weights %d" % step)

    def read_and_overtaken(path: Path) -> bytes:
        content = bytes_of(path)
        if path.name == "manifest.json" and waiting:
            write(waiting.pop())
        return content

    manifests.write(tmp_path, manifests.Manifest())
    waiting: list[int] = []
    write(1)
    monkeypatch.setattr(manifests, "bytes_of", read_and_overtaken)
    waiting[:] = [4]
    assert manifests.verified(tmp_path, "evaluations.json") == b"4"
    waiting[:] = [7]
    before = manifests.read(tmp_path)
    assert before is not None
    manifest, saved, content = manifests.whole_checkpoint(tmp_path, before)
    assert (saved, content) == (manifest.newest, b"weights 8")


# --- The data ---


def test_other_data_are_refused_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), 12)
    train(Path("run"), "--dataset", "folder:images", "--set", "data.validation=4", "--set", "training.batch=4")
    monkeypatch.chdir(tmp_path / "run")  # where they were is known
    code, out, err = call("evaluate", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["data_as_trained"] is True
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where others have the same name
    write_images(Path("images"), 16)
    control = pyro_delta.train_control(tmp_path / "run", out=tmp_path / "control", device="cpu")
    assert control.trained_on(pyro_delta.load(tmp_path / "run").data())
    monkeypatch.chdir(tmp_path)
    shutil.move("images", "moved")
    code, _, err = call("evaluate", "run")
    assert code == 2
    assert f"the data of run were in {tmp_path / 'images'}, which is not there any more" in err
    assert call("evaluate", "run", "--data-root", "moved")[0] == 0
    shutil.copy("moved/test/1.png", "moved/test/2.png")
    for command in (["evaluate", "run"], ["check", "run"], ["train", "--resume", "--out", "run", "--steps", 12]):
        code, _, err = call(*command, "--data-root", "moved")
        assert (code, err.count("\n")) == (2, 2)
        assert "read 24 of 24 files" in err  # and then the sentence
        assert "the 12 test data are not the 12 that run was made with, though of the same spec" in err
    code, out, err = call("evaluate", "run", "--data-root", "moved", "--other-data")
    assert code == 0, err
    assert "The data are not those that the run was trained on" in out
    code, _, err = call("train", "--resume", "--out", "run", "--steps", 11, "--data-root", "moved", "--other-data")
    assert code == 0, err
    assert "The data are not those that the run began with." in err
