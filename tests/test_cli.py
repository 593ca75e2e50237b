"""The commands from end to end on the embedded digits, and what each mistake in their input leads to."""

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forged import state_of
from PIL import Image

import pyro_delta
from pyro_delta.cli import COMMANDS, main
from pyro_delta.data import load as load_data
from pyro_delta.data.splits import subset
from pyro_delta.diagnostics.bounds import evaluate
from pyro_delta.inference import recorder as records
from pyro_delta.inference import run as runs
from pyro_delta.inference.pyro_training import PyroTraining
from pyro_delta.inference.run import DEAF

SETTINGS = {
    "prior.dims": "2",
    "prior.rate_nats": "4",
    "likelihood.channels": "[8]",
    "likelihood.row_blocks": "[1]",
    "likelihood.pixel_blocks": "1",
    "likelihood.mixtures": "2",
    "guide.channels": "[8]",
    "guide.row_blocks": "[1]",
    "guide.features": "8",
    "training.compile": "false",
    "training.bf16": "false",
    "training.warmup": "2",
    "training.log_every": "5",
    "training.validations": "2",
}
SETS = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
TINY = ["--preset", "cifar10-small", "--dataset", "digits", "--device", "cpu", *SETS, "--no-report"]
METRICS = {
    "step",
    "wall_s",
    "train_s",
    "lr",
    "split",
    "neg_elbo_bpd",
    "distortion_bpd",
    "rate_bpd",
    "rate_nats_mean",
    "rate_nats_min",
    "delta_nats",
    "active_units",
}


def call(*args: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit_:
        main([str(arg) for arg in args])
    return int(exit_.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    code, out, err = call("train", *TINY, "--steps", 20, "--out", folder, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["run"] == str(folder)
    assert set(result) >= METRICS
    assert result["split"] == "validation"
    assert result["step"] == 20
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = min((line for line in lines if line["split"] == "validation"), key=lambda line: line["neg_elbo_bpd"])
    assert (result["best_step"], result["best_neg_elbo_bpd"]) == (best["step"], best["neg_elbo_bpd"])
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder; the cache of decoded images does not count."""
    paths = [path for path in sorted(folder.rglob("*")) if ".pyro-delta-cache" not in path.parts]
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def scalars_of(run: Path) -> dict[str, list[int]]:
    """What TensorBoard shows of a run: the steps of each number."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "events")).Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# --- End to end ---


def test_run_folder_holds_everything(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line) >= METRICS for line in lines)
    assert [line["step"] for line in lines if line["split"] == "train"] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [10, 20]
    assert all(line["rate_nats_min"] >= line["delta_nats"] * (1 - 1e-6) for line in lines)
    assert sorted(path.name for path in (trained / "samples").iterdir()) == ["step_000010.png", "step_000020.png"]
    assert scalars_of(trained)["validation/neg_elbo_bpd"] == [10, 20]
    assert scalars_of(trained)["train/rate_nats_mean"] == [5, 10, 15, 20]
    config = json.loads((trained / "config.json").read_text())
    assert config["training"]["steps"] == 20
    assert config["training"]["minutes"] is None
    assert config["prior"]["rate_nats"] == 4
    assert set(json.loads((trained / "run.json").read_text())) == {
        "format", "preset", "spec", "data", "version", "commit", "config_digest", "versions", "threads", "programs",
    }  # fmt: skip


def test_evaluate_agrees_with_the_library(trained: Path) -> None:
    code, out, _ = call("evaluate", trained, "--particles", 3, "--images", 20, "--json")
    assert code == 0
    numbers = json.loads(out)
    test = load_data("digits").test
    expected = evaluate(runs.load(trained).vae, subset(test, 20, 0), particles=3)
    assert {key: numbers[key] for key in expected} == pytest.approx(expected)
    assert numbers["n_images"] == numbers["iw_images"] == 20
    assert (numbers["split"], numbers["split_images"], numbers["seed"]) == ("test", len(test), 0)
    assert numbers["iw_neg_elbo_bpd"] == pytest.approx(numbers["neg_elbo_bpd"], rel=1e-12)
    assert {"iw_bpd", "iw_bpd_se", "neg_elbo_bpd_se", "rate_bpd_se", "distortion_bpd_se"} <= set(numbers)


def test_what_is_evaluated_are_the_averaged_weights(trained: Path) -> None:
    state = state_of(trained)
    name, average = next((k, v) for k, v in state["average"].items() if "weight" in k)
    vae = runs.load(trained, weights="last").vae
    assert torch.equal(vae.state_dict()[name.removeprefix("module.")], average)
    assert not torch.equal(state["vae"][name.removeprefix("module.")], average)
    assert not any(getattr(part, "bf16", False) for part in vae.modules())


def test_tables_are_for_people(trained: Path) -> None:
    code, out, _ = call("evaluate", trained)
    assert code == 0
    assert "−ELBO" in out
    assert "±" in out
    assert "bits/dim" in out
    state = state_of(trained)
    title = f"best weights, of step {state['best']['step']}: all data of the test split, seed 0"
    assert title in " ".join(out.split())
    code, out, _ = call("evaluate", trained, "--weights", "last", "--images", 7, "--seed", 3)
    assert "last weights, of step 20: 7 data of the test split, seed 3" in " ".join(out.split())
    assert "not come to its end" not in out


def test_check_prints_its_table_and_fails_unused_latents(trained: Path) -> None:
    code, out, err = call("check", trained, "--json")
    numbers = json.loads(out)
    assert code == 1
    assert "the latents are not shown to be used" in err
    assert numbers["floor_holds"] is True
    assert numbers["latents_used"] is False
    assert set(numbers) >= {
        "delta_nats",
        "rate_nats_min",
        "shuffled_gap_nats",
        "shuffled_gap_se",
        "active_units",
        "mutual_information_nats",
        "mutual_information_cap_nats",
        "mutual_information_nats_se",
        "told_nats",
        "told_nats_se",
        "told_calibrated_nats",
        "told_calibrated_nats_se",
        "told_tau",
        "told_cap_nats",
        "probe_accuracy",
        "probe_accuracy_se",
        "probe_chance",
        "data_as_trained",
        "weights",
        "step",
        "finished",
        "version",
        "commit",
        "config_digest",
    }
    assert numbers["probe_accuracy"] is not None


def test_check_fails_a_latent_free_run(tmp_path: Path) -> None:
    sets = ("--set", "likelihood.use_latents=false")
    code, out, _ = call("train", *TINY, *sets, "--steps", 2, "--out", tmp_path / "run")
    assert (code, DEAF in out) == (0, True)
    _, out, _ = call("evaluate", tmp_path / "run", "--images", 8)
    assert DEAF in out
    assert json.loads(call("evaluate", tmp_path / "run", "--images", 8, "--json")[1])["is_control"] is True
    code, out, err = call("check", tmp_path / "run", "--split", "validation", "--images", 40, "--json")
    assert code == 1
    assert json.loads(out)["shuffled_gap_nats"] == json.loads(out)["told_calibrated_nats"] == 0
    said = "the run is a control, whose decoder does not hear z: it has no latents to check."
    assert err.endswith(f"pyro-delta: {said}\n")
    assert json.loads(out)["failure"] == said


@pytest.mark.parametrize(
    ("args", "size"),
    [
        (["--num", 5], (3 * 66 + 2, 2 * 66 + 2)),
        (["--num", 1], (64, 64)),  # torchvision gives a single image no frame
        (["--num", 3, "--same-z", 2], (3 * 66 + 2, 2 * 66 + 2)),
    ],
)
def test_sample_draws_a_grid(trained: Path, tmp_path: Path, args: list[Any], size: tuple[int, int]) -> None:
    first, second, third = (tmp_path / f"{name}.png" for name in "abc")
    assert call("sample", trained, *args, "--out", first)[0] == 0
    assert call("sample", trained, *args, "--out", second)[0] == 0
    assert call("sample", trained, *args, "--out", third, "--seed", 1)[0] == 0
    with Image.open(first) as a, Image.open(second) as b, Image.open(third) as c:
        assert a.size == size
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


def test_grid_places_every_image_row_by_row() -> None:
    from pyro_delta.data.images.pictures import grid

    images = torch.tensor([0, 4, 8, 12, 16]).reshape(5, 1, 1, 1).expand(5, 1, 32, 20)
    picture = grid(images, levels=17, columns=3)
    assert picture.shape == (3, 2 * 66 + 2, 3 * 42 + 2)
    centres = picture[:, [34, 34, 34, 100, 100, 100], [22, 64, 106, 22, 64, 106]]
    assert torch.equal(centres, torch.tensor([0, 64, 128, 191, 255, 255], dtype=torch.uint8).expand(3, 6))
    assert (picture[:, :2] == 255).all()


def test_same_z_gives_a_column_one_latent(trained: Path) -> None:
    """With a decoder that draws the mean of its latents, the rows of the grid are equal."""
    from pyro_delta.diagnostics.drawing import draw

    loaded = runs.load(trained)

    class Mean:
        def __init__(self, z: torch.Tensor) -> None:
            self.z = z

        def sample(self) -> torch.Tensor:
            return self.z.mean((1, 2)).reshape(-1, 1, 1, 1)

    loaded.vae.model.likelihood.forward = Mean
    rows = draw(loaded.vae, 5, decodings=3, batch=4).reshape(3, 5)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert len(rows[0].unique()) == 5


def test_resume_extends_a_run(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    with (folder / "metrics.jsonl").open(
        "a"
    ) as file:  # a crash after the checkpoint: a line of the future, half a line
        file.write(json.dumps({"step": 25, "split": "train"}) + '\n{"step": 2')
    code, _, err = call("train", "--out", folder, "--resume", "--steps", 30)
    assert code == 0, err
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [5, 10, 15, 20, 25, 30]
    assert lines[-1]["split"] == "validation"
    assert lines[-1]["step"] == 30
    settings = json.loads((folder / "config.json").read_text())["training"]
    assert settings["steps"] == 30
    rate = re.search(
        r"the schedule of all 30 steps from here: (\S+) at step 21, after (\S+), and (\S+) at the end", err
    )
    left = settings["final"] + (1 - settings["final"]) * math.cos(math.pi * 20 / 30 / 2) ** 2
    warm = [min(1, step / (settings["warmup"] + 1)) for step in (21, 30)]
    before = next(line["lr"] for line in lines if line["step"] == 20)
    expected = settings["lr"] * left * warm[0], before, settings["lr"] * settings["final"] * warm[1]
    assert [*map(float, rate.groups())] == pytest.approx(expected, rel=5e-3)
    assert scalars_of(folder)["train/rate_nats_mean"] == [5, 10, 15, 20, 25, 30]


def test_resume_of_a_finished_run_changes_nothing(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    code, out, _ = call("train", "--out", folder, "--resume", "--json")
    assert code == 0
    assert json.loads(out) == {"run": str(folder), "finished": True}
    assert contents(folder) == {path.replace(str(trained), str(folder)): had for path, had in contents(trained).items()}
    assert "has come to its end already; --steps or --minutes makes it" in call("train", "--out", folder, "--resume")[1]


@pytest.mark.parametrize("backend", ["pyro", "numpyro"])
def test_a_training_that_does_not_get_better_ends(backend: str, tmp_path: Path) -> None:
    """With a learning rate of nothing, after as many validations as its patience; more of it goes on."""
    if backend == "numpyro":
        pytest.importorskip("flax")
    folder = tmp_path / "run"
    sets = {"lr": 1e-30, "log_every": 2, "validations": 10, "patience": 3, "validation_images": 20, "backend": backend}
    sets["ema"] = 0.0  # an average of equal weights differs from them by rounding
    still = [part for key, value in sets.items() for part in ("--set", f"training.{key}={value}")]
    networks = [part for pair in zip(SETS[::2], SETS[1::2]) if "training" not in pair[1] for part in pair]
    code, _, err = call(
        "train", "--preset", "cifar10-small", "--dataset", "digits", *networks, *still, "--steps", 20, "--out", folder
    )
    assert code == 0, err
    assert "ended at step 8, for 3 validations in a row were no better than that of step 2; --resume" in err
    run = pyro_delta.load(folder)
    assert (run.finished, run.trained_steps, run.step) == (True, 8, 2)
    assert "has come to its end already" in call("train", "--out", folder, "--resume")[1]
    code, _, err = call("train", "--out", folder, "--resume", "--set", "training.patience=4")
    assert code == 0, err
    assert "ended at step 10, for 4 validations" in err
    assert call("train", "--out", folder, "--resume", "--set", "training.patience=null")[0] == 0
    assert pyro_delta.load(folder).trained_steps == 20


def test_interrupted_and_resumed_is_the_same_training(trained: Path, tmp_path: Path) -> None:
    """Stopped at step 10 by the signal's own route, and gone on with from the file."""
    folder, stopped = tmp_path / "run", []

    def interrupt(recorder: records.Recorder, trainer: PyroTraining) -> None:
        if trainer.step == 10 and not stopped:
            stopped.append(signal.raise_signal(signal.SIGINT))
        every(recorder, trainer)

    every = records.Recorder.every
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records.Recorder, "every", interrupt)
        code, _, err = call("train", *TINY, "--steps", 20, "--out", folder)
    assert code == 130
    assert f"stopped at step 10; go on with: pyro-delta train --out {folder} --resume" in err
    assert call("train", "--out", folder, "--resume")[0] == 0
    ours, theirs = (state_of(path) for path in (folder, trained))
    assert ours["best"]["step"] == theirs["best"]["step"]
    for part in ("vae", "average", "best"):
        mine, others = (state[part]["vae"] if part == "best" else state[part] for state in (ours, theirs))
        torch.testing.assert_close(mine, others, rtol=0, atol=0)
    keys = METRICS - {"wall_s", "train_s"}
    for a, b in zip(runs.read_metrics(folder), runs.read_metrics(trained), strict=True):
        assert {key: a[key] for key in keys} == {key: b[key] for key in keys}


def test_termination_signal_leaves_a_run_to_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "pyro_delta", "train", *TINY, "--minutes", "5", "--out", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 90
    metrics = folder / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("pyro-delta: stopped at step ")
    assert state_of(folder)["step"] > 0


def test_full_disk_ends_a_training_with_a_sentence(tmp_path: Path) -> None:
    """A limit to the size of files, which the checkpoint is the first to exceed, stands for a full disk."""
    command = [sys.executable, "-m", "pyro_delta", "train", *TINY, "--steps", "20", "--out", str(tmp_path / "run")]
    shell = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *command]
    done = subprocess.run(shell, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=90)
    assert done.returncode == 2, done.stderr
    path = tmp_path / "run" / "checkpoint-00000000.safetensors"
    assert done.stderr == f"pyro-delta: cannot use {path}: File too large; make room there.\n"
    assert not path.exists()


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (
            ["lr=1e30", "skip=null", "ema=0", "clip=null"],
            "diverged: its newest bound is not finite; train again with a lower training.lr or a training.clip.",
        ),
        (
            ["skip=1e-9"],
            "learned nothing: all of its 9 steps were not finite, or had gradients beyond training.skip=1e-09, and "
            "were skipped; train again with a lower training.lr or a larger training.skip.",
        ),
    ],
    ids=["diverged", "skipped"],
)
def test_a_training_too_short_to_be_stopped_says_what_came_of_it(sets: list[str], words: str, tmp_path: Path) -> None:
    options = [part for each in sets for part in ("--set", f"training.{each}")]
    code, _, err = call("train", *TINY, *options, "--steps", 9, "--out", tmp_path / "run")
    assert (code, err.splitlines()[-1]) == (1, f"pyro-delta: the training {tmp_path / 'run'} {words}")
    assert state_of(tmp_path / "run")["step"] == 9


def test_diverged_training_stops_with_a_sentence(tmp_path: Path) -> None:
    args = [part.replace("validations=2", "validations=20") for part in TINY]
    sets = ("--set", "training.lr=1e30", "--steps", 60, "--out", tmp_path / "run")
    code, _, err = call("train", *args, *sets)
    assert code == 1
    assert err.splitlines()[-1].startswith("pyro-delta: training stopped at step 25: the last 24 steps were not finite")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["neg_elbo_bpd"] is None
    assert state_of(tmp_path / "run")["step"] == 0
    # What is left are the weights of the start, which are nobody's result.
    words = (
        "has not come to its end: it has made 25 steps, 24 of which were skipped, and these are the "
        "last weights, of step 0"
    )
    code, out, _ = call("evaluate", tmp_path / "run", "--images", 5)
    assert code == 0
    assert f"{words}; it diverged: train again with a lower training.lr" in " ".join(out.split())
    code, out, _ = call("evaluate", tmp_path / "run", "--images", 5, "--json")
    assert {key: json.loads(out)[key] for key in ("weights", "step", "trained_steps", "skipped_steps")} == {
        "weights": "last", "step": 0, "trained_steps": 25, "skipped_steps": 24,
    }  # fmt: skip
    code, _, err = call("check", tmp_path / "run", "--images", 20)
    assert code == 1
    assert words in err


def test_a_run_and_its_control(tmp_path: Path) -> None:
    code, out, err = call("train", *TINY, "--steps", 4, "--control", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["run"], result["control"]["run"]) == (str(tmp_path / "run"), str(tmp_path / "run-control"))
    options = ("--control", tmp_path / "run-control", "--images", 30, "--told-images", 20, "--told-samples", 5)
    code, out, err = call("check", tmp_path / "run", *options, "--json")
    numbers = json.loads(out)
    assert numbers["bought_nats"] - numbers["rate_nats_mean"] == pytest.approx(numbers["net_bought_nats"])
    assert (numbers["control_trained_steps"], numbers["trained_steps"]) == (4, 4)
    assert (numbers["told_samples"], numbers["told_images"]) == (5, 20)
    code, _, err = call("train", *TINY, "--control", "--out", tmp_path / "run")
    assert (code, "holds another run" in err) == (2, True)


def test_default_folders_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert call("train", *TINY, "--steps", 1, "--seed", 3)[0] == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["digits-cifar10-small-3", "digits-cifar10-small-3-2"]


def test_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "mine", 12)
    args = [f"folder:{tmp_path / 'mine'}" if part == "digits" else part for part in TINY]
    code, _, err = call("train", *args, "--set", "training.batch=4", "--steps", 1, "--out", tmp_path / "run")
    assert code == 0, err
    numbers = json.loads(call("check", tmp_path / "run", "--json")[1])
    assert numbers["probe_accuracy"] is None
    assert numbers["n_images"] == 12
    write_images(tmp_path / "mine", 12, size=4)
    code, _, err = call("evaluate", tmp_path / "run")
    assert code == 2
    assert "but the run was made for" in err


# --- Lists and help ---


def test_list_names_everything() -> None:
    code, out, _ = call("list", "--json")
    tables = json.loads(out)
    assert code == 0
    assert set(tables) == {"datasets", "presets", "priors", "likelihoods", "guides", "objectives", "sweeps"}
    assert {"name": "ar1"}.items() <= tables["priors"][0].items()
    assert all(entry["description"] for entries in tables.values() for entry in entries)
    assert {entry["preset"] for entry in tables["datasets"]} >= {"cifar10-small"}
    text = call("list")[1]
    assert all(entry["name"] in text for entries in tables.values() for entry in entries)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: pyro-delta {command}")


@pytest.mark.parametrize("args", ["--help", "--version", "", "train --help", "trian"])
def test_help_and_usage_errors_load_nothing_heavy(args: str) -> None:
    script = (
        "import sys\nfrom pyro_delta.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pyro', 'numpy', 'pydantic', 'rich', 'matplotlib', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script, *args.split()], check=True, capture_output=True, timeout=60)


def test_training_and_sampling_load_what_they_use(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pyro_delta.cli import main\n"
        f"train = {['train', *TINY, '--steps', '2', '--out', 'run']}\n"
        "for args in train, ['sample', 'run', '--num', '2', '--out', 'a.png']:\n"
        "    try:\n        main(args)\n    except SystemExit as end:\n        assert not end.code\n"
        "slow = {'arviz', 'xarray', 'pandas', 'sklearn', 'matplotlib', 'torchvision', 'jax'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120, cwd=tmp_path)


def test_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m pyro_delta list datasets | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def write_images(folder: Path, count: int, size: int = 8, mode: str = "L") -> None:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 256, (size, size, 4), dtype=np.uint8)
            Image.fromarray(noise).convert(mode).save(folder / split / f"{i}.png")
