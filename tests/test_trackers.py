"""Experiment trackers: what is sent to them, and that training does not hang on them."""

import json
import sys
from pathlib import Path

import pytest
from test_cli import call

SMALL = ("--dataset", "digits", "--set", "training.batch=8", "--set", "training.log_every=2")
STAND_IN = '''
"""Speaks as wandb does, and writes down what it is told."""
import json, os
from pathlib import Path

FILE = Path(os.environ["STAND_IN"])

def note(what, *args, **named):
    with FILE.open("a") as file:
        file.write(json.dumps([what, args, named]) + "\\n")
    if what == os.environ.get("STAND_IN_FAILS"):
        raise ConnectionError("the server is away")

def init(**named): print("hello"); note("init", **named)
def log(numbers, step): note("log", numbers, step=step)
def finish(): note("finish")
'''


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where stand-ins of wandb and trackio write down what they are told."""
    for name in ("wandb", "trackio"):
        (tmp_path / f"{name}.py").write_text(STAND_IN)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("STAND_IN", str(tmp_path / "notes"))
    return tmp_path / "notes"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_all_lines_and_settings_are_sent(name: str, notes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = call("train", *SMALL, "--steps", 4, "--out", run, "--tracker", name, "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 4  # whatever a tracker prints
    (first, _, given), *logged, last = map(json.loads, notes.read_text().splitlines())
    assert (first, last[0]) == ("init", "finish")
    assert (given["name"], given["project"]) == ("run", "pyro-delta")
    assert (given["config"]["training.steps"], given["config"]["prior.program"]) == (4, "ar1")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sent = [(named["step"], numbers) for _, (numbers,), named in logged]
    assert [step for step, _ in sent] == [line["step"] for line in lines]
    for (_, numbers), line in zip(sent, lines, strict=True):
        assert numbers[f"{line['split']}/neg_elbo_bpd"] == line["neg_elbo_bpd"]
        assert f"{line['split']}/step" not in numbers


def test_a_run_that_goes_on_does_so_at_the_tracker(notes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    call("train", *SMALL, "--steps", 2, "--out", run, "--tracker", "wandb")
    call("train", "--out", run, "--resume", "--steps", 4, "--tracker", "wandb")
    starts = [named for what, _, named in map(json.loads, notes.read_text().splitlines()) if what == "init"]
    assert len(starts) == 2
    assert starts[0]["id"] == starts[1]["id"]
    assert starts[1]["resume"] == "allow"


@pytest.mark.parametrize("when", ["init", "log", "finish"])
def test_training_goes_on_without_a_tracker_that_fails(
    when: str, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", when)
    code, _, err = call("train", *SMALL, "--steps", 4, "--out", tmp_path / "run", "--tracker", "wandb")
    assert code == 0, err
    assert err.count("wandb fails to") == 1
    assert "(ConnectionError: the server is away); the training goes on without it." in err
    told = [what for what, *_ in map(json.loads, notes.read_text().splitlines())]
    assert told.count(when) == 1
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


def test_a_tracker_that_is_not_installed_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_delta.inference.trackers.find_spec", lambda name: None)
    code, _, err = call("train", *SMALL, "--steps", 4, "--out", tmp_path / "run", "--tracker", "mlflow")
    assert code == 2
    assert "--tracker mlflow needs a package that is not installed; pip install mlflow-skinny." in err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_that_name_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers leave their files in folders that are called like them."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    (tmp_path / "trackio").mkdir()
    code, _, err = call("train", *SMALL, "--steps", 2, "--out", tmp_path / "run", "--tracker", "trackio")
    assert code == 2
    assert "pip install trackio" in err


def test_a_broken_tracker_is_one_that_fails(notes: Path, tmp_path: Path) -> None:
    (notes.parent / "wandb.py").write_text("raise ImportError('half installed')")
    code, _, err = call("train", *SMALL, "--steps", 2, "--out", tmp_path / "run", "--tracker", "wandb")
    assert code == 0, err
    assert err.count("wandb fails to start (ImportError: half installed); the training goes on without it.") == 1


def test_mlflow_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    run = tmp_path / "run"
    call("train", *SMALL, "--steps", 2, "--out", run, "--tracker", "mlflow")
    code, _, err = call("train", "--out", run, "--resume", "--steps", 4, "--tracker", "mlflow")
    assert code == 0, err
    assert "fails" not in err
    (found,) = mlflow.search_runs(experiment_names=["pyro-delta"], output_format="list")
    assert found.info.run_name == "run"
    assert found.data.params["training.steps"] == "2"
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "validation/neg_elbo_bpd")
    assert [metric.step for metric in history] == [2, 4]
