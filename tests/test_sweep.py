"""Sweeps on a few digits: what their files may say, that nothing is done twice, and that a cut changes no number."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from forged import edit_json, forge
from markdown_it import MarkdownIt
from networks import SPECS
from pages import ROOT
from test_cli import call, contents

from pyro_delta.api.kept import Kept
from pyro_delta.build import build
from pyro_delta.errors import CheckFailed, UserError
from pyro_delta.inference.run import config_digest, read_metrics
from pyro_delta.lock import locked
from pyro_delta.report.comparison import ArmChecks, Comparison, compare, summary
from pyro_delta.report.comparison_figure import comparison_figure
from pyro_delta.report.formats import cells, written
from pyro_delta.report.page_figures import confusion_figure, training_figure
from pyro_delta.sweep import runs, search
from pyro_delta.sweep.file import Sweep, keep, parse, read, sweep_names
from pyro_delta.sweep.file import kept as kept_sweep

DATA = """
from pyro_delta.data.images.datasets import Digits


class Few(Digits):
    def __init__(self, *, root: str = "data", validation: int = 180, seed: int = 0):
        super().__init__(root=root, validation=validation, seed=seed)
        for name in ("train", "validation", "test"):
            object.__setattr__(self, name, getattr(self, name).take(slice(40)))  # it is frozen
"""
SWEEP = """
[sweep]
name = "tiny"
title = "a tiny sweep"
preset = "digits"
control = "none"
seeds = [0, 1]

[settings]
data.program = "{data}:Few"
likelihood.channels = [8]
likelihood.row_blocks = [1]
likelihood.pixel_blocks = 1
likelihood.mixtures = 2
guide.channels = [8]
guide.row_blocks = [1]
guide.features = 8
training.steps = 30
training.warmup = 2
training.log_every = 5
training.validations = 6

[[arms]]
name = "none"
likelihood.use_latents = false

[[arms]]
name = "delta"
auxiliary.enabled = true
grid.prior.rate_nats = [2.0]

[search]
training.lr = {{low = 1e-3, high = 1e-1, log = true}}
training.batch = {{low = 4, high = 8}}
training.optimizer = {{choices = ["adam", "adamw"]}}
"""
HEAD = {"name": "s", "title": "t", "preset": "digits"}
TREE: dict[str, Any] = {
    "sweep": HEAD,
    "arms": [{"name": "a", "prior": {"rate_nats": 2.0}}, {"name": "b", "prior": {"alpha": 0.5}}],
}
DELTA = "delta,rate_nats=2"


# --- The file ---


@pytest.mark.parametrize("name", sweep_names())
def test_shipped_sweeps_can_be_built(name: str) -> None:
    sweep = read(name)
    assert sweep.name == name
    for arm in {arm.family: arm for arm in sweep.arms}.values():
        config = sweep.config(arm, sweep.seeds[0])
        build(config, SPECS[config.data.program])


def test_grids_are_multiplied_out_over_arms() -> None:
    sweep = parse(
        {
            "sweep": HEAD | {"seeds": [3, 4]},
            "settings": {"prior": {"alpha": 0.5}, "training": {"lr": 0.1, "clip": 5.0}},
            "arms": [
                {"name": "p", "grid": {"prior": {"program": ["ar1", "matern"]}}},
                {"name": "q", "prior": {"dims": 3}},
            ],
            "grid": {"guide": {"channels": [[8, 8], [8, 16]]}, "prior": {"rate_nats": [2.5, 4]}},
        },
        [("training.clip", 7.0)],
    )
    assert [(arm.name, arm.family, arm.across) for arm in sweep.arms] == [
        (f"{first},channels={channels},rate_nats={rate}", first[0], f"channels={channels},rate_nats={rate}")
        for first in ("p,ar1", "p,matern", "q")
        for channels in ("8x8", "8x16")
        for rate in ("2.5", "4")
    ]
    # A grid's rate takes the place of the common α, and the command line has the last word.
    config = sweep.config(sweep.arm("q,channels=8x16,rate_nats=4"), 4)
    assert (config.prior.options["rate_nats"], config.prior.options["alpha"], config.prior.options["dims"]) == (
        4,
        None,
        3,
    )
    assert (config.guide.options["channels"], config.training.seed) == ((8, 16), 4)
    assert (config.training.lr, config.training.clip) == (0.1, 7.0)
    assert parse(TREE, seeds=3).seeds == (0, 1, 2)
    assert [arm.name for arm in parse({"sweep": HEAD, "grid": {"training": {"lr": [0.1, 0.2]}}}).arms] == [
        "lr=0.1",
        "lr=0.2",
    ]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"arm": []}, "unknown table of a sweep 'arm'; did you mean 'arms'?"),
        ({"sweep": 3}, "sweep=3: Input should be a valid dictionary"),
        ({"sweep": HEAD | {"seed": [1]}}, "unknown setting of a sweep 'sweep.seed'; did you mean 'sweep.seeds'?"),
        ({"sweep": HEAD | {"seeds": []}}, "sweep.seeds: Tuple should have at least 1 item"),
        ({"sweep": HEAD | {"seeds": [-1]}}, "sweep.seeds: Input should be greater than or equal to 0, got -1"),
        ({"sweep": HEAD | {"seeds": [1, 1]}}, "sweep.seeds=[1, 1] names a seed twice"),
        ({"sweep": {"title": "t"}}, "sweep.name is missing; give it a value"),
        ({"sweep": HEAD | {"name": "../x"}}, "sweep.name='../x' names a folder; take letters, digits and"),
        ({"sweep": HEAD | {"preset": "digit"}}, "unknown preset 'digit'; did you mean 'digits'?"),
        ({"sweep": HEAD | {"control": "c"}}, "unknown arm as sweep.control 'c'; known: a, b."),
        ({"sweep": HEAD | {"control": "a"}}, "the control 'a' hears z; set likelihood.use_latents = false in it"),
        ({"arms": []}, "there is nothing to run; give [[arms]], a [grid] or a [search]"),
        ({"arms": {"a": 1}}, "arms: a list of tables is needed"),
        ({"arms": [{"prior": {}}]}, "arm 1 has no name"),
        ({"arms": [{"name": "a/b"}]}, "arms, number 1: name='a/b' names a folder"),
        ({"arms": [{"name": "a"}, {"name": "a", "prior": {"dims": 3}}]}, "two arms are called 'a'"),
        ({"arms": [{"name": "a"}, {"name": "b", "prior": {"dims": 2}}]}, "the arms 'a' and 'b' have equal settings"),
        ({"arms": [{"name": "a", "prior": {"dmis": 3}}]}, "arm 'a': unknown setting of the prior 'ar1' 'prior.dmis'"),
        ({"arms": [{"name": "a", "prior": {"dims": 2.5}}]}, "arm 'a': prior.dims: Input should be a valid integer"),
        ({"arms": [{"name": "a", "prior": {"alpha": 0.5, "rate_nats": 1.0}}]}, "prior.rate_nats contradict each other"),
        ({"arms": [{"name": "a", "training": {"seed": 3}}]}, "training.seed is set, but seeds are the sweep's"),
        ({"cited": {"name": "a"}}, "cited: a list of tables is needed; begin each with [[cited]]"),
        ({"cited": [{"name": "a", "source": "b"}]}, "cited, number 1: neg_elbo_bpd is missing"),
        ({"settings": 3}, "settings: a table of settings is needed, got 3"),
        ({"settings": {"lr": 3}}, "unknown setting 'lr'; did you mean 'training.lr'"),
        ({"grid": {"training": {"lr": []}}}, "grid.training.lr=[] is not a list of values; give some"),
        ({"grid": {"training": {"lr": 0.1}}}, "grid.training.lr=0.1 is not a list of values; give some"),
        ({"arms": [{"name": "a", "grid": {"prior": {"dims": 2}}}]}, "arms.a.grid.prior.dims=2 is not a list"),
        ({"arms": [{"name": "sweep.json"}]}, "the arm 'sweep.json' would take the place of a file of the sweep"),
        ({"arms": [{"name": "submitit"}]}, "the arm 'submitit' would take the place of a file of the sweep"),
        ({"arms": [{"name": "a" * 201}]}, "needs a folder of too long a name; give fewer or shorter values"),
        ({"arms": [{"name": "a", "prior": {"dims": 2}}], "grid": {"prior": {"dims": [3]}}}, "'a' has prior.dims twice"),
        (
            {"arms": [{"name": "a", "grid": {"prior": {"dims": [2]}}}], "grid": {"prior": {"dims": [3]}}},
            "arm 'a' has prior.dims twice, in itself and in a grid; give it in one place",
        ),
        ({"arms": [{"name": "a", "prior": {"dims": 2}, "grid": {"prior": {"dims": [3]}}}]}, "'a' has prior.dims twice"),
        ({"search": {"training": {"seed": {"low": 0, "high": 9}}}}, "search.training.seed is drawn, but seeds are the"),
        ({"search": {"training": {"lr": 0.1}}}, "search.training.lr=0.1 is not a range; give {low"),
        ({"search": {"training": {"lr": {"low": 1.0}}}}, "search.training.lr={'low': 1.0}: give low and high"),
        ({"search": {"training": {"lr": {"low": 2, "high": 1}}}}, "low=2 must lie below high=1"),
        ({"search": {"training": {"lr": {"low": 0, "high": 1, "log": True}}}}, "low=0 must lie below high=1, and"),
        ({"search": {"training": {"lr": {"lo": 0}}}}, "unknown setting of a sweep 'search.training.lr.lo'; did"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_sentence(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        parse({**TREE, **tables})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "prior.rate_nats",
            "take the place of prior.rate_nats, by whose values a grid names the arms of 'delta'; leave",
        ),
        ("prior.alpha", "prior.alpha=0.5 would take the place of prior.rate_nats, by whose values a grid names"),
        (
            "prior.dims",
            "by whose values a grid names the arms of 'delta'; leave --set prior.dims out, or take it out",
        ),
        ("prior.program", "prior.program=0.5 would take the place of prior.program"),
    ],
)
def test_no_setting_makes_the_name_of_an_arm_untrue(key: str, words: str) -> None:
    own = {"prior": {"rate_nats": [2.0], "program": ["ar1"]}}
    tree = {"sweep": HEAD, "arms": [{"name": "delta", "grid": own}], "grid": {"prior": {"dims": [2, 3]}}}
    assert parse(tree, [("training.lr", 0.5)]).arms[0].settings["training.lr"] == 0.5
    with pytest.raises(UserError, match=re.escape(words)):
        parse(tree, [(key, 0.5)])


DRAWN = """
sweep = {name = "drawn", title = "", preset = "digits"}
search.training.lr = {low = 0.1, high = 1.0}
"""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["digits-colapse"], "unknown sweep 'digits-colapse'; did you mean 'digits-collapse'?"),
        (["missing.toml"], "there is no sweep file missing.toml"),
        (["broken.toml"], "broken.toml is not TOML: "),
        (["independent-against-temporal", "--set", "auxiliary.hiden=3"], "did you mean 'auxiliary.hidden'?"),
        (["independent-against-temporal", "--launch", "timeout_min=3"], "--launch timeout_min=3 is for submitit"),
        (["independent-against-temporal", "--search", "3"], "the sweep 'independent-against-temporal' has no [search]"),
        (["independent-against-temporal", "--search", "3", "--launcher", "submitit"], "a search runs on this machine"),
        (
            ["drawn.toml", "--search", "3", "--set", "training.lr=1"],
            "--set training.lr=1 is drawn by the search; leave it",
        ),
        (
            ["independent-against-temporal", "--launcher", "submitit", "--launch", "timeout=3"],
            "submitit refuses {'timeout': 3}: ",
        ),
        (
            ["independent-against-temporal", "--launcher", "submitit", "--launch", "timeout_min=abc"],
            "submitit refuses {'timeout_min': 'abc'}: ",
        ),
        (
            ["independent-against-temporal", "--launcher", "submitit", "--launch", "cluster=bogus"],
            "submitit refuses {'cluster': 'bogus'}: ",
        ),
        (
            ["independent-against-temporal", "--launcher", "submitit", "--launch", "cluster=local", "--out", "full"],
            "full is not empty and holds no sweep",
        ),
        (["independent-against-temporal", "--out", "full"], "full is not empty and holds no sweep"),
        (
            ["independent-against-temporal", "--out", "other"],
            "other holds another sweep, whose name is 's', not 'independent-against-temporal'",
        ),
    ],
)
def test_refused_command_lines(args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if {"--search", "submitit"} & set(args):
        pytest.importorskip("optuna")
        pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("[sweep")
    Path("drawn.toml").write_text(DRAWN)
    Path("full").mkdir()
    Path("full/file").touch()
    keep(parse(TREE), Path("other"))
    before = contents(tmp_path)
    code, _, err = call("sweep", *args)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert contents(tmp_path) == before


def test_a_sweep_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text(DRAWN.replace('name = "drawn", title = "", ', ""))
    found = read(str(tmp_path / "rates.toml"))
    assert (found.name, found.title) == ("rates", "rates")


def test_a_folder_takes_other_seeds_and_more_arms_of_its_sweep_and_no_other_sweep(tmp_path: Path) -> None:
    keep(parse(TREE), tmp_path)
    keep(parse(TREE, seeds=5), tmp_path)
    keep(parse({**TREE, "sweep": HEAD | {"seeds": [7, 2]}}), tmp_path)
    keep(parse(TREE, [("data.root", "moved")]), tmp_path)
    assert kept_sweep(tmp_path).seeds == (0, 1, 2, 3, 4, 7)  # all that it was ever given
    assert kept_sweep(tmp_path).arms[1].settings["data.root"] == "moved"
    more = {**TREE, "arms": [{"name": "c", "training.lr": 0.5}, *reversed(TREE["arms"])]}
    keep(parse(more), tmp_path)
    assert [arm.name for arm in kept_sweep(tmp_path).arms] == ["c", "b", "a"]
    with pytest.raises(UserError, match=re.escape("holds another sweep, with the arm 'c'; give another --out")):
        keep(parse(TREE), tmp_path)
    shutil.rmtree(tmp_path)
    keep(parse(TREE), tmp_path)
    with pytest.raises(UserError, match=re.escape("whose arm 'a' has training.lr=None, not 0.5; give another --out")):
        keep(parse(TREE, [("training.lr", 0.5)]), tmp_path)
    with pytest.raises(UserError, match=re.escape("with the arm 'b'; give another --out")):
        keep(parse({**TREE, "arms": TREE["arms"][:1]}), tmp_path)
    (tmp_path / "sweep.json").write_text("[")
    with pytest.raises(UserError, match="is damaged"):
        keep(parse(TREE), tmp_path)


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("submitit", lambda out: runs.Submitit(out, 1, {})),
        ("optuna", lambda out: search.search(parse(TREE), out, 1, 1, print)),
    ],
)
def test_a_missing_package_is_named(
    package: str, use: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = f"this needs {package}; install the extra: pip install 'pyro-delta[sweep]'"
    with pytest.raises(UserError, match=re.escape(words)):
        use(tmp_path)


# --- Processes ---


class Sleeper:
    """Work whose process says a line and sleeps, and that is done when a file is there."""

    def __init__(self, folder: Path, seconds: float = 0.0, fails: str = "") -> None:
        self.folder, self.seconds, self.fails = folder, seconds, fails

    def done(self) -> bool:
        return (self.folder / "done").exists()

    def command(self) -> list[str]:
        raise AssertionError


@pytest.fixture
def as_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes processes of Python's own, in the place of `pyro-delta`."""
    started = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        return started([sys.executable, "-c", command[-1]], **options)

    monkeypatch.setattr(runs.subprocess, "Popen", popen)
    monkeypatch.setattr(Sleeper, "command", script)


def script(work: Sleeper) -> list[str]:
    """What a sleeper's process does; it ends in order when it is asked to."""
    made = work.fails or f"open({str(work.folder / 'done')!r}, 'w')"
    stop = "signal.signal(15, lambda *_: (print('stopped at step 3', flush=True), sys.exit(130)))"
    threads = "pass" if work.fails.startswith("os._exit") else "print(os.environ['OMP_NUM_THREADS'])"
    return [f"import os, signal, sys, time; {stop}; {threads}; time.sleep({work.seconds}); {made}"]


@pytest.mark.usefixtures("as_script")
def test_threads_failures_and_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (good := tmp_path / "a" / "good").mkdir(parents=True)
    assert runs.carry_out(Sleeper(good), 3) is None
    assert runs.log_of(good).read_text() == "3\n"
    assert runs.carry_out(Sleeper(good), 3) is None
    assert runs.log_of(good).read_text() == "3\n"  # no second process
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    # Why it failed is what this process has said, or what has ended it, and nothing that stood in the log before.
    for fails, reason in (
        ("sys.exit('no\\nroom')", "room"),
        ("sys.stdout.flush(); os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os._exit(3)", "exit code 3"),
    ):
        assert runs.carry_out(Sleeper(tmp_path / "bad", fails=fails), 3) == reason
    assert runs.log_of(tmp_path / "bad").read_text().startswith("7\n")


@pytest.mark.usefixtures("as_script")
def test_a_run_that_another_process_is_at_work_on_is_waited_for(tmp_path: Path) -> None:
    work = Sleeper(tmp_path / "run", seconds=60)
    work.folder.mkdir()
    first = threading.Event()
    other = threading.Thread(target=runs.carry_out, args=(work, 1, first.is_set))
    other.start()
    until(lambda: is_held(work.folder) and "1" in runs.log_of(work.folder).read_text())
    assert runs.carry_out(work, 1, lambda: True) == "stopped"  # it waits, and may be stopped while it does
    (work.folder / "done").touch()
    first.set()
    assert runs.carry_out(work, 1) is None
    other.join()
    assert not is_held(work.folder)
    assert runs.log_of(work.folder).read_text().splitlines() == ["1", "stopped at step 3"]  # one process


@pytest.mark.usefixtures("as_script")
def test_an_interrupt_ends_all_runs_in_order(tmp_path: Path) -> None:
    works = [Sleeper(tmp_path / str(number), seconds=60) for number in range(4)]
    for work in works:
        work.folder.mkdir()
    begun = [runs.log_of(work.folder) for work in works[:2]]

    def interrupt() -> None:
        until(lambda: all(log.exists() and "1" in log.read_text() for log in begun))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    told: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        runs.run_all(lambda work, stop: runs.carry_out(work, 1, stop), works, 2, lambda *done: told.append(done))
    assert [log.read_text().splitlines()[-1] for log in begun] == ["stopped at step 3"] * 2
    assert not runs.log_of(works[2].folder).exists()
    assert told == []


def is_held(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    log = runs.log_of(folder)
    if not log.exists():
        return False
    with log.open("a") as file:
        return not locked(file.fileno(), log)


def until(true: Callable[[], bool]) -> None:
    """Waits."""
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- Runs ---


def one_after_another(
    launch: runs.Launcher, works: Sequence[runs.Work], jobs: int, finished: Callable[[runs.Work, str | None], None]
) -> None:
    """`run_all` in the main thread, which alone may train."""
    for work in works:
        finished(work, launch(work, runs.never))


def in_process(work: runs.Work, stop: runs.Stop) -> str | None:
    """A launcher without processes, whose start is most of their time."""
    if work.done():
        return None
    _, _, err = call(*work.command())
    return None if work.done() else err.splitlines()[-1]


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "few.py").write_text(DATA)
    (folder / "tiny.toml").write_text(SWEEP.format(data=folder / "few.py"))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def sweep(sweep_file: Path) -> Sweep:
    return read(str(sweep_file))


@pytest.fixture(scope="module")
def done(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing has interrupted."""
    out = tmp_path_factory.mktemp("done") / "out"
    keep(sweep, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "run_all", one_after_another)
        assert runs.run_sweep(sweep, out, in_process, 1, print) == {}
    return out


def numbers_of(out: Path, arm: str, seed: int) -> dict[str, Any]:
    """A check that was kept, without what is of the code."""
    numbers = json.loads((out / arm / f"seed-{seed}" / "check.json").read_text())
    return {key: value for key, value in numbers.items() if key not in ("version", "commit")}


def test_a_sweep_that_was_cut_and_goes_on_equals_one_that_was_not(
    sweep: Sweep, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = sweep.arm(DELTA)
    training = runs.training_of(sweep, tmp_path, arm, 1)
    keep(sweep, tmp_path)
    monkeypatch.setattr(runs, "POLL", 0.02)

    def begun() -> bool:
        return any(line["split"] == "validation" for line in read_metrics(training.folder))

    reason = runs.carry_out(training, 1, begun)
    assert reason is not None
    assert "go on with: pyro-delta train" in reason
    assert 0 < read_metrics(training.folder)[-1]["step"] < 30
    monkeypatch.setattr(runs, "run_all", one_after_another)
    assert runs.run_sweep(sweep.model_copy(update={"seeds": (1,)}), tmp_path, in_process, 1, print) == {}
    for name in ("none", DELTA):
        assert numbers_of(tmp_path, name, 1) == numbers_of(done, name, 1)
        for file in ("rate", "distortion"):
            terms = [np.load(out / name / "seed-1" / "terms.npz")[file] for out in (tmp_path, done)]
            np.testing.assert_array_equal(*terms)
    assert not list(tmp_path.glob("*/seed-1/report.html"))


def test_what_is_done_is_not_repeated_and_what_is_missing_is_done_by_submitit(sweep_file: Path, done: Path) -> None:
    submitit = pytest.importorskip("submitit")
    gone = done / DELTA / "seed-0" / "check.json"
    before = numbers_of(done, DELTA, 0)
    gone.unlink()
    kept = [file for run in done.glob("*/seed-?") for file in run.iterdir() if file.suffix in (".json", ".npz")]
    kept += done.glob("*/seed-?/*.safetensors")
    again = {gone.with_name("terms.npz"), gone.with_name("manifest.json")}
    times = {file: file.stat().st_mtime_ns for file in kept if file not in again}
    assert len(times) >= 4 * 6 - 3
    by_submitit = ["--launcher", "submitit", "--launch", "cluster=local", "--launch", "timeout_min=5"]
    code, out, err = call("sweep", sweep_file, "--out", done, *by_submitit, "--json")
    assert code == 0, err
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert numbers_of(done, DELTA, 0) == before
    assert len(list((done / "submitit").glob("*_submitted.pkl"))) == 1  # what is done asks for no job
    assert json.loads(out) == json.loads(call("compare", done, "--format", "json")[1])
    requeued = runs.Requeued(runs.Judgement(done, None), 1, True).checkpoint()  # where a cluster takes the node away
    assert isinstance(requeued, submitit.helpers.DelayedSubmission)


def test_fewer_seeds_are_run_and_all_are_compared(
    sweep_file: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    monkeypatch.setattr(runs.Local, "__call__", lambda local, work, stop: begun.append(work.folder))
    code, out, err = call("sweep", sweep_file, "--out", done, "--seeds", "1", "--json")
    assert code == 0, err
    assert sorted(begun) == sorted([done / "none" / "seed-0", done / DELTA / "seed-0"] * 2)  # trained, and checked
    assert [row["seeds"] for row in json.loads(out)["rows"]] == [2, 2]
    assert json.loads(out) == compare(done).asdict()


def test_an_interrupt_of_the_terminal_ends_the_jobs_of_submitit(sweep_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    longer = ["--set", "training.steps=1000000", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "pyro_delta", "sweep", str(sweep_file), "--launcher", "submitit", *longer]
    with subprocess.Popen(
        [*command, "--launch", "cluster=local"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until(lambda: bool(list(tmp_path.glob("out/*/seed-0/metrics.jsonl"))) or process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does it: of the jobs' processes, too
        err = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert err.splitlines() == ["", "pyro-delta: stopped."]
    (log,) = tmp_path.glob("out/*/seed-0.log")
    assert re.match(r"pyro-delta: stopped at step \d+; go on with: ", log.read_text().splitlines()[-1])
    assert not is_held(log.with_suffix(""))


def test_a_run_that_dies_is_told_of_and_the_others_go_on(
    sweep_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run_all", one_after_another)
    finished: set[Path] = set()

    def launch(local: Any, work: runs.Work, stop: runs.Stop) -> str | None:
        if "none/seed-1" in str(work.folder):
            return "killed by the machine"
        finished.add(work.folder)
        return None

    monkeypatch.setattr(runs.Local, "__call__", launch)
    monkeypatch.setattr("pyro_delta.report.comparison.compare", lambda *_, **__: compare_nothing())
    monkeypatch.setattr("pyro_delta.report.formats.written", lambda *_: "the table\n")
    code, out, err = call("sweep", sweep_file, "--out", tmp_path / "out")
    assert code == 1
    assert out == "the table\n"
    assert "none/seed-1: killed by the machine" in err
    assert f"{DELTA}/seed-1: its control failed, so that it was not checked" in err
    assert err.splitlines()[-1].startswith("pyro-delta: 2 of 4 runs failed; their logs stand beside")


def test_a_run_whose_files_cannot_be_used_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    works = [Sleeper(tmp_path / name / "run") for name in ("bad", "good")]
    (tmp_path / "bad").touch()  # where its folder should be
    (tmp_path / "good" / "run").mkdir(parents=True)
    (tmp_path / "good" / "run" / "done").touch()
    told: dict[str, str | None] = {}
    runs.run_all(
        lambda work, stop: runs.carry_out(work, 1, stop),
        works,
        2,
        lambda work, reason: told.update({work.folder.parent.name: reason}),
    )
    assert told["good"] is None
    assert re.fullmatch(r".*File exists: '.*bad'", str(told["bad"]))


def test_an_arm_whose_control_diverged_is_checked_without(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To check it against that would fail each time."""
    judged: dict[str, Path | None] = {}

    def launch(work: runs.Work, stop: runs.Stop) -> str | None:
        if isinstance(work, runs.Judgement):
            judged[str(work.folder.relative_to(tmp_path))] = work.control
        return None

    found = {tmp_path / "none" / "seed-1": Kept({"neg_elbo_bpd": None}, np.zeros(0), np.zeros(0))}
    monkeypatch.setattr(runs, "kept", found.get)
    assert runs.run_sweep(sweep, tmp_path, launch, 2, print) == {}
    assert list(judged)[:2] in (["none/seed-0", "none/seed-1"], ["none/seed-1", "none/seed-0"])
    assert judged[f"{DELTA}/seed-0"] == tmp_path / "none" / "seed-0"
    assert judged[f"{DELTA}/seed-1"] is None


def test_runs_of_several_versions_are_noted(done: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done, tmp_path / "out")) / DELTA / "seed-1"
    assert not [note for note in compare(tmp_path / "out").notes if note.startswith("Trained by")]
    edit_json(run, "run.json", lambda info: {**info, "version": "0.0.9", "commit": None})
    (note,) = (note for note in compare(tmp_path / "out").notes if note.startswith("Trained by"))
    assert note.startswith("Trained by more than one version of pyro-delta: 0.0.9, 0.1.0")


def compare_nothing() -> None:
    """In the place of a comparison."""


def parse_shorter(sweep: Sweep) -> Sweep:
    """The same with two steps."""
    arms = [arm.model_copy(update={"settings": arm.settings | {"training.steps": 2}}) for arm in sweep.arms]
    return sweep.model_copy(update={"arms": tuple(arms)})


# --- The table ---

NUMBERS: dict[str, Any] = {
    "unit": "bits/dim", "split": "test", "n_images": 3, "judged_digest": "d", "delta_nats": 1.0,
    "floor_holds": True, "latents_used": True, "shuffled_gap_nats": 1.0, "shuffled_gap_se": 0.1, "finished": True,
    "neg_elbo_bpd": 2.0, "distortion_bpd": 1.0, "rate_nats_mean": 4.0, "rate_nats_min": 0.5,
}  # fmt: skip
DEAF = {"shuffled_gap_nats": 0.0, "shuffled_gap_se": 0.0}
DIVERGED = dict.fromkeys(("neg_elbo_bpd", "distortion_bpd", "rate_nats_mean", "rate_nats_min", "shuffled_gap_nats"))


def kept_of(loss: float, **numbers: Any) -> Kept:
    """A check of three data, each of which has this distortion more or less, and a rate of 4."""
    distortion_b = loss + np.arange(3.0)
    if "neg_elbo_bpd" in numbers and numbers["neg_elbo_bpd"] is None:
        distortion_b[1] = np.nan
    return Kept({**NUMBERS, **numbers}, np.full(3, 4.0), distortion_b)


def test_the_table_is_that_of_the_run_folders(sweep: Sweep, done: Path) -> None:
    found = compare(done)
    assert (found.baseline, found.title) == ("none", "a tiny sweep")
    for row in found.rows:
        checks = [numbers_of(done, row["arm"], seed) for seed in (0, 1)]
        if row["arm"] == "none":  # it pays no rate
            checks = [{**check, "neg_elbo_bpd": check["distortion_bpd"], "rate_nats_mean": 0} for check in checks]
        for key in ("neg_elbo_bpd", "distortion_bpd", "rate_nats_mean", "told_calibrated_nats", "probe_accuracy"):
            values = [check[key] for check in checks]
            assert row[key] == pytest.approx(statistics.mean(values))
            assert row[f"{key}_se"] == pytest.approx(statistics.stdev(values) / math.sqrt(2))
        least = [check["rate_nats_min"] for check in checks]
        assert row["rate_nats_min"] == (None if row["arm"] == "none" else min(least))
        assert row["latents_used"] == sum(check["latents_used"] for check in checks)
    # What `check --control` has measured by itself: bought, and the same less the rate.
    delta = found.rows[1]
    checks = [numbers_of(done, DELTA, seed) for seed in (0, 1)]
    for key, own in (("distortion_below_nats", "bought_nats"), ("neg_elbo_below_nats", "net_bought_nats")):
        values = [check[own] for check in checks]
        assert delta[key] == pytest.approx(statistics.mean(values), abs=1e-9)
        assert delta[f"{key}_se"] == pytest.approx(statistics.stdev(values) / math.sqrt(2), abs=1e-9)
    terms = [[np.load(done / arm / f"seed-{seed}" / "terms.npz") for seed in (0, 1)] for arm in ("none", DELTA)]
    gain_sn = np.stack([none["distortion"] - mine["distortion"] for none, mine in zip(*terms)])
    assert delta["distortion_below_nats_se_data"] == pytest.approx(gain_sn.mean(0).std(ddof=1) / math.sqrt(40))
    assert found.rows[0]["neg_elbo_below_nats"] is None


def test_a_run_with_an_auxiliary_prior_has_the_bound_of_both(done: Path) -> None:
    run = done / DELTA / "seed-0"
    by_itself = json.loads(call("evaluate", run, "--with-prior", "auxiliary", "--json")[1])
    numbers = numbers_of(done, DELTA, 0)
    assert numbers["auxiliary_neg_elbo_bpd"] == pytest.approx(by_itself["neg_elbo_bpd"])
    assert numbers["auxiliary_neg_elbo_bpd"] != numbers["neg_elbo_bpd"]
    assert "auxiliary_neg_elbo_bpd" not in numbers_of(done, "none", 0)
    none, delta = compare(done).rows
    assert none["auxiliary_neg_elbo_bpd"] is None
    both = [numbers_of(done, DELTA, seed)["auxiliary_neg_elbo_bpd"] for seed in (0, 1)]
    assert delta["auxiliary_neg_elbo_bpd"] == pytest.approx(statistics.mean(both))


def test_single_runs_are_arms_with_errors_over_the_data(done: Path) -> None:
    none, delta = done / "none" / "seed-0", done / DELTA / "seed-0"
    found = compare([none, none.with_name("seed-1"), delta])
    assert [row["arm"] for row in found.rows] == [str(none), str(none.with_name("seed-1")), str(delta)]
    numbers = numbers_of(done, DELTA, 0)
    row = found.rows[2]
    for key, own in (("neg_elbo_bpd", "neg_elbo_bpd"), ("neg_elbo_below_nats", "net_bought_nats")):
        assert row[key] == pytest.approx(numbers[own])
        assert row[f"{key}_se"] == pytest.approx(numbers[f"{own}_se"])
    assert "standard errors over the data." in found.notes[0]
    assert found.notes[1].startswith(f"Below {str(none)!r}: by datum; ")
    assert not any(note.startswith("Below") for note in compare(none).notes)  # there is nothing else to lie below


def test_runs_of_other_data_are_not_paired(done: Path) -> None:
    folder = done / DELTA / "seed-0"
    text = (folder / "check.json").read_text()
    try:
        others = {"judged_digest": "another", "split": "validation", "weights": "last", "finished": True}
        edit_json(folder, "check.json", lambda numbers: {**numbers, **others})
        runs = [done / "none" / "seed-0", folder, done / DELTA / "seed-1"]
        found, table = compare(runs), call("compare", *runs)[1]
    finally:
        (folder / "check.json").write_text(text)
        forge(folder)
    assert found.rows[1]["neg_elbo_below_nats"] is None
    assert found.notes[-1].startswith("Of other data or seeds")
    assert not any(row["on_front"] for row in found.rows)
    theirs = "40 data of the validation split, last weights"
    assert [row["data"] for row in found.rows] == ["40 data of the test split", theirs, "40 data of the test split"]
    assert found.notes[0].startswith(f"Other data in each: {runs[0]}, 40 data of the test split; {folder}, {theirs};")
    assert len(re.findall(rf"│ +{theirs} +│", table)) == 1


def test_a_run_without_a_check_is_checked_first(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = done / DELTA / "seed-1"
    before = numbers_of(done, DELTA, 1)
    (folder / "check.json").unlink()
    code, out, err = call("compare", done, "--json")
    assert code == 0
    assert err == f"checking {folder} first\n"
    assert numbers_of(done, DELTA, 1) == before
    assert json.loads(out)["rows"][1]["seeds"] == 2


def test_forms_and_figure(done: Path, tmp_path: Path) -> None:
    code, text, _ = call("compare", done, "--figure", tmp_path / "plane.png")
    assert code == 0
    assert (tmp_path / "plane.png").read_bytes().startswith(b"\x89PNG")
    row = compare(done).rows[1]
    assert re.search(rf"{DELTA} .* {row['distortion_bpd']:.4f} ± {row['distortion_bpd_se']:.4f} ", text)
    table = list(csv.DictReader(io.StringIO(call("compare", done, "--format", "csv")[1])))
    assert float(table[1]["distortion_bpd"]) == row["distortion_bpd"]
    assert table[0]["neg_elbo_below_nats"] == ""
    assert [(line["unit"], line["baseline"]) for line in table] == [("bits/dim", "none")] * 2
    markdown = call("compare", done, "--format", "markdown")[1].splitlines()
    assert len({line.count("|") for line in markdown[:4]}) == 1
    assert call("compare", done, "--format", "latex", "--out", tmp_path / "table.tex")[:2] == (0, "")
    latex = (tmp_path / "table.tex").read_text()
    assert r"delta,rate\_nats=2 & " in latex
    assert latex.count(r"\\") == 3
    assert not re.search(r"[±−δ]", latex.partition(r"\end{tabular}")[0])


@pytest.mark.parametrize(
    "args",
    [
        ["--figure", "z.png", "--out", "z.png"],
        ["--figure", "z.png", "--out", "{done}/../z.png"],
        ["--out", "{done}/sweep.json"],
        ["--out", "link.txt"],
        ["--out", "{done}/none/seed-0/check.json"],
        ["--out", "{done}/none/seed-0/metrics.jsonl"],
        ["--out", "{done}/none/seed-0.log"],
        ["--out", "{done}/none/README.md"],
        ["--figure", "{done}/search.db"],
        ["--with", "reference", "--figure", "{done}/sweep.json"],
    ],
)
def test_no_file_of_what_is_compared_is_lost(args: list[str], done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.parent)
    monkeypatch.setattr("pyro_delta.report.comparison.compare", lambda *_, **__: pytest.fail("it has begun to work"))
    (done.parent / "link.txt").unlink(missing_ok=True)
    (done.parent / "link.txt").symlink_to(done / "sweep.json")
    before = contents(done.parent)
    code, out, err = call("compare", done, *(arg.format(done=done) for arg in args))
    assert (code, out) == (2, "")
    both = "--out and --figure are both"
    assert (
        both if args[0] == "--figure" and len(args) == 4 else f"take the place of a file of {done}, which is"
    ) in err
    assert err.count("\n") == 1
    assert contents(done.parent) == before


def test_tables_for_people_may_lie_beside_what_they_are_of(done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    for _ in "12":  # the second time over the first
        assert call("compare", out, "--out", out / "table.md", "--format", "markdown")[0] == 0
    code, _, err = call("report", out / "none" / "seed-0", "--out", out / "none" / "seed-0" / "config.json")
    assert code == 2
    assert "config.json could take the place of a file of" in err


NAMES = (
    "a & b", "x_y%z", "p|q", "c,d", "ünï→", "new\nline", "[1] PixelCNN", "back\\slash", "do$llar$", "<b>", "_hidden_",
    "{br}", "tab\tx", 'q"uote', "a$x_{$", "*st*", "`x`", "[link](u)", "a\\|b",
)  # fmt: skip
FORMS_OF_NAMES = summary("$x_{", [ArmChecks(name, name, "", {0: kept_of(1)}) for name in NAMES], "new\nline")


def test_names_of_any_kind_mean_themselves_in_every_form() -> None:
    cited = [{"name": "[2]\n| %", "neg_elbo_bpd": 1.5, "source": "a\nb"}]
    costs = dict.fromkeys(("parameters", "data_seen", "training_flops"), 1)
    rows = [row | costs for row in FORMS_OF_NAMES.rows]
    found = replace(FORMS_OF_NAMES, rows=rows, cited=cited, notes=[*FORMS_OF_NAMES.notes, "[2]: a\nb."])
    names = [" ".join(name.split()) for name in (*NAMES, cited[0]["name"])]
    # Markdown, by another's parser: text that is nothing but text.
    tokens = MarkdownIt().enable("table").parse(written(found, "markdown"))
    inline = [token for token in tokens if token.type == "inline"]
    assert {child.type for token in inline for child in token.children} == {"text", "softbreak"}
    texts = ["".join(child.content for child in token.children) for token in inline]
    wide = len(cells(found)[0])
    assert texts[wide : wide * (1 + len(names)) : wide] == names
    assert "[1] PixelCNN, back\\slash, do$llar$, <b>" in texts[-1]
    # LaTeX: a row that begins with [ or * would be an argument of what is before it; what follows is a comment.
    table, _, notes = written(found, "latex").partition("\\end{tabular}\n")
    lines = table.splitlines()
    assert len(lines) == 5 + len(names)
    assert all(line.count(" & ") == wide - 1 and not line.startswith(("[", "*")) for line in lines[4:-1])
    assert all(line.startswith("% ") for line in notes.splitlines())
    # CSV, by another's reader: a rectangle, which says its unit and baseline and has the bounds of others, too.
    lines = [*csv.DictReader(io.StringIO(written(found, "csv"), newline=""))]
    assert [line["arm"] for line in lines] == [*NAMES, cited[0]["name"]]
    assert {(line["unit"], line["baseline"]) for line in lines} == {("bits/dim", "new\nline")}
    assert {key: value for key, value in lines[-1].items() if value} == {
        "arm": "[2]\n| %", "neg_elbo_bpd": "1.5", "unit": "bits/dim", "baseline": "new\nline",
    }  # fmt: skip
    assert None not in set().union(*lines)
    assert written(found, "text").count("\n│") == len(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("λ γ Σ ς φ", r"$\lambda$ $\gamma$ $\Sigma$ $\varsigma$ $\varphi$"),
        ("Α ά ϵ µ 𝛽", r"$\mathrm{A}$ $\alpha$ $\varepsilon$ $\mu$ $\beta$"),
        ("≤ ≥ × ∞ − → ±", r"$\leq$ $\geq$ $\times$ $\infty$ $-$ $\rightarrow$ $\pm$"),
        ("Gödel Łukasz u\u0308 ż", "Gödel Łukasz ü ż"),
        ("ą ð ﬁ ½ … “a” – —", "a d fi 1/2 ... ``a'' -- ---"),
        ("x² H₂ a⁻", r"x\textsuperscript{2} H\textsubscript{2} a\textsuperscript{$-$}"),
        ("中 \u200b \u0301 \x1b", "U+4E2D U+200B U+0301 U+001B"),
    ],
)
def test_latex_has_characters_alone_that_pdflatex_takes(name: str, expected: str) -> None:
    found = summary("t", [ArmChecks(name, name, "", {0: kept_of(1)})], name)
    rows = written(found, "latex").partition(r"\end{tabular}")[0]
    assert f"\n{expected} & " in rows
    assert r"$\delta$" in rows


def test_names_of_any_kind_are_drawn() -> None:
    found = replace(FORMS_OF_NAMES, rows=[row for row in FORMS_OF_NAMES.rows if "\t" not in row["arm"]])
    figure = comparison_figure(found)
    figure.savefig(io.BytesIO(), format="svg")
    legend = figure.axes[1].get_legend().get_texts()
    assert {text.get_text() for text in legend} >= {"do\\$llar\\$", " _hidden_", "*st*"}
    lines = [{"split": "validation", "step": 2, "neg_elbo_bpd": 1.0}]
    training_figure({"$x_{": lines, "_y": lines}, "bits/dim", None).savefig(io.BytesIO(), format="svg")
    confusion_figure(np.eye(2), ["a$x_{$", "b"]).savefig(io.BytesIO(), format="svg")


@pytest.mark.parametrize("record", sorted((ROOT / "reference/sweeps").glob("*.json")), ids=lambda path: path.stem)
def test_recorded_tables_are_those_of_their_records(record: Path) -> None:
    tree = json.loads(record.read_text())
    rows = [{"data": None, **row} for row in tree["rows"]]
    keys = ("title", "unit", "baseline", "notes")
    found = Comparison(**{key: tree[key] for key in keys}, rows=rows, cited=tree.get("cited", []))
    assert record.with_suffix(".md").read_text() == written(found, "markdown")
    for row in rows:
        if row["arm"] == "no-latents":
            assert (row["neg_elbo_bpd"], row["rate_nats_mean"]) == pytest.approx((row["distortion_bpd"], 0), abs=1e-4)


def test_bounds_of_others_stand_below_beside_what_ours_have_cost(sweep_file: Path, done: Path) -> None:
    text = sweep_file.read_text() + '[[cited]]\nname = "theirs"\nneg_elbo_bpd = 1.5\nsource = "A paper"\n'
    sweep_file.with_name("cited.toml").write_text(text)
    before = (done / "sweep.json").read_text()
    keep(read(str(sweep_file.with_name("cited.toml"))), done)
    try:
        found, lines = compare(done), call("compare", done, "--format", "markdown")[1].splitlines()
    finally:
        (done / "sweep.json").write_text(before)
    page = found._repr_html_()
    assert page.count("<tr>") == 1 + len(found.rows) + len(found.cited)
    assert f"<caption>{found.title}</caption>" in page
    assert found.rows[0]["data_seen"] == 30 * 32
    assert 0 < found.rows[0]["parameters"] < found.rows[1]["parameters"]
    assert found.rows[1]["training_flops"] % (30 * 32) == 0
    assert re.match(r"\| theirs \| 1\.5 \| –", lines[4])
    assert lines[-1] == "theirs: A paper."
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_runs_that_differ_from_the_rest_of_their_arm_are_told(done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    folder = out / DELTA / "seed-1"
    assert "Trained otherwise" not in " ".join(compare(out).notes)
    edit_json(folder, "config.json", lambda tree: {**tree, "training": {**tree["training"], "steps": 20, "seed": 7}})
    edit_json(folder, "config.json", lambda tree: {**tree, "prior": {**tree["prior"], "dims": 5}})
    edit_json(
        folder, "run.json", lambda tree: {**tree, "programs": {"data": {**tree["programs"]["data"], "digest": "0"}}}
    )
    edit_json(folder, "check.json", lambda numbers: {**numbers, "config_digest": config_digest(folder)})
    program = json.loads((folder / "run.json").read_text())["programs"]["data"]["name"]
    dims = json.loads((done / DELTA / "seed-0" / "config.json").read_text())["prior"]["dims"]
    told = compare(out).notes[-1]
    assert (
        f"than the rest of their arm: {DELTA}/seed-1 (prior.dims=5, not {dims}); {DELTA}/seed-1 (training.steps" in told
    )
    assert told.endswith(f"steps=20, not 30); with {program}, whose files have changed between two runs.")


@pytest.mark.parametrize("diverged", [False, True])
def test_a_control_that_has_diverged_or_not_come_to_its_end_is_none(diverged: bool, done: Path, tmp_path: Path) -> None:
    out = shutil.copytree(done, tmp_path / "out")
    control = out / "none" / "seed-1"
    if diverged:
        np.savez(control / "terms.npz", **dict.fromkeys(("rate", "distortion"), np.full(40, np.nan)))
        edit_json(control, "check.json", lambda numbers: numbers | DIVERGED)
    else:
        edit_json(control, "config.json", lambda tree: {**tree, "training": {**tree["training"], "steps": 99}})
    (out / DELTA / "seed-1" / "check.json").unlink()
    assert [row["seeds"] for row in compare(out).rows] == [1 + diverged, 2]
    assert "control_config_digest" not in json.loads((out / DELTA / "seed-1" / "check.json").read_text())


def test_validations_are_drawn_beside_the_recorded_ones(done: Path, tmp_path: Path) -> None:
    code, out, err = call("compare", done, "--with", "reference", "--figure", tmp_path / "curves.png")
    assert code == 0, err
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(rf"{DELTA} +│ 2 +│ 30 +│", out)


def test_seeds_that_were_validated_at_other_steps_stand_by_themselves(done: Path, tmp_path: Path) -> None:
    """As those of trainings of so many minutes are."""
    run = tmp_path / shutil.copytree(done, tmp_path / "out") / DELTA / "seed-1"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    moved = [line | {"step": line["step"] - 1} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in moved))
    forge(run)
    code, out, err = call("compare", tmp_path / "out", "--with", "reference")
    assert code == 0, err
    assert re.search(rf"{DELTA}, seed-0 +│ 1 +│ 30 +│", out)
    assert re.search(rf"{DELTA}, seed-1 +│ 1 +│ 29 +│", out)


def test_runs_go_on_where_their_data_live_now(done: Path) -> None:
    folder = done / DELTA / "seed-0"
    works = (runs.Training(folder, {"data.root": "moved"}, None), runs.Judgement(folder, None, root="moved"))
    assert [work.command()[-2:] for work in works] == [["--data-root", "moved"]] * 2
    assert "--data-root" not in runs.Training(folder, {}, None).command() + runs.Judgement(folder, None).command()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("finished", False), ("config_digest", "another"), ("split", "validation"), ("control_finished", False),
        ("seed", 7), ("asked_told_samples", 2), ("asked_told_images", 8),
    ],
)  # fmt: skip
def test_a_check_of_the_past_or_of_other_data_is_made_again(key: str, value: object, done: Path) -> None:
    folder = done / DELTA / "seed-0"
    judgement = runs.Judgement(folder, done / "none" / "seed-0")
    assert judgement.done()
    assert not runs.Judgement(folder, None).done()
    text = (folder / "check.json").read_text()
    try:
        edit_json(folder, "check.json", lambda numbers: {**numbers, key: value})
        assert not judgement.done()
    finally:
        (folder / "check.json").write_text(text)
        forge(folder)


@pytest.mark.parametrize(
    ("control", "arm", "expected", "note"),
    [
        # A control pays no rate: neither in its row nor as the baseline, 9 − 5 and 9 − (5 + 4).
        (
            {0: kept_of(9, **DEAF, distortion_bpd=1.5, distortion_bpd_se=0.1)},
            {0: kept_of(5)},
            [
                {"neg_elbo_bpd": 1.5, "neg_elbo_bpd_se": 0.1, "rate_nats_mean": 0, "rate_nats_min": None},
                {"neg_elbo_bpd": 2.0, "distortion_below_nats": 4, "neg_elbo_below_nats": 0, "on_front": True},
            ],
            "Decoders that do not hear z pay no rate, their −ELBO is their distortion: a.",
        ),
        # A run that diverged is in no mean, and none of its data in a difference.
        (
            {0: kept_of(9), 1: kept_of(8)},
            {0: kept_of(5, neg_elbo_bpd=2.5), 1: kept_of(0, weights="last", **DIVERGED)},
            [
                {},
                {"data": "3 data of the test split"}
                | {"neg_elbo_bpd": 2.5, "neg_elbo_bpd_se": None, "seeds": 2, "diverged": 1, "paired_seeds": 1}
                | {"distortion_below_nats": 4},
            ],
            "Diverged, and in no mean: b (1 of 2).",
        ),
        (
            {0: kept_of(9)},
            {0: kept_of(0, **DIVERGED)},
            [{"on_front": True}, {"neg_elbo_bpd": None, "distortion_below_nats": None, "on_front": False}],
            "Diverged, and in no mean: b (1 of 1).",
        ),
        (
            {0: kept_of(0, **DIVERGED)},
            {0: kept_of(9)},
            [{"neg_elbo_bpd": None, "on_front": False}, {"distortion_below_nats": None, "on_front": True}],
            "Diverged, and in no mean: a (1 of 1).",
        ),
        # Of one seed alone both are there: its error is over the data, which differ by nothing.
        (
            {1: kept_of(9)},
            {0: kept_of(5), 1: kept_of(6), 2: kept_of(7)},
            [{}, {"distortion_below_nats": 3, "distortion_below_nats_se": 0, "paired_seeds": 1}],
            "Compared by datum in a part of the runs alone: b (1 of 3, with the error over the data).",
        ),
        # 2, 6 and their mean 4 with the error √8 / √2.
        (
            {0: kept_of(9), 1: kept_of(9)},
            {0: kept_of(7), 1: kept_of(3), 2: kept_of(1)},
            [{}, {"distortion_below_nats": 4, "distortion_below_nats_se": 2, "paired_seeds": 2}],
            "Compared by datum in a part of the runs alone: b (2 of 3).",
        ),
        # What one run knows alone has no error.
        (
            {0: kept_of(9), 1: kept_of(8)},
            {0: kept_of(5, told_calibrated_nats=0.7), 1: kept_of(6, told_calibrated_nats=None)},
            [{}, {"told_calibrated_nats": 0.7, "told_calibrated_nats_se": None}],
            "Not known of all runs: b, told_calibrated_nats (1 of 2).",
        ),
        # What was measured otherwise is no mean of equals.
        (
            {0: kept_of(9), 1: kept_of(8)},
            {0: kept_of(5), 1: kept_of(6, seed=7, asked_told_samples=2)},
            [{}, {"distortion_below_nats": 3}],
            "Measured otherwise than by default: b/seed-1 (--seed 7 --told-samples 2).",
        ),
    ],
)
def test_a_row_is_of_what_its_runs_know_and_a_note_says_of_how_many(
    control: dict[int, Kept], arm: dict[int, Kept], expected: list[dict[str, Any]], note: str
) -> None:
    found = summary("t", [ArmChecks("a", "a", "", control), ArmChecks("b", "b", "", arm)], "a")
    for row, known in zip(found.rows, expected, strict=True):
        assert {key: row[key] for key in known} == known
    assert note in found.notes
    assert not any(text.startswith("Of other data") for text in found.notes)
    for text in map(str, found.notes):
        assert "nan" not in text
    assert all("nan" not in cell for row in cells(found) for cell in row)


def rows_of(families: Sequence[str], along: Sequence[str]) -> list[ArmChecks]:
    """Arms whose rate grows along the grid."""
    arms = []
    for family in families:
        for rate, place in enumerate(along):
            mine = {**NUMBERS, "finished": False, "rate_nats_mean": float(rate), "told_calibrated_nats": rate / 2}
            terms = np.full(3, float(rate))
            arms.append(ArmChecks(f"{family},{place}", family, place, {0: Kept(mine, terms, terms)}))
    return arms


@pytest.mark.parametrize("probed", [True, False])
def test_families_are_drawn_along_a_grid_or_in_the_plane(probed: bool) -> None:
    for along in (["width=2", "width=4"], ["", ""]):
        found = summary("t", rows_of(["a", "b"], along), f"a,{along[0]}")
        for row in found.rows:
            row["probe_accuracy"] = row["rate_nats_mean"] / 4 if probed else None
        figure = comparison_figure(found)
        assert len(figure.axes) == (3 if any(along) or probed else 2)
        told = figure.axes[1]
        legend = (figure.axes[-1] if any(along) else told).get_legend()
        assert {text.get_text() for text in legend.get_texts()} >= {"a", "b"}
        if probed and not any(along):
            drawn = [container.lines[0].get_xydata().tolist() for container in figure.axes[2].containers]
            assert drawn == [[[0, 0], [1, 0.25]]] * 2
        lines = [container.lines[0].get_xydata().tolist() for container in told.containers]
        assert lines == [[[0, 0], [1, 0.5]]] * 2
        if any(along):
            assert [label.get_text() for label in told.get_xticklabels()] == along


def test_along_a_grid_each_place_has_its_own_baseline_and_front() -> None:
    """A decoder that sees more has a lower distortion whatever its family does."""
    arms = []
    for place, (width, base) in enumerate((("width=2", 9.0), ("width=4", 5.0))):
        for family, rate, saved in (("a", 1.0, 0.0), ("b", 2.0, 0.5 + place), ("c", 2.0, 0.25)):
            terms = np.full(3, rate), np.full(3, base - saved)
            mine = {**NUMBERS, "rate_nats_mean": rate, "distortion_bpd": base - saved}
            arms.append(ArmChecks(f"{family},{width}", family, width, {0: Kept(mine, *terms)}))
    found = summary("t", arms, "a,width=2")
    rows = {row["arm"]: row for row in found.rows}
    assert found.baseline == "a"
    assert [rows[f"{arm},width={width}"]["distortion_below_nats"] for width in (2, 4) for arm in "abc"] == [
        None, 0.5, 0.25, None, 1.5, 0.25,
    ]  # fmt: skip
    assert [arm for arm, row in rows.items() if row["on_front"]] == ["a,width=2", "b,width=2", "a,width=4", "b,width=4"]
    assert any(note.startswith("Below 'a' at the same place of the grid: by datum; ") for note in found.notes)
    del arms[3]  # the first family has no run of the second place
    found = summary("t", arms, "a,width=2")
    assert [row["distortion_below_nats"] for row in found.rows] == [None, 0.5, 0.25, None, None]


def test_bounds_are_drawn_beside_those_of_others() -> None:
    arms = rows_of(["a"], ["x", "y"])
    for arm, bound in zip(arms, (3.0, 1.0)):
        arm.checks[0].numbers["neg_elbo_bpd"] = bound
    cited = [{"name": "theirs_$", "neg_elbo_bpd": 2.0, "source": "a paper"}]
    found = replace(summary("t", arms, "a,x"), cited=cited)
    (axes,) = comparison_figure(found).axes
    drawn = [container.lines[0].get_xydata().tolist()[0] for container in axes.containers]
    assert drawn == [[1.0, 0], [2.0, 1], [3.0, 2]]  # the lowest first, and on top
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a,y", "theirs_\\$ (cited)", "a,x"]


def test_the_front_has_what_nothing_beats() -> None:
    arms = rows_of(["a"], ["x", "y", "z"])
    for arm, distortion in zip(arms, (3.0, 1.0, 2.0)):
        arm.checks[0].numbers["distortion_bpd"] = distortion
    found = summary("t", arms, "a,x")
    assert [row["on_front"] for row in found.rows] == [True, True, False]
    assert found.notes[-1] == "Pareto front of rate and distortion: a,x, a,y."
    assert "3 runs have not come to the end." in found.notes
    for arm in arms[1:]:
        arm.checks[0].numbers.update(finished=True, judged_digest="of others, as many")
    found = summary("t", arms, "a,x")
    assert not any(row["on_front"] for row in found.rows)
    assert found.notes[0].startswith("3 data of the test split, not the same ones in all rows; ")
    assert "1 run has not come to the end." in found.notes
    assert not any("Pareto" in note for note in found.notes)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nowhere"], "nowhere is not a run"),
        (["sweep", "sweep"], "sweep is a sweep, and compared by itself"),
        (["sweep", "nowhere", "--with", "reference"], "sweep is a sweep, and compared by itself; give runs, or one"),
        (["run", "run"], "run is given more than once; give each run once"),
        (["run", "sweep/../run"], "sweep/../run is given more than once, also as run; give each run once"),
        (["run", "link", "--with", "reference"], "link is given more than once, also as run; give each run once"),
        (["sweep"], "sweep holds no finished run yet; pyro-delta sweep makes them"),
        (["searched"], "searched holds the trials of a search; compare runs of it, such as searched/trial-0"),
        (["sweep", "--with", "reference"], "sweep holds no finished run yet; pyro-delta sweep makes them"),
        (["nowhere", "--with", "reference"], "nowhere is not a run"),
    ],
)
def test_refused_comparisons(args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keep(parse(TREE), Path("sweep"))
    Path("run").mkdir()
    Path("link").symlink_to("run")
    keep(parse(TREE), Path("searched"))
    Path("searched/trial-0").mkdir()
    code, _, err = call("compare", *args)
    assert code == 2
    assert words in err


# --- Search ---

SEARCH = {"training": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}}}


class Scripted:
    """A launcher whose runs train nothing, and have the better validations, the nearer their rate is to 0.01."""

    begun: ClassVar[list[Path]] = []
    interrupt_at = -1

    def __init__(self, jobs: int) -> None:
        pass

    def __call__(self, work: runs.Training, stop: runs.Stop) -> str | None:
        self.begun.append(work.folder)
        work.folder.mkdir(parents=True, exist_ok=True)
        bound = 2 + abs(math.log(work.settings["training.lr"] / 0.01))
        for step in (10, 20, 30):
            if len(self.begun) == self.interrupt_at and step == 20:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            with (work.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "split": "validation", "neg_elbo_bpd": bound + 1 / step}) + "\n")
            if stop():
                return f"stopped at step {step}"
        return None


def test_a_search_is_kept_goes_on_and_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(search, "Local", Scripted)
    monkeypatch.setattr(Scripted, "begun", [])
    sweep = parse({**TREE, "arms": TREE["arms"][:1], "search": SEARCH})
    monkeypatch.setattr(Scripted, "interrupt_at", 4)
    with pytest.raises(KeyboardInterrupt):
        search.search(sweep, tmp_path, 12, 1, print)
    cut = Scripted.begun[-1]
    assert len(Scripted.begun) == 4
    found = search.search(sweep, tmp_path, 12, 1, print)
    assert Scripted.begun[4] == cut  # the trial that was cut short goes on, in its own folder
    assert found.trials["complete"] + found.trials["pruned"] == 12
    assert found.trials["fail"] == 0  # one was cut short and went on
    assert found.trials["pruned"] > 0
    study = optuna.load_study(storage=f"sqlite:///{tmp_path / 'search.db'}", study_name="s")
    rates = {
        trial.number: trial.params["training.lr"]
        for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    }
    assert found.best["training.lr"] == min(rates.values(), key=lambda lr: abs(math.log(lr / 0.01)))
    assert found.neg_elbo_bpd == pytest.approx(2 + abs(math.log(found.best["training.lr"] / 0.01)) + 1 / 30)
    assert found.folder.is_dir()
    # No more than was asked for, and none twice.
    assert len(Scripted.begun) == 13
    assert len({trial.params["training.lr"] for trial in study.trials}) == 12
    search.search(sweep, tmp_path, 12, 1, print)
    assert len(Scripted.begun) == 13


def test_searches_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna")
    monkeypatch.setattr(search, "Local", Scripted)
    monkeypatch.setattr(Scripted, "begun", [])
    sweep = parse({**TREE, "arms": TREE["arms"][:1], "search": SEARCH})
    with ThreadPoolExecutor(3) as pool:
        found = [done.result() for done in [pool.submit(search.search, sweep, tmp_path, 20, 2, print) for _ in "123"]]
    study = optuna.load_study(storage=f"sqlite:///{tmp_path / 'search.db'}", study_name="s")
    assert len(study.trials) == len({trial.params["training.lr"] for trial in study.trials}) == 20
    assert len(Scripted.begun) == 20
    assert study.best_trial.user_attrs["folder"] in {one.folder.name for one in found}
    # One is at work on two trials and another was killed: its trial alone is begun again.
    with search._worker(tmp_path) as worker:
        for name in (worker, ".search-of-old"):
            trial = study.ask()
            trial.set_user_attr("worker", name)
            trial.suggest_float("training.lr", 1e-3, 1e-1, log=True)
        search.search(sweep, tmp_path, 22, 1, print)
    states = [trial.state.name for trial in study.get_trials()[20:]]
    assert states == ["RUNNING", "FAIL", "COMPLETE"] or states == ["RUNNING", "FAIL", "PRUNED"]
    assert study.get_trials()[22].params == trial.params
    assert not list(tmp_path.glob(".search-*"))


@pytest.mark.parametrize(
    ("ranges", "settings", "words"),
    [
        ({"lr": {"low": -1.0, "high": 1.0}}, {}, "training.lr: Input should be greater than 0, got -1.0"),
        ({"optimizer": {"choices": ["adam", "bogus", "adamw"]}}, {}, "got 'bogus'"),
        ({"batch": {"low": 4, "high": 8.0}}, {}, "training.batch: Input should be a valid integer"),
        ({"lr": {"low": 0.1, "high": 1.0}}, {"training": {"validations": 0}}, "training.validations=0 leaves a search"),
    ],
)
def test_a_search_refuses_bad_ranges_before_any_work(
    ranges: dict[str, Any], settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    bad = parse({**TREE, "arms": [TREE["arms"][0] | settings], "search": {"training": ranges}})
    with pytest.raises(UserError, match=re.escape(words)):
        search.search(bad, tmp_path, 1, 1, print)
    assert not list(tmp_path.iterdir())


def test_a_search_is_over_one_arm(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match="a search is over one arm, and the sweep 's' has 2; leave one"):
        search.search(parse({**TREE, "search": SEARCH}), tmp_path, 1, 1, print)
    assert not list(tmp_path.iterdir())


def test_a_search_goes_on_with_its_own_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "Local", Scripted)
    sweep = parse({**TREE, "arms": TREE["arms"][:1], "search": SEARCH})
    search.search(sweep, tmp_path, 1, 1, print)
    with pytest.raises(UserError, match="holds a search with seed 0, and this is one with 5; give another --out"):
        search.search(sweep.model_copy(update={"seeds": (5,)}), tmp_path, 2, 1, print)


def test_a_search_whose_trials_all_diverge_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")

    def diverge(work: runs.Training, stop: runs.Stop) -> None:
        work.folder.mkdir(parents=True)
        line = {"step": 10, "split": "validation", "neg_elbo_bpd": None}
        (work.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(search, "Local", lambda jobs: diverge)
    sweep = parse({**TREE, "arms": TREE["arms"][:1], "search": SEARCH})
    told: list[str] = []
    with pytest.raises(CheckFailed, match=r"no trial of .* came to its end; see the logs there"):
        search.search(sweep, tmp_path, 2, 1, told.append)
    assert len(told) == 2  # and no more
    assert all(line.endswith("it diverged: no validation has a bound that is a number") for line in told)


def test_a_storage_that_another_program_holds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "Local", Scripted)
    monkeypatch.setattr(search, "PATIENCE", 0.1)
    sweep = parse({**TREE, "arms": TREE["arms"][:1], "search": SEARCH})
    search.search(sweep, tmp_path, 1, 1, print)
    with closing(sqlite3.connect(tmp_path / "search.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"search\.db is locked by another program; end that, and go on"):
            search.search(sweep, tmp_path, 2, 1, print)
    assert search.search(sweep, tmp_path, 2, 1, print).trials["complete"] == 2


@pytest.mark.parametrize("content", [b"no data base", b"SQLite format 3\0" + b"x" * 3000])
def test_a_damaged_storage_is_named(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    sweep = parse({**TREE, "arms": TREE["arms"][:1], "search": SEARCH})
    keep(sweep, tmp_path)
    (tmp_path / "search.db").write_bytes(content)
    with pytest.raises(UserError, match=r"search\.db cannot be read: .*; restore it, or move it away") as caught:
        search.search(sweep, tmp_path, 1, 1, print)
    assert "\n" not in str(caught.value)


def test_choices_may_be_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(search, "Local", Scripted)
    monkeypatch.setattr(Scripted, "begun", [])
    ranges = SEARCH | {"likelihood": {"channels": {"choices": [[8], [4, 4]]}}}
    sweep = parse({**TREE, "arms": TREE["arms"][:1], "search": ranges})
    found = search.search(sweep, tmp_path, 2, 1, print)
    assert found.best["likelihood.channels"] in ([8], [4, 4])
    search.search(sweep, tmp_path, 3, 1, print)
    assert len(Scripted.begun) == 3


def test_a_trial_is_an_ordinary_run(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr(runs.Local, "__call__", lambda local, work, stop: in_process(work, stop))
    one = sweep.model_copy(update={"arms": parse_shorter(sweep).arms[1:], "control": None})
    found = search.search(one, tmp_path, 1, 1, print)
    best = min(line["neg_elbo_bpd"] for line in read_metrics(found.folder) if line["split"] == "validation")
    assert found.neg_elbo_bpd == best
    config = json.loads((found.folder / "config.json").read_text())
    assert {key: config["training"][key.removeprefix("training.")] for key in found.best} == found.best
    assert isinstance(found.best["training.batch"], int)
