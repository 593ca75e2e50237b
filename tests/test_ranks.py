"""Several ranks against one: gradients, trajectories, epochs, evaluation, resuming, and what one of them ends by."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from test_cli import call
from test_inference import SPEC, config_of, flat, toy_data
from torch import Tensor, nn

from pyro_delta import ranks, resume
from pyro_delta.api.train import begin, carry_out, prepare, reopen
from pyro_delta.build import build
from pyro_delta.config import Config, validate
from pyro_delta.data import Split, Splits
from pyro_delta.data.batches import Batches
from pyro_delta.diagnostics.bounds import Encoding, encode
from pyro_delta.errors import CheckFailed, RankLost, UserError
from pyro_delta.inference.pyro_training import PyroTraining, seed_of_part
from pyro_delta.inference.run import create, load
from pyro_delta.vae import VAE, parameters_of

RANKS = 2
STEPS = 25
NEAR = {"rtol": 1e-10, "atol": 1e-12}
"""Double precision, over a few dozen steps."""
TRAININGS: dict[str, dict[str, Any]] = {
    "adam, trace": {"elbo": "trace", "clip": 0.05, "lr": 3e-3},
    "muon, mean_field, an auxiliary prior, a weight that is not used": {
        "elbo": "mean_field", "optimizer": "muon", "auxiliary": True, "unused": True,
    },
    "annealed": {"objective": "annealed", "anneal_steps": 20},
    "free bits": {"objective": "free_bits", "free_nats": 3.0},
    "free bits per dimension": {"objective": "free_bits_per_dim", "free_nats": 3.0},
    "a target rate": {"objective": "target_rate", "target_nats": 5.0, "multiplier_lr": 0.1},
    "data with more than x": {"more": True},
}  # fmt: skip
NONLINEAR = [name for name, settings in TRAININGS.items() if "rate" in name or "free" in name]


def training_of(
    *, auxiliary: bool = False, unused: bool = False, more: bool = False, **settings: Any
) -> tuple[PyroTraining, list[Any]]:
    """A training in double precision, and its lines of metrics."""
    config = config_of(**{"batch": 8, "steps": STEPS, "validations": 0, **settings})
    if auxiliary:
        config = validate({**config.model_dump(), "auxiliary": {"enabled": True, "hidden": 4}})
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(config.training.seed)
    vae, lines = build(config, SPEC), []
    if unused:
        vae.guide.spare = nn.Parameter(torch.ones(3))
    data = toy_data()
    if more:  # batches are dicts, as where data have lengths, masks or conditions
        parts = (data.train, data.validation, data.test)
        data = Splits(SPEC, *(Split(part.x, None, {"weight": torch.ones(len(part))}) for part in parts))
    return PyroTraining(config, data, vae, lines.append), lines


@contextmanager
def gradients(training: PyroTraining) -> Iterator[list[list[Tensor]]]:
    """Those of each step of a training that is run."""
    found: list[list[Tensor]] = []
    watch = training.optimizer.register_step_pre_hook(
        lambda *_: found.append([p.grad.clone() for p in training.vae.parameters() if p.grad is not None])
    )
    yield found
    watch.remove()


def numbers(line: dict[str, Any]) -> dict[str, Any]:
    """What a line of metrics says, times apart."""
    return {key: value for key, value in line.items() if key not in ("split", "wall_s", "train_s", "images_per_s")}


def trained(name: str, steps: int = STEPS, **more: Any) -> dict[str, Any]:
    """What comes of a training: weights, averages, the first gradients, metrics."""
    training, lines = training_of(**{**TRAININGS[name], "steps": steps, "log_every": steps, **more})
    with gradients(training) as grads, training.running():
        with torch.no_grad():
            weights = flat(training.vae)
        for _ in range(steps):
            training.advance()
        training.log_training()
    assert not torch.allclose(weights, flat(training.vae), rtol=1e-3)
    auxiliary = training.auxiliary
    return {
        "weights": flat(training.vae),
        "average": flat(training.averaged()),
        "auxiliary": torch.zeros(()) if auxiliary is None else flat(auxiliary.average.module),
        "gradients": grads[0],
        "line": numbers(lines[0]),
    }


class Erratic(nn.Module):
    """A guide that draws now and then, as its data are, before it does what another one does."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, x: Tensor) -> Any:
        torch.randn(int(x.sum()) % 7)
        return self.guide(x)


def evaluated(erratic: bool, **options: Any) -> Encoding:
    torch.manual_seed(0)
    vae = build(config_of(), SPEC)
    if erratic:
        vae = VAE(vae.model, Erratic(vae.guide))
    return encode(vae, toy_data().train, batch=5, **options)  # 24 data: the last batch is a smaller one


def interrupted(folder: Path) -> int:
    """The step at which all end, when a signal reaches the last rank in step 3; then all go on."""
    training = prepare(small(), "cpu", data=toy_data())
    if ranks.first():
        training.lock = create(folder, training.config, training.data, "none")
    step = training.train_step

    def signalled(batch: Any) -> None:
        step(batch)
        if ranks.rank() == RANKS - 1 and training.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    training.train_step = signalled  # type: ignore[method-assign]
    carry_out(training, folder, lambda line: None, resumed=False)
    made = training.step
    ranks.gathered(None)
    reopened, _ = reopen(folder, [], "cpu", data=toy_data())
    assert reopened is not None
    carry_out(reopened, folder, lambda line: None, resumed=True)
    return made


def small(**training: Any) -> Config:
    config = config_of(**{"batch": 8, "steps": 8, "log_every": 2, "validations": 2, **training})
    return config.model_copy(update={"data": config.data.model_copy(update={"program": "given", "options": {}})})


def uninterrupted(folder: Path) -> None:
    training = prepare(small(), "cpu", data=toy_data())
    if ranks.first():
        training.lock = create(folder, training.config, training.data, "none")
    carry_out(training, folder, lambda line: None, resumed=False)


def by_the_clock() -> tuple[int, list[float]]:
    """Steps and learning rates of a training by minutes; the clocks of all ranks but the first are wrong."""
    training, _ = training_of(minutes=0.005, steps=None, log_every=5)
    if not ranks.first():
        training.clock.own = lambda: 1e6  # type: ignore[method-assign]
    rates, step = [], training.train_step

    def watch(batch: Any) -> None:
        step(batch)
        rates.append(training.lr)

    training.train_step = watch  # type: ignore[method-assign]
    training.run()
    return training.step, rates


def spoilt() -> tuple[int, Tensor]:
    """Skipped steps, and weights, when a gradient of the last rank is not finite in one of three steps."""
    training, _ = training_of(steps=3)
    weight = next(training.vae.model.likelihood.parameters())
    if ranks.rank() == RANKS - 1:
        weight.register_hook(lambda grad: grad * float("nan") if training.step == 1 else grad)
    training.run()
    return int(training.update.skipped), flat(training.vae)


def mistaken() -> list[tuple[str, str, bool]]:
    """What ranks raise when the last one makes a mistake."""
    said = []
    for mistake in (UserError("a is wrong; mend it."), CheckFailed("b failed."), OSError("no disk")):
        try:
            with ranks.together():
                if ranks.rank() == RANKS - 1:
                    raise mistake
        except (UserError, CheckFailed, RankLost, OSError) as error:
            said.append((type(error).__name__, str(error), getattr(error, "said", False)))
    return said


def unlike(folder: Path) -> list[tuple[str, bool]]:
    """What ranks raise that have data of their own, or were started with settings of their own."""
    said, data, others = [], toy_data(), toy_data()
    others.validation.x[3, 0, 1, 2] ^= 1
    mine = ranks.rank() == RANKS - 1
    for given, config in ((others if mine else data, small()), (data, small(seed=1) if mine else small())):
        with pytest.raises(UserError) as caught:
            begin(config, folder, "none", "cpu", given)
        said.append((str(caught.value), caught.value.said))
    return said


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    **{name: lambda folder, name=name: trained(name) for name in TRAININGS},  # type: ignore[misc]
    "two parts each": lambda folder: trained("adam, trace", 5, accumulate=2),
    "indices": lambda folder: torch.stack([training_of()[0].batches.indices(step) for step in range(6)]),
    "evaluated": lambda folder: evaluated(False, shared=True),
    "erratic": lambda folder: evaluated(True, shared=True),
    "validated": lambda folder: validated(),
    "interrupted": lambda folder: interrupted(folder / "interrupted"),
    "uninterrupted": lambda folder: uninterrupted(folder / "uninterrupted"),
    "by the clock": lambda folder: by_the_clock(),
    "spoilt": lambda folder: spoilt(),
    "mistaken": lambda folder: mistaken(),
    "unlike": lambda folder: unlike(folder / "unlike"),
}


def validated(**more: Any) -> list[dict[str, Any]]:
    """The lines of a run."""
    training, lines = training_of(steps=4, log_every=2, validations=2, **more)
    training.run()
    return lines


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def told(home: Path) -> list[dict[str, Any]]:
    """What each rank finds in each scenario; ranks are copies of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(RANKS):
        process = os.fork()
        if process == 0:
            _be(rank, port, home)
        processes.append(process)
    statuses = [os.waitpid(process, 0)[1] for process in processes]
    mistakes = [path.read_text() for path in sorted(home.glob("error-*"))]
    assert statuses == [0] * RANKS, "\n".join(mistakes)
    return [torch.load(home / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def _be(rank: int, port: int, home: Path) -> None:
    status = 1
    try:
        torch.set_num_threads(1)  # a copy has no others
        world = {"WORLD_SIZE": RANKS, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()})
        ranks.join("cpu")
        found = {}
        for name, scenario in SCENARIOS.items():
            torch.set_default_dtype(torch.float32)
            torch.manual_seed(rank)
            found[name] = scenario(home)
        torch.save(found, home / f"{rank}.pt")
        ranks.gathered(None)
        status = 0
    except BaseException:
        (home / f"error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(status)


pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore:This process:DeprecationWarning")


@contextmanager
def noise_of_parts(parts: int, patch: pytest.MonkeyPatch, training: PyroTraining) -> Iterator[None]:
    """Whole batches get the noise that parts would have drawn."""

    def normal(shape: Any, dtype: Any, device: Any) -> Tensor:
        noise = []
        for part in range(parts):
            torch.manual_seed(seed_of_part(training.config.training.seed, training.step, part))
            size = (shape[0] // parts, *shape[1:])
            noise.append(torch.normal(torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype)))
        return torch.cat(noise)

    with patch.context() as changed:
        changed.setattr("torch.distributions.normal._standard_normal", normal)
        yield


@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in NONLINEAR])
def test_ranks_make_the_steps_of_one_that_accumulates(told: list[dict[str, Any]], name: str) -> None:
    alone = trained(name, accumulate=RANKS)
    for rank in told:
        found = rank[name]
        for mine, other in zip(found["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)
        for key in ("weights", "average", "auxiliary"):
            torch.testing.assert_close(found[key], alone[key], **NEAR)
        assert found["line"] == pytest.approx(alone["line"], rel=1e-9)


@pytest.mark.parametrize("name", TRAININGS)
def test_ranks_make_the_steps_of_one_at_the_whole_batch(
    told: list[dict[str, Any]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same noise for the same data; objectives of a batch's mean rate, too."""
    training, _ = training_of(**TRAININGS[name])
    with noise_of_parts(RANKS, monkeypatch, training), gradients(training) as grads, training.running():
        for _ in range(STEPS):
            training.advance()
    for rank in told:
        for mine, other in zip(rank[name]["gradients"], grads[0], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(rank[name]["weights"], flat(training.vae), **NEAR)


def test_ranks_that_accumulate_make_the_steps_of_one_with_as_many_parts(told: list[dict[str, Any]]) -> None:
    alone = trained("adam, trace", 5, accumulate=2 * RANKS)
    for rank in told:
        torch.testing.assert_close(rank["two parts each"]["weights"], alone["weights"], **NEAR)
    assert not torch.allclose(alone["weights"], trained("adam, trace", 5)["weights"])  # noise of other parts


def test_an_epoch_is_exact(told: list[dict[str, Any]]) -> None:
    shares = [rank["indices"] for rank in told]
    whole = Batches(toy_data().train, 8, 0, "cpu")
    assert torch.equal(torch.cat(shares, 1), torch.stack([whole.indices(step) for step in range(6)]))
    for epoch in (slice(0, 3), slice(3, 6)):
        assert sorted(torch.cat([share[epoch].reshape(-1) for share in shares]).tolist()) == list(range(24))


@pytest.mark.parametrize("name", ["evaluated", "erratic"])
def test_what_ranks_evaluate_is_what_one_does(told: list[dict[str, Any]], name: str) -> None:
    alone = evaluated(name == "erratic")
    for rank in told:
        found = rank[name]
        assert torch.equal(found.rate, alone.rate)
        assert torch.equal(found.distortion, alone.distortion)
        assert torch.equal(found.z["z"], alone.z["z"])
        assert torch.equal(found.mean["z"], alone.mean["z"])
        assert torch.equal(found.rate_per_dimension, alone.rate_per_dimension)
        facts = ("closed_form", "mean_field", "apart", "families", "scored", "masked")
        assert all(getattr(found, fact) == getattr(alone, fact) for fact in facts)


def test_lines_of_metrics_are_those_of_all_ranks(told: list[dict[str, Any]]) -> None:
    alone = validated(accumulate=RANKS)
    assert [line["split"] for line in alone] == ["train", "validation"] * 2
    for rank in told:
        for mine, other in zip(rank["validated"], alone, strict=True):
            assert mine["split"] == other["split"]
            assert numbers(mine) == pytest.approx(numbers(other), rel=1e-9)


def test_all_ranks_stop_at_one_step_and_go_on(told: list[dict[str, Any]], home: Path, tmp_path: Path) -> None:
    assert [rank["interrupted"] for rank in told] == [3, 3]
    one, other = load(home / "interrupted", weights="last"), load(home / "uninterrupted", weights="last")
    assert one.step == other.step == 8
    assert torch.equal(flat(one.vae), flat(other.vae))
    lines = [load(home / name).metrics for name in ("interrupted", "uninterrupted")]
    for mine, whole in zip(*lines, strict=True):  # that of step 4 is of both parts of its window
        assert numbers(mine) == pytest.approx(numbers(whole), rel=1e-6)
    for found in lines:
        steps = [(line["step"], line["split"]) for line in found]
        assert steps == [(2, "train"), (4, "train"), (4, "validation"), (6, "train"), (8, "train"), (8, "validation")]


def test_one_process_goes_on_with_the_parts_of_two(told: list[dict[str, Any]], home: Path) -> None:
    folder = home / "uninterrupted"
    with pytest.raises(UserError, match=r"have 2 parts .*, not 1; go on with training.accumulate=2\.$"):
        resume(folder, {"training.steps": 10}, data=toy_data())
    longer = resume(folder, {"training.steps": 10, "training.accumulate": 2}, data=toy_data())
    assert longer.step == 10
    assert longer.config.training.accumulate == 2


def test_the_clock_of_the_first_rank_decides(told: list[dict[str, Any]]) -> None:
    (steps, rates), (other_steps, other_rates) = (rank["by the clock"] for rank in told)
    assert steps == other_steps > 1
    assert rates == other_rates
    assert rates[-1] < 0.5 * max(rates)


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(told: list[dict[str, Any]]) -> None:
    (skipped, weights), (other_skipped, other_weights) = (rank["spoilt"] for rank in told)
    assert skipped == other_skipped == 1
    assert torch.equal(weights, other_weights)
    assert weights.isfinite().all()


def test_the_mistake_of_one_rank_is_raised_by_all_and_said_once(told: list[dict[str, Any]]) -> None:
    first, last = (rank["mistaken"] for rank in told)
    assert first[:2] == [("UserError", "a is wrong; mend it.", False), ("CheckFailed", "b failed.", False)]
    assert last[:2] == [("UserError", "a is wrong; mend it.", True), ("CheckFailed", "b failed.", True)]
    assert first[2] == ("RankLost", "process 1 failed: OSError: no disk", True)
    assert last[2] == ("OSError", "no disk", False)


def test_ranks_that_would_not_make_one_training_are_refused(told: list[dict[str, Any]], home: Path) -> None:
    mend = "of process 1 are not those of process 0; start all with the same command, on the same data."
    said = [f"the data {mend}", f"the settings {mend}"]
    for number, rank in enumerate(told):
        assert rank["unlike"] == [(words, number > 0) for words in said]
    assert not (home / "unlike").exists()


def test_what_is_tried_at_the_start_leaves_running_statistics_alone() -> None:
    training, _ = training_of(steps=1)
    guide = training.vae.guide
    guide.register_buffer("seen", torch.zeros(()))
    guide.register_forward_hook(lambda module, *_: module.seen.add_(1) and None)
    with parameters_of(training.vae):
        assert training._tried() is False
        assert guide.seen == 0
        training.advance()
    assert guide.seen == 1


def test_a_rank_that_is_lost_before_the_first_step_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(training: PyroTraining) -> bool:
        raise RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")

    training, _ = training_of(steps=1)
    monkeypatch.setattr(PyroTraining, "_tried", lost)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    with pytest.raises(RankLost, match=r"^process 0 of 2 stops: another process has ended"):
        training.run()


def test_parts_of_one_process_have_noise_of_their_own() -> None:
    seeds = {seed_of_part(seed, step, part) for seed in (0, 1) for step in range(20) for part in range(4)}
    assert len(seeds) == 2 * 20 * 4


@pytest.mark.parametrize(
    ("settings", "count", "words"),
    [
        ({"batch": 8}, 3, r"training.batch=8 has no 3 equal parts, for 3 processes with training.accumulate=1; give a"),
        ({"batch": 8, "accumulate": 3}, 1, r"training.batch=8 has no 3 equal parts, for 1 process with"),
        (
            {"batch": 8, "accumulate": 2, "objective": "free_bits", "free_nats": 1.0},
            1,
            r"objective.program=free_bits is of the rate of a whole batch, which the parts of training.accumulate=2",
        ),
    ],
)
def test_a_step_that_cannot_be_cut_is_refused(
    settings: dict[str, Any], count: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "count", lambda: count)
    with pytest.raises(UserError, match=words):
        training_of(**settings)


def test_numpyro_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    with pytest.raises(UserError, match=r"^training.backend=numpyro trains in one process, not in 2; start it without"):
        prepare(small(backend="numpyro"), "cpu", data=toy_data())


def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"^WORLD_SIZE=2 is set, but not RANK; start with torchrun"):
        ranks.join("cpu")


def test_batch_normalisation_is_told_of() -> None:
    config = config_of(batch=8, accumulate=2)
    vae = build(config, SPEC)
    vae.guide.norm = nn.BatchNorm1d(3)
    notices = PyroTraining(config, toy_data(), vae, [].append).notices
    assert any(notice.startswith("batch normalisation takes its statistics of 4 data") for notice in notices)


def test_the_death_of_a_rank_ends_all_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    """By torchrun, as a person would: killed, told of, gone on with by one process."""
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "-m", "pyro_delta",
        "train", "--dataset", "digits", "--steps", "100000", "--out", run, "--set", "training.log_every=2",
        "--set", "training.batch=8", "--set", "training.validations=0", "--set", "training.checkpoint_minutes=0.001",
        "--set", "likelihood.channels=[4]", "--set", "likelihood.row_blocks=[1]", "--set", "guide.channels=[4]",
        "--set", "guide.row_blocks=[1]",
    ]  # fmt: skip
    with (tmp_path / "err").open("w") as err:
        torchrun = subprocess.Popen(
            [str(part) for part in command], stdout=err, stderr=err, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        children: list[psutil.Process] = []
        for _ in range(600):
            if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) > 2:
                break
            time.sleep(0.1)
        children = psutil.Process(torchrun.pid).children()
        victim = next(child for child in children if child.environ().get("RANK") == "1")
        victim.kill()
        code = torchrun.wait(timeout=300)  # of one that hangs
    finally:
        torchrun.kill()
    said = (tmp_path / "err").read_text()
    assert code != 0
    assert said.count("pyro-delta: process 0 of 2 stops: another process has ended") == 1, said
    assert said.count("committed rate:") == 1
    left = load(run, weights="last")
    longer = resume(run, {"training.steps": left.step + 2, "training.accumulate": 2})
    assert longer.step == left.step + 2
    assert json.loads((run / "config.json").read_text())["training"]["accumulate"] == 2
    evaluated = [*command[: command.index("train")], "evaluate", run, "--images", "250", "--json"]
    of_two = subprocess.run(
        [str(part) for part in evaluated], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert of_two.returncode == 0, of_two.stderr
    code, of_one, _ = call("evaluate", run, "--images", 250, "--json")
    assert code == 0
    two, one = json.loads(of_two.stdout), json.loads(of_one)
    floats = {key: value for key, value in one.items() if type(value) is float}
    assert {key: two[key] for key in floats} == pytest.approx(floats, rel=1e-9)
    assert {**two, **floats} == one


def test_what_ranks_do_not_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert call("check", "runs/none")[::2] == (
        2, "pyro-delta: check runs in one process, not in 2; start it without torchrun.\n"
    )  # fmt: skip
    monkeypatch.setenv("RANK", "1")
    assert call("check", "runs/none")[::2] == (2, "")
